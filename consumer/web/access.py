"""Who may read: everyone, or who knows the token (``PINSTREAM_HTTP_TOKEN``). Probes are never asked for it.

Theory of operation. The token comes as ``Authorization: Bearer TOKEN`` (Prometheus, scripts), or as the password of
HTTP Basic with any user: so a browser asks for it, and sends it along with all that the page fetches afterwards. It
is asked for before anything is looked up, so that a stranger does not even learn which paths there are. It is
compared in a time that does not tell how much of it was right.
"""

from __future__ import annotations

import base64
import hmac
from collections.abc import Callable

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
_CHALLENGE = 'Basic realm="pinstream", charset="UTF-8"'
_ADVICE = (
    "the token is needed: as the password, with any user; or as the header Authorization: Bearer TOKEN\n"
)


def guard(token: Callable[[], str]) -> Middleware:
    """A middleware that lets pass who knows `token`, which is asked for anew at each request: it may change."""

    @web.middleware
    async def ask(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in OPEN_PATHS or admits(request.headers.get("Authorization", ""), token()):
            return await handler(request)
        return web.Response(status=401, text=_ADVICE, headers={"WWW-Authenticate": _CHALLENGE})

    return ask


def admits(authorization: str, token: str) -> bool:
    """Whether this header's value shows the token. An empty token admits nobody."""
    given = _shown(authorization)
    return bool(token) and hmac.compare_digest(given, token.encode())


def _shown(authorization: str) -> bytes:
    """What is given as the token; empty if nothing is."""
    scheme, _, rest = authorization.partition(" ")
    # A header is bytes: what is not UTF-8 stays as it came, and equals no token.
    raw = rest.strip(" ").encode("utf-8", "surrogateescape")
    if scheme.lower() == "bearer":
        return raw
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(raw, validate=True).partition(b":")[2]
    except ValueError:
        return b""
