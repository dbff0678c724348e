"""Records of Confluent's serialiser are delivered, whatever subject their schema has and whatever happened to it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient, header_schema_id_serializer

from tests.end_to_end import records
from tests.end_to_end.api import Registry
from tests.end_to_end.records import new_group
from tests.end_to_end.registry.serialising import evolved, with_references, write
from tests.end_to_end.shop import NewShop, Shop
from tests.support.kafka.harness import unique


@pytest.fixture
def client(real_registry: str) -> Iterator[SchemaRegistryClient]:
    """Confluent's own client, as producers use it."""
    with SchemaRegistryClient({"url": real_registry}) as one:
        yield one


def ids(what: str, count: int = 3) -> list[str]:
    """Event ids."""
    return [f"{what}-{number}" for number in range(count)]


@pytest.fixture
def new_shop(new_shop: NewShop, real_registry: str) -> NewShop:
    """Shops of one partition, with the registry."""
    return partial(new_shop, partitions=1, SCHEMA_REGISTRY_URL=real_registry)


@pytest.fixture
def shop(new_shop: NewShop) -> Shop:
    """One without other settings."""
    return new_shop()


def test_every_subject_naming_strategy(shop: Shop, client: SchemaRegistryClient) -> None:
    """Subjects by topic, by record, by both, and named by hand. `check` finds the registry in order."""
    kafka, topic = shop.kafka, shop.topic
    written = []
    for strategy in ("TOPIC", "RECORD", "TOPIC_RECORD"):
        write(kafka, topic, client, ids(strategy), subject_name_strategy_type=strategy)
        written += ids(strategy)
    write(kafka, topic, client, ids("own"), subject_name_strategy=lambda *_: f"shop events/{topic}")
    shop.command("check")
    shop.serve(12)
    assert shop.api.accepted() == dict.fromkeys([*written, *ids("own")], 1)
    assert {f"{topic}-value", f"{topic}-commerce.v1.CommerceEvent", "commerce.v1.CommerceEvent"} <= set(
        client.get_subjects()
    )


def test_versions_references_and_deleted_subjects(
    shop: Shop, client: SchemaRegistryClient, tmp_path: Path
) -> None:
    """A topic gets records of a new version and of a schema with references, and then all subjects are deleted:
    a service that starts now reads everything, since it asks by id."""
    kafka, topic = shop.kafka, shop.topic
    write(kafka, topic, client, ids("first"))
    schema, referred = with_references(client, topic)
    with shop.run() as service:
        service.until_settled(3)
        write(kafka, topic, client, ids("second"), evolved())
        write(kafka, topic, client, ids("third"), schema)
        write(kafka, topic, client, ids("fourth"))
        assert service.until_settled(12)["delivered"] == 12
    assert client.get_versions(f"{topic}-value") == [1, 2, 3]
    client.delete_subject(f"{topic}-value")
    assert f"{topic}-value" not in client.get_subjects()
    assert referred
    again = {"KAFKA_GROUP_ID": new_group(), "PINSTREAM_STATE_DIR": str(tmp_path / "another")}
    assert shop.serve(12, **again)["delivered"] == 12
    assert set(shop.api.accepted().values()) == {2}


OTHERS = {
    "PROTOBUF": 'syntax = "proto3"; message %s { int32 id = 1; }',
    "JSON": '{"$schema": "http://json-schema.org/draft-07/schema#", "title": "%s", "type": "object"}',
}


def test_records_of_other_kinds_are_refused_for_what_they_are(
    new_shop: NewShop, client: SchemaRegistryClient
) -> None:
    """The dead letter names the schema's kind; later records are delivered. An id that no registry can have
    becomes a dead letter, too, and delays nothing."""
    shop = new_shop(PINSTREAM_SCHEMA_PATIENCE="1s")
    kafka, topic = shop.kafka, shop.topic
    said = []
    for kind, text in OTHERS.items():
        name = unique("Order").replace("-", "_")
        schema_id = client.register_schema(f"{topic}-{kind}", Schema(text % name, kind))
        records.write(kafka, topic, [(None, b"\x00" + schema_id.to_bytes(4, "big") + b"\x00\x08\x01")])
        said.append(f"schema id {schema_id}: it is a {kind} schema; pinstream reads Avro")
    records.write(kafka, topic, [(None, b"\x00\xff\xff\xff\xff garbage")])
    write(kafka, topic, client, ids("behind"))
    with shop.run() as service:
        ledger = service.until_settled(6)
        service.until(lambda: shop.committed == 6, "the commit")
    assert (ledger["delivered"], ledger["dead_lettered"]) == (3, 3)
    assert {one["reason"] for one in service.log if one.get("verdict") == "incompatible_schema"} == set(said)
    assert [(offset, code) for offset, _, code in shop.reasons] == [
        (0, "incompatible_schema"),
        (1, "incompatible_schema"),
        (2, "no_such_schema"),
    ]
    assert {one["message"] for _, one in shop.letters} >= set(said)
    shown = shop.command("dead-letters", "list", "--topic", topic).stdout
    assert all(line in shown for line in said)


def test_schemas_by_guid_in_a_header(shop: Shop, registry: Registry) -> None:
    """The serialiser puts the GUID into a header, and the record's value is bare Avro. Only the fake has GUIDs."""
    with SchemaRegistryClient({"url": registry.url}) as client:
        by_guid = header_schema_id_serializer
        write(shop.kafka, shop.topic, client, ids("guid"), schema_id_serializer=by_guid)
        write(shop.kafka, shop.topic, client, ids("prefix"), evolved())
        shop.serve(6, SCHEMA_REGISTRY_URL=registry.url)
        assert sum(path.startswith("/schemas/guids/") for path in registry.requests) == 1
    assert shop.api.accepted() == dict.fromkeys(ids("guid") + ids("prefix"), 1)
