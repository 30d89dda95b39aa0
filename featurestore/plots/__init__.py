"""Pictures of geometries and scores; needs matplotlib (``pip install "featurestore[plot]"``).

Every function draws into ``ax=`` or into a figure of its own, returns the Axes, saves with
``path=``, and never calls ``show()``. Names are resolved on first use, so that importing this
loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.plots.arrangement import mds as mds
    from featurestore.plots.bars import compare as compare
    from featurestore.plots.curves import layers as layers
    from featurestore.plots.grid import matrix as matrix
    from featurestore.plots.heatmap import rdm as rdm
    from featurestore.plots.panels import gallery as gallery

_HOME = {
    "compare": "featurestore.plots.bars",
    "gallery": "featurestore.plots.panels",
    "layers": "featurestore.plots.curves",
    "matrix": "featurestore.plots.grid",
    "mds": "featurestore.plots.arrangement",
    "rdm": "featurestore.plots.heatmap",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'featurestore.plots' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return list(__all__)
