"""EPS: only when asked for, only through Ghostscript, and only in its cage."""

from __future__ import annotations

import os
import shutil
import time

import numpy as np
import pytest

from featurestore.errors import ImageDecodeError
from featurestore.images import eps
from featurestore.images.content import ImageContent
from featurestore.images.decode import decode
from featurestore.options import set_options
from featurestore.policy import DecodePolicy

needs_gs = pytest.mark.skipif(shutil.which("gs") is None, reason="needs Ghostscript")

RED_SQUARE = b"""%!PS-Adobe-3.0 EPSF-3.0
%%BoundingBox: 0 0 72 36
%%EndComments
1 0 0 setrgbcolor 0 0 36 36 rectfill
showpage
"""


def drawing(code):
    return RED_SQUARE.replace(b"1 0 0 setrgbcolor", code + b"\n1 0 0 setrgbcolor")


def pixels(data, dpi=72):
    return np.asarray(decode(ImageContent.of(data), DecodePolicy(eps_dpi=dpi)).image)


def reason(data, dpi=72):
    with pytest.raises(ImageDecodeError) as error:
        pixels(data, dpi)
    return error.value.reason


def test_eps_is_refused_unless_a_resolution_is_given():
    assert "fs.preprocess(eps_dpi=" in reason(RED_SQUARE, None)


def test_without_ghostscript_the_error_says_how_to_get_it(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert "apt install ghostscript" in reason(RED_SQUARE)


def test_a_huge_drawing_is_refused_before_ghostscript_starts(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: "/no/such/gs")
    with set_options(max_image_pixels=1000):
        assert "2592 pixels" in reason(RED_SQUARE)


def test_a_ghostscript_that_cannot_be_started_is_an_error(monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda _: "/no/such/gs")
    assert "Ghostscript" in reason(RED_SQUARE)


@needs_gs
@pytest.mark.parametrize("dpi", [36, 72, 144])
def test_a_drawing_has_the_size_and_colours_it_describes(dpi):
    found = pixels(RED_SQUARE, dpi)
    edge = dpi // 2
    assert found.shape == (edge, 2 * edge, 3)
    assert (found[:, :edge] == [255, 0, 0]).all()
    assert (found[:, edge:] == 255).all()


@needs_gs
def test_postscript_without_a_bounding_box_is_refused():
    assert "bounding box" in reason(b"%!PS\nshowpage\n")


@needs_gs
@pytest.mark.parametrize(
    "code",
    [
        b"(/etc/passwd) (r) file pop",
        b"(%pipe%touch OUTSIDE) (w) file pop",
        b"(OUTSIDE) (w) file dup (x) writestring closefile",
        b"/big 1000000000 array def",
        b"nonsense",
    ],
)
def test_a_hostile_drawing_neither_reads_nor_writes_files(tmp_path, code):
    outside = tmp_path / "outside"
    assert "failed" in reason(drawing(code.replace(b"OUTSIDE", os.fsencode(outside))))
    assert not outside.exists()


@needs_gs
def test_an_endless_drawing_is_stopped(monkeypatch):
    monkeypatch.setattr(eps, "TIMEOUT_S", 0.5)
    started = time.monotonic()
    assert "stopped after 0.5 s" in reason(drawing(b"{} loop"))
    assert time.monotonic() - started < 10


@needs_gs
def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(eps.tempfile, "tempdir", str(tmp_path))
    pixels(RED_SQUARE)
    reason(drawing(b"nonsense"))
    assert list(tmp_path.glob("featurestore-*")) == []
