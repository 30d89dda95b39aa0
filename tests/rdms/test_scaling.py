"""`centre` and `normalise` against plain NumPy and scikit-learn, lazily and in memory."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from xarray.backends import BackendArray
from xarray.core import indexing

import featurestore as fs
from featurestore.errors import InvalidInputError

NORMS = ("l2", "l1", "max", "zscore")
CALLS = [
    (fs.centre, {"over": "image"}),
    (fs.centre, {"over": "feature"}),
    *[(fs.normalise, {"norm": norm, "over": over}) for norm in NORMS for over in
      ("image", "feature")],
]  # fmt: skip


def maps(n=7, shape=(3, 2, 2), dtype=np.float32, offset=5.0, seed=0):
    values = np.random.default_rng(seed).standard_normal((n, *shape)) + offset
    return xr.DataArray(
        values.astype(dtype),
        dims=("image", "channel", "y", "x")[: 1 + len(shape)],
        coords={
            "image": [f"i{k}.png" for k in range(n)],
            "digest": ("image", [f"{k:032x}" for k in range(n)]),
            "category": ("image", ["cat", "dog"] * (n // 2) + ["cat"] * (n % 2)),
        },
        name="features.0",
        attrs={"model": "torchvision/alexnet", "module": "features.0", "feature_key": "ab" * 16},
    )


def flat(array):
    return array.values.reshape(array.sizes["image"], -1).astype(np.float64)


def sklearn_scaled(values, norm, over):
    from sklearn.preprocessing import StandardScaler, normalize

    by_column = values if over == "image" else values.T
    if norm == "zscore":
        scaled = StandardScaler().fit_transform(by_column)
    else:
        scaled = normalize(by_column, norm, axis=0)
    return scaled if over == "image" else scaled.T


def test_centring_over_images_leaves_each_feature_with_mean_zero():
    acts = maps()
    expected = flat(acts) - flat(acts).mean(0)
    np.testing.assert_allclose(flat(fs.centre(acts)), expected, atol=1e-7)


def test_centring_over_features_leaves_each_image_with_mean_zero():
    acts = maps()
    expected = flat(acts) - flat(acts).mean(1, keepdims=True)
    np.testing.assert_allclose(flat(fs.centre(acts, over="feature")), expected, atol=1e-7)


@pytest.mark.parametrize("over", ["image", "feature"])
@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_normalised_features_are_those_of_scikit_learn(norm, over, dtype):
    acts = maps(dtype=dtype)
    got = fs.normalise(acts, norm, over)
    tolerance = 1e-6 if dtype is np.float32 else 1e-14
    assert got.dtype == dtype
    np.testing.assert_allclose(flat(got), sklearn_scaled(flat(acts), norm, over), atol=tolerance)


def test_images_of_one_length_are_the_default():
    lengths = np.linalg.norm(flat(fs.normalise(maps())), axis=1)
    np.testing.assert_allclose(lengths, 1, rtol=1e-6)


def test_z_scored_images_have_half_the_correlation_distance_as_euclidean_geometry():
    from scipy.spatial.distance import pdist

    acts = maps(dtype=np.float64)
    scored = flat(fs.normalise(acts, "zscore", over="feature"))
    expected = 2 * scored.shape[1] * pdist(flat(acts), "correlation")
    np.testing.assert_allclose(pdist(scored, "sqeuclidean"), expected, rtol=1e-10)


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_labels_stay_and_the_key_of_the_column_does_not(function, arguments):
    acts = maps()
    before = acts.copy(deep=True)
    got = function(acts, **arguments)
    xr.testing.assert_identical(acts, before)
    assert got.dims == acts.dims
    assert got.name == "features.0"
    xr.testing.assert_identical(got.coords.to_dataset(), acts.coords.to_dataset())
    assert "feature_key" not in got.attrs
    assert got.attrs["source_feature_key"] == "ab" * 16
    assert got.attrs["derived"].startswith(function.__name__)
    assert got.attrs["module"] == "features.0"


def test_each_step_is_told_in_order():
    got = fs.normalise(fs.centre(maps()), "l2")
    expected = "centre(over='image'); normalise(norm='l2', over='feature')"
    assert got.attrs["derived"] == expected
    assert got.attrs["source_feature_key"] == "ab" * 16


@pytest.mark.parametrize(("function", "arguments"), CALLS)
@pytest.mark.parametrize("chunks", [{"image": 2}, {"image": 3, "channel": 1}, {"image": -1}])
def test_dask_arrays_stay_lazy_and_get_the_same_values(function, arguments, chunks):
    acts = maps(n=11)
    lazy = function(acts.chunk(chunks), **arguments)
    assert lazy.chunks is not None
    np.testing.assert_allclose(lazy.values, function(acts, **arguments).values, atol=1e-6)


class Counted(BackendArray):
    """An array behind xarray's lazy interface that remembers how much was read at once."""

    def __init__(self, values):
        self.values, self.shape, self.dtype = values, values.shape, values.dtype
        self.largest, self.total = 0, 0

    def __getitem__(self, key):
        return indexing.explicit_indexing_adapter(
            key, self.shape, indexing.IndexingSupport.BASIC, self._read
        )

    def _read(self, key):
        part = self.values[key]
        self.largest, self.total = max(self.largest, part.nbytes), self.total + part.nbytes
        return part


