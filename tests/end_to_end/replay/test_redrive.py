"""``pinstream dead-letters redrive`` end to end: events go straight to the platform, and each letter is marked
when it is settled."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from consumer.engine.model import Stage
from tests.end_to_end.api import Api
from tests.end_to_end.processes import last_error
from tests.end_to_end.records import ENCODER, commerce_event, records_on, write
from tests.end_to_end.replay.redriving import (
    LetterShop,
    NewLetterShop,
    asked,
    committed,
    event_ids,
    headers_of,
    kafka_environment,
    letter,
)
from tests.support.kafka.harness import Kafka
from tests.support.limits import LATE


@pytest.fixture
def shop_type() -> type[LetterShop]:
    """Shops with dead letters."""
    return LetterShop


@pytest.fixture
def each_shop(each_kafka: Kafka, api: Api, tmp_path: Path) -> LetterShop:
    """One on each kind of broker."""
    return LetterShop(each_kafka, api, tmp_path)


def test_delivered_marked_and_its_topic_left_alone(each_shop: LetterShop) -> None:
    """Each letter's event is delivered once; its source topic gets nothing; a second redrive finds nothing to
    do. A dry run before says the same, needs nothing but Kafka, and sends nothing."""
    shop = each_shop
    shop.bury_many(300)
    bare = kafka_environment(shop.folder, shop.kafka, shop.topic, shop.group)
    said = asked("redrive", "--dry-run", env=bare)
    assert (said["redriven"], shop.api.calls) == (300, 0)
    did = shop.redrive()
    assert did == {**said, "dry_run": False, "ledger": did["ledger"]}
    assert (did["matched"], did["redriven"], did["left"]) == (300, 300, 0)
    assert (did["ledger"]["read"], did["ledger"]["delivered"]) == (300, 300)
    assert shop.api.accepted() == event_ids(300)
    assert records_on(shop.kafka, shop.topic) == 0
    again = shop.redrive()
    assert (again["done_before"], again["ledger"]["read"]) == (300, 0)
    assert shop.counted() == (0, 300)


def test_sources_in_kafka_are_the_origin_s(shop: LetterShop) -> None:
    """A record dies under a wrong mapping; redriven under the right one, its key, headers, time, topic, partition and
    offset are those that it had, not the letter's."""
    ahead = [commerce_event(f"ahead-{number}") for number in range(3)]
    values = [ENCODER.encode(one) for one in (*ahead, commerce_event("died", event_type="sold"))]
    at = int(time.time() * 1000) - 60_000
    headers = [("ce_source", b"till"), ("pinstream.code", b"own")]
    keyed = ((b"c-7", one) for one in values)
    write(shop.kafka, shop.topic, keyed, partition=2, timestamp=at, headers=headers)
    assert shop.serve(4)["dead_lettered"] == 1
    mapping = shop.folder / "m.toml"
    mapping.write_text(
        '[event_names]\nsold = "checkout"\n[fields]\n"app_info.install_time" = "@timestamp"\n'
        '"custom_data.content_name" = { join = ["@topic", "@partition", "@offset", "@key", "@header.ce_source"], '
        'with = "/" }\n'
    )
    assert shop.redrive(PINSTREAM_MAPPING_FILE=str(mapping))["ledger"]["delivered"] == 1
    [sent] = [one for one in shop.api.events if one["event_id"] == "died"]
    assert sent["custom_data"]["content_name"] == f"{shop.topic}/2/3/c-7/till"
    assert sent["app_info"]["install_time"] == at // 1000


