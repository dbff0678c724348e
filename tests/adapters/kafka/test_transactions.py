"""The transactional producer of a redrive: all of a lot or nothing, once, also if one is killed or fenced."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka import KafkaError as ConfluentError

from consumer.adapters.kafka.cluster import cluster_id
from consumer.adapters.kafka.letters import NewRecord
from consumer.adapters.kafka.transactions import ID_PREFIX, TransactionalWriter
from consumer.errors import KafkaError, SettingsError
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, unique
from tests.support.limits import LATE

Make = Callable[..., TransactionalWriter]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    """Makes writers that are closed at the end."""
    made: list[TransactionalWriter] = []

    def build(kafka: Kafka, name: str, **config: str | int) -> TransactionalWriter:
        made.append(TransactionalWriter({**kafka.config, **config}, name))
        return made[-1]

    yield build
    for one in made:
        await one.close()


def lot(topic: str, *values: bytes, partition: int = 0) -> list[NewRecord]:
    """Records with these values, which are their keys too."""
    return [NewRecord(topic, partition, value, value, (("h", value), ("none", None))) for value in values]


def committed_values(kafka: Kafka, topic: str, partition: int = 0) -> list[bytes | None]:
    """What a read_committed reader finds now, up to the last stable offset."""
    consumer = Consumer(
        {
            **kafka.config,
            "group.id": unique("reader"),
            "isolation.level": "read_committed",
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
            "log_level": 0,
        }
    )
    consumer.assign([TopicPartition(topic, partition, 0)])
    found: list[bytes | None] = []
    deadline = time.monotonic() + WITHIN
    while time.monotonic() < deadline:
        message = consumer.poll(1.0)
        if message is not None and message.error() is not None:
            break
        if message is not None:
            found.append(message.value())
    consumer.close()
    return found


def left_open(kafka: Kafka, name: str, topic: str) -> Producer:
    """A transaction with one record in it that is neither committed nor aborted, as a kill leaves it."""
    producer = Producer(
        {**kafka.config, "transactional.id": name, "transaction.timeout.ms": 60_000, "log_level": 0}
    )
    producer.init_transactions(WITHIN)
    producer.begin_transaction()
    producer.produce(topic, b"left open", partition=0)
    assert producer.flush(WITHIN) == 0
    return producer


@pytest.mark.kafka
async def test_a_lot_is_written_as_it_is(each_kafka: Kafka, make: Make) -> None:
    """Key, value, headers, order and partition; over several topics in one lot; lots after lots."""
    first, second = create_topic(each_kafka, 4), create_topic(each_kafka, 4)
    writer = make(each_kafka, unique("redrive"))
    await writer.start()
    assert await writer.write([*lot(first, b"1", b"2"), *lot(second, b"3", partition=1)]) is None
    assert await writer.write(lot(first, b"4")) is None
    assert await writer.write([]) is None
    consumer = Consumer({**each_kafka.config, "group.id": unique("reader"), "log_level": 0})
    consumer.assign([TopicPartition(first, 0, 0), TopicPartition(second, 1, 0)])
    found: list[Message] = []
    while len(found) < 4:
        found += [one for one in consumer.consume(4, WITHIN / 10) if one.error() is None]
    consumer.close()
    values = {name: [one.value() for one in found if one.topic() == name] for name in (first, second)}
    assert values == {first: [b"1", b"2", b"4"], second: [b"3"]}
    assert all(one.key() == one.value() for one in found)
    assert all(one.headers() == [("h", one.value()), ("none", None)] for one in found)


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_what_a_killed_one_left_open_is_ended_at_the_start(kafka: Kafka, make: Make) -> None:
    """Readers do not wait for a dead redrive's transaction any more, and what was in it is not there."""
    topic, name = create_topic(kafka), unique("redrive")
    dead = left_open(kafka, name, topic)
    writer = make(kafka, name)
    await writer.start()
    assert await writer.write(lot(topic, b"1")) is None
    assert committed_values(kafka, topic) == [b"1"]
    del dead


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_a_second_redrive_fences_the_first(kafka: Kafka, make: Make) -> None:
    """The first hears of it with its next lot: one clear line, nothing of that lot is there, and it stays dead."""
    topic, name = create_topic(kafka), unique("redrive")
    first, second = make(kafka, name), make(kafka, name)
    await first.start()
    assert await first.write(lot(topic, b"1")) is None
    await second.start()
    for _ in range(2):
        with pytest.raises(KafkaError, match="another redrive") as caught:
            await first.write(lot(topic, b"never"))
        assert len(str(caught.value).splitlines()) == 1
    assert await second.write(lot(topic, b"2")) is None
    assert committed_values(kafka, topic) == [b"1", b"2"]


