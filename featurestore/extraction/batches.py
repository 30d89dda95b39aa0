"""Images to batches: read, checked, decoded and transformed a few batches ahead."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import ImageDecodeError
from featurestore.extraction.decoders import open_decoder

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray
    from PIL.Image import Image

    from featurestore.images.imageset import ImageSet
    from featurestore.policy import DecodePolicy

BATCHES_AHEAD = 2  # enough to hide decoding, little enough to hold


@dataclass(frozen=True, slots=True)
class Batch:
    """Preprocessed images, padded to the declared size."""

    images: NDArray[np.intp]
    """Positions in the image set of the first rows; the rest is padding."""
    inputs: NDArray[np.float32]
    """Array of shape (batch_size, *input_shape); overwritten by the next batch."""


@dataclass(slots=True)
class Observations:
    """What was noticed while reading images."""

    failures: dict[str, str] = field(default_factory=dict)
    """Name of each unreadable image, and why."""
    failed: list[int] = field(default_factory=list)
    """Their positions in the image set."""
    notes: dict[str, int] = field(default_factory=dict)
    """How many images a choice of the decode policy mattered for, by choice."""
    n_read: int = 0


@dataclass(frozen=True, slots=True)
class _Loaded:
    inputs: NDArray[np.float32]
    notes: frozenset[str]


def iterate_batches(
    images: ImageSet,
    wanted: NDArray[np.intp],
    *,
    policy: DecodePolicy,
    transform: Callable[[Image], NDArray[np.float32]],
    batch_size: int,
    n_workers: int,
    observations: Observations,
) -> Iterator[Batch]:
    """Read images in order and group the readable ones into batches of one size.

    Every batch has the declared size: a row's last bits depend on how many rows a batch has, and
    must not depend on which other images happened to be missing.

    Parameters
    ----------
    images : ImageSet
        The images.
    wanted : ndarray of shape (n,), intp
        Positions of those to read.
    policy : DecodePolicy
        How content becomes pixels.
    transform : callable
        From PIL image to input array.
    batch_size : int
        Images per batch.
    n_workers : int
        Threads.
    observations : Observations
        Filled along the way.

    Yields
    ------
    Batch
        The last one padded with copies of its first image.
    """
    held: list[tuple[int, _Loaded]] = []
    memory: NDArray[np.float32] | None = None
    pool = ThreadPoolExecutor(n_workers, thread_name_prefix="featurestore-decode")
    try:
        # Closed before the pool: a stop does not wait for a decoder that hangs.
        with open_decoder(n_workers) as decode:

            def load(position: int) -> _Loaded:
                decoded = decode(images, position, policy)
                return _Loaded(np.asarray(transform(decoded.image), np.float32), decoded.notes)

            results = _Results(images, load, observations)
            window = BATCHES_AHEAD * batch_size + n_workers
            for position, future in _ahead(pool, load, wanted, window):
                loaded = results.take(position, future)
                if loaded is not None:
                    held.append((position, loaded))
                if len(held) == batch_size:
                    memory = _batch_memory(held, batch_size, memory)
                    yield _batch(held, memory)
                    held = []
            if held:
                yield _batch(held, _batch_memory(held, batch_size, memory))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _ahead(
    pool: ThreadPoolExecutor,
    load: Callable[[int], _Loaded],
    wanted: NDArray[np.intp],
    window: int,
) -> Iterator[tuple[int, Future[_Loaded]]]:
    pending: deque[tuple[int, Future[_Loaded]]] = deque()
    for position in wanted.tolist():
        pending.append((position, pool.submit(load, position)))
        if len(pending) >= window:
            yield pending.popleft()
    while pending:
        yield pending.popleft()


class _Results:
    """Waits for images; an unreadable one is noted and left out, never the whole batch."""

    def __init__(
        self, images: ImageSet, load: Callable[[int], _Loaded], observations: Observations
    ) -> None:
        self._images = images
        self._load = load
        self._observations = observations

    def take(self, position: int, future: Future[_Loaded]) -> _Loaded | None:
        try:
            loaded = future.result()
        except ImageDecodeError as err:
            found = self._load_twin(position, err)
            if found is None:
                self._observations.failed.append(position)
                return None
            loaded = found
        self._observations.n_read += 1
        for note in loaded.notes:
            self._observations.notes[note] = self._observations.notes.get(note, 0) + 1
        return loaded

    def _load_twin(self, position: int, error: ImageDecodeError) -> _Loaded | None:
        """Turn to the same content under other names, and name all that cannot be read."""
        failures: dict[str, str] = {self._images.names[position]: _reason(error)}
        for twin in self._positions[self._images.digests[position].tobytes()]:
            name = self._images.names[twin]
            # Only a file can be better than its twin; what is wrong in the content is in both.
            if "failures" in error.facts and name not in failures:
                try:
                    return self._load(twin)
                except ImageDecodeError as err:
                    error = err
            failures.setdefault(name, _reason(error))
        self._observations.failures |= failures
        return None

    @cached_property
    def _positions(self) -> dict[bytes, list[int]]:
        positions: dict[bytes, list[int]] = {}
        for position, digest in enumerate(self._images.digests):
            positions.setdefault(digest.tobytes(), []).append(position)
        return positions


def _reason(error: ImageDecodeError) -> str:
    return str(error.facts.get("reason") or error)


def _batch_memory(
    held: list[tuple[int, _Loaded]], batch_size: int, memory: NDArray[np.float32] | None
) -> NDArray[np.float32]:
    """Return memory for a batch: that of the last one, whose pages are there already."""
    shape = (batch_size, *held[0][1].inputs.shape)
    if memory is None or memory.shape != shape:
        return np.empty(shape, np.float32)
    return memory


def _batch(held: list[tuple[int, _Loaded]], inputs: NDArray[np.float32]) -> Batch:
    first = held[0][1].inputs
    for number, (_, loaded) in enumerate(held):
        inputs[number] = loaded.inputs
    inputs[len(held) :] = first
    return Batch(np.array([position for position, _ in held], np.intp), inputs)
