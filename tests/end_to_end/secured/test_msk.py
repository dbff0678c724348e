"""Amazon MSK with IAM, against a broker that takes OAUTHBEARER and a stand-in for AWS's signer."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import confluent_kafka
import pytest

from consumer.adapters.aws import msk
from consumer.adapters.kafka.configuration import (
    admin_client,
    consumer_config,
    make_client,
    producer_config,
)
from tests.end_to_end.api import Api
from tests.end_to_end.processes import command, last_error, run_environment, wait_for
from tests.end_to_end.records import (
    new_group,
    new_topic,
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


def lists(client: Any, topic: str) -> bool:
    """Whether the client's metadata has the topic; False if the connection ends with its token at that moment."""
    try:
        return topic in client.list_topics(timeout=10).topics
    except confluent_kafka.KafkaException:
        return False


@pytest.mark.slow("waits for the ends of tokens")
def test_every_kind_of_client_renews_its_token(
    secured_kafka: SecuredBroker, issuer: Issuer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that is not polled gets its next token, too, and answers long after its first token has ended."""
    secured_kafka.grant_all(USER)
    given = with_iam(tmp_path, issuer, USER)
    monkeypatch.syspath_prepend(given.pop("PYTHONPATH"))
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    # The stand-in in place of the real signer, which another test of this process may have imported.
    monkeypatch.delitem(sys.modules, "aws_msk_iam_sasl_signer", raising=False)
    msk.tokens_of.cache_clear()
    config = {
        "bootstrap.servers": secured_kafka.sasl,
        "ssl.ca.location": str(secured_kafka.authority.file),
        "sasl.mechanism": "AWS_MSK_IAM",
        "group.id": "idle",
    }
    admin = admin_client(config)
    producer = make_client(confluent_kafka.Producer, producer_config(config, delivery_timeout=30))
    consumer = make_client(
        confluent_kafka.Consumer, consumer_config(config, offset_reset="earliest", ignore=None)
    )
    try:
        made, begun = issuer.given, time.monotonic()
        wait_for(lambda: issuer.given >= made + 2 and time.monotonic() - begun > 2 * LIFETIME, "other tokens")
        topic = new_topic(secured_kafka.plain)
        for client in (admin, consumer):
            wait_for(partial(lists, client, topic), "the client to list the topic")
        producer.produce(topic, b"late")
        assert producer.flush(30) == 0
    finally:
        consumer.close()
        admin.__exit__(None, None, None)
        producer.close()
        msk.tokens_of.cache_clear()
        del sys.modules["aws_msk_iam_sasl_signer"]


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
