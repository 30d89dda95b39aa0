"""A real network, small enough for every test: in-place ReLUs, pooling, a linear readout."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from featurestore.networks.sources.wrapped import wrap

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from PIL.Image import Image

    from featurestore.networks.sources.torch_network import TorchNetwork

TINY_INPUT = (3, 32, 32)


class TinyNetwork(nn.Module):
    """A convolutional network for 32 by 32 pictures; equal seeds give equal weights.

    Parameters
    ----------
    seed : int
        Seed of the weights.
    n_classes : int
        Length of the output.
    """

    def __init__(self, seed: int = 0, n_classes: int = 10) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            self.features = nn.Sequential(
                nn.Conv2d(3, 8, 3, padding=1),
                nn.ReLU(inplace=True),
                nn.MaxPool2d(2),
                nn.Conv2d(8, 16, 3, padding=1),
                nn.ReLU(inplace=True),
            )
            self.avgpool = nn.AdaptiveAvgPool2d(1)
            self.classifier = nn.Linear(16, n_classes)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify a batch.

        Parameters
        ----------
        images : Tensor of shape (n, 3, 32, 32)
            Preprocessed.

        Returns
        -------
        Tensor of shape (n, n_classes)
            Logits.
        """
        pooled = self.avgpool(self.features(images))
        return self.classifier(torch.flatten(pooled, 1))  # type: ignore[no-any-return]


def tiny_transform(image: Image) -> NDArray[np.float32]:
    """Turn a picture into the input of `TinyNetwork`.

    Parameters
    ----------
    image : PIL.Image.Image
        Any size; RGB.

    Returns
    -------
    ndarray of shape (3, 32, 32), float32
        Values from -1 to 1.
    """
    pixels = np.asarray(image.convert("RGB").resize((32, 32)), dtype=np.float32)
    return np.ascontiguousarray(pixels.transpose(2, 0, 1) / 127.5 - 1.0)


def tiny_network(seed: int = 0) -> TorchNetwork:
    """Wrap a `TinyNetwork`, ready for a store.

    Parameters
    ----------
    seed : int
        Seed of the weights.

    Returns
    -------
    TorchNetwork
        Called ``"tiny"``.
    """
    return wrap(TinyNetwork(seed), name="tiny", preprocess=tiny_transform, preprocess_id="tiny-v1")
