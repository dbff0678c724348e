"""librdkafka's configuration: its layers, fixed and refused properties, and the topics that a template can name."""

from __future__ import annotations

import contextlib
import json
import logging
import re
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest
from confluent_kafka import KafkaError
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka.configuration import (
    BrokerWatch,
    admin_client,
    admin_config,
    check_files,
    consumer_config,
    dead_letter_pattern,
    dead_letter_topic,
    is_cooperative,
    make_client,
    never_matched,
    producer_config,
    variable,
)
from consumer.engine.messages import BrokersSilent, BrokerTimes
from consumer.errors import SettingsError

topic_names = st.text("abcXYZ019._-", min_size=1, max_size=20)
templates = st.builds(
    lambda before, mark, after: before + mark + after,
    st.text("ab._-", max_size=5),
    st.sampled_from(["{topic}", ""]),
    st.text("ab._-", min_size=1, max_size=5),
)


def consuming(reset: str = "earliest", ignore: str | None = None, **user: Any) -> dict[str, Any]:
    """Return a consumer's configuration; in the names of `user` an underscore is a dot."""
    given = {name.replace("_", "."): value for name, value in user.items()}
    return consumer_config(given, offset_reset=reset, ignore=ignore)


def test_user_properties_win_over_defaults_and_not_over_the_guarantee() -> None:
    """The user's properties replace defaults, also by another name, but none that keeps records from being lost."""
    assert consuming(max_partition_fetch_bytes="1048576")["fetch.message.max.bytes"] == "1048576"
    wrong: dict[str, Any] = {
        "enable_auto_commit": "true",
        "isolation_level": "read_uncommitted",
        "check_crcs": False,
    }
    config = consuming(client_id="mine", **wrong)
    fixed = (config["enable.auto.commit"], config["isolation.level"], config["enable.auto.offset.store"])
    assert (config["client.id"], *fixed, config["check.crcs"]) == (
        "mine",
        False,
        "read_committed",
        False,
        True,
    )
    plain = producer_config({}, delivery_timeout=2.5)
    assert producer_config({"acks": "0", "linger.ms": "7"}, delivery_timeout=2.5) == {
        **plain,
        "linger.ms": "7",
    }
    assert plain["delivery.timeout.ms"] == 2500


@pytest.mark.parametrize(
    ("reset", "librdkafka"), [("earliest", "earliest"), ("latest", "earliest"), ("error", "error")]
)
def test_librdkafka_itself_never_resets_to_the_end(reset: str, librdkafka: str) -> None:
    """A reset inside librdkafka goes to the beginning or is an error: only an explicit start may skip records."""
    assert consuming(reset)["auto.offset.reset"] == librdkafka


