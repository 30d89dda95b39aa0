"""The tests' own eyes: they would see what a reader would complain about."""

from __future__ import annotations

import pytest
from matplotlib import pyplot

from tests.plots.looking import collisions, cut_off


@pytest.mark.parametrize("angle", [0, 45, 90])
def test_texts_that_cover_each_other_are_seen(angle):
    figure = pyplot.figure(figsize=(4, 4))
    figure.text(0.5, 0.5, "one long text", rotation=angle, ha="center", va="center")
    figure.text(0.5, 0.52, "another one", ha="center", va="center", rotation=angle)
    assert len(collisions(figure)) == 1


@pytest.mark.parametrize(("angle", "far"), [(0, 0.06), (45, 0.09), (90, 0.4)])
def test_texts_beside_each_other_are_not_mistaken(angle, far):
    figure = pyplot.figure(figsize=(4, 4))
    figure.text(0.5, 0.3, "one long text", rotation=angle, ha="center", va="center")
    figure.text(0.5, 0.3 + far, "another one", ha="center", va="center", rotation=angle)
    assert collisions(figure) == []


def test_what_is_cut_off_is_seen():
    figure = pyplot.figure(figsize=(2, 2))
    figure.text(0.9, 0.5, "beyond the edge")
    figure.text(0.1, 0.5, "inside")
    assert cut_off(figure) == ["beyond the edge"]


def test_ticks_beyond_the_limits_are_not_texts():
    figure, ax = pyplot.subplots()
    ax.set(xlim=(0, 1), xticks=[0, 1, 2], xticklabels=["a", "b", "far away"])
    assert cut_off(figure) == []
