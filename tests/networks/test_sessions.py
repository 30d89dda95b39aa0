import numpy as np
import pytest
import torch
from torch import nn
from torchvision import models

from featurestore.errors import InvalidInputError, ModuleNotFoundInModelError
from featurestore.networks import registry
from featurestore.networks.network import DeviceMemoryError
from featurestore.networks.sources.wrapped import wrap
from featurestore.networks.taps import Tap
from featurestore.testing.reference import caller_state
from featurestore.testing.tiny import TinyNetwork, tiny_network, tiny_transform


def run(network, names, batch, precision="fp32", n_threads=1):
    taps = [network.record.resolve(Tap.parse(name))[0] for name in names]
    with network.open(taps, device="cpu", precision=precision, n_threads=n_threads) as session:
        return session.forward(batch)


def images(n=4, shape=(3, 32, 32), seed=0):
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def tiny(module, **more):
    return wrap(module, name="net", preprocess=tiny_transform, preprocess_id="v1", **more)


@pytest.fixture(scope="module")
def alexnet():
    return registry.load(registry.request("alexnet", weights=None, seed=3))


def test_a_convolution_before_an_inplace_relu_keeps_its_negative_values(alexnet):
    batch = images(2, (3, 224, 224))
    (found,) = run(alexnet, ["features.10"], batch, n_threads=2)
    with torch.no_grad():
        module = alexnet.module.eval()
        expected = module.features[:11](torch.tensor(batch)).numpy()
    np.testing.assert_array_equal(found, expected)
    assert 0.3 < (found < 0).mean() < 0.7


def test_it_keeps_them_beside_later_modules_too(alexnet):
    batch = images(2, (3, 224, 224))
    alone = run(alexnet, ["features.10"], batch, n_threads=2)[0]
    conv, relu, logits = run(
        alexnet, ["features.10", "features.11", "classifier.6"], batch, n_threads=2
    )
    np.testing.assert_array_equal(conv, alone)
    np.testing.assert_array_equal(relu, np.maximum(conv, 0))
    with torch.no_grad():
        expected = alexnet.module.eval()(torch.tensor(batch)).numpy()
    np.testing.assert_array_equal(logits, expected)


def test_random_weights_are_those_that_torchvision_draws(alexnet):
    torch.manual_seed(3)
    expected = models.alexnet(weights=None).state_dict()
    for name, tensor in alexnet.module.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_no_module_after_the_last_wanted_one_runs():
    network = tiny_network()
    network.record  # noqa: B018 - probing runs everything
    ran = []
    network.module.classifier.register_forward_hook(lambda *_: ran.append("classifier"))
    network.module.avgpool.register_forward_hook(lambda *_: ran.append("avgpool"))
    run(network, ["features.3"], images())
    assert ran == []
    run(network, ["features.3", "avgpool"], images())
    assert ran == ["avgpool"]


class Swallowing(TinyNetwork):
    def forward(self, x):
        try:
            return super().forward(x)
        except Exception:  # noqa: BLE001 - as users write it
            return super().forward(x * 0)


def test_a_network_that_catches_everything_does_not_swallow_the_stop():
    plain, network = tiny_network(), tiny(Swallowing())
    found = run(network, ["features.3"], images())
    np.testing.assert_array_equal(found[0], run(plain, ["features.3"], images())[0])


class Repeating(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        for _ in range(3):
            x = self.relu(self.conv(x))
        return x


def test_each_call_of_a_repeated_module_can_be_had():
    torch.manual_seed(0)
    network = tiny(Repeating())
    module, batch = network.module, torch.tensor(images())
    calls = []
    with torch.no_grad():
        x = batch
        for _ in range(3):
            calls.append(module.conv(x).numpy())
            x = torch.relu(torch.tensor(calls[-1]))
    found = run(network, ["conv@0", "conv@1", "conv@2", "conv"], batch.numpy())
    for one, other in zip(found, [*calls, calls[-1]], strict=True):
        np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(run(network, ["conv@1"], batch.numpy())[0], calls[1])
    with pytest.raises(ModuleNotFoundInModelError, match="conv@0, conv@1, conv@2"):
        run(network, ["conv@3"], batch.numpy())


def leaky_settings():
    def matmul():
        torch.set_float32_matmul_precision("medium")

    def dtype():
        torch.set_default_dtype(torch.float64)

    def onednn():
        torch.backends.mkldnn.conv.fp32_precision = "bf16"
        torch.backends.mkldnn.matmul.fp32_precision = "bf16"
        torch.backends.cudnn.conv.fp32_precision = "ieee"

    def legacy():
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.benchmark = True

    def threads():
        torch.set_num_threads(2)
        torch.backends.mha.set_fastpath_enabled(False)

    def device():
        torch.set_default_device("meta")

    return [matmul, dtype, onednn, legacy, threads, device]


@pytest.fixture
def restored():
    """Put torch's settings back, by hand and independently of the code under test."""
    backends = torch.backends
    owners = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    owners += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    words = [owner.fp32_precision for owner in owners]
    threads, legacy = torch.get_num_threads(), backends.cudnn.allow_tf32
    yield
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)
    torch.set_float32_matmul_precision("highest")
    backends.cudnn.benchmark = False
    backends.mha.set_fastpath_enabled(True)
    for owner in owners[1:3]:
        owner.fp32_precision = "ieee"
    backends.cudnn.allow_tf32 = legacy
    for owner, word in zip(owners, words, strict=True):
        owner.fp32_precision = word
    torch.set_num_threads(threads)


