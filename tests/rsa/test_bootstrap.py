"""The bootstrap of comparisons: each sample, the spread, and rsatoolbox's own."""

from __future__ import annotations

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

import featurestore as fs
from featurestore.errors import (
    FeatureStoreWarning,
    InvalidInputError,
    MemoryBudgetError,
    MissingDependencyError,
)
from featurestore.rdms.structure import make_rdm
from featurestore.rsa.samples import draw_images, draw_subjects
from tests.rsa.resampled import METHODS, names, rdms, score_of, shuffled

THEIR_NAMES = {"pearson": "corr"}


def sampled(square, counts):
    """The pairs of a sample, written out; those of an image with itself left out."""
    chosen = np.repeat(np.arange(len(counts)), counts)
    square = square.copy()
    np.fill_diagonal(square, np.nan)
    return square[np.ix_(chosen, chosen)][np.triu_indices(len(chosen), 1)]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("levels", [None, 3])
def test_every_sample_is_that_of_a_plain_loop(method, levels):
    a = rdms(seed=1, levels=levels, model=[*"xy"])
    b = rdms(seed=2, levels=levels, roi=[*"uvw"])
    found = fs.bootstrap_comparison(a, b, method=method, n=25, seed=5, keep_draws=True)
    assert found.draws.dims == ("model", "roi", "draw")
    for k, counts in enumerate(draw_images(9, 25, 5)):
        for i, j in np.ndindex(2, 3):
            expected = score_of(sampled(a.values[i], counts), sampled(b.values[j], counts), method)
            if (counts > 0).sum() < 3:
                expected = np.nan
            np.testing.assert_allclose(found.draws[i, j, k], expected, atol=1e-12)


@pytest.mark.parametrize("method", ["pearson", "cosine", "spearman", "rho-a", "tau-a", "kendall"])
def test_every_sample_is_that_of_rsatoolbox(method):
    rsatoolbox = pytest.importorskip("rsatoolbox")
    a, b = rdms(n=12, seed=1), rdms(n=12, seed=2)
    found = fs.bootstrap_comparison(a, b, method=method, n=20, keep_draws=True)
    theirs = [fs.exports.to_rsatoolbox(rdm) for rdm in (a, b)]
    for k, counts in enumerate(draw_images(12, 20, 0)):
        chosen = np.repeat(np.arange(12), counts)
        samples = [rdm.subsample_pattern("index", chosen) for rdm in theirs]
        expected = rsatoolbox.rdm.compare(*samples, method=THEIR_NAMES.get(method, method))
        np.testing.assert_allclose(found.draws[k], expected[0, 0], atol=1e-12)


@pytest.mark.parametrize("method", METHODS)
def test_pairs_without_a_value_are_left_out_of_each_sample(method):
    a, b = rdms(n=8, seed=1, model=[*"xy"]), rdms(n=8, seed=2, roi=[*"uv"])
    a.values[0, 1, 5] = a.values[0, 5, 1] = np.nan
    b.values[1, 3] = b.values[1, :, 3] = np.nan
    found = fs.bootstrap_comparison(a, b, method=method, n=15, keep_draws=True)
    for k, counts in enumerate(draw_images(8, 15, 0)):
        for i, j in np.ndindex(2, 2):
            expected = score_of(sampled(a.values[i], counts), sampled(b.values[j], counts), method)
            np.testing.assert_allclose(found.draws[i, j, k], expected, atol=1e-12)


@given(
    seed=st.integers(0, 99),
    method=st.sampled_from(METHODS[:4]),
    order=st.permutations(range(9)),
)
@settings(deadline=None, max_examples=15)
def test_the_order_of_the_images_does_not_matter(seed, method, order):
    a, b = rdms(seed=1), rdms(seed=2, roi=[*"xy"])
    expected = fs.bootstrap_comparison(a, b, method=method, n=20, seed=seed, keep_draws=True)
    turned = fs.bootstrap_comparison(
        shuffled(a), b.isel(image=list(order), image_2=list(order)),
        method=method, n=20, seed=seed, keep_draws=True,
    )  # fmt: skip
    xr.testing.assert_allclose(turned, expected, atol=1e-12)


