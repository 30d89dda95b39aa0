"""Names in pictures: how large they are, how they are shortened, where there is room for them."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.optimize import isotonic_regression

from featurestore.optional import import_optional

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PT = 1 / 72
"""A typographic point [inches]."""
LEAST_PT = 5.0
"""Smaller letters cannot be read in print."""
MAX_LETTERS = 32
PLAIN: dict[str, Any] = {"parse_math": False, "usetex": False}
"""How names are set: as they are, so that ``$`` and ``_`` in a file's name mean nothing."""


def font_size(scale: float = 1.0) -> float:
    """Return the user's font size, scaled.

    Parameters
    ----------
    scale : float
        Factor.

    Returns
    -------
    float
        At least `LEAST_PT` [points].
    """
    size = import_optional("matplotlib", "plot").rcParams["font.size"]
    return max(LEAST_PT, float(size) * scale)


def ink() -> Any:
    """Return the colour in which the user's style writes.

    Returns
    -------
    matplotlib colour
        Black in the default style, white in dark ones.
    """
    return import_optional("matplotlib", "plot").rcParams["text.color"]


def measure(figure: Any, texts: Sequence[str], size: float) -> Floats:
    """Return how large texts are when they are written.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Where they would stand.
    texts : sequence of str
        Lines.
    size : float
        Font size [points].

    Returns
    -------
    ndarray of shape (n, 2), float64
        Width and height [inches].
    """
    make_text = import_optional("matplotlib.text", "plot").Text
    dpi = figure.get_figure(root=True).dpi
    out = np.empty((len(texts), 2))
    for row, text in enumerate(texts):
        artist = make_text(0, 0, text, fontsize=size, **PLAIN)
        artist.set_figure(figure)
        box = artist.get_window_extent()
        out[row] = box.width / dpi, box.height / dpi
    return out


def fitting_size(figure: Any, texts: Sequence[str], size: float, room: float) -> float | None:
    """Return a font size at which every line is low enough.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Where they would stand.
    texts : sequence of str
        Lines.
    size : float
        The largest that is wanted [points].
    room : float
        Height of a line [inches].

    Returns
    -------
    float or None
        Points; None where they could not be read.
    """
    height = float(measure(figure, texts, size)[:, 1].max(initial=0))
    # Letters grow in steps of pixels, so a little less than in proportion.
    fitting = size if height <= room else 0.97 * size * room / height
    return fitting if fitting >= LEAST_PT else None


def shorten(names: Sequence[Any], most: int = MAX_LETTERS) -> list[str]:
    """Cut long names in the middle, or to the part that tells them apart.

    Parameters
    ----------
    names : sequence
        Any labels.
    most : int
        Letters to be left; more, where different names would look the same.

    Returns
    -------
    list of str
        One line each; different names stay different.

    Examples
    --------
    >>> shorten(["visual.transformer.resblocks.11.mlp", "a"], 16)
    ['visual.t….11.mlp', 'a']
    >>> shorten(["photographs/cat_1_small.jpeg", "photographs/cat_2_small.jpeg"], 11)
    ['…cat_1_sma…', '…cat_2_sma…']
    """
    whole = [" ".join(str(name).split()) for name in names]
    longest = max((len(name) for name in whole), default=0)
    while most < longest:
        for candidates in (whole, _without_shared(whole, most)):
            cut = [_cut(name, most) for name in candidates]
            if len(set(cut)) == len(set(whole)):
                return cut
        most += 8
    return whole


def _cut(name: str, most: int) -> str:
    if len(name) <= most:
        return name
    tail = (most - 1) // 2
    return f"{name[: most - 1 - tail]}…{name[-tail:]}"


