"""Checking a store, putting it in order, freezing rows and taking rows away, as a user does it."""

from __future__ import annotations

import errno
import os
import random
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

import featurestore as fs
from featurestore.errors import (
    CorruptDataError,
    DiskSpaceError,
    FeaturesMissingError,
    InvalidInputError,
    NotFoundError,
    ReadOnlyError,
)
from featurestore.networks.sources.torch_network import TorchSession
from featurestore.storage import reader
from featurestore.storage.blob import LocalBlobs
from featurestore.testing.tiny import tiny_network
from featurestore.upkeep import checkpoint, verify

MODULES = ["features.0", "features.4", "classifier"]


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(reader, "CONFIRM_AFTER_S", 0)


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for n in range(24):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{n:02d}.png")
    return folder


@pytest.fixture
def path(tmp_path):
    return tmp_path / "s.fstore"


@pytest.fixture
def store(path, folder):
    store = fs.open_store(path)
    store.get_many(tiny_network(), MODULES, folder)
    return store


def truth(folder, tmp_path_factory):
    clean = fs.open_store(tmp_path_factory.mktemp("clean") / "s.fstore")
    arrays = clean.get_many(tiny_network(), MODULES, folder, load=True)
    return {module: array.values for module, array in arrays.items()}


def files_of(path):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in sorted(path.rglob("*"))}


def shards(path, array="activations"):
    return sorted(p for p in path.glob(f"columns/*/{array}/c.*") if ".tmp" not in p.name)


def flip(file, at, bit=0x10):
    data = bytearray(file.read_bytes())
    data[at] ^= bit
    file.write_bytes(data)


def test_a_whole_store_is_ok_and_checking_it_writes_nothing(store, path):
    before = files_of(path)
    for fast in (False, True):
        report = store.verify(fast=fast)
        assert report.ok
        assert report.findings == []
        assert (report.n_columns, report.n_rows) == (3, 72)
    assert report.nbytes == 0
    assert fs.open_store(path, mode="r").verify().nbytes == sum(
        f.stat().st_size for f in shards(path)
    )
    assert files_of(path) == before


def test_a_read_only_store_is_checked_and_not_repaired(store, path):
    flip(shards(path)[0], 9)
    before = files_of(path)
    reading = fs.open_store(path, mode="r")
    assert not reading.verify().ok
    with pytest.raises(ReadOnlyError):
        reading.verify(repair=True)
    assert files_of(path) == before


def test_sixty_flipped_bits_are_sixty_times_found_and_healed_by_the_next_get(
    path, folder, tmp_path_factory
):
    true = truth(folder, tmp_path_factory)
    draw = random.Random(3)
    fs.open_store(path).get_many(tiny_network(), MODULES, folder)
    network = tiny_network()
    for _ in range(60):
        file = draw.choice(shards(path))
        flip(file, draw.randrange(file.stat().st_size), 1 << draw.randrange(8))
        store = fs.open_store(path)
        assert [f.problem for f in store.verify().damage] != []
        healed = store.get_many(network, MODULES, folder, load=True)
        for module, values in true.items():
            np.testing.assert_array_equal(healed[module].values, values)
        store.verify(repair=True)
        assert store.verify().ok
        store.compact(grace_s=0)
        assert store.verify().damage == []


@pytest.mark.parametrize("what", ["row_stats", "run", "image"])
def test_small_files_are_mended_and_cost_no_value(store, path, folder, what, tmp_path_factory):
    true = truth(folder, tmp_path_factory)
    flip(shards(path, what)[0], 3)
    report = fs.open_store(path).verify()
    assert not report.ok
    again = fs.open_store(path)
    again.verify(repair=True)
    arrays = again.get_many(tiny_network(), MODULES, folder, load=True)
    for module, values in true.items():
        np.testing.assert_array_equal(arrays[module].values, values)
    if what != "image":  # a key record may still be being written for an hour
        assert again.verify().ok


@pytest.mark.parametrize("kind", ["models", "aliases", "runs", "imagesets", "layouts", "tags"])
def test_a_damaged_document_is_found_and_the_store_goes_on(path, folder, kind):
    store = fs.open_store(path)
    words = {"weights": "random"}
    store.tag("t", store.get("squeezenet1_1", "features.0", folder, **words))
    (file,) = (path / kind).glob("*.json")
    flip(file, 20)
    report = fs.open_store(path).verify(fast=True)
    assert not report.ok
    assert file.name in repr(report)
    fs.open_store(path).verify(repair=True)
    store = fs.open_store(path)
    assert store.verify().ok
    features = store.get("squeezenet1_1", "features.0", folder, load=True, **words)
    assert features.sizes["image"] == 24
    assert store.plan("squeezenet1_1", "features.0", folder, **words).n_missing == 0


