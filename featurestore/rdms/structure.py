"""What an RDM is here: a labelled array whose last two dims name the same things twice.

Dims are ``(…, image, image_2)``, or another pair such as ``(text, text_2)``. Every coordinate of
the first of the two stands on the second as well, with ``_2`` at the end of its name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import InvalidInputError, LabelMismatchError

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping

SECOND = "_2"


def second(name: Hashable) -> str:
    """Return the name of a dim or coordinate on the second axis.

    Parameters
    ----------
    name : hashable
        Its name on the first axis.

    Returns
    -------
    str
        The name on the second axis.

    Examples
    --------
    >>> second("image")
    'image_2'
    """
    return f"{name}{SECOND}"


def make_rdm(
    values: Any,
    coords: Mapping[Hashable, Any],
    dim: str = "image",
    *,
    extra: Mapping[str, Any] | None = None,
    name: str = "rdm",
    attrs: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Label an array of dissimilarities on both axes.

    Parameters
    ----------
    values : array of shape (…, n, n)
        Dissimilarities, in memory or lazy.
    coords : mapping
        Coordinates along `dim`, as `DataArray.coords` holds them; others are left out. Must hold
        `dim` itself: the names.
    dim : str
        What is compared.
    extra : mapping, optional
        Names of the leading dims, in order, to their labels.
    name : str
        Name of the array.
    attrs : mapping, optional
        Where the numbers come from; JSON-able.

    Returns
    -------
    DataArray (…, image, image_2)
        The RDM.
    """
    twice: dict[Hashable, Any] = dict((extra or {}).items())
    for key, variable in xr.Dataset(coords=coords).variables.items():
        if variable.dims == (dim,):
            twice[key] = (dim, variable.data)
            twice[second(key)] = (second(dim), variable.data)
    dims = (*(extra or {}), dim, second(dim))
    return xr.DataArray(values, dims=dims, coords=twice, name=name, attrs=dict(attrs or {}))


def pair_dim(rdm: xr.DataArray) -> str:
    """Return what an RDM compares.

    Parameters
    ----------
    rdm : DataArray (…, image, image_2)
        The RDM.

    Returns
    -------
    str
        The first of the last two dims, such as ``"image"``.

    Raises
    ------
    InvalidInputError
        If it is no RDM; says how to make one.
    """
    if not isinstance(rdm, xr.DataArray):
        raise InvalidInputError(
            f"A {type(rdm).__name__} has no names, so nobody can tell which rows belong together. "
            "Give its names: fs.read_rdms(array, names=[…])."
        )
    if "metric" not in rdm.attrs and {"kernel", "method"} & rdm.attrs.keys():
        raise InvalidInputError(
            f"An array of similarities ({rdm.name}) is no RDM: it is large where things are alike."
        )
    dims = rdm.dims
    if len(dims) < 2 or dims[-1] != second(dims[-2]):
        raise InvalidInputError(
            f"An array with dims {tuple(dims)} is no RDM: the last two would be, for example, "
            "('image', 'image_2'). Make one from features with fs.rdm(features), or read one with "
            "fs.read_rdms(array, names=[…]).",
            dims=dims,
        )
    dim = str(dims[-2])
    if dim not in rdm.coords or second(dim) not in rdm.coords:
        raise InvalidInputError(
            f"The RDM has no names on {dim!r} and {second(dim)!r}. Give them: "
            "fs.read_rdms(array, names=[…])."
        )
    first, other = rdm[dim].values, rdm[second(dim)].values
    if len(first) != len(other) or not np.array_equal(first, other):
        raise LabelMismatchError(
            f"The two axes of the RDM do not name the same {dim}s in the same order, so it is not "
            f"square in what it compares. Select on both: rdm.sel({dim}=names, "
            f"{second(dim)}=names)."
        )
    return dim


def extra_dims(rdm: xr.DataArray) -> tuple[str, ...]:
    """Return the leading dims of an RDM, such as ``("subject",)``.

    Parameters
    ----------
    rdm : DataArray (…, image, image_2)
        The RDM.

    Returns
    -------
    tuple of str
        All dims but the last two.
    """
    return tuple(str(dim) for dim in rdm.dims[:-2])
