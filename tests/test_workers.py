"""Decoding in processes: decoders that die, hang or talk nonsense, and nothing left behind."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

import featurestore as fs
from featurestore.errors import ExtractionInterrupted, FeatureStoreError, ImageDecodeError
from featurestore.extraction.decoders import DecodeProcesses, decode_here
from featurestore.networks.sources.torch_network import TorchSession
from featurestore.policy import DecodePolicy
from featurestore.testing.tiny import tiny_network
from tests.images.pictures import encoded, exif, png, rgb, write
from tests.images.test_decode import FILES

POSIX = pytest.mark.skipif(os.name != "posix", reason="signals")
PROC = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks in /proc")

# Python runs a module of this name at its start; only the decoding processes find this one.
POISON = """
import os, signal, sys, time
from PIL import ImageFile

real = ImageFile.ImageFile.load

def load(image):
    deed = image.info.get("deed", "")
    if deed == "exit":
        os._exit(7)
    elif deed.startswith("SIG"):
        signal.signal(getattr(signal, deed), signal.SIG_DFL) if deed != "SIGKILL" else None
        os.kill(os.getpid(), getattr(signal, deed))
    elif deed == "sleep":
        time.sleep(3600)
    elif deed == "spin":
        while True:
            pass
    elif deed == "print":
        os.write(1, b"a library that talks" * 100)
        print("and more", flush=True)
    elif deed == "nonsense":
        for fd in range(3, 64):
            try:
                os.write(fd, b"nonsense" * 100)
            except OSError:
                pass
    elif deed == "once" and not os.path.exists(os.environ["POISON_ONCE"]):
        open(os.environ["POISON_ONCE"], "w").close()
        os._exit(1)
    return real(image)

ImageFile.ImageFile.load = load
"""


def deed(what, seed):
    text = PngInfo()
    text.add_text("deed", what)
    return encoded(rgb(seed, 20, 24), pnginfo=text)


@pytest.fixture
def poison(tmp_path, monkeypatch):
    """Make decoding processes do what a picture says."""
    home = write(tmp_path / "poison", {"sitecustomize.py": POISON.encode()})
    monkeypatch.setenv("PYTHONPATH", str(home))
    monkeypatch.setenv("POISON_ONCE", str(tmp_path / "once"))


@pytest.fixture(autouse=True)
def _two_processes(tmp_path):
    with fs.set_options(
        decode_workers="processes", n_decode_workers=2, cache_dir=tmp_path / "cache"
    ):
        yield


@pytest.fixture
def folder(tmp_path):
    return write(tmp_path / "stimuli", {f"{n:02d}.png": png(n) for n in range(12)})


@pytest.fixture
def store(tmp_path):
    return fs.open_store(tmp_path / "features.fstore")


def by_threads(tmp_path, folder):
    with fs.set_options(decode_workers="threads"):
        other = fs.open_store(tmp_path / "threads.fstore")
        return other.get(tiny_network(), "classifier", folder).load()


def workers(parent=None):
    """Process numbers of the decoding processes (of a parent)."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            command = (entry / "cmdline").read_bytes()
            fields = (entry / "stat").read_text().rpartition(")")[2].split()
        except (OSError, ValueError):
            continue
        ours = parent is None or int(fields[1]) == parent
        if b"featurestore.extraction.workers" in command and fields[0] != "Z" and ours:
            found.append(int(entry.name))
    return found


