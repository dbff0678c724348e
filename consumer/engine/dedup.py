"""Two-phase deduplication in memory: claim, then confirm or release (design.md, rule 3).

Theory of operation. The first open delivery with a key claims it and leads; later ones with the same key follow
it. The key store knows only delivered keys. When the leader is delivered and its key is durable, the claim is
confirmed: followers are duplicates. When the leader is refused, or let go of, the claim is released: the first
follower that is still ours leads and is tried itself.

A claim is in memory only, so a crash forgets it, and nothing undelivered is ever taken for a duplicate.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from hashlib import blake2b

from consumer.engine.destination import REAL_API
from consumer.engine.model import Warned
from consumer.engine.spans import RELEASED, Span
from consumer.errors import InvariantViolation

KEY_BYTES = 16
"""128 bits: among 10**9 keys the chance that any two collide is about 1.5e-21."""
OFFLINE, UNCLEAR, COUNTED = 1, 2, 4
"""Marks of a delivery: it happened offline; a call with it has left, and its outcome is not known; it is counted
among those that may be doubled."""


class Keys:
    """Makes the keys of events: to whom + ad account + event name + event id (design.md, rule 3), hashed to 16 bytes.

    Hashed so that a key's size is bounded and no id lies readable on disk. Separated by NUL, which only the last can
    hold. `destination`: the tag of where events go (`consumer.engine.destination`). The platform's own, in live mode,
    has
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


class Delivery:
    """A record's way to the API: the record (span and index, once it is read), its key, and the serialised event.

    The key is there once it is claimed (`Claims.claim`): only then is it known to whom it goes.
    """

    __slots__ = (
        "account",
        "body",
        "dedup_id",
        "event_time",
        "followers",
        "index",
        "key",
        "marks",
        "name",
        "span",
        "warnings",
    )

    def __init__(
        self,
        account: str,
        name: str,
        dedup_id: str,
        event_time: int,
        offline: bool,
        body: bytes,
        warnings: tuple[Warned, ...],
    ) -> None:
        """`body`: the event's JSON, all that is kept of its payload. The others are those of `ConversionEvent`."""
        self.span: Span
        self.index: int
        self.account = account
        self.name = name
        self.dedup_id = dedup_id
        self.key: bytes
        self.body = body
        self.event_time = event_time
        self.marks: int = offline
        """`OFFLINE`, `UNCLEAR`, `COUNTED`."""
        self.warnings = warnings
        self.followers: list[Delivery] | None = None

    @property
    def offline(self) -> bool:
        """Whether it happened offline."""
        return bool(self.marks & OFFLINE)

    @property
    def live(self) -> bool:
        """Whether its record is still ours to settle."""
        return self.span.ours(self.index)

    @property
    def accepted(self) -> bool:
        """Whether new work may begin for it: ours, and not being drained."""
        return self.span.ours(self.index) and not self.span.assignment.draining


def all_accepted(deliveries: Iterable[Delivery]) -> bool:
    """Whether each of these is `accepted`: nearly always so, and told by their few spans."""
    spans = {one.span for one in deliveries}
    return all(span.assignment.accepts and RELEASED not in span.settled for span in spans)


class Claims:
    """Who leads each open key. `keys`: makes them."""

    def __init__(self, keys: Keys | None = None) -> None:
        self._new_digest = (keys or Keys()).new_digest
        self._leaders: dict[bytes, Delivery] = {}

    def __len__(self) -> int:
        return len(self._leaders)

    def leaders(self) -> Iterable[Delivery]:
        """Those that lead their keys."""
        return self._leaders.values()

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
        """The leader will not be delivered by us: the first follower still ours leads, and is returned."""
        self._end((leader,))
        followers = [one for one in leader.followers or () if one.accepted]
        leader.followers = None
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
