"""That the shared fixtures give what they promise."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest
from PIL import Image

import featurestore


def test_no_test_sees_the_cache_of_the_user(tmp_path_factory):
    cache = featurestore.get_options().cache_dir
    assert cache.is_relative_to(tmp_path_factory.getbasetemp())
    assert not cache.is_relative_to(platformdirs.user_cache_dir("featurestore"))
    assert os.environ["FEATURESTORE_CACHE_DIR"] == str(cache)


@pytest.mark.parametrize("_turn", ["first", "second"])
def test_options_set_for_good_end_with_the_test(_turn):
    assert featurestore.get_options().commit_interval_s == 60.0
    featurestore.set_options(commit_interval_s=1)


def test_photos_are_pictures_in_rgb(photos):
    files = sorted(photos.iterdir())
    assert len(files) == 4
    for file in files:
        with Image.open(file) as picture:
            assert picture.mode == "RGB", file.name


def test_the_92_images_are_92(data_92):
    assert isinstance(data_92, Path)
    assert len(list((data_92 / "images").glob("*.png"))) == 92
