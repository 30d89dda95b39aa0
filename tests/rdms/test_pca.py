"""Principal components from distances against scikit-learn's from the features."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.decomposition import PCA

import featurestore as fs
from featurestore.errors import InvalidInputError, MemoryBudgetError
from featurestore.rdms.gram import gram
from featurestore.rdms.pca import pca_of


def labelled(values, **coords):
    return xr.DataArray(
        values,
        dims=("image", "feature"),
        coords={"image": [f"i{k}.png" for k in range(len(values))], **coords},
        attrs={"model": "torchvision/alexnet", "module": "fc6", "feature_key": "ab" * 16},
    )


def low_rank(n, p, rank, seed=0, noise=0.0):
    rng = np.random.default_rng(seed)
    scales = 2.0 ** -np.arange(rank)
    values = rng.standard_normal((n, rank)) * scales @ rng.standard_normal((rank, p))
    return values + noise * rng.standard_normal((n, p))


def with_signs_of(scores, reference):
    signs = np.sign(np.sum(scores * reference, axis=0))
    return scores * np.where(signs == 0, 1.0, signs)


CASES = {
    "fewer images than features": low_rank(20, 300, 12, noise=0.1),
    "more images than features": low_rank(60, 7, 7, noise=0.1),
    "one feature": low_rank(15, 1, 1),
    "rank below both": low_rank(30, 50, 4),
    "duplicates": np.repeat(low_rank(8, 40, 8), 3, axis=0),
    "a large common mean": low_rank(25, 100, 10, noise=0.1) + 1000.0,
    "two images": low_rank(2, 30, 2),
}


@pytest.mark.parametrize("name", CASES)
def test_scores_and_variances_are_those_of_scikit_learn(name):
    values = CASES[name]
    expected = PCA(svd_solver="full").fit(values)
    scores = expected.transform(values)
    got = fs.pca(labelled(values), min(values.shape))
    size = np.abs(scores).max()
    np.testing.assert_allclose(
        with_signs_of(got.scores.values, scores), scores, atol=2e-5 * size, rtol=0
    )
    largest = expected.explained_variance_[0]
    np.testing.assert_allclose(
        got.explained_variance, expected.explained_variance_, rtol=1e-5, atol=1e-6 * largest
    )
    np.testing.assert_allclose(
        got.explained_variance_ratio, expected.explained_variance_ratio_, rtol=1e-5, atol=1e-6
    )


def test_all_components_are_those_that_the_data_hold():
    assert fs.pca(labelled(CASES["rank below both"])).sizes["component"] == 4
    assert fs.pca(labelled(CASES["two images"])).sizes["component"] == 1
    assert fs.pca(labelled(np.ones((5, 3)))).sizes["component"] == 0


def test_components_beyond_the_rank_are_zero_and_not_noise():
    got = fs.pca(labelled(CASES["rank below both"]), 10)
    assert got.sizes["component"] == 10
    assert not got.scores[:, 4:].values.any()
    assert not got.explained_variance[4:].values.any()


@pytest.mark.parametrize("share", [0.2, 0.5, 0.9, 0.99])
def test_a_share_of_the_variance_takes_as_many_components_as_scikit_learn(share):
    values = CASES["fewer images than features"]
    expected = PCA(n_components=share, svd_solver="full").fit(values)
    got = fs.pca(labelled(values), share)
    assert got.sizes["component"] == expected.n_components_
    assert got.explained_variance_ratio.sum() >= share


def test_few_components_are_the_first_of_all():
    acts = labelled(CASES["fewer images than features"])
    few, all_ = fs.pca(acts, 3), fs.pca(acts)
    np.testing.assert_allclose(few.scores, all_.scores[:, :3], atol=1e-9)
    np.testing.assert_allclose(few.explained_variance, all_.explained_variance[:3], rtol=1e-12)


def test_scores_keep_the_distances_between_images():
    from scipy.spatial.distance import pdist

    acts = labelled(low_rank(20, 300, 12, noise=0.1).astype(np.float32))
    expected = pdist(acts.values.astype(np.float64))
    np.testing.assert_allclose(pdist(fs.pca(acts).scores), expected, rtol=1e-5)


def test_maps_count_as_their_values_in_a_row():
    values = low_rank(10, 24, 5).reshape(10, 4, 3, 2)
    maps = xr.DataArray(
        values, dims=("image", "channel", "y", "x"), coords={"image": list("abcdefghij")}
    )
    flat = labelled(values.reshape(10, -1))
    np.testing.assert_allclose(fs.pca(maps, 3).scores, fs.pca(flat, 3).scores, atol=1e-9)


def test_labels_and_provenance_stay_but_the_key_of_the_column_does_not():
    values = low_rank(6, 10, 3)
    acts = labelled(values, category=("image", list("aabbcc")), digest=("image", list("uvwxyz")))
    acts = acts.assign_coords(feature=np.arange(10), run=3)
    got = fs.pca(acts, 2)
    assert got.scores.dims == ("image", "component")
    assert got.scores.dtype == np.float64
    assert set(got.coords) == {"image", "category", "digest", "component"}
    assert got.category.values.tolist() == list("aabbcc")
    assert got.image.values.tolist() == acts.image.values.tolist()
    assert "feature_key" not in got.attrs
    assert got.attrs["source_feature_key"] == "ab" * 16
    assert got.attrs["derived"] == "pca(n_components=2)"
    assert (got.attrs["n_images"], got.attrs["n_features"]) == (6, 10)
    np.testing.assert_allclose(got.attrs["total_variance"], values.var(0, ddof=1).sum(), rtol=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans())
def test_neither_order_of_images_nor_of_features_changes_the_scores_and_their_signs(random, tie):
    values = low_rank(8, 20, 4)
    if tie:  # every component scores the same magnitude above and below 0
        values = np.concatenate([values[:4], -values[:4]])
    images, features = random.sample(range(8), 8), random.sample(range(20), 20)
    acts = labelled(values)
    got = fs.pca(acts[images, features], 3).scores
    np.testing.assert_allclose(got, fs.pca(acts, 3).scores[images], atol=1e-4)


def test_the_largest_magnitude_scores_above_zero():
    scores = fs.pca(labelled(low_rank(30, 40, 10))).scores.values
    rows = np.abs(scores).argmax(0)
    assert (scores[rows, np.arange(scores.shape[1])] > 0).all()


@settings(max_examples=30, deadline=None)
@given(st.floats(-1e3, 1e3), st.floats(1e-3, 1e3))
def test_a_shift_changes_nothing_and_a_factor_scales_the_scores(shift, factor):
    acts = labelled(low_rank(8, 20, 4))
    expected = fs.pca(acts, 3).scores * factor
    got = fs.pca(acts * factor + shift, 3).scores
    np.testing.assert_allclose(got, expected, atol=2e-5 * float(abs(expected).max()))


def test_texts_are_rows_as_images_are():
    acts = labelled(low_rank(6, 10, 3))
    got = fs.pca(acts.rename(image="text"), 2, dim="text").scores
    assert got.dims == ("text", "component")
    np.testing.assert_array_equal(got.values, fs.pca(acts, 2).scores.values)


def test_a_geometry_at_hand_is_enough():
    acts = labelled(low_rank(6, 10, 3))
    xr.testing.assert_identical(pca_of(gram(acts), 2), fs.pca(acts, 2))


def test_images_that_are_not_finite_are_named():
    values = low_rank(6, 10, 3)
    values[4, 2] = np.nan
    values[1, 2] = np.inf
    with pytest.raises(InvalidInputError, match=r"2 of 6 images are not finite.*i1\.png, i4\.png"):
        fs.pca(labelled(values), 2)


@pytest.mark.parametrize("count", [0, -1, 11, 1.0, 0.0, 1.5, True, "all"])
def test_a_count_that_cannot_be_had_is_refused(count):
    with pytest.raises(InvalidInputError, match=r"n_components=.*1 to 10"):
        fs.pca(labelled(low_rank(12, 10, 3)), count)


def test_one_image_has_no_components():
    with pytest.raises(InvalidInputError, match="needs two images"):
        fs.pca(labelled(np.ones((1, 3))))


def test_more_images_than_memory_are_refused_before_anything_is_read():
    with (
        fs.set_options(memory_budget="128 MiB"),
        pytest.raises(MemoryBudgetError, match="PCA of 3000 images needs 355 MB"),
    ):
        fs.pca(labelled(np.broadcast_to(np.nan, (3000, 5))), 2)
