"""No personal data in a log line, a metric, a page, a dead letter's headers or a command's output, whatever
records and API hold."""

from __future__ import annotations

import hashlib
import itertools
import json
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import orjson
import pytest
from aiohttp import web

from tests.end_to_end.api import Loop
from tests.end_to_end.processes import Process, bare_environment, command
from tests.end_to_end.records import ENCODER, commerce_event, ndjson, write
from tests.end_to_end.shop import NewShop, Shop

MARK = "zq7xmark"
EMAIL = f"{MARK}@example.com"
CUSTOMER = {
    "emails": [EMAIL],
    "phones": ["+49 30 5550177731"],
    "external_ids": [f"{MARK}-id"],
    "advertising_ids": ["7d3e9f0c-0000-4000-8000-77317c0ffee1"],
    "first_name": f"{MARK}-first",
    "last_name": f"{MARK}-last",
    "gender": f"{MARK}-gender",
    "birth_date": "1971-07-17",
    "city": f"{MARK} city",
    "state": f"{MARK}-state",
    "postal_code": "90210-77317",
    "country": f"{MARK}land",
    "ip_address": "203.0.113.177",
    "user_agent": f"{MARK}-agent/1.0",
    "click_id": f"dj0{MARK}",
    "partner_id": f"ramp-{MARK}",
}
ORDER: dict[str, Any] = {
    "order_id": f"{MARK}-order", "currency": "EUR", "total": "77317.31",
    "items": [
        {"sku": f"{MARK}-sku", "name": f"{MARK} item", "category": f"{MARK} things", "brand": f"{MARK} brand",
         "price": "77317.31", "quantity": 1},
    ],
}  # fmt: skip
EVERYTHING: dict[str, Any] = {
    "page_url": f"https://{MARK}.example.com/{MARK}?email={EMAIL}",
    "search_query": f"{MARK} query",
    "language": "de",
    "customer": CUSTOMER,
    "order": ORDER,
    "app": {"app_id": "429047995", "name": f"{MARK} app", "version": f"{MARK}.1"},
    "device": {name: f"{MARK} {name}" for name in ("brand", "model", "type", "carrier", "os_version")},
    "opt_out_type": f"{MARK}-flag",
}
REQUEST_IDS = (
    EMAIL,
    "203.0.113.177",
    "+49 30 5550177731",
    f"{MARK} {MARK}",
    hashlib.sha256(EMAIL.encode()).hexdigest(),
)
"""Ids that no platform gives a call, but that a server which echoes would."""
DIGESTS = [
    hashlib.sha256(text.encode()).hexdigest()
    for text in (EMAIL, "49305550177731", f"{MARK}-id", f"{MARK}-first", f"{MARK}-last", "19710717")
]
NEVER = (
    *(MARK, "5550177731", "5550 177731", "77317c0ffee1", "1971-07-17", "19710717", "90210-77317"),
    *("9021077317", "203.0.113.177", "77317.31", "7731731", *DIGESTS),
)
OF_A_PERSON = (
    *(value for value in NEVER if value not in (MARK, "77317.31", "7731731")),
    *(text for texts in CUSTOMER.values() for text in ([texts] if isinstance(texts, str) else texts)),
    *(EVERYTHING["page_url"], EVERYTHING["search_query"]),
)
"""What must not show even where names from our own side, such as an order's, may."""


def marked(event_id: str, **members: Any) -> dict[str, Any]:
    """An event with a marked value in every text field."""
    return commerce_event(event_id, **{**EVERYTHING, **members})


def broken_events() -> list[dict[str, Any]]:
    """Events that cannot be converted, because of a marked value or for another reason."""
    return [
        marked("currency", order={**ORDER, "currency": MARK}),
        marked("total", order={**ORDER, "total": f"77317.31 {MARK}"}),
        marked("price", order={**ORDER, "items": [{**ORDER["items"][0], "price": f"{MARK}"}]}),
        marked("account", ad_account_id=MARK),
        marked("type", event_type=f"{MARK}_placed"),
        marked("old", occurred_at=10**12),
        marked("future", occurred_at=10**13),
        marked(
            "anonymous",
            customer={**CUSTOMER, "emails": [f"{MARK} at home"], "advertising_ids": [], "ip_address": MARK},
        ),
        marked(" ", event_type="order_completed"),
    ]


def quote(event: dict[str, Any]) -> str:
    """A message that quotes an event, with the most important values first, because messages are cut somewhere."""
    person, order = event["user_data"], event.get("custom_data", {})
    texts = [
        person[name] for name in ("client_ip_address", "client_user_agent", "click_id") if name in person
    ]
    texts += [*person["em"], *(order[name] for name in ("order_id", "value") if name in order)]
    return f"No: {EMAIL} {' '.join(texts)} {json.dumps(event)}"


