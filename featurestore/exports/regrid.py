"""Coordinates from the flat lists of rsatoolbox, in the dims they were flattened from."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.exports.descriptors import INDEX, LAYOUT, N_FEATURES, RDM, Layout, plain_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Grid:
    """Leading dims of RDMs."""

    dims: tuple[str, ...]
    shape: tuple[int, ...]
    coords: dict[str, Any]
    """As `assign_coords` takes them."""


def read_layout(descriptors: Mapping[str, Any]) -> Layout:
    """Return what `object_descriptors` wrote.

    Parameters
    ----------
    descriptors : mapping
        Descriptors of the whole object.

    Returns
    -------
    dict
        The layout; empty if it was made elsewhere.
    """
    text = descriptors.get(LAYOUT)
    return {} if text is None else dict(json.loads(str(text)))


def object_attrs(descriptors: Mapping[str, Any], layout: Layout) -> dict[str, Any]:
    """Return attributes from descriptors of the whole object.

    Parameters
    ----------
    descriptors : mapping
        Descriptors of the whole object.
    layout : dict
        From `read_layout`.

    Returns
    -------
    dict
        What the layout kept, and plain values that were added since.
    """
    kept = dict(layout.get("attrs", {}))
    added = {
        name: plain_value(value)
        for name, value in descriptors.items()
        if name not in kept
        and name != LAYOUT
        and isinstance(plain_value(value), (str, bool, int, float))
    }
    return kept | added


def row_coords(
    descriptors: Mapping[str, Iterable[Any]], layout: Layout, dim: str, names: str | None
) -> dict[str, NDArray[Any]]:
    """Return coordinates of rows.

    Parameters
    ----------
    descriptors : mapping
        Descriptors of patterns or observations.
    layout : dict
        From `read_layout`.
    dim : str
        What a row is.
    names : str, optional
        The descriptor that holds the names; `dim` if not given.

    Returns
    -------
    dict of ndarray
        `dim` first, then all others but the numbering of rsatoolbox.

    Raises
    ------
    InvalidInputError
        If the names are not there.
    """
    source = names or dim
    if source not in descriptors:
        there = [name for name in descriptors if name != INDEX]
        raise InvalidInputError(
            f"No descriptor {source!r} holds the names of the {dim}s; there are "
            f"{there or 'none'}. Say which one does: names='…' (names='index' numbers them)."
            f"{did_you_mean(source, there)}",
            descriptors=there,
        )
    renamed = layout.get("renamed", {})
    found = {dim: _as_array(descriptors[source])}
    for name, values in descriptors.items():
        if name not in (source, dim, INDEX):
            found[renamed.get(name, name)] = _as_array(values)
    return found


def leading_grid(
    descriptors: Mapping[str, Iterable[Any]],
    n_rdms: int,
    layout: Layout,
    dims: Sequence[str] | None,
) -> Grid:
    """Arrange RDMs in leading dims.

    Parameters
    ----------
    descriptors : mapping
        Descriptors of the RDMs.
    n_rdms : int
        How many there are.
    layout : dict
        From `read_layout`.
    dims : sequence of str, optional
        Descriptors that become dims; those of the layout if not given.

    Returns
    -------
    Grid
        The dims.

    Raises
    ------
    InvalidInputError
        If `dims` are given and are not there, or do not fill a grid.
    """
    skipped = {INDEX, LAYOUT}
    if N_FEATURES not in layout.get("coords", {}) and layout.get("scaled"):
        skipped.add(N_FEATURES)  # written by the export alone
    renamed = layout.get("renamed", {})
    flat = {
        renamed.get(name, name): list(values)
        for name, values in descriptors.items()
        if name not in skipped
    }
    wanted = tuple(layout.get("dims", ())) if dims is None else tuple(dims)
    if dims is None and (not set(wanted) <= set(flat) or (not wanted and n_rdms > 1)):
        return _one_dim(flat, n_rdms)
    missing = [name for name in wanted if name not in flat]
    if missing:
        raise InvalidInputError(
            f"The RDMs have no descriptor {missing[0]!r}; there are {sorted(flat) or 'none'}."
            f"{did_you_mean(missing[0], flat)}",
            descriptors=sorted(flat),
        )
    labels = _product_labels([flat[name] for name in wanted], n_rdms)
    if labels is None:
        if dims is None:
            return _one_dim(flat, n_rdms)
        raise InvalidInputError(
            f"The {n_rdms} RDMs do not fill a grid of {wanted} in order, each combination once. "
            "Choose or sort them first, or leave dims= out for one dim.",
            dims=wanted,
        )
    return _grid(wanted, labels, flat, layout)


def channel_grid(descriptors: Mapping[str, Any], n_channels: int, layout: Layout) -> Grid | None:
    """Find the dims that channels were flattened from.

    Parameters
    ----------
    descriptors : mapping
        Descriptors of channels.
    n_channels : int
        How many there are.
    layout : dict
        From `read_layout`.

    Returns
    -------
    Grid or None
        Nothing if channels were chosen, sorted, or come from elsewhere.
    """
    dims, shape = tuple(layout.get("dims", ())), tuple(layout.get("shape", ()))
    if not layout or math.prod(shape) != n_channels or not set(dims) <= set(descriptors):
        return None
    labels: list[list[Any]] = []
    for axis, name in enumerate(dims):
        spread = np.asarray(descriptors[name]).reshape(shape)
        along = spread[tuple(slice(None) if k == axis else 0 for k in range(len(shape)))]
        back = along.reshape([-1 if k == axis else 1 for k in range(len(shape))])
        if not (spread == back).all():
            return None
        labels.append(list(along))
    return _grid(dims, labels, {name: list(descriptors[name]) for name in descriptors}, layout)


def _one_dim(flat: Mapping[str, list[Any]], n_rdms: int) -> Grid:
    if n_rdms == 1:
        return Grid((), (), {name: values[0] for name, values in flat.items()})
    return Grid((RDM,), (n_rdms,), {name: (RDM, _as_array(v)) for name, v in flat.items()})


def _grid(
    dims: tuple[str, ...],
    labels: list[list[Any]],
    flat: Mapping[str, list[Any]],
    layout: Layout,
) -> Grid:
    shape = tuple(len(values) for values in labels)
    labelled = layout.get("labelled", dims)
    coords: dict[str, Any] = {
        name: (name, _as_array(values))
        for name, values in zip(dims, labels, strict=True)
        # Positions that stood in for labels; kept where they say which ones are left.
        if name in labelled or values != list(range(len(values)))
    }
    for name, values in flat.items():
        if name not in dims:
            along = tuple(layout.get("coords", {}).get(name, dims))
            place = tuple(slice(None) if dim in along else 0 for dim in dims)
            spread = _as_array(values).reshape(shape)
            coords[name] = (tuple(dim for dim in dims if dim in along), spread[place])
    return Grid(dims, shape, coords)


def _product_labels(columns: list[list[Any]], n: int) -> list[list[Any]] | None:
    """Return the labels of each dim if the columns are their product, last one fastest."""
    if len(columns) == 1:
        return columns
    labels = [list(dict.fromkeys(column)) for column in columns]
    if math.prod(map(len, labels)) != n:
        return None
    if list(itertools.product(*labels)) != list(zip(*columns, strict=True)) and columns:
        return None
    return labels


def _as_array(values: Iterable[Any]) -> NDArray[Any]:
    given = list(values)
    if all(isinstance(value, str) for value in given):
        return np.array([str(value) for value in given], object)
    return np.asarray(given)
