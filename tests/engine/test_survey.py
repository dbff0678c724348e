"""The snapshot's search: what the oldest open record waits for, and how far behind each partition is, in seconds."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from consumer.engine import messages as m
from consumer.engine.figures.definitions import merged
from consumer.engine.figures.outside import silence_of_brokers, silence_of_coordinator
from consumer.engine.figures.statistics import Statistics
from consumer.engine.figures.waits import OldestOpen, WaitsFor
from consumer.engine.model import TopicPartition
from tests.engine.building import (
    ACCOUNT,
    NO,
    TOPIC,
    UNIX,
    Core,
    chunk,
    event,
    filtered,
    of_schema,
    reading,
    ref,
    sending,
    unconvertible,
)


def oldest(core: Core) -> OldestOpen:
    """Return the oldest open record, which must exist."""
    found = core.statistics().oldest_open
    assert found is not None
    return found


def waits_for(core: Core) -> tuple[str, str | None]:
    """Return what the oldest open record waits for, and its account."""
    found = oldest(core)
    return found.waits_for.value, found.account


# -- what a record waits for at each stage


def test_nothing_open_has_no_oldest() -> None:
    """With nothing open the oldest open record is None."""
    assert Core().statistics().oldest_open is None
    assert reading(filtered()).statistics().oldest_open is None


def test_the_oldest_is_named_with_its_age() -> None:
    """The oldest open record is the one with the lowest Kafka timestamp over all partitions, with its age."""
    core = Core()
    core.assign(0, start=700)
    core.assign(1, start=3)
    core.fetch(event("a"), partition=0)
    core.fetch(filtered(), event("b"), partition=1)
    core.now += 5.0
    found = oldest(core)
    assert found.age == pytest.approx(5.996)
    assert core.statistics().oldest_open_ms == 1_699_999_999_004
    assert replace(found, age=0.0) == OldestOpen(TOPIC, 1, 4, 0.0, WaitsFor.KEY_STORE, ACCOUNT)
    assert [one.partition for one in core.statistics().oldest] == [1, 0]


def test_what_a_record_waits_for_on_its_way() -> None:
    """Its schema, the key store, its batch, the platform, the next attempt, and the key store again."""
    core = reading(of_schema("a", "7"), linger=1.0)
    assert waits_for(core) == ("schema", None)
    core.feed(m.SchemaUnavailable(ref("7"), "down"))
    assert waits_for(core) == ("schema", None)
    core.feed(m.SchemaFound(ref("7"), {}))
    assert waits_for(core) == ("key_store", ACCOUNT)
    core.feed(m.KeyStoreFailed(core.take(m.LookUpKeys)))
    assert waits_for(core) == ("key_store", ACCOUNT)
    core.until(lambda: core.has(m.LookUpKeys))
    core.look_up()
    assert waits_for(core) == ("batch", ACCOUNT)
    core.advance(1.0)
    assert waits_for(core) == ("platform", ACCOUNT)
    core.feed(m.Unanswered(core.take(m.Send).number, "timeout"))
    assert waits_for(core) == ("retry", ACCOUNT)
    core.until(lambda: core.has(m.Send))
    assert waits_for(core) == ("platform", ACCOUNT)
    core.accept()
    assert waits_for(core) == ("key_store", ACCOUNT)
    core.store_keys()
    assert core.statistics().oldest_open is None


def test_a_record_waits_for_room_once_its_schema_is_known() -> None:
    """A record with a known schema waits for room when its JSON does not fit in the budget."""
    core = reading(of_schema("a", "7", text="x" * 600), event("b", text="x" * 300), max_open_bytes=2_000)
    core.feed(m.SchemaFound(ref("7"), {}))
    assert core.statistics().waiting_for_schema == 0
    assert waits_for(core) == ("room", None)


def test_a_full_batch_waits_for_the_calls_before_it() -> None:
    """A full batch waits for the platform while as many calls are in flight as possible."""
    core = reading(event("a"), event("b"), concurrency=1, batch_events=1)
    core.look_up()
    core.fetch(event("c"))
    core.look_up()
    core.deliver_one()
    first, second = core.take(m.Send), oldest(core)
    assert (first.events, second.offset, second.waits_for) == (1, 1, WaitsFor.PLATFORM)
    core.answer(first, 200, b"no JSON")
    core.advance(0.0)
    assert oldest(core).offset == 1


def test_a_full_batch_waits_for_keys_to_be_remembered() -> None:
    """A full batch waits for the key store while as many delivered events as possible have no stored key."""
    core = Core(concurrency=1, batch_events=1)
    core.assign(0, start=500)
    core.fetch(event("a"), partition=0)
    core.look_up()
    core.accept()
    core.assign(1)
    core.fetch(event("b"), partition=1)
    core.look_up()
    assert not core.has(m.Send)
    assert (oldest(core).partition, *waits_for(core)) == (1, "key_store", ACCOUNT)


def test_a_record_waits_for_the_quota() -> None:
    """A record waits for the quota after a 429, or when the last minute's calls have used the quota."""
    core = reading(event("a"), linger=0.0)
    core.look_up()
    core.answer(core.take(m.Send), 429, headers={"retry-after": "30"})
    assert waits_for(core) == ("quota", ACCOUNT)
    core = reading(event("a"), event("b"), linger=0.0, batch_events=1, calls_per_minute=1)
    core.look_up()
    core.deliver_one()
    assert (oldest(core).offset, *waits_for(core)) == (1, "quota", ACCOUNT)


