"""The key store's own files with changed bytes: all keys are found, or the damage is reported."""

from __future__ import annotations

import os
import tempfile
from functools import cache
from pathlib import Path
from typing import Final

import lmdb

from consumer.adapters.key_store.files import (
    LIST,
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
from tests.fuzzing.taker import Taker

_WINDOW: Final = Window.of(1000)
_START: Final = 1_700_000_000
_KEYS: Final = bytes(range(256)) * 5
_HALF: Final = len(_KEYS) // 2


@cache
def good() -> dict[str, bytes]:
    """The files of a store and (``data.mdb``) of an older version's store."""
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
        files = {path.name: path.read_bytes() for path in Path(root).iterdir()}
        with (
            lmdb.open(os.path.join(root, "old"), map_size=2**20) as env,
            env.begin(write=True) as transaction,
        ):
            for at in range(0, len(_KEYS), KEY_BYTES):
                transaction.put(_KEYS[at : at + KEY_BYTES], _START.to_bytes(4, "big"))
        return files | {"data.mdb": Path(root, "old", "data.mdb").read_bytes()}


def key_store(data: bytes) -> None:
    """One of the files is changed in places, cut, or replaced."""
    taker = Taker(data)
    name = taker.pick(sorted(good()))
    content = bytearray(good()[name])
    if taker.below(4) == 3:
        content[:] = taker.rest()
    while taker.more():
        at = int.from_bytes(taker.take(2), "big") % (len(content) + 1)
        if taker.below(16) == 15:
            del content[at:]
        else:
            piece = taker.take(1 + taker.below(8))
            content[at : at + len(piece)] = piece
    is_old = name == "data.mdb"
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as root:
        for other, bytes_ in good().items():
            if other != "data.mdb":
                Path(root, other).write_bytes(content if other == name else bytes_)
        if is_old:
            for path in Path(root).iterdir():
                path.unlink()
            Path(root, LIST).write_bytes(b"pinstream key store, format 2\n")
            Path(root, f"b-{_START}-1000-0").mkdir()
            Path(root, f"b-{_START}-1000-0", "data.mdb").write_bytes(content)
        with bounded(len(content)):
            found = _found(root)
    # LMDB has no checksums: of an older version's file only what makes it no tree can be told.
    assert found is None or all(found) or is_old


def _found(root: str) -> bytes | None:
    """Which keys are found; None: the store reports damage."""
    try:
        with translated(root):
            Folder(root, _WINDOW, 2**20, lambda _: None)
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
