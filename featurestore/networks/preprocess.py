"""What a user changes of the published preprocessing. Knows no framework."""

from __future__ import annotations

import copy
from dataclasses import asdict, dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Any, TypeAlias

from featurestore.errors import IdentityError, InvalidInputError, did_you_mean
from featurestore.policy import Alpha, DecodePolicy, Exif, SixteenBit

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from featurestore.typing import Json

Extent: TypeAlias = "int | tuple[int, int]"
"""Pixels: of the shorter side, or (height, width)."""

INTERPOLATIONS = ("nearest", "nearest-exact", "bilinear", "bicubic", "box", "hamming", "lanczos")

_PRESETS = "torchvision.transforms._presets"
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")


@dataclass(frozen=True, slots=True)
class Preprocess:
    """Changes to a published preprocessing, or a callable in its place; see `preprocess`."""

    changes: Mapping[str, Json]
    """What differs from the published preprocessing, as JSON; it takes part in the key."""
    transform: Any = field(default=None, compare=False)
    """The user's own callable from PIL image to tensor or array, known by its id."""

    def to_json(self) -> dict[str, Json]:
        """Return what was changed, and nothing else.

        Returns
        -------
        dict
            JSON-able; empty if everything is as published.
        """
        return dict(self.changes)


def preprocess(
    transform: Callable[[Any], Any] | None = None,
    *,
    id: str | None = None,
    resize: Extent | None = None,
    crop: Extent | None = None,
    center_crop: bool | None = None,
    interpolation: str | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    size: Extent | None = None,
    exif: Exif = "ignore",
    alpha: Alpha = "drop",
    sixteen_bit: SixteenBit = "error",
    frame: int = 0,
    eps_dpi: int | None = None,
) -> Preprocess:
    """Adapt the preprocessing that a model was published with, or replace it.

    Whatever is not named stays as published. What a model cannot honour is an error when the
    model is loaded, never ignored. Every change makes another column.

    Parameters
    ----------
    transform : callable, optional
        Used in place of the published transform: PIL image in, tensor or array of one image out.
    id : str, optional
        What `transform` is called from now on; choose a new one whenever its code changes.
        Only a transform of torchvision's own weights (``weights.transforms()``) needs none.
    resize : int or (int, int), optional
        Resize the shorter side to this, or to exactly (height, width) [px].
    crop : int or (int, int), optional
        Size of the central crop [px].
    center_crop : bool, optional
        ``False``: no crop; the picture is resized to exactly `resize` if given, else to the
        size of the crop, whatever its aspect ratio.
    interpolation : str, optional
        ``"bilinear"``, ``"bicubic"``, ``"nearest"``, ``"lanczos"``, …
    mean, std : sequence of float, optional
        Per channel, for pictures with values from 0 to 1.
    size : int or (int, int), optional
        Resize to exactly this (an integer: a square), whatever the aspect ratio, and crop
        nothing [px]. Models for segmentation and detection publish no size and need it.
    exif : {"ignore", "apply"}
        Whether to turn the picture as its EXIF orientation says.
    alpha : {"drop", "white", "black", "grey"}
        What transparent pixels become.
    sixteen_bit : {"error", "scale", "clip"}
        What is done with 16-bit pictures.
    frame : int
        Which frame of an animated picture.
    eps_dpi : int, optional
        Resolution at which EPS is drawn.

    Returns
    -------
    Preprocess
        To be passed as ``preprocess=``.

    Raises
    ------
    InvalidInputError
        If a value means nothing, or two of them contradict each other.
    IdentityError
        If `transform` has no `id`.

    Examples
    --------
    >>> preprocess(resize=(224, 224), center_crop=False, exif="apply").to_json()
    {'resize': [224, 224], 'center_crop': False, 'decode': {'exif': 'apply'}}
    """
    changes: dict[str, Json] = {}
    for name, extent in (("resize", resize), ("crop", crop), ("size", size)):
        if extent is not None:
            changes[name] = _extent(name, extent)
    if center_crop is not None:
        changes["center_crop"] = _flag(center_crop)
    if interpolation is not None:
        changes["interpolation"] = _interpolation(interpolation)
    for name, values in (("mean", mean), ("std", std)):
        if values is not None:
            changes[name] = [float(value) for value in values]
    _require_consistent(changes)
    if transform is not None:
        if id is None and published_parameters(transform) is not None:
            # Known by its parameters, so what its owner makes of it later must not reach us.
            transform = copy.deepcopy(transform)
        changes = _identified(transform, id, changes)
    elif id is not None:
        raise InvalidInputError(f"id={id!r} names a transform, and none was given.")
    policy = DecodePolicy(exif, alpha, sixteen_bit, frame, eps_dpi)
    decode = _changed_decode(policy)
    return Preprocess({**changes, "decode": decode} if decode else changes, transform)


