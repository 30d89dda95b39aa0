"""Reading: row numbers to values, through checksums, on all processors.

Slots are decoded here rather than by a Zarr library, because a reader of this project has to know
*which* rows are damaged, and because it is faster (``benchmarks/README.md``). The bytes are plain
Zarr shards: inner chunks of ``bytes[, zstd], crc32c``, and an index at the end.
"""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featurestore.options import available_cpus
from featurestore.storage import layout as _layout
from featurestore.storage.frames import decode_exactly
from featurestore.storage.shard import ABSENT, crc32c

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.storage.blob import Blobs
    from featurestore.storage.layout import ColumnLayout
    from featurestore.storage.slots import Companion

    Companions: TypeAlias = Callable[[int, bool], Companion | None]

Selection: TypeAlias = tuple[slice, ...]
"""Which part of each row: one slice with step 1 per axis."""

READ_WHOLE = 0.5  # a shard of which this share is wanted is read in one piece
MAX_WHOLE_NBYTES = 2**28  # unless it is far larger than a slot is meant to be
CONFIRM_AFTER_S = 0.05  # an NFS client may have cached that a file is not there

_scratch = threading.local()


class DamagedRowsError(Exception):
    """Some rows cannot be read; carries slot number to (positions, reason)."""

    def __init__(self, damage: Mapping[int, tuple[frozenset[int], str]]) -> None:
        super().__init__(damage)
        self.damage = dict(damage)


class RowsMovedError(DamagedRowsError):
    """Some rows were compacted or dropped meanwhile; look them up again."""


class _BadChunkError(Exception):
    """An inner chunk, or what leads to it, is not what was written."""


@dataclass(frozen=True, slots=True)
class _SlotTask:
    """The rows of one slot that are wanted, and where they go."""

    slot: int
    positions: NDArray[np.int64]
    """Rows within the slot, rising, without repeats."""
    targets: NDArray[np.int64]
    """Rows of the output, one per position."""


def read_rows(
    blobs: Blobs,
    layout: ColumnLayout,
    rows: NDArray[np.int64],
    selection: Selection | None = None,
    *,
    companion: Companions,
) -> NDArray[Any]:
    """Read rows of a column.

    Parameters
    ----------
    blobs : Blobs
        The store.
    layout : ColumnLayout
        The column.
    rows : ndarray of shape (n,), int64
        Row numbers in any order, repeats allowed.
    selection : tuple of slice, optional
        Which part of each row; only the chunks it touches are read.
    companion : callable
        Slot number, and whether to ask the disk again, to its companion, or ``None`` if that is
        missing.

    Returns
    -------
    ndarray of shape (n, *selected), stored dtype
        The values, in the order of `rows`.

    Raises
    ------
    DamagedRowsError
        If some rows cannot be read; confirmed through fresh file handles.
    OSError
        If the disk or network fails: that is not damage.
    """
    selection = selection or tuple(slice(0, n) for n in layout.shape)
    shape = tuple(s.stop - s.start for s in selection)
    unique, inverse = np.unique(rows, return_inverse=True)
    in_order = len(unique) == len(rows) and bool(np.all(inverse[1:] > inverse[:-1]))
    # Repeats are read once and copied; otherwise every row goes straight to its place.
    distinct = len(unique) == len(rows)
    targets = np.argsort(inverse) if distinct and not in_order else np.arange(len(unique))
    out = np.empty((len(unique), *shape), layout.dtype)
    tasks = _tasks(layout, unique, targets)
    damage: dict[int, tuple[frozenset[int], str]] = {}

    def read(task: _SlotTask) -> None:
        bad = _read_slot(blobs, layout, task, selection, out, companion(task.slot, False))
        if bad:
            time.sleep(CONFIRM_AFTER_S)
            bad = _read_slot(blobs, layout, task, selection, out, companion(task.slot, True))
        if bad:
            damage[task.slot] = (frozenset(bad), next(iter(bad.values())))

    _for_each(read, tasks)
    if damage:
        raise DamagedRowsError(damage)
    return out if distinct else out[inverse]


def _for_each(work: Callable[[_SlotTask], None], tasks: Sequence[_SlotTask]) -> None:
    if len(tasks) <= 1:
        for task in tasks:
            work(task)
        return
    # Pools are cheap beside a slot, and one per call cannot deadlock under dask's own threads.
    with ThreadPoolExecutor(min(len(tasks), available_cpus() + 1)) as pool:
        for _ in pool.map(work, tasks):
            pass


def _tasks(
    layout: ColumnLayout, unique: NDArray[np.int64], targets: NDArray[np.int64]
) -> list[_SlotTask]:
    slots, positions = np.divmod(unique, layout.rows_per_slot)
    cuts = np.flatnonzero(np.diff(slots)) + 1
    starts = [0, *cuts.tolist()] if len(unique) else []
    stops = [*cuts.tolist(), len(unique)]
    return [
        _SlotTask(int(slots[a]), positions[a:b], targets[a:b])
        for a, b in zip(starts, stops, strict=False)
    ]


