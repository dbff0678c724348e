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
from tests.support import avro
from tests.support.kafka.harness import Kafka, create_topic, read_all, unique
from tests.support.limits import LATE


@pytest.fixture
def registry(servers: Loop) -> Iterator[FakeRegistry]:
    """A schema registry on a port of its own."""
    fake = FakeRegistry()
    servers.call(fake.__aenter__())
    yield fake
    servers.call(fake.stop())


class Producing:
    """The command with a topic of its own, and what it has written."""

    def __init__(self, kafka: Kafka, folder: Path) -> None:
        self.kafka, self.topic, self.folder = kafka, new_topic(kafka), folder
        # Brokers, and nothing else.
        self.env = {**bare_environment(folder), "KAFKA_BOOTSTRAP_SERVERS": kafka.bootstrap_servers}

    def __call__(self, *arguments: object, stdin: str = "", code: int = 0, **settings: str) -> list[str]:
        """Run it; return the lines that it prints, without the log. Nothing is on stdout."""
        line = ("--topic", self.topic, *map(str, arguments))
        done = command("produce", *line, env={**self.env, **settings}, stdin=stdin)
        assert (done.returncode, done.stdout) == (code, ""), done.stderr
        assert "Traceback" not in done.stderr
        return [line for line in done.stderr.splitlines() if not line.startswith("{")]

    def file(self, name: str, content: str) -> Path:
        """Write a file."""
        (self.folder / name).write_text(content)
        return self.folder / name

    def container(self, events: list[Any], schema: Any = SCHEMA, **options: Any) -> Path:
        """Write an Avro container."""
        with (self.folder / "events.avro").open("wb") as file:
            fastavro.writer(file, schema, events, **options)
        return self.folder / "events.avro"

    @property
    def count(self) -> int:
        """The number of records on the topic."""
        return records_on(self.kafka, self.topic)

    def written(self, schema: Any = SCHEMA, by: str = "event_id") -> list[Any]:
        """Return the events on the topic in the order of their ids, read by fastavro alone."""
        values = [message.value() or b"" for message in read_all(self.kafka, self.topic, self.count)]
        assert all(value[:2] == b"\xc3\x01" for value in values)
        parsed = fastavro.parse_schema(json.loads(json.dumps(schema)))
        events: list[Any] = [
            fastavro.schemaless_reader(BytesIO(value[10:]), parsed, None) for value in values
        ]
        return sorted(events, key=lambda event: str(event[by]))


@pytest.fixture
def produce(kafka: Kafka, tmp_path: Path) -> Producing:
    """The command."""
    return Producing(kafka, tmp_path)


def test_single_object_encoding_without_a_registry(produce: Producing) -> None:
    """With its shopper as key; what stands before a damaged part is written, with exit code 1."""
    events = [commerce_event(f"e-{number}") for number in range(20)]
    said = produce("-", stdin=ndjson(events[:10]))
    assert said[-1] == f"produced 10 records to {produce.topic}"
    file = produce.container(events[10:], sync_interval=1)
    produce(file)
    assert {one["event_id"] for one in produce.written()} == {one["event_id"] for one in events}
    keys = {message.key() for message in read_all(produce.kafka, produce.topic, 20)}
    assert keys == {f"e-{number}@example.com".encode() for number in range(20)}
    file.write_bytes(file.read_bytes()[:-20])
    first, *_, last = produce(file, code=1)
    assert first == f"produced 9 records to {produce.topic}"
    assert "is broken after record 9" in last
    assert produce.count == 29


def test_lines_that_do_not_fit_are_reported_and_omitted(produce: Producing) -> None:
    """Lines that do not fit are named without their data and the others are produced; the exit code is 1."""
    wrong = '{"event_id": "e-2", "customer": {"emails": "marked@example.com"}}\nmarked, not JSON\n'
    text = ndjson([commerce_event("e-1")]) + wrong + ndjson([commerce_event("e-4")])
    second, third, *_, last = produce(produce.file("mixed.ndjson", text), code=1)
    assert [one["event_id"] for one in produce.written()] == ["e-1", "e-4"]
    assert "record 2" in second
    assert "record 3" in third
    assert last.startswith("pinstream: 2 records of ")
    assert "marked" not in second + third + last


def test_now_moves_times_and_keeps_distances(produce: Producing) -> None:
    """With ``--now`` the newest event is now, and the others are as much older as they were."""
    times = [10**12, 10**12 + 5000, 10**12 - 60_000]
    text = ndjson(commerce_event(f"e-{n}", occurred_at=at) for n, at in enumerate(times))
    begun = int(time.time() * 1000)
    produce(produce.file("old.ndjson", text), "--now")
    first, newest, oldest = (int(one["occurred_at"].timestamp() * 1000) for one in produce.written())
    assert begun <= newest <= time.time() * 1000
    assert abs(newest - first - 5000) <= 1
    assert abs(newest - oldest - 65_000) <= 1


