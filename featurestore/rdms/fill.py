"""Which tiles a request needs, which are there, and computing the others."""

from __future__ import annotations

import itertools
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np

from featurestore.errors import CorruptDataError
from featurestore.rdms.kernel import compute_tiles, plan_passes
from featurestore.rdms.sides import Sides
from featurestore.rdms.tile import Tile
from featurestore.storage.grams import BLOCK_ROWS, GramTile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from numpy.typing import NDArray

    from featurestore.rdms.kernel import PassPlan
    from featurestore.rdms.source import Source

READ_SHARE = 0.2
"""A block of which less is asked for is not read, even if all its tiles are there."""
COMPUTE_SHARE = 0.75
"""A block of which less is asked for is not completed."""
N_WRITERS = 2  # tiles on their way to the disk


class Folder(Protocol):
    """Where blocks and tiles are: `featurestore.storage.grams.GramFolder`, or memory."""

    def blocks(self) -> dict[int, NDArray[np.uint8]]:
        """Return the digests of every block, by number."""
        ...

    def add_block(self, digests: NDArray[np.uint8]) -> int:
        """Begin a block; returns its number."""
        ...

    def tiles(self) -> set[tuple[int, int]]:
        """List the tiles, by the numbers of their blocks, the smaller first."""
        ...

    def read(self, a: int, b: int) -> GramTile | None:
        """Read a tile; ``None`` if there is none, or it is damaged."""
        ...

    def write(self, a: int, b: int, tile: GramTile) -> None:
        """Keep a tile."""
        ...


class MemoryFolder:
    """Blocks and tiles that are gone with the process."""

    def __init__(self) -> None:
        self._blocks: dict[int, NDArray[np.uint8]] = {}
        self._tiles: dict[tuple[int, int], GramTile] = {}

    def blocks(self) -> dict[int, NDArray[np.uint8]]:
        """Return the digests of every block.

        Returns
        -------
        dict of int to ndarray of shape (n, 16), uint8
            By number.
        """
        return self._blocks

    def add_block(self, digests: NDArray[np.uint8]) -> int:
        """Begin a block.

        Parameters
        ----------
        digests : ndarray of shape (n, 16), uint8
            Which rows.

        Returns
        -------
        int
            Its number.
        """
        self._blocks[len(self._blocks)] = digests
        return len(self._blocks) - 1

    def tiles(self) -> set[tuple[int, int]]:
        """List the tiles.

        Returns
        -------
        set of (int, int)
            Numbers of their blocks.
        """
        return set(self._tiles)

    def read(self, a: int, b: int) -> GramTile | None:
        """Return a tile.

        Parameters
        ----------
        a, b : int
            Numbers of its blocks.

        Returns
        -------
        GramTile or None
            ``None`` if there is none.
        """
        return self._tiles.get((a, b))

    def write(self, a: int, b: int, tile: GramTile) -> None:
        """Keep a tile.

        Parameters
        ----------
        a, b : int
            Numbers of its blocks.
        tile : GramTile
            Its content.
        """
        self._tiles[a, b] = tile


