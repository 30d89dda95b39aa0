"""RDMs are compared by the names of their images, and results know what they are."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
import xarray as xr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.spatial.distance import squareform

import featurestore as fs
from featurestore.errors import FeatureStoreWarning, InvalidInputError, LabelMismatchError
from featurestore.rdms.structure import make_rdm
from featurestore.rsa.measures import MEASURES

N = 9
NAMES = [f"image {i}.png" for i in range(N)]


def rdm(seed=0, names=NAMES, dim="image", **extra):
    """RDMs of random dissimilarities, some of them tied."""
    rng = np.random.default_rng(seed)
    shape = tuple(len(labels) for labels in extra.values())
    values = np.empty((*shape, len(names), len(names)))
    for place in np.ndindex(shape):
        values[place] = squareform(np.round(rng.random(len(names) * (len(names) - 1) // 2), 1) + 1)
    return make_rdm(values, xr.Coordinates({dim: [*names]}), dim, extra=extra)


def shuffled(rdms, order, dim="image"):
    return rdms.isel({dim: order, f"{dim}_2": order})


def upper(square):
    return np.asarray(square)[np.triu_indices(len(square), 1)]


def test_one_with_one_is_a_number():
    a, b = rdm(0), rdm(1)
    found = fs.compare_rdms(a, b)
    assert found.dims == ()
    assert float(found) == pytest.approx(stats.pearsonr(upper(a), upper(b)).statistic, abs=1e-15)
    assert found.attrs["method"] == "pearson"
    assert found.attrs["n_images"] == N
    assert found.attrs["n_pairs"] == N * (N - 1) // 2
    assert found.attrs["n_dropped"] == 0
    json.dumps(found.attrs)


@pytest.mark.parametrize("method", ["pearson", "spearman"])
def test_thingsvision_gives_the_same(method):
    """Its correlate_rdms: SciPy's coefficient of the triangles above the diagonal."""
    a, b = rdm(0), rdm(1)
    rows, columns = np.triu_indices(N, k=1)
    formula = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}[method]
    expected = formula(a.values[rows, columns], b.values[rows, columns])[0]
    assert float(fs.compare_rdms(a, b, method=method)) == pytest.approx(expected, abs=1e-15)


@settings(deadline=None, max_examples=40)
@given(st.permutations(range(N)), st.permutations(range(N)), st.sampled_from([*MEASURES]))
def test_the_order_of_the_images_changes_nothing(first, second, method):
    a, b = rdm(0), rdm(1)
    expected = float(fs.compare_rdms(a, b, method=method))
    found = fs.compare_rdms(shuffled(a, first), shuffled(b, second), method=method)
    assert float(found) == pytest.approx(expected, abs=1e-14)


def test_leading_dims_are_broadcast_and_labelled():
    brain = rdm(0, subject=["BE", "KO", "SN"]).assign_coords(age=("subject", [30, 40, 50]))
    models = rdm(1, model=["alexnet", "vit"], module=["early", "middle", "late", "head"])
    found = fs.compare_rdms(brain, models, method="spearman")
    assert found.dims == ("subject", "model", "module")
    assert found["age"].values.tolist() == [30, 40, 50]
    for subject in ("BE", "SN"):
        for module in ("early", "head"):
            one, other = brain.sel(subject=subject), models.sel(model="vit", module=module)
            expected = stats.spearmanr(upper(one), upper(other)).statistic
            got = found.sel(subject=subject, model="vit", module=module)
            assert float(got) == pytest.approx(expected, abs=1e-14)
    swapped = fs.compare_rdms(models, brain, method="spearman")
    assert swapped.dims == ("model", "module", "subject")
    np.testing.assert_allclose(swapped.transpose(*found.dims), found, atol=1e-15)


