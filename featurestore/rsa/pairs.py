"""The upper triangles of RDMs, read tile by tile in one order of the images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import InvalidInputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import xarray as xr
    from numpy.typing import NDArray

SYMMETRY = 1e-6  # of the largest dissimilarity
BAND_PAIRS = 2**22  # read at once where all are kept anyway
CHECKED = 1024  # rows of the blocks whose symmetry is checked


@dataclass(frozen=True, slots=True)
class Pairs:
    """The pairs of images in one or several RDMs, one vector each, in one order."""

    rdms: tuple[xr.Variable, ...]
    """Each of shape (image, image_2), in memory or lazy."""
    positions: NDArray[np.intp] | None
    """Which images, in which order; None: all, as they are."""
    what: str
    """What a message calls the RDMs."""

    @property
    def n_images(self) -> int:
        """How many images are compared."""
        return int(self.rdms[0].shape[0]) if self.positions is None else len(self.positions)

    @property
    def n_pairs(self) -> int:
        """How many pairs that makes."""
        return self.n_images * (self.n_images - 1) // 2

    @property
    def dtype(self) -> np.dtype[Any]:
        """What pairs are read as: float32 or float64."""
        all_float32 = all(rdm.dtype.kind == "f" and rdm.dtype.itemsize <= 4 for rdm in self.rdms)
        return np.dtype(np.float32 if all_float32 else np.float64)

    def __len__(self) -> int:
        return len(self.rdms)

    def take(self, which: slice) -> Pairs:
        """Choose some of the RDMs.

        Parameters
        ----------
        which : slice
            Which of them.

        Returns
        -------
        Pairs
            Those; nothing is read.
        """
        return Pairs(self.rdms[which], self.positions, self.what)

    def condensed(self) -> NDArray[Any]:
        """Read all pairs.

        Returns
        -------
        ndarray of shape (len(self), n_pairs), float32 or float64
            One vector per RDM, in the order of SciPy's condensed form.

        Raises
        ------
        InvalidInputError
            If an RDM is not symmetric, as far as that is seen.
        """
        n = self.n_images
        out = np.empty((len(self), self.n_pairs), dtype=self.dtype)
        position = 0
        for rows in _bands(n, max(BAND_PAIRS // n, self.chunks[0])):
            tile = Tile(rows, slice(rows.start, n))
            (strip,) = self.strips([tile], n * n)
            out[:, position : position + strip.shape[1]] = strip
            position += strip.shape[1]
        return out

    def strips(self, tiles: Iterable[Tile], n_pairs: int) -> Iterator[NDArray[Any]]:
        """Read the pairs in some tiles.

        Parameters
        ----------
        tiles : iterable of Tile
            Parts of the square; each is read as a whole.
        n_pairs : int
            About how many pairs are handed out at once, but at least a row of a tile.

        Yields
        ------
        ndarray of shape (len(self), s)
            Dissimilarities above the diagonal, row by row.

        Raises
        ------
        InvalidInputError
            If an RDM is not symmetric, as far as that is seen.
        """
        for tile in tiles:
            blocks = [self._read(rdm, tile) for rdm in self.rdms]
            for block in blocks:
                _require_symmetric(tile.on_diagonal(block), self.what)
            for rows in _bands(len(blocks[0]), n_pairs // max(1, blocks[0].shape[1])):
                yield np.stack([tile.above_diagonal(block, rows) for block in blocks]).astype(
                    self.dtype, copy=False
                )

    @property
    def chunks(self) -> tuple[int, int]:
        """Rows and columns that are read together anyway."""
        rdm = self.rdms[0]
        if self.positions is not None:
            return 1, 1
        if rdm.chunks:
            return max(rdm.chunks[0]), max(rdm.chunks[1])
        preferred = rdm.encoding.get("preferred_chunks", {})
        return int(preferred.get(rdm.dims[0], 1)), int(preferred.get(rdm.dims[1], 1))

    def _read(self, rdm: xr.Variable, tile: Tile) -> NDArray[Any]:
        rows: Any = tile.rows
        columns: Any = tile.columns
        if self.positions is not None:
            rows, columns = self.positions[rows], self.positions[columns]
        return np.asarray(rdm.isel({rdm.dims[0]: rows, rdm.dims[1]: columns}).values)


@dataclass(frozen=True, slots=True)
class Tile:
    """A part of the square of all pairs."""

    rows: slice
    columns: slice

    def above_diagonal(self, block: NDArray[Any], rows: slice) -> NDArray[Any]:
        """Return the values above the diagonal in some rows of a block.

        Parameters
        ----------
        block : ndarray of shape (rows, columns)
            What is in the tile.
        rows : slice
            Rows of the block.

        Returns
        -------
        ndarray of shape (s,)
            Row by row.
        """
        first = self.rows.start + 1 - self.columns.start  # column of the first value in row 0
        if rows.stop - 1 + first <= 0:
            return block[rows].ravel()
        return np.concatenate(
            [block[row, max(0, row + first) :] for row in range(rows.start, rows.stop)]
        )

    def on_diagonal(self, block: NDArray[Any]) -> NDArray[Any]:
        """Return the part of a block that is square in its images; empty for most tiles.

        Parameters
        ----------
        block : ndarray of shape (rows, columns)
            What is in the tile.

        Returns
        -------
        ndarray of shape (s, s)
            A view.
        """
        low = max(self.rows.start, self.columns.start)
        high = max(low, min(self.rows.stop, self.columns.stop))
        return block[low - self.rows.start : high - self.rows.start,
                     low - self.columns.start : high - self.columns.start]  # fmt: skip


def tile_grid(a: Pairs, b: Pairs, n_pairs: int) -> list[Tile]:
    """Divide the upper triangle into tiles.

    Parameters
    ----------
    a, b : Pairs
        What is read by them.
    n_pairs : int
        How many pairs a tile may have, but at least what is read together anyway.

    Returns
    -------
    list of Tile
        Whole chunks each, as far as both have the same; those below the diagonal are left out.
    """
    n = a.n_images
    height, width = (min(n, max(both)) for both in zip(a.chunks, b.chunks, strict=True))
    height *= max(1, int(np.sqrt(n_pairs / (height * width))))
    height = min(height, n)
    width *= max(1, n_pairs // (height * width))
    return [
        Tile(rows, columns)
        for rows in _bands(n, height)
        for columns in _bands(n, min(width, n))
        if columns.stop > rows.start + 1
    ]


def _bands(n: int, size: int) -> list[slice]:
    size = max(1, size)
    return [slice(low, min(n, low + size)) for low in range(0, n, size)]


def require_finite(vectors: NDArray[Any], what: str) -> None:
    """Refuse infinite dissimilarities where their size counts.

    Parameters
    ----------
    vectors : ndarray of shape (k, m)
        Dissimilarities.
    what : str
        What a message calls the RDMs.

    Raises
    ------
    InvalidInputError
        If one is infinite.
    """
    if np.isinf(vectors).any():
        raise InvalidInputError(
            f"{what} has infinite dissimilarities. Compare ranks (method='spearman' or 'rho-a'), "
            "or mark them as missing: rdm.where(np.isfinite(rdm))."
        )


def _require_symmetric(square: NDArray[Any], what: str) -> None:
    """Look at the blocks on the diagonal: what is wrong elsewhere is mostly wrong there."""
    for band in _bands(len(square), CHECKED):
        block = square[band, band]
        if np.array_equal(block, block.T, equal_nan=True):
            continue
        with np.errstate(invalid="ignore"):  # inf − inf: the same
            apart = np.abs(block - block.T)
        scale = np.max(np.abs(block), where=np.isfinite(block), initial=0.0)
        same = np.array_equal(np.isnan(block), np.isnan(block.T))
        if not same or np.any(apart > SYMMETRY * scale):
            raise InvalidInputError(
                f"{what} is not symmetric, so it is no RDM: the result would depend on which image "
                "of a pair comes first. Average both directions: (rdm + rdm transposed) / 2."
            )
