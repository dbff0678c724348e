"""Takes the snapshot: reads every part of the pipeline between two inputs, and changes nothing but `Stall`.

Theory of operation. A snapshot is taken once a second, whatever is open, so it counts no records itself. The stage of
the oldest open record says what it waits for. Figures are taken as they are; if they do not add up,
`Statistics.mismatch` says so.

*Lag.* The end of a log is heard from time to time only (`EndOffsets`). So the end that is shown is at least what was
read, passed over or fetched: always ``committed <= position <= end``. Lag counts from the committed position, as
Kafka's own tools count it, and is at least the number of open records. Lag in seconds is 0 exactly if lag in records
is 0.

*Stall.* There is work (open records, or lag), and nothing has been settled for too long. It is only reported. What is
reported under its own name is no stall: a stop, a guard that has tripped, a destination that takes no events, a
function of the user's that does not return. (If one account takes no events and another does and has some, it is a
stall.) Every other cause is one: a registry or a key
store that does not answer, a dead-letter topic that cannot be written, another producer's hanging transaction.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Final, Protocol

from consumer.engine.block import Block, RecordStage, Run
from consumer.engine.claims import Claims
from consumer.engine.commits import Commits
from consumer.engine.context import Clock, Context
from consumer.engine.figures.counters import SamplesSnapshot
from consumer.engine.figures.statistics import (
    AccountStatistics,
    BrokerStatistics,
    OldestOpen,
    PartitionStatistics,
    Statistics,
    WaitsFor,
)
from consumer.engine.guard import Guard
from consumer.engine.intake import Admission
from consumer.engine.keys import Lookups
from consumer.engine.ledger import AssignmentState, Ledger
from consumer.engine.model import GateState, Instant
from consumer.engine.outcomes import Outcomes
from consumer.engine.sending.dispatcher import Dispatcher
from consumer.engine.sending.queues import AccountQueue
from consumer.engine.waiting import EarlyRecords, Parking, Transforming


def end_and_lag(state: AssignmentState, held_to: int) -> tuple[int | None, int | None]:
    """Return the offset after the last record of the log, and the number of offsets from the committed one to there.

    None: not known. `held_to`: the offset after the last record that was fetched and is not read yet; 0: none is.
    """
    if state.end is None:
        return None, None
    position = state.position()
    # What was read or fetched is in the log, even if its end was last heard of before that.
    end = max(state.end, state.reached, held_to, position or 0)
    # Where nothing is committed yet, from where reading began.
    begin = state.committed.next_offset if state.committed is not None else state.start
    if begin is not None and not state.open and held_to <= state.removed_to:
        begin = max(begin, state.removed_to)  # what was removed will not come
    if end == 0:
        return 0, 0  # nothing is left in a log that ends where logs begin
    if begin is None or position is None:
        return end, None
    all_read = held_to <= position and max(position, state.reached) >= end
    if all_read and position == begin and not state.open:
        return end, 0  # all is settled and committed: the rest are markers and aborted transactions
    return end, end - begin


def age(timestamp: int, unix_now: float) -> float | None:
    """Return the seconds since a record's Kafka timestamp (milliseconds); 0: it lies ahead; None: it has none."""
    return None if timestamp < 0 else max(0.0, unix_now - timestamp / 1000)


# Seconds between two log lines about the same stall: it is also on the page, in /status and in a metric.
_REMIND_EVERY = 300.0


class Stall:
    """Reports when nothing has settled for too long though there is work."""

    def __init__(self, context: Context) -> None:
        self._context = context
        # No ledger has settled -1 records, so the first look starts the clock.
        self._settled = -1
        self._moved_at = inf
        self._remind_at: float | None = None

    def look(self, settled: int, work: int, excused: bool) -> None:
        """Compare the records `settled` so far with those of the last look. `work`: open records, and lag."""
        now = self._context.now.monotonic
        # Without work, or where another name explains it, the time does not count: it begins anew after that.
        if not work or excused or settled != self._settled:
            if self._remind_at is not None:
                self._context.report("info", "moves_again", seconds=round(now - self._moved_at, 3))
            self._settled, self._moved_at, self._remind_at = settled, now, None
            return
        seconds = self.seconds()
        if seconds is not None and (self._remind_at is None or now >= self._remind_at):
            self._remind_at = now + _REMIND_EVERY
            self._context.report("error", "stalled", seconds=round(seconds, 3), work=work)

    def seconds(self) -> float | None:
        """Return for how long nothing has settled; None: not for too long."""
        still = self._context.now.monotonic - self._moved_at
        return still if still >= self._context.policy.stall_after else None


