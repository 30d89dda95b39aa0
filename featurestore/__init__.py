"""A feature database for vision networks: every activation kept once, and known by what it is.

Public names are resolved on first use, so that ``import featurestore`` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.options import get_options as get_options
    from featurestore.options import set_options as set_options

_HOME = {
    "get_options": "featurestore.options",
    "set_options": "featurestore.options",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME, key=str.casefold)


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'featurestore' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
