"""``featurestore compact``: merge sparse slots, remove what nobody reads."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from featurestore.cli.arguments import DEFAULT_STORE, AsJson, Store, open_to_change, print_json


def run(
    store: Store = DEFAULT_STORE,
    grace_hours: Annotated[
        float,
        typer.Option(
            help="How long files of others stay that look forgotten. 0 only if nobody else uses "
            "the store now.",
            min=0,
        ),
    ] = 24.0,
    as_json: AsJson = False,
) -> None:
    """Merge sparse slots, drop copies, remove files that nobody reads. Safe beside running jobs."""
    report = open_to_change(store).compact(grace_s=3600 * grace_hours)
    if as_json:
        print_json(asdict(report))
    else:
        sys.stdout.write(f"{report!r}\n")
