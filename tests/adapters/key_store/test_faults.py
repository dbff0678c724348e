"""Every system call of the store on disk fails once, or is the last one: nothing that was acknowledged is lost."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters import disk as disk_module
from consumer.adapters.key_store import files
from consumer.adapters.key_store import folder as folder_module
from consumer.adapters.key_store.folder import Folder
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.view import View
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError
from tests.adapters.faults import Fault, failing
from tests.adapters.key_store.helpers import MIB, NOON, key

MODULES = (disk_module, files, folder_module)
WINDOW = Window.of(100)
START = int(NOON)


class StoreHistory:
    """A store whose chunks are confirmed, sealed, merged and expired, with a record of what must be found."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stamps: dict[int, int] = {}
        self.unsure: dict[int, int] = {}
        """The times of chunks that were begun and not acknowledged, by number."""
        self.now = START
        self.folder: Folder | None = None

    def open(self) -> Folder:
        """Open the folder as a start does."""
        self.folder = Folder(str(self.root), WINDOW, 64 * MIB)
        return self.folder

    def steps(self) -> Iterator[None]:
        """Confirm a chunk a step; meanwhile journals are sealed, segments merged, slices begun and dropped."""
        folder = self.open()
        for number in range(STEPS):
            self.now = START + number // 6 * 50
            self.unsure[number] = self.now
            folder.append([(column(number), self.now)])
            self.stamps[number] = self.unsure.pop(number)
            folder.merge(lambda: True)
            if number % 4 == 3:
                folder.expire(self.now + 51)
            yield

    def check(self) -> None:
        """Check that all acknowledged keys within the window are found, and none that were never delivered."""
        view = View(str(self.root))
        view.refresh()
        view.check()
        oldest = WINDOW.oldest(self.now + 51)
        for number in range(STEPS + 2):
            found = bytearray(CHUNK)
            view.table.find(column(number), oldest, found)
            for one in view.segments:
                one.find(column(number), oldest, found, beside=False)
            if self.stamps.get(number, 0) >= oldest:
                assert all(found), number
            elif number not in self.unsure:
                assert not any(found), number
        view.close()


CHUNK = 30
STEPS = 16


@cache
def column(number: int) -> bytes:
    """Return the keys of chunk `number`."""
    return b"".join(key(number * CHUNK + one) for one in range(CHUNK))


@pytest.fixture(autouse=True)
def _small_journals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folder_module, "JOURNAL_KEYS", 64)


def test_the_history_has_every_kind_of_step(memory_folder: Path) -> None:
    """Without a fault the history has several journals, merges and drops, and more than 300 calls."""
    history = StoreHistory(memory_folder)
    maximum = merged = 0
    with failing(memory_folder, None, *MODULES) as disk:
        for _ in history.steps():
            assert history.folder is not None
            listed = history.folder._read_list()
            maximum = max(maximum, len(listed.segments))
            merged += any(one.entries > 64 for one in listed.segments)
        history.check()
    assert maximum >= 3
    assert merged
    assert listed.segments[0].start > START, "what is out of the window is dropped"
    assert listed.journal > 9
    assert disk.calls > 300
    assert column(1)[:KEY_BYTES] != column(2)[:KEY_BYTES]


@pytest.mark.parametrize("kind", ["kill", "half kill", "power"])
def test_a_kill_at_any_system_call_loses_nothing(memory_folder: Path, kind: str) -> None:
    """After a kill at any system call the store opens, has all acknowledged keys, and works on."""
    for number in count(1):
        folder = memory_folder / str(number)
        folder.mkdir()
        history = StoreHistory(folder)
        with failing(folder, Fault(kind, number), *MODULES) as disk:
            for _ in history.steps():
                pass
        if not disk.hit:
            return
        with failing(folder, None, *MODULES):
            again = history.open()
            history.check()
            for step in range(STEPS, STEPS + 2):
                again.append([(column(step), history.now)])
                history.stamps[step] = history.now
            again.merge(lambda: True)
            again.expire(history.now + 51)
            history.check()
            leftovers = {one.name for one in folder.iterdir()} - again._read_list().names()
            assert leftovers <= {"lock", "merge.lock"}
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["short", "half ENOSPC", "EIO"])
def test_a_call_that_fails_is_reported_and_can_be_repeated(memory_folder: Path, kind: str) -> None:
    """The caller gets an error and can retry without loss; a short write is continued silently."""
    for number in count(1):
        folder = memory_folder / str(number)
        folder.mkdir()
        history = StoreHistory(folder)
        failures: list[str] = []
        with failing(folder, Fault(kind, number), *MODULES) as disk:
            steps = history.steps()
            for _ in range(60):
                try:
                    next(steps)
                except StopIteration:
                    break
                except KeyStoreError as failure:
                    failures.append(str(failure))
                    steps = rest_of(history)
            history.check()
        assert len(failures) <= (kind != "short")
        assert "damaged" not in "".join(failures)
        if not disk.hit:
            return
        shutil.rmtree(folder)


