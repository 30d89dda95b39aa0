"""Pixels under the policy, compared with Pillow called directly."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile, ImageOps

from featurestore.errors import ImageDecodeError, InvalidInputError
from featurestore.images.content import ImageContent
from featurestore.images.decode import decode, describe_notes
from featurestore.options import set_options
from featurestore.policy import DecodePolicy
from tests.images.pictures import chunk, encoded, exif, png, png16, raw_png, rgb

DEFAULT = DecodePolicy()


def pixels(data, policy=DEFAULT):
    return np.asarray(decode(ImageContent.of(data), policy).image)


def notes(data, policy=DEFAULT):
    return decode(ImageContent.of(data), policy).notes


def reason(data, policy=DEFAULT):
    with pytest.raises(ImageDecodeError) as error:
        decode(ImageContent.of(data), policy)
    assert error.value.reason in str(error.value)
    return error.value.reason


def by_pillow(data):
    """What the models' own loaders see."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def picture(mode):
    """A picture of a mode of Pillow, from the same random colours."""
    rgba = np.dstack([rgb(1, 20, 30), rgb(2, 20, 30)[:, :, 0]])
    return Image.fromarray(rgba).convert(mode)


FILES = {
    "PNG 1": encoded(picture("1")),
    "PNG L": encoded(picture("L")),
    "PNG LA": encoded(picture("LA")),
    "PNG P": encoded(picture("RGB").quantize(9)),
    "PNG P transparent": encoded(picture("RGB").quantize(9), transparency=3),
    "PNG P half transparent": encoded(picture("RGB").quantize(9), transparency=b"\x00\x80\xff"),
    "PNG RGB": encoded(picture("RGB")),
    "PNG RGB transparent": encoded(picture("RGB"), transparency=(1, 2, 3)),
    "PNG RGBA": encoded(picture("RGBA")),
    "PNG RGB 16 bit": png16(rgb(1).astype(np.uint16) * 256 + rgb(2)),
    "PNG interlaced L": encoded(picture("L"), interlace=1),
    "JPEG RGB": encoded(picture("RGB"), "JPEG"),
    "JPEG L": encoded(picture("L"), "JPEG"),
    "JPEG CMYK": encoded(picture("RGB").convert("CMYK"), "JPEG"),
    "JPEG progressive": encoded(picture("RGB"), "JPEG", progressive=True),
    "JPEG turned": encoded(picture("RGB"), "JPEG", exif=exif(6)),
    "JPEG with profile": encoded(picture("RGB"), "JPEG", icc_profile=b"no profile at all"),
    "TIFF RGB": encoded(picture("RGB"), "TIFF"),
    "TIFF LZW": encoded(picture("RGB"), "TIFF", compression="tiff_lzw"),
    "TIFF turned": encoded(picture("RGB"), "TIFF", exif=exif(6)),
    "TIFF CMYK": encoded(picture("RGB").convert("CMYK"), "TIFF"),
    "TIFF LAB": encoded(picture("RGB").convert("LAB"), "TIFF"),
    "TIFF YCbCr": encoded(picture("RGB").convert("YCbCr"), "TIFF"),
    "TIFF RGBA": encoded(picture("RGBA"), "TIFF"),
    "BMP": encoded(picture("RGB"), "BMP"),
    "BMP P": encoded(picture("RGB").quantize(9), "BMP"),
    "GIF": encoded(picture("RGB").quantize(9), "GIF"),
    "GIF transparent": encoded(picture("RGB").quantize(9), "GIF", transparency=2),
    "WEBP": encoded(picture("RGB"), "WEBP"),
    "WEBP RGBA": encoded(picture("RGBA"), "WEBP", lossless=True),
    "PPM": encoded(picture("RGB"), "PPM"),
    "PGM": encoded(picture("L"), "PPM"),
    "ICO": encoded(picture("RGBA").resize((16, 16)), "ICO"),
    "JPEG2000": encoded(picture("RGB"), "JPEG2000"),
    "AVIF": encoded(picture("RGB"), "AVIF"),
}


@pytest.mark.parametrize("name", FILES)
def test_by_default_a_file_is_what_pillow_converts_to_rgb(name):
    decoded = decode(ImageContent.of(FILES[name]), DEFAULT)
    assert decoded.image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded.image), by_pillow(FILES[name]))


