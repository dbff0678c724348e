"""Traces and metrics for OpenTelemetry, if its standard variables ask for them. Otherwise OpenTelemetry is not
imported.

`environment` reads the variables and returns a `Tracing` and a `MetricsExport`: those of this module, which do nothing,
or those of `spans` and `metrics`, the modules that import OpenTelemetry (the extra ``otel``). `otlp` is what these two
share. `Tracing` wraps the source and the API that the service uses, `MetricsExport` reads the snapshots that /metrics
is made from. So the service and the engine know nothing of either.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, nullcontext
from typing import NamedTuple

from consumer.engine.model import Chunk
from consumer.ports import Api, RecordSource
from consumer.web.metrics import FiguresCollector

# Maximum time in seconds for sending the last spans or metrics; less if less is left of the grace.
CLOSING = 3.0


class Wish(NamedTuple):
    """How traces or metrics are exported. OpenTelemetry's exporters read all other options themselves."""

    instance: str
    """The resource attribute ``service.instance.id``."""
    timeout: float = 10.0
    """Seconds for one request with its retries."""
    headers: str = ""
    """The text of the file of ``OTEL_EXPORTER_OTLP_HEADERS_FILE``; empty: there is none."""
    interval: float = 60.0
    """Seconds between two exports of metrics."""
    export_timeout: float = 30.0
    """Seconds after which an export of metrics counts as failed, whatever it waits for."""
    temporality: str = "cumulative"
    """``cumulative``, ``delta`` or ``lowmemory``, of metrics."""


class Tracing:
    """Traces of one member. This class makes none: everything stays as it is. `SpanTracing` does."""

    # Maximum number of records per batch to whose traces a span links.
    links = 0

    def __init__(self) -> None:
        self.left: Callable[[], float] = lambda: CLOSING
        """The seconds that closing may take; called when it begins."""

    def source(self, source: RecordSource) -> RecordSource:
        """Return the source that the service drives: `source`, or a source that wraps it."""
        return source

    def api(self, api: Api) -> Api:
        """Return the API that the service drives: `api`, or an API that wraps it."""
        return api

    convert: Callable[[Sequence[Chunk]], AbstractContextManager[object]] = nullcontext
    """Returns a context for the handling of fetched chunks. Never raises, never waits."""

    async def close(self) -> None:
        """Send what is still queued, in bounded time."""


class MetricsExport:
    """Metrics of one process, or of a supervisor and its workers. This class exports none; `OtlpMetrics` does."""

    @asynccontextmanager
    async def exporting(
        self, collectors: Sequence[FiguresCollector], left: Callable[[], float] = lambda: CLOSING
    ) -> AsyncIterator[None]:
        """Export the figures of these collectors while the block runs, and again when it ends.

        `left` gives the seconds that the last export may take; it is called when the block ends. Never raises.
        """
        yield
