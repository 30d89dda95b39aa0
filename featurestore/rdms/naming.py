"""What the images of an RDM from elsewhere are called, and what else is known of them."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import InvalidInputError, LabelMismatchError, did_you_mean
from featurestore.images.columns import column
from featurestore.images.imageset import ImageSet, require_names
from featurestore.rdms.structure import second
from featurestore.rdms.text_tables import read_table

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    from numpy.typing import NDArray

NAME_COLUMNS = ("image", "file", "name")
N_SHOWN = 3
PLAIN_KINDS = "biufMU"


def read_names(names: Any) -> tuple[tuple[str, ...], dict[str, Any]]:
    """Find out what the images are called.

    Parameters
    ----------
    names : sequence of str, ImageSet or path
        The names; or a ``.csv`` or ``.tsv`` file with a column ``image``, ``file`` or ``name``; or
        a text file with one name per line.

    Returns
    -------
    names : tuple of str
        All different.
    coords : dict
        Digests and other coordinates of an image set; nothing else has any.

    Raises
    ------
    InvalidInputError
        If one is no string or repeats, or a file has no column of names, or several.
    """
    coords: dict[str, Any] = {}
    if isinstance(names, ImageSet):
        coords = {"digest": np.array(names.hex_digests, object), **names.coords}
        names = names.names
    elif isinstance(names, str | os.PathLike):
        names = _names_in_file(os.fspath(names))
    elif isinstance(names, xr.DataArray):
        names = names.values.tolist()
    elif not isinstance(names, Iterable):
        raise InvalidInputError(f"names={names!r} is no sequence of names, one per image.")
    elif isinstance(names, Mapping):
        raise InvalidInputError("names= is a sequence, in the order of the rows, not a mapping.")
    found = require_names([*names])
    if len(set(found)) < len(found):
        repeated = list(dict.fromkeys(name for name in found if found.count(name) > 1))
        raise InvalidInputError(
            f"{len(repeated)} names occur more than once, such as {repeated[0]!r}. An RDM has one "
            "row per image: average repeats first, or give each its own name.",
            repeated=tuple(repeated),
        )
    return found, coords


def place_names(
    wanted: tuple[str, ...] | None, in_file: tuple[str, ...] | None, where: str
) -> tuple[tuple[str, ...], NDArray[np.intp] | None]:
    """Decide on the order of images that may be named by the caller, the file, or both.

    Parameters
    ----------
    wanted : tuple of str, optional
        The caller's names.
    in_file : tuple of str, optional
        The file's names.
    where : str
        What a message calls the file.

    Returns
    -------
    names : tuple of str
        The names, in the caller's order if there is one.
    order : ndarray of shape (n_images,), intp, optional
        Which rows to take in that order; none: as they are.

    Raises
    ------
    InvalidInputError
        If nobody gives names.
    LabelMismatchError
        If both do, and they are not the same.
    """
    if wanted is None and in_file is None:
        raise InvalidInputError(
            "Nobody can tell which image a row is. Give the names in the order of the rows: "
            "names=[…], or an image set from fs.read_images(…), or a file that lists them."
        )
    if in_file is None or wanted is None:
        return wanted or in_file or (), None
    if set(wanted) != set(in_file):
        only = [name for name in wanted if name not in set(in_file)]
        others = [name for name in in_file if name not in set(wanted)]
        near = did_you_mean(only[0], others[:2000]) if only else ""
        raise LabelMismatchError(
            f"{where} names its images itself, and not as names= does: {len(only)} names are not "
            f"in the file{_listed(only)}, {len(others)} of the file are not in names="
            f"{_listed(others)}.{near} Leave names= out to take those of the file.",
            only_given=tuple(only),
            only_file=tuple(others),
        )
    places = {name: place for place, name in enumerate(in_file)}
    return wanted, np.array([places[name] for name in wanted], dtype=np.intp)


def image_coords(
    names: tuple[str, ...],
    known: Mapping[str, Any],
    given: Mapping[str, Any] | None,
    dims: Sequence[str],
) -> dict[Hashable, Any]:
    """Return the coordinates of the images.

    Parameters
    ----------
    names : tuple of str
        The images.
    known : mapping
        What an image set says of them.
    given : mapping, optional
        What the caller adds or replaces.
    dims : sequence of str
        All dims of the RDM but the last; the last of these is that of the images.

    Returns
    -------
    dict
        As `make_rdm` takes them.

    Raises
    ------
    InvalidInputError
        If a length does not fit, or a name is taken.
    """
    dim = dims[-1]
    facts = {**known, **(given or {})}
    taken = {*dims, second(dim), *map(second, facts)}
    if clash := sorted(taken & set(facts)):
        raise InvalidInputError(
            f"The name of a coordinate cannot be {clash[0]!r}: a dim is called so, or a coordinate "
            "of the second axis. Choose another name."
        )
    coords: dict[Hashable, Any] = {dim: (dim, np.array(names, object))}
    for name, values in facts.items():
        coords[name] = (dim, column(name, values, len(names)))
    return coords


def count_dims(dims: str | Sequence[str] | Mapping[str, Any] | None) -> int:
    """Return how many leading axes the caller names.

    Parameters
    ----------
    dims : str, sequence of str or mapping of str to labels, optional
        What the caller says.

    Returns
    -------
    int
        0 if nothing is said.
    """
    return 1 if isinstance(dims, str) else len(dims or ())


def leading_dims(
    dims: str | Sequence[str] | Mapping[str, Any] | None,
    shape: tuple[int, ...],
    labels: tuple[str, ...] | None,
    dim: str,
) -> dict[str, Any]:
    """Name and label the leading axes.

    Parameters
    ----------
    dims : str, sequence of str or mapping of str to labels, optional
        What the caller says.
    shape : tuple of int
        The lengths of the leading axes.
    labels : tuple of str, optional
        What the file says of one leading axis.
    dim : str
        The dim of the images.

    Returns
    -------
    dict
        Dim to labels, or to none where nobody gives any.

    Raises
    ------
    InvalidInputError
        If names or labels are too few, too many, or repeat.
    """
    words = [dims] if isinstance(dims, str) else list(dims or ())
    if len(words) != len(shape):
        lengths = " and ".join(map(str, shape)) or "none"
        plural = "axes" if len(shape) != 1 else "axis"
        example = "dims=('subject',)" if len(shape) < 2 else "dims=('subject', 'session')"
        raise InvalidInputError(
            f"There are {len(shape)} leading {plural} (of length {lengths}) before the images, and "
            f"dims= names {len(words)}. Name each, for example {example}"
            + (", or leave dims out." if not shape else "."),
            shape=shape,
        )
    if len({*words, dim, second(dim)}) < len(words) + 2 or not all(words):
        raise InvalidInputError(
            f"dims={words} cannot name the leading axes: give each its own name, none of them "
            f"{dim!r} or {second(dim)!r}."
        )
    given = dict(dims) if isinstance(dims, Mapping) else {}
    if labels is not None and len(words) == 1 and given.get(words[0]) is None:
        given[words[0]] = _distinct(labels)
    return {
        word: _labels(word, given.get(word), size) for word, size in zip(words, shape, strict=True)
    }


def _labels(dim: str, given: Any, size: int) -> NDArray[Any] | None:
    if given is None:
        return None
    array = np.asarray(given)
    if array.dtype.kind == "O" and all(isinstance(item, str) for item in array.flat):
        array = array.astype(str)
    if array.shape != (size,) or array.dtype.kind not in PLAIN_KINDS:
        raise InvalidInputError(
            f"dims={{{dim!r}: …}} has labels of shape {array.shape}; there are {size}, and each "
            "needs one string, number or date."
        )
    if len(np.unique(array)) < size:
        raise InvalidInputError(
            f"The labels of {dim!r} repeat: {array.tolist()}. RDMs are paired by label, so each "
            "needs its own."
        )
    return array.astype(object) if array.dtype.kind == "U" else array


def _distinct(labels: tuple[str, ...]) -> tuple[str, ...] | None:
    return labels if len(set(labels)) == len(labels) else None


def _names_in_file(path: str) -> list[str]:
    if not Path(path).is_file():
        raise InvalidInputError(
            f"names={path!r}: there is no such file. A list of names goes in brackets: names=[…]."
        )
    if PurePath(path).suffix.lower() not in (".csv", ".tsv"):
        try:
            lines = Path(path).read_text("utf-8-sig").splitlines()
        except UnicodeDecodeError as err:
            raise InvalidInputError(f"{path!r} is no text file (UTF-8): {err}") from err
        return [line.strip() for line in lines if line.strip()]
    header, *rows = read_table(path)
    found = [name for name in header if name.lower() in NAME_COLUMNS]
    if len(found) != 1:
        what = f"columns {', '.join(map(repr, found))}" if found else "no column of names"
        raise InvalidInputError(
            f"{path!r} has {what}; one column is to be called 'image', 'file' or 'name'. It has "
            f"{', '.join(map(repr, header))}. Or give the names themselves: "
            f"names=pandas.read_csv({path!r})['…']."
        )
    place = header.index(found[0])
    return [row[place] for row in rows]


def _listed(names: Sequence[str]) -> str:
    if not names:
        return ""
    more = f" and {len(names) - N_SHOWN} more" if len(names) > N_SHOWN else ""
    return f" ({', '.join(map(repr, names[:N_SHOWN]))}{more})"
