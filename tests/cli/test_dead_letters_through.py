"""Letters through the pipeline: what the source hands out, what it marks when, and where goes what dies again."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka import NewRecord
from consumer.app.dead_letters.choosing import Budget, Chooser, Going, RedriveOptions, runs_of, split
from consumer.app.dead_letters.outcome import Outcome
from consumer.app.dead_letters.through import LettersSource, Origin, ToTheirOrigins
from consumer.app.dead_letters.topics import DeadLetterTopic
from consumer.core import offset_map
from consumer.core.interface import DeadLetter
from consumer.core.ledger import map_place
from consumer.core.letters import Done, Filters, read_mark
from consumer.core.model import Chunk, Position, Record, Rejection, Stage, TopicPartition
from consumer.errors import KafkaError
from tests.cli.dead_letter_fakes import AT, Topics, Transactions
from tests.core.building import PROPERTY

DEAD = "orders.dead-letters"
ORDERS = DeadLetterTopic(DEAD, frozenset({"orders"}), True)


class Inner:
    """Reads all of a topic of lists, in lots of `most` records. Fits `BoundedReading`."""

    def __init__(self, topics: Topics, most: int = 4) -> None:
        self._left: list[tuple[int, Record]] = [
            (partition, record)
            for (topic, partition), log in sorted(topics.logs.items())
            if topic == DEAD
            for record in log
        ]
        self._most = most
        self.closed = False

    @property
    def done(self) -> bool:
        """See `BoundedReading`."""
        return not self._left

    def figures(self) -> Mapping[TopicPartition, int]:
        """See `BoundedReading`."""
        return {}

    async def start(self) -> None:
        """See `Source`."""

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        """See `Source`."""
        await asyncio.sleep(0)
        lot, self._left = self._left[: min(room, self._most)], self._left[min(room, self._most) :]
        partitions = dict.fromkeys(partition for partition, _ in lot)
        return [Chunk(DEAD, one, 7, 3, [record for at, record in lot if at == one]) for one in partitions]

    async def commit(self, positions: Sequence[Position]) -> tuple[Sequence[Position], str | None]:
        """See `Source`."""
        raise AssertionError("nobody commits here")

    async def end_offsets(self) -> Mapping[TopicPartition, int]:
        """See `Source`."""
        return {}

    async def reached(self) -> Mapping[TopicPartition, int]:
        """See `Source`."""
        return {}

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """See `Source`."""
        self.closed = True


class Slow(Transactions):
    """Takes its time, so that other things happen meanwhile."""

    async def put_back(self, records: Sequence[NewRecord]) -> int | None:
        """See `Writer`."""
        for _ in range(4):
            await asyncio.sleep(0)
        return await super().put_back(records)


def options(**changes: Any) -> RedriveOptions:
    """All letters."""
    given: dict[str, Any] = {"topics": (), "filters": Filters(), "most": None, "rate": None, "max_trips": 3}
    return RedriveOptions(
        **{**given, "dry_run": False, "as_json": False, "through_pipeline": True, **changes}
    )


def source(
    topics: Topics, writer: Transactions, done: Mapping[int, Done] | None = None, most: int | None = None
) -> tuple[LettersSource, Outcome]:
    """A source over all that lies there."""
    outcome = Outcome(dry_run=False, through_pipeline=True)
    chooser = Chooser(options(), ORDERS, topics, topics.partitions, Budget(most), outcome)
    return LettersSource(Inner(topics), {DEAD: Origin(chooser, writer, done or {})}), outcome


def topics(letters: int, **more: Any) -> Topics:
    """A topic and letters of it."""
    found = Topics(orders=1)
    found.partitions[DEAD] = 1
    for number in range(letters):
        found.bury(number, **more)
    return found


def marked(where: Topics, partition: int = 0) -> set[int]:
    """The offsets that marks tell of."""
    runs = [run for record in where.logs[DEAD, partition] for run in read_mark(record) or ()]
    return {offset for begin, end in runs for offset in range(begin, end)}


def position(partition: int, handed: Sequence[int], settled: set[int]) -> Position:
    """What the core would commit: the lowest open offset, and a map of what is settled above it.

    As the ledger has it, what lies between two records belongs to the run before it.
    """
    still_open = [offset for offset in handed if offset not in settled]
    base = still_open[0] if still_open else handed[-1] + 1
    bounds: list[int] = []
    for offset in (one for one in handed if one > base):
        if (offset in settled) is (len(bounds) % 2 == 0):
            bounds.append(offset)
    if len(bounds) % 2:
        bounds.append(handed[-1] + 1)
    text = offset_map.write(base, bounds, 3, where=map_place(TopicPartition(DEAD, partition)))
    return Position(DEAD, partition, base, 3, text)


async def read_all(found: LettersSource) -> list[Chunk]:
    """All that it hands out."""
    chunks: list[Chunk] = []
    while not found.done:
        chunks += await found.fetch(1000, 0.0)
    return chunks


async def test_letters_are_handed_out_as_the_records_they_were() -> None:
    """Key, value, own headers, time; at the letter's place. Others are not."""
    where = topics(2, headers=(("own", b"1"),))
    where.append(DEAD, 0, b"k", b"junk")
    where.bury(2, headers=(("pinstream.trips", b"3"),))
    where.bury(3, origin="foreign", on=DEAD)
    where.bury(4)
    found, outcome = source(where, Transactions(where), {0: done_at(1)})
    [first, second] = [record for chunk in await read_all(found) for record in chunk.records]
    assert (first.offset, first.timestamp, first.key, first.value) == (0, AT, b"k0", b"v0")
    assert first.headers[0] == ("own", b"1")
    assert (second.offset, second.value) == (5, b"v4")
    [tally] = outcome.tallies
    assert (tally.done_before, tally.looped, tally.foreign) == (1, 1, 2)


