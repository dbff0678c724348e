"""``pinstream check``, from the environment to the table and the exit code."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from consumer.commands.base import SettingsCommand
from consumer.errors import PinstreamError

if TYPE_CHECKING:  # they take a third of a second to import, and help does not need them
    from consumer.commands.check.rows import CheckContext, Question, Row

# The name of a question, and its answers.
CheckAnswers = list[tuple[str, "Sequence[Row]"]]
_FORMS = ("kafka-acls", "strimzi", "iam")


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
    type=click.Choice(_FORMS),
    help="Check nothing: print the least rights that these settings need of Kafka, as commands of kafka-acls.sh, as "
    "a KafkaUser of Strimzi, or as an IAM policy for Amazon MSK.",
)
def check(send_test_event: bool, workers: str | None, form: str | None) -> None:
    """Check whether this configuration is fit to run.

    Prints a table of the checks. Exit code 0: fit to run; 1: not fit."""
    # Imported here, as all that a question needs: help does not need it.
    from consumer.adapters.thread import run_on_loop
    from consumer.commands.check import rights
    from consumer.commands.check.rows import CheckContext, Severity, failed
    from consumer.settings import load

    # Rights follow from the settings alone, so no broker is needed: the person who grants them may have no access.
    if form is not None:
        of_form = dict(zip(_FORMS, (rights.commands, rights.strimzi, rights.iam), strict=True))
        click.echo(of_form[form](load(os.environ)), nl=False)
        return
    try:
        asked = run_on_loop(ask_all(CheckContext(load(os.environ), workers, send_test_event)))
    except PinstreamError as error:  # of the settings: that of a question is its answer
        asked = [("settings", [failed(str(error))])]
    _print(asked)
    # No error line: the table shows what is wrong.
    sys.exit(1 if any(verdict is Severity.FAILED for _, answers in asked for verdict, _ in answers) else 0)


async def ask_all(
    found: CheckContext, questions: Sequence[tuple[str, Question]] | None = None
) -> CheckAnswers:
    """Ask all questions, even if one has a bad answer: one run shows everything that needs a change."""
    from consumer.commands.check.rows import Row, Severity, Skip, failed

    asked: CheckAnswers = []
    for what, question in _all_questions() if questions is None else questions:
        try:
            answers = await question(found)
        except Skip as skip:
            answers = [Row(Severity.SKIPPED, str(skip))]
        except PinstreamError as error:
            answers = [failed(str(error))]
        asked.append((what, answers))
    return asked


def _all_questions() -> Sequence[tuple[str, Question]]:
    """Return them in this order, because later ones use what earlier ones have found."""
    from consumer.commands.check import api, kafka, local, reads, registry

    return (
        ("settings", local.settings),
        ("workers", local.workers),
        ("transform", local.transform),
        ("schema", local.schema),
        ("mapping", local.mapping),
        ("state folder", local.state_folder),
        ("key store", local.key_store),
        ("certificates", local.certificates),
        ("page address", local.page),
        ("brokers and topics", kafka.cluster),
        ("consumer group", kafka.group),
        ("dead-letter topics", kafka.dead_letter_topics),
        ("receipts topic", kafka.receipts_topic),
        ("schema registry", registry.answers),
        ("access token", local.token),
        ("writers' schemas", registry.writers),
        ("OpenTelemetry", local.telemetry),
        ("way to Pinterest", api.way),
        ("known to Pinterest", reads.known),
        ("test view", api.test_view),
        ("test events", api.test_events),
    )


def _print(asked: CheckAnswers) -> None:
    from rich.console import Console
    from rich.text import Text

    from consumer.commands.check.rows import Severity
    from consumer.commands.results import counted, table

    styles = {
        Severity.OK: "green",
        Severity.WARNING: "yellow",
        Severity.FAILED: "bold red",
        Severity.SKIPPED: "dim",
    }
    shown = table("what", "verdict", "found, and what to do")
    for column in shown.columns[:2]:
        column.no_wrap = True
    verdicts: Counter[Severity] = Counter()
    for what, answers in asked:
        for number, (verdict, text) in enumerate(answers):
            # A question is named once, however many rows answer it. `Text`, not markup: it may contain brackets.
            shown.add_row("" if number else what, Text(verdict.value, styles[verdict]), Text(text))
            verdicts[verdict] += 1
    wrong, warned = verdicts[Severity.FAILED], verdicts[Severity.WARNING]
    result = f"Not fit to run: {wrong} failed" if wrong else "Fit to run"
    rest = f", {counted(warned, 'warning')}" if warned else ""
    worst = Severity.FAILED if wrong else Severity.WARNING if warned else Severity.OK
    Console().print(shown, Text(f"{result}{rest}.", styles[worst]), sep="\n\n")
