"""What fuzzing, and thinking like a fuzzer, found: each held by the smallest input that showed it.

`tests/avro/test_decode_hostile.py` has the lies about lengths and indexes in single data; here is what was missing.
Bounds of time and memory are those of `contract`, far below what each took before it was fixed.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import orjson
import pytest

from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.ndjson import LinePlan, parse_line
from consumer.conversion.normalise import Omitted, text_of
from consumer.engine.messages import SchemaMissing, SchemaUnavailable
from consumer.engine.model import ConversionEvent, Rejection, SchemaRef, Stage
from consumer.engine.sending.masking import MASK, mask
from consumer.engine.sending.verdicts import NoVerdict, PerEvent, Throttled, limit_headers
from tests.fuzzing.building import SCHEMA
from tests.fuzzing.contract import Measuring, bounded, check_rejection
from tests.fuzzing.provider import MARK
from tests.fuzzing.records import DECODE_CODES, NOW, check_converting
from tests.fuzzing.servers import check_answer, check_offset_map, check_registry, sealed_map
from tests.fuzzing.writers import ZOO
from tests.support import avro
from tests.support.avro import numbered as record_of

FOREIGN = SchemaRef("id", "7")
HEAD = b"\x00\x00\x00\x00\x07"


@pytest.fixture(autouse=True)
def _measured() -> Iterator[None]:
    """Measure memory in this process."""
    Measuring.memory = True
    yield
    Measuring.memory = False


def with_extra(*kinds: Any) -> str:
    """Our schema with further fields, as another writer may have it."""
    fields = [avro.field(f"extra{number}", kind) for number, kind in enumerate(kinds)]
    return json.dumps({**SCHEMA, "fields": [*SCHEMA["fields"], *fields]})


def learn(schema: Any, reader: dict[str, Any] = SCHEMA) -> tuple[Decoder, Rejection | None]:
    """A decoder with `schema`, and its answer, within the bounds."""
    decoder = Decoder(OneSchema(reader))
    with bounded(len(schema if isinstance(schema, str) else json.dumps(schema)) * 10):
        verdict = decoder.add_schema(FOREIGN, schema)
    if verdict is None:
        return decoder, None
    assert isinstance(verdict, Rejection)
    check_rejection(verdict, Stage.DECODE, DECODE_CODES)
    return decoder, verdict


# ---------------------------------------------------------------------------------------------- schemas


@pytest.mark.parametrize(
    ("kind", "maximum"),
    [
        (lambda nulls: avro.array(record_of("Extra", "boolean", *["null"] * nulls)), 14),
        (lambda nulls: avro.array(record_of("Extra", "double", *["null"] * nulls)), 126),
        (lambda nulls: avro.array(["int", record_of("Extra", *["null"] * nulls)]), 15),
        (lambda nulls: avro.map_of(record_of("Extra", *["null"] * nulls)), 15),
        (lambda nulls: record_of("Chain", ["null", "Chain"], *["null"] * nulls), 14),
        (
            lambda nulls: record_of(
                "Chain", ["null", record_of("Link", ["null", "Chain"], *["null"] * nulls)]
            ),
            29,
        ),
        (lambda more: record_of("Once", record_of("Extra", *["null"] * 98), *["Extra"] * more), 100),
    ],
    ids=["a byte", "eight bytes", "a branch", "a key", "a chain", "a chain of two", "once in a datum"],
)
def test_a_byte_pays_for_sixteen_values(kind: Callable[[int], Any], maximum: int) -> None:
    """The bound is exact: a datum of a megabyte makes at most sixteen million values, and ten thousand once
    without bytes. An item of one byte and 2,000 nulls made two thousand million of it."""
    _, verdict = learn(with_extra(kind(maximum)))
    assert verdict is None
    _, verdict = learn(with_extra(kind(maximum + 1)))
    assert verdict is not None
    assert "bound" in verdict.message or "pay" in verdict.message


@pytest.mark.parametrize(
    "kind",
    [
        [avro.fixed(f"F{number}", 1) for number in range(5_000)],
        [avro.enum(f"E{one}", "A", aliases=[f"a{other}" for other in range(60)]) for one in range(800)],
    ],
    ids=["branches", "aliases"],
)
def test_a_wide_union_that_we_lack_costs_no_square(kind: Any) -> None:
    """Each branch was searched for among all others: a union of 5,000 delayed the consumer for half a minute."""
    _, verdict = learn(with_extra(kind))
    assert verdict is None


def test_many_arrays_of_one_empty_type_cost_no_square() -> None:
    """For each array the question whether its type takes no bytes was asked again."""
    big = record_of("Big", *["null"] * 3_000, "boolean")
    _, verdict = learn(with_extra(big, *[avro.array("Big")] * 3_000))
    assert verdict is not None


@pytest.mark.parametrize("length", [400, 1_500])
def test_a_long_chain_of_references_is_a_verdict(length: int) -> None:
    """The references are not nested in the text, so no depth was counted: resolving them raised RecursionError
    in the engine."""
    chain = [record_of(f"R{each}", ["null", f"R{each - 1}"] if each else "int") for each in range(length)]
    fields = [
        {**each, "type": [*each["type"], *chain]} if each["name"] == "order" else each
        for each in SCHEMA["fields"]
    ]
    last = avro.field("last", f"R{length - 1}")
    _, verdict = learn(json.dumps({**SCHEMA, "fields": [*fields, last]}))
    assert verdict is not None
    assert "deep" in verdict.message


@pytest.mark.parametrize(
    "name",
    ["x" * 900_000, "a\nb", "a\x00b", "\x1b[2J", "\ud800", "a\u2028b"],
    ids=lambda name: repr(name)[:9],
)
def test_names_in_a_schema_make_no_broken_message(name: str) -> None:
    """A message becomes a Kafka header and a log line: a lone surrogate in it could not be stored, nor a
    megabyte shown."""
    for schema in (
        record_of("E", name),
        avro.record(name),
        avro.record("E", avro.field(name, "nothing")),
        with_extra(avro.array(avro.fixed(name, 0))),
        json.dumps({**SCHEMA, "fields": [avro.field("event_id", avro.fixed(name, 3))]}),
    ):
        _, verdict = learn(schema)
        assert verdict is not None


# ------------------------------------------------------------------------------------------- conversion

ACCENTS = "a" + "\u0301" * 40_000 + "\u0316" * 40_000


def valid(**customer: Any) -> dict[str, Any]:
    """An event that is delivered."""
    return {
        "event_id": "e-1", "event_type": "order_placed", "occurred_at": int(NOW * 1000), "channel": "WEB",
        "opt_out": False, "customer": {"emails": [MARK], **customer},
    }  # fmt: skip


@pytest.mark.parametrize(
    "field", ["first_name", "last_name", "city", "state", "country", "gender", "postal_code"]
)
def test_a_run_of_accents_costs_no_square(field: str) -> None:
    """Unicode's normalisation sorts accents by insertion: one record of a megabyte delayed the consumer for hours."""
    converted = check_converting(valid(**{field: ACCENTS}), honest=True)
    assert isinstance(converted, ConversionEvent)
    assert {warning.code for warning in converted.warnings} == {"malformed"}


