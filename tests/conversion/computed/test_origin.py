"""What a record has in Kafka beside its value: keys and their schemas, redriven letters, functions, files."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from consumer.adapters.kafka import letters
from consumer.avro.decode import framing_of
from consumer.commands import main
from consumer.commands.dead_letters.redrive import OfOrigin
from consumer.commands.payload import decode_now
from consumer.conversion.transform import Transformer, load_transform
from consumer.engine.messages import (
    Assigned,
    Assignment,
    DeadLetter,
    Fetched,
    FetchSchema,
    LookUpKeys,
    SchemaFound,
)
from consumer.engine.model import Chunk, Instant, Policy, Record, Rejection, SchemaRef, Stage
from consumer.engine.pipeline import Pipeline
from tests.conversion.computed.test_operators import BASE, KEY, KEY_SCHEMA, SCHEMA, made
from tests.conversion.test_compiled import Both
from tests.conversion.test_convert import NOW

FRAMED = framing_of(KEY) + b"\x02\x06c-7\x04"


def both_of(fields: str) -> Both:
    """Return both executors under a mapping with these lines."""
    return Both((SCHEMA, BASE.format(fields=fields)))


def value_of(both: Both, seed: int = 3) -> bytes:
    """Return the value of some record."""
    import random

    value = both.value(made(random.Random(seed)))
    assert value is not None
    return value


@pytest.mark.parametrize("fast", [True, False])
def test_a_record_waits_for_the_schema_of_its_key(fast: bool) -> None:
    """Where the mapping asks for the key, its schema is fetched as a value's is, and the record goes on with it."""
    both = both_of('"user_data.external_id" = "@key.customer"')
    reading = both.compiled if fast else None
    pipeline, now = Pipeline(Policy(), both.decoder, both.converter, reading=reading), Instant(0.0, NOW)
    pipeline.handle(Assigned([Assignment("t", 0, 1, 0, False)]), now)
    records = [Record(0, -1, FRAMED, value_of(both), ()), Record(1, -1, b"text", value_of(both, 4), ())]
    commands = pipeline.handle(Fetched([Chunk("t", 0, 1, None, records)]), now)
    assert [one.ref for one in commands if isinstance(one, FetchSchema)] == [KEY]
    assert sum(isinstance(one, LookUpKeys) for one in commands) == 1
    commands = pipeline.handle(SchemaFound(KEY, json.dumps(KEY_SCHEMA)), now)
    assert sum(isinstance(one, LookUpKeys) for one in commands) == 1
    assert not pipeline.statistics(now).schemas


@pytest.mark.parametrize(
    ("key", "kind", "schema", "code"),
    [
        (FRAMED + b"\0", "AVRO", KEY_SCHEMA, "trailing_bytes"),
        (FRAMED[:-2], "AVRO", KEY_SCHEMA, "undecodable"),
        (FRAMED, "PROTOBUF", "message", "incompatible_schema"),
        (FRAMED, "AVRO", {"type": "nonsense"}, "incompatible_schema"),
    ],
)
def test_a_key_that_is_no_datum_of_its_schema(key: bytes, kind: str, schema: Any, code: str) -> None:
    """It makes the record a dead letter whose code says why; without a source that asks for the key it is not read."""
    both = both_of('"user_data.external_id" = "@key.customer"')
    record = Record(0, -1, key, value_of(both), ())
    assert both.decoder.decode(record, "t", 0) == KEY
    assert both.decoder.add_schema(KEY, schema, kind) is None
    verdict = both.decoder.decode(record, "t", 0)
    assert isinstance(verdict, Rejection)
    assert verdict.code == code
    assert isinstance(both_of("").decoder.decode(record, "t", 0), dict)


def test_a_key_s_schema_is_known_though_no_key_asked_for_it_yet() -> None:
    """A decoder that learns what another one asked for, as in a comparison of mappings, reads keys by it."""
    both = both_of('"user_data.external_id" = "@key.customer"')
    both.decoder.add_schema(KEY, KEY_SCHEMA)
    event = both.decoder.decode(Record(0, -1, FRAMED, value_of(both), ()), "t", 0)
    assert isinstance(event, dict)
    assert event["@"]["key"] == {"customer": "c-7", "shop": 2}


