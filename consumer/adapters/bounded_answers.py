"""Bounded answers of the schema registry: read and decompressed in steps, up to a limit.

From a wrong or hostile server half a megabyte can become a gigabyte, and an endless answer takes all memory.
"""

from __future__ import annotations

import zlib
from collections.abc import AsyncIterator
from typing import Any, Final

from confluent_kafka.schema_registry.common._httpx_compat import httpx

# Bytes of a decompressed answer: four times the largest schema that is read, since JSON in JSON grows.
ANSWER_LIMIT: Final = 4 * 1024 * 1024
_STEP: Final = 64 * 1024
_CODINGS: Final = {"": None, "identity": None, "gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS}
"""The content codings that an answer may have, with zlib's parameter for each."""


class UnboundedAnswer(Exception):
    """The answer is larger than the limit, or has a content coding whose size cannot be bounded."""


def bound_answers(session: Any) -> None:
    """Limit all answers that this session of the HTTP library will read."""
    # Of other codings the decompressed size cannot be bounded here.
    session.headers["Accept-Encoding"] = "gzip"
    # Confluent's client reads an answer whole. This hook is called before anything of it is read.
    session.event_hooks = {"response": [_bound]}


async def _bound(response: Any) -> None:
    # Without this header the library does not decompress: our stream does.
    coding = response.headers.pop("content-encoding", "").strip().lower()
    if coding not in _CODINGS:
        raise UnboundedAnswer(f"compressed as {coding[:20]!a}, which was not requested")
    response.stream = _BoundedStream(response.stream, _CODINGS[coding])


class _BoundedStream(httpx.AsyncByteStream):
    """The decompressed content of `stream`. Raises `UnboundedAnswer` beyond the limit, before more is in memory."""

    def __init__(self, stream: Any, window: int | None) -> None:
        self._stream = stream
        self._unpacker = None if window is None else zlib.decompressobj(window)
        self._left = ANSWER_LIMIT

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self._stream:
            for piece in self._unpacked(part):
                self._left -= len(piece)
                if self._left < 0:
                    raise UnboundedAnswer(f"larger than {ANSWER_LIMIT >> 20} MiB")
                yield piece

    def _unpacked(self, part: bytes) -> Any:
        if self._unpacker is None:
            yield part
            return
        while part:
            try:
                piece = self._unpacker.decompress(part, _STEP)
            except zlib.error:
                raise ValueError("a compressed answer that cannot be decompressed") from None
            part = self._unpacker.unconsumed_tail
            if piece:
                yield piece

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()
