"""A key store that members share: an event is claimed before it is sent, and only while the lease holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from consumer.engine import messages as m
from consumer.engine.dedup.lease import RENEW_EVERY
from consumer.engine.dedup.lookups import ASK_AGAIN
from consumer.engine.figures.waits import WaitsFor
from consumer.engine.model import Note
from consumer.engine.reading import split_keys
from tests.engine.building import Core, answer_body, event, event_ids, reading

LEASE = 60.0
TIMEOUT = 30.0


def core_of_a_member(session: int = 1, **policy: Any) -> Core:
    """Return a core with a shared key store, a partition and a lease that was just renewed."""
    core = Core(lease=LEASE, call_timeout=TIMEOUT, unreachable_after=1e9, **policy)
    core.tick()
    renew(core, session)
    core.assign()
    return core


def sending_member(*values: bytes, **policy: Any) -> Core:
    """Return such a core, which has claimed these events and sends them."""
    core = core_of_a_member(**policy)
    core.fetch(*values)
    answer_claims(core, *[0] * len(values))
    core.advance(0.0)
    return core


def renew(core: Core, session: int = 1) -> None:
    """Let the store renew our lease in this session."""
    core.feed(m.LeaseRenewed(core.take(m.RenewLease).number, session))


def pass_time(core: Core, seconds: float, session: int = 1) -> None:
    """Let time pass, and answer each renewal at once."""
    end = core.now + seconds
    while core.now < end:
        core.advance(min(RENEW_EVERY, end - core.now))
        while core.has(m.RenewLease):
            renew(core, session)


def answer_claims(core: Core, *found: int, session: int = 1) -> m.LookUpKeys:
    """Let the store answer the oldest look-up."""
    asked = core.take(m.LookUpKeys)
    core.feed(m.KeysLookedUp(asked.number, found, session))
    return asked


def keys_in(commands: Sequence[m.Command]) -> list[bytes]:
    """Return the keys that these commands release."""
    return [key for one in commands if isinstance(one, m.ReleaseKeys) for key in split_keys(one.keys)]


def test_a_store_that_is_not_shared_has_no_lease() -> None:
    """Without a shared key store no lease is renewed and no key released."""
    core = reading(event("a"))
    core.revoke(0)
    core.advance(100.0)
    assert not any(isinstance(one, m.RenewLease | m.ReleaseKeys) for one in core.log)
    assert core.statistics().lease_left is None


def test_the_lease_is_renewed_each_second_and_one_renewal_is_under_way_at_a_time() -> None:
    """The lease is renewed from the start, each second, with one renewal in flight at a time."""
    core = Core(lease=LEASE, call_timeout=TIMEOUT)
    core.tick()
    core.advance(10.0)
    assert sum(isinstance(one, m.RenewLease) for one in core.log) == 1
    renew(core)
    core.advance(RENEW_EVERY - 0.001)
    assert not core.has(m.RenewLease)
    core.advance(0.001)
    assert core.has(m.RenewLease)


def test_a_call_begins_only_if_the_lease_holds_until_its_time_limit() -> None:
    """A call begins only if the lease, counted from the question for it, outlasts the call's time limit."""
    core = core_of_a_member(linger=0.0)
    begun = core.now
    core.advance(RENEW_EVERY)
    asked = core.take(m.RenewLease)
    core.fetch(event("early"))
    answer_claims(core, 0)
    core.advance(0.0)
    assert event_ids(core.take(m.Send)) == ["early"]
    core.advance(
        begun + LEASE - TIMEOUT - 1.0 - core.now + 0.001
    )  # now the lease ends before the call's time limit
    core.fetch(event("late"))
    answer_claims(core, 0)
    core.advance(5.0)
    assert not core.has(m.Send)
    assert core.statistics().lease_left == LEASE - 1.0 - (core.now - begun)
    core.feed(m.LeaseRenewed(asked.number, 1))  # the lease counts from its question, so it is still too short
    assert not core.has(m.Send)
    pass_time(core, 0.001)
    core.advance(RENEW_EVERY)
    renew(core)
    assert event_ids(core.take(m.Send)) == ["late"]


def test_a_call_must_begin_while_its_claims_hold() -> None:
    """A call has a time by which it must begin, since the process may be frozen between decision and call."""
    core = core_of_a_member(linger=0.0, away=2 * LEASE)
    renewed_at = core.now
    core.fetch(event("a"))
    answer_claims(core, 0)
    core.advance(0.0)
    assert core.take(m.Send).start_deadline == renewed_at + LEASE - 1.0 - TIMEOUT


