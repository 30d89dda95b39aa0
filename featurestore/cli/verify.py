"""``featurestore verify``: whether a store is what was written."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.arguments import (
    DEFAULT_STORE,
    AsJson,
    Store,
    open_to_change,
    open_to_read,
    print_json,
)

DAMAGED = 3
"""Exit code: the check was made, and something is wrong that was not repaired."""


def run(
    store: Store = DEFAULT_STORE,
    fast: Annotated[
        bool, typer.Option("--fast", help="Leave out the values; compare sizes and small files.")
    ] = False,
    repair: Annotated[
        bool,
        typer.Option(
            "--repair",
            help="Mend what can be mended; lost rows count as missing and are computed again.",
        ),
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(
            help="Pictures to hash again and compare with what was stored under their names.",
            show_default=False,
        ),
    ] = None,
    sample: Annotated[
        int,
        typer.Option(help="Random rows of each column to extract again from --images.", min=0),
    ] = 0,
    restart: Annotated[
        bool, typer.Option("--restart", help="Begin anew where an earlier check was stopped.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Compare a store with its checksums. Exit code 0: all is well; 3: something is damaged.

    Nothing is written unless --repair is given. After Ctrl-C the same command goes on from there.
    """
    opened = open_to_change(store) if repair else open_to_read(store)
    try:
        report = opened.verify(
            fast=fast, repair=repair, sample=sample, images=images, restart=restart
        )
    except KeyboardInterrupt as err:
        raise KeyboardInterrupt("Stopped. The same command goes on from there.") from err
    if as_json:
        print_json(report.to_json())
    else:
        sys.stdout.write(f"{report!r}\n")
    if not report.ok:
        raise typer.Exit(DAMAGED)
