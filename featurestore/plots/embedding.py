"""Points in a plane whose distances are like the dissimilarities."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.spatial.distance import cdist

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.optional import import_optional

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

N_STARTS, N_STARTS_OF_MANY, MANY = 8, 3, 100  # random ones, beside the classical solution
MAX_STEPS = 300


def embed(distances: Floats, method: str, seed: int) -> tuple[Floats, float]:
    """Arrange points so that their distances are like given dissimilarities.

    Parameters
    ----------
    distances : ndarray of shape (n, n), float64
        Symmetric, finite, not negative, diagonal 0.
    method : str
        A key of `METHODS`.
    seed : int
        Of the random starts.

    Returns
    -------
    points : ndarray of shape (n, 2), float64
        Centred, turned so that the first axis has the largest spread, and mirrored so that the
        largest coordinate on each axis is positive.
    stress : float
        Kruskal's stress-1: 0 is perfect, 0.2 is poor (Kruskal 1964, Psychometrika 29:1,
        https://doi.org/10.1007/BF02289565).
    """
    n = len(distances)
    if n == 1 or not distances.any():
        return np.zeros((n, 2)), 0.0
    scale = float(distances.max())
    points, stress = METHODS[method](distances / scale, seed)
    return _upright(points * scale), stress


def require_embedding(method: str) -> None:
    """Check the name of a method.

    Parameters
    ----------
    method : str
        What the caller asked for.

    Raises
    ------
    InvalidInputError
        If there is none of that name.
    """
    if method not in METHODS:
        raise InvalidInputError(
            f"There is no method {method!r} to arrange images. There are {', '.join(METHODS)}."
            f"{did_you_mean(str(method), METHODS)}",
            method=method,
        )


def classical(distances: Floats, seed: int = 0) -> tuple[Floats, float]:  # noqa: ARG001 - exact
    """Scale classically: the principal coordinates of the distances (Torgerson 1952).

    Parameters
    ----------
    distances : ndarray of shape (n, n), float64
        Dissimilarities.
    seed : int
        Not needed; as for the other methods.

    Returns
    -------
    points : ndarray of shape (n, 2), float64
        The first two coordinates.
    stress : float
        Stress-1.
    """
    squared = distances**2
    centred = squared - squared.mean(axis=0) - squared.mean(axis=1)[:, None] + squared.mean()
    values, vectors = np.linalg.eigh(-centred / 2)
    points = np.zeros((len(distances), 2))
    kept = min(2, len(values))
    points[:, :kept] = (vectors[:, ::-1] * np.sqrt(np.maximum(values[::-1], 0)))[:, :kept]
    return points, stress_1(points, distances)


def metric(distances: Floats, seed: int) -> tuple[Floats, float]:
    """Minimise the squared differences between distances and dissimilarities (SMACOF).

    Parameters
    ----------
    distances : ndarray of shape (n, n), float64
        Dissimilarities.
    seed : int
        Of the random starts.

    Returns
    -------
    points : ndarray of shape (n, 2), float64
        The best of several starts, the classical solution among them.
    stress : float
        Stress-1.
    """
    runs = [classical(distances)[0]]
    runs += [_smacof(distances, start, as_ranks=False)[0] for start in _starts(distances, seed)]
    stresses = [stress_1(points, distances) for points in runs]
    best = int(np.argmin(stresses))
    return runs[best], stresses[best]


def nonmetric(distances: Floats, seed: int) -> tuple[Floats, float]:
    """Let only the order of the dissimilarities count (SMACOF with monotonic regression).

    Parameters
    ----------
    distances : ndarray of shape (n, n), float64
        Dissimilarities.
    seed : int
        Of the random starts.

    Returns
    -------
    points : ndarray of shape (n, 2), float64
        Started from the metric solution.
    stress : float
        Stress-1, against the disparities.
    """
    # scikit-learn takes 0 for missing; duplicates are the most alike, not unknown.
    positive = distances[distances > 0]
    known = np.where(distances > 0, distances, positive.min() / 2)
    np.fill_diagonal(known, 0.0)
    points, stress = _smacof(known, metric(distances, seed)[0], as_ranks=True)
    spread = np.sqrt((cdist(points, points) ** 2).sum())  # the size of the result is arbitrary
    return points * (np.sqrt((distances**2).sum()) / spread if spread else 1.0), stress


METHODS: dict[str, Callable[[Floats, int], tuple[Floats, float]]] = {
    "metric": metric,
    "nonmetric": nonmetric,
    "classical": classical,
}


def stress_1(points: Floats, distances: Floats) -> float:
    """Return how far distances in the plane are from the dissimilarities, at the best scale.

    Parameters
    ----------
    points : ndarray of shape (n, 2), float64
        The arrangement.
    distances : ndarray of shape (n, n), float64
        Dissimilarities.

    Returns
    -------
    float
        The root of the sum of squared differences over the sum of squared distances in the plane,
        after these were multiplied by the factor that makes the differences smallest (a picture
        without units has no other scale; of a solution of SMACOF the factor is 1).
    """
    drawn = cdist(points, points)
    total = float((drawn**2).sum())
    if not total:
        return np.inf
    drawn *= float((drawn * distances).sum()) / total
    total = float((drawn**2).sum())
    return float(np.sqrt(((drawn - distances) ** 2).sum() / total)) if total else np.inf


def _starts(distances: Floats, seed: int) -> list[Floats]:
    first, _ = classical(distances)
    generator = np.random.default_rng(seed)
    spread = max(float(first.std()), 1e-3)
    # Points in one place never part; a little noise lets duplicates and lines unfold.
    starts = [first + generator.normal(scale=1e-3 * spread, size=first.shape)]
    n = N_STARTS if len(distances) <= MANY else N_STARTS_OF_MANY
    return starts + [generator.normal(scale=spread, size=first.shape) for _ in range(n)]


def _smacof(distances: Floats, start: Floats, *, as_ranks: bool) -> tuple[Floats, float]:
    smacof = import_optional("sklearn.manifold", "plot").smacof
    points, stress = smacof(
        distances, metric=not as_ranks, init=start, n_init=1, max_iter=MAX_STEPS, eps=1e-6
    )
    return np.asarray(points, dtype=np.float64), float(stress)


def _upright(points: Floats) -> Floats:
    """Turn and mirror points so that equal arrangements look the same."""
    centred = points - points.mean(axis=0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    turned = centred @ axes.T if len(axes) == points.shape[1] else centred
    largest = turned[np.abs(turned).argmax(axis=0), np.arange(turned.shape[1])]
    return np.asarray(turned * np.where(largest < 0, -1.0, 1.0), dtype=np.float64)
