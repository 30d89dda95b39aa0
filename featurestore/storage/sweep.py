"""Taking files away: what writers left behind, what compaction emptied, what was dropped.

A slot's number is spent (its key record made a tombstone) before its data go, so that a writer
that was merely slow finds its number taken and publishes under another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.storage import layout as _layout
from featurestore.storage.grams import gram_keys
from featurestore.storage.index import damage_path
from featurestore.storage.slots import key_record, read_key_record, slot_numbers

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from featurestore.storage.blob import BlobInfo, Blobs
    from featurestore.storage.column import Column
    from featurestore.storage.layout import ColumnLayout

GRACE_S = 24 * 3600.0
"""How long files of others stay that look forgotten [s]."""

_DATA = (_layout.ACTIVATIONS, _layout.ROW_STATS, _layout.RUN)


@dataclass(frozen=True, slots=True)
class Swept:
    """What was taken away."""

    n_files: int = 0
    nbytes: int = 0
    """What they took on disk [bytes]."""

    def __add__(self, other: Swept) -> Swept:
        return Swept(self.n_files + other.n_files, self.nbytes + other.nbytes)


def leftovers(column: Column, oldest: float) -> list[tuple[str, BlobInfo]]:
    """List files of a column that nobody reads and nobody is writing.

    Parameters
    ----------
    column : Column
        With a layout.
    oldest : float
        Files that changed later are left alone: their writer may be at work [s since 1970].

    Returns
    -------
    list of (str, BlobInfo)
        Folder and file: data of slots that are unpublished or tombstones, and temporary files.
    """
    layout, blobs = column.index.layout, column.blobs
    base = _layout.column_path(column.key)
    records = {n: info for info in blobs.list(f"{base}/{_layout.IMAGE}")
               for n in slot_numbers([info.name])}  # fmt: skip
    found = []
    for array in _DATA:
        folder = f"{base}/{array}"
        for info in blobs.list(folder):
            for slot in slot_numbers([info.name]):
                since = max(info.modified, records[slot].modified if slot in records else 0.0)
                if since <= oldest and _is_unread(blobs, layout, slot, slot in records):
                    found.append((folder, info))
    folders = [base, *(f"{base}/{array}" for array in (*_DATA, _layout.IMAGE, _layout.DAMAGE))]
    return found + _temporary_files(blobs, folders, oldest)


def document_leftovers(blobs: Blobs, oldest: float) -> list[tuple[str, BlobInfo]]:
    """List temporary files beside documents and distances that no writer is at work on.

    Parameters
    ----------
    blobs : Blobs
        The store.
    oldest : float
        Files that changed later are left alone [s since 1970].

    Returns
    -------
    list of (str, BlobInfo)
        Folder and file.
    """
    grams = [f"{_layout.gram_path(key)}/{kind}" for key in gram_keys(blobs)
             for kind in ("blocks", "tiles")]  # fmt: skip
    return _temporary_files(blobs, ["", *_layout.DOCUMENT_FOLDERS, *grams], oldest)


def sweep_column(column: Column, *, grace_s: float = GRACE_S) -> Swept:
    """Take away what `leftovers` lists.

    Parameters
    ----------
    column : Column
        With a layout, writable.
    grace_s : float
        How long a file must not have changed [s].

    Returns
    -------
    Swept
        What was taken away.
    """
    layout, blobs = column.index.layout, column.blobs
    swept = Swept()
    for folder, info in leftovers(column, blobs.now() - grace_s):
        spent = all(_spend(blobs, layout, slot) for slot in slot_numbers([info.name]))
        if spent:  # else its writer has published it this moment
            swept += sweep_files(blobs, [(folder, info)])
    for slot in column.index.records():
        if not column.index.records()[slot].any():
            blobs.delete(damage_path(layout, slot))
    return swept


def sweep_files(blobs: Blobs, files: Iterable[tuple[str, BlobInfo]]) -> Swept:
    """Take files away.

    Parameters
    ----------
    blobs : Blobs
        The store.
    files : iterable of (str, BlobInfo)
        Folder and file.

    Returns
    -------
    Swept
        What was taken away.
    """
    swept = Swept()
    for folder, info in files:
        blobs.delete(f"{folder}/{info.name}" if folder else info.name)
        swept += Swept(1, info.nbytes)
    return swept


def drop_rows(column: Column, keep: Collection[bytes] = ()) -> Swept:
    """Take the rows of a column away, for good and at once.

    Parameters
    ----------
    column : Column
        With a layout, writable.
    keep : container of bytes
        Digests: slots that hold one of them stay.

    Returns
    -------
    Swept
        What was taken away. Readers with an array in their hands are told that its rows are gone.
    """
    layout, blobs = column.index.layout, column.blobs
    gone = droppable(column, keep)
    for slot in gone:
        blobs.replace(layout.slot_name(_layout.IMAGE, slot), key_record(layout))
    return _remove_data(column, gone)


def sweep_tombstones(column: Column) -> Swept:
    """Take the data of tombstones away at once, where room is needed more than a courtesy.

    Parameters
    ----------
    column : Column
        With a layout, writable.

    Returns
    -------
    Swept
        What was taken away. Readers with old look-ups look again.
    """
    column.index.refresh()
    records = column.index.records()
    return _remove_data(column, {slot for slot, record in records.items() if not record.any()})


def _remove_data(column: Column, slots: Collection[int]) -> Swept:
    """Remove what tombstones hold."""
    layout, blobs = column.index.layout, column.blobs
    swept = Swept()
    for array in _DATA:
        folder = f"{_layout.column_path(column.key)}/{array}"
        files = [
            (folder, info)
            for info in blobs.list(folder)
            if any(slot in slots for slot in slot_numbers([info.name]))
        ]
        swept += sweep_files(blobs, files)
    for slot in slots:
        blobs.delete(damage_path(layout, slot))
    return swept


def droppable(column: Column, keep: Collection[bytes] = ()) -> dict[int, int]:
    """Find out which slots may go.

    Parameters
    ----------
    column : Column
        With a layout.
    keep : container of bytes
        Digests: slots that hold one of them stay.

    Returns
    -------
    dict of int
        Slot number to the size of its shard [bytes]; 0 where that is missing.
    """
    column.index.refresh()
    folder = f"{_layout.column_path(column.key)}/{_layout.ACTIVATIONS}"
    sizes = {n: info.nbytes for info in column.blobs.list(folder)
             for n in slot_numbers([info.name])}  # fmt: skip
    return {
        slot: sizes.get(slot, 0)
        for slot, record in column.index.records().items()
        if record.any() and not (keep and any(digest.tobytes() in keep for digest in record))
    }


def _temporary_files(
    blobs: Blobs, folders: Collection[str], oldest: float
) -> list[tuple[str, BlobInfo]]:
    return [
        (folder, info)
        for folder in folders
        for info in blobs.leftovers(folder)
        if info.modified <= oldest
    ]


def _is_unread(blobs: Blobs, layout: ColumnLayout, slot: int, has_record: bool) -> bool:
    """Say whether a slot's data are of no use: unpublished, or a tombstone."""
    if not has_record:
        return True
    record = read_key_record(blobs, layout, slot)
    return record is not None and not record.any()  # a damaged record keeps its data


def _spend(blobs: Blobs, layout: ColumnLayout, slot: int) -> bool:
    """Make sure that a slot is a tombstone; says whether it is one."""
    path = layout.slot_name(_layout.IMAGE, slot)
    if blobs.create(path, key_record(layout)):
        return True
    return _is_unread(blobs, layout, slot, True)
