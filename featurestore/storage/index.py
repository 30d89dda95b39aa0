"""Which image is in which row: a view of the key records, derived and disposable."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import numpy as np

from featurestore.storage import layout as _layout
from featurestore.storage.slots import MAX_SLOT_DIGITS, read_key_record, slot_numbers
from featurestore.typing import DIGEST_NBYTES

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from numpy.typing import NDArray

    from featurestore.storage.blob import Blobs
    from featurestore.storage.layout import ColumnLayout

MAX_MARKER_NBYTES = 2**16  # a marker of 256 rows has less than 2 KiB
MAX_LISTINGS = 8  # two that agree end a refresh; under heavy writing this many do


class ColumnIndex:
    """Digest to row of one column, as of the last refresh.

    Parameters
    ----------
    blobs : Blobs
        The store.
    layout : ColumnLayout
        The column.
    """

    def __init__(self, blobs: Blobs, layout: ColumnLayout) -> None:
        self._blobs = blobs
        self.layout = layout
        self._lock = threading.Lock()
        self._records: dict[int, tuple[str, NDArray[np.uint8]]] = {}
        self._damage: dict[int, tuple[str, frozenset[int]]] = {}
        self._own_marks: dict[int, frozenset[int]] = {}
        self._sorted: tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]] | None = None

    def records(self) -> dict[int, NDArray[np.uint8]]:
        """Return the key records by slot number, tombstones included.

        Returns
        -------
        dict of ndarray of shape (rows_per_slot, 16), uint8
            As of the last refresh; zeros mark empty rows.
        """
        with self._lock:
            return {slot: self._records[slot][1] for slot in sorted(self._records)}

    def refresh(self) -> None:
        """Read the key records and damage markers that are new or changed."""
        with self._lock:
            before = None
            for _ in range(MAX_LISTINGS):
                seen = (self._read_new_records(), self._read_new_damage())
                if seen == before:
                    return
                before = seen

    def lookup(self, digests: NDArray[np.uint8]) -> NDArray[np.int64]:
        """Find the rows of images.

        Parameters
        ----------
        digests : ndarray of shape (n, 16), uint8
            Which images.

        Returns
        -------
        ndarray of shape (n,), int64
            The lowest live row of each, or -1 where there is none.
        """
        with self._lock:
            if self._sorted is None:
                self._sorted = self._sort()
            high, low, rows = self._sorted
        wanted_high, wanted_low = _words(digests)
        found = np.full(len(wanted_high), -1, np.int64)
        at = np.searchsorted(high, wanted_high)
        open_ = np.arange(len(wanted_high))
        # Distinct digests share their first half about once in 2**64 pairs; step over those.
        while len(open_):
            inside = at[open_] < len(high)
            open_ = open_[inside]
            open_ = open_[high[at[open_]] == wanted_high[open_]]
            hit = low[at[open_]] == wanted_low[open_]
            found[open_[hit]] = rows[at[open_[hit]]]
            open_ = open_[~hit]
            at[open_] += 1
        return found

    def live_rows(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Return every row that a reader may use, copies included.

        Returns
        -------
        digests : ndarray of shape (n, 16), uint8
            Which image each row is of.
        rows : ndarray of shape (n,), int64
            Row numbers, rising.
        """
        with self._lock:
            return self._live()

    def moved(
        self,
        rows: Mapping[int, Iterable[int]],
        before: Mapping[int, NDArray[np.uint8] | None],
    ) -> set[int]:
        """Look again whether rows are still in their slots.

        Parameters
        ----------
        rows : mapping of int to iterable of int
            Slot number to rows within the slot that could not be read.
        before : mapping of int to ndarray or None
            The key records that they were looked up in.

        Returns
        -------
        set of int
            Slots that were compacted, dropped or replaced meanwhile.
        """
        self.refresh()
        moved = set()
        for slot, positions in rows.items():
            # Past any listing, which can be of some moments ago.
            record, known = read_key_record(self._blobs, self.layout, slot), before[slot]
            if record is None or known is None or not np.array_equal(record, known):
                self._correct(slot, record)
                moved.add(slot)
            elif not record[list(positions)].any(axis=1).all():
                moved.add(slot)
        return moved

    def _correct(self, slot: int, record: NDArray[np.uint8] | None) -> None:
        with self._lock:
            if record is None:
                self._records.pop(slot, None)
            else:
                self._records[slot] = ("", record)  # read again once a listing shows it
            self._own_marks.pop(slot, None)
            self._sorted = None

    def record(self, slot: int) -> NDArray[np.uint8] | None:
        """Return one key record.

        Parameters
        ----------
        slot : int
            The slot's number.

        Returns
        -------
        ndarray of shape (rows_per_slot, 16), uint8, or None
            As of the last refresh.
        """
        return self._records.get(slot, ("", None))[1]

    def mark_damaged(self, slot: int, positions: Iterable[int]) -> None:
        """Leave rows of a slot out from now on, in this process only.

        Parameters
        ----------
        slot : int
            The slot's number.
        positions : iterable of int
            Rows within the slot.
        """
        with self._lock:
            self._own_marks[slot] = self._own_marks.get(slot, frozenset()) | frozenset(positions)
            self._sorted = None

    def unmark_damaged(self, slot: int) -> None:
        """Forget what this process found damaged in a slot; what a marker says stands.

        Parameters
        ----------
        slot : int
            The slot's number.
        """
        with self._lock:
            self._own_marks.pop(slot, None)
            self._sorted = None

    def damaged(self, slot: int) -> frozenset[int]:
        """Return which rows of a slot are known to be damaged.

        Parameters
        ----------
        slot : int
            The slot's number.

        Returns
        -------
        frozenset of int
            Positions within the slot.
        """
        return self._damage.get(slot, ("", frozenset()))[1] | self._own_marks.get(slot, frozenset())

    def _read_new_records(self) -> dict[int, str]:
        folder = f"{_layout.column_path(self.layout.key)}/{_layout.IMAGE}"
        seen: dict[int, str] = {}
        for info in self._blobs.list(folder):
            for slot in slot_numbers([info.name]):
                if self._records.get(slot, ("", None))[0] == info.version:
                    seen[slot] = info.version
                    continue
                record = read_key_record(self._blobs, self.layout, slot)
                if record is not None:  # else unpublished: looked at again at the next refresh
                    self._records[slot] = (info.version, record)
                    self._own_marks.pop(slot, None)  # they were about another file
                    self._sorted = None
                    seen[slot] = info.version
        for slot in self._records.keys() - seen.keys():
            del self._records[slot]  # a restored backup, or a store that was replaced
            self._sorted = None
        return seen

    def _read_new_damage(self) -> dict[int, str]:
        folder = f"{_layout.column_path(self.layout.key)}/{_layout.DAMAGE}"
        seen: dict[int, str] = {}
        for info in self._blobs.list(folder):
            if not info.name.isdecimal() or len(info.name) > MAX_SLOT_DIGITS:
                continue
            slot = int(info.name)
            seen[slot] = info.version
            if self._damage.get(slot, ("", None))[0] != info.version:
                rows = read_damage(self._blobs, self.layout, slot)
                self._damage[slot] = (info.version, rows)
                self._sorted = None
        for slot in self._damage.keys() - seen.keys():  # withdrawn
            del self._damage[slot]
            self._sorted = None
        return seen

    def _live(self) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        per_slot = self.layout.rows_per_slot
        digests = [np.empty((0, DIGEST_NBYTES), np.uint8)]
        rows = [np.empty(0, np.int64)]
        for slot in sorted(self._records):
            record = self._records[slot][1]
            live = np.asarray(record.any(axis=1))
            bad = [n for n in self.damaged(slot) if n < per_slot]
            live[bad] = False
            digests.append(record[live])
            rows.append(np.flatnonzero(live) + slot * per_slot)
        return np.concatenate(digests), np.concatenate(rows)

    def _sort(self) -> tuple[NDArray[np.uint64], NDArray[np.uint64], NDArray[np.int64]]:
        digests, rows = self._live()
        high, low = _words(digests)
        order = np.lexsort((rows, low, high))  # the lowest of several copies comes first
        return high[order], low[order], rows[order]


