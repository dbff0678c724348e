"""Runs one consumer over a topic in a process of its own, and measures what it costs.

Measured is the process's user and system time between two moments: when the sink has seen the warm-up events, and
when it has seen all. So neither start-up nor imports count, and everything else does: fetch, decode, convert, send,
dedup, commit, and all threads of librdkafka.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from benchmarks.sink import Sink

SCHEMA = Path(__file__).resolve().parent.parent / "schemas" / "commerce_event.avsc"
_TIMEOUT = 300.0


@dataclass(frozen=True)
class Measured:
    """One run: microseconds of CPU an event, events a second, and the most resident memory, in MiB."""

    cpu_us: float
    events_per_second: float
    peak_mib: float


def run_plain(bootstrap: str, topic: str, warm_up: int, events: int) -> Measured:
    """The plain consumer."""
    with Sink() as sink:
        command = [sys.executable, "-m", "benchmarks.plain", bootstrap, topic, sink.url, str(SCHEMA)]
        return _measure(command, {}, sink, warm_up, events)


def run_pinstream(bootstrap: str, topic: str, warm_up: int, events: int) -> Measured:
    """`pinstream run`, as anyone would start it: durable key store, page, metrics and all."""
    with Sink() as sink, tempfile.TemporaryDirectory() as state:
        settings = {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "KAFKA_TOPICS": topic,
            "KAFKA_GROUP_ID": f"bench-{os.getpid()}-{time.monotonic_ns()}",
            "PINTEREST_AD_ACCOUNT_ID": "1",
            "PINTEREST_ACCESS_TOKEN": "benchmark",
            "PINTEREST_API_URL": sink.url,
            "PINSTREAM_CALLS_PER_MINUTE": "1000000",
            "PINSTREAM_STATE_DIR": state,
            "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",
            "PINSTREAM_LOG_LEVEL": "warning",
        }
        return _measure([sys.executable, "-m", "consumer", "--debug", "run"], settings, sink, warm_up, events)


def _measure(
    command: list[str], settings: Mapping[str, str], sink: Sink, warm_up: int, events: int
) -> Measured:
    process = subprocess.Popen(command, env={**os.environ, **settings}, stdout=subprocess.DEVNULL)
    try:
        watched = psutil.Process(process.pid)
        _wait(process, sink, warm_up)
        begun, cpu_before, seen = time.monotonic(), _cpu(watched), sink.count
        peak = _wait(process, sink, warm_up + events, watched)
        elapsed, cpu = time.monotonic() - begun, _cpu(watched) - cpu_before
        counted = sink.count - seen
        return Measured(cpu / counted * 1e6, counted / elapsed, peak / 2**20)
    finally:
        process.terminate()
        try:
            process.wait(40)
        except subprocess.TimeoutExpired:
            process.kill()


def _cpu(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _wait(
    process: subprocess.Popen[bytes], sink: Sink, count: int, watched: psutil.Process | None = None
) -> int:
    """Until the sink has seen `count` events; gives the most resident memory seen meanwhile."""
    deadline, peak = time.monotonic() + _TIMEOUT, 0
    while sink.count < count:
        if process.poll() is not None:
            raise RuntimeError(f"the consumer ended with exit code {process.returncode}")
        if time.monotonic() > deadline:
            raise RuntimeError(f"only {sink.count} of {count} events came within {_TIMEOUT:.0f} s")
        if watched is not None:
            peak = max(peak, watched.memory_info().rss)
        time.sleep(0.01)
    return peak
