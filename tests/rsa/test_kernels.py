"""Kernels: ridge regression on them is ridge regression on the features."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.errors import InvalidInputError, MemoryBudgetError

NAMES = [f"i{k:03}.png" for k in range(40)]
TRAIN, TEST = NAMES[:30], NAMES[:29:-1]


def features(offset=2.0, dtype=np.float64):
    rng = np.random.default_rng(0)
    values = rng.standard_normal((40, 8)) @ rng.standard_normal((8, 60)) + offset
    values += rng.standard_normal((40, 60))
    return xr.DataArray(
        values.reshape(40, 15, 2, 2).astype(dtype),
        dims=("image", "channel", "y", "x"),
        coords={"image": NAMES, "category": ("image", list("ab") * 20)},
        attrs={"model": "torchvision/alexnet", "feature_key": "ab" * 16},
    )


def brain():
    values = np.random.default_rng(1).standard_normal((40, 5)) + features().values[:, :5, 0, 0]
    return xr.DataArray(values, dims=("image", "voxel"), coords={"image": NAMES})


def flat(acts):
    return acts.values.reshape(acts.sizes["image"], -1).astype(np.float64)


def centred(values):
    return values - values.mean(0)


def test_a_linear_kernel_holds_inner_products():
    acts = features()
    plain = fs.kernel_matrix(acts, centre=False)
    np.testing.assert_allclose(plain, flat(acts) @ flat(acts).T, rtol=1e-5)
    expected = centred(flat(acts)) @ centred(flat(acts)).T
    got = fs.kernel_matrix(acts)
    np.testing.assert_allclose(got, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("bandwidth", [1.0, 0.3])
def test_an_rbf_kernel_is_that_of_scikit_learn(bandwidth):
    from scipy.spatial.distance import pdist
    from sklearn.metrics.pairwise import rbf_kernel
    from sklearn.preprocessing import KernelCenterer

    acts = features()
    width = bandwidth * np.median(pdist(flat(acts)))
    expected = rbf_kernel(flat(acts), gamma=0.5 / width**2)
    plain = fs.kernel_matrix(acts, kernel="rbf", bandwidth=bandwidth, centre=False)
    np.testing.assert_allclose(plain, expected, rtol=1e-4)
    np.testing.assert_allclose(plain.attrs["width"], width, rtol=1e-6)
    assert (np.diag(plain) == 1).all()
    got = fs.kernel_matrix(acts, kernel="rbf", bandwidth=bandwidth)
    np.testing.assert_allclose(got, KernelCenterer().fit_transform(expected), atol=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_a_centred_kernel_sums_to_zero_and_is_symmetric(kernel):
    got = fs.kernel_matrix(features(offset=1000.0), kernel=kernel).values
    np.testing.assert_array_equal(got, got.T)
    np.testing.assert_allclose(got.sum(0), 0, atol=1e-9 * np.abs(got).max())


@pytest.mark.parametrize("alpha", [0.1, 10.0, 1000.0])
@pytest.mark.parametrize("offset", [0.0, 2.0, 100.0])
def test_kernel_ridge_of_scikit_learn_predicts_what_ridge_on_the_features_predicts(alpha, offset):
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import KernelCenterer

    acts, responses = features(offset), brain()
    plain = Ridge(alpha=alpha, solver="svd")
    plain.fit(flat(acts.sel(image=TRAIN)), responses.sel(image=TRAIN).values)
    expected = plain.predict(flat(acts.sel(image=TEST)))

    k = fs.kernel_matrix(acts, centre=False)
    fit = k.sel(image=TRAIN, image_2=TRAIN).values
    new = k.sel(image=TEST, image_2=TRAIN).values
    ridge = make_pipeline(KernelCenterer(), KernelRidge(alpha=alpha, kernel="precomputed"))
    mean = responses.sel(image=TRAIN).values.mean(axis=0)
    got = ridge.fit(fit, responses.sel(image=TRAIN).values - mean).predict(new) + mean
    np.testing.assert_allclose(got, expected, atol=1e-6 * np.abs(expected).max())


def test_kernel_ridge_on_all_images_needs_no_further_centring():
    from sklearn.kernel_ridge import KernelRidge
    from sklearn.linear_model import Ridge

    acts, responses = features(), brain().values
    expected = Ridge(alpha=3.0, solver="svd").fit(flat(acts), responses).predict(flat(acts))
    k = fs.kernel_matrix(acts).values
    mean = responses.mean(axis=0)
    got = KernelRidge(alpha=3.0, kernel="precomputed").fit(k, responses - mean).predict(k) + mean
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_himalaya_takes_the_kernel_and_predicts_what_ridge_on_the_features_predicts():
    himalaya = pytest.importorskip("himalaya.kernel_ridge")
    from sklearn.linear_model import Ridge
    from sklearn.preprocessing import KernelCenterer

    acts, responses = features(), brain()
    target = responses.sel(image=TRAIN).values
    plain = Ridge(alpha=10.0, solver="svd").fit(flat(acts.sel(image=TRAIN)), target)
    expected = plain.predict(flat(acts.sel(image=TEST)))

    k = fs.kernel_matrix(acts, centre=False)
    centerer = KernelCenterer().fit(k.sel(image=TRAIN, image_2=TRAIN).values)
    fit = centerer.transform(k.sel(image=TRAIN, image_2=TRAIN).values)
    new = centerer.transform(k.sel(image=TEST, image_2=TRAIN).values)
    ridge = himalaya.KernelRidgeCV(alphas=[10.0], kernel="precomputed", cv=3)
    got = ridge.fit(fit, target - target.mean(0)).predict(new) + target.mean(0)
    np.testing.assert_allclose(got, expected, atol=1e-5)


def test_labels_stand_on_both_axes_and_provenance_stays():
    got = fs.kernel_matrix(features())
    assert got.dims == ("image", "image_2")
    assert got.dtype == np.float64
    assert set(got.coords) == {"image", "image_2", "category", "category_2"}
    assert got.name == "kernel"
    assert "feature_key" not in got.attrs
    assert got.attrs["source_feature_key"] == "ab" * 16
    assert got.attrs["derived"] == "kernel_matrix(kernel='linear', centre=True)"
    assert got.attrs["kernel"] == "linear"
    assert got.attrs["n_features"] == 60


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from(["linear", "rbf"]), st.booleans())
def test_the_kernel_of_two_images_does_not_depend_on_their_order(random, kernel, centre):
    order = random.sample(range(40), 40)
    got = fs.kernel_matrix(features()[order], kernel=kernel, centre=centre)
    expected = fs.kernel_matrix(features(), kernel=kernel, centre=centre)
    np.testing.assert_allclose(
        got.sel(image=NAMES, image_2=NAMES), expected, atol=1e-6 * float(abs(expected).max())
    )


def test_texts_are_rows_as_images_are():
    got = fs.kernel_matrix(features().rename(image="text"), dim="text")
    assert got.dims == ("text", "text_2")
    np.testing.assert_array_equal(got.values, fs.kernel_matrix(features()).values)


def test_features_that_are_not_finite_are_named():
    acts = features()
    acts[7, 0, 0, 0] = np.nan
    with pytest.raises(InvalidInputError, match=r"1 of 40 images are not finite.*i007\.png"):
        fs.kernel_matrix(acts)


def test_a_kernel_that_does_not_exist_is_refused():
    with pytest.raises(InvalidInputError, match="'linear' or 'rbf'"):
        fs.kernel_matrix(features(), kernel="poly")  # type: ignore[arg-type]


def test_more_images_than_memory_are_refused_before_anything_is_read():
    acts = xr.DataArray(
        np.broadcast_to(np.nan, (3000, 5)),
        dims=("image", "feature"),
        coords={"image": np.arange(3000)},
    )
    with (
        fs.set_options(memory_budget="128 MiB"),
        pytest.raises(MemoryBudgetError, match="A kernel of 3000 images needs 355 MB"),
    ):
        fs.kernel_matrix(acts)
