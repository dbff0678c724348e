"""Reading an answer: only a complete answer gives a verdict, and no answer raises an error."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine.sending.verdicts import (
    BatchRefused,
    EventOutcome,
    NoVerdict,
    PerEvent,
    Refused,
    SomeRefused,
    Throttled,
    limit_headers,
    read_answer,
    wait_time,
)
from tests.engine.building import PROPERTY, UNIX, accepted, answer_body

DATE = "Tue, 14 Nov 2023 22:14:20 GMT"
"""One minute after `UNIX`."""


def read(status: int, body: bytes = b"", events: int = 2, headers: dict[str, str] | None = None) -> Any:
    """Return the verdict of an answer to a call with two events."""
    return read_answer(status, headers or {}, body, events, UNIX)


def test_a_whole_200_gives_each_event_its_outcome() -> None:
    """A complete 200 gives each event its outcome in request order, with its messages; blank messages are None."""
    body = answer_body([("processed", None, "odd currency"), ("failed", "no email", " ")])
    assert read(200, body) == PerEvent(
        [EventOutcome(True, None, "odd currency"), EventOutcome(False, "no email", None)]
    )


GOOD = [("processed", None, None)] * 2


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "not_json"),
        (b"<html>503 but we say 200</html>", "not_json"),
        (accepted(2)[:-1], "not_json"),
        (b"[" * 100_000, "not_json"),
        (b"null", "not_json"),
        (b"[]", "not_json"),
        (b"\xff\xfe", "not_json"),
        (b"{}", "unreadable_outcomes"),
        (accepted(1), "unreadable_outcomes"),
        (accepted(3), "unreadable_outcomes"),
        (answer_body(GOOD, events=None), "unreadable_outcomes"),
        (answer_body(GOOD, events={"0": {}, "1": {}}), "unreadable_outcomes"),
        (answer_body([("processed", None, None), ("PROCESSED", None, None)]), "unreadable_outcomes"),
        (answer_body(GOOD, events=[{"status": "processed"}, "processed"]), "unreadable_outcomes"),
        (
            answer_body(GOOD, events=[{"status": "processed"}, {"status": ["processed"]}]),
            "unreadable_outcomes",
        ),
        (answer_body(GOOD, num_events_processed=1), "contradicting_counters"),
        (answer_body(GOOD, num_events_received=3), "contradicting_counters"),
        (answer_body(GOOD, num_events_processed=None), "contradicting_counters"),
        (answer_body(GOOD, num_events_processed="2"), "contradicting_counters"),
        (answer_body(GOOD, num_events_processed=2.0), "contradicting_counters"),
        (answer_body([("failed", "x", None)] * 2, num_events_processed=2), "contradicting_counters"),
    ],
)
def test_a_200_that_is_not_whole_is_no_verdict(body: bytes, reason: str) -> None:
    """A 200 that is no JSON, has a wrong count or counters that contradict the statuses is no verdict:
    undelivered (docs/platform.md, "Answers")."""
    assert read(200, body) == NoVerdict(reason)


def test_true_does_not_count_as_one() -> None:
    """`true` does not count as 1, although a bool is an int in Python."""
    body = answer_body(GOOD[:1], num_events_received=True, num_events_processed=True)
    assert read(200, body, events=1) == NoVerdict("contradicting_counters")


@pytest.mark.parametrize("status", [400, 422])
def test_a_refused_call_may_say_which_events(status: int) -> None:
    """Failed events named at the top or in `details` are refused; the call delivered none of the others."""
    outcomes = [("failed", "bad email", None), ("processed", None, None)]
    top = answer_body(outcomes)
    inner = orjson.dumps({"code": 1, "message": "no", "details": orjson.loads(top)})
    assert read(status, top) == read(status, inner) == SomeRefused({0: "bad email"})


def test_a_failed_event_without_a_message_takes_the_call_s() -> None:
    """A failed event without a message gets the message of the call."""
    body = answer_body([("failed", None, None), ("processed", None, None)], message="invalid")
    assert read(422, body) == SomeRefused({0: "invalid"})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"code": 4196, "message": "Invalid parameters"}', "Invalid parameters"),
        (b'{"code": 4196, "message": " "}', ""),
        (orjson.dumps({"code": 1, "message": "no", "details": [1, 2]}), "no"),
        (answer_body(GOOD, code=1, message="none of them failed"), "none of them failed"),
        (answer_body(GOOD), ""),
        (answer_body([("failed", "x", None)], code=1, message="of one only"), "of one only"),
    ],
)
def test_a_refused_call_that_does_not_say_which_is_to_be_bisected(body: bytes, message: str) -> None:
    """A refusal without verdicts that fit the batch is a refusal of the batch, which is to be bisected."""
    assert read(400, body) == BatchRefused(message)


def test_statuses_that_concern_us_and_not_the_events() -> None:
    """A 413 means too large; 401, 403 and 404 mean a refused token or account, with the platform's code."""
    assert read(413, b'{"code": 1, "message": "too large"}') == BatchRefused("too large", too_large=True)
    assert read(401, b'{"code": 2, "message": "pina_SECRET is not valid"}') == Refused(401, 2)
    assert read(403, b'{"code": 29, "message": ""}') == Refused(403, 29)
    assert read(404, b'{"code": 50, "message": "no such account"}') == Refused(404, 50)


