"""Snapshots by prefix key: files at a folder or any fsspec URL, found through an index in the database."""

from sweeper.store.files import Mismatch, Place, Snapshot, Usage, check_url
from sweeper.store.store import Store

__all__ = ["Mismatch", "Place", "Snapshot", "Store", "Usage", "check_url"]
