"""Questions to the Conversions API, through its test mode: events are validated, not recorded (docs/platform.md).

Each ad account gets events of no real person, which check account, token and format. Each event has its row.
"""

from __future__ import annotations

import contextlib
import copy
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from typing import Any

import orjson

from consumer.adapters.conversions_api import ConversionsApi, Token, Tokens
from consumer.adapters.network import place_of
from consumer.app import building
from consumer.commands.check.rows import TIMEOUT, CheckContext, Row, Skip, failed, ok, warning
from consumer.conversion.sections import Sections
from consumer.conversion.targets import CONTENTS, NEW_TARGETS
from consumer.engine.messages import Answered, Send, Unanswered
from consumer.engine.sending import verdicts
from consumer.engine.sending.masking import mask, who_answered
from consumer.errors import PinstreamError, bug
from consumer.settings import Settings

# SHA-256 of an address under example.com.
_DIGEST = "973dfe463ec85785f5f95af5ba3906eedb2d931c24e69824a89ea65dba4e813b"
_UNREACHED: Mapping[str, str] = {
    "dns": "its name cannot be resolved: correct PINTEREST_API_URL, or check the DNS",
    "connect": "nothing answers there: correct PINTEREST_API_URL, or allow the connection in the network",
    "tls": "the TLS handshake failed: check PINTEREST_API_URL, and the certificates that this machine trusts",
    "timeout": "it did not answer in time: try again, or raise PINSTREAM_REQUEST_TIMEOUT",
}
_REFUSED: Mapping[int, str] = {
    401: "the access token is refused: set a valid one in PINTEREST_ACCESS_TOKEN or its file",
    403: "this token may not use this ad account: grant it access at Pinterest, or correct the account",
    404: "this ad account, or this API, does not exist: correct PINTEREST_AD_ACCOUNT_ID or PINTEREST_API_URL",
}


async def way(found: CheckContext) -> Sequence[Row]:
    """Does the proxy let us out to the API, and is the API's certificate trusted? No event and no token is sent."""
    settings, url = found.settings, found.settings.pinterest.api_url
    proxy = building.network(settings).proxy(url)
    # Proxy and authorities can be wrong only if the settings name them.
    if proxy is None and not settings.pinstream.ca_file:
        return []
    # Called without a token: a wrong address must not get it.
    async with _api(settings, Token(), TIMEOUT) as api:
        wrong = await api.reach()
    if wrong is not None:
        raise PinstreamError(wrong)
    return [ok(f"{place_of(url)} is reached" + (f" through the proxy {proxy}" if proxy else ""))]


async def test_view(found: CheckContext) -> Sequence[Row]:
    """Where can the test events be seen?"""
    text = (
        "to see the test events in Events Manager, open its test view before you run this: it has no history and shows "
        "only events that arrive while it is open"
    )
    return [ok(text)] if found.sends else []


async def test_events(found: CheckContext) -> Sequence[Row]:
    """Does the API accept events? A row for each event of each ad account, or one where a call got no verdict."""
    if not found.sends:
        return []
    settings, answers = found.settings, list[Row]()
    try:
        token = building.open_token(settings)
    except PinstreamError:
        # The question about the token has reported what is wrong.
        raise Skip("needs the access token") from None
    async with _api(settings, token, settings.pinstream.request_timeout) as api:
        for number, account in enumerate(settings.pinterest.ad_account_ids):
            # Events of now: the API refuses old ones.
            for events in _calls(int(time.time()), found.sections):
                answer = await api.send(Send(number, account, [orjson.dumps({"data": events})], len(events)))
                answers += [Row(verdict, f"{account}: {text}") for verdict, text in _read(answer, events)]
    return answers


@contextlib.asynccontextmanager
async def _api(settings: Settings, token: Tokens, timeout: float) -> AsyncIterator[ConversionsApi]:
    """Open the API in its test mode: events are not recorded."""
    api = ConversionsApi(
        settings.pinterest.api_url,
        token,
        account=settings.pinterest.ad_account_ids[0],
        timeout=timeout,
        # One call after the other, so that the rows have the order of the calls.
        concurrency=1,
        test_mode=True,
        agent="pinstream check",
        network=building.network(settings),
    )
    try:
        yield api
    finally:
        await api.close()


