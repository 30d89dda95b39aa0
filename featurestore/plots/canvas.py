"""Where a picture is drawn: the caller's axes or a figure of our own, its size, and its file.

What surrounds an RDM (pictures, brackets, names) is laid out in inches, so it depends on the size
of the axes, and that size on what has to fit beside them. Three cases:

1. A figure of our own: the axes have the size that was asked for, and the figure is cut to what
   was drawn, so that nothing is cut off.
2. The caller's axes in a figure with a layout engine: the engine makes room.
3. The caller's axes without one: the axes shrink until all fits between the neighbours.

Whenever the axes have another size when they are drawn, because the engine or the caller changed
it, what surrounds them is laid out again.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from featurestore.errors import InvalidInputError
from featurestore.optional import import_optional
from featurestore.plots.files import Target

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import TypeAlias

    from featurestore.typing import PathLike

    Layout: TypeAlias = Callable[[tuple[float, float]], Sequence[Any]]

PAD_IN = 0.08  # around a figure of our own
EDGE_IN = 0.03  # around the caller's axes
ROOM_IN = 1.0  # around the axes of a figure of ours, before it is cut
MAX_ROUNDS = 5
# What was laid out for axes of one size is kept down and up to these shares of it. What is laid
# out for larger axes is larger, and a layout engine then makes the axes smaller: without some
# indifference the two would never agree.
MOST_SHRUNK, MOST_GROWN = 0.98, 1.25
LEAST_SHARE = 0.2  # of the caller's axes; they are not shrunk below


@dataclass
class Surroundings:
    """What stands around axes and depends on their size.

    matplotlib asks an axes' locator where the axes are whenever it draws or measures them, which
    is when this looks whether they have another size than before.
    """

    ax: Any
    inner: Any
    """The locator that the axes had."""
    layout: Layout
    """From width and height [inches] to the artists that were added."""
    size: tuple[float, float] | None = None
    added: list[Any] = field(default_factory=list)

    def __call__(self, ax: Any, renderer: Any) -> Any:
        """Say where the axes are, and lay out again what is around them if need be."""
        place = ax.get_position(original=True) if self.inner is None else self.inner(ax, renderer)
        ax.apply_aspect(place)
        self.renew()
        return place

    def get_subplotspec(self) -> Any:
        """Say where in a grid the axes are; matplotlib's ``tight_layout`` asks for it."""
        asked = self.ax if self.inner is None else self.inner
        return asked.get_subplotspec() if hasattr(asked, "get_subplotspec") else None

    def renew(self) -> bool:
        """Lay out again if the size has changed; say whether it had."""
        size = axes_size(self.ax)
        if self.size is not None and _still_fits(size, self.size):
            return False
        self.size = size
        for artist in self.added:
            artist.remove()
        self.added = []
        self.added = list(self.layout(size))
        return True


def _still_fits(size: tuple[float, float], laid_out: tuple[float, float]) -> bool:
    return all(
        MOST_SHRUNK * old <= new <= MOST_GROWN * old
        for new, old in zip(size, laid_out, strict=True)
    )


