"""The program ``featurestore``: one command per file, one place for errors and exit codes.

Exit codes: 0 done; 1 it could not be done; 2 the call makes no sense as it stands; 3 ``verify``
found damage that is not repaired; 130, 143 or 138 stopped by SIGINT (Ctrl-C), SIGTERM or SIGUSR1,
and what was computed is kept: the same command goes on from there. (138 is 128 + 10, the number of
SIGUSR1 on Linux.)
"""

from __future__ import annotations

import functools
import signal
import sys
import warnings
from collections.abc import Callable
from typing import Any

import typer

from featurestore.cli import (
    compact,
    compare,
    demo,
    drop,
    du,
    explain,
    get,
    ls,
    models,
    modules,
    plan,
    rdm,
    tag,
    verify,
)
from featurestore.errors import FeatureStoreError, FeatureStoreWarning, InvalidInputError

app = typer.Typer(
    name="featurestore",
    help="Keep every activation of vision networks once, labelled, under what it is.",
    epilog="Example: featurestore get alexnet features.10 stimuli/ --store features.fstore. "
    "Exit codes: 0 done, 1 could not be done, 2 makes no sense as it stands, 3 damage found, "
    "130, 143 or 138 stopped by Ctrl-C, SIGTERM or SIGUSR1 and what was computed is kept.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _explained(run: Callable[..., None]) -> Callable[..., None]:
    """Turn errors into one paragraph on stderr and an exit code, inside of what typer catches."""

    @functools.wraps(run)
    def explained(*words: Any, **options: Any) -> None:
        try:
            run(*words, **options)
        except KeyboardInterrupt as err:
            sys.stderr.write(f"\n{str(err) or 'Stopped.'}\n")
            raise typer.Exit(128 + getattr(err, "signal", signal.SIGINT)) from err
        except FeatureStoreError as err:
            sys.stderr.write(f"Error: {err}\n")
            raise typer.Exit(2 if isinstance(err, InvalidInputError) else 1) from err

    return explained


for command in (
    get, plan, explain, rdm, compare, ls, du, models, modules, verify, compact, tag, drop, demo,
):  # fmt: skip
    app.command(name=command.__name__.rpartition(".")[2])(_explained(command.run))


def _show_warning(message: Warning | str, category: type[Warning], *_rest: Any) -> None:
    if issubclass(category, FeatureStoreWarning):
        sys.stderr.write(f"Note: {message}\n")


def main() -> None:
    """Run the program."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    app()


if __name__ == "__main__":
    main()
