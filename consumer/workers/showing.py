"""What the supervisor shows in addition to the merged figures: its workers, in /status, /metrics and health."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from consumer.engine.figures import Figure
from consumer.engine.statistics import Statistics
from consumer.web.metrics import collect
from consumer.web.status import document_of
from consumer.workers.supervision import ALIVE, WorkerRecord, WorkerState


class WorkerView(NamedTuple):
    """The current state of a worker."""

    books: WorkerRecord
    pid: int | None
    """None: there is no process."""
    heard: float | None
    """Seconds since its last report, or since its start if there was none; None: there is no process."""
    unhealthy: str | None
    """Why its own health check fails; None: it is healthy."""
    statistics: Statistics | None

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.books.state in ALIVE


class WorkerFigures(NamedTuple):
    """What /status and /metrics have of a worker, whether it lives or not."""

    worker: Annotated[int, Figure("worker", "Its number, 1 to N.", is_label=True)]
    state: Annotated[
        WorkerState,
        Figure(
            "state",
            "The state of the worker.",
            "pinstream_worker_up",
            status_note="`waiting` for the first one to join, `starting`, `running`, `pausing` until it is started "
            "again, `gone`.",
            metric_note="1: it runs, and is a member of the group.",
            number=lambda state: state is WorkerState.RUNNING,
        ),
    ]
    pid: Annotated[int | None, Figure("pid", "Its process.", status_note="null: there is none.")]
    restarts: Annotated[
        int, Figure("restarts", "Times the worker was started again.", "pinstream_worker_restarts_total")
    ]
    heard: Annotated[
        float | None,
        Figure(
            "reported_seconds_ago",
            "Since its last report, or else since its start.",
            status_note="null: there is no process.",
        ),
    ]
    partitions: Annotated[int, Figure("partitions", "Partitions that it reads.")]
    read: Annotated[
        int | None,
        Figure(
            "read",
            "Records read by its process.",
            status_note="`ledger.read`. null: it has not reported yet.",
        ),
    ]
    open: Annotated[int | None, Figure("open", "Records open in its process.", status_note="`ledger.open`.")]


def figures(one: WorkerView) -> WorkerFigures:
    """Return the figures of a worker."""
    totals = one.statistics.totals if one.statistics is not None else None
    return WorkerFigures(
        worker=one.books.number,
        state=one.books.state,
        pid=one.pid,
        restarts=one.books.restarts,
        heard=one.heard,
        partitions=0 if one.statistics is None else len(one.statistics.partitions),
        read=None if totals is None else totals.read,
        open=None if totals is None else totals.open,
    )


def worker_rows(workers: Iterable[WorkerView]) -> list[dict[str, Any]]:
    """Return the rows of ``workers`` in /status."""
    return [document_of(figures(one)) for one in workers]


SILENT_AFTER = 30.0
"""Seconds without a report, normally sent twice a second, after which a worker counts as hanging."""


def why_workers_unhealthy(workers: Sequence[WorkerView], silent_after: float = SILENT_AFTER) -> str | None:
    """Return why the first unhealthy live worker is unhealthy; None: all are healthy.

    A dead worker does not count: it is started again, or the supervisor ends. A new worker has `silent_after` seconds
    for its first report.
    """
    for one in workers:
        trouble = one.unhealthy
        if one.heard is not None and one.heard >= silent_after:
            trouble = f"it has reported nothing for {one.heard:.0f} s"
        if one.alive and trouble is not None:
            return f"worker {one.books.number}: {trouble}"
    return None


class WorkersCollector(Collector):
    """The metrics of the supervisor itself."""

    def __init__(self, workers: Callable[[], Sequence[WorkerView]]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        """Yield one series per worker, live or dead."""
        return collect(WorkerFigures, map(figures, self._workers()))


class SharedKeyStore:
    """The key store in /status, merged from the workers that share it: the largest size seen, and all evictions.

    While no worker lives, the size is the last one seen.
    """

    def __init__(self) -> None:
        self._sizes = dict.fromkeys(("keys", "bytes", "buckets"), 0)
        self._evicted = 0
        """Keys evicted by workers that are gone."""

    def gone(self, part: Mapping[str, Any]) -> None:
        """Keep the evictions of a worker that is gone; `part` is its last report."""
        self._evicted += part["evicted_early"]

    def of_all(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Merge the reports of the live workers."""
        if parts:
            self._sizes = {name: max(part[name] for part in parts) for name in self._sizes}
        return {**self._sizes, "evicted_early": self._evicted + sum(part["evicted_early"] for part in parts)}
