"""Whether what lies in a column is what was written, and mending what can be mended.

Checking writes nothing. Mending never touches a value: bad rows are marked, so that they become
misses; what can be derived from good shards (companions, statistics, metadata) is written anew.
"""

from __future__ import annotations

import errno
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import xxhash

from featurestore.storage import layout as _layout
from featurestore.storage.group_file import MAX_METADATA_NBYTES, advertised
from featurestore.storage.index import damage_path, read_damage, write_damage
from featurestore.storage.metadata import group_metadata
from featurestore.storage.reader import DamagedRowsError, read_rows
from featurestore.storage.row_stats import (
    read_statistics,
    row_statistics,
    statistics_companion,
)
from featurestore.storage.slots import (
    NO_RUN,
    Companion,
    bind,
    key_record,
    read_key_record,
    slot_numbers,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.storage.column import Column
    from featurestore.storage.layout import ColumnLayout

Problem = Literal[
    "rows", "key record", "companion", "statistics", "marker", "metadata", "document",
    "unreadable", "leftover", "orphan", "tag", "distances",
]  # fmt: skip
"""What is wrong: ``rows`` and ``key record`` cost values, the others do not."""


MAX_STATISTICS_NBYTES = 2**16


@dataclass(frozen=True, slots=True)
class Finding:
    """Something in a store that is not as it was written."""

    problem: Problem
    path: str
    """Which file, relative to the store."""
    text: str
    """What is wrong with it."""
    column: str = ""
    """The feature key, if it belongs to a column."""
    slot: int = -1
    positions: tuple[int, ...] = ()
    """Rows within the slot whose values are lost."""
    digests: tuple[str, ...] = ()
    """Which images they are of, in hexadecimal."""
    repaired: bool = False
    """Whether it was mended; lost rows are mended once they count as missing."""

    @property
    def is_damage(self) -> bool:
        """Whether something is worse than unused bytes."""
        return self.problem not in ("leftover", "orphan")


def check_slot(column: Column, slot: int, *, fast: bool) -> list[Finding]:
    """Compare one slot with its checksums.

    Parameters
    ----------
    column : Column
        With a layout.
    slot : int
        The slot's number.
    fast : bool
        Whether to compare sizes only, without reading the values.

    Returns
    -------
    list of Finding
        Nothing if all is well, or if the slot is a tombstone.
    """
    layout = column.index.layout
    while True:
        record = read_key_record(column.blobs, layout, slot)
        findings = _check_record(column, layout, slot, record, fast=fast)
        if not findings or record is None:
            return findings
        again = read_key_record(column.blobs, layout, slot)
        if again is not None and np.array_equal(record, again):
            return findings
        # Emptied or replaced while we looked: its files are not expected to fit the old record.


def _check_record(
    column: Column, layout: ColumnLayout, slot: int, record: NDArray[np.uint8] | None, *, fast: bool
) -> list[Finding]:
    path = layout.slot_name(_layout.IMAGE, slot)
    if record is None:
        text = "the key record fails its checksum, so nobody knows which images its rows are of"
        return [Finding("key record", path, text, column.key, slot)]
    live = np.flatnonzero(record.any(axis=1))
    if not len(live):
        return []
    try:
        bad, reason, findings = _check_shard(column, layout, slot, record, fast=fast)
        findings += _check_statistics(column, layout, slot)
    except OSError as err:
        return [_unreadable(column, layout, slot, live, err)]
    marked = read_damage(column.blobs, layout, slot) & frozenset(live.tolist())
    if bad:
        # A companion that vouched for a damaged shard would be believed by compaction.
        findings = [finding for finding in findings if finding.problem != "companion"]
        findings.insert(
            0,
            Finding(
                "rows",
                layout.slot_name(_layout.ACTIVATIONS, slot),
                reason,
                column.key,
                slot,
                tuple(sorted(bad)),
                tuple(record[n].tobytes().hex() for n in sorted(bad)),
                repaired=bad <= marked,
            ),
        )
    if not fast and marked - bad:
        text = f"{len(marked - bad)} rows are marked as damaged and are whole"
        path = damage_path(layout, slot)
        findings.append(Finding("marker", path, text, column.key, slot, tuple(sorted(bad))))
    return findings


def _unreadable(
    column: Column, layout: ColumnLayout, slot: int, live: NDArray[np.intp], err: OSError
) -> Finding:
    """Describe a disk that does not answer, which is not damage.

    A bad sector never answers, though, so whoever asks for repairs gives its rows up; should the
    disk answer later, the marker does not reproduce and is withdrawn.
    """
    path = layout.slot_name(_layout.ACTIVATIONS, slot)
    is_sector = err.errno == errno.EIO
    positions = tuple(live.tolist()) if is_sector else ()
    marked = is_sector and set(positions) <= read_damage(column.blobs, layout, slot)
    return Finding("unreadable", path, str(err), column.key, slot, positions, repaired=marked)


def _check_shard(
    column: Column, layout: ColumnLayout, slot: int, record: NDArray[np.uint8], *, fast: bool
) -> tuple[frozenset[int], str, list[Finding]]:
    """Return which rows are lost, why, and what else is wrong."""
    live = np.flatnonzero(record.any(axis=1))
    binding = bind(layout, slot, record.tobytes())
    companion = column.companion(slot, anew=True)
    findings = []
    if companion is None:
        findings.append(_companion_finding(layout, slot, "it is missing or fails its checksum"))
    path = layout.slot_name(_layout.ACTIVATIONS, slot)
    if fast:
        try:
            nbytes = column.blobs.nbytes(path)
        except FileNotFoundError:
            return frozenset(live.tolist()), "its file is missing", findings
        if companion is not None and nbytes != companion.nbytes:
            reason = f"its file has {nbytes} bytes where {companion.nbytes} were written"
            return frozenset(live.tolist()), reason, findings
        return frozenset(), "", findings
    if companion is not None and is_as_written(column, slot, companion):
        return frozenset(), "", findings
    rows = live + slot * layout.rows_per_slot
    try:
        read_rows(
            column.blobs, layout, rows, companion=column.companion, binding=lambda _slot: binding
        )
    except DamagedRowsError as err:
        bad, reason = err.damage[slot]
        return frozenset(bad), reason, findings
    if companion is not None:
        text = "the shard is not the one it describes, though every row passes its checksum"
        findings.append(_companion_finding(layout, slot, text))
    return frozenset(), "", findings


def is_as_written(column: Column, slot: int, companion: Companion) -> bool:
    """Compare a whole shard with the checksum that was taken when it was written.

    Parameters
    ----------
    column : Column
        With a layout.
    slot : int
        The slot's number.
    companion : Companion
        The slot's companion.

    Returns
    -------
    bool
        Whether every byte is as it was.
    """
    layout = column.index.layout
    path = layout.slot_name(_layout.ACTIVATIONS, slot)
    # Neither the file's size nor the companion's is believed: a stranger may have made them.
    most = min(companion.nbytes, 2 * layout.nbytes_on_disk(layout.rows_per_slot))
    try:
        if column.blobs.nbytes(path) != companion.nbytes:
            return False
        data = column.blobs.get(path, nbytes=most)
    except FileNotFoundError:
        return False
    return len(data) == companion.nbytes and xxhash.xxh3_64_intdigest(data) == companion.checksum


def _companion_finding(layout: ColumnLayout, slot: int, text: str) -> Finding:
    return Finding("companion", layout.slot_name(_layout.RUN, slot), text, layout.key, slot)


def _check_statistics(column: Column, layout: ColumnLayout, slot: int) -> list[Finding]:
    path = layout.slot_name(_layout.ROW_STATS, slot)
    companion = column.companion(slot)
    try:
        data = column.blobs.get(path, 0, MAX_STATISTICS_NBYTES)
    except FileNotFoundError:
        text = "the statistics are missing"
    else:
        if read_statistics(layout, data) is None:
            text = "the statistics fail their checksum"
        elif companion is not None and companion.stats_checksum != xxhash.xxh3_64_intdigest(data):
            text = "the statistics are of other rows"
        else:
            return []
    return [Finding("statistics", path, text, column.key, slot)]


def check_metadata(column: Column) -> list[Finding]:
    """Compare the ``zarr.json`` files of a column with its layout.

    Parameters
    ----------
    column : Column
        With a layout.

    Returns
    -------
    list of Finding
        One at most.
    """
    layout = column.index.layout
    base = _layout.column_path(column.key)
    n_slots = advertised(column.blobs, column.key)
    needed = 1 + max(_published_slots(column), default=-1)
    text = ""
    for folder, wanted in group_metadata(layout, n_slots).items():
        path = f"{base}/{folder}/zarr.json" if folder else f"{base}/zarr.json"
        try:
            found = json.loads(column.blobs.get(path, 0, MAX_METADATA_NBYTES))
        except FileNotFoundError:
            text = f"{path} is missing"
        except (ValueError, RecursionError):
            text = f"{path} is not JSON"
        else:
            text = text if found == wanted else f"{path} does not fit the layout"
    if not text and n_slots < needed:
        text = f"plain Zarr readers see {n_slots} of {needed} slots"
    return [Finding("metadata", f"{base}/zarr.json", text, column.key)] if text and needed else []


def _published_slots(column: Column) -> list[int]:
    folder = f"{_layout.column_path(column.key)}/{_layout.IMAGE}"
    return slot_numbers([info.name for info in column.blobs.list(folder)])


def repair(column: Column, finding: Finding) -> Finding:
    """Mend what was found in a column, as far as it can be mended without computing.

    Parameters
    ----------
    column : Column
        Writable.
    finding : Finding
        From `check_slot` or `check_metadata`.

    Returns
    -------
    Finding
        The same, saying whether it was mended.
    """
    layout = column.index.layout
    blobs, slot = column.blobs, finding.slot
    is_lost = finding.problem == "unreadable" and finding.positions
    if finding.problem in ("rows", "marker") or is_lost:
        write_damage(blobs, layout, slot, finding.positions, finding.text)
        column.index.unmark_damaged(slot)
    elif finding.problem == "key record":
        # Spent for good: the number is not used again, and its rows are misses already.
        blobs.replace(layout.slot_name(_layout.IMAGE, slot), key_record(layout))
    elif finding.problem in ("companion", "statistics"):
        _rewrite_companions(column, layout, slot, vouch=finding.problem == "companion")
    elif finding.problem == "metadata":
        column.advertise(1 + max(_published_slots(column), default=-1), anew=True)
    else:
        return finding
    column.index.refresh()
    return replace(finding, repaired=True)


def _rewrite_companions(column: Column, layout: ColumnLayout, slot: int, *, vouch: bool) -> None:
    """Compute the statistics again; vouch for the shard only if all its rows were found whole."""
    record = read_key_record(column.blobs, layout, slot)
    assert record is not None
    binding = bind(layout, slot, record.tobytes())
    stats = np.zeros((layout.rows_per_slot, _layout.N_ROW_STATS))
    for position in np.flatnonzero(record.any(axis=1)).tolist():
        row = np.array([slot * layout.rows_per_slot + position])
        try:
            values = read_rows(
                column.blobs, layout, row, companion=column.companion, binding=lambda _s: binding
            )
        except DamagedRowsError:
            stats[position] = np.nan  # a miss, which nobody asks about
        else:
            stats[position] = row_statistics(values)[0]
    data = statistics_companion(layout, stats)
    column.blobs.replace(layout.slot_name(_layout.ROW_STATS, slot), data)
    checksum = xxhash.xxh3_64_intdigest(data)
    companion = column.companion(slot, anew=True)
    if companion is not None:
        companion = replace(companion, stats_checksum=checksum)
    elif vouch:
        shard = column.blobs.get(layout.slot_name(_layout.ACTIVATIONS, slot))
        companion = Companion(
            NO_RUN, len(shard), xxhash.xxh3_64_intdigest(shard), checksum, binding
        )
    if companion is not None:
        column.blobs.replace(layout.slot_name(_layout.RUN, slot), companion.to_bytes())
        column.companion(slot, anew=True)