@pytest.mark.parametrize(("function", "arguments"), CALLS)
def test_what_exceeds_the_threshold_is_read_in_pieces(monkeypatch, function, arguments):
    monkeypatch.setattr("featurestore.rdms.scaling.BLOCK_NBYTES", 2_000)
    acts = maps(n=200)
    backend = Counted(acts.values)
    lazy = acts.copy(data=indexing.LazilyIndexedArray(backend))
    with fs.set_options(lazy_threshold=1_000):
        got = function(lazy, **arguments)
    at_call = acts.nbytes if arguments["over"] == "image" else 0
    assert backend.total == at_call
    assert got.chunks is not None
    values = got.values
    assert backend.largest <= 2_000
    np.testing.assert_allclose(values, function(acts, **arguments).values, atol=1e-6)


@pytest.mark.parametrize("lazily", [False, True])
@pytest.mark.parametrize("norm", NORMS)
def test_what_is_zero_throughout_becomes_zero(norm, lazily):
    acts = maps(offset=0.0)
    acts[2] = 0.0
    acts[:, 1, 0, 1] = 0.0
    acts = acts.chunk({"image": 3}) if lazily else acts
    assert not fs.normalise(acts, norm, over="feature").values[2].any()
    by_feature = fs.normalise(acts, norm, over="image").values
    assert not by_feature[:, 1, 0, 1].any()
    assert np.isfinite(by_feature).all()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n", [3, 5_000])
@pytest.mark.parametrize("over", ["image", "feature"])
def test_a_constant_is_zero_when_z_scored_and_not_rounding_noise(dtype, n, over):
    # 0.3 has no exact binary form: its mean over many values is not 0.3.
    values = np.random.default_rng(1).standard_normal((n, n if over == "feature" else 2))[:10_000]
    values = values.astype(dtype)
    index = (slice(None), 1) if over == "image" else (1, slice(None))
    values[index] = 0.3
    got = fs.normalise(xr.DataArray(values, dims=("image", "feature")), "zscore", over)
    assert not got.values[index].any()


def test_variation_that_the_dtype_resolves_is_not_taken_for_a_constant():
    values = 1e7 + np.random.default_rng(2).standard_normal((50, 4))
    got = fs.normalise(xr.DataArray(values, dims=("image", "feature")), "zscore", "image").values
    np.testing.assert_allclose(got, (values - values.mean(0)) / values.std(0), atol=1e-6)


