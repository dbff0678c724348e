"""What OpenTelemetry's standard variables ask for, and what pinstream supports of it: one rule for traces and metrics.

`traces` and `metrics` return what the variables ask for. A mistake in the variables or the installation is one warning
and no export: it never stops the delivery. The values that OpenTelemetry's SDK would replace by a default without a
word are checked here, too. Headers are secrets: they are in no message.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar
from urllib.parse import urlsplit

import structlog

from consumer import logs
from consumer.app.telemetry import MetricsExport, Tracing, Wish
from consumer.errors import SettingsError, missing_extra
from consumer.settings import Settings
from consumer.settings.passthrough import read_secret_file

_Export = TypeVar("_Export")

_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
INSTALL = missing_extra("otel")


class _Off(NamedTuple):
    """Why one signal that is asked for is not exported."""

    signal: str
    asked_by: str
    reason: str


def traces(environ: Mapping[str, str], settings: Settings) -> Tracing:
    """Start the traces that the variables ask for. Never raises; logs why there are none."""
    found, off = _traces(environ, settings)
    _warn(off)
    return found or Tracing()


def metrics(environ: Mapping[str, str], settings: Settings) -> MetricsExport:
    """Return the export of metrics that the variables ask for. Never raises; logs why there is none."""
    found, off = _metrics(environ, settings)
    _warn(off)
    return found or MetricsExport()


def both(environ: Mapping[str, str], settings: Settings) -> tuple[Tracing, MetricsExport]:
    """Start `traces` and `metrics`. A mistake that turns off both is one line."""
    (tracing, no_traces), (exported, no_metrics) = _traces(environ, settings), _metrics(environ, settings)
    _warn(no_traces, no_metrics)
    return tracing or Tracing(), exported or MetricsExport()


def _traces(environ: Mapping[str, str], settings: Settings) -> tuple[Tracing | None, _Off | None]:
    def start(wish: Wish) -> Tracing:
        from consumer.app.telemetry.spans import export

        return export(wish, settings.kafka.group_id, settings.pinterest.api_url)

    return _Variables(environ, "TRACES").start(_instance(settings), start)


def _metrics(environ: Mapping[str, str], settings: Settings) -> tuple[MetricsExport | None, _Off | None]:
    def start(wish: Wish) -> MetricsExport:
        from consumer.app.telemetry.metrics import export

        return export(wish)

    return _Variables(environ, "METRICS").start(_instance(settings), start)


def outlook(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the signals that would be exported, and why others that are asked for would not. Starts nothing."""
    good, off = [], []
    for signal in ("METRICS", "TRACES"):
        variables = _Variables(environ, signal)
        asked_by = variables.asked_by()
        if asked_by is None:
            continue
        reason = variables.misfit() or (None if importlib.util.find_spec("opentelemetry") else INSTALL)
        if reason is None:
            good.append(signal.lower())
        else:
            off.append(_Off(signal, asked_by, reason))
    return good, list(_texts(off))


def _warn(*signals: _Off | None) -> None:
    """Log one line for each reason."""
    for text in _texts([one for one in signals if one is not None]):
        structlog.get_logger().warning("telemetry_off", text=text)


def _texts(off: Sequence[_Off]) -> Iterator[str]:
    for variable, reason in dict.fromkeys((one.asked_by, one.reason) for one in off):
        of_it = [one.signal for one in off if (one.asked_by, one.reason) == (variable, reason)]
        names = " and ".join(of_it).lower()
        switches = " and ".join(f"OTEL_{one}_EXPORTER=none" for one in of_it)
        yield f"{variable} asks for {names}, but {reason}, or set {switches}"


def _instance(settings: Settings) -> str:
    """Return a name that no other process has at the same time."""
    # A static member keeps its name when it starts again, so its series go on.
    given = settings.kafka.properties.get("group.instance.id")
    return given.get_secret_value() if given is not None else f"{socket.gethostname()}-{os.getpid()}"


