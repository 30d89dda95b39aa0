"""An ordered, named set of images, each known by its content. Knows no networks and no store."""

from __future__ import annotations

from functools import cached_property
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.canonical import digest_of
from featurestore.errors import (
    ImageDecodeError,
    InvalidInputError,
    NotFoundError,
    did_you_mean,
)
from featurestore.images.columns import column, column_from_json, column_to_json
from featurestore.images.content import ImageContent, NotKept, why_unreadable
from featurestore.typing import DIGEST_NBYTES

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from featurestore.images.content import Source
    from featurestore.typing import Json

__all__ = ["ImageContent", "ImageSet"]

RESERVED = frozenset(
    {"image", "image_2", "text", "text_2", "digest", "path", "index", "run", "subject"}
    | {"channel", "y", "x", "token", "feature"}
)
N_SHOWN = 3


class ImageSet:
    """Images in order: their names, digests and coordinates; immutable.

    Made by `read_images`. Names may repeat where the content is the same (trials).

    Parameters
    ----------
    names : sequence of str
        One per image.
    digests : ndarray of shape (n_images, 16), uint8
        What identifies each image's content.
    coords : mapping of str to ndarray of shape (n_images,), optional
        Further facts per image: ``path``, ``category``, ``target``, ``index``, own columns.
    label : str
        What the set is called in listings.
    source : Source, optional
        Where the pictures can be read; by default nowhere.
    """

    def __init__(
        self,
        names: Sequence[str],
        digests: NDArray[np.uint8],
        coords: Mapping[str, Any] | None = None,
        *,
        label: str = "images",
        source: Source | None = None,
    ) -> None:
        self._names = require_names(names)
        self._digests = np.array(digests, dtype=np.uint8).reshape(-1, DIGEST_NBYTES)
        self._digests.setflags(write=False)
        if len(self._digests) != len(self._names):
            raise InvalidInputError(
                f"There are {len(self._names)} names but {len(self._digests)} digests."
            )
        self._coords = {
            name: column(name, values, len(self._names)) for name, values in (coords or {}).items()
        }
        self._label = label
        self._source: Source = NotKept() if source is None else source
        self._require_one_content_per_name()

    @property
    def names(self) -> tuple[str, ...]:
        """The images' names, in order."""
        return self._names

    @property
    def digests(self) -> NDArray[np.uint8]:
        """The images' digests, shape (n_images, 16), read-only."""
        return self._digests

    @property
    def coords(self) -> Mapping[str, NDArray[Any]]:
        """Further facts per image, by name; read-only arrays."""
        return MappingProxyType(self._coords)

    @property
    def label(self) -> str:
        """What the set is called."""
        return self._label

    @property
    def source(self) -> Source:
        """Where the pictures can be read."""
        return self._source

    @cached_property
    def hex_digests(self) -> tuple[str, ...]:
        """The digests as 32 hex digits each."""
        text = self._digests.tobytes().hex()
        width = 2 * DIGEST_NBYTES
        return tuple(text[i : i + width] for i in range(0, len(text), width))

    @cached_property
    def key(self) -> str:
        """The digest of the whole record: names, contents, coordinates, label, and their order."""
        return digest_of("imageset", self.to_record())

    def __len__(self) -> int:
        return len(self._names)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, ImageSet):
            return NotImplemented
        return self.key == other.key

    def __hash__(self) -> int:
        return hash(self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        # Through the constructor, because pickled arrays forget that they are read-only.
        state = (self._names, self._digests, self._coords, self._label, self._source)
        return (_rebuild, state)

    def __repr__(self) -> str:
        n = len(self)
        shown = ", ".join(map(repr, self._names[:N_SHOWN])) + (", …" if n > N_SHOWN else "")
        n_distinct = len(self.unique())
        distinct = "" if n_distinct == n else f", {n_distinct} distinct"
        lines = [f"<featurestore.ImageSet {self._label!r}: {n} image{'s' * (n != 1)}{distinct}>"]
        if n:
            lines.append(f"  names   {shown}")
        if self._coords:
            lines.append(f"  coords  {', '.join(self._coords)}")
        return "\n".join(lines)

    def __getitem__(self, which: Any) -> ImageSet:
        """Choose images by slice, positions, mask, or names."""
        positions = self._positions(which)
        coords = {name: values[positions] for name, values in self._coords.items()}
        # A store lists sets by label: a part must not be taken for the whole.
        whole = np.array_equal(positions, np.arange(len(self)))
        label = self._label if whole else f"{self._label} [{len(positions)} of {len(self)}]"
        return ImageSet(
            [self._names[i] for i in positions],
            self._digests[positions],
            coords,
            label=label,
            source=self._source.take([int(i) for i in positions]),
        )

    def assign_coords(self, **columns: Any) -> ImageSet:
        """Return the same images with further coordinates, or others of the same name.

        Parameters
        ----------
        **columns : sequence of length n_images
            Strings, numbers, booleans or dates, in the order of the images. A new ``category``
            brings its ``target`` along.

        Returns
        -------
        ImageSet
            A new set.

        Raises
        ------
        InvalidInputError
            If a length differs, a name is reserved, or values have no plain type.
        """
        if taken := sorted(RESERVED & set(columns)):
            raise InvalidInputError(
                f"The coordinate name {taken[0]!r} is reserved. Reserved are "
                f"{', '.join(sorted(RESERVED))}; choose another name."
            )
        if "category" in columns and "target" not in columns:
            columns["target"] = targets(column("category", columns["category"], len(self)))
        coords = self._coords | columns
        return ImageSet(self._names, self._digests, coords, label=self._label, source=self._source)

    def content(self, i: int) -> ImageContent:
        """Read an image again, and hash what is read.

        Parameters
        ----------
        i : int
            Its position, from 0.

        Returns
        -------
        ImageContent
            Its digest may differ from ``digests[i]`` if the file was changed meanwhile.

        Raises
        ------
        ImageDecodeError
            If the image is gone or unreadable (`failures`: name to reason).
        """
        if not 0 <= i < len(self):
            raise InvalidInputError(f"There is no image {i}; there are {len(self)}, from 0.")
        try:
            return ImageContent.of(self._source.read(i))
        except (OSError, ImageDecodeError) as err:
            reason = why_unreadable(err) if isinstance(err, OSError) else err.reason
            name = self._names[i]
            raise ImageDecodeError(
                f"Image {name!r} cannot be read: {reason}.", failures={name: reason}, reason=reason
            ) from err

    def unique(self) -> NDArray[np.intp]:
        """Find each content once.

        Returns
        -------
        ndarray of shape (n_distinct,), intp
            Positions of the first occurrence of each digest, ascending.
        """
        packed = self._digests.view(f"V{DIGEST_NBYTES}").ravel()
        return np.sort(np.unique(packed, return_index=True)[1])

    def to_record(self) -> dict[str, Json]:
        """Describe the set without its pictures.

        Returns
        -------
        dict
            JSON-able: label, names, digests as hex, coordinates with their dtype.
        """
        return {
            "label": self._label,
            "names": list(self._names),
            "digests": list(self.hex_digests),
            "coords": {name: column_to_json(values) for name, values in self._coords.items()},
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> ImageSet:
        """Build a set from its description.

        Parameters
        ----------
        record : mapping
            As `to_record` returns it.

        Returns
        -------
        ImageSet
            Without pictures: `content` raises, everything else works.

        Raises
        ------
        InvalidInputError
            If the record is not one.
        """
        try:
            names = [str(name) for name in record["names"]]
            text = "".join(record["digests"])
            if any(len(digest) != 2 * DIGEST_NBYTES for digest in record["digests"]):
                raise ValueError("a digest has not 32 hex digits")
            digests = np.frombuffer(bytes.fromhex(text), dtype=np.uint8)
            coords = {str(k): column_from_json(v) for k, v in record["coords"].items()}
            label = str(record["label"])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as err:
            raise InvalidInputError(f"This is no record of an image set: {err!r}.") from err
        return cls(names, digests, coords, label=label)

    def _positions(self, which: Any) -> NDArray[np.intp]:
        if isinstance(which, str):
            which = [which]
        if isinstance(which, list | tuple) and any(isinstance(item, str) for item in which):
            return self._positions_of_names(which)
        everything = np.arange(len(self))
        if isinstance(which, list | tuple) and not which:
            return everything[:0]
        try:
            positions = np.atleast_1d(everything[which])
            if positions.ndim != 1:
                raise IndexError(f"it has {positions.ndim} dimensions")
            return positions
        except IndexError as err:
            raise InvalidInputError(
                f"{which!r} does not choose among {len(self)} images: {err}. Use a slice, "
                "positions from 0, a boolean mask of that length, or names."
            ) from err

    def _positions_of_names(self, names: Sequence[Any]) -> NDArray[np.intp]:
        found: list[int] = []
        for name in names:
            if name not in self._by_name:
                near = did_you_mean(str(name), self._names)
                raise NotFoundError(
                    f"There is no image {name!r} among the {len(self)} of {self._label!r}.{near}"
                )
            found += self._by_name[name]
        return np.array(found, dtype=np.intp)

    @cached_property
    def _by_name(self) -> dict[str, list[int]]:
        places: dict[str, list[int]] = {}
        for place, name in enumerate(self._names):
            places.setdefault(name, []).append(place)
        return places

    def _require_one_content_per_name(self) -> None:
        if len(set(self._names)) == len(self._names):
            return
        paths = self._coords.get("path", self.hex_digests)
        for name, places in self._by_name.items():
            first = places[0]
            for place in places[1:]:
                if self.hex_digests[place] != self.hex_digests[first]:
                    both = [str(paths[first]), str(paths[place])]
                    raise InvalidInputError(
                        f"Two different images are called {name!r}: {both[0]} and {both[1]}. Give "
                        "other names with names=, or take the folder above both as root=.",
                        name=name,
                        paths=both,
                    )


def require_names(names: Sequence[str]) -> tuple[str, ...]:
    """Check that names can be written down anywhere.

    Parameters
    ----------
    names : sequence of str
        Of images.

    Returns
    -------
    tuple of str
        The same names, as plain strings.

    Raises
    ------
    InvalidInputError
        If one is no string, empty, or not valid Unicode.
    """
    for name in names:
        if name == "" or not isinstance(name, str):
            raise InvalidInputError(f"{name!r} cannot be the name of an image; use a string.")
    made = tuple(str(name) for name in names)
    try:
        "".join(made).encode("utf-8")
    except UnicodeEncodeError as err:
        bad = next(name for name in made if not _is_unicode(name))
        raise InvalidInputError(
            f"{bad!r} cannot be the name of an image: it is not valid Unicode (UTF-8). Rename the "
            "file, or give names with names=."
        ) from err
    return made


def _is_unicode(text: str) -> bool:
    return text == text.encode("utf-8", "ignore").decode("utf-8")


def targets(category: NDArray[Any]) -> NDArray[np.int64]:
    """Return the numbers of categories, in the order of their sorted names.

    Parameters
    ----------
    category : ndarray of shape (n_images,)
        Class names; the empty string stands for none.

    Returns
    -------
    ndarray of shape (n_images,), int64
        From 0; -1 where there is none.
    """
    classes = {name: number for number, name in enumerate(sorted(set(category) - {""}))}
    return np.array([classes.get(name, -1) for name in category], dtype=np.int64)


def _rebuild(
    names: tuple[str, ...],
    digests: NDArray[np.uint8],
    coords: dict[str, NDArray[Any]],
    label: str,
    source: Source,
) -> ImageSet:
    return ImageSet(names, digests, coords, label=label, source=source)
