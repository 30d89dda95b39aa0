"""A store that came from a stranger is data only: it gives values, or errors that say so.

Never a wrong value, never code that runs, never a file touched outside of it, never memory by the
terabyte. Every document here carries a correct checksum: these are not accidents.
"""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
from pathlib import Path

import numcodecs
import numpy as np
import pytest

import featurestore as fs
from featurestore.errors import (
    CorruptDataError,
    FeatureStoreError,
    FormatVersionError,
    InvalidInputError,
    MemoryBudgetError,
)
from featurestore.networks import registry
from featurestore.storage import records
from featurestore.storage.blob import LocalBlobs
from featurestore.storage.catalog import open_catalog
from featurestore.storage.frames import content_nbytes, decode_exactly
from featurestore.storage.shard import crc32c
from featurestore.testing.tiny import tiny_network

NAME, MODULE = "squeezenet1_1", "features.0"
DEEP = json.loads("[" * 200 + "]" * 200)
HOSTILE = (
    None, True, -1, 0, 1, 3, 2**31, 2**63, 10**300, 0.5, float("nan"), float("inf"), "", "x",
    "../../outside", "/etc/passwd", "\x1b[2J", "é" * 1000, [], [None], [-1], [2**40],
    [2**62, 2**62], ["../x"], [1] * 1000, DEEP, {}, {"a": None},
)  # fmt: skip


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    """A small store with a named model, and what it holds."""
    place = tmp_path_factory.mktemp("original")
    store = fs.open_store(place / "s.fstore")
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    images = fs.read_images(pixels, names=["a", "b", "c"])
    network = tiny_network()
    truth = store.get(network, MODULE, images, load=True).values
    store.get(network, "classifier", images)
    # The name of another network leads to this one, so that no large one has to run.
    request = registry.request(NAME, weights="random")
    open_catalog(place / "s.fstore", "a").create_alias(request, network.spec.key)
    return place / "s.fstore", images, truth


@pytest.fixture
def copy(original, tmp_path):
    root = tmp_path / "place" / "s.fstore"
    shutil.copytree(original[0], root)
    return root


@pytest.fixture(autouse=True)
def little_memory():
    """Refuse this process more than 4 GiB beyond what it has."""
    if not Path("/proc/self/statm").exists():  # not Linux: the other checks still hold
        yield
        return
    before = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + 4 * 2**30, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, before)


def document(root, kind, number=0):
    return sorted((root / kind).glob("*.json"))[number]


def rewrite(path, change):
    """Change a document, and give it the checksum that it needs."""
    content = json.loads(path.read_bytes())
    content.pop("checksum", None)
    change(content)
    try:
        data = records.spell(content)
    except FeatureStoreError:  # it has no canonical form, so it has no checksum either
        data = json.dumps({**content, "checksum": "0" * 16}).encode()
    path.write_bytes(data)


def look(root, original, mode):
    """Do everything that a reader does; returns the errors, all of ours."""
    _, images, truth = original
    errors = []

    def attempt(act):
        try:
            return act()
        except FeatureStoreError as err:
            errors.append(err)

    store = attempt(lambda: fs.open_store(root, mode=mode))
    if store is None:
        return errors
    attempt(lambda: repr(store.ls()))
    attempt(lambda: repr(store.images()))
    attempt(lambda: store.images("images"))
    asked = {"weights": "random"} if mode == "r" else {}
    model = NAME if mode == "r" else tiny_network()
    attempt(lambda: repr(store.plan(model, MODULE, images, **asked)))
    values = attempt(lambda: store.get(model, MODULE, images, **asked).values)
    if values is not None:
        np.testing.assert_array_equal(values, truth)
    assert all(str(err) for err in errors)
    return errors


def fields(content, path=()):
    """Every place in a document, two entries of each list."""
    if path:
        yield path
    inner = content.items() if isinstance(content, dict) else enumerate(content[:2])
    for name, value in inner:
        if isinstance(value, dict | list):
            yield from fields(value, (*path, name))
        else:
            yield (*path, name)


