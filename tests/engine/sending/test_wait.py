"""When a batch goes: it is full, or its oldest event has waited the wait."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine import messages as m
from consumer.engine.model import REAL_API, Announcement, Backoff, Policy
from consumer.engine.sending.gate import Gate, Quota
from consumer.engine.sending.queue import AccountQueue
from tests.engine.building import (
    ACCOUNT,
    NO,
    OTHER_ACCOUNT,
    PROPERTY,
    Core,
    event,
    event_ids,
    make_runs,
    reading,
)
from tests.engine.dedup.test_shared import LEASE, TIMEOUT
from tests.support.shared_keys import SharedKeys

LINGER = 5.0
QUOTA = 120
BATCH = 10
SMALL, FLOOD = [f"{number}" for number in range(19)], "19"
SLICES = 8
ANSWER_TIME = 0.3
"""Seconds until a call is answered."""


def core_of(**policy: Any) -> Core:
    """Return a core with a partition and a linger long enough to show which batches wait for it."""
    return reading(**{"linger": LINGER} | policy)


def come(core: Core, *names: str, account: str = ACCOUNT) -> None:
    """Fetch events and answer their look-up."""
    core.fetch(*(event(name, account) for name in names))
    core.look_up()


def in_flight(core: Core) -> list[list[str]]:
    """Return the event ids of each call in flight."""
    return [event_ids(one) for one in core.waiting if isinstance(one, m.Send)]


def test_a_lone_event_waits_for_the_linger_and_no_longer() -> None:
    """An event waits for its batch also where no call is in flight and the quota is unused; others join it."""
    core = core_of()
    come(core, "a")
    core.advance(LINGER - 1.0)
    come(core, "b")
    core.advance(0.999)
    assert in_flight(core) == []
    core.advance(0.001)
    assert in_flight(core) == [["a", "b"]]


def test_a_call_in_flight_delays_no_batch() -> None:
    """A batch is sent when it has waited, although the call before it takes longer."""
    core = core_of()
    come(core, "a")
    core.advance(LINGER)
    come(core, "b")
    core.advance(LINGER)
    assert in_flight(core) == [["a"], ["b"]]


def test_a_full_batch_waits_for_nothing() -> None:
    """A full batch is sent at once, beside the calls in flight."""
    core = core_of(batch_events=2)
    come(core, "a", "b", "c", "d", "e")
    assert in_flight(core) == [["a", "b"], ["c", "d"]]


@pytest.mark.parametrize("closed", ["concurrency", "gate", "lease"])
def test_while_no_call_may_begin_the_batch_fills(closed: str) -> None:
    """While no call may begin, a batch that has waited takes what comes, and goes as one once a call may begin."""
    shared = {"lease": LEASE, "call_timeout": TIMEOUT} if closed == "lease" else {}
    core = core_of(linger=0.1, concurrency=1, unreachable_after=1e9, **shared)
    if closed == "lease":
        core.fetch(event("a"), event("b"))
        core.tick()
        core.feed(m.LeaseRenewed(core.take(m.RenewLease).number, 1))
        asked = core.take(m.LookUpKeys)
        core.feed(m.LeaseLost())
        core.feed(m.KeysLookedUp(asked.number, [0, 0], 1))
        core.advance(1.0)
        assert in_flight(core) == []
        core.feed(m.LeaseRenewed(core.take(m.RenewLease).number, 1))
        assert in_flight(core) == [["a", "b"]]
        return
    come(core, "first")
    core.advance(0.1)
    send = core.take(m.Send)
    if closed == "gate":
        core.answer(send, 429, NO, headers={"retry-after": "7"})
    for name in "abc":
        core.advance(1.0)
        come(core, name)
    assert in_flight(core) == []
    if closed == "gate":
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
        assert event_ids(send) == ["first"]  # a retry goes at its time, before the batch
    core.deliver_one(send)
    core.advance(0.0)
    assert in_flight(core) == [["a", "b", "c"]]


@pytest.mark.parametrize(
    ("calls", "members", "seconds"),
    [(5000, 1, 0.024), (120, 1, 1.0), (120, 10, 10.0), (120, 50, 60.0), (3, 7, 120.0)],
)
def test_the_wait_is_two_minutes_by_this_member_s_calls(calls: int, members: int, seconds: float) -> None:
    """Without a linger of its own a batch waits two minutes divided by this member's part of the calls a minute."""
    assert Quota(Policy(calls_per_minute=calls, quota_members=members)).wait == pytest.approx(seconds)
    core = core_of(linger=0.0, calls_per_minute=calls, quota_members=1, batch_events=3)
    core.feed(m.GroupSize(members))
    come(core, "a")
    core.advance(seconds - 0.001)
    assert in_flight(core) == []
    core.advance(0.0011)
    assert in_flight(core) == [["a"]]