@dataclass
class Canvas:
    """Axes to draw into, and what has to happen around them."""

    ax: Any
    target: Target
    own: bool
    """Whether the figure is ours, so that its size follows from what is drawn."""
    others: list[Any] = field(default_factory=list)
    """Further axes of the same figure of ours."""

    @property
    def figure(self) -> Any:
        """The figure, or sub-figure, of the axes."""
        return self.ax.figure

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the axes as they stand [inches]."""
        self.ax.apply_aspect()
        return axes_size(self.ax)

    def settle(self, layout: Layout) -> None:
        """Lay out what surrounds the axes, make room for it, and save.

        Parameters
        ----------
        layout : callable
            From width and height of the axes [inches] to the artists that it has added; called
            again, after these are removed, whenever the axes have another size.
        """
        surroundings = Surroundings(self.ax, self.ax.get_axes_locator(), layout)
        self.ax.apply_aspect()
        surroundings.renew()
        for _ in range(MAX_ROUNDS):
            make_room = self._cut if self.own else self._fit
            make_room()
            self.ax.apply_aspect()
            if not surroundings.renew():
                break
        self.ax.set_axes_locator(surroundings)
        self.save()

    def save(self) -> None:
        """Write the whole figure to the file, if one was asked for."""
        self.target.save(self.ax.get_figure(root=True))

    def _cut(self) -> None:
        """Give a figure of ours the size of what is in it; the axes keep theirs."""
        cut_figure(self.figure, [self.ax, *self.others])

    def _fit(self) -> None:
        """Make room in the caller's figure."""
        whole = self.ax.get_figure(root=True)
        if whole.get_layout_engine() is not None:
            whole.draw_without_rendering()
            return
        shrink_axes(self.ax)


def open_canvas(
    ax: Any, size: tuple[float, float], path: PathLike | None = None, dpi: int = 200
) -> Canvas:
    """Take the caller's axes, or make a figure with axes of a size.

    Parameters
    ----------
    ax : matplotlib.axes.Axes, optional
        The caller's.
    size : (float, float)
        Width and height of new axes [inches].
    path : str or os.PathLike, optional
        Where the picture will be saved.
    dpi : int
        Resolution of PNG and JPG.

    Returns
    -------
    Canvas
        Ready to draw into. A figure that is saved is not known to pyplot: it is not shown, and
        many of them leave nothing behind. Any other figure of ours is pyplot's, so that a notebook
        shows it.
    """
    target = Target.of(path, dpi)
    if ax is not None:
        _require_axes(ax)
        return Canvas(ax, target, own=False)
    figure = new_figure((size[0] + 2 * ROOM_IN, size[1] + 2 * ROOM_IN), saved=path is not None)
    return Canvas(place_axes(figure, (ROOM_IN, ROOM_IN), size), target, own=True)


def new_figure(size: tuple[float, float], *, saved: bool) -> Any:
    """Make an empty figure.

    Parameters
    ----------
    size : (float, float)
        Width and height [inches].
    saved : bool
        Whether it goes to a file rather than to a screen.

    Returns
    -------
    matplotlib.figure.Figure
        Without a layout engine, whatever the user's defaults.
    """
    if not saved:
        return import_optional("matplotlib.pyplot", "plot").figure(figsize=size, layout="none")
    figure = import_optional("matplotlib.figure", "plot").Figure(figsize=size, layout="none")
    import_optional("matplotlib.backends.backend_agg", "plot").FigureCanvasAgg(figure)
    return figure


def place_axes(figure: Any, corner: tuple[float, float], size: tuple[float, float]) -> Any:
    """Add axes at a place given in inches.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        Where to.
    corner : (float, float)
        Lower left corner [inches].
    size : (float, float)
        Width and height [inches].

    Returns
    -------
    matplotlib.axes.Axes
        New axes.
    """
    width, height = figure.get_size_inches()
    box = (corner[0] / width, corner[1] / height, size[0] / width, size[1] / height)
    return figure.add_axes(box)


def axes_size(ax: Any) -> tuple[float, float]:
    """Return width and height of axes as they are drawn.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        The axes.

    Returns
    -------
    (float, float)
        Inches.
    """
    box, dpi = ax.get_window_extent(), ax.get_figure(root=True).dpi
    return box.width / dpi, box.height / dpi


