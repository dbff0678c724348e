"""Fakes of all that the service drives: a world that outlives a process, and one process's way to it.

Theory of operation. `World` is what a crash leaves: the log, the committed offsets, the key store's keys, the
dead-letter topic, and what the API processed. The fakes are one process's hands. Each call takes a little virtual
time, may be told to raise (`broken`), and does nothing any more once the process is `dead`. The fakes check what no
caller may do: commit a partition that is not theirs, fetch more than there is room for, call after closing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from email.utils import formatdate
from typing import Any

from consumer.adapters.kafka.client_errors import ASSIGNMENT_LOST
from consumer.adapters.kafka.commits import commit_done
from consumer.engine import messages as m
from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.model import Chunk, Disposition, Instant, Policy, Position, TopicPartition
from consumer.engine.pipeline import Pipeline
from consumer.engine.reading import split_keys
from consumer.engine.receipts import Receipts
from consumer.errors import KeyStoreError
from consumer.ports import KeyStore, WrittenReceipts
from consumer.service import Service
from tests.engine.building import (
    AT_ONCE,
    TOPIC,
    UNIX,
    FakeConverter,
    answer_body,
    event_ids,
    record,
)
from tests.engine.decoder import FakeDecoder
from tests.service.virtual_time import START, now

STEP = 0.01
"""Virtual seconds that each call takes."""


class World:
    """What outlives a crash."""

    def __init__(self, **log: Sequence[bytes | None]) -> None:
        self.log: dict[int, list[bytes | None]] = {
            int(name[1:]): list(values) for name, values in log.items()
        }
        self.committed: dict[int, int] = dict.fromkeys(self.log, 0)
        self.keys: set[bytes] = set()
        self.letters: list[m.DeadLetter] = []
        self.receipts: list[tuple[int, int, Disposition, bytes]] = []
        """Of each receipt the partition, the offset, the outcome and the event's body."""
        self.processed: list[str] = []
        """The ids of events that the API processed, in order, with repetitions."""


class Process:
    """One process: its fakes, its service, and what it reported."""

    def __init__(self, world: World, *, grace: float = 25.0, **policy: Any) -> None:
        self.world = world
        self.dead = False
        self.broken: dict[str, BaseException] = {}
        """For each call's name, the error that it raises."""
        self.calls: list[str] = []
        self.reports: list[m.Report] = []
        self.api = FakeApi(self)
        self.key_store = FakeKeyStore(self)
        self.pipeline = CountingPipeline(Policy(**AT_ONCE | policy), FakeDecoder(), FakeConverter())
        self.service = Service(
            self.pipeline,
            connect=self._connect,
            api=self.api,
            key_store=self.key_store,
            schemas=FakeSchemas(self),
            dead_letters=FakeDeadLetters(self),
            receipts=FakeReceipts(self) if policy.get("receipts") else None,
            clock=fake_clock,
            report=self.reports.append,
            grace=grace,
        )

    def _connect(self, listener: Service) -> FakeSource:
        self.source = FakeSource(self, listener)
        return self.source

    async def step(self, name: str) -> None:
        """Do what every call does first: take time, and fail if it must."""
        if self.dead:
            await asyncio.Event().wait()
        self.calls.append(name)
        await asyncio.sleep(STEP)
        if name in self.broken:
            raise self.broken[name]
        if self.dead:
            await asyncio.Event().wait()

    def reported(self, name: str) -> list[m.Report]:
        """The reports with this event name."""
        return [one for one in self.reports if one.event == name]


class CountingPipeline(Pipeline):
    """Counts its inputs, so that a timer that spins shows."""

    handled = 0

    def handle(self, happened: m.Input, now: Instant) -> list[m.Command]:
        self.handled += 1
        return super().handle(happened, now)


def fake_clock() -> Instant:
    """Both clocks, taken from the loop's virtual one."""
    return Instant(now(), UNIX + now() - START)


class FakeSource:
    """A group of one member, which has all partitions of the world from the start."""

    def __init__(self, process: Process, listener: Service) -> None:
        self._process = process
        self._world = process.world
        self._listener = listener
        self._epoch = 0
        self.epochs: dict[int, int] = {}
        self.positions: dict[int, int] = {}
        self.pending = 0
        self.read_again: list[m.TopicRecreated] = []
        self.commit_time = STEP
        self.close_time = 0.0
        self.closed = False
        self.closed_with: Sequence[Position] | None = None
        self.rooms: list[int] = []

    async def start(self) -> None:
        await self._process.step("start")
        await self.assign(*self._world.log)

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        assert not self.closed
        await self._process.step("fetch")
        self.rooms.append(room)
        chunks = []
        for partition, epoch in self.epochs.items():
            begin = self.positions[partition]
            values = self._world.log[partition][begin : begin + room]
            room -= len(values)
            if values:
                records = [record(begin + n, value) for n, value in enumerate(values)]
                self.positions[partition] = begin + len(values)
                chunks.append(Chunk(TOPIC, partition, epoch, 7, records))
        if not chunks:
            await asyncio.sleep(timeout)
        return chunks

    async def commit(self, positions: Sequence[Position]) -> m.CommitDone:
        assert not self.closed
        await self._process.step("commit")
        await asyncio.sleep(self.commit_time)
        taken = self._take(positions)
        return commit_done(tuple(taken), None if len(taken) == len(positions) else ASSIGNMENT_LOST)

    async def end_offsets(self) -> m.EndOffsets:
        await self._process.step("end_offsets")
        ends = {TopicPartition(TOPIC, one): len(self._world.log[one]) for one in self.epochs}
        reached = {TopicPartition(TOPIC, one): self.positions[one] for one in self.epochs}
        return m.EndOffsets(ends, reached, self.pending, joined=True)

    async def restart_partitions(self, partitions: Sequence[m.TopicRecreated]) -> None:
        self.read_again += partitions

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        assert not self.closed, "closed twice"
        self.closed = True
        self.closed_with = positions
        if self._process.dead:
            return
        await asyncio.sleep(min(self.close_time, timeout))
        self._take(positions)
        self.epochs.clear()

    # -- the group

    async def assign(self, *partitions: int) -> None:
        """Assign these partitions, from their committed offsets on."""
        assignments = []
        for one in partitions:
            self._epoch += 1
            self.epochs[one], self.positions[one] = self._epoch, self._world.committed[one]
            assignments.append(m.Assignment(TOPIC, one, self._epoch, self.positions[one], False))
        await self._listener.assigned(assignments)

    async def revoke(self, *partitions: int) -> Sequence[Position]:
        """Revoke these partitions; return what was committed in the rebalance."""
        positions = await self._listener.revoked([TopicPartition(TOPIC, one) for one in partitions])
        self._take(positions)
        for one in partitions:
            del self.epochs[one]
        return positions

    async def lose(self, *partitions: int) -> None:
        """Report these partitions as lost."""
        for one in partitions:
            del self.epochs[one]
        await self._listener.lost([TopicPartition(TOPIC, one) for one in partitions])

    def _take(self, positions: Sequence[Position]) -> list[Position]:
        taken = [one for one in positions if one.partition in self.epochs and not self._process.dead]
        for one in taken:
            self._world.committed[one.partition] = one.next_offset
        return taken


