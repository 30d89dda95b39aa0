"""Bootstrap samples: what is drawn, and the scores of every sample."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from featurestore.options import get_options
from featurestore.rsa.resample import Sides, require_memory
from featurestore.rsa.weighted import paired_scores, product_scores, rank_scores

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from featurestore.rsa.measures import Vectors
    from featurestore.rsa.pairs import Pairs
    from featurestore.rsa.weighted import Counts

MIN_DISTINCT = 3
"""A sample of fewer different images has no score, as in rsatoolbox."""

MAX_ROWS = 512  # of an RDM at once; more gain nothing
CENTRED = {"pearson": True, "cosine": False}
TIED = {"spearman": True, "rho-a": False}


def draw_images(n_images: int, n: int, seed: int) -> Counts:
    """Draw images with replacement.

    Parameters
    ----------
    n_images : int
        How many there are, and how many are drawn each time.
    n : int
        How many samples.
    seed : int
        Same seed, same samples.

    Returns
    -------
    ndarray of shape (n, n_images), uint16
        How often each is drawn.
    """
    return _draw(n_images, n, seed, 0)


def draw_subjects(n_subjects: int, n: int, seed: int) -> Counts:
    """Draw subjects with replacement, independently of the images of the same seed.

    Parameters
    ----------
    n_subjects : int
        How many there are, and how many are drawn each time.
    n : int
        How many samples.
    seed : int
        Same seed, same samples.

    Returns
    -------
    ndarray of shape (n, n_subjects), uint16
        How often each is drawn.
    """
    return _draw(n_subjects, n, seed, 1)


def image_scores(sides: Sides, counts: Counts) -> Vectors:
    """Compare RDMs within samples of images.

    Parameters
    ----------
    sides : Sides
        The RDMs.
    counts : ndarray of shape (n, n_images)
        How often each image is drawn.

    Returns
    -------
    ndarray of shape (n, …), float64
        The last dims are those of the scores. NaN where a sample has fewer than 3 different
        images, or an RDM has no variation within it.

    Raises
    ------
    MemoryBudgetError
        If a rank correlation is asked for and the RDMs do not fit.
    """
    if sides.measure.name in CENTRED:
        found = _products(sides, counts)
    else:
        found = _ranks(sides, counts)
    found[(counts > 0).sum(axis=1) < MIN_DISTINCT] = np.nan
    return sides.arranged(found)


def _draw(size: int, n: int, seed: int, stream: int) -> Counts:
    generator = np.random.default_rng(np.random.SeedSequence(seed).spawn(2)[stream])
    out = np.empty((n, size), dtype=np.uint16)
    for row in out:
        row[:] = np.bincount(generator.integers(0, size, size), minlength=size)
    return out


def _products(sides: Sides, counts: Counts) -> Vectors:
    """Read rows of all RDMs, for as many samples at once as fit."""
    share = get_options().memory_budget // 4
    n_at_once = max(1, share // (8 * sides.n_images))
    found = [
        product_scores(_rows(sides, share, len(some)), some, centred=CENTRED[sides.measure.name])
        for start in range(0, len(counts), n_at_once)
        if len(some := counts[start : start + n_at_once])
    ]
    return np.concatenate(found)


def _rows(sides: Sides, share: int, n_samples: int) -> Iterator[tuple[slice, Vectors, Vectors]]:
    n = sides.n_images
    per_row = 8 * (n * (2 * (len(sides.a) + len(sides.b)) + 3) + 2 * n_samples)
    step = max(1, min(MAX_ROWS, share // per_row))
    for start in range(0, n, step):
        run = slice(start, min(n, start + step))
        yield run, _block(sides.a, run), _block(sides.b, run)


def _block(pairs: Pairs, run: slice) -> Vectors:
    """Read some rows of RDMs, from the column of the first row on."""
    rows: slice | NDArray[np.intp] = run
    columns: slice | NDArray[np.intp] = slice(run.start, None)
    if pairs.positions is not None:
        rows, columns = pairs.positions[rows], pairs.positions[columns]
    blocks = [rdm.isel({rdm.dims[0]: rows, rdm.dims[1]: columns}).values for rdm in pairs.rdms]
    return np.array(blocks, dtype=np.float64)


def _ranks(sides: Sides, counts: Counts) -> Vectors:
    n_rdms = len(sides.a) + len(sides.b)
    require_memory(
        8 * sides.a.n_pairs * (3 * n_rdms + 8) + 8 * len(counts) * len(sides.a) * len(sides.b),
        f"Ranking {n_rdms} RDMs of {sides.n_images:,} {sides.dim}s for every sample",
        f"Compare with method='pearson' or 'cosine', which read rows, choose {sides.dim}s, "
        "bootstrap fewer RDMs at once",
    )
    first, second = np.triu_indices(sides.n_images, 1)
    pairs = (first.astype(np.int32), second.astype(np.int32))
    left = sides.a.condensed().astype(np.float64)
    right = sides.b.condensed().astype(np.float64)
    if not (np.isnan(left).any() or np.isnan(right).any()):
        return _compare(sides, left, right, pairs, counts)
    found = np.full((len(counts), len(left), len(right)), np.nan)
    for i, j in sides.compared():
        kept = ~(np.isnan(left[i]) | np.isnan(right[j]))
        chosen = (pairs[0][kept], pairs[1][kept])
        one, other = left[i : i + 1, kept], right[j : j + 1, kept]
        found[:, i, j] = _compare(sides, one, other, chosen, counts)[:, 0, 0]
    return found


def _compare(
    sides: Sides,
    left: Vectors,
    right: Vectors,
    pairs: tuple[NDArray[np.int32], NDArray[np.int32]],
    counts: Counts,
) -> Vectors:
    if sides.measure.name in TIED:
        return rank_scores(left, right, pairs, counts, tied=TIED[sides.measure.name])
    return paired_scores(left, right, pairs, counts, sides.measure)
