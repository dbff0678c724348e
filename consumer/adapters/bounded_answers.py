"""HTTP for the schema registry's client: the proxy and authorities of its requests, and bounded answers.

Confluent's client has its own rules for proxies and authorities. `Way` replaces them with the rules of all our calls
(`consumer.adapters.network`).

An answer is read and decompressed up to a limit: half a megabyte from a wrong or hostile server can become a gigabyte,
and an endless answer takes all memory.
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

# Limit of a decompressed answer in bytes: four times the largest schema that is read, since JSON inside JSON grows.
ANSWER_LIMIT: Final = 4 * 1024 * 1024
# Connections with each proxy or without one: the engine asks for few schemas at once.
_LIMITS: Final = httpx.Limits(max_connections=16, max_keepalive_connections=4)
_CODINGS: Final = {"": None, "identity": None, "gzip": 16 + zlib.MAX_WBITS, "x-gzip": 16 + zlib.MAX_WBITS}
"""The content codings that an answer may have, with zlib's parameter for each."""


class Way(httpx.AsyncBaseTransport):
    """Sends each request with the proxy and authorities of `network` at that moment; `context` is the connections'
    TLS context."""

    def __init__(self, network: Network, context: ssl.SSLContext) -> None:
        self._network = network
        self._context = context
        network.trust(context)
        # A transport for each proxy and password; few in the life of a process.
        self._transports: dict[Proxy | None, Any] = {}

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request."""
        # Chosen at each attempt: login and authorities may have changed since the last one.
        self._network.refresh()
        proxy = self._network.proxy(str(request.url))
        if proxy not in self._transports:
            through = None
            if proxy is not None:
                # The TLS context for an https:// proxy; without it httpx would make one that trusts other authorities.
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
    """Make this client of the registry use the proxies and authorities of `network`, and limit all answers. Return
    the source of its tokens, if it has one, which then does the same."""
    # The client makes its own sessions and cannot be given others.
    way = Way(network, rest.verify)
    rest.session = httpx.AsyncClient(transport=way, auth=rest.auth, timeout=rest.timeout, trust_env=False)
    _bound_answers(rest.session)
    tokens = rest.bearer_field_provider
    if not hasattr(tokens, "client"):
        return None
    if not hasattr(tokens.client, "client_id"):
        # Azure's metadata service is on this machine, so it is reached without a proxy, in spite of the environment.
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
    # For other codings the decompressed size cannot be bounded here.
    session.headers["Accept-Encoding"] = "gzip"
    # Confluent's client reads an answer whole. This hook is called before any of it is read.
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
                    # One byte more than allowed, to notice an answer that is too large: half a megabyte can become a
                    # gigabyte.
                    piece = self._unpacker.decompress(part, left + 1)
                except zlib.error:
                    raise ValueError("a compressed answer that cannot be decompressed") from None
            # The received bytes count, too: zlib keeps all that follows the end of the compressed data.
            left -= max(len(part), len(piece))
            if left < 0:
                raise UnboundedAnswer(f"larger than {ANSWER_LIMIT >> 20} MiB")
            yield piece

    async def aclose(self) -> None:
        """Close the connection."""
        await self._stream.aclose()
