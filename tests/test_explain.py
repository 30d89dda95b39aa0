"""Which part of a key differs, who computed the rows, and all of it without a network."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
import torchvision
from typer.testing import CliRunner

import featurestore as fs
from featurestore.cli.main import app
from featurestore.errors import InvalidInputError, ModuleNotFoundInModelError
from featurestore.networks.sources.wrapped import wrap
from featurestore.planning.explain import Difference, explain
from featurestore.storage.catalog import open_catalog
from featurestore.testing.tiny import TinyNetwork, tiny_network, tiny_transform

NAME, MODULE = "squeezenet1_1", "features.0"


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A store with one module of a named model, three times."""
    root = tmp_path_factory.mktemp("explain") / "s.fstore"
    images = pictures()
    store = fs.open_store(root)
    store.get(NAME, MODULE, images[:2], weights="random", batch_size=2)
    store.get(NAME, MODULE, images, weights="random", batch_size=1)
    store.get(NAME, MODULE, images, weights="random", seed=5)
    store.get(NAME, MODULE, images, weights="random", preprocess=fs.preprocess(resize=300))
    store.get(NAME, "features.3", images, weights="random", readout="avgpool")
    return root


def pictures():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 40, 40, 3), dtype=np.uint8)
    return fs.read_images(pixels, names=["a", "b", "c"])


def ask(root, model=NAME, module=MODULE, images=None, mode="r", **request):
    if model == NAME:
        request.setdefault("weights", "random")
    return explain(open_catalog(root, mode), model, module, images, **request)


def parts(explanation):
    return [[difference.part for difference in near.differences]
            for near in explanation.differences]  # fmt: skip


def test_a_stored_column_says_who_computed_which_rows(place):
    store = fs.open_store(place, mode="r")
    found = ask(place, images=pictures())
    expected = store.get(NAME, MODULE, pictures(), weights="random").attrs["feature_key"]
    assert found.key == expected
    assert found.exists
    assert (found.n_images, found.n_rows) == (3, 3)
    assert [run.n_rows for run in found.runs] == [2, 1]
    assert [run.facts["batch_size"] for run in found.runs] == [2, 1]
    assert found.runs[0].facts["device"] == "cpu"
    assert found.runs[0].facts["environment.torch"] == torch.__version__
    assert found.run_differences == {"batch_size": [2, 1]}
    assert ask(place).n_rows == 3
    assert ask(place).n_images is None
    some = pictures()[[0, 0, 1]]
    assert (ask(place, images=some).n_images, ask(place, images=some).n_rows) == (2, 2)
    assert len(ask(place, images=some).runs) == 1


def test_the_nearest_columns_come_first_with_what_sets_them_apart(place):
    found = ask(place)
    first, second, third = found.differences
    assert (first.module, second.module, third.module) == (MODULE, MODULE, "features.3")
    by_part = {difference.part: difference for near in (first, second)
               for difference in near.differences}  # fmt: skip
    assert set(by_part) == {"weights", "preprocessing.transform.resize_size"}
    weights = by_part["weights"]
    assert weights.stored.startswith("random(seed=5) (")
    assert weights.asked.startswith("random(seed=0) (")
    assert by_part["preprocessing.transform.resize_size"].stored == [300]
    assert {"module", "readout"} <= {difference.part for difference in third.differences}


@pytest.mark.parametrize(
    ("request_", "part", "stored", "asked"),
    [
        ({"dtype": "float16"}, "dtype", "float32", "float16"),
        ({"precision": "bf16"}, "precision", "fp32", "bf16"),
        ({"readout": "avgpool"}, "readout", None, "avgpool"),
    ],
)
def test_a_column_that_is_not_there_says_what_it_would_be(place, request_, part, stored, asked):
    found = ask(place, **request_)
    assert not found.exists
    assert (found.n_rows, found.runs) == (0, ())
    assert found.differences[0].differences == (Difference(part, stored, asked),)


def test_it_prints_itself_and_goes_to_json(place):
    found = ask(place, images=pictures())
    text = repr(found)
    assert "3 of 3 images have a row" in text
    assert "runs differ in batch_size: 2 | 1" in text
    assert "weights: random(seed=5) (" in text
    assert found.key in text
    assert json.loads(json.dumps(found.to_json()))["n_rows"] == 3


def test_nothing_is_written(place):
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    for mode in ("r", "a"):
        ask(place, mode=mode)
        ask(place, "alexnet", "features.0", weights="random", mode=mode)  # loaded to be explained
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before


def test_a_known_model_is_explained_without_torch(place):
    code = f"""
import sys
sys.modules["torch"] = sys.modules["torchvision"] = None
from featurestore.planning.explain import explain
from featurestore.storage.catalog import open_catalog
print(explain(open_catalog({str(place)!r}, "r"), {NAME!r}, {MODULE!r}, weights="random"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "3 images have a row" in done.stdout


def test_a_checkpoint_that_was_overwritten_shows_both_digests(tmp_path):
    path, root = tmp_path / "w.pth", tmp_path / "s.fstore"

    def save(seed):
        torch.manual_seed(seed)
        torch.save(torchvision.models.get_model(NAME, weights=None).state_dict(), path)

    save(0)
    old = fs.open_store(root).get(NAME, MODULE, pictures(), weights=path).attrs
    save(1)
    found = ask(root, weights=path)
    assert not found.exists
    (near,) = found.differences
    (difference,) = near.differences
    assert near.key == old["feature_key"]
    assert difference.part == "weights"
    assert old["weights_digest"][:12] in difference.stored
    assert found.parts["weights"][:12] in difference.asked
    assert found.parts["weights"] != old["weights_digest"]


def test_an_edited_network_shows_structure_or_weights(tmp_path):
    root = tmp_path / "s.fstore"
    fs.open_store(root).get(tiny_network(), MODULE, pictures())

    class Other(TinyNetwork):
        def forward(self, images):
            return super().forward(images * 2)

    same = wrap(Other(0), name="tiny", preprocess=tiny_transform, preprocess_id="tiny-v1")
    assert "structure" in parts(ask(root, same))[0]
    assert "weights" not in parts(ask(root, same))[0]
    assert parts(ask(root, tiny_network(1))) == [["weights"]]
    renamed = wrap(TinyNetwork(), name="tiny", preprocess=tiny_transform, preprocess_id="v2")
    ((part,),) = parts(ask(root, renamed))
    assert part.startswith("preprocessing.")


def test_a_lost_model_record_leaves_the_rest_comparable(tmp_path):
    root = tmp_path / "s.fstore"
    fs.open_store(root).get(tiny_network(), MODULE, pictures())
    for path in (root / "models").iterdir():
        path.unlink()
    (near,) = ask(root, tiny_network(1)).differences
    assert [difference.part for difference in near.differences] == ["model"]


def test_what_makes_no_sense_is_refused(place):
    with pytest.raises(InvalidInputError, match="not a model's name"):
        ask(place, 3, weights="DEFAULT")
    with pytest.raises(ModuleNotFoundInModelError, match="Did you mean"):
        ask(place, module="feature.0")
    with pytest.raises(InvalidInputError, match="brings its own weights"):
        ask(place, tiny_network(), weights="random")


def test_the_command_says_the_same(place):
    words = ["explain", NAME, MODULE, "--store", str(place), "--weights", "random"]
    plain = CliRunner().invoke(app, words)
    assert plain.exit_code == 0, plain.output
    assert repr(ask(place)) in plain.output
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).output)
    assert found["key"] == ask(place).key
