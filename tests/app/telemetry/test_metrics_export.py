"""Metrics by OTLP are those of /metrics, and a collector that refuses them costs one log line."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from structlog.testing import capture_logs

from consumer import __version__
from consumer.app.telemetry import CLOSING, environment
from consumer.engine.figures.counters import Counters
from consumer.engine.figures.statistics import Statistics
from consumer.web.metrics import FiguresCollector
from consumer.workers import supervision
from consumer.workers.showing import WorkerFigures
from tests.settings.environment import with_
from tests.support.certificates import Authority
from tests.support.limits import LATE
from tests.support.otlp import Answer, Collector, Exported, collecting, parsed
from tests.web.building import busy, empty, full_counters, statistics

MARK = "zq7xmark"
OFTEN = {"OTEL_METRIC_EXPORT_INTERVAL": "20"}


class Scene:
    """A process whose figures the test sets."""

    def __init__(self, now: Statistics) -> None:
        self.now = now
        self.broken: Exception | None = None
        self.workers = [
            WorkerFigures(1, supervision.WorkerState.RUNNING, 7, 2, 0.1, False, 0, None, None, None)
        ]

    def snapshots(self) -> list[Statistics]:
        """The figures, or an error."""
        if self.broken is not None:
            raise self.broken
        return [self.now]

    @property
    def collectors(self) -> list[FiguresCollector]:
        """Of the engine and of the workers, as a supervisor has them."""
        of_workers = FiguresCollector(WorkerFigures, lambda: self.workers)
        return [FiguresCollector(Statistics, self.snapshots), of_workers]

    def scrape(self) -> tuple[dict[str, Any], dict[Any, float]]:
        """The present text of /metrics."""
        registry = CollectorRegistry()
        for one in self.collectors:
            registry.register(one)
        return parsed(generate_latest(registry).decode(), text_string_to_metric_families)


@asynccontextmanager
async def exporting(
    monkeypatch: pytest.MonkeyPatch,
    scene: Scene,
    url: str,
    *,
    left: Any = 100.0,
    **variables: str,
) -> AsyncIterator[None]:
    """Export to `url` for the time of the block."""
    environ = {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": f"{url}/v1/metrics", **variables}
    # OpenTelemetry's exporter reads the environment of the process.
    for name, value in environ.items():
        monkeypatch.setenv(name, value)
    _, metrics = environment.start(environ, with_(KAFKA_GROUP_INSTANCE_ID="shop-0"), "METRICS")
    async with metrics.exporting(scene.collectors, lambda: left):
        yield


def ours(lines: Sequence[MutableMapping[str, Any]]) -> list[MutableMapping[str, Any]]:
    """The log lines about exports: threads of earlier tests may log others meanwhile."""
    events = ("telemetry", "metrics_not_exported", "metrics_exported_again")
    return [one for one in lines if one["event"] in events]


async def until(condition: Any) -> None:
    """Wait, for a bounded time, until the condition holds."""
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.005)


# -- what is exported


@pytest.mark.parametrize("scene", [busy, empty])
async def test_it_is_what_metrics_shows(monkeypatch: pytest.MonkeyPatch, scene: Any) -> None:
    """Every series of /metrics with its name, its labels, its value, its type and its help, and no other."""
    shown = Scene(scene())
    began = time.time_ns()
    with collecting() as collector:
        async with exporting(monkeypatch, shown, collector.url):
            await until(lambda: collector.requests)
        [first, last] = collector.metrics()
    families, series = shown.scrape()
    for exported in (first, last):
        assert exported.series == series
        reported = {name: (one.kind, one.help) for name, one in exported.families.items()}
        with_series = {name: one for name, one in families.items() if one.samples}
        assert reported == {name: (one.type, one.documentation) for name, one in with_series.items()}
        assert all(one.cumulative for one in exported.families.values())
        assert all(one.monotonic == (one.kind == "counter") for one in exported.families.values())
    # All counting began when the process did, whatever is exported when.
    assert set(first.starts.values()) == set(last.starts.values())
    assert began <= min(first.starts.values()) <= first.at < last.at <= time.time_ns()
    assert collector.paths == {"/v1/metrics"}


@pytest.mark.parametrize("version", [None, "7"])
async def test_units_and_whose_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, version: str | None
) -> None:
    """The unit ends the name, so Prometheus adds nothing; OTEL_RESOURCE_ATTRIBUTES come first, else service.version is
    pinstream's. Headers may stand in the variable, or in a file that is read as pinstream's own secret files are."""
    (tmp_path / "headers").write_text("api-key=secret,authorization=Basic%20YQ==\n")
    if version is None:
        own = {"OTEL_EXPORTER_OTLP_HEADERS_FILE": str(tmp_path / "headers")}
    else:
        own = {
            "OTEL_RESOURCE_ATTRIBUTES": f"service.namespace=shop,service.version={version}",
            "OTEL_EXPORTER_OTLP_HEADERS": "api-key=secret",
        }
    with collecting() as collector:
        async with exporting(
            monkeypatch, Scene(busy()), collector.url, OTEL_EXPORTER_OTLP_COMPRESSION="gzip", **own
        ):
            await until(lambda: collector.requests)
        exported = collector.metrics()[0]
    assert exported.scope == "pinstream"
    found = {name: exported.resource[name] for name in exported.resource if name.startswith("service.")}
    assert found == {
        "service.name": "pinstream",
        "service.version": version or __version__,
        "service.instance.id": "shop-0",
        **({"service.namespace": "shop"} if version else {}),
    }
    assert exported.families["pinstream_lag_seconds"] == Exported(
        "gauge",
        "s",
        "Age of a partition's first record that is not settled, by its Kafka timestamp; 0: no lag.",
        cumulative=True,
        monotonic=False,
    )
    names = ("pinstream_sent_bytes_total", "pinstream_parameter_coverage_ratio", "pinstream_claims")
    assert [exported.families[name].unit for name in names] == ["By", "1", ""]
    headers = {name.lower(): value for name, value in collector.requests[0].headers.items()}
    assert (headers["api-key"], headers["content-encoding"]) == ("secret", "gzip")
    assert headers.get("authorization") == (None if version else "Basic YQ==")


@pytest.mark.parametrize(
    ("preference", "cumulative"),
    [
        ("cumulative", {"counter", "histogram"}),
        ("DELTA", set()),
        ("lowmemory", {"counter"}),
    ],
)
async def test_temporality_is_as_asked(
    monkeypatch: pytest.MonkeyPatch, preference: str, cumulative: set[str]
) -> None:
    """A delta counts from the last accepted export: the next one includes the time of an outage."""
    scene = Scene(statistics(counters=counted(5)))
    with collecting() as collector:
        async with exporting(
            monkeypatch,
            scene,
            collector.url,
            OTEL_EXPORTER_OTLP_METRICS_TEMPORALITY_PREFERENCE=preference,
            **OFTEN,
        ):
            await until(lambda: len(collector.requests) >= 2)
            for answer, calls in ((Answer(400), 7), (Answer(), 12)):
                collector.answer, scene.now = answer, statistics(counters=counted(calls))
                more = len(collector.requests) + 3
                await until(lambda more=more: len(collector.requests) >= more)
        exports = collector.metrics()
    kinds = {one.kind for one in exports[0].families.values() if one.cumulative and one.kind != "gauge"}
    assert kinds == cumulative
    for name, labels, kind in (
        ("pinstream_answers_total", (("status", "200"),), "counter"),
        ("pinstream_call_seconds_count", (("outcome", "verdict"),), "histogram"),
    ):
        accepted = [one.series[name, labels] for one in exports if one.accepted]
        assert accepted[0] == 5
        if kind in cumulative:
            assert accepted == sorted(accepted)
            assert accepted[-1] == 12
        else:
            assert sum(accepted) == 12
            assert accepted[-1] == 0


def counted(calls: int) -> Counters:
    """`count` answers, each after a quarter of a second."""
    counters = Counters()
    counters.answers["200"] = calls
    counters.call_buckets["verdict", 0.25] = calls
    counters.call_milliseconds["verdict"] = 200 * calls
    return counters


# -- when the collector does not take them


async def failing(
    monkeypatch: pytest.MonkeyPatch, url: str, collector: Collector | None = None, **variables: str
) -> Sequence[Mapping[str, Any]]:
    """The log lines while exports fail for a while, and when that ends."""
    with capture_logs() as lines:
        async with exporting(
            monkeypatch, Scene(busy()), url, left=0.0, OTEL_EXPORTER_OTLP_TIMEOUT="3000", **OFTEN, **variables
        ):
            await until(lambda: any(one["event"] == "metrics_not_exported" for one in lines))
            if collector is not None:
                more = len(collector.requests) + 3
                await until(lambda: len(collector.requests) >= more)
    return ours(lines)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (None, "no connection"),
        (Answer(401, body=MARK.encode()), "HTTP 401"),
        (Answer(503, headers={"Retry-After": "9"}), "HTTP 503"),
        (Answer(302, headers={"Location": f"https://login.example.org/{MARK}"}), "HTTP 302, a redirect"),
        (Answer(200, "text/html; charset=utf-8", b"<html>zq7xmark</html>"), "HTML"),
    ],
)
async def test_what_is_no_collector_is_one_line(
    monkeypatch: pytest.MonkeyPatch, answer: Answer | None, reason: str
) -> None:
    """One line, not one for each interval: it has the reason and what to do, and no word of the answer. Nor is what
    does not listen a collector."""
    with collecting(answer or Answer()) as collector:
        lines = [] if answer is None else await failing(monkeypatch, collector.url, collector)
    if answer is None:
        lines = await failing(monkeypatch, collector.url)
    assert [one["event"] for one in lines] == ["telemetry", "metrics_not_exported"]
    assert (lines[1]["log_level"], lines[1]["reason"]) == ("warning", reason)
    assert "OTEL_METRICS_EXPORTER=none" in lines[1]["text"]
    assert MARK not in str(lines)
    assert collector.url not in str(lines)


@pytest.mark.parametrize(
    ("trusted", "issued", "reason"),
    [
        (True, {}, None),
        (False, {}, "certificate: unable to get local issuer certificate"),
        (True, {"age": timedelta(days=3)}, "certificate: certificate has expired"),
        (True, {"host": "collector.example"}, "certificate: (Hostname|IP address) mismatch"),
    ],
)
async def test_what_is_wrong_with_a_certificate_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, trusted: bool, issued: Any, reason: str | None
) -> None:
    """OTEL_EXPORTER_OTLP_CERTIFICATE is trusted, whatever REQUESTS_CA_BUNDLE is; else one line, in OpenSSL's words."""
    authority = Authority(tmp_path, "shop")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(Authority(tmp_path, "other").file))
    trust: dict[str, Any] = {"OTEL_EXPORTER_OTLP_CERTIFICATE": str(authority.file)} if trusted else {}
    with collecting(tls=authority.server(**issued)) as collector:
        if reason is None:
            async with exporting(monkeypatch, Scene(empty()), collector.url, **trust):
                await until(lambda: collector.requests)
        else:
            lines = await failing(monkeypatch, collector.url, **trust)
            assert re.match(reason, str(lines[1]["reason"]))


