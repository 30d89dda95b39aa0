"""The hand-over to rsatoolbox: nothing is lost, nothing is renamed into something else."""

from __future__ import annotations

import dask.array
import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import pdist, squareform

import featurestore as fs
from featurestore.errors import InvalidInputError, MemoryBudgetError
from featurestore.rdms.structure import make_rdm

rsatoolbox = pytest.importorskip("rsatoolbox")
rdm_module = pytest.importorskip("rsatoolbox.rdm")

TO, FROM = fs.exports.to_rsatoolbox, fs.exports.from_rsatoolbox


def names(n):
    return [f"image {i}.jpg" for i in range(n)]


def random_rdms(*shape, n=6, seed=0, dtype=np.float64, attrs=None, extra=None, **coords):
    values = np.random.default_rng(seed).random((*shape, n, n)).astype(dtype)
    values = values + values.swapaxes(-1, -2)
    values[..., np.arange(n), np.arange(n)] = 0
    labels = xr.Coordinates({"image": ("image", np.array(names(n), object)), **coords})
    return make_rdm(values, labels, extra=extra, attrs={"metric": "correlation", **(attrs or {})})


def random_features(n=8, shape=(3, 2, 2), seed=0, dtype=np.float32):
    values = np.random.default_rng(seed).normal(2, 1, (n, *shape)).astype(dtype)
    dims = ("image", "channel", "y", "x")[: values.ndim]
    return xr.DataArray(
        values,
        dims=dims,
        coords={"image": np.array(names(n), object), "category": ("image", list("aabbccdd")[:n])},
        name="features.10",
        attrs={"model": "alexnet", "module": "features.10"},
    )


LABELS = {
    "subject": st.permutations(["BE", "KO", "SN"]),
    "module": st.permutations(["features.0", "features.3"]),
    "layer": st.permutations([1, 2, 5, 9]),
}


@st.composite
def labelled_rdms(draw):
    dims = draw(st.lists(st.sampled_from(sorted(LABELS)), unique=True, max_size=3))
    extra = {dim: draw(LABELS[dim])[: draw(st.integers(1, 3))] for dim in dims}
    n = draw(st.integers(2, 6))
    rdm = random_rdms(
        *(len(labels) for labels in extra.values()),
        n=n,
        seed=draw(st.integers(0, 99)),
        dtype=draw(st.sampled_from([np.float32, np.float64])),
        extra=extra,
        attrs={"note": draw(st.text(max_size=5)), "list": [1, "two", None]},
        category=("image", draw(st.lists(st.sampled_from("ab"), min_size=n, max_size=n))),
        index=("image", draw(st.permutations(range(n)))),
    )
    if dims:
        rdm = rdm.assign_coords(size=(dims[0], np.arange(len(extra[dims[0]])) * 1.5))
        unlabelled = draw(st.booleans())
        rdm = rdm.drop_vars(dims[-1]) if unlabelled else rdm
    return rdm.assign_coords(seed=7)


@given(labelled_rdms())
@settings(deadline=None, max_examples=50)
def test_an_rdm_comes_back_as_it_was(rdm):
    back = FROM(TO(rdm))
    xr.testing.assert_identical(back, rdm)
    assert back.dtype == rdm.dtype
    assert list(back.attrs.items()) == list(rdm.attrs.items())


def test_every_rdm_is_one_float64_vector_in_the_order_of_scipy():
    rdm = random_rdms(2, 3, dtype=np.float32, extra={"subject": ["s", "t"], "module": [*"abc"]})
    rdms = TO(rdm)
    assert (rdms.n_rdm, rdms.n_cond) == (6, 6)
    assert rdms.get_vectors().dtype == np.float64
    expected = [squareform(rdm.values[i, j]) for i in range(2) for j in range(3)]
    np.testing.assert_array_equal(rdms.get_vectors(), expected)
    np.testing.assert_array_equal(rdms.get_matrices(), rdm.values.reshape(6, 6, 6))
    assert rdms.rdm_descriptors["subject"] == ["s", "s", "s", "t", "t", "t"]
    assert rdms.rdm_descriptors["module"] == [*"abcabc"]


