"""Outcomes of an answer: each event is delivered, refused, retried, or dropped with its assignment. None is lost."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.engine import messages as m
from consumer.engine.model import Stage
from tests.engine.building import PROPERTY, Core, accepted, answer_body, event, event_ids, sending, sends

_EVENT = b'{"status":"processed","x":' + b"[" * 1_020 + b"]" * 1_020 + b"}"
# An answer for two events that can be parsed, and is nested deeper than Python compares.
DEEP = b'{"num_events_received":2,"num_events_processed":2,"events":[%s,%s]}' % (_EVENT, _EVENT)


def sent(*values: bytes, **policy: Any) -> tuple[Core, m.Send]:
    """Return a core with these events in one call in flight, and that call."""
    core = sending(*values, **policy)
    return core, core.take(m.Send)


def test_one_verdict_per_event() -> None:
    """An event that failed becomes a dead letter with the API's reason; the others are delivered (connect #461)."""
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


def test_an_equal_answer_has_the_same_verdict_for_as_many_events() -> None:
    """An answer equal to the one before has the same verdict; for a batch of another size the same bytes give none."""
    answer = accepted(2)
    core, send = sent(event("a"), event("b"))
    core.answer(send, 200, answer)
    core.fetch(event("c"), event("d"))
    core.send_all()
    core.answer(core.take(m.Send), 200, answer)
    core.fetch(event("e"))
    core.send_all()
    core.answer(core.take(m.Send), 200, answer)
    core.store_keys()
    assert core.statistics().totals.delivered == 4
    assert dict(core.statistics().counters.no_verdicts) == {"unreadable_outcomes": 1}


def test_an_answer_that_is_nested_too_deeply_to_compare_is_read() -> None:
    """How deep Python compares depends on its version; what the answer says of each event does not."""
    core, send = sent(event("a"), event("b"))
    core.answer(send, 200, DEEP)
    core.store_keys()
    assert core.statistics().totals.delivered == 2


def test_an_answer_with_another_byte_has_its_own_verdict() -> None:
    """An answer as long as the one before it, with other bytes, has its own verdict."""
    core, first = sent(event("a"))
    core.answer(first, 200, answer_body([("processed", None, "odd")]))
    core.fetch(event("b"))
    core.send_all()
    core.answer(core.take(m.Send), 200, answer_body([("processed", "odd", None)]))
    core.store_keys()
    counters = core.statistics().counters
    assert (dict(counters.api_warnings), dict(counters.api_errors)) == ({"odd": 1}, {"odd": 1})


def test_processed_with_an_error_is_delivered_and_counted() -> None:
    """An event that is processed with an error counts as delivered and as an error (docs/platform.md, "Answers")."""
    core, send = sent(event("a"))
    core.answer(send, 200, answer_body([("processed", "something is odd", None)]))
    core.store_keys()
    counters = core.statistics().counters
    assert core.statistics().totals.delivered == 1
    assert (counters.processed_with_error, dict(counters.api_errors)) == (1, {"something is odd": 1})


def test_warnings_are_counted_by_kind() -> None:
    """Warnings that differ only in their numbers count as one kind, so that the family of counters stays small."""
    core, send = sent(event("a"), event("b"))
    outcomes = [("processed", None, "field 3 is unknown"), ("processed", None, "field 17 is unknown")]
    core.answer(send, 200, answer_body(outcomes))
    assert dict(core.statistics().counters.api_warnings) == {"field # is unknown": 2}