def test_the_interval_over_images_is_one_of_percentiles():
    a, b = rdms(n=12), rdms(n=12, seed=1)
    found = fs.bootstrap_comparison(a, b, n=200, confidence=0.9, keep_draws=True)
    assert found.attrs["interval"] == "percentile"
    np.testing.assert_allclose(
        [found.lower, found.upper], np.quantile(found.draws, [0.05, 0.95]), atol=1e-14
    )
    np.testing.assert_allclose(found.standard_error**2, found.draws.var(ddof=1) * 12 / 11)
    by_t = fs.bootstrap_comparison(a, b, n=200, confidence=0.9, interval="t")
    np.testing.assert_allclose(by_t.standard_error, found.standard_error)
    reach = stats.t.ppf(0.95, 11) * found.standard_error
    np.testing.assert_allclose([by_t.lower, by_t.upper], [found.score - reach, found.score + reach])


def test_subjects_alone_give_the_t_interval_of_their_mean():
    a = rdms(n=10, model=[*"xy"])
    b = rdms(n=10, seed=1, subject=range(12))
    found = fs.bootstrap_comparison(a, b, over="subject", n=20_000)
    scores = fs.compare_rdms(a, b)
    assert found.score.dims == ("model",)
    np.testing.assert_allclose(found.score, scores.mean("subject"))
    error = scores.std("subject", ddof=1) / np.sqrt(12)
    np.testing.assert_allclose(found.standard_error, error, rtol=0.03)
    reach = stats.t.ppf(0.975, 11) * error
    np.testing.assert_allclose(found.lower, found.score - reach, atol=0.01)


def test_subjects_are_drawn_apart_from_images_and_averaged_within_each_sample():
    a = rdms(n=8, model=[*"xy"])
    b = rdms(n=8, seed=1, subject=range(5))
    found = fs.bootstrap_comparison(a, b, n=30, keep_draws=True)
    assert found.score.dims == ("model",)
    assert found.attrs["over"] == "image, subject"
    images = fs.bootstrap_comparison(a, b, over="image", n=30, keep_draws=True).draws
    np.testing.assert_allclose(found.draws_image, images.mean("subject"))
    shares = draw_subjects(5, 30, 0) / 5
    expected = np.einsum("msk,ks->mk", images.transpose("model", "subject", "draw"), shares)
    np.testing.assert_allclose(found.draws, expected)
    of_subjects = fs.compare_rdms(a, b).transpose("model", "subject").values @ shares.T
    np.testing.assert_allclose(found.draws_subject, of_subjects)


def corrected(both, subjects, images, n_subjects, n_images):
    """Schütt et al. 2023, equation 11 with small-sample factors, and its bounds."""
    s, i = n_subjects / (n_subjects - 1), n_images / (n_images - 1)
    combined = s * subjects + i * images - s * i * (both - subjects - images)
    return np.minimum(np.max([combined, s * subjects, i * images], axis=0), both)


def test_three_bootstraps_are_combined_for_both_factors():
    pytest.importorskip("rsatoolbox")
    a = rdms(n=10, seed=3, model=[*"xyz"])
    b = rdms(n=10, seed=1, subject=range(6))
    found = fs.bootstrap_comparison(a, b, n=300, keep_draws=True)
    variances = [
        found[name].var("draw", ddof=1).values for name in ("draws", "draws_subject", "draws_image")
    ]
    np.testing.assert_allclose(found.standard_error**2, corrected(*variances, 6, 10))
    assert found.attrs["interval"] == "t"
    reach = stats.t.ppf(0.975, 5) * found.standard_error
    np.testing.assert_allclose(found.upper, found.score + reach)
    assert "rsatoolbox" in found.attrs["variance"]


def models_and_subjects(n=20, n_subjects=6):
    a = rdms(n=n, seed=3, model=["good", "bad"])
    shared = 0.5 * a.sel(model="good", drop=True) + 0.2 * a.sel(model="bad", drop=True)
    return a, rdms(n=n, seed=1, like=shared, noise=1.0, subject=range(n_subjects))


THEIRS = {
    None: "eval_dual_bootstrap",
    "image": "eval_bootstrap_pattern",
    "subject": "eval_bootstrap_rdm",
}