def put(content, path, value):
    for step in path[:-1]:
        content = content[step]
    content[path[-1]] = value


def remove(content, path):
    for step in path[:-1]:
        content = content[step]
    del content[path[-1]]


KINDS = ("models", "aliases", "runs", "imagesets", "layouts", "featurestore.json", "zarr.json")


def paths_of(root, kind):
    if kind == "featurestore.json":
        return [root / kind]
    if kind == "zarr.json":
        return sorted((root / "columns").glob("*/zarr.json"))
    return sorted((root / kind).glob("*.json"))


def fuzz(root, original, kind, mode, values):
    """Put every value into every field of one kind of document."""
    outside = sorted(root.parent.parent.rglob("*"))
    before = [path for path in outside if root not in path.parents]
    if mode == "r" and kind in ("layouts", "zarr.json"):  # each is a copy of the other
        for path in paths_of(root, "zarr.json" if kind == "layouts" else "layouts"):
            path.unlink()
    for path in paths_of(root, kind):
        good = path.read_bytes()
        content = {k: v for k, v in json.loads(good).items() if k != "checksum"}
        places = [place for place in fields(content) if place[:1] != ("consolidated_metadata",)]
        for number, place in enumerate(places):
            for value in values(number):
                rewrite(path, lambda c, p=place, v=value: put(c, p, v))
                look(root, original, mode)
                path.write_bytes(good)
                if mode == "a":
                    shutil.rmtree(root)
                    shutil.copytree(original[0], root)
            rewrite(path, lambda c, p=place: remove(c, p))
            look(root, original, mode)
            path.write_bytes(good)
    after = [path for path in root.parent.parent.rglob("*") if root not in path.parents]
    assert sorted(after) == before


def some(number):
    return [HOSTILE[(5 * number + step) % len(HOSTILE)] for step in (0, 11)]


@pytest.mark.parametrize("kind", KINDS)
def test_no_field_of_any_document_crashes_a_reader_or_gives_a_wrong_value(copy, original, kind):
    fuzz(copy, original, kind, "r", some)


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("kind", KINDS)
def test_no_value_in_any_field_crashes_a_reader_or_gives_a_wrong_value(copy, original, kind, mode):
    fuzz(copy, original, kind, mode, lambda number: HOSTILE)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"{", b"null", b"[]", b'"x"', b"\xff\xfe", b"[" * 100_000, b"9" * 100_000,
        b'{"checksum": []}', pickle.dumps({"checksum": "x"}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["models", "layouts", "imagesets"])
def test_what_is_no_document_is_damage(copy, original, kind, data):
    for path in [*(copy / kind).glob("*.json"), *(copy / "columns").glob("*/zarr.json")]:
        path.write_bytes(data)  # the latter has a copy of a layout
    assert any(isinstance(err, CorruptDataError) for err in look(copy, original, "r")) or (
        kind == "imagesets"
    )


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("shape", [2**62, 2**62, 1], "shape"),
        ("shape", [-8, -32, 32], "shape"),
        ("shape", [8.0, 32, 32], "shape"),
        ("dims", ["image", "y", "x"], "dims"),
        ("dims", ["channel", "y"], "dims"),
        ("dims", ["y", "y", "x"], "dims"),
        ("dims", ["../c", "y", "x"], "dims"),
        ("dtype", "object", "dtype"),
        ("dtype", "|O", "dtype"),
        ("rows_per_slot", 2**40, "rows_per_slot"),
        ("rows_per_slot", 100, "rows_per_slot"),
        ("rows_per_slot", True, "rows_per_slot"),
        ("chunk_rows", 0, "chunk_rows"),
        ("chunk_shape", [0, 1, 1], "chunk_shape"),
        ("chunk_shape", [8, 32, 64], "chunk_shape"),
        ("compressed", 1, "compressed"),
        ("key", "0" * 32, "key"),
    ],
)
def test_a_layout_that_means_nothing_is_refused_by_the_name_of_the_field(
    copy, original, name, value, field
):
    _, images, truth = original
    for path in (copy / "layouts").glob("*.json"):
        rewrite(path, lambda content: put(content, (name,), value))
    for path in (copy / "columns").glob("*/zarr.json"):
        path.unlink()  # which holds the layout again
    store = fs.open_store(copy, mode="r")
    with pytest.raises(CorruptDataError, match="makes no sense") as caught:
        store.get(NAME, MODULE, images, weights="random")
    assert caught.value.field == field
    assert store.ls() == []
    # A store that may be written sets it aside and computes anew.
    again = fs.open_store(copy).get(tiny_network(), MODULE, images)
    np.testing.assert_array_equal(again.values, truth)


