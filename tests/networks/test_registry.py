import hashlib
import subprocess
import sys

import pytest

from featurestore.errors import IdentityError, InvalidInputError, ModelNotFoundError
from featurestore.filehash import hash_bytes
from featurestore.networks import registry
from featurestore.networks.preprocess import preprocess
from featurestore.networks.registry import request


def test_a_bare_name_belongs_to_torchvision():
    assert (request("alexnet").source, request("alexnet").name) == ("torchvision", "alexnet")
    assert request("alexnet") == request("torchvision/alexnet")
    assert request("timm/hf-hub:org/net").name == "hf-hub:org/net"


@pytest.mark.parametrize("word", [None, "random", "none", "RANDOM"])
def test_random_weights_have_a_seed(word):
    asked = request("alexnet", weights=word, seed=3)
    assert (asked.weights, asked.seed) == ("random", 3)
    assert asked.alias != request("alexnet", weights=word, seed=4).alias


def test_the_seed_of_published_weights_is_ignored():
    assert request("alexnet", seed=3).alias == request("alexnet", seed=4).alias


@pytest.mark.parametrize("seed", [-1, 1.0, True, None, 2**63])
def test_a_seed_is_a_whole_number(seed):
    with pytest.raises(InvalidInputError, match="seed"):
        request("alexnet", weights=None, seed=seed)


def test_a_member_may_be_written_as_torchvision_prints_it():
    assert request("alexnet", weights="AlexNet_Weights.IMAGENET1K_V1").weights == "IMAGENET1K_V1"
    assert request("alexnet", weights="default").weights == "DEFAULT"


def test_a_checkpoint_is_known_by_its_bytes_and_not_by_its_name(tmp_path):
    one, other = tmp_path / "a.pth", tmp_path / "b.pth"
    one.write_bytes(b"weights")
    other.write_bytes(b"weights")
    asked = request("alexnet", weights=one)
    assert asked.weights == f"file:{hash_bytes(b'weights').hex()}"
    assert asked.weights_path == str(one)
    assert asked.alias == request("alexnet", weights=str(other)).alias
    other.write_bytes(b"other weights")
    assert asked.alias != request("alexnet", weights=other).alias


def test_a_checkpoint_that_is_not_there_is_an_error_and_not_a_member():
    with pytest.raises(InvalidInputError, match=r"ecoset\.pth"):
        request("alexnet", weights="ecoset.pth")


def test_a_file_called_random_does_not_hide_random_weights(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "random").write_bytes(b"trap")
    assert request("alexnet", weights="random").weights == "random"


@pytest.mark.parametrize(
    "url",
    [
        "https://x.org/net.pth",
        "https://x.org/net-v2.pth",
        "http://x.org/net-7be5be79.pth",
        "https://x.org/net.pth#sha256=abc",
    ],
)
def test_a_url_without_encryption_or_hash_is_refused(url):
    with pytest.raises(InvalidInputError, match=r"hash|https"):
        request("alexnet", weights=url)


@pytest.mark.parametrize(
    "url",
    [
        "https://x.org/alexnet-owt-7be5be79.pth",
        f"https://x.org/net.pth#sha256={hashlib.sha256(b'').hexdigest()}",
    ],
)
def test_a_url_with_a_hash_is_kept(url):
    assert request("alexnet", weights=url).weights == url


@pytest.mark.parametrize("model", ["", " ", "/", None, 3])
def test_a_model_is_a_name(model):
    with pytest.raises(InvalidInputError, match=r"fs\.wrap"):
        request(model)


def test_what_was_changed_of_the_preprocessing_is_part_of_the_alias():
    plain = request("alexnet")
    assert plain.preprocess is None
    assert request("alexnet", preprocess=preprocess()).alias == plain.alias
    changed = request("alexnet", preprocess=preprocess(exif="apply"))
    assert changed.preprocess == {"decode": {"exif": "apply"}}
    assert changed.alias != plain.alias


def test_a_callable_without_an_id_is_refused_with_advice():
    with pytest.raises(IdentityError, match=r"fs\.preprocess\(transform, id='v1'\)"):
        request("alexnet", preprocess=lambda image: image)


def test_a_callable_is_known_by_its_id_alone():
    first = request("alexnet", preprocess=preprocess(lambda image: image, id="v1"))
    second = request("alexnet", preprocess=preprocess(lambda image: [image], id="v1"))
    assert first.alias == second.alias
    assert first.alias != request("alexnet", preprocess=preprocess(str, id="v2")).alias


def test_an_unknown_source_lists_the_known_ones():
    with pytest.raises(ModelNotFoundError, match="Did you mean 'torchvision'") as error:
        registry.load(request("torchvison/alexnet"))
    assert "torchvision" in error.value.choices


def test_a_broken_plug_in_does_not_break_the_others(tmp_path):
    package = tmp_path / "broken-1.0.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (package / "entry_points.txt").write_text("[featurestore.sources]\nbroken = no.such:Thing\n")
    code = (
        "from featurestore.networks import listing, registry; found = listing.models(); "
        "assert 'alexnet' in found; assert 'broken' in registry.sources(); "
        "assert 'no' in found.unavailable['broken'], found.unavailable; "
        "assert 'broken is not available' in repr(found) or len(found) > 200"
    )
    subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, check=True)


def test_requests_need_no_framework():
    code = (
        "import sys; from featurestore.networks import network, preprocess, registry, spec, taps; "
        "registry.request('alexnet', preprocess=preprocess.preprocess(resize=3)); "
        "registry.sources(); "
        "print([m for m in ('torch', 'torchvision', 'numpy', 'tensorflow') if m in sys.modules])"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "torch" not in out.stdout
