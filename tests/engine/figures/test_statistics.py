"""The snapshot: its figures agree, and no data of a shop or of the API can make it grow without bound."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.figures.counters import MAX_LETTERS, StoredLetter
from consumer.engine.figures.outside import BrokerStatistics
from consumer.engine.model import Stage, TopicPartition
from tests.engine.building import (
    ACCOUNT,
    OTHER_ACCOUNT,
    TOPIC,
    UNIX,
    Core,
    answer_body,
    event,
    filtered,
    reading,
    sending,
    unconvertible,
)


def test_the_snapshot_shows_each_partition() -> None:
    """The snapshot has committed offset, position, end, and lag from the committed offset."""
    core = Core()
    core.assign(0, start=5)
    core.fetch(event("a"), filtered())
    core.feed(m.EndOffsets({TopicPartition(TOPIC, 0): 105, TopicPartition(TOPIC, 9): 1}))
    [partition] = core.statistics().partitions
    assert (partition.committed, partition.position, partition.end, partition.lag) == (None, 7, 105, 100)
    core.deliver()
    core.advance(core.policy.commit_interval)
    core.commit()
    statistics = core.statistics()
    [partition] = statistics.partitions
    assert (partition.committed, partition.lag) == (7, 98)
    assert partition.totals == statistics.totals
    assert (statistics.totals.delivered, statistics.totals.filtered) == (1, 1)


def test_the_snapshot_shows_each_account() -> None:
    """The snapshot has state, reason, queued and in-flight events per account; the destination has the worst state."""
    core = sending(event("a"), event("b", OTHER_ACCOUNT))
    good, bad = core.take(m.Send), core.take(m.Send)
    assert (good.account, bad.account) == (ACCOUNT, OTHER_ACCOUNT)
    core.answer(bad, 429, headers={"retry-after": "30"})
    assert core.statistics().destination == "throttled"
    core.answer(good, 403, b'{"code": 29, "message": "no"}')
    core.now += 1.0
    first, second = core.statistics().accounts
    assert (first.state, first.halted_for, first.next_probe_in, first.queued) == ("halted", 1.0, 1.0, 1)
    assert first.reason == "the token may not use this ad account (HTTP 403, code 29)"
    assert (second.state, second.throttled_for, second.queued, second.in_flight) == ("throttled", 29.0, 1, 0)
    assert core.statistics().destination == "halted"


def test_the_latest_dead_letters_are_kept_once_they_are_stored() -> None:
    """The latest 20 stored dead letters are listed, newest first, with origin and reason; so are the first ten."""
    core = Core()
    core.assign(start=100)
    core.fetch(unconvertible())
    assert core.statistics().letters == ()  # it is not on the topic yet
    core.store_letters()
    assert core.statistics().letters == (
        StoredLetter(UNIX, TOPIC, 0, 100, Stage.CONVERT, "no_identity", "the event cannot be converted"),
    )
    core.fetch(*[b"\xff"] * 30)
    core.store_letters()
    letters = core.statistics().letters
    assert len(letters) == MAX_LETTERS == 20
    assert [one.offset for one in letters] == [*range(130, 110, -1)]
    assert [one.offset for one in core.pipeline.problems] == [*range(100, 110)]


def test_a_dead_letter_is_kept_though_its_partition_goes() -> None:
    """A stored dead letter stays in the list when its partition goes; one that is not stored never enters it."""
    core = reading(unconvertible())
    core.store_letters()
    core.fetch(b"\xff")
    core.lose(0)
    core.store_letters()
    assert [one.code for one in core.statistics().letters] == ["no_identity"]


def test_a_message_of_each_kind_is_kept() -> None:
    """The latest message is kept for each code at each stage, and for each kind of conversion warning."""
    core = sending(event("a", warn=1), event("b"), unconvertible(), b"\xff")
    send = core.take(m.Send)
    core.answer(send, 200, answer_body([("failed", "bad currency", None), ("failed", "bad value", None)]))
    samples = core.statistics().samples
    assert samples.rejections == {
        ("convert", "no_identity"): "the event cannot be converted",
        ("decode", "malformed"): "the value is not an event",
        ("deliver", "refused"): "bad value",
    }
    assert samples.warnings == {("value_zero", "custom_data.value"): "a value of zero"}


def test_progress_is_counted_from_the_last_settlement() -> None:
    """Or from when nothing was open: idle is not stuck, nor is a core before its first input, whatever its clock."""
    core = Core()
    core.now = 30 * 86_400.0
    assert core.statistics().seconds_since_progress == 0.0
    core = reading()
    core.advance(100.0)
    assert core.statistics().seconds_since_progress == pytest.approx(0.0)
    core.fetch(event("a"))
    core.advance(50.0)
    assert core.statistics().seconds_since_progress == pytest.approx(50.0)
    core.deliver()
    assert core.statistics().seconds_since_progress == pytest.approx(0.0)


def test_the_snapshot_is_frozen() -> None:
    """A snapshot does not change with events that come later."""
    core = reading()
    before = core.statistics()
    core.fetch(filtered())
    assert before.totals.read == 0
    assert before.counters.filtered["event_name"] == 0


def test_brokers_have_the_latest_figures_of_each_client() -> None:
    """Figures of a client's brokers replace that client's earlier ones and leave those of other clients."""
    core = Core()
    core.feed(
        m.BrokerStats("consumer", [m.BrokerTimes("1", 0.1, 0.2, 3.0), m.BrokerTimes("2", None, None, 1.0)])
    )
    core.feed(m.BrokerStats("producer", [m.BrokerTimes("1", 0.3, 0.4, 0.0)]))
    core.feed(m.BrokerStats("consumer", [m.BrokerTimes("2", 0.5, 0.6, 1.5)]))
    assert core.statistics().brokers == (
        BrokerStatistics("consumer", "2", 0.5, 0.6, 1.5),
        BrokerStatistics("producer", "1", 0.3, 0.4, 0.0),
    )
