"""Which images of two RDMs belong together: by label, never by position."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from featurestore.errors import (
    FeatureStoreWarning,
    InvalidInputError,
    LabelMismatchError,
    did_you_mean,
)
from featurestore.rdms.structure import extra_dims, pair_dim

if TYPE_CHECKING:
    from collections.abc import Hashable, Sequence

    import xarray as xr
    from numpy.typing import NDArray

JOINS = ("exact", "inner")
MIN_IMAGES = 3
N_SHOWN = 3
N_SEARCHED = 2000  # names among which near misses are looked for
DIGEST = "digest"


@dataclass(frozen=True, slots=True)
class Alignment:
    """Where the images that two RDMs share stand in each."""

    first: NDArray[np.intp] | None
    """Positions in the first; None: all, as they are."""
    second: NDArray[np.intp] | None
    """Positions in the second, in the same order."""
    n_images: int
    """How many they share."""


def pair_dims(a: xr.DataArray, b: xr.DataArray, dims: tuple[str, str] | None) -> tuple[str, str]:
    """Return what each of two RDMs compares.

    Parameters
    ----------
    a, b : DataArray (…, image, image_2)
        The RDMs.
    dims : tuple of two str, optional
        What the caller says, needed where they differ.

    Returns
    -------
    tuple of two str
        Such as ``("image", "image")`` or ``("image", "text")``.

    Raises
    ------
    InvalidInputError
        If one is no RDM, or compares something else than `dims` says.
    LabelMismatchError
        If they differ and `dims` is not given.
    """
    found = (pair_dim(a), pair_dim(b))
    if dims is None:
        if found[0] != found[1]:
            raise LabelMismatchError(
                f"The first RDM compares by {found[0]}, the second by {found[1]}. If their labels "
                f"name the same things, say so: dims={found}.",
                dims=found,
            )
    elif tuple(dims) != found:
        raise InvalidInputError(
            f"dims={dims!r} does not fit: the RDMs compare {found[0]} and {found[1]}. Write "
            f"dims={found}, or leave it out where both compare the same.",
            dims=found,
        )
    return found


def align(
    a: xr.DataArray, b: xr.DataArray, dims: tuple[str, str], *, join: str, by: str | None
) -> Alignment:
    """Find the images of two RDMs in each other.

    Parameters
    ----------
    a, b : DataArray (…, image, image_2)
        The RDMs.
    dims : tuple of two str
        What each compares.
    join : "exact" or "inner"
        Whether both must have the same images, or only those in both count.
    by : str, optional
        A coordinate to tell images by, such as ``"digest"``; by default their names.

    Returns
    -------
    Alignment
        Positions, in the order of the first.

    Raises
    ------
    LabelMismatchError
        If the images differ and `join` is ``"exact"`` (`only_first`, `only_second`: which).
    InvalidInputError
        If a label repeats, there is no such coordinate, or fewer than 3 images are left.
    """
    require_join(join)
    names = (by or dims[0], by or dims[1])
    labels = [
        _unique_labels(rdm, dim, name, which)
        for rdm, dim, name, which in zip((a, b), dims, names, ("first", "second"), strict=True)
    ]
    places = {label: place for place, label in enumerate(labels[1])}
    common = [place for place, label in enumerate(labels[0]) if label in places]
    if join == "exact" and not len(common) == len(labels[0]) == len(labels[1]):
        raise _mismatch(a, b, dims, labels, by)
    require_enough(len(common), dims[0])
    first = np.array(common, dtype=np.intp)
    second = np.array([places[labels[0][place]] for place in common], dtype=np.intp)
    if by is None:
        _warn_of_other_content(a, b, first, second, dims[0])
    return Alignment(
        _unless_all(first, len(labels[0])), _unless_all(second, len(labels[1])), len(common)
    )


def require_join(join: str) -> None:
    """Refuse a way to join that there is not.

    Parameters
    ----------
    join : str
        ``"exact"`` or ``"inner"``.

    Raises
    ------
    InvalidInputError
        If it is anything else.
    """
    if join not in JOINS:
        raise InvalidInputError(
            f"join={join!r} is not known. Use 'exact' (both have the same images) or 'inner' "
            f"(only those in both count).{did_you_mean(str(join), JOINS)}"
        )


def require_enough(n_images: int, dim: str) -> None:
    """Refuse to correlate hardly any pairs.

    Parameters
    ----------
    n_images : int
        How many are compared.
    dim : str
        What they are.

    Raises
    ------
    InvalidInputError
        If there are fewer than 3.
    """
    if n_images < MIN_IMAGES:
        raise InvalidInputError(
            f"There {'is' if n_images == 1 else 'are'} {n_images} {dim}{'s' * (n_images != 1)} to "
            f"compare RDMs by, and at least {MIN_IMAGES} are needed: "
            f"{n_images} make {n_images * (n_images - 1) // 2} pairs.",
            n_images=n_images,
        )


def require_unique(rdm: xr.DataArray, dim: str) -> None:
    """Refuse an RDM in which a name repeats.

    Parameters
    ----------
    rdm : DataArray (…, image, image_2)
        The RDM.
    dim : str
        What it compares.

    Raises
    ------
    InvalidInputError
        If one does; says what to do.
    """
    _unique_labels(rdm, dim, dim, "first")


def shared_dims(
    a: xr.DataArray, b: xr.DataArray
) -> dict[str, tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """Find the leading dims that two RDMs have in common, paired by label.

    Parameters
    ----------
    a, b : DataArray (…, image, image_2)
        The RDMs.

    Returns
    -------
    dict
        Dim to positions in the first and in the second, in the order of the first.

    Raises
    ------
    LabelMismatchError
        If the labels are not the same, repeat, or lack.
    """
    found = {}
    for dim in extra_dims(a):
        if dim not in extra_dims(b):
            continue
        if dim not in a.coords or dim not in b.coords:
            raise LabelMismatchError(
                f"Both RDMs have a dim {dim!r}, and it has no labels, so nobody can tell which "
                f"belong together. Label it: rdm.assign_coords({dim}=[…]); or, to compare each "
                f"with each, rename it in one: rdm.rename({dim}='other').",
                dim=dim,
            )
        first, second = a[dim].values.tolist(), b[dim].values.tolist()
        if len(set(first)) < len(first) or set(first) != set(second) or len(first) != len(second):
            only = [sorted(map(str, set(x) - set(y))) for x, y in
                    ((first, second), (second, first))]  # fmt: skip
            raise LabelMismatchError(
                f"Both RDMs have a dim {dim!r}, which is paired by label, and the labels differ "
                f"or repeat: {_counted(only[0])} only in the first, {_counted(only[1])} only in "
                f"the second. Select the same, or, to compare each with each, rename it in one: "
                f"rdm.rename({dim}='other').",
                dim=dim,
            )
        places = {label: place for place, label in enumerate(second)}
        order = np.array([places[label] for label in first], dtype=np.intp)
        found[dim] = (np.arange(len(first)), order)
    return found


def _unique_labels(rdm: xr.DataArray, dim: str, name: str, which: str) -> list[Hashable]:
    """Return the labels of the images; refuse them if one repeats."""
    if name not in rdm.coords or rdm[name].dims != (dim,):
        near = did_you_mean(name, [str(key) for key in rdm.coords if rdm[key].dims == (dim,)])
        raise InvalidInputError(
            f"by={name!r}: the {which} RDM has no coordinate of that name along {dim!r}.{near}"
        )
    labels: list[Hashable] = rdm[name].values.tolist()
    if len(set(labels)) == len(labels):
        return labels
    seen: set[Hashable] = set()
    repeated = list(dict.fromkeys(x for x in labels if x in seen or seen.add(x)))  # type: ignore[func-returns-value]
    raise InvalidInputError(
        f"{len(repeated)} labels of the {which} RDM occur more than once along {name!r}: "
        f"{_counted(repeated)}. Nobody can tell which of them belongs to which. Average repeats "
        f"before the RDM is made: features.groupby({name!r}).mean(); or select one of each.",
        repeated=tuple(repeated),
    )


def _unless_all(positions: NDArray[np.intp], n: int) -> NDArray[np.intp] | None:
    return None if np.array_equal(positions, np.arange(n)) else positions


def _mismatch(
    a: xr.DataArray,
    b: xr.DataArray,
    dims: tuple[str, str],
    labels: Sequence[Sequence[Hashable]],
    by: str | None,
) -> LabelMismatchError:
    """Say which images only one RDM has, and what may be done about it."""
    sets = [set(names) for names in labels]
    only_first = [name for name in labels[0] if name not in sets[1]]
    only_second = [name for name in labels[1] if name not in sets[0]]
    n_common = len(labels[0]) - len(only_first)
    near = ""
    if only_first and only_second:
        among = [str(name) for name in only_second[:N_SEARCHED]]
        near = did_you_mean(str(only_first[0]), among)
        near = near.replace("Did you mean", f"Is {str(only_first[0])!r} there called", 1)
    text = (
        f"The RDMs do not compare the same {dims[0]}s. Of {len(labels[0])} in the first, "
        f"{len(only_first)} are not in the second{_listed(only_first)}; of {len(labels[1])} in the "
        f"second, {len(only_second)} are not in the first{_listed(only_second)}.{near}"
    )
    if by is None:
        text += _offer_digests(a, b, dims, n_common)
    if n_common >= MIN_IMAGES:
        text += f" To compare only the {n_common} that both have: join='inner'."
    return LabelMismatchError(
        text,
        only_first=tuple(only_first),
        only_second=tuple(only_second),
        n_common=n_common,
    )


def _offer_digests(a: xr.DataArray, b: xr.DataArray, dims: tuple[str, str], n_common: int) -> str:
    """Return a sentence where contents agree better than names do."""
    if not all(_has_digests(rdm, dim) for rdm, dim in zip((a, b), dims, strict=True)):
        return ""
    first, second = set(a[DIGEST].values.tolist()), set(b[DIGEST].values.tolist())
    n_same = len(first & second)
    if n_same <= n_common:
        return ""
    if first == second:
        return " Their contents (digests) are the same, under other names: by='digest'."
    return f" By content (digest) they have {n_same} in common: by='digest'."


def _warn_of_other_content(
    a: xr.DataArray,
    b: xr.DataArray,
    first: NDArray[np.intp],
    second: NDArray[np.intp],
    dim: str,
) -> None:
    """Warn where two images of one name are not the same file."""
    if not (_has_digests(a, dim) and _has_digests(b, dim)):
        return
    differ = np.flatnonzero(a[DIGEST].values[first] != b[DIGEST].values[second])
    if len(differ):
        names = a[dim].values[first[differ]].tolist()
        warnings.warn(
            f"{len(differ)} of {len(first)} {dim}s have the same name in both RDMs and another "
            f"content (digest){_listed(names)}. They are compared as if they were the same. "
            "Compare by content with by='digest'.",
            FeatureStoreWarning,
            stacklevel=5,
        )


def _has_digests(rdm: xr.DataArray, dim: str) -> bool:
    return DIGEST in rdm.coords and rdm[DIGEST].dims == (dim,)


def _listed(names: Sequence[Any]) -> str:
    return f" ({_counted(names)})" if names else ""


def _counted(names: Sequence[Any]) -> str:
    if not names:
        return "none"
    more = f" and {len(names) - N_SHOWN} more" if len(names) > N_SHOWN else ""
    return ", ".join(repr(name) for name in names[:N_SHOWN]) + more
