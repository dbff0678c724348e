"""What a replay is made of: what to read, and what it drives, or what stands in for that in a dry run."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import fcntl
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, NamedTuple

from consumer.adapters.kafka import METADATA_MOST, DeadLetterProducer, Range, open_plan, resolve_ranges
from consumer.adapters.kafka.replay_progress import NamedProgress
from consumer.adapters.key_store import KeyStore as StoredKeys
from consumer.adapters.key_store import open_key_store
from consumer.app import building
from consumer.app.run import log_kafka_trouble
from consumer.commands.replay.options import ReplayOptions
from consumer.commands.replay.stand_ins import AcceptsAll, ReadOnlyKeys, SendingAgain, StoresNothing
from consumer.engine.model import Policy, Position, TopicPartition
from consumer.errors import SettingsError, UsageError
from consumer.service import Api, DeadLetterWriter, KeyStore
from consumer.settings import Settings

_TIMEOUT = 30.0
"""Seconds for the brokers to say where ranges begin and end."""
_DRY_CALLS = 1_000_000
"""A dry run makes no calls: no quota holds it up."""
_DRY_KEYS_BYTES = 1 << 30


class ReplayScope(NamedTuple):
    """What is read, fixed before it begins. `begun`: unix seconds; `starts` and `progress` are a named replay's."""

    ranges: Sequence[Range]
    begun: int
    starts: Mapping[TopicPartition, Position]
    progress: NamedProgress | None
    resumed: bool = False
    """A named replay that was begun by an earlier run."""

    def left(self) -> Mapping[TopicPartition, tuple[int, int]]:
        """From where to where each partition is still to be read."""
        names = {TopicPartition(one.topic, one.partition): one for one in self.ranges}
        return {
            name: (self.starts[name].next_offset if name in self.starts else one.begin, one.end)
            for name, one in names.items()
        }


async def reading(options: ReplayOptions, settings: Settings) -> ReplayScope:
    """Where each partition begins and ends, asked for once; of a named replay as it was when that began.

    Raises `UsageError` for what is not there, `KafkaError` for brokers that do not say.
    """
    config = settings.kafka.client_properties()

    async def resolve() -> Sequence[Range]:
        return await resolve_ranges(
            config, options.topics, options.partitions, options.start, options.stop, _TIMEOUT
        )

    # The key store counts in whole seconds: what is stored from the next one on was delivered by this replay.
    begun = math.floor(time.time()) + 1
    if options.name is None:
        found = ReplayScope(await resolve(), begun, {}, None)
    else:
        group = f"{settings.kafka.group_id}.replay.{options.name}"
        plan = await open_plan(config, group, options.fingerprint(), resolve, begun, _TIMEOUT)
        found = ReplayScope(plan.ranges, plan.begun, plan.starts, plan.progress, plan.resumed)
    if options.ignore_dedup:
        await asyncio.sleep(max(0.0, found.begun - time.time()))
    return found


class Outside(NamedTuple):
    """What the service drives, or what stands in for it."""

    api: Api
    keys: KeyStore
    letters: DeadLetterWriter

    @property
    def sent_again(self) -> int | None:
        """Event ids that the platform sees twice; None where dedup holds."""
        return self.keys.again if isinstance(self.keys, SendingAgain) else None


def outside(
    options: ReplayOptions, settings: Settings, begun: int, stack: contextlib.AsyncExitStack
) -> Outside:
    """API, key store and dead-letter topics; `stack` closes them. Call it on the event loop."""
    own = settings.pinstream
    store = _key_store(options, settings)
    stack.push_async_callback(store.close)
    keys = SendingAgain(store, begun) if options.ignore_dedup else store
    if options.dry_run:
        return Outside(AcceptsAll(), keys, StoresNothing())
    api = building.conversions_api(settings)
    stack.push_async_callback(api.close)
    letters = DeadLetterProducer(
        settings.kafka.client_properties(), topic=own.dead_letter_topic, on_trouble=log_kafka_trouble
    )
    stack.push_async_callback(letters.close)
    return Outside(api, keys, letters)


def _key_store(options: ReplayOptions, settings: Settings) -> StoredKeys:
    own = settings.pinstream
    url = own.key_store.get_secret_value()
    if not options.dry_run:
        building.make_state_folder(own.state_dir)
        return open_key_store(url, window=own.dedup_window, max_bytes=own.key_store_max_bytes)
    memory = open_key_store("memory:", window=own.dedup_window, max_bytes=_DRY_KEYS_BYTES)
    if url == "memory:" or not holds_keys(settings):
        return memory  # a dry run makes no store where there is none
    store = open_key_store(url, window=own.dedup_window, max_bytes=own.key_store_max_bytes)
    return ReadOnlyKeys(store, memory)


def holds_keys(settings: Settings) -> bool:
    """Whether there is a key store at all, as far as a look at its folder tells."""
    url = settings.pinstream.key_store.get_secret_value()
    return not url.startswith("lmdb:") or Path(url.removeprefix("lmdb:")).is_dir()


def replay_policy(options: ReplayOptions, settings: Settings) -> Policy:
    """The service's limits, and a replay's own."""
    limits = dataclasses.replace(
        building.policy(settings),
        events_per_second=options.rate or math.inf,
        most_records=options.limit,
    )
    if options.name is not None:
        limits = dataclasses.replace(limits, map_bytes=METADATA_MOST)
    if options.dry_run:
        # Nothing is written that a guard would have to prevent, and all problems are to be counted.
        limits = dataclasses.replace(limits, calls_per_minute=_DRY_CALLS, dead_letter_share=1.0)
    return limits


# One process at a time replays under a name, and a replay that sends knows of others that do: two that read the same
# records would both send them, since neither finds a key before the other has stored it.


@contextlib.contextmanager
def only_one(state_dir: Path, name: str) -> Iterator[None]:
    """Lock the name; the system unlocks it when the process ends, however it ends. Raises `UsageError`."""
    with _open(state_dir, f"name-{name}.lock") as file:
        if not _lock(file, fcntl.LOCK_EX):
            raise UsageError(
                f"--name {name}: a replay of this name is running; wait for it, or use another name"
            )
        yield


@contextlib.contextmanager
def beside_others(state_dir: Path) -> Iterator[bool]:
    """Count as one that sends; gives whether another one does."""
    with _open(state_dir, "sending.lock") as file:
        alone = _lock(file, fcntl.LOCK_EX)
        # Shared from here on: others may begin, and find that they are not alone.
        fcntl.flock(file, fcntl.LOCK_SH)
        yield not alone


def _open(state_dir: Path, name: str) -> IO[str]:
    folder = state_dir / "replays"
    building.make_state_folder(state_dir)
    building.make_state_folder(folder)
    try:
        return (folder / name).open("w")
    except OSError as error:
        raise SettingsError(
            f"PINSTREAM_STATE_DIR: {folder} cannot be written ({error.strerror}); name a folder this user may write to"
        ) from error


def _lock(file: IO[str], kind: int) -> bool:
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except OSError:
        return False
    return True
