"""What Pinterest knows of an ad account: read from the sandbox as from the platform, and from answers of any shape."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from aiohttp import web

from consumer.adapters.account_reads import AccountReads, NotKnown
from consumer.adapters.conversions_api import Token
from consumer.demo.api import Sandbox
from consumer.demo.faults import Chance, Faults
from consumer.engine.figures.quality import ComponentCoverage, QualityScore
from tests.adapters.test_conversions_api import SECRET, client, respond, serving
from tests.demo.examples import ACCOUNT, TOKEN, Clock, event, running

DESCRIBED: dict[str, Any] = {
    "lookback_period": "1d",
    "source_platform": "WEB",
    "ingestion_source": "CONVERSIONS_API",
    "overall_status": "FAIR",
    "quality_components": {
        "external_event_id": {"checkout": {"coverage": 100, "overlap": 37.5, "issues": []}},
        "hashed_email": {
            "checkout": {"coverage": 61.2, "issues": [{"id": "1", "name": "Low", "reason": "Few."}]}
        },
    },
}


@asynccontextmanager
async def reading(url: str, token: str = TOKEN, timeout: float = 5.0) -> AsyncIterator[AccountReads]:
    """Yield what asks the API at `url`."""
    async with client(url, Token(token), timeout=timeout) as api:
        yield AccountReads(api)


@asynccontextmanager
async def answering(body: object, status: int = 200) -> AsyncIterator[AccountReads]:
    """Yield what asks a server that gives this answer to everything: JSON, or bytes as they are."""
    content = body if isinstance(body, bytes) else orjson.dumps(body)
    answer = respond(body=content, status=status, content_type="application/json")
    async with serving(answer) as (url, _), reading(url, SECRET) as reads:
        yield reads


async def test_the_sandbox_answers_as_the_platform_is_described() -> None:
    """Scores of what it accepted by platform, with coverage, issues and overlap; its tag; the registered names."""
    sandbox = Sandbox(token=TOKEN, own_events=["quiz_done"], clock=Clock(), tag_fired=1_700_000_000.0)
    async with running(sandbox) as connected:
        await connected.send(event("a"), event("b"), event("c", action_source="offline"))
        async with reading(connected.base) as reads:
            assert await reads.tags(ACCOUNT) == [("shop tag", 1_700_000_000.0)]
            assert await reads.own_events(ACCOUNT) == {"quiz_done"}
            assert await reads.scores("7") == ()
            web_score, offline = await reads.scores(ACCOUNT)
    assert (web_score.platform, web_score.source, offline.platform) == ("WEB", "CONVERSIONS_API", "OFFLINE")
    assert web_score.score in ("GOOD", "FAIR", "NEEDS_IMPROVEMENT")
    assert len(web_score.components) == 11
    name = event("a")["event_name"]
    assert web_score.components["external_event_id", name] == ComponentCoverage(100.0, 0.0, ())
    none = web_score.components["hashed_maid", name]
    assert none == ComponentCoverage(0.0, None, (f"hashed_maid is missing from many {name} events.",))


async def test_the_sandbox_refuses_what_the_platform_refuses() -> None:
    """Another token or account, a question without its period, one that there is not. None counts as a call."""
    sandbox = Sandbox(token=TOKEN, accounts=[ACCOUNT], clock=Clock())
    async with running(sandbox) as connected:
        for token, account, question, status in (
            (TOKEN, ACCOUNT, "conversion_eqs?lookback_period=14d", 200),
            (TOKEN, ACCOUNT, "conversion_eqs", 400),
            (TOKEN, ACCOUNT, "conversion_eqs?lookback_period=7d", 400),
            (TOKEN, ACCOUNT, "conversion_tags/1/health", 404),
            (TOKEN, "8", "conversion_tags", 404),
            ("pina_wrong", ACCOUNT, "conversion_tags", 401),
        ):
            async with client(connected.base, Token(token)) as api:
                answer = await api.get(account, question)
                assert getattr(answer, "status", None) == status, question
        sandbox.set_faults(Faults(unavailable=Chance(1.0)))
        async with client(connected.base, Token(TOKEN)) as api:
            assert getattr(await api.get(ACCOUNT, "conversion_tags"), "status", None) == 503
    assert not sandbox.counts().calls


async def test_a_score_as_it_is_described() -> None:
    """Each field is where it belongs, and the question is a GET with the token and the day's period."""
    answer = respond(body=orjson.dumps([DESCRIBED]), content_type="application/json")
    async with serving(answer) as (url, seen), reading(url, SECRET) as reads:
        [score] = await reads.scores(ACCOUNT)
    components = {
        ("external_event_id", "checkout"): ComponentCoverage(100.0, 37.5, ()),
        ("hashed_email", "checkout"): ComponentCoverage(61.2, None, ("Few.",)),
    }
    assert score == QualityScore("WEB", "CONVERSIONS_API", "FAIR", components)
    [(method, path, headers, body)] = seen.requests
    asked = f"/v5/ad_accounts/{ACCOUNT}/conversion_eqs?lookback_period=1d"
    assert (method, path, body) == ("GET", asked, b"")
    assert headers["authorization"] == f"Bearer {SECRET}"


