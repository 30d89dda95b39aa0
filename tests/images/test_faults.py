"""The worst folder of pictures: through the front door, good rows stay and bad ones are named."""

from __future__ import annotations

import errno
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import unicodedata
import warnings
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image

import featurestore as fs
from featurestore import filehash
from featurestore.errors import FeatureStoreWarning, ImageDecodeError, InvalidInputError
from featurestore.extraction import run
from featurestore.testing.tiny import TinyNetwork, tiny_network, tiny_transform
from tests.images.pictures import chunk, encoded, exif, png, png16, raw_png, rgb, write

POSIX = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX file system")
MODULE = "features.3"


@pytest.fixture
def store(tmp_path):
    return fs.open_store(tmp_path / "features.fstore")


@pytest.fixture
def folder(tmp_path):
    """Good pictures, to which tests add bad ones."""
    return write(tmp_path / "set", {f"good {n}.png": png(n) for n in range(6)})


@pytest.fixture
def clean(tmp_path, folder):
    """The rows of the good pictures, from a store that never saw another."""
    return fs.open_store(tmp_path / "clean.fstore").get(tiny_network(), MODULE, folder).load()


def extract(store, images, **options):
    """Ask for features; return what failed, and the rows of the rest."""
    failures = {}
    try:
        return {}, store.get(tiny_network(), MODULE, images, **options)
    except ImageDecodeError as err:
        failures = err.failures
    with pytest.warns(FeatureStoreWarning, match=f"{len(failures)} of "):
        return failures, store.get(tiny_network(), MODULE, images, errors="skip", **options)


def require_same_rows(features, clean):
    found = features.sel(image=clean["image"].values)
    np.testing.assert_array_equal(found.values, clean.values)


def truncations(data, n=25):
    return {f"cut {length}": data[:length] for length in range(1, len(data), len(data) // n + 1)}


def flipped(data, place, bit=4):
    return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]


def sized(data, place, form, *numbers):
    changed = bytearray(data)
    struct.pack_into(form, changed, place, *numbers)
    return bytes(changed)


def bombs():
    """Tiny files with huge headers, in every format."""
    side = 60_000
    gif = encoded(Image.fromarray(rgb()).quantize(9), "GIF")
    frame = gif.index(b"\x2c", 13 + 3 * 16)
    bmp, jpeg, webp = encoded(rgb(), "BMP"), encoded(rgb(), "JPEG"), encoded(rgb(), "WEBP")
    lossless, j2k = encoded(rgb(), "WEBP", lossless=True), encoded(rgb(), "JPEG2000", no_jp2=True)
    tiff = bytearray(encoded(rgb(), "TIFF"))
    first = struct.unpack_from("<I", tiff, 4)[0]
    for number in range(struct.unpack_from("<H", tiff, first)[0]):
        entry = first + 2 + 12 * number
        if struct.unpack_from("<H", tiff, entry)[0] in (256, 257):
            struct.pack_into("<HII", tiff, entry + 2, 4, 1, side)
    vp8l = lossless.index(b"VP8L") + 9
    huge_png, huge_dib = raw_png(side, side, 8, 2, b""), sized(bmp[14:], 4, "<ii", side, side)

    def icon(inner):
        entry = struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 24, len(inner), 22)
        return struct.pack("<HHH", 0, 1, 1) + entry + inner

    return {
        "png": raw_png(2**31 - 1, 2**31 - 1, 8, 2, b""),
        "1 bit png": raw_png(20_000, 20_000, 1, 0, b""),
        "screen gif": sized(gif, 6, "<HH", 65535, 65535),
        "frame gif": sized(gif, frame + 5, "<HH", 65535, 65535),
        "bmp": sized(bmp, 18, "<ii", side, side),
        "top down bmp": sized(bmp, 18, "<ii", side, -side),
        "ppm": b"P6 60000 60000 255\n" + bytes(99),
        "jpeg": sized(jpeg, jpeg.index(b"\xff\xc0") + 5, ">HH", 65500, 65500),
        "tiff": bytes(tiff),
        "webp": sized(webp, webp.index(b"\x9d\x01\x2a") + 3, "<HH", 16383, 16383),
        "lossless webp": sized(lossless, vp8l, "<I", 0x0FFFFFFF),
        "canvas webp": webp[:8] + b"WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"\xff\xff\0" * 2 + webp[12:],
        "j2k": sized(j2k, j2k.index(b"\xff\x51") + 6, ">II", side, side),
        "png icon": icon(huge_png),
        "bmp icon": icon(huge_dib),
    }


