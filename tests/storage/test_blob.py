from __future__ import annotations

import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from featurestore.errors import DiskSpaceError, ReadOnlyError, StoreNotFoundError
from featurestore.storage import disk
from featurestore.storage.blob import LocalBlobs


def test_exactly_one_of_many_writers_creates_a_blob(blobs):
    contents = [f"writer {n}".encode() for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda data: blobs.create("a/b/c", data), contents))
    assert sum(won) == 1
    assert blobs.get("a/b/c") == contents[won.index(True)]


@pytest.mark.parametrize("can_rename", [True, False])
def test_exactly_one_writer_wins_where_there_are_no_hard_links(blobs, monkeypatch, can_rename):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "no links here")

    def lack(*_args):
        raise NotImplementedError

    monkeypatch.setattr(os, "link", refuse)
    if not can_rename:
        monkeypatch.setattr(disk, "_rename_new", lack)
    contents = [f"writer {n}".encode() for n in range(16)]
    with ThreadPoolExecutor(8) as pool:
        won = list(pool.map(lambda data: blobs.create("a/b/c", data), contents))
    assert sum(won) == 1
    assert blobs.get("a/b/c") == contents[won.index(True)]
    assert not blobs.create("a/b/c", b"later")
    assert blobs.leftovers("a/b") == []


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


def test_leftovers_are_found_by_their_own_call_and_can_be_deleted(blobs):
    blobs.create("folder/a", b"x")
    (blobs.root / "folder" / ".tmp.123").write_bytes(b"half")
    (found,) = blobs.leftovers("folder")
    assert (found.name, found.nbytes) == (".tmp.123", 4)
    blobs.delete(f"folder/{found.name}")
    assert blobs.leftovers("folder") == []
    assert blobs.leftovers("nothing") == []


def test_folders_are_listed_apart_from_blobs(blobs):
    blobs.create("a/one/x", b"")
    blobs.create("a/two/x", b"")
    blobs.create("a/three", b"")
    assert blobs.folders("a") == ["one", "two"]
    assert [info.name for info in blobs.list("a")] == ["three"]
    assert blobs.folders("nothing") == []


def test_the_clock_is_the_one_that_dates_blobs_and_leaves_nothing_behind(blobs):
    blobs.create("a", b"")
    (info,) = blobs.list("")
    assert info.modified == (blobs.root / "a").stat().st_mtime
    assert info.modified <= blobs.now() <= info.modified + 60
    assert [path.name for path in blobs.root.iterdir()] == ["a"]


@pytest.mark.parametrize("name", ["link", "rename"])
def test_a_writer_whose_temporary_file_was_swept_writes_again(blobs, monkeypatch, name):
    blobs.create("there", b"")
    calls = []

    def sweep(call, _path):
        if call == name and not calls:
            calls.append(call)
            for info in blobs.leftovers(""):
                (blobs.root / info.name).unlink()

    monkeypatch.setattr(disk, "before", sweep)
    if name == "link":
        assert blobs.create("a", b"late")
    else:
        blobs.replace("a", b"late")
    assert calls
    assert blobs.get("a") == b"late"
    assert blobs.leftovers("") == []


def test_a_temporary_file_that_is_swept_each_time_is_an_error_and_not_a_loop(blobs, monkeypatch):
    blobs.create("there", b"")

    def sweep(call, _path):
        if call == "link":
            for info in blobs.leftovers(""):
                (blobs.root / info.name).unlink()

    monkeypatch.setattr(disk, "before", sweep)
    with pytest.raises(FileNotFoundError):
        blobs.create("a", b"never")
    assert [info.name for info in blobs.list("")] == ["there"]


def test_a_write_that_takes_only_some_of_the_bytes_is_continued(blobs, monkeypatch):
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, data[:7]))
    blobs.create("a", bytes(range(100)), b"and more")
    assert blobs.get("a") == bytes(range(100)) + b"and more"


def test_a_store_that_vanishes_is_not_begun_anew_by_whoever_had_it_open(blobs):
    blobs.create("columns/a", b"")
    for had_it_open in (blobs, LocalBlobs(blobs.root)):
        shutil.rmtree(blobs.root, ignore_errors=True)
        with pytest.raises(StoreNotFoundError, match="no longer mounted") as caught:
            had_it_open.create("columns/b", b"")
        assert caught.value.path == str(blobs.root)
        assert not blobs.root.exists()
    assert LocalBlobs(blobs.root).create("columns/b", b"")


def test_names_of_folders_are_made_durable_by_the_first_write_of_each_process(blobs, monkeypatch):
    blobs.create("columns/key/a", b"")  # its process may be killed before it syncs the folders
    synced = []
    monkeypatch.setattr(
        disk, "after", lambda name, path: synced.append(path) if name == "sync_folder" else None
    )
    other = LocalBlobs(blobs.root)
    other.create("columns/key/b", b"")
    root = blobs.root
    assert set(synced) == {root.parent, root, root / "columns", root / "columns" / "key"}
    synced.clear()
    other.create("columns/key/c", b"")
    assert synced == [root / "columns" / "key"]


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


def test_the_clock_is_told_even_if_a_sweeper_takes_its_file_away(tmp_path, monkeypatch):
    from featurestore.storage import disk

    blobs = LocalBlobs(tmp_path)
    monkeypatch.setattr(disk, "after", lambda name, path: path.unlink() if name == "sync" else None)
    assert abs(blobs.now() - tmp_path.stat().st_mtime) < 60
