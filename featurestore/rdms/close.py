"""From sums of products to squared distances, and which of them cannot be trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.rdms.sides import Sides, cosine_excess, sums, unshift

if TYPE_CHECKING:
    from numpy.typing import NDArray

CANCELS = 1e-8
"""What a difference of two numbers in float64 must leave of them."""
PLAIN = 1e6
"""Means that exceed what is left of rows by this factor are not multiplied out."""


def is_plain(sides: Sides, norms: NDArray[np.float64]) -> bool:
    """Say whether `find_close_quickly` may be used.

    Parameters
    ----------
    sides : Sides
        Of rows.
    norms : ndarray of shape (n,), float64
        Sum of squares of each row once it is shifted.

    Returns
    -------
    bool
        Whether no row is constant or not finite, and no mean is huge.
    """
    if not sides.finite.all() or sides.constant.any():
        return False
    largest = max(float(sides.power.max()), float(sides.sumsq.max()))
    return bool(largest < PLAIN * norms.min())


def find_close_quickly(
    products: NDArray[np.float64],
    a: Sides,
    b: Sides,
    norms_a: NDArray[np.float64],
    norms_b: NDArray[np.float64],
    share: float,
) -> NDArray[np.intp]:
    """Do what `find_close` does, with squares multiplied out.

    Parameters
    ----------
    products : ndarray of shape (n_a, n_b), float64
        Minus twice the products of shifted rows; squared distances afterwards.
    a, b : Sides
        Of the rows: plain ones.
    norms_a, norms_b : ndarray of shape (n_a,) and (n_b,), float64
        Sums of squares of the shifted rows.
    share : float
        What a distance must leave of these.

    Returns
    -------
    ndarray of shape (k, 2), intp
        Pairs that are not trusted.
    """
    kept_a, kept_b = (1 - share) * norms_a - a.sumsq, (1 - share) * norms_b - b.sumsq
    left = sums((kept_a, 1.0, 2 * a.spread), (1.0, kept_b, b.spread), "left")
    left += products
    close = np.argwhere(left <= 0) if left.min() <= 0 else np.empty((0, 2), np.intp)
    size_a, size_b = norms_a + a.shift * a.slope, norms_b + b.shift * b.slope
    products += sums((size_a, 1.0, -a.shift, -a.slope), (1.0, size_b, b.slope, b.shift), "left")
    return close


def find_close(
    products: NDArray[np.float64],
    a: Sides,
    b: Sides,
    norms_a: NDArray[np.float64],
    norms_b: NDArray[np.float64],
    share: float,
) -> NDArray[np.intp]:
    """Turn products into squared distances in place, and find pairs that are not trusted.

    By the triangle inequality what correlation leaves of a squared distance is never more than
    what the cosine does, and shifted rows are apart by what is left of it but for their spreads.

    Parameters
    ----------
    products : ndarray of shape (n_a, n_b), float64
        Minus twice the products of shifted rows; squared distances afterwards.
    a, b : Sides
        Of the rows.
    norms_a, norms_b : ndarray of shape (n_a,) and (n_b,), float64
        Sums of squares of the shifted rows.
    share : float
        What a distance must leave of these.

    Returns
    -------
    ndarray of shape (k, 2), intp
        Positions of these pairs.
    """
    squares = products
    squares += norms_a[:, None] + norms_b
    limit = share * (norms_a[:, None] + norms_b)
    with np.errstate(invalid="ignore", over="ignore"):  # rows that are not finite
        spread = a.spread[:, None] - b.spread
        rest = (a.mean - a.shift)[:, None] - (b.mean - b.shift)
        left = squares - spread**2 - a.n_features * rest**2
        unshift(squares, a, b)
        for before, after in (a.norm**2, b.norm**2), (a.power, b.power):
            np.maximum(limit, CANCELS * np.abs(before[:, None] - after), out=limit)
        offset = a.n_features * (a.mean[:, None] - b.mean) ** 2
        np.maximum(limit, CANCELS * offset, out=limit)
        close = left <= limit
        if a.constant.any() or b.constant.any():
            none = a.constant[:, None] | b.constant
            close = np.where(none, cosine_excess(squares, a, b) <= limit, close)
            known = a.exactly_constant[:, None] & b.exactly_constant
            squares[known] = offset[known]
            close &= ~known
    close &= a.finite[:, None] & b.finite
    return np.argwhere(close)
