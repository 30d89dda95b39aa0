"""Writers are killed at random moments: a short run of ``benchmarks/kill_loop.py``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="forks its writers")
@pytest.mark.parametrize("compact", [False, True], ids=["writers", "and a compactor"])
def test_after_each_kill_all_acknowledged_rows_are_there_and_all_visible_rows_are_true(compact):
    # In a process without torch, which may fork.
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.children", "kills", "--rounds", "12"]
        + ["--compact"] * compact,
        cwd=ROOT, capture_output=True, text=True, timeout=100,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome["kills"] == 12
    assert outcome["acknowledged"] > 100
    assert [outcome[name] for name in ("lost", "wrong", "damaged", "repairs")] == [0, 0, 0, 0]
