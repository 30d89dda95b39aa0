"""The demo's picture: a representational dissimilarity matrix with the photographs on its axes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import xarray as xr


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
    from featurestore.plots import heatmap
    from featurestore.rdms.build import rdm

    n = features.sizes["image"]
    title = f"EfficientNet-Lite0, {features.name}: {n} photographs"
    heatmap.rdm(
        rdm(features, metric="correlation"),
        scaling="raw",
        order="category",
        thumbnails=True,
        title=title,
        path=path,
    )
    return path
