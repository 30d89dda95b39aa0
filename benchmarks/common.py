"""What the benchmarks share: pictures, fair timing, tables."""

from __future__ import annotations

import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

REPEATS = 5


def timed(work: Callable[[], object]) -> float:
    """Return how long a call takes [s]."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def interleaved(
    variants: dict[str, Callable[[], object]], repeats: int = REPEATS
) -> dict[str, list[float]]:
    """Time variants in turn, so that drift of the machine's speed hits all alike."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, work in variants.items():
            times[name].append(timed(work))
    return times


def ratios(times: dict[str, list[float]], of: str, to: str) -> tuple[float, float, float]:
    """Return median, least and greatest of the ratios of runs that followed one another."""
    each = [a / b for a, b in zip(times[of], times[to], strict=True)]
    return statistics.median(each), min(each), max(each)


def report(
    title: str, times: dict[str, list[float]], pairs: list[tuple[str, str, float | None]]
) -> None:
    """Print times and ratios; each pair is (of, to, the bound that the ratio should keep)."""
    print(f"\n{title}")
    width = max(len(name) for name in times)
    for name, values in times.items():
        print(
            f"  {name:<{width}}  median {statistics.median(values):8.3f} s"
            f"   {min(values):8.3f} to {max(values):8.3f}"
        )
    for of, to, bound in pairs:
        median, low, high = ratios(times, of, to)
        said = f"  {of} / {to} = {median:.2f} ({low:.2f} to {high:.2f})"
        if bound is not None:
            said += f", bound {bound}: {'kept' if median <= bound else 'MISSED'}"
        print(said)


def machine() -> str:
    """Describe the machine in a line."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return (
        f"{platform.system()} {platform.machine()}, {cpus} CPUs, Python {platform.python_version()}"
    )


def peak_nbytes() -> int:
    """Return the greatest resident size of this process so far [bytes]."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def make_jpegs(folder: Path, n: int, size: tuple[int, int] = (500, 375)) -> list[Path]:
    """Write JPEGs of the size and detail of ImageNet's: crops of real photographs."""
    import skimage

    source = Path(skimage.__file__).parent / "data"
    names = ["astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg"]
    photographs = [Image.open(source / name).convert("RGB") for name in names]
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(n):
        picture = photographs[number % len(photographs)]
        share = rng.uniform(0.5, 1)
        width, height = int(picture.width * share), int(picture.height * share)
        left = int(rng.integers(0, picture.width - width + 1))
        top = int(rng.integers(0, picture.height - height + 1))
        path = folder / f"{number:05d}.jpg"
        box = (left, top, left + width, top + height)
        picture.resize(size, Image.Resampling.BICUBIC, box=box).save(path, quality=92)
        paths.append(path)
    return paths


def sparse_activations(n: int, channels: int = 256, side: int = 6) -> np.ndarray:
    """Make rows like those after a ReLU: 70 % zeros in spatial clumps, channels that differ."""
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, channels, side, side)).astype(np.float32)
    x = gaussian_filter(x, sigma=(0, 0, 1, 1), mode="wrap")
    x /= x.std()
    gain = rng.normal(size=(n, 32)) @ rng.normal(size=(32, channels)) / np.sqrt(32)
    x += gain.astype(np.float32)[:, :, None, None]
    share = np.clip(0.7 + 0.12 * rng.normal(size=channels), 0.2, 0.97)
    x -= np.array([np.quantile(x[:500, c], share[c]) for c in range(channels)], np.float32)[
        None, :, None, None
    ]
    return np.maximum(x, 0, out=x)
