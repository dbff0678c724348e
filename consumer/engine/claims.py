"""Deduplication: claims on the keys of open events, the events that follow them, and look-ups in the key store.

Theory of operation. Deduplication has two phases (docs/architecture.md, rule 3). The first open event with a key claims
it and leads; later ones with the same key follow it. The key store knows only delivered keys. When the leader is
delivered and its key is durable, the claim is confirmed: followers are duplicates. When the leader is refused, or
dropped, the claim is released: the first follower that is still ours leads and is tried itself. A claim is in memory
only, so a crash forgets it, and nothing undelivered is ever taken for a duplicate.

An event that leads its key is looked up in the key store before it is sent. A look-up that failed is tried again,
after a backoff that grows with failures in a row; meanwhile its events stay open.

A key store that several members share also holds claims (`consumer.adapters.key_store.shared`): a look-up there claims
keys that were not delivered. Claims belong to our *session* and hold while its *lease* does. Four rules keep an event
from being sent by two members:

* An event that another member has claimed waits (stage ``ELSEWHERE``) and is looked up again until its outcome is
  known.
* A call begins only if the lease is known to hold until the call's time limit (`Dispatcher.send`). It is known to
  hold from the moment when its renewal was asked for, however late the answer comes.
  The time for which the machine was suspended counts, and if the store says that claims are lost, none holds.
* A new session means that the lease of the one before had ended, or that the store lost data. Queued events, and events
  that come back without a verdict, were claimed by the session before, so they are looked up again. Events in flight
  stay there: their lease was long enough.
* A delivered event is confirmed only if no other live session has claimed it by now (the fence).

A claim that ends without delivery is released, so that other members need not wait for the end of our lease.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import chain
from math import inf
from typing import TYPE_CHECKING, Final

from consumer.engine.block import (
    RecordStage,
    Run,
    divide,
    each_of,
    earlier_keys_of,
    goes_on,
    keys_of,
    mark_taken_over,
    move_all,
    pick,
    rows_of,
)
from consumer.engine.context import Context
from consumer.engine.ledger import Ledger
from consumer.engine.messages import (
    KeysLookedUp,
    LeaseRenewed,
    LookUpKeys,
    ReleaseKeys,
    RenewLease,
)
from consumer.engine.model import Disposition, Instant
from consumer.engine.reading import KEY_BYTES, UNCLEAR, split_keys
from consumer.engine.sending import Dispatcher
from consumer.errors import bug


@dataclass(eq=False, slots=True)
class PlainKeySet:
    """A set of keys; many are added or removed at a time, as bytes that stand one after the other."""

    _keys: set[bytes] = field(default_factory=set, init=False)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, keys: bytes) -> list[int]:
        """Add keys. Return the places of those that were in the set already, or occur earlier in `keys`."""
        known = []
        for place, key in enumerate(split_keys(keys)):
            if key in self._keys:
                known.append(place)
            self._keys.add(key)
        return known

    def remove(self, keys: bytes) -> bool:
        """Remove keys. Return True if each of them was in the set."""
        before, gone = len(self._keys), split_keys(keys)
        self._keys.difference_update(gone)
        return before - len(self._keys) == len(gone)


if TYPE_CHECKING:
    KeySet = PlainKeySet
else:
    try:
        from consumer.engine.native._keyset import KeySet
    except ModuleNotFoundError:  # built without a compiler
        KeySet = PlainKeySet


@dataclass(eq=False, slots=True)
class Claims:
    """Keys that open events have claimed, and the events that follow each."""

    claimed: KeySet = field(default_factory=KeySet)
    # By key, the events that wait for the one that leads it.
    followers: dict[bytes, list[Run]] = field(default_factory=dict)

    def claim(self, run: Run) -> Sequence[Run]:
        """Claim the keys of new events. Return the events that do not lead: another open event has their key."""
        keys = keys_of([run])
        known = self.claimed.add(keys)
        followers = [Run(run.block, run.first + place, run.first + place + 1) for place in known]
        for place, follower in zip(known, followers, strict=True):
            key = keys[KEY_BYTES * place : KEY_BYTES * (place + 1)]
            self.followers.setdefault(key, []).append(follower)
        return followers

    def confirm(self, leaders: Iterable[Run]) -> list[Run]:
        """End the claims of delivered events whose keys are durable. Return their followers: duplicates."""
        keys = keys_of(leaders)
        if not self.claimed.remove(keys):
            raise bug("a claim was ended that is not held")
        # Nearly always so; then keys are not looked at one by one.
        if not self.followers:
            return []
        return [follower for key in split_keys(keys) for follower in self.followers.pop(key, ())]

    def release(self, leader: Run) -> Run | None:
        """Release the claim of a leader that is not delivered. Return the follower that leads now; None: none."""
        key = keys_of([leader])
        followers = [one for one in self.followers.pop(key, []) if goes_on(one)]
        if not followers:
            # No event follows it, so its claim ends as that of a delivered event does.
            self.confirm([leader])
            return None
        if followers[1:]:
            self.followers[key] = followers[1:]
        return followers[0]

    def purge(self) -> None:
        """Forget followers whose assignment has ended."""
        # Their leader may wait for hours in an outage, and each of them keeps its block in memory.
        for key, followers in [*self.followers.items()]:
            # Followers of a draining partition stay: if their leader is delivered before the deadline, they settle.
            kept = [one for one in followers if one.ours]
            if kept:
                self.followers[key] = kept
            else:
                del self.followers[key]


# Seconds between two renewals: short beside the lease, because a renewal also detects that the store has lost data.
RENEW_EVERY: Final = 1.0
# Seconds after which an event that another member has in flight is looked up again.
ASK_AGAIN: Final = 1.0
# Seconds by which a lease counts as shorter than it is: the clocks of two machines do not run equally fast.
_MARGIN: Final = 1.0

_DELIVERED, _ELSEWHERE = 1, 2


@dataclass(eq=False)
class Lookups:
    """Look-ups under way or to be retried; and the lease, where the key store is shared."""

    _context: Context
    _claims: Claims
    _ledger: Ledger
    _dispatcher: Dispatcher

    def __post_init__(self) -> None:
        self._asked: dict[int, Sequence[Run]] = {}
        self._again: list[tuple[float, Sequence[Run]]] = []
        # Look-ups in a row that failed, and whether the latest renewal did.
        self.failures = 0
        self.renewal_fails = False
        self._shared = self._context.policy.lease > 0
        # The renewal under way: its number, and when it was asked for.
        self._renewing: tuple[int, float] | None = None
        self._renew_at = -inf
        # How far the wall clock is ahead of the monotonic one. It grows by the time that the machine is suspended for.
        self._ahead: float | None = None
        if self._shared:
            self._dispatcher.lease_until = -inf

    @property
    def busy(self) -> bool:
        """True if look-ups are under way or due again, so that an event may soon be sent."""
        return bool(self._asked or self._again)

    @property
    def elsewhere(self) -> int:
        """Events that wait for another member's outcome."""
        waiting = chain.from_iterable([*self._asked.values(), *(leaders for _, leaders in self._again)])
        return sum(block.stages.count(RecordStage.ELSEWHERE, first, end) for block, first, end in waiting)

    def due(self) -> float | None:
        """Return when a look-up or a renewal is due next (monotonic)."""
        times = [at for at, _ in self._again]
        if self._shared and self._renewing is None:
            times.append(self._renew_at)
        return min(times, default=None)

    def go_on(self) -> None:
        """Begin the look-ups and the renewal that are due."""
        now = self._context.now.monotonic
        if self._shared and self._renewing is None and now >= self._renew_at:
            self._renewing = (self._context.number(), now)
            self._context.emit(RenewLease(self._renewing[0]))
        due = [leaders for at, leaders in self._again if at <= now]
        if due:
            self._again = [entry for entry in self._again if entry[0] > now]
            self.look_up([*chain.from_iterable(due)])

    # -- look-ups

    def look_up(self, leaders: Sequence[Run]) -> None:
        """Ask the key store whether these leaders were delivered before."""
        if leaders:
            number = self._context.number()
            self._asked[number] = leaders
            self._context.emit(LookUpKeys(number, keys_of(leaders), earlier_keys_of(leaders)))

    def looked_up(self, happened: KeysLookedUp) -> None:
        """Take the answer to a look-up: settle events delivered before, queue the others."""
        self.failures = 0
        leaders, found, now = self._take(happened.number), happened.found, self._context.now.monotonic
        if rows_of(leaders) != len(found):
            raise bug("a look-up was answered for more or fewer keys than asked")
        if happened.session != self._dispatcher.session:
            # Claimed by a session that has ended, or is not known yet: the claims prove nothing.
            self._later(now, leaders)
            return
        if any(found):
            elsewhere, leaders = pick(leaders, [flag == _ELSEWHERE for flag in found])
            duplicates, leaders = pick(leaders, [flag == _DELIVERED for flag in found if flag != _ELSEWHERE])
            if self._shared:
                # Events that we sent in a call without an answer, and that another member delivered after our lease
                # had ended.
                marks = [mark for block, first, end in duplicates for mark in block.marks[first:end]]
                sent_too, _ = pick(duplicates, [mark & UNCLEAR for mark in marks])
                self._context.counters.taken_over += mark_taken_over(sent_too)
            followers = self._claims.confirm(duplicates)
            self._ledger.settle([*duplicates, *followers], Disposition.DUPLICATE)
            move_all(elsewhere, RecordStage.ELSEWHERE)
            self._later(now + ASK_AGAIN, elsewhere)
        leaders, gone = divide(leaders)
        move_all(leaders, RecordStage.QUEUED)
        for run in leaders:
            for account, part in run.by_account():
                self._dispatcher.queue(account).add(part, now)
        self.drop(gone)

    def failed(self, number: int) -> None:
        """Take a look-up that failed: try it again later."""
        self.failures += 1
        self._context.counters.failures["key_store_look_up"] += 1
        delay = self._context.policy.inner_backoff.delay(self.failures, 0.5 + self._context.jitter() / 2)
        self._later(self._context.now.monotonic + delay, self._take(number))
        self._renew_at = -inf  # our session may have ended

    def purge(self) -> None:
        """Drop events that wait for a look-up and for which no new work may begin."""
        again, self._again = self._again, []
        for at, leaders in again:
            self._later(at, leaders)

    def _later(self, at: float, leaders: Sequence[Run]) -> None:
        """Look events up at `at` or later, except those for which no new work may begin."""
        kept, gone = divide(leaders)
        if kept:
            self._again.append((at, kept))
        self.drop(gone)

    def _take(self, number: int) -> Sequence[Run]:
        leaders = self._asked.pop(number, None)
        if leaders is None:
            raise bug(f"look-up {number} was answered but not asked")
        return leaders

    # -- the lease

    def notice_suspension(self, now: Instant) -> None:
        """Shorten the lease by the time that this machine was suspended for: the monotonic clock stands still then.

        If the wall clock was only set, this costs one renewal.
        """
        before, self._ahead = self._ahead, now.unix - now.monotonic
        if before is None or self._ahead <= before:
            return
        slept = self._ahead - before
        self._dispatcher.lease_until -= slept
        if self._renewing is not None:
            self._renewing = (self._renewing[0], self._renewing[1] - slept)
        if slept > _MARGIN:
            self._renew_at = -inf

    def lease_lost(self) -> None:
        """Begin no call before the next renewal: by an answer of the store, our claims do not hold any more."""
        self._dispatcher.lease_until = self._renew_at = -inf
        if self._renewing is not None:
            # It may have been done before the loss, so its answer proves nothing.
            self._renewing = (self._renewing[0], -inf)

    def renewed(self, happened: LeaseRenewed) -> None:
        """Take the answer to a renewal: our claims hold for another lease from when it was asked for."""
        now = self._context.now.monotonic
        self._dispatcher.lease_until = self._answered(happened.number) + self._context.policy.lease - _MARGIN
        # An answer that came so late that it proves nothing is asked for again at once.
        self._renew_at = now + RENEW_EVERY if self._dispatcher.lease_until > now else now
        self.renewal_fails = False
        self._dispatcher.halts.apply(happened.notes)
        before, self._dispatcher.session = self._dispatcher.session, happened.session
        # 0: the first session of this process, so no claim was made under another one.
        if before not in (0, happened.session):
            queued = [run for queue in self._dispatcher for run in queue.purge(lambda _: False)]
            self._context.report("warning", "claimed_again", events=rows_of(queued))
            self.claim_again(queued)

    def renewal_failed(self, number: int) -> None:
        """Take a renewal that failed: try again soon. Meanwhile the lease that is known to hold runs out."""
        self._answered(number)
        self.renewal_fails = True
        self._renew_at = self._context.now.monotonic + RENEW_EVERY

    def claim_again(self, queued: Sequence[Run]) -> None:
        """Look up again events that a session claimed which has ended: another member may have claimed them by now."""
        kept, gone = divide(queued)
        move_all(kept, RecordStage.LOOKED_UP)
        self.look_up(kept)
        self.drop(gone)

    # -- events that we do not deliver

    def drop(self, runs: Sequence[Run]) -> None:
        """Free events that we will not deliver now, and pass their claims on."""
        move_all(runs, RecordStage.FREED)
        self.pass_on(each_of(runs))

    def pass_on(self, leaders: Iterable[Run]) -> None:
        """Pass the claims of events to the first follower of each, which is tried itself."""
        heirs, ended = [], []
        for leader in leaders:
            heir = self._claims.release(leader)
            if heir is None:
                ended.append(leader)
            else:
                heirs.append(heir)
        move_all(heirs, RecordStage.LOOKED_UP)
        # So that other members need not wait for these keys until our lease ends.
        if self._shared and ended:
            self._context.emit(ReleaseKeys(keys_of(ended)))
        self.look_up(heirs)

    def _answered(self, number: int) -> float:
        """Return when the renewal was asked for."""
        if self._renewing is None or self._renewing[0] != number:
            raise bug(f"renewal {number} was answered but not asked")
        asked_at, self._renewing = self._renewing[1], None
        return asked_at
