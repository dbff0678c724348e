"""From fetched records to claimed deliveries: read, admit, wait for room; and how many records to fetch now.

Theory of operation. A slice of records is *prepared*: decoded, converted, serialised (`reading`); that changes nothing
but what decoder and converter know. Then it is known how many bytes each event will hold, and `Admission` enters as
many in the ledger as fit, which makes them open. The rest of the fetch is *held*, and while anything is held nothing
more is fetched. Held records are bounded by one fetch, they are not open, and they are forgotten with their assignment.
What is admitted *claims* its key. The budget in bytes is kept to the byte.

Records that waited for their schema are open already, and grow when it comes: they are *deferred* until there is
room. So that there will be, what waits for its schema, or its time (`waiting`), may fill half of the budget only.

One event alone may be larger than the budget: it goes when nothing else is open, else it would stop the line.
Nothing goes any more once the guard has tripped, or a replay's limit is reached.

*Room* is a level, read before each fetch. Each limit says how many more it leaves, and the least of them counts: the
budget in events and in bytes, the offset maps, a destination that is halted, the guard, and for a replay its pace and
its limit. Nothing of it changes anything but `Pace`, which keeps time, and does so only when an input is handled.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from operator import add
from typing import NamedTuple, Protocol

from consumer.engine.block import Block, Delivery, Prepared, RecordStage, Verdict, sizes_of
from consumer.engine.claims import Claims
from consumer.engine.context import Clock, Context
from consumer.engine.counters import Samples
from consumer.engine.guard import Guard
from consumer.engine.ledger import AssignmentState, Ledger
from consumer.engine.messages import SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import Ahead, Chunk, Early, Filtered, Policy, Record, SchemaRef, Warned
from consumer.engine.reading import Reading, SchemaLearner
from consumer.engine.sending import TOKEN_REFUSED, Dispatcher
from consumer.engine.waiting import EarlyRecords, Parked, Parking, free

SLICE = 64
"""Records decoded, converted and serialised in one go: few enough that the processor's cache still holds an event's
objects when the next stage comes to them (a slice of 1000 costs a third more; docs/performance.md)."""


class Intake:
    """Turns records into events with their JSON, and those into deliveries."""

    def __init__(
        self, context: Context, clock: Clock, claims: Claims, reading: Reading, samples: Samples
    ) -> None:
        self._context = context
        self._clock = clock
        self._claims = claims
        self._reading = reading
        self._samples = samples

    def prepare(self, records: list[Record]) -> list[Prepared]:
        """One result per record."""
        prepared = self._reading.read(records, self._context.now.unix)
        self._context.counters.in_two_steps = self._reading.in_two_steps
        if Ahead in map(type, prepared):
            return [
                self._early(one, record) if isinstance(one, Ahead) else one
                for one, record in zip(prepared, records, strict=True)
            ]
        return prepared

    def prepare_by_its_own_clock(self, record: Record) -> Prepared:
        """What the record is by the time that it was stamped with."""
        (prepared,) = self._reading.read([record], record.timestamp / 1000)
        return prepared

    def _early(self, ahead: Ahead, record: Record) -> Prepared:
        """Whether an event that lies ahead waits or is refused."""
        if self._clock.may_wait(ahead.time, record.timestamp):
            return Early(ahead.time)
        return ahead.verdict

    def claim(self, deliveries: Sequence[Delivery]) -> list[Delivery]:
        """These are read. Gives those that lead their keys and are to be looked up; the others follow who does."""
        claim = self._claims.claim
        leaders = [one for one in deliveries if claim(one)]
        self._context.counters.followers += len(deliveries) - len(leaders)
        for one in deliveries:
            if one.warnings:
                self._count_warnings(one.warnings)
        return leaders

    def _count_warnings(self, warnings: Iterable[Warned]) -> None:
        counters = self._context.counters
        for warning in warnings:
            counters.convert_warnings[warning.code, warning.field] += 1
            self._samples.warned(warning)


FETCH_MOST = 1000
"""Records in one fetch at most: large enough that per-chunk costs vanish, small enough to keep the loop lively."""
_CRAWL = 1.0
"""Seconds between two fetches while an offset map is full."""
_BURST = 0.1
"""Seconds of its pace that a replay may be ahead."""
_UNUSED = 1.0
"""Seconds of its pace that it may catch up on: an outage of an hour must not be followed by an hour's events."""
_AHEAD = 2.0
"""Seconds of its pace that may be open: what is read while the platform takes nothing goes all at once afterwards."""
_ROUNDING = 1e-6


