"""Claims: one leads each key, the others wait for what becomes of it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from consumer.engine.block import Delivery, RecordStage, move_all
from consumer.engine.claims import KEY_BYTES, Claims, dedup_key
from consumer.engine.ledger import AssignmentState, Ledger
from consumer.engine.model import REAL_API, TopicPartition, destination_tag
from consumer.errors import InvariantViolation
from tests.engine.building import MACHINE, TOPIC, Core, chunk, delivery, event


class Maker:
    """Makes deliveries in assignments that a test can end."""

    def __init__(self) -> None:
        self.ledger = Ledger()

    def assign(self, partition: int = 0) -> AssignmentState:
        """A live assignment."""
        return self.ledger.assign(TopicPartition(TOPIC, partition), 1, 0, False)

    def delivery(self, state: AssignmentState, event_id: str = "k") -> Delivery:
        """A delivery of one record with this id."""
        block = self.ledger.track(state, chunk([b"x"], offset=state.last_seen + 1))
        return delivery(block, 0, "1", event_id)


@pytest.fixture
def maker() -> Maker:
    """A maker of deliveries."""
    return Maker()


def test_the_first_leads_and_later_ones_follow(maker: Maker) -> None:
    """Confirmed, the claim ends: followers are given to be duplicates, in order, and the key is free."""
    state, claims = maker.assign(), Claims()
    leader, second, third = (maker.delivery(state) for _ in range(3))
    assert [claims.claim(one) for one in (leader, second, third)] == [True, False, False]
    assert len(claims) == 1
    assert claims.confirm(leader) == [second, third]
    assert len(claims) == 0
    assert claims.claim(maker.delivery(state))


def test_other_keys_do_not_meet(maker: Maker) -> None:
    """A claim concerns one key."""
    state, claims = maker.assign(), Claims()
    assert claims.claim(maker.delivery(state, "a"))
    assert claims.claim(maker.delivery(state, "b"))


def test_released_the_first_follower_leads(maker: Maker) -> None:
    """A duplicate of an event that is not delivered is tried itself, and the others now follow it."""
    state, claims = maker.assign(), Claims()
    leader, heir, other = (maker.delivery(state) for _ in range(3))
    for one in (leader, heir, other):
        claims.claim(one)
    assert claims.release(leader) is heir
    assert claims.confirm(heir) == [other]


def test_released_without_followers_the_key_is_free(maker: Maker) -> None:
    """Nothing undelivered is ever taken for a duplicate."""
    state, claims = maker.assign(), Claims()
    leader = maker.delivery(state)
    claims.claim(leader)
    assert claims.release(leader) is None
    assert claims.claim(maker.delivery(state))


@pytest.mark.parametrize("how", ["dropped", "draining"])
def test_only_a_follower_that_is_still_ours_inherits(maker: Maker, how: str) -> None:
    """Followers of a partition that was revoked, or is being drained, do not begin new work."""
    mine, theirs, claims = maker.assign(0), maker.assign(1), Claims()
    leader, gone, heir = maker.delivery(mine), maker.delivery(theirs), maker.delivery(mine)
    for one in (leader, gone, heir):
        claims.claim(one)
    move_all([gone, heir], RecordStage.FOLLOWING)
    if how == "dropped":
        maker.ledger.drop(theirs.tp)
    theirs.draining = True
    assert claims.release(leader) is heir


def test_ending_a_claim_one_does_not_lead_is_a_bug(maker: Maker) -> None:
    """A follower can neither confirm nor release, and a claim ends once."""
    state, claims = maker.assign(), Claims()
    leader, follower = maker.delivery(state), maker.delivery(state)
    claims.claim(leader)
    claims.claim(follower)
    with pytest.raises(InvariantViolation):
        claims.confirm(follower)
    claims = Claims()
    claims.claim(leader)
    claims.release(leader)
    with pytest.raises(InvariantViolation):
        claims.release(leader)


@given(st.tuples(st.text(), st.text(), st.text()), st.tuples(st.text(), st.text(), st.text()))
def test_keys_tell_events_apart(one: tuple[str, str, str], other: tuple[str, str, str]) -> None:
    """Account, name and id all count, none runs into the next (NUL, which the first two cannot hold, parts them)."""
    one, other = (
        (parts[0].replace("\0", ""), parts[1].replace("\0", ""), parts[2]) for parts in (one, other)
    )
    assert (dedup_key(*one) == dedup_key(*other)) == (one == other)
    assert len(dedup_key(*one)) == KEY_BYTES


def test_a_key_is_the_same_in_every_process() -> None:
    """Keys are on disk: what they are made of must never change (account, name, id, parted by NUL; BLAKE2b-128)."""
    assert dedup_key("549755885175", "checkout", "order-1").hex() == "388d7af67dfb1ae57dc24383715d2f96"


SANDBOX = destination_tag("http://127.0.0.1:8085/v5", test_mode=False)
EVENT = ("549755885175", "checkout", "order-1")


def test_a_key_says_to_whom() -> None:
    """What went to a sandbox, or out in test mode, is not known as delivered to the platform, nor the other way."""
    tested = destination_tag("https://api.pinterest.com/v5", test_mode=True)
    keys = [dedup_key(*EVENT, destination) for destination in (REAL_API, SANDBOX, tested)]
    assert len(set(keys)) == 3
    assert dedup_key(*EVENT, destination_tag("HTTPS://API.Pinterest.com:443/v5/", test_mode=False)) == keys[0]


def test_the_platform_s_own_keys_are_what_they_always_were() -> None:
    """A store from before there were destinations goes on to be known."""
    assert dedup_key(*EVENT, REAL_API) == dedup_key(*EVENT) == dedup_key(*EVENT, None)


def test_a_store_of_another_destination_knows_nothing() -> None:
    """README's own way: the sandbox first, then the real API, on one folder. All is sent, once to each."""
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