def _without_shared(names: Sequence[str], most: int) -> list[str]:
    """Leave out what all names begin and end with, but for a little of it if there is room."""
    distinct = sorted(set(names))
    if len(distinct) < 2:
        return list(names)
    shortest = min(map(len, distinct))
    start = _n_shared(distinct, shortest)
    stop = _n_shared([name[::-1] for name in distinct], shortest - start)
    longest = max(map(len, distinct)) - start - stop
    context = max(0, (most - longest - 2) // 2)
    start, stop = max(0, start - context), max(0, stop - context)
    head, tail = "…" if start else "", "…" if stop else ""
    return [f"{head}{name[start : len(name) - stop]}{tail}" for name in names]


def _n_shared(names: Sequence[str], most: int) -> int:
    """Count the letters with which all names begin."""
    for n in range(most):
        if len({name[n] for name in names}) > 1:
            return n
    return most


def spread(wanted: Floats, widths: Floats, low: float, high: float) -> Floats | None:
    """Move things along a line as little as possible so that none touches the next.

    Parameters
    ----------
    wanted : ndarray of shape (n,)
        Where their middles should be, ascending.
    widths : ndarray of shape (n,)
        How much room each takes.
    low, high : float
        Ends of the line.

    Returns
    -------
    ndarray of shape (n,), float64, or None
        Where their middles are: the nearest places in the least-squares sense. None if they do
        not fit.

    Examples
    --------
    >>> spread(np.array([1.0, 1.2, 5.0]), np.ones(3), 0, 10).tolist()
    [0.6, 1.6, 5.0]
    """
    if not len(wanted):
        return wanted
    if widths.sum() > (high - low) * (1 + 1e-9):
        return None
    before = np.concatenate([[0.0], np.cumsum((widths[:-1] + widths[1:]) / 2)])
    # Without the room that earlier ones take, they only have to stay in order.
    free = np.asarray(isotonic_regression(wanted - before).x, dtype=np.float64)
    bottom = low + widths[0] / 2
    top = high - widths[-1] / 2 - before[-1]
    return np.asarray(np.clip(free, bottom, top) + before, dtype=np.float64)


def wrapped(figure: Any, text: str, width: float, size: float, least: float) -> tuple[str, float]:
    """Break a text into lines of a width; letters shrink where a word is wider.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Where it would stand.
    text : str
        The text; its own line breaks stay.
    width : float
        How wide it may be [inches].
    size, least : float
        Font size to start from, and the smallest [points].

    Returns
    -------
    (str, float)
        Lines, and font size [points].
    """
    if not text:
        return text, size
    while True:
        letter = float(measure(figure, [text], size)[0, 0]) / max(map(len, text.split("\n")))
        n = max(4, int(width / max(letter, 1e-6)))
        lines = [part for line in text.split("\n") for part in textwrap.wrap(line, n) or [""]]
        if size <= least or measure(figure, ["\n".join(lines)], size)[0, 0] <= width * 1.02:
            return "\n".join(lines), size
        size = max(least, size * 0.9)


def name_ticks(ax: Any, places: Sequence[float], names: Sequence[Any], *, at: str) -> None:
    """Write names beside an axis so that they never overlap; every second, third, … if need be.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        Axes whose limits are set.
    places : sequence of float
        Where each name belongs, in data coordinates, ascending.
    names : sequence
        What to write.
    at : str
        ``"x"`` or ``"y"``.
    """
    texts = shorten(names)
    size = font_size(0.9)
    room = _room_per_name(ax, at, len(places), places)
    box = measure(ax.figure, texts, size)
    height = float(box[:, 1].max(initial=0)) * 1.15
    level = at == "y" or float(box[:, 0].max(initial=0)) * 1.1 <= room
    if (not level or at == "y") and height > room:
        smaller = max(LEAST_PT + 0.5, size * room / height)
        size, height = smaller, height * smaller / size
    step = 1 if level and at == "x" else max(1, int(np.ceil(height / max(room, 1e-9))))
    kept = slice(None, None, step)
    style: dict[str, Any] = {"fontsize": size, **PLAIN}
    axis = ax.xaxis if at == "x" else ax.yaxis
    if at == "x" and not level:
        steep = 90 if step > 1 or height * 1.4 > room else 45
        style |= {"rotation": steep, "rotation_mode": "anchor", "ha": "right"}
        style["va"] = "center" if steep == 90 else "top"
    axis.set_ticks(list(places)[kept], labels=texts[kept], **style)
    axis.minorticks_off()


def _room_per_name(ax: Any, at: str, n: int, places: Sequence[float]) -> float:
    """Return the distance between neighbours along an axis [inches]."""
    box, dpi = ax.get_window_extent(), ax.get_figure(root=True).dpi
    length = (box.width if at == "x" else box.height) / dpi
    low, high = sorted(ax.get_xlim() if at == "x" else ax.get_ylim())
    if n < 2:
        return float(length)
    return float(length * np.diff(places).min() / (high - low))