def test_records_of_any_schema(produce: Producing) -> None:
    """``--now`` moves the times that the mapping reads; without a mapping it says what is needed."""
    sale = avro.record("Sale", no="string", when=avro.record("When", at="long"))
    produce.file("sale.avsc", json.dumps(sale))
    produce.env |= {"PINSTREAM_SCHEMAS_DIR": str(produce.folder), "PINSTREAM_SCHEMA": "Sale"}
    file = produce.file(
        "sales.ndjson", '{"no": "1", "when": {"at": 1000}}\n{"no": "2", "when": {"at": 940}}\n'
    )
    produce(file)
    assert [one["when"]["at"] for one in produce.written(sale, "no")] == [1000, 940]
    assert any("--now" in line for line in produce(file, "--now", code=2))
    mapping = produce.file(
        "sale.toml",
        'time_unit = "seconds"\n[fields]\nevent_id = "no"\nevent_time = "when.at"\n'
        '[constants]\nevent_name = "checkout"\naction_source = "web"\n',
    )
    begun = int(time.time())
    produce(file, "--now", PINSTREAM_MAPPING_FILE=str(mapping))
    _, newest, _, older = (one["when"]["at"] for one in sorted(produce.written(sale, "no"), key=_moment))
    assert begun <= newest <= time.time()
    assert newest - older == 60


def _moment(one: Any) -> tuple[str, int]:
    return one["no"], one["when"]["at"]


def test_decimals_and_times_in_a_union_of_records(produce: Producing) -> None:
    """Records that `explain` reads are produced, with decimals and times in a union of records."""
    seen = avro.record("Seen", at=avro.logical("long", "timestamp-millis"))
    schema = {
        **avro.record("E", what=[seen, avro.record("Paid", total=avro.decimal(9, 2))]),
        "namespace": "shop",
    }
    produce.file("e.avsc", json.dumps(schema))
    produce.env |= {"PINSTREAM_SCHEMAS_DIR": str(produce.folder), "PINSTREAM_SCHEMA": "shop.E"}
    produce("-", stdin=ndjson([{"what": {"total": "27.50"}}, {"what": {"at": "1970-01-01T00:00:01Z"}}]))
    produce(produce.container([{"what": ("shop.Paid", {"total": Decimal("1.10")})}], schema))
    events = [one["what"] for one in produce.written(schema, "what")]
    paid = [{"total": Decimal(total)} for total in ("1.10", "27.50")]
    assert events == [{"at": datetime(1970, 1, 1, 0, 0, 1, tzinfo=UTC)}, *paid]


def test_what_cannot_be_is_one_line(produce: Producing, registry: FakeRegistry) -> None:
    """A missing topic, a registry that is down, standard input read twice: nothing is produced."""
    registry.faults.status = 503
    event = ndjson([commerce_event("e-1")])
    down = {"SCHEMA_REGISTRY_URL": registry.url}
    for arguments, settings, code, says in (
        (("--topic", "no-such-topic"), {}, 1, "no-such-topic"),
        ((), down, 1, "registry"),
        (("--now",), {}, 2, "file"),
    ):
        [line] = produce("-", *arguments, stdin=event, code=code, **settings)
        assert says in line
    assert produce.count == 0


def test_records_are_made_up_repeated_and_spoiled_as_asked(produce: Producing) -> None:
    """``--duplicates`` and ``--invalid`` hold for the records of a file, too."""
    produce("--generate", "--events", "300", "--invalid", "0.1")
    assert produce.count == 300
    text = ndjson(commerce_event(f"e-{number}") for number in range(100))
    produce("-", "--duplicates", "0.2", "--invalid", "0.2", stdin=text)
    assert produce.count > 420


def test_stops_promptly_between_two_events(produce: Producing) -> None:
    """Ctrl-C does not wait for the next event that ``--rate`` allows: what was produced stays; exit code 0."""
    arguments = ("produce", "--generate", "--rate", "0.01", "--topic", produce.topic)
    with Process(produce.folder, *arguments, env=produce.env) as process:
        process.until(lambda: produce.count == 1, "the first record")
        code, seconds = process.stop(signal.SIGINT)
    assert code == 0
    assert seconds < 2 * LATE
    assert "produced 1 records" in process.stderr


