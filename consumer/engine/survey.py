"""Takes the snapshot: reads every part of the pipeline between two messages, changes nothing but `Stall`.

Theory of operation. A snapshot is taken once a second, whatever is open, so it counts no records but reads what is
counted. One record is looked for: the oldest open one, in all places where a record can be, the end of its way first,
since there are the oldest; where it is found says what it waits for. The figures are taken as they are, also where they
do not add up: then `Statistics.mismatch` says so.

*Lag.* Where the log ends is heard of from time to time (`EndOffsets`), so what was heard is old. The end that is told
is therefore at least what has been read, passed over, or fetched: ``committed <= position <= end`` always. Lag counts
from the committed position, as Kafka's own tools count it, and is no less than what is open. Both lags are zero
together: in seconds it is 0 exactly where there is none in records.

*Stall.* Work stands still when there is some (records open, or lag) and nothing has been settled for too long. That is
reported, no more. What is told under a name of its own is no stall: a stop, a guard that has tripped, a destination
that takes nothing. (If one account refuses us and another takes events and has some, it is a stall all the same.) Any
other cause is: a registry or a key store that does not answer, a dead-letter topic that cannot be written, another
producer's hanging transaction, behind which nothing can be read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol

from consumer.engine.block import Delivery, Span
from consumer.engine.claims import Claims, Letter, Outbox
from consumer.engine.commits import Commits
from consumer.engine.context import Clock, Context
from consumer.engine.counters import Samples
from consumer.engine.coverage import Coverage
from consumer.engine.freshness import Freshness
from consumer.engine.guard import Guard
from consumer.engine.intake import Admission
from consumer.engine.ledger import AssignmentState, Ledger
from consumer.engine.model import GateState, Instant
from consumer.engine.sending import AccountQueue, Dispatcher
from consumer.engine.statistics import (
    AccountStatistics,
    OldestOpen,
    PartitionStatistics,
    Statistics,
    WaitsFor,
)
from consumer.engine.waiting import EarlyRecords, Parked, Parking


def end_of(state: AssignmentState, held_to: int = 0) -> int | None:
    """The offset after the last record of the log, as far as is known; None while nothing was heard of it.

    `held_to`: the offset after the last record that was fetched and is not read yet; 0: none is.
    """
    return None if state.end is None else max(state.end, state.reached, held_to, state.position() or 0)


def lag_of(state: AssignmentState, held_to: int = 0) -> int | None:
    """Offsets from the committed position to the end; None while one of them is not known.

    None are left when all is read, settled and committed: the rest are markers and aborted transactions. And none are
    in a log that ends where logs begin.
    """
    # Where nothing is committed yet, from where reading began.
    begin = state.committed.next_offset if state.committed is not None else state.start
    end, position = end_of(state, held_to), state.position()
    if begin is not None and not state.open and held_to <= state.removed_to:
        begin = max(begin, state.removed_to)  # what was removed will not come
    if end == 0:
        return 0
    if end is None or begin is None or position is None:
        return None
    if not state.open and position == begin and held_to <= position and max(position, state.reached) >= end:
        return 0
    return end - begin


def seconds_of(state: AssignmentState, unix_now: float, held_to: int = 0) -> float | None:
    """Age of the first record that is not settled, by its Kafka timestamp; 0 where `lag_of` is; None: not known."""
    lowest, lag = state.lowest_open(), lag_of(state, held_to)
    if lowest is not None:
        return age(timestamp_of(*lowest), unix_now)
    if not lag:
        return None if lag is None else 0.0
    # What is left is not read yet, or not committed yet. Nobody knows its timestamps: that of the last record read
    # stands for them.
    return age(state.last_timestamp if state.last_timestamp >= 0 else None, unix_now)


def timestamp_of(span: Span, index: int) -> int | None:
    """Kafka's timestamp of an open record, milliseconds; None: it has none."""
    timestamp = span.record(index).timestamp
    return timestamp if timestamp >= 0 else None


def age(timestamp: int | None, unix_now: float) -> float | None:
    """Seconds since a timestamp; 0 if it lies ahead."""
    return None if timestamp is None else max(0.0, unix_now - timestamp / 1000)


_REMIND_EVERY = 300.0


