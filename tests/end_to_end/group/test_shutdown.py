"""``docker stop``: one deadline for all of the end, whatever holds it up, exit code 0, and nothing lost or told twice.

Every test stops a real process by a signal while something is the matter, holds the time it took against
PINSTREAM_SHUTDOWN_GRACE, then starts it again with all in order and looks what became of each event.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from consumer.app.ending import TOGETHER
from consumer.demo.faults import Chance
from tests.end_to_end.api import Api
from tests.end_to_end.crashes.test_kills import keys_in
from tests.end_to_end.group.members import set_session
from tests.end_to_end.processes import Process, wait_for
from tests.end_to_end.records import PARTITIONS
from tests.end_to_end.shop import NewShop, Shop
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka
from tests.support.limits import LATE

GRACE = 4.0
"""Seconds that a busy machine may need beyond the grace, to notice the signal and to end an interpreter. Each
of our time-outs is longer than both together, so waiting for one by mistake would show."""
BATCH, CONCURRENCY = 20, 4


SMALL = {
    "PINSTREAM_SHUTDOWN_GRACE": f"{GRACE:g}s",
    "PINSTREAM_BATCH_EVENTS": str(BATCH),
    "PINSTREAM_CONCURRENCY": str(CONCURRENCY),
}
"""A short grace and small batches."""


@pytest.fixture
def shop(new_shop: NewShop) -> Shop:
    """One with small batches, a short grace, and a membership that the next process takes over at once."""
    return named(new_shop(**SMALL))


def named(shop: Shop) -> Shop:
    """The same with a static member."""
    shop.env["KAFKA_GROUP_INSTANCE_ID"] = f"{shop.group}-1"
    return shop


def keys(shop: Shop) -> int:
    """How many keys its processes have left in their store."""
    return keys_in(shop.folder / "state" / "keys")


def until_called(process: Process, shop: Shop, calls: int) -> None:
    """Wait until the API has had so many more calls."""
    goal = shop.api.calls + calls
    process.until(lambda: shop.api.calls >= goal, "calls")


def stop_in_time(process: Process, number: signal.Signals = signal.SIGTERM) -> None:
    """Stop the process; it must end in order, within the grace."""
    code, seconds = process.stop(number)
    assert code == 0, process.stderr[-3000:]
    assert seconds < GRACE + LATE
    assert "Traceback" not in process.stderr


def check_the_rest(shop: Shop, in_flight: int = 0) -> None:
    """Another process does what is left, with an API in order; only what was in flight is sent twice."""
    shop.api.set_faults()
    shop.finish()
    accepted = shop.api.accepted()
    assert set(accepted) == shop.deliverable
    assert accepted.total() - len(accepted) == in_flight <= BATCH * CONCURRENCY


def the_drain(process: Process) -> dict[str, Any]:
    """What the log says of the last drain: whether it ended before its deadline, and what was dropped."""
    found: dict[str, Any] = [line for line in process.log if line.get("event") == "drained"][-1]
    return found


@pytest.mark.real_kafka  # the embedded broker knows no static membership
def test_under_load_what_was_answered_is_never_sent_again(shop: Shop) -> None:
    """Stopped three times under load, by either signal: all answers are waited for, remembered and committed.

    After each stop the key store holds what the API accepted, no more and no less; in the end each event was
    accepted once. (A dead letter behind an event that was not sent yet is written again: it is not remembered.)
    """
    shop.generate(3000, seed=6, duplicates=0.05, invalid=0.02)
    shop.api.set_faults(slow=Chance(share=0.7), slow_seconds=0.6)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
        with shop.run() as process:
            until_called(process, shop, CONCURRENCY + 1)
            stop_in_time(process, number)
        reported = process.log[-1]
        assert (reported["event"], reported["open"]) == ("stopped", 0)
        accepted = shop.api.accepted()
        assert reported["delivered"] > 0
        assert keys(shop) == len(accepted) == accepted.total()
        assert shop.committed < 3000, "stopped too late to show anything"
    check_the_rest(shop)
    assert {message.value() for message, _ in shop.letters} == shop.broken


@pytest.mark.real_kafka
@pytest.mark.parametrize("signals", [1, 2])
def test_an_api_that_hangs_cannot_hold_it_up(shop: Shop, signals: int) -> None:
    """Calls without an answer end with the grace; their events stay open, and are sent again under the same ids. A
    second SIGTERM ends it at once, with exit code 130, and with the same consequences."""
    shop.generate(300, seed=7)
    shop.api.set_faults(slow=Chance(share=1.0), slow_seconds=600.0)
    with shop.run(PINSTREAM_SHUTDOWN_GRACE=f"{GRACE:g}s" if signals == 1 else "60s") as process:
        process.until(lambda: shop.api.calls == CONCURRENCY, "calls in flight")
        if signals == 1:
            stop_in_time(process)
            assert the_drain(process)["in_time"] == 0
            assert process.log[-1]["delivered"] == 0
        else:
            process.send(signal.SIGTERM)
            process.until(lambda: process.status()["stopping"], "the first signal's effect")
            time.sleep(TOGETHER)  # sooner it would be the same wish
            code, seconds = process.stop()
            assert (code, seconds < LATE) == (130, True)
    in_flight = shop.api.accepted().total()
    assert keys(shop) == 0
    check_the_rest(shop, in_flight)


@pytest.fixture
def frozen_shop(own_kafka: RealBroker, api: Api, tmp_path: Path) -> Shop:
    """One whose broker a test may freeze."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    return named(Shop(kafka, api, tmp_path, partitions=PARTITIONS, **SMALL))


