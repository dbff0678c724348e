"""``replay --dry-run --against OLD``: what another mapping would make of the records that are read.

Theory of operation. The dry run goes on as it would without; beside its reading stands that of the other mapping, and
each slice of records is read by both. A record waits until the schemas of both are known, also that of a key which only
the other mapping reads; if that does not exist, the record is not compared, and the ledger counts it as a dead letter.
A slice may be read more than once: records that do not fit are read again, and so are those that waited for their
schema or their time. So a slice is compared when the next one comes: by then the engine has cut its columns to the rows
that it took, and replaced the verdicts on records that wait.

With a function of the user's, both mappings convert what it returned: it is called once for a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from consumer.app import building
from consumer.commands.comparison import Comparison, RecordOutcome, outcomes_in
from consumer.commands.payload import Nets, nets_of
from consumer.commands.replay.options import LeavingOut, Selecting, WhereCondition, WithoutMissing
from consumer.conversion.sections import Sections
from consumer.engine.model import Filtered, Later, Record, Rejection, SchemaDrift, SchemaRef
from consumer.engine.reading import Columns, Reading, Records, SchemaLearner, TwoSteps
from consumer.errors import UsageError
from consumer.settings import Settings

# A record, and what both mappings make of it.
_Compared = tuple[Record | None, RecordOutcome | None, RecordOutcome | None]


class Against:
    """The decoder and the `Reading` of a run, which compare its mapping, `mapped`, with the `old` one.

    Raises `UsageError` if what the user's function returns cannot be converted by both.
    """

    def __init__(
        self, settings: Settings, mapped: Sections, old: Sections, where: Sequence[WhereCondition]
    ) -> None:
        self._comparison = Comparison()
        self._compare_last: Callable[[], None] = lambda: None
        self._settings, self._mapped, self._old, self._where = settings, mapped, old, where
        self._has_function = settings.pinstream.transform is not None
        if self._has_function and [one[:2] for one in mapped.all] != [one[:2] for one in old.all]:
            raise UsageError(
                "--against with PINSTREAM_TRANSFORM: the function is called once for a record, for both mappings; give "
                "both files the same sections"
            )
        self._before, self._converter, self._fast = building.reading_parts(settings, old, fast=not where)

    def decoding(self, decoder: SchemaLearner) -> SchemaLearner:
        """Take `decoder` as that of the run; what it learns, the old mapping's learns, too."""
        if self._has_function:
            # Both convert what the function returned, so it needs what either asks for of Kafka.
            function = building.transformer(self._settings, self._mapped)
            asked = [one.asked for one in self._old.all]
            decoder = building.decoder(self._mapped, function, origins=asked)
        self._after = WithoutMissing(decoder) if self._where else decoder
        self.decode, self.section_of, self.missing = decoder.decode, decoder.section_of, self._after.missing
        return self

    def add_schema(self, *given: Any) -> Rejection | Filtered | None:
        """See `consumer.engine.reading.SchemaLearner`."""
        self._before.add_schema(*given)
        return self._after.add_schema(*given)

    def drift(self, ref: SchemaRef) -> Sequence[SchemaDrift]:
        """See `consumer.engine.reading.SchemaLearner`."""
        return self._after.drift(ref)

    def doubt(self, ref: SchemaRef) -> None:
        """See `consumer.engine.reading.SchemaLearner`."""
        self._before.doubt(ref)
        self._after.doubt(ref)

    def forget(self, ref: SchemaRef) -> None:
        """See `consumer.engine.reading.SchemaLearner`."""
        self._before.forget(ref)
        self._after.forget(ref)

    def around(self, reading: Reading) -> Reading:
        """Take `reading` as that of the run."""
        # With a function, the engine reads what that returned.
        decoder = reading.decoder if self._has_function and isinstance(reading, TwoSteps) else self._before
        before = self._fast or TwoSteps(decoder, Selecting(self._converter, self._where))
        self._readings = [LeavingOut(one, where=bool(self._where)) for one in (before, reading)]
        return self

    @property
    def in_two_steps(self) -> int:
        """See `consumer.engine.reading.Reading`."""
        return self._readings[1].in_two_steps

    def read(self, records: Records, now: float, columns: Columns, topic: str, partition: int) -> None:
        """See `consumer.engine.reading.Reading`."""
        self._compare_last()
        before = Columns(columns.make_key)
        self._readings[0].read(records, now, before, topic, partition)
        waits = {row: one for row, one in before.verdicts.items() if isinstance(one, SchemaRef)}
        known = [None if row in waits else record for row, record in enumerate(records)]
        self._readings[1].read(known, now, columns, topic, partition)
        columns.verdicts.update(waits)
        # Read at once, since the engine changes not only the verdicts.
        both = [*zip(records, outcomes_in(before), outcomes_in(columns), strict=True)]
        self._compare_last = partial(self._compare, both, columns, topic, partition)

    def _compare(self, both: list[_Compared], columns: Columns, topic: str, partition: int) -> None:
        """Compare records, once, as far as the engine took them."""
        for row, (record, was, now) in enumerate(both[: len(columns)]):
            if record is not None and not isinstance(columns.verdicts.get(row), Later):
                self._comparison.add(was, now, partial(self._show, record, topic, partition))
        both.clear()

    def document(self, read: int) -> dict[str, Any]:
        """Return the JSON form, after the run has read this many records."""
        self._compare_last()
        found = self._comparison.document()
        # Above all records whose schema does not exist: they are not read.
        return {**found, "not_compared": read - found["records"]}

    def _show(self, record: Record, topic: str, partition: int) -> tuple[str, Nets]:
        was, now = (one.decode(record, topic, partition) for one in (self._before, self._after))
        return f"{topic}:{partition}:{record.offset}", nets_of(was, self._old, now, self._mapped)
