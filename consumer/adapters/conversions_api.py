"""The Conversions API over HTTP: one attempt per call, in bounded time; it returns the answer and decides nothing.

One aiohttp session has as many connections as requests may be in flight. `network` chooses the proxy of a call and the
authorities that it trusts. The token comes from a setting or from a file, which is read again when it has changed, so
that a mounted secret takes effect without a restart. Each ad account may have a file of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, Final

import aiohttp
from aiohttp.abc import AbstractStreamWriter
from aiohttp.payload import Payload

from consumer.adapters.network import (
    LOGIN_REQUIRED,
    Network,
    Proxy,
    ProxyFault,
    explain_tls_error,
    file_stamp,
    place_of,
)
from consumer.engine.messages import START_EXPIRED, Answered, Send, Unanswered
from consumer.errors import SettingsError

# Bytes. An answer for 1000 events is some 100 KB, and a wrong server may send anything.
_ANSWER_LIMIT = 16 * 1024 * 1024
_JSON = "application/json"
_NO_EVENTS = b'{"data":[]}'
# Seconds to make a connection; and the share of an attempt's time that a proxy has for that, so that it shows whether
# the proxy or the API did not answer.
_CONNECT, _PROXY_SHARE = 10.0, 0.8
# Seconds by which a timer is late if the process stood still; and seconds that it then has to read what has arrived.
_LATE, _CATCH_UP = 0.1, 1.0


class Token:
    """The access token: a text that cannot change while the process runs."""

    def __init__(self, token: str = "") -> None:
        self.latest = token
        """The last token that was read, without a check of a file."""

    def value(self) -> str:
        """Return the token that holds now."""
        return self.latest

    def reload(self) -> bool:
        """Read the token again. Return True if it changed."""
        return False


class TokenFile(Token):
    """A token in a file, which is read again when it changes.

    `read` returns the token in the file, or raises `SettingsError`: so does this if there is none at first.
    `on_error` is called once each time that the file no longer has one.
    """

    def __init__(
        self, path: Path, read: Callable[[Path], str], on_error: Callable[[str], None] = lambda _: None
    ) -> None:
        # Taken before the file is read: a change in between is noticed at the next check.
        self._seen = file_stamp(path)
        super().__init__(read(path))
        self._path = path
        self._read = read
        self._on_error = on_error
        self._is_failing = False

    def value(self) -> str:
        """See `Token.value`."""
        # One `stat` before each attempt: a mounted secret takes effect without a restart.
        if file_stamp(self._path) != self._seen:
            self.reload()
        return self.latest

    def reload(self) -> bool:
        """See `Token.reload`."""
        stamp, before = file_stamp(self._path), self.latest
        try:
            self.latest, self._seen = self._read(self._path), stamp
        except SettingsError as error:  # for a moment, while the secret is replaced
            if not self._is_failing:
                self._on_error(f"{error}; until then the last one stays in force")
            self._is_failing = True
            return False
        self._is_failing = False
        return self.latest != before


Tokens = Token | Mapping[str, Token]
"""One token for all ad accounts, or one for each account by its number."""


@dataclass(eq=False, repr=False)  # it holds secrets
class ConversionsApi:
    """Sends batches. `url` is the API's base, without the trailing slash; `timeout` bounds one attempt, in seconds.
    `account` is any of our ad accounts, for `ask_time`."""

    url: str
    token: Tokens
    _: KW_ONLY
    account: str
    timeout: float
    concurrency: int
    test_mode: bool = False
    agent: str
    network: Network = field(default_factory=Network)
    _session: aiohttp.ClientSession | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.url = self.url.rstrip("/")
        self._tokens = [self.token] if isinstance(self.token, Token) else [*self.token.values()]

    async def send(
        self, command: Send, may_begin: Callable[[], bool] = lambda: True
    ) -> Answered | Unanswered:
        """POST the batch once, if it still `may_begin` when the connection is there. Raises only when it is
        cancelled."""
        return await self._attempt(command.number, command.account, Body(command.parts, may_begin))

    async def ask_time(self) -> Answered | Unanswered:
        """POST a batch of no events, which is refused; the refusal is dated. Raises only when it is cancelled."""
        return await self._attempt(0, self.account, Body([_NO_EVENTS]))

    async def get(self, account: str, question: str) -> Answered | Unanswered:
        """GET what the API knows of an ad account, once; `question` may have a query. Raises only when it is
        cancelled."""
        return await self._attempt(0, account, None, question)

    async def _attempt(
        self, number: int, account: str, body: Body | None, what: str = "events"
    ) -> Answered | Unanswered:
        headers: dict[str, str] = {}
        proxy = self.network.proxy(self.url)
        loop = asyncio.get_running_loop()
        ends = loop.time() + self.timeout

        def end() -> None:
            # If this process stood still, the answer may have arrived. It gets time to be read, or delivered
            # events would be sent again.
            stood_still = loop.time() > ends + _LATE
            limit.reschedule(loop.time() + (_CATCH_UP if stood_still else 0.0))

        timer = loop.call_at(ends, end)
        try:
            async with asyncio.timeout(None) as limit:
                return await self._exchange(number, account, body, what, proxy, headers)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            if body is not None and body.is_late:
                return Unanswered(number, START_EXPIRED)
            reason, said = call_failure(error, self.url, proxy)
            return Unanswered(number, reason, headers, said)
        finally:
            timer.cancel()

    async def read_token(self) -> bool:
        """Read the token, or all tokens, again; return True if one has changed."""
        changed = [one.reload() for one in self._tokens]  # all tokens, also if the first one changed
        return any(changed)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def reach(self) -> str | None:
        """Try the way to the API, without a token and without an event. Return what is wrong with it, if anything."""
        proxy = self.network.proxy(self.url)
        try:
            # Any answer shows that the way is open.
            async with asyncio.timeout(self.timeout), self._call("GET", self.url, proxy, {}):
                return None
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            reason, said = call_failure(error, self.url, proxy)
            what = said or "check PINTEREST_API_URL, the DNS and the network"
            return f"no answer from {place_of(self.url)} ({reason}): {what}"

    @contextlib.asynccontextmanager
    async def _call(
        self, method: str, url: str, proxy: Proxy | None, headers: Mapping[str, str], **body: Any
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Make one call by way of `proxy`. Raises aiohttp's errors, also where the proxy itself asks for a login."""
        way: dict[str, Any] = {}
        if proxy is not None:
            within = aiohttp.ClientTimeout(total=None, connect=min(_CONNECT, _PROXY_SHARE * self.timeout))
            way = {"proxy": proxy.url, "timeout": within}
            # For a tunnel, the proxy reads the headers of CONNECT; without TLS, it reads those of the request itself.
            if url.startswith("https:"):
                way["proxy_headers"] = proxy.headers
            else:
                headers = {**headers, **proxy.headers}
        # Redirects are not followed: they must not lead a token to another server.
        async with self._open().request(
            method, url, headers=headers, allow_redirects=False, ssl=self.network.context(), **way, **body
        ) as response:
            if response.status == LOGIN_REQUIRED and proxy is not None:  # never from the platform
                raise aiohttp.ClientHttpProxyError(response.request_info, (), status=response.status)
            yield response

    async def _exchange(
        self,
        number: int,
        account: str,
        body: Body | None,
        what: str,
        proxy: Proxy | None,
        answered: dict[str, str],
    ) -> Answered | Unanswered:
        """POST a body, or GET without one. Put the answer's headers into `answered` as soon as they arrive: they remain
        if the body breaks off."""
        url = f"{self.url}/ad_accounts/{account}/{what}"
        own = self.token if isinstance(self.token, Token) else self.token[account]
        token = own.value()
        # aiohttp adds the content type of a body.
        headers = {"Authorization": f"Bearer {token}", "Accept": _JSON}
        query, method = {"test": "true"} if self.test_mode else None, "GET" if body is None else "POST"
        async with self._call(method, url, proxy, headers, data=body, params=query) as response:
            answered.update((name.lower(), value) for name, value in response.headers.items())
            content = await _read(response)  # decompressed, and so bounded
            if len(content) > _ANSWER_LIMIT:
                return Unanswered(number, "answer_too_large", answered)
            # An unusual answer (the platform's 401, a proxy's page) may repeat the token, and will be quoted in logs,
            # and that of a GET is shown: mask it here, where the tokens are known.
            if body is None or response.status != 200 or response.content_type != _JSON:
                for one in (token, *(other.latest for other in self._tokens)):
                    content = content.replace(one.encode(), b"***")
            return Answered(number, response.status, answered, content)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            limit = self.concurrency
            # This one asks the event loop, see `run_on_loop`. It asks once for all calls that wait for a name.
            resolver = aiohttp.ThreadedResolver()
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(limit=limit, keepalive_timeout=60, resolver=resolver),
                cookie_jar=aiohttp.DummyCookieJar(),  # one call must not depend on earlier ones
                # `send` bounds the whole attempt; this bounds only the making of a connection.
                timeout=aiohttp.ClientTimeout(total=None, sock_connect=min(_CONNECT, self.timeout)),
                headers={"User-Agent": self.agent},
                auto_decompress=True,
            )
        return self._session


