"""Coordinates along images: plain arrays of strings, numbers, booleans or dates."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from featurestore.typing import Json

PLAIN_KINDS = "biufM"


def column(name: str, values: Any, n_images: int) -> NDArray[Any]:
    """Check a coordinate and make it an immutable array.

    Parameters
    ----------
    name : str
        What it is called.
    values : sequence of length n_images
        Anything that NumPy makes a plain one-dimensional array of.
    n_images : int
        How many values there must be.

    Returns
    -------
    ndarray of shape (n_images,)
        Read-only; strings as Python strings (dtype object), which Zarr keeps stably.

    Raises
    ------
    InvalidInputError
        If the length differs or the values are of no plain type, or of several.
    """
    if type(name) is not str or not name:
        raise InvalidInputError(f"{name!r} cannot be the name of a coordinate; use a string.")
    try:
        array = np.asarray(values)
    except ValueError as err:
        raise InvalidInputError(f"Coordinate {name!r} is no list of single values: {err}") from err
    if array.shape != (n_images,):
        raise InvalidInputError(
            f"Coordinate {name!r} has the shape {array.shape}; there are {n_images} images, and "
            "it needs one value for each."
        )
    if array.dtype.kind in PLAIN_KINDS:
        made = array.copy()
    else:
        made = np.empty(n_images, dtype=object)
        # From the values rather than the array: NumPy would turn [1, "a"] into two strings.
        made[:] = [_text(name, item) for item in (array if array.dtype.kind == "O" else values)]
    made.setflags(write=False)
    return made


def _text(name: str, item: object) -> str:
    if not isinstance(item, str):
        raise InvalidInputError(
            f"Coordinate {name!r} holds {item!r}, which is neither a string nor, like all its "
            "other values, a number, boolean or date. Fill missing values, and use one type."
        )
    text = str(item)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as err:
        raise InvalidInputError(
            f"Coordinate {name!r} holds {text!r}, which is not valid Unicode."
        ) from err
    return text


def escaped(text: str) -> str:
    """Spell text that may be no valid Unicode, such as the name of a file from another system.

    Parameters
    ----------
    text : str
        Anything.

    Returns
    -------
    str
        The same, but with lone surrogates as backslash escapes.

    Examples
    --------
    >>> escaped("a" + chr(0xDCFF)) == "a" + chr(92) + "udcff"
    True
    """
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def column_to_json(values: NDArray[Any]) -> dict[str, Json]:
    """Describe a coordinate.

    Parameters
    ----------
    values : ndarray of shape (n_images,)
        As `column` returns it.

    Returns
    -------
    dict
        Its dtype and values; dates as integers, numbers that JSON lacks as words.
    """
    kind = values.dtype.kind
    if kind == "O":
        return {"dtype": "string", "values": values.tolist()}
    if kind == "M":
        return {"dtype": values.dtype.str[1:], "values": values.astype(np.int64).tolist()}
    plain = values.tolist()
    if kind == "f":
        plain = [item if math.isfinite(item) else str(item) for item in plain]
    return {"dtype": values.dtype.name, "values": plain}


def column_from_json(record: Mapping[str, Any]) -> NDArray[Any]:
    """Build a coordinate from its description.

    Parameters
    ----------
    record : mapping
        As `column_to_json` returns it.

    Returns
    -------
    ndarray of shape (n_images,)
        With the dtype it had.

    Raises
    ------
    ValueError
        If the dtype is not a plain one, or a value does not fit it.
    """
    values = list(record["values"])
    if record["dtype"] == "string":
        strings = np.empty(len(values), dtype=object)
        strings[:] = values
        return strings
    dtype = np.dtype(str(record["dtype"]))
    if dtype.kind not in PLAIN_KINDS:
        raise ValueError(f"{dtype} is not the dtype of a coordinate")
    if dtype.kind == "f":
        return np.array([float(item) for item in values], dtype=dtype)
    if dtype.kind == "M":
        return np.array(values, dtype=np.int64).astype(dtype)
    return np.array(values, dtype=dtype)
