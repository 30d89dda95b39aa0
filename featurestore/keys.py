"""From model and module to the key of a column: a pure function of what the values depend on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, get_args

from featurestore.canonical import digest_of
from featurestore.errors import InvalidInputError
from featurestore.networks.taps import Tap
from featurestore.readouts import readout_shape, stored_readout
from featurestore.typing import Precision, StoredDtype

if TYPE_CHECKING:
    from featurestore.networks.spec import ModelRecord
    from featurestore.typing import Json


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


@dataclass(frozen=True, slots=True)
class Wanted:
    """One column that is wanted, and how its values are shown."""

    module: str
    """The module as the user wrote it."""
    feature: FeatureSpec
    readout: str | None
    """As the user asked; the column's own readout is in `feature`."""
    full_dims: tuple[str, ...]
    full_shape: tuple[int, ...]
    """Axes of the module's own output, for one image."""
    dims: tuple[str, ...]
    shape: tuple[int, ...]
    """Axes of a stored row."""
    canonical: str = ""
    """The module with the selectors that matter, the same however the user wrote it."""

    @property
    def key(self) -> str:
        """The feature key."""
        return self.feature.key

    @property
    def full(self) -> FeatureSpec | None:
        """The column that this one can be derived from; ``None`` if it is a full one itself."""
        feature = self.feature
        if feature.readout is None:
            return None
        return FeatureSpec(feature.model, feature.tap, None, feature.precision, "float32")


def want(
    record: ModelRecord,
    module: str,
    *,
    readout: str | None,
    precision: Precision,
    dtype: StoredDtype,
) -> Wanted:
    """Find the column that a request means.

    Parameters
    ----------
    record : ModelRecord
        The model.
    module : str
        A module with selectors, as the user wrote it.
    readout : {None, "flatten", "avgpool"}
        What is kept of its output.
    precision : {"fp32", "tf32", "bf16", "fp16"}
        Arithmetic of the forward pass.
    dtype : {"float32", "float16"}
        Stored dtype.

    Returns
    -------
    Wanted
        The column.

    Raises
    ------
    ModuleNotFoundInModelError
        If the model has no such module.
    InvalidInputError
        If the module's output cannot be kept, or the readout does not fit it.
    """
    _require_word("dtype", dtype, get_args(StoredDtype))
    _require_word("precision", precision, get_args(Precision))
    if not isinstance(module, str):
        raise InvalidInputError(
            f"{module!r} is not a module's name. get() takes one name, such as 'features.10'; "
            "get_many() takes a list of them."
        )
    tap, output = record.resolve(Tap.parse(module))
    kept = stored_readout(readout)
    readout_shape(readout, output.dims, output.shape, module)  # refuses what does not fit
    dims, shape = readout_shape(kept, output.dims, output.shape, module)
    return Wanted(
        module=module,
        feature=FeatureSpec(record.key, tap, kept, precision, dtype),
        readout=readout,
        full_dims=output.dims,
        full_shape=output.shape,
        dims=dims,
        shape=shape,
        canonical=spell_tap(record, tap),
    )


def _require_word(name: str, word: object, choices: tuple[str, ...]) -> None:
    if not isinstance(word, str) or word not in choices:
        raise InvalidInputError(
            f"{name}={word!r} is not known. Use {' or '.join(repr(choice) for choice in choices)}."
        )


def spell_tap(record: ModelRecord, tap: Tap) -> str:
    """Write a resolved tap without the selectors that choose among one.

    Parameters
    ----------
    record : ModelRecord
        The model.
    tap : Tap
        With call and path filled in.

    Returns
    -------
    str
        Such as ``"features.10"`` or ``"layer1.0.relu@1"``.
    """
    # A column may outlive its module in a record that was changed; it is named all the same.
    once = any(module.name == tap.module and module.n_calls == 1 for module in record.modules)
    return str(replace(tap, call=None) if once else tap)
