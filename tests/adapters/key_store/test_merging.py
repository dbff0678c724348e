"""Which segments are merged: few remain, a key is seldom written again, and the event loop is never blocked."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from consumer.adapters.key_store import files, folder, view
from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.files import FileList, SegmentFile
from consumer.adapters.key_store.folder import JOURNAL_KEYS, mergeable
from consumer.adapters.key_store.native import Segment
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import MIB, NOON, eventually, keys, open_files, open_store

GIB = 1024 * MIB


def is_merging(store: DiskKeyStore) -> bool:
    """Report whether a merge is queued or runs."""
    return store._merge_not_before == math.inf


def merged(files: FileList, max_bytes: int) -> tuple[FileList, int]:
    """Merge `files` until nothing is left to merge; return the new list and the number of keys written."""
    written = 0
    while chosen := mergeable(files, max_bytes):
        assert len({(one.start, one.window) for one in chosen}) == 1
        assert len(chosen) > 1
        entries = sum(one.entries for one in chosen)
        new = chosen[-1]._replace(number=files.next, entries=entries, bits=0)
        assert new.bytes <= max_bytes * 1.1
        kept = [new if one == chosen[-1] else one for one in files.segments if one not in chosen[:-1]]
        files = files._replace(next=files.next + 1, segments=tuple(kept))
        written += entries
    return files, written


def sealed(files: FileList, start: int, entries: int = JOURNAL_KEYS) -> FileList:
    """Return `files` with one more segment, of the slice that begins at `start`, which becomes the current one."""
    new = SegmentFile(files.next, entries, 0, start, 1000, 0)
    return files._replace(next=files.next + 1, start=start, window=1000, segments=(*files.segments, new))


@pytest.mark.parametrize("journals", [10, 100, 700])
def test_few_segments_remain_and_a_key_is_seldom_written_again(journals: int) -> None:
    """A growing slice has few segments of each size, and when the next one begins, it is merged into at most two."""
    files, written = FileList(), 0
    for _ in range(journals):
        files, more = merged(sealed(files, 0), 64 * GIB)
        written += more
        assert len(files.segments) <= 16
    assert written <= 6 * journals * JOURNAL_KEYS
    files = sealed(files, 0, 900)  # the journal's keys at the end of the slice
    files, more = merged(sealed(files, 500), 64 * GIB)
    assert len([one for one in files.segments if one.start == 0]) <= 2
    assert more <= 2 * journals * JOURNAL_KEYS


def test_a_few_small_segments_do_not_make_a_large_one_be_written_again() -> None:
    """A clock that goes back and forth adds small segments to an ended slice."""
    files = sealed(FileList(), 0, 1000 * JOURNAL_KEYS)
    written = 0
    for _ in range(100):
        files = sealed(files, 0, 500)._replace(start=500)
        files, more = merged(files, 64 * GIB)
        written += more
    assert len(files.segments) <= 12
    assert written < 1000 * JOURNAL_KEYS


def test_no_merge_is_larger_than_its_room() -> None:
    """No merge makes a segment larger than the size that it may have; segments that do not fit stay as they are."""
    files = FileList()
    for _ in range(60):
        files, _ = merged(sealed(files, 0), 8 * JOURNAL_KEYS * 21)
    assert len(files.segments) <= 16


async def test_the_event_loop_goes_on_while_keys_are_sealed_and_merged(tmp_path: Path) -> None:
    """No turn of the event loop takes 20 ms of its own thread's time meanwhile."""
    store = open_store(tmp_path, 172_800.0, GIB)
    column = keys(range(4000))
    turns = []

    async def watch() -> None:
        while True:
            begun = time.thread_time()
            await asyncio.sleep(0)
            turns.append(time.thread_time() - begun)

    watching = asyncio.create_task(watch())
    for number in range(200):
        salt = number.to_bytes(2, "big")
        chunk = b"".join(column[at : at + 14] + salt for at in range(0, len(column), 16))
        assert not any(await store.look_up(chunk, NOON))
        await store.confirm(chunk, NOON)
        if number % 20 == 0:
            await store.expire(NOON)
    while is_merging(store):
        await asyncio.sleep(0.01)
    watching.cancel()
    assert store.statistics().keys == 800_000
    assert len(store._view.segments) < 6
    assert max(turns) < 0.02
    await store.close()


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    """Return the names of the threads that have opened and unmapped segments."""
    found: dict[str, list[str]] = {"opened": [], "unmapped": []}
    real_open, real_close = files.open_segment, files._MappedFile.close

    def open_segment(root: str, file: SegmentFile) -> Segment:
        found["opened"].append(threading.current_thread().name)
        return real_open(root, file)

    def close(mapping: files._MappedFile) -> None:
        found["unmapped"].append(threading.current_thread().name)
        real_close(mapping)

    monkeypatch.setattr(view, "open_segment", open_segment)
    monkeypatch.setattr(files._MappedFile, "close", close)
    return found