class _Variables:
    """The variables of one signal, ``TRACES`` or ``METRICS``. An empty one counts as not set (OpenTelemetry's rule)."""

    def __init__(self, environ: Mapping[str, str], signal: str) -> None:
        self._environ = environ
        self._signal = signal
        self._exporter = f"OTEL_{signal}_EXPORTER"

    def start(self, instance: str, export: Callable[[Wish], _Export]) -> tuple[_Export | None, _Off | None]:
        """Start what is asked for, and log that. Return None if nothing is; and why, if it cannot be had."""
        variable = self.asked_by()
        if variable is None:
            return None, None
        reason = self.misfit()
        if reason is None:
            # If the collector is down, its libraries log many lines; `spans` and `metrics` log one.
            logs.mute("opentelemetry")
            try:
                exported = export(self._wish(instance))
            except ImportError:
                reason = INSTALL
            except (ValueError, OSError) as error:
                reason = f"an OTEL_… variable has an invalid value ({error}): correct it"
            except SettingsError as error:  # of the file of the headers
                reason = f"{error}: correct it"
            else:
                structlog.get_logger().info("telemetry", signal=self._signal.lower(), asked_by=variable)
                return exported, None
        return None, _Off(self._signal, variable, reason)

    def asked_by(self) -> str | None:
        """Return the variable that asks for the signal: an endpoint, or the exporter by name; None if none does."""
        asked = self._exporters()
        if self._value("OTEL_SDK_DISABLED").lower() == "true" or "none" in asked:
            return None
        # /metrics is for Prometheus already.
        if asked == {"prometheus"} and self._signal == "METRICS":
            return None
        endpoints = self._names("ENDPOINT")
        return next((name for name in (*endpoints, self._exporter) if self._value(name)), None)

    def misfit(self) -> str | None:
        """Return what pinstream does not support of what is asked for; None if it supports all."""
        exporters = {"otlp", "otlp_proto_http"} | ({"prometheus"} if self._signal == "METRICS" else set())
        if not self._exporters() <= exporters:
            return f"{self._exporter} is not otlp, the only exporter that pinstream has: correct it"
        checks: list[tuple[tuple[str, ...], Callable[[str], str | None]]] = [
            (("OTEL_SDK_DISABLED",), _one_of("true", "false")),
            (self._names("PROTOCOL"), _protocol),
            (self._names("ENDPOINT"), _url),
            (self._names("TIMEOUT"), _milliseconds),
            (self._names("COMPRESSION"), _one_of("gzip", "none")),
            (self._names("HEADERS"), _pairs),
            (self._names("CERTIFICATE"), _file),
            (self._names("CLIENT_CERTIFICATE"), _file),
            (self._names("CLIENT_KEY"), _file),
            (("OTEL_RESOURCE_ATTRIBUTES",), _pairs),
        ]
        if self._signal == "METRICS":
            checks += [
                (("OTEL_METRIC_EXPORT_INTERVAL",), _milliseconds),
                (("OTEL_METRIC_EXPORT_TIMEOUT",), _milliseconds),
                ((_TEMPORALITY,), _one_of("cumulative", "delta", "lowmemory")),
            ]
        for names, check in checks:
            name = self._set_of(names)
            wrong = check(self._value(name)) if name else None
            if wrong is not None:
                return f"{name} {wrong}: correct it"
        return None

    def _wish(self, instance: str) -> Wish:
        """Return what is asked for. Raises `SettingsError` if the file of the headers cannot be read."""
        # Milliseconds, as the standard says; OpenTelemetry's Python SDK takes the first for seconds.
        variables: dict[str, tuple[str, ...]] = {"timeout": self._names("TIMEOUT")}
        temporality = ""
        if self._signal == "METRICS":
            variables["interval"] = ("OTEL_METRIC_EXPORT_INTERVAL",)
            variables["export_timeout"] = ("OTEL_METRIC_EXPORT_TIMEOUT",)
            temporality = self._value(_TEMPORALITY).lower()
        given = {
            field: int(self._value(name)) / 1000
            for field, names in variables.items()
            if (name := self._set_of(names))
        }
        return Wish(instance, headers=self._headers_file(), temporality=temporality or "cumulative", **given)

    def _headers_file(self) -> str:
        """Return the headers that stand in a file, as our own secrets may."""
        name = self._set_of(tuple(f"{one}_FILE" for one in self._names("HEADERS")))
        if name is None:
            return ""
        if self._value(name.removesuffix("_FILE")):
            raise SettingsError(f"{name.removesuffix('_FILE')} and {name} are both set; keep one of them")
        text = read_secret_file(name, Path(self._value(name)))
        wrong = _pairs(text)
        if wrong is not None:
            raise SettingsError(f"the file of {name} {wrong}")
        return text

    def _names(self, what: str) -> tuple[str, str]:
        """Of two variables with the same meaning, the more specific one counts (OpenTelemetry's rule)."""
        return f"OTEL_EXPORTER_OTLP_{self._signal}_{what}", f"OTEL_EXPORTER_OTLP_{what}"

    def _set_of(self, names: tuple[str, ...]) -> str | None:
        return next((name for name in names if self._value(name)), None)

    def _exporters(self) -> set[str]:
        return {one.strip() for one in self._value(self._exporter).lower().split(",") if one.strip()}

    def _value(self, name: str) -> str:
        return self._environ.get(name, "").strip()


# -- what a value may be; each returns what is wrong with it, or None


def _one_of(*values: str) -> Callable[[str], str | None]:
    def check(value: str) -> str | None:
        return None if value.lower() in values else f"is none of {', '.join(values)}"

    return check


def _protocol(value: str) -> str | None:
    if value.lower() == "http/protobuf":
        return None
    return "is not http/protobuf, the only protocol that pinstream has (port 4318 of a collector, not 4317)"


def _url(value: str) -> str | None:
    try:
        parts = urlsplit(value)
        fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        fits = False
    return None if fits else "is not a URL such as http://collector:4318"


def _milliseconds(value: str) -> str | None:
    # `isdecimal` is true of digits that `int` reads as well, but the standard means these ten.
    fits = value.isascii() and value.isdecimal() and int(value) > 0
    return None if fits else "is not a number of milliseconds, such as 10000"


def _pairs(value: str) -> str | None:
    # Each header on its own, with the spaces that people put after a comma.
    pairs = [one.partition("=") for one in value.split(",") if one.strip()]
    fits = all(name.strip() and equals for name, equals, _ in pairs)
    return None if fits else "is not a list such as name=value,other=value"


def _file(value: str) -> str | None:
    return None if os.access(value, os.R_OK) and os.path.isfile(value) else "names a file that cannot be read"
