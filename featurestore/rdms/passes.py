"""One reading of the data: squared distances between rows, for any pieces of the matrix of pairs.

Rows are shifted twice, each by its own mean and all by the mean of each feature, so that products
in float32 lose nothing to offsets. Where a distance is small beside what is left, rounding shows;
such pairs are computed again from float64 differences, and pieces of the matrix that have many of
them are multiplied in float64 from the start.

Measured: a float32 product of two rows of p features errs by up to 2e-5 / √p of the sum of their
squares, in whatever blocks it is taken. So pairs whose squared distance is below 12 / √p of that
sum (0.19 for 4,096 features) cannot be had to 2e-6 that way. Where few features hold most of the
variance, errors do not average out: p stands for (Σ v)² / Σ v², v the variance of each.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featurestore.rdms.close import find_close, find_close_quickly, is_plain
from featurestore.rdms.engine import open_engine
from featurestore.rdms.sides import Sides, as_float32, scratch
from featurestore.rdms.source import feature_blocks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

    from featurestore.rdms.engine import Engine, NumpyEngine
    from featurestore.rdms.source import Block, Source

CLOSE, MIN_CLOSE, MAX_CLOSE = 12.0, 0.05, 0.5
"""Over √p: the share of the sum of squares of two rows below which float32 is not trusted."""
CLOSE_EXACT = 2e-7
"""The same share for products in float64: with the statistics they err by 1e-13 of the sum."""
MANY = 0.003
"""A piece with more close pairs than this share costs less in float64 than pair by pair."""
EXACT_WIDTH = 1024
"""Rows of fewer features are multiplied in float64: the products are not what takes time."""
EXACT_PRODUCTS = 4e9
"""So are matrices of fewer multiplications."""
IN_RANGE = (1e-10, 1e10)
"""Root mean squares of rows whose products float32 can sum without under- or overflow."""
FAR = 8.0
"""Shifts that exceed what is left by this factor are taken off in float64."""
N_SAMPLE = 64  # rows from which the mean of a feature is taken
STRIP_VALUES = 2**16  # what stays in the cache of a processor while rows are shifted
SHIFT_VALUES = 2048
"""Features that are shifted and multiplied at once."""
EXACT_VALUES = 256
"""Features that are multiplied at once in float64."""
FINISH_VALUES = 2**17  # smaller strips of pairs cost more in calls than they gain in the cache


@dataclass
class Piece:
    """A rectangle of the matrix of pairs; rows are positions among the rows of a pass."""

    a: slice
    b: slice
    exact: bool = False
    """Whether it is multiplied in float64."""
    squares: NDArray[np.float64] = field(default_factory=lambda: np.empty((0, 0)))
    """Squared distances, once the pass is done: shape (n_a, n_b)."""
    close: NDArray[np.intp] = field(default_factory=lambda: np.empty((0, 2), np.intp))
    """Pairs that are not trusted, as positions in `squares`: shape (k, 2)."""

    @property
    def is_diagonal(self) -> bool:
        """Whether its rows are its columns."""
        return self.a == self.b

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""
        return self.a.stop - self.a.start, self.b.stop - self.b.start

    @property
    def n_pairs(self) -> int:
        """How many pairs of two rows it holds."""
        n_a, n_b = self.shape
        return n_a * (n_a - 1) // 2 if self.is_diagonal else n_a * n_b


def run_pass(
    source: Source,
    rows: NDArray[np.intp],
    pieces: Sequence[Piece],
    *,
    max_values: int,
    ahead: bool = True,
    device: str = "cpu",
    on_block: Callable[[int], object] = lambda _n: None,
) -> Sides:
    """Compute pieces of the matrix of squared distances, reading each value of the rows once.

    Parameters
    ----------
    source : Source
        Where the rows are.
    rows : ndarray of shape (n,), intp
        Which rows.
    pieces : sequence of Piece
        What is wanted; `squares` and `close` are filled in.
    max_values : int
        Values of a row that are read at once.
    ahead : bool
        Whether the next block is read while one is being multiplied.
    device : str
        As `open_engine` takes it.
    on_block : callable
        Told after each block how many bytes were read for it.

    Returns
    -------
    Sides
        Of the rows.
    """
    sides = Sides.of(source.statistics(rows), source.n_features, source.itemsize)
    n_products = source.n_features * sum(piece.n_pairs for piece in pieces)
    scale = float(np.max(sides.spread[sides.finite], initial=0)) / np.sqrt(source.n_features)
    small = source.n_features < EXACT_WIDTH or n_products < EXACT_PRODUCTS
    for piece in pieces:
        piece.exact |= small or not IN_RANGE[0] < scale < IN_RANGE[1]
    with open_engine(device) as (engine, processors):
        work = _Pass(sides, pieces, engine, processors)
        for values in _read(source, rows, max_values, ahead=ahead):
            for start in range(0, values.shape[1], SHIFT_VALUES):
                work.take(values[:, start : start + SHIFT_VALUES])
            on_block(values.nbytes)
            del values  # before the next one is read
        work.finish()
    return sides


class _Pass:
    """The sums of one pass, block by block."""

    def __init__(
        self, sides: Sides, pieces: Sequence[Piece], engine: Engine, processors: NumpyEngine
    ) -> None:
        self.sides, self.pieces = sides, pieces
        self.engine, self.processors = engine, processors
        self.shift = sides.shift
        self._unit = float(np.max(sides.sumsq[sides.finite], initial=0)) or 1.0
        self._variance = np.zeros(3)  # features seen; sum of their variances, and of the squares
        self.bad = np.flatnonzero(~sides.finite)
        self.norms = np.zeros(len(sides))  # sums of squares of shifted rows, as float32 has them
        self.exact_norms = np.zeros(len(sides))
        self.sums: list[Any] = [
            (processors if piece.exact else engine).zeros(*piece.shape) for piece in pieces
        ]
        width = min(SHIFT_VALUES, sides.n_features)
        self._shifted = np.empty((len(sides), width), np.float32)
        self._exact = np.empty(0)
        self._is_first = True
        good = np.flatnonzero(sides.finite)
        self._sample = good[np.linspace(0, len(good) - 1, min(N_SAMPLE, len(good))).astype(np.intp)]

    @property
    def close(self) -> float:
        """The share of the sum of squares of two rows below which float32 is not trusted."""
        seen, total, squares = self._variance
        n_effective = total**2 / squares * self.sides.n_features / seen if squares > 0 else 1.0
        return max(MIN_CLOSE, CLOSE / float(np.sqrt(n_effective)))

    def take(self, values: NDArray[Any]) -> None:
        """Add one block of features."""
        if not len(self._sample):
            return  # no row is finite: all pairs are NaN
        if len(self.bad):
            values[self.bad] = 0  # their pairs are set to NaN at the end
        sample = values[self._sample] - self.shift[self._sample, None]
        centre = as_float32(sample.mean(axis=0))
        variance = np.mean((sample - centre) ** 2, axis=0) / self._unit
        self._variance += (values.shape[1], variance.sum(), variance @ variance)
        fast = [n for n, piece in enumerate(self.pieces) if not piece.exact]
        if fast:
            self._take_fast(values, centre, sample, fast)
            if self._is_first:
                fast = self._drop_close(fast)
        self._take_exact(values, centre, [n for n in range(len(self.pieces)) if n not in fast])
        self._is_first = False

    def _take_fast(
        self,
        values: NDArray[Any],
        centre: NDArray[np.float64],
        sample: NDArray[np.float64],
        fast: Sequence[int],
    ) -> None:
        left = np.sqrt(np.mean((sample - centre) ** 2))
        off = np.sqrt(np.mean(self.shift[self._sample] ** 2) + np.mean(centre**2))
        # A sum of two float32 roundings is as good as one, unless what is rounded is far larger.
        dtype = np.float64 if off > FAR * left or values.dtype == np.float64 else np.float32
        shifted = self._shifted[:, : values.shape[1]]
        shift, centre = self.shift.astype(dtype), centre.astype(dtype)
        step = max(1, STRIP_VALUES // values.shape[1])

        def shift_rows(start: int) -> None:
            strip = slice(start, start + step)
            out = shifted[strip]
            if dtype is np.float32:
                np.subtract(values[strip], shift[strip, None], out=out)
                np.subtract(out, centre, out=out)
            else:
                exact = values[strip] - shift[strip, None]
                np.subtract(exact, centre, out=exact)
                out[...] = exact
            self.norms[strip] += squares_of(out)

        self.processors.each(shift_rows, range(0, len(values), step))
        loaded = self.engine.load(shifted)
        self.engine.each(
            lambda n: self.engine.add(self.sums[n], loaded, self.pieces[n].a, self.pieces[n].b),
            fast,
        )

    def _drop_close(self, fast: Sequence[int]) -> list[int]:
        """Go over to float64 where the first block shows many close pairs; exact at the end."""
        kept = []
        for n in fast:
            piece = self.pieces[n]
            rows, columns = (slice(None, None, 1 + size // 128) for size in piece.shape)
            products = self.engine.fetch(self.sums[n])[rows, columns]
            size = self.norms[piece.a][rows, None] + self.norms[piece.b][columns]
            close = size - 2 * products < self.close * size
            itself = 1 / len(close) if piece.is_diagonal else 0
            if self.close > MAX_CLOSE or close.mean() - itself > 2 * MANY:
                piece.exact = True
                self.sums[n] = self.processors.zeros(*piece.shape)
            else:
                kept.append(n)
        return kept

    def _take_exact(
        self, values: NDArray[Any], centre: NDArray[np.float64], exact: Sequence[int]
    ) -> None:
        if not exact:
            return
        needed = np.zeros(len(values), bool)
        for n in exact:
            needed[self.pieces[n].a] = needed[self.pieces[n].b] = True
        for start in range(0, values.shape[1], EXACT_VALUES):
            part = slice(start, start + EXACT_VALUES)
            shifted = self._shift_exactly(values[:, part], centre[part], needed)

            def add(n: int, shifted: NDArray[np.float64] = shifted) -> None:
                piece, total = self.pieces[n], self.sums[n]
                left = shifted[piece.a]
                right = left if piece.is_diagonal else shifted[piece.b]
                product = scratch(piece.shape, np.float64, "exact product")
                np.matmul(left, right.T, out=product)
                np.add(total, product, out=total)

            self.processors.each(add, exact)

    def _shift_exactly(
        self, values: NDArray[Any], centre: NDArray[np.float64], needed: NDArray[np.bool_]
    ) -> NDArray[np.float64]:
        """Return rows less their shifts in float64, and add up their squares."""
        if self._exact.size < values.size:
            self._exact = np.empty(values.size)
        shifted = self._exact[: values.size].reshape(values.shape)
        step = max(1, STRIP_VALUES // values.shape[1])

        def shift_rows(start: int) -> None:
            strip = slice(start, start + step)
            if not needed[strip].any():
                return
            out = shifted[strip]
            np.subtract(values[strip], self.shift[strip, None], out=out)
            np.subtract(out, centre, out=out)
            self.exact_norms[strip] += np.vecdot(out, out)

        self.processors.each(shift_rows, range(0, len(values), step))
        return shifted

    def finish(self) -> None:
        """Turn sums of products into squared distances, and find pairs that are too close."""
        self.processors.each(self._finish, range(len(self.pieces)))

    def _finish(self, n: int) -> None:
        piece = self.pieces[n]
        norms = self.exact_norms if piece.exact else self.norms
        squares = (self.processors if piece.exact else self.engine).fetch(self.sums[n])
        self.sums[n] = None
        a, b = self.sides[piece.a], self.sides[piece.b]
        norms_a, norms_b = norms[piece.a], norms[piece.b]
        share = CLOSE_EXACT if piece.exact else self.close
        look = find_close
        if not piece.exact and is_plain(a, norms_a) and is_plain(b, norms_b):
            look = find_close_quickly
        close, step = [], max(1, FINISH_VALUES // squares.shape[1])
        for start in range(0, len(squares), step):
            rows = slice(start, min(start + step, len(squares)))
            first = start if piece.is_diagonal else 0  # what is left of it is mirrored
            part = squares[rows, first:]
            part *= -2
            found = look(part, a[rows], b[first:], norms_a[rows], norms_b[first:], share)
            if piece.is_diagonal:
                found = found[found[:, 0] < found[:, 1]]
            close.append(found + np.array([start, first]))
        if piece.is_diagonal:
            mirror(squares)
        squares[~a.finite] = np.nan
        squares[:, ~b.finite] = np.nan
        piece.squares, piece.close = squares, np.concatenate(close)


def mirror(square: NDArray[np.float64]) -> None:
    """Copy the upper triangle of a square matrix to the lower one; the diagonal becomes zero.

    Parameters
    ----------
    square : ndarray of shape (n, n), float64
        Changed.
    """
    step = 256
    for start in range(0, len(square), step):
        rows = slice(start, start + step)
        block = square[rows, rows]
        lower = np.tril_indices(len(block), -1)
        block[lower] = block.T[lower]
        square[start + step :, rows] = square[rows, start + step :].T
    np.fill_diagonal(square, 0)


def squares_of(rows: NDArray[np.float32]) -> NDArray[np.float64]:
    """Sum the squares of float32 rows, in pieces that float32 sums well.

    Parameters
    ----------
    rows : ndarray of shape (n, width), float32
        Rows.

    Returns
    -------
    ndarray of shape (n,), float64
        Relative error about 1e-8.
    """
    piece = 128
    whole = rows.shape[1] // piece * piece
    blocks = rows[:, :whole].reshape(len(rows), -1, piece)
    rest = rows[:, whole:].astype(np.float64)
    total: NDArray[np.float64] = np.vecdot(blocks, blocks).sum(axis=1, dtype=np.float64)
    total += np.vecdot(rest, rest)
    return total


def _read(
    source: Source, rows: NDArray[np.intp], max_values: int, *, ahead: bool
) -> Iterator[NDArray[Any]]:
    """Read block after block, the next one while the last one is used if there is room."""
    blocks: Iterator[Block] = feature_blocks(source.shape, source.chunks, max_values)
    if not ahead:
        for block in blocks:
            yield source.read(rows, block)
        return
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(source.read, rows, next(blocks))
        for block in blocks:
            values = coming.result()
            coming = reader.submit(source.read, rows, block)
            yield values
            del values  # before the next one is waited for
        yield coming.result()
