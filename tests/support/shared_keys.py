"""A shared key store without Redis: what the simulation and tests use. It passes the suite of the real one.

`SharedKeys` is the server: delivered keys, claims, and leases on a clock that a test moves. `SharedSession` is what a
member's client knows of it. Each of its calls is a generator: it yields what the server is to do, and is sent the
answer, or thrown the error. So a test decides when a request reaches the server, and when its answer comes, if at all.
`SharedMember` is the `KeyStore` of one member whose requests are answered at once. `SharedKeys.go_back` sets the server
back to what it was when `keep` was called, as a replica that lacks the last moments does.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Collection, Generator, Sequence
from typing import Any, TypeVar

from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.shared.server import Unclear
from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.messages import Found, Stored
from consumer.engine.model import THROTTLED, Announcement, Note
from consumer.engine.reading import split_keys
from consumer.errors import KeyStoreError
from consumer.ports import Claimed, GrantedPermits, KeyStore, Renewed

_ANNOUNCED_FOR = 60.0

T = TypeVar("T")
Asked = Callable[[], Any]
Call = Generator[Asked | None, Any, T]
"""What the server must do; None: nothing yet, ask the client again soon."""


def _lease_lost(what: str) -> KeyStoreError:
    error = KeyStoreError(what)
    error.lease_lost = True
    return error


class SharedKeys:
    """The server. `clock` is its own time in seconds."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.delivered: dict[bytes, int] = {}
        self.claims: dict[bytes, str] = {}
        self.leases: dict[str, float] = {}
        """For each session, when its lease ends."""
        self.quotas: dict[str, Counter[int]] = {}
        """For each quota, the calls that were given, by the second in which they must have begun."""
        self.calls: Counter[int] = Counter()
        """For each member, how often it called."""
        self.confirmed: Counter[int] = Counter()
        """For each member, how many keys it has confirmed."""
        self.members = 0
        self.full = False
        """Whether it refuses requests that need memory."""
        self._sessions = 0
        self.announced: dict[int, tuple[Announcement, float]] = {}
        """By member, what it announces, and until when that holds."""
        """What each member announces."""
        self._notes: dict[tuple[str, str, bool], tuple[int, float, Note]] = {}
        """The notes: who reported each, and until when it holds."""
        self._kept: tuple[dict[bytes, int], dict[bytes, str], dict[str, float]] = ({}, {}, {})
        self._kept_counts: tuple[Counter[int], Counter[int]] = (Counter(), Counter())
        self._kept_quotas: dict[str, Counter[int]] = {}
        self._kept_notes: dict[tuple[str, str, bool], tuple[int, float, Note]] = {}

    def holds(self, session: str) -> bool:
        """Whether the lease of this session is still valid."""
        return self.leases.get(session, float("-inf")) > self._clock()

    def new_name(self) -> str:
        """A new session's name."""
        self._sessions += 1
        return f"session {self._sessions}"

    # -- what clients ask

    def serve(self, member: int, request: Callable[[], T]) -> tuple[T, int, int]:
        """Perform a member's request. Returns the answer, the request's number, and how many keys the member
        had confirmed before."""
        before, answer = self.confirmed[member], request()
        self.calls[member] += 1
        return answer, self.calls[member], before

    def look_up(self, oldest: int, keys: bytes) -> bytes:
        """Return whether each key was delivered since `oldest`, as a column of `Found`."""
        return bytes(self.delivered.get(key, -1) >= oldest for key in split_keys(keys))

    def claim(self, session: str, ours: Collection[str], oldest: int, keys: bytes) -> bytes:
        """Claim the keys that were not delivered and that no other session has claimed; `ours`: earlier
        sessions of the same member."""
        if not self.holds(session):
            raise _lease_lost("the lease has ended: it starts again by itself")
        self._take_memory()
        found = bytearray(self.look_up(oldest, keys))
        for place, key in enumerate(split_keys(keys)):
            if not found[place]:
                if self._is_anothers(key, {session, *ours}):
                    found[place] = Found.CLAIMED_BY_OTHER
                else:
                    self.claims[key] = session
        return bytes(found)

    def confirm(self, member: int, ours: Collection[str], stamp: int, keys: bytes) -> bytes:
        """Store these keys as delivered, but for those that another session has claimed and not delivered yet."""
        self._take_memory()
        stored = bytearray()
        for key in split_keys(keys):
            anothers, delivered = self._is_anothers(key, ours), key in self.delivered
            once = Stored.TAKEN_OVER if anothers and not delivered else Stored.DURABLE
            twice = delivered and key not in self.claims
            stored.append(Stored.DELIVERED_TWICE if twice else once)
            if not anothers:
                self.delivered[key] = max(stamp, self.delivered.get(key, 0))
                self.claims.pop(key, None)
                self.confirmed[member] += 1
        return bytes(stored)

    def release(self, ours: Collection[str], keys: bytes) -> None:
        """End the claims of these sessions."""
        for key in split_keys(keys):
            if self.claims.get(key) in ours:
                del self.claims[key]

    def renew(self, session: str, lease: float, *, begin: bool) -> bool:
        """Renew the lease of this session for that long; False: it had ended."""
        if begin:
            self._take_memory()
        elif not self.holds(session):
            return False
        self.leases[session] = self._clock() + lease
        return True

    def now(self) -> float:
        """The server's time."""
        return self._clock()

    def note(self, member: int, note: Note) -> None:
        """As ``notes.lua`` does."""
        place = (note.destination, note.account, note.status == THROTTLED)
        until = self._clock() + note.seconds
        if place not in self._notes or self._notes[place][1] < until:
            self._notes[place] = member, until, note._replace(name=f"{member} {until} {note.status}")

    def notes(self, member: int) -> list[Note]:
        """The valid notes of other members."""
        left = [(one, until - self._clock(), note) for one, until, note in self._notes.values()]
        return [
            note._replace(seconds=seconds) for one, seconds, note in left if one != member and seconds > 0
        ]

    def give(self, quota: str, calls: int, per_minute: int, seconds: float) -> GrantedPermits:
        """As ``calls.lua`` does."""
        now = self._clock()
        counted = self.quotas.setdefault(quota, Counter())
        for second in [one for one in counted if one < math.floor(now) - 60]:
            del counted[second]
        free = min(calls, per_minute - counted.total())
        if free <= 0:
            return GrantedPermits(0, min(counted) + 61 - now)
        counted[math.floor(now + seconds)] += free
        return GrantedPermits(free, 0.0)

    def _is_anothers(self, key: bytes, ours: Collection[str]) -> bool:
        holder = self.claims.get(key)
        return holder is not None and holder not in ours and self.holds(holder)

    def _take_memory(self) -> None:
        if self.full:
            raise KeyStoreError("the shared key store is full")

    # -- what happens to it

    def keep(self) -> None:
        """Keep the copy to which `go_back` returns."""
        self._kept = ({**self.delivered}, {**self.claims}, {**self.leases})
        self._kept_counts = (Counter(self.calls), Counter(self.confirmed))
        self._kept_quotas = {name: Counter(counted) for name, counted in self.quotas.items()}
        self._kept_notes = {**self._notes}

    def go_back(self) -> None:
        """A replica takes over that has the data of the last `keep`, or none."""
        delivered, claims, leases = self._kept
        self.delivered, self.claims, self.leases = {**delivered}, {**claims}, {**leases}
        self.calls, self.confirmed = map(Counter, self._kept_counts)
        self.quotas = {name: Counter(counted) for name, counted in self._kept_quotas.items()}
        self._notes = {**self._kept_notes}

    def flush(self) -> None:
        """Delete everything."""
        self._kept, self._kept_counts = ({}, {}, {}), (Counter(), Counter())
        self._kept_quotas, self._kept_notes = {}, {}
        self.go_back()


