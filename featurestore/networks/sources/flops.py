"""What running a network costs, by module: counted from shapes, not timed."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from featurestore.networks.sources.capture import Hooks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

_log = logging.getLogger(__name__)

# Operators that multiply a lot, and that the counter knows no formula for: it would say nothing.
_BLIND = frozenset(
    (
        *("mkldnn_rnn_layer", "_cudnn_rnn", "miopen_rnn", "_thnn_fused_lstm_cell"),
        *("_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
        *("_cdist_forward", "deform_conv2d", "_embedding_bag", "einsum"),
    )
)
_BLIND_NAMESPACES = frozenset(("quantized", "onednn", "mkldnn_prepacked", "xnnpack", "prepacked"))


@dataclass(frozen=True, slots=True)
class Cost:
    """Floating-point operations for one image; 0 where they are not known."""

    inside: int
    """In all calls of a module."""
    until: int
    """From the network's input to the end of the module's last call."""


@dataclass
class _Calls:
    """The calls of one module, while the network runs."""

    depth: int = 0
    started: tuple[int, int] = (0, 0)
    inside: int = 0
    until: int = 0
    n_blind: int = 0
    """Inside its calls."""
    n_blind_until: int = 0


class _Watch(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operators whose cost nobody can tell."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.n_blind = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        if func.namespace in _BLIND_NAMESPACES or func._overloadpacket.__name__ in _BLIND:
            self.n_blind += 1
        return func(*args, **(kwargs or {}))


def count_flops(module: nn.Module, image: torch.Tensor) -> dict[str, Cost]:
    """Run a network once and count what each of its modules costs.

    Multiplications and additions of matrix products, convolutions and attention are counted, one
    each; what works value by value is not, as it costs next to nothing beside them.

    Parameters
    ----------
    module : nn.Module
        In eval mode, on the CPU.
    image : Tensor of shape (1, *input_shape)
        One preprocessed image.

    Returns
    -------
    dict
        By name of module; without those that were not called. Empty if the network cannot be
        counted: that costs an estimate, never a value.
    """
    backends: Any = torch.backends
    fused = backends.mha.get_fastpath_enabled()
    try:
        # The fused attention hides its products from the counter.
        backends.mha.set_fastpath_enabled(False)
        with sdpa_kernel(SDPBackend.MATH):  # nor do all counters know its faster kinds
            found = _count(module, image)
    except Exception:  # noqa: BLE001  # whatever a network makes of being watched
        _log.debug("the cost of %s cannot be counted", type(module).__name__, exc_info=True)
        return {}
    finally:
        backends.mha.set_fastpath_enabled(fused)
    return {
        name: Cost(0 if calls.n_blind else calls.inside, 0 if calls.n_blind_until else calls.until)
        for name, calls in found.items()
    }


def _count(module: nn.Module, image: torch.Tensor) -> Mapping[str, _Calls]:
    found: dict[str, _Calls] = {}
    watch, counter = _Watch(), FlopCounterMode(display=False)

    def now() -> tuple[int, int]:
        return int(counter.get_total_flops()), watch.n_blind

    def start(name: str) -> None:
        calls = found.setdefault(name, _Calls())
        if not calls.depth:  # a module may call itself
            calls.started = now()
        calls.depth += 1

    def stop(name: str) -> None:
        calls = found[name]
        calls.depth -= 1
        if not calls.depth:
            flops, n_blind = now()
            calls.inside += flops - calls.started[0]
            calls.n_blind += n_blind - calls.started[1]
            calls.until, calls.n_blind_until = flops, n_blind

    # The watch stands behind the counter, which takes composed operators apart.
    with Hooks(module) as hooks, watch, counter:
        for name, part in module.named_modules():
            hooks.before(part, lambda name=name: start(name))  # type: ignore[misc]
            hooks.after(part, lambda _out, name=name: stop(name))  # type: ignore[misc]
        module(image)
    return found
