"""Reads ranges of partitions to their ends, outside of any group: for a replay, and for commands that only look.

Theory of operation. `_Reader` owns the consumer, in a thread of its own. It assigns, never subscribes: no group can
take a partition away, and none is disturbed. What one consume brings becomes one `_Lot`: the chunks, and how far each
range was read with them. The event loop takes both at once, so that an offset never counts as read before its records
are handed out.

*The end of a range* may be no record: a transaction's marker, something aborted, a hole that compaction left. So a
range is done when a record at or beyond its end comes, or when the broker says that the partition ends there or
later. Then its partition is unassigned, and what was fetched ahead of it is dropped.

*Times.* Records outside of the range's time are skipped and counted. Timestamps that the broker gave are in order: the
first that is too late ends the range. Those that producers gave are not.

*What is gone.* Retention may overtake a reader, and a partition may be truncated behind it. Going on elsewhere would
skip records silently, so both end the reading, as do a damaged batch (see `chunks`) and a partition that ends too
early for longer than `patience`.

*Room 0* waits without asking the consumer: there is no group that would expel it, and what librdkafka fetches ahead
has limits of its own. *Cancelling* a fetch loses nothing: the next one hands out what it consumed.
"""

from __future__ import annotations

import asyncio
import itertools
import time
from bisect import bisect_left
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Final, NamedTuple, Protocol

import confluent_kafka
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaException, Message
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka.chunks import DAMAGED, MOST_RECORDS, Inbox, Taken, group, take_damaged
from consumer.adapters.kafka.commits import CommitResult, raw_partition
from consumer.adapters.kafka.configuration import Config, consumer_config, make_client
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.adapters.kafka.replay_progress import NamedProgress
from consumer.adapters.kafka.topic_ids import MISSING_TOPIC, IdSource
from consumer.adapters.kafka.trouble import (
    OnTrouble,
    Teller,
    as_fatal,
    describe_error,
    exception_error,
    ignore_trouble,
    words,
)
from consumer.adapters.thread import OwnThread, post
from consumer.engine.ledger import map_place
from consumer.engine.messages import Assignment, EndOffsets, NewLife
from consumer.engine.model import Chunk, Position, Record, TopicPartition
from consumer.engine.offset_map import are_different_lives, is_void
from consumer.errors import InvariantViolation, KafkaError

_PATIENCE: Final = 30.0
"""Seconds for which a partition may end before its range does: a replica may be behind the others for a moment."""
_STILL: Final = 60.0
"""Seconds without any progress after which `scan` gives up."""
_WAIT: Final = 0.25
_CLOSE_TIMEOUT: Final = 10.0
_ID_TIMEOUT: Final = 10.0
_EVER: Final = 1 << 63

_NOT_OF_A_GROUP: Final = ("group.instance.id", "group.protocol", "group.remote.assignor")

_Code = confluent_kafka.KafkaError
_GONE: Final = frozenset({_Code._AUTO_OFFSET_RESET, _Code._LOG_TRUNCATION, _Code.OFFSET_OUT_OF_RANGE})
_MISSING: Final = MISSING_TOPIC | {_Code._UNKNOWN_PARTITION}

_epochs = itertools.count(1)


class AssignmentListener(Protocol):
    """Called with what is read, on the event loop. It must not await the source."""

    async def assigned(self, assignments: Sequence[Assignment]) -> None:
        """These are read from now on. None of their records was handed out before."""


class BoundedConsumer(Protocol):
    """What of `confluent_kafka.Consumer` is used; tests drive it with a fake."""

    def incremental_assign(self, partitions: list[RawPartition]) -> None: ...
    def incremental_unassign(self, partitions: list[RawPartition]) -> None: ...
    def consume(self, num_messages: int = ..., timeout: float = ...) -> list[Message]: ...
    def close(self) -> None: ...


