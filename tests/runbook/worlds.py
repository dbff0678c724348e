"""The troubles that the sections of docs/runbook.md are for: each sets one up, and says when it is over.

A world is a topic, the service as a process on real Kafka, and the sandbox. `prepare` breaks something, as it breaks
in life, and returns when it shows. Then the section's commands run, in a shell with the deployment's environment; where
the text asks a person for something, `hooks` does it. `check` looks at the outcome: every event was accepted once,
nothing is left to read, and the service is ready.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar

from confluent_kafka import Producer

from consumer.avro.encode import Encoder
from consumer.demo.faults import Chance
from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.faults.clocks import WrongClock
from tests.end_to_end.processes import ACCOUNT, Process, run_environment, wait_for
from tests.end_to_end.records import SCHEMA, commerce_event, committed_offsets, new_group, new_topic, write
from tests.support.kafka.broker import free_ports
from tests.support.kafka.harness import WITHIN, Kafka, create_topic
from tests.support.switches import switched

Hooks = Mapping[str, Callable[[], None]]
_HOUR = 3600.0


def iso(moment: float) -> str:
    """A time in the form of --from."""
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


class World:
    """The trouble of no section: a healthy service with nothing to do. Use as a context manager."""

    settings: ClassVar[Mapping[str, str]] = {}
    partitions: ClassVar[int] = 1

    def __init__(
        self, kafka: Kafka, api: Api, loop: Loop, folder: Path, new_kafka: Callable[[], Kafka]
    ) -> None:
        self.kafka, self.api, self.loop, self.folder, self.new_kafka = kafka, api, loop, folder, new_kafka
        self.topic, self.group = new_topic(kafka, self.partitions), new_group()
        self.desk = folder / "desk"
        """The folder of the operator's shell."""
        self.desk.mkdir(parents=True)
        self.started_at = time.time() - _HOUR
        self.expected: set[str] = set()
        """Ids of the events that the platform must have in the end."""
        self.address = f"127.0.0.1:{free_ports(1)[0]}"
        self.env = {
            **run_environment(folder, kafka, self.topic, self.group, api.url),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PINSTREAM_HTTP_ADDRESS": self.address,
            **self.settings,
        }
        self.stack = contextlib.ExitStack()
        self._services: list[Process] = []

    def __enter__(self) -> World:
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    # What a section's world says for itself.

    def prepare(self) -> None:
        """Cause the trouble, and wait until it shows."""
        self.write(self.events("order", 20))
        self.start()
        self.until_settled(20)

    @property
    def hooks(self) -> Hooks:
        """The actions that the page asks of a person, by the page's words."""
        return {}

    def check(self) -> None:
        """Check more than `check_well` does."""

    # What the page's examples stand for here.

    @property
    def examples(self) -> Mapping[str, str]:
        """The page's example values and the real ones, read when a command runs, because times change."""
        return {
            "http://localhost:8080": f"http://{self.address}",
            "2026-11-23T18:00": iso(self.started_at),
            "2026-11-24T06:00": iso(time.time()),
            "orders": self.topic,
        }

    @property
    def shell_env(self) -> dict[str, str]:
        """The environment of the operator's shell: the deployment's, and the page's address."""
        return {**self.env, "PAGE": f"http://{self.address}"}

    # Tools.

    def events(
        self, prefix: str, count: int, *, count_in: bool = True, **members: Any
    ) -> list[dict[str, Any]]:
        """`count` purchases; `count_in`: the platform must have them in the end."""
        ids = [f"{prefix}-{number}" for number in range(count)]
        self.expected.update(ids if count_in else ())
        return [commerce_event(one, **members) for one in ids]

    def write(
        self, events: Iterable[dict[str, Any] | bytes], schema_id: int | None = None, schema: Any = SCHEMA
    ) -> None:
        """Write events, or raw bytes, to the topic."""
        encoder = Encoder(schema, schema_id)
        write(
            self.kafka,
            self.topic,
            ((None, one if isinstance(one, bytes) else encoder.encode(one)) for one in events),
        )

    def write_mapping(self, name: str, text: str) -> Path:
        """Write a mapping file into the operator's folder."""
        path = self.desk / name
        path.write_text(text)
        return path

    def write_sample(self, event: Mapping[str, Any]) -> None:
        """Write a record as a line of JSON."""
        (self.desk / "sample.ndjson").write_text(json.dumps(event) + "\n")

    def start(self, **settings: str) -> None:
        """Start a service as a new deployment; `settings` hold from now on."""
        self.env.update(settings)
        process = self.stack.enter_context(Process(self.folder, "run", env=self.env))
        self._services.append(process)
        process.until_logged("starting")

    def stop(self) -> None:
        """Send SIGTERM, and wait for the end."""
        for process in self.running:
            assert process.stop()[0] == 0, process.stderr[-2000:]

    def restart(self, **settings: str) -> None:
        """Stop all services and start one."""
        self.stop()
        self.start(**settings)

    @property
    def running(self) -> list[Process]:
        """The services that have not ended."""
        return [one for one in self._services if not one.ended]

    @property
    def service(self) -> Process:
        """The service that serves the page."""
        return self._services[-1]

    @property
    def logged(self) -> set[str]:
        """Every log event of the services so far."""
        return {str(line.get("event")) for one in self._services for line in one.log}

    def until_settled(self, records: int) -> None:
        """Wait until `count` records are settled since the start of the service, and committed."""
        self.service.until_settled(records)

        def committed() -> bool:
            return sum(committed_offsets(self.kafka, self.group, self.topic, self.partitions)) == records

        self.service.until(committed, "the commit")

    def until_lag_is_gone(self) -> None:
        """Wait until nothing is left to read."""

        def gone() -> bool:
            lags = [part["lag"] for one in self.running for part in one.status()["partitions"]]
            return lags == [0] * self.partitions  # None: not known yet

        self.service.until(gone, "the end of the lag")

    def until_status(self, what: Callable[[dict[str, Any]], object], named: str) -> None:
        """Wait until the condition holds for the page's document."""
        self.service.until(lambda: what(self.service.status()), named)

    def check_well(self) -> None:
        """Each event was accepted once; nothing is left to read; the service is ready, and a stop ends it."""
        wait_for(lambda: len(self.api.accepted()) >= len(self.expected), "all events")
        self.until_lag_is_gone()
        assert self.api.accepted() == dict.fromkeys(self.expected, 1)
        for process in self.running:
            # A member that came last may still be joining when others have done all the work.
            process.until(functools.partial(_is_ready, process), "readiness")
            assert process.status()["guard"] is None
            assert process.status()["destination"]["state"] == "open"
            assert process.ledger()["open"] == 0
        self.check()
        self.stop()


