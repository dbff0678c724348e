"""Claims: one event leads each key, and the others wait for its outcome."""

from __future__ import annotations

import hashlib
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

from consumer.engine.dedup.claims import Claims, KeySet, PlainKeySet
from consumer.engine.model import REAL_API, TopicPartition, destination_tag
from consumer.engine.reading import KEY_BYTES, Columns, Keys, Kind
from consumer.engine.records.block import AssignmentState
from consumer.engine.records.runs import Run, move_all
from consumer.engine.records.stages import RecordStage
from consumer.errors import InvariantViolation
from tests.engine.building import ACCOUNT, MACHINE, MANY, PROPERTY, TOPIC, UNIX, Books, Core, chunk, event

KEYS = Keys()


class EventMaker:
    """Maker of events in assignments that a test can end."""

    def __init__(self) -> None:
        self.ledger = Books()

    def assign(self, partition: int = 0) -> AssignmentState:
        """Begin a live assignment."""
        return self.ledger.begin(TopicPartition(TOPIC, partition), 1, 0, False)

    def event(self, state: AssignmentState, event_id: str = "k") -> Run:
        """Return a record with this event id."""
        columns = Columns(Keys())
        columns.add_event(Kind("1", "checkout", 0), event_id, int(UNIX), False, b"{}", ())
        record = chunk([b"x"], offset=state.last_seen + 1)
        return Run(self.ledger.track(state, record, [1], columns), 0, 1)


def leads(claims: Claims, one: Run) -> bool:
    """Claim the event's key; return whether the event leads now."""
    return not claims.claim(one)


@pytest.fixture
def maker() -> EventMaker:
    """Return a maker of events."""
    return EventMaker()


def test_followers_of_an_ended_assignment_are_forgotten(maker: EventMaker) -> None:
    """Followers of an ended assignment are removed, as they would hold their blocks; those of a draining one stay."""
    mine, theirs, claims = maker.assign(0), maker.assign(1), Claims()
    leader, gone, draining = maker.event(mine), maker.event(theirs), maker.event(mine)
    for one in (leader, gone, draining):
        claims.claim(one)
    maker.ledger.drop(theirs.tp)
    mine.draining = True
    claims.purge()
    assert [list(followers) for _, followers in claims.followers.items()] == [[draining]]
    assert claims.confirm([leader]) == [draining]


