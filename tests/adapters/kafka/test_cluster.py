"""Queries about the cluster and settings of topics."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from types import SimpleNamespace

import confluent_kafka
import pytest

from consumer.adapters.kafka import cluster as cluster_module
from consumer.adapters.kafka.cluster import (
    TopicSettings,
    describe_cluster,
    lacks_consumer_protocol,
    topic_settings,
)
from consumer.adapters.kafka.ranges import Bound, resolve_ranges
from consumer.errors import KafkaError, PinstreamError, SettingsError
from tests.support.kafka.harness import Kafka, committed, create_topic, unique
from tests.support.limits import LATE

NOBODY = "127.0.0.1:9"


async def reported(config: dict[str, str], topics: list[str], timeout: float = 10.0) -> str:
    """Return the one line that `describe_cluster` fails with."""
    with pytest.raises(KafkaError) as raised:
        await describe_cluster(config, topics, timeout)
    line = str(raised.value)
    assert "\n" not in line
    return line


async def test_describes_brokers_and_topics(each_kafka: Kafka) -> None:
    """The view has the brokers, each topic's number of partitions, and all other topics of the cluster."""
    topic = create_topic(each_kafka, 4)
    other = create_topic(each_kafka, 4)
    view = await describe_cluster(each_kafka.config, [topic], 10.0)
    assert each_kafka.kind == "external" or view.brokers == (each_kafka.bootstrap_servers,)
    assert view.topics == {topic: 4}
    assert view.known[other] == 4
    assert (view.unmatched, view.leaderless) == ((), ())


