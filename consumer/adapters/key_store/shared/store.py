"""The key store that members on several machines share, in Redis or Valkey: with claims, leases and fences.

Theory of operation. Each member has one *session*: a random name, with a *lease*, which is a key of Redis that expires
unless it is renewed. A *claim* says which session has an event in flight. It holds while the lease of its session
does: so one command renews all claims, and a member that dies loses them all when its lease ends. A session whose
lease has ended never comes back. Its member begins another one and claims again what it had not sent.

The *fence* is the name of the session. We do not confirm an event that another live session holds: that member claimed
it because our lease had ended, and settles it.

A session also ends when it is not known whether a call was done: a server that had stood still may do it later, and it
must not claim or release for a later session. We may take over the claims of our own ended sessions.

Delivered keys are kept in small sorted sets, of which Redis packs each into one piece of memory: 14 bytes of the key,
and the second of its delivery. Their number follows that of the keys, one at a time, so that a claim costs the same
whatever the window holds (``sets.lua``). Which set a key is in is decided by a secret that whoever makes the layout
stores in it, and that only scripts read: no choice of event ids fills one. What is out of the window by a
member's time and by the server's is removed when its set is next written to, or by ``tidy.lua``. None of these sets
expires by itself: a server's clock that jumps would empty the store.

*A store that went back.* In each shard the scripts of a member are numbered. A number that comes again means that the
store has lost data: a replica took over that lacked the last moments, it was flushed, or an older copy was restored.
Then claims may be lost, too: the session ends, and queued events are claimed again. The numbers are the member's own,
so other members' writes do not hide a loss. The lost keys that the member had confirmed are counted
(`KeyStoreStatistics.lost`).

Each step is one script, so that it is atomic, and one call for a thousand keys. A cluster has `_SHARDS` shards,
distinguished by their hash tags, and a call for each; a single server has one. All errors are `KeyStoreError`.
"""

from __future__ import annotations

import asyncio
import math
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

from consumer.adapters.key_store.interface import Window, check_use
from consumer.adapters.key_store.shared.address import Address
from consumer.adapters.key_store.shared.server import Server, Unclear
from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.messages import Found, Stored
from consumer.engine.model import THROTTLED, Announcement, Note
from consumer.engine.reading import KEY_BYTES, split_keys
from consumer.errors import KeyStoreError
from consumer.ports import Claimed, GrantedPermits, KeyStore, Renewed

SERVER_TIME_LIMIT: Final = 5.0
"""Seconds after which a server that does not answer is an error."""
_SHARDS: Final = 16
"""Shards of a cluster. A fixed number: the shard of a key must not depend on the number of nodes."""
_MAX_KEYS: Final = 1000
"""Keys in one call: a script for this many takes about 5 ms, and nothing else runs in the server beside it."""
_LEAST_VERSION: Final = 7
_MARGIN: Final = 60
"""Seconds that a key is kept longer than the window: the clocks of members and server differ."""
_LAYOUT: Final = 3
"""The version of what is stored, apart from claims and leases (``sets.lua``)."""
_SECRET_WORDS: Final = 7
_SECRET_BELOW: Final = 2**31 - 1
_ANNOUNCED_FOR: Final = 60
"""Seconds for which an announcement holds; each renewal makes it again."""
_ANNOUNCED_WORDS: Final = 4
_NUMBERS: Final = 1000
"""Numbers of scripts kept for comparison: many more than may be under way at once."""


