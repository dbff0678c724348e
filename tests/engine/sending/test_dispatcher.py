"""Which batch is sent next, and halts: one dead account must not slow the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from consumer.engine import messages as m
from tests.engine.building import (
    ACCOUNT,
    NO,
    OTHER_ACCOUNT,
    Core,
    accepted,
    answer_body,
    event,
    event_ids,
    sending,
)

THIRD_ACCOUNT = "549755885177"


def events(count: int, account: str = ACCOUNT, prefix: str = "") -> list[bytes]:
    """Return deliverable values, each with its own id."""
    return [event(f"{prefix}{account}-{n}", account) for n in range(count)]


def halted(**policy: Any) -> Core:
    """Return a core whose token was refused for its only account, with one batch waiting."""
    core = sending(event("a"), **policy)
    core.answer(core.take(m.Send), 401, b'{"code": 2, "message": "no"}')
    return core


def given_up(core: Core) -> list[m.GiveUp]:
    """Return the commands with which the engine gave up."""
    return [one for one in core.log if isinstance(one, m.GiveUp)]


def in_flight(core: Core) -> dict[str, int]:
    """Return the number of calls in flight by account."""
    counts: dict[str, int] = {}
    for one in core.waiting:
        if isinstance(one, m.Send):
            counts[one.account] = counts.get(one.account, 0) + 1
    return counts


# -- turns of accounts


def test_a_dead_account_holds_one_connection() -> None:
    """Time-outs halve an account's calls in flight down to one; the others use the rest (rudder-server #4953)."""
    core = sending(*events(40, OTHER_ACCOUNT), batch_events=1, concurrency=8)
    for _ in range(4):
        core.feed(m.Unanswered(core.take(m.Send).number, "timeout"))
    core.fetch(*events(40))
    core.look_up()
    while OTHER_ACCOUNT in in_flight(core):
        send = core.take(m.Send)
        if send.account == OTHER_ACCOUNT:
            core.feed(m.Unanswered(send.number, "timeout"))
        else:
            core.accept(send)
        if in_flight(core).get(OTHER_ACCOUNT, 0) <= 1:
            break
    assert sum(in_flight(core).values()) == 8
    assert in_flight(core)[ACCOUNT] >= 7


@pytest.mark.parametrize("status", [403, 404, 429])
def test_a_closed_gate_does_not_hold_the_others(status: int) -> None:
    """A refused or throttled account waits alone; the other account's events are delivered meanwhile."""
    core = sending(event("bad", OTHER_ACCOUNT), event("good"), accounts=2)
    bad, good = core.take(m.Send), core.take(m.Send)
    core.answer(bad, status, NO, headers={"retry-after": "200"})
    core.deliver_one(good)
    assert core.pipeline.room() > 1
    core.fetch(event("more"))
    core.deliver()
    assert core.statistics().totals.delivered == 2


def test_a_dead_account_stops_intake_only_when_it_holds_half_of_the_budget() -> None:
    """Records of a dead account stay open until they fill half of the budget; then intake stops."""
    core = sending(*events(9, OTHER_ACCOUNT), accounts=2, max_open_events=20, batch_events=1, concurrency=1)
    core.answer(core.take(m.Send), 403, NO)
    core.fetch(*events(2))
    core.look_up()
    assert core.pipeline.room() > 0
    core.fetch(*events(1, OTHER_ACCOUNT, "x"))
    core.look_up()
    assert core.pipeline.room() == 0


# -- halts


def test_a_refused_token_halts_every_account() -> None:
    """The accounts share one token, so its refusal halts each account, with one report for each."""
    core = sending(event("a"), event("b", OTHER_ACCOUNT), event("c"), batch_events=1)
    core.answer(core.take(m.Send), 401, b'{"code": 2, "message": "no"}')
    core.fetch(event("d", THIRD_ACCOUNT))
    core.look_up()
    assert in_flight(core) == {ACCOUNT: 1, OTHER_ACCOUNT: 1}
    assert {one.fields["account"] for one in core.reports("halted")} == {ACCOUNT, OTHER_ACCOUNT}
    assert {one.state for one in core.statistics().accounts} == {"halted"}


