"""Features with a mean taken off or a length made one, as lazy as they came."""

from __future__ import annotations

import math
import uuid
from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import xarray as xr

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.optional import import_optional
from featurestore.options import get_options
from featurestore.rdms.derived import derived_attrs

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    Statistics = tuple[xr.DataArray, xr.DataArray]

Norm = Literal["l2", "l1", "max", "zscore"]

FEATURE = "feature"
BLOCK_NBYTES = 8 * 2**20  # taken to float64 at once, by each thread


def centre(features: xr.DataArray, over: str = "image", *, dim: str = "image") -> xr.DataArray:
    """Take the mean off features.

    Values that are not finite make their image NaN with ``over="feature"``. With
    ``over="image"`` they would spread to all images, so they are refused.

    Parameters
    ----------
    features : DataArray (image, …)
        Real numbers, in memory or lazy. All dims but `dim` count as features.
    over : str
        What the mean is taken over: ``"image"`` takes the mean over the images off each feature,
        ``"feature"`` the mean over all features off each image.
    dim : str
        What a row is; `over` then takes this word instead of ``"image"``.

    Returns
    -------
    DataArray (image, …)
        The same labels and dims; float64 from float64 and whole numbers, else float32. Lazy if
        the features are dask-backed, or not yet read and larger than `lazy_threshold`. The
        attribute ``derived`` says what was done; ``feature_key`` is now ``source_feature_key``.

    Raises
    ------
    InvalidInputError
        If `over` or `dim` is not there, the features are not real numbers, or some are not
        finite and the mean is over images.

    Notes
    -----
    ``over="image"`` reads the features once at the call; beyond that nothing lazy is read.
    Means are accumulated in float64.

    Examples
    --------
    >>> acts = xr.DataArray([[1.0, 2.0], [3.0, 6.0]], dims=("image", "feature"))
    >>> centre(acts).values
    array([[-1., -2.],
           [ 1.,  2.]])
    >>> centre(acts, over="feature").values
    array([[-0.5,  0.5],
           [-1.5,  1.5]])
    """
    dims = _reduced(features, over, dim)
    return _scaled(features, dims, over, dim, _mean_alone, f"centre(over={over!r})")


def normalise(
    features: xr.DataArray,
    norm: Norm = "l2",
    over: str = "feature",
    *,
    dim: str = "image",
) -> xr.DataArray:
    """Divide features by their length, or z-score them.

    What has no length becomes 0: an image or feature that is 0 throughout, and with ``"zscore"``
    one that is constant up to rounding (its standard deviation is at most twice the resolution
    of its dtype, times its mean). Values that are not finite make their image NaN with
    ``over="feature"``; with ``over="image"`` they would spread to all images, so they are refused.

    Parameters
    ----------
    features : DataArray (image, …)
        Real numbers, in memory or lazy. All dims but `dim` count as features.
    norm : str
        ``"l2"`` (root of the sum of squares), ``"l1"`` (sum of magnitudes), ``"max"`` (largest
        magnitude), or ``"zscore"`` (the mean is taken off, then the population standard
        deviation divided by).
    over : str
        What is summed over: ``"feature"`` scales each image by itself, ``"image"`` scales each
        feature over the images (with ``"zscore"`` what scikit-learn's StandardScaler does).
    dim : str
        What a row is; `over` then takes this word instead of ``"image"``.

    Returns
    -------
    DataArray (image, …)
        The same labels and dims; float64 from float64 and whole numbers, else float32. Lazy if
        the features are dask-backed, or not yet read and larger than `lazy_threshold`. The
        attribute ``derived`` says what was done; ``feature_key`` is now ``source_feature_key``.

    Raises
    ------
    InvalidInputError
        If `norm`, `over` or `dim` is not there, the features are not real numbers, or some are
        not finite and the scale is over images.

    Notes
    -----
    ``over="image"`` reads the features once at the call (``"zscore"`` too); beyond that nothing
    lazy is read. Scales are accumulated in float64.

    Examples
    --------
    >>> acts = xr.DataArray([[3.0, 4.0], [0.0, 0.0]], dims=("image", "feature"))
    >>> normalise(acts).values
    array([[0.6, 0.8],
           [0. , 0. ]])
    """
    if norm not in _NORMS:
        near = did_you_mean(str(norm), get_args(Norm))
        raise InvalidInputError(
            f"norm={norm!r} is not known; it is one of {', '.join(get_args(Norm))}.{near}"
        )
    dims = _reduced(features, over, dim)
    step = f"normalise(norm={norm!r}, over={over!r})"
    return _scaled(features, dims, over, dim, _NORMS[norm], step)


