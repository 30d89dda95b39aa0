"""What bytes a file holds: one hash, remembered between runs. Knows nothing of what they mean.

The memo is a per-user SQLite file that may be deleted at any time. An entry counts only if the
file's device, inode, size and times of change are what they were, and the file was at rest when
it was hashed (git's racy rule). Whatever goes wrong with the memo, the file is hashed again.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import sqlite3
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from typing import TYPE_CHECKING, BinaryIO

import xxhash

from featurestore.options import get_options
from featurestore.typing import DIGEST_NBYTES

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence
    from pathlib import Path

    from featurestore.typing import Digest, PathLike

logger = logging.getLogger(__name__)

READ_NBYTES = 2**20  # per read; larger ones gain nothing
RACY_NS = 2 * 10**9  # the coarsest time stamps in use, FAT's, have 2 s
STAMPED = 32  # files per task: asking for a stamp takes µs here, ms on a network
BATCH = 512  # files per look-up and transaction, so that a kill loses little; below SQLite's limits


def hash_bytes(*parts: bytes | memoryview) -> Digest:
    """Return the digest of bytes in memory.

    Parameters
    ----------
    *parts : bytes or memoryview
        Contiguous; hashed one after the other, as if they were joined.

    Returns
    -------
    bytes
        xxh3_128, 16 bytes, big-endian.

    Examples
    --------
    >>> hash_bytes(b"").hex()
    '99aa06d3014798d86001c324468d497f'
    """
    state = xxhash.xxh3_128()
    for part in parts:
        state.update(part)
    return state.digest()


def file_digest(path: PathLike) -> Digest:
    """Return the digest of a file's bytes, from the memo where that is safe.

    Parameters
    ----------
    path : str or os.PathLike
        A regular file; links are followed.

    Returns
    -------
    bytes
        The same as `hash_bytes` of the whole content.

    Raises
    ------
    OSError
        If there is no such file, or it is not a regular one, or it cannot be read.
    """
    (found,) = file_digests([path])
    if isinstance(found, OSError):
        raise found
    return found


def file_digests(paths: Sequence[PathLike]) -> list[Digest | OSError]:
    """Return the digests of many files, read by several threads, from the memo where safe.

    Parameters
    ----------
    paths : sequence of str or os.PathLike
        Regular files; a path that occurs twice is read once.

    Returns
    -------
    list of bytes or OSError
        For each path, in order, its digest or why there is none.
    """
    texts = [os.fspath(path) for path in paths]
    distinct = list(dict.fromkeys(texts))
    found: dict[str, Digest | OSError] = {}
    with ThreadPoolExecutor(get_options().n_decode_workers) as pool:
        for start in range(0, len(distinct), BATCH):
            found |= _digest_batch(distinct[start : start + BATCH], pool)
    return [found[text] for text in texts]


def _digest_batch(paths: Sequence[str], pool: ThreadPoolExecutor) -> dict[str, Digest | OSError]:
    found: dict[str, Digest | OSError] = {}
    keys: dict[str, MemoKey] = {}
    parts = [paths[start : start + STAMPED] for start in range(0, len(paths), STAMPED)]
    stamps = chain.from_iterable(pool.map(_stamps_or_errors, parts))
    for path, stamp in zip(paths, stamps, strict=True):
        if isinstance(stamp, OSError):
            found[path] = stamp
        else:
            keys[path] = MemoKey(stamp)
    known = recall(list(keys.values()))
    found |= {path: known[key] for path, key in keys.items() if key in known}
    misses = [path for path in keys if path not in found]
    fresh: dict[MemoKey, Digest] = {}
    for path, (digest, settled) in zip(misses, pool.map(_hash_or_error, misses), strict=True):
        found[path] = digest
        if settled is not None and isinstance(digest, bytes):
            fresh[MemoKey(settled)] = digest
    remember(fresh)
    return found


@dataclass(frozen=True, slots=True)
class FileStamp:
    """What the file system says of a file; it changes with the content."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int
    """Catches a rewrite that sets the modification time back, as ``rsync -t`` and ``touch -r`` do,
    and tells apart files of two machines that share a home."""

    @classmethod
    def of(cls, status: os.stat_result) -> FileStamp:
        """Take the stamp from what `os.stat` returned.

        Parameters
        ----------
        status : os.stat_result
            Of a regular file.

        Returns
        -------
        FileStamp
            Its identity and times.
        """
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    def at_rest(self, since_ns: int) -> bool:
        """Say whether the file had been left alone for a while at a point in time.

        Parameters
        ----------
        since_ns : int
            When hashing started [ns since the epoch].

        Returns
        -------
        bool
            False where a later write could leave the same time stamp behind.
        """
        return self.mtime_ns + RACY_NS < since_ns


@dataclass(frozen=True, slots=True)
class MemoKey:
    """What a remembered digest belongs to: a file as it stands, or a part of it."""

    stamp: FileStamp
    part: str = ""
    """Empty for the file's bytes; otherwise for example a dataset and a row in it."""

    @property
    def place(self) -> str:
        """Where it is: one entry per place."""
        return f"{self.stamp.device:x}.{self.stamp.inode:x}/{self.part}"

    @property
    def state(self) -> str:
        """What the entry holds for."""
        return f"{self.stamp.size:x}.{self.stamp.mtime_ns:x}.{self.stamp.ctime_ns:x}"