def test_new_group_protocol_omits_what_the_broker_decides() -> None:
    """With KIP-848 the properties that the broker decides are omitted, and librdkafka accepts the rest."""
    user = {"group.protocol": "consumer", "session.timeout.ms": "9000", "heartbeat.interval.ms": "100"}
    config = consumer_config(user, offset_reset="earliest", ignore=None)
    assert (
        not {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"} & config.keys()
    )
    assert is_cooperative(config)
    confluent_kafka.Consumer({**config, "bootstrap.servers": "127.0.0.1:9", "log_level": 0}).close()


def test_a_property_for_another_kind_of_client_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """A property for another kind of client, such as a group setting for a producer, is neither refused nor logged."""
    user = {
        "bootstrap.servers": "127.0.0.1:9",
        "group.id": "g",
        "session.timeout.ms": "9000",
        "linger.ms": "5",
        "group.instance.id": "one",
        "fetch.max.bytes": "70000",
        "compression.type": "zstd",
        "retries": "3",
        "partition.assignment.strategy": "range",
        "partitioner": "random",
        "client.rack": "r",
        "max.partition.fetch.bytes": "70000",
        "queue.buffering.max.messages": "10",
        "auto.offset.reset": "latest",
    }
    with caplog.at_level(logging.INFO):
        for protocol in ("classic", "consumer"):
            config = {**user, "group.protocol": protocol}
            for client in (
                make_client(
                    confluent_kafka.Consumer, consumer_config(config, offset_reset="error", ignore=None)
                ),
                make_client(confluent_kafka.Producer, producer_config(config, delivery_timeout=10)),
                admin_client(config),
            ):
                client.poll(0.1)  # so that librdkafka's log arrives
                client.__exit__(None, None, None)
    assert caplog.messages == []


def test_topics_that_the_user_hides() -> None:
    """They stay hidden beside the dead-letter topics, and can still be written to and queried."""
    assert consuming(topic_blacklist="^secret", ignore="^dlq$")["topic.blacklist"] == "^secret,^dlq$"
    user = {"sasl.username": "u", "topic.blacklist": "dead"}
    for config in (producer_config(user, delivery_timeout=1), admin_config(user)):
        assert config["sasl.username"] == "u"
        assert "topic.blacklist" not in config


@given(templates, topic_names)
def test_pattern_matches_every_topic_that_the_template_names(template: str, topic: str) -> None:
    """The pattern that keeps dead-letter topics from being consumed matches every name that the template can make."""
    assert re.match(dead_letter_pattern(template), dead_letter_topic(template, topic))


@given(topic_names)
def test_pattern_spares_the_topics_themselves(topic: str) -> None:
    """With the default template only names with its ending are hidden; a dot in the template matches only a dot."""
    hidden = re.match(dead_letter_pattern("{topic}.dead-letters"), topic) is not None
    assert hidden == (topic.endswith(".dead-letters") and topic != ".dead-letters")
    assert not re.match(dead_letter_pattern("{topic}.dead-letters"), topic + "-dead-letters")


def test_pattern_omits_what_kafka_keeps_for_itself() -> None:
    """Kafka's own topics are known by their whole names: others may begin or end like them."""
    own = ["__consumer_offsets", "__transaction_state", "__share_group_state"]
    spared = ["__consumer_offsets_copy", "our__consumer_offsets", "__orders", "__consumerxoffsets"]
    hidden = re.compile(never_matched(["{topic}.dead-letters", "shop.receipts"]))
    assert [name for name in own + spared if hidden.match(name)] == own
    assert hidden.match("orders.dead-letters")
    assert hidden.match("shop.receipts")
    assert not hidden.match("shop-receipts")
    assert not hidden.match("shop.receipts.eu")


@pytest.mark.parametrize(
    ("slip", "hint"), [("groupid", "did you mean KAFKA_GROUP_ID?"), ("no.such.thing", "correct or remove it")]
)
def test_an_unknown_property_is_named_with_the_nearest(slip: str, hint: str) -> None:
    """With the environment's variable, and the nearest known one, if any is similar."""
    with pytest.raises(SettingsError) as caught:
        make_client(confluent_kafka.Consumer, {"group.id": "shop", slip: "1"})
    assert str(caught.value) == f"{variable(slip)} is not a librdkafka property; {hint}"


def broker(**members: Any) -> dict[str, Any]:
    """Return the statistics of one broker in librdkafka's form, as far as the watch reads them."""
    times = {"cnt": 2, "avg": 1500, "p99": 2000, "max": 2500, "outofrange": 0}
    known = {"name": "b:9092/3", "nodeid": 3, "source": "learned", "rtt": times, "throttle": {"sum": 0}}
    return {**known, "state": "UP", "rx": 0, "waitresp_cnt": 0, **members}


def reported(
    watch: BrokerWatch, heard: list[Sequence[BrokerTimes]], *brokers: dict[str, Any]
) -> list[BrokerTimes]:
    """Return the times that `watch` reports for these brokers."""
    inner = ", ".join(f'"{number}":{json.dumps(one)}' for number, one in enumerate(brokers))
    watch.take(f'{{ "name":"x", "brokers":{{ {inner} }}, "topics":{{ "orders":{{ "not": "read' + "...")
    return list(heard.pop())


def test_times_of_brokers_are_in_seconds() -> None:
    """Times are in seconds, the throttle is a sum since the start, and a broker without requests is omitted."""
    heard: list[Sequence[BrokerTimes]] = []
    watch = BrokerWatch(heard.append)
    bootstrap = broker(nodeid=-1, source="configured")
    coordinator = broker(name="GroupCoordinator", nodeid=-1, source="logical")
    silent = broker(nodeid=4, rtt={"cnt": 0, "avg": 0, "p99": 0, "max": 0, "outofrange": 0})
    found = reported(watch, heard, bootstrap, broker(throttle={"sum": 300}), coordinator, silent)
    assert found == [BrokerTimes("3", 0.0015, 0.002, 0.3), BrokerTimes("coordinator", 0.0015, 0.002, 0.0)]
    assert reported(watch, heard, broker(throttle={"sum": 200}))[0].throttled == 0.5
    beyond = {"cnt": 1, "avg": 3e6, "p99": 6000, "max": 3e6, "outofrange": 1}
    other = BrokerWatch(heard.append)
    assert reported(other, heard, broker(rtt=beyond)) == [BrokerTimes("3", 3.0, 3.0, 0.0)]


def test_times_of_brokers_are_those_of_the_last_ten_seconds() -> None:
    """Five statistics of two seconds: the average weighs requests, and the percentile is the highest."""
    heard: list[Sequence[BrokerTimes]] = []
    watch = BrokerWatch(heard.append)
    slow = {"cnt": 1, "avg": 9000, "p99": 9000, "max": 9000, "outofrange": 0}
    assert reported(watch, heard, broker(rtt=slow)) == [BrokerTimes("3", 0.009, 0.009, 0.0)]
    assert reported(watch, heard, broker()) == [BrokerTimes("3", 0.004, 0.009, 0.0)]
    for _ in range(4):
        latest = reported(watch, heard, broker())
    assert latest == [BrokerTimes("3", 0.0015, 0.002, 0.0)]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"brokers": {"a": {}}}', '{"brokers": 3}', "not JSON"])
