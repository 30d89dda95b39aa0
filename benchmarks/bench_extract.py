"""Cold extraction against a bare loop, and against an honest copy of THINGSvision's loop.

Bytes and FLOPs that must move, per image: a 50 kB JPEG is decoded once (about 5 ms on one core);
AlexNet up to features.10 is 0.66 GFLOP, ResNet-50 up to layer1 about 0.9 of 4.1; features.10 is
173 kB, layer1 is 3.2 MB, each written once.

The bare loop decodes with the same number of threads, stops the forward pass after the module and
keeps nothing. THINGSvision's loop decodes in the main thread, runs the whole network, keeps the
batches in memory, concatenates them and saves one .npy (its defaults, batch size 32).
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
import torchvision
from PIL import Image

import featurestore as fs
from benchmarks.common import interleaved, machine, make_jpegs, report
from featurestore.options import get_options

BATCH_SIZE = 8


class Stop(Exception):
    """Raised after the module wanted."""


def bare_loop(model, transform, module, paths):
    n_workers = get_options().n_decode_workers

    def load(path):
        return transform(Image.open(path).convert("RGB"))

    def hook(_module, _inputs, output):
        kept.append(output.detach().clone().numpy())
        raise Stop

    kept: list[np.ndarray] = []
    handle = model.get_submodule(module).register_forward_hook(hook)
    torch.set_num_threads(get_options().n_threads)
    with ThreadPoolExecutor(n_workers) as pool, torch.inference_mode():
        loaded = pool.map(load, paths)
        for _ in range(0, len(paths), BATCH_SIZE):
            batch = torch.stack([next(loaded) for _ in range(BATCH_SIZE)])
            try:
                model(batch)
            except Stop:
                kept.clear()
    handle.remove()


def thingsvision_loop(model, transform, module, paths, out):
    kept = []

    def hook(_module, _inputs, output):
        caught.append(output.clone().detach())

    caught: list[torch.Tensor] = []
    handle = model.get_submodule(module).register_forward_hook(hook)
    with torch.no_grad():
        for start in range(0, len(paths), 32):
            part = paths[start : start + 32]
            batch = torch.stack([transform(Image.open(path).convert("RGB")) for path in part])
            model(batch)
            kept.append(caught.pop().cpu())
    handle.remove()
    np.save(out, torch.cat(kept).numpy())


def run(name: str, module: str, n: int, bound: float, folder: Path) -> None:
    paths = make_jpegs(folder / "jpegs", n)
    images = fs.read_images(folder / "jpegs")
    model = torchvision.models.get_model(name, weights=None).eval()
    transform = torchvision.models.get_model_weights(name).IMAGENET1K_V1.transforms()
    wrapped = fs.wrap(model, name=name, preprocess=transform)
    stores = iter(range(10_000))

    def store():
        path = folder / f"{next(stores)}.fstore"
        opened = fs.open_store(path)
        opened.get(wrapped, module, images, batch_size=BATCH_SIZE, progress=False)
        shutil.rmtree(path)

    variants = {
        "featurestore": store,
        "bare loop": lambda: bare_loop(model, transform, module, paths),
        "THINGSvision's loop": lambda: thingsvision_loop(
            model, transform, module, paths, folder / "features.npy"
        ),
    }
    for work in variants.values():
        work()  # warm: pages, allocators, the probe
    times = interleaved(variants)
    report(
        f"{name} {module}, {n} JPEGs",
        times,
        [("featurestore", "bare loop", 1.10), ("featurestore", "THINGSvision's loop", bound)],
    )


if __name__ == "__main__":
    print(machine())
    n_images = int(sys.argv[1]) if len(sys.argv) > 1 else 256
    with tempfile.TemporaryDirectory() as temporary:
        run("alexnet", "features.10", n_images, 0.85, Path(temporary))
    with tempfile.TemporaryDirectory() as temporary:
        run("resnet50", "layer1", n_images, 0.50, Path(temporary))