def _is_ready(process: Process) -> bool:
    return process.get("/readyz") == (200, "ok\n")


class TokenExpired(World):
    """The token in the file has expired. A new one ends the halt without a restart."""

    def prepare(self) -> None:
        secret = self.folder / "token"
        secret.write_text("pina_yesterdays\n")
        (self.desk / "new-token").write_text(self.env.pop("PINTEREST_ACCESS_TOKEN") + "\n")
        self.env["PINTEREST_ACCESS_TOKEN_FILE"] = str(secret)
        self.write(self.events("order", 60))
        self.start()
        self.until_status(lambda status: status["destination"]["state"] == "halted", "the halt")
        assert not self.api.accepted()

    def check(self) -> None:
        assert len(self.running) == 1
        assert self.service.ledger()["delivered"] == 60
        assert not (self.desk / "new-token").exists()


class Unreachable(World):
    """A firewall answers in the platform's place."""

    settings: ClassVar[Mapping[str, str]] = switched(unreachable_after=6.0, longest_wait=3.0)

    def prepare(self) -> None:
        self.write(self.events("order", 20))
        self.start()
        self.until_settled(20)
        self.api.set_faults(middleman=Chance(share=1.0), middleman_status=403)
        self.write(self.events("later", 60))
        self.service.until(
            lambda: self.service.status()["destination"]["state"] == "unreachable", "the silence"
        )

    @property
    def hooks(self) -> Hooks:
        return {"the way is free again": self.api.set_faults}

    def check(self) -> None:
        assert len(self.running) == 1
        assert self.service.ledger()["dead_lettered"] == 0


class RefusedWorld(World):
    """The mapping lacks an event type: first a few of many events are refused, then most, and the guard stops
    intake."""

    settings: ClassVar[Mapping[str, str]] = {"PINSTREAM_DEAD_LETTER_SAMPLE": "100"}

    def prepare(self) -> None:
        mapping = self.folder / "mapping.toml"
        mapping.write_text('[event_names]\norder_completed = ""\n')
        self.env["PINSTREAM_MAPPING_FILE"] = str(mapping)
        self.write_mapping("corrected.toml", '[event_names]\norder_completed = "checkout"\n')
        self.write_sample(commerce_event("sample"))
        self.write(self.events("order", 30))
        self.start()
        self.until_settled(30)
        self.write(self.events("visit", 70, event_type="page_viewed", order=None))
        self.write(self.events("later", 500))
        self.until_status(lambda status: status["guard"], "the guard")

    @property
    def hooks(self) -> Hooks:
        return {"restart": self.restart}


