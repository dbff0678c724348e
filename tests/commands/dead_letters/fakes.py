"""A Kafka of lists for the dead-letter commands: topics, partitions, records; and a writer of transactions on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncGenerator, Callable, Collection, Sequence
from typing import Any

from consumer.adapters.kafka.letters import Home, Mark, NewRecord, Place, letter_headers, read_mark
from consumer.adapters.kafka.ranges import Range
from consumer.commands.dead_letters.options import Filters
from consumer.commands.dead_letters.reading import DeadLetters, Reader
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Chunk, Record, Rejection, Stage

AT = 1_700_000_000_000
"""When the first letter died, in milliseconds; each further one a second later."""


def home(topic: str, partition: int = 0) -> Home:
    """In the cluster of these tests."""
    return Home("here", topic, partition)


def runs_in(record: Record, topic: str, partition: int = 0) -> list[tuple[int, int]]:
    """What a mark of there says is done."""
    mark = read_mark(record, home(topic, partition)) or Mark((), at_home=True)
    return list(mark.runs)


class Topics(Reader):
    """What there is, and the answers to the questions to Kafka."""

    def __init__(self, **partitions: int) -> None:
        super().__init__({})
        self.partitions = {name.replace("_", "-"): count for name, count in partitions.items()}
        self.logs: dict[tuple[str, int], list[Record]] = defaultdict(list)
        self.chunk = 3
        """Records that come together."""
        self.asked: list[Place] = []

    def append(
        self, topic: str, partition: int, key: Any, value: Any, headers: Any = (), timestamp: int = AT
    ) -> Record:
        """One more record."""
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
        left_out: tuple[str, ...] = (),
        offset: int | None = None,
        attempts: int = 0,
    ) -> Record:
        """One more letter on the dead-letter topic of `origin`."""
        record = Record(number if offset is None else offset, AT, b"k%d" % number, b"v%d" % number, headers)
        rejection = Rejection(stage, code, "what is wrong")
        letter = DeadLetter(origin, partition, record, rejection, attempts, AT + number * 1000)
        return self.append(
            on or f"{origin}.dead-letters",
            partition % self.partitions.get(on or f"{origin}.dead-letters", 1),
            None if "key" in left_out else record.key,
            None if "value" in left_out else record.value,
            letter_headers(letter, left_out),
        )

    def values(self, topic: str, partition: int | None = None) -> list[bytes | None]:
        """What lies on a topic, by partition and offset."""
        logs = sorted(item for item in self.logs.items() if item[0][0] == topic)
        return [one.value for (_, at), log in logs if partition in (None, at) for one in log]

    # -- as a reader

    async def ranges(self, topic: str) -> Sequence[Range]:
        """See `Reader`."""
        counts = range(self.partitions[topic])
        return [Range(topic, number, 0, len(self.logs[topic, number])) for number in counts]

    async def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """See `Reader`."""
        for one in ranges:
            records = self.logs[one.topic, one.partition][one.begin : one.end]
            for at in range(0, len(records), self.chunk):
                yield [Chunk(one.topic, one.partition, 0, None, records[at : at + self.chunk])]

    async def record(self, place: Place) -> Record | None:
        """See `Reader`."""
        self.asked.append(place)
        log = self.logs.get((place.topic, place.partition), [])
        return log[place.offset] if place.offset < len(log) else None

    async def homes(self, topic: str, partitions: Collection[int]) -> dict[int, Home]:
        """See `Reader`."""
        return {number: home(topic, number) for number in partitions}


EVERYTHING = Filters()


def dead_letters(where: Topics, *, of: str | None = "orders", filters: Filters = EVERYTHING) -> DeadLetters:
    """The letters of one topic on its dead-letter topic; `of` None: all on the topic ``letters``."""
    name = "letters" if of is None else f"{of}.dead-letters"
    return DeadLetters(name, None if of is None else frozenset({of}), filters, where)


class Killed(Exception):
    """The process is gone."""


class Transactions:
    """Writes lots onto `topics`, all of a lot or nothing. Its `write` is that of a `TransactionalWriter`.

    `refuses`: what the broker does not take. `before` and `after` are called around each lot, and may raise.
    """

    def __init__(self, topics: Topics) -> None:
        self.topics = topics
        self.refuses: Callable[[NewRecord], bool] = lambda record: False
        self.before: Callable[[int], None] = lambda lot: None
        self.after: Callable[[int], None] = lambda lot: None
        self.lots: list[Sequence[NewRecord]] = []

    async def write(self, records: Sequence[NewRecord]) -> int | None:
        """All of them, or the index of one that is refused."""
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
