"""A plan without what is not asked for: read over, for its bytes must be a datum all the same, and never built.

Theory of operation. A datum of a megabyte may hold a million records of one byte each, which as dictionaries take half
a gigabyte. What the writer has and we lack, and what the mapping does not ask for of ours, becomes a plan that makes
nothing: arrays and maps that keep no items, records without a named field. The values within are still read, by the
same functions, so that the verdict on hostile bytes is the same; each is gone before the next one.
"""

from __future__ import annotations

from consumer.avro.paths import ALL, EACH, NOTHING, Asked, below_any, names_in, within
from consumer.avro.source import (
    ArrayPlan,
    DefaultPlan,
    MapPlan,
    OptionalPlan,
    Plan,
    RecordPlan,
    UnionPlan,
)

_NO_KEYS: frozenset[str] = frozenset()


def trimmed(plan: Plan, asked: Asked = ALL) -> Plan:
    """What reads `plan` and makes only what `asked` names of it."""
    return _Trimming().trim(plan, asked)


class _Trimming:
    """One plan being trimmed. A record may stand in many places, and in itself: it is trimmed once for each asking."""

    def __init__(self) -> None:
        self._records: dict[tuple[RecordPlan, Asked], RecordPlan] = {}

    def trim(self, plan: Plan, asked: Asked) -> Plan:
        if isinstance(plan, RecordPlan):
            return self._record(plan, asked)
        if isinstance(plan, OptionalPlan):
            return OptionalPlan(plan.null, self.trim(plan.value, asked))
        if isinstance(plan, UnionPlan):
            return UnionPlan(tuple(self.trim(branch, asked) for branch in plan.branches))
        if isinstance(plan, ArrayPlan):
            return ArrayPlan(self.trim(plan.item, within(asked, EACH.name) or asked), bool(asked))
        if isinstance(plan, MapPlan):
            return self._map(plan, asked)
        return plan

    def _map(self, plan: MapPlan, asked: Asked) -> MapPlan:
        if not asked:
            return MapPlan(self.trim(plan.value, NOTHING), _NO_KEYS)
        keys = names_in(asked)
        return MapPlan(self.trim(plan.value, ALL if keys is None else below_any(asked)), keys)

    def _record(self, plan: RecordPlan, asked: Asked) -> RecordPlan:
        key = (plan, asked)
        if key in self._records or plan.fields is None:
            return self._records.get(key, plan)
        self._records[key] = made = RecordPlan(plan.name)
        made.fields = [
            (name if below else None, self.trim(value, below))
            for name, value, below in (
                (name, value, NOTHING if name is None else within(asked, name)) for name, value in plan.fields
            )
            if below or not isinstance(value, DefaultPlan)
        ]
        return made
