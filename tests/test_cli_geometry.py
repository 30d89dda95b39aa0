"""``featurestore rdm`` and ``featurestore compare``, as a shell sees them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from scipy.spatial.distance import pdist, squareform
from typer.testing import CliRunner

import featurestore as fs
from featurestore.cli.main import app

REQUEST = ["squeezenet1_1", "features.0", "stimuli", "--weights", "none", "--store", "s"]


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A folder with six pictures of two categories and a store with two modules of them."""
    from PIL import Image

    place = tmp_path_factory.mktemp("shell")
    rng = np.random.default_rng(0)
    for name in ("animal/1.png", "animal/2.png", "animal/3.png", "tool/4.png", "tool/5.png",
                 "tool/a, b.png"):  # fmt: skip
        path = place / "stimuli" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((64, 64)).save(path)
    store = fs.open_store(place / "s")
    modules = ["features.0", "features.2"]
    store.get_many("squeezenet1_1", modules, place / "stimuli", weights="random", progress=False)
    return place


@pytest.fixture
def shell(filled, tmp_path, monkeypatch):
    """A copy of that folder, and a function that runs a command in it."""
    place = tmp_path / "place"
    shutil.copytree(filled, place)
    monkeypatch.chdir(place)

    def run(*words):
        return CliRunner().invoke(app, [str(word) for word in words])

    return run


def features(module="features.0"):
    store = fs.open_store("s", mode="r")
    return store.get("squeezenet1_1", module, "stimuli", weights="random", load=True)


def expected(module="features.0", metric="correlation"):
    array = features(module)
    flat = array.values.reshape(len(array), -1).astype(np.float64)
    return list(array["image"].values), squareform(pdist(flat, metric))


