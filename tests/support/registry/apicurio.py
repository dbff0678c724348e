"""Apicurio Registry on this machine, for tests: on loopback, with its data in a file, gone afterwards.

Maven brings it once (`pom.xml`). It speaks the API of Confluent's registry below ``/apis/ccompat/v7``. Where it
differs from Confluent's own: it knows no GUIDs, no contexts, and forgets the versions of a deleted subject (their
schemas are still read by id).

* `RealRegistry` is a registry of one's own: start, stop, shut down, restart on the same ports with the same schemas.
* `SecuredRegistry` has TLS and asks for a token of an `Issuer`, or for a user and password that it gets one for.
* `shared_registry` hands one registry to all processes of a test run, as `shared_broker` does.
"""

from __future__ import annotations

import contextlib
import shutil
import ssl
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from tests.support.certificates import Authority
from tests.support.kafka.broker import free_ports
from tests.support.kafka.secured import Issuer, Signer
from tests.support.keeper import OwnServer, keep, shared
from tests.support.maven import fetched

HERE = Path(__file__).resolve().parent
NAME = "registry"
API = "/apis/ccompat/v7"
"""Below this path it has the API of Confluent's registry."""

_JVM = ("-Xms64m", "-Xmx384m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-Xshare:auto")


class RealRegistry(OwnServer):
    """One registry."""

    what = "Apicurio"

    def __init__(self, directory: Path | None = None) -> None:
        super().__init__(directory)
        self._port, self._tls_port = free_ports(2)
        self.base = f"http://127.0.0.1:{self._port}"
        self.url = self.base + API

    def properties(self) -> dict[str, str | int]:
        """Its properties that differ from the defaults."""
        return {
            "quarkus.http.host": "127.0.0.1",
            "quarkus.http.port": self._port,
            "quarkus.http.ssl-port": self._tls_port,
            "quarkus.datasource.jdbc.url": f"jdbc:h2:file:{self.directory / 'schemas'}",
            "quarkus.datasource.jdbc.initial-size": 1,
            "quarkus.datasource.jdbc.min-size": 1,
            "quarkus.datasource.jdbc.max-size": 8,
            "quarkus.log.level": "WARN",
        }

    def start(self) -> Self:
        """Start, on the same ports with the same schemas each time; returns when it is ready. Raises `Unavailable`."""
        jar = _ensure_jar()
        options = [f"-D{name}={value}" for name, value in self.properties().items()]
        self._launch([shutil.which("java") or "java", *_JVM, *options, "-jar", str(jar)])
        return self

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.base}/health/ready", timeout=2) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


class SecuredRegistry(RealRegistry):
    """See the module. ``shop`` may do everything, ``reader`` may read, and ``nobody`` may log in. `authority` signs its
    certificate; health is also told without TLS."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder / "registry")
        self.authority = Authority(folder, "registry-ca")
        self._certificate = self.authority.issue()
        self.signer = Signer()
        self.issuer = Issuer(self.signer)
        self.url = f"https://127.0.0.1:{self._tls_port}{API}"

    def properties(self) -> dict[str, str | int]:
        """See `RealRegistry`."""
        keys, _, path = self.issuer.keys_url.rpartition("/")
        return {
            **super().properties(),
            "quarkus.http.insecure-requests": "enabled",
            "quarkus.http.ssl.certificate.files": str(self._certificate),
            "quarkus.http.ssl.certificate.key-files": str(self._certificate),
            "registry.auth.enabled": "true",
            "quarkus.oidc.auth-server-url": keys,
            "quarkus.oidc.discovery-enabled": "false",
            "quarkus.oidc.jwks-path": f"/{path}",
            "quarkus.oidc.token-path": self.issuer.url,
            # A user and password are taken for those of an OAuth client, and a token got for them.
            "registry.auth.basic-auth-client-credentials.enabled": "true",
            "registry.auth.token.endpoint": self.issuer.url,
            "registry.auth.role-based-authorization": "true",
            "quarkus.oidc.roles.role-claim-path": "sub",  # each user is a role of its own
            "registry.auth.roles.admin": "shop",
            "registry.auth.roles.readonly": "reader",
        }

    def stop(self) -> None:
        """See `RealRegistry`; the token issuer ends, too."""
        super().stop()
        self.issuer.close()

    def context(self) -> ssl.SSLContext:
        """The TLS context of a client that trusts it."""
        return ssl.create_default_context(cafile=self.authority.file)


def _ensure_jar() -> Path:
    [jar] = fetched(HERE / "pom.xml", "dependency:unpack", HERE / "target" / "app").glob("*-runner.jar")
    return jar


def shared_registry(directory: Path, parent: int) -> str:
    """The address of the run's registry, as Confluent's clients take it. Raises `Unavailable`."""
    _ensure_jar()
    return shared(directory, NAME, "tests.support.registry.apicurio", parent)["url"]


@contextlib.contextmanager
def _kept() -> Iterator[dict[str, str]]:
    with RealRegistry() as registry:
        yield {"url": registry.url}


if __name__ == "__main__":
    keep("a schema registry", _kept)
