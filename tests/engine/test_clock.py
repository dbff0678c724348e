"""A wrong clock: how the engine learns the time, which events it judges by it, and which events wait for it."""

from __future__ import annotations

from email.utils import formatdate
from typing import Any

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Chunk, Record
from tests.engine.building import NO, START, TOPIC, UNIX, Core, accepted, event

FAR = 3_600.0
DAYS = 3 * 86_400.0


def core_of(off: float, **policy: Any) -> Core:
    """Return a core whose wall clock is `off` seconds ahead; it sends at once."""
    core = Core(**policy)
    core.clock_off = off
    core.assign()
    return core


def true_now(core: Core) -> float:
    """Return the true time."""
    return UNIX + core.now - START


def fetch(core: Core, *events: tuple[str, float], stamped: float = 0.0) -> None:
    """Fetch events, each an id and its seconds ahead of true time; `stamped` is the same for their records."""
    offset = core.offsets[0]
    core.offsets[0] += len(events)
    stamp = int((true_now(core) + stamped) * 1000)
    records = [
        Record(offset + n, stamp, None, event(event_id, time=true_now(core) + ahead), ())
        for n, (event_id, ahead) in enumerate(events)
    ]
    core.feed(m.Fetched([Chunk(TOPIC, 0, 1, 7, records)]))


def answer(core: Core, date: str | None = None, **more: float) -> int:
    """Answer the oldest call with the platform's time in its Date header, and return the number of its events."""
    send = core.take(m.Send)
    headers = {"date": date or formatdate(true_now(core) + more.get("off", 0.0), usegmt=True)}
    core.answer(send, 200, accepted(send.events), headers)
    core.store_keys()
    return send.events


def heard(core: Core) -> Core:
    """Let the platform's first answer say what time it is."""
    core.fetch(event("first"))
    look_up(core)
    answer(core)
    return core


def look_up(core: Core) -> None:
    """Let the key store answer all look-ups, and the broker prove after a jump that the partition is still ours."""
    while core.has(m.Commit):
        core.commit()
    core.look_up()


def reports(core: Core, name: str) -> list[dict[str, object]]:
    """Return the fields of all reports with this event name."""
    return [dict(one.fields) for one in core.log if isinstance(one, m.Report) and one.event == name]


def refused(core: Core) -> list[str]:
    """Return the codes of the dead letters that are to be written."""
    return [letter.letter.rejection.code for letter in core.pipeline.letters]


@pytest.mark.parametrize("off", [-FAR, -400.0, -86_400.0 * 400, 8 * 86_400.0, 400 * 86_400.0])
def test_with_a_wrong_clock_at_the_start_events_wait_until_the_platform_says_what_time_it_is(
    off: float,
) -> None:
    """Events that lie ahead, or look too old, wait; a call without an event asks for the time, and they are sent."""
    core = core_of(off)
    fetch(core, *((f"{n}", 0.0) for n in range(10)))
    assert (core.statistics().clock.future_dated, refused(core)) == (10, [])
    core.report_time()
    assert core.statistics().clock.future_dated == 0
    core.look_up()
    assert answer(core) == 10
    assert (core.committable(), refused(core)) == (10, [])
    clock = core.statistics().clock
    assert clock.platform == pytest.approx(-off, abs=1.1)
    assert clock.corrected == clock.platform


@pytest.mark.parametrize("off", [0.0, 8 * 86_400.0, -FAR])
def test_what_is_really_too_old_is_refused_once_the_time_is_known(off: float) -> None:
    """Events of last month wait at the start; then all of them are refused, and none is sent."""
    core = core_of(off)
    fetch(core, *((f"{n}", -30 * 86_400.0) for n in range(5)), stamped=-30 * 86_400.0)
    for _ in range(1 if off == 0 else 3):  # without a clock that agrees it takes three answers
        assert (core.statistics().clock.future_dated, refused(core)) == (5, [])
        core.report_time()
        core.advance(1.1)
    assert (core.statistics().clock.future_dated, refused(core)) == (0, ["expired"] * 5)
    assert not core.has(m.AskTime)
    fetch(core, ("late", -30 * 86_400.0), ("new", 0.0))
    assert refused(core)[5:] == ["expired"], "at once"
    assert not core.has(m.AskTime)