class EchoingApi:
    """An API that repeats what it receives in every kind of answer, and then accepts it."""

    def __init__(self) -> None:
        self.calls = 0
        self.delivered: set[str] = set()
        self._request_ids = itertools.cycle(REQUEST_IDS)

    async def start(self) -> str:
        """Listen; return the base URL."""
        application = web.Application()
        application.router.add_post("/v5/ad_accounts/{account}/events", self._answer)
        application.on_response_prepare.append(self._name_call)
        self._runner = web.AppRunner(application, access_log=None)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}/v5"

    async def stop(self) -> None:
        """Stop listening."""
        await self._runner.cleanup()

    async def _name_call(self, _: web.Request, response: web.StreamResponse) -> None:
        response.headers["x-pinterest-rid"] = next(self._request_ids)

    async def _answer(self, request: web.Request) -> web.Response:
        body = await request.text()
        events = json.loads(body)["data"]
        if not events:  # which only asks for the time
            return web.json_response({})
        self.calls += 1
        echo = f"{quote(events[-1])} {request.headers['Authorization']} {body}"
        refusals: dict[int, Callable[[], web.Response]] = {
            1: lambda: web.json_response({"code": 2, "message": echo}, status=401),
            2: lambda: web.json_response({"code": 12, "message": echo}, status=500),
            3: lambda: web.Response(text=echo, headers={"x-note": MARK}),
            4: lambda: web.json_response({"code": 4196, "message": echo}, status=400),
        }
        if self.calls in refusals:
            return refusals[self.calls]()
        if any(event["event_id"].endswith("unprocessable") for event in events):
            return web.json_response({"code": 4196, "message": echo, "details": {"events": echo}}, status=422)
        entries = [self._entry(event) for event in events]
        processed = sum(entry["status"] == "processed" for entry in entries)
        answer = {"num_events_received": len(events), "num_events_processed": processed, "events": entries}
        return web.json_response(answer)

    def _entry(self, event: dict[str, Any]) -> dict[str, Any]:
        echo = quote(event)
        kind = event["event_id"].rpartition("-")[2]
        if kind != "failed":
            self.delivered.add(event["event_id"])
        return {
            "status": "failed" if kind == "failed" else "processed",
            "error_message": echo if kind in ("failed", "complained") else None,
            "warning_message": echo if kind == "warned" else None,
        }


@pytest.fixture
def echoing(servers: Loop) -> Iterator[tuple[str, EchoingApi]]:
    """The echoing API and its base URL."""
    server = EchoingApi()
    yield servers.call(server.start()), server
    servers.call(server.stop())


def found_in(text: str, values: Sequence[str] = NEVER) -> list[str]:
    """The marked values that occur in a text."""
    lower = text.lower()
    return [value for value in values if value.lower() in lower]


