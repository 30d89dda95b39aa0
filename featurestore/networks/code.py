"""The code behind classes and functions: installed, or written by the user."""

from __future__ import annotations

import functools
import hashlib
import inspect
import sys
import sysconfig
import textwrap
import types
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.errors import IdentityError

if TYPE_CHECKING:
    from collections.abc import Iterator

_STDLIB = Path(sysconfig.get_paths()["stdlib"]).resolve()


def qualified_name(thing: Any) -> str:
    """Return what a class or a function is called.

    Parameters
    ----------
    thing : type or callable
        A class, function or builtin.

    Returns
    -------
    str
        With its package; without it for what the user wrote, which is known by its source
        whether it is imported or run as a script.
    """
    name = getattr(thing, "__qualname__", None) or str(getattr(thing, "__name__", thing))
    package = getattr(thing, "__module__", None)
    if package is None or is_users(thing):
        return str(name)
    return f"{package}.{name}"


def is_users(thing: Any) -> bool:
    """Say whether a class or a function was written by the user rather than installed.

    Parameters
    ----------
    thing : type or callable
        A class or a function.

    Returns
    -------
    bool
        Whether its file lies outside the standard library and the installed packages.
    """
    package = getattr(thing, "__module__", None)
    module = sys.modules.get(package) if isinstance(package, str) else None
    if module is None:
        return package is not None and not isinstance(thing, types.BuiltinFunctionType)
    return is_users_module(module)


def is_users_module(module: types.ModuleType) -> bool:
    """Say whether a Python module was written by the user rather than installed.

    Parameters
    ----------
    module : module
        An imported Python module.

    Returns
    -------
    bool
        True for scripts and notebooks too.
    """
    file = getattr(module, "__file__", None)
    return module.__name__ == "__main__" if file is None else not _is_installed(file)


@functools.cache
def _is_installed(file: str) -> bool:
    path = Path(file)
    packages = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(packages) or path.resolve().is_relative_to(_STDLIB) or path.suffix == ".so"


def names_in(code: types.CodeType) -> Iterator[str]:
    """List the names of globals and attributes that code uses.

    Parameters
    ----------
    code : code
        Of a function; functions inside it count.

    Yields
    ------
    str
        A name, perhaps again.
    """
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from names_in(constant)


def cell_value(cell: types.CellType) -> object:
    """Return what a function closes over.

    Parameters
    ----------
    cell : cell
        One of its ``__closure__``.

    Returns
    -------
    object
        ``None`` if nothing was assigned yet.
    """
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def source_digest(function: types.FunctionType, where: str) -> str:
    """Return the digest of a function's source.

    Parameters
    ----------
    function : function
        A Python function.
    where : str
        What to call it in messages.

    Returns
    -------
    str
        Hex digits; for an installed function that has a name, that name.

    Raises
    ------
    IdentityError
        If the source is not available, or does not tell which lambda it is.
    """
    # Of the code itself: a decorator's wrapper carries the name of what it wraps, which is
    # among what it closes over.
    code = function.__code__
    anonymous = code.co_name == "<lambda>"
    if not anonymous and _is_installed(code.co_filename):
        return code.co_qualname
    try:
        text = textwrap.dedent(inspect.getsource(code))
    except (OSError, TypeError) as err:
        raise IdentityError(
            f"The source of {where} ({function.__qualname__}) is not available, so a change to it "
            "would go unnoticed. Define it in a file or a notebook cell.",
            where=where,
        ) from err
    if anonymous and text.count("lambda") > 1:
        raise IdentityError(
            f"{where} is one of several lambdas in one statement, which cannot be told apart. "
            "Give it a name with def.",
            where=where,
        )
    return hashlib.sha256("\n".join(map(str.rstrip, text.splitlines())).encode()).hexdigest()
