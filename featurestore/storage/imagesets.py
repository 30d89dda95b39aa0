"""Image sets that a store was asked about: names and columns that outlive the pictures."""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING

from featurestore.canonical import digest_of
from featurestore.errors import CorruptDataError, InvalidInputError, NotFoundError, did_you_mean
from featurestore.images.imageset import ImageSet
from featurestore.storage import layout as _layout
from featurestore.storage import records
from featurestore.storage.catalog import document_keys, now

if TYPE_CHECKING:
    from collections.abc import Iterator

    from featurestore.storage.catalog import Catalog
    from featurestore.typing import Json

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ImageSetInfo:
    """One image set that a store was asked about."""

    key: str
    label: str
    n_images: int
    created: str
    """When it was first asked for, UTC."""


def publish_images(catalog: Catalog, images: ImageSet) -> None:
    """Remember names and columns of an image set, so that they outlive the pictures.

    Parameters
    ----------
    catalog : Catalog
        The store.
    images : ImageSet
        What was asked for.
    """
    record = images.to_record()
    if images.key in catalog.published:
        return
    path = _layout.document_path("imagesets", images.key)
    if catalog.read(path) is not None:
        catalog.published.add(images.key)
        return
    catalog.require_writable("the images' names")
    document: dict[str, Json] = {
        "format": _layout.FORMAT,
        "key": images.key,
        "created": now(),
        "record": record,
    }
    records.create(catalog.blobs, path, document)
    catalog.published.add(images.key)


def list_image_sets(catalog: Catalog) -> list[ImageSetInfo]:
    """List every image set that a store was asked about.

    Parameters
    ----------
    catalog : Catalog
        The store.

    Returns
    -------
    list of ImageSetInfo
        Oldest first.
    """
    found = []
    for key in document_keys(catalog.blobs, "imagesets"):
        try:
            document = catalog.read(_layout.document_path("imagesets", key))
            images = None if document is None else ImageSet.from_record(document["record"])
        except (CorruptDataError, InvalidInputError) as err:
            _log.warning("image set %s: %s", key, err)  # one must not hide the others
            continue
        if document is not None and images is not None:
            found.append(ImageSetInfo(key, images.label, len(images), str(document["created"])))
    return sorted(found, key=lambda entry: (entry.created, entry.key))


def read_image_sets(catalog: Catalog) -> Iterator[ImageSet]:
    """Read every image set that can be read; damaged ones are left alone.

    Parameters
    ----------
    catalog : Catalog
        The store.

    Yields
    ------
    ImageSet
        In no particular order.
    """
    for key in document_keys(catalog.blobs, "imagesets"):
        with contextlib.suppress(CorruptDataError, InvalidInputError):
            document = records.read(catalog.blobs, _layout.document_path("imagesets", key))
            if document is not None:
                yield ImageSet.from_record(document["record"])


def find_images(catalog: Catalog, name: str) -> ImageSet:
    """Give an image set back.

    Parameters
    ----------
    catalog : Catalog
        The store.
    name : str
        Its label, such as the folder's name, or the first digits (8 or more) of its key.

    Returns
    -------
    ImageSet
        Names, digests and columns; the newest if several have the label and it holds all images
        of the others.

    Raises
    ------
    NotFoundError
        If there is none.
    InvalidInputError
        If there are several, and the newest lacks images of another.
    """
    known = list_image_sets(catalog)
    matches = [info for info in known if info.label == name] or [
        info for info in known if len(name) >= 8 and info.key.startswith(name)
    ]
    if not matches:
        labels = sorted({info.label for info in known})
        raise NotFoundError(
            f"{catalog} was never asked about images called {name!r}."
            f"{did_you_mean(name, labels)} It knows: {', '.join(labels) or 'none'}.",
            name=name,
            choices=labels,
        )
    found = [_read(catalog, info.key) for info in matches]
    newest = found[-1]
    kept = {digest.tobytes() for digest in newest.digests}
    if any(digest.tobytes() not in kept for images in found for digest in images.digests):
        choices = [f"{i.key[:12]} ({i.n_images} images, {i.created})" for i in matches]
        raise InvalidInputError(
            f"{len(matches)} image sets are called {name!r}, and the newest does not hold all "
            f"images of the others. Say which one by its key: {', '.join(choices)}.",
            name=name,
            choices=[info.key for info in matches],
        )
    return newest


def _read(catalog: Catalog, key: str) -> ImageSet:
    document = catalog.read(_layout.document_path("imagesets", key))
    # Every part of a set stands in its key; what does not was put there by somebody else.
    if document is None or digest_of("imageset", document["record"]) != key:
        raise CorruptDataError(
            f"The image set {key} in {catalog} is not the one that its key stands for. Nothing of "
            "it is used; ask with the pictures again, and it is written anew.",
            path=_layout.document_path("imagesets", key),
            images=[],
        )
    return ImageSet.from_record(document["record"])
