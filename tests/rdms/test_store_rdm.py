"""RDMs of a store: kept, extended, mended, never mistaken for those of other numbers."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
import warnings

import dask
import numpy as np
import pytest
import torch
import xarray as xr

import featurestore as fs
from featurestore.arrays.lazy import rows_behind
from featurestore.errors import (
    DiskSpaceError,
    FeaturesMissingError,
    FeatureStoreWarning,
    InvalidInputError,
    LabelMismatchError,
    MemoryBudgetError,
)
from featurestore.networks.sources.torch_network import TorchSession
from featurestore.rdms import fill as filling
from featurestore.rdms import kernel, pairs
from featurestore.rdms.source import StoredSource
from tests.rdms.oracle import BASE, truth, worst_error

N, SHAPE = 40, (6, 5, 4)
TOLERANCE = 2e-6


def make_rows():
    """Activations of known images, with near-duplicates, twins and a large mean."""
    rng = np.random.default_rng(0)
    rows = np.maximum(rng.normal(size=(N, *SHAPE)), 0) + 3
    rows[1] = rows[0] + 1e-3 * rng.normal(size=SHAPE)
    rows[2] = rows[0]
    rows[30] = rows[0]
    rows[39] = rows[5] + 1e-5 * rng.normal(size=SHAPE)
    return rows.astype(np.float32)


ROWS = make_rows()
TRUTH = truth(ROWS)


class TwoModules(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.maps = torch.nn.Identity()
        self.twice = torch.nn.Identity()

    def forward(self, x):
        return self.twice(2 * self.maps(x) + x**2)


def look_up(image):
    number = int(np.asarray(image)[0, 0, 0])
    return ROWS[number] if number < N else np.zeros(SHAPE, np.float32)


def picture(number):
    image = np.zeros((8, 8, 3), np.uint8)
    image[0, 0, 0] = number
    return image


def model():
    return fs.wrap(TwoModules(), name="maps", preprocess=look_up, preprocess_id="rows by number")


def images_of(numbers, names=None):
    names = [f"image {n:02d}" for n in numbers] if names is None else names
    return fs.read_images(np.stack([picture(n) for n in numbers]), names=names)


ALL = images_of(range(N))


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A store with the features of all images, and no distances."""
    path = tmp_path_factory.mktemp("original") / "s.fstore"
    fs.open_store(path).get(model(), "maps", ALL, progress=False)
    return path


@pytest.fixture
def path(original, tmp_path):
    shutil.copytree(original, tmp_path / "s.fstore")
    return tmp_path / "s.fstore"


@pytest.fixture
def store(path):
    return fs.open_store(path)


@pytest.fixture
def features(store):
    return store.get(model(), "maps", ALL, progress=False)


@pytest.fixture
def small_blocks(monkeypatch):
    """Five blocks of eight images each: fifteen tiles."""
    monkeypatch.setattr(filling, "BLOCK_ROWS", 8)


class Work:
    """What was read and computed."""

    def __init__(self, monkeypatch):
        self.n_pairs = self.n_reads = self.n_values = self.n_forward = 0
        read, run_pass, forward = StoredSource.read, kernel.run_pass, TorchSession.forward

        def read_counted(source, rows, block):
            self.n_reads += 1
            values = read(source, rows, block)
            self.n_values += values.size
            return values

        def run_pass_counted(source, rows, pieces, **options):
            self.n_pairs += sum(piece.n_pairs for piece in pieces)
            return run_pass(source, rows, pieces, **options)

        def forward_counted(session, batch):
            self.n_forward += 1
            return forward(session, batch)

        monkeypatch.setattr(StoredSource, "read", read_counted)
        monkeypatch.setattr(kernel, "run_pass", run_pass_counted)
        monkeypatch.setattr(TorchSession, "forward", forward_counted)


@pytest.fixture
def work(monkeypatch):
    return Work(monkeypatch)


def rdm(array, metric="correlation", **options):
    return fs.rdm(array, metric, progress=False, **options)


def check(found, metric="correlation", rows=None, tolerance=TOLERANCE):
    """Compare an RDM with extended precision; which rows it is about is known by its names."""
    names = found["image"].values.tolist()
    rows = [int(name.split()[-1]) for name in names] if rows is None else rows
    expected = TRUTH[metric][np.ix_(rows, rows)]
    values = found.values
    np.testing.assert_array_equal(values, values.T)
    np.testing.assert_array_equal(np.diag(values), 0)
    assert worst_error(values, expected, metric) <= tolerance


def tile_files(path):
    return sorted(path.glob("grams/*/tiles/[0-9]*"))


def block_files(path):
    return sorted(path.glob("grams/*/blocks/[0-9]*"))


# What a user sees


@pytest.mark.parametrize("metric", BASE)
def test_an_rdm_of_a_store_is_true_and_labelled(store, metric):
    found = store.rdm(model(), "maps", ALL, metric=metric, progress=False)
    assert found.dims == ("image", "image_2")
    assert found.dtype == np.float32
    assert found.name == "rdm"
    assert found["image_2"].values.tolist() == list(ALL.names)
    assert found["digest"].values.tolist() == found["digest_2"].values.tolist()
    assert found.attrs["metric"] == metric
    assert found.attrs["model"] == "maps"
    assert found.attrs["module"] == "maps"
    assert found.attrs["n_features"] == 120
    assert len(found.attrs["feature_key"]) == 32
    check(found, metric)