def test_a_document_of_a_newer_format_is_not_taken_for_damage(copy, original):
    for path in (copy / "models").glob("*.json"):
        rewrite(path, lambda content: put(content, ("format",), 2))
        data = path.read_bytes()
        with pytest.raises(FormatVersionError):
            fs.open_store(copy).get(tiny_network(), MODULE, original[1])
        assert path.read_bytes() == data


def test_a_document_under_another_key_is_refused(copy, original):
    for kind in ("models", "layouts"):
        path = document(copy, kind)
        path.rename(path.with_name(f"{'0' * 32}.json"))
    errors = look(copy, original, "r")
    assert errors


def test_an_image_set_that_was_changed_is_not_the_one_of_its_key(copy):
    path = document(copy, "imagesets")
    rewrite(path, lambda content: content["record"]["names"].reverse())
    with pytest.raises(CorruptDataError, match="not the one that its key stands for"):
        fs.open_store(copy, mode="r").images("images")


@pytest.mark.parametrize(
    "record",
    [
        {"names": ["a", "b"], "digests": ["0" * 32], "coords": {}, "label": "x"},
        {"names": [["a"]], "digests": ["z" * 32], "coords": {}, "label": "x"},
        {"names": ["a"], "digests": ["0" * 32], "coords": {"c": 3}, "label": "x"},
        {"names": ["a"], "digests": ["0" * 32], "coords": {"c": {"dtype": "O", "values": [1]}},
         "label": "x"},
        {"names": ["a"], "digests": ["0" * 32],
         "coords": {"c": {"dtype": "uint8", "values": [2**70]}}, "label": "x"},
        {"names": ["a"], "digests": ["0" * 32],
         "coords": {"c": {"dtype": "S1000000000", "values": ["x"]}}, "label": "x"},
        {"names": [""], "digests": ["0" * 32], "coords": {}, "label": "x"},
        {"names": None, "digests": None, "coords": None, "label": None},
    ],
)  # fmt: skip
def test_image_sets_that_mean_nothing_are_left_out_of_the_list(copy, record, caplog):
    from featurestore.canonical import digest_of

    key = digest_of("imageset", record)
    content = {"format": 1, "key": key, "created": "2026", "record": record}
    (copy / "imagesets" / f"{key}.json").write_bytes(records.spell(content))
    store = fs.open_store(copy, mode="r")
    assert [info.label for info in store.images()] == ["images"]
    assert key in caplog.text


def test_hostile_names_of_images_stay_names(copy, tmp_path):
    from featurestore.canonical import digest_of

    names = ["../../../tmp/x", "/etc/passwd", "a\x1b[2Jb", "<script>", "$(rm -rf ~)", "a\nb"]
    digests = [f"{number:032x}" for number in range(1, 7)]
    record = {"label": "../\x1b[2Jlabel", "names": names, "digests": digests, "coords": {}}
    key = digest_of("imageset", record)
    content = {"format": 1, "key": key, "created": "2026", "record": record}
    (copy / "imagesets" / f"{key}.json").write_bytes(records.spell(content))
    store = fs.open_store(copy, mode="r")
    assert list(store.images(key[:12]).names) == names
    assert "\x1b" not in repr(store.images())


def test_files_that_are_not_ours_are_left_alone(copy, original):
    for kind in ("models", "layouts", "imagesets"):
        (copy / kind / "..json").write_text("{}")
        (copy / kind / "notes.json").write_text("{}")
        (copy / kind / f"{'A' * 32}.json").write_text("{}")
    assert look(copy, original, "r") == []