def test_a_halt_reads_the_token_then_probes_then_resumes() -> None:
    """A halt reads the token, then sends one probe; the first good answer ends it, and all events are delivered."""
    core = halted()
    assert not core.has(m.Send)
    core.until(lambda: core.has(m.ReadToken))
    assert not core.has(m.Send)
    core.read_token(True)
    core.deliver_one()
    assert core.reports("resumed")
    assert core.statistics().totals.delivered == 1
    assert core.statistics().destination == "open"


def test_a_probe_without_a_verdict_is_followed_by_another() -> None:
    """A probe without a verdict, such as a time-out, leaves the halt in place, and another probe follows."""
    core = halted()
    replies: tuple[Callable[[m.Send], object], ...] = (
        lambda send: core.feed(m.Unanswered(send.number, "timeout")),
        lambda send: core.answer(send, 503),
        lambda send: core.answer(send, 200, b"nonsense"),
        lambda send: core.answer(send, 429, headers={"retry-after": "5"}),
    )
    for reply in replies:
        core.until(lambda: core.has(m.ReadToken))
        core.read_token(False)
        core.until(lambda: core.has(m.Send))
        reply(core.take(m.Send))
        assert core.statistics().destination == "halted"
    core.until(lambda: core.has(m.ReadToken))


def test_refusals_of_calls_already_in_flight_do_not_put_the_probe_off() -> None:
    """Refusals of calls that were in flight together count as one, so the first probe is not delayed."""
    core = sending(*events(8), batch_events=1, concurrency=8)
    for _ in range(8):
        core.answer(core.take(m.Send), 401, NO)
    begun = core.now
    core.until(lambda: core.has(m.ReadToken))
    assert core.now - begun <= core.policy.probe_backoff.base


def test_an_answer_to_a_call_from_before_the_halt_does_not_end_it() -> None:
    """A good answer to a call that began before the halt does not end it: it was accepted under the earlier token."""
    core = sending(*events(4), batch_events=1, concurrency=2)
    first, second = core.take(m.Send), core.take(m.Send)
    core.answer(first, 401, NO)
    core.accept(second)
    assert core.statistics().destination == "halted"
    assert not core.has(m.Send)


def test_an_account_refused_itself_stays_halted_when_the_token_is_good_again() -> None:
    """An account refused with 403 stays halted when another account's probe shows that the token is good again."""
    core = sending(event("a"), event("b", OTHER_ACCOUNT), event("c"), batch_events=1)
    mine, other = core.take(m.Send), core.take(m.Send)
    core.answer(other, 403, b'{"code": 29, "message": "no"}')
    core.answer(mine, 401, b'{"code": 2, "message": "no"}')
    core.answer(core.take(m.Send), 401, b'{"code": 2, "message": "no"}')
    core.until(lambda: core.has(m.ReadToken))
    core.read_token(True)
    probe = next(one for one in core.waiting if isinstance(one, m.Send) and one.account == ACCOUNT)
    core.waiting.remove(probe)
    core.accept(probe)
    states = {one.account: one.state for one in core.statistics().accounts}
    assert states == {ACCOUNT: "open", OTHER_ACCOUNT: "halted"}


def test_a_token_of_its_own_halts_and_resumes_its_account_alone() -> None:
    """A token of one account, when refused, halts that account alone, and only its own probe ends the halt."""
    core = sending(event("a"), event("b", OTHER_ACCOUNT), batch_events=1, accounts=2, token_by_account=True)
    mine, other = core.take(m.Send), core.take(m.Send)
    core.answer(other, 401, NO)
    core.accept(mine)
    states = {one.account: one.state for one in core.statistics().accounts}
    assert states == {ACCOUNT: "open", OTHER_ACCOUNT: "halted"}
    assert core.pipeline.room() > 0
    core.fetch(event("c"))
    core.look_up()
    core.accept(core.take(m.Send))
    core.until(lambda: core.has(m.ReadToken))
    core.read_token(True)
    core.accept(core.take(m.Send))
    assert {one.state for one in core.statistics().accounts} == {"open"}


