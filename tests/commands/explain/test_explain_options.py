"""``pinstream explain`` with --expect, --summary, --strict and --rules, and on a terminal."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from consumer.commands import main
from tests.end_to_end.processes import ROOT, bare_environment
from tests.support.terminal import OnTerminal

NOW = "2026-03-01T12:00:00Z"
SHOPPER = "jane.doe@example.com"
PAID: dict[str, Any] = {
    "event_id": "e-1", "event_type": "order_completed", "occurred_at": "2026-03-01T11:59:00Z", "channel": "WEB",
    "page_url": "https://shop.example/?epik=dj0y",
    "customer": {"emails": [f" {SHOPPER.title()} "], "first_name": "José", "gender": "unsaid"},
    "order": {"currency": "eur", "total": "59.90", "items": [{"sku": "007", "quantity": 2}, {"sku": "8"}]},
}  # fmt: skip
RECORDS = (
    PAID,
    PAID | {"event_id": "e-2", "event_type": "cart_viewed"},
    PAID | {"event_id": "e-3", "customer": {"first_name": "José"}},
    {"event_type": "order_completed"},
)


class Try:
    """A folder with samples and expectations, in which `explain` is run."""

    def __init__(self, folder: Path) -> None:
        self.samples, self.expected = folder / "samples.ndjson", folder / "expected.ndjson"
        # None removes a variable of this process.
        self.env = dict.fromkeys(os.environ) | bare_environment(folder)
        self.write(RECORDS)

    def write(self, records: Any) -> None:
        """Replace the samples."""
        self.samples.write_text("".join(f"{json.dumps(record)}\n" for record in records))

    def explain(self, *options: str, now: str | None = NOW) -> Result:
        """Run `explain` on the samples in this process: starting one takes longer than the run."""
        clock = () if now is None else ("--now", now)
        return CliRunner(env=self.env).invoke(main, ["explain", str(self.samples), *clock, *options])

    def record(self) -> list[dict[str, Any]]:
        """Write the expectations as a user does, with `> expected.ndjson`, and return them."""
        self.expected.write_text(self.explain().stdout)
        return [json.loads(line) for line in self.expected.read_text().splitlines()]

    def expect(self, lines: list[Any], now: str | None = NOW) -> Result:
        """Run `explain` with these lines as expectations."""
        self.expected.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
        return self.explain("--expect", str(self.expected), now=now)


@pytest.fixture
def samples(tmp_path: Path) -> Try:
    """Samples with a record of each outcome."""
    return Try(tmp_path)


def test_what_it_printed_is_what_it_expects(samples: Try) -> None:
    """All records agree with the output of an earlier run, with --rules or without; empty lines do not count."""
    samples.record()
    done = samples.explain("--expect", str(samples.expected))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout == f"4 of 4 records agree with {samples.expected}.\n"
    samples.expected.write_text(samples.explain("--rules").stdout)
    assert samples.explain("--expect", str(samples.expected)).exit_code == 0
    samples.samples.write_text(f"\n{json.dumps(PAID)}\n")
    line = samples.record()[0]
    assert samples.expect([line]).exit_code == 0
    line["payload"]["event_id"] = "x"
    assert samples.expect([line]).stdout.startswith("record 1 (line 2): payload.event_id: ")


DIFFERENCES: dict[str, tuple[Callable[[list[dict[str, Any]]], Any], list[str]]] = {
    "another value": (lambda lines: lines[0]["payload"]["custom_data"].update(value="59.9"),
        ['record 1: payload.custom_data.value: expected "59.9", got "59.90"']),
    "a number for text": (lambda lines: lines[0]["payload"].update(event_id=1, event_time="1772366340"),
        ['record 1: payload.event_time: expected "1772366340", got 1772366340',
         'record 1: payload.event_id: expected 1, got "e-1"']),
    "true is not 1": (lambda lines: lines[0]["payload"].update(opt_out=0),
        ["record 1: payload.opt_out: expected 0, got false"]),
    "a field that is not sent": (lambda lines: lines[0]["payload"]["custom_data"].update(order_id="4711"),
        ['record 1: payload.custom_data.order_id: expected "4711", got nothing']),
    "a field that is sent": (lambda lines: lines[0]["payload"].pop("custom_data"),
        ["record 1: payload.custom_data: expected nothing, got {"]),
    "an item less, another id": (
        lambda lines: lines[0]["payload"]["custom_data"].update(contents=[{"id": "7", "quantity": 2}]),
        ['record 1: payload.custom_data.contents[0].id: expected "7", got "007"',
         'record 1: payload.custom_data.contents[1]: expected nothing, got {"id": "8", "quantity": 1}']),
    "an outcome": (lambda lines: lines[2].update(outcome="deliverable", payload={}),
        ['record 3: outcome: expected "deliverable", got "rejected": no_identity (convert): no user data']),
    "a code": (lambda lines: lines[2]["error"].update(code="expired"),
        ['record 3: error.code: expected "expired", got "no_identity"']),
    "a code that is no text": (lambda lines: lines[2]["error"].update(code=["expired"]),
        ['record 3: error.code: expected ["expired"], got "no_identity"']),
    "why it is filtered": (lambda lines: lines[1].update(filter="consent"),
        ['record 2: filter: expected "consent", got "event_name"']),
    "a warning": (lambda lines: lines[0]["warnings"].clear(),
        ['record 1: warnings[0]: expected nothing, got {"code": "malformed"']),
    "a line too few": (lambda lines: lines.pop(),
        ["record 4: not expected: EXPECTED has no more lines; it is rej"]),
    "a line too many": (lambda lines: lines.append(lines[0]),
        ["record 5: expected, but FILE has no more records"]),
}  # fmt: skip


@pytest.mark.parametrize("name", DIFFERENCES)
def test_each_difference_is_a_line(samples: Try, name: str) -> None:
    """It has its path, what was expected and what was found; the exit code is 1, and other records agree."""
    change, said = DIFFERENCES[name]
    lines = samples.record()
    change(lines)
    done = samples.expect(lines)
    assert (done.exit_code, done.stderr) == (1, "")
    *differences, last = done.stdout.splitlines()
    assert [one[: len(begin)] for one, begin in zip(differences, said, strict=True)] == said
    assert re.fullmatch(r"[34] of 4 records agree with .*/expected\.ndjson\.", last)


def test_an_expectation_may_leave_things_out(samples: Try) -> None:
    """Keys that an expectation omits are not compared, nor are messages; a payload is compared whole."""
    lines = [
        {"outcome": "deliverable"},
        {"outcome": "filtered", "warnings": []},
        {"error": {"code": "no_identity", "message": "as an older version worded it"}},
        {"outcome": "rejected", "error": {"stage": "decode"}},
    ]
    done = samples.expect(lines)
    assert (done.exit_code, done.stdout[:6]) == (0, "4 of 4")
    lines[0] = lines[3] = {"payload": {"event_name": "checkout"}}
    done = samples.expect(lines)
    assert done.exit_code == 1
    assert 'record 1: payload.event_id: expected nothing, got "e-1"' in done.stdout
    assert 'record 4: outcome: expected "deliverable", got "rejected": misfit (decode): ' in done.stdout


def test_the_clock_is_named_where_ages_differ(samples: Try) -> None:
    """Old samples are expired without --now; a line after the differences says so."""
    lines = samples.record()
    assert "give --now the time for which EXPECTED was made" in samples.expect(lines, now=None).stdout
    lines[0]["payload"]["event_id"] = "x"
    assert "--now" not in samples.expect(lines).stdout


def test_many_differences_are_not_all_shown(samples: Try) -> None:
    """The first two hundred differences are printed, and the others are counted."""
    samples.write([PAID] * 300)
    line = samples.record()[0]
    line["payload"]["event_id"] = "x"
    shown = samples.expect([line] * 300).stdout.splitlines()
    assert len(shown) == 202
    assert shown[-2:] == ["and 100 more differences", f"0 of 300 records agree with {samples.expected}."]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "expects nothing: make it with `pinstream explain FILE > "),
        ("{", "line 1 is not JSON"),
        ('{"outcome": "filtered"}\n\n[]', "line 3 is JSON, but not an object"),
        ('{"outcom": "filtered"}', "line 1: 'outcom' is not a key of a line of explain; the nearest is 'outcome'"),
        ('{"outcome": "delivered"}', "line 1: an outcome is one of deliverable, filtered, rejected"),
        ("{}", "line 1 expects nothing of its record"),
        ("\xff", "is not UTF-8"),
        (None, "cannot be read: No such file or directory; check the path of --expect"),
    ],
)  # fmt: skip
def test_what_is_no_expectation_is_an_error(samples: Try, text: str | None, said: str) -> None:
    """It is one line that names file and line. A misspelled key is one, since it would agree with everything."""
    if text is not None:
        samples.expected.write_text(text, encoding="latin-1")
    done = samples.explain("--expect", str(samples.expected))
    assert done.exit_code == 1
    assert done.stderr.startswith(f"pinstream: {samples.expected}")
    assert len(done.stderr.splitlines()) == 1
    assert said in done.stderr


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--expect", "x", "--summary"), "--expect and --summary print different things: give one of them"),
        (("--rules", "--summary"), "--summary and --rules print different things"),
        (("--expect", "-"), "--expect takes the path of a file"),
        (("--expect",), "requires an argument"),
        (("--json",), "--json goes with --against"),
        (("--now", "yesterday"), "--now 'yesterday' cannot be read"),
    ],
)
def test_wrong_usage(samples: Try, options: tuple[str, ...], said: str) -> None:
    """Wrong usage is exit code 2 and says what to change."""
    done = samples.explain(*options)
    assert (done.exit_code, done.stdout) == (2, "")
    assert said in done.stderr


def test_strict_fails_where_a_record_is_rejected(samples: Try) -> None:
    """Exit code 1 and one line on stderr, not for a filtered record; the output is the same."""
    done = samples.explain("--strict")
    assert (done.exit_code, done.stdout) == (1, samples.explain().stdout)
    assert done.stderr == f"pinstream: 2 of 4 records of {samples.samples} were rejected (--strict)\n"
    samples.write(RECORDS[:2])
    assert samples.explain("--strict").exit_code == 0


def test_the_summary_counts(samples: Try) -> None:
    """Outcomes, codes, warnings by field and coverage are one line of JSON; --strict works with it."""
    done = samples.explain("--summary", "--strict")
    assert done.exit_code == 1
    counts = json.loads(done.stdout)
    assert counts["records"] == 4
    assert counts["outcomes"] == {"deliverable": 1, "filtered": 1, "rejected": 2}
    assert counts["codes"] == {
        "rejected": {"no_identity": 1, "misfit": 1},
        "filtered": {"event_name": 1},
        "warnings": {"malformed": {"user_data.ge": 1}},
    }
    assert counts["coverage"].keys() == {"checkout"}
    carried = counts["coverage"]["checkout"]["carried"]
    assert (counts["coverage"]["checkout"]["events"], carried["em"], carried["ph"]) == (1, 1, 0)


def test_the_rules_say_where_each_field_is_from(samples: Try) -> None:
    """Path, rule, what was done and why values were omitted, without any value of the record."""
    lines = [json.loads(line) for line in samples.explain("--rules").stdout.splitlines()]
    rules = {rule["field"]: rule for rule in lines[0]["rules"]}
    assert rules["user_data.em"] == {
        "field": "user_data.em",
        "from": "customer.emails",
        "rule": "without white space, lower case; SHA-256",
        "values": 1,
        "sent": 1,
        "done": ["normalised", "hashed"],
        "left_out": {},
    }
    assert rules["user_data.ge"]["left_out"] == {"not f, m or n": 1}
    assert rules["user_data.click_id"]["from"] == "epik in event_source_url"
    assert rules["custom_data.contents[].id"]["sent"] == 2
    assert rules["custom_data.currency"]["done"] == ["normalised"]
    assert rules["custom_data.value"]["done"] == ["unchanged"]
    reported = json.dumps([line["rules"] for line in lines]).lower()
    for value in (SHOPPER, "jos", "unsaid", "dj0y", "59.90", "e-1"):
        assert value not in reported


def on_a_terminal(samples: Try, *options: str, **env: str) -> str:
    """Return what `explain` prints on a terminal."""
    line = [sys.executable, "-m", "consumer", "explain", str(samples.samples), "--now", NOW, *options]
    env = {**bare_environment(samples.samples.parent), "TERM": "xterm", **env}
    with OnTerminal(line, env=env, cwd=ROOT) as terminal:
        return terminal.until("")


def test_on_a_terminal_it_is_text_for_people(samples: Try) -> None:
    """Coloured unless NO_COLOR is set; no value of a record is taken for a command of the terminal."""
    coloured = on_a_terminal(samples)
    assert "\x1b[1;32mdeliverable" in coloured
    assert '\x1b[32m"checkout"' in coloured
    samples.write([*RECORDS, PAID | {"event_id": "e\x1b[2J\x9b\x7f\u202e"}])
    printed = on_a_terminal(samples, "--rules", NO_COLOR="1")
    assert not re.search(r"\x1b\[[0-9;]*3[0-9]m", printed)
    plain = re.sub(r"\x1b\[[0-9;]*m", "", printed)
    assert 'record 1: deliverable\n{\n  "event_name": "checkout",\n' in plain
    assert "warning malformed: user_data.ge is not f, m or n: omitted\n" in plain
    assert "customer.first_name       NFC, lower case; SHA-256: normalised; hashed\n" in plain
    assert "record 2: filtered: event_name\n" in plain
    assert "record 3: rejected: no_identity (convert): no user data identifies a shopper" in plain
    assert '"e\\u001b[2J\\u009b\\u007f\\u202e"' in plain
    counts = on_a_terminal(samples, "--summary", NO_COLOR="1")
    assert re.search(r"no_identity +1\b", counts)
    assert re.search(r"event_source_url +100%", counts)