def test_a_dim_of_both_is_paired_by_label():
    a = rdm(0, model=["m", "n"], subject=["BE", "KO", "SN"])
    b = rdm(1, subject=["SN", "BE", "KO"], area=["V1", "IT"])
    b = b.assign_coords(age=("subject", [1, 2, 3]), size=("area", [10, 20]))
    found = fs.compare_rdms(a, b)
    assert found.dims == ("model", "subject", "area")
    assert found["subject"].values.tolist() == ["BE", "KO", "SN"]
    assert found["size"].values.tolist() == [10, 20]
    assert "age" not in found.coords  # it is in the order of b
    for subject in ("BE", "SN"):
        one, other = a.sel(model="n", subject=subject), b.sel(subject=subject, area="IT")
        expected = stats.pearsonr(upper(one), upper(other)).statistic
        got = found.sel(model="n", subject=subject, area="IT")
        assert float(got) == pytest.approx(expected, abs=1e-15)


def test_a_dim_of_both_needs_the_same_labels():
    a = rdm(0, subject=["BE", "KO"])
    for b in (rdm(1, subject=["BE", "SN"]), rdm(1, subject=["BE"]), rdm(1, subject=["BE", "BE"])):
        with pytest.raises(LabelMismatchError, match=r"paired by label.*rename"):
            fs.compare_rdms(a, b)
    with pytest.raises(LabelMismatchError, match="it has no labels"):
        fs.compare_rdms(a, rdm(1, subject=["BE", "KO"]).drop_vars("subject"))
    other = rdm(1, subject=["X", "Y", "Z"]).rename(subject="other")
    assert fs.compare_rdms(a, other).sizes == {"subject": 2, "other": 3}


def test_all_pairs_of_one_array():
    modules = rdm(0, module=["early", "middle", "late"])
    modules = modules.assign_coords(depth=("module", [1, 2, 3]))
    for method in MEASURES:
        found = fs.compare_rdms(modules, method=method)
        assert found.dims == ("module", "module_2")
        assert found["module_2"].values.tolist() == ["early", "middle", "late"]
        assert found["depth_2"].values.tolist() == [1, 2, 3]
        np.testing.assert_array_equal(found, found.values.T)
        if method not in ("tau-a", "rho-a"):
            np.testing.assert_array_equal(np.diag(found), 1)
        renamed = modules.rename(module="other", depth="depth_of_other")
        np.testing.assert_allclose(
            found, fs.compare_rdms(modules, renamed, method=method), atol=1e-14
        )
    assert list(json.loads(found.attrs["a"])) == []
    assert "b" not in found.attrs


def test_all_pairs_over_several_dims():
    found = fs.compare_rdms(rdm(0, model=["m", "n"], module=["x", "y", "z"]))
    assert found.dims == ("model", "module", "model_2", "module_2")
    one = found.sel(model="m", module="x", model_2="n", module_2="z")
    other = found.sel(model="n", module="z", model_2="m", module_2="x")
    assert float(one) == float(other)


def test_the_rdm_is_read_once_for_all_pairs():
    reads = []

    class Counting(xr.backends.BackendArray):
        shape, dtype = (4, N, N), np.dtype(np.float64)

        def __getitem__(self, key):
            return xr.core.indexing.explicit_indexing_adapter(
                key, self.shape, xr.core.indexing.IndexingSupport.OUTER, self.read
            )

        def read(self, key):
            found = rdm(0, module=[*"wxyz"]).values[key]
            reads.append(found.size)
            return found

    lazy = xr.core.indexing.LazilyIndexedArray(Counting())
    modules = make_rdm(
        xr.Variable(("module", "image", "image_2"), lazy),
        xr.Coordinates({"image": NAMES}), extra={"module": [*"wxyz"]},
    )  # fmt: skip
    fs.compare_rdms(modules)
    assert sum(reads) == 4 * N * N


def test_one_rdm_has_nothing_to_be_compared_with():
    with pytest.raises(InvalidInputError, match="nothing to compare it with"):
        fs.compare_rdms(rdm())


@pytest.mark.parametrize("options", [{"join": "inner"}, {"by": "digest"}, {"dims": ("a", "b")}])
def test_ways_to_match_two_are_refused_for_one(options):
    with pytest.raises(InvalidInputError, match="how two RDMs are matched"):
        fs.compare_rdms(rdm(0, module=["a", "b"]), **options)


def test_no_rdms_have_no_scores():
    none = rdm(0, module=["a", "b"]).isel(module=[])
    assert fs.compare_rdms(none).shape == (0, 0)
    assert fs.compare_rdms(rdm(1), none).shape == (0,)


