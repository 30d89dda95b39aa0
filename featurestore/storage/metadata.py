"""The ``zarr.json`` files of a column, derived from its layout: what plain Zarr readers see."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from featurestore.storage import records
from featurestore.storage.layout import (
    ACTIVATIONS,
    IMAGE,
    N_ROW_STATS,
    N_RUN_FIELDS,
    ROW_STATS,
    RUN,
)
from featurestore.typing import DIGEST_NBYTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.storage.layout import ColumnLayout

ZSTD_LEVEL = -1  # on ReLU outputs 8 % larger than level 1, a third faster to write and to read


def activations_metadata(layout: ColumnLayout, n_slots: int) -> dict[str, Any]:
    """Return the Zarr v3 metadata of a column's activations.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    n_slots : int
        Length in slots.

    Returns
    -------
    dict
        The content of ``zarr.json``.
    """
    codecs: list[dict[str, Any]] = [_codec("bytes", endian="little")]
    if layout.compressed:
        codecs.append(_codec("zstd", level=ZSTD_LEVEL, checksum=False))
    sharding = _codec(
        "sharding_indexed",
        chunk_shape=[layout.chunk_rows, *layout.chunk_shape],
        codecs=[*codecs, {"name": "crc32c"}],
        index_codecs=[_codec("bytes", endian="little"), {"name": "crc32c"}],
        index_location="end",
    )
    shape = (n_slots * layout.rows_per_slot, *layout.shape)
    return _array(shape, layout.shard_shape, layout.dtype, [sharding], ("row", *layout.dims), 0.0)


def group_metadata(layout: ColumnLayout, n_slots: int) -> dict[str, dict[str, Any]]:
    """Return every ``zarr.json`` of a column, the group's own last.

    Parameters
    ----------
    layout : ColumnLayout
        The column.
    n_slots : int
        Length in slots: advisory, it only has to be the same in all of them.

    Returns
    -------
    dict
        Folder within the column (``""`` for the group) to metadata, in the order to write them.
    """
    n_rows, per_slot = n_slots * layout.rows_per_slot, layout.rows_per_slot
    plain = [_codec("bytes", endian="little"), {"name": "crc32c"}]
    arrays = {
        ACTIVATIONS: activations_metadata(layout, n_slots),
        ROW_STATS: _array(
            (n_rows, N_ROW_STATS), (per_slot, N_ROW_STATS), "float64", plain, ("row", "stat"), 0.0
        ),
        RUN: _array((n_slots, N_RUN_FIELDS), (1, N_RUN_FIELDS), "uint64", plain, ("slot", "fact")),
        IMAGE: _array(
            (n_rows, DIGEST_NBYTES), (per_slot, DIGEST_NBYTES), "uint8", plain, ("row", "byte")
        ),
    }
    group = {
        "zarr_format": 3,
        "node_type": "group",
        # A second copy of the layout, with its checksum: slots cannot be read without it.
        "attributes": {"featurestore": records.with_checksum(layout.to_json())},
        "consolidated_metadata": {
            "kind": "inline",
            "must_understand": False,
            "metadata": dict(arrays),
        },
    }
    return {**arrays, "": group}


def spell_metadata(metadata: Mapping[str, Any]) -> bytes:
    """Write Zarr metadata as it is stored.

    Parameters
    ----------
    metadata : mapping
        The content of ``zarr.json``.

    Returns
    -------
    bytes
        Indented JSON.
    """
    return json.dumps(metadata, indent=1).encode("utf-8")


def _codec(name: str, **configuration: Any) -> dict[str, Any]:
    return {"name": name, "configuration": configuration}


def _array(
    shape: Sequence[int],
    chunk: Sequence[int],
    dtype: str,
    codecs: list[dict[str, Any]],
    dims: Sequence[str],
    fill_value: float = 0,
) -> dict[str, Any]:
    return {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype,
        "chunk_grid": _codec("regular", chunk_shape=list(chunk)),
        "chunk_key_encoding": _codec("default", separator="."),
        "fill_value": fill_value,
        "codecs": codecs,
        "dimension_names": list(dims),
        "attributes": {},
    }
