"""Distances against extended precision, SciPy and the peers, however the work is cut up."""

from __future__ import annotations

import threading
import time
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from scipy.spatial.distance import pdist, squareform
from threadpoolctl import threadpool_info

import featurestore as fs
from featurestore.errors import FeatureStoreWarning, InvalidInputError, MemoryBudgetError
from featurestore.rdms import engine, kernel, passes
from featurestore.rdms.engine import open_engine
from featurestore.rdms.sides import Sides
from featurestore.rdms.tile import Tile, distances
from featurestore.storage.row_stats import row_statistics
from tests.rdms.oracle import BASE, CASES, labelled, matrices, mixture, truth, worst_error

TOLERANCE = 2e-6
SAME = 1e-6
N, P = 60, 2048


@pytest.fixture
def in_float32(monkeypatch):
    """Products in float32, as large data have them; tells which pieces ended so."""
    monkeypatch.setattr(passes, "EXACT_PRODUCTS", 0)
    ended = []
    real = passes._Pass.finish

    def finish(work):
        ended.extend(not piece.exact for piece in work.pieces)
        real(work)

    monkeypatch.setattr(passes._Pass, "finish", finish)
    return ended


def check(values, metrics=BASE, tolerance=TOLERANCE, dtype=np.longdouble):
    """Compare all metrics with extended precision."""
    expected = truth(values, metrics, dtype)
    for metric in metrics:
        found = fs.rdm(labelled(values), metric, progress=False).values
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, found.T)
        np.testing.assert_array_equal(np.diag(found), 0)
        assert worst_error(found, expected[metric], metric) <= tolerance, metric


def features(name, n=N, p=P, seed=1):
    return CASES[name](n, p, np.random.default_rng(seed))


@pytest.mark.parametrize("name", CASES)
def test_distances_are_those_of_extended_precision(name):
    check(features(name))


@pytest.mark.parametrize("name", CASES)
def test_products_in_float32_give_them_too(name, in_float32):
    check(features(name))


@pytest.mark.parametrize("name", ["relu", "both means large"])
def test_a_matrix_that_is_large_of_itself_has_the_same_digits_across_tiles(name):
    values = features(name, 1500, 4096)
    values[1400] = values[3]
    found = fs.rdm(labelled(values), progress=False).values
    np.testing.assert_array_equal(found, found.T)
    assert found[3, 1400] == 0
    some = np.r_[:30, 1010:1040, 1400:1410]
    expected = truth(values[some], ("correlation",), np.float64)["correlation"]
    assert worst_error(found[np.ix_(some, some)], expected, "correlation") <= TOLERANCE


def test_products_are_in_float32_where_they_are_good_enough(in_float32):
    check(features("relu"), ["correlation"])
    assert in_float32 == [True]


def test_clusters_are_multiplied_in_float64(in_float32):
    check(features("clusters"), ["correlation"])
    assert in_float32[-1] is False


@pytest.mark.parametrize("p", [1, 2, 3, 5, 1023, 1024, 1025, 2047, 2049, 4097])
def test_any_number_of_features_works(p, in_float32):
    for name in ("relu", "near-duplicates", "large common mean", "int32"):
        values = features(name, 40, p)
        if p == 1:
            check(values, ("euclidean", "sqeuclidean"))
        else:
            check_with_constants(values)


def check_with_constants(values):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FeatureStoreWarning)  # a ReLU of two features may be zero
        check(values)


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("p", [2, 50, 2048])
def test_any_number_of_images_works(n, p, in_float32):
    check(features("normal", n, p))


@pytest.mark.parametrize("metric", BASE)
def test_scipy_agrees(metric):
    values = features("relu", 80, 300).astype(np.float64)
    found = fs.rdm(labelled(values), metric, progress=False).values
    np.testing.assert_allclose(found, squareform(pdist(values, metric)), rtol=2e-7, atol=1e-12)


