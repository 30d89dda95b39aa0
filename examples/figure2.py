"""Figure 2 of Muttenthaler & Hebart (2021): networks beside behaviour and the brain.

    python examples/figure2.py path/to/dataset --method spearman --out figure2

A dataset is a folder with ``images/``, ``names.csv`` (there or in ``images/``; its column ``file``
in the order of the RDMs, and ``category`` if there are classes) and ``rdms/`` (arrays of shape
(image, image) or (subject, image, image)). Without one, the photographs of ``featurestore demo``
are used, and a model of their categories is the only target.

Panel A shows the RDMs. The other panels say how alike they are, one panel for each target, with
its noise ceiling: a bar is the mean over subjects, a line the mean of a group of bars, an error
bar the standard deviation over seeds of random weights. What was computed is kept in a store: a
second run only draws.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pandas as pd
import timm
import torch
import torchvision
import xarray as xr
from PIL import Image

import featurestore as fs
from featurestore.cli.demo import collect, load_network

RDMs: TypeAlias = dict[str, xr.DataArray]

# Penultimate modules, as in the paper.
MODULES = {
    "alexnet": "classifier.4",
    "vgg16": "classifier.3",
    "resnet50": "avgpool",
    "efficientnet_lite0": "global_pool",
}
# Of the 92 images of Kriegeskorte et al. (2008), doi:10.1016/j.neuron.2008.10.043.
TARGETS = {"behaviour": "behaviour_16x92x92.npy", "human IT": "human_IT_4subj_x92x92.npy"}
REFERENCES = {
    "monkey IT": "monkey_IT_674neurons_92x92.npy",
    "animacy": "model_animacy_92x92.npy",
    "HMAX": "model_HMAX_92x92.npy",
    "V1": "model_V1_92x92.npy",
}
GROUPS = ("trained", "random", "no network")


def main(words: list[str] | None = None) -> pd.DataFrame:
    """Compute, print, draw."""
    options = parse(words)
    options.out.mkdir(parents=True, exist_ok=True)
    if options.data:
        images, targets, references = read_dataset(options)
    else:
        print("No dataset was given: photographs of the demo, without behaviour and brain.")
        images, targets, references = read_photographs(options.out / "photographs")
    references["raw pixels"] = fs.rdm(read_pixels(images), "correlation")

    store = fs.open_store(options.out / "figure2.fstore")
    trained, random = network_rdms(store, images, options)
    groups = dict(zip(GROUPS, (trained, random, references), strict=True))

    scores = {name: score(groups, target, options.method) for name, target in targets.items()}
    ceilings = {
        name: fs.noise_ceiling(target, method=options.method)
        for name, target in targets.items()
        if "subject" in target.dims
    }
    means = {
        f"{name}, mean RDM": score(groups, mean_over_subjects(targets[name]), options.method)
        for name in ceilings
    }
    table = tabulate(scores | means, ceilings)
    print(f"{options.method} of {options.metric} RDMs; mean over subjects ± SD over seeds")
    print(table.to_string())
    draw(groups, targets, scores, ceilings, options)
    return table


def parse(words: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    add = parser.add_argument
    add("data", nargs="?", default=os.environ.get("FEATURESTORE_DATA_92"), help="dataset folder")
    add("--out", type=Path, default=Path("figure2"), help="where the store and the figures go")
    add("--models", nargs="+", default=list(MODULES), help="names as fs.models() lists them")
    add("--modules", nargs="+", default=[], metavar="MODEL=MODULE", help="other modules")
    add("--seeds", type=int, default=3, help="how many random weights of each network")
    add("--download", action="store_true", help="download published weights that are not at hand")
    add("--metric", default="correlation", help="of the networks' RDMs")
    add("--method", default="pearson", help="how RDMs are compared")
    add("--targets", nargs="+", metavar="NAME=FILE", help="what to explain, in rdms/")
    add("--references", nargs="*", metavar="NAME=FILE", help="what else to compare, in rdms/")
    order = ("category", "cluster")
    add("--order", default=order[0], choices=order, help="of panel A; clusters of a target")
    add("--format", default="png", help="png, jpg, svg or pdf")
    options = parser.parse_args(words)
    options.modules = MODULES | pairs(options.modules)
    for model in set(options.models) - set(options.modules):
        parser.error(f"say which module of {model}: --modules {model}=MODULE")
    options.targets = pairs(options.targets) or TARGETS
    options.references = REFERENCES if options.references is None else pairs(options.references)
    return options


def pairs(words: list[str] | None) -> dict[str, str]:
    """Read words such as ``alexnet=features.10``."""
    return dict(word.split("=", 1) for word in words or [])


def read_dataset(options: argparse.Namespace) -> tuple[fs.ImageSet, RDMs, RDMs]:
    """Read images, and RDMs whose rows have the same names."""
    folder = Path(options.data)
    beside = folder / "names.csv"
    names = pd.read_csv(beside if beside.is_file() else folder / "images" / "names.csv")
    images = fs.read_images(folder / "images", file_names=list(names["file"]))
    if "category" in names:
        images = images.assign_coords(category=list(names["category"]))

    def read(files: dict[str, str]) -> RDMs:
        return {name: read_rdms(folder / "rdms" / file, images) for name, file in files.items()}

    return images, read(options.targets), read(options.references)


def read_rdms(path: Path, images: fs.ImageSet) -> xr.DataArray:
    """Read one RDM, or one for each subject, and give its rows the images' names."""
    dims = "subject" if np.load(path, mmap_mode="r").ndim > 2 else None
    return fs.read_rdms(path, names=images, dims=dims)


