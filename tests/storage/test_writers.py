"""Any number of processes may fill one store: duplicates cost time, never correctness."""

from __future__ import annotations

import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from featurestore.storage import disk, reader
from featurestore.storage.catalog import Catalog, open_catalog
from featurestore.storage.column import Column
from featurestore.storage.compaction import compact_column
from featurestore.storage.reader import DamagedRowsError, RowsMovedError
from featurestore.storage.sweep import sweep_column
from tests.storage.children import FEATURES, digests_of, publish, true_rows
from tests.storage.conftest import KEY, append, rows_of
from tests.storage.many import HARD, LaggingBlobs

ROOT = Path(__file__).parents[2]
DENSE = FEATURES["dense"]
RUN = "0" * 32


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch):
    monkeypatch.setattr(reader, "CONFIRM_AFTER_S", 0)


@pytest.mark.skipif(os.name == "nt", reason="kills and stops processes as POSIX does")
@pytest.mark.parametrize("start", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
@pytest.mark.parametrize("hard", HARD)
def test_eight_writers_leave_the_rows_of_a_serial_run_and_wait_for_nobody(hard, start):
    # From a process without torch, which may fork.
    done = subprocess.run(
        [sys.executable, "-m", "tests.storage.children", "writers", "--hard", hard,
         "--start", start],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)
    assert outcome.pop("seconds") < 30
    assert outcome == {
        "failed": 0,
        "killed": int(hard == "one killed"),
        "locks": 0,
        "differing": 0,
        "missing_while_stopped": 0,
        "untrue": 0,
    }


def test_a_store_that_another_process_begins_while_it_is_opened_is_no_strange_folder(
    tmp_path, monkeypatch
):
    """The other process comes in between the look for the marker and the look at the folder."""
    real = Catalog.read

    def begin_meanwhile(self, path):
        found = real(self, path)
        monkeypatch.setattr(Catalog, "read", real)
        _write(self.blobs.root, range(3))
        return found

    root = tmp_path / "s.fstore"
    root.mkdir()
    (root / ".tmp.x").write_bytes(b"")  # of a process that is about to write the marker
    monkeypatch.setattr(Catalog, "read", begin_meanwhile)
    catalog = open_catalog(root, "a")
    publish(catalog, DENSE, range(3, 6), catalog.create_run({}))
    column = open_catalog(root, "r").column(DENSE.key)
    rows = column.read(column.lookup(digests_of(range(6))))
    np.testing.assert_array_equal(rows, true_rows(DENSE, range(6)))


@pytest.mark.parametrize("has_links", [True, False])
def test_writers_that_disagree_about_compression_share_the_first_layout(
    blobs, monkeypatch, has_links
):
    """The other writer comes in between this one's look and its write, at each of its calls."""
    if not has_links:
        monkeypatch.setattr(os, "link", _refuse)
    zeros, noise = np.zeros((4, 500), np.float32), rows_of(4, (500,))
    for k in range(1, 12):
        root = blobs.root.parent / f"{k}.fstore"
        one, two = (Column(type(blobs)(root), KEY, writable=True) for _ in range(2))
        left = k

        def interleave(_name, _path, two=two):
            nonlocal left
            left -= 1
            if left == 0:
                append(two, digests_of(range(4, 8)), noise)

        monkeypatch.setattr(disk, "before", interleave)
        append(one, digests_of(range(4)), zeros)
        monkeypatch.setattr(disk, "before", None)
        fresh = Column(blobs=type(blobs)(root), key=KEY, writable=False)
        assert one.layout == two.layout == fresh.layout
        for column in (one, two, fresh):
            values = column.read(column.lookup(digests_of(range(8))))
            np.testing.assert_array_equal(values, np.concatenate([zeros, noise]))


def _refuse(*_args, **_kwargs):
    raise OSError(errno.EPERM, "no links here")


def _write(root, numbers):
    catalog = open_catalog(root, "a")
    publish(catalog, DENSE, numbers, catalog.create_run({}))


def _restore_anew(copy, root):
    shutil.rmtree(root)
    shutil.copytree(copy, root)


def _restore_over(copy, root):
    """As ``rsync --archive --delete --inplace`` does."""
    for path in sorted(root.rglob("*"), reverse=True):
        if not (copy / path.relative_to(root)).exists():
            path.unlink() if path.is_file() else path.rmdir()
    for path in copy.rglob("*"):
        target = root / path.relative_to(copy)
        if path.is_file():
            target.write_bytes(path.read_bytes())
            shutil.copystat(path, target)


@pytest.mark.parametrize("restore", [_restore_anew, _restore_over])
def test_a_reader_serves_true_values_after_the_store_was_restored_and_went_on_otherwise(
    tmp_path, restore
):
    root, copy = tmp_path / "s.fstore", tmp_path / "copy"
    _write(root, range(10))
    shutil.copytree(root, copy)
    _write(root, range(10, 20))
    column = open_catalog(root, "r").column(DENSE.key)
    asked = digests_of(range(30))
    before = column.lookup(asked)
    np.testing.assert_array_equal(column.read(before[:20]), true_rows(DENSE, range(20)))
    restore(copy, root)
    rows = column.lookup(asked)
    assert (rows[:10] >= 0).all()
    assert (rows[10:] < 0).all()
    _write(root, range(20, 30))  # into the same slot number
    rows = column.lookup(asked)
    assert (rows[10:20] < 0).all()
    assert rows[20:].tolist() == before[10:20].tolist()
    seen = [*range(10), *range(20, 30)]
    np.testing.assert_array_equal(column.read(rows[seen]), true_rows(DENSE, seen))


def test_a_reader_whose_listings_lag_behind_a_restored_store_sees_no_rows_of_others(tmp_path):
    root, copy = tmp_path / "s.fstore", tmp_path / "copy"
    _write(root, range(10))
    shutil.copytree(root, copy)
    _write(root, range(10, 20))
    blobs = LaggingBlobs(root)
    blobs.lag_s = 3600.0
    late = Column(blobs, DENSE.key, writable=False)
    asked = digests_of(range(30))
    rows = late.lookup(asked)
    _restore_anew(copy, root)
    _write(root, range(20, 30))  # of the same size, under the same slot number
    with pytest.raises(RowsMovedError):
        late.read(rows[10:20])
    rows = late.lookup(asked)
    assert (rows[10:20] < 0).all()
    seen = [*range(10), *range(20, 30)]
    np.testing.assert_array_equal(late.read(rows[seen]), true_rows(DENSE, seen))


def test_a_reader_whose_listings_lag_behind_a_compaction_sees_no_wrong_value(tmp_path):
    root = tmp_path / "s.fstore"
    catalog = open_catalog(root, "a")
    for n in range(3):
        publish(catalog, DENSE, range(10 * n, 10 * n + 10), RUN)
    blobs = LaggingBlobs(root)
    blobs.lag_s = 3600.0
    asked = digests_of(range(30))
    late = Column(blobs, DENSE.key, writable=False)
    assert (late.lookup(asked) >= 0).all()
    compact_column(catalog, catalog.column(DENSE.key))
    sweep_column(catalog.column(DENSE.key), grace_s=-60)
    found = 0
    for number in range(30):
        row = late.lookup(asked[number : number + 1])
        if row[0] < 0:
            continue
        try:
            value = late.read(row)
        except DamagedRowsError:
            continue  # not where its listing says
        np.testing.assert_array_equal(value, true_rows(DENSE, [number]))
        found += 1
    assert found == 0
    blobs.lag_s = -1.0
    late = Column(blobs, DENSE.key, writable=False)
    np.testing.assert_array_equal(late.read(late.lookup(asked)), true_rows(DENSE, range(30)))


@pytest.mark.parametrize("writable", [True, False])
def test_a_process_whose_listings_lagged_finds_all_rows_once_they_catch_up(tmp_path, writable):
    root = tmp_path / "s.fstore"
    catalog = open_catalog(root, "a")
    for n in range(3):
        publish(catalog, DENSE, range(10 * n, 10 * n + 10), RUN)
    blobs = LaggingBlobs(root)
    blobs.lag_s = 3600.0
    asked = digests_of(range(30))
    late = Column(blobs, DENSE.key, writable=writable)
    rows = late.lookup(asked)
    compact_column(catalog, catalog.column(DENSE.key))
    sweep_column(catalog.column(DENSE.key), grace_s=-60)
    with pytest.raises(DamagedRowsError):
        late.read(rows)
    blobs.lag_s = -1.0
    np.testing.assert_array_equal(late.read(late.lookup(asked)), true_rows(DENSE, range(30)))
    fresh = open_catalog(root, "r").column(DENSE.key)
    np.testing.assert_array_equal(fresh.read(fresh.lookup(asked)), true_rows(DENSE, range(30)))