def test_a_renewal_that_fails_is_repeated_and_reported() -> None:
    """A renewal that fails is repeated, and the store counts as failing until one is answered."""
    core = core_of_a_member()
    core.advance(RENEW_EVERY)
    core.feed(m.KeyStoreFailed(core.take(m.RenewLease)))
    assert core.statistics().key_store_fails
    core.advance(RENEW_EVERY)
    renew(core)
    assert not core.statistics().key_store_fails


def test_the_cause_is_what_renewals_say() -> None:
    """While renewals fail, look-ups fail for want of a lease, which does not take the place of the cause."""
    core = core_of_a_member()
    core.fetch(event("a"))
    core.advance(RENEW_EVERY)
    core.feed(m.KeyStoreFailed(core.take(m.RenewLease), "it refuses the password"))
    core.feed(m.KeyStoreFailed(core.take(m.LookUpKeys), "the lease has ended"))
    assert core.statistics().key_store_trouble == "it refuses the password"


def test_what_another_member_has_in_flight_waits_for_its_outcome() -> None:
    """An event in flight at another member is looked up each second until it is delivered or released there."""
    core = core_of_a_member(linger=0.0)
    core.fetch(event("a"), event("b"), event("c"), event("a"))
    answer_claims(core, 2, 2, 0)
    statistics = core.statistics()
    assert statistics.claimed_elsewhere == 2
    assert statistics.oldest_open is not None
    assert statistics.oldest_open.waits_for is WaitsFor.MEMBER
    core.advance(0.0)
    assert event_ids(core.take(m.Send)) == ["c"]
    pass_time(core, ASK_AGAIN)
    answer_claims(core, 2, 2)
    pass_time(core, ASK_AGAIN)
    answer_claims(core, 1, 0)
    core.advance(0.0)
    assert event_ids(core.take(m.Send)) == ["b"]
    totals = core.statistics().totals
    assert (totals.duplicate, totals.open) == (2, 2)  # the second copy of "a" followed the first
    assert core.statistics().claimed_elsewhere == 0


def test_claims_of_a_session_that_ended_are_made_again() -> None:
    """When a session ended, queued events are claimed again before they are sent; calls in flight go on."""
    core = sending_member(event("flying"), concurrency=1)
    flying = core.take(m.Send)
    core.fetch(event("queued"), event("taken over"))
    answer_claims(core, 0, 0)
    pass_time(core, RENEW_EVERY, session=2)
    asked = core.take(m.LookUpKeys)
    assert len(split_keys(asked.keys)) == 2
    core.deliver_one(flying)
    assert not core.has(m.Send)
    core.feed(m.KeysLookedUp(asked.number, [0, 2], 2))
    core.advance(0.0)
    assert event_ids(core.take(m.Send)) == ["queued"]
    assert core.reports("claimed_again")[0].fields == {"events": 2}


def test_what_was_sent_without_an_answer_and_delivered_by_another_member_is_counted() -> None:
    """An event sent without an answer and then delivered by another member is counted as taken over: a machine
    frozen for longer than its lease finds the time limits of its calls over."""
    core = sending_member(event("a"), event("b"))
    send = core.take(m.Send)
    pass_time(core, RENEW_EVERY, session=2)
    core.feed(m.Unanswered(send.number, "timeout"))
    core.fetch(event("c"))
    answer_claims(core, 1, 0, session=2)
    answer_claims(core, 1, session=2)
    statistics = core.statistics()
    assert (statistics.totals.duplicate, statistics.counters.taken_over) == (2, 1)


def test_what_goes_again_after_it_was_claimed_again_is_counted_if_the_outcome_is_unknown() -> None:
    """An event that is sent again under a new claim counts as an unclear repeat if its outcome was unknown."""
    core = sending_member(event("a", age=7200))
    send = core.take(m.Send)
    pass_time(core, RENEW_EVERY, session=2)
    core.feed(m.Unanswered(send.number, "timeout"))
    answer_claims(core, 0, session=2)
    core.advance(0.0)
    assert core.has(m.Send)
    assert core.statistics().counters.unclear_repeats == 1


def test_what_another_member_has_taken_over_is_not_confirmed_by_us() -> None:
    """An event delivered after our lease ended stays open until its key is durable, and is counted once."""
    core = sending_member(event("a"), event("b"))
    core.accept()
    core.feed(m.KeysStored(core.take(m.StoreKeys).number, [1, 0]))
    assert core.statistics().totals.open == 1
    assert core.committable() == 1
    pass_time(core, 0.9)
    assert not core.has(m.StoreKeys)
    pass_time(core, ASK_AGAIN)
    core.feed(m.KeysStored(core.take(m.StoreKeys).number, [0]))
    pass_time(core, ASK_AGAIN)
    core.feed(m.KeysStored(core.take(m.StoreKeys).number, [1]))
    statistics = core.statistics()
    assert (statistics.totals.delivered, statistics.totals.open) == (2, 0)
    assert statistics.counters.taken_over == 1


