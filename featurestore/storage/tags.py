"""Tags: the data of one paper, frozen under a name.

A tag names columns, digests and a checksum of each row's values, never slots: it stays true
through compaction, and says so if a row was lost and computed again with other bits.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from featurestore.canonical import digest_of
from featurestore.errors import (
    CorruptDataError,
    FeaturesMissingError,
    InvalidInputError,
    NotFoundError,
    did_you_mean,
)
from featurestore.storage import layout as _layout
from featurestore.storage import records
from featurestore.storage.catalog import document_keys, now
from featurestore.storage.check import Finding
from featurestore.storage.reader import DamagedRowsError
from featurestore.typing import DIGEST_NBYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.storage.catalog import Catalog
    from featurestore.storage.column import Column
    from featurestore.typing import Json

READ_NBYTES = 16 * 2**20
MAX_NAME_LENGTH = 300


@dataclass(frozen=True, slots=True)
class FrozenRows:
    """Rows of one column as they were when they were tagged."""

    column: str
    """The feature key."""
    model: str
    """The model as users write it."""
    module: str
    digests: NDArray[np.uint8]
    """Array of shape (n, 16): which images."""
    checksums: NDArray[np.uint64]
    """xxh3_64 of each row as stored."""


@dataclass(frozen=True, slots=True)
class Tag:
    """A name for the data of one paper."""

    name: str
    created: str
    """When it was made, UTC."""
    rows: tuple[FrozenRows, ...]

    @property
    def n_rows(self) -> int:
        """Rows of all columns."""
        return sum(len(frozen.digests) for frozen in self.rows)

    def to_json(self) -> dict[str, Json]:
        """Return the tag as it is stored.

        Returns
        -------
        dict
            JSON-able.
        """
        columns: list[Json] = [
            {
                "key": frozen.column,
                "model": frozen.model,
                "module": frozen.module,
                "digests": _pack(frozen.digests),
                "checksums": _pack(frozen.checksums.astype("<u8")),
            }
            for frozen in self.rows
        ]
        return {
            "format": _layout.FORMAT,
            "name": self.name,
            "created": self.created,
            "columns": columns,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> Tag:
        """Read what `to_json` wrote.

        Parameters
        ----------
        facts : mapping
            JSON-able.

        Returns
        -------
        Tag
            The same tag.

        Raises
        ------
        CorruptDataError
            If it is no tag.
        """
        _layout.require_format(facts, f"Tag {facts.get('name')!r}")
        try:
            rows = tuple(
                FrozenRows(
                    _layout.require_key(str(column["key"])),
                    str(column["model"]),
                    str(column["module"]),
                    _unpack(column["digests"], "u1").reshape(-1, DIGEST_NBYTES),
                    _unpack(column["checksums"], "<u8"),
                )
                for column in facts["columns"]
            )
            return cls(str(facts["name"]), str(facts["created"]), rows)
        except (KeyError, TypeError, ValueError) as err:
            raise CorruptDataError(
                f"A document in the store is called a tag and is none: {err}.", images=[]
            ) from err

    def __repr__(self) -> str:
        lines = [f"<featurestore.Tag {self.name!r}: {self.n_rows} rows, made {self.created}>"]
        lines += [f"  {f.model}  {f.module}  {len(f.digests)} images" for f in self.rows]
        return "\n".join(lines)


def create_tag(
    catalog: Catalog, name: str, wanted: Sequence[tuple[str, str, str, NDArray[np.uint8]]]
) -> Tag:
    """Freeze rows under a name. Reads every value once.

    Parameters
    ----------
    catalog : Catalog
        The store, writable.
    name : str
        Any text.
    wanted : sequence of (str, str, str, ndarray)
        Feature key, model, module and digests of each column.

    Returns
    -------
    Tag
        What was frozen; the tag that stands, if it was made before with the same rows.

    Raises
    ------
    FeaturesMissingError
        If a row is not there.
    InvalidInputError
        If the name is taken by other rows.
    """
    _require_name(name)
    catalog.require_writable("a tag")
    rows = tuple(
        FrozenRows(key, model, module, digests, _checksums_now(catalog.column(key), digests))
        for key, model, module, digests in wanted
    )
    tag = Tag(name, now(), rows)
    standing = Tag.from_json(records.create(catalog.blobs, _path(name), tag.to_json()))
    if standing.to_json()["columns"] != tag.to_json()["columns"]:
        raise InvalidInputError(
            f"A tag called {name!r} was made {standing.created} for other rows. Choose another "
            "name, or remove that one first: store.tag(name, remove=True).",
            name=name,
        )
    return standing


def read_tag(catalog: Catalog, name: str) -> Tag:
    """Give a tag back.

    Parameters
    ----------
    catalog : Catalog
        The store.
    name : str
        Its name.

    Returns
    -------
    Tag
        What was frozen.

    Raises
    ------
    NotFoundError
        If there is none of that name.
    """
    document = catalog.read(_path(name))
    if document is None:
        names = [tag.name for tag in list_tags(catalog)]
        raise NotFoundError(
            f"{catalog} has no tag {name!r}.{did_you_mean(name, names)} "
            f"It has: {', '.join(map(repr, names)) or 'none'}.",
            name=name,
            choices=names,
        )
    return Tag.from_json(document)


def delete_tag(catalog: Catalog, name: str) -> None:
    """Remove a tag; the rows stay.

    Parameters
    ----------
    catalog : Catalog
        The store, writable.
    name : str
        Its name.

    Raises
    ------
    NotFoundError
        If there is none of that name.
    """
    read_tag(catalog, name)
    catalog.require_writable("a tag")
    catalog.blobs.delete(_path(name))


def list_tags(catalog: Catalog) -> list[Tag]:
    """List all tags.

    Parameters
    ----------
    catalog : Catalog
        The store.

    Returns
    -------
    list of Tag
        Oldest first.

    Raises
    ------
    CorruptDataError
        If one is damaged: what it protects is not known, so nothing may be taken away.
    """
    found = []
    for key in document_keys(catalog.blobs, "tags"):
        document = records.read(catalog.blobs, _layout.document_path("tags", key))
        if document is not None:
            found.append(Tag.from_json(document))
    return sorted(found, key=lambda tag: (tag.created, tag.name))


def tagged_digests(catalog: Catalog) -> dict[str, set[bytes]]:
    """Return which rows any tag protects.

    Parameters
    ----------
    catalog : Catalog
        The store.

    Returns
    -------
    dict of set of bytes
        Digests by feature key.
    """
    protected: dict[str, set[bytes]] = {}
    for tag in list_tags(catalog):
        for frozen in tag.rows:
            protected.setdefault(frozen.column, set()).update(d.tobytes() for d in frozen.digests)
    return protected


def check_tag(catalog: Catalog, tag: Tag) -> list[Finding]:
    """Compare the rows of a tag with what they were.

    Parameters
    ----------
    catalog : Catalog
        The store.
    tag : Tag
        From `list_tags`.

    Returns
    -------
    list of Finding
        One per column with rows that are missing or differ.
    """
    findings = []
    for frozen in tag.rows:
        column = catalog.column(frozen.column)
        missing, changed = [], []
        for start, checksums in _row_checksums(column, frozen.digests):
            for n, checksum in enumerate(checksums, start):
                if checksum is None:
                    missing.append(n)
                elif checksum != int(frozen.checksums[n]):
                    changed.append(n)
        if missing or changed:
            text = (
                f"of tag {tag.name!r}, {frozen.model} {frozen.module}: {len(missing)} of "
                f"{len(frozen.digests)} rows are missing, {len(changed)} differ from what was "
                "frozen"
            )
            digests = tuple(frozen.digests[n].tobytes().hex() for n in missing + changed)
            path = _path(tag.name)
            findings.append(Finding("tag", path, text, frozen.column, digests=digests))
    return findings


def _checksums_now(column: Column, digests: NDArray[np.uint8]) -> NDArray[np.uint64]:
    found: list[int] = []
    for start, checksums in _row_checksums(column, digests):
        for n, checksum in enumerate(checksums, start):
            if checksum is None:
                raise FeaturesMissingError(
                    f"The row of image {digests[n].tobytes().hex()} is not in the store, so it "
                    "cannot be frozen. Ask for the features again, then tag what get() returned.",
                    missing=(digests[n].tobytes().hex(),),
                )
            found.append(checksum)
    return np.array(found, np.uint64)


def _row_checksums(
    column: Column, digests: NDArray[np.uint8]
) -> Iterator[tuple[int, list[int | None]]]:
    """Read rows in pieces; ``None`` stands for a row that is not there."""
    layout = column.layout
    if layout is None:
        yield 0, [None] * len(digests)
        return
    step = max(1, READ_NBYTES // layout.row_nbytes)
    for start in range(0, len(digests), step):
        while True:
            rows = column.lookup(digests[start : start + step])
            try:
                values = column.read(rows[rows >= 0])
                break
            except DamagedRowsError:
                continue  # misses by now, or somewhere else
        checksums: list[int | None] = [None] * len(rows)
        for n, value in zip(np.flatnonzero(rows >= 0).tolist(), values, strict=True):
            checksums[n] = xxhash.xxh3_64_intdigest(np.ascontiguousarray(value).tobytes())
        yield start, checksums


def _require_name(name: object) -> None:
    if not isinstance(name, str) or not name.strip() or len(name) > MAX_NAME_LENGTH:
        raise InvalidInputError(
            f"{name!r} is not a tag's name. Give a text of at most {MAX_NAME_LENGTH} characters, "
            "such as 'paper-2026'."
        )


def _path(name: str) -> str:
    return _layout.document_path("tags", digest_of("tag", name))  # user text never is a path


def _pack(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode("ascii")


def _unpack(text: str, dtype: str) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(text, validate=True), dtype)
