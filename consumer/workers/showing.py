"""What the supervisor shows in addition to the merged figures: its workers, in /status, /metrics and health."""

from __future__ import annotations

from collections.abc import Sequence

from consumer.engine.figures.definitions import figure, snapshot
from consumer.workers.line import REPORT_EVERY, WorkerProcess
from consumer.workers.supervision import ALIVE, WorkerRecord, WorkerState

# Seconds without a report after which a worker is shown as one that stands still: two of its heartbeats.
_STILL_AFTER = 2 * REPORT_EVERY


@snapshot
class WorkerFigures:
    """The figures of a worker in /status and /metrics, whether it lives or not."""

    worker: int = figure("Its number, 1 to N.", is_label=True)
    state: WorkerState = figure(
        "Its state.",
        "pinstream_worker_up",
        status_note="`waiting` for the first one to join, `starting`, `running`, `pausing` until it is started "
        "again, `gone`.",
        metric_note="1: it runs, and is a member of the group.",
        number=lambda state: state is WorkerState.RUNNING,
    )
    pid: int | None = figure("Its process.")
    restarts: int = figure("Times the worker was started again.", "pinstream_worker_restarts_total")
    heard: float | None = figure(
        "Since its last report, or else since its start.",
        path="reported_seconds_ago",
    )
    silent: bool = figure(
        "Whether it has not reported for a second: it stands still, or its machine is overloaded.",
        "pinstream_worker_silent",
        metric_note="1: it has not.",
    )
    partitions: int = figure(
        "Partitions that it reads.",
        status_note="Without those that another worker has by now.",
    )
    read: int | None = figure("Records read by its process.", status_note="`ledger.read`.")
    open: int | None = figure("Records open in its process.", status_note="`ledger.open`.")
    unhealthy: str | None
    """Why its own health check fails; None: it is healthy."""


def figures(
    record: WorkerRecord, process: WorkerProcess | None, now: float, partitions: int
) -> WorkerFigures:
    """Return the figures of a worker: of its process, if it has one, and of its latest report. `now`: monotonic."""
    said = None if process is None else process.said
    statistics = None if said is None else said.statistics
    return WorkerFigures(
        worker=record.number,
        state=record.state,
        pid=None if process is None else process.pid,
        restarts=record.restarts,
        heard=None if process is None else now - process.heard_at,
        silent=process is not None and is_silent(process, now),
        partitions=partitions,
        read=None if statistics is None else statistics.totals.read,
        open=None if statistics is None else statistics.totals.open,
        unhealthy=None if said is None else said.unhealthy,
    )


def is_silent(process: WorkerProcess, now: float) -> bool:
    """Return whether a worker that has reported stands still."""
    return process.said is not None and now - process.heard_at >= _STILL_AFTER


# Seconds without a report, normally sent twice a second, after which a worker counts as hanging.
SILENT_AFTER = 30.0


def why_workers_unhealthy(workers: Sequence[WorkerFigures], silent_after: float = SILENT_AFTER) -> str | None:
    """Return why the first unhealthy live worker is unhealthy; None: all are healthy."""
    for one in workers:
        problem = one.unhealthy
        # A new worker has as long for its first report.
        if one.heard is not None and one.heard >= silent_after:
            problem = f"it has reported nothing for {one.heard:.0f} s"
        # A dead worker does not count: it is started again, or the supervisor ends.
        if one.state in ALIVE and problem is not None:
            return f"worker {one.worker}: {problem}"
    return None
