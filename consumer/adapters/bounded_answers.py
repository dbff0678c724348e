"""HTTP for the schema registry's client: the proxy and authorities of its requests, and bounded answers.

Confluent's client has its own rules for proxies and authorities. `BoundedTransport` replaces them with the rules of all
our calls (`consumer.adapters.network`).

An answer is read and decompressed up to a limit: half a megabyte from a wrong or hostile server can become a gigabyte,
and an endless answer takes all memory. Confluent's client reads an answer whole, so `BoundedTransport` reads it first.
"""

from __future__ import annotations

import contextlib
import ssl
import time
import zlib
from collections.abc import Mapping
from typing import Any, Final

# The library that Confluent's client itself uses.
try:
    from confluent_kafka.schema_registry.common._httpx_compat import httpx
except ModuleNotFoundError:  # an older client
    import httpx  # type: ignore[import-not-found, no-redef]

from consumer.adapters.network import Network, Proxy
from consumer.adapters.registry_errors import UnboundedAnswer

# Limit of a decompressed answer in bytes: four times the largest schema that is read, since JSON inside JSON grows.
ANSWER_LIMIT: Final = 4 * 1024 * 1024
# Connections with each proxy or without one: the engine asks for few schemas at once.
_LIMITS: Final = httpx.Limits(max_connections=16, max_keepalive_connections=4)


class BoundedTransport(httpx.AsyncBaseTransport):
    """Sends each request with the proxy and authorities of `network` at that moment, and reads its answer up to the
    limit; `context` is the connections' TLS context."""

    def __init__(self, network: Network, context: ssl.SSLContext) -> None:
        self._network = network
        self._context = context
        network.trust(context)
        # A transport for each proxy and password; few in the life of a process.
        self._transports: dict[Proxy | None, Any] = {}

    async def handle_async_request(self, request: Any) -> Any:
        """Send one request. Raises `UnboundedAnswer`."""
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
        request.headers["Accept-Encoding"] = "gzip"  # the one coding that `_content` decompresses
        async with contextlib.aclosing(await self._transports[proxy].handle_async_request(request)) as answer:
            # Without this header the library does not decompress again.
            coding = answer.headers.pop("content-encoding", "")
            content = await _content(answer.stream, coding.strip().lower())
            return httpx.Response(answer.status_code, headers=answer.headers, content=content)

    async def aclose(self) -> None:
        """Close all connections."""
        for transport in self._transports.values():
            await transport.aclose()


async def _content(stream: Any, coding: str) -> bytes:
    """Return what this stream has, decompressed. Raises `UnboundedAnswer` before more than the limit is in memory."""
    unpacker = None
    if coding in ("gzip", "x-gzip"):
        unpacker = zlib.decompressobj(16 + zlib.MAX_WBITS)  # with the header of a gzip file
    elif coding not in ("", "identity"):
        raise UnboundedAnswer(f"compressed as {coding[:20]!a}, which was not requested")
    content, received = bytearray(), 0
    async for part in stream:
        try:
            # One byte more than allowed, to notice an answer that is too large: half a megabyte can become a gigabyte.
            maximum = ANSWER_LIMIT + 1 - len(content)
            content += part if unpacker is None else unpacker.decompress(part, maximum)
        except zlib.error:
            raise ValueError("a compressed answer that cannot be decompressed") from None
        # The received bytes count, too: zlib keeps all that follows the end of the compressed data.
        received += len(part)
        if max(received, len(content)) > ANSWER_LIMIT:
            raise UnboundedAnswer(f"larger than {ANSWER_LIMIT >> 20} MiB")
    return bytes(content)


def take_over(rest: Any, network: Network) -> Any:
    """Make this client of the registry use the proxies and authorities of `network`, and limit all answers. Return
    the source of its tokens, if it has one, which then does the same."""
    # The client makes its own sessions and cannot be given others.
    way = BoundedTransport(network, rest.verify)
    rest.session = httpx.AsyncClient(transport=way, auth=rest.auth, timeout=rest.timeout, trust_env=False)
    tokens = rest.bearer_field_provider
    if not hasattr(tokens, "client"):
        return None
    plain = tokens.client
    if not hasattr(plain, "client_id"):
        # Azure's metadata service is on this machine, so it is reached without a proxy, in spite of the environment.
        direct = BoundedTransport(Network(), ssl.create_default_context())
        tokens.client = httpx.AsyncClient(transport=direct, trust_env=False)
    else:
        tokens.client = type(plain)(
            client_id=plain.client_id,
            client_secret=plain.client_secret,
            scope=plain.scope,
            transport=way,
            trust_env=False,
        )
        tokens.token_expired = lambda: _is_ending(tokens.token_object)
    return tokens


def _is_ending(token: Mapping[str, Any]) -> bool:
    """Return whether four fifths of this token's life are over. The client's own rule fails on a token that does not
    say how long it lives, which OAuth allows (RFC 6749, 5.1: it is used until it is refused), and on text for a
    number, as some endpoints write it."""
    ends, ids = token.get("expires_at"), token.get("expires_in")
    return ends is not None and float(ends) < time.time() + float(ids or 0) / 5
