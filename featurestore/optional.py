"""Libraries that only some calls need: one way to import them, one message where they lack."""

from __future__ import annotations

import importlib
from typing import Any

from featurestore.errors import MissingDependencyError


def import_optional(module: str, extra: str) -> Any:
    """Import a library that belongs to an extra.

    Parameters
    ----------
    module : str
        The module's dotted name.
    extra : str
        The extra of this package that installs it.

    Returns
    -------
    module
        The imported module.

    Raises
    ------
    MissingDependencyError
        If it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        package = module.partition(".")[0]
        if err.name is None or err.name.partition(".")[0] != package:
            raise  # the library is there and lacks something of its own
        raise MissingDependencyError(
            f"This needs {err.name}, which is not installed. "
            f'Install it with: pip install "featurestore[{extra}]"',
            package=package,
            extra=extra,
        ) from err