STRANGERS = [
    b"",
    b"<html><title>413 Request Entity Too Large</title></html>",
    b"not found",
    b"[]",
    b"null",
    b'"no"',
    b"{}",
    b'{"message": "Forbidden"}',
    b'{"code": 403}',
    b'{"code": true, "message": "no"}',
    b'{"code": "E403", "message": "no"}',
    b'{"code": 403.0, "message": "no"}',
    b'{"code": 403, "message": ["no"]}',
    b'{"error": {"code": 403, "message": "no"}}',
    b'[{"code": 403, "message": "no"}]',
    b'{"code": 4196, "message": "no"',
    answer_body([("failed", "bad", None)]),
]
"""Answers without the JSON of the platform's own errors."""


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
@pytest.mark.parametrize("body", STRANGERS)
def test_what_somebody_else_says_is_no_verdict(status: int, body: bytes) -> None:
    """An error status without the platform's own JSON refuses neither events nor the token: it is no verdict."""
    assert read(status, body) == NoVerdict(f"http_{status}", too_large=status == 413)


@pytest.mark.parametrize(
    "status", [100, 201, 204, 301, 302, 307, 402, 408, 418, 500, 502, 503, 504, 599, 999, 0]
)
def test_any_other_status_is_no_verdict(status: int) -> None:
    """Any other status is no verdict, whatever its body: only a 200 can report processed events."""
    assert read(status, accepted(2)) == NoVerdict(f"http_{status}")


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": DATE}, 60.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:12:20 GMT"}, 0.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20"}, 60.0),
        ({"retry-after": "Wed, 15 Nov 2023 00:14:20 +0200"}, 60.0),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "-1"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": ""}, None),
        ({"x-ratelimit-reset": "12"}, 12.0),
        ({"x-ratelimit-reset": "never", "retry-after": "3"}, 3.0),
        ({"x-ratelimit-reset": "0", "retry-after": "30"}, 30.0),
    ],
)
def test_how_long_a_429_asks_us_to_wait(headers: dict[str, str], wait: float | None) -> None:
    """A 429 names its wait as seconds or a date, and the longer of two counts; one that cannot be read is ignored."""
    assert wait_time(headers, UNIX) == wait
    assert read(429, headers=headers) == Throttled(wait)


@pytest.mark.parametrize(
    ("headers", "limits"),
    [
        ({}, (None, None)),
        ({"x-ratelimit-remaining": "17", "x-ratelimit-reset": "42"}, (17, 42.0)),
        ({"x-ratelimit-remaining": "119999;w=60", "x-ratelimit-reset": "42 ; w=60"}, (119_999, 42.0)),
        ({"x-ratelimit-remaining": "many", "x-ratelimit-reset": "-2"}, (None, None)),
        ({"x-ratelimit-remaining": "0"}, (0, None)),
    ],
)
def test_what_the_limit_headers_say(headers: dict[str, str], limits: tuple[int | None, float | None]) -> None:
    """Limit headers that can be read give the remaining calls and the seconds to the reset; others give None."""
    assert limit_headers(headers) == limits


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=5)
    | st.sampled_from(["processed", "failed"]),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(
        st.sampled_from(
            ["events", "status", "error_message", "num_events_received", "num_events_processed", "details", "code"]
        ),
        inner,
        max_size=5,
    ),
    max_leaves=12,
)  # fmt: skip


@PROPERTY
@given(
    st.sampled_from([200, 400, 401, 403, 404, 413, 422, 429, 500]),
    st.binary(max_size=30) | JSON.map(orjson.dumps),
    st.dictionaries(
        st.sampled_from(["retry-after", "x-ratelimit-reset", "x-ratelimit-remaining"]),
        st.text(max_size=20)
        | st.sampled_from([DATE, "Mon, 99 Foo 20233 99:99:99 +9999", "1e400", "Mon, 1 Jan 1 0:0:0 +2359"]),
    ),
    st.integers(1, 3),
)
def test_no_answer_raises_and_only_a_whole_200_delivers(
    status: int, body: bytes, headers: dict[str, str], events: int
) -> None:
    """No answer raises an error, and outcomes are given only by a 200, for exactly the events of the batch."""
    verdict = read_answer(status, headers, body, events, UNIX)
    limit_headers(headers)
    if isinstance(verdict, PerEvent):
        assert status == 200
        assert len(verdict.outcomes) == events
    if isinstance(verdict, SomeRefused):
        assert verdict.errors
        assert set(verdict.errors) <= set(range(events))
    if isinstance(verdict, Throttled) and verdict.wait is not None:
        assert verdict.wait >= 0
