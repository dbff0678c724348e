"""Bytes of memory that an open event takes in pinstream: fetched, and not yet settled.

The sink holds every answer back, so all that is fetched stays open until the budget is full: some of it in flight as
bodies, the rest queued. Twice, with a small budget and with a large one: the difference of the private memory, by
event, is what an open event takes, without what the process takes anyway. That is measured by itself, in a process that
has joined its group and never had an event.
"""

from __future__ import annotations

import json
import socket
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load import create_topic
from benchmarks.running import Running, unique_group
from benchmarks.sink import Sink
from benchmarks.systems import Job, Pinstream

_SMALL, _LARGE = 5_000, 45_000
_SETTLE_SECONDS = 1.5
_IDLE_SECONDS = 10.0
_FULL = 0.95


@dataclass(frozen=True)
class OpenMemory:
    """Bytes for each open event, and of a process with none."""

    by_event: float
    base_mib: float


def measure_open_memory(bootstrap: str, topic: str, on_topic: int) -> OpenMemory:
    """`topic` holds `on_topic` events. Raises `RunFailed`."""
    large = min(_LARGE, int(on_topic * 0.9))
    small = min(_SMALL, large // 4)
    (few, little), (many, much) = (_held(bootstrap, topic, budget) for budget in (small, large))
    by_event = (much - little) / (many - few)
    return OpenMemory(by_event, _idle(bootstrap, f"{topic}-none") / 2**20)


def _idle(bootstrap: str, topic: str) -> int:
    """The bytes of private memory on a topic without events, which is made."""
    create_topic(bootstrap, topic, 4)
    system = Pinstream()
    with Sink() as sink, tempfile.TemporaryDirectory() as folder:
        job = Job(bootstrap, topic, unique_group(system), sink.url, Path(folder))
        with Running(system.command(job), sink) as running:
            running.wait_for_members(bootstrap, job.group, 1)
            running.wait(_IDLE_SECONDS)
            return running.private_memory()


def _held(bootstrap: str, topic: str, budget: int) -> tuple[int, int]:
    """The open events, and the bytes of private memory, when the budget is full."""
    port = _free_port()
    system = Pinstream(
        settings={
            "PINSTREAM_MAX_OPEN_EVENTS": str(budget),
            "PINSTREAM_MAX_OPEN_BYTES": "2GiB",
            "PINSTREAM_REQUEST_TIMEOUT": "10m",
            "PINSTREAM_HTTP_ADDRESS": f"127.0.0.1:{port}",
        }
    )
    with Sink(holding=True) as sink, tempfile.TemporaryDirectory() as folder:
        job = Job(bootstrap, topic, unique_group(system), sink.url, Path(folder))
        with Running(system.command(job), sink) as running:
            running.wait_for(lambda: _open_events(port) >= budget * _FULL, f"holding {budget} events", 120)
            time.sleep(_SETTLE_SECONDS)
            return _open_events(port), running.private_memory()


def _open_events(port: int) -> int:
    """How many events the process says are open; 0 before it answers."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/status", timeout=5) as answer:
            return int(json.load(answer)["ledger"]["open"])
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return 0


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
