"""The guard: too many dead letters among the latest records stop intake, and no record is lost."""

from __future__ import annotations

from array import array
from typing import Any

import orjson
import pytest

from consumer.engine import messages as m
from consumer.engine.intake.guard import _Sample
from consumer.engine.model import Filtered, Rejection, SchemaRef, Stage
from tests.engine.building import (
    TOPIC,
    UNDECODABLE,
    Core,
    answer_body,
    event,
    event_ids,
    of_schema,
    reading,
    ref,
    released,
    unconvertible,
)
from tests.engine.decoder import FakeDecoder

OTHER_TOPIC = "app"
SAMPLE = 10
BAD = (UNDECODABLE, unconvertible())


def guarded(**policy: Any) -> Core:
    """Return a core with a guard over ten records, which has a partition and sends each event at once."""
    return reading(**{"dead_letter_share": 0.5, "dead_letter_sample": SAMPLE, "linger": 0.0, **policy})


def good(count: int, prefix: str = "g") -> list[bytes]:
    """Return deliverable values."""
    return [event(f"{prefix}{n}") for n in range(count)]


def bad(count: int) -> list[bytes]:
    """Return values that are dead letters at once, by turns undecodable and unconvertible."""
    return [BAD[n % 2] for n in range(count)]


def rejected(code: str) -> bytes:
    """Return a value that cannot be converted for the reason `code`."""
    return orjson.dumps({"reject": code})


def judge(core: Core, *, refuse: str = "bad") -> None:
    """Answer every call, refuse events whose id begins with `refuse`, and store keys."""
    core.send_all()
    while core.has(m.Send):
        send = core.take(m.Send)
        outcomes = [
            ("failed", "no", None) if one.startswith(refuse) else ("processed", None, None)
            for one in event_ids(send)
        ]
        core.answer(send, 200, answer_body(outcomes))
        core.store_keys()
        core.look_up()
        core.advance(0.0)


def tripped(core: Core) -> tuple[str, int, int] | None:
    """Return topic, number of dead letters and size of the sample from the snapshot; None: not tripped."""
    guard = core.statistics().guard
    return None if guard is None else (guard.topic, guard.rejected, guard.of)


# -- when the guard trips


@pytest.mark.parametrize("transform", ["", "shop.events:clean"])
def test_the_section_of_the_mapping_is_named(transform: str) -> None:
    """The guard names the mapping's section, also for undecodable records and for failures of the user's function."""

    def fed(share: float) -> Core:
        core = guarded(sections=("shop.Order", "shop.Click"), transform=transform, dead_letter_share=share)
        # By offset every second record is a click, and those are bad.
        core.fetch(*(value for one in good(5) for value in (one, one if transform else UNDECODABLE)))
        if transform:
            command = core.take(m.Transform)
            failed = Rejection(Stage.CONVERT, "transform_failed", "raised ValueError")
            given = [(one, failed)[number % 2] for number, one in enumerate(command.events)]
            core.feed(m.Transformed(command.number, given))
        return core

    guard = fed(0.4).statistics().guard
    assert guard is not None
    assert (guard.section, guard.reason) == ("shop.Click", f"{guard.mostly} of shop.Click")
    core = fed(1.0)
    core.store_letters()
    assert core.statistics().counters.by_section == {("shop.Click", "dead_lettered"): 5}
    assert {letter.section for letter in core.statistics().letters} == {"shop.Click"}


@pytest.mark.parametrize(
    ("reason", "cause", "advice"),
    [
        ("malformed", "schema", "correct the schema"),
        ("no_identity", "mapping", "correct the mapping"),
        ("future_event_time", "clock", "compare the producers' clocks"),
        ("expired", "clock", "see whether time_unit is right; if so, raise PINSTREAM_MAX_EVENT_AGE"),
        ("refused", "destination", "why Pinterest refuses"),
    ],
)
def test_the_guard_names_the_cause(reason: str, cause: str, advice: str) -> None:
    """The guard names the cause (schema, mapping, clock or destination) with its own advice: a changed mapping
    makes no event younger and convinces no platform."""
    core = guarded(batch_events=10)
    values = {"malformed": [UNDECODABLE] * 10, "refused": good(10, "bad")}
    core.fetch(*values.get(reason, [rejected(reason)] * 10))
    judge(core)
    guard = core.statistics().guard
    assert guard is not None
    assert (guard.cause.value, guard.mostly.split()[1]) == (cause, reason)
    assert advice in guard.remedy
    [report] = core.reports("dead_letter_guard")
    assert (report.fields["cause"], report.fields["mostly"]) == (cause, guard.mostly)
    assert guard.remedy in str(report.fields["advice"])
    assert ("mapping" in str(report.fields["advice"])) == (cause == "mapping")


