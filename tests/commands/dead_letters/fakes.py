"""A Kafka made of lists for the tests of dead-letter commands, with topics, partitions and records, and a
transactional writer on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any

from hypothesis import settings

from consumer.adapters.kafka.letters import Home, NewRecord, Place, letter_headers, read_mark
from consumer.adapters.kafka.ranges import Range
from consumer.commands.dead_letters.options import Filters, RedriveOptions
from consumer.commands.dead_letters.reading import DeadLetters, LetterReader
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Chunk, Record, Rejection, Stage
from tests.engine.building import PROPERTY

AT = 1_700_000_000_000
"""When the first letter was written, in milliseconds; each further one is a second later."""

FEWER = settings(PROPERTY, max_examples=100)
"""For what takes long: the bugs that were tried are found by the first examples."""


def home(topic: str, partition: int = 0) -> Home:
    """Return this partition's home, in the cluster of these tests."""
    return Home("here", topic, partition)


def runs_in(record: Record, topic: str, partition: int = 0) -> list[tuple[int, int]]:
    """Return the runs of offsets that a mark in this partition says are done."""
    return read_mark(record, home(topic, partition)) or []


class Topics(LetterReader):
    """Topics held in lists, and the answers to questions about them."""

    def __init__(self, **partitions: int) -> None:
        super().__init__({})
        self.partitions = {name.replace("_", "-"): count for name, count in partitions.items()}
        self.logs: dict[tuple[str, int], list[Record]] = defaultdict(list)
        self.epochs: dict[str, list[tuple[int, int]]] = {}
        """By topic: its leader epochs, in falling order, each with its first offset; without an entry it has none."""
        self.chunk = 3
        """Number of records that a scan returns together."""
        self.asked: list[Place] = []

    def append(
        self, topic: str, partition: int, key: Any, value: Any, headers: Any = (), timestamp: int = AT
    ) -> Record:
        """Append a record to a partition, and return it."""
        log = self.logs[topic, partition]
        log.append(Record(len(log), timestamp, key, value, tuple(headers)))
        return log[-1]

    def bury(
        self,
        number: int,
        *,
        origin: str = "orders",
        on: str | None = None,
        partition: int = 0,
        stage: Stage = Stage.CONVERT,
        code: str = "unknown_currency",
        headers: Any = (),
        omitted: tuple[str, ...] = (),
        offset: int | None = None,
        attempts: int = 0,
    ) -> Record:
        """Append a letter to the dead-letter topic of `origin`, and return it."""
        record = Record(number if offset is None else offset, AT, b"k%d" % number, b"v%d" % number, headers)
        rejection = Rejection(stage, code, "what is wrong")
        letter = DeadLetter(origin, partition, record, rejection, attempts, AT + number * 1000)
        return self.append(
            on or f"{origin}.dead-letters",
            partition % self.partitions.get(on or f"{origin}.dead-letters", 1),
            None if "key" in omitted else record.key,
            None if "value" in omitted else record.value,
            letter_headers(letter, omitted),
        )

    def values(self, topic: str, partition: int | None = None) -> list[bytes | None]:
        """Return the values of the records on a topic, by partition and offset."""
        logs = sorted(item for item in self.logs.items() if item[0][0] == topic)
        return [one.value for (_, at), log in logs if partition in (None, at) for one in log]

    # -- as a reader

    async def ranges(self, topic: str) -> Sequence[Range]:
        """See `LetterReader`."""
        counts = range(self.partitions[topic])
        return [Range(topic, number, 0, len(self.logs[topic, number])) for number in counts]

    async def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """See `LetterReader`."""
        for one in ranges:
            records = self.logs[one.topic, one.partition][one.begin : one.end]
            for at in range(0, len(records), self.chunk):
                some = records[at : at + self.chunk]
                yield [Chunk(one.topic, one.partition, 0, self.epoch(one.topic, some[0].offset), some)]

    def epoch(self, topic: str, offset: int) -> int | None:
        """Return the leader epoch of the record at this offset."""
        return next((one for one, first in self.epochs.get(topic, ()) if offset >= first), None)

    async def record(self, place: Place) -> Record | None:
        """See `LetterReader`."""
        self.asked.append(place)
        log = self.logs.get((place.topic, place.partition), [])
        return log[place.offset] if place.offset < len(log) else None

    async def homes(self, topic: str, partitions: Collection[int]) -> dict[int, Home]:
        """See `LetterReader`."""
        return {number: home(topic, number) for number in partitions}


EVERYTHING = Filters()
DEAD = "orders.dead-letters"


def topics(letters: int = 10, partitions: int = 1, **more: Any) -> Topics:
    """Return an empty topic ``orders`` and `letters` letters of it, spread over the partitions."""
    found = Topics(orders=partitions)
    found.partitions[DEAD] = partitions
    for number in range(letters):
        found.bury(number, partition=number % partitions, **more)
    return found


def options(**changes: Any) -> RedriveOptions:
    """Return options for a redrive of all letters, with `changes`."""
    given: dict[str, Any] = {
        "topics": (),
        "filters": EVERYTHING,
        "maximum": None,
        "rate": None,
        "max_trips": 3,
    }
    return RedriveOptions(**{**given, "dry_run": False, "as_json": False, **changes})


def dead_letters(where: Topics, *, of: str | None = "orders", filters: Filters = EVERYTHING) -> DeadLetters:
    """Return the letters of one topic on its dead-letter topic; with `of` None, all on the topic ``letters``."""
    name = "letters" if of is None else f"{of}.dead-letters"
    return DeadLetters(name, {of}, filters, where)


class Killed(Exception):
    """Raised where the process is killed."""


class Transactions:
    """Writes lots onto `topics`, all records of a lot or none. Its `write` is that of a `TransactionalWriter`.

    `refuses` returns whether the broker refuses a record. `before` and `after` are called around each lot, and may
    raise.
    """

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.refuses: Callable[[NewRecord], bool] = lambda record: False
        self.before: Callable[[int], None] = lambda lot: None
        self.after: Callable[[int], None] = lambda lot: None
        self.lots: list[Sequence[NewRecord]] = []

    async def write(self, records: Sequence[NewRecord]) -> int | None:
        """Write all records; return the index of one that is refused, and then write none."""
        for index, record in enumerate(records):
            if self.refuses(record):
                return index
        self.before(len(self.lots))
        for record in records:
            assert record.partition < self.topics.partitions[record.topic]
            self.topics.append(record.topic, record.partition, record.key, record.value, record.headers)
        self.lots.append(records)
        self.after(len(self.lots) - 1)
        return None
