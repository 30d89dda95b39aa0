"""What the axes of a module's output are: channel, y, x; token, channel; or something else."""

from __future__ import annotations

import math
from typing import Literal, TypeAlias

from torch import nn

Layout: TypeAlias = Literal["first", "last"]
"""Where the channels are: before the other axes, or after them."""

_FIRST = (
    nn.modules.conv._ConvNd,
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.pooling._MaxPoolNd,
    nn.modules.pooling._AvgPoolNd,
    nn.modules.pooling._AdaptiveAvgPoolNd,
    nn.modules.pooling._AdaptiveMaxPoolNd,
)
# Exact classes: torchvision's LayerNorm2d inherits from LayerNorm and keeps channels first.
_LAST = (nn.Linear, nn.LayerNorm, nn.Embedding)


def name_axes(
    shape: tuple[int, ...],
    part: nn.Module,
    before: Layout | None,
    input_shape: tuple[int, ...],
) -> tuple[tuple[str, ...], tuple[int, ...], Layout | None]:
    """Name the axes of one row.

    Parameters
    ----------
    shape : tuple of int
        Of one row, without the batch axis.
    part : nn.Module
        The module that returned it.
    before : {"first", "last"} or None
        Where the last map that was told for sure had its channels.
    input_shape : tuple of int
        Of one preprocessed image.

    Returns
    -------
    tuple of str
        Names.
    tuple of int
        Which axis of `shape` each name stands for.
    {"first", "last"} or None
        What to pass as `before` next.
    """
    if len(shape) == 3:
        sure = _by_class(part) or _by_aspect(shape, input_shape)
        last = (sure or before or "first") == "last"
        return ("channel", "y", "x"), (2, 0, 1) if last else (0, 1, 2), sure or before
    if len(shape) == 2:
        return ("token", "channel"), (1, 0) if _by_class(part) == "first" else (0, 1), before
    if len(shape) <= 1:
        return ("feature",), tuple(range(len(shape))), before
    names = tuple(f"axis_{number}" for number in range(1, len(shape) + 1))
    return names, tuple(range(len(shape))), before


def _by_class(part: nn.Module) -> Layout | None:
    if isinstance(part, _FIRST):
        return "first"
    return "last" if type(part) in _LAST else None


def _by_aspect(shape: tuple[int, ...], input_shape: tuple[int, ...]) -> Layout | None:
    """Find the two axes that are shaped like the picture."""
    if 0 in shape or len(input_shape) != 3:
        return None
    aspect = math.log(input_shape[1] / input_shape[2])
    first = abs(math.log(shape[1] / shape[2]) - aspect)
    last = abs(math.log(shape[0] / shape[1]) - aspect)
    if math.isclose(first, last, abs_tol=1e-9):
        return None
    return "first" if first < last else "last"
