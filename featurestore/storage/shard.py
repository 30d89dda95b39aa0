"""Writing one shard: rows in memory to the bytes of a slot, copied once on the way.

A Zarr library would copy the rows into its own chunks, join these to one string and hand that on;
here every inner chunk is gathered straight from the outputs of the network, and the pieces are
written as they are.
"""

from __future__ import annotations

import itertools
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
class _Piece:
    """One inner chunk along the axes of a row."""

    number: tuple[int, ...]
    inside: tuple[slice, ...]
    """The part of the chunk that holds values; the rest is padding."""
    outside: tuple[slice, ...]
    """The part of a row that goes there."""


class ShardEncoder:
    """Encodes the rows of a slot as they come, block by block, as a Zarr v3 shard.

    Inner chunks that hold rows are there even if all their values are zero, so that dead units
    and lost data never look alike; the others are absent.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    """

    def __init__(self, layout: ColumnLayout) -> None:
        self._layout = layout
        self._pieces = _pieces(layout)
        self._pending: list[NDArray[Any]] = []
        self._encoded: list[tuple[tuple[int, ...], Buffer]] = []
        self._n_blocks = 0
        self.nbytes = 0
        """What is held [bytes]."""

    def add(self, rows: NDArray[Any]) -> None:
        """Take rows; whole blocks of `chunk_rows` are encoded at once.

        Parameters
        ----------
        rows : ndarray of shape (n, *shape), stored dtype
            Not to be changed afterwards.
        """
        while len(rows):
            room = self._layout.chunk_rows - sum(len(part) for part in self._pending)
            self._pending.append(rows[:room])
            self.nbytes += rows[:room].nbytes
            if len(rows) >= room:
                self._encode_block()
            rows = rows[room:]

    def finish(self) -> list[Buffer]:
        """Return the shard.

        Returns
        -------
        list of bytes-like
            To be written one after the other.
        """
        if self._pending:
            self._encode_block()
        index = np.full((*self._layout.n_chunks, 2), ABSENT, "<u8")
        shard: list[Buffer] = []
        offset = 0
        for number, data in self._encoded:
            nbytes = len(data) + 4
            index[number] = offset, nbytes
            offset += nbytes
            shard += (data, crc32c(data))
        table = index.tobytes()
        return [*shard, table, crc32c(table)]

    def _encode_block(self) -> None:
        parts, block = self._pending, self._n_blocks
        # Half of the processors: the network runs on the others meanwhile.
        n_workers = min(max(1, available_cpus() // 2), len(self._pieces))
        if n_workers > 1:
            with ThreadPoolExecutor(n_workers) as pool:
                encoded = list(pool.map(lambda p: _encode(self._layout, p, parts), self._pieces))
        else:
            encoded = [_encode(self._layout, piece, parts) for piece in self._pieces]
        for piece, data in zip(self._pieces, encoded, strict=True):
            self._encoded.append(((block, *piece.number), data))
        self.nbytes += sum(len(data) for data in encoded) - sum(part.nbytes for part in parts)
        self._pending, self._n_blocks = [], block + 1


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


def with_crc(payload: bytes) -> bytes:
    """Append a CRC-32C, as Zarr's codec of that name does.

    Parameters
    ----------
    payload : bytes
        What is protected.

    Returns
    -------
    bytes
        The payload and 4 bytes, little-endian.
    """
    return payload + crc32c(payload)


def without_crc(data: bytes, nbytes: int) -> bytes | None:
    """Check and remove a CRC-32C.

    Parameters
    ----------
    data : bytes
        What was stored.
    nbytes : int
        Size of the payload [bytes].

    Returns
    -------
    bytes or None
        The payload; ``None`` if the size or the checksum does not fit.
    """
    if len(data) != nbytes + 4:
        return None
    payload = data[:-4]
    return payload if with_crc(payload) == data else None


def _pieces(layout: ColumnLayout) -> list[_Piece]:
    axes = []
    for n, size in zip(layout.shape, layout.chunk_shape, strict=True):
        axes.append(
            [
                (number, slice(0, min(size, n - start)), slice(start, min(start + size, n)))
                for number, start in enumerate(range(0, n, size))
            ]
        )
    return [
        _Piece(tuple(p[0] for p in parts), tuple(p[1] for p in parts), tuple(p[2] for p in parts))
        for parts in itertools.product(*axes)
    ]


def _encode(layout: ColumnLayout, piece: _Piece, parts: Sequence[NDArray[Any]]) -> Buffer:
    values = np.zeros((layout.chunk_rows, *layout.chunk_shape), layout.dtype)
    start = 0
    for part in parts:
        into = (slice(start, start + len(part)), *piece.inside)
        values[into] = part[(slice(None), *piece.outside)]
        start += len(part)
    little = values.astype(values.dtype.newbyteorder("<"), copy=False)
    if layout.compressed:
        return bytes(numcodecs.Zstd(level=ZSTD_LEVEL).encode(little))
    return little.reshape(-1).view(np.uint8).data
