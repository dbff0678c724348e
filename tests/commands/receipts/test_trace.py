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
from tests.commands.receipts.making import GROUP, NOW, answered, environment, made, write_receipts
from tests.end_to_end.processes import ACCOUNT, ROOT, command, the_one_line
from tests.end_to_end.records import commerce_event, new_topic, write_events
from tests.end_to_end.replay.redriving import bury, letter
from tests.support.kafka.harness import Kafka, commit, create_topic, produce

PERSONAL = "someone@example.com"


def traced(*ids: str, env: dict[str, str], code: int = 0) -> list[dict[str, Any]]:
    """Return what is said of each id."""
    found: list[dict[str, Any]] = answered("trace", *ids, env=env, code=code)["traces"]
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


def test_what_became_of_an_event(kafka: Kafka, tmp_path: Path) -> None:
    """An event is found by its event id, its order id and the place of its record: all its records, each with its
    outcome, call and attempts. A receipt that does not count is shown, and says so. Exit code 0: it was delivered."""
    topic = create_topic(kafka, 3)
    first = made("orders:0:5", attempts=2)
    again = made("orders:0:5", "duplicate", at=NOW + 1)
    copy = made("orders:1:7", "duplicate", event_id="event-5", order_id="order-5")
    write_receipts(kafka, topic, [first, again, copy, made("orders:0:6")])
    env = environment(tmp_path, kafka, topic)
    by_event, by_order, by_place = traced("event-5", "order-5", "orders:0:5", env=env)
    assert by_event["records"] == by_order["records"]
    assert [(one["place"], one["outcome"], one["counts"]) for one in by_event["records"]] == [
        ("orders:0:5", "delivered", True),
        ("orders:1:7", "duplicate", True),
        ("orders:0:5", "duplicate", False),
    ]
    assert by_place["records"] == [by_event["records"][0], by_event["records"][2]]
    found = by_event["records"][0]
    said_of_it = {
        name: found[name] for name in ("request_id", "http_status", "attempts", "value", "by", "cut")
    }
    assert said_of_it == {
        "request_id": "request-1",
        "http_status": 200,
        "attempts": 2,
        "value": "12.50",
        "by": "run",
        "cut": [],
    }
    said = command("trace", "order-5", env=env).stdout
    for text in (
        "order-5",
        "delivered, orders:0:5",
        "request id request-1",
        "http status 200",
        "attempts 2",
        "12.50 EUR",
    ):
        assert text in said
    assert "does not count" in said


def test_what_was_not_delivered(kafka: Kafka, tmp_path: Path) -> None:
    """An event that was filtered or dead-lettered, or is not found, is exit code 1, whatever the others are."""
    topic = create_topic(kafka)
    write_receipts(
        kafka,
        topic,
        [made("orders:0:1", "filtered", code="consent"), made("orders:0:2"), made("orders:0:3", "duplicate")],
    )
    env = environment(tmp_path, kafka, topic)
    [one] = traced("event-1", env=env, code=1)
    assert (one["records"][0]["outcome"], one["records"][0]["code"]) == ("filtered", "consent")
    traced("event-2", "event-3", env=env)
    traced("event-2", "nothing", env=env, code=1)
    done = command("trace", "nothing", env=env)
    assert "not found since" in done.stdout


def test_a_letter_and_its_redrive(kafka: Kafka, tmp_path: Path) -> None:
    """A dead-lettered record has its letter, and the receipt of its redrive, found by its place, too."""
    receipts, orders = create_topic(kafka), new_topic(kafka, 1)
    bury(kafka, [letter(orders, 4, partition=0), letter(orders, 5, partition=0)], partitions=1)
    dead = made(f"{orders}:0:4", "dead_lettered", code="unknown_currency")
    redriven = made(
        f"{orders}.dead-letters:0:0",
        by="redrive",
        origin=f"{orders}:0:4",
        event_id="event-4",
        order_id="order-4",
    )
    write_receipts(
        kafka, receipts, [dead, redriven, made(f"{orders}:0:5", "dead_lettered", code="unknown_currency")]
    )
    env = environment(tmp_path, kafka, receipts)
    delivered, waits = traced(f"{orders}:0:4", "event-5", env=env, code=1)
    assert [(one["outcome"], one["by"]) for one in delivered["records"]] == [
        ("dead_lettered", "run"),
        ("delivered", "redrive"),
    ]
    for found, offset in ((delivered, 0), (waits, 1)):
        [one] = found["records"][0]["letters"]
        assert (one["place"], one["state"]) == (f"{orders}.dead-letters:0:{offset}", "waiting")


@pytest.mark.parametrize("store", ["disk", "redis"])
def test_until_when_the_key_is_remembered(
    store: str, kafka: Kafka, tmp_path: Path, request: pytest.FixtureRequest
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
    topic = create_topic(kafka)
    write_receipts(kafka, topic, [made("orders:0:1"), made("orders:0:2")])
    env = environment(tmp_path, kafka, topic, PINSTREAM_KEY_STORE=url)
    known, unknown = traced("event-1", "event-2", env=env)
    until = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(delivered + 48 * 3600))
    assert known["records"][0]["remembered_until"] == until
    assert unknown["records"][0]["remembered_until"] is None
    assert f"remembers it until {until}" in command("trace", "event-1", env=env).stdout


