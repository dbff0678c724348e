"""What must work whichever way a broker is reached: all commands, each doing its part."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, run_environment
from tests.end_to_end.records import committed_offsets, generated, new_group, new_topic, write_generated
from tests.support.kafka.secured import SecuredBroker

USER = "shop"


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
