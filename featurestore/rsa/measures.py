"""How alike two RDMs are: the measures, on condensed vectors of dissimilarities.

Every measure but Kendall's is an inner product of transformed vectors, so many RDMs are compared
with many by transforming each once and one matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from scipy import stats

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.rsa.transforms import (
    LONG,
    average_ranks,
    centred_unit,
    ranked_unit,
    rho_a_unit,
    uncentred_unit,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    Vectors = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measure:
    """One way to compare two vectors of dissimilarities."""

    name: str
    """What it is called in results."""
    title: str
    """What it is called on an axis."""
    ranked: bool
    """Whether only the order of the dissimilarities counts."""
    unit: Callable[[Vectors], Vectors] | None
    """Vectors (k, m) without NaN to others (k, m) whose inner products are the scores; none for
    Kendall's."""
    pair: Callable[[Vectors, Vectors], float] | None
    """The score of two vectors (m,) without NaN, where there is no `unit`."""

    def own(self, vectors: Vectors) -> Vectors:
        """Return what this measure sees of dissimilarities.

        Parameters
        ----------
        vectors : ndarray of shape (k, m), float64
            Condensed RDMs without NaN.

        Returns
        -------
        ndarray of shape (k, m), float64
            Average ranks, from 1, or the values themselves.
        """
        return average_ranks(vectors) if self.ranked else vectors


def tau_b(a: Vectors, b: Vectors) -> float:
    """Return Kendall's tau-b.

    Parameters
    ----------
    a, b : ndarray of shape (m,), float64
        Without NaN.

    Returns
    -------
    float
        NaN where all values of either are the same.
    """
    if len(a) < 2:
        return np.nan
    # The p-value is not used; "auto" would compute an exact one for short vectors.
    return float(stats.kendalltau(a, b, method="asymptotic").statistic)


def tau_a(a: Vectors, b: Vectors) -> float:
    """Return Kendall's tau-a: (concordant − discordant) / (m (m − 1) / 2).

    Parameters
    ----------
    a, b : ndarray of shape (m,), float64
        Without NaN.

    Returns
    -------
    float
        0 where all values of either are the same.
    """
    m = len(a)
    if m < 2:
        return np.nan
    total = m * (m - 1) // 2
    untied_a, untied_b = total - _n_tied(a), total - _n_tied(b)
    if not (untied_a and untied_b):
        return 0.0
    # tau-b is (concordant − discordant) / sqrt(untied_a untied_b); the difference is whole.
    difference = tau_b(a, b) * np.sqrt(untied_a) * np.sqrt(untied_b)
    return float(np.rint(difference)) / total


_TAU_B = Measure("tau-b", "Kendall's tau-b", True, None, tau_b)

MEASURES: Mapping[str, Measure] = {
    "pearson": Measure("pearson", "Pearson's r", False, centred_unit, None),
    "spearman": Measure("spearman", "Spearman's rho", True, ranked_unit, None),
    "kendall": _TAU_B,
    "tau-a": Measure("tau-a", "Kendall's tau-a", True, None, tau_a),
    "tau-b": _TAU_B,
    "cosine": Measure("cosine", "cosine similarity", False, uncentred_unit, None),
    "rho-a": Measure("rho-a", "rho-a", True, rho_a_unit, None),
}
"""What ``method=`` may be; ``kendall`` is tau-b, as in SciPy."""


def require_method(name: str) -> Measure:
    """Return a measure by name.

    Parameters
    ----------
    name : str
        A key of `MEASURES`.

    Returns
    -------
    Measure
        The measure.

    Raises
    ------
    InvalidInputError
        If there is none of that name.

    Examples
    --------
    >>> require_method("kendall").name
    'tau-b'
    """
    found = MEASURES.get(str(name))
    if found is None:
        near = did_you_mean(str(name).lower(), MEASURES)
        raise InvalidInputError(
            f"There is no method {name!r} to compare RDMs. There are {', '.join(MEASURES)}.{near}",
            method=name,
        )
    return found


