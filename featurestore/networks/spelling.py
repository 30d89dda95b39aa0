"""One spelling for whatever a network keeps in its attributes: values, objects and code.

What is installed is known by its qualified name; what the user wrote, by its source as well. What
has no spelling that is the same in every process is refused, never guessed.
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import logging
import math
import types
import weakref
from collections.abc import Mapping, Set
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import xxhash

from featurestore.canonical import canonical_json, digest_of
from featurestore.errors import IdentityError
from featurestore.networks.code import (
    cell_value,
    is_users,
    is_users_module,
    names_in,
    qualified_name,
    source_digest,
)
from featurestore.networks.weights import tensor_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from featurestore.typing import Json

MAX_DEPTH = 40

# Of a class's own namespace: what Python puts there by itself.
_CLASS_NOISE = frozenset(
    (
        *("__module__", "__qualname__", "__doc__", "__dict__", "__weakref__", "__slots__"),
        *("__annotations__", "__annotate__", "__annotate_func__", "__annotations_cache__"),
        *("__conditional_annotations__", "__firstlineno__", "__static_attributes__"),
        *("__slotnames__", "__parameters__", "__orig_bases__", "__abstractmethods__", "_abc_impl"),
        *("__match_args__", "__dataclass_fields__", "__dataclass_params__", "__classcell__"),
    )
)
_TORCH_WORDS = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)

# What says nothing about the values: where the network is; whom it tells; packed parameters,
# whose values are in the state dict.
_SILENT = {torch.device: "device", logging.Logger: "logger", torch.ScriptObject: "packed"}


class Speller:
    """Spells values; what is big is spelled as a digest, what contains itself as a cycle.

    Parameters
    ----------
    modules : mapping of int to str
        Names of the network's registered modules by `id`, which are described elsewhere.
    hidden : callable
        Describes a network module that is not registered.
    """

    def __init__(
        self,
        modules: Mapping[int, str],
        hidden: Callable[[torch.nn.Module], Json],
    ) -> None:
        self._modules = modules
        self._hidden = hidden
        self._open: list[int] = []
        self._digests: dict[int, str] = {}
        self._alive: list[object] = []

    def value(self, value: Any, where: str) -> Json:
        """Spell a value.

        Parameters
        ----------
        value : object
            Anything that a module keeps.
        where : str
            What to call it in messages.

        Returns
        -------
        JSON-able
            The same in every process.

        Raises
        ------
        IdentityError
            If there is no such spelling.
        """
        if value is None or type(value) in (bool, int, str):
            return value  # type: ignore[no-any-return]
        if type(value) is float:
            return value if math.isfinite(value) else ["float", str(value)]
        return self._leaf(value, where) or self._compound(value, where)

    def kind(self, kind: type) -> Json:
        """Spell a class: its name, and what the user wrote of it.

        Parameters
        ----------
        kind : type
            A class.

        Returns
        -------
        JSON-able
            Its qualified name; with the code of every class in its line that is the user's.
        """
        own = [base for base in kind.__mro__ if is_users(base)]
        code = self._digest_once(kind, lambda: [self._namespace(base) for base in own])
        return ["class", qualified_name(kind), code if own else ""]

    def _leaf(self, value: Any, where: str) -> list[Json] | None:
        if isinstance(value, Enum):
            return ["enum", qualified_name(type(value)), value.name]
        if isinstance(value, torch.Tensor):
            return ["tensor", _digest(tensor_pieces(value, ""))]
        if isinstance(value, np.ndarray | np.generic):
            return ["array", self._array(np.asarray(value), where)]
        if isinstance(value, _TORCH_WORDS):
            return ["torch", str(value)]
        if isinstance(value, bytes | bytearray):
            return ["bytes", hashlib.sha256(value).hexdigest()]
        if isinstance(value, bool | int | float | str | complex):  # and subclasses
            return ["scalar", qualified_name(type(value)), str(value)]
        if isinstance(value, types.ModuleType):
            return ["package", value.__name__]
        for kind, word in _SILENT.items():
            if isinstance(value, kind):
                return [word]
        return None

    def _compound(self, value: Any, where: str) -> Json:
        if isinstance(value, torch.nn.Module):
            return self._module(value)
        if isinstance(value, list | tuple | Mapping | Set):
            return self._once(value, where, self._container)
        if isinstance(value, type):
            return self.kind(value)
        if isinstance(value, functools.partial):
            inner = [value.func, list(value.args), dict(value.keywords)]
            return ["partial", *(self.value(item, where) for item in inner)]
        if isinstance(value, weakref.ref):
            return ["weak", self.value(value(), where)]
        if isinstance(value, types.MethodType | types.BuiltinMethodType) and _is_bound(value):
            code = getattr(value, "__func__", None)
            body = value.__name__ if code is None else self.code(code, where)
            return ["method", self.value(value.__self__, where), body]
        if _is_code(value):
            return self.code(value, where)
        if not (_has_state(value) or is_users(type(value))) or _hides_state(type(value)):
            raise self._refusal(value, where)
        spelled = self._digest_once(value, lambda: self._state(value, where))
        return ["object", self.kind(type(value)), spelled]

    def _module(self, module: torch.nn.Module) -> Json:
        if id(module) in self._modules:
            return ["module", self._modules[id(module)]]
        return ["hidden", self._digest_once(module, lambda: self._hidden(module))]

    def _container(self, value: Any, where: str) -> Json:
        kind = qualified_name(type(value))
        if isinstance(value, Mapping):
            return [
                kind,
                [
                    [self.value(name, where), self.value(item, f"{where}[{name!r}]")]
                    for name, item in value.items()
                ],
            ]
        items = [self.value(item, f"{where}[{number}]") for number, item in enumerate(value)]
        if isinstance(value, Set):
            items.sort(key=canonical_json)
        return [kind, items]

    def _state(self, value: Any, where: str) -> Json:
        state = dict(getattr(value, "__dict__", {}))
        state |= {
            name: getattr(value, name) for name in _slots(type(value)) if hasattr(value, name)
        }
        return {name: self.value(item, f"{where}.{name}") for name, item in sorted(state.items())}

    def code(self, function: Any, where: str) -> Json:
        """Spell a function.

        Parameters
        ----------
        function : callable
            A function, builtin or method descriptor.
        where : str
            What to call it in messages.

        Returns
        -------
        JSON-able
            Its name; if it is the user's, or has no name, its source, what it closes over and
            what it refers to.
        """
        name = qualified_name(function)
        nameless = "<locals>" in name or "<lambda>" in name
        if not isinstance(function, types.FunctionType) or not (is_users(function) or nameless):
            return ["function", name]
        return ["function", name, self._digest_once(function, lambda: self._body(function, where))]

    def _body(self, function: types.FunctionType, where: str) -> Json:
        cells = [cell_value(cell) for cell in function.__closure__ or ()]
        return [
            source_digest(function, where),
            self.value(list(function.__defaults__ or ()), where),
            self.value(dict(function.__kwdefaults__ or {}), where),
            # The class that super() needs is described where it stands.
            [self.value(cell, where) for cell in cells if not isinstance(cell, type)],
            self._references(function) if is_users(function) else {},
        ]

    def _references(self, function: types.FunctionType) -> Json:
        """Spell the user's functions, classes and constants that a function names."""
        found: dict[str, Json] = {}
        names = sorted(set(names_in(function.__code__)))
        spaces = [function.__globals__]
        spaces += [
            vars(value)
            for value in (function.__globals__.get(name) for name in names)
            if isinstance(value, types.ModuleType) and is_users_module(value)
        ]
        for name in names:
            for space in spaces:
                value = space.get(name)
                constant = type(value) in (bool, int, float, str) and name in space
                if constant or (isinstance(value, types.FunctionType | type) and is_users(value)):
                    found[name] = self.value(value, name)
        return found

    def _namespace(self, kind: type) -> Json:
        where = f"class {kind.__qualname__}"
        spelled: dict[str, Json] = {}
        for name, value in sorted(vars(kind).items()):
            if name in _CLASS_NOISE or isinstance(value, types.MemberDescriptorType):
                continue
            if _is_generated(kind, value):
                continue
            spelled[name] = self._member(value, f"{where}, {name}")
        return [kind.__qualname__, spelled]

    def _member(self, value: Any, where: str) -> Json:
        if isinstance(value, staticmethod | classmethod):
            return [type(value).__name__, self.value(value.__func__, where)]
        if isinstance(value, property):
            return ["property", [self.value(f, where) for f in (value.fget, value.fset)]]
        if isinstance(value, functools.cached_property):
            return ["property", self.value(value.func, where)]
        return self.value(value, where)

    def _array(self, array: Any, where: str) -> Json:
        if array.dtype.hasobject:
            return self.value(array.tolist(), where)
        plain = np.ascontiguousarray(array)
        little = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
        digest = xxhash.xxh3_128_hexdigest(little.tobytes())
        return [little.dtype.str, list(array.shape), digest]

    def _once(self, value: Any, where: str, spell: Callable[[Any, str], Json]) -> Json:
        if id(value) in self._open:
            return ["cycle"]
        if len(self._open) >= MAX_DEPTH:
            raise self._refusal(value, where)
        self._open.append(id(value))
        try:
            return spell(value, where)
        finally:
            self._open.pop()

    def _digest_once(self, value: Any, spell: Callable[[], Json]) -> str:
        if id(value) not in self._digests:
            spelled = self._once(value, qualified_name(type(value)), lambda *_: spell())
            if spelled == ["cycle"]:
                return "cycle"
            self._digests[id(value)] = digest_of("part", spelled)
            self._alive.append(value)  # or its id would be given to something else
        return self._digests[id(value)]

    def _refusal(self, value: object, where: str) -> IdentityError:
        return IdentityError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, and what it holds "
            "cannot be told from outside, so this network could not be told from another. Keep "
            "plain values, tensors or modules there, or remove it before wrapping the network.",
            where=where,
        )


