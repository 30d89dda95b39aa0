"""Where the pictures of a set come from: files, memory, or nowhere any more."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL.Image import Image

from featurestore.errors import ImageDecodeError
from featurestore.filehash import hash_bytes, open_regular
from featurestore.images.digest import array_digest, pil_digest
from featurestore.options import format_nbytes, get_options

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.typing import Digest

Picture: TypeAlias = bytes | NDArray[np.uint8] | Image
"""A file's bytes, an array of shape (height, width[, 3]), or a PIL image."""


@dataclass(frozen=True, slots=True)
class ImageContent:
    """What was read of one image, and the digest of exactly that."""

    kind: Literal["file", "array", "pil"]
    data: Picture
    digest: Digest

    @classmethod
    def of(cls, data: Picture) -> ImageContent:
        """Hash what was read.

        Parameters
        ----------
        data : bytes, ndarray or PIL.Image.Image
            Kept as it is.

        Returns
        -------
        ImageContent
            The data with their digest.
        """
        if isinstance(data, bytes):
            return cls("file", data, hash_bytes(data))
        if isinstance(data, Image):
            return cls("pil", data, pil_digest(data))
        return cls("array", data, array_digest(data))


class Source(Protocol):
    """The pictures of a set, by position."""

    def read(self, position: int) -> Picture:
        """Read one image.

        Parameters
        ----------
        position : int
            From 0.

        Returns
        -------
        bytes, ndarray or PIL.Image.Image
            What is hashed and decoded.

        Raises
        ------
        OSError
            If it cannot be read now.
        ImageDecodeError
            If it never can.
        """
        ...

    def take(self, positions: Sequence[int]) -> Source:
        """Choose images.

        Parameters
        ----------
        positions : sequence of int
            In the wanted order; may repeat.

        Returns
        -------
        Source
            Of as many images as there are positions.
        """
        ...


@dataclass(frozen=True, slots=True)
class Files:
    """Files, read when they are needed."""

    paths: tuple[str, ...]

    def read(self, position: int) -> Picture:
        """Read a file's bytes; see `Source`."""
        with open_regular(self.paths[position]) as file:
            nbytes, most = os.fstat(file.fileno()).st_size, get_options().memory_budget
            if nbytes > most:
                reason = (
                    f"the file has {format_nbytes(nbytes)}, more than memory_budget="
                    f"{format_nbytes(most)} allows; if it is a picture, raise that with "
                    "fs.set_options"
                )
                raise ImageDecodeError(f"An image cannot be read: {reason}.", reason=reason)
            return file.read()

    def take(self, positions: Sequence[int]) -> Files:
        """Choose files; see `Source`."""
        return Files(tuple(self.paths[position] for position in positions))


@dataclass(frozen=True, slots=True)
class InMemory:
    """Arrays or PIL images that nobody else can change."""

    pictures: tuple[Picture, ...]

    def read(self, position: int) -> Picture:
        """Return the picture itself; see `Source`."""
        return self.pictures[position]

    def take(self, positions: Sequence[int]) -> InMemory:
        """Choose pictures; see `Source`."""
        return InMemory(tuple(self.pictures[position] for position in positions))


@dataclass(frozen=True, slots=True)
class NotKept:
    """Images of which only names, digests and features are left."""

    def read(self, position: int) -> Picture:  # noqa: ARG002 - as Source has it
        """Refuse; see `Source`."""
        reason = "only its features were kept, not the picture; pass the pictures again"
        raise ImageDecodeError(f"An image cannot be read: {reason}.", reason=reason)

    def take(self, positions: Sequence[int]) -> NotKept:  # noqa: ARG002 - as Source has it
        """Return the same; see `Source`."""
        return self


def why_unreadable(error: OSError) -> str:
    """Say in a few words why a file could not be read.

    Parameters
    ----------
    error : OSError
        What the operating system said.

    Returns
    -------
    str
        A reason, without the path.
    """
    path = error.filename
    if isinstance(error, FileNotFoundError) and path is not None and Path(path).is_symlink():
        return (
            "it is a link to a file that is not present (a git-annex or DataLad folder? "
            "then run `datalad get`)"
        )
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    reason = error.strerror or str(error)
    return reason[:1].lower() + reason[1:]
