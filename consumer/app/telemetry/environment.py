"""What OpenTelemetry's standard variables ask for, and what pinstream supports of it: one rule for traces and metrics.

`start` starts what the variables ask for. A mistake in the variables or the installation is one warning and no export:
it never stops the delivery. The values that OpenTelemetry's SDK would replace by a default without a
word are checked here, too. Headers are secrets: they are in no message.
"""

from __future__ import annotations

import importlib.util
import os
import re
import socket
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import structlog

from consumer import logs
from consumer.app.telemetry import MetricsExport, Tracing, Wish
from consumer.errors import SettingsError, missing_extra
from consumer.settings import Settings
from consumer.settings.passthrough import read_secret_file

_INTERVAL, _EXPORT_TIMEOUT = "OTEL_METRIC_EXPORT_INTERVAL", "OTEL_METRIC_EXPORT_TIMEOUT"
_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
INSTALL = missing_extra("otel")


_Export = Callable[[str, str, Wish], None]
"""Exports a signal, given the variable that asks for it and how."""


def start(environ: Mapping[str, str], settings: Settings, *signals: str) -> tuple[Tracing, MetricsExport]:
    """Start the traces and metrics that the variables ask for, of these `signals`: ``TRACES``, ``METRICS``.

    Never raises. Logs why a signal is not exported; a mistake that turns off both is one line.
    """
    tracing, exported = Tracing(), MetricsExport()
    # A static member keeps its name when it starts again, so its series go on. Otherwise, a name that no other process
    # has at the same time.
    given = settings.kafka.properties.get("group.instance.id")
    instance = f"{socket.gethostname()}-{os.getpid()}" if given is None else given.get_secret_value()

    def export(signal: str, asked_by: str, wish: Wish) -> None:
        nonlocal tracing, exported
        # If the collector is down, its libraries log many lines; `spans` and `metrics` log one.
        logs.mute("opentelemetry")
        # Imported here: OpenTelemetry is an extra, and takes half a second.
        if signal == "TRACES":
            from consumer.app.telemetry.spans import export as export_spans

            tracing = export_spans(wish, settings.kafka.group_id, settings.pinterest.api_url)
        else:
            from consumer.app.telemetry.metrics import OtlpMetrics

            exported = OtlpMetrics(wish)
        structlog.get_logger().info("telemetry", signal=signal.lower(), asked_by=asked_by)

    for text in _export_each(environ, signals, instance, export):
        structlog.get_logger().warning("telemetry_off", text=text)
    return tracing, exported


