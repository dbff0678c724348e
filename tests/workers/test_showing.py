"""What is shown of the workers beside the merged figures: /status, /metrics, health."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from consumer.web.metrics import FiguresCollector
from consumer.web.server import WebServer
from consumer.web.status import document_of
from consumer.workers.line import WorkerProcess, WorkerReport
from consumer.workers.showing import (
    WorkerFigures,
    figures,
    why_workers_unhealthy,
)
from consumer.workers.supervision import WorkerRecord, WorkerState
from tests.web.building import busy, partition, statistics

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


def test_healthy_workers() -> None:
    """A dead worker does not count as unhealthy: it is started again, or the supervisor ends."""
    dead = seen(2, WorkerState.PAUSING, pid=None, heard=None, unhealthy=None)
    assert why_workers_unhealthy([seen(), dead, seen(3, WorkerState.STARTING)], STALL_AFTER) is None


@pytest.mark.parametrize("state", [WorkerState.RUNNING, WorkerState.STARTING])
def test_one_unhealthy_worker_is_enough(state: WorkerState) -> None:
    """One that reports itself unhealthy, or reports nothing any more; the line names it."""
    ill = seen(2, state, unhealthy="nothing settled for 130 s")
    assert why_workers_unhealthy([seen(), ill], STALL_AFTER) == "worker 2: nothing settled for 130 s"
    silent = seen(3, state, heard=STALL_AFTER)
    assert (
        why_workers_unhealthy([seen(), silent], STALL_AFTER) == "worker 3: it has reported nothing for 120 s"
    )


def test_metrics() -> None:
    """Each worker has a series, alive or not."""
    registry = CollectorRegistry()
    registry.register(FiguresCollector(WorkerFigures, lambda: [seen(1), seen(2, WorkerState.PAUSING)]))
    found = {
        (sample.name, sample.labels["worker"]): sample.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for sample in family.samples
    }
    assert found == {
        ("pinstream_worker_up", "1"): 1,
        ("pinstream_worker_up", "2"): 0,
        ("pinstream_worker_silent", "1"): 0,
        ("pinstream_worker_silent", "2"): 0,
        ("pinstream_worker_restarts_total", "1"): 0,
        ("pinstream_worker_restarts_total", "2"): 1,
    }


def test_docs_explain_each_figure() -> None:
    """docs/status.md has a row for each field of a worker, and for each metric with the field that it is."""
    reported = re.findall(r"^\| `workers\[\]\.(\w+)` \| ", PAGE, re.MULTILINE)
    assert reported == list(document_of(seen()))
    families = {
        family.name + "_total" * (family.type == "counter"): family.documentation
        for family in FiguresCollector(WorkerFigures, lambda: [seen()]).collect()
    }
    fields = dict(re.findall(r"^\| `(workers\[\]\.\w+)` \| [a-z, ]+ \| (.*) \|$", PAGE, re.MULTILINE))
    shown = re.findall(r"^\| `(pinstream_worker\w+)` \| `worker` \| `(.+)`\. ?(.*) \|$", PAGE, re.MULTILINE)
    assert [name for name, _, _ in shown] == list(families)
    for name, field, note in shown:
        assert families[name].endswith(note)
        assert fields[field].startswith(families[name].removesuffix(note).strip())
    for state in WorkerState:
        assert f"`{state.value}`" in PAGE


async def test_the_web_server_asks_and_shows() -> None:
    """/healthz fails if one worker is unhealthy, although the merged figures are fine; /metrics has the workers'
    series."""
    error: list[str] = []
    server = WebServer(
        busy,
        dict,
        host="127.0.0.1",
        port=0,
        unhealthy=lambda _: error[0] if error else None,
        more_metrics=FiguresCollector(WorkerFigures, lambda: [seen()]),
    )
    url = (await server.start()).page
    try:
        async with aiohttp.ClientSession(url) as session:

            async def get(path: str) -> tuple[int, str]:
                async with session.get(path) as answer:
                    return answer.status, await answer.text()

            assert await get("/healthz") == (200, "ok\n")
            error.append("worker 2: it has reported nothing for 120 s")
            assert await get("/healthz") == (503, "worker 2: it has reported nothing for 120 s\n")
            assert 'pinstream_worker_up{worker="1"} 1.0' in (await get("/metrics"))[1]
    finally:
        await server.stop()
