"""Why a column is the one it is: what its key is made of, and how others in a store differ."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import CorruptDataError
from featurestore.images.read import take_images
from featurestore.keys import spell_tap, want
from featurestore.networks import registry
from featurestore.networks.network import is_network
from featurestore.networks.taps import Tap
from featurestore.planning.models import resolve
from featurestore.storage.provenance import computed_by

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from featurestore.images.imageset import ImageSet
    from featurestore.keys import Wanted
    from featurestore.networks.network import Network
    from featurestore.networks.spec import ModelRecord
    from featurestore.storage.catalog import Catalog
    from featurestore.storage.layout import ColumnLayout
    from featurestore.typing import Json, PathLike, Precision, Readout, StoredDtype

N_SHOWN = 5
N_DIGITS = 12
_TAP = ("module", "call", "path")
_MODEL = ("source", "architecture", "arguments", "structure", "weights", "preprocessing")


@dataclass(frozen=True, slots=True)
class Difference:
    """One part of a key that a stored column does not share with what was asked for."""

    part: str
    """Such as ``"weights"``, ``"arguments.num_classes"``, ``"preprocessing.transform.crop_size"``
    or ``"dtype"``."""
    stored: Json
    asked: Json

    def __str__(self) -> str:
        return f"{self.part}: {_short(self.stored)} → {_short(self.asked)}"


@dataclass(frozen=True, slots=True)
class NearColumn:
    """A stored column of the same model or module, and what sets it apart."""

    key: str
    model: str
    weights: str
    module: str
    n_images: int
    differences: tuple[Difference, ...]
    """From the stored column to what was asked for; never empty."""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """A run that computed some of the rows."""

    id: str
    n_rows: int
    """How many of the rows looked at are from this run."""
    facts: Mapping[str, Json]
    """When it started, device, batch size, threads and versions, by dotted name; empty if its
    record is lost."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a request's key is made of, and how it relates to what a store holds. Prints itself."""

    model: str
    weights: str
    module: str
    key: str
    """The feature key."""
    parts: Mapping[str, Json]
    """Everything that the key is made of, by name."""
    exists: bool
    """Whether the store has rows under this key."""
    n_images: int | None
    """How many images were asked about, repeats counted once; ``None``: none were named."""
    n_rows: int
    """How many of these have a row; of all images if none were named."""
    runs: tuple[RunInfo, ...]
    """Who computed these rows, oldest first."""
    run_differences: Mapping[str, Sequence[Json]]
    """Facts in which the runs differ, to their distinct values; when they started left out."""
    differences: tuple[NearColumn, ...] = field(default=())
    """Other columns of the same model's name or the same module's, nearest first."""

    def to_json(self) -> dict[str, Any]:
        """Return the facts for programs.

        Returns
        -------
        dict
            JSON-able.
        """
        return asdict(self)

    def __repr__(self) -> str:
        counted = "" if self.n_images is None else f" of {self.n_images}"
        rows = f"{self.n_rows}{counted} images have a row" if self.exists else "not in this store"
        lines = [f"<featurestore.Explanation: {self.model} {self.module}, {rows}>"]
        lines.append(f"  {'key':<14} {self.key}")
        for name, value in self.parts.items():
            shown = f"{self.weights} ({_short(value)})" if name == "weights" else _short(value)
            lines.append(f"  {name:<14} {shown}")
        lines += self._lines_of_runs()
        for near in self.differences[:N_SHOWN]:
            lines.append(
                f"near: {near.model} ({near.weights}) {near.module}, {near.n_images} images"
            )
            lines += [f"  {difference}" for difference in near.differences]
        if len(self.differences) > N_SHOWN:
            lines.append(f"… and {len(self.differences) - N_SHOWN} more columns")
        return "\n".join(_plain(line) for line in lines)

    def _lines_of_runs(self) -> list[str]:
        lines = []
        for run in self.runs:
            facts = [f"{run.n_rows} rows", str(run.facts.get("started", "record lost"))]
            facts += [
                f"{name.removeprefix('environment.')} {_short(value)}"
                for name, value in run.facts.items()
                if name != "started"
            ]
            lines.append(f"run {run.id[:N_DIGITS]}: {', '.join(facts)}")
        for name, values in self.run_differences.items():
            lines.append(f"  runs differ in {name}: {' | '.join(_short(v) for v in values)}")
        return lines


