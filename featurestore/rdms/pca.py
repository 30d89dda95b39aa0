"""Principal components from the distances between images, without another look at the features."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import linalg

from featurestore.errors import InvalidInputError
from featurestore.rdms.centred import (
    centred_products,
    names_of,
    require_finite,
    require_memory,
)
from featurestore.rdms.derived import derived_attrs
from featurestore.rdms.gram import gram

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.rdms.gram import Gram

RESOLUTION = 3e-7  # relative error of squared distances; measured: 1e-7 at most
TIED = 1e-5  # scores that differ by less, relative to the largest, count as equally large


def pca(
    features: xr.DataArray, n_components: int | float | None = None, *, dim: str = "image"
) -> xr.Dataset:
    """Return the exact principal components of features: what images score on each.

    The scores are those of `sklearn.decomposition.PCA` with a full solver. They come from the
    distances between images (classical scaling), so 3 million features cost no more than 3,000
    once these are known.

    Parameters
    ----------
    features : DataArray (image, …)
        Real numbers, in memory or lazy. All dims but `dim` count as features.
    n_components : int or float, optional
        How many, or which share of the variance they explain together, above 0 and below 1. All
        with more variance than rounding if not given.
    dim : str
        What a row is.

    Returns
    -------
    Dataset
        ``scores`` (image, component), ``explained_variance`` (component), with n − 1 degrees of
        freedom, and ``explained_variance_ratio`` (component), all float64, in the order of
        variance. Components whose variance is no more than rounding (see below) have variance 0
        and scores 0. Labels and provenance are kept; ``feature_key`` is now ``source_feature_key``.

    Raises
    ------
    InvalidInputError
        If there are fewer than two images or than `n_components`, or features are not finite.
    MemoryBudgetError
        If four matrices of n × n exceed `memory_budget`: n = 8,000 needs 2 GiB.

    Notes
    -----
    Costs one reading of the features (none where the store keeps their geometry), then an
    eigenvalue decomposition of n × n, which grows with n³: about 1 s of one processor at
    n = 1,000, ten minutes at n = 10,000.

    A component with less than 3e-7 / √n of the total variance cannot be told from the rounding of
    the distances.

    The sign of a component is free. Here the image with the largest magnitude scores above 0; of
    several that tie, the one whose name comes first. Components of equal variance can be rotated
    into each other by rounding.

    References
    ----------
    Gower (1966), Biometrika 53, doi:10.1093/biomet/53.3-4.325.

    Examples
    --------
    >>> acts = xr.DataArray(
    ...     [[1.0, 0.0], [-1.0, 0.0], [3.0, 0.0], [-3.0, 0.0]],
    ...     dims=("image", "feature"),
    ...     coords={"image": ["a", "b", "c", "d"]},
    ... )
    >>> pca(acts, 1).scores.values.ravel()
    array([ 1., -1.,  3., -3.])
    """
    if dim in getattr(features, "dims", ()):
        n = features.sizes[dim]
        _require_count(n, features.size // max(1, n), n_components, dim)
        require_memory(n, dim, "PCA")
    return pca_of(gram(features, dim), n_components)


def pca_of(given: Gram, n_components: int | float | None = None) -> xr.Dataset:
    """Return the principal components of a geometry.

    Parameters
    ----------
    given : Gram
        The geometry.
    n_components : int or float, optional
        As for `pca`.

    Returns
    -------
    Dataset
        As from `pca`.

    Raises
    ------
    InvalidInputError
        As for `pca`.
    MemoryBudgetError
        As for `pca`.
    """
    n = len(given.mean)
    _require_count(n, given.n_features, n_components, given.dim)
    require_memory(n, given.dim, "PCA")
    require_finite(given)
    products = centred_products(given)
    total = float(np.trace(products))
    # The norm that errors of this size have in a symmetric matrix, if they are independent.
    floor = RESOLUTION * total / np.sqrt(n)
    values, vectors = _largest_first(products, n_components)
    values = np.where(values > floor, values, 0.0)
    count = _count(values, total, n_components)
    scores = vectors[:, :count] * np.sqrt(values[:count])
    scores *= _signs(scores, names_of(given))
    ratio = values[:count] / total if total > 0 else np.zeros(count)
    return xr.Dataset(
        {
            "scores": ((given.dim, "component"), scores),
            "explained_variance": ("component", values[:count] / (n - 1)),
            "explained_variance_ratio": ("component", ratio),
        },
        coords=_along(given) | {"component": np.arange(count)},
        attrs=derived_attrs(given.attrs, f"pca(n_components={n_components!r})")
        | {"n_images": n, "n_features": given.n_features, "total_variance": total / (n - 1)},
    )


def _require_count(n: int, n_features: int, n_components: Any, dim: str) -> None:
    if n < 2:
        raise InvalidInputError(f"PCA needs two {dim}s or more, and there are {n}.")
    if n_components is None:
        return
    most = min(n, n_features)
    number = isinstance(n_components, int | float | np.integer | np.floating)
    if number and not isinstance(n_components, bool):
        if isinstance(n_components, float | np.floating):
            if 0 < n_components < 1:
                return
        elif 1 <= n_components <= most:
            return
    raise InvalidInputError(
        f"n_components={n_components!r} cannot be had from {n} {dim}s and {n_features} features. "
        f"Give a whole number from 1 to {most}, a share of the variance above 0 and below 1 such "
        "as 0.95, or None for all."
    )


def _largest_first(
    products: NDArray[np.float64], n_components: int | float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return eigenvalues and vectors (n, k), the largest value first; `products` is used up."""
    n = len(products)
    wanted = None
    if n_components is not None and not isinstance(n_components, float | np.floating):
        wanted = (n - int(n_components), n - 1)
    values, vectors = linalg.eigh(
        products, subset_by_index=wanted, driver="evr", overwrite_a=True, check_finite=False
    )
    return values[::-1], vectors[:, ::-1]


def _count(values: NDArray[np.float64], total: float, n_components: int | float | None) -> int:
    known = int(np.count_nonzero(values))
    if n_components is None:
        return known
    if isinstance(n_components, float | np.floating):
        explained = np.cumsum(values[:known])
        return min(known, int(np.searchsorted(explained, n_components * total)) + 1)
    return int(n_components)


def _signs(scores: NDArray[np.float64], names: NDArray[np.object_]) -> NDArray[np.float64]:
    signs = np.ones(scores.shape[1])
    for number, column in enumerate(scores.T):
        size = np.abs(column)
        tied = np.flatnonzero(size >= (1 - TIED) * size.max())
        first = min(tied, key=lambda row: str(names[row]))
        signs[number] = -1.0 if column[first] < 0 else 1.0
    return signs


def _along(given: Gram) -> dict[Any, Any]:
    """Return the coordinates of the rows, and no others."""
    labels = xr.Dataset(coords=given.coords).variables
    return {key: (given.dim, v.data) for key, v in labels.items() if v.dims == (given.dim,)}