def test_a_refused_event_is_released_unless_a_follower_takes_its_place() -> None:
    """A refused event's key is released, for copies at other members, unless a follower takes its place."""
    core = core_of_a_member(linger=0.0)
    core.fetch(event("a"), event("b"), event("b", other=1))
    keys = split_keys(answer_claims(core, 0, 0).keys)
    core.advance(0.0)
    send = core.take(m.Send)
    outcomes = [("failed", "no", None)] * 2
    commands = core.answer(send, 200, answer_body(outcomes))
    assert keys_in(commands) == keys[:1]
    assert core.take(m.LookUpKeys).keys == keys[1]


def test_a_failed_look_up_renews_at_once() -> None:
    """A failed look-up renews the lease at once, before the next look-up: the session may have ended."""
    core = core_of_a_member()
    core.fetch(event("a"))
    assert not core.has(m.RenewLease)
    core.feed(m.KeyStoreFailed(core.take(m.LookUpKeys)))
    assert core.has(m.RenewLease)


def test_a_release_or_a_note_that_fails_is_not_tried_again() -> None:
    """A release or note that fails is not repeated: claims end with the lease, and a note only saves calls."""
    core = core_of_a_member()
    commands = len(core.log)
    for command in (m.ReleaseKeys(bytes(16)), m.ShareNote(Note("", "", 401, None, 60.0))):
        core.feed(m.KeyStoreFailed(command))
    assert len(core.log) == commands
    assert not core.statistics().key_store_fails


def test_a_refused_batch_is_bisected_under_the_same_claims() -> None:
    """Halves of a refused batch keep their claims: claimed again, they would join in one batch again."""
    core = sending_member(event("good"), event("poison"))
    core.answer(core.take(m.Send), 400, b'{"code": 1, "message": "no"}')
    halves = [core.take(m.Send), core.take(m.Send)]
    assert [event_ids(one) for one in halves] == [["good"], ["poison"]]
    assert not core.has(m.LookUpKeys)


def test_what_is_left_of_a_batch_goes_again_under_the_same_claims() -> None:
    """Events of a batch that the platform did not judge are sent again under the same claims."""
    core = sending_member(event("good"), event("poison"))
    said = [("processed", None, None), ("failed", "no", None)]
    core.answer(core.take(m.Send), 422, answer_body(said))
    assert not core.has(m.LookUpKeys)


def test_events_that_another_member_has_taken_over_do_not_hold_up_the_others() -> None:
    """Two members that each wait for the other's outcome go on sending other events, so both outcomes come."""
    core = sending_member(event("a"), event("b"), concurrency=1, batch_events=2)
    core.accept()
    core.feed(m.KeysStored(core.take(m.StoreKeys).number, [0, 0]))
    core.fetch(event("c"))
    answer_claims(core, 0)
    core.advance(0.0)
    assert event_ids(core.take(m.Send)) == ["c"]


def test_delivered_keys_are_confirmed_as_soon_as_the_store_answers_again() -> None:
    """Delivered keys are confirmed as soon as the store answers again, without the backoff: our lease may end soon."""
    core = sending_member(event("a"))
    core.accept()
    for _ in range(12):
        core.until(lambda: core.has(m.StoreKeys))
        core.feed(m.KeyStoreFailed(core.take(m.StoreKeys)))
    core.advance(RENEW_EVERY)
    assert not core.has(m.StoreKeys)
    renew(core, session=2)
    assert core.has(m.StoreKeys)


def test_a_lease_that_is_lost_holds_no_longer_whatever_was_known_of_it() -> None:
    """A lost lease no longer holds, and is renewed at once; a renewal that was in flight proves nothing."""
    core = core_of_a_member()
    core.fetch(event("a"))
    core.advance(RENEW_EVERY)
    before = core.take(m.RenewLease)
    core.feed(m.LeaseLost())
    answer_claims(core, 0)
    core.feed(m.LeaseRenewed(before.number, 1))
    core.feed(m.KeyStoreFailed(core.take(m.RenewLease)))
    core.advance(0.9)
    assert not core.has(m.Send)
    core.advance(0.1)
    renew(core, session=2)
    answer_claims(core, 0, session=2)
    core.advance(5.0)
    assert core.has(m.Send)


def test_a_delivery_by_another_member_as_well_is_counted() -> None:
    """An event that another member took over and confirmed is settled here, and counted as taken over."""
    core = sending_member(event("a"), event("b"))
    core.accept()
    core.feed(m.KeysStored(core.take(m.StoreKeys).number, [2, 1]))
    statistics = core.statistics()
    assert (statistics.totals.delivered, statistics.totals.open) == (2, 0)
    assert statistics.counters.taken_over == 1
