"""A redrive's source: which records it returns, which letters it marks and when, and where letters that die
again are written."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka.letters import Done, NewRecord, Place, read_letter
from consumer.commands.dead_letters.options import Filters
from consumer.commands.dead_letters.outcome import RedriveOutcome
from consumer.commands.dead_letters.reading import DeadLetters
from consumer.commands.dead_letters.redrive import LettersSource, Redriven
from consumer.engine.messages import CommitDone, DeadLetter, EndOffsets, TopicRecreated
from consumer.engine.model import Chunk, Position, Record, Rejection, Stage, TopicPartition
from consumer.engine.records import offset_map
from consumer.errors import KafkaError
from tests.commands.dead_letters import fakes
from tests.commands.dead_letters.fakes import (
    AT,
    DEAD,
    FEWER,
    Killed,
    Topics,
    Transactions,
    home,
    runs_in,
    topics,
)
from tests.service.virtual_time import run


class Inner:
    """Reads all of a topic made of lists, `maximum` records at a time. Fits `FiniteSource`."""

    def __init__(self, topics: Topics, maximum: int = 4) -> None:
        self._left: list[tuple[int, Record]] = [
            (partition, record)
            for (topic, partition), log in sorted(topics.logs.items())
            if topic == DEAD
            for record in log
        ]
        self._maximum = maximum
        self.closed = False

    @property
    def done(self) -> bool:
        """See `FiniteSource`."""
        return not self._left

    async def start(self) -> None:
        """See `RecordSource`."""

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        """See `RecordSource`."""
        await asyncio.sleep(0)
        lot, self._left = self._left[: min(room, self._maximum)], self._left[min(room, self._maximum) :]
        partitions = dict.fromkeys(partition for partition, _ in lot)
        return [Chunk(DEAD, one, 7, 3, [record for at, record in lot if at == one]) for one in partitions]

    async def commit(self, positions: Sequence[Position]) -> CommitDone:
        """See `RecordSource`."""
        raise AssertionError("this source does not commit")

    async def end_offsets(self) -> EndOffsets:
        """See `RecordSource`."""
        return EndOffsets({}, joined=True)

    async def restart_partitions(self, partitions: Sequence[TopicRecreated]) -> None:
        """See `RecordSource`."""

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """See `RecordSource`."""
        self.closed = True


class Slow(Transactions):
    """Transactions that take a few turns of the event loop, so that other tasks run meanwhile."""

    async def write(self, records: Sequence[NewRecord]) -> int | None:
        """See `Transactions`."""
        for _ in range(4):
            await asyncio.sleep(0)
        return await super().write(records)


def redrive(
    topics: Topics,
    writer: Transactions,
    done: Mapping[int, Done] | None = None,
    *,
    lot: int = 4,
    inner: Inner | None = None,
    **changes: Any,
) -> tuple[LettersSource, DeadLetters, RedriveOutcome]:
    """Return a source over all letters, the letters that it chooses from, and the outcome."""
    given = fakes.options(**changes)
    letters = fakes.dead_letters(topics, filters=given.filters)
    outcome = RedriveOutcome(given, {DEAD: letters.tally})
    partitions = range(topics.partitions[DEAD])
    letters.homes = {at: home(DEAD, at) for at in partitions}
    letters.done = {at: (done or {}).get(at, Done()) for at in partitions}
    redriven = {DEAD: Redriven("kafka:9092", letters, writer.write)}
    return LettersSource(inner or Inner(topics, lot), redriven, outcome), letters, outcome


def marked(where: Topics, partition: int = 0) -> set[int]:
    """Return the offsets that are marked as done."""
    runs = [run for record in where.logs[DEAD, partition] for run in runs_in(record, DEAD, partition)]
    return {offset for begin, end in runs for offset in range(begin, end)}


def position(partition: int, handed: Sequence[int], settled: set[int]) -> Position:
    """Return the position that the core would commit: the lowest open offset, and a map of what is settled
    above it.

    As in the ledger, offsets between two records belong to the run before them.
    """
    still_open = [offset for offset in handed if offset not in settled]
    base = still_open[0] if still_open else handed[-1] + 1
    bounds: list[int] = []
    for offset in (one for one in handed if one > base):
        if (offset in settled) is (len(bounds) % 2 == 0):
            bounds.append(offset)
    if len(bounds) % 2:
        bounds.append(handed[-1] + 1)
    text = offset_map.write_map(TopicPartition(DEAD, partition), base, bounds, 3)
    return Position(DEAD, partition, base, 3, text)


async def read_all(found: LettersSource) -> list[Chunk]:
    """Return all chunks that the source returns until it is done."""
    chunks: list[Chunk] = []
    while not found.done:
        chunks += await found.fetch(1000, 0.0)
    return chunks


async def test_letters_are_handed_out_as_the_records_they_were() -> None:
    """With key, value, own headers and time, at the letter's offset; what stays and other records are not."""
    where = topics(2, headers=(("own", b"1"),))
    where.append(DEAD, 0, b"k", b"junk")
    where.bury(2, headers=(("pinstream.trips", b"3"),))
    where.bury(3, origin="foreign", on=DEAD)
    where.bury(4)
    found, _, outcome = redrive(where, Transactions(where), {0: done_at(1)})
    [first, second] = [record for chunk in await read_all(found) for record in chunk.records]
    assert (first.offset, first.timestamp, first.key, first.value) == (0, AT, b"k0", b"v0")
    assert first.headers[0] == ("own", b"1")
    assert (second.offset, second.value) == (5, b"v4")
    [tally] = outcome.tallies.values()
    assert (tally.looped, tally.foreign) == (1, 2)


