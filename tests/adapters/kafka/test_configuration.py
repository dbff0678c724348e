"""librdkafka's configuration: layers, what is fixed, what is refused, and which topics a template can name."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Sequence
from typing import Any

import confluent_kafka
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka.configuration import (
    BrokerWatch,
    admin_client,
    admin_config,
    consumer_config,
    dead_letter_pattern,
    dead_letter_topic,
    is_cooperative,
    make_client,
    producer_config,
    variable,
)
from consumer.engine.messages import BrokerTimes
from consumer.errors import SettingsError

topic_names = st.text("abcXYZ019._-", min_size=1, max_size=20)
templates = st.builds(
    lambda before, mark, after: before + mark + after,
    st.text("ab._-", max_size=5),
    st.sampled_from(["{topic}", ""]),
    st.text("ab._-", min_size=1, max_size=5),
)


def test_user_properties_win_over_defaults_and_not_over_the_guarantee() -> None:
    """What the user says holds, except what would let records be lost."""
    user = {"client.id": "mine", "enable.auto.commit": "true", "isolation.level": "read_uncommitted"}
    config = consumer_config(user, offset_reset="earliest", ignore=None)
    assert config["client.id"] == "mine"
    assert config["enable.auto.commit"] is False
    assert config["isolation.level"] == "read_committed"
    assert producer_config({"acks": "0", "linger.ms": "7"}, delivery_timeout=2.5) | {} == {
        **producer_config({}, delivery_timeout=2.5),
        "linger.ms": "7",
    }
    assert producer_config({}, delivery_timeout=2.5)["delivery.timeout.ms"] == 2500


def test_defaults_are_bounded_and_cooperative() -> None:
    """Fetching ahead is bounded in bytes; nothing is committed or stored by itself."""
    config = consumer_config({}, offset_reset="earliest", ignore=None)
    assert config["partition.assignment.strategy"] == "cooperative-sticky"
    assert config["queued.max.messages.kbytes"] == 16384
    assert config["topic.metadata.refresh.interval.ms"] == 30_000
    assert config["enable.auto.offset.store"] is False


@pytest.mark.parametrize(
    ("reset", "librdkafka"), [("earliest", "earliest"), ("latest", "earliest"), ("error", "error")]
)
def test_librdkafka_itself_never_resets_to_the_end(reset: str, librdkafka: str) -> None:
    """Only an explicit start may skip records; a reset inside librdkafka goes to the beginning, or is an error."""
    assert consumer_config({}, offset_reset=reset, ignore=None)["auto.offset.reset"] == librdkafka


def test_new_group_protocol_leaves_out_what_the_broker_decides() -> None:
    """librdkafka refuses these properties with KIP-848; the client accepts what is left."""
    user = {"group.protocol": "consumer", "session.timeout.ms": "9000", "heartbeat.interval.ms": "100"}
    config = consumer_config(user, offset_reset="earliest", ignore=None)
    assert (
        not {"session.timeout.ms", "heartbeat.interval.ms", "partition.assignment.strategy"} & config.keys()
    )
    assert is_cooperative(config)
    confluent_kafka.Consumer({**config, "bootstrap.servers": "127.0.0.1:9", "log_level": 0}).close()


def test_a_property_for_another_kind_of_client_is_no_news(caplog: pytest.LogCaptureFixture) -> None:
    """A producer is given group settings, a consumer acknowledgements, an admin both: nothing is refused or logged."""
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
                client.poll(0.1)  # brings what librdkafka logs
                client.__exit__(None, None, None)
    assert caplog.messages == []


def test_what_only_a_consumer_must_not_see_others_do() -> None:
    """Topics that the user hides can be written to and asked about."""
    user = {"sasl.username": "u", "topic.blacklist": "dead"}
    for config in (producer_config(user, delivery_timeout=1), admin_config(user)):
        assert config["sasl.username"] == "u"
        assert "topic.blacklist" not in config


def test_own_blacklist_is_kept() -> None:
    """Topics that the user hides stay hidden beside the dead-letter topics."""
    config = consumer_config({"topic.blacklist": "^secret"}, offset_reset="earliest", ignore="^dlq$")
    assert config["topic.blacklist"] == "^secret,^dlq$"


@given(templates, topic_names)
def test_pattern_matches_every_topic_that_the_template_names(template: str, topic: str) -> None:
    """No dead-letter topic escapes the pattern that keeps it from being consumed."""
    assert re.match(dead_letter_pattern(template), dead_letter_topic(template, topic))


@given(topic_names)
def test_pattern_spares_the_topics_themselves(topic: str) -> None:
    """With the default template only names with that ending are hidden; a dot in the template is a dot."""
    hidden = re.match(dead_letter_pattern("{topic}.dead-letters"), topic) is not None
    assert hidden == (topic.endswith(".dead-letters") and topic != ".dead-letters")
    assert not re.match(dead_letter_pattern("{topic}.dead-letters"), topic + "-dead-letters")


@pytest.mark.parametrize(
    ("slip", "hint"),
    [("groupid", "did you mean KAFKA_GROUP_ID?"), ("no.such.thing", "correct or remove it")],
)
def test_an_unknown_property_is_told_with_the_nearest(slip: str, hint: str) -> None:
    """In words of the environment's variables; none is named that is not alike."""
    with pytest.raises(SettingsError) as caught:
        make_client(confluent_kafka.Consumer, {"group.id": "shop", slip: "1"})
    assert str(caught.value) == f"{variable(slip)} is not a librdkafka property; {hint}"


