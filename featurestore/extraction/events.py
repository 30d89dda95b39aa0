"""What an extraction tells whoever listens. The engine itself prints nothing."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from tqdm.auto import tqdm

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class RunStarted:
    """A forward pass is about to run."""

    model: str
    n_images: int
    modules: tuple[str, ...]
    device: str
    batch_size: int


@dataclass(frozen=True, slots=True)
class BatchDone:
    """A batch went through the network, or some images turned out unreadable."""

    n_images: int


@dataclass(frozen=True, slots=True)
class BatchSizeHalved:
    """The device had not enough memory for a batch."""

    batch_size: int
    """The size from now on."""


@dataclass(frozen=True, slots=True)
class StopHeard:
    """A signal asked the run to stop; what is computed is about to be published."""

    signal: str
    """Such as ``"SIGTERM"``."""


@dataclass(frozen=True, slots=True)
class RunDone:
    """Everything is published, or the run was stopped."""

    n_done: int


Event: TypeAlias = RunStarted | BatchDone | BatchSizeHalved | StopHeard | RunDone
Listener: TypeAlias = Callable[[Event], None]


class ProgressBar:
    """A progress bar over the images of each run.

    Parameters
    ----------
    shown : bool, optional
        Whether to show it; ``None`` shows it where stderr is a terminal or in a notebook.
    """

    def __init__(self, shown: bool | None = None) -> None:
        self._disable = None if shown is None else not shown
        self._bar: Any = None

    def __call__(self, event: Event) -> None:
        """Show an event.

        Parameters
        ----------
        event : Event
            What happened.
        """
        if isinstance(event, RunStarted):
            modules = (
                event.modules[0] if len(event.modules) == 1 else f"{len(event.modules)} modules"
            )
            self._bar = tqdm(
                total=event.n_images,
                desc=f"{event.model} {modules} on {event.device}",
                unit="image",
                disable=self._disable,
                leave=True,
            )
        elif self._bar is None:
            return
        elif isinstance(event, BatchDone):
            self._bar.update(event.n_images)
        elif isinstance(event, BatchSizeHalved):
            self._say(f"Out of device memory: going on with batches of {event.batch_size}.")
        elif isinstance(event, StopHeard):
            self._say(f"{event.signal}: keeping what is computed, then stopping.")
        else:
            self._bar.close()
            self._bar = None

    def _say(self, text: str) -> None:
        if not self._bar.disable:
            self._bar.write(text, file=sys.stderr)  # beside the bar: stdout is for results


def log_event(event: Event) -> None:
    """Write an event to the log.

    Parameters
    ----------
    event : Event
        What happened.
    """
    if isinstance(event, BatchDone):
        _log.debug("%s", event)
    elif isinstance(event, BatchSizeHalved):
        _log.warning("out of device memory: going on with batches of %d", event.batch_size)
    else:
        _log.info("%s", event)
