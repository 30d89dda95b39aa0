"""What permutation tests and the bootstrap share: two sides lined up, and what is drawn.

Images are put in the order of their labels first, so that a seed draws the same images whatever
order the RDMs had.
"""

from __future__ import annotations

import warnings
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import FeatureStoreWarning, InvalidInputError, MemoryBudgetError
from featurestore.options import format_nbytes, get_options
from featurestore.rdms.structure import extra_dims
from featurestore.rsa.align import align, pair_dims, shared_dims
from featurestore.rsa.compare import compare_rdms
from featurestore.rsa.measures import require_method
from featurestore.rsa.pairs import Pairs

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.rsa.align import Alignment
    from featurestore.rsa.measures import Measure, Vectors


@dataclass(frozen=True, slots=True)
class Sides:
    """Two sets of RDMs of the same images in the same order, and how they are compared."""

    score: xr.DataArray
    """What `compare_rdms` says."""
    measure: Measure
    dim: str
    """What is compared, as the first RDM calls it."""
    a: Pairs
    b: Pairs
    at: tuple[NDArray[np.intp], NDArray[np.intp]]
    """Which RDM of each side belongs to each score, in the shape of the scores."""

    @property
    def n_images(self) -> int:
        """How many images are compared."""
        return self.a.n_images

    def compared(self) -> list[tuple[int, int]]:
        """List which RDM of the first is compared with which of the second.

        Returns
        -------
        list of tuple of two int
            Each once.
        """
        pairs = zip(self.at[0].ravel().tolist(), self.at[1].ravel().tolist(), strict=True)
        return sorted(set(pairs))

    def arranged(self, values: Vectors) -> Vectors:
        """Put results of all RDMs with all others where their scores are.

        Parameters
        ----------
        values : ndarray of shape (d, k, l)
            Results.

        Returns
        -------
        ndarray of shape (d, …)
            The last dims are those of the scores.
        """
        return np.asarray(values[:, self.at[0], self.at[1]])


def line_up(
    a: xr.DataArray,
    b: xr.DataArray,
    *,
    method: str,
    join: str,
    dims: tuple[str, str] | None,
    by: str | None,
) -> Sides:
    """Compare RDMs, and prepare to compare them many times.

    Parameters
    ----------
    a, b : DataArray (…, image, image_2)
        The RDMs.
    method : str
        How they are compared.
    join, dims, by : object
        As for `compare_rdms`.

    Returns
    -------
    Sides
        Their scores; dissimilarities are read again later.

    Raises
    ------
    InvalidInputError, LabelMismatchError, MemoryBudgetError
        As `compare_rdms` does.
    """
    measure = require_method(method)
    pair = pair_dims(a, b, dims)
    score = compare_rdms(a, b, method=method, join=join, dims=dims, by=by)
    with warnings.catch_warnings():  # it has just been said
        warnings.simplefilter("ignore", FeatureStoreWarning)
        alignment = align(a, b, pair, join=join, by=by)
    first, second = _by_label(a, by or pair[0], alignment, b.sizes[pair[1]])
    return Sides(
        score,
        measure,
        pair[0],
        Pairs(_each(a), first, "The first RDM"),
        Pairs(_each(b), second, "The second RDM"),
        _places(a, b, score.dims),
    )


def require_whole(name: str, value: object, least: int) -> None:
    """Refuse what is no whole number, or too small.

    Parameters
    ----------
    name : str
        The argument.
    value : object
        What was given.
    least : int
        The smallest that makes sense.

    Raises
    ------
    InvalidInputError
        If it is neither.
    """
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise InvalidInputError(f"{name}={value!r} must be a whole number from {least} on.")


def require_once(array: xr.DataArray, dim: str) -> None:
    """Refuse a subject that is there twice, for example with two sessions.

    Parameters
    ----------
    array : DataArray (…, subject, …)
        RDMs or scores.
    dim : str
        The dim of the subjects.

    Raises
    ------
    InvalidInputError
        If one is (`repeated`).
    """
    labels = array[dim].values.tolist()
    counts = Counter(labels)
    repeated = [label for label, count in counts.items() if count > 1]
    if repeated:
        raise InvalidInputError(
            f"{dim} {repeated[0]!r} is there {counts[repeated[0]]} times, so what belongs to one "
            f"{dim} would pass for several. Average first: rdms.groupby({dim!r}).mean().",
            repeated=repeated,
        )


def require_memory(nbytes: int, what: str, instead: str) -> None:
    """Refuse work that would not fit in memory.

    Parameters
    ----------
    nbytes : int
        What it takes [bytes].
    what : str
        What takes it.
    instead : str
        What to do.

    Raises
    ------
    MemoryBudgetError
        If it is more than `memory_budget`.
    """
    budget = get_options().memory_budget
    if nbytes > budget:
        raise MemoryBudgetError(
            f"{what} takes {format_nbytes(nbytes)}, and memory_budget is {format_nbytes(budget)}. "
            f"{instead}, or raise it with fs.set_options(memory_budget='…').",
            projected_nbytes=nbytes,
            allowed_nbytes=budget,
        )


def _by_label(
    a: xr.DataArray, name: str, alignment: Alignment, n_second: int
) -> tuple[NDArray[np.intp] | None, NDArray[np.intp] | None]:
    """Return positions in both RDMs, in the order of the labels; None: all, as they are."""
    labels = a[name].values
    first = np.arange(len(labels)) if alignment.first is None else alignment.first
    second = np.arange(n_second) if alignment.second is None else alignment.second
    chosen = [(type(label).__name__, label) for label in labels[first].tolist()]
    order = np.array(sorted(range(len(chosen)), key=chosen.__getitem__), dtype=np.intp)
    return _unless_all(first[order], len(labels)), _unless_all(second[order], n_second)


def _unless_all(positions: NDArray[np.intp], n: int) -> NDArray[np.intp] | None:
    return None if np.array_equal(positions, np.arange(n)) else positions


def _each(rdm: xr.DataArray) -> tuple[xr.Variable, ...]:
    """Return the RDMs one by one, leading dims in their order."""
    extra = extra_dims(rdm)
    places = np.ndindex(*(rdm.sizes[dim] for dim in extra))
    return tuple(rdm.variable[place] for place in places)


def _places(
    a: xr.DataArray, b: xr.DataArray, dims: tuple[Any, ...]
) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Return the number of the RDM of each side, in the shape of the scores."""
    numbers = [
        xr.DataArray(
            np.arange(np.prod(rdm.shape[:-2], dtype=int)).reshape(rdm.shape[:-2]),
            dims=extra_dims(rdm),
        )
        for rdm in (a, b)
    ]
    same = {dim: second for dim, (_, second) in shared_dims(a, b).items()}
    left, right = xr.broadcast(numbers[0], numbers[1].isel(same))
    return left.transpose(*dims).values, right.transpose(*dims).values
