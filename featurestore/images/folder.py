"""Which files of a folder are its images, and which class each belongs to."""

from __future__ import annotations

import logging
import os
from pathlib import PurePath
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import InvalidInputError
from featurestore.filehash import open_regular
from featurestore.images.columns import escaped
from featurestore.images.content import why_unreadable
from featurestore.images.formats import SUFFIXES, has_picture_signature
from featurestore.images.imageset import targets

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from typing import Any

    from numpy.typing import NDArray

logger = logging.getLogger(__name__)

SIGNATURE_NBYTES = 32


def find_images(folder: str) -> tuple[list[str], dict[str, str]]:
    """List the images of a folder and its sub-folders.

    Hidden files and folders are left out, and so is whatever neither has a picture's suffix nor
    begins like a picture; their number is logged. Links are followed, except back to a folder
    that contains them.

    Parameters
    ----------
    folder : str
        An absolute path.

    Returns
    -------
    images : list of str
        Paths relative to the folder, with ``/``, sorted by code point.
    failures : dict of str
        Sub-folders that cannot be listed, with ``/`` at the end, and why.

    Raises
    ------
    InvalidInputError
        If there is none.
    """
    found: list[str] = []
    failures: dict[str, str] = {}
    n_ignored = 0
    for relative, path in _walk(folder, "", frozenset(), failures):
        if is_picture(path):
            found.append(relative)
        else:
            n_ignored += 1
    if n_ignored:
        logger.info("%s: %d files are no pictures and were ignored.", folder, n_ignored)
    if not found and not failures:
        raise InvalidInputError(
            f"There are no images in {folder!r} or its sub-folders; {n_ignored} other files were "
            f"found. Files count as images by suffix ({', '.join(sorted(SUFFIXES))}) or by their "
            "first bytes."
        )
    return sorted(found), failures


def class_coords(relative: Sequence[str]) -> dict[str, NDArray[Any]]:
    """Return which class sub-folder each image lies in.

    Parameters
    ----------
    relative : sequence of str
        Paths relative to the folder, with ``/``.

    Returns
    -------
    dict
        ``category``, the first folder below the root (empty for images beside the folders), and
        ``target``, the index of the sorted class names (-1 for those); nothing where there are
        no sub-folders.
    """
    category = np.empty(len(relative), dtype=object)
    category[:] = [path.partition("/")[0] if "/" in path else "" for path in relative]
    if not any(category):
        return {}
    return {"category": category, "target": targets(category)}


def is_picture(path: str) -> bool:
    """Say whether a file is taken for an image.

    Parameters
    ----------
    path : str
        A file, link, or anything else but a folder.

    Returns
    -------
    bool
        True for a picture's suffix, whatever is behind it: a broken link or a FIFO of that name
        is reported as unreadable, not overlooked. Otherwise the first bytes decide.
    """
    if PurePath(path).suffix.lower() in SUFFIXES:
        return True
    try:
        with open_regular(path) as file:
            return has_picture_signature(file.read(SIGNATURE_NBYTES))
    except OSError:
        return False


def _walk(
    folder: str, prefix: str, above: frozenset[tuple[int, int]], failures: dict[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield the relative and the absolute path of every file."""
    try:
        status = os.stat(folder)  # noqa: PTH116 - os.scandir's companion
        here = (status.st_dev, status.st_ino)
        if here in above:
            return  # a link to a folder above: an endless loop
        with os.scandir(folder) as listed:
            entries = list(listed)
    except OSError as err:
        failures[escaped(prefix)] = f"the folder cannot be listed: {why_unreadable(err)}"
        return
    for entry in entries:
        if entry.name.startswith(".") or entry.name == "__MACOSX":
            continue
        if _is_folder(entry):
            yield from _walk(entry.path, f"{prefix}{entry.name}/", above | {here}, failures)
        else:
            yield prefix + entry.name, entry.path


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
