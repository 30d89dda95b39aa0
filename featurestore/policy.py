"""How the content of an image becomes pixels, where there is a choice.

The choices are part of the key, because each changes the numbers: ignoring an EXIF rotation moves
a penultimate layer by 89 %, dropping alpha by 18 to 61 %. The defaults are what the models' own
loaders do, except where these silently destroy the picture (16-bit becomes all white).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Literal, get_args

from featurestore.errors import InvalidInputError

if TYPE_CHECKING:
    from featurestore.typing import Json

Exif = Literal["ignore", "apply"]
Alpha = Literal["drop", "white", "black", "grey"]
SixteenBit = Literal["error", "scale", "clip"]


@dataclass(frozen=True, slots=True)
class DecodePolicy:
    """What is done where a picture can be read in more than one way."""

    exif: Exif = "ignore"
    """``"apply"`` turns the picture as its EXIF orientation says."""
    alpha: Alpha = "drop"
    """``"drop"`` shows the hidden colours; a colour composites the picture on it first."""
    sixteen_bit: SixteenBit = "error"
    """``"scale"`` maps the full range of 16-bit integers (or floats in 0 to 1) to 8 bits;
    ``"clip"`` cuts values at 255, as Pillow's ``convert("RGB")`` does; the default refuses."""
    frame: int = 0
    """Which frame or page of an animated or multi-page picture, from 0."""
    eps_dpi: int | None = None
    """Resolution at which EPS is drawn [dots per inch]; ``None`` refuses EPS."""

    def __post_init__(self) -> None:
        """Refuse words that mean nothing."""
        for name, choices in (("exif", Exif), ("alpha", Alpha), ("sixteen_bit", SixteenBit)):
            if getattr(self, name) not in get_args(choices):
                raise InvalidInputError(
                    f"{name}={getattr(self, name)!r} is not known. "
                    f"Use one of {', '.join(map(repr, get_args(choices)))}."
                )
        if type(self.frame) is not int or self.frame < 0:
            raise InvalidInputError(f"frame={self.frame!r} is not a frame number from 0.")
        dpi = self.eps_dpi
        if dpi is not None and not (type(dpi) is int and 1 <= dpi <= 2400):
            raise InvalidInputError(f"eps_dpi={dpi!r} is not a resolution from 1 to 2400.")

    def to_json(self) -> dict[str, Json]:
        """Return the policy as it stands in keys and records.

        Returns
        -------
        dict
            Every choice by its name.
        """
        return asdict(self)