def read_damage(blobs: Blobs, layout: ColumnLayout, slot: int) -> frozenset[int]:
    """Read a damage marker.

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
    frozenset of int
        The rows within the slot that it names; an unreadable marker names all of them, which
        costs a recomputation, never a wrong value.
    """
    try:
        data = blobs.get(damage_path(layout, slot), 0, MAX_MARKER_NBYTES)
    except FileNotFoundError:
        return frozenset()
    try:
        rows = frozenset(int(n) for n in json.loads(data)["rows"])
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        rows = frozenset((-1,))
    everything = frozenset(range(layout.rows_per_slot))
    return rows if rows <= everything else everything


def write_damage(
    blobs: Blobs, layout: ColumnLayout, slot: int, positions: Iterable[int], reason: str
) -> None:
    """Write a damage marker, in place of the one that may be there.

    Parameters
    ----------
    blobs : Blobs
        The store.
    layout : ColumnLayout
        The column.
    slot : int
        The slot's number.
    positions : iterable of int
        Rows within the slot; none withdraws the marker.
    reason : str
        What is wrong with them.
    """
    rows = sorted(positions)
    path = damage_path(layout, slot)
    if rows:
        blobs.replace(path, json.dumps({"rows": rows, "reason": reason}).encode())
    else:
        blobs.delete(path)


def damage_path(layout: ColumnLayout, slot: int) -> str:
    """Return the path of a slot's damage marker.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    slot : int
        The slot's number.

    Returns
    -------
    str
        Relative to the store.
    """
    return f"{_layout.column_path(layout.key)}/{_layout.DAMAGE}/{slot}"


def _words(digests: NDArray[np.uint8]) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
    words = np.ascontiguousarray(digests).view(">u8").astype(np.uint64).reshape(-1, 2)
    return np.ascontiguousarray(words[:, 0]), np.ascontiguousarray(words[:, 1])
