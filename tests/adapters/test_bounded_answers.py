"""A registry's answer is read and decompressed in bounded steps, whatever a server sends."""

from __future__ import annotations

import gzip
import json
import tracemalloc
import zlib
from collections.abc import AsyncIterator

import pytest

from consumer.adapters.bounded_answers import ANSWER_LIMIT
from consumer.adapters.schemas import RegistrySchemas
from consumer.avro.schema import MAX_SCHEMA_CHARACTERS
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaUnavailable
from consumer.engine.model import SchemaRef
from tests.adapters.fake_registry import FakeRegistry

REF = SchemaRef("id", "7")
MIB = 2**20


@pytest.fixture(name="registry")
async def _registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture(name="schemas")
async def _schemas(registry: FakeRegistry) -> AsyncIterator[RegistrySchemas]:
    schemas = RegistrySchemas({"url": registry.url}, timeout=20)
    yield schemas
    await schemas.close()


async def peak_of_asking(schemas: RegistrySchemas, reason: str) -> int:
    """Query a schema, check that it is unavailable for `reason`, and return the peak of memory that this took."""
    tracemalloc.start()
    try:
        answer = await schemas.fetch(FetchSchema(REF))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert isinstance(answer, SchemaUnavailable)
    assert reason in answer.reason
    return peak


TOO_LARGE = "the registry's answer is larger than 4 MiB: check what answers at SCHEMA_REGISTRY_URL"


@pytest.mark.parametrize("status", [200, 404, 500])
async def test_a_small_answer_that_unpacks_to_much(
    registry: FakeRegistry, schemas: RegistrySchemas, status: int
) -> None:
    """Of a few KB that unpack to 64 MB, also in an error's body, no more is unpacked than may be read."""
    registry.faults.body, registry.faults.coding = gzip.compress(bytes(64 * MIB), 1), "gzip"
    registry.faults.status = status
    assert await peak_of_asking(schemas, TOO_LARGE) < 4 * ANSWER_LIMIT


@pytest.mark.parametrize("start", [b"", gzip.compress(b'{"schema": "x"}')], ids=["nothing", "a beginning"])
async def test_an_answer_without_an_end(
    registry: FakeRegistry, schemas: RegistrySchemas, start: bytes
) -> None:
    """Its connection is closed at the limit, which counts what follows the compressed data, too."""
    registry.faults.body, registry.faults.coding = start, "gzip" if start else None
    registry.faults.endless = True
    assert await peak_of_asking(schemas, TOO_LARGE) < 4 * ANSWER_LIMIT
    assert registry.sent < 8 * ANSWER_LIMIT


@pytest.mark.parametrize(
    ("body", "coding", "reason"),
    [
        (zlib.compress(bytes(MIB)), "deflate", "compressed as 'deflate', which was not requested"),
        (b"nonsense", "gzip", "has no schema"),
    ],
)
async def test_a_packing_that_cannot_be_read(
    registry: FakeRegistry, schemas: RegistrySchemas, body: bytes, coding: str, reason: str
) -> None:
    """One that was not requested, and could not be bounded, or that is broken: the schema is not missing."""
    registry.faults.body, registry.faults.coding = body, coding
    await peak_of_asking(schemas, reason)


async def test_packed_answers_are_read(registry: FakeRegistry, schemas: RegistrySchemas) -> None:
    """Compressed answers are read, several over one connection."""
    registry.faults.body = gzip.compress(json.dumps({"schema": '"int"'}).encode())
    registry.faults.coding = "gzip"
    for number in ("7", "8"):
        ref = SchemaRef("id", number)
        assert await schemas.fetch(FetchSchema(ref)) == SchemaFound(ref, '"int"')


async def test_the_largest_schema_is_read(registry: FakeRegistry, schemas: RegistrySchemas) -> None:
    """A schema of a megabyte is read, with each of its quotes escaped in the answer."""
    text = json.dumps({"type": "enum", "name": "E", "symbols": ["A"] * ((MAX_SCHEMA_CHARACTERS - 100) // 5)})
    assert len(text) <= MAX_SCHEMA_CHARACTERS
    stored = registry.add("t", text)
    ref = SchemaRef("id", str(stored.schema_id))
    assert await schemas.fetch(FetchSchema(ref)) == SchemaFound(ref, text)


async def test_references_are_bounded_together(registry: FakeRegistry, schemas: RegistrySchemas) -> None:
    """References are bounded in sum, since a hundred of a megabyte each would be gigabytes of JSON."""
    large = json.dumps({"type": "enum", "name": "E", "symbols": ["A" * (MAX_SCHEMA_CHARACTERS - 100)]})
    references = []
    for number in range(8):
        registry.add(f"s{number}", large)
        references.append({"name": "E", "subject": f"s{number}", "version": 1})
    stored = registry.add("t", '"int"', references=references)
    answer = await schemas.fetch(FetchSchema(SchemaRef("id", str(stored.schema_id))))
    assert isinstance(answer, SchemaUnavailable)
    assert "/subjects/s6/versions/1" not in registry.requests
