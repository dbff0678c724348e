"""Metrics by OTLP: the families of /metrics under the same names, sent to a collector over HTTP.

Theory of operation. Once per interval the event loop takes the snapshots that /metrics is made from. A thread of its
own makes one request of them and sends it: a collector that hangs holds up that thread alone, and
no second request begins before it ends. OpenTelemetry's instruments are not used: the engine counts already, exactly,
and the SDK has no instrument that reads a histogram.

Nothing is lost while no collector answers, because the next export has the same counts, higher. That holds for delta
temporality too: a difference is counted from the last export that was accepted. One whose answer was lost is then
counted twice, which is OTLP's own rule for a retry.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any, cast

import structlog
from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.sdk.metrics import export as sdk
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from consumer import __version__
from consumer.adapters.thread import OwnThread
from consumer.app.telemetry import CLOSING, MetricsExport, Wish
from consumer.app.telemetry.otlp import Connection, Outage, resource
from consumer.engine.figures.definitions import Histogram
from consumer.web.metrics import Family, FiguresCollector, families

_SCOPE = InstrumentationScope("pinstream", __version__)
# What is exported as differences, by the temporality that is asked for. A gauge has none.
_DELTAS = {"cumulative": (), "delta": ("counter", "histogram"), "lowmemory": ("histogram",)}
# Units by the end of a metric's name. Prometheus puts a unit into the name only if it is not there.
_UNITS = {"seconds": "s", "bytes": "By", "ratio": "1"}


class OtlpMetrics(MetricsExport):
    """A `MetricsExport` to the collector that the OTEL_… variables name. Raises `ValueError`, `OSError`."""

    def __init__(self, wish: Wish) -> None:
        self._connection = Connection(wish)
        self._exporter = OTLPMetricExporter(**self._connection.arguments)
        self._wish = wish
        self._resource = resource(wish.instance)
        # A counter's series begins with the process: by this a collector sees that a restart set it to 0.
        self._started = self._accepted_at = time.time_ns()
        # The counts of the last export that was accepted.
        self._accepted: Mapping[tuple[object, ...], Any] = {}
        self._outage = Outage(_log_outage, _log_end)

    @contextlib.asynccontextmanager
    async def exporting(
        self, collectors: Sequence[FiguresCollector], left: Callable[[], float] = lambda: CLOSING
    ) -> AsyncIterator[None]:
        """See `MetricsExport.exporting`."""
        thread = OwnThread("metrics-export")
        running = asyncio.create_task(self._go_on(thread, collectors))
        try:
            yield
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)  # its cancellation is no error
            try:
                # Behind an export that hangs, the last one does not begin.
                async with asyncio.timeout(min(CLOSING, left())):
                    await self._export(thread, collectors)
            except TimeoutError:
                self._outage.note("no answer")
            # Ends retries. The thread is a daemon: nothing waits for it.
            self._exporter.shutdown()
            thread.stop()

    async def _go_on(self, thread: OwnThread, collectors: Sequence[FiguresCollector]) -> None:
        loop = asyncio.get_running_loop()
        # The first export is made at once: a mistake shows at the start, and counters are seen at 0.
        due = loop.time()
        under_way: asyncio.Task[None] | None = None
        while True:
            # One at a time: behind an export that hangs, the next ones would only queue.
            if under_way is None or under_way.done():
                under_way = asyncio.create_task(self._export(thread, collectors))
            done, _ = await asyncio.wait({under_way}, timeout=self._wish.export_timeout)
            if not done:
                self._outage.note("no answer")
            # Due at fixed times, however long an export takes; missed exports are not repeated.
            due = max(due + self._wish.interval, loop.time())
            await asyncio.sleep(due - loop.time())

    async def _export(self, thread: OwnThread, collectors: Sequence[FiguresCollector]) -> None:
        """Export once, and log how that changed. Never raises."""
        try:
            # On the event loop: the engine counts there.
            snapshots = [(one.owner, list(one.snapshots())) for one in collectors]
            failure = await thread.run(self._send, time.time_ns(), snapshots)
        except Exception as error:  # a bug: the web server logs that the figures cannot be read
            failure = type(error).__name__
        self._outage.note(failure)

    # -- in the thread

    def _send(self, at: int, snapshots: Sequence[tuple[type, Sequence[Any]]]) -> str | None:
        """Send the metrics of these snapshots, with their types, of `at` (nanoseconds since 1970).

        Return why that failed; None: it did not.
        """
        counts: dict[tuple[object, ...], Any] = {}
        metrics = [
            self._metric(family, series, at, counts)
            for owner, of_owner in snapshots
            for family, series in families(owner, of_owner)
            if series
        ]
        scope = sdk.ScopeMetrics(_SCOPE, metrics, "")
        result = self._exporter.export(sdk.MetricsData([sdk.ResourceMetrics(self._resource, [scope], "")]))
        if result is not sdk.MetricExportResult.SUCCESS:
            return self._connection.failure
        # Only now: the counts of a failed export are sent again with the next one.
        self._accepted, self._accepted_at = counts, at
        return None

    def _metric(
        self,
        family: Family,
        series: Iterable[tuple[tuple[str, ...], Any]],
        at: int,
        counts: dict[tuple[object, ...], Any],
    ) -> sdk.Metric:
        """Return a family with its series. Its counts are added to `counts`."""
        cumulative = family.kind not in _DELTAS[self._wish.temporality]
        since = self._started if cumulative else self._accepted_at
        points = []
        for labels, value in series:
            if not cumulative:
                # A counter or a histogram: the difference since the last export that was accepted.
                counts[family.name, *labels] = value
                before = self._accepted.get((family.name, *labels))
                if before is not None and isinstance(value, Histogram):
                    added = [now - then for now, then in zip(value.counts, before.counts, strict=True)]
                    value = Histogram(value.bounds, added, value.total - before.total)
                elif before is not None:
                    value -= before
            points.append(_point(dict(zip(family.labels, labels, strict=True)), since, at, value))
        temporality = (
            sdk.AggregationTemporality.CUMULATIVE if cumulative else sdk.AggregationTemporality.DELTA
        )
        data: Any = sdk.Gauge(points)
        if family.kind == "counter":
            data = sdk.Sum(points, temporality, is_monotonic=True)
        elif family.kind == "histogram":
            data = sdk.Histogram(points, temporality)
        unit = _UNITS.get(family.name.removesuffix("_total").rpartition("_")[2], "")
        return sdk.Metric(family.name, family.help, unit, data)


def _log_outage(reason: str) -> None:
    structlog.get_logger().warning(
        "metrics_not_exported",
        reason=reason,
        text="the collector accepts no metrics: check that the OTEL_EXPORTER_OTLP_… variables name a running "
        "one that takes metrics over HTTP, or set OTEL_METRICS_EXPORTER=none; counts are exported later, "
        "events are delivered",
    )


def _log_end(missed: int) -> None:
    structlog.get_logger().info("metrics_exported_again", exports_missed=missed)


def _point(attributes: Mapping[str, str], since: int, at: int, value: Any) -> Any:
    if not isinstance(value, Histogram):
        return sdk.NumberDataPoint(attributes, since, at, value)
    # Our buckets count all values up to their bound; OTLP's count each value once, and have no infinite bound.
    buckets = [upper - lower for lower, upper in pairwise([0, *value.counts])]
    # The extremes are not known. OTLP has them as optional, and the encoder leaves None out.
    unknown = cast(float, None)
    return sdk.HistogramDataPoint(
        attributes,
        since,
        at,
        count=value.counts[-1],
        sum=value.total,
        bucket_counts=buckets,
        explicit_bounds=value.bounds[:-1],
        min=unknown,
        max=unknown,
    )
