"""Permutation tests: what is permuted, what is counted, and that chance is chance."""

from __future__ import annotations

import itertools

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import squareform

import featurestore as fs
from featurestore.errors import InvalidInputError, LabelMismatchError, MemoryBudgetError
from featurestore.rdms.structure import make_rdm
from featurestore.rsa.permuted import draw_permutations
from tests.rsa.resampled import METHODS, names, rdms, score_of, shuffled


def permuted(square, order):
    return squareform(square[np.ix_(order, order)], checks=False)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n_left", "n_right"), [(1, 1), (2, 3), (3, 2)])
@pytest.mark.parametrize("levels", [None, 3])
def test_the_null_scores_are_those_of_a_plain_loop(method, n_left, n_right, levels):
    a = rdms(seed=1, levels=levels, model=range(n_left))
    b = rdms(seed=2, levels=levels, subject=range(n_right))
    test = fs.permutation_test(a, b, method=method, n=20, seed=5, keep_null=True)
    assert test.null.dims == ("model", "subject", "permutation")
    for k, order in enumerate(draw_permutations(9, 20, 5)):
        for i, j in np.ndindex(n_left, n_right):
            expected = score_of(squareform(a.values[i]), permuted(b.values[j], order), method)
            np.testing.assert_allclose(test.null[i, j, k], expected, atol=1e-12)
    np.testing.assert_array_equal(test.score, fs.compare_rdms(a, b, method=method))


@given(
    seed=st.integers(0, 99),
    method=st.sampled_from(METHODS[:4]),
    first=st.permutations(range(9)),
    second=st.permutations(range(9)),
)
@settings(deadline=None, max_examples=20)
def test_the_order_of_the_images_does_not_matter(seed, method, first, second):
    a, b = rdms(seed=1), rdms(seed=2, subject=[*"xy"])
    expected = fs.permutation_test(a, b, method=method, n=50, seed=seed, keep_null=True)
    turned = fs.permutation_test(
        a.isel(image=list(first), image_2=list(first)),
        b.isel(image=list(second), image_2=list(second)),
        method=method, n=50, seed=seed, keep_null=True,
    )  # fmt: skip
    np.testing.assert_allclose(turned.null, expected.null, atol=1e-12)
    np.testing.assert_array_equal(turned.p_value, expected.p_value)


@pytest.mark.parametrize("alternative", ["greater", "less", "two-sided"])
def test_the_p_value_is_that_of_all_permutations_by_scipy(alternative):
    a = rdms(n=6, seed=3)
    b = rdms(n=6, seed=4, like=a, noise=3.0)
    first, square = squareform(a.values), b.values

    def statistic(order):
        return stats.pearsonr(first, permuted(square, order.astype(int))).statistic

    exact = stats.permutation_test(
        (np.arange(6),), statistic, permutation_type="pairings", n_resamples=np.inf,
        alternative=alternative,
    )  # fmt: skip
    found = fs.permutation_test(a, b, n=20_000, alternative=alternative)
    np.testing.assert_allclose(found.score, exact.statistic)
    assert exact.pvalue > 0.005
    error = 2 * np.sqrt(exact.pvalue / 20_000)
    np.testing.assert_allclose(found.p_value, exact.pvalue, atol=4 * error)
    np.testing.assert_allclose(found.null_mean, exact.null_distribution.mean(), atol=0.01)
    np.testing.assert_allclose(found.null_std, exact.null_distribution.std(), rtol=0.05)


def test_the_observed_order_counts_as_one_permutation():
    a = rdms()
    test = fs.permutation_test(a, a, n=99)
    assert test.p_value == 0.01
    assert fs.permutation_test(a, a, n=99, alternative="less").p_value == 1.0
    assert fs.permutation_test(a, a, n=99, alternative="two-sided").p_value == 0.02


def test_orders_that_leave_the_rdm_as_it_is_are_as_extreme():
    category = np.array([0, 0, 1, 1])
    model = make_rdm((category[:, None] != category).astype(float), names(4))
    kept = [
        order
        for order in itertools.permutations(range(4))
        if (model.values[np.ix_(order, order)] == model.values).all()
    ]
    assert len(kept) == 8
    for method in ("pearson", "spearman", "rho-a", "kendall"):
        test = fs.permutation_test(model, model, method=method, n=1_000)
        np.testing.assert_allclose(test.p_value, 8 / 24, atol=0.06)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_p_values_of_unrelated_rdms_are_uniform(method):
    a = rdms(n=12, seed=0)
    b = rdms(n=12, seed=1, pair=range(400))
    p_values = fs.permutation_test(a, b, method=method, n=199).p_value
    assert stats.kstest(p_values, "uniform").pvalue > 0.01
    assert 0.02 < (p_values <= 0.05).mean() < 0.09


def test_related_rdms_are_found():
    a = rdms(n=15)
    b = rdms(n=15, seed=1, like=a, noise=1.0)
    assert fs.permutation_test(a, b, n=999).p_value == 0.001


def test_leading_dims_keep_their_labels_and_shared_ones_are_paired():
    a = rdms(seed=1, model=["x", "y"], subject=["s", "t", "u"])
    b = rdms(seed=2, subject=["u", "s", "t"], roi=["V1", "IT"])
    b = b.assign_coords(age=("subject", [3, 1, 2]))
    test = fs.permutation_test(a, b, n=30, keep_null=True)
    assert test.score.dims == ("model", "subject", "roi")
    assert test["subject"].values.tolist() == ["s", "t", "u"]
    one = fs.permutation_test(
        a.sel(model="y", subject="u"), b.sel(subject="u", roi="IT"), n=30, keep_null=True
    )
    found = test.sel(model="y", subject="u", roi="IT")
    np.testing.assert_allclose(found.null, one.null, atol=1e-12)
    np.testing.assert_allclose(found.p_value, one.p_value)
    np.testing.assert_allclose(
        test.null_quantile.sel(quantile=0.95), np.quantile(test.null, 0.95, axis=-1)
    )


