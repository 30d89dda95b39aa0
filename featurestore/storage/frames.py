"""Compressed inner chunks: opened only if they hold exactly what they must.

A checksum does not protect from whoever computed it. A frame may claim terabytes, or hold less than
its place, which would leave whatever the memory held before as values.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

import numcodecs

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_MAGIC = 0xFD2FB528
_WINDOWED, _HAS_DICTIONARY = 1, (0, 1, 2, 4)  # sizes of optional fields of the header [bytes]

_held = threading.local()


def decode_exactly(payload: NDArray[np.uint8], out: NDArray[np.uint8]) -> None:
    """Decompress a Zstandard frame into memory that it must fill.

    Parameters
    ----------
    payload : ndarray of uint8
        One frame that says how large its content is, as every frame of a store does.
    out : ndarray of uint8
        Contiguous.

    Raises
    ------
    ValueError
        If it is no frame, or its content has another size. Nothing more than `out` is written.
    """
    found = content_nbytes(payload[:18].tobytes())
    if found != out.nbytes:
        raise ValueError(f"a frame of {found} bytes where {out.nbytes} belong")
    try:
        _codec().decode(payload, out)
    except RuntimeError as err:
        raise ValueError(str(err)) from err


def content_nbytes(header: bytes) -> int | None:
    """Read how large the content of a Zstandard frame is.

    Parameters
    ----------
    header : bytes
        The first 18 bytes of the frame, or all if it has fewer.

    Returns
    -------
    int or None
        Size [bytes]; ``None`` if this is no frame, or it does not say.
    """
    if len(header) < 6 or int.from_bytes(header[:4], "little") != _MAGIC:
        return None
    flag, single_segment, dictionary = header[4] >> 6, header[4] >> 5 & 1, header[4] & 3
    start = 5 + _WINDOWED * (1 - single_segment) + _HAS_DICTIONARY[dictionary]
    nbytes = (single_segment, 2, 4, 8)[flag]
    field = header[start : start + nbytes]
    if not nbytes or len(field) < nbytes:
        return None
    return int.from_bytes(field, "little") + (256 if nbytes == 2 else 0)


def _codec() -> Any:
    codec = getattr(_held, "codec", None)
    if codec is None:
        codec = _held.codec = numcodecs.Zstd()
    return codec
