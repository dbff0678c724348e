"""Explains an error of the schema registry's client in one line that says what to change.

A line may have a status, a code, the class of an error, names of settings, host and port in it; nothing else of an
answer's body or an address, which can hold secrets. A TLS error, a refused connection and an unknown host all reach us
as one class of the HTTP library; which of them it was is in the chain of causes.
"""

from __future__ import annotations

import json
import re
import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any, Final

from consumer.adapters.network import (
    LOGIN_REQUIRED,
    Network,
    Proxy,
    certificate_fault,
    explain_tls_error,
    place_of,
)
from consumer.errors import RegistryError

_URL: Final = "SCHEMA_REGISTRY_URL"
_BASIC: Final = "SCHEMA_REGISTRY_BASIC_AUTH_USER_INFO"
_BEARER: Final = "SCHEMA_REGISTRY_BEARER_AUTH"
_CLIENT_CERTIFICATE: Final = "SCHEMA_REGISTRY_SSL_CERTIFICATE_LOCATION and SCHEMA_REGISTRY_SSL_KEY_LOCATION"

# What to do about an answer, where its status decides that. The last two are answers when a schema is registered.
_HINTS: Final[Mapping[int, str]] = {
    403: "this user may not do that; grant it the right, or check the credentials",
    409: "the schema is not compatible with those registered before; change it so that both can be read, or use "
    "another topic",
    422: "the schema, or its subject, is not valid there; correct it",
}

# Errors that the client raises for an answer of an unexpected shape.
_NONSENSE: Final = (ValueError, TypeError, LookupError, AttributeError)


class UnboundedAnswer(Exception):
    """The answer is larger than the limit, or has a content coding whose size cannot be bounded."""


def explain_no_answer(
    error: Exception, kind: str = "id", *, config: Mapping[str, Any], network: Network, timeout: float
) -> str:
    """Return why the registry gave no verdict. `kind`: the kind of `SchemaRef` that was asked for; `config`: the
    client's properties; `network`: chose the proxy; `timeout`: the limit in seconds."""
    from confluent_kafka.schema_registry.error import OAuthTokenError

    # With several addresses, name the first: the error does not show which one it is about.
    url = str(config.get("url")).partition(",")[0]
    proxy = network.proxy(url)
    if isinstance(error, TimeoutError):
        via = "" if proxy is None else f", through the proxy {proxy}"
        return f"the registry did not answer within {timeout:g} s{via}"
    # The most specific reason first: errors of an answer, then errors on the way there.
    if isinstance(error, RegistryError):  # the answer is a schema, which cannot be used
        return str(error)
    if isinstance(error, UnboundedAnswer):
        return f"the registry's answer is {error}: check what answers at {_URL}"
    if isinstance(error, OAuthTokenError):
        return _no_token(error, config, network)
    status = getattr(error, "http_status_code", None)
    if status == LOGIN_REQUIRED and proxy is not None:  # without TLS, the proxy itself may answer
        return f"the registry could not be asked: {proxy.refusal(status, place_of(url))}"
    if isinstance(status, int):
        return _answered(status, getattr(error, "error_code", None), config, kind)
    if isinstance(error, json.JSONDecodeError):
        return (
            f"no schema registry answers at {_URL}: the answer is not JSON (a web page?); correct the address"
        )
    if isinstance(error, _NONSENSE):
        return f"the registry's answer has no schema ({type(error).__name__}): check what answers at {_URL}"
    return _no_contact(error, "the registry", _URL, url, config, proxy)


def _answered(status: int, code: object, config: Mapping[str, Any], kind: str) -> str:
    """Return what to do about an answer with this status. The code comes from the body, which may hold anything."""
    # A number of this size cannot be a secret. Many servers repeat the status as their code, which adds nothing.
    known = isinstance(code, int) and 0 < code < 10**9 and code != status
    said = f"the registry answered {status}" + (f", code {code}" if known else "")
    if status == 401:
        hint = f"it requires a login; set {_BASIC}, or {_BEARER}_CREDENTIALS_SOURCE and what belongs to it"
        if "basic.auth.user.info" in config:
            hint = f"it refused the login; check {_BASIC}"
        elif "bearer.auth.credentials.source" in config:
            hint = (
                "it refused the token; check what it requires of tokens (issuer, audience, scope) and the "
                f"{_BEARER}_… settings"
            )
        return f"{said}: {hint}"
    if status == 404:
        # A code for "no such schema" is a verdict and does not come here: this registry does not know the path. A
        # registry without GUIDs, as Apicurio's, has no path for them, and answers the same.
        gap = f"{_URL} lacks its path (Apicurio's ends in /apis/ccompat/v7)"
        if "/contexts/" in str(config.get("url")):
            gap = f"it has no contexts, or {gap}"
        return f"{said}: it has no schemas by GUID, or {gap}" if kind == "guid" else f"{said}: {gap}"
    if 300 <= status < 400:
        return f"{said}: it sends us to another address; set {_URL} to that (https:// instead of http://?)"
    return f"{said}: {_HINTS.get(status, 'check the registry, and what is in front of it')}"