def test_features_that_are_missing_are_computed_first(tmp_path):
    store = fs.open_store(tmp_path / "new.fstore")
    check(store.rdm(model(), "maps", ALL, progress=False))


def test_a_second_call_reads_no_features_and_runs_no_network(store, path, work, monkeypatch):
    first = store.rdm(model(), "maps", ALL, progress=False)
    assert work.n_pairs == N * (N - 1) // 2
    n_reads = work.n_reads
    for again in (store, fs.open_store(path), fs.open_store(path, mode="r")):
        xr.testing.assert_identical(first, again.rdm(model(), "maps", ALL, progress=False))
    assert work.n_pairs == N * (N - 1) // 2
    assert work.n_reads == n_reads
    assert work.n_forward == 0


def test_every_value_is_read_once(store, work, small_blocks):
    store.rdm(model(), "maps", images_of(range(6, 30)), progress=False)
    assert work.n_values == 24 * 120


def test_all_metrics_cost_one_computation(store, work):
    for metric in (*BASE, "gaussian"):
        store.rdm(model(), "maps", ALL, metric=metric, progress=False)
    assert work.n_pairs == N * (N - 1) // 2


def test_the_order_is_the_order_asked_for(store, small_blocks):
    order = np.random.default_rng(0).permutation(N).tolist()
    whole = store.rdm(model(), "maps", ALL, progress=False)
    found = store.rdm(model(), "maps", images_of(order), progress=False)
    check(found)
    names = [f"image {n:02d}" for n in order]
    np.testing.assert_array_equal(found.values, whole.sel(image=names, image_2=names).values)


def test_a_subset_is_part_of_the_whole(store, small_blocks, work):
    whole = store.rdm(model(), "maps", ALL, progress=False)
    n_pairs = work.n_pairs
    numbers = [0, 25, 4, 6, 30, 8, 10, 12, 14, 1]
    found = store.rdm(model(), "maps", images_of(numbers), progress=False)
    names = [f"image {n:02d}" for n in numbers]
    np.testing.assert_array_equal(found.values, whole.sel(image=names, image_2=names).values)
    assert work.n_pairs == n_pairs


def test_more_images_cost_only_the_new_pairs_and_give_what_a_fresh_store_gives(
    store, original, tmp_path, work, small_blocks
):
    n = 30
    store.rdm(model(), "maps", images_of(range(n)), progress=False)
    assert work.n_pairs == n * (n - 1) // 2
    grown = store.rdm(model(), "maps", ALL, progress=False)
    assert work.n_pairs == N * (N - 1) // 2
    check(grown)
    shutil.copytree(original, tmp_path / "fresh.fstore")
    fresh = fs.open_store(tmp_path / "fresh.fstore").rdm(model(), "maps", ALL, progress=False)
    np.testing.assert_allclose(grown.values, fresh.values, rtol=1e-6)
    np.testing.assert_array_equal(grown.values == 0, fresh.values == 0)
    for metric in ("gaussian", "sqeuclidean"):
        grown, fresh = (
            fs.open_store(p).rdm(model(), "maps", ALL, metric=metric, progress=False)
            for p in (tmp_path / "s.fstore", tmp_path / "fresh.fstore")
        )
        np.testing.assert_allclose(grown.values, fresh.values, rtol=1e-6)


def test_several_modules_are_extracted_in_one_sweep(tmp_path, work):
    store = fs.open_store(tmp_path / "new.fstore")
    network = model()
    store.plan(network, ["maps", "twice"], ALL)  # probed
    work.n_forward = 0
    both = store.rdm(network, ["maps", "twice"], ALL, progress=False)
    assert work.n_forward == N // 8
    assert both.dims == ("module", "image", "image_2")
    assert both["module"].values.tolist() == ["maps", "twice"]
    check(both.sel(module="maps"))
    twice = truth(2 * ROWS + ROWS**2, ("correlation",))["correlation"]
    assert worst_error(both.sel(module="twice").values, twice, "correlation") < TOLERANCE
    assert len(set(both["feature_key"].values.tolist())) == 2


def test_the_same_picture_under_two_names_is_exactly_zero_apart(store, small_blocks):
    numbers = [3, 7, 3, 9, 7, 3]
    images = images_of(numbers, names=list("abcdef"))
    for metric in BASE:
        found = store.rdm(model(), "maps", images, metric=metric, progress=False)
        check(found, metric, rows=numbers)
        np.testing.assert_array_equal(found.values == 0, np.equal.outer(numbers, numbers))


def test_a_name_that_repeats_is_refused_before_anything_is_extracted(tmp_path, work):
    store = fs.open_store(tmp_path / "new.fstore")
    images = images_of([3, 3, 4], names=["a", "a", "b"])
    network = model()
    store.plan(network, "maps", images)
    work.n_forward = 0
    with pytest.raises(InvalidInputError, match="'a'"):
        store.rdm(network, "maps", images, progress=False)
    assert work.n_forward == 0


