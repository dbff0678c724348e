"""What follows from an answer: each event is delivered, refused, tried again, or let go of. None is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.core import interface as i
from consumer.core.model import Stage
from tests.core.building import PROPERTY, Core, accepted, answer_body, event, event_ids, sends


def sent(*values: bytes, **policy: Any) -> tuple[Core, i.Send]:
    """A core with these events in one call that waits for its answer."""
    core = Core(**policy)
    core.assign()
    core.fetch(*values)
    core.send_all()
    return core, core.take(i.Send)


def test_one_verdict_per_event() -> None:
    """What failed is a dead letter with the API's reason, the rest is delivered (connect #461)."""
    core, send = sent(event("a"), event("b", name="Jane Doe"), event("c"))
    outcomes = [
        ("processed", None, None),
        ("failed", "name Jane Doe is odd", None),
        ("processed", None, None),
    ]
    core.answer(send, 200, answer_body(outcomes))
    core.store_keys()
    [letter] = core.store_letters()
    assert letter.record.offset == 1
    assert letter.rejection == (Stage.DELIVER, "refused", "name *** is odd")
    assert letter.attempts == 1
    totals = core.statistics().totals
    assert (totals.delivered, totals.dead_lettered, totals.open) == (2, 1, 0)
    assert core.committable() == 3


def test_the_same_answer_says_the_same_again_and_only_for_as_many_events() -> None:
    """It is not read twice; of a batch of another size the same bytes say nothing."""
    answer = accepted(2)
    core, send = sent(event("a"), event("b"))
    core.answer(send, 200, answer)
    core.fetch(event("c"), event("d"))
    core.send_all()
    core.answer(core.take(i.Send), 200, answer)
    core.fetch(event("e"))
    core.send_all()
    core.answer(core.take(i.Send), 200, answer)
    core.store_keys()
    assert core.statistics().totals.delivered == 4
    assert dict(core.statistics().counters.no_verdicts) == {"unreadable_outcomes": 1}


def test_an_answer_is_read_anew_where_a_byte_differs() -> None:
    """As long as the one before it, and not its verdict."""
    core, first = sent(event("a"))
    core.answer(first, 200, answer_body([("processed", None, "odd")]))
    core.fetch(event("b"))
    core.send_all()
    core.answer(core.take(i.Send), 200, answer_body([("processed", "odd", None)]))
    core.store_keys()
    counters = core.statistics().counters
    assert (dict(counters.api_warnings), dict(counters.api_errors)) == ({"odd": 1}, {"odd": 1})


def test_processed_with_an_error_is_delivered_and_counted() -> None:
    """Delivered, and worth an alert (pinterest.md, "Answers")."""
    core, send = sent(event("a"))
    core.answer(send, 200, answer_body([("processed", "something is odd", None)]))
    core.store_keys()
    counters = core.statistics().counters
    assert core.statistics().totals.delivered == 1
    assert (counters.processed_with_error, dict(counters.api_errors)) == (1, {"something is odd": 1})


def test_warnings_are_counted_by_kind() -> None:
    """Without their numbers, so that the family stays small."""
    core, send = sent(event("a"), event("b"))
    outcomes = [("processed", None, "field 3 is unknown"), ("processed", None, "field 17 is unknown")]
    core.answer(send, 200, answer_body(outcomes))
    assert dict(core.statistics().counters.api_warnings) == {"field # is unknown": 2}


@pytest.mark.parametrize("status", ["processed", "failed"])
def test_counted_messages_hold_no_value_of_the_event(status: str) -> None:
    """They become metrics: no personal data in any metric (contract.md)."""
    core, send = sent(event("a", person="Jane Doe"))
    core.answer(send, 200, answer_body([(status, "person Jane Doe", "agent Jane Doe")]))
    counters = core.statistics().counters
    assert not [name for name in (*counters.api_errors, *counters.api_warnings) if "Jane" in name]


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, b"nonsense"), (200, b"{}"), (200, accepted(3)), (500, b""), (503, b'{"code": 4197}'), (302, b"")],
)
def test_without_a_verdict_the_same_events_go_again(status: int, body: bytes) -> None:
    """The same body to the byte, behind a backoff, for as long as it takes."""
    core, send = sent(event("a"), event("b"))
    bodies = {send.body}
    for _ in range(12):
        core.answer(send, status, body)
        core.until(lambda: core.has(i.Send))
        send = core.take(i.Send)
        bodies.add(send.body)
    assert len(bodies) == 1
    assert core.committable() is None
    core.accept(send)
    core.store_keys()
    assert core.statistics().totals.delivered == 2


