"""What OpenTelemetry's variables ask for: traces and metrics follow one rule, and one line says what cannot be
exported."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from consumer.app.telemetry import MetricsExport, Tracing, environment
from consumer.settings import Settings
from tests.settings.environment import with_

ENDPOINT = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
SECRET = "zq7xmark"
Start = Callable[[Mapping[str, str], Settings], Any]


def traces(environ: Mapping[str, str], settings: Settings) -> Tracing:
    """Start traces as a worker does."""
    return environment.start(environ, settings, "TRACES")[0]


def metrics(environ: Mapping[str, str], settings: Settings) -> MetricsExport:
    """Start metrics as a supervisor does."""
    return environment.start(environ, settings, "METRICS")[1]


BOTH = [(traces, Tracing, "TRACES"), (metrics, MetricsExport, "METRICS")]


def started(start: Start, environ: Mapping[str, str], **settings: str) -> tuple[Any, list[Any]]:
    """What was started, and what was logged."""
    with capture_logs() as lines:
        return start(environ, with_(**settings)), lines


def off(start: Start, environ: Mapping[str, str], none: type) -> str:
    """The one line that says why nothing is exported."""
    found, lines = started(start, environ)
    assert type(found) is none
    [line] = lines
    assert (line["log_level"], line["event"]) == ("warning", "telemetry_off")
    assert isinstance(line["text"], str)
    assert SECRET not in line["text"]
    return line["text"]


@pytest.mark.parametrize(("start", "none", "signal"), BOTH)
@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({}, None),
        ({"OTEL_SERVICE_NAME": "shop"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": " "}, None),
        (ENDPOINT, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_X_ENDPOINT": "http://a", **ENDPOINT}, "OTEL_EXPORTER_OTLP_X_ENDPOINT"),
        ({"OTEL_EXPORTER_OTLP_Y_ENDPOINT": "http://a"}, None),
        ({"OTEL_X_EXPORTER": "otlp"}, "OTEL_X_EXPORTER"),
        ({"OTEL_X_EXPORTER": "none", **ENDPOINT}, None),
        ({"OTEL_Y_EXPORTER": "none", **ENDPOINT}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
        ({"OTEL_SDK_DISABLED": "true", **ENDPOINT}, None),
        ({"OTEL_SDK_DISABLED": "false", **ENDPOINT}, "OTEL_EXPORTER_OTLP_ENDPOINT"),
    ],
)
def test_the_standard_variables_ask(
    start: Start, none: type, signal: str, environ: dict[str, str], variable: str | None
) -> None:
    """An endpoint asks for both, that of a signal or its exporter by name for that one, unless they are turned off.

    X stands for the signal's own name, Y for the other's.
    """
    other = {"TRACES": "METRICS", "METRICS": "TRACES"}[signal]

    def named(name: str) -> str:
        return name.replace("_X_", f"_{signal}_").replace("_Y_", f"_{other}_")

    found, lines = started(start, {named(name): value for name, value in environ.items()})
    assert (type(found) is none) == (variable is None)
    expected = [] if variable is None else [("telemetry", signal.lower(), named(variable))]
    assert [(one["event"], one["signal"], one["asked_by"]) for one in lines] == expected


@pytest.mark.parametrize(
    ("exporter", "exported"), [("prometheus", False), ("otlp,prometheus", True), ("OTLP", True), (",", True)]
)
def test_metrics_are_there_for_prometheus_anyway(exporter: str, exported: bool) -> None:
    """Prometheus reads /metrics anyway, so nothing is exported for it, and nothing is logged."""
    found, lines = started(metrics, {"OTEL_METRICS_EXPORTER": exporter, **ENDPOINT})
    assert (type(found) is not MetricsExport) == exported
    assert not [one for one in lines if one["log_level"] == "warning"]


@pytest.mark.parametrize(("start", "none", "signal"), BOTH)
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_X_EXPORTER", "zipkin", "is not otlp"),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc", "is not http/protobuf"),
        ("OTEL_EXPORTER_OTLP_X_PROTOCOL", "grpc", "(port 4318 of a collector, not 4317)"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "is not a URL such as http://collector:4318"),
        ("OTEL_EXPORTER_OTLP_X_ENDPOINT", "http://:4318", "is not a URL"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:http", "is not a URL"),
        ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "is not a number of milliseconds, such as 10000"),
        ("OTEL_EXPORTER_OTLP_X_TIMEOUT", "0", "is not a number of milliseconds"),
        ("OTEL_EXPORTER_OTLP_X_TIMEOUT", "9" * 400, "is not a number of milliseconds"),
        ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd", "is none of gzip, none"),
        ("OTEL_EXPORTER_OTLP_HEADERS", SECRET, "is not a list such as name=value,other=value"),
        ("OTEL_EXPORTER_OTLP_HEADERS_FILE", "/no/such/file", "cannot be read: No such file"),
        ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/no/such/ca.pem", "names a file that cannot be read"),
        ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/", "names a file that cannot be read"),
        ("OTEL_RESOURCE_ATTRIBUTES", "shop", "is not a list such as name=value,other=value"),
        ("OTEL_SDK_DISABLED", "1", "is none of true, false"),
    ],
)
def test_a_wrong_value_is_one_line(
    start: Start, none: type, signal: str, name: str, value: str, says: str
) -> None:
    """It names the variable and what is allowed, shows no value, and says how to turn the signal off."""
    name = name.replace("_X_", f"_{signal}_")
    text = off(start, {**ENDPOINT, name: value}, none)
    assert f"{name}: " in text or f"{name} " in text
    assert says in text
    assert text.endswith(f"correct it, or set OTEL_{signal}_EXPORTER=none")
    assert f" asks for {signal.lower()}, but " in text


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("OTEL_METRIC_EXPORT_INTERVAL", "1m", "is not a number of milliseconds"),
        ("OTEL_METRIC_EXPORT_TIMEOUT", "-1", "is not a number of milliseconds"),
        ("OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE", "DELTAS", "is none of cumulative, delta"),
    ],
)
def test_a_wrong_value_of_metrics_concerns_them_alone(name: str, value: str, says: str) -> None:
    """Traces go on."""
    assert f"{name} {says}" in off(metrics, {**ENDPOINT, name: value}, MetricsExport)
    assert type(started(traces, {**ENDPOINT, name: value})[0]) is not Tracing


@pytest.mark.parametrize(("start", "none", "signal"), BOTH)
def test_without_the_extra_it_is_one_line(
    monkeypatch: pytest.MonkeyPatch, start: Start, none: type, signal: str
) -> None:
    """It says how to install it, or what to turn off."""
    for module in ("spans", "metrics", "otlp"):
        monkeypatch.delitem(sys.modules, f"consumer.app.telemetry.{module}", raising=False)
    for name in [one for one in sys.modules if one.partition(".")[0] == "opentelemetry"]:
        monkeypatch.setitem(sys.modules, name, None)
    assert off(start, ENDPOINT, none) == (
        f"OTEL_EXPORTER_OTLP_ENDPOINT asks for {signal.lower()}, but the extra otel is not installed: run pip "
        f"install '.[otel]' in a clone of pinstream, or set OTEL_{signal}_EXPORTER=none"
    )


def test_a_mistake_of_both_is_one_line() -> None:
    """A mistake in a variable of both gives one line, and two mistakes give two."""
    with capture_logs() as lines:
        found = environment.start(
            {**ENDPOINT, "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, with_(), "TRACES", "METRICS"
        )
    assert [type(one) for one in found] == [Tracing, MetricsExport]
    assert [one["text"] for one in lines] == [
        "OTEL_EXPORTER_OTLP_ENDPOINT asks for traces and metrics, but OTEL_EXPORTER_OTLP_PROTOCOL is not "
        "http/protobuf, the only protocol that pinstream has (port 4318 of a collector, not 4317): correct it, or set "
        "OTEL_TRACES_EXPORTER=none and OTEL_METRICS_EXPORTER=none"
    ]
    with capture_logs() as lines:
        wrong = {**ENDPOINT, "OTEL_TRACES_EXPORTER": "zipkin", "OTEL_METRIC_EXPORT_INTERVAL": "1m"}
        environment.start(wrong, with_(), "TRACES", "METRICS")
    assert [one["event"] for one in lines] == ["telemetry_off"] * 2


def test_check_sees_the_same_and_starts_nothing() -> None:
    """What would be exported, and the sentences that `run` would log."""
    assert environment.planned_exports({}) == ([], [])
    assert environment.planned_exports(ENDPOINT) == (["metrics", "traces"], [])
    wrong = {**ENDPOINT, "OTEL_METRICS_EXPORTER": "console"}
    good, texts = environment.planned_exports(wrong)
    assert (good, texts) == (["traces"], [off(metrics, wrong, MetricsExport)])
    wrong = {
        "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://127.0.0.1:4318",
        "OTEL_EXPORTER_OTLP_HEADERS_FILE": "/no/such/file",
    }
    assert environment.planned_exports(wrong) == ([], [off(metrics, wrong, MetricsExport)])


def test_headers_may_be_in_a_file(tmp_path: Path) -> None:
    """As other secrets may; not both the variable and the file, and no file with other content."""
    file = tmp_path / "headers"
    environ = {**ENDPOINT, "OTEL_EXPORTER_OTLP_HEADERS_FILE": str(file)}
    file.write_text(f"api-key={SECRET}\n")
    assert type(started(metrics, environ)[0]) is not MetricsExport
    both = off(metrics, {**environ, "OTEL_EXPORTER_OTLP_HEADERS": "api-key=a"}, MetricsExport)
    assert "OTEL_EXPORTER_OTLP_HEADERS and OTEL_EXPORTER_OTLP_HEADERS_FILE are both set" in both
    file.write_text(SECRET)
    text = off(metrics, environ, MetricsExport)
    assert "the file of OTEL_EXPORTER_OTLP_HEADERS_FILE is not a list such as name=value" in text
