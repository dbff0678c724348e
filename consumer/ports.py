"""What the service needs of the outside: one Protocol for each thing, which adapters and fakes fit.

Theory of operation. A method is one attempt, in bounded time: it does what a command of the engine asks, and returns
the answer, or what the answer is made of (`consumer.engine.messages`). No implementation retries or decides. An error
that a method may raise is an answer as well; any other error is a bug or final, and ends the service.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

from consumer.engine import messages as m
from consumer.engine.figures.counters import KeyStoreStatistics
from consumer.engine.model import Announcement, Chunk, Note, Position
from consumer.engine.receipts import Receipts


class RecordSource(Protocol):
    """The source of records, to which positions are committed; see `consumer.adapters.kafka`. It calls
    `Service.assigned`, `revoked` and `lost` on the event loop."""

    async def start(self) -> None:
        """Join the group; partitions come later, through `Service.assigned`.

        Raises `KafkaError` if that cannot succeed.
        """

    async def fetch(self, room: int, timeout: float) -> Sequence[Chunk]:
        """Return at most `room` records, once there are some or `timeout` seconds are over.

        With room 0 it pauses, but it polls: rebalances and answers to commits come in a poll. Raises `KafkaError` for
        what does not recover by itself.
        """

    async def commit(self, positions: Sequence[Position]) -> m.CommitDone:
        """Commit positions of partitions that are ours: one try, in bounded time.

        Never raises: the answer shows what the broker did not accept.
        """

    async def restart_partitions(self, partitions: Sequence[m.TopicRecreated]) -> None:
        """Read these partitions from the beginning, if they are still held under their epochs.

        `Service.assigned` is called for them when that begins.
        """

    async def end_offsets(self) -> m.EndOffsets:
        """Return the last known ends of the assigned partitions, and how far each was read.

        Asks no broker and does not wait.
        """

    async def close(self, timeout: float, positions: Sequence[Position] = ()) -> None:
        """Commit `positions` and leave the group, within `timeout` seconds.

        After that it does not call the service any more.
        """


class Api(Protocol):
    """The Conversions API; see `consumer.adapters.conversions_api`."""

    async def send(
        self, command: m.Send, may_begin: Callable[[], bool] = lambda: True
    ) -> m.Answered | m.Unanswered:
        """Make one call, in bounded time; `may_begin` is asked before the first byte of its body.

        Never raises: a call without a complete answer is `Unanswered`, for `m.START_EXPIRED` if it may not begin.
        """

    async def ask_time(self) -> m.Answered | m.Unanswered:
        """Make one call without an event, in bounded time, for the ``Date`` of its answer.

        Never raises: a call without a complete answer is `Unanswered`.
        """

    async def read_token(self) -> bool:
        """Read the access token again from its source; return True if it changed.

        Never raises: if it cannot be read, the last token stays in use.
        """


class Claimed(NamedTuple):
    """The answer of `KeyStore.claim`."""

    found: bytes
    """A byte for each key: an `m.Found`."""
    session: int
    """The number of our session that holds the claims, from 1; 0: the store is not shared."""


class Renewed(NamedTuple):
    """The lease holds for its full length, from the moment when `KeyStore.renew` was called."""

    session: int
    """If it differs from the one before, the earlier claims are void."""
    notes: Sequence[Note] = ()
    """Notes of other members that still hold."""
    others: Sequence[Announcement] = ()
    """What the other members announce."""


class GrantedPermits(NamedTuple):
    """Calls given from a quota."""

    calls: int
    wait: float
    """Seconds until calls are free, if none are now."""


class KeyStore(Protocol):
    """Keys of delivered events, remembered for a window. Made by `open_key_store`; used by one event loop.

    Keys come as one column: a bytes object with `KEY_BYTES` for each key. A member knows its own events in flight
    (`consumer.engine.dedup.claims`); only a store that members share keeps claims, and there `claim`, `release` and
    `renew` do more than here.
    """

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """Return a byte for each key: `m.Found.DELIVERED` if it is remembered at `now` (unix seconds), else `NEW`.

        With `since` (unix seconds), only keys whose latest delivery was at or after that second count. Raises
        `KeyStoreError` if the store cannot be read.
        """
        ...

    async def claim(self, keys: bytes, now: float, since: float | None = None) -> Claimed:
        """Look keys up, as `look_up` does; where members share the store, claim those that were not delivered, and that
        no live session of another member has claimed. Raises `KeyStoreError`; trying again is safe."""
        return Claimed(await self.look_up(keys, now, since), 0)

    async def confirm(self, keys: bytes, now: float) -> bytes:
        """Store the keys as delivered at `now`, and end our claims.

        Returns a byte for each key, an `m.Stored`: where there are no other members, `DURABLE` for all.
        Raises `KeyStoreError` if it is not certain that all are stored. Some may be; trying again is safe.
        """
        ...

    async def release(self, keys: bytes) -> None:
        """End our claims on keys that we will not deliver. Raises `KeyStoreError`."""
        return

    async def renew(self) -> Renewed:
        """Prolong the lease on our claims, or begin a session. Raises `KeyStoreError`."""
        return Renewed(0)

    async def members(self) -> Sequence[Announcement]:
        """Return what the members announce that share the store now. Raises `KeyStoreError`."""
        return ()

    async def share_note(self, note: Note) -> None:
        """Tell a note to the other members, which get it from `renew` until it expires. Raises `KeyStoreError`."""
        return

    async def acquire_permits(
        self, quota: str, calls: int, per_minute: int, seconds: float
    ) -> GrantedPermits:
        """Ask for at most `calls` of the quota with this name: `per_minute` in any 60 seconds, for all members
        together. The calls must be made within `seconds`, or not at all. Raises `KeyStoreError`."""
        return GrantedPermits(calls, 0.0)

    async def expire(self, now: float) -> None:
        """Drop keys that are out of the window. It does bounded work and is called every few seconds.

        Raises `KeyStoreError` if it fails, or if other housekeeping has failed since the last call. Events can still be
        delivered while old keys stay.
        """
        ...

    async def review(self) -> Sequence[str]:
        """Return what does not fit in the store's own configuration, and what to do. Raises `KeyStoreError`."""
        return ()

    def statistics(self) -> KeyStoreStatistics:
        """Return a snapshot of the store's size. It is cheap and does not wait."""
        ...

    async def close(self) -> None:
        """Finish pending writes and release all resources; a second call does nothing."""
        ...


