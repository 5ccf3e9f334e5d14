"""The one loop: claim a trial, train it from the deepest stored prefix of its trace, tell."""

from sweeper.worker.worker import Worker

__all__ = ["Worker"]
