"""What OpenTelemetry's standard variables ask for, and what pinstream supports of it: one rule for traces and metrics.

`start` starts what the variables ask for. A mistake in the variables or the installation is one warning and no export:
it never stops the delivery. The values that OpenTelemetry's SDK would replace by a default without a
word are checked here, too. Headers are secrets: they are in no message.
"""

from __future__ import annotations

import importlib.util
import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple
from urllib.parse import urlsplit

import structlog

from consumer import logs
from consumer.app.telemetry import MetricsExport, Tracing, Wish
from consumer.errors import SettingsError, missing_extra
from consumer.settings import Settings
from consumer.settings.passthrough import read_secret_file

_TEMPORALITY = "OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE"
INSTALL = missing_extra("otel")


class _Off(NamedTuple):
    """Why one signal that is asked for is not exported."""

    signal: str
    asked_by: str
    reason: str


def start(environ: Mapping[str, str], settings: Settings, *signals: str) -> tuple[Tracing, MetricsExport]:
    """Start the traces and metrics that the variables ask for, of these `signals`: ``TRACES``, ``METRICS``.

    Never raises. Logs why a signal is not exported; a mistake that turns off both is one line.
    """
    tracing, exported = Tracing(), MetricsExport()
    off: list[_Off] = []
    # A static member keeps its name when it starts again, so its series go on. Otherwise, a name that no other process
    # has at the same time.
    given = settings.kafka.properties.get("group.instance.id")
    instance = f"{socket.gethostname()}-{os.getpid()}" if given is None else given.get_secret_value()
    for signal in signals:
        variables = _Variables(environ, signal)
        asked_by = variables.asked_by()
        if asked_by is None:
            continue
        reason = variables.misfit()
        if reason is None:
            # If the collector is down, its libraries log many lines; `spans` and `metrics` log one.
            logs.mute("opentelemetry")
            try:
                wish = variables.wish(instance)
                # Imported here: OpenTelemetry is an extra, and takes half a second.
                if signal == "TRACES":
                    from consumer.app.telemetry.spans import export as export_spans

                    tracing = export_spans(wish, settings.kafka.group_id, settings.pinterest.api_url)
                else:
                    from consumer.app.telemetry.metrics import export as export_metrics

                    exported = export_metrics(wish)
                structlog.get_logger().info("telemetry", signal=signal.lower(), asked_by=asked_by)
                continue
            except ImportError:
                reason = INSTALL
            except (ValueError, OSError) as error:
                reason = f"an OTEL_… variable has an invalid value ({error}): correct it"
            except SettingsError as error:  # of the file of the headers
                reason = f"{error}: correct it"
        off.append(_Off(signal, asked_by, reason))
    for text in _texts(off):
        structlog.get_logger().warning("telemetry_off", text=text)
    return tracing, exported


