"""What the exports of spans and metrics share: the resource, the connection, and what is logged about a collector.

OpenTelemetry's exporters take every answer below 400 for a success, so a login page of a proxy would pass for a
collector. `Connection` looks at each answer before the exporter does.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import requests
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.util.re import parse_env_headers

from consumer import __version__
from consumer.app.telemetry import Wish

_REDIRECT, _FAILURE = 300, 400
_NO_ANSWER = "no answer"


def resource(instance: str) -> Resource:
    """Return the resource that spans and metrics belong to."""
    ours = {"service.name": "pinstream", "service.version": __version__, "service.instance.id": instance}
    # The OTEL_… variables' attributes take precedence over ours.
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


class Connection(requests.Session):
    """The HTTP session of one exporter; it knows why the latest request failed."""

    def __init__(self, wish: Wish) -> None:
        super().__init__()
        headers = parse_env_headers(wish.headers, liberal=True)
        # The exporter reads all others from the environment.
        self.arguments: dict[str, Any] = {
            "session": self,
            "timeout": wish.timeout,
            "headers": headers or None,
        }
        """The arguments of an exporter."""
        self.failure = _NO_ANSWER
        """Why the latest request failed, if it did: a few words, none of them from the collector."""

    def request(self, *args: Any, **named: Any) -> requests.Response:
        """Make a request. Raises `requests.RequestException` if there is no answer, or if it is not a collector's."""
        self.failure = _NO_ANSWER
        # Named, or REQUESTS_CA_BUNDLE would come before OTEL_EXPORTER_OTLP_CERTIFICATE.
        named["verify"] = self.verify
        try:
            answer = super().request(*args, **named)
        except requests.RequestException as error:
            self.failure = _words(error)
            raise
        if answer.status_code >= _FAILURE:
            self.failure = f"HTTP {answer.status_code}"  # the exporter knows which of these to try again
        elif answer.status_code >= _REDIRECT:
            self.failure = f"HTTP {answer.status_code}, a redirect"
            raise requests.RequestException(self.failure)
        elif answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            self.failure = "HTML"
            raise requests.RequestException(self.failure)
        return answer


@dataclass(eq=False)
class Outage:
    """Calls `begins` with the reason when a collector begins to accept nothing, and `ends` with how much was not
    exported when it accepts some again."""

    begins: Callable[[str], None]
    ends: Callable[[int], None]
    _count: int = 0

    def note(self, failure: str | None, count: int = 1) -> None:
        """Take note of an export of `count` items. `failure`: why it failed; None: it succeeded."""
        if failure is not None:
            if not self._count:
                self.begins(failure)
            self._count += count
        elif self._count:
            self.ends(self._count)
            self._count = 0


def _words(error: Exception) -> str:
    """Return what is wrong with a connection, without an address or any text of the other side."""
    # Of a certificate OpenSSL's own words: expired, another host's, of an unknown authority.
    certificate = re.search(
        r"certificate verify failed: (.+?)(?: \(_ssl|[.,] certificate is not valid|$)", str(error)
    )
    if certificate is not None:
        return f"certificate: {certificate[1]}"
    kinds = {
        requests.exceptions.SSLError: "TLS",
        requests.exceptions.ProxyError: "the proxy does not connect",
        requests.exceptions.Timeout: "timeout",
        requests.exceptions.ConnectionError: "no connection",
    }
    return next((words for kind, words in kinds.items() if isinstance(error, kind)), _NO_ANSWER)
