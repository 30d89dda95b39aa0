"""What a user's function names outside itself: globals, and what it imports when it runs.

Read from the bytecode, not by running anything: the name after a dot is an attribute and says
nothing about a global of the same name.
"""

from __future__ import annotations

import builtins
import dis
import importlib
import importlib.util
import inspect
import os
import sys
import types
from itertools import takewhile
from typing import TYPE_CHECKING, Any

from featurestore.errors import IdentityError
from featurestore.networks.code import is_users, is_users_module

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_GLOBALS = frozenset(("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS"))
_ATTRIBUTES = frozenset(("LOAD_ATTR", "LOAD_METHOD"))

# By way of these, code reaches what it does not name.
_WAYS_OUT: tuple[object, ...] = (
    *(builtins.globals, builtins.locals, builtins.eval, builtins.exec, builtins.__import__),
    *(importlib.import_module, importlib.__import__, sys.modules, sys._getframe),
    *(inspect.currentframe, inspect.stack, os.environ, os.getenv),
)
_WAYS_OUT_OF_FUNCTIONS = frozenset(("__globals__", "__builtins__", "f_globals", "f_locals"))


def references(function: types.FunctionType) -> Iterator[tuple[str, object]]:
    """Find everything that a function names outside itself.

    Parameters
    ----------
    function : function
        A Python function; functions inside it count.

    Yields
    ------
    str
        Its name as the function spells it, such as ``"helpers.CONFIG"``.
    object
        What it stands for now.

    Raises
    ------
    IdentityError
        If the function reaches further than by names.
    """
    where = function.__qualname__
    for code in _codes(function.__code__):
        steps = [step for step in dis.get_instructions(code) if step.opname != "EXTENDED_ARG"]
        for number, step in enumerate(steps):
            if step.opname in _GLOBALS:
                chain = [
                    str(after.argval) for after in takewhile(_is_attribute, steps[number + 1 :])
                ]
                yield from _named(str(step.argval), chain, function.__globals__, where)
            elif step.opname == "IMPORT_NAME":
                level, names = (before.argval for before in steps[number - 2 : number])
                yield from _imported(str(step.argval), level, names, function, where)
            elif _is_attribute(step) and step.argval in _WAYS_OUT_OF_FUNCTIONS:
                raise _refusal(str(step.argval), where)


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _is_attribute(step: dis.Instruction) -> bool:
    return step.opname in _ATTRIBUTES


def _named(
    name: str, chain: Sequence[str], space: Mapping[str, object], where: str
) -> Iterator[tuple[str, object]]:
    value = space[name] if name in space else vars(builtins).get(name)
    _require_inside(value, name, where)
    if name not in space:
        return  # a builtin, or nothing yet
    root = value
    for attribute in chain:
        # Only modules are followed: everything else is spelled whole. What a library's module
        # makes up on demand is the library's.
        if not isinstance(value, types.ModuleType) or attribute not in vars(value):
            break
        name, value = f"{name}.{attribute}", vars(value)[attribute]
        _require_inside(value, name, where)
    if isinstance(root, types.ModuleType) and not is_users_module(root) and not _is_mine(value):
        yield name.partition(".")[0], root
    else:
        yield name, value


def _is_mine(value: Any) -> bool:
    """Say whether the user put something of their own into a library's module."""
    if isinstance(value, types.ModuleType):
        return is_users_module(value)
    return isinstance(value, types.FunctionType | type) and is_users(value)


def _imported(
    name: str, level: int, names: Sequence[str] | None, function: types.FunctionType, where: str
) -> Iterator[tuple[str, object]]:
    package = str(function.__globals__.get("__package__") or "")
    try:
        full = importlib.util.resolve_name("." * level + name, package)
        module = _users_module(full)
    except Exception as err:  # it runs the user's code, which may raise anything
        raise IdentityError(
            f"{where} imports {name!r}, and that fails ({type(err).__name__}: {err}), so what it "
            "does cannot be told. Import it at the top of the file.",
            where=where,
        ) from err
    if module is None:
        return
    if not names:
        yield full, module
        yield full.partition(".")[0], sys.modules[full.partition(".")[0]]
    for part in names or ():
        if not hasattr(module, part):
            _users_module(f"{full}.{part}")  # may be a module that nobody imported yet
        yield f"{full}.{part}", getattr(module, part, None)


def _users_module(full: str) -> types.ModuleType | None:
    """Return a module of the user's; libraries', and what is not there, are known by name."""
    module = sys.modules.get(full)
    if module is None:
        try:
            spec = importlib.util.find_spec(full)
        except ModuleNotFoundError:
            return None
        if spec is None or not is_users_module(importlib.util.module_from_spec(spec)):
            return None
        module = importlib.import_module(full)  # as the function would
    return module if is_users_module(module) else None


def _require_inside(value: object, name: str, where: str) -> None:
    if any(value is way for way in _WAYS_OUT):
        raise _refusal(name, where)


def _refusal(name: str, where: str) -> IdentityError:
    return IdentityError(
        f"{where} uses {name}, by which it can reach anything, so what it does cannot be told. "
        "Name what it needs: make it an attribute of the network, or a module-level constant of "
        "plain values.",
        where=where,
        name=name,
    )
