"""Tokens for Amazon MSK, made by AWS's own signer with made-up credentials, without a network."""

from __future__ import annotations

import base64
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import confluent_kafka
import pytest

from consumer.adapters.aws import msk
from consumer.adapters.kafka.configuration import make_client
from consumer.errors import PinstreamError, SettingsError
from tests.support.aws import Sts

SECRET = "kept-out-of-every-message"
BROKERS = "b-1.orders.abc123.c2.kafka.eu-west-1.amazonaws.com:9098"
OTHERS = "kafka.shop.example:9098"
CONFIG = {"bootstrap.servers": BROKERS, "sasl.mechanism": "AWS_MSK_IAM"}


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Set static credentials in the environment."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDTESTS")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)


def signed(token: str) -> dict[str, str]:
    """Return the parts of the token, which is a signed URL as base64 without padding."""
    assert not token.endswith("=")
    url = urlsplit(base64.urlsafe_b64decode(token + "==").decode())
    return {"host": url.netloc, **{name: one for name, [one] in parse_qs(url.query).items()}}


def token_of(config: dict[str, str]) -> tuple[dict[str, str], float]:
    """Return the parts of the first token for `config`, and the seconds for which librdkafka may use it."""
    text, ends = msk.with_tokens(config)["oauth_cb"]("")
    return signed(text), ends - time.time()


@pytest.mark.usefixtures("keys")
def test_what_librdkafka_gets() -> None:
    """OAUTHBEARER over TLS; the token is a signed request to connect, shared by clients in the half of its life."""
    found = msk.with_tokens({**CONFIG, "client.id": "mine"})
    assert found["sasl.mechanism"] == "OAUTHBEARER"
    assert found["security.protocol"] == "SASL_SSL"
    assert found["client.id"] == "mine"
    said, life = token_of(CONFIG)
    assert said["host"] == "kafka.eu-west-1.amazonaws.com"
    assert said["Action"] == "kafka-cluster:Connect"
    assert said["X-Amz-Credential"].startswith("AKIDTESTS/")
    assert said["X-Amz-Credential"].endswith("/eu-west-1/kafka-cluster/aws4_request")
    assert said["X-Amz-Expires"] == "900"
    assert len(said["X-Amz-Signature"]) == 64
    assert 590 < life <= 600
    assert msk.tokens_of(BROKERS) is msk.with_tokens(CONFIG)["oauth_cb"]
    assert msk.tokens_for(CONFIG)("") == msk.tokens_for(CONFIG)("")
    assert msk.tokens_for(CONFIG).used == "region eu-west-1 (by the brokers' name), credentials by env"


