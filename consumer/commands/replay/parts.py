"""The parts of a replay: what it reads, and what the service drives, or what stands in for that in a dry run.

A replay uses the key store of the service: what was delivered within the window is a duplicate. With
``--ignore-dedup`` only what was delivered since the replay began is a duplicate, so that an event is sent once more
and not twice more, even if the replay is interrupted and goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import math
import time
from collections.abc import Iterator, Sequence
from email.utils import formatdate
from pathlib import Path

import orjson

from consumer.adapters.kafka.ranges import Range, resolve_ranges
from consumer.adapters.kafka.replay_progress import METADATA_MOST, Plan, open_plan
from consumer.adapters.key_store import KeyStore, KeyStoreStatistics, open_key_store
from consumer.adapters.key_store.interface import Claimed, Renewed
from consumer.adapters.schemas import LocalSchemas
from consumer.adapters.transform import Function
from consumer.app import building
from consumer.app.building import Outside
from consumer.commands.replay.options import ReplayOptions
from consumer.engine.messages import Answered, DeadLetter, Send
from consumer.engine.model import Policy
from consumer.engine.reading import split_keys
from consumer.errors import SettingsError
from consumer.settings import Settings

# Seconds for the brokers to say where ranges begin and end.
_TIMEOUT = 30.0
# More calls a minute than a dry run can make.
_DRY_CALLS = 1_000_000
_DRY_KEYS_BYTES = 1 << 30


async def reading(options: ReplayOptions, settings: Settings) -> Plan:
    """Find where each partition begins and ends; for a named replay, as it was when that began.

    Raises `UsageError` for what does not exist, `KafkaError` if the brokers do not answer.
    """
    config = settings.kafka.client_properties()

    async def resolve() -> Sequence[Range]:
        return await resolve_ranges(
            config, options.topics, options.partitions, options.start, options.stop, _TIMEOUT
        )

    # The key store counts in whole seconds: what is stored from the next one on was delivered by this replay.
    begun = math.floor(time.time()) + 1
    if options.name is None:
        found = Plan(await resolve(), {}, begun, resumed=False, progress=None)
    else:
        # A group of its own, so that the service's group does not move.
        group = f"{settings.kafka.group_id}.replay.{options.name}"
        found = await open_plan(config, group, options.fingerprint(), resolve, begun, _TIMEOUT)
    if options.ignore_dedup:
        # Nothing may be delivered in the second before: its keys would count as delivered earlier, and be sent twice.
        await asyncio.sleep(max(0.0, found.begun - time.time()))
    return found


def outside(
    options: ReplayOptions,
    settings: Settings,
    local: LocalSchemas,
    begun: int,
    stack: contextlib.AsyncExitStack,
    function: Function | None,
) -> Outside:
    """Open what the service drives, or what stands in for it; `stack` closes it. Call it on the event loop."""
    store = _dry_keys(settings) if options.dry_run else building.key_store(settings)
    stack.push_async_callback(store.close)
    keys = SendingAgain(store, begun) if options.ignore_dedup else store
    if not options.dry_run:
        return building.outside(settings, local, keys, stack, function)
    schemas = building.writer_schemas(settings, local)
    stack.push_async_callback(schemas.close)
    return Outside(AcceptsAll(), keys, schemas, StoresNothing(), building.transform_thread(function, stack))


def _dry_keys(settings: Settings) -> KeyStore:
    own = settings.pinstream
    memory = open_key_store("memory:", window=own.dedup_window, max_bytes=_DRY_KEYS_BYTES)
    url = own.key_store.get_secret_value()
    if url == "memory:" or not holds_keys(settings):
        return memory  # a dry run makes no store where there is none
    return ReadOnlyKeys(building.key_store(settings), memory)


def holds_keys(settings: Settings) -> bool:
    """Return False if there is no key store: its folder does not exist."""
    url = settings.pinstream.key_store.get_secret_value()
    return not url.startswith("disk:") or Path(url.removeprefix("disk:")).is_dir()


def replay_policy(options: ReplayOptions, settings: Settings) -> Policy:
    """Return the service's limits with those of the replay."""
    limits = building.policy(settings)
    return dataclasses.replace(
        limits,
        events_per_second=options.rate or math.inf,
        most_records=options.limit,
        # Beside the offset map, a commit holds the replay's plan.
        map_bytes=limits.map_bytes if options.name is None else METADATA_MOST,
        # A dry run makes no calls, so it needs no quota. It writes no dead letters, so it needs no guard, and it is to
        # count all problems.
        calls_per_minute=_DRY_CALLS if options.dry_run else limits.calls_per_minute,
        dead_letter_share=1.0 if options.dry_run else limits.dead_letter_share,
        lease=0.0 if options.dry_run else limits.lease,  # a dry run claims nothing
    )


