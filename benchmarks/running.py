"""Runs one system in a process of its own, and watches what it takes: the only place where anything is measured.

CPU is the user and system time of the process and of all it started (all threads of librdkafka included) between two
moments after its first event has come. So neither start-up nor imports count, and everything else does: fetch, decode,
convert, send, dedup, commit, and what goes on where no event comes.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil
from confluent_kafka import ConsumerGroupState
from confluent_kafka.admin import AdminClient

from benchmarks.load import QUIET, Content, LiveProducer, create_topic
from benchmarks.sink import Sink
from benchmarks.systems import ROOT, Command, Job, System

RUN_SECONDS = 300.0
"""The longest that one run may take until its last event."""
_STOP_SECONDS = 40.0
_FIRST_RATE = 20.0
"""Events a second until one has arrived."""
_SETTLE_SECONDS = 1.5
"""What follows another rate before anything is measured: some fetches, calls and commits."""
_KEPT_UP = 0.7
"""The share of a rate that has to arrive while it is measured: on a busy machine what is on its way varies."""
_JOIN_SECONDS = 90.0
_ASK_SECONDS = 10.0
_POLL_EVERY = 0.01
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
    """The share of a core that the sink took in that time: near 1 the sink would have been the bottleneck."""


@dataclass(frozen=True)
class Paced:
    """Some seconds at a steady rate, which may be none."""

    rate: int
    cpu_ms: float
    """Milliseconds of CPU a second, at the rate exactly: that of an event that arrived, times the rate."""
    server_cpu_ms: float | None
    """The same of the server that it needs beside it, if it needs one."""
    peak_mib: float
    p50_ms: float | None
    """From the timestamp of an event's record to its receipt by the sink; None without events."""
    p99_ms: float | None


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
        self._checked_at = 0.0
        self.peak = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        family = self._find_children()
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
            time.sleep(_POLL_EVERY)

    def wait(self, seconds: float) -> None:
        """Let it work for so long; raises `RunFailed` if the process ends before that."""
        until = time.monotonic() + seconds
        self.wait_for(lambda: time.monotonic() >= until, "working")

    def wait_for_members(self, bootstrap: str, group: str, count: int) -> None:
        """Wait until `count` members of its group have partitions."""
        admin = AdminClient({**QUIET, "bootstrap.servers": bootstrap})

        def have_joined() -> bool:
            found = admin.describe_consumer_groups([group])[group].result(_ASK_SECONDS)
            parts = [len(one.assignment.topic_partitions) for one in found.members]
            return found.state is ConsumerGroupState.STABLE and len(parts) == count and all(parts)

        self.wait_for(have_joined, "waiting for all to join", _JOIN_SECONDS)

    def wait_for_events(self, count: int) -> None:
        """Wait until the sink has seen `count` events."""
        self.wait_for(lambda: self._sink.count >= count, f"waiting for {count} events")

    def cpu(self) -> float:
        """Seconds of CPU that its processes have taken."""
        return sum(_cpu(one) for one in self._find_children())

    def memory(self) -> int:
        """Resident bytes of all its processes."""
        if time.monotonic() - self._checked_at > _CHILDREN_EVERY:
            self._find_children()
        return sum(_resident(one) for one in self._family)

    def private_memory(self) -> int:
        """Resident bytes less those of mapped files: what its processes have allocated."""
        found = [one.memory_info() for one in self._family]
        return sum(one.rss - one.shared for one in found)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """A context in which none of its processes runs; keep it shorter than the group's session time-out."""
        family = list(self._find_children())
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

    def _find_children(self) -> list[psutil.Process]:
        self._checked_at = time.monotonic()
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
    """`system` over a topic that holds more than `warm_up` and `events` together, so that it is
    busy when it has to stop. Raises `RunFailed`.

    `prepare` is called after `warm_up` events, with the group; as many are let pass again before anything is measured.
    """
    with Sink() as sink, tempfile.TemporaryDirectory() as folder, system.server() as server:
        address = server.url if server else ""
        job = Job(bootstrap, topic, unique_group(system), sink.url, Path(folder), address)
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


def run_paced(
    system: System, bootstrap: str, content: Content, rates: Sequence[int], seconds: float
) -> Iterator[Paced]:
    """`system` on a new topic to which events are produced at one rate after the other; one process for all of them.

    Raises `RunFailed`, also if it does not keep up."""
    topic = f"paced-{system.key}-{time.monotonic_ns()}"
    create_topic(bootstrap, topic, content.partitions)
    with (
        Sink(timed=True) as sink,
        tempfile.TemporaryDirectory() as folder,
        system.server() as server,
        LiveProducer(bootstrap, topic, content) as producer,
    ):
        group, address = unique_group(system), server.url if server else ""
        job = Job(bootstrap, topic, group, sink.url, Path(folder), address, quota=True)
        with Running(system.command(job), sink) as running:
            producer.produce(_FIRST_RATE)
            running.wait_for_events(1)
            if system.members > 1:
                running.wait_for_members(bootstrap, group, system.members)
            for rate in rates:
                producer.produce(rate)
                running.wait(_SETTLE_SECONDS)
                yield _paced(running, sink, psutil.Process(server.pid) if server else None, rate, seconds)


def _paced(running: Running, sink: Sink, server: psutil.Process | None, rate: int, seconds: float) -> Paced:
    running.peak = 0
    begun, seen, cpu_before = time.monotonic(), sink.count, running.cpu()
    server_before = _cpu(server) if server else 0.0
    running.wait(seconds)
    cpu = running.cpu() - cpu_before
    server_cpu = _cpu(server) - server_before if server else 0.0
    elapsed, ages = time.monotonic() - begun, sorted(sink.ages(seen))
    if len(ages) < rate * elapsed * _KEPT_UP:
        raise RunFailed(f"only {len(ages) / elapsed:,.0f} of {rate:,} events a second arrived")
    by_second = rate / len(ages) if rate else 1 / elapsed
    return Paced(
        rate,
        cpu * by_second * 1000,
        server_cpu * by_second * 1000 if server else None,
        running.peak / 2**20,
        ages[len(ages) // 2] * 1000 if rate else None,
        ages[len(ages) * 99 // 100] * 1000 if rate else None,
    )


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
