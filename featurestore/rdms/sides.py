"""What is known of each row beside the matrix of pairs, and what follows for a pair of rows.

With x the values of a row, p their number, m their mean and n² the sum of their squares about it::

    |x|² = n² + p m²
    1 − cos = (d² − (|x|−|y|)²) / (2 |x||y|)
    1 − r   = (d² − p (m_x−m_y)² − (n_x−n_y)²) / (2 n_x n_y)

where d² is the squared euclidean distance. Nothing is computed as one minus a number near one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_memory = threading.local()

CONSTANT, CONSTANT_64 = 1e-13, 1e-28
"""A row whose n² is at most this share of |x|² varies by less than float32, or float64, can say."""
EXACTLY_CONSTANT = 1e-28
"""At most this share: all values are equal, up to the rounding of their mean in float64."""


@dataclass(frozen=True)
class Sides:
    """Side vectors of rows, each of shape (n,), float64."""

    mean: NDArray[np.float64]
    sumsq: NDArray[np.float64]
    """Sum of squares about the mean."""
    n_features: int
    itemsize: int = 4
    """Of the values that the rows were made of [bytes]."""

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Sides:
        return Sides(self.mean[rows], self.sumsq[rows], self.n_features, self.itemsize)

    def __len__(self) -> int:
        return len(self.mean)

    @classmethod
    def of(cls, statistics: NDArray[np.float64], n_features: int, itemsize: int = 4) -> Sides:
        """Take the side vectors from row statistics.

        Parameters
        ----------
        statistics : ndarray of shape (n, 2), float64
            Mean and centred sum of squares.
        n_features : int
            Values per row.
        itemsize : int
            Size of a value as it was read: 4 or 8 [bytes].

        Returns
        -------
        Sides
            Of the same rows.
        """
        return cls(statistics[:, 0].copy(), statistics[:, 1].copy(), n_features, itemsize)

    @cached_property
    def finite(self) -> NDArray[np.bool_]:
        """Which rows hold finite values only, whose squares can be summed."""
        return np.isfinite(self.mean) & np.isfinite(self.sumsq) & np.isfinite(self.norm)

    @cached_property
    def norm(self) -> NDArray[np.float64]:
        """Length of each row."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.sqrt(self.sumsq + self.n_features * self.mean**2)

    @cached_property
    def power(self) -> NDArray[np.float64]:
        """Squared length of what the mean alone makes of each row."""
        with np.errstate(over="ignore", invalid="ignore"):
            return self.n_features * self.mean**2

    @cached_property
    def spread(self) -> NDArray[np.float64]:
        """Length of each row about its mean."""
        return np.sqrt(self.sumsq)

    @cached_property
    def constant(self) -> NDArray[np.bool_]:
        """Rows that do not vary: they have no correlation with anything."""
        share = CONSTANT if self.itemsize == 4 else CONSTANT_64
        return np.asarray(self.sumsq <= share * self.norm**2)

    @cached_property
    def exactly_constant(self) -> NDArray[np.bool_]:
        """Rows whose values are all equal."""
        return np.asarray(self.sumsq <= EXACTLY_CONSTANT * self.norm**2)

    @cached_property
    def shift(self) -> NDArray[np.float64]:
        """What is taken off each row before rows are multiplied: its mean, as float32 has it."""
        return as_float32(np.where(self.finite, self.mean, 0.0))

    @cached_property
    def slope(self) -> NDArray[np.float64]:
        """2 s + p r of each row, r its shift and s the sum of what is left."""
        rest = self.n_features * (self.mean - self.shift)
        return 2 * rest + self.n_features * self.shift


