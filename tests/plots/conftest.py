"""Pictures are drawn without a screen, and no test leaves figures behind."""

from __future__ import annotations

import pytest

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _no_figure_stays():
    from matplotlib import pyplot

    yield
    pyplot.close("all")