def as_preprocess(given: object, preprocess_id: str | None = None) -> Preprocess:
    """Accept what users pass as ``preprocess=``.

    Parameters
    ----------
    given : Preprocess, callable or None
        ``None`` keeps the published preprocessing.
    preprocess_id : str, optional
        Name of a callable.

    Returns
    -------
    Preprocess
        What was meant.

    Raises
    ------
    IdentityError
        If a callable has no id.
    InvalidInputError
        If it is none of these.
    """
    if isinstance(given, Preprocess):
        if preprocess_id is not None:
            raise InvalidInputError(
                f"preprocess_id={preprocess_id!r} was given for a preprocess that says what it "
                "is; write fs.preprocess(transform, id=…) or pass the transform itself."
            )
        return given
    if given is None:
        return Preprocess({})
    if not callable(given):
        raise InvalidInputError(
            f"preprocess={given!r} is a {type(given).__name__}; pass fs.preprocess(…) or a "
            "callable from PIL image to tensor."
        )
    return preprocess(given, id=preprocess_id)


def decode_policy(changes: Mapping[str, Json] | None) -> DecodePolicy:
    """Return the decode policy that a request asks for.

    Parameters
    ----------
    changes : mapping or None
        As `Preprocess.to_json` returns it.

    Returns
    -------
    DecodePolicy
        The defaults, where nothing was changed.
    """
    decode: Any = (changes or {}).get("decode", {})
    return DecodePolicy(**decode)


def published_parameters(transform: object) -> dict[str, Json] | None:
    """Return what a transform of torchvision's weights does, if it is one.

    Parameters
    ----------
    transform : object
        For example ``AlexNet_Weights.DEFAULT.transforms()``.

    Returns
    -------
    dict or None
        Its class and every attribute; ``None`` for any other object.

    Raises
    ------
    IdentityError
        If it was changed in a way that its parameters do not tell.
    """
    kind = type(transform)
    if kind.__module__ != _PRESETS:
        return None
    facts: dict[str, Any] = {
        name: value.value if isinstance(value, Enum) else copy.deepcopy(value)
        for name, value in sorted(vars(transform).items())
        if not name.startswith("_") and name != "training"
    }
    changed = [name for name, value in facts.items() if callable(value)]
    changed += [name for name in _HOOKS if vars(transform).get(name)]
    changed += ["forward"] if getattr(kind, "forward").__module__ != _PRESETS else []  # noqa: B009
    if changed:
        raise IdentityError(
            f"This {kind.__qualname__} does more than its parameters say: "
            f"{', '.join(changed)} was set. Name it: fs.preprocess(transform, id='v1') "
            "(fs.wrap: preprocess_id='v1'), and change the id whenever the code changes.",
            changed=changed,
        )
    return {"class": f"torchvision.{kind.__qualname__}", **facts}


def _extent(name: str, value: Extent) -> Json:
    sides = list(value) if isinstance(value, list | tuple) else [value]
    if len(sides) not in (1, 2) or any(type(side) is not int or side < 1 for side in sides):
        raise InvalidInputError(
            f"{name}={value!r} is not a size; write 224 or (height, width) in pixels."
        )
    return sides if isinstance(value, list | tuple) else sides[0]


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise InvalidInputError(f"center_crop={value!r} is neither True nor False.")
    return value


def _interpolation(word: str) -> str:
    if word not in INTERPOLATIONS:
        raise InvalidInputError(
            f"interpolation={word!r} is not known.{did_you_mean(word, INTERPOLATIONS)} "
            f"Use one of {', '.join(map(repr, INTERPOLATIONS))}."
        )
    return word


def _require_consistent(changes: Mapping[str, Json]) -> None:
    sized = sorted({"resize", "crop", "center_crop"} & set(changes))
    if "size" in changes and sized:
        raise InvalidInputError(
            f"size= sets the whole geometry and {', '.join(sized)} changes it again; give one."
        )
    if changes.get("center_crop") is False and "crop" in changes:
        raise InvalidInputError("crop= was given with center_crop=False; give resize= or size=.")


def _identified(transform: object, id: object, changes: Mapping[str, Json]) -> dict[str, Json]:
    if changes:
        raise InvalidInputError(
            f"{', '.join(changes)} cannot be changed in a transform of your own; "
            "do it in the callable and give it another id."
        )
    if id is not None:
        if not isinstance(id, str) or not id:
            raise InvalidInputError(f"id={id!r} must be a name, such as 'v1'.")
        return {"id": id}
    parameters = published_parameters(transform)
    if parameters is None:
        raise IdentityError(
            f"What {getattr(transform, '__qualname__', type(transform).__qualname__)!r} does "
            "cannot be told from outside, so activations computed with it could not be told "
            "apart later. Name it: preprocess=fs.preprocess(transform, id='v1') "
            "(fs.wrap: preprocess_id='v1'), and change the id whenever the code changes."
        )
    return {"transform": parameters}


def _changed_decode(policy: DecodePolicy) -> dict[str, Json]:
    published = asdict(DecodePolicy())
    return {name: value for name, value in asdict(policy).items() if value != published[name]}
