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

ITEM = {
    "type": "record",
    "name": "Item",
    "namespace": "shop",
    "fields": [
        {"name": "sku", "type": "string"},
        {"name": "size", "type": {"type": "enum", "name": "Size", "symbols": ["S"]}},
    ],
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
    """Write ``.avsc`` files; double underscores in a name stand for dots."""
    for name, content in files.items():
        text = content if isinstance(content, str) else json.dumps(content)
        (folder / f"{name.replace('__', '.')}.avsc").write_text(text, "utf-8")
    return folder


# ------------------------------------------------------------------------------------------ the folder


def test_the_packaged_schema_is_found_by_each_of_its_names() -> None:
    """The packaged schema is found by full name, short name and file name, and returned as it was written."""
    folder = Path(__file__).parents[2] / "schemas"
    schemas = LocalSchemas(folder)
    written = json.loads((folder / "commerce_event.avsc").read_text("utf-8"))
    for name in ("commerce.v1.CommerceEvent", "CommerceEvent", "commerce_event"):
        assert schemas.reader(name) == written


def test_fingerprints_ids_and_guids_are_found(tmp_path: Path) -> None:
    """A schema file is found by its content's fingerprint, for single-object encoding, and by an id or GUID in
    its name, for Confluent's framings."""
    schemas = LocalSchemas(write(tmp_path, plain=PLAIN, plain__17=OLDER, **{f"plain__{GUID.upper()}": ITEM}))
    assert schemas.find(SchemaRef("fingerprint", fingerprint(parse(PLAIN)))) == PLAIN
    assert schemas.find(SchemaRef("fingerprint", fingerprint(parse(OLDER)))) == OLDER
    assert schemas.find(SchemaRef("id", "17")) == OLDER
    assert schemas.find(SchemaRef("guid", GUID)) == ITEM
    assert schemas.find(SchemaRef("id", "18")) is None
    assert schemas.find(SchemaRef("fingerprint", "0" * 16)) is None


def test_of_two_files_with_one_fingerprint_the_first_counts(tmp_path: Path) -> None:
    """Of two files with one fingerprint the first counts. A fingerprint omits logical types, so the files
    may differ in how a value is read."""
    day = {**PLAIN, "fields": [{"name": "v", "type": {"type": "int", "logicalType": "date"}}]}
    schemas = LocalSchemas(write(tmp_path, a=PLAIN, b=day))
    assert schemas.find(SchemaRef("fingerprint", fingerprint(parse(day)))) == PLAIN


def test_the_unversioned_file_is_the_reader(tmp_path: Path) -> None:
    """The file without an id in its name is the reader's; files with one are writers'."""
    schemas = LocalSchemas(write(tmp_path, plain=PLAIN, plain__17=OLDER))
    assert schemas.reader("shop.Plain") == PLAIN
    assert schemas.reader("plain.17") == OLDER


async def test_the_folder_answers_for_all_it_has_and_nothing_else(tmp_path: Path) -> None:
    """The folder finds the schemas that it has and reports all others as missing, since there is no other source."""
    schemas = LocalSchemas(write(tmp_path, plain__17=PLAIN))
    known, unknown = SchemaRef("id", "17"), SchemaRef("id", "18")
    assert await schemas.fetch(FetchSchema(known)) == SchemaFound(known, PLAIN)
    assert await schemas.fetch(FetchSchema(unknown)) == SchemaMissing(unknown)
    await schemas.close()


async def test_a_file_that_comes_late_is_found(tmp_path: Path) -> None:
    """A missing schema is looked for again in the folder. While a file there cannot be read, the schema is
    unavailable instead."""
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
    """References between files are resolved, also in a circle and without a namespace: the result is complete, with
    each type defined once, where it is first used, also if that is within another type."""
    schemas = LocalSchemas(write(tmp_path, one=one, other=other))
    for name in names:
        assert len(Decoder(OneSchema(schemas.reader(name))).known) == 1
    if one is EVENT:
        schema = schemas.reader("shop.Event")
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
    ],
)
def test_a_file_that_is_no_schema_is_named(tmp_path: Path, text: str, reason: str) -> None:
    """A file that is no schema is an error of one line with the file and the reason."""
    (tmp_path / "broken.avsc").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(SchemaError, match=reason) as caught:
        LocalSchemas(tmp_path)
    assert str(tmp_path / "broken.avsc") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    """Files with another ending than ``.avsc``, such as a mapping, are ignored."""
    (write(tmp_path, plain=PLAIN) / "commerce_event.mapping.toml").write_text("[x]")
    assert LocalSchemas(tmp_path).reader("Plain") == PLAIN


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    """A missing folder, and a file that cannot be read, are named in an error."""
    with pytest.raises(SchemaError, match="nowhere: cannot be read"):
        LocalSchemas(tmp_path / "nowhere")
    (tmp_path / "folder.avsc").mkdir()
    with pytest.raises(SchemaError, match=r"folder\.avsc: cannot be read"):
        LocalSchemas(tmp_path)


