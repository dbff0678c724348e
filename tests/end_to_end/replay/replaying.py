"""What the tests of `pinstream replay` share: a topic with known records, and one replay of it."""

from __future__ import annotations

import functools
import json
import re
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from confluent_kafka import Message, Producer

from tests.end_to_end.api import Api
from tests.end_to_end.records import ENCODER, commerce_event
from tests.end_to_end.shop import Shop
from tests.support.kafka.harness import WITHIN, Kafka


class Placed(NamedTuple):
    """A record and its place."""

    partition: int
    offset: int
    timestamp: int
    event_id: str


class ReplayShop(Shop):
    """A topic of one partition, unless more are asked for; `placed`: its records."""

    def __init__(self, kafka: Kafka, api: Api, folder: Path, *, partitions: int = 1, **settings: str) -> None:
        super().__init__(kafka, api, folder, partitions=partitions, **settings)
        self.placed: list[Placed] = []

    def place(
        self, events: Iterable[dict[str, Any] | bytes | None], *, timestamps: Iterable[int] | None = None
    ) -> None:
        """Produce events (or raw bytes, or tombstones) to the partitions in turn."""
        producer = Producer({**self.kafka.config, "linger.ms": 5, "log_level": 0})
        times = iter(timestamps or ())
        for number, event in enumerate(events):
            value = ENCODER.encode(event) if isinstance(event, dict) else event
            event_id = event["event_id"] if isinstance(event, dict) else ""
            producer.produce(
                self.topic,
                value,
                partition=number % self.partitions,
                timestamp=next(times, 0),
                on_delivery=functools.partial(_note, self.placed, event_id),
            )
            producer.poll(0)
        assert producer.flush(WITHIN) == 0

    def place_orders(self, count: int, prefix: str = "order") -> None:
        """Produce `count` present purchases."""
        self.place(commerce_event(f"{prefix}-{number}") for number in range(count))

    def line(self, *arguments: str, start: str = "beginning", stop: str = "end") -> tuple[str, ...]:
        """The command line of a replay of the topic."""
        return ("replay", "--topic", self.topic, "--from", start, "--to", stop, "--json", *arguments)

    def replayed(
        self, *arguments: str, start: str = "beginning", stop: str = "end", code: int = 0, **settings: str
    ) -> Replayed:
        """Run one replay to its end; its exit code must be `code`."""
        begun = time.monotonic()
        done = self.command(*self.line(*arguments, start=start, stop=stop), code=code, **settings)
        assert "Traceback" not in done.stderr, done.stderr
        return Replayed(done, time.monotonic() - begun)

    def accepted(self) -> Counter[str]:
        """How often the API accepted each event id."""
        return self.api.accepted()


def _note(written: list[Placed], event_id: str, error: object, message: Message) -> None:
    assert error is None, error
    partition, offset = message.partition(), message.offset()
    assert partition is not None
    assert offset is not None
    written.append(Placed(partition, offset, message.timestamp()[1], event_id))


NewReplayShop = Callable[..., ReplayShop]


class Replayed:
    """A replay that has ended."""

    def __init__(self, done: subprocess.CompletedProcess[str], seconds: float) -> None:
        self.stderr = done.stderr
        self.seconds = seconds
        lines = done.stdout.strip().splitlines()
        self.document: dict[str, Any] = json.loads(lines[-1]) if lines else {}

    @property
    def ledger(self) -> dict[str, int]:
        """The six figures, which must add up."""
        ledger: dict[str, int] = self.document["ledger"]
        settled = sum(count for name, count in ledger.items() if name not in ("read", "open"))
        assert ledger["read"] == settled + ledger["open"]
        return ledger

    def figures(self) -> tuple[int, int, int, int]:
        """Delivered, duplicate, filtered, dead-lettered."""
        ledger = self.ledger
        return ledger["delivered"], ledger["duplicate"], ledger["filtered"], ledger["dead_lettered"]

    @property
    def warnings(self) -> list[str]:
        """Its warnings, a line each."""
        return re.findall(r"^pinstream: warning: (.*)$", self.stderr, re.MULTILINE)

    @property
    def error(self) -> str:
        """The last line of stderr, which must be the only error."""
        last = self.stderr.strip().splitlines()[-1]
        assert last.startswith("pinstream: "), self.stderr
        return last.removeprefix("pinstream: ")
