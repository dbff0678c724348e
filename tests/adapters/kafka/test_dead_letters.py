"""The dead-letter producer: the form of a letter, and that it counts as stored only when the broker has it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import pytest_asyncio
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

from consumer.adapters.aws.msk import NoToken
from consumer.adapters.kafka import configuration
from consumer.adapters.kafka.dead_letters import DeadLetterProducer
from consumer.adapters.kafka.letters import letter_headers
from consumer.adapters.kafka.producers import PolledProducer
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Record, Rejection, Stage
from consumer.errors import SettingsError
from tests.support.certificates import Authority
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, read_all, unique, until
from tests.support.limits import LATE


def letter(topic: str, *, partition: int = 0, offset: int = 0, **record: Any) -> DeadLetter:
    """Return a dead letter of `topic`."""
    parts: dict[str, Any] = {
        "timestamp": 1_600_000_000_123,
        "key": b"k",
        "value": b"v",
        "headers": (),
        **record,
    }
    rejection = Rejection(Stage.CONVERT, "event_id_missing", "the event has no event_id – ärgerlich")
    return DeadLetter(topic, partition, Record(offset, **parts), rejection, 3, 1_700_000_000_007)


class Errors(list[tuple[str, str]]):
    """The troubles that the producer reported."""

    def __call__(self, code: str, text: str) -> None:
        self.append((code, text))

    def is_longer(self, before: int) -> bool:
        """Return whether there are more troubles than before."""
        return len(self) > before


@pytest.fixture
def errors() -> Errors:
    """Return a list that collects the producer's troubles."""
    return Errors()


@pytest_asyncio.fixture
async def make_producer(errors: Errors) -> AsyncIterator[Callable[..., DeadLetterProducer]]:
    """Yield a function that makes producers, which are closed at the end."""
    made: list[DeadLetterProducer] = []

    def make(kafka: Kafka, **options: Any) -> DeadLetterProducer:
        made.append(DeadLetterProducer(kafka.config, on_error=errors, **options))
        return made[-1]

    yield make
    for one in made:
        await one.close()


async def test_letters_are_stored_with_the_original_bytes(
    each_kafka: Kafka, make_producer: Callable[..., DeadLetterProducer], errors: Errors
) -> None:
    """On the partition of the same number, with the nine headers; null stays null. No letters are no work."""
    topic, producer = create_topic(each_kafka, 2), make_producer(each_kafka)
    sent = letter(topic, partition=1, offset=7, key=b"\x00k", value=b"\xff\x00", headers=(("h", b"\x80"),))
    before = time.time() * 1000
    bare = [letter(topic, key=None, value=None), letter(topic, key=b"", value=b"")]
    assert list(await producer.store([sent, *bare])) == [True, True, True]
    assert list(await producer.store([])) == []
    read = read_all(each_kafka, f"{topic}.dead-letters", 3)
    [found] = [one for one in read if one.partition() == 1]
    assert (found.key(), found.value()) == (b"\x00k", b"\xff\x00")
    assert found.headers() == [*letter_headers(sent)]
    assert found.timestamp()[1] >= before - 1000  # retention counts from now, not from the record's own time
    assert [(one.key(), one.value()) for one in read if one is not found] == [(None, None), (b"", b"")]
    assert errors == []


@pytest.mark.parametrize("error", [NoToken("AWS does not answer"), SettingsError("ca.pem cannot be read")])
async def test_a_client_that_lost_its_brokers_is_replaced(
    each_kafka: Kafka,
    make_producer: Callable[..., DeadLetterProducer],
    errors: Errors,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
) -> None:
    """While none can be made, for want of a token or a certificate, nothing is stored, and a line says why."""
    topic, producer = create_topic(each_kafka), make_producer(each_kafka)
    for _ in range(configuration._ALONE):
        producer._watch.take('{ "brokers":{ }, "topics":{ } }')
    answers = [error]

    def make(config: dict[str, Any], on_error: Callable[[Any], None]) -> PolledProducer:
        if answers:
            raise answers.pop()
        return PolledProducer(config, on_error)

    first = producer._together
    monkeypatch.setattr("consumer.adapters.kafka.dead_letters.PolledProducer", make)
    assert list(await producer.store([letter(topic)])) == [False]
    await until(lambda: len(errors) > 0, "the trouble")
    assert errors == [("_AUTHENTICATION", f"dead letters cannot be stored ({error})")]
    assert list(await producer.store([letter(topic)])) == [True]
    second = producer._together
    assert second is not first
    assert list(await producer.store([letter(topic)])) == [True]
    assert producer._together is second


