"""Targets that read what servers say: answers of the API, a registry's schemas, a committed offset's metadata. See
`targets`."""

from __future__ import annotations

import asyncio
import base64
import importlib
import json
import zlib
from collections.abc import Mapping
from functools import cache
from typing import Any, Final

import orjson

from consumer.adapters.schemas import RegistrySchemas
from consumer.engine.messages import FetchSchema, SchemaFound, SchemaMissing, SchemaUnavailable
from consumer.engine.model import Position, SchemaRef, TopicPartition
from consumer.engine.records import offset_map as offset_maps
from consumer.engine.sending import verdicts
from consumer.engine.sending.masking import kind, mask, who_answered
from tests.fuzzing.building import SCHEMA, SchemaBuilder
from tests.fuzzing.contract import bounded, check_line
from tests.fuzzing.provider import MARK, DataProvider
from tests.fuzzing.records import DECODE_CODES, FOREIGN, NOW, decoder_of, fresh, schema_text

_HTTPX: Any = importlib.import_module("confluent_kafka.schema_registry.common._httpx_compat").httpx
"""The HTTP library that Confluent's client uses."""


# ----------------------------------------------------------------------------------------------- answers

_STATUSES: Final = (200, 400, 422, 401, 403, 404, 413, 429, 500, 503, 0, 302, 999)
_LIMIT_HEADERS: Final = ("x-ratelimit-reset", "x-ratelimit-remaining", "retry-after", "x-pinterest-rid", "x")
_EVENT: Final = orjson.dumps(
    {"event_name": "checkout", "user_data": {"em": ["0" * 64], "client_user_agent": MARK}}
)


def answers(data: bytes) -> None:
    """An answer of the Conversions API: status, headers and body, the latter as it is or nearly right."""
    provider = DataProvider(data)
    status, events = provider.pick(_STATUSES), provider.below(5)
    headers = {provider.pick(_LIMIT_HEADERS): _header(provider) for _ in range(provider.below(5))}
    body = _body(provider, events) if provider.below(2) else provider.rest()
    check_answer(status, headers, body, events)


def _header(provider: DataProvider) -> str:
    return provider.sized().decode("utf-8", "surrogateescape") if provider.below(2) else provider.text()


def _body(provider: DataProvider, events: int) -> bytes:
    entries: list[Any] = [
        {
            "status": provider.pick(("processed", "failed", "ok", None, 1, ["failed"])),
            "error_message": provider.pick((None, "", " ", provider.text(), 7)),
            "warning_message": provider.pick((None, provider.text(), {})),
        }
        for _ in range(provider.pick((events, events, events, provider.byte())))
    ]
    processed = sum(1 for entry in entries if entry["status"] == "processed")
    answer: dict[str, Any] = {
        "num_events_received": provider.pick((events, events, True, -1, 1.0)),
        "num_events_processed": provider.pick((processed, processed, str(processed), 2**63)),
        "events": entries,
        "code": provider.pick((4196, "4196", 10**30, None, True)),
        "message": provider.text(),
    }
    shapes: tuple[Any, ...] = (
        answer,
        {**answer, "events": None, "details": answer},
        [answer],
        {"details": [answer]},
    )
    return json.dumps(provider.pick(shapes)).encode()


def check_answer(status: int, headers: Mapping[str, str], body: bytes, events: int) -> verdicts.Verdict:
    """Reads an answer and checks the verdict against the contract."""
    with bounded(len(body) * 4, (64 << 20) + 8 * len(body)):
        verdict = verdicts.read_answer(status, headers, body, events, NOW)
        remaining, reset = verdicts.limit_headers(headers)
        said = who_answered(headers, body, _EVENT)
    assert remaining is None or 0 <= remaining <= 10**9
    assert reset is None or 0 <= reset <= 1e9
    check_line(said)
    assert not isinstance(verdict, verdicts.Refused) or verdict.code is None or type(verdict.code) is int
    if isinstance(verdict, verdicts.Throttled):
        assert verdict.wait is None or 0 <= verdict.wait < 1e12
    for message in _messages(verdict, status, events):
        with bounded(len(message)):
            check_line(mask(message, _EVENT))
            assert len(kind(message, _EVENT)) <= 80
    return verdict


def _messages(verdict: verdicts.Verdict, status: int, events: int) -> list[str]:
    """The messages of a verdict on events; their number and kind are checked."""
    if isinstance(verdict, verdicts.PerEvent):
        assert status == 200
        assert len(verdict.outcomes) == events
        return [text for one in verdict.outcomes for text in (one.error, one.warning) if text is not None]
    if isinstance(verdict, verdicts.SomeRefused):
        assert verdict.errors
        assert verdict.errors.keys() <= set(range(events))
        return list(verdict.errors.values())
    if isinstance(verdict, verdicts.BatchRefused):
        return [verdict.message]
    if isinstance(verdict, verdicts.NoVerdict):
        check_line(verdict.reason)
    return []


# ---------------------------------------------------------------------------------------------- registry


