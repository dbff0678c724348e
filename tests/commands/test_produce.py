"""``pinstream produce`` writes a file's records onto a topic, in either framing, and ``run`` reads them."""

from __future__ import annotations

import json
import random
import re
import signal
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from io import BytesIO
from pathlib import Path
from typing import Any

import fastavro
import pytest
from confluent_kafka.admin import AdminClient

from tests.adapters.fake_registry import FakeRegistry
from tests.conversion.sections.shop import (
    CLICK,
    MAPPING,
    ORDER,
    SIGNUP,
    UNION,
    click,
    order,
    signup,
    single_object,
    write_schemas,
)
from tests.end_to_end.api import Api, Loop
from tests.end_to_end.processes import Process, bare_environment, command, run_environment
from tests.end_to_end.records import SCHEMA, commerce_event, ndjson, new_group, new_topic, records_on
from tests.support.kafka.harness import Kafka, create_topic, read_all, unique
from tests.support.limits import LATE


@pytest.fixture
def registry(servers: Loop) -> Iterator[FakeRegistry]:
    """A schema registry on a port of its own."""
    fake = FakeRegistry()
    servers.call(fake.__aenter__())
    yield fake
    servers.call(fake.stop())


def env_of(kafka: Kafka, folder: Path, **settings: str) -> dict[str, str]:
    """Return the environment that ``produce`` needs: brokers, and nothing else."""
    return {**bare_environment(folder), "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers, **settings}


def decoded(kafka: Kafka, topic: str) -> list[Any]:
    """Return the events on the topic in the order of their ids, read by fastavro alone."""
    values = [message.value() or b"" for message in read_all(kafka, topic, records_on(kafka, topic))]
    assert all(value[:2] == b"\xc3\x01" for value in values)
    events: list[Any] = [fastavro.schemaless_reader(BytesIO(value[10:]), SCHEMA, SCHEMA) for value in values]
    return sorted(events, key=lambda event: str(event["event_id"]))


def test_single_object_encoding_without_a_registry(kafka: Kafka, tmp_path: Path) -> None:
    """Each record of NDJSON on standard input and of a container file is on the topic, with its shopper as key."""
    topic = new_topic(kafka)
    events = [commerce_event(f"e-{number}") for number in range(20)]
    done = command("produce", "-", "--topic", topic, env=env_of(kafka, tmp_path), stdin=ndjson(events[:10]))
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert done.stderr.splitlines()[-1] == f"produced 10 records to {topic}"
    with (tmp_path / "rest.avro").open("wb") as file:
        fastavro.writer(file, SCHEMA, events[10:])
    done = command("produce", str(tmp_path / "rest.avro"), "--topic", topic, env=env_of(kafka, tmp_path))
    assert done.returncode == 0
    assert {one["event_id"] for one in decoded(kafka, topic)} == {one["event_id"] for one in events}
    keys = {message.key() for message in read_all(kafka, topic, 20)}
    assert keys == {f"e-{number}@example.com".encode() for number in range(20)}


def test_lines_that_do_not_fit_are_reported_and_omitted(kafka: Kafka, tmp_path: Path) -> None:
    """Lines that do not fit are named without their data and the others are produced; the exit code is 1."""
    topic = new_topic(kafka)
    (tmp_path / "mixed.ndjson").write_text(
        ndjson([commerce_event("e-1")])
        + '{"event_id": "e-2", "customer": {"emails": "marked@example.com"}}\n'
        + "marked, not JSON\n"
        + ndjson([commerce_event("e-4")])
    )
    done = command("produce", str(tmp_path / "mixed.ndjson"), "--topic", topic, env=env_of(kafka, tmp_path))
    assert done.returncode == 1
    assert [one["event_id"] for one in decoded(kafka, topic)] == ["e-1", "e-4"]
    reported = done.stderr.splitlines()
    assert "record 2" in reported[0]
    assert "record 3" in reported[1]
    assert reported[-1].startswith("pinstream: 2 records of ")
    assert "marked" not in done.stderr
    assert "Traceback" not in done.stderr


def test_now_moves_times_and_keeps_distances(kafka: Kafka, tmp_path: Path) -> None:
    """With ``--now`` the newest event is now, and the others are as much older as they were."""
    topic = new_topic(kafka)
    times = [10**12, 10**12 + 5000, 10**12 - 60_000]
    (tmp_path / "old.ndjson").write_text(
        ndjson(commerce_event(f"e-{n}", occurred_at=at) for n, at in enumerate(times))
    )
    begun = int(time.time() * 1000)
    done = command(
        "produce", str(tmp_path / "old.ndjson"), "--topic", topic, "--now", env=env_of(kafka, tmp_path)
    )
    assert done.returncode == 0, done.stderr
    first, newest, oldest = (int(one["occurred_at"].timestamp() * 1000) for one in decoded(kafka, topic))
    assert begun <= newest <= time.time() * 1000
    assert abs(newest - first - 5000) <= 1
    assert abs(newest - oldest - 65_000) <= 1


def test_records_of_any_schema(kafka: Kafka, tmp_path: Path) -> None:
    """Records of a schema with other field names are produced; with ``--now`` the message says what is needed."""
    (tmp_path / "sale.avsc").write_text(
        '{"type": "record", "name": "Sale", "namespace": "shop", "fields": [{"name": "no", "type": "string"}]}'
    )
    topic = new_topic(kafka)
    env = env_of(kafka, tmp_path, PINSTREAM_SCHEMAS_DIR=str(tmp_path), PINSTREAM_SCHEMA="shop.Sale")
    (tmp_path / "sales.ndjson").write_text('{"no": "1"}\n{"no": "2"}\n')
    done = command("produce", str(tmp_path / "sales.ndjson"), "--topic", topic, env=env)
    assert (done.returncode, records_on(kafka, topic)) == (0, 2), done.stderr
    done = command("produce", str(tmp_path / "sales.ndjson"), "--topic", topic, "--now", env=env)
    assert done.returncode == 2
    assert "--now" in done.stderr
    assert "Traceback" not in done.stderr


def test_decimals_and_times_in_a_union_of_records(kafka: Kafka, tmp_path: Path) -> None:
    """Records that `explain` reads are produced, with decimals and times in a union of records."""
    topic = new_topic(kafka)
    money = {"type": "bytes", "logicalType": "decimal", "precision": 9, "scale": 2}
    at = {"type": "long", "logicalType": "timestamp-millis"}
    branches = [
        {"type": "record", "name": "Seen", "fields": [{"name": "at", "type": at}]},
        {"type": "record", "name": "Paid", "fields": [{"name": "total", "type": money}]},
    ]
    schema = {
        "type": "record", "name": "E", "namespace": "shop", "fields": [{"name": "what", "type": branches}]
    }  # fmt: skip
    (tmp_path / "schemas").mkdir()
    (tmp_path / "schemas" / "e.avsc").write_text(json.dumps(schema))
    lines = [{"what": {"total": "27.50"}}, {"what": {"at": "1970-01-01T00:00:01Z"}}]
    (tmp_path / "e.avro").touch()
    env = env_of(kafka, tmp_path, PINSTREAM_SCHEMAS_DIR=str(tmp_path / "schemas"), PINSTREAM_SCHEMA="shop.E")
    done = command("produce", "-", "--topic", topic, env=env, stdin=ndjson(lines))
    assert done.returncode == 0, done.stderr
    with (tmp_path / "e.avro").open("wb") as file:
        fastavro.writer(file, schema, [{"what": ("shop.Paid", {"total": Decimal("1.10")})}])
    done = command("produce", str(tmp_path / "e.avro"), "--topic", topic, env=env)
    assert done.returncode == 0, done.stderr
    values = [message.value() or b"" for message in read_all(kafka, topic, 3)]
    events = [fastavro.schemaless_reader(BytesIO(value[10:]), schema, None) for value in values]
    seen = {"what": {"at": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)}}
    paid = [{"what": {"total": Decimal(total)}} for total in ("27.50", "1.10")]
    assert sorted(map(str, events)) == sorted(map(str, [seen, *paid]))


