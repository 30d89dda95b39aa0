"""Tiles on disk: bytes that never change unnoticed, and damage that is never a value."""

from __future__ import annotations

import itertools
import shutil
import struct

import hypothesis.strategies as st
import numpy as np
import pytest
import xxhash
from hypothesis import given, settings

from featurestore.storage import grams
from featurestore.storage.blob import LocalBlobs
from featurestore.storage.grams import GramFolder, GramTile, gram_key, gram_keys
from featurestore.storage.publish import TEMPORARY_PREFIX
from featurestore.storage.shard import with_crc

KEY = "cd" * 16


def digests_of(*numbers):
    return np.array([[n + 1] * 16 for n in numbers], np.uint8)


def tile_of(n_a, n_b, n_pairs, *, is_diagonal, seed=0):
    rng = np.random.default_rng(seed)
    pairs = np.array(sorted(itertools.product(range(n_a), range(n_b)))[:n_pairs], np.uint32)
    return GramTile(
        rng.normal(size=(n_a, n_b)) ** 2,
        pairs.reshape(-1, 2),
        rng.random((n_pairs, 2)),
        rng.normal(size=(n_a if is_diagonal else 0, 2)),
    )


def same(found, expected):
    return found is not None and all(
        np.array_equal(getattr(found, name), getattr(expected, name), equal_nan=True)
        and getattr(found, name).shape == getattr(expected, name).shape
        for name in ("squares", "pairs", "near", "statistics")
    )


@pytest.fixture
def blobs(tmp_path):
    return LocalBlobs(tmp_path / "s.fstore")


@pytest.fixture
def folder(blobs):
    return GramFolder(blobs, KEY)


def path_of(blobs, *parts):
    return blobs.root.joinpath("grams", KEY, *parts)


def filled(folder):
    """Two blocks, of 3 and 2 images, and their three tiles."""
    folder.add_block(digests_of(0, 1, 2))
    folder.add_block(digests_of(3, 4))
    tiles = {
        (0, 0): tile_of(3, 3, 2, is_diagonal=True, seed=1),
        (0, 1): tile_of(3, 2, 1, is_diagonal=False, seed=2),
        (1, 1): tile_of(2, 2, 0, is_diagonal=True, seed=3),
    }
    for (a, b), tile in tiles.items():
        folder.write(a, b, tile)
    return tiles


def test_tiles_come_back_bit_for_bit_also_in_another_process(folder, blobs):
    tiles = filled(folder)
    other = GramFolder(blobs, KEY)
    blocks = other.blocks()
    np.testing.assert_array_equal(blocks[0], digests_of(0, 1, 2))
    np.testing.assert_array_equal(blocks[1], digests_of(3, 4))
    assert other.tiles() == set(tiles)
    for (a, b), tile in tiles.items():
        assert same(other.read(a, b), tile)
    assert other.damaged() == []


def test_nan_infinities_and_denormals_come_back(folder):
    folder.add_block(digests_of(0, 1))
    values = np.array([[0.0, np.nan], [np.inf, 5e-324]])
    tile = GramTile(values, np.empty((0, 2), np.uint32), np.empty((0, 2)), values)
    folder.write(0, 0, tile)
    assert same(folder.read(0, 0), tile)


