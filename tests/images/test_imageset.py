"""The set itself: order, names, coordinates, choosing, records."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import ImageDecodeError, InvalidInputError, NotFoundError
from featurestore.filehash import hash_bytes
from featurestore.images.content import ImageContent, InMemory
from featurestore.images.imageset import ImageSet
from tests.images.pictures import rgb


def image_set(names="abcd", **coords):
    contents = [hash_bytes(name.encode()) for name in names]
    digests = np.frombuffer(b"".join(contents), np.uint8)
    source = InMemory(tuple(name.encode() for name in names))
    return ImageSet(list(names), digests, coords, label="letters", source=source)


@st.composite
def image_sets(draw):
    names = draw(st.lists(st.sampled_from("abcdefgé😀"), max_size=10))
    n = len(names)
    columns = {
        "rating": np.array(draw(st.lists(st.floats(width=32), min_size=n, max_size=n)), np.float32),
        "word": draw(st.lists(st.text(st.characters(codec="utf-8")), min_size=n, max_size=n)),
        "count": np.array(draw(st.lists(st.integers(0, 255), min_size=n, max_size=n)), np.uint8),
        "flag": np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)), bool),
    }
    return image_set(names, **columns)


def as_rows(images):
    columns = [np.asarray(values).tolist() for values in images.coords.values()]
    return list(zip(images.names, images.hex_digests, *map(repr_each, columns), strict=True))


def repr_each(values):
    return [repr(value) for value in values]  # so that NaN equals NaN


@given(image_sets(), st.data())
def test_choosing_positions_chooses_the_rows_of_every_part(images, data):
    n = len(images)
    positions = data.draw(st.lists(st.integers(0, n - 1), max_size=12) if n else st.just([]))
    chosen = images[np.array(positions, dtype=np.intp)]
    rows = as_rows(images)
    assert as_rows(chosen) == [rows[i] for i in positions]
    assert [chosen.content(k).data for k in range(len(chosen))] == [
        images.content(i).data for i in positions
    ]


@given(image_sets(), st.data())
def test_slices_masks_and_lists_agree(images, data):
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(images), max_size=len(images))))
    mask = mask.astype(bool)
    assert images[mask] == images[np.flatnonzero(mask)] == images[list(np.flatnonzero(mask))]
    assert as_rows(images[::-1][::-1]) == as_rows(images)
    assert images == images[:]
    assert as_rows(images[1::2]) == as_rows(images)[1::2]


@given(image_sets())
def test_a_record_survives_json_and_comes_back_equal(images):
    record = json.loads(json.dumps(images.to_record()))
    back = ImageSet.from_record(record)
    assert back == images
    assert back.key == images.key
    assert hash(back) == hash(images)
    assert as_rows(back) == as_rows(images)
    assert [v.dtype for v in back.coords.values()] == [v.dtype for v in images.coords.values()]


@given(image_sets())
def test_unique_lists_the_first_place_of_each_content(images):
    assert images.unique().tolist() == [
        i for i, digest in enumerate(images.hex_digests) if digest not in images.hex_digests[:i]
    ]


def test_a_set_shows_itself_in_short():
    shown = repr(image_set("abcab", category=list("xyzxy")))
    assert shown.splitlines() == [
        "<featurestore.ImageSet 'letters': 5 images, 3 distinct>",
        "  names   'a', 'b', 'c', …",
        "  coords  category",
    ]
    assert repr(image_set("a")) == "<featurestore.ImageSet 'letters': 1 image>\n  names   'a'"


def test_iteration_and_length_are_those_of_the_names():
    assert list(image_set()) == list("abcd")
    assert len(image_set()) == 4


def test_names_choose_every_trial_of_theirs():
    images = image_set("abca", trial=[1, 1, 1, 2])
    assert images[["c", "a"]].names == ("c", "a", "a")
    assert images[["c", "a"]].coords["trial"].tolist() == [1, 1, 2]
    assert images["b"].names == ("b",)
    assert images[2].names == ("c",)


def test_an_unknown_name_is_an_error_that_suggests_near_ones():
    with pytest.raises(NotFoundError, match=r"Did you mean 'cat.jpg'"):
        image_set(["cat.jpg", "dog.jpg"])[["cta.jpg"]]


@pytest.mark.parametrize("which", [7, [0, 9], np.array([True, False]), 1.5, None])
def test_what_does_not_choose_images_is_refused(which):
    with pytest.raises(InvalidInputError, match="does not choose"):
        image_set()[which]


def test_nothing_can_be_chosen():
    assert image_set()[[]].names == ()
    assert len(image_set()[np.zeros(4, bool)]) == 0


def test_a_set_and_its_parts_cannot_be_changed():
    images = image_set(rating=[1.0, 2.0, 3.0, 4.0])
    for array in (images.digests, images.coords["rating"]):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0
    with pytest.raises(TypeError):
        images.coords["new"] = 1
    with pytest.raises(AttributeError):
        images.names = ()


def test_a_pickled_set_is_equal_readable_and_still_read_only():
    images = image_set(rating=[1.0, 2.0, 3.0, 4.0])
    back = pickle.loads(pickle.dumps(images))
    assert back == images
    assert back.content(1).data == b"b"
    assert not back.digests.flags.writeable
    assert not back.coords["rating"].flags.writeable


def test_assigned_coordinates_belong_to_a_new_set():
    images = image_set()
    more = images.assign_coords(category=["x", "y", "x", ""], rating=np.arange(4.0))
    assert "category" not in images.coords
    assert more.coords["category"].tolist() == ["x", "y", "x", ""]
    assert more.coords["category"].dtype == object
    assert more.coords["target"].tolist() == [0, 1, 0, -1]
    assert more.names == images.names
    assert more != images


@pytest.mark.parametrize(
    "values",
    [
        [1, 2, 3],
        [1, "a", 2, 3],
        ["a", None, "b", "c"],
        [[1], [2], [3], [4]],
        [[1], [2, 3], 4, 5],
        [1j, 2, 3, 4],
        [b"a", b"b", b"c", b"d"],
        ["\udcff", "b", "c", "d"],
    ],
)
def test_columns_that_are_no_plain_values_for_each_image_are_refused(values):
    with pytest.raises(InvalidInputError, match="'column'"):
        image_set().assign_coords(column=values)


@pytest.mark.parametrize("name", ["image", "digest", "path", "channel"])
def test_reserved_names_of_coordinates_are_refused(name):
    with pytest.raises(InvalidInputError, match="reserved"):
        image_set().assign_coords(**{name: list("abcd")})


def test_dates_and_pandas_columns_are_kept():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"word": list("wxyz"), "n": [1, 2, 3, 4]})
    days = np.array(["2026-01-01", "2026-01-02", "NaT", "2026-01-04"], "datetime64[D]")
    images = image_set().assign_coords(**dict(table.items()), day=days)
    assert images.coords["word"].tolist() == list("wxyz")
    back = ImageSet.from_record(json.loads(json.dumps(images.to_record())))
    np.testing.assert_array_equal(back.coords["day"], days)


def test_the_same_content_may_repeat_under_a_name_or_under_two():
    images = ImageSet(["a", "a", "b"], np.zeros((3, 16), np.uint8))
    assert images.unique().tolist() == [0]


def test_different_content_under_one_name_is_an_error_that_names_both():
    digests = np.arange(48, dtype=np.uint8)
    with pytest.raises(InvalidInputError, match=r"/x/a.*/y/a") as error:
        ImageSet(list("aba"), digests, {"path": ["/x/a", "/b", "/y/a"]})
    assert error.value.name == "a"
    assert error.value.paths == ["/x/a", "/y/a"]


def test_names_that_cannot_be_written_down_are_refused():
    for names in (["a", ""], ["a", 1], ["a", "b\udcff"]):
        with pytest.raises(InvalidInputError, match="cannot be the name"):
            ImageSet(names, np.zeros((2, 16), np.uint8))


def test_the_key_depends_on_every_part_and_on_order():
    images = image_set()
    others = [
        images[::-1],
        images[:3],
        images.assign_coords(rating=[1, 2, 3, 4]),
        images.assign_coords(rating=[1.0, 2.0, 3.0, 4.0]),
        ImageSet(images.names, images.digests, label="other"),
        ImageSet(list("abce"), images.digests, label="letters"),
    ]
    assert len({other.key for other in [images, *others]}) == len(others) + 1


def test_a_set_without_pictures_says_so_when_one_is_read():
    images = ImageSet.from_record(image_set().to_record())
    with pytest.raises(ImageDecodeError, match="only its features were kept") as error:
        images[1:].content(0)
    assert list(error.value.failures) == ["b"]


@pytest.mark.parametrize("position", [-1, 4])
def test_content_beyond_the_set_is_an_error(position):
    with pytest.raises(InvalidInputError, match="no image"):
        image_set().content(position)


def test_content_is_hashed_when_it_is_read():
    array = rgb()
    images = ImageSet(["a"], np.zeros((1, 16), np.uint8), source=InMemory((array,)))
    content = images.content(0)
    assert content.kind == "array"
    assert content == ImageContent.of(content.data)
    assert content.digest != bytes(images.digests[0])


def damaged_records():
    good = image_set(rating=[1.0, 2.0, 3.0, 4.0]).to_record()
    yield {}
    yield good | {"names": ["a"]}
    yield good | {"digests": ["00"] * 64}
    yield good | {"digests": ["zz" * 16] * 4}
    yield good | {"digests": [5] * 4}
    yield good | {"coords": {"rating": {"dtype": "float64", "values": [1.0]}}}
    yield good | {"coords": {"rating": {"dtype": "object", "values": [1.0] * 4}}}
    yield good | {"coords": {"rating": {"dtype": "string", "values": [1.0] * 4}}}
    yield good | {"coords": {"rating": {"dtype": "O8,i4", "values": [1.0] * 4}}}
    yield good | {"coords": {"rating": {"dtype": "uint8", "values": [300] * 4}}}
    yield good | {"coords": []}


@pytest.mark.parametrize("record", list(damaged_records()))
def test_a_damaged_record_is_refused(record):
    with pytest.raises(InvalidInputError):
        ImageSet.from_record(record)
