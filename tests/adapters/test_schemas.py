"""The sources of writers' schemas: a folder, and a registry with its faults."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from consumer.adapters import schemas as schemas_module
from consumer.adapters.schemas import LocalSchemas, RegistrySchemas
from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.references import definitions
from consumer.avro.schema import Json, fingerprint, parse
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import Rejection, SchemaRef
from consumer.errors import RegistryError, SchemaError
from tests.adapters.fake_registry import FakeRegistry
from tests.support.limits import LATE

SIZE = {"type": "enum", "name": "Size", "symbols": ["S"]}
ITEM = {
    "type": "record",
    "name": "Item",
    "namespace": "shop",
    "fields": [{"name": "sku", "type": "string"}, {"name": "size", "type": SIZE}],
}
EVENT = {
    "type": "record",
    "name": "shop.Event",
    "doc": "kept",
    "fields": [
        {"name": "first", "type": "Item"},
        {"name": "items", "type": {"type": "array", "items": "shop.Item"}},
        {"name": "size", "type": ["null", "Size"], "default": None},
    ],
}
PLAIN = {"type": "record", "name": "shop.Plain", "fields": [{"name": "v", "type": "int"}]}
OLDER = {"type": "record", "name": "shop.Plain", "fields": [{"name": "u", "type": "int"}]}
GUID = "89791762-2336-4186-9674-299b90a802e2"


def write(folder: Path, **files: Any) -> Path:
    """Write ``.avsc`` files, or those of another suffix; double underscores in a name stand for dots."""
    for name, content in files.items():
        path = folder / (name if "." in name else f"{name.replace('__', '.')}.avsc")
        path.parent.mkdir(exist_ok=True)
        path.write_text(content if isinstance(content, str) else json.dumps(content), "utf-8")
    return folder


# ------------------------------------------------------------------------------------------ the folder


@pytest.mark.parametrize("name", ["commerce.v1.CommerceEvent", "CommerceEvent", "commerce_event"])
def test_the_packaged_schema_is_found_by_each_of_its_names(name: str) -> None:
    """It is found by full name, short name and file name, and returned as it was written."""
    folder = Path(__file__).parents[2] / "schemas"
    written = json.loads((folder / "commerce_event.avsc").read_text("utf-8"))
    assert LocalSchemas(folder).reader(name) == written


@pytest.mark.parametrize("name", ["Click", "all", "size"])
def test_a_name_of_several_records_or_of_none_finds_nothing(tmp_path: Path, name: str) -> None:
    """Two records are called Click without their namespaces, and the file of a union is no record."""
    schemas = LocalSchemas(write(tmp_path, all=BRANCHES, size='"string"'))
    with pytest.raises(SchemaError, match=f"the record {name};.* write the full name"):
        schemas.reader(name)
    assert schemas.reader("Order") == schemas.record("shop.Order")


def test_fingerprints_ids_and_guids_are_found(tmp_path: Path) -> None:
    """By a file's content, and by the id or GUID in its name; the file without one is the reader's."""
    schemas = LocalSchemas(write(tmp_path, plain=PLAIN, plain__17=OLDER, **{f"plain__{GUID.upper()}": ITEM}))
    assert schemas.find(SchemaRef("fingerprint", fingerprint(parse(PLAIN)))) == PLAIN
    assert schemas.find(SchemaRef("fingerprint", fingerprint(parse(OLDER)))) == OLDER
    assert schemas.find(SchemaRef("id", "17")) == OLDER
    assert schemas.find(SchemaRef("guid", GUID)) == ITEM
    assert schemas.find(SchemaRef("id", "18")) is None
    assert schemas.find(SchemaRef("fingerprint", "0" * 16)) is None
    assert schemas.record("shop.Plain") == PLAIN


def test_of_two_files_with_one_fingerprint_the_first_counts(tmp_path: Path) -> None:
    """A fingerprint omits logical types, so the files may differ in how a value is read."""
    day = {**PLAIN, "fields": [{"name": "v", "type": {"type": "int", "logicalType": "date"}}]}
    schemas = LocalSchemas(write(tmp_path, a=PLAIN, b=day))
    assert schemas.find(SchemaRef("fingerprint", fingerprint(parse(day)))) == PLAIN


async def test_a_file_that_comes_late_is_found(tmp_path: Path) -> None:
    """While a file there cannot be read, a missing schema is unavailable instead."""
    schemas = LocalSchemas(write(tmp_path, plain=PLAIN))
    late = FetchSchema(SchemaRef("id", "18"))
    assert await schemas.fetch(late) == SchemaMissing(late.ref)
    half = tmp_path / "older.18.avsc"
    half.write_text('{"type": ')
    answer = await schemas.fetch(late)
    assert isinstance(answer, SchemaUnavailable)
    assert "older.18.avsc: is not JSON" in answer.reason
    write(tmp_path, older__18=OLDER)
    assert await schemas.fetch(late) == SchemaFound(late.ref, OLDER)
    assert await schemas.fetch(FetchSchema(SchemaRef("id", "19"))) == SchemaMissing(SchemaRef("id", "19"))
    await schemas.close()


async def test_a_file_that_is_swapped_by_its_link_is_read_again(tmp_path: Path) -> None:
    """A file swapped by its link, as in a mounted volume, is read again, even with the same size and time."""
    schemas = LocalSchemas(write(tmp_path, plain__17=PLAIN))
    there, other = tmp_path / "plain.17.avsc", tmp_path / "new"
    other.write_text(there.read_text().replace('"v"', '"u"'))
    os.utime(other, ns=(there.stat().st_atime_ns, there.stat().st_mtime_ns))
    assert other.stat().st_size == there.stat().st_size
    other.replace(there)
    await schemas.fetch(FetchSchema(SchemaRef("id", "18")))
    assert schemas.find(SchemaRef("id", "17")) == OLDER


A = {"type": "record", "name": "A", "fields": [{"name": "b", "type": ["null", "B"]}]}
B = {"type": "record", "name": "B", "fields": [{"name": "a", "type": {"type": "array", "items": "A"}}]}
SIZE_FIRST = {**EVENT, "fields": [EVENT["fields"][2], *EVENT["fields"][:2]]}


@pytest.mark.parametrize(
    ("one", "other", "names"),
    [(EVENT, ITEM, ["shop.Event"]), (A, B, ["A", "B"]), (SIZE_FIRST, ITEM, ["shop.Event"])],
)
def test_references_between_files_are_resolved(
    tmp_path: Path, one: Json, other: Json, names: list[str]
) -> None:
    """Also in a circle and without a namespace; each type is defined once, where it is first used."""
    schemas = LocalSchemas(write(tmp_path, one=one, other=other))
    for name in names:
        assert len(Decoder(OneSchema(schemas.record(name))).known) == 1
    if one is EVENT:
        schema = schemas.record("shop.Event")
        assert schema["doc"] == "kept"
        assert schema["fields"][0]["type"]["name"] == "Item"
        assert schema["fields"][1]["type"] == {"type": "array", "items": "shop.Item"}


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"type": "object"}', "is not an Avro schema"),
        ('{"type": "record", "name": "E", "fields": [{"name": "a", "type": "Unheard"}]}', "Unheard"),
        ("\udcff", "is not JSON"),
        (
            '{"type": "array", "items": ' * 400 + '"int"' + "}" * 400,
            "an Avro schema: the schema is nested too deeply",
        ),
    ],
)
def test_a_file_that_is_no_schema_is_named(tmp_path: Path, text: str, reason: str) -> None:
    """A file that is no schema is an error of one line with the file and the reason."""
    (tmp_path / "broken.avsc").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SchemaError, match=reason) as caught:
        LocalSchemas(tmp_path)
    assert str(tmp_path / "broken.avsc") in str(caught.value)
    assert "\n" not in str(caught.value)


BRANCHES = [
    {"type": "record", "name": name, "namespace": space, "fields": [{"name": "x", "type": "string"}]}
    for name, space in (("Order", "shop"), ("Click", "shop"), ("Click", "old"))
]


def test_a_branch_of_a_union_is_a_record_too(tmp_path: Path) -> None:
    """It is found by its full name."""
    schemas = LocalSchemas(write(tmp_path, all=["null", *BRANCHES]))
    assert schemas.record("shop.Click")["fields"] == schemas.record("shop.Order")["fields"]
    own = SchemaRef("fingerprint", fingerprint(parse(BRANCHES[0])))
    assert schemas.find(own) == schemas.record("shop.Order")  # `produce` writes this fingerprint


@pytest.mark.parametrize(
    ("files", "name", "line"),
    [
        ({}, "shop.Event", r"is no \.avsc file in .*; put .* shop\.Event .* or set PINSTREAM_SCHEMAS_DIR"),
        ({"size": '"string"'}, "shop.Event", r"defines a record; put that of shop\.Event .* there"),
        (
            {"one": PLAIN},
            "shop.Event",
            r"the record shop\.Event; the nearest is 'shop\.Plain': write the full .*PINSTREAM_SCHEMA",
        ),
        (
            {"one": PLAIN, "two": OLDER},
            "shop.Plain",
            r"one\.avsc and two\.avsc each define the record shop\.Plain; keep one",
        ),
        ({"one": PLAIN, "size": '"string"'}, "Plain", "the record Plain; the nearest is 'shop.Plain'"),
        ({"all": BRANCHES}, "shop.Clicks", "the record shop.Clicks; the nearest is 'shop.Click'"),
        # Files that are not read: in a folder below, or with another suffix.
        ({"avro/event": PLAIN}, "shop.Plain", r"no \.avsc file .* are not read: avro/event\.avsc\)"),
        ({"event.json": PLAIN}, "shop.Plain", r"no \.avsc file .* are not read: event\.json\)"),
        # It would be left to chance which one counts.
        ({"a__17": PLAIN, "b__17": OLDER}, "shop.Plain", "have the same id"),
    ],
)
def test_a_record_that_cannot_be_chosen_is_an_error(
    tmp_path: Path, files: dict[str, Any], name: str, line: str
) -> None:
    """It names what there is, what to put where, and the setting to change."""
    with pytest.raises(SchemaError, match=line):
        LocalSchemas(write(tmp_path, **files)).record(name)


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    """A missing folder, and a file that is a folder."""
    with pytest.raises(SchemaError, match="nowhere: cannot be read"):
        LocalSchemas(tmp_path / "nowhere")
    (tmp_path / "folder.avsc").mkdir()
    with pytest.raises(SchemaError, match=r"folder\.avsc: cannot be read"):
        LocalSchemas(tmp_path)


def test_a_folder_of_many_files_is_read_in_proportion_to_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is searched for types a fixed number of times, however many there are."""
    searched: list[Json] = []

    def counted(documents: Sequence[Json]) -> dict[str, Json]:
        searched.extend(documents)
        return definitions(documents)

    monkeypatch.setattr(schemas_module, "definitions", counted)
    for number in range(100):
        (tmp_path / f"{number}.avsc").write_text(json.dumps({**PLAIN, "name": f"R{number}"}))
    LocalSchemas(tmp_path)
    assert len(searched) <= 200


