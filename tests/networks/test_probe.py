from collections import OrderedDict
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models, ops

from featurestore.errors import InvalidInputError, ModuleNotFoundInModelError
from featurestore.networks.sources.probe import probe_image, probe_modules
from featurestore.networks.spec import ModelRecord, probe_mismatch
from featurestore.networks.taps import Tap
from featurestore.testing.tiny import TinyNetwork, tiny_network


def probe(module, shape=(3, 32, 32)):
    module.eval()
    with torch.no_grad():
        facts = probe_modules(module, shape, torch.float32)
    return {info.name: info for info in facts.modules}, facts


def only(module, name, shape=(3, 32, 32)):
    (output,) = probe(module, shape)[0][name].outputs
    return output


class Calls(nn.Module):
    """Runs any function of (self, batch) as a network with a few modules at hand."""

    def __init__(self, function, **parts):
        super().__init__()
        self.function = function
        for name, part in parts.items():
            setattr(self, name, part)

    def forward(self, x):
        return self.function(self, x)


def test_the_probe_image_never_changes():
    image = probe_image((3, 4, 5), 0)
    np.testing.assert_allclose(
        image.ravel()[:4], [-2.0, -0.0314116, -1.7875834, -0.2719746], rtol=1e-6
    )
    large = probe_image((3, 224, 224), 1)
    assert large.dtype == np.float32
    assert -2 <= large.min() < -1.99 < 1.99 < large.max() < 2
    assert abs(float(large.mean())) < 0.02
    assert not np.array_equal(large, probe_image((3, 224, 224), 2))


def test_modules_come_in_the_order_in_which_they_start():
    network = Calls(
        lambda self, x: self.second(self.first(x)),
        second=nn.ReLU(),
        unused=nn.Linear(3, 3),
        first=nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()),
    )
    found, _ = probe(network)
    assert list(found) == ["", "first", "first.0", "first.1", "second", "unused"]
    assert found["unused"].outputs == ()
    with pytest.raises(ModuleNotFoundInModelError, match="never called"):
        found["unused"].output(Tap("unused"))


def test_dims_are_named_and_shapes_are_rows():
    found, _ = probe(TinyNetwork())
    conv, linear = found["features.0"].outputs[0], found["classifier"].outputs[0]
    assert (conv.dims, conv.shape) == (("channel", "y", "x"), (8, 32, 32))
    assert (linear.dims, linear.shape) == (("feature",), (10,))
    assert found["features.0"].n_parameters == 8 * 27 + 8
    assert found[""].outputs[0].shape == (10,)


def test_channels_last_maps_are_turned():
    swin = models.swin_t(weights=None)
    found, _ = probe(swin, (3, 64, 96))
    block = found["features.1"].outputs[0]
    assert (block.dims, block.shape, block.order) == (
        ("channel", "y", "x"),
        (96, 16, 24),
        (2, 0, 1),
    )
    assert found["features.0.0"].outputs[0].shape == (96, 16, 24)
    assert found["features.0.0"].outputs[0].order == (0, 1, 2)
    assert found["norm"].outputs[0].shape == (768, 2, 3)


def test_a_cubic_map_follows_the_maps_before_it():
    def forward(self, x):
        return self.act(self.mix(self.stem(x).permute(0, 2, 3, 1)))

    stem = nn.Conv2d(3, 8, 4, stride=4)
    network = Calls(forward, stem=stem, mix=nn.Linear(8, 8), act=nn.GELU())
    for name, order in (("stem", (0, 1, 2)), ("mix", (2, 0, 1)), ("act", (2, 0, 1))):
        assert only(network, name).order == order


def test_tokens_before_images_are_found():
    def forward(self, x):
        return self.block(x.flatten(2).permute(2, 0, 1))  # token, image, channel

    block = nn.TransformerEncoderLayer(3, 1, 8)
    output = only(Calls(forward, block=block), "block", (3, 4, 4))
    assert (output.batch_axis, output.dims, output.shape) == (1, ("token", "channel"), (16, 3))


def test_every_tensor_in_tuples_dicts_and_dataclasses_has_a_path():
    @dataclass
    class Answer:
        logits: torch.Tensor
        parts: dict

    class Nested(nn.Module):
        def forward(self, x):
            pyramid = OrderedDict([("0", x), ("pool", x[:, 0])])
            return Answer(x.mean((1, 2, 3)), {"maps": (pyramid, None, "text")})

    found, _ = probe(Calls(lambda self, x: self.inner(x), inner=Nested()))
    paths = {output.path: output.dims for output in found["inner"].outputs}
    assert paths == {
        ("logits",): ("feature",),
        ("parts", "maps", 0, 0): ("channel", "y", "x"),
        ("parts", "maps", 0, "pool"): ("token", "channel"),
    }
    assert found["inner"].output(Tap.parse("inner[parts][maps][0][pool]")).shape == (32, 32)
    assert found["inner"].output(Tap("inner")).shape == (1,)