def broker(**members: Any) -> dict[str, Any]:
    """One of librdkafka's statistics, as far as it is read."""
    times = {"cnt": 2, "avg": 1500, "p99": 2000, "max": 2500, "outofrange": 0}
    known = {"name": "b:9092/3", "nodeid": 3, "source": "learned", "rtt": times, "throttle": {"sum": 0}}
    return known | members


def told(
    watch: BrokerWatch, heard: list[Sequence[BrokerTimes]], *brokers: dict[str, Any]
) -> list[BrokerTimes]:
    """What the watch makes of these, in the form that librdkafka gives it."""
    inner = ", ".join(f'"{number}":{json.dumps(one)}' for number, one in enumerate(brokers))
    watch.take(f'{{ "name":"x", "brokers":{{ {inner} }}, "topics":{{ "orders":{{ "not": "read' + "...")
    return list(heard.pop())


def test_what_is_measured_of_brokers() -> None:
    """In seconds; the throttle is a sum since the start; who was not asked is left out."""
    heard: list[Sequence[BrokerTimes]] = []
    watch = BrokerWatch(heard.append)
    bootstrap = broker(nodeid=-1, source="configured")
    coordinator = broker(name="GroupCoordinator", nodeid=-1, source="logical")
    silent = broker(nodeid=4, rtt={"cnt": 0, "avg": 0, "p99": 0, "max": 0, "outofrange": 0})
    found = told(watch, heard, bootstrap, broker(throttle={"sum": 300}), coordinator, silent)
    assert found == [BrokerTimes("3", 0.0015, 0.002, 0.3), BrokerTimes("coordinator", 0.0015, 0.002, 0.0)]
    assert told(watch, heard, broker(throttle={"sum": 200}))[0].throttled == 0.5
    beyond = {"cnt": 1, "avg": 3e6, "p99": 6000, "max": 3e6, "outofrange": 1}
    assert told(watch, heard, broker(rtt=beyond)) == [BrokerTimes("3", 3.0, 3.0, 0.5)]


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"brokers": {"a": {}}}', '{"brokers": 3}', "not JSON"])
def test_statistics_of_another_form_harm_nothing(text: str) -> None:
    """An error would come out of the poll."""
    heard: list[Sequence[BrokerTimes]] = []
    BrokerWatch(heard.append).take(text)
    assert not heard


def test_how_often_is_measured_can_be_set() -> None:
    """Every ten seconds, unless the user says otherwise; 0 turns it off."""
    watch = BrokerWatch(lambda told: None)
    assert watch.watching({})["statistics.interval.ms"] == 10_000
    assert watch.watching({"statistics.interval.ms": "0"})["statistics.interval.ms"] == "0"


def test_a_client_without_brokers_is_seen() -> None:
    """Twice in a row: while others take the place of all brokers there may be none for a moment."""
    heard: list[Sequence[BrokerTimes]] = []
    watch = BrokerWatch(heard.append)
    coordinator = broker(name="GroupCoordinator", nodeid=-1, source="logical")
    for brokers in (
        (),
        (broker(),),
        (coordinator,),
        (broker(nodeid=-1, source="configured"),),
        (coordinator,),
    ):
        told(watch, heard, *brokers)
        assert not watch.stranded
    told(watch, heard, coordinator)
    assert watch.stranded
    watch.watching({})
    assert not watch.stranded, "another client"