def test_text_that_is_not_unicode_has_a_key_too() -> None:
    """A lone surrogate must not end the process."""
    assert len(dedup_key("1", "checkout", "\ud800")) == KEY_BYTES


class ClaimsMachine(RuleBasedStateMachine):
    """Claims against a naive model: per key the list of open deliveries, the first of which leads."""

    def __init__(self) -> None:
        super().__init__()
        self.maker = Maker()
        self.claims = Claims()
        self.states = [self.maker.assign(0), self.maker.assign(1)]
        self.queues: dict[str, list[Delivery]] = {}

    @rule(partition=st.integers(0, 1), key=st.sampled_from(["a", "b"]))
    def claim(self, partition: int, key: str) -> None:
        if not self.states[partition].accepts:
            return
        delivery = self.maker.delivery(self.states[partition], key)
        queue = self.queues.setdefault(key, [])
        queue.append(delivery)
        leads = self.claims.claim(delivery)
        assert leads == (queue[0] is delivery)
        if not leads:
            move_all([delivery], RecordStage.FOLLOWING)

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def confirm(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.queues)))
        leader, *followers = self.queues.pop(key)
        assert self.claims.confirm(leader) == followers

    @precondition(lambda self: self.queues)
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.queues)))
        leader, *followers = self.queues.pop(key)
        kept = [one for one in followers if one.accepted]
        assert self.claims.release(leader) is (kept[0] if kept else None)
        if kept:
            self.queues[key] = kept

    @rule(partition=st.integers(0, 1))
    def drain(self, partition: int) -> None:
        self.states[partition].draining = True

    @rule(partition=st.integers(0, 1))
    def assign_anew(self, partition: int) -> None:
        self.states[partition] = self.maker.assign(partition)

    @invariant()
    def one_claim_per_open_key(self) -> None:
        assert len(self.claims) == len(self.queues)


TestClaimsMachine = ClaimsMachine.TestCase
TestClaimsMachine.settings = MACHINE
