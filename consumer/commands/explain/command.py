"""The options of ``pinstream explain``, and the line of each record."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import time
from collections.abc import Iterator, Mapping
from itertools import count
from typing import Any

import click
import orjson

from consumer.adapters.files import FileRecord, file_types, open_records
from consumer.app import building
from consumer.commands.base import DebugCommand, flag_option, parse_time
from consumer.commands.explain.expecting import compare
from consumer.commands.explain.showing import Summary, print_lines
from consumer.commands.parsing import RECORD_OPTION
from consumer.conversion.converter import Converter
from consumer.conversion.rule_trace import RuleTrace
from consumer.engine.model import CommerceEvent, ConversionEvent, Filtered, Rejection, section_of
from consumer.engine.reading import NOT_UNICODE
from consumer.errors import PinstreamError, UsageError
from consumer.settings import load


@click.command(cls=DebugCommand)
@click.argument("file")
@click.option("--now", metavar="TIME", help="Current time for computing event ages (ISO 8601). Default: now.")
@click.option(
    "--expect",
    "expected",
    metavar="EXPECTED",
    help="Compare with the lines of the file EXPECTED, which explain printed before, and print each difference. Exit "
    "code 1 if there is one.",
)
@flag_option("--summary", help="Count outcomes, codes and coverage instead of printing records.")
@flag_option("--rules", help="Say for each field where it comes from and what was done with it.")
@flag_option("--strict", help="Exit code 1 if a record was rejected.")
@RECORD_OPTION
@click.option("--topic", metavar="T", help="Topic of the records, where the mapping has a section for it.")
def explain(
    file: str,
    now: str | None,
    expected: str | None,
    summary: bool,
    rules: bool,
    strict: bool,
    record: str | None,
    topic: str | None,
) -> None:
    """Show the outcome of each record of FILE (NDJSON or an Avro container; - is standard input), and why.

    Prints one JSON line per record: outcome, payload, error, warnings; on a terminal, text for people. It uses no
    network and needs no KAFKA_… or PINTEREST_… setting. Exit code 0 whatever the outcomes, 1 if FILE cannot be read to
    its end.
    """
    options = {"--expect": expected is not None, "--summary": summary, "--rules": rules}
    given = [option for option, is_given in options.items() if is_given]
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} print different things: give one of them")
    # Both would be read from the same stream.
    if expected == "-":
        raise UsageError("--expect takes the path of a file; only FILE may be standard input")
    at = None if now is None else parse_time(now, "--now") / 1000
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal of another encoding than UTF-8 shows the rest escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    total, agree = Summary(), True
    lines = total.count(explanations(file, at, os.environ, with_rules=rules, record=record, topic=topic))
    if expected is not None:
        agree = compare(lines, expected, clock_given=now is not None)
    elif summary:
        for _ in lines:  # counts the lines that pass
            pass
        total.print()
    else:
        print_lines(lines)
    rejected = total.outcomes["rejected"]
    if strict and rejected:
        raise PinstreamError(
            f"{rejected} of {total.outcomes.total()} records of {file} were rejected (--strict)"
        )
    # No error line: the differences show what is wrong.
    if not agree:
        sys.exit(1)


def explanations(
    file: str,
    now: float | None,
    environ: Mapping[str, str],
    *,
    with_rules: bool = False,
    record: str | None = None,
    topic: str | None = None,
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield a name and the line of each record of `file` (docs/run.md, `pinstream explain`).

    `now` is in unix seconds, `record` is the type of all lines, `topic` their topic. With `with_rules`, each line also
    has ``rules`` (`RuleTrace`). Raises `InputError`, at once or while iterating, if `file` cannot be read to its end.
    """
    settings = load(environ, needs=())
    mapped = building.sections(settings)
    # Without PINTEREST_AD_ACCOUNT_ID a record may name any account: `explain` needs no setting.
    accounts = settings.pinterest.ad_account_ids if settings.pinterest.ad_account_id else ()
    converter = building.converter(settings, mapped, accounts)
    # Output of the user's function goes to stderr: stdout is for the lines of the records.
    with contextlib.redirect_stdout(sys.stderr):
        transformer = building.transformer(settings, mapped)
    # As the service reads records, so that explain says of a record what the service does with it.
    decoder = building.decoder(settings, mapped, transformer)
    types = file_types(mapped, record, topic)._replace(decoder=decoder)
    # Only on request: a trace calls each rule through Python.
    traces = [RuleTrace(converter, number) for number, _ in enumerate(mapped.all, 1)] if with_rules else []

    def explained(place: int, record: FileRecord) -> tuple[str, dict[str, Any]]:
        at, event, section = time.time() if now is None else now, record.event, 0
        # A record that is rejected or filtered while it is read has no section.
        if not isinstance(event, Rejection | Filtered):
            section = section_of(event)
            if transformer is not None:
                with contextlib.redirect_stdout(sys.stderr):
                    event = transformer.apply(event)
        line = explanation(event, converter, at)
        if with_rules:
            line["rules"] = []
            if not isinstance(event, Rejection | Filtered):
                line["rules"] = traces[section - 1].rules(event, at)
        # Files without sections keep the lines that they had: people compare them (`--expect`).
        if mapped.names:
            line["section"] = mapped.names[section - 1] if section else None
        # Name the line number too, since empty lines may stand between records.
        return f"record {place}" + ("" if place == record.ordinal else f" (line {record.ordinal})"), line

    return map(explained, count(1), open_records(file, types))


def explanation(
    record: CommerceEvent | Rejection | Filtered, converter: Converter, now: float
) -> dict[str, Any]:
    """Return the line of one record."""
    result = record if isinstance(record, Rejection | Filtered) else converter.convert(record, now)
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
