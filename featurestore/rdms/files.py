"""Numbers of RDMs in files, by format. Nothing that is read is ever executed."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError, MemoryBudgetError, did_you_mean
from featurestore.options import format_nbytes, get_options
from featurestore.rdms.found import FoundValues, listed_variables
from featurestore.rdms.matlab import read_matlab
from featurestore.rdms.square import n_compared
from featurestore.rdms.text_tables import read_text_rdm

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

DAMAGED = (OSError, ValueError, EOFError, KeyError, OverflowError, SyntaxError, UnicodeError,
           zipfile.BadZipFile, zlib.error, NotImplementedError)  # fmt: skip
KEYED = (".mat", ".npz")


def read_rdm_file(path: str, key: str | None, n_names: int | None) -> FoundValues:
    """Read the numbers of an RDM.

    Parameters
    ----------
    path : str
        A file: ``.npy``, ``.npz``, ``.mat``, ``.csv``, ``.tsv`` or ``.txt``.
    key : str, optional
        Which variable of a ``.npz`` or ``.mat`` file.
    n_names : int, optional
        How many images there are, if the caller names them.

    Returns
    -------
    FoundValues
        The numbers, and names if the file has any.

    Raises
    ------
    InvalidInputError
        If there is no such file, it cannot be read, or it is not clear which variable is meant.
    MemoryBudgetError
        If it is larger than `memory_budget`.
    """
    suffix = PurePath(path).suffix.lower()
    if suffix not in _READERS:
        raise InvalidInputError(
            f"{path!r} has none of the suffixes {', '.join(_READERS)}. Read it with another "
            "library and give the array: fs.read_rdms(array, names=[…]).",
        )
    if not Path(path).is_file():
        raise InvalidInputError(f"There is no file {path!r}.")
    if key is not None and suffix not in KEYED:
        raise InvalidInputError(f"key={key!r} chooses a variable; a {suffix} file has none.")
    _require_room(path)
    return _READERS[suffix](path, key, n_names)


def _require_room(path: str) -> None:
    nbytes, budget = Path(path).stat().st_size, get_options().memory_budget
    if nbytes > budget:
        raise MemoryBudgetError(
            f"{path!r} has {format_nbytes(nbytes)}, and memory_budget is {format_nbytes(budget)}. "
            "Raise it with fs.set_options(memory_budget='…').",
            projected_nbytes=nbytes,
            allowed_nbytes=budget,
        )


def names_beside(path: str | Path) -> Path:
    """Return where the names of the images of an array are kept.

    Parameters
    ----------
    path : str or Path
        A file such as ``rdm.npy``.

    Returns
    -------
    Path
        Such as ``rdm.names.txt``: one name per line.
    """
    return Path(path).with_suffix(".names.txt")


def _read_npy(path: str, key: str | None, n_names: int | None) -> FoundValues:
    del key, n_names
    beside = names_beside(path)
    names = None
    if beside.is_file():
        names = tuple(beside.read_text(encoding="utf-8-sig").splitlines())
    try:
        return FoundValues(np.load(path, allow_pickle=False), names)
    except DAMAGED as err:
        raise _unreadable(path, err) from err


def _read_npz(path: str, key: str | None, n_names: int | None) -> FoundValues:
    variables: dict[str, Any] = {}
    try:
        # Opened here, because NumPy forgets to close what is damaged.
        with Path(path).open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            for name in file.files if key is None or key not in file.files else [key]:
                variables[name] = file[name]
    except DAMAGED as err:
        raise _unreadable(path, err) from err
    shapes = {name: value.shape for name, value in variables.items()}
    if key is not None:
        if key not in variables:
            raise InvalidInputError(
                f"{path!r} has no {key!r}. There are {listed_variables(shapes)}."
                f"{did_you_mean(key, shapes)}"
            )
        return FoundValues(variables[key], variable=key)
    fitting = [name for name, shape in shapes.items() if _fits(shape, n_names)]
    if len(fitting) != 1:
        raise InvalidInputError(
            f"{path!r} has {len(fitting)} arrays with the shape of RDMs"
            f"{'' if n_names is None else f' of {n_names} images'}. There are "
            f"{listed_variables(shapes)}. Choose one with key='…'."
        )
    return FoundValues(variables[fitting[0]], variable=fitting[0])


def _fits(shape: tuple[int, ...], n: int | None) -> bool:
    if not shape:
        return False
    sides = {n_compared(shape[-1]), shape[-1] if shape[-2:] == (shape[-1],) * 2 else None}
    return n in sides if n is not None else sides != {None}


def _read_mat(path: str, key: str | None, n_names: int | None) -> FoundValues:
    if n_names is None:
        raise InvalidInputError(
            f"{path!r} does not say which image a row is. Give the names in the order of the rows: "
            "names=[…], or an image set from fs.read_images(…), or a file that lists them."
        )
    return read_matlab(path, key, n_names)


def _read_text(path: str, key: str | None, n_names: int | None) -> FoundValues:
    del key, n_names
    return read_text_rdm(path)


_READERS: Mapping[str, Callable[[str, str | None, int | None], FoundValues]] = {
    ".npy": _read_npy,
    ".npz": _read_npz,
    ".mat": _read_mat,
    ".csv": _read_text,
    ".tsv": _read_text,
    ".txt": _read_text,
}


def _unreadable(path: str, err: Exception) -> InvalidInputError:
    if "allow_pickle" in str(err):  # NumPy takes whatever has no header for a pickle
        return InvalidInputError(
            f"{path!r} cannot be read: it is damaged, or holds Python objects, which are not read "
            "because that can run code. Save plain numbers: numpy.save(path, array)."
        )
    return InvalidInputError(f"{path!r} cannot be read: {err}")