def test_a_single_square_is_never_read_as_many_vectors():
    rdms = TO(random_rdms(n=10))  # rsatoolbox takes a bare 10 × 10 array for 10 RDMs
    assert (rdms.n_rdm, rdms.n_cond) == (1, 10)


def test_descriptors_hold_all_coordinates_and_attributes():
    rdm = random_rdms(attrs={"model": "alexnet", "n_features": 9}, category=("image", [*"aabbcc"]))
    rdms = TO(rdm)
    assert rdms.pattern_descriptors["image"] == names(6)
    assert rdms.pattern_descriptors["category"] == [*"aabbcc"]
    assert rdms.descriptors["model"] == "alexnet"
    assert rdms.descriptors["n_features"] == 9


def test_a_coordinate_called_index_is_not_overwritten():
    rdm = random_rdms(index=("image", [5, 4, 3, 2, 1, 0]))
    rdms = TO(rdm)
    assert rdms.pattern_descriptors["index"] == [0, 1, 2, 3, 4, 5]
    assert rdms.pattern_descriptors["image_index"] == [5, 4, 3, 2, 1, 0]
    rsatoolbox.model.ModelFixed("model", rdms)  # numbers the patterns of what it is given
    np.testing.assert_array_equal(FROM(rdms)["index"], [5, 4, 3, 2, 1, 0])


def test_the_copy_is_a_copy():
    rdm = random_rdms()
    before = rdm.copy(deep=True)
    rdms = TO(rdm)
    rdm_module.sqrt_transform(rdms)
    rdms.dissimilarities[:] = -1
    rdms.pattern_descriptors["image"][0] = "changed"
    xr.testing.assert_identical(rdm, before)
    features = random_features(dtype=np.float64)
    before = features.copy(deep=True)
    TO(features).measurements[:] = -1
    xr.testing.assert_identical(features, before)
    rdms = TO(random_rdms())
    FROM(rdms).values[:] = -1
    assert (rdms.get_vectors() > 0).all()


def test_squared_distances_are_those_of_rsatoolbox():
    features = random_features(dtype=np.float64)
    flat = features.values.reshape(8, -1)
    ours = make_rdm(
        squareform(pdist(flat, "sqeuclidean")),
        features.coords,
        attrs={"metric": "sqeuclidean", "n_features": 12},
    )
    theirs = rdm_module.calc_rdm(TO(features), method="euclidean")
    rdms = TO(ours)
    np.testing.assert_allclose(rdms.get_vectors(), theirs.get_vectors(), rtol=1e-12)
    assert rdms.dissimilarity_measure == theirs.dissimilarity_measure == "squared euclidean"
    np.testing.assert_allclose(FROM(rdms), ours, rtol=1e-15)
    assert FROM(rdms).attrs == ours.attrs


def test_each_rdm_is_divided_by_its_own_number_of_features():
    rdm = random_rdms(2, attrs={"metric": "sqeuclidean"}, extra={"module": ["fc6", "fc7"]})
    rdm = rdm.assign_coords(n_features=("module", [10, 40]))
    rdms = TO(rdm)
    np.testing.assert_allclose(rdms.get_matrices(), rdm / np.array([10, 40])[:, None, None])
    xr.testing.assert_allclose(FROM(rdms), rdm, rtol=1e-15)
    second = rdms.subset("module", "fc7")
    xr.testing.assert_allclose(FROM(second), rdm.isel(module=[1]), rtol=1e-15)


@pytest.mark.parametrize("n_features", [None, "many", 0, [1, 2]])
def test_squared_distances_of_an_unknown_number_of_features_keep_values_and_name(n_features):
    rdm = random_rdms(attrs={"metric": "sqeuclidean", "n_features": n_features})
    rdms = TO(rdm)
    np.testing.assert_array_equal(rdms.get_matrices()[0], rdm)
    assert rdms.dissimilarity_measure == "sqeuclidean"
    xr.testing.assert_identical(FROM(rdms), rdm)


