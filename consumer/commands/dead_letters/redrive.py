"""``pinstream dead-letters redrive``: take letters through the pipeline again, and mark them as done.

It is the service of ``pinstream run`` over a source that hands out the records of the chosen letters, with the offsets
of the letters. Nothing is written to the origin topics. Committing a position means here to mark every letter that it
settles. The order for one dead-letter topic::

    take over the transactional id (ends what a killed redrive left open, fences one that still runs)
      -> fix the topic's end -> first pass: marks -> second pass: hand out what is chosen
      -> delivered: its key is in the key store -> its mark     filtered, duplicate: its mark
      -> dies again: the new letter and the mark of the old one, in one transaction

A kill at any point: a letter that is not marked is handed out again by the next redrive. If its key was stored, it is a
duplicate and gets its mark; if it was in flight, it is sent again (at most what was in flight, as with `pinstream
run`). A letter that died again is either marked, with its new letter beside it, or unchanged.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import uuid
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, NamedTuple

import click

from consumer.adapters.kafka.cluster import setting_command
from consumer.adapters.kafka.dead_letters import NO_COMPACTION, SIZE_LIMIT, room_for
from consumer.adapters.kafka.letters import (
    LETTER_HEADERS,
    TRIPS,
    DeadRecord,
    Done,
    NewRecord,
    Place,
    forms,
    mark_headers,
    next_trip,
    origin_place,
    own_headers,
    part_sizes,
    read_letter,
)
from consumer.adapters.kafka.producers import ID_PREFIX, TransactionalWriter
from consumer.adapters.thread import run_on_loop
from consumer.app import building
from consumer.app.ending import Parts, on_stop_signal
from consumer.app.receipts import receipt_writer
from consumer.commands.base import DebugCommand
from consumer.commands.dead_letters.options import RedriveOptions, filter_options
from consumer.commands.dead_letters.outcome import RedriveOutcome, show_redrive
from consumer.commands.dead_letters.reading import DeadLetters, find, whole_record, why_gone
from consumer.commands.parsing import JSON_OPTION, RATE_OPTION
from consumer.commands.replay.bounded_run import (
    LOST,
    FiniteSource,
    ReplayEnd,
    bounded_source,
    load_quietly,
    serve_to_end,
)
from consumer.commands.results import print_result
from consumer.engine.figures.statistics import Statistics
from consumer.engine.messages import CommitDone, DeadLetter
from consumer.engine.model import Chunk, Position, Record, TopicPartition
from consumer.engine.reading import Decoded, SchemaLearner
from consumer.engine.records import offset_map
from consumer.errors import Incomplete, KafkaError, PinstreamError, bug
from consumer.settings import Settings, load
from consumer.web.status import document_of

# Limits of one transaction, which must end within seconds. A letter that is larger has a transaction to itself.
LOT_LETTERS: Final = 500
LOT_BYTES: Final = 1 << 20
# Headers of a letter that go through the pipeline with its record.
_CARRIED: Final = frozenset({*LETTER_HEADERS, TRIPS})


@click.command(name="redrive", cls=DebugCommand)
@filter_options
@click.option("--max", "maximum", type=click.IntRange(min=1), metavar="N", help="Redrive at most N letters.")
@RATE_OPTION
@click.option(
    "--max-trips",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Leave letters whose record was redriven this many times already: it would fail again.",
)
@click.option("--dry-run", is_flag=True, help="Write and send nothing; show what would be done.")
@JSON_OPTION
def redrive_letters(**given: Any) -> None:
    """Send the records of letters through the pipeline again, straight to the platform.

    Nothing is written to the topic that they are from: its other readers do not see them again. A letter is marked as
    done on the dead-letter topic once its record is settled. A record that fails again gets a new letter, in one Kafka
    transaction with that mark. After an interruption or a kill, run it again: what was delivered within
    PINSTREAM_DEDUP_WINDOW is known, and only what was in flight when it was killed may be sent again.
    Letters that are written in that time are not touched. Exit code 1: interrupted, or it could not go on.

    Needs the settings of `pinstream run`, with its key store: run it on the same machine, or with a shared one. A dry
    run needs only the KAFKA_… settings.

    Pinterest counts a web or app event that arrives more than an hour after it happened as offline and does not
    deduplicate it: one that is sent twice is counted twice.

    \b
    pinstream dead-letters redrive --topic orders --code unknown_currency --dry-run
    pinstream dead-letters redrive --origin orders:3:1200
    """
    options = RedriveOptions(**given)
    if options.dry_run:
        # A dry run needs only Kafka, and logs nothing: an error is its one last line.
        settings = load(os.environ, needs=("kafka",))
    else:
        settings = load_quietly(os.environ, ("kafka", "account", "token"))
    outcome = run_on_loop(_run(options, settings))
    # Printed also before an error: letters that were redriven until then stay so.
    document, show = outcome.document(), partial(show_redrive, outcome)
    print_result(show, document, as_json=options.as_json, beside=True, lost=LOST)
    if outcome.failure is not None:
        raise outcome.failure
    if outcome.end is ReplayEnd.INTERRUPTED:
        raise Incomplete("interrupted: run it again to go on; what is settled is marked as done")


async def _run(options: RedriveOptions, settings: Settings) -> RedriveOutcome:
    topics, missing = await find(settings, options.topics, options.filters)
    outcome = RedriveOutcome(options, missing=missing)
    try:
        if options.dry_run:
            await dry_run(topics, outcome)
            return outcome
        # Reading the marks of a large topic takes minutes, in which signals must stop it. Later the service handles
        # them.
        stopped = asyncio.Event()
        on_stop_signal(stopped.set)
        async with Parts() as stack:
            redriven: dict[str, Redriven] = {}
            # Read the marks of all topics before the service begins: the bar shows how many letters there are.
            for letters in topics:
                outcome.tallies[letters.name] = letters.tally
                writer = TransactionalWriter(
                    settings.kafka.client_properties(),
                    # All redrives of a topic share the id, so that a second fences the first.
                    ID_PREFIX + letters.name,
                    on_error=building.log_kafka_error,
                )
                stack.push_async_callback(writer.close)
                # Before anything is read: this ends the open transaction of a killed redrive, and fences one that still
                # runs, so that no other process writes marks from here on.
                await writer.start()
                await letters.begin(stopped.is_set)
                redriven[letters.name] = Redriven(settings.kafka.bootstrap_servers, letters, writer.write)
                # Stop before the next topic: taking over its id would end another redrive for nothing.
                if stopped.is_set():
                    outcome.end = ReplayEnd.INTERRUPTED
                    break
            else:
                await _serve(settings, redriven, outcome, stack)
    except PinstreamError as error:
        outcome.end, outcome.failure = ReplayEnd.FAILED, error
    return outcome


async def dry_run(topics: Sequence[DeadLetters], outcome: RedriveOutcome) -> None:
    """Make a dry run: choose letters, and write nothing."""
    for letters in topics:
        outcome.tallies[letters.name] = letters.tally
        await letters.begin()
        async with contextlib.aclosing(letters.letters("choosing")) as found:
            async for letter in found:
                if await choose(letter, letters, outcome) is not None:
                    # The table of a dry run says "would be redriven".
                    letters.tally.redriven += 1


async def _serve(
    settings: Settings,
    redriven: Mapping[str, Redriven],
    outcome: RedriveOutcome,
    stack: Parts,
) -> None:
    """Run the service over the letters until all of them are settled, and note how it ended."""
    local = building.local_schemas(settings)
    mapped = building.sections(settings, local)
    transformer = building.transformer(settings, mapped)
    keys = building.service_key_store(settings)
    stack.push_async_callback(keys.close)
    limits = building.policy(settings, outcome.options.rate)
    # Without the fast path: letters are few.
    pipeline = building.pipeline(settings, mapped, limits, decoding=OfOrigin, fast=False)
    # Up to where the marks were read. Later records, such as the new letters of this redrive, are not read. If a topic
    # is created again before that, the marks would be for letters that are gone.
    inner = bounded_source(settings, [one for topic in redriven.values() for one in topic.letters.ranges])
    source = LettersSource(inner, redriven, outcome)

    # The producer of dead letters would not write them in one transaction with the marks.
    wraps = building.Wraps(
        letters=source, receipts=receipt_writer(settings, pipeline, mapped, "redrive", stack)
    )
    service = building.service(settings, pipeline, lambda _: source, keys, local, transformer, stack, wraps)
    inner.listener = service

    def progress(statistics: Statistics) -> tuple[int, str]:
        done = sum(one.matched - one.left for one in outcome.tallies.values())
        return done, f"{statistics.totals.delivered:,} delivered"

    total = sum(one.matched for one in outcome.tallies.values())
    ran = await serve_to_end(service, source, "redrive", total, progress)
    outcome.ledger = document_of(ran.statistics.totals)
    outcome.end, outcome.failure = ran.end, ran.failure or ran.guarded()


async def choose(letter: DeadRecord, letters: DeadLetters, outcome: RedriveOutcome) -> Record | None:
    """Return the record that died, at the offset of its letter, if it is redriven. Call it in the order of offsets.

    A letter that matches the filters is exactly one of: done before (the first pass counts those), left (``--max`` is
    reached, or the run was interrupted), looped, gone, or chosen.
    """
    if letters.is_done(letter) or outcome.spent():
        return None
    # The loop guard: a record that dies every time must not go round indefinitely.
    if letter.trips >= outcome.options.max_trips:
        letters.tally.looped += 1
        return None
    original = await whole_record(letter, letters.reader)
    if original is None:
        letters.tally.gone += 1
        outcome.note(f"{letter.place} stays: {why_gone(letter)}")
        return None
    outcome.chosen += 1
    # If the record dies again, its new letter needs these headers: where it came from, and how often it was redriven.
    carried = (header for header in letter.record.headers if header[0] in _CARRIED)
    return original._replace(headers=(*original.headers, *carried))


class OfOrigin:
    """A decoder of letters: each is read as a record of its origin, not of the dead-letter topic."""

    def __init__(self, decoder: SchemaLearner) -> None:
        self._decoder = decoder
        self.add_schema, self.doubt, self.forget = decoder.add_schema, decoder.doubt, decoder.forget
        self.missing, self.drift = decoder.missing, decoder.drift

    def decode(self, record: Record, topic: str, partition: int) -> Decoded:
        """See `consumer.engine.reading.Decoding`."""
        # A topic for all may hold letters of several origins, whose records have different types.
        place = origin_place(record, Place(topic, partition, record.offset))
        return self._decoder.decode(record._replace(offset=place.offset), place.topic, place.partition)

    def section_of(self, record: Record, topic: str) -> int:
        """See `consumer.engine.reading.Decoding.section_of`."""
        return self._decoder.section_of(record, origin_place(record, Place(topic, -1, record.offset)).topic)


class Redriven(NamedTuple):
    """A dead-letter topic that is being redriven. `write` is `TransactionalWriter.write`."""

    servers: str
    letters: DeadLetters
    write: Callable[[Sequence[NewRecord]], Awaitable[int | None]]


class LettersSource:
    """Hands out the chosen letters among the records that `inner` reads from `topics` (by name), and marks them.

    It is the source of a redrive, and its `DeadLetterWriter`.
    """

    def __init__(self, inner: FiniteSource, topics: Mapping[str, Redriven], outcome: RedriveOutcome) -> None:
        self._inner = inner
        self._topics = topics
        self._outcome = outcome
        self._choosing = False
        # By partition, the offsets of letters that are handed out and not marked yet.
        self._handed_out: defaultdict[TopicPartition, set[int]] = defaultdict(set)
        # Once a transaction has failed, nothing can be marked any more: letters that are settled later are redriven
        # again next time.
        self._failure: KafkaError | None = None
        # One transaction at a time: a producer cannot have two, and no letter may be marked twice.
        self._marking = asyncio.Lock()
        self.start = inner.start
        self.end_offsets = inner.end_offsets
        self.restart_partitions = inner.restart_partitions

    @property
    def done(self) -> bool:
        """Return True if all letters, or as many as ``--max`` allows, are handed out."""
        # Not while letters are being chosen: `inner` has handed them out, but the service does not have them yet.
        return not self._choosing and (self._inner.done or self._outcome.spent())

    async def fetch(self, room: int, timeout: float) -> list[Chunk]:
        """See `RecordSource`. Raises `KafkaError` if marks can no longer be written: another redrive has taken over."""
        # A letter that is handed out now could not be marked, so the next redrive would send it again.
        if self._failure is not None:
            raise self._failure
        if self._outcome.spent():
            # Letters that are handed out are still in flight. Return within the timeout: between fetches the service
            # checks for a stop.
            await asyncio.sleep(timeout)
            return []
        # At most as many records as one transaction marks.
        fetched = await self._inner.fetch(min(room, LOT_LETTERS), timeout)
        # Set only after the fetch: when all is read, each fetch only waits, and that must count as done.
        self._choosing = True
        chunks = [await self._chosen(chunk) for chunk in fetched]
        # Reset only now: if a stop cancels this, the service never gets these letters, and the redrive is not complete.
        self._choosing = False
        return [chunk for chunk in chunks if chunk.records]

    async def _chosen(self, chunk: Chunk) -> Chunk:
        """Return the chunk with the records of the chosen letters."""
        letters = self._topics[chunk.topic].letters
        letters.note_epoch(chunk)
        records: list[Record] = []
        for record in chunk.records:
            letter = letters.letter(chunk.partition, record)
            original = letter and await choose(letter, letters, self._outcome)
            if original is not None:
                self._handed_out[TopicPartition(chunk.topic, chunk.partition)].add(record.offset)
                records.append(original)
        return chunk._replace(records=records)

    async def commit(self, positions: Sequence[Position]) -> CommitDone:
        """Mark the letters that these positions settle; they count as committed once the broker has the marks."""
        settled: defaultdict[str, dict[TopicPartition, set[int]]] = defaultdict(dict)
        async with self._marking:
            for position in positions:
                name, base = TopicPartition(*position[:2]), position.next_offset
                above = offset_map.read_map(position).settled
                settled[name.topic][name] = {
                    at
                    for at in self._handed_out[name]
                    if at < base or (above is not None and above.settled(at))
                }
            # One transaction per dead-letter topic, for all its partitions.
            for topic, offsets in settled.items():
                await self._write(topic, offsets)
        if self._failure is None:
            return CommitDone(positions)
        # The reason is in `_failure`, which the next fetch raises.
        return CommitDone((), "not marked")

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Write new letters of records that died again, in one transaction with the marks of the old ones.

        See `consumer.ports.DeadLetterWriter.store`.
        """
        stored = [False] * len(letters)
        async with self._marking:
            for lot in _lots(letters):
                settled: defaultdict[TopicPartition, set[int]] = defaultdict(set)
                for at in lot:
                    one = letters[at]
                    settled[TopicPartition(one.topic, one.partition)].add(one.record.offset)
                # A letter that is not stored stays open in the engine, so its offset is not committed.
                written = await self._write(letters[lot[0]].topic, settled, [letters[at] for at in lot])
                for at in lot:
                    stored[at] = written
        return stored

    async def _write(
        self, topic: str, settled: Mapping[TopicPartition, set[int]], dead: Sequence[DeadLetter] = ()
    ) -> bool:
        """Write marks of what is `settled`, and the letters that are `dead` again. Return False if that failed."""
        (servers, letters, write), handed = self._topics[topic], self._handed_out
        # Fixed before the write: more may be handed out since.
        done = {name: handed[name] & offsets for name, offsets in settled.items()}
        marks = [_mark(letters, name.partition, offsets) for name, offsets in done.items() if offsets]
        again = [_died_again(one) for one in dead]
        if self._failure is not None or not (marks or again):
            return self._failure is None
        # The topic may accept less than before: a letter that is too large is tried with fewer and fewer of its parts.
        # A transaction is refused as a whole, so all its other records are written again with it.
        tries = [forms(letter, topic, len(letters.homes)) for _, letter in again]
        tried = [next(one) for one in tries]
        try:
            while (refused := await write([*tried, *marks])) is not None:
                if refused >= len(again):
                    command = setting_command(servers, topic, f"{SIZE_LIMIT}={room_for(0)}")
                    raise KafkaError(f"Kafka: {topic} takes no mark of what is done: change that: {command}")
                smaller = next(tries[refused], None)
                if smaller is None:
                    before, letter = again[refused]
                    # It has no room for a letter without any part, or is compacted and the record has no key.
                    room = room_for(sum(part_sizes(letter.record).values()))
                    command = setting_command(servers, topic, f"{NO_COMPACTION},{SIZE_LIMIT}={room}")
                    raise KafkaError(
                        f"Kafka: {topic} does not take the letter of {before.origin} again: change that: {command}"
                    )
                tried[refused] = smaller
        except KafkaError as error:
            self._failure = error
            return False
        for (before, _), written in zip(again, tried, strict=True):
            if written.omitted:
                self._outcome.note(
                    f"{before.place} died again, too large for its topic: the new letter is without its "
                    f"{' and '.join(written.omitted)}"
                )
        # Removed only now: a letter whose mark is not written must be marked by the next commit.
        for name, offsets in done.items():
            handed[name] -= offsets
            letters.tally.redriven += len(offsets)
        return True

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """Mark the settled letters, and close the client, within `timeout` seconds."""

        async def mark() -> None:
            try:
                async with asyncio.timeout(timeout):
                    await self.commit(positions)
            except TimeoutError:
                # It is not known whether the broker has these marks: the user has to run the redrive again.
                self._failure = self._failure or KafkaError(
                    "Kafka: the last letters could not be marked as done in time: run the redrive again; what was "
                    "delivered is known"
                )

        # Both at the same time: they share one deadline.
        await asyncio.gather(mark(), self._inner.close(timeout))
        if self._failure is not None:
            raise self._failure