async def test_segments_are_opened_and_unmapped_beside_the_event_loop(
    tmp_path: Path, threads: dict[str, list[str]]
) -> None:
    """Segments are opened by the writer's thread and unmapped by the closer's: both would block the event loop."""
    store = open_store(tmp_path, 10.0, GIB)
    await store.confirm(keys(range(200)), NOON)
    await store.confirm(keys(range(200, 400)), NOON + 5)
    assert [one.file.entries for one in store._view.segments] == [200]
    assert threads["opened"] == ["key-store-writer"]
    await store.expire(NOON + 16)
    assert not store._view.segments
    await eventually(lambda: bool(threads["unmapped"]))
    assert threads["unmapped"] == ["key-store-closer"]
    await store.close()
    await eventually(lambda: not open_files(tmp_path, "segment-"))


async def test_a_merged_segment_is_opened_by_the_thread_that_merged_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: dict[str, list[str]]
) -> None:
    """Not by the event loop; its keys are found from then on."""
    monkeypatch.setattr(folder, "JOURNAL_KEYS", 200)
    store = open_store(tmp_path, 172_800.0, GIB)
    for at in range(0, 1200, 200):
        await store.confirm(keys(range(at, at + 200)), NOON)
    await eventually(lambda: not is_merging(store))
    assert all(await store.look_up(keys(range(1200)), NOON))
    assert set(threads["opened"]) == {"key-store-writer", "key-store-merger"}
    assert not store._view._prepared
    await store.close()


async def test_a_merge_that_cannot_be_listed_keeps_no_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a full disk has no room for the new list, the merged segment is removed and its file does not stay open."""
    monkeypatch.setattr(folder, "JOURNAL_KEYS", 200)
    store = open_store(tmp_path, 172_800.0, GIB)
    real = files.write_list

    def write_list(root: str, named: FileList) -> None:
        if threading.current_thread().name == "key-store-merger":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(root, named)

    monkeypatch.setattr(folder, "write_list", write_list)
    for at in range(0, 1000, 200):
        await store.confirm(keys(range(at, at + 200)), NOON)
    await eventually(lambda: not is_merging(store) and store._merge_failure is not None)
    with pytest.raises(KeyStoreError, match="No space left on device"):
        await store.expire(NOON)
    await store.expire(NOON)  # said once for each merge that failed
    await eventually(
        lambda: not [name for name in open_files(tmp_path, "segment-") if name.endswith("(deleted)")]
    )
    assert all(await store.look_up(keys(range(1000)), NOON))
    await store.close()


async def test_without_a_thread_the_files_are_closed_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the system refuses a thread, the event loop closes the files: no look-up fails, none stays open."""

    def run_aside(_name: str, _function: Callable[[], object]) -> None:
        raise RuntimeError("can't start new thread")

    store = open_store(tmp_path, 10.0, GIB)
    await store.confirm(keys(range(200)), NOON)
    await store.confirm(keys(range(200, 400)), NOON + 5)
    assert len(open_files(tmp_path, "segment-")) == 1
    # A closer that was started before holds the segment until it ends.
    await eventually(lambda: all(one.name != "key-store-closer" for one in threading.enumerate()))
    monkeypatch.setattr(view, "run_aside", run_aside)
    await store.expire(NOON + 16)
    assert not any(await store.look_up(keys(range(200)), NOON + 16))
    assert not open_files(tmp_path, "segment-")
    await store.close()
