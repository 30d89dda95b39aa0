"""Which files are pictures: by their first bytes; by suffix only to notice what to look at."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

READABLE = ("PNG", "JPEG", "GIF", "TIFF", "WEBP", "BMP", "PPM", "JPEG2000", "AVIF", "ICO")
"""Pillow's formats with a signature and a decoder that neither runs programs nor opens files.

Left out: formats without a signature (TGA, PCX), for which any bytes may pass as a picture, and
those that call other programs or read other files (EPS, WMF, FPX, stubs)."""

SUFFIXES = frozenset(
    f".{suffix}"
    for line in (
        "png apng jpg jpeg jpe jfif gif tif tiff webp bmp dib ppm pgm pbm pnm pfm ico",
        "jp2 j2k jpx jpc jpf j2c avif avifs",
        "eps ps pdf svg svgz heic heif jxl psd tga",
    )
    for suffix in line.split()
)
"""What is taken for a picture in a folder; those of the last line to be refused with a reason."""

_UNREADABLE: Mapping[bytes, str] = MappingProxyType(
    {
        b"%PDF": "it is a PDF; convert the page to PNG first, at the resolution you want",
        b"8BPS": "it is a Photoshop file; export it as PNG first",
        b"\xff\x0a": "it is a JPEG XL file; convert it to PNG first",
        b"\0\0\0\x0cJXL ": "it is a JPEG XL file; convert it to PNG first",
        b"/annex/objects/": "its content is not present (git-annex); run `datalad get`",
        b"version https://git-lfs": "its content is not present (Git LFS); run `git lfs pull`",
    }
)
_HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")
_BMP_HEADER_NBYTES = (12, 16, 40, 52, 56, 64, 108, 124)


def is_eps(data: bytes) -> bool:
    """Say whether a file is PostScript.

    Parameters
    ----------
    data : bytes
        The file, or its beginning.

    Returns
    -------
    bool
        For plain PostScript and for EPS with a preview.
    """
    return data.startswith((b"%!PS", b"\xc5\xd0\xd3\xc6"))


def has_picture_signature(start: bytes) -> bool:
    """Say whether a file whose name tells nothing is a picture beyond doubt.

    Parameters
    ----------
    start : bytes
        Its first 32 bytes.

    Returns
    -------
    bool
        False for weak signatures: a table may well begin with ``BM`` or ``P1``.
    """
    if start.startswith((b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF87a", b"GIF89a")):
        return True
    if start.startswith((b"II*\0", b"MM\0*", b"\0\0\0\x0cjP  \r\n\x87\n")):
        return True
    if start[:2] == b"BM":
        header_nbytes = int.from_bytes(start[14:18], "little")
        return start[6:10] == bytes(4) and header_nbytes in _BMP_HEADER_NBYTES
    return start[8:12] == b"WEBP" or start[4:12] in (b"ftypavif", b"ftypavis")


def declared_size(data: bytes) -> tuple[int, int]:
    """Return the size that a file declares, where Pillow takes memory for it as it opens the file.

    Parameters
    ----------
    data : bytes
        The file.

    Returns
    -------
    tuple of int
        Width and height [px] of a WebP, or of the largest picture in an icon; (0, 0) for all other
        formats, whose size is known before memory is taken.
    """
    if data[8:12] == b"WEBP":
        return _webp_size(data)
    if data[:4] == b"\0\0\1\0":
        n = int.from_bytes(data[4:6], "little")
        offsets = {int.from_bytes(data[i : i + 4], "little") for i in range(18, 18 + 16 * n, 16)}
        sizes = [_icon_size(data[offset : offset + 24]) for offset in offsets]
        return max(sizes, key=lambda size: size[0] * size[1], default=(0, 0))
    return 0, 0


def _webp_size(data: bytes) -> tuple[int, int]:
    kind, head = data[12:16], data[20:30]
    if kind == b"VP8X":
        return int.from_bytes(head[4:7], "little") + 1, int.from_bytes(head[7:10], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[1:5], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    width, height = int.from_bytes(head[6:8], "little"), int.from_bytes(head[8:10], "little")
    return width & 0x3FFF, height & 0x3FFF


def _icon_size(head: bytes) -> tuple[int, int]:
    if head.startswith(b"\x89PNG"):
        return int.from_bytes(head[16:20], "big"), int.from_bytes(head[20:24], "big")
    sides = (int.from_bytes(head[i : i + 4], "little", signed=True) for i in (4, 8))
    width, height = map(abs, sides)
    return width, height


def why_not_a_picture(data: bytes) -> str:
    """Say why bytes cannot be read as a picture.

    Parameters
    ----------
    data : bytes
        The file, or its beginning.

    Returns
    -------
    str
        A clause that begins with "it" or names the content.
    """
    if not data:
        return "it is empty"
    for signature, reason in _UNREADABLE.items():
        if data.startswith(signature):
            return reason
    if data[4:8] == b"ftyp" and data[8:12] in _HEIF_BRANDS:
        return "it is a HEIF (HEIC) file; convert it to PNG or JPEG first"
    head = data[:1024].lstrip().lower()
    if head.startswith(b"<svg") or (head.startswith(b"<?xml") and b"<svg" in head):
        return "it is an SVG drawing; convert it to PNG first, at the resolution you want"
    if head.startswith(b"\x1f\x8b"):
        return "it is compressed with gzip; unpack it first"
    return f"it is no picture in a known format ({', '.join(READABLE)})"