def test_the_cause_is_that_of_most_of_them() -> None:
    """The cause is that of most dead letters: three with mapping reasons outweigh two with a platform reason."""
    core = guarded(batch_events=10, dead_letter_share=0.4)
    reasons = ("no_identity", "missing_event_id", "no_identity")
    core.fetch(*map(rejected, reasons), *good(2, "bad"), *good(5))
    judge(core)
    guard = core.statistics().guard
    assert guard is not None
    assert (guard.rejected, guard.cause.value, guard.mostly) == (5, "mapping", "convert no_identity")


def test_a_schema_that_does_not_exist_ends_nothing_behind_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a schema is denied after the guard tripped, its records stay open, also those that would be filtered."""
    final = FakeDecoder.missing

    def missing(self: FakeDecoder, wanted: SchemaRef) -> Rejection | Filtered:
        return Filtered("where") if wanted == ref("2") else final(self, wanted)

    monkeypatch.setattr(FakeDecoder, "missing", missing)
    core = guarded(schema_patience=1.0)
    core.fetch(*(of_schema(f"{n}", "1") for n in range(10)), *(of_schema(f"{n}", "2") for n in range(10, 12)))
    for _ in range(2):
        asked = sorted(core.take(m.FetchSchema).ref for _ in range(2))
        core.advance(10.0)
        for one in asked:
            core.feed(m.SchemaMissing(one))
        core.advance(10.0)
    assert tripped(core) == (TOPIC, 10, 10)
    assert (core.statistics().totals.open, core.statistics().totals.filtered) == (12, 0)


def test_what_is_read_again_does_not_push_out_its_neighbours() -> None:
    """Records that are read again with each assignment count once, and do not push other records out of the sample."""
    sample = _Sample(10, 30)
    for number in sample.add(0, range(9), ())[4:]:
        sample.mark(number, 1)
    for _ in range(8):
        [*_, last] = sample.add(0, range(9, 14), ())
    assert sample.worst(6) is None
    sample.mark(last - 4, 1)
    assert sample.worst(6) is not None
    for _ in range(1_000):
        sample.add(0, range(9, 14), ())
    assert len(sample._marks) <= 16 * 30, "within bounds"


class Marks(bytearray):
    """An array of marks that counts how often all of them are searched."""

    checked = 0

    def translate(self, table: Any, /, delete: bytes = b"") -> bytearray:
        """Count the search; see `bytearray.translate`."""
        self.checked += 1
        return super().translate(table, delete)


def test_a_second_reading_costs_no_more_than_the_first() -> None:
    """A second reading is as cheap as the first: only neighbours of refused records are weighed, and a
    partition that is read in order keeps at most two slices."""
    sample = _Sample(100, 5_000)
    marks = sample._marks = Marks()
    for _ in range(2):
        marks.checked = 0
        for begin in range(0, 4_000, 50):
            numbers = sample.add(0, array("q", range(begin, begin + 50)), ())
            sample.mark(numbers[7], 1)
            assert sample.worst(51) is None
        assert marks.checked <= 3, "only where the neighbours are those of the first reading"
        assert len(sample._slices) <= 2


def test_a_topic_without_news_is_not_weighed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Topics without new verdicts are not weighed: a pattern may match thousands of them, and each input is weighed."""
    core, worst, weighed = guarded(), _Sample.worst, list[_Sample]()

    def seen(sample: _Sample, least: int) -> bytes | None:
        weighed.append(sample)
        return worst(sample, least)

    monkeypatch.setattr(_Sample, "worst", seen)
    core.fetch(*good(SAMPLE))
    judge(core)
    assert weighed == []
    core.fetch(*bad(1))
    core.fetch(*good(1, "h"))
    assert len(weighed) == 1, "the news of an input is weighed once"


