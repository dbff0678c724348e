"""``pinstream audit``: the ledger of a group from its receipts, and whether it adds up against the topics."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime
from typing import Any

from confluent_kafka import Producer

from consumer.adapters.kafka.letters import Done
from consumer.commands.audit import _compare
from consumer.commands.receipts import RANKED, FoundReceipt, keep
from consumer.settings import load
from tests.commands.receipts.making import GROUP, NOW, Receipts, made
from tests.support.kafka.harness import WITHIN, Kafka, commit, unique

DAY = 86_400_000


def iso(milliseconds: int) -> str:
    """Return the time in UTC."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC).isoformat()


def write_records(kafka: Kafka, topic: str, *numbers: int) -> None:
    """Write transactions of these numbers of records; each ends with a marker, which takes an offset."""
    producer = Producer({**kafka.config, "transactional.id": unique("shop"), "log_level": 0})
    producer.init_transactions(WITHIN)
    for number in numbers:
        producer.begin_transaction()
        for one in range(number):
            producer.produce(topic, b"%d" % one, partition=0)
        producer.commit_transaction(WITHIN)


def test_the_ledger_over_restarts(shop: Receipts) -> None:
    """The receipt that counts is in it, on its day; other groups' and destinations' are not; members are counted."""
    chance, counting, written = random.Random(3), dict[Any, FoundReceipt](), list[FoundReceipt]()
    for partition in range(2):
        shop.settled(300, partition)
        for offset in range(300):
            for at in sorted(chance.sample(range(NOW - 2 * DAY, NOW), chance.choice((1, 1, 2, 3)))):
                outcome, member = chance.choice(RANKED), f"m{chance.randrange(5)}"
                written.append(shop.made(offset, outcome, partition, at=at, member=member))
                keep(counting, written[-1])
    shop.write(
        *written,
        shop.made(1, group="another"),
        shop.made(1, destination="a sandbox"),
        shop.made(2, by="replay", at=NOW - 2 * DAY),
        made(f"{shop.orders}.dead-letters:0:0", by="redrive", origin=f"{shop.orders}:0:3"),
    )
    found = shop.answered("audit", "--since", "3d")
    counts = Counter[tuple[str, str]]()
    for one in counting.values():
        counts[iso(one["at"])[:10], one["outcome"]] += 1
    run = {(one["day"], one["outcome"]): one["records"] for one in found["counts"] if one["by"] == "run"}
    assert run == dict(counts)
    assert sum(run.values()) == 600
    assert [(one["by"], one["topic"], one["records"]) for one in found["counts"] if one["by"] != "run"] == [
        ("redrive", f"{shop.orders}.dead-letters", 1),
        ("replay", shop.orders, 1),
    ]
    assert found["members"] == 6  # five of the group's, and the one of the other commands
    assert [one["records"] for one in found["offsets"]] == [300, 300]
    assert found["without_receipt"] == []


def test_it_is_compared_with_the_topic(kafka: Kafka, shop: Receipts) -> None:
    """Offsets without a receipt are markers, open records, or lack theirs: exit code 1, and they are named."""
    write_records(kafka, shop.orders, 3, 4, 3)  # markers at 3, 8 and 12
    commit(kafka, GROUP, shop.orders, 10)
    shop.write(*map(shop.made, (0, 1, 2, 4, 6, 7, 9, 11)))
    found = shop.answered("audit", "--since", "1h", code=1)
    figures = {"records": 8, "removed": 0, "no_record": 2, "open": 1, "without_receipt": 1}
    assert found["offsets"] == [{"topic": shop.orders, "partition": 0, "first": 0, "last": 11, **figures}]
    assert found["without_receipt"] == [f"{shop.orders}:0:5"]
    lost = f"1 records are settled and have no receipt: {shop.orders}:0:5"
    assert lost in shop.printed("audit", "--since", "1h", code=1)
    shop.write(shop.made(5, "filtered"))
    assert "It adds up" in shop.printed("audit", "--since", "1h")


