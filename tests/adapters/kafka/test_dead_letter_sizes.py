"""Dead letters that the broker refuses for their content: none may block its partition indefinitely (docs/why.md)."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from random import Random
from typing import Any

import pytest
from confluent_kafka import Message
from confluent_kafka.admin import AdminClient, AlterConfigOpType, ConfigEntry, ConfigResource, ResourceType  # type: ignore[attr-defined]  # public, but the package marks no re-export

from consumer.adapters.kafka.dead_letters import DeadLetterProducer
from consumer.adapters.kafka.letters import letter_headers
from tests.adapters.kafka.test_dead_letters import Errors, letter
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, read_all, until

DICE = Random(11)
SECRET = b"secret"


def bulk(size: int) -> bytes:
    """Return `size` bytes that do not compress and begin with a word that no message may show."""
    return SECRET + DICE.randbytes(size - len(SECRET))


@contextlib.asynccontextmanager
async def producing(kafka: Kafka, **config: str | int) -> AsyncIterator[tuple[DeadLetterProducer, Errors]]:
    """Yield a producer and the troubles that it reports; in the names of `config` an underscore is a dot."""
    errors = Errors()
    own = {name.replace("_", "."): value for name, value in config.items()}
    producer = DeadLetterProducer({**kafka.config, **own}, on_error=errors)
    try:
        yield producer, errors
    finally:
        await producer.close()


def topics(kafka: Kafka, limit: int, **settings: str) -> tuple[str, str]:
    """Create a topic, and its dead-letter topic with batches of at most `limit` bytes; return both names."""
    topic = create_topic(kafka)
    name = f"{topic}.dead-letters"
    return topic, create_topic(kafka, 1, name, max_message_bytes=str(limit), **settings)


def headers_of(message: Message) -> dict[str, Any]:
    """Return a letter's headers by name."""
    return dict(message.headers() or ())


def omitted(size: int) -> bytes:
    """Return the header's text for a part of `size` bytes that was omitted."""
    return f"omitted: {size} bytes, too large for this topic; read it at its origin".encode()


@pytest.mark.real_kafka
async def test_too_large_a_letter_is_stored_without_its_value(kafka: Kafka) -> None:
    """On its partition, and reported once, with its origin and no content."""
    topic, name = topics(kafka, 5000)
    sent = letter(topic, offset=41, key=SECRET, value=bulk(20_000), headers=(("h", b"1"),))
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store([sent])) == [True]
        assert list(await producer.store([letter(topic, offset=42)])) == [True]
    first, second = sorted(read_all(kafka, name, 2), key=lambda one: one.offset() or 0)
    assert (first.key(), first.value(), second.value()) == (SECRET, None, b"v")
    assert first.headers() == [*letter_headers(sent, ("value",))]
    assert headers_of(first)["pinstream.value"] == omitted(20_000)
    assert headers_of(first)["pinstream.offset"] == b"41"
    [(code, text)] = errors
    assert code == "MSG_SIZE_TOO_LARGE"
    assert f"{topic} partition 0 offset 41 was stored without its value" in text
    assert text.endswith(f"{name} takes no larger one (max.message.bytes): change it: {command(kafka, name)}")
    assert "secret" not in text


@pytest.mark.real_kafka
async def test_neighbours_of_too_large_a_letter_are_stored_whole(kafka: Kafka) -> None:
    """In one lot of several batches; none is missing or stored twice."""
    topic, name = topics(kafka, 1_500_000)
    large = {0, 7, 8, 29}
    letters = [
        letter(topic, offset=number, value=bulk(2_000_000 if number in large else 300_000))
        for number in range(30)
    ]
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store(letters)) == [True] * 30
    found = {int(headers_of(one)["pinstream.offset"]): one.value() for one in read_all(kafka, name, 30)}
    assert found == {
        number: None if number in large else one.record.value for number, one in enumerate(letters)
    }
    assert len(errors) == len(large)


@pytest.mark.real_kafka
async def test_what_is_not_too_large_by_itself_is_stored_whole(kafka: Kafka) -> None:
    """One by one, unreported; nor do KAFKA_MESSAGE_MAX_BYTES or a small queue stop that."""
    topic, name = topics(kafka, 20_000)
    letters = [letter(topic, offset=number, value=bulk(1000)) for number in range(200)]
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store(letters)) == [True] * 200
    assert sorted(one.value() or b"" for one in read_all(kafka, name, 200)) == sorted(
        one.record.value or b"" for one in letters
    )
    assert errors == []
    topic, name = topics(kafka, 5_000_000)
    small = {"message_max_bytes": 1000, "queue_buffering_max_kbytes": 1, "queue_buffering_max_messages": 1}
    sent = letter(topic, value=bulk(4_000_000))
    async with producing(kafka, **small) as (producer, _):
        assert list(await producer.store([sent, letter(topic)])) == [True, True]
    assert sent.record.value in [one.value() for one in read_all(kafka, name, 2)]


@pytest.mark.real_kafka
@pytest.mark.parametrize(
    ("key", "header", "omitted"),
    [
        (100, 20_000, ("value", "headers")),
        (20_000, 100, ("value", "headers", "key")),
        (20_000, 20_000, ("value", "headers", "key")),
    ],
)
async def test_further_parts_are_omitted_of_a_letter_still_too_large(
    kafka: Kafka, key: int, header: int, omitted: tuple[str, ...]
) -> None:
    """Its own headers, then its key; each has its header."""
    topic, name = topics(kafka, 5000)
    sent = letter(topic, key=bulk(key), value=b"v", headers=(("h", bulk(header)),))
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store([sent])) == [True]
    [found] = read_all(kafka, name, 1)
    assert found.headers() == [*letter_headers(sent, omitted)]
    assert found.value() is None
    assert found.key() == (None if "key" in omitted else sent.record.key)
    [(_, text)] = errors
    assert f"without its {' and '.join(omitted)} " in text


