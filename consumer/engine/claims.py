"""Who has a key in flight, who waits for it, and what is written until it is: delivered keys and dead letters.

Theory of operation. Deduplication has two phases (docs/architecture.md, rule 3). The first open delivery with a key
claims it and leads; later ones with the same key follow it. The key store knows only delivered keys. When the leader is
delivered and its key is durable, the claim is confirmed: followers are duplicates. When the leader is refused, or given
up, the claim is released: the first follower that is still ours leads and is tried itself. A claim is in memory only,
so a crash forgets it, and nothing undelivered is ever taken for a duplicate.

An `Outbox` has at most one write under way; what comes meanwhile waits and goes together in the next one (group commit:
the slower the disk, the larger the groups). What a write did not take waits again, behind a backoff that grows with
failures in a row. Nothing leaves an outbox but by being written, or by no longer being ours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import Generic, NamedTuple, TypeVar

from consumer.engine.block import Block, Delivery, RecordStage, move_all
from consumer.engine.messages import DeadLetter
from consumer.engine.model import REAL_API, Backoff
from consumer.errors import InvariantViolation

KEY_BYTES = 16
"""128 bits: among 10**9 keys the chance that any two collide is about 1.5e-21."""


class Keys:
    """Makes the keys of events: to whom + ad account + event name + event id (rule 3), hashed to 16 bytes.

    Hashed so that a key's size is bounded and no id lies readable on disk. Separated by NUL, which only the last can
    hold. `destination`: the tag of where events go (`model.destination_tag`). The platform's own, in live mode, has
    no part in the key (and so has none that is not known): such are the keys of folders from before there were tags,
    and what a store in production holds stays known.
    """

    def __init__(self, destination: str | None = None) -> None:
        digest = blake2b(digest_size=KEY_BYTES)
        if destination not in (None, REAL_API):
            digest.update(f"{destination}\0".encode())
        # A copy costs half of what making one does, whatever it was given before.
        self.new_digest = digest.copy

    def of(self, account: str, event_name: str, dedup_id: str) -> bytes:
        """The key of an event."""
        digest = self.new_digest()
        digest.update(f"{account}\0{event_name}\0{dedup_id}".encode("utf-8", "surrogatepass"))
        return digest.digest()


def dedup_key(account: str, event_name: str, dedup_id: str, destination: str | None = None) -> bytes:
    """One key; see `Keys`."""
    return Keys(destination).of(account, event_name, dedup_id)


class Claims:
    """Who leads each open key. `keys`: makes them."""

    def __init__(self, keys: Keys | None = None) -> None:
        self._new_digest = (keys or Keys()).new_digest
        self._leaders: dict[bytes, Delivery] = {}

    def __len__(self) -> int:
        return len(self._leaders)

    def claim(self, delivery: Delivery) -> bool:
        """True if `delivery` now leads its key; else it follows the one that does."""
        # `Keys.of`, without the call: this is done for each event.
        digest = self._new_digest()
        text = f"{delivery.account}\0{delivery.name}\0{delivery.dedup_id}"
        digest.update(text.encode("utf-8", "surrogatepass"))
        key = delivery.key = digest.digest()
        leader = self._leaders.setdefault(key, delivery)
        if leader is delivery:
            return True
        if leader.followers is None:
            leader.followers = []
        leader.followers.append(delivery)
        return False

    def confirm_all(self, leaders: Sequence[Delivery]) -> list[Delivery]:
        """These leaders are delivered and their keys durable: ends the claims, gives the followers (duplicates now)."""
        self._end(leaders)
        return [follower for leader in leaders if leader.followers for follower in leader.followers]

    def confirm(self, leader: Delivery) -> list[Delivery]:
        """As `confirm_all`, for one."""
        return self.confirm_all((leader,))

    def release(self, leader: Delivery) -> Delivery | None:
        """The leader will not be delivered by us: the first follower that may still be begun leads, and is returned."""
        self._end((leader,))
        followers, leader.followers = leader.followers or [], None
        move_all([one for one in followers if not one.accepted], RecordStage.FREED)
        followers = [one for one in followers if one.accepted]
        if not followers:
            return None
        heir, *rest = followers
        heir.followers = rest or None
        self._leaders[heir.key] = heir
        return heir

    def _end(self, leaders: Iterable[Delivery]) -> None:
        end = self._leaders.pop
        for leader in leaders:
            if end(leader.key, None) is not leader:
                raise InvariantViolation("a claim was ended by one that does not lead it; please report this")


T = TypeVar("T")


class Letter(NamedTuple):
    """A record on its way to the dead-letter topic."""

    block: Block
    place: int
    letter: DeadLetter

    @property
    def ours(self) -> bool:
        """Whether its record is still ours to settle."""
        return self.block.ours(self.place)


class Outbox(Generic[T]):
    """A queue of items with one write of up to `most` of them under way."""

    def __init__(self, backoff: Backoff, most: int) -> None:
        self._backoff = backoff
        self._most = most
        self._waiting: list[T] = []
        self._writing: list[T] = []
        self._number: int | None = None
        self._failures = 0
        self._not_before = float("-inf")

    def __iter__(self) -> Iterator[T]:
        """All that is not yet known to be written."""
        yield from self._writing
        yield from self._waiting

    def __len__(self) -> int:
        return len(self._writing) + len(self._waiting)

    @property
    def failing(self) -> bool:
        """Whether the latest write failed, and what it held still waits."""
        return self._failures > 0 and len(self) > 0

    @property
    def writing(self) -> int:
        """How many items the write under way holds."""
        return len(self._writing)

    def add(self, items: Sequence[T]) -> None:
        """These are to be written."""
        self._waiting.extend(items)

    def due(self) -> float | None:
        """When the next write may begin; None while nothing waits or one is under way."""
        return self._not_before if self._waiting and self._number is None else None

    def begin(self, number: int, now: float) -> Sequence[T]:
        """The next write, named `number`; empty if none may begin now."""
        due = self.due()
        if due is None or due > now:
            return ()
        self._number = number
        self._writing, self._waiting = self._waiting[: self._most], self._waiting[self._most :]
        return self._writing

    def finish(self, number: int, written: Sequence[bool] | None, now: float, jitter: float) -> list[T]:
        """The write `number` came back: per item whether it was written (None: none was). Gives those that were."""
        if number != self._number:
            raise InvariantViolation(
                f"write {number} was answered, {self._number} is under way; please report this"
            )
        items, self._writing, self._number = self._writing, [], None
        if written is not None and len(written) != len(items):
            raise InvariantViolation(
                "a write was answered for more or fewer items than it had; please report this"
            )
        if written is not None and all(written):
            self._failures, self._not_before = 0, float("-inf")
            return items
        flags = written if written is not None else [False] * len(items)
        done = [item for item, flag in zip(items, flags, strict=True) if flag]
        self._waiting = [item for item, flag in zip(items, flags, strict=True) if not flag] + self._waiting
        self._failures += 1
        # From half of the ceiling up: a broken disk or broker is not helped by an immediate second try.
        self._not_before = now + self._backoff.delay(self._failures, 0.5 + jitter / 2)
        return done

    def discard(self, unwanted: Callable[[T], bool]) -> list[T]:
        """Forget waiting items, and give them. What is being written stays until it comes back."""
        gone = [item for item in self._waiting if unwanted(item)]
        self._waiting = [item for item in self._waiting if not unwanted(item)]
        return gone
