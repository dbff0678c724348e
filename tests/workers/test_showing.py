"""What is shown of the workers beside the merged figures: /status, /metrics, health."""

from __future__ import annotations

from typing import Any

import pytest

from consumer.web.metrics import FiguresCollector, families
from consumer.workers.line import WorkerProcess, WorkerReport
from consumer.workers.showing import (
    WorkerFigures,
    figures,
    why_workers_unhealthy,
)
from consumer.workers.supervision import WorkerRecord, WorkerState
from tests.web.building import busy
from tests.web.listening import running

STALL_AFTER = 120.0


def seen(number: int = 1, state: WorkerState = WorkerState.RUNNING, **others: Any) -> WorkerFigures:
    """A healthy worker."""
    known: dict[str, Any] = {"pid": 40 + number, "heard": 0.25, "partitions": 0} | others
    record = WorkerRecord(number, state, restarts=number - 1)
    pid, heard, partitions = (known.pop(name) for name in ("pid", "heard", "partitions"))
    process = None if heard is None else WorkerProcess(WorkerReport(**known), heard_at=-heard, pid=pid)
    return figures(record, process, 0.0, partitions)


def test_a_worker_that_stands_still_is_shown_after_two_heartbeats() -> None:
    """It has not reported for a second. One that has never reported is starting, or hangs in the start."""
    assert [seen(heard=seconds).silent for seconds in (0.5, 0.99, 1.0, 25.0)] == [False, False, True, True]
    begun = WorkerProcess(heard_at=-9.0, pid=41)
    assert not figures(WorkerRecord(1, WorkerState.STARTING), begun, 0.0, 0).silent
    assert not figures(WorkerRecord(1, WorkerState.PAUSING), None, 0.0, 0).silent


@pytest.mark.parametrize("state", [WorkerState.RUNNING, WorkerState.STARTING])
def test_one_unhealthy_worker_is_enough(state: WorkerState) -> None:
    """One that reports itself unhealthy, or reports nothing any more; the line names it. A dead one does not count: it
    is started again, or the supervisor ends."""
    dead = seen(2, WorkerState.PAUSING, pid=None, heard=None, unhealthy=None)
    ill = seen(2, state, unhealthy="nothing settled for 130 s")
    silent = seen(3, state, heard=STALL_AFTER)
    for others, why in (
        ([dead, seen(3, state)], None),
        ([ill], "worker 2: nothing settled for 130 s"),
        ([silent], "worker 3: it has reported nothing for 120 s"),
    ):
        assert why_workers_unhealthy([seen(), *others], STALL_AFTER) == why


def test_metrics() -> None:
    """Each worker has a series, alive or not."""
    found = {
        (family.name, labels): value
        for family, series in families(WorkerFigures, [seen(1), seen(2, WorkerState.PAUSING)])
        for labels, value in series
    }
    assert found == {
        ("pinstream_worker_up", ("1",)): 1,
        ("pinstream_worker_up", ("2",)): 0,
        ("pinstream_worker_silent", ("1",)): 0,
        ("pinstream_worker_silent", ("2",)): 0,
        ("pinstream_worker_restarts_total", ("1",)): 0,
        ("pinstream_worker_restarts_total", ("2",)): 1,
    }


async def test_the_web_server_asks_and_shows() -> None:
    """/healthz fails if one worker is unhealthy, although the merged figures are fine; /metrics has the workers'
    series."""
    error: list[str] = []
    more = FiguresCollector(WorkerFigures, lambda: [seen()])
    async with running(busy, more_metrics=more, unhealthy=lambda _: error[0] if error else None) as served:
        assert (await served.get("/healthz"))[::2] == (200, "ok\n")
        error.append("worker 2: it has reported nothing for 120 s")
        assert (await served.get("/healthz"))[::2] == (503, "worker 2: it has reported nothing for 120 s\n")
        assert 'pinstream_worker_up{worker="1"} 1.0' in (await served.get("/metrics"))[2]
