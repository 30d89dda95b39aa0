"""The shape of the package itself: small modules, a light front door, one word in one place."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest

import featurestore

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "featurestore"
MODULES = sorted(PACKAGE.rglob("*.py"))
TEXTS = [
    *MODULES,
    *sorted((ROOT / "tests").rglob("*.py")),
    *sorted((ROOT / "benchmarks").rglob("*.py")),
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(ROOT.glob("*.md")),
]
HEAVY = (
    "dask",
    "h5py",
    "matplotlib",
    "numpy",
    "pandas",
    "scipy",
    "tensorflow",
    "tensorstore",
    "torch",
    "torchvision",
    "xarray",
    "zarr",
)
MAX_LINES = 400
MAX_PUBLIC_METHODS = 12
VAGUE_NAMES = {"utils", "util", "helpers", "helper", "misc", "common", "core", "base"}
# Someone's own folder, rather than a place that exists for every reader.
PERSONAL_PATH = re.compile(r"(?<![\w.])/(home|Users|root|work)/\w")


def name_of(path):
    return path.relative_to(ROOT).as_posix()


def public_methods(node):
    """Names that a user of the class has to know; what a test class tests are not such."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    names = [n.name for n in node.body if isinstance(n, functions)]
    return [name for name in names if not name.startswith(("_", "test_"))]


def run_python(code):
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_stays_small(path):
    source = path.read_text(encoding="utf-8")
    assert source.count("\n") <= MAX_LINES
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ClassDef):
            assert len(public_methods(node)) <= MAX_PUBLIC_METHODS, node.name


def test_no_module_has_a_name_that_says_nothing():
    assert [name_of(path) for path in MODULES if path.stem.strip("_") in VAGUE_NAMES] == []


def test_every_folder_of_the_package_and_of_the_tests_is_importable():
    for path in [*MODULES, *(ROOT / "tests").rglob("test_*.py")]:
        assert (path.parent / "__init__.py").is_file(), name_of(path)


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_no_text_names_a_folder_of_one_person(path):
    assert PERSONAL_PATH.search(path.read_text(encoding="utf-8")) is None


def test_every_public_name_resolves():
    for name in featurestore.__all__:
        assert getattr(featurestore, name) is not None


def test_no_public_name_is_also_a_module():
    # Importing featurestore.networks would put the folder in the place of a function `models`.
    modules = {path.stem for path in PACKAGE.iterdir()}
    assert modules.intersection(featurestore.__all__) == set()


def test_public_names_are_sorted_and_named_once():
    names = featurestore.__all__
    assert names == sorted(set(names), key=str.casefold)
    assert set(names) < set(dir(featurestore))


def test_an_unknown_public_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = featurestore.no_such_name


def test_type_checkers_see_the_names_that_are_resolved_lazily():
    tree = ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8"))
    (block,) = [n for n in tree.body if isinstance(n, ast.If)]
    assert ast.unparse(block.test) == "TYPE_CHECKING"
    seen = {}
    for statement in block.body:
        assert isinstance(statement, ast.ImportFrom), ast.unparse(statement)
        for alias in statement.names:
            # `import a as a` is what strict type checkers take for a re-export.
            assert alias.asname == alias.name, alias.name
            assert statement.level == 0
            seen[alias.name] = statement.module
    assert seen == featurestore._HOME


def test_the_version_is_the_one_that_was_installed():
    assert featurestore.__version__ == version("featurestore")


def test_the_citation_and_the_package_agree_on_the_version():
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {featurestore.__version__}\n" in text


def test_importing_the_package_loads_nothing_heavy():
    code = (
        "import sys, featurestore; featurestore.get_options(); "
        f"print([name for name in {HEAVY!r} if name in sys.modules])"
    )
    assert run_python(code) == "[]"


def test_every_documentation_page_is_reached_from_the_index():
    index = (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    pages = [p.relative_to(ROOT / "docs").as_posix() for p in (ROOT / "docs").rglob("*.md")]
    assert [page for page in pages if page != "README.md" and f"({page})" not in index] == []


def test_links_between_documentation_pages_lead_somewhere():
    for page in [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8")):
            if "://" not in target and not target.startswith("mailto:"):
                assert (page.parent / target).exists(), f"{name_of(page)}: {target}"
