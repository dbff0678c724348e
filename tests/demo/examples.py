"""Conversion events and calls for the tests of the sandbox."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

import aiohttp
import orjson
from jsonschema import Draft202012Validator

from consumer.demo import rules
from consumer.demo.api import Sandbox

NOW = 1_700_000_000.0
ACCOUNT = "549755885175"
TOKEN = "pina_right"
REQUEST = Draft202012Validator(rules.REQUEST)
"""Checks the body of a call against the schema of the request."""


def _without_null(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_null(item) for item in node if item != "null"]
    return {key: _without_null(value) for key, value in node.items()} if isinstance(node, dict) else node


SENT = Draft202012Validator(_without_null(rules.REQUEST))
"""The same for pinstream's own events, which leave a key out where the platform takes a null."""


def digest(text: str) -> str:
    """SHA-256 in the form of the API."""
    return hashlib.sha256(text.encode()).hexdigest()


def event(event_id: str = "e1", **members: Any) -> dict[str, Any]:
    """A small event that is accepted; `members` replace or add keys."""
    return {
        "event_name": "checkout",
        "action_source": "web",
        "event_time": int(NOW) - 60,
        "event_id": event_id,
        "user_data": {"em": [digest("a@example.com")]},
        "custom_data": {"currency": "USD", "value": "10.50"},
    } | members


def full_event() -> dict[str, Any]:
    """An event with every part of the description, so that every part can be made invalid."""
    return event(
        event_source_url="https://shop.example.com/a?b=c",
        partner_name="ss-example",
        opt_out=False,
        language="en",
        app_id="429047995",
        app_name=None,
        device_brand="Apple",
        wifi=True,
        user_data={
            "em": [digest("a@example.com"), digest("b@example.com")],
            "ph": [digest("15550100")],
            "client_ip_address": "192.0.2.7",
            "client_user_agent": "Mozilla/5.0",
            "click_id": "dj0yJnU9",
            "partner_id": None,
        },
        custom_data={
            "currency": "EUR",
            "value": "129.97",
            "content_ids": ["0017"],
            "contents": [{"id": "0017", "item_name": "Shirt", "item_price": "49.99", "quantity": 2}],
            "num_items": 2,
            "order_id": "00001",
            "search_string": None,
            "external_measurement_vendor_id": None,
        },
        app_info={"app_name": "Shop", "window_height": 800, "install_time": 1},
        device_info={"type": "phone", "battery_level": 78, "os_family": "ios", "languages": ["en"]},
    )


class Reply(NamedTuple):
    """An answer of the sandbox."""

    status: int
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes

    def json(self) -> Any:
        """The body parsed."""
        return orjson.loads(self.body)


class Client:
    """Talks to a running sandbox as the consumer would."""

    def __init__(self, base: str, session: aiohttp.ClientSession) -> None:
        self.base = base
        self.root = base.removesuffix("/v5")
        self._session = session

    async def send(
        self,
        *events: Any,
        account: str = ACCOUNT,
        token: str | None = TOKEN,
        query: str = "",
        body: bytes | None = None,
        content_type: str = "application/json",
    ) -> Reply:
        """Posts the events (or `body` as it is) once."""
        headers = {"Content-Type": content_type}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        data = orjson.dumps({"data": list(events)}) if body is None else body
        return await self._request("POST", f"{self.base}/ad_accounts/{account}/events{query}", data, headers)

    async def control(self, method: str, path: str, body: bytes = b"") -> Reply:
        """Calls one of the ``/sandbox`` paths."""
        return await self._request(method, f"{self.root}/sandbox/{path}", body, {})

    async def _request(self, method: str, url: str, data: bytes, headers: dict[str, str]) -> Reply:
        async with self._session.request(method, url, data=data, headers=headers) as response:
            lower = {name.lower(): value for name, value in response.headers.items()}
            return Reply(response.status, lower, await response.read())


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


@asynccontextmanager
async def running(sandbox: Sandbox) -> AsyncIterator[Client]:
    """Starts `sandbox`, gives a client for it, stops it."""
    base = await sandbox.start()
    try:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=20)) as session:
            yield Client(base, session)
    finally:
        await sandbox.stop()
