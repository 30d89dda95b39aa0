"""Small JSON documents in a store, each carrying a checksum of itself.

A flipped bit in a document must not become another shape, another model or another name, so a
document whose checksum does not fit is damage, never data. Nor is one that means nothing, whoever
wrote it: see `featurestore.storage.schema`.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import xxhash

from featurestore.canonical import canonical_json
from featurestore.errors import CorruptDataError, IdentityError
from featurestore.storage.schema import require_document

if TYPE_CHECKING:
    from collections.abc import Mapping

    from featurestore.storage.blob import Blobs
    from featurestore.typing import Json

# Far above what is written: a sparse file of terabytes must not be read into memory.
MAX_NBYTES = 2**27
MAX_IMAGE_SET_NBYTES = 2**31  # 20 million names


def spell(document: Mapping[str, Json]) -> bytes:
    """Write a document as it is stored.

    Parameters
    ----------
    document : mapping
        JSON-able, without ``"checksum"``.

    Returns
    -------
    bytes
        Indented JSON with the checksum as its last member.
    """
    checked = with_checksum(document)
    return json.dumps(checked, ensure_ascii=False, indent=1, allow_nan=False).encode("utf-8")


def with_checksum(document: Mapping[str, Json]) -> dict[str, Json]:
    """Add the checksum that `parse` looks for.

    Parameters
    ----------
    document : mapping
        JSON-able, without ``"checksum"``.

    Returns
    -------
    dict
        The document with its checksum.
    """
    return {**document, "checksum": _checksum(document)}


def parse(data: bytes, where: str) -> dict[str, Any]:
    """Read what `spell` wrote.

    Parameters
    ----------
    data : bytes
        The stored document.
    where : str
        Its path, for the message.

    Returns
    -------
    dict
        The document, without its checksum.

    Raises
    ------
    CorruptDataError
        If it is not JSON, its checksum does not fit, or it means nothing.
    FormatVersionError
        If it was written in a newer format.
    """
    try:
        document = json.loads(data)
        checksum = document.pop("checksum")
        intact = checksum == _checksum(document)
    except (ValueError, KeyError, AttributeError, TypeError, RecursionError, IdentityError):
        intact = False
    if not intact:
        raise CorruptDataError(
            f"{where} in the store is damaged: it is not the document that was written. "
            "Open the store with mode='a' and ask again: it is written anew.",
            path=where,
            images=[],
        )
    require_document(document, where)
    return dict(document)


def _checksum(document: Mapping[str, Json]) -> str:
    return xxhash.xxh3_64_hexdigest(canonical_json(document))


def read(blobs: Blobs, path: str) -> dict[str, Any] | None:
    """Read a document.

    Parameters
    ----------
    blobs : Blobs
        The store.
    path : str
        Which document.

    Returns
    -------
    dict or None
        ``None`` if there is none.

    Raises
    ------
    CorruptDataError
        If it is damaged.
    """
    try:
        data = _fetch(blobs, path)
    except FileNotFoundError:
        return None
    return parse(data, path)


def set_aside(blobs: Blobs, path: str) -> None:
    """Move a damaged document out of the way, so that it can be written anew.

    Parameters
    ----------
    blobs : Blobs
        The store.
    path : str
        Which document; kept beside itself as ``….damaged``.
    """
    try:
        read(blobs, path)
        return  # there is none, or another process has written it anew already
    except CorruptDataError:
        pass
    try:
        nbytes = min(blobs.nbytes(path), _limit(path))  # of what is too large, the beginning
        blobs.replace(f"{path}.damaged", blobs.get(path, 0, nbytes))
    except FileNotFoundError:
        return  # another process was faster
    blobs.delete(path)


def create(blobs: Blobs, path: str, document: Mapping[str, Json]) -> dict[str, Any]:
    """Write a document unless there is one, and return the one that stands.

    Parameters
    ----------
    blobs : Blobs
        The store.
    path : str
        Which document.
    document : mapping
        JSON-able.

    Returns
    -------
    dict
        This document, or the one of whoever was first.

    Raises
    ------
    CorruptDataError
        If there is one and it is damaged.
    """
    data = spell(document)
    if blobs.create(path, data):
        return parse(data, path)
    return parse(_fetch(blobs, path), path)


def _limit(path: str) -> int:
    return MAX_IMAGE_SET_NBYTES if path.startswith("imagesets/") else MAX_NBYTES


def _fetch(blobs: Blobs, path: str) -> bytes:
    nbytes = blobs.nbytes(path)
    if nbytes > _limit(path):
        raise CorruptDataError(
            f"{path} in the store has {nbytes} bytes; no document is larger than {_limit(path)}. "
            "It was not read. Open the store with mode='a' and ask again: it is written anew.",
            path=path,
            images=[],
        )
    return blobs.get(path)
