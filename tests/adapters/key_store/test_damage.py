"""Files that were cut, changed, filled with zeros or deleted: all keys are found, or the damage is reported."""

from __future__ import annotations

import errno
import io
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

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
WINDOW = Window.of(172_800.0)
PIECES = ("format", "journal-", "segment-")


def open_store(folder: Path) -> DiskKeyStore:
    """Open a store with small journals (see `whole`)."""
    return DiskKeyStore(str(folder), WINDOW, MIB)


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


def copies(whole: Path, piece: str) -> Iterator[Path]:
    """Yield paths of files of kind `piece`, each in a new copy of the folder `whole`."""
    names = sorted(path.name for path in whole.iterdir() if path.name.startswith(piece))
    for number in range(10_000):
        folder = whole.parent / "copy"
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(whole, folder)
        yield folder / names[number % len(names)]


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


@pytest.mark.parametrize("piece", PIECES)
async def test_a_file_cut_anywhere_is_damage_or_whole(whole: Path, piece: str) -> None:
    """A file cut anywhere, such as at its beginning, at the end of a chunk or a byte before its end, is damage or
    has all keys."""
    for file, share in zip(copies(whole, piece), [0, 1, 2, 30, 33, 50, 66, 80, 90, 95, 98, 99], strict=False):
        size = file.stat().st_size
        os.truncate(file, size * share // 100)
        assert await is_reported(file.parent)
    for file, back in zip(copies(whole, piece), (1, 12, 16, 20, 50 * 16 + 12, 1024), strict=False):
        os.truncate(file, max(0, file.stat().st_size - back))
        assert await is_reported(file.parent)


@pytest.mark.parametrize("piece", PIECES)
async def test_a_flipped_bit_is_damage_or_does_nothing(whole: Path, piece: str) -> None:
    """A flipped bit anywhere is damage or has no effect; only a few spare bytes at the beginning of a journal may
    change."""
    dice = random.Random(piece)
    for file, _ in zip(copies(whole, piece), range(60), strict=False):
        data = bytearray(file.read_bytes())
        at = dice.randrange(len(data))
        data[at] ^= 1 << dice.randrange(8)
        file.write_bytes(data)
        assert await is_reported(file.parent) or (piece == "journal-" and 32 <= at < 64)


@pytest.mark.parametrize("piece", PIECES)
async def test_zeros_or_other_bytes_in_place_of_a_page_are_damage(whole: Path, piece: str) -> None:
    """A page of zeros or other bytes, as a broken disk or a power failure leaves it, is damage or has no effect."""
    for filler in (b"\0", b"\xff"):
        for file, page in zip(copies(whole, piece), range(3), strict=False):
            data = file.read_bytes()
            begin = page * 4096 % len(data)
            size = len(data[begin : begin + 4096])
            file.write_bytes(data[:begin] + filler * size + data[begin + size :])
            assert await is_reported(file.parent)


@pytest.mark.parametrize("piece", PIECES)
async def test_a_file_that_is_missing_is_damage(whole: Path, piece: str) -> None:
    """A missing file is damage: the remaining files are not taken for the whole store."""
    file = next(copies(whole, piece))
    file.unlink()
    with pytest.raises(
        KeyStoreError, match=rf"{file.name} is missing\): stop every process .* move this folder away"
    ):
        open_store(file.parent)
    shutil.rmtree(file.parent)
    await open_store(file.parent).close()


async def test_a_list_that_is_older_than_the_files_is_damage(tmp_path: Path) -> None:
    """A list from when the store was new is damage, and the files that it does not name are not removed as
    leftovers."""
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
    """When a journal is replaced by an earlier state of it while in use, the next look-up reports that it was
    cut short."""
    store = open_store(whole)
    journal = next(whole / name for name in os.listdir(whole) if name.startswith("journal-"))
    older = journal.read_bytes()
    await store.confirm(OTHERS[: 10 * KEY_BYTES], NOON)
    journal.write_bytes(older)
    with pytest.raises(KeyStoreError, match=rf"is damaged \({journal.name} was cut short\)"):
        await store.look_up(KEYS, NOON)
    await store.close()


async def test_a_segment_that_the_disk_cannot_read_is_reported(
    whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A segment that the disk cannot read is reported at the start; a read through its mapping would end the
    process."""
    real = open

    class Unreadable(io.FileIO):
        def readinto(self, buffer: object) -> int:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def opened(path: str, mode: str, buffering: int = -1) -> object:
        # A mapping's `open` has the default buffering, and reads nothing itself.
        unreadable = "segment-" in path and buffering == 0
        return Unreadable(path, mode) if unreadable else real(path, mode, buffering)

    monkeypatch.setattr(files, "open", opened, raising=False)
    with pytest.raises(KeyStoreError, match=r"cannot use .* \(Input/output error\): check the disk"):
        open_store(whole)


async def test_bytes_behind_the_certain_end_are_cut_off(whole: Path) -> None:
    """Bytes after the acknowledged end of a journal are cut off: they are what a killed process had begun to write."""
    for file, tail in zip(copies(whole, "journal-"), (b"x", bytes(40), b"\0\0\0\1" * 700), strict=False):
        size = file.stat().st_size
        with file.open("ab") as journal:
            journal.write(tail)
        assert not await is_reported(file.parent)
        assert file.stat().st_size == size + 12 + 10 * 16


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
    """In a store too large to be checked at the start, the look-up that finds damage reports it and asks for a
    restart."""
    monkeypatch.setattr(view_module, "CHECKED_BYTES", 0)
    file = next(copies(whole, "segment-"))
    with file.open("r+b") as segment:
        segment.seek(3000)
        segment.write(b"other bytes")
    store = open_store(file.parent)
    with pytest.raises(
        KeyStoreError, match=rf"is damaged \({file.name} is not as it was written\)"
    ) as reported:
        await store.look_up(KEYS, NOON)
    assert reported.value.needs_restart
    await store.close()


async def test_a_merge_that_finds_damage_reports_it(whole: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A merge that finds damage reports it and leaves the segments as they are."""
    monkeypatch.setattr(view_module, "CHECKED_BYTES", 0)
    for name in os.listdir(whole):
        if name.startswith("segment-"):
            with (whole / name).open("r+b") as segment:
                segment.seek(3000)
                segment.write(b"other bytes")
    store = open_store(whole)
    before = store._view.files.segments
    for _ in range(4):
        store._folder.append([(OTHERS[: 300 * KEY_BYTES], int(NOON))])
    with pytest.raises(KeyStoreError, match=r"is damaged \(one of segment-\d+, "):
        store._folder.merge(lambda: True)
    assert set(before) <= set(store._folder._read_list().segments)
    await store.close()


async def test_a_journal_that_is_deleted_while_in_use_takes_no_keys(whole: Path) -> None:
    """A journal that was deleted while in use takes no keys: after a restart they could not be found."""
    store = open_store(whole)
    next(whole / name for name in os.listdir(whole) if name.startswith("journal-")).unlink()
    with pytest.raises(KeyStoreError, match=r"journal-\d+ is missing"):
        await store.confirm(keys([1]), NOON)
    await store.close()
