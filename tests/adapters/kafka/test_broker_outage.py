"""A broker that hangs, or that is killed and comes back on its ports: what writes to it, and what asks it."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
import time

import pytest

from consumer.adapters.kafka import producers
from consumer.adapters.kafka.dead_letters import DeadLetterProducer
from consumer.adapters.kafka.producers import TransactionalWriter
from consumer.adapters.receipts.writer import ReceiptProducer
from consumer.errors import KafkaError
from tests.adapters.kafka.member import asker
from tests.adapters.kafka.test_dead_letters import letter, until_stored
from tests.adapters.kafka.test_producers import committed_values, lot
from tests.adapters.receipts import test_writer
from tests.adapters.receipts.building import encoder, rows
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import Kafka, create_topic, read_all, unique
from tests.support.limits import LATE

EVENT = test_writer.EVENT


async def test_what_is_not_acknowledged_does_not_count_as_stored(own_kafka: RealBroker) -> None:
    """Letters and receipts, within their limits; once the broker goes on, or is back, both are stored again."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    topic, receipts = create_topic(kafka), unique("receipts")
    letters = DeadLetterProducer(kafka.config, timeout=2.0)
    writer = ReceiptProducer(kafka.config, receipts, lambda number: encoder(schema_id=number), timeout=2.0)
    assert list(await letters.store([letter(topic, value=b"before")])) == [True]
    assert all((await writer.store([rows(EVENT)])).stored)
    for begin, end in ((own_kafka.pause, own_kafka.resume), (own_kafka.kill, own_kafka.restart)):
        begin()
        try:
            started = time.monotonic()
            stored, written = await asyncio.gather(
                letters.store([letter(topic, value=b"meanwhile")]), writer.store([rows(EVENT), rows(EVENT)])
            )
            assert time.monotonic() - started < LATE
            assert list(stored) == [False]
            assert (list(written.stored), receipts in written.reason) == ([False, False], True), written
        finally:
            end()
        await until_stored(letters, letter(topic, value=b"after"))
        await test_writer.until_stored(writer, [rows(EVENT, topic="after")])
    values = [one.value() for one in read_all(kafka, f"{topic}.dead-letters", 3)]
    assert values[0] == b"before"
    assert b"after" in values
    # What was not acknowledged may be there, too.
    assert [one["topic"] for one in test_writer.on(kafka, receipts)].count("after") >= 2
    await letters.close()
    await writer.close()


async def test_a_broker_that_hangs_ends_a_write_within_its_limit(
    own_kafka: RealBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line; afterwards all of the lot is there, or none of it."""
    monkeypatch.setattr(producers, "_DELIVERY_SECONDS", 2.0)
    monkeypatch.setattr(producers, "_TRANSACTION_SECONDS", 11)  # longer than librdkafka waits for a broker
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    topic, name = create_topic(kafka), unique("redrive")
    writer = TransactionalWriter(kafka.config, name)
    await writer.start()
    assert await writer.write(lot(topic, b"1")) is None
    own_kafka.pause()
    try:
        started = time.monotonic()
        with pytest.raises(KafkaError) as caught:
            await writer.write(lot(topic, b"2", b"3"))
        assert time.monotonic() - started < 60
        assert len(str(caught.value).splitlines()) == 1
    finally:
        own_kafka.resume()
    again = TransactionalWriter(kafka.config, name)
    await again.start()
    assert await again.write(lot(topic, b"4")) is None
    found = await committed_values(kafka, topic)
    assert found in ([b"1", b"4"], [b"1", b"2", b"3", b"4"])
    await writer.close()
    await again.close()


@pytest.mark.timeout(180)
def test_questions_that_were_given_up_do_not_end_the_process(own_kafka: RealBroker) -> None:
    """A broker is away for longer than any question waits, and returns: the process lives, and is answered."""
    command = [sys.executable, "-m", asker.__name__]
    with contextlib.ExitStack() as stack:
        children = {
            route: stack.enter_context(
                subprocess.Popen(
                    [*command, route, own_kafka.bootstrap_servers],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
            for route in asker.ROUTES
        }
        for child in children.values():
            stack.callback(child.kill)

        def said() -> dict[str, str]:
            return {
                route: child.stdout.readline().strip() for route, child in children.items() if child.stdout
            }

        assert said() == dict.fromkeys(asker.ROUTES, "answered")
        own_kafka.kill()
        for child in children.values():
            print(file=child.stdin, flush=True)
        assert said() == dict.fromkeys(asker.ROUTES, "unanswered")
        own_kafka.restart()
        ended = {route: (child.communicate(), child.returncode) for route, child in children.items()}
        assert ended == dict.fromkeys(asker.ROUTES, (("answered\n", ""), 0))
