"""Compaction: rows of sparse slots into full ones, copies of one row into one.

Rows are copied first and published; only then does an old slot become a tombstone, and only if
each of its rows is live in a slot with a *higher* number whose shard was just compared with its
checksum. So the highest copy of a row always survives, whoever else compacts at the same time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.storage import layout as _layout
from featurestore.storage.check import check_slot, is_as_written, repair
from featurestore.storage.provenance import computed_by
from featurestore.storage.reader import DamagedRowsError
from featurestore.storage.slots import SlotBuilder, key_record, read_key_record
from featurestore.typing import DIGEST_NBYTES

if TYPE_CHECKING:
    from collections.abc import Container, Iterable

    from numpy.typing import NDArray

    from featurestore.storage.catalog import Catalog
    from featurestore.storage.column import Column

MAX_ROUNDS = 3  # damage that is found on the way changes what there is to copy
READ_NBYTES = 16 * 2**20  # rows held at once beside the slot that they are encoded into


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did to a column."""

    n_rows_moved: int = 0
    n_slots_written: int = 0
    n_slots_emptied: int = 0
    """Slots that became tombstones; their data go when they are swept."""

    def __add__(self, other: Compacted) -> Compacted:
        return Compacted(
            self.n_rows_moved + other.n_rows_moved,
            self.n_slots_written + other.n_slots_written,
            self.n_slots_emptied + other.n_slots_emptied,
        )


def compact_column(catalog: Catalog, column: Column, tagged: Container[bytes] = ()) -> Compacted:
    """Merge sparse slots of a column and drop copies of rows.

    Parameters
    ----------
    catalog : Catalog
        The store, writable.
    column : Column
        With a layout.
    tagged : container of bytes
        Digests of rows that a tag froze: a slot that holds one stays if another copy of the row
        differs from it in any bit.

    Returns
    -------
    Compacted
        What was done. Values that readers see are the same before and after, bit for bit where
        copies of a row agree.
    """
    _confirm_damage(column)
    for _ in range(MAX_ROUNDS):
        todo = _plan(column)
        try:
            written = _copy(catalog, column, todo.rows)
            break
        except DamagedRowsError:
            continue  # marked by now, so the next round leaves them out
    else:
        return Compacted()
    emptied = _Emptier(column, todo.slots, tagged).empty()
    column.index.refresh()
    return Compacted(len(todo.rows), written, emptied)


@dataclass(frozen=True, slots=True)
class _Todo:
    rows: NDArray[np.int64]
    """Rows to copy, rising."""
    slots: tuple[int, ...]
    """Slots that hold nothing which is not elsewhere, once these rows are copied."""


def _confirm_damage(column: Column) -> None:
    """Withdraw marks of rows that can be read: they are worth saving."""
    index = column.index
    index.refresh()
    for slot in index.records():
        if index.damaged(slot):
            for finding in check_slot(column, slot, fast=False):
                if finding.problem in ("rows", "marker"):
                    repair(column, finding)


