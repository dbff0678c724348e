"""The records of a world, and a decoder and a converter cheap enough to run ten thousand worlds.

Theory of operation. Every record is made from a `Spec`, which says what ought to become of it; the record's key
is the spec's number. A `Form` says how the rest is written and read. In the fake one the value is that number too, and
the converter writes it into the event (``rid``), so that the sandboxed API sees which record it was sent, and the
world can compare what came out with what went in; `avro_records` has the real ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from random import Random
from typing import Any, NamedTuple, Protocol

from consumer.engine.figures.delivered import written_in
from consumer.engine.model import (
    CommerceEvent,
    ConversionEvent,
    Converted,
    Filtered,
    Record,
    Rejection,
    SchemaRef,
    Stage,
    TopicPartition,
    Untimely,
    Warned,
)
from consumer.engine.reading import Converting, Decoded, Keys, Reading, SchemaLearner
from tests.engine.decoder import LearntSchemas
from tests.simulation.knobs import DESTINATION, Knobs

MISSING = SchemaRef("id", "404")
"""A schema that the registry does not have."""
MADE_UP = 10_000
"""Ids from here on are made up, each by one record."""
LATE = (SchemaRef("id", "7"), SchemaRef("id", "8"))
"""Schemas that a process does not know at first; the registry has them sooner or later."""
BROKEN = SchemaRef("id", "9")
"""A schema that the registry has and that no decoder can read."""
WALL = 1.7e9
"""The platform's time when a world begins, in unix seconds."""
SKEW = 300
"""Seconds by which an event's time may be ahead."""
MAX_AGE = 7 * 86_400
"""Seconds after which an event is too old."""
_FUTURE = 10 * 86_400
HOUR = 3600
HUGE = 5000
"""Bytes; more than any limit of the API in these worlds."""


class RecordKind(Enum):
    """The kind of a record, which decides its outcome. The value is the dead letter's stage, if it gets one."""

    GOOD = None
    BAD = Stage.DELIVER
    """The API always refuses it."""
    HUGE = (Stage.DELIVER, "too large")
    TOMBSTONE = (None, "tombstone")
    FILTERED = (None, "filtered")
    UNDECODABLE = Stage.DECODE
    UNCONVERTIBLE = Stage.CONVERT
    UNSERIALISABLE = (Stage.CONVERT, "text")
    FUTURE = (Stage.CONVERT, "future")
    """The event's time is ten days ahead, whatever the clock."""
    NO_SCHEMA = (Stage.DECODE, "no schema")
    BROKEN_SCHEMA = (Stage.DECODE, "broken schema")

    @property
    def stage(self) -> Stage | None:
        """The stage of its dead letter."""
        stage: Any = self.value[0] if isinstance(self.value, tuple) else self.value
        return stage if isinstance(stage, Stage) else None

    @property
    def is_event(self) -> bool:
        """Whether it becomes an event at all."""
        return self in _EVENTS

    @property
    def passes_silently(self) -> bool:
        """Settled without anything to be stored."""
        return self in _SILENT


_EVENTS = frozenset({RecordKind.GOOD, RecordKind.BAD, RecordKind.HUGE})
_SILENT = frozenset({RecordKind.TOMBSTONE, RecordKind.FILTERED})
_ODD = tuple(kind for kind in RecordKind if kind not in (RecordKind.GOOD, RecordKind.BAD))