def planned_exports(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the signals that would be exported, and why others that are asked for would not. Starts nothing."""
    good: list[str] = []

    def check(signal: str, _asked_by: str, _wish: Wish) -> None:
        # Looked for and not imported: `check` starts nothing.
        if not importlib.util.find_spec("opentelemetry"):
            raise ImportError
        good.append(signal.lower())

    return good, _export_each(environ, ("METRICS", "TRACES"), "", check)


def _export_each(
    environ: Mapping[str, str], signals: Iterable[str], instance: str, export: _Export
) -> list[str]:
    """Export each signal that is asked for. Return sentences that say why others that are asked for are not."""
    off: dict[tuple[str, str], list[str]] = {}
    for signal in signals:
        variables = _Variables(environ, signal)
        if (asked_by := variables.asked_by()) is None:
            continue
        try:
            export(signal, asked_by, variables.wish(instance))
            continue
        except SettingsError as error:
            reason = f"{error}: correct it"
        except ImportError:
            reason = INSTALL
        except (ValueError, OSError) as error:
            reason = f"an OTEL_… variable has an invalid value ({error}): correct it"
        off.setdefault((asked_by, reason), []).append(signal)
    return [
        f"{asked_by} asks for {' and '.join(others).lower()}, but {reason}, or set "
        + " and ".join(f"OTEL_{one}_EXPORTER=none" for one in others)
        for (asked_by, reason), others in off.items()
    ]


class _Variables:
    """The variables of one signal, ``TRACES`` or ``METRICS``. An empty one counts as not set (OpenTelemetry's rule)."""

    def __init__(self, environ: Mapping[str, str], signal: str) -> None:
        self.signal = signal
        self._values = {name: value.strip() for name, value in environ.items() if value.strip()}
        self._exporter = f"OTEL_{signal}_EXPORTER"
        named = self._values.get(self._exporter, "").lower().split(",")
        self._exporters = {one.strip() for one in named if one.strip()}

    def asked_by(self) -> str | None:
        """Return the variable that asks for the signal: an endpoint, or the exporter by name; None if none does."""
        if self._values.get("OTEL_SDK_DISABLED", "").lower() == "true" or "none" in self._exporters:
            return None
        # /metrics is for Prometheus already.
        if self._exporters == {"prometheus"} and self.signal == "METRICS":
            return None
        return self._find("ENDPOINT") or (self._exporter if self._exporter in self._values else None)

    def wish(self, instance: str) -> Wish:
        """Return what is asked for. Raises `SettingsError` if pinstream does not support it, or a value is wrong."""
        exporters = {"otlp", "otlp_proto_http"}
        rules = [(self._find(what), rule) for what, rule in _OTLP.items()]
        rules += _OTHERS.items()
        variables = {"timeout": self._find("TIMEOUT")}
        if self.signal == "METRICS":
            exporters.add("prometheus")
            rules += _OF_METRICS.items()
            variables |= {"interval": _INTERVAL, "export_timeout": _EXPORT_TIMEOUT}
        if not self._exporters <= exporters:
            raise SettingsError(f"{self._exporter} is not otlp, the only exporter that pinstream has")
        for name, (fits, words) in rules:
            if name in self._values and not fits(self._values[name]):
                raise SettingsError(f"{name} {words}")
        # Milliseconds, as the standard says; OpenTelemetry's Python SDK takes the first for seconds.
        given = {
            field: int(self._values[name]) / 1000 for field, name in variables.items() if name in self._values
        }
        return Wish(
            instance,
            headers=self._headers_file(),
            temporality=self._values.get(_TEMPORALITY, "cumulative").lower(),  # used for metrics only
            **given,
        )

    def _headers_file(self) -> str:
        """Return the headers in a file, which is read like a file with one of our own secrets."""
        name = self._find("HEADERS_FILE")
        if name is None:
            return ""
        # As with our own secrets: if both are set, no one can say which one is meant.
        if name.removesuffix("_FILE") in self._values:
            raise SettingsError(f"{name.removesuffix('_FILE')} and {name} are both set; keep one of them")
        text = read_secret_file(name, Path(self._values[name]))
        if not _PAIRS.fits(text):
            raise SettingsError(f"the file of {name} {_PAIRS.otherwise}")
        return text

    def _find(self, what: str) -> str | None:
        """Return the variable that is set. Of two, the more specific one counts (OpenTelemetry's rule)."""
        names = (f"OTEL_EXPORTER_OTLP_{self.signal}_{what}", f"OTEL_EXPORTER_OTLP_{what}")
        return next((name for name in names if name in self._values), None)


class _Constraint(NamedTuple):
    """What a value may be. `otherwise` goes on after the variable's name; it never repeats the value."""

    fits: Callable[[str], object]
    otherwise: str


def _one_of(*values: str) -> _Constraint:
    return _Constraint(lambda value: value.lower() in values, f"is none of {', '.join(values)}")


def _is_url(value: str) -> bool:
    try:
        parts = urlsplit(value)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:  # a port that is no number
        return False


def _are_pairs(value: str) -> bool:
    # Each header on its own, with the spaces that people put after a comma.
    pairs = [one.partition("=") for one in value.split(",") if one.strip()]
    return all(name.strip() and equals for name, equals, _ in pairs)


# The standard means the digits 0-9; `str.isdecimal` is true of others, too. With no more of them than a float can hold.
_MILLISECONDS: Final = _Constraint(
    re.compile("0{0,9}[1-9][0-9]{0,11}").fullmatch, "is not a number of milliseconds, such as 10000"
)
_PAIRS: Final = _Constraint(_are_pairs, "is not a list such as name=value,other=value")
_FILE: Final = _Constraint(
    lambda value: os.access(value, os.R_OK) and os.path.isfile(value), "names a file that cannot be read"
)
# For OTEL_EXPORTER_OTLP_… and for OTEL_EXPORTER_OTLP_TRACES_… or …_METRICS_….
_OTLP: Final[Mapping[str, _Constraint]] = {
    "PROTOCOL": _one_of("http/protobuf")._replace(
        otherwise="is not http/protobuf, the only protocol that pinstream has (port 4318 of a collector, not 4317)"
    ),
    "ENDPOINT": _Constraint(_is_url, "is not a URL such as http://collector:4318"),
    "TIMEOUT": _MILLISECONDS,
    "COMPRESSION": _one_of("gzip", "none"),
    "HEADERS": _PAIRS,
    "CERTIFICATE": _FILE,
    "CLIENT_CERTIFICATE": _FILE,
    "CLIENT_KEY": _FILE,
}
_OTHERS: Final[dict[str, _Constraint]] = {
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_RESOURCE_ATTRIBUTES": _PAIRS,
}
_OF_METRICS: Final[dict[str, _Constraint]] = {
    _INTERVAL: _MILLISECONDS,
    _EXPORT_TIMEOUT: _MILLISECONDS,
    _TEMPORALITY: _one_of("cumulative", "delta", "lowmemory"),
}
