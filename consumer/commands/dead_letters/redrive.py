"""``pinstream dead-letters redrive``: letters go through the pipeline once more, and are marked as done.

It is the service of ``pinstream run`` over a source that hands out the chosen letters as the records that they were, at
the places where the letters lie. Nothing is written to the topics that they came from. To commit a position means here
to mark every letter that is settled by it (`marking`). The order for one dead-letter topic::

    take over the transactional id (ends what a killed redrive left open, fences one that still runs)
      -> fix the topic's end -> first pass: marks -> second pass: hand out what is chosen
      -> delivered: its key is in the key store -> its mark     filtered, duplicate: its mark
      -> dies again: the new letter and the mark of the old one, in one transaction

What a kill at each point means: a letter that is not marked is handed out again by the next redrive. If its key was
stored, it is a duplicate and gets its mark; if it was on its way, it is sent again (at most what was in flight, as with
`pinstream run`). A letter that died again is either marked and there anew, or neither.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import click

from consumer import logs
from consumer.adapters.kafka import (
    BoundedSource,
    CommitResult,
    Range,
    TransactionalWriter,
    describe,
)
from consumer.adapters.kafka.letters import LETTER_HEADERS, TRIPS, Done, own_headers
from consumer.adapters.kafka.topic_ids import TopicIds
from consumer.adapters.key_store import open_key_store
from consumer.app import building
from consumer.app.run import REFUSED_ADVICE, log_kafka_trouble, tune_memory
from consumer.app.signals import on_stop_signal
from consumer.commands.base import Command
from consumer.commands.dead_letters.choosing import (
    JSON_OPTION,
    Budget,
    Chooser,
    Chosen,
    RedriveOptions,
    filter_options,
    read_filters,
)
from consumer.commands.dead_letters.marking import LOT_LETTERS, Marker, Redriven
from consumer.commands.dead_letters.outcome import RedriveEnd, RedriveOutcome, print_redrive
from consumer.commands.dead_letters.reading import (
    TIMEOUT,
    KafkaReader,
    Marks,
    Reader,
    read_chunks,
    read_marks,
)
from consumer.commands.dead_letters.topics import DeadLetterTopic, chosen
from consumer.commands.parsing import parse_rate
from consumer.commands.replay.engine import FiniteSource, ReplayEnd, run_to_end
from consumer.commands.replay.watch import watch
from consumer.engine.messages import EndOffsets, NewLife
from consumer.engine.model import Chunk, Position, Record, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.errors import DestinationRefused, Incomplete, KafkaError, PinstreamError
from consumer.service import Service, SystemClock
from consumer.settings import Settings, load
from consumer.web.status import ledger

_CARRIED: Final = frozenset({*LETTER_HEADERS, TRIPS})
"""Headers of a letter that go with its record through the pipeline: the new letter needs them, should it die again."""


@click.command(name="redrive", cls=Command)
@filter_options
@click.option("--max", "most", type=click.IntRange(min=1), metavar="N", help="Redrive at most N letters.")
@click.option("--rate", metavar="N/s", help="How many a second at most: 100/s, 6000/m. Default: no limit.")
@click.option(
    "--max-trips",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Leave letters of records that were redriven so often already: they would go in circles.",
)
@click.option("--dry-run", is_flag=True, help="Write nothing; say what would be done.")
@JSON_OPTION
def redrive_letters(
    topics: tuple[str, ...],
    stages: tuple[str, ...],
    codes: tuple[str, ...],
    since: str | None,
    until: str | None,
    origins: tuple[str, ...],
    most: int | None,
    rate: str | None,
    max_trips: int,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Take letters through the pipeline once more, straight to the platform.

    Nothing is written to the topic that they are from: its other readers do not see them again. A letter is marked as
    done on the dead-letter topic once it is settled; what dies again becomes a letter again, in one Kafka transaction
    with that mark. So a redrive that was interrupted, or killed, is simply run again: what was delivered within
    PINSTREAM_DEDUP_WINDOW is known, and only what was on its way to the platform when it was killed may be sent again.
    What comes onto the dead-letter topic meanwhile is not touched. Exit code 1: interrupted, or it could not go on.

    Needs the settings of `pinstream run`, with its key store: run it on the same machine, or with a shared one. A dry
    run needs only the KAFKA_… settings.

    Events that happened more than an hour ago count as offline at the platform when they arrive. It does not
    deduplicate those: one that goes twice is counted twice.

    \b
    pinstream dead-letters redrive --topic orders --code unknown_currency --dry-run
    pinstream dead-letters redrive --origin orders:3:1200
    """
    filters = read_filters(stages, codes, since, until, origins)
    options = RedriveOptions(topics, filters, most, parse_rate(rate), max_trips, dry_run, as_json)
    outcome = asyncio.run(_run(options, _settings(options, os.environ)))
    print_redrive(outcome, as_json=options.as_json)
    if outcome.end is RedriveEnd.INTERRUPTED:
        raise Incomplete("interrupted: run it again to go on; what is settled is marked as done")
    if outcome.guard is not None:
        raise Incomplete(
            f"stopped: too many of the letters would be dead letters again, mostly for {outcome.guard.mostly} "
            f"({outcome.guard.cause.value}); {outcome.guard.remedy} and run it again (or set "
            "PINSTREAM_DEAD_LETTER_SHARE=1)"
        )


