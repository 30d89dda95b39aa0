"""Writing one shard: rows in memory to the bytes of a slot, copied once on the way.

A Zarr library would copy the rows into its own chunks, join these to one string and hand that on;
here every inner chunk is gathered straight from the outputs of the network, and the pieces are
written as they are.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import google_crc32c
import numcodecs
import numpy as np

from featurestore.options import available_cpus
from featurestore.storage.metadata import ZSTD_LEVEL

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featurestore.storage.layout import ColumnLayout

Buffer: TypeAlias = "bytes | memoryview"

ABSENT = 2**64 - 1
"""Offset and size, in the index, of an inner chunk that holds no row."""


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One inner chunk to be written."""

    number: tuple[int, ...]
    first: int
    """Its first row, in the slot."""
    inside: tuple[slice, ...]
    """The part of the chunk that holds values; the rest is padding."""
    outside: tuple[slice, ...]
    """The part of a row that goes there."""


def encode_shard(layout: ColumnLayout, parts: Sequence[NDArray[Any]]) -> list[Buffer]:
    """Encode rows as the one shard of a slot.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    parts : sequence of ndarray of shape (n_i, *shape), stored dtype
        The rows in order; 1 to `rows_per_slot` altogether.

    Returns
    -------
    list of bytes-like
        A Zarr v3 shard, in pieces to be written one after the other. Inner chunks that hold rows
        are there even if all their values are zero, so that dead units and lost data never look
        alike; the others are absent.
    """
    n_rows = sum(len(part) for part in parts)
    chunks = _chunks(layout, n_rows)
    # Half of the processors: the network runs on the others meanwhile.
    n_workers = min(max(1, available_cpus() // 2), len(chunks))
    if n_workers > 1:
        with ThreadPoolExecutor(n_workers) as pool:
            encoded = list(pool.map(lambda chunk: _encode(layout, chunk, parts), chunks))
    else:
        encoded = [_encode(layout, chunk, parts) for chunk in chunks]
    index = np.full((*layout.n_chunks, 2), ABSENT, "<u8")
    pieces: list[Buffer] = []
    offset = 0
    for chunk, data in zip(chunks, encoded, strict=True):
        nbytes = len(data) + 4
        index[chunk.number] = offset, nbytes
        offset += nbytes
        pieces += (data, crc32c(data))
    table = index.tobytes()
    return [*pieces, table, crc32c(table)]


def crc32c(data: Buffer | NDArray[np.uint8]) -> bytes:
    """Return a checksum as Zarr's ``crc32c`` codec appends it.

    Parameters
    ----------
    data : bytes-like
        What is protected.

    Returns
    -------
    bytes
        4 bytes, little-endian.
    """
    # The library takes only what cannot change under it: bytes, or arrays.
    held = np.frombuffer(data, np.uint8) if isinstance(data, memoryview) else data
    return int(google_crc32c.value(held)).to_bytes(4, "little")


def _chunks(layout: ColumnLayout, n_rows: int) -> list[_Chunk]:
    """List the inner chunks that hold rows, row blocks first: they are read together."""
    axes = []
    for n, size in zip(layout.shape, layout.chunk_shape, strict=True):
        starts = range(0, n, size)
        axes.append(
            [(k, slice(0, min(size, n - a)), slice(a, min(a + size, n)))
             for k, a in enumerate(starts)]
        )  # fmt: skip
    n_blocks = math.ceil(n_rows / layout.chunk_rows)
    return [
        _Chunk(
            (block, *(axis[0] for axis in piece)),
            block * layout.chunk_rows,
            tuple(axis[1] for axis in piece),
            tuple(axis[2] for axis in piece),
        )
        for block in range(n_blocks)
        for piece in itertools.product(*axes)
    ]


def _encode(layout: ColumnLayout, chunk: _Chunk, parts: Sequence[NDArray[Any]]) -> Buffer:
    values = np.zeros((layout.chunk_rows, *layout.chunk_shape), layout.dtype)
    start = 0  # first row of the part, in the slot
    for part in parts:
        low = max(chunk.first, start)
        high = min(chunk.first + layout.chunk_rows, start + len(part))
        if low < high:
            into = (slice(low - chunk.first, high - chunk.first), *chunk.inside)
            values[into] = part[(slice(low - start, high - start), *chunk.outside)]
        start += len(part)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    if layout.compressed:
        return bytes(numcodecs.Zstd(level=ZSTD_LEVEL).encode(little))
    return little.reshape(-1).view(np.uint8).data
