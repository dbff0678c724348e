"""A wrong mapping meets a real topic: intake stops and says so, and once it is corrected nothing is lost or
sent twice."""

from __future__ import annotations

import json

import pytest

from consumer.engine.model import Disposition
from tests.end_to_end.processes import last_error
from tests.end_to_end.records import commerce_event, value_of
from tests.end_to_end.shop import NewShop
from tests.support.limits import LATE

SAMPLE = 200
RECORDS = 4000
HEALTHY = 8000


def test_a_poisoned_topic_stops_intake_and_is_finished_later(new_shop: NewShop) -> None:
    """Log, page, readiness and metrics say why; the process stays healthy, stops at once, and leaves open
    records open."""
    shop = new_shop(PINSTREAM_DEAD_LETTER_SAMPLE=f"{SAMPLE}")
    generator = shop.generate(RECORDS, invalid=0.8)
    broken = sorted(value_of(one) for one in shop.events if one.defect)
    with shop.run() as first:
        line = first.until_logged("dead_letter_guard")
        assert (line["level"], line["topic"], line["of"]) == ("error", shop.topic, SAMPLE)
        assert 0.5 < line["share"] <= 1
        assert line["mostly"].split()[0] in ("decode", "convert")
        assert line["cause"] in ("schema", "mapping")
        guard = first.until(lambda: first.status()["guard"], "the guard on /status")
        assert (guard["topic"], guard["cause"]) == (shop.topic, line["cause"])
        assert guard["rejected"] == round(line["share"] * SAMPLE)
        assert first.get("/healthz")[0] == 200
        code, why = first.get("/readyz")
        assert code == 503
        assert f"of the latest {SAMPLE} of {shop.topic} would be dead letters" in why
        assert "pinstream_dead_letter_guard 1.0" in first.get("/metrics")[1]
        code, seconds = first.stop()
        assert (code, seconds < LATE) == (0, True)
        left = first.log[-1]
        assert left["event"] == "stopped"
        assert left["read"] < RECORDS
    assert len(shop.letters) == left["dead_lettered"] < len(broken)

    # Somebody has looked at them: they are what they are.
    shop.serve(RECORDS - left["read"], PINSTREAM_DEAD_LETTER_SHARE="1")
    assert sorted(message.value() or b"" for message, _ in shop.letters) == broken
    counts = shop.api.counts()
    assert counts.accepted_events == counts.distinct_event_ids == generator.tally[Disposition.DELIVERED]


@pytest.mark.slow("reads a topic three times")
def test_a_healthy_topic_may_be_read_again_and_again(new_shop: NewShop) -> None:
    """3.5 of 100 records are refused, by the API or by conversion. Then all the others are duplicates at once,
    and what the API refuses comes back last and together; after a stop in the middle it is all that is left; a replay
    sees it as well. The guard never speaks."""
    shop = new_shop(PINSTREAM_DEAD_LETTER_SAMPLE=f"{SAMPLE}", PINSTREAM_LINGER="2s")
    shop.api.set_faults(marker="refused")
    refused = [commerce_event(f"refused-{n}") for n in range(HEALTHY * 25 // 1000)]
    nobody = [commerce_event(f"nobody-{n}", customer={"emails": []}) for n in range(HEALTHY // 100)]
    good = [commerce_event(f"good-{n}") for n in range(HEALTHY - len(refused) - len(nobody))]
    every = len(good) // (len(refused) + len(nobody))
    bad = iter([one for pair in zip(refused, nobody, strict=False) for one in pair] + refused[len(nobody) :])
    mixed = [
        one for n, event in enumerate(good) for one in (event, *([next(bad, None)] if n % every == 0 else []))
    ]
    shop.write(*(one for one in mixed if one is not None))
    assert shop.serve(HEALTHY)["delivered"] == len(good)
    shop.command("offsets", "set", "--to", "beginning", "--yes")
    # One call a minute: what is refused waits for its batch, and is left when it stops.
    with shop.run(PINSTREAM_CALLS_PER_MINUTE="1") as second:
        second.until(lambda: second.ledger()["duplicate"] == len(good), "all duplicates")
    with shop.run() as third:
        third.until(lambda: shop.committed == HEALTHY, "all committed")
        assert third.status()["guard"] is None
        third.until(lambda: third.get("/readyz")[0] == 200, "the group assigns its partitions")
    assert not [line for line in second.log + third.log if line["event"] == "dead_letter_guard"]
    document = json.loads(shop.replay("--json").stdout.splitlines()[-1])
    assert document["result"] == "complete"
    assert document["ledger"]["duplicate"] == len(good)
    assert shop.api.counts().accepted_events == len(good)


def test_a_destination_that_refuses_everything_is_named(new_shop: NewShop) -> None:
    """The message blames the destination, not the mapping: in the log, on /readyz and /status, and at the end
    of a replay; no event becomes a dead letter."""
    # In one partition, so that they are fetched at once and go in one call: all are refused before a letter is written.
    shop = new_shop(partitions=1, PINSTREAM_DEAD_LETTER_SAMPLE=f"{SAMPLE}", PINSTREAM_LINGER="2s")
    shop.api.set_faults(marker="order")
    shop.write_orders(1000)
    with shop.run() as process:
        line = process.until_logged("dead_letter_guard")
        guard = process.status()["guard"]
        code, why = process.get("/readyz")
        assert code == 503
    replayed = shop.replay(code=1)
    for said in (line["advice"], guard["advice"], why, last_error(replayed.stderr)):
        assert "why Pinterest refuses" in said
        assert "mapping" not in said
    assert (line["cause"], guard["cause"]) == ("destination", "destination")
    assert shop.letters == []
