"""How pinstream's cost grows: with the keys it remembers, the partitions, the size of an event, and its workers.

Each point is a run like those of the suite (`running.run_full`) with one thing changed. Points are few and runs are
single, so a figure is good for the shape of a curve, not for its last digit. Only stores with more and more keys are
measured in turns, and medians count: there the figure that matters is a ratio, to the cost of an empty store.

Workers join one after the other, and the group takes some seconds to share the partitions out; before that one of them
does the work of all. So these are measured once each has its part: they find only events to warm up with, and the rest
is put on the topic while all of them stand still.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.load import (
    READ_AHEAD,
    Content,
    add_events,
    delete_topic,
    encoded_checkouts,
    fill_topic,
)
from benchmarks.running import Measured, RunFailed, Running, disk_bytes, run_full
from benchmarks.suite import ReportStep
from benchmarks.systems import Pinstream, Unavailable
from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.files import LIST, decode_list
from consumer.adapters.key_store.folder import Folder, mergeable
from consumer.adapters.key_store.interface import Window
from consumer.engine.reading import KEY_BYTES
from consumer.errors import KeyStoreError

_WINDOW_SECONDS = 48 * 3600
_STORE_BYTES = 16 << 30
_WRITE_KEYS = 65_536
_TYPICAL_BYTES = 395
_LEAST_EVENTS = 2_000


@dataclass(frozen=True)
class GrowthPlan:
    """The points of each curve, and how many events a point is measured over."""

    keys: tuple[int, ...] = (0, 10_000, 1_000_000, 10_000_000, 100_000_000)
    """The others are compared with the first."""
    partitions: tuple[int, ...] = (1, 10, 100, 1_000)
    event_bytes: tuple[int, ...] = (200, 395, 1_000, 4_000, 20_000)
    workers: tuple[int, ...] = (1, 2, 4)
    events: int = 100_000
    warm_up: int = 20_000
    key_events: int = 1_000_000
    """Events of a run on a filled store. In a shorter run a single seal or merge would be most of the difference."""
    rounds: int = 3
    """Rounds in which stores of all sizes take turns."""

    @property
    def steps(self) -> int:
        """How often `measure_growth` reports a step."""
        stores = len(self.keys) * (1 + self.rounds)
        return stores + sum(map(len, (self.partitions, self.event_bytes, self.workers)))


QUICK = GrowthPlan(
    keys=(0, 10_000_000),
    partitions=(1, 100),
    event_bytes=(200, 4_000),
    workers=(1, 2),
    events=30_000,
    warm_up=20_000,
    key_events=500_000,
)


def measure_growth(bootstrap: str, plan: GrowthPlan, report: ReportStep) -> dict[str, list[dict[str, Any]]]:
    """The curves, by what grows; a point that could not be measured has the reason."""
    return {
        "keys": list(_keys(bootstrap, plan, report)),
        "partitions": list(_partitions(bootstrap, plan, report)),
        "event_bytes": list(_event_bytes(bootstrap, plan, report)),
        "workers": list(_workers(bootstrap, plan, report)),
    }


def _keys(bootstrap: str, plan: GrowthPlan, report: ReportStep) -> Iterator[dict[str, Any]]:
    topic = f"growth-{time.monotonic_ns()}"
    fill_topic(bootstrap, topic, Content(plan.warm_up + plan.key_events + 2 * READ_AHEAD))
    with tempfile.TemporaryDirectory(prefix="pinstream-keys-") as scratch:
        points: list[dict[str, Any]] = []
        for keys in plan.keys:
            report(f"filling a store with {keys:,} keys")
            points.append({"at": keys, **_filled(Path(scratch, str(keys)), keys)})
        runs: dict[int, list[Measured]] = {keys: [] for keys in plan.keys}
        for number in range(plan.rounds):
            for point in points:
                report(f"run {number + 1} of {plan.rounds} with {point['at']:,} keys in the store")
                if "not_measured" not in point:
                    try:
                        runs[point["at"]].append(
                            _with_copy(bootstrap, topic, Path(scratch, str(point["at"])), plan)
                        )
                    except (OSError, RunFailed) as error:
                        point["not_measured"] = str(error)
    delete_topic(bootstrap, topic)
    for point in points:
        if "not_measured" not in point:
            point |= _medians(runs[point["at"]])
        if "cpu_us" in point and "cpu_us" in points[0]:
            point["of_first"] = point["cpu_us"] / points[0]["cpu_us"]
        yield point


def _filled(folder: Path, keys: int) -> dict[str, Any]:
    """A store with keys that were delivered evenly over the window until now, as a service that has long been running
    has them: written and merged by the store itself, and at rest, so that a run is not charged with a merge of these.
    """
    window, now = Window.of(_WINDOW_SECONDS), time.time()
    begun = now - _WINDOW_SECONDS * 0.95
    try:
        store = Folder(str(folder), window, _STORE_BYTES)
        for at in range(0, keys, _WRITE_KEYS):
            stamp = window.stamp(begun + (now - begun) * at / keys)
            store.append([(os.urandom(min(_WRITE_KEYS, keys - at) * KEY_BYTES), stamp)])
            store.merge(lambda: True)
        while mergeable(decode_list((folder / LIST).read_bytes()), store.merge_bytes):
            store.merge(lambda: True)
        opened = time.perf_counter()
        asyncio.run(_open_and_close(folder, window))
        opens = time.perf_counter() - opened
    except KeyStoreError as error:
        return {"not_measured": str(error)}
    disk = disk_bytes(folder)
    return {"disk_mib": disk / 2**20, "disk_bytes_per_key": disk / keys if keys else None, "opens": opens}


async def _open_and_close(folder: Path, window: Window) -> None:
    await DiskKeyStore(str(folder), window, _STORE_BYTES).close()


def _with_copy(bootstrap: str, topic: str, filled: Path, plan: GrowthPlan) -> Measured:
    """A run with a copy of a store: the next run must not know this one's events."""
    copy = filled.with_name("copy")
    try:
        # Segments never change, so a second name will do: writing gigabytes would keep the disk busy during the run.
        shutil.copytree(
            filled, copy, copy_function=lambda a, b: (os.link if "segment-" in a else shutil.copy2)(a, b)
        )
        settings = {
            "PINSTREAM_KEY_STORE": f"disk:{copy}",
            "PINSTREAM_KEY_STORE_MAX_BYTES": str(_STORE_BYTES),
        }
        return run_full(Pinstream(settings=settings), bootstrap, topic, plan.warm_up, plan.key_events)
    finally:
        shutil.rmtree(copy, ignore_errors=True)