def score(a: Vectors, b: Vectors, method: str | Measure) -> Vectors:
    """Compare each of some condensed RDMs with each of others.

    Pairs of images for which either RDM has no value (NaN) are left out of that comparison;
    `n_dropped` counts them.

    Parameters
    ----------
    a : ndarray of shape (k, m)
        Condensed RDMs; made float64 if they are not.
    b : ndarray of shape (l, m)
        Others, of the same images in the same order. May be `a` itself, which saves time.
    method : str or Measure
        A key of `MEASURES`, or its value.

    Returns
    -------
    ndarray of shape (k, l), float64
        The scores. NaN where a vector is constant (pearson, spearman, tau-b), is all 0 (cosine),
        is infinite somewhere (pearson, cosine), or where fewer than 2 pairs are left.

    Notes
    -----
    Spearman correlates average ranks. rho-a is 12 sum(r s) / (m³ − m) with centred average ranks
    r and s: the expected Spearman correlation if ties are broken at random, so that it does not
    favour models that predict ties (Schütt et al. 2023, eLife 12:e82566,
    https://doi.org/10.7554/eLife.82566). tau-a divides by all pairs and does not favour them
    either (Nili et al. 2014, PLoS Comput Biol 10:e1003553,
    https://doi.org/10.1371/journal.pcbi.1003553); with ties in an RDM, neither tau-a nor rho-a
    gives 1 for the RDM and itself. Kendall's take O(m log m) per comparison, the others one
    transform per vector and one matrix product.
    """
    measure = method if isinstance(method, Measure) else require_method(method)
    same = a is b
    a = np.asarray(a, dtype=np.float64)
    b = a if same else np.asarray(b, dtype=np.float64)
    out = np.full((len(a), len(b)), np.nan)
    for rows, others, kept in _without_nan(a, b):
        left = _chosen(a, rows, kept)
        right = left if same and np.array_equal(rows, others) else _chosen(b, others, kept)
        out[np.ix_(rows, others)] = _score_finite(left, right, measure)
    return out


def n_dropped(a: Vectors, b: Vectors) -> NDArray[np.int64]:
    """Count the pairs of images that `score` leaves out of each comparison.

    Parameters
    ----------
    a : ndarray of shape (k, m)
        Condensed RDMs.
    b : ndarray of shape (l, m)
        Others.

    Returns
    -------
    ndarray of shape (k, l), int64
        Pairs that are NaN in either.
    """
    out = np.zeros((len(a), len(b)), dtype=np.int64)
    for rows, others, kept in _without_nan(a, b):
        if kept is not None:
            out[np.ix_(rows, others)] = a.shape[1] - len(kept)
    return out


def _without_nan(
    a: Vectors, b: Vectors
) -> Iterator[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp] | None]]:
    """Group comparisons by the pairs that both have: rows of a, rows of b, pairs (None: all)."""
    groups_b = _by_missing(b)
    for missing_a, rows in _by_missing(a):
        for missing_b, others in groups_b:
            if missing_a is None and missing_b is None:
                yield rows, others, None
                continue
            kept = np.ones(a.shape[1], dtype=bool)
            for missing in (missing_a, missing_b):
                if missing is not None:
                    kept[missing] = False
            yield rows, others, np.flatnonzero(kept)


def _by_missing(
    vectors: Vectors,
) -> list[tuple[NDArray[np.intp] | None, NDArray[np.intp]]]:
    """Group vectors by where they are NaN: positions (None: nowhere), and which vectors."""
    groups: dict[bytes, tuple[NDArray[np.intp] | None, list[int]]] = {}
    for row, vector in enumerate(vectors):
        missing = np.flatnonzero(np.isnan(vector))
        found = missing if len(missing) else None
        groups.setdefault(missing.tobytes(), (found, []))[1].append(row)
    return [(missing, np.array(rows, dtype=np.intp)) for missing, rows in groups.values()]


def _chosen(vectors: Vectors, rows: NDArray[np.intp], kept: NDArray[np.intp] | None) -> Vectors:
    """Take some vectors and pairs, without a copy where that is all."""
    if kept is not None:
        return vectors[np.ix_(rows, kept)]
    return vectors if len(rows) == len(vectors) else vectors[rows]


def _score_finite(a: Vectors, b: Vectors, measure: Measure) -> Vectors:
    """Compare vectors (k, m) with vectors (l, m), none with NaN."""
    if a.shape[1] < 2:
        return np.full((len(a), len(b)), np.nan)
    if measure.unit is not None:
        left = _transformed(a, measure.unit)
        right = left if a is b else _transformed(b, measure.unit)
        return np.clip(left @ right.T, -1.0, 1.0)
    pair = measure.pair
    if pair is None:
        raise TypeError(f"measure {measure.name} has neither unit nor pair")
    return np.array([[pair(x, y) for y in b] for x in a], dtype=np.float64).reshape(len(a), len(b))


def _transformed(vectors: Vectors, unit: Callable[[Vectors], Vectors]) -> Vectors:
    """Transform vectors; long ones singly, so that what is needed in between is of one."""
    if vectors.shape[1] < LONG:
        return unit(vectors)
    out = np.empty(vectors.shape)
    for row in range(len(vectors)):
        out[row] = unit(vectors[row : row + 1])[0]
    return out


def _n_tied(vector: Vectors) -> int:
    """Count the pairs of equal values."""
    counts = np.unique(vector, return_counts=True)[1].astype(np.int64)
    return int((counts * (counts - 1) // 2).sum())
