"""The quota of an ad account, divided among members that have no shared key store."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from consumer.engine import messages as m
from consumer.engine.model import Policy
from consumer.engine.sending.gate import Gate, Quota
from tests.engine.building import PROPERTY, event, reading

QUOTA = 60


def divided(calls: int = QUOTA, members: int = 1) -> Policy:
    """Return a policy whose quota is divided by at least `members`."""
    return Policy(calls_per_minute=calls, quota_members=members)


def made(gate: Gate, begin: float, end: float) -> list[float]:
    """Return when calls are made that all wait from `begin` on, each answered at once."""
    calls: list[float] = []
    now = begin
    while True:
        opens = gate.opens_at(now, 0)
        assert opens is not None
        now = max(now, opens)
        if now >= end:
            return calls
        gate.called(now)
        calls.append(now)


def test_before_the_brokers_report_the_quota_is_divided_by_the_local_workers() -> None:
    """Until the brokers report the group's size, the quota is divided by the workers of this machine."""
    assert Quota(divided(61)).calls == 61
    assert Quota(divided(61, members=4)).calls == 15


def test_a_smaller_part_holds_at_once_and_a_larger_one_after_a_minute() -> None:
    """A smaller part holds at once; a larger one after a minute, as calls of members that left count until then."""
    quota = Quota(divided())
    quota.group_has(3, 0.0)
    assert (quota.members, quota.calls) == (3, 20)
    for now, members in ((10.0, 1), (20.0, 2), (30.0, 1), (69.9, 1)):
        quota.group_has(members, now)
        assert quota.members == 3
    quota.group_has(1, 70.0)
    assert quota.members == 2  # the most of the last minute: 2, at 20 s
    quota.group_has(1, 80.0)
    quota.group_has(1, 140.0)
    assert (quota.members, quota.calls) == (1, 60)


def test_a_member_that_comes_back_within_the_minute_changes_nothing() -> None:
    """A member that comes back within the minute changes nothing; the minute begins again when one leaves."""
    quota = Quota(divided())
    for now, members in ((0.0, 2), (10.0, 1), (40.0, 2), (50.0, 1), (71.0, 1)):
        quota.group_has(members, now)
    assert quota.members == 2
    quota.group_has(1, 110.0)
    assert quota.members == 1


def test_more_members_than_calls_make_one_call_each() -> None:
    """With more members than calls each member may make one call; a group size of 0 counts as 1."""
    quota = Quota(divided(3))
    quota.group_has(7, 0.0)
    assert quota.calls == 1
    quota.group_has(0, 10.0)
    quota.group_has(0, 70.0)
    assert quota.calls == 3


def test_what_a_shared_key_store_counts_is_not_divided() -> None:
    """The quota is not divided with a shared key store, which counts calls, or in a replay, which has no group."""
    quota = Quota(Policy(calls_per_minute=QUOTA))
    quota.group_has(3, 0.0)
    assert (quota.members, quota.calls) == (1, QUOTA)


def test_the_first_minute_s_calls_are_made_evenly() -> None:
    """In a minute that begins without calls the first goes at once and others evenly; later ones as they come."""
    gate = Gate(divided(6))
    assert made(gate, 0.0, 60.0) == [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]
    assert made(gate, 105.0, 120.0) == [105.0] * 5 + [110.0]
    assert made(gate, 300.0, 320.0) == [300.0, 310.0]


def test_where_nothing_is_divided_calls_go_as_they_come() -> None:
    """Without division (a shared key store, or a replay) calls are made as they come."""
    assert made(Gate(Policy(calls_per_minute=6)), 0.0, 60.0) == [0.0] * 6


def test_a_part_that_became_smaller_waits_until_so_few_calls_are_left_in_the_minute() -> None:
    """When the part becomes smaller, the next call waits until fewer calls than the part are left in the minute."""
    policy = divided(6)
    quota = Quota(policy)
    gate = Gate(policy, quota)
    assert len(made(gate, 0.0, 60.0)) == 6
    quota.group_has(3, 60.0)
    assert made(gate, 60.0, 121.0) == [100.0, 110.0]


def test_members_and_status_agree() -> None:
    """A new group size changes when calls are made, and /status shows the number by which the quota is divided."""
    core = reading(batch_events=1, concurrency=9, calls_per_minute=4, quota_members=1)
    core.feed(m.GroupSize(2))
    assert core.statistics().quota_members == 2
    core.fetch(*(event(one) for one in "abcd"))
    core.look_up()
    for seconds, sent in ((0.0, 1), (29.9, 1), (0.1, 2), (29.9, 2), (0.1, 3)):
        core.advance(seconds)
        assert sum(isinstance(one, m.Send) for one in core.log) == sent


@PROPERTY
@given(
    st.integers(4, 40),
    st.lists(st.tuples(st.sampled_from([-1, 1]), st.floats(0.0, 90.0)), min_size=1, max_size=8),
    st.booleans(),
)
def test_members_together_keep_within_what_is_promised(
    quota: int, changes: list[tuple[int, float]], bursts: bool
) -> None:
    """While loaded members come and go, the calls of any minute stay within the quota plus the parts of members
    that joined within a minute."""
    policy, now = divided(quota), 0.0
    members: list[tuple[Quota, Gate]] = []
    calls: list[float] = []
    joined: list[tuple[float, int]] = []
    for change, seconds in [(1, 30.0), *changes, (1, 90.0)]:
        if change > 0:
            one = Quota(policy)
            members.append((one, Gate(policy, one)))
        elif len(members) > 1:
            members.pop()
        for one, _ in members:
            one.group_has(len(members), now)
        if change > 0 and len(members) > 1:
            joined.append((now, members[-1][0].calls))
        end = now + seconds
        step = 7.0 if bursts else 0.5
        while now < end:
            for one, gate in members:
                one.group_has(len(members), now)
                while (gate.opens_at(now, 0) or 0.0) <= now:
                    gate.called(now)
                    calls.append(now)
            now += step
    for first in sorted(set(calls)):
        more = sum(part for at, part in joined if first - 60.0 <= at < first + 60.0)
        within = sum(first <= one < first + 60.0 for one in calls)
        rounding = len(joined) + 1
        assert within <= quota + more + rounding