def test_the_backoff_is_full_jitter_under_a_growing_ceiling() -> None:
    """Never over the ceiling of so many failures; not always the same (connect #435)."""
    core, send = sent(event("a"))
    policy = core.policy.delivery_backoff
    waits = []
    for failures in range(1, 15):
        core.feed(i.Unanswered(send.number, "timeout"))
        begun = core.now
        core.until(lambda: core.has(i.Send))
        waits.append(core.now - begun)
        assert waits[-1] <= policy.ceiling(failures) + 1e-9
        send = core.take(i.Send)
    assert len(set(waits)) > 10
    assert policy.ceiling(14) == policy.cap


def test_unclear_offline_events_are_counted() -> None:
    """The platform does not deduplicate those (pinterest.md, "Answers")."""
    core, send = sent(event("a"), event("b", action_source="offline"))
    core.feed(i.Unanswered(send.number, "timeout"))
    assert core.statistics().counters.unclear_offline == 1


@pytest.mark.parametrize("reason", ["dns", "connect", "tls"])
def test_a_call_that_never_left_is_not_unclear(reason: str) -> None:
    """Without a connection nothing was sent: the outcome is clear."""
    core, send = sent(event("a", action_source="offline"))
    core.feed(i.Unanswered(send.number, reason))
    assert core.statistics().counters.unclear_offline == 0


# -- refused calls


def judge(core: Core, send: i.Send, bad: set[str]) -> None:
    """The API refuses a call that holds a bad event, as a whole, and accepts any other."""
    refused = bad.intersection(event_ids(send))
    core.answer(send, 400, b'{"code": 4196, "message": "invalid"}') if refused else core.accept(send)


@PROPERTY
@given(st.integers(1, 64), st.sets(st.integers(0, 63), max_size=4))
def test_bisecting_finds_exactly_the_bad_events(count: int, bad: set[int]) -> None:
    """Each bad event is a dead letter, all others are delivered, in about 2·log2(n) calls per bad event."""
    bad = {n for n in bad if n < count}
    core, send = sent(*(event(str(n)) for n in range(count)))
    calls, waiting = 0, [send]
    while waiting:
        judge(core, waiting.pop(), {str(n) for n in bad})
        calls += 1
        core.store_keys()
        while core.has(i.Send):
            waiting.append(core.take(i.Send))
    while core.has(i.StoreDeadLetters):
        assert {letter.rejection.code for letter in core.store_letters()} == {"refused"}
    totals = core.statistics().totals
    assert (totals.delivered, totals.dead_lettered, totals.open) == (count - len(bad), len(bad), 0)
    assert calls <= 1 + 2 * len(bad) * max(1, (count - 1).bit_length())


def test_a_refused_call_that_names_the_events_is_not_bisected() -> None:
    """Those named are dead letters at once; the others go again."""
    core, send = sent(event("a"), event("b"), event("c"))
    core.answer(
        send,
        422,
        answer_body([("processed", None, None), ("failed", "bad", None), ("processed", None, None)]),
    )
    core.store_letters()
    again = core.accept()
    core.store_keys()
    assert event_ids(again) == ["a", "c"]
    assert core.statistics().totals.dead_lettered == 1
    assert core.statistics().totals.delivered == 2


