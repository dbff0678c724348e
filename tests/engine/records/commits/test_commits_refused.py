"""Commits that the group refuses: refusals that come with every rebalance are no warning unless they last."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from tests.engine.building import Core, filtered
from tests.engine.records.commits.test_commits import committed, core_of


def refused(core: Core, reason: str) -> None:
    """Let the broker refuse all of the next commit."""
    core.advance(1.0)
    core.take(m.Commit)
    committed(core, [], reason)


@pytest.mark.parametrize("reason", ["ILLEGAL_GENERATION", "REBALANCE_IN_PROGRESS", "_ASSIGNMENT_LOST"])
def test_refusals_of_a_rebalance_are_no_warning(reason: str) -> None:
    """Refusals during a rebalance are each counted, and reported once as information until a commit is accepted."""
    core = core_of()
    core.fetch(filtered())
    for _ in range(3):
        refused(core, reason)
    assert [report.level for report in core.reports("commit_failed")] == ["info"]
    core.advance(1.0)
    asked = core.take(m.Commit)
    committed(core, asked.positions)
    core.fetch(filtered())
    refused(core, reason)
    assert [report.level for report in core.reports("commit_failed")] == ["info", "info"]
    assert core.pipeline.context.counters.failures["commit"] == 4


def test_a_rebalance_that_lasts_is_a_warning() -> None:
    """Refusals of a rebalance for half a minute without an accepted commit give a warning."""
    core = core_of()
    core.fetch(filtered())
    for _ in range(32):
        refused(core, "REBALANCE_IN_PROGRESS")
    levels = [report.level for report in core.reports("commit_failed")]
    assert levels == ["info", "warning", "warning"]


def test_any_other_failed_commit_is_a_warning_at_once() -> None:
    """Any other failed commit gives a warning at once, also amid refusals of a rebalance."""
    core = core_of()
    core.fetch(filtered())
    for reason in ("ILLEGAL_GENERATION", "_TIMED_OUT", "ILLEGAL_GENERATION"):
        refused(core, reason)
    assert [(one.level, one.fields["reason"]) for one in core.reports("commit_failed")] == [
        ("info", "ILLEGAL_GENERATION"),
        ("warning", "_TIMED_OUT"),
    ]
