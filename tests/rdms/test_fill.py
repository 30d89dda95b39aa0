"""Which tiles are computed, kept and found again, for any sequence of requests."""

from __future__ import annotations

import threading
from dataclasses import replace

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from featurestore.rdms import fill as filling
from featurestore.rdms import kernel
from featurestore.rdms.fill import MemoryFolder, fill, find_cover
from featurestore.rdms.source import ArraySource
from featurestore.rdms.view import PairView
from featurestore.storage.blob import LocalBlobs
from featurestore.storage.grams import GramFolder
from tests.rdms.oracle import labelled, truth

P = 6
VALUES = np.random.default_rng(0).normal(size=(80, P)).astype(np.float32)
TRUTH = truth(VALUES, ("sqeuclidean",))["sqeuclidean"].astype(float)


def digests_of(rows):
    """Name rows by their numbers, the first half of a digest left zero."""
    numbers = np.zeros((len(rows), 2), ">u8")
    numbers[:, 1] = np.asarray(rows) + 1
    return numbers.view(np.uint8).reshape(-1, 16)


def rows_of(digests):
    return digests.view(">u8").reshape(-1, 2)[:, 1].astype(int) - 1


class Asked:
    """Fills a folder, and counts the pairs that were computed for it."""

    def __init__(self, folder=None, missing=()):
        self.folder = MemoryFolder() if folder is None else folder
        self.missing = set(missing)
        self.n_pairs = self.n_tiles = 0

    def source_of(self, digests):
        rows = rows_of(digests)
        assert not self.missing & set(rows.tolist())
        return ArraySource(labelled(VALUES[rows]), "image")

    def has_rows(self, digests):
        return not self.missing & set(rows_of(digests).tolist())

    def fill(self, rows):
        def count(plan):
            self.n_tiles += sum(len(step.tiles) for step in plan.passes)

        real = self.folder.write

        def write(a, b, tile):
            n_a, n_b = tile.squares.shape
            self.n_pairs += n_a * (n_a - 1) // 2 if a == b else n_a * n_b
            real(a, b, tile)

        self.folder.write = write
        try:
            return fill(
                self.folder,
                digests_of(rows),
                self.source_of,
                has_rows=self.has_rows,
                budget=2**28,
                on_plan=count,
            )
        finally:
            self.folder.write = real


def read(cover, n):
    view = PairView(lambda _gone=None: cover, P, "sqeuclidean", dtype=np.float64)
    return view.read(np.arange(n), np.arange(n))


def check(cover, rows):
    rows = np.asarray(rows)
    found = read(cover, len(rows))
    np.testing.assert_allclose(found, TRUTH[np.ix_(rows, rows)], rtol=1e-12)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(filling, "BLOCK_ROWS", 8)


requests = st.lists(st.lists(st.integers(0, 40), min_size=1, max_size=40), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(requests=requests)
def test_any_sequence_of_requests_gives_the_true_distances_in_the_order_asked_for(requests):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "BLOCK_ROWS", 8)
        asked = Asked()
        for rows in requests:
            check(asked.fill(rows), rows)


@settings(max_examples=40, deadline=None)
@given(requests=requests)
def test_what_was_asked_for_once_is_found_again_without_computing(requests):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filling, "BLOCK_ROWS", 8)
        asked = Asked()
        for rows in requests:
            asked.fill(rows)
            n_tiles = asked.n_tiles
            check(asked.fill(rows), rows)
            assert asked.n_tiles == n_tiles
            cover = find_cover(asked.folder, digests_of(rows))
            assert cover is not None
            check(cover, rows)


@pytest.mark.parametrize("n", [5, 8, 30, 64])
@pytest.mark.parametrize("k", [1, 3, 8, 16])
def test_more_images_cost_only_the_new_pairs(n, k):
    asked = Asked()
    asked.fill(range(n))
    assert asked.n_pairs == n * (n - 1) // 2
    asked.n_pairs = 0
    check(asked.fill(range(n + k)), range(n + k))
    assert asked.n_pairs == k * n + k * (k - 1) // 2


def test_images_that_are_added_one_at_a_time_cost_only_the_new_pairs_too():
    asked = Asked()
    for n in range(1, 21):
        cover = asked.fill(range(n))
    check(cover, range(20))
    assert asked.n_pairs == 20 * 19 // 2