NOTED = {
    "PNG LA": {"alpha"},
    "PNG P transparent": {"alpha"},
    "PNG P half transparent": {"alpha"},
    "PNG RGBA": {"alpha"},
    "PNG RGB 16 bit": {"sixteen_bit"},
    "JPEG turned": {"exif"},
    "TIFF RGBA": {"alpha"},
    "GIF transparent": {"alpha"},
    "WEBP RGBA": {"alpha"},
    "ICO": {"alpha"},
}


@pytest.mark.parametrize("name", FILES)
def test_notes_say_where_a_default_decided(name):
    assert notes(FILES[name]) == NOTED.get(name, set())


@pytest.mark.parametrize("name", FILES)
def test_nothing_is_noted_where_everything_was_chosen(name):
    policy = DecodePolicy(exif="apply", alpha="white", sixteen_bit="scale")
    assert notes(FILES[name], policy) == set()


@given(st.sampled_from(sorted(FILES)), st.data())
def test_a_damaged_file_is_refused_or_decoded_but_nothing_else_happens(name, data):
    whole = FILES[name]
    place = data.draw(st.integers(0, len(whole) - 1))
    broken = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    if data.draw(st.booleans()):
        broken = broken[:place]
    with contextlib.suppress(ImageDecodeError):
        decoded = decode(ImageContent.of(broken), DecodePolicy(sixteen_bit="clip"))
        assert decoded.image.mode == "RGB"


