"""What a model is, by value: requests, identities and records. Knows no framework."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from featurestore.canonical import digest_of
from featurestore.errors import ModuleNotFoundInModelError, did_you_mean
from featurestore.networks.taps import ModuleInfo

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from featurestore.networks.taps import OutputInfo, Tap
    from featurestore.typing import Json

RECORD_FORMAT = 1

# Devices and versions differ by rounding, about 1e-5 after a deep network; other weights,
# padding or epsilon by far more.
PROBE_RTOL = 1e-3


@dataclass(frozen=True, slots=True)
class ModelRequest:
    """Which model the user asked for, before anything is loaded. Needs no framework."""

    source: str
    name: str
    weights: str
    """``"DEFAULT"``, a member's name, ``"random"``, ``"file:<digest>"`` or an URL with a hash."""
    seed: int | None = None
    """Seed of random weights; ``None`` for any others."""
    preprocess: Mapping[str, Json] | None = None
    """What the user changed of the published preprocessing, as JSON; ``None``: nothing."""
    weights_path: str | None = None
    """Where the file of ``"file:<digest>"`` lies; a label, not part of the alias."""
    transform: Any = field(default=None, compare=False)
    """The user's own callable from PIL image to array, if `preprocess` carries its id."""

    @property
    def alias(self) -> str:
        """Digest of the request: what a store remembers the resolved model under."""
        return digest_of("alias", self.to_json())

    @property
    def label(self) -> str:
        """The model as users write it."""
        return self.name if self.source == "torchvision" else f"{self.source}/{self.name}"

    def to_json(self) -> dict[str, Json]:
        """Return what identifies the request.

        Returns
        -------
        dict
            JSON-able.
        """
        return {
            "source": self.source,
            "name": self.name,
            "weights": self.weights,
            "seed": self.seed,
            "preprocess": None if self.preprocess is None else dict(self.preprocess),
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ModelRequest:
        """Read what `to_json` wrote.

        Parameters
        ----------
        facts : mapping
            JSON-able.

        Returns
        -------
        ModelRequest
            With the same alias; where a file lies and what a callable does is not in it.
        """
        return cls(
            source=str(facts["source"]),
            name=str(facts["name"]),
            weights=str(facts["weights"]),
            seed=facts["seed"],
            preprocess=facts["preprocess"],
        )


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What a loaded model is. Its key changes if, and only if, one of these changes."""

    source: str
    architecture: str
    """The source's name of it; for users' own networks the qualified class."""
    arguments: Mapping[str, Json]
    """Constructor arguments beyond the defaults."""
    structure: str
    """Digest of the built network: classes, settings, non-persistent buffers."""
    weights: str
    """Digest of the state dict in memory."""
    preprocessing: Mapping[str, Json]
    """``{"decode": …, "transform": …}``: from the content of an image to the network's input."""

    @property
    def key(self) -> str:
        """The model key: 32 hex digits."""
        return digest_of("model", self.to_json())

    def to_json(self) -> dict[str, Json]:
        """Return everything that takes part in the key.

        Returns
        -------
        dict
            JSON-able.
        """
        return {
            "source": self.source,
            "architecture": self.architecture,
            "arguments": dict(self.arguments),
            "structure": self.structure,
            "weights": self.weights,
            "preprocessing": dict(self.preprocessing),
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ModelSpec:
        """Read what `to_json` wrote.

        Parameters
        ----------
        facts : mapping
            JSON-able.

        Returns
        -------
        ModelSpec
            The same identity.
        """
        return cls(
            source=str(facts["source"]),
            architecture=str(facts["architecture"]),
            arguments=dict(facts["arguments"]),
            structure=str(facts["structure"]),
            weights=str(facts["weights"]),
            preprocessing=dict(facts["preprocessing"]),
        )


@dataclass(frozen=True, slots=True)
class ModelRecord:
    """What a store remembers of a model, so that it can be read without loading it."""

    spec: ModelSpec
    label: str
    """The model as users write it, such as ``"alexnet"``; not part of the key."""
    weights_label: str
    """What the weights are called, such as ``"IMAGENET1K_V1"`` or ``"random(seed=3)"``."""
    input_shape: tuple[int, ...]
    """Shape of one preprocessed image, such as ``(3, 224, 224)``."""
    modules: tuple[ModuleInfo, ...]
    """In order of first execution; modules that are never called come last."""
    probe: Mapping[str, Sequence[float]]
    """Per module, a few values of its output for a fixed probe image: a fingerprint of what
    the network *does*, compared within tolerance whenever it is loaded."""
    row_depends_on_batch: bool = False
    """Whether an image's values change with its neighbours, so that it must run alone."""
    licence: str = ""
    citation: str = ""
    n_parameters: int = 0

    @property
    def key(self) -> str:
        """The model key: 32 hex digits."""
        return self.spec.key

    def module(self, name: str) -> ModuleInfo:
        """Find a module by its exact name.

        Parameters
        ----------
        name : str
            Its dotted name, as `fs.modules` lists it; ``""`` is the whole network.

        Returns
        -------
        ModuleInfo
            What is known about it.

        Raises
        ------
        ModuleNotFoundInModelError
            If there is none; near misses are suggested.
        """
        for module in self.modules:
            if module.name == name:
                return module
        names = [module.name for module in self.modules]
        wrapped = self.spec.source == "wrapped"  # which no name leads to
        given = "<the wrapped network>" if wrapped else repr(self.label)
        raise ModuleNotFoundInModelError(
            f"{self.label} has no module {name!r}.{did_you_mean(name, names)} "
            f"List its {len(names)} modules with fs.modules({given}).",
            module=name,
            model=self.label,
            choices=names,
        )

    def resolve(self, tap: Tap) -> tuple[Tap, OutputInfo]:
        """Turn what the user wrote into the one spelling that keys are made from.

        Parameters
        ----------
        tap : Tap
            For example ``layer1.0.relu``, meaning its last call.

        Returns
        -------
        Tap
            With call and path filled in.
        OutputInfo
            What is known about that tensor.

        Raises
        ------
        ModuleNotFoundInModelError
            If the model has no such module, call or output.
        InvalidInputError
            If that output cannot be kept as one row per image.
        """
        output = self.module(tap.module).output(tap)
        return replace(tap, call=output.call, path=output.path), output

    def to_json(self) -> dict[str, Json]:
        """Return the record as it is stored.

        Returns
        -------
        dict
            JSON-able.
        """
        return {
            "format": RECORD_FORMAT,
            "key": self.key,
            "spec": self.spec.to_json(),
            "label": self.label,
            "weights_label": self.weights_label,
            "input_shape": list(self.input_shape),
            "modules": [module.to_json() for module in self.modules],
            "probe": {name: list(values) for name, values in self.probe.items()},
            "row_depends_on_batch": self.row_depends_on_batch,
            "licence": self.licence,
            "citation": self.citation,
            "n_parameters": self.n_parameters,
        }

    @classmethod
    def from_json(cls, facts: Mapping[str, Any]) -> ModelRecord:
        """Read what `to_json` wrote.

        Parameters
        ----------
        facts : mapping
            JSON-able.

        Returns
        -------
        ModelRecord
            The same record.
        """
        return cls(
            spec=ModelSpec.from_json(facts["spec"]),
            label=str(facts["label"]),
            weights_label=str(facts["weights_label"]),
            input_shape=tuple(int(n) for n in facts["input_shape"]),
            modules=tuple(ModuleInfo.from_json(module) for module in facts["modules"]),
            probe={name: tuple(values) for name, values in facts["probe"].items()},
            row_depends_on_batch=bool(facts["row_depends_on_batch"]),
            licence=str(facts["licence"]),
            citation=str(facts["citation"]),
            n_parameters=int(facts["n_parameters"]),
        )


def probe_mismatch(
    known: Mapping[str, Sequence[float]], found: Mapping[str, Sequence[float]]
) -> list[str]:
    """Compare what two networks of one key do to the probe image.

    Parameters
    ----------
    known : mapping
        `ModelRecord.probe` as a store remembers it.
    found : mapping
        The same of the network that was just loaded.

    Returns
    -------
    list of str
        Modules whose values differ by more than rounding, in order of execution.
    """
    names = [*known, *(name for name in found if name not in known)]
    return [
        name
        for name in names
        if name not in known or name not in found or not _alike(known[name], found[name])
    ]


def _alike(known: Sequence[float], found: Sequence[float]) -> bool:
    if len(known) != len(found):
        return False
    # The last number is the norm of all values; one of them may differ by a part of that.
    allowed = PROBE_RTOL * max(abs(known[-1]), abs(found[-1]))
    return all(abs(a - b) <= allowed for a, b in zip(known, found, strict=True))