def test_the_bytes_of_a_tile_are_these(folder, blobs):
    folder.add_block(digests_of(0, 1))
    folder.add_block(digests_of(2))
    tile = GramTile(
        np.array([[1.5], [2.25]]),
        np.array([[1, 0]], np.uint32),
        np.array([[0.5, np.nan]]),
        np.empty((0, 2)),
    )
    folder.write(0, 1, tile)
    binding = xxhash.xxh3_128(KEY.encode())
    binding.update(struct.pack("<Q", 0) + bytes([1] * 16 + [2] * 16))
    binding.update(struct.pack("<Q", 1) + bytes([3] * 16))
    body = b"fs-gram1" + struct.pack("<3Q", 2, 1, 1) + binding.digest()
    body += struct.pack("<2d", 1.5, 2.25) + struct.pack("<2I", 1, 0)
    body += struct.pack("<2d", 0.5, np.nan)
    data = path_of(blobs, "tiles", "0.1").read_bytes()
    assert data == body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))
    assert data.hex() == (
        "66732d6772616d31020000000000000001000000000000000100000000000000"
        "50e71b2493b595a20b41426ec01874eb000000000000f83f0000000000000240"
        "0100000000000000000000000000e03f000000000000f87fe47abe68ff3ba0c1"
    )
    block = path_of(blobs, "blocks", "1").read_bytes()
    assert block == with_crc(bytes([3] * 16))
    assert gram_key("ab" * 16) == "868f8fc42c63c2907e83113a4f147a6a"


def test_tiles_of_another_version_of_the_kernel_are_not_looked_at(monkeypatch):
    now = gram_key("ab" * 16)
    monkeypatch.setattr(grams, "KERNEL", grams.KERNEL + 1)
    assert gram_key("ab" * 16) != now


# Damage


@pytest.mark.parametrize("name", ["0.0", "0.1", "1.1"])
def test_a_flipped_bit_anywhere_in_a_tile_makes_it_none(folder, blobs, name):
    filled(folder)
    path = path_of(blobs, "tiles", name)
    data = path.read_bytes()
    a, b = map(int, name.split("."))
    for at in range(len(data)):
        for bit in (0, 7):
            changed = bytearray(data)
            changed[at] ^= 1 << bit
            path.write_bytes(changed)
            assert folder.read(a, b) is None
    path.write_bytes(data)
    assert folder.read(a, b) is not None


def test_a_tile_cut_or_lengthened_anywhere_is_none(folder, blobs):
    filled(folder)
    path = path_of(blobs, "tiles", "0.0")
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert folder.read(0, 0) is None
    for more in (1, 8, 100, 10**6):
        path.write_bytes(data + bytes(more))
        assert folder.read(0, 0) is None
        path.write_bytes(data + data[:more])
        assert folder.read(0, 0) is None


def test_a_flipped_bit_anywhere_in_a_block_takes_block_and_tiles_out(folder, blobs):
    filled(folder)
    path = path_of(blobs, "blocks", "1")
    data = path.read_bytes()
    for at in range(len(data)):
        changed = bytearray(data)
        changed[at] ^= 1
        path.write_bytes(changed)
        assert list(GramFolder(blobs, KEY).blocks()) == [0]
    for length in range(len(data)):
        path.write_bytes(data[:length])
        assert list(GramFolder(blobs, KEY).blocks()) == [0]
    path.write_bytes(data + bytes(1))
    assert list(GramFolder(blobs, KEY).blocks()) == [0]


def test_a_tile_in_the_place_of_another_is_none(folder, blobs):
    folder.add_block(digests_of(0, 1))
    folder.add_block(digests_of(2, 3))
    folder.add_block(digests_of(4, 5))
    for a, b in itertools.combinations_with_replacement(range(3), 2):
        folder.write(a, b, tile_of(2, 2, 1, is_diagonal=a == b, seed=3 * a + b))
    paths = sorted(path_of(blobs, "tiles").iterdir())
    kept = {path: path.read_bytes() for path in paths}
    for source, target in itertools.permutations(paths, 2):
        target.write_bytes(kept[source])
        a, b = map(int, target.name.split("."))
        assert folder.read(a, b) is None
        target.write_bytes(kept[target])


def test_a_tile_of_another_column_is_none(folder, blobs):
    filled(folder)
    other = GramFolder(blobs, "ef" * 16)
    filled(other)
    theirs = blobs.root / "grams" / other.key / "tiles" / "0.0"
    path_of(blobs, "tiles", "0.0").write_bytes(theirs.read_bytes())
    assert folder.read(0, 0) is None


