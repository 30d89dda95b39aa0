"""Representational dissimilarity matrices of features."""

from __future__ import annotations

import json
import uuid
import warnings
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.arrays.lazy import rows_behind
from featurestore.errors import FeatureStoreWarning
from featurestore.optional import import_optional
from featurestore.options import get_options
from featurestore.rdms.derived import KEY, SOURCE_KEY
from featurestore.rdms.kernel import RESERVE
from featurestore.rdms.metrics import (
    UNITS,
    Gaussian,
    find_bandwidth,
    require_bandwidth,
    require_metric,
)
from featurestore.rdms.pairs import require_rows, view_of
from featurestore.rdms.structure import make_rdm
from featurestore.rdms.view import LazyPairs
from featurestore.storage.grams import BLOCK_ROWS, KERNEL

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.rdms.metrics import Bandwidth, Metric
    from featurestore.rdms.sides import Sides
    from featurestore.rdms.view import PairView

N_NAMED = 5


def rdm(
    features: xr.DataArray,
    metric: Metric = "correlation",
    *,
    dim: str = "image",
    bandwidth: Bandwidth | None = None,
    device: str = "auto",
    progress: bool | None = None,
) -> xr.DataArray:
    """Compute how different the features are for each pair of images.

    Every pair has the value that float64 arithmetic gives, to a relative error of 2e-6, also
    where features have large offsets or images are nearly alike; equal rows are exactly 0 apart.
    What `FeatureStore.get` answered with, untouched, is known by its content: distances are kept
    in its store, and more images later cost only the new pairs.

    Parameters
    ----------
    features : DataArray (image, ...)
        Features of a store, brain data (image, voxel), ratings (image, dimension): any real
        numbers with names on `dim`, in memory or lazy. All other dims are features.
    metric : {"correlation", "cosine", "euclidean", "sqeuclidean", "gaussian"}
        With x and y the features of two images: ``1 − r`` (Pearson's), ``1 − cos``, ``|x − y|``,
        ``|x − y|²``, or ``1 − exp(−|x − y|² / bandwidth)``. None is divided by the number of
        features.
    dim : str
        What a row is, such as ``"image"``, ``"text"`` or ``"category"``.
    bandwidth : {"mean", "median"} or float, optional
        Width of the Gaussian, in units of squared distance. ``"mean"`` (the default) is
        THINGSvision's definition: the mean of all n × n squared distances, the zeros of the
        diagonal included. ``"median"`` is that over pairs of two images. Both depend on the set of
        images; the width that was used stands in ``attrs["bandwidth"]``, and a number fixes it.
    device : str
        Where products are computed: ``"auto"`` takes CUDA if torch is loaded and has it, else the
        CPU.
    progress : bool, optional
        Whether to show a progress bar; where stderr is a terminal if not given.

    Returns
    -------
    DataArray (image, image_2), float32
        Symmetric, with zeros on the diagonal; squared distances beyond the range of float32 come
        as float64. All coordinates of `dim` on both axes; attributes
        of `features`, and ``metric``, ``n_features`` and ``units``. Lazy where it exceeds half of
        `memory_budget` or `lazy_threshold`. Rows that hold NaN or infinities are NaN, with one
        warning that names them; so are constant rows for ``"correlation"`` and zero rows for
        ``"cosine"``, which have no direction.

    Raises
    ------
    InvalidInputError
        If names are missing or repeat, or the metric is unknown.
    MemoryBudgetError
        If the pairs do not fit in memory and there is no store to keep them.
    CorruptDataError
        If stored rows are damaged.

    Notes
    -----
    n images of p features cost n² p multiplications, and n² / 2 × 8 bytes in memory or in the
    store. RDMs are due to Kriegeskorte et al. (2008), doi:10.3389/neuro.06.004.2008; the Gaussian
    to Muttenthaler & Hebart (2021), doi:10.3389/fninf.2021.679838.

    Examples
    --------
    >>> import xarray as xr
    >>> voxels = xr.DataArray(
    ...     [[1.0, 2, 3], [3, 2, 1], [1, 2, 4]],
    ...     dims=("image", "voxel"), coords={"image": ["a", "b", "c"]},
    ... )
    >>> rdm(voxels).sel(image="a").values.astype(float).round(4).tolist()
    [0.0, 2.0, 0.018]
    """
    require_metric(metric)
    require_bandwidth(metric, bandwidth)
    require_rows(features, dim)
    base = "sqeuclidean" if metric == "gaussian" else metric
    # What follows from squared distances follows from all their digits.
    dtype = np.float64 if metric == "gaussian" else np.float32
    view = view_of(features, dim, base, device=device, progress=progress, dtype=dtype)
    n = features.sizes[dim]
    attrs = describe(features) | {
        "metric": metric,
        "units": UNITS[metric],
        "n_features": int(np.prod(features.shape, dtype=np.int64)) // n,
        "rdm_version": KERNEL,
    }
    sides = view.sides()
    _warn(sides, metric, features[dim].values, dim)
    if metric == "sqeuclidean" and not _fits_float32(sides):
        view = view_of(features, dim, base, device=device, progress=progress, dtype=np.float64)
    if metric == "gaussian":
        width = find_bandwidth(view, bandwidth)
        attrs["bandwidth"] = width
        view = view.with_post(Gaussian(width))
    return make_rdm(_values(view, n), features.coords, dim, attrs=attrs)


