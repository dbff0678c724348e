"""Runs one system in a process of its own, and watches what it takes: the only place where anything is measured.

CPU is the user and system time of the process and of all it started (all threads of librdkafka included) between two
moments that the sink's count tells. So neither start-up nor imports count, and everything else does: fetch, decode,
convert, send, dedup, commit.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from benchmarks.load import Content, LiveProducer, create_topic
from benchmarks.sink import Sink
from benchmarks.systems import ROOT, Command, Job, System

RUN_SECONDS = 300.0
"""The longest that one run may take until its last event."""
_STOP_SECONDS = 40.0
_LATE_SECONDS = 10.0
"""Seconds after the last event was produced within which all must be acknowledged."""
_ALL = 0.99
"""The share of the intended events that a steady producer must have produced: the last tick is lost."""
_LOOK = 0.01
_SCHEDULED_TIME = 2
"""CPUCLOCK_SCHED: which of a process's clocks (clock_getcpuclockid(3) makes their ids so)."""
_CHILDREN_EVERY = 1.0
"""Seconds between two searches for new children: each reads all of /proc."""


class RunFailed(Exception):
    """A run did not finish; the text says how far it came, with the system's last words."""


@dataclass(frozen=True)
class Measured:
    """One run over a full topic."""

    cpu_us: float
    """Microseconds of CPU an event."""
    events_per_second: float
    peak_mib: float
    """The highest resident memory of all its processes together."""
    first_delivery: float
    """Seconds from the start of the process to the first acknowledged event."""
    drain: float | None
    """Seconds from SIGTERM to the end, under load; None: it does not drain, the signal kills it."""
    disk_bytes_per_event: float
    """Bytes left in its state folder for each delivered event."""
    sink_busy: float
    """The share of a core that the sink took meanwhile: near 1 the sink would have been the bottleneck."""


@dataclass(frozen=True)
class Ages:
    """One run at a steady rate: seconds from an event's production to its acknowledgement, and the cost of an event."""

    rate: float
    p50: float
    p99: float
    cpu_us: float
    """Microseconds of CPU an event."""