def test_a_key_whose_schema_does_not_exist() -> None:
    """It is a dead letter with the code of a value without a schema; the schema may come later."""
    both = both_of('"user_data.external_id" = "@key.customer"')
    record = Record(0, -1, FRAMED, value_of(both), ())
    assert both.decoder.decode(record, "t", 0) == KEY
    assert both.decoder.missing(KEY).code == "no_such_schema"
    assert both.decoder.decode(record, "t", 0) == KEY


def test_no_key_and_no_header_ends_anything() -> None:
    """Whatever bytes a key or a header holds, the record is an event, a dead letter, or waits for a schema."""
    both = both_of('"user_data.external_id" = { first = ["@key.customer", "@key", "@header.h"] }')
    value, dice = value_of(both), random.Random(5)
    both.decoder.decode(Record(0, -1, FRAMED, value, ()), "t", 0)
    both.decoder.add_schema(KEY, KEY_SCHEMA)
    outcomes = set()
    for offset in range(3000):
        junk = dice.randbytes(dice.randrange(20))
        key = dice.choice(
            (junk, b"\x00" + junk, framing_of(KEY) + junk, FRAMED[: dice.randrange(len(FRAMED))])
        )
        headers = (
            (dice.choice(("h", "__key_schema_id")), dice.choice((junk, b"\x01" + dice.randbytes(16), None))),
        )
        record = Record(offset, -1, key, value, headers)
        decoded = both.decoder.decode(record, "t", 0)
        assert isinstance(decoded, dict | Rejection | SchemaRef)
        outcomes.add(type(decoded))
        [said] = both.check(value) if offset % 500 == 0 else [None]
        assert said is None or isinstance(said, list)
    assert len(outcomes) == 3


def test_a_letter_is_shown_though_its_key_has_a_schema_of_its_own() -> None:
    """``show --payload`` fetches the schema of the value, then that of the key, and shows the record."""
    both = both_of('"user_data.external_id" = "@key.customer"')
    asked: list[SchemaRef] = []

    class Writers:
        async def fetch(self, command: FetchSchema) -> SchemaFound:
            asked.append(command.ref)
            return SchemaFound(command.ref, json.dumps(KEY_SCHEMA if command.ref == KEY else SCHEMA))

    both.whole.forget(SchemaRef("id", "7"))
    record = Record(0, -1, FRAMED, value_of(both), ())
    decoded = asyncio.run(decode_now(both.whole, record, "t", Writers()))
    assert isinstance(decoded, dict)
    assert asked == [SchemaRef("id", "7"), KEY]


def test_a_key_s_schema_may_be_named_by_a_header() -> None:
    """Confluent's header for keys names the schema; the key is the bare datum."""
    both = both_of('"user_data.external_id" = "@key.customer"')
    guid = SchemaRef("guid", "89791762-2336-4186-9674-299b90a802e2")
    record = Record(0, -1, FRAMED[5:], value_of(both), (("__key_schema_id", framing_of(guid)),))
    assert both.decoder.decode(record, "t", 0) == guid
    both.decoder.add_schema(guid, KEY_SCHEMA)
    event = both.decoder.decode(record, "t", 0)
    assert isinstance(event, dict)
    assert event["@"]["key"] == {"customer": "c-7", "shop": 2}


def test_in_a_redrive_all_of_it_is_the_origin_s() -> None:
    """A letter gives what the record that died had, and none of our own headers."""
    both = both_of(
        '"custom_data.content_name" = { join = ["@topic", "@partition", "@offset", "@key", "@header.h"], with = "/" }\n'
        '"app_info.install_time" = "@timestamp"'
    )
    died = Record(42, 1_772_366_399_000, b"c-7", value_of(both), (("h", b"x"),))
    [form, *_] = letters.forms(
        DeadLetter("orders", 5, died, Rejection(Stage.CONVERT, "c", "m"), 1, 1_772_366_400_000),
        "letters",
        3,
    )
    lies = Record(7, 1_772_999_999_000, form.key, form.value, form.headers)
    letter = letters.read_letter("letters", 2, lies)
    assert letter is not None
    redriven = letters.restored(letter)._replace(headers=lies.headers)
    event = OfOrigin(both.decoder).decode(redriven, "letters", 2)
    assert isinstance(event, dict)
    payload = both.converter.convert(event, NOW).payload  # type: ignore[union-attr]  # it is an event
    assert payload["custom_data"]["content_name"] == "orders/5/42/c-7/x"
    assert payload["app_info"]["install_time"] == 1_772_366_399
    assert event["@"]["header"] == {"h": "x"}


