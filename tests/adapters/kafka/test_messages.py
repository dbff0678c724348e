"""Compiled code reads records from the client's messages as plain Python does."""

from __future__ import annotations

from typing import Any

import pytest
from confluent_kafka import KafkaError, Message
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.adapters.kafka.native import plain
from consumer.engine.model import Record
from consumer.engine.native import sizes_of

compiled = pytest.importorskip(
    "consumer.adapters.kafka.native._messages", reason="built without a C compiler"
)

HEADERS = st.none() | st.lists(st.tuples(st.text(max_size=3), st.none() | st.binary(max_size=3)), max_size=3)
"""A message's headers: a name and a value each."""


@st.composite
def messages(draw: st.DrawFn) -> Message:
    """Draw a message that may continue the run of another."""
    return Message(
        topic=draw(st.sampled_from(["t", "t" * 2, "ü"])),
        partition=draw(st.integers(0, 1)),
        offset=draw(st.integers(0, 2**62)),
        key=draw(st.none() | st.binary(max_size=4)),
        value=draw(st.none() | st.binary(max_size=9)),
        headers=draw(HEADERS),  # type: ignore[arg-type]  # a value may be None
        error=draw(st.sampled_from([None, None, None, KafkaError(KafkaError._PARTITION_EOF)])),
        timestamp=draw(st.tuples(st.integers(0, 2), st.integers(-1, 2**50))),
        leader_epoch=draw(st.integers(-1, 1)),
    )


def run_of(many: list[tuple[bytes | None, Any]]) -> list[Message]:
    """Return messages of one run, with these values and headers."""
    return [
        Message(topic="".join(["to", "pic"]), partition=1, offset=place, value=value, headers=headers, timestamp=(1, 9))
        for place, (value, headers) in enumerate(many)
    ]  # fmt: skip


@settings(deadline=None)
@given(st.lists(messages(), min_size=1, max_size=6), st.integers(0, 40))
def test_any_messages(many: list[Message], maximum: int) -> None:
    """For any messages, with errors and breaks of runs, compiled code gathers the same records as plain Python."""
    at = 0
    while at < len(many):
        if many[at].error() is not None:
            at += 1
            continue
        read: list[Record] = []
        expected: list[Record] = []
        end, size = plain.gather(many, at, expected, maximum)
        assert compiled.gather(many, at, read, maximum) == (end, size)
        assert read == expected
        assert all(type(one) is Record for one in read)
        assert size == sum(sizes_of(read))
        assert end > at
        at = end


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.none() | st.binary(max_size=9), HEADERS), min_size=1, max_size=20),
    st.integers(0, 900),
)
def test_a_run_ends_with_the_record_that_reaches_the_limit(
    many: list[tuple[bytes | None, Any]], maximum: int
) -> None:
    """A run ends with the record that reaches the limit, which is still part of it."""
    run = run_of(many)
    for way in (plain.gather, compiled.gather):
        read: list[Record] = []
        end, size = way(run, 0, read, maximum)
        assert [one.offset for one in read] == list(range(end))
        assert size == sum(sizes_of(read))
        assert end == len(run) or size >= maximum
        assert end == 1 or sum(sizes_of(read[:-1])) < maximum


def test_an_object_that_is_no_message_is_refused() -> None:
    """Compiled code reads fields at fixed places of memory."""
    with pytest.raises((TypeError, AttributeError)):
        compiled.gather([object()], 0, [], 1)
    with pytest.raises((TypeError, AttributeError)):
        compiled.gather([*run_of([(b"a", None)]), object()], 0, [], 100)