def cut_figure(figure: Any, axes: Sequence[Any]) -> None:
    """Give a figure the size of what is in it, while its axes keep theirs.

    Parameters
    ----------
    figure : matplotlib.figure.Figure
        A figure of ours.
    axes : sequence of matplotlib.axes.Axes
        All its axes but insets.
    """
    width, height = figure.get_size_inches()
    tight = figure.get_tightbbox()
    left, bottom = tight.x0 - PAD_IN, tight.y0 - PAD_IN
    new = (tight.width + 2 * PAD_IN, tight.height + 2 * PAD_IN)
    boxes = [ax.get_position(original=True) for ax in axes]
    figure.set_size_inches(*new)
    for ax, box in zip(axes, boxes, strict=True):
        ax.set_position(
            (
                (box.x0 * width - left) / new[0],
                (box.y0 * height - bottom) / new[1],
                box.width * width / new[0],
                box.height * height / new[1],
            )
        )


def shrink_axes(ax: Any) -> None:
    """Shrink axes until what belongs to them fits between their neighbours.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        The caller's, in a figure without a layout engine.
    """
    ax.apply_aspect()
    tight, box = ax.get_tightbbox(), ax.get_window_extent()
    whole = ax.figure.bbox
    place = ax.get_position(original=True)
    slot = [
        whole.x0 + place.x0 * whole.width,
        whole.y0 + place.y0 * whole.height,
        whole.x0 + place.x1 * whole.width,
        whole.y0 + place.y1 * whole.height,
    ]
    room = _room(ax)
    pad = EDGE_IN * ax.get_figure(root=True).dpi
    beside = [
        pad + gap
        for gap in (box.x0 - tight.x0, box.y0 - tight.y0, tight.x1 - box.x1, tight.y1 - box.y1)
    ]
    x = _shrunk((slot[0], slot[2]), (room[0] + beside[0], room[2] - beside[2]))
    y = _shrunk((slot[1], slot[3]), (room[1] + beside[1], room[3] - beside[3]))
    if (x[0], y[0], x[1], y[1]) != tuple(slot):
        ax.set_position(
            (
                (x[0] - whole.x0) / whole.width,
                (y[0] - whole.y0) / whole.height,
                (x[1] - x[0]) / whole.width,
                (y[1] - y[0]) / whole.height,
            )
        )


def _shrunk(slot: tuple[float, float], free: tuple[float, float]) -> tuple[float, float]:
    low, high = max(slot[0], free[0]), min(slot[1], free[1])
    least = LEAST_SHARE * (slot[1] - slot[0])
    if high - low < least:
        middle = (slot[0] + slot[1]) / 2
        return middle - least / 2, middle + least / 2
    return low, high


def _room(ax: Any) -> tuple[float, float, float, float]:
    """Return left, bottom, right and top of what the axes may use, in pixels."""
    whole = ax.figure.bbox
    spec = ax.get_subplotspec()
    if spec is None:
        return whole.x0, whole.y0, whole.x1, whole.y1
    grid = spec.get_gridspec()
    bottoms, tops, lefts, rights = grid.get_grid_positions(ax.figure)
    rows, columns = spec.rowspan, spec.colspan
    # Half of the gap belongs to either neighbour; the margin to whoever is at the edge.
    first, last = columns.start, columns.stop - 1
    left = 0.0 if first == 0 else (rights[first - 1] + lefts[first]) / 2
    right = 1.0 if last == grid.ncols - 1 else (rights[last] + lefts[last + 1]) / 2
    upper, lower = rows.start, rows.stop - 1
    top = 1.0 if upper == 0 else (bottoms[upper - 1] + tops[upper]) / 2
    bottom = 0.0 if lower == grid.nrows - 1 else (bottoms[lower] + tops[lower + 1]) / 2
    return (
        whole.x0 + left * whole.width,
        whole.y0 + bottom * whole.height,
        whole.x0 + right * whole.width,
        whole.y0 + top * whole.height,
    )


def _require_axes(ax: Any) -> None:
    axes = import_optional("matplotlib.axes", "plot")
    if not isinstance(ax, axes.Axes):
        raise InvalidInputError(
            f"ax= takes one matplotlib Axes, not a {type(ax).__name__}. Choose one, for example "
            "axes[0, 1] of figure, axes = plt.subplots(2, 2)."
        )
