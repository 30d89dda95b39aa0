"""Colours of scores, the noise ceiling behind them, and the legend beside them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.optional import import_optional
from featurestore.plots.lettering import PLAIN, font_size, ink, wrapped

if TYPE_CHECKING:
    from collections.abc import Sequence

# Okabe and Ito's colours for everyone, but black and yellow, which vanish on some backgrounds.
PALETTE = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")


def draw_ceiling(ax: Any, bounds: tuple[float, float] | None) -> list[Any]:
    """Draw a noise ceiling as a band across axes.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Where to.
    bounds : (float, float), optional
        Lower and upper bound.

    Returns
    -------
    list of matplotlib.artist.Artist
        What the legend explains.
    """
    if bounds is None:
        return []
    low, high = bounds
    band = ax.axhspan(
        low, high, color=ink(), alpha=0.18, linewidth=0, zorder=0, label="noise ceiling"
    )
    if high - low < 1e-9:
        ax.axhline(low, color=ink(), alpha=0.4, linewidth=1, zorder=0)
    return [band]


def colours(n: int) -> list[Any]:
    """Return colours that people with any colour vision can tell apart.

    Parameters
    ----------
    n : int
        How many.

    Returns
    -------
    list of matplotlib colours
        Okabe and Ito's up to 6; steps of viridis beyond.
    """
    if n <= len(PALETTE):
        return list(PALETTE[:n])
    ramp = import_optional("matplotlib", "plot").colormaps["viridis"]
    return [ramp(x) for x in np.linspace(0.02, 0.92, n)]


def draw_legend(ax: Any, handles: Sequence[Any]) -> None:
    """Explain colours beside axes, where nothing is covered.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        The axes.
    handles : sequence of matplotlib.artist.Artist
        With labels.
    """
    if not handles:
        return
    legend = ax.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.01, 1.0), frameon=False,
        fontsize=font_size(0.85), borderaxespad=0.0, handlelength=1.4,
    )  # fmt: skip
    for text in legend.get_texts():
        text.set(**PLAIN)


def name_scores(ax: Any, label: str, height: float) -> None:
    """Write beside the axis what scores are, in lines that are no longer than the axis.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        The axes.
    label : str
        From `label_of`.
    height : float
        Of the axes [inches].
    """
    text, letters = wrapped(ax.figure, label, max(height, 0.8), font_size(), 6.0)
    ax.set_ylabel(text, fontsize=letters)


def plain_axes(ax: Any) -> None:
    """Leave out the edges that say nothing.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        The axes.
    """
    ax.spines[["top", "right"]].set_visible(False)
