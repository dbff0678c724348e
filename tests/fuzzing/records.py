"""Targets that read records: decode, convert, explain. See `targets`."""

from __future__ import annotations

import copy
import json
import math
import tempfile
from collections import OrderedDict
from collections.abc import Mapping
from functools import cache
from typing import IO, Any, Final

import orjson

from consumer.adapters.files import Types, open_records
from consumer.avro.decode import MAX_RECORD_BYTES, DecodeCode, Decoder, OneSchema
from consumer.commands.explain.explaining import explanation
from consumer.conversion.converter import Converter
from consumer.conversion.decisions import UNCONVERTIBLE
from consumer.engine.model import ConversionEvent, Filtered, Record, Rejection, SchemaRef, Stage
from consumer.errors import InputError
from tests.conversion.test_convert import REJECTION_CODES, WARNING_CODES
from tests.fuzzing.building import MAGIC, MAPPING, SCHEMA, SchemaBuilder, container, event, size_of
from tests.fuzzing.contract import bounded, check_line, check_rejection, values_in
from tests.fuzzing.provider import MARK, DataProvider
from tests.fuzzing.writers import READERS, WRITERS
from tests.support.mapping import load_mapping

NOW: Final = 1_700_000_000.0
DECODE_CODES: Final = frozenset(code.value for code in DecodeCode)
FOREIGN: Final = SchemaRef("id", "99")
"""A schema that no decoder knows."""
_MAX_VALUES, _VALUES_A_BYTE = 10_000, 24
"""The values that a datum may hold by `consumer.avro.schema.require_bounded`, with our own schema's defaults."""


# ------------------------------------------------------------------------------------------------ decode


@cache
def decoder_of(reader: int) -> Decoder:
    """One of `READERS`, which knows all `WRITERS` by their numbers."""
    decoder = Decoder(OneSchema(READERS[reader]))
    for number, writer in enumerate(WRITERS):
        decoder.add_schema(SchemaRef("id", str(number)), writer)
    return decoder


def fresh(decoder: Decoder) -> Decoder:
    """A copy that may learn schemas; a new one would have to compile our schema again."""
    copied = copy.copy(decoder)
    copied.known = dict(decoder.known)
    copied._unread = OrderedDict(decoder._unread)
    return copied


def decode(data: bytes) -> None:
    """A record's value and headers, in any wire format, with a known, a built or a written-out writer's schema."""
    provider = DataProvider(data)
    decoder = fresh(decoder_of(provider.below(len(READERS))))
    how = provider.below(4)
    if how == 0:
        record = Record(0, -1, None, provider.rest(), ())
    elif how == 1:
        headers = tuple(
            (provider.pick(("__value_schema_id", "x")), provider.sized()) for _ in range(provider.below(3))
        )
        record = Record(0, -1, None, provider.rest(), headers)
    else:
        # A schema may be named as it likes; what is in a message comes from there, so nobody's data are.
        schema = SchemaBuilder(provider).record() if how == 2 else schema_text(provider)
        size = size_of(schema if isinstance(schema, str) else json.dumps(schema))
        with bounded(size * 10):
            verdict = decoder.add_schema(FOREIGN, schema)
        if verdict is not None:
            assert isinstance(verdict, Rejection)
            check_rejection(verdict, Stage.DECODE, DECODE_CODES)
        record = Record(0, -1, None, b"\x00\x00\x00\x00\x63" + provider.rest(), ())
    check_decoding(decoder, record)


def schema_text(provider: DataProvider) -> str:
    """A schema as text, or a text that is none."""
    return provider.sized().decode("utf-8", "replace").replace(MARK, "mark")


def check_decoding(decoder: Decoder, record: Record) -> object:
    """Decodes `record` and checks the result against the contract."""
    value = record.value or b""
    # AWS Glue's serialisers compress: zlib packs a thousand bytes into one, and up to a limit they are unpacked.
    size = min(len(value) * 1032, MAX_RECORD_BYTES) if value[:2] == b"\x03\x05" else len(value)
    with bounded(size):
        decoded, again = decoder.decode(record), decoder.decode(record)
    assert type(decoded) is type(again)
    if isinstance(decoded, Rejection):
        assert decoded == again
        check_rejection(decoded, Stage.DECODE, DECODE_CODES)
    elif isinstance(decoded, SchemaRef):
        assert decoded.kind in ("id", "guid", "fingerprint", "glue")
        check_line(decoded.value)
    else:
        assert isinstance(decoded, dict)
        assert values_in(decoded) <= _MAX_VALUES + _VALUES_A_BYTE * size
    return decoded


# ----------------------------------------------------------------------------------------------- convert


