"""``replay --dry-run --against OLD``: what another mapping would make of the records that are read.

Theory of operation. The dry run goes on as it would without; beside its reading stands that of the other mapping, and
each slice of records is read by both. A record waits until the schemas of both are known, also that of a key which only
the other mapping reads: it goes to the run's own reading then. A slice may be read more than once: records that do not
fit are read again, and so are those that waited for their schema or their time. So a slice is compared when the next
one comes: by then the engine has cut its columns to the rows that it took, and replaced the verdicts on records that
wait.

With a function of the user's, both mappings convert what it returned: it is called once for a record.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from consumer.app import building
from consumer.commands.comparison import Comparison, Judged, judged
from consumer.commands.payload import Nets, hidden_in
from consumer.commands.replay.options import LeavingOut, Selecting, WhereCondition, WithoutMissing
from consumer.conversion.sections import Sections
from consumer.engine.model import Later, Record, SchemaRef
from consumer.engine.reading import Columns, Reading, Records, SchemaLearner, TwoSteps
from consumer.errors import UsageError
from consumer.settings import Settings

# A record, and what both mappings make of it.
_Judged = tuple[Record | None, Judged | None, Judged | None]


class Against:
    """A `Reading` by the mapping of `settings`, which is `mapped`, that compares it with the `old` one.

    Raises `UsageError` if what the user's function returns cannot be converted by both.
    """

    def __init__(
        self, settings: Settings, mapped: Sections, old: Sections, where: Sequence[WhereCondition]
    ) -> None:
        self._comparison = Comparison()
        self._mapped, self._old, self._where = mapped, old, where
        self._has_function = settings.pinstream.transform is not None
        if self._has_function and [one[:2] for one in mapped.all] != [one[:2] for one in old.all]:
            raise UsageError(
                "--against with PINSTREAM_TRANSFORM: the function is called once for a record, for both mappings; give "
                "both files the same sections"
            )
        self._decoder, converter, fast = building.reading_parts(settings, old, fast=not where)
        self._converter = Selecting(converter, where)
        self._before: Reading = fast or TwoSteps(self._decoder, self._converter)
        self._new: SchemaLearner = self._decoder
        self._after: Reading = self._before
        self._compare_last: Callable[[], None] = lambda: None

    def decoding(self, decoder: SchemaLearner) -> SchemaLearner:
        """Return the decoder of the run, which teaches the schemas that it learns to the old mapping's, too."""
        self._new = WithoutMissing(decoder) if self._where else decoder
        return _Both(self._new, self._decoder)

    def around(self, reading: Reading) -> Reading:
        """Take `reading` as that of the run."""
        if self._has_function and isinstance(reading, TwoSteps):
            self._before = TwoSteps(reading.decoder, self._converter)
        self._before = LeavingOut(self._before, where=bool(self._where))
        self._after = LeavingOut(reading, where=bool(self._where))
        return self

    @property
    def in_two_steps(self) -> int:
        """See `consumer.engine.reading.Reading`."""
        return self._after.in_two_steps

    def read(self, records: Records, now: float, columns: Columns, topic: str, partition: int) -> None:
        """See `consumer.engine.reading.Reading`."""
        self._compare_last()
        before = Columns(columns.make_key)
        self._before.read(records, now, before, topic, partition)
        waits = {row: one for row, one in before.verdicts.items() if isinstance(one, SchemaRef)}
        known = [None if row in waits else record for row, record in enumerate(records)]
        self._after.read(known, now, columns, topic, partition)
        columns.verdicts.update(waits)
        # Judged at once, since the engine changes not only the verdicts.
        both = [*zip(records, judged(before), judged(columns), strict=True)]
        self._compare_last = partial(self._compare, both, columns, topic, partition)

    def _compare(self, both: Sequence[_Judged], columns: Columns, topic: str, partition: int) -> None:
        """Compare records as far as the engine took them."""
        for row, (record, was, now) in enumerate(both[: len(columns)]):
            if record is not None and not isinstance(columns.verdicts.get(row), Later):
                self._comparison.add(was, now, partial(self._show, record, topic, partition))

    def document(self, read: int) -> dict[str, Any]:
        """Return the JSON form, after the run has read this many records."""
        self._compare_last()
        found = self._comparison.document()
        # Above all records whose schema does not exist: they are not read.
        return {**found, "not_compared": read - found["records"]}

    def _show(self, record: Record, topic: str, partition: int) -> tuple[str, Nets]:
        new, old = (one.decode(record, topic, partition) for one in (self._new, self._decoder))
        hidden = hidden_in(new, self._mapped, self._old), hidden_in(old, self._old, self._mapped)
        return f"{topic}:{partition}:{record.offset}", Nets([*hidden[0], *hidden[1]])


class _Both:
    """The decoder of the run, which teaches what it learns to that of the old mapping."""

    def __init__(self, new: SchemaLearner, old: SchemaLearner) -> None:
        self.decode, self.section_of, self.missing = new.decode, new.section_of, new.missing

        def both(name: str) -> Callable[..., Any]:
            def call(*given: Any) -> Any:
                getattr(old, name)(*given)
                return getattr(new, name)(*given)

            return call

        self.add_schema, self.doubt, self.forget = map(both, ("add_schema", "doubt", "forget"))
