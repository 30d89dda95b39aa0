"""Named pieces of bytes in a folder: five verbs, each atomic and durable.

Everything above speaks of blobs only, so that a bucket can take the place of the folder. `create`
is the commit primitive: it succeeds for exactly one of any number of writers, without locks.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featurestore.errors import DiskSpaceError, ReadOnlyError, StoreNotFoundError
from featurestore.storage import disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from io import FileIO
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | memoryview

MAX_BUFFERS = 1024  # IOV_MAX

MAX_ATTEMPTS = 3  # a temporary file is swept after days; twice in one write means something else

TEMPORARY_PREFIX = ".tmp."

# What link(2) answers where a file system has no hard links (exFAT, some SMB and FUSE mounts).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # no quotas on Windows


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

    def list(self, folder: str) -> list[BlobInfo]:
        """List the blobs right under a folder; none if there is no folder."""
        ...

    def folders(self, folder: str) -> list[str]:
        """List the names of the folders right under a folder."""
        ...

    def leftovers(self, folder: str) -> list[BlobInfo]:
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
    """Blobs as files under a folder.

    Parameters
    ----------
    root : path-like
        The folder; made by the first write.
    """

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root)
        self._was_there = self.root.is_dir()
        self._settled: set[Path] = set()

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
        with (self.root / path).open("rb") as file:
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
        with (self.root / path).open("rb", buffering=0) as file:
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
        return (self.root / path).stat().st_size

    def list(self, folder: str) -> list[BlobInfo]:
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

    def folders(self, folder: str) -> list[str]:
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
            with os.scandir(self.root / folder) as entries:
                return sorted(entry.name for entry in entries if entry.is_dir())
        except (FileNotFoundError, NotADirectoryError):
            return []

    def leftovers(self, folder: str) -> list[BlobInfo]:
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
        temporary = _temporary_in(self.root)
        try:
            with self._explaining():
                _write_file(disk.open_new(temporary), temporary, [b"now"])
                return temporary.stat().st_mtime
        finally:
            _remove_quietly(temporary)

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
        target = self.root / path
        return self._write(target, parts, lambda temporary: _publish_new(temporary, target))

    def replace(self, path: str, data: bytes | memoryview) -> None:
        """Write a blob, whether or not one exists.

        Parameters
        ----------
        path : str
            Which blob.
        data : bytes-like
            Its content.
        """
        target = self.root / path
        self._write(target, (data,), lambda temporary: _publish_over(temporary, target))

    def delete(self, path: str) -> None:
        """Remove a blob, if it is there.

        Parameters
        ----------
        path : str
            Which blob.
        """
        with self._explaining():
            disk.unlink(self.root / path)

    def _scan(self, folder: str) -> list[BlobInfo]:
        found = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
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

    def _write(
        self, target: Path, parts: Sequence[Buffer], publish: Callable[[Path], bool]
    ) -> bool:
        """Write beside the target, make it durable, then publish it under its name."""
        folder = target.parent
        with self._explaining():
            for attempt in range(1, MAX_ATTEMPTS + 1):
                temporary = _temporary_in(folder)
                descriptor = self._open_new(temporary)
                try:
                    _write_file(descriptor, temporary, parts)
                    done = publish(temporary)
                except FileNotFoundError:
                    # Swept as a leftover while this process was stopped.
                    if temporary.exists() or attempt == MAX_ATTEMPTS:
                        _remove_quietly(temporary)
                        raise
                    continue
                except BaseException:
                    _remove_quietly(temporary)
                    raise
                disk.sync_folder(folder)
                self._settle(folder)
                self._was_there = True
                return done
        raise AssertionError("the last attempt returns or raises")

    def _open_new(self, temporary: Path) -> int:
        try:
            return disk.open_new(temporary)
        except FileNotFoundError:
            self._make_folder(temporary.parent)
            return disk.open_new(temporary)

    def _make_folder(self, folder: Path) -> None:
        if self._was_there and not self.root.is_dir():
            # Making it anew would begin an empty store beside the one that comes back.
            raise StoreNotFoundError(
                f"The store {self.root} was here and is gone: moved, deleted, or on a disk that is "
                "no longer mounted. Bring it back and run the same call again, or open the path "
                "again to begin a new store there.",
                path=str(self.root),
            )
        missing = []
        while not folder.exists():
            missing.append(folder)
            folder = folder.parent
        for place in reversed(missing):
            disk.mkdir(place)
            self._settled.discard(place)
            if place not in (self.root, *self.root.parents):
                continue
            disk.sync_folder(place.parent)

    def _settle(self, folder: Path) -> None:
        """Make a folder's own name durable: who made it may have been killed before that."""
        if folder in self._settled:
            return
        if folder != self.root:
            self._settle(folder.parent)
            disk.sync_folder(folder.parent)
        elif os.access(folder.parent, os.R_OK):  # else it is not ours to sync, nor did we make it
            disk.sync_folder(folder.parent)
        self._settled.add(folder)

    @contextlib.contextmanager
    def _explaining(self) -> Iterator[None]:
        try:
            yield
        except OSError as err:
            explained = _explained(err, self.root)
            if explained is None:
                raise
            raise explained from err


def _is_temporary(name: str) -> bool:
    return name.startswith(TEMPORARY_PREFIX)


def _temporary_in(folder: Path) -> Path:
    return folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def _write_file(descriptor: int, path: Path, parts: Sequence[Buffer]) -> None:
    """Write a new file, make it durable and close it."""
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[disk.write(descriptor, path, view) :]
        disk.sync(descriptor, path)
    finally:
        os.close(descriptor)


def _publish_new(temporary: Path, target: Path) -> bool:
    try:
        disk.link(temporary, target)
        done = True
    except FileExistsError:
        # A lost reply from a file server looks the same; then the file is ours.
        done = temporary.stat().st_nlink == 2
    except OSError as err:
        if err.errno not in _NO_LINKS:
            raise
        return _publish_without_links(temporary, target)
    disk.unlink(temporary)
    return done


def _publish_without_links(temporary: Path, target: Path) -> bool:
    """Take the name by an empty file, then put the content there in one step.

    Not one step in all, but safe: whoever reads between the two, or after a kill there, finds an
    empty file, which is no document, no shard and no key record.
    """
    try:
        os.close(disk.open_new(target))
    except FileExistsError:
        disk.unlink(temporary)
        return False
    try:
        return _publish_over(temporary, target)
    except BaseException:
        _remove_quietly(target)  # or the name would be spent
        raise


def _publish_over(temporary: Path, target: Path) -> bool:
    disk.rename(temporary, target)
    return True


def _remove_quietly(path: Path) -> None:
    # On the way out with an error that matters more; what stays is swept one day.
    with contextlib.suppress(OSError):
        disk.unlink(path)


def _explained(err: OSError, root: Path) -> Exception | None:
    """Turn what the disk said into what the user can do, where that is known."""
    if err.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return ReadOnlyError(
            f"The store {root} cannot be written: {err.strerror}. What it holds can be read with "
            "mode='r'; to add to it, ask for write permission or use another folder.",
            path=str(root),
        )
    if err.errno in _DISK_FULL:
        return DiskSpaceError(
            f"The disk under the store {root} is full: {err.strerror}. Everything published "
            "before is kept; free some space and run the same call again.",
            path=str(root),
        )
    return None


def _read_some(file: FileIO, start: int, outs: list[memoryview]) -> int:
    if hasattr(os, "preadv"):
        # One call fills all: threads that return to the interpreter for each wait on one another.
        return os.preadv(file.fileno(), outs, start)
    file.seek(start)
    return file.readinto(outs[0])
