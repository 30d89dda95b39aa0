"""Images in HDF5: equal to the same arrays, read once, refused where axes are in doubt."""

from __future__ import annotations

import pickle
import threading

import numpy as np
import pytest

from featurestore import optional
from featurestore.errors import ImageDecodeError, InvalidInputError, MissingDependencyError
from featurestore.images import hdf5
from featurestore.images.digest import array_digest
from featurestore.images.read import read_images

h5py = pytest.importorskip("h5py")


def brick(n=10, height=6, width=7):
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)


@pytest.fixture
def make(tmp_path, settle):
    """Write datasets into one file, and make it look long untouched."""

    def make(name="stimuli.hdf5", *, fresh=False, userblock=0, **datasets):
        path = tmp_path / name
        with h5py.File(path, "w", userblock_size=userblock) as file:
            for dataset, values in datasets.items():
                file.create_dataset(dataset, data=values, chunks=(4, *values.shape[1:]))
        if not fresh:
            settle(path)
        return path

    return make


@pytest.fixture
def n_rows_read(monkeypatch):
    """How many rows were read to be hashed."""
    rows = []
    original = hdf5._read_block

    def count(dataset, block):
        rows.extend(block)
        return original(dataset, block)

    monkeypatch.setattr(hdf5, "_read_block", count)
    return rows


def test_a_row_equals_the_same_array(make):
    images = read_images(make(imgBrick=brick()), dataset="imgBrick")
    assert images.hex_digests == read_images(brick()).hex_digests
    assert images.names == images.hex_digests
    assert images.coords["index"].tolist() == list(range(10))
    assert images.label == "stimuli.hdf5:imgBrick"
    content = images.content(3)
    np.testing.assert_array_equal(content.data, brick()[3])
    assert content.digest == images.digests[3].tobytes() == array_digest(brick()[3])


@pytest.mark.parametrize(
    ("index", "rows"),
    [
        ([7, 2, 2, 9, 0], [7, 2, 2, 9, 0]),
        (np.array([3, 1]), [3, 1]),
        (np.arange(10) % 3 == 0, [0, 3, 6, 9]),
        (slice(8, 2, -3), [8, 5]),
        (4, [4]),
        ([], []),
    ],
)
def test_an_index_keeps_its_order_and_repetitions(make, index, rows):
    images = read_images(make(d=brick()), dataset="d", index=index)
    assert images.coords["index"].tolist() == rows
    assert [images.content(i).data.tolist() for i in range(len(rows))] == brick()[rows].tolist()


@pytest.mark.parametrize("index", [[10], [-1], [[1]], [0.5], ["a"], np.array([True])])
def test_an_index_beyond_the_dataset_or_of_no_use_is_refused(make, index):
    with pytest.raises(InvalidInputError, match="index="):
        read_images(make(d=brick()), dataset="d", index=index)


def test_rows_can_be_named_and_chosen(make):
    images = read_images(make(d=brick()), dataset="d", index=[5, 6], names=["five", "six"])
    np.testing.assert_array_equal(images[["six"]].content(0).data, brick()[6])


def test_grey_pictures_and_nested_datasets_are_read(make):
    grey = brick()[..., 0]
    images = read_images(make(**{"group/grey": grey}), dataset="/group/grey")
    assert images.digests[1].tobytes() == array_digest(grey[1])


def test_a_matlab_file_is_recognised(make):
    path = make("f.mat", userblock=512, d=brick())
    assert len(read_images(path, dataset="d")) == 10


@pytest.mark.parametrize(
    ("values", "advice"),
    [
        (np.zeros((3, 7, 6, 10), np.uint8), r"transpose\(3, 2, 1, 0\)"),
        (np.zeros((10, 3, 6, 7), np.uint8), r"transpose\(0, 2, 3, 1\)"),
        (np.zeros((10, 3, 7, 3), np.uint8), "transposed"),
        (np.zeros((10, 6, 7, 4), np.uint8), r"\(n, height, width, 3\)"),
        (np.zeros((6, 7, 3), np.uint8), "one colour picture or several grey"),
        (np.zeros((3, 7, 6), np.uint8), "one colour picture or several grey"),
        (np.zeros((6, 7), np.uint8), r"\(n, height, width, 3\)"),
        (np.zeros((10, 6, 7, 3), np.float32), "astype"),
    ],
)
def test_axes_in_doubt_and_other_dtypes_are_refused_with_advice(tmp_path, values, advice):
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["d"] = values
    with pytest.raises(InvalidInputError, match=advice):
        read_images(tmp_path / "f.h5", dataset="d")


