"""The records that a draft looks at: those of a file, or the newest ones of a topic, read without a group.

Both are bounded: a file by its first records, a topic by the newest records of its partitions and by time. What cannot
be read is counted, and the draft goes on without it.
"""

from __future__ import annotations

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from typing import Final

from consumer.adapters.files import Types, open_records
from consumer.adapters.kafka.bounded import scan
from consumer.adapters.kafka.ranges import Bound, resolve_ranges
from consumer.adapters.schemas import LocalSchemas
from consumer.app import building
from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.paths import AvroSchema
from consumer.engine.messages import FetchSchema, SchemaFound
from consumer.engine.model import CommerceEvent, Filtered, Rejection, SchemaRef, section_of
from consumer.settings import Settings

MAX_OF_FILE: Final = 10_000
MAX_OF_TOPIC: Final = 2_000
_SECONDS: Final = 20.0  # for the reading of a topic
_TIMEOUT: Final = 15.0  # for one question to the brokers


class RecordSample:
    """The events of each record type, in the order of our schemas, and why others could not be read.

    It is the choice (`consumer.avro.decode.Choice`) of a file or a topic that has no mapping yet.
    """

    topics = ()

    def __init__(self, schemas: Sequence[AvroSchema]) -> None:
        self.all = [OneSchema(schema) for schema in schemas]
        self.typed = len(schemas) > 1
        self.records = tuple(one.records[0] for one in self.all)
        self.events: list[list[CommerceEvent]] = [[] for _ in schemas]
        self.unread: Counter[str] = Counter()
        self.why: dict[str, str] = {}  # the first message of each code

    def choose(self, name: str, topic: str | None) -> int | Filtered:
        """See `Choice`."""
        return self.records.index(name) + 1 if name in self.records else Filtered("unknown_record")

    def knows(self, name: str) -> bool:
        """See `Choice`."""
        return name in self.records

    def add(self, event: CommerceEvent | Rejection | Filtered | None) -> None:
        """Take a record's event, or count why there is none."""
        if isinstance(event, Rejection | Filtered) or event is None:
            self.unread["tombstone" if event is None else event.code] += 1
            if isinstance(event, Rejection):
                self.why.setdefault(event.code, event.message)
        else:
            self.events[section_of(event) - 1].append(event)

    def read_file(self, path: str) -> None:
        """Read the first records of a file. Raises `InputError`."""
        for record in islice(open_records(path, Types(self)), MAX_OF_FILE):
            self.add(record.event)

    async def read_topic(self, topic: str, settings: Settings, local: LocalSchemas) -> None:
        """Read the newest records of a topic, as long as there is time. Raises `KafkaError` and `UsageError`."""
        config = settings.kafka.client_properties()
        decoder = Decoder(self, whole=True)
        writers = building.writer_schemas(settings, local)
        asked: set[SchemaRef] = set()
        ranges = await resolve_ranges(config, [topic], [], Bound("beginning"), Bound("end"), _TIMEOUT)
        each = -(-MAX_OF_TOPIC // max(1, len(ranges)))
        newest = [one._replace(begin=max(one.begin, one.end - each)) for one in ranges if one.begin < one.end]
        deadline = time.monotonic() + _SECONDS
        try:
            async with contextlib.aclosing(scan(config, newest)) as scanned:
                async for chunks in scanned:
                    for record in (record for chunk in chunks for record in chunk.records):
                        event = decoder.decode(record, topic)
                        if isinstance(event, SchemaRef) and event not in asked:
                            asked.add(event)
                            answer = await writers.fetch(FetchSchema(event))
                            if isinstance(answer, SchemaFound):
                                decoder.add_schema(event, answer.schema, answer.kind)
                            event = decoder.decode(record, topic)
                        self.add(decoder.missing(event) if isinstance(event, SchemaRef) else event)
                    if time.monotonic() > deadline:
                        break
        finally:
            await writers.close()