@pytest.mark.parametrize(
    ("changed", "read"),
    [
        ({"overall_status": "SPLENDID"}, ("WEB", "CONVERSIONS_API", None)),
        ({"overall_status": ["GOOD"]}, ("WEB", "CONVERSIONS_API", None)),
        ({"source_platform": None}, ("not known", "CONVERSIONS_API", "FAIR")),
        ({"quality_components": []}, ("WEB", "CONVERSIONS_API", "FAIR")),
    ],
)
async def test_what_can_be_read_of_a_score_is_kept(
    changed: dict[str, Any], read: tuple[str | None, ...]
) -> None:
    """A part that is not as described is not known; the others are."""
    async with answering([DESCRIBED | changed]) as reads:
        [score] = await reads.scores(ACCOUNT)
    assert (score.platform, score.source, score.score) == read
    assert bool(score.components) == (changed.get("quality_components") != [])


@pytest.mark.parametrize(
    "details",
    [None, [], "61", {}, *({"coverage": one} for one in (None, True, "61", 100.5, -1))],
)
async def test_a_coverage_that_is_none_is_omitted(details: object) -> None:
    """A percentage is a number from 0 to 100."""
    changed = {"quality_components": {"hashed_email": {"checkout": details, "signup": {"coverage": 5}}}}
    async with answering([DESCRIBED | changed]) as reads:
        [score] = await reads.scores(ACCOUNT)
    assert score.components == {("hashed_email", "signup"): ComponentCoverage(5.0, None, ())}


async def test_texts_are_masked_and_bounded() -> None:
    """What an answer says is shown: without the token, an address or a line's end, and not at any length."""
    said = [f"Bearer {SECRET}\n", "of anna@example.com", "x" * 3_000, None, 7]
    issues = [{"reason": one} for one in said] + [{"name": "named"}, "none"]
    changed = {
        "source_platform": "W" * 500,
        "quality_components": {
            f"c{one}": {"checkout": {"coverage": 1, "issues": issues}} for one in range(99)
        },
    }
    async with answering([DESCRIBED | changed, *[DESCRIBED] * 99]) as reads:
        scores = await reads.scores(ACCOUNT)
    shown = repr(scores)
    assert SECRET not in shown
    assert "anna" not in shown
    assert (len(scores), len(scores[0].components)) == (50, 50)
    assert len(scores[0].platform) == 100
    assert max(map(len, scores[0].components["c0", "checkout"].issues)) <= 100
    assert "named" in scores[0].components["c0", "checkout"].issues


@pytest.mark.parametrize(
    "body",
    [
        {}, {"items": []}, None, "scores", 7, [7], [{}], [None, "x"], [{"source_platform": "WEB"}],
        b"", b"<html></html>", b"[" * 100_000, b"[" + b" " * (2 << 20) + b"]",
    ],
    ids=lambda body: repr(body)[:20],
)  # fmt: skip
async def test_scores_that_are_not_as_described_are_not_known(body: object) -> None:
    """No shape of an answer is a fault: it says nothing."""
    async with answering(body) as reads:
        with pytest.raises(NotKnown, match="not as Pinterest describes it"):
            await reads.scores(ACCOUNT)


@pytest.mark.parametrize("body", [[], {}, {"items": None}, {"items": {}}, None, b"{"], ids=repr)
async def test_lists_that_are_not_as_described_are_not_known(body: object) -> None:
    """The same of tags and registered names."""
    async with answering(body) as reads:
        for question in (reads.tags, reads.own_events):
            with pytest.raises(NotKnown, match="not as Pinterest describes it"):
                await question(ACCOUNT)


async def test_items_of_any_shape() -> None:
    """A tag may lack its name or its time; what is no object is omitted."""
    items = [{"name": "A", "last_fired_time_ms": 1.7e12}, {"last_fired_time_ms": "x"}, {"name": "B"}, 7, None]
    async with answering({"items": items}) as reads:
        assert await reads.tags(ACCOUNT) == [("A", 1.7e9), ("not known", None), ("B", None)]
        assert {"A", "B"} <= await reads.own_events(ACCOUNT)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "PINTEREST_READ_TOKEN"),
        (403, "ads:read"),
        (404, "PINTEREST_API_URL"),
        (429, "429"),
        (503, "503"),
    ],
)
async def test_a_refusal_says_what_to_do_and_no_secret(status: int, said: str) -> None:
    """By its status; never the body, which may repeat the token."""
    async with answering({"code": 2, "message": f"no {SECRET}"}, status) as reads:
        with pytest.raises(NotKnown, match=said) as raised:
            await reads.scores(ACCOUNT)
    assert SECRET not in str(raised.value)


async def test_an_api_that_does_not_answer_is_not_waited_for() -> None:
    """The question has a time limit, and a connection that is refused is no error either."""
    hanging = asyncio.Event()

    async def hang(_: web.Request) -> web.StreamResponse:
        await hanging.wait()
        return web.Response()

    async with serving(hang) as (url, _), reading(url, timeout=0.1) as reads:
        with pytest.raises(NotKnown, match=r"no answer \(timeout\)"):
            await reads.scores(ACCOUNT)
        hanging.set()
    async with reading("http://127.0.0.1:9/v5") as reads:
        with pytest.raises(NotKnown, match=r"no answer \(connect\)"):
            await reads.tags(ACCOUNT)