@pytest.mark.parametrize(
    "protocol",
    ["classic", pytest.param("consumer", marks=pytest.mark.slow("the same under another group protocol"))],
)
def test_while_the_broker_does_not_answer(own_kafka: RealBroker, frozen_shop: Shop, protocol: str) -> None:
    """What was delivered and cannot be committed has its keys stored: it is read again after the restart and
    not sent."""
    shop = frozen_shop
    shop.generate(400, seed=9)
    shop.api.set_faults(slow=Chance(share=1.0), slow_seconds=0.4)
    shop.env["KAFKA_GROUP_PROTOCOL"] = protocol
    if protocol == "consumer":
        # Its static member keeps the name until its session is over, which here is short for everyone.
        del shop.env["KAFKA_GROUP_INSTANCE_ID"]
    with shop.run() as process:
        until_called(process, shop, CONCURRENCY + 1)
        with paused(own_kafka):
            stop_in_time(process)
    reported, accepted = process.log[-1], shop.api.accepted()
    assert reported["event"] == "stopped"
    assert keys(shop) == reported["delivered"] == accepted.total() > 0
    check_the_rest(shop)


@pytest.mark.real_kafka
def test_a_name_that_a_dead_member_still_has(shop: Shop) -> None:
    """Killed and started again under KIP-848 with a static name: it ends with 1, to be started again; never idles.

    The group keeps the name until the dead member's session is over, and librdkafka does not go on by itself.
    """
    shop.env["KAFKA_GROUP_PROTOCOL"] = "consumer"
    with shop.run() as killed:
        killed.until(lambda: killed.status()["partitions"], "its partitions")
        set_session(shop.kafka, shop.group, 60.0)  # longer than the next one takes to start on a busy machine
        killed.kill()
    with shop.run() as process:
        process.until(lambda: "still used by another member" in process.stderr, "the refusal")
        wait_for(lambda: process.ended, "its end")
        assert process.wait() == 1


@contextmanager
def paused(broker: RealBroker) -> Iterator[None]:
    """A broker that keeps its connections and does not answer."""
    broker.pause()
    try:
        yield
    finally:
        broker.resume()
