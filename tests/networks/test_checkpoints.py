import hashlib
import pickle
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn
from torchvision import models

from featurestore.errors import InvalidInputError, ModelNotFoundError
from featurestore.networks import registry
from featurestore.networks.checkpoints import read_checkpoint
from featurestore.networks.preprocess import preprocess
from featurestore.networks.weights import weights_digest

NAME = "squeezenet1_1"
SMALL = preprocess(size=64)


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(1)
    return models.squeezenet1_1(weights=None)


def save(content, path):
    if path.suffix == ".safetensors":
        safetensors.torch.save_file(content, path)
    else:
        torch.save(content, path)
    return path


def load(path, name=NAME, **more):
    return registry.load(registry.request(name, weights=path, **more))


WRAPPINGS = {
    "plain.pth": lambda state: state,
    "plain.safetensors": dict,
    "data-parallel.pt": lambda state: {f"module.{name}": state[name] for name in state},
    "lightning.ckpt": lambda state: {"epoch": 3, "state_dict": state, "optimizer": {"lr": 0.1}},
    "nested.bin": lambda state: {"model": {"model_state_dict": state}, "best": 0.5},
    "compiled.pth": lambda state: {
        "state_dict": {f"module._orig_mod.{name}": state[name] for name in state}
    },
}


@pytest.mark.parametrize("file", WRAPPINGS)
def test_a_checkpoint_is_known_by_its_weights_however_it_is_wrapped(file, network, tmp_path):
    path = save(WRAPPINGS[file](network.state_dict()), tmp_path / file)
    found = load(path)
    assert found.spec.weights == weights_digest(network.state_dict())
    assert found.weights_label == file
    for name, tensor in found.module.state_dict().items():
        assert torch.equal(tensor, network.state_dict()[name])


def test_equal_weights_in_different_files_are_one_model(network, tmp_path):
    one = load(save(network.state_dict(), tmp_path / "a.pth"))
    other = load(save(dict(network.state_dict()), tmp_path / "b.safetensors"))
    assert one.spec == other.spec
    assert one.spec.preprocessing["transform"]["crop_size"] == [224]


def test_a_checkpoint_of_another_architecture_lists_what_does_not_fit(tmp_path):
    path = save(models.shufflenet_v2_x0_5().state_dict(), tmp_path / "shuffle.pth")
    with pytest.raises(InvalidInputError, match=r"52 missing \(features\.0\.weight") as error:
        load(path)
    assert len(error.value.missing) == 52
    assert "conv1.0.weight" in error.value.unexpected


def test_a_prefix_is_only_taken_off_if_all_names_have_it(network, tmp_path):
    state = {f"module.{name}": value for name, value in network.state_dict().items()}
    state["extra"] = torch.ones(1)
    with pytest.raises(InvalidInputError, match="53 unexpected"):
        load(save(state, tmp_path / "odd.pth"))


def test_a_shape_that_does_not_fit_is_listed(network, tmp_path):
    state = dict(network.state_dict())
    state["features.0.weight"] = torch.ones(64, 1, 3, 3)
    with pytest.raises(InvalidInputError, match=r"1 shape \(features\.0\.weight \(64, 1, 3, 3\)"):
        load(save(state, tmp_path / "grey.pth"))


def test_a_classifier_of_another_size_is_fitted_and_recorded(tmp_path):
    ecoset = models.alexnet(num_classes=565)
    found = load(save(ecoset.state_dict(), tmp_path / "ecoset.pth"), "alexnet")
    assert found.spec.arguments == {"num_classes": 565}
    assert found.module.classifier[6].out_features == 565
    assert found.spec.weights == weights_digest(ecoset.state_dict())
    batch = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(found.module.eval()(batch), ecoset.eval()(batch))


def test_checkpoints_get_the_settings_that_pretrained_weights_get(tmp_path):
    plain = models.inception_v3(init_weights=False)
    found = load(save(plain.state_dict(), tmp_path / "inception.pth"), "inception_v3")
    assert found.module.transform_input
    assert not plain.transform_input


@pytest.mark.parametrize("aux", [pytest.param(True, marks=pytest.mark.slow), False])
def test_googlenet_loads_with_and_without_its_auxiliary_outputs(aux, tmp_path):
    plain = models.googlenet(init_weights=False, aux_logits=aux)
    found = load(save(plain.state_dict(), tmp_path / "google.pth"), "googlenet")
    assert found.module.aux1 is None
    assert found.module.transform_input
    assert found.spec.weights == weights_digest(
        {n: v for n, v in plain.state_dict().items() if not n.startswith("aux")}
    )