async def test_what_a_letter_lacks_is_handed_out_from_its_origin() -> None:
    """Key, value and own headers are those of the origin, the trips those of the letter."""
    where = topics(0)
    own = (("h", b"1"), ("pinstream.trips", b"9"), ("pinstream.redriven", b"x:0:0"))
    where.append("orders", 0, b"k0", b"v0", own)
    where.bury(0, headers=(("h", b"1"), ("pinstream.trips", b"1")), omitted=("value", "headers", "key"))
    found, _, _ = redrive(where, Transactions(where))
    [chunk] = await read_all(found)
    [record] = chunk.records
    assert (record.offset, record.key, record.value) == (0, b"k0", b"v0")
    assert record.headers[0] == ("h", b"1")
    assert [value for name, value in record.headers if name == "pinstream.trips"] == [b"1"]


async def test_it_is_done_while_it_waits_for_more() -> None:
    """The source is done while a fetch waits, since the service fetches until it is stopped."""
    where = topics(1)
    found, _, _ = redrive(where, Transactions(where))
    await read_all(found)
    waiting = asyncio.create_task(found.fetch(1000, 0.0))
    await asyncio.sleep(0)
    assert not waiting.done()
    assert found.done
    assert await waiting == []


async def test_it_is_not_done_while_letters_are_chosen() -> None:
    """A redrive that ended, or that a stop cancels, while they are read would miss the last letters."""
    where = topics(0)
    where.bury(0, omitted=("value",))
    found, _, _ = redrive(where, Transactions(where))
    asked = asyncio.Event()

    async def no_answer(place: Place) -> Record | None:
        asked.set()
        never: asyncio.Future[Record | None] = asyncio.get_running_loop().create_future()
        return await never

    where.record = no_answer  # type: ignore[method-assign]
    fetching = asyncio.create_task(found.fetch(1000, 0.0))
    await asked.wait()
    assert not found.done
    fetching.cancel()
    await asyncio.gather(fetching, return_exceptions=True)
    assert not found.done


def done_at(*offsets: int) -> Done:
    """Return the state in which these offsets are done."""
    done = Done()
    done.add((offset, offset + 1) for offset in offsets)
    return done


async def test_no_more_are_handed_out_than_asked_for() -> None:
    """After as many letters as ``--max`` says the source is done, and fetches return nothing."""
    where = topics(10)
    found, _, _ = redrive(where, Transactions(where), maximum=3)
    assert [record.offset for chunk in await read_all(found) for record in chunk.records] == [0, 1, 2]
    assert await found.fetch(100, 0.0) == []


