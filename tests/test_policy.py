"""The decode policy: each choice takes part in keys, and a choice that means nothing is refused."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields
from typing import Any, get_args

import pytest

from featurestore.canonical import canonical_json
from featurestore.errors import InvalidInputError
from featurestore.policy import Alpha, DecodePolicy, Exif, SixteenBit

OTHER: dict[str, Any] = {
    "exif": "apply",
    "alpha": "white",
    "sixteen_bit": "scale",
    "frame": 1,
    "eps_dpi": 72,
}


def test_the_default_policy_is_spelled_as_in_keys_that_exist():
    # Golden: changing this makes every stored column unknown.
    assert canonical_json(DecodePolicy().to_json()) == (
        b'{"alpha":"drop","eps_dpi":null,"exif":"ignore","frame":0,"sixteen_bit":"error"}'
    )


def test_every_choice_has_an_alternative_here():
    assert set(OTHER) == {choice.name for choice in fields(DecodePolicy)}


@pytest.mark.parametrize("name", OTHER)
def test_changing_one_choice_changes_the_spelling(name):
    changed = DecodePolicy(**{name: OTHER[name]})
    assert changed != DecodePolicy()
    assert canonical_json(changed.to_json()) != canonical_json(DecodePolicy().to_json())


def test_a_policy_comes_back_from_its_record():
    policy = DecodePolicy(**OTHER)
    record: dict[str, Any] = policy.to_json()
    assert DecodePolicy(**record) == policy


@pytest.mark.parametrize(
    ("name", "choices"),
    [("exif", Exif), ("alpha", Alpha), ("sixteen_bit", SixteenBit)],
    ids=["exif", "alpha", "sixteen_bit"],
)
def test_each_word_is_accepted_and_any_other_refused_with_the_list(name, choices):
    for word in get_args(choices):
        assert getattr(DecodePolicy(**{name: word}), name) == word
    wrong: dict[str, Any] = {name: "maybe"}
    with pytest.raises(InvalidInputError) as caught:
        DecodePolicy(**wrong)
    for part in (name, "maybe", *get_args(choices)):
        assert part in str(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        {"frame": -1},
        {"frame": 1.0},
        {"frame": True},
        {"frame": None},
        {"eps_dpi": 0},
        {"eps_dpi": 2401},
        {"eps_dpi": 72.0},
        {"eps_dpi": True},
        {"exif": None},
        {"alpha": ["drop"]},
    ],
    ids=str,
)
def test_numbers_that_mean_nothing_are_refused(wrong):
    with pytest.raises(InvalidInputError, match=next(iter(wrong))):
        DecodePolicy(**wrong)


def test_a_policy_is_a_value():
    assert hash(DecodePolicy()) == hash(DecodePolicy())
    with pytest.raises(FrozenInstanceError):
        DecodePolicy().frame = 2  # type: ignore[misc]
