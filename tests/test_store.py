"""The store: what was put is what is got, or it is named and dropped; what is needed stays; nobody is overwritten."""

import os
import random
import resource
import shutil
import signal
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import fsspec
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sweeper import database
from sweeper.errors import LeaseLost, SnapshotCorrupt, StoreError
from sweeper.store import Snapshot, Store

FORK = get_context("fork")
KEYS = [f"{number:02x}" * 32 for number in range(16)]  # KEYS[0] is the untrained model
ROWS = [{"epoch": 0, "time": 1795169283123, "curve/lr": 0.1, "curve/mAP50-95": 1 / 3, "note": None}]


def snapshot(epoch: int = 1, size: int = 1000, digest: str = "d") -> Snapshot:
    return Snapshot(epoch, random.Random(f"{epoch}{digest}").randbytes(size), ROWS, digest)


@pytest.fixture(params=["folder", "memory", "dir"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A folder, and two other fsspec file systems."""
    return {"folder": f"{tmp_path}/store", "memory": f"memory://{tmp_path}", "dir": f"dir::file://{tmp_path}/dir"}[
        request.param
    ]


@pytest.fixture
def store(place: str, tmp_path: Path) -> Store:
    return Store(place, database.open(tmp_path / "sweep.db"))


@pytest.fixture
def folder(url: str, tmp_path: Path) -> Store:
    """In a folder, with the index in either kind of database."""
    return Store(tmp_path / "store", database.open(url))


def files(store: Store) -> list[str]:
    system, root = fsspec.core.url_to_fs(store.url)
    system.invalidate_cache()
    return sorted(path for path in system.find(root) if not path.endswith("store.json"))


# -- what was put is what is got


def test_a_snapshot_comes_back_exactly(store: Store) -> None:
    for epoch, size in ((1, 0), (2, 1), (3, 1_000_000)):
        put = snapshot(epoch, size)
        assert store.put(KEYS[epoch], put, {"host": "h"}) is None
        assert store.get(KEYS[epoch]) == put


def test_the_deepest_is_the_longest_prefix_that_is_there(folder: Store) -> None:
    assert folder.deepest(KEYS) == 0
    for epoch in (2, 5):
        folder.put(KEYS[epoch], snapshot(epoch))
    assert folder.deepest(KEYS) == 5
    assert folder.deepest(KEYS[:5]) == 2
    assert folder.deepest(KEYS[:2]) == 0
    assert folder.deepest([KEYS[0], "ff" * 32]) == 0
    folder.put(KEYS[0], snapshot(0))  # the untrained model is made, not stored
    assert folder.deepest(KEYS[:2]) == 0


def test_the_same_state_again_changes_nothing(store: Store) -> None:
    store.put(KEYS[1], snapshot())
    before = files(store)
    again = Snapshot(1, b"other bytes around the same tensors", [], "d")
    assert store.put(KEYS[1], again) is None
    assert files(store) == before
    assert store.get(KEYS[1]) == snapshot()
    assert store.mismatches() == []


def test_another_state_under_the_same_key_is_reported_once_and_the_first_kept(folder: Store) -> None:
    folder.put(KEYS[1], snapshot(digest="first"), {"cpu": "avx2"})
    mismatch = folder.put(KEYS[1], snapshot(digest="second"), {"cpu": "avx512"})
    assert mismatch is not None
    assert (mismatch.key, mismatch.epoch, mismatch.first_digest, mismatch.digest) == (KEYS[1], 1, "first", "second")
    assert (mismatch.first_profile, mismatch.profile) == ({"cpu": "avx2"}, {"cpu": "avx512"})
    assert not mismatch.known
    again = folder.put(KEYS[1], snapshot(digest="second"), {"cpu": "avx512"})
    assert again is not None
    assert again.known
    assert len(folder.mismatches()) == 1
    assert folder.get(KEYS[1]).state_digest == "first"
    assert len(files(folder)) == 1


@pytest.mark.parametrize("digests", ["aaaa", "abab"])
def test_of_writers_at_once_one_wins_and_nothing_is_overwritten(folder: Store, digests: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        said = list(pool.map(lambda digest: folder.put(KEYS[1], snapshot(size=200_000, digest=digest)), digests))
    kept = folder.get(KEYS[1])
    assert kept == snapshot(size=200_000, digest=kept.state_digest)
    assert [mismatch is not None for mismatch in said] == [digest != kept.state_digest for digest in digests]
    assert len(files(folder)) == 1


# -- damage


def _truncate(content: bytes) -> bytes | None:
    return content[: len(content) // 2]


def _empty(content: bytes) -> bytes | None:
    return b""


def _flip_state(content: bytes) -> bytes | None:
    return content[:-1] + bytes([content[-1] ^ 1])


def _flip_header(content: bytes) -> bytes | None:
    return bytes([content[0] ^ 128]) + content[1:]


def _append(content: bytes) -> bytes | None:
    return content + b"\0"


def _vanish(content: bytes) -> bytes | None:
    return None


@pytest.mark.parametrize("harm", [_truncate, _empty, _flip_state, _flip_header, _append, _vanish])
def test_a_damaged_file_is_named_dropped_and_replaced(store: Store, harm: Any) -> None:
    store.put(KEYS[1], snapshot(1))
    store.put(KEYS[2], snapshot(2))
    system, _ = fsspec.core.url_to_fs(store.url)
    path = next(path for path in files(store) if KEYS[2] in path)
    damaged = harm(system.cat_file(path))
    system.rm_file(path)
    if damaged is not None:
        system.pipe_file(path, damaged)
    with pytest.raises(SnapshotCorrupt, match=rf"snapshot {KEYS[2][:12]} after epoch 2: .*; dropped, it is trained"):
        store.get(KEYS[2])
    assert store.deepest(KEYS) == 1
    assert not any(KEYS[2] in path for path in files(store))
    with pytest.raises(SnapshotCorrupt, match=r"no longer in"):
        store.get(KEYS[2])
    store.put(KEYS[2], snapshot(2))
    assert store.get(KEYS[2]) == snapshot(2)


def _put_for_ever(url: str, place: Path, seed: int) -> None:
    store, chance = Store(place, database.open(url)), random.Random(seed)
    while True:
        store.put(f"{chance.randrange(50):02x}" * 32, snapshot(size=300_000))


def test_kill_9_while_writing_leaves_nothing_half(url: str, tmp_path: Path) -> None:
    place, chance = tmp_path / "store", random.Random(1)
    store = Store(place, database.open(url))
    for seed in range(6):
        writer = FORK.Process(target=_put_for_ever, args=(url, place, seed), daemon=True)
        writer.start()
        time.sleep(chance.uniform(0.1, 0.3))
        os.kill(writer.pid or 0, signal.SIGKILL)
        writer.join()
        left = os.listdir(place / "tmp")
        for name in left:  # as if it had happened an hour ago
            os.utime(place / "tmp" / name, (0, time.time() - 3600))
    keys = [f"{number:02x}" * 32 for number in range(50)]
    there = [key for key in keys if store.deepest(["", key])]
    assert there
    assert all(store.get(key) == snapshot(size=300_000) for key in there)
    store.gc()
    assert os.listdir(place / "tmp") == []


def _put_with_little_room(url: str, place: Path, said: Any) -> None:
    store = Store(place, database.open(url))
    resource.setrlimit(resource.RLIMIT_FSIZE, (3_000_000, 3_000_000))
    try:
        store.put(KEYS[1], snapshot(size=5_000_000))
    except StoreError as error:
        said.put(str(error))
    store.put(KEYS[2], snapshot(2))


def test_a_file_that_does_not_fit_is_an_error_that_one_can_go_on_after(url: str, tmp_path: Path) -> None:
    said = FORK.Queue()
    writer = FORK.Process(target=_put_with_little_room, args=(url, tmp_path / "store", said))
    writer.start()
    writer.join(30)
    assert writer.exitcode == 0
    message = said.get(timeout=5)
    assert "cannot write" in message
    assert "File too large; check the path and its free space" in message
    store = Store(tmp_path / "store", database.open(url))
    assert store.deepest(KEYS) == 2
    assert len(files(store)) == 1  # nothing half is left behind


# -- leases and pins


def test_a_segment_has_one_owner_at_a_time(folder: Store) -> None:
    assert folder.lease(KEYS[1], "a", seconds=0.3)
    assert folder.lease(KEYS[1], "a", seconds=0.3)
    assert not folder.lease(KEYS[1], "b")
    assert folder.lease(KEYS[2], "b")
    folder.renew(KEYS[1], "a", seconds=0.3)
    time.sleep(0.4)
    assert folder.lease(KEYS[1], "b")
    with pytest.raises(LeaseLost, match=f"segment {KEYS[1][:12]}: a no longer holds it"):
        folder.renew(KEYS[1], "a")
    folder.release(KEYS[1], "a")
    assert not folder.lease(KEYS[1], "c")
    folder.release(KEYS[1], "b")
    assert folder.lease(KEYS[1], "c")


def test_of_many_who_want_a_segment_one_gets_it(folder: Store) -> None:
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda owner: folder.lease(KEYS[1], f"w{owner}"), range(12)))
    assert got.count(True) == 1


def stored(store: Store) -> list[int]:
    return [index for index in range(1, len(KEYS)) if store.deepest(["", KEYS[index]])]


def test_room_is_made_by_age_branch_points_last_and_never_of_what_is_needed(folder: Store) -> None:
    for index in range(1, 9):
        folder.put(KEYS[index], snapshot(index), branch=index in (1, 2))
        time.sleep(0.002)
    folder.pin("sweep/0", [KEYS[3]])
    folder.lease(KEYS[4], "somebody")
    folder.get(KEYS[5])  # used just now
    size = folder.usage().bytes // 8
    assert folder.gc(size * 6)[0] == 2
    assert stored(folder) == [1, 2, 3, 4, 5, 8]
    folder.gc(size * 4)
    assert stored(folder) == [1, 2, 3, 4]
    folder.gc(size * 3)
    assert stored(folder) == [2, 3, 4]
    folder.gc(0)
    assert stored(folder) == [3, 4]
    folder.release(KEYS[4], "somebody")
    folder.unpin("sweep/0")
    folder.gc(0)
    assert stored(folder) == []
    assert files(folder) == []


def test_pins_move_with_their_owner(folder: Store) -> None:
    folder.put(KEYS[1], snapshot(1), owner="sweep/0")
    folder.put(KEYS[2], snapshot(2), owner="sweep/0")
    folder.put(KEYS[3], snapshot(3))
    assert folder.deepest(KEYS[:2], owner="sweep/1") == 1
    folder.gc(0)
    assert stored(folder) == [1, 2]
    assert folder.deepest([KEYS[0]], owner="sweep/1") == 0
    folder.gc(0)
    assert stored(folder) == [2]
    folder.gc(0, unfinished=["sweep/1"])
    assert stored(folder) == []


def test_a_budget_is_kept_with_every_put(url: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "store", database.open(url), max_bytes=5_000)
    for index in range(1, 10):
        store.put(KEYS[index], snapshot(index), owner="sweep/0")
        assert store.usage().bytes <= 5_000
    assert store.deepest(KEYS) == 9
    store.put(KEYS[10], snapshot(10, size=50_000), owner="sweep/0")
    assert stored(store) == [10]


def test_use_is_counted(store: Store) -> None:
    store.put(KEYS[1], snapshot(size=100))
    one = store.usage()
    store.get(KEYS[1])
    store.get(KEYS[1])
    two = store.usage()
    assert (one.count, one.reads, two.count, two.reads, two.read_bytes) == (1, 0, 1, 2, 2 * one.bytes)
    store.gc(0)
    assert (store.usage().count, store.usage().bytes, store.usage().reads) == (0, 0, 2)


def test_what_others_keep_beside_it_is_left_alone(tmp_path: Path) -> None:
    """A bucket may hold more than the store, and the store another database's states."""
    place, old = tmp_path / "bucket", (0, 0)
    store = Store(f"file://{place}", database.open(tmp_path / "sweep.db"))
    store.put(KEYS[1], snapshot())
    for name in ("thesis.tex", "aa/photo.jpg", "tmp/notes"):
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text("not sweeper's")
        os.utime(place / name, old)
    other = Store(f"file://{place}", database.open(tmp_path / "other.db"))
    other.put(KEYS[2], snapshot(2))
    for file in files(store):
        os.utime(file, old)
    again = Store(f"file://{place}", database.open(tmp_path / "sweep.db"))
    assert again.gc(10**9, unfinished=[]) == (0, 0)
    assert all((place / name).exists() for name in ("thesis.tex", "aa/photo.jpg", "tmp/notes"))
    assert other.get(KEYS[2]) == snapshot(2)


def test_a_reserve_of_the_disk_is_left_to_others(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", database.open(tmp_path / "sweep.db"), reserve=10**18)
    with pytest.raises(StoreError, match="MB are left on its disk, which study and journals need, too"):
        store.put(KEYS[1], snapshot())
    assert store.deepest(KEYS) == 0


def test_a_pin_does_not_go_back(folder: Store) -> None:
    """A worker frozen while it stored a state wakes up: its trial has gone on since, and needs its latest state."""
    folder.put(KEYS[2], snapshot(2), owner="sweep/0")
    folder.put(KEYS[1], snapshot(1), owner="sweep/0")
    folder.gc(0)
    assert folder.deepest(KEYS) == 2


def test_a_state_that_is_of_no_use_is_dropped(folder: Store) -> None:
    folder.put(KEYS[1], snapshot())
    folder.drop(KEYS[1], "is of no use")
    assert folder.deepest(KEYS) == 0
    assert files(folder) == []


# -- places


def test_stores_in_one_database_do_not_believe_each_other(url: str, tmp_path: Path) -> None:
    opened = database.open(url)
    one, two = Store(tmp_path / "one", opened), Store(tmp_path / "two", opened)
    one.put(KEYS[1], snapshot())
    assert two.deepest(KEYS) == 0
    two.put(KEYS[1], snapshot(digest="other"))
    assert two.mismatches() == []
    shutil.move(tmp_path / "one", tmp_path / "moved")
    assert Store(tmp_path / "moved", opened).get(KEYS[1]) == snapshot()


def _open_store(url: str, place: Path, at: float, said: Any) -> None:
    opened = database.open(url)
    time.sleep(max(0.0, at - time.time()))
    said.put(Store(place, opened).id)


def test_many_processes_agree_on_a_new_stores_name(tmp_path: Path) -> None:
    said, at = FORK.Queue(), time.time() + 0.5
    arguments = (f"sqlite:///{tmp_path}/sweep.db", tmp_path / "store", at, said)
    processes = [FORK.Process(target=_open_store, args=arguments) for _ in range(6)]
    for process in processes:
        process.start()
    names = {said.get(timeout=30) for _ in processes}
    assert len(names) == 1


def test_a_place_that_works_is_left_as_it_was(store: Store) -> None:
    free = store.check()
    assert free is None or free > 0
    assert files(store) == []


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("/dev/null/store", "cannot open .*: Not a directory; check the path"),
        ("/proc/store", "cannot open .*; check the path"),
        ("nonsense://bucket/x", "not a store of training states; expected a folder, or a URL"),
    ],
)
def test_a_place_that_cannot_be_used_is_named_at_once(tmp_path: Path, place: str, said: str) -> None:
    with pytest.raises(StoreError, match=said) as caught:
        Store(place, database.open(tmp_path / "sweep.db"))
    assert "\n" not in str(caught.value)


def test_a_place_that_cannot_be_written_any_more_is_named(tmp_path: Path) -> None:
    store = Store(tmp_path / "store", database.open(tmp_path / "sweep.db"))
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").write_text("in the way")
    with pytest.raises(StoreError, match=r"cannot write probe-.*; check the path"):
        store.check()


def test_a_newer_store_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "store.json").write_text('{"store": "x", "format": 99}')
    with pytest.raises(StoreError, match=r"made by a newer sweeper .format 99, this one knows 1.; install"):
        Store(tmp_path / "store", database.open(tmp_path / "sweep.db"))