async def test_a_topic_named_with_an_error_is_no_topic_of_no_partitions(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neither `run` nor a replay takes it for an empty topic."""
    error = confluent_kafka.KafkaError(confluent_kafka.KafkaError.LEADER_NOT_AVAILABLE)
    entry = SimpleNamespace(partitions={}, error=error)
    partition = SimpleNamespace(leader=1)
    there = SimpleNamespace(partitions={0: partition}, error=None)
    metadata = SimpleNamespace(brokers={}, topics={"orders": entry, "visits": there})
    monkeypatch.setattr(cluster_module, "meet_cluster", lambda *_: contextlib.nullcontext((None, metadata)))
    assert (await describe_cluster({}, ["visits"], 1.0)).known == {"visits": 1}
    with pytest.raises(PinstreamError, match="the topic orders does not exist, or this user may not see it"):
        await describe_cluster({}, ["orders"], 1.0)
    with pytest.raises(PinstreamError, match="the topic orders does not exist, or this user may not see it"):
        await resolve_ranges({}, ["orders"], (), Bound("beginning"), Bound("end"), 1.0)


@pytest.mark.real_kafka
async def test_pattern_names_what_it_matches(kafka: Kafka) -> None:
    """But no dead-letter topics, and none of Kafka's own; one that matches nothing is reported."""
    prefix = unique("shop")
    orders = create_topic(kafka, 2, name=f"{prefix}.orders")
    create_topic(kafka, name=f"{prefix}.orders.dead-letters")
    committed(kafka, unique("group"), orders)  # the first question for an offset makes a topic of Kafka's own
    view = await describe_cluster(kafka.config, [f"^{prefix}.*", orders, "^no-such-.*", "^__con"], 10.0)
    assert "__consumer_offsets" in view.known
    assert view.topics == {orders: 2}
    assert view.unmatched == ("^no-such-.*", "^__con")


async def test_a_missing_topic_is_named_with_the_nearest(each_kafka: Kafka) -> None:
    """In one line, with the setting; it is not created."""
    topic = create_topic(each_kafka)
    mistyped = topic[:-1] + "_"
    line = await reported(each_kafka.config, [mistyped])  # type: ignore[arg-type]
    assert mistyped in line
    assert topic in line
    assert "KAFKA_TOPICS" in line
    assert mistyped not in (await describe_cluster(each_kafka.config, [topic], 10.0)).known


async def test_brokers_that_are_away_or_silent_are_reported_in_time() -> None:
    """Address and setting are named within the limit, and a name that does not resolve."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        for address in (NOBODY, f"127.0.0.1:{server.getsockname()[1]}"):
            started = time.monotonic()
            line = await reported({"bootstrap.servers": address}, ["orders"], 1.0)
            assert time.monotonic() - started < LATE
            assert f"no broker answered at {address} within 1 s: check KAFKA_BOOTSTRAP_SERVERS" in line
    line = await reported({"bootstrap.servers": "no-such-host.invalid:9092"}, ["orders"], 10.0)
    assert "resolved" in line


@pytest.mark.real_kafka
async def test_a_refused_login_is_reported_at_once(kafka: Kafka) -> None:
    """A wrong password is an error at once that names the variables to check, and not the password."""
    if kafka.sasl_bootstrap_servers is None:
        pytest.skip("this broker has no SASL listener that we know of")
    config = {
        "bootstrap.servers": kafka.sasl_bootstrap_servers,
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "PLAIN",
        "sasl.username": "pinstream",
        "sasl.password": "not-the-password",
    }
    started = time.monotonic()
    line = await reported(config, ["orders"], 60.0)
    assert time.monotonic() - started < 2 * LATE
    assert "KAFKA_SASL_PASSWORD" in line
    assert "not-the-password" not in line


@pytest.mark.real_kafka
async def test_tls_or_a_login_against_plaintext_says_so(kafka: Kafka) -> None:
    """With the port or the setting to change, and not the password."""
    config = {"bootstrap.servers": kafka.bootstrap_servers, "security.protocol": "SSL"}
    line = await reported(config, ["orders"], 2.0)
    assert "KAFKA_SECURITY_PROTOCOL" in line
    assert "ssl://" in line
    login = {"sasl.mechanism": "PLAIN", "sasl.username": "u", "sasl.password": "not-to-be-shown"}
    line = await reported({**config, "security.protocol": "SASL_PLAINTEXT", **login}, ["orders"], 2.0)
    assert f"{kafka.bootstrap_servers} takes no login: use the port of the brokers' SASL listener" in line
    assert "or set KAFKA_SECURITY_PROTOCOL=PLAINTEXT" in line
    assert "not-to-be-shown" not in line


@pytest.mark.parametrize(
    ("setting", "topics", "named"),
    [({"no.such.thing": "1"}, [], "KAFKA_NO_SUCH_THING"), ({}, ["^(unclosed"], "KAFKA_TOPICS")],
)
async def test_wrong_settings_name_the_variable(
    embedded_kafka: Kafka, setting: dict[str, str], topics: list[str], named: str
) -> None:
    """A property that librdkafka does not know, and what is no value or no regular expression."""
    with pytest.raises(SettingsError, match=named):
        await describe_cluster({**embedded_kafka.config, **setting}, topics, 10.0)


async def test_a_broker_that_requires_tls_is_reported_as_such() -> None:
    """It closes each connection at once, which librdkafka only logs."""

    async def end(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    server = await asyncio.start_server(end, "127.0.0.1", 0)
    address = f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        line = await reported({"bootstrap.servers": address}, ["t"], 2.0)
        assert (
            "requires TLS or a login: set KAFKA_SECURITY_PROTOCOL (SASL_SSL, SSL or SASL_PLAINTEXT)" in line
        )
        login = {"security.protocol": "SASL_PLAINTEXT", "sasl.mechanism": "PLAIN"}
        credentials = {"sasl.username": "u", "sasl.password": "not-to-be-shown"}
        line = await reported({"bootstrap.servers": address, **login, **credentials}, ["t"], 2.0)
        assert "set KAFKA_SECURITY_PROTOCOL (SASL_SSL)" in line
        assert "not-to-be-shown" not in line


@pytest.mark.real_kafka
async def test_plaintext_against_a_login_says_so(kafka: Kafka) -> None:
    """If the broker closes a connection in time, which a busy one may not within 2 s."""
    if kafka.sasl_bootstrap_servers is None:
        pytest.skip("this broker has no SASL listener that is known here")
    for limit in (2.0, 8.0, 30.0):
        line = await reported({"bootstrap.servers": kafka.sasl_bootstrap_servers}, ["t"], limit)
        if "closes them at once" in line:
            break
        assert "check KAFKA_BOOTSTRAP_SERVERS, KAFKA_SECURITY_PROTOCOL" in line
    assert "set KAFKA_SECURITY_PROTOCOL" in line


@pytest.mark.parametrize(
    ("log", "lacks"),
    [
        ("ApiKey Produce (0) Versions 0..9 ApiKey AlterClientQuotasRequest (49) Versions 0..1", True),
        ("ApiKey Produce (0) Versions 0..11 ApiKey ConsumerGroupHeartbeat (68) Versions 0..0", True),
        ("ApiKey Produce (0) Versions 0..13 ApiKey ConsumerGroupHeartbeat (68) Versions 0..1", False),
        ("ApiKey Fetch (1) Versions 4..18 ApiKey ConsumerGroupHeartbeat (68) Versions 1..12", False),
        ("nothing was heard of the broker", False),
    ],
    ids=["2.8", "3.9, a preview", "4.3", "later", "no answer"],
)
def test_which_brokers_lack_the_consumer_protocol(log: str, lacks: bool) -> None:
    """Only brokers whose list of APIs lacks the protocol's final version are refused."""
    assert lacks_consumer_protocol(log) is lacks


async def test_only_a_member_needs_the_group_protocol(
    each_kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`produce`, `offsets` and `dead-letters` never join."""
    topic = create_topic(each_kafka)
    monkeypatch.setattr(cluster_module, "lacks_consumer_protocol", lambda _: True)
    config = {**each_kafka.config, "group.protocol": "consumer"}
    assert topic in (await describe_cluster(config, [topic], 10.0)).topics
    with pytest.raises(KafkaError, match="KAFKA_GROUP_PROTOCOL=consumer"):
        await describe_cluster(config, [topic], 10.0, joins=True)


@pytest.mark.real_kafka
async def test_settings_of_topics(kafka: Kafka, embedded_kafka: Kafka) -> None:
    """Of each existing topic; none, in time, by the embedded broker or while brokers are away."""
    plain = create_topic(kafka, max_message_bytes="123456")
    compacted = create_topic(kafka, cleanup_policy="compact", max_message_bytes="2000000")
    found = await topic_settings({**kafka.config}, [plain, unique("missing"), compacted], 10.0)
    assert found == {plain: TopicSettings(False, 123456), compacted: TopicSettings(True, 2000000)}
    begun = time.monotonic()
    topic = create_topic(embedded_kafka)
    assert await topic_settings({**embedded_kafka.config}, [topic], 30.0) == {}
    assert await topic_settings({"bootstrap.servers": NOBODY, "log_level": 0}, ["orders"], 0.5) == {}
    assert time.monotonic() - begun < 15
