"""Records that wait for their writer's schema, and what the registry has said of each schema.

Theory of operation. A record whose schema is not known is parked under the schema's reference, and the registry is
asked for the schema. Known schemas need no registry, so other records go on (confluentinc/schema-registry #928,
allegro/hermes #607). There are three possible answers:

* the schema: all its records go on;
* no answer: the records wait, without a limit, and the registry is asked again with backoff;
* "no such schema": that may only mean "not yet", because registries have followers and caches. The registry is asked
  again with the same backoff, and its answer is final for a record only once it has said so throughout `patience` while
  the record waited. Time in which the registry gave no answer does not count.

Once the registry has said so throughout `patience`, the reference is *absent*, which is remembered for the same time
again. A record with this reference that comes before then waits only for the next answer to a question asked after it
came: so a flood of records with a made-up schema does not fill the room for parked records indefinitely, and no restart
is needed once the schema is there.

Where the registry gives no answer, there may be an earlier answer of it (`SchemaFound.unanswered`): the *cached
schema*. The records go on with it, and the registry is asked again with the same backoff until it answers, even if no
record waits: an id means a schema only for one registry. Records that the cached schema cannot read wait for that
answer.

Questions are bounded, because the topic's producers choose the ids: at most `registry_concurrency` at once and
`registry_calls_per_second` a second, and for each reference one per backoff, as long as a record waits for it.

The room for these records is bounded (`admission`), and they are forgotten with their assignment.
"""

from __future__ import annotations

import heapq
import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from consumer.engine.context import Context
from consumer.engine.figures.outside import DriftedSection, SchemaWait
from consumer.engine.figures.statistics import MAX_SCHEMAS
from consumer.engine.messages import SchemaFound, SchemaUnavailable
from consumer.engine.model import Filtered, Rejection, SchemaRef
from consumer.engine.reading import SchemaLearner
from consumer.engine.records.runs import Run, bytes_of
from consumer.errors import first_of

# Seconds of unused rate that may be spent in a burst, so that a new member that needs many schemas starts quickly.
BURST: Final = 2.5
# References remembered as absent while no record waits for them.
MAX_ABSENT: Final = 1_024
_ROUNDING: Final = 1e-6


class _WaitingRecord(NamedTuple):
    row: Run
    since: float
    denied: float
    """Seconds for which the schema had been denied when the record came; minus infinity if it was absent then."""


class CachedSchema(NamedTuple):
    """An earlier answer of the registry, by which records are read, and since when (monotonic)."""

    earlier: SchemaFound
    since: float


@dataclass(slots=True)
class _Wanted:
    """One schema reference: the records that wait for it, and what the registry answered."""

    records: list[_WaitingRecord] = field(default_factory=list)
    asking: bool = False
    asked_at: float = -math.inf
    retry_at: float = -math.inf
    failures: int = 0
    denied: float = 0.0
    """Seconds throughout which the registry said that there is no such schema."""
    denied_at: float | None = None
    """When the latest question was asked to which it said so; None: it gave no answer since, or was never asked."""
    absent: bool = False
    cached: CachedSchema | None = None

    def denied_for(self, now: float) -> float:
        """Return the seconds for which the registry has said that there is no such schema, if it still does."""
        return self.denied + (now - self.denied_at if self.denied_at is not None else 0.0)


