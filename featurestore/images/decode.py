"""From an image's content to RGB pixels, under an explicit policy. Knows no networks.

Pillow decodes, because published models were trained and are evaluated on what it returns; under
the default policy the pixels are exactly those of ``Image.open(file).convert("RGB")``, except that
pictures which that call destroys (16 bits, floats) are refused.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from featurestore.errors import ImageDecodeError, InvalidInputError
from featurestore.images.digest import orientation, own_copy
from featurestore.images.eps import rasterise
from featurestore.images.formats import READABLE, declared_size, is_eps, why_not_a_picture
from featurestore.options import get_options

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray

    from featurestore.images.content import ImageContent
    from featurestore.policy import DecodePolicy, SixteenBit

# What Pillow raises on damaged pictures; Warning, where the user made warnings errors.
DAMAGE = (
    *(OSError, SyntaxError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
    *(ArithmeticError, EOFError, MemoryError, struct.error, Warning),
)
DEEP_MODES = frozenset({"I;16", "I;16L", "I;16B", "I;16N", "I", "F"})
BACKGROUNDS = {"white": 255, "black": 0, "grey": 128}
MAX_16_BIT = 65535


@dataclass(frozen=True)
class Decoded:
    """The pixels of one image."""

    image: Image.Image
    """RGB, loaded."""
    notes: frozenset[str]
    """Where a default of the policy decided what is seen: ``exif`` (a rotation was ignored),
    ``alpha`` (hidden colours show), ``frames`` (the first of several), ``sixteen_bit`` (colours
    were cut to 8 bits). Nothing where the user chose otherwise."""


@dataclass
class _Opened:
    """A picture as Pillow has it, before the policy."""

    image: Image.Image
    has_frames: bool = False
    packed: str = ""
    """How the file packs its pixels, in Pillow's words."""


def decode(content: ImageContent, policy: DecodePolicy) -> Decoded:
    """Turn an image's content into RGB pixels. Safe to call from many threads.

    Parameters
    ----------
    content : ImageContent
        What `ImageSet.content` returned.
    policy : DecodePolicy
        What to do where there is a choice.

    Returns
    -------
    Decoded
        The pixels, and where a default made a difference.

    Raises
    ------
    ImageDecodeError
        If it is no picture, damaged, too large, or refused by the policy (`reason`).
    InvalidInputError
        If Pillow has been told to accept truncated files.
    """
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise InvalidInputError(
            "PIL.ImageFile.LOAD_TRUNCATED_IMAGES is set, so half a picture would pass for a whole "
            "one. Set it to False."
        )
    try:
        return _under_policy(_open(content, policy), policy)
    except ImageDecodeError:
        raise
    except Image.DecompressionBombError as err:
        raise _refused(
            f"it or a part of it is too large ({err}); if it is no decompression bomb, raise "
            "PIL.Image.MAX_IMAGE_PIXELS"
        ) from err
    except DAMAGE as err:
        said = str(err) or type(err).__name__
        raise _refused(f"it is damaged or of a kind that Pillow cannot read ({said})") from err


def _open(content: ImageContent, policy: DecodePolicy) -> _Opened:
    if isinstance(content.data, bytes):
        return _open_file(content.data, policy)
    if policy.frame:
        raise _refused(f"it has no frame {policy.frame}, only one picture")
    if isinstance(content.data, Image.Image):
        return _Opened(own_copy(content.data))  # some conversions change their source
    return _Opened(Image.fromarray(content.data))


def _open_file(data: bytes, policy: DecodePolicy) -> _Opened:
    if is_eps(data):
        if policy.eps_dpi is None:
            raise _refused(
                "it is EPS, a drawing without pixels; choose a resolution with "
                "fs.preprocess(eps_dpi=...)"
            )
        data = rasterise(data, policy.eps_dpi)
    _require_small(declared_size(data))
    image = _identify(data)
    _require_small(image.size)
    # Not n_frames, unless it is asked for: Pillow counts the pages of a TIFF in quadratic time,
    # and a small file may declare a million.
    has_frames = bool(getattr(image, "is_animated", False))
    if policy.frame:
        _seek(image, policy.frame)
        _require_small(image.size)
    packed = str([tile.args for tile in image.tile])
    image.load()
    # The second picture of a camera's MPO is a preview or a gain map, not an alternative.
    return _Opened(image, has_frames and image.format != "MPO", packed)


def _seek(image: ImageFile.ImageFile, frame: int) -> None:
    try:
        image.seek(frame)
    except EOFError as err:
        # Of a TIFF, Pillow stands at the last page, and its count is wrong by now.
        tiff = image.format == "TIFF"
        n_frames = image.tell() + 1 if tiff else getattr(image, "n_frames", 1)
        raise _refused(f"it has no frame {frame}, only {n_frames}, counted from 0") from err


