"""Rows that anyone can check, and programs that write them: to be killed, or run side by side.

A row is a pure function of its image's digest and its column, so that whoever reads one knows its
true value. Nothing here imports torch: a program starts in a fraction of a second and may fork.

Run as ``python -m tests.storage.children kills`` or ``… exits``.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import signal
import struct
import sys
import traceback
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import xxhash

from featurestore.canonical import digest_of
from featurestore.errors import StoreNotFoundError
from featurestore.keys import FeatureSpec
from featurestore.networks.taps import Tap
from featurestore.storage.catalog import Catalog, open_catalog
from featurestore.storage.reader import DamagedRowsError, RowsMovedError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from featurestore.typing import StoredDtype

MODEL = "c0" * 16
MAX_LOOKS = 5  # rows that move while they are read are looked up again


@dataclass(frozen=True)
class Feature:
    """A column of made-up rows."""

    name: str
    shape: tuple[int, ...]
    dtype: StoredDtype = "float32"
    sparse: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What the key is made from."""
        return FeatureSpec(MODEL, Tap(self.name, 0), None, "fp32", self.dtype).to_json()

    @functools.cached_property
    def key(self) -> str:
        return digest_of("feature", self.facts)

    @property
    def dims(self) -> tuple[str, ...]:
        return ("channel", "y", "x")[-len(self.shape) :]


FEATURES = {
    feature.name: feature
    for feature in (
        Feature("dense", (5,)),
        Feature("sparse", (16, 8, 8), sparse=True),
        Feature("half", (3, 4, 4), dtype="float16"),
    )
}


def digests_of(numbers: Iterable[int]) -> np.ndarray[Any, Any]:
    """Return the digests of made-up images, shape (n, 16)."""
    text = b"".join(xxhash.xxh3_128_digest(b"image %d" % number) for number in numbers)
    return np.frombuffer(text, np.uint8).reshape(-1, 16)


def true_rows(feature: Feature, numbers: Iterable[int]) -> np.ndarray[Any, Any]:
    """Return what the rows of images have to be, in the stored dtype."""
    rows = [_true_row(feature, int(number)) for number in numbers]
    return np.array(rows, feature.dtype).reshape(-1, *feature.shape)


@functools.lru_cache(maxsize=20_000)
def _true_row(feature: Feature, number: int) -> np.ndarray[Any, Any]:
    seed = [int(feature.key[:8], 16), number]
    values = np.random.Generator(np.random.PCG64(seed)).normal(size=feature.shape)
    values = values.astype(np.float32)
    return (np.maximum(values - 1, 0) if feature.sparse else values).astype(feature.dtype)


@dataclass
class Verdict:
    """What a reader found, against what it should have."""

    n_rows: int = 0
    n_wrong: int = 0
    n_lost: int = 0
    n_damaged: int = 0
    found: dict[str, set[int]] = field(default_factory=dict)

    @property
    def is_good(self) -> bool:
        return not (self.n_wrong or self.n_lost or self.n_damaged)


def check(
    root: Path, published: Iterable[tuple[str, int]], n_images: int, *, mode: str = "r"
) -> Verdict:
    """Read every visible row as a fresh process would, and compare it with its true value."""
    wanted = set(published)
    verdict = Verdict()
    try:
        catalog = open_catalog(root, mode)  # type: ignore[arg-type]
    except StoreNotFoundError:
        verdict.n_lost = len(wanted)
        return verdict
    for feature in FEATURES.values():
        values = visible_rows(catalog, feature, n_images, verdict)
        found = sorted(values)
        if found:
            for number, true in zip(found, true_rows(feature, found), strict=True):
                verdict.n_wrong += values[number].tobytes() != true.tobytes()
        verdict.n_rows += len(found)
        verdict.found[feature.name] = set(found)
        verdict.n_lost += sum(
            name == feature.name and number not in values for name, number in wanted
        )
    return verdict


def visible_rows(
    catalog: Catalog, feature: Feature, n_images: int, verdict: Verdict | None = None
) -> dict[int, np.ndarray[Any, Any]]:
    """Read all rows of a column that a lookup finds, by image number."""
    column = catalog.column(feature.key)
    numbers = np.arange(n_images)
    for _ in range(MAX_LOOKS):
        rows = column.lookup(digests_of(numbers))
        seen = np.flatnonzero(rows >= 0)
        if not len(seen):
            return {}
        try:
            values = column.read(rows[seen])
        except RowsMovedError:
            continue
        except DamagedRowsError as err:
            if verdict is None:
                raise
            verdict.n_damaged += sum(len(bad) for bad, _ in err.damage.values())
            continue
        return dict(zip(seen.tolist(), values, strict=True))
    raise AssertionError(f"the rows of {feature.name} moved at each of {MAX_LOOKS} looks")


