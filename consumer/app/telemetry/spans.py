"""The spans: fetch, convert, send, commit. They leave for a collector by OTLP over HTTP.

A fetch that returned records is a trace: ``fetch``, and below it ``convert``, the engine's handling of them. Each call
to the API is a trace of its own, ``send``, because its batch has records of many fetches. Each commit is a ``commit``.
``convert`` and ``send`` link to the spans in which their records were written.

A finished span waits in a bounded queue for OpenTelemetry's own thread. A full queue drops the oldest span, so a
collector that is down costs spans, never events. Attributes are names, numbers and codes: no personal data.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context

from consumer import __version__
from consumer.adapters.thread import run_blocking
from consumer.app.telemetry import CLOSING, Tracing, Wish
from consumer.app.telemetry.otlp import Connection, Outage, resource
from consumer.engine import messages as m
from consumer.engine.model import Chunk, Position, TraceParent, trace_parents
from consumer.engine.sending.verdicts import request_id
from consumer.ports import Api, RecordSource

# Maximum number of links of a span.
LINKS = 32
_FAILURE = 400
Attributes = dict[str, str | int]


def export(wish: Wish, group: str, api_url: str) -> SpanTracing:
    """Send spans to the collector that the OTEL_… variables name. Raises `ValueError`, `OSError` for invalid ones."""
    connection = Connection(wish)
    exporter = Watched(OTLPSpanExporter(**connection.arguments), lambda: connection.failure)
    return SpanTracing(
        BatchSpanProcessor(exporter),
        instance=wish.instance,
        group=group,
        api_url=api_url,
        give_up=exporter.shutdown,
    )


class SpanTracing(Tracing):
    """A `Tracing` that makes spans and gives them to `processor`. `give_up` is called when closing takes too long."""

    links = LINKS

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        instance: str,
        group: str,
        api_url: str,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__()
        # `close` ends it in bounded time. At exit, OpenTelemetry itself would wait as long as its collector hangs.
        self._provider = TracerProvider(resource=resource(instance), shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("pinstream", __version__)
        self._give_up = give_up
        self._fetch: Span | None = None
        self.kafka: Attributes = {"messaging.system": "kafka", "messaging.consumer.group.name": group}
        self.server: Attributes = {
            "http.request.method": "POST",
            "server.address": urlsplit(api_url).hostname or "",
        }

    def source(self, source: RecordSource) -> RecordSource:
        """Trace fetches and commits."""
        return _TracedSource(source, self)

    def api(self, api: Api) -> Api:
        """Trace calls to the API."""
        return _TracedApi(api, self)

    @contextmanager
    def convert(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """Make a span below that of the fetch that returned these chunks."""
        # If sampling drops the fetch, it drops this span too: then the records need not be searched for their traces.
        kept = self._fetch is not None and self._fetch.get_span_context().trace_flags.sampled
        records = (record for chunk in chunks for record in chunk.records) if kept else ()
        parents = trace_parents(records, LINKS)
        with self.span("convert", SpanKind.INTERNAL, _sizes(chunks), parents, under=self._fetch):
            yield

    async def close(self) -> None:
        """Send the queued spans, in bounded time."""
        try:
            # The thread is a daemon: when the time is over, nothing waits for it.
            async with asyncio.timeout(min(CLOSING, self.left())):
                await run_blocking("tracing-close", self._provider.shutdown)
        except TimeoutError:
            self._give_up()

    @contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        parents: Iterable[TraceParent] = (),
        under: Span | None = None,
    ) -> Iterator[Span]:
        """Make a span that ends with the block. An exception marks it as failed and passes on."""
        # Parents are explicit and no span is "current": no library in between adds spans, and no header of ours
        # reaches the API.
        links = [Link(SpanContext(one.trace_id, one.span_id, True, TraceFlags(one.flags))) for one in parents]
        context = set_span_in_context(under) if under is not None else None
        span = self._tracer.start_span(name, context, kind, attributes, links)
        try:
            yield span
        except BaseException as error:
            # Only its name: the text may contain personal data.
            fail(span, type(error).__name__)
            raise
        finally:
            span.end()

    def fetched(self, begun: int, chunks: Sequence[Chunk]) -> None:
        """Make the span of a fetch that began at `begun` (nanoseconds since 1970) and returned these chunks."""
        # Begun in the past: most fetches are empty, which is known only at their end.
        attributes = {**self.kafka, "messaging.operation.type": "receive", **_sizes(chunks)}
        self._fetch = self._tracer.start_span("fetch", None, SpanKind.CLIENT, attributes, start_time=begun)
        self._fetch.end()


@dataclass(eq=False)
class _TracedSource:
    """A source whose fetches and commits are spans."""

    _source: RecordSource
    _tracing: SpanTracing

    def __post_init__(self) -> None:
        source = self._source
        # Attributes that are not traced are those of the source.
        self.start = source.start
        self.end_offsets = source.end_offsets
        self.restart_partitions = source.restart_partitions
        self.close = source.close

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        begun = time.time_ns()
        chunks = await self._source.fetch(room, timeout)
        # Several fetches a second are empty; they are not worth a span.
        if chunks:
            self._tracing.fetched(begun, chunks)
        return chunks

    async def commit(self, positions: Sequence[Position]) -> m.CommitDone:
        attributes = {
            **self._tracing.kafka,
            "messaging.operation.type": "settle",
            "pinstream.partitions": len(positions),
        }
        with self._tracing.span("commit", SpanKind.CLIENT, attributes) as span:
            answer = await self._source.commit(positions)
            if answer.failure is not None:
                fail(span, answer.failure)
        return answer


class _TracedApi:
    """An API whose calls are spans."""

    def __init__(self, api: Api, tracing: SpanTracing) -> None:
        self._api = api
        self._tracing = tracing
        self.read_token, self.ask_time = api.read_token, api.ask_time

    async def send(
        self, command: m.Send, may_begin: Callable[[], bool] = lambda: True
    ) -> m.Answered | m.Unanswered:
        attributes = {
            **self._tracing.server,
            "pinstream.account": command.account,
            "pinstream.events": command.events,
            "pinstream.attempt": command.attempt,
            "http.request.body.size": len(command.body),
        }
        with self._tracing.span("send", SpanKind.CLIENT, attributes, command.parents) as span:
            answer = await self._api.send(command, may_begin)
            # The platform's support asks for it. Not checked for secrets: it is of a known form, or None.
            name = request_id(answer.headers)
            if name is not None:
                span.set_attribute("pinterest.request_id", name)
            if isinstance(answer, m.Unanswered):
                fail(span, answer.reason)
            else:
                span.set_attribute("http.response.status_code", answer.status)
                if answer.status >= _FAILURE:
                    fail(span, str(answer.status))
        return answer


def fail(span: Span, kind: str) -> None:
    """Mark the span as failed. `kind` is a code."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def _sizes(chunks: Sequence[Chunk]) -> Attributes:
    return {
        "messaging.batch.message_count": sum(len(chunk.records) for chunk in chunks),
        "pinstream.partitions": len(chunks),
    }


def _log_outage(reason: str) -> None:
    structlog.get_logger().warning(
        "traces_not_exported",
        reason=reason,
        text="the collector accepts no spans: check that the OTEL_EXPORTER_OTLP_… variables name a running "
        "one; spans are dropped until then, events are delivered",
    )


def _log_end(lost: int) -> None:
    structlog.get_logger().info("traces_exported_again", spans_lost=lost)


class Watched(SpanExporter):
    """An exporter that logs one line when spans stop arriving, and one when they arrive again."""

    def __init__(self, exporter: SpanExporter, failure: Callable[[], str] = lambda: "no answer") -> None:
        self._exporter = exporter
        self._failure = failure
        self._outage = Outage(_log_outage, _log_end)

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export these spans. Never raises: spans that cannot be exported are lost, and counted."""
        try:
            result = self._exporter.export(spans)
        # Catch errors that the exporter does not catch itself: a lost span must not end its thread.
        except Exception:
            result = SpanExportResult.FAILURE
        self._outage.note(None if result is SpanExportResult.SUCCESS else self._failure(), len(spans))
        return result

    def shutdown(self) -> None:
        """End the exporter."""
        self._exporter.shutdown()
