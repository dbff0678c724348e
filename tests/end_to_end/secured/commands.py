"""What must work however the broker is reached: every command does its part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tests.end_to_end.api import Api
from tests.end_to_end.records import PARTITIONS
from tests.end_to_end.shop import Shop
from tests.support.kafka.secured import Issuer, SecuredBroker

USER = "shop"
LIFETIME = 4.0
"""Seconds of a token's life."""


def all_reach(broker: SecuredBroker, api: Api, folder: Path, variables: Mapping[str, str]) -> str:
    """Run every command with these settings, as a user who may do all; returns what `check` said.

    `check` finds all in order; `run` delivers, stores dead letters and commits; `replay`, `redrive` and `offsets` go
    through.
    """
    broker.grant_all(USER)
    shop = Shop(broker.plain, api, folder, partitions=PARTITIONS)
    shop.env |= variables
    shop.generate(300, invalid=0.1)
    checked = shop.command("check").stdout
    ledger = shop.serve(300)
    assert ledger["delivered"] == api.counts().distinct_event_ids > 200
    assert ledger["dead_lettered"] > 10
    assert shop.committed == 300
    shop.replay()
    shop.command("dead-letters", "redrive", "--topic", shop.topic)
    shop.command("offsets", "show")
    return " ".join(checked.split())


def outlives_its_tokens(
    broker: SecuredBroker,
    issuer: Issuer,
    api: Api,
    folder: Path,
    variables: Mapping[str, str],
    *,
    fails: tuple[int, bytes],
    said: str,
) -> None:
    """Run the service, idle, until its tokens of `LIFETIME` have ended twice over; then the issuer answers `fails`.

    The log says `said` then, nothing ends, and what came meanwhile is delivered once there are tokens again.
    """
    broker.grant_all(USER)
    shop = Shop(broker.plain, api, folder, partitions=PARTITIONS)
    shop.env |= variables
    with shop.run() as service:
        shop.write_orders(50, "a")
        service.until_settled(50)
        given, begun = issuer.given, time.monotonic()
        service.until(
            lambda: issuer.given >= given + 4 and time.monotonic() - begun > 2 * LIFETIME, "other tokens"
        )
        # Events, and letters for the idle producer.
        shop.write_orders(50, "b")
        shop.generate(20, invalid=1.0)
        ledger = service.until_settled(120)
        assert ledger["dead_lettered"] == 20

        issuer.fails = fails
        service.until(lambda: any(said in str(line.get("text")) for line in service.log), "the trouble")
        away = time.monotonic()
        service.until(lambda: time.monotonic() - away > 2 * LIFETIME, "the last token to end")
        shop.write_orders(50, "c")
        assert service.get("/healthz")[0] == 200
        issuer.fails = None
        ledger = service.until_settled(170)
        assert ledger["delivered"] == 150
