"""How long calls took: quantiles as exact as the buckets, a window of five minutes, and when the API is slow."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine import messages as m
from consumer.engine.figures.counters import CALL_BOUNDS
from consumer.engine.figures.latency import SLOW_SECONDS, Latency
from tests.engine.building import PROPERTY, accepted, event, reading
from tests.web.building import call_latency

_SECONDS = st.floats(0.0, 610.0)
_CALLS = st.lists(st.tuples(st.sampled_from([0, 1, 20, 61, 240, 400]), _SECONDS), min_size=1, max_size=30)


@PROPERTY
@given(_CALLS)
def test_quantiles_are_never_too_low_and_at_most_2_percent_too_high(calls: list[tuple[int, float]]) -> None:
    """At each moment those of the calls of the running minute and of the four before; or a millisecond too high."""
    counted, now, ended = Latency(), 0, list[tuple[int, float]]()
    for wait, seconds in calls:
        now += wait
        counted.add(seconds, now)
        ended.append((now, seconds))
        shown = counted.snapshot(now)
        window = sorted(took for at, took in ended if at >= (now // 60 - 4) * 60)
        assert shown.calls == len(window)
        for share, value in ((0.50, shown.p50), (0.95, shown.p95), (0.99, shown.p99)):
            exact = window[math.ceil(share * len(window)) - 1]
            assert value is not None
            assert exact <= value <= max(exact + 0.001, exact * 1.02)
            # What /status shows is not rounded once more.
            assert value == round(value, 3)
    assert counted.snapshot(now + 301).p50 is None


@pytest.mark.parametrize(
    ("calls", "slow"),
    [
        ([], None),
        ([0.2] * 100, None),
        # One in 20 may be slow; two are not.
        ([0.2] * 19 + [9.0], None),
        ([0.2] * 18 + [9.0] * 2, (20, 0.2, 9.0)),
        # Of few calls one is slow: that says little. Most of them are: that says something.
        ([0.2, 0.2, 9.0], None),
        ([0.2, 9.0, 9.0], (3, 9.0, 9.0)),
        ([4.9] * 50, None),
        ([5.2] * 50, (50, 5.2, 5.2)),
    ],
)
def test_pinterest_answers_slowly(calls: Sequence[float], slow: tuple[int, float, float] | None) -> None:
    """If more than one call in 20 takes over five seconds; of fewer than 20, at least half. The sentence says how many,
    and how long."""
    shown = call_latency(*calls).slow
    if slow is None:
        assert shown is None
    else:
        count, half, nearly_all = slow
        assert shown is not None
        assert shown.startswith(
            f"Pinterest answers slowly: of the calls of the last five minutes ({count}), half "
        )
        said = [float(number) for number in re.findall(r"(\d+\.\d) s", shown)]
        assert said == pytest.approx([half, nearly_all], rel=0.021, abs=0.05)
    # The alert asks the histogram of Prometheus for the same limit.
    assert SLOW_SECONDS in CALL_BOUNDS


def test_a_call_counts_if_it_says_how_fast_pinterest_is() -> None:
    """With a verdict, or without an answer in time. A refused token, a 429, another status and a lost connection do not
    count, however fast they come."""
    core = reading(event("a"))
    core.look_up()
    started = core.now
    for end in (503, "connection", "timeout", 429, 401, 200):
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
        core.now += 2.0
        if isinstance(end, str):
            core.feed(m.Unanswered(send.number, end))
        else:
            core.answer(send, end, accepted(1) if end == 200 else b'{"code": 2, "message": "no"}')
        if end == 401:
            core.until(lambda: core.has(m.ReadToken))
            core.read_token(True)
    assert core.now - started < 240
    ended = core.statistics().counters.calls_ended
    assert [(name, one.calls) for name, one in ended.items()] == [
        ("verdict", 1), ("refused", 1), ("throttled", 1), ("no_verdict", 1), ("no_answer", 2),
    ]  # fmt: skip
    shown = core.statistics().latency
    assert shown.calls == 2
    assert shown.p50 == pytest.approx(2.0, rel=0.02)
