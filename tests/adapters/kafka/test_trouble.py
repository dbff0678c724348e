"""What librdkafka says of its connections, as people read it: once, without its inner words."""

from __future__ import annotations

import logging

import pytest
from confluent_kafka import KafkaError

from consumer.adapters.kafka.configuration import LOGGER
from consumer.adapters.kafka.trouble import Teller, describe_error, words

REFUSED = "{0}/bootstrap: Connect to ipv4#{1} failed: Connection refused (after 0ms in state CONNECT)"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (REFUSED.format("127.0.0.1:1", "127.0.0.1:1"), "no connection to 127.0.0.1:1: Connection refused"),
        (
            REFUSED.format("sasl_ssl://kafka:9092", "10.0.0.3:9092"),
            "no connection to kafka:9092 (10.0.0.3:9092): Connection refused",
        ),
        (
            "kafka:9092/1: Connect to ipv6#[::1]:9092 failed: Connection refused (after 12ms in state CONNECT, 4 "
            "identical error(s) suppressed)",
            "no connection to kafka:9092 ([::1]:9092): Connection refused",
        ),
        (
            "kafka:9092/1: Disconnected (after 600000ms in state UP)",
            "kafka:9092/1: Disconnected",
        ),
        ("3/3 brokers\n are  down", "3/3 brokers are down"),
    ],
)
def test_it_is_one_readable_line(said: str, shown: str) -> None:
    """Who is not to be reached, and why; neither the time nor the state it happened in, which differ each time."""
    error = KafkaError(KafkaError._TRANSPORT, said)
    assert words(error) == shown
    assert describe_error(error) == f"_TRANSPORT: {shown}"


def test_it_is_told_once() -> None:
    """With the code beside the words, not in them; a lone broker's error says already that all are away."""
    told: list[tuple[str, str]] = []
    tell = Teller(lambda *one: told.append((one[0], one[1])))
    for code, said in (
        (KafkaError._TRANSPORT, REFUSED.format("a:1", "10.0.0.1:1")),
        (KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down"),
        (KafkaError._ALL_BROKERS_DOWN, "0/2 brokers are down"),
        (KafkaError._ALL_BROKERS_DOWN, "11/11 brokers are down"),
    ):
        tell(KafkaError(code, said))
    assert told == [
        ("_TRANSPORT", "no connection to a:1 (10.0.0.1:1): Connection refused"),
        ("_ALL_BROKERS_DOWN", "11/11 brokers are down"),
    ]


def test_a_lone_broker_that_says_nothing_is_told_of() -> None:
    """It takes the connection and never answers: that it is down is all that librdkafka says."""
    told: list[tuple[str, str]] = []
    Teller(lambda *one: told.append((one[0], one[1])))(
        KafkaError(KafkaError._ALL_BROKERS_DOWN, "1/1 brokers are down")
    )
    assert told == [("_ALL_BROKERS_DOWN", "1/1 brokers are down")]


def test_its_own_line_of_the_same_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """librdkafka logs what it also hands over; its other lines stay. Who debugs sees all."""

    def log() -> None:
        for facility in ("FAIL", "MAXPOLL"):
            LOGGER.log(logging.ERROR, "%s [%s] %s", facility, "pinstream#consumer-1", "[thrd:main]: words")

    log()
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["MAXPOLL"]
    with caplog.at_level(logging.DEBUG):
        log()
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [
        "MAXPOLL",
        "FAIL",
        "MAXPOLL",
    ]
