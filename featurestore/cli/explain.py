"""``featurestore explain``: what a column's key is made of and what sets others apart."""

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
    print_json,
)


def run(
    model: Model,
    module: Annotated[str, typer.Argument(help="A module.", show_default=False)],
    images: Annotated[
        Path | None,
        typer.Argument(help="A folder of images, or one image; all that have a row by default."),
    ] = None,
    store: Store = DEFAULT_STORE,
    weights: Weights = "DEFAULT",
    seed: Seed = 0,
    readout: Readout = None,
    precision: Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16.")] = "fp32",
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Say what a request's key is made of, who computed its rows, and how near columns differ."""
    from featurestore.planning.explain import explain
    from featurestore.storage.catalog import open_catalog

    explanation = explain(
        open_catalog(store, "r"),
        model,
        module,
        images,
        weights=weights,
        seed=seed,
        readout=as_readout(readout),  # type: ignore[arg-type]
        precision=precision,  # type: ignore[arg-type]
        dtype=dtype,  # type: ignore[arg-type]
    )
    if as_json:
        print_json(explanation.to_json())
    else:
        sys.stdout.write(f"{explanation!r}\n")
