"""A whole store, compared with what was written: documents, columns, leftovers, tags."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING

from featurestore.errors import CorruptDataError, FeatureStoreError
from featurestore.options import format_nbytes
from featurestore.storage import layout as _layout
from featurestore.storage import records
from featurestore.storage.catalog import Catalog, document_keys
from featurestore.storage.check import Finding, check_metadata, check_slot, repair
from featurestore.storage.grams import GramFolder, gram_keys
from featurestore.storage.imagesets import read_image_sets
from featurestore.storage.slots import slot_numbers
from featurestore.storage.sweep import GRACE_S, document_leftovers, leftovers
from featurestore.storage.tags import Tag, check_tag
from featurestore.upkeep.checkpoint import Checkpoint
from featurestore.upkeep.reports import VerifyReport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from featurestore.storage.blob import BlobInfo
    from featurestore.storage.column import Column

RECORD_GRACE_S = 3600.0
"""A key record that is younger may still be on its way to the disk [s]."""


def verify_store(
    catalog: Catalog,
    *,
    fast: bool,
    mend: bool,
    restart: bool,
    on_start: Callable[[int], object],
    on_slot: Callable[[int], object],
) -> VerifyReport:
    """Check everything in a store.

    Parameters
    ----------
    catalog : Catalog
        The store.
    fast : bool
        Whether to leave out the values, and compare sizes and small files only.
    mend : bool
        Whether to mend what can be mended.
    restart : bool
        Whether to begin anew where an earlier check was interrupted.
    on_start, on_slot : callable
        Told how many bytes there are to check, and after each slot how many more are done.

    Returns
    -------
    VerifyReport
        Every finding.
    """
    if mend:
        catalog.require_writable("repairs")
    else:
        catalog = Catalog(catalog.blobs, "r")  # which sets nothing aside and marks nothing
    report = VerifyReport(str(catalog), fast)
    report.findings += _check_documents(catalog, mend=mend)
    columns = list(_open_columns(catalog, report))
    on_start(sum(column.nbytes() for column in columns))
    checkpoint = Checkpoint(catalog, restart=restart) if not fast else None
    try:
        for column in columns:
            _check_column(column, report, checkpoint, mend=mend, on_slot=on_slot)
    finally:
        if checkpoint is not None:
            checkpoint.save()
    if checkpoint is not None:
        checkpoint.finish()
    report.findings += _find_leftovers(catalog, columns)
    if not fast:
        report.findings += _check_distances(catalog, mend=mend)
        report.findings += _check_tags(catalog)
    report.names = _names(catalog, {d for finding in report.findings for d in finding.digests})
    return report


def _open_columns(catalog: Catalog, report: VerifyReport) -> Iterator[Column]:
    for key in _column_keys(catalog):
        column = catalog.column(key)
        try:
            layout = column.layout
        except FeatureStoreError as err:
            text = f"the column cannot be read: {err}"
            path = _layout.document_path("layouts", key)
            report.findings.append(Finding("document", path, text, key))
            continue
        if layout is not None:
            yield column
        else:
            text = f"column {key} has no layout, so nobody can read it"
            report.findings.append(Finding("orphan", _layout.column_path(key), text, key))


def _column_keys(catalog: Catalog) -> list[str]:
    held = [*document_keys(catalog.blobs, "layouts"), *catalog.blobs.folders("columns")]
    return sorted({key for key in held if _layout.is_key(key)})


def _check_documents(catalog: Catalog, *, mend: bool) -> Iterator[Finding]:
    try:
        marker = records.read(catalog.blobs, _layout.MARKER)
    except CorruptDataError:
        yield Finding("document", _layout.MARKER, "it is not the document that was written")
    else:
        # A writer that was killed at its very start leaves neither a marker nor anything else.
        if marker is None and document_keys(catalog.blobs, "layouts"):
            yield Finding("document", _layout.MARKER, "it is missing")
    for kind in _layout.DOCUMENT_FOLDERS:
        for key in filter(_layout.is_key, document_keys(catalog.blobs, kind)):
            path = _layout.document_path(kind, key)
            try:
                records.read(catalog.blobs, path)
            except CorruptDataError:
                text = "it is not the document that was written"
                if mend and kind == "layouts":  # a layout has a second copy
                    yield Finding("document", path, text,
                                  repaired=catalog.column(key).layout is not None)  # fmt: skip
                else:
                    if mend:
                        records.set_aside(catalog.blobs, path)
                    yield Finding("document", path, text, repaired=mend)


def _check_column(
    column: Column,
    report: VerifyReport,
    checkpoint: Checkpoint | None,
    *,
    mend: bool,
    on_slot: Callable[[int], object],
) -> None:
    report.n_columns += 1
    base = _layout.column_path(column.key)
    shards = _by_slot(column.blobs.list(f"{base}/{_layout.ACTIVATIONS}"))
    published = _by_slot(column.blobs.list(f"{base}/{_layout.IMAGE}"))
    column.index.refresh()
    index = column.index.records()
    for slot, info in sorted(published.items()):
        shard = shards.get(slot)
        version = f"{info.version} {shard.version if shard else ''}"
        nbytes = shard.nbytes if shard else 0
        report.n_slots += 1
        report.n_rows += int(index[slot].any(axis=1).sum()) if slot in index else 0
        if checkpoint is not None and checkpoint.is_whole(column.key, slot, version):
            report.n_skipped += 1
        else:
            findings = check_slot(column, slot, fast=report.fast)
            report.nbytes += 0 if report.fast else nbytes
            if checkpoint is not None and not findings:
                checkpoint.note(column.key, slot, version)
            report.findings += [_mend(column, f, info) if mend else f for f in findings]
        on_slot(nbytes)
    findings = check_metadata(column)
    report.findings += [repair(column, finding) if mend else finding for finding in findings]


def _mend(column: Column, finding: Finding, record: BlobInfo) -> Finding:
    if finding.problem == "key record" and record.modified > column.blobs.now() - RECORD_GRACE_S:
        text = f"{finding.text}; it is younger than an hour and may still be being written"
        return replace(finding, text=text)
    return repair(column, finding)


def _by_slot(infos: Iterable[BlobInfo]) -> dict[int, BlobInfo]:
    return {slot: info for info in infos for slot in slot_numbers([info.name])}


def _find_leftovers(catalog: Catalog, columns: Iterable[Column]) -> Iterator[Finding]:
    # Looking writes nothing, not even a file to ask the storage for the time.
    clock = catalog.blobs.now() if catalog.mode == "a" else time.time()
    oldest = clock - GRACE_S
    for column in columns:
        held = leftovers(column, oldest)
        if held:
            nbytes = sum(info.nbytes for _, info in held)
            text = (
                f"{len(held)} files of column {column.key} that nobody reads, "
                f"{format_nbytes(nbytes)}; compact() removes them"
            )
            yield Finding("leftover", _layout.column_path(column.key), text, column.key)
    held = document_leftovers(catalog.blobs, oldest)
    if held:
        yield Finding("leftover", "", f"{len(held)} temporary files; compact() removes them")


def _check_distances(catalog: Catalog, *, mend: bool) -> Iterator[Finding]:
    for key in gram_keys(catalog.blobs):
        for path in GramFolder(catalog.blobs, key).damaged():
            if mend:
                catalog.blobs.delete(path)
            text = "these distances are not what was written; they are computed again when needed"
            yield Finding("distances", path, text, repaired=mend)


def _check_tags(catalog: Catalog) -> Iterator[Finding]:
    for key in document_keys(catalog.blobs, "tags"):
        try:
            document = records.read(catalog.blobs, _layout.document_path("tags", key))
        except CorruptDataError:
            continue  # found among the documents
        if document is not None:
            yield from check_tag(catalog, Tag.from_json(document))


def _names(catalog: Catalog, digests: set[str]) -> dict[str, tuple[str, ...]]:
    """Find out what images are called, from every image set that was asked about."""
    names: dict[str, dict[str, None]] = {}
    if digests:
        for images in read_image_sets(catalog):
            for name, digest in zip(images.names, images.hex_digests, strict=True):
                if digest in digests:
                    names.setdefault(digest, {})[name] = None
    return {digest: tuple(found) for digest, found in names.items()}