class Stall:
    """Looks at intervals of the shell's own; `since` says since when nothing moves."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._settled = -1
        self._moved_at: float | None = None
        self._remind_at: float | None = None

    def look(self, settled: int, work: int, excused: bool) -> None:
        """`settled` records so far, and how much `work` is left (records open, and lag)."""
        now = self._context.now.monotonic
        if not work or excused or settled != self._settled or self._moved_at is None:
            if self._remind_at is not None:
                still = round(now - (self._moved_at or now), 3)
                self._context.report("info", "moves_again", seconds=still)
            self._settled, self._moved_at, self._remind_at = settled, now, None
            return
        seconds = self.seconds()
        if seconds is not None and (self._remind_at is None or now >= self._remind_at):
            self._remind_at = now + _REMIND_EVERY
            self._context.report("error", "stalled", seconds=round(seconds, 3), work=work)

    def seconds(self) -> float | None:
        """For how long nothing has moved that should; None: not for too long."""
        if self._moved_at is None:
            return None
        still = self._context.now.monotonic - self._moved_at
        return still if still >= self._context.policy.stall_after else None


def excused(queues: Iterable[AccountQueue], now: float) -> bool:
    """Whether all that could be sent waits for the platform, which is reported by its own name."""
    states = [(queue.gate.state(now), queue.queued or queue.in_flight) for queue in queues]
    if all(state is GateState.OPEN for state, _ in states):
        return False
    return not any(state is GateState.OPEN and busy for state, busy in states)


_Found = tuple[WaitsFor, str | None]
"""What a record waits for, and the ad account it goes to."""


class Parts(Protocol):
    """What a snapshot reads: the parts of a pipeline, and where it stands itself."""

    context: Context
    clock: Clock
    ledger: Ledger
    claims: Claims
    admission: Admission
    parking: Parking
    early: EarlyRecords
    dispatcher: Dispatcher
    keys: Outbox[Delivery]
    letters: Outbox[Letter]
    guard: Guard
    commits: Commits
    stall: Stall
    freshness: Freshness
    coverage: Coverage
    samples: Samples
    stopping: bool
    joined: bool
    waiting_for_start: int
    progress_at: float | None

    @property
    def key_store_fails(self) -> bool:
        """Whether the key store fails at present."""

    def room(self) -> int:
        """How many records to fetch now at most."""

    def looked_up(self) -> Iterator[Delivery]:
        """Those whose look-up is under way, or to be made again."""


def survey(parts: Parts, now: Instant) -> Statistics:
    """The pipeline's figures at `now`, as far as our clocks go."""
    local, now = now, parts.clock.correct(now)
    oldest = _oldest_open(parts)
    held_to = parts.admission.held_to()
    return Statistics(
        totals=parts.ledger.totals(),
        partitions=tuple(_partition(state, now.unix, held_to.get(state, 0)) for state in parts.ledger),
        accounts=tuple(_account(queue, now.monotonic) for queue in parts.dispatcher),
        open_bytes=parts.ledger.open_bytes,
        held=parts.admission.held,
        passed=parts.ledger.passed,
        waiting_for_start=parts.waiting_for_start,
        joined=parts.joined or any(True for _ in parts.ledger),
        stalled_for=parts.stall.seconds(),
        key_store_fails=parts.key_store_fails,
        room=parts.room(),
        claims=len(parts.claims),
        waiting_for_schema=len(parts.parking),
        oldest_open_ms=timestamp_of(*oldest) if oldest is not None else None,
        seconds_since_progress=max(0.0, now.monotonic - (parts.progress_at or now.monotonic)),
        freshness=parts.freshness.snapshot(now.monotonic),
        counters=parts.context.counters.copy(),
        stopping=parts.stopping,
        guard=parts.guard.tripped,
        oldest_open=_describe(parts, *oldest, now) if oldest is not None else None,
        coverage=parts.coverage.snapshot(now.monotonic),
        letters=parts.samples.letters(),
        samples=parts.samples.snapshot(),
        commit_metadata=parts.commits.metadata(),
        elsewhere=sum(state.elsewhere for state in parts.ledger),
        mismatch=parts.ledger.mismatch(),
        schemas=parts.parking.waits(now.monotonic),
        clock=parts.clock.statistics(local, len(parts.early)),
    )


def _partition(state: AssignmentState, unix_now: float, held_to: int) -> PartitionStatistics:
    return PartitionStatistics(
        topic=state.tp.topic,
        partition=state.tp.partition,
        epoch=state.epoch,
        committed=state.committed.next_offset if state.committed is not None else None,
        position=state.position(),
        end=end_of(state, held_to),
        lag=lag_of(state, held_to),
        totals=state.totals(),
        lag_seconds=seconds_of(state, unix_now, held_to),
        unreadable_at=state.unreadable_at,
    )