def test_a_phone_number_of_accents_costs_no_square() -> None:
    """The same in a list."""
    converted = check_converting(valid(phones=[ACCENTS, "+49 151 2345678"]), honest=True)
    assert isinstance(converted, ConversionEvent)
    assert len(converted.payload["user_data"]["ph"]) == 1


@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_a_float_that_is_no_number_is_no_text(value: float) -> None:
    """Infinity was sent as the text ``inf``."""
    assert text_of(value) is Omitted.MALFORMED
    converted = check_converting({**valid(), "order": {"order_id": value, "total": value}}, honest=False)
    assert isinstance(converted, Rejection)
    assert converted.code == "malformed_value"
    converted = check_converting({**valid(), "order": {"order_id": value}}, honest=False)
    assert isinstance(converted, ConversionEvent)
    assert "order_id" not in converted.payload.get("custom_data", {})


# ---------------------------------------------------------------------------------------------- NDJSON

PLAN = LinePlan(OneSchema(SCHEMA))
ZOO_PLAN = LinePlan(OneSchema(ZOO))


@pytest.mark.parametrize("field", [each["name"] for each in ZOO["fields"]])
@pytest.mark.parametrize(
    "literal",
    [
        "9" * 10_000, "-" + "9" * 10_000, "0." + "0" * 10_000 + "1", "1e" + "9" * 10_000, "1E-" + "9" * 17,
        "[" * 100_000, "[" * 900 + "]" * 900, '{"a":' * 100_000, '"' + "\\ud800" * 3 + '"', '"\\u0000"', '"\xff',
    ],
    ids=lambda literal: literal[:8],
)  # fmt: skip
def test_a_line_of_absurd_values_is_a_verdict(field: str, literal: str) -> None:
    """Numbers of 10,000 digits, 100,000 levels, lone surrogates and broken UTF-8, in every type of field."""
    line = f'{{"{field}": {literal}}}'.encode("latin-1")
    with bounded(len(line)):
        verdict = parse_line(line, ZOO_PLAN)
    assert isinstance(verdict, Rejection)
    check_rejection(verdict, Stage.DECODE, DECODE_CODES)


