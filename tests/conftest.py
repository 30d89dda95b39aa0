"""Real pictures for tests: a few photographs that a library ships, and a published image set."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

import pytest

PHOTOS = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg")


@pytest.fixture
def photos(tmp_path):
    """A folder of the test's own with four photographs, PNG and JPEG, in RGB."""
    spec = importlib.util.find_spec("skimage")  # found without importing it, which is slow
    if spec is None or spec.origin is None:
        pytest.skip("needs the photographs of scikit-image")
    source = Path(spec.origin).parent / "data"
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in PHOTOS:
        shutil.copyfile(source / name, folder / name)
    return folder


@pytest.fixture(scope="session")
def data_92():
    """The folder of the 92-image set: `images` and `rdms`; to be read, never written."""
    place = os.environ.get("FEATURESTORE_DATA_92")
    if not place:
        pytest.skip("FEATURESTORE_DATA_92 does not name the folder of the 92-image set")
    folder = Path(place)
    if not (folder / "images").is_dir():
        pytest.skip(f"FEATURESTORE_DATA_92={place} holds no folder 'images'")
    return folder
