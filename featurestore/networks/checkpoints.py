"""Checkpoint files: read without running anything in them, and fitted to a network."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from featurestore.errors import InvalidInputError
from featurestore.filehash import hash_bytes
from featurestore.optional import import_optional

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

State = OrderedDict[str, Any]

_NESTS = ("state_dict", "model_state_dict", "model", "net", "network", "weights")
# What DataParallel and torch.compile put before every name.
_PREFIXES = ("module.", "_orig_mod.")
# Running averages of the weights, which some trainers keep beside them.
_AVERAGES = ("ema", "model_ema", "state_dict_ema", "ema_state_dict", "model_ema_state_dict")
_HEADS = (torch.nn.Linear, torch.nn.Conv2d)
_N_LISTED = 5


def read_checkpoint(path: Path, digest: str | None = None) -> State:
    """Read the state dict in a checkpoint file.

    Parameters
    ----------
    path : Path
        ``.safetensors``, or whatever `torch.save` wrote.
    digest : str, optional
        What the bytes must hash to.

    Returns
    -------
    dict
        Names to tensors; wrapping dicts and prefixes are taken off.

    Raises
    ------
    InvalidInputError
        If the file is missing, has changed, holds code, or holds no state dict.
    """
    try:
        data = path.read_bytes()
    except OSError as err:
        raise InvalidInputError(f"The checkpoint {str(path)!r} cannot be read: {err}.") from err
    if digest is not None and hash_bytes(data).hex() != digest:
        raise InvalidInputError(
            f"The checkpoint {str(path)!r} has changed since it was asked for (training goes on?)."
            " Ask again, or work on a copy."
        )
    return unwrap(_parse(data, path), path)


def unwrap(content: object, path: Path) -> State:
    """Find the state dict in what a checkpoint holds.

    Parameters
    ----------
    content : object
        What was read.
    path : Path
        Where from.

    Returns
    -------
    dict
        Names to tensors.

    Raises
    ------
    InvalidInputError
        If there is none, or several.
    """
    nest = _nest(content, path)
    while nest is not None:
        content = nest
        nest = _nest(content, path)
    if not isinstance(content, Mapping) or not _has_tensors(content):
        found = f"the keys {list(content)[:8]}" if isinstance(content, Mapping) else type(content)
        raise InvalidInputError(
            f"The checkpoint {str(path)!r} holds no state dict, but {found}. "
            "Save it with torch.save(network.state_dict(), path)."
        )
    state = with_entries(content, {})
    for prefix in _PREFIXES:
        if all(name.startswith(prefix) for name in state):
            state = _without_prefix(state, prefix)
    return state


def require_fit(expected: Mapping[str, Any], given: Mapping[str, Any], what: str) -> None:
    """Refuse a state dict that is not exactly a network's own.

    Parameters
    ----------
    expected : mapping
        The network's state dict.
    given : mapping
        The checkpoint's.
    what : str
        How to call the two in the message.

    Raises
    ------
    InvalidInputError
        If names or shapes differ; the differences are listed.
    """
    missing = [name for name in expected if name not in given]
    unexpected = [name for name in given if name not in expected]
    shapes = [
        f"{name} {_shape(given[name])} for {_shape(expected[name])}"
        for name in expected
        if name in given and _shape(expected[name]) != _shape(given[name])
    ]
    found = [
        _listed(kind, names)
        for kind, names in (("missing", missing), ("unexpected", unexpected), ("shape", shapes))
        if names
    ]
    if found:
        raise InvalidInputError(
            f"{what}: {'; '.join(found)}. Use the architecture that the weights were trained in.",
            missing=missing,
            unexpected=unexpected,
            shapes=shapes,
        )


def with_entries(state: Mapping[Any, Any], more: Mapping[str, Any]) -> State:
    """Copy a state dict, with the versions of its modules, and add to it.

    Parameters
    ----------
    state : mapping
        Names to tensors.
    more : mapping
        Entries to add or to replace.

    Returns
    -------
    OrderedDict
        A new one.
    """
    copied: State = OrderedDict((str(name), value) for name, value in {**state, **more}.items())
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        copied.__dict__["_metadata"] = versions  # how torch knows older layouts of its modules
    return copied


def reconcile(expected: Mapping[str, Any], complete: Mapping[str, Any], state: State) -> State:
    """Take from a checkpoint what a network in evaluation does not have.

    Parameters
    ----------
    expected : mapping
        The network's state dict.
    complete : mapping
        The same before the builder dropped its auxiliary outputs.
    state : OrderedDict
        The checkpoint's.

    Returns
    -------
    OrderedDict
        Without auxiliary outputs and with the counters of batches, which only training reads,
        where the network has them.
    """
    counter = ".num_batches_tracked"
    counters = {
        name: expected[name] for name in expected if name.endswith(counter) and name not in state
    }
    kept = with_entries(state, counters)
    for name in state:
        frozen = name.endswith(counter) and f"{name.removesuffix(counter)}.running_mean" in expected
        if name not in expected and (name in complete or frozen):
            del kept[name]
    return kept


def resize_outputs(module: torch.nn.Module, state: Mapping[str, Any]) -> int | None:
    """Give a network's classifiers as many classes as a checkpoint has.

    Only where nothing else can be meant: every tensor of another shape belongs to a linear or
    convolutional module, all of whose tensors differ in the number of outputs alone, everywhere
    from the same number to the same other, and the network's last module is one of them.

    Parameters
    ----------
    module : nn.Module
        The network; changed in place.
    state : mapping
        The checkpoint's state dict.

    Returns
    -------
    int or None
        The new number of classes; ``None`` if there was nothing to do, or no such case.
    """
    shapes = [
        (name, value.shape, state[name].shape)
        for name, value in module.state_dict().items()
        if isinstance(value, torch.Tensor)
        and isinstance(state.get(name), torch.Tensor)
        and state[name].shape != value.shape
    ]
    heads = [module.get_submodule(name.rpartition(".")[0]) for name, _, _ in shapes]
    counts = {(old[:1], new[:1]) for _, old, new in shapes}
    outputs_only = all(old[1:] == new[1:] for _, old, new in shapes)
    differing = {name for name, _, _ in shapes}
    # What comes last is a classifier; a wrong file may well differ in a module further in.
    last = next(reversed(dict(module.named_parameters())), "")
    whole = last in differing and all(
        f"{name.rpartition('.')[0]}.{part}" in differing
        for (name, _, _), head in zip(shapes, heads, strict=True)
        for part, _ in head.named_parameters(recurse=False)
    )
    adapts = outputs_only and whole and all(type(head) in _HEADS for head in heads)
    if len(counts) != 1 or not adapts:
        return None
    n_classes = int(shapes[0][2][0])
    for head in heads:
        _resize(head, n_classes)
    return n_classes


def _resize(head: torch.nn.Module, n_outputs: int) -> None:
    setattr(
        head, "out_features" if isinstance(head, torch.nn.Linear) else "out_channels", n_outputs
    )
    for parameter in head.parameters():
        parameter.data = parameter.data.new_zeros((n_outputs, *parameter.shape[1:]))


def _parse(data: bytes, path: Path) -> object:
    if path.suffix.lower() == ".safetensors":
        safetensors: Any = import_optional("safetensors.torch", "torch")
        try:
            return safetensors.load(data)
        except import_optional("safetensors", "torch").SafetensorError as err:
            raise InvalidInputError(f"{str(path)!r} is no safetensors file: {err}.") from err
    try:
        return torch.load(io.BytesIO(data), weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as err:
        raise InvalidInputError(
            f"The checkpoint {str(path)!r} holds more than tensors (a pickled network or other "
            "objects), and reading those would run code from the file. Save the weights alone: "
            "torch.save(network.state_dict(), path), or as .safetensors."
        ) from err
    except Exception as err:  # what torch makes of garbage ranges from EOFError to IndexError
        # The unpickler's errors name what it stumbled over: a byte, or an empty stack.
        reason = f" ({err})" if isinstance(err, RuntimeError) else ""
        raise InvalidInputError(
            f"{str(path)!r} is no readable checkpoint: torch.load cannot read it{reason}. It is "
            "not complete, or not a file that torch.save wrote."
        ) from err


def _nest(content: object, path: Path) -> Mapping[Any, Any] | None:
    if not isinstance(content, Mapping) or _has_tensors(content):
        return None
    inner: dict[str, Mapping[Any, Any]] = {
        name: content[name]
        for name in (*_NESTS, *_AVERAGES)
        if isinstance(content.get(name), Mapping) and content[name]
    }
    if len(inner) > 1:
        key = next(iter(inner))
        raise InvalidInputError(
            f"The checkpoint {str(path)!r} holds several sets of weights: "
            f"{', '.join(map(repr, inner))}. Save the one that you mean on its own: "
            f"torch.save(checkpoint[{key!r}], path).",
            keys=list(inner),
        )
    return next(iter(inner.values()), None)


def _without_prefix(state: State, prefix: str) -> State:
    short: State = OrderedDict((name.removeprefix(prefix), state[name]) for name in state)
    versions = getattr(state, "_metadata", None)
    if versions is not None:
        short.__dict__["_metadata"] = {
            name.removeprefix(prefix): version for name, version in versions.items()
        }
    return short


def _has_tensors(content: Mapping[Any, Any]) -> bool:
    return any(isinstance(value, torch.Tensor) for value in content.values())


def _shape(value: object) -> tuple[int, ...] | str:
    return tuple(value.shape) if isinstance(value, torch.Tensor) else type(value).__name__


def _listed(kind: str, names: Sequence[str]) -> str:
    shown = ", ".join(names[:_N_LISTED])
    more = ", …" if len(names) > _N_LISTED else ""
    return f"{len(names)} {kind} ({shown}{more})"
