"""Images in a plane, near each other where they are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.optional import import_optional
from featurestore.plots.canvas import open_canvas
from featurestore.plots.crowd import COVERED, largest_edge, picture_edge, place_names
from featurestore.plots.embedding import embed, require_embedding
from featurestore.plots.files import Target
from featurestore.plots.heatmap import require_flat, title_of
from featurestore.plots.lettering import PLAIN, font_size, ink, measure, shorten, wrapped
from featurestore.plots.ordering import arrange, read_pairs
from featurestore.plots.palette import PALETTE, colours, draw_legend
from featurestore.plots.pictures import read_thumbnails
from featurestore.plots.shading import MISSING, unit_label

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.plots.ordering import Shown
    from featurestore.plots.pictures import Thumbnail
    from featurestore.typing import PathLike

LEAST_SIDE_IN, MOST_SIDE_IN = 4.2, 8.0
MARGIN = 0.05  # of the plane, around the points
FLATTEST = 0.5  # height to width; a line of points still gets a plane
PICTURE_IN = 0.3
DOT_PT = 6.0
MOST_NAMES = 40
MAX_CATEGORIES = 48  # six colours and eight shapes
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")


def mds(
    rdm: xr.DataArray,
    *,
    method: str = "metric",
    seed: int = 0,
    categories: str | None = None,
    thumbnails: Any = None,
    max_images: int | None = 200,
    title: str | None = None,
    ax: Any = None,
    path: PathLike | None = None,
    dpi: int = 200,
) -> Any:
    """Arrange images in a plane by multidimensional scaling of an RDM.

    Parameters
    ----------
    rdm : DataArray (image, image_2)
        Dissimilarities, without NaN, not negative.
    method : str
        ``"metric"``: distances as near to the dissimilarities as a plane allows (SMACOF, the best
        of several starts). ``"nonmetric"``: only their order counts; takes several times as long.
        ``"classical"``: principal coordinates.
    seed : int
        Of the random starts: the same seed gives the same picture.
    categories : str, optional
        A coordinate whose values have a colour each.
    thumbnails : True, ImageSet, path or mapping, optional
        Pictures in place of dots, as for `rdm`. They shrink until there is room, and where two
        would still overlap they move; a line leads to where such a picture belongs.
    max_images : int, optional
        Arrange at most these, taken evenly, at least one of each category; the picture says so.
        None takes all.
    title : str, optional
        By default the model and module, where the RDM knows them.
    ax : matplotlib.axes.Axes, optional
        Where to draw; by default in a figure of its own.
    path : str or os.PathLike, optional
        Save the whole figure: ``.png``, ``.jpg``, ``.svg`` or ``.pdf``.
    dpi : int
        Resolution of PNG and JPG [dots per inch].

    Returns
    -------
    matplotlib.axes.Axes
        With the stress below: Kruskal's stress-1, 0 for a perfect arrangement, 0.2 for a poor one.

    Raises
    ------
    InvalidInputError
        If it is no RDM, has leading dims, NaN (`images`: their names) or negative values, or an
        option is not known.
    MissingDependencyError
        If matplotlib or scikit-learn is not installed.
    """
    Target.of(path, dpi)
    require_embedding(method)
    dim = require_flat(rdm)
    shown = arrange(rdm, dim, categories, categories, max_images)
    if len(shown.groups) > MAX_CATEGORIES:
        raise InvalidInputError(
            f"{categories!r} has {len(shown.groups)} values, and no legend tells more than "
            f"{MAX_CATEGORIES} colours apart. Choose a coarser one, or leave categories out.",
            n_categories=len(shown.groups),
        )
    names = shorten(rdm[dim].values[shown.positions].tolist())
    values = np.asarray(read_pairs(rdm, dim, shown.positions), dtype=np.float64)
    _require_distances(values, names, dim)
    wants_pictures = thumbnails is not None and thumbnails is not False
    pictures = read_thumbnails(rdm, dim, shown.positions, thumbnails) if wants_pictures else None
    # By name, so that neither colours nor the order of the rows change the arrangement.
    by_name = np.argsort(rdm[dim].values[shown.positions].astype(str), kind="stable")
    points = np.empty((len(names), 2))
    symmetric = (values + values.T)[np.ix_(by_name, by_name)] / 2
    points[by_name], stress = embed(symmetric, method, seed)
    unit = unit_label(rdm.attrs, "raw")
    notes = (f"{method} MDS of {unit}, stress {stress:.2f}", shown.note)
    side = _side(len(names)) if pictures is not None else LEAST_SIDE_IN
    edge = largest_edge(len(names), (side, side)) if pictures is not None else 0.0
    limits = _limits(points, edge / side)
    width, height = limits[1] - limits[0]
    canvas = open_canvas(ax, (side, side * float(height / width)), path, dpi)
    canvas.ax.set(xlim=limits[:, 0], ylim=limits[:, 1], xticks=[], yticks=[], aspect="equal")
    canvas.ax.spines[:].set(alpha=0.3)
    cloud = _Cloud(canvas.ax, points, names, shown, pictures, "; ".join(filter(None, notes)))
    cloud.colour()
    heading = title_of(rdm) if title is None else title
    canvas.ax.set_title(heading, fontsize=font_size(1.1), **PLAIN)
    canvas.settle(cloud.lay_out)
    return canvas.ax


def _limits(points: NDArray[np.float64], edge: float) -> NDArray[np.float64]:
    """Return the corners of the plane, shape (2, 2), for pictures that take a share of its edge."""
    low, high = points.min(axis=0), points.max(axis=0)
    reach = float((high - low).max()) or 1.0
    middle = (low + high) / 2
    margin = reach * (MARGIN + edge / 2 / (1 - edge))
    half = np.maximum((high - low) / 2 + margin, FLATTEST * (reach / 2 + margin))
    return np.stack([middle - half, middle + half])


def _side(n: int) -> float:
    """Return how long the edge of a picture of our own is, with thumbnails [inches]."""
    side = PICTURE_IN * float(np.sqrt(n / COVERED))
    return float(np.clip(side, LEAST_SIDE_IN, MOST_SIDE_IN))


@dataclass
class _Cloud:
    """What stands in the plane."""

    ax: Any
    points: NDArray[np.float64]
    names: Sequence[str]
    shown: Shown
    pictures: Sequence[Thumbnail | None] | None
    note: str
    palette: Sequence[Any] = (PALETTE[0],)
    kinds: Sequence[int] = ()

    def colour(self) -> None:
        """Give each category a colour, and explain them."""
        groups = self.shown.groups
        self.kinds = [0] * len(self.points)
        if not groups:
            if self.pictures is None:
                self._scatter(range(len(self.points)), PALETTE[0], "o", "")
            return
        plain = self.pictures is not None  # frames have no shapes to tell them apart
        many = len(PALETTE) * len(MARKERS)
        if plain or len(groups) > many:
            self.palette = colours(len(groups))
        else:
            self.palette = [PALETTE[k % len(PALETTE)] for k in range(len(groups))]
        self.kinds = [k for k, group in enumerate(groups) for _ in range(group.start, group.stop)]
        handles = []
        for k, group in enumerate(groups):
            marker = "s" if plain else MARKERS[k // len(PALETTE) % len(MARKERS)]
            which = range(0) if plain else range(group.start, group.stop)
            handles.append(self._scatter(which, self.palette[k], marker, group.name))
        draw_legend(self.ax, handles)

    def _scatter(self, which: Sequence[int], colour: Any, marker: str, name: str) -> Any:
        x, y = self.points[list(which)].T if len(which) else ([], [])
        style = {"color": colour, "marker": marker, "linewidths": 0, "alpha": 0.9, "zorder": 3}
        return self.ax.scatter(x, y, s=DOT_PT**2, label=name, **style)

    def lay_out(self, size: tuple[float, float]) -> list[Any]:
        """Draw what depends on the size of the axes; return what was added."""
        added = self._draw_pictures(size) if self.pictures is not None else self._draw_names(size)
        text, letters = wrapped(self.ax.figure, self.note, max(size[0], 1.5), font_size(0.8), 5.5)
        self.ax.set_xlabel(text, fontsize=letters, **PLAIN)
        return added

    @property
    def _corner(self) -> NDArray[np.float64]:
        return np.array([self.ax.get_xlim()[0], self.ax.get_ylim()[0]])

    def _inches(self, size: tuple[float, float]) -> tuple[NDArray[np.float64], float]:
        """Return the points in inches from the corner, and inches per unit."""
        left, right = self.ax.get_xlim()
        scale = size[0] / (right - left)
        return (self.points - self._corner) * scale, scale

    def _draw_pictures(self, size: tuple[float, float]) -> list[Any]:
        images = import_optional("matplotlib.image", "plot")
        patches = import_optional("matplotlib.patches", "plot")
        where, scale = self._inches(size)
        edge, places = picture_edge(where, size)
        half = edge / 2 / scale
        grey = np.full((1, 1, 3), round(255 * float(MISSING)), dtype=np.uint8)
        added = self._draw_leaders(where, places, edge, scale)
        for (x, y), picture, kind in zip(
            places / scale + self._corner, self.pictures or (), self.kinds, strict=True
        ):
            box = (x - half, x + half, y - half, y + half)
            image = images.AxesImage(
                self.ax, extent=box, interpolation="antialiased", origin="upper", clip_on=False,
                zorder=4,
            )  # fmt: skip
            image.set_data(grey if picture is None else picture)
            self.ax.add_artist(image)
            added.append(image)
            if self.shown.groups:
                frame = patches.Rectangle(
                    (x - half, y - half), 2 * half, 2 * half, fill=False, linewidth=1.5,
                    edgecolor=self.palette[kind], zorder=5, clip_on=False,
                )  # fmt: skip
                self.ax.add_artist(frame)
                added.append(frame)
        return added

    def _draw_leaders(
        self, where: NDArray[np.float64], places: NDArray[np.float64], edge: float, scale: float
    ) -> list[Any]:
        """Lead from pictures to the points that they no longer cover."""
        collections = import_optional("matplotlib.collections", "plot")
        away = np.abs(places - where).max(axis=1) > edge / 2
        lines = np.stack([where, places], axis=1)[away] / scale + self._corner
        style = {"linewidths": 0.7, "zorder": 3.5, "capstyle": "round"}
        leaders = collections.LineCollection(lines, colors=[ink()], alpha=0.6, **style)
        self.ax.add_artist(leaders)
        added = [leaders]
        if away.any():
            x, y = lines[:, 0].T
            added.append(self.ax.scatter(x, y, s=5, color=ink(), linewidths=0, zorder=6))
        return added

    def _draw_names(self, size: tuple[float, float]) -> list[Any]:
        if len(self.names) > MOST_NAMES:
            return []
        where, scale = self._inches(size)
        letters = font_size(0.75)
        boxes = measure(self.ax.figure, self.names, letters) * 1.05
        found = place_names(where, boxes, DOT_PT / 72 / 2, size)
        if any(place is None for place in found):  # some names without others would mislead
            return []
        style = {"ha": "left", "va": "bottom", "fontsize": letters, "color": ink(), **PLAIN}
        return [
            self.ax.text(*(np.array(place) / scale + self._corner), name, **style)
            for name, place in zip(self.names, found, strict=True)
            if place is not None
        ]


def _require_distances(values: NDArray[np.float64], names: Sequence[str], dim: str) -> None:
    missing = ~np.isfinite(values)
    np.fill_diagonal(missing, val=False)
    if missing.any():
        alone = missing.sum(axis=0) == max(1, len(values) - 1)
        which = np.flatnonzero(alone if alone.any() else missing.any(axis=0))
        bad = [names[k] for k in which.tolist()]
        more = f" and {len(bad) - 5:,} more" if len(bad) > 5 else ""
        raise InvalidInputError(
            f"The RDM has no finite dissimilarity for some pairs of "
            f"{', '.join(map(repr, bad[:5]))}{more}, so it is not known where they belong. Leave "
            f"them out: rdm.drop_sel({dim}=names, {dim}_2=names).",
            images=bad,
        )
    if (values < 0).any():
        raise InvalidInputError(
            f"The RDM has negative dissimilarities, down to {values.min():g}, which are no "
            "distances. If they are noise around 0, as of cross-validated distances, set them to "
            "0: rdm.clip(min=0)."
        )
