"""What OpenTelemetry's standard variables ask for, and what pinstream supports of it.

`start` returns the traces that they ask for. A mistake in the variables or the installation is one warning and no
traces: it never stops the delivery.
"""

from __future__ import annotations

from collections.abc import Mapping

import structlog

from consumer import logs
from consumer.app.tracing import Tracing

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_EXPORTER = "OTEL_TRACES_EXPORTER"
INSTALL = "OpenTelemetry is not installed: pip install 'pinstream[otel]'"


def start(environ: Mapping[str, str], group: str, api_url: str) -> Tracing:
    """Start the traces that the variables ask for. Never raises; logs why there are none."""
    variable = asked_by(environ)
    if variable is None:
        return Tracing()
    log = structlog.get_logger()
    reason = _misfit(environ)
    if reason is None:
        # If the collector is down, its libraries log many lines; `spans` logs one.
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
    return Tracing()


def asked_by(environ: Mapping[str, str]) -> str | None:
    """Return the variable that asks for traces, an endpoint or the exporter by name; None if there is none."""
    exporter = _value(environ, _EXPORTER).lower()
    if _value(environ, "OTEL_SDK_DISABLED").lower() == "true" or exporter == "none":
        return None
    return next((name for name in (*_ENDPOINTS, _EXPORTER) if _value(environ, name)), None)


def _misfit(environ: Mapping[str, str]) -> str | None:
    """Return what pinstream does not support of what is asked for; None if it supports all."""
    # Of two variables with the same meaning the more specific one counts (OpenTelemetry's rule).
    protocol = next((name for name in _PROTOCOLS if _value(environ, name)), _PROTOCOLS[0])
    for name, possible in ((_EXPORTER, ("otlp", "otlp_proto_http")), (protocol, ("http/protobuf",))):
        value = _value(environ, name).lower()
        if value and value not in possible:
            return f"{name} must be unset or {possible[0]}, the only value that pinstream supports"
    endpoint = next((name for name in _ENDPOINTS if _value(environ, name)), "")
    if endpoint and not _value(environ, endpoint).lower().startswith(("http://", "https://")):
        return f"{endpoint} does not begin with http:// or https://: correct it"
    return None


def _value(environ: Mapping[str, str], name: str) -> str:
    """Return the value; an empty variable counts as not set (OpenTelemetry's rule)."""
    return environ.get(name, "").strip()
