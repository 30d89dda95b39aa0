"""Whether work fits in memory and on disk, decided before the first forward pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from featurestore.errors import DiskSpaceError, MemoryBudgetError
from featurestore.options import format_nbytes, get_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.keys import Wanted
    from featurestore.planning.plan import Plan
    from featurestore.storage.catalog import Catalog

DISK_RESERVE_NBYTES = 64 * 2**20  # key records, companions and other people


@dataclass(frozen=True, slots=True)
class MemoryShares:
    """How `memory_budget` is divided while extracting [bytes]."""

    batch: int
    """One batch: its input and the outputs of all modules asked for."""
    queue: int
    """Outputs on their way to the writer, at most."""
    buffers: int
    """Rows waiting for their slot to fill, at most; beyond it the fullest is published early."""


def divide_memory(
    columns: Sequence[Wanted], input_shape: Sequence[int], batch_size: int
) -> MemoryShares:
    """Divide the memory budget, or refuse.

    Parameters
    ----------
    columns : sequence of Wanted
        The columns to be filled at once.
    input_shape : sequence of int
        Shape of one preprocessed image.
    batch_size : int
        Images per forward pass.

    Returns
    -------
    MemoryShares
        Their sum is within the budget. The network's own memory is not counted.

    Raises
    ------
    MemoryBudgetError
        If two batches do not fit.
    """
    budget = get_options().memory_budget
    per_image = 4 * int(np.prod(input_shape)) + sum(
        4 * int(np.prod(column.full_shape)) for column in columns
    )
    batch = batch_size * per_image
    # One batch is computed while another is written, and a slot is encoded beside its rows.
    if 4 * batch > budget:
        fits = max(1, budget // (4 * per_image))
        raise MemoryBudgetError(
            f"A batch of {batch_size} images needs {format_nbytes(4 * batch)} for "
            f"{len(columns)} modules, and memory_budget is {format_nbytes(budget)}. "
            f"Ask for batch_size={fits} or fewer, for fewer modules at once, or raise it with "
            "fs.set_options(memory_budget='…').",
            projected_nbytes=4 * batch,
            allowed_nbytes=budget,
            batch_size=fits,
        )
    return MemoryShares(batch=batch, queue=max(batch, budget // 4), buffers=budget // 4)


def require_disk_space(catalog: Catalog, plan: Plan) -> None:
    """Refuse work that cannot fit on the disk.

    Parameters
    ----------
    catalog : Catalog
        The store.
    plan : Plan
        What would be written.

    Raises
    ------
    DiskSpaceError
        If the rows, uncompressed, exceed what is free.
    """
    free = catalog.free_nbytes()
    if free is not None and plan.nbytes + DISK_RESERVE_NBYTES > free:
        raise DiskSpaceError(
            f"This would write up to {format_nbytes(plan.nbytes)}, {format_nbytes(free)} is free "
            f"under {catalog}, and {format_nbytes(DISK_RESERVE_NBYTES)} are to stay free. Nothing "
            "was computed. Free some space, put the store on "
            "another disk, or keep less: dtype='float16' halves it, readout='avgpool' keeps one "
            "value per channel.",
            projected_nbytes=plan.nbytes,
            free_nbytes=free,
        )
