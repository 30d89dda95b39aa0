"""RDMs from elsewhere: shapes are decided, never guessed; names belong to rows."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import io
from scipy.spatial.distance import pdist, squareform

import featurestore as fs
from featurestore.errors import InvalidInputError, LabelMismatchError, MemoryBudgetError
from featurestore.rdms.square import n_compared
from featurestore.rdms.structure import pair_dim

pd = pytest.importorskip("pandas")

NAMES = ["cat.png", "dog.png", "car.png", "mug.png", "hat.png"]


def vector(n=5, seed=0):
    return pdist(np.random.default_rng(seed).normal(size=(n, 4)))


def square(n=5, seed=0):
    return squareform(vector(n, seed))


@pytest.fixture
def write(tmp_path):
    def write(name, text):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def table(values, names=None, index=None, sep=","):
    rows = [[f"{x!r}" for x in row] for row in np.asarray(values).tolist()]
    if index is not None:
        rows = [[name, *row] for name, row in zip(index, rows, strict=True)]
    if names is not None:
        rows.insert(0, ([""] if index is not None else []) + list(names))
    return "\n".join(sep.join(row) for row in rows) + "\n"


# ---------------------------------------------------------------- arrays


def test_a_square_matrix_gets_names_on_both_axes():
    rdm = fs.read_rdms(square(), names=NAMES, metric="1 - r", coords={"category": [*"aabbb"]})
    assert rdm.dims == ("image", "image_2")
    assert pair_dim(rdm) == "image"
    assert rdm["image_2"].values.tolist() == NAMES
    assert rdm["category_2"].values.tolist() == [*"aabbb"]
    assert rdm.attrs == {"metric": "1 - r"}
    np.testing.assert_array_equal(rdm, square())


def test_a_condensed_vector_is_what_scipy_makes_of_it():
    np.testing.assert_array_equal(fs.read_rdms(vector(), names=NAMES), squareform(vector()))


@given(hnp.arrays(np.float64, st.sampled_from([(1,), (3,), (4, 6), (10, 10), (2, 3, 15)]),
                  elements=st.floats(-1e6, 1e6)))  # fmt: skip
def test_condensed_vectors_come_back_from_the_triangle(vectors):
    n = n_compared(vectors.shape[-1])
    dims = [f"dim{i}" for i in range(vectors.ndim - 1)]
    rdms = fs.read_rdms(vectors, names=[str(i) for i in range(n)], dims=dims)
    upper = np.triu_indices(n, 1)
    np.testing.assert_array_equal(rdms.values[(..., *upper)], vectors)
    np.testing.assert_array_equal(rdms.values, np.swapaxes(rdms.values, -1, -2))
    assert not rdms.values[..., np.arange(n), np.arange(n)].any()


def test_leading_axes_are_named_and_labelled():
    values = np.array([[square(5, 10 * i + j) for j in range(2)] for i in range(3)])
    rdms = fs.read_rdms(values, names=NAMES, dims={"subject": [*"XYZ"], "session": [1, 2]})
    assert rdms.dims == ("subject", "session", "image", "image_2")
    np.testing.assert_array_equal(rdms.sel(subject="Y", session=2), square(5, 11))


def test_positions_do_not_become_labels():
    rdms = fs.read_rdms([square(5, 0), square(5, 1)], names=NAMES, dims="subject")
    assert rdms.dims[0] == "subject"
    assert "subject" not in rdms.coords


def test_ten_vectors_of_five_images_are_not_one_matrix_of_ten():
    vectors = np.stack([vector(5, i) for i in range(10)])
    rdms = fs.read_rdms(vectors, names=NAMES, dims="subject")
    np.testing.assert_array_equal(rdms.values, np.stack([squareform(v) for v in vectors]))
    with pytest.raises(InvalidInputError, match=r"not symmetric|not 0"):
        fs.read_rdms(vectors, names=[str(i) for i in range(10)])
    ten = square(10)
    assert fs.read_rdms(ten, names=[str(i) for i in range(10)]).shape == (10, 10)


def test_three_by_three_is_what_the_dims_say():
    assert fs.read_rdms(square(3), names=[*"abc"]).dims == ("image", "image_2")
    vectors = np.arange(9.0).reshape(3, 3)
    with pytest.raises(InvalidInputError, match="not 0"):
        fs.read_rdms(vectors, names=[*"abc"])
    rdms = fs.read_rdms(vectors, names=[*"abc"], dims="subject")
    np.testing.assert_array_equal(rdms[1], squareform(vectors[1]))
    rdms = fs.read_rdms(square(3)[None], names=[*"abc"], dims="subject")
    np.testing.assert_array_equal(rdms[0], square(3))


@pytest.mark.parametrize(
    ("dtype", "kept"),
    [(np.float16, "f4"), (np.float32, "f4"), (np.float64, "f8"), (np.int64, "f8"), (bool, "f8")],
)
def test_numbers_keep_float32_and_become_float64_otherwise(dtype, kept):
    assert fs.read_rdms(square().astype(dtype), names=NAMES).dtype == kept


def test_the_callers_array_is_left_as_it_is():
    values = square()
    values[0, 1] += 1e-9
    values[2, 2] = 1e-9
    before = values.copy()
    rdm = fs.read_rdms(values, names=NAMES)
    np.testing.assert_array_equal(values, before)
    np.testing.assert_array_equal(rdm.values, rdm.values.T)
    assert rdm.values[2, 2] == 0
    assert rdm.values[0, 1] == (before[0, 1] + before[1, 0]) / 2


def test_asymmetry_beyond_rounding_is_refused_and_located():
    n = 1100  # more than one band
    values = square(n)
    values[1000, 20] += 1e-5 * values.max()
    with pytest.raises(InvalidInputError, match=r"not symmetric.*\(20, 1000\)") as info:
        fs.read_rdms(values, names=[str(i) for i in range(n)])
    assert info.value.positions == (20, 1000)
    values[1000, 20] = values[20, 1000] + 1e-7 * values.max()
    rdm = fs.read_rdms(values, names=[str(i) for i in range(n)]).values
    np.testing.assert_array_equal(rdm, rdm.T)


def test_a_similarity_matrix_is_recognised():
    similarity = np.corrcoef(np.random.default_rng(0).normal(size=(5, 20)))
    with pytest.raises(InvalidInputError, match=r"similarity matrix.*1 − similarity"):
        fs.read_rdms(similarity, names=NAMES)
    np.testing.assert_array_equal(
        fs.read_rdms(1 - similarity, names=NAMES).values[0, 1:], 1 - similarity[0, 1:]
    )


def test_something_else_on_the_diagonal_is_refused_with_the_rdm_it_is_in():
    values = np.stack([square(), square()])
    values[1, 3, 3] = 0.5
    with pytest.raises(InvalidInputError, match=r"of RDM 1 is not 0: 0\.5 at position 3"):
        fs.read_rdms(values, names=NAMES, dims="subject")


@pytest.mark.parametrize(("fill", "name"), [(0.0, "lower"), (np.nan, "lower"), (0.0, "upper")])
def test_one_triangle_alone_is_refused_with_advice(fill, name):
    values = square()
    values[np.tril_indices(5, -1) if name == "lower" else np.triu_indices(5, 1)] = fill
    with pytest.raises(InvalidInputError, match=f"The {name} triangle is empty"):
        fs.read_rdms(values, names=NAMES)


def test_missing_pairs_stay_missing_and_the_diagonal_is_zero():
    values = square()
    values[1, 2] = values[2, 1] = np.nan
    values[np.arange(5), np.arange(5)] = np.nan
    rdm = fs.read_rdms(values, names=NAMES).values
    assert np.isnan(rdm[1, 2])
    assert np.isnan(rdm).sum() == 2
    masked = np.ma.masked_array(square(), np.isnan(values))
    np.testing.assert_array_equal(fs.read_rdms(masked, names=NAMES), rdm)


def test_what_is_missing_on_one_side_only_is_refused():
    values = square()
    values[1, 2] = np.nan
    with pytest.raises(InvalidInputError, match="not symmetric"):
        fs.read_rdms(values, names=NAMES)


def test_negative_dissimilarities_are_kept_and_infinite_ones_refused():
    assert fs.read_rdms(-vector(), names=NAMES).values.min() < 0
    with pytest.raises(InvalidInputError, match="infinite"):
        fs.read_rdms(np.where(square() > 2, np.inf, square()), names=NAMES)


@pytest.mark.parametrize(
    ("values", "match"),
    [
        (square(4), "5 names.*4 × 4 would be square for 4 images"),
        (vector(4), "5 names.*condensed for 4 images"),
        (np.zeros((5, 4)), "no RDM: the last two axes"),
        (np.zeros((10, 2)), "Each column is one: transpose it"),
        (np.zeros((5, 5, 2)), "numpy.moveaxis"),
        (np.float64(3), "one number"),
        (np.zeros((5, 5), complex), "complex128"),
        ([[0, 1], [1]], "do not make an array"),
        (np.array([["a"] * 5] * 5), "real numbers"),
    ],
)
def test_what_is_no_rdm_of_so_many_images_is_refused(values, match):
    with pytest.raises(InvalidInputError, match=match):
        fs.read_rdms(values, names=NAMES)


@pytest.mark.parametrize(
    ("dims", "match"),
    [
        (None, "2 leading axes \\(of length 2 and 3\\)"),
        (("subject",), "names 1"),
        (("subject", "subject"), "own name"),
        (("subject", "image"), "own name"),
        (("subject", "image_2"), "own name"),
        ({"subject": [1, 2], "session": [1, 2]}, "shape \\(2,\\); there are 3"),
        ({"subject": [1, 1], "session": None}, "repeat"),
        ({"subject": [object(), 1], "session": None}, "string, number or date"),
    ],
)
def test_leading_axes_need_a_name_and_labels_of_their_own(dims, match):
    values = np.zeros((2, 3, 5, 5))
    with pytest.raises(InvalidInputError, match=match):
        fs.read_rdms(values, names=NAMES, dims=dims)


def test_dims_without_leading_axes_are_refused():
    with pytest.raises(InvalidInputError, match="or leave dims out"):
        fs.read_rdms(square(), names=NAMES, dims="subject")


# ---------------------------------------------------------------- names


def test_names_are_needed():
    with pytest.raises(InvalidInputError, match="names="):
        fs.read_rdms(square())


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([*"abcda"], "occur more than once, such as 'a'"),
        ([1, 2, 3, 4, 5], "use a string"),
        ({"a": 1}, "not a mapping"),
        ("nowhere.csv", "no such file"),
    ],
)
def test_names_that_name_nothing_are_refused(names, match):
    with pytest.raises(InvalidInputError, match=match):
        fs.read_rdms(square(), names=names)


def test_an_image_set_brings_digests_and_coordinates():
    pixels = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    images = fs.read_images(pixels, names=NAMES, columns={"category": [*"aabbb"]})
    rdm = fs.read_rdms(square(), names=images)
    assert rdm["digest"].values.tolist() == list(images.hex_digests)
    assert rdm["digest_2"].values.tolist() == list(images.hex_digests)
    assert rdm["category"].values.tolist() == [*"aabbb"]
    replaced = fs.read_rdms(square(), names=images, coords={"category": [*"xyxyx"]})
    assert replaced["category_2"].values.tolist() == [*"xyxyx"]


@pytest.mark.parametrize("column", ["image", "file", "name"])
def test_names_from_a_table(write, column):
    path = write("names.csv", f"number,{column}\n" + "".join(f"{i},{n}\n" for i, n in
                                                               enumerate(NAMES)))  # fmt: skip
    assert fs.read_rdms(square(), names=path)["image"].values.tolist() == NAMES


def test_names_from_lines_may_have_blanks_and_commas(write):
    names = ["a cat, black.png", *NAMES[1:]]
    path = write("names.txt", "\n".join(names) + "\n")
    assert fs.read_rdms(square(), names=path)["image"].values.tolist() == names


def test_a_table_with_two_columns_of_names_is_refused(write):
    path = write("names.csv", "file,name\na,b\n")
    with pytest.raises(InvalidInputError, match="columns 'file', 'name'"):
        fs.read_rdms(square(), names=path)
    path = write("names.csv", "one,two\na,b\n")
    with pytest.raises(InvalidInputError, match=r"no column of names.*'one', 'two'"):
        fs.read_rdms(square(), names=path)


def test_coordinates_must_fit_and_not_clash():
    with pytest.raises(InvalidInputError, match="5 images"):
        fs.read_rdms(square(), names=NAMES, coords={"category": [*"ab"]})
    for taken in ("image", "image_2", "subject"):
        with pytest.raises(InvalidInputError, match="cannot be"):
            fs.read_rdms(square()[None], names=NAMES, dims="subject", coords={taken: [*"abcde"]})
    with pytest.raises(InvalidInputError, match="'a_2'"):
        fs.read_rdms(square(), names=NAMES, coords={"a": [*"abcde"], "a_2": [*"abcde"]})


def test_texts_can_be_compared_instead_of_images():
    rdm = fs.read_rdms(square(), names=["a cat", "a dog", "a car", "a mug", "a hat"], dim="text")
    assert rdm.dims == ("text", "text_2")


def test_a_frame_is_read_by_its_names():
    frame = pd.DataFrame(square(), NAMES, NAMES)
    shuffled = frame[NAMES[::-1]]
    np.testing.assert_array_equal(fs.read_rdms(shuffled), square())
    np.testing.assert_array_equal(fs.read_rdms(pd.DataFrame(square()), names=NAMES), square())
    with pytest.raises(InvalidInputError, match="same names"):
        fs.read_rdms(frame.rename(columns={"cat.png": "cow.png"}))


def test_labelled_arrays_are_sent_back():
    with pytest.raises(InvalidInputError, match="use it as it is"):
        fs.read_rdms(xr.DataArray(square()), names=NAMES)
    with pytest.raises(InvalidInputError, match="chooses a variable of a file"):
        fs.read_rdms(square(), names=NAMES, key="a")


# ---------------------------------------------------------------- text files


@pytest.mark.parametrize("sep", [",", ";", "\t", " "])
def test_a_plain_table_is_read_whatever_separates_its_cells(write, sep):
    path = write("rdm.txt", table(square(), sep=sep))
    np.testing.assert_array_equal(fs.read_rdms(path, names=NAMES), square())


@pytest.mark.parametrize("which", ["both", "columns", "rows"])
def test_names_in_a_table_are_taken(write, which):
    text = table(
        square(), NAMES if which != "rows" else None, NAMES if which != "columns" else None
    )
    rdm = fs.read_rdms(write("rdm.csv", text))
    assert rdm["image"].values.tolist() == NAMES
    np.testing.assert_array_equal(rdm, square())


@pytest.mark.parametrize("corner", ["", "image"])
def test_a_table_that_pandas_wrote_is_read(tmp_path, corner):
    for names in (NAMES, [str(i) for i in range(5)]):
        path = tmp_path / "rdm.csv"
        pd.DataFrame(square(), names, names).to_csv(path, index_label=corner)
        rdm = fs.read_rdms(path)
        assert rdm["image"].values.tolist() == names
        np.testing.assert_array_equal(rdm, square())


def test_a_table_that_r_wrote_is_read(write):
    text = table(square(), NAMES, NAMES, sep=" ").lstrip(" ")
    np.testing.assert_array_equal(fs.read_rdms(write("rdm.txt", text)), square())


def test_columns_in_another_order_are_brought_into_that_of_the_rows(write):
    order = [3, 0, 4, 1, 2]
    text = table(square()[:, order], [NAMES[i] for i in order], NAMES)
    np.testing.assert_array_equal(fs.read_rdms(write("rdm.csv", text)), square())


def test_given_names_decide_on_the_order_of_a_table_that_has_names(write):
    path = write("rdm.csv", table(square(), NAMES, NAMES))
    rdm = fs.read_rdms(path, names=NAMES[::-1])
    assert rdm["image"].values.tolist() == NAMES[::-1]
    np.testing.assert_array_equal(rdm, square()[::-1, ::-1])
    with pytest.raises(LabelMismatchError, match=r"Did you mean 'cat\.png'") as info:
        fs.read_rdms(path, names=["cat.jpg", *NAMES[1:]])
    assert info.value.only_given == ("cat.jpg",)
    assert info.value.only_file == ("cat.png",)


def test_an_empty_diagonal_is_no_row_of_names(write):
    rows = table(square(3)).splitlines()
    cells = [row.split(",") for row in rows]
    for i in range(3):
        cells[i][i] = ""
    path = write("rdm.csv", "\n".join(",".join(row) for row in cells))
    np.testing.assert_array_equal(fs.read_rdms(path, names=[*"abc"]), square(3))


@pytest.mark.parametrize("header", [True, False])
@pytest.mark.parametrize("both_ways", [True, False])
def test_one_pair_per_line(write, header, both_ways):
    places = [(i, j) for i in range(5) for j in range(5) if i < j or (both_ways and i != j)]
    lines = [f"{NAMES[i]},{NAMES[j]},{float(square()[i, j])!r}" for i, j in places]
    if header:
        lines.insert(0, "image,image_2,dissimilarity")
    rdm = fs.read_rdms(write("rdm.csv", "\n".join(lines)))
    assert rdm["image"].values.tolist() == NAMES
    np.testing.assert_array_equal(rdm, square())


def test_numbered_images_one_pair_per_line(write):
    places = [(i, j) for i in range(5) for j in range(i + 1, 5)]
    lines = ["a,b,d", *(f"{i},{j},{float(square()[i, j])!r}" for i, j in places)]
    rdm = fs.read_rdms(write("rdm.csv", "\n".join(lines)))
    assert rdm["image"].values.tolist() == [*"01234"]
    np.testing.assert_array_equal(rdm, square())


def test_two_named_images_are_no_list_of_pairs(write):
    rdm = fs.read_rdms(write("rdm.csv", ",a,b\na,0,1.5\nb,1.5,0\n"))
    assert rdm["image"].values.tolist() == ["a", "b"]
    assert rdm.values[0, 1] == 1.5


def test_condensed_text_in_a_column_a_row_or_several_rows(write):
    column = write("rdm.csv", "dissimilarity\n" + "\n".join(map(repr, vector().tolist())))
    np.testing.assert_array_equal(fs.read_rdms(column, names=NAMES), square())
    row = write("row.csv", ",".join(map(repr, vector().tolist())))
    np.testing.assert_array_equal(fs.read_rdms(row, names=NAMES), square())
    rows = write("rows.csv", table([vector(5, 0), vector(5, 1)]))
    rdms = fs.read_rdms(rows, names=NAMES, dims="subject")
    np.testing.assert_array_equal(rdms[1], square(5, 1))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("", "empty"),
        ("0,1\n1,0,3\n", "line 2 has 3 cells"),
        (",a,b\na,0,x\nb,x,0\n", "'x' in row 2, column 3, is no number"),
        (",a,b\na,0,1\nc,1,0\n", "do not name the same images; 'c'"),
        (",a,a\na,0,1\na,1,0\n", "'a' more than once"),
        ("x,y,d\na,b,1\nb,a,2\na,c,1\nb,c,1\n", "two dissimilarities: 1 and 2"),
        ("x,y,d\na,b,1\nc,d,1\n", "lacks 4 pairs of its 4 images, such as 'a' and 'c'"),
        (",a\na,0,1\n,1,0\n", "'' cannot be the name"),
        ("a,b,c,d\n0,1,2,3\n1,0,2,3\n", "not square"),
    ],
)
def test_tables_that_cannot_be_read_say_why(write, text, match):
    with pytest.raises(InvalidInputError, match=match):
        fs.read_rdms(write("rdm.csv", text))


def test_missing_cells_are_missing_pairs(write):
    values = square()
    values[1, 2] = values[2, 1] = np.nan
    for word in ("", "NA", "nan"):
        text = table(values).replace("nan", word)
        np.testing.assert_array_equal(fs.read_rdms(write("rdm.csv", text), names=NAMES), values)


# ---------------------------------------------------------------- NumPy and MATLAB files


def test_npy_with_its_origin(tmp_path):
    path = tmp_path / "rdm.npy"
    np.save(path, square())
    rdm = fs.read_rdms(path, names=NAMES)
    np.testing.assert_array_equal(rdm, square())
    assert rdm.attrs["source"] == "rdm.npy"
    assert len(rdm.attrs["source_digest"]) == 32
    json.dumps(rdm.attrs)


def test_nothing_is_unpickled(tmp_path):
    path = tmp_path / "rdm.npy"
    np.save(path, np.array([square(), None], dtype=object), allow_pickle=True)
    with pytest.raises(InvalidInputError, match=r"Python objects.*can run code"):
        fs.read_rdms(path, names=NAMES)


def test_npz_takes_what_fits_or_what_is_named(tmp_path):
    path = tmp_path / "rdm.npz"
    np.savez(path, rdm=square(), other=np.zeros(7))
    np.testing.assert_array_equal(fs.read_rdms(path, names=NAMES), square())
    np.savez(path, rdm=square(), second=square(5, 1), ratings=np.zeros(7))
    with pytest.raises(InvalidInputError, match=r"2 arrays.*'second' \(5 × 5\).*key="):
        fs.read_rdms(path, names=NAMES)
    found = fs.read_rdms(path, names=NAMES, key="second")
    np.testing.assert_array_equal(found, square(5, 1))
    assert found.attrs["source_variable"] == "second"
    with pytest.raises(InvalidInputError, match="Did you mean 'second'"):
        fs.read_rdms(path, names=NAMES, key="secnd")


@pytest.mark.parametrize("layout", ["square", "row", "last axis", "condensed last axis"])
def test_matlab_arrays_in_every_layout(tmp_path, layout):
    path = tmp_path / "rdm.mat"
    stack = np.stack([square(5, 0), square(5, 1)])
    values = {
        "square": square(),
        "row": vector()[None],
        "last axis": np.moveaxis(stack, 0, -1),
        "condensed last axis": np.stack([vector(5, 0), vector(5, 1)], -1)[None],
    }[layout]
    io.savemat(path, {"rdm": values, "labels": np.arange(5.0), "text": "hello"})
    several = layout.endswith("last axis")
    rdm = fs.read_rdms(path, names=NAMES, dims="subject" if several else None)
    np.testing.assert_array_equal(rdm, stack if several else square())
    assert rdm.attrs["source_variable"] == "rdm"


def test_as_many_matlab_rdms_as_images(tmp_path):
    path = tmp_path / "rdm.mat"
    stack = np.stack([square(5, i) for i in range(5)])
    for values in (stack, np.moveaxis(stack, 0, -1)):
        io.savemat(path, {"rdm": values})
        np.testing.assert_array_equal(fs.read_rdms(path, names=NAMES, dims="subject"), stack)


def structs(shape, field="RDM"):
    out = np.empty(shape, dtype=[(field, object), ("name", object), ("color", object)])
    for number, place in enumerate(np.ndindex(shape)):
        out[place] = (square(5, number), f"model {number}", np.zeros(3))
    return out


def test_the_structs_of_the_rsa_toolbox(tmp_path):
    path = tmp_path / "rdm.mat"
    io.savemat(path, {"Models": structs((1, 3))})
    rdms = fs.read_rdms(path, names=NAMES, dims="model")
    assert rdms["model"].values.tolist() == ["model 0", "model 1", "model 2"]
    np.testing.assert_array_equal(rdms.sel(model="model 2"), square(5, 2))
    io.savemat(path, {"RDMs": structs((4, 2))})
    rdms = fs.read_rdms(path, names=NAMES, dims=("subject", "session"))
    np.testing.assert_array_equal(rdms[3, 1], square(5, 7))
    io.savemat(path, {"one": structs((1, 1))})
    np.testing.assert_array_equal(fs.read_rdms(path, names=NAMES), square())


def test_fields_of_a_matlab_struct_are_chosen_by_their_path(tmp_path):
    path = tmp_path / "rdm.mat"
    io.savemat(path, {"results": {"behaviour": square(5, 1), "brain": square(5, 2), "n": 5}})
    with pytest.raises(InvalidInputError, match=r"2 variables.*'results.behaviour' \(5 × 5\)"):
        fs.read_rdms(path, names=NAMES)
    np.testing.assert_array_equal(
        fs.read_rdms(path, names=NAMES, key="results.brain"), square(5, 2)
    )
    with pytest.raises(InvalidInputError, match=r"Did you mean 'results\.brain'"):
        fs.read_rdms(path, names=NAMES, key="result.brain")


def test_matlab_files_of_version_7_3(tmp_path):
    h5py = pytest.importorskip("h5py")
    path = tmp_path / "rdm.mat"
    stack = np.stack([square(5, 0), square(5, 1), square(5, 2)])
    with h5py.File(path, "w", userblock_size=512) as file:
        file["rdms"] = np.moveaxis(stack, 0, -1).T  # MATLAB writes its axes the other way round
        text = file.create_dataset("text", data=np.zeros((5, 5), np.uint16))
        text.attrs["MATLAB_class"] = np.bytes_("char")
        file["group/one"] = square(5, 3)
    rdms = fs.read_rdms(path, names=NAMES, dims="subject", key="rdms")
    np.testing.assert_array_equal(rdms, stack)
    np.testing.assert_array_equal(fs.read_rdms(path, names=NAMES, key="group.one"), square(5, 3))
    with pytest.raises(InvalidInputError, match="2 variables"):
        fs.read_rdms(path, names=NAMES)


@pytest.mark.parametrize("suffix", [".npy", ".npz", ".mat"])
def test_damaged_files_are_refused_not_fatal(tmp_path, suffix):
    path = tmp_path / f"rdm{suffix}"
    writers = {
        ".npy": lambda: np.save(path, square()),
        ".npz": lambda: np.savez(path, rdm=square()),
        ".mat": lambda: io.savemat(path, {"rdm": square()}, do_compression=True),
    }
    writers[suffix]()
    whole = path.read_bytes()
    for length in (0, 1, 20, 130, 140, len(whole) // 2, len(whole) - 9):
        path.write_bytes(whole[:length])
        with pytest.raises(InvalidInputError, match=r"cannot be read|no variable"):
            fs.read_rdms(path, names=NAMES)


def test_files_that_are_not_there_or_of_another_kind(tmp_path):
    with pytest.raises(InvalidInputError, match="There is no file"):
        fs.read_rdms(tmp_path / "no.npy", names=NAMES)
    with pytest.raises(InvalidInputError, match=r"\.npy, \.npz, \.mat, \.csv"):
        fs.read_rdms(tmp_path / "rdm.pkl", names=NAMES)
    np.save(tmp_path / "rdm.npy", square())
    with pytest.raises(InvalidInputError, match=r"a \.npy file has none"):
        fs.read_rdms(tmp_path / "rdm.npy", names=NAMES, key="a")
    io.savemat(tmp_path / "rdm.mat", {"rdm": square()})
    with pytest.raises(InvalidInputError, match="names="):
        fs.read_rdms(tmp_path / "rdm.mat")


def test_a_file_larger_than_the_budget_is_not_opened(tmp_path):
    np.save(tmp_path / "rdm.npy", square())
    with fs.set_options(memory_budget=100), pytest.raises(MemoryBudgetError) as info:
        fs.read_rdms(tmp_path / "rdm.npy", names=NAMES)
    assert info.value.allowed_nbytes == 100


def test_the_92_image_rdms_are_read(data_92):
    rdms = fs.read_rdms(
        data_92 / "rdms" / "human_IT_4subj_x_2sess_x92x92.npy",
        names=data_92 / "images" / "names.csv",
        dims={"subject": ["BE", "KO", "SN", "TI"], "session": [1, 2]},
        metric="1 - Pearson r",
    )
    assert rdms.sizes == {"subject": 4, "session": 2, "image": 92, "image_2": 92}
    assert rdms["image"].values[0] == "01_human-bodypart.png"
    mean = np.load(data_92 / "rdms" / "human_IT_fig1_mean_92x92.npy")
    np.testing.assert_allclose(rdms.mean(["subject", "session"]), mean, atol=1e-6)


def test_names_beside_an_npy_file_are_its_own(tmp_path):
    rng = np.random.default_rng(0)
    square = squareform(rng.random(15))
    np.save(tmp_path / "net.npy", square)
    own = [f"im{n}" for n in range(6)]
    (tmp_path / "net.names.txt").write_text("".join(f"{name}\n" for name in own))
    assert fs.read_rdms(tmp_path / "net.npy").image.values.tolist() == own
    order = rng.permutation(6)
    given = fs.read_rdms(tmp_path / "net.npy", names=[own[n] for n in order])
    np.testing.assert_array_equal(given.values, square[np.ix_(order, order)])
    with pytest.raises(InvalidInputError):
        fs.read_rdms(tmp_path / "net.npy", names=list("abcdef"))
