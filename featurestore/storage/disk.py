"""Every call that changes a disk: thin functions over the operating system's.

They are in one place so that tests can make the k-th of them fail, or end the process there, for
every k. Nothing else in this folder may write, link, rename or remove.
"""

from __future__ import annotations

import ctypes
import errno
import os
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path
    from typing import TypeAlias

    Hook: TypeAlias = Callable[[str, Path], None]

Result = TypeVar("Result")

# Constants of renameat2(2) and renamex_np(2): the current folder, and twice "replace nothing".
_HERE, _NO_REPLACE, _EXCLUSIVE = -100, 1, 4

before: Hook | None = None
"""For tests: called with the name and path of each call, before it."""

after: Hook | None = None
"""For tests: called once it has succeeded."""


def _call(name: str, path: Path, act: Callable[[], Result]) -> Result:
    if before is not None:
        before(name, path)
    result = act()
    if after is not None:
        after(name, path)
    return result


def open_new(path: Path) -> int:
    """Create a file that must not exist yet, and open it for writing.

    Parameters
    ----------
    path : Path
        Which file.

    Returns
    -------
    int
        Its descriptor.
    """
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return _call("open_new", path, lambda: os.open(path, flags, 0o666))


def write(descriptor: int, path: Path, data: memoryview) -> int:
    """Write bytes to an open file.

    Parameters
    ----------
    descriptor : int
        The open file.
    path : Path
        Its path.
    data : memoryview
        What to write.

    Returns
    -------
    int
        How many bytes were written; may be fewer than were given.
    """
    return _call("write", path, lambda: os.write(descriptor, data))


def sync(descriptor: int, path: Path) -> None:
    """Wait until an open file's content is durable.

    Parameters
    ----------
    descriptor : int
        The open file.
    path : Path
        Its path.
    """
    _call("sync", path, lambda: os.fsync(descriptor))


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are durable.

    Parameters
    ----------
    folder : Path
        Which folder. Windows has no such call and needs none.
    """
    if os.name != "nt":
        _call("sync_folder", folder, lambda: _sync_folder(folder))


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders that cannot be synced
            raise
    finally:
        os.close(descriptor)


def link(source: Path, target: Path) -> None:
    """Give a file a second name, if nothing has that name.

    Parameters
    ----------
    source, target : Path
        The file, and its second name.
    """
    _call("link", target, lambda: os.link(source, target))


def rename_new(source: Path, target: Path) -> None:
    """Give a file another name in one step, if nothing has that name.

    Parameters
    ----------
    source, target : Path
        The file, and its new name.

    Raises
    ------
    NotImplementedError
        If this system or file system has no such call.
    """
    _call("rename_new", target, lambda: _rename_new(source, target))


def _rename_new(source: Path, target: Path) -> None:
    if os.name == "nt":
        source.rename(target)  # which replaces nothing there
        return
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(source), os.fsencode(target)
    if hasattr(libc, "renameat2"):
        failed = libc.renameat2(_HERE, names[0], _HERE, names[1], _NO_REPLACE)
    elif hasattr(libc, "renamex_np"):  # macOS
        failed = libc.renamex_np(*names, _EXCLUSIVE)
    else:
        raise NotImplementedError
    if failed:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
            raise NotImplementedError
        raise OSError(number, os.strerror(number), str(target))


def rename(source: Path, target: Path) -> None:
    """Give a file another name, whether or not something has it.

    Parameters
    ----------
    source, target : Path
        The file, and its new name.
    """
    _call("rename", target, lambda: source.replace(target))


def unlink(path: Path) -> None:
    """Remove a file, if it is there.

    Parameters
    ----------
    path : Path
        Which file.
    """
    _call("unlink", path, lambda: path.unlink(missing_ok=True))


def mkdir(folder: Path) -> None:
    """Make a folder in one that is there, unless somebody else just did.

    Parameters
    ----------
    folder : Path
        Which folder.
    """
    _call("mkdir", folder, lambda: folder.mkdir(exist_ok=True))