async def test_the_end_of_an_outage_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """The line has the number of missed exports, and no count is lost."""
    scene = Scene(statistics(counters=full_counters()))
    with collecting(Answer(500)) as collector, capture_logs() as lines:
        async with exporting(monkeypatch, scene, collector.url, **OFTEN):
            await until(lambda: len(collector.requests) >= 2)
            collector.answer = Answer()
            await until(lambda: any(one["event"] == "metrics_exported_again" for one in lines))
            more = len(collector.requests) + 2
            await until(lambda: len(collector.requests) >= more)
        assert collector.metrics()[-1].series == scene.scrape()[1]
    assert [one["event"] for one in ours(lines)] == [
        "telemetry", "metrics_not_exported", "metrics_exported_again",
    ]  # fmt: skip
    assert ours(lines)[2]["exports_missed"] >= 2


async def test_figures_that_cannot_be_read_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is exported then; when the figures can be read again, exports continue."""
    scene = Scene(empty())
    scene.broken = RuntimeError(MARK)
    with collecting() as collector, capture_logs() as lines:
        async with exporting(monkeypatch, scene, collector.url, **OFTEN):
            await until(lambda: len(ours(lines)) >= 2)
            assert not collector.requests
            scene.broken = None
            await until(lambda: collector.requests)
    assert [one["event"] for one in ours(lines)][:2] == ["telemetry", "metrics_not_exported"]
    assert ours(lines)[1]["reason"] == "RuntimeError"
    assert MARK not in str(lines)


@pytest.mark.parametrize("left", [0.0, 0.2, 100.0])
async def test_a_collector_that_hangs_holds_up_nothing(monkeypatch: pytest.MonkeyPatch, left: float) -> None:
    """The loop continues, no second request begins, and the end waits for the rest of the grace, at most 3 s."""
    with collecting(Answer(status=0)) as collector, capture_logs() as lines:
        async with exporting(
            monkeypatch,
            Scene(busy()),
            collector.url,
            left=left,
            OTEL_METRIC_EXPORT_TIMEOUT="30",
            OTEL_EXPORTER_OTLP_TIMEOUT="60000",
            **OFTEN,
        ):
            await until(lambda: collector.requests and len(ours(lines)) >= 2)
            await asyncio.sleep(0.3)  # ten intervals
            began = time.monotonic()
        took = time.monotonic() - began
        assert len(collector.requests) == 1
    assert took < min(left, CLOSING) + LATE
    assert [one.get("reason") for one in ours(lines)] == [None, "no answer"], lines
