"""Whether a store is there, answers, may be written and has room; in words, where it does not.

A disk or a network that fails is not damage: the rows may be intact behind it. And a store that
is gone, deleted or unmounted, must not be begun anew by whoever still holds it open.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from featurestore.errors import (
    InvalidInputError,
    ReadOnlyError,
    StoreNotFoundError,
    StoreUnavailableError,
)
from featurestore.storage import layout as _layout
from featurestore.storage.blob import LocalBlobs

if TYPE_CHECKING:
    import builtins
    from collections.abc import Collection, Iterator

    from featurestore.storage.blob import BlobInfo, Blobs

_log = logging.getLogger(__name__)

# What disks, file servers and FUSE mounts answer when they do not work, as opposed to "no such
# file". Some of these are not known on every platform.
_UNAVAILABLE = {
    getattr(errno, name)
    for name in (
        *("EIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EHOSTDOWN", "EHOSTUNREACH", "ENETDOWN"),
        *("ENETUNREACH", "ENODEV", "ENXIO", "EREMOTEIO", "ESHUTDOWN", "ECONNREFUSED"),
        *("ECONNRESET", "ECONNABORTED"),
    )
    if hasattr(errno, name)
}
_FORBIDDEN = {errno.EACCES, errno.EPERM}


class StoreBlobs(LocalBlobs):
    """The blobs of one store, which has to stay where it is once it was seen there.

    Parameters
    ----------
    root : path-like
        The folder; made by the first write.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root)
        self._marker = ""

    def expect(self, marker: str) -> None:
        """Take the store for gone from now on where its marker is.

        Parameters
        ----------
        marker : str
            Path of a blob that is there and that nobody removes.
        """
        self._marker = self._publisher.marker = marker

    def require_present(self) -> None:
        """Raise if the store was here and is gone; nothing if it was never seen.

        Raises
        ------
        StoreUnavailableError
            If its marker is gone, or the disk does not answer.
        """
        if not self._marker:
            return
        try:
            with explained(self.root):
                (self.root / self._marker).stat()
        except (FileNotFoundError, NotADirectoryError) as err:
            raise StoreUnavailableError(
                f"The store {self.root} is gone: its {self._marker} was there before and is not "
                "now. Was it deleted, moved or unmounted? Nothing was begun in its place. Bring "
                "it back and run the same call again; to begin a new one there, open it again.",
                path=str(self.root),
                errno=errno.ENOENT,
            ) from err

    def get(self, path: str, start: int = 0, nbytes: int | None = None) -> bytes:
        """Read a blob, or part of it, as `LocalBlobs.get` does."""
        with self._reading():
            return super().get(path, start, nbytes)

    def get_into(self, path: str, start: int, *outs: memoryview) -> int:
        """Read part of a blob into memory at hand, as `LocalBlobs.get_into` does."""
        with self._reading():
            return super().get_into(path, start, *outs)

    def nbytes(self, path: str) -> int:
        """Return the size of a blob, as `LocalBlobs.nbytes` does."""
        with self._reading():
            return super().nbytes(path)

    def list(self, folder: str) -> builtins.list[BlobInfo]:
        """List the blobs right under a folder, as `LocalBlobs.list` does."""
        with self._reading():
            found = super().list(folder)
        if not found:  # an empty store and a missing one look alike
            self.require_present()
        return found

    def create(self, path: str, *parts: bytes | memoryview) -> bool:
        """Write a blob unless one of that path exists, as `LocalBlobs.create` does."""
        with self._writing():
            return super().create(path, *parts)

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a blob, whether or not one exists, as `LocalBlobs.replace` does."""
        with self._writing():
            super().replace(path, data)

    def delete(self, path: str) -> None:
        """Remove a blob, if it is there, as `LocalBlobs.delete` does."""
        with explained(self.root):
            super().delete(path)

    def folders(self, folder: str) -> builtins.list[str]:
        """List the folders right under a folder, as `LocalBlobs.folders` does."""
        with self._reading():
            return super().folders(folder)

    def leftovers(self, folder: str) -> builtins.list[BlobInfo]:
        """List temporary files right under a folder, as `LocalBlobs.leftovers` does."""
        with self._reading():
            return super().leftovers(folder)

    def now(self) -> float:
        """Return the time by the storage's own clock, as `LocalBlobs.now` does."""
        with self._writing():
            return super().now()

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            with explained(self.root):
                yield
        except (FileNotFoundError, NotADirectoryError):
            self.require_present()
            raise

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        # Before, so that nothing is begun where a store was; after, so that what is said to be
        # kept was not written into a store that was being deleted meanwhile.
        self.require_present()
        try:
            with explained(self.root):
                yield
        except FileNotFoundError:
            self.require_present()
            raise
        self.require_present()


