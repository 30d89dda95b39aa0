"""Symbolic links in a store: none may lead a reader or a writer out of it.

A store that came from a stranger may hold links to anything on the machine. The store itself may
be reached through a link; what lies in it must lie beneath it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from featurestore.errors import InvalidInputError

if TYPE_CHECKING:
    from io import FileIO

# What opening a link answers that is not to be followed; FreeBSD says EMLINK.
_IS_LINK = (errno.ELOOP, errno.EMLINK)


def require_inside(root: Path, path: str) -> None:
    """Refuse what lies elsewhere, by way of links.

    Parameters
    ----------
    root : Path
        The store.
    path : str
        A file or folder in it, whether or not it exists.

    Raises
    ------
    InvalidInputError
        If a link on the way leads out of the store.
    """
    place = Path(os.path.realpath(root / path))
    # What is a link even now goes in circles.
    if not place.is_relative_to(os.path.realpath(root)) or place.is_symlink():
        raise InvalidInputError(
            f"{path} in the store {root} is, or lies behind, a symbolic link that leads out of the "
            f"store, to {place}. Such links are not followed: a store from elsewhere could point "
            "at anything. If the link is yours, put the files themselves in its place (a copy "
            "with cp -rL has them; git-annex: git annex unlock), or move the whole store and "
            "link to that.",
            path=path,
            target=str(place),
        )


def open_plain(root: Path, path: str) -> FileIO:
    """Open a file of a store for reading, and nothing else.

    Parameters
    ----------
    root : Path
        The store.
    path : str
        A file in it, in a folder that is known to be inside.

    Returns
    -------
    file
        Binary, without a buffer.

    Raises
    ------
    InvalidInputError
        If it is a link that leads out of the store, or no plain file.
    """
    # Without waiting, or a pipe of that name would stop us for good.
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(root / path, flags | getattr(os, "O_NOFOLLOW", 0))
    except OSError as err:
        if err.errno not in _IS_LINK:
            raise
        require_inside(root, path)
        descriptor = os.open(root / path, flags)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInputError(
            f"{path} in the store {root} is no plain file but a folder, a pipe or a device. "
            "featurestore did not write it; remove it.",
            path=path,
        )
    return open(descriptor, "rb", buffering=0)  # noqa: PTH123 - handed to the caller
