"""Where a shared key store is: the URL of PINSTREAM_KEY_STORE, and the client for it.

::

    redis://[user[:password]@]host[:port][/database][?options]        rediss://… the same over TLS
    redis://[user[:password]@]host:26379,host:26379,…?sentinel=NAME   the master NAME, asked of these Sentinels
    redis://host:port,host:port,…?cluster=true                        a Redis Cluster, found through these nodes

Options: ``prefix`` (the beginning of all names, default ``pinstream``: for several services on one server), ``ca`` (a
file with the certificates to trust), ``cert`` and ``key`` (files with the client's own).

The adapter tries once: the client's own retries are turned off, so that the engine alone decides (rule 4).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from consumer.errors import SettingsError, missing_extra

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

_PORTS: Final = {False: 6379, True: 26379}
"""The default ports of servers, and of Sentinels."""
_OPTIONS: Final = ("prefix", "ca", "cert", "key", "sentinel", "cluster")
_MAX_PORT: Final = 65535
CONNECTIONS: Final = 16
"""Calls under way at once; the others wait. Renewals and housekeeping have connections of their own."""


class Address(NamedTuple):
    """The address of a shared key store, as its URL names it."""

    hosts: tuple[tuple[str, int], ...]
    tls: bool
    user: str | None
    password: str | None
    database: int
    cluster: bool
    # The other options of the URL, by their names there.
    prefix: str = "pinstream"
    sentinel: str | None = None
    """The name of the master that Sentinels are asked for; None: no Sentinels."""
    ca: str | None = None
    cert: str | None = None
    key: str | None = None

    def __str__(self) -> str:
        """Return the address without user and password, for messages."""
        hosts = ",".join(f"[{host}]:{port}" if ":" in host else f"{host}:{port}" for host, port in self.hosts)
        return f"{'rediss' if self.tls else 'redis'}://{hosts}"

    def __repr__(self) -> str:
        # Also without user and password: it may be in a traceback.
        return str(self)


def parse_address(url: str) -> Address:
    """Read the URL. Raises `SettingsError`, whose message never repeats it: it may hold a password."""
    try:
        parts = urlsplit(url)
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        hosts = _hosts(parts, sentinel="sentinel" in options)
        database = int(parts.path.strip("/") or 0)
    except ValueError:
        raise _bad("it is not redis://[user[:password]@]host[:port][/database][?options]") from None
    if not options.keys() <= set(_OPTIONS):
        # Not named: it may be the end of a password that has a question mark in it.
        raise _bad(f"unknown option; there are {', '.join(_OPTIONS)} (in a password a ? is written %3F)")
    # A mistake in the URL must not open another store than was meant, so every mistake is an error.
    cluster = options.pop("cluster", "false")
    if cluster not in ("true", "false"):
        raise _bad("cluster is true or false")
    if cluster == "true" and (database or "sentinel" in options):
        raise _bad("a cluster has neither Sentinels nor several databases")
    if len(hosts) > 1 and cluster == "false" and "sentinel" not in options:
        raise _bad("several hosts are Sentinels (?sentinel=NAME) or nodes of a cluster (?cluster=true)")
    address = Address(
        hosts=hosts,
        tls=parts.scheme == "rediss",
        # User and password are percent-encoded in a URL: a password may have an @ or a colon in it.
        user=unquote(parts.username or "") or None,
        password=unquote(parts.password or "") or None,
        database=database,
        cluster=cluster == "true",
        **options,
    )
    # Braces are the hash tags of a cluster, a star is for patterns of ACLs (docs/scaling.md).
    if not address.prefix or any(one in address.prefix for one in "{}* "):
        raise _bad("prefix is a word without braces, stars or spaces")
    return address


def _hosts(parts: SplitResult, *, sentinel: bool) -> tuple[tuple[str, int], ...]:
    """Return the hosts and ports of a URL. Raises `ValueError`."""
    hosts = []
    for one in parts.netloc.rpartition("@")[2].split(","):
        # An IPv6 address stands in brackets, because it has colons of its own.
        host, _, port = one.rpartition(":") if ":" in one.rpartition("]")[2] else (one, "", "")
        number = int(port) if port else _PORTS[sentinel]
        if not host.strip("[]") or not 0 < number <= _MAX_PORT:
            raise ValueError
        hosts.append((host.strip("[]"), number))
    return tuple(hosts)


def _bad(what: str) -> SettingsError:
    return SettingsError(f"PINSTREAM_KEY_STORE: {what}; see docs/scaling.md")


def connect(address: Address, password: Callable[[], str | None], timeout: float) -> Redis | RedisCluster:
    """Make the client; it connects when it is first used, and reads `password` for each new connection.

    Raises `SettingsError` if the client library is not installed.
    """
    try:
        from redis.asyncio import Redis, RedisCluster
        from redis.asyncio.cluster import ClusterNode
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
    except ImportError:
        raise SettingsError(f"PINSTREAM_KEY_STORE names Redis, and {missing_extra('redis')}") from None

    credentials = _credentials(address.user, password)
    tls: dict[str, Any] = {}
    if address.tls:
        files = {"ssl_ca_certs": address.ca, "ssl_certfile": address.cert, "ssl_keyfile": address.key}
        tls = {"ssl": True, **files}
    common: dict[str, Any] = {
        # A socket that hangs is dropped when the call's time is over: no later call reads the answer of an earlier one.
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "client_name": "pinstream",
        "credential_provider": credentials,
        "max_connections": 4 * CONNECTIONS,
        "retry": Retry(NoBackoff(), 0),
        **tls,
    }
    if address.cluster:
        # The client has to learn which node does not answer, before the call's time is over: then it asks others who
        # took over, in the next call.
        common |= {"socket_timeout": timeout / 2, "socket_connect_timeout": timeout / 4}
        # A slot that has moved is entered alone. With the default of 5 the client closes all connections after five
        # such answers, and the calls on them fail.
        nodes = [ClusterNode(*one) for one in address.hosts]
        return RedisCluster(startup_nodes=nodes, reinitialize_steps=0, **common)
    common["db"] = address.database
    if address.sentinel is not None:
        master: Redis = _ask_sentinels(address, credentials, timeout, tls).master_for(
            address.sentinel, **common
        )
        return master
    ((host, port),) = address.hosts
    return Redis(host=host, port=port, **common)


def _credentials(user: str | None, password: Callable[[], str | None]) -> object:
    """Return what logs in on each new connection; None if there is neither a user nor a password: a server without a
    password refuses an AUTH."""
    from redis.credentials import CredentialProvider

    class Credentials(CredentialProvider):
        def get_credentials(self) -> tuple[str] | tuple[str, str]:
            word = password() or ""
            return (user, word) if user else (word,)

        async def get_credentials_async(self) -> tuple[str] | tuple[str, str]:
            return self.get_credentials()  # the library's own warns in the log

    return Credentials() if user or password() else None


def _ask_sentinels(address: Address, credentials: object, timeout: float, tls: dict[str, Any]) -> Any:
    """Make the client that asks Sentinels for the primary, within `timeout` altogether."""
    from redis.asyncio.retry import Retry
    from redis.asyncio.sentinel import MasterNotFoundError, Sentinel
    from redis.backoff import NoBackoff
    from redis.exceptions import NoPermissionError

    # Sentinels are asked one after the other, and those that do not answer must leave time for the next ones.
    limit = timeout / (len(address.hosts) * (2 if credentials else 1) + 1)
    asked = {"socket_timeout": limit, "socket_connect_timeout": limit, "retry": Retry(NoBackoff(), 0), **tls}
    known = {**asked, "credential_provider": credentials}
    # The library has no types here.
    secured: Any = Sentinel(address.hosts, sentinel_kwargs=known, **tls)  # type: ignore[no-untyped-call]

    class Sentinels(Sentinel):
        async def discover_master(self, service_name: str) -> Any:
            try:
                return await super().discover_master(service_name)
            except (MasterNotFoundError, NoPermissionError) as error:
                asks = isinstance(error, NoPermissionError) or "AuthenticationError" in str(error)
                if credentials is None or not asks:
                    raise
            # Sentinels without a password of their own would refuse one.
            return await secured.discover_master(service_name)

    return Sentinels(address.hosts, sentinel_kwargs=asked, **tls)  # type: ignore[no-untyped-call]  # as above
