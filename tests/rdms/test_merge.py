"""Blocks that became many are copied into one: the same distances, fewer files."""

from __future__ import annotations

import numpy as np
import pytest

import featurestore as fs
from featurestore.rdms import pairs
from featurestore.testing.tiny import tiny_network


@pytest.fixture
def grown(tmp_path):
    """A store whose RDM grew by one image, or a few, at a time."""
    pixels = np.random.default_rng(0).integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    pixels[7] = pixels[3] // 2 * 2  # nearly alike
    images = fs.read_images(pixels, names=[f"{n:02d}" for n in range(30)])
    store, model = fs.open_store(tmp_path / "s.fstore"), tiny_network()
    for n in (3, 4, 5, 9, 10, 11, 20, 30):
        store.rdm(model, "features.3", images[:n], progress=False)
    return store, model, images


def tile_files(store):
    return sorted((store._catalog.blobs.root / "grams").rglob("tiles/*"))


def test_compacting_keeps_every_distance_and_leaves_one_tile(grown, monkeypatch):
    store, model, images = grown
    metrics = ("correlation", "cosine", "euclidean", "gaussian")
    before = {m: store.rdm(model, "features.3", images, metric=m).values for m in metrics}
    assert len(tile_files(store)) == 8 * 9 // 2
    store.compact()
    assert len(tile_files(store)) == 1
    monkeypatch.setattr(pairs, "fill", None)  # nothing is computed
    for metric, values in before.items():
        after = store.rdm(model, "features.3", images, metric=metric)
        np.testing.assert_array_equal(after.values, values)
    assert store.verify().ok


def test_a_reader_from_before_finds_the_merged_tiles(grown):
    store, model, images = grown
    with fs.set_options(lazy_threshold=1):
        lazy = store.rdm(model, "features.3", images)
    expected = store.rdm(model, "features.3", images).values
    fs.open_store(store._catalog.blobs.root).compact()
    np.testing.assert_array_equal(lazy.values, expected)


def test_blocks_that_lack_a_pair_are_left_as_they_are(grown):
    store, model, images = grown
    expected = store.rdm(model, "features.3", images).values
    tile_files(store)[5].unlink()
    n_files = len(tile_files(store))
    store.compact()
    assert len(tile_files(store)) == n_files
    np.testing.assert_array_equal(store.rdm(model, "features.3", images).values, expected)
