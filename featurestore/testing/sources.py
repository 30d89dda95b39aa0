"""What every source of torch networks must keep, as a test class to inherit from.

::

    class TestMySource(SourceTests):
        source = "mysource"
        model = "small-model"
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from featurestore.errors import InvalidInputError
from featurestore.networks import registry
from featurestore.networks.sources.probe import probe_image
from featurestore.networks.spec import ModelRecord, probe_mismatch
from featurestore.networks.structure import structure_digest
from featurestore.networks.taps import Tap
from featurestore.testing.reference import caller_state, reference_activations

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from featurestore.networks.sources.torch_network import TorchNetwork

N_DEPTHS = 4


class SourceTests:
    """Inherit, name the source and a small model, and pytest does the rest."""

    source: ClassVar[str]
    """Its name among the entry points."""
    model: ClassVar[str]
    """A small model, without the prefix."""
    options: ClassVar[dict[str, Any]] = {"weights": "random", "seed": 0}
    """How to ask for it, as `registry.request` takes it."""
    n_images: ClassVar[int] = 2

    @pytest.fixture(scope="class")
    @classmethod
    def network(cls) -> TorchNetwork:
        """Load the model once."""
        return cls.load()

    @classmethod
    def load(cls) -> TorchNetwork:
        """Load the model through its source.

        Returns
        -------
        TorchNetwork
            A new one.
        """
        name = f"{cls.source}/{cls.model}"
        network: Any = registry.load(registry.request(name, **cls.options))
        return network  # type: ignore[no-any-return]

    def taps(self, network: TorchNetwork) -> list[Tap]:
        """Choose modules at several depths.

        Parameters
        ----------
        network : TorchNetwork
            The model.

        Returns
        -------
        list of Tap
            Resolved, first to last.
        """
        usable = [
            Tap(module.name, output.call, output.path)
            for module in network.record.modules
            for output in module.outputs
            if not output.problem
        ]
        assert usable, "no module returns one row per image"
        depths = np.linspace(0, len(usable) - 1, min(N_DEPTHS, len(usable))).astype(int)
        return [usable[depth] for depth in depths]

    def batch(self, network: TorchNetwork) -> NDArray[np.float32]:
        """Make a batch that is not the one used for probing.

        Parameters
        ----------
        network : TorchNetwork
            The model.

        Returns
        -------
        ndarray of shape (n_images, *input_shape), float32
            Noise.
        """
        numbers = range(100, 100 + self.n_images)
        return np.stack([probe_image(network.input_shape, number) for number in numbers])

    def test_the_source_lists_the_model(self) -> None:
        """A name that can be loaded can be found."""
        names = registry.load_source(self.source).model_names()
        assert self.model in names
        assert names == sorted(names)

    def test_activations_are_those_of_a_plain_forward_pass(self, network: TorchNetwork) -> None:
        """Bit for bit, at several depths at once, at the same batch size."""
        taps, batch = self.taps(network), self.batch(network)
        expected = reference_activations(network.module, taps, batch)
        for tap, found in zip(taps, _forward(network, taps, batch), strict=True):
            _, output = network.record.resolve(tap)
            plain = np.moveaxis(expected[tap], output.batch_axis, 0)
            order = output.order or range(plain.ndim - 1)
            plain = plain.transpose(0, *(axis + 1 for axis in order)).reshape(found.shape)
            np.testing.assert_array_equal(found, plain, err_msg=str(tap))

    def test_stopping_early_changes_nothing(self, network: TorchNetwork) -> None:
        """One module alone gives what it gives among others."""
        taps, batch = self.taps(network), self.batch(network)
        together = _forward(network, taps, batch)
        for tap, expected in zip(taps, together, strict=True):
            (alone,) = _forward(network, [tap], batch)
            np.testing.assert_array_equal(alone, expected, err_msg=str(tap))

    def test_rows_do_not_depend_on_their_neighbours(self, network: TorchNetwork) -> None:
        """Bit for bit, as long as the batch has one size."""
        taps, batch = self.taps(network), self.batch(network)
        turned = _forward(network, taps, np.ascontiguousarray(batch[::-1]))
        for tap, one, other in zip(taps, _forward(network, taps, batch), turned, strict=True):
            np.testing.assert_array_equal(one, other[::-1], err_msg=str(tap))

    def test_hooks_are_gone_after_an_error(self, network: TorchNetwork) -> None:
        """A failed forward pass leaves the network as it was."""
        before = _n_hooks(network)
        bomb = network.module.register_forward_pre_hook(_explode)
        try:
            with pytest.raises(InvalidInputError, match="ZeroDivisionError"):
                _forward(network, self.taps(network), self.batch(network))
        finally:
            bomb.remove()
        assert _n_hooks(network) == before

    def test_the_caller_finds_everything_as_it_was(self, network: TorchNetwork) -> None:
        """Training flags, random numbers, gradients, threads, dtype and precision."""
        first = next(network.module.modules())
        training = first.training
        with _training(network.module):
            flags = [part.training for part in network.module.modules()]
            before = caller_state()
            _forward(network, self.taps(network), self.batch(network))
            assert caller_state() == before
            assert [part.training for part in network.module.modules()] == flags
        assert first.training == training

    def test_two_loads_are_the_same_model(self, network: TorchNetwork) -> None:
        """The same key, and the same answers to the probe image."""
        again = self.load()
        assert again.spec == network.spec
        assert again.spec.key == network.spec.key
        assert probe_mismatch(network.record.probe, again.record.probe) == []

    def test_running_does_not_change_what_the_model_is(self, network: TorchNetwork) -> None:
        """Whatever modules note down while they run is no part of their identity."""
        before = structure_digest(network.module)

        _forward(network, self.taps(network), self.batch(network))
        assert structure_digest(network.module) == before

    @pytest.mark.parametrize("size", [(500, 375), (32, 32), (97, 301)])
    def test_pictures_of_any_size_become_one_shape(
        self, network: TorchNetwork, size: tuple[int, int]
    ) -> None:
        """The transform gives contiguous float32 of the input's shape."""
        made = network.transform(Image.new("RGB", size, (200, 30, 90)))
        assert made.dtype == np.float32
        assert made.shape == network.input_shape == network.record.input_shape
        assert made.flags.c_contiguous
        assert np.isfinite(made).all()

    def test_what_is_stored_is_json(self, network: TorchNetwork) -> None:
        """Requests, records and environments survive the way to disk and back."""
        request = registry.request(f"{self.source}/{self.model}", **self.options)
        assert json.loads(json.dumps(request.to_json())) == request.to_json()
        facts = json.loads(json.dumps(network.record.to_json()))
        assert ModelRecord.from_json(facts).to_json() == facts
        assert ModelRecord.from_json(facts).key == network.spec.key
        assert json.dumps(dict(network.environment()))


def _forward(
    network: TorchNetwork, taps: list[Tap], batch: NDArray[np.float32]
) -> list[NDArray[np.float32]]:
    threads = torch.get_num_threads()
    with network.open(taps, device="cpu", precision="fp32", n_threads=threads) as session:
        return session.forward(batch)


def _explode(_module: object, _inputs: object) -> None:
    raise ZeroDivisionError


def _n_hooks(network: TorchNetwork) -> int:
    return sum(
        len(part._forward_hooks) + len(part._forward_pre_hooks) for part in network.module.modules()
    )


@contextmanager
def _training(module: torch.nn.Module) -> Iterator[None]:
    flags = [(part, part.training) for part in module.modules()]
    for number, (part, _) in enumerate(flags):
        part.training = number % 2 == 0
    try:
        yield
    finally:
        for part, training in flags:
            part.training = training
