"""RDMs as pictures: what the cells show, in which order, and that all can be read."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import time
import warnings

import matplotlib
import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.colors import to_rgba
from matplotlib.image import BboxImage
from PIL import Image
from scipy.stats import rankdata
from xarray.backends import BackendArray
from xarray.core import indexing

import featurestore as fs
from featurestore.errors import (
    FeatureStoreWarning,
    InvalidInputError,
    LabelMismatchError,
    MemoryBudgetError,
)
from featurestore.rdms.structure import make_rdm
from tests.plots.looking import collisions, make, random_rdm, require_legible, texts, things, words

LONG = "a_folder_with_a_long_name/another_one_inside_of_it/and_a_picture_that_shows_number_{}.jpeg"


def cells(ax):
    return np.ma.getdata(ax.images[0].get_array())


class Recorder(BackendArray):
    """A lazy array that writes down which rows are read."""

    def __init__(self, values):
        self.values, self.shape, self.dtype, self.read = values, values.shape, values.dtype, []

    def __getitem__(self, key):
        support = indexing.IndexingSupport.OUTER
        return indexing.explicit_indexing_adapter(key, self.shape, support, self.part)

    def part(self, key):
        self.read.append(tuple(np.arange(n)[k].size for n, k in zip(self.shape, key, strict=True)))
        return self.values[np.ix_(*(np.arange(n)[k] for n, k in zip(self.shape, key, strict=True)))]


def lazy(rdm):
    recorder = Recorder(rdm.values)
    return rdm.copy(data=indexing.LazilyIndexedArray(recorder)), recorder


def test_cells_show_the_ranks_of_the_pairs_from_0_to_1():
    rdm = random_rdm(9)
    shown = cells(fs.plots.rdm(rdm))
    upper = np.triu_indices(9, 1)
    expected = (rankdata(rdm.values[upper]) - 1) / 35
    np.testing.assert_allclose(shown[upper], expected, rtol=0, atol=1e-12)
    np.testing.assert_array_equal(shown, shown.T)
    assert (np.diag(shown) == 0).all()
    assert shown.max() == 1


def test_ties_share_a_rank_and_the_diagonal_is_no_pair():
    rdm = make(np.array([[0, 1, 1], [1, 0, 5], [1, 5, 0.0]]))
    np.testing.assert_allclose(
        cells(fs.plots.rdm(rdm)), [[0, 0.25, 0.25], [0.25, 0, 1], [0.25, 1, 0]]
    )


def test_raw_shows_the_dissimilarities_from_0_to_the_largest():
    rdm = random_rdm(9)
    ax = fs.plots.rdm(rdm, scaling="raw")
    np.testing.assert_array_equal(cells(ax), rdm.values)
    assert ax.images[0].get_clim() == (0, rdm.values.max())
    assert fs.plots.rdm(rdm, scaling="raw", vmin=0.5, vmax=1).images[0].get_clim() == (0.5, 1)


@pytest.mark.parametrize(
    ("metric", "scaling", "label"),
    [
        ("correlation", "raw", "1 − Pearson r"),
        ("correlation", "rank", "rank of 1 − Pearson r (0 to 1)"),
        ("euclidean", "raw", "euclidean distance"),
        ("reaction time [s]", "raw", "reaction time [s]"),
    ],
)
def test_the_bar_says_what_the_colours_are(metric, scaling, label):
    ax = fs.plots.rdm(random_rdm(9, metric=metric), scaling=scaling)
    assert label in " ".join(words(ax.figure)).replace("\n", " ")


def test_a_coordinate_sorts_stably_and_brackets_its_runs():
    rdm = random_rdm(6, ["dog", "ant", "cat", "ant", "dog", "cat"])
    ax = fs.plots.rdm(rdm, scaling="raw", order="category")
    places = [1, 3, 2, 5, 0, 4]
    np.testing.assert_array_equal(cells(ax), rdm.values[np.ix_(places, places)])
    for name in ("ant", "cat", "dog"):
        assert words(ax.figure).count(name) == 2  # along both axes
    rows = {text.get_text(): text.get_position()[1] for text in texts(ax.figure)}
    assert rows["cat"] < rows["dog"] or rows["cat"] == 0


def test_numbers_say_what_they_are_of():
    rdm = random_rdm(6).assign_coords(human=("image", [1, 0, 1, 0, 1, 0]))
    assert {"human 0", "human 1"} <= set(words(fs.plots.rdm(rdm, order="human").figure))


def test_categories_bracket_without_sorting():
    rdm = random_rdm(4, ["b", "b", "a", "a"])
    ax = fs.plots.rdm(rdm, scaling="raw", categories="category")
    np.testing.assert_array_equal(cells(ax), rdm.values)
    assert words(ax.figure).count("a") == 2


def test_an_order_from_clusters_is_applied_by_name_to_another_rdm():
    first = random_rdm(20)
    other = random_rdm(20, seed=1)
    clusters = fs.cluster_rdm(first, 3)
    mixed = np.random.default_rng(2).permutation(20)
    ax = fs.plots.rdm(other.isel(image=mixed, image_2=mixed), scaling="raw", order=clusters)
    names = list(clusters.order)
    np.testing.assert_array_equal(cells(ax), other.sel(image=names, image_2=names).values)
    assert {"cluster 0", "cluster 1", "cluster 2"} <= set(words(ax.figure))


def test_an_order_is_a_list_of_names():
    rdm = random_rdm(3, names=["a", "b", "c"])
    ax = fs.plots.rdm(rdm, scaling="raw", order=["c", "a", "b"])
    np.testing.assert_array_equal(cells(ax), rdm.values[np.ix_([2, 0, 1], [2, 0, 1])])


def test_an_order_of_other_images_is_refused_and_names_them():
    rdm = random_rdm(3, names=["a", "b", "c"])
    with pytest.raises(LabelMismatchError, match="'d'") as caught:
        fs.plots.rdm(rdm, order=["c", "a", "d"])
    assert (caught.value.missing, caught.value.unexpected) == (["b"], ["d"])
    with pytest.raises(LabelMismatchError, match="clusters have 'x'"):
        fs.plots.rdm(rdm, order=fs.cluster_rdm(random_rdm(3, names=["a", "b", "x"]), 2))
    with pytest.raises(LabelMismatchError, match="twice"):
        fs.plots.rdm(rdm, order=["a", "b", "c", "a"])


def test_1854_images_are_thinned_evenly_and_the_picture_says_so():
    rdm, recorder = lazy(things())
    start = time.perf_counter()
    ax = fs.plots.rdm(rdm, order="category")
    assert time.perf_counter() - start < 20  # on a busy machine; 1 s on an idle one
    assert cells(ax).shape == (200, 200)
    assert "200 of 1,854 images shown" in words(ax.figure)
    assert recorder.read == [(200, 200)]  # nothing else was read
    counts = rdm.category.to_series().value_counts()
    for name in counts.index:  # no category is lost
        assert words(ax.figure).count(name) == 2
    require_legible(ax.figure)


def test_thinning_keeps_the_shares_of_categories():
    from featurestore.plots.ordering import arrange

    rdm = things()
    shown = arrange(rdm, "image", "category", None, 200)
    counts = rdm.category.to_series().value_counts()
    assert len(set(shown.positions.tolist())) == len(shown.positions) == 200
    assert counts.min() * 200 / 1854 < 0.5  # one would be lost without care
    assert [group.name for group in shown.groups] == sorted(counts.index)
    for group in shown.groups:
        share = counts[group.name] * 200 / 1854
        assert max(1, np.floor(share) - 2) <= group.stop - group.start <= np.ceil(share) + 1
        chosen = rdm.category.values[shown.positions[group.start : group.stop]]
        assert set(chosen) == {group.name}


def test_all_images_are_shown_on_demand():
    ax = fs.plots.rdm(random_rdm(230), max_images=None)
    assert cells(ax).shape == (230, 230)
    assert not any("shown" in word for word in words(ax.figure))


def test_what_would_not_fit_in_memory_is_refused():
    rdm, recorder = lazy(random_rdm(300))
    with (
        fs.set_options(memory_budget="100 kB"),
        pytest.raises(MemoryBudgetError, match="max_images"),
    ):
        fs.plots.rdm(rdm, max_images=None)
    assert recorder.read == []


@pytest.mark.parametrize("n", [1, 2, 3, 12, 92])
@pytest.mark.parametrize("kind", ["plain", "long", "unicode"])
def test_names_and_brackets_can_be_read_at_any_size(n, kind):
    names = {
        "plain": [f"im{k}" for k in range(n)],
        "long": [LONG.format(k) for k in range(n)],
        "unicode": [f"Größe_{k} $x_1$ ∂ñ Ж" for k in range(n)],
    }[kind]
    category = [f"a category whose name is long {'abcd'[k * 4 // n]}" for k in range(n)]
    require_legible(fs.plots.rdm(random_rdm(n, category, names=names), order="category").figure)


def test_many_small_categories_are_named_where_there_is_room_and_the_picture_says_so():
    rdm = random_rdm(180, [f"kind number {k // 2}" for k in range(180)])
    ax = fs.plots.rdm(rdm, order="category")
    (note,) = [word for word in words(ax.figure) if "groups named" in word]
    n_named, n = map(int, re.findall(r"\d+", note))
    assert n == 90
    assert 10 < n_named < 90
    assert collisions(ax.figure) == []


def test_names_are_written_as_they_are():
    rdm = random_rdm(2, names=["$x_1$", "a\\b{c}"])
    assert {"$x_1$", "a\\b{c}"} <= set(words(fs.plots.rdm(rdm).figure))
    for text in texts(fs.plots.rdm(rdm).figure):
        if "$" in text.get_text():
            assert not text.get_parse_math()


def test_pairs_without_a_value_are_grey_and_explained():
    rdm = random_rdm(6)
    rdm[2, :] = rdm[:, 2] = np.nan
    ax = fs.plots.rdm(rdm)
    image = ax.images[0]
    assert np.ma.getmaskarray(image.get_array())[2].all()
    assert tuple(image.cmap.get_bad()) == to_rgba("0.6")
    assert "no value" in words(ax.figure)
    others = np.triu(np.ones((6, 6), bool), 1)
    others[2] = others[:, 2] = False
    ranks = (rankdata(rdm.values[others]) - 1) / (others.sum() - 1)
    np.testing.assert_allclose(cells(ax)[others], ranks)
    assert "no value" not in words(fs.plots.rdm(random_rdm(6)).figure)


@pytest.mark.parametrize("scaling", ["rank", "raw"])
@pytest.mark.parametrize("value", [0.0, np.nan, 3.0])
def test_an_rdm_without_variation_is_drawn(value, scaling):
    values = np.full((5, 5), value)
    np.fill_diagonal(values, 0)
    require_legible(fs.plots.rdm(make(values), scaling=scaling).figure)


def test_what_is_no_rdm_is_refused():
    rdm = random_rdm(4)
    with pytest.raises(InvalidInputError, match=r"fs\.plots\.gallery"):
        fs.plots.rdm(xr.concat([rdm, rdm], dim="subject"))
    with pytest.raises(InvalidInputError, match="diagonal"):
        fs.plots.rdm(1 - rdm)
    crooked = rdm.copy()
    crooked[0, 1] += 1
    with pytest.raises(InvalidInputError, match="not symmetric"):
        fs.plots.rdm(crooked)
    with pytest.raises(InvalidInputError, match="read_rdms"):
        fs.plots.rdm(rdm.values)
    with pytest.raises(InvalidInputError, match="nothing to show"):
        fs.plots.rdm(rdm[:0, :0])


def test_options_that_are_not_known_are_refused():
    rdm = random_rdm(4, list("abab"))
    for options, match in (
        ({"scaling": "ranks"}, "Did you mean 'rank'"),
        ({"order": "categry"}, "Did you mean 'category'"),
        ({"categories": "kind"}, "no coordinate"),
        ({"cmap": "virids"}, "Did you mean 'viridis'"),
        ({"max_images": 0}, "max_images"),
        ({"max_images": 2.5}, "max_images"),
        ({"ax": "left"}, "one matplotlib Axes"),
        ({"vmin": 1, "vmax": 0}, "must be below"),
        ({"thumbnails": 3}, "thumbnails"),
        ({"dpi": 0}, "dpi"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            fs.plots.rdm(rdm, **options)


def test_the_title_says_model_and_module_unless_told():
    rdm = random_rdm(3, model="alexnet", module="features.10")
    assert fs.plots.rdm(rdm).get_title() == "alexnet, features.10"
    random = rdm.assign_attrs(weights="random(seed=0)")
    assert fs.plots.rdm(random).get_title() == "alexnet, random(seed=0), features.10"
    assert fs.plots.rdm(rdm, title="own").get_title() == "own"
    assert fs.plots.rdm(rdm, title="").get_title() == ""
    one = xr.concat([rdm, rdm], dim="subject").assign_coords(subject=["S1", "S2"]).isel(subject=1)
    assert fs.plots.rdm(one).get_title() == "alexnet, features.10, subject S2"


# Pictures of the images


def picture(k, size=(40, 30)):
    return Image.new("RGB", size, (20 * k, 255 - 20 * k, 100))


@pytest.fixture
def folder(tmp_path):
    for k in range(5):
        picture(k).save(tmp_path / f"im{k:04d}.png")
    return tmp_path


def strips(ax):
    return [image for image in ax.get_children() if isinstance(image, BboxImage)]


def colours_of(strip):
    """The distinct opaque colours of a strip."""
    pixels = np.asarray(strip.get_array()).reshape(-1, 4)
    opaque = pixels[pixels[:, 3] > 0, :3]
    return {tuple(int(v) for v in colour) for colour in np.unique(opaque, axis=0)}


def own_colours():
    return {(20 * k, 255 - 20 * k, 100) for k in range(5)}


def test_thumbnails_come_from_folder_dict_arrays_image_set_or_path(folder):
    rdm = random_rdm(5, names=[f"im{k:04d}.png" for k in range(5)])
    files = {f"im{k:04d}.png": folder / f"im{k:04d}.png" for k in range(5)}
    sources = (
        folder,
        str(folder),
        files,
        {name: picture(k) for k, name in enumerate(files)},
        {name: np.asarray(picture(k)) for k, name in enumerate(files)},
        fs.read_images(folder),
    )
    for source in sources:
        ax = fs.plots.rdm(rdm, thumbnails=source)
        assert [colours_of(strip) for strip in strips(ax)] == [own_colours()] * 2
        require_legible(ax.figure)
    known = rdm.assign_coords(path=("image", [str(path) for path in files.values()]))
    assert colours_of(strips(fs.plots.rdm(known, thumbnails=True))[0]) == own_colours()


def test_a_folder_is_searched_by_stem_too(folder):
    rdm = random_rdm(5, names=[f"im{k:04d}" for k in range(5)])
    assert colours_of(strips(fs.plots.rdm(rdm, thumbnails=folder))[0]) == own_colours()


def test_thumbnails_stand_in_display_order_beside_their_cells(folder):
    names = [f"im{k:04d}.png" for k in range(5)]
    ax = fs.plots.rdm(random_rdm(5, names=names), thumbnails=folder, order=names[::-1])
    left, below = (np.asarray(strip.get_array()) for strip in strips(ax))
    for place, k in enumerate(reversed(range(5))):
        share = (place + 0.5) / 5
        expected = [20 * k, 255 - 20 * k, 100, 255]
        assert left[int(share * left.shape[0]), left.shape[1] // 2].tolist() == expected
        assert below[below.shape[0] // 2, int(share * below.shape[1])].tolist() == expected
    ax.figure.draw_without_rendering()
    box, edge = strips(ax)[0].get_window_extent(), ax.get_window_extent()
    assert box.x1 < edge.x0
    assert box.y0 == pytest.approx(edge.y0)
    assert box.y1 == pytest.approx(edge.y1)


def test_thumbnails_stand_upright(tmp_path):
    half = np.zeros((60, 60, 3), np.uint8)
    half[:30] = 255  # white above black
    ax = fs.plots.rdm(random_rdm(2, names=["a", "b"]), thumbnails={"a": half, "b": half})
    for strip in strips(ax):
        pixels = np.asarray(strip.get_array())
        rows = np.flatnonzero(pixels[..., 3].any(axis=1))
        columns = np.flatnonzero(pixels[rows[0], :, 3])
        first = pixels[rows[0] : rows[0] + 80, columns[0] + 20, 0]
        assert first[5] > 200
        assert first[-5] < 50


def test_many_thumbnails_are_staggered_and_do_not_cover_each_other_or_the_cells():
    rdm = random_rdm(92, [f"kind {k // 23}" for k in range(92)])
    pictures = {name: picture(k % 12) for k, name in enumerate(rdm.image.values)}
    ax = fs.plots.rdm(rdm, order="category", thumbnails=pictures)
    ax.figure.draw_without_rendering()
    left, below = (strip.get_window_extent() for strip in strips(ax))
    assert not left.overlaps(below)
    assert left.x1 < ax.get_window_extent().x0
    require_legible(ax.figure)


def test_staggered_thumbnails_go_outwards_row_by_row():
    n = 60
    rdm = random_rdm(n)
    pictures = {name: picture(k % 12) for k, name in enumerate(rdm.image.values)}
    ax = fs.plots.rdm(rdm, thumbnails=pictures)
    left, below = (np.asarray(strip.get_array()) for strip in strips(ax))
    rows = round(min(below.shape[:2]) / 96)
    assert rows > 1
    reach = rows / 2 - 0.5  # the outermost pictures are wider than their cells
    for k in range(n):
        along, out = (k + reach + 0.5) / (n + 2 * reach), (k % rows + 0.5) / rows
        expected = [20 * (k % 12), 255 - 20 * (k % 12), 100, 255]
        assert below[int(out * below.shape[0]), int(along * below.shape[1])].tolist() == expected
        assert left[int(along * left.shape[0]), int((1 - out) * left.shape[1])].tolist() == expected


def test_missing_pictures_are_grey_and_named_once(folder):
    names = [f"im{k:04d}.png" for k in range(5)]
    (folder / names[1]).write_bytes(b"no picture")
    rdm = random_rdm(5, names=names).assign_coords(
        path=(
            "image",
            [str(folder / name) for name in [names[0], names[1], "gone.png", *names[3:]]],
        )
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ax = fs.plots.rdm(rdm, thumbnails=True)
    (warning,) = caught
    assert issubclass(warning.category, FeatureStoreWarning)
    assert warning.filename == __file__
    assert "2 of 5" in str(warning.message)
    assert names[1] in str(warning.message)
    assert names[2] in str(warning.message)
    assert (153, 153, 153) in colours_of(strips(ax)[0])


def test_a_file_that_changed_since_is_not_shown(folder):
    images = fs.read_images(folder)
    rdm = random_rdm(5, names=list(images.names)).assign_coords(
        path=("image", images.coords["path"]), digest=("image", list(images.hex_digests))
    )
    fs.plots.rdm(rdm, thumbnails=True)
    picture(9).save(folder / "im0002.png")
    with pytest.warns(FeatureStoreWarning, match="im0002.*changed"):
        fs.plots.rdm(rdm, thumbnails=True)


def test_thumbnails_that_are_nowhere_are_an_error(tmp_path):
    rdm = random_rdm(3)
    with pytest.raises(InvalidInputError, match="no coordinate 'path'"):
        fs.plots.rdm(rdm, thumbnails=True)
    with pytest.raises(InvalidInputError, match="not one picture"):
        fs.plots.rdm(rdm, thumbnails={"other": picture(1)})
    with pytest.raises(InvalidInputError, match="no folder"):
        fs.plots.rdm(rdm, thumbnails=tmp_path / "nowhere")
    with pytest.raises(InvalidInputError, match="float64"):
        fs.plots.rdm(rdm, thumbnails={str(name): np.zeros((9, 9)) for name in rdm.image.values})


def test_the_92_images_are_shown_with_their_pictures(data_92, tmp_path):
    names = (data_92 / "images" / "names.txt").read_text().split()
    values = np.load(data_92 / "rdms" / "human_IT_fig1_mean_92x92.npy")
    kinds = [name.split("_")[1].removesuffix(".png") for name in names]
    rdm = make(values, names, kinds)
    path = tmp_path / "rdm.png"
    ax = fs.plots.rdm(rdm, order="category", thumbnails=data_92 / "images", path=path)
    require_legible(ax.figure)
    assert len(strips(ax)) == 2
    assert path.stat().st_size > 100_000


# Figures and files


def test_importing_the_plots_does_not_import_matplotlib():
    code = "import sys, featurestore as fs; fs.plots.rdm; print('matplotlib' in sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


def test_a_figure_of_its_own_is_pyplots_so_that_notebooks_show_it():
    ax = fs.plots.rdm(random_rdm(3))
    assert pyplot.get_fignums() == [ax.figure.number]
    assert pyplot.gca() is ax


def test_a_figure_that_is_saved_leaves_nothing_behind(tmp_path):
    fs.plots.rdm(random_rdm(2), path=tmp_path / "a.svg")
    assert pyplot.get_fignums() == []


def test_nothing_is_shown_and_the_backend_stays(monkeypatch, tmp_path):
    before = matplotlib.get_backend()

    def refuse(*_, **__):
        raise AssertionError("shown")

    monkeypatch.setattr(pyplot, "show", refuse)
    monkeypatch.setattr(matplotlib.figure.Figure, "show", refuse)
    fs.plots.rdm(random_rdm(3))
    fs.plots.rdm(random_rdm(3), path=tmp_path / "a.png")
    assert matplotlib.get_backend() == before


@pytest.mark.parametrize(
    ("suffix", "start"),
    [
        (".png", b"\x89PNG"),
        (".jpg", b"\xff\xd8"),
        (".JPEG", b"\xff\xd8"),
        (".svg", b"<?xml"),
        (".pdf", b"%PDF"),
    ],
)
def test_the_suffix_says_the_format(tmp_path, suffix, start):
    path = tmp_path / f"rdm{suffix}"
    ax = fs.plots.rdm(random_rdm(12, list("abcabcabcabc")), order="category", path=path)
    assert path.read_bytes().startswith(start)
    if start[:1] in b"\x89\xff":
        with Image.open(path) as image:
            expected = np.round(ax.figure.get_size_inches() * 200)
            np.testing.assert_allclose(image.size, expected, atol=1)
            assert image.info["dpi"] == pytest.approx((200, 200), abs=0.1)


def test_the_same_picture_gives_the_same_bytes(tmp_path):
    for suffix in ("png", "pdf"):
        paths = [tmp_path / f"{k}.{suffix}" for k in range(2)]
        for path in paths:
            fs.plots.rdm(random_rdm(5), path=path)
        assert b"CreationDate" not in paths[0].read_bytes()
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_a_file_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path):
    rdm, recorder = lazy(random_rdm(3))
    with pytest.raises(InvalidInputError, match=r"\.png, .*\.pdf"):
        fs.plots.rdm(rdm, path=tmp_path / "rdm.bmp")
    with pytest.raises(InvalidInputError, match="does not exist"):
        fs.plots.rdm(rdm, path=tmp_path / "nowhere" / "rdm.png")
    assert recorder.read == []
    assert pyplot.get_fignums() == []


def test_in_the_callers_axes_all_stays_between_the_neighbours():
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 8))
    rdm = random_rdm(12, [f"a long category {k // 4}" for k in range(12)])
    pictures = {name: picture(k) for k, name in enumerate(rdm.image.values)}
    assert fs.plots.rdm(rdm, order="category", ax=axes[0, 0]) is axes[0, 0]
    fs.plots.rdm(rdm, order="category", thumbnails=pictures, ax=axes[0, 1])
    fs.plots.rdm(rdm, ax=axes[1, 0])
    require_legible(figure)
    boxes = [ax.get_tightbbox() for ax in axes.flat]
    for k, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[k + 1 :])


def test_layout_engines_make_room():
    for layout in ("constrained", "tight"):
        figure, axes = pyplot.subplots(1, 3, figsize=(12, 4), layout=layout)
        rdm = random_rdm(92, [f"a long category {k // 23}" for k in range(92)])
        for ax in axes[:2]:
            fs.plots.rdm(rdm, order="category", ax=ax)
        axes[2].set_ylabel("somebody else's label")
        require_legible(figure)


def test_what_surrounds_the_axes_follows_when_they_shrink():
    figure, ax = pyplot.subplots(figsize=(8, 8), layout="constrained")
    fs.plots.rdm(random_rdm(40), ax=ax)
    assert "im0003.jpg" in words(figure)
    figure.set_size_inches(2.2, 2.2)
    figure.draw_without_rendering()
    assert "im0003.jpg" not in words(figure)  # no room for names any more
    require_legible(figure)


def test_a_title_of_the_caller_stays_when_all_is_laid_out_again():
    figure, ax = pyplot.subplots(figsize=(8, 8), layout="constrained")
    fs.plots.rdm(random_rdm(20), ax=ax, title="first")
    ax.set_title("second")
    figure.set_size_inches(3, 3)
    figure.draw_without_rendering()
    assert ax.get_title() == "second"


def test_figures_can_be_pickled():
    ax = fs.plots.rdm(random_rdm(12, list("abcabcabcabc")), order="category")
    again = pickle.loads(pickle.dumps(ax.figure))
    assert sorted(words(again)) == sorted(words(ax.figure))


def test_dark_styles_are_followed():
    with pyplot.style.context("dark_background"):
        ax = fs.plots.rdm(random_rdm(6, list("aabbcc")), order="category")
        (text, _) = [text for text in texts(ax.figure) if text.get_text() == "b"]
        assert to_rgba(text.get_color()) == to_rgba("white")


def test_texts_are_compared_by_their_own_dim():
    values = random_rdm(220).values
    rdm = make_rdm(values, xr.Coordinates({"text": [f"t{k}" for k in range(220)]}), dim="text")
    assert "200 of 220 texts shown" in words(fs.plots.rdm(rdm).figure)
