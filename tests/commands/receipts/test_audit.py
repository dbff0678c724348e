"""``pinstream audit``: the ledger of a group from its receipts, and whether it adds up against the topics."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from confluent_kafka import Producer

from consumer.adapters.kafka.letters import Done
from consumer.commands.audit import _compare
from consumer.commands.receipts import RANKED, FoundReceipt, keep
from consumer.settings import load
from tests.commands.receipts.making import GROUP, NOW, answered, environment, made, write_receipts
from tests.end_to_end.processes import command, the_one_line
from tests.support.kafka.harness import WITHIN, Kafka, commit, create_topic, produce, unique

DAY = 86_400_000


def day_of(milliseconds: int) -> str:
    """Return the day in UTC."""
    return str(datetime.fromtimestamp(milliseconds / 1000, UTC).date())


def audited(*arguments: str, env: dict[str, str], code: int = 0) -> dict[str, Any]:
    """Return the document of an audit of the last days."""
    return answered("audit", "--since", "3d", *arguments, env=env, code=code)


def write_records(kafka: Kafka, topic: str, *numbers: int) -> None:
    """Write transactions of these numbers of records; each ends with a marker, which takes an offset."""
    producer = Producer({**kafka.config, "transactional.id": unique("shop"), "log_level": 0})
    producer.init_transactions(WITHIN)
    for number in numbers:
        producer.begin_transaction()
        for one in range(number):
            producer.produce(topic, b"%d" % one, partition=0)
        producer.commit_transaction(WITHIN)


def test_the_ledger_over_restarts(kafka: Kafka, tmp_path: Path) -> None:
    """Of many receipts of a record the one that counts is in the ledger, on its day; so the ledger is that of the
    records, whatever was read again. Other groups and destinations are not in it; members are counted."""
    receipts, orders = create_topic(kafka, 3), create_topic(kafka, 2)
    chance, counting, written = random.Random(3), dict[Any, FoundReceipt](), list[FoundReceipt]()
    for partition in range(2):
        produce(kafka, orders, [b"x"] * 300, partition=partition)
        commit(kafka, GROUP, orders, 300, partition)
        for offset in range(300):
            for at in sorted(chance.sample(range(NOW - 2 * DAY, NOW), chance.choice((1, 1, 2, 3)))):
                outcome, member = chance.choice(RANKED), f"m{chance.randrange(5)}"
                written.append(made(f"{orders}:{partition}:{offset}", outcome, at=at, member=member))
                keep(counting, written[-1])
    others = [
        made(f"{orders}:0:1", group="another"),
        made(f"{orders}:0:1", destination="a sandbox"),
        made(f"{orders}:0:2", by="replay", at=NOW - 2 * DAY),
        made(f"{orders}.dead-letters:0:0", by="redrive", origin=f"{orders}:0:3"),
    ]
    write_receipts(kafka, receipts, [*written, *others])
    found = audited(env=environment(tmp_path, kafka, receipts))
    counts = Counter[tuple[str, str]]()
    for one in counting.values():
        counts[day_of(one["at"]), one["outcome"]] += 1
    run = {(one["day"], one["outcome"]): one["records"] for one in found["counts"] if one["by"] == "run"}
    assert run == dict(counts)
    assert sum(run.values()) == 600
    assert [(one["by"], one["topic"], one["records"]) for one in found["counts"] if one["by"] != "run"] == [
        ("redrive", f"{orders}.dead-letters", 1),
        ("replay", orders, 1),
    ]
    assert found["members"] == 6  # five of the group's, and the one of the other commands
    assert [one["records"] for one in found["offsets"]] == [300, 300]
    assert found["without_receipt"] == []


def test_it_is_compared_with_the_topic(kafka: Kafka, tmp_path: Path) -> None:
    """Offsets without a receipt are markers of transactions, open records, or records that lack theirs: then the exit
    code is 1, and they are named."""
    receipts, orders = create_topic(kafka), create_topic(kafka)
    write_records(kafka, orders, 3, 4, 3)  # markers at 3, 8 and 12
    commit(kafka, GROUP, orders, 10)
    write_receipts(kafka, receipts, [made(f"{orders}:0:{one}") for one in (0, 1, 2, 4, 6, 7, 9, 11)])
    env = environment(tmp_path, kafka, receipts)
    found = audited(env=env, code=1)
    assert found["offsets"] == [
        {
            "topic": orders,
            "partition": 0,
            "first": 0,
            "last": 11,
            "records": 8,
            "removed": 0,
            "no_record": 2,
            "open": 1,
            "without_receipt": 1,
        }
    ]
    assert found["without_receipt"] == [f"{orders}:0:5"]
    done = command("audit", "--since", "1h", env=env)
    assert f"1 records are settled and have no receipt: {orders}:0:5" in done.stdout
    write_receipts(kafka, receipts, [made(f"{orders}:0:5", "filtered")])
    done = command("audit", "--since", "1h", env=env)
    assert (done.returncode, "It adds up" in done.stdout) == (0, True)


def test_receipts_of_another_time_fill_gaps(kafka: Kafka, tmp_path: Path) -> None:
    """A record that was settled before or after the time has its receipt, and is not counted in it."""
    receipts, orders = create_topic(kafka), create_topic(kafka)
    produce(kafka, orders, [b"x"] * 5)
    commit(kafka, GROUP, orders, 5)
    since = NOW - 3_600_000
    times = {0: since, 1: since - 60_000, 2: since + 1, 3: since + 600_000, 4: since + 2}
    write_receipts(kafka, receipts, [made(f"{orders}:0:{offset}", at=at) for offset, at in times.items()])
    begin, end = (datetime.fromtimestamp(one / 1000, UTC).isoformat() for one in (since, since + 60_000))
    found = answered("audit", "--since", begin, "--until", end, env=environment(tmp_path, kafka, receipts))
    assert [one["records"] for one in found["counts"]] == [3]
    assert [(one["first"], one["last"], one["no_record"]) for one in found["offsets"]] == [(0, 4, 0)]


def test_a_record_that_settles_while_the_receipts_are_read(kafka: Kafka, tmp_path: Path) -> None:
    """It was open when they were read: its receipt came later, so it is not named as one without."""
    receipts, orders = create_topic(kafka), create_topic(kafka)
    produce(kafka, orders, [b"x"] * 4)
    commit(kafka, GROUP, orders, 4)
    write_receipts(kafka, receipts, [made(f"{orders}:0:{offset}") for offset in (0, 2, 3)])
    settings = load(environment(tmp_path, kafka, receipts), needs=("kafka",))
    read = Done()
    read.add([(0, 1), (3, 4)])  # offset 1 has no receipt at all, that of 2 was not there yet
    log = "run", orders, "", 0
    found = asyncio.run(_compare(settings, (GROUP, "pinterest"), {log: read}, {log: (0, 3)}, NOW))
    assert found["without_receipt"] == [f"{orders}:0:1"]
    assert [(one["open"], one["without_receipt"]) for one in found["offsets"]] == [(1, 1)]


def test_a_record_counts_on_its_first_day(kafka: Kafka, tmp_path: Path) -> None:
    """A record that was delivered before and after the end of the time, or its beginning, is in one of two audits."""
    receipts, orders = create_topic(kafka), create_topic(kafka)
    produce(kafka, orders, [b"x"])
    commit(kafka, GROUP, orders, 1)
    midnight = NOW - NOW % DAY
    twice = [made(f"{orders}:0:0", at=midnight + minutes * 60_000) for minutes in (-1, 1)]
    write_receipts(kafka, receipts, [*twice, made(f"{orders}:0:9", "filtered", at=midnight + 1)])
    env = environment(tmp_path, kafka, receipts)
    days = [str(datetime.fromtimestamp((midnight + days * DAY) / 1000, UTC).date()) for days in (-1, 0)]
    first = answered("audit", "--since", days[0], "--until", days[1], env=env)
    second = answered("audit", "--since", days[1], env=env)
    assert [[one["outcome"] for one in found["counts"]] for found in (first, second)] == [
        ["delivered"],
        ["filtered"],
    ]


def test_what_was_delivered_twice(kafka: Kafka, tmp_path: Path) -> None:
    """An event that two requests delivered is named with both, and counts once if it is one record."""
    receipts, orders = create_topic(kafka), create_topic(kafka)
    produce(kafka, orders, [b"x"] * 3)
    of = {"event_id": "event-a"}
    made_ones = [
        made(f"{orders}:0:0", request_id="r1", **of),
        made(f"{orders}:0:0", request_id="r2", **of),
        made(f"{orders}:0:1", request_id="r1"),
        made(f"{orders}:0:2", "duplicate", **of),
    ]
    write_receipts(kafka, receipts, made_ones)
    env = environment(tmp_path, kafka, receipts)
    found = audited(env=env)
    assert found["delivered_twice"] == [
        {"event_id": "event-a", "place": f"{orders}:0:0", "first": "r1", "second": "r2"}
    ]
    assert {one["outcome"]: one["records"] for one in found["counts"]} == {"delivered": 2, "duplicate": 1}
    assert "delivered under two request ids: 1 events" in command("audit", "--since", "1h", env=env).stdout


def test_a_topic_that_was_created_again(kafka: Kafka, tmp_path: Path) -> None:
    """Offsets of a topic that is gone, or was created again under its name, are not compared, and it says so."""
    receipts, orders = create_topic(kafka), create_topic(kafka)
    write_receipts(
        kafka, receipts, [made("gone:0:1"), made(f"{orders}:0:1", topic_id="of-another-topic-here1")]
    )
    env = environment(tmp_path, kafka, receipts)
    found = audited(env=env)
    assert (found["not_compared"], found["offsets"]) == (["gone[0]", f"{orders}[0]"], [])
    assert "not compared" in command("audit", "--since", "1h", env=env).stdout


def test_no_receipts_of_that_time(kafka: Kafka, tmp_path: Path) -> None:
    """Nothing to add up is exit code 2, as is a time that ends before it begins."""
    topic = create_topic(kafka)
    env = environment(tmp_path, kafka, topic)
    for arguments, why in (
        (("--since", "1h"), f"no receipts of the group {GROUP}"),
        (("--since", "1h", "--until", "2h"), "--since must be before --until"),
        (("--since", "yesterday"), "a duration before now, such as 2d"),
    ):
        done = command("audit", *arguments, env=env)
        assert (done.returncode, why in the_one_line(done.stderr)) == (2, True)
