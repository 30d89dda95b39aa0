"""Options: set for good or for a while, read from the environment, refused when unreadable."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import FrozenInstanceError, fields
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from featurestore.errors import InvalidInputError
from featurestore.options import (
    Options,
    available_cpus,
    format_nbytes,
    get_options,
    parse_nbytes,
    set_options,
)


def in_a_new_process(expression, **variables):
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FEATURESTORE_")}
    code = f"from featurestore.options import get_options; print(repr({expression}))"
    return subprocess.run(
        [sys.executable, "-c", code],
        env=environment | variables,
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_option_holds_until_it_is_changed_again():
    set_options(commit_interval_s=5)
    assert get_options().commit_interval_s == 5.0
    set_options(commit_interval_s=6)
    assert get_options().commit_interval_s == 6.0


def test_a_block_restores_what_was_before():
    before = get_options()
    with set_options(memory_budget="1 GiB", n_threads=1):
        assert get_options().memory_budget == 2**30
        assert get_options().n_threads == 1
    assert get_options() == before


def test_a_block_restores_after_an_error():
    before = get_options()
    with pytest.raises(RuntimeError), set_options(n_threads=1):
        raise RuntimeError
    assert get_options() == before


def test_blocks_nest():
    with set_options(n_threads=1, commit_interval_s=1):
        with set_options(n_threads=2):
            assert (get_options().n_threads, get_options().commit_interval_s) == (2, 1)
        assert (get_options().n_threads, get_options().commit_interval_s) == (1, 1)


def test_blocks_that_overlap_without_nesting_leave_nothing_behind():
    before = get_options()
    one = set_options(memory_budget=1)
    other = set_options(commit_interval_s=1)
    one.__exit__(None, None, None)
    assert get_options().commit_interval_s == 1
    other.__exit__(None, None, None)
    assert get_options() == before


def test_what_is_set_for_good_inside_a_block_about_something_else_stays():
    with set_options(n_threads=1):
        set_options(commit_interval_s=7)
    assert get_options().commit_interval_s == 7


def test_an_unknown_option_is_refused_with_the_list_of_options():
    with pytest.raises(InvalidInputError) as caught:
        set_options(memory="1 GiB")
    assert "'memory'" in str(caught.value)
    for option in fields(Options):
        assert option.name in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"memory_budget": 0},
        {"memory_budget": "lots"},
        {"memory_budget": float("inf")},
        {"memory_budget": float("nan")},
        {"memory_budget": True},
        {"memory_budget": None},
        {"lazy_threshold": -1},
        {"commit_interval_s": -1},
        {"commit_interval_s": float("nan")},
        {"commit_interval_s": "soon"},
        {"n_threads": 0},
        {"n_threads": 1.5},
        {"n_threads": True},
        {"n_threads": None},
        {"n_decode_workers": "two"},
        {"max_image_pixels": -5},
        {"decode_workers": "fibres"},
        {"decode_timeout_s": 0},
        {"decode_timeout_s": float("inf")},
        {"decode_timeout_s": float("nan")},
        {"cache_dir": None},
        {"progress": "maybe"},
    ],
    ids=str,
)
def test_a_value_that_cannot_work_is_refused_and_changes_nothing(wrong):
    before = get_options()
    with pytest.raises(InvalidInputError) as caught:
        set_options(**{"commit_interval_s": 1} | wrong)
    assert next(iter(wrong)) in str(caught.value)
    assert get_options() is before


@pytest.mark.parametrize(
    ("given_value", "kept"),
    [(True, True), (False, False), (None, None), ("AUTO", None), ("true", True), ("0", False)],
)
def test_progress_is_on_off_or_left_to_the_terminal(given_value, kept):
    with set_options(progress=given_value):
        assert get_options().progress is kept


def test_options_cannot_be_changed_in_place():
    with pytest.raises(FrozenInstanceError):
        get_options().n_threads = 3  # type: ignore[misc]


def test_the_home_folder_may_be_abbreviated():
    with set_options(cache_dir="~/somewhere"):
        assert get_options().cache_dir == Path.home() / "somewhere"


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("memory_budget", "3 GiB", 3 * 2**30),
        ("commit_interval_s", "2.5", 2.5),
        ("lazy_threshold", "1MB", 10**6),
        ("n_decode_workers", "3", 3),
        ("decode_workers", "processes", "processes"),
        ("decode_timeout_s", "2.5", 2.5),
        ("n_threads", "5", 5),
        ("max_image_pixels", "1000", 1000),
        ("cache_dir", "some/where", Path("some/where")),
        ("progress", "false", False),
    ],
    ids=lambda value: str(value),
)
def test_each_option_is_read_from_its_variable(monkeypatch, name, text, expected):
    monkeypatch.setenv(f"FEATURESTORE_{name.upper()}", text)
    from featurestore import options

    assert getattr(options._from_environment(), name) == expected


def test_every_option_can_be_set():
    from featurestore import options

    assert set(options._PARSERS) == {option.name for option in fields(Options)}


def test_variables_count_in_a_new_process():
    done = in_a_new_process("get_options().memory_budget", FEATURESTORE_MEMORY_BUDGET="3 GiB")
    assert done.stdout.strip() == str(3 * 2**30)


def test_an_empty_variable_counts_as_unset():
    done = in_a_new_process(
        "str(get_options().cache_dir) != '.' and get_options().n_threads > 0",
        FEATURESTORE_CACHE_DIR="",
        FEATURESTORE_N_THREADS="",
    )
    assert done.stdout.strip() == "True"


def test_a_variable_that_cannot_be_read_is_named():
    done = in_a_new_process("get_options()", FEATURESTORE_MEMORY_BUDGET="lots")
    assert done.returncode != 0
    assert "FEATURESTORE_MEMORY_BUDGET='lots'" in done.stderr


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", 1),
        ("1B", 1),
        ("2 kB", 2000),
        ("2 KiB", 2048),
        (" 1.5 gb ", 1_500_000_000),
        ("4GiB", 4 * 2**30),
        ("1 TB", 10**12),
        ("1e6", 10**6),
        (2.0, 2),
        (2**63 + 1, 2**63 + 1),
    ],
    ids=str,
)
def test_sizes_are_read(text, expected):
    assert parse_nbytes(text) == expected


@pytest.mark.parametrize("text", ["", "GB", "2 GiBs", "two", "1 XB", "nan", "inf", "1e999", True])
def test_what_is_no_size_is_refused_with_an_example(text):
    with pytest.raises(InvalidInputError, match="2 GiB"):
        parse_nbytes(text)


@given(st.integers(min_value=0, max_value=2**80))
def test_a_bare_integer_counts_bytes_exactly(nbytes):
    assert parse_nbytes(nbytes) == nbytes


@given(st.integers(min_value=0, max_value=10**15 - 1))
def test_a_size_spelled_for_people_reads_back_within_its_digits(nbytes):
    spelled = format_nbytes(nbytes)
    assert "e" not in spelled
    assert parse_nbytes(spelled) == pytest.approx(nbytes, rel=0.0051)


def test_available_cpus_are_those_of_this_process():
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
