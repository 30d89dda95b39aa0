"""From folders, lists, patterns, arrays and PIL images to a set."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import xxhash
from PIL import Image

from featurestore import filehash
from featurestore.errors import ImageDecodeError, InvalidInputError
from featurestore.images.digest import pil_digest
from featurestore.images.imageset import ImageSet
from featurestore.images.read import read_images, take_images
from tests.images.pictures import encoded, exif, png, rgb, write


def test_a_folder_gives_its_images_by_relative_path_sorted_by_code_point(tmp_path):
    names = ["b.png", "B.png", "a/z.png", "a-b.png", "a/é.png", "😀.png", "Z/1.png", "10.png"]
    write(tmp_path / "set", {name: png(i) for i, name in enumerate(names)})
    images = read_images(tmp_path / "set")
    assert images.names == tuple(sorted(names, key=lambda name: [ord(c) for c in name]))
    assert images.label == "set"
    for i, name in enumerate(images.names):
        path = tmp_path / "set" / name
        assert images.coords["path"][i] == path.as_posix()
        assert images.hex_digests[i] == xxhash.xxh3_128_hexdigest(path.read_bytes())
        assert images.content(i).data == path.read_bytes()


def test_class_folders_become_categories_and_targets(tmp_path):
    names = ["dog/1.png", "cat/deep/2.png", "dog/3.png", "emu/4.png"]
    files = {name: png(i) for i, name in enumerate(names)}
    images = read_images(write(tmp_path, files))
    assert images.names == ("cat/deep/2.png", "dog/1.png", "dog/3.png", "emu/4.png")
    assert images.coords["category"].tolist() == ["cat", "dog", "dog", "emu"]
    assert images.coords["target"].tolist() == [0, 1, 1, 2]


def test_images_beside_class_folders_have_no_category(tmp_path):
    images = read_images(write(tmp_path, {"a.png": png(1), "cat/b.png": png(2)}))
    assert images.coords["category"].tolist() == ["", "cat"]
    assert images.coords["target"].tolist() == [-1, 0]


def test_a_flat_folder_has_no_categories(tmp_path):
    images = read_images(write(tmp_path, {"a.png": png(1)}))
    assert list(images.coords) == ["path"]


def test_what_is_no_picture_is_left_out_and_counted(tmp_path, caplog):
    write(
        tmp_path,
        {
            "a.png": png(1),
            "names.txt": b"BM\nP1 a picture",
            "ratings.csv": b"BMI,age\n1,2\n",
            "no suffix": png(2),
            "bitmap": encoded(rgb(3), "BMP"),
            "misnamed.jpg": b"a text file",
            "UPPER.JPG": png(4),
            "figure.svg": b"<svg/>",
            ".hidden.png": png(5),
            "._a.png": b"Mac resource fork",
            ".git/b.png": png(6),
            "__MACOSX/c.png": png(7),
        },
    )
    with caplog.at_level(logging.INFO, "featurestore"):
        images = read_images(tmp_path)
    assert images.names == tuple(
        sorted(["a.png", "no suffix", "bitmap", "misnamed.jpg", "UPPER.JPG", "figure.svg"])
    )
    assert "2 files are no pictures" in caplog.text


def test_an_empty_folder_is_an_error_that_says_what_was_looked_for(tmp_path):
    write(tmp_path, {"notes.txt": b"text"})
    with pytest.raises(InvalidInputError, match=r"no images.*1 other files.*\.jpg"):
        read_images(tmp_path)


def test_a_path_to_nothing_is_an_error(tmp_path):
    with pytest.raises(InvalidInputError, match="no file or folder"):
        read_images(tmp_path / "gone")


def test_one_file_is_a_set_of_one(tmp_path):
    write(tmp_path, {"a.png": png(1)})
    assert read_images(str(tmp_path / "a.png")).names == ("a.png",)


def test_file_names_keep_exactly_their_order(tmp_path):
    write(tmp_path, {f"{c}/{n}.png": png(n) for c in "xy" for n in range(3)})
    wanted = ["y/2.png", "x/0.png", "y/0.png", "x/0.png"]
    images = read_images(tmp_path, file_names=wanted)
    assert images.names == tuple(wanted)
    assert images.coords["category"].tolist() == ["y", "x", "y", "x"]
    assert images.digests[1].tobytes() == images.digests[3].tobytes()


def test_missing_file_names_are_an_error_that_lists_them_all(tmp_path):
    write(tmp_path, {"a.png": png(1)})
    with pytest.raises(ImageDecodeError, match=r"2 of 3.*'gone.png'.*'x/lost.png'") as error:
        read_images(tmp_path, file_names=["gone.png", "a.png", "x/lost.png"])
    assert error.value.failures == {
        "gone.png": "there is no such file",
        "x/lost.png": "there is no such file",
    }


def test_file_names_outside_the_folder_are_refused(tmp_path):
    write(tmp_path, {"in/a.png": png(1), "out.png": png(2)})
    with pytest.raises(InvalidInputError, match="does not lie in"):
        read_images(tmp_path / "in", file_names=["../out.png"])
    with pytest.raises(InvalidInputError, match="must be a list"):
        read_images(tmp_path / "in", file_names="a.png")


def test_a_list_keeps_its_order_and_takes_file_names(tmp_path):
    write(tmp_path, {f"{n}/{n}.png": png(n) for n in range(3)})
    paths = [tmp_path / "2/2.png", str(tmp_path / "0/0.png"), np.str_(tmp_path / "1/1.png")]
    assert read_images(paths).names == ("2.png", "0.png", "1.png")
    assert read_images(path for path in paths) == read_images(paths)
    assert read_images(paths, root=tmp_path).names == ("2/2.png", "0/0.png", "1/1.png")


def test_a_file_outside_root_is_an_error(tmp_path):
    write(tmp_path, {"a/1.png": png(1), "b/1.png": png(2)})
    with pytest.raises(InvalidInputError, match="does not lie in"):
        read_images([tmp_path / "a/1.png"], root=tmp_path / "b")


def test_two_images_of_one_name_are_an_error_that_names_both(tmp_path):
    write(tmp_path, {"a/1.png": png(1), "b/1.png": png(2)})
    paths = [tmp_path / "a/1.png", tmp_path / "b/1.png"]
    with pytest.raises(InvalidInputError, match="root=") as error:
        read_images(paths)
    assert error.value.paths == [path.as_posix() for path in paths]
    assert len(read_images(paths, root=tmp_path)) == 2


def test_the_same_image_may_repeat_and_may_have_two_names(tmp_path):
    write(tmp_path, {"a.png": png(1), "copy.png": png(1)})
    images = read_images([tmp_path / "a.png", tmp_path / "a.png", tmp_path / "copy.png"])
    assert images.names == ("a.png", "a.png", "copy.png")
    assert images.unique().tolist() == [0]


def test_stems_drop_the_suffix_and_nothing_else(tmp_path):
    write(tmp_path, {"x.y/a.b.png": png(1), "c.png": png(2)})
    assert read_images(tmp_path, names="stem").names == ("c", "x.y/a.b")


def test_stems_that_meet_are_an_error(tmp_path):
    write(tmp_path, {"a.png": png(1), "a.jpg": png(2)})
    with pytest.raises(InvalidInputError, match=r"a\.jpg.*a\.png"):
        read_images(tmp_path, names="stem")


def test_given_names_are_used(tmp_path):
    write(tmp_path, {"a.png": png(1), "b.png": png(2)})
    assert read_images(tmp_path, names=["one", "two"]).names == ("one", "two")
    with pytest.raises(InvalidInputError, match="1 names= for 2 images"):
        read_images(tmp_path, names=["one"])
    with pytest.raises(InvalidInputError, match="'stem'"):
        read_images(tmp_path, names="parent")


def test_a_pattern_gives_its_matches_sorted(tmp_path, monkeypatch):
    write(tmp_path / "in[1]", {"b.png": png(1), "a.png": png(2), "c/d.png": png(3), "n.txt": b""})
    monkeypatch.chdir(tmp_path / "in[1]")  # brackets of the working folder are no pattern
    assert read_images("*.png").names == ("a.png", "b.png")
    assert read_images("*").names == ("a.png", "b.png")
    assert read_images(Path("**/*.png")).names == ("a.png", "b.png", "d.png")
    with pytest.raises(InvalidInputError, match="No image matches"):
        read_images("*.gif")


def test_a_file_with_brackets_in_its_name_is_no_pattern(tmp_path):
    write(tmp_path, {"a[1].png": png(1), "a1.png": png(2)})
    assert read_images(tmp_path / "a[1].png").names == ("a[1].png",)


def test_a_dict_names_paths_arrays_or_pil_images(tmp_path):
    write(tmp_path, {"a.png": png(1), "b.png": png(2)})
    images = read_images({"two": tmp_path / "b.png", "one": str(tmp_path / "a.png")})
    assert images.names == ("two", "one")
    assert images.coords["path"][0] == (tmp_path / "b.png").as_posix()
    assert read_images({"x": rgb()}).content(0).kind == "array"
    assert read_images({"x": Image.fromarray(rgb())}).content(0).kind == "pil"
    with pytest.raises(InvalidInputError, match="keys"):
        read_images({"x": rgb()}, names=["y"])


def test_arrays_are_named_by_their_content_and_copied():
    arrays = [rgb(1), rgb(2)[:, :, 0], rgb(1)]
    images = read_images(arrays)
    assert images.names == images.hex_digests
    assert images.names[0] == images.names[2] != images.names[1]
    before = arrays[0].copy()
    arrays[0][:] = 0
    np.testing.assert_array_equal(images.content(0).data, before)
    assert not images.content(0).data.flags.writeable
    assert read_images(list(reversed(arrays)), names=list("abc")).names == ("a", "b", "c")


def test_a_stack_equals_the_list_of_its_pictures():
    stack = np.stack([rgb(1), rgb(2)])
    assert read_images(stack) == read_images(list(stack)) == read_images([rgb(1), rgb(2)])


def test_one_picture_needs_no_list():
    assert read_images(rgb()) == read_images([rgb()])
    assert read_images(rgb()[:, :, 0]) == read_images([rgb()[:, :, 0]])
    image = Image.fromarray(rgb())
    assert read_images(image) == read_images([image])


@pytest.mark.parametrize(
    ("source", "advice"),
    [
        (np.zeros((5, 8, 9), np.uint8), r"list\(array\)"),
        (np.zeros(8, np.uint8), "one picture or several"),
        ([np.zeros((8, 9), np.float32)], "uint8"),
        ([[[0, 1], [2, 3]]], "A list is no image"),
        ([rgb(), "a.png"], "several kinds"),
        ([b"bytes"], "A bytes is no image"),
        (b"bytes", "cannot be read from a bytes"),
        ({"a.png", "b.png"}, "cannot be read from a set"),
        (5, "cannot be read from a int"),
        (None, "cannot be read from a NoneType"),
    ],
)
def test_what_cannot_be_read_is_refused_with_advice(source, advice):
    with pytest.raises(InvalidInputError, match=advice):
        read_images(source)


@pytest.mark.parametrize(
    ("source", "options"),
    [
        (".", {"root": "."}),
        (".", {"dataset": "x"}),
        ([], {"file_names": []}),
        ([rgb()], {"root": "."}),
        ({"a": rgb()}, {"root": "."}),
        ([rgb()], {"index": [0]}),
    ],
)
def test_options_that_mean_nothing_are_refused(source, options):
    with pytest.raises(InvalidInputError, match="means nothing"):
        read_images(source, **options)


def test_no_images_make_an_empty_set():
    images = read_images([])
    assert len(images) == 0
    assert images.digests.shape == (0, 16)
    assert images.unique().shape == (0,)
    assert ImageSet.from_record(images.to_record()) == images


def test_a_pil_image_keeps_its_orientation_and_is_copied():
    image = Image.fromarray(rgb())
    image.getexif()[0x0112] = 6
    images = read_images([image])
    image.putpixel((0, 0), (1, 2, 3))
    kept = images.content(0)
    assert kept.digest == images.digests[0].tobytes()
    assert kept.data.getexif()[0x0112] == 6


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("transparency", [None, 2, b"\x00\x80"])
def test_pil_images_survive_pickling(orientation, transparency):
    image = Image.fromarray(rgb()).quantize(5)
    image.info["transparency"] = transparency
    image.getexif()[0x0112] = orientation
    images = read_images([image])
    back = pickle.loads(pickle.dumps(images))
    assert back.content(0).digest == images.digests[0].tobytes() == pil_digest(image)


def test_an_orientation_corrected_by_hand_counts(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(rgb(), "JPEG", exif=exif(6)))
    with Image.open(path) as image:
        turned = read_images([image])
        image.getexif()[0x0112] = 1
        upright = read_images([image])
    assert upright.hex_digests != turned.hex_digests
    assert upright.content(0).digest == upright.digests[0].tobytes()


def test_a_pil_image_that_cannot_be_loaded_is_named(tmp_path):
    whole = encoded(rgb(0, 100, 100), "JPEG")
    (tmp_path / "half.jpg").write_bytes(whole[: len(whole) // 2])
    with (
        Image.open(tmp_path / "half.jpg") as image,
        pytest.raises(ImageDecodeError, match=r"number 0.*truncated"),
    ):
        read_images([image])


def test_an_opened_file_and_its_bytes_are_two_images(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(rgb(), "JPEG", exif=exif(6)))
    with Image.open(path) as image:
        assert read_images([image]).hex_digests != read_images([path]).hex_digests


def test_columns_become_coordinates(tmp_path):
    write(tmp_path, {"a.png": png(1), "b.png": png(2)})
    images = read_images(tmp_path, columns={"rating": [0.5, 1.5], "category": ["x", "y"]})
    assert images.coords["rating"].tolist() == [0.5, 1.5]
    assert images.coords["target"].tolist() == [0, 1]
    with pytest.raises(InvalidInputError, match="2 images"):
        read_images(tmp_path, columns={"rating": [1, 2, 3]})


def test_a_label_can_be_given(tmp_path):
    assert read_images(write(tmp_path, {"a.png": png()}), label="mine").label == "mine"


def test_take_images_passes_sets_through_and_reads_the_rest(tmp_path):
    images, failures = take_images(write(tmp_path, {"a.png": png()}))
    assert isinstance(images, ImageSet)
    assert failures == {}
    assert take_images(images)[0] is images
    (tmp_path / "dead.png").symlink_to("nowhere")
    images, failures = take_images(tmp_path)
    assert images.names == ("a.png",)
    assert list(failures) == ["dead.png"]
    with pytest.raises(InvalidInputError, match="already"):
        read_images(images)


def test_an_image_that_is_gone_is_named_when_it_is_read(tmp_path):
    images = read_images(write(tmp_path, {"a.png": png(1), "b.png": png(2)}))
    (tmp_path / "b.png").unlink()
    with pytest.raises(ImageDecodeError, match=r"'b.png'") as error:
        images.content(1)
    assert error.value.failures == {"b.png": "there is no such file"}
    assert images.content(0).digest == images.digests[0].tobytes()


def test_an_image_that_was_changed_has_another_digest_when_it_is_read(tmp_path):
    images = read_images(write(tmp_path, {"a.png": png(1)}))
    write(tmp_path, {"a.png": png(2)})
    content = images.content(0)
    assert content.digest == filehash.hash_bytes(png(2)) != images.digests[0].tobytes()


def test_a_second_reading_opens_no_file(tmp_path, settle, monkeypatch):
    write(tmp_path, {f"{n}.png": png(n) for n in range(5)})
    settle(*tmp_path.glob("*.png"))
    images = read_images(tmp_path)
    monkeypatch.setattr(filehash, "open_regular", None)  # any use is a TypeError
    assert read_images(tmp_path) == images


def test_odd_names_are_kept_exactly(tmp_path):
    nfc, nfd = "\u00e9.png", "e\u0301.png"
    names = ["a#b%20?.png", "new\nline.png", "con", "C:\\x.png", "'\".png", nfc, nfd]
    names += ["x" * 200 + ".png", "d" * 200 + "/" + "e" * 150 + "/" + "f" * 100 + ".png"]
    write(tmp_path, {name: png(i) for i, name in enumerate(names)})
    images = read_images(tmp_path)
    assert sorted(images.names) == sorted(names)
    assert ImageSet.from_record(images.to_record()) == images


def test_a_name_that_is_not_unicode_is_refused(tmp_path):
    write(tmp_path, {os.fsdecode(b"bad_\xff.jpg"): png()})
    with pytest.raises(InvalidInputError, match="not valid Unicode"):
        read_images(tmp_path)


def test_links_are_followed_and_loops_survived(tmp_path):
    write(tmp_path / "elsewhere", {"a.png": png(1)})
    write(tmp_path / "set", {"sub/b.png": png(2)})
    (tmp_path / "set/link.png").symlink_to(tmp_path / "elsewhere/a.png")
    (tmp_path / "set/folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/sub/loop").symlink_to(tmp_path / "set")
    (tmp_path / "set/itself").symlink_to(tmp_path / "set/itself")
    images = read_images(tmp_path / "set")
    assert images.names == ("folder/a.png", "link.png", "sub/b.png")
    assert images.hex_digests[0] == images.hex_digests[1]


def test_a_dangling_link_is_an_image_that_is_not_present(tmp_path):
    write(tmp_path, {"a.png": png(1)})
    (tmp_path / "b.png").symlink_to(".git/annex/objects/b.png")
    with pytest.raises(ImageDecodeError, match="datalad get") as error:
        read_images(tmp_path)
    assert list(error.value.failures) == ["b.png"]


def test_a_link_to_itself_is_an_error_of_that_image(tmp_path):
    (tmp_path / "a.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(ImageDecodeError, match=r"'a.png'"):
        read_images(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_fifos_never_block(tmp_path):
    write(tmp_path, {"a.png": png(1)})
    os.mkfifo(tmp_path / "unnamed")
    assert read_images(tmp_path).names == ("a.png",)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageDecodeError, match=r"'pipe.png' \(is a FIFO"):
        read_images(tmp_path)


def test_a_folder_in_a_list_is_an_error(tmp_path):
    write(tmp_path, {"sub/a.png": png(1)})
    with pytest.raises(ImageDecodeError, match="is a folder"):
        read_images([tmp_path / "sub"])


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user without privileges")
def test_a_folder_that_cannot_be_listed_is_named(tmp_path):
    write(tmp_path, {"a.png": png(1), "sub/b.png": png(2)})
    (tmp_path / "sub").chmod(0)
    try:
        with pytest.raises(ImageDecodeError, match="cannot be listed: permission denied") as error:
            read_images(tmp_path)
    finally:
        (tmp_path / "sub").chmod(0o700)
    assert list(error.value.failures) == ["sub/"]


def test_a_folder_that_fails_while_it_is_listed_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"a.png": png(1), "sub/b.png": png(2)})
    original = os.scandir

    def scandir(path):
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", path)
        return original(path)

    monkeypatch.setattr(os, "scandir", scandir)
    images, failures = take_images(tmp_path)
    assert images.names == ("a.png",)
    assert failures == {"sub/": "the folder cannot be listed: permission denied"}


def test_a_home_folder_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    write(tmp_path, {"set/a.png": png()})
    assert read_images("~/set").names == ("a.png",)
    assert read_images("~/set/*.png").names == ("a.png",)
