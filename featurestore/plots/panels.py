"""Many RDMs side by side."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError, LabelMismatchError
from featurestore.plots.canvas import ROOM_IN, Canvas, cut_figure, new_figure, place_axes
from featurestore.plots.files import Target
from featurestore.plots.lettering import PLAIN, PT, font_size, ink, measure, shorten, wrapped
from featurestore.plots.margins import Side, put_borders, put_brackets
from featurestore.plots.ordering import arrange, places_of, read_pairs
from featurestore.plots.shading import explain, require_scaling, shades, unit_label
from featurestore.rdms.structure import extra_dims, pair_dim

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.plots.ordering import Shown
    from featurestore.typing import PathLike

PANEL_GAP_IN = 0.18
MAX_PANELS = 400
ONE_ROW = 4  # so many stand side by side
WIDEST_IN = 14.0


@dataclass(frozen=True)
class _Panel:
    """One RDM of several."""

    name: str
    row: str
    """What its row is called, where rows are a dim of their own."""
    rdm: xr.DataArray


def gallery(
    rdms: xr.DataArray | Mapping[Any, xr.DataArray],
    *,
    scaling: str = "rank",
    order: Any = None,
    categories: str | None = None,
    max_images: int | None = 200,
    columns: int | None = None,
    cmap: Any = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    title: str = "",
    path: PathLike | None = None,
    dpi: int = 200,
) -> NDArray[Any]:
    """Show several RDMs of the same images in the same order, with the same colours.

    Parameters
    ----------
    rdms : DataArray (subject, image, image_2), or mapping of RDMs
        One or two leading dims, such as subjects or models and modules; two make rows and
        columns. Or a dict from titles to RDMs (image, image_2) of the same images, in whatever
        order: they are aligned by name.
    scaling : str
        ``"rank"``: ranks within each RDM, so that different metrics can stand side by side.
        ``"raw"``: the dissimilarities, with one scale for all; they must have one metric.
    order : str, Clusters or sequence of str, optional
        As for `rdm`; coordinates are those of the first RDM.
    categories : str, optional
        As for `rdm`.
    max_images : int, optional
        As for `rdm`.
    columns : int, optional
        How many side by side, unless two leading dims say so.
    cmap : str or matplotlib.colors.Colormap
        The colours.
    vmin, vmax : float, optional
        Limits of the colours.
    title : str
        Stands above all.
    path : str or os.PathLike, optional
        Save the figure: ``.png``, ``.jpg``, ``.svg`` or ``.pdf``.
    dpi : int
        Resolution of PNG and JPG [dots per inch].

    Returns
    -------
    ndarray of matplotlib.axes.Axes, object
        Of the shape of the leading dims; ``(n,)`` for a dict.

    Raises
    ------
    InvalidInputError
        If there are no RDMs or more than two leading dims, metrics differ with ``"raw"``, or as
        for `rdm`.
    LabelMismatchError
        If the RDMs are not of the same images.
    """
    target = Target.of(path, dpi)
    scale = require_scaling(scaling)
    panels, shape = _panels(rdms)
    dim = _require_same_images(panels)
    label = unit_label(_common_attrs(panels, scaling), scaling)
    first = panels[0].rdm
    shown = arrange(first, dim, order, categories, max_images)
    names = [str(name) for name in first[dim].values]
    values = [scale(_read(panel, dim, shown.positions, names)) for panel in panels]
    high = 1.0 if scaling == "rank" else None
    shade = shades(values, cmap=cmap, vmin=vmin, vmax=vmax, label=label, high=high)
    n_columns = shape[1] if len(shape) == 2 else _columns(len(panels), columns)
    n_rows = -(-len(panels) // n_columns)
    side = float(np.clip(WIDEST_IN / n_columns - PANEL_GAP_IN, 0.7, 2.2))
    grid = _Grid(n_rows, n_columns, side, title_in=2 * font_size(0.9) * PT)
    figure = new_figure(grid.size, saved=path is not None)
    axes = [place_axes(figure, grid.corner(k), (side, side)) for k in range(len(panels))]
    for k, (ax, panel, cells) in enumerate(zip(axes, panels, values, strict=True)):
        shade.draw(ax, cells)
        top = k < n_columns or len(shape) < 2
        _dress(ax, panel, shown, side, leftmost=k % n_columns == 0, top=top)
    right = axes[min(n_columns, len(axes)) - 1]
    explain(right, right.images[0], shade, (side, side))
    _head(axes[0], grid, title, shown.note)
    cut_figure(figure, axes)
    Canvas(axes[0], target, own=True, others=axes[1:]).save()
    out = np.empty(len(axes), dtype=object)
    out[:] = axes
    return out.reshape(shape)


@dataclass(frozen=True)
class _Grid:
    """Where panels go [inches]."""

    n_rows: int
    n_columns: int
    side: float
    title_in: float

    @property
    def size(self) -> tuple[float, float]:
        """Width and height of the figure before it is cut."""
        return 2 * ROOM_IN + self.width, 2 * ROOM_IN + self.n_rows * self._step[1]

    @property
    def width(self) -> float:
        """From the left edge of the first panel to the right edge of the last."""
        return self.n_columns * self._step[0] - PANEL_GAP_IN

    @property
    def _step(self) -> tuple[float, float]:
        return self.side + PANEL_GAP_IN, self.side + PANEL_GAP_IN + self.title_in

    def corner(self, k: int) -> tuple[float, float]:
        """Return the lower left corner of a panel, counted row by row from the top."""
        row, column = divmod(k, self.n_columns)
        x, y = self._step
        return ROOM_IN + column * x, ROOM_IN + (self.n_rows - 1 - row) * y


def _dress(ax: Any, panel: _Panel, shown: Shown, side: float, *, leftmost: bool, top: bool) -> None:
    """Write what belongs to one panel."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)
    put_borders(ax, shown.groups, len(shown.positions))
    if top:
        text, letters = wrapped(ax.figure, panel.name, side, font_size(0.9), 5.5)
        ax.set_title(text, fontsize=letters, pad=3, **PLAIN)
    if leftmost:
        edge = Side(ax, "left", side, len(shown.positions))
        if shown.groups:
            put_brackets(edge, shown.groups)
        if panel.row:
            text, letters = wrapped(ax.figure, panel.row, side, font_size(0.9), 5.5)
            middle = edge.point((len(shown.positions) - 1) / 2)
            style = {"ha": "right", "va": "center", "rotation": 90, "color": ink(), **PLAIN}
            where = edge.transform(edge.offset)
            ax.text(*middle, text, transform=where, fontsize=letters, clip_on=False, **style)


