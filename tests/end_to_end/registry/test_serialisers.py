"""Records of Confluent's serialiser are delivered, whatever subject their schema has and whatever happened to it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, header_schema_id_serializer

from tests.end_to_end import records
from tests.end_to_end.api import Api, Loop, Registry
from tests.end_to_end.processes import Process, command, run_environment
from tests.end_to_end.records import committed_offsets, dead_letters, new_group, new_topic
from tests.end_to_end.registry.serialising import evolved, with_references, write
from tests.support.kafka.harness import Kafka, unique


@pytest.fixture
def client(real_registry: str) -> Iterator[SchemaRegistryClient]:
    """Confluent's own client, as producers use it."""
    with SchemaRegistryClient({"url": real_registry}) as one:
        yield one


def ids(what: str, count: int = 3) -> list[str]:
    """Event ids."""
    return [f"{what}-{number}" for number in range(count)]


def test_every_subject_naming_strategy(
    kafka: Kafka, real_registry: str, client: SchemaRegistryClient, api: Api, tmp_path: Path
) -> None:
    """Subjects by topic, by record, by both, and named by hand. `check` finds the registry in order."""
    topic, group = new_topic(kafka, 1), new_group()
    written = []
    for strategy in ("TOPIC", "RECORD", "TOPIC_RECORD"):
        write(kafka, topic, client, ids(strategy), subject_name_strategy_type=strategy)
        written += ids(strategy)
    write(kafka, topic, client, ids("own"), subject_name_strategy=lambda *_: f"shop events/{topic}")
    env = run_environment(tmp_path, kafka, topic, group, api.url, SCHEMA_REGISTRY_URL=real_registry)
    checked = command("check", env=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with Process(tmp_path, "run", env=env) as service:
        service.until_settled(12)
        assert service.stop()[0] == 0
    assert api.accepted() == dict.fromkeys([*written, *ids("own")], 1)
    assert {f"{topic}-value", f"{topic}-commerce.v1.CommerceEvent", "commerce.v1.CommerceEvent"} <= set(
        client.get_subjects()
    )


def test_versions_references_and_deleted_subjects(
    kafka: Kafka, real_registry: str, client: SchemaRegistryClient, api: Api, tmp_path: Path
) -> None:
    """A topic gets records of a new version and of a schema with references, and then all subjects are deleted:
    a service that starts now reads everything, since it asks by id."""
    topic, group = new_topic(kafka, 1), new_group()
    write(kafka, topic, client, ids("first"))
    schema, referred = with_references(client, topic)
    env = run_environment(tmp_path, kafka, topic, group, api.url, SCHEMA_REGISTRY_URL=real_registry)
    with Process(tmp_path / "first", "run", env=env) as service:
        service.until_settled(3)
        write(kafka, topic, client, ids("second"), evolved())
        write(kafka, topic, client, ids("third"), schema)
        write(kafka, topic, client, ids("fourth"))
        assert service.until_settled(12)["delivered"] == 12
        assert service.stop()[0] == 0
    assert client.get_versions(f"{topic}-value") == [1, 2, 3]
    client.delete_subject(f"{topic}-value")
    assert f"{topic}-value" not in client.get_subjects()
    assert referred
    again = env | {"KAFKA_GROUP_ID": new_group(), "PINSTREAM_STATE_DIR": str(tmp_path / "another")}
    with Process(tmp_path / "again", "run", env=again) as service:
        assert service.until_settled(12)["delivered"] == 12
        assert service.stop()[0] == 0
    assert set(api.accepted().values()) == {2}


OTHERS = {
    "PROTOBUF": 'syntax = "proto3"; message %s { int32 id = 1; }',
    "JSON": '{"$schema": "http://json-schema.org/draft-07/schema#", "title": "%s", "type": "object"}',
}


def test_records_of_other_kinds_are_refused_for_what_they_are(
    kafka: Kafka, real_registry: str, client: SchemaRegistryClient, api: Api, tmp_path: Path
) -> None:
    """The dead letter names the schema's kind; later records are delivered. An id that no registry can have
    becomes a dead letter, too, and delays nothing."""
    topic, group = new_topic(kafka, 1), new_group()
    said = []
    for kind, text in OTHERS.items():
        name = unique("Order").replace("-", "_")
        schema_id = client.register_schema(f"{topic}-{kind}", Schema(text % name, kind))
        records.write(kafka, topic, [(None, b"\x00" + schema_id.to_bytes(4, "big") + b"\x00\x08\x01")])
        said.append(f"schema id {schema_id}: it is a {kind} schema; pinstream reads Avro")
    records.write(kafka, topic, [(None, b"\x00\xff\xff\xff\xff garbage")])
    write(kafka, topic, client, ids("behind"))
    env = run_environment(
        tmp_path,
        kafka,
        topic,
        group,
        api.url,
        SCHEMA_REGISTRY_URL=real_registry,
        PINSTREAM_SCHEMA_PATIENCE="1s",
    )
    with Process(tmp_path, "run", env=env) as service:
        ledger = service.until_settled(6)
        service.until(lambda: committed_offsets(kafka, group, topic, 1) == [6], "the commit")
        assert service.stop()[0] == 0
    assert (ledger["delivered"], ledger["dead_lettered"]) == (3, 3)
    assert {one["reason"] for one in service.log if one.get("verdict") == "incompatible_schema"} == set(said)
    letters = sorted((one for _, one in dead_letters(kafka, topic)), key=lambda one: int(one["offset"]))
    assert [one["message"] for one in letters[:2]] == said
    assert [one["code"] for one in letters] == [
        "incompatible_schema",
        "incompatible_schema",
        "no_such_schema",
    ]
    shown = command("dead-letters", "list", "--topic", topic, env=env)
    assert shown.returncode == 0
    assert all(line in shown.stdout for line in said)


def test_schemas_by_guid_in_a_header(kafka: Kafka, servers: Loop, api: Api, tmp_path: Path) -> None:
    """The serialiser puts the GUID into a header, and the record's value is bare Avro. Only the fake has GUIDs."""
    with Registry(servers) as registry, SchemaRegistryClient({"url": registry.url}) as client:
        topic, group = new_topic(kafka, 1), new_group()
        write(kafka, topic, client, ids("guid"), schema_id_serializer=header_schema_id_serializer)
        write(kafka, topic, client, ids("prefix"), evolved())
        env = run_environment(tmp_path, kafka, topic, group, api.url, SCHEMA_REGISTRY_URL=registry.url)
        with Process(tmp_path, "run", env=env) as service:
            service.until_settled(6)
            assert service.stop()[0] == 0
        assert sum(path.startswith("/schemas/guids/") for path in registry.requests) == 1
    assert api.accepted() == dict.fromkeys(ids("guid") + ids("prefix"), 1)
