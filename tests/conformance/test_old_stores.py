"""Stores of every format that was ever released are read by this version, and by plain xarray."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

import featurestore as fs
from featurestore.storage.catalog import open_catalog

HERE = Path(__file__).parent
STORES = sorted(path for path in HERE.glob("format-*") if path.is_dir())
N_IMAGES = 10
COLUMNS = (
    ("features.0", (4, 3, 3), "float32", None),  # does not compress
    ("features.3", (6, 2, 2), "float16", None),
    ("classifier", (40, 1, 1), "float32", None),  # compresses
)


def picture(n):
    return np.full((8, 8, 3), n, np.uint8)


def values(name, n):
    """What row n of a column holds: a formula, so that no version's code is needed to know it."""
    number = [column[0] for column in COLUMNS].index(name)
    shape = COLUMNS[number][1]
    size = int(np.prod(shape))
    if name == "classifier":
        flat = np.where(np.arange(size) % 5, 0.0, n + 1.0)
    else:
        flat = (np.arange(size) * 37 % 101 - 50 + 3 * n) / 8
    return flat.astype(np.float32).reshape(shape)


def test_there_is_a_store_of_each_format():
    assert [path.name for path in STORES] == ["format-1"]


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.name)
def test_an_old_store_gives_the_values_that_were_stored(path):
    store = fs.open_store(path, mode="r")
    (known,) = store.images()
    images = store.images(known.label)
    assert images.names[3] == "Bild-3 ☃.png"
    assert list(images.coords["category"][:2]) == ["tool", "animal"]
    for name, _, dtype, _ in COLUMNS:
        features = store.get("alexnet", name, images, dtype=dtype, load=True)
        assert features.dtype == dtype
        for n in range(N_IMAGES):
            np.testing.assert_array_equal(features.values[n], values(name, n))
    assert [(c.module, c.n_images) for c in store.ls()] == [
        ("classifier", 10),
        ("features.0", 10),
        ("features.3", 10),
    ]
    tag = store.tag("Arbeit-2026")
    assert tag.n_rows == 4


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.name)
def test_an_old_store_is_found_whole_and_needs_no_torch(path):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['torchvision'] = None\n"
        "import featurestore as fs\n"
        f"report = fs.open_store({str(path)!r}, mode='r').verify()\n"
        "print([f.problem for f in report.damage])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['marker']"  # which is false on purpose


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.name)
def test_an_old_store_goes_on_being_filled_and_compacted(path, tmp_path):
    copy = tmp_path / "s.fstore"
    shutil.copytree(path, copy)
    store = fs.open_store(copy)
    images = store.images(store.images()[0].label)
    store.verify(repair=True)
    store.compact(grace_s=0)
    catalog = open_catalog(copy, "a")
    for layout in list(catalog.layouts()):
        column = catalog.column(layout.key)
        digests = np.full((2, 16), 7, np.uint8)
        digests[1] = 9
        rows = np.ones((2, *layout.shape), np.float32)
        column.append(layout.feature, layout.dims, digests, rows, dtype=layout.dtype, run="0" * 32)
        assert column.n_rows() == N_IMAGES + 2
    for name, _, dtype, _ in COLUMNS:
        features = fs.open_store(copy).get("alexnet", name, images, dtype=dtype, load=True)
        for n in range(N_IMAGES):
            np.testing.assert_array_equal(features.values[n], values(name, n))
    assert fs.open_store(copy).verify().ok


@pytest.mark.parametrize("path", STORES, ids=lambda path: path.name)
def test_plain_xarray_reads_an_old_store_as_the_specification_says(path):
    catalog = open_catalog(path, "r")
    for layout in catalog.layouts():
        column = xr.open_zarr(path / "columns" / layout.key)
        named = (column["image"] != 0).any("byte").values
        rows = column["activations"].values[named]
        digests = column["image"].values[named]
        assert len({d.tobytes() for d in digests}) == N_IMAGES
        name = str(layout.feature["module"])
        known = {values(name, n).astype(layout.dtype).tobytes() for n in range(N_IMAGES)}
        assert {row.tobytes() for row in rows} == known
