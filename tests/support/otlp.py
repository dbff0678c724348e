"""A collector for tests: it accepts OTLP over HTTP as protobuf, and shows metrics as Prometheus would."""

from __future__ import annotations

import gzip
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.metrics.v1.metrics_pb2 import AggregationTemporality

Labels = tuple[tuple[str, str], ...]


class Answer(NamedTuple):
    """What the collector answers. `status` 0: nothing, until the collector is closed."""

    status: int = 200
    content_type: str = "application/x-protobuf"
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Received(NamedTuple):
    """A request."""

    path: str
    headers: Mapping[str, str]
    message: Any
    accepted: bool


class Exported(NamedTuple):
    """What one request says about one metric."""

    kind: str
    unit: str
    help: str
    cumulative: bool
    monotonic: bool


class Metrics:
    """One request with metrics: its families, and its series as /metrics has them."""

    def __init__(self, message: ExportMetricsServiceRequest, accepted: bool) -> None:
        self.accepted = accepted
        """Whether the collector accepted the request."""
        [of] = message.resource_metrics
        [scope] = of.scope_metrics
        self.resource = attributes(of.resource)
        self.scope = scope.scope.name
        self.families: dict[str, Exported] = {}
        self.series: dict[tuple[str, Labels], float] = {}
        self.starts: dict[str, int] = {}
        """For each counter, when counting began: nanoseconds since 1970."""
        self.at = 0
        for metric in scope.metrics:
            assert metric.name not in self.families, metric.name
            self._read(metric)

    def _read(self, metric: Any) -> None:
        kind = metric.WhichOneof("data")
        data = getattr(metric, kind)
        cumulative = AggregationTemporality.AGGREGATION_TEMPORALITY_CUMULATIVE
        self.families[metric.name] = Exported(
            {"sum": "counter"}.get(kind, kind),
            metric.unit,
            metric.description,
            kind == "gauge" or data.aggregation_temporality == cumulative,
            kind == "sum" and data.is_monotonic,
        )
        for point in data.data_points:
            labels = tuple(sorted(attributes(point).items()))
            self.at = point.time_unix_nano
            if kind != "gauge":
                self.starts[metric.name] = point.start_time_unix_nano
            if kind == "histogram":
                self._read_histogram(metric.name, labels, point)
            else:
                self._add(metric.name, labels, getattr(point, point.WhichOneof("value")))

    def _read_histogram(self, name: str, labels: Labels, point: Any) -> None:
        assert len(point.bucket_counts) == len(point.explicit_bounds) + 1
        assert not point.HasField("min")
        assert not point.HasField("max")
        total = 0
        for bound, count in zip([*point.explicit_bounds, float("inf")], point.bucket_counts, strict=True):
            total += count
            self._add(f"{name}_bucket", tuple(sorted((*labels, ("le", str(bound))))), total)
        assert total == point.count
        self._add(f"{name}_count", labels, point.count)
        self._add(f"{name}_sum", labels, point.sum)

    def _add(self, name: str, labels: Labels, value: float) -> None:
        assert (name, labels) not in self.series
        self.series[name, labels] = value


def attributes(of: Any) -> dict[str, Any]:
    """The attributes of a span, a point or a resource."""
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in of.attributes}


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Ignore clients that leave because they do not trust the certificate."""


class Collector:
    """Receives traces and metrics, and answers as `answer` says at that moment."""

    def __init__(self, answer: Answer, tls: ssl.SSLContext | None) -> None:
        self.answer = answer
        self.requests: list[Received] = []
        self.arrived = threading.Event()
        self._closing = closing = threading.Event()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                kind: Any = (
                    ExportMetricsServiceRequest
                    if self.path.endswith("metrics")
                    else ExportTraceServiceRequest
                )
                answer = collector.answer
                collector.requests.append(
                    Received(self.path, dict(self.headers), kind.FromString(body), answer.status == 200)
                )
                collector.arrived.set()
                if not answer.status:
                    closing.wait(60)
                    return
                self.send_response(answer.status)
                headers = {"Content-Type": answer.content_type, "Content-Length": str(len(answer.body))}
                for name, value in {**headers, **answer.headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            def log_message(self, format: str, *args: Any) -> None:
                """Print nothing."""

        self._server = _Server(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        if tls is not None:
            self._server.socket = tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self.url = self.url.replace("http:", "https:")
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._closing.set()
        self._server.shutdown()
        self._server.server_close()

    @property
    def paths(self) -> set[str]:
        """The paths of the requests."""
        return {one.path for one in self.requests}

    def metrics(self) -> list[Metrics]:
        """The requests with metrics, the oldest first."""
        return [
            Metrics(one.message, one.accepted)
            for one in list(self.requests)
            if isinstance(one.message, ExportMetricsServiceRequest)
        ]

    def spans(self, name: str) -> list[Any]:
        """The received spans with that name."""
        return [
            span
            for request in list(self.requests)
            if isinstance(request.message, ExportTraceServiceRequest)
            for resource in request.message.resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
            if span.name == name
        ]


@contextmanager
def collecting(
    answer: Answer = Answer(),  # noqa: B008 - it cannot be changed
    tls: ssl.SSLContext | None = None,
) -> Iterator[Collector]:
    """A collector for the time of a test; with `tls` by HTTPS."""
    collector = Collector(answer, tls)
    try:
        yield collector
    finally:
        collector.close()


def parsed(
    metrics: str, parse: Callable[[str], Any]
) -> tuple[dict[str, Any], dict[tuple[str, Labels], float]]:
    """/metrics as `Metrics` has them: families by their full names, and series; `parse` is Prometheus' parser."""
    families, series = {}, {}
    for family in parse(metrics):
        families[family.name + "_total" * (family.type == "counter")] = family
        for sample in family.samples:
            labels = tuple(
                sorted(
                    (name, str(float(value)) if name == "le" else value)
                    for name, value in sample.labels.items()
                )
            )
            series[sample.name, labels] = sample.value
    return families, series