def test_the_records_confirm_that_events_are_too_old() -> None:
    """While the platform does not answer, records stamped as now tell after a minute what is too old."""
    core = core_of(0.0)
    fetch(core, ("now", 0.0), ("old", -30 * 86_400.0))
    core.look_up()
    for n in range(6):
        assert (core.statistics().clock.future_dated, refused(core)) == (1, [])
        core.now += 10.0
        fetch(core, (f"{n}", 0.0))
    assert (core.statistics().clock.future_dated, refused(core)) == (0, ["expired"])


def test_a_clock_that_jumps_after_the_records_confirmed_it_makes_nothing_too_old() -> None:
    """Without an answer of the platform, what was confirmed goes on with the monotonic clock."""
    core = core_of(0.0)
    for n in range(7):
        fetch(core, (f"{n}", 0.0))
        core.now += 10.0
    core.feed(m.Tick())
    core.clock_off = 8 * 86_400.0
    core.feed(m.Tick())
    fetch(core, ("now", 0.0), ("old", -30 * 86_400.0))
    assert (core.statistics().clock.future_dated, refused(core)) == (1, ["expired"])


def test_where_answers_report_no_time_our_clock_decides_what_is_too_old() -> None:
    """After three answers without a Date nothing better than our clock will come, so nothing waits for it."""
    core = core_of(0.0)
    fetch(core, *((f"{n}", -30 * 86_400.0) for n in range(10)), stamped=-30 * 86_400.0)
    for _ in range(3):
        assert refused(core) == []
        core.report_time(date="-")
        core.advance(1.1)
    assert (core.statistics().clock.future_dated, refused(core)) == (0, ["expired"] * 10)
    # What lies ahead waits for its time, and no call is made for it.
    fetch(core, ("ahead", FAR), stamped=FAR)
    core.advance(60.0)
    assert core.statistics().clock.future_dated == 1
    assert not core.has(m.AskTime)
    core.advance(FAR)
    assert core.statistics().clock.future_dated == 0


@pytest.mark.parametrize(
    ("failed", "reason", "said"),
    [
        (m.Unanswered(0, "tls", {}, "it has expired"), "tls", "it has expired"),
        (
            m.Answered(0, 502, {"date": formatdate(UNIX, usegmt=True)}, b"<html>oops</html>"),
            "http_502",
            "oops",
        ),
        (m.Answered(0, 503, {"date": formatdate(UNIX, usegmt=True)}, NO), "http_503", "no"),
    ],
)
def test_an_outage_makes_no_event_too_old(failed: m.Answered | m.Unanswered, reason: str, said: str) -> None:
    """While the platform is away, events that look too old wait, and it is asked ever more rarely for the time. The log
    has the cause each time."""
    core = core_of(8 * 86_400.0)
    fetch(core, *((f"{n}", 0.0) for n in range(5)))
    asked = 0
    for _ in range(6_000):
        if core.has(m.AskTime):
            core.take(m.AskTime)
            core.feed(m.TimeAsked(failed))
            asked += 1
        core.advance(0.1)
    assert (core.statistics().clock.future_dated, refused(core)) == (5, [])
    assert 20 < asked < 80, "in ten minutes, half a minute apart at most"
    reported = reports(core, "time_not_told")
    assert len(reported) == asked
    assert (reported[0]["reason"], reported[0]["said"]) == (reason, said)