def eventually(condition, seconds=20.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return True
        time.sleep(0.02)
    return False


KILLERS = {
    "exit": "its decoder ended the process with exit status 7",
    "SIGSEGV": "its decoder was killed by signal 11 (SIGSEGV)",
    "SIGKILL": "its decoder was killed by signal 9 (SIGKILL, as the system does when memory runs "
    "out)",
    "nonsense": "its decoder gave an answer that makes no sense",
}


@POSIX
def test_pictures_that_kill_their_decoder_are_named_and_cost_nobody_else(
    store, folder, tmp_path, poison
):
    expected = by_threads(tmp_path, folder)
    for number, what in enumerate(KILLERS):
        write(folder, {f"0{number}-{what}.png": deed(what, 100 + number)})
    with pytest.raises(ImageDecodeError) as error:
        store.get(tiny_network(), "classifier", folder)
    assert error.value.failures == {
        f"0{number}-{what}.png": reason for number, (what, reason) in enumerate(KILLERS.items())
    }
    assert "12 others are kept" in str(error.value)
    with fs.set_options(decode_workers="threads"):  # without a decoder that dies
        features = store.get(tiny_network(), "classifier", folder)
    found = features.sel(image=expected["image"].values)
    np.testing.assert_array_equal(found.values, expected.values)


@POSIX
@pytest.mark.parametrize("what", ["sleep", "spin"])
def test_a_picture_that_takes_too_long_is_given_up_and_named(store, folder, poison, what):
    write(folder, {"05-slow.png": deed(what, 1)})
    with (
        fs.set_options(decode_timeout_s=1.5),
        pytest.raises(ImageDecodeError) as error,
    ):
        store.get(tiny_network(), "classifier", folder)
    reason = "its decoder took longer than 1.5 s (decode_timeout_s)"
    assert error.value.failures == {"05-slow.png": reason}
    assert store.ls()[0].n_images == 12


@POSIX
def test_a_picture_whose_decoder_died_by_accident_is_decoded_at_the_second_try(
    store, folder, tmp_path, poison, caplog
):
    write(folder, {"unlucky.png": deed("once", 1)})
    expected = by_threads(tmp_path, folder)
    with caplog.at_level(logging.WARNING, "featurestore"):
        features = store.get(tiny_network(), "classifier", folder)
    np.testing.assert_array_equal(features.values, expected.values)
    assert "'unlucky.png'" in caplog.text
    assert "exit status 1" in caplog.text


def test_a_library_that_prints_does_not_garble_the_pixels(store, folder, tmp_path, poison):
    write(folder, {"loud.png": deed("print", 1)})
    expected = by_threads(tmp_path, folder)
    features = store.get(tiny_network(), "classifier", folder)
    np.testing.assert_array_equal(features.values, expected.values)


def test_a_poisonous_picture_of_several_names_is_tried_once_and_named_by_all(
    store, folder, poison, caplog
):
    write(folder, {f"bad-{n}.png": deed("exit", 1) for n in range(5)})
    with pytest.raises(ImageDecodeError) as error:
        store.get(tiny_network(), "classifier", folder)
    assert sorted(error.value.failures) == [f"bad-{n}.png" for n in range(5)]
    assert caplog.text.count("tried once more") == 1


def test_a_process_that_cannot_start_is_no_fault_of_any_picture(
    store, folder, tmp_path, monkeypatch
):
    home = write(tmp_path / "broken", {"sitecustomize.py": b"import os; os._exit(3)"})
    monkeypatch.setenv("PYTHONPATH", str(home))
    with pytest.raises(FeatureStoreError, match=r"exit status 3.*decode_workers='threads'"):
        store.get(tiny_network(), "classifier", folder)
    monkeypatch.delenv("PYTHONPATH")
    assert store.get(tiny_network(), "classifier", folder).sizes["image"] == 12


def both_ways(images, policy=DecodePolicy()):  # noqa: B008 - frozen
    with DecodeProcesses(1) as processes:
        for position in range(len(images)):
            yield decode_here(images, position, policy), processes.decode(images, position, policy)


@pytest.mark.parametrize(
    "policy",
    [DecodePolicy(), DecodePolicy(exif="apply", alpha="grey", sixteen_bit="scale")],
    ids=["default", "chosen"],
)
def test_pixels_notes_and_what_lies_beside_them_are_those_of_threads(tmp_path, policy):
    files = {name.replace(" ", "/") + ".png": data for name, data in FILES.items()}
    files["frames.gif"] = encoded(
        Image.fromarray(rgb(1)).quantize(9),
        "GIF",
        save_all=True,
        append_images=[Image.fromarray(rgb(2)).quantize(9)],
        comment=b"\xff\x00",
        duration=[20, 30],
        loop=0,
    )
    files["dpi.tif"] = encoded(rgb(3), "TIFF", dpi=(300, 72.5))
    files["odd \U0001f41f\n\udcff.png"] = png(5)
    write(tmp_path, files)
    images = fs.read_images(
        [tmp_path / name for name in files], names=list(map(str, range(40)))[: len(files)]
    )
    for here, there in both_ways(images, policy):
        assert there.image.mode == here.image.mode == "RGB"
        assert there.image.size == here.image.size
        assert there.image.tobytes() == here.image.tobytes()
        assert there.notes == here.notes
        assert there.image.info == here.image.info
        assert dict(there.image.getexif()) == dict(here.image.getexif())


def test_pictures_in_memory_are_decoded_too(tmp_path):
    h5py = pytest.importorskip("h5py")
    stack = np.stack([rgb(n) for n in range(3)])
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["images"] = stack
    turned = Image.open(io.BytesIO(encoded(rgb(), "JPEG", exif=exif(6))))
    for source, options in (
        (stack, {}),
        ([turned], {}),
        (tmp_path / "a.h5", {"dataset": "images"}),
    ):
        images = fs.read_images(source, **options)
        for here, there in both_ways(images, DecodePolicy(exif="apply")):
            assert there.image.tobytes() == here.image.tobytes()
            assert there.notes == here.notes


def test_what_happened_to_a_file_meanwhile_is_said_as_by_threads(tmp_path):
    write(tmp_path, {f"{n}.png": png(n) for n in range(5)})
    images = fs.read_images(tmp_path)
    write(tmp_path, {"0.png": png(9)})
    for n in range(1, 5):
        (tmp_path / f"{n}.png").unlink()
    (tmp_path / "2.png").symlink_to("annex")
    (tmp_path / "3.png").mkdir()
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "4.png")
    with DecodeProcesses(1) as processes:
        for position in range(5):
            told = []
            for way in (decode_here, processes.decode):
                with pytest.raises(ImageDecodeError) as error:
                    way(images, position, DecodePolicy())
                told.append((error.value.failures, error.value.reason))
            assert told[0] == told[1]


