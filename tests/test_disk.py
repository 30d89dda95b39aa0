"""Disks that fill up, fail, vanish or may not be written; and what is written where nothing may."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple

import numpy as np
import pytest
from PIL import Image

import featurestore as fs
from featurestore.errors import (
    DiskSpaceError,
    InvalidInputError,
    ReadOnlyError,
    StoreUnavailableError,
)
from featurestore.networks.sources.torch_network import TorchSession
from featurestore.planning import budget
from featurestore.storage import disk
from featurestore.storage.presence import free_nbytes
from featurestore.testing.tiny import tiny_network
from tests.test_store import truth

N = 40


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Forty pictures: ten batches of four."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(N):
        pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def expected(images):
    return truth({"path": sorted(images.iterdir())}, "features.0", batch_size=4)


class Forwards:
    """Counts forward passes, each taking a while, and does something at one of them."""

    def __init__(self, monkeypatch):
        self.n, self.at, self.act = 0, -1, None
        real = TorchSession.forward

        def forward(session, batch):
            self.n += 1
            if self.n == self.at:
                self.act()
            time.sleep(0.02)
            return real(session, batch)

        monkeypatch.setattr(TorchSession, "forward", forward)


@pytest.fixture
def forwards(monkeypatch):
    return Forwards(monkeypatch)


def get(root, images, mode="a"):
    """Every batch is published in a slot of its own."""
    with fs.set_options(commit_interval_s=0):
        store = fs.open_store(root, mode=mode)
        return store.get(tiny_network(), "features.0", images, batch_size=4)


def kept_rows(root, images, expected):
    """Compare what a reader sees with the truth; returns how many images that are."""
    names = sorted(images.iterdir())
    plan = fs.open_store(root, mode="r").plan(tiny_network(), "features.0", images)
    there = np.setdiff1d(np.arange(N), plan.gaps[0].compute)
    if len(there):
        rows = get(root, [str(names[k]) for k in there], mode="r")
        np.testing.assert_array_equal(rows.values, expected[there])
    return len(there)


@contextlib.contextmanager
def failing(call, code, part):
    """Once a batch is published, such calls in that folder are answered with an error."""
    published = []

    def before(name, path):
        if published and name == call and part in str(path):
            raise OSError(code, os.strerror(code), str(path))

    def after(name, path):
        if name == "link" and "/image/c." in str(path):
            published.append(path)

    disk.before, disk.after = before, after
    try:
        yield
    finally:
        disk.before = disk.after = None


CALLS = [
    ("open_new", "/activations/"),
    ("write", "/activations/"),
    ("sync", "/run/"),
    ("link", "/image/"),
    ("rename", "/row_stats/"),
]
ANSWERS = [
    (errno.ENOSPC, DiskSpaceError, "is full"),
    (errno.EDQUOT, DiskSpaceError, "quota"),
    (errno.EROFS, ReadOnlyError, "cannot be written"),
    (errno.EIO, StoreUnavailableError, "does not answer"),
    (errno.ESTALE, StoreUnavailableError, "not damage"),
    (errno.ENOTCONN, StoreUnavailableError, "mount"),
]


def some(first, second):
    """Every pair; those without the first of either list are slow."""
    return [
        pytest.param(a, b, marks=[] if a is first[0] or b is second[0] else [pytest.mark.slow])
        for a in first
        for b in second
    ]


@pytest.mark.parametrize(("call", "answer"), some(CALLS, ANSWERS), ids=lambda value: str(value[0]))
def test_a_disk_that_fails_midway_loses_nothing_published_and_the_same_call_goes_on(
    tmp_path, images, expected, forwards, call, answer
):
    (call, part), (code, error, says) = call, answer
    root = tmp_path / "s"
    with failing(call, code, part), pytest.raises(error, match=says) as caught:
        get(root, images)
    said = caught.value
    assert str(root) in str(said)
    assert said.n_done > 0
    assert said.n_missing == N - said.n_done
    assert said.n_lost >= 4
    assert f"{said.n_lost} more were computed" in str(said)
    assert forwards.n < N // 4  # it stopped rather than compute what cannot be kept
    assert said.n_done + said.n_lost == 4 * forwards.n
    if error is DiskSpaceError:
        assert said.needed_nbytes >= (N - said.n_done) * expected[0].nbytes
        assert said.free_nbytes > 0
    assert not list(root.rglob(".tmp.*"))
    shards, keys = (list(root.glob(f"columns/*/{kind}/c.*")) for kind in ("activations", "image"))
    assert len(shards) == len(keys) + (part == "/image/")  # what takes room can be seen, or goes
    assert not list(root.rglob("damage/*"))
    assert kept_rows(root, images, expected) == said.n_done
    forwards.n = 0
    np.testing.assert_array_equal(get(root, images).values, expected)
    assert forwards.n == (N - said.n_done) // 4


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 24 MB, really mounted."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount program here")
    if mounted.returncode:
        pytest.skip(f"may not mount a small disk here: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_disk_that_is_really_full_midway_is_no_loss(
    small_disk, images, expected, forwards, monkeypatch
):
    monkeypatch.setattr(budget, "DISK_RESERVE_NBYTES", 0)
    root, filler = small_disk / "s", small_disk / "filler"

    def fill():
        with contextlib.suppress(OSError), filler.open("ab", buffering=0) as file:
            while True:
                file.write(bytes(4096))

    forwards.at, forwards.act = 5, fill
    with pytest.raises(DiskSpaceError) as caught:
        get(root, images)
    assert 0 < caught.value.n_done < N
    assert caught.value.free_nbytes < 24 * 2**20
    assert not list(root.rglob(".tmp.*"))
    assert kept_rows(root, images, expected) == caught.value.n_done
    fill()
    n = forwards.n
    with pytest.raises(DiskSpaceError):  # still full: said before anything is computed
        get(root, images)
    assert forwards.n == n
    filler.unlink()
    np.testing.assert_array_equal(get(root, images).values, expected)


def test_a_read_only_disk_is_said_before_a_model_is_loaded_and_can_be_read(
    small_disk, images, expected, forwards, monkeypatch
):
    from featurestore.networks import registry

    monkeypatch.setattr(budget, "DISK_RESERVE_NBYTES", 0)
    root = small_disk / "s"
    get(root, sorted(images.iterdir())[:8])
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    n = forwards.n
    monkeypatch.setattr(registry, "load", lambda _request: pytest.fail("loaded a model"))
    with pytest.raises(ReadOnlyError, match="cannot be written"):
        get(root, images)
    with pytest.raises(ReadOnlyError, match="Nothing was computed"):
        fs.open_store(root).get("alexnet", "features.0", images, weights=None)
    with pytest.raises(ReadOnlyError, match="nearest folder that exists"):
        get(small_disk / "new" / "t", images)
    assert forwards.n == n
    assert not (small_disk / "new").exists()
    assert kept_rows(root, images, expected) == 8
    hit = get(root, sorted(images.iterdir())[:8])  # all there: nothing to write
    np.testing.assert_array_equal(hit.values, expected[:8])


def test_an_unwritable_parent_is_said_before_a_model_is_loaded(tmp_path, images, monkeypatch):
    from featurestore.networks import registry

    if os.geteuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "mine").mkdir(mode=0o555)
    monkeypatch.setattr(registry, "load", lambda _request: pytest.fail("loaded a model"))
    store = fs.open_store(tmp_path / "mine" / "s")
    with pytest.raises(ReadOnlyError, match="ask for write permission"):
        store.get("alexnet", "features.0", images, weights=None)


@pytest.mark.parametrize("below", ["", "s", "deep/s"])
def test_a_store_in_place_of_a_file_is_refused_when_it_is_opened(tmp_path, below):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(InvalidInputError, match="is a file"):
        fs.open_store(tmp_path / "file" / below)


def test_free_space_is_that_of_the_folder_where_the_store_will_be_made(tmp_path, monkeypatch):
    asked, usage = [], namedtuple("usage", "total free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: asked.append(path) or usage(10, 7))
    assert free_nbytes(tmp_path / "a" / "b") == 7
    assert asked == [tmp_path]
    # Some FUSE and network mounts report nothing at all: that is not a full disk.
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(0, 0))
    assert free_nbytes(tmp_path) is None


@pytest.mark.skipif(os.name == "nt", reason="statvfs is POSIX")
def test_blocks_that_are_reserved_for_root_do_not_count_as_free(tmp_path):
    facts = os.statvfs(tmp_path)
    assert abs(free_nbytes(tmp_path) - facts.f_bavail * facts.f_frsize) < 2**28  # others write


@pytest.mark.parametrize("how", ["deleted", "moved", "unmounted"])
def test_a_store_that_vanishes_midway_is_not_begun_anew(tmp_path, images, expected, forwards, how):
    root, away = tmp_path / "s", tmp_path / "away"

    def vanish():
        if how == "deleted":
            time.sleep(0.2)  # a writer in the middle of it would keep rmtree from finishing
            shutil.rmtree(root)
        else:
            root.rename(away)
        if how == "unmounted":
            root.mkdir()  # the empty folder that it was mounted on

    get(root, sorted(images.iterdir())[:4])
    forwards.at, forwards.act = forwards.n + 4, vanish
    with pytest.raises(StoreUnavailableError, match="is gone") as caught:
        get(root, images)
    assert str(root) in str(caught.value)
    assert forwards.n < N // 4
    assert not root.exists() or not list(root.iterdir())
    if how != "deleted":
        shutil.rmtree(root, ignore_errors=True)
        away.rename(root)
        assert kept_rows(root, images, expected) >= caught.value.n_done
    np.testing.assert_array_equal(get(root, images).values, expected)


@pytest.mark.parametrize("mode", ["a", "r"])
def test_rows_of_a_store_that_is_gone_are_not_called_damaged(tmp_path, images, expected, mode):
    root = tmp_path / "s"
    get(root, images)
    rows = get(root, images, mode=mode)
    root.rename(tmp_path / "away")
    with pytest.raises(StoreUnavailableError, match="deleted, moved or unmounted"):
        _ = rows.values
    assert not root.exists()
    (tmp_path / "away").rename(root)
    np.testing.assert_array_equal(rows.values, expected)


@pytest.mark.parametrize(
    ("code", "call"),
    some(
        [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT],
        ["preadv", "open", "scandir", "stat"],
    ),
)
def test_a_disk_that_cannot_be_read_is_not_damage(
    tmp_path, images, expected, monkeypatch, code, call
):
    root = tmp_path / "s"
    get(root, images)
    rows, fresh = get(root, images), fs.open_store(root)
    real = getattr(os, call)

    def fail(path, *words, **options):
        if isinstance(path, int) or str(path).startswith(f"{root}/"):
            raise OSError(code, os.strerror(code))
        return real(path, *words, **options)

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        with pytest.raises(StoreUnavailableError, match="not damage") as caught:
            _ = rows.values if call != "stat" else fs.open_store(root)
        assert caught.value.errno == code
        assert caught.value.path == str(root)
    assert not list(root.rglob("damage/*"))
    np.testing.assert_array_equal(rows.values, expected)
    assert fresh.ls()[0].n_images == N


# Reads everything there is to read, and says which calls changed something under the store.
READER = """
import json, os, sys
import numpy as np
root, images = sys.argv[1:]
changes, WRITES = [], os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def watch(event, words):
    if event == "open":
        path, _, flags = words
        writes = bool((flags or 0) & WRITES)
    else:
        writes = event in ("os.mkdir", "os.link", "os.rename", "os.remove", "os.rmdir",
                           "os.truncate", "os.chmod", "os.chown", "os.utime", "os.symlink",
                           "os.setxattr", "os.removexattr")
    paths = [str(w) for w in words[:2] if isinstance(w, (str, bytes, os.PathLike))]
    if writes and any(root in p for p in paths):
        changes.append([event, paths[-1] if event == "os.link" else paths[0]])