@pytest.mark.parametrize("status", ["processed", "failed"])
def test_counted_messages_hold_no_value_of_the_event(status: str) -> None:
    """Messages are counted in metrics, which must hold no personal data (docs/guarantees.md)."""
    core, send = sent(event("a", person="Jane Doe"))
    core.answer(send, 200, answer_body([(status, "person Jane Doe", "agent Jane Doe")]))
    counters = core.statistics().counters
    assert not [name for name in (*counters.api_errors, *counters.api_warnings) if "Jane" in name]


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, b"nonsense"),
        (200, b"{}"),
        (200, accepted(3)),
        (500, b""),
        (503, b'{"code": 4197, "message": "no"}'),
        (302, b""),
    ],
)
def test_without_a_verdict_the_same_events_go_again(status: int, body: bytes) -> None:
    """Without a verdict the batch is sent again after a backoff, with the same bytes, until the API accepts it."""
    core, send = sent(event("a"), event("b"))
    bodies = {send.body}
    for _ in range(12):
        core.answer(send, status, body)
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
        bodies.add(send.body)
    assert len(bodies) == 1
    assert core.committable() is None
    core.deliver_one(send)
    assert core.statistics().totals.delivered == 2


def test_the_backoff_is_full_jitter_under_a_growing_ceiling() -> None:
    """No wait exceeds the ceiling for its number of failures, and the waits differ from each other (connect #435)."""
    core, send = sent(event("a"))
    policy = core.policy.delivery_backoff
    waits = []
    for failures in range(1, 15):
        core.feed(m.Unanswered(send.number, "timeout"))
        begun = core.now
        core.until(lambda: core.has(m.Send))
        waits.append(core.now - begun)
        assert waits[-1] <= policy.delay(failures) + 1e-9
        send = core.take(m.Send)
    assert len(set(waits)) > 10
    assert policy.delay(14) == policy.cap


def unclear(core: Core) -> tuple[int, int]:
    """Return how many events may have been delivered twice, and how many of them are offline."""
    counters = core.statistics().counters
    return counters.unclear_repeats, counters.unclear_offline


def again(core: Core) -> m.Send:
    """Return the next attempt of the call."""
    core.until(lambda: core.has(m.Send))
    return core.take(m.Send)


def test_offline_events_that_go_again_are_counted() -> None:
    """An offline event is counted at its first repeat and not at later ones: the platform does not deduplicate it."""
    core, send = sent(event("a"), event("b", action_source="offline"))
    core.feed(m.Unanswered(send.number, "timeout"))
    assert unclear(core) == (0, 0), "nothing went twice"
    for _ in range(3):
        send = again(core)
        assert unclear(core) == (1, 1)
        core.feed(m.Unanswered(send.number, "timeout"))


def test_events_of_an_hour_ago_that_go_again_are_counted() -> None:
    """An event that arrives over an hour after it happened is unclear; until then the platform drops doubles."""
    core, send = sent(event("young", age=3000), event("old", age=3700), event("older", age=7200))
    core.feed(m.Unanswered(send.number, "timeout"))
    send = again(core)
    assert unclear(core) == (2, 0)
    core.advance(700)
    core.feed(m.Unanswered(send.number, "connection"))
    again(core)
    assert unclear(core) == (3, 0), "it has grown old meanwhile"


def test_unclear_events_stay_unclear_in_halves() -> None:
    """Halves of a refused batch stay unclear when an earlier call with the batch may have been processed."""
    core, send = sent(event("a", age=3590), event("b", age=3590))
    core.feed(m.Unanswered(send.number, "timeout"))
    core.answer(again(core), 400, b'{"code": 4196, "message": "invalid"}')
    core.advance(60)
    assert unclear(core) == (0, 0), "less than an hour when it was sent"
    for half in (core.take(m.Send), core.take(m.Send)):
        core.feed(m.Unanswered(half.number, "connect"))
    for _ in range(2):
        core.accept(again(core))
    assert unclear(core) == (2, 0)


@pytest.mark.parametrize("reason", ["dns", "connect", "tls", "too_late"])
def test_a_call_that_never_left_is_not_unclear(reason: str) -> None:
    """A call that failed before a connection existed sent nothing, so its outcome is clear."""
    core, send = sent(event("a", action_source="offline"))
    core.feed(m.Unanswered(send.number, reason))
    again(core)
    assert unclear(core) == (0, 0)