def stamp_file(path: PathLike) -> FileStamp:
    """Return the stamp of a regular file.

    Parameters
    ----------
    path : str or os.PathLike
        A regular file; links are followed, nothing is opened.

    Returns
    -------
    FileStamp
        Its identity and times.

    Raises
    ------
    OSError
        If there is no such file, or it is not a regular one.
    """
    status = os.stat(path)  # noqa: PTH116 - Path.stat would build a Path per file
    _require_regular(status, path)
    return FileStamp.of(status)


@contextlib.contextmanager
def open_regular(path: PathLike) -> Iterator[BinaryIO]:
    """Open a file for reading unless that could block or act on a device.

    Parameters
    ----------
    path : str or os.PathLike
        A regular file; links are followed.

    Yields
    ------
    binary file
        Open for reading; unbuffered.

    Raises
    ------
    OSError
        If there is no such file, or it is a folder, FIFO, socket or device.
    """
    stamp_file(path)  # before opening, which would wait for the writer of a FIFO
    # What takes the file's place in between must not make us wait either.
    with open(path, "rb", buffering=0, opener=_open_at_once) as file:
        _require_regular(os.fstat(file.fileno()), path)
        yield file


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _require_regular(status: os.stat_result, path: PathLike) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise IsADirectoryError(errno.EISDIR, "is a folder, not a file", os.fspath(path))
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "is a FIFO, socket or device, not a file", os.fspath(path))


def _stamps_or_errors(paths: Sequence[str]) -> list[FileStamp | OSError]:
    return [_stamp_or_error(path) for path in paths]


def _stamp_or_error(path: str) -> FileStamp | OSError:
    try:
        return stamp_file(path)
    except OSError as err:
        return err
    except ValueError as err:  # a null character in the path
        return OSError(errno.EINVAL, str(err), path)


def _hash_or_error(path: str) -> tuple[Digest | OSError, FileStamp | None]:
    """Hash a file; with its stamp if that may be remembered."""
    try:
        return _hash_file(path)
    except OSError as err:
        return err, None


def _hash_file(path: str) -> tuple[Digest, FileStamp | None]:
    started_ns = time.time_ns()
    with open_regular(path) as file:
        before = FileStamp.of(os.fstat(file.fileno()))
        state = xxhash.xxh3_128()
        while block := file.read(READ_NBYTES):
            state.update(block)
        after = FileStamp.of(os.fstat(file.fileno()))
    return state.digest(), after if before == after and after.at_rest(started_ns) else None


def recall(keys: Sequence[MemoKey]) -> dict[MemoKey, Digest]:
    """Look digests up in the memo.

    Parameters
    ----------
    keys : sequence of MemoKey
        What is asked for.

    Returns
    -------
    dict
        The digests of those that are remembered and still hold.
    """
    found: dict[MemoKey, Digest] = {}
    by_place = {key.place: key for key in keys}
    places = list(by_place)

    def look_up(memo: sqlite3.Connection) -> None:
        for start in range(0, len(places), BATCH):
            some = places[start : start + BATCH]
            marks = ",".join("?" * len(some))
            query = f"SELECT place, state, digest FROM digests WHERE place IN ({marks})"
            for place, state, sealed in memo.execute(query, some):
                key = by_place[place]
                digest = _unseal(key, sealed)
                if state == key.state and digest is not None:
                    found[key] = digest

    if places and _memo_path().exists():
        _use_memo(look_up)
    return found


def remember(digests: Mapping[MemoKey, Digest]) -> None:
    """Keep digests for later runs, where the cache can be written.

    Parameters
    ----------
    digests : mapping of MemoKey to bytes
        What was hashed; the caller has made sure that the files were at rest.
    """
    rows = [(key.place, key.state, _seal(key, digest)) for key, digest in digests.items()]
    if rows:
        _use_memo(
            lambda memo: memo.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
        )


def _memo_path() -> Path:
    return get_options().cache_dir / "digests-1.sqlite"


def _use_memo(work: Callable[[sqlite3.Connection], object]) -> None:
    """Run one transaction on the memo; where it is of no use, say so in the log and go on."""
    path = _memo_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # One connection per batch: nothing is shared between threads, forks and settings.
        with contextlib.closing(sqlite3.connect(path, timeout=2.0)) as memo, memo:
            memo.execute("PRAGMA synchronous = OFF")  # entries carry checksums
            memo.execute(
                "CREATE TABLE IF NOT EXISTS digests "
                "(place TEXT PRIMARY KEY, state TEXT, digest BLOB) WITHOUT ROWID"
            )
            work(memo)
    except (OSError, sqlite3.OperationalError) as err:  # read-only, locked, disk full
        logger.debug("The digest memo %s cannot be used: %s", path, err)
    except sqlite3.Error as err:
        logger.warning("The digest memo %s is damaged and will be started afresh: %s", path, err)
        with contextlib.suppress(OSError):
            path.unlink()


def _seal(key: MemoKey, digest: Digest) -> bytes:
    # A damaged database may still answer; a wrong digest would be a wrong number for ever.
    return digest + xxhash.xxh3_64_digest(f"{key.place}|{key.state}|".encode() + digest)


def _unseal(key: MemoKey, sealed: object) -> Digest | None:
    if not isinstance(sealed, bytes):
        return None
    digest = sealed[:DIGEST_NBYTES]
    return digest if sealed == _seal(key, digest) else None
