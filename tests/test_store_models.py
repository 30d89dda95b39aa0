"""Named models in a store: which requests share a column, and what happens without a network."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

import featurestore as fs
from featurestore.errors import (
    FeaturesMissingError,
    FeatureStoreError,
    ImageDecodeError,
    InvalidInputError,
    ModelNotFoundError,
    ModuleNotFoundInModelError,
    ReadOnlyError,
    WeightsChangedError,
)
from featurestore.networks import registry
from featurestore.networks.sources.torch_network import TorchSession
from featurestore.networks.taps import Tap

NAME, MODULE = "squeezenet1_1", "features.3"


@pytest.fixture
def folder(tmp_path):
    root = tmp_path / "stimuli"
    root.mkdir()
    rng = np.random.default_rng(0)
    for number in range(3):
        pixels = rng.integers(0, 256, (260, 300, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / f"{number}.png")
    return root


@pytest.fixture
def store(tmp_path):
    return fs.open_store(tmp_path / "s.fstore")


def save_weights(path, seed):
    torch.manual_seed(seed)
    torch.save(torchvision.models.get_model(NAME, weights=None).state_dict(), path)
    return path


def key(features):
    return features.attrs["feature_key"]


def test_a_named_model_equals_torchvision_with_its_published_transform(store, folder):
    features = store.get(NAME, MODULE, folder, weights=None, seed=3, batch_size=3)
    torch.manual_seed(3)
    network = torchvision.models.get_model(NAME, weights=None).eval()
    transform = torchvision.models.SqueezeNet1_1_Weights.IMAGENET1K_V1.transforms()
    batch = torch.stack([transform(Image.open(path)) for path in sorted(folder.iterdir())])
    caught = []
    network.features[3].register_forward_hook(lambda _m, _i, output: caught.append(output.clone()))
    threads = torch.get_num_threads()
    torch.set_num_threads(fs.get_options().n_threads)
    with torch.no_grad():
        network(batch)
    torch.set_num_threads(threads)
    np.testing.assert_array_equal(features.values, caught[0].numpy())


def test_seed_weights_file_and_resize_are_columns_and_file_names_are_not(store, folder, tmp_path):
    one = save_weights(tmp_path / "one.pth", seed=1)
    same = save_weights(tmp_path / "same under another name.pth", seed=1)
    other = save_weights(tmp_path / "other.pth", seed=2)
    keys = [
        key(store.get(NAME, MODULE, folder, **request))
        for request in (
            {"weights": None, "seed": 0},
            {"weights": None, "seed": 5},
            {"weights": one},
            {"weights": other},
            {"weights": one, "preprocess": fs.preprocess(resize=300)},
            {"weights": one, "preprocess": fs.preprocess(alpha="white")},
            {"weights": one, "dtype": "float16"},
            {"weights": one, "precision": "bf16"},
            {"weights": one, "readout": "avgpool"},
        )
    ]
    assert len(set(keys)) == len(keys)
    assert key(store.get(NAME, MODULE, folder, weights=same)) == keys[2]
    # The very weights that seed 1 draws, drawn by the store itself.
    assert key(store.get(NAME, MODULE, folder, weights="random", seed=1)) == keys[2]


def test_other_weights_under_a_known_name_are_refused(store, folder, monkeypatch):
    from featurestore.networks.sources import torchvision as source

    def weights_of_seed(seed):
        def download(_member):
            torch.manual_seed(seed)
            return torchvision.models.get_model(NAME, weights=None).state_dict()

        return download

    monkeypatch.setattr(source, "_download", weights_of_seed(0))
    images = fs.read_images(folder)
    first = store.get(NAME, MODULE, images[:2])
    assert first.attrs["weights"] == "IMAGENET1K_V1"
    monkeypatch.setattr(source, "_download", weights_of_seed(1))
    fresh = fs.open_store(store._catalog.blobs.root)
    np.testing.assert_array_equal(fresh.get(NAME, MODULE, images[:2]).values, first.values)
    with pytest.raises(WeightsChangedError, match="weights") as caught:
        fresh.get(NAME, MODULE, images)
    assert caught.value.parts == ["weights"]
    assert fresh.ls()[0].n_images == 2


def test_default_goes_on_meaning_what_it_first_meant(store, folder, monkeypatch):
    from featurestore.networks.sources import torchvision as source

    members = []

    def download(member):
        members.append(member.name)
        torch.manual_seed(0)
        return torchvision.models.mobilenet_v2(weights=None).state_dict()

    monkeypatch.setattr(source, "_download", download)
    store.plan("mobilenet_v2", "features.0", folder)
    assert members == ["IMAGENET1K_V2"]
    fs.open_store(store._catalog.blobs.root).plan("mobilenet_v2", "features.0", folder)
    assert members == ["IMAGENET1K_V2"]  # a known name loads nothing
    fs.open_store(store._catalog.blobs.root).get("mobilenet_v2", "features.0", folder)
    assert members == ["IMAGENET1K_V2"] * 2


def test_a_hit_loads_no_network(store, folder, monkeypatch):
    store.get(NAME, MODULE, folder, weights=None)

    def fail(_request):
        raise AssertionError("a network was loaded")

    monkeypatch.setattr(registry, "load", fail)
    again = fs.open_store(store._catalog.blobs.root)
    assert again.get(NAME, MODULE, folder, weights=None).sizes["image"] == 3


def test_errors_are_one_paragraph_that_says_what_to_do(store, folder, tmp_path):
    with pytest.raises(ModelNotFoundError, match="Did you mean 'squeezenet1_1'") as wrong_model:
        store.get("squeezenet1.1", MODULE, folder, weights=None)
    with pytest.raises(ModuleNotFoundInModelError, match="Did you mean") as wrong_module:
        store.get(NAME, "feature.3", folder, weights=None)
    with pytest.raises(FeatureStoreError, match="random") as offline:
        store.get("alexnet", MODULE, folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="empty") as empty:
        store.get(NAME, MODULE, tmp_path / "empty", weights=None)
    store.get(NAME, MODULE, folder, weights=None)
    reader = fs.open_store(store._catalog.blobs.root, mode="r")
    with pytest.raises(FeaturesMissingError, match="mode='a'") as unknown:
        reader.get(NAME, MODULE, folder, weights=None, seed=9)
    with pytest.raises(ReadOnlyError, match="mode='a'") as read_only:
        reader.extract(reader.plan(NAME, "features.6", folder, weights=None))
    for caught in (wrong_model, wrong_module, offline, empty, unknown, read_only):
        message = str(caught.value)
        assert "\n" not in message
        assert message.endswith((".", ").")) or "pip install" in message
    assert store.ls()[0].n_images == 3  # and what was computed before is kept


def test_a_truncated_picture_among_fifty_good_ones_costs_only_itself(store, tmp_path):
    folder = tmp_path / "fifty"
    folder.mkdir()
    rng = np.random.default_rng(1)
    for number in range(51):
        image = Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8))
        image.save(folder / f"{number:02d}.jpg")
    path = folder / "25.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ImageDecodeError, match=r"25\.jpg") as caught:
        store.get(NAME, "features.0", folder, weights=None)
    assert list(caught.value.failures) == ["25.jpg"]
    assert store.ls()[0].n_images == 50


@pytest.mark.gpu
def test_a_gpu_gives_the_values_of_the_cpu_and_is_timed_beside_a_bare_loop(
    tmp_path, record_property
):
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    rng = np.random.default_rng(2)
    images = fs.read_images([rng.integers(0, 256, (256, 256, 3), np.uint8) for _ in range(512)])
    request = {"weights": None, "precision": "fp32"}
    cpu = fs.open_store(tmp_path / "cpu").get(NAME, MODULE, images[:32], device="cpu", **request)
    store = fs.open_store(tmp_path / "gpu")
    store.plan(NAME, MODULE, images, weights=None)  # builds and probes the network
    start = time.perf_counter()
    gpu = store.get(NAME, MODULE, images, device="cuda", **request)
    ours = time.perf_counter() - start
    np.testing.assert_allclose(gpu[:32].values, cpu.values, rtol=1e-4, atol=1e-4)

    network = registry.load(registry.request(NAME, weights=None))
    tap, _ = network.record.resolve(Tap.parse(MODULE))
    with network.open([tap], device="cuda", precision="fp32", n_threads=2) as session:
        assert isinstance(session, TorchSession)
        inputs = [network.transform(Image.fromarray(images.content(n).data)) for n in range(64)]
        start = time.perf_counter()
        for _ in range(8):
            session.forward(np.stack(inputs))
        bare = time.perf_counter() - start
    record_property("images_per_second", 512 / ours)
    record_property("images_per_second_bare", 512 / bare)