def test_a_line_with_many_keys() -> None:
    """Unknown keys are ignored; the required fields are missing."""
    line = ("{" + ",".join(f'"{number:x}":0' for number in range(200_000)) + "}").encode()
    verdict = parse_line(line, PLAN)
    assert isinstance(verdict, Rejection)
    assert verdict.code == "misfit"


# --------------------------------------------------------------------------------------------- answers


@pytest.mark.parametrize(
    "text",
    [
        "1e308", "-1", "NaN", "inf", "-0", "٣", "3٣", "1_000", "0x10", "1e3", "", " ", "9" * 8_000, "3.٣", "\udcff",
        "3;3", "8\x1e\x1f",
    ],
)  # fmt: skip
def test_absurd_rate_limit_headers_say_nothing(text: str) -> None:
    """A value that is no plain number of seconds is ignored: the usual backoff applies."""
    headers = {"x-ratelimit-reset": text, "x-ratelimit-remaining": text, "retry-after": text}
    assert limit_headers(headers) == (None, None)
    assert check_answer(429, headers, b"", 1) == Throttled(None)


@pytest.mark.parametrize("status", [200, 422])
@pytest.mark.parametrize(
    "body",
    [
        b"[" * 3_000_000, b'{"events":' * 500_000, b"[" + b"{}," * 3_000_000 + b"{}]",
        b'{"events":[' + b"[]," * 3_000_000 + b"[]]}",
        b'{"events":[{"status":"\xff"}]}', b'{"events":[{"status":"failed","error_message":"\\ud800"}]}',
        b'{"num_events_received":' + b"9" * 100_000 + b"}", b'{"code":' + b"9" * 30 + b"}", b"\xef\xbb\xbf{}", b"NaN",
    ],
    ids=lambda body: repr(body[:9]),
)  # fmt: skip
def test_absurd_answers_are_no_verdict_on_events(status: int, body: bytes) -> None:
    """Endless nesting, or countless empty objects: a body took 30 times its size of memory."""
    verdict = check_answer(status, {}, body, 1)
    assert not isinstance(verdict, PerEvent)
    if status == 200:
        assert isinstance(verdict, NoVerdict)
    else:
        assert verdict == NoVerdict(f"http_{status}")


def test_a_large_honest_answer_is_read() -> None:
    """A thousand events, each with a long message full of brackets."""
    entry = {"status": "failed", "error_message": "[{" * 40 + "x" * 500, "warning_message": "y" * 500}
    body = orjson.dumps({"num_events_received": 1000, "num_events_processed": 0, "events": [entry] * 1000})
    verdict = check_answer(200, {}, body, 1000)
    assert isinstance(verdict, PerEvent)


