"""Vectors of dissimilarities made ready to be compared: ranked, centred, of length 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from featurestore.rsa.ranking import exact_ranks

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Vectors = NDArray[np.float64]

LONG = 2**16  # pairs; shorter vectors are transformed together, which is faster
VERY_LONG = 2**20  # pairs; from here on counting is faster than sorting


def average_ranks(vectors: Vectors) -> Vectors:
    """Rank each vector; tied values share the mean of their ranks.

    Parameters
    ----------
    vectors : ndarray of shape (k, m), float64
        Without NaN.

    Returns
    -------
    ndarray of shape (k, m), float64
        Ranks from 1 to m.
    """
    if vectors.shape[-1] < LONG:
        return np.asarray(stats.rankdata(vectors, axis=-1), dtype=np.float64)
    return np.stack([_long_ranks(vector) for vector in vectors])


def _long_ranks(vector: Vectors) -> Vectors:
    """Rank one long vector; in a fifth of the time where its values are float32."""
    ranks = exact_ranks(vector) if len(vector) >= VERY_LONG else None
    return np.asarray(stats.rankdata(vector) if ranks is None else ranks, dtype=np.float64)


def centred_unit(vectors: Vectors) -> Vectors:
    """Subtract the mean of each vector and scale it to length 1.

    Parameters
    ----------
    vectors : ndarray of shape (k, m), float64
        Without NaN.

    Returns
    -------
    ndarray of shape (k, m), float64
        Their inner products are Pearson correlations. NaN where all values are the same.
    """
    # The first value goes first: differences of like numbers are exact, and what is constant
    # becomes exactly 0, which the rounding of a mean would hide.
    with np.errstate(invalid="ignore"):  # where a value is infinite, the score is NaN
        shifted = vectors - vectors[:, :1]
        _scale(shifted)
        shifted -= shifted.mean(axis=1, keepdims=True)
    return _of_length_one(shifted)


def uncentred_unit(vectors: Vectors) -> Vectors:
    """Scale each vector to length 1.

    Parameters
    ----------
    vectors : ndarray of shape (k, m), float64
        Without NaN.

    Returns
    -------
    ndarray of shape (k, m), float64
        Their inner products are cosines. NaN where all values are 0.
    """
    scaled = vectors.copy()
    _scale(scaled)
    return _of_length_one(scaled)


def ranked_unit(vectors: Vectors) -> Vectors:
    """Rank each vector, then centre and scale the ranks.

    Parameters
    ----------
    vectors : ndarray of shape (k, m), float64
        Without NaN.

    Returns
    -------
    ndarray of shape (k, m), float64
        Their inner products are Spearman correlations. NaN where all values are the same.
    """
    return centred_unit(average_ranks(vectors))


def rho_a_unit(vectors: Vectors) -> Vectors:
    """Rank each vector and centre the ranks; scale as if no two were tied.

    Parameters
    ----------
    vectors : ndarray of shape (k, m), float64
        Without NaN.

    Returns
    -------
    ndarray of shape (k, m), float64
        Their inner products are rho-a: 12 sum(r s) / (m³ − m), with centred average ranks r, s.
    """
    m = vectors.shape[1]
    if m < 2:
        return np.full(vectors.shape, np.nan)
    centred = average_ranks(vectors) - (m + 1) / 2
    return np.asarray(centred * np.sqrt(12 / (float(m) ** 3 - m)), dtype=np.float64)


def _scale(vectors: Vectors) -> None:
    """Divide each vector by its largest magnitude, so that no square over- or underflows."""
    largest = np.maximum(vectors.max(axis=1, keepdims=True), -vectors.min(axis=1, keepdims=True))
    with np.errstate(invalid="ignore", divide="ignore"):  # 0 / 0: constant; inf / inf: infinite
        vectors /= largest


def _of_length_one(vectors: Vectors) -> Vectors:
    """Divide each vector by its length, in place; NaN stays NaN."""
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors
