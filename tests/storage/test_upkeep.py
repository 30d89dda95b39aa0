"""Checking, compacting, sweeping and dropping, beside readers, writers and one another."""

from __future__ import annotations

import random
import shutil
import threading

import numpy as np
import pytest

from featurestore.storage import reader, records
from featurestore.storage.catalog import Catalog
from featurestore.storage.check import check_metadata, check_slot, repair
from featurestore.storage.column import Column
from featurestore.storage.compaction import compact_column
from featurestore.storage.index import read_damage
from featurestore.storage.provenance import computed_by
from featurestore.storage.reader import DamagedRowsError, RowsMovedError
from featurestore.storage.sweep import drop_rows, leftovers, sweep_column
from tests.storage.conftest import KEY, RUN, append, digests_of, rows_of

NARROW = (12,)


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(reader, "CONFIRM_AFTER_S", 0)


def fill(column, digests, rows, sizes):
    """Publish rows in slots of these sizes."""
    start = 0
    for n in sizes:
        append(column, digests[start : start + n], rows[start : start + n])
        start += n


def values_of(blobs, digests, key=KEY):
    """What a new process reads, by position."""
    column = Column(blobs, key, writable=False)
    found = column.lookup(digests)
    return {n: column.read(found[n : n + 1])[0] for n in np.flatnonzero(found >= 0).tolist()}


def assert_all_there(blobs, digests, rows):
    values = values_of(blobs, digests)
    assert sorted(values) == list(range(len(digests)))
    for n, value in values.items():
        np.testing.assert_array_equal(value, rows[n])


def flip(blobs, path, at):
    data = bytearray(blobs.get(path))
    data[at] ^= 0x10
    blobs.replace(path, bytes(data))


@pytest.fixture
def catalog(blobs):
    return Catalog(blobs, "a")


def test_sparse_slots_become_full_ones_and_every_row_stays(blobs, catalog, column):
    digests, rows = digests_of(300), rows_of(300, NARROW)
    fill(column, digests, rows, [1] * 20 + [40] * 7)
    done = compact_column(catalog, column)
    assert done.n_rows_moved == 300
    assert done.n_slots_written == 2
    assert done.n_slots_emptied == 27
    assert_all_there(blobs, digests, rows)
    live = [n for n, r in column.index.records().items() if r.any()]
    assert live == [27, 28]
    again = compact_column(catalog, column)
    assert again.n_slots_written == 0


def test_full_slots_are_left_alone(catalog, column):
    digests, rows = digests_of(600), rows_of(600, NARROW)
    fill(column, digests, rows, [256, 256, 88])
    assert compact_column(catalog, column).n_slots_written == 0


def test_a_moved_row_keeps_who_computed_it(catalog, column):
    digests, rows = digests_of(9), rows_of(9, NARROW)
    feature = {"module": "test"}
    runs = [catalog.create_run({"n": n}) for n in range(3)]
    for n, run in enumerate(runs):
        part = slice(3 * n, 3 * n + 3)
        column.append(feature, ("x",), digests[part], rows[part], dtype="float32", run=run)
    for _ in range(2):  # through one compaction, and through a compaction of a compaction
        compact_column(catalog, column)
        found = column.lookup(digests)
        assert computed_by(catalog, column, found) == [run for run in runs for _ in range(3)]
        extra = digests_of(2, seed=9)
        append(column, extra, rows_of(2, NARROW, seed=9))


def test_copies_of_a_row_become_one(blobs, catalog, column):
    digests, rows = digests_of(200), rows_of(200, NARROW)
    fill(column, digests, rows, [200])
    other = Column(blobs, KEY, writable=True)
    fill(other, digests, rows, [200])
    done = compact_column(catalog, column)
    assert done.n_slots_emptied == 1
    assert done.n_rows_moved == 0
    assert len(column.index.live_rows()[1]) == 200
    assert_all_there(blobs, digests, rows)


def test_a_tagged_row_whose_copies_differ_is_not_emptied(blobs, catalog, column):
    digests, rows = digests_of(200), rows_of(200, NARROW)
    fill(column, digests, rows, [200])
    drifted = rows * np.float32(1.000001)
    fill(Column(blobs, KEY, writable=True), digests, drifted, [200])
    done = compact_column(catalog, column, tagged={digests[7].tobytes()})
    assert done.n_slots_emptied == 0
    assert_all_there(blobs, digests, rows)
    assert compact_column(catalog, column, tagged={b"x" * 16}).n_slots_emptied == 1


