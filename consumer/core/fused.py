"""Decoding and converting in one go: what nearly every record takes.

Theory of operation. Per writer's schema there is one function from a record's bytes to its conversion event
(`fused_source`), written when the schema is first met. What it is not certain of, and what goes wrong in it, is done
again in two steps, by the decoder and the converter, whose verdict counts. So this is faster and decides nothing:
without it the same comes out.

Where the package was built with a C compiler, the reading half of the function runs in C (`slots`).

Records of schemas that cannot be read so (a record of more fields than one function takes, too many schemas) always
take two steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

from consumer.core.avro_source import Plan, RecordPlan
from consumer.core.convert import Converter
from consumer.core.decode import Decoder
from consumer.core.fused_source import Fused, write_fused
from consumer.core.intake import TwoSteps
from consumer.core.model import Record
from consumer.core.slots import SLOTS, write_slots

if TYPE_CHECKING:
    from consumer.core.intake import Read

MOST_SCHEMAS: Final = 64
"""Schemas for which a function is written: each costs some milliseconds, and a megabyte at the worst."""


class Written(NamedTuple):
    """What was written for a schema: the plan it was written from, and the function; None: in two steps."""

    plan: Plan
    function: Fused | None


class FusedReading:
    """Reads records as `TwoSteps` does, faster."""

    def __init__(self, decoder: Decoder, converter: Converter, *, compiled: bool = SLOTS is not None) -> None:
        """`compiled`: with the compiled module, which must be there."""
        self._function_of = write_slots if compiled else write_fused
        self._decoder = decoder
        self._converter = converter
        self._two_steps = TwoSteps(decoder, converter)
        self._written: dict[bytes, Written] = {}
        """By framing."""

    def read(self, records: list[Record], now: float) -> Iterator[Read]:
        """See `consumer.core.intake.Reading`."""
        split, again = self._decoder.split, self._two_steps.read_one
        oldest, present = self._converter.bounds(now)
        framing, start, fused, left = b"", 0, None, 0
        for record in records:
            value = record.value
            if value is None:
                yield None
                continue
            # As in `Decoder.decode_chunk`: mostly the whole chunk is framed alike.
            if fused is None or record.headers or value[:start] != framing:
                framing, start = split(record, value)
                fused = self._function(framing)
            result: Read = None
            if fused is not None:
                try:
                    result = fused(value, start, oldest, present)
                except Exception:  # whatever it is, the two steps find out and say
                    result = None
            if result is None:
                left += 1
                result = again(record, now)
            yield result
        # Whatever took two steps was counted there.
        self._converter.watch.add(len(records) - left)

    def _function(self, framing: bytes) -> Fused | None:
        plan = self._decoder.plans.get(framing)
        if plan is None:
            return None
        written = self._written.get(framing)
        if written is None or written.plan is not plan:  # never met, or learned anew
            self._written.pop(framing, None)
            written = self._written[framing] = Written(plan, self._write(plan))
        return written.function

    def _write(self, plan: Plan) -> Fused | None:
        functions = sum(one.function is not None for one in self._written.values())
        if not isinstance(plan, RecordPlan) or functions >= MOST_SCHEMAS:
            return None
        try:
            return self._function_of(self._converter.task, plan)
        except Exception:  # a schema that the compiler is not up to costs its speed, not the service
            return None