def test_the_time_is_asked_for_by_one_call_at_a_time_and_only_while_events_wait() -> None:
    """One question is under way; none is asked once the events that waited are gone, or the guard has tripped."""
    core = core_of(8 * 86_400.0)
    fetch(core, ("a", 0.0))
    core.advance(60.0)
    assert [type(one) for one in core.waiting].count(m.AskTime) == 1
    core.lose(0)
    core.take(m.AskTime)
    core.feed(m.TimeAsked(m.Unanswered(0, "timeout")))
    core.advance(60.0)
    assert not core.has(m.AskTime)


def test_a_server_that_accepts_no_events_says_what_time_it_is() -> None:
    """A server that takes a batch of no events answers in the platform's form, too."""
    core = core_of(8 * 86_400.0)
    fetch(core, ("a", 0.0))
    core.take(m.AskTime)
    date = {"date": formatdate(true_now(core), usegmt=True)}
    body = b'{"num_events_received":0,"num_events_processed":0,"events":[]}'
    core.feed(m.TimeAsked(m.Answered(0, 200, date, body)))
    assert core.statistics().clock.future_dated == 0


@pytest.mark.parametrize("off", [-59.0, 0.0, 59.0])
def test_less_than_a_minute_is_not_corrected(off: float) -> None:
    """A difference of less than a minute is neither reported nor corrected."""
    core = heard(core_of(off))
    core.advance(120.0)
    assert core.statistics().clock.corrected == 0
    assert reports(core, "clock_off") == []
    assert core.pipeline.context.now.unix == pytest.approx(true_now(core) + off)


def test_an_event_ahead_of_its_record_or_of_known_time_is_refused() -> None:
    """An event is refused that lies ahead of our clock, its record's time and (once known) the platform's time."""
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
    """Events of a producer whose clock is ahead wait for the platform's time, and are refused then."""
    core = core_of(0.0)
    fetch(core, ("right", 0.0))
    fetch(core, ("wrong", FAR), stamped=FAR)
    assert core.statistics().clock.future_dated == 1
    core.look_up()
    assert answer(core) == 1
    assert (core.statistics().clock.future_dated, refused(core)) == (0, ["future_event_time"])


def test_what_waits_goes_when_its_time_comes() -> None:
    """Without an answer of the platform an early event is sent when it lies no more than five minutes ahead."""
    core = core_of(0.0)
    fetch(core, ("other", 0.0))
    fetch(core, ("early", 360.0), stamped=360.0)
    core.look_up()
    send = core.take(m.Send)
    core.advance(59.0)
    assert core.statistics().clock.future_dated == 1
    core.advance(1.1)
    assert core.statistics().clock.future_dated == 0
    assert send.events == 1
    assert core.has(m.LookUpKeys)


def test_a_clock_that_is_set_right_ends_the_correction_at_once() -> None:
    """When our clock is set right, waiting events are judged again at once and the correction ends."""
    core = core_of(-FAR)
    core.feed(m.Tick())
    fetch(core, *((f"{n}", 0.0) for n in range(3)))
    core.clock_off = 0.0
    core.feed(m.Tick())
    assert core.statistics().clock.future_dated == 0
    core = heard(core_of(-FAR))
    core.clock_off = 0.0
    core.feed(m.Tick())
    assert core.statistics().clock.corrected == 0
    assert core.pipeline.context.now.unix == pytest.approx(true_now(core))


def test_a_clock_that_is_set_wrong_does_not_change_the_time() -> None:
    """When our clock is set wrong, the time stays right: the platform's time moves with the monotonic clock."""
    core = heard(core_of(0.0))
    core.clock_off = 9 * 86_400.0
    core.feed(m.Tick())
    assert core.pipeline.context.now.unix == pytest.approx(true_now(core), abs=1.1)
    [reported] = reports(core, "clock_jumped")
    assert reported["seconds"] == 9 * 86_400.0
    assert "stays remembered" in str(reported["means"])
    assert core.statistics().clock.jumps == 1


