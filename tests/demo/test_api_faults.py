"""The sandbox over HTTP with faults: each fault as declared, and the same faults from the same seed."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, get_args

import aiohttp
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from consumer.demo.api import Sandbox
from consumer.demo.faults import DEMO_FAULTS, FAULTS, Chance, Faults, Speech, Wait, draw_plan
from consumer.engine.sending.verdicts import NoVerdict, read_answer
from tests.demo.examples import NOW, TOKEN, Client, Clock, event, running

ONCE = Chance(first=1)


def faulty(**faults: Any) -> Sandbox:
    """A sandbox with these faults."""
    return Sandbox(token=TOKEN, clock=Clock(), faults=Faults(**faults))


@pytest.mark.parametrize(
    ("kind", "status", "code"),
    [
        ("throttled", 429, 8),
        ("unavailable", 503, 4197),
        ("server_error", 500, 12),
        ("unauthorised", 401, 2),
    ],
)
async def test_refusals_record_nothing(kind: str, status: int, code: int) -> None:
    """The first calls get the fault and nothing is recorded; later calls are accepted."""
    faults: dict[str, Any] = {kind: Chance(first=2)}
    sandbox = faulty(**faults)
    async with running(sandbox) as client:
        replies = [await client.send(event("a")) for _ in range(3)]
    assert [reply.status for reply in replies] == [status, status, 200]
    assert replies[0].json()["code"] == code
    counts = sandbox.counts()
    assert counts.accepted_events == 1
    assert dict(counts.calls) == {str(status): 2, "200": 1}


@pytest.mark.parametrize("wait", get_args(Wait))
async def test_forms_of_the_waiting_time(wait: Wait) -> None:
    """A 429 names the time in the chosen form only, rounded up to whole seconds."""
    async with running(faulty(throttled=ONCE, wait=wait, wait_seconds=6.5)) as client:
        headers = (await client.send(event())).headers
    assert headers.get("retry-after") == ("7" if wait == "seconds" else None)
    if wait == "reset":
        assert (headers["x-ratelimit-remaining"], headers["x-ratelimit-reset"]) == ("0", "7")


@pytest.mark.parametrize(("kind", "recorded"), [("dropped_before", 0), ("dropped_after", 1)])
async def test_a_dropped_call(kind: str, recorded: int) -> None:
    """The connection is cut without an answer, before or after the call is recorded; sending again changes no sum."""
    faults: dict[str, Any] = {kind: ONCE}
    sandbox = faulty(**faults)
    async with running(sandbox) as client:
        with pytest.raises(aiohttp.ClientError):
            await client.send(event("a"))
        assert sandbox.counts().accepted_events == recorded
        assert (await client.send(event("a"))).status == 200
    counts = sandbox.counts()
    assert (counts.accepted_events, counts.doubles["web"]) == (1 + recorded, recorded)
    assert (counts.distinct_event_ids, str(counts.value_sum)) == (1, "10.50")
    assert dict(counts.calls) == {"dropped": 1, "200": 1}


async def test_slow_answer_is_processed_at_once() -> None:
    """A slow call is recorded at once; a caller that gives up does not undo it."""
    sandbox = faulty(slow=ONCE, slow_seconds=30)
    async with running(sandbox) as client:
        task = asyncio.create_task(client.send(event("a")))
        for _ in range(2000):
            if sandbox.counts().accepted_events:
                break
            await asyncio.sleep(0.005)
        assert sandbox.counts().accepted_events == 1
        assert not task.done()
        task.cancel()
        assert (await client.send(event("b"))).status == 200
    assert sandbox.counts().distinct_event_ids == 2


async def test_an_account_is_forbidden() -> None:
    """403 can be set for single accounts; the others work."""
    async with running(faulty(forbidden_accounts={"2"})) as client:
        replies = [await client.send(event(), account=account) for account in ("1", "2")]
    assert [reply.status for reply in replies] == [200, 403]


async def test_marked_event() -> None:
    """A marked event fails, and the others of its call are recorded."""
    sandbox = faulty(marker="poison")
    async with running(sandbox) as client:
        reply = await client.send(event("a"), event("b-poison"), event("c"))
    assert [entry["status"] for entry in reply.json()["events"]] == ["processed", "failed", "processed"]
    assert sandbox.counts().accepted_events == 2
    assert dict(sandbox.counts().rejected_events) == {"marked": 1}


async def test_too_large() -> None:
    """A body above the limit gets a 413 that is not JSON."""
    sandbox = faulty(max_body_bytes=600)
    async with running(sandbox) as client:
        reply = await client.send(*[event(str(i)) for i in range(10)])
        assert (reply.status, reply.headers["content-type"].partition(";")[0]) == (413, "text/html")
        assert (await client.send(event())).status == 200
    assert sandbox.counts().accepted_events == 1


@pytest.mark.parametrize("says", get_args(Speech))
async def test_a_middleman_answers_in_the_platform_s_place(says: Speech) -> None:
    """The answer is never in the platform's form, and nothing is recorded."""
    sandbox = faulty(middleman=ONCE, middleman_status=413, middleman_says=says)
    async with running(sandbox) as client:
        reply = await client.send(event("a"))
        assert (reply.status, reply.headers["server"]) == (413, "middleman/1.0")
        verdict = read_answer(reply.status, {}, reply.body, 1, NOW)
        assert verdict == NoVerdict("http_413", too_large=True)
        assert (await client.send(event("a"))).status == 200
    assert sandbox.counts().accepted_events == 1


