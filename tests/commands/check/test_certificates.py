"""The row of ``pinstream check`` about the client's certificates."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consumer.commands.check import local
from consumer.commands.check.rows import CheckContext, Severity
from consumer.settings import load
from tests.adapters.test_certificates import certificate
from tests.end_to_end.processes import run_environment
from tests.support.kafka.harness import Kafka

DAY = 24 * 60 * 60.0


def asked(folder: Path, **settings: str) -> list[tuple[Severity, str]]:
    """The answers with these settings."""
    env = run_environment(folder, Kafka("127.0.0.1:9", "none"), "a", "b", "http://127.0.0.1:9/v5", **settings)
    rows = asyncio.run(local.certificates(CheckContext(load(env))))
    return [(row.verdict, row.text) for row in rows]


@pytest.mark.parametrize(
    ("days", "verdict", "words"),
    [
        (15.0, Severity.OK, "it ends at "),
        (13.5, Severity.WARNING, "in 13 days: put a new one in place, and start the members again"),
        (-1.0, Severity.FAILED, "it ended at "),
    ],
)
def test_the_end_of_a_certificate_has_a_row(
    tmp_path: Path, days: float, verdict: Severity, words: str
) -> None:
    """A warning from fourteen days before; only one that has ended makes the configuration unfit."""
    file, ends = tmp_path / "client.pem", datetime.fromtimestamp(time.time() + days * DAY, UTC)
    file.write_text(certificate(ends))
    paths = {"KAFKA_SSL_CERTIFICATE_LOCATION": str(file), "KAFKA_SECURITY_PROTOCOL": "SSL"}
    [(found, text)] = asked(tmp_path, **paths)
    assert found is verdict
    assert text.startswith("KAFKA_SSL_CERTIFICATE_LOCATION: ")
    assert f"{ends:%Y-%m-%d %H:%M} UTC" in text
    assert words in text


def test_the_registry_s_certificate_has_a_row_of_its_own(tmp_path: Path) -> None:
    """Where there is a registry, and a certificate for it. Without one there is no row."""
    assert asked(tmp_path) == []
    file = tmp_path / "registry.pem"
    file.write_text(certificate(datetime(2051, 1, 2, tzinfo=UTC)))
    paths = {
        "SCHEMA_REGISTRY_URL": "https://127.0.0.1:9",
        "SCHEMA_REGISTRY_SSL_CERTIFICATE_LOCATION": str(file),
    }
    assert asked(tmp_path, **paths, SCHEMA_REGISTRY_SSL_KEY_LOCATION=str(file)) == [
        (Severity.OK, "SCHEMA_REGISTRY_SSL_CERTIFICATE_LOCATION: it ends at 2051-01-02 00:00 UTC")
    ]


def test_the_certificate_of_a_shared_key_store_has_a_row_of_its_own(tmp_path: Path) -> None:
    """The `cert` of its URL. Nothing else of the URL is said: it may hold a password."""
    file = tmp_path / "redis.pem"
    file.write_text(certificate(datetime(2051, 1, 2, tzinfo=UTC)))
    url = f"rediss://pin:secret@127.0.0.1:9?cert={file}&key={file}"
    assert asked(tmp_path, PINSTREAM_KEY_STORE=url) == [
        (Severity.OK, "PINSTREAM_KEY_STORE: it ends at 2051-01-02 00:00 UTC")
    ]
