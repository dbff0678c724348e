"""What a redrive decides, on a Kafka of lists and on virtual time: which letters go back, when, and what stays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from consumer.adapters.kafka.letters import Filters, OriginFilter, mark_headers
from consumer.commands.dead_letters import redrive as module
from consumer.commands.dead_letters.choosing import RedriveOptions
from consumer.commands.dead_letters.outcome import LATE, End, Outcome, Tally, tell
from consumer.commands.dead_letters.redrive import Redrive
from consumer.commands.dead_letters.topics import DeadLetterTopic
from consumer.engine.model import Stage
from consumer.errors import KafkaError
from tests.commands.dead_letters.fakes import AT, Topics, Transactions, home, runs_in
from tests.service.virtual_time import now, run

DEAD = "orders.dead-letters"
ORDERS = DeadLetterTopic(DEAD, frozenset({"orders"}), True)


def options(**changes: Any) -> RedriveOptions:
    """All letters, at once."""
    given: dict[str, Any] = {
        "topics": (),
        "filters": Filters(),
        "most": None,
        "rate": None,
        "max_trips": 3,
        "dry_run": False,
        "as_json": False,
        **changes,
    }
    return RedriveOptions(**given)


def topics(letters: int = 10, partitions: int = 1) -> Topics:
    """An empty topic ``orders`` and so many letters of it, in turns over the partitions."""
    found = Topics(orders=partitions)
    found.partitions[DEAD] = partitions
    for number in range(letters):
        found.bury(number, partition=number % partitions)
    return found


def redriven(
    where: Topics,
    *,
    writer: Transactions | None = None,
    which: tuple[DeadLetterTopic, ...] = (ORDERS,),
    known: dict[str, int] | None = None,
    stop: Callable[[asyncio.Event], None] = lambda stopped: None,
    **changes: Any,
) -> Outcome:
    """Run one redrive to its end."""

    async def main() -> Outcome:
        stopped = asyncio.Event()
        stop(stopped)
        transactions = writer or Transactions(where)
        one = Redrive(options(**changes), where, transactions.make, known or where.partitions, stopped)
        await one.run(which)
        return one.outcome

    return run(main())


def tally(outcome: Outcome) -> Tally:
    """The one dead-letter topic's."""
    [found] = outcome.tallies
    return found


def values(*numbers: int) -> list[bytes | None]:
    """What these letters hold."""
    return [b"v%d" % number for number in numbers]


def test_letters_go_back_whole_and_are_marked() -> None:
    """Key, value and own headers; the same partition; which trip it is and which letter; then the mark."""
    where = Topics(orders=2)
    where.partitions[DEAD] = 2
    where.bury(5, partition=1, headers=(("own", b"1"), ("own", None)))
    writer = Transactions(where)
    outcome = redriven(where, writer=writer)
    [back] = where.logs["orders", 1]
    assert (back.key, back.value) == (b"k5", b"v5")
    assert back.headers == (
        ("own", b"1"),
        ("own", None),
        ("pinstream.trips", b"1"),
        ("pinstream.redriven", b"orders.dead-letters:1:0"),
    )
    mark = where.logs[DEAD, 1][1]
    assert runs_in(mark, DEAD, 1) == [(0, 1)]
    assert mark.key
    assert mark.value
    counts = dict.fromkeys(("looped", "gone", "refused", "done_before", "left", "foreign", "elsewhere"), 0)
    counts |= {"matched": 1, "redriven": 1}
    assert outcome.document() == counts | {
        "result": "complete",
        "dry_run": False,
        "through_pipeline": False,
        "ledger": None,
        "topics": [{"topic": DEAD} | counts],
        "no_dead_letters": [],
        "notes": [],
    }
    assert (writer.names, writer.closed) == ([DEAD], 1)


def test_the_second_time_there_is_nothing_to_do() -> None:
    """All marked: found to be done, and nothing is written, not even a mark."""
    where = topics(10, partitions=3)
    redriven(where)
    before = {key: list(log) for key, log in where.logs.items()}
    assert tally(redriven(where)) == Tally(DEAD, matched=10, done_before=10)
    assert {key: list(log) for key, log in where.logs.items()} == before


def test_order_is_by_partition_and_offset() -> None:
    """Over the lots too."""
    where = topics(12, partitions=3)
    writer = Transactions(where)
    redriven(where, writer=writer)
    sent = [one.value for lot in writer.lots for one in lot if one.topic == "orders"]
    assert sent == values(*range(0, 12, 3), *range(1, 12, 3), *range(2, 12, 3))