def _settings(options: RedriveOptions, environ: Mapping[str, str]) -> Settings:
    """A dry run takes Kafka alone, and logs nothing: what goes wrong is the line that it ends with."""
    if options.dry_run:
        return load(environ, needs=("kafka",))
    if "PINSTREAM_LOG_LEVEL" not in environ:
        # As in a replay: there is a progress bar.
        logs.mute("consumer.kafka")
    settings = load({"PINSTREAM_LOG_LEVEL": "warning", **environ}, needs=("kafka", "account", "token"))
    building.set_up_logs(settings)
    return settings


async def _run(options: RedriveOptions, settings: Settings) -> RedriveOutcome:
    stopped = asyncio.Event()
    on_stop_signal(stopped.set)
    config = settings.kafka.client_properties()
    known = (await describe(config, (), TIMEOUT)).known
    topics = chosen(settings, options.topics, known)
    reader = KafkaReader(config)
    outcome = RedriveOutcome(options.dry_run, missing=[topic.name for topic in topics if not topic.there])
    there = [topic for topic in topics if topic.there]
    try:
        if options.dry_run:
            await rehearse(options, reader, known, there, outcome)
        else:
            await Redrive(options, settings, reader, known, stopped, outcome).run(there)
    except PinstreamError:
        outcome.end = RedriveEnd.FAILED
        print_redrive(outcome, as_json=options.as_json)
        raise
    return outcome


async def rehearse(
    options: RedriveOptions,
    reader: Reader,
    known: Mapping[str, int],
    topics: Sequence[DeadLetterTopic],
    outcome: RedriveOutcome,
) -> None:
    """Choose, and write nothing: a dry run. `known`: the topics that there are, with their number of partitions."""
    budget = Budget(options.most)
    for topic in topics:
        chooser = Chooser(options, topic, reader, known, budget, outcome)
        ranges = await reader.ranges(topic.name)
        marks = await _read_marks(reader, topic, ranges, options, lambda: False)
        chooser.begin(marks)
        with watch(f"choosing {topic.name}", sum(one.end - one.begin for one in ranges)) as shown:
            async with contextlib.aclosing(read_chunks(reader, ranges, shown.show)) as chunks:
                async for chunk in chunks:
                    done = marks.done.get(chunk.partition, Done())
                    for record in chunk.records:
                        if await chooser.choose(chunk.partition, record, done) is not None:
                            chooser.tally.redriven += 1


async def _read_marks(
    reader: Reader,
    topic: DeadLetterTopic,
    ranges: Sequence[Range],
    options: RedriveOptions,
    stopped: Callable[[], bool],
) -> Marks:
    """The first pass, with a progress bar."""
    with watch(f"reading {topic.name}", sum(one.end - one.begin for one in ranges)) as shown:
        return await read_marks(reader, topic, ranges, options.filters, shown.show, stopped)


