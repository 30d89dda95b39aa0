"""The ``zarr.json`` of a column's group: how many slots it shows, and the layout's second copy."""

from __future__ import annotations

import json
import logging
from typing import TYPE_CHECKING, Any

from featurestore.errors import CorruptDataError
from featurestore.storage import layout as _layout
from featurestore.storage import records

if TYPE_CHECKING:
    from featurestore.storage.blob import Blobs

_log = logging.getLogger(__name__)

MAX_METADATA_NBYTES = 2**20  # a group's zarr.json has less than 20 KiB
MAX_ADVERTISED = 2**40 // 256  # more slots than any disk holds


def read_layout(blobs: Blobs, key: str, *, writable: bool) -> dict[str, Any] | None:
    """Read the layout of a column, from its second copy if the first is lost.

    Parameters
    ----------
    blobs : Blobs
        The store.
    key : str
        The feature key.
    writable : bool
        Whether a lost one may be written anew, and a damaged one set aside.

    Returns
    -------
    dict or None
        ``None`` if the column has none.

    Raises
    ------
    CorruptDataError
        If it is damaged, may not be set aside, and there is no second copy.
    """
    path = _layout.document_path("layouts", key)
    damage: CorruptDataError | None = None
    try:
        document = records.read(blobs, path)
    except CorruptDataError as err:
        document, damage = None, err
    if document is not None:
        return document
    # Another layout than the first one would make its slots unreadable.
    copy = _layout_in_group(blobs, key)
    if not writable:
        if copy is None and damage is not None:
            raise damage
        return copy
    if damage is not None:
        _log.warning("%s was damaged and is set aside", path)
        records.set_aside(blobs, path)
    return None if copy is None else records.create(blobs, path, copy)


def advertised(blobs: Blobs, key: str) -> int:
    """Return how many slots of a column plain Zarr readers see.

    Parameters
    ----------
    blobs : Blobs
        The store.
    key : str
        The feature key.

    Returns
    -------
    int
        0 if the metadata are absent or damaged.
    """
    try:
        group = _read_group(blobs, key)
        n_slots = group["consolidated_metadata"]["metadata"][_layout.RUN]["shape"][0]
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return 0
    # A damaged number must not become the length for good.
    return n_slots if type(n_slots) is int and 0 <= n_slots < MAX_ADVERTISED else 0


def _layout_in_group(blobs: Blobs, key: str) -> dict[str, Any] | None:
    try:
        held = _read_group(blobs, key)["attributes"]["featurestore"]
        # Under the path of the layout, whose rules it has to keep.
        return records.parse(json.dumps(held).encode(), _layout.document_path("layouts", key))
    except (FileNotFoundError, ValueError, LookupError, TypeError, RecursionError):
        return None
    except CorruptDataError:
        return None


def _read_group(blobs: Blobs, key: str) -> Any:
    path = f"{_layout.column_path(key)}/zarr.json"
    return json.loads(blobs.get(path, 0, MAX_METADATA_NBYTES))
