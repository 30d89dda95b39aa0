"""Seven ways to compare vectors of dissimilarities, against libraries that were here before."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import stats

from featurestore.errors import InvalidInputError
from featurestore.rsa.measures import MEASURES, n_dropped, require_method, score
from featurestore.rsa.transforms import VERY_LONG, average_ranks

SCIPY = {"pearson": stats.pearsonr, "spearman": stats.spearmanr, "kendall": stats.kendalltau}
RSATOOLBOX = {
    "pearson": "corr", "spearman": "spearman", "kendall": "kendall", "tau-b": "tau-b",
    "tau-a": "tau-a", "cosine": "cosine", "rho-a": "rho-a",
}  # fmt: skip


@pytest.fixture
def vectors():
    rng = np.random.default_rng(0)
    tied = np.round(rng.random((2, 105)) * 4)
    return np.vstack([rng.random((3, 105)), tied]), np.vstack([tied[1:], rng.random((2, 105))])


@pytest.mark.parametrize("method", SCIPY)
def test_scipy_gives_the_same(method, vectors):
    a, b = vectors
    expected = [[SCIPY[method](x, y).statistic for y in b] for x in a]
    np.testing.assert_allclose(score(a, b, method), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("method", RSATOOLBOX)
def test_rsatoolbox_gives_the_same(method, vectors):
    rdm = pytest.importorskip("rsatoolbox.rdm")
    a, b = vectors
    expected = rdm.compare(rdm.RDMs(a), rdm.RDMs(b), method=RSATOOLBOX[method])
    np.testing.assert_allclose(score(a, b, method), expected, rtol=0, atol=1e-13)


def test_tau_a_counts_pairs_of_pairs():
    rng = np.random.default_rng(1)
    a, b = np.round(rng.random((2, 40)) * 6)
    signs = np.sign(a[:, None] - a) * np.sign(b[:, None] - b)
    expected = signs[np.triu_indices(40, 1)].sum() / (40 * 39 / 2)
    assert score(a[None], b[None], "tau-a")[0, 0] == expected


def test_rho_a_is_the_mean_of_spearman_over_random_orders_of_ties():
    rng = np.random.default_rng(2)
    a, b = rng.integers(0, 2, 30).astype(float), rng.random(30)
    drawn = [stats.spearmanr(a + 1e-9 * rng.random(30), b).statistic for _ in range(4000)]
    error = np.std(drawn) / math.sqrt(4000)
    assert abs(score(a[None], b[None], "rho-a")[0, 0] - np.mean(drawn)) < 4 * error


def test_kendall_is_tau_b():
    assert require_method("kendall") is require_method("tau-b")
    assert require_method("kendall").name == "tau-b"


@pytest.mark.parametrize("method", MEASURES)
def test_what_is_constant_has_a_defined_score(method):
    constant, other = np.full((1, 55), 0.1), np.random.default_rng(0).random((1, 55))
    found = score(constant, other, method)[0, 0]
    if method in ("tau-a", "rho-a"):
        assert found == 0
    elif method == "cosine":
        assert 0 < found < 1
    else:
        assert np.isnan(found)
    assert np.isnan(score(np.zeros((1, 55)), other, "cosine"))


def test_nearly_constant_vectors_are_compared_by_what_differs():
    wiggle = np.random.default_rng(0).integers(0, 2**20, (2, 50)).astype(float)
    for offset, step in ((1e6, 2.0**-30), (-4.0, 2.0**-50)):
        exact = wiggle * step + offset  # no digit of the wiggle is lost
        np.testing.assert_allclose(
            score(exact, exact, "pearson"), score(wiggle, wiggle, "pearson"), rtol=0, atol=1e-12
        )


@pytest.mark.parametrize("scale", [1e-200, 1e200])
@pytest.mark.parametrize("method", ["pearson", "cosine"])
def test_scale_does_not_matter(method, scale, vectors):
    a, b = vectors
    np.testing.assert_allclose(score(a * scale, b, method), score(a, b, method), atol=1e-13)


@pytest.mark.parametrize("method", MEASURES)
def test_missing_pairs_are_left_out_of_their_comparison_only(method, vectors):
    a, b = (x.copy() for x in vectors)
    a[0, :7] = a[2, 3] = b[1, 5:10] = np.nan
    found, dropped = score(a, b, method), n_dropped(a, b)
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            both = ~(np.isnan(x) | np.isnan(y))
            alone = score(x[both][None], y[both][None], method)[0, 0]
            assert found[i, j] == pytest.approx(alone, abs=1e-14)
            assert dropped[i, j] == (~both).sum()
    assert dropped[0, 1] == 10
    assert dropped[1, 0] == 0


def test_too_few_pairs_have_no_score():
    a = np.array([[1.0, np.nan, np.nan], [np.nan] * 3])
    for method in MEASURES:
        assert np.isnan(score(a, np.arange(3.0)[None], method)).all()


@pytest.mark.parametrize("method", MEASURES)
def test_float32_is_compared_in_float64(method, vectors):
    a, b = (x.astype(np.float32) for x in vectors)
    expected = score(a.astype(np.float64), b.astype(np.float64), method)
    np.testing.assert_array_equal(score(a, b, method), expected)


@settings(deadline=None, max_examples=30)
@given(
    hnp.arrays(np.float64, (3, 21), elements=st.integers(-5, 5).map(float)),
    st.sampled_from([*MEASURES]),
    st.randoms(use_true_random=False),
)
def test_the_order_of_pairs_changes_nothing_and_scores_are_symmetric(vectors, method, random):
    order = random.sample(range(21), 21)
    found = score(vectors, vectors, method)
    np.testing.assert_allclose(
        score(vectors[:, order], vectors[:, order], method), found, rtol=0, atol=1e-13
    )
    np.testing.assert_allclose(found, found.T, rtol=0, atol=1e-15)
    assert np.all((np.abs(found) <= 1) | np.isnan(found))


@pytest.mark.parametrize(
    ("name", "match"),
    [("spearmen", "'spearman'"), ("Pearson", "'pearson'"), ("kendal", "'kendall'"), (None, "are")],
)
def test_unknown_methods_are_refused_with_near_misses(name, match):
    with pytest.raises(InvalidInputError, match=match) as info:
        require_method(name)
    assert info.value.method == name


def test_very_long_vectors_have_the_ranks_that_scipy_gives():
    rng = np.random.default_rng(0)
    narrow = rng.gamma(4, size=VERY_LONG + 5).astype(np.float32)
    wide = rng.gamma(4, size=VERY_LONG + 5)
    tied = np.round(wide)
    tied[::7] *= -1
    vectors = np.stack([narrow.astype(np.float64), wide, tied])
    expected = stats.rankdata(vectors, axis=-1)
    np.testing.assert_array_equal(average_ranks(vectors), expected)