async def test_only_what_is_settled_is_marked() -> None:
    """A commit marks the letters below the position, and those above it that its map has as settled, each once."""
    where = topics(8)
    writer = Transactions(where)
    found, _, outcome = redrive(where, writer)
    await read_all(found)
    one = position(0, range(8), {0, 1, 4, 5, 7})
    for _ in range(2):
        assert await found.commit([one]) == CommitDone([one])
    assert marked(where) == {0, 1, 4, 5, 7}
    assert outcome.tallies[DEAD].redriven == 5
    await found.close(1.0, [position(0, range(8), set(range(8)))])
    assert marked(where) == set(range(8))
    assert outcome.tallies[DEAD].redriven == 8
    assert len(writer.lots) == 2


async def test_a_mark_that_cannot_be_written_ends_it() -> None:
    """If a mark cannot be written, nothing counts as committed, and the next fetch and closing raise the reason."""

    class Fenced(Transactions):
        async def write(self, records: Sequence[NewRecord]) -> int | None:
            raise KafkaError("another redrive has taken over")

    where = topics(4)
    found, _, outcome = redrive(where, Fenced(where))
    await found.fetch(4, 0.0)
    answer = await found.commit([position(0, range(4), {0})])
    assert answer == CommitDone((), "not marked")
    with pytest.raises(KafkaError, match="another redrive"):
        await found.fetch(4, 0.0)
    with pytest.raises(KafkaError, match="another redrive"):
        await found.close(1.0, [])
    assert outcome.tallies[DEAD].redriven == 0


def test_closing_keeps_its_deadline() -> None:
    """One time limit for the last marks and the end of the client; it raises if letters are not marked."""

    class Hanging(Transactions):
        async def write(self, records: Sequence[NewRecord]) -> int | None:
            await asyncio.sleep(1000)
            return None

    class SlowEnd(Inner):
        async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
            await asyncio.sleep(timeout)

    async def main() -> float:
        where = topics(1)
        found, _, _ = redrive(where, Hanging(where), inner=SlowEnd(where))
        await read_all(found)
        begun = asyncio.get_running_loop().time()
        with pytest.raises(KafkaError, match="could not be marked as done in time"):
            await found.close(5.0, [position(0, [0], {0})])
        return asyncio.get_running_loop().time() - begun

    assert run(main()) == pytest.approx(5.0)


REJECTION = Rejection(Stage.DELIVER, "refused", "no")


def dead(chunk: Chunk, record: Record) -> DeadLetter:
    """Return the letter of a record that dies again."""
    return DeadLetter(chunk.topic, chunk.partition, record, REJECTION, 4, AT + 5)


async def test_what_dies_again_belongs_to_its_origin() -> None:
    """It has place, time and headers of the origin, one more trip, and the place of the letter it was."""
    where = topics(0)
    where.bury(9, partition=2, offset=77, headers=(("own", None), ("pinstream.trips", b"1")))
    found, _, _ = redrive(where, Transactions(where))
    [chunk] = await read_all(found)
    assert await found.store([dead(chunk, chunk.records[0])]) == [True]
    again = where.logs[DEAD, 0][1]
    letter = read_letter(DEAD, 0, again)
    assert letter is not None
    assert (letter.origin, letter.timestamp, letter.trips) == (("orders", 2, 77), AT, 2)
    assert (letter.stage, letter.code, letter.attempts, letter.at_ms) == (Stage.DELIVER, "refused", 4, AT + 5)
    assert (again.key, again.value) == (b"k9", b"v9")
    own = (("own", None), ("pinstream.trips", b"2"), ("pinstream.redriven", f"{DEAD}:0:0".encode()))
    assert again.headers[:3] == own
    assert len(again.headers) == 3 + 9


async def test_what_dies_again_is_written_with_the_mark_of_what_it_was() -> None:
    """In one transaction, so that never both wait; a later commit marks only the others."""
    where = topics(6)
    writer = Transactions(where)
    found, _, outcome = redrive(where, writer)
    chunks = await read_all(found)
    records = [(chunk, record) for chunk in chunks for record in chunk.records]
    assert await found.store([dead(*records[1]), dead(*records[4])]) == [True, True]
    [lot] = writer.lots
    assert [one.value for one in lot[:2]] == values(1, 4)
    assert marked(where) == {1, 4}
    await found.commit([position(0, range(6), set(range(6)))])
    assert [len(one) for one in writer.lots[1:]] == [1]
    assert marked(where) == set(range(6))
    assert len(writer.lots) == 2
    assert outcome.tallies[DEAD].redriven == 6


