"""Snapshots by prefix key: files in a folder or at any fsspec URL, with an index in the database.

A worker first writes the complete file, under a path that contains the digest of its content, and then inserts the row
of the index. If it dies in between, no row points to an incomplete file; and two workers that write different states
under one key write different files. The first row of a key stays. A reader compares the file's SHA-256 with the row.
Rows identify their store by a random id that is stored beside the files, because two hosts may have different folders
under the same path.
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
from sweeper.store.files import Files, Mismatch, Snapshot, Usage, check_url, pack, unpack

__all__ = ["Files", "Mismatch", "Snapshot", "Store", "Usage", "check_url"]


class Store:
    """The snapshots at ``url`` (a folder or any fsspec URL), indexed in ``database``.

    With ``max_bytes``, :meth:`put` removes snapshots as :meth:`gc` does. ``reserve`` bytes of a local disk stay free of
    snapshots. Without ``make`` nothing is created; the store's id is then ``id``, or is read at ``url``. Raises
    StoreError if the store cannot be opened.
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
        self._files = Files(self.url, id, make=make)
        self.id = self._files.id
        if make:
            self._do(database.upsert(self._tables.stores).values(store=self.id).on_conflict_do_nothing())

    def _do(self, statement: Any) -> int:
        """Execute a statement in a transaction and return the number of rows that it changed."""
        return self._database.transaction(lambda connection: connection.execute(statement).rowcount)

    def _first(self, statement: Any) -> Any:
        """Return the first row of a statement's result, or None."""
        return self._database.transaction(lambda connection: connection.execute(statement).first())

    def _at(self, table: Any, key: str) -> tuple[Any, Any]:
        """Return the conditions that select the rows of this store and ``key`` in a table."""
        return table.c.store == self.id, table.c.key == key

    def deepest(self, keys: Sequence[str], owner: str | None = None) -> int:
        """Return the largest i >= 1 for which ``keys[i]`` is stored, else 0, the untrained model.

        With an ``owner``, the pin of that trial moves to the snapshot.
        """
        t = self._tables.snapshots

        def find(connection: Connection) -> int:
            query = select(t.c.key).where(t.c.store == self.id, t.c.key.in_(keys[1:]))
            if owner is not None:
                # The rows stay locked until the pin is stored, so that no other worker evicts the snapshot before.
                query = query.with_for_update()
            stored = set(connection.execute(query).scalars())
            depth = max((index for index in range(1, len(keys)) if keys[index] in stored), default=0)
            if owner is not None:
                self._pin(connection, owner, keys[depth : depth + 1] if depth else ())
            return depth

        return self._database.transaction(find)

    def get(self, key: str, *, branch: bool = False) -> Snapshot:
        """Return the snapshot after a check of its bytes; a damaged or missing one is deleted, with SnapshotCorrupt.

        ``branch`` marks a state from which trials branch; such snapshots are evicted last.
        """
        t, s = self._tables.snapshots, self._tables.stores
        row = self._first(select(t).where(*self._at(t, key)))
        if row is None:
            raise SnapshotCorrupt(f"snapshot {key[:12]}: no longer in {self.url}; it is trained again")
        content = self._files.read(row.file)
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
        """Store ``snapshot`` unless ``key`` is stored already; record and return a mismatch if its state differs.

        ``profile`` (JSON) describes the machine, ``branch`` is as in :meth:`get`. The pin of ``owner`` moves to the
        snapshot. After a StoreError, for instance of a full disk, the training can continue without the snapshot.
        """
        t = self._tables.snapshots
        present = select(t).where(*self._at(t, key))
        file = None
        if self._first(present) is None:
            content = pack(key, snapshot, profile or {})
            sha256 = hashlib.sha256(content).hexdigest()
            file = f"{key[:2]}/{key}-{sha256[:12]}"
            free = self._files.free() if self._reserve else None
            if free is not None and free < self._reserve + len(content):
                raise StoreError(
                    f"{self.url}: {free / 1e6:.0f} MB are left on its disk, which study and journals need, too; "
                    "expected more free space, a smaller store_gb or another store"
                )
            self._files.write(file, content, sha256)

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
        if row is None:  # Another process evicted the stored snapshot after the first query, so it is stored again.
            return self.put(key, snapshot, profile, branch=branch, owner=owner)
        if file is not None and row.file != file:
            self._files.remove(file)
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
        """Return all recorded mismatches, the oldest first; each pair of key and digest is recorded once."""
        t = self._tables.mismatches
        query = select(t).where(t.c.store == self.id).order_by(t.c.seen, t.c.key)
        rows = self._database.transaction(lambda connection: connection.execute(query).mappings().all())
        return [Mismatch.of(dict(row)) for row in rows]

    def lease(self, key: str, owner: str, seconds: float = 60.0) -> bool:
        """Lease the segment that ends in ``key`` to ``owner``; return False while another worker holds it."""
        t, now = self._tables.segments, self._database.now
        insert = self._database.upsert(t).values(store=self.id, key=key, owner=owner, expires=now + seconds)
        take = insert.on_conflict_do_update(
            index_elements=["store", "key"],
            set_={"owner": owner, "expires": now + seconds},
            where=or_(t.c.expires < now, t.c.owner == owner),
        )
        return self._first(take.returning(t.c.key)) is not None

    def renew(self, key: str, owner: str, seconds: float = 60.0) -> None:
        """Renew the lease of the segment for ``seconds``; raises LeaseLost if ``owner`` no longer holds it."""
        t = self._tables.segments
        renewal = update(t).where(*self._at(t, key), t.c.owner == owner)
        if self._do(renewal.values(expires=self._database.now + seconds)) == 0:
            raise LeaseLost(f"segment {key[:12]}: {owner} no longer holds its lease; another worker trains it")

    def release(self, key: str, owner: str) -> None:
        """End the lease of the segment, unless another worker holds it by now."""
        t = self._tables.segments
        self._do(delete(t).where(*self._at(t, key), t.c.owner == owner))

    def pin(self, owner: str, keys: Sequence[str]) -> None:
        """Pin the snapshots ``keys`` for ``owner``, an unfinished trial, and remove its other pins."""
        self._database.transaction(lambda connection: self._pin(connection, owner, keys))

    def unpin(self, owner: str) -> None:
        """Remove all pins of ``owner``, a finished trial."""
        self.pin(owner, ())

    def _pinned_after(self, connection: Connection, owner: str, epoch: int) -> bool:
        """Whether a state after ``epoch`` is pinned for ``owner``.

        This happens if the operating system suspended this worker, and another one adopted the trial and went further.
        """
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
        """Remove snapshots above ``max_bytes`` (None: the store's) and return how many, and how many bytes they had.

        The least recently used ones are removed first, those from which trials branch last, pinned ones and those of
        leased segments never. Temporary files of dead writers are removed, too. With ``unfinished``, the owners of all
        unfinished trials, the pins of other owners are removed first.
        """
        t = self._tables.pins
        if unfinished is not None:
            self._do(delete(t).where(t.c.store == self.id, t.c.owner.not_in(list(unfinished))))
        self._files.remove_abandoned()
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
                self._files.remove(row.file)
                count, removed = count + 1, removed + row.bytes
        return count, removed

    def usage(self) -> Usage:
        """Return how much space the snapshots take and how often they were read."""
        t, s = self._tables.snapshots, self._tables.stores
        stored = select(func.count(), func.coalesce(func.sum(t.c.bytes), 0)).where(t.c.store == self.id)
        read = select(s.c.reads, s.c.read_bytes).where(s.c.store == self.id)
        count, size, reads, read_bytes = map(int, (*self._first(stored), *self._first(read)))
        return Usage(count, size, reads, read_bytes, self._files.free())

    def mean_bytes(self, keys: Collection[str]) -> float | None:
        """Return the mean size in bytes of those of ``keys`` that are stored; None if none is."""
        t = self._tables.snapshots
        mean = select(func.avg(t.c.bytes)).where(t.c.store == self.id, t.c.key.in_(keys))
        size = self._first(mean)[0]
        return None if size is None else float(size)

    def check(self) -> int | None:
        """Write, read and remove a small file; see :meth:`Files.check`."""
        return self._files.check()

    def drop(self, key: str, why: str) -> None:
        """Delete a snapshot whose bytes are undamaged, but which no trainer can load; ``why`` is the reason."""
        t = self._tables.snapshots
        if (row := self._first(select(t).where(*self._at(t, key)))) is not None:
            self._drop(row, why)

    def _drop(self, row: Any, why: str) -> SnapshotCorrupt:
        """Delete the snapshot of a row and return the error that says so."""
        t = self._tables.snapshots
        self._do(delete(t).where(*self._at(t, row.key), t.c.file == row.file))
        self._files.remove(row.file)
        return SnapshotCorrupt(
            f"snapshot {row.key[:12]} after epoch {row.epoch}: {row.file} in {self.url} {why}; "
            "dropped, it is trained again"
        )