@contextlib.contextmanager
def explained(root: Path) -> Iterator[None]:
    """Say in words when a disk or a network does not answer, or does not let us in.

    Parameters
    ----------
    root : Path
        The store.

    Yields
    ------
    None
        While it is used.

    Raises
    ------
    StoreUnavailableError
        For errors that say nothing of the content. Others pass as they are.
    """
    try:
        yield
    except OSError as err:
        if isinstance(err, StoreUnavailableError):
            raise
        if err.errno is not None and err.errno in _UNAVAILABLE:
            text = (
                f"The store {root} does not answer: {err.strerror} "
                f"({errno.errorcode[err.errno]}). That is the disk, the network or the mount, not "
                "damage in the store: nothing was marked or removed. Run the same call again when "
                "it answers."
            )
        elif err.errno in _FORBIDDEN:
            text = (
                f"Something in the store {root} may not be read: {err.strerror}: "
                f"{err.filename or root}. Ask whoever owns it for permission."
            )
        else:
            raise
        raise StoreUnavailableError(text, path=str(root), errno=err.errno) from err


def require_present(blobs: Blobs) -> None:
    """Raise if a store was here and is gone.

    Parameters
    ----------
    blobs : Blobs
        The store.

    Raises
    ------
    StoreUnavailableError
        If it is gone, or the disk does not answer.
    """
    if isinstance(blobs, StoreBlobs):
        blobs.require_present()


def require_store(root: Path, mode: Literal["a", "r"], entries: Collection[str]) -> None:
    """Raise unless a store without a marker is there, or one may be made by the first write.

    Parameters
    ----------
    root : Path
        The store.
    mode : {"a", "r"}
        ``"r"`` makes none.
    entries : collection of str
        What was in it *before* its marker was looked for: a store begins with its marker, so what
        another process put there since is not taken for something else.

    Raises
    ------
    StoreNotFoundError
        If there is none and `mode` is ``"r"``.
    InvalidInputError
        If the place is taken by something else.
    """
    if "layouts" in entries:
        _log.warning("%s has lost its %s; it is read as format 1", root, _layout.MARKER)
        return  # every document says its own format too
    if mode == "r":
        raise StoreNotFoundError(
            f"There is no feature store at {root}. Check the path, or open it with mode='a' to "
            "make one.",
            path=str(root),
        )
    if nearest_folder(root) is None:
        raise InvalidInputError(
            f"{root}, or something on the way to it, is a file, not a folder that could hold a "
            "store."
        )
    known = {
        "models",
        "aliases",
        "imagesets",
        "runs",
        _layout.MARKER,
        f"{_layout.MARKER}.damaged",
    }  # of a run that was stopped at its start
    if any(not name.startswith(".") and name not in known for name in entries):
        raise InvalidInputError(
            f"{root} is a folder with other things in it, not a feature store. "
            "Give a new folder, such as 'features.fstore'."
        )


def require_place(blobs: Blobs) -> None:
    """Raise unless a store can be written at a place, as far as looking can tell.

    Nothing is written: the folder itself need not exist.

    Parameters
    ----------
    blobs : Blobs
        The store.

    Raises
    ------
    InvalidInputError
        If it, or something on the way to it, is a file.
    ReadOnlyError
        If the nearest folder that exists cannot be written.
    StoreUnavailableError
        If the disk does not answer.
    """
    root = getattr(blobs, "root", None)
    if not isinstance(root, Path):
        return
    with explained(root):
        place = nearest_folder(root)
        if place is None:
            raise InvalidInputError(
                f"No store can be at {root}: it, or something on the way to it, is a file and not "
                "a folder.",
                path=str(root),
            )
        if not os.access(place, os.W_OK | os.X_OK):
            which = "It" if place == root else f"{place}, the nearest folder that exists,"
            raise ReadOnlyError(
                f"The store {root} cannot be written. {which} is read-only or belongs to someone "
                "else. Is a disk to be mounted there? What a store holds can be read with "
                "mode='r'; to fill one, ask for write permission or use another folder. Nothing "
                "was computed.",
                path=str(place),
            )


def nearest_folder(root: Path) -> Path | None:
    """Return the folder, or the nearest one above it that exists.

    Parameters
    ----------
    root : Path
        A folder that may not exist yet.

    Returns
    -------
    Path or None
        ``None`` if something on the way is not a folder.
    """
    place = Path(os.path.abspath(root))  # noqa: PTH100 - resolve() would follow links as well
    while True:
        try:
            place.stat()
        except FileNotFoundError:
            if place.is_symlink() or place.parent == place:
                return None  # a link to nowhere
            place = place.parent
        except NotADirectoryError:
            return None
        else:
            break
    if not place.is_dir():
        return None
    return root if place == Path(os.path.abspath(root)) else place  # noqa: PTH100


def free_nbytes(root: Path) -> int | None:
    """Return how much this user can still write at a place.

    Parameters
    ----------
    root : Path
        A folder that may not exist yet: then the disk of the nearest one above it counts.

    Returns
    -------
    int or None
        Free space without what is reserved for root [bytes]. ``None`` where the file system does
        not say: some network and FUSE mounts report a size of zero. A quota is not seen here.
    """
    place = nearest_folder(root)
    if place is None:
        return None
    usage = shutil.disk_usage(place)
    return usage.free if usage.total else None
