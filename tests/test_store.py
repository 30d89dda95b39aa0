"""What a user sees of a store: real small networks, real pictures, torch itself as the oracle."""

from __future__ import annotations

import pickle
import shutil
import subprocess
import sys
import warnings

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from PIL import Image

import featurestore as fs
from featurestore.errors import (
    CorruptDataError,
    DiskSpaceError,
    ExtractionInterrupted,
    FeaturesMissingError,
    FeatureStoreWarning,
    ImageDecodeError,
    InvalidInputError,
    MemoryBudgetError,
    ModelNotFoundError,
    ModuleNotFoundInModelError,
    ReadOnlyError,
    StoreNotFoundError,
)
from featurestore.networks.sources.torch_network import TorchSession
from featurestore.storage import reader
from featurestore.storage.column import Column
from featurestore.testing.tiny import TinyNetwork, tiny_network, tiny_transform


class Counted:
    """Counts the images that go through networks, padding and probing left out."""

    def __init__(self, monkeypatch):
        self.batches: list[int] = []
        real = TorchSession.forward

        def forward(session, batch):
            self.batches.append(len(batch))
            return real(session, batch)

        monkeypatch.setattr(TorchSession, "forward", forward)


@pytest.fixture
def counted(monkeypatch):
    return Counted(monkeypatch)


@pytest.fixture
def folder(tmp_path):
    """Twelve small pictures in two classes."""
    root = tmp_path / "stimuli"
    rng = np.random.default_rng(0)
    for number in range(12):
        path = root / ("animal" if number % 2 else "tool") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(path)
    return root


@pytest.fixture
def store(tmp_path):
    return fs.open_store(tmp_path / "features.fstore")


def truth(images, module, seed=0, batch_size=8):
    """What torch itself gives, hooked by hand with a clone, at the same batch size."""
    network = TinyNetwork(seed).eval()
    inputs = np.stack([tiny_transform(Image.open(path)) for path in images["path"]])
    caught = []
    network.get_submodule(module).register_forward_hook(
        lambda _module, _inputs, output: caught.append(output.clone())
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(fs.get_options().n_threads)
    with torch.no_grad():
        for start in range(0, len(inputs), batch_size):
            part = inputs[start : start + batch_size]
            padded = np.concatenate([part, np.repeat(part[:1], batch_size - len(part), axis=0)])
            network(torch.from_numpy(padded))
            caught[-1] = caught[-1][: len(part)]
    torch.set_num_threads(threads)
    return torch.cat(caught).numpy()


def test_features_are_labelled_lazy_and_equal_to_torch(store, folder):
    features = store.get(tiny_network(), "features.0", folder)
    assert isinstance(features, xr.DataArray)
    assert features.dims == ("image", "channel", "y", "x")
    assert features.shape == (12, 8, 32, 32)
    assert features.name == "features.0"
    assert not features._in_memory
    assert list(features["image"].values[:2]) == ["animal/01.png", "animal/03.png"]
    assert list(features["category"].values[:2]) == ["animal", "animal"]
    expected = truth({"path": features["path"].values}, "features.0")
    assert (expected < 0).any()  # a ReLU that works in place comes right after
    np.testing.assert_array_equal(features.values, expected)
    one = features.sel(image="tool/04.png", channel=3)
    where = list(features["image"].values).index("tool/04.png")
    np.testing.assert_array_equal(one.values, expected[where, 3])


def test_attributes_say_what_the_numbers_depend_on_and_fit_any_file(store, folder, tmp_path):
    features = store.get(tiny_network(), "classifier", folder)
    assert features.attrs["model"] == "tiny"
    assert features.attrs["module"] == "classifier"
    assert len(features.attrs["weights_digest"]) == 32
    assert all(isinstance(value, str) for value in features.attrs.values())


def test_lazy_arrays_can_be_sorted_copied_and_sent_to_another_process(store, folder):
    features = store.get(tiny_network(), "classifier", folder)
    expected = features.values
    by_target = features.sortby("target", ascending=False)
    xr.testing.assert_equal(by_target.sel(image=features["image"]).load(), features.load())
    features = store.get(tiny_network(), "classifier", folder)
    np.testing.assert_array_equal(features.copy(deep=True).values, expected)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(features)).values, expected)


