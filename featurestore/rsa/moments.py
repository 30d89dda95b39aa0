"""Correlations and cosines of vectors that are seen strip by strip, in float64."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Matrix = NDArray[np.float64]

FEW = 8  # products of two vectors each; more are left to BLAS
MIN_PAIRS = 2  # fewer have no correlation
ROUNDING = 1e-26  # of a sum of squares, twice the digits of float64


class Moments:
    """Centred sums of squares and products of each of k vectors with each of l others.

    Strips are centred on their own means and merged by those (Chan, Golub & LeVeque 1983, Am Stat
    37:242, https://doi.org/10.1080/00031305.1983.10483115), so nothing cancels. Pairs that are NaN
    in either vector are left out of that comparison.

    Parameters
    ----------
    k, l : int
        How many vectors there are on each side.
    """

    def __init__(self, k: int, l: int) -> None:  # noqa: E741 - k by l, as in the text
        zeros = [np.zeros((k, l)) for _ in range(6)]
        self.n, self._mean_a, self._mean_b, self._aa, self._bb, self._ab = zeros
        self._origin_a, self._origin_b = np.full(k, np.nan), np.full(l, np.nan)

    def add(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        """Take in one strip.

        Parameters
        ----------
        a : ndarray of shape (k, s)
            Part of the vectors on one side.
        b : ndarray of shape (l, s)
            The same part of those on the other. May be `a` itself.
        """
        left, has_a = _from_origin(a, self._origin_a)
        right, has_b = (left, has_a) if a is b else _from_origin(b, self._origin_b)
        if has_a is None and has_b is None:
            self._merge(*_whole(left, right))
        else:
            self._merge(*_pair_by_pair(left, right, has_a, has_b))

    def correlations(self) -> Matrix:
        """Return Pearson correlations.

        Returns
        -------
        ndarray of shape (k, l), float64
            NaN where a vector is constant.
        """
        # What is constant among the pairs that both have is so up to the rounding of its mean.
        aa = np.where(self._aa > ROUNDING * self.n * self._mean_a**2, self._aa, 0.0)
        bb = np.where(self._bb > ROUNDING * self.n * self._mean_b**2, self._bb, 0.0)
        return _normalised(self._ab, aa, bb)

    def _merge(self, n: Any, mean_a: Any, mean_b: Any, aa: Any, bb: Any, ab: Any) -> None:
        total = self.n + n
        with np.errstate(invalid="ignore", divide="ignore"):
            share = np.where(total > 0, n / total, 0.0)
        step_a, step_b = mean_a - self._mean_a, mean_b - self._mean_b
        weight = self.n * share
        self._aa += aa + weight * step_a**2
        self._bb += bb + weight * step_b**2
        self._ab += ab + weight * step_a * step_b
        self._mean_a += share * step_a
        self._mean_b += share * step_b
        self.n = total


class Products:
    """Sums of squares and products of each of k vectors with each of l others.

    Pairs that are NaN in either vector are left out of that comparison.

    Parameters
    ----------
    k, l : int
        How many vectors there are on each side.
    """

    def __init__(self, k: int, l: int) -> None:  # noqa: E741 - k by l, as in the text
        self.n, self._aa, self._bb, self._ab = (np.zeros((k, l)) for _ in range(4))

    def add(self, a: NDArray[Any], b: NDArray[Any]) -> None:
        """Take in one strip.

        Parameters
        ----------
        a : ndarray of shape (k, s)
            Part of the vectors on one side.
        b : ndarray of shape (l, s)
            The same part of those on the other.
        """
        left, right = a.astype(np.float64), b.astype(np.float64)
        has_a, has_b = ~np.isnan(left), ~np.isnan(right)
        left[~has_a] = 0.0
        right[~has_b] = 0.0
        one_a, one_b = has_a.astype(np.float64), has_b.astype(np.float64)
        self.n += inner_products(one_a, one_b)
        self._aa += inner_products(left**2, one_b)
        self._bb += inner_products(one_a, right**2)
        self._ab += inner_products(left, right)

    def cosines(self) -> Matrix:
        """Return cosines.

        Returns
        -------
        ndarray of shape (k, l), float64
            NaN where a vector is all 0.
        """
        few = self.n < MIN_PAIRS
        return _normalised(np.where(few, np.nan, self._ab), self._aa, self._bb)


def inner_products(a: Matrix, b: Matrix) -> Matrix:
    """Multiply each of some vectors with each of others.

    Parameters
    ----------
    a : ndarray of shape (k, s), float64
        Vectors.
    b : ndarray of shape (l, s), float64
        Others.

    Returns
    -------
    ndarray of shape (k, l), float64
        Their inner products. Of few vectors, summed pairwise and by one thread: threads of BLAS
        would wait for each other longer than they work.
    """
    if len(a) * len(b) > FEW:
        return np.asarray(a @ b.T, dtype=np.float64)
    return np.array([[np.multiply(x, y).sum() for y in b] for x in a])


def _normalised(ab: Matrix, aa: Matrix, bb: Matrix) -> Matrix:
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(np.clip(ab / (np.sqrt(aa) * np.sqrt(bb)), -1.0, 1.0))


def _from_origin(strip: NDArray[Any], origin: Matrix) -> tuple[Matrix, NDArray[np.bool_] | None]:
    """Subtract each vector's first value, so that what is constant is exactly 0.

    Also says which values there are; none: all.
    """
    for row in np.flatnonzero(np.isnan(origin)):
        there = strip[row][~np.isnan(strip[row])]
        if len(there):
            origin[row] = there[0]
    shifted = strip.astype(np.float64)
    shifted -= np.where(np.isnan(origin), 0.0, origin)[:, None]
    missing = np.isnan(shifted)
    if not missing.any():
        return shifted, None
    shifted[missing] = 0.0
    return shifted, ~missing


def _whole(left: Matrix, right: Matrix) -> tuple[Any, ...]:
    """Return count, means and centred sums of strips without NaN."""
    count = left.shape[1]
    if not count:
        return 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    mean_a, mean_b = left.mean(axis=1), right.mean(axis=1)
    centred_a = left - mean_a[:, None]
    centred_b = centred_a if left is right else right - mean_b[:, None]
    aa, bb = (centred_a**2).sum(axis=1), (centred_b**2).sum(axis=1)
    ab = inner_products(centred_a, centred_b)
    return float(count), mean_a[:, None], mean_b[None], aa[:, None], bb[None], ab


def _pair_by_pair(
    left: Matrix,
    right: Matrix,
    has_a: NDArray[np.bool_] | None,
    has_b: NDArray[np.bool_] | None,
) -> tuple[Any, ...]:
    """Return count, means and centred sums of what each two strips both have."""
    out = np.zeros((6, len(left), len(right)))
    for i, a in enumerate(left):
        for j, b in enumerate(right):
            both = np.ones(left.shape[1], dtype=bool)
            for has, row in ((has_a, i), (has_b, j)):
                if has is not None:
                    both &= has[row]
            out[:, i, j] = [np.ravel(x)[0] for x in _whole(a[both][None], b[both][None])]
    return tuple(out)
