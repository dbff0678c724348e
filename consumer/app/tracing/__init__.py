"""Traces for OpenTelemetry, if its standard variables ask for them. Without them, OpenTelemetry is not even imported.

`environment` reads the variables and returns a `Tracing`: one that changes nothing, or that of `spans`, the only module
that imports OpenTelemetry (the extra ``otel``). It wraps the source and the API that the service uses, so the service
and the engine know nothing about spans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext

from consumer.engine.model import Chunk
from consumer.service import Api, RecordSource


class Tracing:
    """Traces of one member. This class makes none: everything stays as it is. `SpanTracing` does."""

    # Maximum number of records per batch whose own traces it links to.
    links = 0

    def source(self, source: RecordSource) -> RecordSource:
        """The source that the service drives: this one, or one around it."""
        return source

    def api(self, api: Api) -> Api:
        """The API that the service drives: this one, or one around it."""
        return api

    def convert(self, chunks: Sequence[Chunk]) -> AbstractContextManager[object]:
        """Around the handling of what was fetched. Never raises, never waits."""
        return nullcontext()

    def within(self, left: Callable[[], float]) -> None:
        """`left` gives the seconds that closing may take; it is called when closing begins."""

    async def close(self) -> None:
        """Send what is still queued, in bounded time."""
