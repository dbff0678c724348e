"""The snapshot's search: what the oldest open record waits for, and how far behind each partition is, in seconds."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from consumer.engine import messages as m
from consumer.engine.figures.statistics import OldestOpen, WaitsFor
from consumer.engine.model import TopicPartition
from tests.engine.building import (
    ACCOUNT,
    NO,
    OTHER_ACCOUNT,
    TOPIC,
    UNIX,
    Core,
    chunk,
    event,
    filtered,
    of_schema,
    ref,
    unconvertible,
)


def oldest(core: Core) -> OldestOpen:
    """The oldest open record; there is one."""
    found = core.statistics().oldest_open
    assert found is not None
    return found


def waits_for(core: Core) -> tuple[str, str | None]:
    """What the oldest open record waits for, and its account."""
    found = oldest(core)
    return found.waits_for.value, found.account


def reading(*values: bytes | None, **policy: Any) -> Core:
    """A core that has read these."""
    core = Core(**policy)
    core.assign()
    core.fetch(*values)
    return core


# -- what it waits for, along its way


def test_nothing_open_has_no_oldest() -> None:
    """None, not a record of zero seconds."""
    assert Core().statistics().oldest_open is None
    assert reading(filtered()).statistics().oldest_open is None


def test_the_oldest_is_named_with_its_age() -> None:
    """By Kafka's timestamp over all partitions, not by the order of reading."""
    core = Core()
    core.assign(0, start=700)
    core.assign(1, start=3)
    core.fetch(event("a"), partition=0)
    core.fetch(filtered(), event("b"), partition=1)
    core.now += 5.0
    found = oldest(core)
    assert found.age == pytest.approx(5.996)
    assert replace(found, age=0.0) == OldestOpen(TOPIC, 1, 4, 0.0, WaitsFor.KEY_STORE, ACCOUNT)


def test_a_record_waits_for_its_schema() -> None:
    """Until the registry has said what it is."""
    core = reading(of_schema("a", "7"))
    assert waits_for(core) == ("schema", None)
    core.feed(m.SchemaUnavailable(ref("7"), "down"))
    assert waits_for(core) == ("schema", None)


def test_a_record_waits_for_room_once_its_schema_is_known() -> None:
    """It has grown by then, and the budget may be full."""
    core = Core(max_open_bytes=2_000)
    core.assign()
    core.fetch(of_schema("a", "7", text="x" * 600), event("b", text="x" * 300))
    core.feed(m.SchemaFound(ref("7"), {}))
    assert core.statistics().waiting_for_schema == 0
    assert waits_for(core) == ("room", None)


def test_a_record_waits_for_the_key_store() -> None:
    """To be looked up, to be looked up again after a failure, and to be remembered once delivered."""
    core = reading(event("a"), linger=0.0)
    assert waits_for(core) == ("key_store", ACCOUNT)
    core.feed(m.KeyStoreFailed(core.take(m.LookUpKeys)))
    assert waits_for(core) == ("key_store", ACCOUNT)
    core.until(lambda: core.has(m.LookUpKeys))
    core.look_up()
    core.accept()
    assert waits_for(core) == ("key_store", ACCOUNT)
    core.store_keys()
    assert core.statistics().oldest_open is None


def test_a_record_waits_for_its_batch_and_then_for_the_platform() -> None:
    """While the batch fills, so soon after the call before it, and while its own call is under way."""
    core = reading(event("a"), linger=1.0)
    core.look_up()
    core.fetch(event("b"), event("c", OTHER_ACCOUNT))
    core.look_up()
    core.accept()
    core.store_keys()
    assert waits_for(core) == ("batch", ACCOUNT)
    core.advance(1.0)
    assert waits_for(core) == ("platform", ACCOUNT)


