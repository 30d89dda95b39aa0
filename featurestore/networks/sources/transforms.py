"""From a decoded picture to a network's input: the source's own transform, never a copy of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image as PilImage

from featurestore.errors import FeatureStoreError, InvalidInputError
from featurestore.networks.preprocess import published_parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from featurestore.policy import DecodePolicy
    from featurestore.typing import Json

# Two shapes that no transform maps to one, unless its output has a fixed size.
_TRIAL_SIZES = ((96, 64), (150, 275))


@dataclass(frozen=True)
class ImageTransform:
    """A transform and what it is known by."""

    function: Callable[[Any], Any] = field(compare=False)
    """From PIL image to a tensor or array of one image."""
    parameters: Mapping[str, Json]
    """What it does, as JSON; part of the key."""
    decode: DecodePolicy
    shape: tuple[int, ...]
    """Of one preprocessed image."""
    label: str = field(default="this model", compare=False)
    """The model, for messages."""

    def __call__(self, image: PilImage.Image) -> NDArray[np.float32]:
        """Turn a decoded image into the network's input.

        Parameters
        ----------
        image : PIL.Image.Image
            Decoded.

        Returns
        -------
        ndarray of shape `shape`, float32
            The network's input.
        """
        values = _apply(self.function, image, self.label)
        if values.shape != self.shape:
            raise InvalidInputError(
                f"The preprocessing made {values.shape} of a picture of {image.size} pixels; the "
                f"network takes {self.shape}. Give a fixed size with fs.preprocess(size=…)."
            )
        return values

    def is_unchanged(self) -> bool:
        """Say whether a published transform still is what it is known by.

        Returns
        -------
        bool
            True for a callable of the user's, which is known by its id.

        Raises
        ------
        IdentityError
            If somebody hooked into it.
        """
        if "class" not in self.parameters:
            return True
        found = published_parameters(getattr(self.function, "preset", self.function)) or {}
        return all(self.parameters.get(name) == value for name, value in found.items())

    def to_json(self) -> dict[str, Json]:
        """Return what stands in `ModelSpec.preprocessing`.

        Returns
        -------
        dict
            JSON-able.
        """
        return {"decode": self.decode.to_json(), "transform": dict(self.parameters)}


def image_transform(
    function: Callable[[Any], Any],
    parameters: Mapping[str, Json],
    decode: DecodePolicy,
    label: str = "this model",
) -> ImageTransform:
    """Find the input's shape by trying a transform on two pictures.

    Parameters
    ----------
    function : callable
        From PIL image to a tensor or array of one image.
    parameters : mapping
        What it does, as JSON.
    decode : DecodePolicy
        How pictures are decoded before.
    label : str
        The model, for messages.

    Returns
    -------
    ImageTransform
        Ready to use.

    Raises
    ------
    InvalidInputError
        If it fails, or pictures of different sizes give inputs of different sizes.
    """
    shapes = [_apply(function, _trial(size), label).shape for size in _TRIAL_SIZES]
    if shapes[0] != shapes[1]:
        raise InvalidInputError(
            f"This preprocessing keeps the picture's own size (it made {shapes[0]} and "
            f"{shapes[1]} of two pictures), and activations of different shapes are no table. "
            "Choose one: preprocess=fs.preprocess(size=(height, width)).",
        )
    return ImageTransform(function, parameters, decode, shapes[0], label)


def _trial(size: tuple[int, int]) -> PilImage.Image:
    width, height = size
    rows = np.arange(height)[:, None, None] + np.arange(width)[:, None] + np.arange(3)
    return PilImage.fromarray((rows % 256).astype(np.uint8))


def _apply(
    function: Callable[[Any], Any], image: PilImage.Image, label: str
) -> NDArray[np.float32]:
    with torch.no_grad(), torch.device("cpu"):
        try:
            made = function(image)
        except (FeatureStoreError, MemoryError):
            raise
        except Exception as err:  # whatever a user's callable raises
            raise InvalidInputError(
                f"The preprocessing of {label} failed on a {image.mode} picture of "
                f"{image.width} x {image.height} pixels: {type(err).__name__}: {err}"
            ) from err
    if isinstance(made, torch.Tensor):
        made = made.detach().cpu().numpy()
    if not isinstance(made, np.ndarray):
        raise InvalidInputError(
            f"The preprocessing returned a {type(made).__name__}; it must return a tensor or an "
            "array of one image, without a batch axis."
        )
    return np.ascontiguousarray(made, dtype=np.float32)
