"""The message for each wrong setting: one line that names the cause and what to change."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path

import pytest

from consumer.adapters.kafka.cluster import describe_cluster
from consumer.adapters.kafka.ranges import Range
from consumer.adapters.kafka.replay_progress import open_plan
from consumer.errors import PinstreamError
from tests.support.certificates import Authority
from tests.support.kafka.secured import PASSWORD, Issuer, Properties, SecuredBroker

WITHIN = 10.0
PATIENT = 60.0
"""Seconds for causes that show only when no answer came in all that time, on a busy machine."""

NO_TOKEN = "no token could be had from KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL"
CLIENT_SECRET = "KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET"


@pytest.fixture
def issuer(secured_kafka: SecuredBroker) -> Iterator[Issuer]:
    """Issues the tokens that the broker accepts."""
    found = Issuer(secured_kafka.signer)
    yield found
    found.close()


async def reported(config: Properties, within: float = WITHIN) -> str:
    """The line in which a first contact with this configuration ends."""
    with pytest.raises(PinstreamError) as caught:
        await describe_cluster(config, ["orders"], within)
    line = str(caught.value)
    assert "\n" not in line
    assert PASSWORD not in line
    assert "not-the-password" not in line
    return line


async def reported_in_the_end(config: Properties, expected: Sequence[str]) -> str:
    """The line with these parts, which comes when the time is over. A busy broker may need more than a short one."""
    for within in (2.0, WITHIN, PATIENT):
        line = await reported(config, within)
        if all(part in line for part in expected):
            return line
    raise AssertionError(line)


Change = Callable[[SecuredBroker, Properties, Path], Properties]
OTHER_CA = "other-ca"

AT_ONCE: dict[str, tuple[Change, tuple[str, ...]]] = {
    "wrong password": (
        lambda _b, c, _f: {**c, "sasl.password": "not-the-password"},
        ("the broker refused the login: check KAFKA_SASL_USERNAME, KAFKA_SASL_PASSWORD",),
    ),
    "a mechanism that the broker lacks": (
        lambda _b, c, _f: {**c, "sasl.mechanism": "SCRAM-SHA-256"},
        ("KAFKA_SASL_MECHANISM", "PLAIN,SCRAM-SHA-512,OAUTHBEARER"),
    ),
    "unknown authority": (
        lambda _b, c, f: {**c, "ssl.ca.location": str(Authority(f, OTHER_CA).file)},
        ("is signed by an authority that is not in ", f"{OTHER_CA}.pem: set KAFKA_SSL_CA_LOCATION"),
    ),
    "no authority": (
        lambda _b, c, _f: {name: value for name, value in c.items() if name != "ssl.ca.location"},
        ("is signed by an authority that this machine does not know: set KAFKA_SSL_CA_LOCATION",),
    ),
    "another name": (
        lambda _b, c, _f: {**c, "bootstrap.servers": str(c["bootstrap.servers"]).replace("127.0.0.1", "localhost")},
        ("the certificate of localhost:", "is for another name: reach the broker by a name in the certificate"),
    ),
}  # fmt: skip
IN_VAIN: dict[str, tuple[Change, tuple[str, ...]]] = {
    "plaintext against TLS": (
        lambda b, _c, _f: {"bootstrap.servers": b.tls},
        ("requires TLS or a login: set KAFKA_SECURITY_PROTOCOL (SASL_SSL, SSL or SASL_PLAINTEXT)",),
    ),
    "TLS without a login": (
        lambda b, _c, _f: {**b.over_tls(), "bootstrap.servers": b.sasl},
        ("requires a login: set KAFKA_SECURITY_PROTOCOL (SASL_SSL)",),
    ),
    "TLS against plaintext": (
        lambda b, _c, _f: {**b.over_tls(), "bootstrap.servers": b.bootstrap_servers},
        ("does not speak TLS", "or set KAFKA_SECURITY_PROTOCOL=PLAINTEXT"),
    ),
    "no certificate of the client": (
        lambda b, _c, _f: {**b.over_tls(), "bootstrap.servers": b.mutual},
        ("asks for a certificate of the client: set KAFKA_SSL_CERTIFICATE_LOCATION and KAFKA_SSL_KEY_LOCATION",),
    ),
    "a certificate of another authority": (
        lambda b, _c, f: {**b.over_mutual_tls("shop"), **certificate_of(Authority(f, OTHER_CA))},
        ("refused the client's certificate: check KAFKA_SSL_CERTIFICATE_LOCATION",),
    ),
}  # fmt: skip


def certificate_of(authority: Authority) -> Properties:
    """A client's certificate and key."""
    file = str(authority.issue(host="shop"))
    return {"ssl.certificate.location": file, "ssl.key.location": file}


