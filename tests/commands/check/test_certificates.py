"""The row of ``pinstream check`` about the client's certificates."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from consumer.commands.check import local
from consumer.commands.check.rows import Row, Severity
from tests.adapters.test_certificates import certificate
from tests.commands.check.asking import asked, nowhere

DAY = 24 * 60 * 60.0


def rows(folder: Path, **settings: str) -> list[Row]:
    """Return the answers with these settings."""
    return asked(nowhere(folder, **settings), local.certificates)


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
    [(found, text)] = rows(tmp_path, **paths)
    assert found is verdict
    assert text.startswith("KAFKA_SSL_CERTIFICATE_LOCATION: ")
    assert f"{ends:%Y-%m-%d %H:%M} UTC" in text
    assert words in text


def test_each_certificate_has_a_row_of_its_own(tmp_path: Path) -> None:
    """That of the registry, and of a shared key store's URL, which may hold a password; without one there is none."""
    assert rows(tmp_path) == []
    file = tmp_path / "client.pem"
    file.write_text(certificate(datetime(2051, 1, 2, tzinfo=UTC)))
    found = rows(
        tmp_path,
        SCHEMA_REGISTRY_URL="https://127.0.0.1:9",
        SCHEMA_REGISTRY_SSL_CERTIFICATE_LOCATION=str(file),
        SCHEMA_REGISTRY_SSL_KEY_LOCATION=str(file),
        PINSTREAM_KEY_STORE=f"rediss://pin:secret@127.0.0.1:9?cert={file}&key={file}",
    )
    names = ("SCHEMA_REGISTRY_SSL_CERTIFICATE_LOCATION", "PINSTREAM_KEY_STORE")
    assert found == [Row(Severity.OK, f"{name}: it ends at 2051-01-02 00:00 UTC") for name in names]