def test_without_a_guard_a_topic_may_be_dead_letters_alone() -> None:
    """With a share of 1, the default of a core, a topic of dead letters alone does not trip the guard."""
    core = reading(*bad(100), dead_letter_sample=SAMPLE)
    core.store_letters()
    assert tripped(core) is None
    assert core.statistics().totals.dead_lettered == 100


def test_events_beyond_the_mapping_s_max_age_do_not_trip_it() -> None:
    """After an outage all events may be late, and become dead letters by `[max_age]`: no mapping is wrong."""
    core = guarded()
    core.fetch(*[rejected("late")] * 100)
    core.store_letters()
    assert tripped(core) is None
    assert core.statistics().totals.dead_lettered == 100
    core.fetch(*[rejected("other")] * 100)
    assert tripped(core) is not None


# -- after the guard tripped


def test_a_write_under_way_settles_and_what_it_did_not_take_stays_open() -> None:
    """A write in flight settles the letters that the broker stored; the others are not retried and stay open."""
    core = guarded()
    core.fetch(*bad(4))
    write = core.take(m.StoreDeadLetters)
    core.fetch(*bad(6))
    assert tripped(core)
    core.feed(m.DeadLettersStored(write.number, [True, False, True, False]))
    core.advance(60.0)
    assert (core.statistics().totals.dead_lettered, core.statistics().totals.open) == (2, 8)
    assert not core.has(m.StoreDeadLetters)
    assert core.committable() == 1


def test_later_refusals_are_not_written_either() -> None:
    """An event that is refused after the guard tripped stays open; its follower is sent itself."""
    core = guarded(batch_events=1, concurrency=1)
    core.fetch(event("bad"), event("bad"), *bad(6), *good(2))
    judge(core)
    assert tripped(core)
    core.advance(1.0)
    totals = core.statistics().totals
    assert (totals.delivered, totals.dead_lettered, totals.open) == (2, 0, 8)
    assert sum(isinstance(one, m.Send) for one in core.log) == 4
    assert core.statistics().claims == 0


def test_held_and_deferred_records_are_not_read() -> None:
    """After the guard tripped, held and deferred records are not read, whatever the room."""
    core = guarded(max_open_events=64)
    core.fetch(of_schema("late", "1"))
    core.fetch(*bad(63), *good(5))
    assert core.statistics().held == 5
    assert tripped(core)
    core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "{}"))
    core.advance(10.0)
    assert (core.statistics().held, core.statistics().totals.open) == (5, 64)
    assert not core.has(m.LookUpKeys)


def test_the_guard_is_reported_at_once_and_every_minute() -> None:
    """The log has a line at once and every minute, with topic, share and advice, and without data of records."""
    core = guarded()
    core.fetch(event("secret"), *good(3), *bad(6))
    [report] = core.reports("dead_letter_guard")
    assert (report.level, report.fields["topic"]) == ("error", TOPIC)
    assert (report.fields["share"], report.fields["of"]) == (0.6, 10)
    assert "PINSTREAM_DEAD_LETTER_SHARE" in str(report.fields["advice"])
    assert "secret" not in str(report)
    core.advance(59.0)
    assert len(core.reports("dead_letter_guard")) == 1
    core.advance(301.0)
    assert len(core.reports("dead_letter_guard")) == 7


def test_the_most_frequent_reason_is_reported() -> None:
    """The log names the most frequent reason among the dead letters that trip the guard, not among earlier ones."""
    core = guarded(batch_events=10)
    for _ in range(200):
        core.fetch(UNDECODABLE, *good(9))
        core.store_letters()
    judge(core)
    core.fetch(*[unconvertible()] * 5, UNDECODABLE, *good(4))
    [report] = core.reports("dead_letter_guard")
    assert report.fields["mostly"] == "convert no_identity"


def test_a_revoke_does_not_wait_for_letters_that_are_never_written() -> None:
    """A revoke does not wait for such dead letters either, nor does one that waited when the guard tripped."""
    core = guarded()
    core.assign(1, epoch=2)
    core.fetch(*bad(1))
    core.store_letters(stored=False)
    assert released(core.revoke(0)) is None
    core.fetch(*bad(9), partition=1)
    assert tripped(core)
    assert any(isinstance(one, m.Release) for one in core.log)
    assert released(core.revoke(1, number=7)) == []
