"""RDMs in MATLAB files, old (up to v7) and new (v7.3, which is HDF5)."""

from __future__ import annotations

import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy import io

from featurestore.errors import InvalidInputError, did_you_mean
from featurestore.images.hdf5 import is_hdf5
from featurestore.optional import import_optional
from featurestore.rdms.found import FoundValues, listed_variables
from featurestore.rdms.square import looks_like_rdm, n_compared

if TYPE_CHECKING:
    from numpy.typing import NDArray

DAMAGED = (OSError, ValueError, TypeError, KeyError, IndexError, EOFError, OverflowError,
           MemoryError, struct.error, zlib.error, io.matlab.MatReadError)  # fmt: skip
RDM_FIELD = "RDM"  # of the RSA toolbox's structs, beside `name` and `color`


def read_matlab(path: str, key: str | None, n_names: int) -> FoundValues:
    """Read the RDMs of a MATLAB file.

    Parameters
    ----------
    path : str
        The file.
    key : str, optional
        Which variable; ``struct.field`` for what is in a struct. By default the only one that can
        be an RDM of that many images.
    n_names : int
        How many images there are.

    Returns
    -------
    FoundValues
        The numbers; axes for several RDMs, which MATLAB puts last, are first. Of an array of
        structs with a field ``RDM``, as the RSA toolbox writes them, all RDMs, labelled by the
        field ``name``.

    Raises
    ------
    InvalidInputError
        If the file is damaged, there is no such variable, or several may be meant.
    MissingDependencyError
        If it is of v7.3 and h5py is not installed.
    """
    variables = _read_hdf5(path) if is_hdf5(path) else _read_old(path)
    rdms = {name: _in_order(found, n_names) for name, found in variables.items()}
    shapes = {name: found.values.shape for name, found in rdms.items()}
    if key is not None:
        if key not in rdms:
            raise InvalidInputError(
                f"{path!r} has no numbers under {key!r}. There are {listed_variables(shapes)}."
                f"{did_you_mean(key, rdms)}"
            )
        return rdms[key]
    fitting = [name for name, shape in shapes.items() if _fits(shape, n_names)]
    if len(fitting) == 1:
        return rdms[fitting[0]]
    what = f"{len(fitting)} variables" if fitting else "no variable"
    raise InvalidInputError(
        f"{path!r} has {what} with the shape of RDMs of {n_names} images. There are "
        f"{listed_variables(shapes)}. Choose one with key='…'."
    )


def _fits(shape: tuple[int, ...], n: int) -> bool:
    if not shape:
        return False
    return shape[-2:] == (n, n) or n_compared(shape[-1]) == n


def _read_old(path: str) -> dict[str, FoundValues]:
    try:
        variables = io.loadmat(path)
    except DAMAGED as err:
        raise InvalidInputError(f"{path!r} cannot be read as a MATLAB file: {err}") from err
    found: dict[str, FoundValues] = {}
    for name, value in variables.items():
        if not name.startswith("__"):
            _collect(name, value, found)
    return found


def _collect(name: str, value: Any, found: dict[str, FoundValues]) -> None:
    """Find the numbers in a variable, and in the fields of a struct."""
    if not isinstance(value, np.ndarray):
        return
    fields = value.dtype.names
    if fields is None:
        if value.dtype.kind in "biuf":
            found[name] = FoundValues(value, variable=name)
    elif RDM_FIELD in fields and value.size:
        _collect_structs(name, value, found)
    elif value.size == 1:
        for field in fields:
            _collect(f"{name}.{field}", value[field].flat[0], found)


def _collect_structs(name: str, structs: NDArray[Any], found: dict[str, FoundValues]) -> None:
    """Stack the RDMs of an array of structs."""
    shape = tuple(size for size in structs.shape if size > 1)
    matrices = [_squeezed(np.asarray(item)) for item in structs[RDM_FIELD].flat]
    if len({matrix.shape for matrix in matrices}) > 1 or matrices[0].dtype.kind not in "biuf":
        return
    labels = None
    if "name" in (structs.dtype.names or ()) and len(shape) == 1:
        labels = tuple("".join(np.ravel(item).tolist()) for item in structs["name"].flat)
    stacked = np.array(matrices).reshape(*shape, *matrices[0].shape)
    found[name] = FoundValues(stacked, labels=labels, variable=name)


def _read_hdf5(path: str) -> dict[str, FoundValues]:
    h5py = import_optional("h5py", "hdf5")
    found: dict[str, FoundValues] = {}

    def collect(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset) and _holds_numbers(name, item):
            variable = name.replace("/", ".")
            # HDF5 has the axes of MATLAB the other way round.
            found[variable] = FoundValues(item[()].T, variable=variable)

    try:
        with h5py.File(path, "r") as file:
            file.visititems(collect)
    except DAMAGED as err:
        raise InvalidInputError(f"{path!r} cannot be read as a MATLAB file: {err}") from err
    return found


def _holds_numbers(name: str, item: Any) -> bool:
    """Say whether a dataset is an array of numbers, and not how MATLAB stores something else."""
    special = name.startswith("#") or "MATLAB_empty" in item.attrs
    is_text = item.attrs.get("MATLAB_class") == b"char"
    return item.dtype.kind in "biuf" and not (special or is_text)


def _in_order(found: FoundValues, n: int) -> FoundValues:
    """Put the axes of several RDMs first, and drop those that MATLAB adds."""
    values = _squeezed(found.values)
    shape = values.shape
    if values.ndim > 2 and shape[:2] == (n, n):
        moved = np.moveaxis(values, (0, 1), (-2, -1))
        if shape[-2:] != (n, n) or (looks_like_rdm(moved) and not looks_like_rdm(values)):
            values = moved
    elif values.ndim == 3 and shape[0] == 1 and n_compared(shape[1]) == n:
        values = values[0].T
    return FoundValues(values, found.names, found.labels, found.variable)


def _squeezed(values: NDArray[Any]) -> NDArray[Any]:
    """Return a vector as one; MATLAB has no arrays of one axis."""
    return values.ravel() if values.ndim == 2 and 1 in values.shape else values
