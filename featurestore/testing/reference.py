"""What captured activations are compared with, and what a caller must find unchanged."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from featurestore.networks.taps import Tap


def reference_activations(
    module: torch.nn.Module, taps: Sequence[Tap], batch: NDArray[np.float32]
) -> dict[Tap, NDArray[np.float32]]:
    """Run a whole forward pass in the plainest way, with hooks that clone.

    Parameters
    ----------
    module : nn.Module
        The network; in eval mode meanwhile.
    taps : sequence of Tap
        Resolved: with call and path.
    batch : ndarray of shape (n, *input_shape), float32
        Preprocessed images.

    Returns
    -------
    dict
        Per tap what the module returned, axes as they came.
    """
    caught: dict[Tap, NDArray[np.float32]] = {}
    calls: dict[str, int] = {}
    handles, parts = [], dict(module.named_modules())
    flags = [(part, part.training) for part in module.modules()]
    for name in {tap.module for tap in taps}:

        def hook(_module: Any, _inputs: Any, output: Any, name: str = name) -> None:
            call = calls[name] = calls.get(name, -1) + 1
            for tap in taps:
                if tap.module == name and tap.call == call:
                    caught[tap] = _step(output, tap).detach().clone().dequantize().numpy()

        handles.append(parts[name].register_forward_hook(hook))
    try:
        module.eval()
        with torch.no_grad():
            module(torch.tensor(batch))
    finally:
        for handle in handles:
            handle.remove()
        for part, training in flags:
            part.training = training
    return caught


def caller_state() -> dict[str, object]:
    """Note everything global that a forward pass could change.

    Returns
    -------
    dict
        Comparable.
    """
    backends: Any = torch.backends
    owners = {
        "matmul": backends.cuda.matmul,
        "cudnn.conv": backends.cudnn.conv,
        "cudnn.rnn": backends.cudnn.rnn,
        "onednn.matmul": backends.mkldnn.matmul,
        "onednn.conv": backends.mkldnn.conv,
        "onednn.rnn": backends.mkldnn.rnn,
    }
    return {
        **{name: owner.fp32_precision for name, owner in owners.items()},
        "float32_matmul": torch.get_float32_matmul_precision(),
        "benchmark": (backends.cudnn.benchmark, backends.cudnn.deterministic),
        "fast_path": backends.mha.get_fastpath_enabled(),
        "engine": backends.quantized.engine,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "threads": torch.get_num_threads(),
        "grad": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "autocast": [
            (torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind))
            for kind in ("cpu", "cuda")
        ],
        "random": torch.get_rng_state().tolist(),
    }


def _step(output: Any, tap: Tap) -> torch.Tensor:
    for step in tap.path:
        if isinstance(output, dict):
            output = output[step if step in output else str(step)]
        elif isinstance(step, int):
            output = output[step]
        else:
            output = getattr(output, step)
    tensor: torch.Tensor = output
    return tensor
