"""What each stage of the core costs: CPU microseconds per event, in slices as the intake takes them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from benchmarks.consumers import SCHEMA
from benchmarks.load import encoded_checkouts
from consumer.core.convert import Converter
from consumer.core.decode import Decoder
from consumer.core.mapping import load_mapping
from consumer.core.model import ConversionEvent, Record

_CHUNK = 64
_ROUNDS = 3


def measure_stages(events: int, seed: int) -> dict[str, float]:
    """By stage: decode, convert (without and with repeated shoppers' hashes cached), serialise."""
    schema = json.loads(SCHEMA.read_text())
    default = Path(SCHEMA).with_name("commerce_event.mapping.toml").read_text()
    values = encoded_checkouts(events, seed)
    chunks = [
        [Record(at + n, -1, None, value, ()) for n, value in enumerate(values[at : at + _CHUNK])]
        for at in range(0, len(values), _CHUNK)
    ]
    decoder = Decoder(schema)
    mapping = load_mapping(None, schema, default_toml=default)

    def new_converter() -> Converter:
        return Converter(mapping, schema, accounts=("1",), partner_name=None, max_event_age=604800.0)

    decoded: list[list[Any]] = [decoder.decode_chunk(chunk) for chunk in chunks]
    now = time.time()
    converted = [new_converter().convert_chunk(chunk, now) for chunk in decoded]
    payloads = [event.payload for chunk in converted for event in chunk if isinstance(event, ConversionEvent)]
    if len(payloads) != len(values):
        raise RuntimeError("the benchmark's events do not all convert")
    converter = new_converter()
    return {
        "decode": _cpu(lambda: [decoder.decode_chunk(chunk) for chunk in chunks], len(values)),
        "convert": _cpu(
            lambda: [converter.convert_chunk(chunk, now) for chunk in decoded], len(values), rounds=1
        ),
        "serialise": _cpu(lambda: [orjson.dumps(payload) for payload in payloads], len(values)),
    }


def _cpu(work: Callable[[], object], events: int, rounds: int = _ROUNDS) -> float:
    """The best of some rounds: what is slower than the best is the machine's noise."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.process_time()
        work()
        best = min(best, time.process_time() - begun)
    return best / events * 1e6
