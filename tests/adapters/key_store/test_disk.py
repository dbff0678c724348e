"""The store on disk and its files: size, leftovers, damage, refusals, and which calls wait for which."""

from __future__ import annotations

import asyncio
import fcntl
import json
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from zlib import crc32

import pytest

from consumer.adapters.key_store.disk_store import ask_disk
from consumer.adapters.thread import OwnThread
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import NOON, disk_usage, eventually, key, keys, open_files, open_store

NOBODY = 65534


async def test_disk_is_bounded_over_many_windows(tmp_path: Path) -> None:
    """With 300,000 keys over 15 windows, the disk holds about the keys of a window and a half at every moment."""
    store = open_store(tmp_path, window=20.0)
    peak = 0
    for second in range(300):
        await store.confirm(keys(range(second * 1000, second * 1000 + 1000)), NOON + second)
        await store.expire(NOON + second)
        peak = max(peak, disk_usage(tmp_path))
        assert store.statistics().keys <= 31_000
    assert peak < 31_000 * 50
    assert all(await store.look_up(keys(range(280_000, 300_000)), NOON + 299))
    assert store.statistics().evicted_early == 0
    await store.expire(NOON + 400)
    assert disk_usage(tmp_path) < 64 * 1024
    await store.close()


async def test_expiry_touches_the_disk_every_ten_seconds(tmp_path: Path) -> None:
    """A round of housekeeping every two seconds does not write, lock and list the folder each time."""
    store = open_store(tmp_path, window=200.0)
    rounds = [0]
    expire = store._folder.expire

    def counted(stamp: int) -> None:
        rounds[0] += 1
        expire(stamp)

    store._folder.expire = counted  # type: ignore[method-assign]
    for second in range(0, 60, 2):
        await store.expire(NOON + second)
    assert rounds == [6]
    await store.expire(NOON - 1000)
    assert rounds == [7], "a clock that was set back does not stop it"
    await store.close()


async def test_expiry_frees_disk(tmp_path: Path) -> None:
    """Expired files are removed at once, and no descriptor or mapping keeps their blocks."""
    store = open_store(tmp_path, window=100.0)
    await store.confirm(keys(range(20_000)), NOON)
    full = disk_usage(tmp_path)
    await store.expire(NOON + 200)
    assert disk_usage(tmp_path) < full / 10
    await eventually(lambda: not [name for name in open_files(tmp_path) if name.endswith("(deleted)")])
    assert store.statistics().bytes_used < full / 10
    await store.close()


async def test_the_size_in_the_statistics_is_that_on_disk(tmp_path: Path) -> None:
    """The statistics report as many bytes as ``du`` does, or a little more."""
    store = open_store(tmp_path)
    await store.confirm(keys(range(50_000)), NOON)
    taken = disk_usage(tmp_path)
    assert taken <= store.statistics().bytes_used <= taken * 1.02 + 8192
    await store.close()


async def _store_some(folder: Path) -> None:
    store = open_store(folder)
    await store.confirm(keys(range(5000)), NOON)
    await store.close()


@pytest.mark.parametrize("emptied", [False, True])
async def test_a_folder_deleted_while_in_use_is_made_again(tmp_path: Path, emptied: bool) -> None:
    """The keys of the folder, or of all that was in it, count as lost, by one of those that share it."""
    folder = tmp_path / "state" / "keys"
    stores = [open_store(folder) for _ in range(3)]
    await stores[0].confirm(keys(range(3000)), NOON)
    for store in stores:
        assert all(await store.look_up(keys(range(3000)), NOON))
    if emptied:
        for path in list(folder.iterdir()):
            path.unlink()
    else:
        shutil.rmtree(tmp_path / "state")
    # At the same moment, so that each finds the folder missing.
    await asyncio.gather(*(store.expire(NOON) for store in stores))
    assert sum(store.statistics().evicted_early for store in stores) == 3000
    for store in stores:
        assert not any(await store.look_up(keys(range(3000)), NOON))
    await stores[0].confirm(keys(range(10)), NOON)
    assert stores[0].statistics().keys == 10
    for store in (*stores, open_store(folder)):
        assert await store.look_up(keys(range(11)), NOON) == b"\1" * 10 + b"\0"
        await store.close()


