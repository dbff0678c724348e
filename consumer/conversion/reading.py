"""Which executor takes a record: nearly always the compiled program, else the plain path.

Theory of operation. Per writer's schema there is one program that the compiled modules run (`program`), made when the
schema is first met; it writes an event's JSON without making its payload. What it is not certain of, and what goes
wrong in it, is done again from the record's bytes in two steps, by the plain decoder and converter, whose verdict
counts. So this is faster and decides nothing: without it the same comes out.

Records of schemas that have no program (a record of more fields than there may be slots, too many schemas) always take
two steps.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

from consumer.avro.decode import Decoder
from consumer.avro.plan import Plan, RecordPlan
from consumer.conversion.converter import Converter
from consumer.conversion.program import Many, Memories, write_program
from consumer.engine.model import Record
from consumer.engine.reading import TOMBSTONE, TwoSteps

if TYPE_CHECKING:
    from consumer.engine.block import Prepared

MOST_SCHEMAS: Final = 64
"""Schemas that get a program: each costs some milliseconds, and a megabyte at the worst."""


class Written(NamedTuple):
    """What was written for a schema: the plan it was written from, and what reads its records; None: in two steps."""

    plan: Plan
    function: Many | None


class CompiledReading:
    """Reads records as `TwoSteps` does, faster."""

    def __init__(self, decoder: Decoder, converter: Converter) -> None:
        self._decoder = decoder
        self._converter = converter
        self._two_steps = TwoSteps(decoder, converter)
        self._memories: Memories = {}
        self._written: dict[bytes, Written] = {}
        """By framing."""

    @property
    def in_two_steps(self) -> int:
        """See `consumer.engine.reading.Reading`: those that were not read in one go."""
        return self._two_steps.in_two_steps

    def read(self, records: list[Record], now: float) -> list[Prepared]:
        """See `consumer.engine.reading.Reading`."""
        split, again = self._decoder.split, self._two_steps.read_one
        oldest, present = self._converter.bounds(now)
        prepared: list[Prepared] = []
        while len(prepared) < len(records):
            record = records[len(prepared)]
            if record.value is None:
                prepared.append(TOMBSTONE)
                continue
            framing, start = split(record, record.value)
            function, before = self._function(framing), len(prepared)
            if function is not None:
                function(records, prepared, framing, start, oldest, present)
            if len(prepared) == before:
                prepared.append(again(record, now))
        return prepared

    def _function(self, framing: bytes) -> Many | None:
        plan = self._decoder.plans.get(framing)
        if plan is None:
            return None
        written = self._written.get(framing)
        if written is None or written.plan is not plan:  # never met, or learned anew
            self._written.pop(framing, None)
            written = self._written[framing] = Written(plan, self._write(plan))
        return written.function

    def _write(self, plan: Plan) -> Many | None:
        functions = sum(one.function is not None for one in self._written.values())
        if not isinstance(plan, RecordPlan) or functions >= MOST_SCHEMAS:
            return None
        try:
            return write_program(self._converter.description, self._memories, plan)
        except Exception:  # a schema that the program is not up to costs its speed: `in_two_steps` tells
            return None