class SharedSession:
    """What one member's client knows and asks; it works like the real one (`RedisKeyStore`)."""

    def __init__(
        self, server: SharedKeys, window: Window, lease: float, announcement: Announcement | None = None
    ) -> None:
        self._server = server
        self._announcement = announcement
        self._window = window
        self._lease = lease
        self._member = server.members = server.members + 1
        self.name: str | None = None
        self._former: list[str] = []
        self._session = 0
        self._unsure: set[bytes] = set()
        """Keys that a failed call may have confirmed."""
        self._releasing = 0
        self._numbers: set[int] = set()
        """Requests that were answered since the server last went back."""
        self._times_lost = 0
        self._confirmed = 0
        self.lost = 0

    @property
    def names(self) -> Collection[str]:
        """All present and earlier sessions of this member."""
        return [*self._former, self.name] if self.name is not None else [*self._former]

    def look_up(self, keys: bytes, now: float, since: float | None = None) -> Call[bytes]:
        """See `KeyStore.look_up`."""
        oldest = self._window.oldest(now, since)
        return (yield from self._ask(self.name, lambda: self._server.look_up(oldest, keys)))

    def claim(self, keys: bytes, now: float, since: float | None = None) -> Call[Claimed]:
        """See `KeyStore.claim`."""
        while self._releasing:  # else a release could end the claim that is made now
            yield None
        name, session, former = self.name, self._session, [*self._former]
        if name is None:
            raise KeyStoreError("the lease has ended: it starts again by itself")
        oldest = self._window.oldest(now, since)
        found = yield from self._ask(name, lambda: self._server.claim(name, former, oldest, keys))
        return Claimed(found, session)

    def confirm(self, keys: bytes, now: float) -> Call[bytes]:
        """See `KeyStore.confirm`."""
        names, stamp, columns = self.names, self._window.stamp(now), split_keys(keys)
        try:
            flags = yield from self._ask(
                self.name, lambda: self._server.confirm(self._member, names, stamp, keys)
            )
        except KeyStoreError:
            self._unsure.update(columns)
            raise
        # Of these it was we ourselves who had delivered them, in a call that was not answered.
        found = [
            Stored.DURABLE if one in self._unsure and flag else flag
            for one, flag in zip(columns, flags, strict=True)
        ]
        self._unsure.difference_update(columns)
        self._confirmed += len(found) - found.count(0)
        return bytes(found)

    def release(self, keys: bytes) -> Call[None]:
        """See `KeyStore.release`."""
        if self.name is None:  # the claims end with the lease that they had
            return
        name, names = self.name, self.names
        self._releasing += 1
        try:
            yield from self._ask(name, lambda: self._server.release(names, keys))
        except KeyStoreError:
            self.end_session(name)
            raise
        finally:
            self._releasing -= 1

    def renew(self) -> Call[Renewed]:
        """See `KeyStore.renew`."""
        old = self.name
        if old is not None and (
            yield from self._ask(old, lambda: self._server.renew(old, self._lease, begin=False))
        ):
            if self.name != old:
                raise KeyStoreError("the lease ended meanwhile: it starts again by itself")
            return Renewed(self._session, self._server.notes(self._member), self.others())
        self.end_session(old)
        name = self._server.new_name()
        yield from self._ask(name, lambda: self._server.renew(name, self._lease, begin=True))
        self.name = name
        self._session += 1
        return Renewed(self._session, self._server.notes(self._member), self.others())

    def others(self) -> list[Announcement]:
        """Announce ours, and return what the others announce."""
        announced, now = self._server.announced, self._server.now()
        if self._announcement is not None:
            announced[self._member] = self._announcement, now + _ANNOUNCED_FOR
        return [said for one, (said, until) in announced.items() if one != self._member and now < until]

    def acquire_permits(
        self, quota: str, calls: int, per_minute: int, seconds: float
    ) -> Call[GrantedPermits]:
        """See `KeyStore.acquire_permits`."""
        given: GrantedPermits = yield lambda: self._server.give(quota, calls, per_minute, seconds)
        return given

    def share_note(self, note: Note) -> Call[None]:
        """See `KeyStore.share_note`."""
        yield lambda: self._server.note(self._member, note)

    def close(self) -> None:
        """End all sessions at once, and what was announced."""
        self._server.announced.pop(self._member, None)
        for name in self.names:
            self._server.leases.pop(name, None)
        self.end_session(self.name)

    def end_session(self, name: str | None) -> None:
        """A call's effect is unknown, so claims continue under another session."""
        if name is not None and self.name == name:
            self._former.append(name)
            self.name = None

    def _ask(self, name: str | None, request: Callable[[], T]) -> Call[T]:
        """Ask the server. Raises `KeyStoreError` if the answer shows that it has gone back."""
        since, times_lost = max(self._numbers, default=0), self._times_lost
        try:
            answer, number, before = yield lambda: self._server.serve(self._member, request)
        except KeyStoreError as error:
            if isinstance(error, Unclear) or error.lease_lost:
                self.end_session(name)
            raise
        lost = 0
        if self._times_lost == times_lost:
            if number > since and number not in self._numbers:
                self._numbers.add(number)
                self._confirmed = max(self._confirmed, before)
                found: T = answer
                return found
            lost = max(0, self._confirmed - before)
            self._times_lost += 1
            self._confirmed, self._numbers = before, {number}
        self.lost += lost
        self.end_session(name)
        raise _lease_lost(f"the shared key store has lost {lost} keys of delivered events")


