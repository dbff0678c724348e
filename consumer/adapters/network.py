"""Calls to the outside: their proxy, the authorities that they trust, our own certificate, and what errors mean.

Theory of operation. The clients of the API and of the schema registry are of two libraries, whose own rules for
``HTTPS_PROXY`` and ``NO_PROXY`` differ. So both share one `Network`, and ask it before each attempt. Its rules are
those of curl, which librdkafka uses for its tokens: the proxy is chosen by the scheme of the URL; an item of
``NO_PROXY`` is a host and all below it, an address, a network, or ``*``.

User and password of the proxy, and the file of further authorities, may change while the process runs: both are checked
before each attempt. An authority that is new in the file is trusted at once. One that is removed is trusted until the
process ends, because OpenSSL cannot forget one.

An error names the proxy by host and port only, and never quotes its answer: a page may repeat the request.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import ipaddress
import ssl
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from time import gmtime, strftime
from typing import Final, Literal
from urllib.parse import unquote, urlsplit

_PORTS: Final = {"http": 80, "https": 443}
# The settings of the proxies that serve all calls.
_SHARED: Final = frozenset({"HTTPS_PROXY", "HTTP_PROXY"})
# OpenSSL's codes of faults of a certificate (x509_vfy.h); the last two: it is for another host, or address.
_NOT_YET, _EXPIRED, _OTHER_NAME = 9, 10, (62, 64)
# OpenSSL's errors for bytes that are no TLS; which one comes depends on the first bytes and on its version.
_NO_TLS: Final = frozenset(
    [
        "WRONG_VERSION_NUMBER",
        "RECORD_LAYER_FAILURE",
        "HTTP_REQUEST",
        "UNKNOWN_PROTOCOL",
        "PACKET_LENGTH_TOO_LONG",
    ]
)
LOGIN_REQUIRED: Final = 407
# Answers of servers that do not know CONNECT, or its target.
_NO_PROXY_SAYS: Final = frozenset({400, 404, 405, 501})

ProxyFault = Literal["absent", "unknown", "silent", "ended", "broken off"]
_FAULTS: Final[Mapping[ProxyFault, str]] = {
    "absent": "nothing answers at the proxy {proxy}: correct {proxy.variable}, or allow the connection in the network",
    "unknown": "the name of the proxy {proxy} cannot be resolved: correct {proxy.variable}, or check the DNS",
    # It accepted the connection, and did not open one to the target in time.
    "silent": "the proxy {proxy} did not open a connection to {target} in time: check it, and the scheme of "
    "{proxy.variable}",
    # It opened the way to the target, and no TLS came of it.
    "ended": "the proxy {proxy} accepted the connection to {target}, and then ended it or answered itself: let it "
    "allow {target}, or correct {variable}",
    "broken off": "the connection through the proxy {proxy} broke off: check it, and the scheme of {proxy.variable}",
}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy, for one call. `variable` is the setting that names it. `url` has no user and password: these are in
    `login`, as ``user:password``."""

    variable: str
    url: str
    login: str | None = field(default=None, repr=False)

    def __str__(self) -> str:
        # For messages: host and port alone, as a path or a query could hold a secret.
        return place_of(self.url)

    @property
    def headers(self) -> dict[str, str]:
        """Return the headers that log in to the proxy."""
        if self.login is None:
            return {}
        # Our own header, since the login may change while the process runs, and a URL with a password in it may show
        # in an error of the HTTP library.
        return {"Proxy-Authorization": f"Basic {base64.b64encode(self.login.encode()).decode()}"}

    def refusal(self, status: int, target: str) -> str:
        """Return what it means that the proxy answered with this status instead of opening the way to `target`."""
        # A proxy for one service has its login in its URL, and NO_PROXY does not apply to it (`through`).
        is_shared = self.variable in _SHARED
        said = f"the proxy {self} answered {status}"
        if status == LOGIN_REQUIRED:
            file = "PINSTREAM_PROXY_CREDENTIALS_FILE"
            if self.login is None:
                return f"{said}: it asks for a user and password; put them into {file if is_shared else self.variable}"
            wrong = f"{file}, or the proxy's URL" if is_shared else self.variable
            return f"{said}: it refused the user and password; correct {wrong}"
        if status in _NO_PROXY_SAYS:
            return f"{said}, as a server that is no proxy does: correct {self.variable}, or let it allow {target}"
        if status >= 500:  # mostly 502 and 504: it could not reach the target
            return f"{said}: it cannot reach {target} itself; check it and its network"
        return f"{said}: let it allow {target}" + (", or name that in NO_PROXY" if is_shared else "")

    def explain_error(self, what: ProxyFault, target: str = "", variable: str = "") -> str:
        """Return what this fault means for a call to `target`, from the setting `variable`."""
        return _FAULTS[what].format(proxy=self, target=target, variable=variable)


