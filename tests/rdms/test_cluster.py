"""Clusters of an RDM: what is together, in which order, whatever the order of the rows."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster import hierarchy
from scipy.spatial.distance import pdist, squareform

import featurestore as fs
from featurestore.errors import InvalidInputError, MemoryBudgetError
from featurestore.rdms.structure import make_rdm


def rdm_of(points, names=None, **attrs):
    names = names or [f"im{k:03d}" for k in range(len(points))]
    coords = xr.Coordinates({"image": np.array(names, object)})
    return make_rdm(squareform(pdist(points)), coords, attrs={"metric": "euclidean"} | attrs)


def shuffled(rdm, order):
    return rdm.isel(image=order, image_2=order)


def points_of(n, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 4))


@pytest.mark.parametrize("method", ["average", "complete", "single"])
def test_clusters_are_those_of_scikit_learn(method):
    cluster = pytest.importorskip("sklearn.cluster")
    metrics = pytest.importorskip("sklearn.metrics")
    rdm = rdm_of(points_of(40))
    ours = fs.cluster_rdm(rdm, 6, method=method).labels
    model = cluster.AgglomerativeClustering(6, metric="precomputed", linkage=method)
    assert metrics.adjusted_rand_score(ours.values, model.fit_predict(rdm.values)) == 1
    assert ours.attrs["method"] == method


def test_five_clusters_of_human_it_are_those_of_scikit_learn(data_92):
    cluster = pytest.importorskip("sklearn.cluster")
    metrics = pytest.importorskip("sklearn.metrics")
    values = np.load(data_92 / "rdms" / "human_IT_fig1_mean_92x92.npy")
    names = (data_92 / "images" / "names.txt").read_text().split()
    found = fs.cluster_rdm(make_rdm(values, xr.Coordinates({"image": names})))
    model = cluster.AgglomerativeClustering(5, metric="precomputed", linkage="average")
    assert metrics.adjusted_rand_score(found.labels.values, model.fit_predict(values)) == 1
    assert found.n_clusters == 5


def test_planted_clusters_are_found_and_numbered_in_display_order():
    which = np.array([2, 0, 1, 0, 2, 1, 1, 0, 2])
    rdm = rdm_of(np.eye(4)[which] * 10 + points_of(9) / 10)
    found = fs.cluster_rdm(rdm, 3)
    of = dict(zip(found.labels.image.values, found.labels.values, strict=True))
    assert [of[name] for name in found.order] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    for kind in range(3):
        assert len({of[name] for name in rdm.image.values[which == kind]}) == 1


def test_neighbours_are_more_alike_than_in_the_plain_tree():
    rdm = rdm_of(points_of(60))
    order = list(fs.cluster_rdm(rdm, 3).order)
    plain = hierarchy.leaves_list(hierarchy.linkage(squareform(rdm.values), "average"))
    places = [rdm.image.values.tolist().index(name) for name in order]

    def length(leaves):
        return sum(rdm.values[a, b] for a, b in pairwise(leaves))

    assert length(places) < length(plain.tolist())
    best = hierarchy.optimal_leaf_ordering(
        hierarchy.linkage(squareform(rdm.values), "average"), squareform(rdm.values)
    )
    assert length(places) == pytest.approx(length(hierarchy.leaves_list(best).tolist()))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 14), seed=st.integers(0, 1000), data=st.data())
def test_the_order_of_the_rows_does_not_matter(n, seed, data):
    # Whole numbers make ties, which would otherwise be broken by position.
    points = np.random.default_rng(seed).integers(0, 4, size=(n, 2)).astype(float)
    rdm = rdm_of(points)
    order = data.draw(st.permutations(range(n)))
    k = data.draw(st.integers(1, n))
    first, second = fs.cluster_rdm(rdm, k), fs.cluster_rdm(shuffled(rdm, order), k)
    assert first.order == second.order
    xr.testing.assert_equal(first.labels, second.labels.sel(image=first.labels.image))
    assert sorted(first.order) == sorted(rdm.image.values)
    assert set(first.labels.values) == set(range(k))
    labels = first.labels.sel(image=list(first.order)).values
    assert (np.diff(labels) >= 0).all()  # each cluster in one piece, numbered along the order


def test_coordinates_of_the_images_stay_on_the_labels():
    rdm = rdm_of(points_of(4)).assign_coords(
        category=("image", list("abab")), category_2=("image_2", list("abab"))
    )
    labels = fs.cluster_rdm(rdm, 2).labels
    assert labels.dims == ("image",)
    assert set(labels.coords) == {"image", "category"}


def test_one_image_is_one_cluster():
    found = fs.cluster_rdm(make_rdm(np.zeros((1, 1)), xr.Coordinates({"image": ["a"]})), 1)
    assert found.order == ("a",)
    assert found.labels.values.tolist() == [0]


def test_other_dims_than_images_are_clustered():
    rdm = make_rdm(squareform([1.0, 2.0, 3.0]), xr.Coordinates({"text": list("abc")}), dim="text")
    assert fs.cluster_rdm(rdm, 2).labels.dims == ("text",)


def test_clusters_describe_themselves():
    text = repr(fs.cluster_rdm(rdm_of(points_of(7)), 2))
    assert "7 images in 2" in text
    assert "euclidean" in text


def test_an_image_without_dissimilarities_is_named():
    rdm = rdm_of(points_of(8))
    rdm[3, :] = rdm[:, 3] = np.nan
    with pytest.raises(InvalidInputError, match="'im003'") as caught:
        fs.cluster_rdm(rdm, 2)
    assert caught.value.images == ["im003"]


def test_a_pair_without_dissimilarity_names_both_images():
    rdm = rdm_of(points_of(8))
    rdm[3, 5] = rdm[5, 3] = np.nan
    with pytest.raises(InvalidInputError) as caught:
        fs.cluster_rdm(rdm, 2)
    assert caught.value.images == ["im003", "im005"]


def test_a_missing_diagonal_does_not_matter():
    rdm = rdm_of(points_of(8))
    expected = fs.cluster_rdm(rdm, 2).order
    rdm.values[np.diag_indices(8)] = np.nan
    assert fs.cluster_rdm(rdm, 2).order == expected


def test_what_cannot_be_clustered_is_refused():
    rdm = rdm_of(points_of(6))
    stacked = xr.concat([rdm, rdm], dim="subject")
    with pytest.raises(InvalidInputError, match=r"rdm\.mean\('subject'\)"):
        fs.cluster_rdm(stacked, 2)
    with pytest.raises(InvalidInputError, match="Did you mean 'average'"):
        fs.cluster_rdm(rdm, 2, method="averag")
    for bad in (0, 7, 2.0, True):
        with pytest.raises(InvalidInputError, match="n_clusters"):
            fs.cluster_rdm(rdm, bad)
    crooked = rdm.copy()
    crooked[1, 2] += 1
    with pytest.raises(InvalidInputError, match="not symmetric: 'im001' to 'im002'"):
        fs.cluster_rdm(crooked, 2)
    twice = rdm_of(points_of(3), ["a", "b", "a"])
    with pytest.raises(InvalidInputError, match="'a' stands for several rows"):
        fs.cluster_rdm(twice, 2)
    with pytest.raises(InvalidInputError, match="read_rdms"):
        fs.cluster_rdm(rdm.values, 2)


def test_what_would_not_fit_in_memory_is_refused_before_it_is_read():
    rdm = rdm_of(points_of(300))
    with (
        fs.set_options(memory_budget="1 MB"),
        pytest.raises(MemoryBudgetError, match="300 images") as caught,
    ):
        fs.cluster_rdm(rdm, 2)
    assert caught.value.projected_nbytes > caught.value.allowed_nbytes
