"""What a snapshot says of partitions, accounts and the oldest open record; reports of stalls and of a wrong clock.

Theory of operation. A snapshot (`Pipeline.statistics`) is taken once a second, however many records are open, so it
counts no records itself. The stage of the oldest open record says what it waits for. Everything here only reads, except
`Stall` and `ClockWatch`, which remember their last check.

*Lag.* The end of a log is reported only from time to time (`EndOffsets`). So the end that is shown is at least the
offset up to which records were read, passed over or fetched: always ``committed <= position <= end``. Lag counts from
the committed position, as Kafka's own tools count it, and is at least the number of open records. Lag in seconds is 0
exactly if lag in records is 0.

*Stall.* There is work (open records, or lag), and nothing has been settled for too long. It is only reported. A cause
that has a report of its own is not a stall: a stop, brokers that do not answer, a guard that has tripped, a destination
that accepts no events, a function of the user's that does not return. (If one account accepts no events, and another
one does and has some, it is a stall.) Every other cause is a stall: a registry or a key store that does not answer, a
dead-letter topic that cannot be written, another producer's hanging transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import inf
from typing import Final

from consumer.engine.clock import WORTH_A_WORD, Clock
from consumer.engine.context import Context
from consumer.engine.figures.statistics import AccountStatistics, PartitionStatistics
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.engine.intake.guard import Guard
from consumer.engine.intake.transforming import Transforming
from consumer.engine.model import GateState, Instant
from consumer.engine.records.block import AssignmentState, Block
from consumer.engine.records.ledger import Ledger
from consumer.engine.records.runs import Run
from consumer.engine.records.stages import RecordStage
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.queue import AccountQueue
from consumer.engine.steps import Steps

BlockRow = tuple[Block, int]
"""A record: its block, and its index there."""


def end_and_lag(state: AssignmentState) -> tuple[int | None, int | None]:
    """Return the offset after the last record of the log, and the number of offsets from the committed one to there.

    None: not known.
    """
    if state.log.end is None:
        return None, None
    position = state.position()
    # Records that were read or fetched are in the log, even if its end was reported before that.
    end = max(state.log.end, state.log.reached, state.fetched_to, position or 0)
    # Without a commit, count from where reading began.
    begin = state.committed.next_offset if state.committed is not None else state.start
    if begin is not None and not state.open and state.fetched_to <= max(position or 0, state.log.removed_to):
        begin = max(begin, state.log.removed_to)  # removed records will not come
    if end == 0:
        return 0, 0  # nothing is left in a log that ends where logs begin
    if begin is None or position is None:
        return end, None
    all_read = state.fetched_to <= position and max(position, state.log.reached) >= end
    if all_read and position == begin and not state.open:
        return end, 0  # all is settled and committed: the rest are markers and aborted transactions
    return end, end - begin


def age(timestamp: int, unix_now: float) -> float | None:
    """Return the seconds since a record's Kafka timestamp (milliseconds); 0: it lies ahead; None: it has none."""
    return None if timestamp < 0 else max(0.0, unix_now - timestamp / 1000)


# Seconds between two log lines about the same stall: it is also on the page, in /status and in a metric.
_REMIND_EVERY = 300.0
# The same for a wrong clock, and between two samples at it.
_REMIND_CLOCK_EVERY, _CHECK_EVERY = 60.0, 1.0


