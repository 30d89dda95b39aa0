"""docs/geometry.md is true: its Python runs in order, and prints what it says it prints."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.test_readme import require_true

PAGE = Path(__file__).parent.parent / "docs" / "geometry.md"


@pytest.fixture
def _in_a_folder_with_stimuli(tmp_path, monkeypatch):
    demo = importlib.import_module("featurestore.cli.demo")
    for package in ("skimage", "sklearn", "matplotlib"):
        pytest.importorskip(package, reason="needs the demo's photographs")
    demo.collect(tmp_path / "stimuli")
    monkeypatch.chdir(tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("_in_a_folder_with_stimuli")
def test_the_page_on_geometry_runs_and_prints_what_it_says(tmp_path, capsys, monkeypatch):
    for package in ("torch", "rsatoolbox"):
        pytest.importorskip(package)
    require_true(PAGE, "geometry_page", 8, tmp_path, capsys, monkeypatch)
    for name in ("rdm.png", "scores.png", "modules.png", "arrangement.png"):
        assert (tmp_path / name).stat().st_size > 10_000
