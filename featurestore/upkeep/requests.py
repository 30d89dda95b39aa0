"""How the models of a store were asked for, and whether the same words would load them again."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from featurestore.errors import CorruptDataError
from featurestore.networks.spec import ModelRequest
from featurestore.storage import layout as _layout
from featurestore.storage import records
from featurestore.storage.catalog import document_keys

if TYPE_CHECKING:
    from featurestore.storage.catalog import Catalog


def named_models(catalog: Catalog) -> dict[str, ModelRequest]:
    """Return the models that a name alone leads to, without a user's network, file or callable.

    Parameters
    ----------
    catalog : Catalog
        The store.

    Returns
    -------
    dict of ModelRequest
        By model key.
    """
    found = {}
    for key in filter(_layout.is_key, document_keys(catalog.blobs, "aliases")):
        with contextlib.suppress(CorruptDataError):
            document = records.read(catalog.blobs, _layout.document_path("aliases", key))
            if document is not None:
                request = ModelRequest.from_json(document["request"])
                own = "id" in (request.preprocess or ())  # a callable that only its owner has
                if not (own or request.weights.startswith("file:")):
                    found[str(document["model"])] = request
    return found
