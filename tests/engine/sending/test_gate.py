"""The gate: quota, throttle, pace and halt decide when the next call to an account may be made."""

from __future__ import annotations

from hypothesis import example, given
from hypothesis import strategies as st

from consumer.engine.model import GateState, Policy
from consumer.engine.sending.gate import Gate
from tests.engine.building import PROPERTY


def calls(gate: Gate, now: float, maximum: int = 10_000) -> int:
    """Return how many calls the gate allows now, each answered at once."""
    count = 0
    while count < maximum:
        opens = gate.opens_at(now, 0)
        if opens is None or opens > now:
            break
        gate.called(now)
        count += 1
    return count


def test_the_quota_is_exact() -> None:
    """The gate allows 5000 calls in any 60 seconds (OAS, per ad account), and the next 60 seconds after the first."""
    gate = Gate(Policy())
    assert calls(gate, 100.0, maximum=3000) == 3000
    gate.heard(100.0, 0)
    assert calls(gate, 130.0) == 2000
    assert gate.opens_at(130.0, 0) == 160.0
    assert gate.state(130.0) is GateState.THROTTLED
    assert calls(gate, 159.999) == 0
    assert calls(gate, 160.0) == 3000
    assert gate.opens_at(160.0, 0) == 190.0


@PROPERTY
@given(
    st.integers(1, 5),
    st.floats(0.0, 1e6),
    st.lists(st.tuples(st.booleans(), st.floats(0.0, 61.0), st.integers(1, 4)), max_size=25),
)
@example(1, 0.3, [(True, 0.0, 4), (True, 0.0, 4)])
def test_no_window_of_a_minute_holds_more_calls_than_the_quota(
    quota: int, now: float, steps: list[tuple[bool, float, int]]
) -> None:
    """No 60 seconds hold more calls than the quota, also with calls at the very moment that the gate names."""
    gate = Gate(Policy(calls_per_minute=quota))
    made: list[float] = []
    for at_deadline, wait, tries in steps:
        opens = gate.opens_at(now, 0)
        assert opens is not None
        now = max(now, opens) if at_deadline else now + wait
        made += [now] * calls(gate, now, maximum=tries)
    for index, moment in enumerate(made):
        # A window begins with a call; a call 60 seconds later, compared as floats, is in the next window.
        assert sum(1 for other in made[index:] if other < moment + 60.0) <= quota


@given(st.integers(1, 3), st.floats(0.0, 1e6), st.integers(1, 8))
def test_at_the_moment_the_gate_names_it_is_open(quota: int, now: float, times: int) -> None:
    """At the moment that the gate names it is open: rounding must not move the opening, or the timer would spin."""
    gate = Gate(Policy(calls_per_minute=quota))
    for _ in range(times):
        opens = gate.opens_at(now, 0)
        assert opens is not None
        now = max(now, opens)
        assert calls(gate, now, maximum=1) == 1


def test_a_429_closes_until_its_time() -> None:
    """A 429 closes the gate until the latest time named by any; the gate reports it and the seconds left."""
    gate = Gate(Policy())
    gate.close(30.0)
    gate.close(20.0)
    assert gate.opens_at(10.0, 0) == 30.0
    assert (gate.state(10.0), gate.throttled_until(10.0)) == (GateState.THROTTLED, 30.0)
    assert calls(gate, 30.0, maximum=1) == 1
    assert gate.state(30.0) is GateState.OPEN


def test_remaining_calls_are_counted_down_until_the_reset() -> None:
    """Remaining calls that the headers name are counted down, and the next call waits for the reset."""
    gate = Gate(Policy())
    gate.limited(2, 10.0, 100.0)
    assert calls(gate, 100.0) == 2
    assert gate.opens_at(101.0, 0) == 110.0
    assert gate.state(101.0) is GateState.THROTTLED
    assert calls(gate, 110.0, maximum=7) == 7


def test_a_reset_far_away_is_capped() -> None:
    """A reset far away is capped, so that a header does not stop calls for a day."""
    gate = Gate(Policy(throttle_cap=300.0))
    gate.limited(0, 86_400.0, 0.0)
    assert gate.opens_at(0.0, 0) == 300.0


def test_incomplete_limit_headers_are_ignored() -> None:
    """Remaining calls without a reset, or a reset without them, are ignored: the quota alone holds."""
    gate = Gate(Policy())
    gate.limited(0, None, 0.0)
    gate.limited(None, 60.0, 0.0)
    assert gate.opens_at(0.0, 0) == 0.0


def test_the_pace_halves_when_failing_and_grows_by_one() -> None:
    """The pace halves on trouble and grows by one on success, between one call in flight and the concurrency."""
    gate = Gate(Policy(concurrency=8))
    paces = []
    for _ in range(5):
        gate.slow_down()
        paces.append(int(gate.pace))
    assert paces == [4, 2, 1, 1, 1]
    assert gate.opens_at(0.0, 0) == 0.0
    assert gate.opens_at(0.0, 1) is None
    for _ in range(20):
        gate.judged(0.0)
    assert gate.pace == 8.0
    assert gate.opens_at(0.0, 7) == 0.0
    assert gate.opens_at(0.0, 8) is None


def test_a_halt_lets_one_probe_go_at_a_time() -> None:
    """A halt allows no call until the token was read again; then one probe, and no second one while it is in flight."""
    gate = Gate(Policy())
    assert gate.refuse(401, 2, 100.0) is not None
    assert gate.halt is not None
    assert gate.opens_at(200.0, 0) is None
    gate.halt.may_probe = True
    assert gate.opens_at(200.0, 1) is None
    assert gate.opens_at(200.0, 0) == 200.0
    gate.called(200.0)
    assert gate.opens_at(201.0, 0) is None
    assert gate.state(201.0) is GateState.HALTED


def test_refused_probes_come_ever_more_rarely() -> None:
    """Refused probes wait between half and all of a ceiling that grows to its cap."""
    policy = Policy()
    gate = Gate(policy)
    gate.refuse(403, 29, 0.0)
    assert gate.halt is not None
    assert gate.halt.probe_at == policy.probe_backoff.base
    delays = []
    for _ in range(6):
        assert gate.refuse(403, 29, 0.0) is None
        gate.refuse_again(403, 29, 0.0, 1.0)
        delays.append(gate.halt.probe_at)
    assert delays == [4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    assert gate.halt.since == 0.0


def test_a_probe_counts_against_the_quota() -> None:
    """Probes count against the quota as any call does."""
    gate = Gate(Policy(calls_per_minute=1))
    gate.called(0.0)
    gate.refuse(401, 2, 0.0)
    assert gate.halt is not None
    gate.halt.may_probe = True
    assert gate.opens_at(10.0, 0) == 60.0


def test_the_reason_of_a_halt_says_what_is_refused() -> None:
    """The reason of a halt says in words what is refused, with status and code, without the answer's body."""
    reasons = []
    for status, code in ((401, 2), (403, 29), (404, None)):
        gate = Gate(Policy())
        gate.refuse(status, code, 0.0)
        assert gate.halt is not None
        reasons.append(gate.halt.reason)
    assert reasons == [
        "the access token is refused (HTTP 401, code 2)",
        "the token may not use this ad account (HTTP 403, code 29)",
        "the ad account is unknown (HTTP 404)",
    ]
