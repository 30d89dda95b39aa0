"""Things that are done to a store, to be failed at the k-th call for every k, and done again.

The way SQLite is tested: whatever call fails, or is the last one before the process or the machine
dies, no reader may see a wrong value, nothing published may be lost, and the same operation must
complete when it is run again, without repair.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from featurestore.errors import CorruptDataError, FeatureStoreError
from featurestore.images.imageset import ImageSet
from featurestore.networks.spec import ModelRecord, ModelRequest, ModelSpec
from featurestore.networks.taps import ModuleInfo, OutputInfo
from featurestore.storage import disk, reader
from featurestore.storage.catalog import Catalog, open_catalog
from featurestore.storage.compaction import compact_column
from featurestore.storage.group_file import advertised
from featurestore.storage.imagesets import find_images, publish_images
from featurestore.storage.reader import DamagedRowsError
from featurestore.storage.slots import slot_numbers
from featurestore.storage.sweep import drop_rows, sweep_column
from tests.storage.children import FEATURES, check, digests_of, fork, publish, true_rows

reader.CONFIRM_AFTER_S = 0  # nothing here lies behind a cache

N_IMAGES = 30
DENSE, SPARSE = FEATURES["dense"], FEATURES["sparse"]

Acknowledge = Callable[[str, list[int]], None]
Rows = set[tuple[str, int]]


class Session:
    """One process's view of a store: opened once, used for several operations."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._catalog: Catalog | None = None

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            self._catalog = open_catalog(self.root, "a")
        return self._catalog


@dataclass(frozen=True)
class Operation:
    """Something that is done to a store."""

    name: str
    prepare: Callable[[Path], Rows]
    """Makes what is there before; returns the rows that must stay."""
    run: Callable[[Session, Acknowledge], None]
    expected: Rows
    """The rows that are there once it is done."""
    hides: tuple[str, ...] = ()
    """Calls whose failure may stay unsaid: a marker is a kindness to the next reader."""


def rows_of(*names: str, numbers: range) -> Rows:
    return {(name, number) for name in names for number in numbers}


def ignore(_name: str, _numbers: list[int]) -> None:
    pass


# What an extraction does, without its network.


def extract(session: Session, acknowledge: Acknowledge) -> None:
    """Write what a run writes: marker, model, alias, run, image set, two columns."""
    catalog = session.catalog
    request, record = _request(), _record()
    if catalog.model(record.key) is None:
        catalog.create_model(record)
    if catalog.alias(request) is None:
        catalog.create_alias(request, record.key)
    publish_images(catalog, _images())
    run = catalog.create_run({"batch_size": 8})
    publish(catalog, DENSE, range(20), run, acknowledge)
    publish(catalog, SPARSE, range(10, 30), run, acknowledge)
    publish(catalog, DENSE, range(10, 30), run, acknowledge)


def append_rows(session: Session, acknowledge: Acknowledge) -> None:
    publish(session.catalog, DENSE, range(5, 30), "0" * 31 + "1", acknowledge)


def read_damaged_rows(session: Session, acknowledge: Acknowledge) -> None:
    """Meet damage, mark it, and compute the rows again."""
    column = session.catalog.column(DENSE.key)
    rows = column.lookup(digests_of(range(N_IMAGES)))
    with suppress(DamagedRowsError):
        column.read(rows[rows >= 0])
    publish(session.catalog, DENSE, range(N_IMAGES), "0" * 31 + "2", acknowledge)


def compact(session: Session, _acknowledge: Acknowledge) -> None:
    column = session.catalog.column(DENSE.key)
    assert column.layout is not None
    compact_column(session.catalog, column)


def compact_and_sweep(session: Session, acknowledge: Acknowledge) -> None:
    compact(session, acknowledge)
    sweep_column(session.catalog.column(DENSE.key), grace_s=-60)


def drop(session: Session, _acknowledge: Acknowledge) -> None:
    column = session.catalog.column(DENSE.key)
    assert column.layout is not None
    drop_rows(column)


def _images() -> ImageSet:
    return ImageSet([f"{n}.png" for n in range(N_IMAGES)], digests_of(range(N_IMAGES)), label="i")


def _request() -> ModelRequest:
    return ModelRequest("torchvision", "toy", "random", seed=0)


