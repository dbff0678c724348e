"""The store on disk and the disk: size, leftovers, damage, refusals, and who waits for what."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lmdb
import pytest

from consumer.adapters.key_store.bucket import Bucket, BucketName, BucketRetired
from consumer.adapters.key_store.failures import translated
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.lmdb_store import LmdbKeyStore, ask_disk
from consumer.adapters.key_store.pages import first_missing
from consumer.adapters.thread import OwnThread
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import MIB, NOON, disk_usage, key, keys

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


@pytest.mark.parametrize(("count", "at_once"), [(300, 100), (5000, 1000), (40_000, 1000)])
async def test_a_file_cut_anywhere_is_damage_or_whole(tmp_path: Path, count: int, at_once: int) -> None:
    """Whatever is cut off, in journal or tree: either every key is found, or it is told, again at each start."""
    store = open_store(tmp_path / "whole")
    for start in range(0, count, at_once):
        await store.remember(keys(range(start, start + at_once)), NOON)
    await store.close()
    size = _data_file(tmp_path / "whole").stat().st_size
    told = 0
    for cut in [*range(2 * 4096, size, max(4096, size // 100)), size - 4096, size - 1000, size - 1]:
        folder = tmp_path / str(cut)
        shutil.copytree(tmp_path / "whole", folder)
        os.truncate(_data_file(folder), cut)
        if first_missing(str(_data_file(folder)), 4096) is not None:
            told += 1
            for _ in range(2):
                with pytest.raises(KeyStoreError, match=r"data\.mdb was cut short"):
                    open_store(folder)
        else:
            store = open_store(folder)
            assert all(await store.look_up(keys(range(count)), NOON))
            await store.close()
        shutil.rmtree(folder)
    assert told


@pytest.mark.parametrize("rest", [b"\0", b"\xff"])
async def test_a_file_cut_short_whose_rest_is_no_tree_is_damage(tmp_path: Path, rest: bytes) -> None:
    """As a power failure leaves one: its end is gone, and what is there was never written. One line, no stack trace."""
    await _store_some(tmp_path)
    data = _data_file(tmp_path)
    length = data.stat().st_size - 4096
    with data.open("r+b") as file:
        file.seek(2 * 4096)
        file.write(rest * (length - 2 * 4096))
        file.truncate(length)
    with pytest.raises(KeyStoreError, match=r"is damaged \(data\.mdb was cut short: page \d+ "):
        open_store(tmp_path)


async def test_a_file_that_lacks_only_pages_without_use_is_whole(tmp_path: Path) -> None:
    """LMDB counts pages that it never wrote: a short file alone is no damage, and nothing is lost by lengthening it."""
    await _store_some(tmp_path)
    data = _data_file(tmp_path)
    with lmdb.open(str(data.parent)) as env:
        more = keys(range(5000, 9000))
        with env.begin(write=True) as transaction:
            transaction.cursor().putmulti([(one, b"1234") for one in more])
        with env.begin(write=True) as transaction:
            for one in more:
                transaction.delete(one)
        for _ in range(10):  # so that the list of free pages itself moves forward
            with env.begin(write=True) as transaction:
                transaction.put(more[0], b"1234")
                transaction.delete(more[0])
    page, whole = 4096, data.read_bytes()
    while first_missing(str(data), page) is None:
        os.truncate(data, data.stat().st_size - page)
    data.write_bytes(whole[: data.stat().st_size + page])
    assert data.stat().st_size < len(whole)
    store = open_store(tmp_path)
    assert all(await store.look_up(keys(range(5000)), NOON))
    await store.remember(keys(range(5000, 9000)), NOON)
    assert all(await store.look_up(keys(range(9000)), NOON))
    await store.close()


async def _store_some(folder: Path) -> None:
    store = open_store(folder)
    await store.remember(keys(range(5000)), NOON)
    await store.close()


def _data_file(folder: Path) -> Path:
    (found,) = folder.glob("b-*/data.mdb")
    return found


async def test_a_folder_deleted_while_in_use_is_made_again(tmp_path: Path) -> None:
    """What it knew is lost, and counted; what comes now is remembered, also across a restart."""
    folder = tmp_path / "state" / "keys"
    store = open_store(folder)
    await store.remember(keys(range(3000)), NOON)
    shutil.rmtree(tmp_path / "state")
    assert not any(await store.look_up(keys(range(3000)), NOON))
    await store.remember(keys(range(10)), NOON)
    assert await store.look_up(keys(range(11)), NOON) == [True] * 10 + [False]
    await store.expire(NOON)
    assert store.statistics().problem is None
    assert store.statistics().evicted_early == 3000
    assert store.statistics().keys == 10
    await store.close()
    store = open_store(folder)
    assert all(await store.look_up(keys(range(10)), NOON))
    await store.close()


async def test_a_folder_emptied_while_in_use_is_a_key_store_again(tmp_path: Path) -> None:
    """All that is in the folder is deleted: it goes on, and the next start does not take it for something else."""
    store = open_store(tmp_path)
    await store.remember(keys(range(3000)), NOON)
    _empty(tmp_path)
    assert not any(await store.look_up(keys(range(3000)), NOON))
    await store.remember(keys(range(10)), NOON)
    await store.close()
    store = open_store(tmp_path)
    assert all(await store.look_up(keys(range(10)), NOON))
    await store.close()


def _empty(folder: Path) -> None:
    for path in list(folder.iterdir()):
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LMDB says I/O error where a write finds room for a part of its pages only; a disk with room has another error."""

    def raise_io_error() -> None:
        with translated(str(tmp_path)):
            error = lmdb.Error("mdb_txn_commit")
            vars(error)["code"] = errno.EIO
            raise error

    status = os.statvfs(tmp_path)
    with pytest.raises(KeyStoreError, match=r"Input/output error.*check the disk"):
        raise_io_error()
    full = os.statvfs_result((*status[:3], 12, 12, *status[5:10]))
    monkeypatch.setattr(os, "statvfs", lambda _: full)
    with pytest.raises(KeyStoreError, match=r"No space left on device.*free space on that disk"):
        raise_io_error()


