"""``featurestore drop``: take columns away."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Annotated

import typer

from featurestore.cli.arguments import DEFAULT_STORE, AsJson, Store, open_to_change, print_json


def run(
    model: Annotated[
        str | None,
        typer.Argument(help="A model as 'featurestore ls' shows it.", show_default=False),
    ] = None,
    module: Annotated[
        str | None,
        typer.Argument(help="A module; all of the model if not given.", show_default=False),
    ] = None,
    store: Store = DEFAULT_STORE,
    weights: Annotated[
        str | None,
        typer.Option(help="Needed where the model was kept with several.", show_default=False),
    ] = None,
    to_fit: Annotated[
        str | None,
        typer.Option(
            help="Instead of a model: evict what is cheapest to recompute until the store takes "
            "at most this, such as '100 GB'. Tagged rows stay.",
            show_default=False,
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> None:
    """Take columns away for good; the next 'get' would compute them again."""
    opened = open_to_change(store)
    what = f"everything beyond {to_fit}" if to_fit else f"{model or ''} {module or ''}".strip()
    if not yes and what:
        if not (sys.stdin.isatty() and sys.stdout.isatty()):
            sys.stderr.write(f"This would drop {what} from {store}. Add --yes to do it.\n")
            raise typer.Exit(2)
        typer.confirm(f"Drop {what} from {store}?", abort=True)
    report = opened.drop(model, module, weights=weights, to_fit=to_fit)
    if as_json:
        print_json(asdict(report))
    else:
        sys.stdout.write("".join(f"{column}\n" for column in report.columns) + f"{report!r}\n")
