"""A clock that is wrong: what is heard of it, what is judged by it, and what waits for it."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Chunk, Record
from consumer.engine.survey import describe
from tests.engine.building import ACCOUNT, START, TOPIC, UNIX, Core, accepted, event

FAR = 3_600.0


def core_of(off: float, **policy: Any) -> Core:
    """A core whose wall clock is ahead by so much; it sends at once."""
    core = Core(linger=0.0, **policy)
    core.clock_off = off
    core.assign()
    return core


def true_now(core: Core) -> float:
    """What time it is."""
    return UNIX + core.now - START


def fetch(core: Core, *events: tuple[str, float], stamped: float = 0.0) -> None:
    """Events come in: id, and how far ahead of what time it is they lie. Their records are stamped with that time."""
    offset = core.offsets[0]
    core.offsets[0] += len(events)
    stamp = int((true_now(core) + stamped) * 1000)
    records = [
        Record(offset + n, stamp, None, event(event_id, time=true_now(core) + ahead), ())
        for n, (event_id, ahead) in enumerate(events)
    ]
    core.feed(m.Fetched([Chunk(TOPIC, 0, 1, 7, records)]))


def answer(core: Core, date: str | None = None, **more: float) -> int:
    """The platform answers the oldest call, with what its clock says; how many events that had."""
    send = core.take(m.Send)
    headers = {"date": date or formatdate(true_now(core) + more.get("off", 0.0), usegmt=True)}
    core.answer(send, 200, accepted(send.events), headers)
    core.store_keys()
    return send.events


def heard(core: Core) -> Core:
    """The platform has said what time it is."""
    core.fetch(event("first"))
    core.look_up()
    answer(core)
    return core


def reports(core: Core, name: str) -> list[dict[str, object]]:
    """What was told under this name."""
    return [dict(one.fields) for one in core.log if isinstance(one, m.Report) and one.event == name]


def refused(core: Core) -> list[str]:
    """Codes of the dead letters that are to be written."""
    return [letter.letter.rejection.code for letter in core.pipeline.outcomes.letters]


@pytest.mark.parametrize("off", [-FAR, -400.0, -86_400.0 * 400])
def test_behind_at_the_start_one_goes_ahead_and_the_others_follow(off: float) -> None:
    """All events lie ahead of our clock, and wait. One is sent, by its record's time; its answer tells the others'."""
    core = core_of(off)
    fetch(core, *((f"{n}", 0.0) for n in range(10)))
    assert (core.statistics().clock.early, refused(core)) == (9, [])
    core.look_up()
    assert answer(core) == 1
    assert core.statistics().clock.early == 0
    core.look_up()
    assert answer(core) == 9
    assert core.committable() == 10
    clock = core.statistics().clock
    assert clock.platform == pytest.approx(-off, abs=1.1)
    assert clock.corrected == clock.platform


def test_behind_and_heard_events_are_judged_by_the_platforms_clock() -> None:
    """What happens now is sent at once; what really lies ahead is refused."""
    core = heard(core_of(-FAR))
    fetch(core, ("now", 0.0), ("soon", 299.0), ("ahead", 302.0))
    assert (core.statistics().clock.early, refused(core)) == (0, ["future_event_time"])


def test_ahead_and_heard_nothing_is_too_old() -> None:
    """Our clock says that a week has gone by; the platform says what time it is, and that is what counts."""
    core = heard(core_of(8 * 86_400.0))
    assert core.pipeline.context.now.unix == pytest.approx(true_now(core), abs=1.1)
    assert core.statistics().clock.platform == pytest.approx(-8 * 86_400, abs=1.1)


@pytest.mark.parametrize("off", [-59.0, 0.0, 59.0])
def test_less_than_a_minute_is_nothing(off: float) -> None:
    """Nothing is told, and nothing is corrected."""
    core = heard(core_of(off))
    core.advance(120.0)
    assert core.statistics().clock.corrected == 0
    assert reports(core, "clock_off") == []
    assert core.pipeline.context.now.unix == pytest.approx(true_now(core) + off)


def test_a_record_that_is_wrong_is_refused() -> None:
    """Its event lies ahead of our clock, of its own record's time, and (once that is heard) of the platform's clock."""
    core = core_of(0.0)
    fetch(core, ("a", FAR))
    assert refused(core) == ["future_event_time"]
    core = core_of(-FAR)
    fetch(core, ("a", FAR))
    assert refused(core) == ["future_event_time"], "an hour ahead of its own record"
    core = heard(core_of(0.0))
    fetch(core, ("a", FAR), stamped=FAR)
    assert refused(core) == ["future_event_time"], "a producer's clock is wrong, not ours"


def test_one_producer_ahead_does_not_stop_a_topic() -> None:
    """Until the platform has spoken its events wait; then they are refused, and all others are delivered."""
    core = core_of(0.0)
    fetch(core, ("right", 0.0))
    fetch(core, ("wrong", FAR), stamped=FAR)
    assert core.statistics().clock.early == 1
    core.look_up()
    assert answer(core) == 1
    assert (core.statistics().clock.early, refused(core)) == (0, ["future_event_time"])


def test_what_waits_goes_when_its_time_comes() -> None:
    """The platform cannot be reached; the event is sent when it lies no more than five minutes ahead."""
    core = core_of(0.0)
    fetch(core, ("other", 0.0))
    fetch(core, ("early", 360.0), stamped=360.0)
    core.look_up()
    send = core.take(m.Send)
    core.advance(59.0)
    assert core.statistics().clock.early == 1
    core.advance(1.1)
    assert core.statistics().clock.early == 0
    assert send.events == 1
    assert core.has(m.LookUpKeys)


def test_a_clock_that_is_set_right_heals_at_once() -> None:
    """What waits is judged again, and nothing is corrected any longer."""
    core = core_of(-FAR)
    core.feed(m.Tick())
    fetch(core, *((f"{n}", 0.0) for n in range(3)))
    core.clock_off = 0.0
    core.feed(m.Tick())
    assert core.statistics().clock.early == 0
    core = heard(core_of(-FAR))
    core.clock_off = 0.0
    core.feed(m.Tick())
    assert core.statistics().clock.corrected == 0
    assert core.pipeline.context.now.unix == pytest.approx(true_now(core))


def test_a_clock_that_is_set_wrong_moves_nothing() -> None:
    """What the platform said goes by a clock that nobody sets."""
    core = heard(core_of(0.0))
    core.clock_off = 9 * 86_400.0
    core.feed(m.Tick())
    assert core.pipeline.context.now.unix == pytest.approx(true_now(core), abs=1.1)
    assert reports(core, "clock_jumped") == [{"seconds": 9 * 86_400.0}]


def test_after_the_machine_was_suspended_nothing_is_refused() -> None:
    """The monotonic clock has lost hours: what the platform said then is doubtful, and what lies ahead of it waits."""
    core = heard(core_of(0.0))
    core.clock_off = FAR  # that much went by without a tick
    core.feed(m.Tick())
    fetch(core, *((f"{n}", FAR) for n in range(3)), stamped=FAR)
    assert (core.statistics().clock.early, refused(core)) == (2, [])
    proof = core.take(m.Commit)
    core.feed(m.CommitDone(proof.number, proof.positions, None))
    core.look_up()
    assert answer(core, off=FAR) == 1
    assert (core.statistics().clock.early, core.statistics().clock.corrected) == (0, 0.0)


def test_one_server_that_is_wrong_does_not_count() -> None:
    """Of the last answers the median does."""
    core = core_of(0.0)
    for n, off in enumerate((0.0, 0.0, FAR, 0.0)):
        fetch(core, (f"{n}", 0.0))
        core.look_up()
        answer(core, off=off)
        assert core.statistics().clock.corrected == 0


@pytest.mark.parametrize(
    "date", ["", "yesterday", "Tue, 99 Nov 2023 22:13:22 GMT", "1" * 100, "Tue, 14 Nov 9 22:13:22 +9999"]
)
def test_a_date_that_cannot_be_read_says_nothing(date: str) -> None:
    """Whatever it holds."""
    core = core_of(0.0)
    fetch(core, ("a", 0.0))
    core.look_up()
    answer(core, date=date)
    assert core.statistics().clock.corrected == 0


def test_only_the_platform_s_own_answers_say_what_time_it_is() -> None:
    """A proxy has a clock of its own."""
    core = core_of(0.0)
    fetch(core, ("a", 0.0))
    core.look_up()
    core.answer(core.take(m.Send), 502, b"oops", {"date": formatdate(UNIX - FAR, usegmt=True)})
    assert core.statistics().clock.platform is None


def test_a_slow_answer_leaves_room_for_doubt() -> None:
    """Its Date was written some time between the call and the answer: a difference within that is none."""
    core = core_of(-70.0)
    fetch(core, ("a", 0.0))
    core.look_up()
    date = formatdate(true_now(core), usegmt=True)
    core.now += 25.0
    answer(core, date=date)
    assert core.statistics().clock.platform == pytest.approx(45.0, abs=1.1)


def test_it_is_told_once_a_minute_and_when_it_is_over() -> None:
    """Whose clock says so, and by how much."""
    core = heard(core_of(-FAR))
    for _ in range(90):
        core.now += 1.0
        core.feed(m.Tick())
    told = reports(core, "clock_off")
    assert [one["by"] for one in told] == ["platform", "platform"]
    assert told[0]["behind_seconds"] in (3_599, 3_600)
    core.clock_off = 0.0
    core.now += 1.0
    core.feed(m.Tick())
    assert reports(core, "clock_right") == [{"after_seconds": 90}]
    core = core_of(-FAR)
    fetch(core, ("a", 0.0))
    core.now += 2.0
    core.feed(m.Tick())
    assert reports(core, "clock_off") == [{"by": "records", "behind_seconds": 3600, "certain": 0}]


def test_what_waits_is_bounded_and_dies_with_its_assignment() -> None:
    """It may fill half of the budget, as what waits for its schema may."""
    core = core_of(-FAR, max_open_bytes=20_000)
    core.pipeline.dispatcher.queue(ACCOUNT).gate.close(core.now + 1e6)
    fetch(core, *((f"{n}", 0.0) for n in range(300)))
    assert 9_000 < core.pipeline.early.size <= 10_000
    assert core.pipeline.ledger.open_bytes <= 10_200, "that, and the one that was sent ahead"
    assert core.pipeline.room() == 0
    core.lose(0)
    assert (len(core.pipeline.early), core.pipeline.early.size, core.statistics().held) == (0, 0, 0)


@pytest.mark.parametrize("most", [1_000_000, 50])
def test_a_record_that_waits_again_needs_no_room_again(most: int) -> None:
    """Its record is larger than the budget. The clock was set: it is judged again, waits on, and goes as a pilot."""
    core = core_of(-FAR, max_open_bytes=most)
    core.feed(m.Tick())
    core.clock_off = -FAR - 100.0
    fetch(core, ("large", 0.0))
    assert core.pipeline.admission.deferred == 0
    core.look_up()
    assert answer(core) == 1
    assert core.committable() == 1


def test_a_record_that_waits_for_the_clock_says_so() -> None:
    """On the page, and in /status; the one that was sent ahead says what it waits for itself."""
    core = core_of(-FAR)
    fetch(core, ("pilot", 0.0), ("a", 0.0))
    [(_, _, waits)] = core.pipeline.early._waiting
    engine = core.pipeline
    place = (waits.block, waits.first)
    found = describe(place, core.instant(), engine.policy, engine.dispatcher, engine.outcomes, engine.guard)
    assert (found.offset, found.waits_for.value) == (1, "clock")


@pytest.mark.parametrize("off", [-FAR, FAR, -86_400.0 * 9, 86_400.0 * 9])
def test_one_wrong_answer_alone_is_not_believed(off: float) -> None:
    """It is the first, and neither our clock nor the records bear it out: else all events would be refused by it, and
    no call would be made any more that could put it right."""
    core = core_of(0.0)
    fetch(core, ("first", 0.0))
    core.look_up()
    answer(core, off=off)
    clock = core.statistics().clock
    assert (clock.platform, clock.corrected, core.pipeline.clock.certain) == (None, 0.0, False)
    fetch(core, ("now", 0.0), ("long ago", -86_400.0 * 6))
    assert refused(core) == []
    core.look_up()
    answer(core)
    assert core.pipeline.clock.certain
    assert core.statistics().clock.corrected == 0


def test_after_a_jump_one_wrong_answer_alone_is_not_believed() -> None:
    """What was heard before is doubtful, and so is what only one answer says."""
    core = heard(core_of(0.0))
    core.clock_off = FAR  # the machine was suspended
    core.feed(m.Tick())
    fetch(core, ("a", FAR), stamped=FAR)
    proof = core.take(m.Commit)
    core.feed(m.CommitDone(proof.number, proof.positions, None))
    core.look_up()
    answer(core, off=-FAR)
    assert not core.pipeline.clock.certain


def test_three_answers_are_believed_whatever_other_clocks_say() -> None:
    """Our clock is behind, and the records are old ones, stamped long ago."""
    core = core_of(-FAR)
    for n in range(3):
        assert core.statistics().clock.platform is None
        fetch(core, (f"{n}", -86_400.0), stamped=-86_400.0)
        core.look_up()
        answer(core)
    assert core.statistics().clock.corrected == pytest.approx(FAR, abs=1.1)
    core.advance(3_600.0)
    assert core.statistics().clock.corrected == pytest.approx(FAR, abs=1.1), (
        "and for as long as nothing else is said"
    )


def test_what_needs_no_call_tells_no_time_and_the_next_goes_at_once() -> None:
    """After a crash much is read again that was delivered: all of it is found out at once, and not one a second."""
    core = core_of(0.0)
    fetch(core, *((f"{n}", 0.0) for n in range(20)))
    core.look_up()
    answer(core)
    again = core_of(-FAR)
    again.stored_keys = core.stored_keys
    fetch(again, *((f"{n}", 0.0) for n in range(20)), ("new", 0.0))
    again.look_up()
    assert answer(again) == 1
    assert (again.statistics().clock.early, again.committable()) == (0, 21)
    assert again.now == core.now, "nothing had to wait"
