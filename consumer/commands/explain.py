"""``pinstream explain``: what becomes of each record of a file, and why; no network, no state."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

import click
import orjson

from consumer.adapters.files import open_records
from consumer.app import building
from consumer.commands.base import Command, parse_time
from consumer.conversion.converter import Converter
from consumer.engine.model import CommerceEvent, ConversionEvent, Filtered, Rejection
from consumer.settings import load


@click.command(cls=Command)
@click.argument("file")
@click.option("--now", metavar="TIME", help="Current time for computing event ages (ISO 8601). Default: now.")
def explain(file: str, now: str | None) -> None:
    """Show the outcome of each record of FILE (NDJSON or an Avro container; - is standard input), and why.

    Prints one JSON line per record: outcome, payload, error, warnings. It uses no network and needs no KAFKA_… or
    PINTEREST_… setting. Exit code 0 for any outcomes, 1 if FILE cannot be read to its end.
    """
    explain_file(file, None if now is None else parse_time(now, "--now") / 1000, os.environ)


def explain_file(file: str, now: float | None, environ: Mapping[str, str]) -> None:
    """Print one JSON line for each record of `file`; raises `InputError` if it cannot be read to its end."""
    settings = load(environ, needs=())
    schema = building.reader_schema(settings, building.local_schemas(settings))
    accounts = settings.pinterest.ad_account_ids if settings.pinterest.ad_account_id else ()
    converter = building.converter(settings, schema, accounts)
    out = sys.stdout.buffer
    for _, record in open_records(file, schema):
        line = explanation(record, converter, time.time() if now is None else now)
        # ASCII: whatever reads it, a line ends nowhere but at its end.
        out.write(json.dumps(line, separators=(",", ":")).encode() + b"\n")
    out.flush()


def explanation(record: CommerceEvent | Rejection, converter: Converter, now: float) -> dict[str, Any]:
    """The line of one record (docs/run.md, `pinstream explain`)."""
    result = record if isinstance(record, Rejection) else converter.convert(record, now)
    if isinstance(result, ConversionEvent):
        try:
            # What is shown is what would be sent: serialised and read back.
            payload = orjson.loads(orjson.dumps(result.payload))
        except orjson.JSONEncodeError:
            return _rejected("convert", "unserialisable", "the event holds text that is not Unicode")
        warnings = [warning._asdict() for warning in result.warnings]
        return {"outcome": "deliverable", "payload": payload, "error": None, "warnings": warnings}
    if isinstance(result, Filtered):
        return {"outcome": "filtered", "payload": None, "error": None, "warnings": [], "filter": result.code}
    return _rejected(result.stage.value, result.code, result.message)


def _rejected(stage: str, code: str, message: str) -> dict[str, Any]:
    error = {"stage": stage, "code": code, "message": message}
    return {"outcome": "rejected", "payload": None, "error": error, "warnings": []}
