"""A start while the registry is down: records with schemas that were read before are read, others wait, and the
registry's answer decides.

As in `test_registry`, records are in Confluent's wire format, on one partition.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.faults.test_registry import SUBJECT, Line, version
from tests.end_to_end.processes import Process, command
from tests.end_to_end.records import SCHEMA, write
from tests.support.kafka.harness import Kafka

UNLIKE: dict[str, Any] = {
    "type": "record",
    "name": "commerce.v1.CommerceEvent",
    "fields": [{"name": "event_id", "type": "long"}],
}
"""Another schema with this name: no datum can be read with both."""


@pytest.fixture
def registry(servers: Loop) -> Iterator[Registry]:
    """A registry without faults or schemas."""
    with Registry(servers) as one:
        yield one


def files(tmp_path: Path) -> list[str]:
    """The files with schemas in the state folder."""
    folder = tmp_path / "state" / "registry-schemas"
    return sorted(os.listdir(folder)) if folder.exists() else []


def run_once(line: Line, count: int) -> Process:
    """Run until `count` records are settled, and stop."""
    with line.run() as process:
        process.until_settled(count)
        process.until(lambda: line.committed == count, "the commit")
        assert process.stop()[0] == 0
    return process


def test_a_start_without_the_registry(kafka: Kafka, api: Api, registry: Registry, tmp_path: Path) -> None:
    """Known ids are delivered and the status says by what; a new id waits; the registry's answer ends both.

    Also with several workers, which share the folder.
    """
    known, new = registry.add(SUBJECT, SCHEMA), registry.add(SUBJECT, version(1))
    line = Line(kafka, api, registry, tmp_path)
    line.write(known, "before-0", "before-1")
    run_once(line, 2)
    assert len(files(tmp_path)) == 1
    registry.down()
    line.write(known, "disk-2", "disk-3")
    line.write(new, "waits-4", schema=version(1))
    line.write(known, "disk-5")
    with line.run() as process:
        process.until(lambda: len(api.accepted()) == 5, "all of the known id")
        reported = process.until_logged("schema_from_disk")
        assert (reported["ref"], reported["level"]) == (str(known), "warning")
        assert "refuses connections" in reported["reason"]
        # What the API has accepted settles when its keys are stored.
        process.until(lambda: process.ledger()["open"] == 1, "all but what waits to settle")
        assert process.status()["schemas_from_disk"] == 1
        assert "pinstream_schemas_from_disk 1" in process.get("/metrics")[1]
        assert process.get("/readyz")[0] == process.get("/healthz")[0] == 200
        process.until(lambda: line.committed == 4, "the commit up to what waits")
        registry.up()
        process.until(lambda: line.committed == 6, "the commit of all")
        process.until(lambda: process.status()["schemas_from_disk"] == 0, "the registry's word")
        assert process.stop()[0] == 0
    assert not [one for one in process.log if one.get("event") in ("schema_changed", "schemas_on_disk")]
    assert len(files(tmp_path)) == 2
    registry.down()
    line.write(known, "disk-6")
    line.write(new, "disk-7", schema=version(1))
    with Process(tmp_path, "run", "--workers", "2", env=line.env) as process:
        process.until(lambda: line.committed == 8, "both ids, by two workers")
        assert process.stop()[0] == 0
    assert set(api.accepted().values()) == {1}
    assert (len(api.accepted()), line.reasons) == (8, [])


def test_a_registry_that_was_set_up_again(kafka: Kafka, api: Api, registry: Registry, tmp_path: Path) -> None:
    """The registry gives the id to another schema. Records that the old schema cannot read wait, and are read
    once the registry is up."""
    schema_id = registry.add(SUBJECT, UNLIKE)
    line = Line(kafka, api, registry, tmp_path, PINSTREAM_SCHEMA_PATIENCE="1h")
    write(kafka, line.topic, [(None, b"\x00" + schema_id.to_bytes(4, "big") + b"\x02")])
    run_once(line, 1)
    assert line.reasons == [(0, "decode", "incompatible_schema")], "it does not fit ours"
    registry.down()
    registry.lose_all()
    assert registry.add(SUBJECT, SCHEMA) == schema_id
    line.write(schema_id, "anew-1", "anew-2")
    with line.run() as process:
        process.until_logged("schema_from_disk")
        process.until(lambda: process.status()["open"]["waiting_for_schema"] == 2, "both records wait")
        assert process.ledger()["dead_lettered"] == 0
        registry.up()
        assert process.until_settled(2)["delivered"] == 2
        changed = process.until_logged("schema_changed")
        assert (changed["level"], changed["ref"], changed["now"]) == ("error", str(schema_id), "another")
        assert "was it reset?" in process.until_logged("schemas_on_disk")["text"]
        assert process.stop()[0] == 0
    assert api.accepted() == {"anew-1": 1, "anew-2": 1}
    # From here on the disk has the new one.
    registry.down()
    line.write(schema_id, "anew-3")
    with line.run() as process:
        process.until(lambda: line.committed == 4, "by what the disk has now")
        assert process.stop()[0] == 0


def test_a_folder_that_cannot_be_used_is_no_matter(
    kafka: Kafka, api: Api, registry: Registry, tmp_path: Path
) -> None:
    """A file stands in its place: a line in the log, and a service that works without the folder."""
    schema_id = registry.add(SUBJECT, SCHEMA)
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "registry-schemas").write_text("in the way")
    line = Line(kafka, api, registry, tmp_path)
    line.write(schema_id, "a")
    process = run_once(line, 1)
    [reported] = [one for one in process.log if one.get("event") == "schemas_on_disk"]
    assert "registry-schemas cannot keep what the schema registry answers" in reported["text"]
    assert api.accepted() == {"a": 1}


def test_the_other_commands(kafka: Kafka, api: Api, registry: Registry, tmp_path: Path) -> None:
    """A dry replay keeps no schema, a replay does; check warns while the registry is down, and fails if it was
    never reached."""
    schema_id = registry.add(SUBJECT, SCHEMA)
    line = Line(kafka, api, registry, tmp_path)
    line.write(schema_id, "a")
    replay = ("replay", "--topic", line.topic, "--from", "beginning", "--to", "end", "--json")
    assert command(*replay, "--dry-run", env=line.env).returncode == 0
    checked = command("check", env={**line.env, "COLUMNS": "200"})
    assert (checked.returncode, files(tmp_path)) == (0, [])
    assert "answers; 0 schemas on disk" in checked.stdout
    assert command(*replay, env=line.env).returncode == 0
    assert len(files(tmp_path)) == 1
    registry.down()
    again = command(*replay, "--ignore-dedup", env=line.env)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["ledger"]["delivered"] == 1
    checked = command("check", env={**line.env, "COLUMNS": "200"})
    assert checked.returncode == 0, checked.stdout
    assert "1 schema on disk" in checked.stdout
    assert "until it answers, records of the schemas on disk are read" in checked.stdout
    shown = command("dead-letters", "list", "--topic", line.topic, env=line.env)
    assert shown.returncode == 0
    other = {**line.env, "SCHEMA_REGISTRY_URL": "http://127.0.0.1:9"}
    assert command("check", env=other).returncode == 1


def test_refused_credentials_fail_the_check_though_schemas_are_on_disk(
    kafka: Kafka, api: Api, registry: Registry, tmp_path: Path
) -> None:
    """The service could read what it knows, but this does not recover by itself."""
    schema_id = registry.add(SUBJECT, SCHEMA)
    line = Line(kafka, api, registry, tmp_path)
    line.write(schema_id, "a")
    run_once(line, 1)
    registry.set_credentials("pinstream:another")
    checked = command("check", env={**line.env, "COLUMNS": "200"})
    assert checked.returncode == 1
    assert "the registry answered 401" in checked.stdout
