"""What modules return: walked, and caught while the network runs."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields, is_dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from torch.utils.hooks import RemovableHandle

    from featurestore.networks.taps import Tap

Path = tuple[str | int, ...]


class Stop(BaseException):
    """Ends a forward pass once everything wanted has been caught."""


def tensors_in(output: object, path: Path = ()) -> Iterator[tuple[Path, torch.Tensor]]:
    """Walk what a module returned.

    Parameters
    ----------
    output : object
        A tensor, or tuples, lists, dicts and dataclasses of them.
    path : tuple
        Where `output` itself is.

    Yields
    ------
    tuple
        Path to a tensor, as users write it, and the tensor.
    """
    if isinstance(output, torch.Tensor):
        yield path, output
        return
    for step, inner in _inside(output):
        yield from tensors_in(inner, (*path, step))


def _inside(output: object) -> Iterator[tuple[str | int, object]]:
    if isinstance(output, Mapping):
        for name, inner in output.items():
            # "[0]" is how users point at the key "0" too.
            text = str(name)
            yield (int(text) if text.isdecimal() else text), inner
    elif isinstance(output, list | tuple):
        yield from enumerate(output)
    elif is_dataclass(output) and not isinstance(output, type):
        for part in fields(output):
            yield part.name, getattr(output, part.name)


class Hooks:
    """Forward hooks that are gone when the block ends, however it ends.

    Parameters
    ----------
    module : nn.Module
        The network.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> Hooks:
        # This class has a fused path that skips its inner modules, but only while nobody
        # listens: what was tapped would change the last bits of everything else.
        for part in self.module.modules():
            if isinstance(part, nn.TransformerEncoderLayer):
                self.after(part, lambda _output: None)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def before(self, part: nn.Module, call: Callable[[], None]) -> None:
        """Call something whenever a module starts.

        Parameters
        ----------
        part : nn.Module
            A module of the network.
        call : callable
            Takes nothing.
        """

        def hook(_module: nn.Module, _inputs: object) -> None:
            call()

        self._handles.append(part.register_forward_pre_hook(hook))

    def after(self, part: nn.Module, call: Callable[[Any], None]) -> None:
        """Call something with whatever a module returns.

        Parameters
        ----------
        part : nn.Module
            A module of the network.
        call : callable
            Takes the module's output.
        """

        def hook(_module: nn.Module, _inputs: object, output: Any) -> None:
            call(output)

        self._handles.append(part.register_forward_hook(hook))


class Catch:
    """Catches the outputs of some modules in one forward pass, then stops it.

    Parameters
    ----------
    taps : sequence of Tap
        Resolved: with call and path.
    """

    def __init__(self, taps: Sequence[Tap]) -> None:
        self.caught: dict[Tap, torch.Tensor] = {}
        self._wanted = {name: [tap for tap in taps if tap.module == name] for name in _names(taps)}
        self._calls = dict.fromkeys(self._wanted, 0)
        self._n_left = len(set(taps))

    def run(self, module: nn.Module, batch: torch.Tensor) -> None:
        """Run a batch until everything wanted has been caught.

        Parameters
        ----------
        module : nn.Module
            The network.
        batch : Tensor of shape (n, *input_shape)
            Its input.
        """
        parts = dict(module.named_modules())
        with Hooks(module) as hooks:
            for name in self._wanted:
                hooks.after(parts[name], lambda output, name=name: self._take(name, output))  # type: ignore[misc]
            with suppress(Stop):
                module(batch)

    def _take(self, name: str, output: object) -> None:
        call = self._calls[name]
        self._calls[name] += 1
        wanted = [tap for tap in self._wanted[name] if tap.call == call]
        if not wanted:
            return
        tensors = dict(tensors_in(output))
        for tap in wanted:
            if tap.path in tensors and tap not in self.caught:
                # At once, and as a copy: the next module may overwrite it in place.
                self.caught[tap] = to_host(tensors[tap.path])
                self._n_left -= 1
        if self._n_left == 0:
            raise Stop


def to_host(tensor: torch.Tensor) -> torch.Tensor:
    """Copy a tensor to host memory as float32.

    Parameters
    ----------
    tensor : Tensor
        Floating point or quantised.

    Returns
    -------
    Tensor
        In memory of its own.
    """
    plain = tensor.detach()
    if plain.is_quantized:
        return plain.dequantize().to("cpu", torch.float32)
    return plain.to("cpu", torch.float32, copy=True)


def _names(taps: Sequence[Tap]) -> list[str]:
    return list(dict.fromkeys(tap.module for tap in taps))