def test_tiles_of_swapped_blocks_are_none(folder, blobs):
    folder.add_block(digests_of(0, 1))
    folder.add_block(digests_of(2, 3))
    for a, b in ((0, 0), (0, 1), (1, 1)):
        folder.write(a, b, tile_of(2, 2, 0, is_diagonal=a == b))
    first, second = (path_of(blobs, "blocks", name) for name in "01")
    data = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(data)
    other = GramFolder(blobs, KEY)
    other.blocks()
    assert [other.read(a, b) for a, b in ((0, 0), (0, 1), (1, 1))] == [None] * 3
    assert len(other.damaged()) == 3


def test_a_block_that_was_replaced_by_a_shorter_one_makes_its_tiles_none(folder, blobs):
    filled(folder)
    path_of(blobs, "blocks", "0").write_bytes(with_crc(digests_of(0, 1).tobytes()))
    other = GramFolder(blobs, KEY)
    other.blocks()
    assert other.read(0, 0) is None
    assert other.read(0, 1) is None


def resealed(data):
    """Give a tile the checksum that its content has."""
    body = bytes(data[:-8])
    return body + struct.pack("<Q", xxhash.xxh3_64_intdigest(body))


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(0, 2**64 - 1) | st.integers(0, 5), min_size=3, max_size=3),
    extra=st.integers(0, 200),
)
def test_counts_that_lie_give_none_without_much_memory(tmp_path_factory, counts, extra):
    blobs = LocalBlobs(tmp_path_factory.mktemp("s"))
    folder = GramFolder(blobs, KEY)
    filled(folder)
    path = path_of(blobs, "tiles", "0.0")
    data = bytearray(path.read_bytes())
    was = struct.unpack("<3Q", data[8:32])
    data[8:32] = struct.pack("<3Q", *counts)
    path.write_bytes(resealed(bytes(data) + bytes(extra)))
    if tuple(counts) != was or extra:
        assert folder.read(0, 0) is None


def test_pairs_that_are_out_of_range_give_none(folder, blobs):
    filled(folder)
    path = path_of(blobs, "tiles", "0.0")
    data = bytearray(path.read_bytes())
    start = 48 + 8 * 9
    for pair in ((3, 0), (0, 3), (2**32 - 1, 0), (0, 2**32 - 1)):
        data[start : start + 8] = struct.pack("<2I", *pair)
        path.write_bytes(resealed(data))
        assert folder.read(0, 0) is None


def test_a_huge_file_is_not_read_whole(folder, blobs):
    filled(folder)
    for path in (path_of(blobs, "tiles", "0.0"), path_of(blobs, "blocks", "1")):
        with path.open("r+b") as file:
            file.truncate(2**40)  # a hole
    assert folder.read(0, 0) is None
    assert list(GramFolder(blobs, KEY).blocks()) == [0]


@pytest.mark.parametrize(
    "name",
    ["x", "-1", "1.5", "00", "٣", "²", "9" * 9, "9" * 10, "9" * 100, "1e3", " 1", "+1", "1_0"],
)
def test_strange_names_among_blocks_and_tiles_do_no_harm(folder, blobs, name):
    tiles = filled(folder)
    path_of(blobs, "blocks", name).write_bytes(path_of(blobs, "blocks", "0").read_bytes())
    for strange in (name, f"{name}.{name}", f"0.{name}", f"{name}.0", f"0.0.{name}"):
        path = path_of(blobs, "tiles", strange)
        if not path.exists():
            path.write_bytes(path_of(blobs, "tiles", "0.0").read_bytes())
    other = GramFolder(blobs, KEY)
    blocks = other.blocks()
    np.testing.assert_array_equal(blocks[0], digests_of(0, 1, 2))
    assert {(a, b) for a, b in other.tiles() if a in (0, 1) and b in (0, 1)} == set(tiles)
    path_of(blobs, "tiles", "0.0").unlink()
    assert (0, 0) not in other.tiles()
    new = other.add_block(digests_of(7))
    assert new in other.blocks()
    other.write(0, new, tile_of(3, 1, 0, is_diagonal=False))
    assert other.read(0, new) is not None
    assert (0, new) in other.tiles()
    other.damaged()
    assert other.remove() > 0


