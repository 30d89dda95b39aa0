"""Dissimilarities of named pairs, read from tiles: all at once, or only what is touched."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, TypeVar

import numpy as np
from xarray.backends import BackendArray
from xarray.core import indexing

from featurestore.errors import CorruptDataError
from featurestore.options import available_cpus
from featurestore.rdms.engine import one_blas_thread
from featurestore.rdms.fill import TileGoneError
from featurestore.rdms.sides import Sides
from featurestore.rdms.tile import distances

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from featurestore.rdms.fill import Cover

T = TypeVar("T")
Post: TypeAlias = "Callable[[NDArray[Any]], NDArray[Any]]"

ROUNDS = 3  # of a disk that damages what was just written, no more is asked


class Finder(Protocol):
    """Knows where tiles are, or how to make them."""

    def __call__(self, gone: tuple[int, int] | None, /) -> Cover:
        """Find them; told which tile turned out to be gone or damaged, if one did."""
        ...

    def sides(self) -> Sides | None:
        """Return the side vectors of the rows if they are had without tiles."""
        ...


class PairView:
    """The matrix of pairs of a request.

    Parameters
    ----------
    find : Finder
        Finds the tiles, computing those that lack.
    n_features : int
        Values per row.
    metric : str
        One of `featurestore.rdms.tile.BASE_METRICS`.
    post : callable, optional
        Applied to each value, such as a Gaussian.
    dtype : type
        Of what is read: ``np.float32`` or ``np.float64``.
    """

    def __init__(
        self,
        find: Finder,
        n_features: int,
        metric: str,
        post: Post | None = None,
        dtype: type[np.floating[Any]] = np.float32,
    ) -> None:
        self._find, self._n_features = find, n_features
        self._metric, self._post, self._dtype = metric, post, dtype
        self._cover: Cover | None = None
        self._lock = threading.Lock()

    def __reduce__(self) -> tuple[Any, ...]:
        # Tiles are found anew where the view travels to.
        state = (self._find, self._n_features, self._metric, self._post, self._dtype)
        return (PairView, state)

    def with_post(self, post: Post) -> PairView:
        """Return the same view with a function applied to each value.

        Parameters
        ----------
        post : callable
            Takes dissimilarities in float64, of any shape.

        Returns
        -------
        PairView
            On the same tiles.
        """
        view = PairView(self._find, self._n_features, self._metric, post)
        view._cover = self._cover
        return view

    @property
    def itemsize(self) -> int:
        """Size of a value that is read [bytes]."""
        return np.dtype(self._dtype).itemsize

    def prepare(self) -> None:
        """Find the tiles now, computing those that lack."""
        self._current(None, None)

    def read(self, rows: NDArray[np.intp], columns: NDArray[np.intp]) -> NDArray[Any]:
        """Read part of the matrix.

        Parameters
        ----------
        rows, columns : ndarray of shape (n,), intp
            Positions in the request.

        Returns
        -------
        ndarray of shape (n_rows, n_columns)
            Dissimilarities; zero between equal images.
        """
        return self._while_tiles_stay(lambda cover: self._read(cover, rows, columns))

    def sides(self) -> Sides:
        """Return the side vectors of all rows of the request.

        Returns
        -------
        Sides
            In the order of the request.
        """
        own = self._find.sides()
        return self._while_tiles_stay(self._all_sides) if own is None else own

    def _while_tiles_stay(self, look: Callable[[Cover], T]) -> T:
        lost: Cover | None = None
        gone: tuple[int, int] | None = None
        for _ in range(ROUNDS + 1):
            cover = self._current(lost, gone)
            try:
                return look(cover)
            except TileGoneError as err:
                lost, gone = cover, err.args
        raise CorruptDataError(
            "Distances in the store are damaged as soon as they are written. No value was "
            "returned. Look at the disk, and call store.verify(repair=True).",
            images=[],
        )

    def _current(self, lost: Cover | None, gone: tuple[int, int] | None) -> Cover:
        """Return the tiles, found anew by the first thread that misses one."""
        with self._lock:
            if self._cover is None or self._cover is lost:
                self._cover = self._find(gone)
            return self._cover

    def _all_sides(self, cover: Cover) -> Sides:
        mean, sumsq = np.empty(len(cover.block_of)), np.empty(len(cover.block_of))
        for block in range(len(cover.blocks)):
            mine, part = cover.block_of == block, cover.sides(block, self._n_features)
            mean[mine] = part.mean[cover.row_of[mine]]
            sumsq[mine] = part.sumsq[cover.row_of[mine]]
        return Sides(mean, sumsq, self._n_features, cover.itemsize)

    def _read(
        self, cover: Cover, rows: NDArray[np.intp], columns: NDArray[np.intp]
    ) -> NDArray[Any]:
        out = np.empty((len(rows), len(columns)), self._dtype)
        across, down = _by_block(cover, rows), _by_block(cover, columns)

        def place(pair: tuple[int, int]) -> None:
            values = self._of_blocks(cover, *pair)
            self._copy(values, across.get(pair[0]), down.get(pair[1]), out)
            if pair[0] != pair[1]:
                self._copy(values.T, across.get(pair[1]), down.get(pair[0]), out)

        pairs = {(min(a, b), max(a, b)) for a in across for b in down}
        with one_blas_thread(), ThreadPoolExecutor(available_cpus()) as pool:
            for _ in pool.map(place, sorted(pairs)):
                pass
        return out

    def _of_blocks(self, cover: Cover, a: int, b: int) -> NDArray[Any]:
        left, right = (cover.sides(block, self._n_features) for block in (a, b))
        dtype = self._dtype if self._post is None else np.float64
        values = distances(cover.read(a, b), self._metric, left, right, dtype)
        if a == b:
            np.fill_diagonal(values, 0)
        return values

    def _copy(
        self, values: NDArray[Any], rows: Part | None, columns: Part | None, out: Any
    ) -> None:
        if rows is None or columns is None:
            return
        part = values[rows.within][:, columns.within]
        out[_both(rows.targets, columns.targets)] = part if self._post is None else self._post(part)


@dataclass(frozen=True)
class Part:
    """Rows of one block: where they go, and which of its rows they are."""

    targets: Any
    within: Any


def _by_block(cover: Cover, rows: NDArray[np.intp]) -> dict[int, Part]:
    block_of, row_of = cover.block_of[rows], cover.row_of[rows]
    found = {}
    for block in np.unique(block_of).tolist():
        targets = np.flatnonzero(block_of == block)
        found[block] = Part(_as_slice(targets), _as_slice(row_of[targets]))
    return found


def _as_slice(numbers: NDArray[np.intp]) -> slice | NDArray[np.intp]:
    if np.array_equal(numbers, np.arange(numbers[0], numbers[0] + len(numbers))):
        return slice(int(numbers[0]), int(numbers[0]) + len(numbers))
    return numbers


def _both(rows: Any, columns: Any) -> Any:
    if isinstance(rows, slice) or isinstance(columns, slice):
        return rows, columns
    return np.ix_(rows, columns)


class LazyPairs(BackendArray):
    """A matrix of pairs behind xarray's interface for lazy arrays.

    Parameters
    ----------
    view : PairView
        Where the values come from.
    n : int
        Rows and columns.
    """

    def __init__(self, view: PairView, n: int) -> None:
        self._view = view
        self.shape = (n, n)
        self.dtype = np.dtype(f"f{view.itemsize}")

    @property
    def ndim(self) -> int:
        """Number of axes, as dask asks for it."""
        return 2

    def __getitem__(self, key: Any) -> Any:
        """Read what xarray or dask asks for; any NumPy key works."""
        if isinstance(key, indexing.ExplicitIndexer):
            return indexing.explicit_indexing_adapter(
                key, self.shape, indexing.IndexingSupport.OUTER, self._outer
            )
        return self._outer(key if isinstance(key, tuple) else (key,))

    def _outer(self, key: tuple[Any, ...]) -> Any:
        key = (*key, *(slice(None),) * (2 - len(key)))
        chosen = [np.arange(n)[k] for k, n in zip(key, self.shape, strict=True)]
        if not all(axis.size for axis in chosen):
            return np.empty([len(axis) for axis in chosen if axis.ndim], self.dtype)
        rows, columns = (np.atleast_1d(axis) for axis in chosen)
        values = self._view.read(rows, columns)
        return values[tuple(slice(None) if axis.ndim else 0 for axis in chosen)]


def strips(n: int, nbytes: int) -> Iterator[NDArray[np.intp]]:
    """Cut the rows of a matrix of pairs into strips.

    Parameters
    ----------
    n : int
        Rows and columns.
    nbytes : int
        What one strip may take as float32 [bytes].

    Yields
    ------
    ndarray of shape (k,), intp
        Positions.
    """
    step = max(1, nbytes // (4 * max(1, n)))
    for start in range(0, n, step):
        yield np.arange(start, min(start + step, n))
