from __future__ import annotations

import errno
import os
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.errors import DiskSpaceError, ReadOnlyError
from featurestore.storage.blob import LocalBlobs


def test_exactly_one_of_many_writers_creates_a_blob(blobs):
    contents = [f"writer {n}".encode() for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda data: blobs.create("a/b/c", data), contents))
    assert sum(won) == 1
    assert blobs.get("a/b/c") == contents[won.index(True)]


def test_exactly_one_writer_wins_where_there_are_no_hard_links(blobs, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    assert blobs.create("a", b"first")
    assert not blobs.create("a", b"second")
    assert blobs.get("a") == b"first"


def test_a_link_that_succeeded_though_the_reply_was_lost_counts_as_ours(blobs, monkeypatch):
    real = os.link

    def lose_the_reply(source, target):
        real(source, target)
        raise FileExistsError(errno.EEXIST, "said the server, about its own work")

    monkeypatch.setattr(os, "link", lose_the_reply)
    assert blobs.create("a", b"ours")


def test_replace_shows_the_new_content_and_delete_removes_it(blobs):
    blobs.replace("a", b"old")
    before = blobs.list("")[0].version
    blobs.replace("a", b"new")
    assert blobs.get("a") == b"new"
    assert blobs.list("")[0].version != before
    blobs.delete("a")
    blobs.delete("a")
    assert blobs.list("") == []


def test_parts_are_read_into_memory_at_hand_one_after_the_other(blobs):
    blobs.create("a", bytes(range(100)))
    first, second = bytearray(3), bytearray(5)
    assert blobs.get_into("a", 10, memoryview(first), memoryview(second)) == 8
    assert bytes(first + second) == bytes(range(10, 18))
    assert blobs.get_into("a", 98, memoryview(first)) == 2
    assert blobs.get("a", 97) == bytes([97, 98, 99])


def test_leftovers_of_killed_writers_are_not_listed(blobs):
    blobs.create("folder/a", b"x")
    (blobs.root / "folder" / ".tmp.123").write_bytes(b"half")
    assert [info.name for info in blobs.list("folder")] == ["a"]


def test_a_full_disk_publishes_nothing_and_says_what_to_do(blobs, monkeypatch):
    def full(*_args):
        raise OSError(errno.ENOSPC, "No space left on device")

    blobs.create("there", b"kept")
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskSpaceError, match="kept; free some space"):
        blobs.create("a", b"data")
    monkeypatch.undo()
    assert [info.name for info in blobs.list("")] == ["there"]
    assert [path.name for path in blobs.root.iterdir()] == ["there"]


@pytest.mark.skipif(os.name == "nt", reason="POSIX error numbers")
def test_a_read_only_disk_says_so(blobs, monkeypatch):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ReadOnlyError, match="mode='r'"):
        blobs.create("a", b"data")


def test_what_is_not_there_is_not_found(tmp_path):
    blobs = LocalBlobs(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        blobs.get("a")
    assert blobs.list("anything") == []
