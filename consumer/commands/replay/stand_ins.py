"""What a replay is given in place of the service's own parts: in a dry run for all that writes, and as key store.

Theory of operation. A replay shares the key store of the service beside it, and by default goes by it as it is: what
was delivered within the window is a duplicate. *Nothing written* (a dry run) reads that store, and keeps what it
would have written in memory, so that an event that stands twice in the range counts once. *Sent again*
(``--ignore-dedup``) asks only for what was delivered since the replay began: so an event goes once more, and not twice
more, also when the replay is interrupted and goes on. It counts how many of those it delivers the window still knew:
those the platform sees twice.
"""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import formatdate

import orjson

from consumer.adapters.key_store import KeyStore, KeyStoreStatistics
from consumer.engine.messages import Answered, DeadLetter, Send


class AcceptsAll:
    """An `Api` that says processed of every event, at once."""

    async def send(self, command: Send) -> Answered:
        """As the API answers when all is well. There is no other clock here: this machine's clock counts, and
        what lies ahead of it need not wait for a word."""
        body = {
            "num_events_received": command.events,
            "num_events_processed": command.events,
            "events": [{"status": "processed"}] * command.events,
        }
        return Answered(command.number, 200, {"date": formatdate(usegmt=True)}, orjson.dumps(body))

    async def read_token(self) -> bool:
        """There is none."""
        return False


class StoresNothing:
    """A `DeadLetterWriter` that acknowledges and forgets."""

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """All taken."""
        return [True] * len(letters)


class ReadOnlyKeys:
    """A `KeyStore` that reads `store`, and remembers in `memory`."""

    def __init__(self, store: KeyStore, memory: KeyStore) -> None:
        self._store = store
        self._memory = memory

    async def look_up(self, keys: Sequence[bytes], now: float, since: float | None = None) -> list[bool]:
        """See `KeyStore.look_up`."""
        stored = await self._store.look_up(keys, now, since)
        own = await self._memory.look_up(keys, now, since)
        return [one or other for one, other in zip(stored, own, strict=True)]

    async def remember(self, keys: Sequence[bytes], now: float) -> None:
        """See `KeyStore.remember`; gone with the process."""
        await self._memory.remember(keys, now)

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`; the store itself is left as it is."""
        await self._memory.expire(now)

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        return self._store.statistics()

    async def close(self) -> None:
        """See `KeyStore.close`."""
        await self._memory.close()
        await self._store.close()


class SendingAgain:
    """A `KeyStore` over `store` that knows only what was delivered since `begun` (unix seconds).

    `again`: how many keys were delivered that the window of `store` knew from before.
    """

    def __init__(self, store: KeyStore, begun: int) -> None:
        self._store = store
        self._begun = begun
        self._known_before: set[bytes] = set()
        """Keys on their way to the platform for a second time, and those it then refused."""
        self.again = 0

    async def look_up(self, keys: Sequence[bytes], now: float) -> list[bool]:
        """Which were delivered since the replay began."""
        since = await self._store.look_up(keys, now, self._begun)
        ever = await self._store.look_up(keys, now)
        for key, lately, before in zip(keys, since, ever, strict=True):
            if before and not lately:
                self._known_before.add(key)
        return since

    async def remember(self, keys: Sequence[bytes], now: float) -> None:
        """See `KeyStore.remember`."""
        await self._store.remember(keys, now)
        again = self._known_before.intersection(keys)
        self.again += len(again)
        self._known_before -= again

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        await self._store.expire(now)

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        return self._store.statistics()
