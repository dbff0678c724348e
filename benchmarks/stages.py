"""What each stage of the core costs: CPU microseconds per event, in slices as the intake takes them."""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import orjson

from benchmarks.load import SCHEMA, encoded_checkouts
from consumer.adapters.key_store.interface import KEY_BYTES, Window
from consumer.adapters.key_store.lmdb_store import LmdbKeyStore
from consumer.core.convert import Converter
from consumer.core.decode import Decoder
from consumer.core.fused import FusedReading
from consumer.core.mapping import load_mapping
from consumer.core.model import ConversionEvent, Record

_SLICE = 64
_ROUNDS = 3
_BATCH = 1000
_WINDOW_SECONDS = 48 * 3600
_STORE_BYTES = 1 << 30
_NAMES = ("decode and convert, fast path", "decode, two steps", "convert, two steps", "serialise")


def measure_stages(events: int, event_bytes: int, seed: int) -> dict[str, float]:
    """By stage: decode and convert on the fast path, and in two steps; serialise; the key in the store. Each round
    begins with cold caches; the best round counts, since what is slower than the best is the machine's noise."""
    schema = json.loads(SCHEMA.read_text())
    default = Path(SCHEMA).with_name("commerce_event.mapping.toml").read_text()
    mapping = load_mapping(None, schema, default_toml=default)
    records = [
        Record(n, -1, None, value, ()) for n, value in enumerate(encoded_checkouts(events, event_bytes, seed))
    ]
    rounds = [
        _round(
            Decoder(schema),
            Converter(mapping, schema, accounts=("1",), partner_name=None, max_event_age=604800.0),
            records,
        )
        for _ in range(_ROUNDS)
    ]
    fast = min(
        _fast_round(
            Decoder(schema),
            Converter(mapping, schema, accounts=("1",), partner_name=None, max_event_age=604800.0),
            records,
        )
        for _ in range(_ROUNDS)
    )
    costs = zip(_NAMES, (fast, *min(rounds, key=sum)), strict=True)
    stages = {name: cost / events * 1e6 for name, cost in costs}
    return stages | {"look up and remember its key": asyncio.run(_keys(events)) / events * 1e6}


def _fast_round(decoder: Decoder, converter: Converter, records: list[Record]) -> float:
    """CPU seconds of decoding and converting all records in one go; each event is serialised, which is not counted."""
    reading, now, cpu = FusedReading(decoder, converter), time.time(), time.process_time
    begun, serialising = cpu(), 0.0
    for event in reading.read(records, now):
        if not isinstance(event, ConversionEvent):
            raise RuntimeError("the benchmark's events do not all convert")
        before = cpu()
        orjson.dumps(event.payload)
        serialising += cpu() - before
    return cpu() - begun - serialising


def _round(decoder: Decoder, converter: Converter, records: list[Record]) -> tuple[float, float, float]:
    """CPU seconds of each stage over all records, one slice after the other as the intake takes them."""
    now, cpu = time.time(), time.process_time
    decoding = converting = serialising = 0.0
    for at in range(0, len(records), _SLICE):
        begun = cpu()
        decoded: list[Any] = decoder.decode_chunk(records[at : at + _SLICE])
        decoded_at = cpu()
        converted = converter.convert_chunk(decoded, now)
        converted_at = cpu()
        for event in converted:
            if not isinstance(event, ConversionEvent):
                raise RuntimeError("the benchmark's events do not all convert")
            orjson.dumps(event.payload)
        decoding += decoded_at - begun
        converting += converted_at - decoded_at
        serialising += cpu() - converted_at
    return decoding, converting, serialising


async def _keys(events: int) -> float:
    """CPU seconds, of the writer's thread too, for asking whether keys are known and remembering them, a batch at a
    time."""
    with tempfile.TemporaryDirectory() as folder:
        store = LmdbKeyStore.open(folder, Window.of(_WINDOW_SECONDS), _STORE_BYTES)
        chunks = [
            [os.urandom(KEY_BYTES) for _ in range(min(_BATCH, events - at))]
            for at in range(0, events, _BATCH)
        ]
        begun = time.process_time()
        for keys in chunks:
            if any(await store.look_up(keys, time.time())):
                raise RuntimeError("a key is known before it was remembered")
            await store.remember(keys, time.time())
        taken = time.process_time() - begun
        await store.close()
    return taken