def test_now_moves_the_times_that_the_mapping_reads(kafka: Kafka, tmp_path: Path) -> None:
    """``--now`` moves the times that the mapping reads, here seconds in a nested record of an own schema."""
    (tmp_path / "sale.avsc").write_text(
        '{"type": "record", "name": "Sale", "fields": [{"name": "no", "type": "string"}, {"name": "when", "type": '
        '{"type": "record", "name": "When", "fields": [{"name": "at", "type": "long"}]}}]}'
    )
    (tmp_path / "sale.toml").write_text(
        'time_unit = "seconds"\n[fields]\nevent_id = "no"\nevent_time = "when.at"\n'
        '[constants]\nevent_name = "checkout"\naction_source = "web"\n'
    )
    topic = new_topic(kafka)
    schema = {"PINSTREAM_SCHEMAS_DIR": str(tmp_path), "PINSTREAM_SCHEMA": "Sale"}
    env = env_of(kafka, tmp_path, **schema, PINSTREAM_MAPPING_FILE=str(tmp_path / "sale.toml"))
    (tmp_path / "sales.ndjson").write_text(
        '{"no": "1", "when": {"at": 1000}}\n{"no": "2", "when": {"at": 940}}\n'
    )
    begun = int(time.time())
    done = command("produce", str(tmp_path / "sales.ndjson"), "--topic", topic, "--now", env=env)
    assert done.returncode == 0, done.stderr
    sale = fastavro.parse_schema(json.loads((tmp_path / "sale.avsc").read_text()))
    produced = [message.value() or b"" for message in read_all(kafka, topic, 2)]
    events: list[Any] = [fastavro.schemaless_reader(BytesIO(value[10:]), sale, sale) for value in produced]
    newest, older = (one["when"]["at"] for one in sorted(events, key=lambda one: str(one["no"])))
    assert begun <= newest <= time.time()
    assert newest - older == 60


