"""Whoever chooses event ids cannot make their keys cost more: ids are found by trying here whose keys share bits."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters.key_store import native, plain
from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.files import directory_bits
from consumer.adapters.key_store.memory import MemoryKeyStore
from consumer.engine.dedup.claims import KeySet, PlainKeySet
from consumer.engine.reading import KEY_BYTES, Keys
from consumer.ports import KeyStore
from tests.adapters.key_store.helpers import MIB, NOON, REPOSITORY, WINDOW
from tests.adapters.key_store.test_operations import BOTH, IS_COMPILED, segment

COUNT = 20_000


def places(key: bytes) -> int:
    """Return what chooses the slot of a key in a process whose secret is zero."""
    product = int.from_bytes(key[:8], "little") * int.from_bytes(key[8:], "little")
    return product ^ product >> 64


SHARED: dict[str, Callable[[bytes], bool]] = {
    # Of the first word, as a processor reads it: a 16th of 32,768 slots, and of 131,072.
    "low bits": lambda key: key[1] & 0x78 == 0,
    "higher bits": lambda key: not (key[1] & 0xE0 or key[2] & 1),
    "first bits": lambda key: key[0] & 0xF0 == 0,  # by which a segment is sorted
    "places": lambda key: places(key) & 0x7800 == 0,  # a 16th of 32,768 slots, for who knows the secret
}


@cache
def ids_sharing(bits: str | None) -> bytes:
    """Return the keys of event ids that were chosen so that their keys share bits; None: of any ids."""
    fits, make, number = SHARED[bits] if bits else lambda _: True, Keys(), 0
    found: list[bytes] = []
    while len(found) < COUNT:
        key = make.of("549755885175", "checkout", f"order-{number}")
        number += 1
        if fits(key):
            found.append(key)
    return b"".join(found)


def pieces(keys: bytes) -> list[bytes]:
    """Return the keys as they come: some hundred at a time."""
    step = 500 * KEY_BYTES
    return [keys[at : at + step] for at in range(0, len(keys), step)]


def seconds(work: Callable[[bytes], object], keys: bytes) -> float:
    """Return the processor time of this thread that the work takes: the least of three runs."""

    def once() -> float:
        begin = time.thread_time()
        work(keys)
        return time.thread_time() - begin

    return min(once() for _ in range(3))


def in_table(module: Any, keys: bytes) -> None:
    """Insert the keys into a table, and find all."""
    table = module.KeyTable()
    for piece in pieces(keys):
        table.insert(piece, 7)
        found = bytearray(len(piece) // KEY_BYTES)
        table.find(piece, 7, found)
        assert all(found)


def in_set(kind: type[PlainKeySet], keys: bytes) -> None:
    """Claim the keys, and end all claims."""
    claimed = kind()
    for piece in pieces(keys):
        assert claimed.add(piece) == []
    for piece in pieces(keys):
        assert claimed.remove(piece)
    assert len(claimed) == 0


@pytest.mark.parametrize("bits", SHARED)
@pytest.mark.parametrize("kind", [PlainKeySet, KeySet])
def test_claims_are_made_and_ended_at_the_same_cost(kind: type[PlainKeySet], bits: str) -> None:
    """20,000 chosen ids cost the set of claimed keys what any others do."""
    canonical, chosen = (seconds(lambda keys: in_set(kind, keys), ids_sharing(one)) for one in (None, bits))
    assert chosen < 5 * canonical


@pytest.mark.parametrize("shared", [4, 16, 24])
@pytest.mark.parametrize("module", BOTH)
def test_a_segment_s_search_halves_what_shares_the_first_bits(module: Any, shared: int) -> None:
    """A search among 20,000 keys that share their first bits, up to all of a directory's, takes a few steps more."""
    count = COUNT if module is not plain else 4_000
    canonical = ids_sharing(None)[: count * KEY_BYTES]
    whole, part = divmod(shared, 8)
    chosen = b"".join(
        bytes(whole)
        + (bytes([canonical[at + whole] & 0xFF >> part]) + canonical[at + whole + 1 : at + KEY_BYTES])
        for at in range(0, len(canonical), KEY_BYTES)
    )

    def cost(keys: bytes) -> float:
        table = plain.KeyTable()
        table.insert(keys, 7)
        searched = segment(module, table.sorted(), directory_bits(count))
        searched.check()

        def search(keys: bytes) -> None:
            found = bytearray(count)
            searched.find(keys, 7, found, False)
            assert all(found)

        return seconds(search, keys)

    assert cost(chosen) < 20 * cost(canonical)


@pytest.mark.parametrize("module", BOTH)
def test_sorting_them_takes_as_long(module: Any) -> None:
    """A table of keys that share their first 24 bits is sorted in a few times the usual time."""

    def cost(keys: bytes) -> float:
        table = module.KeyTable()
        table.insert(keys, 7)
        return seconds(lambda _: table.sorted(), keys)

    canonical = ids_sharing(None)
    assert cost(
        b"".join(bytes(3) + canonical[at + 3 : at + 16] for at in range(0, len(canonical), 16))
    ) < 10 * cost(canonical)


@pytest.mark.parametrize(("kind", "room"), [("memory", 8 * MIB), ("disk", 64 * MIB), ("disk", 2 * MIB)])
async def test_a_store_takes_and_finds_them_at_the_same_cost(kind: str, room: int, tmp_path: Path) -> None:
    """In memory, in a journal, or (where it is small) in segments that are merged meanwhile."""

    async def cost(name: str, keys: bytes) -> float:
        store: KeyStore = (
            MemoryKeyStore(WINDOW, room)
            if kind == "memory"
            else DiskKeyStore(str(tmp_path / name), WINDOW, room)
        )
        begin = time.process_time()
        for piece in pieces(keys):
            assert all(await store.confirm(piece, NOON))
        for piece in pieces(keys):
            assert all(await store.look_up(piece, NOON))
        spent = time.process_time() - begin
        await store.close()
        return spent

    canonical = await cost("usual", ids_sharing(None))
    for bits in SHARED:
        assert await cost(bits, ids_sharing(bits)) < 5 * canonical


@pytest.mark.skipif(not IS_COMPILED, reason="the package was built without a C compiler")
def test_only_who_knows_the_secret_can_choose_ids_that_cost() -> None:
    """The ids that fill one part of the tables of a process whose secret is known cost another process nothing."""
    chosen = ids_sharing("places")
    assert seconds(lambda keys: in_table(native, keys), chosen) < 5 * seconds(
        lambda keys: in_table(native, keys), ids_sharing(None)
    )
    code = (
        "import os\nos.urandom = bytes\n"  # as many zeros as are asked for: the secret is known
        "from tests.adapters.key_store.test_chosen_ids import *\n"
        "for bits in 'places', None: print(seconds(lambda keys: in_table(native, keys), ids_sharing(bits)))\n"
    )
    reported = subprocess.run(
        [sys.executable, "-c", code], cwd=REPOSITORY, text=True, capture_output=True, check=True
    )
    slow, canonical = map(float, reported.stdout.split())
    assert slow > 20 * canonical
