"""Signals that ask an extraction to stop: heard at once, obeyed where nothing is lost."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import FrameType, TracebackType

# What stops an extraction: Ctrl-C, the end of a job, and SLURM's warning (--signal=USR1@120).
_STOP_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1")  # Windows has no SIGUSR1


class _Window(Enum):
    """What may end the work at hand by raising in the middle of it."""

    NONE = 0
    SECOND = 1
    ANY = 2


class Interrupts:
    """Hold stop signals back, except where the work at hand may be given up.

    Use as a context manager around an extraction. Handlers are installed in the main thread only
    (Python allows no other), only for signals that have their default action, and removed at the
    end. A signal that someone else handles or ignores, such as a job library's own SIGUSR1 or
    the SIGINT of a process under ``nohup``, is left to them.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        """The first signal that came."""
        self._is_urgent = False
        self._window = _Window.NONE
        self._installed: dict[signal.Signals, object] = {}

    def __enter__(self) -> Interrupts:
        """Listen."""
        if threading.current_thread() is threading.main_thread():
            for number in _stop_signals():
                before = signal.getsignal(number)
                # SIG_DFL of SIGINT was asked for by someone: Python's own default raises.
                default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
                if before is default or before == default:
                    self._installed[number] = before
                    signal.signal(number, self._hear)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give the signals back."""
        self.hold()
        for number, before in self._installed.items():
            if signal.getsignal(number) == self._hear:  # else someone took it over meanwhile
                signal.signal(number, before)  # type: ignore[arg-type]  # what getsignal gave

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Let any signal end what is inside, also one that came before.

        Yields
        ------
        None
            While nothing is under way that has to be finished.
        """
        with self._open(_Window.ANY):
            yield

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Let a second, urgent signal end what is inside; the first one waits.

        Yields
        ------
        None
            While a batch is under way that is better finished.
        """
        with self._open(_Window.SECOND):
            yield

    def check(self) -> None:
        """Stop here if a signal came.

        Raises
        ------
        KeyboardInterrupt
            If one came.
        """
        with self.waiting():
            pass

    def hold(self) -> None:
        """Hold all signals back from now on, also where an interrupt left a window open."""
        self._window = _Window.NONE

    @contextmanager
    def _open(self, window: _Window) -> Iterator[None]:
        try:
            self._window = window
            if self._may_raise():
                raise KeyboardInterrupt
            yield
        finally:
            self._window = _Window.NONE

    def _may_raise(self) -> bool:
        if self._window is _Window.ANY:
            return self.signal is not None
        return self._window is _Window.SECOND and self._is_urgent

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.signal is None:
            self.signal = signal.Signals(number)
        elif number == signal.SIGINT or (number == signal.SIGTERM != self.signal):
            # `timeout` and others send SIGTERM twice at once: only after another kind is it more.
            self._is_urgent = True
        if self._may_raise():
            # What is raised cleans up on its way. Only an urgent signal may disturb that, once.
            ended_by_first = self._window is _Window.ANY
            self._window = _Window.SECOND if ended_by_first else _Window.NONE
            raise KeyboardInterrupt


def _stop_signals() -> list[signal.Signals]:
    names = (name for name in _STOP_SIGNALS if hasattr(signal, name))
    return [signal.Signals[name] for name in names]
