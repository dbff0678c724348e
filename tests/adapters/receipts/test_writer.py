"""The producer of receipts, and the fake of it: a receipt counts as stored only when the broker has it."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import pytest_asyncio
from confluent_kafka import Consumer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AclBinding,
    AclOperation,
    AclPermissionType,
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourcePatternType,
    ResourceType,
)

from consumer.adapters.network import Network
from consumer.adapters.receipts.writer import ReceiptProducer
from consumer.adapters.schemas import RegistrySchemas
from consumer.engine.receipts import Receipts
from consumer.ports import ReceiptWriter, WrittenReceipts
from tests.adapters.fake_registry import FakeRegistry
from tests.adapters.receipts.building import ABOUT, SCHEMA, encoder, read, rows, shop
from tests.service.fakes import FakeReceipts
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, read_all, unique
from tests.support.kafka.secured import SecuredBroker
from tests.support.limits import LATE

EVENT = b'{"event_name":"checkout","action_source":"web","event_time":1,"event_id":"e-1"}'
Make = Callable[..., ReceiptProducer]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    """Return a function that makes producers, which are closed at the end."""
    made: list[ReceiptProducer] = []

    def producer(config: Any, topic: str, register: Any = None, **options: Any) -> ReceiptProducer:
        made.append(
            ReceiptProducer(
                config,
                topic,
                lambda number: encoder(schema_id=number),
                register,
                **{"timeout": 3.0, **options},
            )
        )
        return made[-1]

    yield producer
    for one in made:
        await one.close()


async def until_stored(writer: ReceiptWriter, receipts: Sequence[Receipts]) -> None:
    """Write again and again until all are stored."""
    deadline = time.monotonic() + WITHIN
    while not all((answer := await writer.store(receipts)).stored):
        assert time.monotonic() < deadline, answer
        await asyncio.sleep(0.1)
    assert answer == WrittenReceipts([True] * len(receipts))


def on(kafka: Kafka, topic: str) -> list[dict[str, Any]]:
    """All receipts of a topic with one partition."""
    asking = Consumer({**kafka.config, "group.id": unique("reader"), "log_level": 0})
    _, end = asking.get_watermark_offsets(TopicPartition(topic, 0), timeout=WITHIN)
    asking.close()
    return [read(one.value() or b"") for one in read_all(kafka, topic, end)]


def may(user: str, topic: str, operation: AclOperation) -> AclBinding:
    """A right on a topic."""
    literal, allow = ResourcePatternType.LITERAL, AclPermissionType.ALLOW
    return AclBinding(ResourceType.TOPIC, topic, literal, f"User:{user}", "*", operation, allow)


class Anyone:
    """A process whose fakes may do what they like."""

    def __init__(self) -> None:
        self.world = SimpleNamespace(receipts=[])

    async def step(self, _: str) -> None:
        """Go on."""


@pytest.mark.parametrize("writer", ["fake", "kafka"])
async def test_all_are_stored(writer: str, each_kafka: Kafka, make: Make) -> None:
    """The contract, on the writer and on the fake: a flag for each, in order; a missing topic is created."""
    process: Any = Anyone()
    real = make(each_kafka.config, unique("receipts"))
    one: ReceiptWriter = FakeReceipts(process) if writer == "fake" else real
    assert await one.store([rows(EVENT, EVENT), rows(b"", topic="other")]) == WrittenReceipts([True, True])


async def test_without_a_broker_nothing_is_stored(make: Make) -> None:
    """Within the time limit, and the answer says why."""
    writer, begun = make({"bootstrap.servers": "127.0.0.1:9"}, "receipts", timeout=0.5), time.monotonic()
    answer = await writer.store([rows(EVENT), rows(EVENT)])
    assert time.monotonic() - begun < LATE
    assert (list(answer.stored), answer.reason[:26]) == ([False, False], "receipts cannot be written")


async def test_each_receipt_is_a_record(each_kafka: Kafka, make: Make) -> None:
    """With its key, in the partition of the same number as its record's, whose receipts stay in order."""
    source, topic = create_topic(each_kafka, 4), unique("receipts")
    of = shop(600)
    receipts = replace(of, topic=source, partition=2, topic_id="id")
    writer = make(each_kafka.config, topic)
    # The embedded broker names a topic before it can say how many partitions it has.
    await until_stored(writer, [receipts])
    messages = read_all(each_kafka, topic, len(of.records))
    assert {one.partition() for one in messages} == {2}
    assert [orjson.loads(one.key() or b"") for one in messages] == [
        ["shop", "pinterest", source, "id", 2, record.offset] for record in of.records
    ]


