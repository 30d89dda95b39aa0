"""What is true of distances: plain formulas in extended precision, and features that are hard."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from featurestore.rdms import fill as filling
from featurestore.rdms.fill import MemoryFolder, fill
from featurestore.rdms.kernel import PassPlan, plan_passes
from featurestore.rdms.source import ArraySource
from featurestore.rdms.view import PairView

BASE = ("correlation", "cosine", "euclidean", "sqeuclidean")
FLOOR = {"correlation": 1e-13, "cosine": 1e-13, "euclidean": 0.0, "sqeuclidean": 0.0}
"""Below, float32 features cannot tell a distance from zero."""


def labelled(values, **coords):
    """Give rows names."""
    names = [f"image {n}" for n in range(len(values))]
    dims = ("image", *(f"axis_{n}" for n in range(1, np.ndim(values))))
    return xr.DataArray(np.asarray(values), dims=dims, coords={"image": names, **coords})


def truth(values, metrics=BASE, dtype=np.longdouble):
    """Return distances from differences in extended precision, by metric."""
    rows = np.asarray(values).reshape(len(values), -1).astype(dtype)
    centred = rows - rows.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = {
            "euclidean": rows,
            "sqeuclidean": rows,
            "cosine": rows / np.sqrt((rows**2).sum(axis=1, keepdims=True)) / np.sqrt(dtype(2)),
            "correlation": (
                centred / np.sqrt((centred**2).sum(axis=1, keepdims=True)) / np.sqrt(dtype(2))
            ),
        }
        squares = {
            metric: np.stack([((scaled[metric] - x) ** 2).sum(axis=1) for x in scaled[metric]])
            for metric in metrics
        }
    if "euclidean" in metrics:
        squares["euclidean"] = np.sqrt(squares["euclidean"])
    return squares


def worst_error(found, expected, metric):
    """Return the largest relative error of all pairs; infinite where one is wrongly NaN or zero."""
    upper = np.triu_indices(len(expected), 1)
    expected, found = np.asarray(expected)[upper], np.asarray(found)[upper]
    found = found.astype(np.longdouble)
    assert np.array_equal(np.isnan(expected), np.isnan(found))
    small = np.isfinite(expected) & (expected <= FLOOR[metric])
    assert (found[small] <= 2 * FLOOR[metric]).all()
    large = np.isfinite(expected) & ~small
    if not large.any():
        return 0.0
    error = float((np.abs(found[large] - expected[large]) / expected[large]).max())
    return error if np.isfinite(error) else np.inf


def matrices(values, *, block_rows=1024, max_values=10**9, n_passes=1, seed=0):
    """Compute distances in a partition of one's own: tiles, passes and blocks of features."""
    source = ArraySource(labelled(values), "image")
    numbers = np.zeros((len(values), 2), ">u8")
    numbers[:, 1] = np.arange(len(values))
    digests = numbers.view(np.uint8).reshape(-1, 16)
    rng = np.random.default_rng(seed)

    def plan(source, sizes, wanted, budget):
        step = plan_passes(source, sizes, wanted, budget).passes[0]
        passes = rng.integers(0, n_passes, len(wanted))
        chosen = []
        for number in np.unique(passes):
            tiles = tuple(t for t, p in zip(wanted, passes, strict=True) if p == number)
            blocks = tuple(sorted({block for pair in tiles for block in pair}))
            width = min(max_values, source.n_features)
            chosen.append(replace(step, blocks=blocks, tiles=tiles, max_values=width))
        return PassPlan(tuple(chosen), 0, 0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "plan_passes", plan)
        patch.setattr(filling, "BLOCK_ROWS", block_rows)
        cover = fill(
            MemoryFolder(), digests, lambda _d: source, has_rows=lambda _d: True, budget=2**30
        )
    everything = np.arange(len(values))
    return {
        metric: PairView(lambda _gone=None: cover, source.n_features, metric).read(
            everything, everything
        )
        for metric in BASE
    }


def _relu(n, p, rng):
    signal = rng.normal(size=(n, 20)) @ rng.normal(size=(20, p)) + rng.normal(size=(n, p))
    return np.maximum(signal, 0).astype(np.float32)


def _normal(n, p, rng):
    return rng.normal(size=(n, p)).astype(np.float32)


def _near_duplicates(n, p, rng):
    rows = _relu(n, p, rng)
    for k, size in enumerate([0, 1e-7, 1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1]):
        rows[k + 1] = rows[0] + (size * rng.normal(size=p)).astype(np.float32)
    return rows


def _graded(n, p, rng):
    share = np.linspace(0, 1, n)[:, None]
    other = rng.normal(size=(n, p))
    return (share * rng.normal(size=p) + np.sqrt(1 - share**2) * other).astype(np.float32)


def _turning(n, p, rng):
    angle = np.linspace(0, 1, n)[:, None]
    return (np.cos(angle) * rng.normal(size=p) + np.sin(angle) * rng.normal(size=p)).astype("f4")


def _clusters(n, p, rng):
    centres = rng.normal(size=(5, p))[rng.integers(0, 5, n)]
    return (centres + 1e-3 * rng.normal(size=(n, p))).astype(np.float32)


