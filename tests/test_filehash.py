"""Digests of files: right first, remembered second."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from featurestore import filehash
from featurestore.filehash import file_digest, file_digests, hash_bytes, stamp_file
from featurestore.options import set_options

LONG_AGO = 1_000_000_000


@pytest.fixture(autouse=True)
def _own_cache(tmp_path):
    with set_options(cache_dir=tmp_path / "cache"):
        yield


@pytest.fixture
def hashed(monkeypatch):
    """The paths that were really read, in order."""
    paths = []
    original = filehash._hash_file

    def record(path):
        paths.append(Path(path).name)
        return original(path)

    monkeypatch.setattr(filehash, "_hash_file", record)
    return paths


def settled(path, data):
    """Write a file that looks long untouched; a rewrite gets another time of change."""
    if path.exists():
        time.sleep(0.02)  # the clock of many file systems ticks every 4 to 10 ms
    path.write_bytes(data)
    os.utime(path, (LONG_AGO, LONG_AGO))
    return path


@given(st.binary())
def test_the_digest_is_xxh3_128_big_endian(data):
    assert hash_bytes(data) == xxhash.xxh3_128_intdigest(data).to_bytes(16, "big")
    assert hash_bytes(memoryview(data)) == hash_bytes(data)
    assert hash_bytes(data[:3], data[3:]) == hash_bytes(data)


@pytest.mark.parametrize("size", [0, 1, 2**20 - 1, 2**20, 2**20 + 1, 3 * 2**20])
def test_a_streamed_file_has_the_digest_of_its_bytes(tmp_path, size):
    data = os.urandom(size)
    path = tmp_path / "file"
    path.write_bytes(data)
    assert file_digest(path) == hash_bytes(data)


def test_digests_come_in_the_order_of_the_paths_with_errors_in_place(tmp_path):
    one, two = settled(tmp_path / "one", b"1"), settled(tmp_path / "two", b"2")
    found = file_digests([two, tmp_path / "gone", one, two, tmp_path])
    assert found[0] == found[3] == hash_bytes(b"2")
    assert found[2] == hash_bytes(b"1")
    assert isinstance(found[1], FileNotFoundError)
    assert isinstance(found[4], IsADirectoryError)


def test_a_null_character_in_a_path_is_an_error_of_that_path(tmp_path):
    (found,) = file_digests([f"{tmp_path}/a\0b"])
    assert isinstance(found, OSError)


def test_a_missing_file_raises_when_asked_for_alone(tmp_path):
    with pytest.raises(FileNotFoundError):
        file_digest(tmp_path / "gone")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no FIFOs")
def test_a_fifo_is_refused_without_waiting_for_a_writer(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match="FIFO"):
        file_digest(tmp_path / "fifo")


def test_a_settled_file_is_read_once(tmp_path, hashed):
    path = settled(tmp_path / "a", b"content")
    assert file_digest(path) == file_digest(path) == hash_bytes(b"content")
    assert hashed == ["a"]


def test_a_hit_does_not_open_the_file(tmp_path, monkeypatch):
    path = settled(tmp_path / "a", b"content")
    file_digest(path)
    monkeypatch.setattr(filehash, "open_regular", None)  # any use is a TypeError
    assert file_digest(path) == hash_bytes(b"content")


def test_a_fresh_file_is_read_each_time(tmp_path, hashed):
    path = tmp_path / "a"
    path.write_bytes(b"content")
    file_digest(path)
    file_digest(path)
    assert hashed == ["a", "a"]


def test_a_file_rewritten_at_once_with_equal_size_and_time_has_a_new_digest(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    status = path.stat()
    file_digest(path)
    path.write_bytes(b"after!")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert file_digest(path) == hash_bytes(b"after!")


def test_a_file_rewritten_with_its_old_time_set_back_has_a_new_digest(tmp_path):
    path = settled(tmp_path / "a", b"before")
    file_digest(path)
    settled(path, b"after!")
    assert file_digest(path) == hash_bytes(b"after!")


def test_a_replaced_file_has_a_new_digest(tmp_path):
    path = settled(tmp_path / "a", b"before")
    file_digest(path)
    settled(tmp_path / "b", b"after!").replace(path)
    assert file_digest(path) == hash_bytes(b"after!")


def test_a_file_that_changes_while_it_is_hashed_is_not_remembered(tmp_path, monkeypatch):
    path = settled(tmp_path / "a", b"before")
    original = filehash.open_regular

    class Meddled:
        def __init__(self, file):
            self.file = file

        def fileno(self):
            return self.file.fileno()

        def read(self, size):
            data = self.file.read(size)
            settled(path, b"after!")  # the same size and time
            return data

    @contextlib.contextmanager
    def meddle(name):
        with original(name) as file:
            yield Meddled(file)

    monkeypatch.setattr(filehash, "open_regular", meddle)
    file_digest(path)
    monkeypatch.setattr(filehash, "open_regular", original)
    assert file_digest(path) == hash_bytes(b"after!")


@pytest.mark.parametrize(("age_s", "trusted"), [(1.9, False), (2.1, True), (-10, False)])
def test_only_files_at_rest_for_two_seconds_are_trusted(tmp_path, age_s, trusted):
    path = settled(tmp_path / "a", b"a")
    stamp = stamp_file(path)
    assert stamp.at_rest(stamp.mtime_ns + int(age_s * 1e9)) is trusted


def test_many_files_are_looked_up_and_kept_in_batches(tmp_path, monkeypatch, hashed):
    paths = [settled(tmp_path / str(number), str(number).encode()) for number in range(1100)]
    n_transactions = 0
    original = filehash._use_memo

    def count(work):
        nonlocal n_transactions
        n_transactions += 1
        original(work)

    monkeypatch.setattr(filehash, "_use_memo", count)
    first = file_digests(paths)
    assert n_transactions <= 6
    assert file_digests(paths) == first == [hash_bytes(p.name.encode()) for p in paths]
    assert len(hashed) == 1100


def test_importing_and_failing_create_nothing(tmp_path):
    code = (
        "import featurestore.filehash as f\n"
        "try: f.file_digest('gone')\n"
        "except FileNotFoundError: pass"
    )
    cache = tmp_path / "new"
    environment = {**os.environ, "FEATURESTORE_CACHE_DIR": str(cache)}
    subprocess.run([sys.executable, "-c", code], check=True, env=environment, cwd=tmp_path)
    assert not cache.exists()


def test_a_cache_that_cannot_be_created_costs_only_time(tmp_path, hashed):
    blocker = tmp_path / "file"
    blocker.write_bytes(b"")
    path = settled(tmp_path / "a", b"content")
    with set_options(cache_dir=blocker / "cache"):
        assert file_digest(path) == file_digest(path) == hash_bytes(b"content")
    assert hashed == ["a", "a"]


@pytest.mark.parametrize("garbage", [b"", b"no database at all" * 1000])
def test_a_damaged_memo_is_started_afresh(tmp_path, hashed, garbage):
    path = settled(tmp_path / "a", b"content")
    file_digest(path)
    memo = filehash._memo_path()
    memo.write_bytes(garbage)
    for _ in range(3):
        assert file_digest(path) == hash_bytes(b"content")
    assert hashed[-1] == "a"
    assert len(hashed) < 4


def test_no_flipped_byte_of_the_memo_makes_a_wrong_digest(tmp_path):
    path = settled(tmp_path / "a", b"content")
    file_digest(path)
    memo = filehash._memo_path()
    whole = memo.read_bytes()
    places = [i for i, byte in enumerate(whole) if byte][::7]
    for place in places:
        memo.write_bytes(whole[:place] + bytes([whole[place] ^ 0x15]) + whole[place + 1 :])
        assert file_digest(path) == hash_bytes(b"content")


def test_a_locked_memo_is_not_waited_for_long(tmp_path, monkeypatch):
    path = settled(tmp_path / "a", b"content")
    file_digest(path)
    connect = sqlite3.connect
    monkeypatch.setattr(filehash.sqlite3, "connect", lambda p, timeout: connect(p, timeout=0.01))
    holder = connect(filehash._memo_path())
    try:
        holder.execute("BEGIN EXCLUSIVE")
        assert file_digest(path) == hash_bytes(b"content")
    finally:
        holder.close()


def test_threads_share_the_memo(tmp_path):
    paths = [settled(tmp_path / str(number), str(number).encode()) for number in range(40)]
    expected = [hash_bytes(path.name.encode()) for path in paths]
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(file_digests(paths))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [expected] * 4


def test_parts_of_a_file_are_remembered_apart(tmp_path):
    stamp = stamp_file(settled(tmp_path / "a", b"content"))
    keys = [filehash.MemoKey(stamp, part) for part in ("", "d[0]", "d[1]")]
    filehash.remember({key: hash_bytes(key.part.encode()) for key in keys[1:]})
    assert filehash.recall(keys) == {key: hash_bytes(key.part.encode()) for key in keys[1:]}
