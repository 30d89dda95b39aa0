"""Reading the statistics that were taken when rows were written."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import xxhash

from featurestore.storage import layout as _layout
from featurestore.storage.row_stats import read_statistics, row_statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.storage.column import Column


def stored_statistics(
    column: Column, rows: NDArray[np.int64], digests: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """Return the mean and the centred sum of squares of rows, without reading the rows.

    Where a slot's statistics are missing or damaged they are taken from its rows again.

    Parameters
    ----------
    column : Column
        With a layout.
    rows : ndarray of shape (n,), int64
        Row numbers, as `Column.lookup` returns them.
    digests : ndarray of shape (n, 16), uint8
        Which images they were looked up for.

    Returns
    -------
    ndarray of shape (n, 2), float64
        Not finite where a row is not.

    Raises
    ------
    DamagedRowsError
        If rows have to be read, and some are damaged or were moved.
    """
    stats = np.empty((len(rows), _layout.N_ROW_STATS))
    slots, positions = np.divmod(rows, column.index.layout.rows_per_slot)
    for slot in np.unique(slots).tolist():
        mine = np.flatnonzero(slots == slot)
        kept = _of_slot(column, slot, positions[mine], digests[mine])
        if kept is None:
            kept = np.concatenate(
                [row_statistics(column.read(rows[n : n + 1], None, digests[n : n + 1]))
                 for n in mine]
            )  # fmt: skip
        stats[mine] = kept
    return stats


def _of_slot(
    column: Column, slot: int, positions: NDArray[np.int64], digests: NDArray[np.uint8]
) -> NDArray[np.float64] | None:
    layout, record = column.index.layout, column.index.record(slot)
    companion = column.companion(slot)
    if record is None or companion is None or not np.array_equal(record[positions], digests):
        return None
    nbytes = layout.rows_per_slot * _layout.N_ROW_STATS * 8 + 5  # one too many
    try:
        data = column.blobs.get(layout.slot_name(_layout.ROW_STATS, slot), 0, nbytes)
    except FileNotFoundError:
        return None
    # The companion ties them to the slot's rows: statistics of others are as good as none.
    if xxhash.xxh3_64_intdigest(data) != companion.stats_checksum:
        return None
    stats = read_statistics(layout, data)
    return None if stats is None else stats[positions]
