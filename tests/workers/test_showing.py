"""What is shown of the workers beside the merged figures: /status, /metrics, health."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from consumer.web.metrics import FiguresCollector, families
from consumer.web.status import document_of
from consumer.workers.line import WorkerProcess, WorkerReport
from consumer.workers.showing import (
    WorkerFigures,
    figures,
    why_workers_unhealthy,
)
from consumer.workers.supervision import WorkerRecord, WorkerState
from tests.web.building import busy, partition, statistics
from tests.web.listening import running

STALL_AFTER = 120.0
PAGE = (Path(__file__).parents[2] / "docs" / "status.md").read_text("utf-8")


def seen(number: int = 1, state: WorkerState = WorkerState.RUNNING, **others: Any) -> WorkerFigures:
    """A healthy worker."""
    known: dict[str, Any] = {"pid": 40 + number, "heard": 0.25, "partitions": 0} | others
    record = WorkerRecord(number, state, restarts=number - 1)
    pid, heard, partitions = (known.pop(name) for name in ("pid", "heard", "partitions"))
    process = None if heard is None else WorkerProcess(WorkerReport(**known), heard_at=-heard, pid=pid)
    return figures(record, process, 0.0, partitions)


def test_the_figures_of_each_worker() -> None:
    """State, process, restarts and records of each worker."""
    one = seen(1, statistics=statistics(partition(0, delivered=3, open=2), partition(4)), partitions=2)
    two = seen(2, WorkerState.PAUSING, pid=None, heard=None)
    first, second = document_of(one), document_of(two)
    assert first == {
        "worker": 1,
        "state": "running",
        "pid": 41,
        "restarts": 0,
        "reported_seconds_ago": 0.25,
        "silent": False,
        "partitions": 2,
        "read": 5,
        "open": 2,
    }
    assert (second["state"], second["pid"], second["restarts"], second["read"]) == ("pausing", None, 1, None)


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


def test_docs_explain_each_state() -> None:
    """All other words of the page are the figures' own (tests/web/test_status_page.py)."""
    assert all(f"`{state.value}`" in PAGE for state in WorkerState)


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
