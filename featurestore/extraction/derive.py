"""Readouts from stored full rows: computed on the host, without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING

from featurestore.planning.plan import make_plan
from featurestore.readouts import apply_readout
from featurestore.storage.reader import DamagedRowsError

if TYPE_CHECKING:
    from featurestore.extraction.interrupts import Interrupts
    from featurestore.keys import FeatureSpec
    from featurestore.planning.plan import Gap, Plan
    from featurestore.storage.catalog import Catalog

READ_NBYTES = 64 * 2**20  # full rows held at once


def derive(catalog: Catalog, plan: Plan, stop: Interrupts) -> tuple[Plan, int]:
    """Keep every row that can be derived from a stored one.

    Parameters
    ----------
    catalog : Catalog
        The store.
    plan : Plan
        What is missing.
    stop : Interrupts
        Asked between pieces of work.

    Returns
    -------
    Plan
        What has to go through the network: more than was planned if full rows turned out to be
        damaged, or were taken away meanwhile.
    int
        How many rows were derived.
    """
    n_derived = 0
    while True:
        try:
            for gap in plan.gaps:
                n_derived += _derive(catalog, plan, gap, stop)
        except DamagedRowsError:
            # What was damaged is a miss from now on, so there is less to derive in each round.
            plan = make_plan(catalog, plan.model, [gap.wanted for gap in plan.gaps], plan.images)
        else:
            return plan, n_derived


def _derive(catalog: Catalog, plan: Plan, gap: Gap, stop: Interrupts) -> int:
    full = gap.wanted.full
    if full is None or not len(gap.derive):
        return 0
    source, target = catalog.column(full.key), catalog.column(gap.wanted.key)
    step = max(1, READ_NBYTES // source.index.layout.row_nbytes)
    for start in range(0, len(gap.derive), step):
        stop.check()
        digests = plan.images.digests[gap.derive[start : start + step]]
        rows = source.lookup(digests, refresh=False)
        target.append(
            gap.wanted.feature.to_json(),
            gap.wanted.dims,
            digests,
            apply_readout(gap.wanted.feature.readout, source.read(rows, None, digests)),
            dtype=gap.wanted.feature.dtype,
            run=_derivation_run(catalog, full),
        )
    return len(gap.derive)


def _derivation_run(catalog: Catalog, full: FeatureSpec) -> str:
    return catalog.create_run({"model": full.model, "derived_from": full.key})