class Schemas(Protocol):
    """Writers' schemas; see `consumer.adapters.schemas`."""

    async def fetch(self, command: m.FetchSchema) -> m.SchemaAnswer:
        """Ask for a schema once, in bounded time.

        Never raises: `m.SchemaUnavailable` has the reason if there is no answer.
        """


class UserFunction(Protocol):
    """The function of ``PINSTREAM_TRANSFORM``; see `consumer.adapters.transform`."""

    async def run(self, command: m.Transform, say: Callable[[m.TransformIsSlow], None]) -> m.Transformed:
        """Call the function for at least the first of these records; `say` is called while it takes long.

        Never raises: an error of the function is the result of its record.
        """


class DeadLetterWriter(Protocol):
    """The dead-letter topics; see `consumer.adapters.kafka`."""

    async def store(self, letters: Sequence[m.DeadLetter]) -> Sequence[bool]:
        """Write letters once, in bounded time; return for each whether the broker acknowledged it.

        Never raises because of the broker's answer. A letter that was not acknowledged may have been written.
        """


class WrittenReceipts(NamedTuple):
    """The answer of `ReceiptWriter.store`."""

    stored: Sequence[bool]
    """For each of the `Receipts`: whether the broker acknowledged all of its records."""
    reason: str = ""
    """Why some were not acknowledged, and what to do: it names the topic, and is shown on /readyz and the page."""


class ReceiptWriter(Protocol):
    """The receipts topic; see `consumer.adapters.kafka`."""

    async def store(self, receipts: Sequence[Receipts]) -> WrittenReceipts:
        """Write a receipt for each record, once, in bounded time.

        Never raises because of an answer of a broker or of the registry. A receipt that was not acknowledged may have
        been written.
        """