def test_compaction_saves_the_good_rows_of_a_damaged_slot(blobs, catalog, column):
    digests, rows = digests_of(256), rows_of(256, (1000,))
    fill(column, digests, rows, [256])
    path = column.layout.slot_name("activations", 0)
    flip(blobs, path, 10)  # in the first inner chunk: 32 rows
    with pytest.raises(DamagedRowsError):
        column.read(column.lookup(digests))
    done = compact_column(catalog, column)
    assert done.n_rows_moved == 224
    assert done.n_slots_emptied == 1
    found = Column(blobs, KEY, writable=False).lookup(digests)
    assert (found[:32] == -1).all()
    assert (found[32:] >= 256).all()


def test_nothing_is_emptied_while_the_copy_is_damaged(blobs, catalog, column):
    digests, rows = digests_of(200), rows_of(200, NARROW)
    fill(column, digests, rows, [200])
    fill(Column(blobs, KEY, writable=True), digests, rows, [200])
    flip(blobs, column.layout.slot_name("activations", 1), 5)
    assert compact_column(catalog, column).n_slots_emptied == 0
    assert_all_there(blobs, digests, rows)


def test_a_reader_with_an_old_look_up_is_sent_to_look_again(blobs, catalog, column):
    digests, rows = digests_of(60), rows_of(60, NARROW)
    fill(column, digests, rows, [3] * 20)
    other = Column(blobs, KEY, writable=True)
    found = other.lookup(digests)
    compact_column(catalog, column)
    np.testing.assert_array_equal(other.read(found), rows)  # its data are still there
    sweep_column(column, grace_s=-1)
    with pytest.raises(RowsMovedError):
        other.read(found)
    assert blobs.list(f"columns/{KEY}/damage") == []
    np.testing.assert_array_equal(other.read(other.lookup(digests)), rows)


def test_slot_numbers_are_never_used_again(blobs, catalog, column):
    digests, rows = digests_of(60), rows_of(60, NARROW)
    fill(column, digests, rows, [3] * 20)
    compact_column(catalog, column)
    sweep_column(column, grace_s=-1)
    names = {info.name for info in blobs.list(f"columns/{KEY}/activations")}
    assert names >= {"c.20.0"}
    assert "c.0.0" not in names
    late = Column(blobs, KEY, writable=True)
    late._next_slot = 0  # a writer that last looked before
    append(late, digests_of(2, seed=5), rows_of(2, NARROW, seed=5))
    assert late.lookup(digests_of(2, seed=5)).min() >= 21 * 256
    assert_all_there(blobs, digests, rows)


