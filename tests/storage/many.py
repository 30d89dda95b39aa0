"""Many processes that fill one store at the same time, under conditions that are hard on them."""

from __future__ import annotations

import errno
import fcntl
import multiprocessing
import os
import signal
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.storage.blob import BlobInfo, LocalBlobs
from featurestore.storage.catalog import Catalog, open_catalog
from tests.storage.children import FEATURES, check, digests_of, write_all

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

N_WRITERS = 8
N_IMAGES = 120
LAG_S = 0.1

HARD = ("nothing", "no locks", "stale listings", "no links", "one killed", "one stopped")


class LaggingBlobs(LocalBlobs):
    """A folder whose listings are of some moments ago, as an NFS client's may be."""

    lag_s = LAG_S

    def __init__(self, root: str | os.PathLike[str]) -> None:
        super().__init__(root)
        self._held: dict[str, tuple[float, list[BlobInfo]]] = {}

    def list(self, folder: str) -> list[BlobInfo]:
        at, held = self._held.get(folder, (-self.lag_s, []))
        if time.monotonic() - at < self.lag_s:
            return held
        held = super().list(folder)
        self._held[folder] = (time.monotonic(), held)
        return held


def _write(root: Path, number: int, hard: str, barrier: Barrier, locks: Any) -> None:
    def count(*_args: object) -> None:
        locks.value += 1

    def refuse(*_args: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    fcntl.flock = fcntl.lockf = count
    if hard == "no links":
        os.link = refuse  # type: ignore[assignment]
    blobs = LaggingBlobs(root) if hard == "stale listings" else None
    catalog = open_catalog(root, "a") if blobs is None else Catalog(blobs, "a")
    names = [("dense", "sparse"), ("dense", "half")][number % 2]
    barrier.wait()
    write_all(catalog, names, N_IMAGES, number)


def run_writers(hard: str, start: str) -> dict[str, float]:
    """Let eight processes fill three columns; returns how the store compares with a serial run."""
    context = multiprocessing.get_context(start)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "many.fstore"
        barrier, locks = context.Barrier(N_WRITERS + 1), context.Value("i", 0)
        writers = [
            context.Process(target=_write, args=(root, n, hard, barrier, locks))  # type: ignore[attr-defined]
            for n in range(N_WRITERS)
        ]
        for writer in writers:
            writer.start()
        barrier.wait()
        began = time.perf_counter()
        time.sleep(0.05)
        if hard == "one killed":
            os.kill(writers[3].pid, signal.SIGKILL)
        if hard == "one stopped":
            os.kill(writers[3].pid, signal.SIGSTOP)
        others = [writer for n, writer in enumerate(writers) if n != 3 or hard != "one stopped"]
        for writer in others:
            writer.join()
        seconds = time.perf_counter() - began
        while_stopped = check(root, set(), N_IMAGES)
        if hard == "one stopped":
            os.kill(writers[3].pid, signal.SIGCONT)
            writers[3].join()
        failed = sum(writer.exitcode not in (0, -signal.SIGKILL) for writer in writers)
        serial = Path(folder) / "serial.fstore"
        write_all(open_catalog(serial, "a"), list(FEATURES), N_IMAGES, 0)
        return {
            "failed": failed,
            "killed": sum(writer.exitcode == -signal.SIGKILL for writer in writers),
            "locks": locks.value,
            "differing": _differing(root, serial),
            "missing_while_stopped": 3 * N_IMAGES - while_stopped.n_rows,
            "untrue": while_stopped.n_wrong + check(root, set(), N_IMAGES).n_wrong,
            "seconds": seconds,
        }


def _differing(root: Path, serial: Path) -> int:
    """Count rows of a store that are not there or not those of another, bit for bit."""
    n = 0
    for feature in FEATURES.values():
        mine, other = (open_catalog(path, "r").column(feature.key) for path in (root, serial))
        for number in range(N_IMAGES):
            digest = digests_of([number])
            row = mine.lookup(digest)
            n += (
                row[0] < 0 or mine.read(row).tobytes() != other.read(other.lookup(digest)).tobytes()
            )
    return n
