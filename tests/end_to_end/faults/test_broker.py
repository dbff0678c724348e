"""The broker is restarted, killed, or silent for longer than the session: the process lives through it, losing nothing.

The broker is this module's own. Each test has records on it before the trouble, for a pipeline that is in the middle
of work when it comes: calls in flight, dead letters on their way, commits due. What may be accepted twice is what was
in flight, once for each ungraceful moment (docs/guarantees.md, "A kill at each point"): concurrency x batch.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest

from consumer.demo.faults import Chance
from consumer.demo.generator import GeneratedEvent
from consumer.engine.model import Disposition
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.faults.outages import Budget, Status, Watch, committed
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import (
    committed_offsets,
    dead_letters,
    generated,
    new_group,
    new_topic,
    value_of,
    write_generated,
)
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka

BATCH, CONCURRENCY = 20, 4
BUDGET = Budget(events=400, bytes=16 << 20)
PAUSE = 25.0
SESSION = 6.0
"""Seconds; the broker's KIP-848 groups have the same (tests/support/kafka/broker.py)."""
SLOW = 13.0
"""Seconds before the API's answers, so that calls are in flight whenever a session ends."""
MEMORY = 64 << 20
"""By how much a process may grow in an outage: four times what librdkafka may fetch ahead (16 MiB)."""
HEALING = 100.0
"""Seconds that a broker may need to come back on a busy machine."""


class Shop(NamedTuple):
    """The records of one topic, and their outcomes."""

    kafka: Kafka
    topic: str
    group: str
    events: list[GeneratedEvent]

    @property
    def deliverable(self) -> set[str]:
        """Ids that the API must accept."""
        return {
            one.event["event_id"]
            for one in self.events
            if one.event and one.expected is Disposition.DELIVERED
        }

    @property
    def broken(self) -> set[bytes]:
        """Values that must become dead letters."""
        return {value_of(one) for one in self.events if one.defect}

    def more(self, count: int, seed: int) -> Shop:
        """Write `count` more records."""
        _, events = generated(count, seed=seed, duplicates=0.05, invalid=0.02)
        write_generated(self.kafka, self.topic, events)
        return self._replace(events=[*self.events, *events])

    def committed(self) -> int:
        """How many records the broker has as committed."""
        return sum(committed_offsets(self.kafka, self.group, self.topic))


def open_shop(kafka: Kafka, count: int, seed: int) -> Shop:
    """A new topic with `count` records."""
    return Shop(kafka, new_topic(kafka), new_group(), []).more(count, seed)


def environment(folder: Path, shop: Shop, api: Api, **settings: str) -> dict[str, str]:
    """Small batches and a small budget."""
    own = {"PINSTREAM_BATCH_EVENTS": str(BATCH), "PINSTREAM_CONCURRENCY": str(CONCURRENCY)}
    return run_environment(
        folder, shop.kafka, shop.topic, shop.group, api.url, **{**own, **BUDGET.settings, **settings}
    )


def in_the_middle_of_work(watch: Watch) -> int:
    """Wait until many events are delivered and some records are committed; return the process's memory."""
    watch.until(lambda status: status["ledger"]["delivered"] > 300 and committed(status) > 100, "some work")
    return watch.memory()


def check_nothing_lost(shop: Shop, api: Api, ungraceful: int) -> None:
    """Every record has its outcome; at most what was in flight at ungraceful moments was sent twice."""
    assert shop.committed() == len(shop.events)
    accepted = api.accepted()
    assert set(accepted) == shop.deliverable
    assert accepted.total() - len(accepted) <= ungraceful * BATCH * CONCURRENCY
    assert {message.value() for message, _ in dead_letters(shop.kafka, shop.topic)} == shop.broken