def rest_of(history: StoreHistory) -> Iterator[None]:
    """Go on with the same folder after a failure: confirm the chunks that failed again, then the rest."""
    folder = history.folder or history.open()
    for number, stamp in list(history.unsure.items()):
        folder.append([(column(number), stamp)])
        history.stamps[number] = history.unsure.pop(number)
    for number in range(max(history.stamps, default=-1) + 1, STEPS):
        history.now = START + number // 6 * 50
        folder.append([(column(number), history.now)])
        history.stamps[number] = history.now
        folder.merge(lambda: True)
        folder.expire(history.now + 51)
        yield


def test_a_merge_that_is_no_longer_wanted_changes_nothing(memory_folder: Path) -> None:
    """As at a stop: the segments that it would have merged stay as they are."""
    history = StoreHistory(memory_folder)
    with failing(memory_folder, None, *MODULES):
        folder = history.open()
        for number in range(STEPS):
            folder.append([(column(number), START)])
        before = folder._read_list()
        assert folder_module.mergeable(before, folder.merge_bytes)
        folder.merge(lambda: False)
        assert folder._read_list() == before


class CachedDisk:
    """The system's calls on one file, beneath which is a disk: as Linux does, a flush that fails counts what was
    written as flushed, and only what was flushed without an error is there after a power failure."""

    def __init__(self, path: Path) -> None:
        self.fails = self.is_killed = False
        self._path = path
        self._on_disk = bytearray(path.read_bytes())
        self._dirty: list[tuple[int, bytes]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def pwrite(self, number: int, data: bytes, at: int) -> int:
        """Write into the cache."""
        self._dirty.append((at, bytes(data)))
        return os.pwrite(number, data, at)

    def ftruncate(self, number: int, size: int) -> None:
        """Cut the file, unless the process was killed before."""
        if self.is_killed:
            raise OSError(errno.EIO, "killed")
        os.ftruncate(number, size)
        del self._on_disk[size:]
        self._dirty = [(at, data[: max(0, size - at)]) for at, data in self._dirty]

    def fdatasync(self, _: int) -> None:
        """Write the cache to the disk, or fail: both leave it clean."""
        dirty, self._dirty = self._dirty, []
        if self.fails:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        for at, data in dirty:
            self._on_disk.extend(bytes(max(0, at + len(data) - len(self._on_disk))))
            self._on_disk[at : at + len(data)] = data

    def lose_power(self) -> None:
        """Leave what is on the disk."""
        self._path.write_bytes(self._on_disk)


@pytest.mark.parametrize("is_killed", [False, True])
def test_what_a_failed_flush_left_is_never_taken_for_durable(
    memory_folder: Path, monkeypatch: pytest.MonkeyPatch, is_killed: bool
) -> None:
    """It is cut off, or written anew by the next process: a power failure takes no acknowledged chunk."""
    files.Journal.make(str(memory_folder), 1)
    disk = CachedDisk(memory_folder / "journal-1")
    for module in MODULES:
        monkeypatch.setattr(module, "os", disk)

    def store(number: int) -> None:
        journal = files.Journal(str(memory_folder), 1).recovered()
        journal.add(column(number), 7)
        try:
            journal.commit()
        finally:
            journal.close()

    def stored() -> list[bytes]:
        journal = files.Journal(str(memory_folder), 1)
        found = [bytes(keys) for _, keys in journal.chunks(0, journal.acknowledged())]
        journal.close()
        return found

    store(0)
    disk.fails, disk.is_killed = True, is_killed
    with pytest.raises(OSError, match="Input/output error"):
        store(1)
    assert stored() == [column(0)]
    disk.fails = disk.is_killed = False
    store(2)
    expected = [column(0), *([column(1)] if is_killed else []), column(2)]
    assert stored() == expected
    store(3)  # the end of the chunks before is on the disk with it
    disk.lose_power()
    assert stored()[: len(expected)] == expected
