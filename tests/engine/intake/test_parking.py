"""Parking: records wait for their schema, and each schema that records wait for is asked for once at a time."""

from __future__ import annotations

import pytest

from consumer.engine.context import Context
from consumer.engine.figures.outside import SchemaWait
from consumer.engine.figures.statistics import MAX_SCHEMAS
from consumer.engine.intake.parking import BURST, MAX_ABSENT, Parking
from consumer.engine.messages import SchemaFound, SchemaUnavailable
from consumer.engine.model import Backoff, Instant, Policy, SchemaRef, TopicPartition
from consumer.engine.records.block import Block
from consumer.engine.records.runs import Run
from tests.engine.building import TOPIC, Books, chunk, ref
from tests.engine.decoder import FakeDecoder

BACKOFF = Backoff(base=1.0, cap=8.0)
POLICY = Policy()
RATE = POLICY.registry_calls_per_second


def patient(backoff: Backoff, patience: float = 300.0) -> Parking:
    """Return a parking with this backoff and patience, in which each delay is the longest possible."""
    context = Context(Policy(inner_backoff=backoff, schema_patience=patience), 0)
    context.jitter = lambda: 1.0
    return Parking(context, FakeDecoder())


def found(parking: Parking, wanted: str) -> list[Run]:
    """Answer that the registry has this schema; return the records that go on."""
    return parking.found(SchemaFound(ref(wanted), "{}"))


def unanswered(parking: Parking, wanted: SchemaRef, now: float) -> None:
    """Let the registry fail to answer at the time `now`."""
    parking._context.now = Instant(now, now)
    parking.unavailable(SchemaUnavailable(wanted, "timeout"))


def missing(parking: Parking, wanted: SchemaRef, now: float) -> list[int]:
    """Let the registry deny the schema at the time `now`; return the records for which that is final."""
    parking._context.now = Instant(now, now)
    return [row.first for row, _ in parking.missing(wanted)]


@pytest.fixture
def ledger() -> Books:
    """Return a ledger with one assignment."""
    ledger = Books()
    ledger.begin(TopicPartition(TOPIC, 0), 1, 0, False)
    return ledger


def span_of(ledger: Books, count: int = 3) -> Block:
    """Return a block of the assignment."""
    state = ledger.get(TopicPartition(TOPIC, 0))
    assert state is not None
    return ledger.enter(state, chunk([b"x"] * count, offset=state.last_seen + 1))


def row(block: Block, index: int) -> Run:
    """Return one of the block's records."""
    return Run(block, index, index + 1)


def test_a_schema_is_asked_for_once(ledger: Books) -> None:
    """A schema is asked for once for all records that need it; while it is asked for, nothing is due."""
    parking, block = patient(BACKOFF), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    parking.park(ref("1"), row(block, 1), 0.0)
    parking.park(ref("2"), row(block, 2), 0.0)
    assert list(parking.ask(0.0)) == [ref("1"), ref("2")]
    assert list(parking.ask(0.0)) == []
    assert parking.due() is None
    assert len(parking) == 3


def test_a_verdict_gives_the_records_in_order(ledger: Books) -> None:
    """A verdict returns all records that waited for that schema, in order, and no others."""
    parking, block = patient(BACKOFF), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    parking.park(ref("2"), row(block, 1), 0.0)
    parking.park(ref("1"), row(block, 2), 0.0)
    assert found(parking, "1") == [row(block, 0), row(block, 2)]
    assert found(parking, "1") == []
    assert len(parking) == 1


def test_without_an_answer_the_schema_is_asked_for_again(ledger: Books) -> None:
    """Without an answer the schema is asked for again, after a backoff that grows to its cap, without end."""
    parking, block = patient(BACKOFF), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    now, delays = 0.0, []
    for _ in range(5):
        assert list(parking.ask(now)) == [ref("1")]
        unanswered(parking, ref("1"), now)
        parking.park(ref("1"), row(block, 1), now)
        due = parking.due()
        assert due is not None
        assert list(parking.ask(due - 0.01)) == []
        delays.append(due - now)
        now = due
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_records_that_are_no_longer_ours_are_forgotten(ledger: Books) -> None:
    """When all records that need a schema are dropped, the schema is not asked for."""
    parking, block = patient(BACKOFF), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    ledger.drop(TopicPartition(TOPIC, 0))
    parking.purge()
    assert len(parking) == 0
    assert parking.due() is None


