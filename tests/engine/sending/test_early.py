"""A batch that is neither full nor has lingered is sent early, where that costs other batches nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine import messages as m
from consumer.engine.account import Gate
from consumer.engine.model import Backoff, Policy
from tests.engine.building import ACCOUNT, NO, OTHER_ACCOUNT, PROPERTY, Core, event, event_ids

LINGER = 5.0


def core_of(**policy: Any) -> Core:
    """Return a core with a partition and a linger long enough to show which batches do not wait for it."""
    core = Core(**{"linger": LINGER} | policy)
    core.assign()
    return core


def come(core: Core, *names: str, account: str = ACCOUNT) -> None:
    """Fetch events and answer their look-up."""
    core.fetch(*(event(name, account) for name in names))
    core.look_up()


def in_flight(core: Core) -> list[list[str]]:
    """Return the event ids of each call in flight."""
    return [event_ids(one) for one in core.waiting if isinstance(one, m.Send)]


def test_a_lone_event_goes_at_once() -> None:
    """With no call in flight and an unused quota, an event is sent at once."""
    core = core_of()
    come(core, "a")
    assert in_flight(core) == [["a"]]


def test_what_comes_during_a_call_goes_in_one_batch_after_it() -> None:
    """Events that come during a call are sent in one batch after it, as in Nagle's algorithm."""
    core = core_of()
    come(core, "a")
    for name in ("b", "c", "d"):
        core.advance(0.1)
        come(core, name)
    assert in_flight(core) == [["a"]]
    core.accept()
    assert in_flight(core) == [["b", "c", "d"]]


def test_nothing_waits_longer_than_the_linger() -> None:
    """A batch is sent when it has lingered, although the call before it takes longer."""
    core = core_of()
    come(core, "a")
    core.advance(1.0)
    come(core, "b")
    core.advance(LINGER - 0.001)
    assert in_flight(core) == [["a"]]
    core.advance(0.001)
    assert in_flight(core) == [["a"], ["b"]]


def test_a_full_batch_waits_for_nothing() -> None:
    """A full batch is sent at once, beside the calls in flight."""
    core = core_of(batch_events=2)
    come(core, "a")
    come(core, "b", "c", "d")
    assert in_flight(core) == [["a"], ["b", "c"]]


def test_early_calls_are_as_far_apart_as_the_quota_says() -> None:
    """With a quota of 5,000 calls a minute, early calls are at least twelve milliseconds apart."""
    core = core_of()
    come(core, "a")
    core.accept()
    core.advance(0.001)
    come(core, "b")
    core.advance(0.0109)
    assert in_flight(core) == []
    core.advance(0.0002)
    assert in_flight(core) == [["b"]]


def test_early_calls_leave_half_of_the_quota() -> None:
    """Early calls use at most half of the quota, but two thirds in the first minute, as that begins unused."""
    core = core_of(calls_per_minute=60)
    made: list[float] = []
    waited: dict[str, float] = {}
    for number in range(1200):
        core.advance(0.25)
        come(core, f"{number}")
        waited[f"{number}"] = core.now
        while core.has(m.Send):
            send = core.accept()
            made.append(core.now)
            for name in event_ids(send):
                waited[name] = core.now - waited[name]
        core.store_keys()
    minutes = [len([at for at in made if begin <= at < begin + 60.0]) for begin in made]
    assert max(minutes) <= 40
    assert max(minutes[60:]) <= 31
    assert len(made) > 140
    assert max(waited[f"{number}"] for number in range(1190)) <= 3.0


def test_near_the_quota_batches_fill() -> None:
    """The fewer calls of the quota are left, the more time lies between early ones: full batches need them."""
    gate = Gate(Policy())
    waits = []
    for used in (1, 2500, 4000, 4999, 5000):
        while len(gate._calls) < used:
            gate.called(100.0)
        waits.append(gate.spares_at(100.0) - 100.0)
    assert waits == pytest.approx([60 / 4999, 60 / 2500, 0.06, 60.0, 60.0])


def test_the_headers_share_is_spent_evenly() -> None:
    """With ten calls left for a minute one in six seconds is made early, and a full batch is sent at once."""
    gate = Gate(Policy())
    gate.called(100.0)
    gate.limited(10, 60.0, 100.0)
    assert gate.spares_at(100.0) == pytest.approx(106.0)
    assert gate.opens_at(100.0, 0) == 100.0
    gate.limited(0, 60.0, 101.0)
    assert gate.spares_at(101.0) == 161.0


@PROPERTY
@given(
    st.integers(1, 6),
    st.lists(
        st.tuples(st.floats(0.0, 70.0), st.none() | st.tuples(st.integers(0, 9), st.floats(0.0, 90.0))),
        max_size=12,
    ),
)
def test_an_early_call_is_allowed_at_the_named_time(
    quota: int, steps: list[tuple[float, tuple[int, float] | None]]
) -> None:
    """At the time that the gate names an early call is allowed, or the timer would spin; the gate is open then."""
    gate, now = Gate(Policy(calls_per_minute=quota)), 1000.0
    for wait, told in steps:
        now += wait
        if told is not None:
            gate.limited(*told, now)
        assert gate.spares_at(now) >= gate.throttled_until(now)
        now = max(now, gate.spares_at(now))
        assert gate.spares_at(now) <= now
        gate.called(now)


def test_after_a_429_batches_fill_for_a_minute() -> None:
    """For a minute after a 429 batches fill or linger: others may use the account's quota."""
    core = core_of(batch_events=2)
    come(core, "a")
    core.answer(core.take(m.Send), 429, NO, headers={"retry-after": "1"})
    core.until(lambda: core.has(m.Send))
    core.accept()
    core.store_keys()
    core.advance(1.0)
    come(core, "b")
    assert in_flight(core) == []
    come(core, "c", "d")
    assert in_flight(core) == [["b", "c"]]
    core.accept()
    core.advance(LINGER)
    assert in_flight(core) == [["d"]]
    core.accept()
    core.advance(60.0)
    come(core, "e")
    assert in_flight(core) == [["e"]]


def test_in_an_outage_batches_fill() -> None:
    """While a call waits to be retried, new batches fill and linger: early calls would only fail as well."""
    core = core_of(delivery_backoff=Backoff(base=100.0, cap=100.0))
    come(core, "a")
    core.feed(m.Unanswered(core.take(m.Send).number, "timeout"))
    for name in ("b", "c", "d"):
        core.advance(0.1)
        come(core, name)
        assert in_flight(core) == []
    core.advance(LINGER)
    assert ["b", "c", "d"] in in_flight(core)


def test_half_of_the_calls_are_left_to_full_batches() -> None:
    """Early calls of many accounts use at most half of the concurrency, so that a busy account has the rest."""
    core = core_of(concurrency=4, batch_events=2)
    for number in range(4):
        come(core, f"{number}", account=f"{number}")
    assert in_flight(core) == [["0"], ["1"]]
    come(core, "a", "b", "c", "d", account=OTHER_ACCOUNT)
    assert in_flight(core)[2:] == [["a", "b"], ["c", "d"]]


def test_a_halted_account_is_not_asked_early() -> None:
    """Events of a halted account are not sent early: they wait for the probe."""
    core = core_of()
    come(core, "a")
    core.answer(core.take(m.Send), 403, NO)
    come(core, "b")
    core.advance(0.5)
    assert in_flight(core) == []
