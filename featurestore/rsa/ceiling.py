"""How well any model could do: what the subjects have in common."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import xarray as xr

from featurestore.errors import InvalidInputError, MemoryBudgetError, did_you_mean
from featurestore.options import format_nbytes, get_options
from featurestore.rdms.structure import extra_dims, pair_dim
from featurestore.rsa.measures import require_method, score
from featurestore.rsa.pairs import Pairs
from featurestore.rsa.resample import require_once

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from featurestore.rsa.measures import Measure, Vectors

MIN_SUBJECTS = 2
COSINE = "cosine"  # the only measure by which a constant RDM resembles others


def noise_ceiling(
    subject_rdms: xr.DataArray, *, method: str = "pearson", dim: str = "subject"
) -> xr.Dataset:
    """Estimate how well the best possible model would fit the RDMs of these subjects.

    Parameters
    ----------
    subject_rdms : DataArray (…, subject, image, image_2)
        One RDM per subject, of the same images. Other leading dims get a ceiling each.
    method : str
        How RDMs are compared; the same as for the models: ``pearson``, ``spearman``, ``rho-a``,
        ``kendall`` (tau-b), ``tau-a`` or ``cosine``.
    dim : str
        The dim of the subjects.

    Returns
    -------
    Dataset
        ``lower`` and ``upper`` (…), the ceiling; ``lower_per_subject`` and ``upper_per_subject``
        (…, subject), whose means they are; ``n_dropped`` (…), the pairs of images left out because
        a subject has no value (NaN) there. Attributes say the method and the counts.

    Raises
    ------
    InvalidInputError
        If there is no such dim, one subject only, a subject twice, fewer than 3 images, or an RDM
        without variation.
    MemoryBudgetError
        If the RDMs of all subjects do not fit (`projected_nbytes`, `allowed_nbytes`).

    Notes
    -----
    Nili et al. 2014, PLoS Comput Biol 10:e1003553, https://doi.org/10.1371/journal.pcbi.1003553.
    The upper bound compares each subject with the mean of all, itself included, which overfits;
    the lower bound with the mean of the others, which a model with enough data should reach. The
    true ceiling lies between. Before the mean, RDMs are made comparable as the method sees them:
    scaled to unit length for ``cosine``, z-scored for ``pearson``, ranked for all others. For
    ``pearson``, ``cosine``, ``spearman`` and ``rho-a`` no RDM fits the subjects better than their
    mean; for Kendall's the mean of ranks comes close and the upper bound may be exceeded.

    The numbers are those of `rsatoolbox.inference.boot_noise_ceiling`. Where pairs are missing,
    rsatoolbox looks at the first subject alone.

    Sessions of one subject are not subjects: leaving one out would leave the others of that
    subject in, and the lower bound would be too high. Average them first.

    Takes memory for the RDMs of all subjects four times over, in float64, one triangle each.

    Examples
    --------
    >>> from scipy.spatial.distance import squareform
    >>> from featurestore.rdms.structure import make_rdm
    >>> rng = np.random.default_rng(0)
    >>> rdms = np.array([squareform(np.arange(6) + rng.normal(size=6)) for _ in range(5)])
    >>> rdms = make_rdm(rdms, xr.Coordinates({"image": [*"abcd"]}), extra={"subject": range(5)})
    >>> ceiling = noise_ceiling(rdms)
    >>> round(float(ceiling.lower), 2), round(float(ceiling.upper), 2)
    (0.92, 0.95)
    """
    measure = require_method(method)
    pair = pair_dim(subject_rdms)
    others = _other_dims(subject_rdms, pair, dim)
    n_pairs = _require_room(subject_rdms, pair, dim)
    shape = tuple(subject_rdms.sizes[name] for name in others)
    n_subjects = subject_rdms.sizes[dim]
    lower, upper = np.empty((*shape, n_subjects)), np.empty((*shape, n_subjects))
    n_dropped = np.zeros(shape, np.int64)
    for place in np.ndindex(shape):
        chosen = subject_rdms.isel(dict(zip(others, place, strict=True)))
        vectors, n_dropped[place] = _complete(chosen, dim)
        _require_variation(vectors, measure, chosen[dim].values, dim)
        lower[place], upper[place] = _bounds(vectors, measure)
    per_subject = (*others, dim)
    attrs: dict[str, Any] = {
        "method": measure.name,
        "dim": dim,
        "n_subjects": n_subjects,
        f"n_{pair}s": subject_rdms.sizes[pair],
        "n_pairs": n_pairs,
    }
    return xr.Dataset(
        {
            "lower": (others, lower.mean(axis=-1)),
            "upper": (others, upper.mean(axis=-1)),
            "lower_per_subject": (per_subject, lower),
            "upper_per_subject": (per_subject, upper),
            "n_dropped": (others, n_dropped),
        },
        coords={
            name: coord
            for name, coord in subject_rdms.coords.items()
            if set(coord.dims) <= set(per_subject)
        },
        attrs=attrs,
    )


def _other_dims(rdms: xr.DataArray, pair: str, dim: str) -> tuple[str, ...]:
    """Return the leading dims but that of subjects; refuse what is no set of subjects."""
    extra = extra_dims(rdms)
    if dim not in extra:
        raise InvalidInputError(
            f"RDMs with dims {rdms.dims} have no leading dim {dim!r} to leave one out of. "
            + (f"Name the one of the subjects: dim={extra[0]!r}." if extra else "")
            + ("" if extra else f"One RDM has no ceiling: stack those of several {dim}s.")
            + did_you_mean(dim, extra),
            dims=rdms.dims,
        )
    n_subjects = rdms.sizes[dim]
    if n_subjects < MIN_SUBJECTS:
        raise InvalidInputError(
            f"The ceiling leaves one {dim} out and needs {MIN_SUBJECTS} or more; there is "
            f"{n_subjects}.",
            n_subjects=n_subjects,
        )
    require_once(rdms, dim)
    if rdms.sizes[pair] < 3:
        raise InvalidInputError(
            f"{rdms.sizes[pair]} {pair}s make fewer than 3 pairs; there is nothing to compare."
        )
    return tuple(name for name in extra if name != dim)


def _require_room(rdms: xr.DataArray, pair: str, dim: str) -> int:
    """Refuse what does not fit in memory; return the number of pairs."""
    n, n_subjects = rdms.sizes[pair], rdms.sizes[dim]
    n_pairs = n * (n - 1) // 2
    # As they are, as the method sees them, and two more at work; one square while it is read.
    projected = 8 * n_pairs * (4 * n_subjects + 2) + n * n * (rdms.dtype.itemsize + 8)
    budget = get_options().memory_budget
    if projected > budget:
        raise MemoryBudgetError(
            f"The RDMs of {n_subjects} {dim}s and {n:,} {pair}s take {format_nbytes(projected)} "
            f"while they are compared, and memory_budget is {format_nbytes(budget)}. Choose fewer "
            f"{pair}s, or raise it with fs.set_options(memory_budget='…').",
            projected_nbytes=projected,
            allowed_nbytes=budget,
        )
    return n_pairs


def _complete(rdms: xr.DataArray, dim: str) -> tuple[Vectors, int]:
    """Return condensed RDMs without the pairs that any lacks, and how many these were."""
    variable = rdms.variable.transpose(dim, *rdms.dims[-2:])
    each = Pairs(tuple(variable[row] for row in range(len(variable))), None, "An RDM")
    vectors = np.asarray(each.condensed(), np.float64)
    missing = np.isnan(vectors).any(axis=0)
    n_dropped = int(missing.sum())
    return (vectors[:, ~missing] if n_dropped else vectors), n_dropped


def _require_variation(vectors: Vectors, measure: Measure, labels: NDArray[Any], dim: str) -> None:
    """Refuse RDMs that correlate with nothing."""
    if vectors.shape[1] < 3:
        raise InvalidInputError(
            f"Only {vectors.shape[1]} pairs have a value in every {dim}; there is nothing to "
            "compare."
        )
    with np.errstate(invalid="ignore"):  # inf - inf
        spread = np.abs(vectors).max(axis=1) if measure.name == COSINE else np.ptp(vectors, axis=1)
    useless = labels[~(np.isfinite(spread) & (spread > 0))].tolist()
    if useless:
        raise InvalidInputError(
            f"The RDM of {dim} {useless[0]!r} has no variation, or infinite values, so nothing "
            f"can be compared with it. Leave it out: rdms.drop_sel({dim}=[{useless[0]!r}]).",
            useless=useless,
        )


def _bounds(vectors: Vectors, measure: Measure) -> tuple[Vectors, Vectors]:
    """Compare each of the RDMs (k, m) with the mean of the others, and with the mean of all."""
    comparable = vectors
    if measure.ranked:
        comparable = measure.own(vectors)
    elif measure.unit is not None:
        comparable = measure.unit(vectors)
    # A sum serves as the mean: no measure sees the difference, and sums of ranks are exact.
    total = comparable.sum(axis=0)
    lower = np.empty(len(vectors))
    upper = score(total[None], vectors, measure)[0]
    for row in range(len(vectors)):
        others = total - comparable[row]
        lower[row] = score(others[None], vectors[row : row + 1], measure)[0, 0]
    return lower, upper
