"""Checkpoints from strangers: nothing in them runs, and what they claim is not believed."""

from __future__ import annotations

import io
import json
import pickle
import struct
import subprocess
import sys
import tarfile
import zipfile

import pytest
import safetensors.torch
import torch
from torch import nn

from featurestore.errors import InvalidInputError
from featurestore.networks.checkpoints import read_checkpoint
from featurestore.networks.weights import weights_digest


class Payload:
    """Makes a file when it is unpickled, by way of several functions."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def payloads(place):
    import os
    import pathlib

    yield Payload(os.mkdir, str(place / "mkdir"))
    yield Payload(exec, f"open({str(place / 'exec')!r}, 'w')")
    yield Payload(eval, f"open({str(place / 'eval')!r}, 'w')")
    yield Payload(os.system, f"touch {place / 'system'}")
    yield Payload(pathlib.Path.touch, place / "touch")
    yield Payload(torch.save, [1], str(place / "torch-save"))
    yield Payload(torch.hub.download_url_to_file, "file:///etc/hostname", str(place / "hub"))
    yield Payload(__import__, "this")


def zipped(content):
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def legacy(content):
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=False)
    return file.getvalue()


def plain_pickle(content):
    return pickle.dumps(content)


def tarred(content):
    """Make the format of 2016: a tar of pickles."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            data = pickle.dumps(content)
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return file.getvalue()


def swapped(content):
    """A real checkpoint with another pickle in its archive."""
    good, file = io.BytesIO(zipped({"weight": torch.ones(2)})), io.BytesIO()
    with zipfile.ZipFile(good) as old, zipfile.ZipFile(file, "w") as new:
        for name in old.namelist():
            data = pickle.dumps(content) if name.endswith("data.pkl") else old.read(name)
            new.writestr(name, data)
    return file.getvalue()


@pytest.mark.parametrize("number", range(8))
@pytest.mark.parametrize("suffix", [".pth", ".ckpt", ".bin", ".safetensors", ""])
@pytest.mark.parametrize("spell", [zipped, legacy, plain_pickle, tarred, swapped])
def test_no_payload_of_any_format_runs(spell, suffix, number, tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    payload = list(payloads(target))[number]
    was_imported = "this" in sys.modules
    for content in (payload, {"state_dict": {"weight": torch.ones(2), "bias": payload}}):
        path = tmp_path / f"net{suffix}"
        path.write_bytes(spell(content))
        with pytest.raises(InvalidInputError, match=r"net"):
            read_checkpoint(path)
    assert list(target.iterdir()) == []
    assert ("this" in sys.modules) == was_imported


def test_the_payloads_are_real(tmp_path):
    """Otherwise the test above would show nothing."""
    path = tmp_path / "net.pth"
    path.write_bytes(zipped(Payload(exec, f"open({str(tmp_path / 'proof')!r}, 'w')")))
    code = f"import torch; torch.load({str(path)!r}, weights_only=False)"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=False, capture_output=True)
    assert (tmp_path / "proof").exists()


@pytest.mark.parametrize("content", [nn.Linear(2, 2), {"model": nn.Linear(2, 2)}])
def test_a_pickled_network_is_refused_with_advice(content, tmp_path):
    path = tmp_path / "net.pth"
    path.write_bytes(zipped(content))
    with pytest.raises(InvalidInputError, match=r"would run code from the file.*state_dict\(\)"):
        read_checkpoint(path)


@pytest.mark.filterwarnings("ignore:.*torch.jit.*")
def test_a_torchscript_archive_is_refused(tmp_path):
    path = tmp_path / "script.pt"
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), str(path))
    with pytest.raises(InvalidInputError, match="script"):
        read_checkpoint(path)


def test_nobody_can_turn_the_safe_loader_off_from_outside(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    path = tmp_path / "net.pth"
    path.write_bytes(zipped(Payload(exec, f"open({str(tmp_path / 'proof')!r}, 'w')")))
    with pytest.raises(InvalidInputError):
        read_checkpoint(path)
    assert not (tmp_path / "proof").exists()


def with_header(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def entry(shape, offsets, dtype="F32"):
    return {"w": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


@pytest.mark.parametrize(
    "data",
    [
        struct.pack("<Q", 2**63) + b"{}",
        struct.pack("<Q", 2**40) + b"{}",
        struct.pack("<Q", 2) + b"[]",
        with_header(b"[" * 50_000),
        with_header(entry([2**40], [0, 2**42])),
        with_header(entry([2**62, 4], [0, 8]), bytes(8)),
        with_header(entry([-1], [0, 8]), bytes(8)),
        with_header(entry([2], [8, 0]), bytes(8)),
        with_header(entry([2], [0, 8], "OBJECT"), bytes(8)),
        with_header(entry([2], [0, 2**63]), bytes(8)),
        with_header({"w": None}),
        with_header({"../../w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}, b"x"),
    ],
)
def test_a_safetensors_file_that_claims_too_much_is_refused(data, tmp_path):
    path = tmp_path / "net.safetensors"
    path.write_bytes(data)
    with pytest.raises(InvalidInputError, match="net"):
        read_checkpoint(path)


def test_the_metadata_of_a_safetensors_file_are_text_that_nobody_reads(tmp_path):
    evil = pickle.dumps(Payload(exec, f"open({str(tmp_path / 'proof')!r}, 'w')")).hex()
    path = tmp_path / "net.safetensors"
    state = {"weight": torch.ones(2, 2)}
    safetensors.torch.save_file(state, path, metadata={"format": "pt", "pickle": evil})
    assert weights_digest(read_checkpoint(path)) == weights_digest(state)
    assert not (tmp_path / "proof").exists()


def test_a_tensor_that_claims_terabytes_is_refused(tmp_path):
    """A small storage, seen as a large tensor by strides of zero or beyond its end."""
    for size, stride in (((2**40,), (1,)), ((2**40,), (0,)), ((2**30, 2**30), (1, 1))):

        class Fake:
            def __reduce__(self, size=size, stride=stride):
                storage = torch.ones(2).untyped_storage()
                typed = torch.storage.TypedStorage(
                    wrap_storage=storage, dtype=torch.float32, _internal=True
                )
                rebuild = torch._utils._rebuild_tensor_v2
                return rebuild, (typed, 0, size, stride, False, {})

        path = tmp_path / "net.pth"
        path.write_bytes(zipped({"weight": Fake()}))
        try:
            state = read_checkpoint(path)
        except InvalidInputError:
            continue
        # A view costs nothing; it can only not be what a network has.
        assert state["weight"].untyped_storage().nbytes() <= 64