def test_facts_that_both_share_are_kept_and_others_dropped():
    a = rdm(0, subject=["BE"]).isel(subject=0).assign_coords(area="IT", task="naming")
    b = rdm(1).assign_coords(area="V1", task="naming")
    found = fs.compare_rdms(a, b)
    assert found["subject"].item() == "BE"
    assert found["task"].item() == "naming"
    assert "area" not in found.coords
    several = fs.compare_rdms(a, rdm(1, subject=["BE", "KO"]))
    assert several["subject"].values.tolist() == ["BE", "KO"]


# ---------------------------------------------------------------- alignment


def test_bare_arrays_are_refused():
    for a, b in ((rdm().values, rdm()), (rdm(), rdm().values)):
        with pytest.raises(InvalidInputError, match=r"fs\.read_rdms"):
            fs.compare_rdms(a, b)
    with pytest.raises(InvalidInputError, match=r"fs\.rdm"):
        fs.compare_rdms(rdm(), rdm().rename(image_2="other"))


def test_other_images_are_refused_naming_those_on_both_sides():
    a, b = rdm(0), rdm(1, ["image 0.jpg", *NAMES[1:5], "new.png"])
    with pytest.raises(LabelMismatchError) as info:
        fs.compare_rdms(a, b)
    text = str(info.value)
    assert "Of 9 in the first, 5 are not in the second ('image 0.png', 'image 5.png'" in text
    assert "of 6 in the second, 2 are not in the first ('image 0.jpg', 'new.png')" in text
    assert "Is 'image 0.png' there called 'image 0.jpg'?" in text
    assert "the 4 that both have: join='inner'" in text
    assert info.value.only_first == ("image 0.png", *NAMES[5:])
    assert info.value.only_second == ("image 0.jpg", "new.png")
    assert pickle.loads(pickle.dumps(info.value)).n_common == 4


def test_a_subset_is_refused_unless_the_join_is_inner():
    a, b = rdm(0), shuffled(rdm(1), [7, 3, 5, 0])
    with pytest.raises(LabelMismatchError, match="0 are not in the first"):
        fs.compare_rdms(a, b)
    found = fs.compare_rdms(a, b, join="inner")
    assert found.attrs["n_images"] == 4
    assert found.attrs["n_pairs"] == 6
    expected = fs.compare_rdms(shuffled(a, [0, 3, 5, 7]), b)
    assert float(found) == pytest.approx(float(expected), abs=1e-15)


def test_too_few_images_are_refused():
    few = rdm(1, [*NAMES[:2], "x", "y"])
    with pytest.raises(InvalidInputError, match=r"2 images.*at least 3") as info:
        fs.compare_rdms(rdm(0), few, join="inner")
    assert info.value.n_images == 2
    with pytest.raises(InvalidInputError, match="at least 3"):
        fs.compare_rdms(rdm(0, NAMES[:2], module=["a", "b"]))


def test_repeated_names_are_refused():
    twice = rdm(1, [*NAMES[:-1], NAMES[0]])
    for a, b in ((rdm(), twice), (twice, rdm())):
        with pytest.raises(InvalidInputError, match=r"more than once.*groupby\('image'\)") as info:
            fs.compare_rdms(a, b)
        assert info.value.repeated == (NAMES[0],)
    with pytest.raises(InvalidInputError, match="more than once"):
        fs.compare_rdms(rdm(0, [*NAMES[:-1], NAMES[0]], module=["a", "b"]))


def with_digests(rdms, digests):
    return rdms.assign_coords(digest=("image", digests), digest_2=("image_2", digests))


