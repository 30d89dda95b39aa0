from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from featurestore.storage.blob import LocalBlobs
from featurestore.storage.column import Column

KEY = "ab" * 16
RUN = "0123456789abcdef" * 2


def digests_of(n: int, seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).integers(1, 256, (n, 16), dtype=np.uint8)


def rows_of(n: int, shape: tuple[int, ...], seed: int = 0) -> np.ndarray[Any, Any]:
    return np.random.default_rng(seed).normal(size=(n, *shape)).astype(np.float32)


def append(column: Column, digests: Any, rows: Any, dtype: str = "float32") -> None:
    dims = ("channel", "y", "x")[-(rows.ndim - 1) :]
    feature: dict[str, str] = {"module": "test"}
    if len(rows) > 7:  # as a run does: rows come in batches
        slot = None
        for start in range(0, len(rows), 7):
            part, names = rows[start : start + 7], digests[start : start + 7]
            while len(part):
                slot = slot or column.new_slot(feature, dims, part, dtype)
                room = slot.room
                slot.add(names[:room], part[:room])
                part, names = part[room:], names[room:]
                if not slot.room:
                    column.publish(slot, RUN)
                    slot = None
        if slot:
            column.publish(slot, RUN)
    else:
        column.append(feature, dims, digests, rows, dtype=dtype, run=RUN)


@pytest.fixture
def blobs(tmp_path):
    return LocalBlobs(tmp_path / "s.fstore")


@pytest.fixture
def column(blobs):
    return Column(blobs, KEY, writable=True)
