"""The registry is ill or lacks a schema: known ids go on, unknown ones wait, and only "no such schema", said for long,
is final for a record.

Records are in Confluent's wire format (``00``, an id of four bytes, Avro), on one partition unless said otherwise, so
that what waits stands in the way of the commit. The registry is a process of ours that can be down and come back.
"""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Iterator
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from consumer.avro.encode import Encoder
from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import (
    ENCODER,
    SCHEMA,
    commerce_event,
    committed_offsets,
    dead_letters,
    new_group,
    new_topic,
    write,
    write_events,
    write_registered,
)
from tests.support.kafka.harness import Kafka

SUBJECT = "orders-value"


@pytest.fixture
def registry(servers: Loop) -> Iterator[Registry]:
    """A registry without faults or schemas."""
    with Registry(servers) as one:
        yield one


class Line:
    """One topic, its group, and the environment of a process that reads it."""

    def __init__(self, kafka: Kafka, api: Api, registry: Registry, folder: Path, **settings: str) -> None:
        self._kafka, self._folder = kafka, folder
        self.topic, self.group = new_topic(kafka, 1), new_group()
        self.env = run_environment(
            folder, kafka, self.topic, self.group, api.url, SCHEMA_REGISTRY_URL=registry.url, **settings
        )

    def run(self) -> Process:
        """A process that reads it."""
        return Process(self._folder, "run", env=self.env)

    def write(self, schema_id: int, *event_ids: str, schema: Any = None) -> None:
        """Write events with this schema id."""
        events = [commerce_event(event_id) for event_id in event_ids]
        write_registered(self._kafka, self.topic, schema_id, events, schema)

    @property
    def committed(self) -> int:
        """The group's next offset of the one partition that records are on."""
        return committed_offsets(self._kafka, self.group, self.topic)[0]

    @property
    def reasons(self) -> list[tuple[int, str, str]]:
        """Offset, stage and code of each dead letter."""
        found = [headers for _, headers in dead_letters(self._kafka, self.topic)]
        return sorted((int(one["offset"]), one["stage"], one["code"]) for one in found)


def version(number: int) -> dict[str, Any]:
    """Another version of the schema: it can be read, but its text differs, and so does its id."""
    schema = copy.deepcopy(SCHEMA)
    field = {"name": f"added_{number}", "type": ["null", "string"], "default": None}
    schema["fields"].append(field)
    return schema


def complaints(process: Process) -> list[str]:
    """Why a schema could not be fetched, for each such log line."""
    return [line["reason"] for line in process.log if line.get("event") == "schema_unavailable"]


def test_down_when_it_starts(kafka: Kafka, api: Api, registry: Registry, tmp_path: Path) -> None:
    """The process starts, reads, waits and says so; what needs no registry is delivered, and the rest once the
    registry is up."""
    schema_id = registry.add(SUBJECT, SCHEMA)
    registry.down()
    line = Line(kafka, api, registry, tmp_path)
    line.write(schema_id, "waits-1", "waits-2")
    write_events(kafka, line.topic, [commerce_event("needs-none")])
    with line.run() as process:
        process.until(lambda: len(complaints(process)) > 1, "a second question")
        process.until(lambda: api.accepted(), "what needs no registry")
        assert process.ledger() == {
            "read": 3, "delivered": 1, "duplicate": 0, "filtered": 0, "dead_lettered": 0, "open": 2,
        }  # fmt: skip
        assert process.get("/readyz")[0] == process.get("/healthz")[0] == 200
        assert line.committed == 0
        registry.up()
        assert process.until_settled(3)["delivered"] == 3
        assert process.stop()[0] == 0
    assert api.accepted() == {"waits-1": 1, "waits-2": 1, "needs-none": 1}
    assert (line.committed, line.reasons) == (3, [])