@pytest.mark.parametrize("metric", ["correlation", "cosine", "euclidean", "gaussian", "judged"])
def test_other_metrics_keep_values_and_name(metric):
    rdm = random_rdms(attrs={"metric": metric, "n_features": 5})
    rdms = TO(rdm)
    assert rdms.dissimilarity_measure == metric
    np.testing.assert_array_equal(rdms.get_matrices()[0], rdm)


def test_correlation_distances_are_those_of_rsatoolbox():
    features = random_features(dtype=np.float64)
    theirs = FROM(rdm_module.calc_rdm(TO(features), method="correlation"))
    flat = features.values.reshape(8, -1)
    np.testing.assert_allclose(theirs, squareform(pdist(flat, "correlation")), atol=1e-14)
    assert theirs.attrs["metric"] == "correlation"
    assert theirs["image"].values.tolist() == theirs["image_2"].values.tolist() == names(8)
    assert theirs["module"] == "features.10"


def test_what_rsatoolbox_did_to_the_values_is_in_the_metric():
    rdm = random_rdms(attrs={"metric": "sqeuclidean", "n_features": 9})
    ranks = FROM(rdm_module.rank_transform(TO(rdm)))
    assert ranks.attrs["metric"] == "squared euclidean (ranks)"
    np.testing.assert_array_equal(np.unique(squareform(ranks.values)), np.arange(1, 16))
    root = FROM(rdm_module.sqrt_transform(TO(rdm)))
    assert root.attrs["metric"] == "euclidean (rsatoolbox)"
    np.testing.assert_allclose(root, np.sqrt(rdm / 9))
    squared = FROM(rdm_module.calc_rdm(TO(random_features()), method="euclidean"))
    assert squared.attrs["metric"] == "squared euclidean (rsatoolbox: mean over channels)"


def test_names_follow_what_rsatoolbox_chooses_and_sorts():
    rdm = random_rdms(3, extra={"subject": ["BE", "KO", "SN"]}, category=("image", [*"aabbcc"]))
    rdms = TO(rdm)
    chosen = rdms.subset_pattern("category", ["a", "c"]).subset("subject", ["SN", "BE"])
    expected = rdm.isel(image=[0, 1, 4, 5], image_2=[0, 1, 4, 5], subject=[0, 2])
    xr.testing.assert_identical(FROM(chosen), expected)
    rdms.sort_by(image=names(6)[::-1])
    turned = FROM(rdms)
    assert turned["image"].values.tolist() == names(6)[::-1]
    xr.testing.assert_identical(
        turned, rdm.isel(image=slice(None, None, -1)).isel(image_2=slice(None, None, -1))
    )


def test_rdms_that_fill_no_grid_stand_in_one_dim():
    rdm = random_rdms(2, 2, extra={"subject": ["s", "t"], "module": ["a", "b"]})
    rdms = TO(rdm)
    three = FROM(rdms[[0, 1, 3]])
    assert three.dims == ("rdm", "image", "image_2")
    assert three["subject"].values.tolist() == ["s", "s", "t"]
    assert three["module"].values.tolist() == ["a", "b", "b"]
    np.testing.assert_array_equal(three, rdm.values.reshape(4, 6, 6)[[0, 1, 3]])
    shuffled = FROM(rdms[[1, 0, 2, 3]])  # a grid, but not in its order
    assert shuffled.dims == ("rdm", "image", "image_2")
    joined = FROM(rdm_module.concat([TO(random_rdms(seed=1)), TO(random_rdms(seed=2))]))
    assert joined.dims == ("rdm", "image", "image_2")
    np.testing.assert_array_equal(joined[1], random_rdms(seed=2))


