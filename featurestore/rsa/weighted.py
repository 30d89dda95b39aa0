"""Scores of bootstrap samples of images, from how often each image was drawn.

No sample is ever built, except for Kendall's. A pair of images counts as often as the product of
their two counts says; pairs of an image with itself are left out. Sums of products over many
samples at once are matrix products, for which each RDM is read once, some rows at a time. Ranks
within a sample come from counting: resampling does not change which of two values is the larger.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

    from featurestore.rsa.measures import Measure, Vectors

    Counts = NDArray[np.uint16]
    Pairs = tuple[NDArray[np.int32], NDArray[np.int32]]
    Missing = NDArray[np.bool_] | None
    Rows = Iterable[tuple[slice, Vectors, Vectors]]

CONSTANT = 1e-12
"""A variance so much smaller than the mean square is rounding."""


def product_scores(rows: Rows, counts: Counts, *, centred: bool) -> Vectors:
    """Correlate each of some RDMs with each of others, within each sample.

    Parameters
    ----------
    rows : iterable of (slice, ndarray of shape (k, r, s), ndarray of shape (l, r, s))
        Which rows, the RDMs, and the others, in float64, from the column of the first row on; all
        rows once. Pairs that are NaN are left out. The arrays are overwritten.
    counts : ndarray of shape (d, n)
        How often each image is in each sample.
    centred : bool
        Pearson correlations, else cosines.

    Returns
    -------
    ndarray of shape (d, k, l), float64
        NaN where all values within a sample are the same, or for cosines 0.

    Notes
    -----
    Takes ``d n²`` operations for each RDM twice and each comparison once.
    """
    sums: _Sums | None = None
    for block, left, right in rows:
        if sums is None:
            sums = _Sums(counts, left, right, centred=centred)
        sums.add(block, left, right)
    if sums is None:
        raise ValueError("no rows")
    return sums.scores(centred=centred)


def rank_scores(
    left: Vectors, right: Vectors, pairs: Pairs, counts: Counts, *, tied: bool
) -> Vectors:
    """Correlate ranks within each sample.

    Parameters
    ----------
    left : ndarray of shape (k, m), float64
        Condensed RDMs without NaN.
    right : ndarray of shape (l, m), float64
        Others.
    pairs : tuple of ndarray of shape (m,)
        Which two images each value belongs to.
    counts : ndarray of shape (d, n)
        How often each image is in each sample.
    tied : bool
        Spearman's rho, corrected for ties; else rho-a.

    Returns
    -------
    ndarray of shape (d, k, l), float64
        NaN where a sample has fewer than 2 pairs or, for Spearman's, no variation.

    Notes
    -----
    Takes time in proportion to m for each RDM and sample: nothing is sorted again.
    """
    out = np.full((len(counts), len(left), len(right)), np.nan)
    groups_left, groups_right = _groups(left), _groups(right)
    for row, (drawn, weights) in enumerate(_pair_counts(pairs, counts)):
        total = float(weights.sum())
        if total < 2:
            continue
        ranks = _centred_ranks(groups_left, drawn, weights)
        others = _centred_ranks(groups_right, drawn, weights)
        products = (ranks * weights) @ others.T
        if tied:
            with np.errstate(invalid="ignore", divide="ignore"):  # no variation: NaN
                products /= np.sqrt((ranks**2) @ weights)[:, None]
                products /= np.sqrt((others**2) @ weights)
        else:
            products *= 12 / (total**3 - total)
        out[row] = products
    return out


def paired_scores(
    left: Vectors, right: Vectors, pairs: Pairs, counts: Counts, measure: Measure
) -> Vectors:
    """Compare each of some RDMs with each of others within each sample, one by one.

    Parameters
    ----------
    left : ndarray of shape (k, m), float64
        Condensed RDMs without NaN.
    right : ndarray of shape (l, m), float64
        Others.
    pairs : tuple of ndarray of shape (m,)
        Which two images each value belongs to.
    counts : ndarray of shape (d, n)
        How often each image is in each sample.
    measure : Measure
        One with a `pair`.

    Returns
    -------
    ndarray of shape (d, k, l), float64
        The scores.

    Notes
    -----
    Takes O(m log m) for each comparison and sample.
    """
    compare = measure.pair
    if compare is None:
        raise TypeError(f"measure {measure.name} compares no pairs")
    out = np.empty((len(counts), len(left), len(right)))
    for row, (drawn, weights) in enumerate(_pair_counts(pairs, counts)):
        times = weights.astype(np.intp)
        ours = [np.repeat(vector[drawn], times) for vector in left]
        theirs = [np.repeat(vector[drawn], times) for vector in right]
        out[row] = [[compare(x, y) for y in theirs] for x in ours]
    return out


class _Sums:
    """Sums over the pairs of each sample: how many, values, squares and products."""

    def __init__(self, counts: Counts, left: Vectors, right: Vectors, *, centred: bool) -> None:
        self.weights = np.ascontiguousarray(counts.T, np.float64)
        # Any shift and scale are right; those of the first rows keep squares from over- and
        # underflowing and differences of sums from cancelling.
        self.typical_left = [_typical(matrix, centred=centred) for matrix in left]
        self.typical_right = [_typical(matrix, centred=centred) for matrix in right]
        shape = (len(counts), len(left), len(right))
        self.n, self.a, self.b = np.zeros(shape), np.zeros(shape), np.zeros(shape)
        self.aa, self.bb, self.ab = np.zeros(shape), np.zeros(shape), np.zeros(shape)

    def add(self, block: slice, left: Vectors, right: Vectors) -> None:
        """Add some rows, overwriting them."""
        rows, columns = self.weights[block], self.weights[block.start :]

        def summed(matrix: Vectors) -> Vectors:
            return np.asarray(np.einsum("rd,rd->d", rows, matrix @ columns))

        def moments(matrix: Vectors, without: Missing = None) -> tuple[Vectors, Vectors]:
            known = matrix if without is None else np.where(without, 0.0, matrix)
            return summed(known), summed(known**2)

        n = np.einsum("rd,rd->d", rows, columns.sum(axis=0) - np.cumsum(rows, axis=0))
        missing_left = _prepare(left, self.typical_left)
        missing_right = _prepare(right, self.typical_right)
        alone_left, alone_right = [moments(m) for m in left], [moments(m) for m in right]
        for i, j in np.ndindex(len(left), len(right)):
            lacks_i, lacks_j = missing_left[i], missing_right[j]
            a, aa = alone_left[i] if lacks_j is None else moments(left[i], lacks_j)
            b, bb = alone_right[j] if lacks_i is None else moments(right[j], lacks_i)
            missing = _either(lacks_i, lacks_j)
            self.n[:, i, j] += n if missing is None else n - summed(missing.astype(np.float64))
            self.a[:, i, j] += a
            self.b[:, i, j] += b
            self.aa[:, i, j] += aa
            self.bb[:, i, j] += bb
            self.ab[:, i, j] += summed(left[i] * right[j])

    def scores(self, *, centred: bool) -> Vectors:
        """Return what the sums make."""
        aa, bb, ab = self.aa, self.bb, self.ab
        with np.errstate(invalid="ignore", divide="ignore"):
            if centred:
                aa, bb = aa - self.a**2 / self.n, bb - self.b**2 / self.n
                ab = ab - self.a * self.b / self.n
            out = np.clip(ab / np.sqrt(aa * bb), -1.0, 1.0)
        out[~((aa > CONSTANT * self.aa) & (bb > CONSTANT * self.bb))] = np.nan
        return out


def _typical(matrix: Vectors, *, centred: bool) -> tuple[float, float]:
    """Return a value to subtract and one to divide by."""
    above = matrix[np.triu_indices(len(matrix), 1, matrix.shape[1])]
    known = above[np.isfinite(above)]
    if not known.size:
        return 0.0, 1.0
    shift = float(known.mean()) if centred else 0.0
    scale = float(np.abs(known - shift).max())
    return shift, scale if scale > 0 else 1.0


def _prepare(matrices: Vectors, typical: list[tuple[float, float]]) -> list[Missing]:
    """Shift and scale rows in place, 0 where they are missing and up to the diagonal."""
    missing: list[Missing] = []
    up_to_diagonal = np.tril_indices(matrices.shape[1])
    for matrix, (shift, scale) in zip(matrices, typical, strict=True):
        matrix -= shift
        matrix /= scale
        matrix[up_to_diagonal] = 0.0
        lacking = np.isnan(matrix)
        missing.append(lacking if lacking.any() else None)
        matrix[lacking] = 0.0
    return missing


def _either(left: Missing, right: Missing) -> Missing:
    if left is None or right is None:
        return right if left is None else left
    return left | right


def _pair_counts(pairs: Pairs, counts: Counts) -> Iterator[tuple[NDArray[np.intp], Vectors]]:
    """Yield which pairs are in each sample, and how often."""
    first, second = pairs
    for row in counts.astype(np.float64):
        weights = row[first] * row[second]
        drawn = np.flatnonzero(weights)
        yield drawn, weights[drawn]


def _groups(vectors: Vectors) -> list[NDArray[np.intp]]:
    """Return where each value stands among the distinct ones of its vector."""
    return [np.asarray(stats.rankdata(v, method="dense"), np.intp) - 1 for v in vectors]


def _centred_ranks(
    groups: list[NDArray[np.intp]], drawn: NDArray[np.intp], weights: Vectors
) -> Vectors:
    """Return average ranks of the pairs that were drawn, less the mean rank."""
    out = np.empty((len(groups), len(drawn)))
    total = weights.sum()
    for row, group in zip(out, groups, strict=True):
        place = group[drawn]
        times = np.bincount(place, weights)
        # Of the ranks that the copies of one value share: the last, less half the others.
        rank = np.cumsum(times) - (times - 1) / 2 - (total + 1) / 2
        np.take(rank, place, out=row)
    return out