class _Shard:
    """The numbers of one shard that show whether its data went back."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix.encode()
        self.cursor: bytes = b"0"
        """Where housekeeping continues."""
        self.times_lost = 0
        self.confirmed = 0
        """Keys that we have confirmed in the shard."""
        self.highest = 0
        """The highest number of our scripts."""
        self._numbers: dict[int, None] = {}

    def lost(self, number: int, before: int, since: int) -> int | None:
        """Record that script `number` was answered. Return None if nothing was lost, else how many keys were.

        `before`: how many keys the shard says that we had confirmed. `since`: `highest` when the script was asked for.
        """
        if number > since and number not in self._numbers:
            self._numbers[number] = None
            if len(self._numbers) > _NUMBERS:
                del self._numbers[next(iter(self._numbers))]
            self.highest = max(self.highest, number)
            self.confirmed = max(self.confirmed, before)
            return None
        lost = max(0, self.confirmed - before)
        self.times_lost += 1
        self.confirmed, self.highest, self._numbers = before, number, {number: None}
        return lost


class RedisKeyStore(KeyStore):
    """A `KeyStore` in Redis 7 or Valkey. It connects when it is first used."""

    def __init__(
        self,
        address: Address,
        window: Window,
        *,
        lease: float,
        password: Callable[[], str | None] | None = None,
        time_limit: float = SERVER_TIME_LIMIT,
        announcement: Announcement | None = None,
    ) -> None:
        """`lease`: seconds for which claims hold without a renewal. `password`: read for each new connection.
        `announcement`: what the other members learn.

        Raises `SettingsError` if the client library is not installed.
        """
        self._address = address
        self._window = window
        self._lease = lease
        said = announcement or Announcement("", "", "", ())
        self._announced = f"{said.group} {said.fingerprint} {said.destination} {','.join(said.accounts)}"
        # A member that has another one would forget what others need, or not find it: scripts refuse it.
        secret = [str(1 + secrets.randbelow(_SECRET_BELOW - 1)) for _ in range(_SECRET_WORDS)]
        self._layout = " ".join([str(_LAYOUT), str(window.seconds), *secret])
        self._server = Server(address, password or (lambda: address.password), time_limit)
        names = [f"{address.prefix}:{{{n}}}:" for n in range(_SHARDS if address.cluster else 1)]
        self._shards = [_Shard(name) for name in names]
        self._member = secrets.token_hex(8)
        self._name: str | None = None
        """Name of the session; None: there is none, or it is not certain what it has claimed."""
        self._former: list[tuple[str, float]] = []
        """Our earlier sessions, and when each ended (monotonic): while their leases last, their claims are ours."""
        self._session = 0
        self._shared_notes = 0
        """How many notes we have shared."""
        self._unsure: set[bytes] = set()
        """Keys that a failed call may have confirmed. They are confirmed again."""
        self._releasing: set[asyncio.Future[None]] = set()
        self._lost = 0
        self._seen = KeyStoreStatistics()
        """Figures as of the last `expire`."""
        self._evicted_before: int | None = None
        self._closed = False

    # -- keys

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """See `KeyStore.look_up`."""
        return await self._ask_for("claim", keys, None, Found.DELIVERED, self._window.oldest(now, since))

    async def claim(self, keys: bytes, now: float, since: float | None = None) -> Claimed:
        """See `KeyStore.claim`."""
        check_use(keys, closed=self._closed)
        while self._releasing:  # else a release could end the claim that is made now
            await asyncio.wait(self._releasing)
        if self._name is None:
            raise KeyStoreError("the lease in the shared key store has ended: it starts again by itself")
        session = self._session
        oldest = self._window.oldest(now, since)
        # With the session of before the call: if another one has begun since, these claims are not its own.
        return Claimed(
            await self._ask_for("claim", keys, self._name, Found.CLAIMED_BY_OTHER, oldest), session
        )

    async def confirm(self, keys: bytes, now: float) -> bytes:
        """See `KeyStore.confirm`."""
        columns = split_keys(keys)
        try:
            flags = await self._ask_for(
                "confirm", keys, self._name or "none", Stored.DELIVERED_TWICE, self._window.stamp(now)
            )
        except BaseException:  # also where it is cancelled: the server may have done it
            self._unsure.update(columns)
            raise
        if not self._unsure:
            return flags
        # We ourselves delivered the unsure keys, in a call that was not answered.
        found = [
            Stored.DURABLE if one in self._unsure and flag != Stored.TAKEN_OVER else flag
            for one, flag in zip(columns, flags, strict=True)
        ]
        self._unsure.difference_update(columns)
        return bytes(found)

    async def release(self, keys: bytes) -> None:
        """See `KeyStore.release`."""
        name = self._name
        if name is None:  # the claims end with the lease of their session
            return
        done = asyncio.get_running_loop().create_future()
        self._releasing.add(done)
        try:
            await self._ask_for("release", keys, name, Found.NEW)
        except KeyStoreError:
            # Even if nothing was done: a release is not tried again, so the claims must end with the lease.
            self._end_session(name)
            raise
        finally:
            self._releasing.discard(done)
            done.set_result(None)

    # -- the lease

    async def renew(self) -> Renewed:
        """See `KeyStore.renew`."""
        check_use(b"", closed=self._closed)
        notes, others = await self._notes("", "", 0)
        name = self._name
        if name is not None and await self._renew(name, begin=False):
            if self._name != name:
                raise KeyStoreError("the lease in the shared key store ended: it starts again by itself")
            return Renewed(self._session, notes, others)
        self._end_session(name)
        # A new name for each session: one whose lease has ended never comes back, so its late calls do nothing.
        name = secrets.token_hex(8)
        await self._renew(name, begin=True)
        self._name = name
        self._session += 1
        return Renewed(self._session, notes, others)

    async def _renew(self, name: str, *, begin: bool) -> bool:
        arguments = (math.ceil(self._lease * 1000), "begin" if begin else "")
        return all(
            found
            for found, _, _ in await self._run("renew", name, [(shard, arguments) for shard in self._shards])
        )

    def _end_session(self, name: str | None) -> None:
        """End this session, unless another one has begun."""
        if name is not None and self._name == name:
            self._former.append((name, time.monotonic()))
            self._name = None

    def _ours(self) -> str:
        """Return the names of our earlier sessions whose leases may not have ended yet."""
        until = time.monotonic() - 2 * self._lease  # twice: a renewal may have been on its way when it ended
        self._former = [one for one in self._former if one[1] > until]
        return " ".join(name for name, _ in self._former)

    async def members(self) -> Sequence[Announcement]:
        """See `KeyStore.members`."""
        return (await self._notes("", "", 0))[1]

    async def share_note(self, note: Note) -> None:
        """See `KeyStore.share_note`."""
        check_use(b"", closed=self._closed)
        self._shared_notes += 1
        # A later refusal or throttle takes the place of an earlier one.
        place = f"{note.destination} {note.account} {'throttle' if note.status == THROTTLED else 'refusal'}"
        text = f"{self._member}-{self._shared_notes} {note.status} {'' if note.code is None else note.code}"
        await self._notes(place, text, math.ceil(note.seconds * 1000))

    async def _notes(
        self, place: str, text: str, milliseconds: int, *, announced_for: int = _ANNOUNCED_FOR
    ) -> tuple[list[Note], list[Announcement]]:
        """Store a note, if there is one, and return those of other members, and what these announce. All are in the
        first shard."""
        asked = (place, text, milliseconds, self._member, self._announced, 1000 * announced_for)
        [(_, _, _, found, announced)] = await self._run("notes", None, [(self._shards[0], asked)])
        notes, others = [], []
        try:
            for where, said, left in zip(found[::3], found[1::3], found[2::3], strict=True):
                destination, account, _ = where.decode().split(" ")
                name, status, code = said.decode().split(" ")
                note = Note(destination, account, int(status), int(code) if code else None, left / 1000, name)
                notes.append(note)
            for each in announced:
                said = each.decode().split(" ")
                if len(said) >= _ANNOUNCED_WORDS:  # a later version may say more
                    others.append(Announcement(said[0], said[1], said[2], tuple(said[3].split(","))))
        except (AttributeError, TypeError, ValueError):  # invalid notes must not end the service
            raise self._server.nonsense() from None
        return [note for note in notes if not note.name.startswith(self._member)], others

    async def acquire_permits(
        self, quota: str, calls: int, per_minute: int, seconds: float
    ) -> GrantedPermits:
        """See `KeyStore.acquire_permits`. All quotas are counted in the first shard."""
        check_use(b"", closed=self._closed)
        asked = (quota, calls, per_minute, seconds)
        [(_, _, _, given, wait)] = await self._run("calls", None, [(self._shards[0], asked)])
        return GrantedPermits(given, wait / 1000)

    # -- asking

    async def _ask_for(
        self, script: str, keys: bytes, session: str | None, maximum: Found | Stored, *arguments: object
    ) -> bytes:
        """Run a script for these keys, in the shards where they are. Return its flags, in the order of the keys.

        `maximum`: the highest flag that makes sense.
        """
        check_use(keys, closed=self._closed)
        rows = range(len(keys) // KEY_BYTES)
        parts: list[tuple[_Shard, Sequence[int], bytes]] = []
        # A single server gets slices of the column: splitting it into keys costs a quarter of a µs a key.
        whole = len(self._shards) == 1
        singles = [] if whole else split_keys(keys)
        for number, shard in enumerate(self._shards):
            own = rows if whole else [row for row in rows if singles[row][-1] % len(self._shards) == number]
            for at in range(0, len(own), _MAX_KEYS):
                some = own[at : at + _MAX_KEYS]
                if whole:
                    column = keys[KEY_BYTES * some[0] : KEY_BYTES * (some[-1] + 1)]
                else:
                    column = b"".join([singles[row] for row in some])
                parts.append((shard, some, column))
        found = await self._run(
            script, session, [(shard, (*arguments, column)) for shard, _, column in parts]
        )
        flags = bytearray(len(rows))
        for (shard, place, _), (some_flags, _, before) in zip(parts, found, strict=True):
            # Such an answer never means "claimed" or "delivered": it sends and settles no event.
            if len(some_flags) != len(place) or max(some_flags) > maximum:
                self._end_session(session)
                raise self._server.nonsense()
            for row, flag in zip(place, some_flags, strict=True):
                flags[row] = flag
            if script == "confirm" and session is not None:
                stored = len(some_flags) - some_flags.count(Stored.TAKEN_OVER)
                shard.confirmed = max(shard.confirmed, before + stored)
        return bytes(flags)

    async def _run(
        self, script: str, session: str | None, calls: Sequence[tuple[_Shard, Sequence[object]]]
    ) -> list[list[Any]]:
        """Run a script once for each of `calls`, under this session of ours or without one (None). Return the answers.

        Raises `KeyStoreError`, also if the answers show that a shard has lost data.
        """
        member = ("", "", "") if session is None else (self._member, session, self._ours())
        since = [(shard.highest, shard.times_lost) for shard, _ in calls]
        try:
            answers = await self._server.run(
                script, [(shard.prefix, (self._layout, *member, *given)) for shard, given in calls]
            )
        except BaseException as error:
            # Cancelled, or without a clear answer: the call may be done nevertheless.
            if not isinstance(error, KeyStoreError) or isinstance(error, Unclear) or error.lease_lost:
                self._end_session(session)
            raise
        if session is None:
            return answers
        # Has a shard lost data since the call? Of several answers from one shard, only the first that shows it counts.
        lost = 0
        for (shard, _), (_, number, before), (highest, times_lost) in zip(calls, answers, since, strict=True):
            if shard.times_lost == times_lost:
                lost += shard.lost(number, before, highest) or 0
        if all(shard.times_lost == times for (shard, _), (_, times) in zip(calls, since, strict=True)):
            return answers
        self._lost += lost
        self._end_session(session)
        failure = KeyStoreError(
            f"the shared key store {self._address} has lost {lost} keys of events that this member had delivered (a "
            "replica took over, or it was flushed or restored): such an event, read again, is sent again; what is "
            "queued is claimed again"
        )
        failure.lease_lost = True
        raise failure

    # -- housekeeping

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        if self._closed:
            return
        time = (self._window.stamp(now), _MARGIN)
        keys = 0
        try:
            answers = await self._run(
                "tidy", None, [(shard, (shard.cursor, *time)) for shard in self._shards]
            )
            for shard, (cursor, _, _, found) in zip(self._shards, answers, strict=True):
                shard.cursor = cursor
                keys += found
            servers = await self._server.each_info()
            used, evicted = (
                sum(int(one.get(name, 0)) for one in servers) for name in ("used_memory", "evicted_keys")
            )
        except (TypeError, ValueError):
            raise self._server.nonsense() from None
        # The server counts since its start, for all its users: evictions before our start are not ours.
        if self._evicted_before is None:
            self._evicted_before = evicted
        self._seen = KeyStoreStatistics(
            keys=keys,
            bytes_used=used,
            # A server that was started again counts from 0.
            evicted_by_server=max(self._seen.evicted_by_server, evicted - self._evicted_before),
        )

    async def review(self) -> Sequence[str]:
        """See `KeyStore.review`: version, eviction and persistence of each server."""
        found: dict[str, None] = {}
        for server in await self._server.each_info():
            version = str(server.get("redis_version", "0"))
            if int(version.partition(".")[0]) < _LEAST_VERSION:
                found[f"Redis {version} is too old: use Redis 7 or newer, or Valkey"] = None
            policy = str(server.get("maxmemory_policy", "noeviction"))
            if server.get("maxmemory") and policy != "noeviction":
                found[
                    f"maxmemory-policy is {policy}: it may drop keys of delivered events, which are then sent again; "
                    "set it to noeviction, so that pinstream waits when memory is full"
                ] = None
            if not server.get("aof_enabled") and not server.get("connected_slaves"):
                found[
                    "there is neither an append-only file nor a replica: a restart of the server forgets what was "
                    "delivered; set appendonly yes"
                ] = None
        return list(found)

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`: as of the last `expire`, except for lost keys. Memory is the server's."""
        return replace(self._seen, lost=self._lost)

    async def close(self) -> None:
        """See `KeyStore.close`: ends the session, so that other members need not wait for the end of its lease, and
        what it announced, which may not hold for the member that takes its place."""
        if self._closed:
            return
        self._closed = True
        self._end_session(self._name)
        names = [
            shard.prefix + b"session:" + name.encode() for name, _ in self._former for shard in self._shards
        ]
        if self._session:
            # What cannot be removed now expires.
            await asyncio.gather(
                self._server.delete(names), self._notes("", "", 0, announced_for=0), return_exceptions=True
            )
        await self._server.close()