def inflating():
    """Tiny chunks that would unpack to 300 MB."""
    squeezed = zlib.compress(bytes(300_000_000), 9)
    start, rest = png()[:33], png()[33:]
    return {
        "zTXt": start + chunk(b"zTXt", b"a\0\0" + squeezed) + rest,
        "iTXt": start + chunk(b"iTXt", b"a\0\1\0\0\0" + squeezed) + rest,
        "iCCP": start + chunk(b"iCCP", b"a\0\0" + squeezed) + rest,
    }


BROKEN = {
    "empty.jpg": (b"", "it is empty"),
    "text.jpg": (b"not a picture", "no picture in a known format"),
    "page.png": (b"<html><body>404</body></html>", "no picture in a known format"),
    "annex.jpg": (b"/annex/objects/SHA256E-s1--0.jpg\n", "datalad get"),
    "lfs.jpg": (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
    "drawing.svg": (b"<svg/>", "SVG"),
    "paper.pdf": (b"%PDF-1.7", "PDF"),
    "drawing.eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "eps_dpi="),
    "photo.heic": (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIF"),
    "flipped.png": (flipped(png(20), 60), "damaged"),
    "half.jpg": (encoded(rgb(21, 60, 60), "JPEG")[:900], "damaged"),
    "no end.jpg": (encoded(rgb(22), "JPEG")[:-2], "damaged"),
    "half.tif": (encoded(rgb(23, 60, 60), "TIFF")[:900], "damaged"),
    "deep.png": (png16(np.full((9, 9), 4000, np.uint16)), "sixteen_bit='scale'"),
    "deep.tif": (encoded(Image.fromarray(np.full((9, 9), 9, np.uint16)), "TIFF"), "16"),
    "float.tif": (encoded(Image.fromarray(np.ones((9, 9), np.float32)), "TIFF"), "mode F"),
    "integers.tif": (encoded(Image.fromarray(np.ones((9, 9), np.int32)), "TIFF"), "mode I"),
}


@pytest.mark.parametrize("decode_workers", ["threads", "processes"])
def test_good_rows_stay_and_every_bad_picture_is_named_with_its_reason(
    store, folder, clean, decode_workers
):
    write(folder, {name: data for name, (data, _) in BROKEN.items()})
    write(folder, {f"bomb {name}.png": data for name, data in bombs().items()})
    with fs.set_options(decode_workers=decode_workers, n_decode_workers=2):
        failures, features = extract(store, folder)
    assert set(failures) == set(BROKEN) | {f"bomb {name}.png" for name in bombs()}
    for name, (_, said) in BROKEN.items():
        assert said in failures[name], name
    for name in bombs():
        assert "bomb" in failures[f"bomb {name}.png"], name
    assert features.sizes["image"] == 6
    require_same_rows(features, clean)


@pytest.mark.filterwarnings("ignore::UserWarning")  # what Pillow says of damaged tags
@pytest.mark.parametrize(
    "format", ["PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "JPEG2000", "AVIF"]
)
def test_no_truncated_picture_passes_for_a_whole_one(store, folder, clean, format):
    image = Image.fromarray(rgb(7, 24, 24))
    whole = encoded(image.quantize(9) if format == "GIF" else image, format)
    cut = truncations(whole)
    write(folder, {f"{name}.png": data for name, data in cut.items()})
    failures, features = extract(store, folder)
    require_same_rows(features, clean)
    # Whatever is accepted has all its pixels: some formats end with bytes that say nothing.
    passed = {f"{name}.png" for name in cut} - set(failures)
    if passed:
        row = store.get(tiny_network(), MODULE, write(folder / "whole", {"whole.png": whole}))
        for name in passed:
            np.testing.assert_array_equal(features.sel(image=name).values, row.values[0])
    assert len(failures) >= len(cut) - 1


PICTURES = {
    "cmyk.jpg": (encoded(Image.fromarray(rgb(30)).convert("CMYK"), "JPEG"), {}),
    "lab.tif": (encoded(Image.fromarray(rgb(31)).convert("LAB"), "TIFF"), {}),
    "ycbcr.tif": (encoded(Image.fromarray(rgb(32)).convert("YCbCr"), "TIFF"), {}),
    "profile.jpg": (encoded(rgb(33), "JPEG", icc_profile=b"no profile"), {}),
    "jpeg named.png": (encoded(rgb(34), "JPEG"), {}),
    "palette alpha.png": (
        encoded(Image.fromarray(rgb(35)).quantize(9), transparency=b"\0\x80\xff"),
        {"alpha": "white"},
    ),
    "grey alpha.png": (encoded(Image.fromarray(rgb(36)).convert("LA")), {}),
    "turned.jpg": (encoded(rgb(37), "JPEG", exif=exif(6)), {"exif": "apply"}),
    "moving.gif": (
        encoded(
            Image.fromarray(rgb(38)).quantize(9),
            "GIF",
            save_all=True,
            append_images=[Image.fromarray(rgb(39)).quantize(9)],
        ),
        {"frame": 1},
    ),
    "pages.tif": (
        encoded(
            Image.fromarray(rgb(40)),
            "TIFF",
            save_all=True,
            append_images=[Image.fromarray(rgb(41))],
        ),
        {"frame": 1},
    ),
    "one pixel.png": (encoded(rgb(42, 1, 1)), {}),
    "one line.png": (encoded(rgb(43, 1, 300)), {}),
    "unnamed": (png(44), {}),
}


def test_odd_but_whole_pictures_are_what_pillow_makes_of_them(store, tmp_path):
    folder = write(tmp_path / "odd", {name: data for name, (data, _) in PICTURES.items()})
    with pytest.warns(FeatureStoreWarning, match="EXIF rotation.*transparent.*several frames"):
        features = store.get(tiny_network(), MODULE, folder)
    assert sorted(features["image"].values) == sorted(PICTURES)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about transparency
        seen = [Image.open(path).convert("RGB") for path in features["path"].values]
    expected = store.get(tiny_network(), MODULE, [np.asarray(image) for image in seen])
    np.testing.assert_array_equal(features.values, expected.values)


@pytest.mark.parametrize("name", [name for name, (_, choice) in PICTURES.items() if choice])
def test_another_choice_is_another_column_with_other_values(store, tmp_path, name):
    data, choice = PICTURES[name]
    folder = write(tmp_path / "odd", {name: data})
    chosen = fs.preprocess(tiny_transform, id="tiny-v1", **choice)
    network = fs.wrap(TinyNetwork(), name="tiny", preprocess=chosen)
    other = store.get(network, MODULE, folder)
    with pytest.warns(FeatureStoreWarning):
        default = store.get(tiny_network(), MODULE, folder)
    assert len(store.ls()) == 2
    assert not np.array_equal(default.values, other.values)


# Decodes files under a limit of memory: 256 MiB beyond what a process has once Pillow is loaded.
UNDER_A_LIMIT = """
import json, resource, sys, time
from pathlib import Path
from PIL import Image
from featurestore.errors import ImageDecodeError
from featurestore.images.content import ImageContent
from featurestore.images.decode import decode
from featurestore.policy import DecodePolicy

Image.init()
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))
said = {}
for path in Path(sys.argv[1]).iterdir():
    start = time.perf_counter()
    try:
        decode(ImageContent.of(path.read_bytes()), DecodePolicy())
    except ImageDecodeError as err:
        said[path.name] = [err.reason, time.perf_counter() - start]
print(json.dumps(said))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="looks in /proc")
def test_huge_headers_are_refused_without_taking_memory(tmp_path):
    bad = bombs() | inflating()
    command = [sys.executable, "-W", "ignore", "-c", UNDER_A_LIMIT, write(tmp_path / "bad", bad)]
    said = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert set(said) == set(bad)
    for name, (reason, seconds) in said.items():
        assert "too large" in reason or "max_image_pixels" in reason, name
        assert seconds < 5, name


def test_our_limit_holds_where_pillow_takes_memory_before_it_is_asked(store, folder, clean):
    big = Image.new("RGB", (300, 300))
    files = {"a.webp": encoded(big, "WEBP"), "b.webp": encoded(big, "WEBP", lossless=True)}
    files["c.ico"] = encoded(big.convert("RGBA"), "ICO", sizes=[(200, 200)])
    files["d.ico"] = encoded(big.convert("RGBA"), "ICO", sizes=[(200, 200)], bitmap_format="bmp")
    frames = {"save_all": True, "append_images": [Image.new("RGB", (300, 300), "red")]}
    files["e.webp"] = encoded(big, "WEBP", **frames)
    write(folder, files)
    with fs.set_options(max_image_pixels=1000):
        failures, features = extract(store, folder)
    assert set(failures) == set(files)
    assert all("max_image_pixels=1000" in reason for reason in failures.values())
    require_same_rows(features, clean)


def test_a_small_file_with_a_million_pages_takes_no_time(store, folder, clean):
    n, tags = 40_000, {256: 1, 257: 1, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: 1}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    nbytes = 2 + len(entries) + 4
    pages = b"".join(
        struct.pack("<H", len(tags)) + entries + struct.pack("<I", 10 + nbytes * (number + 1))
        for number in range(n)
    )
    write(folder, {"pages.tif": b"II*\0" + struct.pack("<I", 10) + b"\xff\0" + pages})
    with _alarm(8), pytest.warns(FeatureStoreWarning, match="1 of 7 images have several frames"):
        features = store.get(tiny_network(), MODULE, folder)
    require_same_rows(features, clean)


def test_a_file_beyond_the_memory_budget_is_refused_before_it_is_read(store, folder, clean):
    with (folder / "video.png").open("wb") as file:
        file.write(png(50))
        file.truncate(300 * 2**20)  # a hole: it takes no disk
    with fs.set_options(memory_budget="256 MiB"):
        failures, features = extract(store, folder, batch_size=2)
    assert list(failures) == ["video.png"]
    assert "315 MB" in failures["video.png"]
    assert "memory_budget" in failures["video.png"]
    assert features.sizes["image"] == 6
    np.testing.assert_allclose(features.values, clean.values, rtol=1e-5, atol=1e-6)  # other batches


@contextmanager
def _alarm(seconds):
    """Fail rather than wait for ever."""

    def ring(_number, _frame):
        raise TimeoutError(f"it took longer than {seconds} s")

    before = signal.signal(signal.SIGALRM, ring)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@POSIX
@pytest.mark.parametrize("decode_workers", ["threads", "processes"])
def test_what_is_no_file_is_named_and_never_waited_for(
    store, folder, clean, monkeypatch, decode_workers
):
    os.mkfifo(folder / "pipe.png")
    (folder / "to a pipe.png").symlink_to(folder / "pipe.png")
    (folder / "device.png").symlink_to("/dev/zero")
    (folder / "terminal.png").symlink_to("/dev/tty")
    (folder / "gone.png").symlink_to(".git/annex/objects/x/SHA256E-s1--0.png")
    (folder / "loop a.png").symlink_to(folder / "loop b.png")
    (folder / "loop b.png").symlink_to(folder / "loop a.png")
    (folder / "here.png").symlink_to(folder)  # a loop of folders
    write(folder, {"folder.jpg/inside.png": png(0)})
    monkeypatch.chdir(folder)  # the path of a socket is short
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket.png")
    with _alarm(60), fs.set_options(decode_workers=decode_workers, n_decode_workers=2):
        failures, features = extract(store, folder)
    no_file = "is a FIFO, socket or device, not a file"
    assert failures.pop("gone.png").endswith("then run `datalad get`)")
    assert failures.pop("loop a.png") == failures.pop("loop b.png")
    assert failures == dict.fromkeys(
        ["pipe.png", "to a pipe.png", "device.png", "terminal.png", "socket.png"], no_file
    )
    assert "folder.jpg/inside.png" in features["image"].values
    require_same_rows(features, clean)


@POSIX
def test_a_fifo_that_takes_a_file_s_place_at_the_last_moment_is_not_waited_for(
    tmp_path, monkeypatch
):
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(filehash, "stamp_file", lambda _path: None)  # a look just before
    with (
        _alarm(20),
        pytest.raises(OSError, match="is a FIFO") as error,
        filehash.open_regular(tmp_path / "pipe"),
    ):
        pass
    assert error.value.errno == errno.EINVAL


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="needs a user without privileges")
def test_what_may_not_be_read_is_named(store, folder, clean):
    write(folder, {"secret.png": png(50), "sub/hidden.png": png(51)})
    (folder / "secret.png").chmod(0)
    (folder / "sub").chmod(0)
    try:
        failures, features = extract(store, folder)
    finally:
        (folder / "sub").chmod(0o700)
    assert failures == {
        "secret.png": "permission denied",
        "sub/": "the folder cannot be listed: permission denied",
    }
    require_same_rows(features, clean)


ODD_NAMES = [
    "\U0001f41f fish\u200d\U0001f525.png",
    "new\nline\ttab\x07.png",
    "#%?:\\*'\"<>|&;$(){}[]!~`.png",
    "con.png",
    " .png",
    "-rf.png",
    "\u00e9.png",
    "e\u0301.png",
    "Case.png",
    "case.png",
    "CASE.PNG",
    "\u202egnp.exe.png",
    "x" * 251 + ".png",
    "\u732b" * 83 + ".png",  # 253 bytes
    "d" * 200 + "/" + "e" * 150 + "/" + "f" * 100 + ".png",
    "a.png/b.png/c.png",
]


@POSIX
def test_names_are_kept_exactly_and_never_become_file_names(store, tmp_path):
    folder = write(tmp_path / "set", {name: png(n) for n, name in enumerate(ODD_NAMES)})
    if len(list(folder.rglob("*.*"))) < len(ODD_NAMES):
        pytest.skip("this file system takes some of these names for one")
    features = store.get(tiny_network(), MODULE, folder)
    assert sorted(features["image"].values) == sorted(ODD_NAMES)
    again = fs.open_store(tmp_path / "features.fstore", mode="r")
    rows = again.get(tiny_network(), MODULE, again.images("set"))
    expected = store.get(tiny_network(), MODULE, [rgb(n) for n in range(len(ODD_NAMES))])
    for name, row in zip(ODD_NAMES, expected.values, strict=True):
        np.testing.assert_array_equal(rows.sel(image=name).values, row)
    assert unicodedata.normalize("NFC", "e\u0301.png") == "\u00e9.png"  # and still two rows
    inside = [path.name for path in (tmp_path / "features.fstore").rglob("*")]
    assert all(name.isascii() and len(name) < 100 for name in inside)


@POSIX
def test_names_that_are_no_unicode_are_named_and_cost_nobody_else(store, folder, clean):
    try:
        write(
            folder, {os.fsdecode(b"bad \xff.png"): png(50), os.fsdecode(b"dir \xfe/a.png"): png(51)}
        )
    except OSError:
        pytest.skip("this file system takes Unicode only")
    (folder / os.fsdecode(b"gone \xff.png")).symlink_to("nowhere")
    failures, features = extract(store, folder)
    failures.pop("gone \\udcff.png")
    assert set(failures) == {"bad \\udcff.png", "dir \\udcfe/a.png"}
    assert all("not valid Unicode" in reason for reason in failures.values())
    require_same_rows(features, clean)
    with pytest.raises(ImageDecodeError, match="names="):
        fs.read_images(folder)


@POSIX
@pytest.mark.parametrize("decode_workers", ["threads", "processes"])
def test_files_with_undecodable_paths_can_be_given_names(store, tmp_path, decode_workers):
    folder = tmp_path / os.fsdecode(b"latin \xe9")
    try:
        write(folder, {"a.png": png(1), os.fsdecode(b"\xff.png"): png(2)})
    except OSError:
        pytest.skip("this file system takes Unicode only")
    with fs.set_options(decode_workers=decode_workers, n_decode_workers=1):
        inside = store.get(tiny_network(), MODULE, [folder / "a.png"])
        files = sorted(folder.iterdir())
        named = store.get(tiny_network(), MODULE, fs.read_images(files, names=["one", "two"]))
        by_dict = store.get(tiny_network(), MODULE, {"one": files[0], "two": files[1]})
    assert inside["path"].values[0].endswith("latin \\udce9/a.png")
    np.testing.assert_array_equal(named.values[:1], inside.values)
    np.testing.assert_array_equal(named.values, by_dict.values)
    with pytest.raises(InvalidInputError, match="not valid Unicode"):
        fs.read_images(files, names=["fine", os.fsdecode(b"\xff")])


def during_the_run(monkeypatch, act):
    """Do something once the images were listed and before they are read."""
    original = run.iterate_batches

    def iterate_batches(*args, **kwargs):
        monkeypatch.setattr(run, "iterate_batches", original)  # once
        act()
        return original(*args, **kwargs)

    monkeypatch.setattr(run, "iterate_batches", iterate_batches)


@POSIX
@pytest.mark.parametrize("decode_workers", ["threads", "processes"])
def test_files_that_change_between_planning_and_reading_are_named(
    store, folder, clean, monkeypatch, decode_workers
):
    names = ["changed", "shorter", "vanished", "unlinked", "folder", "pipe"]
    write(folder, {f"{name}.png": png(60 + n) for n, name in enumerate(names)})

    def act():
        write(folder, {"changed.png": png(99), "shorter.png": png(61)[:-20]})
        for name in names[2:]:
            (folder / f"{name}.png").unlink()
        (folder / "unlinked.png").symlink_to("annex/nowhere")
        (folder / "folder.png").mkdir()
        os.mkfifo(folder / "pipe.png")

    during_the_run(monkeypatch, act)
    images = fs.read_images(folder)
    with fs.set_options(decode_workers=decode_workers, n_decode_workers=2), _alarm(60):
        failures, features = extract(store, images)
    changed = "changed on disk since read_images looked at it"
    assert failures.pop("unlinked.png").endswith("then run `datalad get`)")
    assert failures == {
        "changed.png": changed,
        "shorter.png": changed,
        "vanished.png": "there is no such file",
        "folder.png": "is a folder, not a file",
        "pipe.png": "is a FIFO, socket or device, not a file",
    }
    require_same_rows(features, clean)
    # The new content is another image: it is never stored under what was listed.
    with pytest.raises(ImageDecodeError):
        store.get(tiny_network(), MODULE, images)


def test_duplicates_are_stored_once_and_each_bad_one_is_named(store, folder, clean):
    write(folder, {"twin.png": png(3), "sub/triplet.jpg": png(3)})
    write(folder, {f"empty {n}.png": b"" for n in range(3)})
    failures, features = extract(store, folder)
    assert failures == {f"empty {n}.png": "it is empty" for n in range(3)}
    assert store.ls()[0].n_images == 6
    for name in ("twin.png", "sub/triplet.jpg"):
        np.testing.assert_array_equal(
            features.sel(image=name).values, features.sel(image="good 3.png").values
        )
    require_same_rows(features, clean)


def test_the_error_counts_every_name_that_has_features(store, folder):
    write(folder, {"twin.png": png(3), "empty 0.png": b"", "empty 1.png": b""})
    with pytest.raises(ImageDecodeError, match="2 images could not be read; the 7 others are kept"):
        store.get(tiny_network(), MODULE, folder)


def test_a_file_that_is_gone_is_read_under_its_other_name(store, folder, clean, monkeypatch):
    write(folder, {"also 2.png": png(2), "zzz 2.png": png(2)})

    def act():
        (folder / "also 2.png").unlink()
        write(folder, {"good 2.png": png(98)})

    images = fs.read_images(folder)
    during_the_run(monkeypatch, act)
    features = store.get(tiny_network(), MODULE, images)
    require_same_rows(features, clean)


def test_rows_outlive_their_pictures(store, folder, clean):
    images = fs.read_images(folder)
    store.get(tiny_network(), MODULE, images)
    for path in folder.iterdir():
        path.unlink()
    require_same_rows(store.get(tiny_network(), MODULE, images), clean)
    require_same_rows(store.get(tiny_network(), MODULE, store.images("set")), clean)
