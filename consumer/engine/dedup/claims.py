"""Claims on the keys of open events, and the events that follow each.

Theory of operation. Deduplication has two phases (docs/architecture.md, rule 3). The first open event with a key claims
it and leads; later ones with the same key follow it. The key store knows only delivered keys. When the leader is
delivered and its key is durable, the claim is confirmed: followers are duplicates. When the leader is refused, or
dropped, the claim is released: the first follower that is still ours leads and is tried itself. A claim is in memory
only, so a crash forgets it, and nothing undelivered is ever taken for a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from consumer.engine.reading import KEY_BYTES, split_keys
from consumer.engine.records.runs import Run, divide, keys_of
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
        # The fast path: then keys are not looked at one by one.
        if not self.followers:
            return []
        return [follower for key in split_keys(keys) for follower in self.followers.pop(key, ())]

    def release(self, leader: Run) -> tuple[Run | None, Sequence[Run]]:
        """Release the claim of a leader that is not delivered. Return the follower that leads now (None: none), and
        followers for which no new work may begin, so that they follow no longer."""
        key = keys_of([leader])
        followers, gone = divide(self.followers.pop(key, []))
        if not followers:
            # No event follows it, so its claim ends as that of a delivered event does.
            self.confirm([leader])
            return None, gone
        if followers[1:]:
            self.followers[key] = [*followers[1:]]
        return followers[0], gone

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