@dataclass(frozen=True)
class Cover:
    """Blocks that hold all rows of a request, and where in them each row is."""

    folder: Folder
    blocks: tuple[int, ...]
    """Numbers, rising."""
    block_of: NDArray[np.intp]
    """Of each row, as a position in `blocks`: shape (n,)."""
    row_of: NDArray[np.intp]
    """Of each row, within its block: shape (n,)."""
    itemsize: int = 4
    """Of the values that rows were made of [bytes]."""
    known_sides: dict[int, Sides] = field(default_factory=dict, repr=False, compare=False)
    """By position in `blocks`: read once."""

    def read(self, a: int, b: int) -> Tile:
        """Read the tile of two of its blocks.

        Parameters
        ----------
        a, b : int
            Positions in `blocks`, the first not after the second.

        Returns
        -------
        Tile
            The pairs of rows.

        Raises
        ------
        TileGoneError
            If it is damaged, or was taken away meanwhile.
        """
        found = self.folder.read(self.blocks[a], self.blocks[b])
        if found is None:
            raise TileGoneError(self.blocks[a], self.blocks[b])
        n_same = len(found.squares) if a == b else 0
        return Tile(found.squares, found.pairs, found.near, n_same)

    def sides(self, block: int, n_features: int) -> Sides:
        """Return the side vectors of a block's rows.

        Parameters
        ----------
        block : int
            Position in `blocks`.
        n_features : int
            Values per row.

        Returns
        -------
        Sides
            Of all its rows.

        Raises
        ------
        TileGoneError
            If they are damaged, or were taken away meanwhile.
        """
        if block not in self.known_sides:
            found = self.folder.read(self.blocks[block], self.blocks[block])
            if found is None:
                raise TileGoneError(self.blocks[block], self.blocks[block])
            self.known_sides[block] = Sides.of(found.statistics, n_features, self.itemsize)
        return self.known_sides[block]


class TileGoneError(Exception):
    """A tile that was there is not, or is damaged; carries the numbers of its blocks."""


def find_cover(folder: Folder, digests: NDArray[np.uint8]) -> Cover | None:
    """Find blocks whose tiles are all there.

    Parameters
    ----------
    folder : Folder
        Where they are.
    digests : ndarray of shape (n, 16), uint8
        Rows that are asked for, in any order, repeats allowed.

    Returns
    -------
    Cover or None
        ``None`` if something has to be computed.
    """
    blocks, asked = folder.blocks(), _as_keys(digests)
    for share in (COMPUTE_SHARE, READ_SHARE):
        chosen, rest = _choose(blocks, asked, share)
        if not (rest or _missing(folder, chosen)):
            return _cover(folder, blocks, chosen, digests)
    return None


def fill(
    folder: Folder,
    digests: NDArray[np.uint8],
    source_of: Callable[[NDArray[np.uint8]], Source],
    *,
    has_rows: Callable[[NDArray[np.uint8]], bool],
    budget: int,
    device: str = "cpu",
    on_plan: Callable[[PassPlan], object] = lambda _plan: None,
    on_block: Callable[[int], object] = lambda _nbytes: None,
) -> Cover:
    """Compute the tiles that a request lacks. Killed anywhere, it goes on from the last tiles.

    Parameters
    ----------
    folder : Folder
        Where tiles are kept.
    digests : ndarray of shape (n, 16), uint8
        Rows that are asked for, in any order, repeats allowed.
    source_of : callable
        Distinct digests to the source of their rows.
    has_rows : callable
        Says whether a source has all of some rows.
    budget : int
        What may be held at once [bytes].
    device : str
        As `featurestore.rdms.engine.open_engine` takes it.
    on_plan : callable
        Told how tiles will be computed, before anything is read.
    on_block : callable
        Told how many bytes were read, again and again.

    Returns
    -------
    Cover
        Where the rows are.
    """
    cover = find_cover(folder, digests)
    if cover is not None:
        return cover
    blocks = folder.blocks()
    asked = _as_keys(digests)
    chosen, rest = _choose(blocks, asked, COMPUTE_SHARE)
    kept = [number for number in chosen if has_rows(blocks[number])]
    if len(kept) < len(chosen):  # rows of others that share a block were dropped
        chosen, rest = _choose({n: blocks[n] for n in kept}, asked, COMPUTE_SHARE)
    new = np.frombuffer(b"".join(rest), np.uint8).reshape(-1, 16)
    for start in range(0, len(new), BLOCK_ROWS):
        chosen.append(folder.add_block(new[start : start + BLOCK_ROWS]))
    chosen = sorted(chosen)
    blocks = folder.blocks()
    wanted, itemsize = _missing(folder, chosen), 4
    if wanted:
        used = sorted({number for pair in wanted for number in pair})
        source = source_of(np.concatenate([blocks[number] for number in used]))
        itemsize = source.itemsize
        offsets = np.cumsum([0, *(len(blocks[number]) for number in used)])
        rows = [np.arange(a, b) for a, b in itertools.pairwise(offsets)]
        place = {number: n for n, number in enumerate(used)}
        pairs = [(place[a], place[b]) for a, b in wanted]
        plan = plan_passes(source, [len(r) for r in rows], pairs, budget)
        on_plan(plan)
        tiles = compute_tiles(source, rows, plan, device=device, on_block=on_block)
        _keep(
            folder,
            (
                (used[a], used[b], _kept(tile, left, is_diagonal=a == b))
                for (a, b), tile, left, _ in tiles
            ),
        )
    return replace(_cover(folder, blocks, chosen, digests), itemsize=itemsize)