def test_after_the_machine_was_suspended_nothing_is_refused() -> None:
    """After a suspension the platform's time is uncertain, and events ahead of it wait instead of being refused."""
    core = heard(core_of(0.0))
    core.clock_off = FAR  # `FAR` seconds went by without a tick
    core.feed(m.Tick())
    fetch(core, *((f"{n}", FAR) for n in range(3)), stamped=FAR)
    assert (core.statistics().clock.future_dated, refused(core)) == (3, [])
    core.report_time(FAR)
    look_up(core)
    assert answer(core, off=FAR) == 3
    assert (core.statistics().clock.future_dated, core.statistics().clock.corrected) == (0, 0.0)


@pytest.mark.parametrize("call", ["of events", "for the time"])
def test_an_answer_to_a_call_from_before_a_suspension_does_not_report_the_time(call: str) -> None:
    """It may have waited in the socket for as long, and agrees with the records from before: events would lie ahead."""
    core = heard(core_of(0.0)) if call == "of events" else core_of(0.0)
    core.advance(1.0)
    fetch(core, ("a", 0.0 if call == "of events" else -30 * 86_400.0))
    look_up(core)
    date = {"date": formatdate(true_now(core), usegmt=True)}
    core.now += 0.2
    core.clock_off = FAR  # `FAR` seconds went by without a tick
    if call == "of events":
        send = core.take(m.Send)
        core.answer(send, 200, accepted(send.events), date)
    else:
        core.take(m.AskTime)
        core.feed(m.TimeAsked(m.Answered(0, 400, date, NO)))
    fetch(core, ("b", FAR), stamped=FAR)
    assert not core.pipeline.clock.certain
    assert refused(core) == []


def test_one_answer_with_a_wrong_time_does_not_count() -> None:
    """One answer with a wrong time changes nothing: the median of the last answers counts."""
    core = core_of(0.0)
    for n, off in enumerate((0.0, 0.0, FAR, 0.0)):
        fetch(core, (f"{n}", 0.0))
        core.look_up()
        answer(core, off=off)
        assert core.statistics().clock.corrected == 0


@pytest.mark.parametrize(
    "date", ["", "yesterday", "Tue, 99 Nov 2023 22:13:22 GMT", "1" * 100, "Tue, 14 Nov 9 22:13:22 +9999"]
)
def test_a_date_that_cannot_be_read_is_ignored(date: str) -> None:
    """A Date header that cannot be read is ignored."""
    core = core_of(0.0)
    fetch(core, ("a", 0.0))
    core.look_up()
    answer(core, date=date)
    assert core.statistics().clock.corrected == 0


def test_only_the_platform_s_own_answers_say_what_time_it_is() -> None:
    """An answer that is not the platform's does not tell its time: a proxy has a clock of its own."""
    core = core_of(0.0)
    fetch(core, ("a", 0.0))
    core.look_up()
    core.answer(core.take(m.Send), 502, b"oops", {"date": formatdate(UNIX - FAR, usegmt=True)})
    assert core.statistics().clock.platform is None


def test_a_slow_answer_leaves_room_for_doubt() -> None:
    """Date is written at some moment between call and answer, so a difference within that span does not count."""
    core = core_of(-70.0)
    fetch(core, ("a", 0.0))
    core.look_up()
    date = formatdate(true_now(core), usegmt=True)
    core.now += 25.0
    answer(core, date=date)
    assert core.statistics().clock.platform == pytest.approx(45.0, abs=1.1)


def test_a_wrong_clock_is_reported_once_a_minute_and_when_it_is_right_again() -> None:
    """A wrong clock is reported once a minute, with its source and seconds, and again when it is right again."""
    core = heard(core_of(-FAR))
    for _ in range(90):
        core.now += 1.0
        core.feed(m.Tick())
    reported = reports(core, "clock_off")
    assert [one["by"] for one in reported] == ["platform", "platform"]
    assert reported[0]["behind_seconds"] in (3_599, 3_600)
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
    """Early events fill at most half of the budget, and are dropped with their assignment."""
    core = core_of(-FAR, max_open_bytes=20_000)
    fetch(core, *((f"{n}", 0.0) for n in range(300)))
    assert 9_000 < core.pipeline.untimely.size <= 10_000
    assert core.pipeline.ledger.open_bytes == core.pipeline.untimely.size
    assert core.pipeline.room() == 0
    core.lose(0)
    assert (len(core.pipeline.untimely), core.pipeline.untimely.size, core.statistics().held) == (0, 0, 0)


