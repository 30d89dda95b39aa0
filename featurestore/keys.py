"""From model and module to the key of a column: a pure function of what the values depend on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.canonical import digest_of

if TYPE_CHECKING:
    from featurestore.models.taps import Tap
    from featurestore.typing import Json, Precision, StoredDtype


@dataclass(frozen=True, slots=True)
class FeatureSpec:
    """What a column holds. Its key changes if, and only if, one of these changes."""

    model: str
    """The model key."""
    tap: Tap
    """Which tensor, resolved: call and path filled in."""
    readout: str | None
    """What is kept of it; ``None`` is all. ``"flatten"`` is a view and never part of a key."""
    precision: Precision
    dtype: StoredDtype

    @property
    def key(self) -> str:
        """The feature key: 32 hex digits."""
        return digest_of("feature", self.to_json())

    def to_json(self) -> dict[str, Json]:
        """Return everything that takes part in the key.

        Returns
        -------
        dict
            JSON-able.
        """
        return {
            "model": self.model,
            "module": self.tap.module,
            "call": self.tap.call,
            "path": list(self.tap.path),
            "readout": self.readout,
            "precision": self.precision,
            "dtype": self.dtype,
        }
