"""Records that wait: for their writer's schema (`Parking`), for their time (`UntimelyRecords`), or for the user's
function (`Transforming`).

Theory of operation. A record whose schema is not known is parked under the schema's reference, and the registry is
asked for the schema. Known schemas need no registry, so other records go on (confluentinc/schema-registry #928,
allegro/hermes #607). There are three possible answers:

* the schema: all its records go on;
* no answer: the records wait, without a limit, and the registry is asked again with backoff;
* "no such schema": that may only mean "not yet", because registries have followers and caches. The registry is asked
  again with the same backoff, and its answer is final for a record only once it has said so throughout `patience` while
  the record waited. Time in which the registry gave no answer does not count.

Once the registry has said so throughout `patience`, the reference is *absent*, which is remembered for the same time
again. A record with this reference that comes meanwhile waits only for the next answer to a question asked after it
came: so a flood of records with a made-up schema does not fill the room for parked records for ever, and no restart is
needed once the schema is there.

Where the registry gives no answer, there may be an earlier answer of it (`SchemaFound.unanswered`): the *stand-in*.
The records go on with it, and the registry is asked again with the same backoff until it answers, even if no record
waits: an id means a schema only within one life of a registry. Records that the stand-in cannot read wait for that
answer.

Questions are bounded, because the topic's producers choose the ids: at most `registry_concurrency` at once and
`registry_calls_per_second` a second, and for each reference one per backoff, as long as a record waits for it.

Events too far ahead of our clock, which may be slow, wait as open records and are judged again, and so do those that
are too old by our clock, which may be fast. While the platform's time is not known, an event too far ahead is not
refused if its record's timestamp is ahead of our clock, too; and none is too old unless the records have confirmed our
clock (`context.Clock`). An event waits until its time comes, or the engine's time changes. While any waits, the clock
asks the platform for the time: all events may wait, so that no other call brings it.

These events share the bounds of records that wait for their schema (`consumer.engine.intake`), and are forgotten with
their assignment.

The engine does not call the function of ``PINSTREAM_TRANSFORM`` itself, because a call may take any time. So a record
waits for the function before it is read, and is not open meanwhile: a drain does not wait for the record, and the
partition's next owner reads it again.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple

from consumer.engine.block import ROW_BYTES, Run, goes_on
from consumer.engine.context import SKEW, Context
from consumer.engine.figures.outside import SchemaWait
from consumer.engine.figures.statistics import SCHEMAS_MOST, SlowTransform
from consumer.engine.messages import SchemaFound, SchemaUnavailable, Transform, Transformed, TransformIsSlow
from consumer.engine.model import (
    CommerceEvent,
    Filtered,
    Instant,
    Later,
    Record,
    Rejection,
    SchemaRef,
    TopicPartition,
)
from consumer.engine.reading import Decoded, SchemaLearner
from consumer.errors import bug

# Seconds of unused rate that may be spent in a burst, so that a new member that needs many schemas starts quickly.
BURST: Final = 2.5
# References remembered as absent while no record waits for them.
ABSENT_MOST: Final = 1_024
_ROUNDING: Final = 1e-6


class _WaitingRecord(NamedTuple):
    row: Run
    since: float
    denied: float
    """Seconds for which the schema had been denied when the record came; minus infinity if it was absent then."""


class StandIn(NamedTuple):
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
    stand_in: StandIn | None = None

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
        self._most_at_once = policy.registry_concurrency
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
        self.size += _size((row,))

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
        while self._asking < self._most_at_once and self._tokens >= 1 - _ROUNDING:
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
        if self._asking >= self._most_at_once or not (self._new or self._again):
            return None
        affordable = self._filled_at + max(0.0, 1 - self._tokens) / self._rate
        return max(affordable, -math.inf if self._new else self._again[0][0])

    # -- answers

    def found(self, happened: SchemaFound) -> list[Run]:
        """Return the records that go on, in the order in which they came: their schema is there, readable or not."""
        if happened.unanswered is not None:
            return self._stand_in(happened, happened.unanswered.reason)
        ref, report = happened.ref, self._context.report
        wanted = self._answered(ref, happened)
        # The decoder decides whether the schema can be read.
        rejection = self._decoder.add_schema(ref, happened.schema, happened.kind)
        if isinstance(rejection, Rejection):
            report("error", "schema", ref=ref.value, verdict=rejection.code, reason=rejection.message)
        else:
            report("info", "schema", ref=ref.value, verdict="known" if rejection is None else rejection.code)
        self._absent.pop(ref, None)
        if wanted is None:
            return []
        del self._wanted[ref]
        return self._leave(wanted.records)

    def _stand_in(self, earlier: SchemaFound, reason: str) -> list[Run]:
        """Use an earlier answer, since the registry gives none now. Return the records that go on with it."""
        context, ref = self._context, earlier.ref
        wanted = self._wanted.get(ref)
        is_news = wanted is not None and wanted.stand_in is None
        rows: list[Run] = []
        if wanted is not None and is_news:
            wanted.stand_in = StandIn(earlier, context.now.monotonic)
            rows, wanted.records = self._leave(wanted.records), []
        self._unanswered(ref)
        # Otherwise it is in use already and was reported, as an outage may last for days; or no record needs it now.
        if is_news:
            self._decoder.add_schema(ref, earlier.schema, earlier.kind)
            self._decoder.doubt(ref)
            context.report("warning", "schema_from_disk", ref=ref.value, reason=reason)
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
            # No answer came for a long time: the registry has to say so throughout `patience` once more.
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
        """End a question that the registry answered (`answer` None: there is no such schema). Report it if the
        schema differs from its stand-in.

        Return the entry of the reference; None: no record waits for it any more.
        """
        wanted = self._wanted.get(ref)
        if wanted is None:
            return None
        self._end_question(wanted)
        stand_in, wanted.stand_in = wanted.stand_in, None
        if stand_in is not None and (answer is None or not answer.is_same(stand_in.earlier)):
            # Events read by the wrong schema are delivered: only a person can correct that. A stand-in that the
            # registry no longer has was most likely the right schema.
            self._context.report(
                "warning" if answer is None else "error", "schema_changed", ref=ref.value,
                now="none" if answer is None else "another",
                seconds=round(self._context.now.monotonic - stand_in.since),
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
        self.size -= _size(rows)
        return rows

    def _is_final(self, wanted: _Wanted, one: _WaitingRecord) -> bool:
        waited = wanted.denied - one.denied >= self._patience
        # A question that was asked before the record came may have been answered before its schema was registered.
        return waited and one.since <= wanted.asked_at

    def _later(self, ref: SchemaRef, wanted: _Wanted, jitter: float) -> None:
        """Ask again later, if records wait for the schema by then, or a stand-in is in use."""
        wanted.failures += 1
        delay = self._backoff.delay(wanted.failures, 0.5 + jitter / 2)
        wanted.retry_at = self._context.now.monotonic + delay
        if wanted.records or wanted.stand_in is not None:
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
        if len(self._absent) > ABSENT_MOST:
            self._absent.popitem(last=False)

    # -- ends, and figures

    def purge(self) -> None:
        """Forget records that were revoked or are being drained."""
        for ref, wanted in list(self._wanted.items()):
            wanted.records = [one for one in wanted.records if goes_on(one.row)]
            if not wanted.records and not wanted.asking and wanted.stand_in is None:
                self._put_away(ref, wanted)
        # No record waits for the other references, and questions are few.
        self._new = deque(ref for ref in self._new if self._waits(ref, -math.inf))
        self._again = [(at, ref) for at, ref in self._again if self._waits(ref, at)]
        heapq.heapify(self._again)
        self.size = sum(_size(one.row for one in wanted.records) for wanted in self._wanted.values())

    @property
    def stand_ins(self) -> int:
        """Schemas for which an earlier answer of the registry is in use."""
        return sum(wanted.stand_in is not None for wanted in self._wanted.values())

    def waits(self, now: float) -> tuple[SchemaWait, ...]:
        """Return the schemas that records wait for, the longest wait first, at most `SCHEMAS_MOST`."""
        waited = [(ref, wanted) for ref, wanted in self._wanted.items() if wanted.records]
        # Producers choose the ids: there may be thousands.
        longest = heapq.nsmallest(SCHEMAS_MOST, waited, key=lambda one: one[1].records[0].since)
        return tuple(
            SchemaWait(
                *ref,
                len(wanted.records),
                now - wanted.records[0].since,
                None if wanted.denied_at is None else wanted.denied_for(now),
            )
            for ref, wanted in longest
        )


def _size(rows: Iterable[Run]) -> int:
    return sum(sum(block.sizes[first:end]) + ROW_BYTES * (end - first) for block, first, end in rows)


_A_MOMENT: Final = 0.01


class UntimelyRecords:
    """Records of events that lie ahead, by the time of the event; then those that look too old."""

    def __init__(self) -> None:
        # A heap.
        self._waiting: list[tuple[float, int, Run]] = []
        self._order = itertools.count()
        self._version = 0
        # Bytes that the waiting records hold.
        self.size = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, row: Run, later: Later) -> None:
        """Hold a record until its event is to be judged again."""
        heapq.heappush(self._waiting, (later.time, next(self._order), row))
        self.size += _size((row,))

    def due(self, now: Instant) -> float | None:
        """Return when the first event's time comes; None: none will come."""
        if not self._waiting or self._waiting[0][0] == math.inf:
            return None
        # A moment later, so that rounding does not judge the event before its time, again and again.
        return now.monotonic + self._waiting[0][0] - SKEW - now.unix + _A_MOMENT

    def take(self, now: Instant, version: int) -> list[Run]:
        """Return the records to be judged again now: those whose time has come, or all if `version` has changed."""
        # The engine's time has changed, so all are judged again.
        if version != self._version:
            self._version = version
            taken = [parked for *_, parked in sorted(self._waiting)]
            self._waiting, self.size = [], 0
            return taken
        taken = []
        while self._waiting and self._waiting[0][0] <= now.unix + SKEW:
            taken.append(heapq.heappop(self._waiting)[-1])
        self.size -= _size(taken)
        return taken

    def purge(self) -> None:
        """Forget records that were revoked or are being drained."""
        self._waiting = [one for one in self._waiting if goes_on(one[-1])]
        heapq.heapify(self._waiting)
        self.size = _size(parked for *_, parked in self._waiting)


