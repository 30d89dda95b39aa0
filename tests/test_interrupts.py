"""Signals that stop an extraction: real ones, sent to a real process, at awkward moments."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

import featurestore as fs
from featurestore.errors import ExtractionInterrupted
from featurestore.extraction.interrupts import Interrupts
from featurestore.networks.sources.torch_network import TorchSession
from featurestore.testing.tiny import tiny_network
from tests.test_store import truth

pytestmark = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")

# Extracts when told to, announces one moment of it and dwells there, then says how it ended.
CHILD = """
import json, signal, sys, threading, time
import featurestore as fs
from featurestore.errors import ExtractionInterrupted
from featurestore.networks.sources.torch_network import TorchSession
from featurestore.storage.column import Column
from featurestore.testing.tiny import TinyNetwork, tiny_transform

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
counts, moment, third_batch = {}, None, threading.Event()

def reach(name):
    counts[name] = counts.get(name, 0) + 1
    if moment == f"{name} {counts[name]}":
        print("here", flush=True)
        end = time.monotonic() + 0.5
        while time.monotonic() < end:  # Python code, so that a signal is heard within
            time.sleep(0.01)

def transform(image):
    if moment == "decode 9" and image.size[0] == 48:
        third_batch.wait()
    reach("decode")
    return tiny_transform(image)

forward, publish = TorchSession.forward, Column.publish

def slow_forward(session, batch):
    reach("forward")
    rows = forward(session, batch)
    if counts["forward"] == 2:
        third_batch.set()
    return rows

def slow_publish(column, *words):
    while moment == "handing over 1" and counts.get("forward", 0) < 3:
        time.sleep(0.01)
    reach("handing over" if moment == "handing over 1" else "publish")
    publish(column, *words)

TorchSession.forward, Column.publish = slow_forward, slow_publish
net = fs.wrap(TinyNetwork(0), name="tiny", preprocess=transform, preprocess_id="tiny-v1")
fs.set_options(progress=False, n_decode_workers=1)
print("ready", flush=True)
for line in sys.stdin:
    task = json.loads(line)
    counts.clear()
    moment = task["moment"]
    before = [signal.getsignal(number) for number in SIGNALS]
    ended = {}
    with fs.set_options(**task["options"]):
        try:
            fs.open_store(task["store"]).get(net, "features.0", task["images"], batch_size=4)
        except ExtractionInterrupted as err:
            ended = {**err.facts, "says": str(err), "forwards": counts.get("forward", 0)}
    ended["restored"] = before == [signal.getsignal(number) for number in SIGNALS]
    print(json.dumps(ended), flush=True)
