"""Publishing files: written beside their place, made durable, then given their name.

`create` gives a name to exactly one of any number of writers; `replace` takes it from whoever has
it. In between nothing can be seen, and a writer that is killed leaves a temporary file at most.
"""

from __future__ import annotations

import contextlib
import errno
import os
import uuid
from typing import TYPE_CHECKING

from featurestore.errors import DiskSpaceError, ReadOnlyError, StoreNotFoundError
from featurestore.storage import disk

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path
    from typing import TypeAlias

    Buffer: TypeAlias = bytes | memoryview

TEMPORARY_PREFIX = ".tmp."

MAX_ATTEMPTS = 3  # a temporary file is swept after days; twice in one write means something else

# What link(2) answers where a file system has no hard links (exFAT, some SMB and FUSE mounts).
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

_DISK_FULL = {errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC)}  # no quotas on Windows


class Publisher:
    """Writes files under a folder, whole or not at all.

    Parameters
    ----------
    root : Path
        The folder; made by the first write.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.marker = ""
        """A file that is there while the folder is what it was; the folder itself if empty."""
        self._was_there = root.is_dir()
        self._settled: set[Path] = set()

    def create(self, target: Path, parts: Sequence[Buffer]) -> bool:
        """Write a file unless one of that path exists.

        Parameters
        ----------
        target : Path
            Which file.
        parts : sequence of bytes-like
            Its content, one part after the other.

        Returns
        -------
        bool
            Whether this call wrote it. Afterwards a file of that path exists and is durable.
        """
        return self._write(target, parts, lambda temporary: _publish_new(temporary, target))

    def replace(self, target: Path, parts: Sequence[Buffer]) -> None:
        """Write a file, whether or not one exists.

        Parameters
        ----------
        target : Path
            Which file.
        parts : sequence of bytes-like
            Its content.
        """
        self._write(target, parts, lambda temporary: _publish_over(temporary, target))

    def delete(self, target: Path) -> None:
        """Remove a file, if it is there.

        Parameters
        ----------
        target : Path
            Which file.
        """
        with self._explaining():
            disk.unlink(target)

    def now(self) -> float:
        """Return the time by the storage's own clock.

        Returns
        -------
        float
            When a file that is written now was written [s since 1970].
        """
        temporary = _temporary_in(self.root)
        with self._explaining(), _removing_on_failure(temporary):
            now = _write_file(disk.open_new(temporary), temporary, [b"now"])
            disk.unlink(temporary)
        return now

    def _write(
        self, target: Path, parts: Sequence[Buffer], publish: Callable[[Path], bool]
    ) -> bool:
        """Write beside the target, make it durable, then publish it under its name."""
        folder = target.parent
        with self._explaining():
            for attempt in range(1, MAX_ATTEMPTS + 1):
                temporary = _temporary_in(folder)
                with _removing_on_failure(temporary):
                    _write_file(self._open_new(temporary), temporary, parts)
                    try:
                        done = publish(temporary)
                    except FileNotFoundError:
                        if temporary.exists() or attempt == MAX_ATTEMPTS:
                            raise
                        continue  # swept as a leftover while this process was stopped
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
        if self._was_there and not (self.root / self.marker).exists():
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


def _temporary_in(folder: Path) -> Path:
    return folder / f"{TEMPORARY_PREFIX}{uuid.uuid4().hex}"


def _write_file(descriptor: int, path: Path, parts: Sequence[Buffer]) -> float:
    """Write a new file, make it durable and close it; returns when that was [s since 1970]."""
    try:
        for part in parts:
            view = memoryview(part).cast("B")
            while view:
                view = view[disk.write(descriptor, path, view) :]
        disk.sync(descriptor, path)
        return os.fstat(descriptor).st_mtime  # a sweeper may take its name away meanwhile
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
    try:
        disk.rename_new(temporary, target)
    except FileExistsError:
        disk.unlink(temporary)
        return False
    except NotImplementedError:
        return _publish_in_two_steps(temporary, target)
    return True


def _publish_in_two_steps(temporary: Path, target: Path) -> bool:
    """Take the name by an empty file, then put the content there.

    Whoever reads between the two, or after a kill there, finds an empty file, which is no document,
    no shard and no key record.
    """
    try:
        os.close(disk.open_new(target))
    except FileExistsError:
        disk.unlink(temporary)
        return False
    with _removing_on_failure(target):  # or the name would be spent
        return _publish_over(temporary, target)


def _publish_over(temporary: Path, target: Path) -> bool:
    disk.rename(temporary, target)
    return True


@contextlib.contextmanager
def _removing_on_failure(path: Path) -> Iterator[None]:
    try:
        yield
    except BaseException:
        # On the way out with an error that matters more; what stays is swept one day.
        with contextlib.suppress(OSError):
            disk.unlink(path)
        raise


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