def test_folders_and_links_in_the_place_of_files_do_no_harm(folder, blobs, tmp_path):
    filled(folder)
    path_of(blobs, "tiles", "0.1").unlink()
    path_of(blobs, "tiles", "0.1").mkdir()
    path_of(blobs, "blocks", "7").mkdir()
    other = GramFolder(blobs, KEY)
    assert list(other.blocks()) == [0, 1]
    assert other.tiles() == {(0, 0), (1, 1)}


def test_a_damaged_tile_is_written_anew_and_a_good_one_is_left(folder, blobs):
    tiles = filled(folder)
    path = path_of(blobs, "tiles", "0.0")
    good = path.read_bytes()
    folder.write(0, 0, tile_of(3, 3, 0, is_diagonal=True, seed=9))
    assert path.read_bytes() == good
    for damage in (b"", good[:-1], good[:50] + bytes(len(good) - 50)):
        path.write_bytes(damage)
        assert folder.damaged() == [f"grams/{KEY}/tiles/0.0"]
        folder.write(0, 0, tiles[0, 0])
        assert path.read_bytes() == good


def test_only_damaged_tiles_are_discarded(folder, blobs):
    filled(folder)
    path = path_of(blobs, "tiles", "0.0")
    folder.discard_damaged()
    assert path.exists()
    path.write_bytes(path.read_bytes()[:-1])
    GramFolder(blobs, KEY).discard_damaged()
    assert not path.exists()
    assert path_of(blobs, "tiles", "0.1").exists()


# Blocks


def test_blocks_of_writers_at_the_same_time_get_numbers_of_their_own(blobs):
    folders = [GramFolder(blobs, KEY) for _ in range(5)]
    numbers = [folder.add_block(digests_of(n)) for n, folder in enumerate(folders)]
    assert sorted(numbers) == list(range(5))
    blocks = GramFolder(blobs, KEY).blocks()
    for n, number in enumerate(numbers):
        np.testing.assert_array_equal(blocks[number], digests_of(n))


def test_a_block_whose_listing_was_old_gets_the_next_free_number(blobs, monkeypatch):
    first, second = GramFolder(blobs, KEY), GramFolder(blobs, KEY)
    monkeypatch.setattr(blobs, "list", lambda _folder: [])
    assert first.add_block(digests_of(0)) == 0
    assert second.add_block(digests_of(1)) == 1
    np.testing.assert_array_equal(second._read_block(0), digests_of(0))


def test_the_number_of_a_damaged_block_is_not_used_again(folder, blobs):
    filled(folder)
    path_of(blobs, "blocks", "1").write_bytes(b"")
    other = GramFolder(blobs, KEY)
    assert other.add_block(digests_of(8)) == 2
    assert list(other.blocks()) == [0, 2]
    assert len(other.damaged()) == 1


def test_everything_can_be_measured_and_taken_away(folder, blobs):
    filled(folder)
    files = [p for p in path_of(blobs).rglob("*") if p.is_file()]
    nbytes = sum(p.stat().st_size for p in files)
    assert folder.nbytes() == nbytes
    assert gram_keys(blobs) == [KEY]
    assert folder.remove() == nbytes
    assert folder.blocks() == {}
    assert folder.tiles() == set()
    assert folder.nbytes() == 0


def test_a_folder_that_is_not_there_is_empty(folder):
    assert folder.blocks() == {}
    assert folder.tiles() == set()
    assert folder.nbytes() == 0
    assert folder.remove() == 0
    assert folder.damaged() == []


def test_leftovers_of_killed_writers_are_no_tiles(folder, blobs):
    filled(folder)
    for path in list(path_of(blobs, "tiles").iterdir()):
        shutil.copy(path, path.with_name(f"{TEMPORARY_PREFIX}{path.name}"))
    assert folder.tiles() == {(0, 0), (0, 1), (1, 1)}