# ---------------------------------------------------------------------------------------- the registry


@pytest.fixture(name="registry")
async def _registry() -> AsyncIterator[FakeRegistry]:
    async with FakeRegistry() as registry:
        yield registry


@pytest.fixture(name="schemas")
async def _schemas(registry: FakeRegistry) -> AsyncIterator[RegistrySchemas]:
    schemas = RegistrySchemas({"url": registry.url}, timeout=5)
    yield schemas
    await schemas.close()


def ref_of(schema_id: int) -> SchemaRef:
    """Return the reference to a Confluent id."""
    return SchemaRef("id", str(schema_id))


async def test_references_are_fetched_once_and_a_circle_of_them_ends(
    registry: FakeRegistry, schemas: RegistrySchemas
) -> None:
    """No registry would accept a circle."""
    size = registry.add("size", json.dumps({"type": "enum", "name": "shop.Size", "symbols": ["S"]}))
    size_ref = {"name": "shop.Size", "subject": "size", "version": size.version}
    item_ref = {"name": "shop.Item", "subject": "item", "version": 1}
    item = {**ITEM, "fields": [{"name": "size", "type": "Size"}]}
    registry.add("item", json.dumps(item), references=[size_ref, item_ref])
    event = registry.add("event", json.dumps(EVENT), references=[item_ref, size_ref])
    answer = await schemas.fetch(FetchSchema(ref_of(event.schema_id)))
    assert isinstance(answer, SchemaFound)
    verdict = Decoder(OneSchema(PLAIN)).add_schema(answer.ref, answer.schema)
    assert isinstance(verdict, Rejection)
    assert verdict.message == "schema id 3: shop.Event cannot be read as shop.Plain"
    for subject in ("size", "item"):
        assert registry.requests.count(f"/subjects/{subject}/versions/1") == 1