def test_columns_that_say_they_are_of_something_else_are_not_listed(copy, original):
    def lie(content):
        content["feature"]["module"] = "classifier" if len(content["shape"]) > 1 else MODULE

    for path in (copy / "layouts").glob("*.json"):
        rewrite(path, lie)
    store = fs.open_store(copy, mode="r")
    assert store.ls() == []
    with pytest.raises(CorruptDataError, match="not what was written"):
        store.get(NAME, MODULE, original[1], weights="random")


# Links, pipes and folders.


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("kind", ["models", "layouts", "imagesets", "featurestore.json"])
def test_a_link_to_a_file_outside_is_not_followed(copy, original, tmp_path, kind, mode):
    secret = tmp_path / "secret"
    for path in paths_of(copy, kind):
        secret.write_bytes(path.read_bytes())
        path.unlink()
        path.symlink_to(secret)
    content = secret.read_bytes()
    errors = look(copy, original, mode)
    assert any("symbolic link" in str(err) for err in errors)
    assert secret.read_bytes() == content
    copies = [path for path in copy.rglob("*") if not path.is_symlink() and path.is_file()]
    assert not any(path.read_bytes() == content for path in copies)


@pytest.mark.parametrize("mode", ["r", "a"])
@pytest.mark.parametrize("array", ["activations", "image", "run"])
def test_links_to_the_files_of_a_slot_are_not_followed(copy, original, tmp_path, array, mode):
    for column in (copy / "columns").iterdir():
        for path in (column / array).glob("c.*"):
            moved = tmp_path / f"{column.name}-{array}-{path.name}"
            path.rename(moved)
            path.symlink_to(moved)
    errors = look(copy, original, mode)
    assert any("symbolic link" in str(err) and "cp -rL" in str(err) for err in errors)


@pytest.mark.parametrize("folder", ["columns", "models", "layouts", "imagesets", "runs"])
def test_nothing_is_written_through_a_linked_folder(copy, original, tmp_path, folder):
    outside = tmp_path / "outside"
    shutil.rmtree(copy / folder)
    outside.mkdir()
    (copy / folder).symlink_to(outside, target_is_directory=True)
    pixels = np.random.default_rng(1).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    with pytest.raises(InvalidInputError, match="symbolic link that leads out") as caught:
        fs.open_store(copy).get(tiny_network(1), MODULE, fs.read_images(pixels, names=["d", "e"]))
    assert caught.value.target.startswith(str(outside))
    assert list(outside.iterdir()) == []


def test_a_linked_column_is_neither_read_nor_written(copy, original, tmp_path):
    for column in list((copy / "columns").iterdir()):
        shutil.move(column, tmp_path / column.name)
        column.symlink_to(tmp_path / column.name, target_is_directory=True)
    before = sorted(tmp_path.rglob("*"))
    for mode in ("r", "a"):
        assert any("symbolic link" in str(err) for err in look(copy, original, mode))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_store_that_is_itself_reached_through_a_link_works(copy, original, tmp_path):
    link = tmp_path / "link.fstore"
    link.symlink_to(copy, target_is_directory=True)
    assert look(link, original, "r") == look(link, original, "a") == []
    # So does a link that stays inside.
    path = document(copy, "models")
    path.rename(copy / "elsewhere.json")
    path.symlink_to(copy / "elsewhere.json")
    assert look(copy, original, "r") == []


def test_paths_out_of_the_store_are_refused(copy, tmp_path):
    (tmp_path / "place" / "outside.json").write_text("{}")
    blobs = LocalBlobs(copy)
    for path in ("../outside.json", "models/../../outside.json", str(tmp_path / "x.json")):
        for act in (blobs.get, blobs.nbytes, blobs.delete, lambda p: blobs.create(p, b"x")):
            with pytest.raises(InvalidInputError):
                act(path)
    assert sorted(p.name for p in (tmp_path / "place").iterdir()) == ["outside.json", "s.fstore"]


