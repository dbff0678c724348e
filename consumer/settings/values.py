"""Parsers for the text of environment variables: durations, sizes, numbers, names, addresses.

Each parser takes text and returns a value, or raises `ValueError` with a message that says what is wrong and what is
allowed. The message does not repeat the text, which may be a secret; the caller decides whether to show it.
`duration`, `size`, `whole` return a validator with the bounds of one field, for use as
``Annotated[float, duration("1s", "1h")]`` in a pydantic model. Durations are seconds (float), sizes are bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from pydantic import BeforeValidator

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_BYTES = {"": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "TiB": 1024**4}
# 15 digits at most: a float has room for them all. ASCII digits, because `\d` takes those of every script.
_NUMBER_AND_UNIT = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,9})?)\s*([A-Za-z]*)")
_TOPIC = re.compile(r"[A-Za-z0-9._-]+")
# Kafka's own limit (org.apache.kafka.common.internals.Topic).
MAX_TOPIC_LENGTH = 249
_NOT_IN_EVERY_DIALECT = re.compile(r"\(\?|\\[A-Za-z]|[*+?}]\?")
# librdkafka also takes a protocol before the host: SSL://kafka:9093.
_BROKER = re.compile(r"(?:[A-Za-z_]+://)?(?:\[[0-9A-Fa-f:.%]+\]|[^\s:,/@\[\]]+)(?::([0-9]{1,5}))?")
_FULL_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*(?:\.[A-Za-z_][A-Za-z0-9_]*)*")
_PORTS = 65535

DURATION_FORMS = "a duration such as 500ms, 30s, 15m, 24h or 7d"
SIZE_FORMS = "a size such as 64KiB, 4MiB, 1GiB or plain bytes"


class HttpAddress(NamedTuple):
    """Address that serves the page, health and metrics; port 0 takes any free port."""

    host: str
    port: int


def parse_duration(text: str) -> float:
    """``500ms``, ``30s``, ``15m``, ``24h``, ``7d`` or ``0``, as seconds."""
    if text == "0":
        return 0.0
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in _SECONDS:
        raise ValueError(f"not a duration; allowed: {DURATION_FORMS}")
    return float(match[1]) * _SECONDS[match[2]]


def parse_size(text: str) -> int:
    """``4MiB``, ``64KiB`` or plain bytes, as bytes."""
    # Decimal units are refused: some people mean 1024 by them.
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None or match[2] not in _BYTES or "." in match[1]:
        raise ValueError(f"not a size; allowed: {SIZE_FORMS}")
    return int(match[1]) * _BYTES[match[2]]


def duration(low: str, high: str, *, zero: str | None = None) -> BeforeValidator:
    """Validate a duration from `low` to `high`. `zero` says what ``0`` means; without it, ``0`` is out of bounds."""
    allowed = f"allowed: {low} to {high}" + (f", or 0 for {zero}" if zero else "")
    return _bounded(parse_duration, parse_duration(low), parse_duration(high), allowed, zero=bool(zero))


def size(low: str, high: str) -> BeforeValidator:
    """Validate a size from `low` to `high`."""
    return _bounded(parse_size, parse_size(low), parse_size(high), f"allowed: {low} to {high}")


def whole(low: int, high: int) -> BeforeValidator:
    """Validate a whole number from `low` to `high`."""
    allowed = f"allowed: {low} to {high}"

    def parse(text: str) -> int:
        # `int` alone takes underscores and the digits of every script.
        if not re.fullmatch(r"[0-9]{1,18}", text):
            raise ValueError(f"not a whole number; {allowed}")
        return int(text)

    return _bounded(parse, low, high, allowed)


def _bounded(
    parse: Callable[[str], float], low: float, high: float, allowed: str, *, zero: bool = False
) -> BeforeValidator:
    def validate(text: str) -> float:
        value = parse(text)
        if not (low <= value <= high or (zero and value == 0)):
            raise ValueError(f"out of bounds; {allowed}")
        return value

    return BeforeValidator(validate)


def parse_share(text: str) -> float:
    """A share: above 0, at most 1."""
    # `float` alone takes nan, 1e-1 and the digits of every script.
    if not re.fullmatch(r"0?\.[0-9]{1,9}|[01](?:\.0{1,9})?", text) or not float(text):
        raise ValueError("not a share; allowed: above 0 up to 1, such as 0.5")
    return float(text)


def parse_flag(text: str) -> bool:
    """``true`` or ``false``, in upper or lower case."""
    # ``1`` or ``yes`` may be meant for another setting.
    if text.lower() not in ("true", "false"):
        raise ValueError("not a flag; allowed: true or false")
    return text.lower() == "true"


def split_list(text: str) -> tuple[str, ...]:
    """Split a comma-separated list: items are stripped, duplicates dropped; an empty item is an error."""
    if not text:
        return ()
    items = [item.strip() for item in text.split(",")]
    # An empty item may be a name that was lost when the text was put together.
    if not all(items):
        raise ValueError("an item of the list is empty; remove the extra comma")
    return tuple(dict.fromkeys(items))


def check_topic(name: str) -> str:
    """Return `name` if Kafka allows it as a topic name; raise `ValueError` if not."""
    if not _TOPIC.fullmatch(name) or len(name) > MAX_TOPIC_LENGTH or name in (".", ".."):
        raise ValueError(
            f"{name[:60]!r} is not a topic name; allowed: letters, digits, '.', '_', '-'; at most {MAX_TOPIC_LENGTH}"
        )
    return name


def check_topic_pattern(pattern: str) -> str:
    """Return `pattern` if librdkafka and the brokers understand it alike; raise `ValueError` if not."""
    try:
        re.compile(pattern)
    except re.error as error:
        raise ValueError(f"the pattern {pattern[:60]!r} is not a regular expression: {error}") from None
    # librdkafka's classic group protocol uses the C library's POSIX extended expressions; KIP-848 brokers use RE2.
    # Syntax that only one of them supports would silently match nothing.
    if _NOT_IN_EVERY_DIALECT.search(pattern):
        raise ValueError(
            f"the pattern {pattern[:60]!r} uses syntax that not every Kafka version supports;"
            " write it without '(?', lazy repeats and letter escapes such as \\d (use [0-9])"
        )
    return pattern


def parse_topics(text: str) -> tuple[str, ...]:
    """Topic names and ``^`` patterns."""
    topics = split_list(text)
    for topic in topics:
        if topic.startswith("^"):
            check_topic_pattern(topic)
        else:
            check_topic(topic)
    return topics


def parse_dead_letter_topic(template: str) -> str:
    """A topic name that may contain ``{topic}``, a placeholder for the record's topic."""
    # With any topic in its place, the whole must be a topic's name.
    rest = template.replace("{topic}", "t", 1)
    if "{" in rest or "}" in rest:
        raise ValueError("only {topic} may be in braces, and only once")
    check_topic(rest)
    return template