def test_the_same_contents_under_other_names_are_matched_by_digest():
    order = [3, 1, 4, 0, 5, 8, 2, 6, 7]
    digests = [f"{i:032x}" for i in range(N)]
    a = with_digests(rdm(0), digests)
    b = shuffled(with_digests(rdm(1), digests), order)
    expected = fs.compare_rdms(a, b)
    b = b.assign_coords(image=[*"abcdefghi"], image_2=[*"abcdefghi"])
    with pytest.raises(LabelMismatchError, match="by='digest'"):
        fs.compare_rdms(a, b)
    assert float(fs.compare_rdms(a, b, by="digest")) == float(expected)
    less = shuffled(b, range(5))
    with pytest.raises(LabelMismatchError, match=r"they have 5 in common: by='digest'"):
        fs.compare_rdms(a, less)
    with pytest.raises(InvalidInputError, match="Did you mean 'digest'"):
        fs.compare_rdms(a, b, by="digests")
    with pytest.raises(InvalidInputError, match="more than once along 'digest'"):
        fs.compare_rdms(with_digests(a, [digests[0], *digests[:-1]]), b, by="digest")


def test_another_content_under_the_same_name_is_warned_of():
    digests = [f"{i:032x}" for i in range(N)]
    a, b = with_digests(rdm(0), digests), with_digests(rdm(1), [*digests[:-1], "f" * 32])
    with pytest.warns(FeatureStoreWarning, match=r"1 of 9 images.*'image 8.png'") as caught:
        fs.compare_rdms(a, b)
    assert caught[0].filename == __file__


def test_texts_and_images_are_matched_where_the_call_says_so():
    images, texts = rdm(0), shuffled(rdm(1, dim="text"), [*range(N)][::-1], "text")
    with pytest.raises(LabelMismatchError, match=r"dims=\('image', 'text'\)"):
        fs.compare_rdms(images, texts)
    found = fs.compare_rdms(images, texts, dims=("image", "text"))
    assert float(found) == pytest.approx(float(fs.compare_rdms(rdm(0), rdm(1))), abs=1e-15)
    with pytest.raises(InvalidInputError, match="does not fit"):
        fs.compare_rdms(images, texts, dims=("text", "image"))


@pytest.mark.parametrize(
    ("options", "match"),
    [({"method": "spearmen"}, "'spearman'"), ({"join": "outer"}, "'exact'.*'inner'")],
)
def test_unknown_options_are_refused_whatever_is_compared(options, match):
    for b in (rdm(1), None):
        with pytest.raises(InvalidInputError, match=match):
            fs.compare_rdms(rdm(0, module=["a", "b"]), b, **options)


# ---------------------------------------------------------------- values


def test_missing_pairs_are_left_out_and_counted():
    a, b = rdm(0), rdm(1)
    for rdms, i, j in ((a, 0, 1), (a, 2, 5), (b, 2, 5), (b, 3, 4)):
        rdms.values[i, j] = rdms.values[j, i] = np.nan
    found = fs.compare_rdms(a, b, method="spearman")
    assert found.attrs["n_dropped"] == 3
    x, y = upper(a), upper(b)
    both = ~np.isnan(x + y)
    assert float(found) == pytest.approx(stats.spearmanr(x[both], y[both]).statistic, abs=1e-14)


def test_counts_that_differ_become_a_coordinate():
    a, b = rdm(0, subject=["BE", "KO"]), rdm(1, model=["m", "n"])
    a.values[1, 0, 1] = a.values[1, 1, 0] = np.nan
    found = fs.compare_rdms(a, b)
    assert "n_dropped" not in found.attrs
    assert found["n_dropped"].dims == found.dims
    assert found["n_dropped"].values.tolist() == [[0, 0], [1, 1]]


def test_a_constant_rdm_has_no_correlation():
    constant = make_rdm(1.0 - np.eye(N), xr.Coordinates({"image": NAMES}))
    found = {m: float(fs.compare_rdms(constant, rdm(1), method=m)) for m in MEASURES}
    assert all(np.isnan(found[m]) for m in ("pearson", "spearman", "kendall"))
    assert found["tau-a"] == found["rho-a"] == 0
    assert found["cosine"] > 0


def test_infinite_dissimilarities_count_by_their_rank_only():
    a, b = rdm(0), rdm(1)
    a.values[0, 1] = a.values[1, 0] = np.inf
    with pytest.raises(InvalidInputError, match="The first RDM has infinite"):
        fs.compare_rdms(a, b)
    large = a.where(np.isfinite(a), 1e9)
    for method in ("spearman", "rho-a", "kendall", "tau-a"):
        found = fs.compare_rdms(a, b, method=method)
        assert float(found) == float(fs.compare_rdms(large, b, method=method))


