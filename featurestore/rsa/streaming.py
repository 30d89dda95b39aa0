"""Comparing RDMs that do not fit in memory: tile by tile, in one pass or several."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import MemoryBudgetError
from featurestore.options import format_nbytes
from featurestore.rsa.moments import Moments, Products, inner_products
from featurestore.rsa.pairs import require_finite, tile_grid
from featurestore.rsa.ranking import MIN_SLOTS, SLOT_NBYTES, RankTable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from numpy.typing import NDArray

    from featurestore.rsa.measures import Measure
    from featurestore.rsa.pairs import Pairs

    Normalise = Callable[[float, RankTable, RankTable], float]

TILE_NBYTES_PER_PAIR = 16  # a tile in float64, and the chunks that it is put together from
STRIP_NBYTES_PER_PAIR = 64  # a strip as it is read, in float64, centred, its keys and slots
MIN_TILE_PAIRS = 2**14
MAX_STRIP_PAIRS = 2**18  # longer strips gain nothing
MAX_ERROR = 1e-4  # of a rank correlation; beyond it nothing is returned


@dataclass(frozen=True, slots=True)
class Streamed:
    """Scores of RDMs with others, and how they came about."""

    scores: NDArray[np.float64]
    """(k, l)."""
    n_dropped: NDArray[np.int64]
    """(k, l): pairs that are NaN in either."""
    max_error: float
    """How far a score can be off because ranks were counted too coarsely; 0 if they are exact."""


def stream_scores(a: Pairs, b: Pairs, measure: Measure, allowed_nbytes: int) -> Streamed:
    """Compare RDMs without holding any of them.

    Parameters
    ----------
    a : Pairs
        k RDMs.
    b : Pairs
        l RDMs of the same images in the same order. May be `a` itself.
    measure : Measure
        Pearson, cosine, Spearman or rho-a.
    allowed_nbytes : int
        What may be held at once.

    Returns
    -------
    Streamed
        The scores. Pearson and cosine read each RDM once, the others three times, and more often
        where little memory is allowed; more RDMs than fit are taken in blocks.

    Raises
    ------
    MemoryBudgetError
        If the measure needs all pairs at once, or ranks would be too coarse.
    """
    if measure.name not in _STREAMED:
        raise _refused(a, measure, allowed_nbytes)
    plan = _Plan.of(a, b, measure, allowed_nbytes)
    out = Streamed(np.full((len(a), len(b)), np.nan), np.zeros((len(a), len(b)), np.int64), 0.0)
    worst = 0.0
    for rows in plan.blocks(len(a)):
        for columns in plan.blocks(len(b)):
            left = a.take(rows)
            right = left if a is b and rows == columns else b.take(columns)
            found = _STREAMED[measure.name](left, right, plan)
            out.scores[rows, columns] = found.scores
            out.n_dropped[rows, columns] = found.n_dropped
            worst = max(worst, found.max_error)
    return Streamed(out.scores, out.n_dropped, worst)


@dataclass(frozen=True, slots=True)
class _Plan:
    """How the allowed memory is divided."""

    n_rdms: int
    """RDMs on each side at once."""
    tile_pairs: int
    """Read at once, of each RDM."""
    strip_pairs: int
    """Worked on at once, of each RDM."""
    n_slots: int
    """For the ranks of one RDM."""

    @classmethod
    def of(cls, a: Pairs, b: Pairs, measure: Measure, allowed: int) -> _Plan:
        smallest = MIN_TILE_PAIRS * (TILE_NBYTES_PER_PAIR + STRIP_NBYTES_PER_PAIR)
        smallest += MIN_SLOTS * SLOT_NBYTES if measure.ranked else 0
        n_rdms = max(1, min(max(len(a), len(b)), allowed // (2 * smallest)))
        n_held = min(n_rdms, len(a)) + (0 if a is b else min(n_rdms, len(b)))
        ranks = allowed // 2 if measure.ranked else 0
        share = (allowed - ranks) // (2 * n_held)
        return cls(
            n_rdms=n_rdms,
            tile_pairs=max(share // TILE_NBYTES_PER_PAIR, MIN_TILE_PAIRS),
            strip_pairs=min(max(share // STRIP_NBYTES_PER_PAIR, MIN_TILE_PAIRS), MAX_STRIP_PAIRS),
            n_slots=ranks // (n_held * SLOT_NBYTES),
        )

    def blocks(self, n: int) -> list[slice]:
        return [slice(low, min(n, low + self.n_rdms)) for low in range(0, n, self.n_rdms)]


def _strips(a: Pairs, b: Pairs, plan: _Plan) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Read both sides at once."""
    tiles = tile_grid(a, b, plan.tile_pairs)
    if a is b:
        for strip in a.strips(tiles, plan.strip_pairs):
            yield strip, strip
    else:
        yield from zip(
            a.strips(tiles, plan.strip_pairs), b.strips(tiles, plan.strip_pairs), strict=True
        )


def _pearson(a: Pairs, b: Pairs, plan: _Plan) -> Streamed:
    sums = Moments(len(a), len(b))
    for left, right in _strips(a, b, plan):
        require_finite(left, a.what)
        require_finite(right, b.what)
        sums.add(left, right)
    return Streamed(sums.correlations(), _dropped(a, sums.n), 0.0)


def _cosine(a: Pairs, b: Pairs, plan: _Plan) -> Streamed:
    sums = Products(len(a), len(b))
    for left, right in _strips(a, b, plan):
        require_finite(left, a.what)
        require_finite(right, b.what)
        sums.add(left, right)
    return Streamed(sums.cosines(), _dropped(a, sums.n), 0.0)