class Running:
    """A system that works on a job; a context manager: the process has ended when it exits."""

    def __init__(self, command: Command, sink: Sink) -> None:
        self._sink = sink
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - __exit__ closes it
        self.begun = time.monotonic()
        self._process = subprocess.Popen(
            command.arguments,
            env=command.environment,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
        )
        self._family = [psutil.Process(self._process.pid)]
        self._looked = 0.0
        self.peak = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = self._look_for_children()
        if self._process.poll() is None:
            self._process.kill()
        for one in family[1:]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        self._process.wait(_STOP_SECONDS)
        self._log.close()

    def wait_for(self, condition: Callable[[], bool], what: str, seconds: float = RUN_SECONDS) -> None:
        """Wait until `condition` holds; raises `RunFailed` if the process ends or the time is up before that."""
        deadline = time.monotonic() + seconds
        while not condition():
            if self._process.poll() is not None:
                raise RunFailed(
                    f"{what}: it ended with exit code {self._process.returncode}: {self._last_words()}"
                )
            if time.monotonic() > deadline:
                raise RunFailed(f"{what}: not within {seconds:.0f} s; {self._sink.count} events came")
            self.peak = max(self.peak, self.memory())
            time.sleep(_LOOK)

    def wait_for_events(self, count: int) -> None:
        """Wait until the sink has seen `count` events."""
        self.wait_for(lambda: self._sink.count >= count, f"waiting for {count} events")

    def cpu(self) -> float:
        """Seconds of CPU that its processes have taken."""
        return sum(_cpu(one) for one in self._look_for_children())

    def memory(self) -> int:
        """Resident bytes of all its processes."""
        if time.monotonic() - self._looked > _CHILDREN_EVERY:
            self._look_for_children()
        return sum(_resident(one) for one in self._family)

    def private_memory(self) -> int:
        """Resident bytes that it does not share with other processes."""
        return sum(int(one.memory_full_info().uss) for one in self._family)

    @contextlib.contextmanager
    def standing_still(self) -> Iterator[None]:
        """A context in which none of its processes runs; keep it shorter than the group's session time-out."""
        family = list(self._look_for_children())
        for one in family:
            one.suspend()
        try:
            yield
        finally:
            for one in family:
                one.resume()

    def terminate(self) -> float | None:
        """Send SIGTERM; return the seconds to the end, or None if the signal killed it. Raises `RunFailed` if
        it does not end."""
        begun = time.monotonic()
        self._process.terminate()
        try:
            code = self._process.wait(_STOP_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise RunFailed(f"it did not end within {_STOP_SECONDS:.0f} s of SIGTERM") from error
        return None if code < 0 else time.monotonic() - begun

    def _look_for_children(self) -> list[psutil.Process]:
        self._looked = time.monotonic()
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family[1:] = self._family[0].children(recursive=True)
        return self._family

    def _last_words(self) -> str:
        self._log.seek(0)
        return self._log.read().decode(errors="replace").strip()[-1000:]


def run_full(
    system: System,
    bootstrap: str,
    topic: str,
    warm_up: int,
    events: int,
    prepare: Callable[[Running, str], None] | None = None,
) -> Measured:
    """`system` over a topic that holds more than `warm_up` and `events` together, so that it is busy when it is told
    to stop. Raises `RunFailed`.

    `prepare` is called after `warm_up` events, with the group; as many are let pass again before anything is measured.
    """
    with Sink() as sink, tempfile.TemporaryDirectory() as folder:
        job = Job(bootstrap, topic, unique_group(system), sink.url, Path(folder))
        with Running(system.command(job), sink) as running:
            running.wait_for_events(1)
            first = time.monotonic() - running.begun
            running.wait_for_events(warm_up)
            if prepare is not None:
                prepare(running, job.group)
                running.wait_for_events(2 * warm_up)
            begun, cpu_before, sink_before, seen = time.monotonic(), running.cpu(), sink.cpu, sink.count
            running.wait_for_events(seen + events)
            elapsed, cpu, counted = time.monotonic() - begun, running.cpu() - cpu_before, sink.count - seen
            busy = (sink.cpu - sink_before) / elapsed
            drain = running.terminate()
        disk = disk_bytes(Path(folder)) / sink.count
    return Measured(cpu / counted * 1e6, counted / elapsed, running.peak / 2**20, first, drain, disk, busy)


def run_steady(system: System, bootstrap: str, content: Content, rate: float, seconds: float) -> Ages:
    """`system` on a new topic to which `rate` events a second are produced; the first third does not count.

    Raises `RunFailed`, also if it does not keep up."""
    topic = f"steady-{system.key}-{time.monotonic_ns()}"
    create_topic(bootstrap, topic, content.partitions)
    with Sink(timed=True) as sink, tempfile.TemporaryDirectory() as folder:
        job = Job(bootstrap, topic, unique_group(system), sink.url, Path(folder))
        with Running(system.command(job), sink) as running:
            with LiveProducer(bootstrap, topic, content, rate / 20, RUN_SECONDS):
                running.wait_for_events(1)
            cpu_before, seen = running.cpu(), sink.count
            with LiveProducer(bootstrap, topic, content, rate, seconds) as producer:
                running.wait_for(lambda: producer.done, "producing", seconds + 60)
            # All of them count: the last ones to come are the ones that waited longest.
            produced = rate * seconds * _ALL
            running.wait_for(
                lambda: sink.count - seen >= produced,
                f"keeping up with {rate:.0f} events a second",
                _LATE_SECONDS,
            )
            cpu_us = (running.cpu() - cpu_before) / (sink.count - seen) * 1e6
            ages = sink.ages
            running.terminate()
    counted = sorted(ages[len(ages) // 3 :])
    return Ages(rate, counted[len(counted) // 2], counted[len(counted) * 99 // 100], cpu_us)


def unique_group(system: System) -> str:
    """A consumer group that has read nothing yet."""
    return f"bench-{system.key}-{os.getpid()}-{time.monotonic_ns()}"


def disk_bytes(folder: Path) -> int:
    """Bytes that the files below take on the disk (a sparse file is as large as what was written of it)."""
    return sum(path.stat().st_blocks * 512 for path in folder.rglob("*") if path.is_file())


def _cpu(process: psutil.Process) -> float:
    """Seconds of CPU that all threads of a process have taken, also threads that have ended."""
    try:
        # Linux gives each process a clock of its own, in nanoseconds. What psutil reads counts in hundredths of a
        # second, which is a tenth of all that the floor takes for 100,000 events.
        if sys.platform == "linux":
            return time.clock_gettime((~process.pid << 3) | _SCHEDULED_TIME)
        times = process.cpu_times()
    except (psutil.NoSuchProcess, OSError):
        return 0.0
    return float(times.user + times.system)


def _resident(process: psutil.Process) -> int:
    try:
        return int(process.memory_info().rss)
    except psutil.NoSuchProcess:
        return 0
