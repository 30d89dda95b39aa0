"""Committed rows as an array that reads only what is touched."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from featurestore.errors import CorruptDataError, MemoryBudgetError
from featurestore.options import format_nbytes
from featurestore.readouts import apply_readout
from featurestore.storage.reader import DamagedRowsError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.storage.column import Column
    from featurestore.storage.shard_file import Selection


DASK_BACKED: WeakValueDictionary[str, RowsArray] = WeakValueDictionary()
"""Arrays behind dask arrays, by the name that dask knows them by."""


@dataclass(frozen=True, slots=True)
class StoredRows:
    """Rows of images in one column, or derivable from another."""

    column: Column
    shape: tuple[int, ...]
    """Shape of one row."""
    dtype: str
    names: tuple[str, ...]
    digests: NDArray[np.uint8]
    """Which images, in the order asked for, repeats included."""
    full: Column | None = None
    """The column of full rows that a readout can be derived from."""
    readout: str | None = None

    def read(self, images: NDArray[np.intp], selection: Selection) -> NDArray[Any]:
        """Read part of the rows of some images.

        Parameters
        ----------
        images : ndarray of shape (n,), intp
            Positions in `digests`.
        selection : tuple of slice
            Which part of each row.

        Returns
        -------
        ndarray of shape (n, *selected)
            The values.

        Raises
        ------
        CorruptDataError
            If a row is damaged and there is no other copy of it.
        MemoryBudgetError
            If the machine has not enough memory for them.
        """
        while True:
            try:
                return self._read(images, selection)
            except DamagedRowsError:
                # What was damaged is a miss from now on, and what was moved is found where it is
                # now: another copy serves, or the next look-up finds none and says so.
                continue
            except MemoryError as err:
                nbytes = len(images) * np.dtype(self.dtype).itemsize
                nbytes *= math.prod(s.stop - s.start for s in selection)
                raise MemoryBudgetError(
                    f"{len(images)} rows take {format_nbytes(nbytes)}, which is more than this "
                    "machine has left. Select a part first, such as .isel(image=slice(0, 100)).",
                    projected_nbytes=nbytes,
                    allowed_nbytes=0,
                ) from err

    def _read(self, images: NDArray[np.intp], selection: Selection) -> NDArray[Any]:
        # Looked up at each read: compaction may have moved a row since the array was made.
        digests = self.digests[images]
        rows = self.column.lookup(digests)
        missing = rows < 0
        if not missing.any():
            return self.column.read(rows, selection, digests)
        derived = self._derive(images[missing], selection)
        out = np.empty((len(images), *(s.stop - s.start for s in selection)), self.dtype)
        out[missing] = derived
        if not missing.all():
            out[~missing] = self.column.read(rows[~missing], selection, digests[~missing])
        return out

    def _derive(self, images: NDArray[np.intp], selection: Selection) -> NDArray[Any]:
        rows = np.full(len(images), -1)
        if self.full is not None:
            rows = self.full.lookup(self.digests[images])
        if self.full is None or (rows < 0).any():
            raise self._corrupt([self.names[n] for n in images[rows < 0]])
        out = np.empty((len(images), *(s.stop - s.start for s in selection)), self.dtype)
        for number, row in enumerate(rows):  # one at a time: full rows can be very wide
            full = self.full.read(np.array([row]), None, self.digests[images[number : number + 1]])
            out[number] = apply_readout(self.readout, full)[0][selection]
        return out

    def _corrupt(self, names: Sequence[str]) -> CorruptDataError:
        shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
        return CorruptDataError(
            f"The stored rows of {len(names)} images are damaged or gone: {shown}. No value was "
            "returned for them. Call get() again on a store opened with mode='a': they are "
            "recomputed, and everything else is kept.",
            images=tuple(names),
        )


class RowsArray(BackendArray):
    """Stored rows behind xarray's interface for lazy arrays.

    Parameters
    ----------
    rows : StoredRows
        Where the values come from.
    flatten : bool
        Whether a row is shown as one axis, in C order.
    """

    def __init__(self, rows: StoredRows, *, flatten: bool) -> None:
        self._rows = rows
        self._flatten = flatten
        row_shape = (int(np.prod(rows.shape)),) if flatten else rows.shape
        self.shape = (len(rows.digests), *row_shape)
        self.dtype = np.dtype(rows.dtype)

    @property
    def ndim(self) -> int:
        """Number of axes, as dask asks for it."""
        return len(self.shape)

    def __getitem__(self, key: Any) -> Any:
        """Read what xarray or dask asks for; any NumPy key works."""
        if isinstance(key, indexing.ExplicitIndexer):
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._outer
            )
        return self._outer(key if isinstance(key, tuple) else (key,))

    def _outer(self, key: tuple[Any, ...]) -> NDArray[Any]:
        """Index each axis on its own, reading no more than the chunks that it touches."""
        key = (*key, *(slice(None),) * (len(self.shape) - len(key)))
        chosen = [np.arange(n)[k] for k, n in zip(key, self.shape, strict=True)]
        if not all(axis.size for axis in chosen):  # nothing is asked for, nothing is read
            return np.empty([len(axis) for axis in chosen if axis.ndim], self.dtype)
        images = chosen[0]
        scalar = images.ndim == 0
        images = np.atleast_1d(images)
        if self._flatten:
            values = self._read_flat(images, key[1])
        else:
            bounds = [_bounds(k, n) for k, n in zip(key[1:], self.shape[1:], strict=True)]
            values = self._rows.read(images, tuple(bounds))
            inside = [_inside(k, b, n) for k, b, n in zip(key[1:], bounds, self.shape[1:],
                                                         strict=True)]  # fmt: skip
            for axis in range(len(inside) - 1, -1, -1):  # from the back: integers drop axes
                values = values[(slice(None),) * (axis + 1) + (inside[axis],)]
        return values[0] if scalar else values

    def _read_flat(self, images: NDArray[np.intp], key: Any) -> NDArray[Any]:
        # A range of flat positions lies within a range of the first axis.
        shape = self._rows.shape
        behind = int(np.prod(shape[1:]))
        flat = _bounds(key, self.shape[1])
        low, high = flat.start // behind, -(-flat.stop // behind)
        rest = tuple(slice(0, n) for n in shape[1:])
        values = self._rows.read(images, (slice(low, high), *rest)).reshape(len(images), -1)
        values = values[:, flat.start - low * behind : flat.stop - low * behind]
        return values[:, _inside(key, flat, self.shape[1])]


def rows_behind(features: xr.DataArray) -> tuple[StoredRows, NDArray[np.intp]] | None:
    """Return where the values of an array are kept, if they are what a store answered with.

    Parameters
    ----------
    features : DataArray (image, ...)
        Any array.

    Returns
    -------
    (StoredRows, ndarray of shape (n,), intp) or None
        The rows, and which of them in which order; ``None`` if values were loaded, computed with
        or cut along the features, so that they may be other ones.
    """
    data: Any = features.variable._data
    if features.chunks is not None:
        array = DASK_BACKED.get(data.name)
        same = array is not None and array.shape == features.shape
        return (array._rows, np.arange(len(array._rows.digests))) if array and same else None
    while isinstance(data, indexing.MemoryCachedArray | indexing.CopyOnWriteArray):
        data = data.array
    if not (isinstance(data, indexing.LazilyIndexedArray) and isinstance(data.array, RowsArray)):
        return None
    key = data.key.tuple
    whole = [np.array_equal(np.arange(n)[k], np.arange(n)) for k, n in
             zip(key[1:], data.array.shape[1:], strict=True)]  # fmt: skip
    images = np.arange(data.array.shape[0])[key[0]]
    return (data.array._rows, images) if all(whole) and images.ndim == 1 else None


def _positions(key: Any, n: int) -> NDArray[np.intp]:
    return np.atleast_1d(np.arange(n)[key])


def _bounds(key: Any, n: int) -> slice:
    """Return the smallest plain slice that covers a key."""
    positions = _positions(key, n)
    if not len(positions):
        return slice(0, 0)
    return slice(int(positions.min()), int(positions.max()) + 1)


def _inside(key: Any, bounds: slice, n: int) -> Any:
    """Return the key relative to the slice that covers it."""
    if isinstance(key, slice) and key.step in (None, 1):
        return slice(None)
    positions = np.arange(n)[key] - bounds.start
    return int(positions) if positions.ndim == 0 else positions