def outlook(environ: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the signals that would be exported, and why others that are asked for would not. Starts nothing."""
    good, off = [], []
    for signal in ("METRICS", "TRACES"):
        variables = _Variables(environ, signal)
        asked_by = variables.asked_by()
        if asked_by is None:
            continue
        # Looked for and not imported: `check` starts nothing.
        reason = variables.misfit() or (None if importlib.util.find_spec("opentelemetry") else INSTALL)
        if reason is None:
            good.append(signal.lower())
        else:
            off.append(_Off(signal, asked_by, reason))
    return good, list(_texts(off))


def _texts(off: Sequence[_Off]) -> Iterator[str]:
    # By variable and reason, in order: what turns off both is one line.
    for variable, reason in dict.fromkeys((one.asked_by, one.reason) for one in off):
        of_it = [one.signal for one in off if (one.asked_by, one.reason) == (variable, reason)]
        names = " and ".join(of_it).lower()
        switches = " and ".join(f"OTEL_{one}_EXPORTER=none" for one in of_it)
        yield f"{variable} asks for {names}, but {reason}, or set {switches}"


class _Variables:
    """The variables of one signal, ``TRACES`` or ``METRICS``. An empty one counts as not set (OpenTelemetry's rule)."""

    def __init__(self, environ: Mapping[str, str], signal: str) -> None:
        self._values = {name: value.strip() for name, value in environ.items() if value.strip()}
        self._signal = signal
        self._exporter = f"OTEL_{signal}_EXPORTER"
        named = self._values.get(self._exporter, "").lower().split(",")
        self._exporters = {one.strip() for one in named if one.strip()}

    def asked_by(self) -> str | None:
        """Return the variable that asks for the signal: an endpoint, or the exporter by name; None if none does."""
        if self._values.get("OTEL_SDK_DISABLED", "").lower() == "true" or "none" in self._exporters:
            return None
        # /metrics is for Prometheus already.
        if self._exporters == {"prometheus"} and self._signal == "METRICS":
            return None
        return self._find("ENDPOINT") or (self._exporter if self._exporter in self._values else None)

    def misfit(self) -> str | None:
        """Return what pinstream does not support of what is asked for; None if it supports all."""
        exporters = {"otlp", "otlp_proto_http"} | ({"prometheus"} if self._signal == "METRICS" else set())
        if not self._exporters <= exporters:
            return f"{self._exporter} is not otlp, the only exporter that pinstream has: correct it"
        checks = [(self._find(what), check) for what, check in _OTLP.items()]
        checks += [(name, check) for name, check in _OTHERS.items()]
        if self._signal == "METRICS":
            checks += [(name, check) for name, check in _OF_METRICS.items()]
        for name, check in checks:
            wrong = check(self._values[name]) if name in self._values else None
            if wrong is not None:
                return f"{name} {wrong}: correct it"
        return None

    def wish(self, instance: str) -> Wish:
        """Return what is asked for. Raises `SettingsError` if the file of the headers cannot be read."""
        # Milliseconds, as the standard says; OpenTelemetry's Python SDK takes the first for seconds.
        variables = {"timeout": self._find("TIMEOUT")}
        temporality = "cumulative"
        if self._signal == "METRICS":
            variables["interval"] = "OTEL_METRIC_EXPORT_INTERVAL"
            variables["export_timeout"] = "OTEL_METRIC_EXPORT_TIMEOUT"
            temporality = self._values.get(_TEMPORALITY, temporality).lower()
        given = {
            field: int(self._values[name]) / 1000 for field, name in variables.items() if name in self._values
        }
        return Wish(instance, headers=self._headers_file(), temporality=temporality, **given)

    def _headers_file(self) -> str:
        """Return the headers that stand in a file, as our own secrets may."""
        name = self._find("HEADERS_FILE")
        if name is None:
            return ""
        # As with our own secrets: if both are set, no one can say which one is meant.
        if name.removesuffix("_FILE") in self._values:
            raise SettingsError(f"{name.removesuffix('_FILE')} and {name} are both set; keep one of them")
        text = read_secret_file(name, Path(self._values[name]))
        wrong = _pairs(text)
        if wrong is not None:
            raise SettingsError(f"the file of {name} {wrong}")
        return text

    def _find(self, what: str) -> str | None:
        """Return the variable that is set. Of two, the more specific one counts (OpenTelemetry's rule)."""
        names = (f"OTEL_EXPORTER_OTLP_{self._signal}_{what}", f"OTEL_EXPORTER_OTLP_{what}")
        return next((name for name in names if name in self._values), None)


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


_Check = Callable[[str], str | None]
# Of OTEL_EXPORTER_OTLP_… and of OTEL_EXPORTER_OTLP_TRACES_… or …_METRICS_….
_OTLP: Final[Mapping[str, _Check]] = {
    "PROTOCOL": _protocol,
    "ENDPOINT": _url,
    "TIMEOUT": _milliseconds,
    "COMPRESSION": _one_of("gzip", "none"),
    "HEADERS": _pairs,
    "CERTIFICATE": _file,
    "CLIENT_CERTIFICATE": _file,
    "CLIENT_KEY": _file,
}
_OTHERS: Final[Mapping[str, _Check]] = {
    "OTEL_SDK_DISABLED": _one_of("true", "false"),
    "OTEL_RESOURCE_ATTRIBUTES": _pairs,
}
_OF_METRICS: Final[Mapping[str, _Check]] = {
    "OTEL_METRIC_EXPORT_INTERVAL": _milliseconds,
    "OTEL_METRIC_EXPORT_TIMEOUT": _milliseconds,
    _TEMPORALITY: _one_of("cumulative", "delta", "lowmemory"),
}
