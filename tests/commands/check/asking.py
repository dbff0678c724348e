"""`pinstream check` for the tests beside this file: as a command, and one question after the other in this process."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from consumer.commands.check.command import ask_all
from consumer.commands.check.rows import CheckContext, Question, Row, Severity
from consumer.settings import load
from tests.end_to_end.processes import command, run_environment
from tests.support.kafka.harness import Kafka

VERDICTS = "ok|warning|failed|skipped"


def nowhere(folder: Path, **settings: str) -> dict[str, str]:
    """Return an environment whose brokers and API are not there, for questions that need neither."""
    return run_environment(
        folder, Kafka("127.0.0.1:9", "none"), "orders", "group", "http://127.0.0.1:9/v5", **settings
    )


def asked(env: Mapping[str, str], *questions: Question, workers: str | None = None) -> list[Row]:
    """Return the rows of the last of these questions, as the table has them: starting a process takes longer."""
    context = CheckContext(load(env), workers, sends=True)
    *_, (_, rows) = asyncio.run(ask_all(context, [("", one) for one in questions]))
    return list(rows)


def the_text(rows: list[Row], verdict: Severity) -> str:
    """Return the text of the only row with this verdict."""
    [text] = [row.text for row in rows if row.verdict is verdict]
    return text


class ShownTable(NamedTuple):
    """What the command printed, and its exit code."""

    rows: dict[str, list[tuple[str, str]]]
    """Verdict and text of each row, by the question in the first column."""
    summary: str
    code: int

    def verdicts(self, name: str) -> list[str]:
        """Return the verdicts on one question."""
        return [verdict for verdict, _ in self.rows[name]]

    def text(self, name: str, verdict: str) -> str:
        """Return the text of the one row of this question with this verdict."""
        [text] = [text for one, text in self.rows[name] if one == verdict]
        return text

    def names(self, verdict: str) -> set[str]:
        """Return the questions that have a row with this verdict."""
        return {name for name, rows in self.rows.items() if verdict in dict(rows)}


def check(env: Mapping[str, str], *arguments: str) -> ShownTable:
    """Run `check` on a screen so wide that each row is one line, and read what it prints."""
    done = command("check", *arguments, env={**env, "COLUMNS": "1000"})
    assert done.stderr == ""
    assert env["PINTEREST_ACCESS_TOKEN"] not in done.stdout
    *lines, summary = done.stdout.strip().splitlines()
    rows: dict[str, list[tuple[str, str]]] = {}
    name = ""
    for line in lines:
        match = re.fullmatch(rf"(\S.*?)? +({VERDICTS}) +(.*?) *", line)
        if match is not None:
            name = match[1] or name
            rows.setdefault(name, []).append((match[2], match[3]))
    return ShownTable(rows, summary, done.returncode)