@pytest.mark.parametrize("leak", leaky_settings(), ids=lambda leak: leak.__name__)
def test_settings_of_the_caller_neither_leak_in_nor_are_lost(leak, restored):
    network, names = tiny_network(), ["features.0", "features.3", "classifier"]
    expected = run(network, names, images())
    leak()
    before = comparable_state()
    found = run(network, names, images())
    assert comparable_state() == before
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


def comparable_state():
    try:
        return caller_state()
    except RuntimeError:  # torch will not read old settings beside new ones that disagree
        backends = torch.backends
        owners = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
        owners += [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
        return [owner.fp32_precision for owner in owners]


def test_a_surrounding_autocast_or_inference_mode_does_not_leak():
    network, names = tiny_network(), ["features.0", "classifier"]
    expected = run(network, names, images())
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.inference_mode():
        before = caller_state()
        found = run(network, names, images())
        assert caller_state() == before
        built_inside = run(tiny_network(), names, images())
    for one, two, other in zip(found, built_inside, expected, strict=True):
        np.testing.assert_array_equal(one, other)
        np.testing.assert_array_equal(two, other)


def test_building_inside_the_callers_settings_gives_the_same_model(restored):
    asked = registry.request("squeezenet1_1", weights=None, seed=5)
    expected = registry.load(asked).spec
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    before = caller_state()
    assert registry.load(asked).spec == expected
    assert caller_state() == before


class Picky(TinyNetwork):
    """Does more than set flags when it is switched, as some networks do."""

    def train(self, mode=True):
        self.n_switches = getattr(self, "n_switches", 0) + 1
        return super().train(mode)


def test_the_users_network_is_left_as_it_was():
    module = Picky().train()
    module.features[1].eval()
    module.features[0].requires_grad_(False)
    network = tiny(module)
    parts = list(module.modules())
    flags = [part.training for part in parts]
    tensors = {name: (id(t), t.data_ptr()) for name, t in module.named_parameters()}
    run(network, ["classifier"], images())
    assert [part.training for part in parts] == flags
    assert {name: (id(t), t.data_ptr()) for name, t in module.named_parameters()} == tensors
    assert not module.features[0].weight.requires_grad
    assert module.features[3].weight.requires_grad
    assert not hasattr(module, "n_switches") or module.n_switches == 1
    module(torch.rand(2, 3, 32, 32)).sum().backward()


class Normed(TinyNetwork):
    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm2d(3)
        self.drop = nn.Dropout(0.5)

    def forward(self, x):
        return self.drop(super().forward(self.norm(x)))


def test_a_network_in_training_is_run_in_evaluation():
    module = Normed().train()
    network = tiny(module)
    state = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    (found,) = run(network, ["drop"], images())
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert module.training
    with torch.no_grad():
        expected = module.eval()(torch.tensor(images())).numpy()
    np.testing.assert_array_equal(found, expected)


class Exploding(TinyNetwork):
    armed = False

    def forward(self, x):
        x = self.features(x)
        if self.armed:
            raise self.armed
        return self.avgpool(x)


def test_hooks_and_settings_are_restored_after_an_error():
    module = Exploding()
    network = tiny(module)
    network.record  # noqa: B018 - probing comes first
    module.armed = KeyError("mine")
    before = caller_state()
    with pytest.raises(InvalidInputError, match="KeyError: 'mine'"):
        run(network, ["avgpool"], images())
    assert caller_state() == before
    assert module.training
    assert all(not part._forward_hooks and not part._forward_pre_hooks for part in module.modules())


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
        MemoryError(),
    ],
    ids=["torch", "cublas", "cpu", "python"],
)
def test_a_device_without_memory_says_so(error):
    module = Exploding()
    network = tiny(module)
    network.record  # noqa: B018
    module.armed = error
    with pytest.raises(DeviceMemoryError, match="smaller batch") as raised:
        run(network, ["avgpool"], images())
    assert raised.value.__cause__ is error


