"""What identifies a picture in memory."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from featurestore.errors import InvalidInputError
from featurestore.filehash import hash_bytes
from featurestore.images.digest import array_digest, pil_digest
from tests.images.pictures import exif, rgb

GOLDEN = json.loads(
    (Path(__file__).parents[1] / "conformance" / "image_digests.json").read_text("utf-8")
)
SHAPES = st.one_of(
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
    hnp.array_shapes(min_dims=2, max_dims=2, max_side=9).map(lambda shape: (*shape, 3)),
)
PICTURES = SHAPES.flatmap(lambda shape: hnp.arrays(np.uint8, shape))


def ramp(*shape):
    return (np.arange(np.prod(shape)) % 251).astype(np.uint8).reshape(shape)


def palette_image(**info):
    image = Image.frombytes("P", (3, 2), bytes([0, 1, 1, 0, 1, 0]))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.info.update(info)
    return image


def test_an_array_hashes_a_spelled_out_header_and_its_bytes():
    array = ramp(2, 3, 3)
    header = b'{"dtype":"uint8","kind":"array","mode":"RGB","shape":[2,3,3]}'
    expected = xxhash.xxh3_128(b"featurestore:image:1\n" + header + b"\n" + bytes(ramp(18)))
    assert array_digest(array) == expected.digest()


def test_a_pil_image_hashes_a_spelled_out_header_and_its_bytes():
    header = (
        b'{"dtype":"bytes","kind":"pil","mode":"L","orientation":1,"palette":null,'
        b'"shape":[2,3],"transparency":null}'
    )
    expected = xxhash.xxh3_128(b"featurestore:image:1\n" + header + b"\n" + bytes(ramp(6)))
    assert pil_digest(Image.fromarray(ramp(2, 3))) == expected.digest()


def golden_digests():
    orientated = Image.fromarray(ramp(2, 3, 3))
    orientated.getexif()[0x0112] = 6
    wide = Image.fromarray(ramp(2, 3).astype(np.int32) * 1000)
    return {
        "bytes:empty": hash_bytes(b""),
        "bytes:abc": hash_bytes(b"abc"),
        "array:grey 2x3": array_digest(ramp(2, 3)),
        "array:grey 3x2": array_digest(ramp(3, 2)),
        "array:rgb 2x3": array_digest(ramp(2, 3, 3)),
        "array:rgb 64x48": array_digest(ramp(64, 48, 3)),
        "pil:L 2x3": pil_digest(Image.fromarray(ramp(2, 3))),
        "pil:RGB 2x3": pil_digest(Image.fromarray(ramp(2, 3, 3))),
        "pil:RGB 2x3 orientation 6": pil_digest(orientated),
        "pil:RGBA 2x3": pil_digest(Image.fromarray(ramp(2, 3, 4))),
        "pil:1 2x3": pil_digest(Image.fromarray(ramp(2, 3) % 2 == 0)),
        "pil:I 2x3": pil_digest(wide),
        "pil:F 2x3": pil_digest(Image.fromarray(ramp(2, 3).astype(np.float32) / 8)),
        "pil:I;16 2x3": pil_digest(Image.fromarray(ramp(2, 3).astype(np.uint16) * 1000)),
        "pil:P 2x3": pil_digest(palette_image()),
        "pil:P 2x3 transparency 1": pil_digest(palette_image(transparency=1)),
        "pil:P 2x3 transparency bytes": pil_digest(palette_image(transparency=b"\x00\x80")),
    }


def test_digests_are_those_of_every_release():
    found = {name: digest.hex() for name, digest in golden_digests().items()}
    assert {name: found[name] for name in GOLDEN} == GOLDEN
    assert len(set(GOLDEN.values())) == len(GOLDEN)


@given(PICTURES)
def test_the_digest_of_an_array_does_not_depend_on_its_memory_layout(array):
    digest = array_digest(array)
    assert array_digest(np.asfortranarray(array)) == digest
    assert array_digest(array[::-1, ::-1].copy()[::-1, ::-1]) == digest
    spread = np.zeros((array.shape[0] * 2, *array.shape[1:]), np.uint8)
    spread[::2] = array
    assert array_digest(spread[::2]) == digest


@given(PICTURES, PICTURES)
def test_two_arrays_have_one_digest_only_if_they_are_equal(one, two):
    assert (array_digest(one) == array_digest(two)) == np.array_equal(one, two)


def test_equal_bytes_of_another_shape_are_another_image():
    shapes = [(6, 6), (4, 9), (9, 4), (4, 3, 3), (3, 4, 3), (2, 18)]
    assert len({array_digest(ramp(*shape)) for shape in shapes}) == len(shapes)


def test_an_array_a_pil_image_and_a_file_of_equal_pixels_are_three_images():
    array = rgb()
    digests = {array_digest(array), pil_digest(Image.fromarray(array)), hash_bytes(array.tobytes())}
    assert len(digests) == 3


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (np.zeros((4, 4, 3)), "uint8"),
        (np.zeros((4, 4, 3), bool), "uint8"),
        (np.zeros((4, 4, 4), np.uint8), "PIL.Image.fromarray"),
        (np.zeros((3, 4, 4), np.uint8), "transpose"),
        (np.zeros((4, 4, 1), np.uint8), "drop the last axis"),
        (np.zeros((4, 4, 2), np.uint8), "height x width"),
        (np.zeros(4, np.uint8), "height x width"),
        (np.zeros((0, 4), np.uint8), "no pixels"),
    ],
)
def test_what_is_no_picture_is_refused_with_advice(array, advice):
    with pytest.raises(InvalidInputError, match=advice):
        array_digest(array)


def test_what_changes_the_pixels_of_a_pil_image_changes_its_digest():
    variants = [palette_image(), palette_image(transparency=0), palette_image(transparency=b"\7")]
    other = palette_image()
    other.putpalette([11, 20, 30, 40, 50, 60])
    turned = palette_image()
    turned.getexif()[0x0112] = 3
    assert len({pil_digest(image) for image in [*variants, other, turned]}) == 5


def test_what_does_not_change_the_pixels_of_a_pil_image_does_not_change_its_digest():
    image = Image.fromarray(rgb())
    digest = pil_digest(image)
    image.info.update(dpi=(300, 300), comment=b"hello", icc_profile=b"profile")
    assert pil_digest(image) == digest


@pytest.mark.parametrize("transparency", [1, b"\x00\x80"])
def test_using_a_palette_image_does_not_change_its_digest(transparency):
    image = palette_image(transparency=transparency)
    digest = pil_digest(image)
    image.convert("RGBA")  # Pillow writes the transparency into the palette here
    assert pil_digest(image) == digest
    assert pil_digest(image.copy()) == digest


def test_orientation_counts_whether_set_by_hand_or_read_from_a_file(tmp_path):
    path = tmp_path / "turned.png"
    Image.fromarray(rgb()).save(path, exif=exif(6))
    by_hand = Image.fromarray(rgb())
    by_hand.getexif()[0x0112] = 6
    with Image.open(path) as from_file:
        assert pil_digest(from_file) == pil_digest(by_hand) != pil_digest(Image.fromarray(rgb()))


MODES = "1 L LA La P PA RGB RGBA RGBa RGBX CMYK YCbCr LAB HSV I F I;16 I;16B"


@pytest.mark.parametrize("mode", MODES.split())
def test_every_mode_of_pillow_has_a_digest(mode):
    assert len(pil_digest(Image.new(mode, (3, 2)))) == 16


def test_damaged_exif_data_count_as_upright():
    image = Image.fromarray(rgb())
    image.info["exif"] = b"Exif\0\0MM\0*\0\0\xff\xff garbage"
    assert pil_digest(image) == pil_digest(Image.fromarray(rgb()))