def test_a_record_waits_for_the_pace() -> None:
    """A record of an account in trouble waits for the quota, because fewer calls at once are allowed."""
    core = sending(event("a"), event("b"), batch_events=1, concurrency=2)
    first, second = core.take(m.Send), core.take(m.Send)
    core.feed(m.Unanswered(first.number, "timeout"))
    assert waits_for(core) == ("retry", ACCOUNT)
    core.advance(core.policy.delivery_backoff.base)
    assert not core.has(m.Send)
    assert waits_for(core) == ("quota", ACCOUNT)
    core.deliver_one(second)
    assert waits_for(core) == ("platform", ACCOUNT)


@pytest.mark.parametrize("status", [401, 403])
def test_a_record_waits_for_the_end_of_a_halt(status: int) -> None:
    """A record of a halted account waits for the end of the halt, whatever else it waits for."""
    core = reading(event("a"), linger=0.0)
    core.look_up()
    core.answer(core.take(m.Send), status, NO)
    assert waits_for(core) == ("halt", ACCOUNT)


def test_a_follower_waits_for_the_one_with_its_key() -> None:
    """A follower waits for its leader, here one of a partition with younger records."""
    core = Core()
    core.assign(0, start=500)
    core.assign(1)
    core.fetch(event("a"), partition=0)
    core.fetch(event("a"), partition=1)
    assert (oldest(core).partition, *waits_for(core)) == (1, "duplicate", ACCOUNT)


def test_a_record_waits_for_its_dead_letter() -> None:
    """A record waits for its dead letter until the broker has stored it, also after a failed write."""
    core = reading(unconvertible())
    assert waits_for(core) == ("dead_letter", None)
    core.store_letters(stored=False)
    assert waits_for(core) == ("dead_letter", None)


def test_a_record_waits_for_its_receipt() -> None:
    """A record whose outcome is known waits for its receipt; a queued one, too, if too many wait for theirs."""
    core = reading(filtered(), receipts=True)
    assert waits_for(core) == ("receipt", None)
    core = sending(event("a"), event("b"), receipts=True, batch_events=1, concurrency=1)
    core.revoke(1)
    core.accept()
    core.fetch(event("c"))
    assert waits_for(core) == ("receipt", None)
    assert not core.has(m.Send)


def test_a_record_waits_for_the_guard() -> None:
    """After the guard tripped, records of dead letters that are not written wait for the guard."""
    core = reading(*[unconvertible()] * 10, dead_letter_share=0.5, dead_letter_sample=10)
    assert core.statistics().guard is not None
    assert waits_for(core) == ("guard", None)


def test_a_record_dropped_in_a_drain_waits_for_calls_in_flight() -> None:
    """A record dropped in a drain waits for calls in flight, and is gone at once when there are none."""
    core = sending(event("a"), event("b"), batch_events=1, concurrency=1)
    core.revoke(0)
    core.take(m.Send)
    assert waits_for(core) == ("platform", ACCOUNT)
    core = Core(linger=5.0)
    core.assign(0)
    core.fetch(event("a"), partition=0)
    core.look_up()
    core.revoke(0)
    assert not core.has(m.Send)
    assert core.statistics().oldest_open is None


def test_every_way_to_wait_is_tested() -> None:
    """The reasons to wait are the closed set of the /status document, each with a test."""
    assert {one.value for one in WaitsFor} == {
        "schema", "key_store", "batch", "quota", "retry", "platform", "halt", "duplicate", "dead_letter", "guard",
        "room", "clock", "member", "receipt",
    }  # fmt: skip


# -- lag in seconds


def behind(core: Core, partition: int = 0) -> float | None:
    """Return `lag_seconds` of a partition."""
    [found] = [one for one in core.statistics().partitions if one.partition == partition]
    return found.lag_seconds


