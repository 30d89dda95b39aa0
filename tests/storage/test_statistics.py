"""Statistics that were taken when rows were written: true, or taken again."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from featurestore.storage.blob import LocalBlobs
from featurestore.storage.column import Column
from featurestore.storage.reader import DamagedRowsError
from featurestore.storage.row_stats import row_statistics
from featurestore.storage.statistics import stored_statistics
from tests.storage.conftest import KEY, append, digests_of, rows_of


def truth(rows):
    """Mean and centred sum of squares in extended precision."""
    flat = rows.reshape(len(rows), np.prod(rows.shape[1:])).astype(np.longdouble)
    with np.errstate(invalid="ignore"):
        mean = flat.mean(axis=1)
        return np.stack([mean, ((flat - mean[:, None]) ** 2).sum(axis=1)], axis=1)


def check(found, rows, rtol=1e-12):
    np.testing.assert_allclose(found, truth(rows).astype(float), rtol=rtol)


@pytest.fixture
def reads(monkeypatch):
    """How many rows were read."""
    count = []
    real = Column.read

    def read(column, rows, *args):
        count.append(len(rows))
        return real(column, rows, *args)

    monkeypatch.setattr(Column, "read", read)
    return count


@given(data=st.data(), n=st.integers(1, 300))
def test_stored_statistics_are_those_of_the_rows_in_any_order(tmp_path_factory, data, n):
    column = Column(LocalBlobs(tmp_path_factory.mktemp("s")), KEY, writable=True)
    digests, rows = digests_of(n), 3 + rows_of(n, (2, 3))
    append(column, digests, rows)
    order = data.draw(st.lists(st.integers(0, n - 1), min_size=0, max_size=50))
    found = stored_statistics(column, column.lookup(digests[order]), digests[order])
    assert found.shape == (len(order), 2)
    check(found, rows[order])


def test_no_row_is_read_for_them(column, reads):
    digests, rows = digests_of(600), rows_of(600, (5,))
    append(column, digests, rows)
    check(stored_statistics(column, column.lookup(digests), digests), rows)
    assert reads == []


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_they_are_of_the_values_as_stored(column, dtype, reads):
    digests, rows = digests_of(20), 100 + rows_of(20, (50,))
    append(column, digests, rows, dtype)
    check(stored_statistics(column, column.lookup(digests), digests), rows.astype(dtype))
    assert reads == []


def test_rows_that_are_not_finite_say_so(column):
    digests, rows = digests_of(4), rows_of(4, (50,))
    rows[1, 3], rows[2, 3], rows[3, :2] = np.nan, np.inf, (np.inf, -np.inf)
    append(column, digests, rows)
    found = stored_statistics(column, column.lookup(digests), digests)
    np.testing.assert_array_equal(np.isfinite(found).all(axis=1), [True, False, False, False])


def slot_files(column, array):
    return sorted((column.blobs.root / "columns" / KEY / array).glob("c*"))


def damage(path, how):
    data = path.read_bytes()
    if how == "removed":
        path.unlink()
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "cut":
        path.write_bytes(data[:-1])
    elif how == "longer":
        path.write_bytes(data + b"\0")
    else:
        changed = bytearray(data)
        changed[int(how)] ^= 1
        path.write_bytes(changed)


@pytest.mark.parametrize("how", ["removed", "empty", "cut", "longer", "0", "9", "-1", "-5"])
@pytest.mark.parametrize("array", ["row_stats", "run"])
def test_damaged_statistics_are_taken_from_the_rows_again(column, blobs, reads, array, how):
    digests, rows = digests_of(600), rows_of(600, (5,))
    append(column, digests, rows)
    first, *others = slot_files(column, array)
    assert others
    damage(first, how)
    other = Column(blobs, KEY, writable=True)
    check(stored_statistics(other, other.lookup(digests), digests), rows)
    assert sum(reads) == 256


def test_every_byte_of_the_statistics_counts(column, blobs):
    digests, rows = digests_of(3), rows_of(3, (5,))
    append(column, digests, rows)
    (path,) = slot_files(column, "row_stats")
    data = path.read_bytes()
    for at in [*range(64), *range(64, len(data), 37)]:
        changed = bytearray(data)
        changed[at] ^= 0x80
        path.write_bytes(changed)
        other = Column(blobs, KEY, writable=False)
        check(stored_statistics(other, other.lookup(digests), digests), rows)


def test_statistics_of_another_slot_or_column_are_as_good_as_none(column, blobs):
    digests, rows = digests_of(600), rows_of(600, (5,))
    append(column, digests, rows)
    first, second, _ = slot_files(column, "row_stats")
    mine, theirs = first.read_bytes(), second.read_bytes()
    first.write_bytes(theirs)
    second.write_bytes(mine)
    other = Column(blobs, KEY, writable=True)
    check(stored_statistics(other, other.lookup(digests), digests), rows)
    # Together with their companions they are still of other rows.
    first_run, second_run, _ = slot_files(column, "run")
    mine, theirs = first_run.read_bytes(), second_run.read_bytes()
    first_run.write_bytes(theirs)
    second_run.write_bytes(mine)
    other = Column(blobs, KEY, writable=True)
    check(stored_statistics(other, other.lookup(digests), digests), rows)


def test_rows_that_moved_or_are_damaged_are_said_to_be_so(column, blobs):
    digests, rows = digests_of(5), rows_of(5, (5,))
    append(column, digests, rows)
    found = column.lookup(digests)
    with pytest.raises(DamagedRowsError):
        stored_statistics(column, found, digests[::-1])
    (shard,) = slot_files(column, "activations")
    damage(slot_files(column, "row_stats")[0], "removed")
    damage(shard, "9")
    other = Column(blobs, KEY, writable=True)
    with pytest.raises(DamagedRowsError):
        stored_statistics(other, other.lookup(digests), digests)


@given(
    n=st.integers(1, 5),
    p=st.sampled_from([1, 2, 7, 32767, 32768, 32769, 70_000]),
    offset=st.sampled_from([0.0, 1e3, 1e6, -1e6]),
    scale=st.sampled_from([1e-3, 1.0, 1e30]),
)
def test_statistics_of_rows_are_exact_whatever_the_offset(n, p, offset, scale):
    rows = ((offset + np.random.default_rng(p).normal(size=(n, p))) * scale).astype(np.float32)
    found, expected = row_statistics(rows), truth(rows).astype(float)
    size = np.sqrt((rows.astype(float) ** 2).mean(axis=1))
    np.testing.assert_allclose(found[:, 0], expected[:, 0], atol=1e-14 * size.max(), rtol=1e-12)
    np.testing.assert_allclose(
        found[:, 1], expected[:, 1], rtol=1e-11, atol=1e-28 * p * float(size.max()) ** 2
    )