def test_features_of_any_shape_are_one_row():
    values = features("relu", 20, 60)
    flat = fs.rdm(labelled(values), progress=False).values
    maps = fs.rdm(labelled(values.reshape(20, 3, 4, 5)), progress=False).values
    np.testing.assert_allclose(maps, flat, rtol=SAME)
    swapped = labelled(values.reshape(20, 3, 4, 5)).transpose("axis_2", "image", "axis_1", "axis_3")
    np.testing.assert_allclose(fs.rdm(swapped, progress=False).values, flat, rtol=SAME)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    name=st.sampled_from(sorted(CASES)),
    block_rows=st.integers(1, 30),
    max_values=st.integers(100, 1500),
    n_passes=st.integers(1, 4),
    products=st.sampled_from([0, 4e9]),
    seed=st.integers(0, 3),
)
def test_tiles_passes_and_blocks_do_not_matter(
    name, block_rows, max_values, n_passes, products, seed
):
    values = features(name, 25, 1100, seed)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "EXACT_PRODUCTS", products)
        whole = matrices(values)
        parts = matrices(
            values, block_rows=block_rows, max_values=max_values, n_passes=n_passes, seed=seed
        )
    for metric in BASE:
        np.testing.assert_array_equal(parts[metric], parts[metric].T)
        np.testing.assert_array_equal(parts[metric] == 0, whole[metric] == 0)
        np.testing.assert_allclose(parts[metric], whole[metric], rtol=SAME)


@settings(max_examples=12, deadline=None)
@given(data=st.data(), products=st.sampled_from([0, 4e9]))
def test_the_order_of_images_and_what_others_there_are_do_not_matter(data, products):
    values = features(data.draw(st.sampled_from(sorted(CASES))), 30, 1100)
    chosen = data.draw(st.permutations(range(30)))[: data.draw(st.integers(2, 30))]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "EXACT_PRODUCTS", products)
        everything = fs.rdm(labelled(values), progress=False)
        some = fs.rdm(labelled(values).isel(image=chosen), progress=False)
    assert some["image"].values.tolist() == [f"image {n}" for n in chosen]
    np.testing.assert_allclose(
        some.values, everything.isel(image=chosen, image_2=chosen).values, rtol=SAME
    )


@pytest.mark.parametrize("products", [0, 4e9])
def test_equal_images_are_exactly_zero_apart_in_any_tiling(products, monkeypatch):
    monkeypatch.setattr(passes, "EXACT_PRODUCTS", products)
    rng = np.random.default_rng(0)
    source = rng.integers(0, 12, 60)
    for name in ("relu", "both means large", "one feature 60 times", "float64"):
        values = features(name, 60, 1500)[source]
        same = source[:, None] == source
        for block_rows in (7, 60):
            for found in matrices(values, block_rows=block_rows).values():
                np.testing.assert_array_equal(found == 0, same)


def test_many_equal_images_cost_no_more_than_others():
    """As of a module that does not look at the image, such as a position embedding."""
    values = np.repeat(features("normal", 1, 4096), 500, axis=0)
    began = time.process_time()
    np.testing.assert_array_equal(fs.rdm(labelled(values), progress=False).values, 0)
    assert time.process_time() - began < 3


def test_collinear_images_have_no_angle_in_any_tiling():
    rows = features("normal", 5, 1500)
    values = np.concatenate([rows, 2 * rows, -rows, 0.125 * rows])
    for block_rows in (3, 20):
        found = matrices(values, block_rows=block_rows)
        for metric in ("cosine", "correlation"):
            np.testing.assert_array_equal(np.diag(found[metric][:5, 5:10]), 0)
            np.testing.assert_array_equal(np.diag(found[metric][:5, 15:]), 0)
            np.testing.assert_array_equal(np.diag(found[metric][:5, 10:15]), 2)


@pytest.mark.parametrize("products", [0, 4e9])
@pytest.mark.parametrize("seed", [0, 1, 2, 4, 33, 106, 257, 404])
def test_several_difficulties_at_once_cost_no_digits(seed, products, monkeypatch):
    monkeypatch.setattr(passes, "EXACT_PRODUCTS", products)
    values = mixture(seed)
    expected = truth(values)
    found = matrices(values, block_rows=20)
    for metric in BASE:
        known = np.isfinite(found[metric])  # rows that float32 cannot tell from constant ones
        known = np.where(known, expected[metric], np.nan)
        assert worst_error(found[metric], known, metric) <= TOLERANCE


def test_images_whose_means_are_opposite_keep_their_digits():
    rng = np.random.default_rng(0)
    values = rng.normal(size=(6, 2048)) + 1e5 * np.array([1, -1, 1, -1, 1, -1])[:, None]
    check(values, ["correlation"])