class BoundedSource:
    """Reads `ranges`, one for a partition at most, each to its end; then nothing. Fits `consumer.service.RecordSource`.

    `progress` and `starts` are those of a named replay (`replay_progress.Plan`); the source closes `progress`.
    `patience`: seconds, see above. `topic_ids`: notices that a topic is created again, which ends the reading; it
    is closed with the source.
    """

    def __init__(
        self,
        config: Config,
        ranges: Sequence[Range],
        *,
        listener: AssignmentListener | None = None,
        progress: NamedProgress | None = None,
        starts: Mapping[TopicPartition, Position] = MappingProxyType({}),
        on_trouble: OnTrouble = ignore_trouble,
        patience: float = _PATIENCE,
        topic_ids: IdSource | None = None,
        make_consumer: Callable[[dict[str, Any]], BoundedConsumer] = confluent_kafka.Consumer,
    ) -> None:
        self.outside_time = 0
        """Records skipped because of their timestamp."""
        self._config = _bounded_config(config)
        self._parts = [_Part(one, starts.get(TopicPartition(one.topic, one.partition))) for one in ranges]
        self._listener = listener
        self._progress = progress
        self._on_trouble = on_trouble
        self._patience = patience
        self._topic_ids = topic_ids
        self._make_consumer = make_consumer
        self._ends = {one.name: one.range.end for one in self._parts}
        self._figures = {one.name: one.at for one in self._parts}
        self._unread = {one.name for one in self._parts if one.at < one.range.end}
        self._ready: deque[_Lot] = deque()
        self._thread = OwnThread("pinstream-kafka-bounded")
        self._reader: _Reader | None = None

    @property
    def done(self) -> bool:
        """Whether all ranges are read to their ends, and their records handed out."""
        return not self._unread

    def figures(self) -> Mapping[TopicPartition, int]:
        """Up to which offset each range was read, including what is no record and what was skipped."""
        return dict(self._figures)

    async def start(self) -> None:
        """Begin to read, and call the listener. Raises `SettingsError` for a property that librdkafka refuses."""
        loop = asyncio.get_running_loop()

        def trouble(code: str, text: str) -> None:
            post(loop, self._on_trouble, code, text)

        def make() -> _Reader:
            reader = _Reader(self._config, self._parts, self._ready, trouble, self._patience, self._topic_ids)
            try:
                reader.open(self._make_consumer)
            except BaseException:
                reader.close_ids()
                raise
            return reader

        self._reader = await self._thread.run(make)
        if self._listener is not None:
            await self._listener.assigned([one.assignment() for one in self._parts])

    async def fetch(self, room: int, timeout: float) -> list[Chunk]:
        """At most `room` (and 1000) records, as soon as there are any; none after `timeout` seconds.

        Raises `KafkaError` for what does not recover by itself.
        """
        reader = self._opened()
        if room <= 0 or self.done:
            await asyncio.sleep(timeout)
            return []
        await self._thread.run(reader.fetch, room, timeout)
        chunks: list[Chunk] = []
        while self._ready:
            lot = self._ready.popleft()
            chunks += lot.chunks
            self.outside_time += lot.outside_time
            self._figures.update(lot.figures)
            self._unread -= {name for name, at in lot.figures.items() if at >= self._ends[name]}
        return chunks

    async def commit(self, positions: Sequence[Position]) -> CommitResult:
        """Commit for the named replay: one bounded try. Without a name all count as committed; no broker is asked."""
        if self._progress is None:
            return CommitResult(tuple(positions), None)
        return await self._progress.commit(positions)

    async def read_anew(self, partitions: Sequence[NewLife]) -> None:
        """Never called, since this source reports no topic ids: a topic that is created again ends the reading."""
        raise InvariantViolation(f"{len(partitions)} ranges are to be read again; please report this")

    async def end_offsets(self) -> EndOffsets:
        """Where the ranges end: their lag is what is left of the replay. There is no group to join."""
        return EndOffsets(self._ends, self.figures(), joined=True)

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """Commit `positions`, end the client. After `timeout` seconds the thread, a daemon, is abandoned."""
        reader, self._reader = self._reader, None
        progress, self._progress = self._progress, None
        ending = [] if reader is None else [asyncio.ensure_future(self._thread.run(reader.close))]
        if progress is not None:
            ending.append(asyncio.ensure_future(self._finish(progress, positions)))
        if ending:
            await asyncio.wait(ending, timeout=timeout)
        self._thread.stop()
        if any(not one.done() for one in ending):
            self._on_trouble("_TIMED_OUT", f"closing took more than {timeout:g} s: abandoned")
        for one in ending:
            if one.done():
                one.result()
            else:
                one.cancel()

    async def _finish(self, progress: NamedProgress, positions: Sequence[Position]) -> None:
        failure = (await progress.commit(positions)).failure if positions else None
        if failure is not None:
            self._on_trouble(failure, "the last commit failed: some records will be read again")
        await progress.close()

    def _opened(self) -> _Reader:
        if self._reader is None:
            raise KafkaError(
                "the Kafka consumer is not open: start it before use, and do not use it after closing"
            )
        return self._reader


