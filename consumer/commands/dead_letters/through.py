"""Letters go straight through the pipeline, without a way over their topic: nobody else who reads that sees them again.

The service of ``pinstream run`` over a source that hands out the chosen letters as the records they were, at the places
where the letters lie. To commit a position means here: a mark for all letters that are settled by it, and above it by
its offset map. So a letter is marked only when it is delivered, a duplicate, filtered, or dead once more; killed in
between, it is tried again, and the key store knows what was delivered.

What dies again is a letter once more, of its origin and one trip further, on the same dead-letter topic; it is written
in one transaction with the mark of the old one, so that there never are two.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from consumer.adapters.kafka import (
    BoundedSource,
    CommitResult,
    NewRecord,
    Range,
    Redriver,
)
from consumer.adapters.kafka.dead_letters import letter_headers
from consumer.adapters.kafka.letters import (
    HEADERS,
    KEY,
    LETTER_HEADERS,
    TRIPS,
    VALUE,
    DeadRecord,
    Done,
    Home,
    headers_back,
    own_headers,
    read_letter,
)
from consumer.adapters.kafka.topic_ids import TopicIds
from consumer.adapters.key_store import open_key_store
from consumer.app import building
from consumer.app.run import REFUSED_ADVICE, log_kafka_trouble, tune_memory
from consumer.commands.dead_letters.choosing import (
    Budget,
    Chooser,
    Chosen,
    Going,
    RedriveOptions,
    mark,
    runs_of,
    split,
)
from consumer.commands.dead_letters.outcome import End, Outcome
from consumer.commands.dead_letters.reading import KafkaReader, read_marks
from consumer.commands.dead_letters.redrive import LOT_BYTES, LOT_LETTERS, Pace, Writer
from consumer.commands.dead_letters.topics import DeadLetterTopic
from consumer.commands.replay.engine import End as RunEnd
from consumer.commands.replay.engine import Ran, run_to_end
from consumer.commands.replay.watch import watch
from consumer.engine import offset_map
from consumer.engine.ledger import map_place
from consumer.engine.messages import DeadLetter, NewLife
from consumer.engine.model import Chunk, Position, Record, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.errors import DestinationRefused, InvariantViolation, KafkaError
from consumer.service import Service, Source, SystemClock
from consumer.settings import Settings
from consumer.web.status import ledger

_CARRIED = frozenset({*LETTER_HEADERS, TRIPS})
"""What of a letter goes with its record through the pipeline: it tells where to go should it die again."""


class BoundedReading(Source, Protocol):
    """What is read from; see `consumer.adapters.kafka.BoundedSource`."""

    @property
    def done(self) -> bool:
        """Whether all was handed out."""

    def figures(self) -> Mapping[TopicPartition, int]:
        """Up to where each partition was read."""


class Origin(NamedTuple):
    """A dead-letter topic that is redriven. `done`: what was before; `homes`: of marks. Both by partition."""

    chooser: Chooser
    writer: Writer
    done: Mapping[int, Done]
    homes: Mapping[int, Home]


class Marker:
    """Knows which letters of `origins` are handed out and not marked yet; writes marks, and what died again.

    `origins`: by the name of the dead-letter topic. `failure`: why nothing can be marked any more.
    """

    def __init__(self, origins: Mapping[str, Origin]) -> None:
        self.origins = origins
        self.failure: KafkaError | None = None
        self._handed: defaultdict[TopicPartition, list[Going]] = defaultdict(list)
        """What is not marked yet, in order."""
        self._marking = asyncio.Lock()

    def handed(self, name: TopicPartition, one: Chosen) -> None:
        """This letter is on its way."""
        self._handed[name].append(Going(one.letter.place.offset, one.joins))

    async def settle(self, positions: Sequence[Position]) -> bool:
        """Mark what these positions say is settled; whether the broker has the marks."""
        async with self._marking:
            try:
                for topic, origin in self.origins.items():
                    await self._settle(origin, [one for one in positions if one.topic == topic])
            except KafkaError as error:
                self.failure = self.failure or error
        return self.failure is None

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """See `DeadLetterWriter.store`: what dies again, and the marks of the letters that it was, together."""
        stored = [False] * len(letters)
        async with self._marking:
            try:
                for topic, origin in self.origins.items():
                    ours = [
                        at for at, one in enumerate(letters) if one.topic == topic and self.failure is None
                    ]
                    for lot in _lots(ours, letters):
                        await self._bury(origin, [letters[at] for at in lot])
                        for at in lot:
                            stored[at] = True
            except KafkaError as error:
                self.failure = self.failure or error
        return stored

    async def _settle(self, origin: Origin, positions: Sequence[Position]) -> None:
        """One transaction with the marks of all partitions of a dead-letter topic."""
        settled: dict[TopicPartition, set[int]] = {}
        for position in positions:
            name = TopicPartition(position.topic, position.partition)
            going, _ = split(self._handed[name], _Settled(position))
            if going:
                settled[name] = {one.offset for one in going}
        await self._write(origin, [], settled)

    async def _bury(self, origin: Origin, letters: Sequence[DeadLetter]) -> None:
        settled: defaultdict[TopicPartition, set[int]] = defaultdict(set)
        for letter in letters:
            settled[TopicPartition(letter.topic, letter.partition)].add(letter.record.offset)
        await self._write(origin, [_Again(one) for one in letters], settled)

    async def _write(
        self, origin: Origin, again: Sequence[_Again], settled: Mapping[TopicPartition, set[int]]
    ) -> None:
        """All of it in one transaction. What its topic finds too large leaves parts of it out."""
        marks: list[NewRecord] = []
        for name, offsets in settled.items():
            going, _ = split(self._handed[name], offsets.__contains__)
            if going:
                marks.append(mark(origin.homes[name.partition], runs_of(going)))
        partitions = len(origin.homes)
        while marks or again:
            refused = await origin.writer.put_back([*(one.record(partitions) for one in again), *marks])
            if refused is None:
                break
            self._reduce(origin, again, refused)
        for one in again:
            if one.left_out:
                origin.chooser.outcome.note(
                    f"{one.before.place} died once more, too large for its topic: the new letter is without its "
                    f"{' and '.join(one.left_out)}"
                )
        for name, offsets in settled.items():
            # More may have been handed out meanwhile.
            done, self._handed[name] = split(self._handed[name], offsets.__contains__)
            origin.chooser.tally.redriven += len(done)

    def _reduce(self, origin: Origin, again: Sequence[_Again], refused: int) -> None:
        topic = origin.chooser.topic.name
        if refused >= len(again):
            raise KafkaError(
                f"Kafka: {topic} takes no mark of what is done: raise its max.message.bytes, or let this user write "
                "to it"
            )
        one = again[refused]
        if not one.reduce():
            raise KafkaError(
                f"Kafka: {topic} does not take the letter of {one.before.origin} once more: raise its "
                "max.message.bytes, give it cleanup.policy=delete, or let this user write to it"
            )


def _lots(indices: Sequence[int], letters: Sequence[DeadLetter]) -> Iterator[list[int]]:
    """As many letters together as one transaction holds."""
    lot: list[int] = []
    size = 0
    for at in indices:
        record = letters[at].record
        lot.append(at)
        size += len(record.value or b"") + len(record.key or b"")
        if len(lot) >= LOT_LETTERS or size >= LOT_BYTES:
            yield lot
            lot, size = [], 0
    if lot:
        yield lot


class LettersSource:
    """Hands out the chosen letters, which `inner` reads; fits `consumer.commands.replay.engine.FiniteSource`.

    `pace`: of letters that are handed out, whatever becomes of them.
    """

    def __init__(self, inner: BoundedReading, marker: Marker, pace: Pace) -> None:
        self._inner = inner
        self._marker = marker
        self._pace = pace

    @property
    def done(self) -> bool:
        """All is handed out, or as much as was asked for."""
        return self._inner.done or self._spent()

    def figures(self) -> Mapping[TopicPartition, int]:
        """Up to where each partition was read."""
        return self._inner.figures()

    async def start(self) -> None:
        """See `Source`."""
        await self._inner.start()

    async def fetch(self, room: int, timeout: float) -> list[Chunk]:
        """See `Source`. Raises `KafkaError` once marks cannot be written any more: another redrive has taken over."""
        if self._marker.failure is not None:
            raise self._marker.failure
        delay = self._pace.delay()
        if self._spent() or delay > timeout:
            await asyncio.sleep(timeout)
            return []
        await asyncio.sleep(max(0.0, delay))
        room = min(room, self._pace.at_once())
        chunks = [await self._chosen(chunk) for chunk in await self._inner.fetch(room, timeout)]
        self._pace.went(sum(len(chunk.records) for chunk in chunks))
        return [chunk for chunk in chunks if chunk.records]

    async def commit(self, positions: Sequence[Position]) -> CommitResult:
        """Mark what these positions say is settled; taken once the broker has the marks."""
        if await self._marker.settle(positions):
            return CommitResult(tuple(positions), None)
        return CommitResult((), "not marked")

    async def end_offsets(self) -> Mapping[TopicPartition, int]:
        """See `Source`."""
        return await self._inner.end_offsets()

    async def reached(self) -> Mapping[TopicPartition, int]:
        """See `Source`."""
        return await self._inner.reached()

    async def joined(self) -> bool:
        """Reads what it was told to: there is no group to join."""
        return True

    async def waiting_for_start(self) -> int:
        """See `Source`."""
        return await self._inner.waiting_for_start()

    async def begins(self) -> Mapping[TopicPartition, int]:
        """See `Source`."""
        return await self._inner.begins()

    async def read_anew(self, partitions: Sequence[NewLife]) -> None:
        """See `Source`."""
        await self._inner.read_anew(partitions)

    async def unreadable(self) -> Mapping[TopicPartition, int]:
        """See `Source`."""
        return await self._inner.unreadable()

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """Mark what is settled, end the client."""
        try:
            async with asyncio.timeout(timeout):
                await self.commit(positions)
        except TimeoutError:
            self._marker.failure = self._marker.failure or KafkaError(
                "Kafka: the last letters could not be marked as done in time: run the redrive again; what was "
                "delivered is known"
            )
        await self._inner.close(timeout)
        if self._marker.failure is not None:
            raise self._marker.failure

    def _spent(self) -> bool:
        return all(one.chooser.budget.spent() for one in self._marker.origins.values())

    async def _chosen(self, chunk: Chunk) -> Chunk:
        origin = self._marker.origins[chunk.topic]
        done = origin.done.get(chunk.partition, Done())
        records: list[Record] = []
        for record in chunk.records:
            one = await origin.chooser.choose(chunk.partition, record, done)
            if one is not None:
                self._marker.handed(TopicPartition(chunk.topic, chunk.partition), one)
                records.append(handed_out(one))
        return chunk._replace(records=records)


class _Settled:
    """Whether a position says of an offset that it is settled: it lies below, or the map says so."""

    def __init__(self, position: Position) -> None:
        where = map_place(TopicPartition(position.topic, position.partition))
        self._next = position.next_offset
        self._map = offset_map.read(position.metadata, position.next_offset, where=where)

    def __call__(self, offset: int) -> bool:
        return offset < self._next or (self._map is not None and self._map.settled(offset))


def handed_out(chosen: Chosen) -> Record:
    """The record that died, with the letter's headers beside its own."""
    letter, original = chosen.letter, chosen.original
    carried = (header for header in letter.record.headers if header[0] in _CARRIED)
    return original._replace(timestamp=letter.timestamp, headers=(*own_headers(original.headers), *carried))


