"""Warm reading of what is kept, against ``np.load`` of the same numbers.

5,000 rows of 9,216 float32 are 184 MB: `np.load` moves them once from the page cache. A store also
checks a CRC-32C of every byte, and decompresses where values are sparse (a third of the bytes on
disk). ``get`` includes the look-up of 5,000 digests and the labels.
"""

from __future__ import annotations

import statistics
import tempfile
from pathlib import Path

import numpy as np
import tensorstore

import featurestore as fs
from benchmarks.common import interleaved, machine, report, sparse_activations, timed
from benchmarks.fill import fill_store

N, SHAPE = 5000, (256, 6, 6)


def run(kind: str, rows: np.ndarray, bound: float, folder: Path) -> None:
    model, images = fill_store(folder / "s.fstore", rows)
    np.save(folder / "rows.npy", rows)
    store = fs.open_store(folder / "s.fstore")
    np.testing.assert_array_equal(store.get(model, "maps", images).values, rows)
    (column,) = (folder / "s.fstore" / "columns").iterdir()
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{column}/activations"}}
    numbers = store._catalog.column(column.name).lookup(images.digests)

    def tensorstore_alone() -> np.ndarray:
        return tensorstore.open(spec, open=True).result()[numbers].read().result()

    times = interleaved(
        {
            "tensorstore, same files": tensorstore_alone,
            "get(...).values": lambda: store.get(model, "maps", images).values,
            "np.load": lambda: np.load(folder / "rows.npy"),
        },
        repeats=15,
    )
    on_disk = sum(p.stat().st_size for p in (folder / "s.fstore" / "columns").rglob("c.*"))
    title = (
        f"{kind}: {N} x {int(np.prod(SHAPE))} float32, {on_disk / rows.nbytes:.2f} of it on disk"
    )
    report(title, times, [("get(...).values", "np.load", bound)])
    features = store.get(model, "maps", images)
    singles = [timed(lambda n=n: features[n].values) for n in range(0, N, 101)]
    print(f"  one row: median {1000 * statistics.median(singles):.2f} ms, bound 5 ms")


if __name__ == "__main__":
    print(machine())
    dense = np.random.default_rng(0).normal(size=(N, *SHAPE)).astype(np.float32)
    with tempfile.TemporaryDirectory() as temporary:
        run("dense", dense, 3, Path(temporary))
    with tempfile.TemporaryDirectory() as temporary:
        run("ReLU-sparse", sparse_activations(N), 4, Path(temporary))