def test_float64_images_that_are_collinear_about_huge_means_are_zero_apart():
    shape = np.maximum(np.random.default_rng(0).normal(size=1024), 0)
    sizes = np.array([0.25, 0.05, 1.2, 0.7, 0.02, 2])[:, None]
    values = sizes * shape - 1e6
    expected = truth(values, ("correlation",))["correlation"]
    found = fs.rdm(labelled(values), progress=False).values
    assert expected.max() < 1e-13
    assert found.max() < 1e-13


@pytest.mark.parametrize("factor", [20, 60, 200])
def test_a_feature_that_outweighs_all_others_costs_no_digits(factor, in_float32):
    values = features("normal", 150, 4096)
    values[:, 7] *= factor
    check(values, ["correlation", "sqeuclidean"], dtype=np.float64)


def test_images_with_huge_means_keep_their_digits_beside_many_close_pairs():
    rng = np.random.default_rng(0)
    p = 1024
    values = 1e3 * np.repeat(rng.normal(size=(1, p)), 9, axis=0) + 300 * rng.normal(size=(9, p))
    values[:2] = 1e6 + rng.normal(size=p) + rng.normal(size=(2, p))
    values = values.astype(np.float32)
    expected = truth(values, ("sqeuclidean", "cosine", "correlation"))
    close = np.array([(a, b) for a in range(2, 9) for b in range(2, 9) if a != b], np.uint32)
    at = tuple(close.T)
    near = np.stack([expected["cosine"][at], expected["correlation"][at]], axis=1)
    tile = Tile(expected["sqeuclidean"].astype(float), close, near.astype(float), n_same=9)
    sides = Sides.of(row_statistics(values), p)
    found = distances(tile, "correlation", sides, sides)
    np.fill_diagonal(found, 0)
    assert worst_error(found, expected["correlation"], "correlation") <= TOLERANCE


def test_float64_images_with_a_huge_mean_still_vary():
    values = np.random.default_rng(0).normal(size=(20, 300)) + 1e8
    check(values, ["correlation", "euclidean"])


# Ranges


@pytest.mark.parametrize("products", [0, 4e9])
@pytest.mark.parametrize("scale", [1e-37, 1e-30, 1e-22, 1e-15, 1e15, 1e18, 1e22, 1e30])
def test_squares_beyond_the_range_of_float32_are_no_obstacle(scale, products, monkeypatch):
    monkeypatch.setattr(passes, "EXACT_PRODUCTS", products)
    values = features("relu", 40, 2048) * np.float32(scale)
    check(values, ("correlation", "cosine", "euclidean"))


@pytest.mark.parametrize("products", [0, 4e9])
@pytest.mark.parametrize("scale", [1e-140, 1e-60, 1e60, 1e140])
def test_squares_within_the_range_of_float64_are_right(scale, products, monkeypatch):
    monkeypatch.setattr(passes, "EXACT_PRODUCTS", products)
    values = features("relu", 40, 2048) * np.float64(scale)
    check(values, ("correlation", "cosine"))


@pytest.mark.parametrize("scale", [1e-30, 1e-22, 1e18, 1e30])
def test_squared_distances_are_never_infinite_or_zero_for_want_of_range(scale):
    values = features("relu", 20, 300) * np.float32(scale)
    expected = truth(values)["sqeuclidean"]
    found = fs.rdm(labelled(values), "sqeuclidean", progress=False)
    assert worst_error(found.values, expected, "sqeuclidean") <= TOLERANCE


@pytest.mark.parametrize("scale", [1e-37, 1e-24, 1, 1e17, 1e30])
def test_a_gaussian_does_not_depend_on_the_scale_of_the_features(scale):
    values = features("relu", 20, 300) * np.float32(scale)
    squares = truth(values)["sqeuclidean"]
    expected = -np.expm1(-squares / squares.mean())
    found = fs.rdm(labelled(values), "gaussian", progress=False).values
    np.testing.assert_allclose(found, expected.astype(float), rtol=TOLERANCE)


# NaN, infinities, constant rows


