"""What identifies a picture in memory: a hash over a tagged description and its pixels.

A file is known by its bytes (`featurestore.filehash`). Arrays and PIL images hash a header that no
picture format begins with, so they never equal a file, nor each other.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import numpy as np
from PIL.Image import Exif

from featurestore.canonical import canonical_json
from featurestore.errors import InvalidInputError
from featurestore.filehash import hash_bytes

if TYPE_CHECKING:
    from numpy.typing import ArrayLike, NDArray
    from PIL.Image import Image

    from featurestore.typing import Digest, Json

TAG = b"featurestore:image:1\n"
ORIENTATION = 0x0112  # the EXIF tag
# Pillow writes these in the machine's byte order.
_WIDE = {"I": "<i4", "F": "<f4"}


def array_digest(array: ArrayLike) -> Digest:
    """Return the digest of a picture given as an array.

    Parameters
    ----------
    array : ndarray of shape (height, width) or (height, width, 3), uint8
        Grey or RGB; any memory layout.

    Returns
    -------
    bytes
        16 bytes; the same for every memory layout of equal arrays.

    Raises
    ------
    InvalidInputError
        If the array is not such a picture.
    """
    pixels = require_picture(np.asarray(array))
    header: dict[str, Json] = {
        "kind": "array",
        "mode": "L" if pixels.ndim == 2 else "RGB",
        "dtype": "uint8",
        "shape": list(pixels.shape),
    }
    return _tagged(header, np.ascontiguousarray(pixels).data)


def pil_digest(image: Image) -> Digest:
    """Return the digest of a PIL image.

    Parameters
    ----------
    image : PIL.Image.Image
        Its current frame counts, with palette, transparency and EXIF orientation; what does not
        change pixels (resolution, comments, colour profile) does not.

    Returns
    -------
    bytes
        16 bytes.
    """
    own = image.copy()  # reading a palette with transparency changes the image
    header: dict[str, Json] = {
        "kind": "pil",
        "mode": own.mode,
        "dtype": _WIDE.get(own.mode, "bytes"),
        "shape": [own.height, own.width],
        "palette": _palette(own),
        "transparency": _transparency(own),
        "orientation": orientation(image),
    }
    if own.mode in _WIDE:
        return _tagged(header, np.asarray(own).astype(_WIDE[own.mode]).data)
    return _tagged(header, own.tobytes())


def require_picture(array: NDArray[np.generic]) -> NDArray[np.uint8]:
    """Check that an array is one picture.

    Parameters
    ----------
    array : ndarray
        Anything.

    Returns
    -------
    ndarray of shape (height, width) or (height, width, 3), uint8
        The same array.

    Raises
    ------
    InvalidInputError
        Saying what to do, if it is anything else.
    """
    found = f"An array of shape {array.shape} and dtype {array.dtype} is not a picture"
    if array.dtype != np.uint8:
        raise InvalidInputError(
            f"{found}: pictures are uint8 with values from 0 to 255. Convert it yourself, for "
            "example (255 * array).round().astype('uint8') for values from 0 to 1."
        )
    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] != 3):
        advice = "pass height x width (grey) or height x width x 3 (RGB)"
        if array.ndim == 3 and array.shape[0] == 3:
            advice = "channels come last: array.transpose(1, 2, 0)"
        elif array.ndim == 3 and array.shape[2] == 4:
            advice = "with alpha, pass PIL images: PIL.Image.fromarray(array)"
        elif array.ndim == 3 and array.shape[2] == 1:
            advice = "for grey, drop the last axis: array[:, :, 0]"
        raise InvalidInputError(f"{found}: {advice}.")
    if array.size == 0:
        raise InvalidInputError(f"{found}: it has no pixels.")
    return array.view(np.uint8)


def orientation(image: Image) -> int:
    """Return the EXIF orientation of a loaded image.

    Parameters
    ----------
    image : PIL.Image.Image
        Loaded.

    Returns
    -------
    int
        1 (upright) to 8; 1 where there is none, or none that can be read.
    """
    try:
        found = image.getexif().get(ORIENTATION, 1)
    # What damaged EXIF data raises in Pillow; the warning, where warnings are errors.
    except (OSError, ValueError, SyntaxError, TypeError, LookupError, struct.error, Warning):
        return 1
    return found if isinstance(found, int) and 1 <= found <= 8 else 1


def own_copy(image: Image) -> Image:
    """Return a copy that shares nothing, with the orientation that a plain copy may forget.

    Parameters
    ----------
    image : PIL.Image.Image
        At any frame; that frame is copied.

    Returns
    -------
    PIL.Image.Image
        Loaded.
    """
    own = image.copy()
    # Set by hand, the orientation is lost in copies and pickles unless it is kept as bytes.
    tags = Exif()
    tags[ORIENTATION] = orientation(image)
    own.info["exif"] = tags.tobytes()
    return own


def _tagged(header: dict[str, Json], pixels: bytes | memoryview) -> Digest:
    return hash_bytes(TAG + canonical_json(header) + b"\n", pixels)


def _palette(own: Image) -> Json:
    if own.mode not in ("P", "PA"):
        return None
    if isinstance(own.info.get("transparency"), int | bytes):
        own.convert("RGBA")  # writes the transparency into the palette, as any use would
    return own.getpalette("RGBA")


def _transparency(own: Image) -> Json:
    value = own.info.get("transparency")
    if value is None or isinstance(value, int):
        return value
    return value.hex() if isinstance(value, bytes) else [int(part) for part in value]
