"""A cluster that throttles by quota: pinstream is slower, and otherwise works as usual."""

from __future__ import annotations

from typing import Any

import pytest

from tests.end_to_end.records import value_of
from tests.end_to_end.shop import NewShop
from tests.support.kafka.harness import unique
from tests.support.kafka.raw import set_quotas

SECONDS = 14
"""Seconds that everything takes at the quota's rate. What fits into the broker's window (11 s) is not throttled."""
LETTER = 400
"""Bytes of a dead letter, at the least."""


@pytest.mark.real_kafka
def test_throttled_is_only_slower(new_shop: NewShop) -> None:
    """The broker throttles reads, writes and requests: every record settles once and is committed. The figures
    say how long pinstream waited; health and readiness stay good, and nothing counts as a stall."""
    client = unique("client")
    shop = new_shop(KAFKA_CLIENT_ID=client, KAFKA_COMPRESSION_TYPE="none")
    shop.generate(300, invalid=0.3)
    size = sum(len(value_of(one)) for one in shop.events)
    letters = sum(1 for one in shop.events if one.defect)
    set_quotas(
        shop.kafka,
        client,
        consumer_byte_rate=size // SECONDS,
        producer_byte_rate=letters * LETTER // SECONDS,
        request_percentage=1,
    )
    with shop.run() as service:

        def settled() -> dict[str, int] | None:
            assert service.get("/healthz")[0] == 200
            ledger = service.ledger()
            return ledger if ledger["read"] == 300 and not ledger["open"] else None

        ledger = service.until(settled, "all to be settled")
        assert service.get("/readyz")[0] == 200
        service.until(lambda: len(throttles(service.status())) == 2, "the figures of both clients")
        throttled = throttles(service.status())
        metrics = service.get("/metrics")[1]
    reported = {line["event"] for line in service.log}
    assert throttled["consumer"] > 1
    assert throttled["producer"] > 0
    assert 'pinstream_kafka_throttled_seconds_total{broker="' in metrics
    assert not reported & {"stalled", "kafka_trouble", "partitions_lost"}
    accepted = shop.api.accepted()
    assert ledger["delivered"] == accepted.total() == len(accepted)
    assert ledger["dead_lettered"] == len(shop.letters) >= letters
    assert shop.committed == 300


def throttles(status: dict[str, Any]) -> dict[str, float]:
    """For each client that a broker has throttled, the seconds."""
    return {
        one["client"]: one["throttled_seconds"]
        for one in status["brokers"]
        if one["broker"] != "coordinator" and one["throttled_seconds"]
    }
