"""Healthy: this process works by itself. Ready: it could deliver events now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from consumer.app.run import hangs_after
from consumer.engine import messages as m
from consumer.engine.figures.outside import silence_of_coordinator
from consumer.engine.figures.statistics import Statistics
from consumer.settings import REVOKE_MARGIN, load
from consumer.web.health import FETCH_HANGS_AFTER, why_not_ready, why_unhealthy
from tests.end_to_end.processes import run_environment
from tests.engine.building import NO, UNDECODABLE, Core, event
from tests.support.kafka.harness import Kafka
from tests.web.building import OTHER_ACCOUNT, account, empty, guarded, hanging, partition, statistics

START = 1_000.0
LONG = START + 9_000.0
"""A time hours later."""


def stuck(**more: Any) -> Statistics:
    """Five records open, nothing settled for hours."""
    return statistics(partition(open=5, lag=7), stalled_for=9_000.0, **more)


# -- health


OF_OTHERS = {
    "stalled": stuck(),
    "halted": stuck(accounts=[account(state="halted", queued=5)]),
    "unreachable": stuck(accounts=[account(state="unreachable", queued=5)]),
    "throttled": stuck(accounts=[account(state="throttled", queued=5)]),
    "key-store": stuck(key_store_fails=True),
    "receipts": stuck(receipts_error="the topic is gone"),
    "hanging-transaction": statistics(partition(lag=7), stalled_for=9_000.0),
    "no-start": replace(empty(), waiting_for_start=3),
    "no-group": replace(empty(), joined=False),
    "guard": guarded(),
    "stop": stuck(stopping=True),
}


@pytest.mark.parametrize("error", OF_OTHERS)
def test_errors_of_others_are_not_unhealthy(error: str) -> None:
    """However long it lasts, while fetches come back: a restart would not help (aiokafka #847)."""
    assert why_unhealthy(OF_OTHERS[error], LONG, LONG - 1) is None


def test_what_only_the_end_of_the_process_ends_is_unhealthy() -> None:
    """A fetch that does not return, though the destination takes nothing either: polling must go on, or the group
    removes the member. A function that takes as long. A key store that needs a restart, in its own words. Before the
    first fetch nothing is known; a stop has its own deadline."""
    caught_up = statistics(partition(delivered=10))
    late = START + FETCH_HANGS_AFTER
    assert why_unhealthy(caught_up, START, None) is None
    assert why_unhealthy(caught_up, late - 1, START) is None
    for waiting in (
        caught_up,
        *(OF_OTHERS[name] for name in ("halted", "unreachable", "throttled", "guard")),
    ):
        assert why_unhealthy(waiting, late, START) == "no fetch has returned for 120 s"
    assert why_unhealthy(caught_up, late, START, hangs_after=180.0) is None
    assert why_unhealthy(caught_up, START + 180.0, START, hangs_after=180.0) is not None
    assert why_unhealthy(stuck(stopping=True), late, START) is None
    slow = hanging().slow_transform
    assert slow is not None
    assert why_unhealthy(hanging(), START) is None
    assert why_unhealthy(replace(hanging(), slow_transform=replace(slow, seconds=121.0)), START) == (
        "the function shop.events:clean has not returned for 121 s (PINSTREAM_TRANSFORM)"
    )
    assert why_unhealthy(stuck(), START, START, broken="it is damaged: …") == "it is damaged: …"


@pytest.mark.parametrize(("timeout_ms", "seconds"), [(None, 120), ("10000", 120), ("60000", 360), ("x", 120)])
def test_a_fetch_hangs_only_after_all_of_its_time_limits(
    tmp_path: Path, timeout_ms: str | None, seconds: float
) -> None:
    """A commit in a revoke may take several times ``KAFKA_SOCKET_TIMEOUT_MS``: a silent broker does not make us
    unhealthy."""
    env = run_environment(tmp_path, Kafka("127.0.0.1:9", "none"), "t", "g", "http://127.0.0.1:9/v5")
    settings = load(env | ({} if timeout_ms is None else {"KAFKA_SOCKET_TIMEOUT_MS": timeout_ms}))
    assert hangs_after(settings) == settings.pinstream.shutdown_grace + REVOKE_MARGIN + seconds


# -- readiness


def test_a_member_is_ready_once_it_has_joined() -> None:
    """Also without partitions: a spare member is ready, and a rolling update continues."""
    assert why_not_ready(replace(empty(), joined=False)) == "the group has not assigned partitions yet"
    assert why_not_ready(replace(empty(), joined=False, starting="DNS")) == "DNS"
    assert why_not_ready(replace(empty(), joined=True)) is None
    # Another worker has joined, and this one starts again.
    assert why_not_ready(replace(empty(), joined=True, starting="DNS")) is None
    assert why_not_ready(statistics(partition())) is None
    assert why_not_ready(statistics(partition(), waiting_for_start=1)) is None
    assert why_not_ready(replace(empty(), joined=True, waiting_for_start=3)) == (
        "the brokers do not say where to start: 3 assigned partitions wait"
    )


def test_not_ready_while_no_broker_answers() -> None:
    """One sentence, before all that follows from it; it is no reason for a restart."""
    core = Core()
    core.assign()
    core.feed(m.BrokersSilent("kafka:9092, connection refused", 6.0))
    core.advance(3.0)
    silent = core.statistics()
    assert why_not_ready(silent) == "The brokers do not answer (kafka:9092, connection refused) for 9 s"
    assert why_not_ready(replace(silent, joined=False, waiting_for_start=2)) == why_not_ready(silent)
    led = replace(silent, coordinator_silent=silence_of_coordinator(9.0))
    assert why_not_ready(replace(led, joined=False)) == why_not_ready(silent)
    assert why_not_ready(replace(silent, stopping=True)) == "stopping"
    assert why_unhealthy(silent, LONG, LONG) is None
    core.feed(m.BrokersSilent(None))
    assert why_not_ready(core.statistics()) is None


def test_a_group_without_a_coordinator_is_named_where_it_holds_up_the_member() -> None:
    """A member that waits for partitions, or for where they start, is not ready; one that reads its partitions, or has
    joined as a spare, is."""
    core = Core()
    core.feed(m.EndOffsets({}, coordinator_silent=12.3))
    waits = core.statistics()
    why = why_not_ready(waits)
    assert why is not None
    assert why.startswith(
        "No coordinator of the group answers (for 12 s): the partitions of __consumer_offsets need"
    )
    assert why_not_ready(replace(waits, joined=True, waiting_for_start=2)) == why
    assert why_not_ready(replace(waits, joined=True)) is None
    assert why_unhealthy(waits, LONG, LONG) is None
    core.assign()
    assert why_not_ready(core.statistics()) is None
    assert core.statistics().coordinator_silent == silence_of_coordinator(12.3)
    core.feed(m.EndOffsets({}))
    assert core.statistics().coordinator_silent is None


def test_not_ready_while_stopping_guarded_or_without_a_key_store() -> None:
    """One line says why. A slow or throttled member is ready."""
    assert why_not_ready(statistics(partition(), stopping=True)) == "stopping"
    assert (why_not_ready(guarded()) or "").startswith("intake stopped: ")
    guard = guarded().guard
    assert guard is not None
    of_section = replace(guarded(), guard=replace(guard, section="com.shop.Order"))
    assert "mostly convert no_identity of com.shop.Order (mapping)" in (why_not_ready(of_section) or "")
    assert (why_not_ready(stuck(key_store_fails=True)) or "").startswith("the key store fails")
    why = "receipts cannot be written to receipts: grant WRITE on receipts"
    assert why_not_ready(stuck(receipts_error=why)) == f"{why}; no record settles without its receipt"
    assert "see receipts_not_stored in the log" in (why_not_ready(stuck(receipts_error="")) or "")
    assert why_not_ready(statistics(partition(), accounts=[account(state="throttled")])) is None
    assert why_not_ready(stuck()) is None


def test_not_ready_while_no_ad_account_takes_events() -> None:
    """Halted or unreachable: each reason once, and no account is named; one account that takes events is enough."""
    dead = account("7", "halted", reason="no such account")
    away = account("8", "unreachable", reason="no verdict")
    for accounts, why in (
        ([dead], "destination halted: no such account"),
        ([away], "destination unreachable: no verdict"),
        ([dead, away, dead], "destination halted: no such account; no verdict"),
        ([dead, away, account(OTHER_ACCOUNT)], None),
    ):
        assert why_not_ready(statistics(partition(), accounts=accounts)) == why


# -- real cores


def test_a_real_core_whose_api_does_not_answer_is_healthy_and_not_ready_until_it_does() -> None:
    """Half a minute of calls that hang or fail, and it is unreachable; an answer ends it. So does a refused token."""
    core = Core()
    core.assign()
    core.fetch(event("a"))
    core.send_all()
    assert why_not_ready(core.statistics()) is None
    core.advance(29.0)
    assert why_not_ready(core.statistics()) is None
    core.feed(m.Unanswered(core.take(m.Send).number, "timeout"))
    core.advance(1.0)
    assert why_not_ready(core.statistics()) == (
        "destination unreachable: no verdict on any event; the latest call: no answer in time"
    )
    core.advance(3_600.0)
    assert why_unhealthy(core.statistics(), core.now, core.now) is None
    core.deliver()
    assert why_not_ready(core.statistics()) is None
    assert [len(core.reports(name)) for name in ("unreachable", "reachable")] == [1, 1]
    # A refused token: readiness says why and does not say whose token it is.
    core.fetch(event("b"))
    core.send_all()
    core.answer(core.take(m.Send), 401, NO)
    assert why_unhealthy(core.statistics(), LONG, LONG) is None
    assert why_not_ready(core.statistics()) == (
        "destination halted: the access token is refused (HTTP 401, code 2)"
    )


def test_a_real_core_whose_guard_tripped_stays_healthy_and_is_not_ready() -> None:
    """Readiness names the topic and the figures, and nothing of the records."""
    core = Core(dead_letter_share=0.5, dead_letter_sample=10)
    core.assign()
    core.fetch(*(event(f"{n}") for n in range(4)), *[UNDECODABLE] * 6)
    core.advance(1_200.0)
    assert why_unhealthy(core.statistics(), core.now, core.now) is None
    assert why_not_ready(core.statistics()) == (
        "intake stopped: 6 of the latest 10 of shop would be dead letters, mostly decode malformed (schema): correct "
        "the schema (at the producer, in the registry or in PINSTREAM_SCHEMAS_DIR) and start again"
    )


def test_a_real_core_whose_key_store_fails_is_not_ready() -> None:
    """Until it answers; the cause is that of the log."""
    core = Core()
    core.assign()
    core.fetch(event("a"))
    full = "the key store cannot use /keys (No space left on device): free space on that disk"
    core.feed(m.KeyStoreFailed(core.take(m.LookUpKeys), full))
    assert why_not_ready(core.statistics()) == (
        f"the key store fails, and nothing can be delivered without it: {full}"
    )
    core.until(lambda: core.has(m.LookUpKeys))
    core.look_up()
    assert why_not_ready(core.statistics()) is None