def _head(ax: Any, grid: _Grid, title: str, note: str) -> None:
    """Write title and note above the first row."""
    above = grid.title_in / PT + 4
    for text, size in ((note, font_size(0.75)), (title, font_size(1.2))):
        if not text:
            continue
        lines, letters = wrapped(ax.figure, text, max(grid.width, 2.0), size, 5.5)
        ax.annotate(
            lines, (0, 1), (grid.width / 2 / PT, above), xycoords="axes fraction",
            textcoords="offset points", ha="center", va="bottom", fontsize=letters, color=ink(),
            annotation_clip=False, **PLAIN,
        )  # fmt: skip
        above += float(measure(ax.figure, [lines], letters)[0, 1]) / PT + 4


def _panels(
    rdms: xr.DataArray | Mapping[Any, xr.DataArray],
) -> tuple[list[_Panel], tuple[int, ...]]:
    """Take RDMs apart; with the shape that they have together."""
    if isinstance(rdms, Mapping):
        for rdm in rdms.values():
            pair_dim(rdm)
        if any(extra_dims(rdm) for rdm in rdms.values()):
            raise InvalidInputError("The RDMs of a dict have two dims each: (image, image_2).")
        names = shorten(list(rdms))
        panels = [_Panel(name, "", rdm) for name, rdm in zip(names, rdms.values(), strict=True)]
        return _require_some(panels), (len(panels),)
    pair_dim(rdms)
    extra = extra_dims(rdms)
    if len(extra) > 2:
        raise InvalidInputError(
            f"The RDMs have {len(extra)} leading dims ({', '.join(extra)}), and a page has two. "
            f"Choose one of some: rdms.isel({extra[0]}=0).",
            dims=rdms.dims,
        )
    sizes = tuple(rdms.sizes[dim] for dim in extra)
    labels = [_labels(rdms, dim) for dim in extra]
    panels = []
    for place in product(*map(range, sizes)):
        one = rdms.isel(dict(zip(extra, place, strict=True)), drop=True)
        texts = [names[k] for names, k in zip(labels, place, strict=True)]
        panels.append(_Panel(texts[-1] if texts else "", texts[0] if len(texts) > 1 else "", one))
    return _require_some(panels), sizes or (1,)


def _require_some(panels: list[_Panel]) -> list[_Panel]:
    if not 0 < len(panels) <= MAX_PANELS:
        raise InvalidInputError(
            f"There are {len(panels):,} RDMs to be shown; a gallery has 1 to {MAX_PANELS}."
        )
    return panels


def _labels(rdms: xr.DataArray, dim: str) -> list[str]:
    if dim not in rdms.coords:
        return [f"{dim} {k}" for k in range(rdms.sizes[dim])]
    values = rdms[dim].values
    if values.dtype.kind in "biuf":  # a bare number says nothing
        return [f"{dim} {value:g}" for value in values]
    return shorten(values.tolist())


def _require_same_images(panels: Sequence[_Panel]) -> str:
    dims = {pair_dim(panel.rdm) for panel in panels}
    if len(dims) > 1:
        raise LabelMismatchError(
            f"Some of the RDMs compare {'s, others '.join(sorted(dims))}s; show them separately."
        )
    return dims.pop()


def _common_attrs(panels: Sequence[_Panel], scaling: str) -> dict[Hashable, Any]:
    """Return the attributes of all RDMs if they have one metric."""
    metrics = {str(panel.rdm.attrs.get("metric", "")) for panel in panels}
    if len(metrics) == 1:
        return dict(panels[0].rdm.attrs)
    if scaling == "raw":
        raise InvalidInputError(
            f"RDMs of several metrics ({', '.join(sorted(metrics))}) have no common scale. Use "
            "scaling='rank', or show them separately."
        )
    return {}


def _read(panel: _Panel, dim: str, positions: NDArray[np.intp], names: Sequence[str]) -> Any:
    """Read what stands at some positions of all names, by name."""
    own = [str(name) for name in panel.rdm[dim].values]
    places = np.arange(len(own))
    if own != names:
        places = places_of(panel.rdm, dim, names, "the first RDM has")
    return read_pairs(panel.rdm, dim, places[positions])


def _columns(n: int, wanted: int | None) -> int:
    if wanted is None:
        return n if n <= ONE_ROW else int(np.ceil(np.sqrt(n)))
    if wanted < 1:
        raise InvalidInputError(f"columns={wanted!r} must be at least 1.")
    return min(wanted, n)
