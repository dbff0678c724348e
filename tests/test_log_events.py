"""docs/logs.md lists every line that pinstream logs, with its level and fields: the code must agree with it."""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from consumer.web.status import document_of
from tests.engine.building import Core

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "logs.md").read_text("utf-8")
LEVELS = {"debug", "info", "warning", "error"}

FORWARDING = {("consumer/logs.py", "emit"), ("consumer/app/building.py", "log_report")}
"""Functions that forward the lines of a library or the reports of the engine."""


class Line(NamedTuple):
    """One place that logs. `fields` None: they come from another place, and the test names them."""

    where: str
    event: str
    levels: frozenset[str]
    fields: frozenset[str] | None


def constants(node: ast.expr) -> set[str]:
    """The texts that an expression can have as its value."""
    if isinstance(node, ast.IfExp):
        return constants(node.body) | constants(node.orelse)
    return {node.value} if isinstance(node, ast.Constant) and isinstance(node.value, str) else set()


def keywords(call: ast.Call) -> frozenset[str] | None:
    """The names of a call's fields; None if they come from a mapping."""
    names = [one.arg for one in call.keywords]
    return None if None in names else frozenset(name for name in names if name)


def keys(node: ast.expr) -> frozenset[str] | None:
    """The keys of a dictionary that is written out."""
    if not isinstance(node, ast.Dict):
        return None
    return frozenset(name for key in node.keys if key is not None for name in constants(key))


def is_logger(node: ast.expr) -> bool:
    """structlog's logger, or a variable that holds it."""
    return ast.unparse(node) in ("structlog.get_logger()", "log")


def read(call: ast.Call, where: str) -> Line | None:
    """A report of the engine, a `Report`, or a call of structlog's logger; None for anything else."""
    function = call.func
    name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
    if name == "Report" and len(call.args) == 3:
        return _line(where, call.args[0], call.args[1], keys(call.args[2]))
    if name == "report" and len(call.args) == 2:
        return _line(where, call.args[0], call.args[1], keywords(call))
    if name in LEVELS and isinstance(function, ast.Attribute) and is_logger(function.value):
        [event] = constants(call.args[0]) or {""}
        return Line(where, event, frozenset({name}), keywords(call))
    return None


def _line(where: str, level: ast.expr, event: ast.expr, fields: frozenset[str] | None) -> Line | None:
    levels, events = constants(level), constants(event)
    if not events:
        assert where == "consumer/engine/context.py", f"{where}: an event name that is not constant"
        return None
    [name] = events
    return Line(where, name, frozenset(levels), fields)


@cache
def logged() -> Sequence[Line]:
    """Every line of the product's own code."""
    found = []
    for path in sorted((ROOT / "consumer").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            line = read(node, where) if isinstance(node, ast.Call) else None
            if line is not None:
                found.append(line)
    return found


def listed() -> dict[str, tuple[set[str], set[str]]]:
    """Event -> levels and fields, from the page."""
    rows = re.findall(r"^\| `(\w+)` \| ([a-z, ]+) \| .+ \| (.+) \|$", PAGE, re.MULTILINE)
    assert len(rows) == len({row[0] for row in rows})
    return {
        name: (set(levels.split(", ")), set(re.findall(r"`(\w+)`", fields))) for name, levels, fields in rows
    }


def test_the_page_lists_every_event() -> None:
    """Every event, and no other."""
    assert len(logged()) > 20
    assert listed().keys() == {line.event for line in logged()}


def test_the_page_has_their_levels() -> None:
    """Every level that the event can have, and they are valid levels."""
    found: dict[str, set[str]] = {}
    for line in logged():
        found.setdefault(line.event, set()).update(line.levels)
    assert {name: levels for name, (levels, _) in listed().items()} == found
    assert set().union(*found.values()) <= LEVELS


def test_the_page_has_their_fields() -> None:
    """Every field that the event can have; those of ``stopped`` are the ledger's."""
    of_ledger = frozenset(document_of(Core().statistics().totals))
    found: dict[str, set[str]] = {}
    for line in logged():
        fields = of_ledger if line.event == "stopped" and line.fields is None else line.fields
        assert fields is not None, f"{line.where}: the fields of {line.event} cannot be read"
        found.setdefault(line.event, set()).update(fields)
    assert {name: fields for name, (_, fields) in listed().items()} == found


def test_event_names_are_names() -> None:
    """Lower case with underscores, which filters can use; the same for fields."""
    for line in logged():
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", line.event)
        assert all(re.fullmatch(r"[a-z]+(_[a-z]+)*", name) for name in line.fields or ())


def test_fields_of_time_have_their_unit() -> None:
    """The names of delays, waits and ages say that they are seconds."""
    for line in logged():
        for name in line.fields or ():
            assert not re.search(r"(^|_)(delay|wait|age|retry|timeout|duration)(_in)?$", name), (
                line.event,
                name,
            )


def test_nobody_logs_in_a_way_that_this_test_cannot_read() -> None:
    """Every use of a logger has one of the forms above, or forwards lines of others."""
    for path in sorted((ROOT / "consumer").rglob("*.py")):
        where = path.relative_to(ROOT).as_posix()
        for function in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            calls = [one for one in ast.walk(function) if isinstance(one, ast.Call)]
            loggers = sum(ast.unparse(one) == "structlog.get_logger()" for one in calls)
            lines = sum(isinstance(one.func, ast.Attribute) and is_logger(one.func.value) for one in calls)
            understood = lines >= loggers and all(
                read(one, where)
                for one in calls
                if isinstance(one.func, ast.Attribute) and is_logger(one.func.value)
            )
            assert understood or (where, function.name) in FORWARDING, f"{where}: {function.name}"


def test_links_lead_somewhere() -> None:
    """Each link leads to a section of the runbook."""
    headings = re.findall(r"^#+ (.+)$", (ROOT / "docs" / "runbook.md").read_text("utf-8"), re.MULTILINE)
    anchors = {heading.lower().replace(" ", "-") for heading in headings}
    links = re.findall(r"runbook\.md#([\w-]+)", PAGE)
    assert links
    assert set(links) <= anchors
