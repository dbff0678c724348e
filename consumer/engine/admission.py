"""What was fetched and does not fit yet: the budget in bytes is kept to the byte.

Theory of operation. How many bytes an event holds is known only when its record was fetched, converted and
serialised. So records are prepared a slice at a time, and only as many are read (entered in the ledger, which makes
them open) as fit; the rest of the fetch is *held*, and while anything is held nothing more is fetched. Held records
are bounded by one fetch, they are not open, and when their assignment ends nobody needs to know of them.

Records that waited for their schema are open already, and grow when it comes: they are *deferred* until there is
room. So that there will be, what waits for its schema, or its time (`early`), may fill half of the budget only.

One event alone may be larger than the budget: it goes when nothing else is open, else it would stop the line.
Nothing goes any more once the guard has tripped, or a replay's limit is reached.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import add
from typing import NamedTuple, Protocol

from consumer.engine.assignment import AssignmentState
from consumer.engine.context import Context
from consumer.engine.dedup import Delivery
from consumer.engine.early import EarlyRecords
from consumer.engine.guard import Guard
from consumer.engine.intake import SLICE, Intake, Prepared, Verdict
from consumer.engine.ledger import Ledger
from consumer.engine.model import Chunk, Early, Filtered, Record, SchemaRef
from consumer.engine.parking import Parked, Parking
from consumer.engine.room import Limit
from consumer.engine.spans import Span, sizes_of

_WAITS = frozenset({SchemaRef, Early})
"""Types of what waits."""
_FIRST_GUESS = 16 * 1024
"""Bytes an event is taken to hold until the first were seen."""
_SLICE_BYTES = 1024 * 1024
"""Records prepared in one go, unless it is one alone: decoded, a hostile record takes far more than it is long."""
_NEWEST_COUNTS = 0.2
"""Weight of the latest slice in the mean size of an event."""


class _Deferred(NamedTuple):
    """A record that waits to be taken in; `prepared`: what it is known to be already."""

    parked: Parked
    prepared: Prepared | None


class Consequences(Protocol):
    """What the pipeline does with what was read."""

    def look_up(self, leaders: list[Delivery]) -> None:
        """These lead their keys."""

    def set_aside(self, span: Span, index: int, verdict: Verdict) -> None:
        """This record is no event, or none yet."""


class Admission:
    """Held and deferred records, and what of them fits now."""

    def __init__(
        self,
        context: Context,
        ledger: Ledger,
        parking: Parking,
        early: EarlyRecords,
        intake: Intake,
        pipeline: Consequences,
        guard: Guard,
        limit: Limit,
    ) -> None:
        self._context = context
        self._ledger = ledger
        self._parking = parking
        self._early = early
        self._intake = intake
        self._pipeline = pipeline
        self._guard = guard
        self._limit = limit
        self._held: deque[tuple[AssignmentState, Chunk]] = deque()
        self._highest: dict[AssignmentState, int] = {}
        """By partition, the last offset that was held since nothing was."""
        self._deferred: deque[_Deferred] = deque()
        self._need = 0
        """Free bytes without which it makes no sense to try again."""
        self._mean_cost = float(_FIRST_GUESS)

    @property
    def held(self) -> int:
        """Records fetched and not read."""
        return sum(len(chunk.records) for _, chunk in self._held)

    def held_to(self) -> dict[AssignmentState, int]:
        """By partition, the offset after the last record that is held."""
        return {state: chunk.records[-1].offset + 1 for state, chunk in self._held}

    def defers(self, span: Span, index: int) -> bool:
        """Whether this open record waits to be taken in."""
        return any(one.parked == (span, index) for one in self._deferred)

    @property
    def deferred(self) -> int:
        """Open records that wait to be taken in."""
        return len(self._deferred)

    def room(self) -> int:
        """How many more events the budget has room for, by their mean size; 0 while something waits for room."""
        if self._held or self._deferred:
            return 0
        return int(self._free() // self._mean_cost)

    def fetched(self, state: AssignmentState, chunk: Chunk) -> None:
        """These came in. What is held of the same partition from their offset on comes again with them."""
        if not self._held:
            self._highest.clear()
        if chunk.records[0].offset <= self._highest.get(state, -1):
            self._cut(state, chunk.records[0].offset)
        self._held.append((state, chunk))
        self._highest[state] = chunk.records[-1].offset

    def unparked(self, parked: Sequence[Parked], prepared: Prepared | None = None) -> None:
        """These need not wait any longer; `prepared`: it is known already what they are."""
        if not parked:
            return
        self._deferred.extend(_Deferred(one, prepared) for one in parked if one.ours)
        self._need = 0

    def purge(self) -> None:
        """Forget what is no longer ours to begin."""
        kept = deque((state, chunk) for state, chunk in self._held if state.accepts)
        self._let_go_of(self.held - sum(len(chunk.records) for _, chunk in kept))
        self._held = kept
        self._deferred = deque(one for one in self._deferred if one.parked.ours)
        self._need = 0

    def admit(self) -> None:
        """Read and take in all that fits."""
        leaders: list[Delivery] = []
        while self._deferred and self._may_try() and self._admit_deferred(leaders):
            pass
        while self._held and not self._deferred and self._may_try() and self._admit_held(leaders):
            pass
        if leaders:
            self._pipeline.look_up(leaders)

    def judge_early(self, version: int, quiet: Callable[[], bool]) -> None:
        """Judge events that lie ahead again where their time comes, or `version` says that there is news of the time.

        While all is `quiet`, no news will come: then one is sent as a pilot (see `early`).
        """
        now = self._context.now
        if self._guard.tripped is not None:
            return
        taken = self._early.take(now, version)
        if taken:
            self.unparked(taken)
            self.admit()
        while quiet() and (pilot := self._early.pilot(now)) is not None:
            record = pilot.span.record(pilot.place)
            prepared = self._intake.prepare_by_its_own_clock(record)
            if type(prepared) is not Delivery:
                self._early.no_call()
            self.unparked([pilot], prepared)
            self.admit()

    # -- held records

    def _cut(self, state: AssignmentState, offset: int) -> None:
        kept: deque[tuple[AssignmentState, Chunk]] = deque()
        before = self.held
        for one, chunk in self._held:
            records = [each for each in chunk.records if one is not state or each.offset < offset]
            if records:
                kept.append((one, chunk._replace(records=records)))
        self._held = kept
        self._let_go_of(before - self.held)

    def _let_go_of(self, count: int) -> None:
        self._ledger.release_unread(count)

    def _admit_held(self, leaders: list[Delivery]) -> bool:
        """Read a slice of what is held, as much of it as fits. False if not all of it does."""
        state, chunk = self._held[0]
        most = min(SLICE, self._context.policy.max_open_events - self._ledger.open)
        if most <= 0 or self._limit.left() <= 0:
            return False
        sizes = _sizes(chunk.records[:most])
        piece = chunk._replace(records=chunk.records[: len(sizes)])
        passed = self._ledger.settled_before(state, piece)
        items = self._prepare(piece.records, passed)
        for at in passed:
            sizes[at] = 0
        costs = [*map(add, sizes, _growth(items))]
        fitting = self._limit.cut(items, self._fitting(costs, items))
        if fitting:
            read = piece._replace(records=piece.records[:fitting])
            span = self._ledger.track(state, read, costs[:fitting], [at for at in passed if at < fitting])
            self._guard.read(span, items[:fitting])
            self._take_in(span, range(fitting), items, leaders)
            self._guard.weigh()
            self._learn(costs[:fitting])
            self._shorten(state, chunk, fitting)
        return fitting == len(items)

    def _prepare(self, records: list[Record], passed: Sequence[int]) -> list[Prepared | None]:
        """One result per record, None for those that are passed over."""
        if not passed:
            return [*self._intake.prepare(records)]
        skipped = set(passed)
        prepared = iter(self._intake.prepare([one for at, one in enumerate(records) if at not in skipped]))
        return [None if at in skipped else next(prepared) for at in range(len(records))]

    def _shorten(self, state: AssignmentState, chunk: Chunk, count: int) -> None:
        if count == len(chunk.records):
            self._held.popleft()
        else:
            self._held[0] = (state, chunk._replace(records=chunk.records[count:]))

    # -- deferred records

    def _admit_deferred(self, leaders: list[Delivery]) -> bool:
        """Take in some of the deferred, as many as fit. False if not all of these do."""
        some = [self._deferred[at] for at in range(min(SLICE, len(self._deferred)))]
        prepared = iter(self._intake.prepare([_record(one) for one in some if one.prepared is None]))
        items = [next(prepared) if one.prepared is None else one.prepared for one in some]
        growth = _growth(items)
        fitting = self._fitting(growth, items)
        for ((span, index), _), item, size in zip(some[:fitting], items, growth, strict=False):
            self._deferred.popleft()
            span.costs[index] += size
            self._ledger.grow(span.assignment, size)
            self._take_in(span, (index,), (item,), leaders)
            if type(item) is Filtered:
                self._guard.filtered_late(span, index)
        self._guard.weigh()
        return fitting == len(some)

    # -- what fits

    def _free(self) -> int:
        return self._context.policy.max_open_bytes - self._ledger.open_bytes

    def _may_try(self) -> bool:
        return self._guard.tripped is None and (self._free() >= self._need or self._nothing_moves())

    def _nothing_moves(self) -> bool:
        """Whether all that is open waits, for a schema or for room: then one goes, however large it is."""
        return self._ledger.open == self.waiting

    @property
    def waiting(self) -> int:
        """Open records that wait: for their schema, their time, or room."""
        return len(self._parking) + len(self._early) + len(self._deferred)

    def _fitting(self, costs: Sequence[int], items: Sequence[Prepared | None]) -> int:
        """How many of these, from the first on, fit now; sets what the rest needs."""
        budget, free = self._context.policy.max_open_bytes, self._free()
        if sum(costs) <= free and _WAITS.isdisjoint(map(type, items)):
            self._need = 0
            return len(costs)
        for_parked = budget // 2 - self._parking.size - self._early.size
        count = 0
        for cost, item in zip(costs, items, strict=True):
            parks = type(item) in _WAITS
            if cost > free or (parks and cost > for_parked):
                break
            free -= cost
            for_parked -= cost if parks else 0
            count += 1
        else:
            self._need = 0
            return len(costs)
        if count == 0 and (not self._ledger.open or (self._nothing_moves() and not parks)):
            self._need = 0
            return 1
        # A record that would have to wait needs the others that do to be done with; that resets the need.
        self._need = budget + 1 if parks else min(sum(costs[count:]), max(cost, budget // 4))
        return count

    def _learn(self, costs: Sequence[int]) -> None:
        self._mean_cost += _NEWEST_COUNTS * (max(1.0, sum(costs) / len(costs)) - self._mean_cost)

    def _take_in(
        self, span: Span, indexes: Iterable[int], items: Iterable[Prepared | None], leaders: list[Delivery]
    ) -> None:
        claimed: list[Delivery] = []
        for index, item in zip(indexes, items, strict=False):
            if isinstance(item, Delivery):
                item.span, item.index = span, index
                claimed.append(item)
            elif item is not None:
                self._pipeline.set_aside(span, index, item)
        leaders += self._intake.claim(claimed)


def _record(deferred: _Deferred) -> Record:
    span, index = deferred.parked
    return span.record(index)


def _growth(items: Iterable[Prepared | None]) -> list[int]:
    """Bytes that each of these holds beyond its record: an event's JSON."""
    return [len(item.body) if type(item) is Delivery else 0 for item in items]


def _sizes(records: Sequence[Record]) -> list[int]:
    """The sizes of the first of these, as many as a slice takes."""
    sizes = sizes_of(records)
    if sum(sizes) <= _SLICE_BYTES:
        return sizes
    fitting = sum(1 for so_far in accumulate(sizes) if so_far <= _SLICE_BYTES)
    return sizes[: max(1, fitting)]
