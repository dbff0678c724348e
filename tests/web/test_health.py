"""Healthy means progress; ready means work can be done."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from consumer.core.interface import Send
from consumer.core.statistics import Statistics
from consumer.web.health import Health, unreadiness
from tests.core.building import UNDECODABLE, Core, event
from tests.web.building import OTHER_ACCOUNT, STALL_AFTER, account, empty, guarded, partition, statistics

START = 1_000.0


def verdicts(*looks: tuple[float, Statistics]) -> list[str | None]:
    """What a `Health` says, looking at each of these so many seconds after the start."""
    health = Health(STALL_AFTER)
    return [health.sickness(snapshot, START + at) for at, snapshot in looks]


def stuck(delivered: int = 10, **more: Any) -> Statistics:
    """Five records open, nothing new settled."""
    return statistics(partition(delivered=delivered, open=5), **more)


def test_open_records_that_stand_still_are_sick_after_the_limit() -> None:
    """Not before the limit; at it, with the time and the amount in one line."""
    early, late = verdicts((0, stuck()), (STALL_AFTER - 1, stuck()), (STALL_AFTER, stuck()))[1:]
    assert early is None
    assert late == "nothing settled for 120 s with 5 records open and a lag of 0"


def test_lag_that_stands_still_is_sick_with_nothing_open() -> None:
    """A consumer that fetches nothing, though there is something to fetch, is stuck (aiokafka #847)."""
    behind = statistics(partition(lag=7))
    assert verdicts((0, behind), (STALL_AFTER, behind))[1] == (
        "nothing settled for 120 s with 0 records open and a lag of 7"
    )


def test_idle_for_ever_is_healthy() -> None:
    """Without work there is nothing to make progress with: no assignment, no lag, an end that is not known yet."""
    nothing = (empty(), statistics(partition(delivered=3)), statistics(partition(lag=None, committed=None)))
    for snapshot in nothing:
        assert verdicts((0, snapshot), (10 * STALL_AFTER, snapshot)) == [None, None]


def test_each_settlement_starts_the_time_anew() -> None:
    """Slow progress is progress, whatever became of the record."""
    looks = [(90.0 * n, statistics(partition(dead_lettered=n, open=5))) for n in range(20)]
    assert verdicts(*looks) == [None] * 20


def test_a_release_is_no_settlement() -> None:
    """Partitions that come and go settle nothing: a group that only rebalances is stuck."""
    before, after = statistics(partition(open=5)), statistics(partition(open=2), ended=statistics().totals)
    assert verdicts((0, before), (60, after), (STALL_AFTER, before))[2] is not None


def test_sickness_ends_with_the_next_settlement() -> None:
    """Health is about now: what moves again is well again."""
    moving = stuck(delivered=11)
    assert [one is None for one in verdicts((0, stuck()), (200, stuck()), (201, moving))] == [
        True,
        False,
        True,
    ]


def test_new_work_gets_the_whole_time() -> None:
    """Hours without work do not count against the first record that comes."""
    quiet = statistics(partition(delivered=10))
    assert verdicts((0, quiet), (7_200, quiet), (7_201, stuck()), (7_300, stuck())) == [None] * 4


@pytest.mark.parametrize("state", ["halted", "throttled"])
def test_a_destination_that_takes_nothing_excuses(state: str) -> None:
    """Halted or throttled, a restart helps nothing: healthy for as long as it lasts, and the whole time after it."""
    waiting = stuck(accounts=[account(state=state, queued=5)])
    again = stuck(accounts=[account(queued=5)])
    looks = verdicts((0, waiting), (9_000, waiting), (9_001, again), (9_100, again), (9_121, again))
    assert looks[:4] == [None] * 4
    assert looks[4] is not None


def test_a_guard_that_tripped_excuses() -> None:
    """A restart would only write another sample of dead letters; a fetch loop that is dead is sick all the same."""
    assert verdicts((0, guarded()), (9_000, guarded())) == [None, None]
    assert Health(STALL_AFTER).sickness(guarded(), START + 120, START) == "no fetch came back for 120 s"


def test_a_real_core_whose_guard_tripped_stays_healthy_and_is_not_ready() -> None:
    """Readiness names the topic and the figures, and nothing of the records."""
    core, health = Core(dead_letter_share=0.5, dead_letter_sample=10), Health(STALL_AFTER)
    core.assign()
    core.fetch(*(event(f"{n}") for n in range(4)), *[UNDECODABLE] * 6)
    assert health.sickness(core.statistics(), core.now) is None
    core.advance(10 * STALL_AFTER)
    assert health.sickness(core.statistics(), core.now) is None
    assert unreadiness(core.statistics()) == (
        "intake stopped: 6 of the latest 10 of shop would be dead letters, mostly decode malformed (schema): correct "
        "the schema (at the producer, in the registry or in PINSTREAM_SCHEMAS_DIR) and start again"
    )


def test_stopping_excuses() -> None:
    """The stop has a deadline of its own: nobody shall kill a drain."""
    draining = stuck(stopping=True)
    assert verdicts((0, draining), (9_000, draining)) == [None, None]


def test_one_refused_account_does_not_excuse_another() -> None:
    """Work of an account that is open and stands still is sick, however long another account is halted."""
    dead = account(state="halted", queued=100)
    for other in (account(OTHER_ACCOUNT, queued=5), account(OTHER_ACCOUNT, in_flight=1)):
        snapshot = stuck(accounts=[dead, other])
        assert verdicts((0, snapshot), (STALL_AFTER, snapshot))[1] is not None
    quiet = stuck(accounts=[dead, account(OTHER_ACCOUNT)])
    assert verdicts((0, quiet), (STALL_AFTER, quiet)) == [None, None]


def test_a_fetch_that_never_came_back_is_sick_though_all_looks_idle() -> None:
    """Whoever does not fetch hears of no new records: lag stays at zero for ever, and only the last fetch tells."""
    health, caught_up = Health(STALL_AFTER), statistics(partition(delivered=10))
    assert health.sickness(caught_up, START, None) is None
    assert health.sickness(caught_up, START + 119, START) is None
    assert health.sickness(caught_up, START + 120, START) == "no fetch came back for 120 s"
    assert health.sickness(caught_up, START + 121, START + 121) is None


@pytest.mark.parametrize("state", ["halted", "throttled"])
def test_the_destination_does_not_excuse_a_dead_fetch_loop(state: str) -> None:
    """Polling never stops, or the group throws us out; only the stop ends it."""
    waiting = stuck(accounts=[account(state=state, queued=5)])
    assert Health(STALL_AFTER).sickness(waiting, START + 120, START) == "no fetch came back for 120 s"
    assert Health(STALL_AFTER).sickness(stuck(stopping=True), START + 120, START) is None


def test_a_real_core_whose_api_never_answers_is_sick_and_mends() -> None:
    """With the core's own snapshots: calls that hang are a stall, and an answer ends it."""
    core, health = Core(), Health(STALL_AFTER)
    core.assign()
    core.fetch(event("a"))
    core.send_all()
    assert health.sickness(core.statistics(), core.now) is None
    core.advance(STALL_AFTER)
    sick = health.sickness(core.statistics(), core.now)
    assert sick is not None
    assert "1 records open" in sick
    core.deliver()
    assert health.sickness(core.statistics(), core.now) is None


def test_a_real_core_that_is_refused_stays_healthy_and_is_not_ready() -> None:
    """A refused token: health stays good, readiness names account and reason."""
    core, health = Core(), Health(STALL_AFTER)
    core.assign()
    assert unreadiness(core.statistics()) is None
    core.fetch(event("a"))
    core.send_all()
    core.answer(core.take(Send), 401, b'{"code": 2, "message": "pina_secret"}')
    assert health.sickness(core.statistics(), core.now) is None
    assert health.sickness(core.statistics(), core.now + 10 * STALL_AFTER) is None
    reason = unreadiness(core.statistics())
    assert reason == "destination halted: 549755885175: the access token is refused (HTTP 401, code 2)"


def test_ready_needs_partitions_and_a_destination_that_takes_events() -> None:
    """Not before the group gave us something, not while stopping; a throttled destination is no reason."""
    assert unreadiness(empty()) == "no partitions assigned"
    assert unreadiness(replace(empty(), waiting_for_start=3)) == (
        "the brokers do not say where to start: 3 of our partitions wait"
    )
    assert unreadiness(statistics(partition(), stopping=True)) == "stopping"
    assert unreadiness(statistics(partition(), accounts=[account(state="throttled")])) is None
    assert unreadiness(statistics(partition())) is None


def test_unready_names_only_the_accounts_that_are_halted() -> None:
    """Each with its reason, in one line."""
    snapshot = statistics(
        partition(),
        accounts=[account(), account("7", "halted", reason="no such account"), account("8", "halted")],
    )
    assert unreadiness(snapshot) == (
        "destination halted: 7: no such account; 8: the access token is refused (HTTP 401, code 2)"
    )