class _Registry:
    """Confluent's own client on a transport that answers from memory: the first answer, then the others in turn."""

    def __init__(self) -> None:
        self.answers = [(200, b"")]
        self.asked = 0
        self.loop = asyncio.new_event_loop()
        self.schemas = RegistrySchemas({"url": "http://registry.invalid"})
        self._client: Any = self.schemas._client

    def fetch(self, ref: SchemaRef) -> object:
        """What the product makes of the answers; nothing is kept from an earlier fetch."""
        self.asked = 0
        return self.loop.run_until_complete(self._fetch(ref))

    async def _fetch(self, ref: SchemaRef) -> object:
        await self._client.clear_caches()
        self._client._rest_client.session = _HTTPX.AsyncClient(transport=_HTTPX.MockTransport(self._answer))
        return await self.schemas.fetch(FetchSchema(ref))

    def _answer(self, _request: Any) -> Any:
        status, body = self.answers[self.asked % len(self.answers)]
        self.asked += 1
        return _HTTPX.Response(status, content=body)


@cache
def _registry() -> _Registry:
    return _Registry()


def registry(data: bytes) -> None:
    """A registry's answers: the bytes themselves, or a schema and references built from them."""
    provider = DataProvider(data)
    ref = provider.pick((FOREIGN, SchemaRef("guid", "0" * 8 + "-0000" * 3 + "-" + "0" * 12)))
    answers_ = [_registry_answer(provider) for _ in range(1 + provider.below(3))]
    check_registry(ref, answers_)


def _registry_answer(provider: DataProvider) -> tuple[int, bytes]:
    status = provider.pick((200, 200, 200, 404, 401, 500, 204))
    if provider.below(2) == 0:
        return status, provider.sized()
    schema = provider.pick(
        (json.dumps(SCHEMA), json.dumps(SchemaBuilder(provider).record()), schema_text(provider))
    )
    subject = provider.pick(("shop", "x/../y", "", "\ud800"))
    body: dict[str, Any] = {
        "schema": provider.pick((schema, schema, None, 7, {"type": "int"})),
        "references": [
            {
                "name": "a",
                "subject": subject,
                "version": provider.pick((1, 2, "latest", None, -1, 1e999, [1])),
            }
            for _ in range(provider.below(4))
        ],
        "error_code": provider.pick(
            (40403, 40401, 50001, "40403", [40403], {}, None, f"{MARK} " * 40, 10**40)
        ),
        "message": provider.text(),
        "schemaType": provider.pick(("AVRO", "PROTOBUF", None, 3)),
        **{key: 1 for key in ("version", "id", "guid", "subject") if provider.below(2)},
    }
    return status, json.dumps(body).encode()


def check_registry(ref: SchemaRef, answers_: list[tuple[int, bytes]]) -> object:
    """Fetches `ref` from a registry with these answers, and checks the outcome against the contract."""
    there = _registry()
    there.answers = answers_
    size = sum(len(body) for _, body in answers_)
    with bounded(size * 20):
        outcome = there.fetch(ref)
    assert there.asked <= 102
    if isinstance(outcome, SchemaUnavailable):
        check_line(outcome.reason)
    elif isinstance(outcome, SchemaFound):
        with bounded(size * 20):
            verdict = fresh(decoder_of(0)).add_schema(ref, outcome.schema)
        if verdict is not None:
            assert verdict.code in DECODE_CODES
    else:
        assert isinstance(outcome, SchemaMissing)
        assert (answers_[0][0], ref) == (404, ref) or any(status == 404 for status, _ in answers_)
    return outcome


# -------------------------------------------------------------------------------------------- offset map


def offset_map(data: bytes) -> None:
    """The metadata of a committed offset: bytes from a broker, which any program may have written."""
    provider = DataProvider(data)
    base = abs(provider.number())
    text = (
        sealed_map(base, provider.byte(), provider.rest())
        if provider.below(2)
        else provider.rest().decode("utf-8", "replace")
    )
    check_offset_map(base, text)


def sealed_map(base: int, how: int, body: bytes) -> str:
    """Metadata with the right checksum, which a fuzzer would not guess."""
    check = zlib.crc32(base.to_bytes(8, "big") + b"t-0" + bytes([how]) + body).to_bytes(4, "big")
    return "pinstream:2:" + base64.urlsafe_b64encode(bytes([how]) + check + body).decode()


def check_offset_map(base: int, text: str) -> None:
    """Reads the metadata of a commit of `base` and checks the map against the contract."""
    # A map of 4,096 characters may unfold to a million runs, and does not need to be read to a megabyte of them.
    with bounded(1_000_000, 96 << 20):
        found = offset_maps.read_map(Position("t", 0, base, None, text)).settled
    if found is not None:
        assert list(found.bounds) == sorted(set(found.bounds))
        assert len(found.bounds) % 2 == 0
        assert found.bounds[0] >= base
        written = offset_maps.write_map(TopicPartition("t", 0), base, found.bounds, found.leader_epoch)
        assert offset_maps.read_map(Position("t", 0, base, None, written)).settled is not None
