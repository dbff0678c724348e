"""Receipts from processes on a broker: each record has one, it says what the API says, and it waits out an outage."""

from __future__ import annotations

from collections import Counter
from decimal import Decimal
from typing import Any

import pytest
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # public, but the package marks no re-export
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
    ResourceType,
)

from tests.end_to_end.api import Loop, Registry
from tests.end_to_end.processes import ACCOUNT, ROOT
from tests.end_to_end.records import commerce_event, receipts_on, write
from tests.end_to_end.shop import NewShop, Shop
from tests.end_to_end.test_personal_data import EMAIL, OF_A_PERSON, EchoingApi, found_in, marked_records
from tests.support.kafka.harness import WITHIN, Kafka, create_topic, read_all

pytestmark = pytest.mark.real_kafka

OUTCOMES = ("delivered", "duplicate", "filtered", "dead_lettered")
FILTER = '[event_names]\nproduct_viewed = "!filter"\n'


@pytest.fixture
def new_shop(new_shop: NewShop) -> NewShop:
    """Shops whose services write receipts."""

    def make(**settings: str) -> Shop:
        shop = new_shop(**settings)
        shop.env["PINSTREAM_RECEIPTS_TOPIC"] = receipts_of(shop)
        return shop

    return make


@pytest.fixture
def shop(new_shop: NewShop) -> Shop:
    """One without settings of its own."""
    return new_shop()


def receipts_of(shop: Shop) -> str:
    """The topic of its receipts."""
    return f"{shop.topic}.receipts"


def tally(receipts: list[dict[str, Any]]) -> dict[str, int]:
    """How many receipts there are of each outcome."""
    found = Counter(one["outcome"] for one in receipts)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def test_each_record_has_a_receipt_that_says_what_became_of_it(new_shop: NewShop) -> None:
    """Of a shop with duplicates, filtered and broken events, through batches that are divided: exactly one receipt for
    each record, outcomes as the ledger counts them, ids and values as the API has them. A second run after a stop in
    order writes none again."""
    shop = new_shop(PINSTREAM_BATCH_EVENTS="50")
    kafka, api = shop.kafka, shop.api
    mapping = shop.folder / "mapping.toml"
    mapping.write_text(FILTER)
    shop.env["PINSTREAM_MAPPING_FILE"] = str(mapping)
    shop.generate(800, seed=5, duplicates=0.1, invalid=0.05)
    ledger = shop.serve(800)
    receipts = receipts_on(kafka, receipts_of(shop))
    places = {(one["topic"], one["partition"], one["offset"]) for one in receipts}
    assert len(receipts) == len(places) == 800
    assert tally(receipts) == {outcome: ledger[outcome] for outcome in OUTCOMES}
    assert min(ledger[outcome] for outcome in OUTCOMES) > 0
    delivered = [one for one in receipts if one["outcome"] == "delivered"]
    assert Counter(one["event_id"] for one in delivered) == api.accepted()
    assert sum(Decimal(one["value"] or 0) for one in delivered) == api.counts().value_sum
    assert {(one["by"], one["group"], one["test"]) for one in receipts} == {("run", shop.group, False)}
    assert {(one["http_status"], one["attempts"], one["ad_account"]) for one in delivered} == {
        (200, 1, ACCOUNT)
    }
    assert all(one["request_id"] and one["answered_at"] >= one["event_time"] for one in delivered)
    # Also of what was not sent the ids are there, if they can be read.
    filtered = [one for one in receipts if one["outcome"] == "filtered"]
    assert all(one["event_id"] and one["code"] == "event_name" for one in filtered)
    letters = {
        (one["partition"], one["offset"]): one["code"]
        for one in receipts
        if one["outcome"] == "dead_lettered"
    }
    assert letters == {(int(of["partition"]), int(of["offset"])): of["code"] for _, of in shop.letters}
    shop.write_orders(1)
    shop.serve(1)
    assert len(receipts_on(kafka, receipts_of(shop))) == 801


def test_a_replay_and_a_redrive_write_receipts_and_a_dry_run_none(shop: Shop) -> None:
    """They say who decided. A redrive's is of the letter, and names the record that died."""
    topic, on = shop.topic, receipts_of(shop)
    broken = commerce_event("broken", order={"order_id": "o-2", "currency": "XXX", "total": "1", "items": []})
    shop.write(commerce_event("fine"), broken)
    shop.replay("--dry-run")
    assert receipts_on(shop.kafka, on) == []
    shop.serve(2)
    shop.replay()
    mapping = shop.folder / "mapping.toml"
    mapping.write_text('[constants]\n"custom_data.currency" = "EUR"\n[fields]\n"custom_data.currency" = ""\n')
    shop.env["PINSTREAM_MAPPING_FILE"] = str(mapping)
    redrive = ("dead-letters", "redrive", "--topic", topic)
    shop.command(*redrive, "--dry-run")
    assert len(receipts_on(shop.kafka, on)) == 4
    shop.command(*redrive)
    receipts = receipts_on(shop.kafka, on)
    said = Counter((one["by"], one["outcome"], one["event_id"]) for one in receipts)
    # The replay found the broken one again, and wrote a second letter.
    assert said == {
        ("run", "delivered", "fine"): 1,
        ("run", "dead_lettered", "broken"): 1,
        ("replay", "duplicate", "fine"): 1,
        ("replay", "dead_lettered", "broken"): 1,
        ("redrive", "delivered", "broken"): 1,
        ("redrive", "duplicate", "broken"): 1,
    }
    [origin] = {one["origin"] for one in receipts if one["by"] == "redrive"}
    [place] = {
        (one["topic"], one["partition"], one["offset"])
        for one in receipts
        if one["outcome"] == "dead_lettered"
    }
    assert origin == "{}:{}:{}".format(*place)
    assert {one["topic"] for one in receipts if one["by"] == "redrive"} == {f"{topic}.dead-letters"}
    assert {one["order_id"] for one in receipts if one["event_id"] == "broken"} == {"o-2"}
    refused = shop.command("replay", "--topic", on, "--from", "beginning", "--to", "end", code=2)
    assert "holds receipts" in refused.stderr


