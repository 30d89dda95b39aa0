"""RDMs that do not fit in memory give the numbers that they would give in memory."""

from __future__ import annotations

import tracemalloc

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats
from scipy.spatial.distance import squareform

import featurestore as fs
from featurestore.errors import InvalidInputError, MemoryBudgetError
from featurestore.rdms.structure import make_rdm
from featurestore.rsa.measures import require_method, score
from featurestore.rsa.pairs import Pairs, tile_grid
from featurestore.rsa.ranking import MIN_SLOTS, RankTable, exact_ranks, sortable
from featurestore.rsa.streaming import stream_scores

N = 120
STREAMED = ("pearson", "cosine", "spearman", "rho-a")


def condensed(k, n=N, seed=0, dtype=np.float32, decimals=3):
    rng = np.random.default_rng(seed)
    values = rng.gamma(4, size=(k, n * (n - 1) // 2)) + rng.gamma(4, size=n * (n - 1) // 2)
    return np.round(values, decimals).astype(dtype)


def pairs(vectors, positions=None, chunks=None):
    squares = [squareform(vector) for vector in vectors]
    data = squares if chunks is None else [dask.array.from_array(x, chunks) for x in squares]
    variables = tuple(xr.Variable(("image", "image_2"), x) for x in data)
    return Pairs(variables, positions, "The RDM")


@pytest.mark.parametrize("method", STREAMED)
@pytest.mark.parametrize(
    ("chunks", "allowed"),
    [(None, 2**12), (None, 2**24), ((50, 50), 2**24), ((40, 120), 2**24), ((120, 33), 2**12)],
)
def test_streaming_gives_what_memory_gives(method, chunks, allowed):
    a, b = condensed(3), condensed(2, seed=1, dtype=np.float64)
    found = stream_scores(
        pairs(a, chunks=chunks), pairs(b, chunks=chunks), require_method(method), allowed
    )
    np.testing.assert_allclose(found.scores, score(a, b, method), rtol=0, atol=1e-12)
    assert not found.n_dropped.any()


@pytest.mark.parametrize("method", STREAMED)
def test_missing_pairs_are_left_out_of_their_comparison_only(method):
    a, b = condensed(3), condensed(2, seed=1)
    a[0, :50] = a[2, ::7] = b[1, 40:60] = np.nan
    found = stream_scores(pairs(a), pairs(b), require_method(method), 2**16)
    np.testing.assert_allclose(found.scores, score(a, b, method), rtol=0, atol=1e-12)
    both = np.isnan(a)[:, None] | np.isnan(b)[None]
    np.testing.assert_array_equal(found.n_dropped, both.sum(axis=-1))
    itself = stream_scores(x := pairs(a), x, require_method(method), 2**16)
    np.testing.assert_allclose(itself.scores, score(a, a, method), rtol=0, atol=1e-12)


@pytest.mark.parametrize("method", STREAMED)
def test_constant_and_empty_rdms_are_what_they_are_in_memory(method):
    other = condensed(1, seed=1)
    odd = np.full_like(condensed(4), 0.1)
    odd[1] = 0
    odd[2] = np.nan
    odd[3, :20] = other[0, :20]  # constant but for pairs that the other lacks
    other[0, :20] = np.nan
    found = stream_scores(pairs(odd), pairs(other), require_method(method), 2**16)
    np.testing.assert_allclose(found.scores, score(odd, other, method), rtol=0, atol=1e-12)


def test_large_offsets_cost_no_digits():
    a, b = condensed(2, decimals=0, dtype=np.float64), condensed(2, seed=1)
    expected = score(a, b, "pearson")
    shifted = a * 2.0**-10 + 2.0**30  # exact
    found = stream_scores(pairs(shifted), pairs(b), require_method("pearson"), 2**14)
    np.testing.assert_allclose(found.scores, expected, rtol=0, atol=1e-12)


def test_infinite_values_are_refused_or_ranked():
    a, b = condensed(1), condensed(1, seed=1)
    a[0, 5] = np.inf
    for method in ("pearson", "cosine"):
        with pytest.raises(InvalidInputError, match="infinite"):
            stream_scores(pairs(a), pairs(b), require_method(method), 2**16)
    found = stream_scores(pairs(a), pairs(b), require_method("spearman"), 2**16)
    np.testing.assert_allclose(found.scores, score(a, b, "spearman"), rtol=0, atol=1e-12)


def lazy_rdm(n, seed, chunk=256, dtype=np.float32):
    """Distances between random points, computed block by block; nothing is ever whole."""
    points = np.random.default_rng(seed).normal(size=(n, 6))
    points[:, :3] += np.random.default_rng(0).normal(size=(n, 3))  # what all have in common

    def block(block_info=None):
        rows, columns = (slice(*ends) for ends in block_info[None]["array-location"])
        x, y = points[rows], points[columns]
        squared = (x**2).sum(1)[:, None] + (y**2).sum(1) - 2 * x @ y.T
        out = np.sqrt(np.maximum(squared, 0)).astype(dtype)
        if rows == columns:
            out = np.maximum(out, out.T)
            np.fill_diagonal(out, 0)
        return out

    chunks = ((chunk,) * (n // chunk),) * 2
    data = dask.array.map_blocks(block, chunks=chunks, dtype=dtype, meta=np.empty((0, 0), dtype))
    return make_rdm(data, xr.Coordinates({"image": [f"{i}.png" for i in range(n)]}))


@pytest.mark.parametrize("method", ["pearson", "cosine"])
def test_lazy_rdms_of_four_times_the_budget_are_compared_within_it(method):
    found, expected = compare_within_budget(2048, method)
    assert float(found) == pytest.approx(expected, abs=1e-12)
    assert "max_error" not in found.attrs


@pytest.mark.slow
def test_ranks_of_lazy_rdms_of_four_times_the_budget_stay_within_it():
    found, expected = compare_within_budget(6144, "spearman")
    assert abs(float(found) - expected) <= found.attrs["max_error"] < 2e-5
    assert float(found) == pytest.approx(expected, abs=1e-8)


def compare_within_budget(n, method):
    a, b = lazy_rdm(n, 1), lazy_rdm(n, 2)
    budget = a.nbytes // 4
    with fs.set_options(memory_budget=budget):
        tracemalloc.start()
        found = fs.compare_rdms(a, b, method=method)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < budget
    upper = np.triu_indices(n, 1)
    return found, score(a.values[upper][None], b.values[upper][None], method)[0, 0]


def test_lazy_rdms_are_ranked_exactly_where_the_budget_allows_it():
    n = 1024
    a, b = lazy_rdm(n, 1), lazy_rdm(n, 2)
    x, y = (Pairs((rdm.variable,), None, "") for rdm in (a, b))
    found = stream_scores(x, y, require_method("spearman"), 2**31)
    assert found.max_error == 0
    expected = stats.spearmanr(
        a.values[np.triu_indices(n, 1)], b.values[np.triu_indices(n, 1)]
    ).statistic
    assert found.scores[0, 0] == pytest.approx(expected, abs=1e-12)


def test_lazy_rdms_in_different_orders_are_matched_by_name():
    n = 512
    a, b = lazy_rdm(n, 1, 128), lazy_rdm(n, 2, 128)
    order = np.random.default_rng(0).permutation(n)
    expected = float(fs.compare_rdms(a, b))
    with fs.set_options(memory_budget=2**20):
        found = fs.compare_rdms(a, b.isel(image=order, image_2=order))
    assert float(found) == pytest.approx(expected, abs=1e-12)


def test_kendall_is_refused_for_rdms_that_do_not_fit():
    for method in ("kendall", "tau-a"):
        with (
            fs.set_options(memory_budget=2**20),
            pytest.raises(MemoryBudgetError, match="Use method='spearman' or 'rho-a'"),
        ):
            fs.compare_rdms(lazy_rdm(512, 1, 128), lazy_rdm(512, 2, 128), method=method)


def test_each_chunk_is_read_once_and_those_below_the_diagonal_never():
    reads = []

    def spy(x, block_info=None):
        reads.append(block_info[0]["chunk-location"])
        return x

    lazy = lazy_rdm(512, 1, 128)
    lazy = lazy.copy(data=lazy.data.map_blocks(spy, dtype=np.float32, meta=lazy.data._meta))
    reads.clear()
    pearson, other = require_method("pearson"), lazy_rdm(512, 2, 128)
    stream_scores(
        Pairs((lazy.variable,), None, ""), Pairs((other.variable,), None, ""), pearson, 2**20
    )
    assert sorted(reads) == [(i, j) for i in range(4) for j in range(i, 4)]


def test_tiles_cover_each_pair_once():
    for chunks in (None, (50, 50), (7, 120), (64, 11)):
        one = pairs(condensed(1), chunks=chunks)
        for size in (1, 100, 1000, 10**6):
            seen = np.zeros((N, N), int)
            for tile in tile_grid(one, one, size):
                seen[tile.rows, tile.columns] += 1
            assert seen.max() == 1
            assert seen[np.triu_indices(N, 1)].all()
            found = np.concatenate([s[0] for s in one.strips(tile_grid(one, one, size), size)])
            np.testing.assert_array_equal(np.sort(found), np.sort(condensed(1)[0]))


def test_positions_choose_and_order_what_is_read():
    vectors, positions = condensed(2), np.array([5, 80, 3, 41])
    expected = [squareform(v)[np.ix_(positions, positions)][np.triu_indices(4, 1)] for v in vectors]
    np.testing.assert_array_equal(pairs(vectors, positions).condensed(), expected)


# ---------------------------------------------------------------- ranks by counting

FLOATS = {
    np.float32: st.floats(allow_nan=False, width=32),
    np.float64: st.floats(allow_nan=False),
}


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from([np.float32, np.float64]))
def test_integers_sort_as_the_floats_do(data, dtype):
    values = data.draw(hnp.arrays(dtype, st.integers(1, 30), elements=FLOATS[dtype]))
    keys = sortable(values)
    np.testing.assert_array_equal(stats.rankdata(keys), stats.rankdata(values))


def table_of(values, max_slots, strip=1000):
    table = RankTable(values.dtype, max_slots)
    n_passes = 0
    while True:
        for low in range(0, len(values), strip):
            table.count(values[low : low + strip])
        n_passes += 1
        if not table.refine():
            table.finish()
            return table, n_passes


@settings(deadline=None, max_examples=30)
@given(st.data(), st.sampled_from([np.float32, np.float64]))
def test_few_values_of_any_size_are_ranked_exactly(data, dtype):
    values = data.draw(hnp.arrays(dtype, st.integers(1, 40), elements=FLOATS[dtype]))
    table, _ = table_of(values, MIN_SLOTS)
    np.testing.assert_array_equal(table.ranks(values), stats.rankdata(values))
    assert table.max_error == 0


HARD = {
    "wide": lambda rng: rng.normal(size=50_000) * 10.0 ** rng.integers(-30, 30, 50_000),
    "narrow": lambda rng: 1 + 1e-12 * rng.normal(size=50_000),
    "two clusters": lambda rng: np.r_[1 + 1e-9 * rng.normal(size=25_000), rng.random(25_000)],
    "ties": lambda rng: np.round(5 * rng.random(50_000)),
    "constant": lambda rng: np.full(50_000, 0.3),
    "smooth": lambda rng: rng.gamma(4, size=50_000),
}


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("max_slots", [MIN_SLOTS, 2**23])
def test_ranks_are_off_by_no_more_than_is_said(kind, dtype, max_slots):
    rng = np.random.default_rng(0)
    values = HARD[kind](rng).astype(dtype)
    if len(np.unique(values)) == 1:
        kind = "constant"
    exact = stats.rankdata(values)
    other = exact + len(exact) * rng.normal(size=len(exact))
    table, _ = table_of(values, max_slots)
    found = table.ranks(values)
    assert table.max_error <= 1e-5
    if kind in ("ties", "constant"):
        np.testing.assert_array_equal(found, exact)
    if kind == "constant":
        assert table.norm == 0
        return
    assert abs(np.corrcoef(found, other)[0, 1] - np.corrcoef(exact, other)[0, 1]) <= (
        table.max_error + 1e-14
    )
    centred = found - (len(found) + 1) / 2
    assert table.norm == pytest.approx(centred @ centred, rel=1e-12)


def test_two_passes_rank_ordinary_float32_exactly():
    values = np.random.default_rng(0).gamma(4, size=200_000).astype(np.float32)
    table, n_passes = table_of(values, 2**27)
    assert n_passes == 2
    assert table.tells_all
    np.testing.assert_array_equal(table.ranks(values), stats.rankdata(values))


def test_ranks_in_memory_are_exact_or_left_to_sorting():
    rng = np.random.default_rng(0)
    narrow = (1 + rng.random(300_000) / 32).astype(np.float32).astype(np.float64)
    np.testing.assert_array_equal(exact_ranks(narrow), stats.rankdata(narrow))
    assert exact_ranks(rng.random(1000)) is None  # no float32
    assert exact_ranks(np.float32(rng.random(1000))) is None  # more slots than sorting needs


def test_ranks_that_are_too_coarse_are_refused_not_returned(monkeypatch):
    monkeypatch.setattr("featurestore.rsa.streaming.MAX_ERROR", 1e-9)
    a, b = (pairs(condensed(1, 400, seed, np.float64, 15)) for seed in (0, 1))
    with pytest.raises(MemoryBudgetError, match="too many dissimilarities are so close") as info:
        stream_scores(a, b, require_method("spearman"), 2**20)
    assert info.value.max_error > 1e-9
