"""Tokens end while the service runs: it gets others, and waits where none are to be had."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, run_environment
from tests.end_to_end.records import commerce_event, new_group, new_topic, write_events
from tests.support.kafka.secured import Issuer, SecuredBroker, environment

LIFETIME = 6.0


@pytest.fixture
def issuer(secured_kafka: SecuredBroker) -> Iterator[Issuer]:
    """Gives tokens of a few seconds."""
    found = Issuer(secured_kafka.signer, LIFETIME)
    yield found
    found.close()


def test_tokens_end_and_the_endpoint_is_away(
    secured_kafka: SecuredBroker, issuer: Issuer, api: Api, tmp_path: Path
) -> None:
    """An idle service outlives its tokens; while no token is to be had it says so, stays, and loses nothing."""
    kafka = secured_kafka.plain
    secured_kafka.grant_all("shop")
    topic = new_topic(kafka)
    env = {
        **run_environment(tmp_path, kafka, topic, new_group(), api.url),
        **environment(secured_kafka.with_token(issuer.url, "shop")),
    }
    with Process(tmp_path, "run", env=env) as service:
        write_events(kafka, topic, [commerce_event(f"a-{number}") for number in range(50)])
        service.until_settled(50)
        # Idle until the token that it came with has ended twice over.
        given, begun = issuer.given, time.monotonic()
        service.until(
            lambda: issuer.given >= given + 4 and time.monotonic() - begun > 2 * LIFETIME, "other tokens"
        )
        write_events(kafka, topic, [commerce_event(f"b-{number}") for number in range(50)])
        service.until_settled(100)

        issuer.fails = (401, b'{"error": "invalid_client"}')
        service.until(
            lambda: any("OAUTHBEARER token" in str(line.get("text")) for line in service.log), "the trouble"
        )
        away = time.monotonic()
        service.until(lambda: time.monotonic() - away > 2 * LIFETIME, "the last token to end")
        write_events(kafka, topic, [commerce_event(f"c-{number}") for number in range(50)])
        assert service.get("/healthz")[0] == 200
        issuer.fails = None
        ledger = service.until_settled(150)
        assert ledger["delivered"] == 150
        assert service.stop()[0] == 0
    assert api.counts().distinct_event_ids == api.counts().accepted_events == 150
