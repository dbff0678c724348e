"""The quota of an ad account, which members share through their key store."""

from __future__ import annotations

from typing import Any

from consumer.engine import messages as m
from consumer.engine.dedup.lease import RENEW_EVERY
from consumer.engine.figures.waits import WaitsFor
from consumer.engine.model import REAL_API, Announcement
from tests.engine.building import ACCOUNT, NO, OTHER_ACCOUNT, Core, event, sending
from tests.engine.dedup.test_shared import LEASE, TIMEOUT, pass_time, renew
from tests.support.shared_keys import SharedKeys

SECONDS = 2.0
"""Seconds within which a granted call must begin."""


def member(**policy: Any) -> Core:
    """Return a core with a shared key store, a lease and a partition; the test grants calls itself."""
    canonical = {"linger": 0.0, "batch_events": 1, "unreachable_after": 1e9, **policy}
    core = Core(lease=LEASE, call_timeout=TIMEOUT, **canonical)
    core.gives_calls = False
    core.tick()
    renew(core)
    core.assign()
    return core


def queue_up(core: Core, *ids: str, account: str = ACCOUNT) -> None:
    """Fetch events and grant their claims, so that they wait for a call."""
    core.fetch(*(event(one, account) for one in ids))
    asked = core.take(m.LookUpKeys)
    core.feed(m.KeysLookedUp(asked.number, [0] * len(ids), 1))
    core.advance(0.0)


def give(core: Core, calls: int, wait: float = 0.0) -> m.AcquirePermits:
    """Let the store answer the oldest question for calls."""
    asked = core.take(m.AcquirePermits)
    core.feed(m.PermitsGranted(asked.number, asked.account, calls, wait))
    return asked


def sent(core: Core) -> int:
    """Return the number of calls made so far."""
    return sum(isinstance(one, m.Send) for one in core.log)


def test_a_member_asks_for_the_calls_that_could_begin_now() -> None:
    """A member asks for the calls that could begin now, one question at a time, and makes none before the answer."""
    core = member(concurrency=3, destination=REAL_API, calls_per_minute=70)
    queue_up(core, *"abcde")
    asked = core.take(m.AcquirePermits)
    assert (asked.destination, asked.account, asked.per_minute) == (REAL_API, ACCOUNT, 70)
    assert (asked.calls, asked.seconds) == (3, SECONDS)
    core.advance(1.0)
    assert not core.has(m.AcquirePermits)
    assert sent(core) == 0
    core.feed(m.PermitsGranted(asked.number, ACCOUNT, 3, 0.0))
    assert sent(core) == 3
    core.deliver_one()
    assert core.take(m.AcquirePermits).calls == 1


def test_nothing_is_asked_for_while_nothing_waits() -> None:
    """A member without waiting events asks for no calls."""
    core = member()
    core.advance(600.0)
    assert not any(isinstance(one, m.AcquirePermits) for one in core.log)


def test_a_store_that_is_not_shared_is_not_asked() -> None:
    """Without a shared key store a member has the whole quota and does not ask."""
    core = sending(event("a"))
    assert core.has(m.Send)
    assert not any(isinstance(one, m.AcquirePermits) for one in core.log)


def test_each_account_has_a_quota_of_its_own() -> None:
    """Each account has its own quota: one may be used up while calls of another are made."""
    core = member()
    queue_up(core, "a")
    queue_up(core, "b", account=OTHER_ACCOUNT)
    assert give(core, 0, wait=30.0).account == ACCOUNT
    assert give(core, 1).account == OTHER_ACCOUNT
    assert [one.account for one in core.log if isinstance(one, m.Send)] == [OTHER_ACCOUNT]


def test_a_quota_that_is_used_up_throttles_until_a_call_is_free() -> None:
    """When the quota is used up, the account is throttled in /status until the named time, and then asks again."""
    core = member()
    queue_up(core, "a")
    give(core, 0, wait=12.5)
    [account] = core.statistics().accounts
    assert (account.state, account.throttled_for) == ("throttled", 12.5)
    assert core.statistics().oldest_open is not None
    core.advance(12.499)
    assert not core.has(m.AcquirePermits)
    core.advance(0.001)
    give(core, 1)
    assert core.has(m.Send)


