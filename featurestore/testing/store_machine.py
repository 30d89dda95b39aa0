"""A store against a plain dict, in random order: what Hypothesis does to it must not show.

::

    from featurestore.testing.store_machine import StoreMachine

    TestStore = StoreMachine.TestCase

Whoever writes another place for blobs, or changes how slots are written, runs this. It needs
Hypothesis, pytest is not needed.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from featurestore.errors import CorruptDataError, FeaturesMissingError, FeatureStoreError
from featurestore.images.read import read_images
from featurestore.networks.sources.wrapped import wrap
from featurestore.options import set_options
from featurestore.storage import disk, reader
from featurestore.storage.layout import MARKER
from featurestore.store import open_store
from featurestore.testing.tiny import TinyNetwork, tiny_transform

if TYPE_CHECKING:
    from collections.abc import Iterator

    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.images.imageset import ImageSet
    from featurestore.networks.sources.torch_network import TorchNetwork
    from featurestore.store import FeatureStore

MODULES = ("features.0", "features.4", "classifier")
N_PICTURES = 9
BATCH_SIZE = 4

_pictures = st.lists(st.integers(0, N_PICTURES - 1), min_size=1, max_size=6)
_modules = st.lists(st.sampled_from(MODULES), min_size=1, max_size=3, unique=True)
_which = st.integers(0, 1)


class Killed(BaseException):
    """What stands for a process that ends at some call."""


class StoreMachine(RuleBasedStateMachine):
    """Asks, kills, damages, deletes, compacts and drops; every value is compared with torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.truth = _truth()
        self.network = _network()
        self.folder = Path(tempfile.mkdtemp(prefix="featurestore-"))
        self.path = self.folder / "s.fstore"
        self.stores = [open_store(self.path), open_store(self.path)]
        self.known: set[tuple[str, int]] = set()
        """Rows that were returned and that nothing has damaged or dropped since."""
        self.damaged = False
        """Whether something was damaged since all was last known to be well."""
        self.held: list[tuple[str, list[int], xr.DataArray]] = []
        """Lazy arrays that nothing has damaged or dropped since."""

    @initialize()
    def _be_quick(self) -> None:
        self._options = set_options(n_threads=1)
        self._wait, reader.CONFIRM_AFTER_S = reader.CONFIRM_AFTER_S, 0.0

    def teardown(self) -> None:
        """Leave nothing behind."""
        self._options.__exit__(None, None, None)
        reader.CONFIRM_AFTER_S = self._wait
        shutil.rmtree(self.folder, ignore_errors=True)

    @rule(which=_which, modules=_modules, pictures=_pictures, names=st.booleans())
    def _ask(self, which: int, modules: list[str], pictures: list[int], names: bool) -> None:
        """Ask for features, under the same or under other names, with repeats."""
        self._get(which, modules, pictures, names)

    def _get(self, which: int, modules: list[str], pictures: list[int], names: bool) -> None:
        arrays = self.stores[which].get_many(
            self.network, modules, _images(pictures, renamed=names), batch_size=BATCH_SIZE,
            load=True, progress=False,
        )  # fmt: skip
        for module, array in arrays.items():
            self._compare(module, pictures, array)
            self.known.update((module, picture) for picture in pictures)

    @rule(which=_which, module=st.sampled_from(MODULES), pictures=_pictures)
    def _hold(self, which: int, module: str, pictures: list[int]) -> None:
        """Ask for features and read them some time later."""
        array = self.stores[which].get(
            self.network, module, _images(pictures), batch_size=BATCH_SIZE, progress=False
        )
        if not self.damaged:
            self.known.update((module, picture) for picture in pictures)
            self.held.append((module, pictures, array))

    @precondition(lambda self: self.held)
    @rule(last=st.booleans())
    def _read_held(self, last: bool) -> None:
        """Read an array that was made before other things happened."""
        module, pictures, array = self.held.pop(-1 if last else 0)
        try:
            self._compare(module, pictures, array)
        except CorruptDataError:
            assert self.damaged, "an array lost its rows though nothing was damaged or dropped"

    @rule(modules=_modules, pictures=_pictures)
    def _look(self, modules: list[str], pictures: list[int]) -> None:
        """Read without writing, in a store that was opened just now."""
        if not self.path.exists():
            return
        before = _files(self.path)
        wanted = {(module, picture) for module in modules for picture in pictures}
        try:
            store = open_store(self.path, mode="r")
            arrays = store.get_many(self.network, modules, _images(pictures), load=True)
        except FeaturesMissingError:
            assert self.damaged or not wanted <= self.known, "rows that were there are gone"
        except (FeatureStoreError, FileNotFoundError):
            assert self.damaged or not self.known, "a store that nothing damaged is not read"
        else:
            for module, array in arrays.items():
                self._compare(module, pictures, array)
        assert _files(self.path) == before, "a read-only store was written to"

    @rule(which=_which, modules=_modules, pictures=_pictures, k=st.integers(1, 60))
    def _kill(self, which: int, modules: list[str], pictures: list[int], k: int) -> None:
        """End a process at its k-th call that changes the disk."""
        with contextlib.suppress(Killed), _killed_at(k):
            self.stores[which].get_many(
                self.network, modules, _images(pictures), batch_size=BATCH_SIZE, progress=False
            )
        self.stores[which] = open_store(self.path)
        self._require_known()

    @rule(which=_which, k=st.integers(1, 40))
    def _kill_compaction(self, which: int, k: int) -> None:
        """End a process while it compacts."""
        if self.path.exists():
            with contextlib.suppress(Killed), _killed_at(k):
                self.stores[which].compact(grace_s=0)
            self.stores[which] = open_store(self.path)
            self._require_known()

    @rule(which=_which, at_once=st.booleans())
    def _compact(self, which: int, at_once: bool) -> None:
        """Put the store in order."""
        self.stores[which].compact(grace_s=0 if at_once else 3600)
        self._require_known()

    @rule(which=_which, module=st.sampled_from(MODULES))
    def _drop(self, which: int, module: str) -> None:
        """Take a column away."""
        with contextlib.suppress(FeatureStoreError):
            self.stores[which].drop("tiny", module)
            self.known = {row for row in self.known if row[0] != module}
            self.held = [held for held in self.held if held[0] != module]

    @precondition(lambda self: self.known)
    @rule(
        file=st.integers(0, 10_000),
        at=st.floats(0, 1, exclude_max=True),
        bit=st.integers(0, 7),
        which=_which,
        at_once=st.booleans(),
    )
    def _flip(self, file: int, at: float, bit: int, which: int, at_once: bool) -> None:
        """Turn one bit of one file, and perhaps ask for everything at once."""
        victim = _some_file(self.path, file)
        data = bytearray(victim.read_bytes())
        if data:
            data[int(at * len(data))] ^= 1 << bit
            victim.write_bytes(data)
        self._lose(victim)
        if at_once:
            self._get(which, list(MODULES), list(range(N_PICTURES)), False)

    @precondition(lambda self: self.known)
    @rule(file=st.integers(0, 10_000), at=st.floats(0, 1, exclude_max=True))
    def _cut(self, file: int, at: float) -> None:
        """Cut one file short."""
        victim = _some_file(self.path, file)
        data = victim.read_bytes()
        victim.write_bytes(data[: int(at * len(data))])
        self._lose(victim)

    @precondition(lambda self: self.known)
    @rule(file=st.integers(0, 10_000))
    def _delete(self, file: int) -> None:
        """Delete one file."""
        victim = _some_file(self.path, file)
        victim.unlink()
        self._lose(victim)

    @rule(which=_which, repair=st.booleans(), fast=st.booleans())
    def _verify(self, which: int, repair: bool, fast: bool) -> None:
        """Check the store: what nothing damaged must be well."""
        if not self.path.exists():
            return
        report = self.stores[which].verify(repair=repair, fast=fast, progress=False)
        if not self.damaged:
            assert report.ok, report

    @rule(which=_which)
    def _open_anew(self, which: int) -> None:
        """Begin another process."""
        self.stores[which] = open_store(self.path)

    @precondition(lambda self: self.damaged)
    @rule()
    def _heal(self) -> None:
        """Ask for everything, and repair: then all is well again."""
        store = open_store(self.path)
        everything = list(range(N_PICTURES))
        arrays = store.get_many(
            self.network, list(MODULES), _images(everything), batch_size=BATCH_SIZE, load=True,
            progress=False,
        )  # fmt: skip
        for module, array in arrays.items():
            self._compare(module, everything, array)
        store.verify(repair=True, progress=False)
        store.compact(grace_s=0)
        self.stores = [open_store(self.path), open_store(self.path)]
        self.known = {(module, picture) for module in MODULES for picture in everything}
        self.damaged = _has_damaged_records(self.path, store)

    def _lose(self, victim: Path) -> None:
        if victim.name == MARKER:  # without it the store is gone, for those who have it open
            self.stores = [open_store(self.path), open_store(self.path)]
        self.known.clear()
        self.held.clear()
        self.damaged = True

    def _require_known(self) -> None:
        """Look whether all that was returned is there for a new process, and nothing is broken."""
        if not self.damaged and self.path.exists():
            report = open_store(self.path).verify(fast=True, progress=False)
            assert report.ok, report
        for module in MODULES:
            pictures = sorted(picture for name, picture in self.known if name == module)
            if pictures:
                plan = open_store(self.path).plan(self.network, module, _images(pictures))
                assert plan.n_missing == 0, f"{plan.n_missing} rows of {module} are lost"

    def _compare(self, module: str, pictures: list[int], array: xr.DataArray) -> None:
        expected = self.truth[module][pictures]
        np.testing.assert_array_equal(array.values, expected)
        assert array.dtype == expected.dtype


