"""The store against a dict: kills, damage, two stores on one folder, in random order."""

from __future__ import annotations

import os

import pytest
from hypothesis import HealthCheck, settings

from featurestore.testing.store_machine import StoreMachine

QUICK = settings(
    max_examples=12,
    stateful_step_count=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
# At least 2,000 steps, drawn anew each night.
LONG = settings(
    max_examples=int(os.environ.get("STORE_MACHINE_EXAMPLES", "80")),
    stateful_step_count=50,
    deadline=None,
    print_blob=True,
    suppress_health_check=list(HealthCheck),
)


class TestStoreInShort(StoreMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = QUICK


@pytest.mark.slow
class TestStoreAtLength(StoreMachine.TestCase):  # type: ignore[misc,valid-type]
    settings = LONG
