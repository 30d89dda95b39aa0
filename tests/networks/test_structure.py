import copy
import enum
import functools
import linecache
import math
import random
import subprocess
import sys
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from featurestore.errors import IdentityError
from featurestore.networks.structure import structure_digest
from featurestore.testing.tiny import TinyNetwork

SCALE = 2.0


def encoder(**changes):
    settings = {"d_model": 8, "nhead": 4, "dim_feedforward": 16, "batch_first": True}
    return nn.TransformerEncoderLayer(**{**settings, **changes})


def test_networks_with_equal_state_dicts_that_compute_different_things_differ():
    twins = [
        encoder(),
        encoder(nhead=8),
        encoder(norm_first=True),
        encoder(activation="gelu"),
        encoder(activation=nn.functional.silu),
        encoder(layer_norm_eps=1e-6),
        encoder(batch_first=False),
    ]
    assert len({tuple(twin.state_dict()) for twin in twins}) == 1
    assert len({structure_digest(twin) for twin in twins}) == len(twins)
    assert structure_digest(encoder()) == structure_digest(encoder())


def test_what_the_builder_of_inception_sets_counts():
    plain, transforming = (
        models.inception_v3(init_weights=False, transform_input=flag) for flag in (False, True)
    )
    assert structure_digest(plain) != structure_digest(transforming)


def test_weights_training_flags_and_gradients_do_not_count():
    network = TinyNetwork(0)
    digest = structure_digest(network)
    assert digest == structure_digest(TinyNetwork(1))
    assert digest == structure_digest(network.eval())
    assert digest == structure_digest(network.requires_grad_(False))
    assert digest == structure_digest(copy.deepcopy(network))


@pytest.mark.parametrize("name", ["alexnet", "resnet18", "mobilenet_v3_small", "swin_t"])
def test_a_forward_pass_does_not_change_the_digest(name):
    network = models.get_model(name, weights=None).eval()
    before = structure_digest(network)
    with torch.no_grad():
        network(torch.zeros(1, 3, 64, 64))
    assert structure_digest(network) == before


def test_detection_networks_keep_their_digest_too():
    network = models.detection.ssdlite320_mobilenet_v3_large(
        weights=None, weights_backbone=None
    ).eval()
    before = structure_digest(network)
    with torch.no_grad():
        network(torch.rand(1, 3, 64, 64))
    assert structure_digest(network) == before


USERS_MODULE = """
from torch import nn
import helpers

FACTOR = 2.0

def scaled(x):
    return x * FACTOR

class Base(nn.Module):
    POWER = 2
    def raised(self, x):
        return x ** self.POWER

class Net(Base):
    def __init__(self):
        super().__init__()
        self.lin = nn.Linear(3, 3)
        self.words = {"b", "a", "c"}
        self.act = lambda x: x + 1

    def forward(self, x):
        return helpers.shifted(scaled(self.raised(self.lin(x))))
"""
HELPERS = "def shifted(x):\n    return x + 1\n"

SCRIPT = (
    "import net, torch; torch.manual_seed(0); "
    "from featurestore.networks.structure import structure_digest; "
    "print(structure_digest(net.Net()))"
)


def digest_in_a_new_process(folder, source, helpers=HELPERS, seed="0"):
    (folder / "net.py").write_text(source)
    (folder / "helpers.py").write_text(helpers)
    found = subprocess.run(
        [sys.executable, "-B", "-c", SCRIPT],
        capture_output=True,
        text=True,
        check=True,
        cwd=folder,
        env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join([str(folder), *sys.path])},
    )
    return found.stdout


def test_the_digest_is_the_same_in_every_process(tmp_path):
    first = digest_in_a_new_process(tmp_path, USERS_MODULE, seed="1")
    assert first == digest_in_a_new_process(tmp_path, USERS_MODULE, seed="2")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("self.raised(self.lin(x))", "self.lin(self.raised(x))"),
        ("x ** self.POWER", "x * self.POWER"),
        ("POWER = 2", "POWER = 3"),
        ("x * FACTOR", "x / FACTOR"),
        ("FACTOR = 2.0", "FACTOR = 3.0"),
        ("lambda x: x + 1", "lambda x: x + 2"),
        ("return x + 1\n", "return x + 2\n"),
    ],
    ids=["forward", "base", "constant", "function", "global", "lambda", "helper"],
)
def test_editing_the_users_code_changes_the_digest(old, new):
    def digest(source, helpers):
        space = {"__name__": "edited", "__file__": "/somewhere/edited.py"}
        return _digest_of_source(source, helpers, space)

    before = digest(USERS_MODULE, HELPERS)
    edited = USERS_MODULE.replace(old, new), HELPERS.replace(old, new)
    assert edited != (USERS_MODULE, HELPERS)
    assert digest(*edited) != before
    assert digest(USERS_MODULE, HELPERS) == before


