"""Files that were cut, changed, filled with zeros or deleted: all keys are found, or the damage is reported."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
from collections.abc import Iterator
from itertools import product
from pathlib import Path

import pytest

from consumer.adapters import disk
from consumer.adapters.key_store import files
from consumer.adapters.key_store import folder as folder_module
from consumer.adapters.key_store import view as view_module
from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.interface import Window
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import MIB, NOON, keys

COUNT = 1300
KEYS = keys(range(COUNT))
OTHERS = keys(range(COUNT, 2 * COUNT))
PIECES = ("format", "journal-", "segment-")


def open_store(folder: Path) -> DiskKeyStore:
    """Open a store with small journals (see `whole`)."""
    return DiskKeyStore(str(folder), Window.of(172_800.0), MIB)


@pytest.fixture
async def whole(memory_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with several segments and a journal."""
    monkeypatch.setattr(folder_module, "JOURNAL_KEYS", 300)
    folder = memory_folder / "whole"
    store = open_store(folder)
    for start in range(0, COUNT, 50):
        await store.confirm(KEYS[start * KEY_BYTES : (start + 50) * KEY_BYTES], NOON)
    await store.close()
    names = {path.name.rstrip("0123456789") for path in folder.iterdir()}
    assert names >= set(PIECES)
    return folder


def copy(whole: Path, name: str) -> Path:
    """Return the path of this file in a new copy of the folder `whole`."""
    folder = whole.parent / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(whole, folder)
    return folder / name


def first(whole: Path, piece: str) -> str:
    """Return the name of the first file of this kind."""
    return min(name for name in os.listdir(whole) if name.startswith(piece))


async def is_reported(folder: Path) -> bool:
    """Report whether opening the store reports damage, each time; if it does not, check that all keys are there."""
    try:
        store = open_store(folder)
    except KeyStoreError as failure:
        reported = str(failure)
        assert "is damaged" in reported or "was written by another version" in reported
        assert str(folder) in reported
        with pytest.raises(KeyStoreError):
            open_store(folder)
        return True
    assert all(await store.look_up(KEYS, NOON))
    assert not any(await store.look_up(OTHERS, NOON))
    await store.confirm(OTHERS[: 10 * KEY_BYTES], NOON)
    assert all(await store.look_up(KEYS + OTHERS[: 10 * KEY_BYTES], NOON))
    await store.close()
    return False