async def test_echoes_like_the_platform() -> None:
    """On request a 401 repeats the token and a message repeats the value: what a client must not log."""
    async with running(faulty(echo=True)) as client:
        assert b"pina_wrong" in (await client.send(event(), token="pina_wrong")).body
        reply = await client.send(event(user_data={"em": ["anna@example.com"]}))
    assert "anna@example.com" in reply.json()["events"][0]["error_message"]


async def test_faults_over_http() -> None:
    """``POST /sandbox/faults`` sets them, a number alone is a share; an invalid value is a 400 and sets nothing."""
    sandbox = Sandbox(token=TOKEN, clock=Clock())
    async with running(sandbox) as client:
        reply = await client.control("POST", "faults", b'{"throttled": 1, "dropped_after": {"first": 2}}')
        assert reply.status == 200
        assert sandbox.faults == Faults(throttled=Chance(share=1.0), dropped_after=Chance(first=2))
        assert (await client.control("GET", "faults")).json() == FAULTS.dump_python(
            sandbox.faults, mode="json"
        )
        for wrong in (b'{"throtled": 1}', b'{"throttled": 1.5}', b'{"throttled": true}', b"{", b"[]"):
            assert (await client.control("POST", "faults", wrong)).status == 400
        assert sandbox.faults.throttled == Chance(share=1.0)
        assert (await client.control("POST", "faults", b"{}")).status == 200
        assert (await client.send(event())).status == 200


async def test_setting_faults_restarts_their_count() -> None:
    """The first calls are counted from when the faults were set, not from the start of the sandbox."""
    sandbox = Sandbox(token=TOKEN, clock=Clock())
    async with running(sandbox) as client:
        await client.send(event())
        sandbox.set_faults(Faults(unavailable=ONCE))
        assert [(await client.send(event())).status for _ in range(2)] == [503, 200]


async def statuses(client: Client, *numbers: int) -> list[int]:
    """Return the statuses of calls in a row, each with the event of this number; 0 for a dropped one."""
    ends = []
    for number in numbers:
        try:
            ends.append((await client.send(event(str(number)))).status)
        except aiohttp.ClientError:
            ends.append(0)
    return ends


async def test_same_seed_same_faults() -> None:
    """The faults are drawn from seed and call number alone."""
    faults = Faults(
        throttled=Chance(share=0.2), unavailable=Chance(share=0.2), dropped_before=Chance(share=0.1)
    )
    runs = []
    for seed in (1, 1, 2):
        sandbox = Sandbox(token=TOKEN, clock=Clock(), faults=faults, seed=seed)
        async with running(sandbox) as client:
            runs.append(await statuses(client, *range(60)))
    assert runs[0] == runs[1]
    assert runs[0] != runs[2]
    assert {0, 200, 429, 503} <= set(runs[0])


async def test_demo_faults_can_be_survived() -> None:
    """Under the demo's faults, retrying delivers every event: none is refused."""
    quick = replace(DEMO_FAULTS, slow_seconds=0.001)
    sandbox = Sandbox(token=TOKEN, clock=Clock(), faults=quick, seed=4)
    async with running(sandbox) as client:
        ends = await statuses(client, *range(300))
        for number, end in enumerate(ends):
            while end != 200:
                [end] = await statuses(client, number)
    counts = sandbox.counts()
    assert (counts.distinct_event_ids, dict(counts.rejected_events), dict(counts.refused_calls)) == (
        300,
        {},
        {},
    )
    assert {0, 200, 403, 429, 500, 503} == set(ends)
    assert counts.accepted_events == 300 + counts.doubles["web"]


@given(
    share=st.floats(0, 1),
    first=st.integers(0, 10**6),
    wait=st.sampled_from(get_args(Wait)),
    accounts=st.frozensets(st.text("0123456789", min_size=1)),
    marker=st.none() | st.text(min_size=1),
)
@settings(max_examples=30)
def test_faults_survive_json(
    share: float, first: int, wait: Wait, accounts: frozenset[str], marker: str | None
) -> None:
    """``POST /sandbox/faults`` accepts what ``GET /sandbox/faults`` shows, unchanged."""
    slow = Chance(share=share, first=first)
    faults = Faults(slow=slow, wait=wait, forbidden_accounts=accounts, marker=marker)
    assert FAULTS.validate_json(FAULTS.dump_json(faults)) == faults


def test_one_kind_does_not_move_the_others() -> None:
    """Turning one fault off does not change which calls another one affects."""
    throttled = Chance(share=0.3)
    alone = Faults(throttled=throttled)
    both = Faults(throttled=throttled, unauthorised=Chance(share=0.5))
    for call in range(200):
        plans = [draw_plan(faults, seed=4, call=call) for faults in (alone, both)]
        assert plans[0].throttled == plans[1].throttled