def test_both_accounts_tokens_refused_stop_intake() -> None:
    """When both accounts' tokens are refused, intake stops; the first token that is accepted lets intake go on."""
    core = sending(event("a"), event("b", OTHER_ACCOUNT), batch_events=1, accounts=2, token_by_account=True)
    for _ in range(2):
        core.answer(core.take(m.Send), 401, NO)
    assert core.pipeline.room() == 0
    core.until(lambda: core.has(m.ReadToken))
    core.read_token(False)
    core.accept(core.take(m.Send))
    assert sorted(one.state for one in core.statistics().accounts) == ["halted", "open"]
    assert core.pipeline.room() > 0


def test_patience_runs_from_the_first_refusal_and_gives_up_once() -> None:
    """The engine gives up once, `halt_patience` after the first refusal, whatever the probes, and says why."""
    core = halted(halt_patience=100.0)
    begun = core.now
    while not given_up(core):
        core.until(lambda: bool(given_up(core)) or core.has(m.ReadToken))
        if core.has(m.ReadToken):
            core.read_token(False)
            core.answer(core.take(m.Send), 401, b'{"code": 2, "message": "no"}')
    assert core.now == begun + 100.0
    core.advance(1000.0)
    [give_up] = given_up(core)
    assert give_up.reason == f"ad account {ACCOUNT}: the access token is refused (HTTP 401, code 2) for 100 s"


def test_patience_of_zero_is_indefinitely() -> None:
    """With a patience of 0 the engine never gives up, and probes go on."""
    # An idle core ticks twice per `away`: with the usual few seconds a week would take most of a million ticks.
    core = halted(halt_patience=0.0, commit_interval=300.0, away=600.0)
    for _ in range(3):
        core.until(lambda: core.has(m.ReadToken))
        core.read_token(False)
        core.answer(core.take(m.Send), 401, NO)
        core.advance(3 * 86_400.0)
    assert not given_up(core)


def test_with_no_batch_to_probe_with_intake_brings_one_record() -> None:
    """When the refused batch is no longer ours, intake brings one record at a time, which becomes the probe."""
    core = halted()
    core.lose(0)
    core.assign(1, epoch=2)
    assert core.pipeline.room() == 1
    core.fetch(event("b"), partition=1)
    core.look_up()
    assert core.pipeline.room() == 0
    core.until(lambda: core.has(m.ReadToken))
    core.read_token(True)
    assert event_ids(core.accept()) == ["b"]
    assert core.pipeline.room() > 1


def test_a_halted_account_with_nothing_waiting_does_not_end_the_process() -> None:
    """A halted account without waiting events does not make the engine give up: patience counts for such events."""
    core = Core(halt_patience=100.0)
    core.assign(0)
    core.assign(1)
    core.fetch(event("bad", OTHER_ACCOUNT), partition=0)
    core.look_up()
    core.answer(core.take(m.Send), 403, NO)
    core.lose(0)
    core.fetch(event("good"), partition=1)
    core.deliver()
    core.advance(1000.0)
    assert not given_up(core)


def test_called_answered_and_processed_are_three_figures() -> None:
    """A call that nobody answers is called; a 503 is an answer; only what the platform says it processed is
    processed."""
    core = sending(event("a"), event("b"))
    send = core.take(m.Send)
    size = len(send.body)

    def three() -> list[tuple[int, ...]]:
        of = core.statistics().counters
        called, answered = (
            (of.calls, of.events_sent, of.bytes_sent),
            (of.calls_answered, of.events_answered, of.bytes_answered),
        )
        return [called, answered, (of.events_processed,)]

    core.feed(m.Unanswered(send.number, "connect"))
    assert three() == [(1, 2, size), (0, 0, 0), (0,)]
    core.until(lambda: core.has(m.Send))
    core.answer(core.take(m.Send), 503, b"")
    assert three() == [(2, 4, 2 * size), (1, 2, size), (0,)]
    core.until(lambda: core.has(m.Send))
    core.answer(core.take(m.Send), 200, answer_body([("processed", None, None), ("failed", "odd", None)]))
    assert three() == [(3, 6, 3 * size), (2, 4, 2 * size), (1,)]
    core.fetch(event("c"))
    core.send_all()
    core.answer(core.take(m.Send), 200, accepted(1))
    assert three()[2] == (2,)