@pytest.mark.parametrize(
    "request_",
    [{"metric": "euclid"}, {"bandwidth": "mean"}, {"metric": "gaussian", "bandwidth": 0}],
)
def test_what_means_nothing_is_refused_before_anything_is_extracted(tmp_path, work, request_):
    store = fs.open_store(tmp_path / "new.fstore")
    with pytest.raises(InvalidInputError):
        store.rdm(model(), "maps", ALL, progress=False, **request_)
    assert work.n_forward == 0


def test_flatten_is_the_same_geometry_and_kept_once(store, work):
    first = store.rdm(model(), "maps", ALL, progress=False)
    n_pairs = work.n_pairs
    flat = store.rdm(model(), "maps", ALL, readout="flatten", progress=False)
    assert work.n_pairs == n_pairs
    np.testing.assert_array_equal(first.values, flat.values)


def test_avgpool_is_a_geometry_of_its_own_and_extended_too(store, work, small_blocks):
    pooled = store.get(model(), "maps", ALL, readout="avgpool", progress=False).values.copy()
    pooled = truth(pooled, ("correlation",))["correlation"]
    store.rdm(model(), "maps", images_of(range(30)), readout="avgpool", progress=False)
    assert work.n_pairs == 30 * 29 // 2
    found = store.rdm(model(), "maps", ALL, readout="avgpool", progress=False)
    assert worst_error(found.values, pooled, "correlation") <= TOLERANCE
    assert work.n_pairs == N * (N - 1) // 2
    store.rdm(model(), "maps", ALL, readout="avgpool", progress=False)
    assert work.n_pairs == N * (N - 1) // 2


def test_float16_columns_have_the_geometry_of_what_is_stored(store):
    found = store.rdm(model(), "maps", ALL, dtype="float16", metric="euclidean", progress=False)
    expected = truth(ROWS.astype(np.float16), ("euclidean",))["euclidean"]
    assert worst_error(found.values, expected, "euclidean") <= TOLERANCE


def test_unreadable_pictures_are_left_out(store, tmp_path):
    from PIL import Image

    for n in range(6):
        Image.fromarray(picture(n)).save(tmp_path / f"{n}.png")
    (tmp_path / "4.png").write_bytes(b"no picture")
    with pytest.warns(FeatureStoreWarning):
        found = store.rdm(
            model(), "maps", sorted(tmp_path.glob("*.png")), errors="skip", progress=False
        )
    check(found, rows=[0, 1, 2, 3, 5])


# Images that have no distance


def test_images_without_distances_are_named_once_also_when_tiles_are_there(tmp_path, monkeypatch):
    rows = ROWS.copy()
    rows[3, 0, 0, 0] = np.nan
    rows[4] = 1.5
    rows[7] = 0
    monkeypatch.setattr(sys.modules[__name__], "ROWS", rows)
    store = fs.open_store(tmp_path / "new.fstore")
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = store.rdm(model(), "maps", ALL, progress=False)
        texts = [str(w.message) for w in caught if w.category is FeatureStoreWarning]
        assert len(texts) == len(caught) == 2
        assert "image 03" in texts[0]
        assert "image 04, image 07" in texts[1]
        bad = np.isin(np.arange(N), [3, 4, 7])
        off_diagonal = ~np.eye(N, dtype=bool)
        np.testing.assert_array_equal(np.isnan(found.values), (bad[:, None] | bad) & off_diagonal)


# Read-only stores


def snapshot(path):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in path.rglob("*")}


def test_a_read_only_store_computes_in_memory_and_writes_nothing(path):
    before = snapshot(path)
    found = fs.open_store(path, mode="r").rdm(model(), "maps", ALL, progress=False)
    check(found)
    assert snapshot(path) == before


def test_a_read_only_store_with_damaged_tiles_computes_in_memory(store, path, small_blocks):
    check(store.rdm(model(), "maps", ALL, progress=False))
    for file in tile_files(path)[1::2]:
        file.write_bytes(file.read_bytes()[:-1])
    before = snapshot(path)
    reader = fs.open_store(path, mode="r")
    order = np.random.default_rng(0).permutation(N).tolist()
    for images in (ALL, images_of(order), images_of(order[:8]), images_of(order[:20])):
        check(reader.rdm(model(), "maps", images, progress=False))
    assert snapshot(path) == before


def test_tiles_that_go_while_a_lazy_rdm_is_read_change_nothing(
    store, path, monkeypatch, small_blocks
):
    order = [*range(8, 16), *range(8), *range(16, N)]
    store.rdm(model(), "maps", ALL, progress=False)
    for mode in ("r", "a"):
        reader = fs.open_store(path, mode=mode)
        with fs.set_options(lazy_threshold=0):
            lazy = reader.rdm(model(), "maps", images_of(order), progress=False)
            assert lazy.chunks is not None
            first = tile_files(path)[0]
            kept = first.read_bytes()
            first.write_bytes(kept[:-1])
            check(lazy)
            first.write_bytes(kept)


