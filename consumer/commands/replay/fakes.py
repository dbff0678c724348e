"""Fakes of adapters in a replay: the key store with its view of it, and in a dry run API and dead letters.

A replay uses the key store of the service: an event that was delivered within the window is a duplicate. With
``--ignore-dedup`` only an event that was delivered since the replay began is a duplicate, so that an event is sent
again and not twice more, even if the replay is interrupted and goes on.
"""

from __future__ import annotations

import contextlib
import fcntl
from collections.abc import Callable, Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

import orjson

from consumer.adapters.key_store.interface import Window
from consumer.adapters.key_store.memory import MemoryKeyStore
from consumer.app import building
from consumer.commands.replay.options import ReplayOptions
from consumer.engine.messages import Answered, DeadLetter, Found, Send
from consumer.engine.reading import split_keys
from consumer.errors import SettingsError
from consumer.ports import Claimed, KeyStore
from consumer.settings import Settings

_DRY_KEYS_BYTES = 1 << 30


def open_keys(
    options: ReplayOptions, settings: Settings, begun: int, stack: contextlib.AsyncExitStack
) -> KeyStore | SendingAgain:
    """Open the key store with the view of the replay that began at `begun`; `stack` closes it."""
    window = Window.of(settings.pinstream.dedup_window)
    store: KeyStore
    if not options.dry_run:
        store = building.service_key_store(settings)
    elif holds_keys(settings):
        store = ReadOnlyKeys(building.service_key_store(settings), window)
    else:
        # Opening a store makes its folder, and a dry run writes nothing.
        store = MemoryKeyStore(window, _DRY_KEYS_BYTES)
    stack.push_async_callback(store.close)
    return SendingAgain(store, begun) if options.ignore_dedup else store


def holds_keys(settings: Settings) -> bool:
    """Return False if there is no key store yet: it would be on disk, and its folder does not exist."""
    url = settings.pinstream.key_store.get_secret_value()
    return not url.startswith("disk:") or Path(url.removeprefix("disk:")).is_dir()


@contextlib.contextmanager
def alone(state_dir: Path, name: str, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock on a file of this name; yield True if no other process holds it.

    With `shared`, another process may have started, and gets False. Raises `SettingsError` for a folder in which no
    file can be written or locked.
    """
    folder = state_dir / "replays"
    building.make_state_folder(state_dir)
    building.make_state_folder(folder)
    locked = True
    # The operating system releases the lock when the process ends, even if it is killed.
    with contextlib.ExitStack() as stack:
        try:
            file = stack.enter_context((folder / name).open("w"))
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                locked = False
            if shared:
                # From now on a shared lock: a later process can share it too, but does not get the exclusive one.
                fcntl.flock(file, fcntl.LOCK_SH)
        except OSError as error:
            raise SettingsError(
                f"PINSTREAM_STATE_DIR: no file in {folder} can be written and locked ({error.strerror}); name a folder "
                "of this machine that this user may write to"
            ) from error
        yield locked


class DryRun:
    """An `Api` that accepts every event at once, and a `DeadLetterWriter` that stores none."""

    async def send(self, command: Send, may_begin: Callable[[], bool] = lambda: True) -> Answered:
        """Answer as the API does when it has processed all events."""
        # The answer has a date: the engine compares clocks by it, and would hold events from the future until one
        # comes.
        body = {
            "num_events_received": command.events,
            "num_events_processed": command.events,
            "events": [{"status": "processed"}] * command.events,
        }
        return Answered(command.number, 200, {"date": formatdate(usegmt=True)}, orjson.dumps(body))

    async def ask_time(self) -> Answered:
        """Answer with the time of this machine."""
        return Answered(0, 401, {"date": formatdate(usegmt=True)}, b'{"code":2,"message":"a dry run"}')

    async def read_token(self) -> bool:
        """Do nothing: there is no token."""
        return False

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Acknowledge all letters."""
        return [True] * len(letters)


class ReadOnlyKeys(MemoryKeyStore):
    """A `KeyStore` of a dry run: it finds the keys of `store`, and keeps new keys only in memory."""

    # The memory is for events that are twice in the range: the second is a duplicate in a dry run, too.
    def __init__(self, store: KeyStore, window: Window) -> None:
        super().__init__(window, _DRY_KEYS_BYTES)
        self._store = store

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """See `KeyStore.look_up`."""
        stored = await self._store.look_up(keys, now, since)
        own = await super().look_up(keys, now, since)
        return bytes(map(max, stored, own))

    async def close(self) -> None:
        """See `KeyStore.close`."""
        await super().close()
        await self._store.close()


class SendingAgain:
    """A `KeyStore` over `store` that finds only keys that were delivered since `begun` (unix seconds).

    `again`: how many keys were delivered that were in the window of `store` before.
    """

    def __init__(self, store: KeyStore, begun: float) -> None:
        self._store = store
        self._begun = begun
        # Keys that are sent to the platform for a second time, including those that it then refused.
        self._known_before: set[bytes] = set()
        self.again = 0
        # All other methods are the store's own. A shared store's lease and quota apply to a replay as to any member.
        self.release, self.renew, self.expire = store.release, store.renew, store.expire
        self.share_note, self.acquire_permits, self.statistics = (
            store.share_note,
            store.acquire_permits,
            store.statistics,
        )
        self.members, self.review, self.close = store.members, store.review, store.close

    async def claim(self, keys: bytes, now: float, since: float | None = None) -> Claimed:
        """See `KeyStore.claim`; only keys that were delivered since the replay began count."""
        ever = await self._store.look_up(keys, now)
        claimed = await self._store.claim(keys, now, self._since(since))
        # The platform will get events a second time that were delivered before the replay began, and not since.
        for key, lately, before in zip(split_keys(keys), claimed.found, ever, strict=True):
            if before == Found.DELIVERED and lately == Found.NEW:
                self._known_before.add(key)
        return claimed

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """See `KeyStore.look_up`; only keys that were delivered since the replay began count."""
        return await self._store.look_up(keys, now, self._since(since))

    def _since(self, since: float | None) -> float:
        return self._begun if since is None else max(self._begun, since)

    async def confirm(self, keys: bytes, now: float) -> bytes:
        """See `KeyStore.confirm`."""
        # `begun` is by this machine's clock, and `now` by the platform's: what is delivered now has been since then.
        self._begun = min(self._begun, now)
        stored = await self._store.confirm(keys, now)
        # Counted here and not when they are claimed: an event that the platform refuses is not in it twice.
        again = self._known_before.intersection(split_keys(keys))
        self.again += len(again)
        self._known_before -= again
        return stored
