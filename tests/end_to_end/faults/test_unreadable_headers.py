"""A record whose header names no client can read stops nothing, and is delivered or stored like any other."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, run_environment
from tests.end_to_end.records import ENCODER, commerce_event, dead_letters, new_group, new_topic
from tests.support.kafka.harness import Kafka
from tests.support.kafka.raw import produce_raw

pytestmark = pytest.mark.real_kafka  # the embedded broker takes no record that librdkafka did not write

BAD = [(b"\xff\xfe", b"1"), (b"fine", b"2")]


def test_it_stops_nothing(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Good records are delivered; a broken one becomes a dead letter that says that its headers could not be
    read; and the commands for dead letters continue past such a record, too."""
    topic = new_topic(kafka, 1)
    good = [(b"k", ENCODER.encode(commerce_event(f"e-{n}")), BAD) for n in range(3)]
    produce_raw(
        kafka, topic, [*good, (b"k", b"junk", BAD), (None, ENCODER.encode(commerce_event("e-3")), [])]
    )
    produce_raw(kafka, f"{topic}.dead-letters", [(b"k", b"foreign", BAD)])
    env = run_environment(tmp_path, kafka, topic, new_group(), api.url)
    with Process(tmp_path, "run", env=env) as process:
        ledger = process.until_settled(5)
        assert process.stop()[0] == 0
    assert (ledger["delivered"], ledger["dead_lettered"]) == (4, 1)
    assert set(api.accepted()) == {"e-0", "e-1", "e-2", "e-3"}

    listed = command("dead-letters", "list", "--topic", topic, "--json", env=env)
    assert listed.returncode == 0, listed.stderr
    shown = command("dead-letters", "show", f"{topic}.dead-letters:0:1", env=env)
    assert shown.returncode == 0, shown.stderr
    back = command("dead-letters", "redrive", "--topic", topic, env=env)
    assert back.returncode == 0, back.stderr
    replayed = command("replay", "--topic", topic, "--from", "beginning", "--to", "end", env=env)
    assert replayed.returncode == 0, replayed.stderr


def test_its_letter_says_so(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """``pinstream.headers`` says where they can be read."""
    topic = new_topic(kafka, 1)
    produce_raw(kafka, topic, [(b"k", b"junk", BAD)])
    env = run_environment(tmp_path, kafka, topic, new_group(), api.url)
    with Process(tmp_path, "run", env=env) as process:
        process.until_settled(1)
        assert process.stop()[0] == 0
    [(message, headers)] = dead_letters(kafka, topic)
    assert message.value() == b"junk"
    assert headers["headers"].startswith("unreadable: ")
    assert headers["code"] == "unknown_wire_format"