def _lots(letters: Sequence[DeadLetter]) -> Iterator[list[int]]:
    """Divide the letters into lots, each for one transaction, which writes to one topic; yield their indices."""
    lots: dict[str, list[int]] = {}
    sizes: defaultdict[str, int] = defaultdict(int)
    for at, letter in enumerate(letters):
        topic, record = letter.topic, letter.record
        lots.setdefault(topic, []).append(at)
        # Headers do not count: the size need not be exact.
        sizes[topic] += len(record.value or b"") + len(record.key or b"")
        if len(lots[topic]) >= LOT_LETTERS or sizes[topic] >= LOT_BYTES:
            yield lots.pop(topic)
            del sizes[topic]
    yield from lots.values()


def _mark(letters: DeadLetters, partition: int, offsets: Iterable[int]) -> NewRecord:
    """Return the record that marks these letters of a partition as done."""
    done = Done()
    done.add((at, at + 1) for at in sorted(offsets))
    home, epochs = letters.homes[partition], letters.epochs[partition]
    headers = mark_headers(done.runs(), home, epochs[-1][0] if epochs else None)
    # A compacted topic keeps a record with a key of its own and a value.
    key = f"pinstream.done-{uuid.uuid4()}".encode()
    return NewRecord(home.topic, home.partition, key, headers[0][1], headers)


def _died_again(letter: DeadLetter) -> tuple[DeadRecord, DeadLetter]:
    """Return the earlier letter, and the new one: with the earlier one's origin, and one more trip."""
    # The record carries the headers of its letter (`choose`), and the engine does not change headers.
    before = read_letter(letter.topic, letter.partition, letter.record)
    if before is None:
        raise bug("a redriven record does not say where it is from")
    topic, partition, offset = before.origin
    headers = next_trip(own_headers(letter.record.headers), before)
    record = letter.record._replace(offset=offset, headers=headers)
    return before, letter._replace(topic=topic, partition=partition, record=record)
