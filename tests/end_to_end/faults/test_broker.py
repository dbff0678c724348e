"""The broker is restarted, killed, or silent for longer than the session: the process lives through it, losing nothing.

The broker is this module's own. Each test has records on it before the trouble, for a pipeline that is in the middle
of work when it comes: calls in flight, dead letters on their way, commits due. What may be accepted twice is what was
in flight, once for each ungraceful moment (docs/guarantees.md, "A kill at each point"): concurrency x batch.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from consumer.demo.faults import Chance
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.faults.outages import Budget, Status, Watch, committed
from tests.end_to_end.records import PARTITIONS
from tests.end_to_end.shop import Shop
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka

BATCH, CONCURRENCY = 20, 4
BUDGET = Budget(events=400, bytes=16 << 20)
PAUSE = 16.0
SESSION = 6.0
"""Seconds; the broker's KIP-848 groups have the same (tests/support/kafka/broker.py)."""
SLOW = 8.0
"""Seconds before the API's answers, so that calls are in flight whenever a session ends."""
MEMORY = 64 << 20
"""By how much a process may grow in an outage: four times what librdkafka may fetch ahead (16 MiB)."""
HEALING = 100.0
"""Seconds that a broker may need to come back on a busy machine."""


def open_shop(own_kafka: RealBroker, api: Api, folder: Path, count: int, seed: int, **settings: str) -> Shop:
    """A shop with records, small batches and a small budget."""
    small = {"PINSTREAM_BATCH_EVENTS": str(BATCH), "PINSTREAM_CONCURRENCY": str(CONCURRENCY)}
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    shop = Shop(kafka, api, folder, partitions=PARTITIONS, **small, **BUDGET.settings, **settings)
    shop.generate(count, seed=seed, duplicates=0.05, invalid=0.02)
    return shop


def in_the_middle_of_work(watch: Watch) -> int:
    """Wait until many events are delivered and some records are committed; return the process's memory."""
    watch.until(lambda status: status["ledger"]["delivered"] > 300 and committed(status) > 100, "some work")
    return watch.memory()


def finish(shop: Shop, watch: Watch) -> None:
    """More records come; all are committed; at most what was in flight when the trouble came was sent twice."""
    assert shop.committed < len(shop.events), "too late to show anything"
    shop.generate(250, seed=4, duplicates=0.05, invalid=0.02)
    watch.until(lambda _: shop.committed == len(shop.events), "the last commit", HEALING)
    accepted = shop.api.accepted()
    assert set(accepted) == shop.deliverable
    assert accepted.total() - len(accepted) <= BATCH * CONCURRENCY
    assert {message.value() for message, _ in shop.letters} == shop.broken


def idle(status: Status) -> bool:
    """Whether nothing is left to send; dead letters may wait for their broker."""
    return not any(one["queued"] or one["in_flight"] for one in status["destination"]["accounts"])


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "end",
    [
        pytest.param(RealBroker.shut_down, id="clean", marks=pytest.mark.slow("takes longer than a kill")),
        pytest.param(RealBroker.kill, id="killed"),
    ],
)
def test_the_broker_is_restarted(
    own_kafka: RealBroker, api: Api, tmp_path: Path, end: Callable[[RealBroker], None]
) -> None:
    """Under load the process continues by itself, reads later records too, and commits."""
    shop = open_shop(own_kafka, api, tmp_path, 2000, seed=3)
    api.set_faults(slow=Chance(share=1.0), slow_seconds=0.2)
    with shop.run() as process:
        watch = Watch(process, BUDGET)
        memory = in_the_middle_of_work(watch)
        end(own_kafka)
        process.until_logged("kafka_trouble")
        before = watch.until(idle, "the end of what was fetched")
        watch_for([watch], 1.0)
        after = watch.check()
        assert committed(after) == committed(before) < before["ledger"]["delivered"], "no broker, no commit"
        own_kafka.restart()
        finish(shop, watch)
        assert watch.max_memory - memory < MEMORY


@pytest.mark.slow("half a minute of silence")
@pytest.mark.timeout(300)
def test_the_coordinator_is_silent_for_longer_than_the_session(
    own_kafka: RealBroker, servers: Loop, tmp_path: Path
) -> None:
    """The broker is frozen: members stay alive, join again and finish; under both protocols."""
    protocols: dict[str, dict[str, str]] = {
        "classic": {"KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION * 1000))},
        "consumer": {},
    }
    with ExitStack() as stack:
        shops, watches = [], []
        for protocol, settings in protocols.items():
            api = stack.enter_context(Api(servers))
            api.set_faults(slow=Chance(share=1.0), slow_seconds=0.2)
            own = {**settings, "KAFKA_GROUP_PROTOCOL": protocol}
            shop = open_shop(own_kafka, api, tmp_path / protocol, 4000, seed=5, **own)
            shops.append(shop)
            watches.append(Watch(stack.enter_context(shop.run()), BUDGET))
        memories = []
        for shop, watch in zip(shops, watches, strict=True):
            memories.append(in_the_middle_of_work(watch))
            shop.api.set_faults(slow=Chance(share=1.0), slow_seconds=SLOW)
        for watch in watches:
            watch.until_full(BUDGET.events)
        stack.callback(own_kafka.resume)  # whatever happens: the others need it
        own_kafka.pause()
        watch_for(watches, PAUSE - 5.0)
        before = [books(watch.check()) for watch in watches]
        watch_for(watches, 5.0)
        assert [books(watch.check()) for watch in watches] == before, "nothing can be read or committed"
        assert all("kafka_trouble" in watch.process.stderr for watch in watches)
        own_kafka.resume()
        for shop, watch, memory in zip(shops, watches, memories, strict=True):
            shop.api.set_faults()
            finish(shop, watch)
            assert watch.max_memory - memory < MEMORY
            shop.api.check_payloads()
        # Under KIP-848 it is the broker that judges, and it may be lenient after its own absence.
        lost = watches[0].process.until_logged("partitions_lost")
        assert lost["released"] > 0, "it was in the middle of work when it lost its partitions"


@pytest.mark.timeout(240)
@pytest.mark.parametrize(
    "how", ["frozen", pytest.param("killed", marks=pytest.mark.slow("the broker starts again"))]
)
def test_dead_brokers_are_named_within_ten_seconds(
    own_kafka: RealBroker, api: Api, tmp_path: Path, how: str
) -> None:
    """All is settled when they go: the page's document and readiness say it, the lag is unknown, health stays good; and
    it is over when they are back."""
    short = {"KAFKA_SESSION_TIMEOUT_MS": str(int(SESSION * 1000))}
    shop = open_shop(own_kafka, api, tmp_path, 100, seed=11, **short)
    with ExitStack() as stack:
        process = stack.enter_context(shop.run())
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
        ended = watch.until(lambda one: not one["partitions"], "the end of the session")
        assert ended["brokers_silent"]["seconds"] >= SESSION
        assert process.get("/readyz")[1].startswith(said)
        (own_kafka.restart if how == "killed" else own_kafka.resume)()
        watch.until(lambda one: not one["brokers_silent"] and one["joined"], "an answer", HEALING)
        process.until(lambda: process.get("/readyz")[0] == 200, "readiness", HEALING)


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
