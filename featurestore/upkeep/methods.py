"""The part of `FeatureStore` that keeps a store in order."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from tqdm.auto import tqdm

from featurestore.errors import InvalidInputError
from featurestore.options import get_options, parse_nbytes
from featurestore.planning.explain import explain
from featurestore.rdms.merge import merge_blocks
from featurestore.storage.compaction import Compacted, compact_column
from featurestore.storage.grams import GramFolder, gram_keys
from featurestore.storage.sweep import (
    GRACE_S,
    Swept,
    document_leftovers,
    leftovers,
    sweep_column,
    sweep_files,
)
from featurestore.storage.tags import (
    Tag,
    create_tag,
    delete_tag,
    list_tags,
    read_tag,
    tagged_digests,
)
from featurestore.tables import TagTable
from featurestore.upkeep.eviction import drop_columns, find_columns, make_room
from featurestore.upkeep.pictures import check_pictures
from featurestore.upkeep.redo import redo_sample
from featurestore.upkeep.reports import CompactReport, DropReport, VerifyReport
from featurestore.upkeep.verify import verify_store

if TYPE_CHECKING:
    from collections.abc import Sequence

    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.images.imageset import ImageSet
    from featurestore.networks.network import Network
    from featurestore.planning.explain import Explanation
    from featurestore.storage.catalog import Catalog
    from featurestore.typing import PathLike


class Upkeep:
    """Methods of a store that check it, put it in order, freeze rows and take rows away."""

    _catalog: Catalog

    def verify(
        self,
        *,
        fast: bool = False,
        repair: bool = False,
        sample: int = 0,
        images: Any = None,
        restart: bool = False,
        progress: bool | None = None,
    ) -> VerifyReport:
        """Compare everything in the store with the checksums that were taken when it was written.

        Nothing is written unless `repair` is true. A check that was interrupted goes on where it
        was, if `fast` is false. Costs one pass over all bytes on disk.

        Parameters
        ----------
        fast : bool
            Whether to leave out the values and compare sizes and small files only.
        repair : bool
            Whether to mend: lost rows become misses, which the next `get` computes again;
            companions, statistics and metadata are written anew; damaged documents are set aside.
        sample : int
            How many random rows of each column to extract again from `images` and compare. Models
            that no name leads to (wrapped networks, files) are left out, and the report says so.
        images : ImageSet, path, list or array, optional
            Pictures to hash again and compare with what was stored under their names.
        restart : bool
            Whether to begin anew where an earlier check was interrupted.
        progress : bool, optional
            Whether to show a progress bar; where stderr is a terminal if not given.

        Returns
        -------
        VerifyReport
            Print it; `ok` says whether all is well, `findings`, `drift` and `pictures` are for
            programs.

        Raises
        ------
        ReadOnlyError
            If `repair` is true and the store was opened with ``mode="r"``.
        InvalidInputError
            If a sample is asked for without images.
        """
        if sample and images is None:
            raise InvalidInputError(
                "sample=… extracts rows again, so it needs the pictures: images='folder/'."
            )
        shown = get_options().progress if progress is None else progress
        hidden = None if shown is None else not shown  # None: unless stderr is a terminal
        with tqdm(disable=hidden, unit="B", unit_scale=True, desc="verify") as bar:
            report = verify_store(
                self._catalog,
                fast=fast,
                mend=repair,
                restart=restart,
                on_start=bar.reset,
                on_slot=bar.update,
            )
        if images is not None:
            found = check_pictures(self._catalog, images, report)
            if sample:
                redo_sample(self._catalog, found, sample, report)
        return report

    def explain(
        self,
        model: str | Network,
        module: str,
        images: ImageSet | PathLike | Sequence[Any] | Any = None,
        **request: Any,
    ) -> Explanation:
        """Say what the key of a request is made of, who computed its rows, and what is near it.

        Nothing is computed or written. A model that the store was never asked about is loaded.

        Parameters
        ----------
        model : str or Network
            As for `FeatureStore.get`.
        module : str
            As for `FeatureStore.get`.
        images : ImageSet, path, list or array, optional
            Which rows to look at; by default all that the column has.
        **request : object
            ``weights``, ``seed``, ``preprocess``, ``readout``, ``precision`` and ``dtype``, as
            for `FeatureStore.get`.

        Returns
        -------
        Explanation
            Print it; `exists`, `differences`, `runs` and `run_differences` are for programs.

        Raises
        ------
        FeatureStoreError
            As for `FeatureStore.plan`.
        """
        return explain(self._catalog, model, module, images, **request)

    def compact(self, *, grace_s: float = GRACE_S) -> CompactReport:
        """Merge sparse slots and small tiles, drop copies of rows, remove files that nobody reads.

        Safe beside running readers and writers. Values stay what they are, to the last bit. Data
        that compaction put out of use go at a later call, once the grace period is over.

        Parameters
        ----------
        grace_s : float
            How long files of others stay that look forgotten [s]; a day by default. 0 only if
            nobody else uses the store now.

        Returns
        -------
        CompactReport
            What was done, and what waits.

        Raises
        ------
        ReadOnlyError
            If the store was opened with ``mode="r"``.
        CorruptDataError
            If a tag is damaged, so that it is not known what it protects.
        """
        if not grace_s >= 0:
            raise InvalidInputError(f"grace_s={grace_s!r} is not a time in seconds.")
        catalog = self._catalog
        catalog.require_writable("the compacted slots")
        tagged = tagged_digests(catalog)
        done, swept, waiting = Compacted(), Swept(), 0
        for layout in list(catalog.layouts()):
            column = catalog.column(layout.key)
            done += compact_column(catalog, column, tagged.get(layout.key, ()))
            swept += sweep_column(column, grace_s=grace_s)
            waiting += sum(info.nbytes for _, info in leftovers(column, float("inf")))
        blobs = catalog.blobs
        for key in gram_keys(blobs):
            merge_blocks(GramFolder(blobs, key))
        swept += sweep_files(blobs, document_leftovers(blobs, blobs.now() - grace_s))
        return CompactReport(
            done.n_rows_moved,
            done.n_slots_written,
            done.n_slots_emptied,
            swept.n_files,
            swept.nbytes,
            waiting,
        )

    @overload
    def tag(self, name: str, *features: xr.DataArray | dict[str, xr.DataArray]) -> Tag: ...
    @overload
    def tag(self, name: str, *, remove: Literal[True]) -> None: ...
    @overload
    def tag(self) -> TagTable: ...
    def tag(
        self,
        name: str | None = None,
        *features: xr.DataArray | dict[str, xr.DataArray],
        remove: bool = False,
    ) -> Tag | TagTable | None:
        """Freeze the data of a paper under a name, give a tag back, or list all tags.

        Frozen rows are not evicted and not dropped; `verify` compares them with what they were
        when they were frozen.

        Parameters
        ----------
        name : str, optional
            Any text, such as ``"paper-2026"``. Without it, all tags are listed.
        *features : DataArray or dict of DataArray
            What `get` or `get_many` returned, or images selected from it: their rows are read
            once and frozen. Without them, the tag of that name is given back.
        remove : bool
            Whether to remove the tag; its rows stay until they are dropped.

        Returns
        -------
        Tag, TagTable or None
            One tag, or the list of them.

        Raises
        ------
        FeaturesMissingError
            If a row is not in this store.
        InvalidInputError
            If the arrays did not come from a store, or the name is taken by other rows.
        NotFoundError
            If there is no tag of that name.
        """
        if name is None:
            return TagTable(list_tags(self._catalog))
        if remove:
            delete_tag(self._catalog, name)
            return None
        if not features:
            return read_tag(self._catalog, name)
        arrays = [a for given in features for a in _arrays_of(given)]
        return create_tag(self._catalog, name, [_frozen(array) for array in arrays])

    def drop(
        self,
        model: str | None = None,
        module: str | None = None,
        *,
        weights: str | None = None,
        to_fit: int | str | None = None,
    ) -> DropReport:
        """Take columns away for good: those of a model, or as many as a size asks for.

        Parameters
        ----------
        model : str, optional
            As `ls` shows it, or a feature key.
        module : str, optional
            As `ls` shows it; all modules of the model if not given.
        weights : str, optional
            As `ls` shows them; needed where the model was kept with several.
        to_fit : int or str, optional
            Instead of a model: evict columns until all together take at most this [bytes], such
            as ``"100 GB"``. Those that are cheapest to recompute, per byte, go first; users' own
            networks go last; tagged rows stay.

        Returns
        -------
        DropReport
            What was taken away. The next `get` computes it again.

        Raises
        ------
        NotFoundError
            If there is no such column; near misses are suggested.
        InvalidInputError
            If a tag protects the rows, or it is not clear what is meant.
        DiskSpaceError
            If tags keep the store from fitting; nothing was taken away.
        ReadOnlyError
            If the store was opened with ``mode="r"``.
        """
        if to_fit is not None and model is None:
            return make_room(self._catalog, parse_nbytes(to_fit))
        if model is None or to_fit is not None:
            raise InvalidInputError(
                "Say what to drop: store.drop('alexnet', 'features.10'), store.drop('alexnet') or "
                "store.drop(to_fit='100 GB')."
            )
        return drop_columns(self._catalog, find_columns(self._catalog, model, module, weights))


def _arrays_of(given: Any) -> list[Any]:
    return list(given.values()) if isinstance(given, dict) else [given]


def _frozen(array: Any) -> tuple[str, str, str, NDArray[np.uint8]]:
    attrs = getattr(array, "attrs", {})
    coords = getattr(array, "coords", {})
    if "feature_key" not in attrs or "digest" not in coords:
        raise InvalidInputError(
            f"A {type(array).__name__} without the attribute 'feature_key' and the coordinate "
            "'digest' cannot be frozen. Give what store.get(…) returned."
        )
    digests = np.atleast_1d(np.asarray(coords["digest"].values, object))
    unique = list(dict.fromkeys(digests.tolist()))
    packed = np.frombuffer(bytes.fromhex("".join(unique)), np.uint8).reshape(-1, 16)
    return str(attrs["feature_key"]), str(attrs["model"]), str(attrs["module"]), packed