@pytest.mark.parametrize("mode", ["a", "r"])
def test_threads_that_read_a_lazy_rdm_while_tiles_go_compute_them_once(
    store, path, small_blocks, work, monkeypatch, mode
):
    monkeypatch.setattr("featurestore.rdms.build.BLOCK_ROWS", 4)
    store.rdm(model(), "maps", ALL, progress=False)
    order = np.random.default_rng(0).permutation(N).tolist()
    with fs.set_options(lazy_threshold=0):
        lazy = fs.open_store(path, mode=mode).rdm(model(), "maps", images_of(order), progress=False)
    for file in tile_files(path)[::3]:
        file.write_bytes(file.read_bytes()[:-1])
    work.n_pairs = 0
    with dask.config.set(scheduler="threads", num_workers=8):
        check(lazy)
    assert work.n_pairs <= N * (N - 1) // 2


def test_a_read_only_store_without_the_features_says_so(path):
    with pytest.raises(FeaturesMissingError):
        fs.open_store(path, mode="r").rdm(model(), "twice", ALL, progress=False)


# Interruptions and other processes


def child(path, code, *args):
    """Run code in a process that has no torch, with small blocks and a pass for each tile."""
    script = f"""
import pickle, sys, time
from dataclasses import replace
import numpy as np
import featurestore as fs
from featurestore.rdms import fill as filling, kernel
filling.BLOCK_ROWS = 8
real_plan = kernel.plan_passes
def plan(source, sizes, wanted, budget):
    found = real_plan(source, sizes, wanted, budget)
    step = found.passes[0]
    return replace(found, passes=tuple(
        replace(step, blocks=tuple(sorted({{*pair}})), tiles=(pair,)) for pair in wanted
    ))
filling.plan_passes = plan
features = pickle.loads(open({str(path)!r}, "rb").read())
{code}
"""
    return subprocess.Popen(
        [sys.executable, "-c", script, *args], stdout=subprocess.PIPE, text=True
    )


def test_a_killed_computation_goes_on_where_it_was(features, path, tmp_path, work, small_blocks):
    pickled = tmp_path / "features"
    pickled.write_bytes(pickle.dumps(features))
    slow = """
real_run = kernel.run_pass
def run_pass(*args, **options):
    time.sleep(0.3)
    return real_run(*args, **options)
kernel.run_pass = run_pass
fs.rdm(features, progress=False)
"""
    process = child(pickled, slow)
    try:
        deadline = time.monotonic() + 120
        while len(tile_files(path)) < 5 and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    there = {file.name: file.stat().st_ino for file in tile_files(path)}
    assert 5 <= len(there) < 15
    n_missing = 0
    for a in range(5):
        for b in range(a, 5):
            n_missing += (f"{a}.{b}" not in there) * (28 if a == b else 64)
    check(rdm(features))
    assert work.n_pairs == n_missing
    now = {file.name: file.stat().st_ino for file in tile_files(path)}
    assert len(now) == 15
    assert there.items() <= now.items()


def test_processes_that_compute_the_same_at_once_all_give_the_true_numbers(
    features, path, tmp_path
):
    pickled = tmp_path / "features"
    pickled.write_bytes(pickle.dumps(features))
    code = """
order = np.random.default_rng(int(sys.argv[1])).permutation(features.sizes["image"])
out = fs.rdm(features.isel(image=order), progress=False)
np.save(sys.argv[2], out.values)
"""
    processes = [
        child(pickled, code, str(seed), str(tmp_path / f"{seed}.npy")) for seed in range(3)
    ]
    for process in processes:
        process.communicate(timeout=300)
        assert process.returncode == 0
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(N)
        values = np.load(tmp_path / f"{seed}.npy")
        expected = TRUTH["correlation"][np.ix_(order, order)]
        assert worst_error(values, expected, "correlation") <= TOLERANCE
    check(rdm(features))