def test_other_runtime_errors_are_not_disguised():
    module = Exploding()
    network = tiny(module)
    network.record  # noqa: B018
    module.armed = RuntimeError("shapes do not match")
    with pytest.raises(
        InvalidInputError, match="failed in its forward pass: RuntimeError: shapes do not match"
    ) as raised:
        run(network, ["avgpool"], images())
    assert isinstance(raised.value.__cause__, RuntimeError)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_is_close_and_not_equal(precision):
    network = tiny_network()
    full, half = (run(network, ["features.3"], images(), word)[0] for word in ("fp32", precision))
    assert half.dtype == np.float32
    assert not np.array_equal(full, half)
    assert np.abs(full - half).max() < 0.05 * np.abs(full).max()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_a_device_that_is_not_there_is_an_error_and_never_replaced():
    network = tiny_network()
    for device in ("cuda", "cuda:3", "mps", "tpu", "meta"):
        with (
            pytest.raises(InvalidInputError, match="device"),
            network.open([], device=device, precision="fp32", n_threads=1),
        ):
            pass
    for precision in ("tf32", "fp8"):
        with (
            pytest.raises(InvalidInputError, match=precision),
            network.open([], device="cpu", precision=precision, n_threads=1),
        ):
            pass


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_the_automatic_device_is_logged_and_readable(caplog):
    network = tiny_network()
    with (
        caplog.at_level("INFO", logger="featurestore.networks"),
        network.open([], device="auto", precision="fp32", n_threads=1) as session,
    ):
        assert session.device == "cpu"
    assert "cpu" in caplog.text
    assert network.default_batch_size("auto") == 8


def test_a_batch_of_another_shape_is_refused():
    with pytest.raises(InvalidInputError, match=r"\(4, 3, 33, 32\)"):
        run(tiny_network(), ["classifier"], images(shape=(3, 33, 32)))


class Overwriting(TinyNetwork):
    def forward(self, x):
        return super().forward(x.mul_(0.5))


def test_the_callers_batch_is_never_written():
    batch = images()
    before = batch.copy()
    run(tiny(Overwriting()), ["classifier"], batch)
    np.testing.assert_array_equal(batch, before)


def test_values_that_are_not_finite_are_kept():
    module = TinyNetwork()
    with torch.no_grad():
        module.features[0].bias[:2] = torch.tensor([torch.nan, torch.inf])
    (found,) = run(tiny(module), ["features.0"], images())
    assert np.isnan(found[:, 0]).all()
    assert np.isposinf(found[:, 1]).all()
    assert np.isfinite(found[:, 2:]).all()


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=str)
def test_a_network_in_another_dtype_takes_its_input_in_it(dtype):
    module = TinyNetwork().to(dtype)
    (found,) = run(tiny(module), ["classifier"], images())
    assert found.dtype == np.float32
    with torch.no_grad():
        expected = module.eval()(torch.tensor(images(), dtype=dtype)).float().numpy()
    np.testing.assert_array_equal(found, expected)


def test_what_is_tapped_does_not_change_what_else_is_seen():
    """Transformer blocks have a fused path that they leave as soon as somebody listens."""
    torch.manual_seed(0)
    block = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    network = wrap(
        nn.Sequential(nn.Flatten(1, 2), block, nn.Linear(32, 5)),
        name="net",
        preprocess=tiny_transform,
        preprocess_id="v1",
    )
    (alone,) = run(network, ["2"], images())
    both = run(network, ["1.linear1", "1.self_attn", "2"], images())
    np.testing.assert_array_equal(both[-1], alone)


def test_outputs_lie_in_memory_of_their_own():
    network = tiny_network()
    tap = network.record.resolve(Tap("features.1"))[0]
    with network.open([tap, tap], device="cpu", precision="fp32", n_threads=1) as session:
        one, two = session.forward(images())
        kept = one.copy()
        session.forward(images(seed=1))
        two[:] = 0
        np.testing.assert_array_equal(one, kept)
        assert one.flags.c_contiguous


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu_and_gives_the_network_back():
    network = tiny_network()
    names = ["features.0", "features.3", "classifier"]
    taps = [network.record.resolve(Tap(name))[0] for name in names]
    before = caller_state()
    with network.open(taps, device="cuda", precision="fp32", n_threads=1) as session:
        assert session.device == "cuda:0"
        found = session.forward(images())
    assert caller_state() == before
    assert all(p.device.type == "cpu" for p in network.module.parameters())
    for one, other in zip(found, run(network, names, images()), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)
