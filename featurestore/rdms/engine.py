"""Products of rows, summed over blocks of features: on the processors, or on a GPU.

Both engines take float32 blocks, multiply in IEEE float32 and sum blocks in float64.
"""

from __future__ import annotations

import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from threadpoolctl import ThreadpoolController

from featurestore.errors import InvalidInputError
from featurestore.optional import import_optional
from featurestore.options import available_cpus
from featurestore.rdms.sides import scratch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from numpy.typing import NDArray

WIDTH = 2048  # features per product in float32: rounding grows with it, overhead falls


class Engine(Protocol):
    """Sums products of float32 rows."""

    name: str

    def zeros(self, n_rows: int, n_columns: int) -> Any:
        """Return a sum to begin with, where the engine keeps it."""
        ...

    def load(self, rows: NDArray[np.float32]) -> Any:
        """Bring one block of all rows to where they are multiplied."""
        ...

    def add(self, total: Any, rows: Any, a: slice, b: slice) -> None:
        """Add the products of rows a with rows b to a sum."""
        ...

    def fetch(self, total: Any) -> NDArray[np.float64]:
        """Return a sum; it is the caller's from then on."""
        ...

    def each(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> list[Any]:
        """Do independent pieces of work."""
        ...


class NumpyEngine:
    """Products by NumPy's BLAS: a thread per piece of the matrix, one BLAS thread in each.

    Parameters
    ----------
    pool : ThreadPoolExecutor
        The threads.
    """

    name = "cpu"

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool

    def zeros(self, n_rows: int, n_columns: int) -> NDArray[np.float64]:
        """Return a sum to begin with.

        Parameters
        ----------
        n_rows, n_columns : int
            Its shape.

        Returns
        -------
        ndarray of shape (n_rows, n_columns), float64
            Zeros.
        """
        return np.zeros((n_rows, n_columns))

    def load(self, rows: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return the rows, which are where they are needed.

        Parameters
        ----------
        rows : ndarray of shape (n, width), float32
            One block.

        Returns
        -------
        ndarray of shape (n, width), float32
            The same.
        """
        return rows

    def add(
        self, total: NDArray[np.float64], rows: NDArray[np.float32], a: slice, b: slice
    ) -> None:
        """Add products of rows to a sum.

        Parameters
        ----------
        total : ndarray of shape (n_a, n_b), float64
            Changed.
        rows : ndarray of shape (n, width), float32
            One block of all rows.
        a, b : slice
            Which rows.
        """
        product = scratch((total.shape[0], total.shape[1]), np.float32, "product")
        for start in range(0, rows.shape[1], WIDTH):
            left = rows[a, start : start + WIDTH]
            # The same memory twice lets NumPy compute one triangle only.
            right = left if a == b else rows[b, start : start + WIDTH]
            np.matmul(left, right.T, out=product)
            np.add(total, product, out=total)

    def fetch(self, total: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return a sum.

        Parameters
        ----------
        total : ndarray of shape (n_a, n_b), float64
            From `zeros`.

        Returns
        -------
        ndarray of shape (n_a, n_b), float64
            The same.
        """
        return total

    def each(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> list[Any]:
        """Do independent pieces of work in the threads.

        Parameters
        ----------
        work : callable
            Takes one task.
        tasks : iterable
            What is to be done.

        Returns
        -------
        list
            What came back, in order.
        """
        return list(self._pool.map(work, tasks))


class TorchEngine:
    """Products by torch, on a GPU or wherever torch computes.

    Parameters
    ----------
    device : str
        Such as ``"cuda"``.
    """

    def __init__(self, device: str) -> None:
        self._torch = import_optional("torch", "torch")
        self.name = device

    def zeros(self, n_rows: int, n_columns: int) -> Any:
        """Return a sum to begin with, on the device.

        Parameters
        ----------
        n_rows, n_columns : int
            Its shape.

        Returns
        -------
        Tensor of shape (n_rows, n_columns), float64
            Zeros.
        """
        torch = self._torch
        return torch.zeros((n_rows, n_columns), dtype=torch.float64, device=self.name)

    def load(self, rows: NDArray[np.float32]) -> Any:
        """Bring one block of all rows to the device.

        Parameters
        ----------
        rows : ndarray of shape (n, width), float32
            One block.

        Returns
        -------
        Tensor of shape (n, width), float32
            On the device.
        """
        return self._torch.from_numpy(rows).to(self.name)

    def add(self, total: Any, rows: Any, a: slice, b: slice) -> None:
        """Add products of rows to a sum.

        Parameters
        ----------
        total : Tensor of shape (n_a, n_b), float64
            Changed.
        rows : Tensor of shape (n, width), float32
            One block of all rows.
        a, b : slice
            Which rows.
        """
        for start in range(0, rows.shape[1], WIDTH):
            total += rows[a, start : start + WIDTH] @ rows[b, start : start + WIDTH].T

    def fetch(self, total: Any) -> NDArray[np.float64]:
        """Bring a sum back from the device.

        Parameters
        ----------
        total : Tensor of shape (n_a, n_b), float64
            From `zeros`.

        Returns
        -------
        ndarray of shape (n_a, n_b), float64
            In memory of its own.
        """
        return np.array(total.cpu().numpy())

    def each(self, work: Callable[[Any], Any], tasks: Iterable[Any]) -> list[Any]:
        """Do independent pieces of work one after the other: the device has its own queue.

        Parameters
        ----------
        work : callable
            Takes one task.
        tasks : iterable
            What is to be done.

        Returns
        -------
        list
            What came back, in order.
        """
        return [work(task) for task in tasks]


@lru_cache(maxsize=1)
def _libraries() -> ThreadpoolController:
    # Looking through all loaded libraries takes milliseconds; NumPy's does not change.
    return ThreadpoolController()


def one_blas_thread() -> AbstractContextManager[Any]:
    """Keep each product to the thread that asks for it: threads share the matrix instead.

    Returns
    -------
    context manager
        Restores what was set before.
    """
    return _one_blas_thread.entered()


@contextmanager
def open_engine(device: str) -> Iterator[tuple[Engine, NumpyEngine]]:
    """Make the engine of a device, and the one of the processors for what stays there.

    Parameters
    ----------
    device : str
        ``"auto"`` takes CUDA if torch is loaded in this process and has it, else the CPU;
        ``"cpu"``, ``"cuda"`` or ``"cuda:1"``.

    Yields
    ------
    engine : Engine
        For products in float32.
    processors : NumpyEngine
        For everything else.

    Raises
    ------
    InvalidInputError
        If there is no such device.
    """
    with ExitStack() as stack:
        stack.enter_context(one_blas_thread())
        pool = stack.enter_context(ThreadPoolExecutor(available_cpus()))
        processors = NumpyEngine(pool)
        chosen = _choose(device)
        if chosen == "cpu":
            yield processors, processors
            return
        stack.enter_context(_ieee.entered())
        yield TorchEngine(chosen), processors


def _choose(device: str) -> str:
    if device == "cpu":
        return "cpu"
    if device == "auto":
        torch: Any = sys.modules.get("torch")
        return "cuda" if torch is not None and torch.cuda.is_available() else "cpu"
    torch = import_optional("torch", "torch")
    kind, _, number = device.partition(":")
    n_devices = torch.cuda.device_count()
    if kind != "cuda" or not (number or "0").isdecimal() or int(number or 0) >= n_devices:
        raise InvalidInputError(
            f"device={device!r} was asked for, and distances are computed on 'cpu' or 'cuda'; this "
            f"machine has {n_devices} CUDA devices. Use device='auto' to take the best there is.",
            device=device,
        )
    return device


@contextmanager
def _ieee_float32() -> Iterator[None]:
    """Keep TF32 and bfloat16 out of float32 products, whatever the caller set."""
    torch = import_optional("torch", "torch")
    owners = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)
    before = [owner.fp32_precision for owner in owners]
    try:
        for owner in owners:
            owner.fp32_precision = "ieee"
        yield
    finally:
        for owner, word in zip(owners, before, strict=True):
            owner.fp32_precision = word


class _Shared:
    """A setting of the process that several threads need at once: the last one restores it.

    Parameters
    ----------
    setting : callable
        Returns a context manager that sets and restores it.
    """

    def __init__(self, setting: Callable[[], AbstractContextManager[Any]]) -> None:
        self._setting = setting
        self._lock = threading.Lock()
        self._n_users = 0
        self._stack = ExitStack()

    @contextmanager
    def entered(self) -> Iterator[None]:
        """Keep the setting while the block runs.

        Yields
        ------
        None
            While it runs.
        """
        with self._lock:
            if not self._n_users:
                self._stack.enter_context(self._setting())
            self._n_users += 1
        try:
            yield
        finally:
            with self._lock:
                self._n_users -= 1
                if not self._n_users:
                    self._stack.close()


_one_blas_thread = _Shared(lambda: _libraries().limit(limits=1, user_api="blas"))
_ieee = _Shared(_ieee_float32)
