"""Runs a soak: topic, sink, process and producer, and takes a sample at intervals until all records are settled."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from confluent_kafka import Consumer, TopicPartition

from benchmarks.soak.process import WatchedProcess
from benchmarks.soak.producer import Backlog, create_topics
from benchmarks.soak.records import PARTITIONS, Records
from benchmarks.soak.sink import MAX_EVENTS_A_CALL, Sink
from benchmarks.soak.verdicts import JITTER, Sums, Verdict, judge
from benchmarks.soak.watch import Sample, check

_LET_GO_EVERY = 5.0
_STALL_SECONDS = 60.0
"""If nothing is settled for this long, the run will not end."""


@dataclass(frozen=True, slots=True)
class Plan:
    """One soak. The window is short, so that the key store is filled and emptied many times."""

    events: int
    seed: int = 1
    window: int = 20
    """Seconds; more than `request_timeout` and the commit interval together."""
    request_timeout: float = 10.0
    ahead: int = 100_000
    """Records by which the producer may be ahead of what is settled."""
    rate: float | None = None
    """Records a second on average, written `ahead` at once; None: as fast as they are read."""
    spell: int = 10_000
    """Records of one kind in a row: every fifth spell is one of heavy ones."""
    every: float = 1.0
    """Seconds between two samples."""
    max_open_events: int = 10_000
    max_open_bytes: int = 24 << 20
    jitter: float = JITTER
    """Bytes by which memory may grow without counting as a leak; see `verdicts`."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Further settings, for experiments."""

    def environment(self, bootstrap: str, topic: str, url: str, state: Path) -> dict[str, str]:
        """The settings of the process under test."""
        return {
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap,
            "KAFKA_TOPICS": topic,
            "KAFKA_GROUP_ID": topic,
            "PINTEREST_AD_ACCOUNT_ID": "1",
            "PINTEREST_ACCESS_TOKEN": "soak",
            "PINTEREST_API_URL": url,
            "PINSTREAM_CALLS_PER_MINUTE": "1000000",
            "PINSTREAM_REQUEST_TIMEOUT": f"{self.request_timeout:g}s",
            "PINSTREAM_LINGER": "200ms",
            "PINSTREAM_DEDUP_WINDOW": f"{self.window}s",
            "PINSTREAM_MAX_OPEN_EVENTS": str(self.max_open_events),
            "PINSTREAM_MAX_OPEN_BYTES": str(self.max_open_bytes),
            "PINSTREAM_STATE_DIR": str(state),
            "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",
            "PINSTREAM_LOG_FORMAT": "json",
            **self.settings,
        }


class Outcome(NamedTuple):
    """The result of a soak. `status` is the last /status document."""

    plan: Plan
    samples: list[Sample]
    sums: Sums
    status: dict[str, Any]
    calls: int

    def verdicts(self) -> list[Verdict]:
        """Every promise, kept or broken."""
        plan = self.plan
        return judge(
            self.samples,
            self.sums,
            max_open_events=plan.max_open_events,
            max_open_bytes=plan.max_open_bytes,
            window=plan.window,
            jitter=plan.jitter,
        )


def soak(plan: Plan, bootstrap: str, topic: str, seen: Callable[[Sample], None] = lambda _: None) -> Outcome:
    """Run it to its end; `seen` gets every sample. Raises `RuntimeError` if it cannot finish."""
    create_topics(bootstrap, topic)
    records = Records(plan.events, plan.seed, plan.spell)
    with tempfile.TemporaryDirectory(prefix="pinstream-soak-") as folder, Sink(plan.events) as sink:
        state = Path(folder) / "state"
        settings = plan.environment(bootstrap, topic, sink.url, state)
        with (
            WatchedProcess(settings, Path(folder) / "log") as process,
            Backlog(bootstrap, topic, records, ahead=plan.ahead, rate=plan.rate) as backlog,
        ):
            samples, status = _watch(plan, process, backlog, state, seen)
            exit_code = process.stop()
        return Outcome(
            plan,
            samples,
            Sums(
                produced=backlog.produced,
                expected=records.tally,
                ledger=status["ledger"],
                accepted=sink.accepted,
                refused=sink.refused,
                never_seen=sink.never_seen(records.deliverable),
                unheard=status["counts"]["answers"].get("timeout", 0) * MAX_EVENTS_A_CALL,
                committed=_committed(bootstrap, topic),
                exit_code=exit_code,
            ),
            status,
            sink.calls,
        )


def _watch(
    plan: Plan, process: WatchedProcess, backlog: Backlog, state: Path, seen: Callable[[Sample], None]
) -> tuple[list[Sample], dict[str, Any]]:
    """Take samples until all is settled; return them and the last /status document."""
    samples: list[Sample] = []
    begun = time.monotonic()
    progress, let_go = begun, begun
    system = psutil.Process(process.pid)
    while True:
        now = time.monotonic()
        status = process.status()
        sample = check(now - begun, system, status, state)
        if not samples or sample.settled > samples[-1].settled:
            progress = now
        samples.append(sample)
        seen(sample)
        backlog.settled(sample.settled)
        if sample.settled == plan.events:
            return samples, status
        if backlog.failure is not None:
            raise RuntimeError("the producer failed") from backlog.failure
        if now - progress > _STALL_SECONDS:
            raise RuntimeError(
                f"nothing settled for {_STALL_SECONDS:g} s; its last words:\n{process.last_words()}"
            )
        if now - let_go > _LET_GO_EVERY:
            let_go = now
            backlog.let_go(
                {one["partition"]: one["committed"] for one in status["partitions"] if one["committed"]}
            )
        time.sleep(max(0.0, now + plan.every - time.monotonic()))


def _committed(bootstrap: str, topic: str) -> int:
    """The sum of the offsets that the group has committed."""
    consumer = Consumer({"bootstrap.servers": bootstrap, "group.id": topic})
    try:
        asked = [TopicPartition(topic, number) for number in range(PARTITIONS)]
        return sum(max(0, one.offset) for one in consumer.committed(asked, timeout=60))
    finally:
        consumer.close()


def unique_topic() -> str:
    """A topic name that is not in use."""
    return f"soak-{os.getpid()}-{time.monotonic_ns()}"
