"""Two ways to decode pictures: here, or in processes of their own.

A decoder that crashes or hangs takes only its process along. Each process has one picture at a
time, so the culprit is known without guessing.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Protocol

from PIL import Image

from featurestore.errors import FeatureStoreError, ImageDecodeError
from featurestore.extraction.workers import CHANGED, from_json, receive, send
from featurestore.images.content import Files, ImageContent
from featurestore.images.decode import Decoded, decode
from featurestore.options import get_options

if sys.platform == "linux":
    import fcntl

if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import Self

    from featurestore.extraction.workers import Message
    from featurestore.images.imageset import ImageSet
    from featurestore.policy import DecodePolicy

logger = logging.getLogger(__name__)

# -P: a json.py in the working folder must not take the place of Python's.
COMMAND = (sys.executable, "-P", "-m", "featurestore.extraction.workers")
START_TIMEOUT_S = 120  # a cold network file system, and all workers at once
WATCH_S = 0.1  # how often is looked who is late
PIPE_NBYTES = 2**20  # what Linux allows everyone; 64 KiB cost a picture ten switches of process
NONSENSE = "its decoder gave an answer that makes no sense"
DEATH_TIMEOUT_S = 10  # between the end of a process's output and its own


class Decoder(Protocol):
    """Something that reads, checks and decodes an image."""

    def __call__(self, images: ImageSet, position: int, policy: DecodePolicy) -> Decoded:
        """Decode an image; see `decode_here`."""
        raise NotImplementedError


@contextlib.contextmanager
def open_decoder(n_workers: int) -> Iterator[Decoder]:
    """Choose how pictures are decoded, by the option ``decode_workers``.

    Parameters
    ----------
    n_workers : int
        From how many threads it will be called.

    Yields
    ------
    Decoder
        Safe to call from that many threads; both kinds give the same bits.
    """
    if get_options().decode_workers == "threads":
        yield decode_here
    else:
        with DecodeProcesses(n_workers) as processes:
            yield processes.decode


def decode_here(images: ImageSet, position: int, policy: DecodePolicy) -> Decoded:
    """Read an image, refuse it if it is not what was listed, and decode it.

    Parameters
    ----------
    images : ImageSet
        The images.
    position : int
        Which one.
    policy : DecodePolicy
        How content becomes pixels.

    Returns
    -------
    Decoded
        The pixels.

    Raises
    ------
    ImageDecodeError
        If it is gone, unreadable, has another content, or cannot be decoded.
    """
    return decode(_require_unchanged(images, position), policy)


class DecodeProcesses:
    """Processes that decode pictures; a context.

    Parameters
    ----------
    n_processes : int
        At most so many; each is started when it is first needed.
    """

    def __init__(self, n_processes: int) -> None:
        self._n_processes = n_processes
        self._permits = threading.Semaphore(n_processes)
        self._taking_all = threading.Lock()
        self._lock = threading.Lock()  # guards what follows
        self._all: set[_Process] = set()
        self._idle: list[_Process] = []
        self._closed = False
        self._stop = threading.Event()
        self._watchdog = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._watchdog.start()
        return self

    def __exit__(self, *_error: object) -> None:
        """Kill the processes; whoever still waits for one is told at once."""
        with self._lock:
            self._closed = True
            for process in self._all:
                process.kill()
            idle, self._idle = self._idle, []
        for process in idle:
            self._bury(process)
        self._stop.set()
        self._watchdog.join()

    def decode(self, images: ImageSet, position: int, policy: DecodePolicy) -> Decoded:
        """Read, check and decode an image. Safe to call from many threads.

        Files are read and decoded by a process. What is no file (arrays, PIL images, HDF5) is
        read here; it holds pixels already, so no decoder of a picture format sees it.

        Parameters
        ----------
        images : ImageSet
            The images.
        position : int
            Which one.
        policy : DecodePolicy
            How content becomes pixels.

        Returns
        -------
        Decoded
            As from `featurestore.images.decode.decode`, bit for bit.

        Raises
        ------
        ImageDecodeError
            If it cannot be read or decoded, was changed, or killed two decoders, or held both up
            for longer than ``decode_timeout_s``.
        FeatureStoreError
            If no process can be started.
        """
        path, body, name = "", b"", images.names[position]
        if isinstance(images.source, Files):
            path = images.source.paths[position]
        else:
            content = _require_unchanged(images, position)
            if not isinstance(content.data, bytes):
                return decode(content, policy)
            body = content.data
        header = {
            "path": path,
            "digest": images.digests[position].tobytes().hex(),
            "policy": policy.to_json(),
            "max_image_pixels": get_options().max_image_pixels,
            "memory_budget": get_options().memory_budget,
        }
        try:
            with self._permits:
                answer, pixels = self._ask(header, body)
        except _DeathError as first:
            logger.warning("Image %r: %s; it is tried once more, alone.", name, first)
            try:
                with self._nobody_else():
                    answer, pixels = self._ask(header, body, fresh=True)
            except _DeathError as second:
                raise _undecodable(str(second)) from second
        if "unreadable" in answer:
            raise _unreadable(name, str(answer["unreadable"]))
        if "undecodable" in answer:
            raise _undecodable(str(answer["undecodable"]))
        image = Image.frombytes("RGB", tuple(answer["size"]), pixels)
        image.info = from_json(answer["info"])
        return Decoded(image, frozenset(answer["notes"]))

    def _watch(self) -> None:
        while not self._stop.wait(WATCH_S):
            with self._lock:
                processes = list(self._all)
            for process in processes:
                process.kill_if_late()

    @contextlib.contextmanager
    def _nobody_else(self) -> Iterator[None]:
        """Wait until no other picture is being decoded: they share memory and disk."""
        with self._taking_all, contextlib.ExitStack() as taken:
            for _ in range(self._n_processes):
                taken.enter_context(self._permits)
            yield

    def _ask(self, header: dict[str, Any], body: bytes, *, fresh: bool = False) -> Message:
        process = self._take(fresh)
        try:
            answer = process.ask(header, body, get_options().decode_timeout_s)
        except BaseException:
            self._bury(process)
            if self._closed:
                raise CancelledError from None
            raise
        with self._lock:
            if not self._closed:
                self._idle.append(process)
                return answer
        self._bury(process)  # whoever closed did not wait for it
        return answer

    def _take(self, fresh: bool) -> _Process:
        with self._lock:
            if self._closed:
                raise CancelledError
            if self._idle and not fresh:
                return self._idle.pop()
            idle = self._idle.pop() if self._idle else None  # its place is needed
            process = _Process()
            self._all.add(process)
        if idle is not None:
            self._bury(idle)
        try:
            process.require_started()
        except BaseException:
            self._bury(process)
            raise
        return process

    def _bury(self, process: _Process) -> None:
        process.bury()
        with self._lock:
            self._all.discard(process)


class _DeathError(Exception):
    """What a process died of, as a clause."""


class _Process:
    """A decoding process, seen from here; used by one thread at a time, except for `kill`."""

    def __init__(self) -> None:
        try:
            self._process = subprocess.Popen(
                COMMAND,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=_environment(),
                # Out of reach of the terminal's Ctrl-C, also while it starts.
                start_new_session=True,
                creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            )
        except OSError as err:
            raise _not_started(str(err)) from err
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._lock = threading.Lock()  # guards what follows
        self._deadline = math.inf
        self._expired = False
        _enlarge(self._answers)

    def require_started(self) -> None:
        """Wait until it is ready, so that no picture is blamed for a start that failed."""
        try:
            self._exchange(START_TIMEOUT_S)
        except _DeathError as err:
            raise _not_started(str(err)) from err

    def ask(self, header: dict[str, Any], body: bytes, timeout_s: float) -> Message:
        """Have a picture decoded; `_DeathError` if that did not end well."""
        answer, pixels = self._exchange(timeout_s, header | {"timeout_s": timeout_s}, body)
        if "size" in answer and len(pixels) != 3 * math.prod(answer["size"]):
            raise _DeathError(NONSENSE)
        return answer, pixels

    def _exchange(
        self, timeout_s: float, header: dict[str, Any] | None = None, body: bytes = b""
    ) -> Message:
        with self._lock:
            self._deadline = time.monotonic() + timeout_s
        nonsense = False
        try:
            if header is not None:
                with contextlib.suppress(BrokenPipeError):  # dead already; what of, is said below
                    send(self._requests, header, body)
            answer = receive(self._answers)
        except (OSError, ValueError, MemoryError):
            answer, nonsense = None, self._process.poll() is None
        with self._lock:
            self._deadline = math.inf
        if self._expired:
            raise _DeathError(f"its decoder took longer than {timeout_s:g} s (decode_timeout_s)")
        if answer is None:
            raise _DeathError(NONSENSE if nonsense else self._how_it_died())
        return answer

    def kill_if_late(self) -> None:
        """Kill it if it was to answer earlier than now."""
        with self._lock:
            if time.monotonic() > self._deadline:
                self._expired = True
                self.kill()

    def _how_it_died(self) -> str:
        try:
            status = self._process.wait(DEATH_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return NONSENSE
        if status >= 0:
            return f"its decoder ended the process with exit status {status}"
        with contextlib.suppress(ValueError):
            name = signal.Signals(-status).name
            memory = ", as the system does when memory runs out" if name == "SIGKILL" else ""
            return f"its decoder was killed by signal {-status} ({name}{memory})"
        return f"its decoder was killed by signal {-status}"

    def kill(self) -> None:
        """Kill it and what it started (Ghostscript), unless it was waited for already."""
        if self._process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._process.pid, signal.SIGKILL)
            else:
                self._process.kill()

    def bury(self) -> None:
        """Kill it, wait for its end, close its pipes."""
        self.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):  # stuck in the kernel
            self._process.wait(DEATH_TIMEOUT_S)
        for pipe in (self._requests, self._answers):
            with contextlib.suppress(OSError):  # a request that nobody read
                pipe.close()


def _require_unchanged(images: ImageSet, position: int) -> ImageContent:
    content = images.content(position)
    if content.digest != images.digests[position].tobytes():
        raise _unreadable(images.names[position], CHANGED)
    return content


def _environment() -> dict[str, str]:
    # Where the package is imported from a clone, the process must find it too.
    root = Path(__file__).parents[2]
    given = os.environ.get("PYTHONPATH")
    paths = [] if root.name in ("site-packages", "dist-packages") else [str(root)]
    path = os.pathsep.join(([given] if given else []) + paths)
    # Not one thread per core and process: pictures are decoded by one.
    return {**os.environ, "OPENBLAS_NUM_THREADS": "1"} | ({"PYTHONPATH": path} if path else {})


def _enlarge(pipe: IO[bytes]) -> None:
    if sys.platform == "linux":
        with contextlib.suppress(OSError):  # this user has many large pipes already
            fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_NBYTES)


def _undecodable(reason: str) -> ImageDecodeError:
    return ImageDecodeError(f"An image cannot be decoded: {reason}.", reason=reason)


def _unreadable(name: str, reason: str) -> ImageDecodeError:
    return ImageDecodeError(
        f"Image {name!r} cannot be read: {reason}.", failures={name: reason}, reason=reason
    )


def _not_started(reason: str) -> FeatureStoreError:
    return FeatureStoreError(
        f"A process for decoding cannot be started ({' '.join(COMMAND)}): {reason}; standard error "
        "says more. fs.set_options(decode_workers='threads') does without.",
        reason=reason,
    )
