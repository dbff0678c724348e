"""Late events: a three-hour outage in virtual time, what is counted of it, and what the figures say of it."""

from __future__ import annotations

from consumer.engine import messages as m
from tests.engine.building import Core, event


def catch_up(core: Core) -> None:
    """Let the API accept everything that is open."""
    for _ in range(20):
        core.look_up()
        while core.has(m.Send):
            core.accept()
        core.store_keys()
        core.advance(30.0)
    assert core.statistics().totals.open == 0


def test_after_three_hours_events_are_late_and_counted() -> None:
    """Web and app events that are delivered more than an hour after they happened are counted, once each, and the
    figures say so until five minutes after the last. Younger ones and offline events are not; nothing is lost."""
    core = Core(linger=0.1)
    core.assign()
    for minute in range(0, 180, 10):
        core.fetch(event(f"web{minute}", age=0), event(f"app{minute}", age=0, action_source="app_ios"))
        core.fetch(event(f"shop{minute}", age=0, action_source="offline"))
        core.look_up()
        for _ in range(20):
            while core.has(m.Send):
                core.answer(core.take(m.Send), 503)
            core.advance(30.0)
    assert core.statistics().counters.late_events == 0
    assert core.statistics().freshness.catching_up is None
    catch_up(core)
    shown = core.statistics()
    # Those of the minutes 0 to 110; that of 120 is just an hour old.
    assert shown.counters.late_events == 2 * 12
    assert shown.totals.delivered == 3 * 18
    core.fetch(event("fresh", age=0))
    catch_up(core)
    assert core.statistics().counters.late_events == 2 * 12


def test_it_says_what_late_events_become() -> None:
    """In words, for five minutes; an hour is not late, and neither is an old event of a shop."""
    core = Core()
    core.assign()
    core.fetch(event("a", age=3_599), event("b", age=7_200, action_source="offline"))
    core.deliver()
    assert core.statistics().freshness.catching_up is None
    core.fetch(*(event(f"{n}", age=3_700) for n in range(3)))
    core.deliver()
    said = core.statistics().freshness.catching_up
    assert said is not None
    assert said.startswith(
        "Catching up: 3 web and app events of the last five minutes were delivered more than an hour"
    )
    core.now += 301
    assert core.statistics().freshness.catching_up is None
    assert core.statistics().counters.late_events == 3
