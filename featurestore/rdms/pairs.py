"""From features to the view of all pairs: kept tiles where rows are in a store, else in memory."""

from __future__ import annotations

from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from featurestore.arrays.lazy import rows_behind
from featurestore.errors import DiskSpaceError, InvalidInputError, MemoryBudgetError
from featurestore.options import format_nbytes, get_options
from featurestore.planning.budget import DISK_RESERVE_NBYTES
from featurestore.rdms.fill import MemoryFolder, fill, find_cover
from featurestore.rdms.kernel import RESERVE
from featurestore.rdms.sides import Sides
from featurestore.rdms.source import ArraySource, StoredSource
from featurestore.rdms.view import PairView
from featurestore.storage.grams import GramFolder, gram_key
from featurestore.storage.presence import free_nbytes

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.arrays.lazy import StoredRows
    from featurestore.rdms.fill import Cover, Folder
    from featurestore.rdms.kernel import PassPlan
    from featurestore.rdms.source import Source

N_NAMED = 5


@dataclass(frozen=True)
class StoredPairs:
    """Finds the tiles of rows in a store, computing and keeping what is missing."""

    rows: StoredRows
    device: str = "cpu"
    progress: bool | None = None

    def __call__(self, gone: tuple[int, int] | None = None) -> Cover:
        """Find them.

        Parameters
        ----------
        gone : (int, int), optional
            Blocks of a tile that could not be read.

        Returns
        -------
        Cover
            In the store; in memory if it is read-only and lacks some.
        """
        column, digests = self.rows.column, self.rows.digests
        folder = GramFolder(column.blobs, gram_key(column.key))
        if gone is not None and column.writable:
            folder.discard_damaged()
        if gone is None or column.writable:
            cover = find_cover(folder, digests)
            if cover is not None:
                return cover
        return self._fill(folder if column.writable else MemoryFolder())

    def sides(self) -> Sides:
        """Return the side vectors of the rows, as they were written with them.

        Returns
        -------
        Sides
            In the order of the request; no tile is read for them.
        """
        source = StoredSource(self.rows)
        return Sides.of(source.statistics(np.arange(len(self.rows.digests))), source.n_features)

    def _fill(self, folder: Folder) -> Cover:
        rows = self.rows
        names = dict(zip(map(bytes, rows.digests), rows.names, strict=True))

        def source_of(digests: NDArray[np.uint8]) -> Source:
            # Rows of a block that were asked for by others have no name here.
            named = tuple(names.get(bytes(d), bytes(d).hex()) for d in digests)
            return StoredSource(replace(rows, digests=digests, names=named))

        def has_rows(digests: NDArray[np.uint8]) -> bool:
            return bool((rows.column.lookup(digests, refresh=False) >= 0).all())

        place = getattr(rows.column.blobs, "root", None)
        return _fill(
            folder, rows.digests, source_of, has_rows, self.device, self.progress, place=place
        )


@dataclass(frozen=True)
class ArrayPairs:
    """Finds the tiles of rows of any array: computed once, and held in memory."""

    features: xr.DataArray
    dim: str
    device: str = "cpu"
    progress: bool | None = None

    def __call__(self, _gone: tuple[int, int] | None = None) -> Cover:
        """Compute them.

        Returns
        -------
        Cover
            In memory.
        """
        source = ArraySource(self.features, self.dim)
        # Rows of an array are known by their places; nothing of this outlives the process.
        places = np.zeros((source.n_rows, 2), ">u8")
        places[:, 1] = np.arange(len(places))
        digests = places.view(np.uint8).reshape(-1, 16)

        def source_of(_digests: NDArray[np.uint8]) -> Source:
            return source  # all rows, in their order: nothing was there before

        return _fill(
            MemoryFolder(), digests, source_of, lambda _d: True, self.device, self.progress
        )

    def sides(self) -> None:
        """Return nothing: the tiles, which are in memory, have them."""


def _fill(
    folder: Folder,
    digests: NDArray[np.uint8],
    source_of: Any,
    has_rows: Any,
    device: str,
    progress: bool | None,
    *,
    place: Any = None,
) -> Cover:
    budget = get_options().memory_budget
    shown = get_options().progress if progress is None else progress
    with ExitStack() as stack:
        hidden = None if shown is None else not shown  # None: unless stderr is a terminal
        bar = stack.enter_context(tqdm(disable=hidden, unit="B", unit_scale=True, desc="distances"))

        def on_plan(plan: PassPlan) -> None:
            if isinstance(folder, MemoryFolder):
                _require_memory(plan, len(digests), budget)
            elif isinstance(place, Path):
                _require_disk_space(plan, place)
            bar.reset(plan.nbytes)

        return fill(
            folder,
            digests,
            source_of,
            has_rows=has_rows,
            budget=budget,
            device=device,
            on_plan=on_plan,
            on_block=bar.update,
        )