def test_with_a_registry_there_and_back(produce: Producing, api: Api, registry: FakeRegistry) -> None:
    """Also behind a proxy; ``run`` reads through the same registry, and waits while it is down."""
    # The fake answers in the proxy's place for a registry that does not exist.
    far: dict[str, Any] = {"SCHEMA_REGISTRY_URL": "http://registry.invalid:8081", "http_proxy": registry.url}
    produce("-", stdin=ndjson([commerce_event("e-0")]), **far)
    assert registry.requests.count(path := f"/subjects/{produce.topic}-value/versions") == 1
    own: dict[str, Any] = {"SCHEMA_REGISTRY_URL": registry.url}
    produce("-", stdin=ndjson(commerce_event(f"e-{number}") for number in range(1, 30)), **own)
    assert registry.requests.count(path) == 2
    values = [one.value() or b"" for one in read_all(produce.kafka, produce.topic, 30)]
    assert all(value[:5] == b"\0\0\0\0\x01" for value in values)

    registry.faults.status = 503
    settings = {"PINSTREAM_SCHEMAS_DIR": "", **own}
    env = run_environment(produce.folder, produce.kafka, produce.topic, new_group(), api.url, **settings)
    with Process(produce.folder, "run", env=env) as process:
        process.until(lambda: process.status()["open"]["waiting_for_schema"] == 30, "records that wait")
        assert process.ledger()["open"] == 30
        registry.faults.status = None
        assert process.until_settled(30)["delivered"] == 30
        assert process.stop()[0] == 0
    assert api.counts().distinct_event_ids == 30


def test_records_of_several_types(produce: Producing, registry: FakeRegistry) -> None:
    """Each with the schema of its type, registered under its name; the newest event is now."""
    (produce.folder / "schemas").mkdir()
    write_schemas(produce.folder / "schemas", UNION)
    mapping = produce.file("mapping.toml", MAPPING)
    produce.env |= {
        "PINSTREAM_SCHEMAS_DIR": f"{produce.folder}/schemas",
        "PINSTREAM_MAPPING_FILE": str(mapping),
    }
    lines: list[dict[str, Any]] = [
        {"com.shop.Order": {"id": "o", "at": "2026-03-01T12:00:00Z", "total": "59.90"}},
        {"com.shop.Click": {"click": "c", "seconds": 1_000}},
        {"com.shop.Signup": {"id": "s", "at": "2026-03-01T12:00:10Z", "member": {"mail": "joe@example.com"}}},
        {"com.shop.Refund": {"id": "r"}},
    ]
    begun = time.time()
    said = produce(produce.file("shop.ndjson", ndjson(lines)), "--now", code=1)
    assert "record 4 is skipped: no section of the mapping is for the record type com.shop.Refund" in said[0]
    made = ((ORDER, order()), (CLICK, click()), (SIGNUP, signup()))
    by_framing = {single_object(schema, event)[:10]: schema for schema, event in made}
    by_id = {}
    for value in (message.value() or b"" for message in read_all(produce.kafka, produce.topic, 3)):
        one: Any = fastavro.schemaless_reader(BytesIO(value[10:]), by_framing[value[:10]], None)
        by_id[one.get("id", one.get("click"))] = one
    assert by_id["o"]["total"] == Decimal("59.90")
    assert begun - 1 <= by_id["s"]["at"].timestamp() <= time.time()
    assert by_id["s"]["at"].timestamp() - by_id["o"]["at"].timestamp() == pytest.approx(10, abs=0.01)

    produce("-", stdin=ndjson(lines[:3]), SCHEMA_REGISTRY_URL=registry.url)
    asked = "".join(registry.requests)
    assert all(f"{produce.topic}-com.shop.{name}/versions" in asked for name in ("Order", "Click", "Signup"))


def test_a_topic_is_created_with_its_partitions(produce: Producing) -> None:
    """With ``--create-topic`` a missing topic gets this number of partitions; one that exists is left as it is."""
    produce.topic = topic = unique("made")
    for number, said in ((3, [f"created the topic {topic} with 3 partitions"]), (5, [])):
        event = ndjson([commerce_event(f"e-{number}")])
        assert produce("-", "--create-topic", number, stdin=event) == [
            *said,
            f"produced 1 records to {topic}",
        ]
    assert len(AdminClient(produce.kafka.config).list_topics(topic, timeout=10).topics[topic].partitions) == 3
    assert [one["event_id"] for one in produce.written()] == ["e-3", "e-5"]


def test_a_record_that_fails_says_where_to_go_on(produce: Producing) -> None:
    """With exit code 1; all before it are on the topic."""
    produce.topic = create_topic(produce.kafka, 1, None, **{"max.message.bytes": "2000"})
    events = [commerce_event(f"e-{number}") for number in range(1, 10)]
    events[6] = commerce_event("e-7", search_query=random.Random(1).randbytes(10_000).hex())
    # A line that does not fit counts: the number is that of the line. Slowly, so that most records are batches of
    # their own: a broker refuses whole batches.
    said = produce(produce.file("some.ndjson", "{}\n" + ndjson(events)), "--rate", "10", code=1)
    reported = re.search(r"everything before record (\d+) of .* is written: go on with that one", said[-1])
    assert reported is not None, said
    place, written = int(reported[1]), {one["event_id"] for one in produce.written()}
    assert place <= 8
    assert written >= {f"e-{number}" for number in range(1, place - 1)}
    assert "e-7" not in written
