"""Writers are killed at random moments; after each kill a fresh reader checks every row.

    python -m benchmarks.kill_loop --rounds 1000 --writers 3
    python -m benchmarks.kill_loop --rounds 1000 --writers 3 --compact
    python -m benchmarks.kill_loop --rounds 50 --network

A row is a pure function of its image and column, so the reader knows what each has to be. What a
writer acknowledged (its call returned) before the reader looked has to be there. The other writers
go on while it looks. Nothing is ever repaired. Every `STORE_ROUNDS` kills a new store is begun.

With ``--network`` the writers extract a part of a small torchvision network through the public
interface, and the reader compares with the network's own forward pass.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import select
import signal
import sys
import tempfile
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from featurestore.storage.catalog import open_catalog
from featurestore.storage.compaction import compact_column
from featurestore.storage.sweep import sweep_column
from tests.storage.children import (
    FEATURES,
    acknowledge_to,
    check,
    fork,
    parse_acknowledged,
    write_until_killed,
)

STORE_ROUNDS = 25
MAX_DELAY_S = 0.12  # many writes fit in, so that kills hit all of them
GRACE_S = 0.3  # instead of a day: files go under the eyes of readers and writers that are slow


@dataclass
class Outcome:
    """What came of all kills."""

    kills: int = 0
    acknowledged: int = 0
    rows_checked: int = 0
    lost: int = 0
    wrong: int = 0
    damaged: int = 0
    repairs: int = 0
    leftover_files: int = 0
    """Temporary files after all kills: never read, and swept one day."""
    unpublished_shards: int = 0
    tombstones: int = 0
    seconds: float = 0.0

    @property
    def is_good(self) -> bool:
        return not (self.lost or self.wrong or self.damaged or self.repairs)


@dataclass
class Writer:
    """A child, and what it said so far."""

    pid: int
    pipe: int
    rest: bytes = b""
    acknowledged: set = field(default_factory=set)

    def listen(self) -> None:
        """Take what it said, without waiting."""
        while select.select([self.pipe], [], [], 0)[0]:
            data = os.read(self.pipe, 2**16)
            if not data:
                return
            rows, self.rest = parse_acknowledged(self.rest + data)
            self.acknowledged.update(rows)

    def kill(self) -> bool:
        """Kill it; says whether it was still alive."""
        os.kill(self.pid, signal.SIGKILL)
        status = os.waitpid(self.pid, 0)[1]
        return os.waitstatus_to_exitcode(status) == -signal.SIGKILL

    def close(self) -> None:
        self.listen()
        os.close(self.pipe)

    def stop(self) -> None:
        """Kill it for good, if it was not killed before."""
        with contextlib.suppress(ProcessLookupError, ChildProcessError, OSError):
            self.kill()
            self.close()


def compact_until_killed(root: Path) -> None:
    """Merge and sweep all columns, again and again."""
    while True:
        catalog = open_catalog(root, "a")
        for feature in FEATURES.values():
            column = catalog.column(feature.key)
            if column.layout is not None:
                compact_column(catalog, column)
                sweep_column(column, grace_s=GRACE_S)


def start(root: Path, n_images: int, seed: int, *, compacts: bool) -> Writer:
    receive, send = os.pipe()

    def work() -> None:
        os.close(receive)
        if compacts:
            compact_until_killed(root)
        write_until_killed(root, n_images, seed, send)

    pid = fork(work)
    os.close(send)
    return Writer(pid, receive)


def count_leftovers(root: Path, outcome: Outcome) -> None:
    """Count what is in the store and never read."""
    outcome.leftover_files += len(list(root.rglob(".tmp.*")))
    catalog = open_catalog(root, "r")
    for feature in FEATURES.values():
        column = catalog.column(feature.key)
        if column.layout is None:
            continue
        column.n_rows()
        records = column.index.records()
        folder = root / "columns" / feature.key / "activations"
        slots = {int(path.name.split(".")[1]) for path in folder.glob("c.*")}
        outcome.unpublished_shards += len(slots - records.keys())
        outcome.tombstones += sum(not record.any() for record in records.values())


def run_kills(
    rounds: int, *, n_writers: int, n_images: int = 150, compact: bool = False, seed: int = 0
) -> dict[str, float]:
    """Kill a random writer each round; returns the facts of an `Outcome`."""
    rng = random.Random(seed)
    outcome, began = Outcome(), time.perf_counter()
    while outcome.kills < rounds:
        with tempfile.TemporaryDirectory() as folder:
            part = min(STORE_ROUNDS, rounds - outcome.kills)
            _kill_in_one_store(
                Path(folder) / "s.fstore", part, n_writers, n_images, compact, rng, outcome
            )
        print(f"{outcome.kills} kills", file=sys.stderr)
    outcome.seconds = time.perf_counter() - began
    return asdict(outcome)


def _kill_in_one_store(root, rounds, n_writers, n_images, compact, rng, outcome) -> None:
    writers = []
    acknowledged: set = set()
    try:
        # With compaction one child of all compacts, and is killed like the others.
        writers += [
            start(root, n_images, rng.getrandbits(32), compacts=compact and n == 0)
            for n in range(n_writers)
        ]
        kills = 0
        # More images as rounds go by, so that there is always something to write.
        while kills < rounds:
            time.sleep(rng.uniform(0, MAX_DELAY_S))
            victim = rng.randrange(n_writers)
            if not writers[victim].kill():
                raise AssertionError("a writer ended by itself")
            kills += 1
            for writer in writers:
                writer.listen()
                acknowledged |= writer.acknowledged
            verdict = check(root, acknowledged, n_images)
            outcome.kills += 1
            outcome.rows_checked += verdict.n_rows
            outcome.lost += verdict.n_lost
            outcome.wrong += verdict.n_wrong
            outcome.damaged += verdict.n_damaged
            writers[victim].close()
            n_images += 6
            writers[victim] = start(
                root, n_images, rng.getrandbits(32), compacts=compact and victim == 0
            )
    finally:
        for writer in writers:
            writer.stop()
    outcome.acknowledged += len(acknowledged)
    count_leftovers(root, outcome)


# The same with a real network, through the public interface.


N_PICTURES = 48
MODULES = ["conv", "pool"]
BATCH_SIZE = 4
NETWORK_ROUNDS = 5  # until a new store is begun: of few pictures nothing is left to write


def make_network():
    """Return a small network with random weights, the same in each process."""
    import torch
    import torchvision

    import featurestore as fs

    torch.manual_seed(0)
    network = torchvision.models.squeezenet1_1(weights=None).features[:4].eval()
    named = torch.nn.Sequential()
    named.add_module("conv", network[0])
    named.add_module("pool", network[1:])
    transform = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    return fs.wrap(named, name="kill-loop", preprocess=transform), named, transform


def extract_until_killed(root: Path, wrapped, images, seed: int, pipe: int) -> None:
    """Extract parts of the pictures through the public interface, saying which are done."""
    import featurestore as fs

    fs.set_options(commit_interval_s=0.05, n_threads=1, n_decode_workers=1)
    send, rng = acknowledge_to(pipe), random.Random(seed)
    while True:
        chosen = rng.sample(range(N_PICTURES), 12)
        store = fs.open_store(root)
        store.get_many(wrapped, MODULES, images[chosen], batch_size=BATCH_SIZE, progress=False)
        for module in MODULES:
            send(module, chosen)


def true_values(pictures: Path):
    """Return each module's output, by the network alone, in the batches that are promised."""
    import torch
    from PIL import Image

    _, network, transform = make_network()
    torch.set_num_threads(1)
    values = {module: [] for module in MODULES}
    with torch.inference_mode():
        for path in sorted(pictures.iterdir()):
            one = transform(Image.open(path).convert("RGB"))
            batch = torch.zeros(BATCH_SIZE, *one.shape)
            batch[0] = one
            conv = network.conv(batch)
            values["conv"].append(conv[0].numpy().copy())
            values["pool"].append(network.pool(conv)[0].numpy().copy())
    return {module: np.stack(rows) for module, rows in values.items()}