"""


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Sixteen pictures: four batches of four, those from the third on 48 pixels wide."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(16):
        pixels = rng.integers(0, 256, (40, 48 if number > 7 else 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def child(tmp_path_factory):
    program = tmp_path_factory.mktemp("child") / "child.py"
    program.write_text(CHILD)
    child = subprocess.Popen(
        [sys.executable, program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert child.stdout.readline() == "ready\n"
    yield child
    child.stdin.close()
    child.stdout.close()
    assert child.wait(20) == 0


@pytest.mark.parametrize(
    ("moment", "signals", "n_done", "options"),
    [
        ("decode 1", ["SIGTERM"], 0, {}),
        ("decode 9", ["SIGUSR1"], 8, {}),
        ("forward 1", ["SIGINT"], 4, {}),
        ("forward 2", ["SIGUSR1"], 8, {}),
        ("forward 2", ["SIGTERM", "SIGTERM"], 8, {}),
        ("forward 2", ["SIGINT", "SIGINT"], 4, {}),
        ("forward 2", ["SIGUSR1", "SIGTERM"], 4, {}),
        ("publish 1", ["SIGTERM"], 16, {}),
        ("publish 1", ["SIGINT", "SIGINT", "SIGINT"], 16, {}),
        # Memory for one batch only: the writer is busy, so the third waits to be handed over.
        ("handing over 1", ["SIGTERM"], 12, {"memory_budget": 4 * 4 * (3 + 8) * 32 * 32 * 4}),
    ],
    ids=lambda value: "+".join(value) if isinstance(value, list) else str(value),
)
def test_a_signal_ends_the_run_after_the_batch_at_hand_and_nothing_is_lost(
    child, images, tmp_path, monkeypatch, moment, signals, n_done, options
):
    task = {"store": str(tmp_path / "s"), "images": str(images), "moment": moment,
            "options": options}  # fmt: skip
    child.stdin.write(json.dumps(task) + "\n")
    child.stdin.flush()
    assert child.stdout.readline() == "here\n"
    for name in signals:
        child.send_signal(signal.Signals[name])
        time.sleep(0.1)  # two of a kind that are pending at once are one
    ended = json.loads(child.stdout.readline())
    assert ended["signal"] == signal.Signals[signals[0]]
    assert (ended["n_done"], ended["n_missing"]) == (n_done, 16 - n_done)
    assert ended["forwards"] <= n_done // 4 + 1
    assert ended["restored"]
    assert not list((tmp_path / "s").rglob(".tmp.*"))
    # Another process: every finished batch is there with its true values, the rest is computed.
    paths = sorted(images.iterdir())
    expected = truth({"path": paths}, "features.0", batch_size=4)
    if n_done:
        kept = fs.open_store(tmp_path / "s", mode="r")
        rows = kept.get(tiny_network(), "features.0", [str(path) for path in paths[:n_done]])
        np.testing.assert_array_equal(rows.values, expected[:n_done])
    forwards, real = [], TorchSession.forward
    monkeypatch.setattr(TorchSession, "forward", lambda *words: forwards.append(1) or real(*words))
    again = fs.open_store(tmp_path / "s").get(tiny_network(), "features.0", images, batch_size=4)
    np.testing.assert_array_equal(again.values, expected)
    assert len(forwards) == (16 - n_done) // 4


def drawn(folder, n):
    rng = np.random.default_rng(1)
    folder.mkdir()
    for number in range(n):
        pixels = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")


@pytest.mark.parametrize("name", ["SIGUSR1", pytest.param("SIGTERM", marks=pytest.mark.slow)])
def test_the_command_line_says_how_it_was_stopped_by_its_exit_code(tmp_path, name):
    drawn(tmp_path / "many", 150)
    child = subprocess.Popen(
        [sys.executable, "-m", "featurestore.cli.main", "get", "squeezenet1_1", "features.12",
         "many", "--weights", "none", "--store", "s"],
        cwd=tmp_path, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "FEATURESTORE_COMMIT_INTERVAL_S": "0.05"},
    )  # fmt: skip
    while not list(tmp_path.glob("s/columns/*/image/c.*")):
        assert child.poll() is None
        time.sleep(0.02)
    child.send_signal(signal.Signals[name])
    said = child.communicate(timeout=60)[1]
    assert child.returncode == 128 + signal.Signals[name]
    assert f"Stopped by {name}." in said
    assert "goes on from there" in said
    assert "Traceback" not in said


def installed():
    return [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)]


def test_handlers_are_there_only_while_extracting_also_after_an_error(
    images, tmp_path, monkeypatch
):
    before, during, real = installed(), [], TorchSession.forward

    def fail(session, batch):
        during.append(installed())
        if len(during) == 2:
            raise RuntimeError("broken")
        return real(session, batch)

    monkeypatch.setattr(TorchSession, "forward", fail)
    store = fs.open_store(tmp_path / "s")
    with pytest.raises(RuntimeError, match="broken"):
        store.get(tiny_network(), "features.0", images, batch_size=4)
    assert all(ours != theirs for ours, theirs in zip(during[0], before, strict=True))
    assert installed() == before


def test_an_error_is_not_hidden_by_a_signal_and_names_it(images, tmp_path, monkeypatch):
    def fail(session, batch):
        signal.raise_signal(signal.SIGTERM)
        raise RuntimeError("broken")

    monkeypatch.setattr(TorchSession, "forward", fail)
    with pytest.raises(RuntimeError, match="broken") as caught:
        fs.open_store(tmp_path / "s").get(tiny_network(), "features.0", images)
    assert any("SIGTERM" in note for note in caught.value.__notes__)


def test_another_thread_installs_nothing_and_extracts(images, tmp_path, monkeypatch):
    before, during, real = installed(), [], TorchSession.forward

    def look(session, batch):
        during.append(installed())
        return real(session, batch)

    monkeypatch.setattr(TorchSession, "forward", look)
    store = fs.open_store(tmp_path / "s")
    thread = threading.Thread(target=store.get, args=(tiny_network(), "features.0", images))
    thread.start()
    thread.join()
    assert during
    assert all(handlers == before for handlers in during)
    assert store.ls()[0].n_images == 16


def test_a_handler_of_the_user_is_respected(images, tmp_path, monkeypatch):
    heard, real = [], TorchSession.forward

    def send(session, batch):
        signal.raise_signal(signal.SIGUSR1)
        return real(session, batch)

    monkeypatch.setattr(TorchSession, "forward", send)
    before = signal.signal(signal.SIGUSR1, lambda number, _frame: heard.append(number))
    try:
        features = fs.open_store(tmp_path / "s").get(
            tiny_network(), "features.0", images, batch_size=4
        )
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert heard == [signal.SIGUSR1] * 4
    assert features.sizes["image"] == 16


@pytest.mark.parametrize("ignored", [signal.SIG_IGN, signal.SIG_DFL])
def test_an_ignored_or_deadly_ctrl_c_stays_what_it_was_made(ignored):
    before = signal.signal(signal.SIGINT, ignored)
    try:
        with Interrupts():
            assert signal.getsignal(signal.SIGINT) == ignored
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_stop_while_a_readout_is_derived_keeps_what_is_derived(images, tmp_path, monkeypatch):
    from featurestore.extraction import derive
    from featurestore.storage.column import Column

    store = fs.open_store(tmp_path / "s")
    expected = store.get(tiny_network(), "features.0", images).values.mean((2, 3))
    monkeypatch.setattr(derive, "READ_NBYTES", 1)  # one row at a time
    real = Column.append

    def append(*words, **options):
        real(*words, **options)
        signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Column, "append", append)
    with pytest.raises(ExtractionInterrupted, match="SIGTERM"):
        store.get(tiny_network(), "features.0", images, readout="avgpool")
    monkeypatch.setattr(Column, "append", real)
    plan = store.plan(tiny_network(), "features.0", images, readout="avgpool")
    assert len(plan.gaps[0].derive) == 15
    pooled = store.get(tiny_network(), "features.0", images, readout="avgpool").values
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)
