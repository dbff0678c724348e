"""What the engine needs of a decoder and a converter.

Theory of operation. Reading fills `Columns`: a row for each record, with the event's JSON, key, time and kind, or with
the verdict why there is no event. An event is serialised once: batches, retries and bisects only join those bytes.
Decoder and converter know no other part of the engine; they fit the Protocols here by shape.

*Keys.* A key identifies an event where it is delivered: destination, ad account, event name, event id
(docs/architecture.md, rule 3). It is a hash, so that its size is bounded and no id is readable on disk.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from hashlib import blake2b
from typing import Any, Final, NamedTuple, Protocol

import orjson

from consumer.engine.model import (
    REAL_API,
    CommerceEvent,
    ConversionEvent,
    Converted,
    Filtered,
    Later,
    Record,
    Rejection,
    SchemaDrift,
    SchemaRef,
    SectionEvent,
    Stage,
    Warned,
)

TOMBSTONE = Filtered("tombstone")
NOT_UNICODE = Rejection(Stage.CONVERT, "unserialisable", "the event holds text that is not Unicode")
Decoded = CommerceEvent | Rejection | SchemaRef | Filtered | None
Records = Sequence[Record | None]
NoEvent = Filtered | Rejection | SchemaRef | Later
"""Why a record is not an event, or not yet."""

# 128 bits: among 10**9 keys the chance that any two collide is about 1.5e-21.
KEY_BYTES: Final = 16
NO_KEY: Final = bytes(KEY_BYTES)
# Marks of an event: it happened offline; a call with it was sent, and its outcome is not known; it is counted as a
# possible double.
OFFLINE, UNCLEAR, COUNTED = 1, 2, 4


class Keys:
    """Makes the keys of events.

    Account, name and id are separated by NUL, which only the id can hold. `destination`: the tag of the destination
    (`model.destination_tag`). The tag of the platform in live mode is not part of the key, nor is an unknown one: so
    keys that were stored before destinations had tags stay valid. `earlier`: a tag under which events were delivered to
    the same destination before; their keys are looked up, too.
    """

    def __init__(self, destination: str | None = None, earlier: str | None = None) -> None:
        self.prefix = b"" if destination in (None, REAL_API) else f"{destination}\0".encode()
        self.earlier = None if earlier is None else Keys(earlier)

    def of(self, account: str, event_name: str, dedup_id: str) -> bytes:
        """Return the key of an event."""
        # surrogatepass: an id may hold half of a surrogate pair, as JSON can, and must still have a key of its own.
        text = f"{account}\0{event_name}\0{dedup_id}".encode("utf-8", "surrogatepass")
        return blake2b(self.prefix + text, digest_size=KEY_BYTES).digest()


def split_keys(keys: bytes) -> list[bytes]:
    """Split keys that stand one after the other."""
    return [keys[at : at + KEY_BYTES] for at in range(0, len(keys), KEY_BYTES)]


class Kind(NamedTuple):
    """Properties that many events share. `written`: mask of the parameters in the event (`figures.delivered.BITS`)."""

    account: str
    name: str
    written: int


_MAX_DIGITS: Final = 10  # before the point of an amount that is counted


def packed_value(custom_data: Mapping[str, Any]) -> int:
    """Return value and currency of an event as one number; 0: it has none, or one that is not counted.

    Four digits behind the point count.
    """
    amount, currency = custom_data.get("value"), custom_data.get("currency")
    if not amount or not currency:
        return 0
    whole, _, fraction = amount.partition(".")
    if len(whole) > _MAX_DIGITS:
        return 0
    return int(whole + fraction[:4].ljust(4, "0")) << 15 | _code_of(currency)


@cache
def _code_of(currency: str) -> int:
    first, second, third = (ord(letter) - 64 for letter in currency)
    return first << 10 | second << 5 | third


def currency_of(packed: int) -> str:
    """Return the currency of a packed value."""
    return "".join(chr(64 + (packed >> shift & 31)) for shift in (10, 5, 0))


@dataclass(eq=False, slots=True)
class Columns:
    """A slice of records that was read: one row per record, in all columns (see `records.block`)."""

    make_key: Keys
    page: bytearray = field(default_factory=bytearray)
    ends: array[int] = field(default_factory=lambda: array("q"))
    keys: bytearray = field(default_factory=bytearray)
    # The keys under the earlier tag; empty: there is none (`Keys`).
    earlier_keys: bytearray = field(default_factory=bytearray)
    times: array[int] = field(default_factory=lambda: array("q"))
    # See `packed_value`.
    values: array[int] = field(default_factory=lambda: array("q"))
    marks: bytearray = field(default_factory=bytearray)
    kind_numbers: bytearray = field(default_factory=bytearray)
    # Their numbers, in this order.
    kinds: dict[Kind, int] = field(default_factory=dict)
    # By row, why there is no event.
    verdicts: dict[int, NoEvent] = field(default_factory=dict)
    # By row, what the event lacks.
    warnings: dict[int, tuple[Warned, ...]] = field(default_factory=dict)
    # By row, the number of its section of the mapping. 0, or beyond the end: it has none.
    sections: bytearray = field(default_factory=bytearray)

    def __len__(self) -> int:
        return len(self.ends)

    def add_event(
        self,
        kind: Kind,
        dedup_id: str,
        time: int,
        offline: bool,
        body: bytes,
        warnings: tuple[Warned, ...],
        value: int = 0,
    ) -> None:
        """Add the row of a record that became this event; `body` is its JSON, `value` see `packed_value`."""
        if warnings:
            self.warnings[len(self)] = warnings
        self.page += body
        # The comma that a batch needs between two events, so that a run of bodies is joined as it stands.
        self.page += b","
        self.keys += self.make_key.of(kind.account, kind.name, dedup_id)
        if self.make_key.earlier is not None:
            self.earlier_keys += self.make_key.earlier.of(kind.account, kind.name, dedup_id)
        self._add(time, OFFLINE if offline else 0, self.kinds.setdefault(kind, len(self.kinds)), value)

    def add_converted(self, event: ConversionEvent) -> None:
        """Add the row of a record that became this event, which is serialised here."""
        try:
            body = orjson.dumps(event.payload)
        except orjson.JSONEncodeError:
            self.add(NOT_UNICODE)
            return
        kind = Kind(event.account, event.name, event.written)
        offline, value = event.action_source == "offline", packed_value(event.payload.get("custom_data", {}))
        self.add_event(kind, event.dedup_id, event.time, offline, body, event.warnings, value)

    def add(self, verdict: NoEvent | None) -> None:
        """Add the row of a record that is not an event; None: it was settled before, and so was not read."""
        if verdict is not None:
            self.verdicts[len(self)] = verdict
        self.keys += NO_KEY
        if self.make_key.earlier is not None:
            self.earlier_keys += NO_KEY
        self._add(0, 0, 0, 0)

    def _add(self, time: int, marks: int, kind_number: int, value: int) -> None:
        self.ends.append(len(self.page))
        self.times.append(time)
        self.values.append(value)
        self.marks.append(marks)
        self.kind_numbers.append(kind_number)

    def of_section(self, row: int, number: int) -> None:
        """Set the section of the rows from `row` on; rows before it that have none yet get 0."""
        self.sections += bytes(row - len(self.sections))
        self.sections += bytes((number,)) * (len(self) - len(self.sections))

    def start(self, row: int) -> int:
        """Return where the body of this row begins in the page."""
        return self.ends[row - 1] if row else 0

    def body(self, row: int) -> bytes:
        """Return the JSON of this row, and the comma behind it."""
        return bytes(self.page[self.start(row) : self.ends[row]])

    def key(self, row: int) -> bytes:
        """Return the key of this row."""
        return bytes(self.keys[KEY_BYTES * row : KEY_BYTES * (row + 1)])

    def is_event(self, row: int) -> bool:
        """Return True if this record became an event."""
        return self.ends[row] > self.start(row)

    def cut(self, rows: int) -> None:
        """Keep only the first `rows` rows."""
        if rows < len(self):
            del (
                self.page[self.start(rows) :],
                self.keys[KEY_BYTES * rows :],
                self.earlier_keys[KEY_BYTES * rows :],
            )
            for column in (self.ends, self.times, self.values, self.marks, self.kind_numbers):
                del column[rows:]
            del self.sections[rows:]
            self.verdicts = {row: verdict for row, verdict in self.verdicts.items() if row < rows}
            self.warnings = {row: warnings for row, warnings in self.warnings.items() if row < rows}


class Decoding(Protocol):
    """The engine's interface to a decoder; see `consumer.avro.decode.Decoder`."""

    def decode(self, record: Record, topic: str, partition: int) -> Decoded:
        """Return the event of a record of this partition, why there is none, or the schema that is needed first.

        None stands for a tombstone; `Filtered` for a record that the mapping or the user's function excludes. Never
        raises for what a record holds.
        """

    def section_of(self, record: Record, topic: str) -> int:
        """Return the number of the mapping's section that a record of this topic belongs to, from 1; 0: none.

        Asked only where the mapping has sections.
        """
        return 0


