"""How results are printed: for people, for programs, or both; also where they cannot be."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from consumer.commands.results import print_result, table
from consumer.errors import Incomplete

DOCUMENT = {"result": "complete"}


def report(document: dict[str, str], console: Console) -> None:
    """The result for people."""
    console.print(f"a table: {document['result']}")


@pytest.mark.parametrize("beside", [False, True])
def test_a_result_is_for_people_or_for_programs(capsys: pytest.CaptureFixture[str], beside: bool) -> None:
    """Stdout has the one that was asked for; beside the document, stderr has the other one if the command wants it."""
    print_result(report, DOCUMENT, as_json=False, beside=beside)
    assert capsys.readouterr() == ("a table: complete\n", "")
    print_result(report, DOCUMENT, as_json=True, beside=beside)
    out, err = capsys.readouterr()
    assert json.loads(out) == DOCUMENT
    assert err == ("a table: complete\n" if beside else "")


def test_a_table_takes_no_text_for_markup(capsys: pytest.CaptureFixture[str]) -> None:
    """A topic or a code may have brackets: they stay, in cells and heads."""
    Console(width=80).print(table("topic", ">[bold]n", rows=[["orders[red]", "[/]7"]], title="what"))
    out = capsys.readouterr().out
    assert all(text in out for text in ("[bold]n", "orders[red]", "[/]7", "what"))


def test_a_result_that_cannot_be_printed_is_no_bug(monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk is full: the error says so, and that what was done stands; flushing raises nothing more."""
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        with pytest.raises(
            Incomplete, match=r"could not be printed \(No space left on device\); what was done stands"
        ):
            print_result(report, DOCUMENT, as_json=True, lost="; what was done stands")


def test_a_closed_stdout_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """With stdout closed (``>&-``) no result is printed, without an error."""
    monkeypatch.setattr("sys.stdout", None)
    print_result(report, DOCUMENT, as_json=False)
