"""What a reader sees of a figure: texts and where they stand, pictures, RDMs to draw."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.image import BboxImage
from matplotlib.text import Text
from scipy.spatial.distance import pdist, squareform

from featurestore.rdms.structure import make_rdm

TOUCH_PX = 1.5  # antialiasing, and letters without descenders


def make(values, names=None, category=None, metric="correlation", **attrs):
    n = values.shape[-1]
    coords = {"image": np.array(names or [f"im{k:04d}.jpg" for k in range(n)], object)}
    if category is not None:
        coords["category"] = ("image", np.array(category, object))
    return make_rdm(values, xr.Coordinates(coords), attrs={"metric": metric} | attrs)


def random_rdm(n, category=None, seed=0, names=None, **attrs):
    points = np.random.default_rng(seed).normal(size=(n, 6))
    return make(squareform(pdist(points, "correlation")), names, category, **attrs)


def things(n=1854, n_categories=27, seed=0):
    """As many images as THINGS, with long names, in categories of very different sizes."""
    rng = np.random.default_rng(seed)
    kinds = np.array([f"category of things {k:02d}" for k in range(n_categories)], object)
    share = 1 / np.arange(1, n_categories + 1) ** 2
    which = np.concatenate(
        [np.arange(n_categories), rng.choice(n_categories, n - n_categories, p=share / share.sum())]
    )
    points = rng.normal(size=(n_categories, 20))[which] + rng.normal(size=(n, 20))
    names = [f"alligator_{k:04d}b.jpg" for k in range(n)]
    return make(squareform(pdist(points, "correlation")).astype("f4"), names, kinds[which])


def texts(figure):
    """All texts that are drawn and not empty."""
    hidden = {id(text) for ax in figure.findobj(Axes) for text in hidden_texts(ax)}
    found = figure.findobj(lambda artist: isinstance(artist, Text) and artist.get_visible())
    kept = {id(text): text for text in found if text.get_text().strip()}
    return [text for key, text in kept.items() if key not in hidden]


def hidden_texts(ax):
    """Labels of ticks that axes have and do not show, such as those beyond the limits."""
    if not ax.get_visible():
        yield from ax.findobj(Text)
    for axis in (ax.xaxis, ax.yaxis):
        low, high = sorted(axis.get_view_interval())
        for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
            if not low <= tick.get_loc() <= high or not axis.get_visible():
                yield from (tick.label1, tick.label2)


def words(figure):
    return [text.get_text() for text in texts(figure)]


def corners(text):
    """The four corners of a text as it is written, turned or not [pixels]."""
    angle = text.get_rotation()
    box = text.get_window_extent()
    if angle % 90 == 0:
        return np.array([[box.x0, box.y0], [box.x1, box.y0], [box.x1, box.y1], [box.x0, box.y1]])
    # A turned rectangle w × h has a bounding box of (w cos + h sin) × (w sin + h cos).
    cos, sin = np.cos(np.deg2rad(angle)), np.sin(np.deg2rad(angle))
    text.set_rotation(0)
    level = text.get_window_extent()
    text.set_rotation(angle)
    w, h = level.width, level.height
    flat = np.array([[-w, -h], [w, -h], [w, h], [-w, h]]) / 2
    middle = [(box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2]
    return flat @ np.array([[cos, sin], [-sin, cos]]) + middle


def overlap(a, b):
    """Whether two convex shapes cover each other by more than a touch (separating axes)."""
    for shape in (a, b):
        for p, q in zip(shape, np.roll(shape, -1, axis=0), strict=True):
            edge = q - p
            length = np.hypot(*edge)
            if not length:
                continue
            normal = np.array([-edge[1], edge[0]]) / length
            left, right = a @ normal, b @ normal
            if left.max() - TOUCH_PX <= right.min() or right.max() - TOUCH_PX <= left.min():
                return False
    return True


def collisions(figure):
    """Pairs of texts that cover each other."""
    figure.draw_without_rendering()
    shapes = [(text.get_text(), corners(text)) for text in texts(figure)]
    return [(a, b) for (a, x), (b, y) in combinations(shapes, 2) if overlap(x, y)]


def cut_off(figure):
    """Texts and pictures that reach beyond the figure."""
    figure.draw_without_rendering()
    page = figure.bbox
    out = []
    for text in texts(figure):
        xy = corners(text)
        if (xy < [page.x0 - 1, page.y0 - 1]).any() or (xy > [page.x1 + 1, page.y1 + 1]).any():
            out.append(text.get_text())
    for image in figure.findobj(BboxImage):
        box = image.get_window_extent()
        if box.x0 < -1 or box.y0 < -1 or box.x1 > page.x1 + 1 or box.y1 > page.y1 + 1:
            out.append(image)
    return out


def require_legible(figure):
    assert collisions(figure) == []
    assert cut_off(figure) == []
    assert min(text.get_fontsize() for text in texts(figure)) >= 5