async def test_other_work_goes_on_while_many_are_encoded(
    each_kafka: Kafka, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Thousands of records that are no events take half a second: the event loop is not held for all of them."""
    turns: list[str] = []

    async def other_work() -> None:
        while True:
            turns.append("other")
            await asyncio.sleep(0)

    def encode(_: Receipts) -> list[Any]:
        turns.append("encode")
        return []

    slow, writer = encoder(), make(each_kafka.config, unique("receipts"))
    await until_stored(writer, [rows(EVENT)])
    monkeypatch.setattr(slow, "encode", encode)
    monkeypatch.setattr("consumer.adapters.receipts.writer._SLICE_SECONDS", -1.0)
    monkeypatch.setattr(writer, "_encoder", slow)
    other = asyncio.create_task(other_work())
    assert (await writer.store([rows(EVENT)] * 3)).stored == [True] * 3
    other.cancel()
    assert [one for one, _ in itertools.groupby(turns)].count("encode") == 3


@pytest.mark.real_kafka
async def test_a_topic_that_is_gone_is_created_again(kafka: Kafka, make: Make) -> None:
    """It was deleted under the writer: the write fails, with the topic's name in the reason, and a later one heals."""
    topic = unique("receipts")
    writer = make(kafka.config, topic)
    assert all((await writer.store([rows(EVENT)])).stored)
    admin = AdminClient(kafka.config)
    admin.delete_topics([topic])[topic].result(WITHIN)
    deadline = time.monotonic() + WITHIN
    while (answer := await writer.store([rows(EVENT)])).reason == "":
        assert time.monotonic() < deadline, "a deleted topic takes receipts"
    assert topic in answer.reason
    await until_stored(writer, [rows(EVENT, EVENT)])
    assert len(on(kafka, topic)) >= 2


@pytest.mark.real_kafka
async def test_a_topic_that_takes_small_batches_only(kafka: Kafka, make: Make) -> None:
    """Batches become smaller; one that takes no receipt is named with the command, and heals."""
    small, tiny = (create_topic(kafka, 1, max_message_bytes=size) for size in ("4000", "100"))
    await until_stored(make(kafka.config, small), [shop(300)])
    writer = make(kafka.config, tiny)
    for _ in range(5):
        answer = await writer.store([rows(EVENT)])
    assert list(answer.stored) == [False]
    assert f"--entity-name {tiny} --add-config max.message.bytes=" in answer.reason
    resource = ConfigResource(ResourceType.TOPIC, tiny)
    resource.add_incremental_config(
        ConfigEntry("max.message.bytes", "100000", incremental_operation=AlterConfigOpType.SET)
    )
    admin = AdminClient(kafka.config)
    admin.incremental_alter_configs([resource])[resource].result(WITHIN)
    await until_stored(writer, [rows(EVENT)])


async def test_a_user_without_rights(secured_kafka: SecuredBroker, make: Make) -> None:
    """The reason names a right that is missing, CREATE or WRITE; it heals."""
    topic = unique("receipts")
    writer = make(secured_kafka.with_login("shop"), topic)
    answer = await writer.store([rows(EVENT)])
    assert list(answer.stored) == [False]
    assert f"grant CREATE on {topic}, or create it" in answer.reason
    create_topic(secured_kafka.plain, 1, topic)
    secured_kafka.grant([may("shop", topic, AclOperation.DESCRIBE)])
    answer = await writer.store([rows(EVENT)])
    assert list(answer.stored) == [False]
    assert f"grant WRITE on {topic}" in answer.reason
    secured_kafka.grant([may("shop", topic, AclOperation.WRITE)])
    await until_stored(writer, [rows(EVENT)])
    secured_kafka.take_back_all()


async def test_the_schema_is_registered(kafka: Kafka, make: Make) -> None:
    """Once, before the first receipt, which names its id; while the registry fails nothing is stored."""
    topic = unique("receipts")
    async with FakeRegistry() as registry:
        client = RegistrySchemas({"url": registry.url}, network=Network(), timeout=1.0)

        async def register() -> int:
            return await client.register(f"{topic}-value", SCHEMA)

        writer = make(kafka.config, topic, register)
        registry.faults.status = 503
        answer = await writer.store([rows(EVENT)])
        assert list(answer.stored) == [False]
        assert f"{topic}-value" in answer.reason
        registry.faults.status = None
        await until_stored(writer, [rows(EVENT)])
        await until_stored(writer, [rows(EVENT)])
        asked = len(registry.requests)
        assert len([path for path in registry.requests if "versions" in path]) >= 1
        await until_stored(writer, [rows(EVENT)])
        assert len(registry.requests) == asked
        await client.close()
    for message in read_all(kafka, topic, 3):
        value = message.value() or b""
        assert value[:5] == b"\0" + (1).to_bytes(4, "big")
        assert read(value)["member"] == ABOUT.member
