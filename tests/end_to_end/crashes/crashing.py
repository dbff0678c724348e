"""``python -m tests.end_to_end.crashes.crashing POINT [-n N] run``: the product, killing itself at one point.

Theory of operation. It replaces, in this process only, the one method of an adapter or of the service at which POINT
lies by one that does the same and, when the point is come to the N-th time, writes a line of evidence to stderr and
sends its own process SIGKILL: nothing is flushed, nobody is told, no ``finally`` runs. Then it calls the product's
own ``main``. The product knows nothing of it. Where it can, it stays at its last point for `DWELL`, all else going on.
The points, in the order of a record's way:

===========  ==============================================================================================
fetched      records came from Kafka; the core has not seen them
unsent       a call is to be made; not a byte of it is written
half_sent    half of a call's body is written: the API never sees the whole
unread       the API has processed the call and its status line is here; its answer is not read
answered     the answer is read; the core has not seen it
storing      half of a chunk of keys is in the key store's journal
stored       keys are durable; the core does not know
uncommitted  a commit is to be sent; it is not
committing   the broker has taken a commit; we have not noted it
refused      dead letters are to be written; none is handed to the producer
written      the broker has acknowledged a dead letter; the report of it is not passed on
unreceipted  receipts are to be written; none is handed to the producer
receipted    the broker has acknowledged receipts; the core does not know
revoked      a revocation has begun to drain while answers are held back
===========  ==============================================================================================

``late`` kills nothing: it holds all answers back until the process has released a partition and SIGUSR1 comes.
Under ``revoked`` and ``late`` lines also tell of each commit as it is handed to librdkafka, and of each partition let
go of.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import confluent_kafka
from aiohttp.abc import AbstractStreamWriter

from consumer.adapters import conversions_api
from consumer.adapters.conversions_api import Body, ConversionsApi
from consumer.adapters.kafka.commits import SentCommits
from consumer.adapters.kafka.dead_letters import DeadLetterProducer
from consumer.adapters.kafka.letters import NewRecord
from consumer.adapters.kafka.member import GroupMember
from consumer.adapters.kafka.producers import PolledProducer
from consumer.adapters.kafka.source import KafkaSource
from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.files import Journal
from consumer.adapters.receipts.writer import ReceiptProducer
from consumer.engine.messages import Answered, Send
from consumer.engine.reading import KEY_BYTES, split_keys
from consumer.service import Service
from tests.support import switches


def report(event: str, **evidence: Any) -> None:
    """Write one line to stderr in a single write, so that it is there whatever happens next."""
    os.write(2, json.dumps({"event": event, **evidence}).encode() + b"\n")


DWELL = 1.0
"""Seconds that the process stays at its last point while everything else goes on: many times its commit
interval, so that a process which settles an event too early has committed past it when it dies."""


class Crash:
    """Counts how often the point was reached; the process ends at the N-th time."""

    def __init__(self, times: int) -> None:
        self._times = self._left = times

    async def linger(self, **evidence: Any) -> None:
        """The point, on the event loop. Returns unless this is the N-th time."""
        if self._is_last():
            await asyncio.sleep(DWELL)
            self._die(evidence)

    def block(self, **evidence: Any) -> None:
        """The point, in another thread than the event loop's. Returns unless this is the N-th time."""
        if self._is_last():
            time.sleep(DWELL)
            self._die(evidence)

    def now(self, **evidence: Any) -> None:
        """The point, where the process must die at once. Returns unless this is the N-th time."""
        if self._is_last():
            self._die(evidence)

    def _is_last(self) -> bool:
        self._left -= 1
        return self._left == 0

    def _die(self, evidence: Mapping[str, Any]) -> None:
        report("crash_point", times=self._times, **evidence)
        os.kill(os.getpid(), signal.SIGKILL)


def replace(owner: Any, name: str, make: Callable[[Any], Any]) -> None:
    """Replace an attribute by ``make(earlier value)``."""
    setattr(owner, name, make(getattr(owner, name)))


def event_ids(body: bytes) -> list[str]:
    """The ids of the events in a call."""
    return [one["event_id"] for one in json.loads(body)["data"]]


def raw_positions(positions: Iterable[confluent_kafka.TopicPartition]) -> list[tuple[int, int, str]]:
    """Partition, offset and metadata of each."""
    return [(one.partition, one.offset, one.metadata or "") for one in positions]


# --------------------------------------------------------------------------------------------- the points


