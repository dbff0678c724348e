"""The guard on what sections cost to read and convert: nothing for one record type, and little where types mix.

Ratios of CPU time by event, all measured in turns in one process, the best round of each (`test_ratio`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import pytest

from benchmarks.load import SCHEMA, encoded_checkouts
from consumer.avro.decode import Decoder, OneSchema, framing_of
from consumer.avro.schema import fingerprint, parse
from consumer.conversion.converter import Converter
from consumer.conversion.mapping import Mapping
from consumer.conversion.program import COMPILED
from consumer.conversion.reading import CompiledReading
from consumer.conversion.sections import load_sections
from consumer.engine.model import Record, SchemaRef
from consumer.engine.reading import Columns, Keys
from tests.support.mapping import load_mapping

EVENTS, SLICE = 3_000, 128
OURS: Final[dict[str, Any]] = json.loads(SCHEMA.read_text())
DEFAULT: Final = SCHEMA.with_name("commerce_event.mapping.toml").read_text()
# The same record under three names, so that only the mixing differs.
TYPES: Final = {f"x.T{number}": {**OURS, "namespace": "x", "name": f"T{number}"} for number in range(3)}

BOUNDS: Final = {"one section": 1.3, "three types, 20 after each other": 1.5, "three types, one by one": 4.0}
"""Times what a mapping without sections takes. Measured: 1.0, 1.1 and 2.3."""
_LEAST_ROUNDS, _MAX_ROUNDS = 3, 12


class _Schemas:
    """The schemas of all four types."""

    def reader(self, name: str) -> dict[str, Any]:
        """See `ReaderSchemas`."""
        return TYPES.get(name, OURS)

    record = reader


def _converter(*mappings: Mapping) -> Converter:
    return Converter(*mappings, accounts=("1",), max_event_age=604_800.0)


def _plain() -> CompiledReading:
    return CompiledReading(
        Decoder(OneSchema(OURS)), _converter(load_mapping(None, OURS, default_toml=DEFAULT))
    )


def _of_sections(*names: str) -> CompiledReading:
    toml = "".join(f'[record."{name}"]\n' for name in names)
    sections = load_sections(toml, _Schemas(), default_toml=DEFAULT, schema_name="")
    return CompiledReading(
        Decoder(sections), _converter(*(one.mapping for one in sections.all)), divided=True
    )


def _mixed(values: list[bytes], run: int) -> list[Record]:
    """The records in turns, `run` of each type after each other."""
    framings = [framing_of(SchemaRef("fingerprint", fingerprint(parse(schema)))) for schema in TYPES.values()]
    return [
        Record(number, -1, None, framings[number // run % 3] + value[10:], ())
        for number, value in enumerate(values)
    ]


def _seconds(reading: CompiledReading, records: list[Record]) -> float:
    """CPU seconds to read all of them once their schemas are known."""
    for measured in (records[: 2 * SLICE], records):
        now, begun = time.time(), time.process_time()
        for at in range(0, len(measured), SLICE):
            columns = Columns(Keys())
            reading.read(measured[at : at + SLICE], now, columns, "orders")
            assert not columns.verdicts
    assert not reading.in_two_steps
    return time.process_time() - begun


@pytest.mark.skipif(COMPILED is None, reason="built without a C compiler")
def test_sections_cost_nothing_for_one_type_and_little_for_three() -> None:
    """Rounds are added while a ratio is above its bound: noise only ever adds."""
    values = encoded_checkouts(EVENTS, 1_500, seed=1)
    records = [Record(number, -1, None, value, ()) for number, value in enumerate(values)]
    cases: dict[str, tuple[Callable[[], CompiledReading], list[Record]]] = {
        "none": (_plain, records),
        "one section": (lambda: _of_sections("commerce.v1.CommerceEvent"), records),
        "three types, 20 after each other": (lambda: _of_sections(*TYPES), _mixed(values, 20)),
        "three types, one by one": (lambda: _of_sections(*TYPES), _mixed(values, 1)),
    }
    best = dict.fromkeys(cases, float("inf"))
    for round_ in count(1):
        for name, (make, of_case) in cases.items():
            best[name] = min(best[name], _seconds(make(), of_case))
        ratios = {name: best[name] / best["none"] for name in BOUNDS}
        good = all(ratios[name] <= bound for name, bound in BOUNDS.items())
        if round_ >= (_LEAST_ROUNDS if good else _MAX_ROUNDS):
            break
    print(f"CPU time by event, beside a mapping without sections: {ratios}")
    assert good, ratios
