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
    FETCH_BYTES,
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
    """The user's properties replace defaults, but not those that keep records from being lost."""
    config = consuming(client_id="mine", enable_auto_commit="true", isolation_level="read_uncommitted")
    fixed = (config["enable.auto.commit"], config["isolation.level"], config["enable.auto.offset.store"])
    assert (config["client.id"], *fixed) == ("mine", False, "read_committed", False)
    plain = producer_config({}, delivery_timeout=2.5)
    assert producer_config({"acks": "0", "linger.ms": "7"}, delivery_timeout=2.5) == {
        **plain,
        "linger.ms": "7",
    }
    assert plain["delivery.timeout.ms"] == 2500


def test_defaults() -> None:
    """By default fetching ahead is bounded in bytes, assignments are cooperative, a broker answers a fetch twenty times
    a second where few records come, and each client opens its first connection soon: a start makes four of them one
    after the other. The user's values replace that."""
    config = consuming()
    assert config["partition.assignment.strategy"] == "cooperative-sticky"
    assert config["queued.max.messages.kbytes"] == 16384
    assert config["topic.metadata.refresh.interval.ms"] == 30_000
    assert (config["fetch.min.bytes"], config["fetch.wait.max.ms"]) == (FETCH_BYTES, 50)
    assert config["reconnect.backoff.ms"] == admin_config({})["reconnect.backoff.ms"] == 20
    config = consuming(fetch_min_bytes="1", fetch_wait_max_ms="500", max_partition_fetch_bytes="1048576")
    assert (config["fetch.min.bytes"], config["fetch.wait.max.ms"]) == ("1", "500")
    assert config["fetch.message.max.bytes"] == "1048576"
    assert consuming(reconnect_backoff_ms="500")["reconnect.backoff.ms"] == "500"


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
    ("slip", "hint"),
    [("groupid", "did you mean KAFKA_GROUP_ID?"), ("no.such.thing", "correct or remove it")],
)
def test_an_unknown_property_is_named_with_the_nearest(slip: str, hint: str) -> None:
    """An unknown property is an error that names the environment's variable and the nearest known one, if any
    is similar."""
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


def statistics_of(*brokers: dict[str, Any], seconds: float) -> str:
    """Return a client's statistics at this time of its clock."""
    return json.dumps({"ts": int(seconds * 1e6), "brokers": {str(at): one for at, one in enumerate(brokers)}})


SERVERS = {"bootstrap.servers": "kafka:9092"}
REFUSED = KafkaError(
    KafkaError._TRANSPORT,
    "kafka:9092/1: Connect to ipv4#10.0.0.3:9092 failed: Connection refused (after 0ms in state CONNECT)",
)


def watching(**user: str) -> tuple[BrokerWatch, list[BrokersSilent]]:
    """Return the watch of a client, and what it tells of silence."""
    reported: list[BrokersSilent] = []
    watch = BrokerWatch(lambda _: None, reported.append)
    watch.watching({**SERVERS, **user})
    return watch, reported


def silences(*checks: tuple[dict[str, Any], ...], error: KafkaError | None = None) -> list[BrokersSilent]:
    """Return what a watch tells of silence when these statistics come, two seconds apart, after `error`."""
    watch, reported = watching()
    for number, brokers in enumerate(checks):
        watch.take(statistics_of(*brokers, seconds=100.0 + 2.0 * number))
        if error is not None:
            watch.heard(error)
    return reported


COORDINATOR = {"name": "GroupCoordinator", "nodeid": -1, "source": "logical"}
DOWN = {"state": "TRY_CONNECT"}


def test_brokers_that_do_not_answer_are_reported_within_eight_seconds() -> None:
    """The third statistics in a row without an answer tell it, with the latest error of a broker and the time since the
    last answer; so does each that follows; the first answer ends it."""
    down = (broker(rx=7, **DOWN), broker(rx=3, **COORDINATOR, **DOWN))
    up = (broker(rx=8), broker(rx=3, **COORDINATOR))
    assert silences((broker(rx=7), broker(rx=3, **COORDINATOR)), *[down] * 4, up, up, error=REFUSED) == [
        BrokersSilent("kafka:9092, connection refused", 6.0),
        BrokersSilent("kafka:9092, connection refused", 8.0),
        BrokersSilent(None),
    ]


def test_an_error_right_after_the_last_answer_says_why() -> None:
    """librdkafka reports equal errors of a broker once. One that comes in the interval of the last answer is kept; it
    is forgotten with the next interval that has an answer.

    Found in CI: a broker that was killed did "not answer" where its port refused connections."""
    watch, reported = watching()
    down = [broker(rx=8, **DOWN)] * 3
    watch.take(statistics_of(broker(rx=7), seconds=100.0))
    watch.heard(REFUSED)
    for number, one in enumerate([broker(rx=8), *down], 1):
        watch.take(statistics_of(one, seconds=100.0 + 2.0 * number))
    assert reported == [BrokersSilent("kafka:9092, connection refused", 6.0)]
    watch.heard(REFUSED)
    later = [broker(rx=9), broker(rx=10), *[broker(rx=10, **DOWN)] * 3]
    for number, one in enumerate(later, 10):
        watch.take(statistics_of(one, seconds=100.0 + 2.0 * number))
    assert reported[1:] == [BrokersSilent(None), BrokersSilent("kafka:9092, no answer", 6.0)]


