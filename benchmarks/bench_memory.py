"""Peak memory of a very wide module: VGG-16 features.0, 12.8 MB per image.

Each measurement is a process of its own. The network's own footprint is the peak of the same
batches through the same network with nothing kept. ``python -m benchmarks.bench_memory [N ...]``
takes numbers of images; 2,000 take 25 GB of disk.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.common import machine, make_jpegs, peak_nbytes

COUNTS = (50, 200, 800)


def measure(what: str, n: int, folder: Path) -> None:
    import torch
    import torchvision

    import featurestore as fs
    from featurestore.networks.taps import Tap

    torch.manual_seed(0)
    network = torchvision.models.vgg16(weights=None)
    transform = torchvision.models.VGG16_Weights.IMAGENET1K_V1.transforms()
    model = fs.wrap(network, name="vgg16", preprocess=transform)
    images = fs.read_images(sorted((folder / "jpegs").iterdir())[:n])
    if what == "footprint":
        tap, _ = model.record.resolve(Tap.parse("features.0"))
        with model.open([tap], device="cpu", precision="fp32", n_threads=2) as session:
            for _ in range(4):
                session.forward(torch.zeros(8, 3, 224, 224).numpy())
    else:
        store = fs.open_store(folder / "s.fstore")
        store.get(model, "features.0", images, progress=False)
    print(json.dumps(peak_nbytes()))


def main(counts: list[int]) -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_jpegs(folder / "jpegs", max(counts))

        def peak(what: str, n: int) -> int:
            code = [sys.executable, "-m", "benchmarks.bench_memory", "--measure", what, str(n)]
            out = subprocess.run([*code, temporary], check=True, capture_output=True, text=True)
            shutil.rmtree(folder / "s.fstore", ignore_errors=True)
            return int(out.stdout.splitlines()[-1])

        footprint = peak("footprint", 1)
        print(f"  network alone: {footprint / 2**30:.2f} GiB")
        for n in counts:
            found = peak("extract", n)
            print(
                f"  {n:5d} images ({n * 12.845 / 1000:.1f} GB of features): "
                f"{found / 2**30:.2f} GiB, {(found - footprint) / 2**30:+.2f} GiB; bound +1"
            )


if __name__ == "__main__":
    if "--measure" in sys.argv:
        measure(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
    else:
        main([int(word) for word in sys.argv[1:]] or list(COUNTS))
