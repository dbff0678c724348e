"""The snapshot in simulated worlds, taken after every input: the oldest open record is always found somewhere."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine import survey
from consumer.engine.model import Instant
from consumer.engine.pipeline import Pipeline
from tests.simulation.runs import run_seed


def _look(pipeline: Pipeline, now: Instant) -> None:
    statistics = pipeline.statistics(now)
    assert statistics.mismatch == 0
    for one in statistics.partitions:
        assert one.lag_seconds is None or one.lag_seconds >= 0
        assert one.totals.open or one.lag != 0 or one.lag_seconds in (0.0, None)
    place = survey._oldest_open(pipeline)
    assert (place is None) == (statistics.oldest_open is None) == (statistics.totals.open == 0)
    if place is None or pipeline.guard.tripped is not None or place[0].assignment.draining:
        return
    found = (
        survey._under_way(pipeline, *place, now.monotonic)
        or survey._without_key(pipeline, *place)
        or survey._behind_another(pipeline, *place)
    )
    assert found is not None, "an open record that waits for nothing"


@pytest.mark.parametrize("seed", range(12))
def test_the_oldest_open_record_waits_for_something_in_every_world(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Crashes, rebalances, outages, cut logs: each open record is in one of the places that are looked into."""
    handle, looks = Pipeline.handle, []

    def watched(self: Pipeline, happened: m.Input, now: Instant) -> list[m.Command]:
        commands = handle(self, happened, now)
        _look(self, now)
        looks.append(now)
        return commands

    monkeypatch.setattr(Pipeline, "handle", watched)
    outcome = run_seed(seed)
    assert (outcome.invariant, outcome.message) == ("", "")
    assert len(looks) > 50