def _dropped(a: Pairs, n_used: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.asarray(a.n_pairs - n_used, dtype=np.int64)


def _spearman(a: Pairs, b: Pairs, plan: _Plan) -> Streamed:
    def normalise(product: float, first: RankTable, second: RankTable) -> float:
        scale = np.sqrt(first.norm) * np.sqrt(second.norm)
        return float(np.clip(product / scale, -1.0, 1.0)) if scale > 0 else np.nan

    return _ranked(a, b, plan, normalise)


def _rho_a(a: Pairs, b: Pairs, plan: _Plan) -> Streamed:
    def normalise(product: float, first: RankTable, _: RankTable) -> float:
        n = float(first.n)
        return 12 * product / (n**3 - n) if n > 1 else np.nan

    return _ranked(a, b, plan, normalise)


_STREAMED: Mapping[str, Callable[[Pairs, Pairs, _Plan], Streamed]] = {
    "pearson": _pearson,
    "cosine": _cosine,
    "spearman": _spearman,
    "rho-a": _rho_a,
}


def _ranked(a: Pairs, b: Pairs, plan: _Plan, normalise: Normalise) -> Streamed:
    """Rank all RDMs at once, or, where pairs are missing, anew for each comparison."""
    ranking = _Ranking(a, b, plan)
    if not ranking.build():
        return _one_by_one(a, b, plan, normalise)
    first, second, products = ranking.first, ranking.second, ranking.products()
    scores = [
        [normalise(products[i, j], x, y) for j, y in enumerate(second)] for i, x in enumerate(first)
    ]
    used = np.full(products.shape, float(first[0].n))
    worst = max(x.max_error for x in first), max(y.max_error for y in second)
    max_error = sum(worst) + sum(worst) ** 2  # the square: what the norms lack
    if max_error > MAX_ERROR:
        raise MemoryBudgetError(
            f"Among {a.n_pairs} pairs, too many dissimilarities are so close to each other that "
            "they could not be ranked within memory_budget: the correlation could be off by "
            f"{max_error:.1g}. Raise it with fs.set_options(memory_budget='…').",
            max_error=max_error,
        )
    return Streamed(np.array(scores), _dropped(a, used), max_error)


def _one_by_one(a: Pairs, b: Pairs, plan: _Plan, normalise: Normalise) -> Streamed:
    shape = (len(a), len(b))
    scores, dropped, worst = np.full(shape, np.nan), np.zeros(shape, np.int64), 0.0
    for i, j in np.ndindex(shape):
        if a is b and j < i:
            scores[i, j], dropped[i, j] = scores[j, i], dropped[j, i]
            continue
        found = _ranked(a.take(slice(i, i + 1)), b.take(slice(j, j + 1)), plan, normalise)
        scores[i, j], dropped[i, j] = found.scores[0, 0], found.n_dropped[0, 0]
        worst = max(worst, found.max_error)
    return Streamed(scores, dropped, worst)


class _Ranking:
    """The rank tables of some RDMs: one each, or of one and another where both have a value."""

    def __init__(self, a: Pairs, b: Pairs, plan: _Plan) -> None:
        self._a, self._b, self._plan = a, b, plan
        self._jointly = len(a) == len(b) == 1
        self.first = [RankTable(a.dtype, plan.n_slots) for _ in range(len(a))]
        self.second = self.first
        if a is not b:
            self.second = [RankTable(b.dtype, plan.n_slots) for _ in range(len(b))]

    def build(self) -> bool:
        """Count until ranks are known; False if values lack and there are several RDMs."""
        tables = self.first if self._a is self._b else [*self.first, *self.second]
        counting = tables
        while counting:
            for left, right in self._strips():
                if left is None:
                    return False
                sides = left if self._a is self._b else [*left, *right]
                for table, values in zip(tables, sides, strict=True):
                    if table in counting:
                        table.count(values)
            counting = [table for table in counting if table.refine()]
        for table in tables:
            table.finish()
        return True

    def products(self) -> NDArray[np.float64]:
        """Return the inner products of the centred ranks."""
        out = np.zeros((len(self.first), len(self.second)))
        for left, right in self._strips():
            ranks = _centred_ranks(self.first, left)
            others = ranks if self._a is self._b else _centred_ranks(self.second, right)
            out += inner_products(ranks, others)
        return out

    def _strips(self) -> Iterator[tuple[Any, Any]]:
        """Read strips without NaN; None where that would leave out pairs that others have."""
        for left, right in _strips(self._a, self._b, self._plan):
            missing = np.isnan(left).any(axis=0)
            if right is not left:
                missing |= np.isnan(right).any(axis=0)
            if not missing.any():
                yield left, right
            elif self._jointly:
                yield left[:, ~missing], right[:, ~missing]
            else:
                yield None, None


def _centred_ranks(tables: list[RankTable], strips: NDArray[Any]) -> NDArray[np.float64]:
    return np.array(
        [
            table.ranks(values) - (table.n + 1) / 2
            for table, values in zip(tables, strips, strict=True)
        ]
    )


def _refused(a: Pairs, measure: Measure, allowed: int) -> MemoryBudgetError:
    needed = 2 * a.n_pairs * np.dtype(np.float64).itemsize
    return MemoryBudgetError(
        f"{measure.title} looks at all pairs of pairs of {a.n_images} images, which must be sorted "
        f"in memory: {format_nbytes(needed)} and several times that while sorting, and "
        f"{format_nbytes(allowed)} are allowed. Use method='spearman' or 'rho-a', which are read "
        "in strips, compare fewer images, or raise it with fs.set_options(memory_budget='…').",
        projected_nbytes=needed,
        allowed_nbytes=allowed,
    )
