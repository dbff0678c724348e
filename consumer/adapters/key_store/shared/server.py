"""The server or cluster of a shared key store: runs scripts on it, and reports errors in one line.

A call is tried once and has a time limit. Every error of the server or its client library becomes a `KeyStoreError`, so
that none ends the service. `Unclear` says that the call may have been done, or may be done later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, suppress
from enum import IntEnum
from importlib.resources import files
from typing import Any, Final

from consumer.adapters.key_store.shared.address import CONNECTIONS, Address, connect
from consumer.engine.messages import Found, Stored
from consumer.errors import KeyStoreError, PinstreamError

_MAX_SAID: Final = 200
"""Characters of a server's own message that are repeated."""
_SCRIPTS: Final[Mapping[str, tuple[type, ...]]] = {
    **dict.fromkeys(("claim", "confirm", "release", "renew"), ()),
    "calls": (int, int),
    "notes": (list, list),
    "tidy": (int,),
}
"""The scripts. All answer with bytes and two numbers; here are the types of what an answer has after these."""


class Unclear(KeyStoreError):
    """It is not known whether the server has done what it was asked, or will do it later."""


class Server:
    """Runs the scripts. It connects when it is first used."""

    def __init__(self, address: Address, password: Callable[[], str | None], time_limit: float) -> None:
        """Raises `SettingsError` if the client library is not installed."""
        self.address = address
        self._time_limit = time_limit
        # The latest password, to be kept out of messages.
        self._word: str | None = None

        def read_password() -> str | None:
            self._word = password()
            return self._word

        self._client: Any = connect(address, read_password, time_limit)
        self._turns = asyncio.Semaphore(CONNECTIONS)
        self._time_outs = 0
        """Counts calls that were not answered."""
        self._scripts: Mapping[str, Any] = {
            name: self._client.register_script(script_text(name)) for name in _SCRIPTS
        }

    async def run(self, name: str, calls: Sequence[tuple[bytes, Sequence[object]]]) -> list[list[Any]]:
        """Run a script once for each of `calls`: a shard's prefix, and arguments. Raises `KeyStoreError`.

        Each answer is a list: bytes, two numbers, and values of the types in `_SCRIPTS`.
        """
        time_outs = self._time_outs
        # A renewal does not wait for other calls: our claims depend on it.
        turn = nullcontext() if name in ("renew", "notes") else self._turns

        async def ask(prefix: bytes, arguments: Sequence[object]) -> Any:
            async with turn:
                if self._time_outs != time_outs:  # since then: the server does not answer the others, either
                    raise TimeoutError
                try:
                    async with asyncio.timeout(self._time_limit):
                        # Where the server was started again, or another one took over, this loads the script. Only
                        # this call is made again: other nodes of a cluster may have done theirs.
                        return await self._scripts[name](keys=(prefix,), args=arguments)
                except TimeoutError:
                    self._time_outs += 1
                    raise

        # All calls are awaited, even if one fails, so that none happens later.
        answers: list[Any] = await asyncio.gather(*(ask(*call) for call in calls), return_exceptions=True)
        for answer in answers:
            if isinstance(answer, asyncio.CancelledError):  # by the client library: we were not cancelled
                raise self.explain(ConnectionError("the client gave up")) from answer
            if isinstance(answer, Exception):
                raise self.explain(answer) from answer
            if isinstance(answer, BaseException):
                raise answer
        for answer in answers:
            # Another kind of server may answer, and its answer must not be taken for "delivered".
            if not isinstance(answer, list) or (*map(type, answer),) != (bytes, int, int, *_SCRIPTS[name]):
                raise self.nonsense()
        return answers

    async def each_info(self) -> list[dict[str, Any]]:
        """Return the INFO of each server that keys are in. Raises `KeyStoreError`."""
        try:
            async with asyncio.timeout(self._time_limit):
                if not self.address.cluster:
                    return [await self._client.info()]
                found = await self._client.info(target_nodes="primaries")
            # For a cluster with one node the library returns that node's answer directly.
            return list(found.values()) if all(isinstance(one, dict) for one in found.values()) else [found]
        except Exception as error:
            raise self.explain(error) from error

    async def delete(self, names: Sequence[bytes]) -> None:
        """Delete these names. Raises the client's errors."""
        async with asyncio.timeout(self._time_limit):
            await asyncio.gather(*(self._client.delete(name) for name in names))

    async def close(self) -> None:
        """Close all connections."""
        with suppress(Exception):
            await self._client.aclose()

    # -- what is wrong

    def nonsense(self) -> KeyStoreError:
        """Return the error for an answer that makes no sense."""
        return Unclear(
            f"the shared key store {self.address} gives answers that make no sense: is it Redis or Valkey?"
        )

    def explain(self, error: Exception) -> KeyStoreError:
        """Return the error that says in one line what is wrong and what to do."""
        from redis.exceptions import ClusterError, ResponseError

        if isinstance(error, PinstreamError):  # the file of the password cannot be read
            return Unclear(str(error))
        # Some servers repeat commands that they do not understand: user and password must not be in the message.
        text = str(error).partition(", with args beginning with")[0]
        for secret in (self._word, self.address.password, self.address.user):
            text = text.replace(secret, "***") if secret else text
        text = "".join(one if one.isprintable() else " " for one in text[:_MAX_SAID])
        kinds = {kind.__name__ for kind in type(error).__mro__}
        words = next(
            said for marks, said in _REASONS if text.startswith(marks) or not kinds.isdisjoint(marks)
        )
        reason = words.format(
            text=text.removeprefix("NOPERM "),
            # Of a cluster, a node has half of the time: see `connect`.
            limit=f"{self._time_limit / (2 if self.address.cluster else 1):g} s",
            sentinels="refuse the user or the password: let them ask for those of the server, or for none"
            if "AuthenticationError" in str(error)
            else "name no primary: see if they run, and know one of that name",
        )
        # A call that the server itself refused was not done.
        refused = isinstance(error, ResponseError) and not isinstance(error, ClusterError)
        made = (KeyStoreError if refused else Unclear)(f"the shared key store {self.address} {reason}")
        made.lease_lost = text.startswith("NOLEASE")
        return made


