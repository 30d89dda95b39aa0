"""What safety costs: checksums and syncing against the same run without.

Bytes that must move: AlexNet's `features.10` is 173 kB per image. CRC-32C over every chunk and
xxh3 over every shard read them once each, at more than 10 GB/s and from the cache; `fsync` waits
for the disk to have them. Without safety these three do nothing; all else is the same.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sys
import tempfile
from pathlib import Path
from unittest import mock

import numpy as np
import torchvision

import featurestore as fs
from benchmarks.common import interleaved, machine, make_jpegs, report, sparse_activations
from featurestore.storage import disk, shard, slots
from featurestore.storage.blob import LocalBlobs
from featurestore.storage.column import Column

BATCH_SIZE = 8
GOAL = 1.10
KEY = "ab" * 16


class NoHash:
    """Stands for xxh3 and looks at nothing."""

    def update(self, _data: object) -> None:
        pass

    def copy(self) -> NoHash:
        return self

    def intdigest(self) -> int:
        return 0


def no_crc(_data: object) -> bytes:
    return b"\0\0\0\0"


@contextlib.contextmanager
def unsafe():
    with contextlib.ExitStack() as stack:
        stack.enter_context(mock.patch.object(shard, "crc32c", no_crc))
        stack.enter_context(mock.patch.object(slots.xxhash, "xxh3_64", NoHash))
        stack.enter_context(mock.patch.object(os, "fsync", return_value=None))
        stack.enter_context(mock.patch.object(disk, "_sync_folder", return_value=None))
        yield


def without_safety(work):
    def run():
        with unsafe():
            work()

    return run


def bench_extraction(n: int, folder: Path) -> None:
    make_jpegs(folder / "jpegs", n)
    images = fs.read_images(folder / "jpegs")
    model = torchvision.models.get_model("alexnet", weights=None).eval()
    transform = torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms()
    wrapped = fs.wrap(model, name="alexnet", preprocess=transform)
    numbers = iter(range(10_000))

    def extract():
        path = folder / f"{next(numbers)}.fstore"
        store = fs.open_store(path)
        store.get(wrapped, "features.10", images, batch_size=BATCH_SIZE, progress=False)
        shutil.rmtree(path)

    variants = {"safe": extract, "without": without_safety(extract)}
    for work in variants.values():
        work()  # warm: pages, allocators, the probe
    report(
        f"extraction of AlexNet features.10, {n} JPEGs",
        interleaved(variants, 7),
        [("safe", "without", GOAL)],
    )


def bench_append(name: str, rows: np.ndarray, folder: Path) -> None:
    digests = np.frombuffer(
        b"".join(hashlib.md5(b"%d" % n).digest() for n in range(len(rows))), np.uint8
    ).reshape(-1, 16)
    numbers = iter(range(10_000))

    def append():
        root = folder / f"{name}{next(numbers)}"
        column = Column(LocalBlobs(root), KEY, writable=True)
        dims = ("channel", "y", "x")
        column.append({}, dims, digests, rows, dtype="float32", run="0" * 32)
        shutil.rmtree(root)

    variants = {"safe": append, "without": without_safety(append)}
    for work in variants.values():
        work()
    times = interleaved(variants, 7)
    report(f"append of {len(rows)} {name} rows, {rows.nbytes / 1e6:.0f} MB", times,
           [("safe", "without", None)])  # fmt: skip


if __name__ == "__main__":
    print(machine())
    n_images = int(sys.argv[1]) if len(sys.argv) > 1 else 192
    with tempfile.TemporaryDirectory() as temporary:
        bench_append("sparse", sparse_activations(4096), Path(temporary))
        dense = np.random.default_rng(0).normal(size=(4096, 256, 6, 6)).astype(np.float32)
        bench_append("dense", dense, Path(temporary))
        del dense
        bench_extraction(n_images, Path(temporary))
