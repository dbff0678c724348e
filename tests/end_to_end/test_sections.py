"""Three record types on one topic, and a second topic with another mapping, in one process: run, replay, redrive."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from consumer.avro.decode import framing_of
from consumer.avro.encode import Encoder
from consumer.engine.model import SchemaRef
from tests.conversion.sections.shop import (
    CLICK,
    MAPPING,
    ORDER,
    REFUND,
    SIGNUP,
    UNION,
    click,
    datum,
    order,
    signup,
)
from tests.end_to_end.records import dead_letters, new_topic, write
from tests.end_to_end.shop import Shop

NUMBER = 60
BRANCHES = {"order": 1, "click": 2, "signup": 3, "refund": 4}
SCHEMAS = {"order": ORDER, "click": CLICK, "signup": SIGNUP, "refund": REFUND}


def events(now: int) -> list[tuple[str, dict[str, Any]]]:
    """Orders, clicks and signups in turn, and one record that no section takes."""
    mixed: list[tuple[str, dict[str, Any]]] = []
    for number in range(NUMBER):
        mixed.append(("order", order(number, at=now * 10**6)))
        mixed.append(("click", click(number, seconds=now)))
        mixed.append(("signup", signup(number, at=now * 1000)))
    return [*mixed, ("refund", {"id": "r-1"})]


def in_union(kind: str, event: dict[str, Any]) -> bytes:
    """The record as a branch of the union, whose schema id is 9."""
    return framing_of(SchemaRef("id", "9")) + bytes((BRANCHES[kind] << 1,)) + datum(SCHEMAS[kind], event)


def with_own_id(kind: str, event: dict[str, Any]) -> bytes:
    """The record with the schema of its type alone, which has another schema id."""
    return Encoder(SCHEMAS[kind], BRANCHES[kind]).encode(event)


def test_three_record_types_and_two_topics(shop: Shop, tmp_path: Path) -> None:
    """Each record is converted by its section, with union or with schema ids; a redrive reads a letter as its
    own topic's."""
    kafka, topic, landing, now = shop.kafka, shop.topic, new_topic(shop.kafka), int(time.time())
    schemas = tmp_path / "schemas"
    schemas.mkdir()
    (schemas / "shop.9.avsc").write_text(json.dumps(UNION))
    for kind, number in BRANCHES.items():
        (schemas / f"{kind}.{number}.avsc").write_text(json.dumps(SCHEMAS[kind]))
    mapping = tmp_path / "mapping.toml"
    mapping.write_text(MAPPING.replace("web.landing", landing))
    mixed = events(now)
    write(kafka, topic, ((str(at).encode(), in_union(*one)) for at, one in enumerate(mixed)))
    write(kafka, topic, [(b"own", with_own_id("order", order(1001, at=now * 10**6)))])
    write(kafka, landing, [(b"c", with_own_id("click", click(1002, seconds=now)))])
    write(kafka, landing, [(b"r", with_own_id("refund", {"id": "r-2"}))])
    shop.env |= {
        "KAFKA_TOPICS": f"{topic},{landing}",
        "PINSTREAM_SCHEMAS_DIR": str(schemas),
        "PINSTREAM_MAPPING_FILE": str(mapping),
    }
    with shop.run() as run:
        ledger = run.until_settled(len(mixed) + 3)
        assert (ledger["delivered"], ledger["dead_lettered"]) == (len(mixed) + 1, 2)
        counts = run.status()["counts"]
    assert counts["by_section"] == {
        "com.shop.Order": {"delivered": NUMBER + 1},
        "com.shop.Click": {"delivered": NUMBER},
        f"com.shop.Click on {landing}": {"delivered": 1},
        "com.shop.Signup": {"delivered": NUMBER},
    }
    assert counts["rejections"] == {"decode": {"unknown_record": 2}}
    by_id = {event["event_id"]: event for event in shop.api.events}
    assert len(by_id) == len(mixed) + 1
    assert {event["event_time"] for event in by_id.values()} == {now}
    assert by_id["o-7"]["custom_data"] == {"currency": "EUR", "value": "59.90"}
    assert by_id["c-7"]["event_source_url"].endswith("?epik=dj0x")
    assert by_id["c-1002"]["event_source_url"].endswith("/b")
    assert by_id["s-7"]["event_name"] == "signup"
    [(_, letter)] = dead_letters(kafka, landing)
    assert "no section of the mapping is for the record type com.shop.Refund" in letter["message"]

    # A replay takes the same sections: all that is delivered is known, the refund would be refused again.
    for more in ((), ("--where", "event_name=signup")):
        dry = shop.replay("--json", "--dry-run", *more)
        found = json.loads(dry.stdout.splitlines()[-1])["ledger"]
        wanted = NUMBER if more else len(mixed)
        assert found["delivered"] + found["duplicate"] == wanted, found

    # The mapping learns of refunds: those of one topic are filtered there; the other's time cannot be read.
    mapping.write_text(MAPPING.replace("web.landing", landing) + _refunds(landing))
    done = shop.command("dead-letters", "redrive", "--topic", topic, "--topic", landing, "--json")
    ledger = json.loads(done.stdout.splitlines()[-1])["ledger"]
    assert (ledger["read"], ledger["filtered"], ledger["dead_lettered"]) == (2, 1, 1), ledger


def _refunds(landing: str) -> str:
    """Sections for refunds: on the landing topic they are not sent."""
    return f"""
[record."com.shop.Refund".fields]
event_time = "id"
event_name = "id"
[record."com.shop.Refund".event_names]
"r-1" = "custom"
[record."com.shop.Refund".topic."{landing}".event_names]
"r-2" = "!filter"
"""
