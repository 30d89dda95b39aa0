"""Scores after the images of one RDM were permuted, many permutations at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import squareform

from featurestore.rsa.measures import score

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.rsa.measures import Measure, Vectors

    Orders = NDArray[np.intp]

BLOCK_NBYTES = 32 * 2**20


def draw_permutations(n_images: int, n: int, seed: int) -> Orders:
    """Draw random orders.

    Parameters
    ----------
    n_images : int
        How many images there are.
    n : int
        How many orders.
    seed : int
        Same seed, same orders, however many.

    Returns
    -------
    ndarray of shape (n, n_images)
        Positions.
    """
    generator = np.random.default_rng(seed)
    return np.array([generator.permutation(n_images) for _ in range(n)], dtype=np.intp)


def permuted_scores(left: Vectors, right: Vectors, orders: Orders, measure: Measure) -> Vectors:
    """Compare each of some RDMs with each of others whose images are in other orders.

    Parameters
    ----------
    left : ndarray of shape (k, m), float64
        Condensed RDMs; NaN where a pair has no value.
    right : ndarray of shape (l, m), float64
        Those whose images are permuted.
    orders : ndarray of shape (p, n)
        Which image takes each place.
    measure : Measure
        How they are compared.

    Returns
    -------
    ndarray of shape (p, k, l), float64
        The scores.

    Notes
    -----
    Without NaN, and but for Kendall's, an order takes ``n²`` reads for the RDMs of the smaller
    side, and one product with the others: what a measure makes of the values is the same in every
    order. Otherwise each is compared anew.
    """
    if measure.unit is None or np.isnan(left).any() or np.isnan(right).any():
        return _one_by_one(left, right, orders, measure)
    left, right = measure.unit(left), measure.unit(right)
    if len(left) < len(right):
        # Moving the images of one side forth is moving those of the other back.
        return _moved(left, right, np.argsort(orders, axis=1)).swapaxes(1, 2)
    return _moved(right, left, orders)


def _moved(moving: Vectors, still: Vectors, orders: Orders) -> Vectors:
    """Return inner products (p, still, moving)."""
    n = orders.shape[1]
    # Both triangles, since choosing rows and then columns is faster than choosing pairs; each
    # pair then counts twice.
    fixed = np.array([squareform(vector) for vector in still]).reshape(len(still), -1).T / 2
    out = np.empty((len(orders), len(still), len(moving)))
    n_at_once = max(1, BLOCK_NBYTES // (8 * n * n))
    rows, block = np.empty((n, n)), np.empty((n_at_once, n, n))
    for column, vector in enumerate(moving):
        square = squareform(vector)
        for start in range(0, len(orders), n_at_once):
            chunk = orders[start : start + n_at_once]
            for order, target in zip(chunk, block, strict=False):
                # Clipping nothing: the default checks every index first, into a copy.
                np.take(square, order, axis=0, out=rows, mode="clip")
                np.take(rows, order, axis=1, out=target, mode="clip")
            products = block[: len(chunk)].reshape(len(chunk), -1) @ fixed
            out[start : start + len(chunk), :, column] = products
    return out


def _one_by_one(left: Vectors, right: Vectors, orders: Orders, measure: Measure) -> Vectors:
    out = np.empty((len(orders), len(left), len(right)))
    squares = [squareform(vector, checks=False) for vector in right]
    pairs = np.triu_indices(orders.shape[1], 1)
    for row, order in enumerate(orders):
        moved = np.array([square[order[pairs[0]], order[pairs[1]]] for square in squares])
        out[row] = score(left, moved, measure)
    return out
