"""Records that wait for their writer's schema.

Theory of operation. A record whose schema we have not seen is parked under the schema's reference, and the
reference is asked for once. No verdict (registry down) means asking again later, for ever; the record stays open,
so it is never committed past and never a dead letter. Known schemas need no registry at all, so other records go
on (lessons.md: confluentinc/schema-registry #928, allegro/hermes #607).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from consumer.core.model import SchemaRef
from consumer.core.policy import Backoff
from consumer.core.spans import Span

Parked = tuple[Span, int]


class _Waiting:
    __slots__ = ("asking", "failures", "records", "retry_at")

    def __init__(self) -> None:
        self.records: list[Parked] = []
        self.asking = False
        self.failures = 0
        self.retry_at = float("-inf")


class Parking:
    """Parked records by the schema they need."""

    def __init__(self, backoff: Backoff) -> None:
        self._backoff = backoff
        self._by_ref: dict[SchemaRef, _Waiting] = {}
        self.size = 0
        """Bytes that parked records hold."""

    def __len__(self) -> int:
        return sum(len(waiting.records) for waiting in self._by_ref.values())

    def park(self, ref: SchemaRef, span: Span, index: int) -> None:
        """This record needs that schema."""
        self._by_ref.setdefault(ref, _Waiting()).records.append((span, index))
        self.size += span.costs[index]

    def holds(self, span: Span, index: int) -> bool:
        """Whether this record is parked."""
        return any((span, index) in waiting.records for waiting in self._by_ref.values())

    def ask(self, now: float) -> Iterator[SchemaRef]:
        """Schemas to be asked for now."""
        for ref, waiting in self._by_ref.items():
            if not waiting.asking and waiting.retry_at <= now:
                waiting.asking = True
                yield ref

    def due(self) -> float | None:
        """When the next schema is to be asked for."""
        return min((one.retry_at for one in self._by_ref.values() if not one.asking), default=None)

    def answered(self, ref: SchemaRef) -> list[Parked]:
        """There is a verdict: the records that waited for it, in the order they came."""
        waiting = self._by_ref.pop(ref, None)
        if waiting is None:
            return []
        self.size -= _size(waiting.records)
        return waiting.records

    def unavailable(self, ref: SchemaRef, now: float, jitter: float) -> None:
        """No verdict: ask again later."""
        waiting = self._by_ref.get(ref)
        if waiting is None:
            return
        if not waiting.records:
            # All that needed it were let go of meanwhile: nobody asks any more.
            del self._by_ref[ref]
            return
        waiting.asking = False
        waiting.failures += 1
        waiting.retry_at = now + self._backoff.delay(waiting.failures, 0.5 + jitter / 2)

    def purge(self) -> None:
        """Forget records that are no longer ours."""
        for waiting in self._by_ref.values():
            waiting.records = [
                (span, index)
                for span, index in waiting.records
                if span.ours(index) and span.assignment.accepts
            ]
        self._by_ref = {ref: one for ref, one in self._by_ref.items() if one.records or one.asking}
        self.size = sum(_size(waiting.records) for waiting in self._by_ref.values())


def _size(parked: Iterable[Parked]) -> int:
    return sum(span.costs[index] for span, index in parked)
