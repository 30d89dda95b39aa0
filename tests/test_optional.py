"""Libraries that only some calls need: imported, or missed in words that help."""

from __future__ import annotations

import json
import sys

import pytest

from featurestore.errors import MissingDependencyError
from featurestore.optional import import_optional


@pytest.fixture
def package_folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [n for n in sys.modules if n.partition(".")[0] == "fs_probe"]:
        del sys.modules[name]


def test_a_library_that_is_there_is_imported():
    assert import_optional("json", "all") is json
    assert import_optional("json.decoder", "all") is json.decoder


@pytest.mark.parametrize("module", ["no_such_library", "no_such_library.inner.part"])
def test_a_library_that_is_missing_is_named_with_its_extra(module):
    with pytest.raises(MissingDependencyError) as caught:
        import_optional(module, "timm")
    assert caught.value.package == "no_such_library"
    assert caught.value.extra == "timm"
    assert "no_such_library" in str(caught.value)
    assert 'pip install "featurestore[timm]"' in str(caught.value)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)


def test_a_library_that_lacks_a_part_is_not_said_to_be_missing_whole(package_folder):
    (package_folder / "fs_probe.py").write_text("")
    with pytest.raises(MissingDependencyError, match=r"needs fs_probe\.part, which"):
        import_optional("fs_probe.part", "timm")


def test_a_library_that_lacks_something_of_its_own_says_so_itself(package_folder):
    (package_folder / "fs_probe.py").write_text("import another_missing_library")
    with pytest.raises(ModuleNotFoundError, match="another_missing_library") as caught:
        import_optional("fs_probe", "timm")
    assert not isinstance(caught.value, MissingDependencyError)


def test_a_library_that_fails_to_load_is_not_said_to_be_missing(package_folder):
    (package_folder / "fs_probe.py").write_text("raise ImportError('wrong ABI')")
    with pytest.raises(ImportError, match="wrong ABI") as caught:
        import_optional("fs_probe", "timm")
    assert not isinstance(caught.value, MissingDependencyError)


def test_a_missing_library_is_an_import_error():
    with pytest.raises(ImportError):
        import_optional("no_such_library", "timm")