def _calls(now: int, mapped: Sections | None) -> Iterator[list[dict[str, Any]]]:
    """Yield the events of each call to one account."""

    def event(name: str, **members: Any) -> dict[str, Any]:
        # An id of its own for each: of two events with one id, the API keeps the first.
        known = {"action_source": "web", "event_time": now, "user_data": {"em": [_DIGEST]}}
        return {"event_name": name, "event_id": f"pinstream-check-{uuid.uuid4()}", **known, **members}

    full: dict[str, Any] = {
        "event_source_url": "https://shop.example.com/thanks",
        "opt_out": False,
        "user_data": {
            "em": [_DIGEST],
            "external_id": [_DIGEST],
            "client_ip_address": "192.0.2.1",
            "client_user_agent": "pinstream check",
        },
        "custom_data": {
            "currency": "USD",
            "value": "1.00",
            "num_items": 1,
            "order_id": "pinstream-check",
            "content_ids": ["pinstream-check"],
            "contents": [{"id": "pinstream-check", "item_price": "1.00", "quantity": 1}],
        },
    }
    # A plain event shows whether the account works, a full one whether the format does.
    yield [event("page_visit"), event("checkout", **full)]
    # Fields that Pinterest has accepted only recently go in a call of their own: one unknown field makes the whole call
    # a 400.
    sections = () if mapped is None else mapped.all
    asked = {name for section in sections for name in NEW_TARGETS.keys() & section.mapping.sources.keys()}
    if asked:
        # A deep copy: the event of the first call has the same inner values.
        newer = event("checkout", **copy.deepcopy(full))
        if "user_data.customer_type" in asked:
            newer["user_data"]["customer_type"] = "new"
        if f"{CONTENTS}.item_brand_id" in asked:
            newer["custom_data"]["contents"][0]["item_brand_id"] = "pinstream-check"
        yield [newer]


def _read(answer: Answered | Unanswered, events: list[dict[str, Any]]) -> Iterator[Row]:
    """Yield a verdict for each event that the answer names, or one for the whole call."""
    if isinstance(answer, Unanswered):
        why = answer.said or _UNREACHED.get(answer.reason, "the connection broke off: try again")
        yield failed(f"no answer ({answer.reason}): {why}")
        return
    # Pinterest's support asks for the request id.
    request = verdicts.request_id(answer.headers)
    source = f"HTTP {answer.status}" + (f", request id {request}" if request else "")
    match verdicts.read_answer(answer.status, answer.headers, answer.body, len(events), time.time()):
        case verdicts.PerEvent(outcomes):
            for event, outcome in zip(events, outcomes, strict=True):
                yield _outcome(event, outcome, source)
        # The other events of such a call have no verdict.
        case verdicts.SomeRefused(errors):
            for index, message in errors.items():
                yield _outcome(events[index], verdicts.EventOutcome(False, message, None), source)
        case verdicts.Refused(status, code):
            by_code = f", code {code}" if code is not None else ""
            yield failed(f"{_REFUSED[status]} ({source}{by_code})")
        case verdicts.BatchRefused(message):
            # Masked, because the API may repeat a value of the event.
            said = mask(message, orjson.dumps(events[-1])) or "no reason given"
            yield failed(str(bug(f"the API refused the test events: {said} ({source})")))
        case verdicts.Throttled(wait):
            when = f"in {wait:.0f} s" if wait is not None else "later"
            yield warning(f"the API accepts no more calls for now ({source}): try again {when}")
        case _ if answer.status in (200, 500, 503):
            yield failed(f"the API gave no verdict on the test events ({source}): try again later")
        case _:
            # Without the platform's own words there is no verdict.
            said = who_answered(answer.headers, answer.body, orjson.dumps({"data": events}))
            yield failed(
                f"something else answered in place of Pinterest ({source}, {said}): correct PINTEREST_API_URL, whose "
                "path is /v5, or have the proxy or firewall between this machine and Pinterest pass the calls"
            )


def _outcome(event: dict[str, Any], outcome: verdicts.EventOutcome, source: str) -> Row:
    # Masked, because the API may repeat a value of the event.
    body = orjson.dumps(event)
    # "Processed" may come with a warning, such as a field that was ignored.
    parts = [f"{event['event_name']} {'processed' if outcome.processed else 'failed'} ({source})"]
    parts += [f"error: {mask(outcome.error, body)}"] if outcome.error else []
    parts += [f"warning: {mask(outcome.warning, body)}"] if outcome.warning else []
    if not outcome.processed:
        return failed("; ".join([*parts, "the message says what the API requires"]))
    return (warning if len(parts) > 1 else ok)("; ".join(parts))
