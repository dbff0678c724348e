"""A record whose header names no client can read stops nothing, and is delivered or stored like any other."""

from __future__ import annotations

import pytest

from tests.end_to_end.records import ENCODER, commerce_event
from tests.end_to_end.shop import NewShop
from tests.support.kafka.raw import produce_raw

pytestmark = pytest.mark.real_kafka  # the embedded broker takes no record that librdkafka did not write

BAD = [(b"\xff\xfe", b"1"), (b"fine", b"2")]


def test_it_stops_nothing(new_shop: NewShop) -> None:
    """Good records are delivered; a broken one becomes a dead letter that says in ``pinstream.headers`` where its
    headers can be read; and the commands for dead letters continue past such a record, too."""
    shop = new_shop(partitions=1)
    letters = f"{shop.topic}.dead-letters"
    good = [(b"k", ENCODER.encode(commerce_event(f"e-{n}")), BAD) for n in range(3)]
    last = ENCODER.encode(commerce_event("e-3"))
    produce_raw(shop.kafka, shop.topic, [*good, (b"k", b"junk", BAD), (None, last, [])])
    ledger = shop.serve(5)
    assert (ledger["delivered"], ledger["dead_lettered"]) == (4, 1)
    assert set(shop.api.accepted()) == {"e-0", "e-1", "e-2", "e-3"}
    [(message, headers)] = shop.letters
    assert message.value() == b"junk"
    assert headers["headers"].startswith("unreadable: ")
    assert headers["code"] == "unknown_wire_format"
    produce_raw(shop.kafka, letters, [(b"k", b"foreign", BAD)])
    produce_raw(shop.kafka, shop.topic, [(b"k", b"junk", BAD)])
    shop.serve(1)
    shop.command("dead-letters", "list", "--topic", shop.topic, "--json")
    shop.command("dead-letters", "show", f"{letters}:0:2")
    shop.command("dead-letters", "redrive", "--topic", shop.topic)
    shop.replay()