def spoiled(data: bytes, dice: random.Random) -> Iterator[tuple[bytes, int]]:
    """Yield the data cut, with a flipped bit, and with a page of other bytes, as a disk or a power failure leaves it;
    and the place of the change."""
    size = len(data)
    for end in (*(size * share // 100 for share in (0, 1, 2, 30, 33, 50, 66, 80, 90, 95, 98, 99)),
                *(max(0, size - back) for back in (1, 12, 16, 20, 50 * 16 + 12, 1024))):  # fmt: skip
        yield data[:end], end
    for at in (
        *range(64, 76),
        *(dice.randrange(size) for _ in range(48)),
    ):  # with the head of a journal's first chunk
        yield data[:at] + bytes([data[at] ^ 1 << dice.randrange(8)]) + data[at + 1 :], at
    for filler, page in product((b"\0", b"\xff"), range(3)):
        at = page * 4096 % size
        yield data[:at] + filler * len(data[at : at + 4096]) + data[at + 4096 :], at


@pytest.mark.parametrize("piece", PIECES)
async def test_a_spoiled_file_is_damage(whole: Path, piece: str) -> None:
    """It is reported, and no key is taken for one that was not delivered. Only spare bytes of a journal may change."""
    dice, harmless = random.Random(piece), 0
    names = sorted(name for name in os.listdir(whole) if name.startswith(piece))
    changes = [(name, *one) for name in names for one in spoiled((whole / name).read_bytes(), dice)]
    for number, (name, data, at) in enumerate(changes):
        if number % len(names):  # as many changes as of one file, over all files of the kind
            continue
        file = copy(whole, name)
        file.write_bytes(data)
        if not await is_reported(file.parent):
            assert piece == "journal-"
            assert 32 <= at < 64
            harmless += 1
    assert harmless < 10


@pytest.mark.parametrize("piece", PIECES)
async def test_a_file_that_is_missing_is_damage(whole: Path, piece: str) -> None:
    """A missing file is damage: the remaining files are not taken for the whole store."""
    file = copy(whole, first(whole, piece))
    file.unlink()
    with pytest.raises(
        KeyStoreError, match=rf"{file.name} is missing\): stop every .* move this folder away"
    ):
        open_store(file.parent)
    shutil.rmtree(file.parent)
    await open_store(file.parent).close()


async def test_a_list_that_is_older_than_the_files_is_damage(tmp_path: Path) -> None:
    """The files that a list from when the store was new does not name are not removed as leftovers."""
    store = open_store(tmp_path)
    older = (tmp_path / "format").read_bytes()
    await store.confirm(KEYS, NOON)
    await store.close()
    names = set(os.listdir(tmp_path))
    (tmp_path / "format").write_bytes(older)
    with pytest.raises(KeyStoreError, match=r"is damaged \(format is older than journal-1\)"):
        open_store(tmp_path)
    assert set(os.listdir(tmp_path)) == names


async def test_a_journal_that_is_put_back_while_in_use_is_damage(whole: Path) -> None:
    """The look-up after an earlier state of a journal took its place says that it was cut short."""
    store = open_store(whole)
    journal = whole / first(whole, "journal-")
    older = journal.read_bytes()
    await store.confirm(OTHERS[: 10 * KEY_BYTES], NOON)
    journal.write_bytes(older)
    with pytest.raises(KeyStoreError, match=rf"is damaged \({journal.name} was cut short\)"):
        await store.look_up(KEYS, NOON)
    await store.close()


async def test_a_segment_that_the_disk_cannot_read_is_reported(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is reported at the start: a read through its mapping would end the process."""
    real = open

    class Unreadable(io.FileIO):
        def readinto(self, buffer: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def opened(path: str, mode: str, buffering: int = -1) -> object:
        # A mapping's `open` has the default buffering, and reads nothing itself.
        unreadable = "segment-" in path and buffering == 0
        return Unreadable(path, mode) if unreadable else real(path, mode, buffering)

    monkeypatch.setattr(disk, "open", opened, raising=False)
    with pytest.raises(KeyStoreError, match=r"cannot use .* \(Input/output error\): check the disk"):
        open_store(whole)


async def test_bytes_behind_the_certain_end_are_cut_off(whole: Path) -> None:
    """They are what a killed process had begun to write, or what a file of before has left in the disk's blocks."""
    name = first(whole, "journal-")
    chunk = (whole / name).read_bytes()[files.FIRST_CHUNK :][: 12 + 50 * KEY_BYTES]
    for tail in (b"x", bytes(40), b"\0\0\0\1" * 700, chunk):
        file = copy(whole, name)
        size = file.stat().st_size
        with file.open("ab") as journal:
            journal.write(tail)
        assert not await is_reported(file.parent)
        assert file.stat().st_size == size + 12 + 10 * KEY_BYTES


@pytest.mark.parametrize("wrong", [{"bits": -1}, {"bits": 64}, {"bits": 10**9}, {"entries": -1}])
async def test_a_list_with_impossible_numbers_is_damage(whole: Path, wrong: dict[str, int]) -> None:
    """A list whose checksum is right and whose segments cannot be is reported, before anything is made of it."""
    data = (whole / files.LIST).read_bytes()
    listed = files.decode_list(data)
    files.write_list(
        str(whole), listed._replace(segments=tuple(one._replace(**wrong) for one in listed.segments))
    )
    with pytest.raises(KeyStoreError, match=r"is damaged \(format is not as it was written\)"):
        open_store(whole)


async def test_damage_of_a_large_store_is_reported_by_the_look_up_that_finds_it(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store too large to be checked at the start: the look-up that finds damage asks for a restart."""
    monkeypatch.setattr(view_module, "CHECKED_BYTES", 0)
    file = copy(whole, first(whole, "segment-"))
    with file.open("r+b") as segment:
        segment.seek(3000)
        segment.write(b"other bytes")
    store = open_store(file.parent)
    with pytest.raises(KeyStoreError, match=rf"is damaged \({file.name} is not as it") as reported:
        await store.look_up(KEYS, NOON)
    assert reported.value.needs_restart
    await store.close()


async def test_a_merge_that_finds_damage_reports_it(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that finds damage reports it and leaves the segments as they are."""
    monkeypatch.setattr(view_module, "CHECKED_BYTES", 0)
    store = open_store(whole)
    for _ in range(4):
        store._folder.append([(OTHERS[: 300 * KEY_BYTES], int(NOON))])
    before = store._folder._read_list().segments
    # All of them: the store that made the folder may have merged some already.
    for one in before:
        with (whole / one.name).open("r+b") as segment:
            segment.seek(3000)
            segment.write(b"other bytes")
    with pytest.raises(KeyStoreError, match=r"is damaged \(one of segment-\d+, "):
        store._folder.merge(lambda: True)
    assert store._folder._read_list().segments == before
    await store.close()


async def test_a_journal_that_is_deleted_while_in_use_takes_no_keys(whole: Path) -> None:
    """A journal that was deleted while in use takes no keys: after a restart they could not be found."""
    store = open_store(whole)
    (whole / first(whole, "journal-")).unlink()
    with pytest.raises(KeyStoreError, match=r"journal-\d+ is missing"):
        await store.confirm(keys([1]), NOON)
    await store.close()
