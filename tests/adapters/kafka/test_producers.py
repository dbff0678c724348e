"""Producers: that of a redrive writes a whole lot or nothing, once, also if a producer is killed or fenced; records are
produced with back-pressure, and acknowledged soon."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
import pytest_asyncio
from confluent_kafka import Consumer, KafkaException, Message, Producer, TopicPartition
from confluent_kafka import KafkaError as ConfluentError

from consumer.adapters.kafka import producers
from consumer.adapters.kafka.letters import NewRecord
from consumer.adapters.kafka.producers import ID_PREFIX, PolledProducer, RecordProducer, TransactionalWriter
from consumer.errors import KafkaError
from tests.adapters.kafka.bounded_reading import records_of
from tests.support.kafka.broker import wait_until
from tests.support.kafka.harness import WITHIN, Kafka, commit, create_topic, read_all, unique
from tests.support.limits import LATE

NOBODY = "127.0.0.1:9"
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


async def committed_values(kafka: Kafka, topic: str) -> list[bytes | None]:
    """Return the values that a read_committed reader finds up to the last stable offset."""
    return [record.value for record in await records_of(kafka, topic)]


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


@pytest.mark.real_kafka
async def test_a_start_takes_over(kafka: Kafka, make: Make) -> None:
    """It aborts what a killed redrive left open, and fences one that runs, whose lots fail in one line."""
    topic, name = create_topic(kafka), unique("redrive")
    dead = left_open(kafka, name, topic)
    first, second = make(kafka, name), make(kafka, name)
    await first.start()
    assert await first.write(lot(topic, b"1")) is None
    assert await committed_values(kafka, topic) == [b"1"]
    await second.start()
    for _ in range(2):
        with pytest.raises(KafkaError, match="another redrive") as caught:
            await first.write(lot(topic, b"never"))
        assert len(str(caught.value).splitlines()) == 1
    assert await second.write(lot(topic, b"2")) is None
    assert await committed_values(kafka, topic) == [b"1", b"2"]
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
UNSAID = [
    _Raised(code, abortable, text)
    for code, text in ((ConfluentError.UNKNOWN, "as told"), (ConfluentError._AUTHENTICATION, LOGGING_IN))
    for abortable in (True, False)
]
PURGED = _Raised(ConfluentError._PURGE_QUEUE, False)
FORBIDDEN = _Raised(ConfluentError.TOPIC_AUTHORIZATION_FAILED, True)
NOT_THIS_ID = _Raised(ConfluentError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED, True)


@pytest.mark.parametrize(
    ("producer", "said", "aborts"),
    [
        *((FakeProducer(commit=one), r"did not say whether .* another redrive has taken over", 0) for one in UNSAID),
        (FakeProducer(records=PURGED, cause=FORBIDDEN), "grant WRITE on it", 1),
        (FakeProducer(commit=NOT_THIS_ID), f"transactional ids that begin with {re.escape(ID_PREFIX)} ", 1),
    ],
    ids=[*[f"unsaid {number}" for number in range(4)], "the cause", "one grant"],
)  # fmt: skip
async def test_why_a_transaction_failed(make: Make, producer: FakeProducer, said: str, aborts: int) -> None:
    """It ends the redrive. A commit without a clear answer is neither aborted nor retried: its result is unknown."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    writer._producer = producer
    with pytest.raises(KafkaError, match=said):
        await writer.write(lot("orders", b"1"))
    assert producer.aborts == aborts


async def test_records_under_way_at_a_login_are_written_by_another_transaction(make: Make) -> None:
    """Records in flight at a failed login, which no broker refused, are written after an abort."""
    writer = make(Kafka("127.0.0.1:9", "external"), "id")
    producer = writer._producer = FakeProducer(records=ConfluentError(ConfluentError._AUTHENTICATION))
    assert await writer.write(lot("orders", b"1")) is None
    assert (producer.aborts, producer.written) == (1, ["orders"])


@pytest.mark.real_kafka
async def test_records_that_a_topic_refuses_are_named_and_nothing_written(kafka: Kafka, make: Make) -> None:
    """For its size or a missing key, one with each try; without it the rest is written, in small batches too."""
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
        assert await committed_values(kafka, topic) == [*small, *values]
    topic = create_topic(kafka, cleanup_policy="compact")
    keyless = NewRecord(topic, 0, None, b"v", ())
    assert await writer.write([*lot(topic, b"1"), keyless, keyless, *lot(topic, b"2")]) == 1
    assert await writer.write([*lot(topic, b"1"), keyless, *lot(topic, b"2")]) == 1
    assert await writer.write(lot(topic, b"1", b"2")) is None
    assert await committed_values(kafka, topic) == [b"1", b"2"]


@pytest.mark.real_kafka
async def test_a_forbidden_topic_or_a_missing_partition_ends_the_writing(kafka: Kafka, make: Make) -> None:
    """In one error that says what to do, in time; lots written before stay."""
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
    assert await committed_values(kafka, topic) == [b"1", b"1"]


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