class Limit:
    """At most `most` records are read, not counting those that are filtered: tombstones, too old ones, and what
    ``--where`` left out."""

    def __init__(self, most: int | None, ledger: Ledger) -> None:
        self._most = most
        self._ledger = ledger
        self.left_out = 0
        """Records read and filtered."""

    def left(self) -> int:
        """How many more may be read. What waits for its schema may turn out to be filtered: it counts till then."""
        return FETCH_MOST if self._most is None else self._most - self._counted()

    def cut(self, items: Sequence[Prepared | None], count: int) -> int:
        """How many of the first `count` of these may be read."""
        left = self.left()
        if self._most is None or left >= count:
            return count
        for at, item in enumerate(items[:count]):
            left -= item is not None and type(item) is not Filtered
            if left < 0:
                return at
        return count

    def room(self, held: int) -> int:
        """How many to fetch: as many as it takes, as far as can be told from what was read, to find what is left."""
        if self._most is None:
            return FETCH_MOST
        left, counted = self.left(), self._counted()
        return left * (1 + counted + self.left_out) // (1 + counted) - held if left > 0 else 0

    def reached(self, waiting: int) -> bool:
        """Whether nothing more will be read; `waiting` records have no verdict yet."""
        return self._most is not None and self._counted() - waiting >= self._most

    def _counted(self) -> int:
        return self._ledger.settlements + self._ledger.open - self.left_out


class Pace:
    """At most `rate` events a second go on. What of that was not used within a second is gone."""

    def __init__(self, rate: float) -> None:
        self._rate = rate
        self._burst = max(1.0, rate * _BURST)
        self._ahead = max(1.0, rate * _AHEAD)
        self._allowed = self._left = self._burst
        self._at: float | None = None

    @property
    def endless(self) -> bool:
        """Whether there is no pace to keep."""
        return math.isinf(self._rate)

    def go_on(self, gone_on: int, still_open: int, now: float) -> None:
        """Note how many events have gone on by `now`, open ones included. The first call starts the pace."""
        since = now - self._at if self._at is not None else 0.0
        self._at = now
        most = gone_on + max(1.0, self._rate * _UNUSED)
        self._allowed = min(self._allowed + since * self._rate, most)
        self._left = min(self._allowed - gone_on, self._ahead - still_open)

    def room(self) -> int:
        """How many more may go on now."""
        return FETCH_MOST if self.endless else math.floor(self._left + 2 * _ROUNDING)

    def due(self) -> float | None:
        """When there is room for a whole burst; None: there is, or it has not begun."""
        if self.endless or self._at is None or self._left >= self._burst * (1 - _ROUNDING):
            return None
        return self._at + (self._burst - self._left) / self._rate


class Room:
    """What all the limits leave."""

    def __init__(
        self,
        context: Context,
        ledger: Ledger,
        parking: Parking,
        admission: Admission,
        dispatcher: Dispatcher,
        guard: Guard,
        limit: Limit,
    ) -> None:
        self._context = context
        self._policy: Policy = context.policy
        self._ledger = ledger
        self._parking = parking
        self._admission = admission
        self._dispatcher = dispatcher
        self._guard = guard
        self._limit = limit
        self._pace = Pace(context.policy.events_per_second)
        self._fed_at = 0.0

    def fed(self) -> None:
        """A fetch came back."""
        self._fed_at = self._context.now.monotonic

    def go_on(self) -> None:
        """An input was handled: let the pace know what has gone on."""
        if self._pace.endless or not any(True for _ in self._ledger):
            return
        totals = self._ledger.totals()
        still_open = totals.open + self._admission.held
        self._pace.go_on(totals.delivered + still_open, still_open, self._context.now.monotonic)

    def level(self) -> int:
        """How many records to fetch now at most; 0: pause."""
        if self._guard.tripped is not None:
            return 0
        # With nothing open there is room for one, however large: else one huge record would stop the line.
        least = 1 if not self._ledger.open and not self._admission.held else 0
        room = max(least, 0 if self._halted() else self._budget())
        return max(0, min(room, self._pace.room(), self._limit.room(self._admission.held)))

    def enough(self) -> bool:
        """Whether the limit is reached."""
        return self._limit.reached(self._admission.waiting)

    def due(self) -> float | None:
        """When the pace leaves room again."""
        return None if self._guard.tripped is not None or self.enough() else self._pace.due()

    def _budget(self) -> int:
        most = int(FETCH_MOST * self._map_share())
        return min(self._policy.max_open_events - self._ledger.open, self._admission.room(), most)

    def _map_share(self) -> float:
        """What the offset maps leave of a fetch. A full one slows intake down and never stops it.

        What does not fit into a map may be sent again after a crash; a stop would strand all that has nothing to do
        with the records that wait.
        """
        now = self._context.now.monotonic
        share = self._ledger.map_share(now)
        return 1.0 if now - self._fed_at >= _CRAWL else share

    def _halted(self) -> bool:
        """Whether intake stops: the token is refused, or every account, or refused ones hold half of the budget.

        One refused account of several does not stop the others (rudder-server #4953).
        """
        halted = [queue for queue in self._dispatcher if queue.gate.halt is not None]
        if not halted:
            return False
        if len(halted) >= self._policy.accounts or any(
            queue.gate.halt is not None and queue.gate.halt.status == TOKEN_REFUSED for queue in halted
        ):
            return True
        return sum(queue.queued for queue in halted) * 2 >= self._policy.max_open_events


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