def done_at(*offsets: int) -> Done:
    """These are done."""
    done = Done()
    done.add((offset, offset + 1) for offset in offsets)
    return done


async def test_no_more_are_handed_out_than_asked_for() -> None:
    """Then it is done, and waits without reading."""
    where = topics(10)
    found, _ = source(where, Transactions(where), most=3)
    assert [record.offset for chunk in await read_all(found) for record in chunk.records] == [0, 1, 2]
    assert await found.fetch(100, 0.0) == []


async def test_only_what_is_settled_is_marked() -> None:
    """Below the position, and above it by its map."""
    where = topics(8)
    writer = Transactions(where)
    found, outcome = source(where, writer)
    await read_all(found)
    one = position(0, range(8), {0, 1, 4, 5, 7})
    assert await found.commit([one]) == ((one,), None)
    assert marked(where) == {0, 1, 4, 5, 7}
    assert outcome.tallies[0].redriven == 5
    last = position(0, range(8), set(range(8)))
    await found.close(1.0, [last])
    assert marked(where) == set(range(8))
    assert outcome.tallies[0].redriven == 8
    assert len(writer.lots) == 2


async def test_what_is_marked_is_not_marked_again() -> None:
    """The same position once more writes nothing."""
    where = topics(4)
    writer = Transactions(where)
    found, _ = source(where, writer)
    await read_all(found)
    for _ in range(3):
        await found.commit([position(0, range(4), {0, 1})])
    assert len(writer.lots) == 1


async def test_what_is_handed_out_while_marks_are_written_is_marked_later() -> None:
    """Reading goes on during a commit."""
    where = topics(12)
    found, outcome = source(where, Slow(where))
    await found.fetch(4, 0.0)
    committing = asyncio.create_task(found.commit([position(0, range(4), {0, 1, 2, 3})]))
    await read_all(found)
    await committing
    assert marked(where) == {0, 1, 2, 3}
    await found.close(1.0, [position(0, range(12), set(range(12)))])
    assert marked(where) == set(range(12))
    assert outcome.tallies[0].redriven == 12


async def test_a_mark_that_cannot_be_written_ends_it() -> None:
    """Nothing counts as committed; the next fetch, and closing, say why."""

    class Fenced(Transactions):
        async def put_back(self, records: Sequence[NewRecord]) -> int | None:
            raise KafkaError("another redrive has taken over")

    where = topics(4)
    found, outcome = source(where, Fenced(where))
    await found.fetch(4, 0.0)
    committed, failure = await found.commit([position(0, range(4), {0})])
    assert (committed, failure) == ((), "not marked")
    with pytest.raises(KafkaError, match="another redrive"):
        await found.fetch(4, 0.0)
    with pytest.raises(KafkaError, match="another redrive"):
        await found.close(1.0, [])
    assert outcome.tallies[0].redriven == 0


