"""Which images of an RDM are shown, in which order, and which of them belong together."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import (
    InvalidInputError,
    LabelMismatchError,
    MemoryBudgetError,
    did_you_mean,
)
from featurestore.options import format_nbytes, get_options
from featurestore.rdms.cluster import Clusters
from featurestore.rdms.structure import second

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    Positions = NDArray[np.intp]

N_NAMED = 5
MOST_GROUPS = 0.75  # per image; a coordinate with more values than that groups nothing


@dataclass(frozen=True)
class Group:
    """Neighbours in display order that belong together."""

    name: str
    start: int
    stop: int
    """The first that does not belong to it."""


@dataclass(frozen=True, eq=False)
class Shown:
    """What is displayed."""

    positions: Positions
    """Rows of the RDM, in display order."""
    groups: tuple[Group, ...]
    """All of them, without gaps; empty where nothing is grouped."""
    n_total: int
    """How many images the RDM has."""
    dim: str
    """What is shown, such as ``"image"``."""

    @property
    def note(self) -> str:
        """Says that not all are shown, or nothing."""
        n = len(self.positions)
        return "" if n == self.n_total else f"{n:,} of {self.n_total:,} {self.dim}s shown"


def arrange(
    rdm: xr.DataArray, dim: str, order: Any, categories: str | None, max_images: int | None
) -> Shown:
    """Choose what is displayed. Reads coordinates, no dissimilarities.

    Parameters
    ----------
    rdm : DataArray (…, image, image_2)
        The RDM.
    dim : str
        What it compares.
    order : str, Clusters, sequence of names, or None
        The order: sorted by a coordinate, as a clustering has it, as listed, or as it is.
    categories : str, optional
        The coordinate that says what belongs together; by default what it is sorted by.
    max_images : int, optional
        Show no more than these, taken evenly, but of every group at least one.

    Returns
    -------
    Shown
        Positions and groups.

    Raises
    ------
    InvalidInputError
        If there is no such coordinate, or nothing to show.
    LabelMismatchError
        If names in `order` are not those of the RDM (`missing`, `unexpected`).
    """
    n = rdm.sizes[dim]
    if n == 0:
        raise InvalidInputError(f"The RDM has no {dim}s, so there is nothing to show.")
    if max_images is not None and (not is_whole(max_images) or max_images < 1):
        raise InvalidInputError(f"max_images={max_images!r} is no whole number from 1, or None.")
    everything, labels = _ordered(rdm, dim, order)
    if categories is not None:
        labels = _group_names(rdm, dim, categories)
    keys = None if labels is None else labels[everything]
    if keys is not None and categories is None and not _says_something(keys):
        keys = None
    runs = [0, n] if keys is None else _borders(keys)
    kept = np.arange(n) if max_images is None or n <= max_images else _sampled(runs, max_images)
    groups: tuple[Group, ...] = ()
    if keys is not None:
        borders = _borders(keys[kept])
        groups = tuple(Group(str(keys[kept][a]), a, b) for a, b in pairwise(borders))
    return Shown(everything[kept], groups, n, dim)


def is_whole(number: Any) -> bool:
    """Say whether something is a whole number.

    Parameters
    ----------
    number : object
        What a caller gave.

    Returns
    -------
    bool
        True for Python's and NumPy's integers, but not for booleans.
    """
    return isinstance(number, int | np.integer) and not isinstance(number, bool)


def read_pairs(rdm: xr.DataArray, dim: str, positions: Positions) -> NDArray[Any]:
    """Read the dissimilarities of some images, and of no others.

    Parameters
    ----------
    rdm : DataArray (…, image, image_2)
        In memory or lazy.
    dim : str
        What it compares.
    positions : ndarray of shape (k,), intp
        Which, in display order.

    Returns
    -------
    ndarray of shape (…, k, k), float32 or float64
        A copy.

    Raises
    ------
    InvalidInputError
        If it is not symmetric, its diagonal is not 0, or its values are no real numbers.
    MemoryBudgetError
        If they exceed `memory_budget`.
    """
    if rdm.dtype.kind not in "fiub":
        raise InvalidInputError(f"Dissimilarities are real numbers, not {rdm.dtype}.")
    dtype = rdm.dtype if rdm.dtype in (np.float32, np.float64) else np.dtype(np.float64)
    n_extra = int(np.prod(rdm.shape[:-2], dtype=np.int64))
    needed, budget = n_extra * len(positions) ** 2 * dtype.itemsize, get_options().memory_budget
    if needed > budget:
        raise MemoryBudgetError(
            f"Showing {len(positions):,} {dim}s takes {format_nbytes(needed)}, and memory_budget "
            f"is {format_nbytes(budget)}. Show fewer with max_images=, or raise it with "
            "fs.set_options(memory_budget='…').",
            projected_nbytes=needed,
            allowed_nbytes=budget,
        )
    ascending, back = np.unique(positions, return_inverse=True)
    read = rdm.isel({dim: ascending, second(dim): ascending}).values
    values = np.array(read[..., back[:, None], back[None, :]], dtype=dtype)
    names = rdm[dim].values[positions]
    for one in values.reshape(-1, *values.shape[-2:]):
        _require_rdm(one, names)
    return values


def _require_rdm(values: NDArray[Any], names: NDArray[Any]) -> None:
    finite = values[np.isfinite(values)]
    tolerance = 1e-4 * float(np.abs(finite).max(initial=0))
    diagonal = np.diagonal(values)
    if (np.abs(diagonal) > tolerance).any():  # NaN is not
        worst = int(np.nanargmax(np.abs(diagonal)))
        raise InvalidInputError(
            f"The diagonal of the RDM is not 0: {names[worst]!r} differs from itself by "
            f"{diagonal[worst]:g}. If these are similarities, show dissimilarities instead, for "
            "example 1 - similarities."
        )
    with np.errstate(invalid="ignore"):  # inf - inf
        apart = np.abs(values - values.T)
    one_sided = np.isnan(values) != np.isnan(values.T)
    if (apart > tolerance).any() or one_sided.any():
        bad = one_sided | (apart > tolerance)
        i, j = np.unravel_index(int(bad.argmax()), bad.shape)
        raise InvalidInputError(
            f"The RDM is not symmetric: {names[i]!r} to {names[j]!r} is {values[i, j]:g}, and back "
            f"it is {values[j, i]:g}."
        )


def _ordered(rdm: xr.DataArray, dim: str, order: Any) -> tuple[Positions, NDArray[Any] | None]:
    """Return all positions in display order, and the groups by position if the order has some."""
    if order is None:
        return np.arange(rdm.sizes[dim]), None
    if isinstance(order, str):
        values = _coordinate(rdm, dim, order, "order")
        keys = values if values.dtype.kind in "biufmM" else values.astype(str)
        labels = None if order == dim else _group_names(rdm, dim, order)
        return np.argsort(keys, kind="stable"), labels
    if isinstance(order, Clusters):
        places = places_of(rdm, dim, order.order, "the clusters have")
        named = zip(order.labels[order.labels.dims[0]].values, order.labels.values, strict=True)
        number = {str(name): int(label) for name, label in named}
        names = [str(name) for name in rdm[dim].values]
        return places, np.array([f"cluster {number[name]}" for name in names], dtype=object)
    names = [str(name) for name in np.asarray(getattr(order, "values", order)).ravel()]
    return places_of(rdm, dim, names, "order= names"), None


def places_of(rdm: xr.DataArray, dim: str, names: Sequence[str], who: str) -> Positions:
    """Find names in an RDM that has the same ones, each once.

    Parameters
    ----------
    rdm : DataArray (…, image, image_2)
        The RDM.
    dim : str
        What it compares.
    names : sequence of str
        In any order.
    who : str
        Where the names come from, for the message: ``"order= names"``.

    Returns
    -------
    ndarray of shape (n,), intp
        The position of each name.

    Raises
    ------
    LabelMismatchError
        If one has names that the other lacks (`missing`, `unexpected`).
    """
    own = [str(name) for name in rdm[dim].values]
    places = {name: place for place, name in enumerate(own)}
    if len(places) < len(own):
        twice = next(name for place, name in enumerate(own) if places[name] != place)
        raise InvalidInputError(
            f"{twice!r} stands for several rows of the RDM, so an order by name is not defined."
        )
    unexpected = [name for name in names if name not in places]
    missing = sorted(set(own) - set(names))
    if unexpected or missing or len(names) != len(own):
        parts = []
        if unexpected:
            parts.append(f"{who} {_some(unexpected)}, which the RDM lacks")
        if missing:
            parts.append(f"the RDM has {_some(missing)} beside them")
        if not parts:
            parts.append(f"{who} some {dim}s twice")
        raise LabelMismatchError(
            f"The order does not fit the RDM of {len(own):,} {dim}s: {'; '.join(parts)}. Select "
            f"the same ones first: rdm.sel({dim}=names, {second(dim)}=names).",
            missing=missing,
            unexpected=unexpected,
        )
    return np.array([places[name] for name in names], dtype=np.intp)


def _coordinate(rdm: xr.DataArray, dim: str, name: str, option: str) -> NDArray[Any]:
    along = [str(key) for key, value in rdm.coords.items() if value.dims == (dim,)]
    if name not in along:
        raise InvalidInputError(
            f"{option}={name!r} is no coordinate along {dim!r}; there are {', '.join(along)}."
            f"{did_you_mean(name, along)} Add one with images.assign_coords(…) or "
            "rdm.assign_coords(…).",
            coordinate=name,
        )
    return np.asarray(rdm[name].values)


def _group_names(rdm: xr.DataArray, dim: str, name: str) -> NDArray[Any]:
    """Return what the group of each image is called."""
    values = _coordinate(rdm, dim, name, "categories")
    if values.dtype.kind in "biuf":  # "0" alone would say nothing
        return np.array([f"{name} {value:g}" for value in values.astype(float)], dtype=object)
    return np.array([str(value) or f"no {name}" for value in values], dtype=object)


def _says_something(keys: NDArray[Any]) -> bool:
    """Say whether a coordinate groups images, rather than telling each from the next."""
    return len(keys) == 1 or len(_borders(keys)) - 1 <= MOST_GROUPS * len(keys)


def _borders(keys: NDArray[Any]) -> list[int]:
    """Return where runs of equal keys begin, and the end."""
    changes = [i for i in range(1, len(keys)) if keys[i] != keys[i - 1]]
    return [0, *changes, len(keys)]


def _sampled(borders: Sequence[int], most: int) -> Positions:
    """Choose evenly, and of each run at least one where there are not too many runs."""
    n = borders[-1]
    lengths = np.diff(borders)
    if len(lengths) > most:
        return np.unique(np.linspace(0, n - 1, most).round().astype(np.intp))
    share = lengths * (most / n)
    quota = np.maximum(1, np.floor(share)).astype(np.intp)
    while quota.sum() > most:  # what single ones got too much, others give up
        excess = np.where(quota > 1, quota - share, -np.inf)
        quota[int(excess.argmax())] -= 1
    for k in np.argsort(np.floor(share) - share, kind="stable"):
        if quota.sum() < most and quota[k] < lengths[k]:
            quota[k] += 1
    chosen = [
        start + ((np.arange(k) + 0.5) * (length / k)).astype(np.intp)
        for start, length, k in zip(borders[:-1], lengths, quota, strict=True)
    ]
    return np.concatenate(chosen)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:N_NAMED]))
    return shown + (f" and {len(names) - N_NAMED:,} more" if len(names) > N_NAMED else "")