def test_calls_that_were_given_and_not_used_are_void() -> None:
    """Granted calls not used within two seconds of the question are void: the store counts them no longer."""
    core = member(concurrency=3)
    queue_up(core, "a", "b", "c")
    core.revoke(0)
    give(core, 3)
    core.assign(epoch=2)
    core.advance(SECONDS)
    queue_up(core, "d")
    assert sent(core) == 0
    give(core, 1)
    assert sent(core) == 1


def test_calls_that_come_expired_are_void_and_more_time_is_asked_for() -> None:
    """Calls that are granted too late are void, and the next question asks for more time."""
    core = member()
    queue_up(core, "a")
    core.advance(3.0)
    assert give(core, 1).seconds == SECONDS
    assert sent(core) == 0
    core.advance(3.0)
    assert give(core, 1).seconds == SECONDS + 3.0
    assert sent(core) == 1


def test_a_store_that_does_not_answer_is_asked_again() -> None:
    """After a failed question the key store counts as failing, and the member asks again after a backoff."""
    core = member()
    queue_up(core, "a")
    asked = core.take(m.AcquirePermits)
    oldest = core.statistics().oldest_open
    assert oldest is not None
    assert oldest.waits_for is WaitsFor.KEY_STORE
    core.feed(m.KeyStoreFailed(asked))
    assert core.statistics().key_store_fails
    assert core.statistics().counters.failures["key_store_quota"] == 1
    core.advance(1.0)
    give(core, 1)
    assert core.has(m.Send)
    assert not core.statistics().key_store_fails


def test_a_failed_question_without_waiting_events_is_forgotten() -> None:
    """When the partitions are lost, a failed question is not repeated, and the key store counts as working."""
    core = member()
    queue_up(core, "a")
    asked = core.take(m.AcquirePermits)
    core.feed(m.KeyStoreFailed(asked))
    assert core.statistics().key_store_fails
    core.lose(0)
    assert not core.statistics().key_store_fails


def test_a_probe_is_a_call_of_the_quota() -> None:
    """A probe is a call of the quota, and one call is asked for, however many batches wait."""
    core = member(concurrency=4)
    queue_up(core, *"abcd")
    give(core, 4)
    for _ in range(4):
        core.answer(core.take(m.Send), 401, NO)
    pass_time(core, 10.0)
    core.feed(m.TokenRead(True))
    assert give(core, 1).calls == 1
    assert sent(core) == 5


def test_the_wait_grows_with_the_live_sessions_of_the_same_destination() -> None:
    """With N live sessions a small batch waits two minutes divided by an Nth of the quota; other destinations have
    quotas of their own. It is asked for no call before."""
    core = member(batch_events=100, calls_per_minute=120, destination=REAL_API)
    others = [Announcement("shop", "", REAL_API, ())] * 9 + [Announcement("shop", "", "sandbox_", ())]

    def pass_a_second() -> None:
        core.advance(RENEW_EVERY)
        core.feed(m.LeaseRenewed(core.take(m.RenewLease).number, 1, (), others))

    pass_a_second()
    queue_up(core, "a")
    for _ in range(9):
        pass_a_second()
    core.advance(0.999)
    assert not core.has(m.AcquirePermits)
    core.advance(0.001)
    assert core.has(m.AcquirePermits)


def test_members_together_keep_the_quota_and_use_most_of_it() -> None:
    """Members together make no more calls than the quota in any 60 seconds, and use nine in ten of it."""
    quota, minutes = 40, 5
    cores = [member(concurrency=4, calls_per_minute=quota) for _ in range(3)]
    server = SharedKeys(lambda: cores[0].now)
    calls: list[float] = []
    for core in cores:
        queue_up(core, *(str(n) for n in range(quota * minutes * 2)))
    for _ in range(minutes * 600):
        for core in cores:
            core.advance(0.1)
            while core.has(m.RenewLease):
                renew(core)
            while core.has(m.AcquirePermits):
                asked = core.take(m.AcquirePermits)
                given = server.give(asked.account, asked.calls, asked.per_minute, asked.seconds)
                core.feed(m.PermitsGranted(asked.number, asked.account, *given))
            while core.has(m.Send):
                calls.append(core.now)
                core.deliver_one()
    assert all(later - first >= 60.0 - 0.1 for first, later in zip(calls, calls[quota:], strict=False))
    assert len(calls) >= 0.9 * quota * minutes
