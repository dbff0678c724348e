"""The user's function (``PINSTREAM_TRANSFORM``): the shell calls it, and only the records given to it wait for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from consumer.engine import messages as m
from consumer.engine.figures.statistics import SlowTransform
from consumer.engine.model import CommerceEvent, Filtered, Rejection, Stage
from tests.engine.building import TOPIC, UNDECODABLE, Core, event, of_schema, reading, ref

NAME = "shop.events:clean"
FAILED = Rejection(Stage.CONVERT, "transform_failed", f"PINSTREAM_TRANSFORM {NAME} raised ValueError")


def started(**policy: Any) -> Core:
    """Return a member with one partition and a function."""
    return reading(transform=NAME, **policy)


def answer(
    core: Core,
    function: Callable[[CommerceEvent], CommerceEvent | Filtered | Rejection] = lambda one: one,
    maximum: int = 1_000,
) -> list[str]:
    """Let the function return for at most `maximum` records of the waiting command; return the ids it was called
    for."""
    command = core.take(m.Transform)
    called = command.events[:maximum]
    ids = [str(one["id"]) for one in called]
    core.feed(m.Transformed(command.number, [function(one) for one in called]))
    return ids


def test_records_wait_for_the_function_and_are_not_open() -> None:
    """The function gets decoded records; until it returns they do not count as read, and nothing more is fetched."""
    core = started()
    core.fetch(event("a"), event("b"))
    assert core.statistics().totals.read == 0
    assert core.statistics().held == 2
    assert core.pipeline.room() == 0
    assert not core.has(m.LookUpKeys)
    assert answer(core, lambda one: one | {"id": f"{one['id']}-changed"}) == ["a", "b"]
    core.look_up()
    core.advance(1)
    assert b"a-changed" in core.take(m.Send).body


def test_no_repr_shows_an_event() -> None:
    """The repr of a question to the function, or of its answer, which asyncio may log, has nothing of the events."""
    core = started()
    core.fetch(event("SECRET"))
    asked = core.take(m.Transform)
    for message in (
        asked,
        m.Transformed(asked.number, asked.events),
        m.TransformIsSlow(asked.number, 0, 2.0, asked.events),
    ):
        assert "SECRET" not in repr(message)


def test_none_filters_and_a_failure_is_a_dead_letter() -> None:
    """A record for which the function returns None is filtered under its own code; a failure is a dead letter."""
    core = started()
    core.fetch(event("a"), event("b"), event("c"))
    verdicts: dict[str, Filtered | Rejection] = {"a": Filtered("transform"), "b": FAILED}
    answer(core, lambda one: verdicts.get(str(one["id"]), one))
    statistics = core.statistics()
    assert statistics.counters.filtered == {"transform": 1}
    [letter] = core.take(m.StoreDeadLetters).letters
    assert letter.rejection == FAILED
    assert letter.record.value == event("b")
    assert (statistics.totals.read, statistics.totals.open) == (3, 2)


def test_the_function_may_return_for_some_records_at_a_time() -> None:
    """When the function returned for some records, those go on; it is asked for the others, once for each record."""
    core = started()
    core.fetch(*(event(str(n)) for n in range(300)))
    called: list[str] = []
    while core.has(m.Transform):
        called += answer(core, maximum=50)
        assert core.statistics().totals.read == len(called)
    assert called == [str(n) for n in range(300)]


def test_the_function_is_not_called_for_records_that_are_no_events() -> None:
    """Tombstones and undecodable records are settled without the function, and without waiting for calls of others."""
    core = started()
    core.fetch(None, UNDECODABLE, event("a"), None)
    assert core.statistics().totals.read == 2
    assert answer(core) == ["a"]
    assert core.statistics().totals.read == 4


def test_records_that_waited_for_their_schema_go_through_the_function() -> None:
    """A record that waited for its schema stays open until the function has returned for it; others go on."""
    core = started()
    core.fetch(of_schema("a", "7"), event("b"))
    assert answer(core) == ["b"]
    core.look_up()
    assert b'"event_id":"b"' in core.take(m.Send).body
    core.feed(m.SchemaFound(ref("7"), "good"))
    assert answer(core) == ["a"]
    core.look_up()
    assert core.statistics().totals.open == 2
    core.advance(1)
    assert b'"event_id":"a"' in core.take(m.Send).body


def test_a_future_dated_event_goes_through_the_function_again() -> None:
    """An event ahead of the clock passes through the function again when it is judged again, and is then sent."""
    core = started()
    core.clock_off = -3_600
    core.fetch(event("a", time=core.instant().unix + 3_600))
    while not core.has(m.AskTime):
        assert answer(core) == ["a"]
    core.report_time()
    assert answer(core) == ["a"]
    core.look_up()
    core.advance(1)
    assert core.take(m.Send).events == 1


def test_a_revoke_does_not_wait_for_the_function() -> None:
    """A revoke drops records that wait for the function, and ignores what the function returns for them later."""
    core = started()
    core.fetch(event("a"), event("b"))
    [release] = [one for one in core.revoke(0) if isinstance(one, m.Release)]
    assert not release.positions
    answer(core, maximum=1)
    assert not core.has(m.Transform)
    assert core.statistics().totals.read == 0
    core.assign(epoch=2)
    core.fetch(event("a"), event("b"))
    assert answer(core) == ["a", "b"]


def test_a_stop_does_not_wait_for_the_function() -> None:
    """A stop does not wait for the function, which may never return."""
    core = started()
    core.fetch(event("a"))
    assert [one for one in core.feed(m.StopRequested(20.0)) if isinstance(one, m.Stop)]


def test_a_call_that_takes_long_is_named_while_it_does() -> None:
    """A long call is named in the log and in the figures with its record; it is no stall; its return is logged."""
    core = started(stall_after=1.0)
    core.fetch(event("a"), event("b"))
    command = core.take(m.Transform)
    core.advance(1.5)
    core.feed(m.TransformIsSlow(command.number, 1, 1.25))
    fields: dict[str, str | int | float | None] = {
        "function": NAME,
        "topic": TOPIC,
        "partition": 0,
        "offset": 1,
        "seconds": 1.2,
    }
    assert core.log[-1] == m.Report("warning", "transform_slow", fields)
    # Records for which the function has returned go on.
    core.feed(m.TransformIsSlow(command.number, 1, 1.25, command.events[:1]))
    assert core.statistics().totals.read == 1
    core.advance(5)
    statistics = core.statistics()
    assert statistics.slow_transform == SlowTransform(NAME, TOPIC, 0, 1, 6.25)
    assert statistics.counters.slow_transforms == 1
    core.feed(m.EndOffsets({}))
    core.advance(30)
    core.feed(m.EndOffsets({}))
    assert core.statistics().stalled_for is None
    core.feed(m.TransformIsSlow(command.number, 1, 36.25))
    assert core.log[-1] == m.Report("warning", "transform_slow", fields | {"seconds": 36.2})
    core.feed(m.Transformed(command.number, command.events[1:]))
    assert core.statistics().totals.read == 2
    returned = m.Report("info", "transform_returned", {"function": NAME, "seconds": 36.2})
    assert returned in core.log
    assert core.statistics().slow_transform is None
    assert core.statistics().counters.slow_transforms == 1


def test_a_million_slow_calls_do_not_fill_the_log() -> None:
    """Each slow call is counted; the log has a line about one of them every ten seconds."""
    core = started()
    for number in range(20):
        core.fetch(event(str(number)))
        command = core.take(m.Transform)
        core.advance(1.5)
        core.feed(m.TransformIsSlow(command.number, 0, 1.1))
        core.feed(m.Transformed(command.number, list(command.events)))
    lines = [one for one in core.log if isinstance(one, m.Report) and one.event == "transform_slow"]
    assert len(lines) == 3
    assert core.statistics().counters.slow_transforms == 20


def test_the_budget_is_kept_with_a_function() -> None:
    """Records that do not fit in the budget wait after the function has returned, and need no second call."""
    core = started(max_open_events=100, batch_events=100)
    core.fetch(*(event(str(n)) for n in range(128)))
    called: list[str] = []
    while core.has(m.Transform):
        called += answer(core)
    assert len(called) == len(set(called))
    assert core.statistics().totals.open == 100
