"""Reads ranges of partitions to their ends, outside of any group: for a replay, and for commands that only look.

The consumer lives in a thread of its own. What one consume brings becomes one `_Lot`: the chunks, and how far the
ranges are read with them. The event loop takes chunks and figures together, so that an offset never counts as read
before its records are handed out.

A range is done when a record at or beyond its end comes, or when the broker says that the partition ends there or
later. Then its partition is unassigned, and what was fetched ahead of it is dropped.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import time
from bisect import bisect_left
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple

import confluent_kafka
from confluent_kafka import TIMESTAMP_LOG_APPEND_TIME, KafkaException, Message
from confluent_kafka import TopicPartition as RawPartition

from consumer.adapters.kafka import client_errors
from consumer.adapters.kafka.chunks import MAX_RECORDS, Inbox, Taken
from consumer.adapters.kafka.commits import raw_partition
from consumer.adapters.kafka.configuration import Config, consumer_config, make_client
from consumer.adapters.kafka.hooks import AssignmentListener
from consumer.adapters.kafka.ranges import Bound, Range, resolve_ranges
from consumer.adapters.kafka.replay_progress import NamedProgress
from consumer.adapters.kafka.topic_ids import TopicIdWatch
from consumer.adapters.thread import OwnThread, post
from consumer.engine.messages import Assignment, CommitDone, EndOffsets, TopicRecreated
from consumer.engine.model import Chunk, Position, Record, TopicPartition
from consumer.engine.records.offset_map import are_different_topics, is_void
from consumer.errors import KafkaError, UsageError, bug

_STILL: Final = 60.0
"""Seconds without any progress after which `scan` gives up."""
_WAIT: Final = 0.25
_CLOSE_TIMEOUT: Final = 10.0
_ID_TIMEOUT: Final = 10.0

_OF_A_GROUP: Final = ("group.instance.id", "group.protocol", "group.remote.assignor")

_Code = confluent_kafka.KafkaError
_GONE: Final = frozenset({_Code._AUTO_OFFSET_RESET, _Code._LOG_TRUNCATION, _Code.OFFSET_OUT_OF_RANGE})
_MISSING: Final = client_errors.MISSING_TOPIC | {_Code._UNKNOWN_PARTITION}

_epochs = itertools.count(1)


@dataclass(slots=True)
class _Part:
    """One range and how far it was read. Only the thread changes it."""

    name: TopicPartition
    range: Range
    at: int
    """The offset up to which it was read."""
    topic_id: str | None = None
    """The topic's id when the reading began."""
    short_until: float | None = None
    """Time (monotonic) until which the partition may end before its range does; None: it does not end before it."""
    epoch: int = field(default_factory=_epochs.__next__)

    @property
    def done(self) -> bool:
        """Return whether the range was read to its end."""
        return self.at >= self.range.end


class _Lot(NamedTuple):
    """What one consume brought: the chunks, how far each range is read, and records skipped because of their time."""

    chunks: list[Chunk]
    figures: dict[TopicPartition, int]
    outside_time: int


