"""CKA and kernels against their definitions, term by term, and against other libraries."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st

import featurestore as fs
from featurestore.errors import (
    DiskSpaceError,
    FeatureStoreWarning,
    InvalidInputError,
    LabelMismatchError,
    MemoryBudgetError,
)
from featurestore.rdms.kernel import RESERVE


def labelled(values, names=None, **attrs):
    names = [f"i{k:04}.png" for k in range(len(values))] if names is None else names
    dims = ("image", "feature") if np.ndim(values) == 2 else ("image", "channel", "y", "x")
    return xr.DataArray(values, dims=dims, coords={"image": names}, attrs=attrs)


def noise(n, p, seed=0, offset=0.0):
    return labelled(np.random.default_rng(seed).standard_normal((n, p)) + offset)


def related(n=12, p=30, q=20, seed=0):
    """Two arrays that share some of what they hold."""
    rng = np.random.default_rng(seed)
    shared = rng.standard_normal((n, 3))
    first = shared @ rng.standard_normal((3, p)) + 0.5 * rng.standard_normal((n, p))
    second = shared @ rng.standard_normal((3, q)) + 0.5 * rng.standard_normal((n, q))
    return labelled(first + 3.0), labelled(second)


def plain_kernel(values, kernel, bandwidth=1.0):
    if kernel == "linear":
        return values @ values.T
    distances = np.array([[np.sqrt(np.sum((x - y) ** 2)) for x in values] for y in values])
    pairs = [distances[i, j] for i, j in itertools.combinations(range(len(values)), 2)]
    width = bandwidth * np.median(pairs)
    return np.exp(-(distances**2) / (2 * width**2))


def biased_hsic(k, m):
    """Gretton et al. 2005, up to a factor."""
    n = len(k)
    centring = np.eye(n) - np.ones((n, n)) / n
    return np.trace(k @ centring @ m @ centring)


def unbiased_hsic(k, m):
    """Song et al. 2012, equation 4, with sums over distinct indices as they stand in their proof.

    Slow on purpose: nothing is shared with the matrix form.
    """
    n = len(k)
    pairs = itertools.permutations(range(n), 2)
    triples = itertools.permutations(range(n), 3)
    quadruples = itertools.permutations(range(n), 4)
    two = np.mean([k[i, j] * m[i, j] for i, j in pairs])
    three = np.mean([k[i, j] * m[i, q] for i, j, q in triples])
    four = np.mean([k[i, j] * m[q, r] for i, j, q, r in quadruples])
    return two + four - 2 * three


def expected_cka(x, y, kernel, debiased, bandwidth=1.0):
    hsic = unbiased_hsic if debiased else biased_hsic
    k, m = plain_kernel(x, kernel, bandwidth), plain_kernel(y, kernel, bandwidth)
    return hsic(k, m) / np.sqrt(hsic(k, k) * hsic(m, m))


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
@pytest.mark.parametrize("bandwidth", [1.0, 0.4])
@pytest.mark.parametrize("seed", [0, 1])
def test_cka_is_what_its_definition_says(kernel, debiased, bandwidth, seed):
    x, y = related(n=9, seed=seed)
    got = fs.cka(x, y, kernel=kernel, bandwidth=bandwidth, debiased=debiased)
    expected = expected_cka(x.values, y.values, kernel, debiased, bandwidth)
    assert got.ndim == 0
    np.testing.assert_allclose(float(got), expected, atol=1e-5)


@pytest.mark.parametrize("debiased", [True, False])
def test_cka_of_the_fewest_images_is_what_its_definition_says(debiased):
    n = 4 if debiased else 3
    x, y = related(n=n)
    expected = expected_cka(x.values, y.values, "linear", debiased)
    np.testing.assert_allclose(float(fs.cka(x, y, debiased=debiased)), expected, atol=1e-5)
    with pytest.raises(InvalidInputError, match=rf"needs {n} images|at least {n} are needed"):
        fs.cka(x[:-1], y[:-1], debiased=debiased)


def test_noise_alone_looks_alike_unless_debiased():
    x, y = noise(100, 2000), noise(100, 3000, seed=1)
    np.testing.assert_allclose(float(fs.cka(x, y, debiased=False)), 0.96, atol=0.005)
    assert abs(float(fs.cka(x, y))) < 0.02


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_shuffled_rows_have_nothing_in_common(kernel):
    x, _ = related(n=150, p=400)
    shuffled = labelled(np.random.default_rng(5).permutation(x.values))
    assert abs(float(fs.cka(x, shuffled, kernel=kernel))) < 0.05
    # Large values make an absolute width of 1 give 1.0 here.
    scaled = shuffled * 1000.0
    assert abs(float(fs.cka(x * 1000.0, scaled, kernel=kernel))) < 0.05


def test_biased_linear_cka_is_the_whitened_cosine_of_rsatoolbox():
    from rsatoolbox.rdm import RDMs, compare
    from scipy.spatial.distance import pdist

    x, y = related(n=30)
    first, second = (RDMs(pdist(v.values, "sqeuclidean")[None]) for v in (x, y))
    expected = compare(first, second, method="cosine_cov")[0, 0]
    np.testing.assert_allclose(float(fs.cka(x, y, debiased=False)), expected, rtol=1e-5)


def test_a_very_wide_rbf_kernel_is_linear():
    x, y = related(n=20)
    for debiased in (True, False):
        wide = fs.cka(x, y, kernel="rbf", bandwidth=1e5, debiased=debiased)
        np.testing.assert_allclose(wide, fs.cka(x, y, debiased=debiased), atol=1e-6)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(1e-3, 1e3), st.floats(-100, 100))
def test_rotation_scale_and_shift_change_nothing(kernel, debiased, seed, factor, shift):
    x, y = related()
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.standard_normal((30, 30)))[0]
    moved = labelled(factor * x.values @ rotation + shift)
    how = {"kernel": kernel, "debiased": debiased}
    np.testing.assert_allclose(fs.cka(moved, y, **how), fs.cka(x, y, **how), atol=1e-5)
    np.testing.assert_allclose(fs.cka(x, moved, **how), 1, atol=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.randoms(use_true_random=False), st.booleans(), st.sampled_from(["linear", "rbf"]))
def test_images_are_matched_by_name_whatever_their_order(random, debiased, kernel):
    x, y = related()
    first, second = random.sample(range(12), 12), random.sample(range(12), 12)
    got = fs.cka(x[first], y[second], debiased=debiased, kernel=kernel)
    np.testing.assert_allclose(got, fs.cka(x, y, debiased=debiased, kernel=kernel), atol=1e-6)


def test_the_common_images_are_compared_where_that_is_asked_for():
    x, y = related(n=14)
    expected = fs.cka(x[2:11], y[2:11])
    with pytest.raises(LabelMismatchError):
        fs.cka(x[2:], y[:11])
    got = fs.cka(x[2:], y[10::-1], join="inner")
    np.testing.assert_allclose(got, expected, atol=1e-9)
    assert got.attrs["n_images"] == 9


def test_images_that_are_not_in_common_are_not_even_read():
    x, y = related(n=14)
    x[13] = np.nan
    assert np.isfinite(fs.cka(x, y[:12], join="inner"))


def test_repeated_names_are_refused():
    x = related()[0]
    twice = x.assign_coords(image=["a", *x.image.values[1:-1], "a"])
    for call in (
        lambda: fs.cka(twice, twice),
        lambda: fs.cka(x, twice),
        lambda: fs.cka({"x": twice}),
    ):
        with pytest.raises(InvalidInputError, match="more than once"):
            call()


def test_other_images_under_the_same_names_are_warned_of():
    x, y = related()
    x = x.assign_coords(digest=("image", [f"{k:032x}" for k in range(12)]))
    y = y.assign_coords(digest=("image", [f"{k:032x}" for k in range(11)] + ["f" * 32]))
    with pytest.warns(FeatureStoreWarning, match="i0011"):
        fs.cka(x, y)


def test_renamed_images_are_matched_by_content_where_that_is_asked_for():
    x, y = related()
    x = x.assign_coords(digest=("image", [f"{k:032x}" for k in range(12)]))
    y = y.assign_coords(image=[f"{k}" for k in range(12)])
    y = y.assign_coords(digest=("image", x.digest.values))[::-1]
    with pytest.raises(LabelMismatchError, match="by='digest'"):
        fs.cka(x, y)
    np.testing.assert_allclose(fs.cka(x, y, by="digest"), fs.cka(*related()), atol=1e-9)


def test_the_images_that_all_have_are_compared_where_each_lacks_another():
    given = modules()
    given["features.3"] = given["features.3"].drop_sel(image=["i0002.png", "i0005.png"])
    given["avgpool"] = given["avgpool"].drop_sel(image=["i0005.png", "i0009.png"])
    got = fs.cka(given, join="inner")
    common = [f"i{k:04}.png" for k in (0, 1, 3, 4, 6, 7, 8, 10, 11)]
    assert got.attrs["n_images"] == len(common)
    expected = fs.cka({name: acts.sel(image=common) for name, acts in given.items()})
    np.testing.assert_allclose(got, expected, atol=1e-9)


def test_what_is_wrong_with_one_of_many_is_said_with_its_name():
    given = modules()
    given["avgpool"] = given["avgpool"][1:]
    with pytest.raises(LabelMismatchError) as caught:
        fs.cka(given)
    assert caught.value.__notes__ == ["This is about 'features.0' and 'avgpool'."]
    got = fs.cka(given, join="inner")
    assert got.attrs["n_images"] == 11
    kept = {name: acts.sel(image=given["avgpool"].image) for name, acts in given.items()}
    np.testing.assert_allclose(got, fs.cka(kept), atol=1e-9)


def test_images_and_texts_are_matched_by_label():
    x, y = related()
    text = y.rename(image="text")[::-1]
    got = fs.cka(x, text, dims=("image", "text"))
    np.testing.assert_allclose(got, fs.cka(x, y), atol=1e-9)
    got = fs.cka(text, text, dims="text")
    np.testing.assert_allclose(got, 1)
    assert got.attrs["n_texts"] == 12


def modules(n=12, seed=0):
    x, y = related(n=n, seed=seed)
    third = labelled(np.random.default_rng(seed + 9).standard_normal((n, 2, 3, 4)))
    return {"features.0": x, "features.3": y[::-1], "avgpool": third}


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
def test_dicts_give_a_matrix_with_one_cka_in_each_cell(kernel):
    first, second = modules(), dict(list(modules(seed=1).items())[:2])
    got = fs.cka(first, second, kernel=kernel)
    assert got.dims == ("module", "other")
    assert got.module.values.tolist() == list(first)
    assert got.other.values.tolist() == list(second)
    for one, other in itertools.product(first, second):
        expected = fs.cka(first[one], second[other], kernel=kernel)
        np.testing.assert_allclose(got.sel(module=one, other=other), expected, atol=1e-9)


def test_one_dict_is_compared_with_itself():
    given = modules()
    got = fs.cka(given)
    assert got.dims == ("module", "module_2")
    np.testing.assert_array_equal(got, got.T)
    np.testing.assert_allclose(np.diag(got), 1)
    np.testing.assert_allclose(got, fs.cka(given, given), atol=1e-12)


def test_a_dict_and_an_array_give_one_axis():
    given = modules()
    got = fs.cka(given, given["avgpool"])
    assert got.dims == ("module",)
    np.testing.assert_allclose(got, fs.cka(given)[:, 2], atol=1e-12)
    other = fs.cka(given["avgpool"], given)
    assert other.dims == ("other",)
    np.testing.assert_allclose(other, got, atol=1e-12)


def test_every_array_of_two_dicts_is_read_once(monkeypatch):
    from featurestore.rsa import cka as module

    seen = []
    gram = module.gram

    def counted(features, *arguments):
        seen.append(features.shape)
        return gram(features, *arguments)

    monkeypatch.setattr(module, "gram", counted)
    fs.cka(modules(), modules(seed=1))
    assert len(seen) == 6


@pytest.mark.parametrize("together", [True, False])
def test_kernels_that_do_not_fit_in_memory_go_to_a_file(monkeypatch, tmp_path, together):
    given = modules(n=40)
    expected = fs.cka(given) if together else fs.cka(given, given)
    all_but_20_kb = (fs.get_options().memory_budget - RESERVE - 20_000) // (8 * 40**2)
    monkeypatch.setattr("featurestore.rdms.centred.COPIES", all_but_20_kb)
    monkeypatch.setattr("featurestore.rsa.stacked.MIN_PIECE_NBYTES", 1_000)
    with fs.set_options(cache_dir=tmp_path):
        got = fs.cka(given) if together else fs.cka(given, given)
    xr.testing.assert_allclose(got, expected, atol=1e-14)
    assert list(tmp_path.iterdir()) == []


def test_kernels_that_fit_nowhere_are_refused_before_anything_is_read(monkeypatch, tmp_path):
    def full(path):
        return type("Usage", (), {"free": 10_000})

    monkeypatch.setattr("featurestore.rsa.stacked.shutil.disk_usage", full)
    with (
        fs.set_options(memory_budget=RESERVE + 4 * 8 * 40**2, cache_dir=tmp_path),
        pytest.raises(DiskSpaceError, match="3 kernels take"),
    ):
        fs.cka(modules(n=40))


def test_more_images_than_memory_are_refused_before_anything_is_read():
    x = labelled(np.broadcast_to(np.nan, (3000, 5)))
    with (
        fs.set_options(memory_budget="128 MiB"),
        pytest.raises(MemoryBudgetError, match="CKA of 3000 images needs 355 MB"),
    ):
        fs.cka(x, x)


def test_the_result_says_how_it_was_computed_and_from_what():
    x, y = related()
    x.attrs, y.attrs = {"model": "alexnet", "feature_key": "ab" * 16}, {"model": "resnet50"}
    linear = fs.cka(x.rename("conv"), y).attrs
    assert (linear["kernel"], linear["estimator"], linear["n_images"]) == ("linear", "debiased", 12)
    assert "bandwidth" not in linear
    assert json.loads(linear["a"])["conv"]["feature_key"] == "ab" * 16
    assert json.loads(linear["b"])["b"]["model"] == "resnet50"
    rbf = fs.cka({"one": x, "two": y}, kernel="rbf", bandwidth=0.5, debiased=False).attrs
    assert (rbf["kernel"], rbf["estimator"], rbf["bandwidth"]) == ("rbf", "biased", 0.5)
    assert json.loads(rbf["a"])["two"] == {"model": "resnet50", "shape": [12, 20]}
    assert "b" not in rbf
    json.dumps(rbf)


@pytest.mark.parametrize("kernel", ["linear", "rbf"])
@pytest.mark.parametrize("debiased", [True, False])
def test_a_dead_module_is_nan_and_named_and_the_others_are_not(kernel, debiased):
    given = modules()
    expected = fs.cka(given, kernel=kernel, debiased=debiased)
    with pytest.warns(FeatureStoreWarning, match="no geometry beyond rounding in dead:"):
        got = fs.cka(
            {"dead": labelled(np.zeros((12, 5))), **given}, kernel=kernel, debiased=debiased
        )
    assert np.isnan(got.sel(module="dead")).all()
    assert np.isnan(got.sel(module_2="dead")).all()
    xr.testing.assert_allclose(got[1:, 1:], expected)


def test_images_that_are_all_equally_far_apart_have_no_debiased_cka():
    x = labelled(np.eye(12) * 0.3)
    y = related()[1]
    with pytest.warns(FeatureStoreWarning, match="equally far apart"):
        assert np.isnan(fs.cka(x, y))
    assert np.isfinite(fs.cka(x, y, debiased=False))


def test_features_that_are_not_finite_are_named():
    given = modules()
    given["avgpool"][3, 1, 1, 1] = np.nan
    with pytest.raises(InvalidInputError, match=r"'avgpool' of 1 of 12 images.*i0003\.png"):
        fs.cka(given)


def test_duplicates_leave_an_rbf_kernel_without_width():
    x, y = related()
    x[1:] = x[1]
    with pytest.raises(InvalidInputError, match="median distance is 0"):
        fs.cka(x, y, kernel="rbf")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: fs.cka(x), "One array has nothing to be compared with"),
        (lambda x: fs.cka({}), "dict a is empty"),
        (lambda x: fs.cka(x, x.values), "ndarray and has no names"),
        (lambda x: fs.cka(x, x, kernel="linar"), "Did you mean 'linear'"),  # type: ignore[arg-type]
        (lambda x: fs.cka(x, x, kernel="rbf", bandwidth=0), "bandwidth=0 must be"),
        (lambda x: fs.cka(x, x, kernel="rbf", bandwidth=np.nan), "bandwidth=nan must be"),
        (lambda x: fs.cka(x, x, dims="text"), "no names along 'text'"),
        (lambda x: fs.cka(x, x.drop_vars("image")), "no names along 'image'"),
        (lambda x: fs.cka(x, x, dims=("image", "text", "y")), "one dim, or two"),  # type: ignore[arg-type]
        (lambda x: fs.cka(x, x, join="outer"), "join='outer'"),
    ],
)
def test_what_cannot_be_compared_is_refused(call, message):
    with pytest.raises(InvalidInputError, match=message):
        call(related()[0])


def test_a_column_of_a_store_is_read_once_for_all_that_starts_from_its_geometry(
    monkeypatch, tmp_path
):
    from PIL import Image

    from featurestore.storage.column import Column
    from featurestore.testing.tiny import tiny_network

    rng = np.random.default_rng(0)
    (tmp_path / "stimuli").mkdir()
    for number in range(12):
        picture = Image.fromarray(rng.integers(0, 256, (40, 48, 3), dtype=np.uint8))
        picture.save(tmp_path / "stimuli" / f"{number:02d}.png")
    store = fs.open_store(tmp_path / "features.fstore")
    names = ["features.0", "features.3"]
    acts = store.get_many(tiny_network(), names, tmp_path / "stimuli")

    reads = []
    read = Column.read

    def counted(column, *arguments):
        reads.append(column.key)
        return read(column, *arguments)

    monkeypatch.setattr(Column, "read", counted)
    got = fs.cka(acts)
    assert len(reads) == len(set(reads)) == 2
    for again in (fs.cka(acts, kernel="rbf"), fs.cka(acts["features.0"], acts["features.3"][::-1])):
        assert np.isfinite(again).all()
    fs.pca(acts["features.3"], 2)
    fs.kernel_matrix(acts["features.3"])
    assert len(reads) == 2
    plain = {name: array.copy(data=array.values) for name, array in acts.items()}
    np.testing.assert_allclose(got, fs.cka(plain), atol=1e-6)