def test_statistics_of_another_form_harm_nothing(text: str) -> None:
    """Statistics of another form are ignored, since an error would be raised by the poll."""
    heard: list[Sequence[BrokerTimes]] = []
    BrokerWatch(heard.append).take(text)
    assert not heard


SERVERS = {"bootstrap.servers": "kafka:9092"}
REFUSED = KafkaError(
    KafkaError._TRANSPORT,
    "kafka:9092/1: Connect to ipv4#10.0.0.3:9092 failed: Connection refused (after 0ms in state CONNECT)",
)
COORDINATOR = broker(rx=3, name="GroupCoordinator", nodeid=-1, source="logical")
DOWN = {"state": "TRY_CONNECT"}
AWAY = ("query-coord", "wait-coord", "wait-broker", "wait-broker-transport")
"""States of a group without a coordinator."""
ALL_DOWN = (broker(rx=7, **DOWN), {**COORDINATOR, **DOWN})
FROZEN = (broker(rx=7, waitresp_cnt=1),)


class Watched:
    """The watch of a client, which gets statistics every two seconds of the client's clock."""

    def __init__(self, **user: str) -> None:
        self.reported: list[BrokersSilent] = []
        self.watch = BrokerWatch(lambda _: None, self.reported.append)
        self.watch.watching({**SERVERS, **user})
        self.now = 98.0

    def take(self, *brokers: dict[str, Any], after: float = 2.0, group: str = "up") -> float | None:
        """Take the next statistics, in the form of librdkafka 2.16; return for how long no coordinator answers."""
        self.now += after
        known = json.dumps({str(at): one for at, one in enumerate(brokers)})
        self.watch.take(
            f'{{ "ts":{int(self.now * 1e6)}, "brokers":{known}, "topics":{{ "orders":{{}} }} '
            f', "cgrp": {{ "state": "{group}", "stateage": 3, "join_state": "init" }}, "tx":2}}'
        )
        return self.watch.coordinator_silent


@pytest.mark.parametrize(
    ("checks", "reported"),
    [
        (
            [(broker(rx=7), COORDINATOR), *[ALL_DOWN] * 4, *[(broker(rx=8), COORDINATOR)] * 2],
            [("kafka:9092, connection refused", 6.0), ("kafka:9092, connection refused", 8.0), (None, 0.0)],
        ),
        ([FROZEN] * 4, [("kafka:9092, connection refused", 6.0)]),
        ([(broker(rx=7), COORDINATOR)] * 6, []),
        ([(broker(rx=7), {**COORDINATOR, "waitresp_cnt": 1})] * 6, []),
        ([(broker(rx=7, **DOWN), broker(rx=number)) for number in range(6)], []),
    ],
    ids=["all are down", "frozen", "nothing is asked", "it waits for other members", "one of two answers"],
)
def test_brokers_that_do_not_answer_are_reported_within_eight_seconds(
    checks: list[tuple[dict[str, Any], ...]], reported: list[tuple[str | None, float]]
) -> None:
    """With the third statistics in a row without an answer and each that follows; the first answer ends it."""
    watched = Watched()
    for brokers in checks:
        watched.take(*brokers)
        watched.watch.heard(REFUSED)
    assert [(one.why, one.seconds) for one in watched.reported] == reported


def test_an_error_right_after_the_last_answer_says_why() -> None:
    """librdkafka reports equal errors once: one is kept over the interval of the last answer, and not over the next."""
    watched = Watched()
    watched.take(broker(rx=7))
    watched.watch.heard(REFUSED)
    for one in (broker(rx=8), *[broker(rx=8, **DOWN)] * 3):
        watched.take(one)
    assert watched.reported == [BrokersSilent("kafka:9092, connection refused", 6.0)]
    watched.watch.heard(REFUSED)
    for one in (broker(rx=9), broker(rx=10), *[broker(rx=10, **DOWN)] * 3):
        watched.take(one)
    assert watched.reported[1:] == [BrokersSilent(None), BrokersSilent("kafka:9092, no answer", 6.0)]


