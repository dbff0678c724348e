"""The spans: fetch, convert, send, commit; and their way to a collector, by OTLP over HTTP.

Theory of operation. A fetch that brought records is a trace: ``fetch``, and below it ``convert``, the core's handling
of them. Each call to the API is a trace of its own, ``send``: its batch has records of many fetches. Each commit is a
``commit``. ``convert`` and ``send`` link to the spans that their records were written in. Parents are handed over
explicitly: nothing here is "current", so no library in between joins in, and nothing of it reaches the API.

A span that has ended waits in a bounded queue for OpenTelemetry's own thread; a queue that is full drops the oldest.
So a collector that is down costs spans, never events. Attributes are names, numbers and codes: no personal data.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from urllib.parse import urlsplit

import structlog
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import Link, Span, SpanContext, SpanKind, StatusCode, TraceFlags, set_span_in_context

from consumer import __version__
from consumer.adapters.thread import run_blocking
from consumer.engine import messages as m
from consumer.engine.model import Chunk, Position, TraceParent, trace_parents
from consumer.engine.verdicts import request_id
from consumer.service import Api, CommitAnswer, RecordSource

LINKS = 32
"""Links of one span at most."""
CLOSING = 3.0
"""Seconds that the last spans may take to leave, at most; less if less is left of the grace."""
_FAILURE = 400
Attributes = dict[str, str | int]


def export(group: str, api_url: str) -> SpanTracing:
    """Spans to the collector that the OTEL_… variables name. Raises `ValueError`, `OSError` for what cannot be."""
    exporter = Watched(OTLPSpanExporter())
    return SpanTracing(BatchSpanProcessor(exporter), group=group, api_url=api_url, give_up=exporter.shutdown)


class SpanTracing:
    """A `Tracing` that makes spans and hands them to `processor`. `give_up`: called when closing took too long."""

    links = LINKS

    def __init__(
        self,
        processor: SpanProcessor,
        *,
        group: str,
        api_url: str,
        give_up: Callable[[], None] = lambda: None,
    ) -> None:
        ours = {"service.name": "pinstream", "service.version": __version__}
        resource = Resource.create({**ours, **OTELResourceDetector().detect().attributes})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("pinstream", __version__)
        self._give_up = give_up
        self._left: Callable[[], float] = lambda: CLOSING
        self._fetch: Span | None = None
        self._kafka: Attributes = {"messaging.system": "kafka", "messaging.consumer.group.name": group}
        self._server: Attributes = {
            "http.request.method": "POST",
            "server.address": urlsplit(api_url).hostname or "",
        }

    def source(self, source: RecordSource) -> RecordSource:
        """Traces fetches and commits."""
        return _TracedSource(source, self)

    def api(self, api: Api) -> Api:
        """Traces sends."""
        return _TracedApi(api, self)

    @contextmanager
    def convert(self, chunks: Sequence[Chunk]) -> Iterator[None]:
        """A span under that of the fetch which brought these. If that is not kept this is neither: nobody looks."""
        kept = self._fetch is not None and self._fetch.get_span_context().trace_flags.sampled
        records = (record for chunk in chunks for record in chunk.records) if kept else ()
        parents = trace_parents(records, LINKS)
        with self.span("convert", SpanKind.INTERNAL, _sizes(chunks), parents, under=self._fetch):
            yield

    def within(self, left: Callable[[], float]) -> None:
        """See `Tracing.within`."""
        self._left = left

    async def close(self) -> None:
        """Send what is queued. The thread is a daemon: when the time is over, nothing waits for it."""
        try:
            async with asyncio.timeout(min(CLOSING, self._left())):
                await run_blocking("tracing-close", self._provider.shutdown)
        except TimeoutError:
            self._give_up()

    # -- for those who wrap

    @contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        parents: Iterable[TraceParent] = (),
        under: Span | None = None,
    ) -> Iterator[Span]:
        """A span that ends with the block; what is raised in it is none of its business but for the end."""
        span = self._tracer.start_span(
            name,
            set_span_in_context(under) if under is not None else None,
            kind,
            attributes,
            [_link(one) for one in parents],
        )
        try:
            yield span
        except BaseException as error:
            # Its name only: the text may quote what it was about.
            fail(span, type(error).__name__)
            raise
        finally:
            span.end()

    def fetched(self, begun: int, chunks: Sequence[Chunk]) -> None:
        """A fetch that began at `begun` (nanoseconds since 1970) brought these. One that brought none is no span."""
        attributes = {**self._kafka, "messaging.operation.type": "receive", **_sizes(chunks)}
        self._fetch = self._tracer.start_span("fetch", None, SpanKind.CLIENT, attributes, start_time=begun)
        self._fetch.end()

    def commit(self, positions: Sequence[Position]) -> Attributes:
        """What is known of a commit before it."""
        return {**self._kafka, "messaging.operation.type": "settle", "pinstream.partitions": len(positions)}

    def send(self, command: m.Send) -> Attributes:
        """What is known of a call before it."""
        return {
            **self._server,
            "pinstream.account": command.account,
            "pinstream.events": command.events,
            "pinstream.attempt": command.attempt,
            "http.request.body.size": len(command.body),
        }


class _TracedSource:
    """A source whose fetches and commits are spans."""

    def __init__(self, source: RecordSource, tracing: SpanTracing) -> None:
        self._source = source
        self._tracing = tracing
        self.start = source.start
        self.end_offsets = source.end_offsets
        self.read_anew = source.read_anew
        self.close = source.close

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        begun = time.time_ns()
        chunks = await self._source.fetch(room, timeout)
        if chunks:
            self._tracing.fetched(begun, chunks)
        return chunks

    async def commit(self, positions: Sequence[Position]) -> CommitAnswer:
        with self._tracing.span("commit", SpanKind.CLIENT, self._tracing.commit(positions)) as span:
            answer = await self._source.commit(positions)
            if answer.failure is not None:
                fail(span, answer.failure)
        return answer


class _TracedApi:
    """An API whose calls are spans."""

    def __init__(self, api: Api, tracing: SpanTracing) -> None:
        self._api = api
        self._tracing = tracing
        self.read_token = api.read_token

    async def send(self, command: m.Send) -> m.Answered | m.Unanswered:
        tracing = self._tracing
        with tracing.span("send", SpanKind.CLIENT, tracing.send(command), command.parents) as span:
            answer = await self._api.send(command)
            _answered(span, answer)
        return answer


def _answered(span: Span, answer: m.Answered | m.Unanswered) -> None:
    name = request_id(answer.headers)
    if name is not None:
        span.set_attribute("pinterest.request_id", name)
    if isinstance(answer, m.Unanswered):
        fail(span, answer.reason)
        return
    span.set_attribute("http.response.status_code", answer.status)
    if answer.status >= _FAILURE:
        fail(span, str(answer.status))


def fail(span: Span, kind: str) -> None:
    """It went wrong; `kind` is a code."""
    span.set_attribute("error.type", kind)
    span.set_status(StatusCode.ERROR)


def _sizes(chunks: Sequence[Chunk]) -> Attributes:
    return {
        "messaging.batch.message_count": sum(len(chunk.records) for chunk in chunks),
        "pinstream.partitions": len(chunks),
    }


def _link(parent: TraceParent) -> Link:
    return Link(SpanContext(parent.trace_id, parent.span_id, True, TraceFlags(parent.flags)))


class Watched(SpanExporter):
    """An exporter that says in one line when spans stop arriving, and in one when they arrive again."""

    def __init__(self, exporter: SpanExporter) -> None:
        self._exporter = exporter
        self._lost = 0

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Hand them on. Never raises: what cannot be exported is lost, and counted."""
        try:
            result = self._exporter.export(spans)
        except Exception:
            result = SpanExportResult.FAILURE
        if result is SpanExportResult.SUCCESS:
            self._arrived()
        else:
            self._failed(len(spans))
        return result

    def shutdown(self) -> None:
        """No more."""
        self._exporter.shutdown()

    def _failed(self, spans: int) -> None:
        if not self._lost:
            structlog.get_logger().warning(
                "traces_not_exported",
                text="the collector accepts no spans: check that the OTEL_EXPORTER_OTLP_… variables name a running "
                "one; spans are dropped until then, events are delivered",
            )
        self._lost += spans

    def _arrived(self) -> None:
        if self._lost:
            structlog.get_logger().info("traces_exported_again", spans_lost=self._lost)
        self._lost = 0