def test_down_later(kafka: Kafka, api: Api, registry: Registry, tmp_path: Path) -> None:
    """What was learnt stays known. A new id waits in the midst, for long, and nothing behind it is committed.

    A restart meanwhile changes nothing: what was delivered behind the one that waits is not sent again.
    """
    known, new = registry.add(SUBJECT, SCHEMA), registry.add(SUBJECT, version(1))
    line = Line(kafka, api, registry, tmp_path)
    line.write(known, "before-1", "before-2")
    with line.run() as process:
        process.until(lambda: line.committed == 2, "the known id")
        registry.down()
        line.write(known, "known-2")
        line.write(new, "waits-3", schema=version(1))
        line.write(known, "known-4", "known-5")
        process.until(lambda: len(api.accepted()) == 5, "the known id, behind the one that waits")
        process.until(lambda: len(complaints(process)) > 1, "a second question")
        process.until(lambda: line.committed == 3, "the commit up to what waits")
        assert process.ledger()["open"] == 1
        assert process.stop()[0] == 0
    assert line.committed == 3
    # The next one knows no schema at all, and needs none for what the offset map has.
    with line.run() as process:
        process.until(
            lambda: process.ledger()["open"] == 1 and complaints(process), "all that is left to wait"
        )
        assert process.status()["passed_over"] == 2
        registry.up()
        process.until(lambda: line.committed == 6, "all of it")
        assert process.stop()[0] == 0
    ids = [path.rpartition("/")[2] for path in registry.requests]
    assert sorted(ids) == [str(known), str(new)]
    sent = ("before-1", "before-2", "known-2", "waits-3", "known-4", "known-5")
    assert api.accepted() == dict.fromkeys(sent, 1)
    assert line.reasons == []


KEY_MAPPING = '[fields]\n"user_data.external_id" = "@key.customer"\n'
KEY = {"type": "record", "name": "Key", "fields": [{"name": "customer", "type": "string"}]}


def test_down_when_it_starts_and_killed_while_keys_wait(
    kafka: Kafka, api: Api, registry: Registry, tmp_path: Path
) -> None:
    """Where the mapping reads a key that has a schema, its records wait for that schema, also over a kill: nothing is
    committed past them, and each is then delivered once, with what its key says."""
    encoder = Encoder(KEY, registry.add("orders-key", KEY))
    registry.down()
    (tmp_path / "m.toml").write_text(KEY_MAPPING)
    line = Line(kafka, api, registry, tmp_path, PINSTREAM_MAPPING_FILE=str(tmp_path / "m.toml"))
    keyed = {f"keyed-{number}": encoder.encode({"customer": f"c-{number}"}) for number in range(20)}
    write(kafka, line.topic, ((key, ENCODER.encode(commerce_event(name))) for name, key in keyed.items()))
    write_events(kafka, line.topic, [commerce_event("no-key")])
    for end in (Process.kill, Process.stop):
        with line.run() as process:
            process.until(lambda: complaints(process), "the first question")
            process.until(lambda: api.accepted(), "what has no key")
            if end is Process.stop:
                registry.up()
                process.until(lambda: line.committed == 21, "all of it")
            assert line.committed == (21 if end is Process.stop else 0)
            end(process)
    assert api.accepted() == dict.fromkeys((*keyed, "no-key"), 1)
    assert line.reasons == []
    sent = {one["event_id"]: one["user_data"].get("external_id") for one in api.events}
    digests = {f"keyed-{number}": [sha256(f"c-{number}".encode()).hexdigest()] for number in range(20)}
    assert sent == {**digests, "no-key": None}


SICK: dict[str, dict[str, Any]] = {
    "server error": {"status": 500},
    "unavailable": {"status": 503},
    "too many requests": {"status": 429},
    "a proxy's not found": {"status": 404, "body": b"<html>Not Found</html>"},
    "a path it does not know": {
        "status": 404,
        "body": b'{"error_code": 404, "message": "HTTP 404 Not Found"}',
    },
    "a page to log in": {"body": b"<html>Please log in</html>"},
    "no schema in it": {"body": b"{}"},
    "cut off": {"body": b'{"schema": "{'},
    "hanging up": {"drop": True},
    "silent": {"hang": True},
}
"""Faults of a registry. None of these is a verdict on a schema."""


def test_ill_in_every_way(kafka: Kafka, api: Api, registry: Registry, tmp_path: Path) -> None:
    """No answer but its own "no such schema" is a verdict: each record waits, none dies, all are delivered in the end.

    One illness after the other, each met by an id of its own. The known id is delivered all the while.
    """
    known = registry.add(SUBJECT, SCHEMA)
    line = Line(kafka, api, registry, tmp_path, SCHEMA_REGISTRY_TIMEOUT="1")
    line.write(known, "known-0")
    with line.run() as process:
        process.until(lambda: line.committed == 1, "the known id")
        for number, faults in enumerate(SICK.values(), start=1):
            schema_id = registry.add(SUBJECT, version(number))
            registry.set_faults(**faults)
            line.write(schema_id, f"sick-{number}", schema=version(number))
            line.write(known, f"known-{number}")
            # Asked again, so the first answer was taken for what it is.
            process.until(partial(asked, registry, schema_id, 2), f"two questions for id {schema_id}")
            process.until(partial(accepted, api, f"known-{number}"), "the known id")
        ledger = process.ledger()
        assert (ledger["open"], ledger["dead_lettered"]) == (len(SICK), 0)
        assert line.committed == 1
        registry.set_faults()
        process.until_settled(1 + 2 * len(SICK))
        process.until(lambda: line.committed == 1 + 2 * len(SICK), "the commit")
        assert process.stop()[0] == 0
    assert len(api.accepted()) == 1 + 2 * len(SICK)
    assert set(api.accepted().values()) == {1}
    assert line.reasons == []
    advice = "check the registry, and what is in front of it"
    assert f"the registry answered 500, code 50001: {advice}" in complaints(process)


