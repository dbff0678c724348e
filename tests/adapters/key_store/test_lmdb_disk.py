"""The store on disk and the disk: size, leftovers, damage, refusals, and who waits for what."""

from __future__ import annotations

import asyncio
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from consumer.adapters.key_store.bucket import Bucket, BucketName, BucketRetired
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.lmdb_store import LmdbKeyStore
from consumer.adapters.key_store.worker import Worker
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import MIB, NOON, child, disk_usage, key, keys

NOBODY = 65534


def open_store(folder: Path, window: float = 172_800.0, max_bytes: int = 64 * MIB) -> LmdbKeyStore:
    """A store in `folder`."""
    return LmdbKeyStore.open(str(folder), Window.of(window), max_bytes)


async def test_disk_is_bounded_over_many_windows(tmp_path: Path) -> None:
    """300,000 keys over 15 windows: the disk holds about a window and a half of them, at every moment."""
    store = open_store(tmp_path, window=20.0)
    peak = 0
    for second in range(300):
        await store.remember(keys(range(second * 1000, second * 1000 + 1000)), NOON + second)
        await store.expire(NOON + second)
        peak = max(peak, disk_usage(tmp_path))
        assert store.statistics().keys <= 31_000
    assert peak < 31_000 * 150
    assert all(await store.look_up(keys(range(280_000, 300_000)), NOON + 299))
    assert store.statistics().evicted_early == 0
    await store.expire(NOON + 400)
    assert disk_usage(tmp_path) < 64 * 1024
    await store.close()


async def test_several_buckets_of_one_chunk_outlive_those_of_other_times(tmp_path: Path) -> None:
    """At the limit, with the clock set back and a chunk of more than two buckets: all of the chunk is kept."""
    store = open_store(tmp_path, max_bytes=MIB)
    await store.remember(keys(range(12_000)), NOON)
    await store.remember(keys(range(50_000, 61_000)), NOON - 1_000_000)
    assert all(await store.look_up(keys(range(50_000, 61_000)), NOON - 1_000_000))
    assert store.statistics().evicted_early > 0
    await store.close()


