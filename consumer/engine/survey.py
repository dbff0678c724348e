"""Takes the snapshot: reads every part of the pipeline between two messages, changes nothing but `Stall`.

Theory of operation. A snapshot is taken once a second, whatever is open, so it counts no records but reads what is
counted. Of the oldest open record its stage says what it waits for. The figures are taken as they are, also where they
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

from collections.abc import Iterable
from typing import Final, Protocol

from consumer.engine.block import Block, Delivery, RecordStage
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
from consumer.engine.waiting import EarlyRecords, Parking


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


def timestamp_of(block: Block, index: int) -> int | None:
    """Kafka's timestamp of an open record, milliseconds; None: it has none."""
    timestamp = block.record(index).timestamp
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


def _oldest_open(parts: Parts) -> tuple[Block, int] | None:
    """Of each partition's lowest open record the oldest; one without a timestamp only where all are without."""
    lowest = [one for one in (state.lowest_open() for state in parts.ledger) if one is not None]
    return min(lowest, key=_oldest_first, default=None)


def _oldest_first(place: tuple[Block, int]) -> float:
    timestamp = timestamp_of(*place)
    return float("inf") if timestamp is None else timestamp


def _describe(parts: Parts, block: Block, index: int, now: Instant) -> OldestOpen:
    tp, stage = block.assignment.tp, RecordStage(block.stages[index])
    guarded = parts.guard.tripped is not None
    account = block.account(index) if stage in _HAS_ACCOUNT else None
    if stage is RecordStage.QUEUED and account is not None:
        waits_for = _queued(parts, parts.dispatcher.queue(account), block, index, now.monotonic)
    elif stage in (RecordStage.ROOM, RecordStage.FREED) and guarded:
        waits_for = WaitsFor.GUARD
    else:
        waits_for = _WAITS_FOR[stage]
    return OldestOpen(
        tp.topic,
        tp.partition,
        block.offsets[index],
        age(timestamp_of(block, index), now.unix),
        waits_for,
        account,
    )


_WAITS_FOR: Final = {
    RecordStage.SCHEMA: WaitsFor.SCHEMA,
    RecordStage.CLOCK: WaitsFor.CLOCK,
    RecordStage.ROOM: WaitsFor.ROOM,
    RecordStage.FOLLOWING: WaitsFor.DUPLICATE,
    RecordStage.LOOKED_UP: WaitsFor.KEY_STORE,
    RecordStage.IN_FLIGHT: WaitsFor.PLATFORM,
    RecordStage.STORING: WaitsFor.KEY_STORE,
    RecordStage.DEAD_LETTERING: WaitsFor.DEAD_LETTER,
    # What drains waits for what is in flight.
    RecordStage.FREED: WaitsFor.PLATFORM,
    # Only a bug leaves a record there; the page shows it all the same.
    RecordStage.READ: WaitsFor.PLATFORM,
}
_HAS_ACCOUNT: Final = frozenset(
    {
        RecordStage.FOLLOWING,
        RecordStage.LOOKED_UP,
        RecordStage.QUEUED,
        RecordStage.IN_FLIGHT,
        RecordStage.STORING,
    }
)


def _queued(parts: Parts, queue: AccountQueue, block: Block, index: int, now: float) -> WaitsFor:
    """What a record waits for that is queued there."""
    if queue.gate.halt is not None:
        return WaitsFor.HALT
    again = next((at for at, batch in queue.again() if _is_in(batch.deliveries, block, index)), None)
    if again is not None and again > now:
        return WaitsFor.RETRY
    opens = queue.gate.opens_at(now, queue.in_flight)
    if opens is None:
        # As many calls as may be are in flight; fewer than usual, where the platform was in trouble.
        most = parts.context.policy.concurrency
        return WaitsFor.PLATFORM if int(queue.gate.pace) >= most else WaitsFor.QUOTA
    if opens > now:
        return WaitsFor.QUOTA
    if again is None and _is_in(queue.filling, block, index):
        return WaitsFor.BATCH
    # What is out there without a durable key has its limit: something must come back before more goes.
    if next(parts.dispatcher.in_flight(), None) is not None:
        return WaitsFor.PLATFORM
    return WaitsFor.KEY_STORE if len(parts.keys) else WaitsFor.BATCH


def _is_in(deliveries: Iterable[Delivery], block: Block, index: int) -> bool:
    return any(one.block is block and one.index == index for one in deliveries)