def asked(registry: Registry, schema_id: int, times: int) -> bool:
    """Whether the registry was asked `times` times for this schema."""
    return registry.requests.count(f"/schemas/ids/{schema_id}") >= times


def accepted(api: Api, event_id: str) -> bool:
    """Whether the API accepted this event."""
    return event_id in api.accepted()


MISMATCHED: dict[str, Any] = {
    "type": "record",
    "name": "commerce.v1.CommerceEvent",
    "fields": [{"name": "event_id", "type": "long"}],
}
"""A schema whose event id is no text, and which lacks the fields that ours needs."""


def test_verdicts_are_final_and_hold_up_nobody(
    kafka: Kafka, api: Api, registry: Registry, tmp_path: Path
) -> None:
    """No such schema, one that does not fit ours, one that is not Avro: dead letters with their code.

    The last two are asked for once; the first is asked for throughout the patience.

    The records around them are delivered, also those of a version that does fit.
    """
    fits, later = registry.add(SUBJECT, SCHEMA), registry.add(SUBJECT, version(1))
    mismatched, strange = registry.add(SUBJECT, MISMATCHED), registry.add(SUBJECT, {"type": "object"})
    line = Line(kafka, api, registry, tmp_path, PINSTREAM_SCHEMA_PATIENCE="1s")
    line.write(fits, "fits-0")
    line.write(4711, "nobody-1")
    with line.run() as process:
        process.until_settled(2)
        line.write(later, "fits-2", schema=version(1))
        write_raw(kafka, line.topic, mismatched, b"\x02")
        line.write(strange, "strange-4")
        write_raw(kafka, line.topic, 4711, b"again")
        line.write(fits, "fits-6")
        ledger = process.until_settled(7)
        assert (ledger["delivered"], ledger["dead_lettered"]) == (3, 4)
        process.until(lambda: line.committed == 7, "the commit")
        assert process.stop()[0] == 0
    assert api.accepted() == {"fits-0": 1, "fits-2": 1, "fits-6": 1}
    assert line.reasons == [
        (1, "decode", "no_such_schema"),
        (3, "decode", "incompatible_schema"),
        (4, "decode", "incompatible_schema"),
        (5, "decode", "no_such_schema"),
    ]
    ids = [path.rpartition("/")[2] for path in registry.requests]
    assert ids.count("4711") > 2
    assert sorted(one for one in ids if one != "4711") == sorted(map(str, (fits, later, mismatched, strange)))
    assert complaints(process) == []


def test_a_schema_that_is_registered_late_costs_nothing(
    kafka: Kafka, api: Api, registry: Registry, tmp_path: Path
) -> None:
    """One record comes before its schema: it waits, and the log says so. Then the schema is there, and all are
    delivered."""
    known = registry.add(SUBJECT, SCHEMA)
    line = Line(kafka, api, registry, tmp_path)
    line.write(known + 1, "early", schema=version(1))
    line.write(known, "known")
    with line.run() as process:
        process.until(lambda: asked(registry, known + 1, 3), "questions for what is not there yet")
        process.until(lambda: accepted(api, "known"), "the known id")
        [waits] = process.status()["open"]["schemas"]
        assert (waits["kind"], waits["value"], waits["records"]) == ("id", str(known + 1), 1)
        assert waits["seconds"] >= waits["denied_seconds"] > 0
        assert "pinstream_schema_wait_seconds 0.0" not in process.get("/metrics")[1]
        reported = [one for one in process.log if one.get("event") == "schema_missing"]
        assert [(one["ref"], one["patience"]) for one in reported] == [(str(known + 1), 300)]
        assert registry.add(SUBJECT, version(1)) == known + 1
        line.write(known + 1, *(f"late-{number}" for number in range(300)), schema=version(1))
        assert process.until_settled(302)["delivered"] == 302
        assert process.status()["open"]["schemas"] == []
        process.until(lambda: line.committed == 302, "the commit")
        assert process.stop()[0] == 0
    assert line.reasons == []


