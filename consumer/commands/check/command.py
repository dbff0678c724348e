"""``pinstream check``, from the environment to the table and the exit code."""

from __future__ import annotations

import asyncio
import os
import sys
from collections import Counter
from collections.abc import Sequence

import click
from rich import box
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from consumer.app import building
from consumer.app.telemetry import environment
from consumer.commands.base import SettingsCommand
from consumer.commands.check import api, kafka, local, rights, writers
from consumer.commands.check.rows import CheckRow, Found, Question, Skip, Verdict, counted
from consumer.errors import PinstreamError
from consumer.settings import Settings, load

_STYLES = {
    Verdict.OK: "green",
    Verdict.WARNING: "yellow",
    Verdict.FAILED: "bold red",
    Verdict.SKIPPED: "dim",
}
_FORMS = {"kafka-acls": rights.commands, "strimzi": rights.strimzi, "iam": rights.iam}
# In this order, because later questions use what earlier ones have found.
_QUESTIONS: Sequence[tuple[str, Question]] = (
    ("schema", local.schema),
    ("mapping", local.check_mapping),
    ("state folder", local.state_folder),
    ("key store", local.key_store),
    ("page address", local.page),
    ("brokers and topics", kafka.cluster),
    ("consumer group", kafka.check_group),
    ("dead-letter topics", kafka.check_dead_letters),
    ("schema registry", kafka.registry),
    ("access token", local.check_token),
)


@click.command(cls=SettingsCommand)
@click.option(
    "--send-test-event",
    is_flag=True,
    help="Also send events in the API's test mode. To see them in Pinterest's Events Manager, open its test view "
    "first: it has no history.",
)
@click.option("--workers", metavar="N", help="Check the settings for N workers, as in `pinstream run`.")
@click.option(
    "--rights",
    "form",
    type=click.Choice(list(_FORMS)),
    help="Check nothing: print the least rights that these settings need of Kafka, as commands of kafka-acls.sh, as "
    "a KafkaUser of Strimzi, or as an IAM policy for Amazon MSK.",
)
def check(send_test_event: bool, workers: str | None, form: str | None) -> None:
    """Check whether this configuration is fit to run.

    Prints a table of the checks. Exit code 0: fit to run; 1: not fit."""
    # Rights follow from the settings alone, so no broker is needed: whoever grants them may have no access.
    if form is not None:
        click.echo(_FORMS[form](load(os.environ)), nl=False)
        return
    try:
        settings = load(os.environ)
    except PinstreamError as error:
        rows = [CheckRow("settings", Verdict.FAILED, str(error))]
    else:
        rows = asyncio.run(_ask_all(settings, send_test_event, workers))
    _print(rows)
    # Without an error line: the table says what is wrong.
    sys.exit(1 if any(row.verdict is Verdict.FAILED for row in rows) else 0)


async def _ask_all(settings: Settings, send_test_event: bool, workers: str | None) -> list[CheckRow]:
    found = Found(settings, workers=workers, sends=send_test_event)
    # The settings were loaded, or there would be no questions.
    rows = [CheckRow("settings", Verdict.OK, "every variable is known and valid")]
    rows += [CheckRow("settings", Verdict.WARNING, text) for text in settings.warnings]
    if workers is not None:
        rows += await _ask("workers", local.workers, found)
    if settings.pinstream.transform is not None:
        rows += await _ask("transform", local.check_transform, found)
    # All of them, even if one has a bad answer: one run shows everything that needs a change.
    for what, question in _QUESTIONS:
        rows += await _ask(what, question, found)
    if settings.registry.url and not settings.registry.is_glue:  # Glue names no schema by a topic
        about = "writers' schemas"
        told = "".join(row.text for row in rows if row.what == "schema registry")
        # A registry that does not answer is the row of the registry, once.
        for row in await _ask(about, writers.writers, found):
            again = row.verdict is Verdict.SKIPPED and row.text in told
            rows.append(CheckRow(about, Verdict.SKIPPED, "needs the schema registry") if again else row)
    if any(environment.outlook(os.environ)):
        rows += await _ask("OpenTelemetry", local.telemetry, found)
    # Only if the settings name a proxy or authorities can they be wrong about the way.
    if building.network(settings).proxy(settings.pinterest.api_url) is not None or settings.pinstream.ca_file:
        rows += await _ask("way to Pinterest", api.way, found)
    if send_test_event:
        rows += [CheckRow("test view", Verdict.OK, api.TEST_VIEW), *await api.test_events(found)]
    return rows


async def _ask(what: str, question: Question, found: Found) -> list[CheckRow]:
    try:
        said = await question(found)
    except Skip as skip:
        return [CheckRow(what, Verdict.SKIPPED, str(skip))]
    except PinstreamError as error:
        return [CheckRow(what, Verdict.FAILED, str(error))]
    return [
        *(CheckRow(what, Verdict.OK, text) for text in (said.text, *said.details)),
        *(CheckRow(what, Verdict.WARNING, text) for text in said.warnings),
    ]


def _print(rows: Sequence[CheckRow]) -> None:
    columns = (Column("what", no_wrap=True), Column("verdict", no_wrap=True))
    found = Column("found, and what to do", overflow="fold")
    # No lines between columns: people copy commands and names of settings out of a row.
    table = Table(*columns, found, box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    before = ""
    for row in rows:
        # Name a question once, however many rows answer it.
        style = _STYLES[row.verdict]
        # `Text`, not markup: the text may contain brackets.
        table.add_row("" if row.what == before else row.what, Text(row.verdict.value, style), Text(row.text))
        before = row.what
    verdicts = Counter(row.verdict for row in rows)
    failed, warned = verdicts[Verdict.FAILED], verdicts[Verdict.WARNING]
    result = f"Not fit to run: {failed} failed" if failed else "Fit to run"
    rest = f", {counted(warned, 'warning')}" if warned else ""
    worst = Verdict.FAILED if failed else Verdict.WARNING if warned else Verdict.OK
    Console().print(table, Text(f"{result}{rest}.", _STYLES[worst]), sep="\n\n")