def ends(core: Core, end: int, reached: int | None = None, partition: int = 0) -> None:
    """Report the end of a partition."""
    tp = TopicPartition(TOPIC, partition)
    core.feed(m.EndOffsets({tp: end}, {tp: reached} if reached is not None else {}))


def committed(core: Core) -> None:
    """Commit all settled records."""
    while core.has(m.Commit) or any(True for _ in core.pipeline.ledger.committables()):
        core.until(lambda: core.has(m.Commit))
        core.commit()


def test_lag_is_the_age_of_the_lowest_open_record() -> None:
    """Lag is the age of the lowest open record, whatever settled above it, with or without a known end."""
    core = reading(event("a"), filtered(), filtered())
    core.advance(10.0)
    assert behind(core) == pytest.approx(11.0)
    ends(core, 3, 3)
    assert behind(core) == pytest.approx(11.0)
    core.deliver()
    committed(core)
    assert behind(core) == 0.0


def test_lag_of_what_is_not_read_is_the_age_of_the_last_record_read() -> None:
    """With unread records and none open, lag is the age of the last record read, which is older than they are."""
    core = reading()
    ends(core, 100)
    assert behind(core) is None  # no record was read yet
    core.fetch(filtered(), filtered())
    core.now += 4.0
    assert behind(core) == pytest.approx(4.999)


def test_markers_and_aborted_transactions_are_no_lag() -> None:
    """Offsets of markers and aborted transactions do not count as lag once the client has passed them."""
    core = reading(filtered())
    committed(core)
    ends(core, 50, 1)
    assert behind(core) is not None
    assert behind(core) != 0.0
    ends(core, 50, 50)
    assert behind(core) == 0.0


def test_what_is_fetched_and_held_is_lag() -> None:
    """Held records count as lag, although the client's position is at the end and all records read are settled."""
    core = reading(event("a"), event("b"), event("c"), max_records=2, linger=0.0)
    core.deliver()
    core.advance(core.policy.commit_interval)
    core.commit()
    ends(core, 3, 3)
    statistics = core.statistics()
    assert (statistics.totals.open, statistics.held) == (0, 1)
    assert statistics.partitions[0].lag == 1
    assert statistics.partitions[0].lag_seconds == pytest.approx(core.now - 1000.0 + 0.999)


def test_lag_after_the_log_was_cut_is_not_that_of_what_was_cut() -> None:
    """After a cut lag is that of the new log, and None until a record of it or its end is known."""
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


def test_future_and_missing_timestamps_are_no_ages() -> None:
    """A timestamp in the future gives an age of zero, a missing one gives None."""
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


def test_a_snapshot_of_twenty_thousand_open_records_is_cheap() -> None:
    """A snapshot counts no records: with 20,000 open it takes under 10 ms of CPU time (the aim is 2 ms)."""
    core = reading(max_open_events=21_000, max_open_bytes=10**9)
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


def test_lag_is_not_known_while_no_broker_answers() -> None:
    """Nobody knows how far the log goes now. The age of an open record stays known."""
    core = reading()
    core.feed(m.EndOffsets({TopicPartition(TOPIC, 0): 0}))
    assert core.statistics().partitions[0].lag == 0
    core.feed(m.BrokersSilent("kafka:9092, connection refused"))
    [known] = core.statistics().partitions
    assert (known.lag, known.lag_seconds, known.end) == (None, None, 0)
    core.fetch(event("a"))
    [with_open] = core.statistics().partitions
    assert with_open.lag is None
    assert with_open.lag_seconds is not None
    core.feed(m.BrokersSilent(None))
    assert core.statistics().partitions[0].lag == 1


def test_the_longest_silence_of_any_worker_is_shown() -> None:
    """Of workers, the one whose brokers have been silent for longest; none: they all hear them."""
    core = Core()
    silent, longer = (
        replace(core.statistics(), brokers_silent=silence_of_brokers(why, seconds))
        for why, seconds in (("a:1, no answer", 3.0), ("b:1, no answer", 5.0))
    )
    assert merged(Statistics, [core.statistics(), silent, longer]).brokers_silent == longer.brokers_silent
    assert merged(Statistics, [core.statistics()]).brokers_silent is None
    alone, longer_alone = (
        replace(core.statistics(), coordinator_silent=silence_of_coordinator(seconds))
        for seconds in (3.0, 5.0)
    )
    together = merged(Statistics, [alone, longer_alone, core.statistics()])
    assert together.coordinator_silent == longer_alone.coordinator_silent
