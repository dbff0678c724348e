"""What the supervisor shows beside the merged figures: its workers, in /status, on /metrics and to health."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from consumer.engine.figures import Figure
from consumer.engine.statistics import Statistics
from consumer.web.metrics import collect
from consumer.web.status import document_of
from consumer.workers.supervision import ALIVE, State, Worker


class Seen(NamedTuple):
    """A worker, as it is now."""

    books: Worker
    pid: int | None
    """None: it does not live."""
    heard: float | None
    """Seconds since its last report, or else since its start; None: it does not live."""
    sickness: str | None
    """What its own health says."""
    statistics: Statistics | None

    @property
    def alive(self) -> bool:
        """Whether there is a process."""
        return self.books.state in ALIVE


class WorkerFigures(NamedTuple):
    """What /status and /metrics have of a worker, whether it lives or not."""

    worker: Annotated[int, Figure("worker", "Its number, 1 to N.", is_label=True)]
    state: Annotated[
        State,
        Figure(
            "state",
            "The state of the worker.",
            "pinstream_worker_up",
            also="`waiting` for the first one to join, `starting`, `running`, `pausing` until it is started again, "
            "`gone`.",
            helps="1: it runs, and is a member of the group.",
            number=lambda state: state is State.RUNNING,
        ),
    ]
    pid: Annotated[int | None, Figure("pid", "Its process.", also="null: there is none.")]
    restarts: Annotated[
        int, Figure("restarts", "Times the worker was started again.", "pinstream_worker_restarts_total")
    ]
    heard: Annotated[
        float | None,
        Figure(
            "reported_seconds_ago",
            "Since its last report, or else since its start.",
            also="null: there is no process.",
        ),
    ]
    partitions: Annotated[int, Figure("partitions", "Partitions that it reads.")]
    read: Annotated[
        int | None,
        Figure("read", "Records read by its process.", also="`ledger.read`. null: it has not reported yet."),
    ]
    open: Annotated[int | None, Figure("open", "Records open in its process.", also="`ledger.open`.")]


def figures(one: Seen) -> WorkerFigures:
    """Of a worker as it is now."""
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


def rows(workers: Iterable[Seen]) -> list[dict[str, Any]]:
    """What /status has of them."""
    return [document_of(figures(one)) for one in workers]


SILENT_AFTER = 30.0
"""Seconds without a report, of which there are two a second, after which a worker stands still."""


def sickness(workers: Sequence[Seen], silent_after: float = SILENT_AFTER) -> str | None:
    """What ails any live worker. One that starts has as long to say its first word as one that has gone silent.

    One that is dead is no sickness: it is started again, or else all ends.
    """
    for one in workers:
        trouble = _sickness(one, silent_after) if one.alive else None
        if trouble is not None:
            return f"worker {one.books.number}: {trouble}"
    return None


def _sickness(one: Seen, silent_after: float) -> str | None:
    if one.heard is not None and one.heard >= silent_after:
        return f"it has reported nothing for {one.heard:.0f} s"
    return one.sickness


class WorkersCollector(Collector):
    """The supervisor's own metrics."""

    def __init__(self, workers: Callable[[], Sequence[Seen]]) -> None:
        self._workers = workers

    def collect(self) -> Iterable[Metric]:
        """One series for each worker, whether it lives or not."""
        return collect(WorkerFigures, map(figures, self._workers()))


class Keys:
    """What /status has of the key store that all share: its size, as whoever sees most of it, and what each evicted.

    While nobody lives it is as it was last seen.
    """

    def __init__(self) -> None:
        self._sizes = dict.fromkeys(("keys", "bytes", "buckets"), 0)
        self._evicted = 0
        """By those that are gone."""

    def gone(self, part: Mapping[str, Any]) -> None:
        """This is what a worker that is gone had of it."""
        self._evicted += part["evicted_early"]

    def of_all(self, parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """These are what the live ones have of it."""
        if parts:
            self._sizes = {name: max(part[name] for part in parts) for name in self._sizes}
        return {**self._sizes, "evicted_early": self._evicted + sum(part["evicted_early"] for part in parts)}