def test_a_second_request_runs_nothing_and_more_images_run_only_those(store, folder, counted):
    model = tiny_network()
    images = fs.read_images(folder)
    store.get(model, "classifier", images[:7], batch_size=1)
    assert sum(counted.batches) == 7
    store.get(model, "classifier", images[:7], batch_size=1)
    assert sum(counted.batches) == 7
    store.get(model, "classifier", images, batch_size=1)
    assert sum(counted.batches) == 12


def test_several_modules_cost_one_forward_pass(store, folder, counted):
    modules = ["features.0", "features.1", "features.3", "avgpool", "classifier"]
    both = store.get_many(tiny_network(), modules, folder, batch_size=4)
    assert counted.batches == [4, 4, 4]
    paths = {"path": both["avgpool"]["path"].values}
    for module in modules:
        np.testing.assert_array_equal(both[module].values, truth(paths, module, batch_size=4))


def test_images_that_lack_different_modules_run_only_as_far_as_they_must(store, folder, counted):
    model, images = tiny_network(), fs.read_images(folder)
    store.get(model, "classifier", images[:6], batch_size=1)
    plan = store.plan(model, ["features.0", "classifier"], images)
    assert [len(group.images) for group in plan.groups] == [6, 6]
    assert plan.n_missing == 12
    assert len({unit.id for unit in plan.units}) == 2
    assert [u.id for u in plan.units] == [
        u.id for u in store.plan(model, ["features.0", "classifier"], images).units
    ]


def test_renaming_and_moving_recompute_nothing_and_one_changed_byte_one_image(
    store, folder, counted, tmp_path
):
    model = tiny_network()
    before = store.get(model, "classifier", folder, batch_size=1).values
    moved = tmp_path / "elsewhere" / "pictures"
    shutil.move(folder, moved)
    (moved / "tool" / "00.png").rename(moved / "tool" / "zz.png")
    counted.batches.clear()
    after = store.get(model, "classifier", moved, batch_size=1)
    assert counted.batches == []
    assert after["image"].values[-1] == "tool/zz.png"
    np.testing.assert_array_equal(np.sort(after.values, axis=0), np.sort(before, axis=0))
    path = moved / "tool" / "zz.png"
    data = path.read_bytes()
    path.write_bytes(data + b"\0")  # the same pixels, another content
    store.get(model, "classifier", moved, batch_size=1)
    assert counted.batches == [1]


def test_another_seed_and_another_preprocessing_are_other_columns(store, folder, counted):
    first = store.get(tiny_network(0), "classifier", folder)
    second = store.get(tiny_network(1), "classifier", folder)
    other = fs.wrap(TinyNetwork(0), name="tiny", preprocess=tiny_transform, preprocess_id="v2")
    third = store.get(other, "classifier", folder)
    keys = {a.attrs["feature_key"] for a in (first, second, third)}
    assert len(keys) == 3
    assert not np.array_equal(first.values, second.values)
    assert len(store.ls()) == 3


def test_the_name_given_to_a_network_is_no_part_of_what_it_is(store, folder, counted):
    store.get(tiny_network(), "classifier", folder)
    n = len(counted.batches)
    renamed = fs.wrap(
        TinyNetwork(0), name="other", preprocess=tiny_transform, preprocess_id="tiny-v1"
    )
    store.get(renamed, "classifier", folder)
    assert len(counted.batches) == n


def test_a_row_does_not_depend_on_what_else_is_asked_or_in_what_order(tmp_path, folder):
    images = fs.read_images(folder)
    whole = fs.open_store(tmp_path / "a").get(tiny_network(), "features.3", images).values
    other = fs.open_store(tmp_path / "b")
    order = np.random.default_rng(3).permutation(12)
    for part in (order[:1], order[:5], order):
        values = other.get(tiny_network(), "features.3", images[part]).values
        np.testing.assert_array_equal(values, whole[part])


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(asked=st.lists(st.lists(st.integers(0, 11), min_size=1, max_size=14), max_size=4))
def test_rows_come_in_the_order_asked_for_repeats_included(tmp_path_factory, folder, asked):
    store = fs.open_store(tmp_path_factory.mktemp("s") / "s")
    images = fs.read_images(folder)
    expected = truth({"path": images.coords["path"]}, "classifier")
    model = tiny_network()
    for numbers in asked:
        features = store.get(model, "classifier", images[np.array(numbers)])
        np.testing.assert_array_equal(features.values, expected[numbers])
        assert list(features["image"].values) == [images.names[n] for n in numbers]


