"""The names of metrics, their units, and the Gaussian, whose width comes from the images."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.rdms.tile import BASE_METRICS
from featurestore.rdms.view import PairView, strips

if TYPE_CHECKING:
    from numpy.typing import NDArray

Metric: TypeAlias = Literal["correlation", "cosine", "euclidean", "sqeuclidean", "gaussian"]
Bandwidth: TypeAlias = 'float | Literal["mean", "median"]'

METRICS = (*sorted(BASE_METRICS), "gaussian")
UNITS = {
    "correlation": "1 − Pearson r",
    "cosine": "1 − cosine",
    "euclidean": "euclidean distance",
    "sqeuclidean": "squared euclidean distance",
    "gaussian": "1 − Gaussian of the distance",
}
STRIP_NBYTES = 2**25  # what is read at once for a bandwidth


@dataclass(frozen=True)
class Gaussian:
    """One minus a Gaussian of the distance, from its square."""

    bandwidth: float

    def __call__(self, squares: NDArray[np.float64]) -> NDArray[np.float32]:
        """Apply it.

        Parameters
        ----------
        squares : ndarray, float64
            Squared euclidean distances.

        Returns
        -------
        ndarray, float32
            From 0 to 1.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            ratio = squares / -self.bandwidth
        # Images that are all equal have no width, and no distance either.
        ratio[squares == 0] = 0
        return np.abs(np.expm1(ratio)).astype(np.float32)


def require_metric(metric: object) -> None:
    """Refuse a metric that is not known.

    Parameters
    ----------
    metric : object
        Its name.

    Raises
    ------
    InvalidInputError
        If it is not known; near misses are suggested.
    """
    if not isinstance(metric, str) or metric not in METRICS:
        raise InvalidInputError(
            f"metric={metric!r} is not known. Use {', '.join(map(repr, METRICS))}."
            f"{did_you_mean(str(metric), METRICS)}"
        )


def require_bandwidth(metric: str, bandwidth: Bandwidth | None) -> None:
    """Refuse a bandwidth that means nothing.

    Parameters
    ----------
    metric : str
        Its metric.
    bandwidth : float, {"mean", "median"} or None
        As it was asked for.

    Raises
    ------
    InvalidInputError
        If it is no positive number and no known word, or the metric has none.
    """
    if bandwidth is None:
        return
    if metric != "gaussian":
        raise InvalidInputError(
            f"metric={metric!r} has no bandwidth; it belongs to metric='gaussian'."
        )
    given: Any = bandwidth
    is_number = isinstance(given, Real) and not isinstance(given, bool)
    if not (given in ("mean", "median") or (is_number and 0 < given < np.inf)):
        raise InvalidInputError(
            f"bandwidth={bandwidth!r} is not known. Use 'mean' or 'median' of the squared "
            "distances, or a positive number in their units."
        )


def find_bandwidth(squares: PairView, bandwidth: Bandwidth | None) -> float:
    """Return the width of a Gaussian for some images.

    Parameters
    ----------
    squares : PairView
        Squared euclidean distances.
    bandwidth : float, {"mean", "median"} or None
        ``"mean"`` (the default) is THINGSvision's: of all n × n squared distances, the zeros of
        the diagonal included. ``"median"`` is that of the pairs of two images. Rows that are not
        finite are left out.

    Returns
    -------
    float
        In units of squared distance. Costs one reading of all tiles for ``"mean"``, and memory
        for all pairs for ``"median"``.
    """
    if bandwidth not in (None, "mean", "median"):
        return float(bandwidth)
    finite = np.flatnonzero(squares.sides().finite)
    if bandwidth == "median":
        pairs = [
            squares.read(finite[rows], finite)[rows[:, None] < np.arange(len(finite))]
            for rows in strips(len(finite), STRIP_NBYTES)
        ]
        return float(np.median(np.concatenate(pairs))) if len(finite) > 1 else 0.0
    total = 0.0
    for rows in strips(len(finite), STRIP_NBYTES):
        total += float(np.sum(squares.read(finite[rows], finite), dtype=np.float64))
    return total / max(1, len(finite) ** 2)