# Seconds between two log lines about calls that take long: each of a million calls may.
_WARN_EVERY: Final = 10.0


class Transforming:
    """A decoder whose events have gone through the user's function, once their records are `ready`.

    One `Transform` is under way at a time. Its results are kept until their records are read. Without a function every
    record is ready, and `decoder` is used directly.
    """

    def __init__(self, context: Context, decoder: SchemaLearner) -> None:
        self.section_of = decoder.section_of
        self._context = context
        self._decoder = decoder
        self._function = context.policy.transform
        # By the identity of the record, which is kept beside the result so that no other object gets the same identity.
        self._done: dict[int, tuple[Record, CommerceEvent | Filtered | Rejection]] = {}
        # The call under way: its number, the records whose results are still wanted, and the place of each.
        self._number: int | None = None
        self._asked: Sequence[Record] = ()
        self._places: Sequence[tuple[TopicPartition, int]] = ()
        # The record for which the function has not returned for more than a second, and since when.
        self._slow: tuple[TopicPartition, int, float] | None = None
        self._warned = False
        self._warn_at = -math.inf

    @property
    def busy(self) -> bool:
        """True while a call of the function is under way."""
        return self._number is not None

    def decode(self, record: Record, topic: str) -> Decoded:
        """Decode a record that is `ready`; see `Decoding`."""
        done = self._done.get(id(record))
        if done is not None:
            return done[1]
        decoded = self._decoder.decode(record, topic)
        if self._function and isinstance(decoded, dict):
            raise bug("a record was read before the user's function had it")
        return decoded

    def ready(self, rows: Sequence[tuple[TopicPartition, Record | None]]) -> int:
        """Return how many of these records of one topic, from the first on, can be read now. For the others the
        function is called."""
        if not self._function:
            return len(rows)
        lacking = [
            (at, record)
            for at, (_, record) in enumerate(rows)
            if record is not None and record.value is not None and id(record) not in self._done
        ]
        if not lacking:
            return len(rows)
        if self.busy:
            return lacking[0][0]
        # A record that is not an event has its verdict already, or waits for its schema.
        events = [
            (at, record, one)
            for at, record in lacking
            if isinstance(one := self._decoder.decode(record, rows[0][0].topic), dict)
        ]
        if not events:
            return len(rows)
        self._number = self._context.number()
        self._asked = [record for _, record, _ in events]
        self._places = [(rows[at][0], record.offset) for at, record, _ in events]
        self._context.emit(Transform(self._number, [event for _, _, event in events]))
        return events[0][0]

    def told(self, happened: Transformed | TransformIsSlow) -> None:
        """Handle `Transformed` or `TransformIsSlow`."""
        if happened.number != self._number:
            raise bug("the user's function was not asked for this")
        # After a purge no result is wanted.
        for record, result in zip(self._asked, happened.results, strict=False):
            self._done[id(record)] = (record, result)
        self._asked = self._asked[len(happened.results) :]
        if isinstance(happened, TransformIsSlow):
            self._is_slow(happened)
            return
        self._number = None
        if self._slow is not None and self._warned:
            seconds = round(self._context.now.monotonic - self._slow[2], 1)
            self._context.report("info", "transform_returned", function=self._function, seconds=seconds)
        self._slow, self._warned = None, False

    def _is_slow(self, happened: TransformIsSlow) -> None:
        now = self._context.now.monotonic
        tp, offset = self._places[happened.row]
        self._context.counters.slow_transforms += self._slow is None
        self._slow = (tp, offset, now - happened.seconds)
        if now >= self._warn_at:
            self._warned, self._warn_at = True, now + _WARN_EVERY
            self._context.report(
                "warning", "transform_slow", function=self._function, topic=tp.topic, partition=tp.partition,
                offset=offset, seconds=round(happened.seconds, 1),
            )  # fmt: skip

    def read(self, records: Iterable[Record | None]) -> None:
        """Drop the function's results for records that have been read."""
        if self._done:
            for record in records:
                self._done.pop(id(record), None)

    def purge(self) -> None:
        """Forget all results, since some records were revoked. For the others the function is called again."""
        # All results go, whichever records were revoked: purges are rare, and calling the function twice is allowed.
        self._done.clear()
        self._asked = ()

    def slow(self, now: float) -> SlowTransform | None:
        """Return the call that takes long; None: none does."""
        if self._slow is None:
            return None
        tp, offset, since = self._slow
        return SlowTransform(self._function, tp.topic, tp.partition, offset, now - since)
