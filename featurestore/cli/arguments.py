"""Arguments that several commands share, each described once."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

if TYPE_CHECKING:
    from featurestore.store import FeatureStore

Model: TypeAlias = Annotated[
    str,
    typer.Argument(
        help="A model, such as alexnet. 'featurestore models' lists them.", show_default=False
    ),
]
Images: TypeAlias = Annotated[
    Path,
    typer.Argument(
        help="A folder of images (searched with its sub-folders), or one image.", show_default=False
    ),
]
Store: TypeAlias = Annotated[
    Path,
    typer.Option(
        "--store",
        "-s",
        help="The feature store, a folder of its own; made if it is not there.",
        envvar="FEATURESTORE_STORE",
    ),
]
Weights: TypeAlias = Annotated[
    str,
    typer.Option(
        help="DEFAULT, the name of published weights, a checkpoint file, or none for random ones."
    ),
]
Seed: TypeAlias = Annotated[int, typer.Option(help="Seed of random weights.")]
Readout: TypeAlias = Annotated[
    str | None,
    typer.Option(help="Keep all (default), 'flatten' it, or 'avgpool' over y and x."),
]
Dtype: TypeAlias = Annotated[str, typer.Option(help="Stored dtype: float32 or float16.")]
Precision: TypeAlias = Annotated[str, typer.Option(help="fp32, tf32, bf16 or fp16.")]
Device: TypeAlias = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 or mps.")]
AsJson: TypeAlias = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]

DEFAULT_STORE = Path("features.fstore")


def open_to_read(path: Path) -> FeatureStore:
    """Open a store for a command that only looks.

    Parameters
    ----------
    path : Path
        The store's folder.

    Returns
    -------
    FeatureStore
        Opened with ``mode="r"``.
    """
    from featurestore.store import open_store

    return open_store(path, mode="r")


def open_to_change(path: Path) -> FeatureStore:
    """Open a store for a command that puts in order what is there.

    Parameters
    ----------
    path : Path
        The store's folder.

    Returns
    -------
    FeatureStore
        Opened with ``mode="a"``; never a new one, as a mistyped path would make it.
    """
    from featurestore.store import open_store

    open_to_read(path)
    return open_store(path)


def print_json(document: Any) -> None:
    """Print a document for programs.

    Parameters
    ----------
    document : JSON-able
        What to print.
    """
    sys.stdout.write(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def as_readout(word: str | None) -> str | None:
    """Read the option ``--readout``.

    Parameters
    ----------
    word : str, optional
        As it was typed; ``"none"`` is what ``ls`` shows where everything is kept.

    Returns
    -------
    str or None
        As `FeatureStore.get` takes it.
    """
    return None if word in (None, "none", "all") else word


@contextmanager
def said_if_new(store: Path) -> Iterator[None]:
    """Say afterwards that a store was made: a mistyped path should not go unnoticed.

    Parameters
    ----------
    store : Path
        Where it is expected.
    """
    was_there = store.exists()
    yield
    if not was_there:
        sys.stderr.write(f"Note: made a new store, {store}\n")


def ask_for_images(model: str, module: str) -> Path:
    """Ask for a folder of images; in a pipe, say how to name it instead.

    Parameters
    ----------
    model, module : str
        What was asked for so far.

    Returns
    -------
    Path
        The folder.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stderr.write(
            f"No images were given:\n  featurestore get {model} {module} IMAGES --store STORE\n"
        )
        raise typer.Exit(2)
    return Path(typer.prompt("Folder of images"))


def ask_for_module(model: str) -> str:
    """Show the modules of a model and ask for one; in a pipe, say how to name it instead.

    Parameters
    ----------
    model : str
        The model.

    Returns
    -------
    str
        The module that was chosen.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        sys.stderr.write(
            f"No module was given. 'featurestore modules {model}' lists them; then:\n"
            f"  featurestore get {model} MODULE IMAGES --store STORE\n"
        )
        raise typer.Exit(2)
    from featurestore.networks.listing import choose_module

    return choose_module(model)
