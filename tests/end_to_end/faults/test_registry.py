"""The registry is ill or lacks a schema: known ids go on, unknown ones wait, and only "no such schema", said for long,
is final for a record.

Records are in Confluent's wire format (``00``, an id of four bytes, Avro), on one partition unless said otherwise, so
that what waits stands in the way of the commit. The registry is a process of ours that can be down and come back.
"""

from __future__ import annotations

import copy
import time
from functools import partial
from hashlib import sha256
from typing import Any

import pytest

from consumer.avro.encode import Encoder
from tests.end_to_end.api import Api, Registry
from tests.end_to_end.processes import Process, quick_group
from tests.end_to_end.records import ENCODER, SCHEMA, commerce_event, write
from tests.end_to_end.shop import NewShop, Shop

SUBJECT = "orders-value"


@pytest.fixture
def new_shop(new_shop: NewShop, registry: Registry) -> NewShop:
    """Shops of one partition that read their schemas from the registry."""
    return partial(new_shop, partitions=1, SCHEMA_REGISTRY_URL=registry.url)


def version(number: int) -> dict[str, Any]:
    """Another version of the schema: it can be read, but its text differs, and so does its id."""
    schema = copy.deepcopy(SCHEMA)
    field = {"name": f"added_{number}", "type": ["null", "string"], "default": None}
    schema["fields"].append(field)
    return schema


def complaints(process: Process) -> list[str]:
    """Why a schema could not be fetched, for each such log line."""
    return [line["reason"] for line in process.log if line.get("event") == "schema_unavailable"]


def test_down_later(new_shop: NewShop, registry: Registry) -> None:
    """What was learnt stays known. A new id waits in the midst, for long, and nothing behind it is committed.

    A restart meanwhile changes nothing: what was delivered behind the one that waits is not sent again.
    """
    known, new = registry.add(SUBJECT, SCHEMA), registry.add(SUBJECT, version(1))
    shop = new_shop()
    shop.write_registered(known, "before-1", "before-2")
    with shop.run() as process:
        process.until(lambda: shop.committed == 2, "the known id")
        registry.down()
        shop.write_registered(known, "known-2")
        shop.write_registered(new, "waits-3", schema=version(1))
        shop.write_registered(known, "known-4", "known-5")
        process.until(lambda: len(shop.api.accepted()) == 5, "the known id, behind the one that waits")
        process.until(lambda: len(complaints(process)) > 1, "a second question")
        process.until(lambda: shop.committed == 3, "the commit up to what waits")
        assert process.ledger()["open"] == 1
    assert shop.committed == 3
    # The next one knows no schema at all, and needs none for what the offset map has.
    with shop.run() as process:
        process.until(
            lambda: process.ledger()["open"] == 1 and complaints(process), "all that is left to wait"
        )
        assert process.status()["passed_over"] == 2
        registry.up()
        process.until(lambda: shop.committed == 6, "all of it")
    ids = [path.rpartition("/")[2] for path in registry.requests]
    assert sorted(ids) == [str(known), str(new)]
    sent = ("before-1", "before-2", "known-2", "waits-3", "known-4", "known-5")
    assert shop.api.accepted() == dict.fromkeys(sent, 1)
    assert shop.reasons == []


KEY_MAPPING = '[fields]\n"user_data.external_id" = "@key.customer"\n'
KEY = {"type": "record", "name": "Key", "fields": [{"name": "customer", "type": "string"}]}


def test_down_when_it_starts_and_killed_while_keys_wait(new_shop: NewShop, registry: Registry) -> None:
    """Where the mapping reads a key that has a schema, its records wait for that schema, also over a kill: nothing is
    committed past them, and each is then delivered once, with what its key says."""
    encoder = Encoder(KEY, registry.add("orders-key", KEY))
    registry.down()
    shop = new_shop()
    mapping = shop.folder / "m.toml"
    mapping.write_text(KEY_MAPPING)
    shop.env |= {"PINSTREAM_MAPPING_FILE": str(mapping), **quick_group(shop.kafka)}
    keyed = {f"keyed-{number}": encoder.encode({"customer": f"c-{number}"}) for number in range(20)}
    write(
        shop.kafka, shop.topic, ((key, ENCODER.encode(commerce_event(name))) for name, key in keyed.items())
    )
    shop.write(commerce_event("no-key"))
    for end in (Process.kill, Process.stop):
        with shop.run() as process:
            process.until(lambda: complaints(process), "the first question")
            process.until(lambda: shop.api.accepted(), "what has no key")
            process.until(lambda: process.ledger()["open"] == 20, "its answer")
            if end is Process.stop:
                registry.up()
                process.until(lambda: shop.committed == 21, "all of it")
            assert shop.committed == (21 if end is Process.stop else 0)
            end(process)
    assert shop.api.accepted() == dict.fromkeys((*keyed, "no-key"), 1)
    assert shop.reasons == []
    sent = {one["event_id"]: one["user_data"].get("external_id") for one in shop.api.events}
    digests = {f"keyed-{number}": [sha256(f"c-{number}".encode()).hexdigest()] for number in range(20)}
    assert sent == {**digests, "no-key": None}


