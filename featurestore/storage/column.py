"""One column of a store: append rows, find rows, read rows."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import DiskSpaceError, ReadOnlyError
from featurestore.storage import layout as _layout
from featurestore.storage import records
from featurestore.storage.group_file import advertised, read_layout
from featurestore.storage.index import ColumnIndex, read_damage, write_damage
from featurestore.storage.metadata import group_metadata, spell_metadata
from featurestore.storage.reader import DamagedRowsError, RowsMovedError, read_rows
from featurestore.storage.slots import (
    Companion,
    SlotBuilder,
    bind,
    compresses,
    read_key_record,
    slot_numbers,
    to_stored,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.storage.blob import Blobs
    from featurestore.storage.layout import ColumnLayout
    from featurestore.storage.shard_file import Selection
    from featurestore.typing import Json

_log = logging.getLogger(__name__)


class Column:
    """The rows of one feature, keyed by image digest. Safe to use from many threads.

    Parameters
    ----------
    blobs : Blobs
        The store.
    key : str
        The feature key.
    writable : bool
        Whether damage that is found may be marked in the store.
    """

    def __init__(self, blobs: Blobs, key: str, *, writable: bool) -> None:
        self.key = _layout.require_key(key)
        self.blobs = blobs
        self.writable = writable
        self._lock = threading.Lock()
        self._layout: ColumnLayout | None = None
        self._index: ColumnIndex | None = None
        self._companions: dict[int, Companion] = {}
        self._advertised = 0
        self._next_slot: int | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        # Lazy arrays travel to dask workers; the index is derived and read anew there.
        return (_reopen, (self.blobs, self.key, self.writable))

    def __deepcopy__(self, memo: dict[int, Any]) -> Column:
        """Return itself: a view of the store has nothing of its own to copy."""
        return self

    @property
    def layout(self) -> ColumnLayout | None:
        """The column's shape, or ``None`` while it has never held a row."""
        if self._layout is None:
            document = read_layout(self.blobs, self.key, writable=self.writable)
            if document is not None:
                self._adopt(_layout.ColumnLayout.from_json(document))
        return self._layout

    @property
    def index(self) -> ColumnIndex:
        """Which image is in which row; only of a column that has a layout."""
        if self.layout is None or self._index is None:
            raise ValueError(f"Column {self.key} has no layout yet.")
        return self._index

    def lookup(self, digests: NDArray[np.uint8], *, refresh: bool = True) -> NDArray[np.int64]:
        """Find the rows of images.

        Parameters
        ----------
        digests : ndarray of shape (n, 16), uint8
            Which images.
        refresh : bool
            Whether to look for rows that were published since the last look.

        Returns
        -------
        ndarray of shape (n,), int64
            Row numbers, or -1 where there is none.
        """
        if self.layout is None or self._index is None:
            return np.full(len(digests), -1, np.int64)
        if refresh:
            self._index.refresh()
        return self._index.lookup(digests)

    def n_rows(self) -> int:
        """Return how many images have a row.

        Returns
        -------
        int
            Copies count once.
        """
        if self.layout is None or self._index is None:
            return 0
        self._index.refresh()
        digests, _ = self._index.live_rows()
        return len(np.unique(digests, axis=0))

    def nbytes(self) -> int:
        """Return what the column's shards take on disk.

        Returns
        -------
        int
            Sum of file sizes [bytes], unpublished leftovers included.
        """
        folder = f"{_layout.column_path(self.key)}/{_layout.ACTIVATIONS}"
        return sum(info.nbytes for info in self.blobs.list(folder) if slot_numbers([info.name]))

    def new_slot(
        self,
        feature: Mapping[str, Json],
        dims: Sequence[str],
        sample: NDArray[np.float32],
        dtype: str,
    ) -> SlotBuilder:
        """Begin a slot.

        Parameters
        ----------
        feature : mapping
            What the key was made from; takes part in the layout if this is the first slot.
        dims : sequence of str
            Names of the axes of one row.
        sample : ndarray of shape (n, *shape), float32
            First rows: they decide whether a new column is compressed.
        dtype : {"float32", "float16"}
            Stored dtype.

        Returns
        -------
        SlotBuilder
            Takes rows.
        """
        return SlotBuilder(self._require_layout(feature, dims, sample, dtype))

    def publish(self, slot: SlotBuilder, run: str) -> None:
        """Publish a slot; when this returns its rows are durable.

        Parameters
        ----------
        slot : SlotBuilder
            With one row or more.
        run : str
            The run's id.
        """
        guess = self._free_slot(slot.layout)
        # Before and not after: once rows are published nobody comes back to make up for a kill.
        self.advertise(guess + 1)
        number = slot.publish(self.blobs, run=run, first_guess=guess)
        self._next_slot = number + 1
        self.advertise(number + 1)

    def append(
        self,
        feature: Mapping[str, Json],
        dims: Sequence[str],
        digests: NDArray[np.uint8],
        rows: NDArray[np.float32],
        *,
        dtype: str,
        run: str,
    ) -> None:
        """Publish rows at once, in as many slots as they fill.

        Parameters
        ----------
        feature : mapping
            What the key was made from.
        dims : sequence of str
            Names of the axes of one row.
        digests : ndarray of shape (n, 16), uint8
            Which images the rows are of.
        rows : ndarray of shape (n, *shape), float32
            Their activations.
        dtype : {"float32", "float16"}
            Stored dtype.
        run : str
            The run's id.
        """
        while len(rows):
            slot = self.new_slot(feature, dims, rows, dtype)
            room = slot.room
            slot.add(digests[:room], rows[:room])
            self.publish(slot, run)
            digests, rows = digests[room:], rows[room:]

    def read(
        self,
        rows: NDArray[np.int64],
        selection: Selection | None = None,
        digests: NDArray[np.uint8] | None = None,
    ) -> NDArray[Any]:
        """Read rows.

        Parameters
        ----------
        rows : ndarray of shape (n,), int64
            Row numbers, as `lookup` returns them.
        selection : tuple of slice, optional
            Which part of each row.
        digests : ndarray of shape (n, 16), uint8, optional
            Which images the rows were looked up for.

        Returns
        -------
        ndarray of shape (n, *selected), stored dtype
            The values.

        Raises
        ------
        DamagedRowsError
            If some rows are damaged. They are marked, and are misses from then on.
        RowsMovedError
            If they were moved meanwhile: look them up again.
        """
        index, layout = self.index, self.index.layout
        slots, positions = np.divmod(rows, layout.rows_per_slot)
        # What is read is held against these, whatever other threads learn meanwhile.
        known = {slot: index.record(slot) for slot in np.unique(slots).tolist()}
        if digests is not None and not _are_of(known, slots, positions, digests):
            raise RowsMovedError({})

        def binding(slot: int) -> bytes:
            record = known[slot]
            return b"" if record is None else bind(layout, slot, record.tobytes())

        try:
            return read_rows(
                self.blobs, layout, rows, selection, companion=self.companion, binding=binding
            )
        except DamagedRowsError as err:
            # Compaction and `drop` take data away; that is not damage.
            moved = index.moved({slot: bad for slot, (bad, _) in err.damage.items()}, known)
            for slot in err.damage.keys() - moved:
                self._mark_damaged(slot, *err.damage[slot])
            if moved:
                raise RowsMovedError(err.damage) from err
            raise

    def companion(self, slot: int, anew: bool = False) -> Companion | None:
        """Return who wrote a slot and what its shard must look like.

        Parameters
        ----------
        slot : int
            The slot's number.
        anew : bool
            Whether to read it again: a restored backup brings other companions.

        Returns
        -------
        Companion or None
            ``None`` if it is missing or damaged; the shard has checksums of its own.
        """
        layout, record = self.index.layout, self.index.record(slot)
        if record is None or anew:
            record = read_key_record(self.blobs, layout, slot)
        if record is None:
            return None
        binding = bind(layout, slot, record.tobytes())
        known = None if anew else self._companions.get(slot)
        if known is None or known.binding != binding:
            try:
                data = self.blobs.get(layout.slot_name(_layout.RUN, slot), 0, 64)
            except FileNotFoundError:
                return None
            known = Companion.from_bytes(data, binding)
            if known is not None:
                self._companions[slot] = known
        return known

    def advertise(self, n_slots: int, *, anew: bool = False) -> None:
        """Let plain Zarr readers see slots: lengths are advisory and grow in steps.

        Parameters
        ----------
        n_slots : int
            One more than the highest slot's number.
        anew : bool
            Whether to write the metadata even if they seem to say so.
        """
        layout = self.layout
        assert layout is not None
        with self._lock:
            if n_slots <= self._advertised and not anew:
                return
            base = _layout.column_path(layout.key)
            known = max(self._advertised, advertised(self.blobs, self.key))
            if n_slots <= known and not anew:
                self._advertised = known
                return
            step = _layout.GROWTH_SLOTS
            longer = max(known, -(-n_slots // step) * step)
            for folder, metadata in group_metadata(layout, longer).items():
                path = f"{base}/{folder}/zarr.json" if folder else f"{base}/zarr.json"
                self.blobs.replace(path, spell_metadata(metadata))
            self._advertised = longer

    def _adopt(self, layout: ColumnLayout) -> None:
        with self._lock:
            if self._layout is None:
                self._index = ColumnIndex(self.blobs, layout)
                self._layout = layout

    def _require_layout(
        self, feature: Mapping[str, Json], dims: Sequence[str], rows: NDArray[Any], dtype: str
    ) -> ColumnLayout:
        layout = self.layout
        if layout is None:
            proposed = _layout.make_layout(
                self.key,
                feature,
                dtype=dtype,
                dims=dims,
                shape=rows.shape[1:],
                compressed=compresses(to_stored(rows, dtype)),
            )
            path = _layout.document_path("layouts", self.key)
            document = records.create(self.blobs, path, proposed.to_json())
            layout = _layout.ColumnLayout.from_json(document)  # the winner's, whoever it is
            self._adopt(layout)
        return layout

    def _free_slot(self, layout: ColumnLayout) -> int:
        if self._next_slot is not None:
            return self._next_slot  # a guess: `publish` steps over what others took meanwhile
        # Both folders: a swept shard leaves its number spent.
        taken = [-1]
        for array in (_layout.ACTIVATIONS, _layout.IMAGE):
            folder = f"{_layout.column_path(layout.key)}/{array}"
            taken += slot_numbers([info.name for info in self.blobs.list(folder)])
        return max(taken) + 1

    def _mark_damaged(self, slot: int, positions: frozenset[int], reason: str) -> None:
        layout = self.layout
        assert layout is not None
        _log.warning(
            "column %s: %d rows of slot %d are damaged: %s", self.key, len(positions), slot, reason
        )
        if self.writable:
            try:
                known = read_damage(self.blobs, layout, slot)
                write_damage(self.blobs, layout, slot, positions | known, reason)
            except (ReadOnlyError, DiskSpaceError) as err:
                _log.warning("the damage is remembered by this process only: %s", err)
            else:
                return  # what a marker says, another process can withdraw
        self.index.mark_damaged(slot, positions)


def _are_of(
    records: dict[int, NDArray[np.uint8] | None],
    slots: NDArray[np.int64],
    positions: NDArray[np.int64],
    digests: NDArray[np.uint8],
) -> bool:
    """Say whether key records name these images at these rows."""
    for slot, record in records.items():
        mine = slots == slot
        if record is None or not np.array_equal(record[positions[mine]], digests[mine]):
            return False
    return True


def _reopen(blobs: Blobs, key: str, writable: bool) -> Column:
    return Column(blobs, key, writable=writable)
