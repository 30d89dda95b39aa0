from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import tensorstore
import xarray as xr
import zarr
from hypothesis import given

from featurestore.errors import InvalidInputError
from featurestore.storage.blob import LocalBlobs
from featurestore.storage.column import Column
from featurestore.storage.index import ColumnIndex
from featurestore.storage.layout import ColumnLayout, chunk_shape, make_layout, rows_per_slot
from featurestore.storage.slots import key_record
from tests.storage.conftest import KEY, RUN, append, digests_of, rows_of


def test_rows_come_back_bit_for_bit_in_any_order(column):
    digests, rows = digests_of(700), rows_of(700, (8, 3, 5))
    append(column, digests, rows)
    order = np.random.default_rng(1).integers(0, 700, 1000)  # repeats included
    found = column.lookup(digests[order])
    np.testing.assert_array_equal(column.read(found), rows[order])


@given(
    shape=st.sampled_from([(1,), (7,), (33_000,), (5, 70, 70), (3, 4), (2, 129, 129)]),
    sparse=st.booleans(),
    data=st.data(),
)
def test_any_part_of_any_rows_equals_the_same_part_in_numpy(tmp_path_factory, shape, sparse, data):
    column = Column(LocalBlobs(tmp_path_factory.mktemp("s")), KEY, writable=True)
    n = data.draw(st.integers(1, 40))
    rows = rows_of(n, shape)
    if sparse:
        rows[rows < 1] = 0
    digests = digests_of(n)
    cut = data.draw(st.integers(0, n))
    for part in (slice(0, cut), slice(cut, n)):
        if len(digests[part]):
            append(column, digests[part], rows[part])
    images = data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=60))
    selection = []
    for size in shape:
        start = data.draw(st.integers(0, size - 1))
        selection.append(slice(start, data.draw(st.integers(start + 1, size))))
    values = column.read(column.lookup(digests[images]), tuple(selection))
    np.testing.assert_array_equal(values, rows[images][(slice(None), *selection)])


def test_plain_zarr_and_xarray_read_the_same_values(column, blobs):
    digests, rows = digests_of(300), rows_of(300, (4, 6, 6))
    rows[5] = 0
    append(column, digests, rows)
    plain = xr.open_zarr(blobs.root / "columns" / KEY)
    there = plain["image"].values.any(axis=1)
    order = column.lookup(digests)
    np.testing.assert_array_equal(np.flatnonzero(there), np.sort(order))
    np.testing.assert_array_equal(plain["activations"].values[order], rows)
    assert plain["activations"].dims == ("row", "channel", "y", "x")
    group = zarr.open_group(blobs.root / "columns" / KEY, mode="r")
    np.testing.assert_array_equal(group["image"][:][order], digests)
    np.testing.assert_allclose(
        group["row_stats"][:][order, 0], rows.reshape(300, -1).mean(axis=1, dtype=float)
    )
    assert group.attrs["featurestore"]["key"] == KEY


@pytest.mark.parametrize("shape", [(4, 6, 6), (3, 130, 130), (40_000,)])
@pytest.mark.parametrize("sparse", [True, False])
def test_tensorstore_reads_the_same_values_and_zarr_writes_the_same_chunks(
    column, blobs, shape, sparse
):
    digests, rows = digests_of(40), rows_of(40, shape)
    if sparse:
        rows[rows < 1] = 0
    append(column, digests, rows)
    assert column.layout.compressed == sparse
    path = str(blobs.root / "columns" / KEY / "activations")
    array = tensorstore.open(
        {"driver": "zarr3", "kvstore": {"driver": "file", "path": path}}, open=True
    ).result()
    np.testing.assert_array_equal(array[column.lookup(digests)].read().result(), rows)
    # The other way round: the chunks that zarr-python writes under our metadata, our reader reads,
    # once the binding that makes them a slot of ours stands before the index.
    written = zarr.open_array(path, mode="r+")
    shard = column.layout.slot_name("activations", 0)
    index_nbytes = 16 * int(np.prod(column.layout.n_chunks)) + 4
    binding = blobs.get(shard)[-index_nbytes - 16 : -index_nbytes]
    blobs.delete(shard)
    blobs.delete(column.layout.slot_name("run", 0))  # zarr's shard has another size
    written[:40] = rows
    theirs = blobs.get(shard)
    blobs.replace(shard, theirs[:-index_nbytes] + binding + theirs[-index_nbytes:])
    again = Column(blobs, KEY, writable=False)
    np.testing.assert_array_equal(again.read(again.lookup(digests)), rows)


def test_a_column_that_outgrows_its_advertised_length_is_still_read_by_plain_xarray(column, blobs):
    digests, rows = digests_of(70), rows_of(70, (2,))
    for n in range(70):
        append(column, digests[n : n + 1], rows[n : n + 1])
    plain = xr.open_zarr(blobs.root / "columns" / KEY)
    assert plain["image"].values.any(axis=1).sum() == 70


def test_a_row_of_zeros_is_stored_and_not_mistaken_for_nothing(column):
    digests = digests_of(3)
    append(column, digests, np.zeros((3, 5), np.float32))
    assert (column.lookup(digests) >= 0).all()
    np.testing.assert_array_equal(column.read(column.lookup(digests)), np.zeros((3, 5)))