sys.addaudithook(watch)
import featurestore as fs
from featurestore.errors import CorruptDataError
from featurestore.testing.tiny import tiny_network
print("ready", flush=True)
for line in sys.stdin:
    changes.clear()
    store = fs.open_store(root, mode=line.strip())
    store.plan(tiny_network(), "features.0", images)
    damaged = False
    try:
        store.get(tiny_network(), "features.0", images).values
    except CorruptDataError:
        damaged = True
    store.ls(), store.images(), store.images("pictures")
    store.plan(tiny_network(), "features.0", images)
    print(json.dumps([damaged, changes]), flush=True)
"""


@pytest.fixture
def audited(tmp_path):
    """Read a store in a process of its own; says whether it is damaged, and what was written."""
    child = subprocess.Popen(
        [sys.executable, "-c", READER, tmp_path / "s", tmp_path / "pictures"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip

    def read(mode):
        child.stdin.write(f"{mode}\n")
        child.stdin.flush()
        return json.loads(child.stdout.readline())

    assert child.stdout.readline() == "ready\n"
    yield read
    child.stdin.close()
    child.stdout.close()
    assert child.wait(20) == 0


def flip(root):
    shard = min(root.glob("columns/*/activations/c.*"))
    data = bytearray(shard.read_bytes())
    data[5] ^= 4
    shard.write_bytes(bytes(data))


def state(root):
    return {
        str(path.relative_to(root)): (path.stat().st_mtime_ns, path.is_dir() or path.read_bytes())
        for path in [root, *root.rglob("*")]
    }


def test_a_read_only_store_is_never_written_not_even_where_it_is_damaged(tmp_path, audited):
    few = tmp_path / "pictures"
    few.mkdir()
    Image.fromarray(np.full((40, 40, 3), 9, np.uint8)).save(few / "a.png")
    # The recorder works: computing writes.
    damaged, changes = audited("a")
    assert not damaged
    assert {"open", "os.mkdir", "os.link"} <= {event for event, _ in changes}
    before = state(tmp_path / "s")
    assert audited("r") == [False, []]
    assert audited("a") == [False, []]  # all is there
    assert state(tmp_path / "s") == before
    flip(tmp_path / "s")
    before = state(tmp_path / "s")
    assert audited("r") == [True, []]
    assert state(tmp_path / "s") == before
    damaged, changes = audited("a")
    assert damaged
    assert changes
    assert all("/damage" in path for _, path in changes)


FILLER = """
import sys
import featurestore as fs
root, images = sys.argv[1:]
fs.set_options(progress=False, n_threads=1)
fs.open_store(root).get_many("squeezenet1_1", ["features.3", "features.12", "classifier"], images,
                             weights="random", seed=1, batch_size=4)
