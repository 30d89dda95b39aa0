"""Galleries: many RDMs of the same images, aligned by name, in the same colours."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from PIL import Image
from scipy.stats import rankdata

import featurestore as fs
from featurestore.errors import InvalidInputError, LabelMismatchError
from tests.plots.looking import random_rdm, require_legible, things, words


def cells(ax):
    return np.ma.getdata(ax.images[0].get_array())


def stack(n, dim="subject", labels=None, **options):
    rdms = [random_rdm(8, list("abababab"), seed=k, **options) for k in range(n)]
    return xr.concat(rdms, dim=dim).assign_coords({dim: labels or [f"S{k}" for k in range(n)]})


def test_a_leading_dim_is_a_row_of_panels_with_names():
    rdms = stack(3)
    axes = fs.plots.gallery(rdms, scaling="raw", order="category")
    assert axes.shape == (3,)
    places = [0, 2, 4, 6, 1, 3, 5, 7]
    for k, ax in enumerate(axes):
        assert ax.get_title() == f"S{k}"
        np.testing.assert_array_equal(cells(ax), rdms.values[k][np.ix_(places, places)])
        assert ax.images[0].get_clim() == (0, rdms.values.max())  # one scale for all
    require_legible(axes[0].figure)


def test_ranks_are_taken_within_each_rdm():
    rdms = stack(2)
    upper = np.triu_indices(8, 1)
    for rdm, ax in zip(rdms, fs.plots.gallery(rdms), strict=True):
        np.testing.assert_allclose(cells(ax)[upper], (rankdata(rdm.values[upper]) - 1) / 27)


def test_two_leading_dims_are_rows_and_columns():
    rdms = xr.concat([stack(3), stack(3)], dim="model").assign_coords(model=["alexnet", "vgg16"])
    axes = fs.plots.gallery(rdms, title="Models and subjects")
    assert axes.shape == (2, 3)
    found = words(axes[0, 0].figure)
    for name in ("alexnet", "vgg16", "S0", "S1", "S2", "Models and subjects"):
        assert found.count(name) == 1
    require_legible(axes[0, 0].figure)


def test_rdms_of_a_dict_are_aligned_by_name():
    first, other = random_rdm(9, metric="correlation"), random_rdm(9, seed=1, metric="euclidean")
    mixed = np.random.default_rng(0).permutation(9)
    axes = fs.plots.gallery(
        {"IT": first, "model": other.isel(image=mixed, image_2=mixed)},
        order=fs.cluster_rdm(first, 2),
    )
    names = list(fs.cluster_rdm(first, 2).order)
    expected = rankdata(other.sel(image=names, image_2=names).values[np.triu_indices(9, 1)])
    np.testing.assert_allclose(cells(axes[1])[np.triu_indices(9, 1)], (expected - 1) / 35)
    assert [ax.get_title() for ax in axes] == ["IT", "model"]


def test_rdms_of_other_images_are_refused():
    with pytest.raises(LabelMismatchError, match="'d'") as caught:
        fs.plots.gallery(
            {"a": random_rdm(3, names=["a", "b", "c"]), "b": random_rdm(3, names=["a", "b", "d"])}
        )
    assert caught.value.missing == ["d"]


def test_what_has_no_common_scale_or_page_is_refused():
    first, other = random_rdm(4), random_rdm(4, metric="euclidean")
    with pytest.raises(InvalidInputError, match="scaling='rank'"):
        fs.plots.gallery({"a": first, "b": other}, scaling="raw")
    with pytest.raises(InvalidInputError, match="0 RDMs"):
        fs.plots.gallery({})
    with pytest.raises(InvalidInputError, match="two dims each"):
        fs.plots.gallery({"a": stack(2)})
    with pytest.raises(InvalidInputError, match="3 leading dims"):
        fs.plots.gallery(stack(2).expand_dims(["model", "session"]))
    with pytest.raises(InvalidInputError, match="columns"):
        fs.plots.gallery(stack(2), columns=0)


def test_columns_can_be_chosen_and_one_rdm_is_a_gallery_too():
    axes = fs.plots.gallery(stack(4), columns=2)
    x = {round(ax.get_position().x0, 3) for ax in axes}
    assert len(x) == 2
    assert fs.plots.gallery(random_rdm(5)).shape == (1,)


def test_missing_pairs_are_grey_in_all_panels_and_explained_once():
    rdms = stack(3).copy(deep=True)
    rdms[1, 2, :] = rdms[1, :, 2] = np.nan
    axes = fs.plots.gallery(rdms)
    assert np.ma.getmaskarray(axes[1].images[0].get_array())[2].all()
    assert words(axes[0].figure).count("no value") == 1


def test_a_gallery_of_1854_images_is_thinned_and_saved(tmp_path):
    rdm = things()
    path = tmp_path / "gallery.png"
    axes = fs.plots.gallery({"one": rdm, "other": rdm}, order="category", path=path)
    assert pyplot.get_fignums() == []
    assert "200 of 1,854 images shown" in words(axes[0].figure)
    require_legible(axes[0].figure)
    with Image.open(path) as image:
        np.testing.assert_allclose(image.size, axes[0].figure.get_size_inches() * 200, atol=1.5)


def test_many_panels_fit_on_a_page():
    rdms = stack(30, labels=[f"visual.transformer.resblocks.{k}" for k in range(30)], dim="module")
    figure = fs.plots.gallery(rdms, order="category")[0].figure
    require_legible(figure)
    assert figure.get_size_inches().max() < 20


def test_sixteen_subjects_judge_92_images(data_92):
    names = (data_92 / "images" / "names.txt").read_text().split()
    values = np.load(data_92 / "rdms" / "behaviour_16x92x92.npy")
    kinds = [name.split("_")[1].removesuffix(".png") for name in names]
    rdms = xr.DataArray(
        values,
        coords={
            "image": names, "image_2": names, "category": ("image", kinds),
            "category_2": ("image_2", kinds),
        },
        dims=("subject", "image", "image_2"),
    )  # fmt: skip
    axes = fs.plots.gallery(rdms, order="category")
    assert axes.shape == (16,)
    require_legible(axes[0].figure)
