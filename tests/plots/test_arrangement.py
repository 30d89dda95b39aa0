"""Arrangements in a plane: distances as scikit-learn has them, pictures in their places."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.image import AxesImage
from scipy.spatial.distance import pdist, squareform
from scipy.stats import spearmanr

import featurestore as fs
from featurestore.errors import InvalidInputError
from featurestore.plots.embedding import embed, stress_1
from tests.plots.looking import make, random_rdm, require_legible, things, words
from tests.plots.test_heatmap import lazy, picture

pytest.importorskip("sklearn.manifold")


def planar(n, seed=0, category=None):
    """An RDM that a plane can show exactly."""
    points = np.random.default_rng(seed).normal(size=(n, 2))
    return make(squareform(pdist(points)), category=category, metric="euclidean")


def dots(ax):
    return np.concatenate([np.asarray(c.get_offsets()) for c in ax.collections])


def stress_of(ax):
    return float(ax.get_xlabel().replace("\n", " ").split("stress ")[1].split(";")[0])


@pytest.mark.parametrize("method", ["metric", "classical", "nonmetric"])
def test_what_lies_in_a_plane_is_arranged_exactly(method):
    rdm = planar(15)
    ax = fs.plots.mds(rdm, method=method)
    found = squareform(pdist(dots(ax)))
    if method == "nonmetric":
        assert spearmanr(squareform(found), squareform(rdm.values)).statistic > 0.999
    else:
        np.testing.assert_allclose(found, rdm.values, atol=1e-6)
    assert stress_of(ax) == pytest.approx(0, abs=0.005)
    assert ax.get_aspect() == 1


def test_metric_scaling_is_as_good_as_scikit_learns():
    from sklearn.manifold import smacof

    distances = random_rdm(40).values
    points, stress = embed(distances, "metric", 0)
    theirs, _ = smacof(distances, n_components=2, n_init=8, random_state=0, eps=1e-6)
    assert stress <= 1.01 * stress_1(theirs, distances)
    drawn = pdist(points)
    by_hand = np.sqrt(((drawn - squareform(distances)) ** 2).sum() / (drawn**2).sum())
    assert stress == pytest.approx(by_hand, rel=1e-3)  # at its own scale


def test_classical_scaling_is_the_principal_coordinates_of_points():
    points = np.random.default_rng(0).normal(size=(30, 5)) * [5, 3, 1, 0.5, 0.1]
    found, _ = embed(squareform(pdist(points)), "classical", 0)
    centred = points - points.mean(axis=0)
    u, s, _ = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(np.abs(found), np.abs(u[:, :2] * s[:2]), atol=1e-9)


def test_only_the_order_counts_for_nonmetric_scaling_and_duplicates_are_the_most_alike():
    points = np.random.default_rng(0).normal(size=(20, 2))
    points[5] = points[6]
    distances = squareform(pdist(points))
    bent, stress = embed(distances**3, "nonmetric", 0)
    assert stress < 0.05
    found = squareform(pdist(bent))
    assert spearmanr(squareform(found), squareform(distances)).statistic > 0.99
    assert found[5, 6] == pytest.approx(0, abs=0.02 * found.max())


def test_the_same_seed_gives_the_same_picture(tmp_path):
    rdm = random_rdm(20)
    paths = [tmp_path / f"{k}.png" for k in range(2)]
    for path in paths:
        fs.plots.mds(rdm, path=path, seed=3)
    assert paths[0].read_bytes() == paths[1].read_bytes()


@pytest.mark.parametrize("method", ["metric", "nonmetric", "classical"])
def test_neither_the_order_of_the_rows_nor_colours_change_an_arrangement(method):
    rdm = random_rdm(12, list("bacbacbacbac"))
    mixed = np.random.default_rng(1).permutation(12)
    first = fs.plots.mds(rdm, method=method)
    second = fs.plots.mds(rdm.isel(image=mixed, image_2=mixed), method=method)
    np.testing.assert_allclose(dots(second), dots(first)[mixed], atol=1e-9)
    coloured = fs.plots.mds(rdm, method=method, categories="category")
    sort = np.argsort(rdm.category.values, kind="stable")
    np.testing.assert_allclose(dots(coloured), dots(first)[sort], atol=1e-9)


def test_categories_have_colours_and_a_legend():
    kinds = [f"kind {k % 3}" for k in range(12)]
    ax = fs.plots.mds(planar(12, category=kinds), categories="category")
    assert [c.get_label() for c in ax.collections] == ["kind 0", "kind 1", "kind 2"]
    assert len({tuple(c.get_facecolor()[0]) for c in ax.collections}) == 3
    assert {"kind 0", "kind 1", "kind 2"} <= set(words(ax.figure))
    found = {
        label: np.asarray(c.get_offsets()) for c in ax.collections for label in [c.get_label()]
    }
    expected = dots(fs.plots.mds(planar(12)))
    for k in range(3):
        np.testing.assert_allclose(found[f"kind {k}"], expected[k::3], atol=1e-9)


def test_many_categories_are_told_apart():
    rdm = random_rdm(54, [f"kind {k % 27:02d}" for k in range(54)])
    ax = fs.plots.mds(rdm, categories="category")
    looks = {
        (tuple(c.get_facecolor()[0]), c.get_paths()[0].vertices.tobytes()) for c in ax.collections
    }
    assert len(looks) == 27
    require_legible(ax.figure)


def test_few_images_are_named_beside_their_dots():
    rdm = planar(12)
    ax = fs.plots.mds(rdm)
    assert set(rdm.image.values) <= set(words(ax.figure))
    require_legible(ax.figure)


def pictures_of(ax):
    return [artist for artist in ax.get_children() if isinstance(artist, AxesImage)]


@pytest.mark.parametrize("n", [1, 2, 12, 92])
def test_pictures_stand_in_their_places_and_do_not_overlap(n):
    rdm = random_rdm(n)
    given = {name: picture(k % 12) for k, name in enumerate(rdm.image.values)}
    ax = fs.plots.mds(rdm, thumbnails=given)
    ax.figure.draw_without_rendering()
    boxes = [image.get_window_extent() for image in pictures_of(ax)]
    assert len(boxes) == n
    for k, one in enumerate(boxes):
        assert min(one.width, one.height) >= 0.2 * 100 - 1
        assert not any(one.overlaps(other) for other in boxes[k + 1 :])
    plane = ax.get_window_extent()
    assert all(plane.x0 - 1 < b.x0 and b.x1 < plane.x1 + 1 for b in boxes)
    assert all(plane.y0 - 1 < b.y0 and b.y1 < plane.y1 + 1 for b in boxes)
    expected = dots(fs.plots.mds(rdm))
    middles = [
        ax.transData.inverted().transform(((b.x0 + b.x1) / 2, (b.y0 + b.y1) / 2)) for b in boxes
    ]
    edge = boxes[0].width * np.ptp(ax.get_xlim()) / plane.width
    moved = np.abs(np.array(middles) - expected).max(axis=1)
    assert moved.max() < 2 * edge
    assert np.quantile(moved, 0.9) <= 0.51 * edge
    for k, image in enumerate(pictures_of(ax)):
        assert tuple(np.asarray(image.get_array())[64, 64]) == picture(k % 12).getpixel((0, 0))
    require_legible(ax.figure)


def test_duplicates_are_moved_apart_with_a_line_to_where_they_belong():
    rdm = planar(6)
    twice = rdm.isel(image=[0, 0, 0, 1, 2, 3], image_2=[0, 0, 0, 1, 2, 3])
    twice = twice.assign_coords(image=list("abcdef"), image_2=list("abcdef"))
    ax = fs.plots.mds(twice, thumbnails={name: picture(1) for name in "abcdef"})
    ax.figure.draw_without_rendering()
    boxes = [image.get_window_extent() for image in pictures_of(ax)]
    assert not boxes[0].overlaps(boxes[1])
    lines = [c for c in ax.collections if hasattr(c, "get_segments") and len(c.get_segments())]
    assert len(lines[0].get_segments()) >= 1


def test_1854_images_are_thinned_and_only_these_are_read():
    rdm, recorder = lazy(things())
    ax = fs.plots.mds(rdm, categories="category", method="classical")
    assert recorder.read == [(200, 200)]
    assert len(dots(ax)) == 200
    assert "200 of 1,854 images shown" in ax.get_xlabel().replace("\n", " ")
    require_legible(ax.figure)


@pytest.mark.parametrize("thumbnails", [True, False])
def test_rdms_of_zeros_are_points_in_one_place(thumbnails):
    rdm = make(np.zeros((4, 4)))
    given = {name: picture(1) for name in rdm.image.values} if thumbnails else None
    ax = fs.plots.mds(rdm, thumbnails=given)
    assert stress_of(ax) == 0
    require_legible(ax.figure)


def test_what_cannot_be_arranged_is_refused():
    rdm = random_rdm(6)
    gone = rdm.copy()
    gone[2, :] = gone[:, 2] = np.nan
    with pytest.raises(InvalidInputError, match="im0002") as caught:
        fs.plots.mds(gone)
    assert caught.value.images == ["im0002.jpg"]
    with pytest.raises(InvalidInputError, match=r"rdm\.clip"):
        fs.plots.mds(rdm - 0.5 * (1 - xr.zeros_like(rdm) - np.eye(6)))
    with pytest.raises(InvalidInputError, match="Did you mean 'nonmetric'"):
        fs.plots.mds(rdm, method="non-metric")
    with pytest.raises(InvalidInputError, match="subject"):
        fs.plots.mds(xr.concat([rdm, rdm], dim="subject"))


def test_arrangements_are_drawn_where_the_caller_wants_and_can_be_pickled():
    figure, axes = pyplot.subplots(1, 2, figsize=(10, 4))
    rdm = random_rdm(12, list("abcabcabcabc"))
    given = {name: picture(k) for k, name in enumerate(rdm.image.values)}
    assert fs.plots.mds(rdm, ax=axes[0], categories="category") is axes[0]
    fs.plots.mds(rdm, ax=axes[1], thumbnails=given, categories="category")
    require_legible(figure)
    assert not axes[0].get_tightbbox().overlaps(axes[1].get_tightbbox())
    pickle.loads(pickle.dumps(figure))


def test_more_categories_than_a_legend_can_tell_apart_are_refused():
    rdm = random_rdm(120, [f"kind {k % 60:02d}" for k in range(120)])
    with pytest.raises(InvalidInputError, match="60 values") as caught:
        fs.plots.mds(rdm, categories="category")
    assert caught.value.n_categories == 60
