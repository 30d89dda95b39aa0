"""Labels as rsatoolbox keeps them: flat lists by name, and a text that says what was flattened."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.rdms.structure import second

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import xarray as xr
    from numpy.typing import NDArray

LAYOUT = "featurestore"
"""The descriptor that holds, as JSON, what flat lists cannot."""

INDEX = "index"
"""The descriptor that rsatoolbox sets itself."""

RDM = "rdm"
"""The leading dim of RDMs that fill no grid."""

N_FEATURES = "n_features"
"""How many features an RDM was computed from: an attribute, or a coordinate of leading dims."""

Layout = dict[str, Any]


def layout_of(array: xr.DataArray, dim: str) -> Layout:
    """Describe what flat descriptors leave out.

    Parameters
    ----------
    array : DataArray
        An RDM or features.
    dim : str
        What a row is.

    Returns
    -------
    dict
        JSON-able.
    """
    others = [str(name) for name in array.dims if name not in (dim, second(dim))]
    along = {str(name): {str(each) for each in coord.dims} for name, coord in array.coords.items()}
    rows = [name for name, found in along.items() if found == {dim}]
    leading = [name for name, found in along.items() if found and found <= set(others)]
    return {
        "dim": dim,
        "dims": others,
        "labelled": [name for name in others if name in array.coords],
        "coords": {name: [str(each) for each in array.coords[name].dims] for name in leading},
        "renamed": {
            new: old
            for names, where in ((rows, dim), (leading, RDM))
            for old, new in _free_of_index(names, where).items()
        },
        "scalars": {
            str(name): coord.values.item()
            for name, coord in array.coords.items()
            if not coord.dims and coord.dtype.kind not in "mM"
        },
        "name": None if array.name is None else str(array.name),
        "dtype": str(array.dtype),
        "attrs": dict(array.attrs),
    }


def object_descriptors(array: xr.DataArray, layout: Layout) -> dict[str, Any]:
    """Return the descriptors of the whole object.

    Parameters
    ----------
    array : DataArray
        An RDM or features.
    layout : dict
        From `layout_of`.

    Returns
    -------
    dict
        The attributes that are plain values, to be read by people, and the layout as text.
    """
    shown = {
        str(name): plain_value(value)
        for name, value in array.attrs.items()
        if isinstance(plain_value(value), (str, bool, int, float))
    }
    return shown | {LAYOUT: json.dumps(layout, default=_jsonable)}


def flatten(variable: xr.Variable, array: xr.DataArray, dims: Sequence[str]) -> NDArray[Any]:
    """Spread a coordinate over dims and flatten it.

    Parameters
    ----------
    variable : Variable
        Along some of the dims.
    array : DataArray
        What it labels.
    dims : sequence of str
        All the dims, slowest first.

    Returns
    -------
    ndarray of shape (product of sizes,)
        One value for each cell.
    """
    sizes = [array.sizes[name] for name in dims]
    shape = [n if name in variable.dims else 1 for name, n in zip(dims, sizes, strict=True)]
    aligned = variable.transpose(*(name for name in dims if name in variable.dims))
    spread = np.broadcast_to(np.asarray(aligned.values).reshape(shape), sizes)
    return spread.reshape(-1)


def flat_descriptors(array: xr.DataArray, dims: Sequence[str]) -> dict[str, list[Any]]:
    """Return what labels the cells of some dims.

    Parameters
    ----------
    array : DataArray
        An RDM or features.
    dims : sequence of str
        The dims, slowest first.

    Returns
    -------
    dict of list
        Every coordinate along these dims alone; positions along a dim without labels.
    """
    found = {name: _as_list(values) for name, values in _flattened(array, dims).items()}
    moved = _free_of_index(found, RDM)
    return {moved.get(name, name): values for name, values in found.items()}


def row_descriptors(array: xr.DataArray, dim: str) -> dict[str, list[Any]]:
    """Return what labels the rows.

    Parameters
    ----------
    array : DataArray
        An RDM or features.
    dim : str
        What a row is.

    Returns
    -------
    dict of list
        Every coordinate along `dim` alone.
    """
    found = {
        str(name): _as_list(coord.values)
        for name, coord in array.coords.items()
        if coord.dims == (dim,)
    }
    moved = _free_of_index(found, dim)
    return {moved.get(name, name): values for name, values in found.items()}


def channel_descriptors(features: xr.DataArray, dims: Sequence[str]) -> dict[str, Any]:
    """Return what labels the flattened features.

    Parameters
    ----------
    features : DataArray (image, …)
        The features.
    dims : sequence of str
        All dims but the first.

    Returns
    -------
    dict of ndarray
        As `flat_descriptors` has it, as arrays: there may be millions.
    """
    return _flattened(features, dims)


def _flattened(array: xr.DataArray, dims: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Flatten what labels some dims; positions along a dim without labels."""
    names = (*dims, *(str(name) for name in array.coords if name not in dims))
    variables = {name: array[name].variable for name in names}
    return {
        name: flatten(variable, array, dims)
        for name, variable in variables.items()
        if variable.dims and set(variable.dims) <= set(dims)
    }


def _free_of_index(names: Iterable[str], dim: str) -> dict[str, str]:
    """Say how to call what is called like the numbering of rsatoolbox, which overwrites it."""
    taken = set(names)
    if INDEX not in taken:
        return {}
    free = f"{dim}_{INDEX}"
    while free in taken:
        free += "_"
    return {INDEX: free}


def _as_list(values: NDArray[Any]) -> list[Any]:
    # Times would become numbers.
    return list(values) if values.dtype.kind in "mM" else list(values.tolist())


def plain_value(value: Any) -> Any:
    """Return a NumPy scalar as a value of Python.

    Parameters
    ----------
    value : object
        Anything.

    Returns
    -------
    object
        The same, or what it holds.
    """
    return (
        value.item() if isinstance(value, (np.generic, np.ndarray)) and value.size == 1 else value
    )


def _jsonable(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.generic, np.ndarray)) else str(value)