def test_a_function_of_three_arguments_gets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The third argument holds all of it, and the mapping's sources find it behind the function, too."""
    (tmp_path / "originshop.py").write_text(
        "def clean(record, kind, origin):\n"
        "    record['billing'] = f\"{origin['topic']} {origin['key']} {origin['header']} {origin['timestamp']}\"\n"
        "    return record\n"
        "def today(record, kind): return record\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    both = both_of('"custom_data.content_name" = "@header.h"')
    record = Record(0, 1000, b"c-7", value_of(both), (("h", b"x"), ("i", b"y")))
    for name, takes in (("clean", True), ("today", False)):
        transformer = Transformer(load_transform(f"originshop:{name}"), f"originshop:{name}", SCHEMA)
        assert transformer.takes_origin is takes
        decoder = type(both.decoder)(both.decoder._choice, whole=True, origins=[(("@",),)] if takes else [()])
        decoder.add_schema(SchemaRef("id", "7"), SCHEMA)
        event = decoder.decode(record, "orders", 3)
        assert isinstance(event, dict)
        event = transformer.apply(event)
        assert isinstance(event, dict)
        assert event["@"]["header"]["h"] == "x"
        if takes:
            assert event["billing"] == "orders c-7 {'h': 'x', 'i': 'y'} 1000"
    # A record of a file may have none of it.
    transformer = Transformer(load_transform("originshop:clean"), "originshop:clean", SCHEMA)
    event = transformer.apply(made(random.Random(1)))
    assert isinstance(event, dict)
    assert event["billing"] == "None None {} None"


def test_a_file_may_say_it_beside_the_fields(tmp_path: Path) -> None:
    """`explain` reads it from keys of the same names; what is not there has no value, and --topic gives the topic."""
    folder = tmp_path / "schemas"
    folder.mkdir()
    (folder / "shop.avsc").write_text(json.dumps(SCHEMA))
    fields = (
        '"custom_data.content_name" = { join = ["@topic", "@partition", "@offset"], with = "/" }\n'
        '"custom_data.order_id" = "@header.x.y"\n'
        '"custom_data.content_brand" = "@key.shop"\n'
        '"app_info.install_time" = "@timestamp"'
    )
    (tmp_path / "m.toml").write_text(BASE.format(fields=fields))
    record = {
        **{key: value for key, value in made(random.Random(1)).items() if key in ("id", "at", "kind")},
        "numbered": [], "attributes": {}, "by_id": {}, "lines": [],
        **dict.fromkeys(("params", "total", "rate", "billing", "shipping", "paid_s", "made_us", "local", "clock")),
        **dict.fromkeys(("grid", "big", "digits")),
    }  # fmt: skip
    kafka = {
        "@header.x.y": "o-1",
        "@key": {"shop": 7},
        "@timestamp": "2026-03-01T11:59:00Z",
        "@partition": 2,
        "@offset": 5,
    }
    lines = [{**record, **kafka, "@topic": "web"}, {**record, **kafka}, record, {**record, "@timestamp": "x"}]
    (tmp_path / "r.ndjson").write_text("\n".join(map(json.dumps, lines)))
    environment = {
        "PINSTREAM_SCHEMAS_DIR": str(folder),
        "PINSTREAM_SCHEMA": "Shop",
        "PINSTREAM_MAPPING_FILE": str(tmp_path / "m.toml"),
        "PINSTREAM_MAX_EVENT_AGE": "0",
    }
    arguments = ["explain", str(tmp_path / "r.ndjson"), "--now", "2026-03-01T12:00:00Z", "--topic", "shop"]
    result = CliRunner(env=environment).invoke(main, arguments)
    assert result.exit_code == 0, result.output
    first, second, third, fourth = map(json.loads, result.stdout.splitlines())
    custom = first["payload"]["custom_data"]
    assert (custom["content_name"], custom["order_id"], custom["content_brand"]) == ("web/2/5", "o-1", "7")
    assert first["payload"]["app_info"] == {"install_time": 1772366340}
    assert second["payload"]["custom_data"]["content_name"] == "shop/2/5"
    assert "app_info" not in third["payload"]
    assert fourth["error"]["message"] == "field @timestamp: expected whole milliseconds or ISO 8601 text"