@pytest.mark.real_kafka
async def test_a_topic_that_takes_not_even_the_reason_stores_nothing_until_it_does(kafka: Kafka) -> None:
    """It is reported; once the limit is raised, the letter is stored whole."""
    topic, name = topics(kafka, 100)
    sent = letter(topic, value=bulk(9000))
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store([sent])) == [False]
        await until(lambda: len(errors) > 0, "the trouble")
        assert [code for code, _ in errors] == ["MSG_SIZE_TOO_LARGE"]
        assert "was not stored" in errors[0][1]
        assert command(kafka, name) in errors[0][1]
        set_setting(kafka, name, "max.message.bytes", "50000")
        assert list(await producer.store([sent])) == [True]
    [found] = read_all(kafka, name, 1)
    assert found.value() == sent.record.value
    assert "secret" not in str(errors)


@pytest.mark.real_kafka
async def test_larger_than_a_segment_or_a_request_is_too_large_as_well(kafka: Kafka) -> None:
    """Above 100 MiB it is not tried whole: a broker would close the connection, as in an outage."""
    topic, name = topics(kafka, 4_000_000, segment_bytes=str(1024 * 1024))
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store([letter(topic, value=bulk(2_000_000))])) == [True]
        assert errors[0][1].endswith(command(kafka, name, "segment.bytes=4000002"))
        [found] = read_all(kafka, name, 1)
        assert headers_of(found)["pinstream.value"] == omitted(2_000_000)
        topic, name = topics(kafka, 200_000_000)
        assert list(await producer.store([letter(topic, value=bytes(105_000_000))])) == [True]
    [found] = read_all(kafka, name, 1)
    assert headers_of(found)["pinstream.value"] == omitted(105_000_000)


@pytest.mark.real_kafka
@pytest.mark.parametrize("limit", [20_000, 3_000_000, 2**31 - 1])
async def test_a_created_topic_takes_more_than_its_origin(kafka: Kafka, limit: int) -> None:
    """So that its largest record fits, up to the largest limit."""
    topic = create_topic(kafka, max_message_bytes=str(limit))
    size = min(limit, 3_000_000) - 200
    letters = [
        letter(topic, offset=number, value=bulk(size), headers=(("h", b"x" * 80),)) for number in range(3)
    ]
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store(letters)) == [True] * 3
    name = f"{topic}.dead-letters"
    assert {one.value() for one in read_all(kafka, name, 3)} == {one.record.value for one in letters}
    assert limit_of(kafka, name) > limit or limit == 2**31 - 1
    assert errors == []


@pytest.mark.real_kafka
async def test_a_record_that_the_topic_cannot_take_does_not_take_its_batch_along(kafka: Kafka) -> None:
    """A compacted topic refuses the whole batch of a letter without a key."""
    topic, name = topics(kafka, 1_000_000, cleanup_policy="compact")
    letters = [
        letter(topic, key=None if number == 1 else b"k%d" % number, offset=number) for number in range(3)
    ]
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store(letters)) == [True, False, True]
        await until(lambda: len(errors) == 2, "both troubles")
        set_setting(kafka, name, "cleanup.policy", "delete")
        async with asyncio.timeout(30):  # the broker takes a moment to learn it
            while list(await producer.store(letters[1:2])) != [True]:
                pass
    assert {one.key() for one in read_all(kafka, name, 3)} == {b"k0", None, b"k2"}
    (found, compacted), (code, refused), *_ = errors
    assert (found, code) == ("INVALID_CONFIG", "INVALID_RECORD")
    assert compacted.startswith(f"{name} is compacted (cleanup.policy)")
    assert f"a dead letter was not stored: {name} takes none without a key" in refused
    for text in (compacted, refused):
        assert command(kafka, name, "cleanup.policy=delete") in text


@pytest.mark.real_kafka
async def test_a_compacted_topic_is_reported_before_it_drops_letters(kafka: Kafka) -> None:
    """It takes letters with a key, and later drops all but the last of each."""
    topic, name = topics(kafka, 1_000_000, cleanup_policy="compact,delete")
    async with producing(kafka) as (producer, errors):
        assert list(await producer.store([letter(topic), letter(topic, offset=1)])) == [True, True]
        assert list(await producer.store([letter(topic, offset=2)])) == [True]
    [(code, text)] = errors
    assert code == "INVALID_CONFIG"
    assert text.endswith(
        f"of each key only the last is kept; change it: {command(kafka, name, 'cleanup.policy=delete')}"
    )


def limit_of(kafka: Kafka, topic: str) -> int:
    """Return the topic's ``max.message.bytes``."""
    resource = ConfigResource(ResourceType.TOPIC, topic)
    admin = AdminClient({**kafka.config})
    described: Any = admin.describe_configs([resource])[resource].result(WITHIN)
    return int(described["max.message.bytes"].value)


def set_setting(kafka: Kafka, topic: str, name: str, value: str) -> None:
    """Change a setting of the topic."""
    entry = ConfigEntry(name, value, incremental_operation=AlterConfigOpType.SET)
    resource = ConfigResource(ResourceType.TOPIC, topic, incremental_configs=[entry])
    admin = AdminClient({**kafka.config})
    admin.incremental_alter_configs([resource])[resource].result(WITHIN)


def command(kafka: Kafka, topic: str, setting: str = "max.message.bytes=2097152") -> str:
    """Return the command that a message has for changing a setting of the topic."""
    return (
        f"`kafka-configs.sh --bootstrap-server {kafka.bootstrap_servers} --alter --entity-type topics "
        f"--entity-name {topic} --add-config {setting}`"
    )
