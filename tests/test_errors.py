"""The exception tree: what catches what, and what survives the way home from a worker."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import pytest

from featurestore import errors
from featurestore.errors import FeatureStoreError, did_you_mean

BASES = {
    "FeatureStoreError": (errors._WithFacts, Exception),
    "NotFoundError": (FeatureStoreError, KeyError),
    "ModelNotFoundError": (errors.NotFoundError,),
    "ModuleNotFoundInModelError": (errors.NotFoundError,),
    "FeaturesMissingError": (errors.NotFoundError,),
    "StoreNotFoundError": (FeatureStoreError, FileNotFoundError),
    "InvalidInputError": (FeatureStoreError, ValueError),
    "ImageDecodeError": (errors.InvalidInputError,),
    "LabelMismatchError": (errors.InvalidInputError,),
    "AmbiguousModuleError": (errors.InvalidInputError,),
    "IdentityError": (errors.InvalidInputError,),
    "WeightsChangedError": (FeatureStoreError,),
    "CorruptDataError": (FeatureStoreError,),
    "FormatVersionError": (FeatureStoreError,),
    "MemoryBudgetError": (FeatureStoreError,),
    "DiskSpaceError": (FeatureStoreError,),
    "ReadOnlyError": (FeatureStoreError,),
    "StoreUnavailableError": (FeatureStoreError, OSError),
    "ExtractionInterrupted": (errors._WithFacts, KeyboardInterrupt),
    "MissingDependencyError": (FeatureStoreError, ImportError),
}
CLASSES = [getattr(errors, name) for name in BASES]

each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def raise_in_worker(cls):
    raise cls("asked for 'a'.", image="a.png", nbytes=3)


def test_the_tree_is_the_one_that_is_documented():
    found = {
        name: cls.__bases__
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, FeatureStoreError)
    }
    interrupted = errors.ExtractionInterrupted
    assert issubclass(interrupted, KeyboardInterrupt)
    assert not issubclass(interrupted, Exception)  # `except Exception` must not swallow Ctrl-C
    assert {**found, "ExtractionInterrupted": interrupted.__bases__} == BASES
    assert [name for name in BASES if name not in (errors.__doc__ or "")] == []


def test_warnings_of_the_package_are_user_warnings():
    assert issubclass(errors.FeatureStoreWarning, UserWarning)


@each_class
def test_the_message_is_shown_as_it_is_without_quotes(cls):
    assert str(cls("no module 'a'.")) == "no module 'a'."


@each_class
def test_facts_are_attributes(cls):
    error = cls("message", images=("a", "b"), nbytes=3)
    assert error.images == ("a", "b")
    assert error.nbytes == 3
    assert error.message == "message"


@each_class
@pytest.mark.parametrize("name", ["name", "path", "filename", "errno", "msg", "missing", "kind"])
def test_no_builtin_base_hides_a_fact(cls, name):
    assert getattr(cls("message", **{name: 7}), name) == 7


@each_class
def test_a_fact_that_is_not_there_is_an_attribute_error_that_lists_the_facts(cls):
    error = cls("message", images=())
    with pytest.raises(AttributeError, match=r"no fact 'missing'.*\['images'\]"):
        _ = error.missing
    assert not hasattr(error, "missing")


@each_class
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_pickling_keeps_class_message_and_facts(cls, protocol):
    error = cls("no module 'a'.", images=["a"], nbytes=3)
    back = pickle.loads(pickle.dumps(error, protocol=protocol))
    assert type(back) is cls
    assert str(back) == "no module 'a'."
    assert back.args == error.args
    assert back.facts == {"images": ["a"], "nbytes": 3}
    assert (back.images, back.nbytes) == (["a"], 3)


def test_pickling_keeps_notes():
    error = errors.CorruptDataError("message", images=())
    error.add_note("in column 3")
    assert pickle.loads(pickle.dumps(error)).__notes__ == ["in column 3"]


@each_class
def test_copies_keep_the_facts(cls):
    error = cls("message", images=["a"])
    assert copy.copy(error).images == ["a"]
    deep = copy.deepcopy(error)
    assert deep.images == ["a"]
    assert deep.images is not error.images


def test_errors_come_home_from_another_process():
    # Spawned, so that nothing is inherited: the error must travel as bytes.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        work = pool.submit(raise_in_worker, errors.ModelNotFoundError)
        with pytest.raises(KeyError) as caught:
            work.result()
    assert isinstance(caught.value, errors.ModelNotFoundError)
    assert str(caught.value) == "asked for 'a'."
    assert caught.value.image == "a.png"


@pytest.mark.parametrize(
    ("cls", "builtin"),
    [
        (errors.FeaturesMissingError, KeyError),
        (errors.StoreNotFoundError, OSError),
        (errors.StoreUnavailableError, OSError),
        (errors.IdentityError, ValueError),
        (errors.MissingDependencyError, ImportError),
        (errors.ExtractionInterrupted, KeyboardInterrupt),
    ],
    ids=lambda cls: cls.__name__,
)
def test_a_handler_for_the_builtin_catches_ours(cls, builtin):
    with pytest.raises(builtin):
        raise cls("message")


@pytest.mark.parametrize(
    ("word", "choices", "expected"),
    [
        ("feature.10", ["features.10", "classifier.6"], " Did you mean 'features.10'?"),
        ("zzz", ["features.10"], ""),
        ("", ["features.10"], ""),
        ("features.10", [], ""),
        ("10", ["features.10"], " Did you mean 'features.10'?"),
    ],
    ids=["near", "far", "empty word", "no choices", "part of a name"],
)
def test_near_misses_are_suggested(word, choices, expected):
    assert did_you_mean(word, choices) == expected


def test_at_most_three_near_misses_are_suggested_each_once():
    names = [f"features.{number}" for number in range(20)]
    said = did_you_mean("features", names)
    assert said.count("'features.") == 3
    assert len(set(said.split("'")[1::2])) == 3


def test_near_misses_may_come_from_an_iterator():
    assert did_you_mean("alexnt", iter(["alexnet"])) == " Did you mean 'alexnet'?"
