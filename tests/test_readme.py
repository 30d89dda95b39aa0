"""The README is true: its Python runs in order, and prints what it says it prints."""

from __future__ import annotations

import importlib
import re
import shutil
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
BREAK = "<next block>"
BLOCK = re.compile(r"```(python|text)\n(.*?)```", re.DOTALL)


@pytest.fixture
def _in_a_folder_with_stimuli(photos, tmp_path, monkeypatch):
    places = {
        "animal": ["chelsea.png"],
        "person": ["astronaut.png"],
        "thing": ["coffee.png", "rocket.jpg"],
    }
    for category, names in places.items():
        (tmp_path / "stimuli" / category).mkdir(parents=True)
        for name in names:
            shutil.copyfile(photos / name, tmp_path / "stimuli" / category / name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def _without_downloads(monkeypatch):
    # Tests have no network: published weights are replaced by random ones of the same shape.
    import torch
    import torchvision

    from featurestore.networks.sources import torchvision as source

    def random_weights(member):
        builder = torchvision.models.get_model_builder
        name = type(member).__name__.removesuffix("_Weights").lower()
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            return builder(name)(weights=None).state_dict()

    monkeypatch.setattr(source, "_download", random_weights)


@pytest.mark.usefixtures("_in_a_folder_with_stimuli", "_without_downloads")
def test_the_readme_runs_and_prints_what_it_says(tmp_path, capsys, monkeypatch):
    require_true(README, "readme_example", 5, tmp_path, capsys, monkeypatch)


def require_true(page, name, n_blocks, tmp_path, capsys, monkeypatch):
    """Run the Python of a page in order, and compare what it prints."""
    blocks = BLOCK.findall(page.read_text(encoding="utf-8"))
    code = [body for kind, body in blocks if kind == "python"]
    assert len(code) >= n_blocks
    # A real module, as a user's script is: wrapped networks are known by their source.
    script = tmp_path / f"{name}.py"
    script.write_text(f"print({BREAK!r})\n".join(code), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module(name)
    printed = iter(capsys.readouterr().out.split(BREAK))
    shown = ""
    for kind, body in blocks:
        if kind == "python":
            shown = next(printed)
        else:
            _require_in_order(body, shown)


def _require_in_order(expected: str, printed: str) -> None:
    """Every part between ellipses stands in what was printed, in that order."""
    at = 0
    for part in expected.split("..."):
        words = " ".join(part.split())
        found = " ".join(printed.split()).find(words, at)
        assert found >= 0, f"The README says it prints\n{part}\nand it printed\n{printed}"
        at = found + len(words)
