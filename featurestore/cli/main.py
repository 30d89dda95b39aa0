"""The program ``featurestore``: one command per file, one place for errors and exit codes.

Exit codes: 0 done; 1 it could not be done; 2 the call makes no sense as it stands; 130 stopped by
the user, what was computed is kept.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import typer

from featurestore.cli import demo, get, ls, models, modules, plan
from featurestore.errors import FeatureStoreError, FeatureStoreWarning, InvalidInputError

app = typer.Typer(
    name="featurestore",
    help="Keep every activation of vision networks once, labelled, under what it is.",
    epilog="Example: featurestore get alexnet features.10 stimuli/ --store features.fstore",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (get, plan, ls, models, modules, demo):
    app.command(name=command.__name__.rpartition(".")[2])(command.run)


def _show_warning(message: Warning | str, category: type[Warning], *_rest: Any) -> None:
    if issubclass(category, FeatureStoreWarning):
        sys.stderr.write(f"Note: {message}\n")


def main() -> None:
    """Run the program; errors become one paragraph on stderr and an exit code."""
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    try:
        app()
    except KeyboardInterrupt as err:
        sys.stderr.write(f"\n{str(err) or 'Stopped.'}\n")
        sys.exit(130)
    except FeatureStoreError as err:
        sys.stderr.write(f"Error: {err}\n")
        sys.exit(2 if isinstance(err, InvalidInputError) else 1)


if __name__ == "__main__":
    main()
