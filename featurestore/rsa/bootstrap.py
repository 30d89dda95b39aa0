"""How far a comparison of RDMs would vary with other images and other subjects."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import xarray as xr

from featurestore.errors import FeatureStoreWarning, InvalidInputError, did_you_mean
from featurestore.rdms.structure import extra_dims, second
from featurestore.rsa.align import pair_dims
from featurestore.rsa.resample import Sides, line_up, require_once, require_whole
from featurestore.rsa.samples import draw_images, draw_subjects, image_scores
from featurestore.rsa.spread import Draws, Interval, Spread, require_formula

if TYPE_CHECKING:
    from collections.abc import Sequence

    from featurestore.rsa.measures import Vectors

SUBJECT = "subject"
DRAW = "draw"
MIN_IMAGES = 5
MIN_SUBJECTS = 2
FEW_VALID = 0.9
"""If fewer of the samples have a score, it is said."""


def bootstrap_comparison(
    a: xr.DataArray,
    b: xr.DataArray,
    *,
    method: str = "pearson",
    over: str | Sequence[str] | None = None,
    n: int = 1_000,
    seed: int = 0,
    confidence: float = 0.95,
    interval: Interval | None = None,
    contrast: str | None = None,
    join: str = "exact",
    dims: tuple[str, str] | None = None,
    by: str | None = None,
    keep_draws: bool = False,
) -> xr.Dataset:
    """Give comparisons of RDMs a confidence interval, by resampling images and subjects.

    Parameters
    ----------
    a, b : DataArray (…, image, image_2)
        RDMs, as for `compare_rdms`: matched by name, leading dims that both have by label.
    method : str
        How they are compared, as for `compare_rdms`.
    over : str or sequence of str, optional
        What is resampled, hence what the result holds for: ``"image"``, a leading dim such as
        ``"subject"``, or both. If not given: images, and subjects where the RDMs have a dim of
        that name. A resampled leading dim is averaged over.
    n : int
        How many samples.
    seed : int
        Same seed, same images, same samples, whatever the order of the images in the RDMs.
    confidence : float
        Of the intervals, between 0 and 1.
    interval : "percentile" or "t", optional
        Quantiles of the samples, or the score and so many standard errors as Student's t says,
        with one degree of freedom less than there are images or subjects, whichever are fewer.
        If not given: percentiles where only images are resampled, else t, since percentiles of
        few subjects are too narrow.
    contrast : str, optional
        A leading dim, such as ``"model"``, whose scores are compared with each other, in pairs
        and within the same samples.
    join, dims, by : object
        How images are matched, as for `compare_rdms`.
    keep_draws : bool
        Whether the score of every sample is returned.

    Returns
    -------
    Dataset
        Along the leading dims of both that are not resampled: ``score``; ``lower`` and ``upper``,
        the interval; ``standard_error``; ``n_valid``, how many samples have a score. With
        `contrast`, along that dim twice, the first less the second: ``difference``,
        ``difference_lower``, ``difference_upper``, ``difference_standard_error``, and
        ``difference_p_value`` (two-sided t-test, not corrected for many pairs). With `keep_draws`:
        ``draws`` (…, draw), and where both are resampled also ``draws_subject`` and
        ``draws_image``, where one of the two is. Attributes are those of `compare_rdms`, with how
        it was done.

    Raises
    ------
    InvalidInputError
        If an argument is not known, there are fewer than 5 images or 2 subjects, a subject is
        there twice, or as `compare_rdms` does.
    LabelMismatchError
        As `compare_rdms` does.
    MemoryBudgetError
        If RDMs that must be ranked do not fit.
    MissingDependencyError
        If both are resampled and rsatoolbox is not installed.

    Notes
    -----
    A sample takes as many images as there are, with replacement, on both axes and in both RDMs.
    Pairs of an image with itself are left out; samples of fewer than 3 different images, or within
    which an RDM has no variation, have no score.

    Resampling images alone ignores that subjects vary and the other way round; both at once,
    taken naively, counts some variance twice. So where both are resampled, three bootstraps with
    the same samples are combined as in Schütt et al. 2023, eLife 12:e82566,
    https://doi.org/10.7554/eLife.82566: the samples are drawn and compared here, the formula is
    that of rsatoolbox (`extract_variances`, which `eval_dual_bootstrap` calls). Where one is
    resampled, the variance is multiplied by ``n / (n - 1)``, as there. Models with weights need
    crossvalidation within the bootstrap: `rsatoolbox.inference.bootstrap_crossval`, after
    `exports.to_rsatoolbox`.

    ``pearson`` and ``cosine`` read rows of the RDMs, once if ``8 n n_images`` bytes are a quarter
    of `memory_budget`, and take ``n n_images²`` operations for each RDM and each comparison: 1,000
    samples of 1,854 images about a second. Ranks need all RDMs in memory and take about 40 ns per
    pair of images, RDM and sample (two RDMs of 1,854 images: 0.15 s a sample); Kendall's about
    ten times that for each comparison.

    Examples
    --------
    >>> from scipy.spatial.distance import squareform
    >>> from featurestore.rdms.structure import make_rdm
    >>> rng = np.random.default_rng(0)
    >>> first = rng.random(190)
    >>> second = first + 0.5 * rng.random(190)
    >>> names = xr.Coordinates({"image": range(20)})
    >>> one, other = (make_rdm(squareform(values), names) for values in (first, second))
    >>> result = bootstrap_comparison(one, other)
    >>> [round(float(result[name]), 2) for name in ("lower", "score", "upper")]
    [0.88, 0.91, 0.93]
    """
    require_whole("n", n, 2)
    require_whole("seed", seed, 0)
    if not 0 < confidence < 1:
        raise InvalidInputError(f"confidence={confidence!r} must be between 0 and 1, such as 0.95.")
    factors = _Factors.of(over, a, b, pair_dims(a, b, dims)[0])
    factors.require_contrast(contrast)
    interval = factors.require_interval(interval)
    if len(factors.names) > 1:
        require_formula()  # before the work that it is for
    sides = line_up(a, b, method=method, join=join, dims=dims, by=by)
    spread = factors.spread(sides, confidence, interval)
    draws = _draws(sides, factors, n, seed)
    score = sides.score
    if factors.subjects is not None:
        score = score.mean(factors.subjects, skipna=False)
    out = score.to_dataset(name="score")
    out = out.assign(_estimates(score.values, draws, spread, score.dims))
    out["n_valid"] = (score.dims, (~np.isnan(draws.main)).sum(axis=0))
    _warn_of_lost(out, n)
    if contrast is not None:
        out = out.merge(_contrasts(score, draws, contrast, spread))
    if keep_draws:
        out = out.assign(factors.shown(draws, score.dims))
    return out.assign_attrs(
        sides.score.attrs
        | {
            "over": ", ".join(factors.names),
            "n": int(n),
            "seed": int(seed),
            "confidence": float(confidence),
            "interval": interval,
            "variance": spread.formula,
        }
    )


@dataclass(frozen=True, slots=True)
class _Factors:
    """What is resampled."""

    images: str | None
    """The dim of what is compared, if it is resampled."""
    subjects: str | None
    """A leading dim, if one is resampled."""
    leading: tuple[str, ...]
    """All leading dims."""

    @classmethod
    def of(
        cls, over: str | Sequence[str] | None, a: xr.DataArray, b: xr.DataArray, dim: str
    ) -> _Factors:
        leading = tuple(dict.fromkeys((*extra_dims(a), *extra_dims(b))))
        if over is None:
            return cls(dim, SUBJECT if SUBJECT in leading else None, leading)
        asked = tuple(dict.fromkeys((over,) if isinstance(over, str) else over))
        unknown = [str(name) for name in asked if name not in (dim, *leading)]
        if unknown:
            raise InvalidInputError(
                f"over={over!r}: the RDMs have no dim {unknown[0]!r} to resample. They compare "
                f"{dim}s, and their leading dims are {leading or 'none'}."
                f"{did_you_mean(unknown[0], (dim, *leading))}"
            )
        subjects = [name for name in asked if name != dim]
        if not asked or len(subjects) > 1:
            raise InvalidInputError(
                f"over={over!r} must name {dim!r}, one leading dim, or both of them."
            )
        return cls(dim if dim in asked else None, subjects[0] if subjects else None, leading)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.images, self.subjects) if name is not None)

    def require_contrast(self, contrast: str | None) -> None:
        """Refuse to compare what the result does not have."""
        kept = [name for name in self.leading if name != self.subjects]
        if contrast is not None and contrast not in kept:
            raise InvalidInputError(
                f"contrast={contrast!r} is no dim of the result, which has {kept or 'none'}."
                f"{did_you_mean(str(contrast), kept)}"
            )

    def require_interval(self, interval: Interval | None) -> Interval:
        """Return how intervals are made; refuse what would be wrong."""
        if interval is None:
            return "percentile" if self.subjects is None else "t"
        if interval not in get_args(Interval):
            raise InvalidInputError(
                f"interval={interval!r} is not known. Use 'percentile' or 't'."
                f"{did_you_mean(str(interval), get_args(Interval))}"
            )
        if interval == "percentile" and len(self.names) > 1:
            raise InvalidInputError(
                "Percentiles of samples of images and subjects at once are too wide: they count "
                "some variance twice. Use interval='t', whose variance is corrected for that, or "
                f"resample one: over={self.images!r}."
            )
        return interval

    def spread(self, sides: Sides, confidence: float, interval: Interval) -> Spread:
        """Count what is drawn from; refuse too few."""
        n_images = n_subjects = None
        if self.images is not None:
            n_images = sides.n_images
            _require_enough(n_images, self.images, MIN_IMAGES)
        if self.subjects is not None:
            n_subjects = sides.score.sizes[self.subjects]
            _require_enough(n_subjects, self.subjects, MIN_SUBJECTS)
            require_once(sides.score, self.subjects)
        return Spread(n_images, n_subjects, confidence, interval)

    def shown(self, draws: Draws, dims: tuple[Any, ...]) -> dict[str, Any]:
        """Return the samples as variables."""
        found = {"draws": draws.main}
        if draws.parts is not None:
            found |= {f"draws_{self.subjects}": draws.parts[0]}
            found |= {f"draws_{self.images}": draws.parts[1]}
        return {name: ((*dims, DRAW), np.moveaxis(values, 0, -1)) for name, values in found.items()}


def _require_enough(n: int, name: str, least: int) -> None:
    if n < least:
        raise InvalidInputError(
            f"{n} {name}s to draw from say nothing about others; at least {least} are needed, and "
            "many more are better.",
            n=n,
        )


def _draws(sides: Sides, factors: _Factors, n: int, seed: int) -> Draws:
    """Return the scores of all samples, without the dim of the subjects."""
    if factors.subjects is None:
        return Draws(image_scores(sides, draw_images(sides.n_images, n, seed)))
    axis = sides.score.dims.index(factors.subjects)
    n_subjects = sides.score.sizes[factors.subjects]
    share = draw_subjects(n_subjects, n, seed) / n_subjects
    of_subjects = np.tensordot(share, sides.score.values, (1, axis))
    if factors.images is None:
        return Draws(of_subjects)
    each = image_scores(sides, draw_images(sides.n_images, n, seed))
    each = np.moveaxis(each, axis + 1, -1)
    both = np.einsum("n...s,ns->n...", each, share)
    return Draws(both, (of_subjects, each.mean(axis=-1)))


def _estimates(
    score: Vectors, draws: Draws, spread: Spread, dims: tuple[Any, ...]
) -> dict[str, Any]:
    lower, upper = spread.limits(score, draws)
    error = spread.standard_error(draws)
    return {"lower": (dims, lower), "upper": (dims, upper), "standard_error": (dims, error)}


def _contrasts(score: xr.DataArray, draws: Draws, dim: str, spread: Spread) -> xr.Dataset:
    """Compare scores along a dim in pairs, within the same samples."""
    axis = score.dims.index(dim)
    values = np.moveaxis(score.values, axis, 0)
    moved = draws.map(lambda samples: np.moveaxis(samples, axis + 1, 1))
    dims = (dim, second(dim), *(name for name in score.dims if name != dim))
    rows = []
    for row in range(len(values)):
        apart = values[row] - values
        samples = moved.map(lambda some, row=row: some[:, row : row + 1] - some)  # type: ignore[misc]
        found: dict[str, Any] = {"": (dims[1:], apart)}
        found |= _estimates(apart, samples, spread, dims[1:])
        found["p_value"] = (dims[1:], spread.p_value(apart, samples))
        rows.append(xr.Dataset({_difference(name): value for name, value in found.items()}))
    out = xr.concat(rows, dim)
    labels = {
        second(name): (second(dim), coord.values)
        for name, coord in score.coords.items()
        if coord.dims == (dim,)
    }
    return out.assign_coords(labels)


def _difference(name: str) -> str:
    return f"difference_{name}" if name else "difference"


def _warn_of_lost(out: xr.Dataset, n: int) -> None:
    share = float(out["n_valid"].min()) / n if out["n_valid"].size else 1.0
    if share < FEW_VALID:
        warnings.warn(
            f"Of {n:,} samples, only {share:.0%} have a score in the worst case: in the others an "
            "RDM has no variation, or too few different images were drawn. The intervals hold "
            "for samples that have one; `n_valid` says how many those are.",
            FeatureStoreWarning,
            stacklevel=3,
        )