def test_receipts_of_another_time_fill_gaps(shop: Receipts) -> None:
    """A record that was settled before or after the time has its receipt, and is not counted in it."""
    shop.settled(5)
    since = NOW - 3_600_000
    times = (since, since - 60_000, since + 1, since + 600_000, since + 2)
    shop.write(*(shop.made(offset, at=at) for offset, at in enumerate(times)))
    found = shop.answered("audit", "--since", iso(since), "--until", iso(since + 60_000))
    assert [one["records"] for one in found["counts"]] == [3]
    assert [(one["first"], one["last"], one["no_record"]) for one in found["offsets"]] == [(0, 4, 0)]


def test_a_record_that_settles_while_the_receipts_are_read(shop: Receipts) -> None:
    """It was open when they were read: its receipt came later, so it is not named as one without."""
    shop.settled(4)
    shop.write(*map(shop.made, (0, 2, 3)))
    settings = load(shop.env, needs=("kafka",))
    read = Done()
    read.add([(0, 1), (3, 4)])  # offset 1 has no receipt at all, that of 2 was not there yet
    log = "run", shop.orders, "", 0
    found = asyncio.run(_compare(settings, (GROUP, "pinterest"), {log: read}, {log: (0, 3)}, NOW))
    assert found["without_receipt"] == [f"{shop.orders}:0:1"]
    assert [(one["open"], one["without_receipt"]) for one in found["offsets"]] == [(1, 1)]


def test_a_record_counts_on_its_first_day(shop: Receipts) -> None:
    """A record that was delivered before and after the end of the time, or its beginning, is in one of two audits."""
    shop.settled(1)
    midnight = NOW - NOW % DAY
    twice = [shop.made(0, at=midnight + minutes * 60_000) for minutes in (-1, 1)]
    shop.write(*twice, shop.made(9, "filtered", at=midnight + 1))
    days = [iso(midnight + days * DAY) for days in (-1, 0)]
    for times, outcome in (
        (("--since", days[0], "--until", days[1]), "delivered"),
        (("--since", days[1]), "filtered"),
    ):
        assert [one["outcome"] for one in shop.answered("audit", *times)["counts"]] == [outcome]


def test_what_was_delivered_twice(shop: Receipts) -> None:
    """An event that two requests delivered is named with both, and counts once if it is one record."""
    shop.settled(3)
    of: dict[str, Any] = {"event_id": "event-a"}
    twice = [shop.made(0, request_id=request, **of) for request in ("r1", "r2")]
    shop.write(*twice, shop.made(1, request_id="r1"), shop.made(2, "duplicate", **of))
    found = shop.answered("audit", "--since", "1h")
    assert found["delivered_twice"] == [
        {"event_id": "event-a", "place": f"{shop.orders}:0:0", "first": "r1", "second": "r2"}
    ]
    assert {one["outcome"]: one["records"] for one in found["counts"]} == {"delivered": 2, "duplicate": 1}
    assert "delivered under two request ids: 1 events" in shop.printed("audit", "--since", "1h")


def test_a_topic_that_was_created_again(shop: Receipts) -> None:
    """Offsets of a topic that is gone, or was created again under its name, are not compared, and it says so."""
    shop.write(made("gone:0:1"), shop.made(1, topic_id="of-another-topic-here1"))
    found = shop.answered("audit", "--since", "1h")
    assert (found["not_compared"], found["offsets"]) == (["gone[0]", f"{shop.orders}[0]"], [])
    assert "not compared" in shop.printed("audit", "--since", "1h")


def test_no_receipts_of_that_time(shop: Receipts) -> None:
    """Nothing to add up is exit code 2, as is a time that ends before it begins."""
    for arguments, why in (
        (("--since", "1h"), f"no receipts of the group {GROUP}"),
        (("--since", "1h", "--until", "2h"), "--since must be before --until"),
        (("--since", "yesterday"), "a duration before now, such as 2d"),
    ):
        assert why in shop.refused("audit", *arguments)
