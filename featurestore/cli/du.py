"""``featurestore du``: what takes the space, by model and module."""

from __future__ import annotations

import sys

from featurestore.cli.arguments import DEFAULT_STORE, AsJson, Store, open_to_read, print_json


def run(store: Store = DEFAULT_STORE, as_json: AsJson = False) -> None:
    """Say what takes the space in a store, by model and module, largest first."""
    from featurestore.options import format_nbytes
    from featurestore.tables import format_table

    models: dict[tuple[str, str], dict[str, int]] = {}
    opened = open_to_read(store)
    for column in opened.ls():
        modules = models.setdefault((column.model, column.weights), {})
        modules[column.module] = modules.get(column.module, 0) + column.nbytes
    ordered = sorted(models.items(), key=lambda item: -sum(item[1].values()))
    distances = opened.distances_nbytes()
    total = distances + sum(sum(modules.values()) for modules in models.values())
    if as_json:
        print_json(
            {
                "nbytes": total,
                "distances": distances,
                "models": [
                    {"model": model, "weights": weights, "nbytes": sum(modules.values()),
                     "modules": modules}
                    for (model, weights), modules in ordered
                ],
            }
        )  # fmt: skip
        return
    rows = []
    for (model, weights), modules in ordered:
        rows.append((f"{model} ({weights})", format_nbytes(sum(modules.values()))))
        by_size = sorted(modules.items(), key=lambda item: -item[1])
        rows += [(f"  {module}", format_nbytes(nbytes)) for module, nbytes in by_size]
    if distances:
        rows.append(("distances between images", format_nbytes(distances)))
    rows.append(("total", format_nbytes(total)))
    sys.stdout.write(format_table(("model, module", "on disk"), rows, right=(1,)) + "\n")