def _require_memory(plan: PassPlan, n: int, budget: int) -> None:
    """Refuse what has nowhere to be kept and does not fit: tiles, and a matrix made from them."""
    needed = max(plan.memory_nbytes, plan.tiles_nbytes + 4 * n * n + RESERVE)
    if len(plan.passes) > 1:
        needed = max(needed, budget + 1)
    if needed > budget:
        raise MemoryBudgetError(
            f"All pairs of {n} rows need about {format_nbytes(needed)} in memory, and "
            f"memory_budget is {format_nbytes(budget)}. Ask a store that may be written, "
            "store.rdm(model, module, images): it keeps what does not fit on the disk. Or raise "
            "the budget, fs.set_options(memory_budget='…').",
            projected_nbytes=needed,
            allowed_nbytes=budget,
        )


def _require_disk_space(plan: PassPlan, root: Path) -> None:
    free = free_nbytes(root)
    if free is not None and plan.tiles_nbytes + DISK_RESERVE_NBYTES > free:
        raise DiskSpaceError(
            f"These distances take {format_nbytes(plan.tiles_nbytes)}, {format_nbytes(free)} is "
            f"free under {root}, and {format_nbytes(DISK_RESERVE_NBYTES)} are to stay free. "
            "Nothing was computed. Free some space, or ask for fewer images.",
            projected_nbytes=plan.tiles_nbytes,
            free_nbytes=free,
        )


def view_of(
    features: xr.DataArray,
    dim: str,
    metric: str,
    *,
    device: str = "auto",
    progress: bool | None = None,
    dtype: type[np.floating[Any]] = np.float32,
) -> PairView:
    """Return the view of all pairs of rows of an array. Nothing is computed yet.

    Parameters
    ----------
    features : DataArray (dim, ...)
        Features: what a store answered with, or any real numbers with names.
    dim : str
        What a row is.
    metric : str
        One of `featurestore.rdms.tile.BASE_METRICS`.
    device : str
        As `featurestore.rdms.engine.open_engine` takes it.
    progress : bool, optional
        Whether to show a progress bar; where stderr is a terminal if not given.
    dtype : type
        Of what is read from the view.

    Returns
    -------
    PairView
        Untouched features of a store are known by their content: their tiles are kept there.
    """
    behind = rows_behind(features) if features.dims and features.dims[0] == dim else None
    n_features = int(np.prod([n for d, n in features.sizes.items() if d != dim], dtype=np.int64))
    if behind is None:
        return PairView(
            ArrayPairs(features, dim, device, progress), n_features, metric, dtype=dtype
        )
    rows, images = behind
    names = tuple(str(name) for name in features[dim].values)
    chosen = replace(rows, digests=rows.digests[images], names=names)
    return PairView(StoredPairs(chosen, device, progress), n_features, metric, dtype=dtype)


def require_rows(features: Any, dim: str) -> None:
    """Refuse what has no rows with names of their own.

    Parameters
    ----------
    features : DataArray (dim, ...)
        Features.
    dim : str
        What a row is.

    Raises
    ------
    InvalidInputError
        If it is no DataArray, has no such dim or no names on it, or names repeat.
    """
    if isinstance(features, dict):
        raise InvalidInputError(
            "A dict has several arrays. Take one of them, or ask the store for all of them at "
            "once: store.rdm(model, modules, images)."
        )
    if not all(hasattr(features, name) for name in ("dims", "coords", "ndim")):
        raise InvalidInputError(
            f"A {type(features).__name__} has no names. Give a DataArray with names on "
            f"{dim!r}: xr.DataArray(values, dims=({dim!r}, 'feature'), coords={{{dim!r}: names}})."
        )
    if dim not in features.dims and dim in features.coords:
        raise InvalidInputError(
            f"The features are of one {dim} only. Select with a list to keep the dim: "
            f"features.isel({dim}=[0])."
        )
    if dim not in features.dims:
        raise InvalidInputError(
            f"The features have the dims {tuple(features.dims)}, and {dim!r} is none of them. "
            f"Say what a row is: dim={str(next(iter(features.dims), 'image'))!r}.",
            dims=tuple(features.dims),
        )
    if features.ndim < 2 or 0 in features.shape:
        raise InvalidInputError(
            f"Features of shape {features.shape} have no distances: there must be {dim}s, and "
            "at least one value of each."
        )
    if dim not in features.coords:
        raise InvalidInputError(
            f"The features have no names on {dim!r}. Give them: "
            f"features.assign_coords({dim}=names)."
        )
    require_unique(features[dim].values.tolist(), dim)


def require_unique(names: Sequence[Any], dim: str) -> None:
    """Refuse names that repeat.

    Parameters
    ----------
    names : sequence
        Of the rows.
    dim : str
        What a row is.

    Raises
    ------
    InvalidInputError
        If one is there more than once.
    """
    repeated = [name for name, n in Counter(names).items() if n > 1][:N_NAMED]
    if repeated:
        raise InvalidInputError(
            f"Some {dim}s are there more than once, such as {', '.join(map(repr, repeated))}, and "
            f"an RDM needs each once. Average over trials: features.groupby({dim!r}).mean().",
            repeated=tuple(repeated),
        )
