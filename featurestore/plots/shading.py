"""From dissimilarities to colours: scaling, limits, and the bar that explains them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.stats import rankdata

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.optional import import_optional
from featurestore.plots.lettering import font_size, ink, wrapped
from featurestore.rdms.metrics import UNITS

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

MISSING = "0.6"
"""The grey of cells without a value: in no colour map used here, and seen on white and black."""

BAR_GAP_IN, BAR_WIDTH_IN, BAR_SHARE, LEAST_BAR_IN = 0.14, 0.15, 0.75, 0.5


def rank_scaled(values: NDArray[Any]) -> NDArray[np.float64]:
    """Replace dissimilarities by their ranks among all pairs, from 0 to 1.

    Parameters
    ----------
    values : ndarray of shape (n, n)
        A symmetric RDM.

    Returns
    -------
    ndarray of shape (n, n), float64
        (rank − 1) / (m − 1) among the m pairs that have a value, ties sharing their mean rank:
        the share of the other pairs that are more alike. One pair alone, or pairs that are all
        tied, have 0.5. The diagonal is no pair: it stays 0.

    Examples
    --------
    >>> rank_scaled(np.array([[0, 3, 9], [3, 0, 5], [9, 5, 0]])).tolist()
    [[0.0, 0.0, 1.0], [0.0, 0.0, 0.5], [1.0, 0.5, 0.0]]
    """
    upper = np.triu_indices(len(values), k=1)
    pairs = np.asarray(values, dtype=np.float64)[upper]
    there = ~np.isnan(pairs)
    m = int(there.sum())
    ranks = np.full(len(pairs), np.nan)
    ranks[there] = (rankdata(pairs[there]) - 1) / (m - 1) if m > 1 else 0.5
    out = np.zeros(np.shape(values))
    out[upper] = ranks
    out += out.T
    out[np.diag_indices_from(out)] = np.where(np.isnan(np.diagonal(values)), np.nan, 0.0)
    return out


def as_they_are(values: NDArray[Any]) -> NDArray[Any]:
    """Return dissimilarities as they are.

    Parameters
    ----------
    values : ndarray of shape (n, n)
        An RDM.

    Returns
    -------
    ndarray of shape (n, n)
        The same.
    """
    return values


SCALINGS: dict[str, Callable[[NDArray[Any]], NDArray[Any]]] = {
    "rank": rank_scaled,
    "raw": as_they_are,
}


def require_scaling(scaling: str) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Return how dissimilarities become shades.

    Parameters
    ----------
    scaling : str
        A key of `SCALINGS`.

    Returns
    -------
    callable
        From (n, n) to (n, n).

    Raises
    ------
    InvalidInputError
        If there is none of that name.
    """
    if scaling not in SCALINGS:
        raise InvalidInputError(
            f"scaling={scaling!r} is not known. Use 'rank' (ranks of all pairs, 0 to 1) or 'raw' "
            f"(the dissimilarities themselves).{did_you_mean(str(scaling), SCALINGS)}",
            scaling=scaling,
        )
    return SCALINGS[scaling]


def unit_label(attrs: Mapping[Any, Any], scaling: str) -> str:
    """Say what the shades mean.

    Parameters
    ----------
    attrs : mapping
        Attributes of the RDM: ``units``, or else ``metric``, if it has them.
    scaling : str
        ``"rank"`` or ``"raw"``.

    Returns
    -------
    str
        The label of the bar.

    Examples
    --------
    >>> unit_label({"metric": "correlation"}, "rank")
    'rank of 1 − Pearson r (0 to 1)'
    """
    metric = str(attrs.get("metric") or "dissimilarity")
    if metric == "unknown":  # what `read_rdms` says where nobody told it
        metric = "dissimilarity"
    unit = str(attrs.get("units") or UNITS.get(metric, metric))
    return f"rank of {unit} (0 to 1)" if scaling == "rank" else unit


@dataclass(frozen=True)
class Shades:
    """Colours of values, shared by whatever is compared."""

    cmap: Any
    low: float
    high: float
    label: str
    has_missing: bool

    def draw(self, ax: Any, values: NDArray[Any], *, aspect: str = "equal") -> Any:
        """Draw a matrix as coloured cells, the first row on top.

        Parameters
        ----------
        ax : matplotlib.axes.Axes
            Where to.
        values : ndarray of shape (n, m)
            What; NaN is grey.
        aspect : str
            ``"equal"`` for square cells, else ``"auto"``.

        Returns
        -------
        matplotlib.image.AxesImage
            The cells.
        """
        return ax.imshow(
            np.ma.masked_invalid(values),
            cmap=self.cmap,
            vmin=self.low,
            vmax=self.high,
            interpolation="antialiased",
            origin="upper",
            aspect=aspect,
        )