def test_what_cannot_be_is_one_line(kafka: Kafka, registry: FakeRegistry, tmp_path: Path) -> None:
    """A missing topic, a registry that is down, and standard input that would be read twice are one line that names
    what to change; nothing is produced."""
    topic = new_topic(kafka)
    registry.faults.status = 503
    for more, settings, code, says in (
        (("--topic", "no-such-topic"), {}, 1, "no-such-topic"),
        (("--topic", topic), {"SCHEMA_REGISTRY_URL": registry.url}, 1, "registry"),
        (("--topic", topic, "--now"), {}, 2, "file"),
    ):
        env = env_of(kafka, tmp_path, **settings)
        done = command("produce", "-", *more, env=env, stdin=ndjson([commerce_event("e-1")]))
        assert (done.returncode, len(done.stderr.splitlines())) == (code, 1), done.stderr
        assert says in done.stderr
    assert records_on(kafka, topic) == 0


def test_records_are_made_up_repeated_and_spoiled_as_asked(kafka: Kafka, tmp_path: Path) -> None:
    """``--generate --events N`` writes N records, broken ones included; ``--duplicates`` and ``--invalid`` hold for the
    records of a file, too."""
    topic, env = new_topic(kafka), env_of(kafka, tmp_path)
    done = command("produce", "--generate", "--events", "300", "--invalid", "0.1", "--topic", topic, env=env)
    assert (done.returncode, records_on(kafka, topic)) == (0, 300), done.stderr
    shares = ("--duplicates", "0.2", "--invalid", "0.2")
    text = ndjson(commerce_event(f"e-{number}") for number in range(100))
    done = command("produce", "-", "--topic", topic, *shares, env=env, stdin=text)
    assert done.returncode == 0, done.stderr
    assert records_on(kafka, topic) > 420


def test_stops_promptly_between_two_events(kafka: Kafka, tmp_path: Path) -> None:
    """Ctrl-C does not wait for the next event that ``--rate`` allows: what was produced stays, and the exit
    code is 0."""
    topic = new_topic(kafka)
    arguments = ("produce", "--generate", "--rate", "0.01", "--topic", topic)
    with Process(tmp_path, *arguments, env=env_of(kafka, tmp_path)) as process:
        process.until(lambda: records_on(kafka, topic) == 1, "the first record")
        code, seconds = process.stop(signal.SIGINT)
    assert code == 0
    assert seconds < 2 * LATE
    assert "produced 1 records" in process.stderr