class Redrive:
    """One run. `known`: the topics that there are, with their number of partitions."""

    def __init__(
        self,
        options: RedriveOptions,
        settings: Settings,
        reader: Reader,
        known: Mapping[str, int],
        stopped: asyncio.Event,
        outcome: RedriveOutcome,
    ) -> None:
        self._options = options
        self._settings = settings
        self._config = settings.kafka.client_properties()
        self._reader = reader
        self._known = known
        self._stopped = stopped
        self._outcome = outcome
        self._budget = Budget(options.most)
        self._ranges: list[Range] = []
        self._topics: dict[str, Redriven] = {}

    async def run(self, topics: Sequence[DeadLetterTopic]) -> None:
        """All topics at once. Raises what the service raises, and `KafkaError` when another redrive takes over."""
        async with contextlib.AsyncExitStack() as stack:
            for topic in topics:
                await self._prepare(topic, stack)
            if self._stopped.is_set():
                self._outcome.end = RedriveEnd.INTERRUPTED
            else:
                await self._serve(stack)

    async def _prepare(self, topic: DeadLetterTopic, stack: contextlib.AsyncExitStack) -> None:
        """Take the topic over and read its marks."""
        chooser = Chooser(self._options, topic, self._reader, self._known, self._budget, self._outcome)
        writer = TransactionalWriter(self._config, transactional_id(topic.name), on_trouble=log_kafka_trouble)
        stack.push_async_callback(writer.close)
        # Before anything is read: from here on the marks are what this redrive makes them.
        await writer.start()
        ranges = await self._reader.ranges(topic.name)
        marks = await _read_marks(self._reader, topic, ranges, self._options, self._stopped.is_set)
        chooser.begin(marks)
        self._ranges += ranges
        homes = {one.partition: await self._reader.home(topic.name, one.partition) for one in ranges}
        self._topics[topic.name] = Redriven(chooser, writer, marks.done, homes)

    async def _serve(self, stack: contextlib.AsyncExitStack) -> None:
        """Run the service over the letters until all of them are settled."""
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
        marker = Marker(self._topics)
        pace = RedrivePace(rate, asyncio.get_running_loop().time)
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
            await self._watched(service, sources[0])
        finally:
            self._outcome.ledger = ledger(service.statistics().totals)

    async def _watched(self, service: Service, source: LettersSource) -> None:
        """Run to the end with a progress bar, and note how it ended."""
        tallies = self._outcome.tallies
        with watch("redrive", sum(one.matched for one in tallies)) as shown:

            def show() -> None:
                done = sum(one.matched - one.left for one in tallies)
                shown.show(done, f"{service.statistics().totals.delivered:,} delivered")

            ran = await run_to_end(service, source, show)
        if isinstance(ran.failure, DestinationRefused):
            raise DestinationRefused(f"{ran.failure}; {REFUSED_ADVICE}") from ran.failure
        if ran.failure is not None:
            raise ran.failure
        if ran.end is ReplayEnd.INTERRUPTED:
            self._outcome.end = RedriveEnd.INTERRUPTED
        elif ran.end is ReplayEnd.GUARDED:
            self._outcome.end, self._outcome.guard = RedriveEnd.GUARDED, ran.statistics.guard


def transactional_id(topic: str) -> str:
    """One for each dead-letter topic, so that a second redrive of it fences the first."""
    return f"pinstream.redrive.{topic}"


class RedrivePace:
    """Keeps to `rate` letters a second (None: no limit), counted from the first."""

    def __init__(self, rate: float | None, now: Callable[[], float]) -> None:
        self._rate = rate
        self._now = now
        self._begun: float | None = None
        self._gone = 0

    def at_once(self) -> int:
        """How many may be handed out together: one second's."""
        return LOT_LETTERS if self._rate is None else max(1, min(LOT_LETTERS, int(self._rate)))

    def delay(self) -> float:
        """Seconds until more may be handed out."""
        if self._begun is None:
            self._begun = self._now()
        return 0.0 if self._rate is None else self._begun + self._gone / self._rate - self._now()

    def went(self, letters: int) -> None:
        """Note that `letters` more were handed out."""
        self._gone += letters


class LettersSource:
    """Hands out the chosen letters, which `inner` reads; fits `consumer.commands.replay.engine.FiniteSource`.

    `pace` limits how many letters are handed out, whatever their outcome.
    """

    def __init__(self, inner: FiniteSource, marker: Marker, pace: RedrivePace) -> None:
        self._inner = inner
        self._marker = marker
        self._pace = pace
        self._choosing = False

    @property
    def done(self) -> bool:
        """All is handed out, or as much as was asked for.

        Not while letters are chosen: `inner` has handed them out, and the service has not got them yet.
        """
        return not self._choosing and (self._inner.done or self._spent())

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
        self._choosing = True
        try:
            chunks = [await self._chosen(chunk) for chunk in await self._inner.fetch(room, timeout)]
        finally:
            self._choosing = False
        self._pace.went(sum(len(chunk.records) for chunk in chunks))
        return [chunk for chunk in chunks if chunk.records]

    async def commit(self, positions: Sequence[Position]) -> CommitResult:
        """Mark what these positions say is settled; taken once the broker has the marks."""
        if await self._marker.settle(positions):
            return CommitResult(tuple(positions), None)
        return CommitResult((), "not marked")

    async def end_offsets(self) -> EndOffsets:
        """See `Source`."""
        return await self._inner.end_offsets()

    async def read_anew(self, partitions: Sequence[NewLife]) -> None:
        """See `Source`."""
        await self._inner.read_anew(partitions)

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
        return all(one.chooser.budget.spent() for one in self._marker.topics.values())

    async def _chosen(self, chunk: Chunk) -> Chunk:
        redriven = self._marker.topics[chunk.topic]
        done = redriven.done.get(chunk.partition, Done())
        records: list[Record] = []
        for record in chunk.records:
            one = await redriven.chooser.choose(chunk.partition, record, done)
            if one is not None:
                self._marker.handed_out(TopicPartition(chunk.topic, chunk.partition), one)
                records.append(as_record(one))
        return chunk._replace(records=records)


def as_record(chosen: Chosen) -> Record:
    """The record that died, with the headers that tell of the letter beside its own."""
    letter, original = chosen.letter, chosen.original
    carried = (header for header in letter.record.headers if header[0] in _CARRIED)
    return original._replace(timestamp=letter.timestamp, headers=(*own_headers(original.headers), *carried))