def test_a_part_of_what_is_there_costs_nothing():
    asked = Asked()
    asked.fill(range(64))
    n_pairs = asked.n_pairs
    rng = np.random.default_rng(0)
    for share in (0.9, 0.6):
        rows = rng.permutation(64)[: int(64 * share)]
        check(asked.fill(rows), rows)
        assert asked.n_pairs == n_pairs


def test_parts_of_blocks_with_new_images_are_found_again():
    asked = Asked()
    asked.fill(range(8))
    rows = [0, 1, 2, *range(8, 13)]
    check(asked.fill(rows), rows)
    assert find_cover(asked.folder, digests_of(rows)) is not None


def test_blocks_with_rows_that_are_gone_are_left_alone():
    asked = Asked()
    asked.fill(range(8))
    asked.missing = {7}
    rows = [*range(7), *range(10, 20)]
    check(asked.fill(rows), rows)


def test_equal_images_are_one_and_exactly_zero_apart():
    asked = Asked()
    rows = [3, 1, 3, 2, 1, 3]
    cover = asked.fill(rows)
    check(cover, rows)
    found = read(cover, 6)
    np.testing.assert_array_equal(found == 0, np.equal.outer(rows, rows))
    assert asked.n_pairs == 3


def test_only_missing_tiles_are_computed():
    asked = Asked()
    asked.fill(range(40))
    for tile in [(0, 0), (1, 3), (4, 4)]:
        del asked.folder._tiles[tile]
    asked.n_tiles = 0
    check(asked.fill(range(40)), range(40))
    assert asked.n_tiles == 3


def test_a_computation_that_fails_midway_keeps_what_it_had(monkeypatch):
    real = kernel.run_pass
    count = []

    def fail(*args, **kwargs):
        count.append(1)
        if len(count) == 4:
            raise RuntimeError("killed")
        return real(*args, **kwargs)

    monkeypatch.setattr(kernel, "run_pass", fail)
    monkeypatch.setattr(filling, "plan_passes", one_tile_per_pass)
    asked = Asked()
    with pytest.raises(RuntimeError, match="killed"):
        asked.fill(range(40))
    there = asked.folder.tiles()
    assert len(there) == 3
    asked.n_tiles = 0
    check(asked.fill(range(40)), range(40))
    assert asked.n_tiles == 15 - 3


def one_tile_per_pass(source, sizes, wanted, budget):
    plan = kernel.plan_passes(source, sizes, wanted, budget)
    step = plan.passes[0]
    passes = tuple(replace(step, blocks=tuple(sorted({*p})), tiles=(p,)) for p in wanted)
    return replace(plan, passes=passes)


def test_writing_that_fails_is_not_hidden(tmp_path, monkeypatch):
    folder = GramFolder(LocalBlobs(tmp_path), "ab" * 16)

    def full(_a, _b, _tile):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder, "write", full)
    asked = Asked(folder)
    with pytest.raises(OSError, match="No space"):
        asked.fill(range(20))


def test_threads_that_fill_the_same_folder_all_get_the_true_distances(tmp_path):
    failed = []

    def work(number):
        try:
            rng = np.random.default_rng(number)
            for _ in range(6):
                rows = rng.integers(0, 80, rng.integers(1, 40))
                folder = GramFolder(LocalBlobs(tmp_path), "ab" * 16)
                check(Asked(folder).fill(rows), rows)
        except BaseException as err:
            failed.append(err)
            raise

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_tiles_of_rows_that_were_computed_anew_elsewhere_stay_true_to_themselves():
    """Rows recomputed on another machine differ in the last digits; close pairs must not."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=50)
    values = (100 + base + 1e-3 * rng.normal(size=(24, 50))).astype(np.float32)
    again = (values * (1 + 3e-7 * rng.normal(size=(24, 1)))).astype(np.float32)
    now = values

    def source_of(digests):
        return ArraySource(labelled(now[rows_of(digests)]), "image")

    folder = MemoryFolder()
    options = {"has_rows": lambda _d: True, "budget": 2**28}
    fill(folder, digests_of(range(8)), source_of, **options)
    now = again
    cover = fill(folder, digests_of(range(24)), source_of, **options)
    view = PairView(lambda _gone=None: cover, 50, "correlation")
    found = view.read(np.arange(24), np.arange(24))
    old, new = (truth(v, ("correlation",))["correlation"].astype(float) for v in (values, again))
    some = ~np.eye(24, dtype=bool)
    # The two computations themselves differ by a few percent at most.
    assert np.abs(old[some] / new[some] - 1).max() < 0.05
    np.testing.assert_allclose(found[8:, :8], new[8:, :8], rtol=0.05)