def test_a_longer_linger_counts() -> None:
    """An explicit linger is always waited, also where the quota would allow a shorter wait."""
    assert Gate(Policy(linger=30.0)).filled_at(100.0) == 130.0
    assert Gate(Policy(linger=0.1)).filled_at(100.0) == pytest.approx(100.1)


def test_what_the_headers_leave_is_spent_evenly() -> None:
    """With 10 calls left for a minute a member that is alone waits for as long as two of its calls may take, and five
    members wait for longer; a full batch goes at once."""
    gate = Gate(Policy())
    gate.limited(10, 60.0, 100.0)
    assert gate.filled_at(100.0) == pytest.approx(110.0)  # then 50 s are left, 5 a call
    assert gate.filled_at(150.0) == pytest.approx(150.0 + 10.0 / 6)
    assert gate.filled_at(160.0) == pytest.approx(160.1)
    assert gate.opens_at(100.0, 0) == 100.0
    quota = Quota(Policy(quota_members=1))
    quota.group_has(5, 0.0)
    gate = Gate(Policy(), quota)
    gate.limited(10, 60.0, 100.0)
    assert gate.filled_at(100.0) == pytest.approx(130.0)


@PROPERTY
@given(
    st.integers(1, 6),
    st.lists(
        st.tuples(st.floats(0.0, 70.0), st.none() | st.tuples(st.integers(0, 9), st.floats(0.0, 90.0))),
        max_size=12,
    ),
)
def test_a_batch_may_go_at_the_named_time(
    quota: int, steps: list[tuple[float, tuple[int, float] | None]]
) -> None:
    """At the time that the queue names its batch is taken, or the timer would spin, and never before it."""
    policy = Policy(calls_per_minute=quota)
    gate, now = Gate(policy), 1000.0
    queue = AccountQueue(ACCOUNT, policy, gate)
    for number, (wait, reported) in enumerate(steps):
        now += wait
        if reported is not None:
            gate.limited(*reported, now)
        [one] = make_runs(1, since=now)
        queue.add(one, now)
        due = queue.due()
        assert due is not None
        assert due >= now + 120.0 / quota
        assert queue.take(due - 0.001, 2 * number) is None
        assert queue.take(due, 2 * number + 1) is not None
        now = due
        gate.called(now)


def test_retries_go_at_their_time() -> None:
    """A batch that is tried again goes when its backoff is over, and bisected halves at once, without the wait."""
    core = core_of(delivery_backoff=Backoff(base=1.0, cap=1.0), linger=100.0)
    come(core, "a", "b")
    core.advance(100.0)
    core.feed(m.Unanswered(core.take(m.Send).number, "timeout"))
    core.advance(1.0)
    assert in_flight(core) == [["a", "b"]]
    core.answer(core.take(m.Send), 400, NO)
    assert in_flight(core) == [["a"], ["b"]]


def test_small_batches_of_many_accounts_let_a_full_one_have_its_turn() -> None:
    """Where small batches of other accounts take all calls that may be in flight, each account has its turn."""
    core = core_of(concurrency=2, batch_events=2, linger=0.1)
    for number in range(4):
        come(core, f"{number}", account=f"{number}")
    come(core, "a", "b", "c", "d", account=OTHER_ACCOUNT)
    assert in_flight(core) == [["a", "b"], ["c", "d"]]
    core.advance(0.1)
    come(core, "e", "f", account=OTHER_ACCOUNT)
    sent = []
    for _ in range(6):
        sent += [event_ids(core.accept())]
        core.store_keys()
    assert sent[2:] == [["0"], ["1"], ["2"], ["3"]]
    assert in_flight(core) == [["e", "f"]]