def test_a_call_that_did_not_begin_says_nothing_about_the_api() -> None:
    """Calls that this process did not begin in time go again at once, as many as before: no backoff, no bisecting."""
    core, send = sent(event("a"), event("b"))
    for _ in range(10):
        core.feed(m.Unanswered(send.number, m.START_EXPIRED))
        send = core.take(m.Send)
        assert event_ids(send) == ["a", "b"]
    report = core.reports("no_verdict")[-1]
    assert (report.fields["reason"], report.fields["retry_seconds"]) == ("too_late", 0.0)
    [queue] = core.pipeline.dispatcher
    assert queue.gate.pace == core.pipeline.policy.concurrency
    assert core.statistics().counters.bisected == 0


# -- refused calls


def judge(core: Core, send: m.Send, bad: set[str]) -> None:
    """Let the API refuse a whole call that holds a bad event, and accept any other call."""
    refused = bad.intersection(event_ids(send))
    core.answer(send, 400, b'{"code": 4196, "message": "invalid"}') if refused else core.accept(send)


@PROPERTY
@given(st.integers(1, 64), st.sets(st.integers(0, 63), max_size=4))
def test_bisecting_finds_exactly_the_bad_events(count: int, bad: set[int]) -> None:
    """Each bad event becomes a dead letter, all others are delivered, in about 2·log2(n) calls per bad event."""
    bad = {n for n in bad if n < count}
    core, send = sent(*(event(str(n)) for n in range(count)))
    calls, waiting = 0, [send]
    while waiting:
        judge(core, waiting.pop(), {str(n) for n in bad})
        calls += 1
        core.store_keys()
        while core.has(m.Send):
            waiting.append(core.take(m.Send))
    while core.has(m.StoreDeadLetters):
        assert {letter.rejection.code for letter in core.store_letters()} == {"refused"}
    totals = core.statistics().totals
    assert (totals.delivered, totals.dead_lettered, totals.open) == (count - len(bad), len(bad), 0)
    assert calls <= 1 + 2 * len(bad) * max(1, (count - 1).bit_length())


def test_a_refused_call_that_names_the_events_is_not_bisected() -> None:
    """The events that a refusal names become dead letters at once; the others are sent again."""
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


TOO_LARGE = b'{"code": 1, "message": "too large"}'


def test_too_large_splits_down_to_the_one_event() -> None:
    """After a 413 the batch is halved; an event that alone is too large becomes a dead letter with code `too_large`."""
    core, send = sent(event("a"), event("b"))
    core.answer(send, 413, TOO_LARGE)
    first, second = core.take(m.Send), core.take(m.Send)
    core.answer(first, 413, TOO_LARGE)
    core.deliver_one(second)
    [letter] = core.store_letters()
    assert letter.rejection.code == "too_large"
    assert letter.attempts == 2
    assert core.statistics().totals.delivered == 1


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refused_token_settles_nothing(status: int) -> None:
    """A refused token makes no dead letter and commits nothing: the event waits (vectordotdev/vector #24543)."""
    core, send = sent(event("a"))
    core.answer(send, status, orjson.dumps({"code": 2, "message": "pina_SECRET"}))
    core.advance(500.0)
    assert core.statistics().totals.open == 1
    assert core.committable() is None
    assert not core.has(m.Commit)
    assert not core.has(m.StoreDeadLetters)
    assert "SECRET" not in repr(core.log)


# -- answers of a middleman


STRANGE = b"<html><head><title>Access denied</title></head><body>no</body></html>"