def explain(
    catalog: Catalog,
    model: str | Network,
    module: str,
    images: ImageSet | PathLike | Sequence[Any] | Any = None,
    *,
    weights: PathLike | None = "DEFAULT",
    seed: int = 0,
    preprocess: Any = None,
    readout: Readout | None = None,
    precision: Precision = "fp32",
    dtype: StoredDtype = "float32",
) -> Explanation:
    """Say what a request's key is made of and how it relates to what a store holds.

    Nothing is computed or written. A model that the store was never asked about is loaded and
    probed, because its identity is what has to be explained; for others no network is needed.

    Parameters
    ----------
    catalog : Catalog
        The store.
    model : str or Network
        As for `FeatureStore.get`.
    module : str
        As for `FeatureStore.get`.
    images : ImageSet, path, list or array, optional
        Which rows to look at; by default all that the column has.
    weights, seed, preprocess, readout, precision, dtype : object
        As for `FeatureStore.get`.

    Returns
    -------
    Explanation
        Print it; its attributes are for programs.

    Raises
    ------
    FeatureStoreError
        As for `FeatureStore.plan`.
    """
    record = _find_record(catalog, model, weights=weights, seed=seed, preprocess=preprocess)
    wanted = want(record, module, readout=readout, precision=precision, dtype=dtype)
    image_set = None if images is None else take_images(images)[0]
    n_images, n_rows, runs = _held(catalog, wanted.key, image_set)
    return Explanation(
        model=record.label,
        weights=record.weights_label,
        module=wanted.canonical,
        key=wanted.key,
        parts=_parts(record, wanted.feature.to_json()),
        exists=catalog.column(wanted.key).n_rows() > 0,
        n_images=n_images,
        n_rows=n_rows,
        runs=runs,
        run_differences=_run_differences(runs),
        differences=tuple(_near(catalog, record, wanted)),
    )


def _find_record(catalog: Catalog, model: Any, **given: Any) -> ModelRecord:
    if isinstance(model, str):
        request = registry.request(model, **given)
        key = catalog.alias(request)
        record = None if key is None else catalog.model(key)
        if record is not None:
            return record
        network = registry.load(request)
    else:
        if (
            not is_network(model)
            or given["preprocess"] is not None
            or given["weights"] != "DEFAULT"
        ):
            resolve(catalog, model, **given)  # raises, and says why
        network = model
    network.require_unchanged()
    return catalog.model(network.spec.key) or network.record


def _held(
    catalog: Catalog, key: str, images: ImageSet | None
) -> tuple[int | None, int, tuple[RunInfo, ...]]:
    """Return how many images there are, how many have a row, and from which runs."""
    column = catalog.column(key)
    layout = column.layout
    runs: list[RunInfo] = []
    n_images = None if images is None else len(images.unique())
    if layout is None:
        return n_images, 0, ()
    if images is None:
        column.n_rows()  # looks at what was published meanwhile
        digests = np.unique(column.index.live_rows()[0], axis=0)
    else:
        digests = images.digests[images.unique()]
    rows = column.lookup(digests)
    rows = rows[rows >= 0]
    if len(rows):
        counts = Counter(computed_by(catalog, column, np.sort(rows)))
        runs = [RunInfo(run, n, _run_facts(catalog, run)) for run, n in counts.items()]
    runs.sort(key=lambda run: str(run.facts.get("started", "")))  # of one second: by their rows
    return n_images, len(rows), tuple(runs)


def _run_facts(catalog: Catalog, run: str) -> dict[str, Json]:
    try:
        document = catalog.run(run) if run else None
    except CorruptDataError:
        document = None
    facts = dict(_flat(document or {}))
    return {name: facts[name] for name in facts if name not in ("format", "run", "model")}


