"""``featurestore models``: which models there are."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from featurestore.cli.arguments import AsJson, print_json


def run(
    pattern: Annotated[
        str | None,
        typer.Argument(help="Part of a name, or a pattern such as 'resnet*'.", show_default=False),
    ] = None,
    source: Annotated[
        str | None, typer.Option(help="Only models of this source, such as torchvision.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the models that can be asked for."""
    from featurestore.networks.listing import models

    found = models(pattern=pattern, source=source)
    if as_json:
        print_json(list(found))
    else:
        sys.stdout.write(f"{found!r}\n")