class SchemaLearner(Decoding, Protocol):
    """A decoder that learns writers' schemas; see `consumer.avro.decode.Decoder`."""

    def add_schema(self, ref: SchemaRef, schema_json: Any, kind: str = ...) -> Rejection | Filtered | None:
        """Learn a writer's schema, in place of what was known under this reference.

        Return why its records can never be read; None: they can be. Never raises.
        """

    def drift(self, ref: SchemaRef) -> Sequence[SchemaDrift]:
        """Return how a schema that was added differs from what the mapping reads, for each section that reads it."""
        return ()

    def doubt(self, ref: SchemaRef) -> None:
        """Doubt a schema that was added, because it is an earlier answer of the registry.

        A record that it cannot read is answered with `ref`, until the schema is added again or forgotten.
        """

    def forget(self, ref: SchemaRef) -> None:
        """Forget a schema: its records are answered with `ref` again, as before it was added."""

    def missing(self, ref: SchemaRef) -> Rejection | Filtered:
        """Return the verdict on a record whose schema does not exist, now that this is final."""


class Converting(Protocol):
    """The engine's interface to a converter; see `consumer.conversion.converter.Converter`."""

    def convert(self, event: CommerceEvent, now: float) -> Converted:
        """Return the conversion of an event at `now` (unix seconds).

        Never raises for what an event holds: that is a `Rejection`.
        """


