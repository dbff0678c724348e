"""Which letters a redrive takes and which stay, on a Kafka made of lists; a dry run chooses in the same way."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from typing import Any

import pytest
from rich.console import Console

from consumer.adapters.kafka.letters import mark_headers
from consumer.adapters.kafka.ranges import Range
from consumer.app import ending
from consumer.commands.dead_letters import redrive
from consumer.commands.dead_letters.outcome import RedriveOutcome, show_redrive
from consumer.commands.dead_letters.reading import DeadLetters, Tally
from consumer.commands.dead_letters.redrive import dry_run
from consumer.commands.replay.bounded_run import DOUBLED, ReplayEnd
from consumer.engine.model import Chunk
from consumer.settings import load
from tests.commands.dead_letters.fakes import (
    AT,
    DEAD,
    Topics,
    Transactions,
    dead_letters,
    home,
    options,
    topics,
)
from tests.service.virtual_time import run
from tests.support.kafka.harness import WITHIN

KAFKA = load({"KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:9"}, needs=("kafka",))


def dry_run_of(
    where: Topics,
    *,
    which: tuple[str | None, ...] = ("orders",),
    **changes: Any,
) -> RedriveOutcome:
    """Return the outcome of a dry run; assert that it writes nothing."""
    before = {key: list(log) for key, log in where.logs.items()}
    given = options(dry_run=True, **changes)
    outcome = RedriveOutcome(given)
    run(dry_run([dead_letters(where, of=one, filters=given.filters) for one in which], outcome))
    assert {key: list(log) for key, log in where.logs.items() if key in before} == before
    return outcome


def tally(outcome: RedriveOutcome) -> Tally:
    """Return the tally of the only dead-letter topic."""
    [found] = outcome.tallies.values()
    return found


def done(where: Topics, *runs: tuple[int, int], partition: int = 0) -> None:
    """Mark runs of offsets of the dead-letter topic as done."""
    where.append(DEAD, partition, b"k", b"v", mark_headers(runs, home(DEAD, partition)))


def test_what_is_found_is_reported() -> None:
    """The outcome has every number, for each topic and in all, as one JSON document."""
    where = topics(3)
    done(where, (0, 1))
    counts = dict.fromkeys(("looped", "gone", "left", "foreign", "elsewhere"), 0)
    counts |= {"matched": 3, "done_before": 1, "redriven": 2}
    assert dry_run_of(where).document() == counts | {
        "result": "complete",
        "dry_run": True,
        "ledger": None,
        "topics": [{"topic": DEAD} | counts],
        "no_dead_letters": [],
        "notes": [],
    }


def test_max_is_never_exceeded() -> None:
    """Over all partitions and topics no more letters are redriven, and the others are counted."""
    where = topics(7, partitions=2)
    where.partitions |= {"other": 1, "other.dead-letters": 1}
    for number in range(3):
        where.bury(100 + number, origin="other")
    both = ("orders", "other")
    first = dry_run_of(where, which=both, maximum=5)
    assert [(one.redriven, one.left) for one in first.tallies.values()] == [(5, 2), (0, 3)]
    done(where, (0, 2))
    done(where, (0, 3), partition=1)
    second = dry_run_of(where, which=both, maximum=4)
    assert [(one.done_before, one.redriven, one.left) for one in second.tallies.values()] == [
        (5, 2, 0),
        (0, 2, 1),
    ]


def test_what_was_redriven_too_often_stays() -> None:
    """By the count in its header, whatever it died of; a count that cannot be read is too high."""
    where = topics(0)
    for number, trips in enumerate((b"2", b"3", b"4", b"junk", None)):
        where.bury(number, headers=(("pinstream.trips", trips),))
    found = tally(dry_run_of(where))
    assert (found.redriven, found.looped, found.left) == (1, 4, 0)
    assert tally(dry_run_of(where, max_trips=4)).redriven == 2


@pytest.mark.parametrize("there", ["nothing", "another", "no topic", "fewer partitions"])
def test_what_cannot_be_fetched_any_more_is_named(there: str) -> None:
    """A letter whose record is gone from its origin stays, and the first ten such letters are named."""
    where = topics(0)
    if there == "another":
        where.append("orders", 0, b"k0", b"v0", timestamp=AT + 1)
    for number in range(12):
        where.bury(number, omitted=("value",), partition=5 if there == "fewer partitions" else 0)
    where.bury(12)
    if there == "no topic":
        del where.partitions["orders"]
    outcome = dry_run_of(where)
    assert tally(outcome) == Tally(matched=13, redriven=1, gone=12)
    assert "orders.dead-letters:0:0 stays" in outcome.notes[0]
    assert (len(outcome.notes), outcome.unnamed) == (10, 2)
    done(where, (12, 13))
    assert tally(dry_run_of(where)) == Tally(matched=13, gone=12, done_before=1)


def test_records_that_are_not_ours_stay() -> None:
    """Records that are no letters, and letters of other topics, are counted and left alone."""
    where = topics(2)
    where.append(DEAD, 0, b"k", b"junk")
    where.bury(7, origin="foreign", on=DEAD)
    where.append(DEAD, 0, None, b"v", (("pinstream.done", b"9-99"),))
    where.bury(3)
    assert tally(dry_run_of(where)) == Tally(matched=3, redriven=3, foreign=3)


def test_marks_of_another_cluster_are_ignored() -> None:
    """Those of another cluster, partition or topic: in a mirrored topic their offsets are those of other letters."""
    where = topics(3)
    there = home(DEAD)._replace(cluster="there")
    for one, runs in ((there, (0, 3)), (home(DEAD, 1), (0, 3)), (home("another"), (0, 3)), (there, (0, 99))):
        where.append(DEAD, 0, b"k", b"v", mark_headers([runs], one))
    done(where, (1, 2))
    assert tally(dry_run_of(where)) == Tally(matched=3, redriven=2, done_before=1, elsewhere=4)


def test_a_letter_behind_a_cut_is_not_done() -> None:
    """Letters that another leader has put into the places of those that were done are redriven."""
    where = topics(6)
    where.epochs[DEAD] = [(7, 3), (4, 0)]
    where.append(DEAD, 0, b"k", b"v", mark_headers([(1, 5)], home(DEAD), 4))
    assert tally(dry_run_of(where)) == Tally(matched=6, done_before=2, redriven=4)
    where.epochs[DEAD] = [(7, 0)]
    assert tally(dry_run_of(where)) == Tally(matched=6, redriven=6, elsewhere=1)


def test_one_topic_for_all() -> None:
    """Without a restriction all letters of a topic are redriven, of any origin, itself included."""
    where = Topics(a=1, b=1, letters=1)
    for number, origin in enumerate(("a", "b", "letters")):
        where.bury(number, origin=origin, on="letters")
    assert tally(dry_run_of(where, which=(None,))) == Tally(matched=3, redriven=3)


@pytest.mark.parametrize("redriven", [0, 1])
def test_the_one_hour_rule_is_named_if_a_letter_was_redriven(
    redriven: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """The output names the platform's one-hour rule if a letter was redriven, and only then."""
    tallies = {DEAD: Tally(matched=1, redriven=redriven)}
    show_redrive(RedriveOutcome(options(), tallies), None, Console())
    assert (DOUBLED in capsys.readouterr().out) is bool(redriven)