@pytest.mark.parametrize("maximum", [1_000_000, 50])
def test_a_record_that_waits_again_needs_no_room_again(maximum: int) -> None:
    """An early record still waits after a clock change, even above the budget."""
    core = core_of(-FAR, max_open_bytes=maximum)
    fetch(core, ("large", 0.0))
    core.clock_off = -FAR - 100.0
    core.feed(m.Tick())
    assert (core.pipeline.admission.deferred, core.statistics().clock.future_dated) == (0, 1)
    core.report_time()
    core.look_up()
    assert answer(core) == 1
    assert core.committable() == 1


def test_a_record_that_waits_for_the_clock_says_so() -> None:
    """A record that waits for the clock is described so in /status."""
    core = core_of(-FAR)
    fetch(core, ("a", 0.0))
    found = core.statistics().oldest_open
    assert found is not None
    assert (found.offset, found.waits_for.value) == (0, "clock")


@pytest.mark.parametrize("off", [-FAR, FAR, -86_400.0 * 9, 86_400.0 * 9])
def test_one_wrong_answer_alone_is_not_accepted(off: float) -> None:
    """The first answer's time does not count if neither our clock nor the records agree with it: otherwise
    every event would be refused, and no further call could correct the time."""
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


def test_after_a_jump_one_wrong_answer_alone_is_not_accepted() -> None:
    """After a jump earlier answers are uncertain, and one answer that contradicts the records is not accepted."""
    core = heard(core_of(0.0))
    core.clock_off = FAR  # the machine was suspended
    core.feed(m.Tick())
    fetch(core, ("a", FAR), stamped=FAR)
    core.report_time(-FAR)
    assert not core.pipeline.clock.certain


def test_three_answers_are_accepted_whatever_other_clocks_show() -> None:
    """Three answers that agree are accepted, although our clock is behind and the records carry old times."""
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


# -- the two times of the key store


def forgets(core: Core) -> float:
    """Return how far the time by which keys are out of the window is ahead of the true time."""
    core.feed(m.Tick())
    return core.pipeline.clock.forgotten_at - true_now(core)


def stamps(core: Core) -> float:
    """Return how far the time that is stored with delivered keys is ahead of the true time."""
    return core.pipeline.clock.delivered_at - true_now(core)


@pytest.mark.parametrize("off", [0.0, DAYS, -DAYS])
def test_after_a_start_nothing_is_forgotten_until_the_platform_has_said_what_time_it_is(off: float) -> None:
    """No key is out of the window before our clock is confirmed; then the platform's time counts."""
    core = core_of(off)
    core.feed(m.Tick())
    assert core.pipeline.clock.forgotten_at == 0.0
    assert core.statistics().clock.remembers_longer is None
    heard(core)
    assert forgets(core) == pytest.approx(0.0, abs=1.1)
    assert core.statistics().clock.remembers_longer == pytest.approx(0.0, abs=1.1)
    core.advance(1_000.0)
    assert forgets(core) == pytest.approx(0.0, abs=1.1), "it goes on with the monotonic clock"


def test_without_the_platform_the_records_confirm_the_clock_after_a_minute() -> None:
    """Fetched records stamped as now confirm our clock from the second minute on; old ones never do."""
    core = core_of(0.0)
    for _ in range(7):
        fetch(core, ("old", 0.0), stamped=-86_400.0)
        core.now += 10.0
    assert core.pipeline.clock.forgotten_at == 0.0
    core = core_of(DAYS)
    for _ in range(7):
        fetch(core, ("now", 0.0))
        core.now += 10.0
    assert core.pipeline.clock.forgotten_at == 0.0, "they say that our clock is ahead"
    core = core_of(0.0)
    for _ in range(6):
        fetch(core, ("now", 0.0))
        assert core.pipeline.clock.forgotten_at == 0.0
        core.now += 10.0
    fetch(core, ("now", 0.0))
    assert forgets(core) == pytest.approx(0.0, abs=0.1)