def test_a_full_batch_waits_for_the_calls_before_it() -> None:
    """As many are in flight as may be: what it waits for is their answers."""
    core = reading(event("a"), event("b"), concurrency=1, batch_events=1)
    core.look_up()
    core.fetch(event("c"))
    core.look_up()
    core.accept()
    core.store_keys()
    first, second = core.take(m.Send), oldest(core)
    assert (first.events, second.offset, second.waits_for) == (1, 1, WaitsFor.PLATFORM)
    core.answer(first, 200, b"no JSON")
    core.advance(0.0)
    assert oldest(core).offset == 1


def test_a_full_batch_waits_for_keys_to_be_remembered() -> None:
    """What is delivered and not remembered has its limit too."""
    core = Core(concurrency=1, batch_events=1, linger=0.0)
    core.assign(0, start=500)
    core.fetch(event("a"), partition=0)
    core.look_up()
    core.accept()
    core.assign(1)
    core.fetch(event("b"), partition=1)
    core.look_up()
    assert not core.has(m.Send)
    assert (oldest(core).partition, *waits_for(core)) == (1, "key_store", ACCOUNT)


def test_a_record_waits_for_the_next_attempt() -> None:
    """After one that brought no verdict, until its time; then for whatever the gate says."""
    core = reading(event("a"), linger=0.0)
    core.look_up()
    core.feed(m.Unanswered(core.take(m.Send).number, "timeout"))
    assert waits_for(core) == ("retry", ACCOUNT)
    core.until(lambda: core.has(m.Send))
    assert waits_for(core) == ("platform", ACCOUNT)


def test_a_record_waits_for_the_quota() -> None:
    """Throttled by a 429, or by the calls of the last minute."""
    core = reading(event("a"), linger=0.0)
    core.look_up()
    core.answer(core.take(m.Send), 429, headers={"retry-after": "30"})
    assert waits_for(core) == ("quota", ACCOUNT)
    core = reading(event("a"), event("b"), linger=0.0, batch_events=1, calls_per_minute=1)
    core.look_up()
    core.accept()
    core.store_keys()
    assert (oldest(core).offset, *waits_for(core)) == (1, "quota", ACCOUNT)


def test_a_record_waits_for_the_pace() -> None:
    """An account in trouble has fewer calls at once than usual."""
    core = Core(linger=0.0, batch_events=1, concurrency=2)
    core.assign()
    core.fetch(event("a"), event("b"))
    core.look_up()
    first, second = core.take(m.Send), core.take(m.Send)
    core.feed(m.Unanswered(first.number, "timeout"))
    assert waits_for(core) == ("retry", ACCOUNT)
    core.advance(core.policy.delivery_backoff.base)
    assert not core.has(m.Send)
    assert waits_for(core) == ("quota", ACCOUNT)
    core.accept(second)
    core.store_keys()
    assert waits_for(core) == ("platform", ACCOUNT)


@pytest.mark.parametrize("status", [401, 403])
def test_a_record_waits_for_the_end_of_a_halt(status: int) -> None:
    """Whatever else holds it as well: first the token must be put right."""
    core = reading(event("a"), linger=0.0)
    core.look_up()
    core.answer(core.take(m.Send), status, NO)
    assert waits_for(core) == ("halt", ACCOUNT)


def test_a_follower_waits_for_the_one_with_its_key() -> None:
    """Its leader was read before it, from a partition whose records are younger."""
    core = Core()
    core.assign(0, start=500)
    core.assign(1)
    core.fetch(event("a"), partition=0)
    core.fetch(event("a"), partition=1)
    assert (oldest(core).partition, *waits_for(core)) == (1, "duplicate", ACCOUNT)


def test_a_record_waits_for_its_dead_letter() -> None:
    """Until the broker has it, failures included."""
    core = reading(unconvertible())
    assert waits_for(core) == ("dead_letter", None)
    core.store_letters(stored=False)
    assert waits_for(core) == ("dead_letter", None)


def test_a_record_waits_for_the_guard() -> None:
    """It has tripped: dead letters are not written any more, and their records stay open."""
    core = reading(*[unconvertible()] * 10, dead_letter_share=0.5, dead_letter_sample=10)
    assert core.statistics().guard is not None
    assert waits_for(core) == ("guard", None)


