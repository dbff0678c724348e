"""librdkafka's errors of connections as users read them: once, and without internal terms."""

from __future__ import annotations

import logging
import socketserver
import threading
import time
from pathlib import Path

import pytest
from confluent_kafka import KafkaError

from consumer import errors
from consumer.adapters.kafka.client_errors import (
    ErrorReporter,
    TlsFiles,
    as_fatal,
    describe_error,
    no_contact,
    why_silent,
    words,
)
from consumer.adapters.kafka.cluster import fetch_metadata
from consumer.adapters.kafka.configuration import LOGGER

HTTP = (
    "gate:80/bootstrap: Receive failed: Invalid response size 1213486160 (0..536870912): increase "
    "receive.message.max.bytes (after 3ms in state APIVERSION_QUERY)"
)
REFUSED = "{0}/bootstrap: Connect to ipv4#{1} failed: Connection refused (after 0ms in state CONNECT)"


@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (REFUSED.format("127.0.0.1:1", "127.0.0.1:1"), "no connection to 127.0.0.1:1: Connection refused"),
        (
            REFUSED.format("sasl_ssl://kafka:9092", "10.0.0.3:9092"),
            "no connection to kafka:9092 (10.0.0.3:9092): Connection refused",
        ),
        (
            "kafka:9092/1: Connect to ipv6#[::1]:9092 failed: Connection refused (after 12ms in state CONNECT, 4 "
            "identical error(s) suppressed)",
            "no connection to kafka:9092 ([::1]:9092): Connection refused",
        ),
        ("kafka:9092/1: Disconnected (after 600000ms in state UP)", "kafka:9092/1: Disconnected"),
        ("3/3 brokers\n are  down", "3/3 brokers are down"),
        (HTTP, "gate:80 speaks HTTP, not Kafka"),
    ],
)
def test_an_error_is_one_readable_line(said: str, shown: str) -> None:
    """The line names the broker and the reason, without time and state, which differ each time."""
    error = KafkaError(KafkaError._TRANSPORT, said)
    assert words(error) == shown
    assert describe_error(error) == f"_TRANSPORT: {shown}"


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (REFUSED.format("127.0.0.1:1", "127.0.0.1:1"), "127.0.0.1:1, connection refused"),
        (REFUSED.format("sasl_ssl://kafka:9092", "10.0.0.3:9092"), "kafka:9092, connection refused"),
        (
            "nohost:9092/bootstrap: Failed to resolve 'nohost:9092': Name or service not known (after 3ms in state "
            "CONNECT)",
            "nohost:9092, name or service not known",
        ),
        (
            "kafka:9092/bootstrap: Connection setup timed out in state APIVERSION_QUERY (after 30003ms in state "
            "APIVERSION_QUERY)",
            "kafka:9092, no answer",
        ),
        ("kafka:9092/1: 1 request(s) timed out: disconnect (after 1ms in state UP)", "kafka:9092, no answer"),
        (
            "ssl://kafka:9093/1: SSL handshake failed: ssl/record/rec_layer_s3.c:1605:error:0A000416:SSL routines:"
            "ssl3_read_bytes:sslv3 alert certificate unknown: SSL alert number 46 (after 4ms in state SSL_HANDSHAKE)",
            "kafka:9093, the broker refuses the client's certificate",
        ),
        (HTTP, "gate:80, it speaks HTTP, not Kafka"),
        (None, "a:1,b:2, no answer"),
    ],
)  # fmt: skip
def test_why_no_broker_answers_is_a_few_words(said: str | None, why: str) -> None:
    """Host and port, and the latest error of a connection; without one, all brokers that are configured."""
    error = None if said is None else KafkaError(KafkaError._TRANSPORT, said)
    assert why_silent({"bootstrap.servers": "a:1,b:2"}, error) == why


