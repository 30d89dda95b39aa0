import pytest
import torch
from torch import nn
from torchvision import models

from featurestore.errors import IdentityError
from featurestore.networks.weights import network_state, weights_digest


def test_golden_digests_never_change():
    state = {"b": torch.arange(6.0).reshape(2, 3), "a": torch.tensor([True, False])}
    assert weights_digest(state) == "df02ae605c5b2c80fadc1907af7572c6"
    assert weights_digest({}) == "60a683e258040e9356fb40942ea862bb"


@pytest.mark.parametrize(
    "dtype",
    "float32 float64 float16 bfloat16 int64 uint8 bool complex64".split(),  # noqa: SIM905
)
def test_every_dtype_has_a_digest_of_its_own(dtype):
    ones, zeros = (make(3, dtype=getattr(torch, dtype)) for make in (torch.ones, torch.zeros))
    assert weights_digest({"w": ones}) == weights_digest({"w": ones.clone()})
    assert weights_digest({"w": ones}) != weights_digest({"w": zeros})
    other = torch.ones(3, dtype=torch.float8_e5m2)
    assert weights_digest({"w": ones}) != weights_digest({"w": other})


def test_names_shapes_and_values_count_and_order_does_not():
    one, two = torch.tensor([1.0, 2.0]), torch.tensor([3.0])
    digest = weights_digest({"a": one, "b": two})
    assert digest == weights_digest({"b": two, "a": one})
    others = [
        {"a": one, "c": two},
        {"b": one, "a": two},
        {"a": one.reshape(2, 1), "b": two},
        {"a": one, "b": -two},
        {"a": one},
        {"a": one, "b": two, "c": torch.tensor([])},
    ]
    assert len({digest, *map(weights_digest, others)}) == 1 + len(others)


def test_strides_sharing_and_scalars_do_not_matter():
    base = torch.arange(12.0).reshape(3, 4)
    assert weights_digest({"w": base.t()}) == weights_digest({"w": base.t().contiguous()})
    assert weights_digest({"w": base, "v": base}) == weights_digest({"w": base, "v": base.clone()})
    assert weights_digest({"n": torch.tensor(3)}) != weights_digest({"n": torch.tensor([3])})
    image = torch.rand(1, 3, 4, 4)
    channels_last = image.contiguous(memory_format=torch.channels_last)
    assert weights_digest({"w": image}) == weights_digest({"w": channels_last})


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_quantised_tensors_are_known_by_integers_scale_and_zero_point():
    values = torch.tensor([[0.5, 1.0], [1.5, -2.0]])
    whole = torch.quantize_per_tensor(values, 0.1, 2, torch.qint8)
    rows = torch.quantize_per_channel(
        values, torch.tensor([0.1, 0.2]), torch.tensor([0, 1]), 0, torch.qint8
    )
    digests = {
        weights_digest({"w": tensor})
        for tensor in (
            values,
            whole,
            torch.quantize_per_tensor(values, 0.1, 3, torch.qint8),
            torch.quantize_per_tensor(values, 0.1, 2, torch.quint8),
            torch._make_per_tensor_quantized_tensor(whole.int_repr(), 0.2, 2),
            rows,
        )
    }
    assert len(digests) == 6


def test_what_has_no_canonical_form_is_refused_by_name():
    for value in (object(), torch.ones(2, device="meta"), torch.ones(2).to_sparse()):
        with pytest.raises(IdentityError, match="odd"):
            weights_digest({"odd": value})


def test_none_tuples_and_numbers_are_spelled():
    values = [None, (1, None), [1, None, 2], {"a": 1}, 1, 1.5, "1", torch.float32, True]
    assert len({weights_digest({"w": value}) for value in values}) == len(values)


def test_counters_of_batches_are_part_of_the_weights():
    norm = nn.BatchNorm2d(3)
    before = weights_digest(norm.state_dict())
    norm(torch.rand(2, 3, 4, 4))
    assert weights_digest(norm.state_dict()) != before


class Secretive(nn.Module):
    def __init__(self, gain):
        super().__init__()
        self.back, self.head = nn.Linear(2, 2), nn.Linear(2, 2)
        nn.init.constant_(self.back.weight, gain)


class Saving(Secretive):
    def state_dict(self, *args, **kwargs):
        return self.head.state_dict(*args, **kwargs)


class Inside(Secretive):
    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}gain"] = torch.ones(1)

    def __init__(self, gain):
        super().__init__(gain)
        self.register_buffer("gain", torch.full((1,), float(gain)))


def hooked(gain):
    network = Secretive(gain)

    def drop(_module, state, prefix, _metadata):
        for name in [name for name in state if "back" in name]:
            del state[name]

    network.register_state_dict_post_hook(drop)
    return network


@pytest.mark.parametrize("make", [Saving, Inside, hooked])
def test_weights_that_a_network_does_not_save_count(make):
    digests = []
    for gain in (1, 2, 1):
        torch.manual_seed(0)
        digests.append(weights_digest(network_state(nn.Sequential(make(gain)))))
    assert digests[0] == digests[2] != digests[1]


@pytest.mark.filterwarnings("ignore")
def test_the_state_of_ordinary_networks_is_their_state_dict():
    shared = nn.Linear(2, 2)
    torch.backends.quantized.engine, before = "qnnpack", torch.backends.quantized.engine
    try:
        quantised = models.quantization.mobilenet_v2(weights=None, quantize=True)
    finally:
        torch.backends.quantized.engine = before
    norm = nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))
    tables = nn.Module()
    tables.register_buffer("kept", torch.ones(2))
    tables.register_buffer("left", torch.ones(2), persistent=False)
    for network in (
        nn.Sequential(shared, shared, nn.BatchNorm1d(2), norm),
        nn.MultiheadAttention(4, 2),
        models.resnet18(weights=None),
        quantised,
        tables,
    ):
        state = network.state_dict()
        assert sorted(network_state(network)) == sorted(state)
        assert weights_digest(network_state(network)) == weights_digest(state)