"""


@pytest.mark.slow
def test_the_same_request_in_fresh_processes_writes_the_same_bytes(tmp_path, images):
    chosen = tmp_path / "chosen"
    chosen.mkdir()
    for path in sorted(images.iterdir())[:10]:
        shutil.copy(path, chosen)
    children = [
        subprocess.Popen(
            [sys.executable, "-c", FILLER, tmp_path / name, chosen], stderr=subprocess.PIPE
        )
        for name in ("a", "b")
    ]
    for child in children:
        said = child.communicate()[1]
        assert child.returncode == 0, said.decode()
    trees = []
    for name in ("a", "b"):
        root = tmp_path / name
        files = {str(p.relative_to(root)): p for p in root.rglob("*") if p.is_file()}
        # Who computed it and when is meant to differ: runs, their ids beside the slots, dates.
        trees.append(
            {
                path: file.read_bytes()
                for path, file in files.items()
                if not path.startswith("runs/") and "/run/c." not in path
            }
        )
    assert trees[0].keys() == trees[1].keys()
    assert sum("/activations/c." in path for path in trees[0]) == 3
    differ = {path for path in trees[0] if trees[0][path] != trees[1][path]}
    assert {path.split("/")[0] for path in differ} <= {"featurestore.json", "imagesets"}
