"""docs/geometry.md is true: its Python runs in order, and prints what it says it prints."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from tests.test_readme import BLOCK, BREAK, require_in_order

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
    blocks = BLOCK.findall(PAGE.read_text(encoding="utf-8"))
    code = [body for kind, body in blocks if kind == "python"]
    assert len(code) >= 8
    script = tmp_path / "geometry_page.py"
    script.write_text(f"print({BREAK!r})\n".join(code), encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("geometry_page")
    printed = iter(capsys.readouterr().out.split(BREAK))
    shown = ""
    for kind, body in blocks:
        if kind == "python":
            shown = next(printed)
        else:
            require_in_order(body, shown)
    for name in ("rdm.png", "scores.png", "modules.png", "arrangement.png"):
        assert (tmp_path / name).stat().st_size > 10_000