def test_a_schema_without_waiting_records_is_not_asked_for_again(ledger: Books) -> None:
    """When the records went while the registry was asked, a failure to answer causes no further question."""
    parking, block = patient(BACKOFF), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    list(parking.ask(0.0))
    ledger.drop(TopicPartition(TOPIC, 0))
    parking.purge()
    unanswered(parking, ref("1"), 0.0)
    assert parking.due() is None


def test_an_answer_without_waiting_records_is_ignored() -> None:
    """An answer for which no record waits raises no error: records may go while the registry is asked."""
    parking = patient(BACKOFF)
    unanswered(parking, ref("1"), 0.0)
    assert found(parking, "1") == []


# -- schemas that the registry denies


def denied(parking: Parking, now: float, wanted: str = "1") -> list[int]:
    """Ask the registry, which is due, and let it deny the schema; return the records for which that is final."""
    assert list(parking.ask(now)) == [ref(wanted)]
    return missing(parking, ref(wanted), now)


def test_a_denial_is_final_once_a_record_waited_for_patience(ledger: Books) -> None:
    """A denied schema is asked for again with the usual backoff until a record has waited for `patience`."""
    parking, block = patient(BACKOFF, 60.0), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 100.0)
    asked, now, final = [], 100.0, list[int]()
    while not final:
        asked.append(now)
        final = denied(parking, now)
        due = parking.due()
        now = now if due is None else due
    assert [at - 100 for at in asked] == [0, 1, 3, 7, 15, 23, 31, 39, 47, 55, 63]
    assert final == [0]
    assert (len(parking), parking.size, parking.due()) == (0, 0, None)


def test_each_record_has_patience_of_its_own(ledger: Books) -> None:
    """Each record has its own patience: an older record does not end the wait of a later one."""
    parking, block = patient(Backoff(10.0, 10.0), 60.0), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    for now in range(0, 60, 10):
        if now == 30:
            parking.park(ref("1"), row(block, 1), 30.0)
        assert denied(parking, now) == []
    assert denied(parking, 60.0) == [0]
    assert denied(parking, 70.0) == denied(parking, 80.0) == []
    assert [parked.first for parked in found(parking, "1")] == [1]


def test_time_without_an_answer_does_not_count_towards_patience(ledger: Books) -> None:
    """Time in which the registry did not answer does not count towards patience."""
    parking, block = patient(Backoff(10.0, 10.0), 60.0), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    assert denied(parking, 0.0) == denied(parking, 50.0) == []
    for now in (60.0, 3600.0):
        assert list(parking.ask(now)) == [ref("1")]
        unanswered(parking, ref("1"), now)
    assert denied(parking, 3610.0) == []
    assert denied(parking, 3620.0) == [0]


def test_patience_may_be_endless(ledger: Books) -> None:
    """With a patience of 0 a record waits for its schema indefinitely."""
    parking, block = patient(Backoff(10.0, 10.0), 0), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    assert denied(parking, 0.0) == denied(parking, 1e9) == []


def test_a_record_of_an_absent_schema_waits_for_one_answer(ledger: Books) -> None:
    """A later record of an absent schema waits for one answer to a question asked after it came, under the backoff."""
    parking, block = patient(Backoff(10.0, 10.0), 20.0), span_of(ledger, 5)
    parking.park(ref("1"), row(block, 0), 0.0)
    assert (denied(parking, 0.0), denied(parking, 20.0)) == ([], [0])
    parking.park(ref("1"), row(block, 1), 21.0)
    assert parking.due() == 30.0
    assert list(parking.ask(30.0)) == [ref("1")]
    parking.park(ref("1"), row(block, 2), 30.5)
    assert missing(parking, ref("1"), 31.0) == [1]
    assert denied(parking, 41.0) == [2]
    parking.park(ref("1"), row(block, 3), 42.0)
    assert list(parking.ask(51.0)) == [ref("1")]
    assert [place for _, place, _ in found(parking, "1")] == [3]