def test_rdms_from_elsewhere_are_labelled_by_their_descriptors():
    vectors = np.arange(12.0).reshape(4, 3)
    rdms = rdm_module.RDMs(
        vectors,
        dissimilarity_measure="crossnobis",
        descriptors={"lab": "here"},
        rdm_descriptors={"subject": ["s", "s", "t", "t"], "session": [1, 2, 1, 2]},
        pattern_descriptors={"conds": ["x", "y", "z"], "animate": [True, False, True]},
    )
    with pytest.raises(InvalidInputError, match=r"No descriptor 'image'.*'conds', 'animate'"):
        FROM(rdms)
    with pytest.raises(InvalidInputError, match="Did you mean 'conds'"):
        FROM(rdms, names="cond")
    flat = FROM(rdms, names="conds")
    assert flat.dims == ("rdm", "image", "image_2")
    assert flat["image"].values.tolist() == ["x", "y", "z"]
    assert flat["animate_2"].values.tolist() == [True, False, True]
    assert flat.attrs == {"lab": "here", "metric": "crossnobis"}
    grid = FROM(rdms, "object", names="conds", dims=("subject", "session"))
    assert grid.dims == ("subject", "session", "object", "object_2")
    np.testing.assert_array_equal(grid.sel(subject="t", session=1), squareform(vectors[2]))
    with pytest.raises(InvalidInputError, match="Did you mean 'subject'"):
        FROM(rdms, names="conds", dims=["subjects"])
    with pytest.raises(InvalidInputError, match="do not fill a grid"):
        FROM(rdms[[0, 1, 2]], names="conds", dims=["subject", "session"])
    single = FROM(rdms[0], names="index")
    assert single.dims == ("image", "image_2")
    assert single["subject"] == "s"


def test_missing_values_stay_missing():
    rdm = random_rdms()
    rdm.values[2] = rdm.values[:, 2] = np.nan
    rdm.values[2, 2] = 0
    rdms = TO(rdm)
    assert np.isnan(rdms.get_vectors()).sum() == 5
    xr.testing.assert_identical(FROM(rdms), rdm)


@pytest.mark.parametrize("shape", [(), (5,), (3, 2, 2)])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_features_come_back_as_they_were(shape, dtype):
    features = random_features(shape=shape, dtype=dtype)
    if shape:
        labels = [*"abcde"][: shape[0]]
        features = features.assign_coords(roi=("channel", labels), index=("channel", labels))
    dataset = TO(features)
    assert dataset.measurements.dtype == np.float64
    np.testing.assert_array_equal(dataset.measurements, features.values.reshape(8, -1))
    assert dataset.obs_descriptors["image"] == names(8)
    back = FROM(dataset)
    xr.testing.assert_identical(back, features)
    assert back.dtype == dtype


def test_chosen_channels_come_back_flat_with_their_positions():
    features = random_features()
    dataset = TO(features).subset_channel("channel", [1, 2]).subset_channel("y", 0)
    back = FROM(dataset)
    assert back.dims == ("image", "feature")
    np.testing.assert_array_equal(back["channel"], [1, 1, 2, 2])
    np.testing.assert_array_equal(back["x"], [0, 1, 0, 1])
    expected = features.isel(channel=[1, 2], y=0).values.reshape(8, -1)
    np.testing.assert_array_equal(back, expected)


def test_features_that_were_scaled_keep_their_digits():
    dataset = TO(random_features())
    dataset.measurements /= 3
    assert FROM(dataset).dtype == np.float64
    np.testing.assert_array_equal(FROM(dataset).values.reshape(8, -1), dataset.measurements)


def test_crossvalidated_distances_run_on_repeated_rows():
    rng = np.random.default_rng(0)
    patterns = rng.normal(size=(6, 30))
    runs = [patterns + 0.1 * rng.normal(size=patterns.shape) for _ in range(3)]
    features = xr.DataArray(
        np.concatenate(runs),
        dims=("image", "voxel"),
        coords={"image": names(6) * 3, "run": ("image", np.repeat([*"abc"], 6))},
    )
    rdms = rdm_module.calc_rdm(
        TO(features), method="crossnobis", descriptor="image", cv_descriptor="run"
    )
    distances = FROM(rdms)
    assert distances.attrs["metric"] == "crossnobis"
    between = np.stack(runs)[:, :, None] - np.stack(runs)[:, None]  # (run, image, image, voxel)
    folds = [between[k] * between[[j for j in range(3) if j != k]].mean(0) for k in range(3)]
    expected = np.mean(folds, axis=0).mean(-1)
    np.testing.assert_allclose(
        distances.sel(image=names(6), image_2=names(6)), expected, atol=1e-12
    )