@dataclass(eq=False, repr=False)  # the configuration holds passwords
class BoundedSource:
    """Reads `ranges`, at most one for each partition, each to its end. Fits `consumer.ports.RecordSource`.

    `progress` and the starts of the ranges belong to a named replay (`replay_progress.Plan`).
    """

    config: Config
    ranges: Sequence[Range]
    _: KW_ONLY
    listener: AssignmentListener | None = None
    progress: NamedProgress | None = None
    """The progress of a named replay. Closed with the source."""
    on_error: client_errors.OnError = client_errors.ignore_error
    patience: float = 30.0
    """Seconds for which a partition may end before its range does: a replica may be behind the others for a moment."""
    topic_ids: TopicIdWatch | None = None
    """Notices that a topic is created again, which ends the reading. Closed with the source."""
    make_consumer: Callable[[dict[str, Any]], confluent_kafka.Consumer] = confluent_kafka.Consumer

    def __post_init__(self) -> None:
        self.outside_time = 0
        """Records skipped because of their timestamp."""
        self._parts: dict[tuple[str | None, int | None], _Part] = {}
        for one in self.ranges:
            # A named replay may have settled its range to the end: then no record of it is read.
            self._parts[one.name] = _Part(one.name, one, min(one.first.next_offset, one.end))
        parts = self._parts.values()
        self.figures: Mapping[TopicPartition, int] = {one.name: one.at for one in parts}
        """The offset up to which each range was read; transaction markers, holes and skipped records count as read."""
        self._ends = {one.name: one.range.end for one in parts}
        self._lot: _Lot | None = None
        """The lot of the last consume, until it is handed out."""
        self._thread = OwnThread("pinstream-kafka-bounded")
        self._is_open = False
        # Used only in the thread:
        self._reading = {one.name: one for one in parts if not one.done}
        """The partitions that are assigned."""
        self._failure: KafkaError | None = None

    @property
    def done(self) -> bool:
        """Return whether all ranges are read to their ends, and their records handed out."""
        return self.figures == self._ends  # no figure goes beyond its end

    async def start(self) -> None:
        """Begin to read, and report the partitions to the listener as assigned.

        Raises `SettingsError` for a property that librdkafka refuses, and `KafkaError` if a topic was created again
        since its start was committed.
        """
        self._post_error = partial(post, asyncio.get_running_loop(), self.on_error)
        await self._thread.run(self._open)
        self._is_open = True
        if self.listener is not None:
            given = []
            for part in self._parts.values():
                _, _, begin, leader_epoch, metadata = part.range.first
                given.append(
                    Assignment(*part.name, part.epoch, begin, False, leader_epoch, metadata, part.topic_id)
                )
            await self.listener.assigned(given)

    async def fetch(self, room: int, timeout: float) -> list[Chunk]:
        """Return up to `room` records (`chunks.MAX_RECORDS` at most), once there are some or after `timeout` seconds.

        Raises `KafkaError` for what does not recover by itself.
        """
        if not self._is_open:
            raise KafkaError(client_errors.NOT_OPEN)
        if room <= 0 or self.done:
            # Without room the consumer is not polled: it is in no group that would expel it, and librdkafka limits what
            # it fetches ahead.
            await asyncio.sleep(timeout)
            return []
        # Cancelling this loses nothing: the next fetch hands out what the thread has consumed.
        await self._thread.run(self._fetch, room, timeout)
        lot, self._lot = self._lot, None
        if lot is None:
            return []
        self.outside_time += lot.outside_time
        self.figures = lot.figures
        return lot.chunks

    async def commit(self, positions: Sequence[Position]) -> CommitDone:
        """Commit the positions of a named replay: one bounded try. Without a name, no broker is asked and all
        positions count as committed."""
        if self.progress is None:
            return CommitDone(positions)
        return await self.progress.commit(positions)

    async def restart_partitions(self, partitions: Sequence[TopicRecreated]) -> None:
        """Raise an error: a source that reports no topic ids is never asked to. A topic that is created again ends
        the reading."""
        raise bug(f"{len(partitions)} ranges are to be read again")

    async def end_offsets(self) -> EndOffsets:
        """Return where the ranges end: their lag is what is left of the replay. There is no group to join."""
        return EndOffsets(self._ends, self.figures, joined=True)

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """Commit `positions` and close the client. After `timeout` seconds the thread, a daemon, is abandoned."""
        is_open, self._is_open = self._is_open, False

        async def finish(progress: NamedProgress) -> None:
            failure = (await progress.commit(positions)).failure if positions else None
            if failure is not None:
                self.on_error(failure, "the last commit failed: some records will be read again")
            await progress.close()

        ending = [self._thread.run(self._end)] if is_open else []
        if self.progress is not None:
            ending.append(finish(self.progress))
        try:
            # Both at the same time: a consumer that closes slowly must not use up the time of the last commit.
            async with asyncio.timeout(timeout):
                await asyncio.gather(*ending)
        except TimeoutError:
            self.on_error("_TIMED_OUT", f"closing took more than {timeout:g} s: abandoned")
        finally:
            self._thread.stop()

    # ------------------------------------------------------------------------- what follows runs in the thread

    def _open(self) -> None:
        with contextlib.ExitStack() as stack:
            if self.topic_ids is not None:
                stack.callback(self.topic_ids.close)
            ids = self._ask_ids()
            for part in self._parts.values():
                part.topic_id = ids.get(part.name.topic)
                if is_void(part.range.first, part.topic_id):
                    raise _created_again(part.name.topic, "since this replay began")
            self._report_error = client_errors.ErrorReporter(self._post_error)
            # The client assigns and never subscribes: no group can revoke a partition, and no group is disturbed.
            user = {name: value for name, value in self.config.items() if name not in _OF_A_GROUP}
            complete = consumer_config(user, offset_reset="error", ignore=None)
            # No record may stand at the end of a range: there may be a transaction's marker, an aborted record, or a
            # hole that compaction left.
            complete |= {"enable.partition.eof": True, "error_cb": self._on_client_error}
            self._consumer = make_client(self.make_consumer, complete)
            stack.callback(self._consumer.close)
            self._inbox = Inbox(self._consumer, gather=0.0)
            places = [
                raw_partition(*one.name, one.at, one.range.first.leader_epoch)
                for one in self._reading.values()
            ]
            if places:
                self._consumer.incremental_assign(places)
            for place, one in zip(places, self._reading.values(), strict=True):
                # A log that was cut, and has grown again since, shows at a seek alone: see `held`.
                if one.range.first.leader_epoch is not None:
                    self._consumer.seek(place)
            self._end = stack.pop_all().close  # if any step above fails, all is closed at once

    def _fetch(self, room: int, timeout: float) -> None:
        """Poll, and put what came into `_lot`. Raises `KafkaError` for what does not recover by itself."""
        if self._failure is not None:
            raise self._failure
        if self._lot is not None:  # a fetch was cancelled: hand out what it consumed first
            return
        taken = self._inbox.take(room, min(timeout, _WAIT))
        if taken.messages:
            self._hand_over(taken)
        now = time.monotonic()
        for part in self._reading.values():
            # A replica may be behind the others for a moment. For longer, records are missing.
            if part.short_until is not None and now >= part.short_until:
                self._failure = self._failure or KafkaError(
                    f"Kafka: {part.name} ends at offset {part.at} now, and ended at {part.range.end} when this began: "
                    "the brokers lost records; check them, then start again"
                )
        if self.topic_ids is not None:
            known = {one.name.topic: one.topic_id for one in self._parts.values() if one.topic_id}
            # Once all is read, wait for the answer: it decides whether the records were of the topic that was asked
            # for.
            ids = self.topic_ids.poll(known) if self._reading else self._ask_ids()
            for topic, found in ids.items():
                if are_different_topics(known.get(topic), found):
                    self._failure = self._failure or _created_again(topic, "while it was read")
        if self._failure is not None:
            raise self._failure

    def _hand_over(self, taken: Taken) -> None:
        # Omit what librdkafka had fetched ahead of a partition that is unassigned by now.
        chunks = taken.chunks({name: part.epoch for name, part in self._reading.items()}.get)
        outside = 0
        for chunk in chunks:
            outside += self._cut(self._parts[chunk.topic, chunk.partition], chunk.records, taken.messages)
        for message in taken.errors:
            error, part = message.error(), self._parts.get((message.topic(), message.partition()))
            if error is not None and part is not None and error.code() == _Code._PARTITION_EOF:
                # At present the partition ends at this offset.
                part.at = max(part.at, min(int(message.offset() or 0), part.range.end))
                if not part.done:
                    part.short_until = part.short_until or time.monotonic() + self.patience
            elif error is not None:
                self._on_error(error, part)
        for name, error in taken.damaged.items():
            self._on_error(error, self._parts.get(name))
        figures = {part.name: part.at for part in self._parts.values()}
        self._lot = _Lot([one for one in chunks if one.records], figures, outside)
        done = [self._reading.pop(name) for name, part in list(self._reading.items()) if part.done]
        try:
            if done:
                self._consumer.incremental_unassign([RawPartition(*one.name) for one in done])
        except KafkaException as failure:  # then more of its records come, and are dropped
            self._post_error(
                client_errors.cause_of(failure).name(), "a single partition could not be unassigned"
            )

    def _cut(self, part: _Part, records: list[Record], messages: Sequence[Message]) -> int:
        """Remove from `records` those outside of the range; return how many were removed because of their time."""
        if part.done:  # fetched ahead before the partition was unassigned
            records.clear()
            return 0
        what, last = part.range, records[-1]
        part.short_until = None
        part.at = min(last.offset + 1, what.end)
        if last.offset >= what.end:
            del records[bisect_left(records, what.end, key=lambda record: record.offset) :]
        if what.since_ms is None and what.until_ms is None:
            return 0
        since = float("-inf") if what.since_ms is None else what.since_ms
        until = float("inf") if what.until_ms is None else what.until_ms
        before = len(records)
        records[:] = [record for record in records if since <= record.timestamp < until]
        # Timestamps that the broker set are in order, so the first one that is too late ends the range. Timestamps that
        # producers set need not be in order.
        if last.timestamp >= until and any(
            message.offset() == last.offset
            and (message.topic(), message.partition()) == part.name
            and message.timestamp()[0] == TIMESTAMP_LOG_APPEND_TIME
            for message in messages
        ):
            part.at = what.end
        return before - len(records)

    def _ask_ids(self) -> Mapping[str, str]:
        if self.topic_ids is None:
            return {}
        try:
            return self.topic_ids.ask({one.name.topic for one in self._parts.values()}, _ID_TIMEOUT)
        except KafkaException as error:  # records can be read without ids
            cause = client_errors.cause_of(error)
            self._post_error(cause.name(), f"the brokers do not give topic ids: {client_errors.words(cause)}")
            return {}

    # -------------------------------------------------------------------------------------------- errors

    def _on_client_error(self, error: confluent_kafka.KafkaError) -> None:
        """Handle an error as librdkafka's `error_cb`. Only its text says which partition it is about, if any."""
        text = error.str()
        about = (
            one for name, one in self._reading.items() if text.startswith(f"{name.topic} [{name.partition}]:")
        )
        self._on_error(error, next(about, None))

    def _on_error(self, error: confluent_kafka.KafkaError, part: _Part | None) -> None:
        said, code = client_errors.describe_error(error), error.code()
        if part is not None and part.done:  # errors behind the end of the range do not matter
            return
        # The client asks for the coordinator of its group although it never joins: a refusal does no harm.
        if code == _Code.GROUP_AUTHORIZATION_FAILED:
            return
        # Retention may overtake a reader, and a partition may be truncated behind it. Going on at another offset would
        # skip records silently, so both end the reading, as does a damaged batch.
        failure = client_errors.as_fatal(error)
        if part is not None and code in _GONE:
            why = "that was deleted (retention, delete-records)"
            start = "`beginning` for what is left"
            if (cut := client_errors.cut_at(error)) is not None:
                why = f"its log was cut at offset {cut}, by a leader that lacked the records from there on"
                start = f"`offset:{cut}`"
            failure = KafkaError(
                f"Kafka: {part.name} cannot be read further than offset {part.at}: {why}. Start again from {start}, "
                f"and under another --name if it has one ({said})"
            )
        elif part is not None and code in client_errors.DAMAGED:
            failure = KafkaError(
                f"Kafka: {part.name} cannot be read further than offset {part.at}: the broker sent damaged data; run "
                f"it again; if it fails again, check the broker's disk, or begin after the damaged batch ({said})"
            )
        elif part is not None and code in _MISSING:
            failure = KafkaError(
                f"Kafka: {part.name} does not exist any more: it was deleted while it was read ({said})"
            )
        if failure is None:
            self._report_error(error)
        self._failure = self._failure or failure