def test_an_absence_without_recent_denial_is_forgotten(ledger: Books) -> None:
    """When an absent schema was not asked for in a long time, a new record has the full patience again."""
    parking, block = patient(Backoff(10.0, 10.0), 20.0), span_of(ledger)
    parking.park(ref("1"), row(block, 0), 0.0)
    assert (denied(parking, 0.0), denied(parking, 20.0)) == ([], [0])
    parking.park(ref("1"), row(block, 1), 3600.0)
    assert denied(parking, 3600.0) == denied(parking, 3610.0) == []
    assert denied(parking, 3620.0) == [1]


def test_denials_before_an_outage_do_not_shorten_patience_after_it(
    ledger: Books,
) -> None:
    """Denials before an outage do not shorten the patience of records that come after it: the schema may be new."""
    parking, block = patient(Backoff(10.0, 10.0), 20.0), span_of(ledger, 4)
    parking.park(ref("1"), row(block, 0), 0.0)
    assert (denied(parking, 0.0), denied(parking, 20.0)) == ([], [0])
    parking.park(ref("1"), row(block, 1), 21.0)
    for now in (30.0, 3600.0):
        assert list(parking.ask(now)) == [ref("1")]
        unanswered(parking, ref("1"), now)
    parking.park(ref("1"), row(block, 2), 3605.0)
    assert denied(parking, 3610.0) == [1], "it came while the schema was known to be absent"
    parking.park(ref("1"), row(block, 3), 3615.0)
    assert denied(parking, 3620.0) == []
    assert denied(parking, 3630.0) == [2]
    assert denied(parking, 3640.0) == [3]


def test_absent_schemas_are_remembered_in_bounds(ledger: Books) -> None:
    """The number of absent schemas that are remembered is bounded, so made-up ids fill no memory."""
    parking, block = patient(Backoff(0.1, 0.1), 1.0), span_of(ledger, 3000)
    for number in range(3000):
        now = number * 10.0
        parking.park(ref(str(number)), row(block, number), now)
        assert denied(parking, now, str(number)) == []
        assert denied(parking, now + 5, str(number)) == [number]
    assert len(parking._absent) == MAX_ABSENT
    assert (parking._wanted, len(parking._new), parking._again) == ({}, 0, [])


# -- questions


def test_questions_are_bounded_at_once_and_by_the_second(ledger: Books) -> None:
    """Questions are bounded: a burst after a pause, then an even rate, and at most `registry_concurrency` at once."""
    parking, block = patient(Backoff(1.0, 10.0)), span_of(ledger, 1000)
    for number in range(1000):
        parking.park(ref(str(number)), row(block, number), 0.0)
    first = list(parking.ask(0.0))
    assert len(first) == POLICY.registry_concurrency
    assert parking.due() is None
    now, answered = 0.0, POLICY.registry_concurrency
    for asked in first:
        unanswered(parking, asked, now)
    while answered < 500:
        due = parking.due()
        assert due is not None
        now = max(now, due)
        for asked in parking.ask(now):
            answered += 1
            unanswered(parking, asked, now)
        assert answered <= (BURST + now) * RATE + 1
    assert now == pytest.approx(500 / RATE - BURST, abs=0.5)


def test_a_flood_of_made_up_schemas_holds_up_no_other(ledger: Books) -> None:
    """A flood of made-up schemas delays neither an earlier schema, nor the flood's first, nor its last."""
    parking, block = patient(BACKOFF), span_of(ledger, 1000)
    parking.park(ref("before"), row(block, 0), 0.0)
    assert list(parking.ask(0.0)) == [ref("before")]
    unanswered(parking, ref("before"), 0.0)
    for number in range(1, 1000):
        parking.park(ref(str(number)), row(block, number), 0.0)
    assert {ref("before"), ref("1"), ref("999")} < set(parking.ask(1.0))


def test_what_is_waited_for_is_named_in_bounds(ledger: Books) -> None:
    """Schemas waited for are listed in bounds, the longest wait first, with the seconds since the first denial."""
    parking, block = patient(BACKOFF), span_of(ledger, 30)
    for number in range(30):
        parking.park(ref(str(number)), row(block, number), float(number))
    waits = parking.waits(40.0)
    assert len(waits) == MAX_SCHEMAS
    assert waits[0] == SchemaWait("id", "0", 1, 40.0, None)
    asked = next(parking.ask(40.0))
    missing(parking, asked, 40.0)
    assert parking.waits(45.0)[0] == SchemaWait("id", "0", 1, 45.0, 5.0)