@pytest.mark.parametrize("n_rdms", [0, 1])
def test_a_file_of_rsatoolbox_is_read_back(tmp_path, n_rdms):
    extra = {"subject": ["BE", "KO"][: 2 * n_rdms]} if n_rdms else None
    rdm = random_rdms(*(2,) * n_rdms, extra=extra, attrs={"nothing": None, "n_features": 4})
    path = str(tmp_path / "rdms.hdf5")
    TO(rdm).save(path)
    xr.testing.assert_identical(FROM(rdm_module.load_rdm(path)), rdm)


def lazy(shape, dtype="float32"):
    def refuse(*_):
        raise AssertionError("values were read")

    return dask.array.map_blocks(
        refuse,
        chunks=tuple((n,) for n in shape),
        dtype=dtype,
        meta=np.empty((0,) * len(shape), dtype),
    )


def test_what_is_too_large_is_refused_before_it_is_read():
    rdm = make_rdm(lazy((5001, 5001)), xr.Coordinates({"image": ("image", np.arange(5001))}))
    with pytest.raises(MemoryBudgetError, match=r"5,001 images .* allow_large=True") as caught:
        TO(rdm)
    assert caught.value.n_images == 5001
    assert caught.value.projected_nbytes > 8 * 5001 * 2500
    rdm = make_rdm(
        lazy((40, 900, 900)),
        xr.Coordinates({"image": ("image", np.arange(900))}),
        extra={"module": range(40)},
    )
    with fs.set_options(memory_budget=10**8), pytest.raises(MemoryBudgetError) as caught:
        TO(rdm)
    assert caught.value.allowed_nbytes == 10**8 < caught.value.projected_nbytes
    features = xr.DataArray(
        lazy((900, 10**5)), dims=("image", "feature"), coords={"image": np.arange(900)}
    )
    with fs.set_options(memory_budget=10**9), pytest.raises(MemoryBudgetError):
        TO(features)


def test_large_ones_go_over_if_it_is_said(tmp_path):
    features = random_features()
    with fs.set_options(memory_budget=1000):
        with pytest.raises(MemoryBudgetError):
            TO(features)
        assert TO(features, allow_large=True).n_obs == 8
        with pytest.raises(MemoryBudgetError):
            TO(random_rdms())
        assert TO(random_rdms(), allow_large=True).n_cond == 6


def test_lazy_rdms_are_read():
    rdm = random_rdms(3, extra={"subject": [*"abc"]})
    xr.testing.assert_identical(FROM(TO(rdm.chunk({"image": 2}))), rdm)


def test_what_is_no_rdm_is_refused_with_what_to_do():
    with pytest.raises(InvalidInputError, match=r"fs\.read_rdms"):
        TO(np.zeros((4, 4)))
    with pytest.raises(InvalidInputError, match="no RDM, and as features it lacks 'image'"):
        TO(xr.DataArray(np.zeros((4, 4)), dims=("text", "feature")))
    with pytest.raises(InvalidInputError, match=r"features\.isel\(subject=0\)"):
        TO(xr.DataArray(np.zeros((2, 4, 4)), dims=("subject", "image", "voxel")))
    rdm = random_rdms()
    rdm.values[0, 1] = 9
    with pytest.raises(InvalidInputError, match="not symmetric"):
        TO(rdm)
    with pytest.raises(InvalidInputError, match="diagonal"):
        TO(random_rdms().copy(data=np.ones((6, 6))))
    with pytest.raises(InvalidInputError, match="holds no pair"):
        TO(random_rdms(n=1))
    with pytest.raises(InvalidInputError, match="real numbers"):
        TO(random_features().astype(str))
    with pytest.raises(InvalidInputError, match="ndarray is neither"):
        FROM(np.zeros((4, 4)))
    with pytest.raises(InvalidInputError, match="Leave it out"):
        FROM(TO(random_features()), dims=["subject"])


