"""The part of `FeatureStore` that answers with geometry."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import InvalidInputError
from featurestore.images.read import take_images
from featurestore.rdms.build import rdm
from featurestore.rdms.components import kept_components
from featurestore.rdms.metrics import require_bandwidth, require_metric
from featurestore.rdms.pairs import require_rows, require_unique
from featurestore.storage.grams import GramFolder, gram_keys

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.images.imageset import ImageSet
    from featurestore.networks.network import Network
    from featurestore.rdms.metrics import Bandwidth, Metric
    from featurestore.storage.catalog import Catalog
    from featurestore.typing import PathLike


class Geometry:
    """Methods of a store that compare images."""

    _catalog: Catalog

    def get_many(
        self, model: str | Network, modules: Sequence[str], images: Any, **request: Any
    ) -> dict[str, xr.DataArray]:
        """Return features, as `FeatureStore.get_many` does."""
        raise NotImplementedError

    def rdm(
        self,
        model: str | Network,
        module: str | Sequence[str],
        images: ImageSet | PathLike | Sequence[Any] | Any,
        *,
        metric: Metric = "correlation",
        bandwidth: Bandwidth | None = None,
        device: str = "auto",
        progress: bool | None = None,
        **request: Any,
    ) -> xr.DataArray:
        """Return how different the activations of a module are for each pair of images.

        Features that are missing are computed first, all modules in one sweep. Distances are
        kept in the store: every metric follows from them, other images later cost only the new
        pairs, and a computation that was stopped goes on. A read-only store computes in memory
        what it does not hold.

        Parameters
        ----------
        model : str or Network
            As for `get`.
        module : str or sequence of str
            One module, or several.
        images : ImageSet, path, list or array
            As for `get`.
        metric : {"correlation", "cosine", "euclidean", "sqeuclidean", "gaussian"}
            As for `featurestore.rdm`, which gives the formulas.
        bandwidth : {"mean", "median"} or float, optional
            Width of the Gaussian, as for `featurestore.rdm`.
        device : str
            As for `get`; distances are computed on CUDA or the CPU.
        progress : bool, optional
            As for `get`.
        **request : object
            ``weights``, ``seed``, ``preprocess``, ``readout``, ``precision``, ``dtype``,
            ``batch_size`` and ``errors``, as for `get`.

        Returns
        -------
        DataArray (image, image_2) or (module, image, image_2), float32
            As `featurestore.rdm` returns it, with the provenance that `get` gives. Lazy where
            large.

        Raises
        ------
        FeatureStoreError
            As for `get`.
        InvalidInputError
            If names repeat, or the metric is unknown; before anything is computed.
        """
        require_metric(metric)
        require_bandwidth(metric, bandwidth)
        images = require_distinct(images)
        modules = [module] if isinstance(module, str) else list(module)
        if not modules:
            raise InvalidInputError("No module was asked for. List them with fs.modules(model).")
        features = self.get_many(
            model, modules, images, device=device, progress=progress, **request
        )
        where = "cpu" if device == "mps" else device
        rdms = [
            rdm(array, metric, bandwidth=bandwidth, device=where, progress=progress)
            for array in features.values()
        ]
        return rdms[0] if isinstance(module, str) else stack(rdms, list(features))

    def distances_nbytes(self) -> int:
        """Return what kept distances between images take on disk.

        Returns
        -------
        int
            Of all modules [bytes].
        """
        blobs = self._catalog.blobs
        return sum(GramFolder(blobs, key).nbytes() for key in gram_keys(blobs))

    def pca(
        self,
        model: str | Network,
        module: str,
        images: ImageSet | PathLike | Sequence[Any] | Any,
        n_components: int | float | None = None,
        *,
        device: str = "auto",
        progress: bool | None = None,
        **request: Any,
    ) -> xr.Dataset:
        """Return the exact principal components of a module's activations, and keep them.

        They follow from the distances between the images, which are kept as well. Scores become a
        column of their own, known by the features, the set of images and `n_components`.

        Parameters
        ----------
        model : str or Network
            As for `get`.
        module : str
            As for `get`.
        images : ImageSet, path, list or array
            As for `get`; components depend on all of them.
        n_components : int or float, optional
            How many, or the share of variance that they should explain; all if not given.
        device, progress : object
            As for `rdm`.
        **request : object
            As for `rdm`.

        Returns
        -------
        Dataset
            As from `featurestore.pca`: ``scores`` (image, component), float32, and
            ``explained_variance`` and ``explained_variance_ratio`` (component).

        Raises
        ------
        FeatureStoreError
            As for `get`.
        MemoryBudgetError
            If the geometry of all images does not fit in memory: 8 n² bytes and more.
        """
        images = require_distinct(images)
        (features,) = self.get_many(
            model, [module], images, device=device, progress=progress, **request
        ).values()
        require_rows(features, "image")
        where = "cpu" if device == "mps" else device
        return kept_components(self._catalog, features, n_components, where)


def require_distinct(images: Any) -> Any:
    """Refuse images whose names repeat, before anything is extracted for them.

    Parameters
    ----------
    images : ImageSet, path, list or array
        As for `FeatureStore.get`.

    Returns
    -------
    ImageSet, path, list or array
        The same, read if all can be read.

    Raises
    ------
    InvalidInputError
        If a name is there more than once.
    """
    image_set, unreadable = take_images(images)
    require_unique(image_set.names, "image")
    return images if unreadable else image_set


def stack(rdms: Sequence[xr.DataArray], modules: Sequence[str]) -> xr.DataArray:
    """Put RDMs of several modules into one array.

    Parameters
    ----------
    rdms : sequence of DataArray (image, image_2)
        One per module, of the same images.
    modules : sequence of str
        Their names.

    Returns
    -------
    DataArray (module, image, image_2)
        Attributes that differ between modules become coordinates on ``module``.
    """
    # Not a name of xarray's own choosing: object keeps long names from being padded.
    index = xr.Variable("module", np.array(modules, object))
    stacked = xr.concat(
        [array.drop_attrs() for array in rdms], index, coords="minimal", compat="override"
    ).rename("rdm")
    for name in rdms[0].attrs:
        values = [array.attrs[name] for array in rdms]
        if all(value == values[0] for value in values):
            stacked.attrs[name] = values[0]
        elif name != "module":
            stacked = stacked.assign_coords({name: ("module", np.array(values, object))})
    return stacked
