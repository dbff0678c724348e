"""The store on disk across processes: restarts, kills and shared folders."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from consumer.adapters.key_store import disk_store, view
from consumer.adapters.key_store.files import SegmentFile, decode_list, open_segment
from consumer.adapters.key_store.native import Segment
from tests.adapters.key_store.helpers import MIB, NOON, child, disk_usage, key, keys, open_store
from tests.end_to_end.processes import ROOT

WINDOW = 172_800.0


async def test_keys_survive_a_restart(tmp_path: Path) -> None:
    """Keys are found after a restart, and a shorter window in between drops nothing that a longer one needs."""
    store = open_store(tmp_path)
    await store.confirm(keys(range(2000)), NOON)
    await store.close()
    store = open_store(tmp_path, window=600.0)
    await store.expire(NOON + 100_000)
    assert all(await store.look_up(keys(range(2000)), NOON + 600))
    assert not any(await store.look_up(keys(range(2000)), NOON + 601))
    await store.close()
    store = open_store(tmp_path)
    assert all(await store.look_up(keys(range(2000)), NOON + WINDOW))
    await store.close()


@pytest.mark.parametrize("seconds_in", [1, 20, 60])
async def test_a_kill_loses_no_acknowledged_key(tmp_path: Path, seconds_in: int) -> None:
    """After SIGKILL in the middle of a stream of writes, every chunk acknowledged before is found."""
    acknowledged = 0
    with child(tmp_path, WINDOW, 64 * MIB) as writer:
        writer.send(f"stream 0 10000000 250 {NOON}")
        for _ in range(seconds_in):
            acknowledged = int(writer.receive())
        writer.kill()
    store = open_store(tmp_path)
    assert all(await store.look_up(keys(range(acknowledged)), NOON + 1))
    await store.confirm(key(-1 % 2**63), NOON + 1)
    await store.close()


async def test_a_kill_while_buckets_are_made_and_dropped_leaves_a_store_that_opens(tmp_path: Path) -> None:
    """Five kills in a row, with a limit so low that buckets are made and dropped all the time."""
    for attempt in range(0, 10, 2):
        with child(tmp_path, WINDOW, MIB) as writer:
            first = attempt * 1_000_000
            writer.send(f"stream {first} {first + 900_000} 8000 {NOON}")
            for _ in range(3 + attempt):
                acknowledged = int(writer.receive())
            writer.kill()
        store = open_store(tmp_path, max_bytes=MIB)
        assert all(await store.look_up(keys(range(acknowledged - 8000, acknowledged)), NOON + 1))
        await store.expire(NOON + 1)
        await store.close()
        assert disk_usage(tmp_path) <= MIB
        assert set(os.listdir(tmp_path)) <= names_of(tmp_path) | {"lock", "merge.lock", "merging"}


def names_of(folder: Path) -> set[str]:
    """Return the names of the files in the list of `folder`."""
    return decode_list((folder / "format").read_bytes()).names()


async def test_processes_see_each_other(tmp_path: Path) -> None:
    """Keys, new buckets and dropped buckets of one process are seen by the other at its next call."""
    store = open_store(tmp_path, window=10.0)
    with child(tmp_path, 10.0, 64 * MIB) as other:
        for step in range(6):
            now = NOON + step * 5
            theirs, ours = step * 100, step * 100 + 50
            assert other.ask(f"remember {theirs} {theirs + 50} {now}") == "stored"
            assert all(await store.look_up(keys(range(theirs, theirs + 50)), now))
            await store.confirm(keys(range(ours, ours + 50)), now)
            assert other.ask(f"look_up {ours} {ours + 50} {now}") == "50"
        before = store.statistics().buckets
        assert other.ask(f"expire {NOON + 25}") == "expired"
        assert all(await store.look_up(keys(range(400, 600)), NOON + 25))
        assert store.statistics().buckets < before
    await store.close()


FORKS = """
import asyncio, os, signal, sys, time
from pathlib import Path
from tests.adapters.key_store.helpers import NOON, keys, open_store
from tests.adapters.key_store.test_processes import open_store

store = open_store(Path(sys.argv[1]))
with store._folder._locked():
    child = os.fork() or time.sleep(600)
try:
    asyncio.run(store.confirm(keys(range(9)), NOON))
finally:
    os.kill(child, signal.SIGKILL)
"""


def test_a_child_does_not_keep_the_lock(tmp_path: Path) -> None:
    """A function of the user may fork just while the store writes."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FORKS, str(tmp_path)], cwd=ROOT, timeout=60, check=False
    )
    assert done.returncode == 0


async def test_processes_share_one_limit(tmp_path: Path) -> None:
    """While two processes write at once, their limit holds, and each finds the keys that it wrote last."""
    limit, step = 16 * MIB, 6000
    with child(tmp_path, WINDOW, limit) as one, child(tmp_path, WINDOW, limit) as two:
        one.send(f"stream 0 600000 {step} {NOON}")
        two.send(f"stream 1000000 1600000 {step} {NOON}")
        for _ in range(100):
            positions = [int(writer.receive()) for writer in (one, two)]
            assert disk_usage(tmp_path) <= limit
        for writer, position in zip((one, two), positions, strict=True):
            assert writer.ask(f"look_up {position - step} {position} {NOON}") == str(step)
        evicted = sum(int(writer.ask("statistics")) for writer in (one, two))
    store = open_store(tmp_path, max_bytes=limit)
    assert 0 < evicted == 1_200_000 - store.statistics().keys
    await store.close()


async def test_a_folder_that_another_one_made_again_is_followed(tmp_path: Path) -> None:
    """When the folder was deleted in use and another store made it again, its new files of the same names are read."""
    one, other = open_store(tmp_path / "store"), open_store(tmp_path / "store")
    await one.confirm(key(1), NOON)
    assert await other.look_up(key(1), NOON) == b"\1"
    shutil.rmtree(tmp_path / "store")
    await one.confirm(key(2), NOON)
    assert await other.look_up(key(2), NOON) == b"\1"
    await other.confirm(key(3), NOON)
    for store in (one, other):
        assert await store.look_up(keys([1, 2, 3]), NOON) == b"\0\1\1"
        await store.close()


async def test_a_list_that_is_replaced_while_it_is_read_is_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A list replaced while it is read is read again: that the files of the older list are gone is no damage."""
    monkeypatch.setattr(disk_store, "mergeable", lambda *_: [])
    store = open_store(tmp_path, max_bytes=MIB)
    other = open_store(tmp_path, max_bytes=MIB)
    await store.confirm(keys(range(10_000)), NOON)
    replaced: list[str] = []
    real = open_segment

    def open_late(root: str, file: SegmentFile) -> Segment:
        if not replaced:
            replaced.append(file.name)
            files = other._folder._read_list()
            other._folder._change(files._replace(segments=files.segments[1:]))
        return real(root, file)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(view, "open_segment", open_late)
        await other.look_up(key(1), NOON)
    assert replaced
    assert len(other._view.segments) == len(store._view.segments) - 1
    await store.close()
    await other.close()
