"""The sandbox over HTTP without faults: the form of the answers, the counts, the access."""

from __future__ import annotations

from collections.abc import AsyncIterator
from decimal import Decimal
from typing import Any

import pytest

from consumer.demo.accounts import EventKey, SandboxCounts
from consumer.demo.api import Sandbox
from consumer.demo.faults import Faults
from consumer.errors import UsageError
from tests.demo.examples import ACCOUNT, NOW, TOKEN, Client, Clock, digest, event, running


@pytest.fixture
def sandbox() -> Sandbox:
    """A sandbox with two accounts and a clock that stands still."""
    return Sandbox(token=TOKEN, accounts=[ACCOUNT, "7"], clock=Clock())


@pytest.fixture
async def client(sandbox: Sandbox) -> AsyncIterator[Client]:
    """A client of the running sandbox."""
    async with running(sandbox) as connected:
        yield connected


async def test_answer_has_the_shape_of_the_api(client: Client, sandbox: Sandbox) -> None:
    """A 200 has one entry per event in order, the counters, the request id and the rate-limit headers. A plain e-mail
    address in place of a digest fails its event; the message does not repeat it."""
    reply = await client.send(event("a"), event("b", user_data={}), event("c"))
    assert reply.status == 200
    body = reply.json()
    assert (body["num_events_received"], body["num_events_processed"]) == (3, 2)
    assert [entry["status"] for entry in body["events"]] == ["processed", "failed", "processed"]
    assert "client_ip_address" in body["events"][1]["error_message"]
    assert body["events"][0] == {"status": "processed", "error_message": None, "warning_message": None}
    assert reply.headers["x-pinterest-rid"].isdigit()
    limits = [reply.headers[f"x-ratelimit-{name}"] for name in ("limit", "remaining", "reset")]
    assert limits == ["5000", "4999", "60"]
    sandbox.reset()
    reply = await client.send(event("a"), event("b", user_data={"em": ["anna@example.com"]}))
    entry = reply.json()["events"][1]
    assert entry["status"] == "failed"
    assert "anna" not in entry["error_message"]
    counts = sandbox.counts()
    assert (counts.accepted_events, dict(counts.rejected_events)) == (1, {"digest": 1})


async def test_structural_problem_refuses_the_whole_call(client: Client, sandbox: Sandbox) -> None:
    """One unknown key turns the call into a 400 with code 4196, and nothing of it is recorded."""
    reply = await client.send(event("a"), event("b", surprise=1))
    assert reply.status == 400
    assert reply.json()["code"] == 4196
    assert "data[1]" in reply.json()["message"]
    counts = sandbox.counts()
    assert (counts.accepted_events, counts.distinct_event_ids) == (0, 0)
    assert dict(counts.refused_calls) == {"unknown_key": 1}
    assert dict(counts.calls) == {"400": 1}


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"{", "application/json"),
        (b'{"data": []}', "application/json"),
        (b'{"data": [NaN]}', "application/json"),
        (b'{"data": [{}]}', "text/plain"),
    ],
)
async def test_bodies_that_are_no_request(client: Client, body: bytes, content_type: str) -> None:
    """A body that is not JSON, is not declared as JSON, or has no events is a 400."""
    reply = await client.send(body=body, content_type=content_type)
    assert (reply.status, reply.json()["code"]) == (400, 4196)


@pytest.mark.parametrize(
    ("token", "account", "status", "code"),
    [
        (None, ACCOUNT, 401, 2),
        ("pina_wrong", ACCOUNT, 401, 2),
        ("", ACCOUNT, 401, 2),
        (TOKEN, "8", 404, 50),
        (TOKEN, "1" * 19, 400, 4196),
        (TOKEN, "12x", 400, 4196),
        (TOKEN, "7", 200, None),
    ],
)
async def test_access_by_token_and_account(
    client: Client, sandbox: Sandbox, token: str | None, account: str, status: int, code: int | None
) -> None:
    """401 for a wrong token, 404 for an unknown account; nothing recorded."""
    reply = await client.send(event(), token=token, account=account)
    assert (reply.status, reply.json().get("code")) == (status, code)
    assert sandbox.counts().accepted_events == (1 if status == 200 else 0)
    assert token is None or token == "" or token.encode() not in reply.body


async def test_tokens_and_accounts_may_change(client: Client, sandbox: Sandbox) -> None:
    """After a rotation the old token is refused and the new one accepted. Without a list of accounts every well-formed
    id is an account."""
    sandbox.token = "pina_new"
    assert (await client.send(event())).status == 401
    assert (await client.send(event(), token="pina_new")).status == 200
    async with running(Sandbox(token=TOKEN, clock=Clock())) as client:
        assert (await client.send(event(), account="123")).status == 200


