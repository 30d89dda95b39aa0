"""Thumbnails: which picture belongs to which name, read and made small."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from featurestore.errors import FeatureStoreWarning, ImageDecodeError, InvalidInputError
from featurestore.filehash import open_regular
from featurestore.images.content import ImageContent
from featurestore.images.decode import decode
from featurestore.images.folder import find_images
from featurestore.images.imageset import ImageSet
from featurestore.options import get_options
from featurestore.policy import DecodePolicy

if TYPE_CHECKING:
    import xarray as xr
    from numpy.typing import NDArray

    from featurestore.typing import PathLike

    Thumbnail = NDArray[np.uint8]
    Reader = Callable[[str], ImageContent]

# As people look at pictures, whatever a network was shown.
POLICY = DecodePolicy(exif="apply", alpha="white", sixteen_bit="scale")
EDGE_PX = 128
N_NAMED = 5


def read_thumbnails(
    rdm: xr.DataArray, dim: str, positions: NDArray[np.intp], given: Any
) -> list[Thumbnail | None]:
    """Read the pictures of some images, cut to squares.

    Parameters
    ----------
    rdm : DataArray (image, …)
        What the images are named in.
    dim : str
        Its dim.
    positions : ndarray of shape (n,), intp
        Which images, and in which order.
    given : True, ImageSet, path or mapping
        Where the pictures are: at the coordinate ``path``, in an image set, in a folder, or under
        their names as paths, arrays or PIL images.

    Returns
    -------
    list of ndarray of shape (128, 128, 3), uint8, or None
        None where there is no picture; a warning names these, once.

    Raises
    ------
    InvalidInputError
        If not one picture is found, or `given` is no source of pictures.
    """
    names = [str(name) for name in rdm[dim].values[positions]]
    read = _reader(rdm, dim, given)
    with ThreadPoolExecutor(get_options().n_decode_workers) as pool:
        found = list(pool.map(partial(_thumbnail_or_reason, read), names))
    failures = {name: one for name, one in zip(names, found, strict=True) if isinstance(one, str)}
    if failures:
        _say(failures, len(set(names)))
    return [None if isinstance(one, str) else one for one in found]


def _say(failures: Mapping[str, str], n: int) -> None:
    listed = "; ".join(f"{name!r}: {why}" for name, why in list(failures.items())[:N_NAMED])
    more = f"; and {len(failures) - N_NAMED:,} more" if len(failures) > N_NAMED else ""
    if len(failures) == n:
        raise InvalidInputError(
            f"There is not one picture to be shown ({listed}{more}). Give them with thumbnails=: a "
            "folder, an ImageSet, or a dict from names to paths, arrays or PIL images.",
            failures=dict(failures),
        )
    warnings.warn(
        f"{len(failures):,} of {n:,} thumbnails cannot be shown and are left grey: {listed}{more}.",
        FeatureStoreWarning,
        stacklevel=4,
    )


def _reader(rdm: xr.DataArray, dim: str, given: Any) -> Reader:
    """Return a function from names to what is to be decoded."""
    if given is True:
        return _by_path(rdm, dim)
    if isinstance(given, ImageSet):
        return partial(_of_set, given, {name: i for i, name in enumerate(given.names)})
    if isinstance(given, Mapping):
        return partial(_of_item, {str(name): item for name, item in given.items()})
    if isinstance(given, str | os.PathLike):
        return partial(_of_item, _in_folder(given))
    raise InvalidInputError(
        f"thumbnails= cannot be a {type(given).__qualname__}. Use True (the files at the "
        "coordinate 'path'), a folder, an ImageSet, or a dict from names to paths, arrays or PIL "
        "images."
    )


def _by_path(rdm: xr.DataArray, dim: str) -> Reader:
    if "path" not in rdm.coords or rdm["path"].dims != (dim,):
        raise InvalidInputError(
            f"The RDM has no coordinate 'path' along {dim!r} that says where the pictures are. "
            "Give them with thumbnails=: a folder, an ImageSet, or a dict from names to paths, "
            "arrays or PIL images."
        )
    names = [str(name) for name in rdm[dim].values]
    paths = dict(zip(names, rdm["path"].values, strict=True))
    digests: dict[str, str] = {}
    if "digest" in rdm.coords and rdm["digest"].dims == (dim,):
        digests = dict(zip(names, rdm["digest"].values.astype(str), strict=True))
    return partial(_of_path, paths, digests)


def _of_path(paths: Mapping[str, Any], digests: Mapping[str, str], name: str) -> ImageContent:
    content = _of_item(paths, name)
    if name in digests and content.digest.hex() != digests[name]:
        raise _unusable("the file was changed since, and shows another picture")
    return content


def _of_set(images: ImageSet, places: Mapping[str, int], name: str) -> ImageContent:
    if name not in places:
        raise _unusable("the image set has no image of that name")
    return images.content(places[name])


def _of_item(items: Mapping[str, Any], name: str) -> ImageContent:
    item = items.get(name)
    if item is None:
        raise _unusable("there is no picture of that name")
    if isinstance(item, Image.Image):
        return ImageContent.of(item)
    if isinstance(item, str | os.PathLike):
        with open_regular(item) as file:
            return ImageContent.of(file.read())
    array = np.asarray(item)
    if array.dtype != np.uint8:
        raise _unusable(f"an array of {array.dtype} is no picture; convert it to uint8")
    return ImageContent.of(np.ascontiguousarray(array))


def _in_folder(folder: PathLike) -> dict[str, str]:
    """Name the pictures of a folder by relative path, and by file name and stem where unique."""
    root = Path(folder).expanduser().absolute()
    if not root.is_dir():
        raise InvalidInputError(f"There is no folder {str(root)!r} to take thumbnails from.")
    relative, _ = find_images(str(root))
    found: dict[str, str] = {}
    for shorter in _SHORTER:
        keys = [shorter(PurePosixPath(name)) for name in relative]
        times = Counter(keys)
        pairs = zip(keys, relative, strict=True)
        found |= {key: str(root / name) for key, name in pairs if times[key] == 1}
    return found | {name: str(root / name) for name in relative}


_SHORTER: tuple[Callable[[PurePosixPath], str], ...] = (
    lambda path: path.stem,
    lambda path: path.name,
    lambda path: path.with_suffix("").as_posix(),
)


def _thumbnail_or_reason(read: Reader, name: str) -> Thumbnail | str:
    try:
        picture = decode(read(name), POLICY).image
    except ImageDecodeError as err:
        return str(err.facts.get("reason", err))
    except OSError as err:
        return err.strerror or str(err)
    side = min(picture.size)
    left, top = (picture.width - side) // 2, (picture.height - side) // 2
    square = picture.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((EDGE_PX, EDGE_PX), Image.Resampling.LANCZOS))


def _unusable(reason: str) -> ImageDecodeError:
    return ImageDecodeError(f"An image cannot be shown: {reason}.", reason=reason)