async def test_a_reference_that_was_deleted_is_reported(
    registry: FakeRegistry, schemas: RegistrySchemas
) -> None:
    """The schema itself is unavailable until the other one is registered again; so it is with a subject's newest."""
    stored = registry.add(
        "t", json.dumps(EVENT), references=[{"name": "shop.Item", "subject": "item", "version": 1}]
    )
    ref = ref_of(stored.schema_id)
    line = "a schema that this one refers to was deleted: register that one again"
    assert await schemas.fetch(FetchSchema(ref)) == SchemaUnavailable(ref, line)
    assert await schemas.newest("t") == SchemaUnavailable(ref, line)
    registry.add("item", json.dumps(ITEM))
    assert isinstance(await schemas.fetch(FetchSchema(ref)), SchemaFound)


async def test_a_registry_that_hangs_is_unavailable_in_time(registry: FakeRegistry) -> None:
    """Confluent's client has no time limit."""
    schemas = RegistrySchemas({"url": registry.url}, timeout=0.2)
    registry.faults.hang = True
    started = time.monotonic()
    answer = await schemas.fetch(FetchSchema(ref_of(1)))
    assert answer == SchemaUnavailable(ref_of(1), "the registry did not answer within 0.2 s")
    assert time.monotonic() - started < LATE
    await schemas.close()