def _run_differences(runs: Sequence[RunInfo]) -> dict[str, list[Json]]:
    known = [run.facts for run in runs if run.facts]
    found: dict[str, list[Json]] = {}
    for name in dict.fromkeys(name for facts in known for name in facts):
        values: list[Json] = []
        for facts in known:
            if facts.get(name) not in values:
                values.append(facts.get(name))
        if len(values) > 1 and name != "started":
            found[name] = values
    return found


def _near(catalog: Catalog, record: ModelRecord, wanted: Wanted) -> list[NearColumn]:
    asked = _parts(record, wanted.feature.to_json())
    found = []
    for layout in catalog.layouts():
        if layout.key == wanted.key:
            continue
        other = _record_of(catalog, layout)
        tap = Tap(str(layout.feature["module"]), *_call_and_path(layout))
        same = tap.module == wanted.feature.tap.module
        if not same and (other is None or other.label != record.label):
            continue
        n_images = catalog.column(layout.key).n_rows()
        if not n_images:
            continue
        found.append(
            NearColumn(
                key=layout.key,
                model=other.label if other else str(layout.feature["model"]),
                weights=other.weights_label if other else "?",
                module=spell_tap(other, tap) if other else str(tap),
                n_images=n_images,
                differences=tuple(
                    _differences(other, record, _parts(other, layout.feature), asked)
                ),
            )
        )
    return sorted(found, key=_distance)


def _record_of(catalog: Catalog, layout: ColumnLayout) -> ModelRecord | None:
    try:
        return catalog.model(str(layout.feature["model"]))
    except CorruptDataError:
        return None  # its columns are compared by the rest


def _call_and_path(layout: ColumnLayout) -> tuple[int, tuple[str | int, ...]]:
    feature: Any = layout.feature
    return int(feature["call"]), tuple(feature["path"])


def _distance(near: NearColumn) -> tuple[Any, ...]:
    """Order columns: another module is another question, a changed setting is the likely reason."""
    parts = {difference.part.partition(".")[0] for difference in near.differences}
    return bool(parts & {*_TAP}), len(parts), len(near.differences), near.model, near.key


def _parts(record: ModelRecord | None, feature: Mapping[str, Json]) -> dict[str, Json]:
    model = {"model": feature["model"]} if record is None else record.spec.to_json()
    return {**model, **{name: feature[name] for name in feature if name != "model"}}


def _differences(
    other: ModelRecord | None,
    record: ModelRecord,
    stored: Mapping[str, Json],
    asked: Mapping[str, Json],
) -> Iterator[Difference]:
    if other is None:
        yield Difference("model", stored["model"], record.key)
        stored = {**{name: asked[name] for name in _MODEL}, **stored}
    for name, wanted in asked.items():
        if stored[name] == wanted:
            continue
        if name == "weights" and other is not None:
            # Two files may have one name, and one network two.
            yield Difference(
                name,
                f"{other.weights_label} ({_short(stored[name])})",
                f"{record.weights_label} ({_short(wanted)})",
            )
        elif name == "path":
            yield Difference(name, stored[name], wanted)
        else:
            yield from _field_differences(name, stored[name], wanted)


def _field_differences(name: str, stored: Json, asked: Json) -> Iterator[Difference]:
    old, new = dict(_flat(stored, name)), dict(_flat(asked, name))
    for part in dict.fromkeys([*old, *new]):
        if part not in old or part not in new or old[part] != new[part]:
            yield Difference(part, old.get(part), new.get(part))


def _flat(value: Json, name: str = "") -> Iterator[tuple[str, Json]]:
    """Yield the leaves of nested dicts by dotted name; lists are leaves."""
    if isinstance(value, dict) and (value or not name):
        for inner in value:
            yield from _flat(value[inner], f"{name}.{inner}" if name else str(inner))
    else:
        yield name, value


def _short(value: Json) -> str:
    if isinstance(value, str):
        digest = len(value) == 32 and all(letter in "0123456789abcdef" for letter in value)
        return value[:N_DIGITS] if digest else value
    return "none" if value is None else json.dumps(value, ensure_ascii=False)


def _plain(line: str) -> str:
    # Names come from the store, and must not steer a terminal.
    return line if line.isprintable() else repr(line)[1:-1]