@pytest.mark.parametrize("body", [b"", STRANGE, b'{"message": "Forbidden"}'])
@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
def test_a_middleman_settles_nothing_and_halts_nothing(status: int, body: bytes) -> None:
    """Answers of a middleman make no dead letter and no halt; the platform's own answers deliver all events later."""
    core, send = sent(*(event(str(n)) for n in range(5)))
    ends = core.now + 600.0
    while core.now < ends:
        core.answer(send, status, body)
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
    statistics = core.statistics()
    assert statistics.destination == "unreachable"
    assert (statistics.totals.open, statistics.totals.dead_lettered) == (5, 0)
    assert core.committable() is None
    assert not core.has(m.StoreDeadLetters)
    assert not core.reports("halted")
    core.accept(send)
    while core.statistics().totals.delivered < 5:
        core.deliver()
        core.advance(1.0)
    assert core.statistics().destination == "open"
    assert [len(core.reports(one)) for one in ("unreachable", "reachable")] == [1, 1]


def test_the_server_that_answered_is_reported() -> None:
    """The log and the reason of an unreachable destination name the server that answered."""
    core, send = sent(event("a"))
    ends = core.now + 60.0
    while core.now < ends:
        core.answer(send, 403, STRANGE, {"server": "squid/5.7"})
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
    assert {one.fields["said"] for one in core.reports("no_verdict")} == {"squid/5.7: Access denied"}
    [account] = core.statistics().accounts
    assert account.reason == "no verdict on any event; the latest call: HTTP 403 (squid/5.7: Access denied)"
    assert account.unreachable_for is not None
    assert account.unreachable_for >= 30.0


def test_values_that_a_middleman_repeats_are_masked() -> None:
    """A copy of the request is not quoted; its values in any spelling, tokens and digests are masked."""
    core, send = sent(event("a", person="Jane Doe", query="gifts for Jane"))
    pages = (
        b"<html><body>You sent: " + send.body + b"</body></html>",
        b"<h1>blocked: GIFTS FOR&#32;jane</h1>",
        b"gifts%20for%20Jane is blocked",
        b"<title>pina_AAAA1234 or s3cr3t-t0ken-99 is blocked for 192.0.2.7 jane@example.org " + b"ab12" * 16,
    )
    for page in pages:
        core.answer(send, 403, page)
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
    assert [one.fields["said"] for one in core.reports("no_verdict")] == [
        "a copy of the request",
        "blocked: ***",
        "*** is blocked",
        "*** or *** is blocked for ***",
    ]


def test_a_middleman_s_413_makes_batches_smaller() -> None:
    """After a middleman's 413 the batch is sent again in halves, and later batches stay below the refused size."""
    core, send = sent(*(event(str(n), text="x" * 200) for n in range(8)), batch_events=8)
    size = len(send.body)
    core.answer(send, 413)
    core.fetch(*(event(f"more {n}", text="x" * 200) for n in range(8)))
    sizes = []
    for _ in range(8):
        core.look_up()
        core.until(lambda: core.has(m.Send))
        sizes.append(len(core.accept().body))
        core.store_keys()
        if not core.statistics().totals.open:
            break
    assert max(sizes) <= size // 2 + 1
    assert core.statistics().totals.delivered == 16


def test_one_event_that_a_middleman_blocks_waits_and_holds_up_no_other() -> None:
    """One event that a firewall blocks is retried alone, neither refused nor delaying the other events of its batch."""
    core, send = sent(*(event(str(n)) for n in range(8)), event("odd"), batch_events=9, linger=0.1)
    ends, number = core.now + 300.0, 100
    while core.now < ends:
        if "odd" in event_ids(send):
            core.answer(send, 403, STRANGE)
        else:
            core.deliver_one(send)
        core.fetch(event(str(number)))
        number += 1
        core.look_up()
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
    totals = core.statistics().totals
    assert totals.dead_lettered == 0
    assert totals.delivered > 100
    assert totals.open <= 5


def test_answers_503_and_429_split_no_batch() -> None:
    """Answers 503 and 429 by turns say nothing about the events of a batch, so no batch is split."""
    core, send = sent(*(event(str(n)) for n in range(8)), batch_events=8, concurrency=2)
    core.fetch(*(event(str(n)) for n in range(8, 16)))
    core.look_up()
    ends, status = core.now + 600.0, 503
    while core.now < ends:
        core.answer(send, status, b"too much to do", {"retry-after": "1"})
        status = 503 if status == 429 else 429
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
        assert send.events == 8
    assert core.statistics().counters.bisected == 0


