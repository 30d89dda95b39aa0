"""What users' code names outside itself: every way to a number must count, or be refused."""

import linecache
import sys
import textwrap
import types

import pytest
import torch

from featurestore.errors import IdentityError
from featurestore.networks.structure import structure_digest

HEAD = """
import collections, dataclasses, functools, operator
import numpy as np
import torch
import torch.nn.functional as F
from enum import Enum
from torch import nn
from typing import NamedTuple
"""
NET = """
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        {init}

    def forward(self, x):
        {body}
"""
_defined: list[str] = []


def define(tmp_path, before, body, init="pass", helper="", gain=1):
    """Write modules to files of their own and build the network in them."""
    name = f"net_{len(_defined)}"
    _defined.append(name)
    modules = {}
    fill = textwrap.dedent(helper).replace("GAIN", str(gain))
    net = NET.format(init=init, body="\n        ".join(body.splitlines()))
    source = (HEAD + textwrap.dedent(before) + net).replace("GAIN", str(gain))
    for key, text in (("helper", fill), ("net", source)):
        file = tmp_path / f"{name}_{key}.py"
        file.write_text(text)
        module = modules[key] = types.ModuleType(key)
        module.__file__ = str(file)
        sys.modules[key] = module
        linecache.checkcache(str(file))
        exec(compile(text, str(file), "exec"), module.__dict__)
    return modules["net"].Net().eval()


@pytest.fixture
def digests(tmp_path, monkeypatch):
    for name in ("helper", "net"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))

    def both(*texts, **more):
        found = []
        for gain in (1, 2, 1):
            network = define(tmp_path, *texts, gain=gain, **more)
            found.append(structure_digest(network))
            with torch.no_grad():
                network(torch.ones(1))
            assert structure_digest(network) == found[-1]
        return found

    return both


GLOBALS = {
    "tuple": ("K = (GAIN, 1)", "return x * K[0]"),
    "dict": ("K = {'gain': GAIN}", "return x * K['gain']"),
    "bytes": ("K = bytes([GAIN])", "return x * K[0]"),
    "frozenset": ("K = frozenset([GAIN])", "return x * next(iter(K))"),
    "range": ("K = range(GAIN, 9)", "return x * K[0]"),
    "default": (
        "def f(): return GAIN\nK = collections.defaultdict(f)",
        "return x * K.default_factory()",
    ),
    "tensor": ("K = torch.tensor(GAIN)", "return x * K"),
    "numpy": ("K = np.float32(GAIN)", "return x * float(K)"),
    "namespace": ("import types\nK = types.SimpleNamespace(g=GAIN)", "return x * K.g"),
    "module": ("K = nn.Hardtanh(0, GAIN)", "return K(2 * x)"),
    "partial": ("K = functools.partial(torch.mul, other=GAIN)", "return K(x)"),
    "getter": ("K = operator.itemgetter(GAIN)", "return K([x, x, x * 2])"),
    "instance": (
        "class A:\n  def __init__(s, k): s.k = k\n  def __call__(s, x): return x * s.k\n"
        "K = A(GAIN)",
        "return K(x)",
    ),
    "class method": (
        "class A:\n  k = GAIN\n  @classmethod\n  def f(c, x): return x * c.k\nK = A.f",
        "return K(x)",
    ),
    "cached": ("@functools.lru_cache\ndef f(): return GAIN", "return x * f()"),
    "single dispatch": ("@functools.singledispatch\ndef f(x): return x * GAIN", "return f(x)"),
    "dispatch": ("def a(x): return x * GAIN\nK = {'a': [a]}", "return K['a'][0](x)"),
    "function attribute": ("def h(): pass\nh.k = GAIN", "return x * h.k"),
    "nested": ("K = [GAIN]", "def inner(y): return y * K[0]\nreturn inner(x)"),
    "patched": (
        "def mine(x): return x * GAIN\nfrom types import ModuleType\nF = ModuleType('F')\n"
        "F.relu = mine",
        "return F.relu(x)",
    ),
    "dataclass": (
        "@dataclasses.dataclass\nclass C:\n"
        "  k: list = dataclasses.field(default_factory=lambda: [GAIN])",
        "return x * C().k[0]",
    ),
    "named tuple": ("class P(NamedTuple):\n  a: int = GAIN", "return x * P().a"),
    "property of a metaclass": (
        "class M(type):\n  @property\n  def k(cls): return GAIN\nclass Q(metaclass=M): pass",
        "return x * Q.k",
    ),
    "base": ("class A([nn.Tanh, nn.Sigmoid][GAIN - 1]): pass\nK = A()", "return K(x)"),
}


@pytest.mark.parametrize(("before", "body"), GLOBALS.values(), ids=GLOBALS)
def test_every_kind_of_global_counts(digests, before, body):
    one, two, again = digests(before, body)
    assert one == again != two


HELPERS = {
    "function": ("import helper", "return helper.f(x)"),
    "constant": ("import helper", "return x * helper.CONFIG['k']"),
    "import inside": ("", "from helper import f\nreturn f(x)"),
    "import as": ("", "import helper as h\nreturn h.f(x)"),
    "getattr": ("import helper", "return getattr(helper, 'f')(x)"),
    "dict": ("import helper", "return helper.__dict__['f'](x)"),
}


@pytest.mark.parametrize(("before", "body"), HELPERS.values(), ids=HELPERS)
def test_every_way_into_another_file_counts(digests, before, body):
    helper = "CONFIG = {'k': GAIN}\ndef f(x):\n    return x * GAIN"
    one, two, again = digests(before, body, helper=helper)
    assert one == again != two


