"""Comparing RDMs: by the names of their images, over all leading dims, to a labelled result."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import InvalidInputError
from featurestore.options import get_options
from featurestore.rdms.structure import extra_dims, pair_dim, second
from featurestore.rsa.align import (
    align,
    pair_dims,
    require_enough,
    require_join,
    require_unique,
    shared_dims,
)
from featurestore.rsa.measures import n_dropped, require_method, score
from featurestore.rsa.pairs import Pairs, require_finite
from featurestore.rsa.streaming import Streamed, stream_scores

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable, Mapping

    from numpy.typing import NDArray

    from featurestore.rsa.measures import Measure

NBYTES_PER_PAIR = 32  # of one RDM in memory: as read, in float64, transformed, one temporary
SCRATCH_NBYTES_PER_PAIR = 64  # while one is ranked
KNOWN = ("pearson", "cosine", "spearman", "tau-b")  # an RDM and itself: exactly 1


def compare_rdms(
    a: xr.DataArray,
    b: xr.DataArray | None = None,
    *,
    method: str = "pearson",
    join: str = "exact",
    dims: tuple[str, str] | None = None,
    by: str | None = None,
) -> xr.DataArray:
    """Say how alike RDMs are, matching their images by name.

    Parameters
    ----------
    a : DataArray (…, image, image_2)
        One RDM, or several along leading dims. The order of the images does not matter.
    b : DataArray (…, image, image_2), optional
        Those that each of `a` is compared with. By default those of `a` with each other.
    method : str
        ``pearson``, ``spearman``, ``kendall`` (tau-b), ``tau-a``, ``tau-b``, ``cosine`` or
        ``rho-a``, over the pairs of images (one triangle, without the diagonal).
    join : "exact" or "inner"
        Whether both must have the same images, or only those in both are compared.
    dims : tuple of two str, optional
        What each RDM compares, if that differs, such as ``("image", "text")``; their labels must
        be the same.
    by : str, optional
        A coordinate to match by instead of the names, such as ``"digest"``.

    Returns
    -------
    DataArray (leading dims of a, then those of b), float64
        The scores, with the labels of the leading dims; one number if there are none, which
        ``float()`` takes. A leading dim that both have is paired by label and occurs once. Without
        `b`, each leading dim occurs twice: ``(module, module_2)``. Attributes: ``method``,
        ``n_images``, ``n_pairs``, ``n_dropped`` (pairs left out because either has no value, NaN;
        where that differs between comparisons, a coordinate of that name says so for each), and,
        as JSON, what ``a`` and ``b`` say of themselves. ``max_error``, where it is there, bounds
        how far a score can be off.

    Raises
    ------
    InvalidInputError
        If something is no labelled RDM, a name repeats, fewer than 3 images are left, an RDM is
        not symmetric or infinite, or an argument is not known.
    LabelMismatchError
        If the images, or the labels of a dim that both have, are not the same (`only_first`,
        `only_second`).
    MemoryBudgetError
        If Kendall's is asked for and two RDMs do not fit in memory.

    Warns
    -----
    FeatureStoreWarning
        If images of the same name have another digest.

    Notes
    -----
    Pearson is the default of Muttenthaler & Hebart 2021, Front Neuroinform 15:679838,
    https://doi.org/10.3389/fninf.2021.679838. Where a model predicts ties, as a model of
    categories does, ``rho-a`` is fair to the others, Spearman and tau-b are not: Schütt et al.
    2023, eLife 12:e82566, https://doi.org/10.7554/eLife.82566. A constant RDM gives NaN, except by
    tau-a and rho-a, which give 0, and cosine.

    RDMs that do not fit in `memory_budget` are read in strips of rows: once for ``pearson`` and
    ``cosine``, three times or more for ``spearman`` and ``rho-a``, whose ranks are exact for
    float32 where the budget allows it (about 0.5 GB per RDM); otherwise nearly equal
    dissimilarities count as tied, and ``max_error`` says what that can amount to. Two lazy RDMs
    whose images are in different orders are slow to read so.

    Examples
    --------
    >>> from featurestore.rdms.structure import make_rdm
    >>> rng = np.random.default_rng(0)
    >>> x = rng.normal(size=(5, 3))
    >>> distances = np.linalg.norm(x[:, None] - x[None], axis=-1)
    >>> one = make_rdm(distances, xr.Coordinates({"image": [*"abcde"]}))
    >>> other = one.isel(image=[4, 2, 0, 1, 3], image_2=[4, 2, 0, 1, 3]) ** 2
    >>> float(compare_rdms(one, other, method="spearman"))
    1.0
    """
    request = _Request(require_method(method), join, dims, by)
    require_join(join)
    return _all_pairs(a, request) if b is None else _two(a, b, request)


@dataclass(frozen=True, slots=True)
class _Request:
    measure: Measure
    join: str
    dims: tuple[str, str] | None
    by: str | None


def _two(a: xr.DataArray, b: xr.DataArray, request: _Request) -> xr.DataArray:
    dims = pair_dims(a, b, request.dims)
    alignment = align(a, b, dims, join=request.join, by=request.by)
    shared = shared_dims(a, b)
    own_a = [dim for dim in extra_dims(a) if dim not in shared]
    own_b = [dim for dim in extra_dims(b) if dim not in shared]
    sizes = [a.sizes[dim] for dim in (*shared, *own_a)] + [b.sizes[dim] for dim in own_b]
    found = _empty(tuple(sizes))
    for place in np.ndindex(*sizes[: len(shared)]):
        at_a, at_b = ({dim: int(shared[dim][side][n]) for dim, n in zip(shared, place, strict=True)}
                      for side in (0, 1))  # fmt: skip
        left = _pairs_of(a.isel(at_a), own_a, alignment.first, "The first RDM")
        right = _pairs_of(b.isel(at_b), own_b, alignment.second, "The second RDM")
        _put(found, place, _scores(left, right, request.measure))
    result = _labelled(found, (*shared, *own_a, *own_b), _both_coords(a, b, own_b))
    result = result.transpose(*extra_dims(a), *own_b)
    return _described(result, request, alignment.n_images, {"a": a, "b": b})


def _all_pairs(a: xr.DataArray, request: _Request) -> xr.DataArray:
    """Compare the RDMs of one array with each other."""
    dim = pair_dim(a)
    own = extra_dims(a)
    if not own:
        raise InvalidInputError(
            "There is one RDM and nothing to compare it with. Give another: compare_rdms(a, b); or "
            "several along a leading dim: xarray.concat([…], dim='module')."
        )
    if request.join != "exact" or request.dims is not None or request.by is not None:
        raise InvalidInputError(
            "join=, dims= and by= say how two RDMs are matched, and there is one array, whose RDMs "
            "have the same images. Leave them out, or give the other: compare_rdms(a, b)."
        )
    require_unique(a, dim)
    require_enough(a.sizes[dim], dim)
    pairs = _pairs_of(a, list(own), None, "The RDM")
    streamed = _scores(pairs, pairs, request.measure)
    # Blocks may differ in the last bit from one side to the other.
    lower = np.tril_indices(len(pairs), -1)
    streamed.scores[lower] = streamed.scores.T[lower]
    if request.measure.name in KNOWN:
        itself = np.diagonal(streamed.scores)
        np.fill_diagonal(streamed.scores, np.where(np.isnan(itself), np.nan, 1.0))
    shape = tuple(a.sizes[name] for name in own)
    found = _empty((*shape, *shape))
    _put(found, (), streamed)
    coords = _coords(a, own)
    twice = {
        second(name): (tuple(second(dim) for dim in variable.dims), variable.data)
        for name, variable in coords.items()
        if variable.dims
    }
    dims = (*own, *(second(name) for name in own))
    result = _labelled(found, dims, coords | twice)
    return _described(result, request, a.sizes[dim], {"a": a})


def _pairs_of(
    rdm: xr.DataArray, own: list[str], positions: NDArray[np.intp] | None, what: str
) -> Pairs:
    """Line up the RDMs along some leading dims."""
    variable = rdm.variable.transpose(*own, *rdm.dims[-2:])
    places = np.ndindex(*(variable.sizes[dim] for dim in own))
    rdms = tuple(variable.isel(dict(zip(own, place, strict=True))) for place in places)
    return Pairs(rdms, positions, what)


def _scores(a: Pairs, b: Pairs, measure: Measure) -> Streamed:
    """Compare in memory where that fits, block by block, otherwise in strips."""
    if not (len(a) and len(b)):
        return Streamed(np.empty((len(a), len(b))), np.empty((len(a), len(b)), np.int64), 0.0)
    budget = get_options().memory_budget
    n_fit = (budget - SCRATCH_NBYTES_PER_PAIR * a.n_pairs) // (NBYTES_PER_PAIR * a.n_pairs)
    if n_fit < 2:
        return stream_scores(a, b, measure, budget // 2)
    if a is b and len(a) <= n_fit:
        vectors = _read(a, measure)
        return Streamed(score(vectors, vectors, measure), n_dropped(vectors, vectors), 0.0)
    # As many of one side as fit beside some of the other, so that little is ranked twice.
    held = min(len(a), max(1, n_fit - min(len(b), max(1, n_fit // 4))))
    beside = n_fit - held
    out = Streamed(np.empty((len(a), len(b))), np.empty((len(a), len(b)), np.int64), 0.0)
    for low in range(0, len(a), held):
        rows = slice(low, low + held)
        left = _read(a.take(rows), measure)
        for start in range(0, len(b), beside):
            columns = slice(start, start + beside)
            right = _read(b.take(columns), measure)
            out.scores[rows, columns] = score(left, right, measure)
            out.n_dropped[rows, columns] = n_dropped(left, right)
    return out


def _read(pairs: Pairs, measure: Measure) -> NDArray[Any]:
    vectors = pairs.condensed()
    if not measure.ranked:
        require_finite(vectors, pairs.what)
    return vectors


def _empty(shape: tuple[int, ...]) -> dict[str, NDArray[Any]]:
    return {
        "scores": np.empty(shape),
        "n_dropped": np.empty(shape, np.int64),
        "max_error": np.zeros(1),
    }


def _put(found: dict[str, NDArray[Any]], place: tuple[int, ...], streamed: Streamed) -> None:
    shape = found["scores"][place].shape
    found["scores"][place] = streamed.scores.reshape(shape)
    found["n_dropped"][place] = streamed.n_dropped.reshape(shape)
    found["max_error"] = np.maximum(found["max_error"], streamed.max_error)


def _coords(rdm: xr.DataArray, dims: Iterable[str]) -> dict[Hashable, xr.Variable]:
    """Return what is known along some dims, and single facts such as a selected subject."""
    leading = set(dims)
    return {
        name: coord.variable for name, coord in rdm.coords.items() if set(coord.dims) <= leading
    }


def _both_coords(a: xr.DataArray, b: xr.DataArray, own_b: list[str]) -> dict[Hashable, xr.Variable]:
    """Return the coordinates of the result; facts that contradict each other are left out."""
    found: dict[Hashable, Any] = dict(_coords(a, extra_dims(a)))
    for name, variable in _coords(b, own_b).items():
        if name in own_b or name not in found:
            found[name] = variable
        elif name not in extra_dims(a) and not found[name].identical(variable):
            del found[name]
    return found


def _labelled(
    found: dict[str, NDArray[Any]], dims: tuple[str, ...], coords: Mapping[Any, Any]
) -> xr.DataArray:
    attrs: dict[str, Any] = {}
    dropped = found["n_dropped"]
    coords = dict(coords)
    if dropped.size and (dropped == dropped.flat[0]).all():
        attrs["n_dropped"] = int(dropped.flat[0])
    else:
        coords["n_dropped"] = (dims, dropped)
    if found["max_error"][0]:
        attrs["max_error"] = float(found["max_error"][0])
    return xr.DataArray(found["scores"], dims=dims, coords=coords, attrs=attrs)


def _described(
    result: xr.DataArray, request: _Request, n_images: int, what: Mapping[str, xr.DataArray]
) -> xr.DataArray:
    """Say how the scores came about."""
    facts = {name: json.dumps(rdm.attrs, default=str, sort_keys=True) for name, rdm in what.items()}
    result.attrs = {
        "method": request.measure.name,
        "n_images": n_images,
        "n_pairs": n_images * (n_images - 1) // 2,
        **result.attrs,
        **facts,
    }
    result.name = request.measure.name
    return result
