"""Scores over the depth of networks."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.optional import import_optional
from featurestore.plots.canvas import open_canvas
from featurestore.plots.files import Target
from featurestore.plots.lettering import font_size, ink, name_ticks
from featurestore.plots.palette import (
    PALETTE,
    colours,
    draw_ceiling,
    draw_legend,
    name_scores,
    plain_axes,
)
from featurestore.plots.scores import require_ceiling, tidy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from featurestore.plots.scores import Floats, Scores, Series
    from featurestore.typing import PathLike

MODULE_IN, LEAST_IN, MOST_IN, HEIGHT_IN = 0.3, 3.6, 9.0, 3.2
MANY = 40  # modules; a curve of more has no markers
LINES = ("-", "--", ":", "-.")
MARKERS = ("o", "s", "^", "D")


def layers(
    scores: xr.DataArray | xr.Dataset | Mapping[Any, xr.DataArray | xr.Dataset],
    *,
    ceiling: xr.Dataset | None = None,
    dim: str = "module",
    over: str = "subject",
    errors: str | None = "sem",
    title: str = "",
    ax: Any = None,
    path: PathLike | None = None,
    dpi: int = 200,
) -> Any:
    """Show how scores change along the modules of networks.

    Parameters
    ----------
    scores : DataArray (module,), (module, subject) or (module, model, …), Dataset, or mapping
        What `compare_rdms` returned, modules in the order of the network. One more dim, such as
        ``model``, has a line each. A Dataset holds ``score``, ``lower`` and ``upper``. A dict
        from names to these is for models whose modules have different names: the axis is then the
        relative depth, 0 for the first module and 1 for the last.
    ceiling : Dataset, optional
        What `noise_ceiling` returned, with the same method: drawn as a band.
    dim : str
        What is along the axis.
    over : str
        The dim to take the mean over, if there is one.
    errors : str, optional
        What the band around a line is: ``"sem"``, ``"ci"``, ``"sd"`` as for `compare`, or None.
        A Dataset's bounds go first.
    title : str
        Stands above.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a figure of its own.
    path : str or os.PathLike, optional
        Save the whole figure: ``.png``, ``.jpg``, ``.svg`` or ``.pdf``.
    dpi : int
        Resolution of PNG and JPG [dots per inch].

    Returns
    -------
    matplotlib.axes.Axes
        Modules are named below it, every second or third where there is no room for all.

    Raises
    ------
    InvalidInputError
        If the scores have too many dims, mix methods, or the ceiling is one of another method.
    """
    Target.of(path, dpi)
    if isinstance(scores, Mapping):
        tidied = {str(name): tidy(one, dim, over, errors, (dim,)) for name, one in scores.items()}
    else:
        tidied = {"": tidy(scores, dim, over, errors, (dim,))}
    first = _require_alike(tidied)
    bounds = require_ceiling(ceiling, first.method)
    common = all(one.names == first.names for one in tidied.values())
    n = max(len(one.names) for one in tidied.values())
    width = float(np.clip(MODULE_IN * n, LEAST_IN, MOST_IN))
    canvas = open_canvas(ax, (width, HEIGHT_IN), path, dpi)
    drawn = canvas.ax
    lines = [
        (_name(name, series.name), _depths(len(one.names), relative=not common), series)
        for name, one in tidied.items()
        for series in one.series
    ]
    handles = _draw(drawn, lines, first.spread)
    handles += draw_ceiling(drawn, bounds)
    drawn.set_title(title, fontsize=font_size(1.1))
    plain_axes(drawn)
    draw_legend(drawn, handles)
    if common:
        drawn.set_xlim(-0.5, n - 0.5)
    else:
        drawn.set_xlabel(f"relative depth (first {dim} 0, last {dim} 1)")
    canvas.settle(partial(_write, drawn, first.names if common else (), first.label))
    return drawn


def _write(ax: Any, names: Sequence[str], label: str, size: tuple[float, float]) -> Sequence[Any]:
    """Write what the modules and the numbers are."""
    name_scores(ax, label, size[1])
    if names:
        name_ticks(ax, range(len(names)), names, at="x")
    return ()


def _draw(ax: Any, lines: Sequence[tuple[str, Floats, Series]], spread: str) -> list[Any]:
    """Draw lines and the bands around them; return what the legend explains."""
    handles = []
    few = len(lines) <= len(PALETTE) * len(LINES)
    palette = list(PALETTE) * len(LINES) if few else colours(len(lines))
    has_band = False
    for k, (name, x, series) in enumerate(lines):
        kind = k // len(PALETTE) % len(LINES)
        # A module without a score leaves no gap in the line of the others.
        there = np.isfinite(series.middle)
        marker = MARKERS[kind] if len(x) <= MANY else ""
        (line,) = ax.plot(
            x[there], series.middle[there], color=palette[k], label=name, marker=marker,
            markersize=3.5, linewidth=1.6, linestyle=LINES[kind], zorder=3,
        )  # fmt: skip
        if name:
            handles.append(line)
        band = there & np.isfinite(series.low) & np.isfinite(series.high)
        if band.any():
            has_band = True
            low, high = series.low[band], series.high[band]
            style = {"color": palette[k], "alpha": 0.25, "zorder": 2}
            ax.fill_between(x[band], low, high, linewidth=0, **style)
            if band.sum() == 1:  # nothing to fill
                ax.vlines(x[band], low, high, linewidth=6, **style)
    if has_band:
        patches = import_optional("matplotlib.patches", "plot")
        colour = palette[0] if len(lines) == 1 else ink()
        handles.append(patches.Patch(color=colour, alpha=0.25, linewidth=0, label=spread))
    return handles


def _depths(n: int, *, relative: bool) -> Floats:
    if not relative:
        return np.arange(n, dtype=np.float64)
    return np.linspace(0.0, 1.0, n) if n > 1 else np.zeros(1)


def _name(model: str, series: str) -> str:
    return ", ".join(part for part in (model, series) if part)


def _require_alike(tidied: Mapping[str, Scores]) -> Scores:
    if not tidied:
        raise InvalidInputError("The dict of scores is empty, so there is nothing to show.")
    labels = sorted({one.label for one in tidied.values()})
    if len(labels) > 1:
        raise InvalidInputError(
            f"Scores of several kinds ({'; '.join(labels)}) have no common axis."
        )
    return next(iter(tidied.values()))