def describe(features: xr.DataArray) -> dict[str, Any]:
    """Return the attributes of features that every file format keeps.

    The key of a column is ``feature_key`` only if the numbers are known to be those that are
    stored there, and ``source_feature_key`` otherwise.

    Parameters
    ----------
    features : DataArray
        Features.

    Returns
    -------
    dict
        Texts, numbers and the like; other things are left out.
    """
    attrs = dict(features.attrs)
    if KEY in attrs and rows_behind(features) is None:
        # Attributes survive arithmetic: these may be other numbers than those of the column.
        attrs[SOURCE_KEY] = attrs.pop(KEY)
    kept = {}
    for name, value in attrs.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            continue
        kept[str(name)] = value
    return kept


def _values(view: PairView, n: int) -> Any:
    nbytes, options = view.itemsize * n * n, get_options()
    if nbytes <= min(options.lazy_threshold, (options.memory_budget - RESERVE) // 2):
        return view.read(np.arange(n), np.arange(n))
    view.prepare()  # distances are computed here, only reading them waits
    array = LazyPairs(view, n)
    dask_array = import_optional("dask.array", "all")
    return dask_array.from_array(
        array,
        chunks=BLOCK_ROWS,
        # Dask takes equal names for equal numbers, also long after an array is gone.
        name=f"rdm-{uuid.uuid4().hex}",
        asarray=False,
        fancy=True,
        inline_array=True,
        meta=np.empty((0, 0), array.dtype),
    )


def _fits_float32(sides: Sides) -> bool:
    """Say whether squared distances are within the range of float32."""
    most = 4 * float(np.max(sides.norm[sides.finite], initial=0)) ** 2
    return most == 0 or 1e-25 < most < float(np.finfo(np.float32).max)


def _warn(sides: Sides, metric: str, names: NDArray[Any], dim: str) -> None:
    finite = sides.finite
    if not finite.all():
        _warn_of(names[~finite], dim, "NaN or infinite (or far too large) features")
    if metric in ("correlation", "cosine"):
        none = sides.constant if metric == "correlation" else sides.norm == 0
        word = "features that are all equal" if metric == "correlation" else "features of zero"
        if (none & finite).any():
            _warn_of(names[none & finite], dim, word)


def _warn_of(names: NDArray[Any], dim: str, what: str) -> None:
    shown = ", ".join(map(str, names[:N_NAMED]))
    more = f" and {len(names) - N_NAMED} more" if len(names) > N_NAMED else ""
    warnings.warn(
        f"The {dim}s with {what} ({len(names)}) have NaN as dissimilarities to all others: "
        f"{shown}{more}.",
        FeatureStoreWarning,
        stacklevel=4,
    )
