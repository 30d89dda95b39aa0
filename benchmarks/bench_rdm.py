"""All pairs of n images from the store, against one float32 matrix product of the same size.

n images of p features cost n² p multiply-adds for a full product X Yᵀ; an RDM is symmetric, so
half of them would do. Besides, 4 n p bytes are read and decoded once, and n² values are finished.
`fs.rdm` computes in memory from a read-only store; `store.rdm` also writes n² / 2 × 8 bytes,
durably.

The peers compute the same RDM from features that are in memory already. THINGSvision's functions
are re-implemented from their formulas: correlation in float32 by one product, euclidean by SciPy's
`pdist`, the Gaussian from these distances.

    python -m benchmarks.bench_rdm            n = 2,000 and 5,000; p = 4,096, 9,216 and 43,264
    python -m benchmarks.bench_rdm --quick    n = 2,000 and p = 4,096 only
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

import featurestore as fs
from benchmarks.common import interleaved, machine, report, timed
from benchmarks.fill import fill_store

SIZES = [(n, p) for n in (2000, 5000) for p in (4096, 9216, 43264)]
SLOW = 2e10  # multiply-adds: peers that take minutes are left out above


def activations(n: int, p: int, kind: str) -> np.ndarray:
    """Make rows of rank 50 and noise, as after a convolution; or after its ReLU; or nearly alike.

    Of the last kind so many pairs are close that all are multiplied in float64.
    """
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(n, 50)).astype(np.float32) @ rng.normal(size=(50, p)).astype(np.float32)
    if kind == "alike":
        rows = rows[rng.integers(0, n // 20, n)]
    for row in rows:
        row += (1 if kind == "alike" else 5) * rng.standard_normal(p, dtype=np.float32)
    return np.maximum(rows, 0, out=rows) if kind == "ReLU-sparse" else rows


def thingsvision_correlation(x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(centred, axis=1)
    return 1 - np.clip(centred @ centred.T / np.outer(norms, norms), -1, 1)


def peers(x: np.ndarray) -> dict[str, Callable[[], object]]:
    from rsatoolbox.data import Dataset
    from rsatoolbox.rdm import calc_rdm
    from scipy.spatial.distance import pdist
    from sklearn.metrics import pairwise_distances

    quick: dict[str, Callable[[], object]] = {
        "THINGSvision correlation": lambda: thingsvision_correlation(x),
        "numpy.corrcoef, float64": lambda: 1 - np.corrcoef(x),
        "scikit-learn cosine": lambda: pairwise_distances(x, metric="cosine"),
        "rsatoolbox euclidean": lambda: calc_rdm(Dataset(x), method="euclidean"),
    }
    slow: dict[str, Callable[[], object]] = {
        "rsatoolbox correlation": lambda: calc_rdm(Dataset(x), method="correlation"),
        "SciPy pdist correlation": lambda: pdist(x, "correlation"),
        "THINGSvision euclidean, SciPy pdist": lambda: pdist(x, "euclidean"),
        "THINGSvision gaussian": lambda: 1 - np.exp(-(d2 := pdist(x, "sqeuclidean")) / d2.mean()),
    }
    return quick | (slow if len(x) ** 2 * x.shape[1] < SLOW else {})


def run(n: int, p: int, kind: str, *, with_peers: bool, folder: Path) -> None:
    x = activations(n, p, kind)
    y = x.copy()
    model, images = fill_store(folder / "s.fstore", x)
    reader, store = fs.open_store(folder / "s.fstore", mode="r"), fs.open_store(folder / "s.fstore")
    kept = folder / "s.fstore" / "grams"

    def from_the_store() -> object:
        return fs.rdm(reader.get(model, "maps", images), progress=False)

    def and_kept() -> object:
        return store.rdm(model, "maps", images, progress=False)

    times: dict[str, list[float]] = {}
    for _ in range(5):
        for name, values in interleaved({"float32 product": lambda: x @ y.T}, 1).items():
            times.setdefault(name, []).extend(values)
        for name, work in {"fs.rdm": from_the_store, "store.rdm, kept": and_kept}.items():
            times.setdefault(name, []).append(timed(work))
        times.setdefault("store.rdm, again", []).append(timed(and_kept))
        shutil.rmtree(kept)
    bounds = [
        ("fs.rdm", "float32 product", 0.8),
        ("store.rdm, kept", "float32 product", None),
        ("store.rdm, again", "float32 product", None),
    ]
    report(f"{kind}: {n} x {p}, budget {fs.get_options().memory_budget / 2**30:.2g} GiB", times,
           bounds)  # fmt: skip
    if with_peers:
        for name, work in peers(x).items():
            compared = interleaved({"float32 product": lambda: x @ y.T, name: work}, 1)
            ratio = compared[name][0] / compared["float32 product"][0]
            print(f"  {name} / float32 product = {ratio:.1f} (one run)")


if __name__ == "__main__":
    print(machine())
    for n, p in SIZES[:1] if "--quick" in sys.argv else SIZES:
        with tempfile.TemporaryDirectory() as temporary:
            run(n, p, "dense", with_peers=True, folder=Path(temporary))
    for kind in ("ReLU-sparse", "alike"):
        with tempfile.TemporaryDirectory() as temporary:
            run(*SIZES[0], kind, with_peers=False, folder=Path(temporary))
