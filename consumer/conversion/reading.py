"""Which executor takes a record: the compiled program (the fast path), else the plain path.

Theory of operation. Per writer's schema, and section of the mapping, there is one program that the compiled modules run
(`program`), made when the schema is first met; it writes an event's JSON without making its payload. Records that it is
not certain of, or that cause an error in it, are done again from their bytes in two steps, by the plain decoder and
converter, whose verdict counts. So the program is faster and decides nothing: without it the results are the same.

Records of schemas that have no program (a record of more fields than there may be slots, too many schemas) always take
two steps.
"""

from __future__ import annotations

from itertools import repeat
from typing import Final, NamedTuple

from consumer.avro.decode import Decoder
from consumer.avro.plan import Plan, RecordPlan
from consumer.conversion.converter import Converter
from consumer.conversion.program import Many, write_program
from consumer.engine.model import Filtered, Rejection
from consumer.engine.reading import TOMBSTONE, Columns, Records, TwoSteps

MAX_PROGRAMS: Final = 64
"""Schemas that get a program: each costs some milliseconds, and a megabyte at the worst."""


class Written(NamedTuple):
    """The program for a schema: the plan that it was made from, and its function; None: its records take two steps."""

    plan: Plan
    function: Many | None


class CompiledReading:
    """Reads records as `TwoSteps` does, faster."""

    def __init__(self, decoder: Decoder, converter: Converter, *, divided: bool = False) -> None:
        """Make the reading. `divided`: whether the mapping has sections. Record types may be distinguished without
        them."""
        self._divided = divided
        self._decoder = decoder
        self._converter = converter
        self._two_steps = TwoSteps(decoder, converter)
        # The programs, by framing and number of the section.
        self._written: dict[tuple[bytes, int], Written] = {}

    @property
    def in_two_steps(self) -> int:
        """See `consumer.engine.reading.Reading`: the records that the program did not take."""
        return self._two_steps.in_two_steps

    def read(
        self, records: Records, now: float, columns: Columns, topic: str = "", partition: int = -1
    ) -> None:
        """See `consumer.engine.reading.Reading`."""
        find = self._decoder.find
        while len(columns) < len(records):
            record = records[len(columns)]
            if record is None or record.value is None:
                columns.add(TOMBSTONE if record is not None else None)
                continue
            value, framing, start, plan, number = find(record, record.value, topic)
            lot, before = records, len(columns)
            if value is not record.value:
                # An unpacked record may be large: it is read alone, at its place, before the next one is unpacked.
                record = record._replace(value=value)
                lot = [*repeat(None, before), record]
            # The record cannot be unpacked, no section of the mapping is for it, or its schema cannot be read as ours.
            if isinstance(plan, Rejection | Filtered):
                columns.add(self._decoder.unless_doubted(framing, plan))
            elif (function := self._function(framing, plan, number)) is not None:
                decisions = self._converter.descriptions[number - 1].decisions
                origin = self._decoder.origin(number, topic, partition)
                function(lot, columns, framing, start, *decisions.bounds(now), origin)
            if len(columns) == before:
                self._two_steps.read([record], now, columns, topic, partition)
            if number and self._divided:
                columns.of_section(before, number)

    def _function(self, framing: bytes, plan: Plan | None, number: int) -> Many | None:
        # The decoder does not know the schema yet: the two steps ask for it.
        if plan is None:
            return None
        written = self._written.get((framing, number))
        if written is None or written.plan is not plan:  # new, or its schema was learned again
            self._written.pop((framing, number), None)
            written = self._written[framing, number] = Written(plan, self._write(plan, number))
        return written.function

    def _write(self, plan: Plan, number: int) -> Many | None:
        # Bounded, since the topic's writers decide how many schemas there are.
        functions = sum(one.function is not None for one in self._written.values())
        if not isinstance(plan, RecordPlan) or functions >= MAX_PROGRAMS:
            return None
        try:
            return write_program(self._converter.descriptions[number - 1], plan)
        # A schema without a program costs only speed: `in_two_steps` shows it.
        except Exception:
            return None
