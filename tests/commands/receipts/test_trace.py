"""``pinstream trace``: from receipts what became of events, and without them where their records are."""

from __future__ import annotations

import asyncio
import json
import random
import re
import time
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.key_store import open_key_store
from consumer.commands.receipts import RANKED, FoundReceipt, keep, rank, readable_receipt, receipt_key
from consumer.engine.reading import Keys
from tests.commands.receipts.making import GROUP, NOW, Receipts, made
from tests.end_to_end.processes import ACCOUNT, ROOT, command
from tests.end_to_end.records import ENCODER, commerce_event
from tests.end_to_end.replay.redriving import bury, letter
from tests.support.kafka.harness import commit, create_topic, produce

PERSONAL = "someone@example.com"


def traced(shop: Receipts, *ids: str, code: int = 0) -> list[dict[str, Any]]:
    """Return what is said of each id."""
    found: list[dict[str, Any]] = shop.answered("trace", *ids, code=code)["traces"]
    return found


@given(st.lists(st.sampled_from(RANKED), min_size=1))
def test_of_receipts_with_one_key_the_highest_counts(outcomes: list[str]) -> None:
    """Delivered beats dead-lettered beats filtered beats duplicate, in whatever order they come; of two the first."""
    counting: dict[Any, FoundReceipt] = {}
    receipts = [made("orders:0:5", outcome, attempts=number) for number, outcome in enumerate(outcomes)]
    for one in receipts:
        keep(counting, one)
    best = next(one for one in ("delivered", "dead_lettered", "filtered", "duplicate") if one in outcomes)
    assert counting == {receipt_key(receipts[0]): receipts[outcomes.index(best)]}
    assert sorted(receipts, key=rank)[-1]["outcome"] == best


def test_what_became_of_an_event(shop: Receipts) -> None:
    """It is found by event id, order id and place, with all its records; without an ID each receipt is a line."""
    place = f"{shop.orders}:0:5"
    again = {"event_id": "event-5", "order_id": "order-5"}
    shop.write(
        shop.made(5, attempts=2),
        shop.made(5, "duplicate", at=NOW + 1),
        shop.made(7, "duplicate", 1, **again),
        shop.made(6, "filtered", code="consent", event_time=None),
    )
    by_event, by_order, by_place = traced(shop, "event-5", "order-5", place)
    assert by_event["records"] == by_order["records"]
    assert [(one["place"], one["outcome"], one["counts"]) for one in by_event["records"]] == [
        (place, "delivered", True),
        (f"{shop.orders}:1:7", "duplicate", True),
        (place, "duplicate", False),
    ]
    assert by_place["records"] == [by_event["records"][0], by_event["records"][2]]
    said = {
        "request_id": "request-1",
        "http_status": 200,
        "attempts": 2,
        "value": "12.50",
        "by": "run",
        "cut": [],
    }
    assert by_event["records"][0].items() >= said.items()
    text = shop.printed("trace", "order-5")
    for part in ("order-5", f"delivered, {place}", "request id request-1", "http status 200", "attempts 2",
                 "12.50 EUR", "does not count"):  # fmt: skip
        assert part in text
    lines = [json.loads(line) for line in shop.printed("trace", "--since", "1h").splitlines()]
    assert sorted((one["offset"], one["outcome"]) for one in lines if one["event_time"] is None) == [
        (6, "filtered")
    ]
    assert len(lines) == 4
    assert time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW // 1000)) in [one["at"] for one in lines]


def test_what_was_not_delivered(shop: Receipts) -> None:
    """Exit code 1, whatever the others are; what is no receipt is passed over, and said."""
    produce(shop.kafka, shop.topic, [b"event-2", b"\xc3\x01" + bytes(8) + b"event-2", None])
    shop.write(shop.made(1, "filtered", code="consent"), shop.made(2), shop.made(3, "duplicate"))
    [one] = traced(shop, "event-1", code=1)
    assert (one["records"][0]["outcome"], one["records"][0]["code"]) == ("filtered", "consent")
    traced(shop, "event-2", "event-3")
    traced(shop, "event-2", "nothing", code=1)
    assert "not found since" in shop.printed("trace", "nothing", code=1)
    done = command("trace", "event-2", env=shop.env)
    assert (done.returncode, f"delivered, {shop.orders}:0:2" in done.stdout) == (0, True)
    assert f"2 records of {shop.topic} are no receipts" in done.stderr
    gone = "there are no receipts (PINSTREAM_RECEIPTS_TOPIC): the topic nowhere does not exist"
    assert gone in shop.refused("trace", "event-1", PINSTREAM_RECEIPTS_TOPIC="nowhere")


def test_a_letter_and_its_redrive(shop: Receipts) -> None:
    """A dead-lettered record has its letter, and the receipt of its redrive, found by its place, too."""
    letters, origin = f"{shop.orders}.dead-letters", f"{shop.orders}:0:4"
    create_topic(shop.kafka, 1, letters)
    bury(shop.kafka, [letter(shop.orders, number, partition=0) for number in (4, 5)], partitions=1)
    dead, other = (shop.made(number, "dead_lettered", code="unknown_currency") for number in (4, 5))
    ids = {"event_id": "event-4", "order_id": "order-4"}
    shop.write(dead, made(f"{letters}:0:0", by="redrive", origin=origin, **ids), other)
    delivered, waits = traced(shop, origin, "event-5", code=1)
    assert [(one["outcome"], one["by"]) for one in delivered["records"]] == [
        ("dead_lettered", "run"),
        ("delivered", "redrive"),
    ]
    for found, offset in ((delivered, 0), (waits, 1)):
        [one] = found["records"][0]["letters"]
        assert (one["place"], one["state"]) == (f"{letters}:0:{offset}", "waiting")


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_until_when_the_key_is_remembered(
    store: str, shop: Receipts, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """The key store of this machine, or the shared one, says until when it remembers an event, to the second."""
    url = f"disk:{tmp_path}/keys"
    if store == "redis":
        url = f"{request.getfixturevalue('redis').url}?prefix={tmp_path.name}"
    delivered = int(time.time()) - 3600

    async def remember() -> None:
        keys = open_key_store(url, window=48 * 3600, max_bytes=1 << 26)
        if store == "redis":
            await keys.renew()
        await keys.confirm(Keys().of(ACCOUNT, "checkout", "event-1"), delivered)
        await keys.close()

    asyncio.run(remember())
    shop.write(shop.made(1), shop.made(2))
    shop.env["PINSTREAM_KEY_STORE"] = url
    known, unknown = traced(shop, "event-1", "event-2")
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(delivered + 48 * 3600))
    assert known["records"][0]["remembered_until"] == until
    assert unknown["records"][0]["remembered_until"] is None
    assert f"remembers it until {until}" in shop.printed("trace", "event-1")