class Parts(Protocol):
    """What a snapshot reads of a pipeline."""

    context: Context
    clock: Clock
    ledger: Ledger
    claims: Claims
    admission: Admission
    parking: Parking
    early: EarlyRecords
    transforming: Transforming
    dispatcher: Dispatcher
    lookups: Lookups
    outcomes: Outcomes
    guard: Guard
    commits: Commits
    stall: Stall
    stopping: bool
    joined: bool
    waiting_for_start: int
    progress_at: float | None

    @property
    def key_store_fails(self) -> bool:
        """Whether the key store fails at present."""

    def room(self) -> int:
        """How many records to fetch now at most."""


def look_for_stall(parts: Parts) -> None:
    """Look for a stall. It is none if what the work waits for is reported under its own name."""
    held_to, now = parts.admission.held_to(), parts.context.now.monotonic
    lag = sum(end_and_lag(state, held_to.get(state, 0))[1] or 0 for state in parts.ledger)
    gates = [(queue.gate.state(now), queue.queued or queue.in_flight) for queue in parts.dispatcher]
    # Some account takes no events, and those that do have nothing to send.
    platform = any(state is not GateState.OPEN for state, _ in gates) and not any(
        state is GateState.OPEN and busy for state, busy in gates
    )
    function = parts.transforming.slow(now) is not None
    by_name = parts.stopping or parts.guard.tripped is not None or platform or function
    parts.stall.look(parts.ledger.settlements, parts.ledger.open + lag, by_name)


def survey(parts: Parts, now: Instant) -> Statistics:
    """Take the snapshot of `now`, by this machine's clocks."""
    # Ages are by the corrected time, as the engine itself counts; the figures of the clock need the uncorrected one.
    local, now = now, parts.clock.correct(now)
    lowest = [place for place in (state.lowest_open() for state in parts.ledger) if place is not None]
    # A record without a timestamp only if none has one.
    oldest = min(lowest, key=lambda place: (_timestamp(place) < 0, _timestamp(place)), default=None)
    held_to = parts.admission.held_to()
    counters = parts.context.counters.copy()
    # The ledger counts by number, because a section has a name only in the mapping; 0 is none.
    for (number, disposition), count in parts.ledger.by_section.items():
        if number:
            counters.by_section[parts.context.sections[number], disposition.value] = count
    return Statistics(
        totals=parts.ledger.totals(),
        partitions=tuple(_partition(state, now.unix, held_to.get(state, 0)) for state in parts.ledger),
        accounts=tuple(_account(queue, now.monotonic) for queue in parts.dispatcher),
        open_bytes=parts.ledger.open_bytes,
        held=parts.admission.held,
        passed=parts.ledger.passed,
        waiting_for_start=parts.waiting_for_start,
        # The source says it from time to time (`EndOffsets`); an assignment proves it earlier.
        joined=parts.joined or any(True for _ in parts.ledger),
        stalled_for=parts.stall.seconds(),
        key_store_fails=parts.key_store_fails,
        claimed_elsewhere=parts.lookups.elsewhere,
        lease_left=parts.lookups.lease_left(now.monotonic),
        quota_members=parts.dispatcher.quota.members,
        room=parts.room(),
        claims=len(parts.claims),
        waiting_for_schema=len(parts.parking),
        oldest_open_ms=None if oldest is None or _timestamp(oldest) < 0 else _timestamp(oldest),
        seconds_since_progress=max(0.0, now.monotonic - (parts.progress_at or now.monotonic)),
        freshness=parts.outcomes.freshness.snapshot(now.monotonic),
        counters=counters,
        stopping=parts.stopping,
        guard=parts.guard.tripped,
        oldest_open=None if oldest is None else _describe(parts, oldest, now),
        coverage=parts.outcomes.coverage.snapshot(now.monotonic),
        letters=tuple(parts.outcomes.samples.letters),
        samples=SamplesSnapshot(
            dict(parts.outcomes.samples.rejections), dict(parts.outcomes.samples.warnings)
        ),
        commit_metadata=parts.commits.metadata(),
        elsewhere=sum(state.elsewhere for state in parts.ledger),
        mismatch=parts.ledger.mismatch(),
        schemas=parts.parking.waits(now.monotonic),
        schemas_from_disk=parts.parking.stand_ins,
        clock=parts.clock.statistics(local, len(parts.early)),
        slow_transform=parts.transforming.slow(now.monotonic),
        brokers=tuple(
            BrokerStatistics(client, *one)
            for client, brokers in parts.context.brokers.items()
            for one in brokers
        ),
    )


def _timestamp(place: tuple[Block, int]) -> int:
    """Return the Kafka timestamp of an open record, milliseconds; negative: it has none."""
    block, index = place
    return block.record(index).timestamp


