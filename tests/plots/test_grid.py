"""Matrices between modules: the numbers, their colours, and names that can be read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.colors import to_rgba

import featurestore as fs
from featurestore.errors import InvalidInputError
from tests.plots.looking import require_legible, texts, words


def matrix_of(n, m=None, names="features.{}", low=0.0):
    values = np.random.default_rng(0).uniform(low, 1, size=(n, m or n))
    down, across = ([names.format(k) for k in range(size)] for size in values.shape)
    second = "other" if m else "module_2"
    return xr.DataArray(
        values,
        coords={"module": down, second: across},
        dims=("module", second),
        name="cka",
        attrs={"estimator": "debiased", "kernel": "linear"},
    )


def test_cells_show_the_numbers_on_a_scale_from_0_to_1():
    matrix = matrix_of(5, 3)
    ax = fs.plots.matrix(matrix)
    np.testing.assert_array_equal(np.ma.getdata(ax.images[0].get_array()), matrix.values)
    assert ax.images[0].get_clim() == (0, 1)
    assert [t.get_text() for t in ax.get_yticklabels()] == list(matrix.module.values)
    assert [t.get_text() for t in ax.get_xticklabels()] == list(matrix.other.values)
    assert ax.yaxis_inverted()  # the first module is on top
    assert "debiased linear CKA" in " ".join(words(ax.figure)).replace("\n", " ")
    for value in matrix.values.ravel():
        assert f"{value:.2f}" in words(ax.figure)
    require_legible(ax.figure)


def test_values_below_0_widen_the_scale():
    matrix = matrix_of(4, low=-0.2)
    ax = fs.plots.matrix(matrix)
    assert ax.images[0].get_clim() == (matrix.values.min(), 1)
    assert any(word.startswith("−0.") for word in words(ax.figure))


def test_numbers_stand_out_from_their_cells():
    ax = fs.plots.matrix(matrix_of(2).copy(data=[[0.0, 1.0], [1.0, 0.0]]))
    colours = {text.get_text(): to_rgba(text.get_color()) for text in ax.texts}
    assert colours == {"0.00": to_rgba("white"), "1.00": to_rgba("black")}


def test_many_numbers_are_not_written_unless_asked_for():
    assert len(fs.plots.matrix(matrix_of(13)).texts) == 0
    assert len(fs.plots.matrix(matrix_of(13), values=True).texts) == 169
    assert len(fs.plots.matrix(matrix_of(3), values=False).texts) == 0


def test_limits_can_be_chosen_and_the_bar_says_what_lies_beyond():
    ax = fs.plots.matrix(matrix_of(6), vmin=0.3, vmax=0.7)
    assert ax.images[0].get_clim() == (0.3, 0.7)
    assert ax.images[0].colorbar.extend == "both"
    assert fs.plots.matrix(matrix_of(6)).images[0].colorbar.extend == "neither"


def test_a_cell_without_a_value_is_grey():
    matrix = matrix_of(4)
    matrix[1, 2] = np.nan
    ax = fs.plots.matrix(matrix)
    assert np.ma.getmaskarray(ax.images[0].get_array()).nonzero() == ([1], [2])
    assert "no value" in words(ax.figure)
    assert len(ax.texts) == 15


@pytest.mark.parametrize("n", [1, 2, 12, 40, 150])
def test_names_of_modules_can_be_read_at_any_size(n):
    ax = fs.plots.matrix(
        matrix_of(n, names="visual.transformer.resblocks.{}.mlp.c_fc"), title="CLIP"
    )
    require_legible(ax.figure)
    n_shown = len(ax.get_yticklabels())
    assert n_shown == n if n <= 40 else n_shown >= 50


def test_cka_of_this_package_is_drawn_as_it_is():
    rng = np.random.default_rng(0)
    names = [f"im{k}" for k in range(12)]
    features = {
        name: xr.DataArray(rng.normal(size=(12, 5)), {"image": names}, ("image", "feature"))
        for name in ("conv1", "conv2", "fc")
    }
    found = fs.cka(features)
    ax = fs.plots.matrix(found)
    np.testing.assert_array_equal(np.ma.getdata(ax.images[0].get_array()), found.values)
    assert [t.get_text() for t in ax.get_yticklabels()] == ["conv1", "conv2", "fc"]


def test_what_is_no_matrix_is_refused():
    matrix = matrix_of(3)
    with pytest.raises(InvalidInputError, match="two dims"):
        fs.plots.matrix(matrix[0])
    with pytest.raises(InvalidInputError, match="two dims"):
        fs.plots.matrix(matrix[:0])
    with pytest.raises(InvalidInputError, match="real numbers"):
        fs.plots.matrix(matrix.astype(complex))


def test_matrices_are_drawn_where_the_caller_wants_and_saved(tmp_path):
    figure, axes = pyplot.subplots(1, 2, figsize=(9, 4))
    for ax in axes:
        assert fs.plots.matrix(matrix_of(9), ax=ax, title="CKA") is ax
    require_legible(figure)
    assert not axes[0].get_tightbbox().overlaps(axes[1].get_tightbbox())
    pickle.loads(pickle.dumps(figure))
    pyplot.close("all")
    fs.plots.matrix(matrix_of(3), path=tmp_path / "matrix.pdf")
    assert (tmp_path / "matrix.pdf").read_bytes().startswith(b"%PDF")
    assert pyplot.get_fignums() == []


def test_labels_of_two_parts_are_written_as_one():
    matrix = matrix_of(2)
    pairs = xr.Coordinates.from_pandas_multiindex(
        __import__("pandas").MultiIndex.from_tuples([("a", 1), ("b", 2)], names=["m", "k"]),
        "module",
    )
    ax = fs.plots.matrix(matrix.drop_vars("module").assign_coords(pairs))
    assert [t.get_text() for t in ax.get_yticklabels()] == ["a, 1", "b, 2"]
    assert texts(ax.figure)