async def test_a_deleted_folder_is_made_again_beside_the_event_loop(tmp_path: Path) -> None:
    """Another process that makes it, too, holds its lock: the look-up waits for that, and nothing else does."""
    folder = tmp_path / "keys"
    store = open_store(folder)
    await store.confirm(keys(range(10)), NOON)
    shutil.rmtree(folder)
    folder.mkdir()
    with (folder / "lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        checking = asyncio.create_task(store.look_up(key(1), NOON))
        await eventually(lambda: store.statistics().keys == 0)
        assert not checking.done()
    assert await checking == b"\0"
    await store.close()


@pytest.mark.parametrize("number", [1, 2, 4])
def test_the_folder_of_another_version_is_refused(tmp_path: Path, number: int) -> None:
    """A folder of versions 0.1 and 0.2 (LMDB), or of a later one, stays as it is; the error names the two ways on."""
    bucket = tmp_path / "b-1799900000-172800-0"
    bucket.mkdir()
    left = {
        tmp_path / "format": b"pinstream key store, format %d\n" % number,
        bucket / "data.mdb": b"keys",
        bucket / "lock.mdb": b"",
    }
    for path, content in left.items():
        path.write_bytes(content)
    says = f"{tmp_path} was written by another version .* go on with that version, or move this folder away"
    with pytest.raises(KeyStoreError, match=says):
        open_store(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == left


async def test_keys_that_were_not_taken_over_are_not_ignored(tmp_path: Path) -> None:
    """A list of a development version that names folders of 0.2 still to be taken over lacks their keys."""
    await _store_some(tmp_path)
    first, text, _ = (tmp_path / "format").read_bytes().splitlines(keepends=True)
    for old in ([], ["b-1799900000-172800-0"]):
        lines = first + json.dumps({**json.loads(text), "old": old}).encode() + b"\n"
        (tmp_path / "format").write_bytes(lines + b"%08x\n" % crc32(lines))
        if old:
            with pytest.raises(KeyStoreError, match=r"is damaged .* move this folder away"):
                open_store(tmp_path)
        else:
            store = open_store(tmp_path)
            assert await store.look_up(keys(range(10)), NOON) == b"\1" * 10
            await store.close()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
async def test_a_folder_is_its_owner_s_alone(umask: int, tmp_path: Path) -> None:
    """Under any umask, only the owner can enter the folder and read its files."""
    before = os.umask(umask)
    try:
        store = open_store(tmp_path / "keys")
        await store.confirm(key(1), NOON)
        await store.close()
    finally:
        os.umask(before)
    folder = tmp_path / "keys"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    files = list(folder.iterdir())
    assert {"format", "journal-1"} <= {path.name for path in files}
    assert all(stat.S_IMODE(path.stat().st_mode) & 0o077 == 0 for path in files)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    """A folder that holds other files is refused before anything is written into it."""
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(KeyStoreError, match="contains files that are not a key store"):
        open_store(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]


def test_a_file_in_place_of_a_folder_is_refused(tmp_path: Path) -> None:
    """When a file is in the place of the folder, the error names the path and asks for a folder."""
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(KeyStoreError, match=r"file.*name a folder, not a file"):
            open_store(path)


@contextmanager
def unprivileged() -> Iterator[None]:
    """Run the block without root's right to write everywhere."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


async def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    """The error names the user that needs the right, for a new store and for an old one."""
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


async def test_calls_that_wait_share_a_flush(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fifty chunks confirmed at once take a few flushes, not fifty."""
    store = open_store(tmp_path)
    await store.confirm(key(1), NOON)
    flushes: list[int] = []
    monkeypatch.setattr(os, "fdatasync", flushes.append)
    await asyncio.gather(*(store.confirm(keys(range(n * 10, n * 10 + 10)), NOON) for n in range(50)))
    assert len(flushes) <= 4
    await store.close()


async def test_close_waits_for_what_is_being_written(tmp_path: Path) -> None:
    """And for what waits behind it. A caller that is cancelled does not hurt the others."""
    store = open_store(tmp_path)
    first = asyncio.ensure_future(store.confirm(keys(range(30_000)), NOON))
    while store._writing is None or store._waiting:
        await asyncio.sleep(0)
    second, third = (asyncio.ensure_future(store.confirm(key(number), NOON)) for number in (30_000, 30_001))
    await asyncio.sleep(0)
    second.cancel()
    await store.close()
    await asyncio.gather(first, third)
    store = open_store(tmp_path)
    assert all(await store.look_up(keys([*range(30_000), 30_001]), NOON))
    await store.close()


async def test_a_folder_that_cannot_be_made_again_is_an_error_until_it_can(tmp_path: Path) -> None:
    """Reads, writes and expiry raise meanwhile; then all work, and the keys that were in it count as lost."""
    store = open_store(tmp_path / "store")
    await store.confirm(keys([5]), NOON)
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").touch()
    for ask in (store.look_up(key(1), NOON), store.confirm(key(1), NOON), store.expire(NOON)):
        with pytest.raises(KeyStoreError, match="name a folder, not a file"):
            await ask
    (tmp_path / "store").unlink()
    await store.confirm(keys([1]), NOON)
    await store.expire(NOON)
    assert store.statistics().evicted_early == 1
    await store.close()


async def test_a_disk_that_does_not_answer_is_an_error_after_a_while() -> None:
    """When the disk does not answer, callers get an error after a while; the thread continues once the disk does."""
    disk = threading.Event()
    thread = OwnThread("test")
    with pytest.raises(KeyStoreError, match="did not answer"):
        await ask_disk(thread, disk.wait, 0.02)
    with pytest.raises(KeyStoreError, match="did not answer"):
        await ask_disk(thread, lambda: "behind it", 0.02)
    disk.set()
    assert await ask_disk(thread, lambda: "again") == "again"
    await thread.end()
