"""Every system call of the store on disk fails once, or is the last one: nothing that was acknowledged is lost."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from itertools import count
from pathlib import Path

import pytest

from consumer.adapters.key_store import folder as folder_module
from consumer.adapters.key_store.folder import Folder
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.view import View
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError
from tests.adapters.key_store.faults import Fault, failing
from tests.adapters.key_store.helpers import MIB, NOON, key

WINDOW = Window.of(100)
START = int(NOON)


class History:
    """A store whose chunks are confirmed, sealed, merged and expired step by step, with a record of what must
    be found."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.stamps: dict[int, int] = {}
        self.unsure: dict[int, int] = {}
        """The times of chunks that were begun and not acknowledged, by number."""
        self.now = START
        self.folder: Folder | None = None

    def open(self) -> Folder:
        """Open the folder as a start does."""
        self.folder = Folder(str(self.root), WINDOW, 64 * MIB, lambda _: None)
        return self.folder

    def steps(self) -> Iterator[None]:
        """Confirm a chunk a step; meanwhile journals are sealed, segments merged, and slices of time begun and
        dropped."""
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
    history = History(memory_folder)
    most = merged = 0
    with failing(memory_folder, None) as disk:
        for _ in history.steps():
            assert history.folder is not None
            files = history.folder._read_list()
            most = max(most, len(files.segments))
            merged += any(one.entries > 64 for one in files.segments)
        history.check()
    assert most >= 3
    assert merged
    assert files.segments[0].start > START, "what is out of the window is dropped"
    assert files.journal > 9
    assert disk.calls > 300
    assert column(1)[:KEY_BYTES] != column(2)[:KEY_BYTES]


@pytest.mark.parametrize("kind", ["kill", "half kill", "power"])
def test_a_kill_at_any_system_call_loses_nothing(memory_folder: Path, kind: str) -> None:
    """After a kill at any system call the store opens, has all acknowledged keys, and works on."""
    for number in count(1):
        folder = memory_folder / str(number)
        folder.mkdir()
        history = History(folder)
        with failing(folder, Fault(kind, number)) as disk:
            for _ in history.steps():
                pass
        if not disk.hit:
            return
        with failing(folder, None):
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
    """When a system call fails, the caller gets an error and can retry without loss; a short write is continued
    silently."""
    for number in count(1):
        folder = memory_folder / str(number)
        folder.mkdir()
        history = History(folder)
        failures: list[str] = []
        with failing(folder, Fault(kind, number)) as disk:
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


def rest_of(history: History) -> Iterator[None]:
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
    """A merge that is no longer wanted, as at a stop, removes its file and leaves the segments as they are."""
    history = History(memory_folder)
    with failing(memory_folder, None):
        for _ in history.steps():
            pass
        assert history.folder is not None
        before = history.folder._read_list()
        with suppress(KeyStoreError):
            history.folder.merge(lambda: False)
        assert history.folder._read_list() == before
        history.check()
