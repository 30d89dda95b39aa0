"""Users' own networks, known by their weights, their structure and their code."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from featurestore.errors import InvalidInputError
from featurestore.networks.preprocess import as_preprocess, decode_policy
from featurestore.networks.sources.presets import resolve_transform
from featurestore.networks.sources.torch_network import TorchNetwork
from featurestore.networks.spec import ModelSpec
from featurestore.networks.structure import structure_digest
from featurestore.networks.weights import network_state, weights_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.networks.preprocess import Preprocess
    from featurestore.networks.sources.transforms import ImageTransform

# Their inner modules do not run as modules, so hooks on them would stay silent.
_SHELLS = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel, torch.jit.ScriptModule)


def wrap(
    module: torch.nn.Module,
    *,
    name: str,
    preprocess: Preprocess | Callable[[Any], Any],
    preprocess_id: str | None = None,
) -> TorchNetwork:
    """Make a network of your own known to the store.

    It is known by what it is, not by its name: by its weights as they are now, its structure and
    the source code of its classes. It is left as it is found: device, training flags,
    parameters.

    Parameters
    ----------
    module : torch.nn.Module
        Takes a batch of preprocessed images; of the dtype of its first parameter.
    name : str
        What to call it in tables and labels.
    preprocess : Preprocess or callable
        From PIL image to the input for one image, of one size for all images. A torchvision
        transform such as ``ResNet50_Weights.DEFAULT.transforms()`` is known by its parameters.
    preprocess_id : str, optional
        Name of any other callable; choose a new one whenever its code changes.

    Returns
    -------
    TorchNetwork
        To be passed as the model.

    Raises
    ------
    InvalidInputError
        If it is no network, or its input has no fixed size.
    IdentityError
        If it cannot be told what the network or the preprocessing does.
    """
    _require_network(module, name)
    given = as_preprocess(preprocess, preprocess_id)
    transform = _transform(given, name)
    kind = type(module)
    spec = ModelSpec(
        source="wrapped",
        architecture=f"{kind.__module__}.{kind.__qualname__}",
        arguments={},
        structure=structure_digest(module),
        weights=weights_digest(network_state(module)),
        preprocessing=transform.to_json(),
    )
    return TorchNetwork(
        module,
        spec,
        transform,
        label=name,
        weights_label=f"wrapped({spec.weights[:8]})",
        libraries=("torch", "PIL"),
    )


def _transform(given: Preprocess, name: str) -> ImageTransform:
    if given.transform is None:
        what = ", ".join(given.changes) or "nothing"
        raise InvalidInputError(
            f"{name!r} publishes no preprocessing that could be adapted ({what} was given). Pass "
            "preprocess=<callable from PIL image to tensor> and preprocess_id='v1', or a "
            "torchvision transform such as ResNet50_Weights.DEFAULT.transforms().",
            decode=decode_policy(given.changes).to_json(),
        )
    return resolve_transform(None, given.changes, given.transform, name)


def _require_network(module: object, name: object) -> None:
    if not isinstance(name, str) or not name:
        raise InvalidInputError(f"name={name!r} must be a word to call the network by.")
    if not isinstance(module, torch.nn.Module):
        raise InvalidInputError(
            f"{name!r} is a {type(module).__name__}; fs.wrap takes a torch.nn.Module."
        )
    if isinstance(module, _SHELLS) or hasattr(module, "_orig_mod"):
        raise InvalidInputError(
            f"{name!r} is a {type(module).__name__}, whose inner modules cannot be listened to; "
            "wrap the network inside (.module, or before torch.compile or torch.jit)."
        )
