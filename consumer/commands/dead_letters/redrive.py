"""Letters go back to the topic they came from, each once.

The way of a redrive, for one dead-letter topic after the other::

    take over the transactional id (ends what a killed redrive left open, fences one that still lives)
      -> the topic's end, fixed -> first pass: marks -> second pass, partition by partition in order:
         each letter stays, or goes into the lot
      -> a full lot is one transaction: the copies, and the mark that says of their letters that they are done

So at every moment a letter is either marked and its copy is there, or neither: killed wherever it may be, it is run
again and goes on with what is not marked. A copy gets a timestamp of now, as letters do: with the record's own,
retention could delete it at once.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

from consumer.adapters.kafka import NewRecord, Range
from consumer.adapters.kafka.letters import Done, headers_back
from consumer.commands.base import pause
from consumer.commands.dead_letters.choosing import (
    Budget,
    Chooser,
    Chosen,
    RedriveOptions,
    going,
    mark,
    runs_of,
)
from consumer.commands.dead_letters.outcome import End, Outcome, Tally
from consumer.commands.dead_letters.reading import Reader, Unread, read_marks
from consumer.commands.dead_letters.topics import DeadLetterTopic
from consumer.commands.replay.watch import Watch, watch
from consumer.errors import KafkaError

LOT_LETTERS = 500
LOT_BYTES = 1 << 20
"""What one transaction holds at most (one larger letter makes a lot of its own): it must be over within seconds."""


class Writer(Protocol):
    """Writes lots; see `consumer.adapters.kafka.Redriver`."""

    async def start(self) -> None:
        """Take over from whoever redrives this topic."""

    async def put_back(self, records: Sequence[NewRecord]) -> int | None:
        """All of them in one transaction; or the index of one that is refused."""

    async def close(self) -> None:
        """End it."""


class Pace:
    """Keeps to so many letters a second (None: no limit), reckoned from the first."""

    def __init__(self, rate: float | None, now: Callable[[], float]) -> None:
        self._rate = rate
        self._now = now
        self._begun: float | None = None
        self._gone = 0

    def at_once(self) -> int:
        """The most that one lot may hold: what goes in a second."""
        return LOT_LETTERS if self._rate is None else max(1, min(LOT_LETTERS, int(self._rate)))

    def delay(self) -> float:
        """Seconds until the next lot may go."""
        if self._begun is None:
            self._begun = self._now()
        return 0.0 if self._rate is None else self._begun + self._gone / self._rate - self._now()

    def went(self, letters: int) -> None:
        """So many went."""
        self._gone += letters


class Redrive:
    """One run over dead-letter topics. `known`: the topics that there are, with their number of partitions."""

    def __init__(
        self,
        options: RedriveOptions,
        reader: Reader,
        make_writer: Callable[[str], Writer],
        known: Mapping[str, int],
        stopped: asyncio.Event,
    ) -> None:
        self.options = options
        self.reader = reader
        self.stopped = stopped
        self.outcome = Outcome(options.dry_run, options.through_pipeline)
        self.pace = Pace(options.rate, asyncio.get_running_loop().time)
        self._known = known
        self._make_writer = make_writer
        self._budget = Budget(options.most)

    async def run(self, topics: Sequence[DeadLetterTopic]) -> None:
        """All of them; ends early, after the lot under way, once it is told to stop."""
        self.outcome.missing = [topic.name for topic in topics if not topic.there]
        for topic in topics:
            if topic.there and not self.interrupted():
                await self._topic(topic)

    def interrupted(self) -> bool:
        """Whether to begin nothing more. Asked where there is more: a signal at the very end interrupts nothing."""
        if self.stopped.is_set():
            self.outcome.end = End.INTERRUPTED
        return self.stopped.is_set()

    def partitions_of(self, topic: str) -> int:
        """How many partitions a topic has; 0: there is no such topic."""
        return self._known.get(topic, 0)

    async def _topic(self, topic: DeadLetterTopic) -> None:
        chooser = Chooser(self.options, topic, self.reader, self._known, self._budget, self.outcome)
        if self.options.dry_run:
            await _Topic(self, chooser, None).redrive()
            return
        writer = self._make_writer(topic.name)
        try:
            # Before anything is read: from here on the marks are what this redrive makes them.
            await writer.start()
            await _Topic(self, chooser, writer).redrive()
        finally:
            await writer.close()


class _Topic:
    """One dead-letter topic, partition by partition, in order. `writer` None: nothing is written."""

    def __init__(self, run: Redrive, chooser: Chooser, writer: Writer | None) -> None:
        self._run = run
        self._chooser = chooser
        self._name = chooser.topic.name
        self._tally = chooser.tally
        self._writer = writer
        self._lot: list[Chosen] = []
        self._bytes = 0

    async def redrive(self) -> None:
        """Read marks and letters; put back what is to be put back."""
        reader, stopped = self._run.reader, self._run.stopped
        ranges = await reader.ranges(self._name)
        with watch(f"redrive {self._name}", 2 * sum(one.end - one.begin for one in ranges)) as shown:
            progress = _Progress(shown, self._tally)
            topic, filters = self._chooser.topic, self._run.options.filters
            marks = await read_marks(reader, topic, ranges, filters, progress.read, stopped.is_set)
            self._chooser.begin(marks)
            for one in ranges:
                if one.begin < one.end and not self._run.interrupted():
                    await self._partition(one, marks.done.get(one.partition, Done()), progress)

    async def _partition(self, where: Range, done: Done, progress: _Progress) -> None:
        self._lot, self._bytes = [], 0
        unread = Unread([where], progress.read)
        async with contextlib.aclosing(self._run.reader.scan([where])) as scanned:
            async for chunks in scanned:
                for chunk in chunks:
                    for record in chunk.records:
                        if self._run.interrupted():
                            return
                        chosen = await self._chooser.choose(where.partition, record, done)
                        if chosen is not None:
                            await self._add(where.partition, chosen)
                    unread.heard(chunk)
        await self._write(where.partition)
        unread.over()

    async def _add(self, partition: int, chosen: Chosen) -> None:
        self._lot.append(chosen)
        self._bytes += len(chosen.original.value or b"") + len(chosen.original.key or b"")
        if len(self._lot) >= self._run.pace.at_once() or self._bytes >= LOT_BYTES:
            await self._write(partition)

    async def _write(self, partition: int) -> None:
        lot, self._lot, self._bytes = self._lot, [], 0
        if not lot:
            return
        if self._writer is not None:
            await pause(self._run.pace.delay(), self._run.stopped)
            if self._run.interrupted():
                return
            lot = await self._put_back(self._writer, partition, lot)
            self._run.pace.went(len(lot))
        self._tally.redriven += len(lot)

    async def _put_back(self, writer: Writer, partition: int, lot: list[Chosen]) -> list[Chosen]:
        """Those of the lot that are back: all but what is refused."""
        home = await self._run.reader.home(self._name, partition)
        while lot:
            copies = [self._copy(one) for one in lot]
            refused = await writer.put_back([*copies, mark(home, runs_of(going(lot)))])
            if refused is None:
                break
            if refused == len(lot):
                raise KafkaError(
                    f"Kafka: {self._name} takes no mark of what is done, so nothing was put back: raise its "
                    "max.message.bytes, or let this user write to it"
                )
            self._stays(lot[refused])
            after = [one._replace(joins=one.joins and at > 0) for at, one in enumerate(lot[refused + 1 :])]
            lot = [*lot[:refused], *after]
        return lot

    def _copy(self, chosen: Chosen) -> NewRecord:
        topic, partition, _ = chosen.letter.origin
        original = chosen.original
        return NewRecord(
            topic,
            partition if partition < self._run.partitions_of(topic) else None,
            original.key,
            original.value,
            headers_back(original.headers, chosen.letter),
        )

    def _stays(self, chosen: Chosen) -> None:
        self._tally.refused += 1
        self._chooser.budget.take(-1)
        self._chooser.outcome.note(
            f"{chosen.letter.place} stays: {chosen.letter.origin.topic} does not take it back (too large for it now, "
            "without the key that it asks for, or this user may not write there)"
        )


class _Progress:
    """Offsets read, of both passes."""

    def __init__(self, shown: Watch, tally: Tally) -> None:
        self._shown = shown
        self._tally = tally
        self._read = 0

    def read(self, offsets: int) -> None:
        """So many more."""
        self._read += offsets
        self._shown.show(self._read, f"{self._tally.redriven:,} put back")
