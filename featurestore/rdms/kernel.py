"""All wanted pieces of the matrix of pairs, within a memory budget and in few readings."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import MemoryBudgetError
from featurestore.options import available_cpus, format_nbytes
from featurestore.rdms.engine import open_engine
from featurestore.rdms.equal import first_equal
from featurestore.rdms.passes import EXACT_VALUES, MANY, SHIFT_VALUES, Piece, run_pass
from featurestore.rdms.refine import refine
from featurestore.rdms.tile import Tile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from featurestore.rdms.refine import Refined
    from featurestore.rdms.sides import Sides
    from featurestore.rdms.source import Source

MIN_BUDGET = 128 * 2**20
RESERVE = 64 * 2**20  # BLAS, decoding and strips
BLOCK_NBYTES = 64 * 2**20  # larger blocks of features gain nothing
MIN_BLOCK_VALUES = 512
AHEAD_PAYS = 0.8  # what a plan must save to be chosen over one that reads ahead


@dataclass(frozen=True)
class Pass:
    """Pieces that are computed together from one reading of their rows."""

    blocks: tuple[int, ...]
    """Blocks of rows that are read."""
    tiles: tuple[tuple[int, int], ...]
    """Pairs of blocks."""
    max_values: int
    """Values of a row that are read at once."""
    ahead: bool
    """Whether there is room to read the next block while one is being multiplied."""
    nbytes: int
    """What is decoded for it [bytes]."""


@dataclass(frozen=True)
class PassPlan:
    """How the wanted tiles are computed."""

    passes: tuple[Pass, ...]
    memory_nbytes: int
    """At most what is held at once [bytes]."""
    tiles_nbytes: int
    """What the tiles take [bytes]."""

    @property
    def nbytes(self) -> int:
        """What is decoded in all [bytes], close pairs not counted."""
        return sum(p.nbytes for p in self.passes)


def plan_passes(
    source: Source, sizes: Sequence[int], wanted: Sequence[tuple[int, int]], budget: int
) -> PassPlan:
    """Choose passes over the data that fit in memory and read least.

    Parameters
    ----------
    source : Source
        Where the rows are.
    sizes : sequence of int
        Rows of each block.
    wanted : sequence of (int, int)
        Pairs of blocks, the first not after the second.
    budget : int
        What may be held at once [bytes].

    Returns
    -------
    PassPlan
        Nothing is read yet.

    Raises
    ------
    MemoryBudgetError
        If the budget is too small for any tile.
    """
    if budget < MIN_BUDGET:
        raise MemoryBudgetError(
            f"The memory budget is {format_nbytes(budget)}, and distances need "
            f"{format_nbytes(MIN_BUDGET)} at least. Raise it: "
            "fs.set_options(memory_budget='1 GiB').",
            projected_nbytes=MIN_BUDGET,
            allowed_nbytes=budget,
        )
    best: PassPlan | None = None
    involved = sorted({block for pair in wanted for block in pair})
    for n_groups, ahead in itertools.product(range(1, len(involved) + 1), (True, False)):
        edge = -(-len(involved) // n_groups)
        group = {block: n // edge for n, block in enumerate(involved)}
        plan = _grouped(source, sizes, wanted, budget, group, ahead=ahead)
        if plan is not None and (best is None or plan.nbytes < AHEAD_PAYS * best.nbytes):
            best = plan
    if best is None:
        raise AssertionError("a single tile fits in the least budget")
    return best


def _grouped(
    source: Source,
    sizes: Sequence[int],
    wanted: Sequence[tuple[int, int]],
    budget: int,
    group: dict[int, int],
    *,
    ahead: bool,
) -> PassPlan | None:
    by_group: dict[tuple[int, int], list[tuple[int, int]]] = {}
    for a, b in wanted:
        by_group.setdefault((group[a], group[b]), []).append((a, b))
    passes, most, tiles_nbytes = [], 0, 0
    for tiles in by_group.values():
        blocks = tuple(sorted({block for pair in tiles for block in pair}))
        n_rows = sum(sizes[block] for block in blocks)
        squares = sum(8 * sizes[a] * sizes[b] for a, b in tiles)
        held = squares + _scratch_nbytes(sizes, blocks)
        held += 4 * n_rows * min(SHIFT_VALUES, source.n_features)
        per_value = n_rows * source.itemsize * (2 if ahead else 1)
        room = (budget - RESERVE - held) // per_value
        fit = max(MIN_BLOCK_VALUES, BLOCK_NBYTES // (4 * n_rows), _chunk_values(source))
        max_values = min(room, fit, source.n_features)
        if max_values < min(MIN_BLOCK_VALUES, source.n_features):
            return None
        again = max(1.0, _chunk_values(source) / max_values)
        nbytes = int(n_rows * source.n_features * source.itemsize * again)
        passes.append(Pass(blocks, tuple(tiles), int(max_values), ahead, nbytes))
        tiles_nbytes += squares
        most = max(most, held + int(max_values) * per_value + RESERVE)
    return PassPlan(tuple(passes), most, tiles_nbytes)


def _chunk_values(source: Source) -> int:
    return max(1, int(np.prod(source.chunks, dtype=np.int64)))


def _scratch_nbytes(sizes: Sequence[int], blocks: Sequence[int]) -> int:
    """Return what the threads hold: products, and rows in float64."""
    largest = max(sizes[block] for block in blocks)
    rows = 8 * EXACT_VALUES * sum(sizes[block] for block in blocks)
    return rows + min(available_cpus(), len(blocks) ** 2) * 8 * largest * largest


def compute_tiles(
    source: Source,
    blocks: Sequence[NDArray[np.intp]],
    plan: PassPlan,
    *,
    device: str = "cpu",
    on_block: Callable[[int], object] = lambda _n: None,
) -> Iterator[tuple[tuple[int, int], Tile, Sides, Sides]]:
    """Compute tiles, pass by pass.

    Parameters
    ----------
    source : Source
        Where the rows are.
    blocks : sequence of ndarray of shape (n,), intp
        Rows of each block.
    plan : PassPlan
        From `plan_passes`.
    device : str
        As `open_engine` takes it.
    on_block : callable
        Told after each block of features how many bytes were read for it.

    Yields
    ------
    (int, int), Tile, Sides, Sides
        Pair of blocks, its tile, and the side vectors of its rows and columns.
    """
    for step in plan.passes:
        offsets, start = {}, 0
        for block in step.blocks:
            offsets[block] = slice(start, start + len(blocks[block]))
            start += len(blocks[block])
        rows = np.concatenate([blocks[block] for block in step.blocks])
        pieces = [Piece(offsets[a], offsets[b]) for a, b in step.tiles]
        sides = run_pass(
            source,
            rows,
            pieces,
            max_values=step.max_values,
            ahead=step.ahead,
            device=device,
            on_block=on_block,
        )
        _redo(source, rows, pieces, step, on_block)
        tiles = _refined(source, rows, sides, pieces, step.max_values, on_block)
        for pair, piece, tile in zip(step.tiles, pieces, tiles, strict=True):
            yield pair, tile, sides[piece.a], sides[piece.b]


def _redo(
    source: Source,
    rows: NDArray[np.intp],
    pieces: Sequence[Piece],
    step: Pass,
    on_block: Callable[[int], object],
) -> None:
    """Compute pieces with many close pairs again, in float64."""
    many = [p for p in pieces if not p.exact and len(p.close) > MANY * p.n_pairs]
    if not many:
        return
    used = np.unique(np.concatenate([np.r_[p.a] for p in many] + [np.r_[p.b] for p in many]))
    place = np.full(len(rows), -1)
    place[used] = np.arange(len(used))
    again = [Piece(_moved(p.a, place), _moved(p.b, place), exact=True) for p in many]
    for piece in many:
        piece.squares = np.empty((0, 0))  # its memory is needed now
    run_pass(
        source,
        rows[used],
        again,
        max_values=step.max_values,
        ahead=step.ahead,
        on_block=on_block,
    )
    for piece, exact in zip(many, again, strict=True):
        piece.squares, piece.close, piece.exact = exact.squares, exact.close, True


def _moved(rows: slice, place: NDArray[np.intp]) -> slice:
    start = int(place[rows.start])
    return slice(start, start + rows.stop - rows.start)


def _refined(
    source: Source,
    rows: NDArray[np.intp],
    sides: Sides,
    pieces: Sequence[Piece],
    max_values: int,
    on_block: Callable[[int], object],
) -> list[Tile]:
    """Replace close pairs by what their differences say."""
    pairs = np.concatenate([p.close + np.array([p.a.start, p.b.start]) for p in pieces])
    if not len(pairs):
        return [Tile(piece.squares) for piece in pieces]
    used = np.unique(pairs)
    first = first_equal(source, rows, sides, used, max_values=max_values, on_block=on_block)
    # Pairs of equal rows are zero apart; of others with them, one stands for all.
    known, place = np.unique(np.sort(first[pairs], axis=1), axis=0, return_inverse=True)
    place = place.reshape(-1)
    with open_engine("cpu") as (_, processors):
        refined = refine(
            source,
            rows,
            sides,
            known,
            max_values=max_values,
            processors=processors,
            on_block=on_block,
        ).take(place)
    tiles, start = [], 0
    for piece in pieces:
        part = slice(start, start := start + len(piece.close))
        tiles.append(_with_close(piece, refined, part))
    return tiles


def _with_close(piece: Piece, refined: Refined, part: slice) -> Tile:
    close = piece.close
    near = np.stack([refined.cosine[part], refined.correlation[part]], axis=1)
    squares = refined.squares[part]
    if piece.is_diagonal:  # both triangles
        close, near = np.concatenate([close, close[:, ::-1]]), np.concatenate([near, near])
        squares = np.concatenate([squares, squares])
    order = np.lexsort((close[:, 1], close[:, 0]))
    piece.squares[close[:, 0], close[:, 1]] = squares
    return Tile(piece.squares, close[order].astype(np.uint32), near[order])