def test_too_large_splits_down_to_the_one_event() -> None:
    """413: halves; an event that is too large alone is a dead letter that says so."""
    core, send = sent(event("a"), event("b"))
    core.answer(send, 413)
    first, second = core.take(i.Send), core.take(i.Send)
    core.answer(first, 413)
    core.accept(second)
    core.store_keys()
    [letter] = core.store_letters()
    assert letter.rejection.code == "too_large"
    assert letter.attempts == 2
    assert core.statistics().totals.delivered == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_token_settles_nothing(status: int) -> None:
    """No dead letter, no commit: the event waits (vectordotdev/vector #24543)."""
    core, send = sent(event("a"))
    core.answer(send, status, orjson.dumps({"code": 2, "message": "pina_SECRET"}))
    core.advance(500.0)
    assert core.statistics().totals.open == 1
    assert core.committable() is None
    assert not core.has(i.Commit)
    assert not core.has(i.StoreDeadLetters)
    assert "SECRET" not in repr(core.log)


# -- throttling


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "17"}, 17.0),
        ({"x-ratelimit-reset": "9"}, 9.0),
        ({"retry-after": "86400"}, 300.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, 59.5),
    ],
)
def test_a_429_closes_the_gate_until_its_time(headers: dict[str, str], seconds: float) -> None:
    """To the second, capped, for the whole account; then the same batch goes (connect #1352)."""
    core, send = sent(event("a"))
    core.answer(send, 429, headers=headers)
    begun = core.now
    core.fetch(event("b"))
    core.look_up()
    core.until(lambda: core.has(i.Send))
    assert core.now - begun == pytest.approx(seconds)
    assert event_ids(core.take(i.Send)) == ["a"]


@pytest.mark.parametrize(
    "headers",
    [
        {"retry-after": "0"},
        {"x-ratelimit-reset": "0"},
        {"retry-after": "Tue, 14 Nov 2023 00:00:00 GMT"},
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"},
    ],
)
def test_a_429_that_asks_for_no_wait_still_backs_off(headers: dict[str, str]) -> None:
    """A date in the past (clocks differ) must not turn a throttled client into a hammer."""
    core, send = sent(event("a"))
    begun = core.now
    for _ in range(10):
        assert not sends(core.answer(send, 429, headers=headers))
        core.until(lambda: core.has(i.Send))
        send = core.take(i.Send)
    assert core.now - begun > 10.0


def test_a_429_that_says_nothing_backs_off() -> None:
    """From half of the ceiling up."""
    core, send = sent(event("a"))
    core.answer(send, 429)
    begun = core.now
    core.until(lambda: core.has(i.Send))
    assert core.now - begun >= core.policy.delivery_backoff.ceiling(1) / 2


def test_remaining_calls_named_by_an_answer_hold() -> None:
    """``x-ratelimit-remaining: 0`` on a good answer: the next call waits for the reset."""
    core, send = sent(event("a"), linger=0.0)
    headers = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "20"}
    core.answer(send, 200, accepted(1), headers)
    begun = core.now
    core.fetch(event("b"))
    core.look_up()
    core.until(lambda: core.has(i.Send))
    assert core.now - begun == 20.0


def test_the_request_id_is_reported() -> None:
    """``x-pinterest-rid`` is what Pinterest's support asks for; of the body nothing is."""
    core, send = sent(event("a"))
    core.answer(send, 503, b"jane@example.org", {"x-pinterest-rid": "rid-1"})
    [report] = core.reports("no_verdict")
    assert report.fields["request_id"] == "rid-1"
    assert "jane" not in repr(core.log)


# -- no longer ours when the answer comes


ANSWERS: Sequence[tuple[int, bytes]] = [
    (200, accepted(1)),
    (200, answer_body([("failed", "bad", None)])),
    (400, b""),
    (413, b""),
    (401, b""),
    (429, b""),
    (500, b""),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: f"{answer[0]}-{len(answer[1])}")
def test_an_answer_for_a_lost_partition_settles_nothing(answer: tuple[int, bytes]) -> None:
    """No dead letter, no retry; only a delivered key is still remembered, so that its next owner finds it."""
    core, send = sent(event("a"))
    core.lose(0)
    core.answer(send, *answer)
    core.advance(100.0)
    assert not core.has(i.Send)
    assert not core.has(i.StoreDeadLetters)
    assert core.has(i.StoreKeys) == (answer == ANSWERS[0])
    core.store_keys()
    statistics = core.statistics()
    assert (statistics.totals.read, statistics.totals.released, statistics.claims) == (0, 1, 0)
    assert statistics.counters.delivered_after_release == (answer == ANSWERS[0])
