"""What each stage of reading costs: CPU microseconds per event, in slices as the intake takes them.

The collector is tuned as in the service, or its walks over this module's records would be most of what is measured.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.load import SCHEMA, encoded_checkouts
from consumer.adapters.key_store.disk_store import DiskKeyStore
from consumer.adapters.key_store.interface import Window
from consumer.app.run import tune_memory
from consumer.avro.decode import Decoder, OneSchema
from consumer.conversion.converter import Converter
from consumer.conversion.mapping import Mapping
from consumer.conversion.program import COMPILED
from consumer.conversion.reading import CompiledReading
from consumer.engine.model import ConversionEvent, Record
from consumer.engine.reading import KEY_BYTES, Columns, Keys
from tests.support.mapping import load_mapping

_SLICE = 128
_ROUNDS = 3
_BATCH = 1000
_WINDOW_SECONDS = 48 * 3600
_STORE_BYTES = 1 << 30
_COMPILED = "fast path, compiled: record to JSON and key"
_KEYS = "look up and remember its key, in an empty store"
_TWO_STEPS = ("two steps: decode", "two steps: convert", "two steps: serialise, key")


def benchmark_stages(events: int, event_bytes: int, seed: int) -> dict[str, float]:
    """`measure_stages` with the benchmark's own events."""
    schema = json.loads(SCHEMA.read_text())
    default = Path(SCHEMA).with_name("commerce_event.mapping.toml").read_text()
    values = encoded_checkouts(events, event_bytes, seed)
    return measure_stages(values, schema, load_mapping(None, schema, default_toml=default))


def measure_stages(
    values: Sequence[bytes], schema: dict[str, Any], mapping: Mapping, max_event_age: float = 604800.0
) -> dict[str, float]:
    """By stage, of the records with these values. Each round begins with cold caches; the best round counts, since what
    is slower than the best is the machine's noise."""
    records = [Record(n, -1, None, value, ()) for n, value in enumerate(values)]
    events = len(records)

    def parts() -> tuple[Decoder, Converter]:
        converter = Converter(mapping, accounts=("1",), max_event_age=max_event_age)
        return Decoder(OneSchema(schema)), converter

    with _collector_of_the_service():
        costs = dict(zip(_TWO_STEPS, _best(lambda: _round(*parts(), records)), strict=True))
        if COMPILED is not None:
            costs = {_COMPILED: _best(lambda: _fast_round(CompiledReading(*parts()), records)), **costs}
        costs[_KEYS] = _best(lambda: asyncio.run(_keys(events)))
    return {name: cost / events * 1e6 for name, cost in costs.items()}


def _best(measure: Callable[[], Any]) -> Any:
    rounds = [measure() for _ in range(_ROUNDS)]
    return min(rounds, key=sum) if isinstance(rounds[0], tuple) else min(rounds)


@contextmanager
def _collector_of_the_service() -> Iterator[None]:
    thresholds = gc.get_threshold()
    tune_memory()
    yield
    gc.set_threshold(*thresholds)
    gc.unfreeze()


def _fast_round(reading: CompiledReading, records: list[Record]) -> float:
    """CPU seconds from the records to the bodies that are sent."""
    now, begun = time.time(), time.process_time()
    for at in range(0, len(records), _SLICE):
        columns = Columns(Keys())
        reading.read(records[at : at + _SLICE], now, columns)
        if columns.verdicts:
            raise RuntimeError("the benchmark's events do not all convert")
    return time.process_time() - begun


def _round(decoder: Decoder, converter: Converter, records: list[Record]) -> tuple[float, float, float]:
    """CPU seconds of each of the two steps and of what follows them; one slice after another, as the intake
    takes them."""
    now, cpu = time.time(), time.process_time
    decoding = converting = serialising = 0.0
    for at in range(0, len(records), _SLICE):
        begun = cpu()
        decoded: list[Any] = [decoder.decode(record) for record in records[at : at + _SLICE]]
        decoded_at = cpu()
        converted = [converter.convert(event, now) for event in decoded]
        converted_at = cpu()
        columns = Columns(Keys())
        for event in converted:
            if not isinstance(event, ConversionEvent):
                raise RuntimeError("the benchmark's events do not all convert")
            columns.add_converted(event)
        decoding += decoded_at - begun
        converting += converted_at - decoded_at
        serialising += cpu() - converted_at
    return decoding, converting, serialising


async def _keys(events: int) -> float:
    """CPU seconds, with those of the writer's thread, of look-ups and writes of keys, one batch at a time."""
    with tempfile.TemporaryDirectory() as folder:
        store = DiskKeyStore(folder, Window.of(_WINDOW_SECONDS), _STORE_BYTES)
        chunks = [os.urandom(KEY_BYTES * min(_BATCH, events - at)) for at in range(0, events, _BATCH)]
        begun = time.process_time()
        for keys in chunks:
            if any(await store.look_up(keys, time.time())):
                raise RuntimeError("a key is known before it was remembered")
            await store.confirm(keys, time.time())
        taken = time.process_time() - begun
        await store.close()
    return taken