async def scan(
    config: Config,
    ranges: Sequence[Range],
    *,
    on_trouble: OnTrouble = ignore_trouble,
    still: float = _STILL,
) -> AsyncGenerator[list[Chunk], None]:
    """The records of `ranges`, to their ends, at most 1000 at a time: memory holds no more than librdkafka's queue.

    Raises `KafkaError` when brokers bring nothing new for `still` seconds. A caller that stops early calls `aclose`.
    """
    source = BoundedSource(config, ranges, on_trouble=on_trouble)
    try:
        await source.start()
        deadline = time.monotonic() + still
        while not source.done:
            before = source.figures()
            chunks = await source.fetch(MOST_RECORDS, _WAIT)
            if chunks:
                yield chunks
            if chunks or source.figures() != before:
                deadline = time.monotonic() + still
            elif time.monotonic() > deadline:
                raise KafkaError(f"Kafka: no record came for {still:g} s: check the brokers, then try again")
    finally:
        await source.close(_CLOSE_TIMEOUT)


async def read_record(
    config: Config, topic: str, partition: int, offset: int, timeout: float
) -> Record | None:
    """The record at `offset`; None if there is none (any more, or yet). Raises `KafkaError` after `timeout`."""
    everything = Bound("beginning"), Bound("end")
    [held] = await resolve_ranges(config, [topic], [str(partition)], *everything, timeout)
    if not held.begin <= offset < held.end:
        return None
    reading = scan(config, [Range(topic, partition, offset, offset + 1)], still=timeout)
    try:
        async for chunks in reading:
            return chunks[0].records[0]
    finally:
        await reading.aclose()
    return None


class _Part:
    """One range, as far as it was read. Used in the thread, except for `assignment`."""

    __slots__ = ("at", "epoch", "name", "range", "short_until", "start", "topic_id", "where")

    def __init__(self, what: Range, start: Position | None) -> None:
        self.range = what
        self.name = TopicPartition(what.topic, what.partition)
        self.where = f"{what.topic}[{what.partition}]"
        self.epoch = next(_epochs)
        self.start = start or Position(*self.name, what.begin, None)
        self.at = min(self.start.next_offset, what.end)
        """Up to where it was read."""
        self.topic_id: str | None = None
        self.short_until: float | None = None
        """Until when the partition may end before its range does; None: it does not."""

    @property
    def done(self) -> bool:
        return self.at >= self.range.end

    def assignment(self) -> Assignment:
        return Assignment(
            *self.name,
            self.epoch,
            self.start.next_offset,
            commit_start=False,
            leader_epoch=self.start.leader_epoch,
            metadata=self.start.metadata,
            topic_id=self.topic_id,
        )


class _Lot(NamedTuple):
    """What one consume brought; handed out whole."""

    chunks: list[Chunk]
    figures: dict[TopicPartition, int]
    outside_time: int