def _reduced(features: Any, over: str, dim: str) -> tuple[str, ...]:
    """Return the dims that a statistic is taken over; refuse what has none."""
    if not isinstance(features, xr.DataArray):
        raise InvalidInputError(
            f"A {type(features).__name__} has no dims. Give a DataArray, such as what store.get(…) "
            "returned."
        )
    if dim not in features.dims:
        raise InvalidInputError(
            f"Features with dims {features.dims} have no dim {dim!r}. Name what a row is: dim='…'."
        )
    if features.dtype.kind not in "fiub":
        raise InvalidInputError(f"Features of dtype {features.dtype} are not real numbers.")
    if not features.size:
        raise InvalidInputError(f"Features of shape {features.shape} hold no values.")
    rest = tuple(str(name) for name in features.dims if name != dim)
    if over == dim:
        return (dim,)
    if over == FEATURE:
        return rest
    raise InvalidInputError(
        f"over={over!r} is not known; it is {dim!r} (a statistic of each feature) or {FEATURE!r} "
        f"(a statistic of each {dim}).{did_you_mean(str(over), (dim, FEATURE))}"
    )


def _scaled(
    features: xr.DataArray,
    dims: tuple[str, ...],
    over: str,
    dim: str,
    statistics: Callable[[xr.DataArray, tuple[str, ...]], Statistics],
    step: str,
) -> xr.DataArray:
    """Return ``(features - shift) / scale``, where the two come from `statistics`."""
    lazy = features.chunks is not None or (
        not features.variable._in_memory and features.nbytes > get_options().lazy_threshold
    )
    if not lazy:
        features = features.copy(deep=False).load()
    # Statistics in pieces also in memory: in float64 they need several times the values' size.
    pieces = _in_pieces(features, dim)
    shift, scale = statistics(pieces, dims)
    if over == dim or not lazy:
        # Now, not when values are asked for: for statistics over images, dask would hold every
        # chunk until the last one is summed, because the result needs them again.
        shift, scale = xr.Dataset({"shift": shift, "scale": scale}).compute().values()
    if over == dim:
        _require_finite(pieces, shift, scale, dim)
    dtype = np.dtype(np.float64)
    if features.dtype.kind == "f":
        dtype = np.result_type(features.dtype, np.float32)
    scaled = xr.apply_ufunc(
        _shift_and_divide,
        (pieces if lazy else features).variable,
        shift.variable,
        scale.variable,
        kwargs={"dtype": dtype},
        dask="parallelized",
        output_dtypes=[dtype],
    )
    out = features.copy(data=scaled.data)
    out.attrs = derived_attrs(features.attrs, step)
    return out


