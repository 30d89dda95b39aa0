"""Names on arrays: which image a row is, which axes a row has, where the numbers come from."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
from xarray.core import indexing

from featurestore.arrays.lazy import DASK_BACKED, RowsArray, StoredRows
from featurestore.canonical import digest_of
from featurestore.errors import MemoryBudgetError
from featurestore.optional import import_optional
from featurestore.options import format_nbytes, get_options

if TYPE_CHECKING:
    from featurestore.images.imageset import ImageSet
    from featurestore.keys import Wanted
    from featurestore.networks.spec import ModelRecord
    from featurestore.storage.catalog import Catalog

IMAGE = "image"


def labelled_array(
    catalog: Catalog,
    record: ModelRecord,
    wanted: Wanted,
    images: ImageSet,
) -> xr.DataArray:
    """Show stored rows as a labelled array. Reads no values.

    Parameters
    ----------
    catalog : Catalog
        The store.
    record : ModelRecord
        The model.
    wanted : Wanted
        The column, and how it is shown.
    images : ImageSet
        Which images, in this order.

    Returns
    -------
    DataArray (image, channel, y, x), (image, token, channel), (image, channel) or (image, feature)
        Lazy: values are read when they are touched. Above `lazy_threshold` it is dask-backed,
        chunked as the store is.
    """
    rows = StoredRows(
        column=catalog.column(wanted.key),
        shape=wanted.shape,
        dtype=wanted.feature.dtype,
        names=images.names,
        digests=images.digests,
        full=None if wanted.full is None else catalog.column(wanted.full.key),
        readout=wanted.feature.readout,
    )
    flatten = wanted.readout == "flatten"
    array = RowsArray(rows, flatten=flatten)
    nbytes = int(np.prod(array.shape)) * array.dtype.itemsize
    dims = (IMAGE, "feature") if flatten else (IMAGE, *wanted.dims)
    # As xarray wraps what open_dataset reads: values stay once read, and can be assigned to.
    xarrays: Any = indexing
    data = xarrays.MemoryCachedArray(xarrays.CopyOnWriteArray(xarrays.LazilyIndexedArray(array)))
    if nbytes > get_options().lazy_threshold:
        data = _dask_array(array, wanted, images)
    return xr.DataArray(
        xr.Variable(dims, data),
        coords=image_coords(images),
        name=wanted.module,
        attrs=provenance(record, wanted),
    )


def load_array(features: xr.DataArray) -> xr.DataArray:
    """Read all values now.

    Parameters
    ----------
    features : DataArray
        From `labelled_array`.

    Returns
    -------
    DataArray
        The same, in memory.

    Raises
    ------
    MemoryBudgetError
        If it exceeds `memory_budget`.
    CorruptDataError
        If rows are damaged.
    """
    budget = get_options().memory_budget
    if features.nbytes > budget:
        raise MemoryBudgetError(
            f"{features.name} of these images takes {format_nbytes(features.nbytes)}, and "
            f"memory_budget is {format_nbytes(budget)}. Leave load=True out and touch only what "
            "you need, or raise it with fs.set_options(memory_budget='…').",
            projected_nbytes=features.nbytes,
            allowed_nbytes=budget,
        )
    return features.load()


def image_coords(images: ImageSet) -> dict[str, Any]:
    """Return the coordinates of the ``image`` axis.

    Parameters
    ----------
    images : ImageSet
        The images.

    Returns
    -------
    dict
        Names, digests (hex) and every column of the image set.
    """
    coords: dict[str, Any] = {
        IMAGE: np.array(images.names, object),
        "digest": (IMAGE, np.array(images.hex_digests, object)),
    }
    return coords | {name: (IMAGE, np.asarray(values)) for name, values in images.coords.items()}


def provenance(record: ModelRecord, wanted: Wanted) -> dict[str, str]:
    """Return what a number depends on, as attributes of an array.

    Parameters
    ----------
    record : ModelRecord
        The model.
    wanted : Wanted
        The column.

    Returns
    -------
    dict of str
        Plain text only, so that every file format keeps it.
    """
    feature = wanted.feature
    return {
        "model": record.label,
        "weights": record.weights_label,
        "weights_digest": record.spec.weights,
        "model_key": record.key,
        "module": wanted.canonical,
        "readout": wanted.readout or "none",
        "precision": feature.precision,
        "preprocessing": json.dumps(record.spec.preprocessing, sort_keys=True),
        "input_shape": "x".join(str(n) for n in record.input_shape),
        "feature_key": feature.key,
    }


def _dask_array(array: RowsArray, wanted: Wanted, images: ImageSet) -> Any:
    dask_array = import_optional("dask.array", "all")
    layout = array._rows.column.layout
    rows = 256 if layout is None else layout.rows_per_slot
    chunks = (rows, *array.shape[1:])
    # Not only what the numbers are, but also where they are read, and whether more may be kept.
    column = array._rows.column
    place = [str(getattr(column.blobs, "root", "")), str(column.writable)]
    facts = [wanted.key, wanted.readout, images.digests.tobytes().hex(), *place]
    token = digest_of("array", facts)
    name = f"features-{token}"
    DASK_BACKED[name] = array
    return dask_array.from_array(
        array,
        chunks=chunks,
        name=name,
        # Dask must not look inside, nor copy: the array reads through its own threads.
        asarray=False,
        fancy=True,
        inline_array=True,
        meta=np.empty((0,) * len(array.shape), array.dtype),
    )
