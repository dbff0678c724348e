"""Passwords and certificates that change on disk: what takes effect at once, and what needs a new start."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from tests.end_to_end.api import Api
from tests.end_to_end.processes import Process, last_error, run_environment
from tests.end_to_end.records import commerce_event, new_group, new_topic, write_events
from tests.support.kafka.secured import SecuredBroker, environment

USER = "shop"
QUICK = {"KAFKA_SESSION_TIMEOUT_MS": "6000", "KAFKA_HEARTBEAT_INTERVAL_MS": "500"}
"""Seconds for which a member that could not leave its group holds its partitions."""


@pytest.fixture
def rotating(tmp_path: Path) -> Iterator[SecuredBroker]:
    """A broker that this test may restart, and whose passwords it may change."""
    with SecuredBroker(tmp_path / "kafka") as broker:
        broker.add_scram_users()
        broker.grant_all(USER)
        yield broker


@pytest.mark.real_kafka  # skipped where no broker can be had
def test_a_password_that_changes(rotating: SecuredBroker, api: Api, tmp_path: Path) -> None:
    """Open connections stay. A new one is refused: the service ends, and the next start reads the file."""
    kafka = rotating.plain
    topic = new_topic(kafka)
    password = tmp_path / "password"
    login = rotating.with_login(USER, "SCRAM-SHA-512")
    password.write_text(str(login.pop("sasl.password")))
    env = {
        **run_environment(tmp_path, kafka, topic, new_group(), api.url, **QUICK),
        **environment(login),
        "KAFKA_SASL_PASSWORD_FILE": str(password),
    }
    with Process(tmp_path, "run", env=env) as service:
        write_events(kafka, topic, [commerce_event("a")])
        service.until_settled(1)
        rotating.add_scram_users([USER], "another-password")
        password.write_text("another-password")
        write_events(kafka, topic, [commerce_event("b")])
        service.until_settled(2)
        rotating.restart()
        assert service.wait() == 1
        assert "the broker refused the login" in last_error(service.stderr)
    with Process(tmp_path, "run", env=env) as service:
        write_events(kafka, topic, [commerce_event("c")])
        service.until(lambda: api.counts().distinct_event_ids == 3, "the third event")
        assert service.stop()[0] == 0
    assert api.counts().accepted_events == 3


@pytest.mark.slow("waits for the end of a certificate")
@pytest.mark.real_kafka
def test_a_certificate_that_expires(rotating: SecuredBroker, api: Api, tmp_path: Path) -> None:
    """While there is no other certificate the service waits and says so. Once the file has another one, the
    service ends so that it is read."""
    kafka = rotating.plain
    topic = new_topic(kafka)
    file = tmp_path / "client.pem"
    # A certificate is good for a day from an hour before `age` ago: this one for some seconds yet.
    made, seconds = time.monotonic(), 20
    file.write_bytes(
        rotating.authority.issue(host=USER, age=timedelta(hours=23) - timedelta(seconds=seconds)).read_bytes()
    )
    mutual = rotating.over_mutual_tls(USER)
    env = {
        **run_environment(tmp_path, kafka, topic, new_group(), api.url, **QUICK),
        **environment({**mutual, "ssl.certificate.location": str(file), "ssl.key.location": str(file)}),
    }
    with Process(tmp_path, "run", env=env) as service:
        write_events(kafka, topic, [commerce_event("a")])
        service.until_settled(1)
        service.until(lambda: time.monotonic() > made + seconds + 1, "the end of the certificate")
        rotating.restart()
        write_events(kafka, topic, [commerce_event("b")])
        service.until(
            lambda: any("certificate" in str(line.get("text")) for line in service.log), "the trouble"
        )
        assert service.get("/healthz")[0] == 200
        file.write_bytes(rotating.authority.issue(host=USER).read_bytes())
        assert service.wait() == 1
        assert f"TLS fails, and {file} has changed since the start" in last_error(service.stderr)
    with Process(tmp_path, "run", env=env) as service:
        service.until(lambda: api.counts().distinct_event_ids == 2, "the second event")
        assert service.stop()[0] == 0
    assert api.counts().accepted_events == 2
