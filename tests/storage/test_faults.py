"""Every call that changes the disk fails once, at each place, and is the last one once."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import featurestore
from tests.storage.operations import OPERATIONS, Template, lose_power, try_failing

ROOT = Path(__file__).parents[2]

# Every call in the slow tests; in the quick ones some of them, others in each mode.
QUICK = 29
quick_or_every = pytest.mark.parametrize(
    "every", [QUICK, pytest.param(1, marks=pytest.mark.slow)], ids=["some", "every"]
)
every_operation = pytest.mark.parametrize("name", OPERATIONS)


@quick_or_every
@pytest.mark.parametrize("mode", ["EIO", "ENOSPC", "half", "late"])
@every_operation
def test_whatever_call_fails_nothing_is_lost_or_wrong_and_the_next_try_completes(
    tmp_path, name, mode, every
):
    template, k = Template(OPERATIONS[name], tmp_path), 1 + len(name + mode) % every
    while try_failing(OPERATIONS[name], tmp_path, mode, k, template):
        k += every
    assert k > (2 if mode == "half" else 9)


@pytest.mark.parametrize(
    ("modes", "every"),
    [
        (["exit before"], QUICK),
        pytest.param(["exit before", "exit after"], 1, marks=pytest.mark.slow),
    ],
    ids=["some", "every"],
)
def test_whatever_call_is_the_last_before_the_process_ends_the_next_one_completes(modes, every):
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.children", "exits",
         "--every", str(every), "--modes", *modes],
        cwd=ROOT, capture_output=True, text=True, timeout=550,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    counts = json.loads(done.stdout)
    assert len(counts) == len(modes) * len(OPERATIONS)
    assert min(counts.values()) > 9


@quick_or_every
@pytest.mark.parametrize("all_names", [False, True], ids=["least", "most"])
@every_operation
def test_what_was_acknowledged_outlives_the_loss_of_power_at_any_call(
    tmp_path, name, all_names, every
):
    n_calls = lose_power(OPERATIONS[name], tmp_path, all_names=all_names, every=every)
    assert n_calls > 9


CHANGING = re.compile(
    r"\bos\.(write|fsync|link|symlink|replace|rename|remove|unlink|mkdir|makedirs|rmdir|truncate)\b"
    r"|(?<!disk)\.(unlink|mkdir|rmdir|touch|write_bytes|write_text|hardlink_to|symlink_to)\("
    r"|\bO_(WRONLY|RDWR|CREAT|APPEND|TRUNC)\b"
    r"|open\([^)]*[\"'][rb]*[wax+]"
    r"|\bshutil\.(rmtree|move|copy)"
)


def test_only_one_module_changes_what_is_on_the_disk():
    folder = Path(featurestore.__file__).parent / "storage"
    found = {path.name: CHANGING.findall(path.read_text("utf-8")) for path in folder.glob("*.py")}
    assert [name for name, calls in found.items() if calls] == ["disk.py"]
