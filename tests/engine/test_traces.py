"""Traces in which records were written: which header counts as a traceparent, and which of many are taken."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.model import Record, TraceParent, trace_parents
from tests.engine.building import chunk, event, reading

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def written_in(*texts: bytes | None, name: str = "traceparent") -> Record:
    """Return a record with these headers named `name`."""
    return Record(0, 0, None, b"", tuple((name, text) for text in texts))


def trace_parent(record: Record) -> TraceParent | None:
    """Return the trace parent that is read of a record."""
    return next(iter(trace_parents([record], 1)), None)


def sampled(number: int, flags: int = 1) -> bytes:
    """Return a header of the trace with this number."""
    return f"00-{number:032x}-{SPAN}-{flags:02x}".encode()


def test_a_traceparent_is_read() -> None:
    """A traceparent gives trace, span and flags as W3C Trace Context defines them."""
    record = written_in(f"00-{TRACE}-{SPAN}-01".encode())
    assert trace_parent(record) == TraceParent(int(TRACE, 16), int(SPAN, 16), 1)


def test_of_a_later_version_the_known_fields_are_read() -> None:
    """Of a later version the known fields are read, as the standard asks."""
    record = written_in(f"cc-{TRACE}-{SPAN}-03-what-the-future-holds".encode())
    assert trace_parent(record) == TraceParent(int(TRACE, 16), int(SPAN, 16), 3)


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"",
        b"jane@example.org",
        b"\xff\x00",
        f"00-{TRACE}-{SPAN}".encode(),
        f"00-{TRACE}-{SPAN}-01-more".encode(),
        f"00-{TRACE}-{SPAN}-01\n".encode(),
        f"00-{TRACE.upper()}-{SPAN}-01".encode(),
        f"ff-{TRACE}-{SPAN}-01".encode(),
        f"00-{'0' * 32}-{SPAN}-01".encode(),
        f"00-{TRACE}-{'0' * 16}-01".encode(),
        f"00-{TRACE}-{SPAN}-0g".encode(),
        f"cc-{TRACE}-{SPAN}-01more".encode(),
    ],
)
def test_a_malformed_header_gives_no_trace_parent(text: bytes | None) -> None:
    """A malformed header gives no trace parent and raises no error."""
    assert trace_parent(written_in(text)) is None


def test_other_headers_do_not_count() -> None:
    """Only the exact header name counts."""
    assert trace_parent(written_in(sampled(1), name="Traceparent")) is None
    assert trace_parent(Record(0, 0, None, b"", ())) is None


def test_the_last_of_several_headers_counts() -> None:
    """The last of several headers counts: each service that passes a record on adds one, as Kafka's own clients do."""
    parent = trace_parent(written_in(sampled(1), sampled(2)))
    assert parent is not None
    assert parent.trace_id == 2


def test_each_is_taken_once_and_no_more_than_asked_for() -> None:
    """Each trace is taken once, in order, up to the limit."""
    records = [None, written_in(), *(written_in(sampled(number // 2)) for number in range(2, 200))]
    assert [one.trace_id for one in trace_parents(records, 32)] == list(range(1, 33))


def test_those_that_their_producer_keeps_come_first() -> None:
    """Traces that their producer samples come first; others fill the rest."""
    records = [
        *(written_in(sampled(number, flags=2 * int(number > 50))) for number in range(1, 99)),
        written_in(b"short"),
        *(written_in(sampled(number, flags=0xFF)) for number in (200, 201)),
    ]
    assert [one.trace_id for one in trace_parents(records, 5)] == [200, 201, 1, 2, 3]


@pytest.mark.parametrize(("links", "found"), [(0, []), (2, [1, 2])])
def test_a_send_says_where_its_records_come_from(links: int, found: list[int]) -> None:
    """A call names the traces of its records, up to `trace_links`, by default none; a retry names the same ones."""
    core = reading(batch_events=3, trace_links=links)
    fetched = chunk([event("a"), event("b"), event("c")])
    for number, record in enumerate(fetched.records):
        fetched.records[number] = record._replace(headers=(("traceparent", sampled(number + 1)),))
    core.feed(m.Fetched([fetched]))
    core.send_all()
    send = core.take(m.Send)
    assert [one.trace_id for one in send.parents] == found
    assert send.attempt == 1

    # A retry names the same traces.
    core.answer(send, 503)
    core.until(lambda: core.has(m.Send))
    again = core.take(m.Send)
    assert (again.attempt, again.parents) == (2, send.parents)
