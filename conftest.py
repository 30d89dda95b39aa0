"""What holds for every test and doctest: examples of Hypothesis, and a cache of one's own."""

from __future__ import annotations

import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from collections.abc import Iterator

# Settings of the developer's shell must not decide whether a test passes. They are read when
# featurestore.options is imported, so they go before anything here imports it.
for _name in [name for name in os.environ if name.startswith("FEATURESTORE_")]:
    if _name != "FEATURESTORE_DATA_92":
        del os.environ[_name]

settings.register_profile(
    "default",
    derandomize=True,
    max_examples=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
settings.register_profile("nightly", max_examples=2000, deadline=None, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


@pytest.fixture(autouse=True)
def isolated_options(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> Iterator[None]:
    """Give each test an empty cache, in subprocesses too, and undo the options that it sets.

    Parameters
    ----------
    tmp_path_factory : pytest.TempPathFactory
        Where the cache is made.
    monkeypatch : pytest.MonkeyPatch
        Sets the variable that subprocesses read.

    Yields
    ------
    None
        While the test runs.
    """
    from featurestore.options import get_options, set_options  # noqa: PLC0415 - after the clean-up

    cache = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("FEATURESTORE_CACHE_DIR", str(cache))
    with set_options(**asdict(get_options())):
        set_options(cache_dir=cache)
        yield


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests that need a GPU where there is none, and say so.

    Parameters
    ----------
    item : pytest.Item
        The test about to run.
    """
    if item.get_closest_marker("gpu") is None:
        return
    torch = pytest.importorskip("torch", reason="needs torch and a CUDA device")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