def _in_lua(kind: type[IntEnum]) -> bytes:
    """Return an enumeration as the scripts have it: ``FOUND_NEW`` is the byte of `Found.NEW`."""
    prefix = kind.__name__.upper()
    return "".join(f"local {prefix}_{each.name} = '\\{each}'\n" for each in kind).encode()


def script_text(script: str) -> bytes:
    """Return what the server runs: the script, after what it shares with others."""
    parts = ("common", "sets", script) if script in ("claim", "confirm", "tidy") else ("common", script)
    written = (files(__package__).joinpath(f"{one}.lua").read_bytes() for one in parts)
    return b"".join([_in_lua(Found), _in_lua(Stored), *written])


# By the names of the client's exceptions (the client is an extra: its classes cannot be imported here), or by the first
# words of the server's or client's message. The first match counts: some of these classes are subclasses of others.
_REASONS: Final[tuple[tuple[tuple[str, ...], str], ...]] = (
    (("NOLEASE",), "has ended the lease of this member: it starts again by itself"),
    (
        ("LAYOUT with another window",),
        "is used with another PINSTREAM_DEDUP_WINDOW: set the same one for all members, or another ?prefix= for this "
        "service",
    ),
    (
        ("LAYOUT of another version",),
        "is used by another version of pinstream, which stores keys differently: set another ?prefix= for this version "
        "(docs/upgrading.md says what that forgets)",
    ),
    (
        ("OutOfMemoryError", "OOM"),
        "is full (maxmemory): give it more memory, or set a shorter PINSTREAM_DEDUP_WINDOW",
    ),
    (
        ("ReadOnlyError", "READONLY"),
        "is a read-only replica: name the primary, or its Sentinels (?sentinel=NAME)",
    ),
    (
        ("AuthenticationError", "AuthorizationError", "WRONGPASS"),
        "refuses the user or the password: correct PINSTREAM_KEY_STORE or PINSTREAM_KEY_STORE_PASSWORD",
    ),
    (
        ("NoPermissionError", "NOPERM"),
        "denies its user a right ({text}): grant what docs/scaling.md lists",
    ),
    (
        ("The user executing the script can't",),
        "denies its user a right that its scripts need: grant what docs/scaling.md lists",
    ),
    (("MasterNotFoundError", "No master found"), "has Sentinels that {sentinels}"),
    (
        # The second is the client's message for nodes that redirect to each other.
        ("Script attempted to access a non local key", "TTL exhausted"),
        "is a cluster that moves keys to another node: wait until it has",
    ),
    (("BusyLoadingError", "LOADING"), "is loading its data after a start: wait until it has"),
    (
        ("NOREPLICAS",),
        "takes no writes, for too few replicas follow it (min-replicas-to-write): see INFO replication",
    ),
    (("MISCONF",), "cannot write to its disk and refuses all writes: see its log"),
    (("BUSY",), "is busy with a script that does not end: see its log"),
    (("ClusterError", "CLUSTERDOWN"), "is a cluster that is down or incomplete ({text}): see CLUSTER INFO"),
    (("TimeoutError", "Timeout"), "does not answer within {limit}: see if it runs, or is overloaded"),
    (
        ("ConnectionError", "OSError", "Error"),
        "cannot be reached ({text}): check address, TLS and network",
    ),
    (("Exception",), "refuses a command ({text}): it must be Redis 7 or newer, or Valkey"),
)
