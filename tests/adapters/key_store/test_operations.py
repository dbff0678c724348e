"""The compiled operations and those in plain Python return the same results, and both find damage."""

from __future__ import annotations

import random
import shutil
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.adapters.key_store import native, plain
from consumer.adapters.key_store.interface import Damage
from consumer.engine.reading import KEY_BYTES
from tests.adapters.key_store.helpers import key

IS_COMPILED = native.KeyTable.__module__ != plain.__name__
BOTH = [plain, *([native] if IS_COMPILED else [])]
EDGES = (b"\0" * KEY_BYTES, b"\xff" * KEY_BYTES, b"\0" * 15 + b"\1", b"\xff" * 15 + b"\xfe")
_CHUNKS = st.lists(
    st.tuples(st.lists(st.integers(-4, 60), max_size=30), st.integers(0, 5) | st.just(2**32 - 1)), max_size=8
)


def column(numbers: list[int]) -> bytes:
    """Return the keys of `numbers` as one column; negative numbers stand for the keys in `EDGES`."""
    return b"".join(EDGES[-number - 1] if number < 0 else key(number) for number in numbers)


def segment(module: ModuleType | Any, entries: bytes, bits: int) -> Any:
    """Build a segment of `entries` with the operations of `module`."""
    builder = module.Builder(bits)
    for at in range(0, len(entries), 60):
        builder.add(entries[at : at + 60])
    return module.Segment(entries + b"".join(builder.finish()), builder.entries, bits)


def test_operations_are_compiled_where_there_is_a_compiler() -> None:
    """Where there is a C compiler, the operations must have been compiled."""
    if not IS_COMPILED and shutil.which("cc") is not None:
        pytest.fail("consumer/adapters/key_store/native was not compiled: run `make clean setup`")


@given(_CHUNKS, st.lists(st.integers(-4, 70), max_size=80), st.integers(0, 6), st.integers(0, 9))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_compiled_and_plain_operations_agree(
    chunks: list[tuple[list[int], int]], asked: list[int], oldest: int, bits: int
) -> None:
    """Both kinds find what a dict finds; entries, directories and checksums are equal byte for byte."""
    model: dict[bytes, int] = {}
    for numbers, stamp in chunks:
        for number in numbers:
            model[column([number])] = max(stamp, model.get(column([number]), 0))
    expected = bytes(model.get(column([number]), -1) >= oldest for number in asked)
    made = []
    for module in BOTH:
        table = module.KeyTable()
        for numbers, stamp in chunks:
            table.insert(column(numbers), stamp)
        assert len(table) == len(model)
        found = bytearray(len(asked))
        table.find(column(asked), oldest, found)
        assert found == expected
        entries = table.sorted()
        builder = module.Builder(bits)
        builder.add(entries)
        made.append((entries, builder.finish()))
        for beside in (False, True):
            found = bytearray(len(asked))
            whole = segment(module, entries, bits)
            whole.check()
            whole.find(column(asked), oldest, found, beside)
            assert found == expected
    assert made[0] == made[-1]
    assert made[0][0] == b"".join(sorted(one + at.to_bytes(4, "big") for one, at in model.items()))


@given(st.lists(_CHUNKS, max_size=5), st.integers(1, 40))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_a_merge_is_the_union_with_the_latest_stamps(
    parts: list[list[tuple[list[int], int]]], maximum: int
) -> None:
    """A merge of any number of segments, in steps of any size, has every key with its latest stamp."""
    union = plain.KeyTable()
    tables = []
    for chunks in parts:
        table = plain.KeyTable()
        for numbers, stamp in chunks:
            table.insert(column(numbers), stamp)
            union.insert(column(numbers), stamp)
        tables.append(table.sorted())
    for module in BOTH:
        merger = module.Merger([segment(module, entries, 3) for entries in tables])
        merged = b""
        while piece := merger.take(maximum):
            merged += piece
        assert merged == union.sorted()


@pytest.mark.parametrize("module", BOTH)
def test_a_flipped_bit_anywhere_is_damage(module: Any) -> None:
    """`check` finds every flipped bit; a search or merge that meets one misses no key silently."""
    dice = random.Random(1)
    table = plain.KeyTable()
    keys = b"".join(map(key, range(300)))
    table.insert(keys, 7)
    builder = plain.Builder(4)
    builder.add(table.sorted())
    good = table.sorted() + b"".join(builder.finish())
    for _ in range(300):
        bad = bytearray(good)
        bad[dice.randrange(len(bad))] ^= 1 << dice.randrange(8)
        with pytest.raises(Damage):
            module.Segment(bytes(bad), 300, 4).check()
        found = bytearray(300)
        with pytest.raises(Damage):
            module.Segment(bytes(bad), 300, 4).find(keys, 0, found, False)
        if bad[: 300 * plain.ENTRY_BYTES] != good[: 300 * plain.ENTRY_BYTES]:
            with pytest.raises(Damage):
                merge_all(module, module.Segment(bytes(bad), 300, 4))


def merge_all(module: Any, segment: Any) -> None:
    """Merge a segment alone to its end."""
    merger = module.Merger([segment])
    while merger.take(50):
        pass


@pytest.mark.parametrize("module", BOTH)
@pytest.mark.parametrize(
    ("change", "entries", "bits"),
    [
        *((change, 1, 0) for change in (-32, -12, -1, 1, 1024)),
        *((0, entries, bits) for entries, bits in ((-1, 3), (1, -1), (1, 29), (1, 63), (1, 64))),
        # A product of these would wrap around to the right length.
        *((0, entries, 0) for entries in (2**62, 2**62 + 1, -(2**62) + 1)),
    ],
)
def test_another_length_or_number_is_damage(module: Any, change: int, entries: int, bits: int) -> None:
    """A segment of another length, or with numbers that it cannot have: no byte beyond its end is read."""
    builder = plain.Builder(0)
    builder.add(key(1) + b"\0\0\0\1")
    good = key(1) + b"\0\0\0\1" + b"".join(builder.finish())
    assert len(good) == 32
    with pytest.raises(Damage, match="length"):
        module.Segment(good[:change] if change < 0 else good + bytes(change), entries, bits)
    assert module.Segment(good, 1, 0).check() is None