@pytest.mark.parametrize("protocol", ["plaintext", "sasl_ssl"])
def test_a_server_that_speaks_http_is_named(protocol: str) -> None:
    """A server that answers in HTTP is named with its port, by what librdkafka says of its answer."""
    heard = [
        KafkaError(KafkaError._TRANSPORT, "Failed to get metadata"),
        KafkaError(KafkaError._BAD_MSG, HTTP),
    ]
    line = str(no_contact({"bootstrap.servers": "gate:80", "security.protocol": protocol}, 1.0, heard))
    assert line.startswith("Kafka: gate:80 speaks HTTP, not Kafka: set KAFKA_BOOTSTRAP_SERVERS to")
    assert "receive.message.max.bytes" not in line


@pytest.mark.parametrize("at_once", [True, False])
def test_a_first_contact_with_an_http_server(at_once: bool) -> None:
    """One that answers at once ends it at once; one that waits for more is asked in HTTP."""

    class Server(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            received = b""
            while piece := self.request.recv(64):
                received += piece
                if at_once or b"\r\n\r\n" in received:
                    self.request.sendall(b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
                    return

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Server) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        at = f"127.0.0.1:{server.server_address[1]}"
        begun = time.monotonic()
        with pytest.raises(errors.KafkaError, match=f"^Kafka: {at} speaks HTTP, not Kafka: set"):
            fetch_metadata({"bootstrap.servers": at}, 60.0 if at_once else 2.0)
        assert time.monotonic() - begun < 40
        server.shutdown()


def test_an_error_is_reported_once() -> None:
    """That all of one broker are down adds nothing to its own error; a lone silent one has no other."""
    reported: list[tuple[str, str]] = []

    def hear(*errors: tuple[int, str]) -> list[tuple[str, str]]:
        reported.clear()
        report = ErrorReporter(lambda *one: reported.append((one[0], one[1])))
        for code, said in errors:
            report(KafkaError(code, said))
        return reported

    down = KafkaError._ALL_BROKERS_DOWN
    lone = (down, "1/1 brokers are down")
    refused = (KafkaError._TRANSPORT, REFUSED.format("a:1", "10.0.0.1:1"))
    assert hear(refused, lone, (down, "0/2 brokers are down"), (down, "11/11 brokers are down")) == [
        ("_TRANSPORT", "no connection to a:1 (10.0.0.1:1): Connection refused"),
        ("_ALL_BROKERS_DOWN", "11/11 brokers are down"),
    ]
    assert hear(lone) == [("_ALL_BROKERS_DOWN", "1/1 brokers are down")]


def test_librdkafka_s_own_line_of_the_same_error_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """Lines of errors that a callback reports are dropped, but at DEBUG; the others stay."""

    def log() -> None:
        for facility in ("FAIL", "MAXPOLL"):
            LOGGER.log(logging.ERROR, "%s [%s] %s", facility, "pinstream#consumer-1", "[thrd:main]: words")

    log()
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == ["MAXPOLL"]
    with caplog.at_level(logging.DEBUG):
        log()
    assert [record.args[0] for record in caplog.records if isinstance(record.args, tuple)] == [
        "MAXPOLL",
        "FAIL",
        "MAXPOLL",
    ]


_LOGIN = "sasl_ssl://kafka:9093/1: SASL "


@pytest.mark.parametrize(
    ("said", "ends"),
    [
        (f"{_LOGIN}authentication error: Authentication failed: Invalid username or password", "KAFKA_SASL_PASSWORD"),
        (f'{_LOGIN}authentication error: {{"status":"invalid_token"}}', "the broker refused the token"),
        (
            f"{_LOGIN}PLAIN mechanism handshake failed: Broker: Unsupported SASL mechanism: broker's supported "
            "mechanisms: SCRAM-SHA-512",
            "KAFKA_SASL_MECHANISM",
        ),
        (f"{_LOGIN}PLAIN mechanism handshake failed: Local: Broker transport failure: broker's supported", None),
        (f"{_LOGIN}OAUTHBEARER mechanism handshake failed: Broker: Request not valid in current SASL state", None),
        (f"{_LOGIN}authentication error: SaslAuthenticateRequest failed: Local: Broker transport failure", None),
        (f"{_LOGIN}authentication error: [6e1b]: Access denied (AWS_MSK_IAM: region x)", "kafka-cluster:Connect"),
        (f"{_LOGIN}authentication error: [6e1b]: Too many connects (AWS_MSK_IAM: region eu-west-1)", None),
        ("FindCoordinator response error: Local: Authentication failure", None),
        ("FindCoordinator response error: Local: Authentication failure (AWS_MSK_IAM: region eu-west-1)", None),
        ("Local: Authentication failure", None),
        ("JoinGroup failed: Local: Authentication failure", None),
        ("Failed to get committed offsets: Local: Authentication failure", None),
        ("Failed to query logical offset BEGINNING: Local: Authentication failure", None),
        ("ProduceRequest for t [0] with 1 message(s) failed: Local: Authentication failure (broker 1 PID{})", None),
        ("Failed to acquire SASL OAUTHBEARER token: Failed to connect to login:443", None),
        ("OAUTHBEARER cannot log in because there is no token available; last error: timed out", None),
    ],
)  # fmt: skip
def test_a_refused_login_ends_the_run(said: str, ends: str | None) -> None:
    """Only the broker's own refusal; a broken connection, a missing token, a request with a login pass."""
    found = as_fatal(KafkaError(KafkaError._AUTHENTICATION, said))
    assert (found is None) == (ends is None)
    assert ends is None or ends in str(found)


@pytest.mark.parametrize(
    ("why", "advice"),
    [
        ("Broker: Offset out of range", "KAFKA_AUTO_OFFSET_RESET=earliest"),
        ("Broker: Topic authorization failed", "grant READ on it"),
    ],
)
def test_a_partition_without_a_start_is_explained_by_what_was_refused(why: str, advice: str) -> None:
    """A partition that has no start ends the run with advice about offsets, or about the right that is missing."""
    error = KafkaError(KafkaError._AUTO_OFFSET_RESET, f"failed to query logical offset: {why} (broker 1)")
    assert advice in str(as_fatal(error))


def test_another_file_ends_the_run_when_tls_fails(tmp_path: Path) -> None:
    """Neither a failure with the same file nor a change while TLS works does."""
    file = tmp_path / "client.pem"
    file.write_text("one")
    files = TlsFiles({"ssl.key.location": str(file), "ssl.ca.location": "probe", "client.id": "pinstream"})
    alert = KafkaError(KafkaError._TRANSPORT, "ssl/tls alert certificate expired: SSL alert number 45")
    away = KafkaError(KafkaError._TRANSPORT, REFUSED.format("a:1", "10.0.0.1:1"))
    assert files.explain(alert) is None
    file.unlink()
    file.write_text("another")
    assert files.explain(away) is None
    for error in (alert, KafkaError(KafkaError._SSL, "SSL handshake failed")):
        assert f"{file} has changed since the start: start again" in str(files.explain(error))


@pytest.mark.parametrize(
    ("curl", "advice"),
    [
        ("CONNECT tunnel failed, response 407", "the proxy of HTTPS_PROXY did not open a connection to"),
        (
            "Could not resolve proxy: proxy.corp",
            "or correct HTTPS_PROXY and PINSTREAM_PROXY_CREDENTIALS_FILE",
        ),
        (
            "SSL certificate OpenSSL verify result: unable to get local issuer certificate (20)",
            "into PINSTREAM_CA_FILE",
        ),
        ("error adding trust anchors from file: /etc/pki/tls/certs/ca-bundle.crt", "into PINSTREAM_CA_FILE"),
        ('{"error":"invalid_client"}', "KAFKA_SASL_OAUTHBEARER_CLIENT_SECRET"),
    ],
)
def test_why_no_token_could_be_had(curl: str, advice: str) -> None:
    """The line says why no token could be fetched, in the words of librdkafka's curl, and what to do."""
    error = KafkaError(KafkaError._AUTHENTICATION, f"Failed to acquire SASL OAUTHBEARER token: {curl}")
    line = str(no_contact({"bootstrap.servers": "kafka:9093", "security.protocol": "sasl_ssl"}, 1.0, [error]))
    assert "KAFKA_SASL_OAUTHBEARER_TOKEN_ENDPOINT_URL" in line
    assert advice in line
    assert curl in line
