"""The preprocessing that torchvision publishes with its weights, and changes to it."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torchvision.transforms import functional
from torchvision.transforms.functional import InterpolationMode

from featurestore.errors import IdentityError, InvalidInputError
from featurestore.networks.preprocess import decode_policy, published_parameters
from featurestore.networks.sources.transforms import image_transform

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from PIL.Image import Image

    from featurestore.networks.sources.transforms import ImageTransform
    from featurestore.typing import Json


class ResizedFirst:
    """Resizes pictures to one size, then hands them to a preset that has none of its own.

    Parameters
    ----------
    preset : callable
        The published transform.
    size : list of int
        Height and width [px].
    interpolation : InterpolationMode
        How to resize.
    """

    def __init__(
        self, preset: Callable[[Any], Any], size: list[int], interpolation: InterpolationMode
    ) -> None:
        self.preset = preset
        self.size = size
        self.interpolation = interpolation

    def __call__(self, image: Image) -> Any:
        """Return the network's input."""
        return self.preset(functional.resize(image, self.size, self.interpolation))


def resolve_transform(
    preset: Callable[[Any], Any] | None,
    changes: Mapping[str, Json] | None,
    own: Callable[[Any], Any] | None,
    label: str,
) -> ImageTransform:
    """Find out what a request does to a picture.

    Parameters
    ----------
    preset : callable or None
        The published transform, if there is one.
    changes : mapping or None
        What the user changed, from `Preprocess.to_json`.
    own : callable or None
        The user's own transform, used instead.
    label : str
        The model, for messages.

    Returns
    -------
    ImageTransform
        With its parameters and the shape of the network's input.

    Raises
    ------
    InvalidInputError
        If the preset cannot honour a change, or there is none, or it has no fixed size.
    IdentityError
        If what a transform does cannot be told.
    """
    decode = decode_policy(changes)
    changes = {name: value for name, value in (changes or {}).items() if name != "decode"}
    if own is not None:
        inner: Any = changes.get("transform")
        if inner is None:
            return image_transform(own, changes, decode, label)
        kept = copy.deepcopy(own)
        if published_parameters(kept) != inner:
            raise IdentityError(
                f"The transform given for {label} was changed after fs.preprocess(...) looked at "
                "it; call fs.preprocess again."
            )
        return image_transform(kept, inner, decode, label)
    if "id" in changes or "transform" in changes:
        raise InvalidInputError(
            f"{label} was asked for with a transform of the user's own, which did not come along."
        )
    if preset is None:
        raise InvalidInputError(
            f"{label} publishes no preprocessing; pass preprocess=fs.preprocess(transform, id=…)."
        )
    function, first = adapt(preset, changes, label)
    parameters = published_parameters(preset if first else function)
    if parameters is None:
        raise IdentityError(
            f"What the preprocessing of {label}, {type(preset).__qualname__}, does cannot be told "
            "from outside; pass preprocess=fs.preprocess(transform, id=…)."
        )
    return image_transform(function, {**parameters, **first}, decode, label)


def adapt(
    preset: Callable[[Any], Any], changes: Mapping[str, Any], label: str
) -> tuple[Callable[[Any], Any], dict[str, Json]]:
    """Apply changes to a copy of a published transform.

    Parameters
    ----------
    preset : callable
        An instance of one of torchvision's presets.
    changes : mapping
        Without the decode policy.
    label : str
        The model, for messages.

    Returns
    -------
    callable
        The transform.
    dict
        What is done before the preset sees the picture; usually nothing.

    Raises
    ------
    InvalidInputError
        If the preset has nothing that a change could apply to.
    """
    adapted: Any = copy.deepcopy(preset)
    left = dict(changes)
    first: dict[str, Json] = {}
    if hasattr(preset, "crop_size"):
        _set_crop(adapted, left)
    elif hasattr(preset, "resize_size"):
        if "size" in left:
            adapted.resize_size = _square(left.pop("size"))
    elif "size" in left:
        size = _square(left.pop("size"))
        word = InterpolationMode(left.pop("interpolation", "bilinear"))
        adapted = ResizedFirst(adapted, size, word)
        first = {"resized_first": size, "resized_with": word.value}
    if hasattr(preset, "resize_size") and "resize" in left:
        adapted.resize_size = _sides(left.pop("resize"))
    for name in ("mean", "std", "interpolation"):
        if name in left and hasattr(preset, name):
            value = left.pop(name)
            adapted.__dict__[name] = InterpolationMode(value) if name == "interpolation" else value
    if left:
        raise InvalidInputError(
            f"The preprocessing of {label}, {type(preset).__name__}, has nothing that "
            f"{', '.join(f'{name}=' for name in left)} could change. It is: "
            f"{' '.join(repr(preset).split())}."
        )
    return adapted, first


def _set_crop(preset: Any, left: dict[str, Any]) -> None:
    if "size" in left:
        preset.resize_size = preset.crop_size = _square(left.pop("size"))
    if "crop" in left:
        preset.crop_size = _sides(left.pop("crop"))
    if left.pop("center_crop", True) is False:
        size = left.pop("resize") if "resize" in left else preset.crop_size
        preset.resize_size = preset.crop_size = _square(size)


def _sides(extent: Any) -> list[int]:
    return [extent] if isinstance(extent, int) else list(extent)


def _square(extent: Any) -> list[int]:
    sides = _sides(extent)
    return sides * 2 if len(sides) == 1 else sides
