"""The example script draws Figure 2, and its numbers are those that others computed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import pdist
from scipy.stats import pearsonr

SCRIPT = Path(__file__).parent.parent / "examples" / "figure2.py"


@pytest.fixture(scope="module")
def figure2():
    for package in ("torch", "timm", "skimage", "sklearn", "matplotlib"):
        pytest.importorskip(package, reason="needs what the demo needs")
    spec = importlib.util.spec_from_file_location("figure2", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def drawn(folder):
    return sorted(path.name for path in folder.glob("figure2?.*"))


@pytest.mark.slow
def test_without_a_dataset_photographs_are_compared_with_their_categories(
    figure2, tmp_path, monkeypatch, capsys
):
    monkeypatch.delenv("FEATURESTORE_DATA_92", raising=False)
    words = ["--out", tmp_path, "--models", "squeezenet1_1", "--seeds", "2"]
    words += ["--modules", "squeezenet1_1=features.12", "--order", "cluster", "--format", "pdf"]
    table = figure2.main([str(word) for word in words])
    printed = capsys.readouterr().out
    assert "without behaviour and brain" in printed
    assert table.to_string() in printed
    assert list(table.columns) == ["category"]
    assert drawn(tmp_path) == ["figure2A.pdf", "figure2B.pdf"]
    random = table.loc[("random", "squeezenet1_1"), "category"]
    assert random.count("±") == 1
    # The pixels' score, by SciPy from the files.
    from PIL import Image

    files = sorted((tmp_path / "photographs").rglob("*.*"))
    pixels = [np.asarray(Image.open(f).convert("RGB").resize((64, 64)), float) for f in files]
    kinds = [file.parent.name for file in files]
    differ = [a != b for k, a in enumerate(kinds) for b in kinds[k + 1 :]]
    distances = pdist(np.reshape(pixels, (len(files), -1)), "correlation")
    expected = pearsonr(distances, differ).statistic
    assert table.loc[("no network", "raw pixels"), "category"] == f"{expected:.3f}"


@pytest.mark.slow
def test_on_the_92_images_the_numbers_are_those_of_the_toolboxes(
    figure2, data_92, tmp_path, capsys
):
    words = [data_92, "--out", tmp_path, "--method", "spearman", "--seeds", "2"]
    table = figure2.main([*map(str, words), "--models", "alexnet", "efficientnet_lite0"])
    capsys.readouterr()
    # Noise ceilings of rsatoolbox; scores as they were computed from its RDMs with SciPy.
    assert list(table.loc[("noise ceiling", "")])[:2] == ["0.477 to 0.577", "0.372 to 0.666"]
    anchors = {
        "monkey IT": (0.271, 0.296), "animacy": (0.378, 0.386), "HMAX": (0.161, 0.160),
        "V1": (0.069, 0.027), "raw pixels": (0.101, 0.079),
    }  # fmt: skip
    for name, expected in anchors.items():
        found = table.loc[("no network", name), ["behaviour", "human IT"]].astype(float)
        assert tuple(found) == pytest.approx(expected, abs=0.0011), name
    found = float(table.loc[("no network", "monkey IT"), "human IT, mean RDM"])
    assert found == pytest.approx(0.44, abs=0.005)
    trained = table.loc[("trained", "efficientnet_lite0")]
    assert float(trained["behaviour"]) == pytest.approx(0.244, abs=0.003)
    assert float(trained["human IT"]) == pytest.approx(0.171, abs=0.003)
    random = table.loc[("random", "alexnet"), ["behaviour", "human IT"]]
    means = [float(text.split(" ± ")[0]) for text in random]
    assert means == pytest.approx([0.112, 0.112], abs=0.003)
    assert drawn(tmp_path) == ["figure2A.png", "figure2B.png", "figure2C.png"]