@pytest.mark.parametrize(("status", "body"), [(503, None), (200, b'{"schema": ""}')])
async def test_an_outage_heals(
    registry: FakeRegistry, schemas: RegistrySchemas, status: int, body: bytes | None
) -> None:
    """The client keeps every answer, also one that makes no sense: the next fetch finds the schema all the same."""
    command = FetchSchema(ref_of(registry.add("t", json.dumps(PLAIN)).schema_id))
    registry.faults.status, registry.faults.body = status, body
    assert isinstance(await schemas.fetch(command), SchemaUnavailable)
    registry.faults.status = registry.faults.body = None
    assert isinstance(await schemas.fetch(command), SchemaFound)


async def test_a_fetch_can_be_cancelled(registry: FakeRegistry, schemas: RegistrySchemas) -> None:
    """A fetch can be cancelled, so that a stop does not wait for a registry."""
    registry.faults.hang = True
    fetching = asyncio.ensure_future(schemas.fetch(FetchSchema(ref_of(1))))
    async with asyncio.timeout(LATE):
        while not registry.requests:
            await asyncio.sleep(0.01)
    fetching.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fetching


async def test_a_registration_that_fails_raises(registry: FakeRegistry, schemas: RegistrySchemas) -> None:
    """A failed registration raises an error of one line with the subject and the registry's answer."""
    registry.faults.status = 409
    with pytest.raises(
        RegistryError, match=r"other: the registry answered 409.*: the schema is not compatible with"
    ):
        await schemas.register("other", PLAIN)
    await registry.stop()
    with pytest.raises(RegistryError, match="refuses connections"):
        await schemas.register("other", PLAIN)


@pytest.mark.parametrize(
    "config",
    [
        {"url": "ftp://user:s3cret@host"},
        {"url": "http://host", "unheard.of": "s3cret"},
        {"url": "http://host", "basic.auth.user.info": "s3cret"},
        {"url": "http://host", "ssl.ca.location": "/s3cret/nowhere"},
    ],
)
def test_a_wrong_configuration_raises_without_its_values(config: dict[str, str]) -> None:
    """A wrong configuration raises an error without its values, which may be secrets."""
    with pytest.raises(RegistryError, match=r"SCHEMA_REGISTRY_(URL|SSL)") as caught:
        RegistrySchemas(config)
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize("code", [[], {}, "40401", 404, None, True])
async def test_a_404_with_a_code_that_is_not_the_registrys_is_no_verdict(code: Any) -> None:
    """A proxy may answer so: neither a schema nor a subject is missing."""
    async with FakeRegistry() as registry:
        registry.faults.status, registry.faults.body = 404, json.dumps({"error_code": code}).encode()
        schemas = RegistrySchemas({"url": registry.url})
        assert isinstance(await schemas.fetch(FetchSchema(SchemaRef("id", "1"))), SchemaUnavailable)
        with pytest.raises(RegistryError, match="the registry answered 404"):
            await schemas.newest("orders-value")
        registry.faults.body = b'{"error_code": 40401}'
        assert await schemas.newest("orders-value") is None
        await schemas.close()
