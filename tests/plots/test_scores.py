"""Bars and curves of scores: the right numbers, whiskers and bands, and names that can be read."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import xarray as xr
from matplotlib import pyplot
from matplotlib.colors import same_color
from scipy import stats

import featurestore as fs
from featurestore.errors import InvalidInputError
from tests.plots.looking import random_rdm, require_legible, texts, words

MODELS = ["alexnet", "vgg16", "resnet50", "vit_base_patch16_224.augreg2_in21k_ft_in1k", "cornet-s"]


def scores_of(seed=0, method="spearman", **coords):
    coords = coords or {"model": MODELS}
    values = np.random.default_rng(seed).uniform(0.1, 0.6, [len(v) for v in coords.values()])
    return xr.DataArray(values, coords=coords, dims=list(coords), attrs={"method": method})


def ceiling_of(lower=0.477, upper=0.577, method="spearman"):
    return xr.Dataset({"lower": lower, "upper": upper}, attrs={"method": method})


def heights(ax):
    return np.array(
        [bar.get_height() for bars in ax.containers if hasattr(bars, "patches") for bar in bars]
    )


def whiskers(ax):
    """Lower and upper ends of the error bars, by position."""
    (container,) = [c for c in ax.containers if hasattr(c, "has_yerr")]
    segments = container.lines[2][0].get_segments()
    return np.array([[s[0][1], s[1][1]] for s in segments])


def test_each_model_has_a_bar_in_the_given_order():
    scores = scores_of()
    ax = fs.plots.compare(scores)
    np.testing.assert_allclose(heights(ax), scores.values)
    assert [t.get_text() for t in ax.get_xticklabels()] == [
        *MODELS[:3],
        "vit_base_patch16…2_in21k_ft_in1k",
        MODELS[4],
    ]
    assert ax.get_ylabel().replace("\n", " ") == "Spearman's rho between RDMs"


@pytest.mark.parametrize(
    ("errors", "half"),
    [
        ("sem", stats.sem),
        ("sd", lambda x: np.std(x, ddof=1)),
        (
            "ci",
            lambda x: stats.t.interval(0.95, len(x) - 1, np.mean(x), stats.sem(x))[1] - np.mean(x),
        ),
    ],
)
def test_bars_over_subjects_are_means_with_whiskers_as_scipy_has_them(errors, half):
    scores = scores_of(model=MODELS, subject=range(7))
    ax = fs.plots.compare(scores, errors=errors)
    np.testing.assert_allclose(heights(ax), scores.values.mean(axis=1))
    expected = [[row.mean() - half(row), row.mean() + half(row)] for row in scores.values]
    np.testing.assert_allclose(whiskers(ax), expected)
    dots = np.concatenate(
        [np.asarray(c.get_offsets()) for c in ax.collections if "subject" in str(c.get_label())]
    )
    np.testing.assert_allclose(np.sort(dots[:, 1]), np.sort(scores.values.ravel()))
    assert any("7 subjects" in word for word in words(ax.figure))


def test_a_missing_subject_is_left_out_of_its_mean_only():
    scores = scores_of(model=MODELS, subject=range(5))
    scores[1, 2] = np.nan
    scores[3] = np.nan
    scores[4, 1:] = np.nan
    ax = fs.plots.compare(scores)
    expected = [np.nanmean(row) if np.isfinite(row).any() else np.nan for row in scores.values]
    np.testing.assert_allclose(heights(ax), expected)
    assert len(whiskers(ax)) == 3  # one has no value, one a single subject
    four = np.delete(scores.values[1], 2)
    ends = [four.mean() - stats.sem(four), four.mean() + stats.sem(four)]
    np.testing.assert_allclose(whiskers(ax)[1], ends)
    assert words(ax.figure).count(" no value") == 1


def test_no_whiskers_on_demand():
    ax = fs.plots.compare(scores_of(model=MODELS, subject=range(5)), errors=None)
    assert not any(hasattr(c, "has_yerr") for c in ax.containers)


def test_bounds_of_a_dataset_are_the_whiskers():
    score = scores_of()
    found = xr.Dataset(
        {"score": score, "lower": score - 0.05, "upper": score + 0.2},
        attrs={"method": "spearman", "confidence": 0.9},
    )
    ax = fs.plots.compare(found)
    np.testing.assert_allclose(whiskers(ax), np.stack([score - 0.05, score + 0.2], axis=1))
    assert "90 % CI" in words(ax.figure)


def test_the_results_of_this_package_are_drawn_as_they_are():
    target = xr.concat([random_rdm(12, seed=k) for k in range(4)], dim="subject")
    target = target.assign_coords(subject=list("ABCD"))
    models = xr.concat([random_rdm(12, seed=9 + k) for k in range(3)], dim="model")
    models = models.assign_coords(model=MODELS[:3])
    scores = fs.compare_rdms(models, target, method="spearman")
    ax = fs.plots.compare(scores, ceiling=fs.noise_ceiling(target, method="spearman"))
    np.testing.assert_allclose(heights(ax), scores.mean("subject").transpose("model").values)
    require_legible(ax.figure)
    bootstrapped = fs.bootstrap_comparison(models, target[0], n=50, over="image")
    ax = fs.plots.compare(bootstrapped)
    expected = np.stack([bootstrapped.lower, bootstrapped.upper], axis=1)
    np.testing.assert_allclose(whiskers(ax), expected)
    assert "95 % CI" in words(ax.figure)


def test_the_ceiling_is_a_band_and_explained():
    ax = fs.plots.compare(scores_of(), ceiling=ceiling_of())
    (band,) = [patch for patch in ax.patches if patch.get_label() == "noise ceiling"]
    assert (band.get_y(), band.get_y() + band.get_height()) == pytest.approx((0.477, 0.577))
    assert "noise ceiling" in words(ax.figure)
    low, high = ax.get_ylim()
    assert low <= 0
    assert high > 0.577


def test_another_dim_has_colours_and_a_legend():
    scores = scores_of(model=MODELS, target=["monkey IT", "human IT"])
    ax = fs.plots.compare(scores)
    np.testing.assert_allclose(heights(ax), scores.values.T.ravel())
    x = [bar.get_x() + bar.get_width() / 2 for bars in ax.containers for bar in bars]
    assert np.all(np.array(x[:5]) < np.array(x[5:]))
    assert {"monkey IT", "human IT"} <= set(words(ax.figure))
    require_legible(ax.figure)


def test_groups_stand_together_and_share_a_colour_and_a_mean():
    scores = scores_of().assign_coords(
        kind=("model", ["random", "trained", "random", "trained", "random"])
    )
    ax = fs.plots.compare(scores, groups="kind", group_means=True)
    order = [0, 2, 4, 1, 3]
    np.testing.assert_allclose(heights(ax), scores.values[order])
    assert [t.get_text() for t in ax.get_xticklabels()][:3] == ["alexnet", "resnet50", "cornet-s"]
    first, second = (bars for bars in ax.containers)
    assert len(first) == 3
    assert not same_color(first[0].get_facecolor(), second[0].get_facecolor())
    (lines,) = [c for c in ax.collections if c.get_label() == "mean of the group"]
    means = [segment[0][1] for segment in lines.get_segments()]
    np.testing.assert_allclose(
        means, [scores.values[order[:3]].mean(), scores.values[order[3:]].mean()]
    )
    assert {"random", "trained", "mean of the group"} <= set(words(ax.figure))


def test_one_number_is_one_bar():
    ax = fs.plots.compare(scores_of()[1])
    np.testing.assert_allclose(heights(ax), scores_of().values[1])
    assert ax.get_xticklabels()[0].get_text() == "vgg16"


@pytest.mark.parametrize("n", [1, 3, 12, 60])
@pytest.mark.parametrize(
    "name", ["m{}", "timm/some_very_long_model_name_{}.in21k_ft_in1k", "Größe $x_{}$"]
)
def test_names_of_bars_never_overlap(n, name):
    scores = scores_of(model=[name.format(k) for k in range(n)], subject=range(3))
    require_legible(fs.plots.compare(scores, ceiling=ceiling_of()).figure)


def test_scores_that_cannot_be_drawn_are_refused():
    scores = scores_of()
    many = scores_of(model=MODELS, target=["a"], session=[1])
    for call, match in (
        (lambda: fs.plots.compare(scores.values), "DataArray"),
        (lambda: fs.plots.compare(many), r"isel\(session=0\)"),
        (lambda: fs.plots.compare(scores_of(a=[1], b=[2])), "dim="),
        (lambda: fs.plots.compare(scores, dim="modl"), "Did you mean 'model'"),
        (lambda: fs.plots.compare(scores, errors="se"), "Did you mean 'sem'"),
        (lambda: fs.plots.compare(scores, groups="kind"), "no coordinate"),
        (lambda: fs.plots.compare(scores, group_means=True), "groups="),
        (lambda: fs.plots.compare(scores, ceiling=ceiling_of(method="pearson")), "same method"),
        (lambda: fs.plots.compare(scores, ceiling=0.5), "noise_ceiling"),
        (lambda: fs.plots.compare(scores, ceiling=ceiling_of().expand_dims(model=2)), "isel"),
        (lambda: fs.plots.compare(xr.Dataset({"a": scores})), "'score'"),
        (lambda: fs.plots.layers(scores), "no dim 'module'"),
        (lambda: fs.plots.layers({}), "empty"),
    ):
        with pytest.raises(InvalidInputError, match=match):
            call()


# Curves

MODULES = [f"features.{k}" for k in range(13)] + ["avgpool"] + [f"classifier.{k}" for k in range(7)]


def lines_of(ax):
    return {line.get_label(): line for line in ax.lines}


def test_each_model_is_a_line_over_the_modules_with_a_band():
    scores = scores_of(model=["alexnet", "vgg16"], module=MODULES, subject=range(6))
    ax = fs.plots.layers(scores, ceiling=ceiling_of())
    means, half = scores.values.mean(axis=2), stats.sem(scores.values, axis=2)
    for k, name in enumerate(["alexnet", "vgg16"]):
        line = lines_of(ax)[name]
        np.testing.assert_allclose(line.get_xdata(), np.arange(21))
        np.testing.assert_allclose(line.get_ydata(), means[k])
        vertices = ax.collections[k].get_paths()[0].vertices
        for x in range(21):
            ends = vertices[vertices[:, 0] == x, 1]
            assert ends.min() == pytest.approx(means[k, x] - half[k, x])
            assert ends.max() == pytest.approx(means[k, x] + half[k, x])
    assert {"alexnet", "vgg16", "noise ceiling", "± SEM, 6 subjects"} <= set(words(ax.figure))
    require_legible(ax.figure)


def test_a_module_without_a_score_leaves_no_gap():
    scores = scores_of(module=MODULES)
    scores[4] = np.nan
    (line,) = fs.plots.layers(scores).lines
    assert line.get_xdata().tolist() == [k for k in range(21) if k != 4]


@pytest.mark.parametrize("n", [1, 2, 12, 21, 150])
def test_names_of_modules_are_thinned_until_they_can_be_read(n):
    names = [f"visual.transformer.resblocks.{k}.mlp.c_fc" for k in range(n)]
    ax = fs.plots.layers(scores_of(model=["a", "b"], module=names))
    require_legible(ax.figure)
    ticks = [t.get_text() for t in ax.get_xticklabels()]
    assert len(ticks) == n if n < 30 else len(ticks) >= 30


def test_models_with_other_modules_share_an_axis_of_relative_depth():
    short, long = scores_of(module=["conv1", "conv2", "fc"]), scores_of(module=MODULES)
    ax = fs.plots.layers({"small": short, "large": long})
    lines = lines_of(ax)
    assert lines["small"].get_xdata().tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(lines["large"].get_xdata(), np.linspace(0, 1, 21))
    assert "relative depth" in ax.get_xlabel()
    same = fs.plots.layers({"one": long, "other": long})
    assert [t.get_text() for t in same.get_xticklabels()] == MODULES


def test_scores_of_several_kinds_have_no_common_axis():
    with pytest.raises(InvalidInputError, match="common axis"):
        fs.plots.layers(
            {"a": scores_of(module=["x"]), "b": scores_of(module=["x"], method="pearson")}
        )


def test_many_lines_are_told_apart():
    ax = fs.plots.layers(scores_of(model=[f"m{k}" for k in range(20)], module=MODULES))
    looks = {(line.get_color(), line.get_linestyle()) for line in ax.lines}
    assert len(looks) == 20


# Both


@pytest.mark.parametrize("plot", [fs.plots.compare, fs.plots.layers])
def test_scores_are_drawn_where_the_caller_wants_and_saved(plot, tmp_path):
    scores = scores_of(module=MODULES, subject=range(3))
    figure, axes = pyplot.subplots(2, 2, figsize=(10, 8))
    for ax in axes.flat:
        assert plot(scores, ax=ax, title="One of four") is ax
    require_legible(figure)
    boxes = [ax.get_tightbbox() for ax in axes.flat]
    for k, one in enumerate(boxes):
        assert not any(one.overlaps(other) for other in boxes[k + 1 :])
    pickle.loads(pickle.dumps(figure))
    pyplot.close("all")
    for suffix in ("png", "jpg", "svg", "pdf"):
        plot(scores, path=tmp_path / f"scores.{suffix}")
        assert (tmp_path / f"scores.{suffix}").stat().st_size > 1000
    assert pyplot.get_fignums() == []


def test_names_with_dollars_are_no_formulas():
    ax = fs.plots.compare(scores_of(model=["$a$", "b"], target=["$x$", "y"]))
    for text in texts(ax.figure):
        if "$" in text.get_text():
            assert not text.get_parse_math()