@dataclass(eq=False)
class Stall:
    """Reports when nothing has settled for too long though there is work."""

    _context: Context
    _ledger: Ledger
    _dispatcher: Dispatcher
    _guard: Guard
    _transforming: Transforming
    # -1 differs from every number of settled records, so the first check starts the clock.
    _settled: int = -1
    _moved_at: float = inf
    _remind_at: float | None = None
    # The longest wait of a batch since then: where calls are few, it may be longer than work may stand still.
    _filled_for: float = 0.0

    def check(self, explained: bool) -> None:
        """Compare the records settled so far with those of the last check. `explained`: a stop, or silent brokers."""
        now, settled = self._context.now.monotonic, self._ledger.settlements
        # A known lag includes what is open.
        work = sum(max(end_and_lag(state)[1] or 0, state.open) for state in self._ledger)
        # Without work, or where another report explains the wait, the time does not count: it begins again afterwards.
        if not work or explained or self._waits_by_name(now) or settled != self._settled:
            if self._remind_at is not None:
                self._context.report("info", "moves_again", seconds=round(now - self._moved_at, 3))
            self._settled, self._moved_at, self._remind_at, self._filled_for = settled, now, None, 0.0
            return
        self._filled_for = max([self._filled_for, *(queue.fills_for() for queue in self._dispatcher)])
        seconds = self.seconds()
        if seconds is not None and (self._remind_at is None or now >= self._remind_at):
            self._remind_at = now + _REMIND_EVERY
            self._context.report("error", "stalled", seconds=round(seconds, 3), work=work)

    def _waits_by_name(self, now: float) -> bool:
        """Return True if another report already names what the work waits for."""
        gates = [(queue.gate.state(now), queue.queued or queue.in_flight) for queue in self._dispatcher]
        # Some account accepts no events, and the others have nothing to send.
        platform = any(state is not GateState.OPEN for state, _ in gates) and not any(
            state is GateState.OPEN and busy for state, busy in gates
        )
        return self._guard.tripped is not None or platform or self._transforming.slow(now) is not None

    def seconds(self) -> float | None:
        """Return the seconds for which nothing has settled; None: it is not too long yet."""
        still = self._context.now.monotonic - self._moved_at
        return still if still >= self._context.policy.stall_after + self._filled_for else None


@dataclass(eq=False)
class ClockWatch:
    """Reports a wrong clock once a minute, and once when it is right again."""

    _context: Context
    _clock: Clock
    _check_at: float = -inf
    _remind_at: float = -inf
    _off_since: float | None = None

    def check(self) -> None:
        """Compare this machine's clock with the others, once a second."""
        local = self._clock.local
        now = local.monotonic
        if now < self._check_at:
            return
        self._check_at = now + _CHECK_EVERY
        off = self._clock.figures(local, 0).behind
        by = next((one for one, seconds in off.items() if abs(seconds or 0.0) >= WORTH_A_WORD), None)
        if by is None and self._off_since is not None:
            self._context.report("info", "clock_right", after_seconds=round(now - self._off_since))
            self._off_since, self._remind_at = None, -inf
        if by is not None and now >= self._remind_at:
            self._remind_at = now + _REMIND_CLOCK_EVERY
            self._off_since = now if self._off_since is None else self._off_since
            seconds, certain = round(off[by] or 0.0), int(self._clock.certain)
            self._context.report("warning", "clock_off", by=by, behind_seconds=seconds, certain=certain)


def timestamp_of(place: BlockRow) -> int:
    """Return the Kafka timestamp of an open record, milliseconds; negative: it has none."""
    block, index = place
    return block.record(index).timestamp


def partition_statistics(state: AssignmentState, unix_now: float, *, silent: bool) -> PartitionStatistics:
    """Return the figures of a partition. `silent`: no broker answers, so the log may have grown since."""
    end, lag = end_and_lag(state)
    lag = None if silent else lag
    lowest = state.lowest_open()
    if lowest is not None:
        lag_seconds = age(timestamp_of(lowest), unix_now)
    elif lag:
        # The remaining records are not read, or all are settled and not committed yet, so their timestamps are unknown.
        # The last record read stands for them.
        lag_seconds = age(state.last_timestamp, unix_now)
    else:
        lag_seconds = None if lag is None else 0.0
    return PartitionStatistics(
        *state.tp,
        epoch=state.epoch,
        committed=state.committed.next_offset if state.committed is not None else None,
        position=state.position(),
        end=end,
        lag=lag,
        totals=state.totals(),
        lag_seconds=lag_seconds,
        unreadable_at=state.log.unreadable_at,
    )


