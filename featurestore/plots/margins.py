"""What stands beside an RDM: names or pictures of its images, and brackets around its groups.

Along an axis, places are counted in images, so they stay right when the axes are resized; across
it, they are counted in inches from the edge.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.optional import import_optional
from featurestore.plots.lettering import (
    LEAST_PT,
    PLAIN,
    PT,
    fitting_size,
    font_size,
    ink,
    measure,
    shorten,
    spread,
)
from featurestore.plots.shading import MISSING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featurestore.plots.ordering import Group
    from featurestore.plots.pictures import Thumbnail

GAP_IN = 0.06
PICTURE_IN = 0.24  # what a thumbnail should measure; more rows are staggered until it does
LEAST_PICTURE_IN = 0.12
LARGEST_PICTURE_IN = 0.6
MAX_ROWS = 6
CELL_PX = 96  # of the strip's longest thumbnail edge
LEADER_IN = 0.16
MANY_GROUPS = 12
SMALL_IN = 3.0  # axes below this have smaller letters
SLACK = 1.04  # letters are up to this wider at another resolution


@dataclass
class Side:
    """One edge of square axes, from which things are stacked outwards."""

    ax: Any
    at: str
    """``"left"`` or ``"bottom"``."""
    length: float
    """Of the edge [inches]."""
    n: int
    """Images along it."""
    offset: float = GAP_IN
    """How far out the next thing starts [inches]."""

    @property
    def letters(self) -> float:
        """Font size of names; smaller beside small axes [points]."""
        return font_size(0.9 * float(np.clip(self.length / SMALL_IN, 0.65, 1)))

    @property
    def cell(self) -> float:
        """What one image measures [inches]."""
        return self.length / self.n

    def transform(self, offset: float) -> Any:
        """Return coordinates: images along the edge, and inches from a line outside of it."""
        transforms = import_optional("matplotlib.transforms", "plot")
        left = self.at == "left"
        base = self.ax.get_yaxis_transform() if left else self.ax.get_xaxis_transform()
        inches = self.ax.get_figure(root=True).dpi_scale_trans
        out = (-offset, 0) if left else (0, -offset)
        return base + transforms.ScaledTranslation(*out, inches)

    def point(self, along: float) -> tuple[float, float]:
        """Return the coordinates of a place along the edge."""
        return (0, along) if self.at == "left" else (along, 0)


def picture_rows(n: int, length: float) -> int | None:
    """Return in how many staggered rows pictures are large enough to be seen.

    Parameters
    ----------
    n : int
        Pictures along an edge.
    length : float
        Of the edge [inches].

    Returns
    -------
    int or None
        None where even the largest number of rows leaves them too small.

    Examples
    --------
    >>> picture_rows(12, 5.0), picture_rows(92, 7.0), picture_rows(1854, 7.0)
    (1, 4, None)
    """
    cell = length / n
    rows = int(np.clip(np.ceil(PICTURE_IN / cell - 1e-9), 1, MAX_ROWS))
    return rows if rows * cell >= LEAST_PICTURE_IN else None


def put_pictures(side: Side, pictures: Sequence[Thumbnail | None], rows: int) -> list[Any]:
    """Draw one picture per image along an edge, in staggered rows.

    Parameters
    ----------
    side : Side
        Where to; moves outwards.
    pictures : sequence of ndarray of shape (h, w, 3), or None
        In display order; grey where there is none.
    rows : int
        From `picture_rows`.

    Returns
    -------
    list of matplotlib.artist.Artist
        What was added.
    """
    box = import_optional("matplotlib.image", "plot")
    transforms = import_optional("matplotlib.transforms", "plot")
    # Pictures of the outermost images reach beyond the corner; the strips must not meet there.
    side.offset += (rows - 1) / 2 * side.cell
    edge = min(rows * side.cell, LARGEST_PICTURE_IN)
    strip = _strip(pictures, rows, edge / side.cell, vertical=side.at == "left")
    reach = max(rows, edge / side.cell) / 2 - 0.5
    low, high = -0.5 - reach, side.n - 0.5 + reach
    thickness = rows * edge
    a, b = side.offset / side.length, (side.offset + thickness) / side.length
    # In shares of the axes: a strip grows and shrinks with them.
    span = ((low + 0.5) / side.n, (high + 0.5) / side.n)
    if side.at == "left":
        bounds = transforms.Bbox([[-b, 1 - span[1]], [-a, 1 - span[0]]])
    else:
        bounds = transforms.Bbox([[span[0], -b], [span[1], -a]])
    image = box.BboxImage(
        transforms.TransformedBbox(bounds, side.ax.transAxes),
        interpolation="antialiased",
        origin="upper",
        clip_on=False,
    )
    image.set_data(strip)
    side.ax.add_artist(image)
    side.offset += thickness + GAP_IN
    return [image]


def _strip(
    pictures: Sequence[Thumbnail | None], rows: int, cells: float, *, vertical: bool
) -> NDArray[np.uint8]:
    """Compose pictures to one strip with transparent gaps, the first row next to the axes."""
    pillow = import_optional("PIL.Image", "plot")
    edge = CELL_PX
    cell = edge / cells
    n = len(pictures)
    reach = max(rows, cells) / 2 - 0.5
    length = round((n + 2 * reach) * cell)
    strip = np.zeros((rows * edge, length, 4), dtype=np.uint8)
    inner = max(1, round(edge * 0.94))
    for place, picture in enumerate(pictures):
        start = round((place + reach + 0.5) * cell - inner / 2)
        top = (place % rows) * edge + (edge - inner) // 2
        tile = np.full((inner, inner, 3), round(255 * float(MISSING)), dtype=np.uint8)
        if picture is not None:
            tile = np.asarray(pillow.fromarray(picture).resize((inner, inner)))
        start = max(0, start)
        part = strip[top : top + inner, start : start + inner]
        # Turned back with the whole strip, so that the pictures stand upright.
        part[..., :3] = (np.swapaxes(tile, 0, 1)[:, ::1] if vertical else tile)[:, : part.shape[1]]
        part[..., 3] = 255
    if vertical:
        # Along the edge is now down; the first row, next to the axes, comes to the right.
        return np.swapaxes(strip, 0, 1)[:, ::-1]
    return strip


def name_size(side: Side, names: Sequence[str]) -> float | None:
    """Return the font size at which every image's name fits into its row.

    Parameters
    ----------
    side : Side
        Along which they would stand.
    names : sequence of str
        One line each.

    Returns
    -------
    float or None
        Points; None where they would be too small to be read.
    """
    if side.cell < LEAST_PT * PT:
        return None
    return fitting_size(side.ax.figure, names, side.letters, side.cell)


def put_names(side: Side, names: Sequence[str], size: float) -> list[Any]:
    """Write the name of each image along an edge.

    Parameters
    ----------
    side : Side
        Where to; moves outwards.
    names : sequence of str
        In display order, one line each.
    size : float
        From `name_size` [points].

    Returns
    -------
    list of matplotlib.artist.Artist
        What was added.
    """
    box = measure(side.ax.figure, names, size)
    level = side.at == "left" or box[:, 0].max() * 1.1 <= side.cell
    style: dict[str, Any] = {"fontsize": size, "color": ink(), "clip_on": False, **PLAIN}
    if side.at == "left":
        style |= {"ha": "right", "va": "center"}
    else:
        style |= {"ha": "center", "va": "top", "rotation": 0 if level else 90}
    where = side.transform(side.offset)
    added = [
        side.ax.text(*side.point(place), name, transform=where, **style)
        for place, name in enumerate(names)
    ]
    across = box[:, 0].max() if side.at == "left" or not level else box[:, 1].max()
    side.offset += float(across) * SLACK + GAP_IN
    return added


def put_borders(ax: Any, groups: Sequence[Group], n: int) -> list[Any]:
    """Part the groups by thin lines across the cells.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        With the cells.
    groups : sequence of Group
        In display order.
    n : int
        Images along an edge.

    Returns
    -------
    list of matplotlib.artist.Artist
        What was added.
    """
    collections = import_optional("matplotlib.collections", "plot")
    places = [group.start - 0.5 for group in groups[1:]]
    lines = [[(-0.5, at), (n - 0.5, at)] for at in places]
    lines += [[(at, -0.5), (at, n - 0.5)] for at in places]
    width = 0.8 if len(places) < MANY_GROUPS else 0.4
    borders = collections.LineCollection(lines, colors="white", linewidths=width)
    ax.add_artist(borders)
    return [borders]


def put_brackets(side: Side, groups: Sequence[Group]) -> tuple[list[Any], int]:
    """Draw a bracket along each group, and write their names.

    Parameters
    ----------
    side : Side
        Where to; moves outwards.
    groups : sequence of Group
        In display order.

    Returns
    -------
    added : list of matplotlib.artist.Artist
        What was added.
    n_named : int
        How many are named: all, or the largest ones where there is no room for more.
    """
    collections = import_optional("matplotlib.collections", "plot")
    lines = []
    for group in groups:
        # A bracket ends a little before its neighbour's, but a single image still has one.
        short = min(0.2 * (group.stop - group.start), 0.02 / side.cell)
        start, stop = group.start - 0.5 + short, group.stop - 0.5 - short
        lines.append([side.point(start), side.point(stop)])
    bracket = collections.LineCollection(
        lines, colors=[ink()], linewidths=1.2, capstyle="butt", clip_on=False
    )
    bracket.set_transform(side.transform(side.offset))
    side.ax.add_artist(bracket)
    side.offset += GAP_IN
    named, size, turned = _named(side, groups)
    return [bracket, *_write(side, named, size, turned=turned)], len(named)


def _named(side: Side, groups: Sequence[Group]) -> tuple[list[tuple[Group, str]], float, bool]:
    """Return which groups are named and how, the font size, and whether the names are turned."""
    names = shorten([group.name for group in groups])
    size = side.letters
    if side.at == "bottom":
        lengths = np.array([(g.stop - g.start) * side.cell for g in groups])
        broken = [_two_lines(name) for name in names]
        for letters in (size, max(LEAST_PT, size * 0.85)):
            for texts in (names, broken):
                box = measure(side.ax.figure, texts, letters)
                if (box[:, 0] <= lengths - 0.03).all():
                    return list(zip(groups, texts, strict=True)), letters, False
    heights = measure(side.ax.figure, names, size)[:, 1] * SLACK
    if heights.sum() > side.length:
        smaller = max(LEAST_PT + 0.5, size * side.length / float(heights.sum()))
        size, heights = smaller, heights * smaller / size
    # The largest groups first, as many as there is room for.
    by_size = sorted(range(len(groups)), key=lambda k: groups[k].start - groups[k].stop)
    n = max(1, int((heights[by_size].cumsum() <= side.length * (1 + 1e-9)).sum()))
    kept = sorted(by_size[:n])
    return [(groups[k], names[k]) for k in kept], size, side.at == "bottom"


def _two_lines(name: str) -> str:
    """Break a name where its middle is nearest."""
    places = [i for i, letter in enumerate(name) if letter in " -_/" and 0 < i < len(name) - 1]
    if not places:
        return name
    best = min(places, key=lambda i: abs(i - len(name) / 2))
    return f"{name[: best + (name[best] != ' ')]}\n{name[best + 1 :]}"


def _leaders(side: Side, middles: NDArray[np.float64], labels: NDArray[np.float64]) -> Any:
    """Draw lines from the brackets to names that had to move."""
    collections = import_optional("matplotlib.collections", "plot")
    near, far = -0.02 / side.length, -(LEADER_IN + GAP_IN - 0.03) / side.length
    lines = np.empty((len(middles), 2, 2))
    along, across = (1, 0) if side.at == "left" else (0, 1)
    lines[:, 0, along], lines[:, 1, along] = middles, labels
    lines[:, 0, across], lines[:, 1, across] = near, far
    leaders = collections.LineCollection(
        lines, colors=[ink()], linewidths=0.5, alpha=0.7, clip_on=False
    )
    leaders.set_transform(side.transform(side.offset - GAP_IN))
    side.ax.add_artist(leaders)
    return leaders


def _apart(
    wanted: NDArray[np.float64], heights: NDArray[np.float64], length: float
) -> NDArray[np.float64]:
    """Spread names; squeezed by the little that rounding to pixels may have added."""
    heights = heights * min(1.0, length / float(heights.sum()))
    places = spread(wanted, heights, 0, length)
    return wanted if places is None else places


def _write(
    side: Side, named: Sequence[tuple[Group, str]], size: float, *, turned: bool
) -> list[Any]:
    """Write names beside their brackets; with lines to these where they had to move."""
    if not named:
        return []
    texts = [text for _, text in named]
    box = measure(side.ax.figure, texts, size)
    middles = np.array([(group.start + group.stop - 1) / 2 for group, _ in named])
    wanted = (middles + 0.5) * side.cell
    level = side.at == "bottom" and not turned
    places = wanted if level else _apart(wanted, box[:, 1] * SLACK, side.length)
    moved = places - wanted
    labels = middles + moved / side.cell
    led = bool(np.abs(moved).max() > 0.02)
    out = LEADER_IN if led else 0.0
    added = []
    if led:
        added.append(_leaders(side, middles, labels))
    style: dict[str, Any] = {"fontsize": size, "color": ink(), "clip_on": False, **PLAIN}
    if side.at == "left":
        style |= {"ha": "right", "va": "center"}
    else:
        style |= {"ha": "center", "va": "top", "rotation": 90 if turned else 0}
    where = side.transform(side.offset + out)
    added += [
        side.ax.text(*side.point(at), text, transform=where, **style)
        for at, text in zip(labels, texts, strict=True)
    ]
    across = box[:, 0].max() if side.at == "left" or turned else box[:, 1].max()
    side.offset += out + float(across) * SLACK + GAP_IN
    return added
