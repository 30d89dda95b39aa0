"""The two protocols between networks and the rest: anything that keeps them can be extracted.

A *source* knows names and loads networks; a *network* says what it is, turns pictures into input
and, in a *session* on one device, turns batches of input into the activations of chosen modules.
"""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Protocol

from featurestore.errors import FeatureStoreError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from contextlib import AbstractContextManager

    import numpy as np
    from numpy.typing import NDArray
    from PIL.Image import Image

    from featurestore.networks.spec import ModelRecord, ModelRequest, ModelSpec
    from featurestore.networks.taps import Tap
    from featurestore.typing import Json, Precision


class DeviceMemoryError(FeatureStoreError):
    """A forward pass did not fit on the device; a smaller batch may."""


class Session(Protocol):
    """A network on a device, ready to run, with taps on the wanted modules."""

    device: str
    """Where it runs, resolved: ``"cpu"``, ``"cuda:0"`` or ``"mps"``."""

    def forward(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run one batch.

        Parameters
        ----------
        batch : ndarray of shape (n, *input_shape), float32
            Preprocessed images.

        Returns
        -------
        list of ndarray
            For each tap, in their order, an array of shape (n, *shape): the module's own output,
            axes in the order of `OutputInfo.dims`, in host memory that nobody overwrites.

        Raises
        ------
        DeviceMemoryError
            If the device has not enough memory for this batch.
        """
        ...


class Network(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """What the model is."""
        ...

    @property
    def record(self) -> ModelRecord:
        """What a store remembers of the model; probes the network on first use."""
        ...

    def require_unchanged(self) -> None:
        """Raise unless the network still is what `spec` says.

        Raises
        ------
        WeightsChangedError
            If its owner changed it since it was loaded.
        """
        ...

    def transform(self, image: Image) -> NDArray[np.float32]:
        """Turn a decoded image into the network's input. Safe to call from many threads.

        Parameters
        ----------
        image : PIL.Image.Image
            Decoded under the policy ``spec.preprocessing["decode"]``.

        Returns
        -------
        ndarray of shape input_shape, float32
            The network's input.
        """
        ...

    def open(
        self, taps: Sequence[Tap], *, device: str, precision: Precision, n_threads: int
    ) -> AbstractContextManager[Session]:
        """Prepare the network to run, and put everything back afterwards.

        Parameters
        ----------
        taps : sequence of Tap
            What is wanted, resolved by `ModelRecord.resolve`.
        device : str
            ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        precision : {"fp32", "tf32", "bf16", "fp16"}
            Arithmetic of the forward pass.
        n_threads : int
            Threads inside a forward pass on the CPU.

        Returns
        -------
        context manager
            Yields a `Session`.

        Raises
        ------
        InvalidInputError
            If the device is not there or cannot do the precision.
        """
        ...

    def default_batch_size(self, device: str) -> int:
        """Return the batch size that suits a device.

        Parameters
        ----------
        device : str
            As `open` takes it.

        Returns
        -------
        int
            Images per forward pass.
        """
        ...

    def environment(self) -> Mapping[str, Json]:
        """Return versions of the libraries that the values depend on.

        Returns
        -------
        mapping
            Name to version; provenance, not part of a key.
        """
        ...


class Source(Protocol):
    """A family of models, registered under the entry point group ``featurestore.sources``."""

    name: str

    def model_names(self) -> list[str]:
        """List every model of this source, without its prefix.

        Returns
        -------
        list of str
            Sorted.
        """
        ...

    def weights_names(self, name: str) -> list[str]:
        """List the published weights of a model, best first.

        Parameters
        ----------
        name : str
            A model's name.

        Returns
        -------
        list of str
            May be empty.
        """
        ...

    def load(self, request: ModelRequest) -> Network:
        """Build a network and load its weights.

        Parameters
        ----------
        request : ModelRequest
            Which model, with which weights and preprocessing.

        Returns
        -------
        Network
            In host memory.

        Raises
        ------
        ModelNotFoundError
            If the source has no such model or weights.
        InvalidInputError
            If the weights do not fit, or the preprocessing cannot be honoured.
        """
        ...


def is_network(thing: Any) -> bool:
    """Say whether something is a loaded model, as `fs.wrap` returns.

    Parameters
    ----------
    thing : object
        Anything.

    Returns
    -------
    bool
        Whether it has what `Network` asks for.
    """
    # Not isinstance: on Python 3.11 that would evaluate `record`, which probes the network.
    missing = object()
    parts = ("spec", "record", "transform", "open", "default_batch_size", "environment")
    return all(inspect.getattr_static(thing, part, missing) is not missing for part in parts)