def test_a_pattern_does_not_read_receipts(shop: Shop) -> None:
    """A pattern that matches the receipts topic omits it; that topic by its name is refused."""
    shop.write_orders(1)
    create_topic(shop.kafka, 1, receipts_of(shop))
    pattern = {"KAFKA_TOPICS": f"^{shop.topic}.*"}
    assert shop.serve(1, **pattern)["read"] == 1
    shop.write(commerce_event("another"))
    assert shop.serve(1, **pattern)["read"] == 1
    refused = shop.command("run", KAFKA_TOPICS=f"{shop.topic},{receipts_of(shop)}", code=2)
    assert "receipts would be read as events" in refused.stderr


def test_a_topic_that_cannot_be_written_is_an_outage(new_shop: NewShop) -> None:
    """Sending stops once what is at risk has no receipt; nothing is committed, no key is stored, /readyz names the
    topic. Once it takes receipts, all is delivered that was not, once."""
    shop = new_shop(PINSTREAM_BATCH_EVENTS="20", PINSTREAM_CONCURRENCY="4")
    kafka, on = shop.kafka, create_topic(shop.kafka, 1, receipts_of(shop), max_message_bytes="100")
    expected = shop.write_orders(600)
    with shop.run() as process:
        process.until(
            lambda: process.get("/readyz")[0] == 503 and on in process.get("/readyz")[1], "the outage"
        )
        process.until(lambda: "receipts_not_stored" in {line["event"] for line in process.log}, "the line")
        assert 0 < shop.api.counts().accepted_events <= 80
        assert shop.committed == 0
        assert process.ledger()["delivered"] == 0
        resource = ConfigResource(ResourceType.TOPIC, on)
        resource.add_incremental_config(
            ConfigEntry("max.message.bytes", "100000", incremental_operation=AlterConfigOpType.SET)
        )
        admin = AdminClient(kafka.config)
        admin.incremental_alter_configs([resource])[resource].result(WITHIN)
        assert process.until_settled(600)["delivered"] == 600
        assert process.get("/readyz")[0] == 200
    assert shop.api.accepted() == expected
    assert {one["event_id"] for one in receipts_on(kafka, on)} == expected.keys()


def test_nothing_of_a_person_is_in_receipts(kafka: Kafka, servers: Loop, new_shop: NewShop) -> None:
    """Neither in values nor in keys, hashed or not, whatever records hold and the API echoes."""
    server, values = EchoingApi(), marked_records()
    shop = new_shop(PINSTREAM_BATCH_EVENTS="8", PINSTREAM_DEAD_LETTER_SHARE="1")
    keyed = ((EMAIL.encode(), value) for value in values)
    write(kafka, shop.topic, keyed, headers=[("shop-note", EMAIL.encode())])
    on = receipts_of(shop)
    shop.serve(len(values), PINTEREST_API_URL=servers.call(server.start()))
    servers.call(server.stop())
    messages = read_all(kafka, on, len(values))
    text = b"\n".join((one.key() or b"") + (one.value() or b"") for one in messages).decode(
        "utf-8", "replace"
    )
    assert found_in(text, OF_A_PERSON) == []
    assert tally(receipts_on(kafka, on))["delivered"] == len(server.delivered)


def test_with_a_registry_and_workers(shop: Shop, registry: Registry) -> None:
    """Each worker registers the schema, which is one, and their receipts name its id."""
    expected = shop.write_orders(200)
    with shop.run(
        "--workers", "2", SCHEMA_REGISTRY_URL=registry.url, PINSTREAM_SCHEMAS_DIR=str(ROOT / "schemas")
    ) as process:
        assert process.until_settled(200)["delivered"] == 200
    assert any(f"{receipts_of(shop)}-value" in path for path in registry.requests)
    messages = read_all(shop.kafka, receipts_of(shop), 200)
    assert {(one.value() or b"")[:5] for one in messages} == {b"\0\0\0\0\1"}
    assert {one["event_id"] for one in receipts_on(shop.kafka, receipts_of(shop))} == expected.keys()