def test_larger_bodies_are_tried_less_and_less_often() -> None:
    """While larger bodies are still refused, an hour costs fewer than 30 refused calls, not one every 15 seconds."""
    core, send = sent(*(event(f"{n:05}", text="x" * 200) for n in range(8)), batch_events=8)
    half, calls = len(send.body) // 2, 1
    core.answer(send, 413)
    ends, number = core.now + 3600.0, 8
    while core.now < ends:
        core.fetch(*(event(f"{number + n:05}", text="x" * 200) for n in range(8)))
        number += 8
        core.send_all()
        while core.has(m.Send):
            send = core.take(m.Send)
            if len(send.body) > half + 100:
                calls += 1
                core.answer(send, 413)
            else:
                core.accept(send)
            core.store_keys()
        core.advance(5.0)
    assert 3 < calls < 30
    assert core.statistics().totals.dead_lettered == 0


# -- throttling


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"retry-after": "17"}, 17.0),
        ({"x-ratelimit-reset": "9"}, 9.0),
        ({"retry-after": "86400"}, 300.0),
        ({"retry-after": "Tue, 14 Nov 2023 22:14:20 GMT"}, 60.0),
    ],
)
def test_a_429_closes_the_gate_until_its_time(headers: dict[str, str], seconds: float) -> None:
    """A 429 closes the whole account for the time it names, capped; then the same batch is sent (connect #1352)."""
    core, send = sent(event("a"))
    core.answer(send, 429, headers=headers)
    begun = core.now
    core.fetch(event("b"))
    core.look_up()
    core.until(lambda: core.has(m.Send))
    assert core.now - begun == pytest.approx(seconds)
    assert event_ids(core.take(m.Send)) == ["a"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"retry-after": "0"},
        {"x-ratelimit-reset": "0"},
        {"retry-after": "Tue, 14 Nov 2023 00:00:00 GMT"},
        {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "0"},
    ],
)
def test_a_429_that_asks_for_no_wait_still_backs_off(headers: dict[str, str]) -> None:
    """A 429 without headers, or that names no wait or a date in the past (clocks differ), leads to a backoff."""
    core, send = sent(event("a"))
    begun = core.now
    for _ in range(10):
        assert not sends(core.answer(send, 429, headers=headers))
        core.until(lambda: core.has(m.Send))
        send = core.take(m.Send)
    assert core.now - begun > 10.0


# -- answers for lost partitions


ANSWERS: Sequence[tuple[int, bytes]] = [
    (200, accepted(1)),
    (200, answer_body([("failed", "bad", None)])),
    (400, b'{"code": 4196, "message": "invalid"}'),
    (413, TOO_LARGE),
    (401, b'{"code": 2, "message": "no"}'),
    (400, b""),
    (413, b""),
    (401, b""),
    (429, b""),
    (500, b""),
]


@pytest.mark.parametrize("answer", ANSWERS, ids=lambda answer: f"{answer[0]}-{len(answer[1])}")
def test_an_answer_for_a_lost_partition_settles_nothing(answer: tuple[int, bytes]) -> None:
    """An answer for a lost partition makes no dead letter and no retry; a delivered key is stored."""
    core, send = sent(event("a"))
    core.lose(0)
    core.answer(send, *answer)
    core.advance(100.0)
    assert not core.has(m.Send)
    assert not core.has(m.StoreDeadLetters)
    assert core.has(m.StoreKeys) == (answer == ANSWERS[0])
    core.store_keys()
    statistics = core.statistics()
    assert (statistics.totals.read, statistics.totals.released, statistics.claims) == (0, 1, 0)
    assert statistics.counters.delivered_after_release == (answer == ANSWERS[0])
