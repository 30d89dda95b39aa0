"""A feature database for vision networks: every activation kept once, and known by what it is.

Public names are resolved on first use, so that ``import featurestore`` loads nothing heavy.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from featurestore.images.imageset import ImageSet as ImageSet
    from featurestore.images.read import read_images as read_images
    from featurestore.networks.listing import choose_module as choose_module
    from featurestore.networks.listing import models as models
    from featurestore.networks.listing import modules as modules
    from featurestore.networks.preprocess import preprocess as preprocess
    from featurestore.networks.sources.wrapped import wrap as wrap
    from featurestore.options import get_options as get_options
    from featurestore.options import set_options as set_options
    from featurestore.rdms.build import rdm as rdm
    from featurestore.rdms.cluster import cluster_rdm as cluster_rdm
    from featurestore.rdms.pca import pca as pca
    from featurestore.rdms.read import read_rdms as read_rdms
    from featurestore.rdms.scaling import centre as centre
    from featurestore.rdms.scaling import normalise as normalise
    from featurestore.rsa.bootstrap import bootstrap_comparison as bootstrap_comparison
    from featurestore.rsa.ceiling import noise_ceiling as noise_ceiling
    from featurestore.rsa.cka import cka as cka
    from featurestore.rsa.compare import compare_rdms as compare_rdms
    from featurestore.rsa.kernels import kernel_matrix as kernel_matrix
    from featurestore.rsa.permutation import permutation_test as permutation_test
    from featurestore.store import FeatureStore as FeatureStore
    from featurestore.store import open_store as open_store

_HOME = {
    "bootstrap_comparison": "featurestore.rsa.bootstrap",
    "centre": "featurestore.rdms.scaling",
    "choose_module": "featurestore.networks.listing",
    "cka": "featurestore.rsa.cka",
    "cluster_rdm": "featurestore.rdms.cluster",
    "compare_rdms": "featurestore.rsa.compare",
    "FeatureStore": "featurestore.store",
    "get_options": "featurestore.options",
    "ImageSet": "featurestore.images.imageset",
    "kernel_matrix": "featurestore.rsa.kernels",
    "models": "featurestore.networks.listing",
    "modules": "featurestore.networks.listing",
    "noise_ceiling": "featurestore.rsa.ceiling",
    "normalise": "featurestore.rdms.scaling",
    "open_store": "featurestore.store",
    "pca": "featurestore.rdms.pca",
    "permutation_test": "featurestore.rsa.permutation",
    "preprocess": "featurestore.networks.preprocess",
    "rdm": "featurestore.rdms.build",
    "read_images": "featurestore.images.read",
    "read_rdms": "featurestore.rdms.read",
    "set_options": "featurestore.options",
    "wrap": "featurestore.networks.sources.wrapped",
}

__version__ = "0.1.0"
__all__ = sorted(_HOME, key=str.casefold)


def __getattr__(name: str) -> Any:
    """Import a public name from its home."""
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in ("errors", "exports", "plots"):
        return importlib.import_module(f"featurestore.{name}")
    raise AttributeError(f"module 'featurestore' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names."""
    return [*__all__, "__version__"]