class Parking:
    """Parked records by the schema that they need, and what the registry has said of each schema."""

    def __init__(self, context: Context, decoder: SchemaLearner) -> None:
        policy = context.policy
        self._context = context
        self._decoder = decoder
        self._backoff = policy.inner_backoff
        self._patience = policy.schema_patience or math.inf
        self._max_at_once = policy.registry_concurrency
        self._rate = policy.registry_calls_per_second
        self._burst = max(1.0, BURST * self._rate)
        self._wanted: dict[SchemaRef, _Wanted] = {}
        # Absent references for which no record waits; the one put away first is forgotten first.
        self._absent: OrderedDict[SchemaRef, _Wanted] = OrderedDict()
        # Never asked for.
        self._new: deque[SchemaRef] = deque()
        # A heap of references to be asked for again, by time. Those no longer wanted are skipped.
        self._again: list[tuple[float, SchemaRef]] = []
        self._asking = self._turn = 0
        self._tokens = self._burst
        self._filled_at = -math.inf
        # Bytes that parked records hold.
        self.size = 0
        # By section, the latest schema that differs from what the mapping reads.
        self.drifts: dict[str, DriftedSection] = {}

    def __len__(self) -> int:
        return sum(len(wanted.records) for wanted in self._wanted.values())

    def park(self, ref: SchemaRef, row: Run, now: float) -> None:
        """Park a record until the schema `ref` is there."""
        wanted = self._wanted.get(ref)
        if wanted is None:
            known = self._absent.pop(ref, None)
            wanted = known if known is not None and self._is_absent(known, now) else _Wanted()
            self._wanted[ref] = wanted
            if wanted.retry_at == -math.inf:
                self._new.append(ref)
            elif not wanted.asking:
                heapq.heappush(self._again, (wanted.retry_at, ref))
        # For an absent schema one more answer is final.
        denied = -math.inf if self._is_absent(wanted, now) else wanted.denied_for(now)
        wanted.records.append(_WaitingRecord(row, now, denied))
        self.size += bytes_of((row,))

    def _is_absent(self, wanted: _Wanted, now: float) -> bool:
        """Return True if the schema is known to be absent: the registry said so throughout `patience`, and
        within the last `patience`."""
        return wanted.absent and wanted.denied_at is not None and now - wanted.denied_at <= self._patience

    # -- questions

    def ask(self, now: float) -> Iterator[SchemaRef]:
        """Yield the schemas to ask the registry for now, as many as the limits allow."""
        if not self._new and (not self._again or self._again[0][0] > now):
            return
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
        # Allow a rounding error, or the timer would fire a moment too early, again and again.
        while self._asking < self._max_at_once and self._tokens >= 1 - _ROUNDING:
            ref = self._next(now)
            if ref is None:
                return
            wanted = self._wanted[ref]
            wanted.asking, wanted.asked_at = True, now
            self._asking += 1
            self._tokens -= 1
            yield ref

    def _next(self, now: float) -> SchemaRef | None:
        """Return in turns a reference that was asked for before and a new one; of the new ones, in turns the
        oldest and the newest. So none waits long behind a flood of made-up ids."""
        self._turn += 1
        # An entry that is no longer wanted, or that was entered again for another time, is skipped.
        old_first = self._turn % 2
        for again in (old_first, not old_first):
            while (self._again and self._again[0][0] <= now) if again else self._new:
                if again:
                    at, ref = heapq.heappop(self._again)
                else:
                    at, ref = -math.inf, self._new.popleft() if self._turn % 4 < 2 else self._new.pop()
                if self._waits(ref, at):
                    return ref
        return None

    def _waits(self, ref: SchemaRef, at: float) -> bool:
        """Return True if the reference is still to be asked for at the time `at` of its entry."""
        wanted = self._wanted.get(ref)
        return wanted is not None and not wanted.asking and wanted.retry_at == at

    def due(self) -> float | None:
        """Return when to ask for the next schema; None: only after another answer, or not at all."""
        if self._asking >= self._max_at_once or not (self._new or self._again):
            return None
        affordable = self._filled_at + max(0.0, 1 - self._tokens) / self._rate
        return max(affordable, -math.inf if self._new else self._again[0][0])

    # -- answers

    def found(self, happened: SchemaFound) -> list[Run]:
        """Return the records that go on, in the order in which they came: their schema is there, readable or not."""
        if happened.unanswered is not None:
            return self._use_cached(happened, happened.unanswered.reason)
        ref, report = happened.ref, self._context.report
        wanted = self._answered(ref, happened)
        # The decoder decides whether the schema can be read.
        rejection = self._decoder.add_schema(ref, happened.schema, happened.kind)
        if isinstance(rejection, Rejection):
            report("error", "schema", ref=ref.value, verdict=rejection.code, reason=rejection.message)
        else:
            report("info", "schema", ref=ref.value, verdict="known" if rejection is None else rejection.code)
        self._absent.pop(ref, None)
        self._report_drift(ref)
        if wanted is None:
            return []
        del self._wanted[ref]
        return self._leave(wanted.records)

    def _report_drift(self, ref: SchemaRef) -> None:
        """Report how a schema that was just learned differs from what the mapping reads."""
        for section, lacks, could_fill in self._decoder.drift(ref):
            # The latest schema counts: one that has all of it ends the report.
            self.drifts.pop(section, None)
            if lacks or could_fill:
                self.drifts[section] = DriftedSection(section, f"{ref.kind} {ref.value}", lacks, could_fill)
                self._context.report(
                    "warning" if lacks else "info", "schema_drift", ref=ref.value, section=section,
                    lacks=first_of(lacks, MAX_SCHEMAS), could_fill=first_of(could_fill, MAX_SCHEMAS),
                )  # fmt: skip

    def _use_cached(self, earlier: SchemaFound, reason: str) -> list[Run]:
        """Use an earlier answer, since the registry gives none now. Return the records that go on with it."""
        context, ref = self._context, earlier.ref
        wanted = self._wanted.get(ref)
        is_news = wanted is not None and wanted.cached is None
        rows: list[Run] = []
        if wanted is not None and is_news:
            wanted.cached = CachedSchema(earlier, context.now.monotonic)
            rows, wanted.records = self._leave(wanted.records), []
        self._unanswered(ref)
        # Otherwise it is in use already and was reported, as an outage may last for days; or no record needs it now.
        if is_news:
            self._decoder.add_schema(ref, earlier.schema, earlier.kind)
            self._decoder.doubt(ref)
            context.report("warning", "schema_from_disk", ref=ref.value, reason=reason)
            self._report_drift(ref)
        return rows

    def missing(self, ref: SchemaRef) -> list[tuple[Run, Filtered | Rejection]]:
        """Take the answer that there is no such schema (yet). Return the records for which it is final, and
        verdicts."""
        context = self._context
        wanted, jitter = self._answered(ref, None), context.jitter()
        final = [] if wanted is None else self._deny(wanted)
        if wanted is not None:
            self._later(ref, wanted, jitter)
        if final:
            rejection = self._decoder.missing(ref)
            context.report(
                "error", "schema", ref=ref.value, verdict="no_such_schema", records=len(final),
                reason=rejection.message if isinstance(rejection, Rejection) else "",
            )  # fmt: skip
            return [(row, rejection) for row in self._leave(final)]
        known = self._wanted.get(ref) or self._absent.get(ref)
        if known is None or known.denied == 0:
            patience = context.policy.schema_patience
            context.report("warning", "schema_missing", ref=ref.value, patience=patience)
        return []

    def _deny(self, wanted: _Wanted) -> list[_WaitingRecord]:
        """Remove and return the records for which it is final that there is no such schema."""
        # An answer holds for the time when it was asked for: a process that stood still reads it much later.
        at = wanted.asked_at
        if wanted.absent and not self._is_absent(wanted, self._context.now.monotonic):
            # No answer came for a long time: the registry has to say so throughout `patience` again.
            wanted.records = [one._replace(denied=one.denied - wanted.denied) for one in wanted.records]
            wanted.absent, wanted.denied = False, 0.0
        wanted.denied, wanted.denied_at = wanted.denied_for(at), at
        if wanted.denied >= self._patience:
            wanted.absent = True
        final = [one for one in wanted.records if self._is_final(wanted, one)]
        if final:
            wanted.records = [one for one in wanted.records if not self._is_final(wanted, one)]
        return final

    def unavailable(self, happened: SchemaUnavailable) -> None:
        """Take a question that failed: whether there is such a schema is not known, and its records wait."""
        ref = happened.ref.value
        self._context.report("warning", "schema_unavailable", ref=ref, reason=happened.reason)
        self._unanswered(happened.ref)

    def _unanswered(self, ref: SchemaRef) -> None:
        """Ask again later, since the registry gave no answer."""
        self._context.counters.failures["registry"] += 1
        wanted, jitter = self._wanted.get(ref), self._context.jitter()
        if wanted is not None:
            self._end_question(wanted)
            # The time for which it was denied before says nothing about now: only time covered by answers counts.
            wanted.denied_at = None
            self._later(ref, wanted, jitter)

    def _answered(self, ref: SchemaRef, answer: SchemaFound | None) -> _Wanted | None:
        """End a question that the registry answered (`answer` None: there is no such schema). Report it
        if the schema differs from the cached one.

        Return the entry of the reference; None: no record waits for it any more.
        """
        wanted = self._wanted.get(ref)
        if wanted is None:
            return None
        self._end_question(wanted)
        cached, wanted.cached = wanted.cached, None
        if cached is not None and (answer is None or not answer.is_same(cached.earlier)):
            # Events read by the wrong schema are delivered: only a person can correct that.
            # A cached schema that the registry no longer has was most likely the right schema.
            self._context.report(
                "warning" if answer is None else "error", "schema_changed", ref=ref.value,
                now="none" if answer is None else "another",
                seconds=round(self._context.now.monotonic - cached.since),
            )  # fmt: skip
            self._decoder.forget(ref)
        return wanted

    def _end_question(self, wanted: _Wanted) -> None:
        # Frees the place of the question. There is none if the reference was forgotten and is wanted again.
        self._asking -= wanted.asking
        wanted.asking = False

    def _leave(self, records: Sequence[_WaitingRecord]) -> list[Run]:
        """Return the rows of records that need not wait any longer."""
        rows = [one.row for one in records]
        self.size -= bytes_of(rows)
        return rows

    def _is_final(self, wanted: _Wanted, one: _WaitingRecord) -> bool:
        waited = wanted.denied - one.denied >= self._patience
        # A question that was asked before the record came may have been answered before its schema was registered.
        return waited and one.since <= wanted.asked_at

    def _later(self, ref: SchemaRef, wanted: _Wanted, jitter: float) -> None:
        """Ask again later, if records wait for the schema by then, or a cached schema is in use."""
        wanted.failures += 1
        delay = self._backoff.delay(wanted.failures, 0.5 + jitter / 2)
        wanted.retry_at = self._context.now.monotonic + delay
        if wanted.records or wanted.cached is not None:
            heapq.heappush(self._again, (wanted.retry_at, ref))
        else:
            self._put_away(ref, wanted)

    def _put_away(self, ref: SchemaRef, wanted: _Wanted) -> None:
        """Forget a reference for which no record waits; remember only that it is absent."""
        del self._wanted[ref]
        if not wanted.absent:
            return
        self._absent[ref] = wanted
        # Producers choose the ids: made-up ids must not fill the memory.
        if len(self._absent) > MAX_ABSENT:
            self._absent.popitem(last=False)

    # -- ends, and figures

    def purge(self) -> list[Run]:
        """Remove and return records that were revoked or are being drained."""
        gone: list[Run] = []
        for ref, wanted in list(self._wanted.items()):
            gone += [one.row for one in wanted.records if not one.row.accepted]
            wanted.records = [one for one in wanted.records if one.row.accepted]
            if not wanted.records and not wanted.asking and wanted.cached is None:
                self._put_away(ref, wanted)
        # No record waits for the other references, and questions are few.
        self._new = deque(ref for ref in self._new if self._waits(ref, -math.inf))
        self._again = [(at, ref) for at, ref in self._again if self._waits(ref, at)]
        heapq.heapify(self._again)
        self.size = sum(bytes_of(one.row for one in wanted.records) for wanted in self._wanted.values())
        return gone

    @property
    def cached_schemas(self) -> int:
        """Schemas for which an earlier answer of the registry is in use."""
        return sum(wanted.cached is not None for wanted in self._wanted.values())

    def waits(self, now: float) -> tuple[SchemaWait, ...]:
        """Return the schemas that records wait for, the longest wait first, at most `MAX_SCHEMAS`."""
        waited = [(ref, wanted) for ref, wanted in self._wanted.items() if wanted.records]
        # Producers choose the ids: there may be thousands.
        longest = heapq.nsmallest(MAX_SCHEMAS, waited, key=lambda one: one[1].records[0].since)
        return tuple(
            SchemaWait(
                *ref,
                len(wanted.records),
                now - wanted.records[0].since,
                None if wanted.denied_at is None else wanted.denied_for(now),
            )
            for ref, wanted in longest
        )
