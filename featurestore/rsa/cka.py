"""Centred kernel alignment: how alike two sets of features arrange the same images."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import FeatureStoreWarning, InvalidInputError
from featurestore.options import get_options
from featurestore.rdms.centred import (
    double_centred,
    require_finite,
    require_memory,
    working_nbytes,
)
from featurestore.rdms.gram import gram
from featurestore.rsa.align import align, require_join, require_unique
from featurestore.rsa.kernels import Kernel, rbf_minus_one, rbf_width, require_kernel
from featurestore.rsa.stacked import Stacked

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Features = xr.DataArray | Mapping[str, xr.DataArray]

ROUNDING = 1e-5  # what centring leaves, relative to the kernel, where only rounding is left
FEWEST = {True: 4, False: 3}  # images, by whether the estimate is debiased


@dataclass(frozen=True)
class _Column:
    label: str
    features: xr.DataArray
    dim: str


def cka(
    a: Features,
    b: Features | None = None,
    *,
    kernel: Kernel = "linear",
    bandwidth: float = 1.0,
    debiased: bool = True,
    join: str = "exact",
    by: str | None = None,
    dims: str | tuple[str, str] = "image",
) -> xr.DataArray:
    r"""Compare features by centred kernel alignment, matched by the names of the images.

    1 means the same arrangement of the images up to rotation, scale and shift. The biased
    estimate rises towards 1 with the number of features, whatever they hold: for pure noise of
    100 images and 2,500 features it is 0.96. The debiased one is 0 on average there, and can be
    negative.

    Parameters
    ----------
    a : DataArray (image, …) or dict of DataArray
        Features, in memory or lazy, such as what `get` or `get_many` returned. All dims but `dims`
        count as features.
    b : DataArray (image, …) or dict of DataArray, optional
        What to compare with. Without it, the members of `a` are compared with each other.
    kernel : str
        ``"linear"``, inner products, or ``"rbf"``, ``exp(−d² / (2 width²))`` of Euclidean
        distances.
    bandwidth : float
        Width of ``"rbf"``, relative to the median distance between two images, of each array by
        itself. An absolute width would turn every kernel into the identity, and CKA into 1,
        where distances are large.
    debiased : bool
        Whether to use the unbiased estimate of HSIC, in all three places of the formula.
    join : str
        ``"exact"`` refuses arrays that do not hold the same images; ``"inner"`` compares those
        that all of them have.
    by : str, optional
        A coordinate to tell images by, such as ``"digest"``; by default their names.
    dims : str or tuple of two str
        What is compared, such as ``"image"``; or the dims of `a` and `b`, such as
        ``("image", "text")``, whose labels are then matched.

    Returns
    -------
    DataArray
        One number of two arrays (use ``float(…)``); (module, other) of two dicts, or the one of
        the two dims that is a dict; (module, module_2) of one dict. NaN, with a warning, where an
        array has no geometry beyond rounding, such as that of a dead module. Attributes say how
        it was computed and, as JSON, where `a` and `b` come from.

    Raises
    ------
    LabelMismatchError
        If the images are not the same.
    InvalidInputError
        If a name repeats, there are too few images (fewer than 4; 3 if biased), features are not
        finite, or half of the distances are 0 and `kernel` is ``"rbf"``.
    MemoryBudgetError
        If four matrices of n × n exceed `memory_budget`: n = 8,000 needs 2 GiB.
    DiskSpaceError
        If the kernels fit neither in memory nor in `cache_dir`.

    Notes
    -----
    Every array is read once, and not at all where the store keeps its geometry. The kernels take
    4 n (n + 1) bytes for each array (1.4 GB for 100 arrays of 1,854 images); what exceeds
    `memory_budget` goes to a temporary file in `cache_dir`.

    With :math:`\tilde K` the centred kernel, :math:`\text{CKA} = \langle \tilde K, \tilde L
    \rangle / (\lVert \tilde K \rVert \lVert \tilde L \rVert)`. The biased estimate centres both
    sides of the whole matrix (Kornblith et al. 2019). The debiased one is U-centred: the diagonal
    is left out and means are taken with n − 2, which is the unbiased HSIC of Song et al. (2012).
    The biased, linear CKA of two arrays is the whitened cosine (`cosine_cov`) of their squared
    Euclidean RDMs (Diedrichsen et al. 2021).

    References
    ----------
    Kornblith, Norouzi, Lee and Hinton (2019), ICML, arXiv:1905.00414.
    Song, Smola, Gretton, Bedo and Borgwardt (2012), JMLR 13, 1393–1434: unbiased HSIC.
    Székely and Rizzo (2014), Annals of Statistics 42, doi:10.1214/14-AOS1255: U-centring.
    Nguyen, Raghu and Kornblith (2021), ICLR, arXiv:2010.15327: CKA with unbiased HSIC.
    Murphy, Zylberberg and Fyshe (2024), arXiv:2405.01012: bias with many features.

    Examples
    --------
    >>> rng = np.random.default_rng(0)
    >>> names = {"image": [f"{n}.png" for n in range(100)]}
    >>> x = xr.DataArray(rng.standard_normal((100, 2000)), names, ("image", "feature"))
    >>> y = xr.DataArray(rng.standard_normal((100, 3000)), names, ("image", "feature"))
    >>> round(float(cka(x, y, debiased=False)), 2), abs(float(cka(x, y))) < 0.05
    (0.96, True)
    >>> round(float(cka(x, x[::-1])), 6)
    1.0
    """
    require_kernel(kernel, bandwidth)
    columns, n_first = _columns(a, b, dims)
    rows = _aligned(columns, join, by)
    n = len(rows[0])
    _require_size(n, columns[0].dim, debiased)
    length = n * (n + 1) // 2
    allowed = get_options().memory_budget - working_nbytes(n)
    flat: list[str] = []
    with Stacked(len(columns), length, allowed) as stack:
        for number, (column, chosen) in enumerate(zip(columns, rows, strict=True)):
            vector = _centred_kernel(column, chosen, kernel, bandwidth, debiased)
            if vector is None:
                flat.append(column.label)
                vector = np.full(length, np.nan)
            stack.put(number, vector)
        products = stack.products(n_first, with_rest=b is not None)
    if flat:
        warnings.warn(
            f"The {n} {columns[0].dim}s have no geometry beyond rounding in "
            f"{', '.join(flat)}: the features are constant, or all {columns[0].dim}s equally "
            "far apart. CKA with them is NaN.",
            FeatureStoreWarning,
            stacklevel=2,
        )
    facts = {
        "kernel": kernel,
        **({"bandwidth": float(bandwidth)} if kernel == "rbf" else {}),
        "estimator": "debiased" if debiased else "biased",
        f"n_{columns[0].dim}s": n,
    }
    return _labelled(products, columns, n_first, (a, b), facts)


def _columns(a: Any, b: Any, dims: str | tuple[str, str]) -> tuple[list[_Column], int]:
    """Return all columns, those of `a` first, and how many these are."""
    pair = (dims, dims) if isinstance(dims, str) else tuple(dims)
    if len(pair) != 2:
        raise InvalidInputError(f"dims={dims!r} must be one dim, or two: that of a and that of b.")
    if b is None and not isinstance(a, Mapping):
        raise InvalidInputError(
            "One array has nothing to be compared with. Give another, fs.cka(a, b), or a dict of "
            "arrays to compare with each other."
        )
    first = _side("a", a, pair[0])
    return first + ([] if b is None else _side("b", b, pair[1])), len(first)


def _side(side: str, given: Any, dim: str) -> list[_Column]:
    if isinstance(given, Mapping):
        members = [(str(name), features) for name, features in given.items()]
    else:
        members = [(str(getattr(given, "name", None) or side), given)]
    if not members:
        raise InvalidInputError(f"The dict {side} is empty, so there is nothing to compare.")
    for name, features in members:
        if not isinstance(features, xr.DataArray):
            raise InvalidInputError(
                f"{name!r} is a {type(features).__name__} and has no names, so nobody can tell "
                f"which rows belong together. Give a DataArray ({dim}, …), such as what "
                "store.get(…) returned."
            )
        if dim not in features.dims or dim not in features.coords:
            raise InvalidInputError(
                f"{name!r} has dims {features.dims} and no names along {dim!r}. Name what is "
                f"compared with dims='…', and its names with features.assign_coords({dim}=names)."
            )
    return [_Column(name, features, dim) for name, features in members]


def _aligned(columns: Sequence[_Column], join: str, by: str | None) -> list[NDArray[np.intp]]:
    """Return where the images that all have stand in each, in the order of the first."""
    first = columns[0]
    require_join(join)
    if len(columns) == 1:
        require_unique(first.features, by or first.dim)
    kept = np.arange(first.features.sizes[first.dim])
    places = [(kept, kept)]
    for column in columns[1:]:
        try:
            found = align(
                first.features, column.features, (first.dim, column.dim), join=join, by=by
            )
        except InvalidInputError as err:
            err.add_note(f"This is about {first.label!r} and {column.label!r}.")
            raise
        all_ = np.arange(found.n_images)
        here, there = (all_ if x is None else x for x in (found.first, found.second))
        places.append((here, there))
        kept = np.intersect1d(kept, here, assume_unique=True)
    return [there[np.searchsorted(here, kept)] for here, there in places]


def _require_size(n: int, dim: str, debiased: bool) -> None:
    if n < FEWEST[debiased]:
        raise InvalidInputError(
            f"{'Debiased' if debiased else 'Biased'} CKA needs {FEWEST[debiased]} {dim}s or more, "
            f"and the arrays have {n} in common."
        )
    require_memory(n, dim, "CKA")


def _centred_kernel(
    column: _Column, rows: NDArray[np.intp], kernel: Kernel, bandwidth: float, debiased: bool
) -> NDArray[np.float64] | None:
    """Return the centred kernel with length 1, its upper triangle as a vector; none if it is 0."""
    held = np.sort(rows)
    features = column.features
    if len(rows) < features.sizes[column.dim]:
        features = features.isel({column.dim: held})
    geometry = gram(features, column.dim)
    require_finite(geometry, f"features of {column.label!r}")
    # The kernel up to a constant per row and column, which centring removes; diagonal 0.
    values = -geometry.sqeuclidean
    if kernel == "rbf" and values.any():
        values = rbf_minus_one(geometry, rbf_width(geometry, bandwidth, repr(column.label)))
    size = np.linalg.norm(values)
    values = _u_centred(values) if debiased else double_centred(values)
    order = np.searchsorted(held, rows)
    if not np.array_equal(order, np.arange(len(rows))):
        values = values[np.ix_(order, order)]
    # Each pair stands once for two; the diagonal, which has no double, counts half.
    values[np.diag_indices(len(rows))] /= np.sqrt(2.0)
    vector = values[np.triu(np.ones(values.shape, bool))]
    length = np.linalg.norm(vector)
    return vector / length if length > ROUNDING * size else None


def _u_centred(matrix: NDArray[np.float64]) -> NDArray[np.float64]:
    """Centre the pairs of a symmetric matrix with diagonal 0 (Székely and Rizzo 2014)."""
    n = len(matrix)
    sums = matrix.sum(axis=0)
    means = sums / (n - 2)
    out: NDArray[np.float64] = means[:, None] + means
    np.subtract(matrix, out, out=out)
    out += sums.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(out, 0.0)
    return out


def _labelled(
    products: NDArray[np.float64],
    columns: Sequence[_Column],
    n_first: int,
    given: tuple[Any, Any],
    facts: dict[str, Any],
) -> xr.DataArray:
    """Name the results, drop the axes of single arrays and say where the two sides come from."""
    sides = (columns[:n_first], columns[n_first:] or columns[:n_first])
    dims = ("module", "other" if given[1] is not None else "module_2")
    labels = {
        name: np.array([column.label for column in side], object)
        for name, side in zip(dims, sides, strict=True)
    }
    sources = {"a": sides[0]} | ({"b": sides[1]} if given[1] is not None else {})
    facts |= {name: _sources(side) for name, side in sources.items()}
    result = xr.DataArray(products, dims=dims, coords=labels, name="cka", attrs=facts)
    single = [
        name for name, side in zip(dims, given, strict=True) if isinstance(side, xr.DataArray)
    ]
    return result.isel(dict.fromkeys(single, 0), drop=True)


def _sources(side: Sequence[_Column]) -> str:
    """Return the attributes of each array, as text that every file format keeps."""
    found = {
        column.label: {"shape": list(column.features.shape), **column.features.attrs}
        for column in side
    }
    return json.dumps(found, default=str, sort_keys=True)
