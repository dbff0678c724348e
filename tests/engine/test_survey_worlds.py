"""The snapshot and the stages in simulated worlds, checked after every input."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Instant
from consumer.engine.pipeline import Pipeline
from consumer.engine.records.block import Block
from consumer.engine.records.runs import Run, each_of
from consumer.engine.records.stages import REWOUND, RecordStage
from tests.simulation.runs import run_seed


def _where_they_are(pipeline: Pipeline) -> dict[RecordStage, set[tuple[Block, int]]]:
    """Return the open records that each part of the pipeline holds, by stage."""
    queues = [*pipeline.dispatcher]
    queued = [runs for queue in queues for runs in (queue.filling, *queue.ready)]
    queued += [batch.runs for queue in queues for _, _, batch in queue.again]
    asked = [
        *chain(*pipeline.lookups._asked.values()),
        *chain(*(leaders for _, leaders in pipeline.lookups._again)),
    ]
    parked = [one.row for wanted in pipeline.parking._wanted.values() for one in wanted.records]
    held: dict[RecordStage, Iterable[Run]] = {
        RecordStage.QUEUED: chain(*queued),
        RecordStage.IN_FLIGHT: pipeline.dispatcher.in_flight(),
        RecordStage.STORING: pipeline.keys,
        RecordStage.LOOKED_UP: asked,
        RecordStage.CLAIMED_BY_OTHER: asked,
        RecordStage.FOLLOWING: chain(*pipeline.claims.followers.values()),
        RecordStage.SCHEMA: parked,
        RecordStage.CLOCK: (one for *_, one in pipeline.untimely._waiting),
        RecordStage.ROOM: pipeline.admission._deferred,
        RecordStage.DEAD_LETTERING: (one.row for one in pipeline.letters),
        RecordStage.RECEIPTING: (one.run for one in pipeline.receipts),
    }
    return {stage: {(row.block, row.first) for row in each_of(runs)} for stage, runs in held.items()}


def _check(pipeline: Pipeline, now: Instant) -> None:
    statistics = pipeline.statistics(now)
    assert statistics.mismatch == 0
    for one in statistics.partitions:
        assert one.lag_seconds is None or one.lag_seconds >= 0
        assert one.totals.open or one.lag != 0 or one.lag_seconds in (0.0, None)
    assert (statistics.oldest_open is None) == (statistics.totals.open == 0)
    places = _where_they_are(pipeline)
    for state in pipeline.ledger:
        for block in state.blocks:
            for index, stage in enumerate(block.stages):
                if stage >= RecordStage.DELIVERED:
                    assert not any((block, index) in held for held in places.values()) or stage == REWOUND
                elif stage == RecordStage.FREED:
                    assert state.draining or pipeline.guard.tripped is not None
                else:
                    assert (block, index) in places[RecordStage(stage)], "it is not where its stage says"


@pytest.mark.parametrize("seed", range(12))
def test_the_oldest_open_record_waits_for_something_in_every_world(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In crashes, rebalances, outages and cuts each open record is where its stage says, and no settled one is held."""
    handle, checks = Pipeline.handle, []

    def watched(self: Pipeline, happened: m.Input, now: Instant) -> list[m.Command]:
        commands = handle(self, happened, now)
        _check(self, now)
        checks.append(now)
        return commands

    monkeypatch.setattr(Pipeline, "handle", watched)
    outcome = run_seed(seed)
    assert (outcome.invariant, outcome.message) == ("", "")
    assert len(checks) > 50
