"""``featurestore plan``: what is missing and what it would cost."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from featurestore.cli.arguments import (
    DEFAULT_STORE,
    AsJson,
    Dtype,
    Images,
    Model,
    Readout,
    Seed,
    Store,
    Weights,
    as_readout,
    print_json,
    said_if_new,
)


def run(
    model: Model,
    module: Annotated[
        str, typer.Argument(help="A module; several with commas.", show_default=False)
    ],
    images: Images,
    store: Store = DEFAULT_STORE,
    weights: Weights = "DEFAULT",
    seed: Seed = 0,
    readout: Readout = None,
    dtype: Dtype = "float32",
    as_json: AsJson = False,
) -> None:
    """Say how many images are missing and how much they would take; compute nothing."""
    from featurestore.store import open_store

    with said_if_new(store):
        plan = open_store(store).plan(
            model,
            [name.strip() for name in module.split(",")],
            images,
            weights=weights,
            seed=seed,
            readout=as_readout(readout),  # type: ignore[arg-type]
            dtype=dtype,  # type: ignore[arg-type]
        )
    if not as_json:
        sys.stdout.write(f"{plan!r}\n")
        return
    print_json(
        {
            "model": plan.model.record.label,
            "weights": plan.model.record.weights_label,
            "n_images": plan.n_images,
            "n_missing": plan.n_missing,
            "nbytes": plan.nbytes,
            "modules": {
                gap.wanted.module: {
                    "n_missing": len(gap.compute),
                    "n_derivable": len(gap.derive),
                    "nbytes": gap.nbytes,
                }
                for gap in plan.gaps
            },
        }
    )