def _account(queue: AccountQueue, now: float) -> AccountStatistics:
    gate = queue.gate
    state = gate.state(now)
    halt = gate.halt
    return AccountStatistics(
        account=queue.account,
        state=state.value,
        reason=gate.reason if state in (GateState.HALTED, GateState.UNREACHABLE) else None,
        queued=queue.queued,
        in_flight=queue.in_flight,
        throttled_for=gate.throttled_until(now) - now if state is GateState.THROTTLED else None,
        halted_for=now - halt.since if halt is not None else None,
        next_probe_in=max(0.0, halt.probe_at - now) if halt is not None else None,
        unreachable_for=now - (gate.silent_since or now) if state is GateState.UNREACHABLE else None,
    )


# -- the oldest open record


def _oldest_open(parts: Parts) -> tuple[Span, int] | None:
    """Of each partition's lowest open record the oldest; one without a timestamp only where all are without."""
    lowest = [one for one in (state.lowest_open() for state in parts.ledger) if one is not None]
    return min(lowest, key=_oldest_first, default=None)


def _oldest_first(place: tuple[Span, int]) -> float:
    timestamp = timestamp_of(*place)
    return float("inf") if timestamp is None else timestamp


def _describe(parts: Parts, span: Span, index: int, now: Instant) -> OldestOpen:
    tp = span.assignment.tp
    found = (
        _under_way(parts, span, index, now.monotonic)
        or _without_key(parts, span, index)
        or _behind_another(parts, span, index)
        # Let go of: once the guard has tripped, or while its partition is drained of what is in flight.
        or (WaitsFor.GUARD if parts.guard.tripped is not None else WaitsFor.PLATFORM, None)
    )
    return OldestOpen(
        tp.topic, tp.partition, span.offsets[index], age(timestamp_of(span, index), now.unix), *found
    )


def _under_way(parts: Parts, span: Span, index: int, now: float) -> _Found | None:
    """It leads its key: is it remembered, sent, queued, or looked up?"""
    remembered = _find(parts.keys, span, index)
    if remembered is not None:
        return WaitsFor.KEY_STORE, remembered.account
    sent = _find(parts.dispatcher.in_flight(), span, index)
    if sent is not None:
        return WaitsFor.PLATFORM, sent.account
    for queue in parts.dispatcher:
        waits_for = _queued(parts, queue, span, index, now)
        if waits_for is not None:
            return waits_for, queue.account
    looked_up = _find(parts.looked_up(), span, index)
    return (WaitsFor.KEY_STORE, looked_up.account) if looked_up is not None else None


def _queued(parts: Parts, queue: AccountQueue, span: Span, index: int, now: float) -> WaitsFor | None:
    """What a record waits for that is queued there; None: it is not."""
    again = next((at for at, batch in queue.again() if _find(batch.deliveries, span, index)), None)
    filling = again is None and _find(queue.filling, span, index) is not None
    if again is None and not filling and not any(_find(one, span, index) for one in queue.ready):
        return None
    if queue.gate.halt is not None:
        return WaitsFor.HALT
    if again is not None and again > now:
        return WaitsFor.RETRY
    opens = queue.gate.opens_at(now, queue.in_flight)
    if opens is None:
        # As many calls as may be are in flight; fewer than usual, where the platform was in trouble.
        return (
            WaitsFor.PLATFORM if int(queue.gate.pace) >= parts.context.policy.concurrency else WaitsFor.QUOTA
        )
    if opens > now:
        return WaitsFor.QUOTA
    if filling:
        return WaitsFor.BATCH
    # What is out there without a durable key has its limit: something must come back before more goes.
    if next(parts.dispatcher.in_flight(), None) is not None:
        return WaitsFor.PLATFORM
    return WaitsFor.KEY_STORE if len(parts.keys) else WaitsFor.BATCH


def _without_key(parts: Parts, span: Span, index: int) -> _Found | None:
    """It has no key yet, or will have none."""
    if parts.parking.holds(span, index):
        return WaitsFor.SCHEMA, None
    if parts.early.holds(Parked(span, index)):
        return WaitsFor.CLOCK, None
    if parts.admission.defers(span, index):
        return (WaitsFor.ROOM if parts.guard.tripped is None else WaitsFor.GUARD), None
    if any(letter.span is span and letter.place == index for letter in parts.letters):
        return WaitsFor.DEAD_LETTER, None
    return None


def _behind_another(parts: Parts, span: Span, index: int) -> _Found | None:
    """It follows the one that leads its key."""
    for leader in parts.claims.leaders():
        if leader.followers is not None and _find(leader.followers, span, index) is not None:
            return WaitsFor.DUPLICATE, leader.account
    return None


def _find(deliveries: Iterable[Delivery], span: Span, index: int) -> Delivery | None:
    for one in deliveries:
        if one.span is span and one.index == index:
            return one
    return None