def test_ending_a_claim_that_is_not_held_is_a_bug(maker: EventMaker) -> None:
    """Ending a claim that is not held raises an error: a claim ends once."""
    state, claims = maker.assign(), Claims()
    leader = maker.event(state)
    with pytest.raises(InvariantViolation):
        claims.confirm([leader])
    claims.claim(leader)
    with pytest.raises(InvariantViolation):
        claims.confirm([leader, leader])
    claims = Claims()
    claims.claim(leader)
    claims.release(leader)
    with pytest.raises(InvariantViolation):
        claims.release(leader)


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_keys_distinguish_events(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Keys differ by account, name and id; NUL, which the first two cannot hold, separates the parts."""
    one, other = (
        (parts[0].replace("\0", ""), parts[1].replace("\0", ""), parts[2]) for parts in (one, other)
    )
    assert (KEYS.of(*one) == KEYS.of(*other)) == (one == other)
    assert len(KEYS.of(*one)) == KEY_BYTES


def test_a_key_is_the_same_in_every_process() -> None:
    """Keys are on disk, so their content must never change (account, name, id, separated by NUL; BLAKE2b-128)."""
    assert KEYS.of("549755885175", "checkout", "order-1").hex() == "388d7af67dfb1ae57dc24383715d2f96"


SANDBOX = destination_tag("http://127.0.0.1:8085/v5", test_mode=False)
EVENT = ("549755885175", "checkout", "order-1")


def test_keys_differ_by_destination() -> None:
    """Keys of a sandbox, of test mode and of the real API differ, so a delivery to one does not count for another."""
    tested = destination_tag("https://api.pinterest.com/v5", test_mode=True)
    keys = [Keys(destination).of(*EVENT) for destination in (REAL_API, SANDBOX, tested)]
    assert len(set(keys)) == 3
    assert Keys(destination_tag("HTTPS://API.Pinterest.com:443/v5/", test_mode=False)).of(*EVENT) == keys[0]


def test_the_platform_s_own_keys_are_what_they_always_were() -> None:
    """Keys for the real API are the same as before keys had destinations, so that older stores stay valid."""
    assert Keys(REAL_API).of(*EVENT) == KEYS.of(*EVENT)


def test_a_store_of_another_destination_knows_nothing() -> None:
    """With one store, as in README's steps, events go once to the sandbox and once to the real API."""
    stored: set[bytes] = set()
    for destination, delivered in ((SANDBOX, 3), (REAL_API, 3), (SANDBOX, 0), (REAL_API, 0)):
        core = Core(destination=destination)
        core.stored_keys = stored
        core.assign()
        core.fetch(*(event(str(number)) for number in range(3)))
        core.deliver()
        assert core.statistics().totals.delivered == delivered
        assert core.statistics().totals.duplicate == 3 - delivered
    assert len(stored) == 6


def test_what_went_through_a_gateway_counts_after_it_is_declared_to_be_the_platform() -> None:
    """Events that were delivered under the URL's own tag are duplicates for a window after the change, and no longer;
    what is delivered from then on is the platform's."""
    stored: set[bytes] = set()

    def settled(number: str, **policy: Any) -> tuple[int, int]:
        core = Core(destination=REAL_API, **policy)
        core.stored_keys = stored
        core.assign()
        for name, wait in (("a", 3_601.0), (number, 0.0)):
            core.fetch(event(name))
            core.deliver()
            core.advance(wait)
        totals = core.statistics().totals
        return totals.delivered, totals.duplicate

    core = Core(destination=SANDBOX)
    core.stored_keys = stored
    core.assign()
    core.fetch(event("a"), event("b"))
    core.deliver()
    declared = {"earlier_destination": SANDBOX, "dedup_window": 3_600.0}
    assert settled("b") == (2, 0)  # without it, the platform knows neither
    stored -= {Keys(REAL_API).of(ACCOUNT, "checkout", name) for name in "ab"}
    assert settled("c", **declared) == (1, 1)
    assert settled("b", **declared) == (1, 1)  # the window is over when b comes


def test_an_id_with_a_lone_surrogate_has_a_key() -> None:
    """An id with a lone surrogate has a key and raises nothing."""
    assert len(KEYS.of("1", "checkout", "\ud800")) == KEY_BYTES


KEY_PARTS = st.sampled_from([bytes(8), b"\1" + bytes(7), b"\0\4" + bytes(6), b"\xff" * 8])
"""Parts of keys: few, so that keys repeat, are neighbours in a table, and wrap around its end."""
SOME_KEYS = st.lists(st.tuples(KEY_PARTS, KEY_PARTS).map(b"".join), max_size=12).map(b"".join)


@PROPERTY
@given(st.lists(st.tuples(st.booleans(), SOME_KEYS), max_size=12))
def test_the_compiled_set_of_keys_is_the_plain_one(steps: list[tuple[bool, bytes]]) -> None:
    """The compiled set of keys equals the plain one for any additions and removals, also of repeated and zero keys."""
    plain, compiled = PlainKeySet(), KeySet()
    for adds, keys in steps:
        assert compiled.add(keys) == plain.add(keys) if adds else compiled.remove(keys) == plain.remove(keys)
        assert len(compiled) == len(plain)


def test_a_set_of_keys_grows_and_shrinks() -> None:
    """A set of 100,000 keys loses none, and is empty when all are removed in another order."""
    keys = [hashlib.blake2b(b"%d" % number, digest_size=KEY_BYTES).digest() for number in range(100_000)]
    held = KeySet()
    for at in range(0, len(keys), 1_000):
        assert held.add(b"".join(keys[at : at + 1_000])) == []
    assert held.add(b"".join(keys)) == [*range(len(keys))]
    for step in range(7):
        assert held.remove(b"".join(keys[step::7]))
    assert len(held) == 0
    assert not held.remove(keys[0])


class ClaimsMachine(RuleBasedStateMachine):
    """Claims against a naive model: per key the list of open deliveries, the first of which leads."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = EventMaker()
        self.claims = Claims()
        self.states = [self.maker.assign(0), self.maker.assign(1)]
        self.queues: dict[str, list[Run]] = {}

    @rule(partition=st.integers(0, 1), key=st.sampled_from(["a", "b"]))
    def claim(self, partition: int, key: str) -> None:
        if not self.states[partition].live or self.states[partition].draining:
            return
        one = self.maker.event(self.states[partition], key)
        queue = self.queues.setdefault(key, [])
        queue.append(one)
        does_lead = leads(self.claims, one)
        assert does_lead == (queue[0] == one)
        if not does_lead:
            move_all([one], RecordStage.FOLLOWING)

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.queues)))
        leader, *followers = self.queues.pop(key)
        assert self.claims.confirm([leader]) == followers

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.queues)))
        leader, *followers = self.queues.pop(key)
        kept = [one for one in followers if one.accepted]
        claimant, gone = self.claims.release(leader)
        assert (claimant, [*gone]) == (
            kept[0] if kept else None,
            [one for one in followers if one not in kept],
        )
        if kept:
            self.queues[key] = kept

    @rule(partition=st.integers(0, 1))
    def drain(self, partition: int) -> None:
        self.states[partition].draining = True

    @rule(partition=st.integers(0, 1))
    def assign_again(self, partition: int) -> None:
        self.states[partition] = self.maker.assign(partition)

    @invariant()
    def one_claim_per_open_key(self) -> None:
        assert len(self.claims.claimed) == len(self.queues)


TestClaimsMachine = ClaimsMachine.TestCase
TestClaimsMachine.settings = MACHINE


@pytest.mark.slow("many examples")
def test_claims_machine_at_length() -> None:
    """The state machine holds in many more examples too."""
    run_state_machine_as_test(ClaimsMachine, settings=MANY)