def test_what_records_confirmed_the_platform_corrects() -> None:
    """Producers on this machine have its wrong clock, too: once the platform has said what time it is, that counts."""
    core = core_of(-DAYS)
    for n in range(7):
        fetch(core, (f"{n}", -DAYS), stamped=-DAYS)
        core.now += 10.0
    assert forgets(core) == pytest.approx(-DAYS, abs=0.1)
    for n in range(3):
        fetch(core, (f"later {n}", -DAYS), stamped=-DAYS)
        look_up(core)
        answer(core)
    assert forgets(core) == pytest.approx(0.0, abs=1.1)


@pytest.mark.parametrize("off", [DAYS, -DAYS])
def test_a_jump_of_our_clock_forgets_nothing(off: float) -> None:
    """Whatever our clock does, and for however long, the time of forgetting goes on as the monotonic clock does."""
    core = heard(core_of(0.0))
    for wrong in (off, 0.0, off, 0.0):
        core.clock_off = wrong
        assert forgets(core) == pytest.approx(0.0, abs=1.1)
        assert stamps(core) == pytest.approx(0.0, abs=1.1)
        core.advance(15.0)
        assert forgets(core) == pytest.approx(0.0, abs=1.1)
    assert core.statistics().clock.jumps == 4
    assert len(reports(core, "clock_jumped")) == 4


def test_a_jump_of_all_clocks_together_forgets_nothing() -> None:
    """Our clock, the records and the platform's answers jump together, as where all of them are on one machine: the
    time of forgetting still grows by no more than the monotonic clock."""
    core = heard(core_of(0.0))
    core.clock_off = DAYS
    for n in range(6):
        core.now += 1.0
        fetch(core, (f"{n}", DAYS), stamped=DAYS)
        if core.has(m.AskTime):
            core.report_time(DAYS)
        look_up(core)
        answer(core, off=DAYS)
    assert core.pipeline.context.now.unix == pytest.approx(true_now(core) + DAYS, abs=1.1)
    assert forgets(core) == pytest.approx(0.0, abs=1.1)
    assert core.statistics().clock.remembers_longer == pytest.approx(DAYS, abs=2.2)
    core.clock_off = 0.0
    assert forgets(core) == pytest.approx(0.0, abs=1.1)


def test_a_first_answer_that_proves_nothing_makes_no_key_check_old() -> None:
    """Our clock is three days behind, and the records are old: the first answers do not count as the time yet, but
    delivered keys are stored under the latest time that any clock shows."""
    core = core_of(-DAYS)
    for n in range(2):
        fetch(core, (f"{n}", -86_400.0 * 5), stamped=-86_400.0 * 5)
        core.look_up()
        answer(core)
        assert not core.pipeline.clock.certain
        assert stamps(core) == pytest.approx(0.0, abs=1.1)
        assert core.pipeline.clock.forgotten_at == 0.0
    core.clock_off = 0.0
    core.feed(m.Tick())
    assert core.pipeline.clock.forgotten_at == 0.0
    assert forgets(heard(core)) == pytest.approx(0.0, abs=1.1)


def test_without_any_answer_the_records_say_when_events_were_delivered() -> None:
    """Where answers carry no date, delivered keys are stored under the records' time if that is later than ours."""
    core = core_of(-DAYS)
    fetch(core, ("a", 0.0))
    assert stamps(core) == pytest.approx(0.0, abs=0.1)
    core = core_of(0.0)
    fetch(core, ("a", 0.0), stamped=-DAYS)
    assert stamps(core) == pytest.approx(0.0, abs=0.1)