def test_a_long_word_costs_no_square() -> None:
    """An address was searched for from each letter: a thousand failed events delayed the consumer for a minute."""
    with bounded(0):
        masked = [mask("x" * 2_000, b"") for _ in range(300)]
    assert masked[0] == "x" * 300
    assert mask("call +1 555 123 4567jane@x.org or x", b"") == "call *** *** or x"


def test_masking_a_message_costs_no_more_for_a_large_event() -> None:
    """A pattern of all values took seconds to compile, and Python keeps five hundred patterns: gigabytes."""
    values = [f"value-{number:07}-{number * 7919 % 1_000_003}" for number in range(40_000)]
    body = orjson.dumps({"custom_data": {"content_ids": values}})
    with bounded(len(body) // 8):
        masked = mask(f"'{values[7].upper()}' is bad, so is {values[39_999]}", body)
    assert masked == f"'{MASK}' is bad, so is {MASK}"


@pytest.mark.parametrize(
    ("message", "value"),
    [
        ("STRASSE ΟΔΟΣ is bad", "οδος"),
        ("istanbul is bad", "İSTANBUL"),
        ("ISTANBUL is bad", "ıstanbul"),
        ("a\x00b\x1b[2Jc is bad", "a\x00b\x1b[2Jc"),
        ("aaaaa is bad", "aaa"),
    ],
)
def test_values_are_masked_in_any_case_and_spelling(message: str, value: str) -> None:
    """Case is folded letter by letter; control characters, which would reach a terminal, are replaced."""
    masked = mask(message, orjson.dumps({"user_data": {"click_id": value}}))
    assert MASK in masked
    assert masked.isprintable()
    assert not set(masked) & set("\x00\x1b")


# ------------------------------------------------------------------------------------------ offset map


def test_an_offset_map_unfolds_to_no_more_than_is_written() -> None:
    """1,400 characters of metadata unfolded to eight million runs: a third of a gigabyte, and seconds."""
    for how, runs in ((3, b"\x55" * (1 << 20)), (3, b"\xff" * (1 << 20)), (1, b"\x01" * (1 << 20))):
        check_offset_map(5, sealed_map(5, how, b"\x01" + zlib.compress(runs, 9)))


def test_an_offset_map_has_one_run_of_nothing_at_most() -> None:
    """The base may be settled; several empty runs made bounds that do not rise."""
    check_offset_map(0, sealed_map(0, 0, b"\x00" + b"\x00" * 3 + b"\x05"))


# -------------------------------------------------------------------------------------------- registry


@pytest.mark.parametrize("code", [[40403], {"a": 1}, None, "40403", MARK, 10**40, True, 1.5])
def test_a_registry_s_error_code_can_be_anything(code: Any) -> None:
    """A list raised TypeError in `fetch`, which never raises; a text was repeated in the reason."""
    body = json.dumps({"error_code": code, "message": MARK}).encode()
    for status in (404, 500):
        outcome = check_registry(FOREIGN, [(status, body)])
        assert isinstance(outcome, SchemaUnavailable)
    assert isinstance(check_registry(FOREIGN, [(404, b'{"error_code": 40403}')]), SchemaMissing)


@pytest.mark.parametrize(
    "body",
    [
        b"\xff\xfe", b"[" * 50_000, b"{}", b"null", b'"' + MARK.encode() + b'"', b"[1]", b'{"schema": 7}',
        b'{"schema": "\\ud800", "references": [{"name": 1}]}',
        b'{"schema": "[", "references": [{"name": "a", "subject": "b", "version": 1e999}]}',
        json.dumps({"schema": "x" * 2_000_000, "references": [{"name": "a", "subject": "b", "version": 1}]}).encode(),
    ],
    ids=lambda body: repr(body[:12]),
)  # fmt: skip
def test_a_registry_s_nonsense_is_no_verdict(body: bytes) -> None:
    """Whatever it answers with 200, it is asked again later, and the reason repeats no word of it."""
    outcome = check_registry(FOREIGN, [(200, body)])
    assert not isinstance(outcome, SchemaMissing)