_REDUCTIONS: tuple[tuple[str, ...], ...] = ((), (VALUE,), (VALUE, HEADERS), (VALUE, HEADERS, KEY))
"""What is left out of a letter, the first that its topic takes."""


class _Again:
    """A letter that died once more: a letter of its origin, one trip further."""

    def __init__(self, letter: DeadLetter) -> None:
        before = read_letter(letter.topic, letter.partition, letter.record)
        if before is None:
            raise InvariantViolation("a redriven record does not say where it is from; please report this")
        self.before: DeadRecord = before
        topic, partition, offset = before.origin
        headers = headers_back(own_headers(letter.record.headers), before)
        record = letter.record._replace(offset=offset, headers=headers)
        self._letter = letter._replace(topic=topic, partition=partition, record=record)
        self._step = 0

    @property
    def left_out(self) -> tuple[str, ...]:
        """Which parts of it."""
        return _REDUCTIONS[self._step]

    def reduce(self) -> bool:
        """Leave more of it out; whether there is more."""
        self._step += 1
        return self._step < len(_REDUCTIONS)

    def record(self, partitions: int) -> NewRecord:
        """As it lies on the dead-letter topic, which has so many partitions."""
        letter, left_out = self._letter, self.left_out
        return NewRecord(
            self.before.place.topic,
            letter.partition % partitions,
            None if KEY in left_out else letter.record.key,
            None if VALUE in left_out else letter.record.value,
            tuple(letter_headers(letter, left_out)),
        )


