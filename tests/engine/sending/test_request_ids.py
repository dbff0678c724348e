"""Request ids: each log line about a call has the platform's id for it, which its support asks for."""

from __future__ import annotations

import pytest

from consumer.engine import messages as m
from consumer.engine.sending.verdicts import REQUEST_ID, request_id
from tests.engine.building import Core, answer_body, event, sending

RID = {REQUEST_ID: "5264813979430121"}


def sent(*values: bytes) -> tuple[Core, m.Send]:
    """Return a core with these events in one call in flight, and that call."""
    core = sending(*values)
    return core, core.take(m.Send)


@pytest.mark.parametrize(
    ("status", "body", "name"),
    [
        (200, answer_body([("failed", "odd", None), ("processed", None, None)]), "events_refused"),
        (422, b'{"code": 1, "message": "odd"}', "batch_bisected"),
        (413, b'{"code": 1, "message": "too large"}', "batch_bisected"),
        (429, b"", "throttled"),
        (401, b'{"code": 2, "message": "no"}', "halted"),
        (404, b'{"code": 50, "message": "no such account"}', "halted"),
        (404, b"", "no_verdict"),
        (400, b"<html>", "no_verdict"),
        (503, b"", "no_verdict"),
    ],
)
def test_calls_that_do_not_deliver_all_events_are_reported_with_the_request_id(
    status: int, body: bytes, name: str
) -> None:
    """Refused events and calls, throttling and answers without a verdict are reported with the request id."""
    core, send = sent(event("a"), event("b"))
    core.answer(send, status, body, RID)
    [report] = core.reports(name)
    assert report.fields["request_id"] == RID[REQUEST_ID]
    assert report.fields["account"] == send.account


def test_a_refused_call_of_one_event_is_reported() -> None:
    """A refused call with a single event, as bisecting ends, is reported with that event's reason."""
    core, send = sent(event("a", person="Jane Doe"))
    core.answer(send, 400, b'{"code": 1, "message": "Jane Doe is odd"}', RID)
    [report] = core.reports("events_refused")
    expected = {"refused": 1, "events": 1, "code": "refused", "message": "*** is odd"}
    assert {name: report.fields[name] for name in expected} == expected


def test_an_answer_that_broke_off_still_names_its_call() -> None:
    """When an answer breaks off after its headers, the report still has the request id."""
    core, send = sent(event("a"))
    core.feed(m.Unanswered(send.number, "connection", RID))
    assert core.reports("no_verdict")[0].fields["request_id"] == RID[REQUEST_ID]


def test_a_delivery_is_not_reported() -> None:
    """A call whose events are all delivered is not reported."""
    core, send = sent(event("a"))
    before = len(core.log)
    core.answer(send, 200, answer_body([("processed", None, None)]), RID)
    assert not [one for one in core.log[before:] if isinstance(one, m.Report)]


@pytest.mark.parametrize(
    "text",
    [
        *("", " ", "jane@example.org", "203.0.113.7", "a" * 64, "two words", "Bearer x", "+49 30 55501777"),
        *("1\n2", "ä", "https://example.org/x"),
    ],
)
def test_a_header_that_may_hold_other_values_is_no_request_id(text: str) -> None:
    """A header that may hold a value of the request is not taken as a request id, and so never reaches the log."""
    assert request_id({REQUEST_ID: text}) is None