@pytest.mark.parametrize("over", [pytest.param(None, marks=pytest.mark.slow), "image", "subject"])
@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_the_spread_is_that_of_the_bootstrap_of_rsatoolbox(over, method, monkeypatch):
    rsatoolbox = pytest.importorskip("rsatoolbox")
    from rsatoolbox import inference

    a, b = models_and_subjects()
    if over == "image":
        b = b.mean("subject")
    ours = fs.bootstrap_comparison(a, b, method=method, over=over, n=4_000, contrast="model")
    to = fs.exports.to_rsatoolbox
    models = [rsatoolbox.model.ModelFixed(str(m), to(a.sel(model=m))) for m in a.model.values]
    evaluate = getattr(inference, THEIRS[over])
    if over is None:  # half of its time, and not used here
        monkeypatch.setattr(inference.evaluate, "boot_noise_ceiling", lambda *_, **__: (0.0, 0.0))
    options = {} if over is None else {"boot_noise_ceil": False}
    np.random.seed(1)  # noqa: NPY002 - the generator that rsatoolbox draws from
    theirs = evaluate(models, to(b), method=THEIR_NAMES.get(method, method), N=600, **options)
    # A standard deviation from 600 samples is known to 3 %; the bounds are about four times that.
    np.testing.assert_allclose(ours.standard_error, theirs.get_sem(), rtol=0.13)
    np.testing.assert_allclose(
        ours.difference_standard_error[0, 1], np.sqrt(theirs.diff_var[0]), rtol=0.13
    )
    np.testing.assert_allclose(ours.score, theirs.get_means(), atol=0.02)
    p_values = theirs.test_pairwise()
    np.testing.assert_allclose(ours.difference_p_value[0, 1], p_values[0, 1], atol=0.02)


def test_models_are_compared_within_the_same_samples():
    a, b = models_and_subjects()
    b = b.mean("subject")
    found = fs.bootstrap_comparison(a, b, n=300, contrast="model", keep_draws=True)
    assert found.difference.dims == ("model", "model_2")
    assert found["model_2"].values.tolist() == ["good", "bad"]
    one = found.sel(model="good", model_2="bad")
    draws = found.draws.sel(model="good") - found.draws.sel(model="bad")
    np.testing.assert_allclose(one.difference, found.score[0] - found.score[1])
    np.testing.assert_allclose(
        [one.difference_lower, one.difference_upper], np.quantile(draws, [0.025, 0.975])
    )
    error = np.sqrt(draws.var(ddof=1) * 20 / 19)
    np.testing.assert_allclose(one.difference_standard_error, error)
    p_value = 2 * stats.t.sf(abs(one.difference / error), 19)
    np.testing.assert_allclose(one.difference_p_value, p_value)
    turned = found.sel(model="bad", model_2="good")
    np.testing.assert_allclose(turned.difference_lower, -one.difference_upper)
    np.testing.assert_allclose(turned.difference_p_value, one.difference_p_value)
    assert (np.diag(found.difference) == 0).all()
    assert np.isnan(np.diag(found.difference_p_value)).all()


def test_a_contrast_is_made_within_every_other_dim():
    a = rdms(n=10, model=["x", "y", "z"], module=["fc6", "fc7"]).assign_coords(
        depth=("module", [6, 7])
    )
    b = rdms(n=10, seed=1, subject=range(4), roi=["V1", "IT"])
    found = fs.bootstrap_comparison(a, b, n=50, contrast="module")
    assert found.difference.dims == ("module", "module_2", "model", "roi")
    assert found["depth_2"].values.tolist() == [6, 7]
    one = fs.bootstrap_comparison(a.sel(model="y"), b.sel(roi="IT"), n=50, contrast="module")
    np.testing.assert_allclose(
        found.sel(model="y", roi="IT").difference_lower, one.difference_lower
    )


def test_samples_without_a_score_are_left_out_and_said():
    category = np.repeat([0, 1], [9, 1])
    model = make_rdm((category[:, None] != category).astype(float), names(10))
    b = rdms(n=10, seed=1)
    with pytest.warns(FeatureStoreWarning, match=r"Of 400 samples, only \d\d% have a score"):
        found = fs.bootstrap_comparison(model, b, n=400, keep_draws=True)
    kept = ~np.isnan(found.draws.values)
    assert found.n_valid == kept.sum()
    np.testing.assert_allclose(found.n_valid / 400, 1 - 0.9**10, atol=0.08)
    with_the_odd_one = draw_images(10, 400, 0)[:, 9] > 0
    np.testing.assert_array_equal(kept, with_the_odd_one)
    np.testing.assert_allclose(found.lower, np.quantile(found.draws[kept], 0.025))


@pytest.mark.parametrize("method", ["pearson", "cosine"])
def test_the_memory_budget_changes_no_number(method):
    a, b = rdms(n=60, model=[*"xy"]), rdms(n=60, seed=1)
    expected = fs.bootstrap_comparison(a, b, method=method, n=100, keep_draws=True)
    with fs.set_options(memory_budget=100_000):
        found = fs.bootstrap_comparison(a, b, method=method, n=100, keep_draws=True)
    xr.testing.assert_allclose(found, expected, atol=1e-12)


