"""A random sample of rows, extracted again and compared with what is stored."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import FeatureStoreError
from featurestore.extraction.run import Settings, extract
from featurestore.keys import spell_tap, want
from featurestore.networks.taps import Tap
from featurestore.options import set_options
from featurestore.planning.models import resolve_request
from featurestore.planning.plan import make_plan
from featurestore.storage.catalog import open_catalog
from featurestore.storage.provenance import computed_by
from featurestore.storage.reader import DamagedRowsError
from featurestore.upkeep.reports import Drift
from featurestore.upkeep.requests import named_models

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.images.imageset import ImageSet
    from featurestore.keys import Wanted
    from featurestore.networks.spec import ModelRecord, ModelRequest
    from featurestore.storage.catalog import Catalog
    from featurestore.storage.layout import ColumnLayout
    from featurestore.upkeep.reports import VerifyReport

FACTS = ("device", "batch_size", "n_threads")


def redo_sample(catalog: Catalog, images: ImageSet, n: int, report: VerifyReport) -> None:
    """Extract random rows of every column again, in a store of their own.

    Parameters
    ----------
    catalog : Catalog
        The store; nothing is written to it.
    images : ImageSet
        With pictures that can be read.
    n : int
        How many rows of each column, at most.
    report : VerifyReport
        Gets the drift of each column, or why it could not be extracted.
    """
    requests = named_models(catalog)
    generator = np.random.default_rng()
    for layout in catalog.layouts():
        feature: Any = layout.feature
        record = catalog.model(str(feature["model"]))
        if record is None or not catalog.column(layout.key).n_rows():
            continue
        tap = Tap(str(feature["module"]), int(feature["call"]), tuple(feature["path"]))
        name = f"{record.label} {spell_tap(record, tap)}"
        held = _held(catalog, layout, images)
        if not len(held):
            report.not_redone[name] = "none of these images has a row"
            continue
        chosen = np.sort(generator.choice(held, min(n, len(held)), replace=False))
        try:
            drift = _redo(catalog, layout, record, tap, requests, images[chosen])
        except (FeatureStoreError, DamagedRowsError) as err:
            report.not_redone[name] = str(err) or "its rows are damaged"
        else:
            report.drift.append(drift)


def _held(catalog: Catalog, layout: ColumnLayout, images: ImageSet) -> NDArray[np.intp]:
    first = images.unique()
    return first[catalog.column(layout.key).lookup(images.digests[first]) >= 0]


def _redo(
    catalog: Catalog,
    layout: ColumnLayout,
    record: ModelRecord,
    tap: Tap,
    requests: dict[str, ModelRequest],
    images: ImageSet,
) -> Drift:
    request = requests.get(record.key)
    if request is None:
        raise FeatureStoreError(
            "no name leads to this network: it is a user's own, or came from a file"
        )
    feature: Any = layout.feature
    column = catalog.column(layout.key)
    rows = column.lookup(images.digests)
    stored = column.read(rows)
    run = catalog.run(computed_by(catalog, column, rows[:1])[0]) or {}
    with tempfile.TemporaryDirectory(prefix="featurestore-") as folder:
        scratch = open_catalog(folder, "a")
        model = resolve_request(scratch, request)
        if model.key != record.key:
            raise FeatureStoreError(
                f"what {request.label} with weights {request.weights!r} means here is another "
                "network"
            )
        wanted = want(
            model.record,
            str(tap),
            readout=feature["readout"],
            precision=feature["precision"],
            dtype=feature["dtype"],
        )
        plan = make_plan(scratch, model, [wanted], images)
        n_threads = {"n_threads": run["n_threads"]} if run.get("n_threads") else {}
        with set_options(**n_threads):
            extract(scratch, plan, Settings(batch_size=run.get("batch_size")))
        again, now = _read(scratch, wanted, images)
    return _compare(record, layout, wanted, stored, again, run, now)


def _read(scratch: Catalog, wanted: Wanted, images: ImageSet) -> tuple[NDArray[Any], Any]:
    column = scratch.column(wanted.key)
    rows = column.lookup(images.digests)
    if (rows < 0).any():
        raise FeatureStoreError("some pictures cannot be read any more")
    return column.read(rows), scratch.run(computed_by(scratch, column, rows[:1])[0])


def _compare(
    record: ModelRecord,
    layout: ColumnLayout,
    wanted: Wanted,
    stored: NDArray[Any],
    again: NDArray[Any],
    then: dict[str, Any],
    now: dict[str, Any],
) -> Drift:
    a = stored.reshape(len(stored), -1)
    b = again.reshape(len(again), -1)
    equal = (a.view(np.uint8) == b.view(np.uint8)).all(axis=1)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore", over="ignore"):
        difference = np.where(same, 0.0, np.abs(a.astype(np.float64) - b.astype(np.float64)))
        difference[~np.isfinite(difference)] = np.inf
        largest = np.abs(np.where(np.isfinite(a), a, 0)).max(axis=1).astype(np.float64)
        relative = np.where(difference.any(axis=1), difference.max(axis=1) / largest, 0.0)
    return Drift(
        model=record.label,
        module=spell_tap(record, wanted.feature.tap),
        column=layout.key,
        n_rows=len(a),
        n_equal=int(equal.sum()),
        max_abs=float(difference.max(initial=0.0)),
        max_rel=float(relative.max(initial=0.0)),
        then=_facts(then),
        now=_facts(now),
    )


def _facts(run: dict[str, Any]) -> dict[str, Any]:
    return {name: run.get(name) for name in FACTS} | dict(run.get("environment") or {})
