"""The HTTP of the schema registry's client: the way that its requests go, and bounded answers.

Confluent's client has its own rules for proxies and authorities. `Way` replaces them by those of all calls
(`consumer.adapters.network`).

An answer is read and decompressed up to a limit: from a wrong or hostile server half a megabyte can become a
gigabyte, and an endless answer takes all memory.
"""

from __future__ import annotations

import ssl
import time
import zlib
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final

from confluent_kafka.schema_registry.common._httpx_compat import httpx

from consumer.adapters.network import Network, Proxy
from consumer.adapters.registry_errors import UnboundedAnswer

# Bytes of a decompressed answer: four times the largest schema that is read, since JSON in JSON grows.
ANSWER_LIMIT: Final = 4 * 1024 * 1024
# Connections for one way: the engine asks for few schemas at once.
_LIMITS: Final = httpx.Limits(max_connections=16, max_keepalive_connections=4)
_CODINGS: Final = {"": None, "identity": None, "gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS}
"""The content codings that an answer may have, with zlib's parameter for each."""


class Way(httpx.AsyncBaseTransport):
    """Sends each request the way that `network` says at that moment; `context` is the TLS of the connections."""

    def __init__(self, network: Network, context: ssl.SSLContext) -> None:
        self._network = network
        self._context = context
        network.trust(context)
        # One for each proxy and password; few in the life of a process.
        self._transports: dict[Proxy | None, Any] = {}

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request."""
        # At each attempt: login and authorities may have changed since the last one.
        self._network.refresh()
        proxy = self._network.proxy(str(request.url))
        if proxy not in self._transports:
            through = None
            if proxy is not None:
                # The context of a proxy that is asked by TLS; without it httpx would make one that trusts others.
                tls = self._context if proxy.url.startswith("https:") else None
                through = httpx.Proxy(proxy.url, headers=proxy.headers, ssl_context=tls)
            self._transports[proxy] = httpx.AsyncHTTPTransport(
                verify=self._context, proxy=through, trust_env=False, limits=_LIMITS
            )
        return await self._transports[proxy].handle_async_request(request)

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()


def take_over(rest: Any, network: Network) -> Any:
    """Have this client of the registry go the way that `network` says, and limit all answers. Return the source of
    its tokens, if it has one: that goes the same way, and trusts the same authorities."""
    # The client makes its own sessions and has no way to give it others.
    way = Way(network, rest.verify)
    rest.session = httpx.AsyncClient(transport=way, auth=rest.auth, timeout=rest.timeout, trust_env=False)
    _bound_answers(rest.session)
    tokens = rest.bearer_field_provider
    if not hasattr(tokens, "client"):
        return None
    if not hasattr(tokens.client, "client_id"):
        # Azure's metadata service is on this machine, so no proxy is asked for it, whatever the environment says.
        tokens.client = httpx.AsyncClient(trust_env=False)
    else:
        plain = tokens.client
        tokens.client = type(plain)(
            client_id=plain.client_id,
            client_secret=plain.client_secret,
            scope=plain.scope,
            transport=Way(network, rest.verify),
            trust_env=False,
        )
        tokens.token_expired = lambda: _is_ending(tokens.token_object)
    _bound_answers(tokens.client)
    return tokens


def _is_ending(token: Mapping[str, Any]) -> bool:
    """Return whether four fifths of this token's life are over. The client's own rule fails on a token that does not
    say how long it lives, which OAuth allows (RFC 6749, 5.1: it is used until it is refused), and on text for a
    number, as some endpoints write it."""
    ends, lives = token.get("expires_at"), token.get("expires_in")
    return ends is not None and float(ends) < time.time() + float(lives or 0) / 5


def _bound_answers(session: Any) -> None:
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

    async def __aiter__(self) -> AsyncIterator[bytes]:
        left = ANSWER_LIMIT
        async for part in self._stream:
            piece = part
            if self._unpacker is not None:
                try:
                    # One byte more than may be, so that it shows: half a megabyte can become a gigabyte.
                    piece = self._unpacker.decompress(part, left + 1)
                except zlib.error:
                    raise ValueError("a compressed answer that cannot be decompressed") from None
            # What came counts, too: zlib keeps what follows the end of the compressed data.
            left -= max(len(part), len(piece))
            if left < 0:
                raise UnboundedAnswer(f"larger than {ANSWER_LIMIT >> 20} MiB")
            yield piece

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()
