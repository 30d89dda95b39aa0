"""Standard errors and intervals from bootstrap samples."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy import stats

from featurestore.optional import import_optional

if TYPE_CHECKING:
    from collections.abc import Callable

    from featurestore.rsa.measures import Vectors

Interval = Literal["percentile", "t"]


@dataclass(frozen=True, slots=True)
class Draws:
    """Scores of samples; the first dim counts samples."""

    main: Vectors
    """With everything resampled that is."""
    parts: tuple[Vectors, Vectors] | None = None
    """Where subjects and images are resampled: subjects alone, and images alone."""

    def map(self, change: Callable[[Vectors], Vectors]) -> Draws:
        """Change all scores alike.

        Parameters
        ----------
        change : callable
            Samples in, samples out.

        Returns
        -------
        Draws
            The changed samples.
        """
        parts = self.parts
        return Draws(change(self.main), parts and (change(parts[0]), change(parts[1])))


@dataclass(frozen=True, slots=True)
class Spread:
    """How standard errors and intervals are computed."""

    n_images: int | None
    """How many there are, if they are resampled."""
    n_subjects: int | None
    """How many there are, if they are resampled."""
    confidence: float
    interval: Interval

    @property
    def freedom(self) -> int:
        """Degrees of freedom of a t-test.

        Returns
        -------
        int
            One less than there are of the rarer.
        """
        return min(n for n in (self.n_images, self.n_subjects) if n is not None) - 1

    @property
    def formula(self) -> str:
        """Where the variance comes from.

        Returns
        -------
        str
            For people.
        """
        if self.n_images is None or self.n_subjects is None:
            return "of the samples, times n / (n - 1)"
        return (
            f"three bootstraps combined by rsatoolbox {version('rsatoolbox')}, extract_variances "
            "(doi:10.7554/eLife.82566)"
        )

    def standard_error(self, draws: Draws) -> Vectors:
        """Return the standard error of each score.

        Parameters
        ----------
        draws : Draws
            Samples.

        Returns
        -------
        ndarray
            NaN with fewer than 2 samples.
        """
        if draws.parts is None:
            n = self.n_images if self.n_images is not None else self.n_subjects
            return np.asarray(np.sqrt(_variance(draws.main) * _corrected(n)))
        three = np.stack([draws.main, *draws.parts])
        three[:, np.isnan(three).any(axis=0)] = np.nan  # the same samples in all three
        variances = np.stack([_variance(samples) for samples in three])
        flat = variances.reshape(3, -1)
        extract = require_formula()
        combined = [
            extract(each[:, None, None], False, self.n_subjects, self.n_images)[0][0]
            for each in flat.T
        ]
        return np.asarray(np.sqrt(np.array(combined).reshape(variances.shape[1:])))

    def limits(self, score: Vectors, draws: Draws) -> tuple[Vectors, Vectors]:
        """Return the interval of each score.

        Parameters
        ----------
        score : ndarray
            The scores.
        draws : Draws
            Samples.

        Returns
        -------
        tuple of ndarray
            Lower and upper limit.
        """
        if self.interval == "t":
            n_errors = stats.t.ppf((1 + self.confidence) / 2, self.freedom)
            reach = n_errors * self.standard_error(draws)
            return score - reach, score + reach
        with warnings.catch_warnings():  # where all samples are NaN, so are their quantiles
            warnings.simplefilter("ignore", RuntimeWarning)
            tails = ((1 - self.confidence) / 2, (1 + self.confidence) / 2)
            lower, upper = np.nanquantile(draws.main, tails, axis=0)
        return lower, upper

    def p_value(self, score: Vectors, draws: Draws) -> Vectors:
        """Test whether each score is 0.

        Parameters
        ----------
        score : ndarray
            The scores.
        draws : Draws
            Samples.

        Returns
        -------
        ndarray
            Two-sided, by t; NaN where neither score nor samples differ from 0.
        """
        with np.errstate(invalid="ignore", divide="ignore"):
            t = np.abs(score) / self.standard_error(draws)
        return np.asarray(2 * stats.t.sf(t, self.freedom))


def _variance(samples: Vectors) -> Vectors:
    with warnings.catch_warnings():  # too few samples: NaN
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.asarray(np.nanvar(samples, axis=0, ddof=1))


def _corrected(n: int | None) -> float:
    return 1.0 if n is None else n / (n - 1)


def require_formula() -> Any:
    """Return the formula that combines three bootstraps.

    Returns
    -------
    callable
        `extract_variances` of rsatoolbox.

    Raises
    ------
    MissingDependencyError
        If rsatoolbox is not installed.
    """
    return import_optional("rsatoolbox.util.inference_util", "rsa").extract_variances
