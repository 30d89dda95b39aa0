"""Where the kernel reads rows from: a column of a store, or any labelled array.

A source is cut into blocks of features. Each block is read for all rows of a pass, so that a
matrix of all pairs that fits in memory costs one reading of the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.storage.reader import DamagedRowsError
from featurestore.storage.row_stats import row_statistics
from featurestore.storage.statistics import stored_statistics

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.arrays.lazy import StoredRows

Block: TypeAlias = tuple[slice, ...]
"""A rectangular part of each row: one slice per axis of a row."""

Rows: TypeAlias = "NDArray[np.float32] | NDArray[np.float64]"

STATISTICS_NBYTES = 2**26  # rows that are held at once to take their statistics


class Source(Protocol):
    """Rows of features whose distances are wanted."""

    @property
    def n_features(self) -> int:
        """Values per row."""
        ...

    @property
    def itemsize(self) -> int:
        """Size of a value as it is read: 4 or 8 [bytes]."""
        ...

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        ...

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of the pieces of a row that are decoded together."""
        ...

    def read(self, rows: NDArray[np.intp], block: Block) -> Rows:
        """Read part of some rows as (n, width), C-contiguous, free to be changed."""
        ...

    def statistics(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return mean and centred sum of squares of rows, shape (n, 2); not finite if a row is."""
        ...


def feature_blocks(shape: Sequence[int], chunks: Sequence[int], max_values: int) -> Iterator[Block]:
    """Cut a row into blocks of neighbouring values, along the borders of chunks where possible.

    Parameters
    ----------
    shape : sequence of int
        Shape of one row.
    chunks : sequence of int
        Shape of the pieces that are decoded together.
    max_values : int
        No block is larger.

    Yields
    ------
    tuple of slice
        Blocks that cover the row once, in C order.

    Examples
    --------
    >>> [b[0] for b in feature_blocks((10, 2), (4, 2), 16)]
    [slice(0, 8, None), slice(8, 10, None)]
    >>> list(feature_blocks((2, 3), (1, 3), 2))[1]
    (slice(0, 1, None), slice(2, 3, None))
    """
    if not shape:
        yield ()
        return
    behind = math.prod(shape[1:])
    if behind > max_values:
        for n in range(shape[0]):
            for rest in feature_blocks(shape[1:], chunks[1:], max_values):
                yield (slice(n, n + 1), *rest)
        return
    step = max(1, max_values // max(1, behind))
    if step >= chunks[0]:
        step -= step % chunks[0]
    for start in range(0, shape[0], step):
        yield (slice(start, min(start + step, shape[0])), *(slice(0, n) for n in shape[1:]))


def block_size(block: Block) -> int:
    """Return how many values of a row a block covers.

    Parameters
    ----------
    block : tuple of slice
        From `feature_blocks`.

    Returns
    -------
    int
        Their number.
    """
    return math.prod(s.stop - s.start for s in block)


@dataclass(frozen=True)
class StoredSource:
    """Rows of a column.

    Parameters
    ----------
    stored : StoredRows
        Which images, and where their rows are.
    """

    stored: StoredRows
    itemsize: int = 4

    @property
    def n_features(self) -> int:
        """Values per row."""
        return math.prod(self.stored.shape)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one row."""
        return self.stored.shape

    @property
    def chunks(self) -> tuple[int, ...]:
        """Shape of an inner chunk."""
        layout = self.stored.column.layout
        return self.stored.shape if layout is None else layout.chunk_shape

    def read(self, rows: NDArray[np.intp], block: Block) -> Rows:
        """Read part of some rows.

        Parameters
        ----------
        rows : ndarray of shape (n,), intp
            Positions among the images.
        block : tuple of slice
            Which part.

        Returns
        -------
        ndarray of shape (n, width), float32
            Fresh memory.

        Raises
        ------
        CorruptDataError
            If a row is damaged and there is no other copy of it.
        """
        values = self.stored.read(rows, block).reshape(len(rows), -1)
        return values.astype(np.float32, copy=False)

    def statistics(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return mean and centred sum of squares of rows, as they were written.

        Parameters
        ----------
        rows : ndarray of shape (n,), intp
            Positions among the images.

        Returns
        -------
        ndarray of shape (n, 2), float64
            Not finite where a row is not.
        """
        digests = self.stored.digests[rows]
        while True:
            found = self.stored.column.lookup(digests)
            if (found < 0).any():  # derived on the fly, or gone: the rows themselves say
                return statistics_of_rows(self, rows)
            try:
                return stored_statistics(self.stored.column, found, digests)
            except DamagedRowsError:
                continue  # looked up again: another copy serves, or there is none


class ArraySource:
    """Rows of any labelled array, in memory or lazy.

    Parameters
    ----------
    features : DataArray (dim, ...)
        Real numbers; all dims but `dim` are features.
    dim : str
        What a row is.
    """

    def __init__(self, features: xr.DataArray, dim: str) -> None:
        self._array = features.transpose(dim, ...)
        self.n_rows = self._array.sizes[dim]
        self.shape = self._array.shape[1:]
        self.n_features = math.prod(self.shape)
        self._dtype = _arithmetic(features)
        self.itemsize = self._dtype.itemsize
        chunks = self._array.chunks
        self.chunks = self.shape if chunks is None else tuple(max(axis) for axis in chunks[1:])

    @cached_property
    def _statistics(self) -> NDArray[np.float64]:
        return statistics_of_rows(self, np.arange(self.n_rows))

    def read(self, rows: NDArray[np.intp], block: Block) -> Rows:
        """Read part of some rows.

        Parameters
        ----------
        rows : ndarray of shape (n,), intp
            Positions along the dim.
        block : tuple of slice
            Which part.

        Returns
        -------
        ndarray of shape (n, width), float32 or float64
            Fresh memory.
        """
        # Not `.values` of the array itself: xarray would keep a lazy one in memory afterwards.
        part = self._array.variable[(as_key(rows), *block)]
        return np.array(part.values, self._dtype, order="C").reshape(len(rows), -1)

    def statistics(self, rows: NDArray[np.intp]) -> NDArray[np.float64]:
        """Return mean and centred sum of squares of rows; one reading of the whole array.

        Parameters
        ----------
        rows : ndarray of shape (n,), intp
            Positions along the dim.

        Returns
        -------
        ndarray of shape (n, 2), float64
            Not finite where a row is not.
        """
        return self._statistics[rows]


def as_key(rows: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    """Write neighbouring positions as a slice, which lazy arrays read in one piece.

    Parameters
    ----------
    rows : ndarray of shape (n,), intp
        Positions.

    Returns
    -------
    slice or ndarray
        The same positions.
    """
    if len(rows) and np.array_equal(rows, np.arange(rows[0], rows[0] + len(rows))):
        return slice(int(rows[0]), int(rows[0]) + len(rows))
    return rows


def statistics_of_rows(source: Source, rows: NDArray[np.intp]) -> NDArray[np.float64]:
    """Take the statistics of rows by reading them.

    Parameters
    ----------
    source : Source
        Where they are.
    rows : ndarray of shape (n,), intp
        Which ones.

    Returns
    -------
    ndarray of shape (n, 2), float64
        Mean and centred sum of squares.
    """
    whole = tuple(slice(0, n) for n in source.shape)
    step = max(1, STATISTICS_NBYTES // (source.itemsize * max(1, source.n_features)))
    if step == 1 and source.n_features * source.itemsize > STATISTICS_NBYTES:
        return np.concatenate([_of_wide_row(source, rows[n : n + 1]) for n in range(len(rows))])
    return np.concatenate(
        [np.empty((0, 2))]
        + [
            row_statistics(source.read(rows[n : n + step], whole))
            for n in range(0, len(rows), step)
        ]
    )


def _of_wide_row(source: Source, row: NDArray[np.intp]) -> NDArray[np.float64]:
    """Combine the statistics of the pieces of one row (Chan et al. 1983)."""
    n, mean, sumsq = 0, 0.0, 0.0
    max_values = STATISTICS_NBYTES // source.itemsize
    with np.errstate(invalid="ignore", over="ignore"):
        for block in feature_blocks(source.shape, source.chunks, max_values):
            ((part_mean, part_sumsq),) = row_statistics(source.read(row, block))
            k = block_size(block)
            shift = part_mean - mean
            sumsq += part_sumsq + shift**2 * n * k / (n + k)
            mean += shift * k / (n + k)
            n += k
    return np.array([[mean, sumsq]])


def _arithmetic(features: xr.DataArray) -> np.dtype[Any]:
    """Return the dtype in which values can be read without loss."""
    dtype = features.dtype
    if dtype.kind not in "fiub":
        raise InvalidInputError(
            f"Features of dtype {dtype} have no distances. Give real numbers; of complex ones, "
            "for example, abs(features).",
            dtype=str(dtype),
        )
    return np.dtype(np.float32) if np.can_cast(dtype, np.float32) else np.dtype(np.float64)
