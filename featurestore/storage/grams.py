"""Distances between rows of a column, kept as immutable tiles that are found by content.

Images come in blocks: files of digests, numbered by create-if-absent. A tile holds the pairs of
one block with another, or with itself; it exists if, and only if, its file does. Which images a
tile is about is bound into it, so a tile in the wrong place is none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import xxhash

from featurestore.canonical import digest_of
from featurestore.storage.layout import gram_path, is_key
from featurestore.storage.shard import with_crc, without_crc
from featurestore.typing import DIGEST_NBYTES

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.storage.blob import Blobs

KERNEL = 1
"""Changes when the numbers of the kernel do."""
BLOCK_ROWS = 1024
"""Images per block: a tile of two blocks takes 8 MiB."""
MAX_NUMBER = 999_999_999
MAGIC = b"fs-gram1"
_HEADER_NBYTES = 8 + 3 * 8 + 16
_CHECKSUM_NBYTES = 8


@dataclass(frozen=True)
class GramTile:
    """What one file holds."""

    squares: NDArray[np.float64]
    """Squared euclidean distances, shape (n_a, n_b)."""
    pairs: NDArray[np.uint32]
    """Pairs that are too close for other distances to follow from these: shape (k, 2)."""
    near: NDArray[np.float64]
    """Their cosine and correlation distances: shape (k, 2)."""
    statistics: NDArray[np.float64]
    """Mean and centred sum of squares of the rows, shape (n_a, 2); of a block with itself only."""


def gram_key(feature: str) -> str:
    """Return the key under which distances between rows of a column are kept.

    Parameters
    ----------
    feature : str
        The feature key.

    Returns
    -------
    str
        32 hex digits.
    """
    return digest_of("gram", {"feature": feature, "kernel": KERNEL})


def gram_keys(blobs: Blobs) -> list[str]:
    """List the keys under which a store keeps distances.

    Parameters
    ----------
    blobs : Blobs
        The store.

    Returns
    -------
    list of str
        In no particular order.
    """
    return [key for key in blobs.folders("grams") if is_key(key)]


class GramFolder:
    """The blocks and tiles of one column.

    Parameters
    ----------
    blobs : Blobs
        The store.
    key : str
        From `gram_key`.
    """

    def __init__(self, blobs: Blobs, key: str) -> None:
        self._blobs = blobs
        self._base = gram_path(key)
        self.key = key
        self._blocks: dict[int, NDArray[np.uint8]] = {}

    def blocks(self) -> dict[int, NDArray[np.uint8]]:
        """Return the digests of every block.

        Returns
        -------
        dict of int to ndarray of shape (n, 16), uint8
            By number; damaged ones are left out, and with them their tiles.
        """
        numbers = self._numbers()
        for number in numbers - self._blocks.keys():
            digests = self._read_block(number)
            if digests is not None:
                self._blocks[number] = digests
        return {number: self._blocks[number] for number in sorted(numbers & self._blocks.keys())}

    def add_block(self, digests: NDArray[np.uint8]) -> int:
        """Begin a block.

        Parameters
        ----------
        digests : ndarray of shape (n, 16), uint8
            Distinct images, at most `BLOCK_ROWS`.

        Returns
        -------
        int
            Its number.
        """
        taken = self._numbers()
        number = 1 + max(taken, default=-1)
        if number > MAX_NUMBER:  # somebody's file has the last one
            number = next(n for n in range(len(taken) + 1) if n not in taken)
        data = with_crc(np.ascontiguousarray(digests).tobytes())
        while not self._blobs.create(f"{self._base}/blocks/{number}", data):
            number += 1
        self._blocks[number] = np.array(digests)
        return number

    def tiles(self) -> set[tuple[int, int]]:
        """List the tiles.

        Returns
        -------
        set of (int, int)
            Numbers of their blocks, the smaller first.
        """
        names = (info.name.split(".") for info in self._blobs.list(f"{self._base}/tiles"))
        pairs = (tuple(map(number_of, name)) for name in names)
        return {
            (p[0], p[1]) for p in pairs if len(p) == 2 and p[0] is not None and p[1] is not None
        }

    def read(self, a: int, b: int) -> GramTile | None:
        """Read a tile.

        Parameters
        ----------
        a, b : int
            Numbers of its blocks, the smaller first.

        Returns
        -------
        GramTile or None
            ``None`` if there is none, or it is damaged: distances can be computed again.
        """
        n_a, n_b = len(self._blocks[a]), len(self._blocks[b])
        most = _HEADER_NBYTES + 8 * n_a * n_b * 4 + 16 * n_a + _CHECKSUM_NBYTES
        try:
            data = self._blobs.get(self._tile_path(a, b), 0, most + 1)
        except FileNotFoundError:
            return None
        return _parse(data, self._binding(a, b), n_a, n_b, is_diagonal=a == b)

    def write(self, a: int, b: int, tile: GramTile) -> None:
        """Publish a tile, also in the place of a damaged one.

        Parameters
        ----------
        a, b : int
            Numbers of its blocks, the smaller first.
        tile : GramTile
            Its content; when this returns, it is durable.
        """
        parts = _spell(tile, self._binding(a, b))
        path = self._tile_path(a, b)
        if not self._blobs.create(path, *parts) and self.read(a, b) is None:
            self._blobs.replace(path, b"".join(parts))

    def discard_damaged(self) -> None:
        """Take all damaged tiles away, so that they are computed again; reads every tile."""
        blocks = self.blocks()
        for a, b in self.tiles():
            if a not in blocks or b not in blocks or self.read(a, b) is None:
                self._blobs.delete(self._tile_path(a, b))

    def remove_block(self, number: int) -> None:
        """Take a block and its tiles away.

        Parameters
        ----------
        number : int
            The block's number.
        """
        for a, b in self.tiles():
            if number in (a, b):
                self._blobs.delete(self._tile_path(a, b))
        self._blobs.delete(f"{self._base}/blocks/{number}")
        self._blocks.pop(number, None)

    def remove(self) -> int:
        """Take everything away.

        Returns
        -------
        int
            What it took on disk [bytes].
        """
        nbytes = 0
        for folder in ("tiles", "blocks"):
            for info in self._blobs.list(f"{self._base}/{folder}"):
                self._blobs.delete(f"{self._base}/{folder}/{info.name}")
                nbytes += info.nbytes
        self._blocks = {}
        return nbytes

    def nbytes(self) -> int:
        """Return what tiles and blocks take on disk.

        Returns
        -------
        int
            Sum of file sizes [bytes].
        """
        folders = (f"{self._base}/{folder}" for folder in ("tiles", "blocks"))
        return sum(info.nbytes for folder in folders for info in self._blobs.list(folder))

    def damaged(self) -> list[str]:
        """Read everything and compare it with its checksums.

        Returns
        -------
        list of str
            Paths of files that are not what was written.
        """
        blocks = self.blocks()
        folder = f"{self._base}/blocks"
        names = [info.name for info in self._blobs.list(folder)]
        bad = [f"{folder}/{name}" for name in names if number_of(name) not in blocks]
        for a, b in sorted(self.tiles()):
            if a in blocks and b in blocks and self.read(a, b) is None:
                bad.append(self._tile_path(a, b))
        return bad

    def _numbers(self) -> set[int]:
        names = (info.name for info in self._blobs.list(f"{self._base}/blocks"))
        return {number for name in names if (number := number_of(name)) is not None}

    def _tile_path(self, a: int, b: int) -> str:
        return f"{self._base}/tiles/{a}.{b}"

    def _binding(self, a: int, b: int) -> bytes:
        state = xxhash.xxh3_128(self.key.encode("ascii"))
        for number in (a, b):
            state.update(number.to_bytes(8, "little"))
            state.update(np.ascontiguousarray(self._blocks[number]).tobytes())
        return state.digest()

    def _read_block(self, number: int) -> NDArray[np.uint8] | None:
        try:
            data = self._blobs.get(
                f"{self._base}/blocks/{number}", 0, BLOCK_ROWS * DIGEST_NBYTES + 5
            )
        except FileNotFoundError:
            return None
        payload = without_crc(data, len(data) - 4)
        if not payload or len(payload) % DIGEST_NBYTES:
            return None
        return np.frombuffer(payload, np.uint8).reshape(-1, DIGEST_NBYTES)


def number_of(text: str) -> int | None:
    """Read the name of a block's file as its number.

    Parameters
    ----------
    text : str
        The name.

    Returns
    -------
    int or None
        ``None`` if it is none.
    """
    if not (text.isascii() and text.isdecimal() and len(text) <= len(str(MAX_NUMBER))):
        return None
    return int(text) if text == str(int(text)) else None


def _spell(tile: GramTile, binding: bytes) -> list[bytes | memoryview]:
    n_a, n_b = tile.squares.shape
    header = MAGIC + np.array([n_a, n_b, len(tile.pairs)], "<u8").tobytes() + binding
    arrays = [
        np.ascontiguousarray(tile.squares, "<f8"),
        np.ascontiguousarray(tile.pairs, "<u4"),
        np.ascontiguousarray(tile.near, "<f8"),
        np.ascontiguousarray(tile.statistics, "<f8"),
    ]
    parts: list[bytes | memoryview] = [header]
    parts += [array.reshape(-1).view(np.uint8).data for array in arrays if array.size]
    state = xxhash.xxh3_64()
    for part in parts:
        state.update(part)
    return [*parts, state.intdigest().to_bytes(8, "little")]


def _parse(
    data: bytes, binding: bytes, n_a: int, n_b: int, *, is_diagonal: bool
) -> GramTile | None:
    n_pairs = int.from_bytes(data[24:32], "little")
    n_rows = n_a if is_diagonal else 0
    sizes = [8 * n_a * n_b, 8 * n_pairs, 16 * n_pairs, 16 * n_rows]
    body = memoryview(data)[:-_CHECKSUM_NBYTES]
    header = MAGIC + np.array([n_a, n_b, n_pairs], "<u8").tobytes() + binding
    if len(body) != _HEADER_NBYTES + sum(sizes) or data[:_HEADER_NBYTES] != header:
        return None
    if xxhash.xxh3_64_intdigest(body) != int.from_bytes(data[-_CHECKSUM_NBYTES:], "little"):
        return None
    arrays, at = [], _HEADER_NBYTES
    for nbytes, dtype in zip(sizes, ("<f8", "<u4", "<f8", "<f8"), strict=True):
        arrays.append(np.frombuffer(data, dtype, nbytes // int(dtype[-1]), at))
        at += nbytes
    pairs = arrays[1].reshape(-1, 2)
    if len(pairs) and (pairs.max(axis=0) >= (n_a, n_b)).any():
        return None
    return GramTile(
        arrays[0].reshape(n_a, n_b), pairs, arrays[2].reshape(-1, 2), arrays[3].reshape(-1, 2)
    )
