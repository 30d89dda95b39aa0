"""Small blocks of images become large ones: additions one by one leave many files."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.storage.grams import BLOCK_ROWS, GramTile

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.storage.grams import GramFolder

SMALL_ROWS = BLOCK_ROWS // 2


def merge_blocks(folder: GramFolder) -> int:
    """Copy the tiles of small blocks into tiles of larger ones, and remove the small ones.

    Nothing is computed. Readers that hold the small blocks find the larger ones, or compute again.

    Parameters
    ----------
    folder : GramFolder
        Of a store that may be written.

    Returns
    -------
    int
        How many blocks became part of others.
    """
    blocks = folder.blocks()
    n_merged = 0
    for group in _groups(blocks):
        new = _merge(folder, blocks, group)
        if new is not None:
            for number in group:
                folder.remove_block(number)
                del blocks[number]
            blocks[new] = folder.blocks()[new]
            n_merged += len(group)
    return n_merged


def _groups(blocks: Mapping[int, NDArray[np.uint8]]) -> Iterator[list[int]]:
    """Choose small blocks that fit in one and share no image, two or more at a time."""
    group: list[int] = []
    inside: set[bytes] = set()
    for number in sorted(blocks):
        images = {bytes(digest) for digest in blocks[number]}
        if len(blocks[number]) >= SMALL_ROWS or images & inside:
            continue
        if len(inside) + len(images) > BLOCK_ROWS:
            if len(group) > 1:
                yield group
            group, inside = [], set()
        group.append(number)
        inside |= images
    if len(group) > 1:
        yield group


def _merge(
    folder: GramFolder, blocks: Mapping[int, NDArray[np.uint8]], group: Sequence[int]
) -> int | None:
    """Write the tiles of a group as those of one block; returns its number."""
    itself = _joined(folder, group, group)
    if itself is None:
        return None  # some pairs were never computed
    new = folder.add_block(np.concatenate([blocks[number] for number in group]))
    for other in sorted(blocks.keys() - set(group)):
        tile = _joined(folder, [other], group)
        if tile is not None:
            folder.write(other, new, tile)
    folder.write(new, new, itself)  # last: without it the block is of no use
    return new


def _joined(folder: GramFolder, rows: Sequence[int], columns: Sequence[int]) -> GramTile | None:
    """Return the pairs of some blocks with some others as one tile, if all are there."""
    squares: list[list[NDArray[np.float64]]] = []
    pairs, near, statistics = [], [], []
    down = 0
    for a in rows:
        squares.append([])
        across = 0
        for b in columns:
            tile = folder.read(min(a, b), max(a, b))
            if tile is None:
                return None
            part = (tile.squares, tile.pairs) if a <= b else (tile.squares.T, tile.pairs[:, ::-1])
            squares[-1].append(part[0])
            pairs.append(part[1] + np.array([down, across], np.uint32))
            near.append(tile.near)
            if a == b:
                statistics.append(tile.statistics)
            across += part[0].shape[1]
        down += len(squares[-1][0])
    close, values = np.concatenate(pairs), np.concatenate(near)
    order = np.lexsort((close[:, 1], close[:, 0]))
    sides = np.concatenate([np.empty((0, 2)), *statistics])
    return GramTile(np.block(squares), close[order], values[order], sides)
