"""``featurestore modules``: what is inside a model and what keeping it costs."""

from __future__ import annotations

import sys
from dataclasses import asdict

from featurestore.cli.arguments import AsJson, Model, print_json


def run(model: Model, as_json: AsJson = False) -> None:
    """List the modules of a model in order of execution: shapes, calls, bytes per image.

    The network is built with random weights and probed with two tiny batches: nothing is
    downloaded.
    """
    from featurestore.networks.listing import modules

    table = modules(model)
    if as_json:
        print_json([asdict(row) for row in table])
    else:
        sys.stdout.write(f"{table!r}\n")
