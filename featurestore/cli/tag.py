"""``featurestore tag``: freeze the data of a paper."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from featurestore.cli.arguments import (
    DEFAULT_STORE,
    AsJson,
    Dtype,
    Readout,
    Seed,
    Store,
    Weights,
    as_readout,
    open_to_change,
    open_to_read,
    print_json,
)


def run(
    name: Annotated[
        str | None,
        typer.Argument(help="The tag's name; all are listed without it.", show_default=False),
    ] = None,
    model: Annotated[
        str | None, typer.Argument(help="A model whose rows are frozen.", show_default=False)
    ] = None,
    module: Annotated[
        str | None, typer.Argument(help="A module; several with commas.", show_default=False)
    ] = None,
    images: Annotated[
        Path | None,
        typer.Argument(
            help="A folder of images, or the label of an image set of the store.",
            show_default=False,
        ),
    ] = None,
    store: Store = DEFAULT_STORE,
    weights: Weights = "DEFAULT",
    seed: Seed = 0,
    readout: Readout = None,
    dtype: Dtype = "float32",
    remove: Annotated[
        bool, typer.Option("--remove", help="Remove the tag; its rows stay.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Freeze rows under a name, show what a tag holds, or list the tags.

    Frozen rows are not evicted and not dropped, and 'verify' compares them with what they were.
    """
    found: Any
    if name is None:
        found = open_to_read(store).tag()
    elif remove:
        open_to_change(store).tag(name, remove=True)
        sys.stdout.write(f"Removed the tag {name!r}; its rows stay.\n")
        return
    elif model is None:
        found = open_to_read(store).tag(name)
    elif module is None or images is None:
        sys.stderr.write(f"Say which rows: featurestore tag {name} {model} MODULE IMAGES\n")
        raise typer.Exit(2)
    else:
        opened = open_to_change(store)
        features = open_to_read(store).get_many(
            model,
            [word.strip() for word in module.split(",")],
            images if images.exists() else opened.images(str(images)),
            weights=weights,
            seed=seed,
            readout=as_readout(readout),
            dtype=dtype,
        )
        found = opened.tag(name, features)
    if as_json:
        tags = found if isinstance(found, list) else [found]
        print_json([tag.to_json() for tag in tags])
    else:
        sys.stdout.write(f"{found!r}\n")
