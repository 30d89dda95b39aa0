"""Settings of this process: how much memory, how often to publish, where caches live.

None of them takes part in a key. Each is read from ``FEATURESTORE_<NAME>`` at import and changed
by `set_options`, for good or inside a ``with`` block.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import platformdirs

from featurestore.errors import InvalidInputError

if TYPE_CHECKING:
    from types import TracebackType

GIB = 2**30
DecodeWorkers = Literal["threads", "processes"]


def available_cpus() -> int:
    """Return how many processors this process may use.

    Returns
    -------
    int
        At least 1; honours CPU affinity, as SLURM sets it, but no quota of CPU time.
    """
    if hasattr(os, "sched_getaffinity"):
        return max(1, len(os.sched_getaffinity(0)))
    return os.cpu_count() or 1


@dataclass(frozen=True, slots=True)
class Options:
    """The settings in force."""

    memory_budget: int = 2 * GIB
    """What queues, buffers and loaded arrays may hold together [bytes]."""
    commit_interval_s: float = 60.0
    """A partly filled slot is published after this long [s]: what a kill can cost."""
    lazy_threshold: int = GIB // 2
    """Arrays above this are dask-backed [bytes]; smaller ones are lazy without dask."""
    n_decode_workers: int = field(default_factory=available_cpus)
    """Threads, or processes, that read and decode images."""
    decode_workers: DecodeWorkers = "threads"
    """``"processes"`` survives pictures that crash or hang their decoder; same bits, more time."""
    decode_timeout_s: float = 60.0
    """How long a process may take over one picture, twice, before it is given up [s]."""
    n_threads: int = field(default_factory=available_cpus)
    """Threads inside a forward pass on the CPU; recorded, since it changes the last bits."""
    max_image_pixels: int = 178_956_970
    """Larger pictures are refused as decompression bombs [pixels]."""
    store_limit: int | None = None
    """What the columns of one store may take [bytes]; beyond it those that are cheapest to
    recompute go before new ones are computed. No limit if not given."""
    cache_dir: Path = field(
        default_factory=lambda: Path(platformdirs.user_cache_dir("featurestore"))
    )
    """Where rebuildable caches (digests, downloads) live."""
    progress: bool | None = None
    """Show progress bars; ``None``: where stderr is a terminal or a notebook."""

    def __post_init__(self) -> None:
        """Refuse values that could not work."""
        for name in ("memory_budget", "n_decode_workers", "n_threads", "max_image_pixels"):
            if getattr(self, name) < 1:
                raise InvalidInputError(f"{name}={getattr(self, name)!r} must be at least 1.")
        # Written so that NaN is refused as well.
        if not (self.commit_interval_s >= 0 and self.lazy_threshold >= 0):
            raise InvalidInputError("commit_interval_s and lazy_threshold must not be negative.")
        if self.store_limit is not None and self.store_limit < 0:
            raise InvalidInputError("store_limit must not be negative.")
        if not 0 < self.decode_timeout_s < math.inf:
            raise InvalidInputError(
                f"decode_timeout_s={self.decode_timeout_s!r} must be a number of seconds above 0."
            )
        if self.decode_workers not in get_args(DecodeWorkers):
            raise InvalidInputError(
                f"decode_workers={self.decode_workers!r} is not known. Use 'threads' or "
                "'processes'."
            )


_PARSERS: dict[str, Any] = {
    "memory_budget": lambda value: parse_nbytes(value),
    "commit_interval_s": float,
    "lazy_threshold": lambda value: parse_nbytes(value),
    "n_decode_workers": lambda value: _parse_count(value),
    "decode_workers": str,
    "decode_timeout_s": float,
    "n_threads": lambda value: _parse_count(value),
    "max_image_pixels": lambda value: _parse_count(value),
    "store_limit": lambda value: None if value is None else parse_nbytes(value),
    "cache_dir": lambda value: Path(value).expanduser(),
    "progress": lambda value: _parse_flag(value),
}

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def parse_nbytes(value: int | float | str) -> int:
    """Read a size such as ``"2 GiB"``, ``"500MB"`` or ``1048576``.

    Parameters
    ----------
    value : int, float or str
        The size; a bare number counts bytes.

    Returns
    -------
    int
        The size [bytes].

    Raises
    ------
    InvalidInputError
        If it is no size.

    Examples
    --------
    >>> parse_nbytes("2 GiB"), parse_nbytes("1.5MB"), parse_nbytes(64)
    (2147483648, 1500000, 64)
    """
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    text = str(value).strip().upper().replace(" ", "")
    digits = text.rstrip("BKMGTI")
    try:
        return int(float(digits) * _UNITS[text[len(digits) :] or "B"])
    except (ValueError, KeyError, OverflowError) as err:
        raise InvalidInputError(f"{value!r} is not a size; write for example '2 GiB'.") from err


def _parse_count(value: Any) -> int:
    # int() alone would make 1 of True and 2 of 2.9.
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise InvalidInputError("it is not a whole number.")
    return int(value)


def format_nbytes(nbytes: float) -> str:
    """Spell a size for people.

    Parameters
    ----------
    nbytes : float
        The size [bytes].

    Returns
    -------
    str
        With three digits at most and a decimal unit.

    Examples
    --------
    >>> format_nbytes(0), format_nbytes(36_864), format_nbytes(1.5e9)
    ('0 B', '36.9 kB', '1.5 GB')
    """
    for unit in ("B", "kB", "MB", "GB"):
        if nbytes < 999.5:  # three digits would round more to 1e+03
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} TB"


def _parse_flag(value: object) -> bool | None:
    if value is None or isinstance(value, bool):
        return value
    words: dict[str, bool | None] = {"1": True, "true": True, "0": False, "false": False}
    words["auto"] = None
    try:
        return words[str(value).lower()]
    except KeyError as err:
        raise InvalidInputError(f"{value!r} is not one of true, false, auto.") from err


def _parse(name: str, value: object) -> object:
    if name not in _PARSERS:
        raise InvalidInputError(
            f"There is no option {name!r}. The options are {', '.join(sorted(_PARSERS))}."
        )
    try:
        return _PARSERS[name](value)
    except (TypeError, ValueError) as err:
        raise InvalidInputError(f"Option {name}={value!r} cannot be read: {err}") from err


def _from_environment() -> Options:
    given = {}
    for name in (f.name for f in fields(Options)):
        variable = f"FEATURESTORE_{name.upper()}"
        text = os.environ.get(variable)
        if text:  # an empty variable means unset, as in most programs
            try:
                given[name] = _parse(name, text)
            except InvalidInputError as err:
                raise InvalidInputError(f"{variable}={text!r} cannot be used. {err}") from err
    return Options(**given)  # type: ignore[arg-type]


class _State:
    # Process-wide rather than thread-local: worker threads obey what the user set.
    current = _from_environment()


def get_options() -> Options:
    """Return the settings in force.

    Returns
    -------
    Options
        A frozen value; change it through `set_options`.
    """
    return _State.current


class set_options:  # noqa: N801 - a function to its users, like xarray.set_options
    """Change settings of this process, for good or inside a ``with`` block.

    Parameters
    ----------
    **options : object
        Fields of `Options`, by name. Sizes may be written as ``"4 GiB"``.

    Raises
    ------
    InvalidInputError
        If an option is unknown or its value unreadable.

    Examples
    --------
    >>> with set_options(memory_budget="1 GiB"):
    ...     get_options().memory_budget
    1073741824
    """

    def __init__(self, **options: object) -> None:
        parsed = {name: _parse(name, value) for name, value in options.items()}
        # Only what is changed is restored: blocks of two threads may overlap without nesting, and
        # the last to end must not bring back what the other one had set.
        self._before = {name: getattr(_State.current, name) for name in parsed}
        _State.current = replace(_State.current, **parsed)  # type: ignore[arg-type]

    def __enter__(self) -> None:
        """Keep the settings until the block ends."""

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Restore what these options were before."""
        _State.current = replace(_State.current, **self._before)