def test_links_in_circles_pipes_and_folders_do_not_stop_a_reader(copy, original):
    circle = document(copy, "models")
    circle.unlink()
    circle.symlink_to(circle)
    assert look(copy, original, "r")
    pipe = document(copy, "layouts")
    pipe.unlink()
    os.mkfifo(pipe)
    assert look(copy, original, "r")  # and does not wait for a writer
    circle.unlink()
    circle.mkdir()
    assert look(copy, original, "r")


# Blobs: what stands where arrays are expected.


def an_object_array():
    import io

    file = io.BytesIO()
    np.save(file, np.array([{"a": 1}], dtype=object), allow_pickle=True)
    return file.getvalue()


@pytest.mark.parametrize("array", ["activations", "image", "run", "row_stats"])
@pytest.mark.parametrize(
    "data", [b"", an_object_array(), pickle.dumps([1]), b"\x00" * 10_000, b"PK\x03\x04" * 100]
)
def test_files_that_are_no_arrays_are_damage(copy, original, array, data):
    for path in (copy / "columns").glob(f"*/{array}/c.*"):
        path.write_bytes(data)
    errors = look(copy, original, "r")
    assert bool(errors) == (array in ("activations", "image"))
    shutil.rmtree(copy)
    shutil.copytree(original[0], copy)
    for path in (copy / "columns").glob(f"*/{array}/c.*"):
        path.write_bytes(data)
    look(copy, original, "a")  # finds the damage where values are read lazily
    assert look(copy, original, "a") == []  # and has them computed anew


@pytest.mark.parametrize("array", ["activations", "image", "run"])
def test_sparse_files_of_terabytes_are_not_read_into_memory(copy, original, array):
    for path in (copy / "columns").glob(f"*/{array}/c.*"):
        with path.open("r+b") as file:
            file.truncate(2**40)
    errors = look(copy, original, "r")
    assert bool(errors) == (array != "run")


@pytest.mark.parametrize("kind", ["models", "layouts", "imagesets", "zarr.json"])
def test_documents_of_terabytes_are_not_read_into_memory(copy, original, kind):
    for path in paths_of(copy, kind):
        with path.open("r+b") as file:
            file.truncate(2**40)
    errors = look(copy, original, "r")
    assert bool(errors) == (kind in ("models", "imagesets"))  # a layout has a second copy


def test_slot_numbers_beyond_any_count_are_left_alone(copy, original):
    for column in (copy / "columns").iterdir():
        record = next((column / "image").glob("c.*")).read_bytes()
        for number in ("9" * 30, "9" * 200, "-1", "٣", "0x1"):
            (column / "image" / f"c.{number}.0").write_bytes(record)
        (column / "damage").mkdir()
        (column / "damage" / ("9" * 30)).write_text('{"rows": [0]}')
    assert look(copy, original, "r") == []


@pytest.mark.parametrize(
    "marker", ['{"rows": [-5]}', '{"rows": [1e999]}', '{"rows": [99999]}', "[" * 100_000, "{}"]
)
def test_a_marker_that_means_nothing_costs_values_and_gives_no_wrong_ones(copy, original, marker):
    for column in (copy / "columns").iterdir():
        (column / "damage").mkdir()
        (column / "damage" / "0").write_text(marker)
    assert look(copy, original, "r")
    assert look(copy, original, "a") == []


# Compressed chunks.


@pytest.fixture
def bomb():
    """A frame that does not say that it holds 800 MB."""
    program = shutil.which("zstd")
    if program is None:
        pytest.skip("needs the program zstd")
    made = subprocess.run(
        [program, "-q", "-c"], input=bytes(400_000_000), capture_output=True, check=True
    )
    return made.stdout


def frame(nbytes):
    return bytes(numcodecs.Zstd(level=-1).encode(bytes(nbytes)))


def claiming(nbytes):
    """A frame whose header says something else."""
    return bytes.fromhex("28b52ffd") + bytes([0xC0, 0x58]) + struct.pack("<Q", nbytes) + bytes(8)


def refused(data):
    out = np.full(1000, 7, np.uint8)
    with pytest.raises(ValueError, match=r".+"):
        decode_exactly(np.frombuffer(data, np.uint8), out)
    return out


