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
from typing import Any

from featurestore.errors import IdentityError

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
    return module.__name__ == "__main__" if file is None else not is_installed(file)


@functools.cache
def is_installed(file: str) -> bool:
    """Say whether a file belongs to the standard library or to an installed package.

    Parameters
    ----------
    file : str
        Of a Python module or of code.

    Returns
    -------
    bool
        False for scripts and notebooks too.
    """
    path = Path(file)
    packages = {"site-packages", "dist-packages"} & set(path.parts)
    return bool(packages) or path.resolve().is_relative_to(_STDLIB) or path.suffix == ".so"


def cells_of(function: types.FunctionType) -> list[object]:
    """Return what a function closes over.

    Parameters
    ----------
    function : function
        A Python function.

    Returns
    -------
    list
        ``None`` where nothing was assigned yet; without the class that ``super()`` needs, which
        is described where it stands.
    """
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    return [_cell_value(cell) for name, cell in cells if name != "__class__"]


def _cell_value(cell: types.CellType) -> object:
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
    if not anonymous and is_installed(code.co_filename):
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
