"""Each way to reach a secured broker: the service delivers what is there, and the other commands work as well."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, command, run_environment
from tests.end_to_end.records import committed_offsets, generated, new_group, new_topic, write_generated
from tests.support.kafka.secured import Issuer, Properties, SecuredBroker, environment

USER = "shop"
Way = Callable[[SecuredBroker, Issuer], Properties]
WAYS: dict[str, Way] = {
    "TLS": lambda broker, _: broker.over_tls(),
    "client certificate": lambda broker, _: broker.over_mutual_tls(USER),
    "PLAIN": lambda broker, _: broker.with_login(USER),
    "SCRAM-SHA-512": lambda broker, _: broker.with_login(USER, "SCRAM-SHA-512"),
    "OAUTHBEARER": lambda broker, issuer: broker.with_token(issuer.url, USER),
}


@pytest.fixture
def issuer(secured_kafka: SecuredBroker) -> Iterator[Issuer]:
    """Gives the tokens that the broker takes."""
    found = Issuer(secured_kafka.signer)
    yield found
    found.close()


@pytest.mark.parametrize("way", WAYS)
def test_commands_reach_the_broker(
    way: str, secured_kafka: SecuredBroker, issuer: Issuer, api: Api, tmp_path: Path
) -> None:
    """`check` finds all in order; `run` delivers, stores dead letters and commits; `replay` and `redrive` go through.

    Passwords and keys come from files.
    """
    kafka = secured_kafka.plain
    secured_kafka.grant_all(USER)
    topic, group = new_topic(kafka), new_group()
    _, events = generated(300, invalid=0.1)
    write_generated(kafka, topic, events)
    env = {
        **run_environment(tmp_path, kafka, topic, group, api.url),
        **secrets_in_files(tmp_path, environment(WAYS[way](secured_kafka, issuer))),
    }

    checked = command("check", env=env)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    with Process(tmp_path, "run", env=env) as service:
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


def secrets_in_files(folder: Path, variables: dict[str, str]) -> dict[str, str]:
    """The same settings with every secret in a file, as orchestrators mount them."""
    found: dict[str, str] = {}
    for name, value in variables.items():
        if name.endswith(("_PASSWORD", "_SECRET")):
            file = folder / name.lower()
            file.write_text(f"{value}\n")
            found[f"{name}_FILE"] = str(file)
        else:
            found[name] = value
    return found
