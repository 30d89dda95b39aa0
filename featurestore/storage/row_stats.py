"""Mean and sum of squares of each row, taken when it is written: geometry needs them first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.storage import layout as _layout
from featurestore.storage.shard import with_crc, without_crc

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.storage.layout import ColumnLayout

STATISTICS_VALUES = 2**15


def row_statistics(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Return the mean and the centred sum of squares of each row, as stored.

    Parameters
    ----------
    rows : ndarray of shape (n, *shape), stored dtype
        Rows of a column.

    Returns
    -------
    ndarray of shape (n, 2), float64
        Not finite where a row is not.
    """
    flat = rows.reshape(len(rows), -1)
    n = flat.shape[1]
    # Blocks that stay in the cache: the float64 copy of a whole slot would be 128 MiB.
    step = max(1, STATISTICS_VALUES // n)
    blocks = [slice(start, start + STATISTICS_VALUES) for start in range(0, n, STATISTICS_VALUES)]
    stats = np.zeros((len(rows), _layout.N_ROW_STATS))
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are stored as they are
        for start in range(0, len(rows), step):
            part, into = flat[start : start + step], stats[start : start + step]
            for block in blocks:
                into[:, 0] += part[:, block].astype(np.float64).sum(axis=1)
            into[:, 0] /= n
            for block in blocks:
                centred = part[:, block].astype(np.float64)
                centred -= into[:, :1]
                into[:, 1] += np.einsum("ij,ij->i", centred, centred)
    return stats


def statistics_companion(layout: ColumnLayout, stats: NDArray[np.float64]) -> bytes:
    """Return the statistics of a slot's rows as their chunk is stored.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    stats : ndarray of shape (n, 2), float64
        As `row_statistics` returns them.

    Returns
    -------
    bytes
        One pair per row of the slot, zeros for empty rows, and a CRC-32C.
    """
    padded = np.zeros((layout.rows_per_slot, _layout.N_ROW_STATS), "<f8")
    padded[: len(stats)] = stats
    return with_crc(padded.tobytes())


def read_statistics(layout: ColumnLayout, data: bytes) -> NDArray[np.float64] | None:
    """Read what `statistics_companion` wrote.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    data : bytes
        The stored chunk.

    Returns
    -------
    ndarray of shape (rows_per_slot, 2), float64, or None
        ``None`` if it is damaged.
    """
    payload = without_crc(data, layout.rows_per_slot * _layout.N_ROW_STATS * 8)
    if payload is None:
        return None
    return np.frombuffer(payload, "<f8").reshape(-1, _layout.N_ROW_STATS)
