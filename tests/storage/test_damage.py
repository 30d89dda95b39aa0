"""Whatever happens to the files: a true value, or an error that names the rows."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from featurestore.errors import CorruptDataError, FormatVersionError
from featurestore.storage import reader, records
from featurestore.storage.check import check_slot, repair
from featurestore.storage.column import Column
from featurestore.storage.layout import ColumnLayout
from featurestore.storage.reader import DamagedRowsError
from featurestore.storage.row_stats import read_statistics
from tests.storage.conftest import KEY, append, digests_of, rows_of


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(reader, "CONFIRM_AFTER_S", 0)


def _fresh_values(blobs, digests):
    """Read every row that is not a miss, as a new process would."""
    column = Column(blobs, KEY, writable=False)
    found = column.lookup(digests)
    values = {}
    for number, row in enumerate(found):
        if row >= 0:
            try:
                values[number] = column.read(np.array([row]))[0]
            except DamagedRowsError:
                continue
    return values


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("array", ["activations", "image", "run", "row_stats"])
def test_no_flipped_byte_ever_becomes_a_wrong_value(blobs, array, compressed):
    digests = digests_of(5)
    rows = rows_of(5, (12,)) if not compressed else np.zeros((5, 12), np.float32)
    column = Column(blobs, KEY, writable=True)
    append(column, digests, rows)
    assert column.layout.compressed == compressed
    path = column.layout.slot_name(array, 0)
    good = blobs.get(path)
    step = max(1, len(good) // 300)
    for at in range(0, len(good), step):
        bad = bytearray(good)
        bad[at] ^= 0xFF
        blobs.replace(path, bytes(bad))
        for number, value in _fresh_values(blobs, digests).items():
            np.testing.assert_array_equal(value, rows[number])
    blobs.replace(path, good)
    assert len(_fresh_values(blobs, digests)) == 5


@pytest.mark.parametrize("array", ["activations", "image", "run"])
def test_no_truncation_ever_becomes_a_wrong_value(blobs, array):
    digests, rows = digests_of(5), rows_of(5, (12,))
    append(Column(blobs, KEY, writable=True), digests, rows)
    column = Column(blobs, KEY, writable=False)
    path = column.layout.slot_name(array, 0)
    good = blobs.get(path)
    for n in {0, 1, 3, 4, len(good) // 2, len(good) - 4, len(good) - 1}:
        blobs.replace(path, good[:n])
        for number, value in _fresh_values(blobs, digests).items():
            np.testing.assert_array_equal(value, rows[number])


def test_only_the_rows_in_the_damaged_chunk_become_misses(blobs):
    digests, rows = digests_of(256), rows_of(256, (1000,))
    column = Column(blobs, KEY, writable=True)
    append(column, digests, rows)
    path = column.layout.slot_name("activations", 0)
    data = bytearray(blobs.get(path))
    data[10] ^= 1  # in the first inner chunk: 32 rows
    blobs.replace(path, bytes(data))
    with pytest.raises(DamagedRowsError) as caught:
        column.read(column.lookup(digests))
    assert caught.value.damage[0][0] == frozenset(range(32))
    for seen_by in (column, Column(blobs, KEY, writable=False)):
        found = seen_by.lookup(digests)
        assert (found[:32] == -1).all()
        np.testing.assert_array_equal(seen_by.read(found[32:]), rows[32:])
    append(column, digests[:32], rows[:32])  # recomputed into a new slot
    np.testing.assert_array_equal(column.read(column.lookup(digests)), rows)


def test_a_missing_shard_is_damage_and_a_reader_never_writes_a_marker(blobs):
    digests = digests_of(3)
    append(Column(blobs, KEY, writable=True), digests, rows_of(3, (4,)))
    column = Column(blobs, KEY, writable=False)
    blobs.delete(column.layout.slot_name("activations", 0))
    with pytest.raises(DamagedRowsError, match="missing"):
        column.read(column.lookup(digests))
    assert blobs.list(f"columns/{KEY}/damage") == []
    assert (column.lookup(digests) == -1).all()


def test_a_disk_error_is_raised_and_is_not_damage(blobs, monkeypatch):
    digests = digests_of(3)
    column = Column(blobs, KEY, writable=True)
    append(column, digests, rows_of(3, (4,)))
    found = column.lookup(digests)

    def fail(*_args):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(type(blobs), "get_into", fail)
    with pytest.raises(OSError, match="Input/output"):
        column.read(found)
    monkeypatch.undo()
    assert (column.lookup(digests) >= 0).all()


def test_a_document_with_a_flipped_byte_is_refused(blobs):
    records.create(blobs, "a.json", {"format": 1, "shape": [256, 6, 6], "text": "grün"})
    good = blobs.get("a.json")
    for at in range(len(good)):
        bad = bytearray(good)
        bad[at] ^= 1
        blobs.replace("a.json", bytes(bad))
        try:
            document = records.read(blobs, "a.json")
        except CorruptDataError:
            continue
        assert document == {"format": 1, "shape": [256, 6, 6], "text": "grün"}  # white space only


def test_a_newer_format_is_refused_with_the_way_out():
    with pytest.raises(FormatVersionError, match="pip install --upgrade") as caught:
        ColumnLayout.from_json({"format": 2, "key": KEY})
    assert caught.value.found == 2


def test_a_writer_killed_at_any_call_leaves_published_rows_whole_and_no_others(blobs):
    digests, rows = digests_of(6), rows_of(6, (3,))
    append(Column(blobs, KEY, writable=True), digests[:3], rows[:3])

    class Killed(BaseException):
        pass

    class Dying:
        """Blobs whose k-th changing call kills the process, before or after its effect."""

        def __init__(self, k: int, after: bool) -> None:
            self.left, self.after = k, after

        def __getattr__(self, name):
            real = getattr(blobs, name)
            if name not in ("create", "replace", "delete"):
                return real

            def call(*args):
                self.left -= 1
                if self.left == 0 and not self.after:
                    raise Killed
                result = real(*args)
                if self.left == 0:
                    raise Killed
                return result

            return call

    for after in (False, True):
        for k in range(1, 40):
            writer = Column(Dying(k, after), KEY, writable=True)  # type: ignore[arg-type]
            seed = 100 * k + after
            mine = digests_of(3, seed)
            try:
                append(writer, mine, rows[3:])
                finished = True
            except Killed:
                finished = False
            reader_ = Column(blobs, KEY, writable=False)
            np.testing.assert_array_equal(reader_.read(reader_.lookup(digests[:3])), rows[:3])
            found = reader_.lookup(mine)
            assert (found >= 0).all() or (found < 0).all()
            if found[0] >= 0:
                np.testing.assert_array_equal(reader_.read(found), rows[3:])
            if finished:
                assert (found >= 0).all()
                break
        else:
            pytest.fail("the write never finished")


SLOT_FILES = ("activations", "row_stats", "run", "image")
_SUBSETS = [files for n in range(1, 5) for files in itertools.combinations(SLOT_FILES, n)]


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("files", _SUBSETS, ids="+".join)
def test_files_that_were_swapped_between_slots_never_give_values_of_other_rows(
    blobs, files, compressed
):
    digests, rows = digests_of(8), np.zeros((8, 12), np.float32)
    if not compressed:
        rows = rows_of(8, (12,))
    rows[:, 3] = np.arange(8)
    writer = Column(blobs, KEY, writable=True)
    append(writer, digests[:4], rows[:4])
    append(writer, digests[4:], rows[4:])
    assert writer.layout.compressed == compressed
    for file in files:
        first, second = (writer.layout.slot_name(file, slot) for slot in (0, 1))
        a, b = blobs.get(first), blobs.get(second)
        blobs.replace(first, b)
        blobs.replace(second, a)
    for number, value in _fresh_values(blobs, digests).items():
        np.testing.assert_array_equal(value, rows[number])
    column = Column(blobs, KEY, writable=True)
    column.index.refresh()
    findings = [f for slot in (0, 1) for f in check_slot(column, slot, fast=False)]
    assert findings
    for finding in findings:
        repair(column, finding)
    for number, value in _fresh_values(blobs, digests).items():
        np.testing.assert_array_equal(value, rows[number])
    for slot in (0, 1):  # statistics are of the slot's own rows again
        stats = read_statistics(
            writer.layout, blobs.get(writer.layout.slot_name("row_stats", slot))
        )
        known = Column(blobs, KEY, writable=False)
        known.index.refresh()
        for position, digest in enumerate(known.index.record(slot)[:4]):
            number = np.flatnonzero((digests == digest).all(axis=1))[0]
            if number in _fresh_values(blobs, digests):
                np.testing.assert_allclose(stats[position, 0], rows[number].mean(), rtol=1e-6)


def test_a_slot_copied_to_another_column_or_number_is_not_believed(blobs):
    digests, rows = digests_of(4), rows_of(4, (12,))
    other = "cd" * 16
    append(Column(blobs, KEY, writable=True), digests, rows)
    append(Column(blobs, other, writable=True), digests, rows + 1)
    source = Column(blobs, KEY, writable=True).layout
    target = Column(blobs, other, writable=True).layout
    for file in SLOT_FILES:
        blobs.replace(target.slot_name(file, 0), blobs.get(source.slot_name(file, 0)))
        blobs.replace(source.slot_name(file, 7), blobs.get(source.slot_name(file, 0)))
    column = Column(blobs, other, writable=False)
    with pytest.raises(DamagedRowsError, match="other rows"):
        column.read(column.lookup(digests))
    column = Column(blobs, KEY, writable=False)
    np.testing.assert_array_equal(column.read(column.lookup(digests)), rows)
    with pytest.raises(DamagedRowsError, match="other rows"):
        column.read(np.arange(4) + 7 * source.rows_per_slot)


def test_a_document_that_somebody_mended_meanwhile_is_not_set_aside(blobs):
    records.create(blobs, "a.json", {"format": 1})
    records.set_aside(blobs, "a.json")
    assert records.read(blobs, "a.json") == {"format": 1}
    blobs.replace("a.json", b"{")
    records.set_aside(blobs, "a.json")
    assert records.read(blobs, "a.json") is None
    assert blobs.get("a.json.damaged") == b"{"