def fetched(crash: Crash) -> None:
    """After a fetch that brought records."""

    def make(real: Any) -> Any:
        async def fetch(self: KafkaSource, room: int, timeout: float) -> Any:
            chunks = await real(self, room, timeout)
            if chunks:
                await crash.linger(records=sum(len(chunk.records) for chunk in chunks))
            return chunks

        return fetch

    replace(KafkaSource, "fetch", make)


def unsent(crash: Crash) -> None:
    """Before a call."""

    def make(real: Any) -> Any:
        async def send(self: ConversionsApi, command: Send, *rest: Any) -> Any:
            await crash.linger(events=event_ids(command.body))
            return await real(self, command, *rest)

        return send

    replace(ConversionsApi, "send", make)


def half_sent(crash: Crash) -> None:
    """In the middle of a call's body: aiohttp gives the first half to the socket before it takes the second."""

    def make(_: Any) -> Any:
        async def write(self: Body, writer: AbstractStreamWriter) -> None:
            body = b"".join(self.parts)
            middle = len(body) // 2
            await writer.write(body[:middle])
            await crash.linger(events=event_ids(body))
            await writer.write(body[middle:])

        return write

    replace(Body, "write", make)


def unread(crash: Crash) -> None:
    """Before the body of an answer is read. (The events of the call are among those that the API has accepted.)"""

    def make(real: Any) -> Any:
        async def read(response: Any) -> Any:
            await crash.linger(status=response.status)
            return await real(response)

        return read

    replace(conversions_api, "_read", make)


def answered(crash: Crash) -> None:
    """After an answer, before the engine gets it."""

    def make(real: Any) -> Any:
        async def send(self: ConversionsApi, command: Send, *rest: Any) -> Any:
            answer = await real(self, command, *rest)
            if isinstance(answer, Answered) and answer.status == 200:
                await crash.linger(events=event_ids(command.body))
            return answer

        return send

    replace(ConversionsApi, "send", make)


