"""From what a user has (a folder, files, arrays, PIL images, an HDF5 dataset) to an `ImageSet`."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL.Image import Image

from featurestore.errors import ImageDecodeError, InvalidInputError
from featurestore.filehash import file_digests
from featurestore.images.columns import escaped
from featurestore.images.content import Files, ImageContent, InMemory, why_unreadable
from featurestore.images.digest import own_copy, require_picture
from featurestore.images.folder import class_coords, find_images, is_picture
from featurestore.images.hdf5 import find_rows, is_hdf5
from featurestore.images.imageset import ImageSet, require_names

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.images.content import Picture, Source
    from featurestore.typing import Digest, PathLike

MISNAMED = "its name is not valid Unicode (UTF-8); rename the file, or give names with names="
N_LISTED = 100  # failures spelled out in a message; all are in `failures`


@dataclass(frozen=True)
class _Found:
    """What a source holds, before it is named."""

    source: Source
    digests: Sequence[Digest]
    label: str
    names: Sequence[str] | None = None
    """None: known by nothing but their content."""
    coords: dict[str, Any] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)
    """Images that were asked for and cannot be read, with the reason; not among the others."""


def read_images(
    source: Any,
    *,
    names: Sequence[str] | str | None = None,
    file_names: Sequence[PathLike] | None = None,
    root: PathLike | None = None,
    dataset: str | None = None,
    index: Any = None,
    label: str | None = None,
    columns: Mapping[str, Any] | None = None,
) -> ImageSet:
    """Take stock of images: their order, names and contents. No picture is decoded.

    Parameters
    ----------
    source : path, list, dict, array or PIL image
        One of

        - a folder: every image in it and its sub-folders, sorted by their relative path; the
          first level of sub-folders becomes the coordinate ``category`` (empty for images beside
          them), its number among the sorted names ``target`` (-1 for those);
        - a file, a list of files (in that order), or a pattern such as ``"stimuli/*.png"``;
        - an HDF5 file, with `dataset`;
        - arrays, uint8, of shape (height, width) or (height, width, 3): one, a list, or a stack
          of shape (n, height, width, 3);
        - PIL images: one or a list;
        - a dict from names to any of files, arrays or PIL images.
    names : sequence of str or "stem", optional
        What the images are called. By default the path relative to the folder or `root`; of other
        files the file's name; of arrays and PIL images their digest, never their position.
        ``"stem"`` drops the suffix.
    file_names : sequence of path, optional
        Of a folder, take only these, in exactly this order.
    root : path, optional
        The folder that names of listed files are relative to.
    dataset : str, optional
        Name of the dataset in an HDF5 file, of shape (n, height, width[, 3]), uint8.
    index : int, slice, sequence of int or boolean mask, optional
        Rows of the dataset, from 0, in this order; kept as the coordinate ``index``.
    label : str, optional
        What the set is called in listings; by default after its source.
    columns : mapping of str to sequence, or DataFrame, optional
        Further coordinates, one value per image.

    Returns
    -------
    ImageSet
        Names, digests and coordinates; files are read again when they are needed.

    Raises
    ------
    InvalidInputError
        If nothing is found, two different images have one name, or the source is of no known kind.
    ImageDecodeError
        If files are missing or unreadable (`failures`: name to reason).
    MissingDependencyError
        If HDF5 is asked for and h5py is not installed.
    """
    options = {"file_names": file_names, "root": root, "dataset": dataset, "index": index}
    given = {name: value for name, value in options.items() if value is not None}
    found = _find(source, given)
    if names is None or isinstance(names, str):
        found = _well_named(found)
    if found.failures:
        raise _unreadable(found.failures, len(found.digests) + len(found.failures))
    if isinstance(source, Mapping) and names is not None:
        raise InvalidInputError("The names are the dict's keys; leave out names=.")
    images = ImageSet(
        _named(found, names),
        np.frombuffer(b"".join(found.digests), dtype=np.uint8),
        found.coords,
        label=found.label if label is None else label,
        source=found.source,
    )
    return images.assign_coords(**dict(columns.items())) if columns is not None else images


def take_images(source: Any) -> tuple[ImageSet, dict[str, str]]:
    """Return an image set as it is; of anything else, the images that can be read.

    Parameters
    ----------
    source : ImageSet or anything that `read_images` takes
        Images.

    Returns
    -------
    images : ImageSet
        Those whose content is at hand.
    failures : dict of str
        Name of each of the others, and why: a missing file costs nobody else's features.

    Raises
    ------
    InvalidInputError
        As `read_images`.
    ImageDecodeError
        If none of several can be read.
    """
    if isinstance(source, ImageSet):
        return source, {}
    found = _well_named(_find(source, {}))
    if found.failures and not found.digests:
        raise _unreadable(found.failures, len(found.failures))
    digests = np.frombuffer(b"".join(found.digests), dtype=np.uint8)
    names = _named(found, None)
    images = ImageSet(names, digests, found.coords, label=found.label, source=found.source)
    return images, found.failures


def _find(source: Any, given: dict[str, Any]) -> _Found:
    if isinstance(source, str | os.PathLike):
        if not os.fspath(source):
            raise InvalidInputError("The path of the images is empty; '.' is the current folder.")
        return _at_path(source, given)
    if isinstance(source, Mapping):
        _allow(given, (), "a dict")
        names = require_names(list(source))
        return _of_items(list(source.values()), names, {}, "images")
    _allow(given, ("root",), "a list")
    if isinstance(source, Image):
        return _in_memory([source], None)
    if isinstance(source, ImageSet):
        raise InvalidInputError("This is an image set already; choose from it with images[...].")
    if _is_array(source):
        return _in_memory(_stack(np.asarray(source)), None)
    if isinstance(source, Iterable) and not isinstance(source, bytes | set | frozenset):
        return _of_items(list(source), None, given, "images")
    raise InvalidInputError(
        f"Images cannot be read from a {type(source).__qualname__}; pass a folder, a list of "
        "files, a pattern, arrays, PIL images, a dict of these, or an HDF5 file with dataset=."
    )


def _at_path(source: PathLike, given: dict[str, Any]) -> _Found:
    path = _absolute(source)
    if Path(path).is_dir():
        _allow(given, ("file_names",), "a folder")
        return _in_folder(path, given.get("file_names"))
    if "dataset" in given or "index" in given or is_hdf5(path):
        _allow(given, ("dataset", "index"), "an HDF5 file")
        return _in_hdf5(path, given.get("dataset"), given.get("index"))
    _allow(given, ("root",), "a file or pattern")
    paths = [path] if os.path.lexists(path) else _matches(source)
    return _of_items(paths, None, given, PurePath(path).name)


def _matches(pattern: PathLike) -> list[str]:
    text = str(Path(pattern).expanduser())
    if not glob.has_magic(text):
        raise InvalidInputError(f"There is no file or folder {_absolute(pattern)!r}.")
    # Path.glob takes no absolute pattern; the working folder may have brackets in its own name.
    found = [_absolute(match) for match in glob.glob(text, recursive=True)]  # noqa: PTH207
    images = [path for path in found if not Path(path).is_dir() and is_picture(path)]
    if not images:
        raise InvalidInputError(
            f"No image matches the pattern {text!r}; it matches {len(found)} others."
        )
    return sorted(images)


def _in_folder(folder: str, file_names: Sequence[PathLike] | None) -> _Found:
    unlisted: dict[str, str] = {}
    if file_names is None:
        relative, unlisted = find_images(folder)
    else:
        listed = [os.path.normpath(Path(folder, name)) for name in _listed(file_names)]
        relative = _relative(listed, folder)
    label = PurePath(folder).name or folder
    paths = [os.path.join(folder, name) for name in relative]  # noqa: PTH118 - a Path takes 10 times as long
    found = _of_files(paths, relative, label)
    found.coords.update(class_coords(found.names or ()))
    found.failures.update(unlisted)
    return found


def _in_hdf5(path: str, dataset: str | None, index: Any) -> _Found:
    rows = find_rows(path, dataset, index)
    try:
        digests = rows.digests()
    except OSError as err:
        raise InvalidInputError(f"{path!r} cannot be read as HDF5: {err}") from err
    coords = {"index": np.array(rows.rows, dtype=np.int64)}
    return _Found(rows, digests, f"{PurePath(path).name}:{rows.dataset}", coords=coords)


def _of_items(
    items: Sequence[Any], names: Sequence[str] | None, given: dict[str, Any], label: str
) -> _Found:
    kinds = {_kind(item) for item in items}
    if len(kinds) > 1:
        raise InvalidInputError(
            f"The images are of several kinds ({', '.join(sorted(kinds))}); pass only paths, only "
            "arrays or only PIL images."
        )
    if kinds <= {"path"}:
        paths = [_absolute(item) for item in items]
        if names is None and "root" in given:
            names = _relative(paths, _absolute(given["root"]))
        elif names is None:
            names = [PurePath(path).name for path in paths]
        return _of_files(paths, names, label)
    _allow(given, (), "a list of arrays or PIL images")
    return _in_memory(items, names)


def _of_files(paths: Sequence[str], names: Sequence[str], label: str) -> _Found:
    failures: dict[str, str] = {}
    readable: list[tuple[str, str, Digest]] = []
    for name, item, digest in zip(names, paths, file_digests(paths), strict=True):
        if isinstance(digest, OSError):
            failures[escaped(name)] = why_unreadable(digest)
        else:
            readable.append((name, item, digest))
    path = np.empty(len(readable), dtype=object)
    path[:] = [escaped(item.replace(os.sep, "/")) for _, item, _ in readable]
    return _Found(
        Files(tuple(item for _, item, _ in readable)),
        [digest for *_, digest in readable],
        escaped(label),
        [name for name, *_ in readable],
        {"path": path},
        failures,
    )


def _in_memory(items: Sequence[Any], names: Sequence[str] | None) -> _Found:
    pictures: list[Picture] = []
    failures: dict[str, str] = {}
    for number, item in enumerate(items):
        name = f"number {number}" if names is None else names[number]
        try:
            pictures.append(own_copy(item) if isinstance(item, Image) else _own_array(item))
        except OSError as err:
            failures[name] = why_unreadable(err)
        except InvalidInputError as err:
            raise InvalidInputError(f"Image {name}: {err}") from err
    if failures:
        raise _unreadable(failures, len(items))
    digests = [ImageContent.of(picture).digest for picture in pictures]
    return _Found(InMemory(tuple(pictures)), digests, "images", names)


def _well_named(found: _Found) -> _Found:
    """Leave out files whose names cannot be written down: a name is what finds a row again."""
    names = list(found.names or ())
    bad = {name: escaped(name) for name in names if escaped(name) != name}
    if not bad:
        return found
    keep = [position for position, name in enumerate(names) if name not in bad]
    kept = [names[position] for position in keep]
    coords = {key: values[keep] for key, values in found.coords.items()}
    coords.update(class_coords(kept) if "category" in coords else {})
    return _Found(
        found.source.take(keep),
        [found.digests[position] for position in keep],
        found.label,
        kept,
        coords,
        found.failures | dict.fromkeys(bad.values(), MISNAMED),
    )


def _named(found: _Found, names: Sequence[str] | str | None) -> Sequence[str]:
    if names is None:
        return [digest.hex() for digest in found.digests] if found.names is None else found.names
    if isinstance(names, str):
        if names != "stem" or found.names is None:
            raise InvalidInputError(
                f"names={names!r}: give one name per image, or, for files, 'stem' to drop suffixes."
            )
        return [str(PurePosixPath(name).with_suffix("")) for name in found.names]
    listed = list(names)
    if len(listed) != len(found.digests):
        raise InvalidInputError(f"{len(listed)} names= for {len(found.digests)} images.")
    return require_names(listed)


def _kind(item: Any) -> str:
    if isinstance(item, str | os.PathLike):
        return "path"
    if isinstance(item, Image):
        return "PIL image"
    if _is_array(item):
        return "array"
    raise InvalidInputError(
        f"A {type(item).__qualname__} is no image; pass paths, arrays or PIL images."
    )


def _is_array(item: Any) -> bool:
    return hasattr(item, "__array__") and not isinstance(item, np.generic)


def _stack(array: Any) -> list[Any]:
    """Take an array apart where its axes leave no doubt."""
    if array.ndim == 4:
        return list(array)
    if array.ndim == 2 or (array.ndim == 3 and array.shape[2] == 3):
        return [array]
    raise InvalidInputError(
        f"An array of shape {array.shape} may be one picture or several. Pass a list of arrays "
        "(list(array) for a stack of grey pictures), each of shape (height, width) or (height, "
        "width, 3), or a stack of shape (n, height, width, 3)."
    )


def _own_array(item: Any) -> Picture:
    own = require_picture(np.asarray(item)).copy(order="C")
    own.setflags(write=False)
    return own


def _allow(given: Mapping[str, Any], allowed: tuple[str, ...], what: str) -> None:
    for name in given:
        if name not in allowed:
            raise InvalidInputError(f"{name}= means nothing for {what}; leave it out.")


def _listed(paths: Sequence[PathLike]) -> list[PathLike]:
    if isinstance(paths, str | os.PathLike):
        raise InvalidInputError(f"file_names={paths!r} must be a list; write [{paths!r}].")
    return list(paths)


def _absolute(path: PathLike) -> str:
    text = os.fspath(path)
    if not isinstance(text, str):
        raise InvalidInputError(f"The path {path!r} is not a string.")
    return os.path.abspath(Path(text).expanduser())  # noqa: PTH100 - links stay as they are


def _relative(paths: Sequence[str], root: str) -> list[str]:
    outside = [path for path in paths if not PurePath(path).is_relative_to(root)]
    if outside:
        raise InvalidInputError(
            f"{outside[0]!r} does not lie in {root!r}, so it has no name relative to it. For "
            "files inside a folder, write fs.read_images(folder, file_names=[...])."
        )
    return [PurePath(path).relative_to(root).as_posix() for path in paths]


def _unreadable(failures: dict[str, str], n_images: int) -> ImageDecodeError:
    listed = [f"{name!r} ({reason})" for name, reason in failures.items()]
    more = f" and {len(listed) - N_LISTED} more (see failures)" if len(listed) > N_LISTED else ""
    return ImageDecodeError(
        f"{len(failures)} of {n_images} images cannot be read: "
        f"{', '.join(listed[:N_LISTED])}{more}.",
        failures=failures,
    )