def _identify(data: bytes) -> ImageFile.ImageFile:
    for accepts, factory in _openers():
        if accepts(data[:16]):
            return factory(io.BytesIO(data), "")
    raise _refused(why_not_a_picture(data))


@cache
def _openers() -> tuple[tuple[Callable[[bytes], Any], Callable[..., ImageFile.ImageFile]], ...]:
    # Not Image.open: its limit on pixels is one global, and its warning cannot be silenced in one
    # thread alone. These are the same decoders.
    Image.init()
    registered = (Image.OPEN[name] for name in READABLE if name in Image.OPEN)
    return tuple((accepts, factory) for factory, accepts in registered if accepts is not None)


def _require_small(size: tuple[int, int]) -> None:
    (width, height), most = size, get_options().max_image_pixels
    if width * height > most:
        raise _refused(
            f"it has {width} x {height} pixels, more than max_image_pixels={most} "
            "allows; if it is no decompression bomb, raise that with fs.set_options"
        )


def _under_policy(opened: _Opened, policy: DecodePolicy) -> Decoded:
    image, notes = opened.image, set()
    if opened.has_frames and policy.frame == 0:
        notes.add("frames")
    if orientation(image) != 1:
        if policy.exif == "apply":
            image = ImageOps.exif_transpose(image)
        else:
            notes.add("exif")
    if image.mode in DEEP_MODES:
        image = _eight_bits(image, policy.sixteen_bit, opened.packed)
    elif ";16" in opened.packed and policy.sixteen_bit == "error":
        notes.add("sixteen_bit")  # Pillow keeps the upper byte of each colour
    if image.mode == "La":
        image = image.convert("LA")  # Pillow has no direct way to RGB
    if _is_transparent(image):
        if policy.alpha == "drop":
            notes.add("alpha")
        else:
            image = _on_background(image, BACKGROUNDS[policy.alpha])
    image.info.pop("transparency", None)  # convert would warn, and changes no pixel for it
    return Decoded(image.convert("RGB"), frozenset(notes))


def _eight_bits(image: Image.Image, choice: SixteenBit, packed: str) -> Image.Image:
    if choice == "error":
        raise _refused(
            f"its values have more than 8 bits (Pillow's mode {image.mode}), and simply converting "
            "them would turn them white or black; choose fs.preprocess(sixteen_bit='scale') to map "
            "the full range to 8 bits, or 'clip' to cut values at 255"
        )
    if choice == "clip":
        return image
    values = np.asarray(image)
    if image.mode == "F":
        _require_range(values, 0, 1)
        scaled = np.rint(values * 255)
    else:
        if ";12" in packed:
            raise _refused("it has 12 bits, not 16; convert it to 8 or 16 bits first")
        _require_range(values, 0, MAX_16_BIT)
        scaled = np.rint(values / 257)
    grey = Image.fromarray(scaled.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey.putalpha(Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8)))
    return grey


def _require_range(values: NDArray[Any], low: int, high: int) -> None:
    least, most = values.min(), values.max()
    if not (least >= low and most <= high):  # also where they are NaN
        raise _refused(
            f"its values lie in [{least:g}, {most:g}]; sixteen_bit='scale' maps [{low}, {high}] to "
            "8 bits, so convert it yourself first"
        )


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return image.convert("RGBA").getchannel("A").getextrema() != (255, 255)


def _on_background(image: Image.Image, level: int) -> Image.Image:
    background = Image.new("RGBA", image.size, (level, level, level, 255))
    return Image.alpha_composite(background, image.convert("RGBA"))


def describe_notes(counts: Mapping[str, int], n: int) -> str | None:
    """Word the one warning about pictures that could have been read in another way.

    Parameters
    ----------
    counts : mapping of str to int
        How many images carry each note of `Decoded.notes`.
    n : int
        How many images were decoded.

    Returns
    -------
    str or None
        What was done to how many images, and how to choose otherwise; None if nothing was.
    """
    said = [
        f"{counts[note]} of {n} images {_NOTES[note]}" for note in _NOTES if counts.get(note, 0)
    ]
    if not said:
        return None
    return (
        f"{'; '.join(said)}. The defaults are what the models' own loaders do; each choice is kept "
        "in columns of its own."
    )


_NOTES = {
    "exif": (
        "carry an EXIF rotation that is ignored (fs.preprocess(exif='apply') turns them upright)"
    ),
    "alpha": (
        "have transparent pixels whose hidden colours show (fs.preprocess(alpha='white'), 'black' "
        "or 'grey' puts them on a background)"
    ),
    "frames": "have several frames, of which the first is taken (fs.preprocess(frame=...))",
    "sixteen_bit": (
        "have 16 bits per colour, of which the upper 8 are used (fs.preprocess(sixteen_bit='scale')"
        " does the same without this warning)"
    ),
}


def _refused(reason: str) -> ImageDecodeError:
    return ImageDecodeError(f"An image cannot be decoded: {reason}.", reason=reason)