def parse_brokers(text: str) -> str:
    """A comma-separated list of ``host`` or ``host:port``."""
    for item in split_list(text):
        match = _BROKER.fullmatch(item)
        if match is None or (match[1] is not None and not 0 < int(match[1]) <= _PORTS):
            raise ValueError("not a list of brokers; allowed: host:port, comma-separated")
    return text


def parse_account(text: str) -> str:
    """An ad account id: 1 to 18 digits (the OpenAPI description's pattern), or empty."""
    if text and not re.fullmatch(r"[0-9]{1,18}", text):
        raise ValueError("not an ad account id; allowed: 1 to 18 digits")
    return text


def parse_accounts(text: str) -> tuple[str, ...]:
    """A comma-separated list of ad account ids."""
    return tuple(parse_account(item) for item in split_list(text))


def parse_endpoint(text: str) -> str:
    """An http(s) URL, which may have a query."""
    try:
        parts = urlsplit(text)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        valid = False
    if not valid or re.search(r"\s", text):
        raise ValueError("not a URL; allowed: http://host[:port][/path] or https://…")
    return text


def parse_url(text: str) -> str:
    """An http(s) URL without credentials, query or fragment; a slash at its end is removed."""
    parts = urlsplit(parse_endpoint(text))
    # A URL is shown in the log and on the page.
    if parts.username is not None or parts.password is not None:
        raise ValueError("the URL must not contain a user or password; remove the part before the @")
    if parts.query or parts.fragment:
        raise ValueError("the URL must end with its path; remove the query or fragment")
    return text.rstrip("/")