def _is_bound(method: types.MethodType | types.BuiltinMethodType) -> bool:
    # Builtin functions are bound to the module or class that they stand in.
    return not isinstance(method.__self__, types.ModuleType | type | None)


def _is_generated(kind: type, member: Any) -> bool:
    """Say whether dataclasses or namedtuple wrote a method, from what stands elsewhere."""
    if "__dataclass_fields__" not in vars(kind) and "_fields" not in vars(kind):
        return False
    code = getattr(inspect.unwrap(getattr(member, "__func__", member)), "__code__", None)
    file = "" if code is None else code.co_filename
    return file.startswith("<") or file.endswith(("dataclasses.py", "collections/__init__.py"))


def _hides_state(kind: type) -> bool:
    """Say whether instances hold more than attributes, in C, as random.Random does."""
    words = 2 + sum(1 for _ in _slots(kind))  # __dict__, __weakref__
    return kind.__basicsize__ > object.__basicsize__ + 8 * words


def _is_code(value: Any) -> bool:
    named = callable(value) and hasattr(value, "__name__")
    return named and (isinstance(value, types.FunctionType) or not _has_state(value))


def _has_state(value: object) -> bool:
    return hasattr(value, "__dict__") or any(True for _ in _slots(type(value)))


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        names = vars(base).get("__slots__", ())
        for name in (names,) if isinstance(names, str) else names:
            if name not in ("__dict__", "__weakref__"):
                yield name


def _digest(pieces: Iterable[Any]) -> str:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