def as_float32(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Round numbers to what float32 can hold, where its range allows.

    Parameters
    ----------
    values : ndarray, float64
        Finite.

    Returns
    -------
    ndarray, float64
        Rounded, or as they were.
    """
    with np.errstate(over="ignore"):
        rounded = values.astype(np.float32).astype(np.float64)
    return np.where(np.isfinite(rounded), rounded, values)


def sums(
    left: Sequence[NDArray[np.float64] | float],
    right: Sequence[NDArray[np.float64] | float],
    name: str,
) -> NDArray[np.float64]:
    """Return a sum of outer products: one pass where arithmetic by broadcasting takes several.

    Parameters
    ----------
    left, right : sequence of ndarray of shape (n_a,) or (n_b,), or float
        Factors of each term; a number stands for equal entries.
    name : str
        Names the memory of this thread that is used: fresh memory costs more than the sum.

    Returns
    -------
    ndarray of shape (n_a, n_b), float64
        The sum over terms; good until this thread asks for the same name again.
    """
    factors_a = np.stack(np.broadcast_arrays(*left), axis=1)
    factors_b = np.stack(np.broadcast_arrays(*right))
    out = scratch((len(factors_a), factors_b.shape[1]), np.float64, name)
    return np.matmul(factors_a, factors_b, out=out)


def scratch(shape: tuple[int, int], dtype: type[np.floating[Any]], name: str) -> NDArray[Any]:
    """Return memory of this thread, to be used again and again.

    Parameters
    ----------
    shape : (int, int)
        Its shape.
    dtype : type
        Its dtype.
    name : str
        Which memory.

    Returns
    -------
    ndarray
        Holds anything. Fresh memory costs a page fault per 4 KiB, about as much as filling it.
    """
    held: NDArray[Any] | None = getattr(_memory, name, None)
    size = shape[0] * shape[1]
    if held is None or held.size < size:
        held = np.empty(size, dtype)
        setattr(_memory, name, held)
    return held[:size].reshape(shape)


def unshift(squares: NDArray[np.float64], a: Sides, b: Sides) -> None:
    """Turn squared distances of shifted rows into those of the rows, in place.

    Parameters
    ----------
    squares : ndarray of shape (n_a, n_b), float64
        Squared distances between rows less their own shifts.
    a, b : Sides
        Of the rows.
    """
    squares += (a.shift[:, None] - b.shift) * (a.slope[:, None] - b.slope)


def cosine_excess(squares: NDArray[np.float64], a: Sides, b: Sides) -> NDArray[np.float64]:
    """Return 2 |x||y| (1 − cos) from squared distances.

    Parameters
    ----------
    squares : ndarray of shape (n_a, n_b), float64
        Squared euclidean distances.
    a, b : Sides
        Of the rows.

    Returns
    -------
    ndarray of shape (n_a, n_b), float64
        Not negative but for rounding.
    """
    excess = a.norm[:, None] - b.norm
    excess *= excess
    np.subtract(squares, excess, out=excess)
    return excess


def correlation_excess(squares: NDArray[np.float64], a: Sides, b: Sides) -> NDArray[np.float64]:
    """Return 2 n_x n_y (1 − r) from squared distances.

    Parameters
    ----------
    squares : ndarray of shape (n_a, n_b), float64
        Squared euclidean distances.
    a, b : Sides
        Of the rows.

    Returns
    -------
    ndarray of shape (n_a, n_b), float64
        Not negative but for rounding.
    """
    excess = a.mean[:, None] - b.mean
    excess *= excess
    excess *= -a.n_features
    excess += squares
    spread = a.spread[:, None] - b.spread
    spread *= spread
    excess -= spread
    return excess


def quick_excess(
    squares: NDArray[np.float64], a: Sides, b: Sides, *, centred: bool
) -> NDArray[np.float64]:
    """Return `cosine_excess`, or `correlation_excess` if `centred`, with squares multiplied out.

    Faster, and good to 1e-15 of the squared length of the rows rather than of the result.

    Parameters
    ----------
    squares : ndarray of shape (n_a, n_b), float64
        Squared euclidean distances.
    a, b : Sides
        Of the rows.
    centred : bool
        Whether means count.

    Returns
    -------
    ndarray of shape (n_a, n_b), float64
        Memory of `scratch`.
    """
    if centred:
        mean_a, mean_b = np.sqrt(a.n_features) * a.mean, np.sqrt(a.n_features) * b.mean
        left = (-(a.norm**2), -1.0, 2 * mean_a, 2 * a.spread)
        excess = sums(left, (1.0, b.norm**2, mean_b, b.spread), "excess")
    else:
        excess = sums((-(a.norm**2), -1.0, 2 * a.norm), (1.0, b.norm**2, b.norm), "excess")
    excess += squares
    return excess