def account_statistics(queue: AccountQueue, now: float) -> AccountStatistics:
    """Return the figures of an account, at this monotonic time."""
    gate = queue.gate
    state = gate.state(now)
    halt = gate.halt
    return AccountStatistics(
        account=queue.account,
        state=state.value,
        # The gate has a reason for these two states only.
        reason=gate.reason if state in (GateState.HALTED, GateState.UNREACHABLE) else None,
        queued=queue.queued,
        in_flight=queue.in_flight,
        throttled_for=gate.throttled_until(now) - now if state is GateState.THROTTLED else None,
        halted_for=now - halt.since if halt is not None else None,
        next_probe_in=max(0.0, halt.probe_at - now) if halt is not None else None,
        by_member=gate.is_of_member(now),
        unreachable_for=now - (gate.silent_since or now) if state is GateState.UNREACHABLE else None,
    )


# -- the oldest open record

# What a record on each stage waits for, and whether its event's account is known. For a queued record see `_queued`.
_WAITS_FOR: Final = {
    RecordStage.SCHEMA: (WaitsFor.SCHEMA, False),
    RecordStage.CLOCK: (WaitsFor.CLOCK, False),
    RecordStage.ROOM: (WaitsFor.ROOM, False),
    RecordStage.FOLLOWING: (WaitsFor.DUPLICATE, True),
    RecordStage.LOOKED_UP: (WaitsFor.KEY_STORE, True),
    RecordStage.CLAIMED_BY_OTHER: (WaitsFor.MEMBER, True),
    RecordStage.IN_FLIGHT: (WaitsFor.PLATFORM, True),
    RecordStage.STORING: (WaitsFor.KEY_STORE, True),
    RecordStage.DEAD_LETTERING: (WaitsFor.DEAD_LETTER, False),
    RecordStage.RECEIPTING: (WaitsFor.RECEIPT, False),
    # A draining partition waits for calls in flight.
    RecordStage.FREED: (WaitsFor.PLATFORM, False),
    # Only a bug leaves a record here, but the page must show it.
    RecordStage.READ: (WaitsFor.PLATFORM, False),
}


def describe_open(place: BlockRow, now: Instant, steps: Steps) -> OldestOpen:
    """Describe an open record: where it lies and what it waits for."""
    block, index = place
    stage = RecordStage(block.stages[index])
    if stage is RecordStage.QUEUED:
        account: str | None = block.account(index)
        waits_for = _queued(place, now.monotonic, steps)
    else:
        waits_for, goes_somewhere = _WAITS_FOR[stage]
        account = block.account(index) if goes_somewhere else None
        if stage in (RecordStage.ROOM, RecordStage.FREED) and steps.guard.tripped is not None:
            waits_for = WaitsFor.GUARD
    since = age(timestamp_of(place), now.unix)
    return OldestOpen(*block.assignment.tp, block.offsets[index], since, waits_for, account)


def _queued(place: BlockRow, now: float, steps: Steps) -> WaitsFor:
    """Return what a record that is queued for its account waits for."""
    block, index = place
    queue = steps.dispatcher.queue(block.account(index))

    def is_in(runs: Iterable[Run]) -> bool:
        return any(of is block and first <= index < end for of, first, end in runs)

    if queue.gate.halt is not None:
        return WaitsFor.HALT
    again = next((at for at, _, batch in queue.again if is_in(batch.runs)), None)
    if again is not None and again > now:
        return WaitsFor.RETRY
    opens, permits = queue.gate.opens_at(now, queue.in_flight), queue.gate.permits
    if opens is None and permits.asked is not None:
        return WaitsFor.KEY_STORE
    if opens is None:
        # As many calls as allowed are in flight: fewer than otherwise, if the platform failed.
        return (
            WaitsFor.PLATFORM if int(queue.gate.pace) >= steps.context.policy.concurrency else WaitsFor.QUOTA
        )
    if opens > now:
        return WaitsFor.QUOTA
    if again is None and is_in(queue.filling):
        return WaitsFor.BATCH
    # The number of events without a durable key is limited: a call or a write must end before more are sent.
    if next(steps.dispatcher.in_flight(), None) is not None:
        return WaitsFor.PLATFORM
    if steps.unreceipted:
        return WaitsFor.RECEIPT
    return WaitsFor.KEY_STORE if len(steps.keys) else WaitsFor.BATCH
