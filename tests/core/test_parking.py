"""Parking: records wait for their schema, each schema is asked for once at a time, and none for nobody."""

from __future__ import annotations

import pytest

from consumer.core.ledger import Ledger
from consumer.core.model import TopicPartition
from consumer.core.parking import Parking
from consumer.core.policy import Backoff
from consumer.core.spans import Span
from tests.core.building import TOPIC, chunk, ref

BACKOFF = Backoff(base=1.0, cap=8.0)


@pytest.fixture
def ledger() -> Ledger:
    """A ledger with one assignment."""
    ledger = Ledger()
    ledger.assign(TopicPartition(TOPIC, 0), 1, 0, False)
    return ledger


def span_of(ledger: Ledger, count: int = 3) -> Span:
    """A span of the assignment."""
    state = ledger.get(TopicPartition(TOPIC, 0))
    assert state is not None
    return ledger.track(state, chunk([b"x"] * count, offset=state.last_seen + 1))


def test_a_schema_is_asked_for_once(ledger: Ledger) -> None:
    """However many records need it; while asked, nothing is due."""
    parking, span = Parking(BACKOFF), span_of(ledger)
    parking.park(ref("1"), span, 0)
    parking.park(ref("1"), span, 1)
    parking.park(ref("2"), span, 2)
    assert list(parking.ask(0.0)) == [ref("1"), ref("2")]
    assert list(parking.ask(0.0)) == []
    assert parking.due() is None
    assert len(parking) == 3


def test_a_verdict_gives_the_records_in_order(ledger: Ledger) -> None:
    """All that waited for it, and nothing else."""
    parking, span = Parking(BACKOFF), span_of(ledger)
    parking.park(ref("1"), span, 0)
    parking.park(ref("2"), span, 1)
    parking.park(ref("1"), span, 2)
    assert parking.answered(ref("1")) == [(span, 0), (span, 2)]
    assert parking.answered(ref("1")) == []
    assert len(parking) == 1


def test_no_verdict_means_asking_again_later(ledger: Ledger) -> None:
    """Behind a backoff that grows to its cap, for ever; records that come meanwhile wait with the others."""
    parking, span = Parking(BACKOFF), span_of(ledger)
    parking.park(ref("1"), span, 0)
    now, delays = 0.0, []
    for _ in range(5):
        assert list(parking.ask(now)) == [ref("1")]
        parking.unavailable(ref("1"), now, 1.0)
        parking.park(ref("1"), span, 1)
        due = parking.due()
        assert due is not None
        assert list(parking.ask(due - 0.01)) == []
        delays.append(due - now)
        now = due
    assert delays == [1.0, 2.0, 4.0, 8.0, 8.0]


def test_records_that_are_no_longer_ours_are_forgotten(ledger: Ledger) -> None:
    """A schema nobody needs and nobody asks for is forgotten with them."""
    parking, span = Parking(BACKOFF), span_of(ledger)
    parking.park(ref("1"), span, 0)
    ledger.drop(TopicPartition(TOPIC, 0))
    parking.purge()
    assert len(parking) == 0
    assert parking.due() is None


def test_a_schema_nobody_needs_any_more_is_not_asked_for_again(ledger: Ledger) -> None:
    """The records went while the registry was asked: its failure to answer concerns nobody."""
    parking, span = Parking(BACKOFF), span_of(ledger)
    parking.park(ref("1"), span, 0)
    list(parking.ask(0.0))
    ledger.drop(TopicPartition(TOPIC, 0))
    parking.purge()
    parking.unavailable(ref("1"), 0.0, 0.5)
    assert parking.due() is None


def test_an_answer_nobody_waits_for_is_no_bug() -> None:
    """Records may go while the registry is asked."""
    parking = Parking(BACKOFF)
    parking.unavailable(ref("1"), 0.0, 0.5)
    assert parking.answered(ref("1")) == []
