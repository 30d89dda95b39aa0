"""Pictures on disk, hashed again and compared with an image set that the store remembers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from featurestore.errors import FeatureStoreError, NotFoundError
from featurestore.images.read import take_images
from featurestore.options import get_options
from featurestore.storage.imagesets import list_image_sets, read_image_sets
from featurestore.upkeep.reports import PictureChange

if TYPE_CHECKING:
    from typing import Any

    from featurestore.images.imageset import ImageSet
    from featurestore.storage.catalog import Catalog
    from featurestore.upkeep.reports import VerifyReport


def check_pictures(catalog: Catalog, source: Any, report: VerifyReport) -> ImageSet:
    """Read every picture again and compare it with what was stored under its name.

    Parameters
    ----------
    catalog : Catalog
        The store.
    source : ImageSet, path, list or array
        Whatever `featurestore.read_images` takes.
    report : VerifyReport
        Gets what changed.

    Returns
    -------
    ImageSet
        The pictures as they are now.

    Raises
    ------
    NotFoundError
        If the store was never asked about images of these names.
    """
    images, unreadable = take_images(source)
    stored = _stored_set(catalog, images)
    known = dict(zip(stored.names, stored.hex_digests, strict=True))
    with ThreadPoolExecutor(get_options().n_decode_workers) as pool:
        # Read to the last byte: the memo of digests knows when a file was written, not what
        # became of it on the disk since.
        digests = list(pool.map(lambda n: _digest(images, n), range(len(images))))
    report.n_pictures = len(images)
    for name, digest in zip(images.names, digests, strict=True):
        if not isinstance(digest, str):
            report.pictures.append(PictureChange(name, "unreadable", str(digest)))
        elif name not in known:
            report.pictures.append(PictureChange(name, "new", "the store has no such name"))
        elif known[name] != digest:
            text = f"it was {known[name]} when it was stored and is {digest} now"
            report.pictures.append(PictureChange(name, "changed", text))
    for name, reason in unreadable.items():
        report.pictures.append(PictureChange(name, "unreadable", reason))
    for name in sorted(known.keys() - set(images.names) - unreadable.keys()):
        text = "it was there when it was stored; its rows are kept"
        report.pictures.append(PictureChange(name, "missing", text))
    return images


def _digest(images: ImageSet, position: int) -> str | FeatureStoreError:
    try:
        return images.content(position).digest.hex()
    except FeatureStoreError as err:
        return err


def _stored_set(catalog: Catalog, images: ImageSet) -> ImageSet:
    """Return the newest set with this label, or else the one that shares most names."""
    created = {info.key: info.created for info in list_image_sets(catalog)}
    names = set(images.names)
    candidates = [
        (images.label == held.label, len(names & set(held.names)), created.get(held.key, ""), held)
        for held in read_image_sets(catalog)
    ]
    shared = [candidate for candidate in candidates if candidate[1]]
    if not shared:
        named = ", ".join(images.names[:3])
        raise NotFoundError(
            f"{catalog} was never asked about images called like these ({named}, …), so "
            "there is nothing to compare them with. store.images() lists what it knows.",
            choices=sorted({candidate[3].label for candidate in candidates}),
        )
    return max(shared, key=lambda candidate: candidate[:3])[3]
