"""Identity of weights: a digest of the state dict in memory, never of a file's name."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from featurestore.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Iterator


def weights_digest(state: Mapping[str, object]) -> str:
    """Return the digest of a state dict.

    Parameters
    ----------
    state : mapping
        As ``module.state_dict()`` returns it.

    Returns
    -------
    str
        32 hex digits (xxh3_128) over names, dtypes, shapes and little-endian values, in the
        order of names.

    Raises
    ------
    IdentityError
        If it holds something without a canonical form.
    """
    digest = xxhash.xxh3_128(b"featurestore:weights")
    for name in sorted(state):
        for piece in _pieces(state[name], name):
            # Lengths keep ("ab", "c") and ("a", "bc") apart.
            digest.update(len(piece).to_bytes(8, "little"))
            digest.update(piece)
    return digest.hexdigest()


def network_state(module: torch.nn.Module) -> dict[str, Any]:
    """Return what a network holds, whatever it would save.

    Networks of users may leave parameters out of their state dict, as those who train a part of
    a network do, or write others into it. This is the state dict of one that does not.

    Parameters
    ----------
    module : nn.Module
        The network.

    Returns
    -------
    dict
        Names to tensors; equal to ``module.state_dict()`` where nobody changed that method, a
        hook of it or ``_save_to_state_dict``.
    """
    state: dict[str, Any] = {}
    for name, part in module.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        # Quantised modules know best how to unpack what they hold.
        part._save_to_state_dict(state, prefix, False)
        held = {**part._parameters, **part._buffers}
        for key, tensor in held.items():
            if tensor is not None and key not in part._non_persistent_buffers_set:
                state[prefix + key] = tensor
        if type(part).get_extra_state is not torch.nn.Module.get_extra_state:
            state[f"{prefix}_extra_state"] = part.get_extra_state()
    return state


def tensor_pieces(tensor: torch.Tensor, name: str) -> Iterator[bytes | memoryview]:
    """Spell a tensor canonically.

    Parameters
    ----------
    tensor : Tensor
        Dense or quantised, on any device.
    name : str
        What it is called; part of the spelling.

    Yields
    ------
    bytes-like
        Header, then values.

    Raises
    ------
    IdentityError
        If it is sparse, nested or without values.
    """
    if tensor.is_quantized:
        yield from _quantized_pieces(tensor, name)
        return
    if tensor.is_meta or tensor.is_nested or tensor.layout != torch.strided:
        raise IdentityError(
            f"The tensor {name!r} is on the meta device, nested or sparse, so what it holds "
            "has no canonical form. Load its values, or make it dense, first."
        )
    dtype = str(tensor.dtype).removeprefix("torch.")
    yield f"{name}\0tensor\0{dtype}\0{tuple(tensor.shape)}".encode()
    yield _little_endian(tensor.detach())


def _little_endian(tensor: torch.Tensor) -> memoryview:
    # By way of bytes: NumPy has no bfloat16 and no float8.
    plain = tensor.resolve_conj().resolve_neg().cpu().contiguous()
    values = plain.reshape(-1).view(torch.uint8).numpy()
    itemsize = plain.element_size() // (2 if plain.is_complex() else 1)
    if sys.byteorder == "big":
        values = np.ascontiguousarray(values.reshape(-1, itemsize)[:, ::-1]).reshape(-1)
    return memoryview(values.data)


def _quantized_pieces(tensor: torch.Tensor, name: str) -> Iterator[bytes | memoryview]:
    dtype = str(tensor.dtype).removeprefix("torch.")
    yield f"{name}\0quantized\0{dtype}\0{tuple(tensor.shape)}\0{tensor.qscheme()}".encode()
    yield _little_endian(tensor.int_repr())
    if tensor.qscheme() in (torch.per_tensor_affine, torch.per_tensor_symmetric):
        yield f"{tensor.q_scale().hex()}\0{tensor.q_zero_point()}".encode()
    else:
        yield str(tensor.q_per_channel_axis()).encode()
        yield _little_endian(tensor.q_per_channel_scales())
        yield _little_endian(tensor.q_per_channel_zero_points())


def _pieces(value: object, name: str) -> Iterator[bytes | memoryview]:
    if isinstance(value, torch.Tensor):
        yield from tensor_pieces(value, name)
    elif value is None or isinstance(value, bool | int | str | torch.dtype):
        yield f"{name}\0{type(value).__name__}\0{value}".encode()
    elif isinstance(value, float):
        yield f"{name}\0float\0{value.hex()}".encode()
    elif isinstance(value, list | tuple):
        yield f"{name}\0sequence\0{len(value)}".encode()
        for number, item in enumerate(value):
            yield from _pieces(item, f"{name}[{number}]")
    elif isinstance(value, Mapping):
        yield f"{name}\0mapping\0{len(value)}".encode()
        for inner in sorted(value, key=str):
            yield from _pieces(value[inner], f"{name}[{inner!r}]")
    else:
        raise IdentityError(
            f"The state dict holds {name!r}, a {type(value).__module__}."
            f"{type(value).__qualname__}, which has no canonical form. Keep it out of the state "
            "dict (get_extra_state), or turn it into tensors and numbers.",
            name=name,
        )
