"""``featurestore rdm``: how different a module's activations are for each pair of images."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from featurestore.cli.arguments import (
    DEFAULT_STORE,
    AsJson,
    Device,
    Dtype,
    Model,
    Precision,
    Readout,
    Seed,
    Store,
    Weights,
    as_readout,
    print_json,
    said_if_new,
)

if TYPE_CHECKING:
    from featurestore.store import FeatureStore


def run(
    model: Model,
    module: Annotated[
        str,
        typer.Argument(
            help="A module such as features.10; several with commas.", show_default=False
        ),
    ],
    images: Annotated[
        Path,
        typer.Argument(
            help="A folder of images, or the label of an image set of the store.",
            show_default=False,
        ),
    ],
    store: Store = DEFAULT_STORE,
    metric: Annotated[
        str, typer.Option(help="correlation, cosine, euclidean, sqeuclidean or gaussian.")
    ] = "correlation",
    bandwidth: Annotated[
        str | None,
        typer.Option(
            help="Width of gaussian: mean (default), median, or a number.", show_default=False
        ),
    ] = None,
    weights: Weights = "DEFAULT",
    seed: Seed = 0,
    readout: Readout = None,
    dtype: Dtype = "float32",
    precision: Precision = "fp32",
    device: Device = "auto",
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write it to a file: .nc keeps all labels and holds several modules; .csv names "
            "rows and columns; .npy has the names beside it, in .names.txt.",
            show_default=False,
        ),
    ] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw it: .png, .jpg, .svg or .pdf.", show_default=False),
    ] = None,
    order: Annotated[
        str | None,
        typer.Option(
            help="Of the images in --plot: 'category' or another coordinate, 'cluster', or 'none'. "
            "By category if not given and there are several.",
            show_default=False,
        ),
    ] = None,
    scaling: Annotated[
        str, typer.Option(help="Colours in --plot: rank, or raw dissimilarities.")
    ] = "rank",
    max_images: Annotated[
        int, typer.Option(help="Show at most so many images in --plot.", min=1)
    ] = 200,
    thumbnails: Annotated[
        bool, typer.Option("--thumbnails", help="Put the pictures on the axes of --plot.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compute the RDM of a module, and keep it; write it to a file, draw it.

    Features that are missing are computed first. What the store holds already is not computed
    again, and more images later cost only the new pairs.

    Example: featurestore rdm alexnet features.10 stimuli/ --out rdm.csv --plot rdm.png
    """
    from featurestore.cli.rdm_figure import Picture
    from featurestore.cli.rdm_files import Destination
    from featurestore.store import open_store

    modules = [name.strip() for name in module.split(",")]
    destination = None if out is None else Destination.of(out, len(modules))
    picture = Picture.of(
        plot, len(modules), order=order, scaling=scaling, max_images=max_images,
        thumbnails=thumbnails,
    )  # fmt: skip
    with said_if_new(store):
        opened = open_store(store)
        rdm = opened.rdm(
            model,
            modules[0] if len(modules) == 1 else modules,
            _images(opened, images),
            metric=metric,  # type: ignore[arg-type]
            bandwidth=_as_bandwidth(bandwidth),
            weights=weights,
            seed=seed,
            readout=as_readout(readout),
            dtype=dtype,
            precision=precision,
            device=device,
        )
    written = [] if destination is None else destination.save(rdm)
    if picture is not None:
        picture.draw(rdm)
        written.append(picture.path)
    if as_json:
        document = {"dims": list(rdm.dims), "shape": list(rdm.shape), **rdm.attrs}
        document |= {"modules": modules, "written": [str(path) for path in written]}
        print_json(document)
        return
    sys.stdout.write(f"{rdm!r}\n" + "".join(f"Wrote {path}\n" for path in written))


def _images(opened: FeatureStore, given: Path) -> Any:
    """Take what has a label in the store by that, where there is no such file."""
    if not given.exists() and str(given) in {info.label for info in opened.images()}:
        return opened.images(str(given))
    return given


def _as_bandwidth(word: str | None) -> Any:
    try:
        return None if word is None else float(word)
    except ValueError:
        return word  # "mean", "median", or an error that says so
