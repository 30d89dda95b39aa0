"""Writing: rows become one immutable slot, published by its key record.

A commit is: encode the rows to one shard in memory; take the next free slot number by creating
its shard; create the companions; create the key record, last. A row exists if, and only if, a key
record names it. A writer that is killed anywhere leaves at most files that nobody reads.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numcodecs
import numpy as np
import xxhash

from featurestore.errors import InvalidInputError
from featurestore.storage import layout as _layout
from featurestore.storage.blob import removing_on_failure
from featurestore.storage.metadata import ZSTD_LEVEL
from featurestore.storage.row_stats import row_statistics, statistics_companion
from featurestore.storage.shard import ShardEncoder, with_crc, without_crc
from featurestore.typing import DIGEST_NBYTES

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featurestore.storage.blob import Blobs
    from featurestore.storage.layout import ColumnLayout

MAX_SLOT_DIGITS = 12  # row numbers are 64-bit integers
NO_RUN = "0" * 32
"""Run id of a slot whose companion was lost."""
SAMPLE_NBYTES = 2**20  # enough to see whether values compress


@dataclass(frozen=True, slots=True)
class Companion:
    """What is kept beside a slot: who computed it, and what its shard must look like."""

    run: str
    """The run's id, 32 hex digits."""
    nbytes: int
    """Size of the shard [bytes]."""
    checksum: int
    """xxh3_64 of the shard."""
    stats_checksum: int
    """xxh3_64 of the row statistics, as stored."""
    binding: bytes
    """What ties the slot's files together, as `bind` returns it."""

    def to_bytes(self) -> bytes:
        """Return the companion as its chunk is stored.

        Returns
        -------
        bytes
            Six little-endian unsigned 64-bit integers, the last one the first half of the
            binding, and a CRC-32C.
        """
        run = int(self.run, 16)
        half = int.from_bytes(self.binding[:8], "little")
        facts = [
            run >> 64,
            run & (2**64 - 1),
            self.nbytes,
            self.checksum,
            self.stats_checksum,
            half,
        ]
        return with_crc(np.array(facts, "<u8").tobytes())

    @classmethod
    def from_bytes(cls, data: bytes, binding: bytes) -> Companion | None:
        """Read what `to_bytes` wrote.

        Parameters
        ----------
        data : bytes
            The stored chunk.
        binding : bytes
            Of the slot's key record.

        Returns
        -------
        Companion or None
            ``None`` if it is damaged, or belongs to another slot or other rows.
        """
        payload = without_crc(data, 8 * _layout.N_RUN_FIELDS)
        if payload is None:
            return None
        high, low, nbytes, checksum, stats, _ = (int(n) for n in np.frombuffer(payload, "<u8"))
        if payload[-8:] != binding[:8]:
            return None
        return cls(f"{(high << 64) | low:032x}", nbytes, checksum, stats, binding)


def bind(layout: ColumnLayout, slot: int, record: bytes) -> bytes:
    """Return what ties a slot's files to one another, to the slot and to the column.

    It stands in the shard and in the companion. Each file has checksums of its own; this shows that
    they are about the same rows, where files were swapped, copied or restored one by one.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    slot : int
        The slot's number.
    record : bytes
        The digests of the key record, without its checksum.

    Returns
    -------
    bytes
        xxh3_128, 16 bytes.
    """
    state = xxhash.xxh3_128(layout.key.encode("ascii"))
    state.update(slot.to_bytes(8, "little"))
    state.update(record)
    return state.digest()


