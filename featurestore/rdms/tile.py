"""A piece of the matrix of all pairs, from which every metric follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.rdms.sides import (
    Sides,
    correlation_excess,
    cosine_excess,
    quick_excess,
    sums,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

TRUSTED = 1e-8
"""What must be left of the squared length of rows where squares were multiplied out."""
STRIP_VALUES = 2**17  # smaller strips cost more in calls than they gain in the cache
NOISE = {4: 64 * 2.0**-52, 8: 64 * 2.0**-104}
"""Cosine and correlation distances below are zero: float32, or float64, cannot say otherwise."""


@dataclass(frozen=True)
class Tile:
    """Squared distances between some rows and some others.

    Cosine and correlation distances follow from them by `featurestore.rdms.sides`, but for pairs
    that are so close that this loses digits: those are kept as they are.
    """

    squares: NDArray[np.float64]
    """Shape (n_a, n_b); NaN where a row is not finite."""
    pairs: NDArray[np.uint32] = field(default_factory=lambda: np.empty((0, 2), np.uint32))
    """Close pairs, as positions in `squares`, by rows: shape (k, 2)."""
    near: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 2)))
    """Their cosine and correlation distances: shape (k, 2); NaN where there is none."""
    n_same: int = 0
    """How many of the pairs are of a row with itself."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.squares.shape[0], self.squares.shape[1]

    def rows(self, start: int, stop: int) -> Tile:
        """Return some of its rows.

        Parameters
        ----------
        start, stop : int
            Which rows.

        Returns
        -------
        Tile
            A view.
        """
        first, last = np.searchsorted(self.pairs[:, 0], (start, stop))
        moved = self.pairs[first:last] - np.array([start, 0], np.uint32)
        n_same = min(self.n_same, stop - start)
        return Tile(self.squares[start:stop], moved, self.near[first:last], n_same)


def _squares(tile: Tile, _a: Sides, _b: Sides) -> NDArray[np.float64]:
    return tile.squares


def _distances(tile: Tile, _a: Sides, _b: Sides) -> NDArray[np.float64]:
    return np.sqrt(tile.squares)


def _cosine(tile: Tile, a: Sides, b: Sides) -> NDArray[np.float64]:
    scale = (a.norm, b.norm)
    return _scaled(tile, a, b, scale, (a.norm == 0, b.norm == 0), cosine_excess)


def _correlation(tile: Tile, a: Sides, b: Sides) -> NDArray[np.float64]:
    scale = (a.spread, b.spread)
    return _scaled(tile, a, b, scale, (a.constant, b.constant), correlation_excess)


def _scaled(
    tile: Tile,
    a: Sides,
    b: Sides,
    scale: tuple[NDArray[np.float64], NDArray[np.float64]],
    none: tuple[NDArray[np.bool_], NDArray[np.bool_]],
    excess: Callable[[NDArray[np.float64], Sides, Sides], NDArray[np.float64]],
) -> NDArray[np.float64]:
    is_correlation = excess is correlation_excess
    values = quick_excess(tile.squares, a, b, centred=is_correlation)
    trusted = TRUSTED * (np.max(a.norm, initial=0) ** 2 + np.max(b.norm, initial=0) ** 2)
    values[tile.pairs[:, 0], tile.pairs[:, 1]] = np.inf  # known already
    # Rows without a direction, and rows that are not finite, are NaN in the end.
    n_small = np.count_nonzero(~(values > trusted))
    if n_small > tile.n_same:
        values = excess(tile.squares, a, b)
    values *= sums([0.5 / scale[0]], [1 / scale[1]], "scale")
    values[tile.pairs[:, 0], tile.pairs[:, 1]] = tile.near[:, int(is_correlation)]
    if n_small or len(tile.pairs):
        values[values < NOISE[a.itemsize]] = 0
    np.minimum(values, 2, out=values)
    values[none[0]] = np.nan
    values[:, none[1]] = np.nan
    return values


BASE_METRICS: Mapping[str, Callable[[Tile, Sides, Sides], NDArray[np.float64]]] = {
    "correlation": _correlation,
    "cosine": _cosine,
    "euclidean": _distances,
    "sqeuclidean": _squares,
}
"""Metrics of a pair that need nothing but the pair."""


def distances(
    tile: Tile, metric: str, a: Sides, b: Sides, dtype: type[np.floating[Any]] = np.float32
) -> NDArray[Any]:
    """Return dissimilarities of one metric.

    Parameters
    ----------
    tile : Tile
        Pairs of rows.
    metric : str
        One of `BASE_METRICS`.
    a, b : Sides
        Of the tile's rows and columns.
    dtype : type
        ``np.float32`` or ``np.float64``; computed in float64 either way.

    Returns
    -------
    ndarray of shape (n_a, n_b)
        NaN for rows that are not finite, for constant rows if `metric` is ``"correlation"`` and
        for zero rows if it is ``"cosine"``.
    """
    out = np.empty(tile.shape, dtype)
    compute, step = BASE_METRICS[metric], max(1, STRIP_VALUES // max(1, tile.shape[1]))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        for start in range(0, len(out), step):
            strip = slice(start, min(start + step, len(out)))
            out[strip] = compute(tile.rows(strip.start, strip.stop), a[strip], b)
    return out
