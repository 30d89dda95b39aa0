"""What may be kept of a module's output, each as one function of the float32 row on the host.

It is the same function whether the row comes from a forward pass or from the store, so the same
request gives the same bits either way.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

READOUTS = ("avgpool", "flatten")


def stored_readout(readout: str | None) -> str | None:
    """Return the readout whose column holds the values.

    Parameters
    ----------
    readout : {None, "flatten", "avgpool"}
        What was asked for.

    Returns
    -------
    str or None
        ``"flatten"`` is a view of the full column: the same values, stored once.

    Raises
    ------
    InvalidInputError
        If there is no such readout.
    """
    if readout is not None and readout not in READOUTS:
        raise InvalidInputError(
            f"There is no readout {readout!r}. Use None (all), "
            f"{' or '.join(repr(name) for name in READOUTS)}."
        )
    return None if readout == "flatten" else readout


def readout_shape(
    readout: str | None, dims: Sequence[str], shape: Sequence[int], module: str
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """Return the dims and shape of a row after a readout.

    Parameters
    ----------
    readout : {None, "flatten", "avgpool"}
        What is kept.
    dims, shape : sequence
        Names and sizes of the axes of the module's row.
    module : str
        The module, for the message.

    Returns
    -------
    dims : tuple of str
        Names of the axes that remain.
    shape : tuple of int
        Their sizes.

    Raises
    ------
    InvalidInputError
        If the module's output does not have the axes that the readout is about.
    """
    stored_readout(readout)
    if readout == "flatten":
        return ("feature",), (math.prod(shape),)
    if readout == "avgpool":
        if tuple(dims) != ("channel", "y", "x"):
            raise InvalidInputError(
                f"readout='avgpool' averages over y and x, but {module!r} has "
                f"({', '.join(dims)}). Leave the readout out, or choose a module with a map."
            )
        return ("channel",), (shape[0],)
    return tuple(dims), tuple(shape)


def apply_readout(readout: str | None, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Apply a stored readout to rows.

    Parameters
    ----------
    readout : {None, "avgpool"}
        What is kept.
    rows : ndarray of shape (n, *shape), float32
        Full rows.

    Returns
    -------
    ndarray of shape (n, *kept), float32
        The same rows for ``None``. ``"avgpool"`` is the mean over y and x of each channel, summed
        in float64.
    """
    if readout is None:
        return rows
    pooled = np.empty(rows.shape[:2], np.float32)
    with np.errstate(invalid="ignore", over="ignore"):  # NaN and Inf are kept as they are
        for number, row in enumerate(rows):
            # One image at a time and already float64: the order of summation, and so the last
            # bit, must not depend on how many images are read together.
            pooled[number] = row.reshape(len(row), -1).astype(np.float64).mean(axis=1)
    return pooled
