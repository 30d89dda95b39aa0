"""The one numeric setting in which every forward pass runs, and where it runs."""

from __future__ import annotations

import logging
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, cast

import torch

from featurestore.errors import InvalidInputError
from featurestore.networks.network import DeviceMemoryError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featurestore.typing import Precision

log = logging.getLogger("featurestore.networks")

_HALF = {"bf16": torch.bfloat16, "fp16": torch.float16}
_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "not enough memory",
    "STATUS_ALLOC_FAILED",
)


def resolve_device(device: str, *, only: str | None = None) -> torch.device:
    """Find the device that is meant; never another one in its place.

    Parameters
    ----------
    device : str
        ``"auto"``, ``"cpu"``, ``"cuda"``, ``"cuda:1"`` or ``"mps"``.
    only : str, optional
        The one kind of device that the network runs on, such as ``"cpu"`` if quantised.

    Returns
    -------
    torch.device
        With an index for CUDA.

    Raises
    ------
    InvalidInputError
        If it is not there, or the network cannot run on it.
    """
    if device == "auto":
        found = torch.device(only or _best_kind())
        log.info("device='auto' runs on %s", found)
    else:
        found = _parse_device(device)
    if only is not None and found.type != only:
        raise InvalidInputError(f"This network runs on {only!r} only, not on {device!r}.")
    available = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(_has_mps())}
    if (found.index or 0) >= available.get(found.type, 0):
        there = [kind for kind, n in available.items() if n]
        raise InvalidInputError(
            f"device={device!r} was asked for, and this machine has {', '.join(there)} "
            f"({available['cuda']} CUDA devices). Use device='auto' to take the best there is.",
            device=device,
        )
    return torch.device("cuda", found.index or 0) if found.type == "cuda" else found


def require_precision(precision: str, device: torch.device) -> None:
    """Refuse an arithmetic that the device does not have.

    Parameters
    ----------
    precision : str
        ``"fp32"``, ``"tf32"``, ``"bf16"`` or ``"fp16"``.
    device : torch.device
        Where the forward pass runs.

    Raises
    ------
    InvalidInputError
        If it does not exist, or not there.
    """
    if precision not in ("fp32", "tf32", *_HALF):
        raise InvalidInputError(f"precision={precision!r} is not one of fp32, tf32, bf16, fp16.")
    if precision == "tf32" and device.type != "cuda":
        raise InvalidInputError(
            f"precision='tf32' exists on CUDA devices only, and this one is {str(device)!r}; "
            "use 'fp32' or 'bf16'."
        )


@contextmanager
def numeric_context(device: torch.device, precision: Precision, n_threads: int) -> Iterator[None]:
    """Run in one numeric setting, whatever the caller has set; put everything back.

    Parameters
    ----------
    device : torch.device
        Where the forward pass runs.
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Arithmetic.
    n_threads : int
        Threads inside a forward pass on the CPU.

    Yields
    ------
    None
    """
    with ExitStack() as stack:
        # no_grad rather than inference_mode: what a user's network keeps of a forward pass
        # (caches of positions) must stay usable for training.
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.no_grad())
        gpus = [device.index] if device.type == "cuda" else []
        stack.enter_context(torch.random.fork_rng(devices=gpus))
        if torch.get_default_device().type != "cpu":
            stack.enter_context(torch.device("cpu"))
        stack.enter_context(_settings(precision, n_threads))
        for kind in {"cpu", "cuda", "mps", device.type}:
            wanted = _HALF.get(precision) if kind == device.type else None
            if wanted is not None or torch.is_autocast_enabled(kind):
                autocast = torch.autocast(
                    kind, dtype=wanted, enabled=wanted is not None, cache_enabled=False
                )
                stack.enter_context(autocast)
        yield


