"""Taking columns away: one that is named, or as many as a size limit asks for."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from featurestore.errors import DiskSpaceError, InvalidInputError, NotFoundError, did_you_mean
from featurestore.keys import spell_tap
from featurestore.networks.taps import Tap
from featurestore.options import format_nbytes
from featurestore.storage.grams import GramFolder, gram_key, gram_keys
from featurestore.storage.sweep import drop_rows, droppable, sweep_tombstones
from featurestore.storage.tags import list_tags, tagged_digests
from featurestore.upkeep.reports import DropReport
from featurestore.upkeep.requests import named_models

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from featurestore.networks.spec import ModelRecord
    from featurestore.storage.catalog import Catalog
    from featurestore.storage.layout import ColumnLayout


@dataclass(frozen=True, slots=True)
class StoredColumn:
    """One column, as it is chosen for taking away."""

    key: str
    """The feature key."""
    model: str
    weights: str
    module: str
    nbytes: int
    """On disk [bytes]."""
    can_be_redone: bool
    """Whether a name leads to its model: a user's own network may not be at hand again."""
    cost: float
    """What it costs to compute one stored byte again [FLOP per byte]; infinite if not known."""

    @classmethod
    def of(cls, catalog: Catalog, layout: ColumnLayout, named: Collection[str]) -> StoredColumn:
        """Describe a column.

        Parameters
        ----------
        catalog : Catalog
            The store.
        layout : ColumnLayout
            The column.
        named : collection of str
            Keys of the models that a name leads to.

        Returns
        -------
        StoredColumn
            Its description.
        """
        feature: Any = layout.feature
        record = catalog.model(str(feature["model"]))
        tap = Tap(str(feature["module"]), int(feature["call"]), tuple(feature["path"]))
        return cls(
            key=layout.key,
            model=record.label if record else str(feature["model"]),
            weights=record.weights_label if record else "?",
            module=spell_tap(record, tap) if record else str(tap),
            nbytes=catalog.column(layout.key).nbytes(),
            can_be_redone=record is not None and record.key in named,
            cost=_cost(record, tap, layout),
        )

    def __str__(self) -> str:
        return f"{self.model} ({self.weights}) {self.module}"


def _cost(record: ModelRecord | None, tap: Tap, layout: ColumnLayout) -> float:
    module = None if record is None else record.module(tap.module)
    flops = 0 if module is None else module.flops_until
    return flops / layout.row_nbytes if flops else math.inf


def stored_columns(catalog: Catalog) -> list[StoredColumn]:
    """List the columns that take space, cheapest to recompute first.

    Parameters
    ----------
    catalog : Catalog
        The store.

    Returns
    -------
    list of StoredColumn
        Columns of users' own networks and files come last.
    """
    named = named_models(catalog)
    columns = (StoredColumn.of(catalog, layout, named) for layout in catalog.layouts())
    held = [column for column in columns if column.nbytes]
    return sorted(held, key=lambda c: (not c.can_be_redone, c.cost, c.model, c.module, c.key))


def find_columns(
    catalog: Catalog, model: str, module: str | None, weights: str | None
) -> list[StoredColumn]:
    """Find the columns that a user means.

    Parameters
    ----------
    catalog : Catalog
        The store.
    model : str
        As `store.ls()` shows it, or a feature key.
    module : str, optional
        All modules if not given.
    weights : str, optional
        As `store.ls()` shows them; needed where the model was kept with several.

    Returns
    -------
    list of StoredColumn
        One or more.

    Raises
    ------
    NotFoundError
        If there are none; near misses are suggested.
    InvalidInputError
        If the model is there with several weights, and none were said.
    """
    held = stored_columns(catalog)
    by_key = [column for column in held if column.key == model]
    if by_key:
        return by_key
    of_model = [c for c in held if c.model == model and weights in (None, c.weights)]
    if not of_model:
        names = sorted({c.model for c in held})
        kept = sorted({c.weights for c in held if c.model == model})
        raise NotFoundError(
            f"{catalog} holds nothing of {model!r}"
            + (f" with weights {weights!r}; it has {', '.join(kept)}." if kept else ".")
            + did_you_mean(model, names)
            + " store.ls() lists what it holds.",
            model=model,
            choices=kept or names,
        )
    found = [c for c in of_model if module in (None, c.module)]
    if not found:
        names = sorted({c.module for c in of_model})
        raise NotFoundError(
            f"{catalog} holds nothing of {model} {module!r}.{did_you_mean(str(module), names)} "
            f"It has {', '.join(names)}.",
            model=model,
            module=module,
            choices=names,
        )
    kinds = sorted({c.weights for c in found})
    if len(kinds) > 1:
        raise InvalidInputError(
            f"{model} is there with several weights: {', '.join(kinds)}. Say which to drop: "
            "weights='…'.",
            choices=kinds,
        )
    return found