def test_a_frame_must_fill_its_chunk_exactly(bomb):
    out = np.full(1000, 7, np.uint8)
    decode_exactly(np.frombuffer(frame(1000), np.uint8), out)
    assert not out.any()
    for nbytes in (2**40, 2**63, 2**64 - 1, 1000):
        refused(claiming(nbytes))
    lie = bytearray(frame(2_000_000))
    assert content_nbytes(bytes(lie)) == 2_000_000
    at = bytes(lie).index(struct.pack("<I", 2_000_000))
    lie[at : at + 4] = struct.pack("<I", 1000)
    refused(bytes(lie))
    refused(frame(1000) + frame(100_000))
    for data in (b"", frame(500), frame(500) + frame(500), frame(1001), b"x" * 40):
        assert (refused(data) == 7).all()
    # The file format allows frames that do not say how much they hold; no store has one.
    assert content_nbytes(bomb[:18]) is None
    assert (refused(bomb) == 7).all()


@pytest.mark.parametrize("nbytes", [1, 255, 256, 257, 65_535, 65_536, 65_792, 10_000_000])
def test_the_size_in_a_frame_is_read_as_the_library_wrote_it(nbytes):
    assert content_nbytes(frame(nbytes)[:18]) == nbytes


def test_a_compressed_chunk_that_holds_less_is_damage(tmp_path):
    """Not memory that happened to be there."""
    from featurestore.storage.column import Column
    from featurestore.storage.reader import DamagedRowsError

    column = Column(LocalBlobs(tmp_path / "s"), "ab" * 16, writable=False)
    rows = np.zeros((4, 64), np.float32)
    digests = np.ones((4, 16), np.uint8) * np.arange(1, 5, dtype=np.uint8)[:, None]
    column.append({}, ["feature"], digests, rows, dtype="float32", run="0" * 32)
    (path,) = (tmp_path / "s").glob("columns/*/activations/c.*")
    (companion,) = (tmp_path / "s").glob("columns/*/run/c.*")
    assert column.layout is not None
    assert column.layout.compressed
    short = frame(100)
    data = short + crc32c(short)
    n_chunks = int(np.prod(column.layout.n_chunks))
    index = np.full((n_chunks, 2), 2**64 - 1, "<u8")
    index[0] = 0, len(data)
    table = index.tobytes()
    path.write_bytes(data + table + crc32c(table))
    companion.unlink()
    fresh = Column(LocalBlobs(tmp_path / "s"), "ab" * 16, writable=False)
    with pytest.raises(DamagedRowsError):
        fresh.read(np.arange(4))


def test_a_column_that_claims_more_than_the_memory_is_refused(copy, original):
    """Model and layout agree with each other, and with nothing else."""
    _, images, _ = original
    shape = [2**11, 2**10, 2**10]  # 8 GiB per image, the most that is believed

    def widen(model):
        for module in model["modules"]:
            for output in module["outputs"]:
                if len(output["shape"]) == 3:
                    output["shape"] = shape

    def widen_layout(layout):
        if len(layout["shape"]) == 3:
            layout.update(shape=shape, chunk_shape=[1, 2**7, 2**7], rows_per_slot=4, chunk_rows=4)

    rewrite(document(copy, "models"), widen)
    for path in (copy / "layouts").glob("*.json"):
        rewrite(path, widen_layout)
    store = fs.open_store(copy, mode="r")
    with pytest.raises(FeatureStoreError):
        store.get(NAME, MODULE, images, weights="random", load=True)
    # Key records of another size do not count, so the crafty one brings fitting ones.
    for path in (copy / "columns").glob("*/image/c.*"):
        record = path.read_bytes()[: 4 * 16]
        path.write_bytes(record + crc32c(record))
    store = fs.open_store(copy, mode="r")
    with pytest.raises(MemoryBudgetError):
        store.get(NAME, MODULE, images, weights="random", load=True)
    lazy = store.get(NAME, MODULE, images, weights="random")
    with pytest.raises((MemoryBudgetError, CorruptDataError)):
        lazy.isel(image=0).values.sum()