def _medians(runs: list[Measured]) -> dict[str, Any]:
    by_name = {name: [asdict(run)[name] for run in runs] for name in asdict(runs[0])}
    medians = {
        name: None if None in values else statistics.median(values) for name, values in by_name.items()
    }
    return {**medians, "cpu_us_runs": [round(run.cpu_us, 2) for run in runs]}


def _partitions(bootstrap: str, plan: GrowthPlan, report: ReportStep) -> Iterator[dict[str, Any]]:
    for count in plan.partitions:
        report(f"{count:,} partitions")
        yield {"at": count, **_point(bootstrap, Pinstream(), plan, Content(0, partitions=count))}


def _event_bytes(bootstrap: str, plan: GrowthPlan, report: ReportStep) -> Iterator[dict[str, Any]]:
    for size in plan.event_bytes:
        report(f"events of {size:,} bytes")
        yield {"at": size, **_point(bootstrap, Pinstream(), plan, Content(0, event_bytes=size))}


def _workers(bootstrap: str, plan: GrowthPlan, report: ReportStep) -> Iterator[dict[str, Any]]:
    for workers in plan.workers:
        report(f"{workers} workers")
        yield {"at": workers, **_point(bootstrap, Pinstream(workers=workers), plan, Content(0), joined=True)}


def _point(
    bootstrap: str, system: Pinstream, plan: GrowthPlan, content: Content, *, joined: bool = False
) -> dict[str, Any]:
    """One run on a topic of its own. Runs with larger events have fewer of them, and a smaller budget, so that
    they take about as long as the others. `joined`: measure once all workers have partitions."""
    share = min(1.0, _TYPICAL_BYTES / content.event_bytes)
    budget = max(_LEAST_EVENTS, int(READ_AHEAD * share))
    events = max(2 * _LEAST_EVENTS, int(plan.events * share))
    warm_up = max(_LEAST_EVENTS, int(plan.warm_up * share))
    topic = f"growth-{time.monotonic_ns()}"
    limited = replace(system, settings={**system.settings, "PINSTREAM_MAX_OPEN_EVENTS": str(budget)})
    whole = replace(content, events=warm_up + events + 2 * budget)
    prepare = _Joining(bootstrap, topic, system.workers, whole) if joined else None
    try:
        limited.prepare()
        fill_topic(bootstrap, topic, replace(content, events=warm_up) if joined else whole)
        measured = asdict(run_full(limited, bootstrap, topic, warm_up, events, prepare))
        delete_topic(bootstrap, topic)
    except (RunFailed, Unavailable) as error:
        return {"not_measured": str(error)}
    return measured


class _Joining:
    """Waits until `workers` workers have partitions, then writes the rest of the events onto their topic."""

    def __init__(self, bootstrap: str, topic: str, workers: int, rest: Content) -> None:
        self._bootstrap, self._topic, self._workers = bootstrap, topic, workers
        self._rest = rest = replace(rest, seed=rest.seed + 1)  # else its first events would be duplicates
        encoded_checkouts(rest.events, rest.event_bytes, rest.seed)  # now, and not beside what is measured

    def __call__(self, running: Running, group: str) -> None:
        running.wait_for_members(self._bootstrap, group, self._workers)
        with running.paused():
            add_events(self._bootstrap, self._topic, self._rest)
