"""Images in an HDF5 dataset, as the Natural Scenes Dataset ships them. Needs h5py."""

from __future__ import annotations

import time
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import ImageDecodeError, InvalidInputError
from featurestore.filehash import FileStamp, MemoKey, open_regular, recall, remember, stamp_file
from featurestore.images.digest import array_digest
from featurestore.optional import import_optional

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

    from featurestore.images.content import Picture
    from featurestore.typing import Digest

SIGNATURE = b"\x89HDF\r\n\x1a\n"
MATLAB_HEADER_NBYTES = 512
SUFFIXES = (".h5", ".hdf5", ".hdf", ".mat")
READ_NBYTES = 64 * 2**20  # most that is read at once, where chunks hold many images
BATCH = 512  # digests per look-up and transaction


def is_hdf5(path: str) -> bool:
    """Say whether a file is HDF5.

    Parameters
    ----------
    path : str
        A file, or nothing.

    Returns
    -------
    bool
        By its first bytes; where it cannot be read, by its suffix.
    """
    try:
        with open_regular(path) as file:
            start = file.read(MATLAB_HEADER_NBYTES + len(SIGNATURE))
    except OSError:
        return PurePath(path).suffix.lower() in SUFFIXES
    return start.startswith(SIGNATURE) or start[MATLAB_HEADER_NBYTES:] == SIGNATURE


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a dataset, read when they are needed; each equals the same array."""

    path: str
    dataset: str
    rows: tuple[int, ...]

    def read(self, position: int) -> Picture:
        """Read one row; see `Source`."""
        try:
            with _opened(self.path, self.dataset) as dataset:
                (row,) = _chosen(self.rows[position], int(dataset.shape[0]))
                return _picture(dataset[row])
        except InvalidInputError as err:
            raise ImageDecodeError(str(err), reason=f"the file was changed: {err}") from err

    def take(self, positions: Sequence[int]) -> Rows:
        """Choose rows; see `Source`."""
        return Rows(self.path, self.dataset, tuple(self.rows[i] for i in positions))

    def digests(self) -> list[Digest]:
        """Return the digest of each row, from the memo where that is safe.

        Returns
        -------
        list of bytes
            In the order of the rows; each is read at most once.

        Raises
        ------
        OSError
            If the file cannot be read.
        InvalidInputError
            If the dataset does not hold pictures.
        """
        stamp = stamp_file(self.path)
        found: dict[int, Digest] = {}
        distinct = sorted(set(self.rows))
        for start in range(0, len(distinct), BATCH):
            keys = {row: self._memo_key(stamp, row) for row in distinct[start : start + BATCH]}
            known = recall(list(keys.values()))
            found |= {row: known[key] for row, key in keys.items() if key in known}
            found |= self._hash([row for row in keys if row not in found], stamp)
        return [found[row] for row in self.rows]

    def _hash(self, rows: list[int], stamp: FileStamp) -> dict[int, Digest]:
        if not rows:
            return {}
        started_ns = time.time_ns()
        with _opened(self.path, self.dataset) as dataset:
            fresh = {
                row: array_digest(picture)
                for block in _blocks(dataset, rows)
                for row, picture in zip(block, _read_block(dataset, block), strict=True)
            }
        if stamp_file(self.path) == stamp and stamp.at_rest(started_ns):
            remember({self._memo_key(stamp, row): digest for row, digest in fresh.items()})
        return fresh

    def _memo_key(self, stamp: FileStamp, row: int) -> MemoKey:
        return MemoKey(stamp, f"{self.dataset.strip('/')}[{row}]")


def find_rows(path: str, dataset: str | None, index: Any) -> Rows:
    """Choose rows of a dataset.

    Parameters
    ----------
    path : str
        An absolute path.
    dataset : str or None
        The dataset's name in the file.
    index : None, int, slice, sequence of int or boolean mask
        Which rows, from 0, in which order; ``None``: all.

    Returns
    -------
    Rows
        What was chosen.

    Raises
    ------
    InvalidInputError
        If there is no such dataset, it does not hold pictures, or a row does not exist.
    MissingDependencyError
        If h5py is not installed.
    """
    try:
        with _opened(path, dataset) as found:
            return Rows(path, str(dataset), _chosen(index, int(found.shape[0])))
    except OSError as err:
        raise InvalidInputError(f"{path!r} cannot be read as HDF5: {err}") from err


@contextmanager
def _opened(path: str, dataset: str | None) -> Iterator[Any]:
    """Open a dataset of pictures; h5py locks around every call, so any thread may."""
    # Opened for each use: a file that is kept open cannot be rewritten from the same notebook.
    h5py = import_optional("h5py", "hdf5")
    # Without a lock, which read-only and network file systems refuse; what is read is hashed.
    with h5py.File(path, "r", locking=False) as file:
        found = file.get(dataset) if dataset is not None else None
        if not isinstance(found, h5py.Dataset):
            raise InvalidInputError(
                f"{path!r} is an HDF5 file without a dataset {dataset!r}. It has "
                f"{', '.join(map(repr, _datasets(file, h5py))) or 'none'}; choose one with "
                "dataset=."
            )
        _require_pictures(found.shape, found.dtype, f"Dataset {dataset!r} of {path!r}")
        yield found


def _datasets(file: Any, h5py: Any) -> list[str]:
    names: list[str] = []
    file.visititems(
        lambda name, item: names.append(name) if isinstance(item, h5py.Dataset) else None
    )
    return names


def _require_pictures(shape: tuple[int, ...], dtype: np.dtype[Any], what: str) -> None:
    found = f"{what} has the shape {shape} and dtype {dtype}"
    wanted = "Images are (n, height, width, 3) or (n, height, width), uint8"
    if len(shape) not in (3, 4):
        raise InvalidInputError(f"{found}. {wanted}.")
    transposed = ""
    if len(shape) == 4 and shape[3] != 3:
        if shape[0] == 3:
            transposed = "as MATLAB writes it: array.transpose(3, 2, 1, 0)"
        elif shape[1] == 3:
            transposed = (
                "array.transpose(0, 2, 3, 1) for (n, 3, height, width), or "
                "array.transpose(0, 3, 2, 1) for (n, 3, width, height), as MATLAB writes it"
            )
        else:
            raise InvalidInputError(f"{found}. {wanted}.")
    elif len(shape) == 4 and 3 in shape[1:3]:
        transposed = "so that only the last axis has length 3"
    elif len(shape) == 3 and 3 in (shape[0], shape[2]):
        raise InvalidInputError(
            f"{found}, which could be one colour picture or several grey ones. {wanted}; add the "
            "missing axis, or pass the pictures as a list of arrays."
        )
    if transposed:
        raise InvalidInputError(
            f"{found}: its axes seem to be transposed. {wanted}; write the array once more in "
            f"that order ({transposed}), and look at one picture before you go on."
        )
    if dtype != np.uint8:
        raise InvalidInputError(
            f"{found}. {wanted}: write it once more with values from 0 to 255, for example "
            "(255 * array).round().astype('uint8') for values from 0 to 1."
        )


def _chosen(index: Any, n_rows: int) -> tuple[int, ...]:
    if index is None:
        return tuple(range(n_rows))
    if isinstance(index, slice):
        return tuple(range(n_rows)[index])
    array = np.atleast_1d(np.asarray(index))
    if array.size == 0:
        return ()
    if array.dtype == np.bool_ and array.shape == (n_rows,):
        return tuple(int(row) for row in np.flatnonzero(array))
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidInputError(
            f"index= is an array of shape {array.shape} and dtype {array.dtype}; use row numbers "
            f"from 0, a slice, or a boolean mask of length {n_rows}."
        )
    outside = array[(array < 0) | (array >= n_rows)]
    if outside.size:
        raise InvalidInputError(
            f"index= asks for row {outside[0]}; the dataset has {n_rows} rows, counted from 0 "
            "(subtract 1 from numbers that count from 1, as NSD's trial tables do)."
        )
    return tuple(int(row) for row in array)


def _blocks(dataset: Any, rows: list[int]) -> Iterator[list[int]]:
    """Group ascending rows so that a compressed chunk is read once, where it fits."""
    row_nbytes = max(1, int(np.prod(dataset.shape[1:])))
    most = max(1, READ_NBYTES // row_nbytes)
    per_block = min(dataset.chunks[0] if dataset.chunks else 1, most)
    for _, block in groupby(rows, key=lambda row: row // per_block):
        yield list(block)


def _read_block(dataset: Any, block: list[int]) -> NDArray[np.uint8]:
    first = block[0]
    values: NDArray[np.uint8] = dataset[first : block[-1] + 1]
    return values[[row - first for row in block]]


def _picture(values: NDArray[np.uint8]) -> NDArray[np.uint8]:
    picture = np.ascontiguousarray(values)
    picture.setflags(write=False)
    return picture
