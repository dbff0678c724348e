"""The nouns of pinstream: records, conversion events, deliveries, batches, dispositions.

A *record* is what Kafka holds. Decoded it is a *commerce event* (a plain ``dict`` in the shape of the reader
schema). Converted it is a *conversion event*: one item of the API's ``data``. A *delivery* is a record's way
to the API, a *batch* one call. Each record ends in exactly one *disposition*.

Hot objects are slotted classes or named tuples, not frozen dataclasses: a frozen dataclass costs a
microsecond to make, and one is made for every event.
"""

from __future__ import annotations

from enum import Enum
from typing import Any, Final, NamedTuple

CommerceEvent = dict[str, Any]
"""A decoded record in the shape of the reader schema; times are ``int`` in the schema's own unit."""


class Disposition(Enum):
    """What finally became of a record: exactly one of these, always (contract.md)."""

    DELIVERED = "delivered"
    DUPLICATE = "duplicate"
    FILTERED = "filtered"
    DEAD_LETTERED = "dead_lettered"


class Stage(Enum):
    """Where a record was rejected; the dead letter's ``pinstream.stage``."""

    DECODE = "decode"
    CONVERT = "convert"
    DELIVER = "deliver"


class Instant(NamedTuple):
    """A moment on both clocks, in seconds. Deadlines use `monotonic`; event times are compared with `unix`."""

    monotonic: float
    unix: float


class TopicPartition(NamedTuple):
    """A partition's name."""

    topic: str
    partition: int


class Position(NamedTuple):
    """What a commit names: the next offset to read, and the leader epoch of the record before it.

    `metadata`: the offset map of what is settled above it (`consumer.engine.offset_map`).
    """

    topic: str
    partition: int
    next_offset: int
    leader_epoch: int | None
    metadata: str = ""


class Record(NamedTuple):
    """One Kafka record as it was fetched: the original bytes."""

    offset: int
    timestamp: int
    """Milliseconds since 1970 as Kafka has it; -1 when it has none."""
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes | None], ...]


class TraceParent(NamedTuple):
    """The span that a record was written in, as its ``traceparent`` header says (W3C Trace Context)."""

    trace_id: int
    span_id: int
    flags: int


UNREADABLE_HEADERS: Final = (
    (
        "pinstream.headers",
        b"unreadable: the name of a header is not UTF-8; all of them are left out here, read them at the origin",
    ),
)
"""What stands for the headers of a record whose client cannot read them; a dead letter says so."""


class Chunk(NamedTuple):
    """Records of one partition under one assignment epoch and one leader epoch, in offset order.

    `log_start`: where the log began when they were handed out. Looked for only where offsets are missing before or
    among them; else, and where it is not known, -1.
    """

    topic: str
    partition: int
    epoch: int
    leader_epoch: int | None
    records: list[Record]
    log_start: int = -1


class SchemaRef(NamedTuple):
    """How a record names its writer's schema.

    `kind` is ``"id"`` (Confluent schema id, decimal text), ``"guid"`` (Confluent header, 36-character UUID)
    or ``"fingerprint"`` (single-object encoding: 16 hex digits of CRC-64-AVRO as on the wire, little-endian).
    """

    kind: str
    value: str


class Rejection(NamedTuple):
    """Why a record cannot be delivered. `code` is from a closed set; `message` holds no personal data."""

    stage: Stage
    code: str
    message: str


class Ahead(Rejection):
    """The refusal of an event for lying ahead; `time` says when it happened (unix seconds).

    Whether it is refused, or waits, depends on whose clock is right (`consumer.engine.clock`).
    """

    time: float
    verdict: Rejection | Filtered
    """What becomes of it if it is refused."""

    @classmethod
    def of(cls, rejection: Rejection, time: float) -> Ahead:
        """`rejection`, of an event of this time."""
        ahead = cls(*rejection)
        ahead.time, ahead.verdict = time, rejection
        return ahead


class Early(NamedTuple):
    """An event that lies ahead of what may be a slow clock: it is judged again once its `time` (unix seconds) comes,
    or more is known of the clock."""

    time: float


class Problem(NamedTuple):
    """A record that cannot be delivered, and why: a `Rejection` with its place."""

    topic: str
    partition: int
    offset: int
    stage: Stage
    code: str
    message: str


class Warned(NamedTuple):
    """Something a deliverable event lacks or lost on the way; `field` is the conversion field's dotted name."""

    code: str
    message: str
    field: str


class ConversionEvent:
    """One item of the API's ``data``, with what the pipeline needs to know of it.

    `payload` is the JSON object to send; `time` is ``event_time`` in whole seconds.
    """

    __slots__ = ("account", "action_source", "dedup_id", "event_id", "name", "payload", "time", "warnings")

    def __init__(
        self,
        account: str,
        name: str,
        event_id: str,
        dedup_id: str,
        time: int,
        action_source: str,
        payload: dict[str, Any],
        warnings: tuple[Warned, ...],
    ) -> None:
        self.account = account
        self.name = name
        self.event_id = event_id
        self.dedup_id = dedup_id
        """What identifies the event within account and name: ``event_id`` unless the mapping says otherwise."""
        self.time = time
        self.action_source = action_source
        self.payload = payload
        self.warnings = warnings


class Filtered(NamedTuple):
    """Not to be sent, on purpose; `code` says which rule did it (``event_name``, ``consent``, ``tombstone``)."""

    code: str


Converted = ConversionEvent | Filtered | Rejection
