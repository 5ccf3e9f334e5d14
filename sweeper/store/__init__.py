"""Snapshots by prefix key: files at a folder or any fsspec URL, found through an index in the database.

A file is put in place under a name that holds the digest of its content, and only then the index gets its row. So a row
never points to half a file, and two writers of one key never touch the same file. What was put first stays, and who
reads a file compares its SHA-256. The index knows a place by the random name that lies in it, because two hosts may see
different folders under one path.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from sweeper.database import Connection, Database, delete, exists, func, or_, select, update
from sweeper.errors import LeaseLost, SnapshotCorrupt, StoreError
from sweeper.store.files import Mismatch, Place, Snapshot, Usage, check_url, pack, unpack

__all__ = ["Mismatch", "Place", "Snapshot", "Store", "Usage", "check_url"]


class Store:
    """The snapshots at ``url`` (a folder or any fsspec URL), indexed in ``database``.

    With ``max_bytes``, every :meth:`put` makes room as :meth:`gc` does. ``reserve``: bytes of a local disk that no
    snapshot may take. Without ``make`` nothing is written: ``id`` names the store, or it is the one at ``url``. Raises
    StoreError if the place cannot be used.
    """

    def __init__(
        self,
        url: str | Path,
        database: Database,
        max_bytes: int | None = None,
        reserve: int = 0,
        *,
        id: str | None = None,
        make: bool = True,
    ) -> None:
        self.url = str(url)
        self.max_bytes = max_bytes
        self._reserve = reserve
        self._database = database
        self._tables = database.tables
        self._place = Place(self.url, id, make=make)
        self.id = self._place.id
        if make:
            self._do(database.upsert(self._tables.stores).values(store=self.id).on_conflict_do_nothing())

    def _do(self, statement: Any) -> int:
        """Execute a statement in a transaction; gives how many rows it touched."""
        return self._database.transaction(lambda connection: connection.execute(statement).rowcount)

    def _first(self, statement: Any) -> Any:
        """The first row that a statement gives, or None."""
        return self._database.transaction(lambda connection: connection.execute(statement).first())

    def _at(self, table: Any, key: str) -> tuple[Any, Any]:
        """Conditions: a row of a table is of this store and ``key``."""
        return table.c.store == self.id, table.c.key == key

    def deepest(self, keys: Sequence[str], owner: str | None = None) -> int:
        """The largest i >= 1 with ``keys[i]`` stored, else 0, the untrained model. ``owner`` pins that snapshot."""
        t = self._tables.snapshots

        def find(connection: Connection) -> int:
            query = select(t.c.key).where(t.c.store == self.id, t.c.key.in_(keys[1:]))
            if owner is not None:
                query = query.with_for_update()  # locked, so that nobody removes it before it is pinned
            stored = set(connection.execute(query).scalars())
            depth = max((index for index in range(1, len(keys)) if keys[index] in stored), default=0)
            if owner is not None:
                self._pin(connection, owner, keys[depth : depth + 1] if depth else ())
            return depth

        return self._database.transaction(find)

    def get(self, key: str, *, branch: bool = False) -> Snapshot:
        """The snapshot, its bytes checked. A damaged or missing one is dropped and named by SnapshotCorrupt.

        ``branch``: trials part here, so it is kept longer than others.
        """
        t, s = self._tables.snapshots, self._tables.stores
        row = self._first(select(t).where(*self._at(t, key)))
        if row is None:
            raise SnapshotCorrupt(f"snapshot {key[:12]}: not in {self.url} any more; it is trained again")
        content = self._place.read(row.file)
        if content is None:
            raise self._drop(row, "is missing")
        if len(content) != row.bytes:
            raise self._drop(row, f"has {len(content)} bytes of {row.bytes}")
        if hashlib.sha256(content).hexdigest() != row.sha256:
            raise self._drop(row, "was altered (its SHA-256 differs)")

        def count(connection: Connection) -> None:
            touch = update(t).where(*self._at(t, key))
            marked = True if branch else t.c.branch
            connection.execute(touch.values(used=self._database.now, reads=t.c.reads + 1, branch=marked))
            total = update(s).where(s.c.store == self.id)
            connection.execute(total.values(reads=s.c.reads + 1, read_bytes=s.c.read_bytes + row.bytes))

        self._database.transaction(count)
        return unpack(content)

    def put(
        self,
        key: str,
        snapshot: Snapshot,
        profile: Mapping[str, Any] | None = None,
        *,
        branch: bool = False,
        owner: str | None = None,
    ) -> Mismatch | None:
        """Store ``snapshot`` unless ``key`` is there already; with another state, record and return the mismatch.

        ``profile`` (JSON) describes the machine, ``branch`` is as in :meth:`get`, and the pin of ``owner`` moves here.
        After a StoreError (a full disk, say) the training can go on without the snapshot.
        """
        t = self._tables.snapshots
        present = select(t).where(*self._at(t, key))
        file = None
        if self._first(present) is None:
            content = pack(key, snapshot, profile or {})
            sha256 = hashlib.sha256(content).hexdigest()
            file = f"{key[:2]}/{key}-{sha256[:12]}"
            free = self._place.free() if self._reserve else None
            if free is not None and free < self._reserve + len(content):
                raise StoreError(
                    f"{self.url}: {free / 1e6:.0f} MB are left on its disk, which study and journals need, too; "
                    "expected more free space, a smaller store_gb or another store"
                )
            self._place.write(file, content, sha256)

        def index(connection: Connection) -> Any:
            if file is not None:
                values = {"store": self.id, "key": key, "epoch": snapshot.epoch, "branch": branch}
                values |= {"file": file, "sha256": sha256, "bytes": len(content), "state_digest": snapshot.state_digest}
                values |= {"profile": json.dumps(dict(profile or {})), "used": self._database.now}
                connection.execute(self._database.upsert(t).values(**values).on_conflict_do_nothing())
            row = connection.execute(present.with_for_update()).first()
            if row is not None:
                touch = update(t).where(*self._at(t, key))
                connection.execute(touch.values(used=self._database.now, branch=True if branch else t.c.branch))
                if owner is not None and not self._pinned_after(connection, owner, snapshot.epoch):
                    self._pin(connection, owner, [key])
            return row

        row = self._database.transaction(index)
        if row is None:  # removed by another process since the first query: store it again
            return self.put(key, snapshot, profile, branch=branch, owner=owner)
        if file is not None and row.file != file:
            self._place.remove(file)
        if row.state_digest != snapshot.state_digest:
            return self._mismatch(row, snapshot, profile or {})
        if file is not None and self.max_bytes is not None:
            self._evict(self.max_bytes)
        return None

    def _mismatch(self, row: Any, snapshot: Snapshot, profile: Mapping[str, Any]) -> Mismatch:
        t = self._tables.mismatches
        values = {"store": self.id, "key": row.key, "epoch": snapshot.epoch, "seen": self._database.now}
        values |= {"first_digest": row.state_digest, "first_profile": row.profile}
        values |= {"digest": snapshot.state_digest, "profile": json.dumps(dict(profile))}
        insert = self._database.upsert(t).values(**values).on_conflict_do_nothing()
        new = self._first(insert.returning(t.c.key))
        [mismatch] = [m for m in self.mismatches() if m.key == row.key and m.digest == snapshot.state_digest]
        return replace(mismatch, known=new is None)

    def mismatches(self) -> list[Mismatch]:
        """All mismatches so far, each digest of a key once, the oldest first."""
        t = self._tables.mismatches
        query = select(t).where(t.c.store == self.id).order_by(t.c.seen, t.c.key)
        rows = self._database.transaction(lambda connection: connection.execute(query).mappings().all())
        return [Mismatch.of(dict(row)) for row in rows]

    def lease(self, key: str, owner: str, seconds: float = 60.0) -> bool:
        """Whether ``owner`` may train the segment that ends in ``key``; False while somebody else does."""
        t, now = self._tables.segments, self._database.now
        insert = self._database.upsert(t).values(store=self.id, key=key, owner=owner, expires=now + seconds)
        take = insert.on_conflict_do_update(
            index_elements=["store", "key"],
            set_={"owner": owner, "expires": now + seconds},
            where=or_(t.c.expires < now, t.c.owner == owner),
        )
        return self._first(take.returning(t.c.key)) is not None

    def renew(self, key: str, owner: str, seconds: float = 60.0) -> None:
        """Hold the segment for another ``seconds``. Raises LeaseLost if ``owner`` does not hold it any more."""
        t = self._tables.segments
        held = update(t).where(*self._at(t, key), t.c.owner == owner)
        if self._do(held.values(expires=self._database.now + seconds)) == 0:
            raise LeaseLost(f"segment {key[:12]}: {owner} no longer holds it; somebody else trains it, stop")

    def release(self, key: str, owner: str) -> None:
        """Let others train the segment; nothing happens if ``owner`` does not hold it."""
        t = self._tables.segments
        self._do(delete(t).where(*self._at(t, key), t.c.owner == owner))

    def pin(self, owner: str, keys: Sequence[str]) -> None:
        """Keep ``keys``, and only these of what ``owner``, an unfinished trial, has pinned."""
        self._database.transaction(lambda connection: self._pin(connection, owner, keys))

    def unpin(self, owner: str) -> None:
        """Lift all pins of ``owner``, which has finished."""
        self.pin(owner, ())

    def _pinned_after(self, connection: Connection, owner: str, epoch: int) -> bool:
        """Whether ``owner`` has pinned a later state, because another worker went on while this one was frozen."""
        t, pins = self._tables.snapshots, self._tables.pins
        both = select(pins.c.key).join(t, (t.c.store == pins.c.store) & (t.c.key == pins.c.key))
        later = both.where(pins.c.store == self.id, pins.c.owner == owner, t.c.epoch > epoch)
        return connection.execute(later).first() is not None

    def _pin(self, connection: Connection, owner: str, keys: Sequence[str]) -> None:
        t = self._tables.pins
        connection.execute(delete(t).where(t.c.store == self.id, t.c.owner == owner))
        for key in dict.fromkeys(keys):
            connection.execute(t.insert().values(store=self.id, key=key, owner=owner))

    def gc(self, max_bytes: int | None = None, *, unfinished: Collection[str] | None = None) -> tuple[int, int]:
        """Remove what exceeds ``max_bytes``, by default the store's, and what dead writers left; gives count and bytes.

        Least recently used first, branch points last; nothing that is pinned or whose segment is leased. With
        ``unfinished``, the pins of all other owners are lifted.
        """
        t = self._tables.pins
        if unfinished is not None:
            self._do(delete(t).where(t.c.store == self.id, t.c.owner.not_in(list(unfinished))))
        self._place.remove_abandoned()
        budget = self.max_bytes if max_bytes is None else max_bytes
        return (0, 0) if budget is None else self._evict(budget)

    def _evict(self, max_bytes: int) -> tuple[int, int]:
        t, segments, pins = self._tables.snapshots, self._tables.segments, self._tables.pins
        size = select(func.coalesce(func.sum(t.c.bytes), 0)).where(t.c.store == self.id)
        [total] = map(int, self._first(size))
        if total <= max_bytes:
            return 0, 0
        used = exists().where(pins.c.store == t.c.store, pins.c.key == t.c.key)
        order = select(t.c.key).where(t.c.store == self.id, ~used).order_by(t.c.branch, t.c.used)
        keys = self._database.transaction(lambda connection: connection.execute(order).scalars().all())
        count = removed = 0
        for key in keys:
            if total - removed <= max_bytes:
                break

            def take(connection: Connection, key: str = key) -> Any:
                row = connection.execute(select(t).where(*self._at(t, key)).with_for_update(skip_locked=True)).first()
                pinned = select(pins.c.key).where(*self._at(pins, key))
                leased = select(segments.c.key).where(*self._at(segments, key))
                leased = leased.where(segments.c.expires >= self._database.now)
                if row is None or connection.execute(pinned).first() or connection.execute(leased).first():
                    return None
                connection.execute(delete(t).where(*self._at(t, key)))
                return row

            row = self._database.transaction(take)
            if row is not None:
                self._place.remove(row.file)
                count, removed = count + 1, removed + row.bytes
        return count, removed

    def usage(self) -> Usage:
        """Space and reuse."""
        t, s = self._tables.snapshots, self._tables.stores
        now = select(func.count(), func.coalesce(func.sum(t.c.bytes), 0)).where(t.c.store == self.id)
        ever = select(s.c.reads, s.c.read_bytes).where(s.c.store == self.id)
        count, size, reads, read_bytes = map(int, (*self._first(now), *self._first(ever)))
        return Usage(count, size, reads, read_bytes, self._place.free())

    def mean_bytes(self, keys: Collection[str]) -> float | None:
        """The mean size of those of ``keys`` that are stored; None where none is."""
        t = self._tables.snapshots
        mean = select(func.avg(t.c.bytes)).where(t.c.store == self.id, t.c.key.in_(keys))
        size = self._first(mean)[0]
        return None if size is None else float(size)

    def check(self) -> int | None:
        """As :meth:`Place.check`."""
        return self._place.check()

    def drop(self, key: str, why: str) -> None:
        """Remove a snapshot that was read undamaged but cannot be used, ``why`` being the reason."""
        t = self._tables.snapshots
        if (row := self._first(select(t).where(*self._at(t, key)))) is not None:
            self._drop(row, why)

    def _drop(self, row: Any, what: str) -> SnapshotCorrupt:
        t = self._tables.snapshots
        self._do(delete(t).where(*self._at(t, row.key), t.c.file == row.file))
        self._place.remove(row.file)
        return SnapshotCorrupt(
            f"snapshot {row.key[:12]} after epoch {row.epoch}: {row.file} in {self.url} {what}; "
            "dropped, it is trained again"
        )
