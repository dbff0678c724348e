"""Traces for OpenTelemetry, if its standard variables ask for them; without that nothing of it is even imported.

Theory of operation. `start` looks at the variables, and gives a `Tracing`: one that leaves everything as it is, or
that of `consumer.app.tracing.spans`, the only module that imports OpenTelemetry (the extra ``otel``). It wraps what the
service drives, the source and the API, so the service and the core know nothing of spans. Whatever is wrong with the
variables or the installation is one warning, and no traces: nobody loses events for want of a trace.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

import structlog

from consumer import logs
from consumer.service import Api, RecordSource, Tracer, Untraced

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"
_OURS = {
    _EXPORTER: ("otlp", "otlp_proto_http"),
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": ("http/protobuf",),
    "OTEL_EXPORTER_OTLP_PROTOCOL": ("http/protobuf",),
}
"""What we can do of what the standard allows."""
INSTALL = "OpenTelemetry is not installed: pip install 'pinstream[otel]'"


class Tracing(Tracer, Protocol):
    """Traces of one member: it wraps the source and the API that the service drives."""

    links: int
    """The number of records of a batch whose own traces it links to."""

    def source(self, source: RecordSource) -> RecordSource:
        """The source that the service drives."""

    def api(self, api: Api) -> Api:
        """The API that the service drives."""

    def within(self, left: Callable[[], float]) -> None:
        """`left` gives the seconds that closing may take; it is called when closing begins."""

    async def close(self) -> None:
        """Send what is still queued, in bounded time."""


class NoTracing(Untraced):
    """No traces: everything stays as it is."""

    links = 0

    def source(self, source: RecordSource) -> RecordSource:
        """See `Tracing.source`."""
        return source

    def api(self, api: Api) -> Api:
        """See `Tracing.api`."""
        return api

    def within(self, left: Callable[[], float]) -> None:
        """See `Tracing.within`."""

    async def close(self) -> None:
        """See `Tracing.close`."""


def start(environ: Mapping[str, str], group: str, api_url: str) -> Tracing:
    """What the variables ask for. Never raises; logs why there are no traces although they ask for them."""
    variable = asked_by(environ)
    if variable is None:
        return NoTracing()
    log = structlog.get_logger()
    reason = _misfit(environ)
    if reason is None:
        # What its libraries have to say of a collector that is down, `spans` says in one line.
        logs.mute("opentelemetry")
        try:
            from consumer.app.tracing.spans import export

            tracing = export(group, api_url)
        except ImportError:
            reason = INSTALL
        except (ValueError, OSError) as error:
            reason = f"an OTEL_… variable has an invalid value ({error}): correct it"
        else:
            log.info("tracing", asked_by=variable)
            return tracing
    log.warning("tracing_off", text=f"{variable} asks for traces, but {reason}, or unset it")
    return NoTracing()


def asked_by(environ: Mapping[str, str]) -> str | None:
    """The variable that asks for traces, if any: an endpoint, or the exporter by name."""
    exporter = _value(environ, _EXPORTER).lower()
    if _value(environ, "OTEL_SDK_DISABLED").lower() == "true" or exporter == "none":
        return None
    return next((name for name in (*_ENDPOINTS, _EXPORTER) if _value(environ, name)), None)


def _misfit(environ: Mapping[str, str]) -> str | None:
    """What we cannot do of what is asked; the first of two names that mean the same counts, as in the standard."""
    protocol = next((name for name in _PROTOCOLS if _value(environ, name)), _PROTOCOLS[0])
    for name in (_EXPORTER, protocol):
        value, possible = _value(environ, name).lower(), _OURS[name]
        if value and value not in possible:
            return f"{name} must be unset or {possible[0]}, the only value that pinstream supports"
    endpoint = next((name for name in _ENDPOINTS if _value(environ, name)), "")
    if endpoint and not _value(environ, endpoint).lower().startswith(("http://", "https://")):
        return f"{endpoint} does not begin with http:// or https://: correct it"
    return None


def _value(environ: Mapping[str, str], name: str) -> str:
    """An empty variable is as good as none (OpenTelemetry's own rule)."""
    return environ.get(name, "").strip()
