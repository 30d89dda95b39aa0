"""A whole store: its marker, and the models, aliases, runs, image sets and columns in it."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from featurestore.canonical import digest_of
from featurestore.errors import (
    CorruptDataError,
    InvalidInputError,
    ReadOnlyError,
)
from featurestore.networks.spec import ModelRecord
from featurestore.storage import layout as _layout
from featurestore.storage import records
from featurestore.storage.column import Column
from featurestore.storage.presence import (
    StoreBlobs,
    explained,
    free_nbytes,
    require_place,
    require_store,
)
from featurestore.storage.schema import is_feature

_log = logging.getLogger(__name__)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from featurestore.networks.spec import ModelRequest
    from featurestore.storage.blob import Blobs
    from featurestore.storage.layout import ColumnLayout
    from featurestore.typing import Json, PathLike

Mode = Literal["a", "r"]


class Catalog:
    """Everything in a store that is known by a key. Safe to use from many threads.

    Parameters
    ----------
    blobs : Blobs
        Where the store lies.
    mode : {"a", "r"}
        ``"r"`` never writes.
    """

    def __init__(self, blobs: Blobs, mode: Mode) -> None:
        self.blobs = blobs
        self.mode = mode
        self._columns: dict[str, Column] = {}
        self._is_marked = False
        self.published: set[str] = set()
        """Image sets that this process has seen whole in the store."""

    def require_writable(self, what: str) -> None:
        """Raise unless the store may be written; make it, if this is the first write.

        Parameters
        ----------
        what : str
            What was about to be written, for the message.

        Raises
        ------
        ReadOnlyError
            If the store was opened with ``mode="r"``.
        """
        if self.mode == "r":
            raise ReadOnlyError(
                f"{self} was opened with mode='r', so {what} cannot be written. "
                "Open it with mode='a' to fill it."
            )
        if not self._is_marked:  # a store is made by its first write, not by a mistyped look
            document: dict[str, Json] = {
                "format": _layout.FORMAT,
                "store": uuid.uuid4().hex,
                "created": now(),
            }
            require_place(self.blobs)
            if self.read(_layout.MARKER) is None:  # also a damaged one, which is set aside
                records.create(self.blobs, _layout.MARKER, document)
            self._expect_marker()

    def _expect_marker(self) -> None:
        self._is_marked = True  # and the store is gone from now on where its marker is
        if isinstance(self.blobs, StoreBlobs):
            self.blobs.expect(_layout.MARKER)

    def __str__(self) -> str:
        return str(getattr(self.blobs, "root", self.blobs))

    def read(self, path: str) -> dict[str, Any] | None:
        """Read a document; a damaged one is set aside where the store may be written.

        Parameters
        ----------
        path : str
            Which document.

        Returns
        -------
        dict or None
            ``None`` if there is none, or only a damaged one: it is made again from what it
            describes, by the next request that needs it.

        Raises
        ------
        CorruptDataError
            If it is damaged and the store is read-only.
        """
        try:
            return records.read(self.blobs, path)
        except CorruptDataError:
            if self.mode == "r":
                raise
            _log.warning("%s in %s was damaged and is set aside", path, self)
            records.set_aside(self.blobs, path)
            return None

    def free_nbytes(self) -> int | None:
        """Return how much can still be written.

        Returns
        -------
        int or None
            Free disk space for this user [bytes]; ``None`` where that is not known.
        """
        root = getattr(self.blobs, "root", None)
        return free_nbytes(root) if isinstance(root, Path) else None

    def alias(self, request: ModelRequest) -> str | None:
        """Look up which model a request means in this store.

        Parameters
        ----------
        request : ModelRequest
            What the user asked for.

        Returns
        -------
        str or None
            The model key, or ``None`` if this store was never asked for it.
        """
        document = self.read(_layout.document_path("aliases", request.alias))
        return None if document is None else str(document["model"])

    def create_alias(self, request: ModelRequest, model: str) -> str:
        """Remember which model a request means; the first answer stands.

        Parameters
        ----------
        request : ModelRequest
            What the user asked for.
        model : str
            The model key.

        Returns
        -------
        str
            The model key that stands.
        """
        self.require_writable("a model's name")
        path = _layout.document_path("aliases", request.alias)
        document: dict[str, Json] = {
            "format": _layout.FORMAT,
            "request": request.to_json(),
            "model": model,
        }
        return str(records.create(self.blobs, path, document)["model"])

    def model(self, key: str) -> ModelRecord | None:
        """Read the record of a model.

        Parameters
        ----------
        key : str
            The model key.

        Returns
        -------
        ModelRecord or None
            ``None`` if the store does not know the model.
        """
        document = self.read(_layout.document_path("models", key))
        if document is None:
            return None
        _layout.require_format(document, f"Model {key}")
        return ModelRecord.from_json(document)

    def create_model(self, record: ModelRecord) -> ModelRecord:
        """Write the record of a model, unless there is one.

        Parameters
        ----------
        record : ModelRecord
            What is known about the model.

        Returns
        -------
        ModelRecord
            The record that stands.
        """
        self.require_writable("a model's record")
        path = _layout.document_path("models", record.key)
        return ModelRecord.from_json(records.create(self.blobs, path, record.to_json()))

    def model_labels(self) -> list[str]:
        """List the models that the store knows, as users write them.

        Returns
        -------
        list of str
            Sorted, each once.
        """
        labels = set()
        for key in document_keys(self.blobs, "models"):
            with contextlib.suppress(CorruptDataError):  # the others are listed all the same
                record = self.model(key)
                labels |= {record.label} if record is not None else set()
        return sorted(labels)

    def create_run(self, facts: Mapping[str, Json]) -> str:
        """Write the record of a run.

        Parameters
        ----------
        facts : mapping
            Who computes: versions, device, batch size.

        Returns
        -------
        str
            The run's id.
        """
        self.require_writable("a run")
        run = uuid.uuid4().hex
        document: dict[str, Json] = {
            "format": _layout.FORMAT,
            "run": run,
            "started": now(),
            **facts,
        }
        records.create(self.blobs, _layout.document_path("runs", run), document)
        return run

    def run(self, run: str) -> dict[str, Any] | None:
        """Read the record of a run.

        Parameters
        ----------
        run : str
            The run's id.

        Returns
        -------
        dict or None
            ``None`` if there is none.
        """
        return self.read(_layout.document_path("runs", run))

    def column(self, key: str) -> Column:
        """Return a column, whether or not it holds anything yet.

        Parameters
        ----------
        key : str
            The feature key.

        Returns
        -------
        Column
            The same object each time, so that its index is read once.
        """
        if key not in self._columns:
            self._columns[key] = Column(self.blobs, key, writable=self.mode == "a")
        return self._columns[key]

    def layouts(self) -> Iterator[ColumnLayout]:
        """Read the layout of every column that ever held a row.

        Yields
        ------
        ColumnLayout
            In no particular order.
        """
        for key in document_keys(self.blobs, "layouts"):
            try:
                layout = self.column(key).layout
            except CorruptDataError as err:
                _log.warning("%s", err)  # one column's damage must not hide the others
                continue
            if layout is None:
                continue
            if is_feature(layout.feature) and digest_of("feature", dict(layout.feature)) == key:
                yield layout
            else:
                _log.warning("column %s in %s says it is of something else; left out", key, self)


def document_keys(blobs: Blobs, kind: str) -> list[str]:
    """List the keys of all documents of a kind.

    Parameters
    ----------
    blobs : Blobs
        The store.
    kind : str
        Such as ``"layouts"``.

    Returns
    -------
    list of str
        Without documents that were set aside.
    """
    names = (info.name for info in blobs.list(kind))
    keys = [name.removesuffix(".json") for name in names if name.endswith(".json")]
    return [key for key in keys if _layout.is_key(key)]  # whatever else lies there is not ours


def open_catalog(path: PathLike, mode: Mode) -> Catalog:
    """Open a store, making it in mode ``"a"`` if there is none.

    Parameters
    ----------
    path : path-like
        The store's folder.
    mode : {"a", "r"}
        ``"a"`` fills gaps; ``"r"`` never writes.

    Returns
    -------
    Catalog
        The open store.

    Raises
    ------
    StoreNotFoundError
        If there is none and `mode` is ``"r"``.
    InvalidInputError
        If the path is something else than a store, or the mode is unknown.
    FormatVersionError
        If the store is in a newer format.
    """
    if mode not in ("a", "r"):
        raise InvalidInputError(f"mode={mode!r} is not known. Use 'a' (fill gaps) or 'r' (read).")
    given: object = path
    if not (isinstance(given, str | os.PathLike) and os.fspath(given)):
        raise InvalidInputError(
            f"{path!r} is not a path. Give a folder, such as 'features.fstore'."
        )
    root = Path(path).expanduser()
    catalog = Catalog(StoreBlobs(root), mode)
    with explained(root):
        entries = [entry.name for entry in root.iterdir()] if root.is_dir() else []
        marker = _read_marker(catalog) if entries else None
        if marker is not None:
            _layout.require_format(marker, f"The store {root}")
            catalog._expect_marker()
        else:
            require_store(root, mode, entries)
            if mode == "a" and entries:
                catalog.require_writable("its marker")  # lost or damaged: made again
    return catalog


def _read_marker(catalog: Catalog) -> dict[str, Any] | None:
    try:
        return catalog.read(_layout.MARKER)
    except CorruptDataError as err:
        # Every document says its own format: one flipped bit must not shut readers out.
        _log.warning("%s", err)
        return None


def now() -> str:
    """Return the time as it stands in records.

    Returns
    -------
    str
        ISO 8601, UTC, to the second.
    """
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