def test_rows_are_as_few_as_the_memory_budget_says(monkeypatch):
    import featurestore.rsa.samples as samples

    read, block = [], samples._block

    def counted(pairs, run):
        read.append(found := block(pairs, run))
        return found

    monkeypatch.setattr(samples, "_block", counted)
    a, b = rdms(n=300), rdms(n=300, seed=1)
    fs.bootstrap_comparison(a, b, n=10)
    assert len(read) == 2
    read.clear()
    with fs.set_options(memory_budget=1_000_000):
        fs.bootstrap_comparison(a, b, n=10)
    assert max(part.nbytes for part in read) < 1_000_000 / 8
    assert sum(part.nbytes for part in read) < 1.2 * a.nbytes  # one triangle of both, once


def test_samples_of_two_images_have_no_score():
    a, b = rdms(n=6, model=[*"xy"]), rdms(n=6, seed=1)
    for method in ("cosine", "rho-a", "tau-a"):  # which would have one
        found = fs.bootstrap_comparison(a, b, method=method, n=200, keep_draws=True)
        enough = (draw_images(6, 200, 0) > 0).sum(axis=1) >= 3
        assert 0 < (~enough).sum() < 20
        np.testing.assert_array_equal(~np.isnan(found.draws), np.stack([enough, enough]))
        assert found.n_valid.values.tolist() == [enough.sum()] * 2


def test_images_and_subjects_are_drawn_independently():
    images, subjects = draw_images(8, 2_000, 0), draw_subjects(8, 2_000, 0)
    assert (images.sum(axis=1) == 8).all()
    assert (subjects.sum(axis=1) == 8).all()
    correlations = np.corrcoef(images.T, subjects.T)[:8, 8:]
    assert np.abs(correlations).max() < 0.1
    np.testing.assert_allclose(images.mean(axis=0), 1, atol=0.1)
    np.testing.assert_allclose(images.var(axis=0), 7 / 8, atol=0.12)


def test_large_lazy_rdms_are_read_by_rows():
    n, largest = 600, 0
    values = [rdms(n=n, seed=seed).values.astype(np.float32) for seed in (1, 2)]

    def counted(block):
        nonlocal largest
        largest = max(largest, block.nbytes)
        return block

    lazy = [
        make_rdm(dask.array.from_array(v, chunks=(50, n)).map_blocks(counted), names(n))
        for v in values
    ]
    with fs.set_options(memory_budget=4_000_000):  # of which one RDM in float64 takes 2.9 MB
        found = fs.bootstrap_comparison(*lazy, n=50, keep_draws=True)
    assert 0 < largest <= 4 * 50 * n
    expected = fs.bootstrap_comparison(
        *(make_rdm(v, names(n)) for v in values), n=50, keep_draws=True
    )
    np.testing.assert_allclose(found.draws, expected.draws, atol=1e-10)


def test_a_large_offset_loses_no_digits():
    a, b = rdms(n=30, seed=1), rdms(n=30, seed=2)
    off_diagonal = a.copy(data=np.where(np.eye(30), 0.0, 1e6 + a.values))
    expected = fs.bootstrap_comparison(a, b, n=30, keep_draws=True)
    found = fs.bootstrap_comparison(off_diagonal, b, n=30, keep_draws=True)
    np.testing.assert_allclose(found.draws, expected.draws, atol=1e-9)  # 1e6 + a is rounded


def test_the_seed_and_nothing_else_decides():
    a, b = rdms(), rdms(seed=1, subject=range(4))
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again = (fs.bootstrap_comparison(a, b, n=20, seed=3, keep_draws=True) for _ in range(2))
    xr.testing.assert_identical(first, again)
    other = fs.bootstrap_comparison(a, b, n=20, seed=4, keep_draws=True)
    assert not np.array_equal(first.draws, other.draws)
    longer = fs.bootstrap_comparison(a, b, n=40, seed=3, keep_draws=True)
    np.testing.assert_allclose(longer.draws[:20], first.draws, atol=1e-14)
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