def test_a_child_without_torch_reads_a_lazy_rdm(store, path, tmp_path):
    with fs.set_options(lazy_threshold=0):
        lazy = store.rdm(model(), "maps", ALL, progress=False)
    data = tmp_path / "rdm"
    data.write_bytes(pickle.dumps(lazy))
    code = f"""
import numpy as np, pickle, sys
rdm = pickle.loads(open({str(data)!r}, "rb").read())
np.save({str(tmp_path / "values.npy")!r}, rdm.values)
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=300)
    np.testing.assert_array_equal(np.load(tmp_path / "values.npy"), lazy.values)


# Damage


def test_no_flipped_byte_of_a_tile_ever_gives_a_wrong_value(features, path):
    some = features.isel(image=[0, 1, 5])
    good = rdm(some).values
    (file,) = tile_files(path)
    data = file.read_bytes()
    for at in range(0, len(data), 2):
        changed = bytearray(data)
        changed[at] ^= 0x41
        file.write_bytes(changed)
        np.testing.assert_array_equal(rdm(some).values, good)
        assert file.read_bytes() == data  # mended


def test_no_flipped_byte_of_a_block_ever_gives_a_wrong_value(features, path):
    some = features.isel(image=[0, 1, 5])
    good = rdm(some).values
    (file,) = block_files(path)
    data = file.read_bytes()
    for at in range(0, len(data), 3):
        changed = bytearray(data)
        changed[at] ^= 0x41
        file.write_bytes(changed)
        np.testing.assert_array_equal(rdm(some).values, good)
    file.write_bytes(data)
    np.testing.assert_array_equal(rdm(some).values, good)


@pytest.mark.parametrize("content", [b"", b"\0", b"fs-gram1", b"\0" * 10_000])
def test_tiles_and_blocks_that_are_something_else_are_computed_again(
    features, path, content, small_blocks
):
    rdm(features)
    for files in (tile_files(path), block_files(path)):
        for file in files:
            kept = file.read_bytes()
            file.write_bytes(content)
            check(rdm(features))
            file.write_bytes(kept)
    check(rdm(features))


@pytest.mark.parametrize("how", ["cut", "gone"])
def test_any_number_of_damaged_tiles_is_mended_at_once(features, path, small_blocks, how):
    rdm(features)
    for file in tile_files(path):
        file.unlink() if how == "gone" else file.write_bytes(file.read_bytes()[:-1])
    check(rdm(features))
    assert len(tile_files(path)) == 15


def test_all_blocks_damaged_is_as_good_as_none(features, path, small_blocks):
    rdm(features)
    for file in block_files(path):
        file.write_bytes(b"")
    check(rdm(features))


def test_swapped_tiles_and_swapped_blocks_are_computed_again(features, path, small_blocks):
    rdm(features)
    for files in (tile_files(path), block_files(path)):
        contents = [file.read_bytes() for file in files]
        for file, content in zip(files, contents[1:] + contents[:1], strict=True):
            file.write_bytes(content)
        for metric in ("correlation", "sqeuclidean"):
            check(rdm(features, metric), metric)


def test_tiles_of_another_module_in_the_place_of_these_are_computed_again(store, path):
    store.rdm(model(), ["maps", "twice"], ALL, progress=False)
    one, other = tile_files(path)
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)
    both = store.rdm(model(), ["maps", "twice"], ALL, progress=False)
    check(both.sel(module="maps"))


def test_verify_finds_damaged_tiles_and_mends_them(store, path, small_blocks):
    store.rdm(model(), "maps", ALL, progress=False)
    assert store.verify(progress=False).ok
    bad = tile_files(path)[3]
    bad.write_bytes(bad.read_bytes()[:-1])
    report = store.verify(progress=False)
    assert not report.ok
    assert bad.name in repr(report)
    store.verify(repair=True, progress=False)
    assert store.verify(progress=False).ok
    check(store.rdm(model(), "maps", ALL, progress=False))


# Upkeep


def test_dropped_columns_take_their_distances_with_them_and_come_back(store, path, work):
    store.rdm(model(), "maps", ALL, progress=False)
    store.drop("maps")
    assert tile_files(path) == []
    check(store.rdm(model(), "maps", ALL, progress=False))
    assert work.n_pairs == N * (N - 1)


def test_rows_that_were_dropped_do_not_hinder_others(store, path, small_blocks, monkeypatch):
    """A block whose rows are partly gone cannot be completed, and is left alone."""
    store.rdm(model(), "maps", images_of(range(12)), progress=False)
    saved = {p: p.read_bytes() for p in path.glob("grams/*/*/*")}
    store.drop("maps")
    for file, content in saved.items():
        file.write_bytes(content)
    store.get(model(), "maps", images_of([*range(7), *range(20, 30)]), progress=False)
    for file in tile_files(path):
        file.unlink()
    found = store.rdm(model(), "maps", images_of([*range(7), *range(20, 30)]), progress=False)
    check(found)


def test_compaction_between_changes_nothing(tmp_path, small_blocks):
    store = fs.open_store(tmp_path / "new.fstore")
    for start in range(0, N, 4):
        store.get(model(), "maps", images_of(range(start, start + 4)), progress=False)
    features = store.get(model(), "maps", ALL, progress=False)
    lazy = features.isel(image=slice(None, None, -1))
    first = rdm(features.isel(image=slice(0, 20)))
    store.compact()
    check(first)
    check(rdm(features))
    check(rdm(lazy, "euclidean"), "euclidean")


def test_no_room_on_the_disk_is_said_before_anything_is_computed(features, work, monkeypatch):
    monkeypatch.setattr(pairs, "free_nbytes", lambda _root: 1000)
    with pytest.raises(DiskSpaceError):
        rdm(features)
    assert work.n_pairs == 0


# Lazy RDMs


def test_lazy_rdms_equal_eager_ones_and_touch_only_the_tiles_they_need(
    store, small_blocks, monkeypatch
):
    from featurestore.storage.grams import GramFolder

    eager = store.rdm(model(), "maps", ALL, progress=False)
    with fs.set_options(lazy_threshold=0):
        lazy = store.rdm(model(), "maps", ALL, progress=False)
    assert dask.is_dask_collection(lazy.data)
    xr.testing.assert_identical(lazy.compute(), eager)
    read = []
    real = GramFolder.read
    monkeypatch.setattr(
        GramFolder, "read", lambda self, a, b: read.append((a, b)) or real(self, a, b)
    )
    monkeypatch.setattr("featurestore.rdms.build.BLOCK_ROWS", 8)
    with fs.set_options(lazy_threshold=0):
        lazy = store.rdm(model(), "maps", ALL, progress=False)
    read.clear()
    part = lazy.isel(image=slice(9, 12), image_2=slice(17, 20)).values
    np.testing.assert_array_equal(part, eager.values[9:12, 17:20])
    assert set(read) <= {(1, 2), (1, 1), (2, 2)}
    one = lazy.sel(image="image 09", image_2="image 30")
    assert float(one) == eager.values[9, 30]
    for key in [(slice(None, None, -1), 3), ([5, 1, 5], slice(2, 30, 7)), (3, [0, 39])]:
        np.testing.assert_array_equal(
            lazy.isel(image=key[0], image_2=key[1]).values,
            eager.isel(image=key[0], image_2=key[1]).values,
        )


def test_lazy_rdms_of_different_arrays_have_different_names():
    """Dask takes equal names for equal numbers, also where an array is gone by then."""
    names = set()
    with fs.set_options(lazy_threshold=0):
        for n in range(20):
            array = xr.DataArray(
                ROWS[:5] + n, dims=("image", "c", "y", "x"), coords={"image": list("abcde")}
            )
            lazy = rdm(array)
            names.add(lazy.data.name)
            del array, lazy
    assert len(names) == 20


def test_what_does_not_fit_in_memory_and_has_no_store_is_refused(work):
    n = 20_000
    wide = xr.DataArray(
        np.zeros((n, 2), np.float32), dims=("image", "c"), coords={"image": np.arange(n)}
    )
    with (
        fs.set_options(memory_budget="512 MiB"),
        pytest.raises(MemoryBudgetError, match=r"store\.rdm") as caught,
    ):
        rdm(wide)
    assert caught.value.projected_nbytes > caught.value.allowed_nbytes
    assert work.n_pairs == 0


# Features that are, or are not, what the store holds


def set_values(array):
    array.values = array.values * 2
    return array


def set_item(array):
    array[0] = 7
    return array


def set_part(array):
    array[{"image": 3, "channel": 2}] = 7
    return array


def set_by_label(array):
    array.loc[{"image": "image 04"}] = 7
    return array


def set_through_numpy(array):
    array.values[2] = 7
    return array


def set_through_data(array):
    array.data[2] = 7
    return array


def add_in_place(array):
    array += 1
    return array


def set_in_a_shallow_copy(array):
    other = array.copy(deep=False)
    other[1] = 9
    return array


def set_in_a_deep_copy(array):
    other = array.copy(deep=True)
    other[1] = 9
    return other


def keep_attributes(change):
    def changed(array):
        with xr.set_options(keep_attrs=True):
            return change(array)

    return changed


def swapped_dims(array):
    order = ("image", "y", "channel", "x")
    return array.transpose(*order)


CHANGES = {
    "doubled": lambda a: a * 2,
    "doubled, attributes kept": keep_attributes(lambda a: a * 2),
    "negated": lambda a: -a,
    "added to in place": add_in_place,
    "ufunc": np.square,
    "apply_ufunc": lambda a: xr.apply_ufunc(np.sqrt, a, keep_attrs=True, dask="allowed"),
    "clipped": lambda a: a.clip(max=3.5, keep_attrs=True),
    "rounded": keep_attributes(lambda a: a.round(1)),
    "where": lambda a: a.where(a > 3.2, 0),
    "where by image": lambda a: a.where(a.image != "image 03", 1),
    "filled": lambda a: a.where(a > 3.2).fillna(1),
    "cast": lambda a: a.astype("float16"),
    "values set": set_values,
    "item set": set_item,
    "part set": set_part,
    "set by label": set_by_label,
    "set through values": set_through_numpy,
    "set through data": set_through_data,
    "set in a shallow copy": set_in_a_shallow_copy,
    "set in a deep copy": set_in_a_deep_copy,
    "one channel": lambda a: a.isel(channel=0),
    "one channel kept as a dim": lambda a: a.isel(channel=[3]),
    "channels repeated": lambda a: a.isel(channel=[0, 0, 1, 2, 3, 4]),
    "channels sliced": lambda a: a.isel(channel=slice(1, None)),
    "channels by mask": lambda a: a.isel(channel=np.array([1, 1, 1, 0, 1, 1], bool)),
    "every other x": lambda a: a.isel(x=slice(None, None, 2)),
    "pooled": lambda a: a.mean(("y", "x"), keep_attrs=True),
    "cumulated": lambda a: a.cumsum("channel"),
    "shifted": lambda a: a.shift(x=1, fill_value=0),
    "rolled features": lambda a: a.roll(channel=1),
    "differences": lambda a: a.diff("x"),
    "padded": lambda a: a.pad(x=1, constant_values=0),
    "new data": lambda a: a.copy(data=np.cos(a.values)),
    "replaced": lambda a: a.dot(xr.DataArray(np.eye(6)[:, :2], dims=("channel", "k"))),
    "names of another order with values": lambda a: a.isel(image=slice(None, None, -1)) + 1,
    "interpolated": lambda a: a.isel(y=[0, 2]),
    "ranked": lambda a: (a > 3).astype("float32"),
}
"""What makes other numbers of features."""


@pytest.mark.parametrize("threshold", ["1 GiB", 0])
@pytest.mark.parametrize("name", CHANGES)
def test_features_that_were_changed_are_not_taken_for_the_stored_ones(store, path, name, threshold):
    store.rdm(model(), "maps", ALL, progress=False)
    before = snapshot(path)
    with fs.set_options(lazy_threshold=threshold):
        features = store.get(model(), "maps", ALL, progress=False)
        if name == "set through values" and threshold == 0:
            pytest.skip("values of a dask array are a copy")
        changed = CHANGES[name](features)
        assert rows_behind(changed) is None
        for metric in ("correlation", "sqeuclidean"):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FeatureStoreWarning)
                found = rdm(changed, metric, bandwidth=None)
            values = np.asarray(changed.transpose("image", ...).values)
            expected = truth(values, (metric,))[metric]
            assert worst_error(found.values, expected, metric) <= TOLERANCE
    assert snapshot(path) == before


def reorder(array, order):
    return array.isel(image=order)


SAME = {
    "untouched": lambda a: a,
    "reversed": lambda a: a.isel(image=slice(None, None, -1)),
    "some": lambda a: a.isel(image=slice(3, 30, 4)),
    "some, again": lambda a: a.isel(image=slice(3, 30)).isel(image=[5, 1, 20, 7]),
    "by name": lambda a: a.sel(image=["image 07", "image 03", "image 30", "image 00"]),
    "by mask": lambda a: a.isel(image=np.arange(N) % 3 == 0),
    "sorted": lambda a: a.isel(image=[5, 2, 9, 0]).sortby("image"),
    "all of the channels": lambda a: a.isel(channel=slice(None), y=slice(0, 5)),
    "copied": lambda a: a.copy(),
    "copied shallow": lambda a: a.copy(deep=False),
    "renamed": lambda a: a.rename("other"),
    "without attributes": lambda a: a.drop_attrs(),
    "other attributes": lambda a: a.assign_attrs(model="other"),
    "with more coordinates": lambda a: a.assign_coords(size=("image", np.arange(N))),
    "channels named": lambda a: a.assign_coords(channel=list("abcdef")),
    "through a dataset": lambda a: a.to_dataset(name="features")["features"],
    "transposed there and back": lambda a: a.transpose("channel", ...).transpose("image", ...),
    "image last": lambda a: a.transpose(..., "image"),
    "axes of features swapped": swapped_dims,
    "flattened": lambda a: a.stack(feature=("channel", "y", "x")),
    "loaded": lambda a: a.load(),
    "computed": lambda a: a.compute(),
    "pickled": lambda a: pickle.loads(pickle.dumps(a)),
    "chunked": lambda a: a.chunk(image=7),
    "one more axis": lambda a: a.expand_dims("time", axis=1),
    "one more axis in front": lambda a: a.expand_dims("time"),
    "reindexed": lambda a: a.reindex(image=["image 07", "image 03", "image 30"]),
    "concatenated": lambda a: xr.concat(
        [a.isel(image=slice(20, 30)), a.isel(image=slice(0, 20))], "image"
    ),
    "times one": lambda a: a * 1,
}
"""What leaves the rows as they are, whether or not that can be seen."""


@pytest.mark.parametrize("threshold", ["1 GiB", 0])
@pytest.mark.parametrize("name", SAME)
def test_features_that_were_only_handled_keep_their_distances(store, name, threshold, work):
    with fs.set_options(lazy_threshold=threshold):
        features = store.get(model(), "maps", ALL, progress=False)
        handled = SAME[name](features)
        with fs.set_options(lazy_threshold="1 GiB"):
            check(rdm(handled))
            check(rdm(handled, "sqeuclidean"), "sqeuclidean")


def test_names_that_were_given_anew_stay_with_their_rows(features):
    permuted = np.random.default_rng(0).permutation(N)
    renamed = features.assign_coords(image=[f"image {n:02d}" for n in permuted])
    found = rdm(renamed)
    assert found["image"].values.tolist() == renamed["image"].values.tolist()
    check(found, rows=list(range(N)))
    text = features.rename(image="text")
    found = fs.rdm(text, dim="text", progress=False)
    assert found.dims == ("text", "text_2")
    assert worst_error(found.values, TRUTH["correlation"], "correlation") <= TOLERANCE


def test_dims_whose_names_were_exchanged_are_taken_by_name(store):
    """As many images as channels: shapes do not tell."""
    features = store.get(model(), "maps", images_of(range(10, 16)), progress=False)
    swapped = features.drop_vars(["image", "digest"]).rename(image="channel", channel="image")
    swapped = swapped.drop_vars(list(swapped.coords)).assign_coords(image=list("abcdef"))
    values = swapped.transpose("image", "channel", "y", "x").values
    found = rdm(swapped)
    expected = truth(values, ("correlation",))["correlation"]
    assert worst_error(found.values, expected, "correlation") <= TOLERANCE
    with pytest.raises((InvalidInputError, LabelMismatchError)):
        rdm(swapped, dim="channel")  # it has no names


def test_repeated_images_of_a_selection_are_refused(features):
    with pytest.raises(InvalidInputError, match="image 03"):
        rdm(features.isel(image=[3, 4, 3]))


def test_out_of_numpy_cannot_change_lazy_features_behind_our_back(features):
    with pytest.raises((NotImplementedError, TypeError)):
        np.add(features, 1, out=features)
    check(rdm(features))


def test_dask_features_of_two_stores_do_not_mix(path, tmp_path):
    """The same request in a copy of the store has the same name in dask."""
    shutil.copytree(path, tmp_path / "copy.fstore")
    with fs.set_options(lazy_threshold=0):
        mine = fs.open_store(path).get(model(), "maps", ALL, progress=False)
        theirs = fs.open_store(tmp_path / "copy.fstore").get(model(), "maps", ALL, progress=False)
        check(rdm(mine))
        assert len(tile_files(path)) == 1
        assert len(tile_files(tmp_path / "copy.fstore")) == 0
        check(rdm(theirs))


def test_dask_features_of_a_read_only_store_write_nothing(path):
    with fs.set_options(lazy_threshold=0):
        reader = fs.open_store(path, mode="r").get(model(), "maps", ALL, progress=False)
        writer = fs.open_store(path).get(model(), "maps", ALL, progress=False)
        before = snapshot(path)
        check(rdm(reader))
        assert snapshot(path) == before
        check(rdm(writer))


# Memory


MEMORY = """
import resource, sys
import numpy as np
import xarray as xr
import featurestore as fs
from featurestore.arrays.lazy import RowsArray, StoredRows
from featurestore.storage.blob import LocalBlobs
from featurestore.storage.column import Column
from xarray.core import indexing