class Confused:
    """A producer whose broker answers a commit with `code`; whether it requires an abort is `abortable`."""

    def __init__(self, code: int, abortable: bool, text: str = "as told") -> None:
        self._error = _Raised(code, abortable, text)
        self.aborts = 0

    def begin_transaction(self) -> None: ...
    def produce(self, *_: object, **__: object) -> None: ...
    def purge(self, **_: object) -> None: ...

    def flush(self, _: float) -> int:
        return 0

    def commit_transaction(self, _: float) -> None:
        raise KafkaException(self._error)

    def abort_transaction(self, _: float) -> None:
        self.aborts += 1


class _Raised(ConfluentError):
    """An error with these flags."""

    def __init__(self, code: int, abortable: bool, text: str = "as told") -> None:
        super().__init__(code, text)
        self._abortable = abortable

    def txn_requires_abort(self) -> bool:
        return self._abortable


LOGGING_IN = "EndTxn commit failed: Local: Authentication failure"


@pytest.mark.parametrize("abortable", [True, False])
@pytest.mark.parametrize(
    ("code", "text"), [(ConfluentError.UNKNOWN, "as told"), (ConfluentError._AUTHENTICATION, LOGGING_IN)]
)
async def test_a_commit_without_a_verdict_is_said_to_be_one(
    make: Make, code: int, text: str, abortable: bool
) -> None:
    """A broker in the middle of fencing says UNKNOWN, and a commit may be under way when the connection has to log in
    again: nothing is aborted or tried again, since nobody knows."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    producer = writer._producer = Confused(code, abortable, text)
    with pytest.raises(KafkaError, match=r"did not say whether .* another redrive has taken over"):
        await writer.write(lot("orders", b"1"))
    assert producer.aborts == 0


class LogsInAgain(Confused):
    """A producer whose first record is under way when the connection has to log in again."""

    def __init__(self) -> None:
        super().__init__(ConfluentError.NO_ERROR, abortable=False)
        self.reports: list[Any] = []

    def produce(self, *_: object, **how: Any) -> None:
        """Reported by the flush."""
        self.reports.append(how["on_delivery"])

    def flush(self, _: float) -> int:
        """The first time nothing is stored."""
        error = None if self.aborts else ConfluentError(ConfluentError._AUTHENTICATION)
        self.reports.pop()(error, None)
        return 0

    def commit_transaction(self, _: float) -> None:
        """All is written."""


async def test_records_under_way_at_a_login_are_written_by_another_transaction(make: Make) -> None:
    """The login was not judged, and nothing was committed: the transaction is aborted, and the next one writes."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    producer = writer._producer = LogsInAgain()
    assert await writer.write(lot("orders", b"1")) is None
    assert producer.aborts == 1


@pytest.mark.kafka
@pytest.mark.real_kafka
@pytest.mark.parametrize("together", [1, 7])
async def test_a_record_too_large_is_named_and_nothing_written(
    kafka: Kafka, make: Make, together: int
) -> None:
    """Also where the batch would be refused for all; without it the rest goes, and later lots do."""
    topic = create_topic(kafka, max_message_bytes="4000")
    writer = make(kafka, unique("redrive"), **{"compression.type": "none"})
    await writer.start()
    small = [bytes([number]) * 900 for number in range(together - 1)]
    records = lot(topic, *small, b"x" * 5000)
    for _ in range(2):
        assert await writer.write(records) == together - 1
    assert await writer.write(records[:-1]) is None
    assert await writer.write(lot(topic, b"later")) is None
    assert committed_values(kafka, topic) == [*small, b"later"]


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_many_small_records_are_no_large_one(kafka: Kafka, make: Make) -> None:
    """A topic that takes only small batches takes small records in any number."""
    topic = create_topic(kafka, max_message_bytes="3000")
    writer = make(kafka, unique("redrive"), **{"compression.type": "none"})
    await writer.start()
    values = [bytes([number]) * 700 for number in range(20)]
    assert await writer.write(lot(topic, *values)) is None
    assert committed_values(kafka, topic) == values


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_a_compacted_topic_refuses_what_has_no_key(kafka: Kafka, make: Make) -> None:
    """It is that one record's fault."""
    topic = create_topic(kafka, cleanup_policy="compact")
    writer = make(kafka, unique("redrive"))
    await writer.start()
    keyless = NewRecord(topic, 0, None, b"v", ())
    assert await writer.write([*lot(topic, b"1"), keyless, *lot(topic, b"2")]) == 1
    assert await writer.write(lot(topic, b"1", b"2")) is None
    assert committed_values(kafka, topic) == [b"1", b"2"]


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_two_records_without_a_key_are_named_one_after_the_other(kafka: Kafka, make: Make) -> None:
    """In one batch each gets the error for the other; all the rest goes."""
    topic = create_topic(kafka, cleanup_policy="compact")
    writer = make(kafka, unique("redrive"))
    await writer.start()
    keyless = NewRecord(topic, 0, None, b"v", ())
    assert await writer.write([*lot(topic, b"1"), keyless, keyless, *lot(topic, b"2")]) == 1
    assert await writer.write([*lot(topic, b"1"), keyless, *lot(topic, b"2")]) == 1
    assert await writer.write(lot(topic, b"1", b"2")) is None
    assert committed_values(kafka, topic) == [b"1", b"2"]


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_a_topic_that_is_forbidden_ends_it(kafka: Kafka, make: Make) -> None:
    """With what to grant, not with what the client makes of it."""
    writer = make(kafka, unique("redrive"))
    await writer.start()
    await asyncio.to_thread(fill_internal_topics, kafka)
    with pytest.raises(KafkaError, match="grant WRITE"):
        await writer.write(lot("__transaction_state", b"letter", b"mark"))


