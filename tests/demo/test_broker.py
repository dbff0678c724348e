"""The embedded broker: that it serves, that it ends, and where its limits are."""

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

from consumer.demo.broker import LOG_BYTES, PARTITIONS, EmbeddedBroker, crc32c
from consumer.errors import KafkaError
from tests.support.kafka.harness import WITHIN, Kafka, Member, committed, create_topic, produce, unique

pytestmark = pytest.mark.kafka


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
    """Within the context it answers under its address; after it, the process is gone. Stopping twice is harmless."""
    async with EmbeddedBroker() as broker:
        pid = broker.pid
        assert pid is not None
        metadata = AdminClient({"bootstrap.servers": broker.bootstrap_servers}).list_topics(timeout=10)
        assert [f"{one.host}:{one.port}" for one in metadata.brokers.values()] == [broker.bootstrap_servers]
        assert broker.bootstrap_servers.startswith("127.0.0.1:")
    assert gone(pid)
    await broker.stop()


def test_ends_with_its_parent() -> None:
    """Whoever started it is killed: the broker's standard input closes, and it ends by itself."""
    program = (
        "import sys, time\n"
        "from consumer.demo.broker import EmbeddedBroker\n"
        "broker = EmbeddedBroker().open()\n"
        "print(broker.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert psutil.pid_exists(pid)
        parent.kill()
    assert gone(pid)


def test_command_prints_one_line_and_ends_with_its_input() -> None:
    """``python -m consumer.demo.broker``: the address on stdout, then nothing; exit 0 at the end of input."""
    command = [sys.executable, "-m", "consumer.demo.broker"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as process:  # type: ignore[call-overload]
        line = process.stdout.readline()
        rest, _ = process.communicate(timeout=20)
    assert line.startswith("127.0.0.1:")
    assert (rest, process.returncode) == ("", 0)


async def test_broker_that_does_not_start_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """No address on stdout: an error, and no process left."""
    monkeypatch.setattr("consumer.demo.broker.sys.executable", "/bin/false")
    broker = EmbeddedBroker()
    with pytest.raises(KafkaError, match="embedded broker"):
        await broker.start()
    assert broker.pid is None


def test_topics_come_on_demand_with_four_partitions(embedded_kafka: Kafka) -> None:
    """Asking for a topic by name makes it, always with `PARTITIONS` partitions; the admin API cannot."""
    admin = AdminClient(embedded_kafka.config)
    name = unique("made")
    with pytest.raises(KafkaException):
        admin.create_topics([NewTopic(name, num_partitions=1)], request_timeout=1)[name].result(5)
    assert len(admin.list_topics(name, timeout=10).topics[name].partitions) == PARTITIONS


@pytest.mark.parametrize(
    "config",
    [
        pytest.param({"group.protocol": "classic", "session.timeout.ms": 4500}, id="classic"),
        pytest.param({"group.protocol": "consumer"}, id="kip-848"),
    ],
)
async def test_groups_share_partitions_and_keep_commits(
    embedded_kafka: Kafka, config: dict[str, str]
) -> None:
    """Two members share the partitions, commits are kept with their leader epoch, a rebalance loses nothing."""
    name, group = create_topic(embedded_kafka), unique("group")
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
    """Whoever checks checksums, as pinstream does, reads past the ends of transactions, committed and aborted."""
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


def test_the_checksum_is_castagnoli_s() -> None:
    """The test value of RFC 3720, appendix B.4, and the usual one."""
    assert (crc32c(bytes(32)), crc32c(b"123456789")) == (0x8A9136AA, 0xE3069283)


def test_partition_keeps_about_five_megabytes(embedded_kafka: Kafka) -> None:
    """Older records are dropped, read or not: a producer must not run ahead of the consumer by more."""
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