class Returning(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x - x.mean(0), "other images"),
        (lambda x: x + torch.rand(1), "at random"),
        (lambda x: x.flatten(0, 1), "3 rows per image"),
        (lambda x: x.mean(0), "none of its axes"),
        (lambda x: x[x > 0], "content of the images"),
        (lambda x: x.argmax(1), "int64"),
        (lambda x: x > 0, "bool"),
        (lambda x: torch.fft.fft(x), "complex64"),
        (lambda x: x.to_sparse(), "dense"),
        (lambda x: x[:, :0], "empty"),
        (lambda x: list(x), "none of its axes|depends on the batch"),
        (lambda x: "text", "no tensor"),
    ],
    ids=[
        *("mean", "noise", "rows", "none", "content", "integers"),
        *("bool", "complex", "sparse", "empty", "list", "text"),
    ],
)
def test_what_is_not_one_row_per_image_is_refused_with_a_reason(function, reason):
    network = Calls(
        lambda self, x: (self.odd(x), self.conv(x))[1],
        odd=Returning(function),
        conv=nn.Conv2d(3, 4, 3),
    )
    found, _ = probe(network)
    with pytest.raises(InvalidInputError, match=reason):
        found["odd"].output(Tap("odd"))
    assert found["conv"].outputs[0].problem == ""


def test_batch_statistics_in_evaluation_are_refused_from_there_on():
    network = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU()
    )
    found, _ = probe(network)
    problems = [bool(found[name].outputs[0].problem) for name in ("0", "1", "2")]
    assert problems == [False, True, True]


def test_a_network_whose_input_has_as_many_channels_as_there_are_images():
    found, _ = probe(nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 2, 3), nn.Conv2d(2, 3, 3)))
    assert [found[str(n)].outputs[0].batch_axis for n in range(3)] == [0, 0, 0]
    assert not any(found[str(n)].outputs[0].problem for n in range(3))


def test_modules_with_more_values_than_float32_can_count_are_probed():
    wide = Returning(lambda x: x[:, 0, :1, 0].expand(len(x), 2**24 + 3))
    output = only(Calls(lambda self, x: self.wide(x), wide=wide), "wide")
    assert (output.shape, output.problem) == ((2**24 + 3,), "")


def test_values_that_are_not_finite_do_not_stop_probing():
    network = TinyNetwork()
    with torch.no_grad():
        network.features[0].bias[0] = torch.nan
        network.features[0].bias[1] = torch.inf
    found, facts = probe(network)
    assert found["features.0"].outputs[0].problem == ""
    assert "features.0" not in facts.fingerprints
    record = tiny_network().record
    assert ModelRecord.from_json(record.to_json()) == record


def test_the_fingerprint_tells_networks_apart_that_share_weights_and_shapes():
    def facts(module):
        torch.manual_seed(0)
        return probe(module())[1].fingerprints

    def network(eps):
        norm = ops.misc.FrozenBatchNorm2d(4, eps=eps)
        norm.running_var.fill_(0.01)
        return nn.Sequential(nn.Conv2d(3, 4, 3), norm, nn.ReLU())

    first = facts(lambda: network(1e-5))
    assert probe_mismatch(first, facts(lambda: network(1e-5))) == []
    assert probe_mismatch(first, facts(lambda: network(1e-3))) == ["", "1", "2"]


def test_a_fingerprint_forgives_rounding_and_nothing_more():
    known = {"a": (1.0, -2.0, 100.0), "b": (0.0, 0.0, 0.0)}
    assert probe_mismatch(known, {"a": (1.05, -2.05, 100.05), "b": (0.0, 0.0, 0.0)}) == []
    assert probe_mismatch(known, {"a": (1.2, -2.0, 100.0), "b": (0.0, 0.0, 0.0)}) == ["a"]
    assert probe_mismatch(known, {"a": (1.0, -2.0, 101.0), "c": (0.0,)}) == ["a", "b", "c"]


def test_probing_leaves_random_numbers_and_the_network_alone():
    network = tiny_network()
    network.module.train()
    before = torch.get_rng_state()
    first = network.record
    assert torch.equal(torch.get_rng_state(), before)
    assert network.module.training
    assert network.record is first
    assert all(not part._forward_hooks for part in network.module.modules())
