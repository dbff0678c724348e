"""What most tests are about: a topic, the group that reads it, and the processes and commands of one deployment.

    shop = new_shop(PINSTREAM_BATCH_EVENTS="20")
    shop.write_orders(100)
    with shop.run() as service:
        service.until_settled(100)
    assert shop.committed == 100

A `Service` ends in order when its block does, unless the test ends it otherwise.
"""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any

from confluent_kafka import Message

from consumer.demo.generator import GeneratedEvent
from consumer.engine.model import CommerceEvent
from tests.end_to_end.api import Api
from tests.end_to_end.processes import WITHIN, Process, command, run_environment
from tests.end_to_end.records import (
    PARTITIONS,
    commerce_event,
    committed_offsets,
    dead_letters,
    deliverable,
    generated,
    new_group,
    new_topic,
    value_of,
    write_events,
    write_generated,
    write_registered,
)
from tests.support.kafka.harness import Kafka


class Service(Process):
    """``pinstream run``; at the end of its block it is stopped, and ends with 0."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None and not self.ended:
                assert self.stop()[0] == 0, self.stderr[-3000:]
        finally:
            super().__exit__(kind, error, trace)


class Shop:
    """See the module. `env` is what its processes see; a test may change it."""

    def __init__(
        self, kafka: Kafka, api: Api, folder: Path, *, partitions: int = PARTITIONS, **settings: str
    ) -> None:
        self.kafka, self.api, self.folder, self.partitions = kafka, api, folder, partitions
        self.topic, self.group = new_topic(kafka, partitions), new_group()
        self.env = run_environment(folder, kafka, self.topic, self.group, api.url, **settings)
        self.events: list[GeneratedEvent] = []
        """What `generate` has written."""

    # What is on the topic.

    def write(self, *events: CommerceEvent) -> None:
        """Write events."""
        write_events(self.kafka, self.topic, events)

    def write_orders(self, count: int, prefix: str = "order", **members: Any) -> dict[str, int]:
        """Write so many purchases; return what the API must have accepted of them: each id once."""
        ids = [f"{prefix}-{number}" for number in range(count)]
        self.write(*(commerce_event(one, **members) for one in ids))
        return dict.fromkeys(ids, 1)

    def write_registered(self, schema_id: int, *event_ids: str, schema: Any = None) -> None:
        """Write purchases in Confluent's wire format with this schema id."""
        write_registered(self.kafka, self.topic, schema_id, map(commerce_event, event_ids), schema)

    def generate(self, count: int, *, seed: int = 1, **shares: float) -> Any:
        """Write so many events of the made-up shop; return the generator, which has counted them."""
        generator, events = generated(count, seed=seed, **shares)
        write_generated(self.kafka, self.topic, events)
        self.events += events
        return generator

    @property
    def deliverable(self) -> set[str]:
        """The ids of what was generated that the API must accept."""
        return deliverable(self.events)

    @property
    def broken(self) -> set[bytes]:
        """The values of what was generated that must become dead letters."""
        return {value_of(one) for one in self.events if one.defect}

    # Its processes.

    def run(self, *more: str, **settings: str) -> Service:
        """A service; `settings` are its own."""
        return Service(self.folder, "run", *more, env={**self.env, **settings})

    def serve(self, records: int, **settings: str) -> dict[str, int]:
        """Run a service until it has read and settled `records`; return its ledger."""
        with self.run(**settings) as service:
            return service.until_settled(records)

    def finish(self, records: int | None = None, **settings: str) -> Service:
        """Run a service until everything (or so many records) is committed; return it."""
        goal = len(self.events) if records is None else records
        with self.run(**settings) as service:
            service.until(lambda: self.committed == goal, "the rest")
        return service

    def command(self, *arguments: str, code: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
        """Run a command to its end; its exit code must be `code`."""
        done = command(*arguments, env={**self.env, **settings}, timeout=2 * WITHIN)
        assert done.returncode == code, done.stdout + done.stderr
        return done

    def replay(self, *more: str, code: int = 0, **settings: str) -> subprocess.CompletedProcess[str]:
        """Replay the whole topic."""
        whole = ("--topic", self.topic, "--from", "beginning", "--to", "end")
        return self.command("replay", *whole, *more, code=code, **settings)

    # What became of it.

    @property
    def committed(self) -> int:
        """How many records are committed."""
        return sum(committed_offsets(self.kafka, self.group, self.topic, self.partitions))

    @property
    def letters(self) -> list[tuple[Message, dict[str, str]]]:
        """The dead letters, each with its ``pinstream.`` headers."""
        return dead_letters(self.kafka, self.topic)

    @property
    def reasons(self) -> list[tuple[int, str, str]]:
        """Offset, stage and code of each dead letter."""
        return sorted((int(one["offset"]), one["stage"], one["code"]) for _, one in self.letters)

    def check_sent_once(self) -> None:
        """All that was generated and can be delivered was accepted, once."""
        accepted = self.api.accepted()
        assert set(accepted) == self.deliverable
        assert set(accepted.values()) == {1}


NewShop = Callable[..., Shop]
"""The fixture ``new_shop(partitions=1, PINSTREAM_LINGER="1s")``."""


def once(events: Iterable[CommerceEvent]) -> dict[str, int]:
    """What the API must have accepted of these: each id once."""
    return dict.fromkeys((str(event["event_id"]) for event in events), 1)
