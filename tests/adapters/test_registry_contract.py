"""The behaviour of a registry, on a real one (Apicurio) and on the fake: each test here runs on both.

Schemas are registered and deleted with Confluent's own client, as by serialisers and users. Each test uses subjects of
its own, since all tests of a run share the real registry.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import pytest
from confluent_kafka.schema_registry import AsyncSchemaRegistryClient, Schema, SchemaReference
from confluent_kafka.schema_registry.error import SchemaRegistryError

from consumer.adapters.schemas import RegistrySchemas
from consumer.avro.decode import Decoder, OneSchema
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import Rejection, SchemaRef
from consumer.errors import RegistryError
from tests.adapters.fake_registry import FakeRegistry


@pytest.fixture(params=["fake", "real"])
async def each_registry(request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """Yield the address of the fake registry, then of the real one."""
    if request.param == "real":
        yield request.getfixturevalue("real_registry")
        return
    async with FakeRegistry() as registry:
        yield registry.url


@pytest.fixture
async def client(each_registry: str) -> AsyncIterator[AsyncSchemaRegistryClient]:
    """Yield Confluent's own client."""
    async with AsyncSchemaRegistryClient({"url": each_registry}) as one:
        yield one


@pytest.fixture
async def schemas(each_registry: str) -> AsyncIterator[RegistrySchemas]:
    """Yield pinstream's client."""
    one = RegistrySchemas({"url": each_registry})
    yield one
    await one.close()


def record(name: str, *types: Any) -> dict[str, Any]:
    """Return a record schema with fields of these types and a name that no other test has."""
    fields = [{"name": f"f{number}", "type": one} for number, one in enumerate(types)]
    return {"type": "record", "name": f"shop.{name}_{uuid4().hex}", "fields": fields}


def ref_of(schema_id: int) -> SchemaRef:
    """Return the reference to a schema id."""
    return SchemaRef("id", str(schema_id))


async def register(
    client: AsyncSchemaRegistryClient, schema: Any, *referred: tuple[str, str], subject: str = ""
) -> int:
    """Register `schema` and return its id; `referred` are full names and the subjects of version 1."""
    references = [SchemaReference(name, of, 1) for name, of in referred]
    return await client.register_schema(
        subject or f"s-{uuid4().hex}", Schema(json.dumps(schema), "AVRO", references)
    )


async def test_an_id_gives_the_text_as_registered(
    client: AsyncSchemaRegistryClient, schemas: RegistrySchemas
) -> None:
    """Whatever its subject is named, also with characters that a path has to escape."""
    name = uuid4().hex
    for subject in (
        f"orders-{name}-value",
        f"shop.Order_{name}",
        f"orders-{name}-shop.Order",
        f"shop/orders {name}:ä",
    ):
        schema = record("Order", "int")
        ref = ref_of(await register(client, schema, subject=subject))
        answer = await schemas.fetch(FetchSchema(ref))
        assert isinstance(answer, SchemaFound)
        assert isinstance(answer.schema, str)
        assert (answer.kind, json.loads(answer.schema)) == ("AVRO", schema)


async def test_one_schema_has_one_id(client: AsyncSchemaRegistryClient) -> None:
    """A schema registered twice, or under two subjects, has one id."""
    schema = record("Order", "int")
    first = await register(client, schema, subject=(subject := f"s-{uuid4().hex}"))
    assert await register(client, schema, subject=subject) == first
    assert await register(client, schema) == first
    assert await register(client, record("Order", "int")) != first


async def test_our_own_registration_is_theirs(
    client: AsyncSchemaRegistryClient, schemas: RegistrySchemas
) -> None:
    """`pinstream produce` and a serialiser get the same id for one schema; a text that is no schema is refused."""
    schema, subject = record("Order", "int"), f"s-{uuid4().hex}"
    assert await schemas.register(subject, schema) == await register(client, schema, subject=subject)
    for nonsense in (
        "nonsense",
        '{"type": "record", "name": "shop.E", "fields": [{"name": "f", "type": "Unheard"}]}',
    ):
        with pytest.raises(
            RegistryError, match=f"schema of {subject}: the registry answered 422, code 42201"
        ):
            await schemas.register(subject, nonsense)


async def test_an_unknown_id_is_missing(schemas: RegistrySchemas) -> None:
    """By the registry's own code, also the highest of four bytes, which no registry can assign."""
    for number in (2_000_000_000, 2**31 - 1, 2**31, 2**32 - 1):
        answer = await schemas.fetch(FetchSchema(ref_of(number)))
        assert answer == SchemaMissing(ref_of(number))


async def test_a_path_that_it_does_not_know_is_no_verdict(each_registry: str) -> None:
    """An address with a wrong path makes schemas unavailable, so that records wait and the reason names the setting."""
    schemas = RegistrySchemas({"url": f"{each_registry}/nowhere"})
    answer = await schemas.fetch(FetchSchema(ref_of(1)))
    await schemas.close()
    assert isinstance(answer, SchemaUnavailable)
    assert "SCHEMA_REGISTRY_URL lacks its path" in answer.reason