@pytest.mark.parametrize("products", [0, 4e9])
@pytest.mark.parametrize("metric", BASE)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_rows_that_are_not_finite_are_nan_and_named_once(metric, bad, products, monkeypatch):
    monkeypatch.setattr(passes, "EXACT_PRODUCTS", products)
    values = features("relu", 30, 1100)
    expected = fs.rdm(labelled(values), metric, progress=False).values
    values[4, 17] = values[9, 1099] = bad
    with pytest.warns(FeatureStoreWarning, match="image 4, image 9") as caught:
        found = fs.rdm(labelled(values), metric, progress=False).values
    assert len(caught) == 1
    np.testing.assert_array_equal(np.diag(found), 0)
    others = np.setdiff1d(np.arange(30), [4, 9])
    np.testing.assert_allclose(
        found[np.ix_(others, others)], expected[np.ix_(others, others)], rtol=SAME
    )
    off_diagonal = ~np.eye(30, dtype=bool)
    assert np.isnan(found[[4, 9]][off_diagonal[[4, 9]]]).all()
    assert np.isnan(found[:, [4, 9]][off_diagonal[:, [4, 9]]]).all()


@pytest.mark.parametrize("products", [0, 4e9])
@pytest.mark.parametrize("metric", [*BASE, "gaussian"])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_images_that_are_all_not_finite_give_one_warning_and_nothing_else(
    n, metric, products, monkeypatch
):
    monkeypatch.setattr(passes, "EXACT_PRODUCTS", products)
    with pytest.warns(FeatureStoreWarning, match="NaN or infinite") as caught:
        found = fs.rdm(labelled(np.full((n, 1100), np.nan, np.float32)), metric, progress=False)
    assert len(caught) == 1
    np.testing.assert_array_equal(np.isnan(found.values), ~np.eye(n, dtype=bool))


@pytest.mark.parametrize("bandwidth", ["mean", "median"])
def test_an_image_that_is_not_finite_does_not_change_the_gaussian_of_others(bandwidth):
    values = features("relu", 12, 200)
    expected = fs.rdm(labelled(values[:9]), "gaussian", bandwidth=bandwidth, progress=False)
    values[9:, 3] = np.nan
    with pytest.warns(FeatureStoreWarning):
        found = fs.rdm(labelled(values), "gaussian", bandwidth=bandwidth, progress=False)
    np.testing.assert_allclose(found.values[:9, :9], expected.values, rtol=SAME)
    assert found.attrs["bandwidth"] == pytest.approx(expected.attrs["bandwidth"])


@pytest.mark.parametrize("products", [0, 4e9])
@pytest.mark.parametrize("constant", [0.0, 0.3, -1000.1, 1e20])
def test_constant_images_have_no_correlation_and_exact_distances(constant, products, monkeypatch):
    monkeypatch.setattr(passes, "EXACT_PRODUCTS", products)
    values = features("relu", 20, 1100)
    values[[2, 5]] = np.float32(constant)
    values[7] = np.float32(2 * constant + 1)
    with pytest.warns(FeatureStoreWarning, match="all equal.*image 2, image 5, image 7") as caught:
        found = fs.rdm(labelled(values), "correlation", progress=False).values
    assert len(caught) == 1
    bad = np.isin(np.arange(20), [2, 5, 7])
    expected = np.array(truth(values)["correlation"], float)
    expected[bad], expected[:, bad] = np.nan, np.nan
    np.fill_diagonal(expected, 0)
    np.testing.assert_allclose(found, expected, rtol=TOLERANCE)
    check(values, ("euclidean", "sqeuclidean") if constant < 1e18 else ("euclidean",))
    if constant:
        check(values, ("cosine",))


def test_zero_images_have_no_cosine():
    values = features("relu", 20, 1100)
    values[[2, 5]] = 0
    with pytest.warns(FeatureStoreWarning, match="features of zero .*image 2, image 5") as caught:
        check(values, ("cosine",))
    assert len(caught) == 1
    check(values, ("euclidean",))


def test_a_row_that_varies_by_the_rounding_of_float32_counts_as_constant():
    values = features("relu", 4, 1000)
    values[1] = np.float32(0.3)
    values[1, ::2] = np.nextafter(np.float32(0.3), np.float32(1))
    with pytest.warns(FeatureStoreWarning, match="image 1"):
        found = fs.rdm(labelled(values), progress=False).values
    assert np.isnan(found[0, 1])


# The peers