def _plan(column: Column) -> _Todo:
    layout, index = column.index.layout, column.index
    index.refresh()
    per_slot = layout.rows_per_slot
    digests, rows = index.live_rows()
    is_highest = _is_last(digests)
    occupied = {
        slot: int(record.any(axis=1).sum())
        for slot, record in index.records().items()
        if record.any()
    }
    needed = dict.fromkeys(occupied, 0)
    for slot, n in zip(*np.unique(rows[is_highest] // per_slot, return_counts=True), strict=True):
        needed[int(slot)] = int(n)
    spent = [slot for slot, n in needed.items() if not n]
    damaged = {slot for slot in occupied if index.damaged(slot)}
    sparse = [s for s, n in needed.items() if n and (2 * n <= per_slot or s in damaged)]
    n_rows = sum(needed[slot] for slot in sparse)
    pays = -(-n_rows // per_slot) < len(sparse) or any(
        slot in damaged or 2 * needed[slot] <= occupied[slot] for slot in sparse
    )
    if not pays:
        sparse = []
    wanted = rows[is_highest & np.isin(rows // per_slot, sparse)]
    return _Todo(wanted, tuple(sorted([*spent, *sparse])))


def _is_last(digests: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Say of each digest whether it does not come again."""
    keys = _as_keys(digests)
    _, first = np.unique(keys[::-1], return_index=True)
    last = np.zeros(len(keys), bool)
    last[len(keys) - 1 - first] = True
    return last


def _as_keys(digests: NDArray[np.uint8]) -> NDArray[np.void]:
    return np.ascontiguousarray(digests).view(f"V{DIGEST_NBYTES}").ravel()


def _copy(catalog: Catalog, column: Column, rows: NDArray[np.int64]) -> int:
    """Publish rows again in slots that are as full as they can be; returns how many slots."""
    layout = column.index.layout
    step = max(1, READ_NBYTES // layout.row_nbytes)
    records = column.index.records()
    n_slots = 0
    for start in range(0, len(rows), layout.rows_per_slot):
        mine = rows[start : start + layout.rows_per_slot]
        builder = SlotBuilder(layout)
        for at in range(0, len(mine), step):
            part = mine[at : at + step]
            slots, positions = np.divmod(part, layout.rows_per_slot)
            digests = np.stack(
                [records[s][p] for s, p in zip(slots.tolist(), positions.tolist(), strict=True)]
            )
            builder.add(digests, column.read(part))
        column.publish(builder, _record_run(catalog, column, mine))
        n_slots += 1
    return n_slots


def _record_run(catalog: Catalog, column: Column, rows: NDArray[np.int64]) -> str:
    """Remember who computed the rows that are moved together."""
    parts: list[Any] = []
    for run in computed_by(catalog, column, rows):
        if parts and parts[-1]["run"] == run:
            parts[-1]["n_rows"] += 1
        else:
            parts.append({"run": run, "n_rows": 1})
    if len(parts) == 1:
        return str(parts[0]["run"])
    return catalog.create_run({"compacted": parts})


class _Emptier:
    """Makes tombstones of slots whose rows all live in higher ones."""

    def __init__(self, column: Column, slots: Iterable[int], tagged: Container[bytes]) -> None:
        self._column = column
        self._layout = column.index.layout
        self._slots = tuple(slots)
        self._tagged = tagged
        self._whole: dict[int, bool] = {}
        """Slots that were compared with their checksums just now."""

    def empty(self) -> int:
        """Make tombstones; returns of how many slots."""
        index = self._column.index
        index.refresh()
        digests, rows = index.live_rows()
        keys = _as_keys(digests)
        is_mine = np.isin(rows // self._layout.rows_per_slot, self._slots)
        is_wanted = np.isin(keys, keys[is_mine])
        copies: dict[bytes, list[int]] = {}
        for key, row in zip(keys[is_wanted].tolist(), rows[is_wanted].tolist(), strict=True):
            copies.setdefault(key, []).append(row)
        return sum(self._empty(slot, copies) for slot in self._slots)

    def _empty(self, slot: int, copies: dict[bytes, list[int]]) -> bool:
        layout, blobs = self._layout, self._column.blobs
        record = read_key_record(blobs, layout, slot)
        if record is None or not record.any():
            return False
        bad = self._column.index.damaged(slot)
        live = [n for n in np.flatnonzero(record.any(axis=1)).tolist() if n not in bad]
        rows = {n: copies.get(record[n].tobytes(), []) for n in live}
        above = (slot + 1) * layout.rows_per_slot
        if not all(held and max(held) >= above for held in rows.values()):
            return False
        if not all(self._holds(max(rows[n]), record[n].tobytes()) for n in live):
            return False  # somebody else emptied or damaged the copy meanwhile
        if not self._agree([rows[n] for n in live if record[n].tobytes() in self._tagged]):
            return False
        blobs.replace(layout.slot_name(_layout.IMAGE, slot), key_record(layout))
        return True

    def _holds(self, row: int, digest: bytes) -> bool:
        """Look on the disk whether a row is live in a slot that is as it was written."""
        slot, position = divmod(row, self._layout.rows_per_slot)
        record = read_key_record(self._column.blobs, self._layout, slot)
        return (
            record is not None
            and record[position].tobytes() == digest
            and position not in self._column.index.damaged(slot)
            and self._is_whole(slot)
        )

    def _is_whole(self, slot: int) -> bool:
        if slot not in self._whole:
            companion = self._column.companion(slot, anew=True)
            self._whole[slot] = companion is not None and is_as_written(
                self._column, slot, companion
            )
        return self._whole[slot]

    def _agree(self, copies: Iterable[list[int]]) -> bool:
        """Compare all copies of each row, bit for bit."""
        for rows in copies:
            try:
                values = self._column.read(np.array(rows))
            except DamagedRowsError:
                return False
            bits = values.reshape(len(values), -1).view(np.uint8)
            if not (bits == bits[0]).all():
                return False
        return True