def test_with_a_registry_there_and_back(
    kafka: Kafka, api: Api, registry: FakeRegistry, tmp_path: Path
) -> None:
    """With a registry the schema is registered and records have Confluent's framing; ``run`` reads them through
    the same registry, and waits while it is down."""
    topic = new_topic(kafka)
    with_registry = {"SCHEMA_REGISTRY_URL": registry.url}
    text = ndjson(commerce_event(f"e-{number}") for number in range(30))
    done = command("produce", "-", "--topic", topic, env=env_of(kafka, tmp_path, **with_registry), stdin=text)
    assert done.returncode == 0, done.stderr
    assert f"/subjects/{topic}-value/versions" in registry.requests
    assert all((one.value() or b"")[:5] == b"\0\0\0\0\x01" for one in read_all(kafka, topic, 30))

    registry.faults.status = 503
    env = run_environment(
        tmp_path,
        kafka,
        topic,
        new_group(),
        api.url,
        PINSTREAM_SCHEMAS_DIR="",
        **with_registry,
    )
    with Process(tmp_path, "run", env=env) as process:
        process.until(lambda: process.status()["open"]["waiting_for_schema"] == 30, "records that wait")
        assert process.ledger()["open"] == 30
        registry.faults.status = None
        assert process.until_settled(30)["delivered"] == 30
        assert process.stop()[0] == 0
    assert api.counts().distinct_event_ids == 30


def test_the_registry_is_asked_through_the_proxy(
    kafka: Kafka, registry: FakeRegistry, tmp_path: Path
) -> None:
    """The registry is asked through the proxy, which here answers for a registry that does not exist."""
    topic = new_topic(kafka)
    env = env_of(kafka, tmp_path, SCHEMA_REGISTRY_URL="http://registry.invalid:8081", http_proxy=registry.url)
    done = command("produce", "--generate", "--topic", topic, "--events", "3", env=env)
    assert done.returncode == 0, done.stderr
    assert f"/subjects/{topic}-value/versions" in registry.requests


def test_records_of_several_types(kafka: Kafka, registry: FakeRegistry, tmp_path: Path) -> None:
    """Each record is written with the schema of its type, registered under its name; records of a type without
    a section are omitted."""
    (tmp_path / "mapping.toml").write_text(MAPPING)
    (tmp_path / "schemas").mkdir()
    write_schemas(tmp_path / "schemas", UNION)
    topic = new_topic(kafka)
    env = env_of(
        kafka,
        tmp_path,
        PINSTREAM_SCHEMAS_DIR=str(tmp_path / "schemas"),
        PINSTREAM_MAPPING_FILE=str(tmp_path / "mapping.toml"),
    )
    lines: list[dict[str, Any]] = [
        {"com.shop.Order": {"id": "o", "at": "2026-03-01T12:00:00Z", "total": "59.90"}},
        {"com.shop.Click": {"click": "c", "seconds": 1_000}},
        {"com.shop.Signup": {"id": "s", "at": "2026-03-01T12:00:10Z", "member": {"mail": "joe@example.com"}}},
        {"com.shop.Refund": {"id": "r"}},
    ]
    (tmp_path / "shop.ndjson").write_text(ndjson(lines))
    begun = time.time()
    done = command("produce", str(tmp_path / "shop.ndjson"), "--topic", topic, "--now", env=env)
    assert done.returncode == 1
    assert (
        "record 4 is skipped: no section of the mapping is for the record type com.shop.Refund" in done.stderr
    )
    values = [message.value() or b"" for message in read_all(kafka, topic, 3)]
    by_framing = {single_object(schema, event)[:10]: schema for schema, event in (
        (ORDER, order()), (CLICK, click()), (SIGNUP, signup()))}  # fmt: skip
    events: list[Any] = [
        fastavro.schemaless_reader(BytesIO(value[10:]), by_framing[value[:10]], None) for value in values
    ]
    by_id = {one.get("id", one.get("click")): one for one in events}
    assert by_id["o"]["total"] == Decimal("59.90")
    # The newest event is now, and the others are as much older as they were, each in its own unit of time.
    assert begun - 1 <= by_id["s"]["at"].timestamp() <= time.time()
    assert by_id["s"]["at"].timestamp() - by_id["o"]["at"].timestamp() == pytest.approx(10, abs=0.01)

    registered = env | {"SCHEMA_REGISTRY_URL": registry.url}
    done = command("produce", "-", "--topic", topic, env=registered, stdin=ndjson(lines[:3]))
    assert done.returncode == 0, done.stderr
    asked = "".join(registry.requests)
    assert all(f"{topic}-com.shop.{name}/versions" in asked for name in ("Order", "Click", "Signup"))