@cache
def _converter() -> Converter:
    mapping = load_mapping(None, SCHEMA, default_toml=MAPPING)
    return Converter(mapping, accounts=(), max_event_age=math.inf)


def convert(data: bytes) -> None:
    """Usually an event in the shape of our schema: with values that no schema allows, or as a decoder gives it."""
    provider = DataProvider(data)
    if provider.below(4) == 0:
        event_ = decoder_of(0).decode(Record(0, -1, None, provider.rest(), ()))
        if isinstance(event_, dict):
            check_converting(event_, honest=True)
        return
    wild = provider.below(2) == 1
    event_ = event(provider, wild=wild)
    if not isinstance(event_, dict):
        event_ = {"customer": event_}
    if provider.below(2):
        event_.update(_identified(provider))
    check_converting(event_, honest=not wild)


def _identified(provider: DataProvider) -> dict[str, Any]:
    """The event with the fields that most events need to be accepted."""
    return {
        "event_id": f"e-{provider.byte()}",
        "event_type": provider.pick(("order_placed", "page_viewed", "search")),
        "occurred_at": int(NOW * 1000) - provider.number(),
        "channel": provider.pick(("WEB", "IOS", "OFFLINE")),
        "opt_out": provider.below(2) == 1,
        "customer": {**event(provider, _customer(), wild=False), "emails": [MARK]},
    }


@cache
def _customer() -> Any:
    return next(each["type"] for each in SCHEMA["fields"] if each["name"] == "customer")


def check_converting(event_: dict[str, Any], *, honest: bool) -> object:
    """Converts `event_` and checks the result against the contract; `honest`: every value has the type of the
    schema."""
    size = size_of(event_)
    with bounded(size):
        converted = _converter().convert(event_, NOW)
    if isinstance(converted, Rejection):
        assert not (honest and converted.code == UNCONVERTIBLE), converted.message
        check_rejection(converted, Stage.CONVERT, REJECTION_CODES)
    elif isinstance(converted, ConversionEvent):
        with bounded(size):
            _check_payload(converted)
    else:
        assert isinstance(converted, Filtered)
    return converted


def _check_payload(converted: ConversionEvent) -> None:
    body = orjson.dumps(converted.payload)  # raises for what is not Unicode, or no int64
    assert orjson.loads(body) == converted.payload  # NaN would come back as null
    assert converted.account.isdigit()
    assert converted.event_id.strip()
    assert converted.dedup_id.encode()
    assert type(converted.time) is int
    assert converted.time <= NOW
    user = converted.payload["user_data"]
    for name in (
        "em",
        "ph",
        "ge",
        "db",
        "ln",
        "fn",
        "ct",
        "st",
        "zp",
        "country",
        "external_id",
        "hashed_maids",
    ):
        for digest in user.get(name, ()):
            assert len(digest) == 64
            assert not set(digest) - set("0123456789abcdef")
    for warning in converted.warnings:
        assert warning.code in WARNING_CODES
        check_line(warning.message)


# ----------------------------------------------------------------------------------------------- explain


@cache
def _scratch() -> IO[bytes]:
    """A file without a name, so that none is left however this process ends."""
    return tempfile.TemporaryFile()


def explain(data: bytes) -> None:
    """A file: the bytes themselves (NDJSON or a container), or a container built from them."""
    provider = DataProvider(data)
    content = container(provider) if provider.below(2) else provider.rest()
    check_explaining(content)


def check_explaining(content: bytes) -> list[dict[str, Any]]:
    """Checks what `explain` prints for each record of such a file against the contract."""
    file = _scratch()
    file.seek(0)
    file.truncate()
    file.write(content)
    file.seek(0)
    lines = []
    # A container is packed: what it unfolds to has a bound of its own, whatever the file's size.
    with bounded(len(content) + (1 << 20 if content[: len(MAGIC)] == MAGIC else 0)):
        try:
            for _, record in open_records(f"/dev/fd/{file.fileno()}", Types(OneSchema(SCHEMA))):
                line = explanation(
                    record if isinstance(record, Rejection | Filtered) else _converter().convert(record, NOW)
                )
                _check_explanation(line)
                lines.append(line)
        except InputError as error:
            check_line(str(error))
    return lines


def _check_explanation(line: Mapping[str, Any]) -> None:
    json.dumps(line, allow_nan=False)
    assert line["outcome"] in ("deliverable", "filtered", "rejected")
    assert (line["payload"] is None) == (line["outcome"] != "deliverable")
    assert (line["error"] is None) == (line["outcome"] != "rejected")
    if line["error"]:
        stage, code = line["error"]["stage"], line["error"]["code"]
        assert code in (DECODE_CODES if stage == "decode" else REJECTION_CODES)
        check_line(line["error"]["message"])
