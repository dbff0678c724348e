"""What the supervisor shows beside the merged figures: its workers, in /status, on /metrics and to health."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from consumer.engine.statistics import Statistics
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


def rows(workers: Iterable[Seen]) -> list[dict[str, Any]]:
    """What /status has of them."""
    return [_row(one) for one in workers]


def _row(one: Seen) -> dict[str, Any]:
    totals = one.statistics.totals if one.statistics is not None else None
    return {
        "worker": one.books.number,
        "state": one.books.state.value,
        "pid": one.pid,
        "restarts": one.books.restarts,
        "reported_seconds_ago": None if one.heard is None else round(one.heard, 3),
        "partitions": 0 if one.statistics is None else len(one.statistics.partitions),
        "read": None if totals is None else totals.read,
        "open": None if totals is None else totals.open,
    }


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
        up = GaugeMetricFamily(
            "pinstream_worker_up", "1: the worker runs, and is a member of the group.", labels=["worker"]
        )
        restarts = CounterMetricFamily(
            "pinstream_worker_restarts", "Times the worker was started again.", labels=["worker"]
        )
        for one in self._workers():
            name = str(one.books.number)
            up.add_metric([name], int(one.books.state is State.RUNNING))
            restarts.add_metric([name], one.books.restarts)
        yield from (up, restarts)


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
