"""``pinstream run`` from records on a broker to events at the API: nothing lost, nothing sent twice, and an
orderly end. All starts are those of an interpreter of their own."""

from __future__ import annotations

import pytest

from consumer.demo.generator import Defect
from consumer.engine.model import Disposition
from tests.end_to_end.records import PARTITIONS, value_of
from tests.end_to_end.shop import NewShop, Service, Shop
from tests.support.kafka.harness import commit
from tests.support.limits import LATE

CODES = {
    Defect.UNDECODABLE: ("decode", "unknown_wire_format"),
    Defect.NO_IDENTITY: ("convert", "no_identity"),
    Defect.BAD_CURRENCY: ("convert", "unknown_currency"),
    Defect.NEGATIVE_VALUE: ("convert", "malformed_value"),
    Defect.GROUPED_VALUE: ("convert", "malformed_value"),
    Defect.UNKNOWN_TYPE: ("convert", "unknown_event_name"),
    Defect.UNKNOWN_CHANNEL: ("convert", "unknown_action_source"),
    Defect.BLANK_EVENT_ID: ("convert", "missing_event_id"),
    Defect.TOO_OLD: ("convert", "expired"),
    Defect.FUTURE: ("convert", "future_event_time"),
}
"""The stage and code in the dead letter's headers for each defect of the generator."""


def fresh(shop: Shop) -> Service:
    """A service that is started as a person starts it."""
    return Service(shop.folder, "run", env=shop.env, fresh=True)


@pytest.mark.real_kafka  # the embedded broker takes no commit from outside a group
def test_every_record_ends_as_it_must(shop: Shop) -> None:
    """Ledger, API, dead letters and commits agree with the generator; and again after two restarts."""
    generator = shop.generate(3000, duplicates=0.1, invalid=0.05)
    tally, api = generator.tally, shop.api
    with fresh(shop) as first:
        ledger = first.until_settled(3000)
        assert {one: ledger[one.value] for one in Disposition} == tally
        assert first.get("/healthz")[0] == first.get("/readyz")[0] == 200
        code, seconds = first.stop()
        assert (code, first.stdout, seconds < LATE) == (0, "", True)
        assert first.log[-1]["event"] == "stopped"
    counts = api.counts()
    assert counts.distinct_event_ids == counts.accepted_events == tally[Disposition.DELIVERED]
    assert counts.value_sum == generator.value_sum
    assert shop.committed == 3000
    check_dead_letters(shop)

    # Nothing is left to do for the next one.
    calls = api.calls
    with fresh(shop) as second:
        second.until(lambda: len(second.status()["partitions"]) == PARTITIONS, "its partitions")
    assert (api.calls, second.log[-1]["read"]) == (calls, 0)

    # And were the commits lost, the delivered keys are still known: nothing is sent again.
    for number in range(PARTITIONS):
        commit(shop.kafka, shop.group, shop.topic, 0, number)
    with fresh(shop) as third:
        ledger = third.until_settled(3000)
    assert ledger["delivered"] == 0
    assert ledger["duplicate"] == tally[Disposition.DELIVERED] + tally[Disposition.DUPLICATE]
    assert api.calls == calls


def check_dead_letters(shop: Shop) -> None:
    """Each broken record is on the dead-letter topic with its own bytes, key and reason."""
    letters, broken = shop.letters, {value_of(one): one for one in shop.events if one.defect}
    assert sorted(message.value() or b"" for message, _ in letters) == sorted(
        value_of(one) for one in shop.events if one.defect
    )
    for message, headers in letters:
        one = broken[message.value() or b""]
        assert one.defect is not None
        assert (headers["stage"], headers["code"]) == CODES[one.defect]
        assert (message.key(), message.partition()) == (one.key, int(headers["partition"]))
        assert (headers["topic"], headers["attempts"]) == (shop.topic, "0")
        assert int(headers["timestamp"]) > 1_700_000_000_000
        assert headers["message"]
        assert headers["at"].endswith("Z")
    assert len({(headers["partition"], headers["offset"]) for _, headers in letters}) == len(letters)


def test_in_test_mode_nothing_is_recorded(new_shop: NewShop) -> None:
    """``PINTEREST_TEST_MODE``: every call has ``test=true`` and at most 20 events; a warning says that it is on."""
    shop = new_shop(PINTEREST_TEST_MODE="true")
    shop.generate(100)
    with fresh(shop) as process:
        ledger = process.until_settled(100)
    assert ledger["delivered"] == len(shop.api.events) > 80
    assert set(shop.api.queries) == {"test=true"}
    assert shop.api.calls >= len(shop.api.events) / 20
    assert (shop.api.counts().accepted_events, shop.api.counts().rejected_events) == (0, {})
    assert any("PINTEREST_TEST_MODE" in line.get("text", "") for line in process.log)
