"""Access control: with ``PINSTREAM_HTTP_TOKEN``, only requests with the token are answered; probes need none.

The token comes as ``Authorization: Bearer TOKEN`` (Prometheus, scripts), or as the password of HTTP Basic with any
user, so that a browser asks for it and sends it with everything that the page fetches.

Without a token, another website must not read the figures through a visitor's browser: it could point its own host name
at our address (DNS rebinding). So the figures are served only if the request's host is one that no website can have: an
IP address, a name without a dot, or a name reserved for local networks.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Callable
from urllib.parse import urlsplit

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

# Paths for probes, which need no token and may use any host name.
OPEN_PATHS = frozenset({"/healthz", "/readyz"})
# Domains that cannot be registered (RFC 6761, 6762, 8375, and ICANN's domain for private use).
_LOCAL_DOMAINS = (".localhost", ".local", ".internal", ".home.arpa", ".test")
_REFUSED_HOST = (
    "without a token, pinstream serves the figures only at an IP address or a local name, so that no website can read "
    "them through your browser: set PINSTREAM_HTTP_TOKEN, or use the IP address\n"
)
_ADVICE = (
    "the token is required: as the password with any user, or in the header Authorization: Bearer TOKEN\n"
)


def guard(token: Callable[[], str]) -> Middleware:
    """Return a middleware that requires the token. `token` is called for each request, because the token may change."""

    @web.middleware
    async def require_token(request: web.Request, handler: Handler) -> web.StreamResponse:
        # A middleware runs before routing finds a path missing: a stranger does not learn which paths exist.
        if request.path in OPEN_PATHS or admits(request.headers.get("Authorization", ""), token()):
            return await handler(request)
        challenge = {"WWW-Authenticate": 'Basic realm="pinstream", charset="UTF-8"'}
        return web.Response(status=401, text=_ADVICE, headers=challenge)

    return require_token


@web.middleware
async def refuse_foreign_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """For a server without a token: refuse requests for a host name that a website could have."""
    if request.path in OPEN_PATHS or is_local_name(request.headers.get("Host", "")):
        return await handler(request)
    return web.Response(status=421, text=_REFUSED_HOST)


def is_local_name(host: str) -> bool:
    """Return True if no website on the Internet can have the name in this Host header."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        return "." not in name or name.endswith(_LOCAL_DOMAINS) or ipaddress.ip_address(name) is not None
    except ValueError:  # brackets without an address in them, or a name that is no address
        return False


def admits(authorization: str, token: str) -> bool:
    """Return True if this Authorization header carries the token. An empty token admits no request."""
    # Compare digests: comparing the texts themselves would reveal by its time whether their lengths are equal.
    given, right = (hashlib.sha256(one).digest() for one in (_shown(authorization), token.encode()))
    return bool(token) and hmac.compare_digest(given, right)


def _shown(authorization: str) -> bytes:
    """Return the token in this header; empty if there is none."""
    scheme, _, rest = authorization.partition(" ")
    # surrogateescape keeps bytes that are not UTF-8; they equal no token.
    raw = rest.strip(" ").encode("utf-8", "surrogateescape")
    if scheme.lower() == "bearer":
        return raw
    if scheme.lower() != "basic":
        return b""
    try:
        return base64.b64decode(raw, validate=True).partition(b":")[2]
    except ValueError:
        return b""