def idle(status: Status) -> bool:
    """Whether nothing is left to send; dead letters may wait for their broker."""
    return not any(one["queued"] or one["in_flight"] for one in status["destination"]["accounts"])


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["clean", "killed"])
def test_the_broker_is_restarted(own_kafka: RealBroker, api: Api, tmp_path: Path, how: str) -> None:
    """Under load the process continues by itself, reads later records too, and commits."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    shop = open_shop(kafka, 2000, seed=3)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.2)
    with Process(tmp_path, "run", env=environment(tmp_path, shop, api)) as process:
        watch = Watch(process, BUDGET)
        memory = in_the_middle_of_work(watch)
        (own_kafka.shut_down if how == "clean" else own_kafka.kill)()
        process.until_logged("kafka_trouble")
        before = watch.until(idle, "the end of what was fetched")
        watch_for([watch], 1.0)
        after = watch.check()
        assert committed(after) == committed(before) < before["ledger"]["delivered"], "no broker, no commit"
        own_kafka.restart()

        assert shop.committed() < len(shop.events), "too late to show anything"
        shop = shop.more(300, seed=4)
        watch.until(lambda _: shop.committed() == len(shop.events), "the last commit", HEALING)
        assert watch.max_memory - memory < MEMORY
        assert process.stop()[0] == 0
    check_nothing_lost(shop, api, ungraceful=1)


@pytest.mark.timeout(300)
def test_the_coordinator_is_silent_for_longer_than_the_session(
    own_kafka: RealBroker, servers: Loop, tmp_path: Path
) -> None:
    """The broker is frozen: members stay alive, join again and finish; under both protocols."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    protocols: dict[str, dict[str, str]] = {
        "classic": {"KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION * 1000))},
        "consumer": {},
    }
    with ExitStack() as stack:
        lines = [
            Line(stack, servers, tmp_path / protocol, kafka, KAFKA_GROUP_PROTOCOL=protocol, **settings)
            for protocol, settings in protocols.items()
        ]
        memories = []
        for line in lines:
            memories.append(in_the_middle_of_work(line.watch))
            line.api.set_faults(slow=Chance(share=1.0), slow_seconds=SLOW)
        watches = [line.watch for line in lines]
        for watch in watches:
            watch.until_full(BUDGET.events)
        stack.callback(own_kafka.resume)  # whatever happens: the others need it
        own_kafka.pause()
        watch_for(watches, PAUSE - 5.0)
        before = [books(watch.check()) for watch in watches]
        watch_for(watches, 5.0)
        assert [books(watch.check()) for watch in watches] == before, "nothing can be read or committed"
        assert all(line.logged("kafka_trouble") for line in lines)
        own_kafka.resume()

        for line in lines:
            assert line.shop.committed() < len(line.shop.events), "too late to show anything"
            line.api.set_faults()
            line.shop = line.shop.more(200, seed=6)
        for line, memory in zip(lines, memories, strict=True):
            line.finish()
            assert line.watch.max_memory - memory < MEMORY
        lost = lines[0].process.until_logged("partitions_lost")
        # Under KIP-848 it is the broker that judges, and it may be lenient after its own absence.
        assert lost["released"] > 0, "it was in the middle of work when it lost its partitions"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("how", ["killed", "frozen"])
def test_dead_brokers_are_named_within_ten_seconds(
    own_kafka: RealBroker, api: Api, tmp_path: Path, how: str
) -> None:
    """All is settled when they go: the page's document and readiness say it, the lag is unknown, health stays good; and
    it is over when they are back."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    shop = open_shop(kafka, 100, seed=11)
    with ExitStack() as stack:
        short = {"KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION * 1000))}
        process = stack.enter_context(Process(tmp_path, "run", env=environment(tmp_path, shop, api, **short)))
        watch = Watch(process, BUDGET)
        watch.until_settled(len(shop.events))
        assert process.get("/readyz")[0] == 200
        if how == "killed":
            own_kafka.kill()
        else:
            stack.callback(own_kafka.resume)
            own_kafka.pause()
        gone = time.monotonic()
        status = watch.until(lambda one: one["brokers_silent"], "the silence")
        assert time.monotonic() - gone < 10.0
        why = "connection refused" if how == "killed" else "no answer"
        said = f"The brokers do not answer ({own_kafka.bootstrap_servers}, {why}) for "
        assert status["brokers_silent"]["sentence"].startswith(said)
        assert {one["lag"] for one in status["partitions"]} <= {None}
        code, text = process.get("/readyz")
        assert (code, text.startswith(said)) == (503, True), text
        assert process.get("/healthz")[0] == 200
        metrics = process.get("/metrics")[1]
        assert "pinstream_partition_lag_records{" not in metrics
        assert float(metrics.split("\npinstream_brokers_silent_seconds ")[1].split()[0]) >= 4.0
        watch_for([watch], 2 * SESSION)
        ended = watch.until(lambda one: not one["partitions"], "the end of the session")
        assert ended["brokers_silent"]["seconds"] >= SESSION
        assert process.get("/readyz")[1].startswith(said)
        (own_kafka.restart if how == "killed" else own_kafka.resume)()
        watch.until(lambda one: not one["brokers_silent"] and one["joined"], "an answer", HEALING)
        process.until(lambda: process.get("/readyz")[0] == 200, "readiness", HEALING)
        assert process.stop()[0] == 0


class Line:
    """A topic, an API, and a process between them."""

    def __init__(self, stack: ExitStack, servers: Loop, folder: Path, kafka: Kafka, **settings: str) -> None:
        self.shop = open_shop(kafka, 4000, seed=5)
        self.api = stack.enter_context(Api(servers))
        self.api.set_faults(slow=Chance(share=1.0), slow_seconds=0.2)
        env = environment(folder, self.shop, self.api, **settings)
        self.process = stack.enter_context(Process(folder, "run", env=env))
        self.watch = Watch(self.process, BUDGET)

    def finish(self) -> None:
        """Wait until all is settled and committed; then stop, and check every record's outcome."""
        watch, shop = self.watch, self.shop
        watch.until(lambda _: shop.committed() == len(shop.events), "the last commit", HEALING)
        assert self.process.stop()[0] == 0
        check_nothing_lost(shop, self.api, ungraceful=1)
        self.api.check_payloads()

    def logged(self, event: str) -> bool:
        """Whether the log has such a line."""
        return any(line.get("event") == event for line in self.process.log)


def books(status: Status) -> tuple[int, int]:
    """How many records were read, and how many are committed."""
    return status["ledger"]["read"], committed(status)


def watch_for(watches: Sequence[Watch], seconds: float) -> None:
    """Check all of them at intervals for that long: the outage is a time that passes."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        for watch in watches:
            watch.check()
        time.sleep(0.25)
