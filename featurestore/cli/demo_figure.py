"""The demo's picture: a representational dissimilarity matrix with the photographs on its axes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from scipy.spatial.distance import pdist, squareform

from featurestore.optional import import_optional

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr

THUMBNAIL_PX = 96


def draw_rdm(features: xr.DataArray, path: Path) -> Path:
    """Draw one minus the correlation between the images' features.

    Parameters
    ----------
    features : DataArray (image, ...)
        With the coordinates ``path`` and ``category``.
    path : Path
        Where the PNG goes.

    Returns
    -------
    Path
        The PNG.
    """
    matplotlib = import_optional("matplotlib", "demo")
    matplotlib.use("Agg")
    pyplot = import_optional("matplotlib.pyplot", "demo")
    features = features.sortby("category")
    n = features.sizes["image"]
    rdm = squareform(pdist(features.values.reshape(n, -1), metric="correlation"))
    figure, axes = pyplot.subplots(figsize=(10, 9))
    shown = axes.imshow(rdm, cmap="viridis", vmin=0)
    axes.set(xticks=[], yticks=[])
    for spine in axes.spines.values():
        spine.set_visible(False)
    for number, picture in enumerate(features["path"].values):
        _thumbnail(axes, str(picture), (number, -0.075), across=True)
        _thumbnail(axes, str(picture), (-0.075, number), across=False)
    _brackets(axes, list(features["category"].values))
    bar = figure.colorbar(shown, ax=axes, shrink=0.7, pad=0.03)
    bar.set_label("1 − correlation")
    axes.set_title(f"EfficientNet-Lite0, {features.name}: {n} photographs", pad=16)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    pyplot.close(figure)
    return path


def _thumbnail(axes: Any, picture: str, at: tuple[float, float], *, across: bool) -> None:
    offsetbox = import_optional("matplotlib.offsetbox", "demo")
    with Image.open(picture) as image:
        small = image.convert("RGB")
        side = min(small.size)
        left, top = (small.width - side) // 2, (small.height - side) // 2
        small = small.crop((left, top, left + side, top + side))
        small = small.resize((THUMBNAIL_PX, THUMBNAIL_PX), Image.Resampling.LANCZOS)
    # One coordinate counts images, the other is a share of the axes.
    transform = axes.get_xaxis_transform() if across else axes.get_yaxis_transform()
    box = offsetbox.AnnotationBbox(
        offsetbox.OffsetImage(np.asarray(small), zoom=22 / THUMBNAIL_PX),
        (at[0], -0.03) if across else (-0.03, at[1]),
        xycoords=transform,
        frameon=False,
        pad=0,
    )
    axes.add_artist(box)


def _brackets(axes: Any, categories: list[str]) -> None:
    """Name each run of equal categories along the left and lower edge."""
    start = 0
    for stop in range(1, len(categories) + 1):
        if stop < len(categories) and categories[stop] == categories[start]:
            continue
        line = {"color": "0.3", "linewidth": 1, "clip_on": False}
        low, high, middle = start - 0.4, stop - 0.6, (start + stop - 1) / 2
        below, beside = axes.get_xaxis_transform(), axes.get_yaxis_transform()
        axes.plot([low, high], [-0.06, -0.06], transform=below, **line)
        axes.text(middle, -0.075, categories[start], transform=below, ha="center", va="top")
        axes.plot([-0.06, -0.06], [low, high], transform=beside, **line)
        axes.text(-0.075, middle, categories[start], transform=beside, ha="right", va="center")
        if stop < len(categories):
            axes.axhline(stop - 0.5, color="white", linewidth=1)
            axes.axvline(stop - 0.5, color="white", linewidth=1)
        start = stop
