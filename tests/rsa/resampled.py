"""RDMs to resample, and the plain loops that the fast ways must agree with."""

from __future__ import annotations

import numpy as np
import xarray as xr
from scipy import stats
from scipy.spatial.distance import squareform

from featurestore.rdms.structure import make_rdm

METHODS = ("pearson", "cosine", "spearman", "rho-a", "tau-a", "kendall")


def rdms(n=9, seed=0, levels=None, like=None, noise=1.0, **extra):
    """RDMs along leading dims, random or like others; with ties if of so many `levels`."""
    rng = np.random.default_rng(seed)
    shape = [len(labels) for labels in extra.values()]
    m = n * (n - 1) // 2
    vectors = rng.random((*shape, m))
    if like is not None:
        vectors = squareform(like.values) + noise * vectors
    if levels:
        vectors = np.ceil(levels * vectors / vectors.max())
    squares = np.array([squareform(vector) for vector in vectors.reshape(-1, m)])
    return make_rdm(squares.reshape(*shape, n, n), names(n), extra=extra)


def names(n):
    return xr.Coordinates({"image": ("image", [f"{i:03d}.png" for i in range(n)])})


def shuffled(rdm, seed=0):
    order = np.random.default_rng(seed).permutation(rdm.sizes["image"])
    return rdm.isel(image=order, image_2=order)


def score_of(first, second, method):
    """Compare two condensed RDMs with SciPy, without the pairs that either lacks."""
    known = ~(np.isnan(first) | np.isnan(second))
    x, y = first[known], second[known]
    if len(x) < 2:
        return np.nan
    return PLAIN[method](x, y)


def _rho_a(x, y):
    m = len(x)
    ranks = [stats.rankdata(values) - (m + 1) / 2 for values in (x, y)]
    return 12 * np.dot(*ranks) / (m**3 - m)


def _tau_a(x, y):
    upper = np.triu_indices(len(x), 1)
    signs = [np.sign(np.subtract.outer(values, values))[upper] for values in (x, y)]
    return np.dot(*signs) / len(upper[0])


def _unless_constant(compare):
    def compared(x, y):
        return np.nan if np.ptp(x) == 0 or np.ptp(y) == 0 else compare(x, y).statistic

    return compared


PLAIN = {
    "pearson": _unless_constant(stats.pearsonr),
    "spearman": _unless_constant(stats.spearmanr),
    "kendall": _unless_constant(stats.kendalltau),
    "cosine": lambda x, y: np.dot(x, y) / np.sqrt(np.dot(x, x) * np.dot(y, y)),
    "rho-a": _rho_a,
    "tau-a": _tau_a,
}
