"""Scores as they are drawn: means, what surrounds them, and what they are called."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from scipy import stats

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.plots.lettering import shorten
from featurestore.rsa.measures import MEASURES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    Floats = NDArray[np.float64]

PREFERRED = ("model", "module")
CI = 0.95


@dataclass(frozen=True, eq=False)
class Series:
    """Scores that share a colour."""

    name: str
    middle: Floats
    """What is drawn, shape (n,)."""
    low: Floats
    """Lower ends of the error bars, shape (n,); NaN where there is none."""
    high: Floats
    """Upper ends."""
    points: Floats
    """What the mean was taken over, shape (n, k); k = 0 where no mean was taken."""


@dataclass(frozen=True, eq=False)
class Scores:
    """Several series along one axis."""

    dim: str
    names: tuple[str, ...]
    series: tuple[Series, ...]
    label: str
    """What the numbers are."""
    method: str
    """How they were computed, as their attributes say; may be empty."""
    spread: str
    """What the error bars are; empty where there are none."""


def tidy(
    scores: Any, dim: str | None, over: str, errors: str | None, preferred: Sequence[str]
) -> Scores:
    """Take scores apart into series.

    Parameters
    ----------
    scores : DataArray or Dataset
        Scores, or ``score`` with ``lower`` and ``upper``.
    dim : str, optional
        Along the axis; by default the first of `preferred` that there is, or the only one.
    over : str
        The dim to take the mean over, if there is such a dim.
    errors : str, optional
        ``"sem"``, ``"ci"``, ``"sd"`` or None.
    preferred : sequence of str
        Dims for the axis.

    Returns
    -------
    Scores
        With one series, or one per label of another dim.

    Raises
    ------
    InvalidInputError
        If these are no scores, or have more dims than can be shown.
    """
    if errors is not None and errors not in ERRORS:
        raise InvalidInputError(
            f"errors={errors!r} is not known. Use {', '.join(map(repr, ERRORS))} or None."
            f"{did_you_mean(str(errors), ERRORS)}"
        )
    score, lower, upper = _parts(scores)
    dim = _axis(score, dim, over, preferred)
    if dim not in score.dims:  # one number is one bar
        score = score.expand_dims(
            {dim: [str(score.coords[dim].item()) if dim in score.coords else ""]}
        )
        lower, upper = (None if x is None else x.expand_dims(dim) for x in (lower, upper))
    rest = [str(d) for d in score.dims if d not in (dim, over)]
    if len(rest) > 1:
        raise InvalidInputError(
            f"Scores with dims {score.dims} cannot be shown in one picture: beside {dim!r} and "
            f"{over!r} there may be one more dim. Choose one of some, for example "
            f"scores.isel({rest[-1]}=0).",
            dims=score.dims,
        )
    series, spread = [], ""
    names = labels_of(score, rest[0]) if rest else [""]
    for k, name in enumerate(names):
        where = {rest[0]: k} if rest else {}
        one = score.isel(where)
        bounds = None if lower is None or upper is None else (lower.isel(where), upper.isel(where))
        made, spread = _one(one, bounds, dim, over, errors, name)
        series.append(made)
    return Scores(
        dim, tuple(labels_of(score, dim)), tuple(series), label_of(score), _method(scores), spread
    )


def _one(
    score: xr.DataArray,
    bounds: tuple[xr.DataArray, xr.DataArray] | None,
    dim: str,
    over: str,
    errors: str | None,
    name: str,
) -> tuple[Series, str]:
    if over in score.dims:
        points = np.asarray(score.transpose(dim, over).values, dtype=np.float64)
        if bounds is not None:
            raise InvalidInputError(
                f"The scores have a dim {over!r} as well as bounds; take the mean over it first."
            )
        middle, half = mean_and_error(points, errors)
        has_error = errors is not None and bool(np.isfinite(half).any())
        n = int(np.isfinite(points).sum(axis=1).max(initial=0))
        spread = f"{ERRORS[errors]}, {n} {over}s" if has_error and errors else ""
        return Series(name, middle, middle - half, middle + half, points), spread
    middle = np.asarray(score.values, dtype=np.float64)
    nothing = np.full(len(middle), np.nan)
    if bounds is None:
        return Series(name, middle, nothing, nothing, np.empty((len(middle), 0))), ""
    low, high = (np.asarray(bound.transpose(dim).values, np.float64) for bound in bounds)
    text = "interval"
    if isinstance(level := score.attrs.get("confidence"), float):
        text = f"{100 * level:g} % CI"
    return Series(name, middle, low, high, np.empty((len(middle), 0))), text


def mean_and_error(points: Floats, errors: str | None) -> tuple[Floats, Floats]:
    """Return the mean of each row, and half the length of its error bar.

    Parameters
    ----------
    points : ndarray of shape (n, k)
        One column per subject; NaN where one is missing.
    errors : str, optional
        ``"sem"``: standard deviation (k − 1) over the root of k; ``"ci"``: that times Student's t
        for 95 %; ``"sd"``.

    Returns
    -------
    mean : ndarray of shape (n,), float64
        Of those that are there; NaN where none is.
    half : ndarray of shape (n,), float64
        NaN where fewer than two are there.
    """
    there = np.isfinite(points)
    k = there.sum(axis=1)
    filled = np.where(there, points, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = filled.sum(axis=1) / k
        squares = np.where(there, (points - mean[:, None]) ** 2, 0.0).sum(axis=1)
        deviation = np.sqrt(squares / (k - 1))
        factor = {
            "sem": 1 / np.sqrt(k),
            "ci": stats.t.ppf((1 + CI) / 2, np.maximum(k - 1, 1)) / np.sqrt(k),
            "sd": np.ones(len(k)),
        }
        half = deviation * factor[errors] if errors else np.full(len(k), np.nan)
    return np.where(k > 0, mean, np.nan), np.where(k > 1, half, np.nan)


ERRORS = {"sem": "± SEM", "ci": "95 % CI of the mean", "sd": "± SD"}


def _parts(scores: Any) -> tuple[xr.DataArray, xr.DataArray | None, xr.DataArray | None]:
    if isinstance(scores, xr.DataArray):
        return scores, None, None
    if not isinstance(scores, xr.Dataset):
        raise InvalidInputError(
            f"Scores are a DataArray, as fs.compare_rdms returns, or a Dataset with 'score', "
            f"'lower' and 'upper'; this is a {type(scores).__name__}."
        )
    if "score" not in scores:
        raise InvalidInputError(
            f"The Dataset has no variable 'score'; it has {', '.join(map(str, scores.data_vars))}. "
            "Choose the one to show: scores['…']."
        )
    score = scores["score"].assign_attrs(scores.attrs | scores["score"].attrs)
    return score, scores.get("lower"), scores.get("upper")


def _axis(score: xr.DataArray, dim: str | None, over: str, preferred: Sequence[str]) -> str:
    dims = [str(d) for d in score.dims if d != over]
    if dim is not None:
        if dim not in dims:
            raise InvalidInputError(
                f"The scores have no dim {dim!r} to be shown along; they have "
                f"{', '.join(map(str, score.dims)) or 'none'}.{did_you_mean(dim, dims)}"
            )
        return dim
    for wanted in preferred:
        if wanted in dims or (not dims and wanted in score.coords):
            return wanted
    if len(dims) > 1:
        raise InvalidInputError(
            f"The scores have several dims ({', '.join(dims)}); say with dim= which is the axis."
        )
    return dims[0] if dims else preferred[0]


def labels_of(array: xr.DataArray, dim: str) -> list[str]:
    """Return what to write for each label of a dim.

    Parameters
    ----------
    array : DataArray
        With that dim.
    dim : str
        Which.

    Returns
    -------
    list of str
        Short and all different where the labels are.
    """
    if dim not in array.coords:
        return [f"{dim} {k}" for k in range(array.sizes[dim])]
    values = array[dim].values.tolist()
    return shorten([", ".join(map(str, v)) if isinstance(v, tuple) else v for v in values])


def label_of(scores: xr.DataArray) -> str:
    """Say what scores are, for an axis.

    Parameters
    ----------
    scores : DataArray
        With the attributes of `compare_rdms` or `cka`.

    Returns
    -------
    str
        Such as ``"Spearman's rho between RDMs"``.
    """
    method = str(scores.attrs.get("method", ""))
    if method in MEASURES:
        return f"{MEASURES[method].title} between RDMs"
    if scores.name == "cka":
        facts = (scores.attrs.get("estimator"), scores.attrs.get("kernel"))
        return " ".join([str(fact) for fact in facts if fact] + ["CKA"])
    return method or ("score" if scores.name is None else str(scores.name))


def _method(scores: Any) -> str:
    return str(scores.attrs.get("method", ""))


def require_ceiling(ceiling: Any, method: str) -> tuple[float, float] | None:
    """Return the ends of a noise ceiling.

    Parameters
    ----------
    ceiling : Dataset, optional
        From `noise_ceiling`: ``lower`` and ``upper``, one number each.
    method : str
        How the scores were computed; may be empty.

    Returns
    -------
    (float, float) or None
        Lower and upper bound.

    Raises
    ------
    InvalidInputError
        If it is no ceiling, or one of another method.
    """
    if ceiling is None:
        return None
    if not isinstance(ceiling, xr.Dataset) or not {"lower", "upper"} <= set(ceiling.data_vars):
        raise InvalidInputError(
            "ceiling= takes what fs.noise_ceiling returns, a Dataset with 'lower' and 'upper', "
            f"not a {type(ceiling).__name__}."
        )
    if ceiling["lower"].ndim:
        dims = ceiling["lower"].dims
        raise InvalidInputError(
            f"The ceiling has several values along {', '.join(map(str, dims))}. Choose one: "
            f"ceiling.isel({dims[0]}=0)."
        )
    other = str(ceiling.attrs.get("method", ""))
    if method and other and other != method:
        raise InvalidInputError(
            f"The scores were computed with method {method!r} and the ceiling with {other!r}, so "
            "they cannot be compared. Compute the ceiling with the same method.",
            method=method,
        )
    return float(ceiling["lower"]), float(ceiling["upper"])