@pytest.mark.parametrize("name", [n for n in FILES if n.split()[0] in ("PNG", "JPEG", "TIFF")])
def test_a_truncated_file_is_refused(name):
    whole = FILES[name]
    assert "damaged" in reason(whole[: len(whole) * 2 // 3])


def test_truncation_is_noticed_even_if_pillow_was_told_to_overlook_it(monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    with pytest.raises(InvalidInputError, match="LOAD_TRUNCATED_IMAGES"):
        decode(ImageContent.of(png()), DEFAULT)


def test_a_flipped_bit_in_a_png_is_refused():
    whole = bytearray(png())
    whole[60] ^= 4
    assert "damaged" in reason(bytes(whole))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "it is empty"),
        (b"a text file", "no picture in a known format"),
        (b"%PDF-1.7 ...", "it is a PDF"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'/>", "SVG"),
        (b"<svg/>", "SVG"),
        (b"\x1f\x8b\x08 compressed svg", "gzip"),
        (b"8BPS\0\1", "Photoshop"),
        (b"\0\0\0\x18ftypheic\0\0", "HEIF"),
        (b"\xff\x0a1234", "JPEG XL"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "eps_dpi="),
        (b"/annex/objects/SHA256-s1--2.png\n", "datalad get"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"P5 but a text", "damaged"),
        (b"BM, the first column", "damaged"),
        (b"\0" * 600, "no picture"),
    ],
)
def test_what_is_no_picture_is_refused_with_its_reason(data, said):
    assert said in reason(data)


def test_a_wrong_suffix_does_not_matter_because_only_content_is_seen():
    np.testing.assert_array_equal(pixels(encoded(rgb(), "BMP")), rgb())


def test_arrays_are_their_own_pixels():
    np.testing.assert_array_equal(pixels(rgb()), rgb())
    grey = rgb()[:, :, 0]
    np.testing.assert_array_equal(pixels(grey), np.dstack([grey] * 3))


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB"]
)
def test_a_pil_image_is_what_it_converts_to(mode):
    image = picture(mode)
    np.testing.assert_array_equal(pixels(image), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_ignored_or_applied_as_pillow_does(orientation):
    data = encoded(picture("RGB"), "JPEG", exif=exif(orientation))
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    np.testing.assert_array_equal(pixels(data), by_pillow(data))
    np.testing.assert_array_equal(pixels(data, DecodePolicy(exif="apply")), np.asarray(upright))
    assert notes(data) == ({"exif"} if orientation != 1 else set())


def test_the_orientation_of_a_pil_image_is_applied():
    image = Image.fromarray(rgb())
    image.getexif()[0x0112] = 6
    np.testing.assert_array_equal(pixels(image, DecodePolicy(exif="apply")), np.rot90(rgb(), -1))
    np.testing.assert_array_equal(pixels(image), rgb())


def test_damaged_exif_data_do_not_spoil_a_picture():
    data = encoded(picture("RGB"), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about the EXIF data
        found = pixels(data, DecodePolicy(exif="apply"))
    np.testing.assert_array_equal(found, by_pillow(data))


@pytest.mark.parametrize(("alpha", "level"), [("white", 255), ("black", 0), ("grey", 128)])
@pytest.mark.parametrize("name", [name for name, found in NOTED.items() if "alpha" in found])
def test_transparent_pictures_are_put_on_a_background(name, alpha, level):
    rgba = np.asarray(Image.open(io.BytesIO(FILES[name])).convert("RGBA")).astype(float)
    share = rgba[:, :, 3:] / 255
    expected = rgba[:, :, :3] * share + level * (1 - share)
    found = pixels(FILES[name], DecodePolicy(alpha=alpha))
    np.testing.assert_allclose(found, expected, atol=1)


def test_an_opaque_alpha_channel_is_not_worth_a_note():
    image = Image.fromarray(np.dstack([rgb(), np.full(rgb().shape[:2], 255, np.uint8)]))
    assert notes(encoded(image)) == set()
    np.testing.assert_array_equal(pixels(encoded(image), DecodePolicy(alpha="white")), rgb())


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_premultiplied_colours_are_divided_again(mode):
    image = Image.fromarray(np.array([[[100, 128]]], np.uint8)).convert("RGBA").convert("RGBa")
    if mode == "La":
        image = Image.merge("LA", [image.getchannel("R"), image.getchannel("a")])
        image = Image.frombytes("La", (1, 1), image.tobytes())
    assert pixels(image)[0, 0].tolist() == pytest.approx([100] * 3, abs=1)
    assert pixels(image, DecodePolicy(alpha="black"))[0, 0].tolist() == pytest.approx(
        [50] * 3, abs=1
    )


def deep_files():
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    return {
        "PNG": (png16(values), values),
        "TIFF": (encoded(Image.fromarray(values), "TIFF"), values),
        "TIFF big-endian": (
            encoded(Image.frombytes("I;16B", (32, 32), values.astype(">u2").tobytes()), "TIFF"),
            values,
        ),
        "PGM": (b"P5 32 32 65535\n" + values.astype(">u2").tobytes(), values),
        "TIFF 32 bit": (encoded(Image.fromarray(values.astype(np.int32)), "TIFF"), values),
    }


@pytest.mark.parametrize("name", deep_files())
def test_sixteen_bits_are_refused_scaled_or_clipped(name):
    data, values = deep_files()[name]
    said = reason(data)
    assert "sixteen_bit='scale'" in said
    assert "'clip'" in said
    scaled = np.round(values / 65535 * 255)
    assert pixels(data, DecodePolicy(sixteen_bit="scale"))[:, :, 0].tolist() == scaled.tolist()
    np.testing.assert_array_equal(pixels(data, DecodePolicy(sixteen_bit="clip")), by_pillow(data))


def test_sixteen_bit_pil_images_follow_the_same_policy():
    values = np.arange(0, 65536, 64, dtype=np.uint16).reshape(32, 32)
    assert "sixteen_bit=" in reason(Image.fromarray(values))
    found = pixels(Image.fromarray(values), DecodePolicy(sixteen_bit="scale"))
    np.testing.assert_array_equal(found[:, :, 2], np.round(values / 257))


def test_integers_beyond_sixteen_bits_are_refused():
    for bad in (-1, 65536):
        image = Image.fromarray(np.array([[0, bad]], np.int32))
        assert "[0, 65535]" in reason(encoded(image, "TIFF"), DecodePolicy(sixteen_bit="scale"))


def test_twelve_bits_are_refused_because_their_range_is_another():
    tags = {256: 2, 257: 1, 258: 12, 259: 1, 262: 1, 277: 1, 278: 1, 273: 200, 279: 3}
    entries = b"".join(
        tag.to_bytes(2, "little") + b"\4\0\1\0\0\0" + value.to_bytes(4, "little")
        for tag, value in sorted(tags.items())
    )
    head = b"II*\0\x08\0\0\0" + len(tags).to_bytes(2, "little") + entries + bytes(4)
    data = head.ljust(200, b"\0") + b"\xff\xff\xff"
    assert "12 bits" in reason(data, DecodePolicy(sixteen_bit="scale"))
    assert "more than 8 bits" in reason(data)


def test_floats_from_zero_to_one_are_scaled_and_others_refused():
    values = np.linspace(0, 1, 256, dtype=np.float32).reshape(16, 16)
    data = encoded(Image.fromarray(values), "TIFF")
    assert "more than 8 bits" in reason(data)
    found = pixels(data, DecodePolicy(sixteen_bit="scale"))[:, :, 0]
    np.testing.assert_array_equal(found.ravel(), np.arange(256))
    for bad in (-0.01, 1.01, np.nan):
        broken = encoded(Image.fromarray(np.array([[0.5, bad]], np.float32)), "TIFF")
        assert "[0, 1]" in reason(broken, DecodePolicy(sixteen_bit="scale"))


def test_sixteen_bits_with_a_transparent_value_are_put_on_a_background():
    values = np.array([[0, 25700], [25701, 65535]], np.uint16)
    data = png16(values, chunk(b"tRNS", (25700).to_bytes(2, "big")))
    found = pixels(data, DecodePolicy(sixteen_bit="scale", alpha="white"))[:, :, 0]
    assert found.tolist() == [[0, 255], [100, 255]]
    dropped = decode(ImageContent.of(data), DecodePolicy(sixteen_bit="scale"))
    assert np.asarray(dropped.image)[:, :, 0].tolist() == [[0, 100], [100, 255]]
    assert dropped.notes == {"alpha"}


@pytest.mark.parametrize("format", ["PNG", "GIF", "TIFF", "WEBP"])
def test_frames_are_chosen_by_number(format):
    frames = [Image.fromarray(rgb(i, 16, 16)) for i in range(3)]
    if format == "GIF":
        frames = [frame.quantize(16) for frame in frames]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    for number, frame in enumerate(frames):
        found = pixels(data, DecodePolicy(frame=number))
        np.testing.assert_array_equal(found, np.asarray(frame.convert("RGB")))
    assert notes(data) == {"frames"}
    assert notes(data, DecodePolicy(frame=1)) == set()
    assert "no frame 3, only 3" in reason(data, DecodePolicy(frame=3))


def test_a_single_picture_has_only_frame_zero():
    for content in (png(), rgb(), Image.fromarray(rgb())):
        assert "no frame 1" in reason(content, DecodePolicy(frame=1))


def test_bombs_are_refused_before_they_are_decoded():
    bomb = raw_png(20_000, 20_000, 1, 0, b"")
    assert "20000 x 20000 pixels" in reason(bomb)
    with set_options(max_image_pixels=16 * 12 - 1):
        assert "max_image_pixels=191" in reason(png())
    with set_options(max_image_pixels=16 * 12):
        assert pixels(png()).shape == (12, 16, 3)


def test_the_limit_is_ours_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)  # warns above 10, refuses above 20
    assert pixels(png()).shape == (12, 16, 3)
    assert Image.MAX_IMAGE_PIXELS == 10


def test_a_later_page_can_be_a_bomb():
    pages = [Image.new("L", (4, 4)), Image.new("L", (300, 300))]
    data = encoded(pages[0], "TIFF", save_all=True, append_images=pages[1:])
    with set_options(max_image_pixels=1000):
        assert pixels(data).shape == (4, 4, 3)
        assert "300 x 300" in reason(data, DecodePolicy(frame=1))


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (2, 3)])
def test_tiny_pictures_decode(size):
    image = Image.new("RGB", size, (1, 2, 3))
    assert (pixels(encoded(image)) == [1, 2, 3]).all()