def test_what_is_open(shop: Receipts) -> None:
    """It is looked for in what the group has not settled; below that it is settled, without its receipt."""
    produce(
        shop.kafka, shop.orders, [ENCODER.encode(commerce_event(f"event-{number}")) for number in range(4)]
    )
    commit(shop.kafka, GROUP, shop.orders, 2)
    shop.write(shop.made(0))
    shop.env["KAFKA_TOPICS"] = shop.orders
    places = [f"{shop.orders}:0:{offset}" for offset in range(4)]
    by_id, by_place, settled, gone = traced(shop, "event-3", places[2], places[1], "event-0x", code=1)
    [one], [other], [below] = (found["without_receipt"] for found in (by_id, by_place, settled))
    assert one == {"place": places[3], "open": True, "committed": 2, "would_be": "deliverable"}
    assert (other["place"], other["open"]) == (places[2], True)
    assert (below["place"], below["open"]) == (places[1], False)
    assert (gone["records"], gone["without_receipt"]) == ([], [])


def test_without_receipts(shop: Receipts) -> None:
    """The records are read: what the mapping makes of them, never that they were delivered; exit code 1."""
    order = {"order_id": "4711", "currency": "EUR", "total": "1.50", "items": []}
    customer = {"emails": [PERSONAL]}
    events = [
        commerce_event("event-0", order=order),
        commerce_event("event-1", customer=customer, event_type="nobody knows"),
    ]
    produce(shop.kafka, shop.orders, map(ENCODER.encode, events))
    commit(shop.kafka, GROUP, shop.orders, 1)
    shop.env |= {"PINSTREAM_RECEIPTS_TOPIC": "", "KAFKA_TOPICS": shop.orders}
    text = shop.printed("trace", "4711", "event-1", code=1)
    for part in (
        f"{shop.orders}:0:0: settled, the group stands at 1",
        "the mapping makes of it: deliverable",
        f"{shop.orders}:0:1: open, the group stands at 1",
        "rejected: unknown_event_name (convert)",
        "without receipts nothing says what arrived",
    ):
        assert part in text
    assert PERSONAL not in text


def test_many_ids(shop: Receipts) -> None:
    """Hundreds of ids of every outcome, with repeated readings and redrives: each is found with all its receipts."""
    chance, receipts = random.Random(7), list[FoundReceipt]()
    for number in range(450):
        where = f"orders:{number % 3}:{number}"
        some = chance.choices(RANKED, k=chance.choice((1, 1, 1, 2, 3)))
        receipts += [
            made(where, one, at=NOW + number, request_id=f"r{number}" if one == "delivered" else None)
            for one in some
        ]
        if some == ["dead_lettered"]:
            place = f"orders.dead-letters:0:{number}"
            receipts.append(made(place, by="redrive", origin=where, at=NOW + number + 1))
    chance.shuffle(receipts)
    shop.write(*receipts)
    ids = [f"event-{number}" for number in range(300)]
    traces = traced(shop, *ids, code=1)
    assert [one["id"] for one in traces] == ids
    for one in traces:
        own = [receipt for receipt in receipts if receipt["event_id"] == one["id"]]
        assert sorted((f["place"], f["outcome"], f["request_id"] or "") for f in one["records"]) == sorted(
            (f"{r['topic']}:{r['partition']}:{r['offset']}", r["outcome"], r["request_id"] or "") for r in own
        )
        assert {f["outcome"] for f in one["records"] if f["counts"] and f["by"] == "run"} == {
            max((r for r in own if r["by"] == "run"), key=rank)["outcome"]
        }


def test_the_query_of_the_page(tmp_path: Path) -> None:
    """The query that docs/receipts.md shows adds up, in DuckDB, what `trace` prints: by the rule of which counts."""
    receipts = [
        made("orders:0:1", value="0.10", at=NOW),
        made("orders:0:2", value="0.20", at=NOW),
        made("orders:0:2", "duplicate", at=NOW + 1),
        made("orders:1:1", "filtered", value=None, currency=None),
    ]
    lines = (json.dumps(readable_receipt(one)) + "\n" for one in receipts)
    (tmp_path / "receipts.ndjson").write_text("".join(lines))
    [query] = re.findall(r"```sql\n(.*?)```", (ROOT / "docs" / "receipts.md").read_text("utf-8"), re.DOTALL)
    query = query.replace("receipts.ndjson", f"{tmp_path}/receipts.ndjson")
    day = datetime.fromtimestamp(NOW / 1000, UTC).date()
    assert duckdb.connect().execute(query).fetchall() == [
        (day, "delivered", "EUR", 2, Decimal("0.30")),
        (day, "filtered", None, 1, None),
    ]
