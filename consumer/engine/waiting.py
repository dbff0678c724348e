"""Records that wait: for their writer's schema (`Parking`), or for their time (`EarlyRecords`).

Theory of operation. A record whose schema we have not seen is parked under the schema's reference, and the registry
is asked for it. Known schemas need no registry at all, so other records go on (confluentinc/schema-registry #928,
allegro/hermes #607). Three things may come back:

* the schema: all its records go on;
* no answer: the records wait, for ever if need be, and the registry is asked again with backoff;
* "no such schema": that may only mean "not yet", for registries have followers and caches. It is asked again with the
  same backoff, and is final for a record only once the registry has said so throughout `patience` while the record
  waited. Time in which the registry gave no answer does not count.

Once the registry has said so throughout `patience`, the reference is *absent*, which is remembered for as long
again. A record of it that comes meanwhile waits for the next answer to a question that is asked after it came, and
no longer: so a flood of records of a made-up schema does not fill what may be parked for ever, and no restart is
needed once the schema is there.

Questions are bounded, since whoever writes to the topic chooses the ids: some at once, some a second, and for each
reference one per backoff, as long as a record waits for it.

Events that lie ahead of what may be a slow clock wait, open, and are judged again. While the platform has not said
what time it is, an event too far ahead of our clock is not refused if its record was stamped ahead of it, too
(`context.Clock`). It waits until its time comes, or there is news of what time it is. Since the platform only speaks
when it is called, and all events may wait, one of them is a *pilot* while nothing else is under way: it is judged by
its own record's timestamp, and so is sent. Its answer brings the Date by which all others are judged.

What waits has the bounds of what waits for its schema (`consumer.engine.intake`), and dies with its assignment.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Final, NamedTuple

from consumer.engine.block import Block, RecordStage
from consumer.engine.context import SKEW
from consumer.engine.model import Instant, Policy, SchemaRef
from consumer.engine.statistics import SCHEMAS_MOST, SchemaWait

BURST: Final = 2.5
"""Seconds of its rate of questions that may be made up for: a new member that needs many schemas starts quickly."""
ABSENT_MOST: Final = 1_024
"""References remembered as absent while no record waits for them."""
_ROUNDING: Final = 1e-6


class Parked(NamedTuple):
    """An open record that waits."""

    block: Block
    place: int

    @property
    def ours(self) -> bool:
        """Whether it may still be begun."""
        return self.block.ours(self.place) and self.block.assignment.accepts


def free(waiting: Iterable[Parked]) -> None:
    """Of these, nothing is begun any more for those whose partition is being drained."""
    for one in waiting:
        if not one.ours:
            one.block.move([one.place], RecordStage.FREED)


class _Record(NamedTuple):
    parked: Parked
    since: float
    denied: float
    """How long the schema was denied when the record came; minus infinity if it was absent then."""


class _Wanted:
    """One reference: who waits for it, and what was answered."""

    __slots__ = ("absent", "asked_at", "asking", "denied", "denied_at", "failures", "records", "retry_at")

    def __init__(self) -> None:
        self.records: list[_Record] = []
        self.asking = False
        self.asked_at = self.retry_at = -math.inf
        self.failures = 0
        self.denied = 0.0
        """Seconds throughout which the registry said that there is none."""
        self.denied_at: float | None = None
        """When it said so last; None if it gave no answer since, or was never asked."""
        self.absent = False

    def denied_for(self, now: float) -> float:
        """For how long the registry has said so, if it still does."""
        return self.denied + (now - self.denied_at if self.denied_at is not None else 0.0)


class Parking:
    """Parked records by the schema they need."""

    def __init__(self, policy: Policy) -> None:
        self._backoff = policy.inner_backoff
        self._patience = policy.schema_patience or math.inf
        self._most_at_once = policy.registry_concurrency
        self._rate = policy.registry_calls_per_second
        self._burst = max(1.0, BURST * self._rate)
        self._wanted: dict[SchemaRef, _Wanted] = {}
        self._absent: OrderedDict[SchemaRef, _Wanted] = OrderedDict()
        """Absent, and no record waits for them; the one not asked for longest goes first."""
        self._new: deque[SchemaRef] = deque()
        """Never asked for."""
        self._again: list[tuple[float, SchemaRef]] = []
        """A heap: to be asked for again, and when. One that is not wanted any more is skipped."""
        self._asking = self._turn = 0
        self._tokens = self._burst
        self._filled_at = -math.inf
        self.size = 0
        """Bytes that parked records hold."""

    def __len__(self) -> int:
        return sum(len(wanted.records) for wanted in self._wanted.values())

    def park(self, ref: SchemaRef, block: Block, index: int, now: float) -> None:
        """This record needs that schema."""
        wanted = self._wanted.get(ref)
        if wanted is None:
            wanted = self._wanted[ref] = self._remembered(ref, now) or _Wanted()
            if wanted.retry_at == -math.inf:
                self._new.append(ref)
            elif not wanted.asking:
                heapq.heappush(self._again, (wanted.retry_at, ref))
        denied = -math.inf if self._is_absent(wanted, now) else wanted.denied_for(now)
        wanted.records.append(_Record(Parked(block, index), now, denied))
        self.size += block.costs[index]

    def _remembered(self, ref: SchemaRef, now: float) -> _Wanted | None:
        """What is known of it, if it is absent."""
        wanted = self._absent.pop(ref, None)
        return wanted if wanted is not None and self._is_absent(wanted, now) else None

    def _is_absent(self, wanted: _Wanted, now: float) -> bool:
        """Whether it is known to be absent: the registry said so throughout `patience`, and within `patience`."""
        return wanted.absent and wanted.denied_at is not None and now - wanted.denied_at <= self._patience

    # -- questions

    def ask(self, now: float) -> Iterator[SchemaRef]:
        """Schemas to be asked for now, as many as may be."""
        if not self._new and (not self._again or self._again[0][0] > now):
            return
        self._tokens = min(self._burst, self._tokens + (now - self._filled_at) * self._rate)
        self._filled_at = now
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
        """In turns one asked for before and a new one, of which the oldest and the newest in turns: so none waits long
        behind a flood of made-up ones."""
        self._turn += 1
        if self._turn % 2:
            return self._next_again(now) or self._next_new()
        return self._next_new() or self._next_again(now)

    def _next_again(self, now: float) -> SchemaRef | None:
        while self._again and self._again[0][0] <= now:
            at, ref = heapq.heappop(self._again)
            if self._waits(ref, at):
                return ref
        return None

    def _next_new(self) -> SchemaRef | None:
        while self._new:
            ref = self._new.popleft() if self._turn % 4 < 2 else self._new.pop()
            if self._waits(ref, -math.inf):
                return ref
        return None

    def _waits(self, ref: SchemaRef, at: float) -> bool:
        """Whether it is still to be asked for, as was entered for then."""
        wanted = self._wanted.get(ref)
        return wanted is not None and not wanted.asking and wanted.retry_at == at

    def due(self) -> float | None:
        """When the next schema is to be asked for; None: when another is answered, or not at all."""
        if self._asking >= self._most_at_once or not (self._new or self._again):
            return None
        affordable = self._filled_at + max(0.0, 1 - self._tokens) / self._rate
        return max(affordable, -math.inf if self._new else self._again[0][0])

    # -- answers

    def found(self, ref: SchemaRef) -> list[Parked]:
        """The schema is there, readable or not: the records that waited for it, in the order they came."""
        self._absent.pop(ref, None)
        wanted = self._wanted.pop(ref, None)
        if wanted is None:
            return []
        self._answered(wanted)
        return self._taken(wanted.records)

    def missing(self, ref: SchemaRef, now: float, jitter: float) -> list[Parked]:
        """The registry says that there is no such schema: the records for which that is final."""
        wanted = self._wanted.get(ref)
        if wanted is None:
            return []
        self._answered(wanted)
        if wanted.absent and not self._is_absent(wanted, now):
            # No answer came for long: from here on it has to be said throughout `patience` once more.
            wanted.records = [one._replace(denied=one.denied - wanted.denied) for one in wanted.records]
            wanted.absent, wanted.denied = False, 0.0
        wanted.denied, wanted.denied_at = wanted.denied_for(now), now
        if wanted.denied >= self._patience:
            wanted.absent = True
        final = [one for one in wanted.records if self._is_final(wanted, one)]
        if final:
            wanted.records = [one for one in wanted.records if not self._is_final(wanted, one)]
        self._later(ref, wanted, now, jitter)
        return self._taken(final)

    def unavailable(self, ref: SchemaRef, now: float, jitter: float) -> None:
        """No verdict: ask again later."""
        wanted = self._wanted.get(ref)
        if wanted is not None:
            self._answered(wanted)
            wanted.denied_at = None
            self._later(ref, wanted, now, jitter)

    def denied_for(self, ref: SchemaRef) -> float:
        """For how long the registry has said that there is no such schema, as of its last answer."""
        wanted = self._wanted.get(ref) or self._absent.get(ref)
        return 0.0 if wanted is None else wanted.denied

    def _is_final(self, wanted: _Wanted, one: _Record) -> bool:
        waited = wanted.denied - one.denied >= self._patience
        return waited and one.since <= wanted.asked_at

    def _answered(self, wanted: _Wanted) -> None:
        if wanted.asking:
            wanted.asking = False
            self._asking -= 1

    def _later(self, ref: SchemaRef, wanted: _Wanted, now: float, jitter: float) -> None:
        """Ask again later, if anybody waits for it (by then)."""
        wanted.failures += 1
        wanted.retry_at = now + self._backoff.delay(wanted.failures, 0.5 + jitter / 2)
        if wanted.records:
            heapq.heappush(self._again, (wanted.retry_at, ref))
        else:
            self._put_away(ref, wanted)

    def _put_away(self, ref: SchemaRef, wanted: _Wanted) -> None:
        """No record waits for it any more: only that it is absent is worth remembering."""
        del self._wanted[ref]
        if not wanted.absent:
            return
        self._absent[ref] = wanted
        if len(self._absent) > ABSENT_MOST:
            self._absent.popitem(last=False)

    def _taken(self, records: list[_Record]) -> list[Parked]:
        parked = [one.parked for one in records]
        self.size -= _size(parked)
        return parked

    # -- ends, and figures

    def purge(self) -> None:
        """Forget records that are no longer ours."""
        for ref, wanted in list(self._wanted.items()):
            free(one.parked for one in wanted.records)
            wanted.records = [one for one in wanted.records if one.parked.ours]
            if not wanted.records and not wanted.asking:
                self._put_away(ref, wanted)
        self._new = deque(ref for ref in self._new if self._waits(ref, -math.inf))
        self._again = [(at, ref) for at, ref in self._again if self._waits(ref, at)]
        heapq.heapify(self._again)
        self.size = sum(_size(one.parked for one in wanted.records) for wanted in self._wanted.values())

    def waits(self, now: float) -> tuple[SchemaWait, ...]:
        """What is waited for, the longest first; of many only some are named."""
        waited = [(ref, wanted) for ref, wanted in self._wanted.items() if wanted.records]
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


def _size(parked: Iterable[Parked]) -> int:
    return sum(block.costs[index] for block, index in parked)


_PILOT_EVERY: Final = 1.0
"""Seconds between two pilots: there may be answers without a Date, and each pilot is a call of its own."""

_A_MOMENT: Final = 0.01


class EarlyRecords:
    """Records of such events, by their time."""

    def __init__(self) -> None:
        self._waiting: list[tuple[float, int, Parked]] = []
        """A heap."""
        self._order = itertools.count()
        self._version = 0
        self._pilot_at = -math.inf
        self.size = 0
        """Bytes that they hold."""

    def __len__(self) -> int:
        return len(self._waiting)

    def wait(self, parked: Parked, time: float) -> None:
        """This record's event happens at `time` (unix seconds)."""
        heapq.heappush(self._waiting, (time, next(self._order), parked))
        self.size += _size((parked,))

    def due(self, now: Instant, quiet: Callable[[], bool]) -> float | None:
        """When the time of the first of them comes, or (while all is `quiet`) one may go as a pilot."""
        if not self._waiting:
            return None
        # A moment later, so that rounding does not have it judged before its time, again and again.
        comes = now.monotonic + self._waiting[0][0] - SKEW - now.unix + _A_MOMENT
        return min(comes, self._pilot_at) if quiet() else comes

    def take(self, now: Instant, version: int) -> list[Parked]:
        """Those to be judged again now: whose time has come, or all, if `version` says that there is news."""
        if version != self._version:
            self._version = version
            taken = [parked for _, _, parked in sorted(self._waiting)]
            self._waiting, self.size = [], 0
            return taken
        taken = []
        while self._waiting and self._waiting[0][0] <= now.unix + SKEW:
            taken.append(heapq.heappop(self._waiting)[2])
        self.size -= _size(taken)
        return taken

    def pilot(self, now: Instant) -> Parked | None:
        """The one that shall go now, if one may."""
        if not self._waiting or now.monotonic < self._pilot_at:
            return None
        self._pilot_at = now.monotonic + _PILOT_EVERY
        parked = heapq.heappop(self._waiting)[2]
        self.size -= _size((parked,))
        return parked

    def no_call(self) -> None:
        """A pilot turned out to need no call (it was delivered before, say): the next may go at once."""
        self._pilot_at = -math.inf

    def purge(self) -> None:
        """Forget records that are no longer ours."""
        free(parked for _, _, parked in self._waiting)
        self._waiting = [one for one in self._waiting if one[2].ours]
        heapq.heapify(self._waiting)
        self.size = _size(parked for _, _, parked in self._waiting)