def marked_records() -> list[bytes]:
    """Good and bad records with marks everywhere: nine can be delivered."""
    kinds = ("fine", "failed", "warned", "complained", "unprocessable")
    good = [marked(f"e{number}-{kind}") for number in range(3) for kind in kinds]
    values = [ENCODER.encode(event) for event in (*good, *broken_events())]
    whole = values[0]
    return [
        *values,
        orjson.dumps(marked("json")),
        whole[: len(whole) // 2],
        whole + MARK.encode(),
        b"\xff" + EMAIL.encode(),
    ]


def first_event(process: Process) -> str:
    """The first event of the /events stream that has data, with what comes before it."""
    with urllib.request.urlopen(f"{process.page}events", timeout=10) as stream:
        lines: list[str] = []
        while not (lines and lines[-1] == "" and any(line.startswith("data:") for line in lines)):
            lines.append(stream.readline(1_000_000).decode().rstrip("\n"))
    return "\n".join(lines)


def everything_served(process: Process) -> dict[str, str]:
    """Everything that it serves over HTTP."""
    paths = ("/", "/status", "/history", "/metrics", "/healthz", "/readyz")
    shown = {path: process.get(path)[1] for path in paths}
    return {**shown, "/events": first_event(process)}


@pytest.fixture
def shop(new_shop: NewShop, echoing: tuple[str, EchoingApi]) -> Shop:
    """One whose API echoes."""
    return new_shop(PINTEREST_API_URL=echoing[0], PINSTREAM_LOG_LEVEL="debug", PINSTREAM_BATCH_EVENTS="8")


def write_marked(shop: Shop, header: str) -> int:
    """Write marked records with this header; return how many."""
    values = marked_records()
    records = ((EMAIL.encode(), value) for value in values)
    write(shop.kafka, shop.topic, records, headers=[(header, EMAIL.encode())])
    return len(values)


def test_run_shows_nothing_of_a_person(shop: Shop, echoing: tuple[str, EchoingApi]) -> None:
    """At log level debug, with an API that echoes: no mark in anything that it logs, serves, or adds to a dead
    letter."""
    records = write_marked(shop, MARK)
    with shop.run("--debug") as process:
        ledger = process.until_settled(records)
        shown = everything_served(process)
    assert ledger["delivered"] == len(echoing[1].delivered) == 9
    assert ledger["dead_lettered"] == records - 9
    shown |= {"stdout": process.stdout, "stderr": process.stderr}
    for message, headers in shop.letters:
        shown[f"headers of {headers['code']}"] = repr(headers)
        assert message.key() == EMAIL.encode(), "the dead letter itself is the record, unchanged"
    assert {where: found for where, text in shown.items() if (found := found_in(text))} == {}
    assert len(json.loads(shown["/status"])["counts"]["answers"]) >= 4, "the API showed all its faces"
    assert shop.env["PINTEREST_ACCESS_TOKEN"] not in "".join(shown.values())


def places(shop: Shop) -> list[str]:
    """The place of one dead letter of each stage, as `show` takes it."""
    found = {
        headers["stage"]: f"{message.topic()}:{message.partition()}:{message.offset()}"
        for message, headers in shop.letters
    }
    assert found.keys() == {"decode", "convert", "deliver"}
    return list(found.values())


@pytest.mark.timeout(300)
def test_commands_show_nothing_of_a_person(shop: Shop) -> None:
    """The commands that people run when events were refused: replay, show, redrive, check. ``--payload`` shows
    what the mapping knows to be no personal data, and no more."""
    write_marked(shop, "shop-note")
    shop.env["PINSTREAM_DEAD_LETTER_SHARE"] = "1"
    shown: dict[str, str] = {}

    def run(*line: str) -> None:
        done = command(*line, env=shop.env)
        assert done.stdout, f"{line} says nothing: {done.stderr}"
        assert "Traceback" not in done.stderr
        shown[" ".join(line)] = done.stdout + done.stderr

    everything = ("--topic", shop.topic, "--from", "beginning", "--to", "end")
    run("replay", *everything, "--dry-run")
    run("replay", *everything, "--ignore-dedup", "--json")
    run("dead-letters", "list", "--latest", "100")
    run("dead-letters", "list", "--latest", "100", "--json")
    for place in places(shop):
        run("dead-letters", "show", place)
        run("dead-letters", "show", place, "--payload", "--json")
    run("dead-letters", "redrive", "--dry-run")
    run("dead-letters", "redrive", "--json")
    run("check", "--send-test-event")
    assert {
        line: found
        for line, text in shown.items()
        if (found := found_in(text, OF_A_PERSON if "--payload" in line else NEVER))
    } == {}
    assert shop.env["PINTEREST_ACCESS_TOKEN"] not in "".join(shown.values())
    assert "test events" in shown["check --send-test-event"]


def test_explain_and_produce_complain_without_quoting(shop: Shop) -> None:
    """Errors and warnings of ``explain`` and ``produce`` name codes and fields, never values."""
    good = marked("good")
    bad_shapes: list[dict[str, Any]] = [
        {**good, "customer": {**CUSTOMER, "emails": EMAIL}},
        {**good, "customer": {**CUSTOMER, MARK: EMAIL}},
        {**good, "occurred_at": MARK},
        {**good, "channel": MARK},
        {**good, "order": {**ORDER, "items": [MARK]}},
        {**good, "opt_out": MARK},
    ]
    text = ndjson([good, *broken_events(), *bad_shapes]) + f'{{{MARK}\n["{EMAIL}"]\n"{EMAIL}\n'
    bare = bare_environment(shop.folder)
    done = command("explain", "-", env=bare, stdin=text)
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(lines) == len(text.splitlines())
    reported = {number: json.dumps([line["error"], line["warnings"]]) for number, line in enumerate(lines)}
    assert {number: found for number, one in reported.items() if (found := found_in(one))} == {}
    assert found_in(done.stderr) == []

    env = {**bare, "KAFKA_BOOTSTRAP_SERVERS": shop.kafka.bootstrap_servers}
    done = command("produce", "-", "--topic", shop.topic, env=env, stdin=text)
    assert done.returncode == 1
    assert found_in(done.stdout + done.stderr) == []