class ChangedMapping(RefusedWorld):
    """All is well, and the mapping is to send more."""

    settings: ClassVar[Mapping[str, str]] = {}

    def prepare(self) -> None:
        mapping = self.folder / "mapping.toml"
        mapping.write_text('[fields]\nlanguage = ""\n')
        self.env["PINSTREAM_MAPPING_FILE"] = str(mapping)
        self.write_mapping("corrected.toml", '[constants]\nlanguage = "de"\n')
        self.write(self.events("order", 20))
        self.start()
        self.until_settled(20)


class FilteredWorld(RefusedWorld):
    """The mapping filters an event type; all its records are settled and committed."""

    settings: ClassVar[Mapping[str, str]] = {}

    def prepare(self) -> None:
        mapping = self.folder / "mapping.toml"
        mapping.write_text('[event_names]\norder_completed = "!filter"\n')
        self.env["PINSTREAM_MAPPING_FILE"] = str(mapping)
        self.write_mapping("corrected.toml", '[event_names]\norder_completed = "checkout"\n')
        self.write_sample(commerce_event("sample"))
        self.write(self.events("order", 50))
        self.write(self.events("visit", 20, event_type="page_viewed", order=None))
        self.start()
        self.until_settled(70)
        assert len(self.api.accepted()) == 20


class Unrecorded(World):
    """A day of events was sent in test mode: pinstream has their keys, and the platform has none of the events."""

    settings: ClassVar[Mapping[str, str]] = {"PINTEREST_TEST_MODE": "true"}

    def prepare(self) -> None:
        self.write(self.events("order", 40))
        self.start()
        self.until_settled(40)
        assert self.service.ledger()["delivered"] == 40
        assert not self.api.accepted()

    @property
    def hooks(self) -> Hooks:
        return {"restart with the setting corrected": lambda: self.restart(PINTEREST_TEST_MODE="false")}


class RegistryDown(World):
    """The registry is down: one schema is known, one is not, and one was deleted meanwhile."""

    settings: ClassVar[Mapping[str, str]] = {"PINSTREAM_SCHEMA_PATIENCE": "2s"}

    def prepare(self) -> None:
        self.registry = self.stack.enter_context(Registry(self.loop))
        self.env["SCHEMA_REGISTRY_URL"] = self.registry.url
        known, new = self.registry.add("orders-value", SCHEMA), self.registry.add("orders-value", _version(1))
        deleted = new + 1
        self.write(self.events("known", 5), known)
        self.start()
        self.until_settled(5)
        self.registry.down()
        self.write(self.events("new", 5), new, _version(1))
        self.write(self.events("deleted", 3), deleted, _version(2))
        self.write(self.events("still-known", 5), known)
        self.until_status(lambda status: status["open"]["waiting_for_schema"] == 8, "the records that wait")
        wait_for(lambda: len(self.api.accepted()) == 10, "the known ones")
        self.service.until_logged("schema_unavailable")

    @property
    def hooks(self) -> Hooks:
        return {
            "the registry is back": self.registry.up,
            "the schema is registered again": self._register_again,
        }

    def _register_again(self) -> None:
        assert self.service.ledger()["dead_lettered"] == 3
        self.registry.add("orders-value", _version(2))


def _version(number: int) -> dict[str, Any]:
    added = {"name": f"added_{number}", "type": ["null", "string"], "default": None}
    return {**SCHEMA, "fields": [*SCHEMA["fields"], added]}


class ClockWrong(World):
    """This machine's clock is an hour behind; all events are delivered all the same."""

    def prepare(self) -> None:
        self.clock = WrongClock(self.folder, -3_600.0)
        self.env.update(self.clock.env)
        self.write(self.events("order", 20))
        self.start()
        self.until_settled(20)
        self.service.until_logged("clock_off")

    @property
    def hooks(self) -> Hooks:
        return {"the clock is set right": lambda: self.clock.set(0.0)}


class PoisonFlood(World):
    """A producer writes junk, first a little, then far more than anything else; some records name an unknown
    account."""

    settings: ClassVar[Mapping[str, str]] = {"PINSTREAM_DEAD_LETTER_SAMPLE": "100"}
    other_account = "549755885176"

    def prepare(self) -> None:
        self.write([b"junk"] * 20)
        self.start()
        self.until_settled(20)
        self.write([*[b"junk"] * 150, *self.events("good", 50)])
        self.write(self.events("other", 30, ad_account_id=self.other_account))
        self.write([*[b"junk"] * 150, *self.events("more", 50)])
        self.until_status(lambda status: status["guard"], "the guard")

    @property
    def hooks(self) -> Hooks:
        return {
            "restart without the guard": lambda: self.restart(PINSTREAM_DEAD_LETTER_SHARE="1"),
            "restart with the guard, and the ad account added": lambda: self.restart(
                PINSTREAM_DEAD_LETTER_SHARE="0.5", PINTEREST_EXTRA_AD_ACCOUNT_IDS=self.other_account
            ),
        }

    def check(self) -> None:
        accounts = self.api.counts().accepted_by_account
        assert accounts == {ACCOUNT: 100, self.other_account: 30}