def read_photographs(folder: Path) -> tuple[fs.ImageSet, RDMs, RDMs]:
    """Collect the photographs of the demo; the target says whether two differ in category."""
    collect(folder)
    images = fs.read_images(folder)
    category = images.coords["category"]
    differ = (category[:, None] != category).astype(float)
    return images, {"category": fs.read_rdms(differ, names=images)}, {}


def read_pixels(images: fs.ImageSet) -> xr.DataArray:
    """Read the pictures themselves; those of several sizes are made alike."""
    pictures = [Image.open(path).convert("RGB") for path in images.coords["path"]]
    if len({picture.size for picture in pictures}) > 1:
        pictures = [picture.resize((64, 64)) for picture in pictures]
    pixels = np.stack([np.asarray(picture) for picture in pictures])
    return xr.DataArray(
        pixels, dims=("image", "y", "x", "channel"), coords={"image": list(images.names)}
    )


def network_rdms(
    store: fs.FeatureStore, images: fs.ImageSet, options: argparse.Namespace
) -> tuple[RDMs, RDMs]:
    """Compute the RDMs of networks: trained, where weights are at hand, and random."""
    trained, random = {}, {}
    for model in options.models:
        module = options.modules[model]

        def rdm(model: Any, module: str = module, **weights: Any) -> xr.DataArray:
            return store.rdm(model, module, images, metric=options.metric, **weights)

        if model == "efficientnet_lite0":
            trained[model] = rdm(efficientnet_lite0())
            many = [rdm(efficientnet_lite0(seed)) for seed in range(options.seeds)]
        else:
            if options.download or is_at_hand(model):
                trained[model] = rdm(model)
            else:
                print(f"{model}: its trained weights are not at hand; --download gets them")
            many = [rdm(model, weights="random", seed=seed) for seed in range(options.seeds)]
        if many:
            random[model] = xr.concat(
                many, xr.Variable("seed", range(options.seeds)), combine_attrs="drop_conflicts",
                coords="minimal", compat="override",
            )  # fmt: skip
    return trained, random


def is_at_hand(model: str) -> bool:
    """Say whether torch has the published weights of a network of torchvision on disk."""
    url = torchvision.models.get_model_weights(model).DEFAULT.url
    return (Path(torch.hub.get_dir()) / "checkpoints" / Path(url).name).is_file()


def efficientnet_lite0(seed: int | None = None) -> Any:
    """Wrap a network of one's own: here one whose real weights a package brings along."""
    network, transform = load_network()
    if seed is not None:
        torch.manual_seed(seed)
        network = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    return fs.wrap(
        network,
        name="efficientnet_lite0",
        preprocess=transform,
        preprocess_id="timm tf_efficientnet_lite0, evaluation",
    )


def score(groups: dict[str, RDMs], target: xr.DataArray, method: str) -> xr.DataArray:
    """Compare RDMs with those of each subject: dims (model, seed), with the group of each model."""
    rows, names, labels = [], [], []
    for group, rdms in groups.items():
        for name, rdm in rdms.items():
            row = fs.compare_rdms(rdm, target, method=method)
            if "subject" in row.dims:
                row = row.mean("subject", keep_attrs=True)
            rows.append(row if "seed" in row.dims else row.expand_dims(seed=[0]))
            names.append(name)
            labels.append(group)
    scores = xr.concat(
        [row.drop_vars([c for c in row.coords if c != "seed"]) for row in rows],
        xr.Variable("model", names), join="outer", combine_attrs="drop_conflicts",
    )  # fmt: skip
    return scores.assign_coords(model=names, group=("model", labels))


def mean_over_subjects(rdm: xr.DataArray) -> xr.DataArray:
    """Return the mean RDM."""
    return rdm.mean("subject", keep_attrs=True) if "subject" in rdm.dims else rdm


def tabulate(scores: RDMs, ceilings: dict[str, xr.Dataset]) -> pd.DataFrame:
    """Put scores and noise ceilings into a table for people."""
    table = {}
    for target, values in scores.items():
        index = [*zip(values.group.values, values.model.values, strict=True)]
        mean, spread = values.mean("seed").values, values.std("seed", ddof=1).values
        table[target] = {
            row: f"{m:.3f}" + (f" ± {sd:.3f}" if np.isfinite(sd) else "")
            for row, m, sd in zip(index, mean, spread, strict=True)
        }
    for target, ceiling in ceilings.items():
        row = "noise ceiling", ""
        table[target][row] = f"{float(ceiling.lower):.3f} to {float(ceiling.upper):.3f}"
    return pd.DataFrame(table).fillna("")


def draw(
    groups: dict[str, RDMs],
    targets: RDMs,
    scores: RDMs,
    ceilings: dict[str, xr.Dataset],
    options: argparse.Namespace,
) -> None:
    """Draw panel A, and one panel for each target."""
    shown = {}
    for group, rdms in groups.items():
        for name, rdm in rdms.items():
            title = name if group == "no network" else f"{name}, {group}"
            shown[title] = rdm.isel(seed=0) if "seed" in rdm.dims else rdm
    shown |= {name: mean_over_subjects(rdm) for name, rdm in targets.items()}
    first = shown[next(iter(targets))]
    by_category = options.order == "category" and "category" in first.coords
    order = "category" if by_category else fs.cluster_rdm(first)
    paths = [options.out / f"figure2{letter}.{options.format}" for letter in "ABCDEFGH"]
    fs.plots.gallery(shown, order=order, path=paths[0])
    for path, (name, values) in zip(paths[1:], scores.items(), strict=False):
        fs.plots.compare(
            values, ceiling=ceilings.get(name), over="seed", errors="sd",
            groups="group", group_means=True, title=name, path=path,
        )  # fmt: skip
    print("Drawn:", *paths[: len(scores) + 1])


if __name__ == "__main__":
    main()
