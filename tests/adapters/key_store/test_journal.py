"""The journal of a bucket: what it holds counts like what is in the tree, it is bounded, and it is cheap."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.adapters.key_store import journal
from consumer.adapters.key_store.bucket import Bucket, BucketName
from consumer.adapters.key_store.interface import KEY_BYTES, Window
from consumer.adapters.key_store.lmdb_store import LmdbKeyStore
from consumer.errors import KeyStoreError
from tests.adapters.key_store.helpers import MIB, NOON, child, key, keys

ROOM = 64 * MIB
ALWAYS = b"\0" * 4
STAMP = b"\0\0\0\7"
EDGES = (b"\0" * KEY_BYTES, b"\xff" * KEY_BYTES)
"""Keys that no hash will ever be, and that a journal's own names must not meet nevertheless."""


@contextlib.contextmanager
def new_bucket() -> Iterator[Bucket]:
    """An empty bucket, gone at the end."""
    with tempfile.TemporaryDirectory() as folder:
        bucket = Bucket(folder, BucketName(0, 10, 0))
        try:
            yield bucket
        finally:
            bucket.retire()


def put(bucket: Bucket, stored: list[bytes], journal_keys: int, stamp: bytes = STAMP) -> None:
    """Store, with room enough."""
    assert bucket.put(journal.entries(stored, stamp), lambda: ROOM, journal_keys)


def extent(bucket: Bucket) -> journal.JournalExtent:
    """How much the bucket's journal holds."""
    with bucket.lease() as env, env.begin() as transaction:
        return journal.extent(transaction)


_NUMBERS = st.lists(st.integers(min_value=-2, max_value=40), min_size=1, max_size=12)
_STAMPS = st.integers(min_value=0, max_value=5)
_PUTS = st.tuples(_NUMBERS, _STAMPS, st.sampled_from([0, 5, 20, 60]))
_READS = st.tuples(st.integers(min_value=0, max_value=2), _STAMPS)


def _key(number: int) -> bytes:
    return EDGES[number] if number < 0 else key(number)


@given(st.lists(_PUTS | _READS, max_size=40))
@settings(max_examples=150, deadline=None, derandomize=True)
def test_readers_find_what_was_stored_wherever_it_is(steps: list[tuple[object, ...]]) -> None:
    """Random puts, with journals of any size and clocks that go back, and readers that look now and then: each finds
    every key under its latest stamp, and no other, in the journal or in the tree."""
    model: dict[bytes, int] = {}
    asked = [_key(number) for number in range(-2, 41)]
    with new_bucket() as bucket:
        readers = [journal.Recent() for _ in range(3)]
        for step in steps:
            match step:
                case [list(numbers), int(stamp), int(most)]:
                    stored = [_key(number) for number in numbers]  # one may come twice, and do so again later
                    calls = ((stored, stamp), (stored[::3], stamp + 1))
                    record = b"".join(journal.entries(some, at.to_bytes(4, "big")) for some, at in calls)
                    assert bucket.put(record, lambda: ROOM, most)
                    for some, at in calls:
                        model.update({one: max(at, model.get(one, 0)) for one in some})
                    assert extent(bucket).keys <= most
                case [int(reader), int(oldest)]:
                    bucket._recent = readers[reader]
                    expected = {one for one, stamp in model.items() if stamp >= oldest}
                    assert bucket.find(asked, oldest.to_bytes(4, "big")) == expected
        put(bucket, [], -1)  # whatever the journal holds goes into the tree
        assert extent(bucket).keys == 0
        assert bucket.entries() == len(model)