def test_a_schema_later_than_patience_heals_without_a_restart(
    kafka: Kafka, api: Api, registry: Registry, tmp_path: Path
) -> None:
    """A record that waited for that long becomes a dead letter; records that come once the schema is there are
    delivered."""
    known = registry.add(SUBJECT, SCHEMA)
    line = Line(kafka, api, registry, tmp_path, PINSTREAM_SCHEMA_PATIENCE="1s")
    line.write(known + 1, "early", schema=version(1))
    with line.run() as process:
        process.until(lambda: line.committed == 1, "the dead letter")
        assert registry.add(SUBJECT, version(1)) == known + 1
        line.write(known + 1, "late-1", "late-2", schema=version(1))
        assert process.until_settled(3)["delivered"] == 2
        assert process.stop()[0] == 0
    assert line.reasons == [(0, "decode", "no_such_schema")]
    assert api.accepted() == {"late-1": 1, "late-2": 1}


def test_made_up_ids_cost_few_questions(kafka: Kafka, api: Api, registry: Registry, tmp_path: Path) -> None:
    """A flood of records, each with another id: the registry is asked at an even rate, and not at all once the
    guard has tripped."""
    known = registry.add(SUBJECT, SCHEMA)
    line = Line(
        kafka, api, registry, tmp_path, PINSTREAM_SCHEMA_PATIENCE="1s", PINSTREAM_DEAD_LETTER_SAMPLE="100"
    )
    values = [(None, b"\x00" + number.to_bytes(4, "big") + b"x") for number in range(10_000, 12_000)]
    write(kafka, line.topic, values)
    line.write(known, "behind")
    with line.run() as process:
        begun = time.monotonic()
        process.until(lambda: accepted(api, "behind"), "the known id, behind all of them", within=10.0)
        process.until_logged("dead_letter_guard")
        questions, seconds = len(registry.requests), time.monotonic() - begun
        assert questions <= 2.5 * 20 + seconds * 20 + 8
        process.until(lambda: process.get("/readyz")[0] == 503, "the guard's word")
        settled = len(registry.requests)
        process.until_logged("dead_letter_guard")
        assert len(process.status()["open"]["schemas"]) == 20
        assert len(registry.requests) <= settled + 8
        assert process.stop()[0] == 0
    assert len(line.reasons) <= 100


def test_a_file_that_comes_late_is_read(kafka: Kafka, api: Api, tmp_path: Path) -> None:
    """Without a registry the schema folder is read again for a schema that it lacked."""
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "event.avsc").write_text(json.dumps(SCHEMA))
    topic, group = new_topic(kafka, 1), new_group()
    env = run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_SCHEMAS_DIR=str(folder))
    write_registered(kafka, topic, 17, [commerce_event("early")], version(1))
    with Process(tmp_path, "run", env=env) as process:
        process.until_logged("schema_missing")
        (folder / "event.17.avsc").write_text(json.dumps(version(1)))
        assert process.until_settled(1)["delivered"] == 1
        assert process.stop()[0] == 0
    assert api.accepted() == {"early": 1}


def test_refused_credentials_wait_and_are_reported_of(
    kafka: Kafka, api: Api, servers: Loop, tmp_path: Path
) -> None:
    """A 401 is no verdict: records wait, and the log says to check the credentials without showing them."""
    with Registry(servers, credentials="pinstream:another") as registry:
        schema_id = registry.add(SUBJECT, SCHEMA)
        line = Line(
            kafka, api, registry, tmp_path, SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO="pinstream:s3cr3t-of-ours"
        )
        line.write(schema_id, "waits")
        with line.run() as process:
            process.until(lambda: len(complaints(process)) > 1, "a second question")
            assert all(
                "answered 401" in one and "check SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO" in one
                for one in complaints(process)
            )
            assert (process.ledger()["open"], line.committed) == (1, 0)
            registry.set_credentials("pinstream:s3cr3t-of-ours")
            assert process.until_settled(1)["delivered"] == 1
            assert process.stop()[0] == 0
    assert "s3cr3t" not in process.stderr + process.stdout
    assert (line.committed, line.reasons) == (1, [])


def write_raw(kafka: Kafka, topic: str, schema_id: int, datum: bytes) -> None:
    """Write one record in Confluent's wire format with any datum."""
    write(kafka, topic, [(None, b"\x00" + schema_id.to_bytes(4, "big") + datum)])
