"""What modules cost to run, against what torchvision publishes and against products by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torchvision import models

from featurestore.networks.sources import probe
from featurestore.networks.sources.flops import Cost, count_flops
from featurestore.networks.sources.probe import probe_modules
from featurestore.networks.taps import ModuleInfo
from featurestore.testing.tiny import TinyNetwork


def costs(module, shape):
    with torch.no_grad():
        return count_flops(module.eval(), torch.zeros(1, *shape))


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "squeezenet1_1", "vit_b_32", "swin_t"])
def test_a_network_costs_twice_the_multiply_adds_that_torchvision_publishes(name):
    published = models.get_model_weights(name).DEFAULT.meta["_ops"]  # billions, three decimals
    found = costs(models.get_model(name, weights=None), (3, 224, 224))[""]
    assert found.inside == found.until
    assert found.inside / 2e9 == pytest.approx(published, abs=0.0006)


def test_modules_cost_what_their_products_do():
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(8, 4))
    network[2] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    found = costs(network, (3, 10, 10))
    convolution, linear = 2 * 8 * 27 * 100, 2 * 8 * 4
    assert found["0"] == Cost(convolution, convolution)
    assert found["1"] == Cost(0, convolution)
    assert found["3"] == Cost(linear, convolution + linear)
    assert found[""] == Cost(convolution + linear, convolution + linear)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.unused = nn.Linear(6, 6, bias=False), nn.Linear(6, 6)

    def forward(self, x):
        return self.layer(self.layer(x))


def test_all_calls_count_and_modules_that_are_not_called_cost_nothing():
    found = costs(Twice(), (6,))
    assert found["layer"] == Cost(2 * 2 * 36, 2 * 2 * 36)
    assert "unused" not in found
    facts = probe_modules(Twice().eval(), (6,), torch.float32)
    assert {info.name: info.flops for info in facts.modules}["unused"] == 0


def test_what_cannot_be_counted_is_not_known_rather_than_too_little():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.inner = nn.Linear(8, 8), nn.LSTM(8, 8, batch_first=True)
            self.last = nn.Linear(8, 4)

        def forward(self, x):
            return self.last(self.inner(self.first(x))[0])

    found = costs(Recurrent(), (5, 8))
    assert found["first"] == Cost(2 * 5 * 64, 2 * 5 * 64)
    assert found["inner"] == Cost(0, 0)
    assert found["last"] == Cost(2 * 5 * 32, 0)


class Grumpy(nn.Module):
    """Wants company."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        if len(x) < 2:
            raise RuntimeError("more images, please")
        return self.layer(x)


def test_a_network_that_does_not_run_on_one_image_is_probed_without_its_cost():
    assert costs(Grumpy(), (4,)) == {}
    with torch.no_grad():
        facts = probe_modules(Grumpy().eval(), (4,), torch.float32)
    assert [info.flops_until for info in facts.modules] == [0, 0]
    assert all(info.outputs[0].shape == (4,) for info in facts.modules)


def test_counting_leaves_nothing_behind():
    network = torchvision.models.vit_b_32(weights=None).eval()
    backends = torch.backends.mha
    before = backends.get_fastpath_enabled()
    image = torch.rand(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(image)
        count_flops(network, image)
        np.testing.assert_array_equal(network(image), expected)
    assert backends.get_fastpath_enabled() == before
    assert not any(part._forward_hooks or part._forward_pre_hooks for part in network.modules())


def test_counting_changes_no_fingerprint(monkeypatch):
    network = TinyNetwork().eval()
    with torch.no_grad():
        counted = probe_modules(network, (3, 32, 32), torch.float32)
        monkeypatch.setattr(probe, "count_flops", lambda module, image: {})
        plain = probe_modules(network, (3, 32, 32), torch.float32)
    assert counted.fingerprints == plain.fingerprints
    assert [info.outputs for info in counted.modules] == [info.outputs for info in plain.modules]
    assert counted.modules[0].flops > 0 == plain.modules[0].flops


def test_records_from_before_there_were_costs_can_be_read():
    facts = {"name": "conv", "type": "Conv2d", "n_parameters": 3, "outputs": []}
    old = ModuleInfo.from_json(facts)
    assert (old.flops, old.flops_until) == (0, 0)
    new = ModuleInfo("conv", "Conv2d", 3, (), flops=7, flops_until=9)
    assert ModuleInfo.from_json(new.to_json()) == new