def compresses(rows: NDArray[Any]) -> bool:
    """Say whether values shrink enough to be worth compressing.

    Parameters
    ----------
    rows : ndarray of shape (n, *shape)
        The first rows of a column.

    Returns
    -------
    bool
        Whether zstd shrinks a sample by `COMPRESSION_PAYS` or more.
    """
    values = np.ascontiguousarray(rows).reshape(-1)
    sample = values[: SAMPLE_NBYTES // values.itemsize].tobytes()
    shrunk = numcodecs.Zstd(level=ZSTD_LEVEL).encode(sample)
    return len(sample) >= _layout.COMPRESSION_PAYS * len(shrunk)


def key_record(layout: ColumnLayout, digests: NDArray[np.uint8] | None = None) -> bytes:
    """Return the key record of a slot.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    digests : ndarray of shape (n, 16), uint8, optional
        Which images the rows are of; with none it is a tombstone.

    Returns
    -------
    bytes
        One digest per row of the slot, zeros for empty rows, and a CRC-32C.
    """
    record = np.zeros((layout.rows_per_slot, DIGEST_NBYTES), np.uint8)
    if digests is not None:
        record[: len(digests)] = digests
    return with_crc(record.tobytes())


def read_key_record(blobs: Blobs, layout: ColumnLayout, slot: int) -> NDArray[np.uint8] | None:
    """Read what `key_record` wrote.

    Parameters
    ----------
    blobs : Blobs
        The store.
    layout : ColumnLayout
        The column.
    slot : int
        The slot's number.

    Returns
    -------
    ndarray of shape (rows_per_slot, 16), uint8, or None
        Zeros for empty rows; ``None`` if there is none, or it is damaged: then the slot counts as
        unpublished.
    """
    try:
        nbytes = layout.rows_per_slot * DIGEST_NBYTES
        data = blobs.get(layout.slot_name(_layout.IMAGE, slot), 0, nbytes + 5)  # one too many
    except FileNotFoundError:
        return None
    payload = without_crc(data, nbytes)
    if payload is None:
        return None
    return np.frombuffer(payload, np.uint8).reshape(-1, DIGEST_NBYTES)


def to_stored(rows: NDArray[np.float32], dtype: str) -> NDArray[Any]:
    """Convert activations to the stored dtype.

    Parameters
    ----------
    rows : ndarray, float32
        Activations.
    dtype : {"float32", "float16"}
        Stored dtype.

    Returns
    -------
    ndarray
        The same values, rounded to the dtype.

    Raises
    ------
    InvalidInputError
        If a finite value becomes infinite.
    """
    if dtype == "float32":
        return np.ascontiguousarray(rows, np.float32)
    with np.errstate(over="ignore"):
        stored = np.ascontiguousarray(rows, dtype)
    if np.any(np.isinf(stored) & np.isfinite(rows)):
        raise InvalidInputError(
            f"Some activations exceed the range of {dtype} (largest magnitude "
            f"{float(np.abs(rows[np.isfinite(rows)]).max()):.6g}, limit "
            f"{float(np.finfo(dtype).max):.6g}). Ask for dtype='float32'.",
            dtype=dtype,
        )
    return stored


class SlotBuilder:
    """Rows on their way to a slot of their own: encoded as they come, published at once.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    """

    def __init__(self, layout: ColumnLayout) -> None:
        self.layout = layout
        self.n_rows = 0
        self._encoder = ShardEncoder(layout)
        self._digests: list[NDArray[np.uint8]] = []
        self._stats: list[NDArray[np.float64]] = []

    @property
    def nbytes(self) -> int:
        """What is held [bytes]."""
        return self._encoder.nbytes

    @property
    def room(self) -> int:
        """How many rows still fit."""
        return self.layout.rows_per_slot - self.n_rows

    def add(self, digests: NDArray[np.uint8], rows: NDArray[np.float32]) -> None:
        """Take rows.

        Parameters
        ----------
        digests : ndarray of shape (n, 16), uint8
            Which images they are of.
        rows : ndarray of shape (n, *shape), float32
            Their activations, at most `room`; not to be changed afterwards.

        Raises
        ------
        InvalidInputError
            If a finite value exceeds the range of the stored dtype.
        """
        if rows.shape[1:] != self.layout.shape:
            raise ValueError(f"Rows of shape {rows.shape[1:]} do not fit {self.layout.shape}.")
        if len(rows) != len(digests) or len(rows) > self.room:
            raise ValueError(f"{len(rows)} rows, {len(digests)} digests and room for {self.room}.")
        if not digests.any(axis=1).all():
            raise ValueError("An all-zero digest marks an empty row and cannot name an image.")
        stored = to_stored(rows, self.layout.dtype)
        self._digests.append(digests)
        self._stats.append(row_statistics(stored))
        self._encoder.add(stored)
        self.n_rows += len(rows)

    def publish(self, blobs: Blobs, *, run: str, first_guess: int) -> int:
        """Write the rows and make them visible.

        Parameters
        ----------
        blobs : Blobs
            The store.
        run : str
            The run's id.
        first_guess : int
            A slot number that is probably free.

        Returns
        -------
        int
            The slot's number. When this returns, the rows survive a crash.
        """
        layout = self.layout
        *chunks, table, table_crc = self._encoder.finish()
        body = xxhash.xxh3_64()
        for piece in chunks:
            body.update(piece)
        row_stats = statistics_companion(layout, np.concatenate(self._stats))
        record = key_record(layout, np.concatenate(self._digests))
        slot = first_guess
        while True:
            binding = bind(layout, slot, record[:-4])
            shard = [*chunks, binding, table, table_crc]
            companion = Companion(
                run,
                sum(len(piece) for piece in shard),
                _finished(body, shard[-3:]),
                xxhash.xxh3_64_intdigest(row_stats),
                binding,
            ).to_bytes()
            if blobs.create(path := layout.slot_name(_layout.ACTIVATIONS, slot), *shard):
                # Companions of a number whose shard is ours are ours, or a sweeper's leftovers.
                with removing_on_failure(blobs, path):
                    blobs.replace(layout.slot_name(_layout.ROW_STATS, slot), row_stats)
                    blobs.replace(layout.slot_name(_layout.RUN, slot), companion)
                if blobs.create(layout.slot_name(_layout.IMAGE, slot), record):
                    return slot
            slot += 1  # taken, or swept while we were slow: the number is spent


def _finished(body: Any, rest: Sequence[Any]) -> int:
    state = body.copy()
    for piece in rest:
        state.update(piece)
    return int(state.intdigest())


def slot_numbers(names: Sequence[str]) -> list[int]:
    """Read slot numbers from the names of a listing.

    Parameters
    ----------
    names : sequence of str
        Such as ``"c.12.0"``.

    Returns
    -------
    list of int
        Of those that are slots, in the order given.
    """
    parts = (name.split(".") for name in names)
    numbers = (p[1] for p in parts if len(p) > 1 and p[0] == "c" and p[1].isdecimal())
    return [int(number) for number in numbers if len(number) <= MAX_SLOT_DIGITS]