# -- any order of things


class Life(RuleBasedStateMachine):
    """Whatever is done in whatever order: the first state of a key stays until it is evicted, damaged or lost."""

    keys = st.sampled_from(KEYS[1:5])
    owners = st.sampled_from(["a", "b"])

    def __init__(self) -> None:
        super().__init__()
        self.home = Path(tempfile.mkdtemp())
        self.database = database.open(self.home / "sweep.db")
        self.store = Store(self.home / "store", self.database)
        self.model: dict[str, str] = {}
        self.pins: dict[str, set[str]] = {"a": set(), "b": set()}

    @rule(key=keys, digest=st.sampled_from("xy"), owner=st.none() | owners)
    def put(self, key: str, digest: str, owner: str | None) -> None:
        said = self.store.put(key, snapshot(digest=digest), owner=owner)
        assert (said is not None) == (self.model.setdefault(key, digest) != digest)
        if owner is not None:
            self.pins[owner] = {key}

    @rule(key=keys)
    def get(self, key: str) -> None:
        if key in self.model:
            assert self.store.get(key) == snapshot(digest=self.model[key])
        else:
            with pytest.raises(SnapshotCorrupt):
                self.store.get(key)

    @rule(owner=owners, keys=st.sets(keys))
    def pin(self, owner: str, keys: set[str]) -> None:
        self.store.pin(owner, sorted(keys))
        self.pins[owner] = keys

    @rule(keep=st.integers(0, 4))
    def gc(self, keep: int) -> None:
        before, size = dict(self.model), len(self.model) and self.store.usage().bytes // len(self.model)
        self.store.gc(keep * size)
        self.model = {key: digest for key, digest in before.items() if self.store.deepest(["", key])}
        pinned = set().union(*self.pins.values()) & before.keys()
        assert pinned <= self.model.keys()
        assert len(self.model) == max(min(len(before), keep), len(pinned))

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def damage(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.model)))
        path = next((self.home / "store").glob(f"*/{key}*"))
        path.write_bytes(path.read_bytes()[:-1])
        with pytest.raises(SnapshotCorrupt):
            self.store.get(key)
        del self.model[key]

    @rule()
    def reopen(self) -> None:
        self.store = Store(self.home / "store", self.database)

    @invariant()
    def index_and_files_agree(self) -> None:
        there = {path.name.partition("-")[0] for path in (self.home / "store").glob("*/*-*")}
        assert there == self.model.keys()
        assert self.store.usage().count == len(self.model)

    def teardown(self) -> None:
        self.database.engine.dispose()
        shutil.rmtree(self.home)


Life.TestCase.settings = settings(
    max_examples=15, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestLife = Life.TestCase