# ---------------------------------------------------------------------------------------------- the whole of it


class Through:
    """One run. `known`: the topics that there are, with their number of partitions."""

    def __init__(
        self, options: RedriveOptions, settings: Settings, known: Mapping[str, int], stopped: asyncio.Event
    ) -> None:
        self.outcome = Outcome(dry_run=False, through_pipeline=True)
        self._options = options
        self._settings = settings
        self._config = settings.kafka.client_properties()
        self._reader = KafkaReader(self._config)
        self._known = known
        self._stopped = stopped
        self._budget = Budget(options.most)
        self._ranges: list[Range] = []
        self._origins: dict[str, Origin] = {}

    async def run(self, topics: Sequence[DeadLetterTopic]) -> None:
        """All topics at once. Raises what the service raises, and `KafkaError` when another redrive takes over."""
        self.outcome.missing = [topic.name for topic in topics if not topic.there]
        async with contextlib.AsyncExitStack() as stack:
            for topic in topics:
                if topic.there:
                    await self._prepare(topic, stack)
            if self._stopped.is_set():
                self.outcome.end = End.INTERRUPTED
                return
            await self._serve(stack)

    async def _prepare(self, topic: DeadLetterTopic, stack: contextlib.AsyncExitStack) -> None:
        chooser = Chooser(self._options, topic, self._reader, self._known, self._budget, self.outcome)
        writer = Redriver(self._config, transactional_id(topic.name), on_trouble=log_kafka_trouble)
        stack.push_async_callback(writer.close)
        await writer.start()  # before anything is read, see `redrive`
        ranges = await self._reader.ranges(topic.name)
        with watch(f"reading {topic.name}", sum(one.end - one.begin for one in ranges)) as shown:
            read = 0

            def more(offsets: int) -> None:
                nonlocal read
                read += offsets
                shown.show(read)

            filters = self._options.filters
            marks = await read_marks(self._reader, topic, ranges, filters, more, self._stopped.is_set)
        chooser.begin(marks)
        self._ranges += ranges
        homes = {one.partition: await self._reader.home(topic.name, one.partition) for one in ranges}
        self._origins[topic.name] = Origin(chooser, writer, marks.done, homes)

    async def _serve(self, stack: contextlib.AsyncExitStack) -> None:
        settings, own = self._settings, self._settings.pinstream
        local = building.local_schemas(settings)
        schema = building.reader_schema(settings, local)
        writers = building.writer_schemas(settings, local)
        stack.push_async_callback(writers.close)
        api = building.conversions_api(settings)
        stack.push_async_callback(api.close)
        building.make_state_folder(own.state_dir)
        keys = open_key_store(
            own.key_store.get_secret_value(), window=own.dedup_window, max_bytes=own.key_store_max_bytes
        )
        stack.push_async_callback(keys.close)
        rate = self._options.rate
        marker = Marker(self._origins)
        pace = Pace(rate, asyncio.get_running_loop().time)
        sources: list[LettersSource] = []

        def connect(listener: Service) -> LettersSource:
            inner = BoundedSource(
                self._config,
                self._ranges,
                listener=listener,
                on_trouble=log_kafka_trouble,
                topic_ids=TopicIds(self._config),
            )
            sources.append(LettersSource(inner, marker, pace))
            return sources[0]

        service = Service(
            Pipeline(
                dataclasses.replace(building.policy(settings), events_per_second=rate or math.inf),
                building.decoder(settings, schema),
                building.converter(settings, schema, settings.pinterest.ad_account_ids),
                seed=time.time_ns(),
            ),
            connect=connect,
            api=api,
            key_store=keys,
            schemas=writers,
            dead_letters=marker,
            clock=SystemClock(time.time),
            report=building.log_report,
            grace=own.shutdown_grace,
        )
        tune_memory()
        try:
            self._ended(await self._watched(service, sources[0]))
        finally:
            self.outcome.ledger = ledger(service.statistics().totals)

    async def _watched(self, service: Service, source: LettersSource) -> Ran:
        tallies = self.outcome.tallies
        with watch("redrive", sum(one.matched for one in tallies)) as shown:

            def show() -> None:
                done = sum(one.matched - one.left for one in tallies)
                shown.show(done, f"{service.statistics().totals.delivered:,} delivered")

            ran = await run_to_end(service, source, show)
        if isinstance(ran.failure, DestinationRefused):
            raise DestinationRefused(f"{ran.failure}; {REFUSED_ADVICE}") from ran.failure
        if ran.failure is not None:
            raise ran.failure
        return ran

    def _ended(self, ran: Ran) -> None:
        if ran.end is RunEnd.INTERRUPTED:
            self.outcome.end = End.INTERRUPTED
        elif ran.end is RunEnd.GUARDED:
            self.outcome.end, self.outcome.guard = End.GUARDED, ran.statistics.guard


def transactional_id(topic: str) -> str:
    """One for each dead-letter topic, whoever redrives it and whichever way: so two never do at the same time."""
    return f"pinstream.redrive.{topic}"