def test_a_sweeper_cannot_race_a_slow_writer(blobs, column):
    digests, rows = digests_of(5), rows_of(5, NARROW)

    class Slow:
        """Blobs under whose feet a sweeper runs just before the key record is created."""

        def __init__(self):
            self.done = False

        def __getattr__(self, name):
            return getattr(blobs, name)

        def create(self, path, *parts):
            if "/image/c." in path and not self.done:
                self.done = True
                sweep_column(Column(blobs, KEY, writable=True), grace_s=-1)
            return blobs.create(path, *parts)

    append(column, digests[:1], rows[:1])
    append(Column(Slow(), KEY, writable=True), digests, rows)  # type: ignore[arg-type]
    assert_all_there(blobs, digests, rows)
    assert sorted(Column(blobs, KEY, writable=False).lookup(digests)[1:] // 256) == [2] * 4


def test_the_sweeper_takes_what_writers_left_behind_and_nothing_else(blobs, column):
    digests, rows = digests_of(5), rows_of(5, NARROW)
    append(column, digests, rows)
    blobs.create(column.layout.slot_name("activations", 1), b"of a writer that was killed")
    (blobs.root / f"columns/{KEY}/activations/.tmp.abc").write_bytes(b"half a shard")
    assert leftovers(column, blobs.now() - 3600) == []
    swept = sweep_column(column, grace_s=-1)
    assert swept.n_files == 2
    assert not list(blobs.root.rglob(".tmp.*"))
    assert_all_there(blobs, digests, rows)


def test_dropped_rows_are_misses_and_their_bytes_are_free(blobs, column):
    digests, rows = digests_of(520), rows_of(520, NARROW)
    fill(column, digests, rows, [256, 256, 8])
    kept = digests[300].tobytes()
    drop_rows(column, keep={kept})
    found = Column(blobs, KEY, writable=False).lookup(digests)
    assert (found[256:512] >= 0).all()
    assert (found[:256] == -1).all()
    assert (found[512:] == -1).all()
    assert [
        info.name for info in blobs.list(f"columns/{KEY}/activations") if "c." in info.name
    ] == ["c.1.0"]
    drop_rows(column)
    assert column.n_rows() == 0
    append(column, digests[:3], rows[:3])  # and can be filled again
    assert_all_there(blobs, digests[:3], rows[:3])


class _Turns:
    """Lets threads change blobs one call at a time, in an order drawn from a seed."""

    def __init__(self, blobs, seed):
        self.blobs, self.random = blobs, random.Random(seed)
        self.waiting: dict[int, threading.Event] = {}
        self.running = 0
        self.lock = threading.Lock()

    def start(self, works):
        self.running = len(works)
        threads = [threading.Thread(target=self._run, args=(work,)) for work in works]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
            assert not thread.is_alive()

    def _run(self, work):
        self._turn()
        try:
            work()
        finally:
            with self.lock:
                self.running -= 1
                self._wake()

    def _turn(self):
        event = threading.Event()
        with self.lock:
            self.waiting[id(event)] = event
            self._wake()
        event.wait(60)

    def _wake(self):
        if self.waiting and len(self.waiting) == self.running:
            chosen = self.random.choice(sorted(self.waiting))
            self.waiting.pop(chosen).set()

    def __getattr__(self, name):
        real = getattr(self.blobs, name)
        if name not in ("create", "replace", "delete", "list", "get"):
            return real

        def call(*args, **kwargs):
            self._turn()
            return real(*args, **kwargs)

        return call


@pytest.mark.parametrize("seed", range(25))
def test_two_compactors_and_a_sweeper_lose_nothing_in_any_order(blobs, seed):
    digests, rows = digests_of(24, seed), rows_of(24, NARROW, seed)
    fill(Column(blobs, KEY, writable=True), digests, rows, [2] * 8 + [4, 4])
    fill(Column(blobs, KEY, writable=True), digests[3:9], rows[3:9], [3, 3])
    turns = _Turns(blobs, seed)

    def compact():
        column = Column(turns, KEY, writable=True)
        compact_column(Catalog(turns, "a"), column)
        sweep_column(column, grace_s=-1)

    turns.start([compact, compact])
    assert_all_there(blobs, digests, rows)
    column = Column(blobs, KEY, writable=True)
    compact_column(Catalog(blobs, "a"), column)
    assert_all_there(blobs, digests, rows)


@pytest.mark.parametrize("seed", range(10))
def test_a_reader_beside_a_compactor_sees_true_values_in_any_order(blobs, seed):
    digests, rows = digests_of(12, seed), rows_of(12, NARROW, seed)
    fill(Column(blobs, KEY, writable=True), digests, rows, [2] * 6)
    turns = _Turns(blobs, seed)

    def compact():
        column = Column(turns, KEY, writable=True)
        compact_column(Catalog(turns, "a"), column)
        sweep_column(column, grace_s=-1)

    def read():
        column = Column(turns, KEY, writable=True)
        for _ in range(4):
            while True:
                found = column.lookup(digests)
                assert (found >= 0).all()
                try:
                    np.testing.assert_array_equal(column.read(found), rows)
                    break
                except RowsMovedError:
                    continue

    turns.start([compact, read])
    assert blobs.list(f"columns/{KEY}/damage") == []


def test_a_whole_slot_has_no_findings(column):
    append(column, digests_of(5), rows_of(5, NARROW))
    assert check_slot(column, 0, fast=False) == []
    assert check_metadata(column) == []


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("array", ["activations", "row_stats", "run", "image"])
def test_a_missing_file_is_found_and_mended(blobs, column, array, fast):
    digests, rows = digests_of(5), rows_of(5, NARROW)
    append(column, digests, rows)
    path = column.layout.slot_name(array, 0)
    before = blobs.get(path)
    blobs.delete(path)
    if array == "image":  # then the slot was never published
        assert column.lookup(digests).max() == -1
        return
    (finding,) = check_slot(column, 0, fast=fast)
    expected = {"activations": "rows", "row_stats": "statistics", "run": "companion"}
    assert finding.problem == expected[array]
    assert repair(column, finding).repaired
    if array == "activations":
        assert finding.digests == tuple(d.tobytes().hex() for d in digests)
        assert column.lookup(digests).max() == -1
    else:
        assert check_slot(column, 0, fast=fast) == []
        if array == "row_stats":
            assert blobs.get(path) == before
        assert_all_there(blobs, digests, rows)


def test_every_flipped_byte_of_every_file_of_a_slot_is_found_and_mended(blobs, column):
    digests, rows = digests_of(4), rows_of(4, (3,))
    append(column, digests, rows)
    for array in ("activations", "row_stats", "run", "image"):
        path = column.layout.slot_name(array, 0)
        good = blobs.get(path)
        for at in range(0, len(good), 1 + len(good) // 400):
            bad = bytearray(good)
            bad[at] ^= 0x40
            blobs.replace(path, bytes(bad))
            fresh = Column(blobs, KEY, writable=True)
            findings = check_slot(fresh, 0, fast=False)
            assert findings, (array, at)
            for finding in findings:
                repair(fresh, finding)
            for n, value in values_of(blobs, digests).items():
                np.testing.assert_array_equal(value, rows[n])
            blobs.replace(path, good)
            blobs.delete(f"columns/{KEY}/damage/0")
        assert check_slot(Column(blobs, KEY, writable=True), 0, fast=False) == []


def test_a_marker_that_does_not_reproduce_is_withdrawn(blobs, column):
    digests, rows = digests_of(5), rows_of(5, NARROW)
    append(column, digests, rows)
    path = column.layout.slot_name("activations", 0)
    good = blobs.get(path)
    blobs.replace(path, good[:-1])
    with pytest.raises(DamagedRowsError):
        column.read(column.lookup(digests))
    blobs.replace(path, good)  # the disk was brought back from a backup
    assert column.lookup(digests).max() == -1
    (finding,) = check_slot(column, 0, fast=False)
    assert finding.problem == "marker"
    repair(column, finding)
    assert read_damage(blobs, column.layout, 0) == frozenset()
    assert_all_there(blobs, digests, rows)
    np.testing.assert_array_equal(column.read(column.lookup(digests)), rows)


def test_no_companion_is_made_for_a_shard_with_bad_rows(blobs, catalog, column):
    digests, rows = digests_of(256), rows_of(256, (1000,))
    fill(column, digests, rows, [256])
    flip(blobs, column.layout.slot_name("activations", 0), 10)
    blobs.delete(column.layout.slot_name("run", 0))
    (finding,) = check_slot(column, 0, fast=False)
    assert (finding.problem, len(finding.positions)) == ("rows", 32)
    repair(column, finding)
    assert [f.repaired for f in check_slot(column, 0, fast=False)] == [True]
    compact_column(catalog, column)
    assert sorted(values_of(blobs, digests)) == list(range(32, 256))
    blobs.delete(column.layout.slot_name("activations", 1))
    blobs.delete(column.layout.slot_name("run", 1))
    (finding,) = check_slot(column, 1, fast=False)
    assert finding.problem == "rows"
    assert repair(column, finding).repaired


def test_damaged_metadata_are_written_anew(blobs, column):
    append(column, digests_of(3), rows_of(3, NARROW))
    path = f"columns/{KEY}/zarr.json"
    good = blobs.get(path)
    for bad in (
        b"",
        b"{",
        good.replace(b'"row_stats"', b'"row_stat5"'),
        good.replace(b"12", b"13"),
    ):
        blobs.replace(path, bad)
        (finding,) = check_metadata(Column(blobs, KEY, writable=True))
        repair(Column(blobs, KEY, writable=True), finding)
        assert check_metadata(Column(blobs, KEY, writable=True)) == []
        assert blobs.get(path) == good


@pytest.mark.parametrize("how", ["damaged", "missing"])
def test_a_lost_layout_is_found_in_the_metadata(blobs, column, how):
    digests = digests_of(3)
    rows = np.zeros((3, *NARROW), np.float32)  # compresses
    append(column, digests, rows)
    path = f"layouts/{KEY}.json"
    good = blobs.get(path)
    if how == "missing":
        blobs.delete(path)
    else:
        flip(blobs, path, 40)
    assert len(values_of(blobs, digests)) == 3
    writer = Column(blobs, KEY, writable=True)
    more, noise = digests_of(3, seed=4), rows_of(3, NARROW, seed=4)  # does not
    append(writer, more, noise)
    assert_all_there(blobs, digests, rows)
    assert_all_there(blobs, more, noise)
    assert records.parse(blobs.get(path), path) == records.parse(good, path)


def test_a_store_restored_from_a_copy_serves_true_values_to_an_open_reader(blobs, column, tmp_path):
    digests, rows = digests_of(6), rows_of(6, NARROW)
    fill(column, digests[:2], rows[:2], [2])
    shutil.copytree(blobs.root, tmp_path / "backup")
    fill(column, digests[2:4], rows[2:4], [2])  # slot 1 here
    np.testing.assert_array_equal(column.read(column.lookup(digests[:4])), rows[:4])
    shutil.rmtree(blobs.root)
    shutil.copytree(tmp_path / "backup", blobs.root)
    fill(Column(blobs, KEY, writable=True), digests[4:], rows[4:], [2])  # slot 1 there
    found = column.lookup(digests)
    assert (found[2:4] == -1).all()
    np.testing.assert_array_equal(column.read(found[[0, 1, 4, 5]]), rows[[0, 1, 4, 5]])
    assert blobs.list(f"columns/{KEY}/damage") == []
    assert column.companion(1).run == RUN
