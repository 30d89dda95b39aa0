"""Identity of a built network: what its state dict does not say.

Two networks with equal state dicts may compute different things: another number of attention
heads, another activation, an edited ``forward``. Here is every submodule's class, settings,
non-persistent buffers, forward hooks and, where the user wrote the class, its source.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from featurestore.canonical import digest_of
from featurestore.networks.code import is_users, qualified_name
from featurestore.networks.spelling import Speller
from featurestore.networks.weights import network_state, weights_digest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.typing import Json

# What nn.Module itself keeps: registries, hooks, and the training flag.
_PLUMBING = frozenset({*vars(nn.Module()), "_is_full_backward_hook", "call_super_init"})
# What installed modules note down in their first forward pass.
_CACHES = {"torchvision.ops.poolers.MultiScaleRoIAlign": frozenset({"scales", "map_levels"})}
_HOOKS = ("_forward_pre_hooks", "_forward_hooks")
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def structure_digest(module: nn.Module) -> str:
    """Return the digest of a network's structure.

    Parameters
    ----------
    module : nn.Module
        Built, before any forward pass: some modules note things down while they run.

    Returns
    -------
    str
        32 hex digits, the same in every process.

    Raises
    ------
    IdentityError
        If a module keeps something that has no canonical form; module and attribute are named.
    """
    return digest_of("structure", describe(module))


def describe(module: nn.Module) -> Json:
    """Describe every module of a network.

    Parameters
    ----------
    module : nn.Module
        The network.

    Returns
    -------
    JSON-able
        One entry per registered name; a module registered twice is described once.
    """
    first: dict[int, str] = {}
    named = list(module.named_modules(remove_duplicate=False))
    for name, part in named:
        first.setdefault(id(part), name)
    speller = Speller(first, _describe_hidden)
    described = _describe_all(named, speller)
    registries = [getattr(nn.modules.module, f"_global{registry}") for registry in _HOOKS]
    everywhere = [hook for registry in registries for hook in registry.values()]
    if everywhere:  # torch.nn.modules.module.register_module_forward_hook
        described.append(["everywhere", speller.value(everywhere, "a forward hook of all modules")])
    return described


def _describe_all(named: Sequence[tuple[str, nn.Module]], speller: Speller) -> list[Json]:
    return [
        [name, _describe_part(part, name, speller)]
        if speller.modules[id(part)] == name
        else [name, ["same", speller.modules[id(part)]]]
        for name, part in named
    ]


def _describe_hidden(module: nn.Module, called: str, speller: Speller) -> Json:
    # Not registered, so its weights are not in the network's state dict either. Its parts are
    # named before any is described, as they may refer to each other.
    named = [(f"{called}: {name}", part) for name, part in module.named_modules()]
    for name, part in named:
        speller.modules.setdefault(id(part), name)
    return [_describe_all(named, speller), weights_digest(network_state(module))]


def _describe_part(part: nn.Module, name: str, speller: Speller) -> Json:
    where = f"module {name!r}" if name else f"the network ({type(part).__qualname__})"
    return {
        "class": speller.kind(type(part)),
        "repr": _ADDRESS.sub("", part.extra_repr()),
        "attributes": _attributes(part, where, speller),
        "buffers": {
            buffer: weights_digest({buffer: part._buffers[buffer]})
            for buffer in sorted(part._non_persistent_buffers_set)
        },
        "hooks": [
            speller.value(hook, f"a forward hook of {where}")
            for registry in _HOOKS
            for hook in getattr(part, registry).values()
        ],
    }


def _attributes(part: nn.Module, where: str, speller: Speller) -> Json:
    if isinstance(part, torch.fx.GraphModule):
        return _traced(part, where, speller)
    left_out = _PLUMBING | _CACHES.get(qualified_name(type(part)), frozenset())
    kept: dict[str, Any] = {
        name: value for name, value in vars(part).items() if name not in left_out
    }
    return {
        name: speller.value(value, f"{where}, attribute {name!r}")
        for name, value in sorted(kept.items())
    }


def _traced(part: torch.fx.GraphModule, where: str, speller: Speller) -> Json:
    # The code says all that is installed; the user's functions and constants it only names.
    called = {str(node.target): node.target for node in part.graph.nodes if callable(node.target)}
    used: dict[str, Any] = {name: target for name, target in called.items() if is_users(target)} | {
        name: value for name, value in vars(part).items() if isinstance(value, torch.Tensor)
    }
    spelled = {
        _ADDRESS.sub("", name): speller.value(value, f"{where}, {name}")
        for name, value in sorted(used.items())
    }
    return {"code": part.code, **({"used": spelled} if spelled else {})}
