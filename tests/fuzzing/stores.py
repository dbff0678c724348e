"""The key store's own files with changed bytes: all keys are found, or the damage is reported."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

from consumer.adapters.key_store.files import (
    FileList,
    Journal,
    SegmentFile,
    translated,
    write_list,
    write_segment,
)
from consumer.adapters.key_store.folder import Folder
from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.native import KeyTable
from consumer.adapters.key_store.view import View
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError
from tests.fuzzing.contract import bounded, check_line
from tests.fuzzing.provider import DataProvider

_WINDOW: Final = Window.of(1000)
_START: Final = 1_700_000_000
_KEYS: Final = bytes(range(256)) * 5
_HALF: Final = len(_KEYS) // 2


@cache
def good() -> dict[str, bytes]:
    """The files of a store."""
    with tempfile.TemporaryDirectory() as root:
        whose = SegmentFile(0, 0, 0, _START, _WINDOW.seconds, 0)
        table = KeyTable()
        table.insert(_KEYS[:_HALF], _START)
        segment = write_segment(os.path.join(root, whose.name), [table.sorted()], len(table), whose)
        Journal.make(root, 1)
        journal = Journal(root, 1)
        journal.recovered()
        for at in (_HALF, _HALF + 8 * KEY_BYTES):
            journal.add(_KEYS[at : at + 8 * KEY_BYTES] if at == _HALF else _KEYS[at:], _START + 1)
        journal.commit()
        journal.close()
        write_list(root, FileList(1, _START, _WINDOW.seconds, 1, (segment,)))
        return {path.name: path.read_bytes() for path in Path(root).iterdir()}


def key_store(data: bytes) -> None:
    """One of the files is changed in places, cut, or replaced."""
    provider = DataProvider(data)
    name = provider.pick(sorted(good()))
    content = bytearray(good()[name])
    if provider.below(4) == 3:
        content[:] = provider.rest()
    while provider.more():
        at = int.from_bytes(provider.take(2), "big") % (len(content) + 1)
        if provider.below(16) == 15:
            del content[at:]
        else:
            piece = provider.take(1 + provider.below(8))
            content[at : at + len(piece)] = piece
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        for other, bytes_ in good().items():
            Path(root, other).write_bytes(content if other == name else bytes_)
        with bounded(len(content)):
            found = _found(root)
    assert found is None or all(found)


def _found(root: str) -> bytes | None:
    """Which keys are found; None: the store reports damage."""
    try:
        with translated(root):
            Folder(root, _WINDOW, 2**20)
            view = View(root)
            try:
                view.refresh()
                view.check()
                found = bytearray(len(_KEYS) // KEY_BYTES)
                view.table.find(_KEYS, _START, found)
                for one in view.segments:
                    one.find(_KEYS, _START, found, beside=False)
                return bytes(found)
            finally:
                view.close()
    except KeyStoreError as failure:
        check_line(str(failure).replace(root, "/keys"))
        return None