def test_an_rdm_is_printed_written_and_drawn_without_torch(shell):
    # A finder that refuses: None in sys.modules would trip SciPy, which looks there for torch.
    code = (
        "import sys\n"
        "class Refusal:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'torchvision'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Refusal())\n"
        "from featurestore.cli.main import main; main()"
    )
    words = [*REQUEST, "--out", "rdm.nc", "--plot", "rdm.png", "--thumbnails"]
    done = subprocess.run(
        [sys.executable, "-c", code, "rdm", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "(image: 6, image_2: 6)" in done.stdout
    assert done.stdout.endswith("Wrote rdm.nc\nWrote rdm.png\n")
    assert Path("rdm.png").read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
    with xr.open_dataarray("rdm.nc", engine="scipy") as rdm:
        assert rdm.attrs["weights"] == "random(seed=0)"
        assert list(rdm["category"].values) == ["animal"] * 3 + ["tool"] * 3


def test_what_is_written_is_what_scipy_computes_and_is_read_back_with_names(shell):
    names, values = expected()
    for file in ("rdm.nc", "rdm.csv", "rdm.npy"):
        assert shell("rdm", *REQUEST, "--out", file).exit_code == 0
    with xr.open_dataarray("rdm.nc", engine="scipy") as rdm:
        np.testing.assert_allclose(rdm.values, values, rtol=2e-6)
        assert list(rdm["image"].values) == list(rdm["image_2"].values) == names
    table = fs.read_rdms("rdm.csv")
    np.testing.assert_allclose(table.sel(image=names, image_2=names), values, rtol=2e-6)
    plain = fs.read_rdms("rdm.npy", names="rdm.names.txt")
    np.testing.assert_allclose(plain.sel(image=names, image_2=names), values, rtol=2e-6)


def test_options_reach_the_numbers(shell):
    shell("rdm", *REQUEST, "--metric", "euclidean", "--out", "rdm.csv")
    np.testing.assert_allclose(fs.read_rdms("rdm.csv"), expected(metric="euclidean")[1], rtol=2e-6)
    squared = expected(metric="sqeuclidean")[1]
    wide = ["--metric", "gaussian", "--bandwidth", "1e5"]
    document = json.loads(shell("rdm", *REQUEST, *wide, "--out", "rdm.csv", "--json").stdout)
    np.testing.assert_allclose(fs.read_rdms("rdm.csv"), 1 - np.exp(-squared / 1e5), rtol=2e-6)
    assert document["bandwidth"] == 1e5
    assert document["written"] == ["rdm.csv"]
    json_of = json.loads(shell("rdm", *REQUEST, "--readout", "avgpool", "--json").stdout)
    assert json_of["readout"] == "avgpool"
    assert json_of["n_features"] == 64


def test_several_modules_stay_labelled_and_need_a_file_that_can_say_so(shell):
    several = ["squeezenet1_1", "features.0, features.2", *REQUEST[2:]]
    done = shell("rdm", *several, "--out", "both.nc", "--plot", "both.svg")
    assert done.exit_code == 0, done.stderr
    with xr.open_dataarray("both.nc", engine="scipy") as both:
        for module in ("features.0", "features.2"):
            one = both.sel(module=module)
            np.testing.assert_allclose(one, expected(module)[1], rtol=2e-6)
    for suffix in ("csv", "npy"):
        refused = shell("rdm", *several, "--out", f"both.{suffix}")
        assert refused.exit_code == 2
        assert "'both.nc'" in refused.stderr
    shell("rdm", *REQUEST, "--out", "one.csv")
    document = json.loads(shell("rdm", *several, "--json").stdout)
    assert document["modules"] == ["features.0", "features.2"]
    assert document["shape"] == [2, 6, 6]
    scores = json.loads(shell("compare", "both.nc", "one.csv", "--json").stdout)["scores"]
    assert [row["rdm"] for row in scores] == ["both features.0", "both features.2"]
    assert scores[0]["score"] == pytest.approx(1, abs=1e-6)
    assert scores[1]["score"] < 0.999


def test_images_are_known_by_the_label_of_their_set_when_the_folder_is_gone(shell):
    names, values = expected()
    shutil.rmtree("stimuli")
    done = shell("rdm", *REQUEST, "--out", "rdm.csv")
    assert done.exit_code == 0, done.stderr
    np.testing.assert_allclose(
        fs.read_rdms("rdm.csv").sel(image=names, image_2=names), values, rtol=2e-6
    )


def test_labels_that_a_file_cannot_hold_are_an_error_that_says_what_to_do(shell):
    store = fs.open_store("s")
    images = fs.read_images("stimuli").assign_coords(number=[2**40 + k for k in range(6)])
    numbered = images[[0, 2, 3, 5]]  # a set of its own, with its own label
    store.get("squeezenet1_1", "features.0", numbered, weights="random")
    words = ["squeezenet1_1", "features.0", numbered.label, *REQUEST[3:]]
    refused = shell("rdm", *words, "--out", "rdm.nc")
    assert refused.exit_code == 2, refused.output
    assert ".csv" in refused.stderr
    assert shell("rdm", *words, "--out", "rdm.csv").exit_code == 0
    assert fs.read_rdms("rdm.csv").sizes["image"] == 4


@pytest.mark.parametrize("order", ["none", "category", "cluster", "digest"])
def test_pictures_in_several_orders(shell, order):
    done = shell("rdm", *REQUEST, "--plot", "rdm.svg", "--order", order, "--max-images", "4")
    assert done.exit_code == 0, done.stderr
    drawn = Path("rdm.svg").read_text(encoding="utf-8")
    assert ("<!-- animal -->" in drawn) == (order == "category")
    assert ("<!-- cluster 0 -->" in drawn) == (order == "cluster")
    assert "4 of 6 images shown" in drawn


@pytest.mark.parametrize(
    ("words", "code", "says"),
    [
        (["--metric", "corelation"], 2, "Did you mean 'correlation'"),
        (["--bandwidth", "mean"], 2, "gaussian"),
        (["--out", "rdm.xlsx"], 2, ".nc, .csv, .npy"),
        (["--out", "nowhere/rdm.nc"], 2, "nowhere"),
        (["--plot", "rdm.gif"], 2, ".png"),
        (["--plot", "rdm.png", "--scaling", "log"], 2, "rank"),
        (["--order", "cluster"], 2, "--plot rdm.png"),
        (["--plot", "rdm.png", "--order", "colour"], 2, "colour"),
        (["--seed", "7", "--store", "nowhere", "--readout", "mean"], 2, "mean"),
    ],
)
def test_wrong_words_of_rdm_get_one_paragraph_and_an_exit_code(shell, words, code, says):
    done = shell("rdm", *REQUEST, *words)
    assert done.exit_code == code, done.output
    assert done.stderr.splitlines()[0].startswith("Error: ")
    assert says in done.stderr


@pytest.fixture
def rdms(tmp_path, monkeypatch):
    """Files in another order each: two models, and a target of three subjects."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    names = [f"{n}.png" for n in range(8)]
    points = rng.normal(size=(8, 3))
    truth = squareform(pdist(points))
    noise = np.array([squareform(rng.random(28)) for _ in range(3)])
    subjects = truth + noise
    order = rng.permutation(8)
    np.save("brain.npy", subjects[:, order][:, :, order])
    text = "".join(f"{names[k]}\n" for k in order)
    (tmp_path / "brain.names.txt").write_text(text)
    good = fs.read_rdms(truth, names=names)
    good.to_pandas().rename_axis(None).to_csv("good.csv")
    bad = fs.read_rdms(squareform(rng.random(28)), names=names)
    bad.to_netcdf("bad.nc", engine="scipy")
    return {
        "good": good, "bad": bad, "brain": fs.read_rdms(subjects, names=names, dims="subject")
    }  # fmt: skip


def run(*words):
    return CliRunner().invoke(app, [str(word) for word in words])


@pytest.mark.parametrize("method", ["pearson", "spearman", "tau-a"])
def test_scores_and_ceiling_are_those_of_the_library_matched_by_name(rdms, method):
    done = run("compare", "good.csv", "bad.nc", "brain.npy", "--method", method, "--json")
    assert done.exit_code == 0, done.stderr
    document = json.loads(done.stdout)
    for row, name in zip(document["scores"], ("good", "bad"), strict=True):
        scores = fs.compare_rdms(rdms[name], rdms["brain"], method=method)
        assert row["rdm"] == name
        assert row["score"] == pytest.approx(float(scores.mean()))
        assert row["standard_error"] == pytest.approx(float(scores.std(ddof=1)) / 3**0.5)
    ceiling = fs.noise_ceiling(rdms["brain"], method=method)
    assert document["noise_ceiling"]["lower"] == pytest.approx(float(ceiling.lower))
    assert document["noise_ceiling"]["upper"] == pytest.approx(float(ceiling.upper))
    assert (document["n_images"], document["n_pairs"], document["n_subjects"]) == (8, 28, 3)


def test_people_see_a_table_with_the_ceiling(rdms):
    done = run("compare", "good.csv", "bad.nc", "brain.npy", "--plot", "scores.pdf")
    ceiling = fs.noise_ceiling(rdms["brain"])
    mean = float(fs.compare_rdms(rdms["good"], rdms["brain"]).mean())
    header, good, bad, bounds, facts, wrote = done.stdout.splitlines()
    assert header.split("  ")[0] == "rdm"
    assert header.endswith("with brain  ± SEM")
    assert good.split()[:2] == ["good", f"{mean:.3f}"]
    assert bad.startswith("bad ")
    assert bounds.split() == [
        "noise", "ceiling", f"{float(ceiling.lower):.3f}", "to", f"{float(ceiling.upper):.3f}"
    ]  # fmt: skip
    assert facts == "pearson, 8 images, 28 pairs; mean over 3 subjects"
    assert wrote == "Wrote scores.pdf"


def test_the_rdms_of_one_file_are_compared_with_each_other(rdms):
    document = json.loads(run("compare", "brain.npy", "--json").stdout)
    assert document["rdms"] == ["subject 0", "subject 1", "subject 2"]
    np.testing.assert_allclose(document["scores"], fs.compare_rdms(rdms["brain"]).values)
    shown = run("compare", "brain.npy", "--plot", "matrix.png").stdout
    assert shown.splitlines()[0].split() == ["rdm", "subject", "0", "subject", "1", "subject", "2"]


def test_names_of_pictures_may_be_given_for_all_files_without(rdms, tmp_path):
    (tmp_path / "brain.names.txt").rename("order.txt")
    lacking = run("compare", "good.csv", "brain.npy")
    assert lacking.exit_code == 2
    assert "--names" in lacking.stderr
    given = run("compare", "good.csv", "bad.nc", "brain.npy", "--names", "order.txt", "--json")
    scores = fs.compare_rdms(rdms["good"], rdms["brain"])
    assert json.loads(given.stdout)["scores"][0]["score"] == pytest.approx(float(scores.mean()))


def test_other_images_are_an_error_unless_only_shared_ones_are_asked_for(rdms):
    part = [f"{n}.png" for n in (5, 1, 2, 3, 0)]
    rdms["good"].sel(image=part, image_2=part).to_netcdf("part.nc", engine="scipy")
    refused = run("compare", "part.nc", "bad.nc", "brain.npy")
    assert refused.exit_code == 2
    assert refused.stderr.startswith("Error: ")
    document = json.loads(
        run("compare", "part.nc", "bad.nc", "brain.npy", "--join", "inner", "--json").stdout
    )
    shared = {name: rdm.sel(image=part, image_2=part) for name, rdm in rdms.items()}
    for row, name in zip(document["scores"], ("good", "bad"), strict=True):
        scores = fs.compare_rdms(shared[name], shared["brain"])
        assert row["score"] == pytest.approx(float(scores.mean()))
    ceiling = fs.noise_ceiling(shared["brain"])
    assert document["noise_ceiling"]["lower"] == pytest.approx(float(ceiling.lower))
    assert document["n_images"] == 5


def test_leading_axes_are_what_dims_says(rdms):
    run_as_module = run("compare", "good.csv", "brain.npy", "--dims", "module", "--json")
    document = json.loads(run_as_module.stdout)
    scores = fs.compare_rdms(rdms["good"], rdms["brain"]).values
    assert [row["score"] for row in document["scores"]] == pytest.approx(list(scores))
    assert "noise_ceiling" not in document
    shown = run("compare", "good.csv", "brain.npy", "--dims", "module").stdout
    assert "module 2" in shown.splitlines()[0]


def test_pairs_without_a_value_are_counted(rdms):
    holed = rdms["bad"].copy()
    holed.values[0, 1] = holed.values[1, 0] = np.nan
    holed.to_netcdf("holed.nc", engine="scipy")
    shown = run("compare", "holed.nc", "good.csv")
    assert "1 pairs have no value" in shown.stdout
    assert json.loads(run("compare", "holed.nc", "good.csv", "--json").stdout)["n_dropped"] == 1


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["good.csv"], "nothing to compare it with"),
        (["good.csv", "missing.nc"], "missing.nc"),
        (["good.csv", "missing.npy"], "missing.npy"),
        (["good.csv", "brain.npy", "--method", "spearmn"], "Did you mean 'spearman'"),
        (["good.csv", "brain.npy", "--join", "iner"], "inner"),
        (["good.csv", "brain.npy", "--dims", "a,b"], "dims"),
        (["good.csv", "brain.npy", "--plot", "scores.bmp"], ".png"),
        (["good.csv", "brain.names.txt"], "brain.names.txt"),
        (["good.csv", "text.nc"], "text.nc"),
    ],
)
def test_wrong_words_of_compare_get_one_paragraph(rdms, tmp_path, words, says):
    (tmp_path / "text.nc").write_text("no netCDF")
    done = run("compare", *words)
    assert done.exit_code == 2, done.output
    assert done.stderr.startswith("Error: ")
    assert says in done.stderr


def test_help_has_an_example_each():
    for command in ("rdm", "compare"):
        shown = " ".join(run(command, "--help").stdout.split())
        assert f"Example: featurestore {command} alexnet" in shown
    assert "rdm" in run("--help").stdout
