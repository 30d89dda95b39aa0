import copy

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import models

from featurestore.errors import (
    IdentityError,
    InvalidInputError,
    ModuleNotFoundInModelError,
    WeightsChangedError,
)
from featurestore.networks.network import is_network
from featurestore.networks.preprocess import preprocess
from featurestore.networks.sources.wrapped import wrap
from featurestore.testing.tiny import TinyNetwork, tiny_network, tiny_transform


def wrapped(module=None, **more):
    given = {"name": "net", "preprocess": tiny_transform, "preprocess_id": "v1", **more}
    return wrap(TinyNetwork() if module is None else module, **given)


def test_a_network_is_known_by_what_it_is_and_not_by_its_name():
    key = wrapped().spec.key
    assert key == wrapped(name="other").spec.key
    assert key == wrapped(copy.deepcopy(TinyNetwork())).spec.key
    assert key != wrapped(TinyNetwork(seed=1)).spec.key
    assert key != wrapped(TinyNetwork(n_classes=11)).spec.key
    assert key != wrapped(preprocess_id="v2").spec.key
    assert wrapped(name="other").record.label == "other"


def test_a_wrapped_network_is_recognised_without_probing_it():
    network = wrapped()
    assert is_network(network)
    assert "record" not in vars(network)
    assert not is_network(TinyNetwork())
    assert not is_network("alexnet")


def test_a_callable_needs_an_id_and_a_transform_of_torchvision_does_not():
    with pytest.raises(IdentityError, match="preprocess_id='v1'"):
        wrapped(preprocess_id=None)
    published = models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    network = wrapped(preprocess=published, preprocess_id=None)
    assert network.input_shape == (3, 224, 224)
    assert network.spec.preprocessing["transform"]["resize_size"] == [256]
    picture = Image.effect_noise((300, 200), 90).convert("RGB")
    np.testing.assert_array_equal(network.transform(picture), published(picture).numpy())


def test_the_decode_policy_can_be_chosen_for_ones_own_network():
    network = wrapped(
        preprocess=preprocess(tiny_transform, id="v1", exif="apply"), preprocess_id=None
    )
    assert network.spec.preprocessing["decode"]["exif"] == "apply"
    assert network.spec.key != wrapped().spec.key


def test_there_is_nothing_to_adapt_without_a_transform():
    with pytest.raises(InvalidInputError, match="no preprocessing"):
        wrapped(preprocess=preprocess(resize=32), preprocess_id=None)


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda image: np.asarray(image, dtype=np.float32), "size"),
        (lambda image: image, "returned a Image"),
    ],
    ids=["size", "kind"],
)
def test_a_preprocessing_that_makes_no_input_is_refused_at_once(function, reason):
    with pytest.raises(InvalidInputError, match=reason):
        wrapped(preprocess=function)


def test_shells_around_a_network_are_refused_with_advice():
    for shell in (nn.DataParallel(TinyNetwork()), torch.compile(TinyNetwork())):
        with pytest.raises(InvalidInputError, match="wrap the network inside"):
            wrapped(shell)
    with pytest.raises(InvalidInputError, match="Module"):
        wrapped(module=lambda x: x)
    with pytest.raises(InvalidInputError, match="name"):
        wrapped(name="")


def test_equal_seeds_give_equal_tiny_networks():
    assert tiny_network(3).spec == tiny_network(3).spec
    assert tiny_network(3).spec != tiny_network(4).spec
    state = torch.get_rng_state()
    TinyNetwork(7)
    assert torch.equal(torch.get_rng_state(), state)


def test_the_environment_names_versions():
    versions = wrapped().environment()
    assert versions["torch"] == torch.__version__
    assert set(versions) >= {"torch", "pillow"}


def published():
    return models.ResNet18_Weights.IMAGENET1K_V1.transforms()


@pytest.mark.parametrize("as_given", [lambda t: t, preprocess], ids=["itself", "preprocess"])
def test_a_preset_that_its_owner_changes_later_is_not_what_is_used(as_given):
    preset = published()
    given = as_given(preset)
    network = wrapped(preprocess=given, preprocess_id=None)
    key, picture = network.spec.key, Image.effect_noise((300, 200), 90).convert("RGB")
    preset.mean[0], preset.std = 9.0, [1.0, 1.0, 1.0]
    assert network.spec.key == key
    np.testing.assert_array_equal(network.transform(picture), published()(picture).numpy())
    network.require_unchanged()
    network.preprocessing.function.mean = [0.0, 0.0, 0.0]
    with pytest.raises(WeightsChangedError, match="preprocessing"):
        network.require_unchanged()


def test_a_preset_changed_inside_a_preprocess_is_noticed():
    given = preprocess(published())
    given.transform.mean = [0.0, 0.0, 0.0]
    with pytest.raises(IdentityError, match="changed after"):
        wrapped(preprocess=given, preprocess_id=None)


def with_hook(preset):
    preset.register_forward_hook(lambda _m, _i, out: out * 2)


def with_forward(preset):
    preset.forward = lambda image: image


@pytest.mark.parametrize("change", [with_hook, with_forward])
def test_a_preset_that_does_more_than_its_parameters_say_needs_an_id(change):
    preset = published()
    change(preset)
    with pytest.raises(IdentityError, match="preprocess_id='v1'"):
        wrapped(preprocess=preset, preprocess_id=None)


CONFIG = {"gain": 1.0}


class Gained(TinyNetwork):
    def forward(self, x):
        return super().forward(x) * CONFIG["gain"]


def test_a_global_that_changes_after_wrapping_is_noticed(monkeypatch):
    network = wrapped(Gained())
    network.require_unchanged()
    monkeypatch.setitem(CONFIG, "gain", 2.0)
    with pytest.raises(WeightsChangedError, match="structure"):
        network.require_unchanged()
    assert wrapped(Gained()).spec.key != network.spec.key


def test_a_preprocessing_that_fails_names_the_model_and_what_it_was_given():
    with pytest.raises(
        InvalidInputError, match=r"'?net'? failed on a RGB picture .*Zero"
    ) as raised:
        wrapped(preprocess=lambda _image: 1 / 0)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_an_unknown_module_points_at_the_wrapped_network():
    with pytest.raises(ModuleNotFoundInModelError, match=r"fs\.modules\(<the wrapped network>\)"):
        wrapped().record.module("nope")