def publish(
    catalog: Catalog,
    feature: Feature,
    numbers: Sequence[int],
    run: str,
    acknowledge: Callable[[str, list[int]], None] | None = None,
) -> None:
    """Write those rows that are not there yet, and say which are durable now."""
    column = catalog.column(feature.key)
    asked = np.array(numbers, int)
    missing = asked[column.lookup(digests_of(asked)) < 0]
    values = true_rows(feature, missing).astype(np.float32)
    digests = digests_of(missing)
    while len(missing):
        slot = column.new_slot(feature.facts, feature.dims, values, feature.dtype)
        room = slot.room
        slot.add(digests[:room], values[:room])
        column.publish(slot, run)
        if acknowledge is not None:
            acknowledge(feature.name, missing[:room].tolist())
        missing, digests, values = missing[room:], digests[room:], values[room:]


ACKNOWLEDGED = struct.Struct("<8sH")


def acknowledge_to(descriptor: int) -> Callable[[str, list[int]], None]:
    """Send acknowledgements through a pipe, each in one piece."""

    def send(name: str, numbers: list[int]) -> None:
        for start in range(0, len(numbers), 500):
            part = numbers[start : start + 500]
            head = ACKNOWLEDGED.pack(name.encode().ljust(8), len(part))
            os.write(descriptor, head + struct.pack(f"<{len(part)}I", *part))

    return send


def parse_acknowledged(data: bytes) -> tuple[list[tuple[str, int]], bytes]:
    """Read what `acknowledge_to` sent; returns the rows and what is not complete yet."""
    rows = []
    while len(data) >= ACKNOWLEDGED.size:
        name, n = ACKNOWLEDGED.unpack_from(data)
        end = ACKNOWLEDGED.size + 4 * n
        if len(data) < end:
            break
        numbers = struct.unpack_from(f"<{n}I", data, ACKNOWLEDGED.size)
        rows += [(name.strip().decode(), number) for number in numbers]
        data = data[end:]
    return rows, data


def write_until_killed(root: Path, n_images: int, seed: int, descriptor: int) -> None:
    """Write random parts of all columns, starting anew with what is there each time."""
    rng = np.random.default_rng(seed)
    send = acknowledge_to(descriptor)
    while True:
        catalog = open_catalog(root, "a")
        run = catalog.create_run({"seed": seed})
        for _ in range(8):
            feature = list(FEATURES.values())[int(rng.integers(len(FEATURES)))]
            n = int(rng.integers(1, 60))
            publish(catalog, feature, rng.choice(n_images, n, replace=False).tolist(), run, send)


def write_all(
    catalog: Catalog, names: Sequence[str], n_images: int, seed: int, *, n_batch: int = 20
) -> None:
    """Write all rows of some columns, batch by batch, in an order of one's own."""
    rng = np.random.default_rng(seed)
    run = catalog.create_run({"seed": seed})
    order = rng.permutation(n_images)
    for start in range(0, n_images, n_batch):
        for name in names:
            publish(catalog, FEATURES[name], order[start : start + n_batch].tolist(), run)


def fork(work: Callable[[], None]) -> int:
    """Run work in a child that ends with it; returns the child's process id."""
    pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        work()
        status = 0
    finally:
        if status:  # nobody else would tell
            traceback.print_exc()
        os._exit(status)


def main() -> None:
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb in ("kills", "exits", "writers"):
        one = verbs.add_parser(verb)
        one.add_argument("--rounds", type=int, default=15)
        one.add_argument("--compact", action="store_true")
        one.add_argument("--hard")
        one.add_argument("--start")
        one.add_argument("--modes", nargs="*")
        one.add_argument("--every", type=int, default=1)
    arguments = parser.parse_args()
    outcome: Mapping[str, float]
    if arguments.verb == "kills":
        from benchmarks.kill_loop import run_kills

        outcome = run_kills(arguments.rounds, n_writers=3, compact=arguments.compact)
    elif arguments.verb == "writers":
        from tests.storage.many import run_writers

        outcome = run_writers(arguments.hard, arguments.start)
    else:
        from tests.storage.operations import run_exits

        outcome = run_exits(arguments.modes, arguments.every)
    json.dump(outcome, sys.stdout)


if __name__ == "__main__":
    main()