def _created_again(topic: str, when: str) -> KafkaError:
    return KafkaError(
        f"Kafka: the topic {topic} was deleted and created again {when}: its offsets belong to another log now. "
        "Start again, under another --name if it has one"
    )


async def scan(
    config: Config,
    ranges: Sequence[Range],
    *,
    still: float = _STILL,
) -> AsyncGenerator[list[Chunk], None]:
    """Yield the records of `ranges` to their ends, as they are fetched: memory holds no more than librdkafka's queue.

    Raises `KafkaError` when brokers bring nothing new for `still` seconds. A caller that stops early calls `aclose`.
    """
    source = BoundedSource(config, ranges)
    try:
        await source.start()
        deadline = time.monotonic() + still
        while not source.done:
            before = source.figures
            chunks = await source.fetch(MAX_RECORDS, _WAIT)
            if chunks:
                yield chunks
            if chunks or source.figures != before:
                deadline = time.monotonic() + still
            elif time.monotonic() > deadline:
                raise KafkaError(f"Kafka: no record came for {still:g} s: check the brokers, then try again")
    finally:
        await source.close(_CLOSE_TIMEOUT)


async def read_record(
    config: Config, topic: str, partition: int, offset: int, timeout: float
) -> Record | None:
    """Return the record at `offset`; None if there is none: it was deleted or not written yet, or its topic or
    partition is gone. Raises `KafkaError` after `timeout`."""
    everything = Bound("beginning"), Bound("end")
    try:
        [held] = await resolve_ranges(config, [topic], [str(partition)], *everything, timeout)
    except UsageError:
        return None
    if not held.begin <= offset < held.end:
        return None
    place = held._replace(begin=offset, end=offset + 1)
    async with contextlib.aclosing(scan(config, [place], still=timeout)) as reading:
        async for chunks in reading:
            return chunks[0].records[0]
    return None