class SharedMember(KeyStore):
    """One member's side, whose requests are answered at once."""

    def __init__(
        self, server: SharedKeys, window: Window, lease: float, announcement: Announcement | None = None
    ) -> None:
        self._server = server
        self._window = window
        self._known = SharedSession(server, window, lease, announcement)
        self._closed = False

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """See `KeyStore.look_up`."""
        return self._answer(self._known.look_up(keys, now, since))

    async def claim(self, keys: bytes, now: float, since: float | None = None) -> Claimed:
        """See `KeyStore.claim`."""
        return self._answer(self._known.claim(keys, now, since))

    async def confirm(self, keys: bytes, now: float) -> bytes:
        """See `KeyStore.confirm`."""
        return self._answer(self._known.confirm(keys, now))

    async def release(self, keys: bytes) -> None:
        """See `KeyStore.release`."""
        self._answer(self._known.release(keys))

    async def renew(self) -> Renewed:
        """See `KeyStore.renew`."""
        return self._answer(self._known.renew())

    async def members(self) -> Sequence[Announcement]:
        """See `KeyStore.members`."""
        return self._known.others()
        self._meet()
        if self._name is None or not self._server.holds(self._name):
            self.end_session()
            self._name = self._server.new_name()
            self._session += 1
        self._server.prolong(self._name, self._lease)
        return Renewed(self._session, self._server.notes(self._number))

    async def share_note(self, note: Note) -> None:
        """See `KeyStore.share_note`."""
        self._answer(self._known.share_note(note))

    async def acquire_permits(
        self, quota: str, calls: int, per_minute: int, seconds: float
    ) -> GrantedPermits:
        """See `KeyStore.acquire_permits`."""
        return self._answer(self._known.acquire_permits(quota, calls, per_minute, seconds))

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        oldest = self._window.oldest(now)
        self._server.delivered = {
            key: stamp for key, stamp in self._server.delivered.items() if stamp >= oldest
        }

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        return KeyStoreStatistics(len(self._server.delivered), lost=self._known.lost)

    async def close(self) -> None:
        """See `KeyStore.close`."""
        self._known.close()
        self._closed = True

    def end_session(self) -> None:
        """Let a call fail whose effect is unknown."""
        self._known.end_session(self._known.name)

    def _answer(self, call: Call[T]) -> T:
        if self._closed:
            raise KeyStoreError("the key store is closed: open it again before use")
        try:
            asked = next(call)
            while asked is not None:
                try:
                    answer = asked()
                except KeyStoreError as error:
                    asked = call.throw(error)
                else:
                    asked = call.send(answer)
        except StopIteration as done:
            value: T = done.value
            return value
        raise AssertionError("a request waits for another one, but all are answered at once")
