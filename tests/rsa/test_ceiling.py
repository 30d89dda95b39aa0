"""Noise ceilings: the numbers of rsatoolbox, and those published for the 92 images."""

from __future__ import annotations

import warnings

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import squareform

import featurestore as fs
from featurestore.errors import InvalidInputError, MemoryBudgetError
from featurestore.rdms.structure import make_rdm

METHODS = ("pearson", "spearman", "rho-a", "cosine", "tau-a", "kendall")
THEIR_NAMES = {"pearson": "corr"}


def subject_rdms(n_subjects=5, n=8, seed=0, noise=1.0, levels=None, **extra):
    """RDMs of subjects who share something; of `levels` different values, hence with ties."""
    rng = np.random.default_rng(seed)
    shape = [len(labels) for labels in extra.values()]
    shared = rng.random(n * (n - 1) // 2)
    vectors = shared + noise * rng.random((*shape, n_subjects, len(shared)))
    if levels:
        vectors = np.ceil(vectors / vectors.max() * levels)
    squares = np.array([squareform(v) for v in vectors.reshape(-1, len(shared))])
    return make_rdm(
        squares.reshape(*shape, n_subjects, n, n),
        xr.Coordinates({"image": ("image", [f"{i}.png" for i in range(n)])}),
        extra={**extra, "subject": [f"S{i}" for i in range(n_subjects)]},
    )


def theirs(rdms, method):
    rsatoolbox = pytest.importorskip("rsatoolbox")
    from rsatoolbox.inference import boot_noise_ceiling

    vectors = np.array([squareform(square) for square in rdms.values])
    rdms = rsatoolbox.rdm.RDMs(vectors)
    with warnings.catch_warnings():  # it says that Kendall's is based on ranks
        warnings.simplefilter("ignore")
        return boot_noise_ceiling(rdms, method=THEIR_NAMES.get(method, method))


@pytest.mark.parametrize("method", METHODS)
@given(seed=st.integers(0, 999), n_subjects=st.integers(2, 6), levels=st.sampled_from([None, 5]))
@settings(deadline=None, max_examples=15)
def test_the_ceiling_is_that_of_rsatoolbox(method, seed, n_subjects, levels):
    rdms = subject_rdms(n_subjects, seed=seed, levels=levels)
    ceiling = fs.noise_ceiling(rdms, method=method)
    expected = theirs(rdms, method)
    np.testing.assert_allclose([ceiling.lower, ceiling.upper], expected, rtol=0, atol=1e-10)


PUBLISHED = {  # to three digits, computed with rsatoolbox 0.3.2
    ("behaviour_16x92x92", "pearson"): (0.572, 0.635),
    ("behaviour_16x92x92", "spearman"): (0.477, 0.577),
    ("behaviour_16x92x92", "cosine"): (0.953, 0.959),
    ("behaviour_16x92x92", "tau-a"): (0.334, 0.414),
    ("human_IT_4subj_x92x92", "pearson"): (0.394, 0.680),
    ("human_IT_4subj_x92x92", "spearman"): (0.372, 0.666),
    ("human_IT_4subj_x92x92", "rho-a"): (0.372, 0.666),
    ("human_IT_4subj_x92x92", "cosine"): (0.988, 0.993),
    ("human_IT_4subj_x92x92", "tau-a"): (0.254, 0.477),
}


@pytest.mark.parametrize(("name", "method"), PUBLISHED)
def test_the_ceilings_of_the_92_images(data_92, name, method):
    values = np.load(data_92 / "rdms" / f"{name}.npy")
    rdms = make_rdm(
        values,
        xr.Coordinates({"image": ("image", np.arange(92))}),
        extra={"subject": range(len(values))},
    )
    ceiling = fs.noise_ceiling(rdms, method=method)
    found = (float(ceiling.lower), float(ceiling.upper))
    np.testing.assert_allclose(found, PUBLISHED[name, method], rtol=0, atol=0.0006)
    np.testing.assert_allclose(found, theirs(rdms, method), rtol=0, atol=1e-10)


def test_each_subject_is_compared_with_the_others_and_with_all():
    rdms = subject_rdms()
    ceiling = fs.noise_ceiling(rdms)
    scores = np.array([stats.zscore(squareform(square)) for square in rdms.values])
    for i, subject in enumerate(rdms["subject"].values):
        others = np.delete(scores, i, axis=0).mean(axis=0)
        lower = ceiling.lower_per_subject.sel(subject=subject)
        upper = ceiling.upper_per_subject.sel(subject=subject)
        np.testing.assert_allclose(lower, stats.pearsonr(scores[i], others).statistic)
        np.testing.assert_allclose(upper, stats.pearsonr(scores[i], scores.mean(0)).statistic)
    np.testing.assert_allclose(ceiling.lower, ceiling.lower_per_subject.mean())
    assert (ceiling.lower_per_subject < ceiling.upper_per_subject).all()


@given(seed=st.integers(0, 99), order=st.permutations(range(8)), data=st.data())
@settings(deadline=None, max_examples=20)
def test_the_order_of_images_and_subjects_does_not_matter(seed, order, data):
    rdms = subject_rdms(4, seed=seed)
    turned = rdms.isel(image=list(order), image_2=list(order))
    turned = turned.isel(subject=list(data.draw(st.permutations(range(4)))))
    for method in ("pearson", "spearman", "tau-a"):
        xr.testing.assert_allclose(
            fs.noise_ceiling(turned, method=method).sortby("subject"),
            fs.noise_ceiling(rdms, method=method),
        )


def test_other_leading_dims_get_a_ceiling_each():
    rdms = subject_rdms(3, region=["V1", "IT"], time=[50, 100, 150]).assign_coords(
        area=("region", [1, 2]), age=("subject", [20, 30, 40])
    )
    rdms = rdms.transpose("region", "subject", "time", "image", "image_2")
    ceiling = fs.noise_ceiling(rdms, method="spearman")
    assert ceiling.lower.dims == ("region", "time")
    assert ceiling.lower_per_subject.dims == ("region", "time", "subject")
    assert ceiling["area"].dims == ("region",)
    assert ceiling["age"].dims == ("subject",)
    for region in ("V1", "IT"):
        for time in (50, 100, 150):
            one = fs.noise_ceiling(rdms.sel(region=region, time=time), method="spearman")
            found = ceiling.sel(region=region, time=time)
            np.testing.assert_array_equal(found.lower, one.lower)
            np.testing.assert_array_equal(found.upper_per_subject, one.upper_per_subject)


def test_pairs_that_a_subject_lacks_are_dropped_for_all_and_counted():
    rdms = subject_rdms(4, region=["V1", "IT"])
    rdms.values[1, 0, 2, 5] = rdms.values[1, 0, 5, 2] = np.nan
    rdms.values[1, 3, 0, :] = rdms.values[1, 3, :, 0] = np.nan  # an image whose row is constant
    ceiling = fs.noise_ceiling(rdms, method="spearman")
    assert ceiling.n_dropped.values.tolist() == [0, 8]
    assert ceiling.attrs["n_pairs"] == 28
    vectors = np.array([squareform(square, checks=False) for square in rdms.values[1]])
    kept = stats.rankdata(vectors[:, ~np.isnan(vectors).any(axis=0)], axis=1)
    lower = [
        stats.spearmanr(kept[i], np.delete(kept, i, axis=0).mean(axis=0)).statistic
        for i in range(4)
    ]
    np.testing.assert_allclose(ceiling.lower_per_subject[1], lower)
    full = subject_rdms(4, region=["V1", "IT"])
    np.testing.assert_array_equal(
        ceiling.lower[0], fs.noise_ceiling(full, method="spearman").lower[0]
    )


def test_identical_subjects_reach_one():
    rdms = subject_rdms(3, noise=0.0)
    for method in METHODS:
        ceiling = fs.noise_ceiling(rdms, method=method)
        np.testing.assert_allclose([ceiling.lower, ceiling.upper], 1, atol=1e-12)


def test_attributes_say_what_was_done():
    ceiling = fs.noise_ceiling(subject_rdms().rename(subject="animal"), dim="animal")
    assert ceiling.attrs == {
        "method": "pearson",
        "dim": "animal",
        "n_subjects": 5,
        "n_images": 8,
        "n_pairs": 28,
    }


def test_lazy_rdms_and_texts_have_a_ceiling():
    rdms = subject_rdms()
    lazy = rdms.rename(image="text", image_2="text_2").chunk({"text": 3}).astype(np.float32)
    ceiling = fs.noise_ceiling(lazy)
    np.testing.assert_allclose(ceiling.upper, fs.noise_ceiling(rdms).upper, rtol=1e-6)
    assert ceiling.attrs["n_texts"] == 8


def test_what_has_no_ceiling_is_refused_with_what_to_do():
    rdms = subject_rdms()
    with pytest.raises(InvalidInputError, match=r"no leading dim 'subject'.*dim='person'"):
        fs.noise_ceiling(rdms.rename(subject="person"))
    with pytest.raises(InvalidInputError, match="One RDM has no ceiling"):
        fs.noise_ceiling(rdms[0])
    with pytest.raises(InvalidInputError, match="needs 2 or more; there is 1"):
        fs.noise_ceiling(rdms[:1])
    sessions = xr.concat([rdms, rdms], "subject")
    with pytest.raises(InvalidInputError, match=r"'S0' is there 2 times.*groupby\('subject'\)"):
        fs.noise_ceiling(sessions)
    xr.testing.assert_allclose(
        fs.noise_ceiling(sessions.groupby("subject").mean()), fs.noise_ceiling(rdms)
    )
    with pytest.raises(InvalidInputError, match="fewer than 3 pairs"):
        fs.noise_ceiling(rdms.isel(image=[0, 1], image_2=[0, 1]))
    with pytest.raises(InvalidInputError, match=r"no method 'pearsn'.*Did you mean 'pearson'"):
        fs.noise_ceiling(rdms, method="pearsn")
    with pytest.raises(InvalidInputError, match=r"fs\.read_rdms"):
        fs.noise_ceiling(rdms.values)


@pytest.mark.parametrize("method", METHODS)
def test_a_subject_without_variation_is_named(method):
    rdms = subject_rdms()
    rdms.values[2] = 0.0 if method == "cosine" else 1 - np.eye(8)
    with pytest.raises(InvalidInputError, match=r"RDM of subject 'S2' has no variation") as caught:
        fs.noise_ceiling(rdms, method=method)
    assert caught.value.useless == ["S2"]
    assert np.isfinite(fs.noise_ceiling(rdms.drop_sel(subject=["S2"]), method=method).lower)


def test_what_does_not_fit_is_refused_before_it_is_read():
    def refuse(*_):
        raise AssertionError("values were read")

    lazy = dask.array.map_blocks(
        refuse, chunks=((8,), (2000,), (2000,)), dtype="f4", meta=np.empty((0, 0, 0), "f4")
    )
    rdms = make_rdm(
        lazy,
        xr.Coordinates({"image": ("image", np.arange(2000))}),
        extra={"subject": range(8)},
    )
    with fs.set_options(memory_budget=10**8), pytest.raises(MemoryBudgetError) as caught:
        fs.noise_ceiling(rdms)
    assert caught.value.allowed_nbytes == 10**8 < caught.value.projected_nbytes