async def test_resending_changes_no_sum(client: Client, sandbox: Sandbox) -> None:
    """An event that is sent again counts as a double of its source; distinct ids and their sum stay exact."""
    first = event("a", custom_data={"currency": "USD", "value": "0.1"})
    other = event("b", custom_data={"currency": "USD", "value": "0.20"}, action_source="offline")
    await client.send(first, other)
    await client.send(first, other, event("c", action_source="app_ios"))
    await client.send(event("c", action_source="app_ios"))
    counts = sandbox.counts()
    assert counts.accepted_events == 6
    assert counts.distinct_event_ids == 3
    assert counts.value_sum == Decimal("10.80")
    assert counts.accepted_value_sum == Decimal("21.60")
    assert dict(counts.doubles) == {"web": 1, "app": 1, "offline": 1}
    assert sandbox.memory.deliveries[EventKey(ACCOUNT, "checkout", "a")] == 2


async def test_key_is_account_name_and_id(client: Client, sandbox: Sandbox) -> None:
    """The same id under another name or in another account is another event."""
    await client.send(event("a"), event("a", event_name="add_to_cart"))
    await client.send(event("a"), account="7")
    counts = sandbox.counts()
    assert (counts.distinct_event_ids, counts.doubles["web"]) == (3, 0)
    assert dict(counts.accepted_by_account) == {ACCOUNT: 2, "7": 1}


async def test_value_sum_is_exact_at_any_size(client: Client, sandbox: Sandbox) -> None:
    """Sums are decimals that are never rounded, and text in JSON."""
    huge = "9" * 40 + ".01"
    await client.send(
        event("a", custom_data={"value": huge, "currency": "USD"}),
        event("b", custom_data={"value": "0.0000000001", "currency": "USD"}),
    )
    assert sandbox.counts().as_json()["value_sum"] == "9" * 40 + ".0100000001"


async def test_test_mode_counts_nothing_and_processes_twenty(client: Client, sandbox: Sandbox) -> None:
    """In test mode events are checked, at most 20 are processed, and only the call is counted."""
    reply = await client.send(*[event(f"e{i}") for i in range(25)], query="?test=true")
    body = reply.json()
    assert (body["num_events_received"], body["num_events_processed"]) == (25, 20)
    assert [entry["status"] for entry in body["events"]] == ["processed"] * 20 + ["failed"] * 5
    assert (await client.send(event("x", user_data={}), query="?test=true")).json()[
        "num_events_processed"
    ] == 0
    counts = sandbox.counts()
    assert (counts.accepted_events, dict(counts.rejected_events)) == (0, {})
    assert (counts.test_calls, dict(counts.calls)) == (2, {"200": 2})


async def test_the_edges_of_a_call(client: Client, sandbox: Sandbox) -> None:
    """``test=false`` is a real call, and any other text is a 400. A call of 1000 events is accepted; one of 1001 is
    refused."""
    assert (await client.send(event(), query="?test=false")).status == 200
    assert sandbox.counts().accepted_events == 1
    assert (await client.send(event(), query="?test=yes")).status == 400
    assert (await client.send(*[event(f"e{i}") for i in range(1000)])).status == 200
    assert (await client.send(*[event(f"e{i}") for i in range(1001)])).status == 400


async def test_age_rule_can_be_turned_off() -> None:
    """With `check_age` off, an order of 1997 is accepted."""
    old = event(event_time=852_076_800)
    for check_age, accepted in [(True, 0), (False, 1)]:
        sandbox = Sandbox(token=TOKEN, clock=Clock(), check_age=check_age)
        async with running(sandbox) as client:
            await client.send(old)
        assert sandbox.counts().accepted_events == accepted


async def test_what_is_processed_all_the_same(client: Client) -> None:
    """A value without a currency is processed with a warning. IP address and user agent together identify a person, and
    non-ASCII text arrives unchanged."""
    reply = await client.send(event(custom_data={"value": "1.00"}))
    entry = reply.json()["events"][0]
    assert entry["status"] == "processed"
    assert "currency" in entry["warning_message"]
    user_data = {
        "client_ip_address": "2001:db8::1",
        "client_user_agent": "Möbel/1",
        "ct": [digest("münchen")],
    }
    reply = await client.send(event("ü-1", user_data=user_data))
    assert reply.json()["num_events_processed"] == 1