def _kept(tile: Tile, sides: Sides, *, is_diagonal: bool) -> GramTile:
    statistics = np.stack([sides.mean, sides.sumsq], axis=1)
    return GramTile(
        tile.squares, tile.pairs, tile.near, statistics[: len(statistics) * is_diagonal]
    )


def _keep(folder: Folder, tiles: Iterable[tuple[int, int, GramTile]]) -> None:
    """Write tiles while the next ones are computed, never holding many."""
    with ThreadPoolExecutor(N_WRITERS) as pool:
        waiting: deque[Future[None]] = deque()
        for a, b, tile in tiles:
            waiting.append(pool.submit(folder.write, a, b, tile))
            del tile
            if len(waiting) > N_WRITERS:
                waiting.popleft().result()
        for done in waiting:
            done.result()


def _as_keys(digests: NDArray[np.uint8]) -> dict[bytes, None]:
    """Return digests once each, in the order asked for."""
    data = np.ascontiguousarray(digests).tobytes()
    return dict.fromkeys(data[n : n + 16] for n in range(0, len(data), 16))


def _choose(
    blocks: Mapping[int, NDArray[np.uint8]], asked: Mapping[bytes, None], share: float
) -> tuple[list[int], list[bytes]]:
    """Choose blocks for rows, large ones first; returns them and the rows that none of them has."""
    left = dict(asked)
    chosen = []
    for number in sorted(blocks, key=lambda n: (-len(blocks[n]), -n)):
        inside = _as_keys(blocks[number])
        n_new = sum(key in left for key in inside)
        n_asked = sum(key in asked for key in inside)
        if n_new and n_asked >= share * len(inside) and n_new * 2 >= n_asked:
            chosen.append(number)
            for key in inside:
                left.pop(key, None)
    return chosen, list(left)


def _missing(folder: Folder, chosen: list[int]) -> list[tuple[int, int]]:
    there = folder.tiles()
    numbers = sorted(chosen)
    pairs = ((a, b) for n, a in enumerate(numbers) for b in numbers[n:])
    return [pair for pair in pairs if pair not in there]


def _cover(
    folder: Folder,
    blocks: Mapping[int, NDArray[np.uint8]],
    chosen: list[int],
    digests: NDArray[np.uint8],
) -> Cover:
    numbers = sorted(chosen)
    place: dict[bytes, tuple[int, int]] = {}
    for n, number in enumerate(numbers):
        for row, key in enumerate(_as_keys(blocks[number])):
            place.setdefault(key, (n, row))
    data = np.ascontiguousarray(digests).tobytes()
    try:
        at = [place[data[n : n + 16]] for n in range(0, len(data), 16)]
    except KeyError as err:
        raise CorruptDataError(
            "A block of distances in the store does not hold the images that it should. Open the "
            "store with mode='a' and call store.verify(repair=True).",
            images=[],
        ) from err
    both = np.array(at, np.intp).reshape(-1, 2)
    return Cover(folder, tuple(numbers), both[:, 0], both[:, 1])