def test_an_interrupted_run_keeps_what_is_done_and_resumes_with_the_same_bits(
    tmp_path, folder, monkeypatch, counted
):
    images = fs.read_images(folder)
    whole = fs.open_store(tmp_path / "a").get(tiny_network(), "features.0", images, batch_size=4)
    store = fs.open_store(tmp_path / "b")
    real, calls = TorchSession.forward, []

    def interrupt(session, batch):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(session, batch)

    monkeypatch.setattr(TorchSession, "forward", interrupt)
    with pytest.raises(ExtractionInterrupted, match="goes on from there") as caught:
        store.get(tiny_network(), "features.0", images, batch_size=4)
    assert isinstance(caught.value, KeyboardInterrupt)
    monkeypatch.setattr(TorchSession, "forward", real)
    plan = store.plan(tiny_network(), "features.0", images)
    assert plan.n_missing == 8
    resumed = store.get(tiny_network(), "features.0", images, batch_size=4)
    np.testing.assert_array_equal(resumed.values, whole.values)


def test_a_disk_that_fills_up_while_stopping_is_not_hidden_by_the_stop(store, folder, monkeypatch):
    real, calls = TorchSession.forward, []

    def interrupt(session, batch):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(session, batch)

    def full(*_words, **_options):
        raise DiskSpaceError("full")

    monkeypatch.setattr(TorchSession, "forward", interrupt)
    monkeypatch.setattr(Column, "publish", full)
    with pytest.raises(DiskSpaceError, match="full"):
        store.get(tiny_network(), "features.0", folder, batch_size=4)


