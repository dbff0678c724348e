"""Amazon MSK with IAM, against a broker that takes OAUTHBEARER and a stand-in for AWS's signer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.processes import command, last_error, run_environment
from tests.end_to_end.records import (
    new_group,
)
from tests.end_to_end.secured.commands import LIFETIME, USER, all_reach, outlives_its_tokens
from tests.support.aws import with_iam
from tests.support.kafka.secured import Issuer, SecuredBroker, environment


@pytest.fixture
def issuer(secured_kafka: SecuredBroker) -> Iterator[Issuer]:
    """Issues the tokens that the broker accepts, which live for a few seconds."""
    found = Issuer(secured_kafka.signer, LIFETIME)
    yield found
    found.close()


def variables(broker: SecuredBroker, issuer: Issuer, folder: Path) -> dict[str, str]:
    """How the service reaches the broker."""
    by_tls = {name: value for name, value in broker.over_tls().items() if name != "security.protocol"}
    return {
        **environment({**by_tls, "bootstrap.servers": broker.sasl}),
        **with_iam(folder, issuer, USER),
    }


def test_commands_reach_the_broker(
    secured_kafka: SecuredBroker, issuer: Issuer, api: Api, tmp_path: Path
) -> None:
    """With one setting every command works; `check` says what it uses."""
    said = all_reach(secured_kafka, api, tmp_path, variables(secured_kafka, issuer, tmp_path))
    assert "logs in with AWS_MSK_IAM: region eu-west-1" in said
    assert "credentials by env" in said


@pytest.mark.slow("waits for the ends of tokens")
def test_tokens_end_and_aws_is_away(
    secured_kafka: SecuredBroker, issuer: Issuer, api: Api, tmp_path: Path
) -> None:
    """An idle service outlives its tokens. While AWS is away it says why there is no token, stays, and loses
    nothing."""
    outlives_its_tokens(
        secured_kafka,
        issuer,
        api,
        tmp_path,
        variables(secured_kafka, issuer, tmp_path),
        fails=(503, b"{}"),
        said="no token for AWS_MSK_IAM (eu-west-1): ",
    )


def test_a_refused_role_and_no_token_are_one_line(
    secured_kafka: SecuredBroker, issuer: Issuer, api: Api, tmp_path: Path
) -> None:
    """The broker refuses the token, or there is none at the start: the process ends, and one line says what to do."""
    env = {
        **run_environment(tmp_path, secured_kafka.plain, "orders", new_group(), api.url),
        **variables(secured_kafka, issuer, tmp_path),
    }
    issuer.audience = "somebody else"
    refused = command("run", env=env)
    assert refused.returncode == 1
    assert "the broker refused the login with IAM: allow kafka-cluster:Connect" in last_error(refused.stderr)
    issuer.fails = (403, b"{}")
    without = command("run", env=env)
    assert without.returncode == 1
    line = last_error(without.stderr)
    assert line.startswith("Kafka: no token for AWS_MSK_IAM (eu-west-1): HTTP Error 403")
    assert "check this machine's or pod's role" in line
