"""The geometry of some rows, in memory: what CKA, principal components and kernels start from."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import MemoryBudgetError
from featurestore.options import format_nbytes, get_options
from featurestore.rdms.build import describe
from featurestore.rdms.kernel import RESERVE
from featurestore.rdms.pairs import require_rows, view_of

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

    import xarray as xr
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Gram:
    """Distances between all pairs of n rows, with what else is needed to know their products."""

    sqeuclidean: NDArray[np.float64]
    """Squared euclidean distances, shape (n, n); NaN for rows that are not finite."""
    mean: NDArray[np.float64]
    """Mean of each row, shape (n,)."""
    sumsq: NDArray[np.float64]
    """Sum of squares of each row about its mean, shape (n,)."""
    n_features: int
    dim: str
    """What the rows are, such as ``"image"``."""
    coords: Mapping[Hashable, Any]
    """Coordinates along the dim: names, digests and the like."""
    attrs: Mapping[str, Any] = field(default_factory=dict)
    """Where the numbers come from."""

    @property
    def norms_sq(self) -> NDArray[np.float64]:
        """Squared length of each row, shape (n,)."""
        return self.sumsq + self.n_features * self.mean**2


def gram(
    features: xr.DataArray,
    dim: str = "image",
    *,
    device: str = "auto",
    progress: bool | None = None,
) -> Gram:
    """Return the geometry of features; what a store has of it is not computed again.

    Parameters
    ----------
    features : DataArray (image, ...)
        As `featurestore.rdm` takes them.
    dim : str
        What a row is.
    device, progress : object
        As for `featurestore.rdm`.

    Returns
    -------
    Gram
        In memory: 8 n² bytes.

    Raises
    ------
    InvalidInputError
        If names are missing or repeat.
    MemoryBudgetError
        If it does not fit in memory.
    """
    require_rows(features, dim)
    n, budget = features.sizes[dim], get_options().memory_budget
    if 8 * n * n + RESERVE > budget:
        raise MemoryBudgetError(
            f"The geometry of {n} {dim}s takes {format_nbytes(8 * n * n)} in memory, and "
            f"memory_budget is {format_nbytes(budget)}. Ask for fewer {dim}s, or raise it: "
            "fs.set_options(memory_budget='…').",
            projected_nbytes=8 * n * n + RESERVE,
            allowed_nbytes=budget,
        )
    view = view_of(features, dim, "sqeuclidean", device=device, progress=progress, dtype=np.float64)
    sides = view.sides()
    coords = {name: coord for name, coord in features.coords.items() if coord.dims == (dim,)}
    return Gram(
        sqeuclidean=view.read(np.arange(n), np.arange(n)),
        mean=sides.mean,
        sumsq=sides.sumsq,
        n_features=int(np.prod(features.shape, dtype=np.int64)) // n,
        dim=dim,
        coords=coords,
        attrs=describe(features),
    )
