"""Claims on keys, the events that follow them, and queues of writes: delivered keys and dead letters.

Theory of operation. Deduplication has two phases (docs/architecture.md, rule 3). The first open event with a key claims
it and leads; later ones with the same key follow it. The key store knows only delivered keys. When the leader is
delivered and its key is durable, the claim is confirmed: followers are duplicates. When the leader is refused, or
dropped, the claim is released: the first follower that is still ours leads and is tried itself. A claim is in memory
only, so a crash forgets it, and nothing undelivered is ever taken for a duplicate.

An `Outbox` has at most one write under way; items that come meanwhile wait and go together in the next write (group
commit: the slower the disk, the larger the groups). Items that a write did not store wait again, behind a backoff that
grows with failures in a row. An item leaves an outbox when it is written, or when its assignment has ended.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate, chain
from math import inf
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from consumer.engine.block import Run
from consumer.engine.messages import DeadLetter
from consumer.engine.model import Backoff
from consumer.engine.reading import KEY_BYTES, split_keys
from consumer.engine.runs import goes_on, keys_of
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


T = TypeVar("T")


class Letter(NamedTuple):
    """A record on its way to the dead-letter topic."""

    row: Run
    letter: DeadLetter


class Outbox(Generic[T]):
    """A queue with one write under way, of up to `most` records. `rows_in`: records that an item stands for."""

    def __init__(self, backoff: Backoff, most: int, rows_in: Callable[[T], int] = lambda _: 1) -> None:
        self._backoff = backoff
        self._most = most
        self._rows_in = rows_in
        self._waiting: list[T] = []
        self.writing: list[T] = []
        self._number: int | None = None
        # Writes in a row that did not write everything.
        self.failures = 0
        # The end of the backoff (monotonic): no write begins before it.
        self.not_before = -inf
        self._later: list[tuple[float, Sequence[T]]] = []

    def __iter__(self) -> Iterator[T]:
        """Yield all items that are not known to be written."""
        yield from self.writing
        yield from self._waiting
        yield from chain.from_iterable(items for _, items in self._later)

    def __len__(self) -> int:
        return len(self.writing) + len(self._waiting) + sum(len(items) for _, items in self._later)

    @property
    def rows_at_risk(self) -> int:
        """Records that a crash now would leave unwritten.

        Items for a later write do not count: another member has claimed their keys, and its own records count there.
        Two members that each wait for the other's outcome must not both stop sending.
        """
        return sum(map(self._rows_in, chain(self.writing, self._waiting)))

    def add(self, items: Sequence[T], at: float = -inf) -> None:
        """Queue items for the next write, or for one that begins at `at` (monotonic) or later."""
        if at == -inf:
            self._waiting.extend(items)
        elif items:
            self._later.append((at, items))

    def due(self) -> float | None:
        """When the next write may begin; None while nothing waits or one is under way."""
        if self._number is not None:
            return None
        begins = [-inf] if self._waiting else [at for at, _ in self._later]
        return max(self.not_before, min(begins)) if begins else None

    def begin(self, number: int, now: float) -> Sequence[T]:
        """Begin the next write under this number, and return its items; none: no write may begin now."""
        due = self.due()
        if due is None or due > now:
            return ()
        for entry in [one for one in self._later if one[0] <= now]:
            self._later.remove(entry)
            self._waiting.extend(entry[1])
        self._number = number
        up_to = [*accumulate(map(self._rows_in, self._waiting))]
        # At least one item, however many records it stands for: a run of more than `most` must not wait for ever.
        count = max(1, bisect_right(up_to, self._most))
        self.writing, self._waiting = self._waiting[:count], self._waiting[count:]
        return self.writing

    def finish(self, number: int, written: Sequence[bool] | bool, now: float, jitter: float) -> list[T]:
        """Take the answer to the write `number`: whether all items, or which of them, were written. Return the
        written ones."""
        if number != self._number:
            raise bug(f"write {number} was answered, {self._number} is under way")
        items, self.writing, self._number = self.writing, [], None
        flags = [written] * len(items) if isinstance(written, bool) else written
        if len(flags) != len(items):
            raise bug("a write was answered for more or fewer items than it had")
        if all(flags):
            self.failures, self.not_before = 0, -inf
            return items
        # Items that were not written go first, so that the order stays.
        done = [item for item, flag in zip(items, flags, strict=True) if flag]
        self._waiting = [item for item, flag in zip(items, flags, strict=True) if not flag] + self._waiting
        self.failures += 1
        # At least half of the longest delay: an immediate second try does not help a broken disk or broker.
        self.not_before = now + self._backoff.delay(self.failures, 0.5 + jitter / 2)
        return done

    def discard(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Forget waiting items that are unwanted, and return them."""
        # Items in the current write stay until its answer comes: they may be written.
        gone = [item for item in self._waiting if unwanted(item)]
        self._waiting = [item for item in self._waiting if not unwanted(item)]
        return gone
