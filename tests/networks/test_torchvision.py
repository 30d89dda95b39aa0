import numpy as np
import pytest
import torch
from torchvision import models as torchvision_models

from featurestore.errors import InvalidInputError, ModelNotFoundError
from featurestore.networks import registry
from featurestore.networks.preprocess import preprocess
from featurestore.networks.sources.probe import probe_image
from featurestore.networks.sources.torchvision import _reference
from featurestore.networks.structure import structure_digest
from featurestore.networks.taps import Tap
from featurestore.testing.reference import caller_state, reference_activations

SMALL = ["squeezenet1_1", "mobilenet_v3_small", "mnasnet0_5", "regnet_y_400mf"]
NAMES = registry.load_source("torchvision").model_names()
N_DEPTHS = 4
N_THREADS = 2


def request(name, **more):
    builder = torchvision_models.get_model_builder(name).__module__
    sized = "segmentation" in builder or "detection" in builder
    more = {"preprocess": preprocess(size=(96, 128))} if sized else more
    return registry.request(name, weights=None, seed=1, **more)


def compare_with_a_plain_forward_pass(network, n_images=2):
    usable = [
        Tap(module.name, output.call, output.path)
        for module in network.record.modules
        for output in module.outputs
        if not output.problem
    ]
    depths = np.linspace(0, len(usable) - 1, N_DEPTHS).astype(int)
    taps = [usable[-1 - depth] for depth in depths][::-1]
    batch = np.stack([probe_image(network.input_shape, 50 + n) for n in range(n_images)])
    with network.open(taps, device="cpu", precision="fp32", n_threads=N_THREADS) as session:
        found = session.forward(batch)
    threads = torch.get_num_threads()
    torch.set_num_threads(N_THREADS)
    expected = reference_activations(network.module, taps, batch)
    torch.set_num_threads(threads)
    assert len(found) >= 3
    for tap, rows in zip(taps, found, strict=True):
        output = network.record.resolve(tap)[1]
        plain = np.moveaxis(expected[tap], output.batch_axis, 0)
        order = output.order or tuple(range(plain.ndim - 1))
        plain = plain.transpose(0, *(axis + 1 for axis in order)).reshape(rows.shape)
        np.testing.assert_array_equal(rows, plain, err_msg=str(tap))


def check(name):
    before = caller_state()
    network = registry.load(request(name))
    network.record  # noqa: B018 - probed here, so that its settings are checked too
    assert caller_state() == before
    compare_with_a_plain_forward_pass(network)
    assert structure_digest(network.module) == network.spec.structure
    return network


@pytest.mark.parametrize("name", SMALL)
def test_activations_equal_a_plain_forward_pass_bit_for_bit(name):
    check(name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL])
def test_activations_of_every_image_model_equal_a_plain_forward_pass(name):
    check(name)


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_a_quantised_network_gives_its_values_as_floats_and_runs_on_the_cpu_only():
    engine = torch.backends.quantized.engine
    network = check("quantized_shufflenet_v2_x0_5")
    assert torch.backends.quantized.engine == engine
    assert network.spec.arguments == {"quantize": True}
    assert network.spec.weights == registry.load(request(network.label)).spec.weights
    with (
        pytest.raises(InvalidInputError, match="'cpu' only"),
        network.open([], device="cuda", precision="fp32", n_threads=1),
    ):
        pass


@pytest.mark.slow
def test_a_detection_network_keeps_what_has_one_row_per_image():
    name = "ssdlite320_mobilenet_v3_large"
    with pytest.raises(InvalidInputError, match=r"fs\.preprocess\(size="):
        registry.load(registry.request(name, weights=None))
    network = check(name)
    (backbone,) = {o.shape for o in network.record.module("backbone.features.0").outputs[:1]}
    assert len(backbone) == 3
    with pytest.raises(InvalidInputError, match="one row per image"):
        network.record.resolve(Tap(""))


def test_seeds_are_columns_of_their_own():
    one, two = (
        registry.load(registry.request("squeezenet1_1", weights=None, seed=seed)).spec
        for seed in (1, 2)
    )
    assert one.weights != two.weights
    assert one.structure == two.structure
    assert registry.load(registry.request("squeezenet1_1", weights=None, seed=1)).spec == one


def test_untrained_networks_use_the_preset_of_the_first_imagenet_weights():
    network = registry.load(registry.request("resnet50", weights=None, seed=0))
    preset = torchvision_models.ResNet50_Weights.IMAGENET1K_V1.transforms()
    assert network.spec.preprocessing["transform"]["resize_size"] == preset.resize_size
    assert network.weights_label == "random(seed=0)"


def test_every_model_without_weights_gets_a_preset_of_the_size_it_is_built_for():
    for name in NAMES:
        if name.startswith("vit_"):
            preset = _reference(name).transforms()
            assert preset.crop_size == [224], name


def test_an_input_that_the_network_does_not_take_is_an_error_that_says_so():
    asked = registry.request("vit_b_32", weights=None, preprocess=preprocess(size=96))
    with pytest.raises(InvalidInputError, match=r"\(3, 96, 96\): AssertionError: Wrong image"):
        registry.load(asked).record  # noqa: B018


def test_unknown_models_suggest_near_misses():
    with pytest.raises(ModelNotFoundError, match="Did you mean 'alexnet'"):
        registry.load(registry.request("alexnt"))
    with pytest.raises(ModelNotFoundError, match="no image model 'r3d_18'"):
        registry.load(registry.request("r3d_18"))
