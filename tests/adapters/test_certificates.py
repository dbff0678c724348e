"""When a certificate ends, read from its bytes: as the library that made it says."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from confluent_kafka import KafkaError
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from consumer.adapters.kafka.client_errors import why_silent
from consumer.adapters.network import client_certificate, ends_at

KEY = ec.generate_private_key(ec.SECP256R1())
PAST, SOON = datetime(2001, 5, 1, 3, 4, 5, tzinfo=UTC), datetime(2049, 12, 31, tzinfo=UTC)
FAR = datetime(2051, 1, 2, tzinfo=UTC)


def certificate(ends: datetime) -> str:
    """A certificate in PEM format that ends then."""
    named = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "client")])
    made = (
        x509.CertificateBuilder(named, named, KEY.public_key(), x509.random_serial_number())
        .not_valid_before(ends - timedelta(days=3_000))
        .not_valid_after(ends)
        .sign(KEY, hashes.SHA256())
    )
    return made.public_bytes(serialization.Encoding.PEM).decode()


def test_the_client_s_own_certificate_is_the_first_of_a_file() -> None:
    """Those of the authorities follow it; a key, or text, may stand before it."""
    text = "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\nfriendlyName: client\n"
    assert ends_at(text + certificate(PAST) + certificate(FAR)) == PAST.timestamp()


@given(at=st.integers(0, 2_000), byte=st.integers(0, 255))
def test_what_cannot_be_read_has_no_end(at: int, byte: int) -> None:
    """Whatever a file holds, reading it raises nothing."""
    text = bytearray(certificate(SOON).encode())
    text[at % len(text)] = byte
    assert isinstance(ends_at(text.decode("ascii", "replace")), int | None)
    assert ends_at(certificate(SOON)[: at % 400]) is None


def test_which_setting_has_the_certificate(tmp_path: Path) -> None:
    """A file, or the text itself; none where there is no certificate, or no file."""
    location, pem = "ssl.certificate.location", "ssl.certificate.pem"
    file = tmp_path / "client.pem"
    file.write_text(certificate(FAR))
    assert client_certificate({location: str(file)}) == (location, FAR.timestamp())
    assert client_certificate({pem: certificate(SOON)}) == (pem, SOON.timestamp())
    for none in (
        {location: str(tmp_path / "absent")},
        {location: str(tmp_path)},
        {"ssl.keystore.location": str(file)},
    ):
        assert client_certificate(none) is None


def test_brokers_that_refuse_an_ended_certificate_are_named_as_that(tmp_path: Path) -> None:
    """Kafka's alert is 46, whatever it does not like; only a certificate that has ended is called so."""
    alert = KafkaError(
        KafkaError._SSL,
        "ssl://kafka:9093/1: SSL handshake failed: ssl/record/rec_layer_s3.c:1605:error:0A000416:SSL routines:"
        "ssl3_read_bytes:sslv3 alert certificate unknown: SSL alert number 46 (after 4ms in state SSL_HANDSHAKE)",
    )
    ended, good = certificate(PAST), certificate(datetime.fromtimestamp(time.time() + 9e5, UTC))
    refused = "kafka:9093, the broker refuses the client's certificate"
    assert (
        why_silent({"ssl.certificate.pem": ended}, alert) == f"{refused}, which ended at 2001-05-01 03:04 UTC"
    )
    assert why_silent({"ssl.certificate.pem": good}, alert) == refused