class Interrupted(Topics):
    """Topics that send this process a signal when they are scanned for the first time."""

    signalled = False

    def __init__(self, **partitions: int) -> None:
        super().__init__(**partitions)
        self.heard = asyncio.Event()

    async def scan(self, ranges: Sequence[Range]) -> AsyncGenerator[list[Chunk], None]:
        """See `LetterReader`."""
        if not self.signalled:
            self.signalled = True
            # In this thread: another one of the process would have it later.
            signal.raise_signal(signal.SIGINT)
            async with asyncio.timeout(WITHIN):
                await self.heard.wait()  # which a dry run cancels
        async for chunks in super().scan(ranges):
            yield chunks


@pytest.fixture
def _interruptible() -> Iterator[None]:
    """A shell starts what it runs in the background with SIGINT ignored, and this process may be that."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interruptible")
@pytest.mark.parametrize("is_dry", [True, False])
def test_a_signal_ends_it_at_once(monkeypatch: pytest.MonkeyPatch, is_dry: bool) -> None:
    """A dry run has nothing to finish; a redrive does not take over the next topic's transactional id."""
    where = Interrupted(orders=1, other=1)
    for origin in ("orders", "other"):
        where.partitions[f"{origin}.dead-letters"] = 1
        where.bury(0, origin=origin)
    started: list[str] = []

    class Writer(Transactions):
        def __init__(self, config: object, transactional_id: str, *, on_error: object) -> None:
            super().__init__(where)
            self.id = transactional_id

        async def start(self) -> None:
            started.append(self.id)

        async def close(self) -> None:
            pass

    async def find(*_: object) -> tuple[list[DeadLetters], list[str]]:
        return [dead_letters(where, of=one) for one in ("orders", "other")], []

    def on_stop_signal(stop: Callable[[], None]) -> None:
        def heard() -> None:
            stop()
            where.heard.set()

        ending.on_stop_signal(heard)

    monkeypatch.setattr(redrive, "on_stop_signal", on_stop_signal)
    monkeypatch.setattr(redrive, "find", find)
    monkeypatch.setattr(redrive, "TransactionalWriter", Writer)
    with pytest.raises(KeyboardInterrupt) if is_dry else contextlib.nullcontext():
        outcome = asyncio.run(redrive._run(options(dry_run=is_dry), KAFKA))
    if not is_dry:
        assert outcome.end is ReplayEnd.INTERRUPTED
    assert started == ([] if is_dry else [f"pinstream.redrive.{DEAD}"])
