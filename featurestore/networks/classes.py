"""What users' classes are made of: members, bases, metaclass and generated parts."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import types
from typing import TYPE_CHECKING, Any

from featurestore.networks.code import is_users, qualified_name

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from featurestore.typing import Json

    Spell = Callable[[Any, str], Json]

# Of a class's own namespace: what Python puts there by itself.
_NOISE = frozenset(
    (
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__conditional_annotations__", "__firstlineno__", "__static_attributes__"),
        *("__slotnames__", "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl"),
        *("__match_args__", "__dataclass_fields__", "__dataclass_params__", "__classcell__"),
    )
)
_TupleGetter: type = type(vars(inspect.ClosureVars)["globals"])  # of a named tuple's fields


def is_plain_library(kind: type) -> bool:
    """Say whether a class is known by its name alone.

    Parameters
    ----------
    kind : type
        A class.

    Returns
    -------
    bool
        Whether everything in its line is installed, and nothing in it replaced by the user.
    """
    return not any(is_users(base) or _replaced(base) for base in kind.__mro__)


def class_facts(kind: type, spell: Spell) -> Json:
    """Describe a class that the user wrote or changed.

    Parameters
    ----------
    kind : type
        A class.
    spell : callable
        Spells a value, given what to call it in messages.

    Returns
    -------
    JSON-able
        Its line of bases, and of every one that is the user's the members.
    """
    facts: list[Json] = [qualified_name(base) for base in kind.__mro__]
    if is_users(type(kind)):
        facts.append(["metaclass", spell(type(kind), "its metaclass")])
    return [facts, [_members(base, spell) for base in kind.__mro__]]


def slots(kind: type) -> Iterator[str]:
    """List the attributes of instances that stand in slots.

    Parameters
    ----------
    kind : type
        A class.

    Yields
    ------
    str
        A name.
    """
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                yield name


def _replaced(kind: type) -> dict[str, Any]:
    """Find what the user put into an installed class."""
    if is_users(kind):
        return {}
    return {
        name: value
        for name, value in vars(kind).items()
        if isinstance(value, types.FunctionType) and is_users(value)
    }


def _members(kind: type, spell: Spell) -> Json:
    where = f"class {kind.__qualname__}"
    members = vars(kind) if is_users(kind) else _replaced(kind)
    spelled: dict[str, Json] = {}
    for name, value in sorted(members.items()):
        if name in _NOISE or isinstance(value, types.MemberDescriptorType):
            continue
        if not (name.startswith("_") and _is_generated(kind, value)):
            spelled[name] = _member(value, f"{where}, {name}", spell)
    return [kind.__qualname__, spelled, _fields(kind, where, spell) if is_users(kind) else []]


def _member(value: Any, where: str, spell: Spell) -> Json:
    if isinstance(value, staticmethod | classmethod):
        return [type(value).__name__, spell(value.__func__, where)]
    if type(value) is property:
        return ["property", [spell(f, where) for f in (value.fget, value.fset)]]
    if isinstance(value, functools.cached_property):
        return ["property", spell(value.func, where)]
    if isinstance(value, _TupleGetter):
        return ["field", int(value.__reduce__()[1][0])]
    return spell(value, where)


def _fields(kind: type, where: str, spell: Spell) -> Json:
    """Describe the fields of a dataclass, from which its methods were generated."""
    own = vars(kind).get("__dataclass_fields__", {})
    return [
        [
            field.name,
            [field.init, bool(field.kw_only)],
            [
                spell(value, f"{where}, field {field.name}")
                for value in (field.default, field.default_factory)
                if value is not dataclasses.MISSING
            ],
        ]
        for field in own.values()
    ]


def _is_generated(kind: type, member: Any) -> bool:
    """Say whether dataclasses or namedtuple wrote a method, from what stands elsewhere."""
    if "__dataclass_fields__" not in vars(kind) and "_fields" not in vars(kind):
        return False
    code = getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)
    file = "" if code is None else code.co_filename
    return file.startswith("<string") or file.endswith(
        ("dataclasses.py", "collections/__init__.py")
    )
