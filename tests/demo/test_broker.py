"""The embedded broker: its service, its end, its limits, and the front that tests use."""

from __future__ import annotations

import subprocess
import sys
import time

import psutil
import pytest
from confluent_kafka import OFFSET_INVALID, Consumer, KafkaException, Producer
from confluent_kafka import TopicPartition as RawPartition
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from consumer.demo.broker import LOG_BYTES, PARTITIONS, embedded_broker
from consumer.errors import KafkaError
from tests.support.kafka.harness import WITHIN, Kafka, Member, committed, create_topic, produce, unique

pytestmark = pytest.mark.kafka


def brokers() -> list[psutil.Process]:
    """The embedded brokers that this process has started itself."""
    return [one for one in psutil.Process().children() if one.cmdline()[-1:] == ["consumer.demo.broker"]]


def gone(pid: int, seconds: float = 10.0) -> bool:
    """Whether the process ends within `seconds`."""
    try:
        psutil.Process(pid).wait(seconds)
    except psutil.NoSuchProcess:
        return True
    except psutil.TimeoutExpired:
        return False
    return True


async def test_starts_serves_and_stops() -> None:
    """In the context it answers at its address; afterwards the process is gone."""
    async with embedded_broker() as servers:
        [broker] = brokers()
        metadata = AdminClient({"bootstrap.servers": servers}).list_topics(timeout=10)
        assert [f"{one.host}:{one.port}" for one in metadata.brokers.values()] == [servers]
        assert servers.startswith("127.0.0.1:")
    assert gone(broker.pid)


def test_ends_with_its_parent() -> None:
    """If its parent is killed, the broker's standard input closes and it ends by itself."""
    program = (
        "import asyncio, psutil\n"
        "from consumer.demo.broker import embedded_broker\n"
        "async def hold():\n"
        "    async with embedded_broker():\n"
        "        print(psutil.Process().children()[0].pid, flush=True)\n"
        "        await asyncio.sleep(600)\n"
        "asyncio.run(hold())\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    assert gone(pid)


async def test_broker_that_does_not_start_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address on stdout: an error, and no process left."""
    monkeypatch.setattr("consumer.demo.broker.sys.executable", "/bin/false")
    with pytest.raises(KafkaError, match="embedded broker"):
        async with embedded_broker():
            pass
    assert brokers() == []


def test_topics_come_on_demand_with_four_partitions(embedded_kafka: Kafka) -> None:
    """A request for a topic's metadata creates it, always with `PARTITIONS` partitions; the admin API cannot."""
    admin = AdminClient(embedded_kafka.config)
    name = unique("made")
    with pytest.raises(KafkaException):
        admin.create_topics([NewTopic(name, num_partitions=1)], request_timeout=1)[name].result(5)
    assert len(admin.list_topics(name, timeout=10).topics[name].partitions) == PARTITIONS


async def test_groups_share_partitions_and_keep_commits(embedded_kafka: Kafka) -> None:
    """Two members share the partitions, commits are kept with their leader epoch, a rebalance loses nothing."""
    name, group = create_topic(embedded_kafka), unique("group")
    config = {"group.protocol": "consumer"}
    for partition in range(PARTITIONS):
        produce(
            embedded_kafka, name, [b"%d-%d" % (partition, number) for number in range(5)], partition=partition
        )
    async with Member(embedded_kafka, [name], group, config=config) as first:
        await first.until(lambda: len(first.records) == 5 * PARTITIONS, "all records")
        assert (await first.commit()).failure is None
        async with Member(embedded_kafka, [name], group, config=config) as second:
            await second.until(lambda: len(second.held) == 2 and len(first.held) == 2, "two partitions each")
            assert all(one.start == 5 for one in second.held.values())
    found = committed(embedded_kafka, group, name)
    assert (found.offset, found.leader_epoch) == (5, 0)
    assert committed(embedded_kafka, unique("stranger"), name).offset == OFFSET_INVALID


def test_a_transaction_s_end_has_its_checksum(embedded_kafka: Kafka) -> None:
    """A client that checks checksums, as pinstream does, reads past the ends of transactions, committed and aborted."""
    name = create_topic(embedded_kafka)
    producer = Producer({**embedded_kafka.config, "transactional.id": unique("id"), "log_level": 0})
    producer.init_transactions(WITHIN)
    for number, end in enumerate(("commit", "abort", "commit")):
        producer.begin_transaction()
        producer.produce(name, b"%d" % number, partition=0)
        assert producer.flush(WITHIN) == 0
        getattr(producer, f"{end}_transaction")(WITHIN)
    produce(embedded_kafka, name, [b"3"])
    consumer = Consumer(
        {**embedded_kafka.config, "group.id": unique("reader"), "check.crcs": True, "log_level": 0}
    )
    consumer.assign([RawPartition(name, 0, 0)])
    found = consumer.consume(4, WITHIN)
    consumer.close()
    assert [(one.error(), one.offset(), one.value()) for one in found] == [
        (None, offset, b"%d" % number) for number, offset in enumerate((0, 2, 4, 6))
    ]


def test_partition_keeps_about_five_megabytes(embedded_kafka: Kafka) -> None:
    """Older records are dropped even if unread: a producer must not be further ahead of the consumer."""
    name = create_topic(embedded_kafka)
    producer = Producer({**embedded_kafka.config, "linger.ms": 5})
    value = b"x" * 1000
    deadline = time.monotonic() + 60
    for _ in range(8000):
        while time.monotonic() < deadline:
            try:
                producer.produce(name, value, partition=0)
                break
            except BufferError:
                producer.poll(0.1)
    assert producer.flush(30) == 0
    consumer = Consumer({**embedded_kafka.config, "group.id": "looking"})
    low, high = consumer.get_watermark_offsets(RawPartition(name, 0), timeout=10)
    consumer.close()
    assert high == 8000
    kept = (high - low) * len(value)
    assert LOG_BYTES * 0.7 < kept < LOG_BYTES * 1.1
