"""What a mapping makes of the records of a file, the line of each, and what changes from one mapping to another."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple

import orjson

from consumer.adapters.files import FileRecord, file_types, open_records
from consumer.app import building
from consumer.commands.comparison import Comparison, outcomes_in
from consumer.commands.payload import Nets, nets_of
from consumer.conversion.rule_trace import RuleTrace
from consumer.conversion.sections import Sections
from consumer.engine.model import (
    CommerceEvent,
    ConversionEvent,
    Converted,
    Filtered,
    Rejection,
    Untimely,
    section_of,
)
from consumer.engine.reading import NOT_UNICODE, Columns, Keys
from consumer.settings import Settings


class Explained(NamedTuple):
    """A record of a file: its name, its line, what was read of it by `mapped`, and what became of that."""

    name: str
    line: dict[str, Any]
    event: CommerceEvent | Rejection | Filtered
    mapped: Sections
    result: Converted


def explanations(
    file: str,
    now: float | None,
    settings: Settings,
    *,
    with_rules: bool = False,
    record: str | None = None,
    topic: str | None = None,
) -> Iterator[Explained]:
    """Yield each record of `file` (docs/run.md, `pinstream explain`).

    `now` is in unix seconds, `record` is the type of all lines, `topic` their topic. With `with_rules`, each line also
    has ``rules`` (`RuleTrace`). Raises `InputError`, at once or while iterating, if `file` cannot be read to its end.
    """
    mapped = building.sections(settings)
    # Without PINTEREST_AD_ACCOUNT_ID a record may name any account: `explain` needs no setting.
    accounts = settings.pinterest.ad_account_ids if settings.pinterest.ad_account_id else ()
    converter = building.converter(settings, mapped, accounts)
    # Output of the user's function goes to stderr: stdout is for the lines of the records.
    with contextlib.redirect_stdout(sys.stderr):
        transformer = building.transformer(settings, mapped)
    # As the service reads records, so that explain says of a record what the service does with it.
    decoder = building.decoder(mapped, transformer)
    types = file_types(mapped, record, topic)._replace(decoder=decoder)
    # Only on request: a trace calls each rule through Python.
    traces = [RuleTrace(converter, number) for number, _ in enumerate(mapped.all, 1)] if with_rules else []

    def explained(place: int, record: FileRecord) -> Explained:
        at, event, section = time.time() if now is None else now, record.event, 0
        # A record that is rejected or filtered while it is read has no section.
        if isinstance(event, dict):
            section = section_of(event)
            if transformer is not None:
                with contextlib.redirect_stdout(sys.stderr):
                    event = transformer.apply(event)
        result = converter.convert(event, at) if isinstance(event, dict) else event
        line = explanation(result)
        if with_rules:
            line["rules"] = traces[section - 1].rules(event, at) if isinstance(event, dict) else []
        # Files without sections keep the lines that they had: people compare them (`--expect`).
        if mapped.names:
            line["section"] = mapped.names[section - 1] if section else None
        # Name the line number too, since empty lines may stand between records.
        name = f"record {place}" + ("" if place == record.ordinal else f" (line {record.ordinal})")
        return Explained(name, line, event, mapped, result)

    return map(explained, count(1), open_records(file, types))


def explanation(result: Converted) -> dict[str, Any]:
    """Return the line of a record that became this."""
    if isinstance(result, Untimely):
        result = result.verdict
    if isinstance(result, ConversionEvent):
        warnings = [warning._asdict() for warning in result.warnings]
        try:
            # Show the payload as it would be sent: serialised, and read back.
            payload = orjson.loads(orjson.dumps(result.payload))
        except orjson.JSONEncodeError:
            result = NOT_UNICODE
        else:
            return {"outcome": "deliverable", "payload": payload, "error": None, "warnings": warnings}
    if isinstance(result, Filtered):
        return {"outcome": "filtered", "payload": None, "error": None, "warnings": [], "filter": result.code}
    error = {"stage": result.stage.value, "code": result.code, "message": result.message}
    return {"outcome": "rejected", "payload": None, "error": error, "warnings": []}


def compared(before: Iterable[Explained], after: Iterable[Explained]) -> Comparison:
    """Return what changes from one to the other, which are of the same records as far as both go."""
    comparison = Comparison()
    for was, now in zip(before, after, strict=False):

        def show(was: Explained = was, now: Explained = now) -> tuple[str, Nets]:
            return now.name, nets_of(was.event, was.mapped, now.event, now.mapped)

        both = Columns(Keys())
        for one in (was.result, now.result):
            if isinstance(one, ConversionEvent):
                both.add_converted(one)
            else:
                both.add(one)
        old, new = outcomes_in(both)
        comparison.add(old, new, show)
    return comparison