@contextmanager
def memory_errors(device: torch.device) -> Iterator[None]:
    """Turn a device that is out of memory into `DeviceMemoryError`.

    Parameters
    ----------
    device : torch.device
        Where the work runs.

    Yields
    ------
    None
    """
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as err:
        known = isinstance(err, torch.OutOfMemoryError | MemoryError)
        if not known and not any(word in str(err) for word in _OUT_OF_MEMORY):
            raise
        raise DeviceMemoryError(
            f"{device} has not enough memory for this batch; a smaller batch may fit.",
            device=str(device),
        ) from err


@contextmanager
def placed(module: torch.nn.Module, device: torch.device) -> Iterator[None]:
    """Bring a network to a device and into eval mode; put every tensor and flag back.

    Parameters
    ----------
    module : torch.nn.Module
        The network.
    device : torch.device
        Where it shall run.

    Yields
    ------
    None
    """
    flags = [(part, part.training) for part in module.modules()]
    tensors = [*module.parameters(), *module.buffers()]
    before = [(tensor, tensor.data) for tensor in tensors]
    try:
        for part, _ in flags:
            # Not .eval(): networks that override train() do more than set the flag, and
            # setting it again would not undo that.
            part.training = False
        with memory_errors(device), torch.no_grad():
            for tensor in tensors:
                if tensor.device != device:
                    tensor.data = tensor.data.to(device)
        yield
    finally:
        for tensor, data in before:
            if tensor.device != data.device:
                tensor.data = data
        for part, training in flags:
            part.training = training


@contextmanager
def _settings(precision: Precision, n_threads: int) -> Iterator[None]:
    backends = cast("Any", torch.backends)
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    cudnn = backends.cudnn.benchmark, backends.cudnn.deterministic
    fast_path = backends.mha.get_fastpath_enabled()
    try:
        torch.set_default_dtype(torch.float32)
        torch.set_num_threads(n_threads)
        backends.cudnn.benchmark, backends.cudnn.deterministic = False, True
        backends.mha.set_fastpath_enabled(True)
        with _float32_arithmetic("tf32" if precision == "tf32" else "ieee"):
            yield
    finally:
        backends.mha.set_fastpath_enabled(fast_path)
        backends.cudnn.benchmark, backends.cudnn.deterministic = cudnn
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)


@contextmanager
def _float32_arithmetic(word: str) -> Iterator[None]:
    """Fix what CUDA and oneDNN make of float32, in the old settings and in the new ones.

    torch keeps both, and its CUDA kernels refuse to run where they disagree.
    """
    backends = cast("Any", torch.backends)
    cuda = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn]
    onednn = [backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before = [(owner, owner.fp32_precision) for owner in (*cuda, *onednn)]
    _set_fp32([(owner, "ieee") for owner in (*cuda, *onednn)])
    matmul, convolution = torch.get_float32_matmul_precision(), _old_cudnn_setting()
    try:
        torch.set_float32_matmul_precision("high" if word == "tf32" else "highest")
        backends.cudnn.allow_tf32 = word == "tf32"
        _set_fp32([*((owner, word) for owner in cuda), *((owner, "ieee") for owner in onednn)])
        yield
    finally:
        torch.set_float32_matmul_precision(matmul)
        backends.cudnn.allow_tf32 = convolution
        _set_fp32(before)


def _set_fp32(values: list[tuple[Any, str]]) -> None:
    for owner, word in values:
        owner.fp32_precision = word


def _old_cudnn_setting() -> bool:
    # The new settings all say "ieee" here, and the old one can be read only if it agrees.
    try:
        return torch.backends.cudnn.allow_tf32
    except RuntimeError:
        return True


def _best_kind() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if _has_mps() else "cpu"


def _has_mps() -> bool:
    return torch.backends.mps.is_available()


def _parse_device(device: str) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError) as err:
        raise InvalidInputError(
            f"device={device!r} is not known; use 'auto', 'cpu', 'cuda', 'cuda:1' or 'mps'."
        ) from err
