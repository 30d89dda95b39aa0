"""Names: shortened without becoming the same, moved no further than needed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot
from scipy.optimize import minimize

from featurestore.plots.crowd import place_names, push_apart
from featurestore.plots.lettering import measure, name_ticks, shorten, spread
from tests.plots.looking import require_legible, texts


@given(st.lists(st.text(min_size=1, max_size=80), max_size=12), st.integers(8, 40))
def test_different_names_stay_different(names, most):
    lines = [" ".join(name.split()) for name in names]
    short = shorten(names, most)
    assert len(set(short)) == len(set(lines))
    for line, cut in zip(lines, short, strict=True):
        assert cut == line or len(cut) < len(line) or "…" in cut


def test_short_names_stay_as_they_are():
    assert shorten(["a", "b c", 3]) == ["a", "b c", "3"]


def test_long_names_are_cut_to_what_tells_them_apart():
    names = [f"a_folder/{'x' * 50}_{k}_{'y' * 50}.png" for k in range(12)]
    short = shorten(names, 32)
    assert max(map(len, short)) <= 34
    for k, name in enumerate(short):
        assert f"_{k}_" in name


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 10), st.floats(0.1, 1.2)), min_size=1, max_size=8),
)
def test_things_on_a_line_move_as_little_as_possible(pairs):
    pairs.sort()
    wanted, widths = np.array([p[0] for p in pairs]), np.array([p[1] for p in pairs])
    places = spread(wanted, widths, 0.0, 10.0)
    assert places is not None
    gaps = (widths[:-1] + widths[1:]) / 2
    assert (np.diff(places) >= gaps - 1e-9).all()
    assert places[0] >= widths[0] / 2 - 1e-9
    assert places[-1] <= 10 - widths[-1] / 2 + 1e-9
    ends = [
        {"type": "ineq", "fun": lambda x: np.diff(x) - gaps},
        {"type": "ineq", "fun": lambda x: [x[0] - widths[0] / 2, 10 - widths[-1] / 2 - x[-1]]},
    ]
    best = minimize(lambda x: ((x - wanted) ** 2).sum(), places, constraints=ends, method="SLSQP")
    assert ((places - wanted) ** 2).sum() <= best.fun + 1e-4


def test_things_that_do_not_fit_have_no_places():
    assert spread(np.array([1.0, 2.0]), np.array([3.0, 3.0]), 0, 5) is None


@pytest.mark.parametrize("at", ["x", "y"])
@pytest.mark.parametrize("n", [1, 3, 20, 300])
def test_ticks_are_thinned_until_they_do_not_overlap(at, n):
    figure, ax = pyplot.subplots(figsize=(5, 5), layout="constrained")
    ax.set(xlim=(-0.5, n - 0.5), ylim=(-0.5, n - 0.5))
    (ax.set_yticks if at == "x" else ax.set_xticks)([])
    names = [f"features.module.{k}" for k in range(n)]
    name_ticks(ax, range(n), names, at=at)
    require_legible(figure)
    shown = [text.get_text() for text in texts(figure)]
    assert shown == names[:: -(-n // len(shown))]
    assert len(shown) == n if n < 30 else 10 < len(shown) < n


def test_texts_are_measured_as_they_are_drawn():
    figure = pyplot.figure()
    text = figure.text(0.5, 0.5, "Größe $x$", fontsize=9, parse_math=False)
    box = text.get_window_extent()
    width, height = measure(figure, ["Größe $x$"], 9)[0] * figure.dpi
    assert (width, height) == pytest.approx((box.width, box.height))


@settings(max_examples=40, deadline=None)
@given(n=st.integers(1, 60), seed=st.integers(0, 99), together=st.booleans())
def test_squares_are_pushed_apart_and_stay_in_the_plane(n, seed, together):
    points = np.random.default_rng(seed).uniform(0, 6, size=(n, 2))
    if together:
        points[:] = 3
    places = push_apart(points, 0.3, (6, 6))
    gap = np.abs(places[:, None] - places[None]).max(axis=2) + 9 * np.eye(n)
    assert gap.min() >= 0.3 - 1e-9
    assert places.min() >= 0.15 - 1e-9
    assert places.max() <= 5.85 + 1e-9


def test_squares_that_do_not_overlap_stay_where_they_are():
    points = np.array([[1.0, 1.0], [3.0, 1.0], [1.0, 4.0]])
    np.testing.assert_allclose(push_apart(points, 0.5, (6, 6)), points, atol=1e-3)


def test_names_cover_no_dot_and_no_other_name():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 5, size=(30, 2))
    boxes = np.tile([0.8, 0.12], (30, 1))
    found = place_names(points, boxes, 0.04, (5, 5))
    kept = [(*place, place[0] + 0.8, place[1] + 0.12) for place in found if place is not None]
    assert len(kept) > 20
    for k, (a, b, c, d) in enumerate(kept):
        assert a >= 0
        assert b >= 0
        assert c <= 5
        assert d <= 5
        for e, f, g, h in kept[k + 1 :]:
            assert c <= e or g <= a or d <= f or h <= b
        assert not ((points > [a, b]) & (points < [c, d])).all(axis=1).any()
