"""What the exports of spans and metrics share: the resource, the connection, and what is told of a collector.

OpenTelemetry's exporters take every answer below 400 for a success, so a login page of a proxy would pass for a
collector. `Connection` looks at each answer before the exporter does.
"""

from __future__ import annotations

from typing import Any

import requests
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.util.re import parse_env_headers

from consumer import __version__
from consumer.app.telemetry import Wish

_REDIRECT, _FAILURE = 300, 400


def resource(instance: str) -> Resource:
    """Return whose spans and metrics they are."""
    ours = {"service.name": "pinstream", "service.version": __version__, "service.instance.id": instance}
    # What the OTEL_… variables say of the service comes before what we say.
    return Resource.create({**ours, **OTELResourceDetector().detect().attributes})


class Connection:
    """The HTTP session of one exporter; knows why the latest request brought nothing."""

    def __init__(self, wish: Wish) -> None:
        self.session = requests.Session()
        self.session.hooks["response"].append(self._look)
        self._wish = wish
        self._refused = ""

    def arguments(self) -> dict[str, Any]:
        """Return the arguments of an exporter, which reads all others from the environment."""
        headers = parse_env_headers(self._wish.headers, liberal=True)
        return {"session": self.session, "timeout": self._wish.timeout, "headers": headers or None}

    def begin(self) -> None:
        """Forget what came of earlier requests."""
        self._refused = ""

    def failure(self) -> str:
        """Return why the requests since `begin` failed, in a few words without any of the collector's."""
        return self._refused or "no answer"

    def _look(self, answer: Any, *_: object, **__: object) -> None:
        """Note what a failure answered. Raises `requests.RequestException` for what is no collector's answer."""
        self._refused = ""
        if answer.status_code >= _FAILURE:
            self._refused = f"HTTP {answer.status_code}"
        elif answer.status_code >= _REDIRECT:
            self._refused = f"HTTP {answer.status_code}, a redirect"
        elif answer.headers.get("Content-Type", "").lower().startswith("text/html"):
            self._refused = "HTML"
        if self._refused and answer.status_code < _FAILURE:
            raise requests.RequestException(self._refused)