def test_the_limits_of_this_process_hold_in_the_others(tmp_path):
    images = fs.read_images(write(tmp_path, {"a.png": png()}))
    with DecodeProcesses(1) as processes:
        with (
            fs.set_options(max_image_pixels=100),
            pytest.raises(ImageDecodeError, match="max_image_pixels=100"),
        ):
            processes.decode(images, 0, DecodePolicy())
        with (
            fs.set_options(memory_budget=100),
            pytest.raises(ImageDecodeError, match="memory_budget=100 B"),
        ):
            processes.decode(images, 0, DecodePolicy())
        assert processes.decode(images, 0, DecodePolicy()).image.size == (16, 12)


def test_a_decoding_process_loads_no_framework():
    code = (
        "import sys, featurestore.extraction.workers; "
        "print([n for n in ('torch', 'zarr', 'xarray', 'dask') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_stray_module_of_the_working_folder_is_not_taken_for_python_s(
    store, folder, tmp_path, monkeypatch
):
    write(tmp_path / "here", {"json.py": b"raise SystemExit(5)", "struct.py": b"boom"})
    monkeypatch.chdir(tmp_path / "here")
    assert store.get(tiny_network(), "classifier", folder).sizes["image"] == 12


@PROC
def test_signals_to_the_whole_group_do_not_stop_a_decoder(tmp_path):
    images = fs.read_images(write(tmp_path, {"a.png": png()}))
    with DecodeProcesses(1) as processes:
        processes.decode(images, 0, DecodePolicy())
        (one,) = workers(os.getpid())
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGHUP):
            os.kill(one, number)
        processes.decode(images, 0, DecodePolicy())
        assert workers(os.getpid()) == [one]
        assert os.getpgid(one) != os.getpgid(0)
    assert workers(os.getpid()) == []


@PROC
@pytest.mark.parametrize("end", ["normal", "bad picture", "bug", "interrupt"])
def test_no_process_outlives_a_run_however_it_ends(store, folder, monkeypatch, end):
    real = TorchSession.forward
    seen = []

    def forward(session, batch):
        if len(batch) == 4:  # not while probing
            seen.append(len(workers(os.getpid())))
            if end == "bug":
                raise ZeroDivisionError
            if end == "interrupt":
                raise KeyboardInterrupt
        return real(session, batch)

    monkeypatch.setattr(TorchSession, "forward", forward)
    if end == "bad picture":
        write(folder, {"bad.png": b"no picture"})
    expected = {
        "bad picture": ImageDecodeError,
        "bug": ZeroDivisionError,
        "interrupt": ExtractionInterrupted,
    }
    if end == "normal":
        store.get(tiny_network(), "classifier", folder, batch_size=4)
    else:
        with pytest.raises(expected[end]):
            store.get(tiny_network(), "classifier", folder, batch_size=4)
    assert 1 <= max(seen) <= 2
    assert workers(os.getpid()) == []


@PROC
def test_a_stop_does_not_wait_for_a_decoder_that_hangs(store, folder, poison, monkeypatch):
    write(folder, {"99-slow.png": deed("sleep", 1)})
    real = TorchSession.forward

    def forward(session, batch):
        if len(batch) == 4:
            assert eventually(lambda: len(workers(os.getpid())) >= 1)
            raise KeyboardInterrupt
        return real(session, batch)

    monkeypatch.setattr(TorchSession, "forward", forward)
    start = time.monotonic()
    with pytest.raises(ExtractionInterrupted):
        store.get(tiny_network(), "classifier", folder, batch_size=4)
    assert time.monotonic() - start < 20  # of 60
    assert workers(os.getpid()) == []


PARENT = """
import sys, threading
import featurestore as fs
from featurestore.extraction.decoders import DecodeProcesses
from featurestore.policy import DecodePolicy

images = fs.read_images(sys.argv[1])
with fs.set_options(decode_timeout_s=3), DecodeProcesses(2) as processes:
    processes.decode(images, 0, DecodePolicy())
    hang = lambda: processes.decode(images, 1, DecodePolicy())
    threading.Thread(target=hang, daemon=True).start()
    print("ready", flush=True)
    threading.Event().wait()
"""


@PROC
def test_no_process_outlives_a_parent_that_was_killed(tmp_path, poison):
    write(tmp_path / "set", {"a.png": png(), "b.png": deed("spin", 1)})
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    with subprocess.Popen(
        [sys.executable, script, tmp_path / "set"],
        stdout=subprocess.PIPE,
        env=os.environ
        | {"PYTHONPATH": f"{os.environ['PYTHONPATH']}:{Path(fs.__file__).parents[1]}"},
    ) as parent:
        assert parent.stdout.readline() == b"ready\n"
        assert eventually(lambda: workers(parent.pid))
        children = workers(parent.pid)
        parent.kill()
    assert eventually(lambda: not set(children) & set(workers()))
