"""What an extraction did, and what became of images that could not be read."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import numpy as np

from featurestore.errors import FeatureStoreWarning, ImageDecodeError

if TYPE_CHECKING:
    from featurestore.images.imageset import ImageSet


@dataclass(slots=True)
class Report:
    """What an extraction did."""

    n_computed: int = 0
    """Images that went through the network."""
    n_derived: int = 0
    """Rows that were derived from stored full rows."""
    failures: dict[str, str] = field(default_factory=dict)
    """Name of each image that could not be read, and why."""
    failed: tuple[int, ...] = ()
    """Their positions in the image set."""


def decode_error(failures: dict[str, str], n_good: int) -> ImageDecodeError:
    """Word the error that names every image that could not be read.

    Parameters
    ----------
    failures : dict
        Name to reason.
    n_good : int
        Images that were computed all the same.

    Returns
    -------
    ImageDecodeError
        To be raised.
    """
    shown = [f"{name}: {reason}" for name, reason in list(failures.items())[:10]]
    more = f"\n  and {len(failures) - 10} more" if len(failures) > 10 else ""
    lines = "\n  ".join(shown)
    return ImageDecodeError(
        f"{len(failures)} images could not be read; the {n_good} others are kept. "
        f"Repair or remove these, or leave them out with errors='skip':\n  {lines}{more}",
        failures=dict(failures),
    )


def leave_out(
    images: ImageSet,
    report: Report,
    unreadable: dict[str, str],
    errors: Literal["raise", "skip"],
) -> ImageSet:
    """Leave out what could not be read, in every place where that content was asked for.

    Parameters
    ----------
    images : ImageSet
        What was asked for and is there.
    report : Report
        What the extraction did.
    unreadable : dict of str
        Images that were not even there, with the reason.
    errors : {"raise", "skip"}
        What to do if there are any such images.

    Returns
    -------
    ImageSet
        The images that have features.

    Raises
    ------
    ImageDecodeError
        If there are unreadable images and `errors` is ``"raise"``.
    """
    failures = unreadable | report.failures
    if not failures:
        return images
    bad = {images.digests[n].tobytes() for n in report.failed}
    keep = np.array([digest.tobytes() not in bad for digest in images.digests])
    if errors == "raise":
        raise decode_error(failures, int(keep.sum()))
    n_left_out = len(images) + len(unreadable) - int(keep.sum())
    warnings.warn(
        f"{n_left_out} of {len(images) + len(unreadable)} images could not be read and were left "
        "out: " + "; ".join(f"{name}: {reason}" for name, reason in failures.items()),
        FeatureStoreWarning,
        stacklevel=5,
    )
    return images[keep]