def test_a_topic_is_created_with_its_partitions(kafka: Kafka, tmp_path: Path) -> None:
    """With ``--create-topic`` a missing topic is created with this number of partitions; one that exists is left as it
    is."""
    topic = unique("made")
    for number, said in ((3, [f"created the topic {topic} with 3 partitions"]), (5, [])):
        arguments = ("produce", "-", "--topic", topic, "--create-topic", str(number))
        done = command(*arguments, env=env_of(kafka, tmp_path), stdin=ndjson([commerce_event(f"e-{number}")]))
        reported = [line for line in done.stderr.splitlines() if not line.startswith("{")]  # without the log
        assert (done.returncode, reported) == (0, [*said, f"produced 1 records to {topic}"])
    assert len(AdminClient(kafka.config).list_topics(topic, timeout=10).topics[topic].partitions) == 3
    assert {one["event_id"] for one in decoded(kafka, topic)} == {"e-3", "e-5"}


def test_a_record_that_fails_says_where_to_go_on(kafka: Kafka, tmp_path: Path) -> None:
    """A record that the broker refuses ends it with exit code 1 and the place in the file to go on from: all before it
    are on the topic."""
    topic = create_topic(kafka, 1, None, **{"max.message.bytes": "2000"})
    events = [commerce_event(f"e-{number}") for number in range(1, 10)]
    events[6] = commerce_event("e-7", search_query=random.Random(1).randbytes(10_000).hex())
    # A line that does not fit counts: the number is that of the line.
    (tmp_path / "some.ndjson").write_text("{}\n" + ndjson(events))
    # Slowly, so that most records are batches of their own. A broker refuses whole batches: what waits in the batch of
    # the refused record, while the machine or the broker is slow, is not written either.
    arguments = ("produce", str(tmp_path / "some.ndjson"), "--topic", topic, "--rate", "10")
    done = command(*arguments, env=env_of(kafka, tmp_path))
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    reported = re.search(r"everything before record (\d+) of .* is written: go on with that one", last)
    assert reported is not None, last
    place = int(reported[1])
    written = {one["event_id"] for one in decoded(kafka, topic)}
    assert place <= 8
    assert written >= {f"e-{number}" for number in range(1, place - 1)}
    assert "e-7" not in written


def test_what_stands_before_a_damaged_part_is_written(kafka: Kafka, tmp_path: Path) -> None:
    """Where the rest of a container cannot be read, what stands before it is written; the exit code is 1."""
    topic = new_topic(kafka)
    with (tmp_path / "cut.avro").open("wb") as file:
        fastavro.writer(file, SCHEMA, [commerce_event(f"e-{number}") for number in range(4)], sync_interval=1)
    whole = (tmp_path / "cut.avro").read_bytes()
    (tmp_path / "cut.avro").write_bytes(whole[:-20])
    done = command("produce", str(tmp_path / "cut.avro"), "--topic", topic, env=env_of(kafka, tmp_path))
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == f"produced 3 records to {topic}"
    assert "is broken after record 3" in done.stderr.splitlines()[-1]
    assert [one["event_id"] for one in decoded(kafka, topic)] == ["e-0", "e-1", "e-2"]
