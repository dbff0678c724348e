"""The store on disk across processes: restarts, sudden death, and sharing."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from consumer.adapters.key_store.bucket import Bucket
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.lmdb_store import LmdbKeyStore
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import MIB, NOON, child, disk_usage, key, keys

WINDOW = 172_800.0


def open_store(folder: Path, window: float = WINDOW, max_bytes: int = 64 * MIB) -> LmdbKeyStore:
    """The store of this process."""
    return LmdbKeyStore.open(str(folder), Window.of(window), max_bytes)


async def test_keys_survive_a_restart(tmp_path: Path) -> None:
    """What was remembered is there after close and open, also with another window than before."""
    store = open_store(tmp_path)
    await store.remember(keys(range(2000)), NOON)
    await store.close()
    store = open_store(tmp_path, window=600.0)
    await store.expire(NOON + 100_000)
    assert all(await store.look_up(keys(range(2000)), NOON + 600))
    assert not any(await store.look_up(keys(range(2000)), NOON + 601))
    await store.close()
    store = open_store(tmp_path)
    assert all(await store.look_up(keys(range(2000)), NOON + WINDOW)), (
        "a shorter window dropped what a longer needs"
    )
    await store.close()


@pytest.mark.parametrize("seconds_in", [1, 20, 60])
async def test_a_kill_loses_no_acknowledged_key(tmp_path: Path, seconds_in: int) -> None:
    """SIGKILL in the middle of a stream of writes: every chunk acknowledged before is there afterwards."""
    acknowledged = 0
    with child(tmp_path, WINDOW, 64 * MIB) as writer:
        writer.send(f"stream 0 10000000 250 {NOON}")
        for _ in range(seconds_in):
            acknowledged = int(writer.receive())
        writer.kill()
    store = open_store(tmp_path)
    assert all(await store.look_up(keys(range(acknowledged)), NOON + 1))
    await store.remember([key(-1 % 2**63)], NOON + 1)
    await store.close()


async def test_a_kill_while_buckets_are_made_and_dropped_leaves_a_store_that_opens(tmp_path: Path) -> None:
    """With a limit so low that buckets come and go all the time, ten kills in a row do no harm."""
    for attempt in range(10):
        with child(tmp_path, WINDOW, MIB) as writer:
            first = attempt * 1_000_000
            writer.send(f"stream {first} {first + 900_000} 400 {NOON}")
            for _ in range(3 + attempt):
                acknowledged = int(writer.receive())
            writer.kill()
        store = open_store(tmp_path, max_bytes=MIB)
        assert all(await store.look_up(keys(range(acknowledged - 400, acknowledged)), NOON + 1))
        await store.expire(NOON + 1)
        assert store.statistics().problem is None
        await store.close()
        assert disk_usage(tmp_path) <= MIB
        assert not [name for name in os.listdir(tmp_path) if name == "new" or name.startswith("old-")]


async def test_processes_see_each_other(tmp_path: Path) -> None:
    """Keys, new buckets and dropped buckets of one process are seen by the other at its next call."""
    store = open_store(tmp_path, window=10.0)
    with child(tmp_path, 10.0, 64 * MIB) as other:
        for step in range(6):
            now = NOON + step * 5
            theirs, ours = step * 100, step * 100 + 50
            assert other.ask(f"remember {theirs} {theirs + 50} {now}") == "stored"
            assert all(await store.look_up(keys(range(theirs, theirs + 50)), now))
            await store.remember(keys(range(ours, ours + 50)), now)
            assert other.ask(f"look_up {ours} {ours + 50} {now}") == "50"
        before = store.statistics().buckets
        assert other.ask(f"expire {NOON + 25}") == "expired"
        assert all(await store.look_up(keys(range(400, 600)), NOON + 25))
        assert store.statistics().buckets < before
    await store.close()


async def test_two_changes_within_one_tick_of_the_file_system_are_both_seen(tmp_path: Path) -> None:
    """The folder's modification time may stay the same when a second bucket is made right after the first."""
    store = open_store(tmp_path, window=10.0)
    with child(tmp_path, 10.0, 64 * MIB) as other:
        other.ask(f"remember 1 2 {NOON}")
        tick = os.stat(tmp_path).st_mtime_ns
        assert await store.look_up([key(1)], NOON) == [True]
        other.ask(f"remember 2 3 {NOON + 5}")
        os.utime(tmp_path, ns=(tick, tick))
        assert await store.look_up([key(2)], NOON + 5) == [True]
    await store.close()