async def test_topics_that_cannot_be_looked_up_now_store_nothing(errors: Errors, tmp_path: Path) -> None:
    """While a certificate is missing; a line says why."""
    authority = Authority(tmp_path, "brokers").file
    config = {
        "bootstrap.servers": "127.0.0.1:1",
        "security.protocol": "ssl",
        "ssl.ca.location": str(authority),
    }
    producer = DeadLetterProducer(config, on_error=errors)
    authority.unlink()
    assert list(await producer.store([letter("orders")])) == [False]
    why = f"KAFKA_SSL_CA_LOCATION: {authority} cannot be read: No such file or directory"
    line = ("_AUTHENTICATION", f"the dead-letter topics cannot be looked up ({why})")
    await until(lambda: line in errors, "the trouble")
    await producer.close()


async def test_many_letters_of_several_topics_in_one_lot(
    each_kafka: Kafka, make_producer: Callable[..., DeadLetterProducer]
) -> None:
    """Of many letters of several topics, all to one fixed topic, each one gets a result, in order."""
    first, second, together = create_topic(each_kafka), create_topic(each_kafka), unique("letters")
    letters = [letter((first, second)[number % 2], offset=number) for number in range(600)]
    assert list(await make_producer(each_kafka, topic=together).store(letters)) == [True] * 600
    found = read_all(each_kafka, together, 600)
    origins = {
        (dict(one.headers() or [])["pinstream.topic"], dict(one.headers() or [])["pinstream.offset"])
        for one in found
    }
    assert len(origins) == 600


@pytest.mark.real_kafka
async def test_missing_topic_is_created_like_its_origin(
    kafka: Kafka, make_producer: Callable[..., DeadLetterProducer]
) -> None:
    """With as many partitions, without compaction, with room for its largest record."""
    topic = create_topic(kafka, 3, max_message_bytes="200000", cleanup_policy="compact")
    largest = b"x" * 199_000
    assert list(await make_producer(kafka).store([letter(topic, partition=2, key=None, value=largest)])) == [
        True
    ]
    metadata = AdminClient({**kafka.config}).list_topics(timeout=WITHIN)
    assert len(metadata.topics[f"{topic}.dead-letters"].partitions) == 3
    [found] = read_all(kafka, f"{topic}.dead-letters", 1)
    assert found.value() == largest


@pytest.mark.real_kafka
async def test_processes_that_miss_the_same_topic_at_once_all_store(
    kafka: Kafka, make_producer: Callable[..., DeadLetterProducer], errors: Errors
) -> None:
    """The later ones wait until the brokers know its partitions: all store at the first try."""
    for _ in range(3):
        topic = create_topic(kafka, 48)
        lots = [[letter(topic, partition=number) for number in range(at, 48, 4)] for at in range(4)]
        tries = await asyncio.gather(*(make_producer(kafka).store(lot) for lot in lots))
        assert [list(one) for one in tries] == [[True] * 12] * 4
        assert len(read_all(kafka, f"{topic}.dead-letters", 48)) == 48
    assert errors == []


class ScriptedBrokers:
    """Brokers that name a topic, when asked for it, with each of `errors` and then with one partition. It exists, and
    no list of all topics has it."""

    def __init__(self, *errors: int) -> None:
        self.errors = [KafkaError(error) for error in errors]

    def __call__(self, config: object) -> ScriptedBrokers:
        return self

    def __enter__(self) -> ScriptedBrokers:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def list_topics(self, topic: str | None = None, timeout: float = 0.0) -> Any:
        found: dict[str, Any] = {}
        if topic is not None and self.errors:
            found[topic] = SimpleNamespace(error=self.errors.pop(0), partitions={})
        elif topic is not None:
            found[topic] = SimpleNamespace(error=None, partitions={0: None})
        return SimpleNamespace(controller_id=1, brokers={1: None}, topics=found)

    def create_topics(self, topics: Sequence[Any], **_: object) -> dict[str, Future[None]]:
        answer = Future[None]()
        answer.set_exception(KafkaException(KafkaError(KafkaError.TOPIC_ALREADY_EXISTS)))
        return {topics[0].topic: answer}

    def describe_configs(self, *_: object, **__: object) -> Any:
        raise KafkaException(KafkaError(KafkaError.TOPIC_AUTHORIZATION_FAILED))


