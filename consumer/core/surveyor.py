"""Takes the snapshot: reads every part of the pipeline between two inputs, changes nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING

from consumer.core.batching import AccountQueue
from consumer.core.gate import State
from consumer.core.ledger import AssignmentState
from consumer.core.model import Instant
from consumer.core.spans import Span
from consumer.core.statistics import AccountStatistics, PartitionStatistics, Statistics

if TYPE_CHECKING:
    from consumer.core.pipeline import Pipeline


def survey(pipeline: Pipeline, now: Instant) -> Statistics:
    """The pipeline's figures at `now`; the ledger is checked on the way."""
    return Statistics(
        totals=pipeline.ledger.totals(),
        partitions=tuple(_partition(state) for state in pipeline.ledger),
        accounts=tuple(_account(queue, now.monotonic) for queue in pipeline.dispatcher),
        open_bytes=pipeline.ledger.open_bytes,
        held=pipeline.admission.held,
        passed=pipeline.ledger.passed,
        room=pipeline.room(),
        claims=len(pipeline.claims),
        waiting_for_schema=len(pipeline.parking),
        oldest_open_ms=_oldest_open(pipeline),
        seconds_since_progress=max(0.0, now.monotonic - (pipeline.progress_at or now.monotonic)),
        freshness=pipeline.freshness.snapshot(),
        counters=pipeline.context.counters.copy(),
        stopping=pipeline.stopping,
        guard=pipeline.guard.tripped,
    )


def _partition(state: AssignmentState) -> PartitionStatistics:
    return PartitionStatistics(
        topic=state.tp.topic,
        partition=state.tp.partition,
        epoch=state.epoch,
        committed=state.committed.next_offset if state.committed is not None else None,
        position=state.position(),
        end=state.end,
        lag=state.lag(),
        totals=state.totals(),
    )


def _account(queue: AccountQueue, now: float) -> AccountStatistics:
    gate = queue.gate
    state = gate.state(now)
    halt = gate.halt
    return AccountStatistics(
        account=queue.account,
        state=state.value,
        reason=halt.reason if halt is not None else None,
        queued=queue.queued,
        in_flight=queue.in_flight,
        throttled_for=gate.throttled_until(now) - now if state is State.THROTTLED else None,
        halted_for=now - halt.since if halt is not None else None,
        next_probe_in=max(0.0, halt.probe_at - now) if halt is not None else None,
    )


def _oldest_open(pipeline: Pipeline) -> int | None:
    times = []
    for state in pipeline.ledger:
        span = next((one for one in state.spans if one.open), None)
        if isinstance(span, Span):
            timestamp = span.record(span.lowest()).timestamp
            if timestamp >= 0:
                times.append(timestamp)
    return min(times, default=None)