@pytest.mark.parametrize("method", METHODS)
def test_pairs_without_a_value_are_left_out_of_each_permutation(method):
    a, b = rdms(n=8, seed=1), rdms(n=8, seed=2, subject=[*"xyz"])
    a.values[1, 5] = a.values[5, 1] = np.nan
    b.values[0, 2, 3] = b.values[0, 3, 2] = np.nan
    test = fs.permutation_test(a, b, method=method, n=10, keep_null=True)
    for k, order in enumerate(draw_permutations(8, 10, 0)):
        for j in range(3):
            expected = score_of(
                squareform(a.values, checks=False), permuted(b.values[j], order), method
            )
            np.testing.assert_allclose(test.null[j, k], expected, atol=1e-12)
    assert test["n_dropped"].values.tolist() == [2, 1, 1]


def test_images_without_any_value_are_not_permuted():
    a, b = rdms(n=8, seed=1), rdms(n=8, seed=2)
    lacking = a.copy(deep=True)
    lacking.values[3], lacking.values[:, 3] = np.nan, np.nan  # its features were constant
    kept = [0, 1, 2, 4, 5, 6, 7]
    expected = fs.permutation_test(
        a.isel(image=kept, image_2=kept), b.isel(image=kept, image_2=kept), n=40, keep_null=True
    )
    found = fs.permutation_test(lacking, b, n=40, keep_null=True)
    np.testing.assert_allclose(found.null, expected.null, atol=1e-12)
    np.testing.assert_allclose(found.p_value, expected.p_value)


def test_without_a_score_there_is_no_p_value():
    a, b = rdms(subject=[*"xy"]), rdms(seed=1)
    a.values[1] = 1 - np.eye(9)
    test = fs.permutation_test(a, b, n=10)
    assert np.isnan(test.p_value.values).tolist() == [False, True]
    assert np.isfinite(test.null_mean.values[0])


def test_the_seed_and_nothing_else_decides():
    a, b = rdms(), rdms(seed=1)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (fs.permutation_test(a, b, n=50, seed=3, keep_null=True) for _ in range(2))
    xr.testing.assert_identical(first, again)
    other = fs.permutation_test(a, b, n=50, seed=4, keep_null=True)
    assert not np.array_equal(first.null, other.null)
    longer = fs.permutation_test(a, b, n=80, seed=3, keep_null=True)
    np.testing.assert_allclose(longer.null[:50], first.null, atol=1e-14)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_all_rdms_are_permuted_alike_so_that_their_mean_has_a_null():
    a, b = rdms(n=10), rdms(n=10, seed=1, subject=[*"xyz"])
    test = fs.permutation_test(a, b, n=100, keep_null=True)
    standardised = (b - b.where(a["image"] != b["image_2"]).mean(("image", "image_2"))) / b.where(
        a["image"] != b["image_2"]
    ).std(("image", "image_2"))
    mean = standardised.mean("subject").where(a["image"] != b["image_2"], 0.0)
    direct = fs.permutation_test(a, mean, n=100, keep_null=True)
    ratio = test.null.mean("subject") / direct.null  # pearson is linear in standardised RDMs
    np.testing.assert_allclose(ratio, ratio[0])


def test_attributes_say_what_was_done():
    a = rdms().assign_attrs(metric="correlation")
    test = fs.permutation_test(a, rdms(seed=1), method="spearman", n=10, seed=2)
    assert test.attrs["method"] == "spearman"
    assert test.attrs["n"] == 10
    assert test.attrs["seed"] == 2
    assert test.attrs["alternative"] == "greater"
    assert test.attrs["n_images"] == 9
    assert '"metric": "correlation"' in test.attrs["a"]


def test_bad_calls_are_refused_with_what_to_do():
    a, b = rdms(), rdms(seed=1)
    with pytest.raises(InvalidInputError, match=r"alternative='grater'.*Did you mean 'greater'"):
        fs.permutation_test(a, b, alternative="grater")
    for n in (0, 2.5, True):
        with pytest.raises(InvalidInputError, match=r"n=.* must be a whole number from 1"):
            fs.permutation_test(a, b, n=n)
    with pytest.raises(InvalidInputError, match="seed=-1"):
        fs.permutation_test(a, b, seed=-1)
    with pytest.raises(InvalidInputError, match=r"fs\.read_rdms"):
        fs.permutation_test(a.values, b)
    with pytest.raises(LabelMismatchError, match="join='inner'"):
        fs.permutation_test(a, b.isel(image=range(8), image_2=range(8)))
    inner = fs.permutation_test(
        a, shuffled(b).isel(image=range(8), image_2=range(8)), join="inner", n=5
    )
    assert inner.attrs["n_images"] == 8


def test_what_does_not_fit_is_refused_before_it_is_permuted():
    a = rdms(n=40)
    with fs.set_options(memory_budget=2**20), pytest.raises(MemoryBudgetError) as caught:
        fs.permutation_test(a, a, n=10)
    assert caught.value.allowed_nbytes == 2**20 < caught.value.projected_nbytes


def test_lazy_rdms_are_tested():
    a, b = rdms(), rdms(seed=1, subject=[*"xy"])
    lazy = b.copy(data=dask.array.from_array(b.values.astype(np.float32), chunks=(1, 4, 4)))
    expected = fs.permutation_test(a, b.astype(np.float32), n=20, keep_null=True)
    xr.testing.assert_allclose(fs.permutation_test(a, lazy, n=20, keep_null=True), expected)
