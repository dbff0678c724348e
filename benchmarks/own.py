"""``make bench ARGS="--file F"``: what your own events cost, with your schema and mapping, beside the plain consumer.

The schema, the mapping and how records of the file are read are those of ``pinstream explain``: the same environment
variables. A file is mostly shorter than a run, so its records come again and again, each time under another event id:
else they would be duplicates. Records that are not deliverable are omitted, and counted. Events may have any age.

The plain consumer converts as the mapping says (`benchmarks.rivals.mapped`), with no rule of any field.
"""

from __future__ import annotations

import copy
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Final

from benchmarks.load import READ_AHEAD, add_values, create_topic
from benchmarks.running import Measured, run_full
from benchmarks.stages import measure_stages
from benchmarks.systems import Pinstream, Plain, System, TwoStepSystem
from consumer.adapters.files import Types, open_records
from consumer.app import building
from consumer.avro.decode import Decoder, OneSchema
from consumer.avro.encode import Encoder
from consumer.avro.paths import EACH, Source
from consumer.conversion.computed.expressions import Computed
from consumer.conversion.converter import Converter
from consumer.conversion.mapping import Mapping as EventMapping
from consumer.conversion.reading import CompiledReading
from consumer.conversion.rules import units_of
from consumer.conversion.targets import FILTER, TIME_UNITS
from consumer.engine.model import CommerceEvent, Filtered, Record, Rejection
from consumer.engine.reading import Columns, Keys
from consumer.settings import load

ACCOUNT: Final = "1"
_OF_THE_SCHEMA: Final = {
    "PINSTREAM_SCHEMAS_DIR": True,
    "PINSTREAM_SCHEMA": False,
    "PINSTREAM_MAPPING_FILE": True,
}
"""Settings that say how records are read, and whether each of them is a path."""
_ANY_AGE: Final = 1e12
_STAGE_EVENTS: Final = 20_000
_PARTITIONS: Final = 4
_NUMBER: Final = 7
"""Hex digits of a record's number, at the end of its event id."""

ReportStep = Callable[[str], None]


class NothingToMeasure(Exception):
    """No record of the file can be used; the text says why."""


@dataclass(frozen=True)
class Own:
    """Schema, mapping, and the deliverable events of a file."""

    schema: dict[str, Any]
    mapping: EventMapping
    events: list[CommerceEvent]
    omitted: int
    settings: dict[str, str]
    """What ``pinstream run`` needs to read the events the same way."""


@dataclass(frozen=True)
class OwnPlan:
    """What is measured."""

    events: int = 100_000
    warm_up: int = 20_000
    runs: int = 3


def own_steps(plan: OwnPlan) -> int:
    """How often `measure_own` reports a step."""
    return 2 + 3 * plan.runs


def read_own(file: str, environ: Mapping[str, str]) -> Own:
    """Read schema, mapping and file. Raises `NothingToMeasure`, and what settings, schema, mapping and file raise."""
    settings = load(dict(environ), needs=())
    mapped = building.sections(settings)
    if mapped.names:
        raise NothingToMeasure("the mapping has sections: measure one record type, with a mapping of its own")
    schema, mapping = mapped.all[0].schema, mapped.all[0].mapping
    records = [record for _, record in open_records(file, Types(OneSchema(schema)))]
    events = [record for record in records if not isinstance(record, Rejection | Filtered)]
    own = Own(schema, mapping, events, 0, _settings(environ))
    deliverable = [event for event, is_good in zip(events, _are_deliverable(own), strict=True) if is_good]
    if not deliverable:
        raise NothingToMeasure(
            f"{file}: none of {len(records)} records is deliverable; `pinstream explain` says why"
        )
    return Own(schema, mapping, deliverable, len(records) - len(deliverable), own.settings)


def values_of(own: Own, count: int) -> list[bytes]:
    """The values of `count` records: the events again and again, each time with a new id."""
    encoder = Encoder(own.schema)
    source = own.mapping.dedup_key or own.mapping.sources["event_id"]
    if isinstance(source, Computed):
        raise NothingToMeasure(f"ids that are computed ({source.path}) cannot be numbered: name a path")
    steps = source.steps
    numbered = enumerate(islice(cycle(own.events), count))
    return [encoder.encode(with_number(event, steps, number)) for number, event in numbered]


def with_number(event: CommerceEvent, steps: Sequence[str], number: int) -> CommerceEvent:
    """The event with another id: its last seven characters become the hex digits of `number`, so that a UUID
    stays one."""
    event = copy.deepcopy(event)
    *way, last = [step for step in steps if step != EACH]
    holder: Any = event
    for name in way:
        holder = holder[name]
    value = holder[last]
    if isinstance(value, int):
        holder[last] = number + 1
    elif len(value) > _NUMBER:
        holder[last] = f"{value[:-_NUMBER]}{number:0{_NUMBER}x}"
    else:
        holder[last] = f"{value}{number:0{_NUMBER}x}"
    return event