def values(*numbers: int) -> list[bytes]:
    """Return the values of these letters."""
    return [b"v%d" % number for number in numbers]


def dies_at(lot: int) -> Callable[[int], None]:
    """Return a function that raises `Killed` at this lot."""

    def die(at: int) -> None:
        if at == lot:
            raise Killed

    return die


async def test_what_is_too_large_now_leaves_its_value_out() -> None:
    """Its value is omitted, a note says so, and the old letter is marked."""
    where = topics(2)
    writer = Transactions(where)
    writer.refuses = lambda record: record.value == b"v1"
    found, _, outcome = redrive(where, writer)
    [chunk] = await read_all(found)
    assert await found.store([dead(chunk, one) for one in chunk.records]) == [True, True]
    assert [one.value for one in where.logs[DEAD, 0][2:4]] == [b"v0", None]
    assert marked(where) == {0, 1}
    assert "without its value" in outcome.notes[0]


async def test_a_topic_that_takes_no_letter_or_no_mark_ends_it() -> None:
    """Nothing is stored or marked, and the next fetch raises what to do, with the command."""
    where = topics(2)
    writer = Transactions(where)
    writer.refuses = lambda record: record.headers[0][0] != "pinstream.done"
    found, _, _ = redrive(where, writer)
    [chunk] = await read_all(found)
    assert await found.store([dead(chunk, one) for one in chunk.records]) == [False, False]
    assert marked(where) == set()
    command = (
        f"kafka-configs.sh --bootstrap-server kafka:9092 --alter --entity-type topics --entity-name {DEAD} "
        "--add-config cleanup.policy=delete,max.message.bytes=2097152"
    )
    with pytest.raises(KafkaError, match=re.escape(command)):
        await found.fetch(4, 0.0)
    writer.refuses = lambda record: True
    found, _, _ = redrive(where, writer)
    [chunk] = await read_all(found)
    last = Position(DEAD, 0, chunk.records[-1].offset + 1, None)
    assert await found.commit([last]) == CommitDone((), "not marked")
    with pytest.raises(KafkaError, match=rf"{DEAD} takes no mark .*{DEAD} --add-config max\.message\.bytes="):
        await found.fetch(4, 0.0)


async def test_a_mark_names_the_last_leader_epoch_that_was_read() -> None:
    """So a later letter, written after an unclean election at the same offset, is not done by it."""
    where = topics(4)
    where.epochs[DEAD] = [(4, 3), (3, 0)]
    found, letters, _ = redrive(where, Transactions(where))
    await letters.begin()
    handed = [record.offset for chunk in await read_all(found) for record in chunk.records]
    await found.commit([position(0, handed, {0})])
    assert dict(where.logs[DEAD, 0][-1].headers)["pinstream.marked-epoch"] == b"4"
    letters.note_epoch(Chunk(DEAD, 0, 0, 6, [where.logs[DEAD, 0][1]]))
    await found.commit([position(0, handed, {0, 1})])
    assert dict(where.logs[DEAD, 0][-1].headers)["pinstream.marked-epoch"] == b"6"


@FEWER
@given(st.data())
def test_marks_report_exactly_of_what_is_settled(data: st.DataObject) -> None:
    """In any order of fetches and commits an open letter is never marked, and in the end all are."""
    partitions = data.draw(st.integers(1, 2))
    where = topics(0)
    where.partitions[DEAD] = partitions
    for number in range(data.draw(st.integers(1, 20))):
        code = data.draw(st.sampled_from(["expired", "expired", "other"]))
        where.bury(number, partition=number % partitions, code=code)
    everything = {at: list(where.logs[DEAD, at]) for at in range(partitions)}
    filters = Filters(codes=frozenset({"expired"}))
    found, _, outcome = redrive(where, Slow(where), lot=3, filters=filters)
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

    run(main())
    total = 0
    for at in range(partitions):
        wanted = {one.offset for one in everything[at] if ("pinstream.code", b"expired") in one.headers}
        others = {one.offset for one in everything[at]} - wanted
        assert wanted <= marked(where, at)
        assert not marked(where, at) & others
        total += len(wanted)
    assert outcome.tallies[DEAD].redriven == total