def drop_columns(catalog: Catalog, columns: Iterable[StoredColumn]) -> DropReport:
    """Take columns away, unless a tag protects rows of them.

    Parameters
    ----------
    catalog : Catalog
        The store, writable.
    columns : iterable of StoredColumn
        Which ones.

    Returns
    -------
    DropReport
        What was taken away.

    Raises
    ------
    InvalidInputError
        If a tag protects a row; nothing was taken away.
    """
    wanted = list(columns)
    keys = {column.key for column in wanted}
    tags = [tag.name for tag in list_tags(catalog) if any(f.column in keys for f in tag.rows)]
    if tags:
        raise InvalidInputError(
            f"Rows of {', '.join(map(str, wanted[:3]))} are frozen by the tags "
            f"{', '.join(map(repr, tags))}, so nothing was dropped. Remove a tag first if its "
            "data may go: store.tag(name, remove=True).",
            tags=tags,
        )
    catalog.require_writable("what is dropped")
    nbytes = 0
    for column in wanted:
        nbytes += drop_rows(catalog.column(column.key)).nbytes
        nbytes += GramFolder(catalog.blobs, gram_key(column.key)).remove()
    return DropReport(tuple(map(str, wanted)), nbytes, 0)


def make_room(
    catalog: Catalog, limit: int, needed: int = 0, keep: Collection[str] = ()
) -> DropReport:
    """Take columns away until a store fits, cheapest to recompute first.

    Rows that a tag protects stay, with the slots that they share.

    Parameters
    ----------
    catalog : Catalog
        The store, writable.
    limit : int
        What all columns may take [bytes].
    needed : int
        What is about to be written besides [bytes].
    keep : collection of str
        Feature keys of columns that must stay.

    Returns
    -------
    DropReport
        What was taken away.

    Raises
    ------
    DiskSpaceError
        If it cannot fit; nothing but distances was taken away.
    """
    held = stored_columns(catalog)
    grams = [GramFolder(catalog.blobs, key) for key in gram_keys(catalog.blobs)]
    total = sum(column.nbytes for column in held)
    if total + sum(folder.nbytes() for folder in grams) + needed <= limit:
        return DropReport((), 0, 0)
    catalog.require_writable("what is evicted")
    # Distances first: they follow from what is kept, without a network.
    nbytes = sum(folder.remove() for folder in grams)
    nbytes += sum(sweep_tombstones(catalog.column(column.key)).nbytes for column in held)
    held = stored_columns(catalog)  # what was compacted costs nothing to lose
    total = sum(column.nbytes for column in held)
    protected = tagged_digests(catalog)
    free = [column for column in held if column.key not in keep]
    spare = [sum(droppable(catalog.column(c.key), protected.get(c.key, ())).values()) for c in free]
    if total + needed - sum(spare) > limit:
        raise _cannot_fit(catalog, limit, needed, total - sum(spare), list(protected))
    evicted, n_kept = [], 0
    for column, n in zip(free, spare, strict=True):
        if total + needed <= limit:
            break
        if n:
            stored = catalog.column(column.key)
            nbytes += drop_rows(stored, protected.get(column.key, ())).nbytes
            total -= n
            n_kept += stored.n_rows()
            evicted.append(str(column))
    return DropReport(tuple(evicted), nbytes, n_kept)


def _cannot_fit(
    catalog: Catalog, limit: int, needed: int, bound: int, tagged: Collection[str]
) -> DiskSpaceError:
    asked = f"What is asked for needs up to {format_nbytes(needed)}, and " if needed else ""
    tags = " or frozen by tags" if tagged else ""
    return DiskSpaceError(
        f"{catalog} is to take at most {format_nbytes(limit)}. {asked}{format_nbytes(bound)} of it "
        f"cannot go, because it is in use{tags}. Nothing was computed or evicted. Raise the limit "
        "(the option store_limit, or to_fit), remove a tag, or ask for fewer modules at once.",
        projected_nbytes=needed + bound,
        free_nbytes=max(0, limit - bound),
    )
