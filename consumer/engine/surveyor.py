"""Takes the snapshot: reads every part of the pipeline between two inputs, changes nothing.

Theory of operation. A snapshot is taken once a second, whatever is open, so it counts no records but reads what is
counted. One record is looked for: the oldest open one, in all places where a record can be, the end of its way first,
since there are the oldest; where it is found says what it waits for. It is in one place at most, and near the front,
as what came first stands first.

The figures are taken as they are, also where they do not add up: then `Statistics.mismatch` says so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from consumer.engine.assignment import AssignmentState
from consumer.engine.batching import AccountQueue
from consumer.engine.dedup import Delivery
from consumer.engine.gate import State
from consumer.engine.lag import age, end_of, lag_of, seconds_of, timestamp_of
from consumer.engine.model import Instant
from consumer.engine.parking import Parked
from consumer.engine.spans import Span
from consumer.engine.statistics import (
    AccountStatistics,
    OldestOpen,
    PartitionStatistics,
    Statistics,
    WaitsFor,
)

if TYPE_CHECKING:
    from consumer.engine.pipeline import Pipeline

_Found = tuple[WaitsFor, str | None]
"""What a record waits for, and the ad account it goes to."""


def survey(pipeline: Pipeline, now: Instant) -> Statistics:
    """The pipeline's figures at `now`, as far as our clocks go."""
    local, now = now, pipeline.clock.correct(now)
    oldest = _oldest_open(pipeline)
    held_to = pipeline.admission.held_to()
    return Statistics(
        totals=pipeline.ledger.totals(),
        partitions=tuple(_partition(state, now.unix, held_to.get(state, 0)) for state in pipeline.ledger),
        accounts=tuple(_account(queue, now.monotonic) for queue in pipeline.dispatcher),
        open_bytes=pipeline.ledger.open_bytes,
        held=pipeline.admission.held,
        passed=pipeline.ledger.passed,
        waiting_for_start=pipeline.waiting_for_start,
        joined=pipeline.joined or any(True for _ in pipeline.ledger),
        stalled_for=pipeline.stall.seconds(),
        key_store_fails=pipeline.key_store_fails,
        room=pipeline.room(),
        claims=len(pipeline.claims),
        waiting_for_schema=len(pipeline.parking),
        oldest_open_ms=timestamp_of(*oldest) if oldest is not None else None,
        seconds_since_progress=max(0.0, now.monotonic - (pipeline.progress_at or now.monotonic)),
        freshness=pipeline.freshness.snapshot(now.monotonic),
        counters=pipeline.context.counters.copy(),
        stopping=pipeline.stopping,
        guard=pipeline.guard.tripped,
        oldest_open=_describe(pipeline, *oldest, now) if oldest is not None else None,
        coverage=pipeline.coverage.snapshot(now.monotonic),
        letters=pipeline.samples.letters(),
        samples=pipeline.samples.snapshot(),
        commit_metadata=pipeline.commits.metadata(),
        elsewhere=sum(state.elsewhere for state in pipeline.ledger),
        mismatch=pipeline.ledger.mismatch(),
        schemas=pipeline.parking.waits(now.monotonic),
        clock=pipeline.clock.statistics(local, len(pipeline.early)),
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
        reason=gate.reason if state in (State.HALTED, State.UNREACHABLE) else None,
        queued=queue.queued,
        in_flight=queue.in_flight,
        throttled_for=gate.throttled_until(now) - now if state is State.THROTTLED else None,
        halted_for=now - halt.since if halt is not None else None,
        next_probe_in=max(0.0, halt.probe_at - now) if halt is not None else None,
        unreachable_for=now - (gate.silent_since or now) if state is State.UNREACHABLE else None,
    )


# -- the oldest open record


def _oldest_open(pipeline: Pipeline) -> tuple[Span, int] | None:
    """Of each partition's lowest open record the oldest; one without a timestamp only where all are without."""
    lowest = [one for one in (state.lowest_open() for state in pipeline.ledger) if one is not None]
    return min(lowest, key=_oldest_first, default=None)


def _oldest_first(place: tuple[Span, int]) -> float:
    timestamp = timestamp_of(*place)
    return float("inf") if timestamp is None else timestamp


def _describe(pipeline: Pipeline, span: Span, index: int, now: Instant) -> OldestOpen:
    tp = span.assignment.tp
    found = (
        _under_way(pipeline, span, index, now.monotonic)
        or _without_key(pipeline, span, index)
        or _behind_another(pipeline, span, index)
        # Let go of: once the guard has tripped, or while its partition is drained of what is in flight.
        or (WaitsFor.GUARD if pipeline.guard.tripped is not None else WaitsFor.PLATFORM, None)
    )
    return OldestOpen(
        tp.topic, tp.partition, span.offsets[index], age(timestamp_of(span, index), now.unix), *found
    )


def _under_way(pipeline: Pipeline, span: Span, index: int, now: float) -> _Found | None:
    """It leads its key: is it remembered, sent, queued, or looked up?"""
    remembered = _find(pipeline.keys, span, index)
    if remembered is not None:
        return WaitsFor.KEY_STORE, remembered.account
    sent = _find(pipeline.dispatcher.in_flight(), span, index)
    if sent is not None:
        return WaitsFor.PLATFORM, sent.account
    for queue in pipeline.dispatcher:
        waits_for = _queued(pipeline, queue, span, index, now)
        if waits_for is not None:
            return waits_for, queue.account
    looked_up = _find(pipeline.looked_up(), span, index)
    return (WaitsFor.KEY_STORE, looked_up.account) if looked_up is not None else None


def _queued(pipeline: Pipeline, queue: AccountQueue, span: Span, index: int, now: float) -> WaitsFor | None:
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
        return WaitsFor.PLATFORM if int(queue.gate.pace) >= pipeline.policy.concurrency else WaitsFor.QUOTA
    if opens > now:
        return WaitsFor.QUOTA
    if filling:
        return WaitsFor.BATCH
    # What is out there without a durable key has its limit: something must come back before more goes.
    if next(pipeline.dispatcher.in_flight(), None) is not None:
        return WaitsFor.PLATFORM
    return WaitsFor.KEY_STORE if len(pipeline.keys) else WaitsFor.BATCH


def _without_key(pipeline: Pipeline, span: Span, index: int) -> _Found | None:
    """It has no key yet, or will have none."""
    if pipeline.parking.holds(span, index):
        return WaitsFor.SCHEMA, None
    if pipeline.early.holds(Parked(span, index)):
        return WaitsFor.CLOCK, None
    if pipeline.admission.defers(span, index):
        return (WaitsFor.ROOM if pipeline.guard.tripped is None else WaitsFor.GUARD), None
    if any(letter.span is span and letter.place == index for letter in pipeline.letters):
        return WaitsFor.DEAD_LETTER, None
    return None


def _behind_another(pipeline: Pipeline, span: Span, index: int) -> _Found | None:
    """It follows the one that leads its key."""
    for leader in pipeline.claims.leaders():
        if leader.followers is not None and _find(leader.followers, span, index) is not None:
            return WaitsFor.DUPLICATE, leader.account
    return None


def _find(deliveries: Iterable[Delivery], span: Span, index: int) -> Delivery | None:
    for one in deliveries:
        if one.span is span and one.index == index:
            return one
    return None