@pytest.mark.parametrize(
    ("method", "metric", "divisor"),
    [("correlation", "correlation", 1), ("euclidean", "sqeuclidean", 500)],
)
def test_rsatoolbox_agrees(method, metric, divisor):
    data = pytest.importorskip("rsatoolbox.data")
    rdms = pytest.importorskip("rsatoolbox.rdm")
    values = np.random.default_rng(0).normal(size=(40, 500))
    expected = rdms.calc_rdm(data.Dataset(values), method=method).get_matrices()[0]
    found = fs.rdm(labelled(values), metric, progress=False).values / divisor
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-12)


def test_thingsvision_agrees():
    values = features("relu", 30, 400).astype(np.float64)
    centred = values - values.mean(axis=1, keepdims=True)
    lengths = np.linalg.norm(centred, axis=1)
    correlation = 1 - np.clip(centred @ centred.T / np.outer(lengths, lengths), -1, 1)
    lengths = np.linalg.norm(values, axis=1)
    cosine = 1 - np.clip(values @ values.T / np.outer(lengths, lengths), -1, 1)
    squares = squareform(pdist(values, "sqeuclidean"))
    gaussian = 1 - np.exp(-squares / np.mean(squares))
    for metric, expected in (
        ("correlation", correlation),
        ("cosine", cosine),
        ("euclidean", np.sqrt(squares)),
        ("gaussian", gaussian),
    ):
        found = fs.rdm(labelled(values), metric, progress=False)
        np.testing.assert_allclose(found.values, expected, rtol=1e-6, atol=1e-12)
    assert found.attrs["bandwidth"] == pytest.approx(np.mean(squares), rel=1e-6)


def test_the_width_of_a_gaussian_can_be_the_median_or_a_number():
    values = features("relu", 31, 100)
    squares = truth(values)["sqeuclidean"].astype(float)
    median = float(np.median(squares[np.triu_indices(31, 1)]))
    for bandwidth, width in ("median", median), (123.5, 123.5), (7, 7.0):
        found = fs.rdm(labelled(values), "gaussian", bandwidth=bandwidth, progress=False)
        np.testing.assert_allclose(found.values, -np.expm1(-squares / width), rtol=TOLERANCE)
        assert found.attrs["bandwidth"] == pytest.approx(width, rel=1e-6)


def test_a_gaussian_of_near_duplicates_keeps_its_digits():
    values = features("near-duplicates", 30, 300)
    squares = truth(values)["sqeuclidean"]
    found = fs.rdm(labelled(values), "gaussian", progress=False).values
    expected = -np.expm1(-squares / squares.mean())
    np.testing.assert_allclose(found, expected.astype(float), rtol=TOLERANCE)


@pytest.mark.parametrize("bandwidth", ["mean", "median"])
def test_images_that_are_all_equal_have_a_gaussian_of_zero(bandwidth):
    values = np.repeat(features("relu", 1, 100), 4, axis=0)
    found = fs.rdm(labelled(values), "gaussian", bandwidth=bandwidth, progress=False)
    np.testing.assert_array_equal(found.values, 0)


def test_a_gaussian_costs_one_computation(monkeypatch):
    n_passes = []
    real = kernel.run_pass
    monkeypatch.setattr(kernel, "run_pass", lambda *a, **k: n_passes.append(1) or real(*a, **k))
    fs.rdm(labelled(features("relu", 30, 100)), "gaussian", progress=False)
    assert len(n_passes) == 1


# What is not asked for well


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: np.zeros((3, 4)), "no names"),
        (lambda: labelled(np.zeros((3, 4))).drop_vars("image"), "no names on 'image'"),
        (lambda: labelled(np.zeros((3, 4))).rename(image="voxel"), "dim='voxel'"),
        (lambda: labelled(np.zeros((3, 4))).assign_coords(image=["a", "b", "a"]), "'a'"),
        (lambda: labelled(np.zeros((3, 0))), r"\(3, 0\)"),
        (lambda: labelled(np.zeros((0, 3))), r"\(0, 3\)"),
        (lambda: labelled(np.zeros(3)), r"\(3,\)"),
        (lambda: labelled(np.zeros((3, 4), complex)), "complex"),
        (lambda: labelled(np.full((3, 4), "a", object)), "object"),
        (lambda: labelled(np.full((3, 4), np.datetime64("2020-01-01"))), "datetime"),
        (lambda: labelled(np.zeros((3, 4))).to_dataset(name="features"), "Dataset"),
    ],
)
def test_features_without_distances_are_refused(make, match):
    with pytest.raises(InvalidInputError, match=match):
        fs.rdm(make(), progress=False)