async def test_expiry_frees_disk_at_once(tmp_path: Path) -> None:
    """Dropping a bucket unlinks its files and lets go of them: no descriptor keeps the blocks."""
    store = open_store(tmp_path, window=100.0)
    await store.remember(keys(range(20_000)), NOON)
    full = disk_usage(tmp_path)
    await store.expire(NOON + 200)
    assert disk_usage(tmp_path) < full / 10
    held = [
        os.readlink(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd") if _is_link(number)
    ]
    assert not [path for path in held if str(tmp_path) in path]
    assert store.statistics().bytes_used < full / 10
    await store.close()


def _is_link(number: str) -> bool:
    return os.path.islink(f"/proc/self/fd/{number}")


async def test_bytes_told_are_bytes_taken(tmp_path: Path) -> None:
    """The statistic is what ``du`` says, or a little more."""
    store = open_store(tmp_path)
    await store.remember(keys(range(50_000)), NOON)
    taken = disk_usage(tmp_path)
    assert taken <= store.statistics().bytes_used <= taken * 1.02 + 8192
    await store.close()


async def test_what_a_kill_left_half_done_is_removed(tmp_path: Path) -> None:
    """A bucket half made or half dropped has no key that was acknowledged, and goes when the store is opened."""
    store = open_store(tmp_path)
    await store.remember([key(1)], NOON)
    await store.close()
    for name in ("new", "old-b-1-2-0"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "data.mdb").write_bytes(b"half")
    (tmp_path / "b-1799900000-172800-0").mkdir()
    (tmp_path / "b-1799900000-172800-1").mkdir()
    (tmp_path / "b-1799900000-172800-1" / "data.mdb").touch()
    store = open_store(tmp_path)
    assert not (tmp_path / "new").exists()
    assert not (tmp_path / "old-b-1-2-0").exists()
    assert await store.look_up(keys([1, 2]), NOON) == [True, False]
    (tmp_path / "old-b-1-2-0").mkdir()
    await store.expire(NOON)
    assert not (tmp_path / "old-b-1-2-0").exists(), "also what another process left while this one runs"
    await store.close()


async def test_a_damaged_bucket_is_told_by_name(tmp_path: Path) -> None:
    """What is not an LMDB file is refused at start: which folder, and what to do."""
    await _store_some(tmp_path)
    data = _data_file(tmp_path)
    with data.open("r+b") as file:
        file.write(b"\xff" * 8192)
    with pytest.raises(KeyStoreError, match=r"b-\d+-172800-0 is damaged .* move this folder away"):
        open_store(tmp_path)
    shutil.rmtree(data.parent)
    await open_store(tmp_path).close()


async def test_a_bucket_cut_short_is_an_error_and_not_a_crash(tmp_path: Path) -> None:
    """Reading a mapped page beyond the end of its file kills a process; in a child, for the case that it does."""
    await _store_some(tmp_path)
    os.truncate(_data_file(tmp_path), 3 * 4096)
    with child(tmp_path, 172_800.0, 64 * MIB) as reader:
        assert "is damaged" in reader.ask(f"look_up 0 5000 {NOON}")
        assert "is damaged" in reader.ask(f"remember 0 5000 {NOON}")
        assert reader.ask("statistics") == "0"


async def _store_some(folder: Path) -> None:
    store = open_store(folder)
    await store.remember(keys(range(5000)), NOON)
    await store.close()


def _data_file(folder: Path) -> Path:
    (found,) = folder.glob("b-*/data.mdb")
    return found


async def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    """Rather than misread or mixed with this one."""
    await _store_some(tmp_path)
    (tmp_path / "format").write_text("pinstream key store, format 3\n")
    with pytest.raises(KeyStoreError, match="a format this version does not know"):
        open_store(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A folder that holds other things is refused before anything is written into it."""
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(KeyStoreError, match="holds other things than a key store"):
        open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_in_place_of_a_folder_is_told(tmp_path: Path) -> None:
    """The message names the path and asks for a folder."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(KeyStoreError, match=r"file.*name a folder, not a file"):
            open_store(path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_folder_that_may_not_be_written_is_told(tmp_path: Path) -> None:
    """The message says for whom the folder must be writable, for a new store as for one that exists."""
    await _store_some(tmp_path / "made")
    for path in (tmp_path / "made", tmp_path):
        path.chmod(0o555)
    try:
        with unprivileged():
            for path in (tmp_path / "made", tmp_path / "fresh"):
                with pytest.raises(KeyStoreError, match=r"Permission denied.*make it writable for user \d+"):
                    open_store(path)
    finally:
        os.chmod(tmp_path, 0o755)


async def test_a_bucket_is_not_closed_while_it_is_in_use(tmp_path: Path) -> None:
    """Retired under a lease it stays open until the lease ends; afterwards nobody gets in."""
    await _store_some(tmp_path)
    folder = _data_file(tmp_path).parent
    name = BucketName.parse(folder.name)
    assert name is not None
    bucket = Bucket(str(folder), name)
    with bucket.lease() as env, env.begin() as transaction:
        bucket.retire()
        assert transaction.get(key(1)) is not None
        with pytest.raises(BucketRetired), bucket.lease():
            pass
    with pytest.raises(BucketRetired):
        bucket.find([key(1)], b"\0\0\0\0")
    assert bucket.entries() == 0


async def test_calls_that_wait_share_a_transaction(tmp_path: Path) -> None:
    """Fifty chunks at once take a few transactions, not fifty."""
    store = open_store(tmp_path)
    await asyncio.gather(*(store.remember(keys(range(n * 10, n * 10 + 10)), NOON) for n in range(50)))
    with store._folder.buckets()[0].lease() as env:
        assert env.info()["last_txnid"] <= 4
    await store.close()


async def test_a_cancelled_caller_does_not_hurt_the_others(tmp_path: Path) -> None:
    """Its keys may be stored or not; those of the others are."""
    store = open_store(tmp_path)
    first, second, third = (asyncio.ensure_future(store.remember([key(n)], NOON)) for n in (1, 2, 3))
    await asyncio.sleep(0)
    second.cancel()
    await asyncio.gather(first, third)
    assert await store.look_up(keys([1, 3]), NOON) == [True, True]
    await store.close()


async def test_close_waits_for_what_is_being_written(tmp_path: Path) -> None:
    """A write under way is finished and acknowledged, and is there when the store is opened again."""
    store = open_store(tmp_path)
    writing = asyncio.ensure_future(store.remember(keys(range(30_000)), NOON))
    await asyncio.sleep(0)
    await store.close()
    await writing
    store = open_store(tmp_path)
    assert all(await store.look_up(keys(range(30_000)), NOON))
    await store.close()


async def test_a_folder_that_vanishes_is_an_error_for_its_callers(tmp_path: Path) -> None:
    """Reading and writing raise; housekeeping does not, and shows its problem."""
    store = open_store(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(KeyStoreError, match="No such file"):
        await store.look_up([key(1)], NOON)
    with pytest.raises(KeyStoreError, match="No such file"):
        await store.remember([key(1)], NOON)
    await store.expire(NOON)
    assert "No such file" in (store.statistics().problem or "")
    await store.close()


async def test_a_disk_that_does_not_answer_is_an_error_after_a_while() -> None:
    """The caller is told; the thread goes on when the disk does."""
    disk = threading.Event()
    worker = Worker("test", 0.02)
    with pytest.raises(KeyStoreError, match="did not answer"):
        await worker.run(disk.wait)
    assert not await worker.stop()
    disk.set()
    assert await worker.run(lambda: "again") == "again"
    assert await worker.stop()