async def test_the_latest_ids_are_enough_to_count_doubles() -> None:
    """Memory is bounded; distinct counts are exact unless an event comes again after its key was forgotten."""
    sandbox = Sandbox(token=TOKEN, clock=Clock(), max_ids=3)
    async with running(sandbox) as client:
        for name in ("a", "b", "a", "c", "b"):
            await client.send(event(name))
        counts = sandbox.counts()
        assert (counts.distinct_event_ids, counts.forgotten_event_ids) == (3, 0)
        assert (counts.value_sum, counts.doubles["web"]) == (Decimal("31.50"), 2)
        await client.send(event("d"), event("d"), event("c"))
        counts = sandbox.counts()
        assert (counts.distinct_event_ids, counts.forgotten_event_ids) == (4, 1)
        assert (counts.value_sum, counts.doubles["web"]) == (Decimal("42.00"), 4)
        assert [key.event_id for key in sandbox.memory.deliveries] == ["b", "c", "d"]
        await client.send(event("a"))
    counts = sandbox.counts()
    assert (counts.accepted_events, counts.distinct_event_ids, counts.forgotten_event_ids) == (9, 5, 2)
    assert len(sandbox.memory.deliveries) == 3


async def test_quota_is_kept_per_account_and_minute() -> None:
    """Above the quota calls get 429 with code 8 until the minute is over; other accounts have their own quota."""
    clock = Clock()
    sandbox = Sandbox(token=TOKEN, clock=clock, faults=Faults(calls_per_minute=2))
    async with running(sandbox) as client:
        assert [(await client.send(event(str(i)))).status for i in range(3)] == [200, 200, 429]
        clock.now += 30.5
        reply = await client.send(event("4"))
        assert (reply.status, reply.json()["code"]) == (429, 8)
        assert reply.headers["x-ratelimit-remaining"] == "0"
        assert reply.headers["x-ratelimit-reset"] == "30"
        assert (await client.send(event("5"), account="2")).status == 200
        clock.now += 29.5
        assert (await client.send(event("6"))).status == 200
    assert sandbox.counts().accepted_events == 4


async def test_counts_over_http(client: Client, sandbox: Sandbox) -> None:
    """``GET /sandbox/counts`` is the same as `counts`, amounts as text; ``/sandbox/events`` lists the keys. After a
    reset all counts are zero and the quota is unused."""
    await client.send(event("a"), event("a"))
    counts = (await client.control("GET", "counts")).json()
    assert counts == sandbox.counts().as_json()
    assert (counts["accepted_events"], counts["distinct_event_ids"]) == (2, 1)
    assert counts["value_sum"] == "10.50"
    listed = (await client.control("GET", "events")).json()
    assert listed == [{"account": ACCOUNT, "event_name": "checkout", "event_id": "a", "accepted": 2}]
    await client.send(event("a"))
    assert (await client.control("POST", "reset")).json()["accepted_events"] == 0
    reply = await client.send(event("a"))
    assert reply.headers["x-ratelimit-remaining"] == "4999"
    assert sandbox.counts().accepted_events == 1


async def test_a_new_sandbox_has_counted_nothing() -> None:
    """It says its base URL, and its counts are zero, by source too."""
    sandbox = Sandbox(token=TOKEN, clock=Clock())
    assert (await sandbox.start()).endswith("/v5")
    await sandbox.stop()
    assert sandbox.counts() == SandboxCounts()
    assert sandbox.counts().as_json() == {
        "accepted_events": 0,
        "distinct_event_ids": 0,
        "forgotten_event_ids": 0,
        "value_sum": "0",
        "accepted_value_sum": "0",
        "doubles": {"web": 0, "app": 0, "offline": 0},
        "rejected_events": {},
        "refused_calls": {},
        "calls": {},
        "test_calls": 0,
        "accepted_by_account": {},
    }


async def test_taken_port_is_a_readable_error() -> None:
    """A port in use is a `UsageError`; a stop without a start does nothing."""
    async with running(Sandbox(token=TOKEN)) as client:
        port = int(client.base.split(":")[2].split("/")[0])
        second = Sandbox(token=TOKEN)
        with pytest.raises(UsageError, match=str(port)):
            await second.start(port=port)
        await second.stop()


async def test_events_age_by_the_sandbox_clock() -> None:
    """With the clock a week ahead, an accepted event is too old, and a new one is accepted."""
    clock = Clock()
    sandbox = Sandbox(token=TOKEN, clock=clock)
    then: dict[str, Any] = event("b", event_time=int(NOW) + 7 * 86_400)
    async with running(sandbox) as client:
        first = (await client.send(event("a"), then)).json()
        clock.now += 7 * 86_400
        second = (await client.send(event("a"), then)).json()
    assert [entry["status"] for entry in first["events"]] == ["processed", "failed"]
    assert [entry["status"] for entry in second["events"]] == ["failed", "processed"]
    assert dict(sandbox.counts().rejected_events) == {"future": 1, "expired": 1}