def storing(crash: Crash) -> None:
    """When half of a chunk is in the key store's journal."""

    def make(real: Any) -> Any:
        def commit(self: Journal) -> None:
            before = self.chunks(0, self.acknowledged())
            entries = sum(len(keys) // KEY_BYTES for _, keys in before)
            os.pwrite(self._file_number, self._waiting[: len(self._waiting) // 2], self._written)
            crash.block(entries=entries + len(self._waiting) // KEY_BYTES)
            real(self)

        return commit

    replace(Journal, "commit", make)


def stored(crash: Crash) -> None:
    """After keys have become durable, before the engine learns of it."""

    def make(real: Any) -> Any:
        async def confirm(self: DiskKeyStore, keys: bytes, now: float) -> bytes:
            stored: bytes = await real(self, keys, now)
            await crash.linger(keys=[key.hex() for key in split_keys(keys)])
            return stored

        return confirm

    replace(DiskKeyStore, "confirm", make)


def uncommitted(crash: Crash) -> None:
    """Before a commit is sent."""

    def make(real: Any) -> Any:
        def send_commit(self: GroupMember, positions: Any, *rest: Any) -> None:
            crash.block(positions=[(one.partition, one.next_offset, one.metadata) for one in positions])
            real(self, positions, *rest)

        return send_commit

    replace(GroupMember, "send_commit", make)


def committing(crash: Crash) -> None:
    """When the broker's answer to a commit arrives."""

    def make(real: Any) -> Any:
        def on_commit(self: SentCommits, error: Any, partitions: Any) -> None:
            if error is None:
                crash.now(positions=raw_positions(partitions))
            real(self, error, partitions)

        return on_commit

    replace(SentCommits, "on_commit", make)


def refused(crash: Crash) -> None:
    """Before dead letters are written."""

    def make(real: Any) -> Any:
        async def store(self: DeadLetterProducer, letters: Any) -> Any:
            await crash.linger(letters=[[one.partition, one.record.offset] for one in letters])
            return await real(self, letters)

        return store

    replace(DeadLetterProducer, "store", make)


def written(crash: Crash) -> None:
    """When the broker's acknowledgement of a dead letter arrives."""

    def make(real: Any) -> Any:
        def produce(self: PolledProducer, record: NewRecord, on_report: Any) -> None:
            was_reported: dict[str, Any] = dict(record.headers)
            place = [int(was_reported["pinstream.partition"]), int(was_reported["pinstream.offset"])]

            def reported(error: Any) -> None:
                if error is None:
                    crash.block(letters=[place])
                on_report(error)

            real(self, record, reported)

        return produce

    replace(PolledProducer, "produce", make)


def _of_receipts(crash: Crash, *, before: bool) -> None:
    """Around a write of receipts."""

    def make(real: Any) -> Any:
        async def store(self: ReceiptProducer, receipts: Any) -> Any:
            places = [[one.partition, record.offset] for one in receipts for record in one.records]
            if before:
                await crash.linger(receipts=places)
            answer = await real(self, receipts)
            if not before:
                await crash.linger(receipts=places)
            return answer

        return store

    replace(ReceiptProducer, "store", make)


def unreceipted(crash: Crash) -> None:
    """Before receipts are written."""
    _of_receipts(crash, before=True)


def receipted(crash: Crash) -> None:
    """When the broker has acknowledged receipts, and the core has not heard of it."""
    _of_receipts(crash, before=False)


# ------------------------------------------------------------------------------- revoked, answers held back


class HeldCommits:
    """Calls whose answers are held back until `free` is set, so that they stay in flight for as long as a test
    needs."""

    def __init__(self) -> None:
        self.free = asyncio.Event()
        self.calls: dict[int, list[str]] = {}

    def install(self) -> None:
        """From now on hold answers back."""

        def make(real: Any) -> Any:
            async def send(api: ConversionsApi, command: Send, *rest: Any) -> Any:
                answer = await real(api, command, *rest)
                if not self.free.is_set():
                    self.calls[command.number] = event_ids(command.body)
                    await self.free.wait()
                    report("late_answer", events=self.calls.pop(command.number))
                return answer

            return send

        replace(ConversionsApi, "send", make)

    @property
    def events(self) -> list[str]:
        """The ids of all events that the API has answered while the process has not received the answer."""
        return [one for call in self.calls.values() for one in call]


def revoked(crash: Crash) -> None:
    """After a revocation that took partitions, when the drain has begun."""
    watch_consumer()
    held = HeldCommits()
    held.install()

    def make(real: Any) -> Any:
        async def revoked(self: Service, partitions: Any) -> Any:
            draining = asyncio.ensure_future(real(self, partitions))
            await asyncio.sleep(0)  # its first step: the core is told, and drains
            crash.now(events=held.events, partitions=[one.partition for one in partitions])
            return await draining

        return revoked

    replace(Service, "revoked", make)


def late(_: Crash) -> None:
    """After a revocation, answers arrive when SIGUSR1 does."""
    watch_consumer()
    held = HeldCommits()
    held.install()

    def make(real: Any) -> Any:
        async def revoked(self: Service, partitions: Any) -> Any:
            positions = await real(self, partitions)
            asyncio.get_running_loop().add_signal_handler(signal.SIGUSR1, held.free.set)
            report("released", events=held.events, partitions=[one.partition for one in partitions])
            return positions

        return revoked

    replace(Service, "revoked", make)


class WatchedConsumer(confluent_kafka.Consumer):
    """Reports what it is asked to commit and to unassign."""

    def commit(self, *args: Any, **options: Any) -> Any:
        """Report, then commit."""
        report("commit", positions=raw_positions(options["offsets"]))
        return super().commit(*args, **options)

    def incremental_unassign(self, partitions: Any) -> None:
        """Report, then unassign."""
        report("let_go", partitions=[one.partition for one in partitions])
        super().incremental_unassign(partitions)


def watch_consumer() -> None:
    """Make every group member use a `WatchedConsumer`."""

    def make(real: Any) -> Any:
        def init(self: GroupMember, *args: Any, **options: Any) -> None:
            real(self, *args, **{**options, "make_consumer": WatchedConsumer})

        return init

    replace(GroupMember, "__init__", make)


POINTS: dict[str, Callable[[Crash], None]] = {
    point.__name__: point
    for point in (
        *(fetched, unsent, half_sent, unread, answered, storing, stored, uncommitted, committing),
        *(refused, written, unreceipted, receipted, revoked, late),
    )
}


def main() -> None:
    """Set the hook, then run the product. The command may also be written in full: ``python -m consumer run``."""
    parser = argparse.ArgumentParser(usage="crashing POINT [-n N] COMMAND ...", description=__doc__)
    parser.add_argument("point", choices=POINTS)
    parser.add_argument("-n", type=int, default=1, help="die there the N-th time")
    words = sys.argv[1:]
    ours = 3 if words[1:2] == ["-n"] else 1  # the rest is the product's, its options too
    arguments = parser.parse_args(words[:ours])
    command = words[ours:]
    if "consumer" in command:
        command = command[command.index("consumer") + 1 :]
    switches.apply()
    POINTS[arguments.point](Crash(arguments.n))

    from consumer.commands import main as product

    product(args=command, prog_name="pinstream")


if __name__ == "__main__":
    main()
