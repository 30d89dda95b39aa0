"""Scores of models side by side."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.optional import import_optional
from featurestore.plots.canvas import open_canvas
from featurestore.plots.files import Target
from featurestore.plots.lettering import font_size, ink, name_ticks
from featurestore.plots.palette import colours, draw_ceiling, draw_legend, name_scores, plain_axes
from featurestore.plots.scores import PREFERRED, require_ceiling, tidy

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from featurestore.plots.scores import Floats, Scores
    from featurestore.typing import PathLike

BAR_IN, LEAST_IN, MOST_IN, HEIGHT_IN = 0.42, 1.6, 14.0, 3.2
WIDTH = 0.8  # of a bar, or of the bars of one model together
BETWEEN_GROUPS = 0.6
MANY_COLOURS = 3


def compare(
    scores: xr.DataArray | xr.Dataset,
    *,
    ceiling: xr.Dataset | None = None,
    dim: str | None = None,
    over: str = "subject",
    errors: str | None = "sem",
    groups: str | None = None,
    group_means: bool = False,
    title: str = "",
    ax: Any = None,
    path: PathLike | None = None,
    dpi: int = 200,
) -> Any:
    """Show scores as bars, with error bars and the noise ceiling.

    Parameters
    ----------
    scores : DataArray (model,), (model, subject) or (model, target, …), or Dataset
        What `compare_rdms` returned. One more dim makes neighbouring bars in several colours. A
        Dataset holds ``score``, and ``lower`` and ``upper`` as ends of the error bars, such as a
        bootstrap's.
    ceiling : Dataset, optional
        What `noise_ceiling` returned, with the same method: drawn as a band.
    dim : str, optional
        What has a bar each; by default ``model``, ``module``, or the only dim.
    over : str
        The dim to take the mean over, such as ``"subject"``, if there is one; each subject is a
        dot. Subjects without a value (NaN) are left out of that mean.
    errors : str, optional
        Error bars over subjects: ``"sem"``, the standard error of the mean; ``"ci"``, its 95 %
        interval by Student's t; ``"sd"``; or None. A Dataset's bounds go first.
    groups : str, optional
        A coordinate along `dim`: bars of a group stand together and share a colour.
    group_means : bool
        Whether to draw the mean of each group's bars as a line across them.
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
        Never shown: call ``plt.show()`` in a script.

    Raises
    ------
    InvalidInputError
        If the scores have too many dims, the ceiling is one of another method, or an option is
        not known.
    """
    Target.of(path, dpi)
    tidied = tidy(scores, dim, over, errors, PREFERRED)
    bounds = require_ceiling(ceiling, tidied.method)
    if group_means and groups is None:
        raise InvalidInputError("group_means=True needs groups=, the coordinate that says which.")
    plan = _plan(tidied, None if groups is None else _kinds(scores, tidied, groups))
    per_bar = BAR_IN if len(tidied.series) < MANY_COLOURS else BAR_IN / 2
    width = float(np.clip(per_bar * len(plan.bars) + 0.3, LEAST_IN, MOST_IN))
    canvas = open_canvas(ax, (width, HEIGHT_IN), path, dpi)
    drawn = canvas.ax
    handles = _draw_bars(drawn, plan, spread=tidied.spread, over=over)
    if group_means:
        handles.append(_draw_means(drawn, plan))
    handles += draw_ceiling(drawn, bounds)
    drawn.axhline(0, color=ink(), linewidth=0.8, zorder=1)
    drawn.set_xlim(plan.places[0] - 0.6, plan.places[-1] + 0.6)
    drawn.set_title(title, fontsize=font_size(1.1))
    plain_axes(drawn)
    draw_legend(drawn, handles)
    canvas.settle(partial(_name, drawn, plan, tidied.label))
    return drawn


def _name(ax: Any, plan: _Plan, label: str, size: tuple[float, float]) -> Sequence[Any]:
    """Write what the bars and the numbers are."""
    name_scores(ax, label, size[1])
    name_ticks(ax, plan.places, plan.names, at="x")
    return ()


@dataclass(frozen=True, eq=False)
class _Bar:
    """One bar: where it stands, how high, and which colour it has."""

    x: float
    width: float
    middle: float
    low: float
    high: float
    points: Floats
    kind: int


@dataclass(frozen=True, eq=False)
class _Plan:
    """All bars, the names below them, and what their colours mean."""

    bars: tuple[_Bar, ...]
    places: tuple[float, ...]
    names: tuple[str, ...]
    kinds: tuple[str, ...]


def _plan(scores: Scores, kinds: Sequence[str] | None) -> _Plan:
    """Give each bar its place; those of a group stand together, in the order of first mention."""
    n = len(scores.names)
    known = list(dict.fromkeys(kinds)) if kinds is not None else [one.name for one in scores.series]
    number = [0] * n if kinds is None else [known.index(kind) for kind in kinds]
    order = sorted(range(n), key=lambda k: number[k])
    places = [rank + BETWEEN_GROUPS * number[k] for rank, k in enumerate(order)]
    width = WIDTH / len(scores.series)
    bars = []
    for j, one in enumerate(scores.series):
        shift = (j - (len(scores.series) - 1) / 2) * width
        bars += [
            _Bar(
                place + shift, width * (0.95 if shift else 1.0), float(one.middle[k]),
                float(one.low[k]), float(one.high[k]), one.points[k],
                j if kinds is None else number[k],
            )
            for place, k in zip(places, order, strict=True)
        ]  # fmt: skip
    return _Plan(tuple(bars), tuple(places), tuple(scores.names[k] for k in order), tuple(known))


def _kinds(scores: xr.DataArray | xr.Dataset, tidied: Scores, groups: str) -> list[str]:
    """Return the group of each bar."""
    along = [str(key) for key, value in scores.coords.items() if value.dims == (tidied.dim,)]
    if groups not in along:
        raise InvalidInputError(
            f"groups={groups!r} is no coordinate along {tidied.dim!r}; there are "
            f"{', '.join(along)}.{did_you_mean(groups, along)} Add one with "
            f"scores.assign_coords({groups}=({tidied.dim!r}, [...]))."
        )
    if len(tidied.series) > 1:
        raise InvalidInputError(
            "Colours already tell the bars of a second dim apart; use groups= with scores that "
            f"have {tidied.dim!r} alone."
        )
    return [str(kind) for kind in scores[groups].values]


def _draw_bars(ax: Any, plan: _Plan, *, spread: str, over: str) -> list[Any]:
    """Draw bars, error bars and dots; return what the legend explains."""
    palette = colours(len(plan.kinds))
    handles = []
    for kind, name in enumerate(plan.kinds):
        bars = [bar for bar in plan.bars if bar.kind == kind]
        drawn = ax.bar(
            [bar.x for bar in bars], [bar.middle for bar in bars], [bar.width for bar in bars],
            color=palette[kind], label=name, zorder=2,
        )  # fmt: skip
        if name:
            handles.append(drawn)
    for bar in plan.bars:
        if np.isnan(bar.middle):
            style = {"ha": "center", "va": "bottom", "rotation": 90, "color": ink(), "alpha": 0.7}
            ax.text(bar.x, 0, " no value", fontsize=font_size(0.75), **style)
    dots = _draw_dots(ax, plan.bars, over)
    errors = [bar for bar in plan.bars if np.isfinite([bar.low, bar.high]).all()]
    if errors:
        middle = np.array([bar.middle for bar in errors])
        ends = np.array([[bar.low for bar in errors], [bar.high for bar in errors]])
        handles.append(
            ax.errorbar(
                [bar.x for bar in errors], middle, np.abs(ends - middle), fmt="none", ecolor=ink(),
                elinewidth=1.2, capsize=2.5, zorder=4, label=spread,
            )
        )  # fmt: skip
    return handles + dots


def _draw_dots(ax: Any, bars: Sequence[_Bar], over: str) -> list[Any]:
    """Draw what each mean was taken over, always in the same order from left to right."""
    n = max(len(bar.points) for bar in bars)
    if not n:
        return []
    x = np.concatenate([bar.x + (np.arange(n) - (n - 1) / 2) / n * bar.width * 0.8 for bar in bars])
    # The only value of a bar is its height.
    several = [np.isfinite(bar.points).sum() > 1 for bar in bars]
    y = np.concatenate(
        [np.where(many, bar.points, np.nan) for bar, many in zip(bars, several, strict=True)]
    )
    size = float(np.clip(120 / n, 3, 12))
    style = {"color": ink(), "alpha": 0.45, "linewidths": 0, "zorder": 3}
    return [ax.scatter(x, y, s=size, label=f"one {over}", **style)]


def _draw_means(ax: Any, plan: _Plan) -> Any:
    """Draw the mean of each group across its bars."""
    lines = []
    for kind in range(len(plan.kinds)):
        bars = [bar for bar in plan.bars if bar.kind == kind and np.isfinite(bar.middle)]
        if len(bars) > 1:  # the mean of one is its bar
            mean = float(np.mean([bar.middle for bar in bars]))
            x = [bar.x for bar in bars]
            lines.append([(min(x) - WIDTH / 2, mean), (max(x) + WIDTH / 2, mean)])
    collections = import_optional("matplotlib.collections", "plot")
    style = {"linestyles": "--", "linewidths": 1.4, "zorder": 5, "label": "mean of the group"}
    means = collections.LineCollection(lines, colors=[ink()], **style)
    ax.add_collection(means, autolim=False)
    return means
