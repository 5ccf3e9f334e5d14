"""Snapshots by prefix key: files at a folder or any fsspec URL, found through an index in the database."""

from sweeper.store.place import Place, check_url
from sweeper.store.snapshot import Mismatch, Snapshot, Usage
from sweeper.store.store import Store

__all__ = ["Mismatch", "Place", "Snapshot", "Store", "Usage", "check_url"]
