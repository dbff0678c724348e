"""What a test may be skipped for: a program that is not installed, or something that this machine cannot do.

Never for a file: what a test needs is in the repository, so a clone of it alone has all tests. (An earlier version is
in its history, which a shallow clone omits.)
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).parent
MISSING = (
    "is not installed",
    "built without a C compiler",
    "needs a Kafka broker of its own: ",
    "needs a real Kafka broker (Java and Maven, or KAFKA_BOOTSTRAP_SERVERS)",
    "no Kafka but the embedded broker",
    "needs a schema registry (Java and Maven): ",
    "this machine has no IPv6",
    "this broker has no SASL listener",
    "an external broker",
    "looks into /proc",
    "needs redis-server (Debian's package redis-server)",
    "needs the history of this repository, with ",
)
"""What each reason has to say."""
FORMS = frozenset(
    f"pytest.{form}" for form in ("skip", "xfail", "importorskip", "mark.skip", "mark.skipif", "mark.xfail")
)


def reasons() -> Iterator[tuple[str, str]]:
    """Where a test is skipped or expected to fail, and the words it gives for it."""
    for path in sorted(HERE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in FORMS:
                yield f"{path.relative_to(HERE)}:{node.lineno}", _words(node)


def _words(call: ast.Call) -> str:
    """The text of the reason: what is put into an f-string is not known here."""
    named = [keyword.value for keyword in call.keywords if keyword.arg == "reason"]
    reason = (named or call.args or [ast.Constant("")])[0]
    parts = reason.values if isinstance(reason, ast.JoinedStr) else [reason]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def test_only_for_want_of_a_program() -> None:
    """Each reason names what is missing from the machine, so that a person can install it."""
    found = dict(reasons())
    assert not {
        where: reason for where, reason in found.items() if not any(missing in reason for missing in MISSING)
    }
    # There are some, in the forms that pytest has for it; or this test would look at nothing.
    assert len(found) > 15
    assert any("chromium is not installed" in reason for reason in found.values())
    assert any("promtool is not installed" in reason for reason in found.values())