def test_a_lot_has_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """So many letters, or so many bytes, in one transaction; a larger letter has one to itself."""
    monkeypatch.setattr(module, "LOT_LETTERS", 4)
    where = topics(10)
    writer = Transactions(where)
    redriven(where, writer=writer)
    assert [len(lot) - 1 for lot in writer.lots] == [4, 4, 2]
    monkeypatch.setattr(module, "LOT_BYTES", 3)
    where = topics(3)
    writer = Transactions(where)
    redriven(where, writer=writer)
    assert [len(lot) - 1 for lot in writer.lots] == [1, 1, 1]


FILTERS = {
    "stage": (Filters(stages=frozenset({Stage.DECODE})), [1]),
    "code": (Filters(codes=frozenset({"expired"})), [2]),
    "since": (Filters(since_ms=AT + 2000), [2, 3]),
    "until": (Filters(until_ms=AT + 2000), [0, 1]),
    "origin": (Filters(origins=(OriginFilter("orders", 0, 3),)), [3]),
    "none that match": (Filters(codes=frozenset({"other"})), []),
}


@pytest.mark.parametrize("name", FILTERS)
def test_filters_choose(name: str) -> None:
    """What does not match stays, unmarked, and goes the next time."""
    filters, expected = FILTERS[name]
    where = topics(1)
    where.bury(1, stage=Stage.DECODE)
    where.bury(2, code="expired")
    where.bury(3)
    found = tally(redriven(where, filters=filters))
    assert where.values("orders") == values(*expected)
    assert (found.matched, found.redriven, found.left) == (len(expected), len(expected), 0)
    assert tally(redriven(where)).redriven == 4 - len(expected)
    assert sorted(filter(None, where.values("orders"))) == values(0, 1, 2, 3)


def test_max_is_never_exceeded_and_the_rest_goes_later() -> None:
    """Over partitions and topics; what is left is counted."""
    where = topics(7, partitions=2)
    where.partitions |= {"other": 1, "other.dead-letters": 1}
    for number in range(3):
        where.bury(100 + number, origin="other")
    both = (ORDERS, DeadLetterTopic("other.dead-letters", frozenset({"other"}), True))
    first = redriven(where, which=both, most=5)
    assert [(one.redriven, one.left) for one in first.tallies] == [(5, 2), (0, 3)]
    second = redriven(where, which=both, most=4)
    assert [(one.done_before, one.redriven, one.left) for one in second.tallies] == [(5, 2, 0), (0, 2, 1)]
    assert where.values("other") == values(100, 101)


def test_what_was_put_back_too_often_stays() -> None:
    """The guard: by the count in its header, whatever it died of last. One that cannot be read is too often."""
    where = topics(0)
    unreadable = (b"junk", b"", None, b"\xff", b"%d" % 2**63, b"9" * 40)
    for number, trips in enumerate((b"2", b"3", b"4", *unreadable)):
        where.bury(number, headers=(("pinstream.trips", trips),))
    found = tally(redriven(where))
    assert (found.redriven, found.looped, found.left) == (1, 8, 0)
    assert where.values("orders") == values(0)
    counts = [dict(one.headers)["pinstream.trips"] for one in where.logs["orders", 0]]
    assert counts == [b"3"]
    assert tally(redriven(where, max_trips=4)).redriven == 1


@pytest.mark.parametrize("rate", [1.0, 7.0, 100.0, 0.25])
def test_no_more_a_second_than_asked_for(rate: float) -> None:
    """In any stretch of time: so many, and one lot of a second more; and hardly slower either."""
    where = topics(40)
    times: list[tuple[float, int]] = []
    writer = Transactions(where)
    writer.before = lambda lot: times.append((now(), 0))
    redriven(where, writer=writer, rate=rate)
    sizes = [len(lot) - 1 for lot in writer.lots]
    begun = times[0][0]
    gone = 0
    for (at, _), size in zip(times, sizes, strict=True):
        assert at - begun >= gone / rate - 1e-9
        gone += size
    assert max(sizes) <= max(1, rate)
    assert times[-1][0] - begun <= 40 / rate


def test_a_topic_that_is_gone_keeps_its_letters() -> None:
    """Counted, one line for all of them; nothing is created, nothing marked."""
    where = topics(5)
    outcome = redriven(where, known={DEAD: 1})
    assert tally(outcome) == Tally(DEAD, matched=5, gone=5)
    assert len(outcome.notes) == 1
    assert "orders is not there any more" in outcome.notes[0]
    assert len(where.logs[DEAD, 0]) == 5


