"""The guard beside a naive count, and with any inputs: once it has tripped nothing is written or read."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from itertools import chain, pairwise
from random import Random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from consumer.engine import messages as m
from consumer.engine.context import Context
from consumer.engine.intake.guard import Guard
from consumer.engine.model import Instant, Policy, Rejection, SchemaRef, Stage, TopicPartition
from consumer.engine.reading import TOMBSTONE, NoEvent
from consumer.engine.records.block import Block
from consumer.engine.records.runs import Run
from tests.engine.building import (
    MACHINE,
    MANY,
    PROPERTY,
    TOPIC,
    UNDECODABLE,
    Core,
    answer_body,
    chunk,
    event,
    event_ids,
    filtered,
    of_schema,
    stopped,
    unconvertible,
    write_map,
)
from tests.engine.building import Books as LedgerBooks
from tests.engine.intake.test_guard import OTHER_TOPIC, bad, good, guarded, judge, tripped

# -- beside a naive count

KINDS: dict[str, NoEvent | None] = {
    "event": None,
    "filtered": TOMBSTONE,
    "rejected": Rejection(Stage.DECODE, "malformed", "no event"),
    "parked": SchemaRef("id", "1"),
    "passed over": None,
}
FATES = {
    "event": ("good", "refused"),
    "parked": ("good", "rejected", "filtered", "refused"),
}
REFUSED = Rejection(Stage.DELIVER, "refused", "no")
SHARE, WINDOW, OPEN = 0.4, 7, 8
KEPT = WINDOW + int(OPEN / SHARE)


class Books(RuleBasedStateMachine):
    """All records read, in order, and the guard: it trips exactly when naive counting over neighbours says so."""

    topics = (TOPIC, OTHER_TOPIC)

    def __init__(self) -> None:
        super().__init__()
        self.context = Context(
            Policy(dead_letter_share=SHARE, dead_letter_sample=WINDOW, max_open_events=OPEN), seed=0
        )
        self.context.now = Instant(5.0, 0.0)
        self.guard = Guard(self.context)
        self.records: dict[str, list[str]] = {one: [] for one in self.topics}
        """The state of each record by topic; records that are filtered at once are omitted."""
        self.offsets: dict[str, list[int]] = {one: [] for one in self.topics}
        self.waiting: list[tuple[str, Block, int, int]] = []
        """Topic, block, index and place in `records` of each record that may still get a verdict."""
        self.first: set[tuple[str, int, int]] = set()
        """What the first input above the share may be reported as: with two topics in one input, either of them."""
        ledger = LedgerBooks()
        self.states = {one: ledger.begin(TopicPartition(one, 0), 1, 0, False) for one in self.topics}
        self.ledger = ledger

    def check(self, *topics: str) -> None:
        """Count dead letters among neighbours in the topics of an input."""
        for topic in () if self.first else topics:
            kept = [one for one in self.records[topic][-KEPT:] if one != "filtered"]
            counts = [
                sum(one in ("rejected", "refused") for one in kept[begin : begin + WINDOW])
                for begin in range(len(kept) - WINDOW + 1)
            ]
            if max(counts, default=0) / WINDOW > SHARE:
                self.first |= {(topic, max(counts), WINDOW)}

    @rule(
        topic=st.sampled_from(topics), kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=1, max_size=9)
    )
    def read(self, topic: str, kinds: list[str]) -> None:
        """Let records come in."""
        state = self.states[topic]
        values = chunk([b"x"] * len(kinds), offset=state.last_seen + 1)._replace(topic=topic)
        passed = [at for at, kind in enumerate(kinds) if kind == "passed over"]
        block = self.ledger.enter(state, values, passed)
        self.guard.read(
            block, {at: verdict for at, kind in enumerate(kinds) if (verdict := KINDS[kind]) is not None}
        )
        for index, kind in enumerate(kinds):
            if kind in FATES:
                self.waiting.append((topic, block, index, len(self.records[topic])))
            if kind == "rejected":
                self.guard.judge(Run(block, index, index + 1), REFUSED)
            if kind != "filtered":
                self.records[topic].append(kind)
                self.offsets[topic].append(block.offsets[index])
        self.guard.weigh()
        self.check(topic)

    @precondition(lambda self: any(self.records.values()))
    @rule(topic=st.sampled_from(topics), back=st.integers(1, 20))
    def go_back(self, topic: str, back: int) -> None:
        """Set the position back and read a record again: only its latest reading counts."""
        state = self.states[topic]
        offset = max(0, state.last_seen + 1 - back)
        self.ledger.rewind(state, offset)
        for place, one in enumerate(self.offsets[topic]):
            if one >= offset:
                self.records[topic][place] = "filtered"
        self.waiting = [one for one in self.waiting if Run(one[1], one[2], one[2] + 1).ours]
        self.read(topic, ["event"])

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def judge(self, data: st.DataObject) -> None:
        """Give verdicts to some waiting records, in any order, in one input."""
        some = data.draw(st.permutations(range(len(self.waiting))))[: data.draw(st.integers(1, 9))]
        topics = set()
        for at in some:
            topic, block, index, place = self.waiting[at]
            fate = data.draw(st.sampled_from(FATES[self.records[topic][place]]))
            # The guard ignores verdicts on records whose places it no longer keeps.
            if fate == "filtered":
                self.guard.judge(Run(block, index, index + 1), None)
            elif fate != "good":
                self.guard.judge(Run(block, index, index + 1), REFUSED)
            self.records[topic][place] = fate
            topics.add(topic)
        self.waiting = [one for at, one in enumerate(self.waiting) if at not in some]
        self.guard.weigh()
        self.check(*topics)

    @invariant()
    def agrees(self) -> None:
        self.guard.check()
        tripped = self.guard.tripped
        named = set() if tripped is None else {(tripped.topic, tripped.rejected, tripped.of)}
        assert named <= self.first
        assert bool(named) == bool(self.first)
        self.first = named  # the guard stays tripped by the topic that it named
        assert len(self.context.commands) <= 1
        self.context.commands.clear()
        assert self.guard.due() == (65.0 if self.first else None)


TestBooks = Books.TestCase
TestBooks.settings = MACHINE


@pytest.mark.slow("many examples")
def test_books_at_length() -> None:
    """The state machine holds in many more examples too."""
    run_state_machine_as_test(Books, settings=MANY)


def reading_again(core: Core, random: Random, log: Sequence[bytes], metadata: str = "") -> None:
    """Read a whole log once, answering in a random order; stored keys are known."""
    core.assign(epoch=core.pipeline.context.number(), metadata=metadata, leader_epoch=7)
    place = 0
    while not tripped(core):
        size = min(random.randint(1, 60), core.pipeline.room())
        if place < len(log) and size and random.random() < 0.4:
            core.fetch(*log[place : place + size])
            place += size
            continue
        random.shuffle(core.waiting)
        if core.has(m.LookUpKeys) and random.random() < 0.7:
            core.look_up()
        elif core.has(m.Send) and random.random() < 0.5:
            send = core.take(m.Send)
            outcomes = [
                ("failed", "no", None) if one.startswith("bad") else ("processed", None, None)
                for one in event_ids(send)
            ]
            core.answer(send, 200, answer_body(outcomes))
        elif core.has(m.StoreDeadLetters) and random.random() < 0.5:
            core.store_letters(random.random() < 0.8)
        elif core.has(m.StoreKeys):
            core.store_keys()
        elif core.has(m.Commit):
            core.commit()
        elif core.has(m.FetchSchema):
            core.feed(m.SchemaFound(core.take(m.FetchSchema).ref, "{}"))
        elif place >= len(log) and not core.pipeline.ledger.open:
            return
        else:
            core.advance(random.choice((0.0, 0.1, 1.0)))


def healthy_log(random: Random, maximum: int) -> list[bytes]:
    """Return records of which no `maximum` neighbours, filtered ones aside, hold more than four tenths refused."""
    log: list[bytes] = []
    latest: deque[bool] = deque(maxlen=maximum - 1)
    while len(log) < 400:
        name = f"{random.randrange(300)}"
        if random.random() < 0.1:
            log.append(filtered())
            continue
        is_bad = random.random() < 0.5 and sum(latest) + 1 <= 0.4 * maximum
        latest.append(is_bad)
        refused = random.choice((event(f"bad{name}"), UNDECODABLE, unconvertible()))
        log.append(refused if is_bad else event(name) if random.random() < 0.9 else of_schema(name, "1"))
    return log


def seeds(few: int, all_of_them: int) -> list[Any]:
    """Return the seeds of a test; those after the first few are slow."""
    slow = pytest.mark.slow("many examples")
    return [*range(few), *(pytest.param(seed, marks=slow) for seed in range(few, all_of_them))]


@pytest.mark.parametrize("seed", seeds(15, 60))
def test_a_healthy_topic_never_trips_it_however_often_and_in_whatever_order_it_is_read(seed: int) -> None:
    """A healthy topic never trips the guard: read for the first time; read again by a rewound group, when all
    good records are duplicates; by a new process that begins at the first refused record, with a map that
    passes over all others; with verdicts in any order."""
    random = Random(seed)
    maximum = random.choice((10, 20, 50))
    log = healthy_log(random, maximum)
    policy: dict[str, Any] = {
        "dead_letter_share": 0.4, "dead_letter_sample": maximum, "max_open_events": random.choice((40, 150, 1000)),
        "batch_events": random.choice((1, 7, 40)), "concurrency": random.choice((1, 4)), "linger": 0.1,
    }  # fmt: skip
    core = Core(seed=seed, **policy)
    for _ in range(3):
        reading_again(core, random, log)
        assert tripped(core) is None
    # Open are the refused records, the first of which is the start; the map names all good records.
    bad_places = [at for at, value in enumerate(log) if is_refused(value)]
    gaps = [(begin + 1, end) for begin, end in pairwise([*bad_places, len(log)]) if end > begin + 1]
    bounds = [*chain.from_iterable(gaps)]
    again = Core(seed=seed, **policy)
    tail = log[bad_places[0] :]
    reading_again(again, random, tail, write_map(0, [one - bad_places[0] for one in bounds], 7))
    assert again.statistics().passed == len(tail) - len(bad_places)
    assert tripped(again) is None


@pytest.mark.parametrize("seed", seeds(6, 30))
@pytest.mark.parametrize("kind", ["rejected", "refused", "both"])
def test_a_bad_topic_trips_it_before_it_is_emptied(seed: int, kind: str) -> None:
    """A topic with seven bad records of ten trips the guard when at most a sample of them is on the dead-letter
    topic. Where some are rejected at once and others refused later, the guard depends on the API's answers:
    then at most as many more as may be open are on the topic."""
    random = Random(seed)
    max_open = random.choice((40, 150))
    kinds = {"rejected": (False,), "refused": (True,), "both": (False, True)}[kind]
    log = [
        filtered() if random.random() < 0.1
        else event(f"{random.randrange(200)}") if random.random() < 0.3
        else event(f"bad{n}") if random.choice(kinds) else UNDECODABLE
        for n in range(600)
    ]  # fmt: skip
    core = Core(
        seed=seed, dead_letter_share=0.5, dead_letter_sample=50, max_open_events=max_open,
        batch_events=random.choice((1, 7, 40)), linger=0.1,
    )  # fmt: skip
    reading_again(core, random, log)
    assert tripped(core)
    assert core.statistics().totals.dead_lettered <= 50 + (max_open if kind == "both" else 0)


def is_refused(value: bytes) -> bool:
    """Return whether a record ends as a dead letter."""
    return value in (UNDECODABLE, unconvertible()) or b'"bad' in value


@PROPERTY
@given(
    st.lists(
        st.lists(st.sampled_from(["event", "bad", "rejected", "filtered"]), min_size=1, max_size=12),
        max_size=12,
    ),
    st.booleans(),
    st.integers(1, 6),
)
def test_whatever_comes_nothing_is_written_or_read_once_it_has_tripped(
    fetches: Sequence[Sequence[str]], letters_stored: bool, batch: int
) -> None:
    """With any inputs nothing is written or read after the guard tripped: every record is settled, or open and
    not committed past, and a stop ends when no call is in flight."""
    core = guarded(batch_events=batch, concurrency=2)
    number, read = 0, None
    for kinds in fetches:
        values = []
        for kind in kinds:
            number += 1
            event_id = f"{kind}{number}"
            made = {"rejected": UNDECODABLE, "filtered": filtered()}
            values.append(made.get(kind) or event(event_id))
        core.fetch(*values)
        judge(core)
        if core.has(m.StoreDeadLetters):
            core.store_letters(letters_stored)
        core.advance(0.5)
        if tripped(core):
            assert read in (None, core.statistics().totals.read)
            read = core.statistics().totals.read
            assert not core.pipeline.letters
            assert core.pipeline.room() == 0
    if core.has(m.StoreDeadLetters):
        core.store_letters()
    core.feed(m.StopRequested(20.0))
    assert stopped(core) is not None or not tripped(core)


@pytest.mark.parametrize("share", [0.29, 0.07, 0.58, 0.1])
def test_the_share_is_compared_exactly(share: float) -> None:
    """The share is compared exactly: 29 dead letters of 100 do not exceed 0.29, although 0.29 x 100 < 29 as floats."""
    core = guarded(dead_letter_share=share, dead_letter_sample=100)
    core.fetch(*bad(round(share * 100)), *good(100 - round(share * 100)))
    assert tripped(core) is None
    core.fetch(*bad(1), *good(99))
    core.fetch(*bad(round(share * 100) + 1))
    assert tripped(core)