@pytest.mark.parametrize("dataset", [None, "nothing", "group"])
def test_a_dataset_that_is_none_is_an_error_that_lists_them(make, dataset):
    path = make(**{"group/a": brick(), "b": brick()})
    with pytest.raises(InvalidInputError, match="'b', 'group/a'"):
        read_images(path, dataset=dataset)


def test_what_is_no_hdf5_file_is_an_error(tmp_path):
    (tmp_path / "f.h5").write_bytes(b"text")
    for path in (tmp_path / "f.h5", tmp_path / "gone.h5"):
        with pytest.raises(InvalidInputError, match="HDF5"):
            read_images(path, dataset="d")


def test_without_h5py_the_error_says_what_to_install(make, monkeypatch):
    def missing(module):
        raise ModuleNotFoundError(name=module)

    monkeypatch.setattr(optional.importlib, "import_module", missing)
    with pytest.raises(MissingDependencyError, match=r"featurestore\[hdf5\]"):
        read_images(make(d=brick()), dataset="d")


def test_each_row_is_hashed_once(make, n_rows_read):
    path = make(d=brick(), e=brick())
    read_images(path, dataset="d", index=[5, 2, 5])
    assert n_rows_read == [2, 5]
    read_images(path, dataset="/d", index=[2, 3, 5])
    assert n_rows_read == [2, 5, 3]
    read_images(path, dataset="e", index=[2])
    assert n_rows_read == [2, 5, 3, 2]


def test_a_fresh_file_is_hashed_each_time(make, n_rows_read):
    path = make(fresh=True, d=brick())
    for _ in range(2):
        read_images(path, dataset="d", index=[1])
    assert n_rows_read == [1, 1]


def test_a_rewritten_file_has_new_digests(make):
    before = read_images(make(d=brick()), dataset="d")
    after = read_images(make(d=brick()[::-1]), dataset="d")
    assert after.hex_digests == before.hex_digests[::-1]
    np.testing.assert_array_equal(before.content(0).data, brick()[9])  # the caller compares digests


def test_a_row_or_dataset_that_is_gone_is_an_error_of_that_image(make):
    images = read_images(make(d=brick()), dataset="d", index=[0, 9], names=["first", "last"])
    make(d=brick()[:5])
    assert images.content(0).digest == images.digests[0].tobytes()
    with pytest.raises(ImageDecodeError) as error:
        images.content(1)
    assert list(error.value.failures) == ["last"]
    make(e=brick())
    with pytest.raises(ImageDecodeError, match="without a dataset"):
        images.content(0)


def test_a_deleted_file_is_an_error_of_its_images(make):
    path = make(d=brick())
    images = read_images(path, dataset="d")
    path.unlink()
    with pytest.raises(ImageDecodeError, match="no such file"):
        images.content(0)


@pytest.mark.parametrize("per_read", [1, 400, 10**6])
def test_blocks_of_any_size_give_the_same_digests(make, monkeypatch, per_read):
    monkeypatch.setattr(hdf5, "READ_NBYTES", per_read)
    monkeypatch.setattr(hdf5, "BATCH", 3)
    images = read_images(make(d=brick()), dataset="d", index=[9, 0, 4, 5, 3])
    expected = [array_digest(brick()[row]) for row in (9, 0, 4, 5, 3)]
    assert [digest.tobytes() for digest in images.digests] == expected


def test_many_threads_read_one_set(make):
    images = read_images(make(d=brick()), dataset="d")
    wrong = []

    def work():
        read = [images.content(i).digest for i in range(len(images))]
        wrong.append(read != [digest.tobytes() for digest in images.digests])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == [False] * 4


def test_a_pickled_set_reads_its_rows(make):
    images = pickle.loads(pickle.dumps(read_images(make(d=brick()), dataset="d")))
    np.testing.assert_array_equal(images.content(2).data, brick()[2])


def test_a_file_without_write_permission_is_read(make):
    path = make(d=brick())
    path.chmod(0o400)
    assert len(read_images(path, dataset="d")) == 10