def parse_registry(text: str) -> str:
    """A comma-separated list of URLs, which the registry's client tries one after the other; or AWS Glue."""
    if text.startswith("glue:"):
        if not re.fullmatch(r"glue:(?:[a-z]{2,}(?:-[a-z]+)+-[0-9]+)?", text):
            raise ValueError("not a region of AWS; allowed: glue:REGION, such as glue:eu-west-1, or glue:")
        return text
    return ",".join(parse_url(item) for item in split_list(text))


def parse_proxy(text: str) -> str:
    """The URL of a proxy, ``http://[user:password@]host:port``; without a scheme, http is meant."""
    if not text:
        return ""
    # Written out, because the clients that get it do not agree on what a URL without a scheme is.
    url = (text if "://" in text else f"http://{text}").rstrip("/")
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if "://" in text and not url.startswith(("http://", "https://")):
        raise ValueError("only HTTP proxies are supported; write http://host:port")
    if not host or re.search(r"\s", url) or parts.path or parts.query or parts.fragment:
        raise ValueError(
            "not the URL of a proxy; write http://host:port or http://user:password@host:port, with special characters"
            " of the password as %XX"
        )
    if not port:
        raise ValueError("names no port, and clients differ in what that would mean; write http://host:port")
    return url


def parse_login(text: str) -> str:
    """``user:password``."""
    # RFC 7617: a user has no colon, a password may have some, and neither has control characters.
    if ":" not in text or not text.isprintable():
        raise ValueError("has no colon, or a line break; it must be user:password, on one line")
    return text


def parse_http_address(text: str) -> HttpAddress | None:
    """``host:port`` or ``[v6]:port``; None if empty."""
    if not text:
        return None
    host, _, port = text.rpartition(":")
    # In brackets, because an IPv6 address has colons too (RFC 3986).
    v6 = host.startswith("[") and host.endswith("]")
    if v6:
        host = host[1:-1]
    good_host = bool(host) and not re.search(r"[\s/@\[\]]", host) and (v6 or ":" not in host)
    if not good_host or not re.fullmatch(r"[0-9]{1,5}", port) or int(port) > _PORTS:
        raise ValueError("not an address; allowed: host:port such as 0.0.0.0:8080, or empty for none")
    return HttpAddress(host, int(port))


def parse_key_store(text: str) -> str:
    """``memory:``, ``disk:/path``, ``redis://…`` or ``rediss://…`` (read by the adapter)."""
    scheme, _, rest = text.partition(":")
    if scheme == "disk" and rest:
        return f"disk:{parse_path(rest)}"
    if text != "memory:" and not re.fullmatch(r"rediss?://\S+", text):
        raise ValueError("not a key store; allowed: disk:/path, redis://host, rediss://host or memory:")
    return text


def parse_full_name(text: str) -> str:
    """An Avro full name: ``namespace.Name``."""
    if not _FULL_NAME.fullmatch(text):
        raise ValueError("not an Avro name; allowed: namespace.Name")
    return text


def parse_function(text: str) -> str:
    """A function of a Python module: ``package.module:function``."""
    module, _, function = text.partition(":")
    if not (_FULL_NAME.fullmatch(module) and function.isidentifier()):
        raise ValueError("not a function; allowed: package.module:function, such as shop.events:clean")
    return text


def parse_path(text: str) -> Path:
    """A path; a leading ``~`` stands for the home folder."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise ValueError("there is no home folder for '~'; write the whole path") from None


class SecretFile(NamedTuple):
    """The file of a secret, and the variable that names it."""

    variable: str
    path: Path


def or_file(parse: Callable[[str], str]) -> Callable[[str | SecretFile], str | SecretFile]:
    """Return the parser of a secret that may be in a file: what is there is parsed each time it is read."""
    return lambda given: given if isinstance(given, SecretFile) else parse(given)


def parse_header_text(text: str) -> str:
    """Text for an HTTP header, such as a token: visible ASCII without blanks."""
    # A line break would end the header and begin another one (RFC 9110, field values).
    if not re.fullmatch(r"[\x21-\x7e]+", text):
        raise ValueError("has blanks, line breaks or characters that no token has; it must be the token only")
    return text
