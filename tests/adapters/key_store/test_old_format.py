"""Folders of versions that used LMDB are converted once, completely or not at all."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import lmdb
import pytest

from consumer.adapters.key_store import open_key_store
from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.files import LIST
from consumer.adapters.key_store.folder import Folder
from consumer.adapters.key_store.interface import Window
from consumer.errors import KeyStoreError
from tests.adapters.key_store.faults import Fault, failing
from tests.adapters.key_store.helpers import MIB, NOON, REPOSITORY, key, keys

WINDOW = Window.of(172_800.0)
START = WINDOW.bucket_start(int(NOON))
RECORD = struct.Struct(">16sQII")


def bucket(folder: Path, start: int, first: int, count: int, in_records: int = 0, sequence: int = 0) -> Path:
    """Write a bucket of `count` keys as such a version left it: the last `in_records` in records of 100, others
    in the tree."""
    path = folder / f"b-{start}-172800-{sequence}"
    path.mkdir(parents=True)
    (folder / LIST).write_bytes(b"pinstream key store, format 2\n")
    stamp = struct.pack(">I", start + 5)
    entered = [key(number) for number in range(first, first + count - in_records)]
    with lmdb.open(str(path), map_size=2**30, mode=0o700, metasync=False) as env:
        for at in range(0, len(entered), 1000):
            with env.begin(write=True) as transaction:
                for one in sorted(entered[at : at + 1000]):
                    transaction.put(one, stamp)
        for number, at in enumerate(range(count - in_records, count, 100)):
            record = b"".join(key(first + number) + stamp for number in range(at, min(at + 100, count)))
            with env.begin(write=True) as transaction:
                name = RECORD.pack(b"\xff" * 16, 7, number, number * 100)
                transaction.put(name, record, append=True)
    return path


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Return a folder with two slices of time, one of them in two buckets."""
    folder = tmp_path / "keys"
    bucket(folder, START - WINDOW.bucket_seconds, 0, 3000)
    bucket(folder, START, 3000, 5000, in_records=1250)
    bucket(folder, START, 8000, 50, in_records=50, sequence=1)
    return folder


def open_store(folder: Path) -> DiskKeyStore:
    """Open the store in `folder`."""
    return DiskKeyStore(str(folder), WINDOW, 64 * MIB)


async def test_all_keys_are_taken_over_once(old: Path) -> None:
    """All keys are converted once, with their times and a line of progress for each bucket, and no old file remains."""
    told: list[str] = []
    for lines in (3, 3):
        store = open_key_store(f"disk:{old}", window=172_800, max_bytes=64 * MIB, progress=told.append)
        assert len(told) == lines
        assert all(await store.look_up(keys(range(8050)), NOON))
        assert not any(await store.look_up(keys(range(8050, 9000)), NOON))
        early = await store.look_up(keys(range(8050)), START + 172_800 + 5)
        assert early == bytes([False] * 3000 + [True] * 5050)
        assert store.statistics().keys == 8050
        await store.close()
    assert "3 of 3" in told[-1]
    assert not has_buckets(old)


def has_buckets(folder: Path) -> bool:
    """Report whether `folder` still has files of the older format."""
    return bool([*folder.glob("b-*"), *folder.rglob("*.mdb")])


async def is_told(folder: Path) -> bool:
    """Report whether opening the store reports damage; if it does not, check that all keys are there."""
    try:
        store = open_store(folder)
    except KeyStoreError as failure:
        return "is damaged (b-" in str(failure)
    assert all(await store.look_up(keys(range(3000)), NOON))
    await store.close()
    return False


async def test_an_empty_folder_of_the_older_format(tmp_path: Path) -> None:
    """An empty folder of the older format is converted, and one with a bucket that a killed process was about
    to make."""
    (tmp_path / LIST).write_bytes(b"pinstream key store, format 1\n")
    await open_store(tmp_path).close()
    other = tmp_path / "other"
    for name in ("b-1799900000-172800-0", "b-1799900000-172800-1", "new", "old-b-1-2-0"):
        (other / name).mkdir(parents=True)
    (other / "b-1799900000-172800-1" / "data.mdb").touch()
    (other / LIST).write_bytes(b"pinstream key store, format 2\n")
    store = open_store(other)
    await store.confirm(keys([1]), NOON)
    await store.close()
    assert not [path for path in other.iterdir() if path.is_dir()]


def test_a_kill_anywhere_on_the_way_leaves_a_folder_that_is_taken_over(old: Path) -> None:
    """After a kill at any call of the conversion, the next start converts all keys and leaves no old files."""
    for number in range(1, 60, 3):
        with failing(old, Fault("kill", number)) as disk:
            Folder(str(old), WINDOW, 64 * MIB, lambda _: None)
        if not disk.hit:
            break
    folder = Folder(str(old), WINDOW, 64 * MIB, lambda _: None)
    assert sum(one.entries for one in folder._read_list().segments) == 8050
    assert not list(old.glob("b-*"))


async def test_a_cut_file_of_the_older_format_is_reported(tmp_path: Path) -> None:
    """A file of the older format that was cut is reported as damaged or has all keys; a missing page does not
    end the process."""
    told = 0
    size = (bucket(tmp_path / "first", START, 0, 3000, in_records=700) / "data.mdb").stat().st_size
    for number, cut in enumerate([0, 100, 4096, *range(8192, size, size // 20), size - 4096, size - 1]):
        folder = tmp_path / str(number)
        data = bucket(folder, START, 0, 3000, in_records=700) / "data.mdb"
        os.truncate(data, cut)
        if cut == 0:  # as a process leaves it that was killed while making the file
            continue
        told += await is_told(folder)
    assert told > 10


async def test_overwritten_pages_of_the_older_format_are_reported(tmp_path: Path) -> None:
    """When a page of the older format was overwritten, all keys are found or the damage is reported."""
    size = (bucket(tmp_path / "first", START, 0, 3000, in_records=700) / "data.mdb").stat().st_size
    told = 0
    for page in range(0, size // 4096, 3):
        for filler in (b"\0", b"\xff"):
            folder = tmp_path / f"{page}-{filler.hex()}"
            data = bucket(folder, START, 0, 3000, in_records=700) / "data.mdb"
            with data.open("r+b") as file:
                file.seek(page * 4096)
                file.write(filler * 4096)
            told += await is_told(folder)
    assert told > 10


def test_a_folder_that_an_older_version_has_open_is_refused(old: Path) -> None:
    """A folder that an older version has open is refused: keys that the older one stores afterwards would be lost."""
    path = next(old.glob("b-*"))
    program = f"import lmdb, sys; env = lmdb.open({str(path)!r}); print('open', flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=REPOSITORY, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"open\n"
        with pytest.raises(KeyStoreError, match="in use by an older version of pinstream: stop it"):
            open_store(old)
        process.kill()
    assert Folder(str(old), WINDOW, 64 * MIB, lambda _: None)._read_list().segments


def test_a_value_of_the_older_format_that_is_no_time_is_reported(tmp_path: Path) -> None:
    """A value of the older format that is no time is reported as damage; a fuzzer found that it ended with a
    traceback."""
    path = bucket(tmp_path, START, 0, 100)
    with lmdb.open(str(path)) as env, env.begin(write=True) as transaction:
        transaction.put(key(5), b"much longer than a time")
    with pytest.raises(KeyStoreError, match=r"is damaged \(b-"):
        open_store(tmp_path)