async def test_produces_with_back_pressure(each_kafka: Kafka) -> None:
    """Many more records than the queue holds are all acknowledged and arrive unchanged."""
    topic = create_topic(each_kafka)
    producer = RecordProducer(each_kafka.config, queue_records=50)
    for number in range(1000):
        await producer.produce(topic, b"%d" % number, None if number == 7 else b"v")
    await producer.flush(WITHIN)
    await producer.close()
    assert (producer.produced, producer.delivered) == (1000, 1000)
    found = {int(one.key() or b""): one.value() for one in read_all(each_kafka, topic, 1000)}
    assert found == {number: None if number == 7 else b"v" for number in range(1000)}


async def test_records_that_fail_fail_what_follows() -> None:
    """The flush, every later produce, one that waits for room; and a flush at its own limit."""
    producer = RecordProducer({"bootstrap.servers": NOBODY}, delivery_timeout=0.5, queue_records=10)

    async def fill() -> None:
        for _ in range(100):
            await producer.produce("orders", None, b"v")

    for failing in (fill(), producer.flush(WITHIN), producer.produce("orders", None, b"v")):
        with pytest.raises(KafkaError, match="orders"):
            await asyncio.wait_for(failing, WITHIN)
    await producer.close()
    producer = RecordProducer({"bootstrap.servers": NOBODY}, delivery_timeout=60)
    await producer.produce("orders", None, b"v")
    with pytest.raises(KafkaError, match="1 records not acknowledged"):
        await producer.flush(0.3)
    await producer.close()


class Interrupted:
    """A producer whose first delivery of each record fails with `words`, in place of `PolledProducer`."""

    words = ""

    def __init__(self, *_: object) -> None:
        self.given: list[NewRecord] = []

    def produce(self, record: NewRecord, on_report: Callable[..., None]) -> None:
        """Report the record as failed the first time, then as delivered."""
        error = ConfluentError(ConfluentError._AUTHENTICATION, self.words)
        failure = error if record not in self.given else None
        self.given.append(record)
        on_report(failure)

    def stop(self) -> None:
        """Do nothing: no thread polls."""


@pytest.mark.parametrize(
    ("words", "refused"),
    [
        (
            "ProduceRequest for t [0] with 1 message(s) failed: Local: Authentication failure (broker 1)",
            False,
        ),
        ("SASL authentication error: Authentication failed: Invalid username or password", True),
    ],
)
async def test_records_that_a_login_interrupts_are_sent_again(
    monkeypatch: pytest.MonkeyPatch, words: str, refused: bool
) -> None:
    """Records whose connection had to log in are sent again; a login that the broker refused fails them."""
    monkeypatch.setattr(producers, "PolledProducer", Interrupted)
    monkeypatch.setattr(Interrupted, "words", words)
    producer = RecordProducer({"bootstrap.servers": NOBODY})
    records = [NewRecord("orders", -1, key, b"v") for key in (b"a", b"b")]
    for one in records:
        await producer.produce(one.topic, one.key, one.value)
    if refused:
        with pytest.raises(KafkaError, match="Invalid username or password"):
            await producer.flush(WITHIN)
    else:
        await producer.flush(WITHIN)
        assert producer._producer.given == records + records  # type: ignore[attr-defined]  # a fake
        assert producer.delivered == 2


class IdleClient:
    """A client of librdkafka whose records are acknowledged in the first poll after a moment."""

    def __init__(self) -> None:
        self.polls = 0
        self.closed = False
        self._reports: list[Callable[..., None]] = []

    def __len__(self) -> int:
        return len(self._reports)

    def produce(self, *, on_delivery: Callable[..., None], **_: Any) -> None:
        self._reports.append(on_delivery)

    def poll(self, timeout: float) -> None:
        self.polls += 1
        time.sleep(min(timeout, 0.01))
        while self._reports:
            self._reports.pop()(None, None)

    def purge(self, *, blocking: bool) -> None: ...

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def idle_client(monkeypatch: pytest.MonkeyPatch) -> IdleClient:
    """The client that the next producer gets."""
    made = IdleClient()
    monkeypatch.setattr(producers, "make_client", lambda make, config: made)
    return made


def test_an_idle_producer_hardly_polls_and_a_record_wakes_it(idle_client: IdleClient) -> None:
    """A poll a second brings errors and statistics. Neither a record's report nor a stop waits for the next one."""
    polled = PolledProducer({}, lambda error: None)
    time.sleep(0.5)  # half the time between two polls: a busy machine makes the polls fewer, never more
    assert idle_client.polls <= 1
    begun = time.monotonic()
    for _ in range(20):
        reported = threading.Event()
        polled.produce(NewRecord("t", 0, None, b"v"), lambda *_, event=reported: event.set())
        assert reported.wait(5.0)
    assert time.monotonic() - begun < 20 * producers._IDLE_SECONDS / 2
    begun = time.monotonic()
    polled.stop()
    assert wait_until(lambda: idle_client.closed, 5.0)
    assert time.monotonic() - begun < producers._IDLE_SECONDS / 2
