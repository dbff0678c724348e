"""The guard against naive books, and whatever comes: once it has tripped nothing is written or read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consumer.core import interface as i
from consumer.core.context import Context
from consumer.core.dedup import Delivery
from consumer.core.guard import Guard
from consumer.core.intake import TOMBSTONE, Prepared
from consumer.core.ledger import Ledger
from consumer.core.model import Instant, Rejection, SchemaRef, Stage, TopicPartition
from consumer.core.policy import Policy
from tests.core.building import (
    MACHINE,
    PROPERTY,
    TOPIC,
    UNDECODABLE,
    event,
    filtered,
    make_deliveries,
    of_schema,
    ref,
    stopped,
)
from tests.core.test_guard import OTHER_TOPIC, bad, good, guarded, judge, tripped

# -- against naive books

KINDS: dict[str, Prepared | None] = {
    "event": Delivery("1", "checkout", "a", 0, False, b"{}", ()),
    "filtered": TOMBSTONE,
    "rejected": Rejection(Stage.DECODE, "malformed", "no event"),
    "parked": SchemaRef("id", "1"),
    "passed over": None,
}


class Books(RuleBasedStateMachine):
    """Lists of all verdicts ever, and the guard: it trips exactly when the ends of the lists say so."""

    topics = (TOPIC, OTHER_TOPIC)

    def __init__(self) -> None:
        super().__init__()
        self.context = Context(Policy(dead_letter_share=0.4, dead_letter_sample=7), seed=0)
        self.context.begin(Instant(5.0, 0.0))
        self.guard = Guard(self.context)
        self.reads: dict[str, list[str]] = {one: [] for one in self.topics}
        self.fates: dict[str, list[bool]] = {one: [False] * 7 for one in self.topics}
        self.first: tuple[str, int, int] | None = None
        ledger = Ledger()
        self.states = {one: ledger.assign(TopicPartition(one, 0), 1, 0, False) for one in self.topics}

    def look(self, topic: str) -> None:
        """What the lists say now."""
        latest = self.reads[topic][-7:]
        refused = sum(self.fates[topic][-7:])
        dead = latest.count("rejected") + latest.count("event") * refused // 7
        if self.first is None and len(latest) == 7 and dead > 0.4 * 7:
            self.first = (topic, dead, 7)

    @rule(topic=st.sampled_from(topics), kinds=st.lists(st.sampled_from(sorted(KINDS)), max_size=9))
    def read(self, topic: str, kinds: list[str]) -> None:
        """Records come in."""
        self.guard.read(topic, [KINDS[one] for one in kinds])
        self.reads[topic] += [one for one in kinds if one not in ("parked", "passed over", "filtered")]
        self.look(topic)

    @precondition(lambda self: any(self.reads.values()))
    @rule(topic=st.sampled_from(topics), passed=st.integers(0, 9), refused=st.integers(0, 4))
    def answer(self, topic: str, passed: int, refused: int) -> None:
        """The API judges some events in one answer."""
        if not passed + refused:
            return
        state = self.states[topic]
        for one in make_deliveries(refused, state=state) if refused else ():
            self.guard.refused(one)
        self.guard.passed(make_deliveries(passed, state=state) if passed else [])
        self.guard.mind()
        count = passed + refused
        bad_places = {-(-count * nth // refused) - 1 for nth in range(1, refused + 1)}
        assert len(bad_places) == refused
        self.fates[topic] += [at in bad_places for at in range(count)]
        self.look(topic)

    @invariant()
    def agrees(self) -> None:
        self.guard.mind()
        tripped = self.guard.tripped
        assert (tripped and tripped[:3]) == self.first
        assert len(self.context.take()) <= 1
        assert self.guard.due() == (65.0 if self.first else None)


TestBooks = Books.TestCase
TestBooks.settings = MACHINE


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
    """And every record is settled, or open and not committed past; a stop ends as soon as nothing is in flight."""
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
        if core.has(i.StoreDeadLetters):
            core.store_letters(letters_stored)
        core.advance(0.5)
        if tripped(core):
            assert read in (None, core.statistics().totals.read)
            read = core.statistics().totals.read
            assert not core.pipeline.letters
            assert core.pipeline.room() == 0
    if core.has(i.StoreDeadLetters):
        core.store_letters()
    core.feed(i.StopRequested(20.0))
    assert stopped(core) is not None or not tripped(core)


@pytest.mark.parametrize("share", [0.29, 0.07, 0.58, 0.1])
def test_the_share_is_compared_exactly(share: float) -> None:
    """0.29 x 100 is a little less than 29 to a computer; 29 of 100 are not more than 0.29."""
    core = guarded(dead_letter_share=share, dead_letter_sample=100)
    core.fetch(*bad(round(share * 100)), *good(100 - round(share * 100)))
    assert tripped(core) is None
    core.fetch(*bad(1), *good(99))
    core.fetch(*bad(round(share * 100) + 1))
    assert tripped(core)


def test_a_schema_that_comes_is_asked_for_once() -> None:
    """Not again and again, though the records that waited for it stay where they are."""
    core = guarded()
    core.fetch(of_schema("a", "1"), *bad(10))
    core.feed(i.SchemaFound(ref("1"), "{}"))
    core.advance(120.0)
    assert sum(isinstance(one, i.FetchSchema) for one in core.log) == 1
