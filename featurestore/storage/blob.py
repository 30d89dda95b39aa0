"""Named pieces of bytes in a folder: five verbs, each atomic and durable.

Everything above speaks of blobs only, so that a bucket can take the place of the folder. `create`
is the commit primitive: it succeeds for exactly one of any number of writers, without locks.
"""

from __future__ import annotations

import contextlib
import io
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featurestore.errors import FeatureStoreError
from featurestore.storage.links import open_plain, require_inside
from featurestore.storage.publish import TEMPORARY_PREFIX, Publisher

if TYPE_CHECKING:
    import builtins
    from collections.abc import Iterator
    from io import FileIO

MAX_BUFFERS = 1024  # IOV_MAX


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """What a listing says of a blob."""

    name: str
    """The last part of its path."""
    nbytes: int
    version: str
    """Changes whenever the content may have changed."""
    modified: float
    """When it was last written, by the storage's clock [s since 1970]."""


class Blobs(Protocol):
    """Where blobs live. Paths are POSIX, relative, and made of digests and fixed words only."""

    def get(self, path: str, start: int = 0, nbytes: int | None = None) -> bytes:
        """Read a blob, or part of it; `FileNotFoundError` if there is none."""
        ...

    def get_into(self, path: str, start: int, *outs: memoryview) -> int:
        """Read part of a blob into memory at hand; returns how many bytes there were."""
        ...

    def nbytes(self, path: str) -> int:
        """Return the size of a blob [bytes]; `FileNotFoundError` if there is none."""
        ...

    def list(self, folder: str) -> builtins.list[BlobInfo]:
        """List the blobs right under a folder; none if there is no folder."""
        ...

    def folders(self, folder: str) -> builtins.list[str]:
        """List the names of the folders right under a folder."""
        ...

    def leftovers(self, folder: str) -> builtins.list[BlobInfo]:
        """List what writers that were killed, or are still at it, left right under a folder."""
        ...

    def now(self) -> float:
        """Return the time by the storage's own clock [s since 1970]."""
        ...

    def create(self, path: str, *parts: bytes | memoryview) -> bool:
        """Write a blob unless one of that path exists; says whether this call wrote it."""
        ...

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a blob, whether or not one exists; readers see the old one or the new one."""
        ...

    def delete(self, path: str) -> None:
        """Remove a blob, if it is there."""
        ...


class LocalBlobs:
    """Blobs as files under a folder; links that lead out of it are refused.

    Parameters
    ----------
    root : path-like
        The folder; made by the first write.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._publisher = Publisher(self.root)
        self._inside: set[str] = set()

    def __repr__(self) -> str:
        return f"LocalBlobs({str(self.root)!r})"

    def get(self, path: str, start: int = 0, nbytes: int | None = None) -> bytes:
        """Read a blob, or part of it.

        Parameters
        ----------
        path : str
            Which blob.
        start : int
            First byte.
        nbytes : int, optional
            How many bytes; all that follow if not given.

        Returns
        -------
        bytes
            Fewer than asked for where the blob ends.
        """
        self._place(path)
        with io.BufferedReader(open_plain(self.root, path)) as file:
            if start:
                file.seek(start)
            return file.read(-1 if nbytes is None else nbytes)

    def get_into(self, path: str, start: int, *outs: memoryview) -> int:
        """Read part of a blob into memory at hand.

        Parameters
        ----------
        path : str
            Which blob.
        start : int
            First byte.
        *outs : memoryview
            Filled one after the other.

        Returns
        -------
        int
            How many bytes there were.
        """
        rest = [out.cast("B") for out in outs if out.nbytes]
        done = 0
        self._place(path)
        with open_plain(self.root, path) as file:
            while rest:
                n = _read_some(file, start + done, rest[:MAX_BUFFERS])
                if not n:
                    break
                done += n
                while rest and n >= len(rest[0]):
                    n -= len(rest.pop(0))
                if n:
                    rest[0] = rest[0][n:]
        return done

    def nbytes(self, path: str) -> int:
        """Return the size of a blob.

        Parameters
        ----------
        path : str
            Which blob.

        Returns
        -------
        int
            Its size [bytes].
        """
        facts = self._place(path).lstat()
        if stat.S_ISLNK(facts.st_mode):
            require_inside(self.root, path)
            facts = (self.root / path).stat()
        return facts.st_size

    def list(self, folder: str) -> builtins.list[BlobInfo]:
        """List the blobs right under a folder.

        Parameters
        ----------
        folder : str
            Which folder.

        Returns
        -------
        list of BlobInfo
            In no particular order, without leftovers of writers that were killed.
        """
        return [info for info in self._scan(folder) if not _is_temporary(info.name)]

    def folders(self, folder: str) -> builtins.list[str]:
        """List the names of the folders right under a folder.

        Parameters
        ----------
        folder : str
            Which folder.

        Returns
        -------
        list of str
            Sorted; none if there is no such folder.
        """
        try:
            with os.scandir(self._folder(folder)) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def leftovers(self, folder: str) -> builtins.list[BlobInfo]:
        """List temporary files right under a folder: of writers that were killed, or still write.

        Parameters
        ----------
        folder : str
            Which folder.

        Returns
        -------
        list of BlobInfo
            Their names; with the folder in front, `delete` takes them.
        """
        return [info for info in self._scan(folder) if _is_temporary(info.name)]

    def now(self) -> float:
        """Return the time by the storage's own clock, which a file server need not share with us.

        Returns
        -------
        float
            In the units of `BlobInfo.modified` [s since 1970].
        """
        return self._publisher.now()

    def create(self, path: str, *parts: bytes | memoryview) -> bool:
        """Write a blob unless one of that path exists.

        Parameters
        ----------
        path : str
            Which blob.
        *parts : bytes-like
            Its content, one part after the other.

        Returns
        -------
        bool
            Whether this call wrote it. Afterwards a blob of that path exists and is durable.
        """
        return self._publisher.create(self._place(path), parts)

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a blob, whether or not one exists.

        Parameters
        ----------
        path : str
            Which blob.
        data : bytes-like
            Its content.
        """
        self._publisher.replace(self._place(path), (data,))

    def delete(self, path: str) -> None:
        """Remove a blob, if it is there.

        Parameters
        ----------
        path : str
            Which blob.
        """
        self._publisher.delete(self._place(path))

    def _place(self, path: str) -> Path:
        """Return where a blob lies, whose folder must lie in the store."""
        self._folder(path.rpartition("/")[0])
        return self.root / path

    def _folder(self, folder: str) -> Path:
        place = self.root / folder
        if folder not in self._inside:
            require_inside(self.root, folder)
            if place.is_dir():  # else it may yet be made, by anyone
                self._inside.add(folder)
        return place

    def _scan(self, folder: str) -> builtins.list[BlobInfo]:
        found = []
        try:
            with os.scandir(self._folder(folder)) as entries:
                for entry in entries:
                    if entry.is_symlink():
                        require_inside(self.root, f"{folder}/{entry.name}")
                    try:
                        facts = entry.stat()
                    except FileNotFoundError:
                        continue  # removed while we looked
                    if not stat.S_ISREG(facts.st_mode):
                        continue
                    # The inode alone can be reused and the time alone can be copied.
                    version = f"{facts.st_ino}-{facts.st_mtime_ns}-{facts.st_size}"
                    found.append(BlobInfo(entry.name, facts.st_size, version, facts.st_mtime))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return found


@contextlib.contextmanager
def removing_on_failure(blobs: Blobs, path: str) -> Iterator[None]:
    """Remove a blob that nobody has seen yet, if what is to make it visible fails.

    On a disk that is full it would take what room is left, once for every attempt.

    Parameters
    ----------
    blobs : Blobs
        The store.
    path : str
        The blob, which this process created.

    Yields
    ------
    None
        While it is being made visible.
    """
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError, FeatureStoreError):  # the first error matters more
            blobs.delete(path)
        raise


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY_PREFIX)


def _read_some(file: FileIO, start: int, outs: list[memoryview]) -> int:
    if hasattr(os, "preadv"):
        # One call fills all: threads that return to the interpreter for each wait on one another.
        return os.preadv(file.fileno(), outs, start)
    file.seek(start)
    return file.readinto(outs[0])