def test_many_threads_decode_one_content_alike():
    contents = [ImageContent.of(FILES[name]) for name in sorted(FILES)]
    contents += [ImageContent.of(picture("RGB").quantize(9)), ImageContent.of(rgb())]
    policy = DecodePolicy(alpha="white")
    expected = [np.asarray(decode(content, policy).image) for content in contents]
    wrong = []

    def work():
        for content, pixels_alone in zip(contents * 3, expected * 3, strict=True):
            if not np.array_equal(np.asarray(decode(content, policy).image), pixels_alone):
                wrong.append(content)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_decoding_leaves_a_pil_image_as_it_was():
    image = picture("RGB").quantize(9)
    image.info["transparency"] = 3
    content = ImageContent.of(image)
    decode(content, DEFAULT)
    assert image.info["transparency"] == 3
    assert ImageContent.of(image).digest == content.digest


def test_one_warning_names_how_many_images_each_default_changed():
    said = describe_notes({"alpha": 3, "exif": 1}, 92)
    assert "3 of 92 images have transparent pixels" in said
    assert "fs.preprocess(alpha='white')" in said
    assert "1 of 92 images carry an EXIF rotation" in said
    assert "frames" not in said


def test_nothing_is_said_where_no_default_mattered():
    assert describe_notes({}, 92) is None
    assert describe_notes({"alpha": 0}, 92) is None


def test_every_note_has_words():
    every = {note for found in NOTED.values() for note in found} | {"frames"}
    for note in every:
        assert "2 of 5 images" in describe_notes({note: 2}, 5)