def _record() -> ModelRecord:
    output = OutputInfo(0, (), DENSE.dims, DENSE.shape)
    module = ModuleInfo("features", "Toy", 0, (output,))
    return ModelRecord(
        spec=ModelSpec("torchvision", "toy", {}, "structure", "weights", {}),
        label="toy",
        weights_label="random(seed=0)",
        input_shape=(3, 8, 8),
        modules=(module,),
        probe={"features": (1.0, 2.0)},
    )


# What is there before.


def nothing(_root: Path) -> Rows:
    return set()


def some_rows(root: Path) -> Rows:
    publish(open_catalog(root, "a"), DENSE, range(10), "0" * 32)
    return rows_of("dense", numbers=range(10))


def a_damaged_shard(root: Path) -> Rows:
    some_rows(root)
    catalog = open_catalog(root, "a")
    publish(catalog, DENSE, range(10, 30), "0" * 32)
    layout = catalog.column(DENSE.key).layout
    assert layout is not None
    _flip_a_byte(root / layout.slot_name("activations", 0))
    return rows_of("dense", numbers=range(10, 30))


def damaged_documents(root: Path) -> Rows:
    extract(Session(root), ignore)
    for path in sorted(root.rglob("*.json")):
        if path.parent.name in ("models", "aliases", "imagesets", "layouts") or path.parent == root:
            _flip_a_byte(path)
    return rows_of("sparse", numbers=range(10, 30)) | rows_of("dense", numbers=range(30))


def sparse_slots(root: Path) -> Rows:
    catalog = open_catalog(root, "a")
    for start in range(0, 30, 10):
        publish(catalog, DENSE, range(start, start + 10), "0" * 32)
    column = catalog.column(DENSE.key)
    copies = range(5, 15)  # of another writer, in one more slot
    column.append(
        DENSE.facts, DENSE.dims, digests_of(copies), true_rows(DENSE, copies),
        dtype="float32", run="0" * 32,
    )  # fmt: skip
    return rows_of("dense", numbers=range(30))


def _flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x55
    path.write_bytes(data)


ALL_DENSE = rows_of("dense", numbers=range(N_IMAGES))
EXTRACTED = ALL_DENSE | rows_of("sparse", numbers=range(10, 30))

OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation("append into a new store", nothing, append_rows,
                  rows_of("dense", numbers=range(5, 30))),
        Operation("append to a column", some_rows, append_rows, ALL_DENSE),
        Operation("extract", nothing, extract, EXTRACTED),
        Operation("extract over damaged documents", damaged_documents, extract, EXTRACTED),
        Operation("mark damage", a_damaged_shard, read_damaged_rows, ALL_DENSE,
                  hides=("ENOSPC",)),
        Operation("compact", sparse_slots, compact, ALL_DENSE),
        Operation("compact and sweep", sparse_slots, compact_and_sweep, ALL_DENSE),
        Operation("drop", sparse_slots, drop, set()),
    )
}  # fmt: skip


# Making the k-th call fail.


