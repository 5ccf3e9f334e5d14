"""One MLflow run per trial over all its attempts: written to a journal on this machine, sent in the background.

    with Tracker("sqlite:///mlflow.db", "digits", Path("journals")) as tracker:
        tracker.check()
        log = tracker.trial(0, name="cosine", tags={names.FAMILY: "cosine"}, params={"lr0": 0.02})
        log.epoch(0, {names.LR: 0.02, f"{names.CURVE}mAP50-95": 0.11})
        log.finish("FINISHED")

Nothing here blocks training: while the server is away the journal grows. It is sent, each point once and with the
time at which it was made, by this process or, after its death, by the next process that uses the folder.
"""

from sweeper.tracking.connection import check_uri
from sweeper.tracking.tracker import Tracker, TrialLog

__all__ = ["Tracker", "TrialLog", "check_uri"]