def asked(registry: Registry, schema_id: int, times: int) -> bool:
    """Whether the registry was asked `times` times for this schema."""
    return registry.requests.count(f"/schemas/ids/{schema_id}") >= times


def accepted(api: Api, event_id: str) -> bool:
    """Whether the API accepted this event."""
    return event_id in api.accepted()


MISMATCHED: dict[str, Any] = {
    "type": "record",
    "name": "commerce.v1.CommerceEvent",
    "fields": [{"name": "event_id", "type": "long"}],
}
"""A schema whose event id is no text, and which lacks the fields that ours needs."""


def test_verdicts_are_final_and_hold_up_nobody(new_shop: NewShop, registry: Registry) -> None:
    """No such schema, one that does not fit ours, one that is not Avro: dead letters with their code.

    The last two are asked for once; the first is asked for throughout the patience.

    The records around them are delivered, also those of a version that does fit.
    """
    fits, later = registry.add(SUBJECT, SCHEMA), registry.add(SUBJECT, version(1))
    mismatched, strange = registry.add(SUBJECT, MISMATCHED), registry.add(SUBJECT, {"type": "object"})
    shop = new_shop(PINSTREAM_SCHEMA_PATIENCE="1s")
    shop.write_registered(fits, "fits-0")
    shop.write_registered(4711, "nobody-1")
    with shop.run() as process:
        process.until_settled(2)
        shop.write_registered(later, "fits-2", schema=version(1))
        write_raw(shop, mismatched, b"\x02")
        shop.write_registered(strange, "strange-4")
        write_raw(shop, 4711, b"again")
        shop.write_registered(fits, "fits-6")
        ledger = process.until_settled(7)
        assert (ledger["delivered"], ledger["dead_lettered"]) == (3, 4)
        process.until(lambda: shop.committed == 7, "the commit")
    assert shop.api.accepted() == {"fits-0": 1, "fits-2": 1, "fits-6": 1}
    assert shop.reasons == [
        (1, "decode", "no_such_schema"),
        (3, "decode", "incompatible_schema"),
        (4, "decode", "incompatible_schema"),
        (5, "decode", "no_such_schema"),
    ]
    ids = [path.rpartition("/")[2] for path in registry.requests]
    assert ids.count("4711") > 2
    assert sorted(one for one in ids if one != "4711") == sorted(map(str, (fits, later, mismatched, strange)))
    assert complaints(process) == []


def test_a_schema_later_than_patience_heals_without_a_restart(new_shop: NewShop, registry: Registry) -> None:
    """A record that waited for that long becomes a dead letter; records that come once the schema is there are
    delivered."""
    known = registry.add(SUBJECT, SCHEMA)
    shop = new_shop(PINSTREAM_SCHEMA_PATIENCE="1s")
    shop.write_registered(known + 1, "early", schema=version(1))
    with shop.run() as process:
        process.until(lambda: shop.committed == 1, "the dead letter")
        assert registry.add(SUBJECT, version(1)) == known + 1
        shop.write_registered(known + 1, "late-1", "late-2", schema=version(1))
        assert process.until_settled(3)["delivered"] == 2
    assert shop.reasons == [(0, "decode", "no_such_schema")]
    assert shop.api.accepted() == {"late-1": 1, "late-2": 1}


def test_made_up_ids_cost_few_questions(new_shop: NewShop, registry: Registry) -> None:
    """A flood of records, each with another id: the registry is asked at an even rate, and not at all once the
    guard has tripped."""
    known = registry.add(SUBJECT, SCHEMA)
    shop = new_shop(PINSTREAM_SCHEMA_PATIENCE="1s", PINSTREAM_DEAD_LETTER_SAMPLE="100")
    values = [(None, b"\x00" + number.to_bytes(4, "big") + b"x") for number in range(10_000, 12_000)]
    write(shop.kafka, shop.topic, values)
    shop.write_registered(known, "behind")
    with shop.run() as process:
        begun = time.monotonic()
        process.until(lambda: accepted(shop.api, "behind"), "the known id, behind all of them", within=10.0)
        process.until_logged("dead_letter_guard")
        questions, seconds = len(registry.requests), time.monotonic() - begun
        assert questions <= 2.5 * 20 + seconds * 20 + 8
        process.until(lambda: process.get("/readyz")[0] == 503, "the guard's word")
        settled = len(registry.requests)
        process.until_logged("dead_letter_guard")
        assert len(process.status()["open"]["schemas"]) == 20
        assert len(registry.requests) <= settled + 8
    assert len(shop.reasons) <= 100


def write_raw(shop: Shop, schema_id: int, datum: bytes) -> None:
    """Write one record in Confluent's wire format with any datum."""
    write(shop.kafka, shop.topic, [(None, b"\x00" + schema_id.to_bytes(4, "big") + datum)])
