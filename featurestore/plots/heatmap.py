"""One RDM as a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.plots.canvas import open_canvas
from featurestore.plots.files import Target
from featurestore.plots.lettering import PLAIN, font_size, ink, shorten, wrapped
from featurestore.plots.margins import (
    PICTURE_IN,
    Side,
    name_size,
    picture_rows,
    put_borders,
    put_brackets,
    put_names,
    put_pictures,
)
from featurestore.plots.ordering import arrange, read_pairs
from featurestore.plots.pictures import read_thumbnails
from featurestore.plots.shading import explain, require_scaling, shades, unit_label
from featurestore.rdms.structure import extra_dims, pair_dim

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr

    from featurestore.plots.ordering import Shown
    from featurestore.plots.pictures import Thumbnail
    from featurestore.plots.shading import Shades
    from featurestore.typing import PathLike

LEAST_SIDE_IN, LARGEST_SIDE_IN = 4.2, 10.0
CELL_IN = 0.035  # without pictures, up to 7 inches
WANTED_ROWS = 5  # of pictures
TITLED = ("model", "module")


def rdm(
    rdm: xr.DataArray,
    *,
    scaling: str = "rank",
    order: Any = None,
    categories: str | None = None,
    thumbnails: Any = None,
    max_images: int | None = 200,
    cmap: Any = "viridis",
    vmin: float | None = None,
    vmax: float | None = None,
    colour_bar: bool = True,
    title: str | None = None,
    ax: Any = None,
    path: PathLike | None = None,
    dpi: int = 200,
) -> Any:
    """Show an RDM: one coloured cell per pair of images.

    Parameters
    ----------
    rdm : DataArray (image, image_2)
        Dissimilarities, in memory or lazy: only those of the images shown are read. For several
        RDMs see `gallery`.
    scaling : str
        ``"rank"``: the rank of each pair among all pairs shown, from 0 to 1, without the diagonal;
        an order without a scale, which makes RDMs of different metrics look comparable.
        ``"raw"``: the dissimilarities themselves.
    order : str, Clusters or sequence of str, optional
        A coordinate of the images to sort by, such as ``"category"`` (stable: equal ones keep
        their order); what `cluster_rdm` returned, for this RDM or another one of the same images;
        or all names in the wanted order. By default the RDM's own order.
    categories : str, optional
        The coordinate whose runs get brackets with names; by default what `order` sorts by.
    thumbnails : True, ImageSet, path or mapping, optional
        Pictures along the axes: those at the coordinate ``path`` (True), of an image set, in a
        folder, or a dict from names to paths, uint8 arrays or PIL images. A picture that cannot
        be read is a grey square, and a warning names it.
    max_images : int, optional
        Show at most these, taken evenly along the order, at least one of each category; the
        picture says so. None shows all.
    cmap : str or matplotlib.colors.Colormap
        The colours. Pairs without a value (NaN) are grey, and the bar says so.
    vmin, vmax : float, optional
        Limits of the colours. By default 0 to 1 for ranks, and 0 to the largest dissimilarity.
    colour_bar : bool
        Whether to draw the bar that explains the colours.
    title : str, optional
        By default the model and module, where the RDM knows them.
    ax : matplotlib.axes.Axes, optional
        Where to draw, pictures and names included; by default in a figure of its own. In a figure
        without a layout engine the axes shrink until everything fits between their neighbours.
    path : str or os.PathLike, optional
        Save the whole figure: ``.png``, ``.jpg``, ``.svg`` or ``.pdf``. A figure of its own is
        then not registered with pyplot: nothing pops up, and nothing has to be closed.
    dpi : int
        Resolution of PNG and JPG [dots per inch].

    Returns
    -------
    matplotlib.axes.Axes
        The axes of the cells. It is never shown: call ``plt.show()`` in a script.

    Raises
    ------
    InvalidInputError
        If it is no RDM, is not symmetric, has leading dims, an option is not known, or the file
        cannot be written.
    LabelMismatchError
        If `order` names other images (`missing`, `unexpected`).
    MissingDependencyError
        If matplotlib is not installed.
    """
    Target.of(path, dpi)
    dim = require_flat(rdm)
    scale = require_scaling(scaling)
    shown = arrange(rdm, dim, order, categories, max_images)
    values = scale(read_pairs(rdm, dim, shown.positions))
    shade = shades(
        [values],
        cmap=cmap,
        vmin=vmin,
        vmax=vmax,
        label=unit_label(rdm.attrs, scaling),
        high=1.0 if scaling == "rank" else None,
    )
    wants_pictures = thumbnails is not None and thumbnails is not False
    pictures = read_thumbnails(rdm, dim, shown.positions, thumbnails) if wants_pictures else None
    names = shorten(rdm[dim].values[shown.positions].tolist())
    side = _side(len(names), pictured=pictures is not None)
    canvas = open_canvas(ax, (side, side), path, dpi)
    image = shade.draw(canvas.ax, values)
    canvas.ax.set(xticks=[], yticks=[])
    canvas.ax.spines[:].set_visible(False)
    heading = title_of(rdm) if title is None else title
    frame = _Frame(canvas.ax, image, shade if colour_bar else None, shown, names, pictures, heading)
    canvas.settle(frame.lay_out)
    return canvas.ax


def title_of(rdm: xr.DataArray) -> str:
    """Say what an RDM is of, as far as it knows.

    Parameters
    ----------
    rdm : DataArray
        The RDM.

    Returns
    -------
    str
        Model and module, and what was selected among others; may be empty.
    """
    scalars = {str(key): value.item() for key, value in rdm.coords.items() if value.ndim == 0}
    known = {key: rdm.attrs.get(key) for key in TITLED} | scalars
    if known.get("model") and str(weights := rdm.attrs.get("weights", "")).startswith("random"):
        known["model"] = f"{known['model']}, {weights}"  # it must not pass for a trained one
    parts = [str(known.pop(key)) for key in TITLED if known.get(key) is not None]
    parts += [f"{key} {value}" for key, value in known.items() if key in scalars]
    return ", ".join(parts)


@dataclass
class _Frame:
    """All that stands around the cells."""

    ax: Any
    image: Any
    shade: Shades | None
    shown: Shown
    names: Sequence[str]
    pictures: Sequence[Thumbnail | None] | None
    title: str
    written: str | None = None
    """The title as it was last set, which the caller may have changed."""

    def lay_out(self, size: tuple[float, float]) -> list[Any]:
        """Draw it for a size of the axes; return what was added."""
        added: list[Any] = []
        notes = [self.shown.note]
        rows = None if self.pictures is None else picture_rows(len(self.names), min(size))
        if self.pictures is not None and rows is None:
            notes.append("too small for thumbnails")
        named = len(self.shown.groups)
        for at, length in (("left", size[1]), ("bottom", size[0])):
            side = Side(self.ax, at, length, len(self.names))
            letters = None if rows else name_size(side, self.names)
            if self.pictures is not None and rows:
                added += put_pictures(side, self.pictures, rows)
            elif letters is not None:
                added += put_names(side, self.names, letters)
            if self.shown.groups:
                brackets, n_named = put_brackets(side, self.shown.groups)
                added += brackets
                named = min(named, n_named)
        if named < len(self.shown.groups):
            notes.append(f"{named} of {len(self.shown.groups)} groups named")
        added += put_borders(self.ax, self.shown.groups, len(self.names))
        added += self._head(size, ", ".join(note for note in notes if note))
        if self.shade is not None:
            added += explain(self.ax, self.image, self.shade, size)
        return added

    def _head(self, size: tuple[float, float], note: str) -> list[Any]:
        """Write the title, and under it what is not shown."""
        added: list[Any] = []
        above = 4.0
        if note:
            text, letters = wrapped(self.ax.figure, note, max(size[0], 1.2), font_size(0.75), 5.0)
            added.append(
                self.ax.annotate(
                    text, (0.5, 1), (0, 3), xycoords="axes fraction", textcoords="offset points",
                    ha="center", va="bottom", fontsize=letters, color=ink(), alpha=0.8,
                    annotation_clip=False,
                )
            )  # fmt: skip
            above += 3 + letters * 1.25 * (text.count("\n") + 1)
        text, letters = wrapped(self.ax.figure, self.title, max(size[0], 1.5), font_size(1.1), 6.0)
        if text and self.ax.get_title() in ("", self.written):
            self.ax.set_title(text, fontsize=letters, pad=above, **PLAIN)
            self.written = text
        return added


def _side(n: int, *, pictured: bool) -> float:
    """Return how long the edge of a picture of our own is [inches]."""
    if not pictured:
        return float(np.clip(n * CELL_IN, LEAST_SIDE_IN, 7.0))
    wanted = n * (PICTURE_IN + 0.01)
    rows = next((k for k in range(1, WANTED_ROWS) if wanted / k <= 7.2), WANTED_ROWS)
    return float(np.clip(wanted / rows, LEAST_SIDE_IN, LARGEST_SIDE_IN))


def require_flat(rdm: xr.DataArray) -> str:
    """Check that this is one RDM.

    Parameters
    ----------
    rdm : DataArray (image, image_2)
        What the caller gave.

    Returns
    -------
    str
        What it compares.

    Raises
    ------
    InvalidInputError
        If it is none, or several.
    """
    dim = pair_dim(rdm)
    if extra := extra_dims(rdm):
        raise InvalidInputError(
            f"The RDM has more dims than two: {', '.join(extra)}. Show all of them with "
            f"fs.plots.gallery(rdm), one with rdm.isel({extra[0]}=0), or their mean with "
            f"rdm.mean({extra[0]!r}).",
            dims=rdm.dims,
        )
    return dim