@given(st.lists(st.integers(min_value=1, max_value=900), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_an_append_lengthens_the_file_by_no_more_than_was_reckoned(sizes: list[int]) -> None:
    """What is reckoned before is what the size limit rests on."""
    with new_bucket() as bucket:
        put(bucket, keys(range(3000)), 0)
        first = 3000
        for size in sizes:
            before = _pages(bucket)
            put(bucket, keys(range(first, first + size)), 20_000)
            assert _pages(bucket) - before <= journal.growth(size * 20, 4096)
            first += size
        assert extent(bucket).keys == sum(sizes)


def _pages(bucket: Bucket) -> int:
    with bucket.lease() as env:
        return int(env.info()["last_pgno"])


def test_an_append_writes_few_pages() -> None:
    """A thousand keys into a bucket of 20,000: 20 pages at most, where the tree takes hundreds."""
    with new_bucket() as bucket:
        put(bucket, keys(range(20_000)), 0)
        before = _pages(bucket)
        put(bucket, keys(range(20_000, 21_000)), 10_000)
        assert _pages(bucket) - before <= 20
        assert bucket.entries() == 21_000


def test_nothing_is_stored_without_room_for_it() -> None:
    """Neither in the journal nor, with all that it holds, in the tree; and what was in it stays."""
    with new_bucket() as bucket:
        put(bucket, keys(range(100)), 100)
        more = journal.entries(keys(range(100, 150)), STAMP)
        assert not bucket.put(more, lambda: 0, 200)
        assert not bucket.put(more, lambda: 0, 100)
        assert extent(bucket).keys == bucket.entries() == 100
        assert bucket.find(keys(range(150)), ALWAYS) == set(keys(range(100)))


def test_a_failure_while_the_tree_is_written_leaves_the_journal_as_it_was() -> None:
    """All of it is one transaction."""

    class Fails(contextlib.AbstractContextManager[None]):
        def __exit__(self, *_: object) -> None:
            raise RuntimeError("in the middle")

    with new_bucket() as bucket:
        put(bucket, keys(range(100)), 100)
        with pytest.raises(RuntimeError, match="in the middle"):
            bucket.put(journal.entries(keys(range(100, 150)), STAMP), lambda: ROOM, 100, Fails())
        assert extent(bucket).keys == bucket.entries() == 100
        assert bucket.find(keys(range(150)), ALWAYS) == set(keys(range(100)))


def test_a_key_that_is_in_the_journal_twice_counts_once() -> None:
    """Stored again, as by two members of which one let go of a partition late, it is one key on the page."""
    with new_bucket() as bucket:
        put(bucket, keys(range(100)), 1000)
        put(bucket, keys(range(50, 120)), 1000)
        assert bucket.entries() == 120


def _cut(env: Any, names: list[bytes]) -> None:
    """The last record loses half a key."""
    with env.begin(write=True) as transaction:
        transaction.put(names[-1], transaction.get(names[-1])[:-10])


def _cut_by_a_key(env: Any, names: list[bytes]) -> None:
    """One in the middle loses a whole one."""
    with env.begin(write=True) as transaction:
        transaction.put(names[1], transaction.get(names[1])[:-20])


def _emptied(env: Any, names: list[bytes]) -> None:
    """The last record is there and holds nothing."""
    with env.begin(write=True) as transaction:
        transaction.put(names[-1], b"")


def _lost(at: int) -> Callable[[Any, list[bytes]], None]:
    """A record is not there."""

    def lose(env: Any, names: list[bytes]) -> None:
        with env.begin(write=True) as transaction:
            transaction.delete(names[at])

    return lose


def _renamed(change: Callable[[bytes], bytes]) -> Callable[[Any, list[bytes]], None]:
    """The last record has another name, that sorts last again."""

    def rename(env: Any, names: list[bytes]) -> None:
        with env.begin(write=True) as transaction:
            transaction.put(change(names[-1]), transaction.get(names[-1]))
            transaction.delete(names[-1])

    return rename


@pytest.mark.parametrize(
    "damage",
    [
        _cut,
        _cut_by_a_key,
        _emptied,
        _lost(0),
        _lost(1),
        _renamed(lambda name: name[:-1]),
        _renamed(lambda name: name + b"\0"),
        _renamed(lambda name: name[:-8] + b"\xff" * 8),
        _renamed(lambda name: name[:16] + b"\xff" * 8 + name[24:]),
    ],
)
def test_a_damaged_journal_is_told_to_readers_and_writers(damage: Callable[[Any, list[bytes]], None]) -> None:
    """A record that is cut, garbled or gone: no key in it is taken for one that was never stored, and a writer adds
    nothing to what cannot be read; the page goes on."""
    with new_bucket() as bucket:
        for first in range(0, 300, 100):
            put(bucket, keys(range(first, first + 100)), 1000)
        with bucket.lease() as env:
            with env.begin() as transaction:
                names = [name for name, _ in transaction.cursor() if len(name) > KEY_BYTES]
            damage(env, names)
        bucket._recent = journal.Recent()  # as after a start
        with pytest.raises(KeyStoreError, match=r"is damaged \(.*journal.*move this folder away"):
            bucket.find(keys(range(10)), ALWAYS)
        with pytest.raises(KeyStoreError, match=r"is damaged \(.*journal"):
            put(bucket, keys(range(400, 410)), -1)
        assert bucket.entries() == 0


async def test_processes_follow_each_others_journals(tmp_path: Path) -> None:
    """Two processes store by turns, so that now one and now the other enters the journal of both into the tree."""
    window = Window.of(172_800.0)
    store = LmdbKeyStore.open(str(tmp_path), window, ROOM)
    generations = set()
    with child(tmp_path, 172_800.0, ROOM) as other:
        for first in range(0, 6000, 300):
            assert other.ask(f"remember {first} {first + 200} {NOON}") == "stored"
            await store.remember(keys(range(first + 200, first + 300)), NOON)
            assert all(await store.look_up(keys(range(first + 300)), NOON))
            assert not any(await store.look_up(keys(range(first + 300, first + 900)), NOON))
            assert other.ask(f"look_up 0 {first + 900} {NOON}") == str(first + 300)
            assert store.statistics().keys == first + 300
            generations.add(extent(store._folder.buckets()[0]).generation)
    assert len(generations) > 3
    await store.close()


async def test_a_kill_loses_no_acknowledged_key_whether_in_the_journal_or_in_the_tree(tmp_path: Path) -> None:
    """SIGKILL after each of many chunks, so at every state of the journal."""
    acknowledged = 0
    for chunks in range(1, 9):
        with child(tmp_path, 172_800.0, ROOM) as writer:
            writer.send(f"stream {acknowledged} 10000000 100 {NOON}")
            for _ in range(chunks):
                acknowledged = int(writer.receive())
            writer.kill()
        store = LmdbKeyStore.open(str(tmp_path), Window.of(172_800.0), ROOM)
        assert all(await store.look_up(keys(range(acknowledged)), NOON))
        await store.close()


async def test_a_store_without_journals_is_opened_and_marked(tmp_path: Path) -> None:
    """The older format is read as it is; afterwards an older version, which knows no journals, refuses the folder."""
    store = LmdbKeyStore.open(str(tmp_path), Window.of(172_800.0), MIB)
    await store.remember(keys(range(500)), NOON)  # so small a store has no journal
    assert extent(store._folder.buckets()[0]).keys == 0
    await store.close()
    (tmp_path / "format").write_text("pinstream key store, format 1\n")
    store = LmdbKeyStore.open(str(tmp_path), Window.of(172_800.0), ROOM)
    await store.remember(keys(range(500, 600)), NOON)
    assert extent(store._folder.buckets()[0]).keys == 100
    assert all(await store.look_up(keys(range(600)), NOON))
    await store.close()
    assert (tmp_path / "format").read_text() == "pinstream key store, format 2\n"
