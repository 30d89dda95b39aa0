"""The front of a store: ask for features, get them; what is missing is computed first."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

from featurestore.arrays.labels import labelled_array, load_array
from featurestore.errors import CorruptDataError, InvalidInputError
from featurestore.extraction.events import ProgressBar, log_event
from featurestore.extraction.report import Report, decode_error, leave_out
from featurestore.extraction.run import Settings, extract
from featurestore.images.read import take_images
from featurestore.keys import want
from featurestore.options import get_options
from featurestore.planning.models import resolve
from featurestore.planning.plan import Plan, make_plan, require_complete
from featurestore.rdms.methods import Geometry
from featurestore.storage.catalog import open_catalog
from featurestore.storage.imagesets import find_images, list_image_sets, publish_images
from featurestore.tables import ColumnTable, ImageSetTable, describe_columns
from featurestore.upkeep.eviction import make_room
from featurestore.upkeep.methods import Upkeep

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import xarray as xr

    from featurestore.images.imageset import ImageSet
    from featurestore.networks.network import Network
    from featurestore.networks.preprocess import Preprocess
    from featurestore.planning.models import Model
    from featurestore.storage.catalog import Catalog, Mode
    from featurestore.typing import PathLike, Precision, Readout, StoredDtype

HEALING_ROUNDS = 3  # of a disk that damages what was just written, no more is asked


def open_store(path: PathLike, *, mode: Mode = "a") -> FeatureStore:
    """Open a feature store, making one if there is none.

    Parameters
    ----------
    path : path-like
        A folder of its own, such as ``"features.fstore"``.
    mode : {"a", "r"}
        ``"a"`` computes and keeps what is missing. ``"r"`` never computes and never writes: it
        works on a read-only mount and without torch.

    Returns
    -------
    FeatureStore
        The open store; there is nothing to close.

    Raises
    ------
    StoreNotFoundError
        If there is none and `mode` is ``"r"``.
    InvalidInputError
        If the path is something else than a store.
    FormatVersionError
        If a newer version of this package wrote it.
    """
    return FeatureStore(open_catalog(path, mode))


class FeatureStore(Upkeep, Geometry):
    """A table of activations: rows are images, columns are modules of models.

    Made by `open_store`.

    Parameters
    ----------
    catalog : Catalog
        Where it is kept.
    """

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._model: Model | None = None  # the last one, so that a loop over modules loads once

    def __repr__(self) -> str:
        return f"<featurestore.FeatureStore {str(self._catalog)!r} mode={self._catalog.mode!r}>"

    def get(
        self,
        model: str | Network,
        module: str,
        images: ImageSet | PathLike | Sequence[Any] | Any,
        *,
        weights: PathLike | None = "DEFAULT",
        seed: int = 0,
        preprocess: Preprocess | Callable[..., Any] | None = None,
        readout: Readout | None = None,
        precision: Precision = "fp32",
        dtype: StoredDtype = "float32",
        device: str = "auto",
        batch_size: int | None = None,
        errors: Literal["raise", "skip"] = "raise",
        load: bool = False,
        progress: bool | None = None,
    ) -> xr.DataArray:
        """Return the activations of one module for some images, computing what is missing.

        Parameters
        ----------
        model : str or Network
            A name such as ``"alexnet"`` (see `featurestore.models`), or what `featurestore.wrap`
            returned.
        module : str
            A module such as ``"features.10"`` (see `featurestore.modules`). ``"@0"`` picks a call
            and ``"[0]"`` an output where there are several.
        images : ImageSet, path, list or array
            Whatever `featurestore.read_images` takes.
        weights : str, path or None
            ``"DEFAULT"``, the name of published weights, a checkpoint file, an https URL with a
            hash, or ``"random"`` (also ``None``).
        seed : int
            Seed of random weights.
        preprocess : Preprocess, optional
            Changes to the published preprocessing, from `featurestore.preprocess`.
        readout : {"flatten", "avgpool"}, optional
            What is kept: all axes as one in C order, or the mean over y and x. All by default.
        precision : {"fp32", "tf32", "bf16", "fp16"}
            Arithmetic of the forward pass; another precision is another column.
        dtype : {"float32", "float16"}
            Stored dtype; another dtype is another column.
        device : str
            ``"auto"`` takes cuda, else mps, else cpu.
        batch_size : int, optional
            Images per forward pass; chosen for the device if not given.
        errors : {"raise", "skip"}
            What to do about unreadable images, after all others were computed and kept.
        load : bool
            Whether to read all values now.
        progress : bool, optional
            Whether to show a progress bar; where stderr is a terminal if not given.

        Returns
        -------
        DataArray (image, channel, y, x), (image, token, channel) or (image, feature)
            Rows in the order of `images`, repeats included; lazy, float32 unless `dtype` says
            otherwise. Coordinates on ``image``: name, digest and all columns of the image set.
            Attributes say what the numbers depend on.

        Raises
        ------
        FeaturesMissingError
            If rows are missing and the store is read-only.
        ModelNotFoundError, ModuleNotFoundInModelError
            If there is no such model or module; near misses are suggested.
        ImageDecodeError
            If images could not be read; the others are kept.
        WeightsChangedError
            If the model is not what it was when the store was filled.
        CorruptDataError
            When values are read later: if they are damaged. Ask again to recompute them.
        DiskSpaceError, MemoryBudgetError
            If the work cannot fit; before anything is computed.
        """
        return self.get_many(
            model,
            [module],
            images,
            weights=weights,
            seed=seed,
            preprocess=preprocess,
            readout=readout,
            precision=precision,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            errors=errors,
            load=load,
            progress=progress,
        ).popitem()[1]

    def get_many(
        self,
        model: str | Network,
        modules: Sequence[str],
        images: ImageSet | PathLike | Sequence[Any] | Any,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        errors: Literal["raise", "skip"] = "raise",
        load: bool = False,
        progress: bool | None = None,
        **request: Any,
    ) -> dict[str, xr.DataArray]:
        """Return the activations of several modules; one forward pass per image serves all.

        Parameters
        ----------
        model : str or Network
            As for `get`.
        modules : sequence of str
            Modules, each as for `get`.
        images : ImageSet, path, list or array
            As for `get`.
        device, batch_size, errors, load, progress : object
            As for `get`.
        **request : object
            ``weights``, ``seed``, ``preprocess``, ``readout``, ``precision`` and ``dtype``, as
            for `get`.

        Returns
        -------
        dict of DataArray
            By module, as it was asked for. All have the same images.

        Raises
        ------
        FeatureStoreError
            As for `get`.
        """
        settings = Settings(device, batch_size, errors, _listeners(progress))
        image_set, unreadable = take_images(images)
        for left in range(HEALING_ROUNDS, -1, -1):
            plan = self.plan(model, modules, image_set, **request)
            if self._catalog.mode == "r":
                require_complete(plan, str(self._catalog))
                report = Report()
            else:
                report = self._fill(plan, settings)
            found = leave_out(image_set, report, unreadable, errors)
            arrays = {
                gap.wanted.module: labelled_array(
                    self._catalog, plan.model.record, gap.wanted, found
                )
                for gap in plan.gaps
            }
            try:
                if load:
                    arrays = {name: load_array(array) for name, array in arrays.items()}
                return arrays
            except CorruptDataError:  # what was damaged is missing from now on
                if self._catalog.mode == "r" or not left:
                    raise
        raise AssertionError  # the last round returns or raises

    def plan(
        self,
        model: str | Network,
        modules: str | Sequence[str],
        images: ImageSet | PathLike | Sequence[Any] | Any,
        *,
        weights: PathLike | None = "DEFAULT",
        seed: int = 0,
        preprocess: Preprocess | Callable[..., Any] | None = None,
        readout: Readout | None = None,
        precision: Precision = "fp32",
        dtype: StoredDtype = "float32",
    ) -> Plan:
        """Say what is missing and what it would cost; nothing is extracted.

        A model that the store was never asked about is loaded and probed with two tiny batches,
        because its shapes and the digest of its weights are needed.

        Parameters
        ----------
        model : str or Network
            As for `get`.
        modules : str or sequence of str
            One module or several.
        images : ImageSet, path, list or array
            As for `get`.
        weights, seed, preprocess, readout, precision, dtype : object
            As for `get`.

        Returns
        -------
        Plan
            Print it; its `n_missing`, `n_images`, `nbytes` and `units` are for programs.

        Raises
        ------
        FeatureStoreError
            As for `get`, except for what happens while extracting.
        """
        names = [modules] if isinstance(modules, str) else list(modules)
        if not names:
            raise InvalidInputError("No module was asked for. List them with fs.modules(model).")
        image_set, unreadable = take_images(images)
        if unreadable:
            raise decode_error(unreadable, 0)
        resolved = self._resolve(model, weights=weights, seed=seed, preprocess=preprocess)
        wanted = [
            want(resolved.record, name, readout=readout, precision=precision, dtype=dtype)
            for name in _distinct(names)
        ]
        return make_plan(self._catalog, resolved, wanted, image_set)

    def extract(
        self,
        plan: Plan,
        *,
        device: str = "auto",
        batch_size: int | None = None,
        errors: Literal["raise", "skip"] = "raise",
        progress: bool | None = None,
    ) -> Report:
        """Compute and keep what a plan found missing.

        Parameters
        ----------
        plan : Plan
            From `plan`.
        device, batch_size, errors, progress : object
            As for `get`.

        Returns
        -------
        Report
            How many images were computed, and which could not be read.

        Raises
        ------
        FeatureStoreError
            As for `get`.
        """
        settings = Settings(device, batch_size, errors, _listeners(progress))
        self._catalog.require_writable("what is missing")
        report = self._fill(plan, settings)
        if report.failures and errors == "raise":
            raise decode_error(report.failures, report.n_computed)
        return report

    @overload
    def images(self, name: str) -> ImageSet: ...
    @overload
    def images(self, name: None = None) -> ImageSetTable: ...
    def images(self, name: str | None = None) -> ImageSet | ImageSetTable:
        """List the image sets that were asked about, or give one back.

        Names, digests and columns outlive the pictures: an image set from here gets its rows
        after the folder is gone.

        Parameters
        ----------
        name : str, optional
            An image set's label, such as the folder's name, or 8 or more digits of its key. The
            newest is taken where several have the label, if it holds all images of the others.

        Returns
        -------
        ImageSet or ImageSetTable
            One image set if a name was given, else the list of them.

        Raises
        ------
        NotFoundError
            If there is none of that name.
        InvalidInputError
            If several have that name, and the newest lacks images of another.
        """
        if name is not None:
            return find_images(self._catalog, name)
        return ImageSetTable(list_image_sets(self._catalog))

    def ls(self) -> ColumnTable:
        """List the columns: models, modules, numbers of images, sizes.

        Returns
        -------
        ColumnTable
            A list of `ColumnInfo` that prints as a table, by model and module.
        """
        return ColumnTable(describe_columns(self._catalog))

    def _resolve(self, model: str | Network, **request: Any) -> Model:
        resolved = resolve(self._catalog, model, **request)
        if isinstance(model, str):
            known = self._model
            if known is not None and known.key == resolved.key and known.is_loaded:
                return known
            self._model = resolved
        return resolved

    def _fill(self, plan: Plan, settings: Settings) -> Report:
        publish_images(self._catalog, plan.images)
        limit = get_options().store_limit
        if limit is not None and plan.nbytes:
            make_room(self._catalog, limit, plan.nbytes, plan.columns)
        return extract(self._catalog, plan, settings)


def _listeners(progress: bool | None) -> tuple[Any, ...]:
    shown = get_options().progress if progress is None else progress
    return (log_event, ProgressBar(shown))


def _distinct(names: Sequence[Any]) -> list[Any]:
    """Drop repeats; what is no name goes on to where it is refused."""
    return [name for number, name in enumerate(names) if name not in names[:number]]
