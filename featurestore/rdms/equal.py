"""Rows that are equal: once they are known to be, they cost no more than others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.rdms.source import feature_blocks

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from featurestore.rdms.sides import Sides
    from featurestore.rdms.source import Source


def first_equal(
    source: Source,
    rows: NDArray[np.intp],
    sides: Sides,
    used: NDArray[np.intp],
    *,
    max_values: int,
    on_block: Callable[[int], object],
) -> NDArray[np.intp]:
    """Find rows that are equal to an earlier one.

    Costs one reading of the rows whose mean and sum of squares are those of another.

    Parameters
    ----------
    source : Source
        Where the rows are.
    rows : ndarray of shape (n,), intp
        Which rows.
    sides : Sides
        Of these rows.
    used : ndarray of shape (m,), intp
        Positions among the rows that matter.
    max_values : int
        Values of a row that are held at once.
    on_block : callable
        Told after each block how many bytes were read for it.

    Returns
    -------
    ndarray of shape (n,), intp
        Position of the first row that each is equal to: its own, if there is none.
    """
    first = np.arange(len(rows))
    facts = np.stack([sides.mean[used], sides.sumsq[used]], axis=1)
    _, begin, group = np.unique(facts, axis=0, return_index=True, return_inverse=True)
    earlier = used[begin[group.ravel()]]
    alike = earlier != used
    if not alike.any():
        return first
    those, earlier = used[alike], earlier[alike]
    read = np.unique(np.concatenate([those, earlier]))
    at, at_earlier = np.searchsorted(read, those), np.searchsorted(read, earlier)
    equal = np.ones(len(those), bool)
    for block in feature_blocks(source.shape, source.chunks, max_values):
        values = source.read(rows[read], block)
        for n in np.flatnonzero(equal):
            equal[n] = np.array_equal(values[at[n]], values[at_earlier[n]])
        on_block(values.nbytes)
        if not equal.any():
            break
    first[those[equal]] = earlier[equal]
    return first