@pytest.mark.parametrize(
    ("metric", "bandwidth"),
    [
        ("corelation", None),
        (None, None),
        ("correlation", "mean"),
        ("gaussian", "average"),
        ("gaussian", 0),
        ("gaussian", -1.0),
        ("gaussian", np.nan),
        ("gaussian", np.inf),
        ("gaussian", True),
        ("gaussian", [1.0]),
    ],
)
def test_metrics_and_bandwidths_that_mean_nothing_are_refused(metric, bandwidth):
    with pytest.raises(InvalidInputError):
        fs.rdm(labelled(features("relu", 3, 4)), metric, bandwidth=bandwidth, progress=False)


def test_a_bandwidth_may_be_a_numpy_number():
    given_width = fs.rdm(
        labelled(features("relu", 5, 40)), "gaussian", bandwidth=np.float32(4), progress=False
    )
    assert given_width.attrs["bandwidth"] == 4.0


@pytest.mark.parametrize("device", ["gpu", "cuda:99", "mps", "cpu:0", "cuda:", "cuda:-1"])
def test_devices_that_are_not_there_are_refused(device):
    pytest.importorskip("torch")
    with pytest.raises(InvalidInputError, match="device"):
        fs.rdm(labelled(features("relu", 3, 4)), device=device, progress=False)


# Labels


def test_an_rdm_carries_every_coordinate_of_its_images_twice():
    category = ("image", ["face", "tool", "face"])
    given_features = labelled(features("relu", 3, 40), category=category, axis_1=np.arange(40))
    given_features.attrs = {"model": "alexnet", "n": 3, "odd": object()}
    found = fs.rdm(given_features, progress=False)
    assert found.dims == ("image", "image_2")
    assert set(found.coords) == {"image", "image_2", "category", "category_2"}
    assert found["category_2"].dims == ("image_2",)
    assert found.attrs["model"] == "alexnet"
    assert found.attrs["metric"] == "correlation"
    assert found.attrs["n_features"] == 40
    assert "odd" not in found.attrs


def test_anything_can_be_a_row():
    values = labelled(features("normal", 5, 40)).rename(image="text", axis_1="token")
    assert fs.rdm(values, dim="text", progress=False).dims == ("text", "text_2")
    other = values.assign_coords(token=np.arange(40))
    assert fs.rdm(other, dim="token", progress=False).shape == (40, 40)


def test_an_rdm_of_an_rdm_is_one_too():
    first = fs.rdm(labelled(features("relu", 12, 40)), progress=False)
    second_order = fs.rdm(first, progress=False)
    assert second_order.dims == ("image", "image_2")
    assert (
        worst_error(second_order.values, truth(first.values)["correlation"], "correlation") < 2e-6
    )


# Lazy features


def test_lazy_features_give_the_same_numbers_and_stay_lazy():
    values = features("near-duplicates", 50, 3000)
    eager = fs.rdm(labelled(values), progress=False)
    lazy = labelled(values).chunk({"image": 7, "axis_1": 401})
    np.testing.assert_allclose(fs.rdm(lazy, progress=False).values, eager.values, rtol=SAME)
    assert lazy.chunks is not None


def test_features_are_not_changed(in_float32):
    values = features("relu", 30, 1100)
    values[3, 5] = np.nan
    before = values.copy()
    with pytest.warns(FeatureStoreWarning):
        fs.rdm(labelled(values), progress=False)
    np.testing.assert_array_equal(values, before)
    for kind in (np.float64, np.float16):
        other = features("relu", 30, 1100).astype(kind)
        before = other.copy()
        fs.rdm(labelled(other), progress=False)
        np.testing.assert_array_equal(other, before)


def test_features_that_cannot_be_changed_work(in_float32):
    values = features("relu", 30, 1100)
    values.flags.writeable = False
    check(values, ["correlation"])
    check(np.asfortranarray(values), ["correlation"])
    check(values[::-1, ::2], ["correlation"])
    check(values.astype(">f4"), ["correlation"])


# Memory


def test_a_budget_that_is_too_small_is_refused_with_both_numbers():
    with (
        fs.set_options(memory_budget="100 MiB"),
        pytest.raises(MemoryBudgetError, match=r"105 MB.*134 MB") as caught,
    ):
        fs.rdm(labelled(features("relu", 3, 4)), progress=False)
    assert caught.value.allowed_nbytes == 100 * 2**20


