"""The Conversions API over HTTP: one attempt per call, in bounded time; it returns what came back and decides nothing.

Theory of operation. One aiohttp session has as many connections as requests may be in flight. Redirects are not
followed: a token must not travel to where a redirect points. The body of an answer is read up to a limit, since an
answer for 1000 events is some 100 KB and a wrong server may send anything. A failure to get an answer is reported by
its kind (a closed set), never by the exception's text, which can hold addresses. Where an answer repeats the token (the
platform's 401 may, and a proxy's page), it is removed here, where it is known.

The token comes from a setting or from a file. The file is checked before each attempt (one `stat`) and read again when
it changed, so that a mounted secret takes effect without a restart; a halt asks for it explicitly.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from pathlib import Path
from typing import Protocol

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

from consumer.adapters.thread import run_blocking
from consumer.engine.messages import Answered, Send, Unanswered
from consumer.errors import SettingsError

_ANSWER_LIMIT = 16 * 1024 * 1024
_JSON = "application/json"
_NUMERIC = socket.NI_NUMERICHOST | socket.NI_NUMERICSERV


class Token(Protocol):
    """Where the access token comes from."""

    def value(self) -> str:
        """The current token."""

    def reload(self) -> bool:
        """Read it again; True if it changed."""


class FixedToken:
    """A token given as a setting. It cannot change while the process runs."""

    def __init__(self, token: str) -> None:
        self._token = token

    def value(self) -> str:
        """The token."""
        return self._token

    def reload(self) -> bool:
        """It never changes."""
        return False


class FileToken:
    """A token in a file (a mounted secret), read again when the file changes.

    While the file is missing, empty or unreadable for a moment (a secret is being replaced), the last token stays in
    use. Raises `SettingsError` if there is none at first: it names `variable`, the setting that named the file.
    """

    def __init__(self, path: Path, variable: str) -> None:
        self._path = path
        self._seen: tuple[int, int, int] | None = None
        self._token = ""
        self.reload()
        if not self._token:
            raise SettingsError(f"{variable}: the file cannot be read or is empty; put the token in it")

    def value(self) -> str:
        """The token, after a check whether the file changed."""
        if self._stamp() != self._seen:
            self.reload()
        return self._token

    def reload(self) -> bool:
        """Read the file."""
        stamp = self._stamp()
        try:
            token = self._path.read_text("utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return False
        if not token:
            return False
        changed, self._token, self._seen = token != self._token, token, stamp
        return changed

    def _stamp(self) -> tuple[int, int, int] | None:
        try:
            stat = self._path.stat()
        except OSError:
            return None
        return stat.st_mtime_ns, stat.st_size, stat.st_ino


class ConversionsApi:
    """Sends batches. `url` is the API's base, without the trailing slash; `timeout` bounds one attempt, in seconds."""

    def __init__(
        self, url: str, token: Token, *, timeout: float, concurrency: int, test_mode: bool = False, agent: str
    ) -> None:
        self._url = url.rstrip("/")
        self._token = token
        self._timeout = timeout
        self._concurrency = concurrency
        self._params = {"test": "true"} if test_mode else None
        self._agent = agent
        self._session: aiohttp.ClientSession | None = None

    async def send(self, command: Send) -> Answered | Unanswered:
        """POST the batch once. Raises only when it is cancelled."""
        headers: dict[str, str] = {}
        try:
            async with asyncio.timeout(self._timeout):
                return await self._post(command, headers)
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            return Unanswered(command.number, failure_kind(error), headers)

    async def read_token(self) -> bool:
        """Read the token again; True if it is not the one last used."""
        return self._token.reload()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _post(self, command: Send, answered: dict[str, str]) -> Answered | Unanswered:
        """Put the answer's headers into `answered` as soon as they are there: they outlast a body that breaks off."""
        url = f"{self._url}/ad_accounts/{command.account}/events"
        token = self._token.value()
        headers = {"Authorization": f"Bearer {token}", "Content-Type": _JSON, "Accept": _JSON}
        session = self._open()
        async with session.post(
            url, data=command.body, headers=headers, params=self._params, allow_redirects=False
        ) as response:
            answered.update((name.lower(), value) for name, value in response.headers.items())
            body = await _read(response)
            if len(body) > _ANSWER_LIMIT:
                return Unanswered(command.number, "answer_too_large", answered)
            # What is not the platform's usual answer may repeat the token, and will be quoted in logs.
            if response.status != 200 or response.content_type != _JSON:
                body = body.replace(token.encode(), b"***")
            return Answered(command.number, response.status, answered, body)

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(
                limit=self._concurrency, keepalive_timeout=60, resolver=_Resolver()
            )
            # `send` bounds the whole attempt; here only a connection that does not come about.
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=min(10.0, self._timeout))
            self._session = aiohttp.ClientSession(
                connector=connector,
                cookie_jar=aiohttp.DummyCookieJar(),  # one call must not depend on the ones before it
                timeout=timeout,
                headers={"User-Agent": self._agent},
                auto_decompress=True,
            )
        return self._session


class _Resolver(AbstractResolver):
    """Host names to addresses, each question in a daemon thread of its own.

    `socket.getaddrinfo` takes as long as a name server is silent, and cannot be cancelled. In asyncio's own pool the
    loop would wait for it when it closes, past every deadline. aiohttp remembers answers for ten seconds and asks once
    for all calls that wait for the same name, so threads stay few.
    """

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """The host's addresses. Raises `OSError`, which aiohttp reports as a DNS error."""
        found = await run_blocking(
            "pinstream-resolver",
            socket.getaddrinfo,
            host,
            port,
            family=family,
            type=socket.SOCK_STREAM,
            flags=socket.AI_ADDRCONFIG,
        )
        return [
            ResolveResult(
                hostname=host,
                # An IPv6 address may carry a scope, which is part of the number.
                host=socket.getnameinfo(address, _NUMERIC)[0],
                port=int(address[1]),
                family=kind,
                proto=proto,
                flags=_NUMERIC,
            )
            for kind, _, proto, _, address in found
        ]

    async def close(self) -> None:
        """Nothing is open."""


async def _read(response: aiohttp.ClientResponse) -> bytes:
    """The whole body, or more than the limit."""
    parts, size = [], 0
    async for part in response.content.iter_chunked(256 * 1024):
        parts.append(part)
        size += len(part)
        if size > _ANSWER_LIMIT:
            break
    return b"".join(parts)


def failure_kind(error: BaseException) -> str:
    """Why no answer came: one of a closed set of words."""
    if isinstance(error, TimeoutError):
        return "timeout"
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "dns"
    if isinstance(error, aiohttp.ClientSSLError | ssl.SSLError):
        return "tls"
    if isinstance(error, aiohttp.ClientConnectorError):
        return "connect"
    if isinstance(error, aiohttp.ClientConnectionError | OSError):
        return "connection"
    return "broken_answer"
