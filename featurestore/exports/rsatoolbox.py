"""Hand-over to rsatoolbox and back: RDMs and features, always copied, with their labels.

rsatoolbox has what this package leaves to it: whitened comparisons, crossvalidated distances,
models with weights, crossvalidated inference.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy.spatial.distance import squareform

from featurestore.errors import InvalidInputError, MemoryBudgetError
from featurestore.exports import descriptors as words
from featurestore.exports import regrid
from featurestore.optional import import_optional
from featurestore.options import format_nbytes, get_options
from featurestore.rdms.structure import extra_dims, make_rdm, pair_dim, second

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

MAX_IMAGES = 5_000
"""More are refused: what rsatoolbox makes of an RDM takes several times its memory."""

MEAN_SQUARED = "squared euclidean"
"""What rsatoolbox calls squared differences averaged over channels."""

FOREIGN_MEASURES = {
    MEAN_SQUARED: "squared euclidean (rsatoolbox: mean over channels)",
    "euclidean": "euclidean (rsatoolbox)",
}
"""Words of rsatoolbox that mean something else here."""

FEATURE = "feature"
UNKNOWN = "unknown"  # as read_rdms says


def to_rsatoolbox(array: xr.DataArray, *, dim: str = "image", allow_large: bool = False) -> Any:
    """Copy an RDM or features into an object of rsatoolbox.

    NaN stays NaN. `rsatoolbox.rdm.compare` refuses RDMs whose NaN are in different places: leave
    those images out of both first.

    Parameters
    ----------
    array : DataArray (…, image, image_2) or (image, …)
        An RDM, with or without leading dims such as ``subject``; or features, whose other dims
        are flattened. In memory or lazy; read one RDM at a time, after all checks but those of
        its values.
    dim : str
        What a row of features is. An RDM says so itself.
    allow_large : bool
        Whether more than 5,000 images, and more memory than `memory_budget`, are allowed.

    Returns
    -------
    rsatoolbox.rdm.RDMs or rsatoolbox.data.Dataset
        Float64. Of an RDM: one vector each, leading dims flattened in order;
        ``pattern_descriptors`` hold every coordinate of the images, ``rdm_descriptors`` those of
        the leading dims, ``descriptors`` the attributes. Of features: ``measurements`` (image,
        feature), with ``obs_descriptors`` and ``channel_descriptors`` alike. A coordinate
        ``index`` becomes ``image_index``, since rsatoolbox numbers rows under that name.

    Raises
    ------
    InvalidInputError
        If it is neither, or an RDM is not symmetric or its diagonal not 0.
    MemoryBudgetError
        If it is too large; nothing was read (`projected_nbytes`, `allowed_nbytes`).
    MissingDependencyError
        If rsatoolbox is not installed.

    Notes
    -----
    rsatoolbox divides squared Euclidean distances by the number of channels and calls the result
    ``squared euclidean``. An RDM with the metric ``sqeuclidean`` is divided alike if it knows its
    ``n_features``, as an attribute or as a coordinate of leading dims. If not, its values stay and
    so does its name. Every other metric keeps values and name; note that ``euclidean`` from here
    is not divided.

    Coordinates along the second image axis alone, or along images and another dim together, have
    no place in rsatoolbox and are left out.

    Examples
    --------
    >>> names = ["cat.jpg", "dog.jpg", "cup.jpg"]
    >>> rdm = make_rdm([[0, 1, 2], [1, 0, 3], [2, 3, 0]], {"image": names})
    >>> to_rsatoolbox(rdm).get_vectors()
    array([[1., 2., 3.]])
    """
    if _is_features(array, dim):
        return _to_dataset(array, dim, allow_large)
    return _to_rdms(array, allow_large)


def from_rsatoolbox(
    given: Any,
    dim: str | None = None,
    *,
    names: str | None = None,
    dims: Sequence[str] | None = None,
) -> xr.DataArray:
    """Copy RDMs or a dataset of rsatoolbox into a labelled array.

    What came from `to_rsatoolbox` goes back to what it was, as far as its rows, RDMs and measure
    are still the same.

    Parameters
    ----------
    given : rsatoolbox.rdm.RDMs or rsatoolbox.data.Dataset
        The object.
    dim : str, optional
        Name of the dim that is compared; what it was before, or ``image``, if not given.
    names : str, optional
        The descriptor that holds the names; one called like `dim` if not given.
    dims : sequence of str, optional
        Descriptors of the RDMs that become leading dims, slowest first. If not given: the dims
        they came with where they still fill a grid, else one dim ``rdm`` with every descriptor as
        a coordinate, and no leading dim for a single RDM.

    Returns
    -------
    DataArray (…, image, image_2) or (image, …)
        RDMs, or features: in the dims they came with, or flattened to ``feature`` where channels
        were chosen or they came from elsewhere. In the dtype they came with where no digit is lost
        by it, else float64.

    Raises
    ------
    InvalidInputError
        If it is something else, or lacks such descriptors.
    MissingDependencyError
        If rsatoolbox is not installed.

    Notes
    -----
    The metric is what ``dissimilarity_measure`` says. Squared Euclidean distances that
    `to_rsatoolbox` divided by the number of features are multiplied again; those that rsatoolbox
    computed stay divided and say so in ``attrs["metric"]``.

    Examples
    --------
    >>> rdm = make_rdm([[0, 1, 2], [1, 0, 3], [2, 3, 0.0]], {"image": ["a", "b", "c"]})
    >>> from_rsatoolbox(to_rsatoolbox(rdm)).equals(rdm)
    True
    """
    rdm_module, data_module = _rsatoolbox("rdm"), _rsatoolbox("data")
    if isinstance(given, rdm_module.RDMs):
        return _from_rdms(given, dim, names, dims)
    if isinstance(given, data_module.Dataset) and np.ndim(given.measurements) == 2:
        if dims is not None:
            raise InvalidInputError(
                "dims= names descriptors of RDMs; a Dataset has none. Leave it out."
            )
        return _from_dataset(given, dim, names)
    raise InvalidInputError(
        f"A {type(given).__name__} is neither rsatoolbox.rdm.RDMs nor an rsatoolbox.data.Dataset "
        "of two dims."
    )


def _rsatoolbox(part: str) -> Any:
    return import_optional(f"rsatoolbox.{part}", "rsa")


def _is_features(array: Any, dim: str) -> bool:
    """Tell features from an RDM, refusing what could be read as either."""
    if not isinstance(array, xr.DataArray) or any(
        second(name) == other for name, other in zip(array.dims[:-1], array.dims[1:], strict=True)
    ):
        return False
    if dim not in array.dims:
        raise InvalidInputError(
            f"An array with dims {array.dims} is no RDM, and as features it lacks {dim!r}. Name "
            "what a row is: dim='…'.",
            dims=array.dims,
        )
    if array.dims[0] != dim:
        before = array.dims[: array.dims.index(dim)]
        raise InvalidInputError(
            f"Features with dims {array.dims} have {before} before {dim!r}, and a Dataset of "
            f"rsatoolbox holds one table. Hand over one at a time, such as "
            f"features.isel({before[0]}=0), or, if {before[0]!r} is a feature like others, "
            f"features.transpose({dim!r}, ...).",
            dims=array.dims,
        )
    return True


def _to_rdms(rdm: xr.DataArray, allow_large: bool) -> Any:
    dim, extra = pair_dim(rdm), extra_dims(rdm)
    module = _rsatoolbox("rdm")
    n = rdm.sizes[dim]
    shape = tuple(rdm.sizes[name] for name in extra)
    n_rdms, n_pairs = math.prod(shape), n * (n - 1) // 2
    if not n_rdms or n < 2:
        raise InvalidInputError(
            f"An array of shape {rdm.shape} holds no pair of {dim}s; rsatoolbox needs at least 2 "
            f"{dim}s and one RDM."
        )
    # The vectors, and one square as it is read, in float64, and checked.
    nbytes = 8 * n_rdms * n_pairs + n * n * (rdm.dtype.itemsize + 3 * 8)
    _require_size(n, dim, nbytes, allow_large)
    scale, measure = _scale(rdm, extra)
    vectors = np.empty((n_rdms, n_pairs))
    for row, place in enumerate(np.ndindex(shape)):
        vectors[row] = _vector(np.asarray(rdm[place].values, np.float64), dim)
        if scale is not None:
            vectors[row] /= scale[row]
    layout = words.layout_of(rdm, dim) | {"measure": measure, "scaled": scale is not None}
    return module.RDMs(
        vectors,
        dissimilarity_measure=measure,
        descriptors=words.object_descriptors(rdm, layout),
        rdm_descriptors=words.flat_descriptors(rdm, extra)
        | ({} if scale is None else {words.N_FEATURES: scale.astype(int).tolist()}),
        pattern_descriptors=words.row_descriptors(rdm, dim),
    )


def _to_dataset(features: xr.DataArray, dim: str, allow_large: bool) -> Any:
    module = _rsatoolbox("data")
    if features.dtype.kind not in "fiub":
        raise InvalidInputError(f"Features of dtype {features.dtype} are not real numbers.")
    channels = tuple(str(name) for name in features.dims[1:])
    # As it is read, in float64, and a number per channel and dim.
    nbytes = features.size * (features.dtype.itemsize + 8)
    nbytes += 8 * max(len(channels), 1) * math.prod(features.shape[1:])
    _require_size(0, dim, nbytes, allow_large)
    layout = words.layout_of(features, dim) | {"shape": list(features.shape[1:])}
    measurements = np.array(features.values, np.float64).reshape(len(features), -1)
    return module.Dataset(
        measurements,
        descriptors=words.object_descriptors(features, layout),
        obs_descriptors=words.row_descriptors(features, dim),
        channel_descriptors=words.channel_descriptors(features, channels),
    )


def _require_size(n: int, dim: str, nbytes: int, allow_large: bool) -> None:
    """Refuse what rsatoolbox is not made for."""
    if allow_large:
        return
    budget = get_options().memory_budget
    if n > MAX_IMAGES:
        raise MemoryBudgetError(
            f"{n:,} {dim}s are more than {MAX_IMAGES:,}: the copy alone takes "
            f"{format_nbytes(nbytes)}, and rsatoolbox makes several more of it. Choose {dim}s "
            f"first, compare with fs.compare_rdms, which needs no copy, or say allow_large=True.",
            n_images=n,
            projected_nbytes=nbytes,
            allowed_nbytes=budget,
        )
    if nbytes > budget:
        raise MemoryBudgetError(
            f"The copy for rsatoolbox takes {format_nbytes(nbytes)}, and memory_budget is "
            f"{format_nbytes(budget)}. Choose fewer {dim}s, RDMs or features, raise it with "
            "fs.set_options(memory_budget='…'), or say allow_large=True.",
            projected_nbytes=nbytes,
            allowed_nbytes=budget,
        )


def _scale(rdm: xr.DataArray, extra: tuple[str, ...]) -> tuple[NDArray[Any] | None, str | None]:
    """Return what to divide each RDM by, and what rsatoolbox calls the measure."""
    metric = rdm.attrs.get("metric")
    if metric != "sqeuclidean":
        return None, None if metric is None else str(metric)
    for known in (rdm.coords.get(words.N_FEATURES), rdm.attrs.get(words.N_FEATURES)):
        counts = xr.DataArray(known)
        if counts.dtype.kind in "iu" and set(counts.dims) <= set(extra) and (counts >= 1).all():
            return words.flatten(counts.variable, rdm, extra).astype(np.float64), MEAN_SQUARED
    return None, "sqeuclidean"


def _vector(square: NDArray[np.float64], dim: str) -> NDArray[np.float64]:
    """Return the upper triangle row by row; refuse what is no RDM."""
    largest = np.nanmax(np.abs(square), initial=0.0)
    if not np.allclose(square, square.T, rtol=0.0, atol=1e-6 * largest, equal_nan=True):
        raise InvalidInputError(
            "The RDM is not symmetric, and rsatoolbox would take one half of it. Average both "
            "directions: (rdm + rdm transposed) / 2."
        )
    diagonal = np.diagonal(square)
    if (np.abs(diagonal[~np.isnan(diagonal)]) > 1e-6 * largest).any():
        raise InvalidInputError(
            f"The diagonal of the RDM is not 0, so these are no dissimilarities of {dim}s. "
            "Of similarities s, 1 - s may be what you need."
        )
    return np.asarray(squareform(square, checks=False), np.float64)


def _from_rdms(
    rdms: Any, dim: str | None, names: str | None, dims: Sequence[str] | None
) -> xr.DataArray:
    layout = regrid.read_layout(rdms.descriptors)
    dim = dim or layout.get("dim", "image")
    labels = regrid.row_coords(rdms.pattern_descriptors, layout, dim, names)
    grid = regrid.leading_grid(rdms.rdm_descriptors, rdms.n_rdm, layout, dims)
    vectors = np.array(rdms.get_vectors(), np.float64)
    attrs = regrid.object_attrs(rdms.descriptors, layout)
    measure = rdms.dissimilarity_measure
    scaled = layout.get("scaled", False)
    known = not scaled or words.N_FEATURES in rdms.rdm_descriptors
    if not (layout and known and measure == layout["measure"]):
        known_as = UNKNOWN if measure is None else str(measure)
        attrs["metric"] = FOREIGN_MEASURES.get(known_as, known_as)
    elif scaled:
        vectors *= np.asarray(rdms.rdm_descriptors[words.N_FEATURES], np.float64)[:, None]
    values = _as_before(np.stack([squareform(v) for v in vectors]), layout.get("dtype"))
    out = make_rdm(
        values.reshape(*grid.shape, rdms.n_cond, rdms.n_cond),
        xr.Coordinates({name: (dim, found) for name, found in labels.items()}),
        dim,
        extra={name: range(n) for name, n in zip(grid.dims, grid.shape, strict=True)},
        attrs=attrs,
    )
    out = out.drop_vars(grid.dims).assign_coords(layout.get("scalars", {}) | grid.coords)
    return out.rename(layout.get("name", "rdm"))


def _from_dataset(dataset: Any, dim: str | None, names: str | None) -> xr.DataArray:
    layout = regrid.read_layout(dataset.descriptors)
    dim = dim or layout.get("dim", "image")
    labels = regrid.row_coords(dataset.obs_descriptors, layout, dim, names)
    channels = dataset.channel_descriptors
    grid = regrid.channel_grid(channels, dataset.n_channel, layout)
    if grid is None:
        coords = {name: (FEATURE, np.asarray(values)) for name, values in channels.items()}
        grid = regrid.Grid((FEATURE,), (dataset.n_channel,), coords)
    values = _as_before(np.array(dataset.measurements, np.float64), layout.get("dtype"))
    return xr.DataArray(
        values.reshape(len(values), *grid.shape),
        dims=(dim, *grid.dims),
        coords=layout.get("scalars", {})
        | {name: (dim, found) for name, found in labels.items()}
        | grid.coords,
        name=layout.get("name"),
        attrs=regrid.object_attrs(dataset.descriptors, layout),
    )


def _as_before(values: NDArray[np.float64], dtype: str | None) -> NDArray[Any]:
    """Return values in the dtype they came with, if that is a float and loses nothing."""
    if dtype is None or np.dtype(dtype).kind != "f":
        return values
    with np.errstate(over="ignore"):
        rounded = values.astype(dtype)
    # Division and multiplication by the number of features may have moved the last digit.
    tolerance = 2 * np.finfo(np.float64).eps
    same = np.isclose(rounded, values, rtol=tolerance, atol=0.0, equal_nan=True)
    return rounded if same.all() else values