@pytest.mark.parametrize("n_cpus", [1, 2, 8, 64])
@pytest.mark.parametrize("n_features", [1, 4096, 10**6])
def test_the_least_budget_is_enough_for_any_number_of_images(n_cpus, n_features, monkeypatch):
    monkeypatch.setattr(kernel, "available_cpus", lambda: n_cpus)

    class Source:
        shape, chunks, itemsize = (n_features,), (min(n_features, 4096),), 4

    Source.n_features = n_features
    for n_blocks in (1, 2, 5):
        sizes = [1024] * n_blocks
        wanted = [(a, b) for a in range(n_blocks) for b in range(a, n_blocks)]
        plan = kernel.plan_passes(Source(), sizes, wanted, kernel.MIN_BUDGET)
        assert sorted(tile for step in plan.passes for tile in step.tiles) == wanted
        assert plan.memory_nbytes <= kernel.MIN_BUDGET


@pytest.mark.parametrize("budget", [2**27, 2**28, 2**30, 2**32])
def test_plans_keep_the_budget_and_read_less_with_more(budget):
    class Source:
        n_features, shape, chunks, itemsize = 40_000, (40_000,), (4096,), 4

    sizes = [1024] * 12
    wanted = [(a, b) for a in range(12) for b in range(a, 12)]
    plan = kernel.plan_passes(Source(), sizes, wanted, budget)
    assert plan.memory_nbytes <= budget
    whole = 12 * 1024 * 40_000 * 4
    assert plan.nbytes >= whole
    if budget >= 2**31:
        assert plan.nbytes <= 1.1 * whole


def test_a_plan_of_new_images_computes_their_tiles_only():
    class Source:
        n_features, shape, chunks, itemsize = 4096, (4096,), (4096,), 4

    wanted = [(a, 10) for a in range(11)]
    plan = kernel.plan_passes(Source(), [1024] * 10 + [20], wanted, 2**28)
    assert sorted(tile for step in plan.passes for tile in step.tiles) == wanted


# Engines


@pytest.fixture
def on_torch(monkeypatch):
    """The code path of a GPU, on torch's CPU."""
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(engine, "_choose", lambda _device: "cpu:0")
    return torch


@pytest.mark.parametrize("name", ["relu", "both means large", "near-duplicates", "clusters"])
def test_torch_gives_the_same_numbers(name, on_torch, in_float32, monkeypatch):
    check(features(name))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
def test_what_the_user_set_for_float32_neither_matters_nor_changes(precision, on_torch, in_float32):
    torch = on_torch
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(precision)
        words = (
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.mkldnn.matmul.fp32_precision,
        )
        check(features("relu"), ["correlation", "euclidean"])
        assert in_float32[0]
        assert torch.get_float32_matmul_precision() == precision
        assert words == (
            torch.backends.cuda.matmul.fp32_precision,
            torch.backends.mkldnn.matmul.fp32_precision,
        )
    finally:
        torch.set_float32_matmul_precision(before)


def blas_threads():
    return [info["num_threads"] for info in threadpool_info() if info["user_api"] == "blas"]


def test_threads_of_blas_are_as_before_after_two_computations_that_overlap():
    before = blas_threads()
    first, second = open_engine("cpu"), open_engine("cpu")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert blas_threads() == before


def test_float32_stays_ieee_until_the_last_of_two_computations_ends(on_torch):
    torch = on_torch
    owner = torch.backends.mkldnn.matmul
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        word = owner.fp32_precision
        first, second = open_engine("cuda"), open_engine("cuda")
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        within = owner.fp32_precision
        second.__exit__(None, None, None)
        assert within == "ieee"
        assert owner.fp32_precision == word
    finally:
        torch.set_float32_matmul_precision(before)


def test_threads_can_compute_at_the_same_time(in_float32):
    cases = ["relu", "near-duplicates", "both means large", "low rank"] * 2
    found = {}

    def compute(number, name):
        found[number] = fs.rdm(labelled(features(name)), progress=False).values

    threads = [threading.Thread(target=compute, args=case) for case in enumerate(cases)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number, name in enumerate(cases):
        expected = truth(features(name))["correlation"]
        assert worst_error(found[number], expected, "correlation") <= TOLERANCE
