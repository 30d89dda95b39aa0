"""``import featurestore`` against a bare start of the interpreter."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.common import interleaved, machine, report

if __name__ == "__main__":
    print(machine())

    def start(code: str) -> None:
        subprocess.run([sys.executable, "-c", code], check=True)

    times = interleaved(
        {"import featurestore": lambda: start("import featurestore"), "bare": lambda: start("")},
        repeats=15,
    )
    report("start of the interpreter", times, [("import featurestore", "bare", 3)])