class Spec:
    """One record and the truth about it."""

    __slots__ = (
        "account", "event_id", "form", "key", "kind", "leader_epoch", "number", "occurred_at", "offset", "padding",
        "payload", "record", "ref", "tp", "visible_at",
    )  # fmt: skip

    def __init__(
        self, number: int, kind: RecordKind, tp: TopicPartition, offset: int, leader_epoch: int | None,
        visible_at: float, account: str, event_id: str, ref: SchemaRef | None, padding: int,
        form: Form,
    ) -> None:  # fmt: skip
        self.number = number
        self.kind = kind
        self.tp = tp
        self.offset = offset
        self.leader_epoch = leader_epoch
        self.visible_at = visible_at
        self.account = account
        self.event_id = event_id
        self.ref = ref
        self.key = Keys(DESTINATION).of(account, "checkout", event_id)
        self.padding = padding
        late = _FUTURE if kind is RecordKind.FUTURE else -2 * HOUR if number % 3 == 0 else 0
        self.occurred_at = int(WALL + visible_at) + late
        """When its event happened, in unix seconds by the platform's clock."""
        self.form = form
        self.payload = form.payload(self)
        value = None if kind is RecordKind.TOMBSTONE else form.value(self)
        self.record = Record(
            offset, int((WALL + visible_at) * 1000), b"%06d" % number, value, form.headers(self)
        )

    def __str__(self) -> str:
        where = f"{self.tp.topic}[{self.tp.partition}]@{self.offset}"
        return f"{where} (#{self.number} {self.kind.name}, id {self.event_id})"


def successor(specs: list[Spec], old: Spec, leader_epoch: int, now: float) -> Spec:
    """Another record in the place of `old`, after the log was cut; added to `specs`."""
    number = len(specs)
    spec = Spec(
        number, RecordKind.GOOD, old.tp, old.offset, leader_epoch, now, old.account, f"event-{number}", None, 9,
        old.form,
    )  # fmt: skip
    specs.append(spec)
    return spec


def new_record(specs: list[Spec], tp: TopicPartition, offset: int, visible_at: float, form: Form) -> Spec:
    """A record of a topic that was created again; added to `specs`."""
    number = len(specs)
    spec = Spec(number, RecordKind.GOOD, tp, offset, 0, visible_at, "1", f"event-{number}", None, 9, form)
    specs.append(spec)
    return spec


class RecordParts(NamedTuple):
    """What a process reads records with; `reading` is None where it decodes and converts them one by one."""

    decoder: SchemaLearner
    converter: Converting
    reading: Reading | None


class Form(Protocol):
    """How the records of a world are written and read."""

    def parts(self, specs: Sequence[Spec]) -> RecordParts:
        """The parts for a new process, which knows no schema yet."""

    def schema(self, ref: SchemaRef) -> str:
        """The schema that the registry has under this reference."""

    def other_schema(self) -> str:
        """A schema that the registry had under some reference before its database was lost: it can read no record."""

    def value(self, spec: Spec) -> bytes:
        """The record's value."""

    def headers(self, spec: Spec) -> tuple[tuple[str, bytes | None], ...]:
        """The record's headers."""

    def payload(self, spec: Spec) -> dict[str, Any]:
        """The event that the record must become, if it becomes one."""

    def number(self, event: dict[str, Any]) -> int:
        """The number of the record from which an event was made."""


class FakeForm(Form):
    """A decoder and a converter that know the truth about each record."""

    def parts(self, specs: Sequence[Spec]) -> RecordParts:
        """See `Form`."""
        return RecordParts(Decoder(specs), Converter(specs), None)

    def schema(self, ref: SchemaRef) -> str:
        """See `LearntSchemas`."""
        return "broken" if ref == BROKEN else "{}"

    def other_schema(self) -> str:
        """See `Form`."""
        return self.schema(BROKEN)

    def value(self, spec: Spec) -> bytes:
        """The number, and as many bytes as the event has."""
        return b"%06d" % spec.number + b"." * spec.padding

    def headers(self, spec: Spec) -> tuple[tuple[str, bytes | None], ...]:
        """Always the same."""
        return (("h", b"1"), ("n", None))

    def payload(self, spec: Spec) -> dict[str, Any]:
        """The number, and some text."""
        text = "\ud800" if spec.kind is RecordKind.UNSERIALISABLE else "x" * spec.padding
        return {"event_id": spec.event_id, "event_name": "checkout", "rid": spec.number, "pad": text}

    def number(self, event: dict[str, Any]) -> int:
        """See `Form`."""
        number: int = event["rid"]
        return number


