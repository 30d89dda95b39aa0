"""Two writers on one store against one: nobody waits for anybody.

Two columns that share nothing (AlexNet `features.10` with two seeds) over the same JPEGs. *Two
writers*: a process for each, with one decode worker and one torch thread, at the same time. *One,
unrestricted*: one process that fills one column after the other with all processors. *One,
limited*: the same with one decode worker and one thread. Processes import torch, load both
networks and wait for one another before the clock starts.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import interleaved, machine, make_jpegs, report

BATCH_SIZE = 8
SEEDS = ["0", "1"]


def serve(pictures: Path, limited: bool) -> None:
    """Fill columns as told: a line names a store and seeds."""
    import featurestore as fs

    if limited:
        fs.set_options(n_threads=1, n_decode_workers=1)
    images = fs.read_images(pictures)

    def fill(path: str, seeds: list[str]) -> None:
        store = fs.open_store(path)
        for seed in seeds:
            store.get("alexnet", "features.10", images, weights="random", seed=int(seed),
                      batch_size=BATCH_SIZE, progress=False)  # fmt: skip

    with tempfile.TemporaryDirectory() as warm:
        fill(warm + "/s.fstore", SEEDS)
    print("ready", flush=True)
    for line in sys.stdin:
        path, *seeds = line.split()
        fill(path, seeds)
        print("done", flush=True)


class Server:
    """A process that fills columns."""

    def __init__(self, pictures: Path, kind: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.bench_writers", "--serve", str(pictures), kind],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def tell(self, path: Path, seeds: list[str]) -> None:
        print(path, *seeds, file=self.process.stdin, flush=True)

    def wait(self, word: str) -> None:
        answer = self.process.stdout.readline()
        if answer != f"{word}\n":
            raise RuntimeError(f"a writer said {answer!r} where {word!r} was expected")


def main(n: int) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_jpegs(folder / "jpegs", n)
        servers = []
        for kind in ("limited", "limited", "unrestricted"):
            servers.append(Server(folder / "jpegs", kind))
            servers[-1].wait("ready")
        one, two, unrestricted = servers
        numbers = iter(range(10_000))

        def run(*work: tuple[Server, list[str]]) -> None:
            path = folder / f"{next(numbers)}.fstore"
            for server, seeds in work:
                server.tell(path, seeds)
            for server, _ in work:
                server.wait("done")
            shutil.rmtree(path)

        times = interleaved(
            {
                "two writers": lambda: run((one, SEEDS[:1]), (two, SEEDS[1:])),
                "one, unrestricted": lambda: run((unrestricted, SEEDS)),
                "one, limited": lambda: run((one, SEEDS)),
            }
        )
        for server in servers:
            server.process.stdin.close()
            server.process.wait()
        report(
            f"AlexNet features.10, two seeds, {n} JPEGs",
            times,
            [("two writers", "one, unrestricted", 1.10), ("two writers", "one, limited", 0.65)],
        )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(Path(sys.argv[2]), sys.argv[3] == "limited")
    else:
        main(int(sys.argv[1]) if len(sys.argv) > 1 else 256)
