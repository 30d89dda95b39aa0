"""Who computed which row, through compactions."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

from featurestore.errors import CorruptDataError
from featurestore.storage.slots import NO_RUN

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from featurestore.storage.catalog import Catalog
    from featurestore.storage.column import Column


def computed_by(catalog: Catalog, column: Column, rows: NDArray[np.int64]) -> list[str]:
    """Find out which run computed each of some rows, through compactions.

    Parameters
    ----------
    catalog : Catalog
        The store.
    column : Column
        With a layout.
    rows : ndarray of shape (n,), int64
        Row numbers.

    Returns
    -------
    list of str
        Run ids; zeros where that was lost.
    """
    layout = column.index.layout
    documents: dict[str, Any] = {}
    found = []
    for row in rows.tolist():
        slot, position = divmod(row, layout.rows_per_slot)
        companion = column.companion(slot)
        run = NO_RUN if companion is None else companion.run
        if run not in documents:
            documents[run] = {}
            with contextlib.suppress(CorruptDataError):  # then only who computed it is lost
                documents[run] = catalog.run(run) or {}
        for part in documents[run].get("compacted", ()):
            if position < part["n_rows"]:
                run = str(part["run"])
                break
            position -= part["n_rows"]
        found.append(run)
    return found
