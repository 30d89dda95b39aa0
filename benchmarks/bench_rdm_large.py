"""RDMs larger than the budget: memory, bytes read, a kill, and images that come later.

python -m benchmarks.bench_rdm_large memory [BUDGET_MIB]     a column of 8 × the budget
python -m benchmarks.bench_rdm_large grow [N] [P]            20,000 × 4,096 on 1 GB, then 200 more
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

import featurestore as fs
from benchmarks.common import machine
from benchmarks.fill import encode, fill_store, maps_model

MIB = 2**20


def bytes_read() -> int:
    """Return what this process has read from files so far, whether cached or not [bytes]."""
    facts = Path("/proc/self/io").read_text()
    return int(facts.split("rchar:")[1].split()[0])


def resident_nbytes() -> int:
    """Return the resident size of this process now [bytes]."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def peak_nbytes() -> int:
    """Return the greatest resident size since `forget_peak` [bytes]."""
    facts = Path("/proc/self/status").read_text()
    return int(facts.split("VmHWM:")[1].split()[0]) * 1024


def forget_peak() -> None:
    """Begin to measure the peak anew: importing torch has one of its own."""
    Path("/proc/self/clear_refs").write_text("5")


def measure(store: Path, n: int, budget: int) -> dict[str, float]:
    """Compute the RDM of the first n images in this process."""
    opened = fs.open_store(store)
    (column,) = opened.ls()
    acts = opened.get(
        maps_model(column.shape), "maps", fs.read_images([encode(k) for k in range(n)])
    )
    with fs.set_options(memory_budget=budget):
        forget_peak()
        before, read, start = resident_nbytes(), bytes_read(), time.perf_counter()
        fs.rdm(acts, progress=False)
        return {
            "elapsed_s": time.perf_counter() - start,
            "peak_mib": (peak_nbytes() - before) / MIB,
            "read": bytes_read() - read,
        }


def child(store: Path, n: int, budget: int, **options: object) -> subprocess.Popen[str]:
    words = [sys.executable, "-m", "benchmarks.bench_rdm_large", "child", str(store), str(n)]
    return subprocess.Popen([*words, str(budget)], stdout=subprocess.PIPE, text=True, **options)


def result(process: subprocess.Popen[str]) -> dict[str, float]:
    out, _ = process.communicate()
    return json.loads(out)


def memory(budget: int, folder: Path) -> None:
    n = 2000
    p = 8 * budget // (4 * n) // 1024 * 1024
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, p // 1024, 32, 32), dtype=np.float32)
    fill_store(folder / "s.fstore", rows)
    held = sum(f.stat().st_size for f in (folder / "s.fstore" / "columns").rglob("c.*"))
    del rows
    found = result(child(folder / "s.fstore", n, budget))
    print(f"{n} x {p}: {held / MIB:.0f} MiB on disk, budget {budget / MIB:.0f} MiB")
    print(f"  peak +{found['peak_mib']:.0f} MiB, bound {budget / MIB + 150:.0f}")
    print(f"  read {found['read'] / held:.2f} of its size, bound 1.1; {found['elapsed_s']:.1f} s")


def grow(n: int, p: int, folder: Path, extra: int = 200, budget: int = 10**9) -> None:
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n + extra, p), dtype=np.float32)
    fill_store(folder / "s.fstore", rows)
    del rows
    store = folder / "s.fstore"
    tiles = store / "grams"

    process = child(store, n, budget)
    while len(list(tiles.rglob("tiles/*.*"))) < 40 and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(list(tiles.rglob("tiles/*.*")))
    resumed = result(child(store, n, budget))
    print(f"{n} x {p} on {budget / 1e9:.1f} GB: killed with {left} tiles, then {resumed}")

    for folder_ in tiles.iterdir():
        for file in folder_.rglob("*"):
            if file.is_file():
                file.unlink()
    first = result(child(store, n, budget))
    later = result(child(store, n + extra, budget))
    share = later["elapsed_s"] / first["elapsed_s"]
    print(f"  from nothing {first}\n  {extra} more {later}: {100 * share:.1f} % of it, bound 3 %")


if __name__ == "__main__":
    words = sys.argv[1:]
    if words[0] == "child":
        print(json.dumps(measure(Path(words[1]), int(words[2]), int(words[3]))))
        sys.exit(0)
    os.environ.setdefault("FEATURESTORE_PROGRESS", "false")
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        if words[0] == "memory":
            memory(int(words[1] if len(words) > 1 else 256) * MIB, Path(temporary))
        else:
            sizes = [int(word) for word in words[1:]] or [20_000, 4096]
            grow(*sizes, Path(temporary))