def test_a_partition_that_is_gone_leaves_it_to_the_key() -> None:
    """The topic was made anew with fewer."""
    where = topics(0, partitions=1)
    where.partitions[DEAD] = 4
    where.bury(1, partition=3)
    writer = Transactions(where)
    redriven(where, writer=writer)
    assert writer.lots[0][0].partition is None


def whole(where: Topics, number: int, headers: Any = ()) -> None:
    """The record of a letter, still at its origin."""
    where.append("orders", 0, b"k%d" % number, b"v%d" % number, headers)


def test_what_was_too_large_for_its_letter_is_fetched() -> None:
    """From its origin, all of it; the trips are those of the letter."""
    where = topics(0)
    own = (("h", b"1"), ("pinstream.trips", b"1"), ("pinstream.redriven", b"x:0:0"))
    whole(where, 0, own)
    where.bury(0, headers=own, left_out=("value", "headers", "key"))
    assert tally(redriven(where)) == Tally(DEAD, matched=1, redriven=1)
    back = where.logs["orders", 0][1]
    assert (back.key, back.value) == (b"k0", b"v0")
    assert back.headers[:2] == (("h", b"1"), ("pinstream.trips", b"2"))


@pytest.mark.parametrize("there", ["nothing", "another"])
def test_what_cannot_be_fetched_any_more_is_named(there: str) -> None:
    """Retention took it, or the topic was made anew: the letter stays."""
    where = topics(0)
    if there == "another":
        where.append("orders", 0, b"k0", b"v0", timestamp=AT + 1)
    where.bury(0, left_out=("value",))
    where.bury(1)
    outcome = redriven(where)
    assert tally(outcome) == Tally(DEAD, matched=2, redriven=1, gone=1)
    assert "orders.dead-letters:0:0 stays" in outcome.notes[0]
    assert tally(redriven(where)) == Tally(DEAD, matched=2, gone=1, done_before=1)


def test_notes_do_not_flood() -> None:
    """Ten are named, of the rest how many."""
    where = topics(0)
    for number in range(25):
        where.bury(number, left_out=("value",))
    outcome = redriven(where)
    assert (len(outcome.notes), outcome.unnamed) == (10, 15)


def test_what_the_topic_refuses_now_stays_and_the_rest_goes() -> None:
    """One after the other is named; the mark does not tell of it."""
    where = topics(6)
    writer = Transactions(where)
    writer.refuses = lambda record: record.value in (b"v2", b"v5")
    outcome = redriven(where, writer=writer)
    assert tally(outcome) == Tally(DEAD, matched=6, redriven=4, refused=2)
    assert where.values("orders") == values(0, 1, 3, 4)
    assert runs_in(where.logs[DEAD, 0][6], DEAD) == [(0, 2), (3, 5)]
    assert [note.split(" stays")[0] for note in outcome.notes] == [f"{DEAD}:0:{at}" for at in (2, 5)]
    writer.refuses = lambda record: False
    assert tally(redriven(where, writer=writer)).redriven == 2


def test_a_topic_that_takes_no_mark_ends_it() -> None:
    """Without a mark no copy: an error that says what to change."""
    where = topics(2)
    writer = Transactions(where)
    writer.refuses = lambda record: record.topic == DEAD
    with pytest.raises(KafkaError, match=r"max\.message\.bytes"):
        redriven(where, writer=writer)
    assert where.values("orders") == []
    assert writer.closed == 1


def test_records_that_are_not_ours_stay() -> None:
    """Junk, letters of other topics, letters carried in from elsewhere: counted, and not touched."""
    where = topics(2)
    where.append(DEAD, 0, b"k", b"junk")
    where.bury(7, origin="foreign", on=DEAD)
    where.append(DEAD, 0, None, b"v", (("pinstream.done", b"9-99"),))
    where.bury(3)
    found = tally(redriven(where))
    assert found == Tally(DEAD, matched=3, redriven=3, foreign=3)
    assert where.values("orders") == values(0, 1, 3)
    assert runs_in(where.logs[DEAD, 0][-1], DEAD) == [(0, 2), (5, 6)]


def test_marks_of_another_cluster_are_not_believed() -> None:
    """A mirror closed its offsets up: what they say is of other letters. They are counted."""
    where = topics(3)
    for one in (
        home(DEAD)._replace(cluster="there"),
        home(DEAD, 1),
        home("another"),
    ):
        where.append(DEAD, 0, b"k", b"v", mark_headers([(0, 3)], one))
    where.append(DEAD, 0, b"k", b"v", mark_headers([(0, 99)], home(DEAD)._replace(cluster="there")))
    where.append(DEAD, 0, b"k", b"v", mark_headers([(1, 2)], home(DEAD)))
    found = tally(redriven(where))
    assert found == Tally(DEAD, matched=3, redriven=2, done_before=1, elsewhere=4)
    assert where.values("orders") == values(0, 2)