@dataclass(eq=False, repr=False)  # it holds secrets
class Network:
    """See the module. Proxies are ``http://[user:password@]host:port``, or empty. `login` returns the user and password
    that are used in place of those in the URLs, or nothing. `authorities` is a PEM file of authorities that are trusted
    beside those of the system. `on_error` is called once each time that it cannot be read any more."""

    _: KW_ONLY
    https_proxy: str = ""
    http_proxy: str = ""
    no_proxy: str = ""
    login: Callable[[], str] = lambda: ""
    authorities: Path | None = None
    on_error: Callable[[str], None] = lambda _: None

    def __post_init__(self) -> None:
        self._proxies = {
            "https": _split("HTTPS_PROXY", self.https_proxy),
            "http": _split("HTTP_PROXY", self.http_proxy),
        }
        self._seen: tuple[int, int, int] | None = None
        self._contexts: list[ssl.SSLContext] = []
        self._own: ssl.SSLContext | None = None

    def proxy(self, url: str) -> Proxy | None:
        """Return the proxy for calls to this URL; None: they go there directly."""
        parts = urlsplit(url)
        found = self._proxies.get(parts.scheme)
        if found is None or _is_excepted(
            self.no_proxy, parts.hostname or "", parts.port or _PORTS[parts.scheme]
        ):
            return None
        return Proxy(found.variable, found.url, self.login() or found.login)

    def through(self, proxy: str, variable: str) -> Network:
        """Return a network that sends everything through this one proxy, and trusts the same authorities."""
        # Without our login and NO_PROXY: a proxy that is named for one service is for all calls to it.
        one = Network(authorities=self.authorities, on_error=self.on_error)
        url = proxy if "://" in proxy else f"http://{proxy}"
        one._proxies = dict.fromkeys(("https", "http"), _split(variable, url))
        return one

    def context(self) -> ssl.SSLContext:
        """Return the TLS context of all calls, with the authorities that are trusted now."""
        if self._own is None:  # made once: reading the system's authorities takes tens of milliseconds
            self._own = ssl.create_default_context()
            self.trust(self._own)
        self.refresh()
        return self._own

    def trust(self, context: ssl.SSLContext) -> None:
        """Make this context trust our authorities, including those that are added later."""
        self._contexts.append(context)
        if self.authorities is not None:
            # Taken before the file is read: a change in between is noticed at the next attempt.
            self._seen = self._seen or file_stamp(self.authorities)
            # The settings have checked the file. One that is being replaced just now is read later (`refresh`).
            # An `SSLError` is an `OSError`.
            with contextlib.suppress(OSError):
                context.load_verify_locations(self.authorities)

    def refresh(self) -> None:
        """Read the file of authorities again if it has changed, and trust them."""
        if self.authorities is None or (stamp := file_stamp(self.authorities)) == self._seen:
            return
        self._seen = stamp  # also if it cannot be read: reported once, and not at each attempt
        try:
            for context in self._contexts:
                context.load_verify_locations(self.authorities)
        except OSError:
            self.on_error(
                f"PINSTREAM_CA_FILE: {self.authorities} is missing, unreadable or has no certificate; the authorities "
                "that were in it stay trusted"
            )


@functools.lru_cache
def _is_excepted(no_proxy: str, host: str, port: int) -> bool:
    """Return whether NO_PROXY exempts this host and port. An item that cannot be read exempts none, as with curl."""
    name, address = host.rstrip(".").lower(), None  # a name with the final dot is the same host
    with contextlib.suppress(ValueError):
        address = ipaddress.ip_address(name)
    for item in no_proxy.replace(",", " ").lower().split():
        head, _, tail = item.rpartition(":")
        # An IPv6 address has colons of its own: its port stands after brackets.
        has_port = tail.isascii() and tail.isdigit() and (head.endswith("]") or ":" not in head)
        if has_port and tail.lstrip("0") != str(port):
            continue
        one = (head if has_port else item).strip("[]")
        try:
            network = ipaddress.ip_network(one, strict=False)
        except ValueError:
            suffix = one.removeprefix("*").strip(".")
            if one == "*" or name == suffix or (address is None and name.endswith(f".{suffix}")):
                return True
        else:
            # A name is not resolved to see whether it is in a network: curl does not either, and it would block.
            if address is not None and address in network:
                return True
    return False


