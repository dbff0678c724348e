"""Who may read: who knows the token (``PINSTREAM_HTTP_TOKEN``), or everyone. Probes are never asked for it.

Theory of operation. The token comes as ``Authorization: Bearer TOKEN`` (Prometheus, scripts), or as the password of
HTTP Basic with any user: so a browser asks for it, and sends it along with all that the page fetches afterwards. It
is asked for before anything is looked up, so that a stranger does not even learn which paths there are. It is
compared in a time that does not tell how much of it was right.

Without a token, a browser is still not to be made the spy of another site: a site may let its own name point to our
address (DNS rebinding), and then reads what its visitor reaches. So the figures are shown only to who asks for them by
a name that no site can have: an address, a name without a dot, or one of those that are kept for local networks. With
a token that needs no care: a browser sends it only to the site that it was given for.
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

OPEN_PATHS = frozenset({"/healthz", "/readyz"})
"""What probes ask for, by whatever name they know."""
_NO_SITES_NAME = (".localhost", ".local", ".internal", ".home.arpa", ".test")
"""Endings that nobody can register (RFC 6761, 6762, 8375, and ICANN's for private use)."""
_FOREIGN = (
    "by a name with a dot, the figures are shown only with a token, so that no other site can read them through your "
    "browser: set PINSTREAM_HTTP_TOKEN, or ask by the address\n"
)
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


@web.middleware
async def refuse_foreign_names(request: web.Request, handler: Handler) -> web.StreamResponse:
    """For a server without a token: whoever is asked for as a site that someone may own gives no figures."""
    if request.path in OPEN_PATHS or no_sites_name(request.headers.get("Host", "")):
        return await handler(request)
    return web.Response(status=421, text=_FOREIGN)


def no_sites_name(host: str) -> bool:
    """Whether this Host header names what no site on the Internet can be called."""
    try:
        name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
    except ValueError:  # brackets without an address in them
        return False
    return "." not in name or name.endswith(_NO_SITES_NAME) or _is_address(name)


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def admits(authorization: str, token: str) -> bool:
    """Whether this header's value shows the token. An empty token admits nobody."""
    # Digests, since a comparison of texts tells by its time whether they are equally long.
    given, right = (hashlib.sha256(one).digest() for one in (_shown(authorization), token.encode()))
    return bool(token) and hmac.compare_digest(given, right)


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