@pytest.mark.real_kafka
def test_what_dies_again_is_a_letter_of_its_origin(shop: LetterShop) -> None:
    """A new letter has one more trip, the original place, time and headers; after three trips a redrive leaves it."""
    topic = shop.topic
    own = (("own", b"1"), ("own", None))
    broken = ENCODER.encode(commerce_event("old", occurred_at=10**12))
    again = letter(topic, 5, value=broken, headers=own, stage=Stage.DELIVER, code="refused")
    shop.bury([letter(topic, 0), again])
    for trip in range(1, 5):
        counts = shop.redrive()
        expected = (1 if trip > 1 else 2, 0) if trip <= 3 else (0, 1)
        assert (counts["redriven"], counts["looped"]) == expected
        assert counts["ledger"]["dead_lettered"] == (1 if trip <= 3 else 0)
    found = [one for one in committed(shop.kafka, f"{topic}.dead-letters") if one.value() == broken]
    assert {one.partition() for one in found} == {1}
    headers = [headers_of(one) for one in found]
    texts: list[dict[str, Any]] = [dict(one) for one in headers]
    assert [one.get("pinstream.trips") for one in texts] == [None, b"1", b"2", b"3"]
    assert [one["pinstream.code"] for one in texts] == [b"refused", b"expired", b"expired", b"expired"]
    for one in texts:
        assert one["pinstream.topic"] == topic.encode()
        assert (one["pinstream.partition"], one["pinstream.offset"]) == (b"1", b"5")
        assert one["pinstream.timestamp"] == texts[0]["pinstream.timestamp"]
    assert [one for one in headers[3] if not one[0].startswith("pinstream.")] == [*own]
    assert len(headers[3]) == 2 + 9 + 2, "nothing piles up"
    assert texts[1]["pinstream.redriven"] == f"{topic}.dead-letters:1:0".encode()
    assert "redriven too often already" in shop.command("dead-letters", "redrive").stdout
    assert shop.redrive("--max-trips", "4")["redriven"] == 1


@pytest.mark.real_kafka
def test_interrupted_it_says_how_far_it_is(new_shop: NewLetterShop) -> None:
    """Letters that are settled are marked, one line says that it can be run again, exit code 1; the rest
    follows the next time."""
    shop = new_shop(PINSTREAM_BATCH_EVENTS="10")
    shop.bury_many(400)
    with shop.begin("--rate", "100/s", "--json") as process:
        process.until(lambda: shop.api.calls > 5, "calls")
        code, seconds = process.stop(signal.SIGINT)
        document = json.loads(process.stdout.splitlines()[-1])
        assert "run it again to go on" in last_error(process.stderr)
    assert (code, document["result"], seconds < LATE) == (1, "interrupted", True)
    assert document["redriven"] == len(shop.api.accepted()) < 400
    assert document["redriven"] + document["left"] == 400
    rest = shop.redrive()
    assert (rest["done_before"], rest["left"], rest["ledger"]["duplicate"]) == (document["redriven"], 0, 0)
    assert shop.api.accepted() == event_ids(400)


@pytest.mark.real_kafka
def test_two_at_once(new_shop: NewLetterShop) -> None:
    """The second redrive takes over; the first ends with one clear line and exit code 1. Each letter is
    delivered; only what the first sent before it noticed may be sent twice."""
    shop = new_shop(PINSTREAM_BATCH_EVENTS="10", PINSTREAM_CONCURRENCY="2")
    # So many that the first is not done by itself before the second has started, however slow the machine is.
    count = 3_000
    shop.bury_many(count)
    with shop.begin("--rate", "50/s") as first:
        # For three seconds: it marks what is done each second, and the second one is soon there.
        first.until(lambda: shop.api.calls > 15, "calls")
        second = shop.redrive()
        assert first.wait() == 1
        assert "another redrive" in last_error(first.stderr)
        assert "redriven" in first.stdout
    assert second["left"] == 0
    assert second["done_before"] > 0
    assert second["done_before"] + second["redriven"] == count
    accepted = shop.api.accepted()
    assert accepted.keys() == event_ids(count).keys()
    in_flight, until_the_next_mark = 2 * 10, 50
    assert accepted.total() - count <= in_flight + until_the_next_mark
    assert shop.counted() == (0, count)


@pytest.mark.real_kafka
def test_a_wrong_mapping_does_not_kill_all_letters_again(new_shop: NewLetterShop) -> None:
    """The dead-letter guard works here, too: the redrive stops and says why."""
    shop = new_shop(PINSTREAM_DEAD_LETTER_SAMPLE="50")
    shop.bury_many(200, value=ENCODER.encode(commerce_event("x", event_type="odd")))
    done = shop.command("dead-letters", "redrive", code=1)
    assert "would be dead letters, mostly for" in last_error(done.stderr)
    assert shop.counted()[0] >= 150
