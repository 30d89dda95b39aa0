"""``featurestore get``: compute what is missing, show what is there."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.arguments import (
    DEFAULT_STORE,
    AsJson,
    Dtype,
    Model,
    Readout,
    Seed,
    Store,
    Weights,
    as_readout,
    ask_for_images,
    ask_for_module,
    print_json,
    said_if_new,
)


def run(
    model: Model,
    module: Annotated[
        str | None,
        typer.Argument(
            help="A module such as features.10; several with commas. Asked for if not given.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="A folder of images (searched with its sub-folders), or images.",
            show_default=False,
        ),
    ] = None,
    store: Store = DEFAULT_STORE,
    weights: Weights = "DEFAULT",
    seed: Seed = 0,
    readout: Readout = None,
    dtype: Dtype = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")] = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(help="Images per forward pass; chosen for the device if not given."),
    ] = None,
    errors: Annotated[
        str, typer.Option(help="Unreadable images: 'raise' after keeping the rest, or 'skip'.")
    ] = "raise",
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16.")] = "fp32",
    exif: Annotated[str, typer.Option(help="EXIF orientation: ignore or apply.")] = "ignore",
    alpha: Annotated[
        str, typer.Option(help="Transparency: drop, or put on white, black or grey.")
    ] = "drop",
    as_json: AsJson = False,
) -> None:
    """Compute the activations of a module for some images, and keep them.

    What the store holds already is not computed again. Stop it with Ctrl-C at any time: the same
    command goes on from there.
    """
    if module is None:
        module = ask_for_module(model)
    images = images or [ask_for_images(model, module)]
    from featurestore.store import open_store

    with said_if_new(store):
        arrays = open_store(store).get_many(
            model,
            [name.strip() for name in module.split(",")],
            images[0] if len(images) == 1 else images,
            weights=weights,
            seed=seed,
            preprocess=_preprocess(exif, alpha),
            readout=as_readout(readout),
            dtype=dtype,
            precision=precision,
            device=device,
            batch_size=batch_size,
            errors=errors,  # type: ignore[arg-type]
        )
    if as_json:
        print_json(
            {
                name: {"dims": list(array.dims), "shape": list(array.shape), **array.attrs}
                for name, array in arrays.items()
            }
        )
        return
    for array in arrays.values():
        sys.stdout.write(f"{array!r}\n")


def _preprocess(exif: str, alpha: str) -> object:
    if (exif, alpha) == ("ignore", "drop"):
        return None
    from featurestore.networks.preprocess import preprocess

    return preprocess(exif=exif, alpha=alpha)  # type: ignore[arg-type]