@pytest.mark.parametrize(("function", "arguments"), CALLS)
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_never_spread_to_other_images(function, arguments, bad):
    acts = maps()
    acts[4, 0, 1, 1] = bad
    if arguments["over"] == "image":
        with pytest.raises(InvalidInputError, match=r"1 of 7 images are not finite: i4\.png"):
            function(acts, **arguments)
        return
    got = flat(function(acts, **arguments))
    assert np.isnan(got[4]).all()
    kept = [0, 1, 2, 3, 5, 6]
    expected = function(acts.isel(image=kept), **arguments)
    np.testing.assert_array_equal(got[kept], flat(expected))


def test_a_length_that_overflows_is_nan_and_not_a_row_of_zeros():
    acts = xr.DataArray([[1e200, 1e200], [3.0, 4.0]], dims=("image", "feature"))
    got = fs.normalise(acts).values
    assert np.isnan(got[0]).all()
    np.testing.assert_allclose(got[1], [0.6, 0.8])
    with pytest.raises(InvalidInputError, match="statistics overflow"):
        fs.normalise(acts, over="image")


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [(np.float16, np.float32), (np.uint8, np.float64), (bool, np.float64), (np.int64, np.float64)],
)
def test_narrow_dtypes_and_whole_numbers_do_not_wrap_or_overflow(dtype, expected):
    values = (np.random.default_rng(3).random((6, 300)) * 250).astype(dtype)
    acts = xr.DataArray(values, dims=("image", "feature"))
    wide = values.astype(np.float64)
    got = fs.normalise(acts)
    assert got.dtype == expected
    np.testing.assert_allclose(got, wide / np.linalg.norm(wide, axis=1, keepdims=True), rtol=1e-6)
    np.testing.assert_allclose(fs.centre(acts), wide - wide.mean(0), atol=2e-5)


def test_the_mean_of_a_large_float32_array_is_taken_in_float64():
    values = np.full((40_000, 2), 1000.1, np.float32)
    values[::2] += 1
    acts = xr.DataArray(values, dims=("image", "feature"))
    got = fs.centre(acts).values
    np.testing.assert_allclose(np.abs(got), 0.5, atol=1e-4)


@settings(max_examples=40, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(CALLS))
def test_order_of_images_does_not_matter(random, call):
    function, arguments = call
    acts = maps(n=9, dtype=np.float64)
    order = random.sample(range(9), 9)
    got = function(acts.isel(image=order), **arguments)
    np.testing.assert_allclose(got, function(acts, **arguments).isel(image=order), atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(NORMS), st.sampled_from(["image", "feature"]), st.floats(1e-3, 1e3))
def test_a_normalised_array_stays_as_it_is_and_scale_does_not_matter(norm, over, factor):
    acts = maps(dtype=np.float64, offset=0.0)
    once = fs.normalise(acts, norm, over)
    np.testing.assert_allclose(fs.normalise(once, norm, over), once, atol=1e-12)
    np.testing.assert_allclose(fs.normalise(acts * factor, norm, over), once, atol=1e-12)


def test_texts_are_rows_as_images_are():
    acts = maps().rename(image="text")
    np.testing.assert_array_equal(
        fs.centre(acts, over="text", dim="text").values, fs.centre(maps()).values
    )


def test_the_order_of_dims_stays():
    acts = maps().transpose("channel", "image", "y", "x")
    for function, arguments in CALLS:
        got = function(acts, **arguments)
        assert got.dims == acts.dims
        expected = function(maps(), **arguments)
        np.testing.assert_allclose(got.transpose(*expected.dims), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fs.centre(maps(), over="images"), "Did you mean 'image'"),
        (lambda: fs.centre(maps(), over="channel"), "'image' .* or 'feature'"),
        (lambda: fs.centre(maps(), dim="text"), "no dim 'text'"),
        (lambda: fs.centre(maps().values), "ndarray has no dims"),
        (lambda: fs.centre(maps() * 1j), "complex64 are not real"),
        (lambda: fs.centre(maps()[:0]), "no values"),
        (lambda: fs.normalise(maps(), "z-score"), "Did you mean 'zscore'"),  # type: ignore[arg-type]
    ],
)
def test_what_cannot_be_done_is_refused(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call()
