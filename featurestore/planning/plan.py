"""What is missing: requested minus committed, found without computing anything."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from featurestore.canonical import digest_of
from featurestore.errors import CorruptDataError, FeaturesMissingError
from featurestore.options import format_nbytes
from featurestore.storage.layout import make_layout

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from featurestore.images.imageset import ImageSet
    from featurestore.keys import FeatureSpec, Wanted
    from featurestore.planning.models import Model
    from featurestore.storage.catalog import Catalog
    from featurestore.storage.layout import ColumnLayout

UNIT_IMAGES = 1024  # images per unit of work


@dataclass(frozen=True, slots=True)
class Gap:
    """What one column lacks of the images asked for. Numbers are positions in the request."""

    wanted: Wanted
    compute: NDArray[np.intp]
    """Images that must go through the network, each content once, in the order asked for."""
    derive: NDArray[np.intp]
    """Images whose row can be derived from a stored full row."""

    @property
    def nbytes(self) -> int:
        """What the gap will take on disk, at most [bytes]."""
        wanted = self.wanted
        layout = make_layout(
            wanted.key,
            {},
            dtype=wanted.feature.dtype,
            dims=wanted.dims,
            shape=wanted.shape,
            compressed=False,
        )
        return layout.nbytes_on_disk(len(self.compute) + len(self.derive))


@dataclass(frozen=True, slots=True)
class Group:
    """Images that lack the same columns: one forward pass each serves all of these."""

    images: NDArray[np.intp]
    gaps: tuple[Gap, ...]


@dataclass(frozen=True, slots=True)
class Unit:
    """A piece of work that one process can do alone."""

    id: str
    """The same wherever and whenever the plan is made."""
    images: NDArray[np.intp]
    modules: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """What would have to be computed for a request; printing it shows the cost."""

    model: Model = field(repr=False)
    images: ImageSet = field(repr=False)
    gaps: tuple[Gap, ...] = field(repr=False)
    """One per column asked for, also where nothing is missing."""

    @property
    def n_images(self) -> int:
        """Images asked for, repeats included."""
        return len(self.images)

    @property
    def n_missing(self) -> int:
        """Images that must go through the network."""
        return len(self._union())

    @property
    def nbytes(self) -> int:
        """What the missing rows will take on disk, at most [bytes]."""
        return sum(gap.nbytes for gap in self.gaps)

    @property
    def columns(self) -> frozenset[str]:
        """Feature keys of all columns that are asked for, or that rows are derived from."""
        wanted = [gap.wanted for gap in self.gaps]
        return frozenset([w.key for w in wanted] + [w.full.key for w in wanted if w.full])

    @property
    def groups(self) -> tuple[Group, ...]:
        """Missing images by what they lack, so that a forward pass stops as early as it can."""
        lacks: dict[int, list[int]] = {}
        for number, gap in enumerate(self.gaps):
            for image in gap.compute.tolist():
                lacks.setdefault(image, []).append(number)
        together: dict[tuple[int, ...], list[int]] = {}
        for image in sorted(lacks):
            together.setdefault(tuple(lacks[image]), []).append(image)
        return tuple(
            Group(np.array(images, np.intp), tuple(self.gaps[n] for n in numbers))
            for numbers, images in together.items()
        )

    @property
    def units(self) -> tuple[Unit, ...]:
        """The work in pieces of at most `UNIT_IMAGES` images, with deterministic ids."""
        units = []
        digests = self.images.digests
        for group in self.groups:
            keys = [gap.wanted.key for gap in group.gaps]
            for start in range(0, len(group.images), UNIT_IMAGES):
                part = group.images[start : start + UNIT_IMAGES]
                identity = digest_of("unit", [sorted(keys), digests[part].tobytes().hex()])
                modules = tuple(gap.wanted.module for gap in group.gaps)
                units.append(Unit(identity, part, modules))
        return tuple(units)

    def _union(self) -> set[int]:
        return {image for gap in self.gaps for image in gap.compute.tolist()}

    def __repr__(self) -> str:
        record = self.model.record
        lines = [
            f"<featurestore.Plan: {self.n_missing} of {self.n_images} images to compute, "
            f"at most {format_nbytes(self.nbytes)} to store>",
            f"  model   {record.label} ({record.weights_label})",
        ]
        width = max((len(gap.wanted.module) for gap in self.gaps), default=0)
        for gap in self.gaps:
            sizes = ", ".join(
                f"{dim}: {n}" for dim, n in zip(gap.wanted.dims, gap.wanted.shape, strict=True)
            )
            derived = f", {len(gap.derive)} derived" if len(gap.derive) else ""
            lines.append(
                f"  module  {gap.wanted.module:<{width}}  ({sizes})  {len(gap.compute)} missing"
                f"{derived}, {format_nbytes(gap.nbytes)}"
            )
        return "\n".join(lines)


def make_plan(catalog: Catalog, model: Model, wanted: Sequence[Wanted], images: ImageSet) -> Plan:
    """Compare what is asked for with what is there.

    Parameters
    ----------
    catalog : Catalog
        The store.
    model : Model
        The model.
    wanted : sequence of Wanted
        The columns.
    images : ImageSet
        The images.

    Returns
    -------
    Plan
        Nothing was computed or written.
    """
    first = images.unique()
    return Plan(model, images, tuple(_gap(catalog, column, images, first) for column in wanted))


def _gap(catalog: Catalog, wanted: Wanted, images: ImageSet, first: NDArray[np.intp]) -> Gap:
    column = catalog.column(wanted.key)
    require_layout(column.layout, wanted.feature, wanted.dims, wanted.shape)
    missing = first[column.lookup(images.digests[first]) < 0]
    full = wanted.full
    derivable = np.zeros(len(missing), bool)
    if full is not None and len(missing):
        column = catalog.column(full.key)
        require_layout(column.layout, full, wanted.full_dims, wanted.full_shape)
        derivable = column.lookup(images.digests[missing]) >= 0
    return Gap(wanted, missing[~derivable], missing[derivable])


def require_layout(
    layout: ColumnLayout | None, feature: FeatureSpec, dims: Sequence[str], shape: Sequence[int]
) -> None:
    """Raise if a column is laid out for other rows than its model gives.

    Parameters
    ----------
    layout : ColumnLayout or None
        The column's; ``None`` if it has never held a row.
    feature : FeatureSpec
        What is wanted.
    dims, shape : sequence
        Names and sizes of the axes of one row, as the model's record has them.

    Raises
    ------
    CorruptDataError
        If they differ: one of the two documents is not what was written.
    """
    if layout is None:
        return
    found = (layout.dtype, layout.dims, layout.shape, dict(layout.feature))
    if found != (feature.dtype, tuple(dims), tuple(shape), feature.to_json()):
        raise CorruptDataError(
            f"The column {layout.key} holds {layout.dtype} rows ({', '.join(layout.dims)}) of "
            f"shape {layout.shape}, and its model gives {feature.dtype} ({', '.join(dims)}) of "
            f"{tuple(shape)}: its layout, or the model's record, is not what was written. No value "
            "was returned. Use a new store, or a copy from before it was changed.",
            path=f"layouts/{layout.key}.json",
            images=[],
        )


def require_complete(plan: Plan, where: str) -> None:
    """Raise unless nothing has to go through a network.

    Parameters
    ----------
    plan : Plan
        What is missing.
    where : str
        The store, for the message.

    Raises
    ------
    FeaturesMissingError
        Naming the images that are missing.
    """
    for gap in plan.gaps:
        if len(gap.compute):
            names = tuple(plan.images.names[n] for n in gap.compute)
            shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if names[5:] else "")
            raise FeaturesMissingError(
                f"{where} lacks {gap.wanted.module} of {plan.model.record.label} for "
                f"{len(names)} of {plan.n_images} images: {shown}. It was opened with mode='r', so "
                "nothing is computed; open it with mode='a' to compute them.",
                missing=names,
                module=gap.wanted.module,
            )
