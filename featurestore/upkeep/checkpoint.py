"""Where an interrupted check goes on: a note outside of the store, which may be read-only."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from featurestore.canonical import digest_of
from featurestore.errors import CorruptDataError
from featurestore.options import get_options
from featurestore.storage.layout import MARKER

if TYPE_CHECKING:
    from featurestore.storage.catalog import Catalog

_log = logging.getLogger(__name__)

SAVE_EVERY_S = 5.0


class Checkpoint:
    """Which slots were found whole. A slot counts only while its files are what they were.

    Parameters
    ----------
    catalog : Catalog
        The store.
    restart : bool
        Whether to forget what an interrupted check did.
    """

    def __init__(self, catalog: Catalog, *, restart: bool) -> None:
        marker: dict[str, Any] = {}
        with contextlib.suppress(CorruptDataError):
            marker = catalog.read(MARKER) or {}
        name = digest_of("verify", [str(marker.get("store")), str(Path(str(catalog)).absolute())])
        self._path = get_options().cache_dir / "verify" / f"{name}.json"
        self._whole: dict[str, dict[str, str]] = {}
        self._saved = time.monotonic()
        if restart:
            self._path.unlink(missing_ok=True)
        with contextlib.suppress(OSError, ValueError, TypeError, AttributeError):
            held = json.loads(self._path.read_text(encoding="utf-8"))
            self._whole = {str(key): dict(slots) for key, slots in held.items()}

    def is_whole(self, column: str, slot: int, version: str) -> bool:
        """Say whether a slot was found whole before.

        Parameters
        ----------
        column : str
            The feature key.
        slot : int
            The slot's number.
        version : str
            Of its files.

        Returns
        -------
        bool
            Whether it need not be read again.
        """
        return self._whole.get(column, {}).get(str(slot)) == version

    def note(self, column: str, slot: int, version: str) -> None:
        """Remember that a slot is whole.

        Parameters
        ----------
        column : str
            The feature key.
        slot : int
            The slot's number.
        version : str
            Of its files.
        """
        self._whole.setdefault(column, {})[str(slot)] = version
        if time.monotonic() - self._saved > SAVE_EVERY_S:
            self.save()

    def save(self) -> None:
        """Write the note; a check that cannot keep one starts anew when it is interrupted."""
        self._saved = time.monotonic()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            temporary = self._path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self._whole), encoding="utf-8")
            temporary.replace(self._path)
        except OSError as err:
            _log.warning("how far the check came cannot be noted: %s", err)

    def finish(self) -> None:
        """Forget everything: the next check starts anew."""
        self._path.unlink(missing_ok=True)
