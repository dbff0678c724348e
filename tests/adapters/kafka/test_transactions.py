"""The transactional producer of a redrive writes a whole lot or nothing, once, also if a producer is killed or
fenced."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable

import pytest
import pytest_asyncio
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka import KafkaError as ConfluentError

from consumer.adapters.kafka.cluster import cluster_id
from consumer.adapters.kafka.letters import NewRecord
from consumer.adapters.kafka.producers import ID_PREFIX, TransactionalWriter
from consumer.errors import KafkaError
from tests.support.kafka.broker import RealBroker
from tests.support.kafka.harness import WITHIN, Kafka, commit, create_topic, unique
from tests.support.limits import LATE

Make = Callable[..., TransactionalWriter]


@pytest_asyncio.fixture
async def make() -> AsyncIterator[Make]:
    """Yield a function that makes writers, which are closed at the end."""
    made: list[TransactionalWriter] = []

    def build(kafka: Kafka, name: str, **config: str | int) -> TransactionalWriter:
        made.append(TransactionalWriter({**kafka.config, **config}, name))
        return made[-1]

    yield build
    for one in made:
        await one.close()


def lot(topic: str, *values: bytes, partition: int = 0) -> list[NewRecord]:
    """Return records with these values, which are also their keys."""
    return [NewRecord(topic, partition, value, value, (("h", value), ("none", None))) for value in values]


def committed_values(kafka: Kafka, topic: str, partition: int = 0) -> list[bytes | None]:
    """Return the values that a read_committed reader finds up to the last stable offset."""
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
    """Leave a transaction with one record open, neither committed nor aborted, as a kill does; return its producer."""
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
    """Lots are written one after the other with key, value, headers, order and partition, also over several topics."""
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
async def test_a_start_takes_over(kafka: Kafka, make: Make) -> None:
    """A start aborts the transaction that a killed redrive left open: readers do not wait for it, and its record is not
    read. It fences a redrive that runs, whose next lots fail with one clear line and are not written."""
    topic, name = create_topic(kafka), unique("redrive")
    dead = left_open(kafka, name, topic)
    first, second = make(kafka, name), make(kafka, name)
    await first.start()
    assert await first.write(lot(topic, b"1")) is None
    assert committed_values(kafka, topic) == [b"1"]
    await second.start()
    for _ in range(2):
        with pytest.raises(KafkaError, match="another redrive") as caught:
            await first.write(lot(topic, b"never"))
        assert len(str(caught.value).splitlines()) == 1
    assert await second.write(lot(topic, b"2")) is None
    assert committed_values(kafka, topic) == [b"1", b"2"]
    del dead


class FakeProducer:
    """A producer. `commit`: the error of each commit; `records`: that of the records before the first abort; `cause`:
    that of any other call after it."""

    def __init__(
        self,
        *,
        commit: ConfluentError | None = None,
        records: ConfluentError | None = None,
        cause: ConfluentError | None = None,
    ) -> None:
        self._commit, self._records, self._cause = commit, records, cause
        self._failed = False
        self._sent: list[str] = []
        self.written: list[str] = []
        self.aborts = 0

    def begin_transaction(self) -> None:
        if self._failed and self._cause is not None:
            raise KafkaException(self._cause)
        self._sent = []

    def produce(self, topic: str, *_: object, on_delivery: Callable[..., None], **__: object) -> None:
        self._failed = self._records is not None and not self.aborts
        self._sent.append(topic)
        on_delivery(self._records if self._failed else None, None)

    def purge(self, **_: object) -> None: ...

    def flush(self, _: float) -> int:
        return 0

    def commit_transaction(self, _: float) -> None:
        if self._commit is not None:
            raise KafkaException(self._commit)
        self.written += self._sent

    def abort_transaction(self, _: float) -> None:
        self.aborts += 1
        self._failed = False


class _Raised(ConfluentError):
    """An error with a given `txn_requires_abort`."""

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
async def test_a_commit_without_a_clear_answer_is_reported_as_such(
    make: Make, code: int, text: str, abortable: bool
) -> None:
    """A commit without a clear answer, as UNKNOWN of a broker that fences or a failed login during the commit,
    is neither aborted nor retried: its result is unknown."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    producer = writer._producer = FakeProducer(commit=_Raised(code, abortable, text))
    with pytest.raises(KafkaError, match=r"did not say whether .* another redrive has taken over"):
        await writer.write(lot("orders", b"1"))
    assert producer.aborts == 0