@contextlib.contextmanager
def alone(state_dir: Path, name: str, *, shared: bool = False) -> Iterator[bool]:
    """Hold a lock on a file of this name; yield True if no other process holds it.

    With `shared`, another process may start meanwhile, and gets False.
    """
    folder = state_dir / "replays"
    building.make_state_folder(state_dir)
    building.make_state_folder(folder)
    try:
        file = (folder / name).open("w")
    except OSError as error:
        raise SettingsError(
            f"PINSTREAM_STATE_DIR: {folder} cannot be written ({error.strerror}); name a folder this user may write to"
        ) from error
    # The operating system releases the lock when the process ends, even if it is killed.
    with file:
        locked = True
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            locked = False
        if shared:
            # From now on a shared lock: a later process can share it too, but does not get the exclusive one.
            fcntl.flock(file, fcntl.LOCK_SH)
        yield locked


class AcceptsAll:
    """An `Api` that accepts every event at once."""

    async def send(self, command: Send) -> Answered:
        """Answer as the API does when it has processed all events."""
        # With a date: the engine compares clocks by it, and would wait for it with events from the future.
        body = {
            "num_events_received": command.events,
            "num_events_processed": command.events,
            "events": [{"status": "processed"}] * command.events,
        }
        return Answered(command.number, 200, {"date": formatdate(usegmt=True)}, orjson.dumps(body))

    async def read_token(self) -> bool:
        """Do nothing: there is no token."""
        return False


class StoresNothing:
    """A `DeadLetterWriter` that acknowledges all letters and stores none."""

    async def store(self, letters: Sequence[DeadLetter]) -> Sequence[bool]:
        """Acknowledge all."""
        return [True] * len(letters)


class ReadOnlyKeys(KeyStore):
    """A `KeyStore` that reads `store`, and remembers in `memory`."""

    # The memory is for events that stand twice in the range: the second is a duplicate in a dry run, too.
    def __init__(self, store: KeyStore, memory: KeyStore) -> None:
        self._store = store
        self._memory = memory

    async def remember(self, keys: bytes, now: float) -> None:
        """See `KeyStore.remember`."""
        await self._memory.remember(keys, now)

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        await self._memory.expire(now)

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        return self._store.statistics()

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """See `KeyStore.look_up`."""
        stored = await self._store.look_up(keys, now, since)
        own = await self._memory.look_up(keys, now, since)
        return bytes(one | other for one, other in zip(stored, own, strict=True))

    async def close(self) -> None:
        """See `KeyStore.close`."""
        await self._memory.close()
        await self._store.close()


class SendingAgain(KeyStore):
    """A `KeyStore` over `store` that knows only what was delivered since `begun` (unix seconds).

    `again`: how many keys were delivered that the window of `store` knew from before.
    """

    def __init__(self, store: KeyStore, begun: int) -> None:
        self._store = store
        self._begun = begun
        # Keys on their way to the platform for a second time, and those that it then refused.
        self._known_before: set[bytes] = set()
        self.again = 0

    async def look_up(self, keys: bytes, now: float, since: float | None = None) -> bytes:
        """See `KeyStore.look_up`; only keys that were delivered since the replay began are known."""
        return (await self.claim(keys, now, since)).found

    async def claim(self, keys: bytes, now: float, since: float | None = None) -> Claimed:
        """See `KeyStore.claim`; only what was delivered since the replay began counts."""
        ever = await self._store.look_up(keys, now)
        claimed = await self._store.claim(keys, now, max(self._begun, since or 0))
        # What was delivered before the replay began, and not since, the platform will see a second time.
        for key, lately, before in zip(split_keys(keys), claimed.found, ever, strict=True):
            if before and not lately:
                self._known_before.add(key)
        return claimed

    async def remember(self, keys: bytes, now: float) -> None:
        """See `KeyStore.remember`."""
        await self.confirm(keys, now)

    async def confirm(self, keys: bytes, now: float) -> bytes:
        """See `KeyStore.confirm`."""
        stored = await self._store.confirm(keys, now)
        again = self._known_before.intersection(split_keys(keys))
        self.again += len(again)
        self._known_before -= again
        return stored

    async def release(self, keys: bytes) -> None:
        """See `KeyStore.release`."""
        await self._store.release(keys)

    async def renew(self) -> Renewed:
        """See `KeyStore.renew`."""
        return await self._store.renew()

    async def expire(self, now: float) -> None:
        """See `KeyStore.expire`."""
        await self._store.expire(now)

    def statistics(self) -> KeyStoreStatistics:
        """See `KeyStore.statistics`."""
        return self._store.statistics()

    async def close(self) -> None:
        """See `KeyStore.close`."""
        await self._store.close()