def test_an_unknown_reader_is_an_error_with_the_known_ones(tmp_path: Path) -> None:
    """An unknown reader is an error with the records that there are; so is one defined by two files, or a
    schema that is no record."""
    schemas = LocalSchemas(write(tmp_path, one=PLAIN, two=OLDER, size='"string"'))
    with pytest.raises(
        SchemaError, match=r"defines the record shop\.Event, only shop\.Plain; set PINSTREAM_SCHEMA to"
    ):
        schemas.reader("shop.Event")
    with pytest.raises(SchemaError, match=r"one\.avsc and two\.avsc each define the record Plain; keep one"):
        schemas.reader("Plain")
    with pytest.raises(SchemaError, match="record size"):
        schemas.reader("size")
    assert schemas.reader("two") == OLDER


def test_a_branch_of_a_union_is_a_record_too(tmp_path: Path) -> None:
    """A record in a union is found by its full name, or by its short name if only one record has it."""
    branches = [
        {"type": "record", "name": name, "namespace": space, "fields": [{"name": "x", "type": "string"}]}
        for name, space in (("Order", "shop"), ("Click", "shop"), ("Click", "old"))
    ]
    (tmp_path / "all.avsc").write_text(json.dumps(["null", *branches]))
    schemas = LocalSchemas(tmp_path)
    assert schemas.reader("shop.Click")["fields"] == schemas.reader("Order")["fields"]
    own = SchemaRef("fingerprint", fingerprint(parse(branches[0])))
    assert schemas.find(own) == schemas.reader("Order")  # `produce` writes this fingerprint
    with pytest.raises(
        SchemaError, match=r"defines the record Click, only old.Click, shop.Click, shop.Order"
    ):
        schemas.reader("Click")


def test_a_folder_without_schemas_is_an_error(tmp_path: Path) -> None:
    """A folder without schemas is an error that names the folder, what to put there and the setting for another
    folder."""
    with pytest.raises(
        SchemaError, match=r"is no \.avsc file in .*; put .* shop\.Event .* or set PINSTREAM_SCHEMAS_DIR"
    ):
        LocalSchemas(tmp_path).reader("shop.Event")
    with pytest.raises(SchemaError, match=r"defines a record; put that of shop\.Event .* there"):
        LocalSchemas(write(tmp_path, size='"string"')).reader("shop.Event")


@pytest.mark.parametrize("name", ["avro/event.avsc", "event.json"])
def test_a_schema_that_is_not_checked_is_named(tmp_path: Path, name: str) -> None:
    """An error about a missing schema names the files that were not read: those in subfolders and those with
    another ending."""
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(json.dumps(PLAIN))
    with pytest.raises(SchemaError, match=rf"no \.avsc file .* are not read: {name}\)"):
        LocalSchemas(tmp_path).reader("shop.Plain")