def test_what_is_not_symmetric_is_refused():
    b = rdm(1)
    b.values[4, 2] += 0.1
    with pytest.raises(InvalidInputError, match="The second RDM is not symmetric"):
        fs.compare_rdms(rdm(0), b)
    b.values[4, 2] = np.nan
    with pytest.raises(InvalidInputError, match="not symmetric"):
        fs.compare_rdms(rdm(0), b)
    b.values[4, 2] = b.values[2, 4] * (1 + 1e-9)
    fs.compare_rdms(rdm(0), b)


@pytest.mark.parametrize("method", MEASURES)
def test_blocks_that_fit_the_budget_change_nothing(method):
    a, b = rdm(0, subject=range(7)), rdm(1, model=range(5))
    a.values[2, 0, 1] = a.values[2, 1, 0] = np.nan
    whole = fs.compare_rdms(a, b, method=method)
    everything = fs.compare_rdms(a, method=method)
    for n_fit in (2, 3, 6):
        with fs.set_options(memory_budget=(64 + 32 * n_fit) * N * (N - 1) // 2):
            np.testing.assert_allclose(
                fs.compare_rdms(a, b, method=method), whole, rtol=0, atol=1e-15
            )
            part = fs.compare_rdms(a, method=method)
        np.testing.assert_allclose(part, everything, rtol=0, atol=1e-15)
        np.testing.assert_array_equal(part, part.values.T)


def test_results_can_be_written_and_read(tmp_path):
    found = fs.compare_rdms(rdm(0, subject=["BE", "KO"]), rdm(1))
    found.to_netcdf(tmp_path / "scores.nc", engine="scipy")
    back = xr.load_dataarray(tmp_path / "scores.nc", engine="scipy")
    np.testing.assert_array_equal(back, found)
    assert back.attrs["method"] == "pearson"


# ---------------------------------------------------------------- published numbers


@pytest.fixture
def rdms_92(data_92):
    def read(file, **labels):
        names = data_92 / "images" / "names.csv"
        return fs.read_rdms(data_92 / "rdms" / file, names=names, dims=labels or None)

    return read


MODELS = (
    "animacy", "FaceBodyManmadeNatobj", "monkeyIT", "EVA", "HMAX", "V1", "Silhouette", "RADON",
)  # fmt: skip
SPEARMAN = {
    "human IT": (0.386, 0.277, 0.296, 0.245, 0.160, 0.027, 0.097, 0.038),
    "behaviour": (0.378, 0.366, 0.271, 0.040, 0.161, 0.069, 0.100, -0.013),
}


def test_scores_of_the_92_images_are_those_that_rsatoolbox_gave(rdms_92):
    subjects = {
        "human IT": rdms_92("human_IT_4subj_x92x92.npy", subject=["BE", "KO", "SN", "TI"]),
        "behaviour": rdms_92("behaviour_16x92x92.npy", subject=range(16)),
    }
    models = xr.concat(
        [rdms_92(f"model_{name}_92x92.npy") for name in MODELS],
        dim="model", coords="minimal", compat="override", join="exact", combine_attrs="drop",
    )  # fmt: skip
    models = models.transpose("model", "image", "image_2").assign_coords(model=list(MODELS))
    for name, rdms in subjects.items():
        means = fs.compare_rdms(rdms, models, method="spearman").mean("subject")
        np.testing.assert_allclose(means, SPEARMAN[name], atol=5.1e-4)
    rho_a = fs.compare_rdms(subjects["human IT"], models, method="rho-a").mean("subject")
    assert float(rho_a.sel(model="animacy")) == pytest.approx(0.334, abs=5e-4)
    assert float(rho_a.sel(model="FaceBodyManmadeNatobj")) == pytest.approx(0.205, abs=5e-4)
    pairwise = fs.compare_rdms(subjects["behaviour"])
    mean = pairwise.values[np.triu_indices(16, 1)].mean()
    assert mean == pytest.approx(0.363, abs=5e-4)