def test_files_inside_packages_and_files_as_attributes_count(digests):
    helper = """
    import types
    def f(x):
        return x * GAIN
    sub = types.ModuleType("sub")
    sub.__file__ = __file__
    sub.f = f
    """
    for texts in (
        ("import helper", "return helper.sub.f(x)", "pass"),
        ("import helper", "return self.lib.f(x)", "self.lib = helper"),
    ):
        one, two, again = digests(*texts, helper=helper)
        assert one == again != two


ATTRIBUTES = {
    "enum": ("class G(Enum):\n  LOW = GAIN", "return x * self.a.value", "G.LOW"),
    "list": ("class P(list):\n  def __call__(s, x): return x * GAIN", "return self.a(x)", "P()"),
    "float": ("class P(float):\n  def g(s): return GAIN", "return x * self.a.g()", "P(1)"),
    "array": (
        "class P(np.ndarray):\n  def g(s): return GAIN",
        "return x * self.a.g()",
        "np.ones(2).view(P)",
    ),
    "named tuple": (
        "class P(NamedTuple):\n  a: int\n  def g(s): return GAIN",
        "return x * self.a.g()",
        "P(1)",
    ),
    "attribute of a dict": (
        "class P(dict):\n  def __init__(s): s.k = GAIN",
        "return x * self.a.k",
        "P()",
    ),
}


@pytest.mark.parametrize(("before", "body", "value"), ATTRIBUTES.values(), ids=ATTRIBUTES)
def test_what_the_users_own_types_add_counts(digests, before, body, value):
    one, two, again = digests(before, body, f"self.a = {value}")
    assert one == again != two


def made_with(block):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()

        def forward(self, x):
            return x * block.k

    return Net()


class One:
    k = 1


class Two:
    k = 2


def test_a_class_reached_through_a_closure_counts():
    assert structure_digest(made_with(One)) != structure_digest(made_with(Two))
    assert structure_digest(made_with(One)) == structure_digest(made_with(One))


def enum_of(value):
    import enum

    class G(enum.Enum):
        LOW = value

    return G.LOW


def test_members_of_enums_of_one_name_differ_by_value():
    class Net(torch.nn.Module):
        def __init__(self, member):
            super().__init__()
            self.member = member

    assert structure_digest(Net(enum_of(1))) != structure_digest(Net(enum_of(2)))
    assert structure_digest(Net(enum_of(1))) == structure_digest(Net(enum_of(1)))


def test_an_attribute_is_no_global_of_the_same_name(digests):
    # As in notebooks: "net" is a network there, and self.net another.
    one, two, again = digests("net = GAIN", "return self.net(x)", "self.net = nn.ReLU()")
    assert one == two == again


@pytest.mark.parametrize(
    ("before", "body"),
    [
        ("K = ['x * 2']", "return eval(K[0])"),
        ("def h(x): return x * 2", "return globals()['h'](x)"),
        ("import sys", "return sys.modules['helper'].f(x)"),
        ("import os", "return x * float(os.environ['K'])"),
        ("import importlib", "return importlib.import_module('helper').f(x)"),
        ("def h(x): return x * 2", "return h.__globals__['h'](x)"),
        ("import random\nK = random.Random(0)", "return x * K.random()"),
        ("K = np.frompyfunc(lambda a: a * 2, 1, 1)", "return x * K(1)"),
    ],
    ids="eval globals modules environ import __globals__ random ufunc".split(),  # noqa: SIM905
)
def test_what_cannot_be_followed_is_refused_where_it_stands(tmp_path, monkeypatch, before, body):
    for name in ("helper", "net"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    with pytest.raises(IdentityError, match=r"Net\.forward(.|\n)*module-level constant"):
        structure_digest(define(tmp_path, before, body))


def test_globals_that_refer_to_each_other_are_spelled(digests):
    before = """
    class Sub(nn.Module):
        def forward(self, x):
            return x * GAIN if OTHER is not None else x

    class Other(nn.Module):
        def forward(self, x):
            return SUB(x)

    SUB, OTHER = Sub(), Other()

    def even(n):
        return n == 0 or odd(n - 1)

    def odd(n):
        return n != 0 and even(n - 1)
    """
    one, two, again = digests(before, "return SUB(x) * even(2)")
    assert one == again != two


def test_ordinary_code_is_accepted(digests):
    before = """
    import logging, math, re
    from typing import Optional, TypeVar, Union
    T = TypeVar("T")
    Shape = tuple[int, int]
    log = logging.getLogger(__name__)
    PATTERN = re.compile("a+")
    DEVICE = torch.device("cpu")

    class Block(nn.Module):
        def __init__(self, width: int, act: Optional[nn.Module] = None):
            super().__init__()
            self.act = act or nn.GELU()

        @torch.no_grad()
        def forward(self, x: torch.Tensor) -> Union[torch.Tensor, T]:
            log.debug("called")
            if not isinstance(x, torch.Tensor):
                raise TypeError(f"{type(x).__name__} {PATTERN.pattern}")
            def inner(y: Optional[Shape]): return y
            return self.act(inner(F.relu(x))) * math.sqrt(2) + np.pi

        @property
        def width(self): return 1
    """
    one, two, again = digests(before, "return self.b(x)", "self.b = Block(1)")
    assert one == two == again


def test_hooks_of_all_modules_count():
    plain = structure_digest(torch.nn.ReLU())
    handle = torch.nn.modules.module.register_module_forward_hook(lambda _m, _i, out: out * 2)
    try:
        assert structure_digest(torch.nn.ReLU()) != plain
    finally:
        handle.remove()
    assert structure_digest(torch.nn.ReLU()) == plain