def test_what_is_open(kafka: Kafka, tmp_path: Path) -> None:
    """An event without a receipt is looked for in what the group has not settled, by its ids and by its place; a
    record below the committed offset is settled, and its receipt is not there."""
    receipts, orders = create_topic(kafka), new_topic(kafka, 1)
    write_events(kafka, orders, [commerce_event(f"event-{number}") for number in range(4)])
    commit(kafka, GROUP, orders, 2)
    write_receipts(kafka, receipts, [made(f"{orders}:0:0")])
    env = environment(tmp_path, kafka, receipts, KAFKA_TOPICS=orders)
    by_id, by_place, settled, gone = traced(
        "event-3", f"{orders}:0:2", f"{orders}:0:1", "event-0x", env=env, code=1
    )
    [one], [other], [below] = (found["without_receipt"] for found in (by_id, by_place, settled))
    assert one == {"place": f"{orders}:0:3", "open": True, "committed": 2, "would_be": "deliverable"}
    assert (other["place"], other["open"]) == (f"{orders}:0:2", True)
    assert (below["place"], below["open"]) == (f"{orders}:0:1", False)
    assert (gone["records"], gone["without_receipt"]) == ([], [])


def test_without_receipts(kafka: Kafka, tmp_path: Path) -> None:
    """Without a receipts topic the records themselves are read: where they are and what the mapping makes of them,
    never that they were delivered; exit code 1. What is no event is found by its bytes."""
    orders = new_topic(kafka, 1)
    events = [
        commerce_event(
            "event-0", order={"order_id": "4711", "currency": "EUR", "total": "1.50", "items": []}
        ),
        commerce_event("event-1", customer={"emails": [PERSONAL]}, event_type="nobody knows"),
    ]
    write_events(kafka, orders, events)
    commit(kafka, GROUP, orders, 1)
    env = environment(tmp_path, kafka, None, KAFKA_TOPICS=orders)
    done = command("trace", "4711", "event-1", env=env)
    assert done.returncode == 1
    assert f"{orders}:0:0: settled, the group stands at 1" in done.stdout
    assert "the mapping makes of it: deliverable" in done.stdout
    assert f"{orders}:0:1: open, the group stands at 1" in done.stdout
    assert "rejected: unknown_event_name (convert)" in done.stdout
    assert "without receipts nothing says what arrived" in done.stdout
    assert PERSONAL not in done.stdout


def test_a_thousand_ids(kafka: Kafka, tmp_path: Path) -> None:
    """A thousand ids of every outcome, with repeated readings and redrives: each is found with all its receipts."""
    topic, chance = create_topic(kafka, 3), random.Random(7)
    receipts: list[FoundReceipt] = []
    for number in range(1500):
        where = f"orders:{number % 3}:{number}"
        some = chance.choices(RANKED, k=chance.choice((1, 1, 1, 2, 3)))
        receipts += [
            made(where, one, at=NOW + number, request_id=f"r{number}" if one == "delivered" else None)
            for one in some
        ]
        if some == ["dead_lettered"]:
            receipts.append(
                made(f"orders.dead-letters:0:{number}", by="redrive", origin=where, at=NOW + number + 1)
            )
    chance.shuffle(receipts)
    write_receipts(kafka, topic, receipts)
    ids = [f"event-{number}" for number in range(1000)]
    traces = traced(*ids, env=environment(tmp_path, kafka, topic), code=1)
    assert [one["id"] for one in traces] == ids
    for one in traces:
        own = [receipt for receipt in receipts if receipt["event_id"] == one["id"]]
        assert sorted((f["place"], f["outcome"], f["request_id"] or "") for f in one["records"]) == sorted(
            (f"{r['topic']}:{r['partition']}:{r['offset']}", r["outcome"], r["request_id"] or "") for r in own
        )
        assert {f["outcome"] for f in one["records"] if f["counts"] and f["by"] == "run"} == {
            max((r for r in own if r["by"] == "run"), key=rank)["outcome"]
        }


def test_receipts_that_cannot_be_read(kafka: Kafka, tmp_path: Path) -> None:
    """A record that is no receipt is passed over, and said; a topic that is not there is exit code 2."""
    topic = create_topic(kafka)
    produce(kafka, topic, [b"event-1", b"\xc3\x01" + bytes(8) + b"event-1", None])
    write_receipts(kafka, topic, [made("orders:0:1")])
    done = command("trace", "event-1", env=environment(tmp_path, kafka, topic))
    assert (done.returncode, "delivered, orders:0:1" in done.stdout) == (0, True)
    assert f"2 records of {topic} are no receipts" in done.stderr
    done = command("trace", "event-1", env=environment(tmp_path, kafka, "nowhere"))
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        "there are no receipts (PINSTREAM_RECEIPTS_TOPIC): the topic nowhere does not exist"
        in the_one_line(done.stderr)
    )


def test_all_receipts_as_lines(kafka: Kafka, tmp_path: Path) -> None:
    """Without an ID each receipt since ``--since`` is a line of JSON, with times that people and tools read."""
    topic = create_topic(kafka)
    write_receipts(
        kafka, topic, [made("orders:0:1"), made("orders:0:2", "filtered", code="consent", event_time=None)]
    )
    done = command("trace", "--since", "1h", env=environment(tmp_path, kafka, topic))
    assert (done.returncode, done.stderr) == (0, "")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [(one["offset"], one["outcome"], one["event_time"] is None) for one in lines] == [
        (1, "delivered", False),
        (2, "filtered", True),
    ]
    assert lines[0]["at"] == time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW // 1000))


def test_the_query_of_the_page(tmp_path: Path) -> None:
    """The query that docs/receipts.md shows adds up, in DuckDB, what `trace` prints: by the rule of which counts."""
    days = [made("orders:0:1", value="0.10", at=NOW), made("orders:0:2", value="0.20", at=NOW)]
    receipts = [
        *days,
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
