"""Adding 50 images to 5,000 against extracting 50 into an empty store."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import torchvision

import featurestore as fs
from benchmarks.common import interleaved, machine, make_jpegs, report


def run(folder: Path) -> None:
    paths = make_jpegs(folder / "jpegs", 5050, size=(250, 188))
    many, few = fs.read_images(paths), fs.read_images(paths[5000:])
    model = fs.wrap(
        torchvision.models.alexnet(weights=None),
        name="alexnet",
        preprocess=torchvision.models.AlexNet_Weights.IMAGENET1K_V1.transforms(),
    )
    fs.open_store(folder / "full").get(model, "features.10", many[:5000], progress=False)
    numbers = iter(range(1000))

    def ask(path, images):
        fs.open_store(path).get(model, "features.10", images, progress=False)

    copies = []
    for _ in range(6):
        copies.append(folder / f"copy{next(numbers)}")
        shutil.copytree(folder / "full", copies[-1])
    ask(copies.pop(), many)
    times = interleaved(
        {
            "50 more in 5,000": lambda: ask(copies.pop(), many),
            "50 into an empty store": lambda: ask(folder / f"new{next(numbers)}", few),
        }
    )
    report("AlexNet features.10", times, [("50 more in 5,000", "50 into an empty store", 1.2)])


if __name__ == "__main__":
    print(machine())
    with tempfile.TemporaryDirectory() as temporary:
        run(Path(temporary))
