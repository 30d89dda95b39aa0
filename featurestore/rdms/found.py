"""What a file of RDMs holds, before its shape is judged and its images are named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class FoundValues:
    """Numbers, and what the file says of them."""

    values: NDArray[Any]
    """Square, or condensed; leading axes for several RDMs."""
    names: tuple[str, ...] | None = None
    """The images, where the file names them."""
    labels: tuple[str, ...] | None = None
    """The RDMs along one leading axis, where the file names them."""
    variable: str | None = None
    """Which variable of the file it is."""


def shape_word(shape: tuple[int, ...]) -> str:
    """Spell a shape.

    Parameters
    ----------
    shape : tuple of int
        Of an array.

    Returns
    -------
    str
        Such as ``16 × 92 × 92``.

    Examples
    --------
    >>> shape_word((16, 92, 92))
    '16 × 92 × 92'
    """
    return " × ".join(map(str, shape)) if shape else "one number"


def listed_variables(shapes: Mapping[str, tuple[int, ...]]) -> str:
    """Spell which variables a file has.

    Parameters
    ----------
    shapes : mapping of str to tuple of int
        Name to shape.

    Returns
    -------
    str
        Such as ``'RDM' (92 × 92), 'labels' (92)``.
    """
    if not shapes:
        return "none"
    return ", ".join(f"{name!r} ({shape_word(shape)})" for name, shape in shapes.items())