async def test_a_format_of_the_future_is_refused(tmp_path: Path) -> None:
    """Rather than misread or mixed with this one."""
    await _store_some(tmp_path)
    (tmp_path / "format").write_text("pinstream key store, format 3\n")
    with pytest.raises(KeyStoreError, match="a format that this version does not know"):
        open_store(tmp_path)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A folder that holds other things is refused before anything is written into it."""
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(KeyStoreError, match="contains files that are not a key store"):
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


async def test_a_folder_that_cannot_be_made_again_is_an_error_until_it_can(tmp_path: Path) -> None:
    """Reading and writing raise; housekeeping does not, and shows its problem; all of it heals by itself."""
    store = open_store(tmp_path / "store")
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").touch()
    with pytest.raises(KeyStoreError, match="name a folder, not a file"):
        await store.look_up(keys([1]), NOON)
    with pytest.raises(KeyStoreError, match="name a folder, not a file"):
        await store.remember(keys([1]), NOON)
    await store.expire(NOON)
    assert "not a file" in (store.statistics().problem or "")
    (tmp_path / "store").unlink()
    await store.remember(keys([1]), NOON)
    await store.expire(NOON)
    assert store.statistics().problem is None
    await store.close()


async def test_a_disk_that_does_not_answer_is_an_error_after_a_while() -> None:
    """The caller is told; the thread goes on when the disk does."""
    disk = threading.Event()
    thread = OwnThread("test")
    with pytest.raises(KeyStoreError, match="did not answer"):
        await ask_disk(thread, disk.wait, 0.02)
    with pytest.raises(KeyStoreError, match="did not answer"):
        await ask_disk(thread, lambda: "behind it", 0.02)
    disk.set()
    assert await ask_disk(thread, lambda: "again") == "again"
    await thread.end()
