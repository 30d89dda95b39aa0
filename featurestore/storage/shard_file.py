"""One shard on the disk: its index, what ties it to its slot, and its chunks one at a time."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from featurestore.storage import layout as _layout
from featurestore.storage.frames import decode_exactly
from featurestore.storage.shard import ABSENT, crc32c

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featurestore.storage.blob import Blobs
    from featurestore.storage.layout import ColumnLayout
    from featurestore.storage.slots import Companion

Selection: TypeAlias = tuple[slice, ...]
"""Which part of each row: one slice with step 1 per axis."""

READ_WHOLE = 0.5  # a shard of which this share is wanted is read in one piece
MAX_WHOLE_NBYTES = 2**28  # unless it is far larger than a slot is meant to be

_scratch = threading.local()


class BadChunkError(Exception):
    """An inner chunk, or what leads to it, is not what was written."""


@dataclass(frozen=True, slots=True)
class WantedRows:
    """The rows of one row block of inner chunks that are wanted."""

    number: int
    positions: NDArray[np.int64]
    """Rows within the block."""
    targets: slice | NDArray[np.int64]
    """Rows of the output, one per position."""

    def is_whole(self, chunk_rows: int) -> bool:
        """Say whether a whole chunk goes to one place.

        Parameters
        ----------
        chunk_rows : int
            Rows per chunk.

        Returns
        -------
        bool
            If so, it is decoded without a copy.
        """
        return len(self.positions) == chunk_rows and isinstance(self.targets, slice)


@dataclass(frozen=True, slots=True)
class ChunkPart:
    """One inner chunk along the axes of a row, and its overlap with the selection."""

    number: tuple[int, ...]
    inside: Selection
    """The overlap, in the chunk."""
    outside: Selection
    """The overlap, in the output."""
    whole: bool
    """Whether the chunk holds exactly the whole selected row."""


class ShardFile:
    """One slot's file: its index, and its inner chunks one at a time.

    Parameters
    ----------
    blobs : Blobs
        The store.
    path : str
        Which file.
    layout : ColumnLayout
        The column.
    companion : Companion, optional
        Says how large the file must be.
    binding : bytes
        What the file must carry, as `slots.bind` returns it.

    Raises
    ------
    BadChunkError
        If the file has another size.
    """

    def __init__(
        self,
        blobs: Blobs,
        path: str,
        layout: ColumnLayout,
        companion: Companion | None,
        binding: bytes,
    ) -> None:
        self._blobs, self._path, self._layout = blobs, path, layout
        self._binding = binding
        self._nbytes = blobs.nbytes(path)
        if companion is not None and self._nbytes != companion.nbytes:
            raise BadChunkError(
                f"its file has {self._nbytes} bytes where {companion.nbytes} were written"
            )
        self._chunk_shape = (layout.chunk_rows, *layout.chunk_shape)
        self._grid = layout.n_chunks
        self._index_nbytes = 16 * int(np.prod(self._grid)) + 4
        self._end = self._nbytes - self._index_nbytes - _layout.BINDING_NBYTES
        if self._end < 0:
            raise BadChunkError("its file is cut short")
        plain = int(np.prod(self._chunk_shape)) * np.dtype(self._dtype).itemsize
        self._max_nbytes = plain + plain // 128 + 1024  # what does not compress grows a little
        self._whole: NDArray[np.uint8] | None = None
        self._index: NDArray[np.uint64] | None = None

    def prepare(self, n_wanted: int) -> None:
        """Read the index, and the rest too where most of it is wanted.

        Parameters
        ----------
        n_wanted : int
            How many chunks will be asked for.

        Raises
        ------
        BadChunkError
            If the index is damaged, or the file belongs to other rows.
        """
        n_chunks = int(np.prod(self._grid))
        if n_wanted >= READ_WHOLE * n_chunks and self._nbytes <= MAX_WHOLE_NBYTES:
            self._whole = self._fetch(0, self._nbytes)
            raw = self._whole[self._end :]
        else:
            raw = self._fetch(self._end, self._nbytes - self._end)
        bound, raw = raw[: _layout.BINDING_NBYTES].tobytes(), raw[_layout.BINDING_NBYTES :]
        if crc32c(raw[:-4]) != raw[-4:].tobytes():
            raise BadChunkError("the index of its file fails its checksum")
        if bound != self._binding:
            raise BadChunkError("its file belongs to other rows")
        # Copied, because the scratch memory is used again for the chunks.
        self._index = raw[:-4].copy().view("<u8").reshape(*self._grid, 2)

    def is_still_there(self) -> bool:
        """Look whether chunks that were read one by one came from one file.

        Returns
        -------
        bool
            Whether the file is the one whose index was read.
        """
        if self._whole is not None:
            return True
        bound = self._fetch(self._end, _layout.BINDING_NBYTES).tobytes()
        return self._blobs.nbytes(self._path) == self._nbytes and bound == self._binding

    def copy_chunks(
        self, block: WantedRows, pieces: Sequence[ChunkPart], out: NDArray[Any]
    ) -> None:
        """Decode the chunks of one row block and copy the wanted part of them to the output."""
        for piece in pieces:
            payload = self._payload((block.number, *piece.number))
            if piece.whole and self._layout.compressed and block.is_whole(self._layout.chunk_rows):
                self._decode_into(payload, out[block.targets])
                continue
            chunk = self._decode(payload)
            out[(block.targets, *piece.outside)] = chunk[(as_slice(block.positions), *piece.inside)]

    def read_in_place(self, blocks: Sequence[WantedRows], out: NDArray[Any]) -> dict[int, str]:
        """Read uncompressed blocks straight to their places.

        Parameters
        ----------
        blocks : sequence of WantedRows
            Whole ones.
        out : ndarray of shape (n, *shape)
            Filled.

        Returns
        -------
        dict of str
            Number of each bad block, and why.
        """
        bad: dict[int, str] = {}
        runs: list[tuple[int, list[NDArray[np.uint8]]]] = []
        checks: list[tuple[int, NDArray[np.uint8], NDArray[np.uint8]]] = []
        end = -1
        for block in blocks:
            try:
                offset, nbytes = self._place((block.number,) + (0,) * len(self._layout.shape))
                flat = out[block.targets].reshape(-1).view(np.uint8)
                if nbytes != flat.nbytes + 4:
                    raise BadChunkError("a chunk that holds it has another size")
            except BadChunkError as err:
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
            raise BadChunkError("a chunk that should hold it is absent")
        if not 4 <= nbytes <= self._max_nbytes or offset + nbytes > self._end:
            raise BadChunkError("the index of its file points outside of it")
        return offset, nbytes

    def _payload(self, number: tuple[int, ...]) -> NDArray[np.uint8]:
        offset, nbytes = self._place(number)
        if self._whole is not None:
            data = self._whole[offset : offset + nbytes]
        else:
            data = self._fetch(offset, nbytes)
        if crc32c(data[:-4]) != data[-4:].tobytes():
            raise BadChunkError("a chunk that holds it fails its checksum")
        return data[:-4]

    def _decode_into(self, payload: NDArray[np.uint8], out: NDArray[Any]) -> None:
        if not self._layout.compressed:
            if len(payload) != out.nbytes:
                raise BadChunkError("a chunk that holds it has another size")
            out.reshape(-1)[:] = np.frombuffer(payload, self._dtype)
            return
        try:
            decode_exactly(payload, out.reshape(-1).view(np.uint8))
        except ValueError as err:
            raise BadChunkError("a chunk that holds it cannot be decompressed") from err

    def _decode(self, payload: NDArray[np.uint8]) -> NDArray[Any]:
        if not self._layout.compressed:
            flat = np.frombuffer(payload, self._dtype)
        else:
            flat = np.empty(int(np.prod(self._chunk_shape)), self._dtype)
            self._decode_into(payload, flat)
        if flat.size != int(np.prod(self._chunk_shape)):
            raise BadChunkError("a chunk that holds it has another size")
        return flat.reshape(self._chunk_shape)

    @property
    def _dtype(self) -> str:
        return "<f2" if self._layout.dtype == "float16" else "<f4"

    def _fetch(self, start: int, nbytes: int) -> NDArray[np.uint8]:
        data = _scratch_memory(nbytes)
        if self._blobs.get_into(self._path, start, data.data) != nbytes:
            raise BadChunkError("its file is cut short")
        return data


def _scratch_memory(nbytes: int) -> NDArray[np.uint8]:
    # Fresh memory costs a page fault per 4 KiB, about as much as reading it from the cache.
    held: NDArray[np.uint8] | None = getattr(_scratch, "memory", None)
    if held is None or len(held) < nbytes:
        held = np.empty(nbytes + nbytes // 8, np.uint8)
        _scratch.memory = held
    return held[:nbytes]


def as_slice(numbers: NDArray[np.int64]) -> slice | NDArray[np.int64]:
    """Write consecutive numbers as a slice, which indexes without a copy.

    Parameters
    ----------
    numbers : ndarray of shape (n,), int64
        Positions.

    Returns
    -------
    slice or ndarray
        The same positions.
    """
    consecutive = len(numbers) and bool(np.all(np.diff(numbers) == 1))
    return slice(int(numbers[0]), int(numbers[-1]) + 1) if consecutive else numbers