# Bytes of a body up to which it is joined.
_MAX_COPIED: Final = 64 * 1024


class Body(Payload):
    """A request body in parts. The socket takes those of a large one one after the other: joined, it would be copied
    three times."""

    def __init__(
        self, parts: Sequence[bytes | memoryview], may_begin: Callable[[], bool] = lambda: True
    ) -> None:
        super().__init__(parts, content_type=_JSON)
        self.parts = parts
        self.is_late = False
        """True if it was not written, because by then it might not begin."""
        self._may_begin = may_begin
        self._size = sum(map(len, parts))

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the whole body as text."""
        return b"".join(self.parts).decode(encoding, errors)

    async def write(self, writer: AbstractStreamWriter) -> None:
        """Write the whole body. Raises `ValueError` if it may not begin any more; the connection is closed then."""
        # Here, and not where the attempt begins: between the two the process may stand still.
        if not self._may_begin():
            self.is_late = True
            raise ValueError("too late")
        # A system call a part costs more than copying a few bytes.
        parts = [b"".join(self.parts)] if sum(map(len, self.parts)) <= _MAX_COPIED else self.parts
        for part in parts:
            await writer.write(part)


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """Return the whole body; of a larger one, more than the limit."""
    try:
        return await response.content.readexactly(_ANSWER_LIMIT + 1)
    except asyncio.IncompleteReadError as end:
        return end.partial


# Kinds of failures; the first that fits counts, since these classes inherit from each other.
_FAILURES: Final = (
    ("timeout", TimeoutError),
    ("dns", aiohttp.ClientConnectorDNSError),
    ("tls", aiohttp.ClientSSLError | ssl.SSLError),
    ("connect", aiohttp.ClientConnectorError),
    ("connection", aiohttp.ClientConnectionError | OSError),
)


_PROXY_FAILURES: Final[Sequence[tuple[type[Exception], ProxyFault]]] = (
    (aiohttp.ClientConnectorDNSError, "unknown"),
    (aiohttp.ClientProxyConnectionError, "absent"),
    (aiohttp.ConnectionTimeoutError, "silent"),
    (aiohttp.ClientConnectorError, "ended"),
)


def call_failure(error: BaseException, url: str, proxy: Proxy | None) -> tuple[str, str | None]:
    """Return why no answer came to a call of `url` by way of `proxy`: one of a closed set of words, never the text of
    `error`, which can hold addresses; and what is known beyond that and what to do, or None."""
    kind = next((word for word, one in _FAILURES if isinstance(error, one)), "broken_answer")
    # aiohttp wraps OpenSSL's errors in two ways. An error of an open connection is not about TLS or the proxy.
    inner = getattr(error, "certificate_error", None) or getattr(error, "os_error", None)
    # By way of a proxy, only a certificate shows that the other end was reached.
    reached = proxy is None or isinstance(inner, ssl.SSLCertVerificationError)
    if reached and isinstance(inner, ssl.SSLError):
        return kind, explain_tls_error(inner, url, proxy, "PINTEREST_API_URL")
    if proxy is None:
        ended = isinstance(error, aiohttp.ServerDisconnectedError | aiohttp.ClientOSError)
        if ended and url.startswith("http:") and not isinstance(error, aiohttp.ClientConnectorError):
            return (
                kind,
                f"{place_of(url)} ended the connection: if it requires TLS, write https:// in PINTEREST_API_URL",
            )
        return kind, None
    # "proxy": the call ended before anything of it was sent to the API.
    if isinstance(error, aiohttp.ClientHttpProxyError):
        return "proxy", proxy.refusal(error.status, place_of(url))
    for one, what in _PROXY_FAILURES:
        if isinstance(error, one):
            return "proxy", proxy.explain_error(what, place_of(url), "PINTEREST_API_URL")
    if isinstance(error, TimeoutError):
        return kind, f"the call went through the proxy {proxy}"
    return kind, proxy.explain_error("broken off")