class Fault:
    """The k-th call that changes the disk goes wrong.

    Parameters
    ----------
    k : int
        Which call, from 1.
    mode : str
        ``"EIO"`` and ``"ENOSPC"`` fail before the call, ``"late"`` after its effect, ``"half"``
        cuts what it wrote in half (and counts writes only); ``"exit before"`` and ``"exit after"``
        end the process.
    """

    def __init__(self, k: int, mode: str) -> None:
        self.k, self.mode, self.n_calls, self.is_hit = k, mode, 0, False

    @property
    def is_past(self) -> bool:
        return self.n_calls >= self.k

    def before(self, name: str, path: Path) -> None:
        self.n_calls += self.mode != "half" or name == "write"
        if self.n_calls != self.k:
            return
        if self.mode in ("EIO", "ENOSPC"):
            self.is_hit = True
            raise OSError(getattr(errno, self.mode), f"made up at {name}", str(path))
        if self.mode == "exit before":
            os._exit(EXITED)

    def after(self, name: str, path: Path) -> None:
        if self.n_calls != self.k:
            return
        if self.mode == "half" and name == "write":
            os.truncate(path, path.stat().st_size // 2)
        if self.mode == "late" or (self.mode == "half" and name == "write"):
            self.is_hit = True
            raise OSError(errno.EIO, f"made up after {name}", str(path))
        if self.mode == "exit after":
            os._exit(EXITED)


EXITED = 9
UNHIT = 10


@contextmanager
def hooks(before: Any = None, after: Any = None) -> Iterator[None]:
    """Watch the disk; meanwhile nothing is really synced, which nobody here could tell."""
    real = disk.before, disk.after, os.fsync
    disk.before, disk.after, os.fsync = before, after, _sync_nothing
    try:
        yield
    finally:
        disk.before, disk.after, os.fsync = real


def _sync_nothing(fd: object) -> None:
    pass


@dataclass
class Template:
    """A prepared store, copied for each try."""

    operation: Operation
    folder: Path
    kept: Rows = field(default_factory=set)

    def __post_init__(self) -> None:
        with hooks():
            self.kept = self.operation.prepare(self.folder / "template")

    def copy(self, name: str) -> Path:
        root = self.folder / name / "s.fstore"
        root.parent.mkdir()
        if (self.folder / "template").exists():
            shutil.copytree(self.folder / "template", root)
        return root


def require_sound(operation: Operation, root: Path, kept: Rows, where: str) -> None:
    """P1 and P2, as a fresh process sees them."""
    if operation.name == "drop":
        kept = set()
    if "documents" not in operation.name:
        verdict = check(root, kept, N_IMAGES)
    else:  # which a reader that may write sets aside; in a copy, to leave that to the next run
        copy = root.parent / "copy"
        shutil.copytree(root, copy)
        verdict = check(copy, kept, N_IMAGES, mode="a")
    assert not verdict.n_wrong, (where, verdict)
    assert not verdict.n_lost, (where, verdict)


def require_complete(operation: Operation, root: Path, where: str) -> None:
    """All is there, nothing is damaged, and plain Zarr readers see it too."""
    verdict = check(root, operation.expected, N_IMAGES)
    assert verdict.is_good, (where, verdict)
    assert verdict.n_rows == len(operation.expected), (where, verdict)
    catalog = open_catalog(root, "r")
    for layout in catalog.layouts():
        column = catalog.column(layout.key)
        names = [info.name for info in column.blobs.list(f"columns/{layout.key}/image")]
        assert advertised(column.blobs, column.key) > max(slot_numbers(names)), where
    if operation.run is extract:
        model = catalog.alias(_request())
        assert model is not None, where
        assert catalog.model(model) == _record(), where
        assert find_images(catalog, "i") == _images(), where


def try_failing(operation: Operation, folder: Path, mode: str, k: int, template: Template) -> bool:
    """Fail the k-th call, look, and run again in the same process; says whether there is a k-th."""
    where = f"{operation.name}, {mode} at call {k}"
    root = template.copy(f"{mode}{k}")
    session, fault, done = Session(root), Fault(k, mode), set(template.kept)

    def acknowledge(name: str, numbers: list[int]) -> None:
        done.update((name, number) for number in numbers)

    with hooks(fault.before, fault.after):
        try:
            operation.run(session, acknowledge)
            failed = False
        except CorruptDataError:
            raise  # that would be a lie
        except (OSError, FeatureStoreError):
            failed = True
    hidden = fault.is_hit and not failed
    assert not hidden or mode in operation.hides, where
    if not failed and not hidden:
        require_complete(operation, root, where)
        shutil.rmtree(root.parent)
        return fault.is_past  # a call that failed by itself cannot fail after its effect
    assert not list(root.rglob(".tmp.*")), where
    require_sound(operation, root, done, where)
    with hooks():
        operation.run(session, acknowledge)
        if hidden:
            read_damaged_rows(Session(root), acknowledge)
    require_complete(operation, root, where)
    shutil.rmtree(root.parent)
    return True


def run_exits(modes: list[str], every: int) -> dict[str, int]:
    """End the process before or after each call; returns how many calls there are."""
    counts = {}
    for name, operation in OPERATIONS.items():
        for mode in modes:
            with tempfile.TemporaryDirectory() as folder:
                counts[f"{name}, {mode}"] = _exit_at_each_call(
                    Template(operation, Path(folder)), mode, every
                )
    return counts


def _exit_at_each_call(template: Template, mode: str, every: int) -> int:
    operation, k = template.operation, 1 - every
    while True:
        k += every
        where = f"{operation.name}, {mode} call {k}"
        root = template.copy(f"{mode}{k}")
        receive, send = os.pipe()
        pid = fork(partial(_run_until_exit, operation, root, mode, k, send))
        os.close(send)
        with os.fdopen(receive, "rb") as pipe:
            done = {tuple(row) for line in pipe for row in json.loads(line)} | template.kept
        status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        assert status in (0, EXITED, UNHIT), where
        if status in (0, UNHIT):
            require_complete(operation, root, where)
            shutil.rmtree(root.parent)
            if status == 0:  # it made fewer calls than k
                return k
            continue
        require_sound(operation, root, done, where)
        with hooks():
            operation.run(Session(root), ignore)
        require_complete(operation, root, where)
        shutil.rmtree(root.parent)


def _run_until_exit(operation: Operation, root: Path, mode: str, k: int, send: int) -> None:
    def acknowledge(name: str, numbers: list[int]) -> None:
        os.write(send, json.dumps([(name, number) for number in numbers]).encode() + b"\n")

    fault = Fault(k, mode)
    with hooks(fault.before, fault.after):
        operation.run(Session(root), acknowledge)
    if fault.is_past:
        os._exit(UNHIT)  # the call failed by itself, so that nothing came after it


# Losing power: only what was synced is still there.


class SyncedDisk:
    """Knows what of a folder would be left if the power went now.

    Parameters
    ----------
    root : Path
        The folder. What is in it at the start is durable.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._contents: dict[int, bytes] = {}
        self._names: dict[Path, dict[str, int]] = {}
        for folder in [root.parent, *(p for p in root.rglob("*") if p.is_dir())]:
            self._sync_folder(folder)
        if root.exists():
            self._sync_folder(root)
        for path in root.rglob("*"):
            if path.is_file():
                self._contents[path.stat().st_ino] = path.read_bytes()

    def after(self, name: str, path: Path) -> None:
        """Follow a call."""
        if name == "open_new":
            self._contents[path.stat().st_ino] = b""
        elif name == "sync":
            self._contents[path.stat().st_ino] = path.read_bytes()
        elif name == "sync_folder":
            self._sync_folder(path)
        elif name == "mkdir":
            self._names.setdefault(path, {})

    def _sync_folder(self, folder: Path) -> None:
        if folder.is_dir():
            self._names[folder] = {path.name: path.stat().st_ino for path in folder.iterdir()}

    def left(self, target: Path, *, all_names: bool) -> None:
        """Write what is left somewhere else.

        Parameters
        ----------
        target : Path
            Takes the place of the root.
        all_names : bool
            Whether names that nobody synced made it to the disk all the same.
        """
        target.parent.mkdir()
        if all_names:
            self._sync_all_names()
        if self.root.name in self._names.get(self.root.parent, {}):
            self._copy(self.root, target)

    def _sync_all_names(self) -> None:
        for folder in [self.root.parent, self.root, *self.root.rglob("*")]:
            self._sync_folder(folder)

    def _copy(self, folder: Path, target: Path) -> None:
        target.mkdir()
        for name, inode in self._names.get(folder, {}).items():
            if folder / name in self._names:
                self._copy(folder / name, target / name)
            else:
                (target / name).write_bytes(self._contents[inode])


def lose_power(operation: Operation, folder: Path, *, all_names: bool, every: int) -> int:
    """Lose the power after each call, or every so many; returns how many calls there are."""
    template = Template(operation, folder)
    root = template.copy("run")
    synced, done, n_calls = SyncedDisk(root), set(template.kept), 0

    def after(name: str, path: Path) -> None:
        nonlocal n_calls
        n_calls += 1
        synced.after(name, path)
        if n_calls % every:
            return
        left = folder / f"left{n_calls}" / "s.fstore"
        state = SyncedDisk.__new__(SyncedDisk)
        state.root, state._contents = synced.root, synced._contents
        state._names = {path: dict(names) for path, names in synced._names.items()}
        state.left(left, all_names=all_names)
        where = f"{operation.name}, power lost after call {n_calls} ({name} {path.name})"
        with hooks():
            require_sound(operation, left, done, where)
            operation.run(Session(left), ignore)
            require_complete(operation, left, where)
        shutil.rmtree(left.parent)

    def acknowledge(name: str, numbers: list[int]) -> None:
        done.update((name, number) for number in numbers)

    with hooks(after=after):
        operation.run(Session(root), acknowledge)
    require_complete(operation, root, operation.name)
    return n_calls