def _in_pieces(features: xr.DataArray, dim: str) -> xr.DataArray:
    """Cut an array that is too large to be copied, unless it is in pieces already."""
    if features.chunks is not None or features.nbytes <= BLOCK_NBYTES:
        return features
    rows = max(1, BLOCK_NBYTES * features.sizes[dim] // features.nbytes)
    data = import_optional("dask.array", "all").from_array(
        _Parts(features.variable),
        chunks=tuple(rows if name == dim else size for name, size in features.sizes.items()),
        name=f"features-{uuid.uuid4().hex}",
        asarray=False,
        fancy=False,
        meta=np.empty((0,) * features.ndim, features.dtype),
    )
    return features.copy(data=data)


class _Parts:
    """A variable whose parts are read one by one; xarray's own `chunk` copies the whole first."""

    def __init__(self, variable: xr.Variable) -> None:
        self._variable = variable
        self.shape, self.ndim, self.dtype = variable.shape, variable.ndim, variable.dtype

    def __getitem__(self, key: Any) -> NDArray[Any]:
        return self._variable[key].values


def _shift_and_divide(
    values: NDArray[Any], shift: Any, scale: Any, dtype: np.dtype[Any]
) -> NDArray[Any]:
    out = np.empty(values.shape, dtype)
    # In float64 within NumPy's buffers: a copy of the values in float64 may not fit.
    np.subtract(values, shift, out=out, dtype=np.float64, casting="same_kind")
    np.divide(out, scale, out=out, dtype=np.float64, casting="same_kind")
    return out


def _require_finite(
    features: xr.DataArray, shift: xr.DataArray, scale: xr.DataArray, dim: str
) -> None:
    if not (np.isnan(shift).any() or np.isnan(scale).any()):
        return
    rest = [name for name in features.dims if name != dim]
    finite = _wide(features).notnull().all(rest).values
    bad = features[dim].values[~finite].tolist()
    if not bad:
        raise InvalidInputError(f"The features are so large that their {dim} statistics overflow.")
    shown = ", ".join(map(str, bad[:5])) + (f" and {len(bad) - 5} more" if len(bad) > 5 else "")
    raise InvalidInputError(
        f"Features of {len(bad)} of {len(finite)} {dim}s are not finite: {shown}. A statistic "
        f"over {dim}s would make all others NaN too. Leave them out first, or use "
        f"over={FEATURE!r}.",
        images=bad,
    )


def _wide(features: xr.DataArray) -> xr.DataArray:
    """Return values in float64, NaN where they are not finite: Inf − Inf would warn."""
    wide = features.astype(np.float64)
    return wide.where(abs(wide) < np.inf)


def _divisor(scale: xr.DataArray, floor: xr.DataArray | float = 0.0) -> xr.DataArray:
    """Make a scale that is nothing divide to 0, and one that is not finite to NaN."""
    known = scale.where(abs(scale) < np.inf)
    return known.where(~(known <= floor), np.inf)


def _length_alone(length: xr.DataArray) -> Statistics:
    return xr.zeros_like(length), _divisor(length)


def _mean_alone(features: xr.DataArray, dims: tuple[str, ...]) -> Statistics:
    mean = _wide(features).mean(dims, skipna=False)
    return mean, xr.ones_like(mean)


def _l2(features: xr.DataArray, dims: tuple[str, ...]) -> Statistics:
    return _length_alone((_wide(features) ** 2).sum(dims, skipna=False) ** 0.5)


def _l1(features: xr.DataArray, dims: tuple[str, ...]) -> Statistics:
    return _length_alone(abs(_wide(features)).sum(dims, skipna=False))


def _largest(features: xr.DataArray, dims: tuple[str, ...]) -> Statistics:
    return _length_alone(abs(_wide(features)).max(dims, skipna=False))


def _zscore(features: xr.DataArray, dims: tuple[str, ...]) -> Statistics:
    wide = _wide(features)
    mean, deviation = wide.mean(dims, skipna=False), wide.std(dims, skipna=False, ddof=0)
    # What summing in float64 leaves of a constant, and what its own dtype does.
    rounding = float(np.finfo(np.float64).eps) * math.prod(features.sizes[d] for d in dims)
    if features.dtype.kind == "f":
        rounding = max(rounding, 2.0 * float(np.finfo(features.dtype).eps))
    return mean, _divisor(deviation, rounding * abs(mean))


_NORMS: dict[str, Callable[[xr.DataArray, tuple[str, ...]], Statistics]] = {
    "l2": _l2,
    "l1": _l1,
    "max": _largest,
    "zscore": _zscore,
}
