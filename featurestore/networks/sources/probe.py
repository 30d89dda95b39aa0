"""What can be known about a network's modules only by running it: two passes, three images and two.

Row 0 holds the same image in both passes, with other neighbours. The axis whose size follows the
number of images is the batch axis; a row 0 that changes with its neighbours is refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from featurestore.networks.sources.axes import name_axes
from featurestore.networks.sources.capture import Hooks, tensors_in
from featurestore.networks.sources.flops import Cost, count_flops
from featurestore.networks.taps import ModuleInfo, OutputInfo

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

    from featurestore.networks.sources.axes import Layout
    from featurestore.networks.sources.capture import Path

# Rows of the two passes differ by rounding only: 1e-7 at first, more after a hundred modules.
NEIGHBOUR_RTOL = 1e-4
N_SKETCH = 4096
N_FINGERPRINT = 6

_PASSES = ((0, 1, 2), (0, 3))


@dataclass(frozen=True)
class ProbeFacts:
    """What probing found."""

    modules: tuple[ModuleInfo, ...]
    """In order of first execution; modules that are never called come last."""
    fingerprints: Mapping[str, tuple[float, ...]]
    """Per module with a usable, finite output: a few of its values for the probe image, and
    their norm."""


@dataclass
class _Seen:
    """One tensor of one call in one pass; the values themselves are not kept."""

    shape: tuple[int, ...]
    problem: str
    sketches: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    """Per axis that may count the images: some values of its row 0."""
    norms: dict[int, float] = field(default_factory=dict)


_Key = tuple[int, "Path"]


@dataclass
class _Pass:
    """What one forward pass showed."""

    order: list[str] = field(default_factory=list)
    """Names of modules by when they first started."""
    seen: dict[str, dict[_Key, _Seen]] = field(default_factory=dict)
    finished: list[tuple[str, _Key]] = field(default_factory=list)
    silent: set[str] = field(default_factory=set)
    """Modules that returned no tensor."""
    n_calls: dict[str, int] = field(default_factory=dict)


def probe_modules(
    module: nn.Module, input_shape: tuple[int, ...], dtype: torch.dtype
) -> ProbeFacts:
    """Run a network on probe images and note what each module returns.

    Parameters
    ----------
    module : nn.Module
        In eval mode, on the CPU.
    input_shape : tuple of int
        Shape of one preprocessed image.
    dtype : torch.dtype
        What the network takes.

    Returns
    -------
    ProbeFacts
        Modules and fingerprints.
    """
    images = {number: probe_image(input_shape, number) for batch in _PASSES for number in batch}
    first, second = (
        _run(module, torch.tensor(np.stack([images[number] for number in batch]), dtype=dtype))
        for batch in _PASSES
    )
    parts = dict(module.named_modules())
    infos, layout = {}, None
    fingerprints: dict[str, tuple[float, ...]] = {}
    for name, key in second.finished:
        info, axis, layout = _compare(
            key,
            first.seen[name].get(key) if name in first.seen else None,
            second.seen[name][key],
            parts[name],
            layout,
            input_shape,
        )
        infos[name, key] = info
        if not info.problem and name not in fingerprints:
            values = _fingerprint(second.seen[name][key], axis)
            if np.isfinite(values).all():
                fingerprints[name] = values
    names = [*second.order, *(name for name in parts if name not in set(second.order))]
    # Last, so that being counted cannot change what was seen.
    costs = count_flops(module, torch.tensor(images[0][None], dtype=dtype))
    modules = tuple(
        _module_info(name, parts[name], second, infos, costs.get(name, Cost(0, 0)))
        for name in names
    )
    return ProbeFacts(modules, {name: fingerprints[name] for name in names if name in fingerprints})


def probe_image(shape: tuple[int, ...], number: int) -> NDArray[np.float32]:
    """Make an image that is the same on every machine and in every version.

    Parameters
    ----------
    shape : tuple of int
        Of one preprocessed image.
    number : int
        Which one.

    Returns
    -------
    ndarray of shape `shape`, float32
        Noise in [-2, 2), the range of normalised pictures.
    """
    size = int(np.prod(shape))
    mixed = np.arange(number * 0x9E3779B1, number * 0x9E3779B1 + size, dtype=np.uint64)
    for factor in (0x45D9F3B, 0x119DE1F3):
        mixed = ((mixed ^ (mixed >> np.uint64(16))) * np.uint64(factor)) & np.uint64(0xFFFFFFFF)
    mixed ^= mixed >> np.uint64(16)
    return (mixed.astype(np.float64) / 2**30 - 2).astype(np.float32).reshape(shape)


def _run(module: nn.Module, batch: torch.Tensor) -> _Pass:
    found = _Pass()
    with Hooks(module) as hooks:
        for name, part in module.named_modules():
            hooks.before(part, lambda name=name: _note_start(found, name))  # type: ignore[misc]
            hooks.after(part, lambda out, name=name: _note(found, name, out, len(batch)))  # type: ignore[misc]
        module(batch)
    return found


def _note_start(found: _Pass, name: str) -> None:
    if name not in found.n_calls:
        found.n_calls[name] = 0
        found.order.append(name)


def _note(found: _Pass, name: str, output: object, n: int) -> None:
    call = found.n_calls[name]
    found.n_calls[name] = call + 1
    tensors = list(tensors_in(output))
    if not tensors:
        found.silent.add(name)
    for path, tensor in tensors:
        found.seen.setdefault(name, {})[call, path] = _look(tensor, n)
        found.finished.append((name, (call, path)))


def _look(tensor: torch.Tensor, n: int) -> _Seen:
    if tensor.is_nested or tensor.layout != torch.strided:
        return _Seen((), "it is not a dense tensor")
    seen = _Seen(tuple(tensor.shape), "")
    if not (tensor.is_floating_point() or tensor.is_quantized):
        seen.problem = f"its values are {str(tensor.dtype).removeprefix('torch.')}, not floats"
        return seen
    for axis, size in enumerate(tensor.shape):
        if size == n:
            row = tensor.detach().select(axis, 0)
            row = (row.dequantize() if row.is_quantized else row).reshape(-1)
            where = _spread(min(N_SKETCH, row.numel()), row.numel())
            seen.sketches[axis] = row[where].to(torch.float32).numpy()
            seen.norms[axis] = float(torch.linalg.vector_norm(row.double()))
    return seen


def _spread(n: int, size: int) -> torch.Tensor:
    # In integers: linspace counts in float32 and steps over the end beyond 2**24 values.
    return torch.arange(n) * (size - 1) // max(n - 1, 1)


def _compare(
    key: _Key,
    first: _Seen | None,
    second: _Seen,
    part: nn.Module,
    layout: Layout | None,
    input_shape: tuple[int, ...],
) -> tuple[OutputInfo, int, Layout | None]:
    call, path = key
    axis, problem = _batch_axis(first, second)
    if problem or first is None:
        return OutputInfo(call, path, (), second.shape, problem=problem), 0, layout
    rest = second.shape[:axis] + second.shape[axis + 1 :]
    dims, order, layout = name_axes(rest, part, layout, input_shape)
    shape = tuple(rest[number] for number in order) or (1,)
    if not _same_row(first, second, axis):
        problem = "its values change with the other images of the batch, or at random"
    info = OutputInfo(call, path, dims, shape, batch_axis=axis, order=order, problem=problem)
    return info, axis, layout


def _batch_axis(first: _Seen | None, second: _Seen) -> tuple[int, str]:
    if second.problem:
        return 0, second.problem
    if first is None or len(first.shape) != len(second.shape):
        return 0, "its structure depends on the batch"
    pairs = list(zip(first.shape, second.shape, strict=True))
    changed = [axis for axis, (a, b) in enumerate(pairs) if a != b]
    if not changed:
        return 0, "none of its axes counts the images"
    n_first, n_second = (len(batch) for batch in _PASSES)
    a, b = pairs[changed[0]]
    if len(changed) > 1 or a * n_second != b * n_first:
        return 0, "its shape depends on the content of the images"
    if a != n_first:
        return 0, f"it has {a // n_first} rows per image"
    if 0 in second.shape:
        return 0, "it is empty"
    return changed[0], ""


def _same_row(first: _Seen, second: _Seen, axis: int) -> bool:
    a, b = first.sketches[axis].astype(np.float64), second.sketches[axis].astype(np.float64)
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True):
        return False
    a, b = a[finite], b[finite]
    return bool(np.linalg.norm(a - b) <= NEIGHBOUR_RTOL * np.linalg.norm(a) + 1e-30)


def _fingerprint(seen: _Seen, axis: int) -> tuple[float, ...]:
    sketch = seen.sketches[axis]
    where = np.linspace(0, len(sketch) - 1, min(N_FINGERPRINT, len(sketch))).astype(int)
    return (*(float(value) for value in sketch[where]), seen.norms[axis])


def _module_info(
    name: str,
    part: nn.Module,
    found: _Pass,
    infos: Mapping[tuple[str, _Key], OutputInfo],
    cost: Cost,
) -> ModuleInfo:
    outputs = tuple(infos[name, key] for key in found.seen.get(name, {}))
    if not outputs and name in found.silent:
        outputs = (OutputInfo(0, (), (), (), problem="it returns no tensor"),)
    n_parameters = sum(p.numel() for p in part.parameters())
    return ModuleInfo(
        name, type(part).__name__, n_parameters, outputs, flops=cost.inside, flops_until=cost.until
    )