def run_network_kills(rounds: int) -> dict[str, float]:
    """Kill one of two extractions each round, at a random moment."""
    import torch

    import featurestore as fs
    from benchmarks.common import make_jpegs

    torch.set_num_threads(1)  # so that there is no pool of threads that a fork would lose
    outcome, began = Outcome(), time.perf_counter()
    rng = random.Random(0)
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder) / "pictures"
        make_jpegs(pictures, N_PICTURES, size=(120, 90))
        true = true_values(pictures)
        wrapped, _, _ = make_network()
        images = fs.read_images(pictures)
        for number in range(-(-rounds // NETWORK_ROUNDS)):
            root = Path(folder) / f"{number}.fstore"
            _kill_networks_in_one_store(root, wrapped, images, true, rng, outcome)
            print(f"{outcome}", file=sys.stderr)
    outcome.seconds = time.perf_counter() - began
    return asdict(outcome)


def _kill_networks_in_one_store(root, wrapped, images, true, rng, outcome) -> None:
    def begin() -> Writer:
        receive, send = os.pipe()
        seed = rng.getrandbits(32)
        pid = fork(lambda: extract_until_killed(root, wrapped, images, seed, send))
        os.close(send)
        return Writer(pid, receive)

    acknowledged: set = set()
    for _ in range(NETWORK_ROUNDS):
        writers = [begin(), begin()]
        try:
            # Until something is published, and then for as long again, more or less.
            until = time.perf_counter() + rng.uniform(0, 4)
            while time.perf_counter() < until and not writers[0].acknowledged:
                time.sleep(0.01)
                writers[0].listen()
            time.sleep(rng.uniform(0, 0.3))
            outcome.kills += sum(writer.kill() for writer in writers)
        finally:
            for writer in writers:
                writer.listen()
                acknowledged |= writer.acknowledged
                writer.stop()
        if (root / "layouts").is_dir():
            _compare_network(root, wrapped, images, true, acknowledged, outcome)
        else:
            outcome.lost += len(acknowledged)
    outcome.acknowledged += len(acknowledged)
    outcome.leftover_files += len(list(root.rglob(".tmp.*")))


def _compare_network(root, wrapped, images, true, acknowledged, outcome) -> None:
    import featurestore as fs
    from featurestore.errors import FeaturesMissingError, NotFoundError

    store = fs.open_store(root, mode="r")
    for module in MODULES:
        numbers = list(range(N_PICTURES))
        try:
            rows = store.get(wrapped, module, images)
        except FeaturesMissingError as err:
            names = list(images)
            numbers = [n for n in numbers if names[n] not in set(err.missing)]
            rows = store.get(wrapped, module, images[numbers]) if numbers else []
        except NotFoundError:
            numbers, rows = [], []
        outcome.lost += sum(
            name == module and number not in numbers for name, number in acknowledged
        )
        if numbers:
            for number, row in zip(numbers, rows.values, strict=True):
                outcome.rows_checked += 1
                outcome.wrong += row.tobytes() != true[module][number].tobytes()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compact", action="store_true")
    parser.add_argument("--network", action="store_true")
    arguments = parser.parse_args()
    if arguments.network:
        outcome = run_network_kills(arguments.rounds)
    else:
        outcome = run_kills(
            arguments.rounds,
            n_writers=arguments.writers,
            compact=arguments.compact,
            seed=arguments.seed,
        )
    for name, value in outcome.items():
        print(f"{name:>20}  {value:,.0f}")
    if any(outcome[name] for name in ("lost", "wrong", "damaged", "repairs")):
        sys.exit(1)


if __name__ == "__main__":
    main()