def fill_internal_topics(kafka: Kafka) -> None:
    """There is a group that has committed: Kafka makes its own topics when they are needed."""
    consumer = Consumer({**kafka.config, "group.id": unique("group"), "log_level": 0})
    topic = create_topic(kafka)
    consumer.commit(offsets=[TopicPartition(topic, 0, 0)], asynchronous=False)
    consumer.close()


class Forbidding:
    """A producer that may not write to ``forbidden``: the transaction knows why it failed, the records do not."""

    def __init__(self) -> None:
        self.failed = False
        self.begun = False
        self.sent: list[str] = []
        self.written: list[str] = []

    def begin_transaction(self) -> None:
        if self.failed:
            raise KafkaException(_Raised(ConfluentError.TOPIC_AUTHORIZATION_FAILED, True))
        assert not self.begun
        self.begun, self.sent = True, []

    def produce(self, topic: str, *_: object, on_delivery: Callable[..., None], **__: object) -> None:
        if topic == "forbidden":
            self.failed = True
        if self.failed:
            on_delivery(_Raised(ConfluentError._PURGE_QUEUE, False), None)
        else:
            self.sent.append(topic)

    def purge(self, **_: object) -> None: ...

    def flush(self, _: float) -> int:
        return 0

    def commit_transaction(self, _: float) -> None:
        self.written += self.sent
        self.begun = False

    def abort_transaction(self, _: float) -> None:
        self.failed = self.begun = False


async def test_a_forbidden_topic_is_told_where_records_are_not(make: Make) -> None:
    """Each record's error says only that another one failed: the transaction is asked, and knows the cause."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    producer = writer._producer = Forbidding()
    with pytest.raises(KafkaError, match="grant WRITE"):
        await writer.write(lot("forbidden", b"1", b"2"))
    assert await writer.write(lot("orders", b"3")) is None
    assert producer.written == ["orders"]


async def test_the_advice_on_transactional_ids_fits_ours(make: Make) -> None:
    """Whoever grants what it says can redrive any topic: each redrive's id begins so."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    writer._producer = Confused(ConfluentError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, False)
    with pytest.raises(KafkaError, match="transactional ids that begin with") as caught:
        await writer.write(lot("orders", b"1"))
    found = re.search(r"begin with (\S+) ", str(caught.value))
    assert found is not None
    assert found[1] == ID_PREFIX


@pytest.mark.kafka
async def test_a_cluster_has_an_id_of_its_own(each_kafka: Kafka) -> None:
    """The same for all who ask."""
    first = await cluster_id(each_kafka.config, WITHIN)
    assert first == await cluster_id(each_kafka.config, WITHIN)
    assert len(first) > 1


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_a_partition_that_is_not_there_ends_it(kafka: Kafka, make: Make) -> None:
    """One clear line within bounds; what was put back before stays."""
    topic = create_topic(kafka)
    writer = make(kafka, unique("redrive"))
    await writer.start()
    assert await writer.write(lot(topic, b"1")) is None
    with pytest.raises(KafkaError, match="gone since the redrive began"):
        await writer.write(lot(topic, b"2", partition=7))
    assert committed_values(kafka, topic) == [b"1"]


async def test_no_broker_is_one_line_in_bounded_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """And closing takes no longer for it."""
    monkeypatch.setattr("consumer.adapters.kafka.transactions._START_SECONDS", 1.5)
    writer = make(Kafka("127.0.0.1:9", "external"), "nobody")
    started = time.monotonic()
    with pytest.raises(KafkaError) as caught:
        await writer.start()
    await writer.close()
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - started < LATE


async def test_a_property_that_cannot_be_is_named() -> None:
    """As everywhere: the variable."""
    with pytest.raises(SettingsError, match="KAFKA_SEKURITY_PROTOCOL"):
        TransactionalWriter({"bootstrap.servers": "127.0.0.1:9", "sekurity.protocol": "x"}, "id")


@pytest.mark.kafka
async def test_a_broker_that_hangs_ends_it_within_its_limits(own_kafka: RealBroker, make: Make) -> None:
    """SIGSTOP: one line; when the broker goes on, the next redrive finds all of the lot, or nothing of it."""
    kafka = Kafka(own_kafka.bootstrap_servers, "real")
    topic, name = create_topic(kafka), unique("redrive")
    writer = make(kafka, name)
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
    again = make(kafka, name)
    await again.start()
    assert await again.write(lot(topic, b"4")) is None
    found = await asyncio.to_thread(committed_values, kafka, topic)
    assert found in ([b"1", b"4"], [b"1", b"2", b"3", b"4"])
