"""The command line, as a shell sees it."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "featurestore.cli.main"]


def run(*words, cwd, **options):
    return subprocess.run(
        [*PROGRAM, *map(str, words)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        **options,
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two pictures and a store filled from them."""
    import numpy as np
    from PIL import Image

    place = tmp_path_factory.mktemp("shell")
    (place / "stimuli").mkdir()
    rng = np.random.default_rng(0)
    for name in ("a.png", "b.png"):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(place / "stimuli" / name)
    words = ["get", "squeezenet1_1", "features.0", "stimuli", "--weights", "none", "--store", "s"]
    done = run(*words, cwd=place)
    assert done.returncode == 0, done.stderr
    assert "<xarray.DataArray 'features.0' (image: 2, channel: 64, y: 111, x: 111)>" in done.stdout
    return place


def test_plan_and_ls_report_for_people_and_programs_without_torch(place):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "from featurestore.cli.main import main; main()"
    )
    for words in (
        ["plan", "squeezenet1_1", "features.0", "stimuli", "--weights", "none", "--store", "s"],
        ["ls", "--store", "s"],
    ):
        shown = subprocess.run(
            [sys.executable, "-c", code, *words], cwd=place, capture_output=True, text=True,
            check=False,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        assert "features.0" in shown.stdout
        document = json.loads(run(*words, "--json", cwd=place).stdout)
        assert document
    assert (
        json.loads(run("ls", "--images", "--json", "--store", "s", cwd=place).stdout)[0]["label"]
        == "stimuli"
    )


def test_without_a_module_a_pipe_is_told_how_to_name_one(place):
    done = run("get", "squeezenet1_1", cwd=place)
    assert done.returncode == 2
    assert "featurestore modules squeezenet1_1" in done.stderr
    assert done.stdout == ""


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX terminal")
def test_without_a_module_a_terminal_shows_the_tree_and_asks(place):
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [*PROGRAM, "get", "squeezenet1_1", "--weights", "none", "--store", "s"],
        cwd=place,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    os.write(ours, b"features.0\nstimuli\n")
    screen = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:  # the terminal closes with its last process
            break
        if not part:
            break
        screen += part
    assert child.wait() == 0, screen.decode()
    assert b"features.0" in screen
    assert b"DataArray" in screen


def test_wrong_words_get_one_paragraph_and_an_exit_code(place):
    for words, code, says in (
        (["get", "alexnett", "x", "stimuli", "--weights", "none"], 1, "Did you mean 'alexnet'"),
        (["get", "squeezenet1_1", "features.00", "stimuli", "--weights", "none", "--store", "s"],
         1, "Did you mean"),
        (["get", "squeezenet1_1", "features.0", "nowhere", "--weights", "none"], 2, "nowhere"),
        (["ls", "--store", "nowhere"], 1, "no feature store"),
    ):  # fmt: skip
        done = run(*words, cwd=place)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("Error: ")
        assert says in done.stderr
        assert "Traceback" not in done.stderr


def test_several_pictures_and_the_word_none_are_understood(place):
    words = ["get", "squeezenet1_1", "features.0", "stimuli/a.png", "stimuli/b.png"]
    done = run(*words, "--weights", "none", "--readout", "none", "--store", "s", cwd=place)
    assert done.returncode == 0, done.stderr
    assert "image: 2" in done.stdout
    assert run("get", "squeezenet1_1", "features.0", cwd=place).returncode == 2


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
def test_ctrl_c_says_what_is_kept_and_the_same_command_goes_on(place, tmp_path):
    import numpy as np
    from PIL import Image

    (tmp_path / "many").mkdir()
    rng = np.random.default_rng(1)
    for n in range(150):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "many" / f"{n}.png")
    words = [*PROGRAM, "get", "squeezenet1_1", "features.12", "many", "--weights", "none"]
    child = subprocess.Popen(
        [*words, "--store", "s"], cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FEATURESTORE_COMMIT_INTERVAL_S": "0.05"},
    )  # fmt: skip
    while not list(tmp_path.glob("s/columns/*/image/c.*")):
        assert child.poll() is None, "it was done before it could be stopped"
    child.send_signal(signal.SIGINT)
    stderr = child.communicate()[1]
    assert child.returncode == 130
    assert "goes on from there" in stderr
    assert "Traceback" not in stderr
    plan = ["plan", *words[len(PROGRAM) + 1 :], "--store", "s", "--json"]
    assert 0 < json.loads(run(*plan, cwd=tmp_path).stdout)["n_missing"] < 150


def test_help_describes_every_command():
    shown = run("--help", cwd=Path.cwd()).stdout
    for command in ("get", "plan", "ls", "models", "modules", "demo"):
        assert command in shown
        assert "Usage" in run(command, "--help", cwd=Path.cwd()).stdout