class _Reader:
    """Owns the Consumer; made, used and closed in one thread."""

    def __init__(
        self,
        config: dict[str, Any],
        parts: Iterable[_Part],
        ready: deque[_Lot],
        on_trouble: OnTrouble,
        patience: float,
        topic_ids: IdSource | None,
    ) -> None:
        self._topic_ids = topic_ids
        self._ids: Mapping[str, str] = {}
        """The topics' ids when this began."""
        self._config = config
        self._parts = {one.name: one for one in parts}
        self._ready = ready
        self._on_trouble = on_trouble
        self._tell = Teller(on_trouble)
        self._patience = patience
        self._assigned: dict[tuple[str, int], int] = {}
        """The partitions that are being read, with their epochs."""
        self._failure: KafkaError | None = None

    def open(self, make_consumer: Callable[[dict[str, Any]], BoundedConsumer]) -> None:
        """Assign what is to be read. Raises `KafkaError` if a topic was created again since its start was committed."""
        self._learn_ids()
        self._consumer = make_client(make_consumer, {**self._config, "error_cb": self._heard_by_itself})
        self._inbox = Inbox(self._consumer)
        unread = [one for one in self._parts.values() if not one.done]
        self._assigned = {one.name: one.epoch for one in unread}
        if unread:
            self._consumer.incremental_assign(
                [raw_partition(*one.name, one.at, one.start.leader_epoch) for one in unread]
            )

    def _learn_ids(self) -> None:
        self._ids = self._ask_ids()
        for part in self._parts.values():
            part.topic_id, start = self._ids.get(part.name.topic), part.start
            where = map_place(part.name)
            if is_void(start.metadata, start.next_offset, where=where, topic_id=part.topic_id):
                raise _created_again(part.name.topic, "since this replay began")

    def _ask_ids(self) -> Mapping[str, str]:
        if self._topic_ids is None:
            return {}
        try:
            return self._topic_ids.ask({one.topic for one in self._parts}, _ID_TIMEOUT)
        except KafkaException as error:  # records can be read without them
            told = exception_error(error)
            self._on_trouble(told.name(), f"the brokers do not give topic ids: {words(told)}")
            return {}

    def _look_for_ids(self) -> None:
        """Check that the topics are still those of the beginning: now and then, and once all is read."""
        if self._topic_ids is None:
            return
        done = all(one.done for one in self._parts.values())
        now = self._ask_ids() if done else self._topic_ids.look(self._ids)
        for topic, found in now.items():
            if are_different_lives(self._ids.get(topic), found):
                self._failure = self._failure or _created_again(topic, "while it was read")

    def fetch(self, room: int, timeout: float) -> None:
        """Poll, put a lot into `ready`. Raises `KafkaError` for what does not recover by itself."""
        self._raise_failure()
        if self._ready:  # a fetch was cancelled: what it consumed comes first
            return
        taken = self._inbox.take(room, timeout)
        if taken.messages:
            self._hand_over(taken)
        self._look_for_short()
        self._look_for_ids()
        self._raise_failure()

    def close(self) -> None:
        """End the client."""
        try:
            self._consumer.close()
        finally:
            self.close_ids()
        self._failure = KafkaError("the Kafka consumer is closed: create a new one")

    def close_ids(self) -> None:
        """End the client that asks for topic ids."""
        if self._topic_ids is not None:
            self._topic_ids.close()

    # ------------------------------------------------------------------------------------------- records

    def _hand_over(self, taken: Taken) -> None:
        messages, chunks, errors = taken.messages, taken.chunks(self._assigned), taken.errors
        damaged: dict[TopicPartition, confluent_kafka.KafkaError] = {}
        if errors:
            # What follows a damaged batch is not what stands there: group again without it.
            messages, damaged = take_damaged(messages)
            chunks, errors = group(messages, self._assigned)
        touched: dict[TopicPartition, _Part] = {}
        kept: list[Chunk] = []
        outside = 0
        for chunk in chunks:
            part = self._parts[TopicPartition(chunk.topic, chunk.partition)]
            touched[part.name] = part
            outside += self._cut(part, chunk.records, messages)
            if chunk.records:
                kept.append(chunk)
        if errors:
            self._hear_all(messages, touched)
        for name, error in damaged.items():
            self._heard(error, self._parts.get(name))
        # One step: an offset must not count as read before its records can be handed out.
        self._ready.append(_Lot(kept, {name: part.at for name, part in touched.items()}, outside))
        self._unassign([name for name, part in touched.items() if part.done])

    def _cut(self, part: _Part, records: list[Record], messages: list[Message]) -> int:
        """Drop from `records` what is not in the range; return how many were dropped because of their time."""
        if part.done:
            records.clear()
            return 0
        what, last = part.range, records[-1]
        part.short_until = None
        part.at = min(last.offset + 1, what.end)
        if last.offset >= what.end:
            del records[bisect_left(records, what.end, key=lambda record: record.offset) :]
        if what.since_ms is None and what.until_ms is None:
            return 0
        since = -_EVER if what.since_ms is None else what.since_ms
        until = _EVER if what.until_ms is None else what.until_ms
        before = len(records)
        records[:] = [record for record in records if since <= record[1] < until]
        # Only timestamps that the broker gave are in order: then nothing behind this one is in the range.
        if last.timestamp >= until and _stamped_by_broker(messages, part.name, last.offset):
            part.at = what.end
        return before - len(records)

    def _unassign(self, names: Sequence[TopicPartition]) -> None:
        if not names:
            return
        for name in names:
            self._assigned.pop(name, None)
        try:
            self._consumer.incremental_unassign([RawPartition(*name) for name in names])
        except KafkaException as error:  # more of it comes then, and is dropped
            self._on_trouble(exception_error(error).name(), "a single partition could not be unassigned")

    # -------------------------------------------------------------------------------------------- errors

    def _hear_all(self, messages: Iterable[Message], touched: dict[TopicPartition, _Part]) -> None:
        for message in messages:
            error = message.error()
            if error is None:
                continue
            topic, number = message.topic(), message.partition()
            part = None
            if topic is not None and number is not None:
                part = self._parts.get(TopicPartition(topic, number))
            if part is None:
                self._heard(error)
            elif part.done:
                continue
            elif error.code() == _Code._PARTITION_EOF:
                self._ended(part, int(message.offset() or 0))
                touched[part.name] = part
            else:
                self._heard(error, part)

    def _heard_by_itself(self, error: confluent_kafka.KafkaError) -> None:
        """librdkafka's `error_cb`. That an error is about a partition shows only in its text."""
        about = [self._parts[TopicPartition(*name)] for name in self._assigned]
        text = error.str()
        self._heard(
            error,
            next(
                (one for one in about if text.startswith(f"{one.name.topic} [{one.name.partition}]:")), None
            ),
        )

    def _ended(self, part: _Part, offset: int) -> None:
        """The partition ends at `offset` now."""
        part.at = max(part.at, min(offset, part.range.end))
        if not part.done:
            part.short_until = part.short_until or time.monotonic() + self._patience

    def _look_for_short(self) -> None:
        now = time.monotonic()
        for name in self._assigned:
            part = self._parts[TopicPartition(*name)]
            if part.short_until is not None and now >= part.short_until:
                self._fail(
                    f"{part.where} ends at offset {part.at} now, and ended at {part.range.end} when this began: "
                    "the brokers lost records; check them, then start again"
                )

    def _heard(self, error: confluent_kafka.KafkaError, part: _Part | None = None) -> None:
        told = describe_error(error)
        if part is not None and error.code() in _GONE:
            self._fail(
                f"{part.where} cannot be read further than offset {part.at}, which was deleted meanwhile (retention, "
                f"delete-records) or truncated: start again, from `beginning` for what is left, "
                f"and under another --name if it has one ({told})"
            )
        elif part is not None and error.code() in DAMAGED:
            if not part.done:
                self._fail(
                    f"{part.where} cannot be read further than offset {part.at}: the broker sent damaged data; run "
                    f"it again; if it fails again, check the broker's disk, or begin after the damaged batch ({told})"
                )
        elif part is not None and error.code() in _MISSING:
            self._fail(f"{part.where} does not exist any more: it was deleted while it was read ({told})")
        elif (fatal := as_fatal(error)) is not None:
            self._failure = self._failure or fatal
        else:
            self._tell(error)

    def _fail(self, text: str) -> None:
        self._failure = self._failure or KafkaError(f"Kafka: {text}")

    def _raise_failure(self) -> None:
        if self._failure is not None:
            raise self._failure


def _bounded_config(config: Config) -> dict[str, Any]:
    user = {name: value for name, value in config.items() if name not in _NOT_OF_A_GROUP}
    return {**consumer_config(user, offset_reset="error", ignore=None), "enable.partition.eof": True}


def _stamped_by_broker(messages: Iterable[Message], name: TopicPartition, offset: int) -> bool:
    """Whether the broker set the timestamp of this record."""
    return any(
        message.offset() == offset
        and (message.topic(), message.partition()) == name
        and message.timestamp()[0] == TIMESTAMP_LOG_APPEND_TIME
        for message in messages
    )


def _created_again(topic: str, when: str) -> KafkaError:
    return KafkaError(
        f"Kafka: the topic {topic} was deleted and created again {when}: its offsets belong to another log now. "
        "Start again, under another --name if it has one"
    )
