"""Principal components of a column, kept as a column that is derived from it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr
import xxhash

from featurestore.arrays.lazy import rows_behind
from featurestore.canonical import digest_of
from featurestore.errors import InvalidInputError
from featurestore.rdms.derived import derived_attrs
from featurestore.rdms.gram import gram
from featurestore.rdms.pca import pca_of
from featurestore.storage.reader import DamagedRowsError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.rdms.gram import Gram
    from featurestore.storage.catalog import Catalog


def kept_components(
    catalog: Catalog, features: xr.DataArray, n_components: int | float | None, device: str
) -> xr.Dataset:
    """Return principal components, from the store or computed and kept there.

    Parameters
    ----------
    catalog : Catalog
        The store.
    features : DataArray (image, ...)
        As a store answered with them.
    n_components : int, float or None
        As for `featurestore.pca`.
    device : str
        As for `featurestore.rdm`.

    Returns
    -------
    Dataset
        As from `featurestore.pca`, with scores in float32.
    """
    behind = rows_behind(features)
    if behind is None:
        raise InvalidInputError("These features are not, or no longer, those of a store.")
    source, images = behind
    digests = source.digests[images]
    layout = source.column.index.layout
    feature: dict[str, Any] = dict(layout.feature)
    # Components depend on the whole set of images, so the set is part of what they are.
    words = [f"pca:{n_components}", _digest_of_set(digests)]
    feature["readout"] = "@".join([feature["readout"] or "all", *words])
    feature["dtype"] = "float32"
    column = catalog.column(digest_of("feature", feature))
    scores = _read(column, digests)
    geometry = gram(features, device=device)
    if scores is None:
        found = pca_of(geometry, n_components)
        scores = found["scores"].values.astype(np.float32)
        if catalog.mode == "a":
            run = catalog.create_run({"model": feature["model"], "derived_from": layout.key})
            once = np.unique(digests, axis=0, return_index=True)[1]
            column.append(
                feature, ("component",), digests[once], scores[once], dtype="float32", run=run
            )
    return _labelled(geometry, scores, n_components)


def _digest_of_set(digests: NDArray[np.uint8]) -> str:
    ordered = sorted(bytes(digest) for digest in digests)
    return xxhash.xxh3_128_hexdigest(b"".join(ordered))


def _read(column: Any, digests: NDArray[np.uint8]) -> NDArray[np.float32] | None:
    while True:
        rows = column.lookup(digests)
        if (rows < 0).any():
            return None
        try:
            scores: NDArray[np.float32] = column.read(rows, None, digests)
        except DamagedRowsError:
            continue  # misses from now on, or found where they were moved
        return scores


def _labelled(
    geometry: Gram, scores: NDArray[np.float32], n_components: int | float | None
) -> xr.Dataset:
    n = len(scores)
    variance = np.sum(scores.astype(np.float64) ** 2, axis=0) / (n - 1)
    total = float(geometry.sqeuclidean.sum()) / (2 * n * (n - 1))
    ratio = variance / total if total > 0 else np.zeros(len(variance))
    coords = {name: (("image",), coord.values) for name, coord in geometry.coords.items()}
    return xr.Dataset(
        {
            "scores": (("image", "component"), scores),
            "explained_variance": ("component", variance),
            "explained_variance_ratio": ("component", ratio),
        },
        coords=coords | {"component": np.arange(scores.shape[1])},
        attrs=derived_attrs(geometry.attrs, f"pca(n_components={n_components!r})")
        | {
            "n_images": n,
            "n_features": geometry.n_features,
            "total_variance": total,
        },
    )