def _has_damaged_records(path: Path, store: FeatureStore) -> bool:
    # A damaged key record may still be on its way to the disk for an hour: it is not repaired yet.
    return path.exists() and not store.verify(fast=True, progress=False).ok


@contextlib.contextmanager
def _killed_at(k: int) -> Iterator[None]:
    left = k

    def count(_name: str, path: Path) -> None:
        nonlocal left
        left -= 1
        if left <= 0:  # and nothing that is done on the way out reaches the disk either
            raise Killed(path)

    disk.before = count
    try:
        yield
    finally:
        disk.before = None


def _files(path: Path) -> dict[str, tuple[int, int]]:
    return {str(file): (file.stat().st_size, file.stat().st_mtime_ns) for file in path.rglob("*")}


def _some_file(path: Path, number: int) -> Path:
    """Choose a file, half of the time one with values: there are few among many small ones."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    shards = [file for file in files if file.parent.name == "activations" and file.suffix == ".0"]
    chosen = shards if number % 2 and shards else files
    return chosen[number // 2 % len(chosen)]


def _pictures_as_arrays() -> list[NDArray[np.uint8]]:
    draw = np.random.default_rng(0)
    return list(draw.integers(0, 256, (N_PICTURES, 32, 32, 3), dtype=np.uint8))


def _images(pictures: list[int], *, renamed: bool = False) -> ImageSet:
    arrays = _pictures_as_arrays()
    prefix = "again" if renamed else "picture"
    return read_images(
        [arrays[n] for n in pictures], names=[f"{prefix}-{n}-{k}" for k, n in enumerate(pictures)]
    )


_held: dict[str, Any] = {}


def _network() -> TorchNetwork:
    if "network" not in _held:
        _held["network"] = wrap(
            TinyNetwork(), name="tiny", preprocess=tiny_transform, preprocess_id="tiny-v1"
        )
    network: TorchNetwork = _held["network"]
    return network


def _truth() -> dict[str, NDArray[np.float32]]:
    """Run the network by hand, hooked with a clone, in batches of the same size."""
    if "truth" in _held:
        return _held["truth"]  # type: ignore[no-any-return]
    from PIL import Image  # noqa: PLC0415 - only the oracle needs it

    network = TinyNetwork().eval()
    inputs = np.stack([tiny_transform(Image.fromarray(array)) for array in _pictures_as_arrays()])
    caught: dict[str, list[NDArray[np.float32]]] = {module: [] for module in MODULES}
    for module in MODULES:
        network.get_submodule(module).register_forward_hook(
            lambda _module, _inputs, output, name=module: caught[name].append(
                output.detach().clone().numpy()[:1]
            )
        )
    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.no_grad():
            for image in inputs:
                network(torch.from_numpy(np.repeat(image[None], BATCH_SIZE, axis=0)))
    finally:
        torch.set_num_threads(n_threads)
    _held["truth"] = {module: np.concatenate(rows) for module, rows in caught.items()}
    return _held["truth"]  # type: ignore[no-any-return]
