"""Every test has a cache of its own."""

from __future__ import annotations

import os

import numpy as np
import pytest

from featurestore.options import set_options


@pytest.fixture(autouse=True)
def _own_cache(tmp_path):
    with set_options(cache_dir=tmp_path / "cache"):
        yield


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def settle():
    """Make files look long untouched, so that their digests may be remembered."""

    def settle(*paths):
        for path in paths:
            os.utime(path, (1_000_000_000, 1_000_000_000))

    return settle
