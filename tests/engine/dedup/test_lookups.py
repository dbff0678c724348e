"""Look-ups and the lease by themselves: what they hand back, and when they are due."""

from __future__ import annotations

from math import inf

import pytest

from consumer.engine import messages as m
from consumer.engine.context import Context
from consumer.engine.dedup.lease import RENEW_EVERY, Lease
from consumer.engine.dedup.lookups import Lookups, Seen
from consumer.engine.model import Instant, Policy
from consumer.errors import InvariantViolation
from tests.engine.building import START, UNIX
from tests.engine.dedup.test_dedup import EventMaker


def context_of(**policy: float) -> Context:
    """Return a context at the start of a test."""
    context = Context(Policy(**policy), 0)  # type: ignore[arg-type]  # settings by name
    context.now = Instant(START, UNIX)
    return context


def test_an_answer_divides_the_leaders_by_what_it_says_of_each() -> None:
    """Leaders come back as new, delivered, or claimed by another member; together they are those asked for."""
    maker, lookups = EventMaker(), Lookups(context_of())
    state = maker.assign()
    new, delivered, claimed_by_other, other = (maker.event(state, name) for name in "abcd")
    lookups.ask(7, [new, delivered, claimed_by_other, other])
    seen = lookups.answered(m.KeysLookedUp(7, b"\x00\x01\x02\x00"), 0)
    assert seen == Seen([new, other], [delivered], [claimed_by_other])
    assert not lookups.busy


def test_the_answer_for_another_session_proves_nothing() -> None:
    """All leaders come back unproven if the answer is about claims of another session."""
    maker, lookups = EventMaker(), Lookups(context_of())
    leader = maker.event(maker.assign())
    lookups.ask(7, [leader])
    assert lookups.answered(m.KeysLookedUp(7, b"\x01", 3), 4) == Seen(unproven=[leader])


def test_an_answer_to_nothing_or_of_another_length_is_a_bug() -> None:
    """An answer that was not asked for, or for fewer keys than asked, raises an error."""
    maker, lookups = EventMaker(), Lookups(context_of())
    with pytest.raises(InvariantViolation):
        lookups.answered(m.KeysLookedUp(7, b"\x00"), 0)
    lookups.ask(7, [maker.event(maker.assign())])
    with pytest.raises(InvariantViolation):
        lookups.answered(m.KeysLookedUp(7, b"\x00\x00"), 0)


def test_a_failed_look_up_comes_back_with_a_growing_delay() -> None:
    """The leaders come back with the time of the next try; an answer ends the growth."""
    context, maker = context_of(), EventMaker()
    lookups, leader = Lookups(context), maker.event(maker.assign())
    delays = []
    for number in range(3):
        lookups.ask(number, [leader])
        at, leaders = lookups.failed(number)
        assert leaders == [leader]
        delays.append(at - START)
    base = context.policy.inner_backoff.base
    assert all(base * 2**n / 2 <= delay <= base * 2**n for n, delay in enumerate(delays))
    lookups.ask(9, [leader])
    lookups.answered(m.KeysLookedUp(9, b"\x00"), 0)
    assert lookups.failures == 0


def test_leaders_wait_until_they_are_due() -> None:
    """Leaders to be looked up later are handed back when their time comes, once."""
    context, maker = context_of(), EventMaker()
    lookups, state = Lookups(context), maker.assign()
    soon, late = maker.event(state, "a"), maker.event(state, "b")
    lookups.later(START + 2, [late])
    lookups.later(START + 1, [soon])
    assert (lookups.due(), [*lookups.take_due()]) == (START + 1, [])
    context.now = Instant(START + 1, UNIX + 1)
    assert ([*lookups.take_due()], lookups.due()) == ([soon], START + 2)


def test_a_purge_hands_back_leaders_whose_partition_is_drained() -> None:
    """Leaders that wait and may begin nothing new are handed back; the others go on waiting."""
    maker, lookups = EventMaker(), Lookups(context_of())
    mine, theirs = maker.assign(0), maker.assign(1)
    kept, gone = maker.event(mine, "a"), maker.event(theirs, "b")
    lookups.later(START, [kept, gone])
    theirs.draining = True
    assert lookups.purge() == [gone]
    assert [*lookups.take_due()] == [kept]


def test_the_lease_counts_from_when_it_was_asked_for() -> None:
    """A renewal that is answered late gives no more time; the first session is no other one, a second is."""
    context = context_of(lease=30.0)
    lease = Lease(context)
    assert lease.until == -inf
    lease.go_on()
    [renew] = context.commands
    assert isinstance(renew, m.RenewLease)
    context.now = Instant(START + 5, UNIX + 5)
    assert not lease.renewed(m.LeaseRenewed(renew.number, 1))
    assert START + 28 < lease.until < START + 30
    assert lease.due() == START + 5 + RENEW_EVERY
    context.now = Instant(START + 6, UNIX + 6)
    lease.go_on()
    again = context.commands[-1]
    assert isinstance(again, m.RenewLease)
    assert lease.renewed(m.LeaseRenewed(again.number, 2))


def test_a_suspension_shortens_the_lease_and_a_loss_ends_it() -> None:
    """The time that the monotonic clock does not show counts; after a loss nothing holds until the next renewal."""
    context = context_of(lease=30.0)
    lease = Lease(context)
    lease.notice_suspension(context.now)
    lease.go_on()
    lease.renewed(m.LeaseRenewed(context.commands[-1].number, 1))  # type: ignore[union-attr]  # a renewal
    before = lease.until
    lease.notice_suspension(Instant(START, UNIX + 10))
    assert (lease.until, lease.due()) == (before - 10, -inf)
    lease.lost()
    assert lease.until == -inf


def test_without_a_shared_store_the_lease_holds_indefinitely() -> None:
    """It is never due, and nothing is asked."""
    context = context_of()
    lease = Lease(context)
    lease.go_on()
    assert (lease.until, lease.due(), context.commands) == (inf, None, [])