@pytest.mark.parametrize("metric", ["sqeuclidean", "correlation"])
def test_rdms_of_features_are_those_that_rsatoolbox_computes_from_them(metric):
    features = random_features(n=8, shape=(4, 3, 3))
    rdms = TO(fs.rdm(features, metric=metric))
    method = {"sqeuclidean": "euclidean"}.get(metric, metric)
    theirs = rdm_module.calc_rdm(TO(features), method=method)
    np.testing.assert_allclose(rdms.get_vectors(), theirs.get_vectors(), rtol=1e-6)
    assert rdms.dissimilarity_measure == theirs.dissimilarity_measure


THEIR_NAMES = {"pearson": "corr"}


@pytest.mark.parametrize("levels", [None, 4])
@pytest.mark.parametrize(
    "method", ["pearson", "spearman", "cosine", "rho-a", "tau-a", "tau-b", "kendall"]
)
def test_comparing_there_and_here_gives_the_same_numbers(method, levels):
    models = random_rdms(2, n=9, seed=1, extra={"model": ["x", "y"]})
    brains = random_rdms(3, n=9, seed=2, extra={"subject": [*"abc"]})
    if levels:
        models, brains = np.ceil(levels * models), np.ceil(levels * brains)
    theirs = rdm_module.compare(TO(models), TO(brains), method=THEIR_NAMES.get(method, method))
    np.testing.assert_allclose(fs.compare_rdms(models, brains, method=method), theirs, atol=1e-12)


def models_and_subjects(n=12):
    models = random_rdms(3, n=n, seed=1, extra={"model": ["x", "y", "z"]})
    noise = random_rdms(5, n=n, seed=2, extra={"subject": [*"abcde"]})
    return models, (0.4 * models.sel(model="x") + 0.2 * models.sel(model="y") + noise).transpose(
        "subject", "image", "image_2"
    )


@pytest.mark.parametrize("method", ["cosine_cov", "corr_cov"])
def test_whitened_comparisons_run_there(method):
    models, subjects = models_and_subjects()
    there = rdm_module.compare(TO(models), TO(subjects), method=method)
    assert there.shape == (3, 5)
    assert (there[0] > there[2]).all()


def test_a_whitened_cosine_of_squared_distances_is_linear_cka():
    one, other = random_features(seed=1), random_features(seed=2)
    rdms = [TO(fs.rdm(features, metric="sqeuclidean")) for features in (one, other)]
    whitened = rdm_module.compare(*rdms, method="cosine_cov")
    np.testing.assert_allclose(whitened, fs.cka(one, other, debiased=False), atol=1e-5)


def test_inference_with_fixed_and_weighted_models_runs_there():
    from rsatoolbox import inference
    from rsatoolbox.model import ModelFixed, ModelWeighted
    from rsatoolbox.model.fitter import fit_regress_nn

    models, subjects = models_and_subjects()
    data = TO(subjects)
    fixed = [ModelFixed(str(name), TO(models.sel(model=name))) for name in models["model"].values]
    found = inference.eval_bootstrap_pattern(
        fixed, data, method="corr", N=50, rdm_descriptor="subject"
    )
    ours = fs.compare_rdms(models, subjects).mean("subject")
    np.testing.assert_allclose(found.get_means(), ours, atol=0.1)
    assert found.get_means().argmax() == 0

    weighted = ModelWeighted("weighted", TO(models))
    crossvalidated = inference.bootstrap_crossval(
        [fixed[2], weighted],
        data,
        method="corr",
        fitter=[fixed[2].default_fitter, fit_regress_nn],
        k_pattern=2,
        k_rdm=2,
        N=8,
    )
    means = crossvalidated.get_means()
    assert np.isfinite(means).all()
    assert means[1] > means[0]


def test_whitened_noise_ceilings_of_the_92_images(data_92):
    from rsatoolbox.inference import boot_noise_ceiling

    values = np.load(data_92 / "rdms" / "human_IT_4subj_x92x92.npy")
    rdms = make_rdm(
        values,
        xr.Coordinates({"image": ("image", np.arange(92))}),
        extra={"subject": ["BE", "KO", "SN", "TI"]},
    )
    ceiling = boot_noise_ceiling(TO(rdms), method="cosine_cov", rdm_descriptor="subject")
    np.testing.assert_allclose(ceiling, (0.665, 0.817), atol=0.0006)
