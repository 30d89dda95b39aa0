"""``featurestore ls``: what a store holds."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from featurestore.cli.arguments import DEFAULT_STORE, AsJson, Store, open_to_read, print_json


def run(
    store: Store = DEFAULT_STORE,
    images: Annotated[
        bool, typer.Option("--images", help="List the image sets instead of the columns.")
    ] = False,
    by_size: Annotated[bool, typer.Option("--size", help="Largest columns first.")] = False,
    as_json: AsJson = False,
) -> None:
    """List the columns of a store: models, modules, numbers of images, sizes on disk."""
    opened = open_to_read(store)
    if images:
        sets = opened.images()
        if as_json:
            print_json([asdict(info) for info in sets])
        else:
            sys.stdout.write(f"{sets!r}\n")
        return
    columns = opened.ls()
    if by_size:
        columns.sort(key=lambda column: -column.nbytes)
    if as_json:
        print_json([column.to_json() for column in columns])
    else:
        sys.stdout.write(f"{columns!r}\n")
