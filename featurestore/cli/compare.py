"""``featurestore compare``: how alike RDMs in files are."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from featurestore.cli.arguments import AsJson, print_json


def run(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="RDMs: what 'featurestore rdm --out' wrote, or .npy, .npz, .mat, .csv, .tsv or "
            ".txt. The last one is what the others are compared with; those of one file alone are "
            "compared with each other.",
            metavar="RDM",
            show_default=False,
        ),
    ],
    method: Annotated[
        str,
        typer.Option(help="pearson, spearman, rho-a, kendall (tau-b), tau-a, tau-b or cosine."),
    ] = "pearson",
    names: Annotated[
        Path | None,
        typer.Option(
            help="Names of the images, for files without: a .csv with a column 'image', 'file' or "
            "'name', or a text file with one name per line.",
            show_default=False,
        ),
    ] = None,
    dims: Annotated[
        str, typer.Option(help="What leading axes of arrays are; several with commas.")
    ] = "subject",
    key: Annotated[
        str | None,
        typer.Option(help="Which variable of .npz and .mat files.", show_default=False),
    ] = None,
    join: Annotated[
        str, typer.Option(help="'exact': all have the same images; 'inner': take those in all.")
    ] = "exact",
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the scores: .png, .jpg, .svg or .pdf.", show_default=False),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Compare RDMs with another one, matching their images by name.

    If the target has several subjects, the score is the mean over them, with its standard error,
    and the noise ceiling is that of these subjects.

    Example: featurestore compare alexnet.nc pixels.csv brain.npy --names names.csv
    """
    from featurestore.cli.comparison import Comparison, require_drawable
    from featurestore.cli.rdm_files import Reading
    from featurestore.rsa.measures import require_method

    require_method(method)
    require_drawable(plot)
    reading = Reading(names, tuple(word.strip() for word in dims.split(",")), key)
    found = Comparison.of(files, reading, method=method, join=join)
    if plot is not None:
        found.draw(plot)
    if as_json:
        print_json(found.to_json())
    else:
        sys.stdout.write(f"{found!r}\n" + (f"Wrote {plot}\n" if plot else ""))
