"""Rows to slots, in a thread of their own, within a bound on memory."""

from __future__ import annotations

import threading
import time
from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import TracebackType

    from numpy.typing import NDArray

    from featurestore.keys import Wanted
    from featurestore.storage.column import Column
    from featurestore.storage.slots import SlotBuilder

POLL_S = 0.5  # how late a partly filled slot may be published beyond its interval


@dataclass(slots=True)
class _Buffer:
    """Rows of one column that wait for their slot to fill."""

    wanted: Wanted
    column: Column
    slot: SlotBuilder | None = None
    since: float = 0.0
    """When the oldest row came in [s, monotonic]."""
    n_published: int = 0

    @property
    def nbytes(self) -> int:
        return 0 if self.slot is None else self.slot.nbytes


@dataclass(slots=True)
class _Item:
    digests: NDArray[np.uint8]
    outputs: Sequence[NDArray[np.float32]]
    columns: Sequence[int]
    """Which column each output is for."""
    run: str
    nbytes: int


class SlotWriter:
    """Publishes rows in the background, full slots where it can.

    Use as a context manager: leaving it publishes what is buffered, also after an error, and
    raises what went wrong in the background.

    Parameters
    ----------
    columns : sequence of (Wanted, Column)
        What will be written.
    queue_nbytes : int
        Rows on their way here, at most [bytes]; `put` waits beyond it.
    buffer_nbytes : int
        Rows waiting for their slot to fill, at most [bytes].
    commit_interval_s : float
        A partly filled slot is published after this long [s].
    """

    def __init__(
        self,
        columns: Sequence[tuple[Wanted, Column]],
        *,
        queue_nbytes: int,
        buffer_nbytes: int,
        commit_interval_s: float,
    ) -> None:
        self._buffers = [_Buffer(wanted, column) for wanted, column in columns]
        self._queue: deque[_Item] = deque()
        self._queue_nbytes = queue_nbytes
        self._buffer_nbytes = buffer_nbytes
        self._interval = commit_interval_s
        self._held = 0
        self._run = ""
        self._closing = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="featurestore-writer", daemon=True)

    def __enter__(self) -> SlotWriter:
        """Start writing."""
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Publish what is left, then say what went wrong."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._join()
        # Also while another error is on its way, such as Ctrl-C: what it says is kept is not.
        if self._error is not None and self._error is not error:
            raise self._error

    @property
    def n_published(self) -> int:
        """Images of which the rows of all columns are published."""
        return min((buffer.n_published for buffer in self._buffers), default=0)

    def require_working(self) -> None:
        """Raise what went wrong in the background, if anything did."""
        if self._error is not None:
            raise self._error

    def put(
        self,
        digests: NDArray[np.uint8],
        outputs: Sequence[NDArray[np.float32]],
        columns: Sequence[int],
        run: str,
    ) -> None:
        """Hand rows over. Waits while too many are on their way.

        Parameters
        ----------
        digests : ndarray of shape (n, 16), uint8
            Which images the rows are of.
        outputs : sequence of ndarray of shape (n, *shape), float32
            Rows of several columns; not to be changed afterwards.
        columns : sequence of int
            Which column each is for.
        run : str
            The run's id.
        """
        nbytes = sum(output.nbytes for output in outputs)
        with self._changed:
            while self._held and self._held + nbytes > self._queue_nbytes and self._error is None:
                self._changed.wait()
            self.require_working()
            self._queue.append(_Item(digests, outputs, columns, run, nbytes))
            self._held += nbytes
            self._changed.notify_all()

    def _join(self) -> None:
        # A second Ctrl-C while the last rows are published must not lose them.
        while self._thread.is_alive():
            try:
                self._thread.join()
            except KeyboardInterrupt:
                continue

    def _work(self) -> None:
        try:
            while True:
                item = self._next()
                if item is None:
                    break
                if item.columns:
                    self._take(item)
                self._publish_old()
            for number in range(len(self._buffers)):
                self._publish(number)
        except BaseException as err:  # noqa: BLE001 - handed to the thread that waits for it
            with self._changed:
                self._error = err
                self._queue.clear()
                self._held = 0
                self._changed.notify_all()

    def _next(self) -> _Item | None:
        """Wait for rows; an empty item means that time has passed, none that all is done."""
        with self._changed:
            if not self._queue and not self._closing:
                self._changed.wait(POLL_S)
            if self._queue:
                return self._queue.popleft()
            if self._closing:
                return None
        return _Item(np.empty((0, 16), np.uint8), (), (), self._run, 0)

    def _take(self, item: _Item) -> None:
        if item.run != self._run:
            for number in range(len(self._buffers)):
                self._publish(number)  # a slot belongs to one run
            self._run = item.run
        for output, number in zip(item.outputs, item.columns, strict=True):
            self._fill(number, item.digests, output)
        with self._changed:
            self._held -= item.nbytes
            self._changed.notify_all()

    def _fill(self, number: int, digests: NDArray[np.uint8], output: NDArray[np.float32]) -> None:
        buffer = self._buffers[number]
        while len(output):
            if buffer.slot is None:
                feature = buffer.wanted.feature
                buffer.slot = buffer.column.new_slot(
                    feature.to_json(), buffer.wanted.dims, output, feature.dtype
                )
                buffer.since = time.monotonic()
            room = buffer.slot.room
            buffer.slot.add(digests[:room], output[:room])
            digests, output = digests[room:], output[room:]
            if not buffer.slot.room:
                self._publish(number)
        while sum(b.nbytes for b in self._buffers) > self._buffer_nbytes:
            self._publish(max(range(len(self._buffers)), key=lambda k: self._buffers[k].nbytes))

    def _publish_old(self) -> None:
        now = time.monotonic()
        for number, buffer in enumerate(self._buffers):
            if buffer.slot is not None and now - buffer.since >= self._interval:
                self._publish(number)

    def _publish(self, number: int) -> None:
        buffer = self._buffers[number]
        slot, buffer.slot = buffer.slot, None
        if slot is not None:
            buffer.column.publish(slot, self._run)
            buffer.n_published += slot.n_rows