async def test_records_under_way_at_a_login_are_written_by_another_transaction(make: Make) -> None:
    """Records in flight at a failed login, which no broker refused, are written by another transaction after an
    abort."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    producer = writer._producer = FakeProducer(records=ConfluentError(ConfluentError._AUTHENTICATION))
    assert await writer.write(lot("orders", b"1")) is None
    assert producer.aborts == 1


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_records_that_a_topic_refuses_are_named_and_nothing_written(kafka: Kafka, make: Make) -> None:
    """A record too large is named, also if the broker refuses its whole batch, and so is one without a key on a
    compacted topic, of two one with each attempt; without it the rest is written, and later lots are. Small records in
    any number are written to a topic that accepts only small batches."""
    writer = make(kafka, unique("redrive"), **{"compression.type": "none"})
    await writer.start()
    for together in (1, 7):
        topic = create_topic(kafka, max_message_bytes="4000")
        small = [bytes([number]) * 900 for number in range(together - 1)]
        records = lot(topic, *small, b"x" * 5000)
        for _ in range(2):
            assert await writer.write(records) == together - 1
        assert await writer.write(records[:-1]) is None
        values = [bytes([number]) * 700 for number in range(20)]
        assert await writer.write(lot(topic, *values)) is None
        assert committed_values(kafka, topic) == [*small, *values]
    topic = create_topic(kafka, cleanup_policy="compact")
    keyless = NewRecord(topic, 0, None, b"v", ())
    assert await writer.write([*lot(topic, b"1"), keyless, keyless, *lot(topic, b"2")]) == 1
    assert await writer.write([*lot(topic, b"1"), keyless, *lot(topic, b"2")]) == 1
    assert await writer.write(lot(topic, b"1", b"2")) is None
    assert committed_values(kafka, topic) == [b"1", b"2"]


@pytest.mark.kafka
@pytest.mark.real_kafka
async def test_a_forbidden_topic_or_a_missing_partition_ends_the_writing(kafka: Kafka, make: Make) -> None:
    """Each is one clear error within bounded time, which says what to do, instead of the client's own; lots written
    before stay."""
    topic = create_topic(kafka)
    commit(kafka, unique("group"), topic, 0)  # so that Kafka creates its internal topics
    for records, said in (
        (lot("__transaction_state", b"letter", b"mark"), "grant WRITE"),
        (lot(topic, b"2", partition=7), "gone since the redrive began"),
    ):
        writer = make(kafka, unique("redrive"))
        await writer.start()
        assert await writer.write(lot(topic, b"1")) is None
        with pytest.raises(KafkaError, match=said):
            await writer.write(records)
    assert committed_values(kafka, topic) == [b"1", b"1"]


async def test_the_cause_is_taken_from_the_transaction_where_records_name_none(make: Make) -> None:
    """When the errors of records name no cause, the cause is taken from the transaction's error."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    forbidden = _Raised(ConfluentError.TOPIC_AUTHORIZATION_FAILED, True)
    purged = _Raised(ConfluentError._PURGE_QUEUE, False)
    producer = writer._producer = FakeProducer(records=purged, cause=forbidden)
    with pytest.raises(KafkaError, match="grant WRITE"):
        await writer.write(lot("forbidden", b"1", b"2"))
    assert await writer.write(lot("orders", b"3")) is None
    assert producer.written == ["orders"]


async def test_the_advice_on_transactional_ids_names_our_prefix(make: Make) -> None:
    """The advice on transactional ids names the prefix of all redrives' ids, so that one grant allows any redrive."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    refused = _Raised(ConfluentError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, False)
    writer._producer = FakeProducer(commit=refused)
    with pytest.raises(KafkaError, match="transactional ids that begin with") as caught:
        await writer.write(lot("orders", b"1"))
    found = re.search(r"begin with (\S+) ", str(caught.value))
    assert found is not None
    assert found[1] == ID_PREFIX


@pytest.mark.kafka
async def test_a_cluster_has_an_id_of_its_own(each_kafka: Kafka) -> None:
    """Every query returns the same id of the cluster."""
    first = await cluster_id(each_kafka.config, WITHIN)
    assert first == await cluster_id(each_kafka.config, WITHIN)
    assert len(first) > 1


async def test_no_broker_is_one_line_in_bounded_time(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a broker the start fails in one line within its time limit, and closing takes no longer."""
    monkeypatch.setattr("consumer.adapters.kafka.producers._START_SECONDS", 1.5)
    writer = make(Kafka("127.0.0.1:9", "external"), "nobody")
    started = time.monotonic()
    with pytest.raises(KafkaError) as caught:
        await writer.start()
    await writer.close()
    assert len(str(caught.value).splitlines()) == 1
    assert time.monotonic() - started < LATE


@pytest.mark.kafka
async def test_a_broker_that_hangs_ends_a_write_within_its_limit(own_kafka: RealBroker, make: Make) -> None:
    """While a broker hangs (SIGSTOP) a write fails in one line within its time limit; afterwards all of the lot
    is there, or none of it."""
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
