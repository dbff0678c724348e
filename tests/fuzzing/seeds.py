"""Where the fuzzer starts: real inputs of each target, in the layout that the target reads.

Records and NDJSON come from the made-up shop (`consumer.demo.generator`), answers are what the platform's
description shows, containers are fastavro's. All of it is made at start, from one seed; nothing is kept.
"""

from __future__ import annotations

import hashlib
import io
import json
import zlib
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any, Final

import fastavro

from consumer.avro.encode import Encoder
from consumer.demo.generator import EventGenerator
from consumer.engine.model import CommerceEvent
from tests.fuzzing import fast_path
from tests.fuzzing.building import CODECS, SCHEMA, block, header
from tests.fuzzing.provider import MARK, sized

_NOW: Final = 1_700_000_000.0


def _events(count: int, now: float = _NOW) -> list[CommerceEvent]:
    """The shop's events, the fullest ones; the shopper's e-mail is the mark."""
    generator = EventGenerator(1, lambda: now)
    made = [one.event for one in islice(generator, 40 * count) if one.event is not None]
    chosen = sorted(made, key=lambda event: -len(json.dumps(event, default=str)))[::40][:count]
    for event in chosen:
        event["customer"]["emails"] = [MARK]
    return chosen


def _decode() -> Iterator[bytes]:
    events = _events(6)
    confluent, single = Encoder(SCHEMA, 0), Encoder(SCHEMA)
    for event in events:
        yield b"\x00\x00" + confluent.encode(event)
        yield b"\x00\x00" + single.encode(event)
    datum = confluent.encode(events[0])[5:]
    guid = b"\x01" + bytes(range(16))
    for head in (b"\x00\x00\x00\x00\x00", guid, b""):
        yield b"\x00\x01\x01\x00" + sized(head) + datum
    text = json.dumps(SCHEMA).encode()
    yield b"\x00\x03" + sized(text) + datum
    yield b"\x00\x03" + sized(b'{"type":"record","name":"CommerceEvent","fields":[]}')
    yield b"\x00\x02" + bytes(range(120))
    for writer in (1, 3):
        yield (
            b"\x01\x00\x00\x00\x00\x00" + bytes([writer]) + b"\x00\x01\x02\x06\x02\x01\x04\x06" + b"\x00" * 40
        )
    yield b"\x00\x00\x00\x00\x00\x00\x02" + datum


def _convert() -> Iterator[bytes]:
    encoder = Encoder(SCHEMA, 0)
    for event in _events(8):
        yield b"\x00" + encoder.encode(event)
    yield from (bytes([1, wild]) + bytes((step * number) % 256 for number in range(300)) for wild in (0, 1) for step in
                (3, 7, 11, 101))  # fmt: skip


def _fast_path() -> Iterator[bytes]:
    """The shop's events, alone and together, under both mappings of its schema; an event or two of other shapes."""
    encoder = Encoder(SCHEMA, 0)
    bodies = [encoder.encode(event)[5:] for event in _events(6, fast_path.NOW)]
    for shape in fast_path.OF_THE_SHOP:
        yield from (bytes([shape, 0]) + body for body in bodies)
        yield bytes([shape, 2]) + b"".join(map(sized, bodies[:2])) + bodies[2]
    page = {"page_url": "https://shop.example/?q=1", **fast_path.MORE_OF_AN_OLDER}
    older = [{**event, **page} for event in _events(2, fast_path.NOW)]
    for shape, one in enumerate(fast_path.SHAPES):
        both = fast_path.both_of(shape)
        for event in older if shape == fast_path.OLDER else one.events:
            value = both.value(event)
            assert value is not None
            yield bytes([shape, 0]) + value[len(both.framing) :]


def _schemas() -> Iterator[bytes]:
    """Choices without a pattern, which are as good a start as any."""
    for number in range(20):
        yield b"".join(hashlib.sha256(bytes([number, part])).digest() for part in range(24))


def _explain() -> Iterator[bytes]:
    events = _events(4)
    lines = [json.dumps(event, default=str).encode() for event in events]
    yield b"\x00" + b"\n".join(lines)
    yield b"\x00" + b'{"event_id": 1e3, "occurred_at": "2023-11-14T22:13:20Z", "order": {"order": {}}}\n\n{'
    yield b"\x00" + b"\xef\xbb\xbf" + lines[0]
    for codec in ("null", "deflate", "bzip2", "xz"):
        out = io.BytesIO()
        schema: Any = fastavro.parse_schema(json.loads(json.dumps(SCHEMA)))
        fastavro.writer(out, schema, events, codec=codec, sync_marker=b"S" * 16)
        yield b"\x00" + out.getvalue()
    sync = b"S" * 16
    empty = header(b'"string"', b"deflate", sync) + block(3, CODECS["deflate"](b"\x02a" * 3), sync)
    yield b"\x00" + empty
    yield b"\x01" + bytes(range(64))


