"""``--expect``: are the lines what an earlier run printed? For a mapping under test, by hand and in CI.

Theory of operation. The n-th line of EXPECTED belongs to the n-th record. A line has the form that ``explain`` prints,
and may omit keys that are not to be compared. The payload is compared whole: a field that is sent and was not
expected is a difference. Messages are not compared, since a new version may word them better; nor is ``rules``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain, zip_longest
from typing import Any, Final

import click

from consumer.commands.explain.explaining import Explained
from consumer.commands.explain.showing import why
from consumer.commands.results import readable
from consumer.errors import InputError, or_all

OUTCOMES: Final = ("deliverable", "filtered", "rejected")
KEYS: Final = ("outcome", "payload", "error", "warnings", "filter", "section", "rules")  # the keys of a line
_NOT_COMPARED: Final = frozenset({"message", "rules"})
_MAX_SHOWN: Final = 200  # most differences to print: then a person looks at the mapping
_BY_AGE: Final = ("expired", "future_event_time")  # codes that depend on the clock

_NOTHING: Final[Any] = object()  # in place of a missing value


def compare(explained: Iterable[Explained], path: str, *, clock_given: bool) -> bool:
    """Print how the lines differ from those of the file `path`; return whether they do not.

    Raises `InputError` if the file cannot be read, or holds what ``explain`` never prints.
    """
    records = agreeing = different = 0
    by_age = False
    wanted = _expectations(path)
    first = next(wanted, None)
    # A failed `explain … >` leaves an empty file.
    if first is None:
        raise InputError(f"{path} expects nothing: make it with `pinstream explain FILE > {path}`")
    # Compare up to the end of the longer one: an extra record is a difference, as a missing one is.
    for number, (record, expected) in enumerate(zip_longest(explained, chain([first], wanted)), start=1):
        name, line = record[:2] if record else (f"record {number}", None)
        found = list(_of_record(line, expected))
        for text in found[: max(0, _MAX_SHOWN - different)]:
            click.echo(f"{name}: {text}")
        different += len(found)
        records += line is not None
        agreeing += not found
        # A code of EXPECTED may be any JSON value.
        errors = [one.get("error") for one in (line, expected) if found and one is not None]
        by_age |= any(error.get("code") in _BY_AGE for error in errors if isinstance(error, dict))
    if different > _MAX_SHOWN:
        click.echo(f"and {different - _MAX_SHOWN} more differences")
    if by_age and not clock_given:
        click.echo(
            "The age of an event depends on the clock: give --now the time for which EXPECTED was made."
        )
    click.echo(f"{agreeing} of {records} records agree with {path}.")
    return not different


def _expectations(path: str) -> Iterator[dict[str, Any]]:
    """Yield the lines of EXPECTED, checked: a misspelled key would be compared with nothing, and always agree."""
    try:
        # Editors on Windows put a byte-order mark at the beginning.
        with open(path, encoding="utf-8-sig") as file:
            for number, text in enumerate(file, start=1):
                if text.strip():
                    yield _expectation(text, f"{path}, line {number}")
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}; check the path of --expect") from None
    except ValueError:
        raise InputError(f"{path} is not UTF-8 text: write it again with `pinstream explain FILE`") from None


def _expectation(text: str, where: str) -> dict[str, Any]:
    try:
        line = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{where} is not JSON: each record has one line, as explain prints it") from None
    if not isinstance(line, dict):
        raise InputError(f"{where} is JSON, but not an object as explain prints it")
    for key in line:
        if key not in KEYS:
            raise InputError(f"{where}: {key[:40]!r} is not a key of a line of explain; {or_all(key, KEYS)}")
    # Such a line would agree with any record.
    if not line.keys() - {"rules"}:
        raise InputError(f"{where} expects nothing of its record: write at least its outcome")
    if line.get("outcome", OUTCOMES[0]) not in OUTCOMES:
        raise InputError(f"{where}: an outcome is one of {', '.join(OUTCOMES)}")
    return line


def _of_record(line: dict[str, Any] | None, expected: dict[str, Any] | None) -> Iterator[str]:
    """Yield the differences between a record's line and the expected one; None: there is no such line."""
    if line is None:
        yield "expected, but FILE has no more records"
    elif expected is None:
        yield f"not expected: EXPECTED has no more lines; it is {line['outcome']}{why(line)}"
    elif (outcome := _outcome(expected) or line["outcome"]) != line["outcome"]:
        # Other differences follow from this one: one side has no payload, or no error.
        yield f"outcome: expected {readable(outcome)}, got {readable(line['outcome'])}{why(line)}"
    else:
        for key in expected:
            yield from _differences(expected[key], line.get(key, _NOTHING), key)


def _outcome(expected: dict[str, Any]) -> str | None:
    """Return the outcome that a line expects, or that follows from its keys; None if neither."""
    follows = {"payload": "deliverable", "error": "rejected", "filter": "filtered"}
    found: str | None = expected.get("outcome")
    return found or next((outcome for key, outcome in follows.items() if expected.get(key) is not None), None)


def _differences(expected: Any, got: Any, path: str) -> Iterator[str]:
    """Yield the differences between two JSON values, each with its path."""
    if path.rpartition(".")[2] in _NOT_COMPARED and not path.startswith("payload"):
        return
    if isinstance(expected, dict) and isinstance(got, dict):
        # Keys that an error or a warning omits are not compared, as in the whole line.
        whole = path.startswith("payload")
        for key in [*expected, *(key for key in got if whole and key not in expected)]:
            yield from _differences(expected.get(key, _NOTHING), got.get(key, _NOTHING), f"{path}.{key}")
    elif isinstance(expected, list) and isinstance(got, list):
        # The order counts: the first value, as the first e-mail address, may matter more.
        for index, (one, other) in enumerate(zip_longest(expected, got, fillvalue=_NOTHING)):
            yield from _differences(one, other, f"{path}[{index}]")
    # In Python true is 1; in JSON it is not.
    elif expected != got or isinstance(expected, bool) is not isinstance(got, bool):
        yield f"{path}: expected {_shown(expected)}, got {_shown(got)}"


def _shown(value: Any) -> str:
    return "nothing" if value is _NOTHING else readable(value)