def _read_slot(
    blobs: Blobs,
    layout: ColumnLayout,
    task: _SlotTask,
    selection: Selection,
    out: NDArray[Any],
    companion: Companion | None,
) -> dict[int, str]:
    """Read the wanted rows of one slot into the output; returns bad positions with reasons."""
    path = layout.slot_name(_layout.ACTIVATIONS, task.slot)
    blocks = np.unique(task.positions // layout.chunk_rows)
    pieces = _pieces(layout, selection)
    try:
        shard = _Shard(blobs, path, layout, companion)
        straight = not layout.compressed and pieces[0].whole
        shard.prepare(0 if straight else len(blocks) * len(pieces))
    except _BadChunkError as err:
        return {int(p): str(err) for p in task.positions}
    except FileNotFoundError:
        return {int(p): "its file is missing" for p in task.positions}
    wanted = [
        _Wanted(
            block, task.positions[a:b] - block * layout.chunk_rows, _as_slice(task.targets[a:b])
        )
        for block in blocks.tolist()
        for a, b in [np.searchsorted(task.positions, _block_bounds(layout, block))]
    ]
    if straight:
        in_place, wanted = _split(wanted, layout.chunk_rows)
        bad = shard.read_in_place(in_place, out)
    else:
        bad = {}
    for block in wanted:
        try:
            shard.copy_chunks(block, pieces, out)
        except _BadChunkError as err:
            bad[block.number] = str(err)
    return {
        int(p): bad[int(p) // layout.chunk_rows]
        for p in task.positions
        if int(p) // layout.chunk_rows in bad
    }


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The rows of one row block of inner chunks that are wanted."""

    number: int
    positions: NDArray[np.int64]
    """Rows within the block."""
    targets: slice | NDArray[np.int64]
    """Rows of the output, one per position."""

    def is_whole(self, chunk_rows: int) -> bool:
        return len(self.positions) == chunk_rows and isinstance(self.targets, slice)


def _block_bounds(layout: ColumnLayout, block: int) -> list[int]:
    return [block * layout.chunk_rows, (block + 1) * layout.chunk_rows]


def _split(wanted: list[_Wanted], chunk_rows: int) -> tuple[list[_Wanted], list[_Wanted]]:
    whole = [block for block in wanted if block.is_whole(chunk_rows)]
    return whole, [block for block in wanted if not block.is_whole(chunk_rows)]


@dataclass(frozen=True, slots=True)
class _Piece:
    """One inner chunk along the axes of a row, and its overlap with the selection."""

    number: tuple[int, ...]
    inside: Selection
    """The overlap, in the chunk."""
    outside: Selection
    """The overlap, in the output."""
    whole: bool
    """Whether the chunk holds exactly the whole selected row."""


def _pieces(layout: ColumnLayout, selection: Selection) -> list[_Piece]:
    per_axis = []
    for size, wanted in zip(layout.chunk_shape, selection, strict=True):
        overlaps = []
        for number in range(wanted.start // size, -(-wanted.stop // size)):
            low, high = max(wanted.start, number * size), min(wanted.stop, (number + 1) * size)
            if low < high:
                inside = slice(low - number * size, high - number * size)
                overlaps.append((number, inside, slice(low - wanted.start, high - wanted.start)))
        per_axis.append(overlaps)
    whole = layout.chunk_shape == layout.shape and all(
        wanted == slice(0, n) for wanted, n in zip(selection, layout.shape, strict=True)
    )
    return [
        _Piece(tuple(p[0] for p in parts), tuple(p[1] for p in parts),
               tuple(p[2] for p in parts), whole)
        for parts in itertools.product(*per_axis)
    ]  # fmt: skip


class _Shard:
    """One slot's file: its index, and its inner chunks one at a time."""

    def __init__(
        self, blobs: Blobs, path: str, layout: ColumnLayout, companion: Companion | None
    ) -> None:
        self._blobs, self._path, self._layout = blobs, path, layout
        self._nbytes = blobs.nbytes(path)
        if companion is not None and self._nbytes != companion.nbytes:
            raise _BadChunkError(
                f"its file has {self._nbytes} bytes where {companion.nbytes} were written"
            )
        self._chunk_shape = (layout.chunk_rows, *layout.chunk_shape)
        self._grid = layout.n_chunks
        self._index_nbytes = 16 * int(np.prod(self._grid)) + 4
        if self._nbytes < self._index_nbytes:
            raise _BadChunkError("its file is cut short")
        self._end = self._nbytes - self._index_nbytes
        plain = int(np.prod(self._chunk_shape)) * np.dtype(self._dtype).itemsize
        self._max_nbytes = plain + plain // 128 + 1024  # what does not compress grows a little
        self._whole: NDArray[np.uint8] | None = None
        self._index: NDArray[np.uint64] | None = None

    def prepare(self, n_wanted: int) -> None:
        """Read the index, and the rest too where most of it is wanted."""
        n_chunks = int(np.prod(self._grid))
        if n_wanted >= READ_WHOLE * n_chunks and self._nbytes <= MAX_WHOLE_NBYTES:
            self._whole = self._fetch(0, self._nbytes)
            raw = self._whole[-self._index_nbytes :]
        else:
            raw = self._fetch(self._nbytes - self._index_nbytes, self._index_nbytes)
        if crc32c(raw[:-4]) != raw[-4:].tobytes():
            raise _BadChunkError("the index of its file fails its checksum")
        # Copied, because the scratch memory is used again for the chunks.
        self._index = raw[:-4].copy().view("<u8").reshape(*self._grid, 2)

    def copy_chunks(self, block: _Wanted, pieces: Sequence[_Piece], out: NDArray[Any]) -> None:
        """Decode the chunks of one row block and copy the wanted part of them to the output."""
        for piece in pieces:
            payload = self._payload((block.number, *piece.number))
            if piece.whole and self._layout.compressed and block.is_whole(self._layout.chunk_rows):
                self._decode_into(payload, out[block.targets])
                continue
            chunk = self._decode(payload)
            out[(block.targets, *piece.outside)] = chunk[
                (_as_slice(block.positions), *piece.inside)
            ]

    def read_in_place(self, blocks: Sequence[_Wanted], out: NDArray[Any]) -> dict[int, str]:
        """Read uncompressed blocks straight to their places; returns bad blocks with reasons."""
        bad: dict[int, str] = {}
        runs: list[tuple[int, list[NDArray[np.uint8]]]] = []
        checks: list[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]] = []
        end = -1
        for block in blocks:
            try:
                offset, nbytes = self._place((block.number,) + (0,) * len(self._layout.shape))
                flat = out[block.targets].reshape(-1).view(np.uint8)
                if nbytes != flat.nbytes + 4:
                    raise _BadChunkError("a chunk that holds it has another size")
            except _BadChunkError as err:
                bad[block.number] = str(err)
                continue
            crc = np.zeros(4, np.uint8)
            if offset != end:
                runs.append((offset, []))
            runs[-1][1].extend((flat, crc))
            checks.append((block.number, flat, crc))
            end = offset + nbytes
        for offset, parts in runs:
            self._blobs.get_into(self._path, offset, *(part.data for part in parts))
        for number, flat, crc in checks:  # a file cut short fails here too
            if crc32c(flat) != crc.tobytes():
                bad[number] = "a chunk that holds it fails its checksum"
        return bad

    def _place(self, number: tuple[int, ...]) -> tuple[int, int]:
        assert self._index is not None
        offset, nbytes = (int(n) for n in self._index[number])
        if offset == ABSENT:
            raise _BadChunkError("a chunk that should hold it is absent")
        if not 4 <= nbytes <= self._max_nbytes or offset + nbytes > self._end:
            raise _BadChunkError("the index of its file points outside of it")
        return offset, nbytes

    def _payload(self, number: tuple[int, ...]) -> NDArray[np.uint8]:
        offset, nbytes = self._place(number)
        if self._whole is not None:
            data = self._whole[offset : offset + nbytes]
        else:
            data = self._fetch(offset, nbytes)
        if crc32c(data[:-4]) != data[-4:].tobytes():
            raise _BadChunkError("a chunk that holds it fails its checksum")
        return data[:-4]

    def _decode_into(self, payload: NDArray[np.uint8], out: NDArray[Any]) -> None:
        if not self._layout.compressed:
            if len(payload) != out.nbytes:
                raise _BadChunkError("a chunk that holds it has another size")
            out.reshape(-1)[:] = np.frombuffer(payload, self._dtype)
            return
        try:
            decode_exactly(payload, out.reshape(-1).view(np.uint8))
        except ValueError as err:
            raise _BadChunkError("a chunk that holds it cannot be decompressed") from err

    def _decode(self, payload: NDArray[np.uint8]) -> NDArray[Any]:
        if not self._layout.compressed:
            flat = np.frombuffer(payload, self._dtype)
        else:
            flat = np.empty(int(np.prod(self._chunk_shape)), self._dtype)
            self._decode_into(payload, flat)
        if flat.size != int(np.prod(self._chunk_shape)):
            raise _BadChunkError("a chunk that holds it has another size")
        return flat.reshape(self._chunk_shape)

    @property
    def _dtype(self) -> str:
        return "<f2" if self._layout.dtype == "float16" else "<f4"

    def _fetch(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        data = _scratch_memory(nbytes)
        if self._blobs.get_into(self._path, start, data.data) != nbytes:
            raise _BadChunkError("its file is cut short")
        return data


def _scratch_memory(nbytes: int) -> NDArray[np.uint8]:
    # Fresh memory costs a page fault per 4 KiB, about as much as reading it from the cache.
    held: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if held is None or len(held) < nbytes:
        held = np.empty(nbytes + nbytes // 8, np.uint8)
        _scratch.memory = held
    return held[:nbytes]


def _as_slice(numbers: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    consecutive = len(numbers) and bool(np.all(np.diff(numbers) == 1))
    return slice(int(numbers[0]), int(numbers[-1]) + 1) if consecutive else numbers