def test_a_record_let_go_of_in_a_drain_waits_for_what_is_in_flight() -> None:
    """Its partition goes as soon as that has come back."""
    core = Core(linger=0.0, batch_events=1, concurrency=1)
    core.assign()
    core.fetch(event("a"), event("b"))
    core.look_up()
    core.revoke(0)
    core.take(m.Send)
    assert waits_for(core) == ("platform", ACCOUNT)
    core = Core(linger=5.0)
    core.assign(0)
    core.assign(1, start=500)
    core.fetch(event("before"), partition=1)
    core.look_up()
    core.accept()
    core.store_keys()
    core.fetch(event("a"), partition=0)
    core.look_up()
    core.revoke(0)
    assert not core.has(m.Send)
    assert core.statistics().oldest_open is None


def test_every_way_to_wait_is_tested() -> None:
    """The closed set of the /status document."""
    assert {one.value for one in WaitsFor} == {
        "schema", "key_store", "batch", "quota", "retry", "platform", "halt", "duplicate", "dead_letter", "guard",
        "room", "clock", "member",
    }  # fmt: skip


# -- how far behind, in seconds


def behind(core: Core, partition: int = 0) -> float | None:
    """`lag_seconds` of a partition."""
    [found] = [one for one in core.statistics().partitions if one.partition == partition]
    return found.lag_seconds


def ends(core: Core, end: int, reached: int | None = None, partition: int = 0) -> None:
    """The end of a partition is known."""
    tp = TopicPartition(TOPIC, partition)
    core.feed(m.EndOffsets({tp: end}, {tp: reached} if reached is not None else {}))


def committed(core: Core) -> None:
    """All that is settled is committed."""
    while core.has(m.Commit) or any(True for _ in core.pipeline.ledger.committables()):
        core.until(lambda: core.has(m.Commit))
        core.commit()


def test_lag_is_not_known_before_the_end_is() -> None:
    """None, not zero."""
    core = Core()
    core.assign(0)
    assert behind(core) is None
    ends(core, 0)
    assert behind(core) == 0.0


def test_lag_is_the_age_of_the_lowest_open_record() -> None:
    """Whatever has settled above it, and whether the end is known or not."""
    core = reading(event("a"), filtered(), filtered())
    core.advance(10.0)
    assert behind(core) == pytest.approx(11.0)
    ends(core, 3, 3)
    assert behind(core) == pytest.approx(11.0)
    core.deliver()
    committed(core)
    assert behind(core) == 0.0


def test_lag_of_what_is_not_read_is_the_age_of_the_last_record_read() -> None:
    """All that was read is settled and more stands in the log, younger than that."""
    core = Core()
    core.assign()
    ends(core, 100)
    assert behind(core) is None  # nothing was read yet
    core.fetch(filtered(), filtered())
    core.now += 4.0
    assert behind(core) == pytest.approx(4.999)


def test_markers_and_aborted_transactions_are_no_lag() -> None:
    """All was read up to the end, and no record stands there."""
    core = reading(filtered())
    committed(core)
    ends(core, 50, 1)
    assert behind(core) is not None
    assert behind(core) != 0.0
    ends(core, 50, 50)
    assert behind(core) == 0.0


def test_what_is_settled_and_not_committed_yet_is_lag_in_both() -> None:
    """It would come again: until the commit it counts, and is as old as the last record read."""
    core = reading(event("a"))
    ends(core, 1, 1)
    core.deliver()
    [partition] = core.statistics().partitions
    assert partition.lag == 1
    assert partition.lag_seconds == pytest.approx(core.now - 1000.0 + 1.0)
    committed(core)
    [partition] = core.statistics().partitions
    assert (partition.lag, partition.lag_seconds) == (0, 0.0)


