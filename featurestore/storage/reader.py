"""Reading: row numbers to values, through checksums, on all processors.

Slots are decoded here rather than by a Zarr library, because a reader of this project has to know
*which* rows are damaged, and because it is faster (``benchmarks/README.md``). The bytes are plain
Zarr shards: inner chunks of ``bytes[, zstd], crc32c``, and an index at the end.
"""

from __future__ import annotations

import itertools
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featurestore.options import available_cpus
from featurestore.storage import layout as _layout
from featurestore.storage.shard_file import (
    BadChunkError,
    ChunkPart,
    Selection,
    ShardFile,
    WantedRows,
    as_slice,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.storage.blob import Blobs
    from featurestore.storage.layout import ColumnLayout
    from featurestore.storage.slots import Companion

    Companions: TypeAlias = Callable[[int, bool], Companion | None]

CONFIRM_AFTER_S = 0.05  # an NFS client may have cached that a file is not there


class DamagedRowsError(Exception):
    """Some rows cannot be read; carries slot number to (positions, reason)."""

    def __init__(self, damage: Mapping[int, tuple[frozenset[int], str]]) -> None:
        super().__init__(damage)
        self.damage = dict(damage)


class RowsMovedError(DamagedRowsError):
    """Some rows were compacted or dropped meanwhile; look them up again."""


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
    binding: Callable[[int], bytes],
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
    binding : callable
        Slot number to what its shard must carry, as `slots.bind` returns it.

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
        bad = _read_slot(
            blobs, layout, task, selection, out, companion(task.slot, False), binding(task.slot)
        )
        if bad:
            time.sleep(CONFIRM_AFTER_S)
            bad = _read_slot(
                blobs, layout, task, selection, out, companion(task.slot, True), binding(task.slot)
            )
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
    binding: bytes,
) -> dict[int, str]:
    """Read the wanted rows of one slot into the output; returns bad positions with reasons."""
    path = layout.slot_name(_layout.ACTIVATIONS, task.slot)
    try:
        bad = _read_blocks(
            ShardFile(blobs, path, layout, companion, binding), layout, task, selection, out
        )
    except BadChunkError as err:
        return {int(p): str(err) for p in task.positions}
    except FileNotFoundError:
        return {int(p): "its file is missing" for p in task.positions}
    return {
        int(p): bad[int(p) // layout.chunk_rows]
        for p in task.positions
        if int(p) // layout.chunk_rows in bad
    }


def _read_blocks(
    shard: ShardFile, layout: ColumnLayout, task: _SlotTask, selection: Selection, out: NDArray[Any]
) -> dict[int, str]:
    """Read row blocks of one slot into the output; returns bad blocks with reasons."""
    blocks = np.unique(task.positions // layout.chunk_rows)
    pieces = _pieces(layout, selection)
    straight = not layout.compressed and pieces[0].whole
    shard.prepare(0 if straight else len(blocks) * len(pieces))
    wanted = [
        WantedRows(
            block, task.positions[a:b] - block * layout.chunk_rows, as_slice(task.targets[a:b])
        )
        for block in blocks.tolist()
        for a, b in [np.searchsorted(task.positions, _block_bounds(layout, block))]
    ]
    bad: dict[int, str] = {}
    if straight:
        in_place, wanted = _split(wanted, layout.chunk_rows)
        bad = shard.read_in_place(in_place, out)
    for block in wanted:
        try:
            shard.copy_chunks(block, pieces, out)
        except BadChunkError as err:
            bad[block.number] = str(err)
    if not shard.is_still_there():
        raise BadChunkError("its file was replaced while it was read")
    return bad


def _block_bounds(layout: ColumnLayout, block: int) -> list[int]:
    return [block * layout.chunk_rows, (block + 1) * layout.chunk_rows]


def _split(wanted: list[WantedRows], chunk_rows: int) -> tuple[list[WantedRows], list[WantedRows]]:
    whole = [block for block in wanted if block.is_whole(chunk_rows)]
    return whole, [block for block in wanted if not block.is_whole(chunk_rows)]


def _pieces(layout: ColumnLayout, selection: Selection) -> list[ChunkPart]:
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
        ChunkPart(tuple(p[0] for p in parts), tuple(p[1] for p in parts),
               tuple(p[2] for p in parts), whole)
        for parts in itertools.product(*per_axis)
    ]  # fmt: skip
