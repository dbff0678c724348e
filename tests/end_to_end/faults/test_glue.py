"""Records of AWS Glue's serialisers, with schemas from a stub of Glue: through `check`, `run`, `replay` and `show`."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from consumer.avro.encode import Encoder
from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, run_environment
from tests.end_to_end.records import (
    SCHEMA,
    commerce_event,
    committed_offsets,
    dead_letters,
    new_group,
    new_topic,
    write,
)
from tests.support.aws import Glue, glue_value
from tests.support.kafka.harness import Kafka

_HEAD = 10  # of single-object encoding, before the datum


@pytest.fixture
def glue() -> Iterator[Glue]:
    """The stub, with no schema."""
    found = Glue()
    yield found
    found.close()


def value(version: str, event_id: str, *, zipped: bool = False) -> tuple[None, bytes]:
    """A record of Glue's serialiser."""
    datum = Encoder(SCHEMA).encode(commerce_event(event_id))[_HEAD:]
    return None, glue_value(version, datum, zipped=zipped)


def test_records_of_glue(kafka: Kafka, api: Api, glue: Glue, tmp_path: Path) -> None:
    """While Glue is down its records wait; then both compressions are delivered, and other formats become dead
    letters that say why. A later start while Glue is down uses the schemas on disk."""
    topic, group = new_topic(kafka, 1), new_group()
    env = {
        **run_environment(tmp_path, kafka, topic, group, api.url, PINSTREAM_SCHEMA_PATIENCE="2s"),
        **glue.variables(),
    }
    ours, json_schema = glue.add(SCHEMA), glue.add("{}", "JSON")
    records = [value(ours, f"plain-{at}") for at in range(20)]
    records += [value(ours, f"zlib-{at}", zipped=True) for at in range(20)]
    bomb = (None, glue_value(ours, bytes(32 << 20), zipped=True))
    write(kafka, topic, [*records, value(json_schema, "json"), value(str(uuid.uuid4()), "unknown"), bomb])

    glue.fails = (400, "ThrottlingException")
    with Process(tmp_path, "run", env=env) as service:
        service.until(
            lambda: any("ThrottlingException" in str(line.get("reason")) for line in service.log),
            "the trouble",
        )
        assert service.ledger()["open"] > 0
        assert committed_offsets(kafka, group, topic)[0] == 0
        assert service.get("/healthz")[0] == 200
        glue.fails = None
        ledger = service.until_settled(43)
        assert service.stop()[0] == 0
    assert (ledger["delivered"], ledger["dead_lettered"]) == (40, 3)
    assert api.counts().distinct_event_ids == 40
    said = {one["code"]: one["message"] for _, one in dead_letters(kafka, topic)}
    assert (
        said["incompatible_schema"] == f"schema glue {json_schema}: it is a JSON schema; pinstream reads Avro"
    )
    assert "does not exist" in said["no_such_schema"]
    assert "unpacks to more than 16 MiB" in said["too_large"]

    checked = command("check", env=env)
    assert checked.returncode == 0, checked.stdout
    text = " ".join(checked.stdout.split())
    assert "answers; 1 schema on disk" in text
    assert "AWS Glue: region eu-west-1, credentials by env" in text
    letters = [
        command("dead-letters", "show", f"{topic}.dead-letters:0:{at}", "--payload", "--json", env=env).stdout
        for at in range(3)
    ]
    assert any(f'"schema":"glue {json_schema}"' in one for one in letters), letters

    glue.fails = (400, "AccessDeniedException")
    write(kafka, topic, [value(ours, "later", zipped=True)])
    with Process(tmp_path, "run", env=env) as service:
        service.until(lambda: api.counts().distinct_event_ids == 41, "the event")
        assert service.stop()[0] == 0
    refused = command("check", env=env)
    assert refused.returncode == 1
    assert "allow glue:GetSchemaVersion to this role" in " ".join(refused.stdout.split())

    glue.fails = None
    bounds = ("--topic", topic, "--from", "offset:0", "--to", "offset:40", "--ignore-dedup")
    replayed = command("replay", *bounds, env=env)
    assert replayed.returncode == 0, replayed.stderr
    assert api.accepted()["zlib-3"] == 2
