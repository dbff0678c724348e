"""The options of ``pinstream explain``."""

from __future__ import annotations

import io
import os
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import click

from consumer.commands.base import DebugCommand, flag_option, parse_time
from consumer.commands.parsing import AGAINST_OPTION, JSON_OPTION, RECORD_OPTION, parsed_option
from consumer.errors import PinstreamError, UsageError


@click.command(cls=DebugCommand)
@click.argument("file", type=click.Path(allow_dash=True))
@parsed_option(
    "--now",
    parse_time,
    metavar="TIME",
    help="Current time for computing event ages (ISO 8601). Default: now.",
)
@click.option(
    "--expect",
    "expected",
    metavar="EXPECTED",
    help="Compare with the lines of the file EXPECTED, which explain printed before, and print each difference. Exit "
    "code 1 if there is one.",
)
@flag_option("--summary", help="Count outcomes, codes and coverage instead of printing records.")
@flag_option("--rules", help="Say for each field where it comes from and what was done with it.")
@AGAINST_OPTION
@flag_option(
    "--watch",
    help="Explain FILE again after each save of mapping, schema, function or FILE, and say what changed, until Ctrl-C.",
)
@flag_option("--strict", help="Exit code 1 if a record was rejected.")
@RECORD_OPTION
@click.option("--topic", metavar="T", help="Topic of the records, where the mapping has a section for it.")
@JSON_OPTION
def explain(
    file: str,
    now: int | None,
    expected: str | None,
    summary: bool,
    rules: bool,
    against: str | None,
    watch: bool,
    strict: bool,
    record: str | None,
    topic: str | None,
    as_json: bool,
) -> None:
    """Show the outcome of each record of FILE (NDJSON or an Avro container; - is standard input), and why.

    Prints one JSON line per record: outcome, payload, error, warnings; on a terminal, text for people. It uses no
    network and needs no KAFKA_… or PINTEREST_… setting. Exit code 0 whatever the outcomes, 1 if FILE cannot be read to
    its end. With --against: 0 if nothing changes, 1 if something does, or no event was compared.
    """
    modes = ("--expect", expected), ("--summary", summary), ("--rules", rules), ("--against", against)
    given = [option for option, value in (*modes, ("--watch", watch)) if value not in (None, False)]
    _refuse(file, given, expected, as_json)
    # Imported here, because that takes a third of a second, and help does not need it.
    from consumer.commands.comparison import agrees, of_old, show_comparison
    from consumer.commands.explain.expecting import compare
    from consumer.commands.explain.explaining import compared, explanations
    from consumer.commands.explain.showing import Summary, print_lines
    from consumer.commands.explain.watching import show_saves
    from consumer.commands.results import print_result
    from consumer.settings import load

    at = None if now is None else now / 1000
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A terminal of another encoding than UTF-8 shows the rest escaped.
        sys.stdout.reconfigure(errors="backslashreplace")
    explain_by = partial(explanations, file, with_rules=rules, record=record, topic=topic)
    settings, total, agree = load(os.environ, needs=()), Summary(), True
    if watch:
        show_saves(file, settings, partial(explain_by, at, settings))
        return
    if against is not None and at is None:
        at = time.time()  # one time for both
    lines = total.count(explain_by(at, settings))
    if against is not None:
        with of_old(settings, against) as of:
            found = compared(explain_by(at, of), lines)
        document = found.document()
        print_result(show_comparison, document, as_json=as_json)
        agree = agrees(document)
    elif expected is not None:
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


def _refuse(file: str, given: Sequence[str], expected: str | None, as_json: bool) -> None:
    """Raise `UsageError` for options that contradict each other, or FILE."""
    if len(given) > 1:
        raise UsageError(f"{' and '.join(given)} print different things: give one of them")
    # Both would be read from the same stream.
    if expected == "-":
        raise UsageError("--expect takes the path of a file; only FILE may be standard input")
    if as_json and given != ["--against"]:
        raise UsageError("--json goes with --against; else explain prints JSON where stdout is no terminal")
    # A pipe can be read once.
    if {"--against", "--watch"}.intersection(given) and (file == "-" or Path(file).is_fifo()):
        raise UsageError(f"{given[0]} reads FILE more than once: save the records to a file, and name that")