class IntakeEffects(Protocol):
    """What the pipeline does with what was read."""

    def look_up(self, leaders: list[Delivery]) -> None:
        """These lead their keys."""

    def set_aside(self, block: Block, index: int, verdict: Verdict) -> None:
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
        pipeline: IntakeEffects,
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
        for one in parked:
            one.block.move([one.place], RecordStage.ROOM)
            if one.ours:
                self._deferred.append(_Deferred(one, prepared))
            else:
                one.block.move([one.place], RecordStage.FREED)
        self._need = 0

    def purge(self) -> None:
        """Forget what is no longer ours to begin."""
        kept = deque((state, chunk) for state, chunk in self._held if state.accepts)
        self._let_go_of(self.held - sum(len(chunk.records) for _, chunk in kept))
        self._held = kept
        free(one.parked for one in self._deferred)
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

        While all is `quiet`, no news will come: then one is sent as a pilot (see `EarlyRecords`).
        """
        now = self._context.now
        if self._guard.tripped is not None:
            return
        taken = self._early.take(now, version)
        if taken:
            self.unparked(taken)
            self.admit()
        while quiet() and (pilot := self._early.pilot(now)) is not None:
            record = pilot.block.record(pilot.place)
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
            block = self._ledger.track(state, read, costs[:fitting], [at for at in passed if at < fitting])
            self._guard.read(block, items[:fitting])
            self._take_in(block, range(fitting), items, leaders)
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
        for ((block, index), _), item, size in zip(some[:fitting], items, growth, strict=False):
            self._deferred.popleft()
            block.costs[index] += size
            self._ledger.grow(block.assignment, size)
            self._take_in(block, (index,), (item,), leaders)
            if type(item) is Filtered:
                self._guard.filtered_late(block, index)
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
        self, block: Block, indexes: Iterable[int], items: Iterable[Prepared | None], leaders: list[Delivery]
    ) -> None:
        claimed: list[Delivery] = []
        for index, item in zip(indexes, items, strict=False):
            if isinstance(item, Delivery):
                item.block, item.index = block, index
                claimed.append(item)
            elif item is not None:
                self._pipeline.set_aside(block, index, item)
        if not claimed:
            return
        leading = self._intake.claim(claimed)
        if len(leading) < len(claimed):
            leads = {id(one) for one in leading}
            block.move([one.index for one in claimed if id(one) not in leads], RecordStage.FOLLOWING)
        if leading:
            block.move([one.index for one in leading], RecordStage.LOOKED_UP)
        block.note_accounts(claimed)
        leaders += leading


def _record(deferred: _Deferred) -> Record:
    block, index = deferred.parked
    return block.record(index)


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


class SchemaAnswers:
    """Applies what the registry said to the records that wait for it."""

    def __init__(
        self, context: Context, parking: Parking, admission: Admission, decoder: SchemaLearner
    ) -> None:
        self._context = context
        self._parking = parking
        self._admission = admission
        self._decoder = decoder

    def found(self, happened: SchemaFound) -> None:
        """The schema is there: whether it can be read is the decoder's to say."""
        rejection = self._decoder.add_schema(happened.ref, happened.schema, happened.kind)
        self._context.report(
            "info" if rejection is None else "error", "schema", ref=happened.ref.value,
            verdict="known" if rejection is None else rejection.code,
        )  # fmt: skip
        self._admission.unparked(self._parking.found(happened.ref))

    def missing(self, happened: SchemaMissing) -> None:
        """There is none, or not yet."""
        ref, now = happened.ref, self._context.now.monotonic
        final = self._parking.missing(ref, now, self._context.jitter())
        if final:
            self._context.report(
                "error", "schema", ref=ref.value, verdict="no_such_schema", records=len(final)
            )
            self._admission.unparked(final, self._decoder.missing(ref))
        elif self._parking.denied_for(ref) == 0:
            patience = self._context.policy.schema_patience
            self._context.report("warning", "schema_missing", ref=ref.value, patience=patience)

    def unavailable(self, happened: SchemaUnavailable) -> None:
        """It is not known: its records wait."""
        context = self._context
        context.counters.failures["registry"] += 1
        context.report("warning", "schema_unavailable", ref=happened.ref.value, reason=happened.reason)
        self._parking.unavailable(happened.ref, context.now.monotonic, context.jitter())