def _no_token(error: Exception, config: Mapping[str, Any], network: Network) -> str:
    """Return why the token endpoint gave no token: the client wraps the error with the reason."""
    endpoint = f"{_BEARER}_ISSUER_ENDPOINT_URL"
    cause = error.__context__
    if isinstance(cause, UnboundedAnswer):
        return f"the token endpoint's answer is {cause}: check {endpoint}"
    if code := oauth_code(error):
        return (
            f"the token endpoint answered {code}: check {_BEARER}_CLIENT_ID, {_BEARER}_CLIENT_SECRET and "
            f"{_BEARER}_SCOPE"
        )
    status = getattr(getattr(cause, "response", None), "status_code", None)
    if status is not None:
        return f"the token endpoint answered {status}: check {endpoint}"
    if not isinstance(cause, Exception) or isinstance(cause, _NONSENSE):
        return f"the token endpoint's answer contains no token: check {endpoint}"
    url = str(config.get("bearer.auth.issuer.endpoint.url"))
    return _no_contact(cause, "the token endpoint", endpoint, url, config, network.proxy(url))


def oauth_code(error: Exception) -> str:
    """Return the code with which the token endpoint refused (RFC 6749, 5.2); empty: it did not."""
    code = getattr(error.__context__, "error", None)
    # Only letters are quoted: the code comes from the body, which may hold a secret.
    is_word = isinstance(code, str) and code.isascii() and code.replace("_", "").isalpha()
    return str(code)[:40] if is_word else ""


def _no_way(error: BaseException, proxy: Proxy, url: str, setting: str) -> str:
    """Return why a call by way of a proxy did not reach this URL, which is from `setting`."""
    for cause in _causes(error):
        # TLS is with the server through an open tunnel, and with the proxy before that: `explain_tls_error` names both.
        if isinstance(cause, ssl.SSLError):
            return explain_tls_error(cause, url, proxy, setting)
        if isinstance(cause, socket.gaierror):
            return proxy.explain_error("unknown")
        if isinstance(cause, ConnectionResetError | EOFError):
            return proxy.explain_error("ended", place_of(url), setting)
    # The library reports a proxy's refusal only as text: "407 Proxy Authentication Required".
    kind, status = type(error).__name__, re.match(r"\d{3}\b", str(error))
    if kind == "ProxyError" and status is not None:
        return proxy.refusal(int(status[0]), place_of(url))
    if kind == "ConnectError":
        return proxy.explain_error("absent")
    return proxy.explain_error("broken off")


def _no_contact(
    error: BaseException, whose: str, setting: str, url: str, config: Mapping[str, Any], proxy: Proxy | None
) -> str:
    """Return why no answer came from `whose`, whose address is from `setting`. `proxy`: the call went by way of it."""
    if proxy is not None:
        return f"{whose} could not be asked: {_no_way(error, proxy, url, setting)}"
    client_certificate = (
        f"it may not accept the client's certificate; check {_CLIENT_CERTIFICATE}"
        if "ssl.certificate.location" in config
        else f"if it asks for a client's certificate, set {_CLIENT_CERTIFICATE}"
    )
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            location = config.get("ssl.ca.location")
            known = "this machine does not know" if location is None else f"is not in {location}"
            return certificate_fault(
                cause,
                whose,
                other_name=f"reach it by a name in the certificate ({setting})",
                other_authority=f"{known}: set SCHEMA_REGISTRY_SSL_CA_LOCATION or "
                "PINSTREAM_CA_FILE to a file with the certificate of that authority",
            )
        if isinstance(cause, ssl.SSLError):
            if "ALERT" in (cause.reason or ""):
                return f"{whose} ended the TLS handshake: {client_certificate}"
            return (
                f"{whose} does not speak TLS at this address: write http:// in {setting}, or correct the port"
            )
        if isinstance(cause, socket.gaierror):
            return f"the host name of {whose} is unknown: correct {setting}, or check the name server"
        if isinstance(cause, ConnectionRefusedError):
            return f"{whose} refuses connections: check whether it runs, and the host and port in {setting}"
    # Compared by name, since importing httpx takes a third of a second (`RegistrySchemas`). In TLS 1.3, a server that
    # refuses a client's certificate may close the connection before its alert arrives.
    if type(error).__name__ in ("RemoteProtocolError", "ReadError"):
        tls = f"if it requires TLS, write https:// in {setting}"
        hint = tls if url.startswith("http://") else client_certificate
        return f"{whose} ended the connection without an answer: {hint}"
    return f"{whose} could not be asked ({type(error).__name__}): check whether it runs, and {setting}"


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes, from the outside in."""
    depth = 0
    while error is not None and depth < 10:  # a chain could have a circle
        yield error
        error, depth = error.__cause__ or error.__context__, depth + 1
