"""Where everything lies in a store, and in what shape: the only module that spells a path.

The format is described in ``docs/format.md``. Format 1 is for good: what changes here later must
go on reading what was written before.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import FormatVersionError, InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.typing import Json

FORMAT = 1

MARKER = "featurestore.json"
"""The document that makes a folder a store."""

SLOT_NBYTES = 64 * 2**20  # bounds what one writer holds per column, and what a kill can cost
MIN_ROWS_PER_SLOT, MAX_ROWS_PER_SLOT = 4, 256  # 256 rows keep a key record within one 4 KiB page
CHUNK_NBYTES = 2**20  # larger chunks make single rows dear, smaller ones whole columns
MIN_CHUNK_ROWS, MAX_CHUNK_ROWS = 4, 32
MAX_CHUNK_VALUES = 16_384  # along features: geometry streams feature blocks over all rows
COMPRESSION_PAYS = 1.2  # a sample that shrinks less is stored as it is
GROWTH_SLOTS = 64  # advisory lengths grow in such steps

_HEX = re.compile(r"[0-9a-f]{32}")

ACTIVATIONS, ROW_STATS, RUN, IMAGE, DAMAGE = "activations", "row_stats", "run", "image", "damage"

DOCUMENT_FOLDERS = ("models", "aliases", "runs", "imagesets", "layouts", "tags")

N_ROW_STATS = 2  # mean, and centred sum of squares
N_RUN_FIELDS = 6
# run id (high, low), size and checksum of the shard, checksum of the row statistics, binding
BINDING_NBYTES = 16


def require_key(key: str) -> str:
    """Return a key if it is one: user text never becomes a path.

    Parameters
    ----------
    key : str
        32 hex digits.

    Returns
    -------
    str
        The key.

    Raises
    ------
    InvalidInputError
        If it is anything else.
    """
    if not is_key(key):
        raise InvalidInputError(f"{key!r} is not a key of 32 hex digits.")
    return key


def is_key(text: str) -> bool:
    """Say whether a text is a key.

    Parameters
    ----------
    text : str
        Such as a file's name.

    Returns
    -------
    bool
        Whether it is 32 hex digits.
    """
    return _HEX.fullmatch(text) is not None


def document_path(kind: str, key: str) -> str:
    """Return the path of a document that is known by a key.

    Parameters
    ----------
    kind : {"models", "aliases", "runs", "imagesets", "layouts", "tags"}
        What it describes.
    key : str
        32 hex digits.

    Returns
    -------
    str
        Relative to the store.
    """
    return f"{kind}/{require_key(key)}.json"


def column_path(key: str) -> str:
    """Return the folder of a column.

    Parameters
    ----------
    key : str
        The feature key.

    Returns
    -------
    str
        Relative to the store.
    """
    return f"columns/{require_key(key)}"


def gram_path(key: str) -> str:
    """Return the folder of the distances between rows of a column.

    Parameters
    ----------
    key : str
        32 hex digits.

    Returns
    -------
    str
        Relative to the store.
    """
    return f"grams/{require_key(key)}"


@dataclass(frozen=True, slots=True)
class ColumnLayout:
    """The whole shape of a column: created once, before any slot, and never changed."""

    key: str
    """The feature key."""
    feature: Mapping[str, Json]
    """What the key was made from: model key, module, readout, precision, dtype."""
    dtype: str
    """``"float32"`` or ``"float16"``."""
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    """Shape of one row."""
    rows_per_slot: int
    chunk_rows: int
    chunk_shape: tuple[int, ...]
    """Shape of one inner chunk along the dims of a row."""
    compressed: bool
    """Whether inner chunks are zstd-compressed before their checksum."""

    @property
    def n_chunks(self) -> tuple[int, ...]:
        """Inner chunks per slot along each axis, rows first."""
        grid = [math.ceil(n / c) for n, c in zip(self.shape, self.chunk_shape, strict=True)]
        return (self.rows_per_slot // self.chunk_rows, *grid)

    @property
    def shard_shape(self) -> tuple[int, ...]:
        """Shape of a slot, padded to whole inner chunks."""
        chunk = (self.chunk_rows, *self.chunk_shape)
        return tuple(n * c for n, c in zip(self.n_chunks, chunk, strict=True))

    @property
    def row_nbytes(self) -> int:
        """Size of one row, uncompressed [bytes]."""
        return math.prod(self.shape) * (2 if self.dtype == "float16" else 4)

    def nbytes_on_disk(self, n_rows: int) -> int:
        """Return what rows take on disk if they do not compress, published together.

        Parameters
        ----------
        n_rows : int
            How many.

        Returns
        -------
        int
            An upper bound: blocks of `chunk_rows` are padded to whole ones [bytes].
        """
        blocks = math.ceil(n_rows / self.chunk_rows)
        values = blocks * self.chunk_rows * math.prod(self.shard_shape[1:])
        slots = math.ceil(n_rows / self.rows_per_slot)
        overhead = 16 * math.prod(self.n_chunks) + (16 + 16) * self.rows_per_slot + 4096
        return values * (2 if self.dtype == "float16" else 4) + slots * overhead

    def slot_name(self, array: str, slot: int) -> str:
        """Return the path of one slot's part of an array.

        Parameters
        ----------
        array : str
            ``activations``, ``row_stats``, ``run`` or ``image``.
        slot : int
            The slot's number.

        Returns
        -------
        str
            Relative to the store.
        """
        n_zeros = len(self.shape) if array == ACTIVATIONS else 1
        return f"{column_path(self.key)}/{array}/c.{slot}{'.0' * n_zeros}"

    def to_json(self) -> dict[str, Json]:
        """Return the layout as it is stored.

        Returns
        -------
        dict
            JSON-able.
        """
        return {
            "format": FORMAT,
            "key": self.key,
            "feature": dict(self.feature),
            "dtype": self.dtype,
            "dims": list(self.dims),
            "shape": list(self.shape),
            "rows_per_slot": self.rows_per_slot,
            "chunk_rows": self.chunk_rows,
            "chunk_shape": list(self.chunk_shape),
            "compressed": self.compressed,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ColumnLayout:
        """Read what `to_json` wrote.

        Parameters
        ----------
        facts : mapping
            JSON-able.

        Returns
        -------
        ColumnLayout
            The same layout.

        Raises
        ------
        FormatVersionError
            If it was written in a newer format.
        """
        require_format(facts, f"Column {facts.get('key')}")
        return cls(
            key=require_key(str(facts["key"])),
            feature=dict(facts["feature"]),
            dtype=str(facts["dtype"]),
            dims=tuple(str(dim) for dim in facts["dims"]),
            shape=tuple(int(n) for n in facts["shape"]),
            rows_per_slot=int(facts["rows_per_slot"]),
            chunk_rows=int(facts["chunk_rows"]),
            chunk_shape=tuple(int(n) for n in facts["chunk_shape"]),
            compressed=bool(facts["compressed"]),
        )


def require_format(facts: Mapping[str, Any], what: str) -> None:
    """Refuse what was written in a newer format.

    Parameters
    ----------
    facts : mapping
        A document with its ``"format"``.
    what : str
        What the document describes, for the message.

    Raises
    ------
    FormatVersionError
        If the format is newer than this version reads.
    """
    found = facts.get("format")
    if not isinstance(found, int) or not 1 <= found <= FORMAT:
        raise FormatVersionError(
            f"{what} is in format {found!r}; this version of featurestore reads formats 1 to "
            f"{FORMAT}. Upgrade it: pip install --upgrade featurestore",
            found=found,
            newest=FORMAT,
        )


def rows_per_slot(row_nbytes: int) -> int:
    """Return how many rows a slot holds.

    Parameters
    ----------
    row_nbytes : int
        Size of one row [bytes].

    Returns
    -------
    int
        A power of two from 4 to 256.

    Examples
    --------
    >>> rows_per_slot(4 * 9216), rows_per_slot(4 * 64 * 224 * 224)
    (256, 4)
    """
    fit = max(1, SLOT_NBYTES // max(1, row_nbytes))
    return min(max(1 << (fit.bit_length() - 1), MIN_ROWS_PER_SLOT), MAX_ROWS_PER_SLOT)


def chunk_shape(shape: Sequence[int]) -> tuple[int, ...]:
    """Cut one row into pieces of at most `MAX_CHUNK_VALUES`, evenly and whole axes last.

    Parameters
    ----------
    shape : sequence of int
        Shape of one row.

    Returns
    -------
    tuple of int
        Shape of a piece. Trailing axes stay whole where they fit; the axis that is cut is cut
        evenly, because a short last piece would be padded on disk to a whole one.

    Examples
    --------
    >>> chunk_shape((256, 6, 6)), chunk_shape((64, 224, 224)), chunk_shape((100_352,))
    ((256, 6, 6), (1, 56, 224), (14336,))
    """
    cut = list(shape)
    for axis in range(len(cut)):
        behind = math.prod(cut[axis + 1 :])
        most = max(1, MAX_CHUNK_VALUES // max(1, behind))
        if cut[axis] <= most:
            break
        cut[axis] = _even_piece(cut[axis], most)
    return tuple(max(1, n) for n in cut)


def _even_piece(n: int, most: int) -> int:
    """Return the largest divisor of n up to most, unless that would be less than half of it."""
    divisor = max(d for d in range(1, most + 1) if n % d == 0)
    if divisor * 2 > most:
        return divisor
    return math.ceil(n / math.ceil(n / most))


def make_layout(
    key: str,
    feature: Mapping[str, Json],
    *,
    dtype: str,
    dims: Sequence[str],
    shape: Sequence[int],
    compressed: bool,
) -> ColumnLayout:
    """Decide the layout of a new column.

    Parameters
    ----------
    key : str
        The feature key.
    feature : mapping
        What the key was made from.
    dtype : {"float32", "float16"}
        Stored dtype.
    dims, shape : sequence
        Names and sizes of the axes of one row.
    compressed : bool
        Whether a sample of the values shrinks enough to be worth it.

    Returns
    -------
    ColumnLayout
        The same for the same arguments, on every machine.
    """
    itemsize = 2 if dtype == "float16" else 4
    piece = chunk_shape(shape)
    n_rows = rows_per_slot(math.prod(shape) * itemsize)
    # Few rows of wide modules share a chunk: one image alone is padded to a whole block of rows.
    fit = min(
        CHUNK_NBYTES // max(1, math.prod(piece) * itemsize),
        MIN_CHUNK_ROWS * CHUNK_NBYTES // max(1, math.prod(shape) * itemsize),
    )
    chunk_rows = min(max(1 << (max(fit, 1).bit_length() - 1), MIN_CHUNK_ROWS), MAX_CHUNK_ROWS)
    return ColumnLayout(
        key=require_key(key),
        feature=feature,
        dtype=dtype,
        dims=tuple(dims),
        shape=tuple(shape),
        rows_per_slot=n_rows,
        chunk_rows=min(chunk_rows, n_rows),
        chunk_shape=piece,
        compressed=compressed,
    )