def _few_clusters(n, p, rng):
    rows = _normal(n, p, rng)
    rows[1::20] = rows[::20] + (1e-2 * rng.normal(size=rows[1::20].shape)).astype(np.float32)
    return rows


def _scaled_features(sizes):
    def make(n, p, rng):
        rows = _normal(n, p, rng)
        for k, size in enumerate(sizes):
            rows[:, 7 * k + 3] *= np.float32(size)
        return rows

    return make


CASES = {
    "normal": _normal,
    "low rank": lambda n, p, r: (r.normal(size=(n, 5)) @ r.normal(size=(5, p))).astype("f4"),
    "relu": _relu,
    "large common mean": lambda n, p, r: _normal(n, p, r) + np.float32(1000),
    "large feature means": lambda n, p, r: _normal(n, p, r) + 1000 * r.normal(size=p).astype("f4"),
    "large image means": lambda n, p, r: (
        _normal(n, p, r) + 1000 * r.normal(size=(n, 1)).astype("f4")
    ),
    "both means large": lambda n, p, r: (
        _normal(n, p, r) + 1000 * (r.normal(size=p) + r.normal(size=(n, 1))).astype("f4")
    ),
    "near-duplicates": _near_duplicates,
    "near-duplicates, offset": lambda n, p, r: (
        _near_duplicates(n, p, r) + 1000 * r.normal(size=p).astype("f4")
    ),
    "clusters": _clusters,
    "few close pairs": _few_clusters,
    "graded": _graded,
    "turning": _turning,
    "duplicates": lambda n, p, r: _relu(n, p, r)[r.integers(0, n // 3, n)],
    "scaled by 1e6": lambda n, p, r: _relu(n, p, r) * np.float32(1e6),
    "scaled by 1e-6": lambda n, p, r: _relu(n, p, r) * np.float32(1e-6),
    "images of different scale": lambda n, p, r: (
        _normal(n, p, r) * np.exp(2 * r.normal(size=(n, 1))).astype("f4")
    ),
    "one large image": lambda n, p, r: (
        _normal(n, p, r) * np.where(np.arange(n) == 3, 300, 1)[:, None].astype("f4")
    ),
    "one feature 10 times": _scaled_features([10]),
    "one feature 40 times": _scaled_features([40]),
    "one feature 60 times": _scaled_features([60]),
    "one feature 3000 times": _scaled_features([3000]),
    "eight features 30 times": _scaled_features([30] * 8),
    "features of different scale": lambda n, p, r: (
        _normal(n, p, r) * np.exp(2 * r.normal(size=p)).astype("f4")
    ),
    "heavy tails": lambda n, p, r: np.exp(2 * r.normal(size=(n, p))).astype("f4"),
    "heavier tails": lambda n, p, r: r.standard_cauchy(size=(n, p)).astype("f4"),
    "sparse": lambda n, p, r: _normal(n, p, r) * (r.random((n, p)) < max(0.01, 4 / p)),
    "float16": lambda n, p, r: _relu(n, p, r).astype(np.float16),
    "float64": lambda n, p, r: r.normal(size=(n, p)) + 1e4,
    "uint8": lambda n, p, r: r.integers(0, 256, (n, p), dtype=np.uint8),
    "int32": lambda n, p, r: r.integers(-(2**31), 2**31 - 1, (n, p), dtype=np.int32),
    "bool": lambda n, p, r: r.random((n, p)) < 0.5,
}
"""By name: features of n images with p values each."""


def mixture(seed):
    """Return features with several difficulties at once, drawn by a seed."""
    rng = np.random.default_rng(seed)
    n, p = int(rng.integers(8, 60)), int(rng.choice([1024, 1025, 1500, 2048, 4096, 9000]))
    rank = int(rng.choice([0, 1, 2, 5, 50]))
    rows = rng.normal(size=(n, p)) * rng.choice([0, 1e-4, 1e-2, 0.1, 1])
    rows += rng.normal(size=(n, rank)) @ rng.normal(size=(rank, p))
    changes = [
        lambda x: np.maximum(x, 0),
        lambda x: x * np.exp(rng.normal(size=p) * rng.choice([0.3, 1, 2])),
        lambda x: x * np.exp(rng.normal(size=(n, 1)) * rng.choice([0.3, 1, 3])),
        lambda x: x + rng.normal(size=p) * rng.choice([1, 30, 1e3, 1e5]),
        lambda x: x + rng.normal(size=(n, 1)) * rng.choice([1, 30, 1e3, 1e5]),
        lambda x: x + rng.choice([1, 30, 1e3, 1e5, -1e6]),
        lambda x: x[rng.integers(0, n, n)] * (1 + rng.choice([0, 1e-5, 1e-2]) * rng.normal(size=p)),
        lambda x: x * (rng.random((n, p)) < rng.choice([0.1, 0.5])),
        lambda x: x * np.where(np.arange(p) < rng.choice([1, 20]), rng.choice([5, 30, 100]), 1),
        lambda x: x * np.where(np.arange(n) == 0, rng.choice([0, 1e-3, 1e3]), 1)[:, None],
    ]
    for change in changes:
        if rng.random() < 0.3:
            rows = change(rows)
    return rows.astype(rng.choice(["f4", "f4", "f4", "f8"]))
