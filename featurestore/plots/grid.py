"""How alike modules are, each with each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.plots.canvas import open_canvas
from featurestore.plots.files import Target
from featurestore.plots.lettering import PLAIN, font_size, measure, name_ticks, wrapped
from featurestore.plots.scores import label_of, labels_of
from featurestore.plots.shading import explain, shades

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.plots.shading import Shades
    from featurestore.typing import PathLike

CELL_IN, LEAST_IN, MOST_IN = 0.36, 1.8, 9.0
MOST_VALUES = 12
DARK = 0.5  # luminance below which figures in a cell are white


def matrix(
    matrix: xr.DataArray,
    *,
    values: bool | None = None,
    cmap: Any = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    colour_bar: bool = True,
    title: str = "",
    ax: Any = None,
    path: PathLike | None = None,
    dpi: int = 200,
) -> Any:
    """Show how alike modules or models are, each with each.

    Parameters
    ----------
    matrix : DataArray (module, module_2) or (module, other)
        Such as `cka` or `compare_rdms` return; the first dim runs down.
    values : bool, optional
        Whether to write the numbers into the cells; by default where there are at most 12 in a
        row or column, and they fit.
    cmap : str or matplotlib.colors.Colormap
        The colours. NaN is grey, and the bar says so.
    vmin, vmax : float, optional
        Limits of the colours. By default 0 to 1, so that pictures can be compared with each
        other; lower where there are values below 0.
    colour_bar : bool
        Whether to draw the bar that explains the colours.
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
        If it has not two dims, or holds no numbers.
    """
    Target.of(path, dpi)
    if matrix.ndim != 2 or not matrix.size:
        raise InvalidInputError(
            f"A matrix has two dims with labels; this has {dict(matrix.sizes)}. Choose one of "
            "others, for example matrix.isel(subject=0).",
            dims=matrix.dims,
        )
    if matrix.dtype.kind not in "fiub":
        raise InvalidInputError(f"A matrix holds real numbers, not {matrix.dtype}.")
    cells = np.asarray(matrix.values, dtype=np.float64)
    down, across = (labels_of(matrix, str(dim)) for dim in matrix.dims)
    label = label_of(matrix)
    shade = shades([cells], cmap=cmap, vmin=vmin, vmax=vmax, label=label, high=1.0)
    size = tuple(float(np.clip(CELL_IN * n, LEAST_IN, MOST_IN)) for n in cells.shape)
    # One cell size for both directions, whichever limit was met.
    cell = min(side / n for side, n in zip(size, cells.shape, strict=True))
    canvas = open_canvas(ax, (cell * len(across), cell * len(down)), path, dpi)
    drawn = canvas.ax
    image = shade.draw(drawn, cells)
    drawn.spines[:].set_visible(False)
    drawn.tick_params(length=0)
    wanted = max(cells.shape) <= MOST_VALUES if values is None else values
    frame = _Frame(
        drawn, image, cells, (down, across), shade if colour_bar else None, title, wanted,
        values is True,
    )  # fmt: skip
    canvas.settle(frame.lay_out)
    return drawn


@dataclass(frozen=True)
class _Frame:
    """What stands in the cells and around them."""

    ax: Any
    image: Any
    cells: NDArray[np.float64]
    names: tuple[Sequence[str], Sequence[str]]
    shade: Shades | None
    title: str
    valued: bool
    forced: bool
    """Whether the caller wants numbers even where they do not fit."""

    def lay_out(self, size: tuple[float, float]) -> list[Any]:
        """Draw it for a size of the axes; return what was added."""
        for names, at in zip(self.names, "yx", strict=True):
            name_ticks(self.ax, range(len(names)), names, at=at)
        text, letters = wrapped(self.ax.figure, self.title, max(size[0], 1.5), font_size(1.1), 6.0)
        if self.title:
            self.ax.set_title(text, fontsize=letters, **PLAIN)
        added = []
        if self.valued:
            added += _write(self.ax, self.cells, self.image, size, forced=self.forced)
        if self.shade is not None:
            added += explain(self.ax, self.image, self.shade, size)
        return added


def _write(
    ax: Any,
    cells: NDArray[np.float64],
    image: Any,
    size: tuple[float, float],
    *,
    forced: bool,
) -> list[Any]:
    """Write each number into its cell, if they fit."""
    texts = [f"{value:.2f}".replace("-0.00", "0.00").replace("-", "−") for value in cells.ravel()]
    letters = font_size(0.8)
    room = size[0] / cells.shape[1]
    while measure(ax.figure, texts, letters)[:, 0].max() > 0.9 * room:
        if letters <= 5.5:
            if not forced:
                return []
            break
        letters -= 0.5
    added = []
    colours = image.cmap(image.norm(cells))
    light = colours[..., :3] @ np.array([0.299, 0.587, 0.114]) > DARK
    for (row, column), text in zip(np.ndindex(cells.shape), texts, strict=True):
        if np.isnan(cells[row, column]):
            continue
        style = {"ha": "center", "va": "center", "fontsize": letters}
        colour = "black" if light[row, column] else "white"
        added.append(ax.text(column, row, text, color=colour, **style))
    return added