class Decoder(LearntSchemas):
    """Reads the record's number out of its value."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        super().__init__()
        self._specs = specs

    def decode(self, record: Record, topic: str = "", partition: int = -1) -> Decoded:
        """What the record's spec says."""
        if record.value is None:
            return None
        spec = self._specs[int(record.value[:6])]
        if spec.kind is RecordKind.UNDECODABLE:
            garbage = Rejection(Stage.DECODE, "garbage", "not Avro")
            return spec.ref if spec.ref in self.doubted else garbage
        if spec.ref is not None:
            if spec.ref not in self.verdicts:
                return spec.ref
            verdict = self.verdicts[spec.ref]
            if verdict is not None:
                return spec.ref if spec.ref in self.doubted else verdict
        return {"number": spec.number}


class Converter:
    """Makes a record's event; some events are offline ones, and some are two hours old."""

    def __init__(self, specs: Sequence[Spec]) -> None:
        self._specs = specs

    def convert(self, event: CommerceEvent, now: float) -> Converted:
        """What the spec of the event's record says."""
        spec = self._specs[event["number"]]
        if spec.kind is RecordKind.FILTERED:
            return Filtered("event_name")
        if spec.kind is RecordKind.UNCONVERTIBLE:
            return Rejection(Stage.CONVERT, "currency", "not a code")
        if not now - MAX_AGE <= spec.occurred_at <= now + SKEW:
            rejection = Rejection(Stage.CONVERT, "time", "too far ahead, or too old")
            return Untimely.of(rejection, spec.occurred_at, spec.occurred_at + MAX_AGE)
        warnings = (Warned("left_out", "not an address", "user_data.em"),) if spec.number % 7 == 0 else ()
        source = "offline" if spec.number % 5 == 0 else "web"
        return ConversionEvent(
            spec.account,
            "checkout",
            spec.event_id,
            spec.event_id,
            int(min(spec.occurred_at, now)),
            source,
            spec.payload,
            written_in(spec.payload),
            warnings,
        )


def write_logs(
    knobs: Knobs, random: Random, form: Form
) -> tuple[list[Spec], dict[TopicPartition, list[Spec]]]:
    """All records of a world, by number, and by partition in the order of offsets."""
    partitions = [TopicPartition("shop" if n % 2 else "app", n // 2) for n in range(knobs.partitions)]
    logs: dict[TopicPartition, list[Spec]] = {tp: [] for tp in partitions}
    ends = {tp: random.choice((0, 0, 13)) for tp in partitions}
    epochs: dict[TopicPartition, int | None] = {tp: random.choice((0, 3, None)) for tp in partitions}
    specs: list[Spec] = []
    for number in range(knobs.records):
        tp = random.choice(partitions)
        if random.random() < 0.15:
            ends[tp] += random.randint(1, 6)
        epoch = epochs[tp]
        if epoch is not None and random.random() < 0.05:
            epochs[tp] = epoch = epoch + 1
        visible_at = knobs.arrival * number / knobs.records
        spec = _spec(knobs, random, number, tp, ends[tp], epoch, visible_at, specs, form)
        ends[tp] += 1
        specs.append(spec)
        logs[tp].append(spec)
    return specs, logs


def _spec(
    knobs: Knobs, random: Random, number: int, tp: TopicPartition, offset: int, epoch: int | None,
    visible_at: float, before: list[Spec], form: Form,
) -> Spec:  # fmt: skip
    account, event_id = str(random.randint(1, knobs.accounts)), f"event-{number}"
    kind = RecordKind.GOOD
    if random.random() < knobs.odd:
        kind = random.choice(_ODD)
    elif random.random() < knobs.bad:
        kind = RecordKind.BAD
    if kind.is_event and before and random.random() < knobs.duplicates:
        # Most duplicates come soon: those meet their original while it is open.
        reach = 6 if random.random() < 0.7 else len(before)
        original = random.choice(before[-reach:])
        account, event_id = original.account, original.event_id
    ref = None
    if kind is RecordKind.NO_SCHEMA:
        ref = SchemaRef("id", str(MADE_UP + number)) if number % 2 else MISSING
    elif kind is RecordKind.BROKEN_SCHEMA:
        ref = BROKEN
    elif random.random() < knobs.late_schemas:
        ref = random.choice(LATE)
    padding = HUGE if kind is RecordKind.HUGE else random.randint(1, 120)
    return Spec(number, kind, tp, offset, epoch, visible_at, account, event_id, ref, padding, form)