def test_what_is_fetched_and_held_is_lag() -> None:
    """The consumer's position is at the end, all that was read is settled, yet some of the fetch waits to be read."""
    core = reading(event("a"), event("b"), event("c"), most_records=2, linger=0.0)
    core.deliver()
    core.advance(core.policy.commit_interval)
    core.commit()
    ends(core, 3, 3)
    statistics = core.statistics()
    assert (statistics.totals.open, statistics.held) == (0, 1)
    assert statistics.partitions[0].lag == 1
    assert statistics.partitions[0].lag_seconds == pytest.approx(core.now - 1000.0 + 0.999)


def test_lag_after_the_log_was_cut_is_not_that_of_what_was_cut() -> None:
    """Nothing is known of the log that is there now, until a record of it is read."""
    core = reading(filtered(), filtered(), filtered())
    ends(core, 10)
    assert behind(core) is not None
    core.feed(m.Fetched([chunk([event("b")], offset=1)]))
    assert behind(core) == pytest.approx(0.999)
    core.deliver()
    committed(core)
    assert behind(core) is None
    ends(core, 2, 2)
    assert behind(core) == 0.0


def test_lag_goes_with_the_partition() -> None:
    """And a new assignment of it knows nothing of the one before."""
    core = reading(filtered())
    ends(core, 10)
    assert behind(core) is not None
    core.lose(0)
    assert core.statistics().partitions == ()
    core.assign(0, epoch=2, start=1)
    assert behind(core) is None


def test_times_to_come_and_no_times_are_no_ages() -> None:
    """A producer's clock may be ahead: zero; a record may have no timestamp: not known."""
    core = Core()
    core.assign(0)
    records = chunk([event("a")])
    late = records.records[0]._replace(timestamp=int((UNIX + 60) * 1000))
    core.feed(m.Fetched([records._replace(records=[late])]))
    assert (behind(core), oldest(core).age) == (0.0, 0.0)
    core = Core()
    core.assign(0)
    core.feed(m.Fetched([records._replace(records=[late._replace(timestamp=-1)])]))
    statistics = core.statistics()
    assert (behind(core), oldest(core).age, statistics.oldest_open_ms) == (None, None, None)


# -- the ledger's own check, and what a snapshot costs


def test_the_mismatch_is_zero_whatever_happens() -> None:
    """Settled, open, released by a cut and by a loss, passed by, held: each record is somewhere."""
    core = Core()
    core.assign(0)
    core.assign(1)
    steps: list[Callable[[], object]] = [
        lambda: core.fetch(event("a"), filtered(), unconvertible(), event("a"), partition=0),
        core.look_up,
        lambda: core.fetch(event("b"), event("c"), partition=1),
        lambda: core.feed(m.Fetched([chunk([event("d")], offset=1, partition=1)])),
        core.store_letters,
        core.deliver,
        lambda: core.fetch(event("e"), partition=0),
        lambda: core.lose(0),
        lambda: core.feed(m.Fetched([chunk([event("f")], offset=9, partition=0)])),
        core.deliver,
    ]
    for step in steps:
        step()
        assert core.statistics().mismatch == 0
    assert core.statistics().totals.released == 3


def test_a_record_that_is_nowhere_shows_as_a_mismatch() -> None:
    """What was read is counted on its own, so that it can differ from what has become of it."""
    core = reading(event("a"))
    core.pipeline.ledger._entered += 1
    statistics = core.statistics()
    assert (statistics.mismatch, statistics.totals.read, statistics.totals.open) == (1, 2, 1)


def test_a_snapshot_of_twenty_thousand_open_records_is_cheap() -> None:
    """It counts no records: CPU time, the best of some, with room for a slow machine (2 ms is what it may take)."""
    core = Core(max_open_events=21_000, max_open_bytes=10**9)
    core.assign()
    for n in range(20):
        core.pipeline.handle(
            m.Fetched([chunk([event(f"{n}-{one}") for one in range(1000)], offset=1000 * n)]), core.instant()
        )
    taken = []
    for _ in range(10):
        begun = time.process_time()
        assert core.statistics().totals.open == 20_000
        taken.append(time.process_time() - begun)
    assert min(taken) < 0.01