def test_a_damaged_marker_shuts_no_reader_out_and_is_found(store, path, folder):
    flip(path / "featurestore.json", 20)
    reading = fs.open_store(path, mode="r")
    assert reading.get(tiny_network(), "classifier", folder).shape == (24, 10)
    for fast in (False, True):
        report = reading.verify(fast=fast)
        assert [f.path for f in report.damage] == ["featurestore.json"]
    assert fs.open_store(path).verify().ok  # which made it again


def test_who_computed_a_row_may_be_lost_without_the_row(store, path, folder):
    for file in (path / "runs").glob("*.json"):
        flip(file, 30)
    told = fs.open_store(path, mode="r").explain(tiny_network(), "classifier", folder)
    assert told.n_rows == 24


def test_lost_rows_are_named(store, path):
    shards(path)[0].unlink()
    report = store.verify()
    (finding,) = report.damage
    assert len(finding.digests) == 24
    assert "images: 00.png, 01.png" in repr(report)
    assert "missing" in finding.text


def test_an_interrupted_check_goes_on_where_it_was(store, path, folder, monkeypatch):
    real = verify.check_slot
    seen = []

    def stop_at_third(column, slot, **options):
        seen.append((column.key, slot))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return real(column, slot, **options)

    monkeypatch.setattr(verify, "check_slot", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        store.verify()
    monkeypatch.setattr(verify, "check_slot", real)
    assert store.verify().n_skipped == 2
    assert store.verify().n_skipped == 0  # finished: the next one begins anew


def test_a_slot_that_changed_since_is_checked_again(store, path, monkeypatch):
    monkeypatch.setattr(checkpoint.Checkpoint, "finish", lambda self: None)
    assert store.verify().n_skipped == 0
    assert store.verify().n_skipped == 3
    flip(shards(path)[1], 5)
    report = store.verify()
    assert report.n_skipped == 2
    assert not report.ok
    assert store.verify(restart=True).n_skipped == 0


def test_a_sample_is_extracted_again_and_its_drift_reported(path, folder, monkeypatch):
    store = fs.open_store(path)
    for module in ("features.0", "classifier"):
        store.get("squeezenet1_1", module, folder, weights="random", batch_size=4)
    store.get(tiny_network(), "classifier", folder)
    before = files_of(path)
    report = store.verify(images=folder, sample=3)
    assert report.ok
    assert {(d.module, d.n_rows, d.n_equal) for d in report.drift} == {
        ("features.0", 3, 3),
        ("classifier", 3, 3),
    }
    assert "user's own" in report.not_redone["tiny classifier"]
    assert files_of(path) == before
    real = TorchSession.forward

    def drifting(session, batch):
        return [output * np.float32(1.05) for output in real(session, batch)]

    monkeypatch.setattr(TorchSession, "forward", drifting)
    report = store.verify(images=folder, sample=3)
    assert not report.ok
    assert {d.n_equal for d in report.drift} == {0}
    assert all(0.04 < d.max_rel < 0.06 for d in report.drift)
    assert "bit-equal, at most" in repr(report)


def test_a_sample_needs_pictures(store):
    with pytest.raises(InvalidInputError, match="images="):
        store.verify(sample=3)


def test_pictures_that_changed_on_disk_are_named(store, folder):
    assert store.verify(fast=True, images=folder).pictures == []
    file = folder / "03.png"
    stamp = file.stat()
    data = bytearray(file.read_bytes())
    data[-5] ^= 1  # bit rot: same size, same times
    file.write_bytes(data)
    os.utime(file, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    (folder / "05.png").unlink()
    Image.new("RGB", (32, 32)).save(folder / "new.png")
    report = store.verify(fast=True, images=folder)
    assert {p.name: p.change for p in report.pictures} == {
        "03.png": "changed",
        "05.png": "missing",
        "new.png": "new",
    }
    assert not report.ok


def test_pictures_that_the_store_never_saw_are_refused(store, tmp_path):
    (tmp_path / "other").mkdir()
    Image.new("RGB", (32, 32)).save(tmp_path / "other" / "elsewhere.png")
    with pytest.raises(NotFoundError, match="never asked"):
        store.verify(images=tmp_path / "other")


def test_many_small_additions_are_compacted_and_read_as_before(path, folder, tmp_path_factory):
    true = truth(folder, tmp_path_factory)
    store = fs.open_store(path)
    images = fs.read_images(folder)
    for n in range(24):
        store.get_many(tiny_network(), MODULES, images[n : n + 1])
    lazy = store.get(tiny_network(), "features.4", images)
    assert len(shards(path)) == 72
    report = store.compact(grace_s=0)
    assert (report.n_slots_emptied, report.n_slots_written) == (72, 3)
    assert len(shards(path)) == 3
    np.testing.assert_array_equal(lazy.values, true["features.4"])
    for mode in ("a", "r"):
        arrays = fs.open_store(path, mode=mode).get_many(tiny_network(), MODULES, images, load=True)
        for module, values in true.items():
            np.testing.assert_array_equal(arrays[module].values, values)
    assert fs.open_store(path).verify().ok


def test_within_the_grace_period_nothing_that_may_be_in_use_goes(path, folder):
    store = fs.open_store(path)
    images = fs.read_images(folder)
    for n in range(4):
        store.get(tiny_network(), "classifier", images[n : n + 1])
    report = store.compact()
    assert report.n_files_removed == 0
    assert report.nbytes_waiting > 0
    assert len(shards(path)) == 5


@pytest.mark.parametrize("name", ["paper-2026", "../outside", "Ärger ☃ / \\ : *", "x" * 300])
def test_a_tag_freezes_rows_under_any_name(store, path, folder, name):
    features = store.get(tiny_network(), "classifier", folder)
    tag = store.tag(name, features.isel(image=slice(3, 9)))
    assert tag.n_rows == 6
    again = fs.open_store(path, mode="r")
    assert [t.name for t in again.tag()] == [name]
    assert again.tag(name).to_json() == tag.to_json()
    assert again.verify().ok
    assert store.tag(name, features.isel(image=slice(3, 9))).created == tag.created
    with pytest.raises(InvalidInputError, match="other rows"):
        store.tag(name, features)
    assert [p.parent.name for p in path.parent.rglob("*.json") if "tags" in p.parts] == ["tags"]
    store.tag(name, remove=True)
    assert list(store.tag()) == []
    with pytest.raises(NotFoundError, match="has no tag"):
        store.tag(name)


def test_only_what_came_from_the_store_can_be_frozen(store, folder):
    features = store.get(tiny_network(), "classifier", folder)
    with pytest.raises(InvalidInputError, match="feature_key"):
        store.tag("t", features.values)
    with pytest.raises(InvalidInputError, match="digest"):
        store.tag("t", features.drop_vars("digest"))
    store.drop("tiny", "classifier")
    with pytest.raises(FeaturesMissingError):
        store.tag("t", features)


def test_frozen_rows_are_neither_dropped_nor_evicted(store, folder):
    kept = store.get(tiny_network(), "features.4", folder)
    store.tag("paper", kept)
    with pytest.raises(InvalidInputError, match="'paper'"):
        store.drop("tiny", "features.4")
    with pytest.raises(DiskSpaceError, match="frozen by tags"):
        store.drop(to_fit=0)
    assert store.ls()[0].n_images == 24
    size = {c.module: c.nbytes for c in store.ls()}
    store.drop(to_fit=size["features.4"])
    assert [c.module for c in store.ls()] == ["features.4"]
    assert store.verify().ok


def test_a_frozen_row_that_was_lost_and_computed_otherwise_is_reported(
    store, path, folder, monkeypatch
):
    network = tiny_network()
    store.tag("paper", store.get(network, "features.4", folder))
    key = store.tag("paper").rows[0].column
    (path / "columns" / key / "activations" / "c.0.0.0.0").unlink()
    assert "24 of 24 rows are missing" in repr(store.verify(repair=True))
    real = TorchSession.forward

    def otherwise(session, batch):
        return [output * np.float32(1.000001) for output in real(session, batch)]

    monkeypatch.setattr(TorchSession, "forward", otherwise)
    store.get(network, "features.4", folder)
    report = store.verify()
    assert not report.ok
    assert "24 differ from what was frozen" in repr(report)


def test_a_dropped_column_is_computed_again_by_the_next_get(store, path, folder, tmp_path_factory):
    true = truth(folder, tmp_path_factory)
    lazy = store.get(tiny_network(), "features.0", folder)
    report = store.drop("tiny", "features.0")
    assert report.columns == (
        "tiny (wrapped(" + lazy.attrs["weights_digest"][:8] + ")) features.0",
    )
    assert report.nbytes_freed > 0
    assert "features.0" not in {c.module for c in store.ls()}
    with pytest.raises(CorruptDataError, match="gone"):
        lazy.load()
    again = store.get(tiny_network(), "features.0", folder, load=True)
    np.testing.assert_array_equal(again.values, true["features.0"])
    assert store.verify().ok


def test_what_is_not_there_cannot_be_dropped_and_near_misses_are_suggested(store):
    with pytest.raises(NotFoundError, match="features"):
        store.drop("tiny", "feature.4")
    with pytest.raises(NotFoundError, match="tiny"):
        store.drop("tinny")
    with pytest.raises(InvalidInputError, match="Say what to drop"):
        store.drop()


def test_of_two_weights_the_user_says_which_to_drop(store, folder):
    store.get(tiny_network(seed=1), "classifier", folder)
    with pytest.raises(InvalidInputError, match="several weights") as caught:
        store.drop("tiny", "classifier")
    first, second = caught.value.choices
    store.drop("tiny", "classifier", weights=first)
    assert {c.weights for c in store.ls() if c.module == "classifier"} == {second}


def test_a_size_limit_evicts_what_is_cheapest_to_compute_again(path, folder):
    store = fs.open_store(path)
    words = {"weights": "random"}
    store.get_many("squeezenet1_1", ["features.0", "classifier"], folder, **words)
    store.get(tiny_network(), "features.4", folder)
    sizes = {c.module: c.nbytes for c in store.ls()}
    limit = sum(sizes.values()) + 1000
    with fs.set_options(store_limit=limit):
        store.get("squeezenet1_1", "features.12", folder, **words)
    held = {c.module: c.nbytes for c in store.ls()}
    assert "features.0" not in held  # many bytes, one convolution
    assert {"classifier", "features.12", "features.4"} <= set(held)
    assert sum(held.values()) <= limit
    with fs.set_options(store_limit=limit):
        again = store.get("squeezenet1_1", "features.0", folder, load=True, **words)
    assert again.shape == (24, 64, 111, 111)


def test_what_was_compacted_goes_before_anything_that_would_have_to_be_computed(path, folder):
    store = fs.open_store(path)
    images = fs.read_images(folder)
    for n in range(24):
        store.get_many(tiny_network(), MODULES, images[n : n + 1])
    store.compact()
    size = sum(column.nbytes for column in store.ls())
    report = store.drop(to_fit=size // 2)
    assert report.columns == ()
    assert report.nbytes_freed > size // 2
    assert {c.n_images for c in store.ls()} == {24}
    assert store.verify().ok


def test_a_request_beyond_the_size_limit_is_refused_before_anything_is_computed(
    store, folder, monkeypatch
):
    monkeypatch.setattr(TorchSession, "forward", None)
    with fs.set_options(store_limit="10 kB"), pytest.raises(DiskSpaceError, match="store_limit"):
        store.get(tiny_network(seed=5), "features.0", folder)
    assert len(store.ls()) == 3


def test_damage_in_full_rows_is_healed_while_a_readout_is_derived(path, folder, tmp_path_factory):
    true = truth(folder, tmp_path_factory)
    store = fs.open_store(path)
    store.get(tiny_network(), "features.4", folder)
    (file,) = shards(path)
    flip(file, 50)
    pooled = fs.open_store(path).get(tiny_network(), "features.4", folder, readout="avgpool")
    np.testing.assert_allclose(pooled.values, true["features.4"].mean((2, 3)), rtol=1e-6)


def test_a_bad_sector_is_an_error_until_its_rows_are_given_up(
    store, path, folder, monkeypatch, tmp_path_factory
):
    true = truth(folder, tmp_path_factory)
    victim = shards(path)[0]
    module = next(c.module for c in store.ls() if c.key == victim.parts[-3])
    for name in ("get", "get_into"):
        real = getattr(LocalBlobs, name)

        def failing(blobs, where, *words, real=real, **options):
            if str(blobs.root / where) == str(victim):
                raise OSError(errno.EIO, os.strerror(errno.EIO), str(victim))
            return real(blobs, where, *words, **options)

        monkeypatch.setattr(LocalBlobs, name, failing)
    store = fs.open_store(path)
    with pytest.raises(OSError, match="Input/output error"):
        store.get(tiny_network(), module, folder, load=True)
    report = store.verify()
    assert [f.problem for f in report.damage] == ["unreadable"]
    assert store.verify(repair=True).ok
    again = store.get(tiny_network(), module, folder, load=True)
    np.testing.assert_array_equal(again.values, true[module])
    monkeypatch.undo()
    monkeypatch.setattr(reader, "CONFIRM_AFTER_S", 0)
    assert [f.problem for f in store.verify().damage] == ["marker"]  # the sector came back


def test_upkeep_needs_no_torch(store, path, monkeypatch):
    flip(shards(path)[0], 9)
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "import featurestore as fs\n"
        f"store = fs.open_store({str(path)!r})\n"
        "assert not store.verify().ok\n"
        "store.verify(repair=True); store.compact(grace_s=0); print(store.verify().ok)\n"
        "store.drop('tiny', 'classifier')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "True", done.stderr