def test_detection_checkpoints_get_the_epsilon_of_the_published_ones(tmp_path):
    name = "retinanet_resnet50_fpn"
    plain = models.get_model(name, weights=None, weights_backbone=None)
    path = save(plain.state_dict(), tmp_path / "retina.pth")
    found = load(path, name, preprocess=SMALL)
    assert found.module.backbone.body.bn1.eps == 0.0


@pytest.mark.slow
def test_old_files_whose_entries_were_renamed_since_are_loaded(tmp_path):
    plain = models.densenet121(weights=None)
    old = {
        name.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): value
        for name, value in plain.state_dict().items()
        if "num_batches" not in name
    }
    assert old.keys() != plain.state_dict().keys()
    found = load(save(old, tmp_path / "densenet.pth"), "densenet121")
    assert found.spec.weights == weights_digest(plain.state_dict())


def test_old_files_without_counters_of_batches_are_loaded(tmp_path):
    plain = models.resnet18(weights=None)
    old = {n: v for n, v in plain.state_dict().items() if "num_batches" not in n}
    found = load(save(old, tmp_path / "resnet.pth"), "resnet18")
    assert found.spec.weights == weights_digest(plain.state_dict())


class Evil:
    def __reduce__(self):
        return (exec, ("raise SystemExit('code in a checkpoint was run')",))


@pytest.mark.parametrize("content", [Evil(), {"state_dict": Evil()}, nn.Linear(2, 2)])
def test_code_in_a_checkpoint_is_refused_and_never_run(content, tmp_path):
    path = tmp_path / "evil.pth"
    if isinstance(content, nn.Module):
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content))
    with pytest.raises(InvalidInputError, match=r"run code|no readable checkpoint"):
        load(path)


@pytest.mark.parametrize("data", [b"", b"text", b"PK\x03\x04 no zip"])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_damaged_file_is_named(data, suffix, tmp_path):
    path = tmp_path / f"damaged{suffix}"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="damaged"):
        load(path)


def test_a_file_without_a_state_dict_is_refused(tmp_path):
    path = save({"epoch": 3, "lr": 0.1}, tmp_path / "numbers.pth")
    with pytest.raises(InvalidInputError, match="no state dict, but the keys"):
        read_checkpoint(path)


def test_a_checkpoint_that_training_overwrote_is_noticed(network, tmp_path):
    path = save(network.state_dict(), tmp_path / "training.pth")
    asked = registry.request(NAME, weights=path)
    save(models.squeezenet1_1().state_dict(), path)
    with pytest.raises(InvalidInputError, match="has changed"):
        registry.load(asked)
    path.unlink()
    with pytest.raises(InvalidInputError, match="cannot be read"):
        registry.load(asked)


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    torch.hub.set_dir(str(tmp_path / "hub"))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    yield folder
    torch.hub._hub_dir = None


def cached(state, folder, pattern):
    """Put a file where a download would, under a name with its own hash."""
    path = save(state, folder / "new.pth")
    digits = hashlib.sha256(path.read_bytes()).hexdigest()
    return path.rename(folder / pattern.format(digits=digits, short=digits[:8])), digits


def test_a_url_is_served_from_the_cache_if_the_hash_is_right(network, hub):
    path, digits = cached(network.state_dict(), hub, "net-{short}.pth")
    found = load(f"https://models.invalid/{path.name}")
    assert found.spec.weights == weights_digest(network.state_dict())
    assert found.weights_label == path.name
    whole, _ = cached(network.state_dict(), hub, "whole.pth")
    assert load(f"https://models.invalid/{whole.name}#sha256={digits}").spec == found.spec


def test_a_cached_file_with_another_hash_is_refused(network, hub):
    path, _ = cached(network.state_dict(), hub, "net-{short}.pth")
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(InvalidInputError, match="SHA-256"):
        load(f"https://models.invalid/{path.name}")


