"""From what the user calls a model to a record of it, loading a network only where it must."""

from __future__ import annotations

import threading
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from featurestore.errors import (
    FeaturesMissingError,
    InvalidInputError,
    WeightsChangedError,
    did_you_mean,
)
from featurestore.networks import registry
from featurestore.networks.network import is_network
from featurestore.networks.spec import probe_mismatch
from featurestore.storage.presence import require_place

if TYPE_CHECKING:
    from featurestore.networks.network import Network
    from featurestore.networks.spec import ModelRecord, ModelRequest
    from featurestore.storage.catalog import Catalog


class Model:
    """A model as one store knows it: its record, and its network once that is needed.

    Parameters
    ----------
    record : ModelRecord
        What the store remembers.
    request : ModelRequest, optional
        How to load the network.
    network : Network, optional
        The network, if it is in memory.
    is_new : bool
        Whether the record was made from this very network just now.
    """

    def __init__(
        self,
        record: ModelRecord,
        *,
        request: ModelRequest | None = None,
        network: Network | None = None,
        is_new: bool = False,
    ) -> None:
        self.record = record
        self._request = request
        self._network = network
        self._is_checked = is_new
        self._lock = threading.Lock()

    @property
    def key(self) -> str:
        """The model key."""
        return self.record.key

    @property
    def is_loaded(self) -> bool:
        """Whether the network is in memory."""
        return self._network is not None

    def network(self) -> Network:
        """Return the network, ready to extract from: loaded, and compared with the record.

        Returns
        -------
        Network
            The same object each time.

        Raises
        ------
        WeightsChangedError
            If what is loaded now is not what the store's values came from.
        """
        with self._lock:
            if self._network is None:
                assert self._request is not None
                # The alias froze what "DEFAULT" means here, whatever it means elsewhere by now.
                request = self._request
                if request.weights == "DEFAULT":
                    request = replace(request, weights=self.record.weights_label)
                self._network = registry.load(request)
            if not self._is_checked:
                require_same(self.record, self._network)
                self._is_checked = True
            return self._network


def resolve(
    catalog: Catalog, model: str | Network, *, weights: Any, seed: int, preprocess: Any
) -> Model:
    """Find out which model a user means.

    Parameters
    ----------
    catalog : Catalog
        The store.
    model : str or Network
        A name, or what `featurestore.wrap` returned.
    weights, seed, preprocess : object
        As for `FeatureStore.get`.

    Returns
    -------
    Model
        Not loaded if the store was asked for it before.

    Raises
    ------
    InvalidInputError
        If it is neither, or a wrapped network comes with settings of its own.
    """
    if is_network(model):
        if preprocess is not None or weights not in ("DEFAULT",):
            raise InvalidInputError(
                "A wrapped network brings its own weights and preprocessing; give them to "
                "fs.wrap(...) and leave weights= and preprocess= out."
            )
        return resolve_network(catalog, model)  # type: ignore[arg-type]
    if not isinstance(model, str):
        raise InvalidInputError(
            f"{type(model).__module__}.{type(model).__qualname__} is not a model's name. Give "
            "a name such as 'alexnet', or wrap your own network: fs.wrap(net, name=…, "
            "preprocess=…)."
        )
    request = registry.request(model, weights=weights, seed=seed, preprocess=preprocess)
    return resolve_request(catalog, request)


def resolve_request(catalog: Catalog, request: ModelRequest) -> Model:
    """Find out which model a request means in a store.

    Parameters
    ----------
    catalog : Catalog
        The store.
    request : ModelRequest
        What the user asked for.

    Returns
    -------
    Model
        Not loaded if the store was asked for it before.

    Raises
    ------
    FeaturesMissingError
        If the store does not know the model and is read-only.
    """
    key = catalog.alias(request)
    record = None if key is None else catalog.model(key)
    if record is not None:
        return Model(record, request=request)
    if catalog.mode == "r":
        held = catalog.model_labels()
        near = did_you_mean(request.label, held) if request.label not in held else ""
        raise FeaturesMissingError(
            f"{catalog} holds nothing of {request.label} with weights {request.weights!r}.{near} "
            "It was opened with mode='r', so nothing is computed. store.ls() lists what it holds; "
            "open it with mode='a' to compute.",
            missing=(),
            model=request.label,
        )
    require_place(catalog.blobs)  # before the work of loading a model that could not be remembered
    network = registry.load(request)
    model = resolve_network(catalog, network, request)
    standing = catalog.create_alias(request, model.key)
    if standing == model.key:
        return model
    # Another process was first and its "DEFAULT" is another member: that one stands.
    record = catalog.model(standing)
    assert record is not None
    return Model(record, request=request)


def resolve_network(
    catalog: Catalog, network: Network, request: ModelRequest | None = None
) -> Model:
    """Find out which model of a store a loaded network is.

    Parameters
    ----------
    catalog : Catalog
        The store.
    network : Network
        The loaded network.
    request : ModelRequest, optional
        How it was loaded.

    Returns
    -------
    Model
        With the network in memory.

    Raises
    ------
    WeightsChangedError
        If the network was changed since it was loaded or wrapped.
    """
    network.require_unchanged()  # its owner may have trained it since it was wrapped
    record = catalog.model(network.spec.key)
    if record is not None:
        # Identity is established; what it computes is compared only before it computes more.
        return Model(record, request=request, network=network)
    if catalog.mode == "a":
        require_place(catalog.blobs)
    record = network.record  # probes the network, which takes a while
    if catalog.mode == "a":
        record = catalog.create_model(record)
    return Model(record, request=request, network=network, is_new=True)


def require_same(record: ModelRecord, network: Network) -> None:
    """Raise unless a network is the one that a record describes.

    Parameters
    ----------
    record : ModelRecord
        What the store's values came from.
    network : Network
        What is loaded now.

    Raises
    ------
    WeightsChangedError
        If a part of the identity differs, or the network does something else with the probe.
    """
    stored, loaded = record.spec.to_json(), network.spec.to_json()
    parts = [part for part in stored if stored[part] != loaded[part]]
    if parts:
        raise WeightsChangedError(
            f"{record.label} ({record.weights_label}) is not the network that this store's values "
            f"came from: its {' and '.join(parts)} changed. Nothing was mixed. Use a new store "
            "for the new network, or load the old one, for example from its weights file.",
            parts=parts,
            stored=stored,
            loaded=loaded,
        )
    modules = probe_mismatch(record.probe, network.record.probe)
    if modules:
        raise WeightsChangedError(
            f"{record.label} ({record.weights_label}) has the same weights and settings as when "
            f"this store was filled, but computes something else: {len(modules)} modules differ "
            f"on the probe image, first {modules[0]!r}. A library it is built from has probably "
            "changed; use a new store, or the library's version named in the store's runs.",
            parts=["computation"],
            modules=modules,
        )