OTHERS = {
    "PROTOBUF": 'syntax = "proto3"; message Order_%s { int32 id = 1; }',
    "JSON": '{"$schema": "http://json-schema.org/draft-07/schema#", "title": "%s", "type": "object"}',
}


@pytest.mark.parametrize("kind", OTHERS)
async def test_a_schema_of_another_kind(
    client: AsyncSchemaRegistryClient, schemas: RegistrySchemas, kind: str
) -> None:
    """A schema of another kind is found with its kind, and its records are rejected for it."""
    text = OTHERS[kind] % uuid4().hex
    ref = ref_of(await client.register_schema(f"s-{uuid4().hex}", Schema(text, kind)))
    assert await schemas.fetch(FetchSchema(ref)) == SchemaFound(ref, "", kind)
    refusal = Decoder(OneSchema(record("Order"))).add_schema(ref, "", kind)
    assert isinstance(refusal, Rejection)
    assert refusal.message == f"schema id {ref.value}: it is a {kind} schema; pinstream reads Avro"


async def registered_with_references(client: AsyncSchemaRegistryClient) -> tuple[int, list[str]]:
    """Register a schema with references over two levels; return its id and all subjects, its own first."""
    subjects = [f"s-{uuid4().hex}" for _ in range(3)]
    size: dict[str, Any] = {"type": "enum", "name": f"shop.Size_{uuid4().hex}", "symbols": ["S", "L"]}
    item = record("Item", "string", size["name"])
    order = record("Order", item["name"], {"type": "array", "items": item["name"]}, ["null", size["name"]])
    of_size, of_item = (size["name"], subjects[2]), (item["name"], subjects[1])
    await register(client, size, subject=subjects[2])
    await register(client, item, of_size, subject=subjects[1])
    return await register(client, order, of_item, of_size, subject=subjects[0]), subjects


async def test_references_are_put_in(client: AsyncSchemaRegistryClient, schemas: RegistrySchemas) -> None:
    """A schema with references is returned complete, so that it can be read alone."""
    ref = ref_of((await registered_with_references(client))[0])
    answer = await schemas.fetch(FetchSchema(ref))
    assert isinstance(answer, SchemaFound)
    assert isinstance(answer.schema, dict)
    assert Decoder(OneSchema(answer.schema)).add_schema(ref, answer.schema) is None


async def test_a_deleted_subject_is_read_by_id(
    client: AsyncSchemaRegistryClient, schemas: RegistrySchemas
) -> None:
    """A schema is found by its id after its subject was deleted, since records outlive it."""
    schema, subject = record("Order", "int"), f"s-{uuid4().hex}"
    ref = ref_of(await register(client, schema, subject=subject))
    assert await client.delete_subject(subject) == [1]
    with pytest.raises(SchemaRegistryError) as caught:
        await client.get_version(subject, 1)
    assert caught.value.error_code == 40401
    answer = await schemas.fetch(FetchSchema(ref))
    assert isinstance(answer, SchemaFound)
    assert isinstance(answer.schema, str)
    assert json.loads(answer.schema) == schema


async def test_references_of_deleted_subjects(
    client: AsyncSchemaRegistryClient, schemas: RegistrySchemas, request: pytest.FixtureRequest
) -> None:
    """Confluent's registry returns deleted versions on request, Apicurio never deletes what is referred to."""
    schema_id, subjects = await registered_with_references(client)
    await client.delete_subject(subjects[0])
    if "real" not in request.node.callspec.id:
        await client.delete_subject(subjects[1])
        await client.delete_subject(subjects[2])
    answer = await schemas.fetch(FetchSchema(ref_of(schema_id)))
    assert isinstance(answer, SchemaFound)
    assert isinstance(answer.schema, dict)


async def test_guids(
    client: AsyncSchemaRegistryClient, schemas: RegistrySchemas, request: pytest.FixtureRequest
) -> None:
    """With a registry that lacks GUIDs (Apicurio) a schema is unavailable, and the reason says why."""
    stored = await client.register_schema_full_response(f"s-{uuid4().hex}", Schema('"string"', "AVRO"))
    real = "real" in request.node.callspec.id
    ref = SchemaRef("guid", str(uuid4()) if real else str(stored.guid))
    answer = await schemas.fetch(FetchSchema(ref))
    if not real:
        assert answer == SchemaFound(ref, '"string"')
        unknown = SchemaRef("guid", str(uuid4()))
        assert await schemas.fetch(FetchSchema(unknown)) == SchemaMissing(unknown)
        return
    assert isinstance(answer, SchemaUnavailable)
    assert "it has no schemas by GUID" in answer.reason