Scripted = Callable[..., tuple[str, DeadLetterProducer]]


@pytest.fixture
def scripted(
    embedded_kafka: Kafka, make_producer: Callable[..., DeadLetterProducer], monkeypatch: pytest.MonkeyPatch
) -> Scripted:
    """Return a function that makes a topic, and a producer whose questions such brokers answer."""

    def make(*errors: int, **options: Any) -> tuple[str, DeadLetterProducer]:
        topic = create_topic(embedded_kafka)
        create_topic(embedded_kafka, name=f"{topic}.dead-letters")
        brokers = ScriptedBrokers(*errors)
        monkeypatch.setattr("consumer.adapters.kafka.configuration.admin_client", brokers)
        return topic, make_producer(embedded_kafka, **options)

    return make


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        (KafkaError.TOPIC_AUTHORIZATION_FAILED, ": grant WRITE on {topic}"),
        (KafkaError.INVALID_REPLICATION_FACTOR, ""),
    ],
)
async def test_a_topic_that_is_named_with_an_error_is_asked_for_again(
    scripted: Scripted, errors: Errors, error: int, advice: str
) -> None:
    """The cause is reported and not remembered: the next letters are stored once it is gone."""
    topic, producer = scripted(error, error)
    name, cause = f"{topic}.dead-letters", KafkaError(error)
    said = f"the dead-letter topic {name} cannot be found or created{advice.format(topic=name)} "
    for _ in range(2):
        before = len(errors)
        assert list(await producer.store([letter(topic)])) == [False]
        await until(partial(errors.is_longer, before), "the trouble")
    assert errors == [(cause.name(), f"{said}({cause.name()}: {cause.str()})")] * 2
    assert list(await producer.store([letter(topic)])) == [True]


async def test_a_topic_that_the_brokers_learn_of_is_waited_for(scripted: Scripted, errors: Errors) -> None:
    """Nothing is reported; one that stays without partitions is, within the limit."""
    topic, producer = scripted(KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError.LEADER_NOT_AVAILABLE)
    assert list(await producer.store([letter(topic)])) == [True]
    assert errors == []
    topic, producer = scripted(*[KafkaError.UNKNOWN_TOPIC_OR_PART] * 1000, timeout=1.0)
    assert list(await producer.store([letter(topic)])) == [False]
    await until(lambda: len(errors) > 0, "the trouble")
    assert [code for code, _ in errors] == ["UNKNOWN_TOPIC_OR_PART"]


async def until_stored(producer: DeadLetterProducer, one: DeadLetter) -> None:
    """Try a few times to store a letter: at first the producer may not know what happened to its topic or broker."""
    for _ in range(10):
        if list(await producer.store([one])) == [True]:
            return
    raise AssertionError("it was not stored")


@pytest.mark.real_kafka
async def test_topic_that_vanished_is_created_again(
    kafka: Kafka, make_producer: Callable[..., DeadLetterProducer]
) -> None:
    """No letter counts falsely as stored; one with fewer partitions than its origin takes all letters."""
    topic = create_topic(kafka, 3)
    name = create_topic(kafka, 1, name=f"{topic}.dead-letters")
    producer = make_producer(kafka, timeout=3.0)
    letters = [letter(topic, partition=number) for number in range(3)]
    assert list(await producer.store(letters)) == [True] * 3
    admin = AdminClient({**kafka.config})
    admin.delete_topics([name])[name].result(WITHIN)
    await until_stored(producer, letter(topic, offset=1))
    assert len(read_all(kafka, name, 1)) == 1


async def test_unreachable_broker_stores_nothing_within_the_limit(
    make_producer: Callable[..., DeadLetterProducer], errors: Errors
) -> None:
    """Without a broker every result is False within the time limit, and the trouble is reported."""
    producer = make_producer(Kafka("127.0.0.1:9", "external"), timeout=1.0)
    started = time.monotonic()
    assert list(await producer.store([letter("orders"), letter("orders", offset=1)])) == [False, False]
    assert time.monotonic() - started < LATE
    assert errors