def test_unreadable_images_lose_nobody_else_and_are_all_named(store, folder):
    (folder / "tool" / "text.jpg").write_text("not a picture")
    good = (folder / "tool" / "00.png").read_bytes()
    (folder / "tool" / "cut.png").write_bytes(good[: len(good) // 2])
    with pytest.raises(ImageDecodeError) as caught:
        store.get(tiny_network(), "classifier", folder)
    assert set(caught.value.failures) == {"tool/text.jpg", "tool/cut.png"}
    assert "12 others are kept" in str(caught.value)
    assert store.ls()[0].n_images == 12
    with pytest.warns(FeatureStoreWarning, match=r"2 of 14 .*left out"):
        features = store.get(tiny_network(), "classifier", folder, errors="skip")
    assert features.sizes["image"] == 12


def test_a_missing_file_costs_nobody_else_s_features(store, folder):
    (folder / "tool" / "dead.png").symlink_to("not fetched")
    with pytest.raises(ImageDecodeError, match="datalad") as caught:
        store.get(tiny_network(), "classifier", folder)
    assert list(caught.value.failures) == ["tool/dead.png"]
    assert store.ls()[0].n_images == 12
    with pytest.warns(FeatureStoreWarning, match="1 of 13 images"):
        features = store.get(tiny_network(), "classifier", folder, errors="skip")
    assert features.sizes["image"] == 12


@pytest.mark.parametrize("kind", ["models", "layouts", "imagesets", "featurestore.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b"\xff\x00"])
def test_a_damaged_document_is_set_aside_and_written_anew(store, folder, tmp_path, kind, content):
    expected = store.get(tiny_network(), "classifier", folder).values
    root = tmp_path / "features.fstore"
    path = root / kind if kind.endswith(".json") else next((root / kind).iterdir())
    path.write_bytes(content)
    again = fs.open_store(root)
    again.ls()
    np.testing.assert_array_equal(again.get(tiny_network(), "classifier", folder).values, expected)
    assert [c.n_images for c in fs.open_store(root, mode="r").ls()] == [12]
    assert path.read_bytes() != content


def test_a_mistyped_look_makes_no_store(tmp_path, folder):
    nowhere = fs.open_store(tmp_path / "typo")
    assert nowhere.ls() == []
    with pytest.raises(ModelNotFoundError):
        nowhere.get("no_such_model_", "features.0", folder, weights=None)
    assert not (tmp_path / "typo").exists()


def test_an_empty_choice_on_any_axis_is_empty(store, folder):
    for threshold in (0, 2**30):
        with fs.set_options(lazy_threshold=threshold):
            features = store.get(tiny_network(), "features.0", folder)
        for key in (
            {"y": []},
            {"y": slice(20, 20)},
            {"image": [], "x": 3},
            {"channel": slice(9, 20)},
        ):
            assert features.isel(key).values.shape == features.load().isel(key).values.shape


def test_arrays_can_be_assigned_to_and_are_read_once(store, folder, monkeypatch):
    features = store.get(tiny_network(), "classifier", folder)
    before = features.values.copy()
    reads = []
    monkeypatch.setattr(type(store._catalog.blobs), "get_into", lambda *_a: reads.append(1))
    np.testing.assert_array_equal(features.values, before)
    assert reads == []
    changed = features.copy(deep=True)
    changed[0] = 9
    assert (changed[0] == 9).all()
    np.testing.assert_array_equal(features.values, before)


def test_the_plan_bounds_what_is_written(store, folder, tmp_path):
    images = fs.read_images(folder)
    for n in (1, 3, 12):
        for module in ("features.0", "classifier"):
            plan = store.plan(tiny_network(), module, images[:n])
            columns = tmp_path / "features.fstore" / "columns"
            before = sum(p.stat().st_size for p in columns.rglob("c.*"))
            store.extract(plan)
            written = sum(p.stat().st_size for p in columns.rglob("c.*")) - before
            assert written <= plan.nbytes


def test_a_picture_that_changes_after_it_was_listed_is_not_stored_under_its_old_name(store, folder):
    images = fs.read_images(folder)
    path = folder / "tool" / "00.png"
    Image.new("RGB", (40, 48), "red").save(path)
    with pytest.raises(ImageDecodeError, match="changed"):
        store.get(tiny_network(), "classifier", images)
    assert store.ls()[0].n_images == 11


def test_the_choices_that_matter_are_said_once(store, tmp_path):
    folder = tmp_path / "alpha"
    folder.mkdir()
    for n in range(3):
        Image.new("RGBA", (40, 40), (n, 0, 0, 100)).save(folder / f"{n}.png")
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        store.get(tiny_network(), "classifier", folder)
    messages = [str(w.message) for w in seen if issubclass(w.category, FeatureStoreWarning)]
    assert len(messages) == 1
    assert "alpha" in messages[0]
    assert "3" in messages[0]


def test_a_read_only_store_serves_names_after_the_pictures_are_gone(store, folder, tmp_path):
    expected = store.get(tiny_network(), "classifier", folder).load()
    shutil.rmtree(folder)
    reopened = fs.open_store(tmp_path / "features.fstore", mode="r")
    images = reopened.images("stimuli")
    features = reopened.get(tiny_network(), "classifier", images)
    xr.testing.assert_equal(features.drop_vars("path", errors="ignore"),
                            expected.drop_vars("path", errors="ignore"))  # fmt: skip
    assert "stimuli" in repr(reopened.images())
    with pytest.raises(FeaturesMissingError, match="mode='a'") as caught:
        reopened.get(tiny_network(), "features.0", images)
    assert len(caught.value.missing) == 12
    with pytest.raises(ReadOnlyError):
        reopened.extract(reopened.plan(tiny_network(), "features.0", images))


def test_an_image_set_is_found_by_its_label_unless_that_means_two_things(store, folder, tmp_path):
    images = fs.read_images(folder)
    store.get(tiny_network(), "classifier", images)
    store.get(tiny_network(), "classifier", images[:3])
    assert len(store.images("stimuli")) == 12
    assert len(store.images("stimuli [3 of 12]")) == 3
    elsewhere = tmp_path / "elsewhere" / "stimuli"
    elsewhere.mkdir(parents=True)
    Image.new("RGB", (40, 40), "red").save(elsewhere / "red.png")
    store.get(tiny_network(), "classifier", elsewhere)
    with pytest.raises(InvalidInputError, match="by its key") as caught:
        store.images("stimuli")
    assert {len(store.images(key)) for key in caught.value.choices} == {12, 1}


def test_flatten_is_a_view_in_c_order_and_is_stored_once(store, folder, counted):
    full = store.get(tiny_network(), "features.0", folder)
    n = len(counted.batches)
    flat = store.get(tiny_network(), "features.0", folder, readout="flatten")
    assert len(counted.batches) == n
    assert len(store.ls()) == 1
    assert flat.dims == ("image", "feature")
    expected = full.values.reshape(12, -1)
    np.testing.assert_array_equal(flat.values, expected)
    np.testing.assert_array_equal(flat[3:5, 100:9000:7].values, expected[3:5, 100:9000:7])
    np.testing.assert_array_equal(flat[-1, 4321].values, expected[-1, 4321])


def test_avgpool_is_the_same_computed_derived_or_read_only(tmp_path, folder, counted):
    direct = fs.open_store(tmp_path / "a").get(
        tiny_network(), "features.3", folder, readout="avgpool"
    )
    assert direct.dims == ("image", "channel")
    store = fs.open_store(tmp_path / "b")
    full = store.get(tiny_network(), "features.3", folder)
    n = len(counted.batches)
    reader_only = fs.open_store(tmp_path / "b", mode="r")
    on_the_fly = reader_only.get(tiny_network(), "features.3", folder, readout="avgpool")
    derived = store.get(tiny_network(), "features.3", folder, readout="avgpool")
    assert len(counted.batches) == n
    np.testing.assert_array_equal(derived.values, direct.values)
    np.testing.assert_array_equal(on_the_fly.values, direct.values)
    np.testing.assert_allclose(direct.values, full.values.mean(axis=(2, 3)), rtol=1e-6, atol=1e-7)
    with pytest.raises(InvalidInputError, match="avgpool"):
        store.get(tiny_network(), "classifier", folder, readout="avgpool")


def test_large_results_are_dask_arrays_with_the_chunks_of_the_store(store, folder):
    with fs.set_options(lazy_threshold=0):
        features = store.get(tiny_network(), "features.0", folder)
        again = store.get(tiny_network(), "features.0", folder)
    assert features.chunks is not None
    assert features.data.name == again.data.name
    expected = store.get(tiny_network(), "features.0", folder).values
    np.testing.assert_array_equal(features.values, expected)
    np.testing.assert_array_equal(features[2:5, 3].compute().values, expected[2:5, 3])
    np.testing.assert_allclose(features.mean().compute(), expected.mean(), rtol=1e-5)


def test_loading_beyond_the_memory_budget_is_refused_with_both_numbers(store, folder):
    store.get(tiny_network(), "features.0", folder)
    with fs.set_options(memory_budget=2000), pytest.raises(MemoryBudgetError) as caught:
        store.get(tiny_network(), "features.0", folder, load=True)
    assert caught.value.projected_nbytes == 12 * 8 * 32 * 32 * 4
    assert caught.value.allowed_nbytes == 2000


def test_damaged_rows_are_named_and_healed_by_the_next_request(
    store, folder, monkeypatch, tmp_path
):
    monkeypatch.setattr(reader, "CONFIRM_AFTER_S", 0)
    expected = store.get(tiny_network(), "features.0", folder).values
    (shard,) = (tmp_path / "features.fstore" / "columns").glob("*/activations/c.0*")
    data = bytearray(shard.read_bytes())
    data[5] ^= 4
    shard.write_bytes(bytes(data))
    fresh = fs.open_store(tmp_path / "features.fstore")
    with pytest.raises(CorruptDataError, match="recomputed") as caught:
        _ = fresh.get(tiny_network(), "features.0", folder).values
    assert caught.value.images
    healed = fresh.get(tiny_network(), "features.0", folder)
    np.testing.assert_array_equal(healed.values, expected)


def test_what_cannot_fit_on_the_disk_is_refused_before_anything_runs(
    store, folder, monkeypatch, counted
):
    monkeypatch.setattr(type(store._catalog), "free_nbytes", lambda _self: 1000)
    with pytest.raises(DiskSpaceError) as caught:
        store.get(tiny_network(), "features.0", folder)
    assert caught.value.free_nbytes == 1000
    assert caught.value.projected_nbytes > 1000
    assert counted.batches == []


def test_a_batch_that_exceeds_the_memory_budget_is_refused_with_a_size_that_fits(
    store, folder, counted
):
    with fs.set_options(memory_budget=400_000), pytest.raises(MemoryBudgetError) as caught:
        store.get(tiny_network(), "features.0", folder, batch_size=64)
    assert counted.batches == []
    with fs.set_options(memory_budget=400_000):
        store.get(tiny_network(), "features.0", folder, batch_size=caught.value.batch_size)


def test_out_of_device_memory_goes_on_with_smaller_batches_and_records_them(store, folder):
    class Greedy(TinyNetwork):
        def forward(self, images):
            if len(images) > 3:
                raise torch.OutOfMemoryError("CUDA out of memory (a test)")
            return super().forward(images)

    greedy = fs.wrap(Greedy(), name="greedy", preprocess=tiny_transform, preprocess_id="v1")
    features = store.get(greedy, "features.0", folder, batch_size=12)
    np.testing.assert_array_equal(
        features.values, truth({"path": features["path"].values}, "features.0", batch_size=3)
    )
    column = store._catalog.column(features.attrs["feature_key"])
    run = store._catalog.run(column.companion(0).run)
    assert run["batch_size"] == 3
    assert run["environment"]["torch"] == torch.__version__


def test_wrong_calls_say_what_to_do_before_anything_is_computed(store, folder, tmp_path, counted):
    with pytest.raises(ModuleNotFoundInModelError, match=r"Did you mean 'features\.3'"):
        store.get(tiny_network(), "feature.3", folder)
    with pytest.raises(StoreNotFoundError, match="mode='a'"):
        fs.open_store(tmp_path / "none", mode="r")
    with pytest.raises(InvalidInputError, match="not a feature store"):
        fs.open_store(folder)
    with pytest.raises(InvalidInputError, match=r"fs\.wrap"):
        store.get(TinyNetwork(), "features.0", folder)
    with pytest.raises(InvalidInputError, match="flatten"):
        store.get(tiny_network(), "features.0", folder, readout="cls")
    for wrong in ("int8", "float64", "banana", None, np.float32):
        with pytest.raises(InvalidInputError, match="float16"):
            store.get(tiny_network(), "features.0", folder, dtype=wrong)
    with pytest.raises(InvalidInputError, match="bf16"):
        store.get(tiny_network(), "features.0", folder, precision="double")
    for wrong in (None, 3, ["features.0"]):
        with pytest.raises(InvalidInputError, match="get_many"):
            store.get(tiny_network(), wrong, folder)
    for wrong in ("gpu", "cuda:x", 3):
        with pytest.raises(InvalidInputError, match="device="):
            store.get(tiny_network(), "features.0", folder, device=wrong)
    for wrong in ("", None, 5):
        with pytest.raises(InvalidInputError, match="not a path"):
            fs.open_store(wrong)
    with pytest.raises(InvalidInputError, match="empty"):
        store.get(tiny_network(), "features.0", "")
    with pytest.raises(InvalidInputError, match="errors="):
        store.get(tiny_network(), "features.0", folder, errors="ignore")
    with pytest.raises(InvalidInputError, match="batch_size"):
        store.get(tiny_network(), "features.0", folder, batch_size=0)
    with pytest.raises(InvalidInputError):
        store.get(tiny_network(), "features.0", tmp_path / "empty")
    assert counted.batches == []


def test_weights_that_changed_after_wrapping_are_noticed(store, folder):
    network = TinyNetwork()
    model = fs.wrap(network, name="tiny", preprocess=tiny_transform, preprocess_id="tiny-v1")
    store.get(model, "classifier", fs.read_images(folder)[:4])
    with torch.no_grad():
        network.classifier.weight += 1
    with pytest.raises(fs.errors.WeightsChangedError, match="wrap"):
        store.get(model, "classifier", folder)


def test_a_filled_store_is_read_without_torch(tmp_path, folder):
    store = fs.open_store(tmp_path / "features.fstore")
    expected = store.get("squeezenet1_1", "features.0", folder, weights=None, seed=3).values
    np.save(tmp_path / "expected.npy", expected)
    code = f"""
import sys
for name in ("torch", "torchvision", "timm", "tensorflow"):
    sys.modules[name] = None
import numpy as np
import featurestore as fs
for mode in ("r", "a"):
    store = fs.open_store({str(tmp_path / "features.fstore")!r}, mode=mode)
    for images in ({str(folder)!r}, store.images("stimuli")):
        features = store.get("squeezenet1_1", "features.0", images, weights=None, seed=3)
        np.testing.assert_array_equal(features.values, np.load({str(tmp_path / "expected.npy")!r}))
    assert store.plan("squeezenet1_1", "features.0", images, weights=None, seed=3).n_missing == 0
    print(store.ls())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "squeezenet1_1" in done.stdout
