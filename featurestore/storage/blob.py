"""Named pieces of bytes in a folder: five verbs, each atomic and durable.

Everything above speaks of blobs only, so that a bucket can take the place of the folder. `create`
is the commit primitive: it succeeds for exactly one of any number of writers, without locks.
"""

from __future__ import annotations

import errno
import os
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from featurestore.errors import DiskSpaceError, ReadOnlyError

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from io import FileIO
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | memoryview

MAX_BUFFERS = 1024  # IOV_MAX

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
        found = []
        try:
            with os.scandir(self.root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith(TEMPORARY_PREFIX):
                        continue
                    try:
                        stat = entry.stat()
                    except FileNotFoundError:
                        continue  # removed while we looked
                    # The inode alone can be reused and the time alone can be copied.
                    version = f"{stat.st_ino}-{stat.st_mtime_ns}-{stat.st_size}"
                    found.append(BlobInfo(entry.name, stat.st_size, version))
        except (FileNotFoundError, NotADirectoryError):
            return []
        return found

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

        def publish(temporary: Path) -> bool:
            try:
                os.link(temporary, target)
            except FileExistsError:
                # A lost reply from a file server looks the same; then the file is ours.
                return temporary.stat().st_nlink == 2
            except OSError as err:
                if err.errno not in _NO_LINKS:
                    raise
                return _create_exclusively(target, parts)
            return True

        return self._write(target, parts, publish)

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

        def publish(temporary: Path) -> bool:
            temporary.replace(target)
            return True

        self._write(target, (data,), publish)

    def delete(self, path: str) -> None:
        """Remove a blob, if it is there.

        Parameters
        ----------
        path : str
            Which blob.
        """
        (self.root / path).unlink(missing_ok=True)

    def _write(
        self, target: Path, parts: Sequence[Buffer], publish: Callable[[Path], bool]
    ) -> bool:
        """Write beside the target, make it durable, then publish it under its name."""
        try:
            return _write_beside(target, self.root, parts, publish)
        except OSError as err:
            explained = _explained(err, self.root)
            if explained is None:
                raise
            raise explained from err


def _write_beside(
    target: Path, root: Path, parts: Sequence[Buffer], publish: Callable[[Path], bool]
) -> bool:
    folder = target.parent
    temporary = folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"
    try:
        descriptor = _open_new(temporary)
    except FileNotFoundError:
        _make_folder(folder, root)
        descriptor = _open_new(temporary)
    try:
        with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123
            _write_all(file.fileno(), parts)
            os.fsync(file.fileno())
        done = publish(temporary)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(folder)
    return done


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


def _open_new(path: Path) -> int:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    return os.open(path, flags, 0o666)


def _write_all(descriptor: int, parts: Sequence[Buffer]) -> None:
    for part in parts:
        view = memoryview(part).cast("B")
        while view:
            view = view[os.write(descriptor, view) :]


def _create_exclusively(target: Path, parts: Sequence[Buffer]) -> bool:
    # Not atomic, but safe: a shard is invisible until its key record is published, and a key
    # record cut short fails its checksum and counts as unpublished.
    try:
        descriptor = _open_new(target)
    except FileExistsError:
        return False
    with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123
        _write_all(file.fileno(), parts)
        os.fsync(file.fileno())
    return True


def _make_folder(folder: Path, root: Path) -> None:
    missing = []
    while not folder.exists():
        missing.append(folder)
        if folder == root:
            break
        folder = folder.parent
    for path in reversed(missing):
        path.mkdir(exist_ok=True, parents=path == root)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    # A name is only durable once its folder is; Windows has no such call and needs none.
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as err:
        if err.errno not in (errno.EINVAL, errno.ENOTSUP):  # folders that cannot be synced
            raise
    finally:
        os.close(descriptor)