def test_what_is_resampled_follows_the_dims():
    a, b = rdms(n=12), rdms(n=12, seed=1, animal=[*"xyz"])
    assert fs.bootstrap_comparison(a, b, n=5).attrs["over"] == "image"
    assert fs.bootstrap_comparison(a, b, n=5, over=["animal"]).score.dims == ()
    both = fs.bootstrap_comparison(a, b, n=5, over=("animal", "image"))
    assert both.attrs["over"] == "image, animal"
    texts = [rdm.rename(image="text", image_2="text_2") for rdm in (a, b)]
    assert fs.bootstrap_comparison(*texts, n=5).attrs["over"] == "text"
    assert fs.bootstrap_comparison(*texts, n=5, over="text").score.dims == ("animal",)


def test_two_factors_need_rsatoolbox_and_one_does_not(monkeypatch):
    import featurestore.rsa.spread as spread

    def missing(module, extra):
        raise MissingDependencyError("no", package=module, extra=extra)

    monkeypatch.setattr(spread, "import_optional", missing)
    a, b = rdms(n=12), rdms(n=12, seed=1, subject=[*"xyz"])
    with pytest.raises(MissingDependencyError) as caught:
        fs.bootstrap_comparison(a, b, n=5)
    assert caught.value.extra == "rsa"
    assert fs.bootstrap_comparison(a, b, n=5, over="image").score.dims == ("subject",)
    assert fs.bootstrap_comparison(a, b, n=5, over="subject").score.dims == ()


def test_bad_calls_are_refused_with_what_to_do():
    a, b = rdms(), rdms(seed=1, subject=[*"xyz"])
    boot = fs.bootstrap_comparison
    with pytest.raises(InvalidInputError, match=r"no dim 'subjects'.*Did you mean 'subject'"):
        boot(a, b, over="subjects")
    with pytest.raises(InvalidInputError, match=r"no dim 'subject' to resample"):
        boot(a, b[0], over=("image", "subject"))
    with pytest.raises(InvalidInputError, match="one leading dim, or both"):
        boot(rdms(model=[*"xy"]), b, over=("model", "subject"))
    with pytest.raises(InvalidInputError, match="one leading dim, or both"):
        boot(a, b, over=())
    with pytest.raises(InvalidInputError, match=r"confidence=95"):
        boot(a, b, confidence=95)
    with pytest.raises(InvalidInputError, match=r"n=1 must be a whole number from 2"):
        boot(a, b, n=1)
    with pytest.raises(InvalidInputError, match=r"interval='percentil'.*Did you mean 'percentile'"):
        boot(a, b, interval="percentil")
    with pytest.raises(InvalidInputError, match=r"count some variance twice.*interval='t'"):
        boot(a, b, interval="percentile")
    with pytest.raises(InvalidInputError, match=r"contrast='subject' is no dim of the result"):
        boot(a, b, contrast="subject")
    with pytest.raises(InvalidInputError, match=r"Did you mean 'model'"):
        boot(rdms(model=[*"xy"]), b, contrast="models")
    with pytest.raises(InvalidInputError, match="4 images to draw from"):
        boot(rdms(n=4), rdms(n=4, seed=1))
    with pytest.raises(InvalidInputError, match="1 subjects to draw from"):
        boot(a, b[:1], over="subject")
    with pytest.raises(InvalidInputError, match=r"'x' is there 2 times.*groupby\('subject'\)"):
        boot(a, xr.concat([b, b], "subject"))


def test_ranks_that_do_not_fit_are_refused():
    a, b = rdms(n=120), rdms(n=120, seed=1)
    with fs.set_options(memory_budget=150_000), pytest.raises(MemoryBudgetError, match="pearson"):
        fs.bootstrap_comparison(a, b, method="rho-a", n=5)


def test_the_92_images(data_92):
    values = np.load(data_92 / "rdms" / "behaviour_16x92x92.npy")
    monkey = np.load(data_92 / "rdms" / "model_monkeyIT_92x92.npy")
    animacy = np.load(data_92 / "rdms" / "model_animacy_92x92.npy")
    coords = xr.Coordinates({"image": ("image", np.arange(92))})
    behaviour = make_rdm(values, coords, extra={"subject": range(16)})
    models = make_rdm([animacy, monkey], coords, extra={"model": ["animacy", "monkey IT"]})
    found = fs.bootstrap_comparison(models, behaviour, method="spearman", n=500, contrast="model")
    np.testing.assert_allclose(found.score, [0.378, 0.271], atol=0.001)
    # eval_dual_bootstrap of rsatoolbox 0.3.2 with 200 samples: 0.0432, 0.0337 and p = 0.0027
    np.testing.assert_allclose(found.standard_error, [0.0432, 0.0337], rtol=0.2)
    assert found.difference_p_value.values[0, 1] < 0.02
