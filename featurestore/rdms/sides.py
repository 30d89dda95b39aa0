"""What is known of each row beside the matrix of pairs, and what follows for a pair of rows.

With x the values of a row, p their number, m their mean and n² the sum of their squares about it::

    |x|² = n² + p m²
    1 − cos = (d² − (|x|−|y|)²) / (2 |x||y|)
    1 − r   = (d² − p (m_x−m_y)² − (n_x−n_y)²) / (2 n_x n_y)

where d² is the squared euclidean distance. Nothing is computed as one minus a number near one.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

CONSTANT = 1e-13
"""A row whose n² is at most this share of |x|² varies by less than float32 can say."""
EXACTLY_CONSTANT = 1e-28
"""At most this share: all values are equal, up to the rounding of their mean in float64."""


@dataclass(frozen=True)
class Sides:
    """Side vectors of rows, each of shape (n,), float64."""

    mean: NDArray[np.float64]
    sumsq: NDArray[np.float64]
    """Sum of squares about the mean."""
    n_features: int

    def __getitem__(self, rows: slice | NDArray[np.intp]) -> Sides:
        return Sides(self.mean[rows], self.sumsq[rows], self.n_features)

    def __len__(self) -> int:
        return len(self.mean)

    @classmethod
    def of(cls, statistics: NDArray[np.float64], n_features: int) -> Sides:
        """Take the side vectors from row statistics.

        Parameters
        ----------
        statistics : ndarray of shape (n, 2), float64
            Mean and centred sum of squares.
        n_features : int
            Values per row.

        Returns
        -------
        Sides
            Of the same rows.
        """
        return cls(statistics[:, 0].copy(), statistics[:, 1].copy(), n_features)

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
    def spread(self) -> NDArray[np.float64]:
        """Length of each row about its mean."""
        return np.sqrt(self.sumsq)

    @cached_property
    def constant(self) -> NDArray[np.bool_]:
        """Rows that do not vary: they have no correlation with anything."""
        return np.asarray(self.sumsq <= CONSTANT * self.norm**2)

    @cached_property
    def exactly_constant(self) -> NDArray[np.bool_]:
        """Rows whose values are all equal."""
        return np.asarray(self.sumsq <= EXACTLY_CONSTANT * self.norm**2)

    @cached_property
    def shift(self) -> NDArray[np.float64]:
        """What is taken off each row before rows are multiplied: its mean, as float32 has it."""
        mean = np.where(self.finite, self.mean, 0.0)
        with np.errstate(over="ignore"):
            shift = mean.astype(np.float32).astype(np.float64)
        return np.where(np.isfinite(shift), shift, 0.0)

    @cached_property
    def slope(self) -> NDArray[np.float64]:
        """2 s + p r of each row, r its shift and s the sum of what is left."""
        rest = self.n_features * (self.mean - self.shift)
        return 2 * rest + self.n_features * self.shift


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