class LagGrows(World):
    """The API answers slowly, and one call at a time is not enough for the rate of events."""

    settings: ClassVar[Mapping[str, str]] = {"PINSTREAM_CONCURRENCY": "1", "PINSTREAM_BATCH_EVENTS": "10"}
    partitions: ClassVar[int] = 2

    def prepare(self) -> None:
        self.write(self.events("order", 40))
        self.start()
        self.until_settled(40)
        self.past = time.time()
        self.api.set_faults(slow=Chance(share=1.0), slow_seconds=0.5)
        self.write(self.events("later", 1500))
        self.until_status(
            lambda status: sum(part["lag"] or 0 for part in status["partitions"]) > 1000, "the lag"
        )

    @property
    def examples(self) -> Mapping[str, str]:
        return {**super().examples, "2026-11-24T06:00": iso(self.past)}

    @property
    def hooks(self) -> Hooks:
        return {"more concurrency, and one more member": self._grow}

    def _grow(self) -> None:
        assert sum(part["lag"] or 0 for part in self.service.status()["partitions"]) > 0
        self.restart(PINSTREAM_CONCURRENCY="32")
        member = {
            "PINSTREAM_STATE_DIR": str(self.folder / "state-2"),
            "PINSTREAM_HTTP_ADDRESS": "127.0.0.1:0",
        }
        process = self.stack.enter_context(Process(self.folder, "run", env={**self.env, **member}))
        self._services.append(process)


class NewCluster(World):
    """Everything was delivered from the old cluster; the new one holds a mirror of its end, at other offsets,
    and more."""

    def prepare(self) -> None:
        self.new = self.new_kafka()
        create_topic(self.new, 1, self.topic)
        begun = time.time() - 2 * _HOUR
        encoder = Encoder(SCHEMA)
        old = [(encoder.encode(one), begun + at * 60) for at, one in enumerate(self.events("old", 60))]
        new = [(encoder.encode(one), begun + (60 + at) * 60) for at, one in enumerate(self.events("new", 30))]
        _write_at(self.kafka, self.topic, old)
        _write_at(self.new, self.topic, [*old[20:], *new])
        # Ten minutes before the producers moved.
        self.started_at = begun + 50 * 60
        self.start()
        self.until_settled(60)

    @property
    def examples(self) -> Mapping[str, str]:
        return {**super().examples, "new-kafka:9092": self.new.bootstrap_servers}

    @property
    def hooks(self) -> Hooks:
        return {
            "stop": self.stop,
            "start on the new cluster": lambda: self.start(
                KAFKA_BOOTSTRAP_SERVERS=self.new.bootstrap_servers
            ),
        }

    def check(self) -> None:
        ledger = self.service.ledger()
        assert (ledger["read"], ledger["delivered"], ledger["duplicate"]) == (40, 30, 10)


def _write_at(kafka: Kafka, topic: str, records: Iterable[tuple[bytes, float]]) -> None:
    """Records with timestamps of their own (unix seconds)."""
    producer = Producer({**kafka.config, "linger.ms": 5, "log_level": 0})
    for value, moment in records:
        producer.produce(topic, value, partition=0, timestamp=int(moment * 1000))
    assert producer.flush(WITHIN) == 0


class CountedTwice(World):
    """The API did not answer for a while, and events of two hours ago were sent again."""

    def prepare(self) -> None:
        self.api.set_faults(unavailable=Chance(share=1.0))
        self.write(self.events("old", 20, occurred_at=int((time.time() - 2 * _HOUR) * 1000)))
        self.start()
        self.until_status(lambda status: status["counts"]["unclear_repeats"], "the repetition")
        self.api.set_faults()

    def check(self) -> None:
        counts = self.service.status()["counts"]
        assert (counts["unclear_repeats"], counts["offline_events_unclear"]) == (20, 0)


WORLDS: Mapping[str, type[World]] = {
    "First look": World,
    "Token expired": TokenExpired,
    "Pinterest does not answer": Unreachable,
    "Change the mapping": ChangedMapping,
    "Events were refused": RefusedWorld,
    "Events were filtered": FilteredWorld,
    "Events had wrong values": Unrecorded,
    "Conversions counted twice": CountedTwice,
    "Registry down": RegistryDown,
    "The clock is wrong": ClockWrong,
    "Poison flood": PoisonFlood,
    "Lag grows": LagGrows,
    "Moved to a new cluster": NewCluster,
}
"""The worlds by the headings of their sections."""