def _digest_of_source(source, helpers, space):
    """Define the user's modules as a notebook does: in memory, with their lines kept."""
    number = _digest_of_source.count = getattr(_digest_of_source, "count", 0) + 1
    names = {"helpers": helpers, "edited": source}
    try:
        for name, text in names.items():
            file = f"<ipython-input-{name}-{number}>"
            linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
            module = type(sys)(name)
            module.__file__ = f"/somewhere/{name}.py"
            sys.modules[name] = module
            exec(compile(text, file, "exec"), module.__dict__)
        return structure_digest(sys.modules["edited"].Net())
    finally:
        for name in names:
            sys.modules.pop(name, None)


class Holder(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.value = value


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


@dataclass
class Config:
    width: int
    deep: object = None


class Plain:
    def __init__(self, size):
        self.size = size
        self.me = self


Pair = namedtuple("Pair", "a b")

VALUES = {
    "none": None,
    "flags": (True, False),
    "number": 1,
    "float": 1.0,
    "nan": math.nan,
    "infinity": math.inf,
    "text": "1",
    "list": [1, 2],
    "tuple": (1, 2),
    "dict": {"a": 1},
    "dict of numbers": {1: "a"},
    "ordered": OrderedDict(a=1),
    "set": {"x", "y", "z"},
    "size": torch.Size([1, 2]),
    "dtype": torch.float16,
    "layout": torch.strided,
    "enum": Colour.RED,
    "other enum": Colour.BLUE,
    "partial": functools.partial(nn.BatchNorm2d, eps=1e-3),
    "other partial": functools.partial(nn.BatchNorm2d, eps=1e-5),
    "function": nn.functional.relu,
    "builtin": torch.relu,
    "class": nn.ReLU,
    "dataclass": Config(1),
    "nested": Config(1, Config(2)),
    "pair": Pair(1, 2),
    "object": Plain(3),
    "other object": Plain(4),
    "tensor": torch.ones(2),
    "array": np.ones(2),
    "array of integers": np.ones(2, dtype=np.int32),
    "scalar": np.float32(1),
    "bytes": b"1",
    "complex": 1j,
    "modules": [nn.Linear(2, 2)],
    "module method": nn.ReLU().forward,
}


def test_every_kind_of_setting_counts():
    digests = {name: structure_digest(Holder(value)) for name, value in VALUES.items()}
    assert len(set(digests.values())) == len(VALUES)
    for name, value in VALUES.items():
        assert structure_digest(Holder(copy.deepcopy(value))) == digests[name], name


def test_where_a_network_is_does_not_count():
    cpu, gpu = Holder(torch.device("cpu")), Holder(torch.device("cuda", 1))
    assert structure_digest(cpu) == structure_digest(gpu)


def test_modules_in_plain_lists_count_with_their_weights():
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    assert structure_digest(Holder([one])) != structure_digest(Holder([two]))


def test_settings_that_contain_themselves_are_spelled():
    loop, other = [1], [2]
    loop.append(loop)
    other.append(other)
    assert structure_digest(Holder(loop)) == structure_digest(Holder(copy.deepcopy(loop)))
    assert structure_digest(Holder(loop)) != structure_digest(Holder(other))


@pytest.mark.parametrize(
    "value",
    [random.Random(0), random.Random(0).random, iter([1]), torch.Generator(), (n for n in ())],
    ids=["random", "method", "iterator", "torch", "generator"],
)
def test_what_cannot_be_told_is_refused_by_module_and_attribute(value):
    network = nn.Sequential(nn.ReLU(), Holder({"deep": [value]}))
    with pytest.raises(IdentityError, match=r"module '1', attribute 'value'\['deep'\]\[0\]"):
        structure_digest(network)


def test_several_lambdas_in_one_statement_cannot_be_told_apart():
    both = [lambda x: x + 1, lambda x: x + 2]
    with pytest.raises(IdentityError, match="several lambdas"):
        structure_digest(Holder(both[0]))


def test_code_without_a_source_is_refused():
    space = {"__name__": "typed", "nn": nn}
    exec("class Typed(nn.Module):\n    def forward(self, x):\n        return x", space)
    with pytest.raises(IdentityError, match=r"file or a notebook cell"):
        structure_digest(space["Typed"]())


def test_buffers_that_are_not_saved_count():
    def network(value):
        part = nn.Identity()
        part.register_buffer("table", torch.full((3,), value), persistent=False)
        return part

    assert structure_digest(network(1.0)) != structure_digest(network(2.0))


def test_forward_hooks_count_and_other_hooks_do_not():
    network = TinyNetwork()
    plain = structure_digest(network)

    def doubled(_module, _inputs, output):
        return output * SCALE

    handle = network.features.register_forward_hook(doubled)
    assert structure_digest(network) != plain
    handle.remove()
    network.features.register_full_backward_hook(lambda *_: None)
    assert structure_digest(network) == plain


def test_a_replaced_forward_counts():
    network, other = TinyNetwork(), TinyNetwork()
    other.forward = functools.partial(nn.functional.relu, inplace=True)
    assert structure_digest(network) != structure_digest(other)


def test_a_module_registered_twice_is_not_two_equal_modules():
    part = nn.Linear(2, 2)
    shared, twins = nn.Sequential(part, part), nn.Sequential(part, copy.deepcopy(part))
    assert structure_digest(shared) != structure_digest(twins)