def test_who_is_silent_and_who_is_not() -> None:
    """A frozen broker is silent: its connection is up, requests wait, and it has no error of its own. Nothing is asked
    between two heartbeats; who joins waits for the other members; one of several brokers that answers is enough."""
    frozen = (broker(rx=7, waitresp_cnt=1),)
    assert silences(*[frozen] * 4) == [BrokersSilent("kafka:9092, no answer", 6.0)]
    asked_nothing = (broker(rx=7), broker(rx=3, **COORDINATOR))
    joins = (broker(rx=7), broker(rx=3, waitresp_cnt=1, **COORDINATOR))
    assert silences(*[asked_nothing] * 6) == silences(*[joins] * 6) == []
    assert silences(*[(broker(rx=7, **DOWN), broker(rx=number)) for number in range(6)]) == []


@pytest.mark.parametrize(("wait", "reported_after"), [("20000", 13), ("500", 3), ("soon", 3)])
def test_a_fetch_that_may_wait_is_no_silence(wait: str, reported_after: int) -> None:
    """With KAFKA_FETCH_WAIT_MAX_MS a broker without records answers only after that time; silence is told after it."""
    watch, reported = watching(**{"fetch.wait.max.ms": wait})
    for number in range(reported_after + 1):
        assert reported == []
        watch.take(statistics_of(broker(rx=7, waitresp_cnt=1), seconds=100.0 + 2 * number))
    assert reported == [BrokersSilent("kafka:9092, no answer", 2.0 * reported_after)]


def test_what_interrupts_statistics_is_no_silence() -> None:
    """After a process stood still, the first statistics know of no answer for a long time; the next ones do. A client
    that takes the place of a useless one counts its answers from 0: a silence goes on until one comes."""
    watch, reported = watching()
    for seconds, answers in ((100.0, 7), (700.0, 7), (702.0, 8), (704.0, 8)):
        watch.take(statistics_of(broker(rx=answers, waitresp_cnt=1), seconds=seconds))
    assert reported == []
    watch, reported = watching()
    for number in range(4):
        watch.take(statistics_of(broker(rx=900, **DOWN), seconds=2.0 * number))
    watch.watching(SERVERS)
    watch.take(statistics_of(broker(rx=0, **DOWN), seconds=8.0))
    watch.take(statistics_of(broker(rx=1), seconds=10.0))
    assert [(one.why is None, one.seconds) for one in reported] == [(False, 6.0), (False, 8.0), (True, 0.0)]


def coordinator_silences(*checks: tuple[str, int]) -> list[float | None]:
    """Return for how long a watch calls the coordinator silent at each of these statistics, two seconds apart: the
    group's state, and the number of answers that the broker has given."""
    found: list[float | None] = []
    watch = BrokerWatch(lambda _: None)
    watch.watching(SERVERS)
    for number, (state, answers) in enumerate(checks):
        brokers = json.dumps({"1": broker(rx=answers, waitresp_cnt=1)})
        # The form of librdkafka 2.16; between the two it lists the topics.
        watch.take(
            f'{{ "ts":{100_000_000 + 2_000_000 * number}, "brokers":{brokers}, "topics":{{ "orders":{{}} }} '
            f', "cgrp": {{ "state": "{state}", "stateage": 3, "join_state": "init" }}, "tx":2}}'
        )
        found.append(watch.coordinator_silent)
    return found


def test_a_coordinator_that_does_not_answer_is_seen_within_eight_seconds() -> None:
    """The third statistics in a row without one; the client goes from state to state meanwhile. One ends it."""
    states = ("up", "query-coord", "wait-coord", "wait-broker", "wait-broker-transport", "up", "query-coord")
    checks = [(state, answers) for answers, state in enumerate(states)]
    assert coordinator_silences(*checks) == [None, None, None, 6.0, 8.0, None, None]
    starting = [("init", 1), *[("wait-coord", answers) for answers in range(2, 6)]]
    assert coordinator_silences(*starting) == [None, None, None, 6.0, 8.0]
    assert coordinator_silences(*[("up", 1)] * 5, *[("term", 1)] * 5) == [None] * 10


def test_while_no_broker_answers_the_coordinator_is_not_blamed() -> None:
    """All brokers are silent, and that is told; its time begins when one answers."""
    checks = [("wait-coord", answers) for answers in (1, 1, 1, 1, 1, 2, 3, 4, 5)]
    assert coordinator_silences(*checks) == [None] * 7 + [6.0, 8.0]


def test_a_client_without_brokers_is_seen() -> None:
    """A client is stranded when ten statistics in a row, twenty seconds, name no broker: for a moment that can also be
    while brokers are replaced."""
    heard: list[Sequence[BrokerTimes]] = []
    watch = BrokerWatch(heard.append)
    coordinator = broker(name="GroupCoordinator", nodeid=-1, source="logical")
    for brokers in (
        *[()] * 9,
        (broker(),),
        *[(coordinator,)] * 9,
        (broker(nodeid=-1, source="configured"),),
        *[(coordinator,)] * 9,
    ):
        reported(watch, heard, *brokers)
        assert not watch.stranded
    reported(watch, heard, coordinator)
    assert watch.stranded
    watch.watching({})
    assert not watch.stranded, "another client"


def test_files_that_cannot_be_opened_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file of a certificate or a key that does not exist, or exists and cannot be opened, is an error that names its
    variable. A folder of authorities is accepted."""
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
