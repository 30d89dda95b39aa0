"""One spelling for whatever a network keeps in its attributes: values, objects and code.

What is installed is known by its qualified name; what the user wrote, by its source as well. What
has no spelling that is the same in every process is refused, never guessed.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import math
import operator
import re
import types
import weakref
from collections import defaultdict
from collections.abc import Mapping, Set
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
import xxhash

from featurestore.canonical import canonical_json, digest_of
from featurestore.errors import IdentityError
from featurestore.networks.classes import class_facts, is_plain_library, slots
from featurestore.networks.code import (
    cells_of,
    is_installed,
    is_users,
    is_users_module,
    qualified_name,
    source_digest,
)
from featurestore.networks.references import references
from featurestore.networks.weights import tensor_pieces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from featurestore.typing import Json

MAX_DEPTH = 60

_TORCH_WORDS = (torch.dtype, torch.layout, torch.memory_format, torch.qscheme)
# What their repr says completely.
_WORDS = (range, slice, types.EllipsisType, types.GenericAlias, types.UnionType, np.dtype)
_SCALARS = (bool, int, float, str, complex)
_GETTERS = (operator.itemgetter, operator.attrgetter, operator.methodcaller)

# What says nothing about the values: where the network is; whom it tells; packed parameters,
# whose values are in the state dict.
_SILENT = {torch.device: "device", logging.Logger: "logger", torch.ScriptObject: "packed"}

Spell: TypeAlias = "Callable[[Any, str], Json]"


class Speller:
    """Spells values; what is big is spelled as a digest, what contains itself as a cycle.

    Parameters
    ----------
    modules : mapping of int to str
        Names of the network's registered modules by `id`, which are described elsewhere.
    hidden : callable
        Describes a network module that is not registered, given a name for it and this speller.
    """

    def __init__(
        self,
        modules: Mapping[int, str],
        hidden: Callable[[torch.nn.Module, str, Speller], Json],
    ) -> None:
        self.modules = dict(modules)
        self._hidden = hidden
        self._n_hidden = 0
        self._open: list[int] = []
        self._digests: dict[int, str] = {}
        self._alive: list[object] = []
        self._plain: dict[type, bool] = {}
        # The first that fits.
        self._ways: tuple[tuple[Any, Spell], ...] = (
            (Enum, self._enum),
            (torch.Tensor, self._tensor),
            ((np.ndarray, np.generic), self._numpy),
            (_TORCH_WORDS, lambda value, _: ["torch", str(value)]),
            (_WORDS, lambda value, _: ["word", qualified_name(type(value)), repr(value)]),
            (re.Pattern, lambda value, _: ["pattern", str(value.pattern), value.flags]),
            ((bytes, bytearray), self._bytes),
            (_SCALARS, self._scalar),
            (types.ModuleType, self._package),
            *((kind, lambda _v, _w, word=word: [word]) for kind, word in _SILENT.items()),
            (torch.nn.Module, self._module),
            ((list, tuple, Mapping, Set), self._container),
            (type, lambda value, _: self.kind(value)),
            (functools.partial, self._partial),
            (_GETTERS, lambda value, where: self._parts("getter", value.__reduce__(), where)),
            (
                functools._lru_cache_wrapper,
                lambda value, where: self.value(value.__wrapped__, where),
            ),
            (torch.jit.ScriptFunction, self._script),
            (weakref.ref, lambda value, where: ["weak", self.value(value(), where)]),
            ((types.MethodType, types.BuiltinMethodType), self._method),
            (object, self._other),
        )

    def value(self, value: Any, where: str) -> Json:
        """Spell a value.

        Parameters
        ----------
        value : object
            Anything that a module keeps, or that code names.
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
        spell = next(spell for kinds, spell in self._ways if isinstance(value, kinds))
        return spell(value, where)

    def kind(self, kind: type) -> Json:
        """Spell a class: its name, and what the user wrote of it.

        Parameters
        ----------
        kind : type
            A class.

        Returns
        -------
        JSON-able
            Its qualified name; with its bases and the code of every class in its line that is
            the user's.
        """
        if kind not in self._plain:
            self._plain[kind] = is_plain_library(kind)
        if self._plain[kind]:
            return ["class", qualified_name(kind), ""]
        facts = self._digest_once(kind, lambda: class_facts(kind, self.value))
        return ["class", qualified_name(kind), facts]

    def _enum(self, value: Any, where: str) -> Json:
        kind = type(value)
        name = ["enum", qualified_name(kind), value.name]
        if not is_users(kind):
            return name
        # What Python itself notes down there names the class and the member again.
        noise = ("_name_", "__objclass__", "_sort_order_")
        state = {key: item for key, item in vars(value).items() if key not in noise}
        return [*name, self.kind(kind), self._parts("state", state, where)]

    def _tensor(self, value: torch.Tensor, where: str) -> Json:
        return ["tensor", _digest(tensor_pieces(value, "")), *self._beyond(value, where)]

    def _numpy(self, value: Any, where: str) -> Json:
        array = np.asarray(value)
        if array.dtype.hasobject:
            spelled = self.value(array.tolist(), where)
        else:
            plain = np.ascontiguousarray(array)
            little = plain.astype(plain.dtype.newbyteorder("<"), copy=False)
            digest = xxhash.xxh3_128_hexdigest(little.tobytes())
            spelled = [little.dtype.str, list(array.shape), digest]
        return ["array", spelled, *self._beyond(value, where)]

    def _bytes(self, value: Any, where: str) -> Json:
        return ["bytes", hashlib.sha256(value).hexdigest(), *self._beyond(value, where)]

    def _scalar(self, value: Any, where: str) -> Json:
        base: Any = next(base for base in _SCALARS if isinstance(value, base))
        # Not the class's own word for it, which may say anything.
        text = value if base is str else base.__repr__(value)
        return [
            "scalar",
            qualified_name(type(value)),
            str.__str__(text),
            *self._beyond(value, where),
        ]

    def _package(self, value: types.ModuleType, where: str) -> Json:
        if not is_users_module(value):
            return ["package", value.__name__]
        return [
            "package",
            self._digest_once(
                value,
                lambda: {
                    name: self.value(item, f"{value.__name__}.{name}, reached from {where}")
                    for name, item in sorted(vars(value).items())
                    if not name.startswith("__")
                },
            ),
        ]

    def _module(self, module: torch.nn.Module, where: str) -> Json:
        if id(module) in self.modules:
            return ["module", self.modules[id(module)]]
        name = f"hidden {self._n_hidden}"
        self._n_hidden += 1
        self._alive.append(module)  # or its id would be given to something else
        return ["hidden", digest_of("part", self._once(module, where, self._describe(name)))]

    def _describe(self, name: str) -> Spell:
        return lambda module, _: self._hidden(module, name, self)

    def _container(self, value: Any, where: str) -> Json:
        return self._once(value, where, self._items)

    def _items(self, value: Any, where: str) -> Json:
        kind = qualified_name(type(value))
        if isinstance(value, Mapping):
            items: list[Json] = [
                [self.value(name, where), self.value(item, f"{where}[{name!r}]")]
                for name, item in value.items()
            ]
        else:
            items = [self.value(item, f"{where}[{number}]") for number, item in enumerate(value)]
        if isinstance(value, Set):
            items.sort(key=canonical_json)
        if isinstance(value, defaultdict):
            items.append(["default", self.value(value.default_factory, where)])
        return [kind, items, *self._beyond(value, where)]

    def _beyond(self, value: Any, where: str) -> list[Json]:
        """Spell what an instance is and holds beyond the values of a type that is known."""
        kind = self.kind(type(value))
        spelled: list[Json] = [] if self._plain[type(value)] else [kind]
        state = self._state(value, where)
        return [*spelled, state] if state else spelled

    def _partial(self, value: Any, where: str) -> Json:
        inner = [value.func, list(value.args), dict(value.keywords)]
        return ["partial", *(self.value(item, where) for item in inner)]

    def _parts(self, word: str, value: Any, where: str) -> Json:
        return [word, self.value(value, where)]

    def _script(self, value: Any, where: str) -> Json:
        graph = value.inlined_graph.str(False)
        if "<Tensor>" in graph:
            raise self._refusal(value, where)
        return ["script", digest_of("script", graph)]

    def _method(self, value: Any, where: str) -> Json:
        owner = value.__self__
        if owner is None or isinstance(owner, types.ModuleType):
            return self._other(value, where)
        if isinstance(owner, type) and not isinstance(value, types.MethodType):
            return self._other(value, where)
        code = getattr(value, "__func__", None)
        body = value.__name__ if code is None else self.value(code, where)
        return ["method", self.value(owner, where), body]

    def _other(self, value: Any, where: str) -> Json:
        if type(value).__module__ == "typing":
            return ["typing", repr(value)]
        if _is_code(value):
            return self.code(value, where)
        if not (_has_state(value) or is_users(type(value))) or _hides_state(type(value)):
            raise self._refusal(value, where)
        spelled = self._digest_once(value, lambda: self._state(value, where))
        return ["object", self.kind(type(value)), spelled]

    def _state(self, value: Any, where: str) -> Json:
        state = dict(getattr(value, "__dict__", {}))
        state |= {name: getattr(value, name) for name in slots(type(value)) if hasattr(value, name)}
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
        more = dict(vars(function))
        if "_torchdynamo_orig_callable" in more:  # torch.compile keeps what it was given
            return self.value(more["_torchdynamo_orig_callable"], where)
        if callable(more.get("dispatch")) and "registry" in more:  # functools.singledispatch
            return self.value(dict(more["registry"]), where)
        body = [
            source_digest(function, where),
            self.value(list(function.__defaults__ or ()), where),
            self.value(dict(function.__kwdefaults__ or {}), where),
            [self.value(cell, where) for cell in cells_of(function)],
            self._references(function),
        ]
        return [*body, self.value(more, where)] if more else body

    def _references(self, function: types.FunctionType) -> Json:
        """Spell what a user's function names; an installed one is known by its own name."""
        if is_installed(function.__code__.co_filename):
            return {}
        named = dict(references(function))
        return {
            name: self.value(value, f"{name}, which {function.__qualname__} uses,")
            for name, value in sorted(named.items())
        }

    def _once(self, value: Any, where: str, spell: Spell) -> Json:
        if id(value) in self._open:
            return ["cycle", len(self._open) - self._open.index(id(value))]
        if len(self._open) >= MAX_DEPTH:
            raise self._refusal(value, where)
        self._open.append(id(value))
        try:
            return spell(value, where)
        finally:
            self._open.pop()

    def _digest_once(self, value: Any, spell: Callable[[], Json]) -> str:
        if id(value) not in self._digests:
            if id(value) in self._open:
                return f"cycle {len(self._open) - self._open.index(id(value))}"
            spelled = self._once(value, qualified_name(type(value)), lambda *_: spell())
            self._digests[id(value)] = digest_of("part", spelled)
            self._alive.append(value)  # or its id would be given to something else
        return self._digests[id(value)]

    def _refusal(self, value: object, where: str) -> IdentityError:
        return IdentityError(
            f"{where} is a {type(value).__module__}.{type(value).__qualname__}, and what it holds "
            "cannot be told from outside, so this network could not be told from another. Keep "
            "plain values, tensors or modules there (as an attribute of the network, or a "
            "module-level constant), or remove it before wrapping the network.",
            where=where,
        )


def _hides_state(kind: type) -> bool:
    """Say whether instances hold more than attributes, in C, as random.Random does."""
    words = 2 + sum(1 for _ in slots(kind))  # __dict__, __weakref__
    return kind.__basicsize__ > object.__basicsize__ + 8 * words


def _is_code(value: Any) -> bool:
    if isinstance(value, np.ufunc):  # or one that np.frompyfunc made
        return getattr(np, value.__name__, None) is value
    named = callable(value) and hasattr(value, "__name__")
    return named and (isinstance(value, types.FunctionType) or not _has_state(value))


def _has_state(value: object) -> bool:
    return hasattr(value, "__dict__") or any(True for _ in slots(type(value)))


def _digest(pieces: Iterable[Any]) -> str:
    digest = xxhash.xxh3_128()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "little"))
        digest.update(piece)
    return digest.hexdigest()
