"""Any torch module as a `Network`: the numerical contract, kept in one place."""

from __future__ import annotations

import importlib
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from featurestore.errors import FeatureStoreError, InvalidInputError, WeightsChangedError
from featurestore.networks.sources.capture import Catch
from featurestore.networks.sources.numeric import (
    memory_errors,
    numeric_context,
    placed,
    require_precision,
    resolve_device,
)
from featurestore.networks.sources.probe import probe_modules
from featurestore.networks.spec import ModelRecord
from featurestore.networks.structure import structure_digest
from featurestore.networks.weights import network_state, weights_digest
from featurestore.options import get_options

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray
    from PIL.Image import Image

    from featurestore.networks.sources.probe import ProbeFacts
    from featurestore.networks.sources.transforms import ImageTransform
    from featurestore.networks.spec import ModelSpec
    from featurestore.networks.taps import OutputInfo, Tap
    from featurestore.typing import Json, Precision

# Throughput on a CPU is flat from about 8 images on, and padding a lone one stays cheap.
BATCH_SIZES = {"cpu": 8, "cuda": 64, "mps": 16}


@dataclass(frozen=True, eq=False)
class TorchNetwork:
    """A torch module with its identity and its preprocessing."""

    module: torch.nn.Module
    """The network, in host memory; left as it is found, training flags and all."""
    spec: ModelSpec
    preprocessing: ImageTransform
    label: str
    """The model as users write it."""
    weights_label: str
    licence: str = ""
    citation: str = ""
    only_device: str | None = None
    """The one kind of device it runs on; ``None``: any."""
    quantized_engine: str | None = None
    """The engine that quantised modules were packed for."""
    libraries: Sequence[str] = field(default=("torch", "torchvision", "PIL"))
    """Modules whose versions the values depend on."""

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one preprocessed image."""
        return self.preprocessing.shape

    @cached_property
    def record(self) -> ModelRecord:
        """What a store remembers of the model; runs two probe batches on the CPU, once."""
        facts = self._probe()
        return ModelRecord(
            spec=self.spec,
            label=self.label,
            weights_label=self.weights_label,
            input_shape=self.input_shape,
            modules=facts.modules,
            probe=facts.fingerprints,
            licence=self.licence,
            citation=self.citation,
            n_parameters=sum(p.numel() for p in self.module.parameters()),
        )

    def require_unchanged(self) -> None:
        """Raise unless the network still is what it was when it was loaded or wrapped.

        Raises
        ------
        WeightsChangedError
            If its owner trained, edited or replaced a part of it since.
        """
        parts = []
        if weights_digest(network_state(self.module)) != self.spec.weights:
            parts.append("weights")
        if structure_digest(self.module) != self.spec.structure:
            parts.append("structure")
        if not self.preprocessing.is_unchanged():
            parts.append("preprocessing")
        if parts:
            raise WeightsChangedError(
                f"The {' and '.join(parts)} of {self.label} changed since fs.wrap(...) looked at "
                "it. Nothing was computed under its old name: wrap it again to ask for the network "
                "as it is now.",
                parts=parts,
            )

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
        return self.preprocessing(image)

    @contextmanager
    def open(
        self, taps: Sequence[Tap], *, device: str, precision: Precision, n_threads: int
    ) -> Iterator[TorchSession]:
        """Prepare the network to run, and put everything back afterwards.

        Parameters
        ----------
        taps : sequence of Tap
            What is wanted.
        device : str
            ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"``, ``"mps"``.
        precision : {"fp32", "tf32", "bf16", "fp16"}
            Arithmetic of the forward pass.
        n_threads : int
            Threads inside a forward pass on the CPU.

        Yields
        ------
        TorchSession
            Ready to run.

        Raises
        ------
        InvalidInputError
            If the device is not there or cannot do the precision, or a tap cannot be kept.
        ModuleNotFoundInModelError
            If the network has no such module.
        """
        place = resolve_device(device, only=self.only_device)
        require_precision(precision, place)
        resolved = tuple(self.record.resolve(tap) for tap in taps)
        with placed(self.module, place):
            yield TorchSession(self, resolved, place, precision, n_threads)

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
        return BATCH_SIZES.get(resolve_device(device, only=self.only_device).type, 8)

    def environment(self) -> Mapping[str, Json]:
        """Return versions of the libraries that the values depend on.

        Returns
        -------
        mapping
            Name to version; provenance, not part of a key.
        """
        names = {"PIL": "pillow"}
        versions: dict[str, Json] = {
            names.get(name, name): str(importlib.import_module(name).__version__)
            for name in self.libraries
        }
        if torch.cuda.is_available():
            versions["cuda"] = str(torch.version.cuda)
            cudnn: Any = torch.backends.cudnn
            versions["cudnn"] = str(cudnn.version())
        return versions

    def _probe(self) -> ProbeFacts:
        cpu = torch.device("cpu")
        numeric = self._numeric(cpu, "fp32", get_options().n_threads)
        with placed(self.module, cpu), memory_errors(cpu), numeric:
            try:
                return probe_modules(self.module, self.input_shape, self._dtype)
            except (MemoryError, torch.OutOfMemoryError):
                raise
            except Exception as err:  # whatever a network raises on an input it does not take
                raise InvalidInputError(
                    f"{self.label} cannot run on its input of shape {self.input_shape}: "
                    f"{type(err).__name__}: {err}. Does the preprocessing belong to it?"
                ) from err

    @property
    def _dtype(self) -> torch.dtype:
        # A network that its owner keeps in half or double precision takes its input so.
        floating = (p.dtype for p in self.module.parameters() if p.is_floating_point())
        return next(floating, torch.float32)

    @contextmanager
    def _numeric(
        self, device: torch.device, precision: Precision, n_threads: int
    ) -> Iterator[None]:
        backend: Any = torch.backends.quantized
        before = backend.engine
        try:
            if self.quantized_engine is not None:
                backend.engine = self.quantized_engine
            with numeric_context(device, precision, n_threads):
                yield
        finally:
            if backend.engine != before:
                backend.engine = before


@contextmanager
def _forward_errors(label: str) -> Iterator[None]:
    """Name the network in whatever its own code raises."""
    try:
        yield
    except FeatureStoreError:
        raise
    except Exception as err:  # whatever a network's code raises
        raise InvalidInputError(
            f"{label} failed in its forward pass: {type(err).__name__}: {err}"
        ) from err


class TorchSession:
    """A torch network on a device; see `featurestore.networks.network.Session`.

    Parameters
    ----------
    network : TorchNetwork
        In place and in eval mode.
    taps : sequence of (Tap, OutputInfo)
        What is wanted.
    place : torch.device
        Where the network is.
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Arithmetic.
    n_threads : int
        Threads inside a forward pass.
    """

    def __init__(
        self,
        network: TorchNetwork,
        taps: Sequence[tuple[Tap, OutputInfo]],
        place: torch.device,
        precision: Precision,
        n_threads: int,
    ) -> None:
        self.device = str(place)
        self._network = network
        self._taps = taps
        self._place = place
        self._precision: Precision = precision
        self._n_threads = n_threads

    def forward(self, batch: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """Run one batch.

        Parameters
        ----------
        batch : ndarray of shape (n, *input_shape), float32
            Preprocessed images.

        Returns
        -------
        list of ndarray
            Per tap, shape (n, *shape), float32: the module's own output. Values of other
            floating dtypes are converted; non-finite ones are kept.

        Raises
        ------
        DeviceMemoryError
            If the device has not enough memory for this batch.
        InvalidInputError
            If the batch has the wrong shape, the network fails on it, or a module answers
            otherwise than it was probed.
        """
        if batch.shape[1:] != self._network.input_shape:
            raise InvalidInputError(
                f"A batch has the shape {batch.shape}; {self._network.label} takes "
                f"(n, {', '.join(map(str, self._network.input_shape))})."
            )
        catch = Catch([tap for tap, _ in self._taps])
        numeric = self._network._numeric(self._place, self._precision, self._n_threads)
        with _forward_errors(self._network.label), memory_errors(self._place), numeric:
            # A copy, so that a network that works in place cannot change the caller's batch.
            images = torch.tensor(batch, dtype=self._network._dtype, device=self._place)
            catch.run(self._network.module, images)
            rows = {tap: self._row_first(tap, info, catch, len(batch)) for tap, info in self._taps}
        taps = [tap for tap, _ in self._taps]
        return [
            rows[tap].copy() if tap in taps[:number] else rows[tap]
            for number, tap in enumerate(taps)
        ]

    def _row_first(self, tap: Tap, info: OutputInfo, catch: Catch, n: int) -> NDArray[np.float32]:
        tensor = catch.caught.get(tap)
        if tensor is None:
            raise InvalidInputError(
                f"{str(tap)!r} of {self._network.label} was not reached in this forward pass, "
                "though it was when the network was probed: its path depends on the images.",
                module=str(tap),
            )
        rest = [axis for axis in range(tensor.ndim) if axis != info.batch_axis]
        order = info.order or range(len(rest))
        rows = tensor.permute(info.batch_axis, *(rest[axis] for axis in order))
        shape = tuple(rows.shape[1:]) or (1,)
        if rows.shape[0] != n or shape != info.shape:
            raise InvalidInputError(
                f"{str(tap)!r} of {self._network.label} returned {tuple(tensor.shape)} for "
                f"{n} images; {(n, *info.shape)} was expected: its shape depends on the images.",
                module=str(tap),
            )
        return np.ascontiguousarray(rows.numpy()).reshape(n, *shape)