path, budget, n, p = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4])
column = Column(LocalBlobs(path), "ab" * 16, writable=True)
digests = np.random.default_rng(0).integers(1, 256, (n, 16), dtype=np.uint8)
if sys.argv[5] == "fill":
    rng = np.random.default_rng(1)
    signal = rng.normal(size=(20, p)).astype(np.float32)
    for start in range(0, n, 64):
        rows = np.maximum(
            rng.normal(size=(64, 20)).astype(np.float32) @ signal
            + rng.standard_normal((64, p), np.float32), 0
        )[: n - start]
        slot_digests = digests[start : start + 64]
        column.append({"module": "m"}, ("channel",), slot_digests, rows, dtype="float32",
                      run="0" * 32)
    sys.exit()
names = tuple(map(str, range(n)))
rows = StoredRows(column=column, shape=(p,), dtype="float32", names=names, digests=digests)
data = indexing.LazilyIndexedArray(RowsArray(rows, flatten=False))
features = xr.DataArray(xr.Variable(("image", "channel"), data), coords={"image": list(names)})
few = features.isel(image=slice(0, 2))
fs.set_options(memory_budget=budget, progress=False)
fs.rdm(few)  # libraries are loaded now
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
found = fs.rdm(features, "correlation")
after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
some = np.r_[:40, n - 40 : n]
np.savez(path + ".npz", found=found.values[np.ix_(some, some)], rows=features[some].values)
print(1024 * (after - before))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("n", "p", "budget"), [(2000, 131_072, 2**27), (6000, 40_000, 2**27)])
def test_memory_stays_within_the_budget(tmp_path, n, p, budget):
    def run(what):
        done = subprocess.run(
            [sys.executable, "-c", MEMORY, str(tmp_path / "s"), str(budget), str(n), str(p), what],
            check=True,
            capture_output=True,
            text=True,
        )
        return done.stdout

    run("fill")
    assert n * p * 4 > 7 * budget
    grown = int(run("measure"))
    assert grown <= budget + 150e6
    saved = np.load(tmp_path / "s.npz")
    expected = truth(saved["rows"], ("correlation",), np.float64)["correlation"]
    assert worst_error(saved["found"], expected, "correlation") <= TOLERANCE


def test_changed_features_do_not_go_by_the_key_of_the_column(tmp_path):
    from featurestore.testing.tiny import tiny_network

    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    store = fs.open_store(tmp_path / "s.fstore")
    acts = store.get(tiny_network(), "features.3", fs.read_images(pixels))
    key = acts.attrs["feature_key"]
    assert fs.rdm(acts).attrs["feature_key"] == key
    for changed in (acts.clip(min=0).assign_attrs(acts.attrs), acts.copy(data=acts.values * 2)):
        attrs = fs.rdm(changed).attrs
        assert "feature_key" not in attrs
        assert attrs["source_feature_key"] == key
