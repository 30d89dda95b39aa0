"""Networks that look alike in their weights and compute something else never share a row."""

from __future__ import annotations

import importlib
import os
import sys

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from torch import nn

import featurestore as fs

MODULE = "layer"


@pytest.fixture
def store(tmp_path):
    return fs.open_store(tmp_path / "s.fstore")


@pytest.fixture(scope="module")
def images():
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    return fs.read_images(pixels, names=["a", "b"])


def as_tokens(image):
    small = np.asarray(image.resize((8, 8)), np.float32)
    return small.reshape(16, 12) / 255


class Encoder(nn.Module):
    """One encoder layer; every setting below leaves its state dict as it is."""

    def __init__(self, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, batch_first=True, dropout=0.0)
        if settings:
            state = self.layer.state_dict()
            settings = {"nhead": 2, **settings}
            self.layer = nn.TransformerEncoderLayer(
                12, dim_feedforward=24, batch_first=True, dropout=0.0, **settings
            )
            self.layer.load_state_dict(state)

    def forward(self, tokens):
        return self.layer(tokens)


ENCODERS = [
    {}, {"nhead": 4}, {"activation": "gelu"}, {"norm_first": True}, {"layer_norm_eps": 0.1},
    {"activation": torch.tanh},
]  # fmt: skip


def wrapped(network):
    return fs.wrap(network, name="twin", preprocess=as_tokens, preprocess_id="tokens")


def plain(network, pictures):
    batch = torch.tensor(np.stack([as_tokens(Image.fromarray(pixels)) for pixels in pictures]))
    # Listened to, as it is while it is extracted: its fused path rounds differently.
    network.layer.register_forward_hook(lambda *_: None)
    with torch.no_grad():
        return network.eval()(batch).numpy()


def test_encoders_with_equal_weights_and_other_settings_do_not_share_a_row(store, images):
    pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 8, 3), dtype=np.uint8)
    made = [Encoder(**settings) for settings in ENCODERS]
    first = made[0].state_dict()
    for network in made:
        state = network.state_dict()
        assert all(torch.equal(state[name], first[name]) for name in first)
        assert network.layer.extra_repr() == made[0].layer.extra_repr()
    found = [store.get(wrapped(network), MODULE, images, batch_size=2) for network in made]
    assert len({features.attrs["feature_key"] for features in found}) == len(ENCODERS)
    for network, features in zip(made, found, strict=True):
        np.testing.assert_allclose(features.values, plain(network, pixels), atol=1e-5)
    for number, features in enumerate(found):
        for other in found[:number]:
            assert np.abs(features.values - other.values).max() > 1e-4
    assert [column.n_images for column in store.ls()] == [2] * len(ENCODERS)


@pytest.mark.slow
def test_a_setting_that_only_a_builder_makes_does_not_share_a_row(store, images, tmp_path):
    """Weights from a file get ``transform_input``, as published ones do; random ones do not."""
    torch.manual_seed(0)
    network = torchvision.models.inception_v3(weights=None, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "inception.pth")
    published = {"weights": tmp_path / "inception.pth", "preprocess": fs.preprocess(size=75)}
    named = store.get("inception_v3", "Conv2d_1a_3x3", images, **published)
    assert named.attrs["weights"] == "inception.pth"
    own = {}
    transform = torchvision.transforms._presets.ImageClassification(crop_size=75, resize_size=75)
    for transforms_input in (True, False):
        network.transform_input = transforms_input
        model = fs.wrap(network, name="inception", preprocess=transform)
        own[transforms_input] = store.get(model, "Conv2d_1a_3x3", images)
    keys = {features.attrs["feature_key"] for features in (named, *own.values())}
    assert len(keys) == 3
    assert len({features.attrs["weights_digest"] for features in (named, *own.values())}) == 1
    assert np.abs(own[True].values - own[False].values).max() > 0.01


SOURCE = """
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, tokens):
        return self.layer(tokens * {factor})
"""


def test_an_edited_forward_does_not_share_a_row(store, images, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    found = {}
    for number, factor in enumerate((2, 3, 2)):
        path = tmp_path / "edited_network.py"
        path.write_text(SOURCE.format(factor=factor))
        os.utime(path, (number, number))
        sys.modules.pop("edited_network", None)
        importlib.invalidate_caches()
        network = importlib.import_module("edited_network").Net()
        found[number] = store.get(wrapped(network), MODULE, images)
    sys.modules.pop("edited_network")
    np.testing.assert_allclose(found[1].values, found[0].values * 1.5, rtol=1e-6)
    keys = [features.attrs["feature_key"] for features in found.values()]
    assert keys[0] == keys[2] != keys[1]
    assert len(store.ls()) == 2


def test_a_checkpoint_file_that_is_overwritten_does_not_share_a_row(store, images, tmp_path):
    path = tmp_path / "weights.pth"
    times = None
    found = []
    for seed in (0, 1, 0):
        torch.manual_seed(seed)
        network = torchvision.models.squeezenet1_1(weights=None)
        torch.save(network.state_dict(), path)
        if times is None:
            facts = path.stat()
            times = facts.st_atime_ns, facts.st_mtime_ns
        os.utime(path, ns=times)  # nor is it told by its time alone
        small = fs.preprocess(size=32)
        found.append(store.get("squeezenet1_1", "features.0", images, weights=path,
                               preprocess=small, load=True))  # fmt: skip
    keys = [features.attrs["feature_key"] for features in found]
    assert keys[0] == keys[2] != keys[1]
    np.testing.assert_array_equal(found[0].values, found[2].values)
    assert np.abs(found[0].values - found[1].values).max() > 0.01