class Member:
    """A member with 19 accounts that get few events and one that gets as many as may be delivered.

    Each call is answered after `ANSWER_TIME`; a shared key store (`server`) gives the calls.
    """

    def __init__(self, core: Core, server: SharedKeys, others: Sequence[Announcement]) -> None:
        """`others`: what the other members that share the key store announce."""
        self.core = core
        self.waits: list[float] = []
        """Seconds from the look-up of each event of a small account to its call."""
        self.full: list[float] = []
        """When each full batch of the other account was sent."""
        core.gives_calls = False
        self._server, self._others = server, others
        self._since: dict[str, float] = {}
        self._calls: list[tuple[float, m.Send]] = []
        self._names = iter(range(10**9))
        core.tick()
        self._respond()
        core.assign()

    def fetch(self, accounts: Sequence[str]) -> None:
        """Let an event of each of these accounts come, and those of three full batches, if fewer wait."""
        core, waiting = self.core, self.core.pipeline.dispatcher.queue(FLOOD).queued
        some = [*accounts, *[FLOOD] * (3 * BATCH if waiting < 3 * BATCH else 0)]
        names = [f"{next(self._names)}" for _ in some]
        self._since |= {name: core.now for name, one in zip(names, some, strict=True) if one != FLOOD}
        core.fetch(*(event(name, account) for name, account in zip(names, some, strict=True)))
        self._respond()

    def live(self, until: float) -> None:
        """Let time pass."""
        core = self.core
        while core.now < until:
            deadline = core.pipeline.next_deadline()
            ends = min([until, *(at for at, _ in self._calls[:1]), *([] if deadline is None else [deadline])])
            core.now = max(core.now, ends)
            while self._calls and self._calls[0][0] <= core.now:
                core.accept(self._calls.pop(0)[1])
            core.tick()
            self._respond()

    def _respond(self) -> None:
        core = self.core
        while core.has(m.RenewLease):
            core.feed(m.LeaseRenewed(core.take(m.RenewLease).number, 1, (), self._others))
        while core.has(m.LookUpKeys):
            asked = core.take(m.LookUpKeys)
            core.feed(
                m.KeysLookedUp(asked.number, [0] * (len(asked.keys) // 16), 1 if core.policy.lease else 0)
            )
        core.store_keys()
        while core.has(m.AcquirePermits):
            ask = core.take(m.AcquirePermits)
            given = self._server.give(ask.account, ask.calls, ask.per_minute, ask.seconds)
            core.feed(m.PermitsGranted(ask.number, ask.account, *given))
        while core.has(m.Send):
            send = core.take(m.Send)
            self._calls.append((core.now + ANSWER_TIME, send))
            if send.account == FLOOD:
                assert send.events == BATCH
                self.full.append(core.now)
            else:
                self.waits += [core.now - self._since.pop(name) for name in event_ids(send)]


@pytest.mark.parametrize(("members", "shared"), [(1, False), (10, False), (50, False), (1, True), (10, True)])
def test_nobody_waits_for_long_and_full_batches_have_the_quota(members: int, shared: bool) -> None:
    """With 1, 10 and 50 members, 20 accounts and a quota of 120, 99 in 100 events wait for at most three waits, small
    batches use at most half of an account's quota, and full batches of another account its whole."""
    more = {"lease": LEASE, "call_timeout": TIMEOUT} if shared else {"quota_members": 1}
    cores = [
        Core(
            linger=0.1,
            calls_per_minute=QUOTA,
            batch_events=BATCH,
            unreachable_after=1e9,
            destination=REAL_API,
            **more,
        )
        for _ in range(members if shared else 1)
    ]
    server = SharedKeys(lambda: cores[0].now)
    others = [Announcement("shop", "", REAL_API, ())] * (members - 1)
    group = [Member(core, server, others) for core in cores]
    if not shared:  # the members know nothing of each other but their number
        cores[0].feed(m.GroupSize(members))
    wait = 120.0 * members / QUOTA
    begin, rounds = cores[0].now, 24
    for number in range(rounds):
        for at, one in enumerate(group):
            one.fetch([name for name in SMALL if (int(name) + number + at) % 2])
        for moment in range(1, SLICES + 1):  # the members' clocks go together
            for one in group:
                one.live(begin + (number + moment / SLICES) * wait / 4)
    waits = sorted(wait for one in group for wait in one.waits)
    assert len(waits) > 19 * rounds // 3 * len(group)
    assert waits[len(waits) * 99 // 100] <= 3 * wait
    minutes = rounds * wait / 4 / 60.0
    part = QUOTA // members if not shared else QUOTA
    for account in SMALL:
        calls = sum(isinstance(one, m.Send) and one.account == account for core in cores for one in core.log)
        assert calls <= part * minutes / 2 + len(cores)
    full = sorted(at for one in group for at in one.full)
    assert len(full) >= 0.9 * part * minutes
    assert max(later - before for before, later in pairwise(full)) <= 61.0
