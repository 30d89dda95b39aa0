"""Many long vectors whose inner products are wanted, in memory or in a temporary file."""

from __future__ import annotations

import shutil
import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import DiskSpaceError
from featurestore.options import format_nbytes, get_options

if TYPE_CHECKING:
    from types import TracebackType

    from numpy.typing import NDArray

ITEMSIZE = 8
MIN_PIECE_NBYTES = 2**20  # of one vector in the file; shorter pieces cost more than they carry


class Stacked:
    """Vectors of one length, filled one by one.

    They stay in memory where they fit in what is allowed. Otherwise they go to a file in
    `cache_dir` that is gone at the end, and come back in pieces, all vectors at a time.

    Parameters
    ----------
    n_vectors : int
        How many there will be.
    length : int
        Of each.
    allowed_nbytes : int
        What they may take in memory.

    Raises
    ------
    DiskSpaceError
        If they fit neither in memory nor on the disk.
    """

    def __init__(self, n_vectors: int, length: int, allowed_nbytes: int) -> None:
        self._shape = (n_vectors, length)
        self._allowed = allowed_nbytes
        self._file: Any = None
        nbytes = n_vectors * length * ITEMSIZE
        if nbytes <= allowed_nbytes:
            self._values = np.empty(self._shape)
            return
        folder = get_options().cache_dir
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
        if nbytes > free:
            raise DiskSpaceError(
                f"{n_vectors} kernels take {format_nbytes(nbytes)}: more than memory_budget "
                f"leaves ({format_nbytes(allowed_nbytes)}) and than is free in {folder} "
                f"({format_nbytes(free)}). Compare fewer modules or images at a time, or raise "
                "memory_budget or move cache_dir with fs.set_options(…).",
                projected_nbytes=nbytes,
                free_nbytes=free,
            )
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by __exit__

    def __enter__(self) -> Stacked:
        """Keep the vectors until the block ends."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Give memory and file back."""
        if self._file is not None:
            self._file.close()

    def put(self, number: int, vector: NDArray[np.float64]) -> None:
        """Keep a vector.

        Parameters
        ----------
        number : int
            Which one.
        vector : ndarray of shape (length,), float64
            Its values.
        """
        if self._file is None:
            self._values[number] = vector
            return
        self._file.seek(number * self._shape[1] * ITEMSIZE)
        self._file.write(vector.data)

    def products(self, n_first: int, *, with_rest: bool) -> NDArray[np.float64]:
        """Return the inner products of the first vectors with the rest, or among themselves.

        Parameters
        ----------
        n_first : int
            How many vectors are the first.
        with_rest : bool
            Whether with the others; among themselves if not.

        Returns
        -------
        ndarray of shape (n_first, n_vectors − n_first) or (n_first, n_first), float64
            The products; among themselves, symmetric to the last bit.
        """
        n_vectors, length = self._shape
        out = np.zeros((n_first, n_vectors - n_first if with_rest else n_first))
        step = length
        if self._file is not None:
            step = max(self._allowed // (2 * n_vectors), MIN_PIECE_NBYTES) // ITEMSIZE
        for start in range(0, length, step):
            piece = self._piece(start, min(step, length - start))
            out += piece[:n_first] @ piece[n_first if with_rest else 0 :].T
        return out

    def _piece(self, start: int, count: int) -> NDArray[np.float64]:
        if self._file is None:
            return self._values[:, start : start + count]
        piece = np.empty((self._shape[0], count))
        for number, row in enumerate(piece):
            self._file.seek((number * self._shape[1] + start) * ITEMSIZE)
            if self._file.readinto(row.data) != row.nbytes:
                raise OSError("The temporary file of kernels is shorter than what was written.")
        return piece
