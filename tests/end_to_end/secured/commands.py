"""What must work however the broker is reached: every command does its part."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, run_environment
from tests.end_to_end.records import (
    commerce_event,
    committed_offsets,
    generated,
    new_group,
    new_topic,
    write_events,
    write_generated,
)
from tests.support.kafka.secured import Issuer, SecuredBroker

USER = "shop"
LIFETIME = 6.0
"""Seconds of a token's life."""


def all_reach(broker: SecuredBroker, api: Api, folder: Path, variables: Mapping[str, str]) -> str:
    """Run every command with these settings, as a user who may do all; returns what `check` said.

    `check` finds all in order; `run` delivers, stores dead letters and commits; `replay`, `redrive` and `offsets` go
    through.
    """
    kafka = broker.plain
    broker.grant_all(USER)
    topic, group = new_topic(kafka), new_group()
    _, events = generated(300, invalid=0.1)
    write_generated(kafka, topic, events)
    env = {**run_environment(folder, kafka, topic, group, api.url), **variables}

    checked = command("check", env=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with Process(folder, "run", env=env) as service:
        ledger = service.until_settled(len(events))
        assert service.stop()[0] == 0
    assert ledger["delivered"] == api.counts().distinct_event_ids > 200
    assert ledger["dead_lettered"] > 10
    assert sum(committed_offsets(kafka, group, topic)) == len(events)

    bounds = ("--topic", topic, "--from", "beginning", "--to", "end")
    replayed = command("replay", *bounds, env=env)
    assert replayed.returncode == 0, replayed.stderr
    redriven = command("dead-letters", "redrive", "--topic", topic, env=env)
    assert redriven.returncode == 0, redriven.stderr
    shown = command("offsets", "show", env=env)
    assert shown.returncode == 0, shown.stderr
    return " ".join(checked.stdout.split())


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
    kafka = broker.plain
    broker.grant_all(USER)
    topic = new_topic(kafka)
    env = {**run_environment(folder, kafka, topic, new_group(), api.url), **variables}
    with Process(folder, "run", env=env) as service:
        write_events(kafka, topic, [commerce_event(f"a-{number}") for number in range(50)])
        service.until_settled(50)
        given, begun = issuer.given, time.monotonic()
        service.until(
            lambda: issuer.given >= given + 4 and time.monotonic() - begun > 2 * LIFETIME, "other tokens"
        )
        # Events, and letters for the idle producer.
        write_events(kafka, topic, [commerce_event(f"b-{number}") for number in range(50)])
        write_generated(kafka, topic, generated(20, invalid=1.0)[1])
        ledger = service.until_settled(120)
        assert ledger["dead_lettered"] == 20

        issuer.fails = fails
        service.until(lambda: any(said in str(line.get("text")) for line in service.log), "the trouble")
        away = time.monotonic()
        service.until(lambda: time.monotonic() - away > 2 * LIFETIME, "the last token to end")
        write_events(kafka, topic, [commerce_event(f"c-{number}") for number in range(50)])
        assert service.get("/healthz")[0] == 200
        issuer.fails = None
        ledger = service.until_settled(170)
        assert ledger["delivered"] == 150
        assert service.stop()[0] == 0