def measure_own(
    bootstrap: str, own: Own, plan: OwnPlan, scratch: Path, report: ReportStep, topic: str = "bench-own"
) -> dict[str, Any]:
    """The part ``own`` of the JSON document. Raises `RunFailed`."""
    report("filling the topic")
    values = values_of(own, plan.warm_up + plan.events + 2 * READ_AHEAD)
    create_topic(bootstrap, topic, _PARTITIONS)
    add_values(bootstrap, topic, values, _PARTITIONS)
    report("the stages of the core")
    stages = measure_stages(values[: min(_STAGE_EVENTS, plan.events)], own.schema, own.mapping, _ANY_AGE)
    systems = own_systems(own, scratch)
    runs: dict[str, list[Measured]] = {system.key: [] for system in systems}
    for number in range(plan.runs):
        for system in systems:
            report(f"run {number + 1} of {plan.runs}: {system.name}")
            runs[system.key].append(run_full(system, bootstrap, topic, plan.warm_up, plan.events))
    return {
        "event_bytes": round(statistics.mean(map(len, values[: len(own.events)]))),
        "events_in_file": len(own.events),
        "left_out": own.omitted,
        "plan": {"events": plan.events, "warm_up": plan.warm_up, "runs": plan.runs},
        "stages_cpu_us": {name: round(cost, 2) for name, cost in stages.items()},
        "systems": {system.key: _medians(system, runs[system.key]) for system in systems},
    }


def own_systems(own: Own, scratch: Path) -> tuple[System, ...]:
    """The systems that are measured; the files that they need are written into `scratch`."""
    schema, mapping = scratch / "schema.json", scratch / "mapping.json"
    schema.write_text(json.dumps(own.schema))
    mapping.write_text(json.dumps(plain_mapping(own.mapping)))
    ours = (Pinstream(settings=own.settings), TwoStepSystem(settings=own.settings))
    # The plain one picks and renames: it cannot be compared where values are computed.
    is_computed = any(isinstance(source, Computed) for source in own.mapping.sources.values())
    return ours if is_computed else (*ours, Plain(schema, mapping))


def plain_mapping(mapping: EventMapping) -> dict[str, Any]:
    """What `benchmarks.rivals.mapped` takes of a mapping."""
    items = mapping.item_steps
    contents = "custom_data.contents[]."
    fields = [
        (name, list(source.steps), mapping.target(name).hashed)
        for name, source in mapping.sources.items()
        if isinstance(source, Source)
    ]
    return {
        "fields": [field for field in fields if not field[0].startswith(contents)],
        "items": list(items),
        "item_fields": [
            (name.removeprefix(contents), path[len(items) :], False)
            for name, path, _ in fields
            if name.startswith(contents)
        ],
        "event_names": {name: sent for name, sent in mapping.event_names.items() if sent != FILTER},
        "action_sources": mapping.action_sources,
        "constants": mapping.constants,
        "units": units_of(mapping.sources["event_time"].kinds, TIME_UNITS[mapping.time_unit]),
    }


def _settings(environ: Mapping[str, str]) -> dict[str, str]:
    given = {
        name: os.path.abspath(environ[name]) if is_path else environ[name]
        for name, is_path in _OF_THE_SCHEMA.items()
        if environ.get(name)
    }
    return {**given, "PINSTREAM_MAX_EVENT_AGE": "0"}


def _are_deliverable(own: Own) -> Iterator[bool]:
    """Whether each event can be delivered."""
    converter = Converter(own.mapping, accounts=(ACCOUNT,), max_event_age=_ANY_AGE)
    reading = CompiledReading(Decoder(OneSchema(own.schema)), converter)
    values = values_of(own, len(own.events))
    for at, value in enumerate(values):
        columns = Columns(Keys())
        reading.read([Record(at, -1, None, value, ())], time.time(), columns)
        yield columns.is_event(0)


def _medians(system: System, runs: Sequence[Measured]) -> dict[str, Any]:
    def median(name: str) -> float:
        return float(statistics.median(getattr(run, name) for run in runs))

    return {
        "name": system.name,
        "cpu_us": round(median("cpu_us"), 2),
        "events_per_second": round(median("events_per_second")),
        "peak_mib": round(median("peak_mib"), 1),
        "sink_busy": round(median("sink_busy"), 2),
    }