async def test_a_bucket_dropped_by_another_process_is_not_counted_here(tmp_path: Path) -> None:
    """When two processes evict the same bucket, one of them counts its keys."""
    store = open_store(tmp_path)
    await store.remember(keys(range(100)), NOON)
    (bucket,) = store._folder.buckets()
    shutil.rmtree(bucket.folder)
    assert store._folder.drop(bucket) == 0
    assert store._folder.buckets() == ()
    await store.close()


async def test_processes_share_one_limit(tmp_path: Path) -> None:
    """Two processes write against the same limit at once: it holds, and each finds what it wrote last."""
    limit, step = 16 * MIB, 2000
    with child(tmp_path, WINDOW, limit) as one, child(tmp_path, WINDOW, limit) as two:
        one.send(f"stream 0 200000 {step} {NOON}")
        two.send(f"stream 1000000 1200000 {step} {NOON}")
        for _ in range(100):
            positions = [int(writer.receive()) for writer in (one, two)]
            assert disk_usage(tmp_path) <= limit
        for writer, position in zip((one, two), positions, strict=True):
            assert writer.ask(f"look_up {position - step} {position} {NOON}") == str(step)
        evicted = sum(int(writer.ask("statistics")) for writer in (one, two))
    store = open_store(tmp_path, max_bytes=limit)
    missing = 400_000 - store.statistics().keys
    assert 0 < missing <= evicted <= missing + step, (
        "no more than one part may have been dropped and written again"
    )
    await store.close()


async def test_reader_slots_of_the_dead_are_freed(tmp_path: Path) -> None:
    """A process killed while it reads leaves a slot that would pin old pages; housekeeping frees it."""
    store = open_store(tmp_path)
    await store.remember([key(1)], NOON)
    with child(tmp_path, WINDOW, 64 * MIB) as reader:
        assert reader.ask("hold") == "holding"
        pid = str(reader.process.pid)
        assert pid in readers(store)
        reader.process.send_signal(signal.SIGKILL)
        reader.process.wait()
    await store.expire(NOON)
    assert pid not in readers(store)
    await store.close()


def readers(store: LmdbKeyStore) -> list[str]:
    """Process ids in the reader table of the newest bucket."""
    with store._folder.buckets()[0].lease() as env:
        return env.readers().split()


async def test_keys_written_into_a_bucket_that_another_process_drops_are_written_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bucket vanishes between commit and acknowledgement: the keys go into a new one."""
    store = open_store(tmp_path)
    put = Bucket.put
    dropped: list[str] = []

    def put_then_lose(bucket: Bucket, *arguments: object) -> bool:
        stored = put(bucket, *arguments)  # type: ignore[arg-type]
        if not dropped:
            dropped.append(bucket.folder)
            shutil.rmtree(bucket.folder)
        return stored

    monkeypatch.setattr(Bucket, "put", put_then_lose)
    await store.remember(keys(range(100)), NOON)
    assert dropped
    assert all(await store.look_up(keys(range(100)), NOON))
    await store.close()
    store = open_store(tmp_path)
    assert all(await store.look_up(keys(range(100)), NOON))
    await store.close()


async def test_one_process_does_not_open_a_folder_twice(tmp_path: Path) -> None:
    """LMDB's locks would break; another name of the same folder does not help. After close it may be opened."""
    store = open_store(tmp_path / "store")
    (tmp_path / "alias").symlink_to(tmp_path / "store")
    with pytest.raises(KeyStoreError, match="already open in this process"):
        open_store(tmp_path / "alias")
    await store.close()
    await open_store(tmp_path / "alias").close()