@pytest.mark.parametrize(("wait", "reported_after"), [("20000", 13), ("500", 3), ("soon", 3)])
def test_a_fetch_that_may_wait_is_no_silence(wait: str, reported_after: int) -> None:
    """With KAFKA_FETCH_WAIT_MAX_MS a broker without records answers only after that time; silence is told after it."""
    watched = Watched(**{"fetch.wait.max.ms": wait})
    for _ in range(reported_after + 1):
        assert watched.reported == []
        watched.take(*FROZEN)
    assert watched.reported == [BrokersSilent("kafka:9092, no answer", 2.0 * reported_after)]


def test_what_interrupts_statistics_is_no_silence() -> None:
    """Neither that the process stood still, nor that another client, which counts its answers from 0, replaced one."""
    watched = Watched()
    for seconds, answers in ((2.0, 7), (600.0, 7), (2.0, 8), (2.0, 8)):
        watched.take(broker(rx=answers, waitresp_cnt=1), after=seconds)
    assert watched.reported == []
    watched = Watched()
    for _ in range(4):
        watched.take(broker(rx=900, **DOWN))
    watched.watch.watching(SERVERS)
    watched.take(broker(rx=0, **DOWN))
    watched.take(broker(rx=1))
    assert [(one.why is None, one.seconds) for one in watched.reported] == [
        (False, 6.0), (False, 8.0), (True, 0.0)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("checks", "silent"),
    [
        (
            [(state, rx) for rx, state in enumerate(("up", *AWAY, "up", "query-coord"))],
            [None, None, None, 6.0, 8.0, None, None],
        ),
        ([("init", 1), *[("wait-coord", rx) for rx in range(2, 6)]], [None, None, None, 6.0, 8.0]),
        ([("up" if rx < 5 else "term", rx) for rx in range(10)], [None] * 10),
        ([("wait-coord", rx) for rx in (1, 1, 1, 1, 1, 2, 3, 4, 5)], [None] * 7 + [6.0, 8.0]),
    ],
    ids=["any state but one", "from the start", "there is one", "while no broker answers that is said"],
)
def test_a_coordinator_that_does_not_answer_is_seen_within_eight_seconds(
    checks: list[tuple[str, int]], silent: list[float | None]
) -> None:
    """With the third statistics in a row without one, from one answer of the brokers on."""
    watched = Watched()
    assert [watched.take(broker(rx=rx, waitresp_cnt=1), group=state) for state, rx in checks] == silent


def test_a_client_without_brokers_is_seen() -> None:
    """It is stranded when ten statistics in a row name none; for a moment that may be while brokers are replaced."""
    watched, configured = Watched(), broker(nodeid=-1, source="configured")
    for one in (*[()] * 9, (broker(),), *[(COORDINATOR,)] * 9, (configured,), *[(COORDINATOR,)] * 9):
        watched.take(*one)
        assert not watched.watch.stranded
    watched.take(COORDINATOR)
    assert watched.watch.stranded
    watched.watch.watching({})
    assert not watched.watch.stranded, "another client"


def test_files_that_cannot_be_opened_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing one, or one that exists and cannot be opened; a folder of authorities is accepted."""
    monkeypatch.chdir(tmp_path)  # the name of a socket is short
    with contextlib.closing(socket.socket(socket.AF_UNIX)) as it:
        it.bind("key.pem")  # even root cannot open it
        with pytest.raises(
            SettingsError, match=r"^KAFKA_SSL_KEY_LOCATION: key\.pem cannot be read: No such device"
        ):
            check_files({"ssl.key.location": "key.pem"})
    with pytest.raises(SettingsError, match=r"^KAFKA_SSL_CA_LOCATION: ca\.pem cannot be read: No such file"):
        check_files({"ssl.ca.location": "ca.pem"})
    check_files({"ssl.ca.location": str(tmp_path), "ssl.ca.certificate.stores": "Root"})


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"security.protocol": "sasl_ssl"},
            "KAFKA_SECURITY_PROTOCOL=SASL_SSL is a login, and KAFKA_SASL_MECHANISM does",
        ),
        ({"security.protocol": "SASL_SSL"}, "without a login it is KAFKA_SECURITY_PROTOCOL=SSL"),
        ({"security.protocol": "SASL_PLAINTEXT"}, "without a login it is KAFKA_SECURITY_PROTOCOL=PLAINTEXT"),
        (
            {"security.protocol": "SASL_SSL", "sasl.mechanism": "GSSAPI"},
            "KAFKA_SASL_MECHANISM=GSSAPI needs a librdkafka with Kerberos, which this one is not: use PLAIN, SCRAM",
        ),
    ],
)
def test_a_login_without_a_mechanism_is_named(given: dict[str, str], said: str) -> None:
    """Where librdkafka would log in with Kerberos, which its wheels lack, the line names the setting."""
    with pytest.raises(SettingsError) as caught:
        admin_client({"bootstrap.servers": "127.0.0.1:9", **given})
    assert said in str(caught.value)
    assert "recompile" not in str(caught.value)
