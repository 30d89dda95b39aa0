"""Everything that can go wrong, by what the caller does about it.

::

    FeatureStoreError
    ├── NotFoundError (also KeyError)              ask for something else
    │   ├── ModelNotFoundError
    │   ├── ModuleNotFoundInModelError
    │   └── FeaturesMissingError                   a read-only store lacks them
    ├── StoreNotFoundError (also FileNotFoundError)
    ├── InvalidInputError (also ValueError)        fix the call
    │   ├── ImageDecodeError                       these pictures could not be read
    │   ├── LabelMismatchError
    │   ├── AmbiguousModuleError
    │   └── IdentityError                          cannot be told apart, so is not kept
    ├── WeightsChangedError                        same name, other network
    ├── CorruptDataError                           damaged on disk, and not recomputable here
    ├── FormatVersionError                         upgrade featurestore
    ├── MemoryBudgetError                          would not fit in memory
    ├── DiskSpaceError                             would not fit on the disk
    ├── ReadOnlyError                              open with mode="a"
    ├── StoreUnavailableError (also OSError)       the disk or network fails: try again later
    └── MissingDependencyError (also ImportError)  pip install "featurestore[...]"

    ExtractionInterrupted (a KeyboardInterrupt)    stopped by a signal; what was done is kept

A message says what was asked, what was found and what to do. Facts are attributes: nobody has to
parse a text. Every error survives pickling, because workers send them home.
"""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable


class _WithFacts:
    """A message and facts about a failure; each fact becomes an attribute."""

    def __init__(self, message: str, **facts: Any) -> None:
        super().__init__(message)  # type: ignore[call-arg]  # the exception beside it
        self.message = message
        self.facts = facts
        # Set, not looked up on demand: ImportError has a `name` and OSError a `filename` that
        # would hide facts of those names.
        for name, value in facts.items():
            setattr(self, name, value)

    def __getattr__(self, name: str) -> Any:
        """Say which facts there are, where none has that name."""
        facts = sorted(self.__dict__.get("facts", {}))
        raise AttributeError(f"{type(self).__name__} has no fact {name!r}; it has {facts}.")

    def __str__(self) -> str:
        # KeyError would show the repr of the message, quotes and all.
        return self.message

    def __reduce__(self) -> tuple[Any, ...]:
        # The state brings along what was added later, such as notes.
        return (_rebuild, (type(self), self.message, self.facts), self.__dict__)


class FeatureStoreError(_WithFacts, Exception):
    """Any error that this package raises on purpose.

    Parameters
    ----------
    message : str
        What was asked, what was found, what to do.
    **facts : object
        Facts about the failure; each becomes an attribute.
    """


def _rebuild(cls: type[_WithFacts], message: str, facts: dict[str, Any]) -> Any:
    return cls(message, **facts)


class NotFoundError(FeatureStoreError, KeyError):
    """What was asked for does not exist."""


class ModelNotFoundError(NotFoundError):
    """No source offers a model of that name."""


class ModuleNotFoundInModelError(NotFoundError):
    """The model has no module of that name, or the module no such output."""


class FeaturesMissingError(NotFoundError):
    """The store was opened read-only and lacks some of the rows (`missing`: their names)."""


class StoreNotFoundError(FeatureStoreError, FileNotFoundError):
    """There is no store at that place."""


class InvalidInputError(FeatureStoreError, ValueError):
    """The call cannot be carried out as it stands."""


class ImageDecodeError(InvalidInputError):
    """Some images could not be read (`failures`: name to reason); the others are kept."""


class LabelMismatchError(InvalidInputError):
    """Two things that should be labelled alike are not."""


class AmbiguousModuleError(InvalidInputError):
    """The module has several outputs or calls, and none was chosen."""


class IdentityError(InvalidInputError):
    """It cannot be established what this is, so nothing is kept under its name."""


class WeightsChangedError(FeatureStoreError):
    """A known name now stands for another network."""


class CorruptDataError(FeatureStoreError):
    """Stored values are damaged and cannot be recomputed here (`images`: their names)."""


class FormatVersionError(FeatureStoreError):
    """The store was written in a newer format than this version can read."""


class MemoryBudgetError(FeatureStoreError):
    """The work would need more memory than allowed (`projected_nbytes`, `allowed_nbytes`)."""


class DiskSpaceError(FeatureStoreError):
    """The work would need more disk than is free (`projected_nbytes`, `free_nbytes`)."""


class ReadOnlyError(FeatureStoreError):
    """The store was opened with ``mode="r"`` or cannot be written."""


class StoreUnavailableError(FeatureStoreError, OSError):
    """The store is gone or its disk does not answer, which is not damage (`path`, `errno`)."""


class MissingDependencyError(FeatureStoreError, ImportError):
    """A library that this call needs is not installed (`package`, `extra`)."""


class ExtractionInterrupted(_WithFacts, KeyboardInterrupt):
    """A signal stopped an extraction; what was computed is kept.

    Facts are `signal` (its number, such as ``signal.SIGINT`` for Ctrl-C), `n_done` and `n_missing`
    (images). A program may end with ``sys.exit(128 + err.signal)``, as the command line does.

    Not a `FeatureStoreError`: a loop that goes on after errors must still stop at Ctrl-C.

    Parameters
    ----------
    message : str
        How much is kept and how to go on.
    **facts : object
        Facts; each becomes an attribute.
    """


class FeatureStoreWarning(UserWarning):
    """Something that may matter to the numbers, said once."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Suggest near misses of a word.

    Parameters
    ----------
    word : str
        What was asked for.
    choices : iterable of str
        What there is.

    Returns
    -------
    str
        A sentence with a leading space, or nothing where nothing is near.

    Examples
    --------
    >>> did_you_mean("feature.10", ["features.10", "classifier.6"])
    " Did you mean 'features.10'?"
    >>> did_you_mean("zzz", ["features.10"])
    ''
    """
    names = list(choices)
    near = difflib.get_close_matches(word, names, n=3, cutoff=0.6)
    near += [name for name in names if word and word in name and name not in near][: 3 - len(near)]
    if not near:
        return ""
    return f" Did you mean {' or '.join(repr(name) for name in near)}?"
