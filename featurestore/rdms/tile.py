"""A piece of the matrix of all pairs, from which every metric follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.rdms.sides import Sides, correlation_excess, cosine_excess

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

STRIP_VALUES = 2**15  # what stays in the cache of a processor
NOISE = 64 * 2.0**-52
"""Cosine and correlation distances below are zero: float32 values cannot say otherwise."""


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

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.squares.shape[0], self.squares.shape[1]

    def transpose(self) -> Tile:
        """Return the tile with its rows as columns.

        Returns
        -------
        Tile
            A view.
        """
        order = np.lexsort((self.pairs[:, 0], self.pairs[:, 1]))
        return Tile(self.squares.T, self.pairs[order, ::-1], self.near[order])

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
        return Tile(self.squares[start:stop], moved, self.near[first:last])


def _squares(tile: Tile, _a: Sides, _b: Sides) -> NDArray[np.float64]:
    return tile.squares


def _distances(tile: Tile, _a: Sides, _b: Sides) -> NDArray[np.float64]:
    return np.sqrt(tile.squares)


def _cosine(tile: Tile, a: Sides, b: Sides) -> NDArray[np.float64]:
    values = cosine_excess(tile.squares, a, b)
    return _scaled(values, a.norm, b.norm, a.norm == 0, b.norm == 0, tile, 0)


def _correlation(tile: Tile, a: Sides, b: Sides) -> NDArray[np.float64]:
    values = correlation_excess(tile.squares, a, b)
    return _scaled(values, a.spread, b.spread, a.constant, b.constant, tile, 1)


def _scaled(
    values: NDArray[np.float64],
    size_a: NDArray[np.float64],
    size_b: NDArray[np.float64],
    none_a: NDArray[np.bool_],
    none_b: NDArray[np.bool_],
    tile: Tile,
    kind: int,
) -> NDArray[np.float64]:
    values /= 2 * size_a[:, None]
    values /= size_b
    values[tile.pairs[:, 0], tile.pairs[:, 1]] = tile.near[:, kind]
    values[values < NOISE] = 0
    np.minimum(values, 2, out=values)
    values[none_a] = np.nan
    values[:, none_b] = np.nan
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