def _partition(state: AssignmentState, unix_now: float, held_to: int) -> PartitionStatistics:
    end, lag = end_and_lag(state, held_to)
    lowest = state.lowest_open()
    if lowest is not None:
        lag_seconds = age(_timestamp(lowest), unix_now)
    elif lag:
        # What is left is not read or not committed yet, so its timestamps are unknown. The last record read stands for
        # it.
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
        unreadable_at=state.unreadable_at,
    )


def _account(queue: AccountQueue, now: float) -> AccountStatistics:
    gate = queue.gate
    state = gate.state(now)
    halt = gate.halt
    return AccountStatistics(
        account=queue.account,
        state=state.value,
        # The gate's words are about these two states only.
        reason=gate.reason if state in (GateState.HALTED, GateState.UNREACHABLE) else None,
        queued=queue.queued,
        in_flight=queue.in_flight,
        throttled_for=gate.throttled_until(now) - now if state is GateState.THROTTLED else None,
        halted_for=now - halt.since if halt is not None else None,
        next_probe_in=max(0.0, halt.probe_at - now) if halt is not None else None,
        told=gate.told_by_member(now),
        unreachable_for=now - (gate.silent_since or now) if state is GateState.UNREACHABLE else None,
    )


# -- the oldest open record


def _describe(parts: Parts, place: tuple[Block, int], now: Instant) -> OldestOpen:
    block, index = place
    stage = RecordStage(block.stages[index])
    account = block.account(index) if stage in _HAS_ACCOUNT else None
    if stage is RecordStage.QUEUED and account is not None:
        waits_for = _queued(parts, parts.dispatcher.queue(account), block, index, now.monotonic)
    elif stage in (RecordStage.ROOM, RecordStage.FREED) and parts.guard.tripped is not None:
        waits_for = WaitsFor.GUARD
    else:
        waits_for = _WAITS_FOR[stage]
    since = age(_timestamp(place), now.unix)
    return OldestOpen(*block.assignment.tp, block.offsets[index], since, waits_for, account)


_WAITS_FOR: Final = {
    RecordStage.SCHEMA: WaitsFor.SCHEMA,
    RecordStage.CLOCK: WaitsFor.CLOCK,
    RecordStage.ROOM: WaitsFor.ROOM,
    RecordStage.FOLLOWING: WaitsFor.DUPLICATE,
    RecordStage.LOOKED_UP: WaitsFor.KEY_STORE,
    RecordStage.ELSEWHERE: WaitsFor.MEMBER,
    RecordStage.IN_FLIGHT: WaitsFor.PLATFORM,
    RecordStage.STORING: WaitsFor.KEY_STORE,
    RecordStage.DEAD_LETTERING: WaitsFor.DEAD_LETTER,
    # A draining partition waits for what is in flight.
    RecordStage.FREED: WaitsFor.PLATFORM,
    # Only a bug leaves a record here, but the page must show it.
    RecordStage.READ: WaitsFor.PLATFORM,
}
_HAS_ACCOUNT: Final = frozenset(
    {
        RecordStage.FOLLOWING,
        RecordStage.LOOKED_UP,
        RecordStage.ELSEWHERE,
        RecordStage.QUEUED,
        RecordStage.IN_FLIGHT,
        RecordStage.STORING,
    }
)


def _queued(parts: Parts, queue: AccountQueue, block: Block, index: int, now: float) -> WaitsFor:
    """Return what a record in this queue waits for."""
    if queue.gate.halt is not None:
        return WaitsFor.HALT
    again = next((at for at, _, batch in queue.again if _is_in(batch.runs, block, index)), None)
    if again is not None and again > now:
        return WaitsFor.RETRY
    opens, allowance = queue.gate.opens_at(now, queue.in_flight), queue.gate.allowance
    if opens is None and allowance is not None and allowance.asked is not None:
        return WaitsFor.KEY_STORE
    if opens is None:
        # All calls that may be in flight are: fewer than usual, if the platform was in trouble.
        most = parts.context.policy.concurrency
        return WaitsFor.PLATFORM if int(queue.gate.pace) >= most else WaitsFor.QUOTA
    if opens > now:
        return WaitsFor.QUOTA
    if again is None and _is_in(queue.filling, block, index):
        return WaitsFor.BATCH
    # The number of events without a durable key is limited: something must come back before more is sent.
    if next(parts.dispatcher.in_flight(), None) is not None:
        return WaitsFor.PLATFORM
    return WaitsFor.KEY_STORE if len(parts.outcomes.keys) else WaitsFor.BATCH


def _is_in(runs: Iterable[Run], block: Block, index: int) -> bool:
    return any(of is block and first <= index < end for of, first, end in runs)