def _answers() -> Iterator[bytes]:
    def answer(*entries: dict[str, Any]) -> bytes:
        done = sum(entry["status"] == "processed" for entry in entries)
        body = {"num_events_received": len(entries), "num_events_processed": done, "events": entries}
        return json.dumps(body).encode()

    processed = {"status": "processed", "error_message": "", "warning_message": None}
    failed = {"status": "failed", "error_message": f"'em' {MARK} is not hashed", "warning_message": "old"}
    yield b"\x00\x02\x00\x00" + answer(processed, failed)
    yield b"\x00\x01\x00\x00" + answer(processed)
    yield b"\x01\x02\x00\x00" + answer(processed, failed)
    yield (
        b"\x02\x02\x00\x00"
        + json.dumps({"code": 4196, "message": "no", "details": {"events": [failed, processed]}}).encode()
    )
    yield b"\x03\x01\x00\x00" + b'{"code": 2, "message": "Authentication failed."}'
    for name, value in enumerate(
        (b"3", b"Wed, 15 Nov 2023 00:00:00 GMT", b"1e308", b"-1", b"NaN", "٣".encode())
    ):
        yield (
            b"\x07\x01\x01"
            + bytes([name % 3, 1])
            + sized(value)
            + b"\x00"
            + b'{"code": 8, "message": "slow"}'
        )
    yield b"\x00\x02\x00\x01" + bytes(range(40))


def _registry() -> Iterator[bytes]:
    body = json.dumps({"schema": json.dumps(SCHEMA), "id": 1}).encode()
    refers = {
        "schema": '{"type":"record","name":"CommerceEvent","fields":[{"name":"c","type":"X"}]}',
        "references": [{"name": "X", "subject": "x", "version": 1}],
    }
    referred = {
        "schema": '{"type":"enum","name":"X","symbols":["A"]}', "subject": "x", "version": 1, "id": 2, "guid": "g",
    }  # fmt: skip
    yield b"\x00\x00\x00\x00" + sized(body)
    yield b"\x01\x00\x00\x00" + sized(body)
    yield (
        b"\x00\x01\x00\x00"
        + sized(json.dumps(refers).encode())
        + b"\x00\x00"
        + sized(json.dumps(referred).encode())
    )
    for status, code in ((3, b"40403"), (3, b"404"), (4, b"401"), (5, b"50001"), (3, b'"x"')):
        yield b"\x00\x00" + bytes([status, 0]) + sized(b'{"error_code": %s, "message": "no"}' % code)
    yield b"\x00\x01" + bytes([0, 1]) + bytes(range(80))


def _offset_map() -> Iterator[bytes]:
    for how, runs in (
        (0, b"\x05\x03\x02\x01"),
        (1, zlib.compress(b"\x05\x03")),
        (2, b"\xf0"),
        (3, zlib.compress(b"\xf0")),
    ):
        yield b"\x00\x01" + bytes([how]) + b"\x01" + runs
    yield b"\x00\x00pinstream:1:AAAA"
    yield b"\x00\x00another consumer's note"


def _key_store() -> Iterator[bytes]:
    for file in range(4):
        for at in (b"\0\0", b"\0\x20", b"\0\x45", b"\1\0", b"\x12\x50", b"\xff\xff"):
            yield bytes([file, 0]) + at + b"\0\0\xff"
            yield bytes([file, 0]) + at + b"\x0f"
        yield bytes([file, 3])
        yield bytes([file, 3]) + b"pinstream key store, format 3\n{}\n00000000\n"


_SEEDS: Final[dict[str, Callable[[], Iterator[bytes]]]] = {
    "decode": _decode, "convert": _convert, "fast_path": _fast_path, "schemas": _schemas, "explain": _explain,
    "answers": _answers, "registry": _registry, "offset_map": _offset_map, "key_store": _key_store,
}  # fmt: skip


def seeds(target: str) -> list[bytes]:
    """Inputs that the target accepts, and some that it refuses."""
    return list(_SEEDS.get(target, lambda: iter([b""]))())