class Reading(Protocol):
    """From records to columns: `TwoSteps`, or `consumer.conversion.reading.CompiledReading`."""

    @property
    def in_two_steps(self) -> int:
        """Records that were decoded and converted in two steps so far."""

    def read(self, records: Records, now: float, columns: Columns, topic: str, partition: int) -> None:
        """Add a row to `columns` for each record of this partition, in order, at `now` (unix seconds).

        None stands for a record that was settled before: its row is empty. Never raises for what a record holds.
        """


# Records decoded, converted and serialised in one go: few enough that the processor's cache still holds an event's
# objects when the next step comes to them (a slice of 1000 costs a third more; docs/benchmarks.md), and enough that
# it holds the code of each step (one record at a time costs an eighth more).
_SLICE: Final = 64


class TwoSteps:
    """Decodes records, then converts them; each event is serialised at once."""

    def __init__(self, decoder: Decoding, converter: Converting, *, divided: bool = False) -> None:
        """`divided`: the mapping has sections, so the section of each record is looked for."""
        self.decoder = decoder
        self._divided = divided
        self._converter = converter
        self.in_two_steps = 0

    def read(
        self, records: Records, now: float, columns: Columns, topic: str = "", partition: int = -1
    ) -> None:
        """See `Reading`."""
        for at in range(0, len(records), _SLICE):
            self._read_slice(records[at : at + _SLICE], now, columns, topic, partition)

    def _read_slice(self, some: Records, now: float, columns: Columns, topic: str, partition: int) -> None:
        decode, convert = self.decoder.decode, self._converter.convert
        decoded = [None if record is None else decode(record, topic, partition) for record in some]
        converted = [convert(one, now) if isinstance(one, dict) else one for one in decoded]
        for record, event, one in zip(some, decoded, converted, strict=True):
            if record is None:
                columns.add(None)
                continue
            self.in_two_steps += 1
            if isinstance(one, ConversionEvent):
                columns.add_converted(one)
            else:
                columns.add(TOMBSTONE if one is None else one)
            if self._divided:
                # A record that is not an event has a section, too: the guard and the counts name it.
                number = (
                    event.section
                    if isinstance(event, SectionEvent)
                    else self.decoder.section_of(record, topic)
                )
                columns.of_section(len(columns) - 1, number)