def test_a_url_is_downloaded_and_checked(network, hub, tmp_path, monkeypatch):
    path, digits = cached(network.state_dict(), tmp_path, "served.pth")
    fetched = []

    def download(url, target, hash_prefix, progress):
        fetched.append((url, hash_prefix))
        Path(target).write_bytes(path.read_bytes())

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    url = "https://models.invalid/served.pth"
    assert load(f"{url}#sha256={digits}").spec.weights == weights_digest(network.state_dict())
    assert fetched == [(url, digits)]


@pytest.mark.parametrize("weights", ["DEFAULT", "https://models.invalid/net-0123abcd.pth"])
def test_without_a_network_it_says_what_to_do(weights, hub, monkeypatch):
    def offline(*_args, **_kwargs):
        raise ConnectionError("Network is unreachable")

    monkeypatch.setattr(torch.hub, "urlopen", offline)
    with pytest.raises(ModelNotFoundError, match=r"put it there.*weights='random'") as error:
        registry.load(registry.request(NAME, weights=weights))
    assert isinstance(error.value.__cause__, OSError)
    assert str(hub) in error.value.path


@pytest.mark.parametrize(
    "name",
    [
        "squeezenet1_1",
        "googlenet",
        pytest.param("inception_v3", marks=pytest.mark.slow),
        pytest.param("densenet121", marks=pytest.mark.slow),
    ],
)
def test_published_weights_build_what_torchvision_builds(name, hub, monkeypatch):
    member = models.get_model_weights(name).DEFAULT
    torch.manual_seed(2)
    more = {"init_weights": False} if name in ("inception_v3", "googlenet") else {}
    complete = models.get_model(name, weights=None, **more).state_dict()
    asked = []

    def local(url, *args, **kwargs):
        asked.append((url, kwargs))
        return dict(complete)

    monkeypatch.setattr(models._api, "load_state_dict_from_url", local)
    expected = models.get_model(name, weights="DEFAULT").eval()
    found = registry.load(registry.request(name))
    assert asked[1][0] == member.url
    assert asked[1][1]["weights_only"] is asked[1][1]["check_hash"] is True
    assert found.weights_label == member.name
    assert found.spec == registry.load(registry.request(name, weights=member.name.lower())).spec
    assert found.spec.weights == weights_digest(expected.state_dict())
    assert found.citation == member.meta["recipe"]
    assert "get_state_dict" not in vars(member)
    batch = torch.rand(1, 3, 80, 80)
    with torch.no_grad():
        assert torch.equal(found.module.eval()(batch), expected(batch))


def test_unknown_weights_suggest_near_misses():
    with pytest.raises(ModelNotFoundError, match="Did you mean 'IMAGENET1K_V2'"):
        registry.load(registry.request("resnet50", weights="IMAGENET1K_V3"))
    names = registry.load_source("torchvision").weights_names("resnet50")
    assert names == ["IMAGENET1K_V2", "IMAGENET1K_V1"]


def test_a_file_that_is_no_checkpoint_is_told_in_words(tmp_path):
    path = tmp_path / "notes.pth"
    path.write_text("epoch 3\n")
    with pytest.raises(InvalidInputError, match=r"torch\.load cannot read it|run code"):
        load(path)
    path.write_text("epoch 3, loss 0.1\n" * 9)
    with pytest.raises(InvalidInputError, match=r"that torch\.save wrote|run code"):
        load(path)


@pytest.mark.parametrize("more", [(), ("features.0.bias",)], ids=["weight", "module"])
def test_only_classifiers_are_adapted_to_a_file(more, network, tmp_path):
    state = dict(network.state_dict())
    for name in ("features.0.weight", *more):
        state[name] = torch.zeros(3, *state[name].shape[1:])
    path = save(state, tmp_path / "narrow.pth")
    expected = r"shape \(features\.0\.weight \(3, 3, 3, 3\) for \(64, 3, 3, 3\)"
    with pytest.raises(InvalidInputError, match=expected) as raised:
        load(path)
    assert len(raised.value.shapes) == 1 + len(more)


@pytest.mark.parametrize("pair", [("model", "model_ema"), ("state_dict", "state_dict_ema")])
def test_a_file_with_several_sets_of_weights_is_not_chosen_from(pair, network, tmp_path):
    path = save(dict.fromkeys(pair, network.state_dict()), tmp_path / "both.pth")
    with pytest.raises(InvalidInputError, match=f"'{pair[0]}', '{pair[1]}'"):
        load(path)