def _split(variable: str, url: str) -> Proxy | None:
    """Return the proxy of this URL, with user and password apart; None if the URL is empty."""
    if not url:
        return None
    parts = urlsplit(url)
    login = None
    if parts.username is not None:
        # Both are percent-encoded in a URL: a password may have an @ or a colon in it.
        login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return Proxy(variable, f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}", login)


def place_of(url: str) -> str:
    """Return host and port of a URL, the host in brackets if it is an IPv6 address."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    return f"{f'[{host}]' if ':' in host else host}:{parts.port or _PORTS.get(parts.scheme, 0)}"


def file_stamp(path: Path) -> tuple[int, int, int] | None:
    """Return a value that changes when the file does; None: there is no file."""
    try:
        stat = path.stat()
    except OSError:
        return None
    # A mounted file is swapped by its link: the new file may have the same size and time.
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def explain_tls_error(error: ssl.SSLError, url: str, proxy: Proxy | None, variable: str) -> str:
    """Return what is wrong with TLS to this URL, which the setting `variable` names, and what to do."""
    where = place_of(url)
    via = "" if proxy is None else f", through the proxy {proxy},"
    if not isinstance(error, ssl.SSLCertVerificationError):
        # Behind a proxy it cannot be known whether the server or the proxy itself answered without TLS.
        if proxy is not None:
            return proxy.explain_error("ended", where, variable)
        if error.reason not in _NO_TLS:
            return f"the TLS handshake with {where} failed ({str(error.reason).lower()}): check {variable}"
        return f"{where} does not speak TLS: correct the scheme or the port in {variable}"
    who = "it" if proxy is None else "it, or of the proxy if that opens TLS,"
    return certificate_fault(
        error,
        f"{where}{via}",
        other_name=f"use a name of the certificate in {variable}",
        other_authority="is not known here: put the certificate of the "
        f"authority that signed {who} into PINSTREAM_CA_FILE",
    )


def certificate_fault(
    error: ssl.SSLCertVerificationError, whose: str, *, other_name: str, other_authority: str
) -> str:
    """Return what is wrong with the certificate of `whose`.

    `other_name`: what to do if it is for another name. `other_authority`: ends a sentence about the authority that
    signed it, with what to do.
    """
    if error.verify_code == _EXPIRED:
        return f"the certificate of {whose} has expired: renew it there, or correct the clock of this machine"
    if error.verify_code == _NOT_YET:
        return f"the certificate of {whose} is not valid yet: correct the clock of this machine, or wait"
    if error.verify_code in _OTHER_NAME:
        return f"the certificate of {whose} is for another name: {other_name}"
    return f"the certificate of {whose} is signed by an authority that {other_authority}"


def client_certificate(config: Mapping[str, object]) -> tuple[str, int] | None:
    """Return which property of a client of Kafka or of the registry has its certificate, and when that ends. None: it
    has none, or it cannot be read; what is inside of a keystore is not."""
    for name in ("ssl.certificate.location", "ssl.certificate.pem"):
        given = str(config.get(name, ""))
        with contextlib.suppress(OSError):
            pem = Path(given).read_text("ascii", "replace") if name.endswith("location") and given else given
            if (ends := ends_at(pem)) is not None:
                return name, ends
    return None


def date(ends: float) -> str:
    """Return a time as a message has it."""
    return strftime("%Y-%m-%d %H:%M UTC", gmtime(ends))


def ends_at(pem: str) -> int | None:
    """Return when the first certificate ends, which is the client's own, in seconds since 1970. None: there is none, or
    it cannot be read."""
    if "BEGIN CERTIFICATE" not in pem:
        return None
    # Imported here: few processes have a certificate, and it takes megabytes.
    from cryptography import x509

    try:
        return int(x509.load_pem_x509_certificate(pem.encode()).not_valid_after_utc.timestamp())
    except Exception:  # the library has a dozen kinds
        return None