Answering = Callable[[m.Send], Awaitable[m.Answered | m.Unanswered]]


class FakeApi:
    """Processes every event, unless a test gives it other answers."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.answering: Answering = self.accept
        self.token_changes: list[bool] = []
        self.in_flight = 0
        self.max_in_flight = 0

    async def send(
        self, command: m.Send, may_begin: Callable[[], bool] = lambda: True
    ) -> m.Answered | m.Unanswered:
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self._process.step("send")
            if not may_begin():
                return m.Unanswered(command.number, m.START_EXPIRED)
            return await self.answering(command)
        finally:
            self.in_flight -= 1

    async def ask_time(self) -> m.Answered:
        await self._process.step("ask_time")
        date = formatdate(fake_clock().unix, usegmt=True)
        return m.Answered(0, 401, {"date": date}, b'{"code":2,"message":"no"}')

    async def read_token(self) -> bool:
        await self._process.step("read_token")
        return self.token_changes.pop(0) if self.token_changes else False

    async def accept(self, command: m.Send) -> m.Answered:
        """Process all events; those whose id begins with ``bad`` fail."""
        outcomes: list[tuple[str, str | None, str | None]] = []
        for one in event_ids(command):
            bad = one.startswith("bad")
            outcomes.append(("failed", "bad", None) if bad else ("processed", None, None))
            if not bad:
                self._process.world.processed.append(one)
        await asyncio.sleep(STEP)
        return m.Answered(command.number, 200, {}, answer_body(outcomes))

    async def hang(self, command: m.Send) -> m.Answered:
        """Never answer."""
        await asyncio.Event().wait()
        raise AssertionError("an event that nobody sets was set")

    async def refuse(self, command: m.Send) -> m.Answered:
        """Refuse the token."""
        return m.Answered(command.number, 401, {}, b'{"code": 2, "message": "no"}')


class FakeKeyStore(KeyStore):
    """The world's keys."""

    def __init__(self, process: Process) -> None:
        self._process = process
        self.failures: dict[str, int] = {}
        """For each call's name, how often it fails."""
        self.evicted = self.evicted_by_server = self.lost = 0

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        await self._call("look_up")
        return bytes(key in self._process.world.keys for key in split_keys(keys))

    async def confirm(self, keys: bytes, now: float) -> bytes:
        await self._call("confirm")
        columns = split_keys(keys)
        self._process.world.keys.update(columns)
        await asyncio.sleep(STEP)
        return b"\1" * len(columns)

    async def expire(self, now: float) -> None:
        await self._call("expire")

    def statistics(self) -> KeyStoreStatistics:
        return KeyStoreStatistics(
            evicted=self.evicted, evicted_by_server=self.evicted_by_server, lost=self.lost
        )

    async def close(self) -> None:
        await asyncio.sleep(0)

    async def _call(self, name: str) -> None:
        await self._process.step(name)
        if self.failures.get(name, 0) > 0:
            self.failures[name] -= 1
            raise KeyStoreError(f"the key store cannot {name}; look at its disk")


class FakeSchemas:
    """Has every schema but the one named ``missing``."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def fetch(self, command: m.FetchSchema) -> m.SchemaFound | m.SchemaMissing | m.SchemaUnavailable:
        await self._process.step("fetch_schema")
        if command.ref.value == "missing":
            return m.SchemaMissing(command.ref)
        return m.SchemaFound(command.ref, "good")


class FakeDeadLetters:
    """The world's dead-letter topic."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def store(self, letters: Sequence[m.DeadLetter]) -> Sequence[bool]:
        await self._process.step("store")
        self._process.world.letters += letters
        await asyncio.sleep(STEP)
        return [True] * len(letters)


class FakeReceipts:
    """The world's receipts topic."""

    def __init__(self, process: Process) -> None:
        self._process = process

    async def store(self, receipts: Sequence[Receipts]) -> WrittenReceipts:
        await self._process.step("store_receipts")
        self._process.world.receipts += [
            (one.partition, record.offset, one.outcome.disposition, body)
            for one in receipts
            for record, body in zip(one.records, one.bodies, strict=True)
        ]
        await asyncio.sleep(STEP)
        return WrittenReceipts([True] * len(receipts))