def test_two_files_of_one_id_contradict_each_other(tmp_path: Path) -> None:
    """Two files with one id are refused, since it would be left to chance which one counts."""
    with pytest.raises(SchemaError, match="have the same id"):
        LocalSchemas(write(tmp_path, a__17=PLAIN, b__17=OLDER))


def test_a_folder_of_many_files_is_read_in_proportion_to_its_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each file is searched for types a fixed number of times, however many files there are, so that a folder of
    hundreds is read in a moment."""
    searched: list[Json] = []

    def counted(documents: Sequence[Json]) -> dict[str, Json]:
        searched.extend(documents)
        return definitions(documents)

    monkeypatch.setattr(schemas_module, "definitions", counted)
    for number in range(100):
        (tmp_path / f"{number}.avsc").write_text(json.dumps({**PLAIN, "name": f"R{number}"}))
    LocalSchemas(tmp_path)
    assert len(searched) <= 200


def test_a_file_that_is_nested_too_deeply_is_named(tmp_path: Path) -> None:
    """Of several files, the one that is nested too deeply is named."""
    deep: Json = "int"
    for _ in range(400):
        deep = {"type": "array", "items": deep}
    (tmp_path / "a.avsc").write_text(json.dumps(PLAIN))
    (tmp_path / "b.avsc").write_text(json.dumps(deep))
    with pytest.raises(SchemaError, match=r"b\.avsc: is not an Avro schema: the schema is nested too deeply"):
        LocalSchemas(tmp_path)


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


async def test_references_are_fetched_and_put_in(registry: FakeRegistry, schemas: RegistrySchemas) -> None:
    """References over two levels are fetched, each schema once, and put into the schema."""
    size = registry.add("size", json.dumps({"type": "enum", "name": "shop.Size", "symbols": ["S"]}))
    item = {**ITEM, "fields": [{"name": "size", "type": "Size"}]}
    size_ref = {"name": "shop.Size", "subject": "size", "version": size.version}
    registry.add("item", json.dumps(item), references=[size_ref])
    item_ref = {"name": "shop.Item", "subject": "item", "version": 1}
    event = registry.add("event", json.dumps(EVENT), references=[item_ref, size_ref])
    answer = await schemas.fetch(FetchSchema(ref_of(event.schema_id)))
    assert isinstance(answer, SchemaFound)
    decoder = Decoder(OneSchema(PLAIN))
    verdict = decoder.add_schema(answer.ref, answer.schema)
    assert isinstance(verdict, Rejection)
    assert verdict.message == "schema id 3: shop.Event cannot be read as shop.Plain"
    assert registry.requests.count("/subjects/size/versions/1") == 1


async def test_a_circle_of_references_ends(registry: FakeRegistry, schemas: RegistrySchemas) -> None:
    """A circle of references, which no registry would accept, does not make the fetch run indefinitely."""
    itself = {"name": "shop.Plain", "subject": "t", "version": 1}
    stored = registry.add("t", json.dumps(PLAIN), references=[itself])
    answer = await schemas.fetch(FetchSchema(ref_of(stored.schema_id)))
    assert answer == SchemaFound(ref_of(stored.schema_id), PLAIN)


@pytest.mark.parametrize("ref", [ref_of(99), SchemaRef("guid", GUID)])
async def test_only_an_explicit_not_found_is_missing(schemas: RegistrySchemas, ref: SchemaRef) -> None:
    """A schema is missing only if the registry answers 404 with its own code."""
    assert await schemas.fetch(FetchSchema(ref)) == SchemaMissing(ref)


async def test_a_reference_that_was_deleted_is_reported(
    registry: FakeRegistry, schemas: RegistrySchemas
) -> None:
    """A schema that refers to one that the registry no longer has is not missing itself: it is unavailable, for that
    reason, until the other one is registered again. So it is with the newest one of a subject."""
    stored = registry.add(
        "t", json.dumps(EVENT), references=[{"name": "shop.Item", "subject": "item", "version": 1}]
    )
    ref = ref_of(stored.schema_id)
    line = "a schema that this one refers to was deleted: register that one again"
    assert await schemas.fetch(FetchSchema(ref)) == SchemaUnavailable(ref, line)
    assert await schemas.newest("t") == SchemaUnavailable(ref, line)
    registry.add("item", json.dumps(ITEM))
    assert isinstance(await schemas.fetch(FetchSchema(ref)), SchemaFound)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        *((status, None) for status in (400, 401, 403, 408, 409, 422, 429, 500, 502, 503, 504)),
        (404, b"<html>token=secret</html>"),
        (404, b'{"error_code": 404, "message": "HTTP 404 Not Found"}'),
        (404, b"{}"),
        (404, b"[]"),
        (200, b"nonsense"),
        (200, b"[]"),
        (200, b"{}"),
        (200, b'{"schema": ""}'),
        (200, b'{"schema": "x", "references": [{}]}'),
        (200, b""),
    ],
)
async def test_every_other_answer_is_no_verdict(
    registry: FakeRegistry, schemas: RegistrySchemas, status: int, body: bytes | None
) -> None:
    """Any other answer, also one that makes no sense, as of a proxy or an old registry, makes the schema unavailable
    after one request, so that a failing registry does not make dead letters of good records."""
    registry.faults.status, registry.faults.body = status, body
    answer = await schemas.fetch(FetchSchema(ref_of(1)))
    assert isinstance(answer, SchemaUnavailable)
    assert status == 200 or str(status) in answer.reason
    assert "secret" not in answer.reason
    assert registry.requests.count("/schemas/ids/1") == 1


async def test_a_registry_that_is_down_is_unavailable(
    registry: FakeRegistry, schemas: RegistrySchemas
) -> None:
    """A refused or dropped connection makes the schema unavailable."""
    registry.faults.drop = True
    assert isinstance(await schemas.fetch(FetchSchema(ref_of(1))), SchemaUnavailable)
    await registry.stop()
    assert isinstance(await schemas.fetch(FetchSchema(ref_of(1))), SchemaUnavailable)


async def test_a_registry_that_hangs_is_unavailable_in_time(registry: FakeRegistry) -> None:
    """A registry that hangs makes the schema unavailable after the time limit, which Confluent's client does
    not have."""
    schemas = RegistrySchemas({"url": registry.url}, timeout=0.2)
    registry.faults.hang = True
    started = time.monotonic()
    answer = await schemas.fetch(FetchSchema(ref_of(1)))
    assert answer == SchemaUnavailable(ref_of(1), "the registry did not answer within 0.2 s")
    assert time.monotonic() - started < LATE
    await schemas.close()


async def test_an_outage_heals(registry: FakeRegistry, schemas: RegistrySchemas) -> None:
    """A failure is not kept: the next fetch finds the schema."""
    stored = registry.add("t", json.dumps(PLAIN))
    registry.faults.status = 503
    command = FetchSchema(ref_of(stored.schema_id))
    assert isinstance(await schemas.fetch(command), SchemaUnavailable)
    registry.faults.status = None
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
    """A 404 without the registry's own code, as a proxy may answer, means neither that a schema nor that a
    subject is missing."""
    async with FakeRegistry() as registry:
        registry.faults.status, registry.faults.body = 404, json.dumps({"error_code": code}).encode()
        schemas = RegistrySchemas({"url": registry.url})
        assert isinstance(await schemas.fetch(FetchSchema(SchemaRef("id", "1"))), SchemaUnavailable)
        with pytest.raises(RegistryError, match="the registry answered 404"):
            await schemas.newest("orders-value")
        registry.faults.body = b'{"error_code": 40401}'
        assert await schemas.newest("orders-value") is None
        await schemas.close()