def test_nan_and_infinity_are_kept_as_they_are(column):
    rows = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    append(column, digests_of(1), rows)
    assert column.read(column.lookup(digests_of(1))).tobytes() == rows.tobytes()


def test_float16_rounds_and_refuses_what_would_overflow(column):
    append(column, digests_of(1), np.array([[1.0001, 2]], np.float32), dtype="float16")
    values = column.read(column.lookup(digests_of(1)))
    assert values.dtype == np.float16
    assert values[0, 0] == np.float16(1.0001)
    with pytest.raises(InvalidInputError, match="float32"):
        append(column, digests_of(1, 1), np.array([[1e6, 2]], np.float32), dtype="float16")


def test_of_two_copies_the_lowest_row_is_read(column, blobs):
    digests = digests_of(1)
    append(column, digests, np.array([[1.0]], np.float32))
    append(column, digests, np.array([[2.0]], np.float32))
    assert column.read(column.lookup(digests))[0, 0] == 1
    assert column.n_rows() == 1


def test_two_processes_see_each_other_and_share_one_layout(blobs):
    one, two = Column(blobs, KEY, writable=True), Column(blobs, KEY, writable=True)
    sparse, dense = np.zeros((4, 500), np.float32), rows_of(4, (500,))
    append(one, digests_of(4), sparse)  # decides that the column is compressed
    append(two, digests_of(4, 1), dense)
    assert one.layout == two.layout
    np.testing.assert_array_equal(one.read(one.lookup(digests_of(4, 1))), dense)
    np.testing.assert_array_equal(two.read(two.lookup(digests_of(4))), sparse)


def test_a_tombstone_hides_a_slot_and_its_number_is_never_used_again(column, blobs):
    append(column, digests_of(2), rows_of(2, (3,)))
    append(column, digests_of(2, 1), rows_of(2, (3,)))
    layout = column.layout
    blobs.replace(layout.slot_name("image", 1), key_record(layout, np.empty((0, 16), np.uint8)))
    blobs.delete(layout.slot_name("activations", 1))
    assert (column.lookup(digests_of(2, 1)) == -1).all()
    fresh = Column(blobs, KEY, writable=True)
    append(fresh, digests_of(2, 2), rows_of(2, (3,)))
    assert (fresh.lookup(digests_of(2, 2)) >= 2 * layout.rows_per_slot).all()


def test_a_restored_key_record_is_noticed(column, blobs):
    digests = digests_of(1)
    append(column, digests, np.array([[1.0]], np.float32))
    path = column.layout.slot_name("image", 0)
    record = blobs.get(path)
    blobs.delete(path)
    assert column.lookup(digests)[0] == -1
    blobs.replace(path, record)
    assert column.lookup(digests)[0] == 0


@given(st.lists(st.integers(0, 40), max_size=60), st.lists(st.integers(0, 60), max_size=30))
def test_the_index_agrees_with_a_dict_also_where_first_halves_collide(kept, asked):
    class Blobs:
        def list(self, folder):
            return []

    layout = make_layout(KEY, {}, dtype="float32", dims=("a",), shape=(1,), compressed=False)
    index = ColumnIndex(Blobs(), layout)  # type: ignore[arg-type]

    def digest(n: int) -> list[int]:
        return [1 + n % 3] * 8 + [1 + n] * 8  # only three distinct first halves

    oracle: dict[int, int] = {}
    record = np.zeros((256, 16), np.uint8)
    for row, n in enumerate(kept):
        record[row] = digest(n)
        oracle.setdefault(n, row)
    index._records[0] = ("v", record)
    found = index.lookup(np.array([digest(n) for n in asked], np.uint8).reshape(-1, 16))
    assert found.tolist() == [oracle.get(n, -1) for n in asked]


@given(st.lists(st.integers(1, 3000), min_size=1, max_size=3))
def test_chunks_cover_a_row_and_waste_little(shape):
    piece = chunk_shape(shape)
    assert np.prod(piece) <= 16_384
    assert all(p <= n for p, n in zip(piece, shape, strict=True))
    padded = np.prod([-(-n // p) * p for n, p in zip(shape, piece, strict=True)], dtype=float)
    assert padded <= 1.5 * np.prod(shape, dtype=float)


def test_the_example_of_the_design_is_not_padded():
    layout = make_layout(KEY, {}, dtype="float32", dims="cyx", shape=(256, 6, 6), compressed=True)
    assert layout.shard_shape == (256, 256, 6, 6)
    assert rows_per_slot(36_864) == 256
    assert ColumnLayout.from_json(layout.to_json()) == ColumnLayout.from_json(layout.to_json())


def test_rows_of_another_shape_are_refused(column):
    append(column, digests_of(1), rows_of(1, (3,)))
    with pytest.raises(ValueError, match="do not fit"):
        append(column, digests_of(1, 1), rows_of(1, (4,)))


def test_a_digest_of_zeros_is_refused_because_it_means_an_empty_row(column):
    with pytest.raises(ValueError, match="all-zero"):
        append(column, np.zeros((1, 16), np.uint8), rows_of(1, (3,)))


def test_the_companion_names_the_run(column):
    append(column, digests_of(1), rows_of(1, (3,)))
    companion = column.companion(0)
    assert companion is not None
    assert companion.run == RUN
