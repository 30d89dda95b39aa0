"""Canonical JSON: one spelling for a value, another for every other value, none for the rest."""

from __future__ import annotations

import collections
import enum
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from featurestore.canonical import canonical_json, digest_bytes, digest_of
from featurestore.errors import IdentityError

# Spellings written by hand, digests computed from them; never changed, only added to. A case that
# fails means that stores which exist already would no longer be understood.
GOLDEN = json.loads(
    (Path(__file__).parent / "conformance" / "canonical.json").read_text(encoding="utf-8")
)

scalars = (
    st.none()
    | st.booleans()
    | st.integers(min_value=-(2**70), max_value=2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


class Colour(enum.IntEnum):
    RED = 1


class Word(enum.StrEnum):
    RED = "red"


def exactly(value):
    """Spell a value with its types, so that 1, 1.0, True and -0.0 all differ."""
    if isinstance(value, list):
        return ("list", [exactly(item) for item in value])
    if isinstance(value, dict):
        return ("dict", {name: exactly(item) for name, item in value.items()})
    return (type(value).__name__, repr(value))


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: case["name"])
def test_golden_spellings_and_digests_hold(case):
    assert canonical_json(case["value"]).decode() == case["spelling"]
    by_hand = f'["featurestore:{case["kind"]}",{case["spelling"]}]'
    assert xxhash.xxh3_128_hexdigest(by_hand.encode()) == case["digest"]
    assert digest_of(case["kind"], case["value"]) == case["digest"]


def test_golden_cases_are_never_removed():
    assert len(GOLDEN) >= 16
    assert len({case["name"] for case in GOLDEN}) == len(GOLDEN)
    assert len({case["digest"] for case in GOLDEN}) == len(GOLDEN)


@given(values)
def test_the_spelling_reads_back_as_the_value(value):
    assert exactly(json.loads(canonical_json(value))) == exactly(value)


@given(values)
def test_spelling_what_was_read_back_changes_nothing(value):
    spelling = canonical_json(value)
    assert canonical_json(json.loads(spelling)) == spelling


@given(values, values)
def test_two_values_share_a_spelling_only_if_they_are_the_same(one, other):
    same = exactly(one) == exactly(other)
    assert (canonical_json(one) == canonical_json(other)) is same


@given(st.dictionaries(st.text(), scalars, min_size=2), st.randoms(use_true_random=False))
def test_the_order_of_names_does_not_matter(value, random):
    items = list(value.items())
    random.shuffle(items)
    assert canonical_json(dict(items)) == canonical_json(value)


@given(st.lists(values, max_size=3))
def test_a_tuple_is_spelled_like_a_list(items):
    assert canonical_json(tuple(items)) == canonical_json(items)


def test_names_are_sorted_by_code_point_not_by_utf16_unit():
    # As UTF-16 the second would come first.
    assert canonical_json({"\U00010000": 1, "\uffff": 2}) == '{"\uffff":2,"\U00010000":1}'.encode()


def test_numbers_that_compare_equal_are_still_told_apart():
    spellings = {canonical_json(value) for value in (1, 1.0, True, "1", [1], 0.0, -0.0, 0, False)}
    assert len(spellings) == 9


@pytest.mark.parametrize(
    "value",
    [
        math.nan,
        math.inf,
        -math.inf,
        {1, 2},
        frozenset(),
        b"bytes",
        object(),
        1j,
        Path("a"),
        print,
        np.float64(1.0),
        np.float32(1.0),
        np.int64(1),
        np.bool_(True),
        np.str_("a"),
        np.zeros(2),
        Colour.RED,
        Word.RED,
        collections.UserDict(a=1),
        "\ud800",
        range(3),
        ...,
    ],
    ids=lambda value: f"{type(value).__name__} {ascii(value)[:20]}",
)
@pytest.mark.parametrize(
    "place",
    [lambda v: v, lambda v: [0, v], lambda v: {"a": v}, lambda v: {"a": ({"b": v},)}],
    ids=["alone", "in a list", "in a dict", "deep"],
)
def test_what_has_no_canonical_form_is_refused(value, place):
    with pytest.raises(IdentityError):
        canonical_json(place(value))


@pytest.mark.parametrize("name", [1, None, True, 1.5, (1,), b"a", Word.RED, "\udfff"], ids=ascii)
def test_a_name_that_is_not_a_string_is_refused(name):
    with pytest.raises(IdentityError):
        canonical_json({"a": 1, name: 2})


def test_the_message_says_where_the_trouble_is():
    value: Any = {"crop": [224, {1}]}
    with pytest.raises(IdentityError, match=r"value\['crop'\]\[1\] is a builtins\.set"):
        canonical_json(value)


def test_a_value_that_contains_itself_is_refused():
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(IdentityError, match="nested"):
        canonical_json(loop)


def test_equal_values_of_two_kinds_have_two_digests():
    assert digest_of("model", {"a": 1}) != digest_of("alias", {"a": 1})
    # The kind is quoted, so that it cannot run over into the value.
    assert digest_of('a",1', 2) != digest_of("a", [1, 2])


@given(st.text(alphabet=st.characters(codec="ascii")), values)
def test_a_digest_is_32_hex_digits_and_the_same_16_bytes(kind, value):
    digest = digest_of(kind, value)
    assert len(digest) == 32
    assert digest_bytes(kind, value) == bytes.fromhex(digest)
    assert digest == digest.lower()