@pytest.mark.parametrize("case", AT_ONCE)
async def test_said_at_once(case: str, secured_kafka: SecuredBroker, tmp_path: Path) -> None:
    """The first answer shows the cause, or the configuration itself does."""
    change, expected = AT_ONCE[case]
    line = await reported(change(secured_kafka, secured_kafka.with_login("shop"), tmp_path), PATIENT)
    for part in expected:
        assert part in line


async def test_a_named_replay_says_it_at_once(secured_kafka: SecuredBroker) -> None:
    """Its first question is about its group, which brokers that refuse the login never answer."""

    async def resolve() -> list[Range]:
        raise AssertionError("not asked")

    config = {**secured_kafka.with_login("shop"), "sasl.password": "not-the-password"}
    with pytest.raises(PinstreamError, match="the broker refused the login: check KAFKA_SASL_USERNAME"):
        await open_plan(config, "replays", "arguments", resolve, 0.0, PATIENT)


@pytest.mark.parametrize("case", IN_VAIN)
async def test_said_in_the_end(case: str, secured_kafka: SecuredBroker, tmp_path: Path) -> None:
    """A connection that ends without a reason may be a broker that is starting: these are tried for all of the time."""
    change, expected = IN_VAIN[case]
    await reported_in_the_end(change(secured_kafka, secured_kafka.with_login("shop"), tmp_path), expected)


async def test_a_certificate_that_has_expired(tmp_path: Path) -> None:
    """The broker's certificate expired three days ago."""
    broker = SecuredBroker(tmp_path)
    broker.renew_certificate(age=timedelta(days=3))
    with broker:
        line = await reported(broker.with_login("shop"), PATIENT)
    assert "has expired: renew it there, or correct the clock of this machine" in line


@pytest.mark.parametrize(
    ("fails", "expected"),
    [
        ((401, b'{"error": "invalid_client"}'), (NO_TOKEN, CLIENT_SECRET, "invalid_client")),
        ((200, b"<html>please log in</html>"), (NO_TOKEN, CLIENT_SECRET, "JSON")),
        (None, (NO_TOKEN,)),
        # librdkafka asks it again and again silently: the line names all possible causes.
        ((503, b""), ("KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL",)),
    ],
    ids=["refused", "a page", "nobody listens", "unavailable"],
)
async def test_an_endpoint_that_gives_no_token(
    fails: tuple[int, bytes] | None, expected: tuple[str, ...], secured_kafka: SecuredBroker, issuer: Issuer
) -> None:
    """The line has the endpoint's answer and the settings about tokens, not those about passwords."""
    issuer.fails = fails
    url = issuer.url if fails else "http://127.0.0.1:1/token"
    line = await reported_in_the_end(secured_kafka.with_token(url, "shop"), expected)
    assert NO_TOKEN not in expected or "KAFKA_SASL_PASSWORD" not in line


async def test_a_token_for_somebody_else(secured_kafka: SecuredBroker, issuer: Issuer) -> None:
    """The broker refuses the token: the line is about the token, not about a password."""
    issuer.audience = "another-service"
    line = await reported(secured_kafka.with_token(issuer.url, "shop"), PATIENT)
    assert "the broker refused the token: check what it asks of tokens" in line
