"""RDMs from elsewhere: brains, behaviour, other toolboxes; checked, and labelled."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import xarray as xr

from featurestore.errors import InvalidInputError
from featurestore.filehash import file_digest
from featurestore.rdms.files import read_rdm_file
from featurestore.rdms.found import FoundValues
from featurestore.rdms.naming import (
    count_dims,
    image_coords,
    leading_dims,
    place_names,
    read_names,
)
from featurestore.rdms.square import as_numbers, as_square
from featurestore.rdms.structure import make_rdm

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.typing import PathLike

UNKNOWN = "unknown"


def read_rdms(
    source: Any,
    *,
    names: Any = None,
    dims: str | Sequence[str] | Mapping[str, Any] | None = None,
    key: str | None = None,
    metric: str = UNKNOWN,
    dim: str = "image",
    coords: Mapping[str, Any] | None = None,
) -> xr.DataArray:
    """Check RDMs from elsewhere and give their images names.

    Parameters
    ----------
    source : array, DataFrame or path
        Square matrices (…, n, n) or condensed vectors (…, n (n − 1) / 2) in SciPy's order; or a
        file: ``.npy``; ``.npz`` or ``.mat`` (MATLAB, v7.3 included), see `key`; ``.csv``,
        ``.tsv`` or ``.txt``: a square table with or without names in its first row and column,
        three columns with two names and their dissimilarity, or condensed vectors. NaN stands
        for a dissimilarity that is not known.
    names : sequence of str, ImageSet or path
        What the rows are, in order. An image set brings its digests and coordinates along. Of a
        file: a ``.csv`` with a column ``image``, ``file`` or ``name``, or a text file with one
        name per line. Where the source names its rows itself, names may be left out; given ones
        must be the same, and decide on the order.
    dims : str, sequence of str, or mapping of str to labels, optional
        What the leading axes are, such as ``("subject",)`` or ``{"subject": ["BE", "KO"]}``.
        Without labels, RDMs along that dim cannot be paired with others.
    key : str, optional
        Which variable of a ``.npz`` or ``.mat`` file, where several may be meant.
    metric : str
        How the dissimilarities were computed, in your words; kept in the attributes.
    dim : str
        What is compared, if not images.
    coords : mapping of str to sequence, optional
        Further facts per image, such as ``{"category": […]}``.

    Returns
    -------
    DataArray (…, image, image_2)
        In memory; float32 if the source is of 32 bits or fewer, otherwise float64; exactly
        symmetric, with zeros on the diagonal. Of a file, the attributes ``source`` (its name) and
        ``source_digest`` say where it came from.

    Raises
    ------
    InvalidInputError
        If it is not clear what the numbers are or mean; if a matrix is not symmetric (beyond 1e-6
        of its largest value; less is averaged), its diagonal not 0 (beyond 1e-5 of it), or a value
        infinite; if names repeat.
    LabelMismatchError
        If the number of names does not fit, or they are not those of the file.
    MemoryBudgetError
        If a file is larger than `memory_budget`.
    MissingDependencyError
        If a MATLAB file is of v7.3 and h5py is not installed.

    Notes
    -----
    Whether numbers are square or condensed follows from their shape and the number of names: ten
    vectors of ten pairs are never mistaken for a matrix of ten images. Both fit for 3 × 3 numbers
    and 3 names only; then the number of `dims` decides. Dissimilarities may be negative, as
    cross-validated ones are.

    Examples
    --------
    >>> rdms = read_rdms([[1, 2, 3], [3, 1, 2]], names=["a", "b", "c"], dims="subject")
    >>> rdms.sel(image="a", image_2="c").values
    array([2., 1.])
    """
    wanted, known = (None, {}) if names is None else read_names(names)
    found, attrs = _find(source, key, None if wanted is None else len(wanted))
    where = f"{attrs['source']!r}" if attrs else "The table"
    in_file = None if found.names is None else read_names(found.names)[0]
    placed, order = place_names(wanted, in_file, where)
    square = as_square(as_numbers(found.values), len(placed), count_dims(dims))
    if order is not None:
        square = square[..., order[:, None], order]
    labels = leading_dims(dims, square.shape[:-2], found.labels, dim)
    extra = {
        name: range(size) if labels[name] is None else labels[name]
        for name, size in zip(labels, square.shape, strict=False)
    }
    rdms = make_rdm(
        square,
        image_coords(placed, known, coords, (*labels, dim)),
        dim,
        extra=extra,
        attrs={"metric": str(metric), **attrs},
    )
    # Positions would look like labels: RDMs of different subjects could be paired by them.
    return rdms.drop_vars([name for name in labels if labels[name] is None])


def _find(source: Any, key: str | None, n_names: int | None) -> tuple[FoundValues, dict[str, str]]:
    """Return the numbers of a source, and where they come from."""
    if isinstance(source, str | os.PathLike):
        return _find_in_file(os.fspath(source), key, n_names)
    if key is not None:
        raise InvalidInputError(f"key={key!r} chooses a variable of a file; this is an array.")
    if isinstance(source, xr.DataArray | xr.Dataset):
        raise InvalidInputError(
            "This is an xarray object already. If it is an RDM, use it as it is; otherwise give "
            "its numbers and names: fs.read_rdms(array.values, names=array['…'].values, dims=[…])."
        )
    if hasattr(source, "columns") and hasattr(source, "index"):
        return _of_frame(source), {}
    return FoundValues(source), {}


def _find_in_file(
    path: PathLike, key: str | None, n_names: int | None
) -> tuple[FoundValues, dict[str, str]]:
    found = read_rdm_file(os.fspath(path), key, n_names)
    attrs = {"source": Path(path).name, "source_digest": file_digest(path).hex()}
    if found.variable is not None:
        attrs["source_variable"] = found.variable
    return found, attrs


def _of_frame(frame: Any) -> FoundValues:
    """Take a table with names on both sides, or none."""
    rows, columns = frame.index.tolist(), frame.columns.tolist()
    if not all(isinstance(name, str) for name in rows):
        return FoundValues(frame.to_numpy())
    if set(rows) != set(columns) or len(set(rows)) < len(rows):
        raise InvalidInputError(
            "The rows and columns of the table do not have the same names, once each. Give its "
            "numbers and names: fs.read_rdms(table.to_numpy(), names=[…])."
        )
    return FoundValues(frame[rows].to_numpy(), tuple(rows))