def shades(
    values: Sequence[NDArray[Any]],
    *,
    cmap: Any,
    vmin: float | None,
    vmax: float | None,
    label: str,
    low: float | None = 0.0,
    high: float | None = None,
) -> Shades:
    """Find the limits of colours.

    Parameters
    ----------
    values : sequence of ndarray
        All that is shown with these colours.
    cmap : str or matplotlib.colors.Colormap
        The colours.
    vmin, vmax : float, optional
        What the caller wants as limits.
    label : str
        What the values are.
    low, high : float, optional
        Limits otherwise, if the values do not lie beyond; none: those of the values.

    Returns
    -------
    Shades
        Ready to draw.
    """
    finite = np.concatenate([np.ravel(v)[np.isfinite(np.ravel(v))] for v in values])
    least, most = (float(finite.min()), float(finite.max())) if len(finite) else (0.0, 1.0)
    bottom = min(least, least if low is None else low) if vmin is None else vmin
    top = max(most, most if high is None else high) if vmax is None else vmax
    if not bottom < top:
        if vmin is not None and vmax is not None:
            raise InvalidInputError(f"vmin={vmin!r} must be below vmax={vmax!r}.")
        bottom, top = (bottom, bottom + 1.0) if vmax is None else (top - 1.0, top)
    colours = import_optional("matplotlib", "plot").colormaps
    try:
        chosen = colours[cmap] if isinstance(cmap, str) else cmap
    except KeyError as err:
        raise InvalidInputError(
            f"matplotlib has no colour map {cmap!r}.{did_you_mean(cmap, list(colours))}"
        ) from err
    chosen = chosen.with_extremes(bad=MISSING)
    missing = any(not np.isfinite(v).all() for v in values)
    return Shades(chosen, bottom, top, label, missing)


def explain(ax: Any, image: Any, shade: Shades, size: tuple[float, float]) -> list[Any]:
    """Draw the colour bar beside axes, and what grey means where there is grey.

    Parameters
    ----------
    ax : matplotlib.axes.Axes
        The axes.
    image : matplotlib.image.AxesImage
        The cells.
    shade : Shades
        Their colours.
    size : (float, float)
        Width and height of the axes [inches].

    Returns
    -------
    list of matplotlib.artist.Artist
        What was added.
    """
    width, height = size
    scale = min(1.0, max(0.6, height / 3.5))
    small = font_size(0.8 * scale)
    x, w = 1 + BAR_GAP_IN / width, BAR_WIDTH_IN * scale / width
    share = min(1.0, max(BAR_SHARE, LEAST_BAR_IN / height))
    inset = ax.inset_axes((x, (1 - share) / 2, w, share))
    bar = ax.figure.colorbar(image, cax=inset, extend=_beyond(image.get_array(), shade))
    bar.outline.set_visible(False)
    ticks = import_optional("matplotlib.ticker", "plot")
    n_ticks = max(1, min(6, int(height * share / 0.35)))
    bar.locator = ticks.MaxNLocator(nbins=n_ticks, steps=[1, 2, 2.5, 5, 10])
    bar.update_ticks()
    inset.tick_params(labelsize=small, length=2, pad=2)
    text, letters = wrapped(ax.figure, shade.label, max(height, 1.0), font_size(0.9 * scale), 5.5)
    bar.set_label(text, fontsize=letters)
    added = [inset]
    if shade.has_missing:
        y = (1 - share) / 2 - 0.22 * scale / height
        h = BAR_WIDTH_IN * scale / height * 0.8
        added.append(_grey_cell(ax, (x, y - h / 2, w, h), small))
    return added


def _grey_cell(ax: Any, box: tuple[float, float, float, float], size: float) -> Any:
    """Show the colour of cells without a value."""
    grey = ax.inset_axes(box)
    grey.set(xticks=[], yticks=[], facecolor=MISSING)
    grey.spines[:].set_visible(False)
    style = {"va": "center", "ha": "left", "fontsize": size, "color": ink()}
    grey.text(1.35, 0.5, "no value", transform=grey.transAxes, **style)
    return grey


def _beyond(values: Any, shade: Shades) -> str:
    """Say at which ends of the bar there are values beyond it."""
    below, above = bool((values < shade.low).any()), bool((values > shade.high).any())
    return {(True, True): "both", (True, False): "min", (False, True): "max"}.get(
        (below, above), "neither"
    )