async def test_what_dies_again_belongs_to_its_origin() -> None:
    """Place and time of the origin, own headers, one trip further, and which letter it was."""
    where = topics(0)
    where.bury(9, partition=2, offset=77, headers=(("own", None), ("pinstream.trips", b"1")))
    found, _ = source(where, Transactions(where))
    [chunk] = await read_all(found)
    stored: list[DeadLetter] = []

    class Writer:
        async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
            stored.extend(letters)
            return [True]

    rejection = Rejection(Stage.DELIVER, "refused", "no")
    dead = DeadLetter(chunk.topic, chunk.partition, chunk.records[0], rejection, 4, AT + 5)
    assert await ToTheirOrigins(Writer()).store([dead]) == [True]
    headers = (("own", None), ("pinstream.trips", b"2"), ("pinstream.redriven", f"{DEAD}:0:0".encode()))
    assert stored == [DeadLetter("orders", 2, Record(77, AT, b"k9", b"v9", headers), rejection, 4, AT + 5)]


@PROPERTY
@given(st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.booleans()), max_size=20), st.data())
def test_splitting_keeps_letters_that_stay_out_of_all_runs(
    steps: list[tuple[int, bool, bool]], data: st.DataObject
) -> None:
    """However often, and in whatever order letters settle: all are in runs in the end, and nothing else is."""
    letters: list[Going] = []
    stays: set[int] = set()
    offset, joins = 0, False
    for gap, chosen, _ in steps:
        offset += gap
        if chosen:
            letters.append(Going(offset, joins))
        else:
            stays.add(offset)
        joins = chosen
    left, covered = letters, set[int]()
    while left:
        some = data.draw(st.sets(st.sampled_from([one.offset for one in left]), min_size=1))
        done, left = split(left, some.__contains__)
        assert [one.offset for one in done] == sorted(some)
        runs = {one for begin, end in runs_of(done) for one in range(begin, end)}
        still_open = {one.offset for one in left}
        assert some <= runs
        assert not runs & (stays | still_open)
        covered |= runs
    assert {one.offset for one in letters} <= covered


@PROPERTY
@given(st.data())
def test_marks_tell_exactly_of_what_is_settled(data: st.DataObject) -> None:
    """Fetches, settlements and commits in any order, commits while it reads: never an open letter, in the end all."""
    partitions = data.draw(st.integers(1, 2))
    where = topics(0)
    where.partitions[DEAD] = partitions
    for number in range(data.draw(st.integers(1, 20))):
        code = data.draw(st.sampled_from(["expired", "expired", "other"]))
        where.bury(number, partition=number % partitions, code=code)
    everything = {at: list(where.logs[DEAD, at]) for at in range(partitions)}
    outcome = Outcome(dry_run=False, through_pipeline=True)
    chooser = Chooser(
        options(filters=Filters(codes=frozenset({"expired"}))),
        ORDERS,
        where,
        where.partitions,
        Budget(None),
        outcome,
    )
    found = LettersSource(Inner(where, 3), {DEAD: Origin(chooser, Slow(where), {})})
    handed: dict[int, list[int]] = {at: [] for at in range(partitions)}
    settled: dict[int, set[int]] = {at: set() for at in range(partitions)}

    def positions() -> list[Position]:
        return [position(at, handed[at], settled[at]) for at in range(partitions) if handed[at]]

    async def fetch() -> None:
        for chunk in await found.fetch(data.draw(st.integers(1, 5)), 0.0):
            handed[chunk.partition] += [record.offset for record in chunk.records]

    async def main() -> None:
        while not found.done or any(set(handed[at]) - settled[at] for at in handed):
            await asyncio.gather(found.commit(positions()), fetch())
            for at in range(partitions):
                still_open = sorted(set(handed[at]) - settled[at])
                if still_open:
                    settled[at] |= data.draw(st.sets(st.sampled_from(still_open), min_size=1))
                assert not marked(where, at) & (set(handed[at]) - settled[at])
        await found.close(1.0, positions())

    asyncio.run(main())
    total = 0
    for at in range(partitions):
        wanted = {one.offset for one in everything[at] if ("pinstream.code", b"expired") in one.headers}
        others = {one.offset for one in everything[at]} - wanted
        assert wanted <= marked(where, at)
        assert not marked(where, at) & others
        total += len(wanted)
    assert outcome.tallies[0].redriven == total