@pytest.mark.parametrize("origin", ["__consumer_offsets", "__transaction_state", "dlq"])
def test_what_can_go_nowhere_holds_up_nothing(origin: str) -> None:
    """One dead-letter topic for all: a letter of Kafka's own topics, or of that topic itself, stays by itself."""
    where = Topics(orders=1, dlq=1)
    where.partitions[origin] = 1
    where.bury(0, on="dlq")
    where.bury(1, origin=origin, on="dlq")
    where.bury(2, on="dlq")
    outcome = redriven(where, which=(DeadLetterTopic("dlq", None, True),))
    assert tally(outcome) == Tally("dlq", matched=3, redriven=2, gone=1)
    assert where.values("orders") == values(0, 2)
    assert len(outcome.notes) == 1
    assert origin in outcome.notes[0]


def test_one_topic_for_all() -> None:
    """Without a restriction any origin's letters go back."""
    where = Topics(a=1, b=1, letters=1)
    where.bury(0, origin="a", on="letters")
    where.bury(1, origin="b", on="letters")
    redriven(where, which=(DeadLetterTopic("letters", None, True),))
    assert (where.values("a"), where.values("b")) == (values(0), values(1))


def test_what_comes_meanwhile_is_not_touched() -> None:
    """Even a letter that this redrive itself brings about."""
    where = topics(4)
    writer = Transactions(where)
    writer.after = lambda lot: void(where.bury(90 + lot))
    assert tally(redriven(where, writer=writer)) == Tally(DEAD, matched=4, redriven=4)
    assert where.values("orders") == values(0, 1, 2, 3)


def void(_: object) -> None:
    """Nothing."""


def test_topics_that_are_not_there_are_no_error() -> None:
    """No dead letter so far."""
    where = topics(1)
    none = DeadLetterTopic("none.dead-letters", frozenset({"none"}), False)
    outcome = redriven(where, which=(none, ORDERS))
    assert outcome.missing == ["none.dead-letters"]
    assert tally(outcome).redriven == 1


def test_interrupted_the_lot_under_way_is_finished(monkeypatch: pytest.MonkeyPatch) -> None:
    """No further lot begins; what is left is counted, and goes the next time."""
    monkeypatch.setattr(module, "LOT_LETTERS", 4)
    where = topics(10)
    writer = Transactions(where)
    events: list[asyncio.Event] = []
    writer.before = lambda lot: events[0].set() if lot == 1 else None
    outcome = redriven(where, writer=writer, stop=events.append)
    assert outcome.end is End.INTERRUPTED
    assert tally(outcome) == Tally(DEAD, matched=10, redriven=8)
    assert tally(outcome).left == 2
    assert tally(redriven(where)) == Tally(DEAD, matched=10, redriven=2, done_before=8)
    assert where.values("orders") == values(*range(10))


def test_a_signal_at_the_very_end_interrupts_nothing() -> None:
    """All is back: exit code 0."""
    where = topics(10)
    writer = Transactions(where)
    events: list[asyncio.Event] = []
    writer.after = lambda lot: events[0].set()
    outcome = redriven(where, writer=writer, stop=events.append)
    assert (outcome.end, tally(outcome).left) == (End.COMPLETE, 0)


def test_interrupted_while_it_waits_for_its_rate() -> None:
    """It does not wait on."""
    where = topics(10)

    async def main() -> float:
        stopped = asyncio.Event()
        asyncio.get_running_loop().call_later(12.5, stopped.set)
        one = Redrive(options(rate=0.1), where, Transactions(where).make, where.partitions, stopped)
        await one.run([ORDERS])
        assert one.outcome.end is End.INTERRUPTED
        return now()

    assert run(main()) == pytest.approx(1_012.5)
    assert where.values("orders") == values(0, 1)


@pytest.mark.parametrize("redriven", [0, 1])
def test_it_says_what_late_events_count_as(redriven: int, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever puts letters back is told of the platform's one-hour rule; not where nothing went."""
    tell(Outcome(dry_run=False, tallies=[Tally("orders", matched=1, redriven=redriven)]), as_json=False)
    assert (LATE in capsys.readouterr().out) is bool(redriven)