@pytest.mark.usefixtures("keys")
@pytest.mark.parametrize(
    ("servers", "variables", "region", "by"),
    [
        (BROKERS, {"AWS_REGION": "us-east-1"}, "eu-west-1", "by the brokers' name"),
        ("boot-x.c3.kafka-serverless.us-east-2.amazonaws.com:9098", {}, "us-east-2", "by the brokers' name"),
        ("b-1.x.y.c1.kafka.cn-north-1.amazonaws.com.cn:9098", {}, "cn-north-1", "by the brokers' name"),
        (OTHERS, {"AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "eu-west-3"}, "us-east-1", "AWS_REGION"),
        (OTHERS, {"AWS_DEFAULT_REGION": "eu-west-3"}, "eu-west-3", "AWS_REGION"),
        (OTHERS, {"AWS_PROFILE": "shop"}, "ap-south-1", "the profile"),
    ],
)  # fmt: skip
def test_where_the_region_is_from(
    servers: str,
    variables: dict[str, str],
    region: str,
    by: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The region is taken from the brokers' name, otherwise from AWS's variables, then from the profile."""
    (tmp_path / "config").write_text("[profile shop]\nregion = ap-south-1\n")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    config = {**CONFIG, "bootstrap.servers": servers}
    assert token_of(config)[0]["host"] == f"kafka.{region}.amazonaws.com"
    assert by in msk.tokens_for(config).used


@pytest.mark.parametrize("name", ["sasl.mechanism", "sasl.mechanisms"])
def test_both_names_of_the_property(name: str) -> None:
    """Both of librdkafka's names of the property are recognised, in upper or lower case."""
    assert msk.asked({name: "aws_msk_iam"})
    assert not msk.asked({name: "OAUTHBEARER"})


def test_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra the error says in one line what to install."""
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    with pytest.raises(
        SettingsError,
        match=r"the extra msk is not installed: run pip install '\.\[msk\]' in a clone of pinstream$",
    ):
        make_client(confluent_kafka.Producer, dict(CONFIG))


@pytest.mark.usefixtures("keys")
def test_without_a_region() -> None:
    """Without a region the error says in one line what to set."""
    with pytest.raises(SettingsError, match="needs the region of the cluster: set AWS_REGION"):
        msk.with_tokens({**CONFIG, "bootstrap.servers": OTHERS})


def test_without_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """No client is made, and the error says what is missing; it is none of the settings: a role may come later."""
    with pytest.raises(
        msk.NoToken, match=r"^Kafka: no token for AWS_MSK_IAM \(eu-west-1\): no AWS credentials"
    ) as none:
        make_client(confluent_kafka.Producer, dict(CONFIG))
    assert isinstance(none.value, PinstreamError)
    assert isinstance(none.value, confluent_kafka.KafkaException)
    monkeypatch.setenv("AWS_PROFILE", "no-such-one")
    with pytest.raises(msk.NoToken, match=r"The config profile \(no-such-one\) could not be found: check"):
        msk.with_tokens(CONFIG)


@pytest.fixture
def sts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Sts]:
    """Set up an EKS pod with a role, and a stub of AWS's token service."""
    found = Sts()
    (tmp_path / "token").write_text("the-pod")
    for name, value in found.variables(str(tmp_path / "token")).items():
        monkeypatch.setenv(name, value)
    yield found
    found.close()


def test_the_role_of_a_pod(sts: Sts) -> None:
    """As EKS sets it: the token is signed by the credentials of the role."""
    said, _ = token_of(CONFIG)
    assert said["X-Amz-Credential"].startswith("ASIAROLE/")
    assert said["X-Amz-Security-Token"] == "session"
    assert "role%2Fpinstream" in sts.asked
    assert "WebIdentityToken=the-pod" in sts.asked
    assert msk.tokens_for(CONFIG).used.endswith("credentials by assume-role-with-web-identity")


def test_a_role_that_is_refused(sts: Sts) -> None:
    """The error for a refused role has AWS's message on one line, without the pod's own token."""
    sts.refuses = True
    with pytest.raises(msk.NoToken) as caught:
        msk.with_tokens(CONFIG)
    line = str(caught.value)
    assert "Not authorized to perform sts:AssumeRoleWithWebIdentity" in line
    assert "\n" not in line
    assert "the-pod" not in line


@pytest.mark.usefixtures("keys")
def test_errors_of_a_login_say_what_it_used() -> None:
    """The error of a refused login names the region and the credentials that were used; other errors are unchanged."""
    heard: list[confluent_kafka.KafkaError] = []
    config = msk.with_tokens({**CONFIG, "error_cb": heard.append})
    code = confluent_kafka.KafkaError._AUTHENTICATION
    config["error_cb"](confluent_kafka.KafkaError(code, "SASL authentication error: Access denied"))
    config["error_cb"](confluent_kafka.KafkaError(confluent_kafka.KafkaError._TRANSPORT, "down"))
    refused, other = heard
    assert refused.str() == (
        "SASL authentication error: Access denied "
        "(AWS_MSK_IAM: region eu-west-1 (by the brokers' name), credentials by env)"
    )
    assert other.str() == "down"
