"""Average ranks of more values than can be sorted: counts by radix, in passes over the data.

The bits of a float, read as an integer, sort as the float does. A first pass counts values by
their top 16 bits, a second by all bits of those buckets that hold any: in float32 that tells
every value from every other, so ranks are exact, ties included. Where the memory does not allow
that, or in float64, neighbours share a slot, as if they were tied; slots are dealt out by how many
values a bucket holds, crowded ones are split again in further passes, and how much the result can
be off is known.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

TOP_BITS = 16
MAX_NODE_BITS = 16  # slots of one bucket, so that work goes in small parts
MAX_SPREAD = 6  # where not all bits fit: slots per value, as a power of two, at most
WANTED_ERROR = 1e-5  # further passes are made until the bound is below
PART = 2**16  # slots that are worked on at once
CROWD = 1024  # values in a slot; more are as bad
STRIP = 2**18  # values that are counted at once
SLOT_NBYTES = 8
SLOTS_PER_VALUE = 4  # more would take more memory than sorting
MIN_SLOTS = 2**20  # fewer would be too coarse for values that lie in clusters


def sortable(values: NDArray[Any]) -> NDArray[Any]:
    """Map floats to unsigned integers of the same order.

    Parameters
    ----------
    values : ndarray of shape (m,), float32 or float64
        Without NaN.

    Returns
    -------
    ndarray of shape (m,), uint32 or uint64
        Equal where the values are, -0.0 and 0.0 included.
    """
    values = values + values.dtype.type(0)  # makes 0.0 of -0.0
    bits = values.dtype.itemsize * 8
    unsigned, signed = np.dtype(f"u{bits // 8}"), np.dtype(f"i{bits // 8}")
    top = unsigned.type(1 << (bits - 1))
    # Negative numbers: all bits turned; others: the sign bit.
    turned = (values.view(signed) >> signed.type(bits - 1)).view(unsigned) | top
    return np.asarray(values.view(unsigned) ^ turned)


@dataclass(slots=True)
class _Level:
    """Buckets that are split at one depth, in the order of their values."""

    base: NDArray[np.int64]
    """First slot of each bucket, and the end."""
    mask: NDArray[Any]
    """Bits that the levels above have not used."""
    shift: NDArray[Any]
    """Bits that this level does not use either; 0: one slot per value."""
    start: NDArray[np.int64]
    """How many values are smaller than all in the bucket."""
    inside: NDArray[np.int64]
    """How many values are in the bucket."""
    slots: NDArray[np.int64]
    """Values per slot; in the end average ranks, as float64. Below 0: split further down, by
    bucket -1 - value there."""

    def slot_of(self, keys: NDArray[Any], bucket: NDArray[np.int64]) -> NDArray[np.int64]:
        """Find the slots of values whose buckets are known."""
        low = keys & self.mask[bucket]
        low >>= self.shift[bucket]
        slot = self.base[bucket]
        slot += low.astype(np.int64)
        return slot

    def parts(self) -> list[slice]:
        """Divide the buckets into runs that have not many slots."""
        edges = [0]
        n = len(self.base) - 1
        while edges[-1] < n:
            end = int(np.searchsorted(self.base, self.base[edges[-1]] + PART, side="right")) - 1
            edges.append(min(n, max(end, edges[-1] + 1)))
        return [slice(low, high) for low, high in pairwise(edges)]


class RankTable:
    """Average ranks of values that are seen strip by strip, several times over.

    Call `count` with all values, `refine`, and both again until `refine` returns False; then
    `finish`, and `ranks` as often as needed.

    Parameters
    ----------
    dtype : dtype
        float32 or float64.
    max_slots : int
        How many slots of 8 bytes there may be; no fewer than `MIN_SLOTS` are allowed for.
    """

    def __init__(self, dtype: Any, max_slots: int) -> None:
        self._dtype = np.dtype(dtype)
        self._bits = self._dtype.itemsize * 8
        self._room = max(max_slots, MIN_SLOTS)
        self._top = np.zeros(2**TOP_BITS, dtype=np.int64)
        self._levels: list[_Level] = []
        self._unresolved = 0.0
        self.n = 0
        """Values."""
        self.norm = 0.0
        """Sum of the squares of the centred ranks, once finished."""
        self.max_error = 1.0
        """How far a rank correlation can be off because values share a slot; 0: none do.

        Ranks are a sum of the slots' means and of what varies within slots. The root of the
        latter's part of the variance bounds its covariance with anything (Cauchy–Schwarz).
        """

    def count(self, values: NDArray[Any]) -> None:
        """Count values by the newest buckets.

        Parameters
        ----------
        values : ndarray of shape (s,), float32 or float64
            Some of the values, without NaN; each once per pass, in any order.
        """
        keys = sortable(np.asarray(values, dtype=self._dtype))
        bucket = self._bucket_of(keys)
        if not self._levels:
            self._top += np.bincount(bucket, minlength=2**TOP_BITS)
            self.n += len(keys)
            return
        for level in self._levels[:-1]:
            found = level.slots[level.slot_of(keys, bucket)]
            below = np.flatnonzero(found < 0)
            keys, bucket = keys[below], -1 - found[below]
        slot = self._levels[-1].slot_of(keys, bucket)
        slot.sort()  # one pass over the slots instead of random access
        np.add.at(self._levels[-1].slots, slot, np.int64(1))

    def refine(self) -> bool:
        """Split the buckets further where that is needed and possible.

        Returns
        -------
        bool
            Whether all values are to be counted once more.
        """
        if not self._levels:
            start = np.cumsum(self._top) - self._top
            rest = np.full(len(self._top), self._bits - TOP_BITS)
            return self._open(self._top, rest, start)
        self.max_error = self._bound()
        return self.max_error > WANTED_ERROR and self._split_crowded()

    @property
    def tells_all(self) -> bool:
        """Whether each slot stands for one value, whatever the values are."""
        return all(not level.shift[level.inside > 1].any() for level in self._levels)

    def _bound(self) -> float:
        if self.tells_all or self.n < 2:
            return 0.0
        self._unresolved = sum(_within_slots(level) for level in self._levels)
        return float(np.sqrt(self._unresolved / (float(self.n) ** 3 - self.n)))

    def finish(self) -> None:
        """Turn counts into average ranks."""
        mean = (self.n + 1) / 2
        for depth, level in enumerate(self._levels):
            below = self._levels[depth + 1] if depth + 1 < len(self._levels) else None
            for part in level.parts():
                self.norm += _to_ranks(level, below, part, mean)
        within = self._unresolved / 12
        if within:
            self.max_error = float(np.sqrt(within / (self.norm + within)))

    def ranks(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Return the average ranks of values, counted from 1.

        Parameters
        ----------
        values : ndarray of shape (s,), float32 or float64
            Values that were counted.

        Returns
        -------
        ndarray of shape (s,), float64
            Their ranks.
        """
        keys = sortable(np.asarray(values, dtype=self._dtype))
        bucket = self._bucket_of(keys)
        out = np.empty(len(keys))
        where: Any = slice(None)
        for level in self._levels:
            found = level.slots.view(np.float64)[level.slot_of(keys, bucket)]
            out[where] = found
            below = np.flatnonzero(found < 0)
            if not len(below):
                break
            where = below if isinstance(where, slice) else where[below]
            keys, bucket = keys[below], (-1 - found[below]).astype(np.int64)
        return out

    def _bucket_of(self, keys: NDArray[Any]) -> NDArray[np.int64]:
        top = keys >> keys.dtype.type(self._bits - TOP_BITS)
        return np.asarray(top, dtype=np.int64)

    def _open(
        self, inside: NDArray[np.int64], rest: NDArray[Any], start: NDArray[np.int64]
    ) -> bool:
        """Add a level of buckets with so many values and unused bits; False if none has room."""
        bits = _bits_within(inside, rest, self._room, fewest=1 if self._levels else 0)
        if bits is None:
            return False
        sizes = np.where(inside > 0, 2**bits, 0)
        base = np.concatenate([[0], np.cumsum(sizes)])
        self._room -= int(base[-1])
        unsigned = np.dtype(f"u{self._bits // 8}")
        self._levels.append(
            _Level(
                base=base,
                mask=((np.uint64(1) << rest.astype(np.uint64)) - np.uint64(1)).astype(unsigned),
                shift=(rest - bits).astype(unsigned),
                start=start,
                inside=inside.copy(),
                slots=np.zeros(int(base[-1]), dtype=np.int64),
            )
        )
        return True

    def _split_crowded(self) -> bool:
        """Open a level for the slots that hold most of what is not told apart."""
        last = self._levels[-1]
        slots = _crowded(last, self._room // 8)  # so that each can be split into a few
        if not len(slots):
            return False
        inside = last.slots[slots]
        bucket = np.searchsorted(last.base, slots, side="right") - 1
        if not self._open(inside, last.shift[bucket].astype(np.int64), np.zeros_like(inside)):
            return False
        last.slots[slots] = -1 - np.arange(len(slots))
        return True


def _bits_within(
    inside: NDArray[np.int64], rest: NDArray[Any], room: int, fewest: int
) -> NDArray[np.int64] | None:
    """Choose how many bits each bucket is split by, so that all slots find room."""
    some = inside > 1  # one value needs no telling apart
    ceiling = np.where(some, np.minimum(rest, MAX_NODE_BITS), 0).astype(np.int64)
    n_single = int((inside == 1).sum())
    if (ceiling == rest)[some].all() and np.exp2(ceiling[some]).sum() + n_single <= room:
        return ceiling
    own = np.ceil(np.log2(np.maximum(inside, 1))).astype(np.int64)
    for spread in range(MAX_SPREAD, -TOP_BITS - 1, -1):
        bits = np.clip(own + spread, np.minimum(fewest, ceiling), ceiling)
        # Half of the room stays for what turns out to be crowded.
        if np.exp2(bits[some]).sum() + n_single <= room // 2:
            return bits
    return None


def exact_ranks(values: NDArray[Any]) -> NDArray[np.float64] | None:
    """Rank very many values without sorting them, where that can be done exactly.

    Parameters
    ----------
    values : ndarray of shape (m,), float32 or float64
        Without NaN.

    Returns
    -------
    ndarray of shape (m,), float64
        Average ranks, counted from 1; none if some values are no float32, or differ so widely
        that the counts would take much more memory than the values.
    """
    with np.errstate(over="ignore"):
        narrow = values.astype(np.float32)
    if not np.array_equal(narrow, values):
        return None
    table = RankTable(np.float32, SLOTS_PER_VALUE * len(values))
    parts = [slice(low, low + STRIP) for low in range(0, len(values), STRIP)]
    while True:
        for part in parts:
            table.count(narrow[part])
        again = table.refine()
        if not table.tells_all:
            return None
        if not again:
            break
    table.finish()
    out = np.empty(len(values))
    for part in parts:
        out[part] = table.ranks(narrow[part])
    return out


def _shared(level: _Level) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Yield, part by part, the first slot and the counts, 0 where values are told apart."""
    for part in level.parts():
        if level.shift[part].any():
            low, high = level.base[part.start], level.base[part.stop]
            shift = np.repeat(level.shift[part], np.diff(level.base[part.start : part.stop + 1]))
            yield int(low), np.where(shift > 0, np.maximum(level.slots[low:high], 0), 0)


def _within_slots(level: _Level) -> float:
    """Return the sum of c³ − c over slots that several distinct values may share."""
    total = 0.0
    for _, counts in _shared(level):
        some = counts[counts > 1].astype(np.float64)
        total += float((some**3 - some).sum())
    return total


def _crowded(level: _Level, limit: int) -> NDArray[np.int64]:
    """Return the most crowded of the slots that values may share, in order."""
    sizes = np.zeros(CROWD + 1, dtype=np.int64)
    for _, counts in _shared(level):
        sizes += np.bincount(np.minimum(counts, CROWD), minlength=CROWD + 1)
    at_least = np.cumsum(sizes[::-1])[::-1]
    fits = np.flatnonzero(at_least <= limit)
    threshold = max(2, int(fits[0])) if len(fits) else CROWD
    found = [low + np.flatnonzero(counts >= threshold) for low, counts in _shared(level)]
    slots = np.concatenate([np.empty(0, np.int64), *found])
    if len(slots) > limit:
        order = np.argsort(-level.slots[slots], kind="stable")
        slots = np.sort(slots[order[:limit]])
    return slots


def _to_ranks(level: _Level, below: _Level | None, part: slice, mean: float) -> float:
    """Write average ranks over the counts of some buckets; return their sum of centred squares."""
    low, high = level.base[part.start], level.base[part.stop]
    counts = level.slots[low:high].copy()
    split = np.flatnonzero(counts < 0)
    there = -1 - counts[split]
    if below is not None:
        counts[split] = below.inside[there]
    before = np.cumsum(counts) - counts
    sizes = np.diff(level.base[part.start : part.stop + 1])
    used = sizes > 0
    first = (level.base[part] - low)[used]
    before += np.repeat(level.start[part][used] - before[first], sizes[used])
    ranks = before + (counts + 1) / 2
    if below is not None:
        below.start[there] = before[split]
    counts[split] = 0
    norm = float((counts * (ranks - mean) ** 2).sum())
    ranks[split] = -1.0 - there
    level.slots.view(np.float64)[low:high] = ranks
    return norm
