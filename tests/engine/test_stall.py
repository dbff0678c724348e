"""Stalls: work that makes no progress is reported until it moves; states with their own report are no stall."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.model import TopicPartition
from tests.engine.building import NO, TOPIC, UNDECODABLE, Core, event, reading, sending

AFTER = 120.0


def checking(core: Core, seconds: float, end: int = 1) -> list[float]:
    """Take the shell's rounds for `seconds`; return after how many seconds the engine reported a stall."""
    begun, reported = core.now, []
    before = len(core.reports("stalled"))
    while core.now < begun + seconds:
        core.advance(2.0)
        core.feed(m.EndOffsets({TopicPartition(TOPIC, 0): end}))
        if len(core.reports("stalled")) > before:
            before += 1
            reported.append(core.now - begun)
    return reported


def waiting() -> Core:
    """Return a core with one event whose look-up is never answered."""
    return reading(event("a"), stall_after=AFTER)


def test_open_records_that_stand_still_are_reported_until_they_move() -> None:
    """Open records without progress are reported at the limit, every five minutes after it, and once at the end."""
    core = waiting()
    reported = checking(core, 1_000.0)
    assert reported == pytest.approx([122.0, 422.0, 722.0], abs=3.0)
    assert (core.statistics().stalled_for or 0) > 900
    assert core.reports("stalled")[0].fields["work"] == 1, "the open record is a part of the lag"
    core.deliver()
    checking(core, 4.0)
    assert core.statistics().stalled_for is None
    assert len(core.reports("moves_again")) == 1


def test_lag_that_stands_still_is_reported_with_nothing_open() -> None:
    """Lag without progress is reported with nothing open, as behind a transaction that hangs."""
    core = reading(stall_after=AFTER)
    assert checking(core, 200.0, end=7)


def test_idle_indefinitely_is_no_stall_and_new_work_gets_the_whole_time() -> None:
    """Time without work does not count: the first record after hours has the whole limit."""
    core = reading(stall_after=AFTER)
    assert not checking(core, 3_600.0, end=0)
    core.fetch(event("a"))
    assert not checking(core, AFTER - 4.0)
    assert checking(core, 10.0)


def test_one_settlement_within_the_limit_is_no_stall() -> None:
    """One settlement within the limit, with any outcome, prevents a report."""
    core = waiting()
    for _ in range(10):
        core.fetch(UNDECODABLE)
        core.store_letters()
        assert not checking(core, AFTER - 10.0)


@pytest.mark.parametrize("answer", [(401, NO), (429, b""), (503, b"")])
def test_states_with_their_own_report_are_no_stall(answer: tuple[int, bytes]) -> None:
    """A destination that is halted, throttled or unreachable is reported as that and not as a stall."""
    core = waiting()
    core.send_all()
    core.answer(core.take(m.Send), *answer, {"retry-after": "300"})
    begun = core.now
    while core.now < begun + 1_000.0:
        checking(core, 2.0)
        if core.has(m.Send):
            core.answer(core.take(m.Send), *answer, {"retry-after": "300"})
    assert not core.reports("stalled")


def test_a_guard_and_a_stop_are_no_stall() -> None:
    """A tripped guard and a stop are reported on their own and are no stall."""
    core = reading(
        *(event(f"{n}") for n in range(4)),
        *[UNDECODABLE] * 6,
        stall_after=AFTER,
        dead_letter_share=0.5,
        dead_letter_sample=10,
    )
    assert not checking(core, 400.0)
    other = waiting()
    other.feed(m.StopRequested(10_000.0))
    assert not checking(other, 400.0)


def test_brokers_that_do_not_answer_are_no_stall() -> None:
    """They have a report of their own; once they answer, the work has the whole time."""
    core = waiting()
    core.feed(m.BrokersSilent("kafka:9092, connection refused"))
    assert not checking(core, 400.0)
    core.feed(m.BrokersSilent(None))
    assert checking(core, 200.0) == pytest.approx([AFTER], abs=5.0)


def test_a_batch_that_fills_for_long_is_no_stall() -> None:
    """Where calls are so few that a batch fills for longer than work may stand still, only both together are one."""
    core = sending(event("a"), stall_after=40.0, calls_per_minute=2, unreachable_after=1e9)
    reported = checking(core, 400.0)
    assert core.has(m.Send)
    assert reported == pytest.approx([40.0 + 60.0], abs=4.0)
